"""What is given to a run: once, by place or by role, and nothing that it does not read."""

from __future__ import annotations

import pytest

import sparsescope as ss
from sparsescope.activations.context import Context
from sparsescope.core import registry, roles
from sparsescope.core.registry import Analysis, Registry
from sparsescope.core.result import Result
from sparsescope.core.roles import Role
from sparsescope.core.spec import Params
from sparsescope.errors import SpecError

NAME = "activation_sparsity"
SERIES = "grokking-short-seed1"


@pytest.fixture
def toy(monkeypatch):
    """Registers an analysis whose compute is a function, under the name ``toy``."""
    import sys
    import types

    def make(compute, **fields):
        module = types.ModuleType("toy_compute")
        module.compute = compute
        monkeypatch.setitem(sys.modules, "toy_compute", module)
        found = Registry("analysis")
        found.add(Analysis("toy", "1", "Toy", "A toy.", Params, "toy_compute", **fields))
        monkeypatch.setattr(registry, "analyses", lambda: found)

    return make


def test_an_input_is_given_once(llama, small_corpus):
    with pytest.raises(SpecError, match="text is given twice"):
        ss.run(NAME, llama, small_corpus, text=small_corpus)
    with pytest.raises(SpecError, match="reads no model"):
        ss.run("grokking", SERIES, series=SERIES)


def test_inputs_by_role_are_the_same_run(llama, small_corpus):
    tokens = small_corpus.tokenize(llama.tokenizer)
    one, two = ss.run(NAME, llama, tokens), ss.run(NAME, subject=llama, text=tokens)
    assert one.provenance["digest"] == two.provenance["digest"]


def test_parameters_name_what_stands_beside_and_not_what_is_studied():
    with pytest.raises(SpecError, match="reads a series of checkpoints"):
        ss.run("grokking", seeds=(SERIES,))


def test_an_artifact_has_one_name(toy, tmp_path):
    def compute(params, context):
        for _ in range(2):
            with context.keep("thing", format="text") as writer:
                writer.write("a.txt", b"a")
        return Result("toy")

    toy(compute, inputs=("series",))
    with pytest.raises(SpecError, match="'thing' is there already"):
        ss.run("toy", SERIES, store=tmp_path)


def test_a_context_keeps_artifacts_outside_of_a_run():
    with Context.of(subject=None).keep("thing", format="text") as writer:
        writer.write("a.txt", b"a")
    assert writer.artifact.path_of("a.txt").read_bytes() == b"a"


def test_a_model_beside_a_series_has_a_digest_of_its_own(toy, llama):
    def compute(params, context):
        result = Result("toy")
        result.add_scalar("layers", context.subject.n_layers + len(context.series), "count", "Both.")
        return result

    toy(compute, inputs=("subject", "series"))
    found = ss.run("toy", llama, series=SERIES)
    other = ss.run("toy", ss.load("random-gpt2"), series=SERIES)
    assert found.provenance["digest"] != other.provenance["digest"]
    third = ss.run("toy", llama, series="grokking-short-seed2")
    assert found.provenance["digest"] != third.provenance["digest"], "another series is another run"


def test_a_role_of_a_package_has_no_slot_of_ours(monkeypatch):
    role = Role("pair", "pair", "two of them", "nowhere", slot="subject")
    point = type("Point", (), {"name": "pair", "value": "somewhere", "load": lambda self: role})()
    monkeypatch.setattr(roles, "entry_points", lambda group: [point])
    roles.roles.cache_clear()
    try:
        assert "built-in" in roles.roles()["pair"].summary
    finally:
        monkeypatch.undo()
        roles.roles.cache_clear()


def test_a_parameter_without_a_default_is_refused():
    class Needs(Params):
        needed: int

    with pytest.raises(SpecError, match="no default"):
        Registry("analysis").add(Analysis("toy", "1", "Toy", "A toy.", Needs, "nowhere"))

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
from sparsescope.runner.run import Request, run_many

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


@pytest.fixture
def beside(monkeypatch):
    """Registers ``toy``, which reads ``pair`` beside a model and a text, beside the other analyses; ``pair``
    is opened by the given function.
    """
    import sys
    import types

    def make(opener):
        functions = {
            "open": opener,
            "identity": lambda value: {"id": "pair", "digest": "0" * 64},
            "capabilities": lambda value: frozenset(),
            "words": lambda value, opened, flag: None,
            "python": repr,
            "compute": lambda params, context: Result("toy"),
        }
        module = types.ModuleType("toy_opener")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, "toy_opener", module)
        known = {**roles.roles(), "pair": Role("pair", "pair", "two of them", "toy_opener")}
        monkeypatch.setattr(roles, "roles", lambda: known)
        found = Registry("analysis")
        for record in registry.analyses():
            found.add(record)
        inputs = ("subject", "text", "pair")
        found.add(Analysis("toy", "1", "Toy", "A toy.", Params, "toy_opener", inputs=inputs))
        monkeypatch.setattr(registry, "analyses", lambda: found)

    return make


def refuse(given, opened, store):
    raise SpecError("there is no such pair", where="--pair", got=str(given))


def fail(given, opened, store):
    raise ZeroDivisionError("no pair")


@pytest.mark.parametrize(
    ("opener", "said"), [(refuse, "there is no such pair"), (fail, "has a bug: ZeroDivision")]
)
def test_an_input_that_cannot_be_opened_fails_who_reads_it(
    beside, llama, small_corpus, tmp_path, opener, said
):
    beside(opener)
    told = []
    outcomes = run_many(
        [Request("toy"), Request("activation_rank"), Request("toy")],
        {"subject": llama, "text": small_corpus, "pair": "nowhere"},
        store=tmp_path,
        done=told.append,
    )
    assert [said in str(outcome.error) for outcome in outcomes] == [True, False, True]
    assert outcomes[0].spec.analysis == "toy" and outcomes[1].result is not None
    assert {id(outcome) for outcome in told} == {id(outcome) for outcome in outcomes}
    assert not list((tmp_path / ".partial").glob("*")), "work was left"
    with pytest.raises(SpecError if opener is refuse else ZeroDivisionError, match=r"no (such )?pair"):
        ss.run("toy", llama, small_corpus, pair="nowhere")


def test_an_input_that_is_missing_fails_who_reads_it(beside, llama, small_corpus):
    beside(refuse)
    outcomes = run_many(
        [Request("toy"), Request("activation_rank")], {"subject": llama, "text": small_corpus}
    )
    assert "toy reads a pair" in str(outcomes[0].error) and outcomes[1].result is not None


def test_what_several_read_is_tried_once(beside, llama, small_corpus):
    tried = []

    def count(given, opened, store):
        tried.append(given)
        raise SpecError("there is no such pair")

    beside(count)
    run_many([Request("toy")] * 3, {"subject": llama, "text": small_corpus, "pair": "nowhere"})
    assert tried == ["nowhere"]


def test_a_report_keeps_what_does_not_read_it(beside, tmp_path, monkeypatch):
    """The same on the command line, where the option comes from an entry point."""
    from sparsescope.cli.options import InputOptions, TextOptions
    from sparsescope.cli.options import ModelOptions as Model
    from sparsescope.cli.running import Target, run_requests

    beside(refuse)
    text = TextOptions("python-docs", 300, 64)
    target = Target("random-llama", Model(), text, InputOptions({"pair": ["nowhere"]}))
    inputs, wanted, _ = target.open(None)
    assert "toy" in {record.name for record in wanted}
    asked = [("toy", {}), ("activation_rank", {})]
    first, second = run_requests(asked, inputs, tmp_path, 512)
    assert "there is no such pair" in str(first.error) and second.result is not None


def test_a_report_says_once_what_all_of_it_lacks(tmp_path, monkeypatch, capsys):
    from sparsescope.cli import app
    from sparsescope.cli.exit_codes import execute

    monkeypatch.setenv("SPARSESCOPE_HOME", str(tmp_path / "runs"))
    (tmp_path / "short.txt").write_text("a")
    words = [
        "report",
        "random-llama",
        "--corpus",
        str(tmp_path / "short.txt"),
        "-o",
        str(tmp_path / "r.html"),
    ]
    assert execute(app, words) == 1
    assert capsys.readouterr().err.count("no document of the corpus is left") == 1


def test_a_study_keeps_what_does_not_read_a_recipe_that_fails(beside, tmp_path, monkeypatch):
    from sparsescope.runner import recipes, study_run
    from sparsescope.runner.study import Declaration, Study

    beside(lambda given, opened, store: given)

    def untrained(*given):
        raise SpecError("the recipe fails")

    monkeypatch.setattr(study_run, "given_input", untrained)
    declared = {
        "name": "toys", "title": "Toys", "question": "?",
        "corpus": "python-docs", "tokens": 300, "context": 64,
        "inputs": {"pair": f"{recipes.PREFIX}x"}, "subject": [{"name": "random-llama"}],
        "analysis": [{"name": "toy"}, {"name": "activation_rank"}],
    }  # fmt: skip
    found = Study(tmp_path / "study.toml", Declaration.model_validate(declared))
    first, second = study_run.run_study(found, store=tmp_path / "runs").runs
    assert "the recipe fails" in str(first.error) and second.result is not None


def test_a_parameter_without_a_default_is_refused():
    class Needs(Params):
        needed: int

    with pytest.raises(SpecError, match="no default"):
        Registry("analysis").add(Analysis("toy", "1", "Toy", "A toy.", Needs, "nowhere"))


def test_a_default_text_is_left_where_a_series_carries_none_that_is_asked_for():
    """A report gives every analysis its default text; one whose text is optional goes on without it."""
    from sparsescope.runner.inputs import Fallback, open_inputs

    optional, given = ss.analyses().get("pathways"), {"series": "grokking-short"}
    text = Fallback(ss.corpus("python-docs", tokens=256))
    assert open_inputs(optional, given | {"text": text}, {}, None)["text"] == ()
    assert open_inputs(optional, given, {}, None)["text"] == ()
    needed = ss.analyses().get("sparsity_over_training")
    with pytest.raises(SpecError, match="has no text"):
        open_inputs(needed, given | {"text": text}, {}, None)
    own = open_inputs(optional, {"series": "lazy-swiglu", "text": text}, {}, None)["text"][0]
    assert "held-out" in own.name, "its own text stands before the default"

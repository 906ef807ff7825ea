"""Code that a record names and its package lacks: an error says what is missing, before the model runs."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

import sparsescope as ss
from sparsescope.activations.accumulators import OF_DOCUMENTS, DocumentAccumulator
from sparsescope.core import registry
from sparsescope.core.registry import Analysis, Registry, View
from sparsescope.core.result import Result
from sparsescope.core.spec import Params
from sparsescope.core.statements import Statement, statements_of
from sparsescope.errors import SpecError
from sparsescope.models.subject import Subject
from sparsescope.models.variants import VariantKind, VariantRequest
from sparsescope.runner.run import Request, run_many
from sparsescope.testing import check_accumulator, check_analysis, check_figure, check_statements

GOOD = "activation_rank"


class Sums(DocumentAccumulator):
    """A complete accumulator: the sum of every site."""

    def __init__(self, sites):
        DocumentAccumulator.__init__(self, sites, ())
        self.sums = np.zeros(len(self.sites))

    def _take(self, batch, cluster, seen):
        self.sums += [float(batch.values[site.name].double().sum()) for site in self.sites]

    def _join(self, other, places):
        self.sums += other.sums

    def _arrays(self):
        return {"sums": self.sums}

    def _load(self, arrays):
        self.sums = arrays["sums"]


def accumulator(params, context):
    return Sums(context.subject.sites("blocks.*.mlp.hook_post"))


def result(params, context, accumulator):
    accumulator.finish()
    found = Result("toy")
    found.add_scalar("total", float(accumulator.sums.sum()), "activation", "Sum of all activations.")
    return found


def compute(params, context):
    found = Result("toy")
    found.add_scalar("total", 1.0, "activation", "One.")
    return found


def without(name):
    """``Sums`` without one of its methods."""
    return type(
        "Less", (DocumentAccumulator,), {k: v for k, v in vars(Sums).items() if k not in (name, "__dict__")}
    )


@pytest.fixture
def toy(monkeypatch):
    """Registers ``toy`` beside the others: modules are given by their functions."""

    def register(functions, *, views=None, statements=None, **fields):
        def module(name, found):
            made = types.ModuleType(name)
            vars(made).update(found)
            monkeypatch.setitem(sys.modules, name, made)
            return name

        known = Registry()
        for record in registry.analyses():
            known.add(record)
        if views is not None:
            fields |= {"views": (View("totals", "Totals", "All.", table="totals"),)}
            fields |= {"view_module": module("toy_of_tests_views", views)}
        if statements is not None:
            fields["statements"] = module("toy_of_tests_statements", statements)
        compute = functions if isinstance(functions, str) else module("toy_of_tests_compute", functions)
        record = Analysis("toy", "1", "Toy", "A toy.", Params, compute, **fields)
        known.add(record)
        monkeypatch.setattr(registry, "analyses", lambda: known)
        return record

    return register


@pytest.fixture
def passes(monkeypatch):
    """Counts forward passes."""
    original, calls = Subject.forward, []

    def counted(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Subject, "forward", counted)
    return calls


def bare(self, sites):
    self.sites = sites


def streaming(make):
    """A compute module whose accumulator is made from the sites of the first layer."""
    first = "blocks.0.mlp.hook_post"
    return {"accumulator": lambda params, context: make(context.subject.sites(first)), "result": result}


NEITHER, LESS = "neither the functions accumulator and result nor the function compute", "is not complete"
RESULT, COMPUTE = "def result(params, context, accumulator)", "def compute(params, context)"
ACCUMULATOR = "def accumulator(params, context)"
LACKING = {
    "nothing": ({}, NEITHER, COMPUTE),
    "no result": ({"accumulator": accumulator}, "has no function result", RESULT),
    "no accumulator": ({"result": result}, NEITHER, ACCUMULATOR),
    "a number": ({"accumulator": accumulator, "result": 3}, "has no function result", "result is a int"),
    "other arguments": ({"compute": lambda context: None}, "takes other arguments", COMPUTE),
    "result of two": (
        {"accumulator": accumulator, "result": lambda params, context: None}, "takes other arguments", RESULT
    ),
    "no such module": ("toy_of_tests_nowhere", "as compute cannot be imported", "ModuleNotFoundError"),
    "None accumulates": (streaming(lambda sites: None), LESS, "got:     None"),
    "a class of its own": (
        streaming(lambda sites: types.SimpleNamespace(sites=sites, update=print)), LESS,
        "merge(other), finish(), state(), restore(arrays, meta)",
    ),
    "no sites": (streaming(lambda sites: Sums(["blocks.0"])), LESS, "attribute sites"),
    "no base": (
        streaming(lambda sites: type("Bare", (Sums,), {"__init__": bare})(sites)), LESS,
        "super().__init__(sites, measure)",
    ),
    **{call: (streaming(without(call.partition("(")[0])), LESS, call) for call in OF_DOCUMENTS},
}  # fmt: skip


@pytest.mark.parametrize("case", LACKING)
def test_a_missing_function_is_named_before_the_pass(toy, llama, small_corpus, passes, case):
    functions, what, part = LACKING[case]
    toy(functions)
    with pytest.raises(SpecError) as caught:
        ss.run("toy", llama, small_corpus)
    text = str(caught.value)
    assert what in text and part in text and "analysis toy" in text and "toy_of_tests" in text, text
    assert '"Add an analysis" in CONTRIBUTING.md' in text and "check_analysis" in text
    assert not passes
    with pytest.raises((AssertionError, SpecError), match="analysis toy"):
        check_analysis(registry.analyses().get("toy"), llama, small_corpus)
    outcomes = run_many([Request("toy"), Request(GOOD)], {"subject": llama, "text": small_corpus})
    assert what in str(outcomes[0].error) and outcomes[1].result is not None


@pytest.mark.parametrize("method", ["update", "state"])
def test_a_bug_in_the_shared_pass_is_of_one_analysis(toy, llama, small_corpus, tmp_path, monkeypatch, method):
    from sparsescope.runner import engine

    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    kind = type("Buggy", (Sums,), {method: lambda self, *given: 1 / 0})
    toy({"accumulator": lambda p, c: kind(c.subject.sites("blocks.0.mlp.hook_post")), "result": result})
    outcomes = run_many(
        [Request("toy"), Request(GOOD)], {"subject": llama, "text": small_corpus}, store=tmp_path
    )
    assert "has a bug: ZeroDivisionError" in str(outcomes[0].error) and outcomes[1].result is not None


def test_a_state_that_cannot_be_restored_is_of_one_analysis(toy, llama, small_corpus, tmp_path, monkeypatch):
    from sparsescope.runner import engine

    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    seen = []

    class Stops(Sums):
        def update(self, batch):
            seen.append(batch.index)
            if len(seen) == 4:
                raise KeyboardInterrupt
            super().update(batch)

        def restore(self, arrays, meta):
            raise ZeroDivisionError

    toy({"accumulator": lambda p, c: Stops(c.subject.sites("blocks.0.mlp.hook_post")), "result": result})
    asked = ([Request("toy"), Request(GOOD)], {"subject": llama, "text": small_corpus})
    with pytest.raises(KeyboardInterrupt):
        run_many(*asked, store=tmp_path, batch_tokens=64)
    outcomes = run_many(*asked, store=tmp_path, batch_tokens=64)
    assert "ZeroDivisionError" in str(outcomes[0].error) and len(seen) == 4
    expected = ss.run(GOOD, llama, small_corpus, batch_tokens=64)
    assert outcomes[1].result.scalars == expected.scalars


@pytest.mark.parametrize("returned", [None, {"total": 1}, Result("other")])
def test_a_compute_that_returns_no_result_of_its_own(toy, llama, small_corpus, returned):
    toy({"compute": lambda params, context: returned})
    with pytest.raises(SpecError, match=r"returned no result of its own[\s\S]*Result\('toy'\)"):
        ss.run("toy", llama, small_corpus)


def test_a_complete_one_runs(toy, llama, small_corpus):
    toy(
        {"accumulator": accumulator, "result": result},
        statements={"statements": lambda found: [Statement("It is so.")]},
    )
    assert check_analysis(registry.analyses().get("toy"), llama, small_corpus).scalars["total"].value


# -- views ----------------------------------------------------------------------------------------


def figure():
    made = go.Figure(go.Bar(x=[0], y=[1]))
    made.update_layout(title="Totals", xaxis_title="layer", yaxis_title="total", meta={"alt": "One bar."})
    return made


def drawn(params, context):
    import pandas as pd

    from sparsescope.core.columns import Column

    found = compute(params, context)
    found.add_table("totals", pd.DataFrame({"layer": [0]}), (Column("layer", "layer", "Layer."),))
    return found


@pytest.mark.parametrize(
    ("views", "what"),
    [({}, "has no function totals"), ({"totals": lambda: figure()}, "takes other arguments")],
)
def test_a_view_without_its_function(toy, llama, small_corpus, passes, caplog, views, what):
    record = toy({"compute": drawn}, views=views)
    with pytest.raises(AssertionError, match=what):
        check_analysis(record, llama, small_corpus)
    found = ss.run("toy", llama, small_corpus)
    with pytest.raises(SpecError) as caught:
        found.view("totals")
    assert what in str(caught.value) and "def totals(result)" in str(caught.value)
    from sparsescope.reporting.build import render

    assert what in render([found])
    assert all(message.exc_info is None for message in caplog.records), "a traceback"
    assert not passes


def test_a_view_module_that_is_not_there(toy, llama, small_corpus, monkeypatch):
    record = toy({"compute": drawn}, views={"totals": lambda result: figure()})
    monkeypatch.delitem(sys.modules, "toy_of_tests_views")
    with pytest.raises(AssertionError, match="names as view_module cannot be imported"):
        check_analysis(record, llama, small_corpus)


@pytest.mark.parametrize("field", ["compute", "view_module"])
def test_an_analysis_that_names_no_module_is_not_registered(field):
    names = {"compute": "nowhere", "view_module": "nowhere"} | {field: ""}
    views = (View("totals", "Totals", "All.", table="totals"),)
    with pytest.raises(SpecError, match=f"an analysis has no {field}"):
        Registry().add(Analysis("toy", "1", "Toy", "A toy.", Params, views=views, **names))


def test_a_figure_says_what_it_lacks():
    check_figure(figure())
    for change, parts in (
        ({"meta": None}, ('layout.meta["alt"]', "sparsescope.viz.figure.describe")),
        ({"meta": "alt"}, ('layout.meta["alt"]',)),
        ({"title": None}, ("layout.title.text", "sparsescope.viz.figure.describe")),
        ({"xaxis": {"title": None}}, ("layout.xaxis.title.text",)),
    ):
        made = figure()
        made.update_layout(change)
        with pytest.raises(AssertionError) as caught:
            check_figure(made, "totals")
        assert all(part in str(caught.value) for part in ("totals has no", *parts)), caught.value
    made = figure()
    made.add_trace(go.Scattergl(x=[0], y=[1]))
    with pytest.raises(AssertionError, match="scattergl; take those without gl"):
        check_figure(made)
    with pytest.raises(AssertionError, match="NoneType, not a plotly Figure"):
        check_figure(None)


# -- statements -----------------------------------------------------------------------------------

SILENT = {
    "no module": (None, "names as statements cannot be imported"),
    "no function": ({}, "has no function statements"),
    "other arguments": ({"statements": lambda: []}, "takes other arguments"),
    "texts": ({"statements": lambda result: ["It is so."]}, "returned something else"),
    "one": ({"statements": lambda result: Statement("It is so.")}, "returned something else"),
    "nothing": ({"statements": lambda result: None}, "returned something else"),
}


@pytest.mark.parametrize("case", [name for name in SILENT if name != "one"])
def test_statements_that_are_not_there_are_a_notice(toy, llama, small_corpus, caplog, capsys, case):
    functions, what = SILENT[case]
    if functions is None:
        record = toy({"compute": compute}, statements={})
        del sys.modules["toy_of_tests_statements"]
    else:
        record = toy({"compute": compute}, statements=functions)
    found = ss.run("toy", llama, small_corpus)
    with pytest.raises(AssertionError, match=what):
        check_statements(found)
    with pytest.raises(AssertionError, match=what):
        check_analysis(record, llama, small_corpus)
    caplog.clear()
    assert [statement.text for statement in statements_of(found)] == ["Total: 1 activation."]
    statements_of(found)
    assert all(message.exc_info is None for message in caplog.records), "a traceback"
    assert len(caplog.records) <= 1, "it is said again and again"
    from sparsescope.reporting.build import render

    page = render([found])
    assert "the statements of toy failed, so its numbers are shown instead" in page


# -- other code -----------------------------------------------------------------------------------


def test_a_variant_a_role_a_subject_and_a_recipe_name_their_functions_too(monkeypatch, llama):
    from sparsescope.core.roles import Role
    from sparsescope.models.entries import LoadRequest, SubjectEntry
    from sparsescope.training.kinds import ArtifactRecipe, RecipeKind

    monkeypatch.setitem(sys.modules, "toy_of_tests_empty", types.ModuleType("toy_of_tests_empty"))
    entry = SubjectEntry("toy", "A toy.", "MIT", "here", "float32", "toy_of_tests_empty:load")
    variant = VariantKind("toy", "A toy.", Params, "toy_of_tests_empty:make")
    calls = {
        "variant toy": lambda: VariantRequest(variant, Params()).of(llama),
        "input toy": lambda: Role("toy", "toy", "A toy.", opener="toy_of_tests_empty").functions(),
        "subject toy": lambda: entry.load(LoadRequest("toy")),
        "recipe kind toy": lambda: ArtifactRecipe(
            "x", RecipeKind("toy", "A toy.", Params, "toy_of_tests_empty"), Params()
        ).train(None, None, Path()),
    }  # fmt: skip
    for name, call in calls.items():
        with pytest.raises(SpecError, match=f"{name} has no function") as caught:
            call()
        assert "module toy_of_tests_empty" in str(caught.value) and "CONTRIBUTING.md" in str(caught.value)
    known = Role("toy", "toy", "A toy.", opener="x", known="toy_of_tests_empty:known")
    with pytest.raises(SpecError, match="input toy has no function known"):
        known.known_by("x")


def test_an_accumulator_is_checked_before_its_laws(llama, small_corpus):
    with ss.capture(llama, small_corpus, "blocks.0.mlp.hook_post") as source:
        batches = list(source)
    with pytest.raises(AssertionError, match=r"not complete[\s\S]*_load\(arrays\)"):
        check_accumulator(lambda: without("_load")(llama.sites("blocks.0.mlp.hook_post")), batches)

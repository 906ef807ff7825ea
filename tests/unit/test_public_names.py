"""The public surface: every name works, also twice and in any order of imports."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import sparsescope as ss
from sparsescope.errors import SpecError


def test_no_public_name_is_hidden_by_a_sub_package():
    packages = {module.name for module in pkgutil.iter_modules(ss.__path__)}
    assert not packages & (set(ss.__all__) - {"__version__"})


def test_the_notebook_lines_work_twice(glass, tmp_path):
    for module in ("sparsescope.reporting.build", "sparsescope.runner.run", "sparsescope.core.artifact"):
        importlib.import_module(module)
    corpus = ss.corpus("python-docs", tokens=600, context=64)
    for _ in range(2):
        result = ss.run("activation_sparsity", glass, corpus, store=tmp_path)
        assert ss.open(tmp_path / result.run_id).run_id == result.run_id
        assert ss.report([result], tmp_path / "r.html").stat().st_size > 1_000_000
    assert 0 < result.scalars["mean_nonzero"].value <= 1
    assert result.view("per_layer").layout.title.text
    assert "activation_sparsity" in repr(ss.analyses()) and "activation_sparsity" in repr(result)


@pytest.mark.parametrize("call", ["corpus", "subject", "report"])
def test_a_name_in_place_of_an_object_says_how_to_make_one(call, glass, small_corpus, tmp_path):
    calls = {
        "corpus": (lambda: ss.run("activation_sparsity", glass, "python-docs"), r"ss\.corpus"),
        "subject": (lambda: ss.run("activation_sparsity", "glassllm", small_corpus), r"ss\.load"),
        "report": (lambda: ss.report(["activation_sparsity-0123456789ab"], tmp_path / "r.html"), r"ss\.open"),
    }
    action, hint = calls[call]
    with pytest.raises(SpecError, match=hint):
        action()


def test_a_result_displays_in_ipython_with_one_figure(llama, small_corpus, monkeypatch):
    import sys
    import types

    shown = []
    fake = types.ModuleType("IPython.display")
    fake.HTML, fake.display = lambda text: text, shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    ss.run("activation_sparsity", llama, small_corpus)._ipython_display_()
    assert "Gini coefficient" in shown[0] and "hold 90 % of a token" in shown[0] and len(shown[0]) < 100_000
    assert shown[1].layout.title.text

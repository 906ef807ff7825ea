"""The public surface: every name works, also twice and in any order of imports."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sparsescope as ss
from sparsescope import plugin
from sparsescope.errors import SpecError

ROOT = Path(__file__).resolve().parents[2]


def test_no_public_name_is_hidden_by_a_sub_package():
    packages = {module.name for module in pkgutil.iter_modules(ss.__path__)}
    assert not packages & (set(ss.__all__) - {"__version__"})


def test_the_notebook_lines_work_twice(glass, tmp_path):
    for module in ("sparsescope.reporting.build", "sparsescope.runner.run", "sparsescope.core.run_store"):
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
    import types

    shown = []
    fake = types.ModuleType("IPython.display")
    fake.HTML, fake.display = lambda text: text, shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    ss.run("activation_sparsity", llama, small_corpus)._ipython_display_()
    assert "Gini coefficient" in shown[0] and "hold 90 % of a token" in shown[0] and len(shown[0]) < 100_000
    assert shown[1].layout.title.text


def test_a_plug_in_imports_all_that_it_declares_without_torch():
    """In a fresh process: what is loaded here says nothing."""
    program = (
        "import sys, sparsescope.plugin as plugin\n"
        "heavy = {'torch', 'transformers', 'plotly', 'streamlit', 'numba', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "assert 'torch' not in sys.modules and plugin.Subject.__name__ == 'Subject' and 'torch' in "
        "sys.modules\n"
        "from sparsescope.plugin import *\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_names_for_plug_ins_are_there_and_described():
    for name in plugin.__all__:
        assert getattr(plugin, name).__doc__, name
    assert plugin.__all__ == sorted(plugin.__all__) and set(plugin.__all__) <= set(dir(plugin))
    with pytest.raises(AttributeError, match=r"'sparsescope\.plugin' has no attribute 'Analyses'"):
        plugin.Analyses  # noqa: B018  # reading it is the test


def test_the_guide_for_plug_ins_names_every_group_of_entry_points():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(re.findall(r"^``(sparsescope\.[a-z]+)``", plugin.__doc__, re.MULTILINE)) == set(wanted)


def test_a_series_opens_by_its_public_name():
    series = ss.open_series("lazy-relu")
    assert series.shipped and series.steps[0] == 0 and len(series) == len(series.steps)

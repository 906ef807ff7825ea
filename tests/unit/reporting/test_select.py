"""A view that shows one value of a column: which values there are, how they are asked for, what a
report shows of them.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from sparsescope.core import registry
from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Registry, View
from sparsescope.core.result import Result
from sparsescope.core.spec import Params
from sparsescope.errors import SpecError
from sparsescope.reporting.sections import CHOICES_SHOWN, section
from sparsescope.viz import figure as fig
from sparsescope.viz.panel import Panel, tag

TABLES = {"rows": (Column("layer", "layer", "Layer."), Column("mean", "value", "Mean."))}


def record(**changes):
    one = View("one", "One layer", "How to read it.", table="rows", select="layer")
    all_ = View("all", "All layers", "", table="rows")
    given = {"views": (one, all_), "tables": TABLES, "view_module": "views_that_select", **changes}
    return Analysis("selects", "1", "Selects", "A test.", Params, "no.compute", **given)


@pytest.fixture
def selects(monkeypatch):
    """The analysis, installed, with views that say what they were asked for."""
    module = ModuleType("views_that_select")

    def one(result, value):
        if value == 9:
            return Panel(f"Layer {value!r}", "", "Text.", (tag("div", f"<{value}>"),))
        return fig.describe(fig.panels(), title=f"layer {value!r}", subtitle="", alt=f"layer {value!r}")

    module.one = one
    module.all = lambda result: fig.describe(fig.panels(), title="all", subtitle="", alt="all")
    monkeypatch.setitem(sys.modules, "views_that_select", module)
    found, made = Registry(), record()
    found.add(made)
    monkeypatch.setattr(registry, "analyses", lambda: found)
    return made


@pytest.fixture
def result():
    made = Result("selects")
    rows = pd.DataFrame({"layer": np.array([5, 9, 5, 7, 2], np.int32), "mean": np.arange(5.0)})
    made.add_table("rows", rows, TABLES["rows"])
    return made


def title(figure):
    return figure.layout.title.text


def test_the_values_stand_in_the_order_of_the_table(selects, result):
    assert selects.views[0].choices(result) == [5, 9, 7, 2] and selects.views[1].choices(result) == []
    assert title(result.view("one")) == title(result.view("one", select=5)) == "<b>layer 5</b>"
    assert title(result.view("one", select=np.int64(2))) == "<b>layer 2</b>", (
        "a plain number, as in the table"
    )
    assert result.view("one", select=9).title == "Layer 9" and title(result.view("all")) == "<b>all</b>"


@pytest.mark.parametrize("value", [4, "5", True, 5.5, [5], np.array([5, 9])])
def test_a_value_that_is_not_there_is_refused(selects, result, value):
    with pytest.raises(SpecError, match="nothing for this value of layer") as caught:
        result.view("one", select=value)
    assert "5, 9, 7, 2" in caught.value.message() and "View.choices" in caught.value.next_step


def test_a_view_that_selects_nothing_takes_no_value(selects, result):
    with pytest.raises(SpecError, match="takes no value"):
        result.view("all", select=5)


def test_a_table_without_rows_has_nothing_to_choose(selects):
    empty = Result("selects")
    empty.add_table("rows", pd.DataFrame({"layer": [], "mean": []}), TABLES["rows"])
    assert selects.views[0].chosen(empty) is None and empty.view("one").layout.title.text
    assert [bool(block.problem) for block in section(empty, "s").figures] == [False, False]
    with pytest.raises(SpecError, match="nothing for this value"):
        empty.view("one", select=5)


def test_a_column_that_the_table_does_not_have_is_refused():
    views = (View("one", "One", "", table="rows", select="layr"),)
    with pytest.raises(SpecError, match="layr") as caught:
        Registry().add(record(views=views))
    assert "did you mean 'layer'" in caught.value.message()
    lacks = Result("selects")
    lacks.add_table("rows", pd.DataFrame({"mean": [1.0]}), TABLES["rows"][1:])
    with pytest.raises(SpecError, match="column of rows"):
        record().views[0].choices(lacks)


def test_a_report_shows_the_first_values(selects, result):
    figures = section(result, "s").figures
    assert [block.title for block in figures] == [
        "One layer: layer 5", "One layer: layer 9", "One layer: layer 7", "All layers",
    ]  # fmt: skip
    assert len(figures) == CHOICES_SHOWN + 1 and len({block.key for block in figures}) == len(figures)
    assert (
        figures[0].caption
        == "How to read it. Shown for the first 3 of 4 values of layer; the explorer shows each."
    )
    assert figures[1].caption == "How to read it."
    assert figures[0].table is not None and figures[1].table is figures[2].table is None
    assert figures[1].panel is not None and "&lt;9&gt;" in figures[1].panel and not figures[1].json
    assert figures[0].panel is None and "layer 5" in figures[0].json

"""Results: typed columns, honest number formats, drawing in a notebook."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from sparsescope.core.columns import Column
from sparsescope.core.result import Result, format_number
from sparsescope.errors import SpecError


def test_an_unknown_column_kind_is_refused_with_near_matches():
    with pytest.raises(SpecError, match="fraction"):
        Column("x", "fractoin", "something")


def test_a_table_needs_a_meaning_for_every_column():
    result = Result("a")
    with pytest.raises(SpecError, match="column descriptions differ"):
        result.add_table("t", pd.DataFrame({"x": [1]}), ())


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.999999, "fraction", "> 99.99 %"), (1.0, "fraction", "100.00 %"), (1e-9, "fraction", "< 0.01 %"),
        (0.0, "fraction", "0.00 %"), (0.31204, "fraction", "31.20 %"), (12345.0, "count", "12,345"),
        (math.nan, "fraction", "not defined"), (0.61821, "", "0.6182"), (2.0, "seconds", "2.00 s"),
    ],
)  # fmt: skip
def test_almost_always_is_never_rounded_to_always(value, unit, text):
    assert format_number(value, unit) == text


def test_notebook_repr_escapes_hostile_names_and_draws(llama, small_corpus):
    import sparsescope as ss

    result = ss.run("activation_sparsity", llama, small_corpus)
    result.provenance["subject"]["id"] = "<script>alert(1)</script>"
    page = result._repr_html_()
    assert "<script>alert(1)" not in page.split("plotly")[0]
    assert "Gini coefficient" in page and "<details>" in page and "mean_gini" not in page.split("plotly")[0]
    assert "Plotly.newPlot" in page

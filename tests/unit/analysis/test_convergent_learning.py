"""Convergent learning end to end: a series meets itself, seeds meet each other, bad input is said."""

from __future__ import annotations

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.analysis.convergent_learning.read import inputs_of, units_of
from sparsescope.core.registry import analyses
from sparsescope.errors import SparsescopeError
from sparsescope.metrics.unit_matching import CLASSES, correlations, match_units
from sparsescope.testing import check_figure, check_statements

NAME = "convergent_learning"
SMALL = {
    "earlier": 1,
    "targets": 40,
    "shifts": 4,
    "path_shifts": 1,
    "resamples": 100,
    "components": 6,
    "blocks": 4,
}


@pytest.fixture(scope="module")
def found():
    series = [ss.open_series(name) for name in ("grokking-short", "grokking-short-seed2")]
    return ss.run(NAME, series, **SMALL)


def test_pairs_are_those_of_the_units(found):
    params = analyses().get(NAME).params(**SMALL)
    series = [ss.open_series(name) for name in ("grokking-short", "grokking-short-seed2")]
    inputs = inputs_of(series[0], None, params)
    assert len(inputs) == 59**2 and inputs.modulus == 59
    units = [units_of(one.subject(one.steps[-1]), inputs, params)["0"] for one in series]
    assert units[0].shape == (59**2, 256)
    c = correlations(*units)
    row = found.tables["pairs"].iloc[0]
    assert row["best"] == pytest.approx(np.abs(c).max(0).mean(), rel=1e-6)
    assert row["partner"] == pytest.approx(np.nanmean(match_units(c).partner_values), rel=1e-6)
    assert row["kind"] == "seeds" and row["rows"] == 59**2


def test_shares_are_of_all_units_and_have_their_null(found):
    table = found.tables["classes"]
    for _, rows in table.groupby("pair"):
        assert rows["class"].tolist() == list(CLASSES)
        assert rows["share"].sum() == pytest.approx(1) and rows["null_share"].sum() == pytest.approx(1)
        assert ((rows["low"] <= rows["share"]) & (rows["share"] <= rows["high"])).all()
    assert found.scalars["one_to_one_seeds"].value == pytest.approx(
        table[(table["kind"] == "seeds") & (table["class"] == "one-to-one")]["share"].mean()
    )


def test_blocks_of_a_grokked_model_are_its_frequencies(found):
    """The ground truth: of the last checkpoint, not of the first."""
    row = found.tables["blocks"].set_index("kind").loc["checkpoints"]
    assert row["truth_first"] > 0.4 > 0.2 > row["truth_second"]


def test_a_checkpoint_meets_itself():
    one = ss.open_series("grokking-short")
    made = ss.run(NAME, [one, one], **{**SMALL, "earlier": 0})
    row = made.tables["pairs"].iloc[0]
    assert (
        row["best"] == pytest.approx(1)
        and row["cka"] == pytest.approx(1)
        and row["svcca"] == pytest.approx(1)
    )
    shares = made.tables["classes"].set_index("class")["share"]
    assert shares["one-to-one"] > 0.9
    dictionaries = made.tables["dictionaries"]
    assert dictionaries["correlation"].tolist() == pytest.approx([1.0])


def test_text_series_are_compared_layer_by_layer():
    made = ss.run(NAME, ss.open_series("lazy-relu"), **{**SMALL, "rows": 600, "targets": 20, "components": 0})
    pairs = made.tables["pairs"]
    assert pairs["layer"].tolist() == [0, 1, 2, 3] and (pairs["kind"] == "checkpoints").all()
    assert "dictionaries" not in made.tables and made.tables["blocks"]["truth_first"].isna().all()


def test_mixtures_are_compared_in_the_residual_stream():
    made = ss.run(NAME, ss.open_series("grokking-moe"), **{**SMALL, "components": 0, "targets": 20})
    assert any("nothing singles out" in note.message for note in made.notes)
    assert (made.tables["pairs"]["units_first"] == 64).all() or made.tables["pairs"]["units_first"].min() > 1


def test_views_and_sentences(found):
    check_statements(found)
    record = analyses().get(NAME)
    for view in record.views:
        check_figure(record.draw(view.name, found))


@pytest.mark.parametrize(
    ("names", "params", "said"),
    [
        (["grokking-short", "lazy-relu"], {}, "other inputs"),
        (["grokking-short"], {"earlier": 0}, "nothing to compare"),
        (["grokking-moe"], {"sites": "blocks.*.mlp.experts.*.hook_post"}, "expert"),
    ],
)
def test_what_cannot_be_compared_says_why(names, params, said):
    series = [ss.open_series(name) for name in names]
    with pytest.raises(SparsescopeError, match=said):
        ss.run(NAME, series, **{**SMALL, **params})

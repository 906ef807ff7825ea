"""What analyses say: numbers as formatted, hedged as far as intervals reach, and never an error
on what is missing.
"""

from __future__ import annotations

import importlib
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import sparsescope as ss
from sparsescope.core.numbers import Interval, Scalar, format_number
from sparsescope.core.registry import analyses, benchmarks, find_record
from sparsescope.core.result import Result
from sparsescope.core.statements import MOST, headline_of, statements_of, title_of, words
from sparsescope.testing import check_statements

FROZEN = Path(__file__).resolve().parents[2] / "fixtures" / "frozen" / "stored"
RECORDS = [record for registry in (analyses(), benchmarks()) for record in registry]
BUILT_IN = {record.name for record in RECORDS if record.compute.startswith("sparsescope.")}
FOLDERS = sorted(path.name for path in FROZEN.glob("*-*") if path.name.rsplit("-", 1)[0] in BUILT_IN)


def opened(start):
    """A frozen run by the start of its name, to be changed by the test."""
    return ss.open(next(path for path in sorted(FROZEN.glob("*-*")) if path.name.startswith(start)))


def module_of(result):
    return importlib.import_module(find_record(result.analysis).statements)


def texts(result):
    return [statement.text for statement in module_of(result).statements(result)]


def changed(result, **values):
    """Scalars with another value, or with ``(value, low, high)``."""
    for name, value in values.items():
        number, *ends = value if isinstance(value, tuple) else (value,)
        interval = Interval(*ends, 0.95, "bootstrap", 20) if ends else None
        result.scalars[name] = replace(result.scalars[name], value=number, interval=interval)
    return result


@pytest.mark.parametrize("name", FOLDERS)
def test_old_runs_have_sentences_with_their_numbers_and_titles(name):
    result = opened(name)
    check_statements(result)
    for statement in statements_of(result):
        known = [result.scalars[n] for n in statement.scalars if n in result.scalars]
        shown = [format_number(s.value, s.unit) in statement.text for s in known]
        assert any(shown) or not shown or any(math.isnan(s.value) for s in known), statement
        for scalar in known:
            ends = scalar.interval
            if ends is not None and f"{format_number(scalar.value, scalar.unit)} [" in statement.text:
                assert format_number(ends.low, scalar.unit).split(" ")[0] in statement.text
    titles = {scalar.name: title_of(result.analysis, scalar) for scalar in result.scalars.values()}
    assert not [title for title in titles.values() if "_" in title or len(title) > 42]
    assert not [n for n, title in titles.items() if title == words(n) and "_" in n and n != "key_frequencies"]
    assert len(set(titles.values())) == len(titles), "two numbers have one title"
    assert 2 <= len(headline_of(result)) <= 8


@pytest.mark.parametrize("name", FOLDERS)
def test_nothing_that_is_missing_or_undefined_is_an_error_or_said(name):
    result = opened(name)
    for scalar in list(result.scalars.values()):
        poorer = replace(result, scalars={n: s for n, s in result.scalars.items() if n != scalar.name})
        undefined = replace(
            result, scalars=result.scalars | {scalar.name: replace(scalar, value=math.nan, interval=None)}
        )
        single = replace(result, scalars=result.scalars | {scalar.name: replace(scalar, interval=None)})
        for case in (poorer, undefined, single):
            assert not [text for text in texts(case) if re.search(r"\bnan\b|not defined|\binf\b", text)]
    for tables in (
        {},
        {n: f.head(0) for n, f in result.tables.items()},
        {n: pd.DataFrame() for n in result.tables},
    ):
        assert len(texts(replace(result, tables=tables))) <= MOST
    assert texts(replace(result, scalars={}, tables={}, provenance={})) == []


def test_a_model_without_zeros_is_not_headed_by_a_count_of_them():
    gated, relu = opened("activation_sparsity-84238722e8c1"), opened("activation_sparsity-aeceb6bec091")
    assert headline_of(gated)[0].name == "mean_density_energy_90"
    assert "mean_nonzero" not in {scalar.name for scalar in headline_of(gated)}
    assert [scalar.name for scalar in headline_of(relu)][:2] == ["mean_nonzero", "mean_zero_sparsity"]
    assert "(no interval)" in texts(gated)[0] and "n = 7 documents" in texts(relu)[0]
    assert "from 9.23 % in layer 2 to 28.31 % in layer 0" in texts(relu)[1]
    assert "(energy)" in title_of("activation_reuse", headline_of(opened("activation_reuse"))[0])


@pytest.mark.parametrize(
    ("ratio", "reading"),
    [
        ((0.8, 0.7, 0.9), "neighbors reuse units"),
        ((0.95, 0.8, 1.1), "reuse beyond chance is not shown"),
        ((1.3, 1.2, 1.4), "no more units than chance"),
        ((0.8,), "if the one number holds"),
    ],
)
def test_reuse_is_claimed_as_far_as_the_interval_reaches(ratio, reading):
    assert reading in texts(changed(opened("activation_reuse"), union_ratio_8_in_use=ratio))[0]


def test_the_order_of_words_matters_only_beyond_its_null():
    result = opened("activation_reuse")
    assert texts(result)[1].endswith("The order of the words matters.")
    assert texts(changed(result, neighbor_overlap_in_use=(0.17, 0.1, 0.2)))[1].endswith("is not shown.")


@pytest.mark.parametrize(
    ("rank", "ratio", "reading"),
    [
        ((20.0, 18.0, 22.0), 0.2, "few directions"),
        ((20.0, 18.0, 22.0), 0.95, "hardly fewer"),
        ((20.0, -5.0, 45.0), 0.2, "too short to tell"),
        ((20.0,), 0.2, "no interval"),
    ],
)
def test_rank_is_read_as_far_as_the_interval_reaches(rank, ratio, reading):
    assert (
        reading
        in texts(changed(opened("activation_rank"), mean_participation=rank, mean_participation_ratio=ratio))[
            0
        ]
    )


@pytest.mark.parametrize(
    ("top", "random", "reading"),
    [
        ((0.1, 0.0, 0.2), (3.0, 2.0, 4.0), "size tells which units matter"),
        ((0.1, 0.0, 2.5), (3.0, 2.0, 4.0), "is not shown"),
        ((0.1,), (3.0,), "no finding"),
    ],
)
def test_the_ranking_by_size_needs_intervals_that_are_apart(top, random, reading):
    result = changed(opened("activation_interventions"), loss_rise_top_k=top, loss_rise_random_k=random)
    assert texts(result)[0].endswith(f"{reading}.") and "largest 50 %" in texts(result)[0]


@pytest.mark.parametrize(
    ("excess", "reading"),
    [
        ((0.1, 0.05, 0.2), "less robust"),
        ((-0.1, -0.2, -0.05), "more robust"),
        ((0.1, -0.1, 0.2), "not shown"),
        ((0.1,), "no finding"),
    ],
)
def test_robustness_is_claimed_as_far_as_the_interval_reaches(excess, reading):
    assert reading in texts(changed(opened("activation_interventions"), robustness_excess=excess))[2]


def test_effective_density_of_a_text_that_the_model_fits_badly():
    result = opened("effective_density")
    accuracy, perplexity, layers = texts(result)
    assert "of the accuracy" in accuracy and "Do not rely on it" in perplexity and "layer 0" in layers
    fits = replace(
        result, tables=result.tables | {"curve": result.tables["curve"].assign(perplexity_rise_high=1.0)}
    )
    perplexity, accuracy, _ = texts(fits)
    assert perplexity.startswith("Perplexity rises by 1 %") and "Do not rely" not in perplexity
    assert "top-p" not in perplexity, "a bound is not told as a number"
    bound = fits.tables["effective"].assign(censored="density is an upper bound")
    said = texts(replace(fits, tables=fits.tables | {"effective": bound}))
    assert "only a bound" in said[0] and "only a bound" in said[1]


def test_dropped_keys_say_on_which_side_they_were_not_found():
    result = opened("attention_sparsity-f7129f844ac6")
    dropping = texts(result)[1]
    assert "less than 56.34 % (the least tried) lightest first" in dropping
    assert "more than 47.60 % (the most tried) most distant first" in dropping
    assert (
        "30.00 % [20.00, 40.00] lightest first"
        in texts(changed(result, critical_sparsity_top_p=(0.3, 0.2, 0.4)))[1]
    )


def test_grokking_says_what_did_not_happen_and_how_many_runs_there_are():
    one, two = opened("grokking-1e0eeafebed7"), opened("grokking-07b2eb09d58f")
    assert "at step 2,375, 19 times as late. This is one run" in texts(one)[0]
    assert "[2,375, 8,750] (50 % interval, n = 2 series)" in texts(two)[0]
    late = texts(changed(one, generalized_step=math.nan, onset_ratio=math.nan))[0]
    assert "does not generalize to test pairs within the steps" in late
    assert "never fits its training pairs" in texts(changed(one, memorized_step=math.nan))[0]
    leads = [name for name in one.scalars if name.startswith("lead_")]
    assert "No measure moved before" in texts(changed(one, **dict.fromkeys(leads, -5.0)))[2]


@pytest.mark.parametrize(
    ("change", "control", "readings"),
    [
        ((-0.3, -0.4, -0.2), 0.5, ("falls from", "make the difference")),
        ((0.3, 0.2, 0.4), 0.1261, ("rises from", "no difference is shown")),
        ((0.01, -0.1, 0.1), 0.5, ("shows no change, from", "make the difference")),
    ],
)
def test_a_change_over_training_has_a_direction_where_its_interval_has_one(change, control, readings):
    result = changed(
        opened("sparsity_over_training-ffad0b64ecc4"), nonzero_change=change, nonzero_control_last=control
    )
    assert all(reading in texts(result)[0] for reading in readings) and "one training run" in texts(result)[0]


def test_over_training_a_gated_model_is_told_by_energy():
    assert "hold 90 % of a token's energy" in texts(opened("sparsity_over_training-a90440bc5ad0"))[0]
    result = changed(opened("sparsity_over_training-a6e46c26822c"), trigram_margin=-0.2)
    assert "0.2 nats above a trigram model" in texts(result)[1]


def test_an_analysis_without_statements_gives_its_headline_numbers():
    result = Result(
        "no_such_analysis", scalars={"so_much": Scalar("so_much", 0.5, "fraction", "none", "d", None)}
    )
    result.scalars["named"] = Scalar(
        "named", 2.0, "count", "none", "d", Interval(1, 3, 0.9, "m", 4), "Number of things"
    )
    assert [statement.text for statement in statements_of(result)] == [
        "So much: 50.00 %.",
        "Number of things: 2 [1, 3], n = 4.",
    ]
    assert [scalar.name for scalar in headline_of(result)] == ["so_much", "named"]


def test_statements_that_fail_are_replaced_by_numbers(monkeypatch, caplog):
    result = opened("activation_rank")
    monkeypatch.setattr(module_of(result), "statements", lambda result: 1 / 0)
    assert [statement.view for statement in statements_of(result)] == ["ranks"] * 3
    assert statements_of(result)[0].text.startswith("Entropy rank (directions): ")
    assert [scalar.name for scalar in headline_of(result)] == list(find_record("activation_rank").headline)
    assert "failed" in caplog.text


def test_a_title_that_was_stored_is_kept():
    scalar = Scalar("density_cett_ppl_0.5", 0.1, "fraction", "none", "d")
    assert title_of("effective_density", scalar) == "Units at perplexity +0.5 % (CETT)"
    assert title_of("effective_density", replace(scalar, title="Mine")) == "Mine"
    assert title_of("effective_density", replace(scalar, name="of_another_release")) == "Of another release"


def test_a_view_whose_table_is_not_there_is_no_link():
    result = opened("activation_rank")
    assert {statement.view for statement in statements_of(replace(result, tables={}))} == {""}


def test_statements_import_neither_torch_nor_plotly():
    names = [record.statements for record in RECORDS if record.name in BUILT_IN]
    assert all(names), "an analysis says nothing"
    code = (
        "import sys, importlib\n"
        f"for n in {names!r}: importlib.import_module(n)\n"
        "print({'torch', 'plotly'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

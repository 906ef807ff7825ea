"""CETT against its closed forms, the search against a model whose loss is known, the analysis end to end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.edited_passes import EditedPass
from sparsescope.analysis.effective_density import ANALYSIS
from sparsescope.analysis.effective_density import compute as module
from sparsescope.analysis.effective_density.cett import cett, cett_curve, column_norms
from sparsescope.errors import SpecError, SubjectError
from sparsescope.testing import check_analysis

SMALL = {"tokens": 256, "calibration_tokens": 64, "resamples": 100}


def normal(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_cett_by_hand():
    weight = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])  # column norms 1, 2, 1
    # Contributions 3, 1, 1; the second token is silent
    hidden = torch.tensor([[3.0, 0.5, -1.0], [0.0, 0.0, 0.0]])
    norms = column_norms(weight)
    assert norms.tolist() == [1, 2, 1]
    # y = (2, 1). Threshold 2 leaves out units 1 and 2: (-1, 1), so sqrt(2)/sqrt(5), halved
    # by the silent token.
    assert cett(hidden, weight, norms, 2.0) == pytest.approx(math.sqrt(2 / 5) / 2)
    assert cett(hidden, weight, norms, 0.0) == 0
    assert cett(hidden, weight, norms, 99.0) == pytest.approx(0.5)


def test_orthonormal_columns_give_the_energy_set():
    """With orthonormal columns CETT^2 is the energy left out: at CETT .3162 nine tenths
    of the energy stay.
    """
    weight = torch.linalg.qr(normal(512, 384))[0]
    hidden = normal(400, 384, 1)
    curve = cett_curve(hidden, weight)
    threshold = curve.threshold(math.sqrt(0.1))
    kept = hidden.abs() >= threshold
    density = float(kept.float().mean())
    # Density of the 90 % energy set of half-normal entries; the threshold is shared by tokens,
    # hence the tolerance.
    assert density == pytest.approx(0.4445, abs=0.01)
    left_out = 1 - float(((hidden * kept) ** 2).sum() / (hidden**2).sum())
    assert left_out == pytest.approx(0.1, abs=0.005)


def test_cett_is_invariant_and_its_inverse_inverts():
    weight, hidden = normal(64, 96), normal(200, 96, 1).relu()
    norms, order = column_norms(weight), torch.randperm(96, generator=torch.Generator().manual_seed(2))
    direct = cett(hidden, weight, norms, 5.0)
    assert cett(hidden[:, order], weight[:, order], norms[order], 5.0) == pytest.approx(direct, rel=1e-5)
    assert cett(3 * hidden, weight, norms, 15.0) == pytest.approx(direct, rel=1e-5)
    curve = cett_curve(hidden, weight)
    for level in (0.05, 0.2, 0.5, 0.9):
        assert cett(hidden, weight, norms, curve.threshold(level)) == pytest.approx(level, abs=0.02)
    assert curve.threshold(0) == 0 and curve.threshold(1.0) == math.inf
    assert (np.diff(curve.values) >= 0).all() and (np.diff(curve.thresholds) > 0).all()


class KnownLoss:
    """Passes of a model whose loss is a known function of the CETT level."""

    def __init__(self, rise):
        self.rise, self.passes = rise, 0

    def run(self, name, keep):
        self.passes += 1
        return point(math.log1p(self.rise(keep) / 100))


def point(nll):
    one = np.ones((1, 1))
    return EditedPass(np.full(4, nll), np.ones(4, bool), np.ones(4, np.float32), one, one.astype(np.int64))


@pytest.mark.parametrize(
    "rise",
    [
        lambda c: 100 * c,
        lambda c: 500 * c**2,
        lambda c: 3 * math.sqrt(c),
        lambda c: 1e4 * c**4,
        lambda c: math.expm1(9 * c) * 30,
    ],
)
@pytest.mark.parametrize("percent", [0.5, 1.0, 5.0])
def test_the_search_ends_at_the_wanted_rise(rise, percent):
    rule, passes = module._Rule("CETT"), KnownLoss(rise)
    level = module._bisect(rule, percent, 0.05, passes, point(0.0), lambda level: level)
    if rise(1.0) < percent:  # out of reach: the level that comes nearest
        assert rise(level) == pytest.approx(rise(1.0), abs=0.05)
    else:
        assert abs(rise(level) - percent) < 0.05
    assert passes.passes <= 12


def test_later_searches_use_the_points_of_earlier_ones():
    rule, passes = module._Rule("CETT"), KnownLoss(lambda c: 400 * c**1.5)
    for percent in (0.5, 1.0, 5.0):
        level = module._bisect(rule, percent, 0.05, passes, point(0.0), lambda level: level)
        assert abs(400 * level**1.5 - percent) < 0.05
    assert passes.passes == len(rule.points) <= 14


@pytest.mark.parametrize("name", ["random-llama", "random-gpt2", "random-opt", "random-gemma2"])
def test_contract(name, small_corpus):
    result = check_analysis_small(name, small_corpus)
    curve, table = result.tables["curve"], result.tables["effective"]
    assert curve["density"].between(0, 1).all() and table["density"].between(0, 1).all()
    for _, rows in curve.groupby("rule"):
        assert rows["density"].iloc[0] == 1 and rows["perplexity_rise"].iloc[0] == 0
        assert rows["density"].is_monotonic_decreasing
    assert (table["low"] <= table["high"]).all()
    per_layer = result.tables["per_layer"]
    assert (per_layer["sparsity"] + per_layer["density"]).to_numpy() == pytest.approx(1)
    assert result.tables["cost"].set_index("step").loc["dense pass", "passes"] == 1


def check_analysis_small(name, corpus):
    """The contract suite at the smallest parameters that are allowed, on a shorter grid."""
    from sparsescope.runner import run as runner

    original = runner.make_params

    def smaller(model, given, *, analysis):
        # What is given (a preset, an unknown name) is what the suite looks at; only the
        # defaults are made smaller.
        return original(
            model, given or {**SMALL, "shares": (0.9, 0.5), "percents": (1.0,)}, analysis=analysis
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "make_params", smaller)
        return check_analysis(ANALYSIS, ss.load(name), corpus)


def test_exact_zeros_of_a_relu_layer_cost_nothing(small_corpus):
    """Leaving out what is zero anyway changes no loss, so half of a random ReLU layer is free."""
    result = ss.run("effective_density", ss.load("random-opt"), small_corpus, **SMALL)
    assert result.scalars["density_cett_ppl_1"].value < 0.55


def test_who_has_no_loss_or_no_second_document_is_refused(llama, small_corpus):
    with pytest.raises(SubjectError, match="needs what this model does not have") as caught:
        ss.run("effective_density", ss.wrap(llama.model.model, llama.tokenizer), small_corpus)
    assert "no logits; there is attention, causal, hidden_units" in str(caught.value)
    with pytest.raises(SubjectError, match="too few documents"):
        ss.run(
            "effective_density",
            llama,
            ss.corpus(["one document only, of some words"], context=16, deduplicate=False),
        )
    with pytest.raises(SpecError, match="shares"):
        ss.run("effective_density", llama, small_corpus, shares=(0.5, 0.5))


def test_a_rise_that_no_level_gives_is_said_to_be_one():
    """A random model has nothing to lose: with every unit off its perplexity is the same."""
    text = ss.corpus("python-docs", tokens=1200, context=64)
    result = ss.run("effective_density", ss.load("random-llama"), text, percents=(2.0,), resamples=100)
    said = [note.message for note in result.notes]
    assert any("with every unit off" in text and "no CETT level gives a rise of 2 %" in text for text in said)
    assert not any("search ended" in text or "within 0 points" in text for text in said)
    rows = result.tables["effective"].set_index(["rule", "criterion"])
    assert "lower bound" in rows.loc[("CETT", "perplexity +2 %"), "censored"]

"""Steering end to end: strengths are what they say, lifts are those of the losses, sides are kept apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.losses import Reference, token_losses
from sparsescope.analysis.steering import SteeringParams
from sparsescope.analysis.steering.calibrate import Calibration
from sparsescope.analysis.steering.compute import _adding, _divide
from sparsescope.analysis.steering.directions import Direction
from sparsescope.analysis.steering.report import add_tables
from sparsescope.core.registry import analyses
from sparsescope.core.result import Result
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.errors import SpecError
from sparsescope.testing import check_figure, check_statements

LEFT = {("weak", 0.2, "c1")}
NAME, SITE = "steering", "blocks.2.mlp.hook_post"
SMALL = {
    "targets": (0.05, 0.2),
    "own_documents": 2,
    "other_documents": 3,
    "neutral_documents": 2,
    "document_tokens": 32,
    "resamples": 200,
}


def text():
    return ss.corpus("python-docs+python-source+licenses", tokens=6000, context=64)


@pytest.fixture(scope="module")
def found(glass):
    return ss.run(NAME, glass, text(), dictionary=TopKSAE(341, 64, k=6, site=SITE, seed=0), **SMALL)


def test_every_method_has_as_many_tries_and_reaches_the_divergence(found):
    tries = found.tables["tries"]
    counts = tries.groupby(["concept", "method"]).size()
    assert set(counts) == {4} and tries["concept"].nunique() == 3
    reached = tries[tries["status"] == "reached"]
    assert len(reached) >= 0.8 * len(tries)
    assert (abs(reached["achieved"] - reached["target"]) <= 0.05 * reached["target"] + 1e-12).all()
    assert (tries["lift"] - (tries["own"] - tries["others"])).abs().max() < 1e-12


def test_contrasts_and_lifts_are_those_of_the_tries(found):
    tries, methods = found.tables["tries"], found.tables["methods"]
    for row in methods.itertuples():
        of_it = tries[tries["method"] == row.method]
        if row.target.startswith("chosen"):
            best = of_it.loc[of_it.groupby("concept")["train_lift"].idxmax()]
            assert row.lift == pytest.approx(best["lift"].mean())
            continue
        at = of_it[of_it["target"] == float(row.target)]
        assert row.lift == pytest.approx(at[at["sign"] > 0]["lift"].mean())
        assert row.contrast == pytest.approx((at["sign"] * at["lift"]).sum() / 2 / 3)
    pairs = found.tables["comparisons"]
    row = pairs[(pairs["measure"] == "contrast") & pairs["target"].str.startswith("chosen")].iloc[0]
    by = methods[methods["target"].str.startswith("chosen")].set_index("method")["contrast"]
    assert row["difference"] == pytest.approx(by[row["first"]] - by[row["second"]])


def test_a_try_is_what_a_run_of_its_own_gives(found, glass):
    """Strength, divergence and fall of the loss again, with losses taken the plain way."""
    corpus = text().tokenize(glass.tokenizer, glass.max_positions)
    site = glass.sites(SITE)[0]
    vector = torch.randn(341, generator=torch.Generator().manual_seed(0))
    reference = Reference()
    base = token_losses(glass, corpus, record=reference)
    made = token_losses(glass, corpus, sites=[site], replace=_adding(vector), reference=reference)

    def hook(module, args):
        later = torch.ones(args[0].shape[:2], dtype=torch.bool)
        later[:, 0] = False
        return (args[0] + later[..., None] * vector, *args[1:])

    handle = glass.model.model.layers[2].mlp.down_proj.register_forward_pre_hook(hook)
    try:
        again = token_losses(glass, corpus)
    finally:
        handle.remove()
    np.testing.assert_allclose(made.nll, again.nll, rtol=1e-5, atol=1e-5)
    assert made.kl.mean() > 0 and not np.allclose(made.nll, base.nll)


def test_documents_are_chosen_on_or_judged_on(glass):
    params = analyses().get(NAME).params(**SMALL)
    corpus = text().tokenize(glass.tokenizer, glass.max_positions)
    parts = _divide(params, corpus)
    for number, name in enumerate(parts.names):
        members = parts.concept == number
        assert {corpus.documents[place].domain for place in np.flatnonzero(members)} == {name}
        assert parts.train[members].sum() == members.sum() // 2


@pytest.mark.parametrize(("power", "start"), [(2.0, 1.0), (0.5, 1e-4), (4.0, 300.0), (1.0, 0.2)])
def test_strengths_are_found_from_anywhere(power, start):
    asked = []

    def divergence(strength):
        asked.append(strength)
        return 3.0 * strength**power

    calibration = Calibration(divergence, start)
    for target in (0.025, 0.1, 0.5):
        made = calibration.at(target)
        assert made.status == "reached" and abs(made.achieved - target) <= 0.05 * target
    assert len(asked) == len(set(asked)) <= 40


def test_a_divergence_that_cannot_be_reached_is_said():
    made = Calibration(lambda strength: min(0.2, strength), 1.0).at(0.35)
    assert made.status == "not reached" and made.achieved == pytest.approx(0.2)
    jump = Calibration(lambda strength: 0.0 if strength < 1 else float("inf"), 0.3).at(0.1)
    assert jump.status == "not reached"


def test_what_was_not_reached_is_left_out_and_counted():
    """Strengths of one direction never reach the larger divergence: it has no mean over both."""
    vector = np.eye(4)[0]
    chosen = [(f"c{n}", Direction(m, m, vector, 0.8, 0.9)) for n in range(3) for m in ("weak", "strong")]
    tries = [
        {
            "concept": concept,
            "method": direction.method,
            "direction": direction.name,
            "sign": sign,
            "target": target,
            "achieved": target,
            "strength": 1.0,
            "status": "not reached" if (direction.method, target, concept) in LEFT else "reached",
            "lift": sign * target,
            "own": 0.0,
            "others": -sign * target,
            "train_lift": sign * target,
        }
        for concept, direction in chosen
        for target in (0.05, 0.2)
        for sign in (1.0, -1.0)
    ]
    out = Result(NAME)
    add_tables(out, SteeringParams(targets=(0.05, 0.2), resamples=100), tries, chosen, 6)
    weak = out.tables["methods"].query("method == 'weak'").set_index("target")
    assert weak["concepts"].tolist() == [3, 2, 3] and weak["reached"].tolist()[:2] == [1.0, 2 / 3]
    assert weak["positive"].tolist() == [1.0, 1.0, 1.0]  # of those that there are
    assert out.scalars["contrast_weak"].value == pytest.approx(0.125)
    assert out.scalars["contrast_weak"].interval.n == 2 and out.scalars["contrast_strong"].interval.n == 3
    pairs = out.tables["comparisons"].query("measure == 'contrast'").set_index("target")
    assert pairs["concepts"].tolist() == [3, 2, 2] and (pairs["difference"] == 0).all()


def test_a_text_of_one_kind_is_said(glass):
    made = ss.run(NAME, glass, ss.corpus("python-docs", tokens=2000, context=64), **SMALL)
    assert (
        not made.tables and "wordnet-nouns" in made.notes[0].message and made.notes[0].severity == "warning"
    )


def test_dictionaries_of_two_sites_are_refused(glass):
    given = [TopKSAE(341, 32, k=4, site=f"blocks.{n}.mlp.hook_post", seed=0) for n in (1, 2)]
    with pytest.raises(SpecError, match="one site"):
        ss.run(NAME, glass, text(), dictionary=given, **SMALL)


def test_views_and_sentences(found):
    check_statements(found)
    record = analyses().get(NAME)
    for view in record.views:
        check_figure(record.draw(view.name, found))

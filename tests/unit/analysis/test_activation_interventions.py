"""Interventions against what must hold: dense at k = f, ranking beats chance, the same corrupted
tokens for both models.
"""

from __future__ import annotations

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.analysis.activation_interventions import ANALYSIS
from sparsescope.analysis.activation_interventions.compute import _corrupt
from sparsescope.testing import check_analysis

SMALL = {"tokens": 300, "densities": (0.5, 0.1), "corruption": (0.2,), "null_draws": 50, "resamples": 100}


@pytest.mark.parametrize("name", ["random-llama", "random-gpt2"])
def test_contract(name, small_corpus):
    result = check_analysis(ANALYSIS, ss.load(name), small_corpus)
    curve = result.tables["loss_curve"]
    assert (curve["low"] <= curve["loss_rise"] + 1e-12).all() and (
        curve["loss_rise"] <= curve["high"] + 1e-12
    ).all()
    errors = result.tables["calibration"]
    assert errors[["ece", "null", "null_high"]].to_numpy().min() >= 0 and errors["ece"].max() <= 1
    assert set(result.tables["robustness"]["model"]) == {"dense", "top-k"}


def test_the_largest_units_matter_more_than_random_ones(glass):
    """On a trained model, at the same k, keeping the largest changes fewer predictions than
    keeping random ones.

    The loss is no test here: the text is foreign to the model, and random noise lowers the loss of
    an overconfident model.
    """
    text = ss.corpus("python-docs", tokens=1500, context=64)
    result = ss.run(
        "activation_interventions",
        glass,
        text,
        tokens=1000,
        densities=(0.25,),
        robust_density=0.25,
        corruption=(),
        resamples=100,
    )
    curve = result.tables["loss_curve"].set_index("model")
    assert curve.loc["top-k", "changed"] < 0.5 * curve.loc["random-k", "changed"]
    assert np.isnan(result.scalars["robustness_excess"].value)
    assert result.view("robustness").layout.title.text  # an empty state, not an error


def test_a_top_k_beyond_the_active_units_is_the_dense_model(small_corpus):
    """Half of the units of a random ReLU layer are zero: keeping 3/4 changes nothing at all."""
    result = ss.run(
        "activation_interventions", ss.load("random-opt"), small_corpus, **{**SMALL, "densities": (0.75, 0.5)}
    )
    curve = result.tables["loss_curve"]
    same = curve[(curve["model"] == "top-k") & (curve["kept"] == 0.75)].iloc[0]
    assert same["loss_rise"] == 0 and same["changed"] == 0


def test_corruption_replaces_text_tokens_at_its_rate_and_nests(llama, small_corpus):
    text = small_corpus.tokenize(llama.tokenizer)
    pool = np.array([7], np.int32)  # one token that stands out
    few, many = _corrupt(0.1, pool, 0), _corrupt(0.3, pool, 0)
    changed, total = 0, 0
    for batch in text.batches(512):
        a, b = few(batch), many(batch)
        assert (a[~batch.text_mask] == batch.input_ids[~batch.text_mask]).all()
        assert ((a != batch.input_ids) <= (b != batch.input_ids)).all(), (
            "a larger share replaces the same tokens and more"
        )
        assert (few(batch) == a).all()
        changed += int((b == 7)[batch.text_mask].sum() - (batch.input_ids == 7)[batch.text_mask].sum())
        total += int(batch.text_mask.sum())
    assert changed / total == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / total))


@pytest.mark.parametrize("name", ["random-olmoe", "random-qwen2moe"])
def test_units_of_experts_are_those_of_routed_tokens(name, small_corpus):
    """The loss with half of the units of every expert, by the edits themselves; dense layers and shared
    experts lose theirs too.
    """
    from sparsescope.activations.edited_passes import held_out
    from sparsescope.activations.losses import token_losses
    from sparsescope.kernels.topk_masks import top_k_mask

    subject = ss.load(name)
    result = ss.run("activation_interventions", subject, small_corpus, **{**SMALL, "densities": (0.5,)})
    _, text = held_out(small_corpus.read_by(subject), SMALL["tokens"])
    sites = subject.hidden_sites()
    experts = [site for site in sites if site.expert is not None]
    assert experts and (name == "random-olmoe") == (len(experts) == len(sites))

    def halved(site, tensor, rows, batch):
        return tensor * top_k_mask(tensor, round(site.width / 2))

    def same(site, tensor, rows, batch):
        return tensor

    edited = token_losses(subject, text, sites=sites, replace=halved)
    dense = token_losses(subject, text, sites=experts, replace=same)
    curve = result.tables["loss_curve"].query("kept == 0.5").set_index("model")
    assert curve.loc["top-k", "loss_rise"] == pytest.approx((edited.nll - dense.nll).mean())
    assert curve.loc["top-k", "loss_rise"] != 0
    assert any("routed tokens" in note.message for note in result.notes)

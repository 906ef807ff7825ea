"""Effective density of mixtures: masks on the hidden units of experts on routed tokens, by the edits
themselves; thresholds of experts, and experts that no token reached.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.context import Context
from sparsescope.activations.edited_passes import EditedPass, held_out
from sparsescope.activations.losses import token_losses
from sparsescope.analysis.effective_density import ANALYSIS
from sparsescope.analysis.effective_density import compute as module
from sparsescope.analysis.effective_density.calibration import Calibration
from sparsescope.analysis.effective_density.cett import cett, column_norms
from sparsescope.analysis.effective_density.statements import statements
from sparsescope.errors import SpecError
from sparsescope.kernels.topk_masks import top_p_mask
from sparsescope.models.structure.dimensions import read_dimensions
from sparsescope.testing import check_analysis

SMALL = {"tokens": 256, "calibration_tokens": 64, "resamples": 100, "percents": (1.0,), "shares": (0.9, 0.5)}
MIXTURES = ["random-olmoe", "random-mixtral", "random-qwen2moe"]


def same(site, tensor, *_):
    return tensor


def by_edits(subject, text, mask):
    """Rise of the perplexity with ``mask(site, tensor)`` on every hidden layer, and kept shares of layers and
    sites after first tokens.
    """
    sites = subject.hidden_sites()
    kept, there = dict.fromkeys((s.name for s in sites), 0), dict.fromkeys((s.name for s in sites), 0)

    def replace(site, tensor, rows, batch):
        on = mask(site, tensor)
        counted = torch.from_numpy(batch.text_mask & (batch.position > 0))
        counted = counted if rows is None else counted.reshape(-1)[rows]
        kept[site.name] += int(on[counted].sum())
        there[site.name] += int(counted.sum()) * site.width
        return tensor * on

    losses = token_losses(subject, text, sites=sites, replace=replace)
    experts = [site for site in sites if site.expert is not None]
    dense = token_losses(subject, text, sites=experts, replace=same)
    rise = math.expm1(float((losses.nll - dense.nll).mean()))
    layers = sorted({site.layer for site in sites})
    by_layer = [
        sum(kept[s.name] for s in sites if s.layer == layer)
        / sum(there[s.name] for s in sites if s.layer == layer)
        for layer in layers
    ]
    return rise, by_layer, {name: kept[name] / there[name] if there[name] else math.nan for name in kept}


@pytest.mark.parametrize("name", MIXTURES)
def test_contract(name, small_corpus, monkeypatch):
    from sparsescope.runner import run as runner

    original = runner.make_params
    monkeypatch.setattr(
        runner,
        "make_params",
        lambda model, given, *, analysis: original(model, given or SMALL, analysis=analysis),
    )
    subject = ss.load(name)
    result = check_analysis(ANALYSIS, subject, small_corpus)
    assert result.tables["curve"]["density"].between(0, 1).all()
    assert set(result.tables["per_layer"]["site"]) == {site.name for site in subject.hidden_sites()}
    assert any("units are hidden units on routed tokens" in note.message for note in result.notes)
    assert "median expert" in ANALYSIS.draw("per_layer", result).layout.title.text.replace("<br>", " ")
    assert any("in the median expert" in statement.text for statement in statements(result))


@pytest.mark.parametrize("name", MIXTURES)
def test_masks_act_on_the_units_of_experts_on_routed_tokens(name, small_corpus):
    """Loss and density of a top-p point and of a CETT point, by the edits themselves."""
    subject = ss.load(name)
    result = ss.run("effective_density", subject, small_corpus, **SMALL)
    _, text = held_out(small_corpus.read_by(subject), SMALL["tokens"], SMALL["calibration_tokens"])
    rise, by_layer, _ = by_edits(subject, text, lambda site, tensor: top_p_mask(tensor, 0.5))
    row = result.tables["curve"].query("rule == 'top-p' and setting == 0.5").iloc[0]
    assert row["perplexity_rise"] == pytest.approx(rise, rel=1e-6, abs=1e-9) and rise != 0
    assert row["density"] == pytest.approx(np.mean(by_layer), abs=1e-12)

    table = result.tables["per_layer"].set_index("site")
    norms = {
        site.name: column_norms(subject.parameter(f"weight:{site.name.removesuffix('hook_post')}out.weight"))
        for site in subject.hidden_sites()
    }
    rise, by_layer, by_site = by_edits(
        subject,
        text,
        lambda site, tensor: tensor.abs() * norms[site.name] >= table.loc[site.name, "threshold"],
    )
    curve = result.tables["curve"].query("rule == 'CETT'")
    at = (curve["density"] - np.mean(by_layer)).abs().idxmin()
    assert curve.loc[at, "density"] == pytest.approx(np.mean(by_layer), abs=1e-12)
    assert curve.loc[at, "perplexity_rise"] == pytest.approx(rise, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(table["density"], [by_site[name] for name in table.index], rtol=1e-12)
    bounds = result.tables["bounds"].query("scheme == 'ideal predictor' and quantity == 'FLOPs'").iloc[0]
    widths = [layer.active_width * layer.matrices for layer in read_dimensions(subject).layers]
    assert bounds["layers"] == subject.n_layers
    assert bounds["density"] == pytest.approx(np.average(by_layer, weights=widths))


@pytest.mark.parametrize("name", ["random-olmoe", "random-mixtral"])
def test_thresholds_are_those_of_each_expert(name, small_corpus):
    """CETT of an expert is of its output on the calibration tokens that were sent to it."""
    subject = ss.load(name)
    text, _ = held_out(small_corpus.read_by(subject), 256, 10_000)
    sites = subject.hidden_sites()
    found = Calibration.read(Context.of(subject=subject, text=text), text, sites, 10_000)
    thresholds, errors = found.at(0.3)
    for site, threshold, error in zip(sites, thresholds, errors, strict=True):
        with ss.capture(subject, text, site.name) as source:
            parts = [b.values[site.name][b.positions[b.rows[site.name]] > 0] for b in source]
        hidden = torch.cat(parts)
        weight = subject.parameter(f"weight:blocks.{site.layer}.mlp.experts.{site.expert}.out.weight")
        assert found.tokens_of_experts()[site.name] == len(hidden) == len(found.hidden[site.name])
        assert error == pytest.approx(cett(hidden, weight, column_norms(weight), threshold), rel=1e-5)
        if len(hidden) > 30:
            assert error == pytest.approx(0.3, abs=0.05)
    routed = read_dimensions(subject).layers[0].routed
    counted = sum(found.tokens_of_experts()[site.name] for site in sites if site.layer == 0)
    assert counted == routed * sum(int((b.text_mask & (b.position > 0)).sum()) for b in text.batches())


def test_calibration_tokens_are_the_same_for_all_sites(small_corpus):
    """Of evenly spread tokens each expert takes those sent to it, so that together they are k of each."""
    subject = ss.load("random-qwen2moe")
    text, _ = held_out(small_corpus.read_by(subject), 256, 300)
    found = Calibration.read(Context.of(subject=subject, text=text), text, subject.hidden_sites(), 60)
    counts, dense = found.tokens_of_experts(), len(found.hidden["blocks.0.mlp.hook_post"])
    layer = read_dimensions(subject).layers[1]
    assert sum(n for name, n in counts.items() if name.startswith("blocks.1.")) == layer.routed * dense
    assert len(found.hidden["blocks.1.mlp.shared_expert.hook_post"]) == dense


def test_an_expert_that_no_token_reached_keeps_its_units_and_has_no_density(small_corpus):
    subject = ss.load("random-olmoe")
    model = subject.model
    with torch.no_grad():  # the router of layer 0 always takes the same two experts
        gate = model.model.layers[0].mlp.gate.weight
        gate.zero_()
    subject = ss.wrap(model, subject.tokenizer)
    result = ss.run("effective_density", subject, small_corpus, **SMALL)
    rows = result.tables["per_layer"].query("layer == 0")
    silent = rows[rows["density"].isna()]
    assert len(silent) == 6 and silent["cett"].isna().all()
    others = rows.drop(silent.index)
    assert others["density"].between(0, 1).all()
    curve = result.tables["curve"]  # experts without tokens are in no mean
    _, text = held_out(small_corpus.read_by(subject), SMALL["tokens"], SMALL["calibration_tokens"])
    _, by_layer, _ = by_edits(subject, text, lambda site, tensor: top_p_mask(tensor, 0.5))
    row = curve.query("rule == 'top-p' and setting == 0.5").iloc[0]
    assert row["density"] == pytest.approx(np.mean(by_layer), abs=1e-12)
    assert any("experts got none" in note.message and note.severity == "warning" for note in result.notes)
    for view in ANALYSIS.views:
        assert ANALYSIS.draw(view.name, result).layout.title.text
    found = Calibration.read(Context.of(subject=subject, text=text), text, subject.hidden_sites(), 64)
    for level, expected in ((0.3, 0.0), (0.999, 0.0), (1.0, math.inf)):  # at 1 every unit is off
        limits = found.thresholds(level)
        assert [limits[name] for name in silent["site"]] == [expected] * 6
    assert all(found.thresholds(0.3)[name] > 0 for name in others["site"])


def test_sites_of_a_pass_are_joined():
    kept, width = np.array([[1.0, 2, 3], [4, 0, 1]]), np.array([[4, 4, 4], [8, 0, 2]])
    one = EditedPass(np.zeros(2), np.ones(2, bool), np.ones(2, np.float32), kept, width)
    joined = one.joined([3, 3, 5])
    np.testing.assert_allclose(joined.density(), [7 / 16, 4 / 6])
    np.testing.assert_allclose(joined.density(np.array([[2.0, 0], [0, 1]])), [[3 / 8, 3 / 4], [4 / 8, 1 / 2]])
    np.testing.assert_array_equal(one.joined([0, 1, 2]).counts[0], kept)
    with pytest.raises(SpecError, match="keeps some units"):
        EditedPass(np.zeros(2), np.ones(2, bool), np.ones(2, np.float32)).joined([0])


def test_dense_models_have_one_site_a_layer(llama, small_corpus):
    """What a layer of a dense model keeps is what its one site keeps."""
    result = ss.run("effective_density", llama, small_corpus, **SMALL)
    table, curve = result.tables["per_layer"], result.tables["curve"].query("rule == 'CETT'")
    assert (table["site"] == [f"blocks.{layer}.mlp.hook_post" for layer in table["layer"]]).all()
    assert (curve["density"] - table["density"].mean()).abs().min() < 1e-12
    assert module.hidden_or_named(llama, module.HIDDEN) == llama.hidden_sites()

"""Weight sparsity end to end: its numbers against an independent computation, what it keeps and refuses."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.losses import token_losses
from sparsescope.analysis.weight_sparsity import ANALYSIS
from sparsescope.analysis.weight_sparsity import compute as module
from sparsescope.analysis.weight_sparsity.statements import statements
from sparsescope.errors import SparsescopeError, SpecError, SubjectError
from sparsescope.pruning import prune
from sparsescope.pruning.finetune import finetune
from sparsescope.pruning.workbench import Workbench
from sparsescope.testing import check_analysis

SMALL = {
    "tokens": 300,
    "calibration_tokens": 200,
    "document_tokens": 64,
    "levels": (0.3, 0.5, 0.7),
    "refine": 0,
    "resamples": 100,
    "floor_rows": 4,
}


@pytest.fixture(scope="module")
def relu():
    """A small language model that knows something, of the shipped series."""
    return ss.load("lazy-relu")


def text(tokens=4000, seed=0):
    return ss.corpus("python-docs+python-source", tokens=tokens, seed=seed)


def run(subject, corpus=None, **params):
    return ss.run("weight_sparsity", subject, corpus or text(), **{**SMALL, **params})


def test_contract():
    check_analysis(ANALYSIS, ss.load("random-llama"), text(1500))


def test_a_mixture_of_experts_is_pruned_expert_by_expert():
    result = run(ss.load("random-olmoe"), text(1500), curves=("wanda", "sparsegpt"), levels=(0.5,))
    matrices = result.tables["per_matrix"]
    assert matrices["matrix"].str.contains("experts.7.out").any()
    assert np.allclose(matrices["sparsity"], 0.5, atol=1e-3)
    assert not matrices["matrix"].str.contains("router").any()


@pytest.fixture(scope="module")
def found(relu):
    """All kinds of curves, once."""
    return run(
        relu,
        curves=(
            "magnitude", "magnitude+global", "random", "wanda", "wanda+owl", "sparsegpt",
            "magnitude+finetuned",
        ),
        finetune_steps=8,
    )  # fmt: skip


def test_a_point_is_what_pruning_and_measuring_gives(relu, found):
    """Independent of the analysis: prune with the library, measure the same documents, subtract."""
    params = ANALYSIS.params(**SMALL)
    corpus = text().tokenize(relu.tokenizer, relu.max_positions)
    calibration, held_out = module.split_text(corpus, params)
    dense = token_losses(relu, held_out)
    table = found.tables["curve"]
    for curve, options in {
        "Magnitude": {"criterion": "magnitude"},
        "Magnitude, global": {"criterion": "magnitude", "allocation": "global"},
        "Wanda": {"criterion": "wanda", "corpus": calibration},
        "SparseGPT, 2:4": {"criterion": "sparsegpt", "corpus": calibration, "pattern": "2:4"},
    }.items():
        sparsity = {} if "pattern" in options else {"sparsity": 0.5}
        pruned, masks = prune(relu, **options, **sparsity)
        damage = token_losses(pruned, held_out).nll.mean() - dense.nll.mean()
        row = table[(table["curve"] == curve) & (table["asked"] == 0.5)].iloc[0]
        assert row["damage"] == pytest.approx(damage, abs=1e-9), curve
        assert row["sparsity"] == pytest.approx(masks.sparsity, abs=1e-12)


def test_documents_are_held_out_and_the_same_for_every_draw(relu):
    corpus = text().tokenize(relu.tokenizer, relu.max_positions)
    parts = [module.split_text(corpus, ANALYSIS.params(**SMALL, calibration_draw=draw)) for draw in range(3)]
    read = [{document.index for document in calibration.documents} for calibration, _ in parts]
    held = [[(d.index, len(d)) for d in chosen.documents] for _, chosen in parts]
    assert held[0] == held[1] == held[2] and max(length for _, length in held[0]) == 64
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not read[first] & read[second]
    assert not read[0] & {index for index, _ in held[0]}
    assert all(calibration.n_tokens >= 200 and chosen.n_tokens >= 300 for calibration, chosen in parts)
    with pytest.raises(SubjectError, match="too few documents"):
        module.split_text(corpus, ANALYSIS.params(**SMALL, calibration_draw=900))


def test_the_drop_point_is_where_the_isotonic_damage_crosses(found):
    curve, drops = found.tables["curve"], found.tables["drop_points"]
    rows = curve[curve["curve"] == "Magnitude"].sort_values("sparsity")
    for tolerance in (0.05, 0.1):
        damage = np.maximum.accumulate(rows["damage"].to_numpy())  # monotone here
        assert (damage == rows["damage"]).all()
        expected = np.interp(tolerance, damage, rows["sparsity"])
        row = drops[(drops["curve"] == "Magnitude") & (drops["tolerance"] == tolerance)].iloc[0]
        assert row["sparsity"] == pytest.approx(expected, abs=1e-9)
        assert row["low"] <= row["sparsity"] <= row["high"]


def test_every_interval_says_how_it_was_made(found):
    methods = {name: s.interval.method for name, s in found.scalars.items() if s.interval is not None}
    assert "inverted" in methods["sparsity_magnitude_at_0.05"]
    assert methods["wanda_minus_magnitude_at_0.5"].startswith("paired")
    assert methods["dense_perplexity"].endswith("percentile") and "paired" not in methods["dense_perplexity"]
    assert not any(name.startswith("random") for name in statements(found)[1].scalars)


def test_comparisons_are_paired_differences_of_the_curve(found):
    curve, table = found.tables["curve"], found.tables["comparisons"]
    wanted = {"wanda against magnitude", "sparsegpt against wanda", "global against uniform, magnitude"}
    wanted |= {"owl against uniform, wanda", "2:4 against single weights, wanda"}
    assert wanted <= {*table["question"]}
    assert (table["question"] == "random against magnitude").sum() == 3  # at every level
    assert not table["first"].str.contains("fine").any()
    at = {(row.curve, row.asked): row.damage for row in curve.itertuples()}
    for row in table.itertuples():
        assert row.difference == pytest.approx(at[row.first, row.asked] - at[row.second, row.asked], abs=1e-9)
        verdict = "first is better" if row.high < 0 else "second is better" if row.low > 0 else "not resolved"
        assert row.verdict == verdict and row.low <= row.difference <= row.high
    random = table[table["question"] == "random against magnitude"]
    assert (random["verdict"] == "second is better").all()


def test_zero_shot_and_fine_tuned_curves_never_share_a_table(found):
    assert {*found.tables["finetuned"]["curve"]} == {"Magnitude"}
    zero, tuned = (found.tables[name].set_index("asked")["damage"] for name in ("curve", "finetuned"))
    zero = found.tables["curve"].query("curve == 'Magnitude'").set_index("asked")["damage"]
    assert tuned[0.0] == 0 and tuned[0.7] < zero[0.7]  # training on repairs
    assert set(found.tables["drop_points"].query("kind == 'fine-tuned'")["curve"]) == {"Magnitude"}


def test_tables_of_one_level_agree_with_each_other(found):
    matrices, curve = found.tables["per_matrix"], found.tables["curve"]
    sizes = {  # lazy-relu: every matrix of a role has one shape
        name: ss.load("lazy-relu").parameter(name).numel() for name in matrices["matrix"].unique()
    }
    weights = matrices["matrix"].map(sizes)
    for name, rows in matrices.groupby("curve"):
        whole = (rows["sparsity"] * weights[rows.index]).sum() / weights[rows.index].sum()
        row = curve[(curve["curve"] == name) & (curve["asked"] == 0.5)].iloc[0]
        assert row["sparsity"] == pytest.approx(whole, abs=1e-9)
        assert (rows["retained"] <= rows["oracle"] + 1e-6).all()
    magnitude = matrices[matrices["curve"] == "Magnitude"]
    assert np.allclose(magnitude["retained"], magnitude["oracle"], atol=1e-6)
    assert {*found.tables["zeros"]["curve"]} == {"Magnitude, global", "Wanda, OWL"}  # uniform ones are flat
    overlaps = found.tables["overlap"].set_index(["first", "second"])
    assert abs(overlaps.loc[("Magnitude", "Random"), "kappa"]) < 0.01
    assert 0.3 < overlaps.loc[("Magnitude", "Wanda"), "kappa"] < 1
    steps = overlaps[[" at " in first for first, _ in overlaps.index]]
    assert len(steps) == 6 and steps.loc[("Random at 50 %", "Random at 70 %"), "jaccard"] == pytest.approx(
        5 / 7, abs=1e-3
    )  # nested: what goes at 50 % goes at 70 %


def test_sparsegpt_lies_between_its_mask_and_the_least_squares_floor(found):
    table = found.tables["reconstruction"]
    assert (table["floor"] <= table["error"] + 1e-9).all() and (table["error"] < table["masked"]).mean() > 0.9
    assert (table["rows"] == 4).all()


def test_scope_counts_every_parameter_once(relu, found):
    table = found.tables["scope"]
    storages = {p.data_ptr(): p.numel() for p in relu.model.parameters()}
    assert table["weights"].sum() == sum(storages.values())
    inside = table[table["in_scope"] == "yes"]["weights"].sum()
    assert found.scalars["scope_share"].value == pytest.approx(inside / table["weights"].sum())


def test_a_model_that_knows_nothing_has_no_drop_point():
    result = run(ss.load("random-llama"), curves=("magnitude",))
    assert result.tables["drop_points"]["sparsity"].isna().all()
    assert result.tables["drop_points"]["censored"].str.startswith("no signal").all()
    assert math.isnan(result.scalars["sparsity_magnitude_at_0.05"].value)
    assert "nothing to break" in statements(result)[0].text
    assert any("no drop point is given" in note.message for note in result.notes)


def test_the_unigram_loss_is_that_of_counted_tokens(relu):
    params = ANALYSIS.params(**SMALL)
    corpus = text().tokenize(relu.tokenizer, relu.max_positions)
    calibration, chosen = module.split_text(corpus, params)
    found = run(relu, curves=("random",), levels=(0.5,))
    ids = np.concatenate([d.ids for d in calibration.documents])
    size = 1 + max(max(int(d.ids.max()) for d in part.documents) for part in (calibration, chosen))
    counts = np.bincount(ids, minlength=size) + 1.0
    prefix = len(chosen.prefix)
    losses = [  # every token but the first of a window, which has no context unless there is a prefix
        -np.log(counts[token] / counts.sum())
        for document in chosen.documents
        for place, token in enumerate(document.ids)
        if prefix or place % chosen.window
    ]
    assert found.scalars["unigram_perplexity"].value == pytest.approx(math.exp(np.mean(losses)), rel=1e-9)


def test_refining_halves_the_widest_bracket_of_a_drop_point(relu):
    coarse = run(relu, curves=("magnitude",), levels=(0.2, 0.5), refine=0, tolerances=(0.05,))
    fine = run(relu, curves=("magnitude",), levels=(0.2, 0.5), refine=2, tolerances=(0.05,))
    before, after = (r.tables["drop_points"]["bracket"].iloc[0] for r in (coarse, fine))
    assert before == pytest.approx(0.3, abs=0.01) and after == pytest.approx(before / 4, abs=0.01)
    asked = sorted(fine.tables["curve"]["asked"])
    assert asked == [0, 0.2, 0.35, 0.425, 0.5, 0.5]  # the last is the pattern 2:4


def test_a_pattern_that_does_not_fit_is_left_out_of_the_defaults_and_refused_by_name(relu):
    result = run(relu, curves=("magnitude",), patterns=("2:5",), levels=(0.5,))
    assert any("2:5 is not measured" in note.message for note in result.notes)
    assert {*result.tables["curve"]["curve"]} == {"Magnitude"}
    with pytest.raises(SpecError, match="do not divide"):
        run(relu, curves=("magnitude+2:5",), patterns=())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"curves": ("wand",)}, "wanda"),
        ({"curves": ("wanda+2:4+erk",)}, "nothing to allocate"),
        ({"curves": ("wanda", "wanda")}, "distinct"),
        ({"levels": (0.5, 1.0)}, "less than 1"),
        ({"patterns": ("rows",)}, "no N:M pattern"),
    ],
)
def test_a_wrong_parameter_is_refused_before_the_work(relu, params, message):
    with pytest.raises(SparsescopeError, match=message):
        run(relu, **params)


def test_no_text_left_for_fine_tuning_is_said(relu):
    with pytest.raises(SubjectError, match="none is left"):
        run(relu, text(700), curves=("magnitude+finetuned",), tokens=5000)


def test_finished_levels_are_not_pruned_again(relu, tmp_path, monkeypatch):
    """Stopped after some levels, the run goes on with the next one, and ends with the same numbers."""
    options = {"curves": ("magnitude", "wanda"), "patterns": ()}
    whole = run(relu, **options)
    pruned: list[tuple[str, float]] = []
    original = Workbench.prune

    def counted(self, request, *args, **kwargs):
        if len(pruned) == stop:
            raise KeyboardInterrupt
        pruned.append((request.criterion.name, request.sparsity))
        return original(self, request, *args, **kwargs)

    monkeypatch.setattr(Workbench, "prune", counted)
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        run(relu, **options, store=tmp_path)
    assert len(pruned) == 3
    stop = -1
    again = run(relu, **options, store=tmp_path)
    assert len(pruned) == 6 == len(set(pruned))  # two curves, three levels, each once
    for name in ("curve", "drop_points", "comparisons", "overlap", "per_matrix"):
        pd.testing.assert_frame_equal(again.tables[name], whole.tables[name])


def test_fine_tuning_keeps_zeros_and_the_given_model(relu):
    corpus = text(2000).tokenize(relu.tokenizer, relu.max_positions)
    pruned, masks = prune(relu, sparsity=0.6)
    before = {name: tensor.clone() for name, tensor in pruned.model.state_dict().items()}
    loss = finetune(pruned, masks, corpus, steps=6, rate=1e-3)
    assert math.isfinite(loss)
    for name, mask in masks.masks.items():
        weight = pruned.parameter(name)
        assert bool((weight[~mask.tensor()] == 0).all())
        assert bool((weight[mask.tensor()] != 0).any())
    after = pruned.model.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    again, _ = prune(relu, sparsity=0.6)
    finetune(again, masks, corpus, steps=6, rate=1e-3)
    assert all(torch.equal(after[name], tensor) for name, tensor in again.model.state_dict().items())
    with pytest.raises(SpecError, match="float32"):
        half = relu.copy()
        half.model.to(torch.bfloat16)
        finetune(half, None, corpus, steps=1)


@pytest.mark.parametrize("origin", ["gguf:Q4_1", "bfloat16 (pruned from gguf:Q4_1)"])
def test_every_figure_says_that_the_weights_were_quantized(found, monkeypatch, origin):
    monkeypatch.setitem(found.provenance["subject"], "origin_precision", origin)
    for view in ANALYSIS.views:
        subtitle = found.view(view.name).layout.title.subtitle.text.replace("<br>", " ")
        assert "weights stored as Q4_1" in subtitle, view.name


def test_statements_name_the_best_criterion_and_its_interval(found):
    said = [statement.text for statement in statements(found)]
    assert "before the loss rises by 0.05 nats" in said[0] and "n = " in said[0]
    best = found.tables["drop_points"].query("kind == 'zero-shot' and tolerance == 0.05")
    assert said[0].startswith(best.loc[best["sparsity"].idxmax(), "curve"])
    assert "SparseGPT" in said[1] and "2:4" in said[2]

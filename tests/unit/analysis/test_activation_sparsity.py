"""The analysis end to end: contract, closed forms, splitting, statistics that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.activations.context import Context
from sparsescope.analysis.activation_sparsity import ANALYSIS, ActivationSparsityParams
from sparsescope.analysis.activation_sparsity import compute as module
from sparsescope.errors import SubjectError
from sparsescope.metrics.bounds import dense_cost
from sparsescope.metrics.sparsity import half_normal_reference, treves_rolls
from sparsescope.models.structure.dimensions import read_dimensions
from sparsescope.testing import check_analysis, check_same_numbers

SUBJECTS = [
    "random-llama",
    "random-gpt2",
    "random-opt",
    "random-gemma2",
    "random-qwen2moe",
    "random-olmoe",
    "random-mixtral",
]


@pytest.mark.parametrize("name", SUBJECTS)
def test_contract_on_every_architecture(name, small_corpus):
    result = check_analysis(ANALYSIS, ss.load(name), small_corpus)
    table = result.tables["per_layer"]
    numbers = ["mean", "low", "high", "q05", "q50", "q95"]
    shares = table.loc[table["metric"] != "kurtosis", numbers].to_numpy()
    assert np.nanmin(shares) >= 0 and np.nanmax(shares) <= 1
    assert np.nanmin(table.loc[table["metric"] == "kurtosis", numbers].to_numpy()) >= 1
    seen = table[table["tokens"] > 0]
    assert (seen["low"] <= seen["mean"] + 1e-12).all() and (seen["mean"] <= seen["high"] + 1e-12).all()
    assert (seen["q05"] <= seen["q50"]).all() and (seen["q50"] <= seen["q95"]).all()


def test_random_relu_is_half_active():
    """Symmetric pre-activations: an untrained ReLU layer lets half of its units through."""
    text = ss.corpus("python-docs", tokens=2000, context=64)
    layers = []
    for seed in range(5):
        result = ss.run("activation_sparsity", ss.load(f"random-opt@{seed}"), text)
        table = result.tables["per_layer"]
        layers.append(table.loc[table["metric"] == "density_nonzero", "mean"].to_numpy())
    assert np.mean(layers) == pytest.approx(0.5, abs=0.02)
    assert np.min(layers) > 0.45 and np.max(layers) < 0.55


@pytest.mark.parametrize(
    ("name", "tokens"), [("glassllm", 4000), pytest.param("smollm2-135m", 512, marks=pytest.mark.slow)]
)
def test_two_halves_merged_equal_the_whole(name, tokens):
    subject = ss.load(name)
    text = ss.corpus("python-docs+python-source", tokens=tokens, context=128).tokenize(subject.tokenizer)
    params = ActivationSparsityParams()

    def accumulate(part):
        accumulator = module.accumulator(params, Context.of(subject=subject, text=part))
        with ss.capture(subject, part, "blocks.*.mlp.hook_post") as source:
            for batch in source:
                accumulator.update(batch)
        return accumulator

    whole = module.result(params, Context.of(subject=subject, text=text), accumulate(text))
    for cut in (1, len(text.documents) // 2) if name == "glassllm" else (len(text.documents) // 2,):
        numbers = [document.index for document in text.documents]
        first, second = accumulate(text.select(numbers[:cut])), accumulate(text.select(numbers[cut:]))
        merged = module.result(params, Context.of(subject=subject, text=text), second.merge(first))
        check_same_numbers(whole, merged, rtol=1e-12)


def test_density_and_sparsity_stand_together(llama, small_corpus):
    table = ss.run("activation_sparsity", llama, small_corpus).tables["per_layer"]
    dense = table[table["metric"].str.startswith("density_")]
    np.testing.assert_allclose(dense["sparsity"], 1 - dense["mean"])
    assert table.loc[~table["metric"].str.startswith("density_"), "sparsity"].isna().all()


def test_relu_of_normal_pre_activations_has_the_shape_of_half_a_half_normal():
    table = ss.run(
        "activation_sparsity", ss.load("random-opt"), ss.corpus("python-docs", tokens=2000, context=64)
    ).tables
    means = table["per_layer"].groupby("metric")["mean"].mean()
    for metric in ("pr2", "pr4", "entropy_number"):
        assert means[metric] == pytest.approx(0.5 * half_normal_reference(metric), rel=0.03)
    assert means["kurtosis"] == pytest.approx(6, rel=0.05)
    assert means["treves_rolls"] == pytest.approx(1 - means["pr2"], abs=0.003)


def test_lifetime_sparseness_is_that_of_each_unit(glass):
    text = ss.corpus("python-docs", tokens=600, context=64)
    result = ss.run("activation_sparsity", glass, text)
    site = "blocks.1.mlp.hook_post"
    with ss.capture(glass, text, site) as source:
        values = np.concatenate([batch.values[site].numpy()[batch.positions > 0] for batch in source])
    expected = treves_rolls(values.T)
    units = result.tables["units"].query("layer == 1")["lifetime_sparseness"]
    np.testing.assert_allclose(units, expected, rtol=1e-6)
    row = result.tables["lifetime"].query("layer == 1").iloc[0]
    assert row["mean"] == pytest.approx(expected.mean(), rel=1e-6) and row["low"] < row["mean"] < row["high"]
    assert row["q50"] == pytest.approx(np.median(expected), rel=1e-6) and row["units"] == 341
    population = result.tables["per_layer"].query("layer == 1 and metric == 'treves_rolls'")["mean"].iloc[0]
    assert row["population"] == population


def test_bounds_follow_from_the_densities(small_corpus):
    subject = ss.load("random-opt")
    result = ss.run("activation_sparsity", subject, small_corpus, attended=10.0)
    table = result.tables["upper_bounds"]
    density = result.scalars["mean_nonzero"].value  # all layers are alike
    for quantity, row in (
        table.query("rule == 'nonzero' and scheme == 'ideal predictor'").set_index("quantity").iterrows()
    ):
        assert row["density"] == pytest.approx(density) and row["saved_mlp"] == pytest.approx(1 - density)
        assert row["saved_model"] == pytest.approx((1 - density) * row["mlp_share"]) and row["attended"] == 10
        cost = dense_cost(read_dimensions(subject), attended=10)
        assert row["dense"] == pytest.approx(cost.total_flops if quantity == "FLOPs" else cost.total_bytes)
    first = table.query("rule == 'nonzero' and scheme == 'first matrix computed'")
    np.testing.assert_allclose(first["saved_mlp"], (1 - density) / 2)
    # Two matrices: the same as 'down only'
    assert set(table["scheme"]) == {"first matrix computed", "ideal predictor"}
    assert ((table["low"] <= table["saved_model"]) & (table["saved_model"] <= table["high"])).all()
    scalar = result.scalars["bound_flops_saved_nonzero"]
    assert scalar.value == pytest.approx(first["saved_model"].iloc[0]) and scalar.interval is not None


def test_bounds_of_a_mixture_weigh_experts_by_their_tokens(small_corpus):
    result = ss.run("activation_sparsity", ss.load("random-mixtral"), small_corpus, shares=[0.9])
    layer = result.tables["per_layer"].query("metric == 'density_energy_90'")
    expected = [np.average(rows["mean"], weights=rows["tokens"]) for _, rows in layer.groupby("layer")]
    row = result.tables["upper_bounds"].query("rule == 'energy 90 %'").iloc[0]
    assert row["density"] == pytest.approx(np.mean(expected)) and row["layers"] == len(expected)


def test_other_sites_have_no_bounds(llama, small_corpus):
    result = ss.run("activation_sparsity", llama, small_corpus, sites="blocks.*.hook_out")
    assert result.tables["upper_bounds"].empty and not [
        name for name in result.scalars if name.startswith("bound_")
    ]


def test_units_that_never_fire_are_bounded_by_effective_tokens(small_corpus):
    import torch

    subject = ss.load("random-opt")
    with torch.no_grad():
        subject.model.model.decoder.layers[1].fc1.bias[:5] = -1e4
    result = ss.run("activation_sparsity", ss.wrap(subject.model, subject.tokenizer), small_corpus)
    row = result.tables["unit_use"].query("layer == 1 and rule == 'nonzero'").iloc[0]
    assert row["dead"] >= 5
    assert 0.05 ** (1 / row["effective_tokens"]) == pytest.approx(1 - row["dead_bound"])
    assert row["documents"] <= row["effective_tokens"] + 1 and row["effective_tokens"] <= row["tokens"]
    units = result.tables["units"].query("layer == 1").head(5)
    assert (units["nonzero"] == 0).all() and (units["documents_nonzero"] == 0).all()


def test_one_document_gives_no_interval_and_says_so(llama):
    result = ss.run("activation_sparsity", llama, ss.corpus(["some words " * 40], context=64))
    assert result.tables["per_layer"]["low"].isna().all()
    assert result.scalars["mean_gini"].interval is None
    assert any("one document" in note.message for note in result.notes)


def test_half_precision_is_labelled(small_corpus):
    result = ss.run("activation_sparsity", ss.load("random-llama", dtype="bfloat16"), small_corpus)
    assert any(note.severity == "warning" and "bfloat16" in note.message for note in result.notes)
    assert result.provenance["subject"]["dtype"] == "bfloat16"


def test_other_sites_can_be_asked_for(llama, small_corpus):
    result = ss.run(
        "activation_sparsity", llama, small_corpus, sites=["blocks.*.attn.hook_z", "blocks.0.hook_out"]
    )
    sites = set(result.tables["per_layer"]["site"])
    assert "blocks.0.hook_out" in sites and "blocks.2.attn.hook_z" in sites
    with pytest.raises(SubjectError):
        ss.run("activation_sparsity", llama, small_corpus, sites="blocks.*.nowhere")


def test_experts_are_measured_on_their_own_tokens(small_corpus):
    subject = ss.load("random-olmoe")
    result = ss.run("activation_sparsity", subject, small_corpus)
    table = result.tables["per_layer"].query("metric == 'gini' and layer == 0")
    assert len(table) == 8 and table["site"].str.contains(".experts.", regex=False).all()
    tokens = small_corpus.tokenize(subject.tokenizer)
    later = sum(int((b.text_mask & (b.position > 0)).sum()) for b in tokens.batches())
    assert table["tokens"].sum() == 2 * later  # two experts for each token


def test_experts_without_tokens_claim_nothing(llama):
    subject = ss.load("random-olmoe")
    text = ss.corpus(["one two"] * 2, tokens=8, context=8, deduplicate=False)
    use = ss.run("activation_sparsity", subject, text).tables["unit_use"]
    silent = use[use["tokens"] == 0]
    assert len(silent) and silent[["dead_share", "always_on_share", "below_50%"]].isna().all().all()


def test_rare_experts_do_not_decide_which_resamples_count(monkeypatch):
    """Experts that are missing from many resamples must not leave only the resamples that have them."""
    seen, original = [], module.mean_over_present
    monkeypatch.setattr(module, "mean_over_present", lambda v, axis: seen.append(v) or original(v, axis))
    text = ss.corpus("python-docs", tokens=120, context=32, max_document_tokens=30)
    ss.run("activation_sparsity", ss.load("random-olmoe"), text)
    (replicates,) = (values for values in seen if values.ndim == 3)
    assert np.isnan(replicates).any(), "no expert was absent from a resample: the test shows nothing"
    assert np.isfinite(original(replicates, 1)).all()


def test_many_domains_of_one_document_have_an_interval_of_some_width(llama):
    from sparsescope.activations.corpus import Document

    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    texts = [
        Document(f"d{n}", f"domain{n}", " ".join(words[(n + i * i) % 10] for i in range(40)))
        for n in range(8)
    ]
    result = ss.run("activation_sparsity", llama, ss.corpus(texts, tokens=900, context=64, deduplicate=False))
    interval = result.scalars["mean_gini"].interval
    assert interval.high - interval.low > 1e-6
    assert result.tables["by_domain"]["low"].isna().all()


def test_text_without_a_second_token_is_refused(llama):
    with pytest.raises(SubjectError, match="no token after the first"):
        ss.run("activation_sparsity", llama, ss.corpus("python-docs", tokens=1, context=8, min_tokens=1))


def test_runs_of_version_1_are_still_drawn(synthetic):
    """They have neither the later tables nor the later measures."""
    from sparsescope.reporting.sections import draw, views_of

    result = synthetic.activation_result(layers=3)
    for name in ("lifetime", "upper_bounds"):
        del result.tables[name], result.columns[name]
    table = result.tables["per_layer"]
    result.tables["per_layer"] = table[~table["metric"].isin(["entropy_number", "kurtosis", "treves_rolls"])]
    views = views_of(result)
    assert [view.name for view in views] == [
        v.name for v in ANALYSIS.views if v.name not in ("lifetime", "upper_bounds")
    ]
    for view in views:
        assert draw(result, view).layout.meta["alt"]

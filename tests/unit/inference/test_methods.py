"""The mathematics of sparse inference against arithmetic by hand: masks, methods, factors, folding."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.capture import tokenized
from sparsescope.activations.losses import Reference, token_losses
from sparsescope.errors import SpecError, SubjectError
from sparsescope.inference import sparsify
from sparsescope.inference.calibration import Calibration, calibrate
from sparsescope.inference.calibrator import Calibrator
from sparsescope.inference.folding import fold, joint_norms
from sparsescope.inference.groups import input_groups
from sparsescope.inference.install import install
from sparsescope.inference.masks import LowRank, Mask
from sparsescope.inference.methods import METHODS, recipe_of
from sparsescope.inference.methods.rsparse import factors, rank_at
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.models import registered_subjects

ALL = PrefixPolicy("all_sparse")


@pytest.fixture(scope="module")
def text(llama):
    return tokenized(ss.corpus("python-docs", tokens=2048, context=64), llama)


@pytest.fixture(scope="module")
def bench(llama, text):
    return Calibrator(llama, text, refit_tokens=1024)


NAMES = [name for name in registered_subjects() if name.startswith("random-")]


def test_every_architecture_has_its_groups_and_is_dense_below_zero():
    for name in (*NAMES, "glassllm", "bytes-moe", "lazy-relu"):
        subject = ss.load(name)
        ids = subject.sample_ids(2)
        dense = subject.forward(ids, logits=True)
        groups = input_groups(subject)
        assert {group.role.rpartition(".")[2] for group in groups} == {"in", "out"}
        scale = torch.rand(groups[0].width, generator=torch.Generator().manual_seed(0))
        below = [Mask(group.name, group.parts, -1.0) for group in groups]
        below[0] = replace(below[0], scale=scale)
        found = install(subject, below, ALL).forward(ids, logits=True)
        torch.testing.assert_close(found, dense, rtol=1e-5, atol=2e-5)
        # Zeros are dropped at 0, which changes nothing; at a high threshold everything changes
        at_zero = [replace(mask, threshold=0.0, scale=None) for mask in below]
        torch.testing.assert_close(install(subject, at_zero, ALL).forward(ids, logits=True), found)
        assert torch.equal(subject.forward(ids, logits=True), dense), f"{name} was changed"


def test_a_linear_module_computes_the_masked_product_by_hand(llama):
    group = next(group for group in input_groups(llama) if group.role == "mlp.out")
    site = group.matrices[0]
    scale = torch.rand(group.width, generator=torch.Generator().manual_seed(1)) + 0.1
    centre = torch.randn(group.width, generator=torch.Generator().manual_seed(2)) / 50
    bias = torch.randn(site.shape[0], generator=torch.Generator().manual_seed(3))
    mask = Mask(group.name, group.parts, 0.002, scale=scale, centre=centre, bias={site.role: bias})
    sparse = install(llama, [mask], ALL)
    module = sparse.model.get_submodule(site.module_path)
    x = torch.randn(1, 5, group.width, generator=torch.Generator().manual_seed(4)) / 50
    weight = llama.parameter(site)
    kept = (x - centre).abs() > 0.002 / scale
    expected = ((x - centre) * kept) @ weight.T + weight @ centre + bias
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)
    assert 0.05 < float(kept.float().mean()) < 0.95
    # The matrix that is read is the stored one, as of any module
    assert torch.equal(sparse.parameter(site), weight)


def test_a_channel_of_norm_zero_is_dropped_and_nan_is_not(llama):
    group = next(group for group in input_groups(llama) if group.role == "attn.out")
    scale = torch.ones(group.width)
    scale[3] = 0
    sparse = install(llama, [Mask(group.name, group.parts, 0.1, scale=scale)], ALL)
    module = sparse.model.get_submodule(group.matrices[0].module_path)
    x = torch.full((1, 2, group.width), 0.01)
    x[0, 0, 3] = 1e9  # its column counts for nothing
    x[0, 1, 5] = float("nan")
    found = module(x)
    assert torch.equal(found[0, 0], torch.zeros_like(found[0, 0]))
    assert torch.isnan(found[0, 1]).all()


def test_thresholds_hold_for_skewed_scores_in_every_precision(llama):
    """A signed histogram, of which half is taken, would miss a skewed distribution by far."""
    from sparsescope.kernels.score_histograms import add_scores, new_counts, quantile

    drawn = torch.randn(400, 512, generator=torch.Generator().manual_seed(0)).mul(1.5).exp() - 1
    for dtype, scale in itertools.product((torch.float32, torch.bfloat16), (1.0, 1e-30)):
        x = (drawn * scale).to(dtype)
        counts = new_counts()
        add_scores(counts, x)
        for share in (0.1, 0.4, 0.65):
            realised = float((x.float().abs() <= quantile(counts, share)).float().mean())
            assert realised == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("auto",)])
def test_every_method_realises_its_target_on_the_calibration_text(bench, method):
    target = min(0.5, recipe_of(method, bench).ceiling * 0.8)
    found = calibrate(bench, method, target)
    assert found.realised == pytest.approx(target, abs=0.005)


def test_wina_released_has_norms_for_k_and_gate_alone(bench):
    scaled = {m.roles for m in recipe_of("wina_released", bench).masks() if m.scale is not None}
    assert scaled == {("attn.k.weight",), ("mlp.gate.weight",)}
    for mask in recipe_of("wina", bench).masks():
        site = bench.sites(bench.by_name[mask.group], mask.roles[0])[0]
        torch.testing.assert_close(mask.scale, bench.matrix(site).norm(dim=0))
    for mask in recipe_of("was", bench).masks():
        site = bench.sites(bench.by_name[mask.group], mask.roles[0])[0]
        torch.testing.assert_close(mask.scale, bench.matrix(site).abs().sum(0))


def test_teal_is_gamma_zero(bench, text):
    """With all norms equal the norm-aware score is TEAL."""
    teal = calibrate(bench, "teal", 0.4)
    flat = [
        replace(m, scale=torch.full((bench.by_name[m.group].width,), 3.0), threshold=3 * m.threshold)
        for m in teal.masks
    ]
    ids = bench.subject.sample_ids(2)
    one = install(bench.subject, teal.masks, ALL).forward(ids)
    assert torch.equal(one, install(bench.subject, flat, ALL).forward(ids))


def test_top_k_of_the_score_is_the_best_diagonal_mask():
    """Brute force over all masks of 12 channels; the true error of correlated columns is only near."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    x = torch.randn(12, generator=generator, dtype=torch.float64)
    c = weight.norm(dim=0)
    for size in (3, 6, 9):
        chosen = set((x.abs() * c).topk(size).indices.tolist())
        costs, true = {}, {}
        for kept in itertools.combinations(range(12), size):
            rest = x.clone()
            rest[list(kept)] = 0
            costs[kept] = float((rest.square() * c.square()).sum())
            true[kept] = float((weight @ rest).square().sum())
        assert set(min(costs, key=costs.get)) == chosen
        assert true[tuple(sorted(chosen))] >= min(true.values())


def test_r_sparse_is_wina_at_rank_zero_and_dense_at_full_rank(llama, bench):
    wina = calibrate(bench, "wina", 0.5)
    ids = llama.sample_ids(2)
    without = [replace(m, low_rank={}) for m in wina.masks]
    assert torch.equal(
        install(llama, without, ALL).forward(ids), install(llama, wina.masks, ALL).forward(ids)
    )
    recipe = recipe_of("rsparse", bench)
    recipe.alphas = {(0.5, mask.name): 1.0 for mask in recipe.masks()}
    from sparsescope.inference.calibration import dense_counts

    placed = recipe.place(dense_counts(bench, "rsparse"), 0.5)
    ours = recipe_of("wina", bench).place(dense_counts(bench, "wina"), 0.5)
    assert [m.threshold for m in placed] == [m.threshold for m in ours]
    assert all(not m.low_rank for m in placed)
    recipe.alphas.clear()
    full = []
    for mask in wina.masks:
        site = bench.sites(bench.by_name[mask.group], mask.roles[0])[0]
        pair = factors(bench.matrix(site), min(site.shape))
        full.append(replace(mask, low_rank={mask.roles[0]: LowRank(pair.left, pair.right)}))
    torch.testing.assert_close(
        install(llama, full, ALL).forward(ids), llama.forward(ids), rtol=1e-4, atol=1e-4
    )


def test_factors_are_the_best_of_their_rank_and_cost_what_the_budget_says():
    weight = torch.randn(20, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    for rank in (1, 5, 20):
        for matrix in (weight, weight.T):
            pair = factors(matrix, rank)
            best = (left[:, :rank] * values[:rank]) @ right[:rank]
            best = best if matrix is weight else best.T
            torch.testing.assert_close(pair.left @ pair.right, best)
    for shape in ((576, 576), (192, 576), (1536, 576), (576, 1536)):
        for target, alpha in itertools.product((0.25, 0.5), (0.8, 0.95, 1.0)):
            rows, columns = shape
            kept = columns * (1 - target) * alpha
            spent = kept * rows + rank_at(target, alpha, shape) * (rows + columns)
            assert spent <= (1 - target) * rows * columns
            assert spent > (1 - target) * rows * columns - (rows + columns)


def test_folding_joint_norms_turns_teal_into_wina(texts):
    """The same masks in float64 and outputs to 1e-12; o, under grouped heads, keeps its vector."""
    dense = _double("random-llama")
    scales = joint_norms(dense)
    folded, left = fold(dense, scales)
    groups = input_groups(dense)
    assert {group.role for group in groups if group.name in left} == {"attn.out"}
    ids = dense.sample_ids(4)
    torch.testing.assert_close(folded.forward(ids), dense.forward(ids), rtol=0, atol=1e-12)
    limits = {group.name: 0.3 * float(scales[group.name].mean()) for group in groups}
    wina = [Mask(g.name, g.parts, limits[g.name], scale=scales[g.name]) for g in groups]
    teal = [Mask(g.name, g.parts, limits[g.name], scale=left.get(g.name)) for g in groups]
    one, other = install(dense, wina, ALL), install(folded, teal, ALL)
    torch.testing.assert_close(other.forward(ids), one.forward(ids), rtol=0, atol=1e-12)
    assert not torch.allclose(one.forward(ids), dense.forward(ids), atol=1e-3)


def test_folding_scales_biases_and_refuses_what_it_cannot_do():
    for name in ("random-gpt2", "random-llama"):
        dense = _double(name)
        folded, left = fold(dense, joint_norms(dense))
        ids = dense.sample_ids(2)
        torch.testing.assert_close(folded.forward(ids), dense.forward(ids), rtol=0, atol=1e-11)
        kept = {name.split(".", 2)[2] for name in left}
        assert kept == ({"attn.out", "mlp.out"} if name == "random-gpt2" else {"attn.out"})


def test_rotation_keeps_the_function_and_orthogonalises_k_and_gate(bench, llama):
    recipe = recipe_of("wina+rotated", bench)
    turned = [mask for mask in recipe.masks() if mask.rotation is not None]
    assert {role for mask in turned for role in mask.roles} == {
        "attn.q.weight", "attn.k.weight", "attn.v.weight", "mlp.gate.weight", "mlp.in.weight"
    }  # fmt: skip
    for mask in turned:
        site = bench.sites(bench.by_name[mask.group], mask.roles[0])[0]
        product = bench.matrix(site) @ mask.rotation
        gram = product.T @ product
        if mask.roles[0] in ("attn.k.weight", "mlp.gate.weight"):
            off = gram - torch.diag(gram.diagonal())
            assert float(off.abs().max()) < 1e-4 * float(gram.abs().max())
    ids = llama.sample_ids(2)
    whole = [replace(mask, threshold=-1.0) for mask in recipe.masks()]
    torch.testing.assert_close(
        install(llama, whole, ALL).forward(ids), llama.forward(ids), rtol=1e-4, atol=1e-5
    )


def test_cats_goes_by_the_size_of_the_gate_whatever_its_sign(glass):
    """What is dropped are the rows of one branch and the columns of the last matrix, by |act(gate)|."""
    group = next(group for group in input_groups(glass) if group.role == "mlp.out")
    mask = Mask(group.name, group.parts, 0.15, kind="gate", saves=("mlp.in.weight",))
    sparse = install(glass, [mask], ALL)
    ids = glass.sample_ids(2)
    seen = {}
    mlp = sparse.model.get_submodule("model.layers.0.mlp")
    mlp.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0].clone()))
    mlp.register_forward_hook(lambda _m, _args, out: seen.update(y=out.clone()))
    sparse.forward(ids)
    with torch.inference_mode():
        gate = torch.nn.functional.silu(seen["x"] @ mlp.gate_proj.weight.T)
        hidden = gate * (seen["x"] @ mlp.up_proj.weight.T) * (gate.abs() > 0.15)
        torch.testing.assert_close(seen["y"], hidden @ mlp.down_proj.weight.T, rtol=1e-4, atol=1e-5)
    negative = (gate < 0) & (gate.abs() > 0.15)
    assert bool(negative.any()), "no large negative gate: the test says nothing"


def test_cett_rises_and_its_thresholds_have_one_error(bench):
    recipe = recipe_of("cett", bench)
    errors = []
    target = 0.5 * recipe.ceiling
    shares = recipe._solve(target)
    for mask in recipe.templates:
        curve = recipe.error_curve(mask)
        assert (np.diff(curve) >= 0).all() and curve[0] == pytest.approx(0, abs=1e-9)
        from sparsescope.inference.methods.cett import _GRID

        errors.append(float(np.interp(shares[mask.name], _GRID, curve)))
    assert np.ptp(errors) < 1e-3
    skipped = sum(bench.weights(mask) * shares[mask.name] for mask in recipe.templates)
    assert skipped / bench.total_weights == pytest.approx(target, abs=1e-3)


def test_one_budget_meets_the_kkt_conditions(bench):
    """At the optimum the score at the edge, per weight, is the same everywhere."""
    from sparsescope.inference.methods.auto import Auto, Choice

    recipe = Auto(bench, refine=False)
    counts = bench.count(bench.subject, {m.counted_as: m for m in recipe.masks()}, "").counts
    masks = recipe.placed(counts, 0.5, Choice({}, ()))
    edges = [m.threshold / np.sqrt(bench.by_name[m.group].outputs()) for m in masks]
    free = [edge for edge, m in zip(edges, masks, strict=True)]
    assert np.ptp(np.log(free)) < 1e-6
    from sparsescope.kernels.score_histograms import share_below

    skipped = sum(bench.weights(m) * share_below(counts[m.counted_as], m.threshold) for m in masks)
    assert skipped / bench.total_weights == pytest.approx(0.5, abs=1e-4)


def test_one_budget_equals_an_exhaustive_grid_on_three_inputs():
    """Three inputs of unlike scale: the Lagrangian finds the split that a grid finds."""
    from sparsescope.kernels.score_histograms import add_scores, new_counts, shares_below

    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(200, 64, generator=generator).abs() * s for s in (0.3, 1.0, 4.0)]
    counts = [new_counts() for _ in scores]
    for own, values in zip(counts, scores, strict=True):
        add_scores(own, values)
    running = np.stack([np.cumsum(own) for own in counts])
    edge = next(t for t in np.geomspace(1e-3, 10, 4000) if shares_below(running, np.full(3, t)).mean() >= 0.5)
    found = shares_below(running, np.full(3, edge))

    def cost(shares):
        total = 0.0
        for share, values in zip(shares, scores, strict=True):
            ordered = values.flatten().sort().values
            total += float(ordered[: int(share * len(ordered))].square().sum())
        return total

    grid = [
        (cost((a, b, 1.5 - a - b)), a, b)
        for a in np.arange(0, 1.01, 0.05)
        for b in np.arange(0, 1.01, 0.05)
        if 0 <= 1.5 - a - b <= 1
    ]
    assert cost(found) <= min(grid)[0] * 1.001
    assert abs(found[0] - min(grid)[1]) <= 0.06 and abs(found[1] - min(grid)[2]) <= 0.06


def test_auto_is_closer_to_the_dense_model_than_the_published_methods(glass):
    text = tokenized(ss.corpus("python-docs", tokens=4096, context=128), glass)
    held = text.select([document.index for document in text.documents[-3:]])
    fit = text.select([document.index for document in text.documents[:-3]])
    bench = Calibrator(glass, fit)
    reference = Reference()
    token_losses(glass, held, record=reference)
    kl = {}
    for method in ("teal", "wina", "auto"):
        sparse = calibrate(bench, method, 0.5).apply(glass)
        kl[method] = float(token_losses(sparse, held, reference=reference).kl.mean())
    assert kl["auto"] < 0.8 * min(kl["teal"], kl["wina"])


def test_sinks_stay_dense_where_that_is_asked_for(llama, text):
    sparse = sparsify(llama, "teal", 0.4, text, sinks="dense")
    assert sparse.variant.parameters["sinks"] == "dense"
    assert sparse.variant.adds != sparsify(llama, "teal", 0.4, text).variant.adds


def test_a_calibration_comes_back_from_its_artifact_and_refuses_another_model(llama, bench, tmp_path):
    from sparsescope.core.artifact_store import ArtifactStore

    for method in ("wina", "rsparse", "cats", "auto"):
        found = calibrate(bench, method, 0.3)
        kept = found.save(ArtifactStore(tmp_path))
        again = Calibration.load(kept)
        assert again.digest == found.digest and again.method == method and again.realised == found.realised
        ids = llama.sample_ids(2)
        assert torch.equal(again.apply(llama).forward(ids), found.apply(llama).forward(ids))
        with pytest.raises(SubjectError, match="another model"):
            again.apply(ss.load("random-gpt2"))


def test_identity_covers_method_thresholds_and_prefix(llama, bench):
    one = calibrate(bench, "teal", 0.3)
    sparse = one.apply(llama)
    digests = {
        sparse.variant.adds,
        one.apply(llama, "decode_only").variant.adds,
        calibrate(bench, "wina", 0.3).apply(llama).variant.adds,
        calibrate(bench, "teal", 0.31).apply(llama).variant.adds,
    }
    assert len(digests) == 4
    assert sparse.identity.weight_hash == llama.identity.weight_hash
    assert sparse.variant.parent.id == llama.id and sparse.variant.kind == "sparsified"
    assert not sparse.unstorable


BAD = [
    ({"target": 1.0}, SpecError, "the target is no sparsity"),
    ({"target": -0.1}, SpecError, "the target is no sparsity"),
    ({"target": 50}, SpecError, "target=0.5"),
    ({"method": "tael"}, SpecError, "teal"),
    ({"method": "teal+blocks"}, SpecError, "no such allocation"),
    ({"method": "cats", "target": 0.9}, SpecError, "cannot reach"),
    ({"corpus": None}, SpecError, "calibration text is needed"),
    ({"prefix": "dense_fraction:1"}, SpecError, "leaves nothing sparse"),
    ({"prefix": "dense_first_n:64"}, SpecError, "leaves nothing sparse"),
    ({"prefix": "decode"}, SpecError, "decode_only"),
    ({"prefix": "dense_first_n:-1"}, SpecError, "cannot be read"),
    ({"scope": "blokcs"}, SubjectError, "blocks"),
]


@pytest.mark.parametrize(("given", "error", "said"), BAD)
def test_bad_input_has_a_message_of_its_own(llama, text, given, error, said):
    arguments = {"method": "teal", "target": 0.4, "corpus": text, **given}
    with pytest.raises(error) as caught:
        sparsify(llama, **arguments)
    assert said in str(caught.value)


def test_a_text_of_one_token_and_a_model_without_what_a_method_needs(llama):
    short = tokenized(ss.corpus(["one two"], context=64), llama)
    with pytest.raises(SubjectError, match="calibration text is too short"):
        sparsify(llama, "teal", 0.4, short)
    gpt2 = ss.load("random-gpt2")
    text = ss.corpus("python-docs", tokens=1024, context=64)
    with pytest.raises(SubjectError, match="gate"):
        sparsify(gpt2, "cats", 0.1, text)
    with pytest.raises(SubjectError, match="hidden units"):
        sparsify(llama, "cett", 0.1, text, scope="attention")
    sparse = sparsify(llama, "teal", 0.4, text)
    with pytest.raises(SubjectError, match="sparse already"):
        sparsify(sparse, "teal", 0.4, text)


def _double(name):
    subject = ss.load(name)
    made = subject.copy()
    made.model.double()
    return made

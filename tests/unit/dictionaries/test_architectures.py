"""The rules of the architectures, their losses and gradients, and what is done to a dictionary afterwards."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsescope.dictionaries import entries as entries_module
from sparsescope.dictionaries.architectures import ALIASES, ARCHITECTURES, find_architecture, make
from sparsescope.dictionaries.autoencoder import Step
from sparsescope.dictionaries.choice import BatchTopKSAE, FeatureChoiceSAE, MutualChoiceSAE, whole_quotas
from sparsescope.dictionaries.codes import SparseCodes
from sparsescope.dictionaries.jumprelu import JumpReLUSAE
from sparsescope.dictionaries.matryoshka import MatryoshkaSAE
from sparsescope.dictionaries.thresholds import set_thresholds
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.dictionaries.train import Settings
from sparsescope.errors import SparsescopeError, SpecError

D, WIDTH, K, OUT = 12, 40, 4, 10
TRAINED = sorted(name for name, entry in ARCHITECTURES.items() if entry.trained)
ALL = sorted(ARCHITECTURES)
each = pytest.mark.parametrize("name", ALL)


def rng(seed):
    return torch.Generator().manual_seed(seed)


def some_rows(count=200, seed=0, dtype=torch.float32, d=D):
    return torch.randn(count, d, generator=rng(seed), dtype=dtype) * 2 + 0.5


def fresh(name, **more):
    """An untrained dictionary; those that have a k have ``K``."""
    given = {"k": K} if "k" in ARCHITECTURES[name].load().settings else {}
    if name == "transcoder":
        given |= {"site_out": "out", "d_out": OUT}
    return make(name, D, WIDTH, **{**given, **more})


def filled(name, seed=1, **more):
    """A dictionary with random parameters, decoder rows of norm 1, thresholds set."""
    found = fresh(name, **more)
    generator = rng(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        found.decoder.div_(found.decoder.norm(dim=1, keepdim=True))
        if isinstance(found, JumpReLUSAE):
            found.threshold.abs_().mul_(2)
    if isinstance(found, FeatureChoiceSAE):
        found.density.copy_(torch.rand(WIDTH, generator=generator).square().mul_(0.3))
        found.fit_quota()
    return set_thresholds(found, some_rows(400, 5, found.encoder.dtype))


def at(found, dead=None, progress=0.0, variance=7.0, warmup=1.0):
    dead = torch.zeros(found.width, dtype=torch.bool) if dead is None else dead
    return Step(progress, warmup, dead, variance)


def dense_scores(found, rows):
    shifted = rows - found.decoder_bias if found.subtract_decoder_bias else rows
    return shifted @ found.encoder.T + found.encoder_bias


def same_codes(a, b, **tolerance):
    assert torch.equal(a.indices, b.indices) and torch.equal(a.offsets, b.offsets) and a.width == b.width
    torch.testing.assert_close(a.values, b.values, **tolerance)


# The rules


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_topk_is_exactly_k_and_deterministic(dtype):
    found = filled("topk", dtype=dtype)
    with torch.no_grad():
        found.encoder_bias.add_(10)
    rows = some_rows(dtype=found.encoder.dtype)
    codes = found.encode(rows)
    assert (codes.active_per_row == K).all() and (codes.values > 0).all()
    scores = dense_scores(found, rows).detach()
    assert torch.equal(
        codes.dense() != 0, torch.zeros_like(scores).scatter(1, scores.topk(K).indices, 1) != 0
    )
    again = found.encode(rows)
    assert torch.equal(codes.values, again.values) and torch.equal(codes.indices, again.indices)
    with torch.no_grad():
        found.encoder.zero_()  # all scores are equal
        found.encoder_bias.fill_(1.0)
    assert torch.equal(found.encode(rows).indices.reshape(-1, K), torch.arange(K).int().expand(200, K))


def test_topk_keeps_fewer_where_fewer_are_positive():
    found = filled("topk")
    with torch.no_grad():
        found.encoder_bias.sub_(1.5)
    rows = some_rows()
    positive = (dense_scores(found, rows) > 0).sum(1)
    assert (positive < K).any() and (positive > K).any()
    assert torch.equal(found.encode(rows).active_per_row, positive.clamp(max=K))


def test_abstopk_keeps_signs():
    found = filled("abstopk")
    rows = some_rows()
    scores = dense_scores(found, rows).detach()
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.abs().topk(K).indices, True)
    torch.testing.assert_close(found.encode(rows).dense(), torch.where(kept, scores, 0), rtol=1e-5, atol=1e-5)
    assert (found.encode(rows).values < 0).any()


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka", "transcoder"])
def test_a_batch_has_exactly_k_n_matches_also_after_other_batches(name):
    """The last threshold is where the next search begins, and must not change what is found."""
    found, rows = filled(name), some_rows()
    scores = dense_scores(found, rows).detach()
    least = scores.flatten().topk(K * 200).values[-1]
    shifted = found._shifted(rows)
    first = found.allocate(shifted, at(found))
    assert found._low > 0
    found.allocate(shifted * 0.05, at(found))  # far below: the search begins again
    low = found._low
    second = found.allocate(shifted, at(found))
    found.allocate(shifted * 50, at(found))
    assert found._low > low
    third = found.allocate(shifted, at(found))
    for entries in (first, second, third):
        assert len(entries.scores) == K * 200 and float(entries.scores.min()) == pytest.approx(float(least))
        assert torch.equal(entries.indices, first.indices) and torch.equal(entries.offsets, first.offsets)


def test_ties_of_a_batch_go_to_the_first():
    found = fresh("batch_topk")
    with torch.no_grad():
        found.encoder.zero_()
        found.encoder_bias.fill_(1.0)
    entries = found.allocate(some_rows(10), at(found))
    assert entries.offsets.tolist() == [0] + [40] * 10, "the first row takes the whole budget of 4 x 10"
    with torch.no_grad():
        found.encoder_bias[::2] = 2.0
        found.k = 25
    entries = found.allocate(some_rows(10), at(found))
    assert entries.offsets.diff().tolist() == [40, 40, 30] + [20] * 7


def test_a_batch_with_too_few_positive_scores_keeps_all_of_them():
    found = fresh("batch_topk")
    with torch.no_grad():
        found.encoder_bias.sub_(4.0)
    rows = some_rows()
    entries = found.allocate(rows, at(found))
    assert len(entries.scores) == int((dense_scores(found, rows) > 0).sum()) < K * 200 and found._low == 0


def test_mutual_choice_is_another_name():
    assert MutualChoiceSAE is BatchTopKSAE
    assert (
        find_architecture("mutual_choice").name == "batch_topk"
        and find_architecture("standard").name == "relu"
    )
    assert all(entry.load().architecture == name for name, entry in ARCHITECTURES.items())
    assert set(ALIASES.values()) <= set(ARCHITECTURES)


def test_gated_and_relu_and_jumprelu_by_their_formulas():
    rows = some_rows()
    gated = filled("gated")
    shifted = rows - gated.decoder_bias
    plain = shifted @ gated.encoder.T
    wanted = ((plain + gated.encoder_bias) > 0) * (
        plain * gated.magnitude_log.exp() + gated.magnitude_bias
    ).clamp(min=0)
    torch.testing.assert_close(gated.encode(rows).dense(), wanted.detach(), rtol=1e-4, atol=1e-5)
    relu = filled("relu")
    torch.testing.assert_close(
        relu.encode(rows).dense(), dense_scores(relu, rows).detach().clamp(min=0), rtol=1e-5, atol=1e-5
    )
    jump = filled("jumprelu")
    scores = dense_scores(jump, rows).detach()
    torch.testing.assert_close(
        jump.encode(rows).dense(),
        torch.where(scores > jump.threshold, scores, 0).detach(),
        rtol=1e-5,
        atol=1e-5,
    )
    with torch.no_grad():
        jump.threshold.fill_(-5.0)  # there is a ReLU inside
    assert (jump.encode(rows).values > 0).all()


def test_layer_norm_standardises_each_row_and_undoes_it():
    found = filled("relu", normalize="layer_norm")
    rows = some_rows()
    mean, std = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
    plain = filled("relu")
    normal = (rows - mean) / (std + 1e-5)
    same_codes(found.encode(rows), plain.encode(normal))
    torch.testing.assert_close(found.reconstruct(rows), plain.reconstruct(normal) * std + mean)
    with pytest.raises(SpecError, match="needs the row itself"):
        found.decode(found.encode(rows))


# Losses and gradients


def check_gradients(found, rows, target, step, names):
    """Directional derivatives of the loss against central differences."""
    loss = found.loss(rows, target, step)
    parameters = {name: getattr(found, name) for name in names}
    gradients = torch.autograd.grad(loss.total, list(parameters.values()))
    for seed, (parameter, gradient) in enumerate(zip(parameters.values(), gradients, strict=True)):
        direction = torch.randn(parameter.shape, generator=rng(seed), dtype=parameter.dtype)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * direction)
                ends.append(float(found.loss(rows, target, step).total))
                parameter.sub_(sign * 1e-6 * direction)
        assert float((gradient * direction).sum()) == pytest.approx(
            (ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7
        )


EVERYTHING = ("encoder", "encoder_bias", "decoder", "decoder_bias")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("relu", {"l1": 0.3}),
        ("relu", {"subtract_decoder_bias": False}),
        ("topk", {}),
        ("batch_topk", {}),
        ("feature_choice", {"aux_weight": 0}),
        ("matryoshka", {"prefixes": [3, 17, 40]}),
        ("transcoder", {"skip": True}),
        ("jumprelu", {"penalty_kind": "quadratic"}),
        ("jumprelu", {"penalty_kind": "step"}),
        ("jumprelu", {"penalty_kind": "tanh", "penalty_weight": 0.7}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gradients_equal_finite_differences_where_the_loss_is_smooth(name, more):
    """A step of 1e-6 moves no score over a threshold; thresholds have gradients of their own kind."""
    found = filled(name, dtype="float64", **more)
    rows = some_rows(30, 3, torch.float64)
    target = some_rows(30, 4, torch.float64, OUT) if name == "transcoder" else rows
    names = (*EVERYTHING, "skip_weight") if found.skip_weight is not None else EVERYTHING
    check_gradients(found, rows, target, at(found, warmup=0.6), names)


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_is_the_fraction_of_variance_unexplained(name):
    """By dense algebra from the entries that were chosen, with the weight of the step."""
    found, rows = filled(name), some_rows(50)
    target = some_rows(50, 4, d=OUT) if name == "transcoder" else rows
    loss = found.loss(rows, target, at(found, variance=11.0))
    made = loss.codes.dense() @ found.decoder + found.decoder_bias
    fvu = float((target - made).square().sum() / 50 / 11.0)
    assert loss.parts["fvu"] == pytest.approx(fvu, rel=1e-5)
    penalty = sum(value for part, value in loss.parts.items() if part != "fvu")
    if name != "matryoshka":
        assert float(loss.total) == pytest.approx(fvu + penalty, rel=1e-5)
    assert not loss.codes.values.requires_grad and (loss.codes.values != 0).all()


def test_the_l1_penalty_is_in_units_of_the_root_of_the_variance():
    found, rows = filled("relu", l1=0.3), some_rows(50)
    loss = found.loss(rows, rows, at(found, variance=9.0, warmup=0.5))
    assert loss.parts["l1"] == pytest.approx(0.3 * 0.5 * float(loss.codes.values.sum()) / 50 / 3.0, rel=1e-5)


@pytest.mark.parametrize("name", ["topk", "batch_topk", "feature_choice", "matryoshka"])
def test_dead_features_have_a_loss_of_their_own(name):
    from sparsescope.dictionaries.dead_features import reviving_loss

    found, rows = filled(name, aux_k=3, aux_weight=0.5), some_rows(50)
    if name == "feature_choice":
        found.aux_zipf = 0.0
    dead = torch.arange(WIDTH) % 5 == 0
    loss = found.loss(rows, rows, at(found, dead))
    residual = (rows - loss.codes.dense() @ found.decoder - found.decoder_bias).detach()
    shifted = (rows - found.decoder_bias).detach()
    wanted = reviving_loss(found.encoder, found.encoder_bias, found.decoder, None, shifted, residual, dead, 3)
    assert loss.parts["aux"] == pytest.approx(0.5 * float(wanted), rel=1e-4)
    assert "aux" not in found.loss(rows, rows, at(found)).parts
    found.aux_weight = 0.0
    assert "aux" not in found.loss(rows, rows, at(found, dead)).parts


def test_the_default_of_aux_k():
    assert (
        fresh("topk").aux_k == D // 2
        and make("topk", 2000, 50).aux_k == 256
        and make("topk", 1, 50).aux_k == 1
    )
    assert fresh("transcoder").aux_k == OUT // 2


def near_kernel(scores, thresholds, bandwidth):
    return (((scores - thresholds) / bandwidth).abs() < 0.5).to(scores.dtype)


def jump_parts(more=None):
    """Dictionary, rows, dense scores and which are positive; some are near a threshold, some are not."""
    found = filled("jumprelu", dtype="float64", bandwidth=0.8, **(more or {}))
    with torch.no_grad():
        found.threshold.copy_(torch.rand(WIDTH, generator=rng(8)) * 2)
    rows = some_rows(60, 3, torch.float64)
    scores = dense_scores(found, rows).detach()
    return found, rows, scores, scores > 0


def test_straight_through_gradients_of_the_values_equal_the_kernel_formulas():
    found, rows, scores, positive = jump_parts()
    entries = found.allocate(found._shifted(rows), at(found))
    weights = torch.randn(60, WIDTH, generator=rng(2), dtype=torch.float64)
    row = torch.repeat_interleave(torch.arange(60), entries.offsets.diff())
    leaf = entries.scores.clone().requires_grad_()
    values = found.activate(leaf, entries)
    (values * weights[row, entries.indices.long()]).sum().backward()
    theta = found.threshold.detach()
    kernel = near_kernel(scores, theta, 0.8) * positive
    wanted = (-(theta / 0.8) * kernel * weights).sum(0)
    torch.testing.assert_close(found.threshold.grad, wanted)
    assert ((kernel > 0) & (scores < theta)).any() and ((kernel > 0) & (scores > theta)).any()
    open_ = (scores > theta)[row, entries.indices.long()]
    torch.testing.assert_close(leaf.grad, torch.where(open_, weights[row, entries.indices.long()], 0))
    torch.testing.assert_close(values.detach(), torch.where(open_, entries.scores, 0))


@pytest.mark.parametrize("kind", ["quadratic", "step", "tanh"])
def test_the_penalties_of_jumprelu_equal_their_formulas(kind):
    found, rows, scores, positive = jump_parts({"penalty_kind": kind, "penalty_weight": 0.3, "k": 6})
    theta = found.threshold.detach()
    loss = found.loss(rows, rows, at(found, warmup=0.5))
    open_ = scores > theta
    l0 = float(open_.sum()) / 60
    kernel = near_kernel(scores, theta, 0.8) * positive
    of_count = -kernel.sum(0) / 0.8 / 60
    weight = 0.3 * 0.5
    value, of_threshold = {
        "quadratic": (weight * (l0 / 6 - 1) ** 2, weight * 2 * (l0 / 6 - 1) / 6 * of_count),
        "step": (weight * l0 / 6, weight / 6 * of_count),
        "tanh": (
            float(weight * torch.tanh(4 * scores * open_).sum() / 60 / 6),
            # dz/dtheta times the slope at z, which is 1 where nothing is open yet
            weight / 360 * (-(theta / 0.8) * kernel * 4 / torch.cosh(4 * scores * open_) ** 2).sum(0),
        ),
    }[kind]
    assert loss.parts["sparsity"] == pytest.approx(value, rel=1e-9)
    residual = (rows - loss.codes.dense() @ found.decoder - found.decoder_bias).detach()
    of_values = -2 * residual @ found.decoder.detach().T / (60 * 7.0)
    of_error = (-(theta / 0.8) * kernel * of_values).sum(0)
    (gradient,) = torch.autograd.grad(loss.total, [found.threshold])
    torch.testing.assert_close(gradient, of_error + of_threshold, rtol=1e-8, atol=1e-12)
    assert l0 != 6 and found.encode(rows).active_per_row.double().mean() == pytest.approx(l0)


def test_jumprelu_begins_at_four_k_and_its_thresholds_stay_positive():
    found, sample = fresh("jumprelu"), some_rows(2000)
    found.begin(sample.mean(0), sample.mean(0), sample, True)
    shifted = sample - sample.mean(0)
    last = torch.sort(shifted @ found.encoder.T, descending=True).values[:, 4 * K - 1]
    assert float(found.threshold.detach().unique()) == pytest.approx(float(last.median()), rel=0.05)
    assert float(found.encode(sample).active_per_row.double().mean()) == pytest.approx(4 * K, rel=0.1)
    with torch.no_grad():
        found.threshold[0] = -1.0
    found.after_update()
    assert float(found.threshold.detach().min()) == 0.0
    assert copy.deepcopy(found).threshold.shape == (WIDTH,)
    found.loss(sample, sample, at(found))
    assert found._scores is None, "the graph of the last step is held"
    copy.deepcopy(found)


def test_the_mean_is_taken_out_at_the_beginning():
    mean, mean_out, sample = (
        torch.randn(D, generator=rng(1)),
        torch.randn(OUT, generator=rng(2)),
        some_rows(50),
    )
    plain, other = fresh("topk"), fresh("transcoder")
    plain.begin(mean, mean, sample, True)
    assert torch.equal(plain.decoder_bias, mean) and not plain.encoder_bias.any()
    other.begin(mean, mean_out, sample, True)
    assert torch.equal(other.decoder_bias, mean_out)
    torch.testing.assert_close(dense_scores(other, sample), (sample - mean) @ other.encoder.T)
    for found in (fresh("topk"), fresh("transcoder")):
        found.begin(mean, mean_out if found.d_out == OUT else mean, sample, False)
        assert not found.decoder_bias.any() and not found.encoder_bias.any()


@pytest.mark.parametrize("prefixes", [[40], [1, 2, 40], [5, 20, 39, 40], None])
def test_the_loss_of_matryoshka_is_the_mean_of_nested_reconstructions(prefixes):
    found = filled("matryoshka", dtype="float64", prefixes=prefixes)
    rows = some_rows(30, 3, torch.float64)
    loss = found.loss(rows, rows, at(found))
    parameters = [found.encoder, found.encoder_bias, found.decoder, found.decoder_bias]
    sparse = torch.autograd.grad(loss.total, parameters)
    mask = loss.codes.dense() != 0
    z = torch.where(mask, (rows - found.decoder_bias) @ found.encoder.T + found.encoder_bias, 0)
    errors = [
        (rows - z[:, :width] @ found.decoder[:width] - found.decoder_bias).square().sum() / 30 / 7.0
        for width in found.prefixes
    ]
    total = torch.stack(errors).mean()
    torch.testing.assert_close(loss.total, total)
    for mine, dense in zip(sparse, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(mine, dense)
    assert loss.parts["fvu"] == pytest.approx(float(errors[-1]))
    if prefixes is None:
        assert found.prefixes == [2, 5, 10, 20, 40]


# Feature Choice


def test_every_feature_gets_exactly_its_quota():
    found, rows = filled("feature_choice"), some_rows(300)
    quotas = found.quotas(300)
    assert int(quotas.sum()) == K * 300 and quotas.min() >= 1 and quotas.max() > 3 * quotas.min()
    entries = found.allocate(found._shifted(rows), at(found, progress=0.7))
    assert torch.bincount(entries.indices.long(), minlength=WIDTH).tolist() == quotas.tolist()
    scores = dense_scores(found, rows).detach()
    for f in range(WIDTH):
        mine = entries.scores[entries.indices == f]
        wanted = scores[:, f].topk(int(quotas[f])).values
        torch.testing.assert_close(mine.sort(descending=True).values, wanted, rtol=1e-5, atol=1e-5)
    rows_of = torch.repeat_interleave(torch.arange(300), entries.offsets.diff())
    torch.testing.assert_close(entries.scores, scores[rows_of, entries.indices.long()], rtol=1e-5, atol=1e-5)
    keys = rows_of * WIDTH + entries.indices
    assert (keys.diff() > 0).all(), "indices do not ascend in the rows"
    again = found.allocate(found._shifted(rows), at(found, progress=0.7))
    assert torch.equal(again.indices, entries.indices) and torch.equal(again.scores, entries.scores)


def test_feature_choice_does_not_depend_on_how_many_features_are_scored_at_once(monkeypatch):
    from sparsescope.dictionaries import choice

    found, rows = filled("feature_choice"), some_rows(100)
    first = found.chosen_by_features(rows, found.quotas(100))
    monkeypatch.setattr(choice, "FEATURES", 7)
    second = found.chosen_by_features(rows, found.quotas(100))
    assert torch.equal(first.indices, second.indices) and torch.equal(first.offsets, second.offsets)


def test_ties_of_a_feature_go_to_the_first_rows():
    found = fresh("feature_choice").with_uniform_quota()
    with torch.no_grad():
        found.encoder.zero_()
    entries = found.allocate(some_rows(20), at(found, progress=1.0))
    assert entries.offsets.tolist() == [40, 80][:0] + [0, 40, 80] + [80] * 18, "two rows for each feature"


def test_negative_scores_that_are_allotted_count_as_zero():
    found = fresh("feature_choice").with_uniform_quota()
    with torch.no_grad():
        found.encoder_bias.sub_(100.0)
    rows = some_rows(50)
    assert len(found.allocate(rows, at(found, progress=1.0)).scores) == K * 50
    loss = found.loss(rows, rows, at(found, progress=1.0))
    assert len(loss.codes.values) == 0 and torch.isfinite(loss.total)
    loss.total.backward()
    assert torch.isfinite(found.encoder.grad).all()
    set_thresholds(found, rows)
    assert float(found.threshold.min()) == 0.0, "a threshold below 0 would not be that of a ReLU"


def test_a_uniform_quota_gives_every_feature_the_same():
    found = fresh("feature_choice").with_uniform_quota()
    assert found.quotas(200).tolist() == [K * 200 // WIDTH] * WIDTH
    assert sorted(found.quotas(3).tolist()) == [0] * (WIDTH - 12) + [1] * 12, "fewer matches than features"


def test_quotas_follow_the_ranks_of_the_densities():
    found = fresh("feature_choice", k=8)
    found.density.copy_((torch.arange(WIDTH, 0, -1) + 2.0) ** -1.3 * 3)
    found.fit_quota()
    alpha, beta = found.zipf.tolist()
    assert alpha == pytest.approx(1.3, rel=0.02) and beta == pytest.approx(2.0, rel=0.1)
    assert (found.quota.diff() > 0).all() and float(found.quota.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(found.quota, found.density / found.density.sum(), rtol=0.02, atol=0)


@pytest.mark.parametrize("density", [torch.full((WIDTH,), 0.1), torch.zeros(WIDTH), torch.eye(WIDTH)[0]])
def test_without_a_law_the_shares_are_equal(density):
    """Densities that are all equal, or hardly any: no law can be fitted, which must not end in NaN."""
    found = fresh("feature_choice", mutual_share=0.0)
    found.density.copy_(density)
    entries = found.allocate(some_rows(100), at(found))
    assert torch.bincount(entries.indices.long(), minlength=WIDTH).tolist() == [10] * WIDTH
    assert found.zipf.tolist() == [0.0, 0.0]


def test_the_first_phase_is_mutual_choice():
    found, other, rows = fresh("feature_choice", mutual_share=0.4), fresh("batch_topk"), some_rows(50)
    wanted = other.allocate(rows, at(other))
    entries = found.allocate(rows, at(found, progress=0.39))
    assert torch.equal(entries.indices, wanted.indices) and not found.quota.any()
    found.density.copy_(torch.rand(WIDTH, generator=rng(3)))
    found.allocate(rows, at(found, progress=0.4))
    assert found.quota.any()
    never = fresh("feature_choice", mutual_share=1.0)
    never.allocate(rows, at(never, progress=0.999))
    assert not never.quota.any()


def test_densities_are_followed():
    found, rows = fresh("feature_choice"), some_rows(50)
    loss = found.loss(rows, rows, at(found))
    wanted = 0.99 * K / WIDTH + 0.01 * loss.codes.rows_per_feature / 50
    torch.testing.assert_close(found.density, wanted)


def test_features_below_their_expected_density_are_brought_back():
    found = fresh("feature_choice", aux_zipf=0.5)
    dead = torch.arange(WIDTH) == 7
    found.density.fill_(K / WIDTH)
    found.density[3] = 0.49 * K / WIDTH
    found.density[4] = 0.51 * K / WIDTH
    assert found.unused(at(found, dead)).nonzero().flatten().tolist() == [3, 7]
    found.quota.fill_(1 / WIDTH)
    found.quota[5] = 3 / WIDTH
    assert found.unused(at(found, dead)).nonzero().flatten().tolist() == [3, 5, 7]
    found.aux_zipf = 0.0
    assert found.unused(at(found, dead)).nonzero().flatten().tolist() == [7]


@settings(max_examples=150, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-9, 0.01, 0.3, 1.0, 5.0, 1e4]), min_size=1, max_size=30),
    total=st.integers(0, 400),
    most=st.integers(1, 40),
)
def test_whole_quotas(weights, total, most):
    shares = np.array(weights) + 1e-12
    shares /= shares.sum()
    found = whole_quotas(shares, total, most)
    wanted = min(total, most * len(shares))
    least = 1 if wanted >= len(shares) else 0
    assert found.dtype == np.int64 and found.sum() == wanted
    assert found.min() >= least and found.max() <= most
    order = np.argsort(shares, kind="stable")
    assert (np.diff(found[order])[np.diff(shares[order]) > 0] >= -1).all(), "a larger share gets less"
    exact = shares * total
    if (exact >= least).all() and (exact <= most).all():
        assert (np.abs(found - exact) <= 1 + 1e-6).all()


def test_whole_quotas_round_by_largest_remainder():
    assert whole_quotas(np.array([0.45, 0.36, 0.19]), 10, 10).tolist() == [4, 4, 2]
    assert whole_quotas(np.array([0.5, 0.5]), 3, 9).tolist() == [2, 1], "of equal remainders the first"
    assert whole_quotas(np.array([0.98, 0.01, 0.01]), 100, 50).tolist() == [50, 25, 25]
    assert whole_quotas(np.array([0.9, 0.08, 0.02]), 100, 50).tolist() == [50, 40, 10], "not in proportion"
    assert whole_quotas(np.array([0.97, 0.01, 0.01, 0.01]), 5, 4).tolist() == [2, 1, 1, 1]


def test_the_exported_rule_has_the_densities_of_the_quotas():
    """T14: a JumpReLU autoencoder whose densities on the calibration rows are the quotas."""
    found, rows = filled("feature_choice", k=3), some_rows(4000, 6)
    with torch.no_grad():
        found.encoder_bias.zero_()
    set_thresholds(found, rows)
    exported = found.to_inference()
    assert exported.architecture == "jumprelu" and exported.metadata["trained_as"] == "feature_choice"
    counts = exported.encode(rows).rows_per_feature
    quotas = found.quotas(4000)
    assert quotas.max() > 4 * quotas.min()
    assert ((counts - quotas).abs() <= 1 + 0.001 * quotas).all(), "within one row"
    other = exported.encode(some_rows(40_000, 9)).rows_per_feature / 10
    assert float((other - quotas).abs().sum() / quotas.sum()) < 0.05


# What is done to a dictionary


@each
def test_to_inference_encodes_the_same(name):
    found, rows = filled(name), some_rows()
    other = found.to_inference()
    same_codes(other.encode(rows), found.encode(rows))
    assert torch.equal(other.reconstruct(rows), found.reconstruct(rows))
    assert other.to_inference() is other and (other.site, other.site_out) == (found.site, found.site_out)
    assert type(other)(**other.config).config == other.config


@pytest.mark.parametrize("name", ["batch_topk", "feature_choice", "matryoshka", "transcoder"])
def test_a_rule_of_the_batch_has_no_codes_before_its_threshold_is_set(name):
    found = fresh(name)
    for call in (lambda: found.encode(some_rows()), found.to_inference):
        with pytest.raises(SpecError, match="threshold of this dictionary is not set"):
            call()


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_codes_of_a_row_do_not_depend_on_other_rows_or_on_blocks(name, dtype, monkeypatch):
    found = filled(name, dtype=dtype)
    rows = some_rows(90, dtype=found.encoder.dtype)
    whole = found.encode(rows)
    near = {"rtol": 1e-5, "atol": 1e-5}
    for begin, end in ((0, 1), (17, 18), (5, 90)):
        same_codes(whole.part(begin, end), found.encode(rows[begin:end]), **near)
    same_codes(SparseCodes.joined([found.encode(part) for part in rows.split(7)]), whole, **near)
    monkeypatch.setattr(entries_module, "BLOCK_BYTES", 1)
    same_codes(found.encode(rows), whole, **near)


@each
def test_shapes_of_the_input(name):
    """T18: [batch, position, d], [batch, position, head, d_head], one row, no row."""
    found, rows = filled(name), some_rows(30)
    codes, made = found.reconstruct_rows(rows)
    for shape, leading in (
        ((5, 6, D), (5, 6)),
        ((5, 6, 3, 4), (5, 6)),
        ((2, 15, 2, 2, 3), (2, 15)),
        ((30, D, 1), (30,)),
    ):
        x = rows.reshape(shape)
        same_codes(found.encode(x), codes, rtol=1e-5, atol=1e-5)
        out = found.reconstruct(x)
        assert out.shape == (shape if found.d_out == D else (*leading, OUT))
        torch.testing.assert_close(out.reshape(30, -1), made, rtol=1e-5, atol=1e-5)
    for shape in ((0, D), (0, 6, D), (4, 0, 3, 4)):
        empty = torch.zeros(shape)
        nothing = found.encode(empty)
        assert len(nothing) == 0 and nothing.width == WIDTH and nothing.offsets.tolist() == [0]
        assert found.reconstruct(empty).numel() == 0
        if found.d_out == D:
            assert found.reconstruct(empty).shape == shape
    one = found.encode(rows[3])
    assert len(one) == 1 and found.reconstruct(rows[3]).shape == (found.d_out,)
    same_codes(one, codes.part(3, 4), rtol=1e-5, atol=1e-5)
    same_codes(found.encode(rows.T.contiguous().T), codes, rtol=1e-5, atol=1e-5)


@each
def test_rows_that_cannot_be_encoded_are_refused(name):
    found = filled(name)
    for bad in (float("nan"), float("inf"), -float("inf")):
        rows = some_rows(10)
        rows[4, 2] = bad
        rows[7, 1] = bad
        with pytest.raises(SpecError, match=r"NaN or infinite[\s\S]*row 4[\s\S]*2 of 10"):
            found.encode(rows)
    for shape in ((3, D + 1), (D, 3), (3, 2 * D), (), (5, 7, 2)):
        with pytest.raises(SpecError, match="another width"):
            found.encode(torch.zeros(shape))
    huge = torch.full((2, D), 3e38)  # finite, and their sum is not
    if name == "topk":
        assert len(found.encode(huge * 1e-20 * 1e20)) == 2


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rescale_undoes_the_scale_of_training(name, dtype):
    """A dictionary of rows / s becomes one of the rows: its codes and its output are s times as large."""
    found = filled(name, dtype=dtype, **({"skip": True} if name == "transcoder" else {}))
    with torch.no_grad():
        found.decoder_bias.add_(0.3)
    rows = some_rows(100, dtype=found.encoder.dtype)
    scale_in, scale_out = (8.0, 2.0) if name == "transcoder" else (8.0, 8.0)
    codes, made = found.reconstruct_rows(rows)
    bandwidth = getattr(found, "bandwidth", None)
    found.rescale(scale_in, scale_out)
    after, remade = found.reconstruct_rows(rows * scale_in)
    same_codes(after, SparseCodes(codes.indices, codes.values * scale_out, codes.offsets, WIDTH))
    torch.testing.assert_close(remade, made * scale_out)
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(WIDTH, dtype=found.encoder.dtype))
    if bandwidth is not None:
        assert found.bandwidth == bandwidth * scale_out
    same_codes(found.to_inference().encode(rows * scale_in), after)


@each
def test_folding_the_norms_of_the_decoder_changes_nothing_else(name):
    """T12: codes times directions and reconstructions stay, with thresholds."""
    found, rows = filled(name), some_rows(100)
    with torch.no_grad():
        norms = (
            torch.full((WIDTH,), 3.0)
            if "topk" in name and name != "batch_topk"
            else torch.rand(WIDTH, generator=rng(3)) + 0.5
        )
        found.decoder.mul_(norms[:, None])
        if name == "relu":
            found.decoder[2] = 0.0
            norms[2] = 1.0
    codes, made = found.reconstruct_rows(rows)
    found.fold_decoder_norm()
    after, remade = found.reconstruct_rows(rows)
    same_codes(
        after, SparseCodes(codes.indices, codes.values * norms[codes.indices.long()], codes.offsets, WIDTH),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    torch.testing.assert_close(remade, made, rtol=1e-4, atol=1e-4)
    unit = torch.ones(WIDTH)
    if name == "relu":
        unit[2] = 0.0
    torch.testing.assert_close(found.directions.norm(dim=1), unit)
    same_codes(found.to_inference().encode(rows), after)
    again = found.encode(rows)
    found.fold_decoder_norm()
    same_codes(found.encode(rows), again)


@pytest.mark.parametrize("name", ["topk", "abstopk"])
def test_different_norms_cannot_be_folded_into_topk(name):
    found = filled(name)
    with torch.no_grad():
        found.decoder[5] *= 2
    with pytest.raises(SpecError, match="cannot be folded"):
        found.fold_decoder_norm()


def test_a_transcoder_writes_another_site():
    found, rows = filled("transcoder", skip=True, site="in"), some_rows(20)
    codes, made = found.reconstruct_rows(rows)
    assert (found.site, found.site_out, found.d_in, found.d_out) == ("in", "out", D, OUT)
    assert (
        made.shape == (20, OUT) and found.directions.shape == (WIDTH, OUT) and not found.subtract_decoder_bias
    )
    wanted = codes.dense() @ found.decoder + found.decoder_bias + rows @ found.skip_weight.T
    torch.testing.assert_close(made, wanted.detach())
    with pytest.raises(SpecError, match="needs the row itself"):
        found.decode(codes)
    plain = filled("transcoder")
    codes = plain.encode(rows)
    torch.testing.assert_close(plain.decode(codes), plain.reconstruct(rows))
    same = fresh("transcoder", d_out=D)
    assert not same.subtract_decoder_bias and torch.equal(same.encoder, same.decoder)
    assert torch.allclose(fresh("transcoder").encoder.norm(dim=1), torch.ones(WIDTH))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@each
def test_half_precision_encodes(name, kind):
    found = filled(name, dtype=kind)
    codes, made = found.reconstruct_rows(some_rows(20))
    assert codes.values.dtype == made.dtype == getattr(torch, kind) and made.isfinite().all()


# Wrong settings


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fresh("topk", k=0), r"k is not possible[\s\S]*TopKSAE\(k\)[\s\S]*1 to 40"),
        (lambda: fresh("topk", k=WIDTH + 1), r"k is not possible[\s\S]*41"),
        (lambda: fresh("batch_topk", k=2.5), "k is not possible"),
        (lambda: fresh("jumprelu", k=0), r"k is not possible[\s\S]*JumpReLUSAE"),
        (lambda: fresh("topk", k=True), "k is not possible"),
        (lambda: make("topk", D, 0, k=1), "width is not possible"),
        (lambda: make("relu", 0, 4), "d_in is not possible"),
        (lambda: make("relu", D, "4"), "width is not possible"),
        (lambda: make("transcoder", D, 4, k=1, site_out="o", d_out=0), "d_out is not possible"),
        (lambda: fresh("topk", aux_k=0), "aux_k is not possible"),
        (lambda: fresh("topk", aux_weight=float("nan")), "aux_weight is not possible"),
        (lambda: fresh("relu", l1=-1.0), "l1 is not possible"),
        (lambda: fresh("relu", l1=float("inf")), "l1 is not possible"),
        (lambda: fresh("relu", l1="x"), "l1 is not possible"),
        (lambda: fresh("feature_choice", mutual_share=-0.1), "mutual_share is not possible"),
        (lambda: fresh("feature_choice", aux_zipf=float("nan")), "aux_zipf is not possible"),
        (lambda: fresh("jumprelu", penalty_kind="l1"), r"penalty[\s\S]*quadratic, step, tanh"),
        (lambda: fresh("jumprelu", bandwidth=0.0), "bandwidth"),
        (lambda: fresh("jumprelu", bandwidth=float("nan")), "bandwidth is not possible"),
        (lambda: fresh("jumprelu", penalty_weight=-1), "penalty_weight is not possible"),
        (lambda: fresh("topk", normalize="batch"), r"setting of the dictionary is unknown[\s\S]*layer_norm"),
        (lambda: fresh("topk", dtype="int8"), r"setting of the dictionary is unknown[\s\S]*bfloat16"),
        (lambda: fresh("topk", sparsity=3), r"setting of the dictionary is unknown[\s\S]*sparsity"),
        (lambda: make("topkk", D, 4), r"unknown architecture of a dictionary 'topkk'[\s\S]*topk"),
        (lambda: make("transcoder", D, 4, k=1), "needs the site that it writes"),
        (lambda: make("relu", D, 4, d_out=5, subtract_decoder_bias=True), "cannot be subtracted"),
        (lambda: fresh("matryoshka", prefixes=[]), r"prefixes are not possible[\s\S]*last one 40"),
        (lambda: fresh("matryoshka", prefixes=[10, 20]), "prefixes are not possible"),
        (lambda: fresh("matryoshka", prefixes=[20, 10, 40]), "prefixes are not possible"),
        (lambda: fresh("matryoshka", prefixes=[10, 10, 40]), "prefixes are not possible"),
        (lambda: fresh("matryoshka", prefixes=[0, 40]), "prefixes are not possible"),
        (lambda: fresh("matryoshka", prefixes=[2.5, 40]), "prefixes are not possible"),
        (lambda: fresh("matryoshka", prefixes="ab"), "prefixes are not possible"),
        (lambda: Settings(learning_rate=float("nan")), "learning rate is not possible"),
        (lambda: Settings(learning_rate=0.0), "learning rate is not possible"),
        (lambda: Settings(learning_rate=float("inf")), "learning rate is not possible"),
        (lambda: Settings(warmup=1.0), "share of the steps"),
        (lambda: Settings(warmup=float("nan")), "share of the steps"),
        (lambda: Settings(decay=-0.1), "share of the steps"),
        (lambda: Settings(dead_window=0), "dead window is not possible"),
        (lambda: Settings(dead_window=-5), "dead window is not possible"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_at_construction(call, message):
    with pytest.raises(SparsescopeError, match=message):
        call()


@pytest.mark.parametrize("name", ["gated", "abstopk"])
def test_what_is_only_read_is_not_trained(name):
    found, rows = filled(name), some_rows()
    with pytest.raises(SpecError, match="read from files, and not trained"):
        found.loss(rows, rows, at(found))


def test_defaults_and_seeds():
    assert fresh("jumprelu", k=None).k == 32 and make("jumprelu", D, 8).k == 8
    a, b, c = (fresh("topk", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.encoder, b.encoder) and not torch.equal(a.encoder, c.encoder)
    assert torch.equal(a.encoder, a.decoder) and torch.allclose(a.decoder.norm(dim=1), torch.ones(WIDTH))
    assert (
        Settings().rate(4096) == 1e-3
        and Settings().rate(16384) == 5e-4
        and Settings(learning_rate=3e-4).rate(7) == 3e-4
    )


# Thresholds


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka", "transcoder"])
@pytest.mark.parametrize("l0", [None, 0.01, 1.5, 4, 9.37])
def test_a_threshold_for_all_gives_the_number_of_active_features_exactly(name, l0):
    found, rows = filled(name), some_rows(1000, 11)
    assert set_thresholds(found, rows.split(130), l0) is found
    assert len(found.encode(rows).values) == round((K if l0 is None else l0) * 1000)
    threshold = found.threshold.clone()
    set_thresholds(found, rows, l0)
    torch.testing.assert_close(found.threshold, threshold, rtol=1e-6, atol=0)


def test_the_threshold_does_not_depend_on_what_was_held(monkeypatch):
    """With little room scores are thrown away on the way."""
    from sparsescope.dictionaries import thresholds

    found, rows = filled("batch_topk"), some_rows(1000, 11)
    with torch.no_grad():
        found.encoder_bias.add_(3)
    set_thresholds(found, rows.split(50), 2)
    first = found.threshold.clone()
    monkeypatch.setattr(thresholds, "ROOM", 1000)
    set_thresholds(found, rows.split(50), 2)
    assert torch.equal(found.threshold, first) and len(found.encode(rows).values) == 2000


def test_the_next_lower_score_is_found_in_any_batch():
    """The ten largest are wanted: 100 to 91. The first batch is cut down to 100 to 90; then comes 90.3."""
    found = make("batch_topk", 1, 1, k=1)
    with torch.no_grad():
        found.encoder.fill_(1.0)
    first = torch.arange(56.0, 101.0)[:, None]
    set_thresholds(found, [first, torch.tensor([[1.0], [90.3], [2.0], [0.5], [0.0]])], 0.2)
    assert float(found.threshold) == pytest.approx(90.65, abs=1e-4)


@pytest.mark.parametrize("ulps", [1, 2, 3])
def test_a_threshold_lies_below_the_score_however_near_the_next_one_is(ulps):
    from sparsescope.dictionaries.thresholds import _between

    below = np.nextafter(np.float32(1), np.float32(2))
    least = below
    for _ in range(ulps):
        least = np.nextafter(least, np.float32(2))
    assert below <= np.float32(_between(np.array([least, below], np.float32), 1)) < least


def test_less_than_one_match_closes_everything():
    found, rows = filled("batch_topk"), some_rows(50)
    set_thresholds(found, rows, 0.001)
    assert len(found.encode(rows).values) == 0 and torch.isfinite(found.threshold)


def test_more_than_there_is_opens_everything_positive():
    found, rows = filled("batch_topk"), some_rows(50)
    set_thresholds(found, rows, WIDTH)
    assert float(found.threshold) == 0.0
    assert len(found.encode(rows).values) == int((dense_scores(found, rows) > 0).sum())


@pytest.mark.parametrize("name", ["batch_topk", "feature_choice"])
def test_ties_are_left_out_rather_than_too_many(name):
    found, rows = fresh(name), some_rows(50)
    if name == "feature_choice":
        found.with_uniform_quota()
    with torch.no_grad():
        found.encoder.zero_()
        found.encoder_bias.fill_(1.0)
        found.encoder_bias[:2] = 2.0
    set_thresholds(found, rows)
    codes = found.encode(rows)
    assert codes.active_per_row.tolist() == [2 if name == "batch_topk" else 0] * 50


@pytest.mark.parametrize("l0", [2, 7.3, 16])  # the last one is above what it has
def test_jumprelu_reaches_an_l0_that_is_given(l0):
    found, rows = filled("jumprelu"), some_rows(1000, 11)
    ratio = found.threshold.detach().clone()
    assert (l0 > found.encode(rows).active_per_row.double().mean()) == (l0 == 16)
    set_thresholds(found, rows, l0)
    ratio = found.threshold.detach() / ratio
    assert len(found.encode(rows).values) == round(l0 * 1000)
    torch.testing.assert_close(ratio, ratio[:1].expand(WIDTH), rtol=1e-5, atol=0)
    before = found.threshold.detach().clone()
    set_thresholds(found, rows)
    assert torch.equal(found.threshold, before), "without l0 they stay"


def test_thresholds_that_cannot_be():
    jump, batch, rows = filled("jumprelu"), filled("batch_topk"), some_rows(50)
    with torch.no_grad():
        jump.threshold.fill_(50.0)
    with pytest.raises(SpecError, match="too high for that many"):
        set_thresholds(jump, rows, 5)
    for l0 in (0, -1, float("nan"), WIDTH + 0.5):
        with pytest.raises(SpecError, match="number of active features is not possible"):
            set_thresholds(batch, rows, l0)
    with pytest.raises(SpecError, match="without rows"):
        set_thresholds(batch, rows[:0])
    with pytest.raises(SpecError, match="without rows"):
        set_thresholds(batch, [])
    rows[3] = float("nan")
    with pytest.raises(SpecError, match="NaN or infinite"):
        set_thresholds(batch, rows)
    topk = filled("topk")
    before = {name: value.clone() for name, value in topk.state_dict().items()}
    set_thresholds(topk, some_rows(5), 3)
    assert all(torch.equal(value, before[name]) for name, value in topk.state_dict().items())


# Codes


def test_codes_as_other_arrays():
    dense = torch.tensor([[0, 2.0, 0], [0, 0, 0], [1, 0, -3]])
    codes = SparseCodes.of_dense(dense)
    assert torch.equal(codes.dense(), dense) and len(codes) == 3
    assert codes.row_ids.tolist() == [0, 2, 2] and codes.active_per_row.tolist() == [1, 0, 2]
    assert codes.rows_per_feature.tolist() == [1, 1, 1]
    assert (codes.csr().toarray() == dense.numpy()).all()
    back = SparseCodes.of_csr(codes.csr())
    same_codes(back, codes)
    assert torch.equal(codes.part(1, 3).dense(), dense[1:]) and torch.equal(
        codes.part(1, 1).dense(), dense[:0]
    )
    assert torch.equal(SparseCodes.joined([codes, codes.part(0, 1)]).dense(), torch.cat([dense, dense[:1]]))
    assert SparseCodes.joined([codes]) is codes
    half = SparseCodes(codes.indices, codes.values.bfloat16(), codes.offsets, 3)
    assert half.csr().dtype == np.float32
    stored = codes.csr()
    stored.data[0] = 0.0
    assert len(SparseCodes.of_csr(stored).values) == 2


def test_decode_takes_codes_of_any_origin():
    found = filled("relu")
    codes = SparseCodes.of_dense(torch.eye(WIDTH)[:3].double())
    torch.testing.assert_close(found.decode(codes), found.directions[:3] + found.decoder_bias.detach())
    assert isinstance(fresh("topk"), TopKSAE) and isinstance(fresh("matryoshka"), MatryoshkaSAE)

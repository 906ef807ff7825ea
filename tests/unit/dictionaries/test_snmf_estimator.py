"""SNMF as a scikit-learn estimator: planted dictionaries, conventions, batches, invariances."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import estimator_checks_generator

from sparsescope.dictionaries.snmf import SNMF
from sparsescope.dictionaries.snmf.stability import match
from sparsescope.errors import SpecError
from sparsescope.kernels.nonnegative_codes import kkt_residual

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def _planted(n=2000, d=200, k=20, s=10, seed=0):
    random = np.random.default_rng(seed)
    h = np.zeros((k, d))
    for row in h:
        row[random.choice(d, s, replace=False)] = random.normal(size=s)
    codes = random.exponential(size=(n, k)) * (random.random((n, k)) < 0.3)
    return codes @ h, h


def _small(n=150, d=30, seed=0, dtype=np.float64):
    x, _ = _planted(n, d, 6, 5, seed)
    return (x + 0.05 * np.random.default_rng(seed + 9).normal(size=x.shape)).astype(dtype)


# check_array_api_input asks for an environment variable of SciPy's and skips without it
CHECKS = [
    check
    for check in estimator_checks_generator(SNMF())
    if getattr(check[1], "func", check[1]).__name__ != "check_array_api_input"
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: getattr(check[1], "func", check[1]).__name__)
def test_scikit_learn(check):
    estimator, run = check
    run(estimator)


@pytest.mark.parametrize("init", ["kmeans", "nndsvd"])
def test_a_planted_dictionary_is_found(init):
    x, h = _planted()
    model = SNMF(20, sparsity=0.05, init=init, n_init=5, max_iter=40, tol=1e-6, random_state=0).fit(x)
    assert model.total_explained_variance_ratio_ > 0.999
    cosines, _ = match(h, model.components_)
    assert cosines.min() > 0.95
    assert set(model.support_sizes_) == {10}


@pytest.mark.parametrize("scope", ["row", "global"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_loss_curve_does_not_rise(scope, dtype):
    model = SNMF(6, sparsity=0.2, sparsity_scope=scope, tol=0, max_iter=60).fit(_small(dtype=dtype))
    curve = np.array(model.loss_curve_)
    assert len(curve) > 3
    assert (np.diff(curve) <= 1e-9 * curve[0]).all()


def test_what_is_said_of_a_fit_equals_dense_computations():
    x, weights = _small(), np.random.default_rng(0).random(150)
    model = SNMF(6, sparsity=0.2, max_iter=30)
    codes = model.fit_transform(x, sample_weight=weights)
    rest = x - codes @ model.components_
    squared = weights @ (rest**2).sum(1)
    variance = weights @ ((x - weights @ x / weights.sum()) ** 2).sum(1)
    assert model.reconstruction_err_ == pytest.approx(np.sqrt(squared), rel=1e-9)
    assert model.total_explained_variance_ratio_ == pytest.approx(1 - squared / variance, rel=1e-9)
    assert model.score(x, sample_weight=weights) == pytest.approx(1 - squared / variance, rel=1e-9)
    np.testing.assert_allclose(model.component_usage_, weights @ codes, rtol=1e-9)
    for c in range(6):  # a component is taken out, the codes of the others stay
        without = weights @ ((rest + np.outer(codes[:, c], model.components_[c])) ** 2).sum(1)
        assert model.explained_variance_ratio_[c] == pytest.approx((without - squared) / variance, rel=1e-6)
    np.testing.assert_allclose(np.linalg.norm(model.components_, axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.components_csr_.toarray(), model.components_)
    assert (np.diff(model.explained_variance_ratio_) < 1e-3).all()  # heaviest first, up to the last code step
    assert model.loss_curve_[-1] >= squared * (1 - 1e-9)
    np.testing.assert_allclose(model.inverse_transform(codes), codes @ model.components_)
    np.testing.assert_allclose(
        model.inverse_transform(scipy.sparse.csr_array(codes)), codes @ model.components_, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_codes_are_exact_and_depend_on_their_row_alone(dtype):
    x = _small(n=90, dtype=dtype)
    model = SNMF(12, sparsity=0.1, max_iter=10).fit(x)
    codes = model.transform(x)
    assert codes.dtype == dtype
    for part in (slice(0, 1), slice(3, 40), slice(60, 90)):
        np.testing.assert_array_equal(model.transform(x[part]), codes[part])
    order = np.random.default_rng(0).permutation(90)
    np.testing.assert_array_equal(model.transform(x[order]), codes[order])
    h = model.components_.astype(np.float64)
    limit = 1e-6 if dtype == np.float64 else 1e-5  # codes of float32 are rounded to it
    assert kkt_residual(x.astype(np.float64) @ h.T, h @ h.T, codes.astype(np.float64)).max() < limit


@pytest.mark.parametrize("init", ["nndsvd", "kmeans", "random"])
def test_the_scale_of_the_rows_only_scales_the_reconstruction(init):
    x, factor = _small(), 1024.0
    models = [SNMF(6, sparsity=0.2, init=init, random_state=1, max_iter=15) for _ in range(2)]
    one, other = models[0].fit_transform(x), models[1].fit_transform(factor * x)
    np.testing.assert_array_equal(models[0].components_ != 0, models[1].components_ != 0)
    np.testing.assert_allclose(
        factor * one @ models[0].components_, other @ models[1].components_, rtol=1e-6, atol=1e-7 * factor
    )


def test_batches_come_to_what_all_rows_together_give():
    x, _ = _planted(1200, 60, 8, 6, 3)
    x = x + 0.05 * np.random.default_rng(1).normal(size=x.shape)
    whole = SNMF(8, sparsity=0.1, init="kmeans", random_state=0, max_iter=60).fit(x)
    parts = SNMF(8, sparsity=0.1, init="kmeans", random_state=0)
    for _ in range(2):
        for begin in range(0, 1200, 300):
            parts.partial_fit(x[begin : begin + 300])
    assert parts.score(x) > whole.score(x) - 0.01
    assert parts.n_samples_seen_ == 2400
    assert len(parts.loss_curve_) == parts.n_iter_ == 8
    assert (parts.support_sizes_ <= 6).all()


def test_batches_weigh_what_they_say():
    x = _small()
    forgetful, faithful = (SNMF(4, sparsity=0.2, forget_factor=f) for f in (0.0, 1.0))
    for model in (forgetful, faithful):
        model.partial_fit(x[:75]).partial_fit(x[75:])
    # The sums of the second batch alone, and of both
    second = (x[75:] ** 2).sum()
    assert forgetful._sums.total == pytest.approx(second, rel=1e-9)
    assert faithful._sums.total == pytest.approx((x**2).sum(), rel=1e-9)
    half = SNMF(4, sparsity=0.2, forget_factor=0.5).partial_fit(x[:75]).partial_fit(x[75:])
    assert half._sums.total == pytest.approx(second + 0.5**0.5 * (x[:75] ** 2).sum(), rel=1e-9)


def test_weights_are_repetitions_in_batches_too():
    x, weights = _small(n=60), np.random.default_rng(0).integers(0, 3, 60)
    one = SNMF(3, sparsity=0.2).partial_fit(x, sample_weight=weights)
    other = SNMF(3, sparsity=0.2).partial_fit(np.repeat(x, weights, axis=0))
    np.testing.assert_allclose(one.components_, other.components_, atol=1e-7)


def test_centring_and_scaling_equal_doing_it_before():
    x = _small() + np.linspace(0, 3, 30)
    mean, deviation = x.mean(0), x.std(0)
    here = SNMF(6, sparsity=0.2, center=True, scale=True, max_iter=20)
    codes = here.fit_transform(x)
    before = SNMF(6, sparsity=0.2, max_iter=20)
    expected = before.fit_transform((x - mean) / deviation)
    np.testing.assert_allclose(here.mean_, mean)
    np.testing.assert_allclose(here.scale_, deviation)
    np.testing.assert_allclose(here.components_, before.components_, atol=1e-6)
    np.testing.assert_allclose(codes, expected, atol=1e-5)
    np.testing.assert_allclose(here.inverse_transform(codes), codes @ here.components_ * deviation + mean)
    with pytest.raises(SpecError, match="batches cannot be centred"):
        clone(here).partial_fit(x)


def test_seeds_decide_everything_and_the_global_generator_is_left_alone():
    x = _small()
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    one, same, other = (
        SNMF(6, sparsity=0.2, init="random", random_state=s, max_iter=8).fit(x) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.components_, same.components_)
    assert (one.components_ != other.components_).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_the_best_start_is_kept():
    x = _small()
    state = np.random.RandomState(0)
    single = [SNMF(6, sparsity=0.2, init="random", random_state=state, max_iter=5).fit(x) for _ in range(4)]
    many = SNMF(6, sparsity=0.2, init="random", random_state=0, max_iter=5, n_init=4).fit(x)
    losses = [model.loss_curve_[-1] for model in single]
    assert len(set(losses)) == 4
    assert many.loss_curve_[-1] == min(losses)


def test_read_only_memory_maps_are_read(tmp_path):
    x = _small(dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = SNMF(4, sparsity=0.2, max_iter=5).fit(mapped)
    np.testing.assert_array_equal(found.components_, SNMF(4, sparsity=0.2, max_iter=5).fit(x).components_)
    assert found.components_.dtype == np.float32


@pytest.mark.parametrize("shape", [(1, 5), (7, 1), (5, 4)])
def test_more_components_than_rows_or_neurons(shape):
    x = np.abs(np.random.default_rng(0).normal(size=shape))
    model = SNMF(12, sparsity=0.5, max_iter=20).fit(x)
    assert model.components_.shape == (12, shape[1])
    assert np.isfinite(model.components_).all()
    np.testing.assert_allclose(model.inverse_transform(model.transform(x)), x, atol=0.2 * x.max())


def test_rows_of_zeros():
    model = SNMF(2).fit(np.zeros((5, 4)))
    assert not model.components_.any()
    assert model.score(np.zeros((5, 4))) == 1
    assert model.score(np.ones((5, 4))) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_components": 0}, {"n_components": 2.5}, {"sparsity": 0}, {"sparsity": 1.5},
        {"sparsity_scope": "column"}, {"init": "svd"}, {"solver": "cd"}, {"max_iter": 0}, {"tol": -1},
        {"inner_iter": 0}, {"n_init": 0}, {"forget_factor": 2}, {"monotone": "yes"}, {"random_state": "a"},
        {"anneal_iter": -1},
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(wrong):
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=f"'{next(iter(wrong))}' parameter of SNMF"):
            getattr(SNMF(**wrong), method)(_small(n=20))


def test_annealing_must_end_before_the_iterations():
    with pytest.raises(SpecError, match="final size"):
        SNMF(3, anneal_iter=10, max_iter=10).fit(_small(n=20))
    model = SNMF(3, sparsity=0.2, anneal_iter=4, max_iter=12, tol=0).fit(_small(n=40))
    assert len(model.loss_curve_) <= 12 - 3
    assert model.support_sizes_.max() <= 6


def test_other_refusals():
    x = _small(n=20)
    with pytest.raises(ValueError, match="NaN"):
        SNMF(2).fit(np.where(np.eye(20, 30) > 0, np.nan, x))
    with pytest.raises(ValueError, match=r"zero for all rows|non-zero number"):
        SNMF(2).fit(x, sample_weight=np.zeros(20))
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        SNMF(2).fit(x, sample_weight=-np.ones(20))
    with pytest.raises(ValueError, match="30 features"):
        SNMF(2, max_iter=2).fit(x).transform(x[:, :9])
    with pytest.raises(NotFittedError):
        SNMF(2).transform(x)


def test_convergence_is_said():
    x = _small()
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        model = SNMF(6, sparsity=0.2, max_iter=2).fit(x)
    assert not model.converged_
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = SNMF(6, sparsity=0.2, tol=1e-3).fit(x)
    assert model.converged_
    steps = -np.diff(model.loss_curve_) / (x**2).sum()
    assert (steps[-3:] <= 1e-3).all()
    assert not (steps[-4:] <= 1e-3).all()


def test_adopted_components_are_measured():
    x, given = _small(), np.random.default_rng(0).normal(size=(3, 30))
    model = SNMF(3).adopt(given, x)
    np.testing.assert_allclose(model.components_, given / np.linalg.norm(given, axis=1, keepdims=True))
    assert model.score(x) == pytest.approx(model.total_explained_variance_ratio_)
    with pytest.raises(SpecError, match="do not fit"):
        SNMF(4).adopt(given, x)
    assert pickle.loads(pickle.dumps(model)).score(x) == model.score(x)

"""Measures of reconstruction: closed forms, invariances, and errors that other tools made."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.errors import SpecError
from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.metrics.reconstruction import MEASURES, ReconstructionSums, reconstruction_measures

DOCUMENTS = np.repeat([3, 8, 5, 1, 9], [40, 25, 60, 35, 40])
NAMES = ("good", "bad")


def rows(seed=0, offset=5.0, n=200, width=12):
    """Activations with a large mean and unlike dimensions, and two reconstructions of them."""
    generator = np.random.default_rng(seed)
    drift = generator.standard_normal((10, width))[DOCUMENTS[:n] % 10]
    x = (generator.standard_normal((n, width)) + drift) * np.arange(1, width + 1) + offset * np.arange(width)
    good = x + 0.3 * generator.standard_normal(x.shape)
    return x, {"good": good, "bad": 0.6 * x + generator.standard_normal(x.shape)}


def summed(x, made, chunk=200, active=None, **options):
    sums = ReconstructionSums(x.shape[1], tuple(made), **options)
    for begin in range(0, len(x), chunk):
        part = slice(begin, begin + chunk)
        counts = None if active is None else {name: n[part] for name, n in active.items()}
        sums.update(DOCUMENTS[: len(x)][part], x[part], {name: r[part] for name, r in made.items()}, counts)
    return sums


def directly(x, r):
    """The definitions, written down once more."""
    size, made = np.linalg.norm(x, axis=1), np.linalg.norm(r, axis=1)
    error = ((x - r) ** 2).sum()
    fvu = error / ((x - x.mean(0)) ** 2).sum()
    return {
        "explained_variance": 1 - fvu,
        "fvu": fvu,
        "l2_ratio": (made / size).mean(),
        "bias": (r * r).sum() / (x * r).sum(),
        "cosine": ((x * r).sum(1) / size / made).mean(),
        "squared_error": error / len(x),
    }


def test_every_measure_is_its_definition():
    x, made = rows()
    counts = np.arange(len(x)) % 7
    for r in made.values():
        found = reconstruction_measures(x, r, counts)
        assert found.pop("l0") == pytest.approx(counts.mean(), rel=1e-12)
        assert found == pytest.approx(directly(x, r), rel=1e-12)


def test_the_identity_explains_all_and_the_mean_nothing():
    x, _ = rows()
    same, mean = reconstruction_measures(x, x), reconstruction_measures(x, np.tile(x.mean(0), (len(x), 1)))
    assert same["explained_variance"] == same["bias"] == 1 and same["fvu"] == same["squared_error"] == 0
    assert same["cosine"] == pytest.approx(1, abs=1e-15) and same["l2_ratio"] == pytest.approx(1, abs=1e-15)
    assert mean["explained_variance"] == pytest.approx(0, abs=1e-12) and mean["fvu"] == pytest.approx(1)
    assert mean["bias"] == pytest.approx(1)  # the best constant neither shrinks nor swells


def test_the_total_variance_is_about_the_mean_of_every_dimension():
    # About zero, or about one mean of all dimensions, this would look near perfect.
    x, made = rows(offset=40.0)
    found = reconstruction_measures(x, made["bad"])["explained_variance"]
    error = ((x - made["bad"]) ** 2).sum()
    assert found == pytest.approx(1 - error / ((x - x.mean(0)) ** 2).sum(), rel=1e-10)
    assert found < -1 < 0.8 < 1 - error / (x**2).sum() and 1 - error / ((x - x.mean()) ** 2).sum() > found + 1


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_size_of_batches_changes_nothing(chunk):
    x, made = rows()
    active = {name: np.arange(len(x)) % 5 for name in NAMES}
    whole, parts = summed(x, made, active=active), summed(x, made, chunk, active)
    assert np.allclose(whole.measures(), parts.measures(), rtol=1e-10, atol=0)
    # A mean of the ratios of batches does depend on them, and so does an error divided by the batch twice.
    of_batches = np.mean(
        [reconstruction_measures(x[b : b + 64], made["good"][b : b + 64])["fvu"] for b in range(0, 200, 64)]
    )
    assert abs(of_batches - whole.measures()[0, 1]) > 1e-4
    error = whole.measures()[0, MEASURES.index("squared_error")]
    assert error == pytest.approx(12 * 0.09, rel=0.15)


def test_a_common_unit_changes_nothing_and_a_mixed_one_is_seen():
    x, made = rows()
    plain, scaled = (reconstruction_measures(a * x, a * made["good"]) for a in (1.0, 37.0))
    for name in ("explained_variance", "fvu", "l2_ratio", "bias", "cosine"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-10)
    assert scaled["squared_error"] == pytest.approx(37**2 * plain["squared_error"], rel=1e-10)
    # A scaled input against an output that is not: the bias says by how much.
    mixed = reconstruction_measures(4 * x, x)
    assert mixed["bias"] == mixed["l2_ratio"] == pytest.approx(0.25) and mixed["cosine"] == pytest.approx(1)
    expected = 1 - 9 * (x**2).sum() / (16 * ((x - x.mean(0)) ** 2).sum())
    assert mixed["explained_variance"] == pytest.approx(expected, rel=1e-10)


def test_shrinkage_shows_in_the_bias_and_dividing_by_it_is_best():
    x, made = rows()
    r = made["bad"]
    bias = reconstruction_measures(x, r)["bias"]
    errors = [reconstruction_measures(x, r * a / bias)["squared_error"] for a in (0.99, 1.0, 1.01)]
    assert errors[1] < min(errors[0], errors[2])
    assert reconstruction_measures(x, 0.8 * x)["bias"] == pytest.approx(0.8)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_merging_is_one_stream(exact, given):
    x, made = rows()
    reference = x[:50].mean(0) if given or not exact else None
    options = {"reference": reference, "exact": exact}
    whole = summed(x, made, **options)
    one = summed(x[:70], {name: r[:70] for name, r in made.items()}, 9, **options)
    two = ReconstructionSums(12, NAMES, **options)
    two.update(DOCUMENTS[70:], x[70:], {name: r[70:] for name, r in made.items()})
    merged = one.merge(two)
    weights = np.random.default_rng(1).integers(0, 3, (4, 5)).astype(float) + 0.5
    assert merged.documents.tolist() == whole.documents.tolist() == [1, 3, 5, 8, 9]
    assert merged.rows.tolist() == whole.rows.tolist() == [35, 40, 60, 25, 40]
    assert np.allclose(merged.measures(), whole.measures(), rtol=1e-10, equal_nan=True)
    assert np.allclose(merged.measures(weights), whole.measures(weights), rtol=1e-10, equal_nan=True)
    assert np.allclose(merged.mean, x.mean(0), rtol=1e-12)
    again = ReconstructionSums(12, NAMES, **options)
    again.restore(merged.state())
    assert np.array_equal(again.measures(weights), merged.measures(weights), equal_nan=True)
    again.update(
        1, x[:3], {name: r[:3] for name, r in made.items()}
    )  # goes on, and leaves the saved one alone
    assert again.rows.sum() == 203 and merged.rows.sum() == 200


def test_rows_of_documents_may_come_in_any_order():
    x, made = rows()
    order = np.random.default_rng(0).permutation(200)
    mixed = ReconstructionSums(12, NAMES)
    mixed.update(DOCUMENTS[order], x[order], {name: r[order] for name, r in made.items()})
    weights = np.array([[2.0, 1.0, 0.0, 0.0, 1.0]])
    expected = summed(x, made).measures(weights)
    assert np.allclose(mixed.measures(weights), expected, rtol=1e-10, equal_nan=True)


def test_documents_are_renamed_when_streams_number_them_differently():
    x, made = rows()
    one, two = ReconstructionSums(12, NAMES), ReconstructionSums(12, NAMES)
    one.update(0, x[:70], {name: r[:70] for name, r in made.items()})
    two.update(0, x[70:], {name: r[70:] for name, r in made.items()})
    assert one.merge(two, {0: 4}).documents.tolist() == [0, 4]
    assert np.allclose(one.measures(), summed(x, made).measures(), rtol=1e-10, equal_nan=True)


def test_weights_of_documents_are_copies_of_their_rows():
    x, made = rows()
    weights = np.array([[2.0, 0.0, 1.0, 3.0, 1.0], [1.0, 1.0, 0.0, 1.0, 1.0]])
    found = summed(x, made).measures(weights)
    for b, counts in enumerate(weights):
        times = np.array([counts[np.searchsorted([1, 3, 5, 8, 9], d)] for d in DOCUMENTS]).astype(int)
        for at, r in enumerate(made.values()):
            expected = directly(np.repeat(x, times, 0), np.repeat(r, times, 0))
            got = dict(zip(MEASURES, found[b, at], strict=True))
            assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-10)


def test_without_sums_by_document_the_estimate_is_exact_and_replicates_nearly():
    x, made = rows(offset=20.0)
    centre = x.mean(0)
    full, lean = summed(x, made), summed(x, made, reference=centre + 0.01, exact=False)
    assert np.allclose(full.measures(), lean.measures(), rtol=1e-9, equal_nan=True)
    weights = np.array([[2.0, 1.0, 1.0, 0.0, 1.0]])
    times = np.array([weights[0, np.searchsorted([1, 3, 5, 8, 9], d)] for d in DOCUMENTS]).astype(int)
    drawn = np.repeat(x, times, 0)
    # What was promised: the variance is too large by the distance of the means.
    one, two = (sums.measures(weights)[0, 0] for sums in (full, lean))
    ratio = one[1] / two[1]
    reference = centre + 0.01
    excess = len(drawn) * (((drawn.mean(0) - reference) ** 2).sum() - ((centre - reference) ** 2).sum())
    assert ratio == pytest.approx(1 + excess / ((drawn - drawn.mean(0)) ** 2).sum(), rel=1e-9)
    assert 1 < ratio < 1.2 and one[6] == pytest.approx(two[6], rel=1e-12)


def test_intervals_hold_the_estimate_and_differences_are_paired():
    x, made = rows()
    sums = summed(x, made)
    draws = DocumentBootstrap.draw(np.zeros(5, int), 400, 0, 0.95)
    found = sums.estimates(draws)
    assert set(found) == set(MEASURES)
    variance = found["explained_variance"]
    assert (variance.low < variance.mean).all() and (variance.mean < variance.high).all()
    replicates = sums.measures(draws.weights)[:, :, 0]
    low, _ = draws.ends(replicates[:, 0] - replicates[:, 1])
    assert low > 0  # the good one is better in every resample
    alone = ReconstructionSums(12, NAMES)
    alone.update(0, x, made)
    assert np.isnan(alone.estimates(DocumentBootstrap.draw([0], 10, 0, 0.95))["cosine"].low).all()


def test_a_large_mean_costs_no_digits_with_a_reference():
    x, made = rows(offset=0.0)
    there = summed(x, made).measures()
    far = {name: r + 1e6 for name, r in made.items()}
    found = summed(x + 1e6, far, reference=np.full(12, 1e6)).measures()
    assert np.allclose(found[:, :2], there[:, :2], rtol=1e-7)


def test_zero_rows_have_no_direction_and_silent_dictionaries_none_either():
    x = np.array([[0.0, 0.0], [3.0, 4.0]])
    found = reconstruction_measures(x, np.array([[1.0, 1.0], [0.0, 0.0]]))
    assert found["cosine"] == found["l2_ratio"] == 0 and np.isnan(found["bias"]) and np.isnan(found["l0"])
    same = reconstruction_measures(x, x, [4, 2])  # cosine and ratio are over the one row that has a direction
    assert same["cosine"] == same["l2_ratio"] == 1 and same["l0"] == 3
    constant = reconstruction_measures(np.full((9, 3), 0.1), np.zeros((9, 3)))
    assert np.isnan(constant["explained_variance"]) and constant["squared_error"] == pytest.approx(0.03)


def test_single_precision_is_accumulated_in_double():
    x = np.full((300_000, 1), 0.1, np.float32)
    x[::2] = 0.3
    x += 1000
    made = x + np.float32(0.125)
    found = reconstruction_measures(x, made)
    exact = x.astype(np.float64)
    assert found["explained_variance"] == pytest.approx(1 - 0.125**2 / exact.var(), rel=1e-6)


def test_the_arrays_of_the_caller_stay_as_they_are():
    x, made = rows()
    kept, reference = x.copy(), np.ones(12)
    sums = ReconstructionSums(12, NAMES, reference)
    sums.update(0, x, made)
    reference += 1
    assert np.array_equal(x, kept) and (sums.reference == 1).all()


def test_what_does_not_fit_is_refused():
    x, made = rows()
    sums = ReconstructionSums(12, NAMES)
    for call in (
        lambda: ReconstructionSums(12, ("a", "a")),
        lambda: ReconstructionSums(12, NAMES, np.zeros(3)),
        lambda: ReconstructionSums(12, NAMES, exact=False),
        lambda: sums.update(0, x, {"good": x}),
        lambda: sums.update(0, x, made, {"other": [1]}),
        lambda: sums.update(0, x, {"good": x, "bad": x[:3]}),
        lambda: sums.update(0, x[:, :5], made),
        lambda: sums.measures(np.ones((1, 3))),
        lambda: sums.merge(ReconstructionSums(12, ("good",))),
        lambda: sums.merge(ReconstructionSums(12, NAMES, np.ones(12))),
    ):
        with pytest.raises(SpecError):
            call()


def test_nothing_seen_is_nothing_known():
    assert np.isnan(ReconstructionSums(3, NAMES).measures()).all()

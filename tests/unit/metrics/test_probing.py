"""Sparse probes: oracles, the null of permuted labels, and halves by document."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array, random_array
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from sparsescope.errors import SpecError
from sparsescope.metrics import probing
from sparsescope.metrics.probing import (
    MEASURES,
    Split,
    class_gaps,
    linear_probes,
    sparse_probe_scores,
    sparse_probes,
    split_by_document,
)


def example(rows=2000, features=60, seed=0):
    """Sparse codes in which features 7 and 3 tell labels 0 and 1, and nothing tells label 2."""
    generator = np.random.default_rng(seed)
    labels = generator.random((rows, 3)) < [0.3, 0.5, 0.4]
    codes = random_array((rows, features), density=0.05, rng=generator, format="lil")
    codes[:, 20:30] = generator.uniform(0, 4, (rows, 10))  # dense and large, and of no use
    codes[:, [7]] = (labels[:, :1] * generator.uniform(1, 2, (rows, 1))).astype(float)
    codes[:, [3]] = ((labels[:, 1:2] ^ (generator.random((rows, 1)) < 0.2)) * 1.0).astype(float)
    return csr_array(codes), labels


def test_gaps_are_differences_of_means():
    codes, labels = example()
    dense = codes.toarray()
    expected = [dense[y].mean(0) - dense[~y].mean(0) for y in labels.T]
    assert np.allclose(class_gaps(codes, labels), expected, rtol=1e-10, atol=1e-12)
    assert np.allclose(class_gaps(dense, labels), expected, rtol=1e-10, atol=1e-12)
    single = codes.astype(np.float32)
    assert class_gaps(single, labels).dtype == np.float64


def test_features_that_tell_the_label_are_found():
    codes, labels = example()
    found = sparse_probes(codes, labels)
    assert found.features[:2, 0].tolist() == [7, 3] and found.scores.shape == (3, 4, 4)
    assert (found.scores[0] == 1).all()  # the feature is the label
    assert found.scores[1, :, 0] == pytest.approx(0.8, abs=0.04)  # but for a fifth of the rows
    assert found.scores[1, :, 2] == pytest.approx(0.8, abs=0.04)
    assert found.rows.sum() == 2000 and found.positives.sum(1).tolist() == labels.sum(0).tolist()


def test_permuted_labels_give_the_majority_rate():
    codes, labels = example()
    found = sparse_probes(codes, labels, permutations=4)
    assert found.majority == pytest.approx([0.7, 0.5, 0.6], abs=0.04)
    assert np.abs(found.null[:, :, 0] - found.majority[:, None]).max() < 0.04
    assert np.abs(found.null[:, :, 1:3] - 0.5).max() < 0.04
    # A label that nothing tells is as its null.
    assert np.abs(found.scores[2, :, 0] - found.null[2, :, 0]).max() < 0.04
    assert (found.scores[:2, 0, 0] > found.null[:2, 0, 0] + 10 * found.null_sd[:2, 0, 0]).all()
    assert np.isnan(sparse_probes(codes, labels, permutations=0).null).all()


def test_scores_are_those_of_the_library():
    codes, labels = example()
    found = sparse_probes(codes, labels, sizes=(3,), seed=4)
    halves = split_by_document(np.arange(2000), 4)
    for task, y in enumerate(labels.T):
        columns = codes.toarray()[:, found.features[task]]
        columns = columns / columns[halves.train].std(0)
        model = LogisticRegression().fit(columns[halves.train], y[halves.train])
        logits, truth = model.decision_function(columns[halves.test]), y[halves.test]
        rate = y[halves.train].mean()
        expected = [
            ((logits > 0) == truth).mean(),
            balanced_accuracy_score(truth, logits > np.log(rate / (1 - rate))),
            roc_auc_score(truth, logits),
            f1_score(truth, logits > 0),
        ]
        assert found.scores[task, 0] == pytest.approx(expected, abs=4e-3), task


def test_the_unit_of_codes_and_their_storage_change_nothing():
    codes, labels = example()
    plain = sparse_probes(codes, labels, permutations=1)
    scaled = sparse_probes(codes * 1e-4, labels, permutations=1)
    dense = sparse_probes(codes.toarray(), labels, permutations=1)
    assert np.allclose(scaled.scores, plain.scores, atol=2e-3)
    assert np.allclose(dense.scores, plain.scores) and np.allclose(dense.null, plain.null)
    assert np.allclose(scaled.gaps, plain.gaps * 1e-4)
    order = np.random.default_rng(0).permutation(60)
    mixed = sparse_probes(codes[:, order], labels, permutations=0)
    assert np.array_equal(order[mixed.features[:2, 0]], plain.features[:2, 0])


def test_no_document_is_in_both_halves():
    documents = np.random.default_rng(0).integers(0, 30, 1000)
    halves = split_by_document(documents, 0)
    assert not {*documents[halves.train]} & {*documents[halves.test]}
    assert (
        sorted([*halves.train, *halves.test]) == list(range(1000)) and 0.45 < len(halves.train) / 1000 < 0.6
    )
    assert len(split_by_document([1, 1, 1, 2], 0).test) in (1, 3)
    with pytest.raises(SpecError):
        split_by_document([4, 4, 4], 0)


def test_what_is_remembered_of_a_document_does_not_count():
    # Features and labels are those of documents: rows of one document must not be in both halves.
    generator = np.random.default_rng(0)
    documents = np.repeat(np.arange(100), 20)
    labels = (generator.random(100) < 0.5)[documents][:, None]
    codes = csr_array((np.ones(2000), (np.arange(2000), documents)), shape=(2000, 100))
    by_row = linear_probes(codes.toarray(), labels).scores[0, 0]
    by_document = linear_probes(codes.toarray(), labels, documents).scores[0, 0]
    assert by_row > 0.95 and abs(by_document - 0.5) < 0.15
    apart = sparse_probes(codes, labels, documents, sizes=(10,), permutations=0)
    assert apart.scores[0, 0, 2] == pytest.approx(0.5, abs=0.05)


def test_the_choice_is_made_on_the_train_half():
    # A feature that is the label in the test half only must not be chosen.
    generator = np.random.default_rng(1)
    label = generator.random(400) < 0.5
    split = Split(np.arange(200), np.arange(200, 400))
    codes = np.zeros((400, 3))
    codes[200:, 0] = label[200:] * 5
    codes[:, 1] = label ^ (generator.random(400) < 0.3)
    codes[:, 2] = generator.random(400)
    found = sparse_probes(csr_array(codes), label[:, None], sizes=(1,), split=split, permutations=0)
    assert found.features[0, 0] == 1 and found.scores[0, 0, 0] == pytest.approx(0.7, abs=0.1)


def test_rare_labels_are_left_out_and_fewer_features_than_asked_are_used():
    codes, labels = example()
    codes = codes[:, :8]
    labels = np.c_[labels, np.arange(2000) < 12]
    found = sparse_probes(codes, labels, permutations=2)
    assert np.isnan(found.scores[3]).all() and np.isnan(found.null[3]).all()
    assert (found.features[3] == -1).all() and found.majority[3] > 0.99
    assert (found.features[0] == -1).sum() == 2 and np.isfinite(found.scores[:3]).all()
    assert np.isfinite(found.null[:3]).all()


def test_permuting_keeps_the_rate_of_either_half():
    codes, _ = example(400)
    label = np.arange(400) % 20 == 0  # ten rows in each half, just enough
    split = Split(np.arange(200), np.arange(200, 400))
    found = sparse_probes(codes, label[:, None], sizes=(1,), permutations=8, split=split)
    assert np.isfinite(found.null).all() and found.positives.tolist() == [[10, 10]]


def test_balanced_accuracy_sees_what_accuracy_hides():
    generator = np.random.default_rng(0)
    label = generator.random(4000) < 0.05
    codes = (label & (generator.random(4000) < 0.8)) | (generator.random(4000) < 0.06)
    found = sparse_probes(csr_array(codes[:, None] * 1.0), label[:, None], sizes=(1,), permutations=0)
    accuracy, balanced, area, _ = found.scores[0, 0]
    assert accuracy == pytest.approx(found.majority[0], abs=0.01)
    assert balanced == pytest.approx(area, abs=1e-9) and balanced > 0.8


def test_linear_probes_find_the_direction_in_the_unit_of_the_values():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((3000, 6)) * [1, 2, 3, 4, 5, 6] + 50
    normal = np.array([1.0, 0, 0, 0.5, 0, 0])
    labels = ((x - 50) @ normal > 0.3)[:, None]
    found = linear_probes(x, labels, seed=2)
    direction = found.directions[0] / np.linalg.norm(found.directions[0])
    assert direction @ normal / np.linalg.norm(normal) > 0.99
    fires = x @ found.directions[0] + found.biases[0] > 0
    test = found.split.test
    assert (fires == labels[:, 0])[test].mean() == pytest.approx(found.scores[0, 0], abs=1e-12)
    assert found.scores[0, 0] > 0.97
    assert np.isnan(linear_probes(x, np.zeros((3000, 1), bool)).directions).all()


def test_the_score_of_one_probe_is_that_of_all_its_rows():
    label = np.arange(200) < 60
    columns = np.c_[label * 1.0]
    columns[:30] = 0
    found = sparse_probe_scores(columns, label)
    assert found["f1"] == pytest.approx(2 / 3) and found["accuracy"] == 0.85 and list(found) == list(MEASURES)


def test_a_lasting_measure_has_its_place():
    assert probing.SIZES == (1, 2, 5, 10) and MEASURES.index("auroc") == 2


def test_what_does_not_belong_together_is_refused():
    codes, labels = example(100)
    for call in (
        lambda: sparse_probes(codes, labels[:50]),
        lambda: sparse_probes(codes, labels[:, 0]),
        lambda: sparse_probes(codes, labels, sizes=(2, 1)),
        lambda: sparse_probes(codes, labels, sizes=(0,)),
        lambda: linear_probes(codes.toarray(), labels[:50]),
        lambda: linear_probes(codes.toarray()[0], labels),
    ):
        with pytest.raises(SpecError):
            call()

"""The store of feature activations: what is read equals what was written, and damage is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse

from sparsescope.core.artifact_store import ArtifactStore
from sparsescope.core.feature_store import FORMAT, KIND, FeatureStore, FeatureWriter, StoredText, shard_of
from sparsescope.errors import ArtifactError, SpecError

FEATURES, SIZES = 7, (5, 1, 9, 4)


def dense(seed=0):
    random = np.random.default_rng(seed)
    codes = random.normal(size=(sum(SIZES), FEATURES)).astype(np.float32)
    codes[random.random(codes.shape) < 0.6] = 0
    codes[:, 3] = 0  # a dead feature
    return codes


def words(ids):
    return {
        int(token): text
        for token, text in zip(ids, ["a", " b", "<b>", "\ud83d", "\n", "é", "", "x"], strict=False)
    }


@pytest.fixture
def artifact(tmp_path):
    codes = dense()
    ids = np.arange(len(codes)) % 8 + 100
    with ArtifactStore(tmp_path).keep(KIND, format=FORMAT) as kept:
        writer = FeatureWriter(kept, FEATURES)
        for begin, end in ((0, 6), (6, 7), (7, len(codes))):
            writer.append(shard_of(scipy.sparse.csr_array(codes[begin:end]), begin))
        offsets = np.cumsum([0, *SIZES])
        counted = np.ones(len(codes), bool)
        counted[offsets[:-1]] = False
        writer.text(
            StoredText(ids, counted, offsets, ["one", "two", "<script>", "four"], ["p", "q"],
                       np.array([0, 1, 0, 1]), words(range(100, 108)))
        )  # fmt: skip
        assert writer.reader().feature(0)[0].tolist() == np.flatnonzero(codes[:, 0]).tolist()
        writer.finish({"threshold": np.arange(FEATURES)}, {999: "later"})
    return kept.artifact


def test_every_feature_reads_what_was_written(artifact):
    store, codes = FeatureStore.of(artifact), dense()
    for feature in range(FEATURES):
        rows, values = store.feature(feature)
        assert rows.tolist() == np.flatnonzero(codes[:, feature]).tolist()
        np.testing.assert_array_equal(values, codes[rows, feature])
    assert len(store.feature(3)[0]) == 0
    assert (store.n_rows, store.n_features, store.n_counted) == (19, FEATURES, 15)
    assert store.arrays["threshold"].tolist() == list(range(FEATURES))
    np.testing.assert_array_equal(np.concatenate([part.toarray() for part, _ in store.shards()]), codes)
    assert [begin for _, begin in store.shards()] == [0, 6, 7]


def test_windows_end_with_their_document(artifact):
    store = FeatureStore.of(artifact)
    assert store.window(4, 2, 3) == (2, 5)
    assert store.window(5, 3, 3) == (5, 6)  # a document of one token
    assert store.window(18, 30, 30) == (15, 19)
    assert store.document_of(np.array([0, 4, 5, 6, 18])).tolist() == [0, 0, 1, 2, 3]


def test_strings_of_tokens_are_kept_as_they_are(artifact):
    store = FeatureStore.of(artifact)
    assert store.texts([102, 103, 104, 106, 999, 5]) == ["<b>", "\ud83d", "\n", "", "later", "<5>"]


def test_what_does_not_belong_together_is_refused(artifact, tmp_path):
    with pytest.raises(SpecError, match="no such feature"):
        FeatureStore.of(artifact).feature(FEATURES)
    with (
        pytest.raises(SpecError, match="another number of features"),
        ArtifactStore(tmp_path).keep(KIND, format=FORMAT) as kept,
    ):
        FeatureWriter(kept, 3).append(shard_of(scipy.sparse.csr_array(dense()), 0))
    with (
        pytest.raises(SpecError, match="one entry for each feature"),
        ArtifactStore(tmp_path).keep(KIND, format=FORMAT) as kept,
    ):
        FeatureWriter(kept, 3).finish({"threshold": np.zeros(4)})
    with ArtifactStore(tmp_path).keep("toy", format="x") as kept:
        kept.write("a", b"1")
    with pytest.raises(ArtifactError, match="holds no feature activations"):
        FeatureStore.of(kept.artifact)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"version": 2, "features": 1, "shards": [], "documents": [], "domains": []}']
)
def test_an_index_of_another_version_is_refused(tmp_path, content):
    with ArtifactStore(tmp_path).keep(KIND, format=FORMAT) as kept:
        kept.write("index.json", content.encode())
    with pytest.raises(ArtifactError, match="cannot be read here"):
        FeatureStore.of(kept.artifact)


def test_the_index_is_plain_ascii(artifact):
    assert (
        json.loads((artifact.path / "index.json").read_bytes().decode("ascii"))["documents"][2] == "<script>"
    )

"""Results as files for other tools: CSV of every table, and what Neuronpedia's converter reads."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import sparsescope as ss
from sparsescope.core.feature_store import FeatureStore
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.errors import SparsescopeError, SpecError

#: What the converter of Neuronpedia looks up without a default, with the types that its tables have.
BATCH = {"model_id": str, "layer": int, "features": list}
FEATURE = {
    "feature_index": int,
    "neuron_alignment_indices": int,
    "neuron_alignment_values": float,
    "neuron_alignment_l1": float,
    "correlated_neurons_indices": int,
    "correlated_neurons_pearson": float,
    "correlated_neurons_l1": float,
    "correlated_features_indices": int,
    "correlated_features_pearson": float,
    "correlated_features_l1": float,
    "neg_str": str,
    "neg_values": float,
    "pos_str": str,
    "pos_values": float,
    "frac_nonzero": float,
    "freq_hist_data_bar_heights": int,
    "freq_hist_data_bar_values": float,
    "logits_hist_data_bar_heights": int,
    "logits_hist_data_bar_values": float,
    "decoder_weights_dist": float,
    "activations": dict,
}
ACTIVATION = {
    "bin_min": float,
    "bin_max": float,
    "bin_contains": float,
    "tokens": str,
    "values": float,
    "qualifying_token_index": int,
}


@pytest.fixture(scope="module")
def found(glass):
    dictionary = TopKSAE(341, 200, k=6, site="blocks.2.mlp.hook_post", seed=0)
    text = ss.corpus("python-docs+python-source", tokens=2000, context=64)
    return ss.run(
        "features", glass, text, dictionary=dictionary, resamples=100, permutations=40, shown=3, map=False
    )


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "np"
    return ss.export(found, "neuronpedia", folder), folder


def check(value, keys):
    for key, kind in keys.items():
        entries = value[key] if isinstance(value[key], list) else [value[key]]
        assert all(type(entry) is kind for entry in entries), (key, kind, entries[:3])


def test_batches_have_what_the_converter_looks_up(written, found):
    files, folder = written
    assert {path.relative_to(folder).parts[0] for path in files} == {"2-" + slug(found)}
    batches = [json.loads(path.read_text()) for path in files if path.name.startswith("batch-")]
    assert [path.name for path in files if path.name.startswith("batch-")] == [
        f"batch-{n}.json" for n in range(len(batches))
    ]
    seen = []
    for batch in batches:
        assert batch["sae_id_suffix"] is None and len(batch["features"]) <= 128
        check(batch, {"model_id": str, "layer": int})
        for feature in batch["features"]:
            check(feature, FEATURE)
            seen.append(feature["feature_index"])
            for activation in feature["activations"]:
                check(activation, ACTIVATION)
                assert (
                    len(activation["tokens"])
                    == len(activation["values"])
                    > activation["qualifying_token_index"]
                )
    skipped = json.loads((folder / ("2-" + slug(found)) / "skipped_indexes.json").read_text())[
        "skipped_indexes"
    ]
    assert sorted([*seen, *skipped]) == list(range(200))


def slug(found):
    return found.tables["features"]["dictionary"].iloc[0].lower().replace("_", "-")


def test_its_numbers_are_those_of_the_store(written, found):
    files, _ = written
    batch = json.loads(next(path for path in files if path.name == "batch-0.json").read_text())
    artifact = next(
        a
        for a in found.artifacts.values()
        if a.meta.get("dictionary") == found.tables["features"]["dictionary"].iloc[0]
    )
    store = FeatureStore.of(artifact)
    for feature in batch["features"][:20]:
        _, values = store.feature(feature["feature_index"])
        row = found.tables["features"].iloc[feature["feature_index"]]
        assert feature["frac_nonzero"] == pytest.approx(row["density"], abs=1e-7)
        assert sum(feature["freq_hist_data_bar_heights"]) == len(values)
        assert sum(feature["logits_hist_data_bar_heights"]) == 1024  # every token of the vocabulary
        strongest = [a for a in feature["activations"] if a["bin_min"] == -1]
        assert strongest[0]["values"][strongest[0]["qualifying_token_index"]] == pytest.approx(
            values.max(), abs=1e-3
        )
        assert all(a["bin_max"] == pytest.approx(values.max(), abs=1e-3) for a in strongest)
        for a in feature["activations"]:
            if a["bin_min"] != -1:
                assert a["bin_min"] - 1e-3 <= a["values"][a["qualifying_token_index"]] <= a["bin_max"] + 1e-3


def test_csv_has_every_table(found, tmp_path):
    files = ss.export(found, "csv", tmp_path / "tables")
    assert {path.stem for path in files} == set(found.tables)
    frame = pd.read_csv(tmp_path / "tables" / "label_scores.csv", comment="#")
    assert len(frame) == len(found.tables["label_scores"])
    assert np.isfinite(frame["median"]).all() or "median" in frame.columns[4]


def test_bad_targets_and_formats_lose_nothing(found, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(SpecError, match="something is there"):
        ss.export(found, "csv", tmp_path / "full")
    assert (tmp_path / "full" / "note.txt").read_text() == "mine"
    with pytest.raises(SparsescopeError, match="format of features"):
        ss.export(found, "neuronpedi", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    assert ss.export(found, "csv", tmp_path / "empty")
    assert not list(tmp_path.glob(".sparsescope-*"))


def test_an_export_that_fails_leaves_nothing(found, tmp_path, monkeypatch):
    import sparsescope.analysis.features.neuronpedia as module

    monkeypatch.setattr(module.FeatureStore, "of", lambda artifact: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ss.export(found, "neuronpedia", tmp_path / "np")
    assert list(tmp_path.iterdir()) == []

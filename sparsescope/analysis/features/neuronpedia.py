"""Features as the batches that Neuronpedia's converter reads (``batch-0.json`` and so on).

The keys are those of its converter of July 2025, which is what SAEDashboard writes: for each feature neuron
alignment, effects on logits, histograms and contexts. The strongest contexts have ``bin_min`` and
``bin_contains`` -1 and the largest activation as ``bin_max``; those of a quarter have its
ends and 0.25. What is not computed here (correlated neurons and features, weights of heads, the vector) is
an empty list, which the converter takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.features.contexts import QUARTERS, STRONGEST, FeatureContext, contexts_of
from sparsescope.core.feature_store import KIND, FeatureStore
from sparsescope.errors import ArtifactError

if TYPE_CHECKING:
    from sparsescope.core.artifacts import Artifact
    from sparsescope.core.result import Result

BATCH = 128  # features of a file, as SAEDashboard writes them
_BINS = 40
_DIGITS = 4
_EMPTY = (
    "correlated_neurons_indices",
    "correlated_neurons_pearson",
    "correlated_neurons_l1",
    "correlated_features_indices",
    "correlated_features_pearson",
    "correlated_features_l1",
    "decoder_weights_dist",
    "vector",
)


def write_neuronpedia(result: Result, folder: Path) -> list[Path]:
    """Write every dictionary that was trained, each into a folder of its own.

    Args:
        result: Of ``features``.
        folder: Where; it is there and empty.

    Returns:
        The files.

    Raises:
        ArtifactError: The activations are not there any more.
    """
    out: list[Path] = []
    features = result.tables["features"]
    for label in features["dictionary"].unique():
        artifact = next(
            (
                a
                for a in result.artifacts.values()
                if a.kind == KIND and a.present and a.meta.get("dictionary") == label
            ),
            None,
        )
        if artifact is None:
            raise ArtifactError(
                "the activations of these features are not here",
                where=f"{result.run_id or 'result'}, {label}",
                next_step="run the analysis again",
            )
        if artifact.meta.get("kind") != "baseline":
            out += _write(result, folder, str(label), artifact)
    return out


def _write(result: Result, folder: Path, label: str, artifact: Artifact) -> list[Path]:
    store = FeatureStore.of(artifact)
    site = str(artifact.meta.get("site", ""))
    layer = int(re.sub(r"\D", "", site.partition(".")[2].partition(".")[0]) or 0)
    named = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "dictionary"
    named = next(
        name
        for name in chain([named], (f"{named}-{n}" for n in count(2)))
        if not (folder / f"{layer}-{name}").exists()
    )
    place = folder / f"{layer}-{named}"
    place.mkdir()
    subject, corpus = result.provenance.get("subject") or {}, result.provenance.get("corpus") or {}
    head = {"model_id": str(subject.get("id", "")), "layer": layer, "sae_set": named, "sae_id_suffix": None}
    settings = {
        **head,
        "dataset": str(corpus.get("name", "")),
        "n_prompts_total": len(store.documents),
        "n_tokens_in_prompt": int(corpus.get("context") or 0),
        "hook": site,
        "run": result.run_id,
    }
    live = [number for number in range(store.n_features) if store.arrays["active"][number] > 0]
    dead = sorted({*range(store.n_features)} - {*live})
    params = result.provenance.get("params") or {}
    out = [
        _json(place / "run_settings.json", settings),
        _json(place / "skipped_indexes.json", {**head, "skipped_indexes": dead}),
    ]
    for number, begin in enumerate(range(0, len(live), BATCH)):
        batch = [_feature(store, feature, params, settings) for feature in live[begin : begin + BATCH]]
        out.append(_json(place / f"batch-{number}.json", {**head, "features": batch}))
    return out


def _json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, allow_nan=False, ensure_ascii=True), encoding="ascii")
    return path


def _feature(
    store: FeatureStore, number: int, params: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """One feature with the keys of the converter."""
    arrays = store.arrays
    _, values = store.feature(number)
    values = values[values > 0]
    heights, edges = np.histogram(values, _BINS, range=(0.0, float(values.max()) if len(values) else 1.0))
    found: dict[str, Any] = {
        "feature_index": number,
        **{name: [] for name in _EMPTY},
        **_neurons(arrays, number),
        **_logits(store, number),
        "frac_nonzero": _plain(len(values) / max(1, store.n_counted), digits=8),
        "freq_hist_data_bar_heights": [int(height) for height in heights],
        "freq_hist_data_bar_values": _list((edges[:-1] + edges[1:]) / 2),
        "n_prompts_total": settings["n_prompts_total"],
        "n_tokens_in_prompt": settings["n_tokens_in_prompt"],
        "dataset": settings["dataset"],
    }
    made = contexts_of(
        store,
        number,
        top=int(params.get("top", 8)),
        window=int(params.get("window", 12)),
        seed=int(params.get("seed", 0)),
    )
    return {**found, "activations": list(_activations(store, made, values))}


def _neurons(arrays: Any, number: int) -> dict[str, Any]:
    if "neurons" not in arrays:
        return {"neuron_alignment_indices": [], "neuron_alignment_values": [], "neuron_alignment_l1": []}
    weights = arrays["neuron_weights"][number]
    whole = float(arrays["magnitude"][number]) or 1.0
    return {
        "neuron_alignment_indices": [int(neuron) for neuron in arrays["neurons"][number]],
        "neuron_alignment_values": _list(weights),
        "neuron_alignment_l1": _list(np.abs(weights) / whole),
    }


def _logits(store: FeatureStore, number: int) -> dict[str, Any]:
    arrays = store.arrays
    names = ("neg_str", "neg_values", "pos_str", "pos_values")
    if "raised" not in arrays:
        return {name: [] for name in (*names, "logits_hist_data_bar_heights", "logits_hist_data_bar_values")}
    low, high = float(arrays["lowered_by"][number][0]), float(arrays["raised_by"][number][0])
    heights = arrays["logit_histogram"][number]
    edges = np.linspace(low, high, len(heights) + 1)
    return {
        "neg_str": store.texts(arrays["lowered"][number]),
        "neg_values": _list(arrays["lowered_by"][number]),
        "pos_str": store.texts(arrays["raised"][number]),
        "pos_values": _list(arrays["raised_by"][number]),
        "logits_hist_data_bar_heights": [int(height) for height in heights],
        "logits_hist_data_bar_values": _list((edges[:-1] + edges[1:]) / 2),
    }


def _activations(
    store: FeatureStore, made: list[FeatureContext], values: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Contexts with the bins that they were drawn from; random and weak ones are not shown there."""
    ordered = np.sort(values)[::-1]
    quarters = dict(zip(QUARTERS, np.array_split(ordered, len(QUARTERS)), strict=True))
    for context in made:
        if context.group == STRONGEST:
            low, high, share = -1.0, float(ordered[0]), -1.0
        elif context.group in quarters:
            part = quarters[context.group]
            low, high, share = float(part.min()), float(part.max()), 1 / len(QUARTERS)
        else:
            continue
        yield {
            "bin_min": _plain(low),
            "bin_max": _plain(high),
            "bin_contains": _plain(share),
            "tokens": store.texts(store.ids[context.begin : context.end]),
            "values": _list(context.values),
            "qualifying_token_index": context.peak - context.begin,
        }


def _list(values: Any) -> list[float]:
    return [_plain(value) for value in values]


def _plain(value: float, digits: int = _DIGITS) -> float:
    return round(float(value), digits)

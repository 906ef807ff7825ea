"""What a store of feature activations costs: to make, against one pass through the model, and to open.

Making is timed with an autoencoder of the asked width and random weights, whose costs are those of a trained
one, on the text that is given. Opening is timed on a store of the asked size with random entries: the file is
opened anew for each feature, and the page is drawn from it. Passes and makings alternate; ratios are taken
within a repeat.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis
from sparsescope.core.result import Result
from sparsescope.core.spec import Params

if TYPE_CHECKING:
    from sparsescope.activations.context import Context


class FeatureStoreParams(Params):
    """Parameters of the benchmark ``feature_store``."""

    width: int = Field(16_384, ge=64, le=1_000_000, description="Features.")
    k: int = Field(32, ge=1, le=1000, description="Active features of a token.")
    stored_tokens: int = Field(
        1_000_000, ge=1000, le=10**9, description="Tokens of the store that is opened."
    )
    opened: int = Field(64, ge=1, le=10_000, description="Features that are opened.")
    site: str = Field("", description="Site that is read; the hidden layer of the middle MLP when left out.")
    repeats: int = Field(3, ge=2, le=100, description="Repeats of every variant.")


ANALYSIS = Analysis(
    name="feature_store",
    version="1",
    title="Cost of a feature store",
    summary="Time to make a store of feature activations and to open one feature.",
    params=FeatureStoreParams,
    compute="sparsescope.bench.feature_store",
    tables={
        "making": (
            Column("variant", "label", "What is timed."),
            Column("seconds", "seconds", "Median time.", "s"),
            Column("ratio", "value", "Median ratio to a pass through the whole model of the same repeat."),
            Column("ratio_q1", "value", "First quartile.", low_of="ratio"),
            Column("ratio_q3", "value", "Third quartile.", high_of="ratio"),
            Column("tokens", "count", "Tokens read."),
            Column("repeats", "count", "Repeats."),
        ),
        "opening": (
            Column("step", "label", "What is timed, for one feature."),
            Column("median", "seconds", "Median over features.", "s"),
            Column("p95", "seconds", "95 % of the features take at most this.", "s"),
            Column("longest", "seconds", "Longest.", "s"),
            Column("features", "count", "Features opened."),
            Column("store_bytes", "bytes", "Size of the store.", "bytes"),
        ),
    },
    headline=("open_longest", "make_ratio"),
    statements="sparsescope.bench.feature_store_statements",
    measures_time=True,
)


def compute(params: FeatureStoreParams, context: Context) -> Result:
    """Run the benchmark."""
    out = Result("feature_store")
    making = _making(params, context)
    out.add("making", making)
    opening = _opening(params, context)
    out.add("opening", opening)
    made = making[-1]
    out.add_scalar(
        "make_ratio", made["ratio"], "",
        f"time to make a store of {params.width} features / time of a pass through the whole model",
        direction="lower", title="Time to make a store, in passes through the model",
    )  # fmt: skip
    out.add_scalar(
        "open_longest", opening[-1]["longest"], "seconds",
        f"longest time to open the store and draw the page of one of {params.opened} features of "
        f"{params.width}, {params.stored_tokens} tokens",
        direction="lower", title="Longest time to open a feature",
    )  # fmt: skip
    return out


def _making(params: FeatureStoreParams, context: Context) -> list[dict[str, Any]]:
    """Passes and makings in turn."""
    import numpy as np

    from sparsescope.activations.capture import capture
    from sparsescope.analysis.features.postings import Entry, encode_part
    from sparsescope.bench.timing import interleaved, wait
    from sparsescope.dictionaries.places import site_named
    from sparsescope.dictionaries.rows import facts_of
    from sparsescope.dictionaries.topk import TopKSAE

    subject, corpus = context.subject, context.corpus
    site = site_named(subject, params.site)
    dictionary = TopKSAE(site.width, params.width, k=params.k, site=site.name, seed=0)
    entry = Entry("random", dictionary, site, site)
    with capture(subject, corpus, [site.name]) as source:
        first = next(iter(source))
    facts = {site.name: facts_of(first.values[site.name].float(), np.ones(len(first.positions), np.int32))}
    batches = list(corpus.batches())

    def whole() -> None:
        for batch in batches:
            subject.forward(batch.input_ids, None if batch.attention_mask.all() else batch.attention_mask)
        wait(subject.device)

    def read() -> None:
        with capture(subject, corpus, [site.name]) as source:
            for _ in source:
                pass

    def make() -> None:
        encode_part(context, corpus, [entry], facts, 0)

    variants = {"pass through the whole model": whole, f"pass up to {site.name}": read, "store": make}
    seconds = interleaved(
        list(variants.values()),
        params.repeats,
        warmed=1,
        told=lambda done, total: context.progress("variants", done, total, "variants"),
    )
    rows = []
    for place, name in enumerate(variants):
        low, middle, high = np.percentile(seconds[place] / seconds[0], [25, 50, 75])
        rows.append(
            {
                "variant": name,
                "seconds": float(np.median(seconds[place])),
                "ratio": float(middle),
                "ratio_q1": float(low),
                "ratio_q3": float(high),
                "tokens": corpus.n_tokens,
                "repeats": params.repeats,
            }
        )
    return rows


def _opening(params: FeatureStoreParams, context: Context) -> list[dict[str, Any]]:
    """A store of random entries, opened once for every feature."""
    import numpy as np
    import scipy.sparse

    from sparsescope.analysis.features.contexts import contexts_of
    from sparsescope.analysis.features.postings import SHARD_TOKENS
    from sparsescope.core.feature_store import FORMAT, KIND, FeatureStore, FeatureWriter, StoredText, shard_of

    random = np.random.default_rng(0)
    tokens = params.stored_tokens
    # Features are as unequal as they are in trained dictionaries: the densest has a hundred times the median
    weights = 1.0 / np.arange(1, params.width + 1) ** 0.7
    chance = np.cumsum(weights / weights.sum())
    with context.keep(KIND, format=FORMAT, meta={"dictionary": "random"}) as kept:
        writer = FeatureWriter(kept, params.width)
        for begin in range(0, tokens, SHARD_TOKENS):
            count = min(SHARD_TOKENS, tokens - begin)
            columns = np.searchsorted(chance, random.random(count * params.k)).clip(0, params.width - 1)
            values = random.exponential(size=len(columns)).astype(np.float32)
            rows = np.repeat(np.arange(count), params.k)
            codes = scipy.sparse.coo_array((values, (rows, columns)), (count, params.width)).tocsr()
            writer.append(shard_of(codes, begin))
            context.progress("store", begin + count, tokens)
        offsets = np.append(np.arange(0, tokens, 1000), tokens)
        text = StoredText(
            random.integers(0, 1000, tokens).astype(np.int32),
            np.ones(tokens, bool),
            offsets,
            [f"document {number}" for number in range(len(offsets) - 1)],
            ["random"],
            np.zeros(len(offsets) - 1, np.int32),
            {number: f" {number}" for number in range(1000)},
        )
        writer.text(text)
        writer.finish({"threshold": np.zeros(params.width, np.float32)})
    artifact = kept.artifact
    features = random.choice(params.width, min(params.opened, params.width), replace=False).tolist()
    features[0] = 0  # the densest
    taken: dict[str, list[float]] = {"open the store": [], "read its entries": [], "all, with contexts": []}
    for feature in features:
        begun = time.perf_counter()
        store = FeatureStore.of(artifact)
        opened = time.perf_counter()
        store.feature(feature)
        read = time.perf_counter()
        made = contexts_of(store, feature)
        for one in made:
            store.texts(store.ids[one.begin : one.end])
        done = time.perf_counter()
        for name, seconds in zip(taken, (opened - begun, read - opened, done - begun), strict=True):
            taken[name].append(seconds)
    return [
        {
            "step": name,
            "median": float(np.median(seconds)),
            "p95": float(np.percentile(seconds, 95)),
            "longest": max(seconds),
            "features": len(features),
            "store_bytes": artifact.bytes,
        }
        for name, seconds in taken.items()
    ]

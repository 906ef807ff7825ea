"""Attention sparsity, computed: one pass for the rows, one for each level of the dose-response, then tables.

Means over rows are ratios of sums over documents; intervals resample documents within domains.
Shapes: D documents, L layers, H heads, S measures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from sparsescope.activations.context import Context
from sparsescope.analysis.attention_sparsity import TABLES, AttentionSparsityParams, percent_name
from sparsescope.analysis.attention_sparsity.dose import SHORTEST, respond
from sparsescope.analysis.attention_sparsity.response import add_response
from sparsescope.analysis.attention_sparsity.rows import AttentionStatistics, Sums
from sparsescope.analysis.attention_sparsity.windows import choose
from sparsescope.core.result import Interval, Result
from sparsescope.metrics.attention import SINK_LENGTH, SINK_LEVEL, head_class, sink_of_uniform
from sparsescope.metrics.statistics import bootstrap_weights, cluster_interval
from sparsescope.models.attention import attention_rows

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus

_METHOD = "document-cluster bootstrap, percentile"


def compute(params: AttentionSparsityParams, context: Context) -> Result:
    """Measure, and build the result."""
    corpus = choose(context.corpus, params.windows, max(params.t_min + 1, SHORTEST), params.seed)
    documents = sorted({document.index for document in corpus.documents})
    by_index = {document.index: corpus.domains.index(document.domain) for document in corpus.documents}
    strata = np.array([by_index[index] for index in documents])
    causal = "causal" in context.subject.capabilities
    statistics = _measure(params, context, corpus, documents, causal)
    weights = bootstrap_weights(strata, params.resamples, params.seed)
    out = Result("attention_sparsity")
    _row_tables(out, params, statistics, weights)
    _head_table(out, params, statistics)
    _scalars(out, params, statistics, weights, corpus, causal)
    _notes(out, context, corpus, len(documents), causal)
    some = replace(corpus, documents=corpus.documents[: params.dose_windows])
    response = respond(context, some, params) if params.dose_windows and _has_loss(context) else None
    add_response(out, params, response)
    return out


def _has_loss(context: Context) -> bool:
    return {"causal", "logits"} <= context.subject.capabilities


def _measure(
    params: AttentionSparsityParams, context: Context, corpus: TokenizedCorpus, documents: list[int], causal: bool
) -> AttentionStatistics:
    """Run the windows one by one."""
    subject = context.subject
    heads = int(subject.model.config.get_text_config().num_attention_heads)
    longest = corpus.context - corpus.window + max(map(len, corpus.documents))
    shape = (len(documents), subject.n_layers, heads)
    statistics = AttentionStatistics(params, shape, longest, causal)
    place = {index: number for number, index in enumerate(documents)}
    done = 0
    with attention_rows(subject, statistics.visit, chunk_rows=params.chunk), torch.inference_mode():
        for batch in corpus.batches(1):
            statistics.begin(batch, place[int(batch.document[0])])
            subject.forward(batch.input_ids)
            done += batch.n_tokens
            context.progress("attention rows", done, corpus.n_tokens)
    return statistics


def _parts(statistics: AttentionStatistics) -> list[tuple[list[str], Sums, slice]]:
    """Measures that are fractions: their names, their sums, and where they are on the last axis."""
    n = len(statistics.shape_names)
    return [
        (statistics.shape_names, statistics.shapes, slice(0, n)),
        (statistics.place_names, statistics.places, slice(None)),
        (statistics.output_names, statistics.outputs, slice(None)),
        (statistics.window_names, statistics.windows, slice(None)),
    ]


def _references(names: list[str], sums: Sums, part: slice, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the uniform rows [L, S] and of the null rows [L, H, S]; NaN where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        uniform = sums.uniform[..., part].sum(0) / n[:, :, 0].sum(0)
        null = sums.null[..., part].sum(0) / sums.n_null[..., part].sum(0)
    for s, name in enumerate(names):
        if name.startswith(("share_first", "share_previous", "share_local", "share_sink")):
            # Dealing the weights of a row at random leaves 1/t on each key in expectation, exactly the uniform value.
            null[..., s] = uniform[:, None, s]
        elif name.startswith(("error_", "density_output")):
            uniform[..., s] = null[..., s] = np.nan
    return uniform, null


def _long(
    keys: dict[str, np.ndarray], names: list[str], interval: tuple[np.ndarray, ...],
    references: tuple[np.ndarray, np.ndarray], n: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """One row for each key and measure, from arrays [K, S]; ``n`` is [D, K, S]."""
    size = len(names)
    columns = {name: np.repeat(values, size) for name, values in keys.items()}
    columns["metric"] = np.tile(names, len(next(iter(keys.values()))))
    for name, values in zip(("mean", "low", "high", "uniform", "null"), (*interval, *references), strict=True):
        columns[name] = values.reshape(-1)
    columns["rows"] = n.sum(0).reshape(-1).astype(np.int64)
    columns["documents"] = (n > 0).sum(0).reshape(-1)
    return pd.DataFrame(columns)


def _row_tables(out: Result, params: AttentionSparsityParams, statistics: AttentionStatistics, weights: np.ndarray) -> None:
    """Tables by layer, by head and by length."""
    by_layer, by_head = [], []
    for names, sums, part in _parts(statistics):
        real, n = sums.real[..., part], sums.n[..., part]
        layers, heads = real.shape[1], real.shape[2]
        uniform, null = _references(names, sums, part, n)
        interval = cluster_interval(real, n, weights, params.level)
        number = {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
        wide = np.broadcast_to(uniform[:, None], null.shape)
        by_head.append(_long(number, names, interval, (wide, null), n.reshape(len(n), -1, len(names))))
        by_layer.append(_layer_frame(names, real, n, (uniform, null.mean(1)), weights, params.level))
    out.add_table("per_layer", _ordered(pd.concat(by_layer), ["layer"]), TABLES["per_layer"])
    out.add_table("per_head", _ordered(pd.concat(by_head), ["layer", "head"]), TABLES["per_head"])
    part = slice(len(statistics.shape_names), None)
    sums, names = statistics.shapes, statistics.key_names
    uniform, null = _references(names, sums, part, sums.n[..., part])
    frame = _layer_frame(names, sums.real[..., part], sums.n[..., part], (uniform, null.mean(1)), weights, params.level)
    out.add_table("in_keys", frame, TABLES["in_keys"])
    out.add_table("by_length", _by_length(params, statistics, weights), TABLES["by_length"])


def _layer_frame(
    names: list[str],
    real: np.ndarray,
    n: np.ndarray,
    references: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray,
    level: float,
) -> pd.DataFrame:
    """Means over heads. Every head has the same rows, so the mean over heads is that of the pooled rows."""
    interval = cluster_interval(real.sum(2), n.sum(2), weights, level)
    return _long({"layer": np.arange(real.shape[1])}, names, interval, references, n.sum(2) / real.shape[2])


def _ordered(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    return frame.sort_values(keys, kind="stable", ignore_index=True)


def _by_length(params: AttentionSparsityParams, statistics: AttentionStatistics, weights: np.ndarray) -> pd.DataFrame:
    """Measures of concentration by the number of keys t, over heads; entropy in units of ln t and in nats."""
    sums, names = statistics.lengths, [*statistics.shape_names, *statistics.key_names]
    interval = cluster_interval(sums.real, sums.n, weights, params.level)
    with np.errstate(invalid="ignore", divide="ignore"):
        uniform = sums.uniform.sum(0) / statistics.n_uniform.sum(0)
        null = sums.null.sum(0) / sums.n_null.sum(0)
    layers, bins = sums.real.shape[1:3]
    first, last = np.array(statistics.bins).T
    keys = {
        "layer": np.repeat(np.arange(layers), bins),
        "position": np.tile(first, layers),
        "position_end": np.tile(last, layers),
    }
    heads = statistics.shapes.real.shape[2]
    frame = _long(keys, names, interval, (uniform, null), sums.n.reshape(len(sums.n), -1, len(names)) / heads)
    return frame[frame["rows"] > 0].reset_index(drop=True)


def main_share(params: AttentionSparsityParams) -> str:
    """The share that stands for all: 90, or the nearest to it."""
    return percent_name(min(params.shares, key=lambda share: abs(share - 0.9)))


def _head_table(out: Result, params: AttentionSparsityParams, statistics: AttentionStatistics) -> None:
    """Classes of heads."""
    table = out.tables["per_head"].pivot_table(index=["layer", "head"], columns="metric", values="mean", dropna=False)
    found = {
        "first": "share_first", "previous": "share_previous", "local": "share_local_16", "sink_rate": "share_sink_window",
        "sink_rate_64": f"share_sink_{SINK_LENGTH}", "density_90": f"density_top_{main_share(params)}",
        "entropy_normalized": "entropy_normalized",
    }  # fmt: skip
    frame = pd.DataFrame({name: table.get(metric, np.nan) for name, metric in found.items()}).reset_index()
    kinds = [head_class(*row) for row in frame[["first", "previous", "local"]].itertuples(index=False)]
    frame.insert(2, "class", kinds)
    out.add_table("heads", frame, TABLES["heads"])


def _scalars(
    out: Result, params: AttentionSparsityParams, statistics: AttentionStatistics, weights: np.ndarray,
    corpus: TokenizedCorpus, causal: bool,
) -> None:  # fmt: skip
    """Headline numbers: means over layers and heads of the means over rows."""
    over = f"mean over layers, heads and rows of at least {params.t_min} keys, in {statistics.n_windows} windows"
    meanings = {
        "entropy_normalized": "entropy of a row / ln t", "gini": "Gini index of a row", "density_support": "e^entropy / t",
        "gini_received": "Gini index over keys of the attention they receive in a window",
        "share_columns": "mass on the 1 % heaviest keys of a window", "share_diagonals": "mass on the 1 % heaviest distances",
        "share_first": "mass on the first key of the window", "share_first_4": "mass on the first four keys",
        "share_previous": "mass on the key before the query", "share_sink_window": "sink rate alpha_1 over the whole window",
        f"share_sink_{SINK_LENGTH}": f"sink rate alpha_1 over the first {SINK_LENGTH} rows",
    }  # fmt: skip
    for names, sums, part in _parts(statistics):
        real, n = sums.real[..., part], sums.n[..., part]
        # Layers and heads weigh the same, also where some see fewer keys.
        with np.errstate(invalid="ignore", divide="ignore"):
            means = real.sum(0) / n.sum(0)
            samples = np.tensordot(weights, real, 1) / np.tensordot(weights, n, 1)
        for s, name in enumerate(names):
            if not np.isfinite(means[..., s]).any():
                continue
            spread, base = np.nanmean(samples[..., s], axis=(1, 2)), float(np.nanmean(means[..., s]))
            interval = _interval(spread, params.level, n[..., s])
            meaning = meanings.get(name) or _meaning(name)
            # The first output level stands for the measure.
            short = "density_output" if name == statistics.output_names[len(params.shares)] else name
            unit = "" if name.startswith("gini") else "fraction"
            out.add_scalar(f"mean_{short}", base, unit, f"{meaning}: {over}", interval=interval)
            if short.startswith("density_"):
                other = None if interval is None else replace(interval, low=1 - interval.high, high=1 - interval.low)
                name = f"mean_{short.replace('density', 'sparsity')}"
                out.add_scalar(name, 1 - base, unit, f"sparsity = 1 - mean_{short}: {over}", interval=other)
    _sink_scalars(out, params, statistics, weights, causal)
    out.add_scalar("windows", statistics.n_windows, "count", "windows that were measured")
    out.add_scalar("documents", len(statistics.shapes.real), "count", "documents, the independent units of every interval")


def _interval(samples: np.ndarray, level: float, n: np.ndarray) -> Interval | None:
    documents = int((n.reshape(len(n), -1).sum(1) > 0).sum())
    finite = samples[np.isfinite(samples)]
    if documents < 2 or not len(finite):
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(low), float(high), level, _METHOD, documents)


def _sink_scalars(
    out: Result, params: AttentionSparsityParams, statistics: AttentionStatistics, weights: np.ndarray, causal: bool
) -> None:
    """Share of heads that are sinks; the first 64 rows where there are such windows, as in the source."""
    names, sums = statistics.window_names, statistics.windows
    at_64 = causal and sums.n[..., -1].any()
    index = len(names) - (1 if at_64 else 2)
    where = f"the first {SINK_LENGTH} rows" if at_64 else "the whole window"
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = sums.real[..., index].sum(0) / sums.n[..., index].sum(0)
        samples = np.tensordot(weights, sums.real[..., index], 1) / np.tensordot(weights, sums.n[..., index], 1)
    known = np.isfinite(samples).all((1, 2))
    interval = _interval((samples[known] > SINK_LEVEL).mean((1, 2)), params.level, sums.n[..., index])
    definition = f"Sink_eps: share of heads (layer, head) with alpha_1 > {SINK_LEVEL}, over {where}"
    out.add_scalar("share_sink_heads", (rate > SINK_LEVEL).mean(), "fraction", definition, interval=interval)
    if at_64:
        value = sink_of_uniform(SINK_LENGTH)
        meaning = f"H_T / T at T = {SINK_LENGTH}: alpha_1 when every causal row is uniform"
        out.add_scalar(f"uniform_share_sink_{SINK_LENGTH}", value, "fraction", meaning)


def _meaning(name: str) -> str:
    """Meaning of a measure with a number in its name."""
    stem, _, number = name.rpartition("_")
    return {
        "density_top": f"share of the keys that hold {number} % of a row",
        "error_top": f"relative output error when only the keys that hold {number} % of a row are kept",
        "density_output": f"share of the keys to keep for an output error of at most {number} %",
        "density_blocks": f"share of the {number} x {number} blocks that hold 95 % of the mass of each block of queries",
        "share_local": f"mass on keys less than {number} away from the query, itself included",
    }[stem]


def _notes(out: Result, context: Context, corpus: TokenizedCorpus, documents: int, causal: bool) -> None:
    """Say what the reader has to know."""
    total = context.corpus.n_windows
    if len(corpus.documents) < total:
        message = f"{len(corpus.documents)} of {total} windows were measured, spread over documents; 'windows' sets it."
        out.note("info", message, "per_layer")
    lengths = [len(document) + corpus.context - corpus.window for document in corpus.documents]
    if min(lengths) < max(lengths):
        message = f"Windows have {min(lengths)} to {max(lengths)} tokens; measures of a whole window mix these lengths."
        out.note("info", message, "per_layer")
    if not causal:
        message = "This model sees both sides: t is the whole window for every row, and there is no loss to respond to a dose."
        out.note("info", message, "per_layer")
    if documents < 2:
        out.note("warning", "All text is one document: no interval can be given.", "per_layer")
    elif documents < 10:
        out.note("warning", f"Only {documents} documents: bootstrap intervals are likely too narrow.", "per_layer")

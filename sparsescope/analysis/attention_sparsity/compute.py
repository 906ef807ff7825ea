"""Attention sparsity, computed: one pass for the rows, one for each level of the dose-response, then tables.

Means over rows are ratios of sums over documents; intervals resample documents within domains.
Shapes: D documents, L layers, H heads, S measures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from sparsescope.activations.context import Context
from sparsescope.analysis.attention_sparsity import AttentionSparsityParams, percent_name
from sparsescope.analysis.attention_sparsity.critical_sparsity import add_critical_sparsity
from sparsescope.analysis.attention_sparsity.loss_with_fewer_keys import SHORTEST, losses_with_fewer_keys
from sparsescope.analysis.attention_sparsity.rows import AttentionStatistics, Sums
from sparsescope.analysis.attention_sparsity.windows import choose
from sparsescope.core.result import Result
from sparsescope.core.tables import grid
from sparsescope.metrics.attention import SINK_LENGTH, SINK_LEVEL, head_class, sink_of_uniform
from sparsescope.metrics.estimates import DocumentBootstrap, Estimate, note_few_documents
from sparsescope.models.attention import attention_rows

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus


def compute(params: AttentionSparsityParams, context: Context) -> Result:
    """Measure, and build the result."""
    corpus = choose(context.corpus, params.windows, shortest_window(params), params.seed)
    documents = sorted({document.index for document in corpus.documents})
    by_index = {document.index: corpus.domains.index(document.domain) for document in corpus.documents}
    strata = np.array([by_index[index] for index in documents])
    causal = "causal" in context.subject.capabilities
    statistics = _measure(params, context, corpus, documents, causal)
    draws = DocumentBootstrap.draw(strata, params.resamples, params.seed, params.level)
    out = Result("attention_sparsity")
    _row_tables(out, statistics, draws)
    _head_table(out, params)
    _scalars(out, params, statistics, draws, causal)
    _notes(out, params, context, corpus, causal)
    some = replace(corpus, documents=corpus.documents[: params.dose_windows])
    response = (
        losses_with_fewer_keys(context, some, params) if params.dose_windows and _has_loss(context) else None
    )
    add_critical_sparsity(out, params, response)
    return out


def shortest_window(params: AttentionSparsityParams) -> int:
    """Fewest positions of a window that is measured, special tokens included."""
    return max(params.t_min + 1, SHORTEST)


def _has_loss(context: Context) -> bool:
    return {"causal", "logits"} <= context.subject.capabilities


def _measure(
    params: AttentionSparsityParams,
    context: Context,
    corpus: TokenizedCorpus,
    documents: list[int],
    causal: bool,
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
            # Dealing the weights of a row at random leaves 1/t on each key in expectation, exactly
            # the uniform value.
            null[..., s] = uniform[:, None, s]
        elif name.startswith(("error_", "density_output")):
            uniform[..., s] = null[..., s] = np.nan
    return uniform, null


def _long(
    axes: list[dict[str, Any]],
    names: list[str],
    found: Estimate,
    references: tuple[np.ndarray, np.ndarray],
    n: np.ndarray,
) -> pd.DataFrame:
    """One row for each place and measure, from arrays [..., S]; ``n`` is [D, ..., S]."""
    uniform, null = references
    return grid(
        [*axes, {"metric": names}],
        **found._asdict(),
        uniform=uniform,
        null=null,
        rows=n.sum(0).astype(np.int64),
        documents=(n > 0).sum(0),
    )


def _row_tables(out: Result, statistics: AttentionStatistics, draws: DocumentBootstrap) -> None:
    """Tables by layer, by head and by length."""
    layers, heads = (
        {name: np.arange(n)}
        for name, n in zip(("layer", "head"), statistics.shapes.real.shape[1:3], strict=True)
    )

    def over_heads(
        names: list[str], real: np.ndarray, n: np.ndarray, references: tuple[np.ndarray, np.ndarray]
    ) -> pd.DataFrame:
        """Every head has the same rows, so the mean over heads is that of the pooled rows."""
        uniform, null = references
        found = draws.ratio(real.sum(2), n.sum(2))
        return _long([layers], names, found, (uniform, null.mean(1)), n.sum(2) / real.shape[2])

    by_layer, by_head = [], []
    for names, sums, part in _parts(statistics):
        real, n = sums.real[..., part], sums.n[..., part]
        uniform, null = _references(names, sums, part, n)
        by_head.append(_long([layers, heads], names, draws.ratio(real, n), (uniform[:, None], null), n))
        by_layer.append(over_heads(names, real, n, (uniform, null)))
    out.add("per_layer", pd.concat(by_layer).sort_values("layer", kind="stable"))
    out.add("per_head", pd.concat(by_head).sort_values(["layer", "head"], kind="stable"))
    part = slice(len(statistics.shape_names), None)
    sums, names = statistics.shapes, statistics.key_names
    n = sums.n[..., part]
    out.add("in_keys", over_heads(names, sums.real[..., part], n, _references(names, sums, part, n)))
    # By the number of keys t; entropy in units of ln t and in nats.
    sums, names = statistics.lengths, [*statistics.shape_names, *statistics.key_names]
    with np.errstate(invalid="ignore", divide="ignore"):
        references = (
            sums.uniform.sum(0) / statistics.n_uniform.sum(0),
            sums.null.sum(0) / sums.n_null.sum(0),
        )
    first, last = zip(*statistics.bins, strict=True)
    axes: list[dict[str, Any]] = [layers, {"position": first, "position_end": last}]
    n = sums.n / statistics.shapes.real.shape[2]
    frame = _long(axes, names, draws.ratio(sums.real, sums.n), references, n)
    out.add("by_length", frame[frame["rows"] > 0])


def main_share(params: AttentionSparsityParams) -> str:
    """The share that stands for all: 90, or the nearest to it."""
    return percent_name(min(params.shares, key=lambda share: abs(share - 0.9)))


def _head_table(out: Result, params: AttentionSparsityParams) -> None:
    """Classes of heads."""
    table = out.tables["per_head"].pivot_table(
        index=["layer", "head"], columns="metric", values="mean", dropna=False
    )
    found = {
        "first": "share_first",
        "previous": "share_previous",
        "local": "share_local_16",
        "sink_rate": "share_sink_window",
        "sink_rate_64": f"share_sink_{SINK_LENGTH}",
        "density_90": f"density_top_{main_share(params)}",
        "entropy_normalized": "entropy_normalized",
    }
    frame = pd.DataFrame({name: table.get(metric, np.nan) for name, metric in found.items()}).reset_index()
    kinds = [head_class(*row) for row in frame[["first", "previous", "local"]].itertuples(index=False)]
    out.add("heads", frame.assign(**{"class": kinds}))


def _scalars(
    out: Result,
    params: AttentionSparsityParams,
    statistics: AttentionStatistics,
    draws: DocumentBootstrap,
    causal: bool,
) -> None:
    """Headline numbers: means over layers and heads of the means over rows."""
    over = (
        f"mean over layers, heads and rows of at least {params.t_min} keys, in {statistics.n_windows} windows"
    )
    meanings = {
        "entropy_normalized": "entropy of a row / ln t",
        "gini": "Gini index of a row",
        "density_support": "e^entropy / t",
        "gini_received": "Gini index over keys of the attention they receive in a window",
        "share_columns": "mass on the 1 % heaviest keys of a window",
        "share_diagonals": "mass on the 1 % heaviest distances",
        "share_first": "mass on the first key of the window",
        "share_first_4": "mass on the first four keys",
        "share_previous": "mass on the key before the query",
        "share_sink_window": "sink rate alpha_1 over the whole window",
        f"share_sink_{SINK_LENGTH}": f"sink rate alpha_1 over the first {SINK_LENGTH} rows",
    }
    for names, sums, part in _parts(statistics):
        real, n = sums.real[..., part], sums.n[..., part]
        # Layers and heads weigh the same, also where some see fewer keys.
        with np.errstate(invalid="ignore", divide="ignore"):
            means = real.sum(0) / n.sum(0)
        samples = draws.replicates(real, n)
        for s, name in enumerate(names):
            if not np.isfinite(means[..., s]).any():
                continue
            spread, base = np.nanmean(samples[..., s], axis=(1, 2)), float(np.nanmean(means[..., s]))
            interval = draws.interval(spread, _documents(n[..., s]))
            meaning = meanings.get(name) or _meaning(name)
            # The first output level stands for the measure.
            short = "density_output" if name == statistics.output_names[len(params.shares)] else name
            unit = "" if name.startswith("gini") else "fraction"
            out.add_scalar(f"mean_{short}", base, unit, f"{meaning}: {over}", interval=interval)
            if short.startswith("density_"):
                other = (
                    None
                    if interval is None
                    else replace(interval, low=1 - interval.high, high=1 - interval.low)
                )
                name = f"mean_{short.replace('density', 'sparsity')}"
                out.add_scalar(name, 1 - base, unit, f"sparsity = 1 - mean_{short}: {over}", interval=other)
    _sink_scalars(out, statistics, draws, causal)
    out.add_scalar("windows", statistics.n_windows, "count", "windows that were measured")
    out.add_scalar(
        "documents",
        len(statistics.shapes.real),
        "count",
        "documents, the independent units of every interval",
    )


def _documents(n: np.ndarray) -> int:
    """Documents with anything counted, from counts [D, ...]."""
    return int((n.reshape(len(n), -1).sum(1) > 0).sum())


def _sink_scalars(
    out: Result, statistics: AttentionStatistics, draws: DocumentBootstrap, causal: bool
) -> None:
    """Share of heads that are sinks; the first 64 rows where there are such windows, as in the source."""
    names, sums = statistics.window_names, statistics.windows
    at_64 = causal and sums.n[..., -1].any()
    index = len(names) - (1 if at_64 else 2)
    where = f"the first {SINK_LENGTH} rows" if at_64 else "the whole window"
    real, n = sums.real[..., index], sums.n[..., index]
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = real.sum(0) / n.sum(0)
    samples = draws.replicates(real, n)
    known = np.isfinite(samples).all((1, 2))
    interval = draws.interval((samples[known] > SINK_LEVEL).mean((1, 2)), _documents(n))
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
        "density_blocks": (
            f"share of the {number} x {number} blocks that hold 95 % of the mass of each block of queries"
        ),
        "share_local": f"mass on keys less than {number} away from the query, itself included",
    }[stem]


def _notes(
    out: Result, params: AttentionSparsityParams, context: Context, corpus: TokenizedCorpus, causal: bool
) -> None:
    """Say what the reader has to know."""
    total = context.corpus.n_windows
    if len(corpus.documents) < min(params.windows, total):
        message = (
            f"Only {len(corpus.documents):,} of {total:,} windows have the {shortest_window(params)} tokens "
            "that are needed, and were measured; longer documents, or a smaller 't_min', give more."
        )
        out.note("warning", message, "per_layer")
    elif len(corpus.documents) < total:
        message = (
            f"{len(corpus.documents)} of {total} windows were measured, spread over "
            "documents; 'windows' sets it."
        )
        out.note("info", message, "per_layer")
    lengths = [len(document) + corpus.context - corpus.window for document in corpus.documents]
    if min(lengths) < max(lengths):
        message = (
            f"Windows have {min(lengths)} to {max(lengths)} tokens; measures of a whole "
            "window mix these lengths."
        )
        out.note("info", message, "per_layer")
    if not causal:
        message = (
            "This model sees both sides: t is the whole window for every row, and there is no "
            "loss to respond to a dose."
        )
        out.note("info", message, "per_layer")
    note_few_documents(out, len({document.index for document in corpus.documents}), "per_layer")

"""Activation reuse, computed: from sums by document to tables with nulls and intervals.

Means are ratios of sums over documents; intervals resample documents within domains. Rates of units, which the nulls need,
come from all tokens but the first of each window.
Shapes: C documents, L sites, R rules, K chunk lengths, B resamples.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsescope.activations.context import Context
from sparsescope.analysis.activation_reuse import TABLES, ActivationReuseParams, tables
from sparsescope.analysis.activation_reuse.accumulate import ReuseAccumulator
from sparsescope.core.result import Interval, Result
from sparsescope.errors import SubjectError
from sparsescope.kernels.use_sets import RULES
from sparsescope.metrics.jackknife import jackknife_interval
from sparsescope.metrics.statistics import bootstrap_weights, cluster_interval, mean_over_present

BOOTSTRAP = "document-cluster bootstrap, percentile"
JACKKNIFE = "delete-a-group jackknife over folds of documents"


def accumulator(params: ActivationReuseParams, context: Context) -> ReuseAccumulator:
    """Return the accumulator to feed in the shared forward pass."""
    patterns = [params.sites] if isinstance(params.sites, str) else list(params.sites)
    sites = context.subject.sites(patterns)
    return ReuseAccumulator(sites, params.use_share, context.corpus.context, params.seed)


def result(params: ActivationReuseParams, context: Context, accumulated: ReuseAccumulator) -> Result:
    """Build the result from the sums.

    Raises:
        SubjectError: If there is no token after the first of a window.
    """
    found = accumulated.finish()
    if not found.fold_tokens.any():
        raise SubjectError(
            "there is no token after the first of a window, and the first one is not measured",
            where=f"corpus {context.corpus.name}",
            got=f"{context.corpus.n_tokens} tokens in {len(found.documents)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    keys = sorted(found.clusters, key=lambda key: (key[1], key[0]))
    order = [found.clusters[key] for key in keys]
    sums = {name: array[order] for name, array in found.sums.items()}
    weights = bootstrap_weights(np.array([domain for domain, _ in keys]), params.resamples, params.seed)
    tokens = int(found.fold_tokens.sum())
    rates = [fired.sum(0) / tokens for fired in found.fired]  # [R, U] for each site
    place = pd.DataFrame([{"layer": site.layer, "site": site.name, "rule": rule} for site in found.sites for rule in RULES])
    out = Result("activation_reuse")
    ratios, use = tables.union_ratios(found, keys, sums), tables.use_inequality(found)
    frames = {
        "union_density": tables.unions(place, found, sums, weights, rates, ratios, params.level),
        "chunk_sparsity": tables.chunk_sparsity(place, found, sums, weights, params.level),
        "aggregated": tables.aggregated(place, found, sums, weights, rates, params.level),
        "neighbors": tables.neighbors(place, found, sums, weights, params.level),
        "lorenz": tables.lorenz(found, rates),
        "concentration": tables.concentration(place, found, use, params.level),
        "upper_bounds": tables.bounds_of(params, context, found, sums, weights),
    }
    for name, columns in TABLES.items():
        out.add_table(name, frames[name][[column.name for column in columns]], columns)
    _scalars(out, found, sums, weights, params.level)
    _jackknifed(out, ratios, use[1], params.level)
    _notes(out, context, len(found.documents), len(keys), rates)
    return out


def _scalars(out: Result, found: ReuseAccumulator, sums: dict[str, np.ndarray], weights: np.ndarray, level: float) -> None:
    """Means over sites, with intervals where they are means over tokens of documents."""
    documents = int((sums["chunks"][:, 0] > 0).sum())
    over = f"mean over {len(found.sites)} sites"
    shares = tables.shares_of(found, sums["union"]).mean(1)  # [C, R, K]: sites have equal numbers of chunks
    mean, low, high = cluster_interval(shares, sums["chunks"][:, None, :], weights, level)

    def interval(ends: tuple[float, float]) -> Interval | None:
        low, high = map(float, ends)
        return Interval(low, high, level, BOOTSTRAP, documents) if np.isfinite([low, high]).all() else None

    n = tables.CHUNK.bit_length() - 1
    neighbors = out.tables["neighbors"]
    for index, rule in enumerate(RULES):
        suffix = rule.replace(" ", "_")
        meaning = "not exactly zero" if rule == "nonzero" else "in the energy set"
        for name, at, text in (
            ("token_sparsity", 0, "a token"),
            ("chunk_sparsity", n, f"any of {tables.CHUNK} consecutive tokens"),
        ):
            if at < found.levels and np.isfinite(mean[index, at]):
                ends = (1 - high[index, at], 1 - low[index, at])
                out.add_scalar(
                    f"{name}_{suffix}", 1 - mean[index, at], "fraction",
                    f"sparsity: share of units that are not active ({meaning}) on {text}; {over}", interval=interval(ends),
                )  # fmt: skip
        rows = neighbors[neighbors["rule"] == rule]
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs = sums["pairs"][:, :, index].astype(float)
            replicates = mean_over_present((weights @ sums["overlap"][:, :, index]) / (weights @ pairs), axis=1)
        tail = 100 * (1 - level) / 2
        finite = replicates[np.isfinite(replicates)]
        ends = np.percentile(finite, [tail, 100 - tail]) if documents > 1 and len(finite) else (np.nan, np.nan)
        out.add_scalar(
            f"neighbor_overlap_{suffix}", rows["mean"].mean(), "",
            f"Jaccard index of the units ({meaning}) of two consecutive tokens; {over}", interval=interval(tuple(ends)),
        )  # fmt: skip
        for name, text in (("within", "the same document"), ("across", "different documents")):
            out.add_scalar(
                f"neighbor_overlap_{name}_{suffix}", rows[name].mean(), "",
                f"null: Jaccard index of the units ({meaning}) of random tokens of {text}; {over}",
            )  # fmt: skip
    out.add_scalar("tokens", found.fold_tokens.sum(), "count", "tokens after the first of each window")
    out.add_scalar("documents", documents, "count", "documents, the independent units of every interval")


def _jackknifed(out: Result, ratios: np.ndarray, use: np.ndarray, level: float) -> None:
    """Means over sites of numbers that are no means over tokens; ``ratios`` [G, L, R, K] and ``use`` [G, 2, L, R]."""
    documents, k = int(out.scalars["documents"].value), tables.CHUNK
    unions, use_table = out.tables["union_density"], out.tables["concentration"]
    for index, rule in enumerate(RULES):
        meaning = "not exactly zero" if rule == "nonzero" else "in the energy set"
        by_rule = use_table[use_table["rule"] == rule]
        rows = unions[(unions["rule"] == rule) & (unions["chunk"] == k)]
        numbers = [
            ("hot_share", by_rule["hot_share"], use[:, 1, :, index], "fraction",
             f"smallest share of units with 80 % of all firings ({meaning})"),
            ("gini_of_use", by_rule["gini"], use[:, 0, :, index], "", f"Gini coefficient of how often units are {meaning}"),
        ]  # fmt: skip
        if len(rows):
            text = f"union density of {k} consecutive tokens / that of independent tokens with the same rates ({meaning})"
            numbers.append((f"union_ratio_{k}", rows["ratio"], ratios[:, :, index, k.bit_length() - 1], "", text))
        for name, values, replicates, unit, text in numbers:
            mean = float(values.mean())
            low, high = jackknife_interval(np.asarray(mean), replicates.mean(1), level)
            interval = Interval(float(low), float(high), level, JACKKNIFE, documents) if np.isfinite(low) else None
            sites = f"{text}; mean over {len(values)} sites"
            out.add_scalar(f"{name}_{rule.replace(' ', '_')}", mean, unit, sites, interval=interval)


def _notes(out: Result, context: Context, documents: int, clusters: int, rates: list[np.ndarray]) -> None:
    """Say what the reader has to know."""
    if context.subject.identity.dtype in {"bfloat16", "float16"}:
        out.note(
            "warning", "Small values underflow to exact zeros in this dtype: use float32 for the rule 'nonzero'.", "union_density"
        )
    if min(float(rate[0].mean()) for rate in rates) > 0.98:
        out.note(
            "info",
            "More than 98 % of entries are not exactly zero, as expected of SwiGLU and GELU: read the rule 'in use'.",
            "union_density",
        )
    if documents < 2:
        out.note("warning", "All text is one document: no interval can be given.", "union_density")
    elif documents < 10:
        out.note("warning", f"Only {documents} documents: intervals are likely too narrow.", "union_density")
    if clusters < documents:
        out.note("info", f"{documents} documents were grouped into {clusters} clusters to bound memory.", "union_density")

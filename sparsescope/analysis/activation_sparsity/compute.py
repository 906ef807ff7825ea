"""Activation sparsity, computed: from the sums of one forward pass to tables with intervals.

Means are ratios of sums over documents; intervals resample documents within domains. Everything but the table
``by_position`` leaves out the first token of each window.
Shapes: C documents, L sites, P position bins, S statistics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sparsescope.activations.bound_table import interval_of
from sparsescope.activations.context import Context
from sparsescope.activations.sparsity_accumulator import SHAPE_BINS, SiteStatistics, SparsityAccumulator
from sparsescope.analysis.activation_sparsity import TABLES, ActivationSparsityParams, percent_name
from sparsescope.analysis.activation_sparsity.savings import bounds_of
from sparsescope.core.result import Interval, Result
from sparsescope.errors import SubjectError
from sparsescope.kernels.row_statistics import SHAPE_MEASURES
from sparsescope.metrics.jackknife import jackknife_interval
from sparsescope.metrics.sparsity import half_normal_reference, treves_rolls_from_sums
from sparsescope.metrics.statistics import (
    bootstrap_weights,
    cluster_interval,
    effective_tokens,
    histogram_quantiles,
    mean_over_present,
    pooled_intraclass_correlation,
    zero_events_bound,
)

RULES = ("nonzero", "in use")
ALWAYS_ON = 0.99
FREQUENCY_POINTS = 101
MIN_EVENTS = 30


def accumulator(params: ActivationSparsityParams, context: Context) -> SparsityAccumulator:
    """Return the accumulator to feed in the shared forward pass."""
    subject = context.subject
    sites = subject.hidden_sites() if params.sites == "auto" else subject.sites(params.sites)
    return SparsityAccumulator(sites, params.shares, params.use_share, context.corpus.context)


def metric_names(shares: tuple[float, ...]) -> list[str]:
    """Metric ids in the order of the statistics axis."""
    sets = [f"density_{norm}_{percent_name(share)}" for norm in ("l1", "energy") for share in shares]
    return ["density_nonzero", *sets, *SHAPE_MEASURES]


def result(params: ActivationSparsityParams, context: Context, accumulated: SparsityAccumulator) -> Result:
    """Build the result from the sums."""
    statistics = accumulated.finish()
    sites, metrics = accumulated.sites, metric_names(params.shares)
    # Order by document, so that the bootstrap does not depend on the order in which shards were merged.
    keys = sorted(accumulated.clusters, key=lambda key: (key[1], key[0]))
    order = [accumulated.clusters[key] for key in keys]
    strata = np.array([domain for domain, _ in keys])
    sums = np.stack([statistics[site.name].sums[order] for site in sites], axis=1)  # [C, L, P, S]
    tokens = np.stack([statistics[site.name].counts[order] for site in sites], axis=1)  # [C, L, P, 2]
    # Shape measures are means over the tokens that have a shape: the non-zero vectors.
    shaped = np.array([metric in SHAPE_MEASURES for metric in metrics])
    counts = np.where(shaped, tokens[..., 1:2], tokens[..., 0:1])  # [C, L, P, S]
    weights = bootstrap_weights(strata, params.resamples, params.seed)

    out = Result("activation_sparsity")
    later_sums, later_counts = sums[:, :, 1:].sum(2), counts[:, :, 1:].sum(2)
    if not later_counts.any():
        raise SubjectError(
            "there is no token after the first of a window, and the first one is not measured with the others",
            where=f"corpus {context.corpus.name}",
            got=f"{context.corpus.n_tokens} tokens in {len(keys)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    per_layer = cluster_interval(later_sums, later_counts, weights, params.level)
    out.add_table("per_layer", _per_layer(sites, metrics, per_layer, later_counts, statistics), TABLES["per_layer"])
    by_position = cluster_interval(sums, counts, weights, params.level)
    out.add_table("by_position", _by_position(sites, metrics, accumulated.bins, by_position, counts), TABLES["by_position"])
    frames = []
    for domain in np.unique(strata):
        member = strata == domain
        interval = cluster_interval(later_sums[member], later_counts[member], weights[:, member], params.level)
        frame = _long(sites, metrics, interval, later_counts[member])
        frame.insert(2, "domain", context.corpus.domains[domain])
        frames.append(frame)
    out.add_table("by_domain", pd.concat(frames, ignore_index=True), TABLES["by_domain"])
    out.add_table("frequency", _frequency(sites, statistics), TABLES["frequency"])
    out.add_table("unit_use", _unit_use(sites, statistics, params.level), TABLES["unit_use"])
    out.add_table("units", _units(sites, statistics), TABLES["units"])
    population = per_layer[0][:, metrics.index("treves_rolls")]
    out.add_table("lifetime", _lifetime(sites, statistics, population, params.level), TABLES["lifetime"])
    bounds = bounds_of(params, context, sites, metrics, later_sums, later_counts, weights)
    out.add_table("upper_bounds", pd.DataFrame(bounds, columns=[c.name for c in TABLES["upper_bounds"]]), TABLES["upper_bounds"])
    _scalars(out, params, metrics, later_sums, later_counts, weights, statistics)
    _bound_scalars(out, bounds, params.level)
    _notes(out, context, accumulated, len(keys), per_layer[0][:, 0])
    return out


def _long(sites: Any, metrics: list[str], interval: tuple[np.ndarray, ...], counts: np.ndarray) -> pd.DataFrame:
    """One row for each site and metric, from arrays [L, S]; ``counts`` is [C, L, S]."""
    mean, low, high = interval
    n = len(metrics)
    return pd.DataFrame(
        {
            "layer": np.repeat([site.layer for site in sites], n),
            "site": np.repeat([site.name for site in sites], n),
            "metric": metrics * len(sites),
            "mean": mean.reshape(-1),
            "low": low.reshape(-1),
            "high": high.reshape(-1),
            "tokens": counts.sum(0).reshape(-1),
            "documents": (counts > 0).sum(0).reshape(-1),
        }
    )


def _per_layer(
    sites: Any, metrics: list[str], interval: tuple[np.ndarray, ...], counts: np.ndarray, statistics: dict[str, SiteStatistics]
) -> pd.DataFrame:
    """Means, intervals and quantiles over tokens, with what a half-normal vector gives."""
    frame = _long(sites, metrics, interval, counts)
    is_density = frame["metric"].str.startswith("density_")
    frame.insert(6, "sparsity", np.where(is_density, 1 - frame["mean"], np.nan))
    quantiles = np.stack([_quantiles(statistics[site.name]) for site in sites])  # [L, S, 3]
    for offset, name in enumerate(("q05", "q50", "q95")):
        frame.insert(7 + offset, name, quantiles[:, :, offset].reshape(-1))
    references = [half_normal_reference(metric) for metric in metrics]
    frame.insert(10, "reference", references * len(sites))
    return frame


def _quantiles(statistics: SiteStatistics) -> np.ndarray:
    """5th, 50th and 95th percentile over tokens of each statistic, [S, 3]."""
    wanted = (0.05, 0.5, 0.95)
    units = statistics.set_histogram.shape[1] - 1
    # Set sizes are whole numbers: the quantile is one of them, not a value between two.
    sets = [_count_quantiles(counts, wanted) / units for counts in statistics.set_histogram]
    edges = np.linspace(0, 1, SHAPE_BINS + 1)
    shapes = [histogram_quantiles(counts, edges, wanted) for counts in statistics.shape_histogram]
    kurtosis = SHAPE_MEASURES.index("kurtosis")
    shapes[kurtosis] = units ** shapes[kurtosis]  # its histogram is over ln k / ln n
    return np.array(sets + shapes)


def _count_quantiles(counts: np.ndarray, wanted: tuple[float, ...]) -> np.ndarray:
    """Smallest k with at least a share q of the tokens at or below it; NaN without tokens."""
    total = counts.sum()
    if total == 0:
        return np.full(len(wanted), np.nan)
    return np.searchsorted(np.cumsum(counts), np.ceil(np.asarray(wanted) * total)).astype(float)


def _by_position(
    sites: Any, metrics: list[str], bins: tuple[tuple[int, int], ...], interval: tuple[np.ndarray, ...], counts: np.ndarray
) -> pd.DataFrame:
    """One row for each site, position bin and metric that any token fell into."""
    frames = []
    for index, (first, last) in enumerate(bins):
        frame = _long(sites, metrics, tuple(part[:, index] for part in interval), counts[:, :, index])
        frame.insert(2, "position", first)
        frame.insert(3, "position_end", last)
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    return frame[frame["tokens"] > 0].sort_values(["layer", "site", "position"], kind="stable", ignore_index=True)


def _rates(statistics: SiteStatistics) -> np.ndarray:
    """Share of tokens on which each unit fired, [2, U]; NaN when the site saw no token."""
    tokens = statistics.lengths[1]
    return statistics.fired / tokens if tokens else np.full(statistics.fired.shape, np.nan)


def _frequency(sites: Any, statistics: dict[str, SiteStatistics]) -> pd.DataFrame:
    """Rates sorted from the most used unit down, at fixed shares of the units."""
    frames = []
    for site in sites:
        rates = -np.sort(-_rates(statistics[site.name]), axis=1)
        points = np.unique(np.linspace(0, rates.shape[1] - 1, FREQUENCY_POINTS).round().astype(int))
        frames.append(
            pd.DataFrame(
                {
                    "layer": site.layer,
                    "site": site.name,
                    "rank": (points + 1) / rates.shape[1],
                    "nonzero": rates[0, points],
                    "in_use": rates[1, points],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _unit_use(sites: Any, statistics: dict[str, SiteStatistics], level: float) -> pd.DataFrame:
    """Dead and always-on units with bounds that count tokens of one document as dependent."""
    rows = []
    for site in sites:
        found = statistics[site.name]
        documents, tokens, squared = (int(n) for n in found.lengths)
        rates = _rates(found)
        for index, rule in enumerate(RULES):
            rate = rates[index]
            p = rate if tokens else np.zeros(site.width)
            spread = found.fired_squared[index] - 2 * p * found.fired_by_length[index] + p * p * squared
            # Pooled over units, since a unit that always or never fires has no correlation of its own. With hardly any
            # event to pool, the documents are taken as the only independent units (ICC = 1).
            variance = (p * (1 - p)).sum()
            enough = tokens * variance >= MIN_EVENTS
            icc = pooled_intraclass_correlation(spread.sum(), variance, tokens, squared, documents) if enough else 1.0
            n_effective = effective_tokens(tokens, squared, icc)
            bound = zero_events_bound(n_effective, level)
            dead, on = rate == 0, rate > ALWAYS_ON
            # An expert that no token was routed to has units of which nothing is known.
            known = 1.0 if tokens else np.nan
            row = {"layer": site.layer, "site": site.name, "rule": rule, "units": site.width}
            row |= {"dead": int(dead.sum()), "dead_share": known * dead.mean(), "dead_bound": bound}
            row |= {"always_on": int(on.sum()), "always_on_share": known * on.mean(), "always_on_bound": 1 - bound}
            row |= {f"below_{100 * limit:g}%": known * (rate < limit).mean() for limit in (0.001, 0.01, 0.1, 0.5)}
            row |= {"icc": icc, "effective_tokens": n_effective, "tokens": tokens, "documents": documents}
            rows.append(row)
    return pd.DataFrame(rows)


def _units(sites: Any, statistics: dict[str, SiteStatistics]) -> pd.DataFrame:
    """One row for each unit."""
    frames = []
    for site in sites:
        found = statistics[site.name]
        rates = _rates(found)
        frames.append(
            pd.DataFrame(
                {
                    "layer": site.layer,
                    "site": site.name,
                    "neuron": np.arange(site.width),
                    "nonzero": rates[0],
                    "in_use": rates[1],
                    "documents_nonzero": found.fired_documents[0],
                    "documents_in_use": found.fired_documents[1],
                    "mean_magnitude": found.magnitude.sum(0) / max(int(found.lengths[1]), 1),
                    "lifetime_sparseness": treves_rolls_from_sums(
                        found.magnitude.sum(0), found.energy.sum(0), int(found.lengths[1])
                    ),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _lifetime(sites: Any, statistics: dict[str, SiteStatistics], population: np.ndarray, level: float) -> pd.DataFrame:
    """Lifetime sparseness over the units of each site; intervals leave out a fold of documents in turn."""
    rows = []
    for index, site in enumerate(sites):
        found = statistics[site.name]
        total, energy, tokens = found.magnitude.sum(0), found.energy.sum(0), int(found.fold_tokens.sum())
        units = treves_rolls_from_sums(total, energy, tokens)
        replicates = [
            treves_rolls_from_sums(total - found.magnitude[fold], energy - found.energy[fold], tokens - found.fold_tokens[fold])
            for fold in np.flatnonzero(found.fold_tokens)
        ]
        mean = mean_over_present(units, 0)
        means = mean_over_present(np.array(replicates).reshape(-1, site.width), 1)
        low, high = jackknife_interval(mean, means, level)
        known = units[np.isfinite(units)]
        quantiles = np.quantile(known, (0.05, 0.5, 0.95)) if len(known) else np.full(3, np.nan)
        row = {"layer": site.layer, "site": site.name, "mean": float(mean), "low": max(float(low), 0.0), "high": float(high)}
        row |= dict(zip(("q05", "q50", "q95"), map(float, quantiles), strict=True))
        row |= {"population": float(population[index]), "reference": half_normal_reference("treves_rolls")}
        rows.append(row | {"units": len(known), "tokens": tokens, "documents": int(found.lengths[0])})
    return pd.DataFrame(rows)


def _bound_scalars(out: Result, bounds: list[dict[str, Any]], level: float) -> None:
    """Bounds that need no predictor, as scalars."""
    for row in bounds:
        if row["scheme"] != "first matrix computed":
            continue
        what = "flops" if row["quantity"] == "FLOPs" else "weight_bytes"
        rule = "nonzero" if row["rule"] == "nonzero" else row["rule"].replace(" ", "_").replace("_%", "")
        out.add_scalar(
            f"bound_{what}_saved_{rule}",
            row["saved_model"],
            "fraction",
            f"upper bound on the {row['quantity']} of one decoded token saved by skipping inactive units; active: {row['rule']}; "
            f"{row['assumptions']}",
            interval=interval_of(row, level),
        )


def _scalars(
    out: Result,
    params: ActivationSparsityParams,
    metrics: list[str],
    sums: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    statistics: dict[str, SiteStatistics],
) -> None:
    """Headline numbers: means over sites of the means over tokens; sites that saw no token are left out."""
    seen = counts.sum(0)[:, 0] > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        per_site = sums[:, seen].sum(0) / counts[:, seen].sum(0)
        replicates = np.tensordot(weights, sums[:, seen], 1) / np.tensordot(weights, counts[:, seen].astype(float), 1)
    spread = mean_over_present(replicates, axis=1)  # [B, S]; a rare expert may be absent from a resample
    mean = per_site.mean(0)  # [S]
    documents = int((counts.sum((1, 2)) > 0).sum())
    tail = (1 - params.level) / 2

    def interval(values: np.ndarray) -> Interval | None:
        if documents < 2 or not np.isfinite(values).any():
            return None
        low, high = np.nanquantile(values, [tail, 1 - tail])
        return Interval(float(low), float(high), params.level, "document-cluster bootstrap, percentile", documents)

    over = f"mean over {int(seen.sum())} sites of the mean over tokens after the first of each window"
    for index, metric in enumerate(metrics):
        # Column names follow the table, with the shorter names that people ask for.
        name = "mean_nonzero" if metric == "density_nonzero" else f"mean_{metric}"
        kind = "density" if metric.startswith("density") else metric
        unit = "fraction" if kind == "density" else ""
        out.add_scalar(name, mean[index], unit, f"{kind} {_meaning(metric)}: {over}", interval=interval(spread[:, index]))
        if kind == "density":
            other = "mean_zero_sparsity" if index == 0 else name.replace("density", "sparsity")
            out.add_scalar(
                other, 1 - mean[index], unit, f"sparsity = 1 - {name}: {over}", interval=interval(1 - spread[:, index])
            )
    rates = [_rates(statistics[name]) for name in statistics]
    for index in range(len(RULES)):
        suffix = "" if index == 0 else "_in_use"
        meaning = "not exactly zero" if index == 0 else f"in the set that holds {params.use_share:.0%} of the energy"
        dead = sum(int((rate[index] == 0).sum()) for rate in rates)
        on = sum(int((rate[index] > ALWAYS_ON).sum()) for rate in rates)
        out.add_scalar(f"dead_units{suffix}", dead, "count", f"units that were never {meaning}, all sites together")
        out.add_scalar(
            f"always_on_units{suffix}", on, "count", f"units that were {meaning} on more than {ALWAYS_ON:.0%} of tokens"
        )
    lengths = np.stack([found.lengths for found in statistics.values()])
    out.add_scalar("units", sum(rate.shape[1] for rate in rates), "count", "units at all sites together")
    out.add_scalar("tokens", lengths[:, 1].max(), "count", "tokens after the first of each window (most of any site)")
    out.add_scalar("documents", documents, "count", "documents, the independent units of every interval")


def _meaning(metric: str) -> str:
    if metric == "density_nonzero":
        return "(share of units that are not exactly zero)"
    if metric.startswith("density_l1_"):
        return f"(share of units in the smallest set that holds {metric.removeprefix('density_l1_')} % of the L1 norm)"
    if metric.startswith("density_energy_"):
        return f"(share of units in the smallest set that holds {metric.removeprefix('density_energy_')} % of the energy)"
    return {
        "hoyer": "= (sqrt(n) - L1/L2) / (sqrt(n) - 1)",
        "gini": "index of |v|",
        "pr2": "= (sum |v|)^2 / (n sum v^2), participation ratio",
        "pr4": "= (sum v^2)^2 / (n sum v^4), participation ratio of energies",
        "entropy_number": "= exp(-sum p ln p) / n with p = |v| / sum |v|",
        "kurtosis": "= n sum v^4 / (sum v^2)^2, about zero; 3 for a normal vector",
        "treves_rolls": "= (1 - PR2) / (1 - 1/n), Treves-Rolls population sparseness over units",
    }[metric]


def _notes(out: Result, context: Context, accumulated: SparsityAccumulator, documents: int, nonzero: np.ndarray) -> None:
    """Say what the reader has to know."""
    identity = context.subject.identity
    if identity.origin_precision != identity.dtype:
        out.note(
            "info",
            f"The weights were stored as {identity.origin_precision} and computed in {identity.dtype}: what is "
            "measured is the model as rounded for storage.",
            "subject",
        )
    if identity.dtype in {"bfloat16", "float16"}:
        out.note(
            "warning",
            f"Activations are {identity.dtype}: small values underflow to exact zeros and ties are common. "
            "Use float32 for exact-zero densities.",
            "density_nonzero",
        )
    if np.nanmin(nonzero) > 0.98:
        out.note(
            "info",
            "More than 98 % of entries are not exactly zero at every site, as expected of SwiGLU and GELU: the exact-zero "
            "density carries no information here. Read the top-p densities and the concentration measures.",
            "density_nonzero",
        )
    if len(accumulated.documents) > documents:
        out.note(
            "info",
            f"{len(accumulated.documents)} documents were grouped into {documents} clusters to bound memory; intervals resample "
            "clusters, and 'documents' in the tables counts them.",
            "per_layer",
        )
    if documents < 2:
        out.note("warning", "All text is one document: no interval can be given.", "per_layer")
    elif documents < 10:
        out.note("warning", f"Only {documents} documents: bootstrap intervals are likely too narrow.", "per_layer")
    if accumulated.zero_vectors:
        out.note(
            "info",
            f"{accumulated.zero_vectors} activation vectors were zero throughout; they count as density 0 and are left out "
            "of Hoyer, Gini and the participation ratios.",
            "per_layer",
        )
    empty = [name for name, found in accumulated.statistics.items() if found.lengths[1] == 0]
    if empty:
        out.note("warning", f"{len(empty)} sites saw no token, for example {empty[0]}; they are left out of means.", "per_layer")

"""Activation sparsity, computed: from the sums of one forward pass to tables with intervals.

Means are ratios of sums over documents; intervals resample documents within domains. Everything but the table
``by_position`` leaves out the first token of each window.
Shapes: C documents, L sites, P position bins, S statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from einops import rearrange

from sparsescope.activations.context import Context
from sparsescope.activations.sparsity_accumulator import SHAPE_BINS, SiteStatistics, SparsityAccumulator
from sparsescope.analysis.activation_sparsity import ActivationSparsityParams, percent_name
from sparsescope.analysis.activation_sparsity.savings import bounds_of
from sparsescope.core.result import Result
from sparsescope.core.tables import grid, places
from sparsescope.errors import SubjectError
from sparsescope.kernels.row_statistics import SHAPE_MEASURES
from sparsescope.metrics.estimates import DocumentBootstrap, Estimate, note_few_documents
from sparsescope.metrics.jackknife import jackknife_interval
from sparsescope.metrics.sparsity import half_normal_reference, treves_rolls_from_sums
from sparsescope.metrics.statistics import (
    effective_tokens,
    histogram_quantiles,
    mean_over_present,
    pooled_intraclass_correlation,
    zero_events_bound,
)

if TYPE_CHECKING:
    from sparsescope.models.structure.sites import Site

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
    order, strata, _ = accumulated.by_document()
    sums = np.stack([statistics[site.name].sums[order] for site in sites], axis=1)  # [C, L, P, S]
    tokens = np.stack([statistics[site.name].counts[order] for site in sites], axis=1)  # [C, L, P, 2]
    # Shape measures are means over the tokens that have a shape: the non-zero vectors.
    shaped = np.array([metric in SHAPE_MEASURES for metric in metrics])
    counts = np.where(shaped, tokens[..., 1:2], tokens[..., 0:1])  # [C, L, P, S]
    draws = DocumentBootstrap.draw(strata, params.resamples, params.seed, params.level)
    later_sums, later_counts = sums[:, :, 1:].sum(2), counts[:, :, 1:].sum(2)
    if not later_counts.any():
        raise SubjectError(
            "there is no token after the first of a window, and the first one is not "
            "measured with the others",
            where=f"corpus {context.corpus.name}",
            got=f"{context.corpus.n_tokens} tokens in {len(order)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    out = Result("activation_sparsity")
    place, measures = places(sites), {"metric": metrics}
    per_layer = draws.ratio(later_sums, later_counts)
    frame = _long([place, measures], per_layer, later_counts)
    quantiles = [_quantiles(statistics[site.name]) for site in sites]
    q05, q50, q95 = rearrange(quantiles, "site metric quantile -> quantile (site metric)")
    sparsity = np.where(frame["metric"].str.startswith("density_"), 1 - frame["mean"], np.nan)
    references = [half_normal_reference(metric) for metric in metrics] * len(sites)
    out.add("per_layer", frame.assign(sparsity=sparsity, q05=q05, q50=q50, q95=q95, reference=references))
    first, last = zip(*accumulated.bins, strict=True)
    frame = _long(
        [place, {"position": first, "position_end": last}, measures], draws.ratio(sums, counts), counts
    )
    out.add(
        "by_position", frame[frame["tokens"] > 0].sort_values(["layer", "site", "position"], kind="stable")
    )
    frames = []
    for domain in np.unique(strata):
        member = strata == domain
        found = draws.among(member).ratio(later_sums[member], later_counts[member])
        frames.append(
            _long([place, measures], found, later_counts[member]).assign(
                domain=context.corpus.domains[domain]
            )
        )
    out.add("by_domain", pd.concat(frames))
    out.add("frequency", pd.concat([_frequency(site, statistics[site.name]) for site in sites]))
    out.add(
        "unit_use", [row for site in sites for row in _unit_use(site, statistics[site.name], params.level)]
    )
    out.add("units", pd.concat([_units(site, statistics[site.name]) for site in sites]))
    lifetimes = [_lifetime(site, statistics[site.name], params.level) for site in sites]
    out.add(
        "lifetime",
        pd.DataFrame(lifetimes).assign(population=per_layer.mean[:, metrics.index("treves_rolls")]),
    )
    bounds = bounds_of(params, context, sites, metrics, later_sums, later_counts, draws)
    out.add("upper_bounds", bounds)
    _scalars(out, params, metrics, later_sums, later_counts, draws, statistics)
    _bound_scalars(out, bounds, draws)
    _notes(out, context, accumulated, per_layer.mean[:, 0])
    return out


def _long(axes: list[dict[str, Any]], found: Estimate, counts: np.ndarray) -> pd.DataFrame:
    """One row for each cell, from arrays over the axes; ``counts`` has documents before them."""
    return grid(axes, **found._asdict(), tokens=counts.sum(0), documents=(counts > 0).sum(0))


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


def _rates(statistics: SiteStatistics) -> np.ndarray:
    """Share of tokens on which each unit fired, [2, U]; NaN when the site saw no token."""
    tokens = statistics.lengths[1]
    return statistics.fired / tokens if tokens else np.full(statistics.fired.shape, np.nan)


def _frequency(site: Site, found: SiteStatistics) -> pd.DataFrame:
    """Rates sorted from the most used unit down, at fixed shares of the units."""
    rates = -np.sort(-_rates(found), axis=1)
    points = np.unique(np.linspace(0, site.width - 1, FREQUENCY_POINTS).round().astype(int))
    shares = {"rank": (points + 1) / site.width}
    return grid([shares], layer=site.layer, site=site.name, nonzero=rates[0, points], in_use=rates[1, points])


def _unit_use(site: Site, found: SiteStatistics, level: float) -> list[dict[str, Any]]:
    """Dead and always-on units with bounds that count tokens of one document as dependent; a
    row for each rule.
    """
    documents, tokens, squared = (int(n) for n in found.lengths)
    rows = []
    for index, rate in enumerate(_rates(found)):
        p = rate if tokens else np.zeros(site.width)
        spread = found.fired_squared[index] - 2 * p * found.fired_by_length[index] + p * p * squared
        # Pooled over units, since a unit that always or never fires has no correlation of its own. With
        # hardly any event to pool, the documents are taken as the only independent units (ICC = 1).
        variance = (p * (1 - p)).sum()
        enough = tokens * variance >= MIN_EVENTS
        icc = (
            pooled_intraclass_correlation(spread.sum(), variance, tokens, squared, documents)
            if enough
            else 1.0
        )
        n_effective = effective_tokens(tokens, squared, icc)
        bound = zero_events_bound(n_effective, level)
        dead, on = rate == 0, rate > ALWAYS_ON
        # An expert that no token was routed to has units of which nothing is known.
        known = 1.0 if tokens else np.nan
        row = {"layer": site.layer, "site": site.name, "rule": RULES[index], "units": site.width}
        row |= {"dead": int(dead.sum()), "dead_share": known * dead.mean(), "dead_bound": bound}
        row |= {
            "always_on": int(on.sum()),
            "always_on_share": known * on.mean(),
            "always_on_bound": 1 - bound,
        }
        row |= {f"below_{100 * limit:g}%": known * (rate < limit).mean() for limit in (0.001, 0.01, 0.1, 0.5)}
        rows.append(
            row | {"icc": icc, "effective_tokens": n_effective, "tokens": tokens, "documents": documents}
        )
    return rows


def _units(site: Site, found: SiteStatistics) -> pd.DataFrame:
    """One row for each unit."""
    nonzero, in_use = _rates(found)
    magnitude, tokens = found.magnitude.sum(0), int(found.lengths[1])
    return grid(
        [{"neuron": np.arange(site.width)}], layer=site.layer, site=site.name, nonzero=nonzero, in_use=in_use,
        documents_nonzero=found.fired_documents[0], documents_in_use=found.fired_documents[1],
        mean_magnitude=magnitude / max(tokens, 1),
        lifetime_sparseness=treves_rolls_from_sums(magnitude, found.energy.sum(0), tokens),
    )  # fmt: skip


def _lifetime(site: Site, found: SiteStatistics, level: float) -> dict[str, Any]:
    """Lifetime sparseness over the units of a site; the interval leaves out a fold of documents in turn."""
    total, energy, tokens = found.magnitude.sum(0), found.energy.sum(0), int(found.fold_tokens.sum())
    units = treves_rolls_from_sums(total, energy, tokens)
    replicates = [
        treves_rolls_from_sums(
            total - found.magnitude[fold], energy - found.energy[fold], tokens - found.fold_tokens[fold]
        )
        for fold in np.flatnonzero(found.fold_tokens)
    ]
    mean = mean_over_present(units, 0)
    low, high = jackknife_interval(
        mean, mean_over_present(np.array(replicates).reshape(-1, site.width), 1), level
    )
    known = units[np.isfinite(units)]
    quantiles = np.quantile(known, (0.05, 0.5, 0.95)) if len(known) else np.full(3, np.nan)
    row = {
        "layer": site.layer,
        "site": site.name,
        "mean": float(mean),
        "low": max(float(low), 0.0),
        "high": float(high),
    }
    row |= dict(zip(("q05", "q50", "q95"), map(float, quantiles), strict=True))
    row |= {"reference": half_normal_reference("treves_rolls")}
    return row | {"units": len(known), "tokens": tokens, "documents": int(found.lengths[0])}


def _bound_scalars(out: Result, bounds: list[dict[str, Any]], draws: DocumentBootstrap) -> None:
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
            f"upper bound on the {row['quantity']} of one decoded token saved by skipping inactive units; "
            f"active: {row['rule']}; {row['assumptions']}",
            interval=draws.between(row["low"], row["high"], row["documents"]),
        )


def _scalars(
    out: Result,
    params: ActivationSparsityParams,
    metrics: list[str],
    sums: np.ndarray,
    counts: np.ndarray,
    draws: DocumentBootstrap,
    statistics: dict[str, SiteStatistics],
) -> None:
    """Headline numbers: means over sites of the means over tokens; sites that saw no token are left out."""
    seen = counts.sum(0)[:, 0] > 0
    sums, counts = sums[:, seen], counts[:, seen]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (sums.sum(0) / counts.sum(0)).mean(0)  # [S]
    # [B, S]; a rare expert may be absent from a resample
    spread = mean_over_present(draws.replicates(sums, counts), axis=1)
    documents = int((counts.sum((1, 2)) > 0).sum())
    over = f"mean over {int(seen.sum())} sites of the mean over tokens after the first of each window"
    for index, metric in enumerate(metrics):
        # Column names follow the table, with the shorter names that people ask for.
        name = "mean_nonzero" if metric == "density_nonzero" else f"mean_{metric}"
        kind = "density" if metric.startswith("density") else metric
        unit, text = "fraction" if kind == "density" else "", f"{kind} {_meaning(metric)}: {over}"
        out.add_scalar(name, mean[index], unit, text, interval=draws.interval(spread[:, index], documents))
        if kind == "density":
            other = "mean_zero_sparsity" if index == 0 else name.replace("density", "sparsity")
            interval = draws.interval(1 - spread[:, index], documents)
            out.add_scalar(other, 1 - mean[index], unit, f"sparsity = 1 - {name}: {over}", interval=interval)
    rates = [_rates(statistics[name]) for name in statistics]
    for index in range(len(RULES)):
        suffix = "" if index == 0 else "_in_use"
        meaning = (
            "not exactly zero"
            if index == 0
            else f"in the set that holds {params.use_share:.0%} of the energy"
        )
        dead = sum(int((rate[index] == 0).sum()) for rate in rates)
        on = sum(int((rate[index] > ALWAYS_ON).sum()) for rate in rates)
        out.add_scalar(
            f"dead_units{suffix}", dead, "count", f"units that were never {meaning}, all sites together"
        )
        out.add_scalar(
            f"always_on_units{suffix}",
            on,
            "count",
            f"units that were {meaning} on more than {ALWAYS_ON:.0%} of tokens",
        )
    lengths = np.stack([found.lengths for found in statistics.values()])
    out.add_scalar("units", sum(rate.shape[1] for rate in rates), "count", "units at all sites together")
    out.add_scalar(
        "tokens", lengths[:, 1].max(), "count", "tokens after the first of each window (most of any site)"
    )
    out.add_scalar("documents", documents, "count", "documents, the independent units of every interval")


def _meaning(metric: str) -> str:
    if metric == "density_nonzero":
        return "(share of units that are not exactly zero)"
    if metric.startswith("density_l1_"):
        return (
            "(share of units in the smallest set that holds "
            f"{metric.removeprefix('density_l1_')} % of the L1 norm)"
        )
    if metric.startswith("density_energy_"):
        return (
            "(share of units in the smallest set that holds "
            f"{metric.removeprefix('density_energy_')} % of the energy)"
        )
    return {
        "hoyer": "= (sqrt(n) - L1/L2) / (sqrt(n) - 1)",
        "gini": "index of |v|",
        "pr2": "= (sum |v|)^2 / (n sum v^2), participation ratio",
        "pr4": "= (sum v^2)^2 / (n sum v^4), participation ratio of energies",
        "entropy_number": "= exp(-sum p ln p) / n with p = |v| / sum |v|",
        "kurtosis": "= n sum v^4 / (sum v^2)^2, about zero; 3 for a normal vector",
        "treves_rolls": "= (1 - PR2) / (1 - 1/n), Treves-Rolls population sparseness over units",
    }[metric]


def _notes(out: Result, context: Context, accumulated: SparsityAccumulator, nonzero: np.ndarray) -> None:
    """Say what the reader has to know."""
    documents = len(accumulated.clusters)
    identity = context.subject.identity
    if identity.origin_precision != identity.dtype:
        out.note(
            "info",
            f"The weights were stored as {identity.origin_precision} and computed in {identity.dtype}: what "
            "is measured is the model as rounded for storage.",
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
            "More than 98 % of entries are not exactly zero at every site, as expected of SwiGLU and GELU: "
            "the exact-zero density carries no information here. Read the top-p densities and the "
            "concentration measures.",
            "density_nonzero",
        )
    if len(accumulated.documents) > documents:
        out.note(
            "info",
            f"{len(accumulated.documents)} documents were grouped into {documents} clusters to bound memory; "
            "intervals resample clusters, and 'documents' in the tables counts them.",
            "per_layer",
        )
    note_few_documents(out, documents, "per_layer")
    if accumulated.zero_vectors:
        out.note(
            "info",
            f"{accumulated.zero_vectors} activation vectors were zero throughout; they count as density 0 "
            "and are left out of Hoyer, Gini and the participation ratios.",
            "per_layer",
        )
    empty = [name for name, found in accumulated.statistics.items() if found.lengths[1] == 0]
    if empty:
        out.note(
            "warning",
            f"{len(empty)} sites saw no token, for example {empty[0]}; they are left out of means.",
            "per_layer",
        )

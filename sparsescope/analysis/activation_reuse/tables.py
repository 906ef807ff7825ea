"""The tables of ``activation_reuse`` from its sums by document.

Nulls take the rates of units from all tokens but the first of each window. Numbers that are no means over tokens (ratios to a
null, inequality of units) have jackknife intervals over folds of documents, in which the rates are taken anew.
Shapes: C documents, L sites, R rules, K chunk lengths, B resamples, G folds with documents, U units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sparsescope.activations.bound_table import bound_rows, default_attended, schemes_of
from sparsescope.activations.context import Context
from sparsescope.analysis.activation_reuse import TABLES, ActivationReuseParams
from sparsescope.analysis.activation_reuse.accumulate import ReuseAccumulator
from sparsescope.kernels.use_sets import RULES, overlaps
from sparsescope.metrics.bounds import Assumptions
from sparsescope.metrics.jackknife import fold_of, jackknife_interval
from sparsescope.metrics.reuse import gini_of_rates, hot_share, lorenz_curve, union_nulls
from sparsescope.metrics.statistics import cluster_interval
from sparsescope.models.dimensions import read_dimensions

CHUNK = 8  # tokens of chunk-level sparsity
BOUND_CHUNKS = (1, 8, 64)


def shares_of(found: ReuseAccumulator, sums: np.ndarray) -> np.ndarray:
    """Sizes of sets [C, L, ...] as shares of the units of each site."""
    widths = np.array([site.width for site in found.sites], dtype=float)
    return sums / widths.reshape(1, -1, *[1] * (sums.ndim - 2))


def _nulls(rates: list[np.ndarray], levels: int) -> np.ndarray:
    """Both nulls for each site, rule and number of tokens, [L, R, K, 2]."""
    return np.array([union_nulls(site, levels) for site in rates])


def union_ratios(found: ReuseAccumulator, keys: list[tuple[int, int]], sums: dict[str, np.ndarray]) -> np.ndarray:
    """Union density / marginal null without each fold of documents in turn, [G, L, R, K]; NaN where nothing is left."""
    folds = np.array([fold_of(document) for _, document in keys])
    shares, replicates = shares_of(found, sums["union"]), []
    for fold in np.flatnonzero(found.fold_tokens):
        kept = folds != fold
        tokens = max(int(found.fold_tokens.sum() - found.fold_tokens[fold]), 1)
        nulls = _nulls([(fired.sum(0) - fired[fold]) / tokens for fired in found.fired], found.levels)[..., 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates.append(shares[kept].sum(0) / sums["chunks"][kept].sum(0) / nulls)
    return np.array(replicates)


def unions(
    place: pd.DataFrame,
    found: ReuseAccumulator,
    sums: dict[str, np.ndarray],
    weights: np.ndarray,
    rates: list[np.ndarray],
    replicates: np.ndarray,
    level: float,
) -> pd.DataFrame:
    """Union density against chunk length; ``replicates`` are those of ``union_ratios``."""
    sizes = [1 << n for n in range(found.levels)]
    counts = sums["chunks"][:, None, None, :]
    mean, low, high = cluster_interval(shares_of(found, sums["union"]), counts, weights, level)
    nulls = _nulls(rates, found.levels)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(nulls[..., 1] > 0, mean / nulls[..., 1], np.nan)
    ratio_low, ratio_high = jackknife_interval(ratio, replicates, level)
    columns = {"mean": mean, "low": low, "high": high, "independent": nulls[..., 0], "marginal": nulls[..., 1]}
    columns |= {"ratio": ratio, "ratio_low": ratio_low, "ratio_high": ratio_high}
    frames = []
    for n, k in enumerate(sizes):
        if not sums["chunks"][:, n].any():
            break
        documents = int((sums["chunks"][:, n] > 0).sum())
        values = {name: array[:, :, n].reshape(-1) for name, array in columns.items()}
        frames.append(place.assign(chunk=k, **values, chunks=int(sums["chunks"][:, n].sum()), documents=documents))
    return pd.concat(frames).sort_values(["layer", "site", "rule", "chunk"], kind="stable")


def chunk_sparsity(
    place: pd.DataFrame, found: ReuseAccumulator, sums: dict[str, np.ndarray], weights: np.ndarray, level: float
) -> pd.DataFrame:
    """Token-level and chunk-level sparsity; the second is NaN where no window has 8 tokens after the first."""
    counts = sums["chunks"][:, None, None, :]
    mean, low, high = cluster_interval(shares_of(found, sums["union"]), counts, weights, level)
    frame = place.copy()
    for name, k in (("token", 1), ("chunk", CHUNK)):
        n = k.bit_length() - 1
        for column, values in ((f"{name}_sparsity", mean), (f"{name}_low", high), (f"{name}_high", low)):
            frame[column] = 1 - values[:, :, n].reshape(-1) if n < found.levels else np.nan
    return frame.assign(documents=int((sums["chunks"][:, 0] > 0).sum()))


def aggregated(
    place: pd.DataFrame,
    found: ReuseAccumulator,
    sums: dict[str, np.ndarray],
    weights: np.ndarray,
    rates: list[np.ndarray],
    level: float,
) -> pd.DataFrame:
    """Share of units that the first t tokens leave unused."""
    sizes = [1 << n for n in range(found.levels)]
    counts = sums["firsts"][:, None, None, :]
    mean, low, high = cluster_interval(shares_of(found, sums["first"]), counts, weights, level)
    nulls = 1 - _nulls(rates, found.levels)
    frames = []
    for n, t in enumerate(sizes):
        if not sums["firsts"][:, n].any():
            break
        marginal = nulls[:, :, n, 1].reshape(-1)
        columns = {
            "mean": 1 - mean[:, :, n],
            "low": 1 - high[:, :, n],
            "high": 1 - low[:, :, n],
            "independent": nulls[:, :, n, 0],
        }
        frame = place.assign(tokens=t, **{name: values.reshape(-1) for name, values in columns.items()}, marginal=marginal)
        frame["ratio"] = np.divide(frame["mean"], marginal, out=np.full(len(frame), np.nan), where=marginal > 0)
        documents = int((sums["firsts"][:, n] > 0).sum())
        frames.append(frame.assign(windows=int(sums["firsts"][:, n].sum()), documents=documents))
    return pd.concat(frames).sort_values(["layer", "site", "rule", "tokens"], kind="stable")


def neighbors(
    place: pd.DataFrame, found: ReuseAccumulator, sums: dict[str, np.ndarray], weights: np.ndarray, level: float
) -> pd.DataFrame:
    """Jaccard index of neighbours with both nulls."""
    frame = place.copy()
    pairs = sums["pairs"]
    for name, values in (("", sums["overlap"]), ("within", sums["within"]), ("excess", sums["overlap"] - sums["within"])):
        mean, low, high = cluster_interval(values, pairs, weights, level)
        prefix = f"{name}_" if name else ""
        frame[name or "mean"], frame[f"{prefix}low"], frame[f"{prefix}high"] = (x.reshape(-1) for x in (mean, low, high))
    left = np.flatnonzero(found.sample.documents[:-1] != found.sample.documents[1:])
    across, across_pairs = [], []
    for n in range(len(found.sites)):
        bits = np.ascontiguousarray(found.sample.parts[str(n)].transpose(1, 0, 2))
        total, count = overlaps(bits, left, left + 1)
        across += list(np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0))
        across_pairs += list(count)
    totals = pairs.sum(0).reshape(-1)
    documents = (pairs > 0).sum(0).reshape(-1)
    return frame.assign(across=across, across_pairs=across_pairs, pairs=totals, documents=documents)


def lorenz(found: ReuseAccumulator, rates: list[np.ndarray]) -> pd.DataFrame:
    """Lorenz curves."""
    frames = []
    for site, both in zip(found.sites, rates, strict=True):
        for rule, rate in zip(RULES, both, strict=True):
            units, firings = lorenz_curve(rate)
            row = {"layer": site.layer, "site": site.name, "rule": rule}
            frames.append(pd.DataFrame({**row, "units_share": units, "firings_share": firings}))
    return pd.concat(frames, ignore_index=True)


def use_inequality(found: ReuseAccumulator) -> tuple[np.ndarray, np.ndarray]:
    """Gini coefficient and hot share of the rates, [2, L, R], and the same without each fold, [G, 2, L, R]."""
    measures = (gini_of_rates, hot_share)
    whole = np.array([[measure(fired.sum(0).astype(float)) for fired in found.fired] for measure in measures])
    without = [
        [[measure((fired.sum(0) - fired[fold]).astype(float)) for fired in found.fired] for measure in measures]
        for fold in np.flatnonzero(found.fold_tokens)
    ]
    return whole, np.array(without)


def concentration(place: pd.DataFrame, found: ReuseAccumulator, use: tuple[np.ndarray, np.ndarray], level: float) -> pd.DataFrame:
    """Inequality of units with intervals; ``use`` is that of ``use_inequality``."""
    low, high = (np.clip(ends, 0, 1) for ends in jackknife_interval(*use, level))
    columns = {}
    for index, (name, short) in enumerate((("gini", "gini"), ("hot_share", "hot"))):
        for column, values in ((name, use[0]), (f"{short}_low", low), (f"{short}_high", high)):
            columns[column] = values[index].reshape(-1)
    units = np.repeat([site.width for site in found.sites], len(RULES))
    return place.assign(**columns, units=units, tokens=int(found.fold_tokens.sum()), documents=len(found.documents))


def bounds_of(
    params: ActivationReuseParams, context: Context, found: ReuseAccumulator, sums: dict[str, np.ndarray], weights: np.ndarray
) -> pd.DataFrame:
    """Upper bounds on weight bytes when weights are read once for a chunk."""
    columns = [column.name for column in TABLES["upper_bounds"]]
    hidden = [n for n, site in enumerate(found.sites) if site.role == "mlp.hook_post"]
    if not hidden:
        return pd.DataFrame(columns=columns)
    model = read_dimensions(context.subject)
    attended = default_attended(model, context.corpus.context) if params.attended is None else params.attended
    layers = [found.sites[n].layer for n in hidden]
    shares = shares_of(found, sums["union"])[:, hidden]  # [C, L, R, K]
    rows: list[dict[str, Any]] = []
    for index, rule in enumerate(RULES):
        name = rule if rule == "nonzero" else f"energy {100 * params.use_share:g} %"
        for k in BOUND_CHUNKS:
            n = k.bit_length() - 1
            if n >= found.levels or not sums["chunks"][:, n].any():
                continue
            count = sums["chunks"][:, n].astype(float)
            density = shares[:, :, index, n].sum(0) / count.sum()
            with np.errstate(invalid="ignore", divide="ignore"):
                replicates = (weights @ shares[:, :, index, n]) / (weights @ count)[:, None]
            for scheme in schemes_of(model):
                assumed = Assumptions(scheme, attended, model.bytes_per_weight, together=k)
                found_rows = bound_rows(name, model, layers, density, replicates, assumed, params.level, int((count > 0).sum()))
                rows += [row for row in found_rows if row["quantity"] == "weight bytes"]
    return pd.DataFrame(rows, columns=columns)

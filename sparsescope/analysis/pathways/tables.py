"""Tables of ``pathways`` from what was measured of its series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.analysis.pathways import PathwaysParams
from sparsescope.analysis.pathways.measure import (
    PARTITIONED,
    UNITS,
    VALUES,
    Group,
    distance_of,
    kind_of,
)
from sparsescope.analysis.pathways.measured import Measured
from sparsescope.core.tables import grid
from sparsescope.metrics.leads import Followed, Rows, log_loss, since_memorized, values_of
from sparsescope.metrics.memorized_samples import chosen_eps, memorized_from
from sparsescope.metrics.pathways import RIDGES
from sparsescope.metrics.run_links import planted_power, swap_test
from sparsescope.metrics.trends import LEAST_N, pearson, permutation_p

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Measures that need no pathways, beside which those of pathways stand.
BESIDE = ("train_loss", "weight_norm", "rank_embedding")
#: Of these the power to find a link is given.
POWERED = ("excess", "contrast", "smoothness", "dimension")
_LEAST_FLOW = 1e-3  # share of the tokens; rarer steps are left out


def followed(own: Followed) -> tuple[str, ...]:
    """Measures whose lead and correlation are looked at."""
    there = set(own.checkpoints)
    pathways = [name for name in own.checkpoints if name not in {"step", *BESIDE} and "test_" not in name]
    return (*(name for name in BESIDE if name in there), *(n for n in pathways if n != "train_accuracy"))


def _axes(own: Measured) -> list[dict[str, Sequence[Any]]]:
    return [{"step": list(own.steps)}, {"group": [group.name for group in own.groups]}]


def checkpoints(own: Measured) -> pd.DataFrame:
    """One row for each step and group."""
    values = np.stack([each["values"] for each in own.arrays])
    columns = {name: values[..., place] for place, name in enumerate(VALUES)}
    return grid(_axes(own), series=own.name, **columns)


def variants(own: Measured) -> pd.DataFrame:
    """One row for each step, group, kind of weights and unit of edits."""
    values = np.stack([each["variants"] for each in own.arrays])
    names = ("distance", "null_mean", "z", "excess", "normalized", "set_size")
    axes: list[dict[str, Sequence[Any]]] = [*_axes(own), {"weights": list(own.kinds)}, {"unit": list(UNITS)}]
    return grid(axes, series=own.name, **{name: values[..., place] for place, name in enumerate(names)})


def labels(own: Measured) -> pd.DataFrame:
    """One row for each step, group and distance."""
    values = np.stack([each["contrasts"] for each in own.arrays])
    names = ("same", "other", "difference", "low", "high", "z", "p")
    axes: list[dict[str, Sequence[Any]]] = [*_axes(own), {"measure": ["distance", "weighted_jaccard"]}]
    return grid(axes, series=own.name, **{name: values[..., place] for place, name in enumerate(names)})


def layers(own: Measured) -> pd.DataFrame:
    """One row for each step, group and layer."""
    values = np.stack([each["layers"] for each in own.arrays])
    names = ("distance", "set_size", "path_entropy", "effective_experts", "participation", "stable_rank")
    axes: list[dict[str, Sequence[Any]]] = [*_axes(own), {"layer": own.layers}]
    return grid(axes, **{name: values[..., place] for place, name in enumerate(names)})


def dimensions(own: Measured) -> pd.DataFrame:
    """One row for each step, group, layer and ridge."""
    values = np.stack([each["dimensions"] for each in own.arrays])
    return grid([*_axes(own), {"layer": own.layers}, {"ridge": list(RIDGES)}], dimension=values)


def random_partitions(own: Measured) -> pd.DataFrame:
    """One row for each step and measure; none of a mixture."""
    drawn = np.stack([each["random"] for each in own.arrays])  # [T, R, measures]
    if not drawn.shape[1]:
        return pd.DataFrame(columns=["series", "step", "measure", "value", "random_mean", "random_sd"])
    value = np.stack([own.values(name) for name in PARTITIONED], axis=1)
    spread = drawn.std(1, ddof=1) if drawn.shape[1] > 1 else np.full_like(value, np.nan)
    axes: list[dict[str, Sequence[Any]]] = [{"step": own.steps}, {"measure": PARTITIONED}]
    return grid(axes, series=own.name, value=value, random_mean=drawn.mean(1), random_sd=spread)


def flow(own: Measured) -> Rows:
    """Steps of tokens from layer to layer; rare ones are left out."""
    rows: Rows = []
    for step, each in reversed(list(zip(own.steps, own.arrays, strict=True))):  # pages begin with the last
        tokens = len(own.read[0]["owner"])
        for layer, one, two in np.argwhere(each["flow"] >= max(1.0, _LEAST_FLOW * tokens)):
            count = float(each["flow"][layer, one, two])
            rows.append((step, own.layers[layer], int(one), int(two), count / tokens, int(count)))
    return rows


def memorized(own: Measured, params: PathwaysParams) -> Rows:
    """Distances of training samples by the checkpoint from which they are memorized."""
    if "train" not in own.samples.groups:
        return []
    rows_of = own.samples.rows("train")
    losses = np.stack([each["loss"][rows_of] for each in own.read], axis=1)
    eps = chosen_eps(losses, params.memorized_share, params.delta) if params.eps is None else params.eps
    if not math.isfinite(eps):
        return []
    since = memorized_from(losses, eps, params.delta)
    rows: Rows = []
    for place in np.unique(since[since >= 0]):
        members = rows_of[since == place]
        if len(members) < params.least_samples:
            continue
        group = Group.of(own.samples, "train", params, members)
        at = own.steps[place]
        for step, each in zip(own.steps, own.read, strict=True):
            profiles = np.asarray(each[kind_of(each, params)][members], np.float64)
            profiles /= profiles.sum(-1, keepdims=True)
            found = distance_of(group, profiles, params.unit)
            null = found.null
            rows.append(
                (at, len(members), eps, step, step - at, null.observed, null.reduction, found.normalized)
            )
    return rows


def _common(measured: Sequence[Followed]) -> NDArray[np.int64]:
    """Steps that all series have, from the last t_mem on."""
    begin = max((m.onsets.memorized or 0 for m in measured), default=0)
    shared = set(measured[0].checkpoints["step"]).intersection(*(m.checkpoints["step"] for m in measured[1:]))
    return np.array(sorted(step for step in shared if step >= begin), np.int64)


def swap(measured: Sequence[Followed], over: str, params: PathwaysParams) -> Rows:
    """Correlations with the own score and with those of other seeds; ``over`` names the checkpoints."""
    steps = _common(measured)
    if len(measured) < 2 or len(steps) < LEAST_N:
        return []
    tables = [m.checkpoints.set_index("step").loc[steps].reset_index() for m in measured]
    scores = {
        "test accuracy": [table["test_accuracy"].to_numpy(np.float64) for table in tables],
        "log10 test loss": [log_loss(table["test_loss"]) for table in tables],
    }
    rows: Rows = []
    for name in followed(measured[0]):
        if not all(name in table for table in tables):
            continue
        values = [values_of(table, name) for table in tables]
        for title, score in scores.items():
            for of in ("values", "differences"):
                found = swap_test(
                    values, score, differences=of == "differences", draws=params.draws, seed=params.seed
                )
                row = (name, over, title, of, found.own, found.other, found.p, found.runs, len(steps))
                if math.isfinite(found.own):
                    rows.append(row)
    return rows


def power(own: Followed, over: str, params: PathwaysParams) -> Rows:
    """Power to find a planted link with the checkpoints and the increments that there are; ``over`` names
    the checkpoints.
    """
    table = since_memorized(own)
    steps = np.diff(log_loss(table["test_loss"]))
    drift = abs(float(steps.mean()) / float(steps.std())) if len(steps) > 1 and steps.std() > 0 else 1.0
    rows: Rows = []
    for name in (*(n for n in table if n.startswith("distance_")), *POWERED):
        values = table[name].to_numpy()
        for found in planted_power(values, drift=drift, draws=params.draws, seed=params.seed):
            if math.isfinite(found.differences):
                rows.append((name, over, found.strength, found.differences, found.beyond_trend, found.n))
    return rows


def foretelling(measured: Sequence[Measured], params: PathwaysParams) -> Rows:
    """Whether a measure at t_mem goes with t_gen, over series."""
    known = [m for m in measured if m.onsets.memorized is not None and m.onsets.generalized is not None]
    known = [m for m in known if len(since_memorized(m))]
    if len(known) < 3:
        return []
    late = np.array([float(m.onsets.generalized or 0) for m in known])
    generator = np.random.default_rng(params.seed)
    rows: Rows = []
    for name in followed(known[0]):
        tables = [since_memorized(m) for m in known]
        if not all(name in table for table in tables):
            continue
        early = np.array([float(table[name].iloc[0]) for table in tables])
        if np.isfinite(early).all() and np.ptp(early) > 0 and np.ptp(late) > 0:
            ranks = [pd.Series(values).rank().to_numpy() for values in (early, late)]
            p = permutation_p(early, late, params.draws, generator)
            rows.append((name, pearson(*ranks), p, len(known)))
    return rows

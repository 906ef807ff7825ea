"""Tables of ``grokking`` that are made from measured series: phases, onsets, leads, correlations, spectra.

Phases: memorization until t_mem; circuit formation until the test loss begins to fall; cleanup while it falls
steepest, at least until t_gen; then after. Where it begins to fall is the begin of the steepest falling line
of log10(test loss), of those that end after t_mem and begin before t_gen (``metrics.changepoints``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sparsescope.analysis.grokking import GrokkingParams
from sparsescope.analysis.grokking.checkpoint import NAMES
from sparsescope.core.tables import grid
from sparsescope.metrics import fourier
from sparsescope.metrics.changepoints import Segmentation, segment
from sparsescope.metrics.onsets import first_departure, half_way, median_range
from sparsescope.metrics.trends import LEAST_N, correlate

if TYPE_CHECKING:
    from sparsescope.analysis.grokking.compute import Measured

#: Rows of a table, in the order of its columns.
Rows = list[tuple[object, ...]]
#: Measures whose lead and correlation are looked at; test loss and accuracy define t_gen itself.
FOLLOWED = ("train_loss", *NAMES)
#: With fewer checkpoints the step at which a measure moves is not known well enough to speak of a lead.
LEAST_CHECKPOINTS = 8
_SMALLEST = 1e-12


def log_loss(values: pd.Series) -> np.ndarray:
    """Decimal logarithm of a loss; a loss of zero counts as 1e-12."""
    return np.log10(np.maximum(values.to_numpy(np.float64), _SMALLEST))


def segments(own: Measured, params: GrokkingParams) -> tuple[Rows, tuple[int, int] | None]:
    """Divide the logs of test loss and excluded loss into lines; return table and the steps of
    the steepest fall.
    """
    rows: Rows = []
    options = {"most": params.most_segments, "surrogates": params.surrogates, "seed": params.seed}
    cleanup = None
    for curve, frame in (("test_loss", own.curves), ("excluded_loss", own.checkpoints)):
        steps = frame["step"].to_numpy()
        found = segment(
            steps / 1000,
            log_loss(frame[curve]) if frame[curve].notna().any() else np.full(len(steps), np.nan),
            **options,
        )
        for number, line in enumerate(found.segments, 1):
            begin, end = int(steps[line.first]), int(steps[line.last])
            rows.append((curve, number, begin, end, line.slope, found.explained, found.p_value))
        if curve == "test_loss":
            cleanup = _steepest_fall(found, steps, own)
    return rows, cleanup


def _steepest_fall(found: Segmentation, steps: np.ndarray, own: Measured) -> tuple[int, int] | None:
    memorized, generalized = own.onsets.memorized, own.onsets.generalized
    if memorized is None or generalized is None:
        return None
    lines = [
        s
        for s in found.segments
        if s.slope < 0 and steps[s.last] > memorized and steps[s.first] < generalized
    ]
    if not lines:
        return None
    steepest = min(lines, key=lambda line: line.slope)
    return max(int(steps[steepest.first]), memorized), max(int(steps[steepest.last]), generalized)


def phases(own: Measured, cleanup: tuple[int, int] | None) -> Rows:
    """Phases of a run, without gaps; see the head of this file."""
    begin, end = int(own.curves["step"].iloc[0]), int(own.curves["step"].iloc[-1])
    memorized = own.onsets.memorized
    if memorized is None:
        return [("not memorized", begin, end, "the training accuracy never holds")]
    rows: Rows = [("memorization", begin, memorized, "first step")]
    if cleanup is None:
        rows.append(("memorized", memorized, end, "t_mem"))
        return rows
    rule = "change-point: steepest fall of the test loss begins"
    if cleanup[0] > memorized:
        rows.append(("circuit formation", memorized, cleanup[0], "t_mem"))
    rows.append(("cleanup", cleanup[0], cleanup[1], rule))
    if cleanup[1] < end:
        rows.append(("after", cleanup[1], end, "that fall has ended and t_gen is reached"))
    return rows


def onsets(measured: list[Measured]) -> Rows:
    """When each series memorized and generalized."""
    rows: Rows = []
    for m in measured:
        o = m.onsets
        steps = [math.nan if value is None else float(value) for value in (o.memorized, o.generalized)]
        lost = math.nan if o.lost_at is None else float(o.lost_at)
        rows.append(
            (
                m.name,
                *steps,
                o.delay,
                o.ratio,
                "yes" if o.grokked else "no",
                lost,
                float(m.curves["step"].iloc[-1]),
            )
        )
    return rows


def leads(measured: list[Measured]) -> Rows:
    """Lead of each measure in each series, by both rules; of a series with few checkpoints only
    what its curves have.
    """
    rows: Rows = []
    for m in measured:
        memorized = m.onsets.memorized
        generalized = math.nan if m.onsets.generalized is None else float(m.onsets.generalized)
        for name in FOLLOWED:
            table = points(m, name)
            if table is None:
                continue
            # a loss leaves its band on a logarithmic scale
            steps, values = table["step"].to_numpy(), followed(table, name)
            left = half = math.nan
            early = 0
            if memorized is not None:
                early = int(np.sum(np.isfinite(values) & (steps <= memorized)))
                left = first_departure(steps, values, memorized)
                half = half_way(steps, table[name].to_numpy(np.float64), memorized, int(steps[-1]))
            count = int(np.isfinite(values).sum())
            rows.append((m.name, name, left, generalized - left, half, generalized - half, count, early))
    return rows


def points(m: Measured, name: str) -> pd.DataFrame | None:
    """Where a measure is known: in the logs of the training, or at checkpoints if there
    are enough of them.
    """
    if name in m.curves and m.curves[name].notna().any():
        return m.curves
    return m.checkpoints if m.checkpoints[name].notna().sum() >= LEAST_CHECKPOINTS else None


def followed(table: pd.DataFrame, name: str) -> np.ndarray:
    """Values of a measure; of a loss its logarithm."""
    return (
        log_loss(table[name])
        if name.endswith("_loss") and table[name].notna().any()
        else table[name].to_numpy(np.float64)
    )


def lead_summary(leads: pd.DataFrame, params: GrokkingParams) -> Rows:
    """Median lead over series with its exact interval."""
    rows: Rows = []
    for name in dict.fromkeys(leads["measure"]):
        part = leads[leads["measure"] == name]
        for rule, column in (("departure", "lead_departure"), ("half way", "lead_half_way")):
            found = median_range(part[column].to_numpy(), params.level)
            if found.n:
                rows.append((name, rule, found.median, found.low, found.high, found.level, found.n))
    return rows


def aligned(measured: list[Measured]) -> Rows:
    """Measures over step - t_gen of every series that generalized."""
    rows: Rows = []
    for m in measured:
        if m.onsets.generalized is None:
            continue
        for name in ("train_accuracy", "test_accuracy", *NAMES):
            table = points(m, name)
            if table is None:
                continue
            values = table[["step", name]].dropna()
            rows += [
                (m.name, name, float(step - m.onsets.generalized), float(v))
                for step, v in values.itertuples(index=False)
            ]
    return rows


def correlations(own: Measured, params: GrokkingParams) -> Rows:
    """Correlation of each measure with test accuracy and with log test loss over the
    checkpoints from t_mem on.
    """
    table = own.checkpoints
    if own.onsets.memorized is not None:
        table = table[table["step"] >= own.onsets.memorized]
    steps = table["step"].to_numpy(np.float64)
    scores = {
        "test accuracy": table["test_accuracy"].to_numpy(np.float64),
        "log10 test loss": log_loss(table["test_loss"]),
    }
    rows: Rows = []
    for name in FOLLOWED:
        values = followed(table, name)
        if not np.isfinite(values).any():
            continue
        for title, score in scores.items():
            c = correlate(steps, values, score, draws=params.draws, level=params.level, seed=params.seed)
            reading = "beyond trend" if c.beyond_trend else "too few" if c.n < LEAST_N else "trend alone"
            reading = reading if math.isfinite(c.pearson) else "not defined"
            rows.append(
                (
                    name,
                    title,
                    c.n,
                    c.pearson,
                    c.low,
                    c.high,
                    c.spearman,
                    c.spearman_p,
                    c.kendall,
                    c.differenced,
                    c.partial,
                    c.trend_percentile,
                    c.least,
                    c.most,
                    c.n_effective,
                    reading,
                )
            )
    return rows


def spectrum(own: Measured) -> pd.DataFrame | Rows:
    """Frequencies of every checkpoint; empty for series of other data."""
    if own.modulus is None:
        return []
    k = fourier.frequencies(own.modulus)
    key = np.where(np.isin(k, own.keys), "yes", "no")
    parts = []
    for step, found in zip(own.checkpoints["step"], own.arrays, strict=True):
        axis = {"frequency": k.astype(np.float64), "key": key}
        parts.append(
            grid(
                [axis], step=step, units=found["units"], embedding_norm=found["embedding_norms"],
                logit_energy=found["logit_energy"], excluded_loss=found["excluded"],
            )
        )  # fmt: skip
    return pd.concat(parts)


def tensors(own: Measured) -> Rows:
    """Norm and ranks of every parameter at every checkpoint."""
    rows: Rows = []
    for step, found in zip(own.checkpoints["step"], own.arrays, strict=True):
        rows += [
            (step, name, *map(float, row)) for name, row in zip(own.tensors, found["tensors"], strict=True)
        ]
    return rows


def near(table: pd.DataFrame, step: float) -> pd.Series | None:
    """The checkpoint nearest to a step; None where there is no such step."""
    return table.loc[(table["step"] - step).abs().idxmin()] if math.isfinite(step) else None


def at_onset(own: Measured) -> pd.Series | None:
    """The first checkpoint at or after t_mem; None where the run did not memorize, or has none."""
    if own.onsets.memorized is None:
        return None
    after = own.checkpoints[own.checkpoints["step"] >= own.onsets.memorized]
    return after.iloc[0] if len(after) else None

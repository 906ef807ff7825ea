"""Tables of ``grokking`` that are made from measured series: phases, segments, spectra, norms of parameters.

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
from sparsescope.metrics.leads import Rows, log_loss

if TYPE_CHECKING:
    from sparsescope.analysis.grokking.compute import Measured

#: Measures whose lead and correlation are looked at; test loss and accuracy define t_gen itself.
FOLLOWED = ("train_loss", *NAMES)
#: Measures that are drawn around t_gen.
ALIGNED = ("train_accuracy", "test_accuracy", *NAMES)


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

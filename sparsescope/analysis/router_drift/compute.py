"""Router drift, computed from the matrices of the routers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sparsescope.analysis.router_drift import RouterDriftParams
from sparsescope.core.result import Result
from sparsescope.errors import SubjectError
from sparsescope.metrics.rank import effective_ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.models.checkpoints import CheckpointSeries

    Array = NDArray[np.float64]

_EARLY = 0.1


def compute(params: RouterDriftParams, context: Context) -> Result:
    """Run the analysis."""
    series: CheckpointSeries = context.one("routers")
    last = series.routers(series.steps[-1])
    whole = [last.bytes_read, last.bytes_whole]
    end = _centered(last.rows)
    before: Array | None = None
    frames = []
    for number, step in enumerate(series.steps):
        context.progress("checkpoints", number, len(series))
        found = series.routers(step)
        if (found.layers, found.rows.shape) != (last.layers, last.rows.shape):
            raise SubjectError(
                "the routers of these checkpoints differ in layers or experts",
                where=f"{series.name}, step {step}",
                allowed=f"as at the last step: layers {last.layers}, {last.rows.shape}",
                got=f"layers {found.layers}, {found.rows.shape}",
                next_step="compare checkpoints of one architecture",
            )
        if step != series.steps[-1]:
            whole = [whole[0] + found.bytes_read, whole[1] + found.bytes_whole]
        rows = _centered(found.rows)
        frames.append(_measure(step, found.layers, found.rows.astype(np.float64), rows, end, before))
        before = rows
    context.progress("checkpoints", len(series), len(series))
    out = Result("router_drift")
    out.add("rows", pd.concat(frames, ignore_index=True))
    _scalars(out, series, whole)
    return out


def _centered(rows: NDArray[np.float32]) -> Array:
    found = rows.astype(np.float64)
    return found - found.mean(1, keepdims=True)


def _units(rows: Array) -> Array:
    """Rows of norm 1; NaN where a row is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _measure(
    step: int, layers: tuple[int, ...], raw: Array, rows: Array, end: Array, before: Array | None
) -> pd.DataFrame:
    """One row for each layer."""
    count = rows.shape[1]
    one, last = _units(rows), _units(end)
    cosines = np.einsum("led,lfd->lef", one, last)
    same = np.diagonal(cosines, axis1=1, axis2=2)
    within = np.abs(np.einsum("led,lfd->lef", one, one))
    apart = ~np.eye(count, dtype=bool)
    previous = np.full(len(layers), np.nan)
    if before is not None:
        previous = (one * _units(before)).sum(-1).mean(1)
    low, high = np.quantile(same, [0.05, 0.95], axis=1)
    mean = raw.mean(1)
    spectra = np.linalg.svd(rows, compute_uv=False) ** 2
    return pd.DataFrame(
        {
            "step": step,
            "layer": layers,
            "cosine": same.mean(1),
            "low": low,
            "high": high,
            "other": np.where(apart, cosines, -np.inf).max(2).mean(1),
            "previous": previous,
            "norm": np.linalg.norm(rows, axis=-1).mean(1),
            "common": count * (mean**2).sum(-1) / (raw**2).sum((1, 2)),
            "alike": within[:, apart].mean(1),
            "rank": [float(effective_ranks(spectrum)[0]) for spectrum in spectra],
            "experts": count,
        }
    )


def _scalars(out: Result, series: CheckpointSeries, whole: list[int]) -> None:
    table, last = out.tables["rows"], series.steps[-1]
    later = [step for step in series.steps[:-1] if step > 0]
    layers = table["layer"].nunique()
    if later:
        early = min(later, key=lambda step: abs(step - _EARLY * last))
        rows = table[table["step"] == early]
        over = f"step {early} and step {last}; mean over {layers} layers"
        out.add_scalar("early_share", early / last, "fraction", f"step {early} over step {last}")
        text = f"mean cosine of the rows of one expert at {over}"
        out.add_scalar("early_cosine", rows["cosine"].mean(), "", text)
        text = f"largest cosine with the row of another expert, mean over experts; {over}"
        out.add_scalar("early_other", rows["other"].mean(), "", text)
    else:
        out.note("warning", "One checkpoint besides step 0, or fewer: there is nothing to settle.", "rows")
    end = table[table["step"] == last]
    text = f"effective rank of centered rows at step {last}, mean over {layers} layers"
    out.add_scalar("rank_last", end["rank"].mean(), "", text)
    text = f"mean absolute cosine of the rows of two experts at step {last}"
    out.add_scalar("alike_last", end["alike"].mean(), "", text)
    out.add_scalar("bytes_read", whole[0], "bytes", f"read of {len(series)} checkpoints")
    out.add_scalar("bytes_whole", whole[1], "bytes", "all weights of these checkpoints")
    out.note(
        "info",
        "Rows say where routers point, not what tokens choose; experts of a layer are no independent sample, "
        "so "
        "their range is given and no interval.",
        "rows",
    )

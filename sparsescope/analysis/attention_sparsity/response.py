"""Tables of the dose-response: intervals, isotonic fit, critical sparsities.

The detector is the tolerance point: isotonic regression of the mean rise over the levels of a rule, inverted at
ln(1 + tolerance). Every resample of documents is fitted anew; pairs stay together, since a document is at all levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.analysis.attention_sparsity import TABLES
from sparsescope.core.result import TEXT_KINDS, Interval
from sparsescope.metrics.statistics import bootstrap_weights
from sparsescope.metrics.tolerance import bootstrap_crossing, monotone, tolerance_crossing

if TYPE_CHECKING:
    from sparsescope.analysis.attention_sparsity import AttentionSparsityParams
    from sparsescope.analysis.attention_sparsity.dose import Response
    from sparsescope.core.result import Result


def add_response(out: Result, params: AttentionSparsityParams, response: Response | None) -> None:
    """Add the tables ``dose_response`` and ``critical``, empty without a response, and their scalars."""
    doses: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    if response is not None:
        epsilon = float(np.log1p(params.tolerance))
        weights = bootstrap_weights(response.strata, params.resamples, params.seed)
        for rule in dict.fromkeys(dose.rule for dose in response.doses):
            _rule(doses, points, rule, response, weights, params, epsilon)
        _scalars(out, params, response, points)
    for name, rows in (("dose_response", doses), ("critical", points)):
        columns = [column.name for column in TABLES[name]]
        frame = pd.DataFrame(rows, columns=columns)
        if not rows:  # types are told by the rows; a table without any has those that it would have
            text, number = pd.Series(["text"]).dtype, np.dtype(np.float64)
            frame = frame.astype({c.name: text if c.kind in TEXT_KINDS else number for c in TABLES[name]})
        out.add_table(name, frame, TABLES[name])


def _rule(
    doses: list[dict[str, Any]], points: list[dict[str, Any]], rule: str, response: Response,
    weights: np.ndarray, params: AttentionSparsityParams, epsilon: float,
) -> None:  # fmt: skip
    """Add the rows of one rule."""
    chosen = sorted((dose for dose in response.doses if dose.rule == rule), key=lambda dose: dose.sparsity)
    documents, tail = len(response.tokens), (1 - params.level) / 2
    x = np.array([dose.sparsity for dose in chosen])
    sums = np.array([dose.rises for dose in chosen])  # [level, D]
    mean = sums.sum(1) / response.tokens.sum()
    samples = (weights @ sums.T) / (weights @ response.tokens)[:, None]  # [B, level]
    enough = documents >= 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0) if enough else np.full((2, len(x)), np.nan)
    fitted = np.maximum(monotone(mean), 0.0)
    for i, dose in enumerate(chosen):
        row = {"rule": rule, "setting": dose.setting, "sparsity": x[i], "density": 1 - x[i], "rise": mean[i]}
        row |= {"low": low[i], "high": high[i], "fitted": fitted[i], "perplexity_ratio": np.exp(mean[i])}
        doses.append(row | {"rows": int(response.tokens.sum()), "documents": documents})
    point = tolerance_crossing(x, mean, epsilon)
    ends = (np.nan, np.nan)
    if enough:
        ends = bootstrap_crossing(np.broadcast_to(x, samples.shape), samples, epsilon, params.level)
    # Levels in fixed order, stop at the first failure: no correction for several tests is needed.
    passed = np.concatenate([high < epsilon, [False]]).argmin() if enough else 0
    points.append(
        {
            "rule": rule, "sparsity": np.nan if point.censored else point.at, "low": ends[0], "high": ends[1],
            "left_censored": "yes" if point.censored == "left" else "no",
            "right_censored": "yes" if point.censored == "right" else "no",
            "smallest": x[0], "largest": x[-1], "non_inferior": x[passed - 1] if passed else np.nan, "documents": documents,
        }
    )  # fmt: skip


def _scalars(out: Result, params: AttentionSparsityParams, response: Response, points: list[dict[str, Any]]) -> None:
    out.add_scalar(
        "loss", response.loss, "nats", "mean loss per token of the unchanged model on the windows of the dose-response"
    )
    for point in points:
        name = f"critical_sparsity_{point['rule'].replace('-', '_')}"
        censored = "left" if point["left_censored"] == "yes" else "right" if point["right_censored"] == "yes" else ""
        definition = (
            f"attention sparsity at which rule '{point['rule']}' raises the perplexity by {params.tolerance:.1%}, kept weights "
            "rescaled, isotonic fit" + (f"; {censored}-censored: not reached within the levels measured" if censored else "")
        )
        interval = None
        if np.isfinite(point["low"]) and not censored:
            method = "paired document bootstrap, percentile"
            interval = Interval(float(point["low"]), float(point["high"]), params.level, method, point["documents"])
        out.add_scalar(name, point["sparsity"], "fraction", definition, interval=interval)
        if censored:
            side = "smallest" if censored == "left" else "largest"
            message = f"Rule '{point['rule']}': the tolerated rise is {'exceeded' if censored == 'left' else 'not reached'} "
            message += f"at the {side} sparsity measured ({point[side]:.1%}); its critical sparsity is {censored}-censored."
            out.note("info", message, "critical")

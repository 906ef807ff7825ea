"""Tables of the dose-response: intervals, isotonic fit, critical sparsities.

The detector is the tolerance point: isotonic regression of the mean rise over the levels of a rule,
inverted at ln(1 + tolerance). Every resample of documents is fitted anew; pairs stay together, since a
document is at all levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.metrics.isotonic_crossing import monotone, resampled_crossings, tolerance_crossing

if TYPE_CHECKING:
    from sparsescope.analysis.attention_sparsity import AttentionSparsityParams
    from sparsescope.analysis.attention_sparsity.loss_with_fewer_keys import Response
    from sparsescope.core.result import Result

METHOD = "paired document bootstrap, percentile"


def add_critical_sparsity(out: Result, params: AttentionSparsityParams, response: Response | None) -> None:
    """Add the tables ``dose_response`` and ``critical``, empty without a response, and their scalars."""
    doses: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    if response is not None:
        draws = DocumentBootstrap.draw(response.strata, params.resamples, params.seed, params.level, METHOD)
        for rule in dict.fromkeys(dose.rule for dose in response.doses):
            rows, point = _rule(rule, response, draws, float(np.log1p(params.tolerance)))
            doses += rows
            points.append(point)
        _scalars(out, params, response, points, draws)
    out.add("dose_response", doses)
    out.add("critical", points)


def _rule(
    rule: str, response: Response, draws: DocumentBootstrap, epsilon: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of one rule in ``dose_response``, and its row in ``critical``."""
    chosen = sorted((dose for dose in response.doses if dose.rule == rule), key=lambda dose: dose.sparsity)
    tokens, documents = int(response.tokens.sum()), len(response.tokens)
    x = np.array([dose.sparsity for dose in chosen])
    sums = np.array([dose.rises for dose in chosen])  # [level, D]
    mean = sums.sum(1) / tokens
    samples = draws.replicates(sums.T, response.tokens[:, None])  # [B, level]
    low, high = draws.ends(samples)
    fitted = np.maximum(monotone(mean), 0.0)
    rows = []
    for i, dose in enumerate(chosen):
        row = {"rule": rule, "setting": dose.setting, "sparsity": x[i], "density": 1 - x[i], "rise": mean[i]}
        row |= {"low": low[i], "high": high[i], "fitted": fitted[i], "perplexity_ratio": np.exp(mean[i])}
        rows.append(row | {"rows": tokens, "documents": documents})
    at = tolerance_crossing(x, mean, epsilon)
    ends = draws.ends(resampled_crossings(np.broadcast_to(x, samples.shape), samples, epsilon))
    # Levels in fixed order, stop at the first failure: no correction for several tests is needed.
    passed = int(np.concatenate([high < epsilon, [False]]).argmin())
    point = {
        "rule": rule,
        "sparsity": np.nan if at.censored else at.at,
        "low": float(ends[0]),
        "high": float(ends[1]),
    }
    point |= {f"{side}_censored": "yes" if at.censored == side else "no" for side in ("left", "right")}
    point |= {"smallest": x[0], "largest": x[-1], "non_inferior": x[passed - 1] if passed else np.nan}
    return rows, point | {"documents": documents}


def _scalars(
    out: Result,
    params: AttentionSparsityParams,
    response: Response,
    points: list[dict[str, Any]],
    draws: DocumentBootstrap,
) -> None:
    out.add_scalar(
        "loss",
        response.loss,
        "nats",
        "mean loss per token of the unchanged model on the windows of the dose-response",
    )
    for point in points:
        name = f"critical_sparsity_{point['rule'].replace('-', '_')}"
        censored = (
            "left" if point["left_censored"] == "yes" else "right" if point["right_censored"] == "yes" else ""
        )
        definition = (
            f"attention sparsity at which rule '{point['rule']}' raises the perplexity by "
            f"{params.tolerance:.1%}, kept weights rescaled, isotonic fit"
            + (f"; {censored}-censored: not reached within the levels measured" if censored else "")
        )
        interval = None if censored else draws.between(point["low"], point["high"])
        out.add_scalar(name, point["sparsity"], "fraction", definition, interval=interval)
        if censored:
            side = "smallest" if censored == "left" else "largest"
            message = (
                f"Rule '{point['rule']}': the tolerated rise is "
                f"{'exceeded' if censored == 'left' else 'not reached'} "
            )
            message += (
                f"at the {side} sparsity measured ({point[side]:.1%}); its critical sparsity "
                f"is {censored}-censored."
            )
            out.note("info", message, "critical")

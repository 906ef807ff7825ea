"""What pathways show, in sentences, and the titles of the numbers."""

from __future__ import annotations

import math

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, said, said_value

_LEAST_N = 8  # checkpoints; over fewer no correlation is read

TITLES = {
    "memorized_step": "Step of memorizing",
    "generalized_step": "Step of generalizing",
    "distance": "Edit distance of pathways",
    "distance_excess": "Closer than at these loads",
    "contrast": "Other label farther by",
    "contrast_unseen": "The same of what was not trained",
    "contrast_unseen_memorized": "The same when memorized",
    "excess_random": "Closer with random blocks",
    "generalized_series": "Series that generalized",
    "smoothness": "Smoothness",
    "roughness": "Roughness (the paper's consistency)",
    "dimension": "Effective dimension of the routing",
    "excess_change": "Closer since memorizing by",
    "contrast_change": "Contrast since memorizing",
    "smoothness_change": "Smoothness since memorizing",
    "dimension_change": "Effective dimension since memorizing",
    "distance_correlation": "Correlation of distance and accuracy",
    "distance_spearman_p": "Permutation p of it",
    "distance_trend_percentile": "Percentile among trends",
    "distance_differenced": "Correlation of the differences",
    "beyond_trend": "Measures beyond trend",
    "steady_correlation": "Correlation without leaps",
    "steady_differenced": "Of the differences, without leaps",
    "swap_own_steady": "Without leaps, with the own score",
    "swap_other_steady": "Without leaps, with other seeds",
    "swap_p_steady": "p of the swap without leaps",
    "swap_own": "Correlation with the own score",
    "swap_other": "With the score of other seeds",
    "swap_p": "p of the swap test",
    "power_half": "Power for a link of 0.5",
    "power_half_steady": "The same without leaps",
    "lead_{}": "Steps that {} leads by",
}


def statements(result: Result) -> list[Statement]:
    """How much closer pathways are than chance, whether they go with the score, and what leads."""
    return [*_distance(result), *_correlation(result), *_leads(result)]


def _distance(result: Result) -> list[Statement]:
    found = defined(result, "distance", "distance_excess")
    if found is None:
        return []
    distance, excess = found
    text = (
        f"At the last checkpoint the pathways of two samples differ by {said_value(distance)} edits, "
        f"{said(excess)} less than samples at the same loads would ({basis(excess, 'units')})."
    )
    names = ["distance", "distance_excess"]
    known = defined(result, "contrast")
    if known is not None and known[0].interval is not None:
        ends = known[0].interval
        text += (
            " Pairs of one label are closer than pairs of two."
            if ends.low > 0
            else " Pairs of one label are farther apart than pairs of two."
            if ends.high < 0
            else " That pairs of one label are closer than pairs of two is not shown."
        )
        names.append("contrast")
    return [Statement(text, "over_training", tuple(names))]


def _correlation(result: Result) -> list[Statement]:
    found = defined(result, "distance_correlation", "distance_trend_percentile", "distance_differenced")
    if found is None:
        return []
    r, percentile, differenced = found
    n = r.interval.n if r.interval is not None else 0
    if n < _LEAST_N:
        return []
    text = (
        f"Edit distance and accuracy correlate at {r.value:.2f} over {n} checkpoints, more strongly than "
        f"{percentile.value:.0f} % of series that only rise, by the same steps; their differences at "
        f"{differenced.value:.2f}."
    )
    names = ["distance_correlation", "distance_trend_percentile", "distance_differenced"]
    swap = defined(result, "swap_own", "swap_other", "swap_p")
    if swap is not None:
        own, other, p = swap
        text += (
            f" With their own score seeds correlate at {own.value:.2f}, with that of others at "
            f"{other.value:.2f} (swap p = {p.value:.2g})."
        )
        names += ["swap_own", "swap_other", "swap_p"]
    return [Statement(text, "correlations", tuple(names))]


def _leads(result: Result) -> list[Statement]:
    pathways = ("excess", "smoothness", "dimension", "contrast_unseen")
    beside = ("test_loss", "test_loss_log10", "weight_norm", "rank_embedding")
    found = {
        name: result.scalars[f"lead_{name}"]
        for name in (*pathways, *beside)
        if f"lead_{name}" in result.scalars and math.isfinite(result.scalars[f"lead_{name}"].value)
    }
    ours = [name for name in pathways if name in found]
    others = [name for name in beside if name in found]
    if not ours or not others:
        return []
    first = max(ours, key=lambda name: found[name].value)
    plain = max(others, key=lambda name: found[name].value)
    over = "one run" if found[first].interval is None else basis(found[first], "series")
    text = (
        f"The earliest measure of pathways, {first.replace('_', ' ')}, is half way {said(found[first])} "
        f"steps before generalization; {plain.replace('_', ' ')}, which needs no pathways, "
        f"{said(found[plain])} ({over})."
    )
    return [Statement(text, "lead_times", (f"lead_{first}", f"lead_{plain}"))]

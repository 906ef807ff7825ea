"""Tables and numbers of ``steering``.

Shapes: M methods; C concepts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.core.numbers import Interval, slug_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.analysis.steering import SteeringParams
    from sparsescope.analysis.steering.directions import Direction
    from sparsescope.core.result import Result

CHOSEN = "chosen on training documents"
LIFT, CONTRAST = "lift", "contrast"
OVER_CONCEPTS = "bootstrap over concepts, percentile"

if TYPE_CHECKING:
    ByMethod = dict[str, NDArray[np.float64]]  # a number of each concept
    ByConcept = dict[str, ByMethod]  # by target


def add_tables(
    out: Result,
    params: SteeringParams,
    tries: Sequence[dict[str, Any]],
    chosen: Sequence[tuple[str, Direction]],
    documents: int,
) -> None:
    """Add all tables and the numbers that stand alone.

    Args:
        out: The result.
        params: Parameters of the analysis.
        tries: Rows of ``tries``.
        chosen: Concept and direction.
        documents: Test documents.
    """
    frame = pd.DataFrame(tries)
    # A strength that does not move the predictions by the target is no try at that divergence
    frame.loc[frame["status"] != "reached", ["lift", "own", "others", "train_lift"]] = np.nan
    methods = list(dict.fromkeys(frame["method"]))
    concepts = list(dict.fromkeys(frame["concept"]))
    random = np.random.default_rng([params.seed, 61])
    draws = random.integers(0, len(concepts), (params.resamples, len(concepts)))
    lifts, contrasts = _lifts(frame, methods, concepts, params), _contrasts(frame, methods, concepts, params)
    rows = []
    for target, by_method in lifts.items():
        part = frame if target == CHOSEN else frame[(frame["target"] == float(target)) & (frame["sign"] > 0)]
        for method in methods:
            values, contrast = by_method[method], contrasts[target][method]
            low, high = _ends(values, draws, params.level)
            contrast_low, contrast_high = _ends(contrast, draws, params.level)
            of_it = part[part["method"] == method]
            rows.append(
                {
                    "method": method,
                    "target": target,
                    "lift": _mean(values),
                    "low": low,
                    "high": high,
                    "positive": _mean((values > 0)[np.isfinite(values)]),
                    "contrast": _mean(contrast),
                    "contrast_low": contrast_low,
                    "contrast_high": contrast_high,
                    "cost": float(-of_it["others"].mean()),
                    "reached": float((of_it["status"] == "reached").mean()),
                    "concepts": int(np.isfinite(values).sum()),
                    "tries": len(of_it) // len(concepts),
                }
            )
    out.add("methods", rows)
    pairs = [
        row
        for measure, values in ((LIFT, lifts), (CONTRAST, contrasts))
        for row in _comparisons(measure, values, methods, draws, params.level)
    ]
    out.add("comparisons", pairs)
    out.add("detection", list(_detection(chosen, methods, concepts, draws, params.level, documents)))
    out.add(
        "concepts",
        [
            {
                "concept": concept,
                "method": direction.method,
                "direction": direction.name,
                "lift": float(lifts[CHOSEN][direction.method][concepts.index(concept)]),
                "contrast": float(contrasts[CHOSEN][direction.method][concepts.index(concept)]),
                "auroc": direction.auroc,
                "train_auroc": direction.train_auroc,
            }
            for concept, direction in chosen
        ],
    )
    out.add("tries", frame)
    _scalars(out, params, rows, {LIFT: lifts[CHOSEN], CONTRAST: contrasts[CHOSEN]})


def _scalars(
    out: Result, params: SteeringParams, rows: Sequence[dict[str, Any]], by_measure: dict[str, ByMethod]
) -> None:
    taken: set[str] = set()
    for row in rows:
        if row["target"] != CHOSEN:
            continue
        slug = slug_of(row["method"], taken)
        for name, ends, text in (
            (
                LIFT,
                ("low", "high"),
                f"of {row['tries']} tries the one with the best lift on training documents",
            ),
            (
                CONTRAST,
                ("contrast_low", "contrast_high"),
                "half of adding minus subtracting, mean over divergences",
            ),
        ):
            concepts = int(np.isfinite(by_measure[name][row["method"]]).sum())
            out.add_scalar(
                f"{name}_{slug}",
                row[name],
                "nats",
                f"mean over {concepts} concepts with {row['method']}: fall of the loss on test text of the "
                f"concept minus that on other text; {text}",
                direction="higher",
                interval=Interval.of(row[ends[0]], row[ends[1]], params.level, OVER_CONCEPTS, concepts),
                title=f"{name.capitalize()}, {row['method']}",
            )


def _lifts(frame: pd.DataFrame, methods: list[str], concepts: list[str], params: SteeringParams) -> ByConcept:
    """The lift of adding at each divergence, and that of the try that was best on training documents."""
    out: ByConcept = {}
    added = frame[frame["sign"] > 0]
    for target in params.targets:
        by = added[added["target"] == target].set_index(["method", "concept"])["lift"]
        out[f"{target:g}"] = {m: np.array([by[m, c] for c in concepts]) for m in methods}
    known = frame.dropna(subset=["train_lift"])
    best = known.loc[known.groupby(["method", "concept"])["train_lift"].idxmax()]
    by = best.set_index(["method", "concept"])["lift"]
    out[CHOSEN] = {m: np.array([by.get((m, c), np.nan) for c in concepts]) for m in methods}
    return out


def _contrasts(
    frame: pd.DataFrame, methods: list[str], concepts: list[str], params: SteeringParams
) -> ByConcept:
    """Half of adding minus subtracting at each divergence, and their mean."""
    out: ByConcept = {}
    signed = frame.assign(half=frame["sign"] * frame["lift"] / 2)
    for target in params.targets:
        by = signed[signed["target"] == target].groupby(["method", "concept"])["half"].sum(min_count=2)
        out[f"{target:g}"] = {m: np.array([by[m, c] for c in concepts]) for m in methods}
    # Without one of the divergences a mean would be of others than that of the next method
    out[CHOSEN] = {m: np.mean([out[f"{target:g}"][m] for target in params.targets], axis=0) for m in methods}
    return out


def _mean(values: NDArray[Any]) -> float:
    """Mean of what is known."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _ends(values: NDArray[np.float64], draws: NDArray[np.int64], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    if np.isfinite(values).sum() < 2:
        return math.nan, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw of concepts without a number
        low, high = np.nanquantile(np.nanmean(values[draws], axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _comparisons(
    measure: str, found: ByConcept, methods: list[str], draws: NDArray[np.int64], level: float
) -> Iterator[dict[str, Any]]:
    """Paired differences of methods."""
    for target, by_method in found.items():
        for first, second in combinations(methods, 2):
            values = by_method[first] - by_method[second]
            low, high = _ends(values, draws, level)
            yield {
                "first": first,
                "second": second,
                "target": target,
                "measure": measure,
                "difference": _mean(values),
                "low": low,
                "high": high,
                "concepts": int(np.isfinite(values).sum()),
            }


def _detection(
    chosen: Sequence[tuple[str, Direction]],
    methods: list[str],
    concepts: list[str],
    draws: NDArray[np.int64],
    level: float,
    documents: int,
) -> Iterator[dict[str, Any]]:
    for method in methods:
        by_concept = {concept: d.auroc for concept, d in chosen if d.method == method}
        values = np.array([by_concept[concept] for concept in concepts])
        low, high = _ends(values, draws, level)
        yield {
            "method": method,
            "auroc": _mean(values),
            "low": low,
            "high": high,
            "concepts": int(np.isfinite(values).sum()),
            "documents": documents,
        }

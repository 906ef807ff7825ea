"""Points of ``weight_sparsity`` as tables: curves, drop points, comparisons, masks, cost.

Shapes: K levels of a curve, level 0 the dense model; D documents; L matrices.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.analysis.weight_sparsity import WeightSparsityParams
from sparsescope.analysis.weight_sparsity.measure import Measuring, Point
from sparsescope.core.result import Result
from sparsescope.metrics.drop_points import (
    DropPoint,
    damage_band,
    drop_point,
    has_signal,
    minimum_detectable,
    non_inferior,
)
from sparsescope.metrics.estimates import BOOTSTRAP, DocumentBootstrap
from sparsescope.metrics.hinges import hinge, kneedle
from sparsescope.pruning.curves import Curve
from sparsescope.pruning.masks import MaskSet, overlap
from sparsescope.pruning.patterns import NM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SAME = 0.005  # a spread of sparsities that is only rounding
_QUESTIONS = (
    ("wanda", "magnitude"),
    ("ria", "magnitude"),
    ("sparsegpt", "magnitude"),
    ("sparsegpt", "wanda"),
    ("ria", "wanda"),
)


class Reporter:
    """Turns points into rows with intervals."""

    def __init__(
        self,
        params: WeightSparsityParams,
        measuring: Measuring,
        dense: dict[str, tuple[Floats, Floats]],
        draws: DocumentBootstrap,
        lines: list[Curve],
        singles: list[Curve],
        points: dict[str, list[Point]],
    ) -> None:
        self.params, self.measuring, self.dense, self.draws = params, measuring, dense, draws
        self.lines, self.curves, self.targets = lines, [*lines, *singles], measuring.targets
        self.points = {name: sorted(found, key=lambda p: p.asked) for name, found in points.items()}
        self.drops: dict[tuple[str, float], DropPoint] = {}
        self.detectable: dict[tuple[str, float], float] = {}
        self.differences: dict[str, tuple[str, str, float, float, float, float]] = {}
        self.n = {"documents": len(measuring.documents), "tokens": int(self.targets.sum())}
        nll = dense["zero-shot"][0]
        chance = measuring.unigram()
        error = float(draws.replicates(nll - chance, self.targets).std())
        self.unigram = float(chance.sum() / self.targets.sum())
        self.signal = has_signal(float(nll.sum() / self.targets.sum()), self.unigram, error)

    def sums(self, curve: Curve) -> tuple[Floats, Floats]:
        """Levels [K] and paired damage summed by document [K, D], the dense model first."""
        dense = self.dense[curve.kind][0]
        found = self.points[curve.name]
        levels = [0.0, *(self.exact(point) for point in found)]
        return np.array(levels), np.stack([np.zeros_like(dense), *(point.nll - dense for point in found)])

    def exact(self, point: Point) -> float:
        """Sparsity of the masks of a point."""
        return float(1 - point.kept.sum() / self.measuring.sizes.sum())

    def at(self, name: str, asked: float | None = None) -> Point | None:
        """The point of a curve at a level, at the level of comparison when None."""
        wanted = self.params.compare_at if asked is None else asked
        return next((p for p in self.points.get(name, ()) if math.isclose(p.asked, wanted)), None)

    def curve(self, kind: str) -> list[dict[str, Any]]:
        """Every measured point of the curves of a kind."""
        rows = []
        for curve in (curve for curve in self.curves if curve.kind == kind):
            nll, correct = self.dense[curve.kind]
            levels, sums = self.sums(curve)
            band = damage_band(sums, self.targets, self.draws)
            found: list[Point | None] = [None, *self.points[curve.name]]
            for number, (point, level) in enumerate(zip(found, levels, strict=True)):
                if point is None and curve not in self.lines:
                    continue  # a single pattern has no line, so no dense end of it
                loss = nll if point is None else point.nll
                right = correct if point is None else point.correct
                retained = 1.0 if point is None else self._mean(point.retained)
                rows.append(
                    {
                        "curve": curve.title,
                        "asked": 0.0 if point is None else point.asked,
                        "sparsity": level,
                        "density": 1 - level,
                        "damage": band.mean[number],
                        "damage_low": band.low[number],
                        "damage_high": band.high[number],
                        "perplexity": math.exp(min(float(loss.sum() / self.n["tokens"]), 700.0)),
                        "accuracy": float(right.sum() / self.n["tokens"]),
                        "retained": retained,
                        **self.n,
                    }
                )
        return rows

    def _said(self, method: str) -> DocumentBootstrap:
        """The draws, for an interval that was made of them in another way."""
        return replace(self.draws, method=method)

    def _mean(self, by_matrix: Floats) -> float:
        """Mean over weights of a number by matrix."""
        sizes = self.measuring.sizes
        return float((by_matrix * sizes).sum() / sizes.sum())

    def drop_points(self) -> list[dict[str, Any]]:
        """Where each curve reaches each tolerance."""
        rows = []
        for curve in self.lines:
            levels, sums = self.sums(curve)
            for tolerance in self.params.tolerances:
                found = drop_point(levels, sums, self.targets, tolerance, self.draws)
                self.drops[curve.name, tolerance] = found
                detectable = minimum_detectable(levels, sums, self.targets, _nearest(levels, found.at))
                self.detectable[curve.name, tolerance] = detectable
                rows.append(
                    {
                        "curve": curve.title,
                        "kind": curve.kind,
                        "tolerance": tolerance,
                        "sparsity": found.at if self.signal else math.nan,
                        "low": found.low if self.signal else math.nan,
                        "high": found.high if self.signal else math.nan,
                        "bracket": found.bracket,
                        "censored": self._censored(found),
                        "non_inferior": non_inferior(levels, sums, self.targets, tolerance, self.draws),
                        "detectable": detectable,
                        "documents": self.n["documents"],
                    }
                )
        return rows

    def _censored(self, found: DropPoint) -> str:
        if not self.signal:
            return "no signal: the dense model is not better than the frequencies of the tokens"
        if found.censored == "right":
            return "at least: the damage stayed within the tolerance at every level"
        if found.censored == "left":
            return "below the first level: interpolated from the dense model"
        return "no"

    def detectors(self) -> list[dict[str, Any]]:
        """Secondary detectors: what they say depends on the grid."""
        rows = []
        for curve in self.lines:
            levels, sums = self.sums(curve)
            found = hinge(levels, sums, self.targets, self.draws)
            damage = sums.sum(1) / self.n["tokens"]
            rows.append(
                {
                    "curve": curve.title,
                    "kind": curve.kind,
                    "hinge": found.at if found.exists else math.nan,
                    "hinge_low": found.low if found.exists else math.nan,
                    "hinge_high": found.high if found.exists else math.nan,
                    "knee": "yes" if found.exists else "no: a smooth curve fits as well",
                    "kneedle": kneedle(levels, damage),
                    "grid_end": float(levels[-1]),
                    "levels": len(levels),
                }
            )
        return rows

    def comparisons(self) -> list[dict[str, Any]]:
        """Paired differences at levels that were fixed beforehand."""
        level, rows = self.params.compare_at, []
        names = {curve.name: curve for curve in self.curves if not curve.finetuned}
        if {"random", "magnitude"} <= names.keys():
            rows += [
                self._compared("random against magnitude", "random", "magnitude", asked)
                for asked in sorted({*self.params.levels, level})
            ]
        for first, second in _QUESTIONS:
            if {first, second} <= names.keys():
                rows.append(self._compared(f"{first} against {second}", first, second, level))
        for name, curve in names.items():
            plain = curve.criterion.name
            if "+" in name and curve.pattern is None and plain in names:
                question = f"{curve.allocation.name} against uniform, {plain}"
                rows += [
                    self._compared(question, name, plain, asked)
                    for asked in sorted({*self.params.levels, level})
                ]
            if isinstance(curve.pattern, NM) and plain in names:
                share = curve.pattern.sparsity
                question = f"{curve.pattern.text} against single weights, {plain}"
                rows.append(self._compared(question, name, plain, share))
        return [row for row in rows if row]

    def _compared(self, question: str, first: str, second: str, asked: float) -> dict[str, Any]:
        """One paired difference; empty where one of the two was not measured at this level."""
        a, b = self.at(first, asked), self.at(second, asked)
        if a is None or b is None:
            return {}
        difference = a.nll - b.nll
        band = damage_band(difference[None], self.targets, self.draws)
        low, high = float(band.low[0]), float(band.high[0])
        name = f"{a.curve.slug}_minus_{b.curve.slug}_at_{asked:g}"
        self.differences[name] = (a.curve.title, b.curve.title, asked, float(band.mean[0]), low, high)
        verdict = "first is better" if high < 0 else "second is better" if low > 0 else "not resolved"
        return {
            "question": question,
            "first": a.curve.title,
            "second": b.curve.title,
            "asked": asked,
            "difference": float(band.mean[0]),
            "low": low,
            "high": high,
            "verdict": verdict,
            "documents": self.n["documents"],
        }

    def per_matrix(self) -> list[dict[str, Any]]:
        """Zeros and energy of each matrix at the level of comparison."""
        rows = []
        for curve in self.lines:
            point = self.at(curve.name)
            if point is None or curve.finetuned:
                continue
            sparsity = 1 - point.kept / self.measuring.sizes
            for number, site in enumerate(self.measuring.scope.matrices):
                rows.append(
                    {
                        "curve": curve.title,
                        "layer": site.layer,
                        "role": site.role.removesuffix(".weight"),
                        "matrix": site.name,
                        "sparsity": sparsity[number],
                        "retained": point.retained[number],
                        "oracle": point.more["oracle"][number],
                    }
                )
        return rows

    def overlaps(self, beside: float | None) -> list[dict[str, Any]]:
        """Masks of two curves at the level of comparison, and of one curve at neighboring levels."""
        sets: dict[str, MaskSet] = {}
        for curve in self.lines:
            point = self.at(curve.name)
            if point is not None and not curve.finetuned:
                sets[curve.name] = self.measuring.masks_of(point)
        titles = {curve.name: curve.title for curve in self.curves}
        names = list(sets)
        pairs = [
            (titles[a], titles[b], sets[a], sets[b]) for i, a in enumerate(names) for b in names[i + 1 :]
        ]
        for name in names if beside is not None else ():
            point, other = self.at(name), self.at(name, beside)
            if point is not None and other is not None and "bits" in other.more:
                here, there = (f"{titles[name]} at {100 * at:g} %" for at in (point.asked, other.asked))
                pairs.append((here, there, sets[name], self.measuring.masks_of(other)))
        rows = []
        for first, second, a, b in pairs:
            found = overlap(a, b)
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "agreement": found.agreement,
                    "kappa": found.kappa,
                    "jaccard": found.pruned_jaccard,
                    "by_chance": found.jaccard_by_chance,
                }
            )
        return rows

    def reconstruction(self) -> list[dict[str, Any]]:
        """Errors of the first curve that solves for its weights."""
        for curve in self.lines:
            point = self.at(curve.name)
            if point is None or "error" not in point.more:
                continue
            return [
                {
                    "layer": site.layer,
                    "role": site.role.removesuffix(".weight"),
                    "matrix": site.name,
                    **{name: float(point.more[name][number]) for name in ("masked", "error", "floor")},
                    "rows": int(np.nan_to_num(point.more["rows"][number])),
                }
                for number, site in enumerate(self.measuring.scope.matrices)
            ]
        return []

    def zeros(self) -> list[dict[str, Any]]:
        """Sparsity by layer and role of the curves whose matrices do not all lose the same."""
        frame = pd.DataFrame(self.per_matrix())
        rows: list[dict[str, Any]] = []
        for name, part in frame.groupby("curve", sort=False) if len(frame) else ():
            if part["sparsity"].max() - part["sparsity"].min() > SAME:
                means = part.groupby(["layer", "role"], sort=False)["sparsity"].mean().reset_index()
                rows += means.assign(curve=name).to_dict("records")
        return rows

    def cost(self) -> list[dict[str, Any]]:
        """What each level took."""
        rows: list[dict[str, Any]] = []
        for curve in (curve for curve in self.curves if not curve.finetuned):
            dense = self.dense[curve.kind][0]
            rows += [
                {
                    "curve": curve.title,
                    "asked": point.asked,
                    "seconds": point.seconds,
                    "memory": point.memory,
                    "damage": float((point.nll - dense).sum() / self.n["tokens"]),
                }
                for point in self.points[curve.name]
            ]
        return rows

    def scope(self) -> list[dict[str, Any]]:
        """What is pruned and what is not."""
        parts: dict[str, int] = {}
        for site, size in zip(self.measuring.scope.matrices, self.measuring.sizes.tolist(), strict=True):
            name = site.role.removesuffix(".weight")
            parts[name] = parts.get(name, 0) + size
        inside = [{"part": name, "weights": count, "in_scope": "yes"} for name, count in parts.items()]
        left = self.measuring.scope.left_out
        return inside + [{"part": name, "weights": n, "in_scope": "no"} for name, n in left.items()]

    def scalars(self, out: Result) -> None:
        """Drop points, the dense loss and what it stands beside."""
        for curve in self.lines:
            for tolerance in self.params.tolerances:
                found = self.drops[curve.name, tolerance]
                kind = "" if not curve.finetuned else " and trained on with the mask fixed"
                out.add_scalar(
                    f"sparsity_{curve.slug}_at_{tolerance:g}",
                    found.at if self.signal else math.nan,
                    "fraction",
                    f"largest share of the weights in scope that can be set to zero by {curve.title}{kind} "
                    f"with the loss at most {tolerance:g} nats above that of the dense model on "
                    f"{self.n['tokens']} held-out tokens; isotonic fit",
                    interval=self._said(found.method).between(found.low, found.high) if self.signal else None,
                    direction="higher",
                    title=f"Weights off at +{tolerance:g} nats, {curve.title}"
                    + (" (fine-tuned)" if curve.finetuned else ""),
                )
        for name, (first, second, asked, mean, low_end, high_end) in self.differences.items():
            out.add_scalar(
                name,
                mean,
                "nats",
                f"mean loss of the model pruned by {first} minus that of the one pruned by {second}, both "
                f"with {100 * asked:g} % zeros, on the same held-out tokens",
                interval=self.draws.between(low_end, high_end),
                direction="lower",
                title=f"{first} minus {second} at {100 * asked:g} %",
            )
        solved = pd.DataFrame(self.reconstruction())
        if len(solved) and solved["floor"].mean() > 0:
            ratio = float(solved["error"].mean() / solved["floor"].mean())
            text = "squared error of the output after SparseGPT's update / the least that its masks allow, "
            text += "both relative to the output and averaged over matrices"
            out.add_scalar("sparsegpt_over_floor", ratio, "", text, title="SparseGPT's error / its floor")
        nll = self.dense["zero-shot"][0]
        low, high = self.draws.ends(self.draws.replicates(nll, self.targets))
        text = "exp of the mean loss in nats of the dense model on the held-out tokens, each in its window"
        perplexity = math.exp(min(float(nll.sum() / self.n["tokens"]), 700.0))
        spread = self._said(BOOTSTRAP).between(np.exp(low), np.exp(high))
        out.add_scalar("dense_perplexity", perplexity, "", text, interval=spread, direction="lower")
        text = (
            "exp of the mean loss in nats of the frequencies of the tokens in the calibration text: what a "
            "model without any context reaches"
        )
        out.add_scalar("unigram_perplexity", math.exp(self.unigram), "", text)
        text = "parameters in scope / all parameters: zeros in scope times this are zeros of the model"
        sizes = int(self.measuring.sizes.sum())
        whole = sizes + sum(self.measuring.scope.left_out.values())
        out.add_scalar("scope_share", sizes / whole, "fraction", text)


def _nearest(levels: Floats, at: float) -> float:
    """The pruned level next to a place: the dense model has no error of its own."""
    return float(levels[1:][np.abs(levels[1:] - at).argmin()])

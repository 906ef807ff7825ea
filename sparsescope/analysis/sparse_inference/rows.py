"""Points of ``sparse_inference`` as tables with intervals: quality, comparisons, usable range, bytes.

All intervals resample the held-out documents with the same draws, so that differences are paired.
Shapes: K points of a curve, the dense model first; B resamples; D documents; M masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.sparse_inference import SparseInferenceParams
from sparsescope.analysis.sparse_inference.measure import Measuring, Point
from sparsescope.inference.accounting import inventory
from sparsescope.inference.mask_accounting import account_masks
from sparsescope.inference.methods import named
from sparsescope.metrics.estimates import PAIRED_BOOTSTRAP, DocumentBootstrap
from sparsescope.metrics.isotonic_crossing import resampled_crossings, tolerance_crossing
from sparsescope.metrics.matrix_costs import TokenAccount

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.inference.evaluate import Scores

    Floats = NDArray[np.float64]

DENSE = "dense"


class Reporter:
    """Turns points into rows."""

    def __init__(
        self,
        params: SparseInferenceParams,
        measuring: Measuring,
        dense: dict[str, Any],
        points: list[Point],
    ) -> None:
        self.params, self.measuring, self.dense, self.points = params, measuring, dense, points
        self.targets: NDArray[np.int64] = dense["targets"]
        self.draws = DocumentBootstrap.draw(
            dense["domains"], params.resamples, params.seed, params.level, PAIRED_BOOTSTRAP
        )
        self.n = {"documents": len(self.targets), "tokens": int(self.targets.sum())}
        self.total = measuring.bench.total_weights
        self.mlp = sum(
            measuring.bench.routed(group) * group.width * group.outputs()
            for group in measuring.bench.groups
            if group.role.startswith("mlp")
        )
        self.inventory = inventory(measuring.context.subject)
        self._accounts: dict[int, TokenAccount] = {}

    def at(self, method: str, target: float, prefix: str) -> Point | None:
        """The point of a method at a target."""
        return next(
            (
                point
                for point in self.points
                if point.method == method and point.prefix == prefix and math.isclose(point.target, target)
            ),
            None,
        )

    def curve(self, method: str, prefix: str) -> list[Point]:
        """The points of a method, by target."""
        found = [point for point in self.points if point.method == method and point.prefix == prefix]
        return sorted(found, key=lambda point: point.target)

    def curves(self) -> Iterator[tuple[str, str]]:
        """Every method and prefix policy that has points."""
        yield from dict.fromkeys((point.method, point.prefix) for point in self.points)

    # -- quality ------------------------------------------------------------------------------------

    def quality(self, extra: list[tuple[str, Point | None, Scores]]) -> list[dict[str, Any]]:
        """Every point, the dense model first under each policy.

        Args:
            extra: Rows of other models: title, the point where there is one, scores.
        """
        rows = []
        for prefix in dict.fromkeys(point.prefix for point in self.points):
            rows.append(self._row(DENSE, prefix, 0.0, None, None))
            own = [point for point in self.points if point.prefix == prefix]
            rows += [self._row(p.title, prefix, p.target, p, p.scores) for p in own]
        for title, made, scores in extra:
            target = 0.0 if made is None else made.target
            rows.append(self._row(title, self.params.prefixes[0], target, made, scores))
        return rows

    def _row(
        self, title: str, prefix: str, target: float, point: Point | None, scores: Scores | None
    ) -> dict[str, Any]:
        zero = np.zeros(len(self.targets))
        nll = self.dense["nll"] if scores is None else scores.nll
        kl = self.draws.ratio(zero if scores is None else scores.kl, self.targets)
        loss = self.draws.ratio(nll - self.dense["nll"], self.targets)
        agree = self.draws.ratio(self.targets if scores is None else scores.agree, self.targets)
        realised = 0.0 if point is None else float(point.skipped()) / self.total
        low, high = (0.0, 0.0)
        if point is not None:
            ends = self.draws.ends(point.skipped(self.draws.weights)[:, None] / self.total)
            low, high = float(ends[0][0]), float(ends[1][0])
        correct = self.dense["correct"] if scores is None else scores.correct
        shares = None if point is None else self.account(point).bytes
        return {
            "method": title,
            "prefix": prefix,
            "target": target,
            "realised": realised,
            "realised_low": low,
            "realised_high": high,
            "mlp": 0.0 if shares is None else shares.mlp,
            "model": 0.0 if shares is None else shares.model,
            "kl": float(kl.mean),
            "kl_low": float(kl.low),
            "kl_high": float(kl.high),
            "loss": float(loss.mean),
            "loss_low": float(loss.low),
            "loss_high": float(loss.high),
            "perplexity": math.exp(min(float(nll.sum() / self.n["tokens"]), 700.0)),
            "agreement": float(agree.mean),
            "agreement_low": float(agree.low),
            "agreement_high": float(agree.high),
            "accuracy": float(correct.sum() / self.n["tokens"]),
            **self.n,
        }

    def domains(self) -> list[dict[str, Any]]:
        """Quality by kind of text, where there are several."""
        names = self.measuring.texts.held_out.domains
        present = np.unique(self.dense["domains"])
        if len(present) < 2:
            return []
        rows = []
        for point in self.points:
            for number in present:
                own = self.dense["domains"] == number
                kl = self.draws.among(own).ratio(point.scores.kl[own], self.targets[own])
                rows.append(
                    {
                        "method": point.title,
                        "prefix": point.prefix,
                        "target": point.target,
                        "domain": names[int(number)],
                        "kl": float(kl.mean),
                        "kl_low": float(kl.low),
                        "kl_high": float(kl.high),
                        "realised": float(point.skipped(own.astype(float))) / self.total,
                        "documents": int(own.sum()),
                    }
                )
        return rows

    # -- comparisons --------------------------------------------------------------------------------

    def comparisons(self) -> list[dict[str, Any]]:
        """The reference against every other method, at the bytes that the other one realised."""
        rows = []
        for prefix in self.params.prefixes:
            for target in self.params.compare_at:
                for method in dict.fromkeys((*self.params.methods, *self.params.beside)):
                    other = self.at(method, target, prefix)
                    if method == self.params.reference or other is None:
                        continue
                    row = self._compare(other)
                    if row is not None:
                        rows.append(row)
        return rows

    def _compare(self, other: Point) -> dict[str, Any] | None:
        wanted = float(other.skipped()) / self.total
        own = self.at_bytes(self.params.reference, other.prefix, wanted)
        if own is None:
            return None
        difference = self.draws.ratio(own - other.scores.kl, self.targets)
        sums = self.draws.totals(np.stack([own, other.scores.kl], -1))
        ratio_low, ratio_high = self.draws.ends(sums[:, :1] / np.maximum(sums[:, 1:], 1e-30))
        verdict = "not resolved"
        if float(difference.high) <= 0:
            verdict = "first is better"
        elif float(difference.low) >= 0:
            verdict = "second is better"
        return {
            "prefix": other.prefix,
            "target": other.target,
            "first": named(self.params.reference),
            "second": other.title,
            "difference": float(difference.mean),
            "low": float(difference.low),
            "high": float(difference.high),
            "ratio": float(own.sum() / max(other.scores.kl.sum(), 1e-30)),
            "ratio_low": float(ratio_low[0]),
            "ratio_high": float(ratio_high[0]),
            "verdict": verdict,
            "documents": self.n["documents"],
        }

    def at_bytes(self, method: str, prefix: str, realised: float) -> Floats | None:
        """KL of a method by document at a share of realised bytes, [D]: linear between its points, the dense
        model being one. KL is convex in the bytes, so that what lies between is not flattered. None
        beyond its last point.
        """
        curve = self.curve(method, prefix)
        levels = np.array([0.0, *(float(point.skipped()) / self.total for point in curve)])
        sums = np.stack([np.zeros(len(self.targets)), *(point.scores.kl for point in curve)])
        order = np.argsort(levels, kind="stable")
        levels, sums = levels[order], sums[order]
        after = int(np.searchsorted(levels, realised))
        if after >= len(levels):
            return None
        before = max(after - 1, 0)
        gap = levels[after] - levels[before]
        part = 0.0 if gap <= 0 else (realised - levels[before]) / gap
        found: Floats = sums[before] + part * (sums[after] - sums[before])
        return found

    # -- usable range -------------------------------------------------------------------------------

    def usable_range(self) -> list[dict[str, Any]]:
        """How far each method goes at each tolerance."""
        rows = []
        for method, prefix in self.curves():
            if method in self.params.beside and method not in self.params.methods:
                continue
            curve = self.curve(method, prefix)
            if len(curve) < 2:
                continue
            levels, damage = self._damage(curve, None)
            drawn = self._damage(curve, self.draws.weights)
            for tolerance in self.params.tolerances:
                crossing = tolerance_crossing(levels, damage, tolerance)
                ends = self.draws.ends(resampled_crossings(*drawn, tolerance)[:, None])
                reason = {
                    "": "no",
                    "left": "below the first point",
                    "right": "at least: the last point is within",
                }
                rows.append(
                    {
                        "method": curve[0].title,
                        "prefix": prefix,
                        "tolerance": tolerance,
                        "sparsity": crossing.at,
                        "low": float(ends[0][0]),
                        "high": float(ends[1][0]),
                        "bracket": crossing.bracket,
                        "censored": reason[crossing.censored],
                        "documents": self.n["documents"],
                    }
                )
        return rows

    def _damage(self, curve: list[Point], weights: Floats | None) -> tuple[Floats, Floats]:
        """Levels and rises of the perplexity, [K]; of resamples [B, K]. The dense model is the first."""
        own = np.ones((1, len(self.targets))) if weights is None else weights
        count = own @ self.targets
        levels = [np.zeros(len(own))]
        rises = [np.zeros(len(own))]
        for point in curve:
            levels.append(np.atleast_1d(point.skipped(own)) / self.total)
            rise = (own @ (point.scores.nll - self.dense["nll"])) / count
            rises.append(np.expm1(np.minimum(rise, 700.0)))
        first, second = np.stack(levels, -1), np.stack(rises, -1)
        return (first[0], second[0]) if weights is None else (first, second)

    # -- bytes --------------------------------------------------------------------------------------

    def account(self, point: Point) -> TokenAccount:
        """What a decoded token reads at a point."""
        if id(point) not in self._accounts:
            dropped = point.per_mask().tolist()
            self._accounts[id(point)] = account_masks(self.inventory, point.masks, dropped, point.adapters)
        return self._accounts[id(point)]

    def accounting(self) -> list[dict[str, Any]]:
        """Bytes and FLOPs of every point."""
        rows = []
        for point in self.points:
            found = self.account(point)
            dense = found.dense.total_bytes
            read = found.total_bytes
            rows.append(
                {
                    "method": point.title,
                    "prefix": point.prefix,
                    "target": point.target,
                    "block": found.bytes.block,
                    "model": found.bytes.model,
                    "flops": found.flops.model,
                    "read": read,
                    "adapters": float(sum(adapter.bytes for adapter in found.adapters)),
                    "bound": dense / read if read else float("inf"),
                }
            )
        return rows

    def ceilings(self) -> list[dict[str, Any]]:
        """What each method can skip at most, and where it was measured."""
        rows = []
        for method, ceiling in self.measuring.ceilings.items():
            reached = sorted({point.target for point in self.points if point.method == method})
            rows.append(
                {
                    "method": named(method),
                    "ceiling": ceiling,
                    "reaches": ", ".join(f"{100 * target:g} %" for target in reached)
                    or "none of the targets",
                }
            )
        return rows

    def calibration(self) -> list[dict[str, Any]]:
        """What calibrations found and cost."""
        return [
            {
                "method": point.title,
                "prefix": point.prefix,
                "target": point.target,
                **{name: point.facts[name] for name in ("realised", "rounds", "seconds")},
            }
            for point in self.points
        ]

    def choices(self) -> list[dict[str, Any]]:
        """What auto chose on development text."""
        return [
            {
                "target": target,
                "role": role,
                "factor": factor,
                "centred": "yes" if role in choice.centred else "no",
                "kl": choice.kl,
                "start": choice.start,
                "passes": choice.passes,
            }
            for target, choice in sorted(self.measuring.choices.items())
            for role, factor in choice.factors.items()
        ]

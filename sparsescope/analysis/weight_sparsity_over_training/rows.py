"""Losses of checkpoints as tables: damage, drop points, excess over random masks, the largest rise.

All checkpoints and curves are resampled with the same draws of documents, so every difference is paired.
Shapes: T checkpoints, W ways to prune, K levels, D documents, B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.weight_sparsity_over_training.abrupt import LEAST, largest_rise
from sparsescope.analysis.weight_sparsity_over_training.measure import RANDOM, Rule, curves_of, rules_of
from sparsescope.metrics.drop_points import DropPoint, damage_band, drop_point
from sparsescope.metrics.isotonic_crossing import resampled_crossings, tolerance_crossing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.analysis.weight_sparsity_over_training import WeightSparsityOverTrainingParams as Params
    from sparsescope.analysis.weight_sparsity_over_training.measure import Held
    from sparsescope.metrics.estimates import DocumentBootstrap, Estimate
    from sparsescope.pruning.curves import Curve

    Floats = NDArray[np.float64]

SIGNAL = "yes"
NO_SIGNAL = "no signal: the loss of the dense checkpoint is not below chance"
OVER_CONFIDENT = "over-confident: random masks lower the loss"
NEEDED = f"needs {LEAST} checkpoints with signal, has {{}}"
CERTAIN = 0.05


@dataclass(slots=True)
class Course:
    """Every checkpoint of a series, measured.

    Attributes:
        params: Of the run.
        held: What checkpoints were scored on.
        draws: Resamples of its documents.
        steps: [T].
        arrays: What ``measure`` gave of each checkpoint.
        curves: The curves that were asked for, then random masks.
        rules: The tolerances.
        signal: ``yes``, or why a checkpoint has no drop point, [T].
        bands: Damage of the levels with its interval, by index of the checkpoint and name of the curve.
        drops: By index of the checkpoint, name of the curve, rule; where there is signal.
        replicates: The same of the resampled drop points, [B].
    """

    params: Params
    held: Held
    draws: DocumentBootstrap
    steps: tuple[int, ...]
    arrays: list[dict[str, Floats]]
    curves: list[Curve] = field(init=False)
    rules: list[Rule] = field(init=False)
    signal: list[str] = field(init=False)
    bands: dict[tuple[int, str], Estimate] = field(init=False, default_factory=dict)
    drops: dict[tuple[int, str, Rule], DropPoint] = field(init=False, default_factory=dict)
    replicates: dict[tuple[int, str, Rule], Floats] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.curves, self.rules = curves_of(self.params), rules_of(self.params)
        for place in self.measured:
            for curve in self.curves:
                _, sums = self.sums(place, curve)
                self.bands[place, curve.name] = damage_band(sums, self.held.targets, self.draws)
        self.signal = [self._signal(place) for place in range(len(self.steps))]
        for place in self.places:
            for curve in self.curves:
                self._find(place, curve)

    def _find(self, place: int, curve: Curve) -> None:
        """Find the drop points of a curve of one checkpoint, and their resamples."""
        levels, sums = self.sums(place, curve)
        damage = self.draws.replicates(sums.T, self.held.targets[:, None])
        for rule in self.rules:
            cell, tolerance = (place, curve.name, rule), self.tolerance(place, rule)
            self.drops[cell] = drop_point(levels, sums, self.held.targets, tolerance, self.draws)
            self.replicates[cell] = resampled_crossings(
                np.broadcast_to(levels, damage.shape), damage, tolerance
            )

    def _signal(self, place: int) -> str:
        """What random masks improve is no measure of what pruning breaks."""
        if place not in self.measured:
            return NO_SIGNAL
        band = self.bands[place, RANDOM]
        sure = np.where(np.isfinite(band.high), band.high, band.mean)
        return OVER_CONFIDENT if sure.min() < -min(self.params.tolerances) else SIGNAL

    @property
    def measured(self) -> list[int]:
        """Indices of the checkpoints whose loss is below chance."""
        return [place for place, entry in enumerate(self.arrays) if "pruned_0" in entry]

    @property
    def places(self) -> list[int]:
        """Indices of the checkpoints with drop points."""
        return [place for place, known in enumerate(self.signal) if known == SIGNAL]

    @property
    def documents(self) -> int:
        """Documents, the independent units."""
        return len(self.held.targets)

    def sums(self, place: int, curve: Curve, mask: int | None = None) -> tuple[Floats, Floats]:
        """Levels [K + 1] and paired damage summed by document [K + 1, D], the dense checkpoint first.

        Args:
            place: Index of the checkpoint.
            curve: Of random masks the mean over draws.
            mask: One draw of random masks.
        """
        entry, number = self.arrays[place], self.curves.index(curve)
        losses = entry[f"pruned_{number}"][slice(None) if mask is None else slice(mask, mask + 1)]
        damage = (losses - entry["nll"]).mean(0)
        return np.append(0.0, entry[f"sparsity_{number}"]), np.vstack([np.zeros(damage.shape[1]), damage])

    def tolerance(self, place: int, rule: Rule) -> float:
        """Tolerated damage at a checkpoint, nats."""
        return rule.at(self.arrays[place]["nll"], self.held)

    def per_checkpoint(self) -> list[dict[str, Any]]:
        """The dense checkpoints."""
        rows, targets = [], self.held.targets
        for step, entry, known in zip(self.steps, self.arrays, self.signal, strict=True):
            found = self.draws.ratio(entry["nll"], targets)
            rows.append(
                {
                    "step": step,
                    "loss": float(found.mean),
                    "low": float(found.low),
                    "high": float(found.high),
                    "accuracy": float(entry["correct"].sum() / targets.sum()),
                    "chance": float(self.held.chance.sum() / targets.sum()),
                    "signal": known,
                    "documents": self.documents,
                    "tokens": int(targets.sum()),
                }
            )
        return rows

    def damage(self) -> list[dict[str, Any]]:
        """Every level of every checkpoint whose loss is below chance."""
        rows = []
        for place in self.measured:
            for number, curve in enumerate(self.curves):
                levels, band = self.sums(place, curve)[0], self.bands[place, curve.name]
                rows += [
                    {
                        "step": self.steps[place],
                        "curve": curve.title,
                        "asked": asked,
                        "sparsity": levels[level],
                        "damage": band.mean[level],
                        "damage_low": band.low[level],
                        "damage_high": band.high[level],
                        "documents": self.documents,
                    }
                    for level, asked in enumerate(self.arrays[place][f"asked_{number}"], 1)
                ]
        return rows

    def drop_points(self) -> list[dict[str, Any]]:
        """Every drop point; NaN where there is no signal."""
        rows = []
        for rule in self.rules:
            for curve in self.curves:
                for place, step in enumerate(self.steps):
                    found = self.drops.get((place, curve.name, rule))
                    masks = self._masks(place, rule) if curve.name == RANDOM and found else [math.nan]
                    rows.append(
                        {
                            "step": step,
                            "curve": curve.title,
                            "rule": rule.name,
                            "tolerance": self.tolerance(place, rule) if found else math.nan,
                            "sparsity": found.at if found else math.nan,
                            "low": found.low if found else math.nan,
                            "high": found.high if found else math.nan,
                            "bracket": found.bracket if found else math.nan,
                            "censored": _censored(found) if found else self.signal[place],
                            "lowest": self._lowest(place, curve),
                            "least_mask": min(masks),
                            "most_mask": max(masks),
                            "documents": self.documents,
                        }
                    )
        return rows

    def _lowest(self, place: int, curve: Curve) -> float:
        """Smallest damage of a pruned level."""
        band = self.bands.get((place, curve.name))
        return math.nan if band is None else float(band.mean[1:].min())

    def _masks(self, place: int, rule: Rule) -> list[float]:
        """Drop point of each draw of random masks."""
        found, total = [], self.held.targets.sum()
        for mask in range(self.params.random_masks):
            levels, sums = self.sums(place, self.curves[-1], mask)
            found.append(tolerance_crossing(levels, sums.sum(1) / total, self.tolerance(place, rule)).at)
        return found

    def beyond(self, place: int, curve: Curve, rule: Rule) -> tuple[float, Floats]:
        """Drop point minus that of random masks, and its resamples [B]."""
        own, null = (place, curve.name, rule), (place, RANDOM, rule)
        value = self.drops[own].at - self.drops[null].at
        return value, self.replicates[own] - self.replicates[null]

    def excess(self) -> list[dict[str, Any]]:
        """Beside random masks; NaN where there is no signal."""
        rows = []
        for rule in self.rules:
            for curve in self.curves[:-1]:
                for place, step in enumerate(self.steps):
                    value, low, high, bound = math.nan, math.nan, math.nan, self.signal[place]
                    if self.signal[place] == SIGNAL:
                        value, drawn = self.beyond(place, curve, rule)
                        low, high = map(float, self.draws.ends(drawn, self.documents))
                        own, null = (
                            self.drops[place, name, rule].censored == "right" for name in (curve.name, RANDOM)
                        )
                        bound = "no"
                        if own or null:
                            bound = "not known" if own and null else "at least" if own else "at most"
                    rows.append(
                        {
                            "step": step,
                            "curve": curve.title,
                            "rule": rule.name,
                            "excess": value,
                            "low": low,
                            "high": high,
                            "bound": bound,
                            "documents": self.documents,
                        }
                    )
        return rows

    def abruptness(self) -> list[dict[str, Any]]:
        """The largest rise of each curve, where there are enough checkpoints."""
        return [
            {"curve": curve.title, "rule": rule.name, **self._rise(curve, rule)}
            for rule in self.rules
            for curve in self.curves
        ]

    def _rise(self, curve: Curve, rule: Rule) -> dict[str, Any]:
        names = (
            *("before", "after", "jump", "jump_low", "jump_high"),
            *("resolution", "beyond_random", "beyond_low", "beyond_high", "share", "p_value"),
        )
        row: dict[str, Any] = {"checkpoints": len(self.places), **dict.fromkeys(names, math.nan)}
        if len(self.places) < LEAST:
            return {**row, "verdict": NEEDED.format(len(self.places))}
        values = [self.drops[place, curve.name, rule].at for place in self.places]
        steps = [self.steps[place] for place in self.places]
        found = largest_rise(steps, values, surrogates=self.params.surrogates, seed=self.params.seed)
        if found is None:
            return {**row, "verdict": "not abrupt: the drop point never rises"}
        before, after = self.places[found.before : found.before + 2]
        row |= {"before": self.steps[before], "after": self.steps[after]}
        row |= {"share": found.share, "p_value": found.p_value}
        cells = [(place, curve.name, rule) for place in (before, after)]
        own = [(self.drops[cell].at, self.replicates[cell]) for cell in cells]
        row |= self._change(own, ("jump", "jump_low", "jump_high"))
        row |= {"resolution": self._resolution(cells)}
        if curve.name != RANDOM:
            beyond = [self.beyond(place, curve, rule) for place in (before, after)]
            row |= self._change(beyond, ("beyond_random", "beyond_low", "beyond_high"))
        cells += [(place, RANDOM, rule) for place in (before, after)]
        return {**row, "verdict": _verdict(row, curve, self._resolution(cells))}

    def _resolution(self, cells: list[tuple[int, str, Rule]]) -> float:
        """Distances between the levels around drop points, added; a bound has none."""
        return float(np.nansum([self.drops[cell].bracket for cell in cells]))

    def _change(self, ends: list[tuple[float, Floats]], names: tuple[str, str, str]) -> dict[str, float]:
        """The second minus the first, with its paired interval."""
        (first, first_drawn), (second, second_drawn) = ends
        low, high = map(float, self.draws.ends(second_drawn - first_drawn, self.documents))
        return dict(zip(names, (second - first, low, high), strict=True))


def _censored(found: DropPoint) -> str:
    if found.censored == "right":
        return "at least: the damage stayed within the tolerance at every level"
    if found.censored == "left":
        return "below the first level: interpolated from the dense model"
    return "no"


def _verdict(row: dict[str, Any], curve: Curve, resolution: float) -> str:
    """Abrupt: a larger share than gradual courses have, surely a rise, and surely more than random masks
    rise, by more than the levels around all four drop points are apart.
    """
    if not row["p_value"] <= CERTAIN:
        return "not abrupt: gradual courses have as large a rise"
    if not row["jump_low"] > 0:
        return "not abrupt: the rise is not certain on these documents"
    if not row["jump"] > row["resolution"]:
        return "not resolved: the levels are too far apart"
    beyond = row["beyond_low"] > 0 and row["beyond_random"] > resolution
    if curve.name != RANDOM and not beyond:
        return "not told from robustness: random masks may rise as much"
    return "abrupt"

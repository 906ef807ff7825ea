"""Calibrate, make sparse, measure, keep: one finished step for each method, target and prefix policy.

What a step keeps is enough for every table, so that a run that was killed measures no point twice.
Calibrations are made when a point needs one. Shapes: D documents, M masks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.sparse_inference import SparseInferenceParams
from sparsescope.analysis.sparse_inference.texts import Texts
from sparsescope.errors import SparsescopeError, SubjectError
from sparsescope.inference.calibration import Calibration, adapter_weights, calibrate
from sparsescope.inference.calibrator import Calibrator
from sparsescope.inference.evaluate import HeldOut, Scores
from sparsescope.inference.install import install
from sparsescope.inference.mask_accounting import mask_facts
from sparsescope.inference.methods import named, recipe_of
from sparsescope.inference.methods.auto import Auto, Choice
from sparsescope.inference.prefix import PrefixPolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.models.subject import Subject

    Floats = NDArray[np.float64]
    Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Point:
    """One sparse model, measured.

    Attributes:
        method: ``teal+greedy``; of the pruned row what was done.
        target: Share of the bytes that was asked for.
        prefix: The prefix policy.
        scores: What the pass found.
        masks: Facts of the masks, in the order of ``scores.kept``: group, roles, saves, weights, vectors.
        adapters: Weights of factors and rotations that every token reads.
        facts: What the calibration found: realised, rounds, seconds.
    """

    method: str
    target: float
    prefix: str
    scores: Scores
    masks: list[dict[str, Any]]
    adapters: int
    facts: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The method as it is written."""
        return named(self.method) if "," not in self.method else self.method

    def skipped(self, weights: Floats | None = None) -> Floats:
        """Weights that a token does not read, less all that it reads for that (products of low rank,
        rotations, norms, centres, biases); with ``weights`` [B, D], [B].
        """
        there = np.array([mask["weights"] for mask in self.masks], float)
        return self.per_mask(weights) @ there - self.adapters - sum(mask["vectors"] for mask in self.masks)

    def per_mask(self, weights: Floats | None = None) -> Floats:
        """Dropped share of each mask, [M]; with ``weights`` [B, D] of resampled documents, [B, M]."""
        kept, there = self.scores.kept.astype(float), self.scores.there.astype(float)
        own = np.ones(len(kept)) if weights is None else weights
        seen = own @ there
        share: Floats = 1 - (own @ kept) / np.maximum(seen, 1)
        return np.where(seen > 0, share, 0.0)


@dataclass(slots=True)
class Measuring:
    """Measures the subject of a run.

    Args:
        params: Parameters of the analysis.
        context: Of the run.
        texts: Its three texts.

    Attributes:
        unfit: Why a method is not measured, by its name.
        ceilings: By method.
        chains: By method, the targets at which it is measured.
        planned: How many points there will be; for the progress bar.
    """

    params: SparseInferenceParams
    context: Context
    texts: Texts
    unfit: dict[str, str] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    chains: dict[str, list[float]] = field(default_factory=dict)
    planned: int = 1
    measured: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    _held: HeldOut | None = None
    _calibrations: dict[tuple[str, float, str], Calibration] = field(default_factory=dict)
    _bench: Calibrator | None = None

    @property
    def bench(self) -> Calibrator:
        """What methods are calibrated with."""
        if self._bench is None:
            texts = self.texts
            self._bench = Calibrator(
                self.context.subject, texts.calibration, texts.development, progress=self._tell
            )
        return self._bench

    @property
    def held(self) -> HeldOut:
        """The held-out text, and what the dense model says about it."""
        if self._held is None:
            self._held = HeldOut(self.context.subject, self.texts.held_out)
        return self._held

    def _tell(self, phase: str, done: int, total: int) -> None:
        """Calibration is a part of a point: the bar counts points, and says what is going on."""
        self.context.progress("points", self.measured, max(self.planned, self.measured + 1), "points")

    def dense(self) -> Arrays:
        """What the dense model says: nll, correct, targets, documents, domains by document."""

        def make() -> Arrays:
            held = self.held
            return {
                "nll": held.scores.nll,
                "correct": held.scores.correct,
                "targets": held.targets,
                "documents": held.documents,
                "domains": held.domains,
            }

        return self.context.step("dense", make)

    def fits(self, method: str) -> bool:
        """Whether the subject is fit for a method; if not, why is kept."""
        if method in self.unfit:
            return False
        if method not in self.ceilings:
            try:
                self.ceilings[method] = recipe_of(method, self.bench).ceiling
            except SubjectError as error:
                self.unfit[method] = error.what
                return False
        return True

    def reaches(self, method: str, target: float) -> bool:
        """Whether a method can skip so much."""
        return self.fits(method) and target <= self.ceilings[method] * 0.98

    def point(self, method: str, target: float, prefix: str) -> Point:
        """Measure one point, or read it back."""
        self._tell("points", 0, 0)
        name = f"{method.replace('+', '-')}-{target:g}-{prefix.replace(':', '-')}"
        found = self.context.step(name, lambda: self._measure(method, target, prefix))
        self.measured += 1
        return _point(method, target, prefix, found)

    def _measure(self, method: str, target: float, prefix: str) -> Arrays:
        calibration = self.calibration(method, target, prefix)
        sparse = install(self.context.subject, calibration.masks, PrefixPolicy.of(prefix))
        begun = time.perf_counter()
        scores = self.held.score(sparse, calibration.masks)
        self._spent("held-out passes", begun)
        return _arrays(scores, calibration, self.bench)

    def calibration(self, method: str, target: float, prefix: str) -> Calibration:
        """The masks of a point: under every policy those that were calibrated under the first one."""
        key = (method, target, self.params.prefixes[0])
        if key not in self._calibrations:
            recipe = recipe_of(method, self.bench)
            if isinstance(recipe, Auto):
                recipe.refine = self.params.choose
                self._choices(recipe, target)
            # Always after the next smaller target, so that a run that goes on has the numbers of one that
            # did not stop
            lower = max((each for each in self.chains.get(method, ()) if each < target), default=None)
            if lower is not None:
                self.calibration(method, lower, prefix)
            begun = time.perf_counter()
            self._calibrations[key] = calibrate(self.bench, *key, after=lower)
            self._spent("calibration", begun)
        return self._calibrations[key]

    def _choices(self, recipe: Auto, target: float) -> None:
        """What auto chose on development text: a step of its own for each anchor, since it takes minutes."""
        for anchor in recipe.anchors(target) if recipe.refine else ():
            if anchor in recipe.choices:
                continue

            def make(anchor: float = anchor) -> Arrays:
                chosen = recipe.choose(anchor)
                return {"json": as_bytes(chosen.facts())}

            found = self.context.step(f"choice-{anchor:g}", make)
            recipe.choices[anchor] = Choice.of(as_value(found["json"]))

    @property
    def choices(self) -> dict[float, Choice]:
        """What auto chose, by sparsity; empty where it was not measured."""
        recipe = self.bench.kept.recipes.get(("auto", "uniform")) if self._bench is not None else None
        return dict(recipe.choices) if isinstance(recipe, Auto) else {}

    def pruned(self, method: str, target: float) -> tuple[Point | None, Scores | None]:
        """A model that is pruned (Wanda) and then made sparse, beside the pruned one alone."""
        share = self.params.pruned
        if not share:
            return None, None

        def make() -> Arrays:
            from sparsescope.pruning.pruner import prune

            thin, _ = prune(
                self.context.subject, "wanda", share, corpus=self.texts.calibration, propagation="dense"
            )
            return self._measure_other(thin, method, target)

        try:
            found = self.context.step(f"pruned-{share:g}-{method.replace('+', '-')}-{target:g}", make)
        except SparsescopeError as error:
            self.unfit["pruned"] = f"the pruned row is left out: {error.what}"
            return None, None
        alone = {
            name.removeprefix("alone_"): array for name, array in found.items() if name.startswith("alone_")
        }
        title = f"Wanda {100 * share:g} %, then {named(method)}"
        point = _point(
            title,
            target,
            self.params.prefixes[0],
            {k: v for k, v in found.items() if not k.startswith("alone_")},
        )
        return point, Scores(**alone)

    def _measure_other(self, thin: Subject, method: str, target: float) -> Arrays:
        bench = Calibrator(thin, self.texts.calibration, self.texts.development, progress=self._tell)
        calibration = calibrate(bench, method, target, "all_sparse")
        sparse = install(thin, calibration.masks, PrefixPolicy("all_sparse"))
        scores = self.held.score(sparse, calibration.masks)
        alone = self.held.dense_scores(thin)
        found = _arrays(scores, calibration, bench)
        return found | {f"alone_{name}": array for name, array in alone.arrays().items()}

    def step(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """A step of the run."""
        return self.context.step(name, make)

    def _spent(self, what: str, begun: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begun


def _arrays(scores: Scores, calibration: Calibration, bench: Calibrator) -> Arrays:
    """A point as a step keeps it."""
    facts = {
        "masks": [mask_facts(bench, mask) for mask in calibration.masks],
        "adapters": adapter_weights(calibration.masks),
        "facts": {name: calibration.facts[name] for name in ("realised", "rounds", "seconds")},
        "total": bench.total_weights,
    }
    return {**scores.arrays(), "json": as_bytes(facts)}


def _point(method: str, target: float, prefix: str, found: Arrays) -> Point:
    facts = as_value(found["json"])
    scores = Scores(**{name: array for name, array in found.items() if name != "json"})
    return Point(method, target, prefix, scores, facts["masks"], facts["adapters"], facts["facts"])


def as_bytes(value: Any) -> NDArray[np.uint8]:
    """A JSON value as a step keeps it."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8).copy()


def as_value(array: NDArray[np.uint8]) -> Any:
    """The JSON value again."""
    return json.loads(array.tobytes())

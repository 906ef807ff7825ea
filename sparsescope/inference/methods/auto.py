"""Our own: one score for matrices that share an input, weighted by Fisher information, one budget for the
model.

Dropping the channels D of an input moves the output o of matrix j by e_o = sum_{i in D} W_oi x_i, which costs
sum_o h_o e_o^2 / 2 nats (``sensitivity``). Where dropped inputs are uncorrelated that is sum_{i in D} x_i^2
c_i^2 / 2 with c_i^2 = sum_j sum_o h_jo W_joi^2, one score for all matrices that read the input, so that they
share a mask. Scores of all layers are on one scale, nats, and channel i costs b weights to read; so the
cheapest way to skip a number of bytes drops x_i^2 c_i^2 / b <= lambda everywhere (Lagrange), with one
lambda, found from the counts of one pass. What is dropped falls back to the median of its channel where that
helps (a bias, no bytes to speak of).

The diagonal is an approximation, so a factor for each kind of input is chosen by the KL divergence from the
dense model on development text: a few passes at three sparsities, between which factors are interpolated.

On a mixture of experts the diagonal underrates some inputs far more than others, and the budget takes from
those (``analyses/sparse_inference/NOTES.md``). There scores are weighted by the squared gradient at the input
itself, and the budget is solved for on cost curves measured along the gradient (``curves``). Shares between
these and equal ones are tried on development text as well, and what is chosen is compared at equal bytes, the
vectors that masks read among them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import brentq

from sparsescope.activations.losses import Reference, token_losses
from sparsescope.inference.curves import Curve, cheapest, cost_curves, input_sensitivity
from sparsescope.inference.evaluate import second_half
from sparsescope.inference.install import install
from sparsescope.inference.mask_accounting import mask_facts
from sparsescope.inference.masks import Mask
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.inference.sensitivity import output_sensitivity
from sparsescope.kernels.score_histograms import quantile, shares_below

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.inference.calibrator import Calibrator
    from sparsescope.inference.groups import InputGroup
    from sparsescope.inference.statistics import Inputs

ANCHORS = (0.25, 0.45, 0.65)
SENSITIVITY_TOKENS = 4096
MOST = 0.98
STEPS = (1.35, 1.15)
#: Accepted changes lower the KL by more than this share of it.
WORTH = 0.005
#: Of a mixture: shares at which cost curves are measured, and how far they are drawn to equal ones.
CURVE_SHARES = (*(n / 20 for n in range(1, 20)), MOST)
EVEN = (0.25, 0.5, 1.0)


@dataclass(slots=True)
class Choice:
    """What was chosen on development text at one sparsity.

    Attributes:
        factors: Of the threshold, by role of the input.
        centred: Roles whose dropped inputs fall back to their median.
        kl: On the development text, nats.
        start: The same before anything was chosen.
        passes: How many were run.
        even: Of a mixture: how far shares are drawn to equal ones, 0 to 1.
    """

    factors: dict[str, float]
    centred: tuple[str, ...]
    kl: float = float("nan")
    start: float = float("nan")
    passes: int = 0
    even: float = 0.0

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Choice:
        """Make it again from ``facts``."""
        return cls(**{**facts, "centred": tuple(facts["centred"])})


@dataclass(slots=True)
class Auto:
    """One mask for each input, one budget for all.

    Args:
        bench: The calibrator.
        refine: Whether factors and centres are chosen on the development text.
    """

    bench: Calibrator
    refine: bool = True
    choices: dict[float, Choice] = field(default_factory=dict)
    _scales: dict[str, torch.Tensor] | None = None
    _medians: dict[str, torch.Tensor] = field(default_factory=dict)
    _curves: dict[str, Curve] | None = None
    _dense: Mapping[str, Any] | None = None
    _reference: Reference | None = None

    @property
    def ceiling(self) -> float:
        """Everything."""
        return 1.0

    @property
    def mixed(self) -> bool:
        """Whether some inputs are of experts."""
        return any(group.experts for group in self.bench.groups)

    def masks(self) -> Sequence[Mask]:
        """Each input twice: as it is, and less its median."""
        made = []
        for group in self.bench.groups:
            made.append(self._template(group, centred=False))
            if not group.experts:
                made.append(self._template(group, centred=True))
        return made

    def templates(self, choice: Choice) -> list[Mask]:
        """One mask for each input."""
        return [
            self._template(group, group.role in choice.centred and not group.experts)
            for group in self.bench.groups
        ]

    def _template(self, group: InputGroup, centred: bool) -> Mask:
        centre = self._median(group) if centred else None
        return Mask(group.name, group.parts, 0.0, scale=self.scales[group.name], centre=centre)

    @property
    def scales(self) -> dict[str, torch.Tensor]:
        """Scales c by group, float32 [K], of experts [E, K]."""
        if self._scales is None:
            bench = self.bench
            asked = (bench.subject, bench.groups, bench.text, SENSITIVITY_TOKENS)
            with bench.timed("sensitivity"):
                if self.mixed:
                    squares = input_sensitivity(*asked, progress=bench.progress)
                    self._scales = {name: _like_others(own.sqrt()) for name, own in squares.items()}
                else:
                    h = output_sensitivity(*asked, progress=bench.progress)
                    self._scales = {group.name: self._scale(group, h) for group in bench.groups}
        return self._scales

    def _scale(self, group: InputGroup, h: Mapping[tuple[str, str], torch.Tensor]) -> torch.Tensor:
        total: Any = 0.0
        for role in group.parts:
            weight = self.bench.matrix(self.bench.sites(group, role)[0])
            total = total + weight.square().T @ h[group.name, role].to(weight)
        found: torch.Tensor = total.sqrt().float()
        return found

    def _median(self, group: InputGroup) -> torch.Tensor:
        if group.name not in self._medians:
            sample = self.bench.inputs.sample(group.name)
            assert sample is not None
            self._medians[group.name] = sample.median(dim=0).values
        return self._medians[group.name]

    def place(self, found: Inputs, target: float) -> list[Mask]:
        """The masks of a target: choose on development text at the anchors, then solve for lambda."""
        choice = self.choice(target)
        return self.placed(found.counts, target, choice)

    def placed(self, counts: Mapping[str, Any], target: float, choice: Choice) -> list[Mask]:
        """Solve for lambda on counts, by name of the mask, and set thresholds."""
        masks = self.templates(choice)
        bench = self.bench
        if target <= 0:
            return [replace(mask, threshold=-1.0) for mask in masks]
        if self.mixed:
            shares = self.shares(masks, target, choice)
            return [
                replace(mask, threshold=quantile(counts[mask.counted_as], min(float(share), MOST)))
                for mask, share in zip(masks, shares, strict=True)
            ]
        weights = np.array([bench.weights(mask) for mask in masks], float)
        roots = np.array(
            [
                choice.factors.get(bench.by_name[mask.group].role, 1.0)
                * np.sqrt(bench.by_name[mask.group].outputs())
                for mask in masks
            ]
        )
        own = [counts[mask.counted_as] for mask in masks]
        running = np.stack([np.cumsum(each) for each in own])
        most = np.array([quantile(each, MOST) for each in own])

        def missed(log: float) -> float:
            limits = np.minimum(np.exp(log) * roots, most)
            return float((weights * shares_below(running, limits)).sum() / bench.total_weights - target)

        low, high = -60.0, 20.0
        if missed(high) < 0:
            limits = most
        elif missed(low) >= 0:  # zeros alone are more than was asked for, and cost nothing
            limits = np.zeros(len(masks))
        else:
            limits = np.minimum(np.exp(brentq(missed, low, high, xtol=1e-6)) * roots, most)
        return [replace(mask, threshold=float(t)) for mask, t in zip(masks, limits, strict=True)]

    def shares(self, masks: Sequence[Mask], target: float, choice: Choice) -> NDArray[np.float64]:
        """Dropped share of each mask of a mixture, [J]: where their curves are as steep."""
        bench = self.bench
        weights = np.array([bench.weights(mask) for mask in masks], float)
        # The slope of a curve goes with the square of the score at the threshold
        factors = np.array([choice.factors.get(bench.by_name[m.group].role, 1.0) ** 2 for m in masks])
        own = [self.curves[mask.counted_as] for mask in masks]
        found = cheapest(own, weights, target, bench.total_weights, factors)
        return (1 - choice.even) * found + choice.even * target

    @property
    def curves(self) -> dict[str, Curve]:
        """What masks cost alone, by the name of their counts; of a mixture."""
        if self._curves is None:
            bench, counts = self.bench, self.counts
            masks = {mask.counted_as: mask for mask in self.masks()}
            edges = {
                name: np.array([quantile(counts[name], share) for share in CURVE_SHARES]) for name in masks
            }
            asked = (bench.subject, bench.groups, masks, edges, bench.text, SENSITIVITY_TOKENS)
            with bench.timed("sensitivity"):
                costs = cost_curves(*asked, progress=bench.progress)
            self._curves = {}
            for name, mask in masks.items():
                running = np.cumsum(counts[name])[None].repeat(len(CURVE_SHARES), 0)
                below = shares_below(running, edges[name])
                self._curves[name] = Curve.of(below, costs[name], bench.weights(mask), MOST)
        return self._curves

    def choice(self, target: float) -> Choice:
        """What was chosen for a target, between the anchors around it."""
        if not self.refine:
            return Choice({}, ())
        below, above = self.anchors(target)
        for anchor in (below, above):
            if anchor not in self.choices:
                self.choices[anchor] = self.choose(anchor)
        first, second = self.choices[below], self.choices[above]
        part = 0.0 if above == below else (target - below) / (above - below)
        factors = {
            role: float(
                np.exp((1 - part) * np.log(first.factors[role]) + part * np.log(second.factors[role]))
            )
            for role in first.factors
        }
        nearest = first if part < 0.5 else second
        even = (1 - part) * first.even + part * second.even
        return Choice(factors, nearest.centred, nearest.kl, nearest.start, even=even)

    def anchors(self, target: float) -> tuple[float, float]:
        """The sparsities at which something is chosen for a target: the next one below and above."""
        below = max((a for a in ANCHORS if a <= target), default=ANCHORS[0])
        above = min((a for a in ANCHORS if a >= target), default=ANCHORS[-1])
        return below, above

    def choose(self, target: float) -> Choice:
        """Choose centres and factors by KL on the development text, one kind of input after the other."""
        begun = time.perf_counter()
        roles = tuple(dict.fromkeys(group.role for group in self.bench.groups))
        now = Choice(dict.fromkeys(roles, 1.0), ())
        now.kl = now.start = self._kl(target, now)
        passes = 1

        def attempt(factors: dict[str, float], centred: tuple[str, ...], even: float) -> bool:
            nonlocal now, passes
            passes += 1
            tried = Choice(factors, centred, start=now.start, even=even)
            tried.kl = self._kl(target, tried)
            if tried.kl < now.kl * (1 - WORTH):
                now = tried
                return True
            return False

        for role in roles:
            if "experts" not in role:
                attempt(now.factors, (*now.centred, role), now.even)
        for even in EVEN if self.mixed else ():
            attempt(now.factors, now.centred, even)
        for step in STEPS:
            for role in roles:
                for factor in (step, 1 / step):
                    if attempt({**now.factors, role: now.factors[role] * factor}, now.centred, now.even):
                        break
        now.passes = passes
        seconds = self.bench.seconds
        seconds["choice on development text"] = (
            seconds.get("choice on development text", 0.0) + time.perf_counter() - begun
        )
        return now

    def _kl(self, target: float, choice: Choice) -> float:
        bench = self.bench
        text = bench.development or bench.text
        if self._reference is None:
            self._reference = Reference()
            token_losses(bench.subject, text, record=self._reference, scored=second_half)
        if self.mixed:  # of narrow experts vectors are a part of the bytes that a centre has to earn
            vectors = sum(mask_facts(bench, mask)["vectors"] for mask in self.templates(choice))
            target = min(target + vectors / bench.total_weights, MOST)
        masks = self.placed(self.counts, target, choice)
        sparse = install(bench.subject, masks, PrefixPolicy("all_sparse"))
        bench.progress("choice on development text", 0, 0)
        kl = token_losses(sparse, text, reference=self._reference, scored=second_half).kl
        assert kl is not None
        return float(kl.mean())

    @property
    def counts(self) -> Mapping[str, Any]:
        """Counts of the scores in the dense model."""
        if self._dense is None:
            masks = {mask.counted_as: mask for mask in self.masks()}
            self._dense = self.bench.count(self.bench.subject, masks, "calibration: scores").counts
        return self._dense


def _like_others(scales: torch.Tensor) -> torch.Tensor:
    """Scales of experts [E, K]; one that no token reached has no gradient, and is judged like the others of
    its layer.
    """
    silent = scales.amax(-1) == 0
    if scales.ndim == 2 and bool(silent.any()) and not bool(silent.all()):
        scales[silent] = scales[~silent].mean(0)
    return scales


def auto(bench: Calibrator, allocation: str) -> Auto:
    """Make it for a subject; one without a loss of the next token has no sensitivity."""
    return Auto(bench)

"""What it costs to drop inputs, measured along the gradient, and the cheapest way to drop a number of bytes.

Dropping the channels D of an input x moves the loss of labels that the model draws by sum_{i in D} g_i x_i,
with g the gradient at the input, and costs E[(sum_{i in D} g_i x_i)^2] / 2 nats of KL to second order.
``cost_curves`` measures this mean for a growing D: the scores up to each of some thresholds. The diagonal
that ``sensitivity`` gives leaves out that errors of different outputs and channels move the loss together;
how much that is differs from input to input. Errors at different tokens are taken to be independent, and so
are those of different inputs.

``cheapest`` solves min sum_j C_j(s_j) with sum_j b_j s_j = S for such curves: at the optimum one more byte
costs the same everywhere, unless an input is at an end.

Shapes: x [n, K]; edges [M], rising; J inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import brentq, isotonic_regression

from sparsescope.inference.gradients import GradientPasses, Traced
from sparsescope.inference.groups import InputGroup
from sparsescope.inference.masks import Mask
from sparsescope.inference.statistics import Tell, quiet
from sparsescope.models.structure.sites import argument, with_argument

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject

    Floats = NDArray[np.float64]

#: Number of the expert (-1 without), inputs [n, K], gradients there [n, K], tokens of the pass int64 [n].
Piece = tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]
LEAST = 1e-30  # nats a weight: below it a slope counts as none


def input_sensitivity(
    subject: Subject,
    groups: Sequence[InputGroup],
    text: TokenizedCorpus,
    tokens: int,
    seed: int = 0,
    progress: Tell = quiet,
) -> dict[str, torch.Tensor]:
    """Measure E[g_i^2], the mean squared gradient at every channel through the matrices that read it.

    Args:
        subject: A causal model with its output head.
        groups: The inputs that are measured.
        text: Calibration text.
        tokens: How many of its tokens are read.
        seed: Draws the labels.
        progress: Told ``(phase, done, total)``.

    Returns:
        By name of the group, float32 [K], of experts [E, K]; an expert that no token reached has zeros.

    Raises:
        SubjectError: The subject has no loss of the next token.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, torch.Tensor] = {}

    def take(group: InputGroup, pieces: Sequence[Piece], size: int, counted: int) -> None:
        for expert, x, gradient, _ in pieces:
            if group.name not in sums:
                parts = max(group.experts, 1)
                sums[group.name] = torch.zeros(parts, group.width, dtype=torch.float64, device=x.device)
                counts[group.name] = torch.zeros(parts, dtype=torch.float64, device=x.device)
            sums[group.name][max(expert, 0)] += gradient.float().square().sum(0, dtype=torch.float64)
            counts[group.name][max(expert, 0)] += len(x)

    _Inputs(subject, groups, take).run(text, tokens, seed, progress)
    found = {name: (total / counts[name].clamp(min=1)[:, None]).float() for name, total in sums.items()}
    return {group.name: found[group.name] if group.experts else found[group.name][0] for group in groups}


def cost_curves(
    subject: Subject,
    groups: Sequence[InputGroup],
    masks: Mapping[str, Mask],
    edges: Mapping[str, Floats],
    text: TokenizedCorpus,
    tokens: int,
    seed: int = 0,
    progress: Tell = quiet,
) -> dict[str, Floats]:
    """Measure what masks cost alone, to second order, at growing thresholds.

    Args:
        subject: A causal model with its output head.
        groups: The inputs that the masks are for.
        masks: Their scores, by any name.
        edges: Thresholds by the same name, [M], rising.
        text: Calibration text.
        tokens: How many of its tokens are read.
        seed: Draws the labels.
        progress: Told ``(phase, done, total)``.

    Returns:
        Nats of KL a token by name, float64 [M]. Of a mixture a token pays for all of its experts together.

    Raises:
        SubjectError: The subject has no loss of the next token.
    """
    by_group: dict[str, list[str]] = {}
    for name, mask in masks.items():
        by_group.setdefault(mask.group, []).append(name)
    sums = {name: np.zeros(len(edges[name])) for name in masks}
    read = dict.fromkeys(masks, 0)

    def take(group: InputGroup, pieces: Sequence[Piece], size: int, counted: int) -> None:
        for name in by_group.get(group.name, ()):
            read[name] += counted
            if not pieces:
                continue
            mask, device = masks[name], pieces[0][1].device
            limits = torch.from_numpy(edges[name]).float().to(device)
            moved = torch.zeros(size, len(limits) + 1, dtype=torch.float64, device=device)
            for expert, x, gradient, rows in pieces:
                values = x.float() if mask.centre is None else x.float() - mask.centre.to(device).float()
                scores = values.abs()
                if mask.scale is not None:
                    scores = scores * (mask.scale if mask.scale.ndim == 1 else mask.scale[expert]).to(device)
                place = torch.bucketize(scores, limits)  # an edge drops all that has its place or one below
                own = torch.zeros(len(x), len(limits) + 1, dtype=torch.float64, device=device)
                moved.index_add_(0, rows, own.scatter_add_(1, place, (values * gradient.float()).double()))
            sums[name] += moved.cumsum(1)[:, :-1].square().sum(0).cpu().numpy() / 2

    _Inputs(subject, groups, take).run(text, tokens, seed, progress)
    return {name: total / max(read[name], 1) for name, total in sums.items()}


class _Inputs(GradientPasses):
    """Inputs and the gradients at them, group by group, after each backward pass.

    Args:
        take: Gets the group, its pieces, how many tokens the pass has and how many of them count.
    """

    def __init__(
        self,
        subject: Subject,
        groups: Sequence[InputGroup],
        take: Callable[[InputGroup, Sequence[Piece], int, int], None],
    ) -> None:
        super().__init__(subject, groups)
        self.give = take
        self.read: dict[str, torch.Tensor] = {}
        self.gradients: dict[str, torch.Tensor] = {}
        self.pieces: dict[str, list[Piece]] = {}

    def attach(self, module: Any, group: InputGroup, path: str) -> Any:
        """Read the input, and the gradient at it that comes through this module alone."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = argument(args, kwargs, 0)
            seen = x.view_as(x)  # a tensor that nothing else reads
            self.read[group.name] = x.detach().reshape(-1, x.shape[-1])

            def add(gradient: torch.Tensor) -> None:
                flat = gradient.reshape(-1, gradient.shape[-1])
                before = self.gradients.get(group.name)
                self.gradients[group.name] = flat if before is None else before + flat

            seen.register_hook(add)
            return with_argument(args, kwargs, 0, seen)

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def take(self, groups: dict[str, InputGroup], traced: Traced) -> None:
        """Keep both inputs of an expert."""
        both = {"in": (traced.inputs, traced.at_inputs), "out": (traced.hidden, traced.at_hidden)}
        for key, group in groups.items():
            x, gradient = both[key]
            self.pieces.setdefault(group.name, []).append((traced.expert, x, gradient, traced.rows))

    def end(self) -> None:
        """Give everything away."""
        rows = self.rows
        assert rows is not None
        for name, gradient in self.gradients.items():
            self.pieces[name] = [(-1, self.read[name][rows], gradient[rows], rows)]
        for group in self.groups:
            self.give(group, self.pieces.get(group.name, ()), len(self.wanted), len(rows))
        self.read, self.gradients, self.pieces = {}, {}, {}


@dataclass(frozen=True, slots=True)
class Curve:
    """What an input costs, as a convex function of its dropped share.

    Attributes:
        shares: Middles between measured shares, [M], rising; then the largest share.
        slopes: Nats a weight there, rising.
    """

    shares: Floats
    slopes: Floats

    @classmethod
    def of(cls, shares: Floats, costs: Floats, weights: float, most: float) -> Curve:
        """Fit a convex curve to measured costs (isotonic regression of the slopes).

        Args:
            shares: Dropped shares, [M], rising; no share costs nothing.
            costs: Nats.
            weights: Weights that the whole input costs to read.
            most: Largest share that may be dropped.
        """
        x, first = np.unique(np.concatenate([[0.0], shares]), return_index=True)
        y = np.concatenate([[0.0], costs])[first]
        keep = x <= most
        x, y = x[keep], y[keep]
        widths = np.diff(x)
        slopes = isotonic_regression(np.diff(y) / widths / weights, weights=widths).x
        slopes = np.maximum(slopes, LEAST)
        # Both ends are reached within a factor e, so that shares are continuous in the slope
        middles = np.concatenate([[0.0], (x[1:] + x[:-1]) / 2, [most]])
        ends = np.concatenate([[slopes[0] / np.e], slopes, [slopes[-1] * np.e]])
        return cls(middles, ends)

    def at(self, slope: float) -> float:
        """The share at which one more weight costs so much."""
        rising = np.log(self.slopes) + 1e-9 * np.arange(len(self.slopes))
        return float(np.interp(np.log(slope), rising, self.shares))


def cheapest(
    curves: Sequence[Curve], weights: Floats, target: float, total: float, factors: Floats | None = None
) -> Floats:
    """The shares that cost least together.

    Args:
        curves: Of each input.
        weights: Weights that each costs to read, [J].
        target: Share of the weights in total that is not to be read.
        total: Weights in total.
        factors: By how much more the last weight of each input may cost, [J]; ones when None.

    Returns:
        Dropped shares, [J]; the largest ones where the target is out of reach.
    """
    allowed = np.ones(len(curves)) if factors is None else factors

    def shares(log: float) -> Floats:
        slope = np.exp(log)
        return np.array([curve.at(slope * factor) for curve, factor in zip(curves, allowed, strict=True)])

    def missed(log: float) -> float:
        return float((weights * shares(log)).sum() / total - target)

    low, high = np.log(LEAST) - 10.0, 40.0
    if missed(high) <= 0:
        return shares(high)
    return shares(low if missed(low) >= 0 else brentq(missed, low, high, xtol=1e-9))

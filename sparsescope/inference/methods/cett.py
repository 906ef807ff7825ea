"""CETT (Sparsing Law, arXiv:2411.02335): hidden units are skipped whose sum is a share of the MLP's output.

A unit adds h_i W[:, i] to the output; units with ||h_i W[:, i]|| up to a threshold of the layer are skipped,
and the threshold is the largest for which E ||sum of the skipped|| / ||output|| stays within one error,
equal in all layers. The hidden layer itself is computed, so that the columns of the last matrix are saved
and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq

from sparsescope.errors import SubjectError
from sparsescope.inference.masks import Mask
from sparsescope.kernels.score_histograms import quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.inference.calibrator import Calibrator
    from sparsescope.inference.statistics import Inputs

_GRID = np.concatenate([np.linspace(0, 0.9, 31), [0.93, 0.96, 0.98, 0.99, 0.995, 0.999]])
_TOKENS = 128


@dataclass(slots=True)
class Cett:
    """One threshold for each MLP, at one error."""

    bench: Calibrator
    templates: tuple[Mask, ...]
    _errors: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _shares: dict[float, dict[str, float]] = field(default_factory=dict)

    @property
    def ceiling(self) -> float:
        """The share of the last matrices of the MLPs."""
        return sum(map(self.bench.weights, self.templates)) / self.bench.total_weights

    def masks(self) -> Sequence[Mask]:
        """One for each MLP."""
        return self.templates

    def place(self, found: Inputs, target: float) -> list[Mask]:
        """Find the error at which the target is skipped."""
        if target not in self._shares:
            self._shares[target] = self._solve(target)
        shares = self._shares[target]
        return [
            replace(mask, threshold=quantile(found.counts[mask.name], min(shares[mask.name], 0.999)))
            for mask in self.templates
        ]

    def _solve(self, target: float) -> dict[str, float]:
        aim = target * self.bench.total_weights

        def at(error: float) -> dict[str, float]:
            return {mask.name: self._share(mask, error) for mask in self.templates}

        def missed(error: float) -> float:
            shares = at(error)
            return sum(self.bench.weights(mask) * shares[mask.name] for mask in self.templates) - aim

        if missed(1e-6) >= 0:
            return at(1e-6)
        highest = max(float(self.error_curve(mask)[-1]) for mask in self.templates)
        return at(highest if missed(highest) <= 0 else float(brentq(missed, 1e-6, highest, xtol=1e-6)))

    def _share(self, mask: Mask, error: float) -> float:
        """Largest share of the units of a layer that keeps its error."""
        return float(np.interp(error, self.error_curve(mask), _GRID))

    def error_curve(self, mask: Mask) -> NDArray[np.float64]:
        """CETT at each share of skipped units, mean over sampled tokens; rises from 0."""
        if mask.name not in self._errors:
            self._errors[mask.name] = self._measure(mask)
        return self._errors[mask.name]

    def _measure(self, mask: Mask) -> NDArray[np.float64]:
        group = self.bench.by_name[mask.group]
        sums, tokens = np.zeros(len(_GRID)), 0
        for site in self.bench.sites(group, mask.roles[0]):
            x = self.bench.inputs.sample(mask.group, site.expert)
            if x is None or not len(x):
                continue
            x = x[:: max(1, len(x) // _TOKENS)][:_TOKENS]
            weight = self.bench.matrix(site).float()
            scale = self.bench.norms(group, mask.roles[0])
            scores = x.abs() * (scale if scale.ndim == 1 else scale[site.expert or 0]).float()
            whole = (x @ weight.T).norm(dim=-1).clamp(min=1e-12)
            ordered = scores.flatten().sort().values
            for place, share in enumerate(_GRID):
                limit = (
                    -1.0 if share == 0 else float(ordered[min(int(share * len(ordered)), len(ordered) - 1)])
                )
                dropped = (x * (scores <= limit)) @ weight.T
                sums[place] += float((dropped.norm(dim=-1) / whole).sum())
            tokens += len(x)
        return np.maximum.accumulate(sums / max(tokens, 1)) + np.arange(len(_GRID)) * 1e-12


def cett(bench: Calibrator, allocation: str) -> Cett:
    """Make it for a subject.

    Raises:
        SubjectError: It has no MLP hidden units.
    """
    masks = tuple(
        Mask(group.name, group.parts, 0.0, scale=bench.norms(group, group.parts[0]))
        for group in bench.groups
        if group.role.startswith("mlp") and group.role.endswith(".out")
    )
    if not masks:
        raise SubjectError(
            "CETT skips hidden units of MLPs, and this subject has none",
            where=bench.subject.id,
            allowed="models with an MLP in scope",
            next_step="use teal or wina, which mask the inputs of every matrix",
        )
    return Cett(bench, masks)

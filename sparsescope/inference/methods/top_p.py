"""Top-p (arXiv:2509.00454): of every token the smallest set of inputs that holds a share p of its L1 norm.

One p for all inputs; p is chosen so that the bytes of the target are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq

from sparsescope.inference.masks import Mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.inference.calibrator import Calibrator
    from sparsescope.inference.statistics import Inputs

_TOKENS = 256


@dataclass(slots=True)
class TopP:
    """One share of the norm for all inputs."""

    bench: Calibrator
    templates: tuple[Mask, ...]
    _sizes: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _correction: float = 0.0

    @property
    def ceiling(self) -> float:
        """Everything but the largest input."""
        return 1.0

    def masks(self) -> Sequence[Mask]:
        """Nothing is counted: sets are no thresholds."""
        return ()

    def place(self, found: Inputs, target: float) -> list[Mask]:
        """Solve for p on the sampled inputs; what was missed under the sparse model is added."""
        if found.kept:
            total = self.bench.total_weights
            realised = sum(
                self.bench.weights(mask) * (1 - found.kept[mask.name][0] / max(found.kept[mask.name][1], 1))
                for mask in self.templates
            )
            self._correction += target - realised / total
        else:
            self._correction = 0.0
        aim = float(np.clip(target + self._correction, 1e-6, 0.999))
        low, high = 1e-6, 1 - 1e-9
        if self._dropped(high) >= aim:  # zeros alone are more than was asked for: every other input stays
            share = 1.0
        elif self._dropped(low) <= aim:
            share = low
        else:
            share = float(brentq(lambda p: self._dropped(p) - aim, low, high, xtol=1e-5))
        return [replace(mask, threshold=share) for mask in self.templates]

    def _dropped(self, share: float) -> float:
        """Share of the bytes that is skipped at p, on the sample."""
        total = 0.0
        for mask in self.templates:
            if mask.name not in self._sizes:
                self._sizes[mask.name] = self._cumulative(mask)
            running = self._sizes[mask.name]  # [tokens, K], share of the norm that the m largest hold
            kept = (running < share).sum(-1) + 1
            total += self.bench.weights(mask) * (1 - float(kept.mean()) / running.shape[1])
        return total / self.bench.total_weights

    def _cumulative(self, mask: Mask) -> NDArray[np.float64]:
        group = self.bench.by_name[mask.group]
        parts = [self.bench.inputs.sample(mask.group, e) for e in (range(group.experts) or [None])]
        values = np.concatenate([part.abs().numpy() for part in parts if part is not None])
        chosen = values[np.linspace(0, len(values) - 1, min(_TOKENS, len(values))).astype(int)]
        running = np.sort(chosen, axis=-1)[:, ::-1].astype(np.float64).cumsum(-1)
        return running / np.maximum(running[:, -1:], 1e-30)


def top_p(bench: Calibrator, allocation: str) -> TopP:
    """Make it for a subject."""
    return TopP(bench, tuple(Mask(group.name, group.parts, 0.5, kind="top_p") for group in bench.groups))

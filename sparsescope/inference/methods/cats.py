"""CATS (arXiv:2404.08763): hidden units whose activated gate is small are skipped.

The gate is computed for every unit; then the rows of the second branch and the columns of the last matrix are
read for the units that are left. So at most these two matrices are saved. |act(gate)| is compared, its sign
does not matter (the released code drops every negative one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sparsescope.errors import SubjectError
from sparsescope.inference.masks import Mask
from sparsescope.kernels.score_histograms import quantile

if TYPE_CHECKING:
    from sparsescope.inference.calibrator import Calibrator
    from sparsescope.inference.statistics import Inputs


@dataclass(slots=True)
class Gated:
    """One mask for the hidden units of every gated MLP."""

    bench: Calibrator
    templates: tuple[Mask, ...]

    @property
    def ceiling(self) -> float:
        """The share of the two matrices."""
        return sum(map(self.bench.weights, self.templates)) / self.bench.total_weights

    def masks(self) -> Sequence[Mask]:
        """One for each MLP."""
        return self.templates

    def place(self, found: Inputs, target: float) -> list[Mask]:
        """The same share of units in every layer."""
        share = min(target / self.ceiling, 0.999)
        return [replace(mask, threshold=quantile(found.counts[mask.name], share)) for mask in self.templates]


def cats(bench: Calibrator, allocation: str) -> Gated:
    """Make it for a subject.

    Raises:
        SubjectError: No layer has a gate.
    """
    roles = {role for group in bench.groups for role in group.parts}
    masks = []
    for group in bench.groups:
        home = group.role.removesuffix(".out")
        if not group.role.endswith(".out") or f"{home}.gate.weight" not in roles:
            continue
        masks.append(Mask(group.name, group.parts, 0.0, kind="gate", saves=(f"{home}.in.weight",)))
    if not masks:
        raise SubjectError(
            "CATS goes by the gate of an MLP, and no layer has one",
            where=bench.subject.id,
            allowed="gated MLPs (SwiGLU, GeGLU, ReGLU)",
            next_step="use teal or wina, which go by the inputs of matrices",
        )
    return Gated(bench, tuple(masks))

"""How much the output of every matrix matters: the diagonal of the Fisher information.

h_o = E[(dL / dy_o)^2] over calibration tokens, with L the loss of labels that the model itself draws, summed
over a window: to second order, a change e of the outputs of a matrix costs sum_o h_o e_o^2 / 2 nats of KL, if
outputs change independently of each other. One backward pass for all matrices; the text and one seed decide
it. Of experts the gradient is traced through the expert on the tokens that were routed to it.

Shapes: y [tokens, N]; h [N], of experts [E, N].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sparsescope.inference.gradients import GradientPasses, Traced
from sparsescope.inference.groups import InputGroup
from sparsescope.inference.statistics import Tell, quiet

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject


def output_sensitivity(
    subject: Subject,
    groups: Sequence[InputGroup],
    text: TokenizedCorpus,
    tokens: int,
    seed: int = 0,
    progress: Tell = quiet,
) -> dict[tuple[str, str], torch.Tensor]:
    """Measure h for the matrices of some groups.

    Args:
        subject: A causal model with its output head.
        groups: The inputs whose matrices are measured.
        text: Calibration text.
        tokens: How many of its tokens are read.
        seed: Draws the labels.
        progress: Told ``(phase, done, total)``.

    Returns:
        By name of the group and role of the matrix, float32 [N], of experts [E, N].

    Raises:
        SubjectError: The subject has no loss of the next token.
    """
    measure = _Outputs(subject, groups)
    measure.run(text, tokens, seed, progress)
    return measure.found()


class _Outputs(GradientPasses):
    """Sums of squared gradients by group and role."""

    def __init__(self, subject: Subject, groups: Sequence[InputGroup]) -> None:
        super().__init__(subject, groups)
        self.sums: dict[tuple[str, str], torch.Tensor] = {}
        self.counts: dict[tuple[str, str], Any] = {}

    def found(self) -> dict[tuple[str, str], torch.Tensor]:
        """Means."""
        result = {}
        for key, total in self.sums.items():
            count = self.counts[key]
            if isinstance(count, torch.Tensor):
                count = count.clamp(min=1)[:, None]
            result[key] = (total / count).float()
        return result

    def attach(self, module: Any, group: InputGroup, path: str) -> Any:
        """Read the gradient at the output."""
        sites = [site for site in group.matrices if site.module_path == path]

        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            def add(gradient: torch.Tensor) -> None:
                flat = gradient.reshape(-1, gradient.shape[-1])[self.rows].float()
                squares = flat.square().sum(0, dtype=torch.float64)
                for site in sites:
                    own = squares if site.rows is None else squares[slice(*site.rows)]
                    self._add((group.name, site.role), own, len(flat))

            output.register_hook(add)

        return module.register_forward_hook(hook)

    def _add(self, key: tuple[str, str], squares: torch.Tensor, count: int) -> None:
        self.sums[key] = self.sums[key] + squares if key in self.sums else squares
        self.counts[key] = self.counts.get(key, 0) + count

    def take(self, groups: dict[str, InputGroup], traced: Traced) -> None:
        """Add the squares of an expert."""
        if "in" in groups:
            squares = traced.at_first.float().square().sum(0, dtype=torch.float64)
            for site in (s for s in groups["in"].matrices if s.expert == traced.expert):
                own = squares if site.rows is None else squares[slice(*site.rows)]
                self._expert((groups["in"].name, site.role), own, traced)
        if "out" in groups:
            site = groups["out"].matrices[0]
            squares = traced.at_outputs.float().square().sum(0, dtype=torch.float64)
            self._expert((groups["out"].name, site.role), squares, traced)

    def _expert(self, key: tuple[str, str], squares: torch.Tensor, traced: Traced) -> None:
        if key not in self.sums:
            shape = (traced.experts, len(squares))
            self.sums[key] = torch.zeros(shape, dtype=torch.float64, device=squares.device)
            self.counts[key] = torch.zeros(traced.experts, dtype=torch.float64, device=squares.device)
        self.sums[key][traced.expert] += squares
        self.counts[key][traced.expert] += len(traced.rows)

"""JumpReLU sparse autoencoders (Rajamanoharan et al., arXiv:2407.14435): z_f = pre_f 1[pre_f > theta_f].

Thresholds are trained with straight-through derivatives of bandwidth eps, K(u) = 1[|u| < 1/2]:

    dz_f / dtheta_f = -(theta_f / eps) K((pre_f - theta_f) / eps) d1[pre_f > theta_f] / dtheta_f = -(1 /
    eps) K((pre_f - theta_f) / eps);   dz_f / dpre_f = 1[pre_f > theta_f]

Penalties: ``quadratic``, lambda (L0 / k - 1)^2, which aims at k; ``step``, lambda L0 / k, the paper's;
``tanh``, lambda sum_f tanh(4 z_f ||d_f||) / k, which also moves the scores.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from sparsescope.dictionaries.autoencoder import SparseAutoencoder, Step, check_number, check_whole
from sparsescope.dictionaries.entries import Entries, choose
from sparsescope.errors import SpecError
from sparsescope.kernels import sparse_codes as kernels

PENALTIES = ("quadratic", "step", "tanh")
_TANH = 4.0


class _Jump(torch.autograd.Function):
    """z from scores and thresholds of entries."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, thresholds: torch.Tensor, bandwidth: float) -> torch.Tensor:
        open_ = scores > thresholds
        ctx.save_for_backward(scores, thresholds, open_)
        ctx.bandwidth = bandwidth
        return torch.where(open_, scores, 0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        scores, thresholds, open_ = ctx.saved_tensors
        near = ((scores - thresholds) / ctx.bandwidth).abs() < 0.5
        of_thresholds = torch.where(near, -thresholds / ctx.bandwidth * gradient, 0)
        return torch.where(open_, gradient, 0), of_thresholds, None


class _Count(torch.autograd.Function):
    """1[score > threshold] of entries; no gradient reaches the scores, as in the paper."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, thresholds: torch.Tensor, bandwidth: float) -> torch.Tensor:
        ctx.save_for_backward(scores, thresholds)
        ctx.bandwidth = bandwidth
        return (scores > thresholds).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        scores, thresholds = ctx.saved_tensors
        near = ((scores - thresholds) / ctx.bandwidth).abs() < 0.5
        return None, torch.where(near, -gradient / ctx.bandwidth, 0), None


class _OfFeature(torch.autograd.Function):
    """A number of each feature, for each entry; the gradient is summed in the order of rows."""

    @staticmethod
    def forward(ctx: Any, numbers: torch.Tensor, entries: Any) -> torch.Tensor:
        ctx.entries = entries
        return numbers[entries.indices.long()]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        entries = ctx.entries
        return kernels.sums_by_feature(entries.indices, gradient, entries.width), None


class JumpReLUSAE(SparseAutoencoder):
    """Sparse autoencoder with a threshold for each feature.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        k: What the mean L0 aims at, and the unit of the penalties.
        penalty_kind: ``quadratic``, ``step`` or ``tanh``.
        penalty_weight: lambda.
        bandwidth: eps, in units of the scores of rows that are scaled to a mean squared norm of d_in.
        **settings: See ``SparseAutoencoder``.
    """

    architecture = "jumprelu"
    settings = ("k", "penalty_kind", "penalty_weight", "bandwidth")

    def __init__(
        self,
        d_in: int,
        width: int,
        *,
        k: int | None = None,
        penalty_kind: Literal["quadratic", "step", "tanh"] = "quadratic",
        penalty_weight: float = 0.1,
        bandwidth: float = 0.5,
        **settings: Any,
    ) -> None:
        check_whole(self, "width", width, 1)
        if k is not None:
            check_whole(self, "k", k, 1, width)
        check_number(self, penalty_weight=penalty_weight, bandwidth=bandwidth)
        if penalty_kind not in PENALTIES or bandwidth == 0:
            raise SpecError(
                "a setting of the penalty is not possible",
                where="JumpReLUSAE(penalty_kind, bandwidth)",
                allowed=f"{', '.join(PENALTIES)}; a bandwidth above 0",
                got=f"{penalty_kind}; {bandwidth}",
            )
        super().__init__(d_in, width, **settings)
        self.k, self.penalty_kind = min(32, width) if k is None else k, penalty_kind
        self.penalty_weight, self.bandwidth = penalty_weight, bandwidth
        self.threshold = torch.nn.Parameter(torch.full_like(self.encoder_bias, 0.01))
        self._scores: torch.Tensor | None = None  # of the step that is made

    def select(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores strictly above their threshold and 0."""
        return kernels.entries_above(scores, self.threshold.detach().clamp(min=0))

    def allocate(self, rows: torch.Tensor, step: Step) -> Entries:
        """Scores above the threshold, and those below that the bandwidth reaches."""
        low = (self.threshold.detach() - self.bandwidth / 2).clamp(min=0)
        return choose(
            rows,
            self.encoder,
            self.encoder_bias,
            lambda scores: kernels.entries_above(scores, low),
            self.low_precision,
        )

    def activate(self, scores: torch.Tensor, entries: Entries) -> torch.Tensor:
        """Z of the entries."""
        thresholds = self._thresholds(entries)
        found: torch.Tensor = _Jump.apply(scores, thresholds, self.bandwidth)  # type: ignore[no-untyped-call]
        self._scores = scores.detach()
        return found

    def penalty(
        self, values: torch.Tensor, entries: Entries, rows: torch.Tensor, residual: torch.Tensor, step: Step
    ) -> dict[str, torch.Tensor]:
        """What holds L0 down."""
        weight = self.penalty_weight * step.warmup
        scores, self._scores = self._scores, None
        if self.penalty_kind == "tanh":
            return {"sparsity": weight * torch.tanh(_TANH * values).sum() / (len(rows) * self.k)}
        open_: torch.Tensor = _Count.apply(  # type: ignore[no-untyped-call]
            scores, self._thresholds(entries), self.bandwidth
        )
        count = open_.sum() / len(rows)
        if self.penalty_kind == "step":
            return {"sparsity": weight * count / self.k}
        return {"sparsity": weight * (count / self.k - 1).square()}

    def _thresholds(self, entries: Entries) -> torch.Tensor:
        found: torch.Tensor = _OfFeature.apply(self.threshold, entries)  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def begin(self, mean: torch.Tensor, mean_out: torch.Tensor, sample: torch.Tensor, centred: bool) -> None:
        """The thresholds begin where ``4 k`` features are active on a row: from there L0 falls to k."""
        super().begin(mean, mean_out, sample, centred)
        rows = self._shifted(sample.to(self.encoder.dtype))
        wanted = min(4 * self.k, self.width)
        entries = choose(
            rows, self.encoder, self.encoder_bias, lambda scores: kernels.top_entries(scores, wanted)
        )
        last = entries.scores.new_full((len(rows),), float("inf"))
        owner = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), entries.offsets.diff())
        last.scatter_reduce_(0, owner, entries.scores, "amin")
        found = last[last.isfinite()]
        if len(found):
            self.threshold.fill_(float(found.median()))

    @torch.no_grad()
    def after_update(self) -> None:
        """Thresholds stay at 0 or above."""
        self.threshold.clamp_(min=0)

    @torch.no_grad()
    def rescale(self, scale_in: float, scale_out: float) -> None:
        """See ``SparseAutoencoder.rescale``."""
        super().rescale(scale_in, scale_out)
        self.threshold.mul_(scale_out)
        self.bandwidth *= scale_out

    def _scale_thresholds(self, factor: torch.Tensor | float) -> None:
        self.threshold.mul_(factor)

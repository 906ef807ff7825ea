"""Budgets over a batch: how tokens and features are matched (Ayonrinde, arXiv:2411.02124).

A batch of N rows has a budget of k N matches between rows and features. **Mutual Choice** takes the k N
largest scores of the batch; it is BatchTopK (Bussmann et al., arXiv:2412.06410) under another name.
**Feature Choice** gives feature f exactly m_f rows, those of its largest scores, with m_f from a
Zipf-Mandelbrot law that is fitted to the densities of a first phase of Mutual Choice:

    m_(r) = k N (r + beta)^-alpha / sum_r' (r' + beta)^-alpha,   r the rank of the feature by density

rounded by largest remainder so that the total is exact, and at least 1. Because allocation then makes each
density equal to its quota, ranks stay as they were. ``aux_zipf`` is our reading of the paper, whose text
gives the intent and no formula: features below tau of their expected density explain the residual.

Which rows compete is an accident of the batch, so another rule is exported: a threshold, one for all
features (Mutual Choice) or one for each (Feature Choice), set on rows of its own (``thresholds.py``). That
is a JumpReLU autoencoder.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch

from sparsescope.dictionaries.autoencoder import Loss, Step, check_number
from sparsescope.dictionaries.entries import Entries, choose
from sparsescope.dictionaries.jumprelu import JumpReLUSAE
from sparsescope.dictionaries.topk import WithAuxK
from sparsescope.errors import SpecError
from sparsescope.kernels import sparse_codes as kernels

LOWER = 0.8  # of the last threshold: what is below cannot be among the largest, unless too little is above
DENSITY_RATE = 0.01  # of the moving average of densities
_COUNTED = 10**6  # rows that a density is counted of for the fit: rarer than 1e-5 is tail
FEATURES = 256  # whose scores on all rows are held at a time


class BatchTopKSAE(WithAuxK):
    """Sparse autoencoder whose batches keep the ``k`` N largest scores.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        k: Mean number of active features of a row.
        **settings: See ``WithAuxK``.

    Attributes:
        threshold: [] or [width], scores above it are active in the rule that is exported; NaN until it is
            set.
    """

    architecture = "batch_topk"

    def __init__(self, d_in: int, width: int, *, k: int = 32, **settings: Any) -> None:
        super().__init__(d_in, width, k=k, **settings)
        self.threshold: torch.Tensor
        self.register_buffer("threshold", torch.full(self._threshold_shape(), torch.nan))
        self._low = 0.0

    def _threshold_shape(self) -> tuple[int, ...]:
        return ()

    def allocate(self, rows: torch.Tensor, step: Step) -> Entries:
        """The ``k`` N largest positive scores of the batch; among equal ones the first."""
        budget = self.k * len(rows)
        found = self._above(rows, self._low)
        if self._low > 0 and len(found.scores) < budget:
            found = self._above(rows, 0.0)
        if len(found.scores) <= budget:
            self._low = 0.0
            return found
        least = _nth_largest(found.scores, budget)
        kept = found.scores > least
        ties = (found.scores == least).nonzero().flatten()[: budget - int(kept.sum())]
        kept[ties] = True
        self._low = LOWER * float(least)
        return found.where(kept)

    def _above(self, rows: torch.Tensor, low: float) -> Entries:
        bound = torch.tensor(low, device=rows.device)
        return choose(
            rows,
            self.encoder,
            self.encoder_bias,
            lambda scores: kernels.entries_above(scores, bound),
            self.low_precision,
        )

    def select(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores above the threshold."""
        return kernels.entries_above(scores, self._set_threshold().clamp(min=0))

    def _set_threshold(self) -> torch.Tensor:
        if bool(self.threshold.isnan().any()):
            raise SpecError(
                "the threshold of this dictionary is not set: its rule of training looks at a whole batch",
                where=f"{type(self).__name__}.encode",
                next_step="call set_thresholds(dictionary, rows); train() ends with it",
            )
        return self.threshold

    def to_inference(self) -> JumpReLUSAE:
        """A JumpReLU autoencoder that encodes the same.

        Raises:
            SpecError: The threshold is not set.
        """
        other = self.copied(JumpReLUSAE, k=self.k)
        assert isinstance(other, JumpReLUSAE)
        with torch.no_grad():
            other.threshold.copy_(self._set_threshold().expand(self.width))
        other.metadata = {**self.metadata, "trained_as": self.architecture}
        return other

    @torch.no_grad()
    def rescale(self, scale_in: float, scale_out: float) -> None:
        """See ``SparseAutoencoder.rescale``."""
        super().rescale(scale_in, scale_out)
        self.threshold.mul_(scale_out)

    def _scale_thresholds(self, factor: torch.Tensor | float) -> None:
        if self.threshold.dim() == 0 and isinstance(factor, torch.Tensor):
            self.threshold = self.threshold.expand(self.width).clone()
        self.threshold.mul_(factor)


#: The paper's name for the same rule.
MutualChoiceSAE = BatchTopKSAE


class FeatureChoiceSAE(BatchTopKSAE):
    """Sparse autoencoder whose features each choose their rows.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        k: Mean number of active features of a row.
        mutual_share: Share of the training that is Mutual Choice, before quotas are fitted; 1 for all of it.
        aux_zipf: tau, the share of its expected density below which a feature explains the residual; 0 for
            features that are dead.
        **settings: See ``WithAuxK``.

    Attributes:
        density: [width], moving average of the share of rows on which a feature is active.
        quota: [width], share of the matches that each feature gets; zeros until it is fitted.
        zipf: [2], alpha and beta of the law.
    """

    architecture = "feature_choice"
    settings = ("k", "aux_k", "aux_weight", "mutual_share", "aux_zipf")

    def __init__(
        self, d_in: int, width: int, *, k: int = 32, mutual_share: float = 0.5, aux_zipf: float = 0.1,
        **settings: Any,
    ) -> None:  # fmt: skip
        check_number(self, mutual_share=mutual_share, aux_zipf=aux_zipf)
        super().__init__(d_in, width, k=k, **settings)
        self.mutual_share, self.aux_zipf = mutual_share, aux_zipf
        self.density: torch.Tensor
        self.quota: torch.Tensor
        self.zipf: torch.Tensor
        self.register_buffer("density", torch.full((width,), k / width))
        self.register_buffer("quota", torch.zeros(width))
        self.register_buffer("zipf", torch.zeros(2))

    def _threshold_shape(self) -> tuple[int, ...]:
        return (self.width,)

    def allocate(self, rows: torch.Tensor, step: Step) -> Entries:
        """Mutual Choice first, then exactly ``quotas(N)`` rows for each feature."""
        if step.progress < self.mutual_share:
            return super().allocate(rows, step)
        if not bool(self.quota.any()):
            self.fit_quota()
        return self.chosen_by_features(rows, self.quotas(len(rows)))

    @torch.no_grad()
    def fit_quota(self) -> None:
        """Fit the law to the densities, and give each feature the share of its rank."""
        from sparsescope.metrics.feature_counts import zipf_mandelbrot

        densities = self.density.double().cpu().numpy()
        law = zipf_mandelbrot(np.round(densities * _COUNTED).astype(np.int64), _COUNTED)
        ranks = np.empty(self.width, np.int64)
        ranks[np.argsort(-densities, kind="stable")] = np.arange(self.width)
        # No law where hardly a feature is active, or all are equally often: equal shares then
        alpha, beta = (law.alpha, law.beta) if np.isfinite(law.alpha) else (0.0, 0.0)
        shares = (ranks + 1 + beta) ** -alpha
        self.quota.copy_(torch.from_numpy(shares / shares.sum()))
        self.zipf.copy_(torch.tensor([alpha, beta]))

    def quotas(self, rows: int) -> torch.Tensor:
        """Rows that each feature gets of a batch, int64 [width]: at least 1, at most all, ``k * rows`` in
        all.
        """
        return torch.from_numpy(whole_quotas(self.quota.double().cpu().numpy(), self.k * rows, rows))

    @torch.no_grad()
    def chosen_by_features(self, rows: torch.Tensor, quotas: torch.Tensor) -> Entries:
        """The entries of each feature's ``quotas`` [width] largest scores; among equal ones the first row."""
        encoder, bias, parts = self.encoder.detach(), self.encoder_bias.detach(), []
        for begin in range(0, self.width, FEATURES):
            end = min(begin + FEATURES, self.width)
            scores = torch.addmm(bias[begin:end, None], encoder[begin:end], rows.T)
            parts.append(kernels.largest_of_rows(scores, quotas[begin:end]))
        numbers, scores = (torch.cat(found) for found in zip(*parts, strict=True))
        starts = torch.zeros(self.width + 1, dtype=torch.int64)
        torch.cumsum(quotas, 0, out=starts[1:])
        # By feature so far; sorting by row gives the codes
        turned = kernels.by_feature(numbers, starts.to(numbers.device), len(rows))
        return Entries(turned.rows, scores[turned.entries], turned.starts, self.width)

    def activate(self, scores: torch.Tensor, entries: Entries) -> torch.Tensor:
        """A feature may be given rows on which its score is negative: they count as 0."""
        return scores.clamp(min=0)

    def unused(self, step: Step) -> torch.Tensor:
        """Dead features, and those far below the density that the law expects of their rank."""
        if not self.aux_zipf:
            return step.dead
        if bool(self.quota.any()):
            expected = self.quota * self.k
        else:  # before there is a law: of an even share
            expected = torch.full_like(self.density, self.k / self.width)
        return step.dead | (self.density < self.aux_zipf * expected)

    def loss(self, rows: torch.Tensor, target: torch.Tensor, step: Step) -> Loss:
        """See ``SparseAutoencoder.loss``; densities are followed."""
        found = super().loss(rows, target, step)
        share = found.codes.rows_per_feature.to(self.density.dtype) / len(rows)
        self.density.lerp_(share, DENSITY_RATE)
        return found

    def with_uniform_quota(self) -> Self:
        """Give every feature the same quota."""
        with torch.no_grad():
            self.quota.fill_(1 / self.width)
        return self


def whole_quotas(shares: np.ndarray, total: int, most: int) -> np.ndarray:
    """Whole numbers in proportion to shares, each 1 to ``most``, that add up to ``total``.

    Args:
        shares: [feature], they add up to 1.
        total: Sum of the result, at least the number of features where that is possible.
        most: Largest number, the rows there are.

    Returns:
        int64 [feature], rounded by largest remainder.
    """
    total = min(total, most * len(shares))
    least = 1 if total >= len(shares) else 0
    scaled = np.clip(shares * total, least, most)
    for _ in range(64):  # what the bounds take or leave is spread over the others in proportion
        free = (scaled > least) & (scaled < most)
        missing = total - scaled.sum()
        if abs(missing) < 1e-9 * total or not free.any():
            break
        scaled[free] *= 1 + missing / scaled[free].sum()
        scaled = np.clip(scaled, least, most)
    whole = np.floor(scaled + 1e-9).astype(np.int64)
    left = int(total - whole.sum())
    order = np.argsort(-(scaled - whole), kind="stable")
    if left < 0:
        order = np.argsort(scaled - whole, kind="stable")
    at = 0
    while left:
        f = order[at % len(order)]
        step = 1 if left > 0 else -1
        if least <= whole[f] + step <= most:
            whole[f] += step
            left -= step
        at += 1
    return whole


def _nth_largest(values: torch.Tensor, n: int) -> torch.Tensor:
    if values.device.type == "cpu":
        found = values.numpy()
        return torch.from_numpy(np.partition(found, len(found) - n)[len(found) - n : len(found) - n + 1])[0]
    return values.kthvalue(len(values) - n + 1).values

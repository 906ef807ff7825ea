"""The two losses of BlockFFN and the schedule of their weight (Song et al. 2025, arXiv:2507.08771).

*Activation locality*: consecutive tokens of a document should use the same experts,
mean of BCE(sigmoid(a A0_t), sigmoid(a A0_{t+1})) with a = 100, gradients to both tokens.
*Chunk sparsification*: few experts should be used by any of L consecutive tokens,
1 - mean over chunks and experts of prod_t (1 - p_te), where p_t = A1_t / sum_e A1_te is a share, no
probability.

Both read the scores A0 and write to no tensor: others go on with them. 1 - p is held above zero and is never
above one, so that the second loss is never negative. A chunk counts where all its tokens are of one document;
chunks begin at the first column.

Shapes: scores [batch, pos, E]; documents int64 [batch, pos], a number for each document, below zero padding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import initialization as init

#: 1 - p is at least this.
LEAST_REST = 1e-5


def activation_locality(
    scores: torch.Tensor, documents: torch.Tensor | None = None, sharpness: float = 100.0
) -> torch.Tensor:
    """How much the experts of consecutive tokens differ, a scalar; 0 where there is no pair of tokens.

    Args:
        scores: A0, [batch, pos, E].
        documents: int64 [batch, pos]; None where each row is one document without padding.
        sharpness: a.
    """
    sharp = sharpness * scores
    before, after = sharp[:, :-1], sharp[:, 1:]
    found = binary_cross_entropy_with_logits(before, after.sigmoid(), reduction="none").mean(-1)
    if documents is None:
        return found.mean() if found.numel() else scores.sum() * 0
    pairs = (documents[:, :-1] == documents[:, 1:]) & (documents[:, 1:] >= 0)
    return torch.where(pairs, found, 0).sum() / pairs.sum().clamp_min(1)


def chunk_sparsification(
    scores: torch.Tensor, chunk: int, documents: torch.Tensor | None = None
) -> torch.Tensor:
    """How many experts a chunk of tokens uses, a scalar in [0, 1]; 0 where there is no whole chunk.

    Args:
        scores: A0, [batch, pos, E].
        chunk: L.
        documents: int64 [batch, pos]; None where each row is one document without padding.
    """
    whole = scores.shape[1] // chunk
    active = scores[:, : whole * chunk].relu()
    total = active.sum(-1, keepdim=True)
    share = active / torch.where(total > 0, total, 1)
    unused = torch.log1p(-share.clamp(max=1 - LEAST_REST)).unflatten(1, (whole, chunk)).sum(2).exp()
    used = 1 - unused.mean(-1)  # [batch, chunk]
    if documents is None:
        return used.mean() if used.numel() else scores.sum() * 0
    owners = documents[:, : whole * chunk].unflatten(1, (whole, chunk))
    counted = (owners == owners[..., :1]).all(-1) & (owners[..., 0] >= 0)
    return torch.where(counted, used, 0).sum() / counted.sum().clamp_min(1)


class AdaptiveFactor(nn.Module):
    """The weight of the chunk loss: steered by that loss, so that it does not come back late in a training.

    It is ``initial`` for ``hold`` steps (begun by a linear warm-up). Then, after every ``period`` steps, if
    the mean loss of these is above that of the period before, the weight is multiplied by their ratio, by
    ``least`` at least, and never gets above ``most`` times the initial one. It moves there on a line, within
    the next period.

    All state is in stored buffers, so that a training goes on exactly.

    Args:
        initial: The weight at the beginning.
        warmup: Steps in which ``ramp`` goes from 1 / ``warmup`` to 1.
        hold: Steps before the first change.
        period: Steps between two changes.
        least: The smallest factor of a change.
        most: The largest weight, in times of the initial one.

    Attributes:
        numbers: float32 [6]: steps so far, until the schedule begins; steps in this period; sum of the
            losses in it; mean loss of the last one, 0 for none; where the line begins; where it ends.
    """

    def __init__(
        self,
        initial: float,
        *,
        warmup: int = 0,
        hold: int = 1000,
        period: int = 100,
        least: float = 1.025,
        most: float = 4.0,
    ) -> None:
        super().__init__()
        self.initial, self.warmup, self.hold, self.period = initial, warmup, hold, period
        self.least, self.most = least, most
        self.numbers: torch.Tensor
        self.register_buffer("numbers", self._beginning())

    def _beginning(self) -> torch.Tensor:
        return torch.tensor([0.0, 0.0, 0.0, 0.0, self.initial, self.initial], dtype=torch.float32)

    def reset(self) -> None:
        """Go back to the beginning, where the state was not loaded."""
        init.copy_(self.numbers, self._beginning())

    @property
    def ramp(self) -> float:
        """Share of the weights of both losses in this step: 1 after the warm-up."""
        return min(1.0, (float(self.numbers[0]) + 1) / self.warmup) if self.warmup else 1.0

    @property
    def value(self) -> float:
        """The weight of this step, without the warm-up."""
        _, done, _, _, begin, end = self.numbers.tolist()
        return float(begin + (end - begin) * done / self.period)

    @torch.no_grad()
    def after_step(self, loss: float) -> None:
        """Count a step and its chunk loss."""
        steps, done, total, before, begin, end = self.numbers.tolist()
        done, total = done + 1, total + loss
        # A number of steps that grew on would not fit into the float16 of checkpoints
        steps = min(steps + 1, float(max(self.hold, self.warmup)))
        if done == self.period:
            mean, begin = total / self.period, end
            if steps >= self.hold and before > 0 and mean > before:
                end = min(end * max(self.least, mean / before), self.most * self.initial)
            done, total, before = 0.0, 0.0, mean
        self.numbers.copy_(torch.tensor([steps, done, total, before, begin, end]))

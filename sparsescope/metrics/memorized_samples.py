"""From which checkpoint on a training sample is memorized (Li, Fan & Zhou 2025, arXiv 2506.21551).

t* = the first checkpoint from which the loss stays at most eps and within delta of its last value. It looks
at the end of training, so it cannot be known at the time. eps is chosen so that a share of the samples is
memorized before the last checkpoint: groups of two domains, each with its own eps, do not compare.

Shapes: losses [S, C], mean token loss of S samples at C checkpoints in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

DELTA, SHARE = 0.05, 0.225  # the paper tunes eps to 20-25 %


def memorized_from(losses: Array, eps: float, delta: float = DELTA) -> NDArray[np.int64]:
    """Checkpoint from which each sample is memorized.

    Args:
        losses: [S, C], in nats.
        eps: Largest loss of a memorized sample.
        delta: Largest distance from the loss at the last checkpoint.

    Returns:
        int [S], an index of a checkpoint; -1 where even the last loss is above eps.

    Example:
        >>> memorized_from(np.array([[3.0, 1.0, 1.0], [3.0, 2.0, 1.0], [3.0, 3.0, 3.0]]), eps=1.5).tolist()
        [1, 2, -1]
    """
    holds = (losses <= eps) & (np.abs(losses - losses[:, -1:]) <= delta)
    stays = np.logical_and.accumulate(holds[:, ::-1], axis=1).sum(1)
    return np.where(stays > 0, losses.shape[1] - stays, -1)


def chosen_eps(losses: Array, share: float = SHARE, delta: float = DELTA) -> float:
    """Smallest eps with which a share of the samples is memorized before the last checkpoint.

    Args:
        losses: [S, C].
        share: Share of all samples.
        delta: As of ``memorized_from``.

    Returns:
        eps, the loss of a sample; NaN where too few samples ever settle within delta, or with one checkpoint.

    Example:
        >>> losses = np.array([[3.0, 0.5, 0.5], [3.0, 1.0, 1.0], [3.0, 2.0, 2.0], [3.0, 3.0, 0.5]])
        >>> chosen_eps(losses, share=0.5)  # two of four have settled at 1 or below
        1.0
    """
    if losses.shape[1] < 2 or not len(losses):
        return float("nan")
    # Memorized before the last checkpoint is memorized from the last but one on, at the latest.
    settled = np.abs(losses[:, -2] - losses[:, -1]) <= delta
    needed = np.sort(np.where(settled, losses[:, -2:].max(1), np.inf))
    eps = needed[max(int(np.ceil(share * len(needed) - 1e-9)), 1) - 1]
    return float(eps) if np.isfinite(eps) else float("nan")

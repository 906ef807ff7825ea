"""Pathways that chance gives, at the loads that there are.

Balance alone moves distances between pathways: the more evenly experts are used, the further apart any two
samples are. Null of the margins: each sample draws its experts at the mean profile of its group, as many in
each layer as it had. Null of the layers: samples are exchanged in each layer on its own, which keeps all
layers and takes away what links them. An observed mean distance is compared with that of draws by
``null_comparison.against_null``; ``reduction`` is the share by which it is smaller.

Shapes: S samples, L layers, E experts; sets int [S, L, most], -1 where a set has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

T = TypeVar("T", bound=np.generic)


def draw_margins(
    profile: Array, sizes: NDArray[np.integer], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Ordered sets drawn without replacement, with the probabilities of a profile.

    Args:
        profile: [L, E], mean profile of the group, or [S, L, E].
        sizes: int [S, L], experts to draw, see ``set_sizes``.
        generator: Random numbers.

    Returns:
        int [S, L, most], in the order in which they are drawn.

    Raises:
        SpecError: If more experts are to be drawn than have a probability.

    Example:
        >>> sets = draw_margins(np.array([[0.7, 0.3, 0.0]]), np.array([[2], [1]]), np.random.default_rng(0))
        >>> sets.shape, sorted(sets[0, 0].tolist()), int(sets[1, 0, 1])  # never the third expert
        ((2, 1, 2), [0, 1], -1)
    """
    possible = (np.asarray(profile) > 0).sum(-1)
    if (sizes > possible).any():
        raise SpecError(
            "more experts are to be drawn than have a probability",
            where="draw_margins",
            allowed=f"sizes of at most {int(possible.min())}",
            got=int(sizes.max()),
            next_step="take profile and sizes of the same group of samples",
        )
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(profile, np.float64))
    # The largest of logits with Gumbel noise are draws without replacement, in order (Vieira 2014).
    noisy = logits + generator.gumbel(size=(*sizes.shape, logits.shape[-1]))
    order = np.argsort(-noisy, axis=-1)
    kept = np.where(np.arange(order.shape[-1]) < sizes[..., None], order, -1)
    return kept[..., : int(sizes.max(initial=0))]


def set_sizes(sets: NDArray[np.integer]) -> NDArray[np.int64]:
    """Experts in each set: int [...] from [..., most].

    Example:
        >>> set_sizes(np.array([[3, 1, -1], [-1, -1, -1]])).tolist()
        [2, 0]
    """
    return (sets >= 0).sum(-1)


def shuffle_layers(values: NDArray[T], generator: np.random.Generator) -> NDArray[T]:
    """Exchange samples in each layer on its own.

    Args:
        values: [S, L, ...], sets or profiles.
        generator: Random numbers.

    Returns:
        The same shape: each layer holds the same entries.

    Example:
        >>> paths = np.array([[[0], [0]], [[1], [1]], [[2], [2]]])
        >>> np.sort(shuffle_layers(paths, np.random.default_rng(0)), axis=0).tolist() == paths.tolist()
        True
    """
    count, layers = values.shape[:2]
    order = generator.permuted(np.tile(np.arange(count), (layers, 1)), axis=1).T  # [S, L]
    return values[order, np.arange(layers)]

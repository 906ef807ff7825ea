"""The rule that is exported, set on rows of its own.

A rule that looks at a batch (BatchTopK, Matryoshka, Mutual and Feature Choice) is replaced by thresholds:
one for all features so that k features are active on average, or one for each so that its density on these
rows is its quota. Rules are only comparable at equal L0, so thresholds can also be moved, on the same rows,
until a JumpReLU autoencoder reaches an L0 that is given. Set thresholds on documents that no score is
computed from.

Shapes: rows [row, d_in].
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch

from sparsescope.dictionaries.autoencoder import SparseAutoencoder
from sparsescope.dictionaries.choice import BatchTopKSAE, FeatureChoiceSAE, whole_quotas
from sparsescope.dictionaries.entries import Entries, choose
from sparsescope.dictionaries.jumprelu import JumpReLUSAE
from sparsescope.errors import SpecError
from sparsescope.kernels import sparse_codes as kernels

ROOM = 4  # times the wanted matches are held while a threshold is searched


@torch.no_grad()
def set_thresholds(
    dictionary: SparseAutoencoder, rows: torch.Tensor | Iterable[torch.Tensor], l0: float | None = None
) -> SparseAutoencoder:
    """Set the thresholds of a dictionary, in place.

    Args:
        dictionary: One whose rule has thresholds; others stay as they are.
        rows: [row, d_in], or several of them.
        l0: Mean number of active features that they are set for; None for the ``k`` of a rule that looks at
            a batch, and to leave the thresholds of a JumpReLU autoencoder alone.

    Returns:
        The dictionary.

    Raises:
        SpecError: There are no rows, ``l0`` is not possible, or activations are not finite.
    """
    if l0 is not None and not 0 < l0 <= dictionary.width:
        raise SpecError(
            "this number of active features is not possible",
            where="set_thresholds(l0)",
            allowed=f"above 0, at most {dictionary.width}",
            got=l0,
        )
    batches = [rows] if isinstance(rows, torch.Tensor) else list(rows)
    shifted = [dictionary._shifted(dictionary._normalized(dictionary._rows(batch))[0]) for batch in batches]
    count = sum(len(batch) for batch in shifted)
    if isinstance(dictionary, BatchTopKSAE):
        if not count:
            raise SpecError("thresholds cannot be set without rows", where="set_thresholds(rows)")
        wanted = dictionary.k if l0 is None else l0
        if isinstance(dictionary, FeatureChoiceSAE) and bool(dictionary.quota.any()):
            dictionary.threshold.copy_(_by_feature(dictionary, shifted, round(wanted * count), count))
        else:
            dictionary.threshold.fill_(_for_all(dictionary, shifted, round(wanted * count)))
    elif isinstance(dictionary, JumpReLUSAE) and l0 is not None and count:
        dictionary.threshold.mul_(_factor(dictionary, shifted, round(l0 * count)))
    return dictionary


def _for_all(dictionary: SparseAutoencoder, batches: list[torch.Tensor], wanted: int) -> float:
    """Between the ``wanted``-th largest positive score of all rows and the next one."""
    held = torch.empty(0)
    low = 0.0
    for batch in batches:
        bound = torch.tensor(low, device=batch.device)
        found = choose(
            batch,
            dictionary.encoder,
            dictionary.encoder_bias,
            partial(kernels.entries_above, thresholds=bound),
        )
        held = torch.cat([held, found.scores.float().cpu()])
        if len(held) > ROOM * wanted:  # what is below the wanted ones cannot come back
            held = torch.from_numpy(np.partition(held.numpy(), len(held) - wanted - 1)[-wanted - 1 :].copy())
            low = float(held[0])
            low = float(np.nextafter(np.float32(low), np.float32(0)))
    return _between(held.numpy(), wanted)


def _between(scores: np.ndarray, wanted: int) -> float:
    """A number that ``wanted`` of the scores are above, as far as ties let it."""
    if wanted >= len(scores):
        return 0.0
    if wanted <= 0:
        return float(np.nextafter(scores.max(), np.float32(np.inf))) if len(scores) else 0.0
    parts = np.partition(scores, [len(scores) - wanted - 1, len(scores) - wanted])
    below, least = parts[len(scores) - wanted - 1], parts[len(scores) - wanted]
    middle = np.float32((float(below) + float(least)) / 2)
    return float(min(middle, np.nextafter(least, np.float32(-np.inf)))) if least > below else float(below)


def _by_feature(
    dictionary: FeatureChoiceSAE, batches: list[torch.Tensor], total: int, rows: int
) -> torch.Tensor:
    """For each feature, a number that its quota of the rows is above."""
    quotas = whole_quotas(dictionary.quota.double().cpu().numpy(), total, rows)
    found = torch.zeros(dictionary.width)
    part = max(16, 2**26 // max(1, rows))  # features whose scores on all rows are held
    for begin in range(0, dictionary.width, part):
        end = min(begin + part, dictionary.width)
        encoder, bias = dictionary.encoder[begin:end], dictionary.encoder_bias[begin:end, None]
        scores = torch.cat([torch.addmm(bias, encoder, batch.T) for batch in batches], dim=1).float().cpu()
        for f in range(begin, end):
            found[f] = max(_between(scores[f - begin].numpy(), int(quotas[f])), 0.0)
    return found


def _factor(dictionary: JumpReLUSAE, batches: list[torch.Tensor], wanted: int) -> float:
    """What all thresholds are multiplied with so that ``wanted`` entries are above them."""
    ratios: list[np.ndarray] = []
    thresholds = dictionary.threshold.clamp(min=1e-30)
    low = thresholds * 0.25
    for batch in batches:
        found: Entries = choose(
            batch, dictionary.encoder, dictionary.encoder_bias,
            lambda scores: kernels.entries_above(scores, low),
        )  # fmt: skip
        ratios.append((found.scores / thresholds[found.indices.long()]).float().cpu().numpy())
    held = np.concatenate(ratios)
    if len(held) <= wanted:
        raise SpecError(
            "the thresholds of this dictionary are too high for that many active features",
            where="set_thresholds(l0)",
            allowed=f"at most {len(held) / max(1, sum(map(len, batches))):.1f}, at a quarter of them",
            got=wanted / max(1, sum(map(len, batches))),
        )
    return _between(held, wanted)

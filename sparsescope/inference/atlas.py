"""How masks of neighbouring tokens hang together: reuse, persistence, unions over chunks, and what each
token reads.

Only tokens of the text after the first of a window count. Two nulls stand beside what is seen: masks drawn
channel by channel from their own frequency (what is left is the likeness of neighbours), and masks of
independent entries. Experts, which see tokens apart, are left out.
Shapes: keep bool [batch, pos, K]; p [K] how often each channel is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.capture import padding_for
from sparsescope.activations.losses import BATCH_TOKENS
from sparsescope.inference.install import reading_of
from sparsescope.inference.masks import Mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject

CHUNKS = (2, 4, 8, 16)


@dataclass(slots=True)
class MaskStatistics:
    """Of one mask, sums over tokens.

    Attributes:
        width: Inputs.
        tokens: Tokens counted.
        channels: int64 [K], tokens that kept each channel.
        squares: Sum over tokens of the squared share kept.
        pairs: Neighbouring tokens: inputs that both keep, and inputs that the first keeps.
        unions: By chunk length, inputs that any token of a chunk keeps, and inputs there.
    """

    width: int
    tokens: int = 0
    channels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    squares: float = 0.0
    pairs: tuple[int, int] = (0, 0)
    unions: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, keep: torch.Tensor, counted: torch.Tensor) -> None:
        """Count the masks of one window.

        Args:
            keep: bool [pos, K].
            counted: bool [pos].
        """
        own = keep[counted]
        if not len(own):
            return
        if not len(self.channels):
            self.channels = np.zeros(self.width, np.int64)
        self.tokens += len(own)
        self.channels += own.sum(0).cpu().numpy()
        self.squares += float((own.sum(-1).double() / self.width).square().sum())
        both, first = self.pairs
        self.pairs = (both + int((own[1:] & own[:-1]).sum()), first + int(own[:-1].sum()))
        for chunk in CHUNKS:
            whole = len(own) // chunk
            if not whole:
                continue
            any_kept = own[: whole * chunk].reshape(whole, chunk, -1).any(1)
            seen, there = self.unions.get(chunk, (0, 0))
            self.unions[chunk] = (seen + int(any_kept.sum()), there + any_kept.numel())

    @property
    def frequency(self) -> NDArray[np.float64]:
        """p, [K]."""
        return self.channels / max(self.tokens, 1)

    @property
    def density(self) -> float:
        """Share of the inputs that a token keeps."""
        return float(self.frequency.mean())

    @property
    def spread(self) -> float:
        """Standard deviation of that share between tokens."""
        return float(np.sqrt(max(self.squares / max(self.tokens, 1) - self.density**2, 0.0)))

    @property
    def reuse(self) -> float:
        """P(kept at t + 1 | kept at t)."""
        return self.pairs[0] / self.pairs[1] if self.pairs[1] else float("nan")

    @property
    def reuse_by_chance(self) -> float:
        """Reuse of independent neighbours: sum p^2 / sum p."""
        p = self.frequency
        return float((p**2).sum() / p.sum()) if p.sum() else float("nan")

    def union(self, chunk: int) -> float:
        """Share of the inputs that at least one of ``chunk`` tokens keeps."""
        seen, there = self.unions.get(chunk, (0, 0))
        return seen / there if there else float("nan")

    def union_by_chance(self, chunk: int) -> float:
        """Union of independent tokens: mean of 1 - (1 - p)^L."""
        return float((1 - (1 - self.frequency) ** chunk).mean())


@dataclass(slots=True)
class Atlas:
    """What the masks of a sparse model keep on a text.

    Attributes:
        masks: Statistics by name of the mask.
        documents: int32 [n], document of each token, in order.
        positions: int32 [n], position in its document.
        ids: int64 [n].
        read: float64 [n], share of the block-matrix bytes that it reads.
    """

    masks: dict[str, MaskStatistics]
    documents: NDArray[np.int32]
    positions: NDArray[np.int32]
    ids: NDArray[np.int64]
    read: NDArray[np.float64]


def read_atlas(
    sparse: Subject,
    text: TokenizedCorpus,
    masks: Sequence[Mask],
    weights: Sequence[int],
    widths: Sequence[int],
) -> Atlas:
    """Run a sparse model over a text and look at its masks.

    Args:
        sparse: The model.
        text: What it reads.
        masks: Its masks.
        weights: Weights that each mask can skip for one token.
        widths: Inputs of each mask.
    """
    reading: Any = reading_of(sparse)
    dense = [m for m in masks if ".experts." not in m.group]
    found = {m.name: MaskStatistics(w) for m, w in zip(masks, widths, strict=True) if m in dense}
    total = float(sum(weights))
    shares = {m.name: w / total / k for m, w, k in zip(masks, weights, widths, strict=True)}
    columns: list[tuple[NDArray[Any], ...]] = []
    at: dict[int, int] = {}
    try:
        for batch in text.batches(BATCH_TOKENS, padding_for(sparse, text, BATCH_TOKENS)):
            reading.shares, reading.record = shares, dict.fromkeys(found)
            mask = None if batch.attention_mask.all() else batch.attention_mask
            sparse.forward(batch.input_ids, mask)
            counted = torch.from_numpy(batch.text_mask & (batch.position > 0))
            for name, keep in reading.record.items():
                if keep is not None:
                    for row in range(len(keep)):
                        found[name].add(keep[row], counted[row])
            read = reading.read.reshape(batch.text_mask.shape).cpu().numpy()
            for row in range(len(read)):
                own = batch.text_mask[row]
                document, n = int(batch.document[row]), int(own.sum())
                begin = at.get(document, 0)
                at[document] = begin + n
                columns.append(
                    (
                        np.full(n, document, np.int32),
                        np.arange(begin, begin + n, dtype=np.int32),
                        batch.input_ids[row][own],
                        read[row][own],
                    )
                )
    finally:
        reading.shares = reading.record = reading.read = None
    documents, positions, ids, kept = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Atlas(found, documents, positions, ids, kept)

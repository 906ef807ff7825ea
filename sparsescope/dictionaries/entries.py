"""Encoder and decoder of a sparse autoencoder on the entries of its codes, with gradients.

Which entries there are is chosen without a gradient; their values and what they decode to have the exact
gradients, computed from these entries only (``kernels/sparse_codes.py``).

Shapes: rows [row, d_in]; encoder [feature, d_in]; bias [feature]; decoder [feature, d_out].
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sparsescope.dictionaries.codes import SparseCodes, offsets_of
from sparsescope.kernels import sparse_codes as kernels
from sparsescope.kernels.row_threads import in_row_blocks
from sparsescope.kernels.sparse_codes import ByFeature

#: Called with scores [row, feature]; gives indices, values and the entries of each row.
Select = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
BLOCK_BYTES = 2**24  # of the scores of a block of rows


@dataclass(slots=True)
class Entries:
    """Entries of codes that were chosen, with their scores.

    Attributes:
        indices: int32 [entry], ascending in each row.
        scores: [entry], pre-activations, without a gradient.
        offsets: int64 [row + 1].
        width: Number of features.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    offsets: torch.Tensor
    width: int
    _order: list[ByFeature] = field(default_factory=list)

    @property
    def order(self) -> ByFeature:
        """The entries feature by feature; sorted once."""
        if not self._order:
            self._order.append(kernels.by_feature(self.indices, self.offsets, self.width))
        return self._order[0]

    def where(self, kept: torch.Tensor) -> Entries:
        """Those of the entries for which ``kept`` [entry] is true."""
        before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
        torch.cumsum(kept, 0, out=before[1:])
        return Entries(self.indices[kept], self.scores[kept], before[self.offsets], self.width)

    def codes(self, values: torch.Tensor) -> SparseCodes:
        """Codes with these values [entry]; zeros are left out."""
        values = values.detach()
        kept = values != 0
        if bool(kept.all()):
            return SparseCodes(self.indices, values, self.offsets, self.width)
        part = self.where(kept)
        return SparseCodes(part.indices, values[kept], part.offsets, self.width)


@torch.no_grad()
def scores_of(rows: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Pre-activations of all features, [row, feature]."""
    return torch.addmm(bias, rows, encoder.T)


@torch.no_grad()
def choose(
    rows: torch.Tensor,
    encoder: torch.Tensor,
    bias: torch.Tensor,
    select: Select,
    low_precision: bool = False,
) -> Entries:
    """Score blocks of rows and keep the entries that ``select`` chooses; scores of a block only are held.

    Args:
        rows: [row, d_in], shifted.
        encoder: [feature, d_in].
        bias: [feature].
        select: Chooses entries from the scores of a block.
        low_precision: Score in bfloat16, which processors with matrix units do several times as fast;
            scores of the entries that were chosen are then computed again in the type of the rows.
    """
    encoder, bias = encoder.detach(), bias.detach()
    width = len(encoder)
    on_cpu = rows.device.type == "cpu"
    block = max(16, min(512, BLOCK_BYTES // (4 * width))) * (1 if on_cpu else 8)
    low = (rows.bfloat16(), encoder.bfloat16(), bias.bfloat16()) if low_precision else None
    # One block of scores for each thread: memory that is new in each block costs a fault for every page
    held = threading.local()

    def work(begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.no_grad():  # a setting of each thread
            if not hasattr(held, "scores"):
                held.scores = rows.new_empty(min(block, len(rows)), width)
                held.low = held.scores.bfloat16() if low is not None else None
            scores = held.scores[: end - begin]
            if low is not None:
                torch.addmm(low[2], low[0][begin:end], low[1].T, out=held.low[: end - begin])
                scores.copy_(held.low[: end - begin])
            else:
                torch.addmm(bias, rows[begin:end], encoder.T, out=scores)
            return select(scores)

    if on_cpu:
        parts = in_row_blocks(work, len(rows), block)
    else:
        parts = [work(begin, min(begin + block, len(rows))) for begin in range(0, len(rows), block)]
    if not parts:
        parts = [select(rows.new_zeros(0, width))]
    indices, scores, counts = (torch.cat(found) for found in zip(*parts, strict=True))
    offsets = offsets_of(counts)
    if low is not None:
        scores = kernels.row_products(indices, offsets, rows, encoder) + bias[indices.long()]
    return Entries(indices, scores, offsets, width)


class _Encode(torch.autograd.Function):
    """The scores of chosen entries: w_f . (x_r - shift) + b_f."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        encoder: torch.Tensor,
        bias: torch.Tensor,
        shift: torch.Tensor | None,
        entries: Any,
    ) -> torch.Tensor:
        ctx.save_for_backward(rows, encoder)
        ctx.entries, ctx.shifted = entries, shift is not None
        return entries.scores.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        rows, encoder = ctx.saved_tensors
        entries = ctx.entries
        gradient = gradient.contiguous()
        of_encoder = kernels.feature_sums(entries.order, gradient, rows)
        of_bias = kernels.sums_by_feature(entries.indices, gradient, entries.width)
        # Every entry moves the shift by -w_f: a product with the sums, not with the entries
        of_shift = -(of_bias @ encoder) if ctx.shifted else None
        of_rows = None
        if ctx.needs_input_grad[0]:
            of_rows = kernels.decode(entries.indices, gradient, entries.offsets, encoder)
        return of_rows, of_encoder, of_bias, of_shift, None


class _Decode(torch.autograd.Function):
    """The sum of value times decoder row over the entries of each row."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, decoder: torch.Tensor, entries: Any) -> torch.Tensor:
        ctx.save_for_backward(values, decoder)
        ctx.entries = entries
        return kernels.decode(entries.indices, values.contiguous(), entries.offsets, decoder)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        values, decoder = ctx.saved_tensors
        entries, gradient = ctx.entries, gradient.contiguous()
        of_values = kernels.row_products(entries.indices, entries.offsets, gradient, decoder)
        return of_values, kernels.feature_sums(entries.order, values.contiguous(), gradient), None


def encode_entries(
    rows: torch.Tensor,
    encoder: torch.Tensor,
    bias: torch.Tensor,
    entries: Entries,
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """The scores of chosen entries, with gradients for encoder, bias and shift.

    Args:
        rows: [row, d_in], with the shift subtracted already.
        encoder: [feature, d_in].
        bias: [feature].
        entries: What was chosen from the scores of these rows.
        shift: [d_in], what was subtracted; None where it is not trained.
    """
    found: torch.Tensor = _Encode.apply(rows, encoder, bias, shift, entries)  # type: ignore[no-untyped-call]
    return found


def decode_entries(values: torch.Tensor, decoder: torch.Tensor, entries: Entries) -> torch.Tensor:
    """The sum of the decoder rows of each row's entries, [row, d_out], with gradients for both."""
    found: torch.Tensor = _Decode.apply(values, decoder, entries)  # type: ignore[no-untyped-call]
    return found

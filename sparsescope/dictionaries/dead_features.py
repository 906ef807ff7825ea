"""Auxiliary losses that bring features back: those that are not used explain what the others leave.

AuxK (Gao et al., arXiv:2406.04093, section 2.4): dead features reconstruct the residual. ``aux_zipf`` also
takes features that fire far more rarely than a Zipf law expects (our reading of arXiv:2411.02124, whose text
gives the intent, not the formula).

The residual has no gradient, and the decoder bias is not added. Scores are taken before any rectifier: a
feature that points away from all rows would get no gradient behind one.
"""

from __future__ import annotations

import torch

from sparsescope.dictionaries.entries import choose, decode_entries, encode_entries
from sparsescope.kernels import sparse_codes as kernels

#: Features to choose from, for each that is chosen, up to which dense products take less time than entries.
DENSE = 5


def reviving_loss(
    encoder: torch.Tensor,
    bias: torch.Tensor,
    decoder: torch.Tensor,
    shift: torch.Tensor | None,
    rows: torch.Tensor,
    residual: torch.Tensor,
    unused: torch.Tensor,
    k: int,
) -> torch.Tensor | None:
    """How badly the best ``k`` unused features of each row explain the residual, 1 for not at all.

    Args:
        encoder: [feature, d_in].
        bias: [feature].
        decoder: [feature, d_out].
        shift: What was subtracted from the rows.
        rows: [row, d_in], shifted.
        residual: [row, d_out].
        unused: bool [feature].
        k: Features of each row; with fewer unused ones all are taken, and the loss counts in proportion.

    Returns:
        ||e - e^||^2 / ||e||^2 times min(unused / k, 1), or None where no feature is unused.
    """
    which = unused.nonzero().flatten()
    if not len(which):
        return None
    taken = min(k, len(which))
    encoder, bias, decoder = encoder[which], bias[which], decoder[which]
    if taken * DENSE >= len(which):
        # Most of them in every row: dense algebra is the shorter way
        scores = torch.addmm(bias, rows, encoder.T)
        if shift is not None:  # the rows are shifted already; this is its gradient alone
            scores = scores + ((shift.detach() - shift) @ encoder.T)
        if taken < len(which):
            best = scores.detach().topk(taken, dim=1, sorted=False).indices
            scores = scores * torch.zeros_like(scores).scatter_(1, best, 1.0)
        found = scores @ decoder
    else:
        entries = choose(rows, encoder, bias, lambda scores: _best(scores, taken))
        found = decode_entries(encode_entries(rows, encoder, bias, entries, shift), decoder, entries)
    whole = residual.square().sum()
    if float(whole) == 0:
        return None
    return (residual - found).square().sum() / whole * min(len(which) / k, 1.0)


def _best(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k largest scores of each row, negative ones too."""
    counts = torch.full((len(scores),), k)
    return *kernels.largest_of_rows(scores, counts), counts

"""The operations of a sparse autoencoder on the entries of its codes only.

With k of F features active in a row, a dense decoder and its gradients do F / k times the work that is
needed. Here the rows are decoded from their entries, and the gradient of a feature is the sum over the rows
on which it is active, found by a counting sort. ``numba`` for float32 in host memory, ``torch`` elsewhere;
both are tested against dense algebra. Sums run in the order of rows, so that they do not depend on threads.

Shapes: scores [row, feature]; indices int32 [entry], ascending in a row; offsets int64 [row + 1];
values, coefficients [entry]; decoder, features [feature, d]; rows [row, d].
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from sparsescope.kernels.row_threads import in_row_blocks

ROWS = 512  # of a block
FEATURES = 512  # of a block


@dataclass(frozen=True, slots=True)
class ByFeature:
    """The entries of codes, feature by feature.

    Attributes:
        entries: int64 [entry], numbers of the entries; those of a feature in the order of their rows.
        rows: int32 [entry], their rows.
        starts: int64 [feature + 1], feature f holds ``starts[f]`` to ``starts[f + 1]``.
    """

    entries: torch.Tensor
    rows: torch.Tensor
    starts: torch.Tensor


def compiled(*tensors: torch.Tensor) -> bool:
    """Whether the compiled backend takes these: float32 in host memory."""
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def top_entries(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k largest scores of each row that are positive; among equal ones the lower index.

    Args:
        scores: [row, feature], finite.
        k: At most the number of features.

    Returns:
        indices, values and the entries in each row, int64 [row].
    """
    if compiled(scores):
        rows = len(scores)
        indices = np.empty((rows, k), np.int32)
        counts = np.empty(rows, np.int64)
        _fast().top_rows(_array(scores), k, indices, counts)
        kept = np.arange(k) < counts[:, None]
        chosen = torch.from_numpy(indices[kept])
        number = torch.repeat_interleave(torch.arange(rows), torch.from_numpy(counts))
        return chosen, scores[number, chosen.long()], torch.from_numpy(counts)
    # A stable order: torch's topk may take any of several equal scores
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    values = scores.gather(1, order)
    kept_ = values > 0
    return order[kept_].int(), values[kept_], kept_.sum(1)


def entries_above(
    scores: torch.Tensor, thresholds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The scores above the threshold of their feature.

    Args:
        scores: [row, feature].
        thresholds: [feature], or [] for one of all.

    Returns:
        indices, values and the entries in each row, int64 [row].
    """
    if compiled(scores):
        bounds = thresholds.detach().float().expand(scores.shape[1]).contiguous()
        counts = np.empty(len(scores), np.int64)
        indices, values = _fast().above_rows(_array(scores), bounds.numpy(), counts)
        return torch.from_numpy(indices), torch.from_numpy(values), torch.from_numpy(counts)
    kept = scores > thresholds
    return kept.nonzero(as_tuple=True)[1].int(), scores[kept], kept.sum(1)


def largest_of_rows(scores: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``counts[r]`` largest scores of row r, whatever their sign; among equal ones the lower index.

    Returns:
        int32 indices, ascending in each row, and scores, row after row.
    """
    if compiled(scores):
        starts = np.zeros(len(scores) + 1, np.int64)
        np.cumsum(counts.numpy(), out=starts[1:])
        indices, values = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
        parts = (_array(scores), starts, indices, values)
        in_row_blocks(lambda begin, end: _fast().largest(*parts, begin, end), len(scores), 32)
        return torch.from_numpy(indices), torch.from_numpy(values)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    kept = torch.zeros_like(scores, dtype=torch.bool)
    rank = torch.arange(scores.shape[1], device=scores.device)
    kept.scatter_(1, order, rank < counts.to(scores.device)[:, None])
    return kept.nonzero(as_tuple=True)[1].int(), scores[kept]


def decode(
    indices: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor, decoder: torch.Tensor
) -> torch.Tensor:
    """Sum of the rows of the decoder that each row of the codes names, [row, d]."""
    rows = len(offsets) - 1
    if compiled(values, decoder):
        out = torch.empty(rows, decoder.shape[1])
        parts = (_array(indices), _array(values), _array(offsets), _array(decoder), out.numpy())
        in_row_blocks(lambda begin, end: _fast().decode(*parts, begin, end), rows, ROWS)
        return out
    # embedding_bag is torch's own gather and sum
    return torch.nn.functional.embedding_bag(
        indices.long(), decoder, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def row_products(
    indices: torch.Tensor, offsets: torch.Tensor, rows: torch.Tensor, features: torch.Tensor
) -> torch.Tensor:
    """Scalar product of the row and the feature of every entry, [entry]."""
    if compiled(rows, features):
        out = torch.empty(len(indices))
        parts = (_array(indices), _array(offsets), _array(rows), _array(features), out.numpy())
        in_row_blocks(lambda begin, end: _fast().row_products(*parts, begin, end), len(rows), ROWS)
        return out
    number = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), offsets.diff())
    found = [
        (rows[part] * features[feature.long()]).sum(1)  # in parts: [entry, d] is far larger than the batch
        for part, feature in zip(number.split(2**16), indices.split(2**16), strict=True)
    ]
    return torch.cat(found) if found else rows.new_zeros(0)


def by_feature(indices: torch.Tensor, offsets: torch.Tensor, width: int) -> ByFeature:
    """Sort the entries of codes by feature; in a feature the order of rows stays."""
    if indices.device.type == "cpu":
        entries = np.empty(len(indices), np.int64)
        rows = np.empty(len(indices), np.int32)
        starts = np.zeros(width + 1, np.int64)
        _fast().by_feature(_array(indices), _array(offsets), entries, rows, starts)
        return ByFeature(torch.from_numpy(entries), torch.from_numpy(rows), torch.from_numpy(starts))
    order = indices.long().argsort(stable=True)
    number = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=indices.device), offsets.diff())
    starts_ = torch.zeros(width + 1, dtype=torch.int64, device=indices.device)
    torch.cumsum(torch.bincount(indices.long(), minlength=width), 0, out=starts_[1:])
    return ByFeature(order, number[order].int(), starts_)


def feature_sums(order: ByFeature, coefficients: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Sum over the entries of each feature of coefficient times row, [feature, d]."""
    width = len(order.starts) - 1
    if compiled(coefficients, rows):
        out = torch.empty(width, rows.shape[1])
        parts = (
            order.entries.numpy(), order.rows.numpy(), order.starts.numpy(), _array(coefficients),
            _array(rows), out.numpy(),
        )  # fmt: skip
        in_row_blocks(lambda begin, end: _fast().feature_sums(*parts, begin, end), width, FEATURES)
        return out
    weights = coefficients[order.entries]
    if rows.device.type == "cuda":
        weights = weights.to(rows.dtype)
    return torch.nn.functional.embedding_bag(
        order.rows.long(), rows, order.starts, mode="sum", per_sample_weights=weights,
        include_last_offset=True,
    )  # fmt: skip


def sums_by_feature(indices: torch.Tensor, coefficients: torch.Tensor, width: int) -> torch.Tensor:
    """Sum of the coefficients of each feature, [feature]."""
    return torch.bincount(indices.long(), weights=coefficients, minlength=width).to(coefficients.dtype)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Its memory in the order that the loops are compiled for; another order would be compiled anew."""
    return tensor.contiguous().numpy()


def _fast() -> ModuleType:
    """The compiled loops; numba takes a second to import."""
    from sparsescope.kernels import sparse_codes_compiled

    return sparse_codes_compiled

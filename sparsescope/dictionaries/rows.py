"""Rows to train on: shuffled rows of a store, rows of a running model, or a tensor, with outliers left out.

Position 0 of a window, where attention sinks have norms a hundred times as large, and rows beyond ten median
norms are left out and counted. Before training, a sample of the rows says mean, variance and median norm.

Shapes: rows [row, d].
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import xxhash

from sparsescope.activations.shuffled import RowBatch
from sparsescope.dictionaries.autoencoder import check_whole
from sparsescope.dictionaries.base import check_finite
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.activations.capture import LiveSource

NORM_LIMIT = 10.0  # median norms
SAMPLE_ROWS = 32_768
LEAST_DOCUMENTS = 64


class RowSource(Protocol):
    """Batches of mixed rows: ``ShuffledRows`` of a store, ``LiveRows`` or ``TensorRows``.

    Attributes:
        n_batches: Batches of all epochs.
        n_rows: Rows of one epoch.
        fingerprint: What must be equal for a training to go on.
    """

    n_batches: int
    n_rows: int
    fingerprint: dict[str, Any]

    def batches(self, start: int = 0) -> Iterator[RowBatch]:
        """Yield the batches from number ``start`` on."""
        ...


class TensorRows:
    """Rows that are in memory, in another order in each epoch.

    Args:
        rows: [row, d_in].
        targets: [row, d_out] for a transcoder; None otherwise.
        batch_rows: Rows in a batch.
        epochs: How often every row comes.
        seed: Of the order.
        site: Name for the rows.
        site_out: Name for the targets.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        batch_rows: int = 4096,
        epochs: int = 1,
        seed: int = 0,
        site: str = "",
        site_out: str = "",
    ) -> None:
        if rows.dim() != 2 or not len(rows) or (targets is not None and len(targets) != len(rows)):
            raise SpecError(
                "these rows cannot be trained on",
                where="rows",
                allowed="[row, d], at least one row, as many targets as rows",
                got=f"{list(rows.shape)}" + ("" if targets is None else f", targets {list(targets.shape)}"),
            )
        check_whole(self, "batch_rows", batch_rows, 1)
        check_whole(self, "epochs", epochs, 1)
        self._values = {site: rows} if targets is None else {site: rows, site_out: targets}
        self.n_rows, self.batch_rows, self.epochs, self.seed = len(rows), batch_rows, epochs, seed
        self._per_epoch = -(-self.n_rows // batch_rows)
        self.n_batches = epochs * self._per_epoch
        digests = [
            xxhash.xxh3_128_hexdigest(values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            for values in self._values.values()
        ]
        self.fingerprint: dict[str, Any] = {
            "rows": self.n_rows, "batch_rows": batch_rows, "seed": seed, "digests": digests,
        }  # fmt: skip

    def batches(self, start: int = 0) -> Iterator[RowBatch]:
        """See ``RowSource``."""
        for number in range(start, self.n_batches):
            epoch, place = divmod(number, self._per_epoch)
            if number == start or place == 0:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.n_rows)
            chosen = order[place * self.batch_rows : (place + 1) * self.batch_rows]
            values = {name: found[torch.from_numpy(chosen)] for name, found in self._values.items()}
            # Positions that are not the first: nothing is known of them
            yield RowBatch(
                number, epoch, chosen.astype(np.int32), chosen, np.ones(len(chosen), np.int32), values
            )


class LiveRows:
    """Rows of a running model, mixed in buffers; nothing is stored.

    The stream of the source is cut into buffers of ``buffer_rows``, whose rows are mixed. Going on in the
    middle runs the model again from the beginning of the buffer.

    Args:
        source: From ``capture``.
        batch_rows: Rows in a batch; the last one of a buffer may be smaller.
        buffer_rows: Rows that are mixed with each other and held in memory.
        epochs: How often the text is read; each time in another order within buffers.
        seed: Of the order.
    """

    def __init__(
        self,
        source: LiveSource,
        *,
        batch_rows: int = 4096,
        buffer_rows: int = 2**17,
        epochs: int = 1,
        seed: int = 0,
    ) -> None:
        for name, value in (("batch_rows", batch_rows), ("buffer_rows", buffer_rows), ("epochs", epochs)):
            check_whole(self, name, value, 1)
        if any(site.kind == "experts" for site in source.sites):
            raise SpecError(
                "an expert sees only the tokens that are routed to it, which live rows cannot be mixed from",
                where="LiveRows(source)",
                allowed="dense sites",
                got=", ".join(site.name for site in source.sites if site.kind == "experts")[:120],
                next_step="store its activations, and read them with ShuffledRows",
            )
        self.source, self.batch_rows, self.epochs, self.seed = source, batch_rows, epochs, seed
        lengths = [
            int(tokens.kept_mask.sum())
            for tokens in source.corpus.batches(source.batch_tokens, source.padding_side)
        ]
        self.n_rows = sum(lengths)
        # Buffers hold whole passes of the model: (first pass, number of passes, rows)
        self._buffers: list[tuple[int, int, int]] = []
        first = held = 0
        for number, rows in enumerate(lengths):
            held += rows
            if held >= buffer_rows or number + 1 == len(lengths):
                self._buffers.append((first, number + 1 - first, held))
                first, held = number + 1, 0
        self._batches = [-(-rows // batch_rows) for *_, rows in self._buffers]
        self.n_batches = epochs * sum(self._batches)
        self.fingerprint: dict[str, Any] = {
            "source": source.fingerprint, "batch_rows": batch_rows, "buffer_rows": buffer_rows, "seed": seed,
            "sites": [site.name for site in source.sites],
        }  # fmt: skip

    def batches(self, start: int = 0) -> Iterator[RowBatch]:
        """See ``RowSource``."""
        number = 0
        for epoch in range(self.epochs):
            for place, (first, passes, _) in enumerate(self._buffers):
                if number + self._batches[place] <= start:
                    number += self._batches[place]
                    continue
                held = self._read(first, passes)
                mixed = np.random.default_rng([self.seed, epoch, place]).permutation(len(held.token_ids))
                for begin in range(0, len(mixed), self.batch_rows):
                    if number >= start:
                        rows = mixed[begin : begin + self.batch_rows]
                        values = {name: found[torch.from_numpy(rows)] for name, found in held.values.items()}
                        yield RowBatch(
                            number,
                            epoch,
                            held.documents[rows],
                            held.token_ids[rows],
                            held.positions[rows],
                            values,
                        )
                    number += 1

    def _read(self, first: int, passes: int) -> RowBatch:
        names = [site.name for site in self.source.sites]
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        documents, ids, positions = [], [], []
        stream = self.source.batches(first)
        for batch in islice(stream, passes):
            documents.append(np.full(len(batch.token_ids), batch.document, np.int32))
            ids.append(batch.token_ids)
            positions.append(batch.positions)
            for name in names:
                parts[name].append(batch.values[name].cpu().clone())
        if isinstance(stream, Generator):
            stream.close()  # takes the hooks off
        values = {name: torch.cat(found) for name, found in parts.items()}
        return RowBatch(
            first,
            0,
            np.concatenate(documents),
            np.concatenate(ids),
            np.concatenate(positions).astype(np.int32),
            values,
        )


@dataclass(frozen=True, slots=True)
class RowFacts:
    """What a sample of the rows says of one site.

    Attributes:
        rows: Rows of the sample that are not left out.
        mean: float32 [d].
        variance: Mean squared distance to the mean.
        mean_square: Mean squared norm.
        median_norm: Median norm, position 0 left out.
        gamma: Norm of the mean over norm of the standard deviations (arXiv:2605.31518).
    """

    rows: int
    mean: torch.Tensor
    variance: float
    mean_square: float
    median_norm: float
    gamma: float


def facts_of(values: torch.Tensor, positions: np.ndarray) -> RowFacts:
    """Mean, variance and norms of rows [row, d], outliers left out.

    Raises:
        SpecError: Rows are NaN or infinite, or all are equal.
    """
    check_finite(values, "activations to train on")
    norms = values.float().norm(dim=1)
    inside = torch.from_numpy(positions != 0)
    if not bool(inside.any()):
        inside = torch.ones(len(values), dtype=torch.bool)
    median = float(norms[inside].median())
    kept = values[inside & (norms <= NORM_LIMIT * median)].double()
    mean = kept.mean(0)
    spread = (kept - mean).square().mean(0)
    variance = float(spread.sum())
    if not variance > 0:
        raise SpecError(
            "all rows are equal, so there is nothing to learn from them",
            where="activations to train on",
            got=f"{len(kept)} rows of variance 0",
            next_step="choose another site, or more text",
        )
    gamma = float(mean.norm()) / variance**0.5
    return RowFacts(len(kept), mean.float(), variance, float(kept.square().sum(1).mean()), median, gamma)


def sample_of(source: RowSource, rows: int = SAMPLE_ROWS) -> RowBatch:
    """The first rows of a source, joined; one epoch at most."""
    held: list[RowBatch] = []
    count = 0
    stream = source.batches()
    for batch in stream:
        if batch.epoch:
            break
        held.append(batch)
        count += len(batch.token_ids)
        if count >= rows:
            break
    if isinstance(stream, Generator):
        stream.close()
    return RowBatch(
        0, 0,
        np.concatenate([batch.documents for batch in held]),
        np.concatenate([batch.token_ids for batch in held]),
        np.concatenate([batch.positions for batch in held]),
        {name: torch.cat([batch.values[name] for batch in held]) for name in held[0].values},
    )  # fmt: skip


def kept_rows(batch: RowBatch, sites: dict[str, RowFacts]) -> tuple[dict[str, torch.Tensor], int]:
    """The rows of a batch that are trained on, in float32, and how many were left out.

    Raises:
        SpecError: Rows are NaN or infinite.
    """
    kept = torch.from_numpy(batch.positions != 0)
    values = {name: batch.values[name].float() for name in sites}
    for name, facts in sites.items():
        check_finite(values[name], f"{name or 'activations'}, batch {batch.index}")
        kept &= values[name].norm(dim=1) <= NORM_LIMIT * facts.median_norm
    if bool(kept.all()):
        return values, 0
    return {name: found[kept] for name, found in values.items()}, int((~kept).sum())

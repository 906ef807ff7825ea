"""Rows of a store in random order, for training: several epochs, bounded memory, and a place to go on from.

In every epoch the documents of the store, or its batches, come in another order. Their rows, one after the
other, are cut into buffers of ``buffer_rows``; the rows of a buffer are mixed and leave it in batches of
``batch_rows``.
So one buffer is all that is held, plus the ordering: 32 bytes for each stored batch. The order is a function
of the seed and the epoch, and any batch can be the first: nothing before its buffer is read.

Shapes: values [row, width]; a row is a token, or at an expert site a token that was routed to that expert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from sparsescope.activations.store import ActivationStore, load_shard
from sparsescope.core.spec import canonical_json
from sparsescope.errors import SpecError, unknown_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.models.structure.sites import Site


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows of several documents.

    Attributes:
        index: Number of the batch, running on over epochs.
        epoch: From 0.
        documents: int32 [row], numbers of the documents in the whole corpus.
        token_ids: int64 [row].
        positions: int32 [row], positions in their windows; statistics leave out position 0.
        values: For each site, [row, width].
    """

    index: int
    epoch: int
    documents: NDArray[np.int32]
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int32]
    values: dict[str, torch.Tensor]


class ShuffledRows:
    """Batches of mixed rows of a store.

    Args:
        store: A complete store.
        sites: Names of the sites wanted: several dense ones, whose rows stay together, or one expert
            site. All when None.
        batch_rows: Rows in a batch; the last one of an epoch may be smaller.
        buffer_rows: Rows that are mixed with each other and held in memory, rounded up to whole batches.
        epochs: How often every row comes.
        seed: Of the order.
        shuffle: What is put in another order: whole documents, or the stored batches, of which a buffer holds
            parts of more documents where these are long.
        documents: Numbers of the documents that are read; None for all.

    Attributes:
        sites: The sites.
        n_rows: Rows of one epoch.
        n_batches: Batches of all epochs.
        fingerprint: What must be equal for training that was interrupted to go on.

    Raises:
        SpecError: A number is too small, a site is not stored, the sites do not share their rows,
            or there is no row.
        ArtifactError: A shard cannot be read.
    """

    def __init__(
        self,
        store: ActivationStore,
        sites: Sequence[str] | None = None,
        *,
        batch_rows: int = 4096,
        buffer_rows: int = 2**18,
        epochs: int = 1,
        seed: int = 0,
        shuffle: Literal["documents", "batches"] = "documents",
        documents: Collection[int] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_rows", batch_rows, 1),
            ("buffer_rows", buffer_rows, 1),
            ("epochs", epochs, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise SpecError(
                    "a number is too small",
                    where=f"ShuffledRows({name})",
                    allowed=f"an int >= {least}",
                    got=value,
                )
        self.store, self.sites = store, _chosen(store, sites)
        self.batch_rows, self.epochs, self.seed = batch_rows, epochs, seed
        self._buffer_batches = -(-buffer_rows // batch_rows)
        self._spans, self.shuffle = _spans(store, self.sites[0]), shuffle
        if documents is not None:
            self._spans = self._spans[np.isin(self._spans["document"], list(documents))]
        self.n_rows = int(self._spans["rows"].sum())
        if self.n_rows == 0:
            raise SpecError(
                "no token was routed to this expert, so there is nothing to train on"
                if self.sites[0].kind == "experts"
                else "no stored document was chosen, so there is nothing to train on",
                where=self.sites[0].name,
                got="0 rows",
                next_step="choose another expert, or store activations of more text",
            )
        self._per_epoch = -(-self.n_rows // batch_rows)
        self.n_batches = epochs * self._per_epoch
        self.fingerprint: dict[str, Any] = {
            "store": hashlib.sha256(canonical_json(store.plan).encode()).hexdigest(),
            "sites": [site.name for site in self.sites],
            "batch_rows": batch_rows,
            "buffer_rows": self._buffer_batches * batch_rows,
            "seed": seed,
        }
        if shuffle != "documents":
            self.fingerprint["shuffle"] = shuffle
        if documents is not None:
            self.fingerprint["documents"] = sorted(int(number) for number in documents)

    def __iter__(self) -> Iterator[RowBatch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[RowBatch]:
        """Yield the batches from number ``start`` on; it costs the reading of one buffer to
        begin in the middle.
        """
        for epoch in range(start // self._per_epoch, self.epochs):
            order = self._order(epoch)
            skipped = max(start - epoch * self._per_epoch, 0)
            for first in range(
                skipped - skipped % self._buffer_batches, self._per_epoch, self._buffer_batches
            ):
                buffer = self._read(order, first)
                mixed = np.random.default_rng([self.seed, epoch, 1, first]).permutation(len(buffer.token_ids))
                for number in range(max(first, skipped), min(first + self._buffer_batches, self._per_epoch)):
                    begin = (number - first) * self.batch_rows
                    yield self._batch(buffer, mixed[begin : begin + self.batch_rows], epoch, number)

    def _order(self, epoch: int) -> NDArray[np.void]:
        """The spans of an epoch: documents in random order, the spans of a document in theirs; or all spans
        in random order.
        """
        if self.shuffle == "batches":
            return self._spans[np.random.default_rng([self.seed, epoch, 0]).permutation(len(self._spans))]
        documents, which = np.unique(self._spans["document"], return_inverse=True)
        rank = np.random.default_rng([self.seed, epoch, 0]).permutation(len(documents))
        return self._spans[np.argsort(rank[which], kind="stable")]

    def _read(self, order: NDArray[np.void], first: int) -> RowBatch:
        """Rows of the buffer that begins with batch ``first`` of an epoch, in the order of the
        stream of that epoch.
        """
        begin = first * self.batch_rows
        size = min(self._buffer_batches * self.batch_rows, self.n_rows - begin)
        ends = np.cumsum(order["rows"])
        held = RowBatch(
            first, 0, np.empty(size, np.int32), np.empty(size, np.int64), np.empty(size, np.int32), {}
        )
        wanted = np.flatnonzero((ends > begin) & (ends - order["rows"] < begin + size))
        # Shard by shard, so that each is opened once for a buffer.
        for number in np.unique(order["shard"][wanted]):
            shard = load_shard(self.store.shard_paths[number])
            rows = shard.get(f"rows/{self.sites[0].name}")
            for place in wanted[order["shard"][wanted] == number]:
                span = order[place]
                # Where the span begins in the buffer, maybe before it
                at = int(ends[place] - span["rows"]) - begin
                low, high = max(at, 0), min(at + int(span["rows"]), size)
                source = slice(int(span["row"]) + low - at, int(span["row"]) + high - at)
                tokens: Any = source if rows is None else int(span["token"]) + rows[source].numpy()
                held.documents[low:high] = span["document"]
                held.token_ids[low:high] = shard["token_ids"].numpy()[tokens]
                held.positions[low:high] = shard["positions"].numpy()[tokens]
                for site in self.sites:
                    values = shard[f"values/{site.name}"][source]
                    if site.name not in held.values:
                        held.values[site.name] = torch.empty((size, site.width), dtype=values.dtype)
                    held.values[site.name][low:high] = values
        return held

    def _batch(self, buffer: RowBatch, rows: NDArray[np.int64], epoch: int, number: int) -> RowBatch:
        """Rows of a buffer, copied out of it."""
        values = {name: found[torch.from_numpy(rows)] for name, found in buffer.values.items()}
        index = epoch * self._per_epoch + number
        return RowBatch(
            index, epoch, buffer.documents[rows], buffer.token_ids[rows], buffer.positions[rows], values
        )


def _chosen(store: ActivationStore, names: Sequence[str] | None) -> tuple[Site, ...]:
    """The sites of these names, which must share their rows."""
    stored = {site.name: site for site in store.sites}
    for name in names or ():
        if name not in stored:
            raise unknown_name(
                "stored site", name, stored, next_step="store activations of this site", error=SpecError
            )
    chosen = tuple(stored[name] for name in names) if names else store.sites
    if len(chosen) > 1 and any(site.kind == "experts" for site in chosen):
        raise SpecError(
            "an expert has rows of its own, so that it cannot be mixed together with other sites",
            where="ShuffledRows(sites)",
            allowed="several dense sites, or one expert site",
            got=", ".join(site.name for site in chosen[:4]),
            next_step="make one ShuffledRows for each expert",
        )
    return chosen


_SPAN = np.dtype(
    [("shard", np.int32), ("document", np.int32), ("token", np.int64), ("row", np.int64), ("rows", np.int64)]
)


def _spans(store: ActivationStore, site: Site) -> NDArray[np.void]:
    """Where the rows of each stored batch lie: shard, document, first token, first row and number of rows."""
    found = []
    for number, path in enumerate(store.shard_paths):
        shard = load_shard(path)
        heads, lengths = shard["batches"].numpy(), shard.get(f"lengths/{site.name}")
        rows = heads[:, 3] if lengths is None else lengths.numpy()
        spans = np.zeros(len(heads), _SPAN)
        spans["shard"], spans["document"], spans["rows"] = number, heads[:, 1], rows
        spans["token"], spans["row"] = np.cumsum(heads[:, 3]) - heads[:, 3], np.cumsum(rows) - rows
        found.append(spans)
    return np.concatenate(found)

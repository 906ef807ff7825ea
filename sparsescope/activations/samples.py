"""A sample of tokens that does not depend on batches, order or workers.

Every token has a key: a hash of seed, document and index in the document. The sample is the tokens with the
smallest keys, so samples of two streams merge into the sample of both, and sorting by key puts the tokens
into a random order.
Source: bottom-k sketches (Cohen & Kaplan 2007). Shapes: K tokens kept; a part holds [K, ...]
values of any kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sparsescope.activations.accumulators import DocumentAccumulator
from sparsescope.errors import SubjectError
from sparsescope.metrics.jackknife import mixed

if TYPE_CHECKING:
    import torch

    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.models.structure.sites import Site

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def token_keys(seed: int, document: int, first: int, n: int) -> np.ndarray:
    """Keys of consecutive tokens of a document, uint64 [n].

    Args:
        seed: Changes all keys.
        document: Number of the document in the whole corpus.
        first: Index of the first token in the document.
        n: Number of tokens.
    """
    start = np.uint64(mixed(mixed(seed) ^ document))
    z = start + _GOLDEN * np.arange(first + 1, first + 1 + n, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


class TokenSample:
    """The tokens with the smallest keys, with values of each.

    Args:
        size: Most tokens that are kept.
        parts: For each part, the shape of one token's values and their type.
    """

    def __init__(self, size: int, parts: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        self.size = size
        self.shapes = dict(parts)
        self.keys = np.empty(0, np.uint64)
        self.documents = np.empty(0, np.int64)
        self.parts = {name: np.empty((0, *shape), dtype) for name, (shape, dtype) in self.shapes.items()}

    def __len__(self) -> int:
        return len(self.keys)

    def plan(self, keys: np.ndarray, document: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take tokens in; the caller then writes ``parts[name][slots] = values[rows]`` for every part.

        Args:
            keys: uint64 [n], keys of the tokens that are offered.
            document: Their document, or one for each.

        Returns:
            rows and slots, int64 [m]: which of the offered tokens stay, and where their values go.
        """
        held = len(self.keys)
        every = np.concatenate([self.keys, keys])
        stay = np.zeros(len(every), bool)
        stay[
            np.argpartition(every, self.size - 1)[: self.size] if len(every) > self.size else slice(None)
        ] = True
        rows = np.flatnonzero(stay[held:])
        grown = min(held + len(rows), self.size)
        slots = np.concatenate([np.flatnonzero(~stay[:held]), np.arange(held, grown)])[: len(rows)]
        if grown > held:
            self._grow(grown)
        self.keys[slots] = keys[rows]
        self.documents[slots] = np.broadcast_to(document, len(keys))[rows]
        return rows, slots

    def _grow(self, size: int) -> None:
        """Make room for ``size`` tokens."""
        spare = size - len(self.keys)
        self.keys = np.concatenate([self.keys, np.zeros(spare, np.uint64)])
        self.documents = np.concatenate([self.documents, np.zeros(spare, np.int64)])
        for name, (shape, dtype) in self.shapes.items():
            self.parts[name] = np.concatenate([self.parts[name], np.zeros((spare, *shape), dtype)])

    def merge(self, other: TokenSample) -> None:
        """Take in the sample of another stream."""
        rows, slots = self.plan(other.keys, other.documents)
        for name, values in other.parts.items():
            self.parts[name][slots] = values[rows]

    def sort(self) -> None:
        """Put the tokens into the order of their keys: a random order that is the same everywhere."""
        order = np.argsort(self.keys, kind="stable")
        self.keys, self.documents = self.keys[order], self.documents[order]
        self.parts = {name: values[order] for name, values in self.parts.items()}

    def state(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays from which ``restore`` continues."""
        parts = {f"{prefix}/part/{name}": values for name, values in self.parts.items()}
        return {f"{prefix}/keys": self.keys, f"{prefix}/documents": self.documents, **parts}

    def restore(self, prefix: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from saved arrays."""
        self.keys, self.documents = arrays[f"{prefix}/keys"].copy(), arrays[f"{prefix}/documents"].copy()
        self.parts = {name: arrays[f"{prefix}/part/{name}"].copy() for name in self.shapes}


class ActivationSample(DocumentAccumulator):
    """Accumulates a sample of tokens with their activations; first tokens of windows are left out.

    It is the same tokens for all sites that see every token. Each expert has a sample of its own, of the
    tokens routed to it.

    Args:
        sites: Sites to keep.
        size: Tokens in the sample.
        seed: Seed of the sample.

    Attributes:
        sample: Of the sites that see every token.
        routed: Of each expert, by the name of its site.
    """

    def __init__(self, sites: tuple[Site, ...], size: int, seed: int) -> None:
        super().__init__(sites, (size, seed))
        self.seed = seed
        shapes = {site.name: ((site.width,), np.float32) for site in self.sites}
        experts = [site.name for site in self.sites if site.kind == "experts"]
        self.routed = {name: TokenSample(size, {name: shapes.pop(name)}) for name in experts}
        self.sample = TokenSample(size, shapes)

    def of(self, site: Site) -> TokenSample:
        """The sample that holds a site."""
        return self.routed.get(site.name, self.sample)

    def _take(self, batch: ActivationBatch, cluster: int, seen: int) -> None:
        after = batch.positions > 0
        keys = token_keys(self.seed, batch.document, seen, len(batch.positions))
        rows = np.flatnonzero(after)
        chosen, slots = self.sample.plan(keys[rows], batch.document)
        if len(chosen):
            for name in self.sample.parts:
                self.sample.parts[name][slots] = _host(batch.values[name][rows[chosen]])
        for name, sample in self.routed.items():
            tokens = batch.rows[name]
            rows = np.flatnonzero(after[tokens])
            chosen, slots = sample.plan(keys[tokens[rows]], batch.document)
            if len(chosen):
                sample.parts[name][slots] = _host(batch.values[name][rows[chosen]])

    def _join(self, other: Self, places: list[tuple[int, int]]) -> None:
        self.sample.merge(other.sample)
        for name, sample in self.routed.items():
            sample.merge(other.routed[name])

    def finish(self) -> TokenSample:
        """Put all samples into the order of their keys; return that of the sites that see every token."""
        super().finish()
        self.sample.sort()
        for sample in self.routed.values():
            sample.sort()
        return self.sample

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = self.sample.state("sample")
        for name, sample in self.routed.items():
            arrays |= sample.state(name)
        return arrays

    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        self.sample.restore("sample", arrays)
        for name, sample in self.routed.items():
            sample.restore(name, arrays)


def _host(values: torch.Tensor) -> np.ndarray:
    """Activations as float32, in the memory of the host."""
    found: np.ndarray = values.float().cpu().numpy()
    return found


def sites_within(sites: tuple[Site, ...], tokens: int, memory: int) -> tuple[Site, ...]:
    """As many sites, evenly spaced, as have room for float32 activations of ``tokens`` tokens
    in ``memory`` MiB.

    Raises:
        SubjectError: If one site alone needs more.
    """
    needed = [tokens * site.width * 4 for site in sites]
    budget = memory * 2**20
    if max(needed) > budget:
        widest = max(sites, key=lambda site: site.width)
        raise SubjectError(
            "the sample of one site is larger than the memory that is given to all",
            where=widest.name,
            allowed=f"{memory} MiB",
            got=f"{tokens} tokens x {widest.width} units x 4 bytes = {max(needed) / 2**20:.0f} MiB",
            next_step="set memory to more MiB, or sample_tokens to less",
        )
    count = len(sites)
    while True:
        kept = np.unique(np.linspace(0, len(sites) - 1, count).round().astype(int))
        if sum(needed[index] for index in kept) <= budget:
            return tuple(sites[index] for index in kept)
        count -= 1

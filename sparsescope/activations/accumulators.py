"""Mergeable streaming statistics over activation batches.

An accumulator is the unit that shares a forward pass with others and that is fanned out over workers:
``update`` takes a batch, ``merge`` adds what another worker saw on other documents, ``state``/``restore``
carry it over a restart. Statistics are summed by document, so that sums of a split stream are those of the
whole stream: counts bit for bit, float64 to the last digits. Shapes: C documents (clusters).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from sparsescope.core.named_code import Owner, takes
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.models.structure.sites import Site

# Documents beyond this many share clusters, so that memory does not grow with the corpus.
MAX_CLUSTERS = 4096
#: The methods of an accumulator.
METHODS = ("update(batch)", "merge(other)", "finish()", "state()", "restore(arrays, meta)")
#: What a subclass of ``DocumentAccumulator`` defines, with the method that calls it.
OF_DOCUMENTS = {
    "_take(batch, cluster, seen)": "update",
    "_join(other, places)": "merge",
    "_arrays()": "state",
    "_load(arrays)": "restore",
}


class Accumulator(Protocol):
    """What the runner feeds.

    Attributes:
        sites: Sites whose activations it needs.
    """

    sites: tuple[Site, ...]

    def update(self, batch: ActivationBatch) -> None:
        """Take one batch."""

    def merge(self, other: Self) -> Self:
        """Add what ``other`` saw on other documents; return self."""

    def finish(self) -> Any:
        """Close what is open and return what was summed."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and plain values from which ``restore`` continues exactly."""

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Continue from a saved state."""


class DocumentAccumulator:
    """The base of accumulators that read a stream of whole documents, one after the other.

    It knows which documents were seen and which one is open, refuses what cannot be merged, and keeps the
    executor and the places of documents in arrays by document. A statistic defines ``_take`` and, where it
    has something to do, ``_close``, ``_make_room`` and ``finish``; and ``_join``, ``_arrays`` and ``_load``
    for merging and for its state.

    Args:
        sites: Sites to measure.
        measure: What must be equal for two of them to be merged, beside the sites.
        threads: Threads of ``executor``; the number of cores when None.

    Attributes:
        documents: Numbers of the documents that were seen.
        clusters: Place of each (domain, document) in arrays by document; documents beyond
            ``MAX_CLUSTERS`` share places.
    """

    def __init__(self, sites: Sequence[Site], measure: tuple[Any, ...], threads: int | None = None) -> None:
        self.sites = tuple(sites)
        self.documents: set[int] = set()
        self.clusters: dict[tuple[int, int], int] = {}
        self._measure = measure
        self._open: tuple[int, int, int] | None = None  # document, its cluster, its tokens so far
        self._threads = threads or os.cpu_count() or 1
        self._executor: Executor | None = None

    def update(self, batch: ActivationBatch) -> None:
        """Take one batch (whole windows of one document).

        Raises:
            SpecError: If a document comes twice.
        """
        if self._open is None or self._open[0] != batch.document:
            self._end()
            if batch.document in self.documents:
                raise SpecError(
                    "a document came twice, or in pieces that are not consecutive",
                    where=f"document {batch.document}",
                    next_step="split streams at document boundaries",
                )
            self.documents.add(batch.document)
            self._open = (batch.document, self._cluster(batch.domain, batch.document), 0)
        document, cluster, seen = self._open
        self._open = (document, cluster, seen + len(batch.positions))
        self._take(batch, cluster, seen)

    def merge(self, other: Self) -> Self:
        """Add what ``other`` saw on other documents; return self.

        Raises:
            SpecError: If the two measure different things, or saw the same document.
        """
        where = f"{type(self).__name__}.merge"
        if ([s.name for s in self.sites], self._measure) != ([s.name for s in other.sites], other._measure):
            raise SpecError("accumulators of different measures cannot be merged", where=where)
        both = self.documents & other.documents
        if both:
            raise SpecError(
                "both accumulators saw the same document",
                where=where,
                got=sorted(both)[:8],
                next_step="split streams at document boundaries: corpus.split(n)",
            )
        self._end()
        other._end()
        self.documents |= other.documents
        self._join(other, [(self._cluster(*key), place) for key, place in other.clusters.items()])
        return self

    def finish(self) -> Any:
        """Close the open document and let the threads go; a statistic returns what it summed."""
        self._end()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and plain values from which ``restore`` continues exactly."""
        clusters = [[*key, place] for key, place in self.clusters.items()]
        return self._arrays(), {"documents": sorted(self.documents), "clusters": clusters, "open": self._open}

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.documents = set(meta["documents"])
        self.clusters = {(domain, bucket): place for domain, bucket, place in meta["clusters"]}
        self._open = None if meta["open"] is None else tuple(meta["open"])
        self._load({name: array.copy() for name, array in arrays.items()})

    def by_document(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Places in the order of documents, with their domains and document numbers (modulo
        ``MAX_CLUSTERS``), int64 [C] each.

        In this order nothing depends on how streams were split and merged.
        """
        keys = sorted(self.clusters, key=lambda key: (key[1], key[0]))
        domains, numbers = np.array(keys, np.int64).reshape(-1, 2).T
        return np.array([self.clusters[key] for key in keys], np.int64), domains, numbers

    @property
    def executor(self) -> Executor:
        """Threads for the statistics, until ``finish``."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads)
        return self._executor

    def _end(self) -> None:
        """Finish the open document, if there is one."""
        if self._open is not None:
            self._close(self._open[1])
            self._open = None

    def _cluster(self, domain: int, document: int) -> int:
        """Place of a document, made on first sight."""
        key = (domain, document % MAX_CLUSTERS)
        if key not in self.clusters:
            self.clusters[key] = len(self.clusters)
            self._make_room(len(self.clusters))
        return self.clusters[key]

    def _take(self, batch: ActivationBatch, cluster: int, seen: int) -> None:
        """Count a batch of the document at place ``cluster``, ``seen`` tokens of which came before."""
        raise NotImplementedError

    def _close(self, cluster: int) -> None:
        """Finish the document at place ``cluster``."""

    def _make_room(self, clusters: int) -> None:
        """Hold at least as many documents in arrays by document."""

    def _join(self, other: Self, places: list[tuple[int, int]]) -> None:
        """Add the sums of ``other``; ``places`` are pairs of an own place and one of ``other`` for
        the same document.
        """
        raise NotImplementedError

    def _arrays(self) -> dict[str, np.ndarray]:
        """All that was summed."""
        raise NotImplementedError

    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over saved arrays, which are no one else's."""
        raise NotImplementedError


def check_methods(accumulator: Any, owner: Owner, module: str) -> None:
    """Refuse what lacks a method of an accumulator, before a pass begins.

    Args:
        accumulator: What ``accumulator(params, context)`` of an analysis returned.
        owner: The analysis, for the message.
        module: Its compute module.

    Raises:
        SpecError: With every method that is missing or takes other arguments.
    """
    kind, missing = type(accumulator), [call for call in METHODS if _lacks(accumulator, call)]
    if isinstance(accumulator, DocumentAccumulator):
        inherited = [call for call, of in OF_DOCUMENTS.items() if _left(kind, of)]
        missing += [call for call in inherited if _left(kind, call) or _lacks(accumulator, call)]
        missing += [call for call in ("_close(cluster)", "_make_room(clusters)") if _lacks(accumulator, call)]
        if not hasattr(accumulator, "clusters"):
            missing.append("__init__, which calls super().__init__(sites, measure)")
    sites = getattr(accumulator, "sites", None)
    if not isinstance(sites, list | tuple) or not all(hasattr(site, "module_path") for site in sites):
        missing.append("the attribute sites, as context.subject.sites(...) returns it")
    if missing:
        raise SpecError(
            f"the accumulator of {owner.name} is not complete",
            where=f"class {kind.__name__} of {kind.__module__}, made by accumulator of {module}",
            allowed=f"a class that defines {', '.join(missing)}",
            got="an accumulator in which these are missing or take other arguments"
            if accumulator is not None
            else "None",
            next_step=f"define them, or take DocumentAccumulator as its base; {owner.next_step}",
        )


def _lacks(accumulator: Any, call: str) -> bool:
    """Whether a method is missing or takes other arguments."""
    method = getattr(accumulator, call.partition("(")[0], None)
    return not callable(method) or not takes(method, call)


def _left(kind: type, call: str) -> bool:
    """Whether a class leaves a method to ``DocumentAccumulator``."""
    name = call.partition("(")[0]
    return getattr(kind, name) is getattr(DocumentAccumulator, name)


def with_room(array: np.ndarray, clusters: int) -> np.ndarray:
    """The array by document with room for ``clusters``; room doubles, so that a long stream is
    not copied each time.
    """
    if clusters <= len(array):
        return array
    spare = max(2 * len(array), clusters, 16) - len(array)
    return np.concatenate([array, np.zeros((spare, *array.shape[1:]), array.dtype)])

"""Sums behind ``activation_reuse``: unions over chunks, overlaps of neighbours, and samples for
the permuted orders.

Chunks never cross a window, and the first token of a window is in none. Everything is kept by document, in
whole numbers where it is a count, so that parts of a stream merge into the sums of the whole.

The experts of a layer together are one layer of E f units, of which those of experts that a token was not
sent to are not active on it. What a token uses of the experts it was sent to is judged expert by expert, as
their own densities are: their hidden layers are weighted by the router before they are added up.
Shapes: C documents, L places, R rules, K chunk lengths 1, 2, 4, ..., U units, F folds, E experts of width f.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from einops import rearrange

from sparsescope.activations.accumulators import MAX_CLUSTERS, DocumentAccumulator, with_room
from sparsescope.activations.hidden_layers import experts_by_layer
from sparsescope.activations.samples import TokenSample, token_keys
from sparsescope.kernels.active_sets import RULES, active_bits, count_units, overlaps, union_sizes, words_of
from sparsescope.metrics.jackknife import FOLDS, fold_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.models.structure.sites import Site

# Tokens of one document that are put into random order, and tokens of all documents together.
WITHIN, ACROSS = 128, 2048


# Where experts are the units: the place in the model that says which experts a token was sent to.
EXPERTS_ROLE = "mlp.hook_expert_indices"


class ReuseAccumulator(DocumentAccumulator):
    """Reuse of hidden units by consecutive tokens.

    Args:
        sites: Sites to measure; experts in whole layers.
        use_share: Share of the energy that defines "in use".
        context: Longest window; chunks have up to ``context - 1`` tokens.
        seed: Seed of the permuted orders.
        threads: Threads; the number of cores when None.

    Attributes:
        places: What is measured: the sites, with all experts of a layer as one.
        rules: When a unit counts as active.
        sums: By name, arrays [C, ...]: ``union`` and ``first`` int64 [C, L, R, K] (sizes of unions over all
            whole chunks, and over the first chunk of each window), ``chunks`` and ``firsts`` int64 [C, K],
            ``overlap`` float64 and ``pairs`` int64 [C, L, R] (Jaccard index of neighbours), ``within``
            float64 [C, L, R] (of permuted tokens, for as many pairs).
        fired: For each place int64 [F, R, U].
        fold_tokens: int64 [F].
        sample: Tokens of all documents for the order across them.
    """

    rules: ClassVar[tuple[str, ...]] = RULES

    def __init__(
        self, sites: tuple[Site, ...], use_share: float, context: int, seed: int, threads: int | None = None
    ) -> None:
        super().__init__(sites, (use_share, context, seed), threads)
        self.use_share, self.seed = use_share, seed
        self.levels = max((context - 1).bit_length(), 1)
        self.experts = experts_by_layer(self.sites)
        self.places = self._places()
        shape = (0, len(self.places), len(self.rules))
        counts = {"union": (*shape, self.levels), "chunks": (0, self.levels), "pairs": shape}
        counts |= {"first": counts["union"], "firsts": counts["chunks"]}
        self.sums: dict[str, np.ndarray] = {name: np.zeros(size, np.int64) for name, size in counts.items()}
        self.sums |= {"overlap": np.zeros(shape), "within": np.zeros(shape)}
        self.fired = [np.zeros((FOLDS, len(self.rules), place.width), np.int64) for place in self.places]
        self.fold_tokens = np.zeros(FOLDS, np.int64)
        self._parts = {
            str(n): (
                (len(self.rules), self._pieces(place) * words_of(place.width // self._pieces(place))),
                np.uint64,
            )
            for n, place in enumerate(self.places)
        }
        self.sample = TokenSample(ACROSS, self._parts)
        self._open_sample = TokenSample(WITHIN, self._parts)
        self._open_pairs = np.zeros(shape[1:], np.int64)

    def _take(self, batch: ActivationBatch, cluster: int, seen: int) -> None:
        rows = np.flatnonzero(batch.positions > 0)
        if len(rows) == 0:
            return
        keys = token_keys(self.seed, batch.document, seen, len(batch.positions))[rows]
        # Two tokens are neighbours if they stand next to each other in a window.
        ends = np.append(np.flatnonzero(np.diff(batch.positions[rows]) != 1) + 1, len(rows)).astype(np.int64)
        left = np.setdiff1d(np.arange(len(rows)), ends - 1)
        fold = fold_of(batch.document % MAX_CLUSTERS)  # documents of one cluster are in one fold
        self.fold_tokens[fold] += len(rows)
        plans = [(sample, *sample.plan(keys, batch.document)) for sample in (self.sample, self._open_sample)]
        for n, place in enumerate(self.places):
            bits = self._bits(place, batch, rows)
            union, chunks, first, firsts = union_sizes(bits, ends, self.levels)
            overlap, pairs = overlaps(bits, left, left + 1)
            self._open_pairs[n] += pairs
            for name, found in (("union", union), ("first", first), ("overlap", overlap), ("pairs", pairs)):
                self.sums[name][cluster, n] += found
            if n == 0:
                self.sums["chunks"][cluster] += chunks
                self.sums["firsts"][cluster] += firsts
            self.fired[n][fold] += self._fired(place, bits)
            for sample, chosen, slots in plans:
                sample.parts[str(n)][slots] = rearrange(bits[:, chosen], "rule token word -> token rule word")

    def _places(self) -> tuple[Site, ...]:
        """The sites, with the experts of a layer as one place where the first of them stands."""
        found: dict[str, Site] = {}
        for site in self.sites:
            name = f"blocks.{site.layer}.{site.role}" if site.kind == "experts" else site.name
            if name not in found:
                experts = len(self.experts[site.layer]) if site.kind == "experts" else 1
                found[name] = replace(site, name=name, width=experts * site.width, expert=None)
        return tuple(found.values())

    def _pieces(self, place: Site) -> int:
        """Parts of a place whose bits begin with a word of their own."""
        return len(self.experts[place.layer]) if place.kind == "experts" else 1

    def _bits(self, place: Site, batch: ActivationBatch, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Units in use at a place on some tokens of a batch, [R, row, word]."""
        if place.kind != "experts":
            return active_bits(batch.values[place.name], rows, self.use_share, self.executor)
        group = self.experts[place.layer]
        words = words_of(group[0].width)
        bits = np.zeros((len(self.rules), len(rows), len(group) * words), np.uint64)
        for n, (site, at, mine) in enumerate(_routed(group, batch, rows)):
            if len(at):
                own = active_bits(batch.values[site.name], mine, self.use_share, self.executor)
                bits[:, at, n * words : (n + 1) * words] = own
        return bits

    def _fired(self, place: Site, bits: NDArray[np.uint64]) -> NDArray[np.int64]:
        """How many of the tokens use each unit, [R, U]."""
        pieces = self._pieces(place)
        counts = count_units(bits, 64 * bits.shape[-1])
        by_piece = rearrange(counts, "rule (piece unit) -> rule piece unit", piece=pieces)
        return rearrange(by_piece[..., : place.width // pieces], "rule piece unit -> rule (piece unit)")

    def _make_room(self, clusters: int) -> None:
        self.sums = {name: with_room(array, clusters) for name, array in self.sums.items()}

    def _close(self, cluster: int) -> None:
        """Put the tokens of the document into random order, weighted to as many pairs as
        it has neighbours.
        """
        self._open_sample.sort()
        order = np.arange(len(self._open_sample))
        for n in range(len(self.places)):
            parts = rearrange(self._open_sample.parts[str(n)], "token rule word -> rule token word")
            bits = np.ascontiguousarray(parts)
            total, pairs = overlaps(bits, order[:-1], order[1:])
            mean = np.divide(total, pairs, out=np.zeros_like(total), where=pairs > 0)
            self.sums["within"][cluster, n] += mean * self._open_pairs[n]
        self._open_sample = TokenSample(WITHIN, self._parts)
        self._open_pairs = np.zeros_like(self._open_pairs)

    def _join(self, other: Self, places: list[tuple[int, int]]) -> None:
        for name, theirs in other.sums.items():
            for place, source in places:
                self.sums[name][place] += theirs[source]
        self.fired = [a + b for a, b in zip(self.fired, other.fired, strict=True)]
        self.fold_tokens = self.fold_tokens + other.fold_tokens
        self.sample.merge(other.sample)

    def finish(self) -> Self:
        """Close the last document, bring the sample into its random order, and return self."""
        super().finish()
        self._trim()
        self.sample.sort()
        return self

    def _trim(self) -> None:
        self.sums = {name: array[: len(self.clusters)] for name, array in self.sums.items()}

    def _arrays(self) -> dict[str, np.ndarray]:
        self._trim()
        arrays = {f"sums/{name}": array for name, array in self.sums.items()}
        arrays |= {f"fired/{n}": fired for n, fired in enumerate(self.fired)}
        arrays |= {"fold_tokens": self.fold_tokens, "open_pairs": self._open_pairs}
        return arrays | self.sample.state("sample") | self._open_sample.state("open_sample")

    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        self.sums = {name: arrays[f"sums/{name}"] for name in self.sums}
        self.fired = [arrays[f"fired/{n}"] for n in range(len(self.fired))]
        self.fold_tokens, self._open_pairs = arrays["fold_tokens"], arrays["open_pairs"]
        self.sample.restore("sample", arrays)
        self._open_sample.restore("open_sample", arrays)


class ExpertReuse(ReuseAccumulator):
    """Reuse of experts by consecutive tokens: the units of a layer are its E experts, and the set of a token
    are those that it was sent to.

    Args:
        sites: All experts of the layers to measure.
        use_share: Not used; see ``ReuseAccumulator``, also for the other arguments.
    """

    rules: ClassVar[tuple[str, ...]] = ("routed",)

    def _places(self) -> tuple[Site, ...]:
        return tuple(
            replace(
                group[0],
                name=f"blocks.{layer}.{EXPERTS_ROLE}",
                role=EXPERTS_ROLE,
                width=len(group),
                expert=None,
            )
            for layer, group in self.experts.items()
        )

    def _pieces(self, place: Site) -> int:
        return 1

    def _bits(self, place: Site, batch: ActivationBatch, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        member = np.zeros((len(rows), 64 * words_of(place.width)), bool)
        for n, (_, at, _) in enumerate(_routed(self.experts[place.layer], batch, rows)):
            member[at, n] = True
        packed = np.packbits(member, axis=1, bitorder="little")
        return packed.view(np.uint64)[None]


def _routed(
    group: tuple[Site, ...], batch: ActivationBatch, rows: NDArray[np.int64]
) -> Iterator[tuple[Site, NDArray[np.int64], NDArray[np.int64]]]:
    """For each expert the places in ``rows`` of the tokens sent to it, and their rows at its site."""
    place = np.full(len(batch.positions), -1, np.int64)
    place[rows] = np.arange(len(rows))
    for site in group:
        at = place[batch.rows[site.name]]
        mine = np.flatnonzero(at >= 0)
        yield site, at[mine], mine


class MixtureReuse:
    """Reuse of the hidden units of a mixture, and of its experts, from the same batches.

    Args:
        sites: Sites to measure, experts in whole layers.
        use_share: See ``ReuseAccumulator``, also for the other arguments.

    Attributes:
        units: Of hidden units.
        experts: Of experts.
    """

    def __init__(
        self, sites: tuple[Site, ...], use_share: float, context: int, seed: int, threads: int | None = None
    ) -> None:
        self.sites = sites
        self.units = ReuseAccumulator(sites, use_share, context, seed, threads)
        experts = tuple(site for site in sites if site.kind == "experts")
        self.experts = ExpertReuse(experts, use_share, context, seed, threads)

    def update(self, batch: ActivationBatch) -> None:
        """Take one batch."""
        self.units.update(batch)
        self.experts.update(batch)

    def merge(self, other: Self) -> Self:
        """Add what ``other`` saw on other documents; return self."""
        self.units.merge(other.units)
        self.experts.merge(other.experts)
        return self

    def finish(self) -> Self:
        """Close the last document and return self."""
        self.units.finish()
        self.experts.finish()
        return self

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and plain values from which ``restore`` continues exactly."""
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {}
        for name, part in (("units", self.units), ("experts", self.experts)):
            own, meta[name] = part.state()
            arrays |= {f"{name}/{key}": array for key, array in own.items()}
        return arrays, meta

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Continue from a saved state."""
        for name, part in (("units", self.units), ("experts", self.experts)):
            own = {
                key.removeprefix(f"{name}/"): array
                for key, array in arrays.items()
                if key.startswith(f"{name}/")
            }
            part.restore(own, meta[name])

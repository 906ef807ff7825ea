"""Activation rank, computed: a sample of tokens by hash, then singular values from inner products in float64.

The sample does not depend on batches or workers. With m sampled tokens, n units and m < n the m x m matrix of inner
products is taken once; leaving out a fold of documents leaves out rows and columns of it.
Memory: m * n * 4 bytes for each site; sites that do not fit are thinned out, and a note says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from sparsescope.activations.context import Context
from sparsescope.activations.samples import TokenSample, token_keys
from sparsescope.analysis.activation_rank import TABLES, ActivationRankParams
from sparsescope.core.result import Interval, Result
from sparsescope.errors import SpecError, SubjectError
from sparsescope.metrics.jackknife import fold_of, jackknife_interval
from sparsescope.metrics.rank import (
    MEASURES,
    centered_spectrum,
    column_spectrum,
    effective_ranks,
    independent_energy,
    independent_ranks,
)

if TYPE_CHECKING:
    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.models.sites import Site

# A spectrum for each fold is the main cost; fewer folds than elsewhere keep it at a few seconds.
RANK_FOLDS = 5
SPECTRUM_POINTS = 64
METHOD = "delete-a-group jackknife over folds of documents"
_MEANING = {
    "entropy_rank": "exp(-sum p ln p), p = s / sum s",
    "stable_rank": "sum s^2 / max s^2",
    "participation": "(sum s^2)^2 / sum s^4",
}


class RankAccumulator:
    """A sample of tokens with their activations.

    Args:
        sites: Sites to keep.
        size: Tokens in the sample.
        seed: Seed of the sample.
    """

    def __init__(self, sites: tuple[Site, ...], size: int, seed: int) -> None:
        self.sites, self.size, self.seed = tuple(sites), size, seed
        self.sample = TokenSample(size, {site.name: ((site.width,), np.float32) for site in self.sites})
        self.documents: set[int] = set()
        self._open: tuple[int, int] | None = None  # document, its tokens so far

    def update(self, batch: ActivationBatch) -> None:
        """Take one batch (whole windows of one document).

        Raises:
            SpecError: If a document comes twice.
        """
        if self._open is None or self._open[0] != batch.document:
            if batch.document in self.documents:
                raise SpecError(
                    "a document came twice, or in pieces that are not consecutive",
                    where=f"document {batch.document}",
                    next_step="split streams at document boundaries",
                )
            self.documents.add(batch.document)
            self._open = (batch.document, 0)
        document, seen = self._open
        self._open = (document, seen + len(batch.positions))
        rows = np.flatnonzero(batch.positions > 0)
        keys = token_keys(self.seed, document, seen, len(batch.positions))[rows]
        chosen, slots = self.sample.plan(keys, document)
        if len(chosen) == 0:
            return
        for site in self.sites:
            values = batch.values[site.name]
            self.sample.parts[site.name][slots] = values[rows[chosen]].float().cpu().numpy()

    def merge(self, other: Self) -> Self:
        """Add what ``other`` saw on other documents; return self.

        Raises:
            SpecError: If the two measure different things, or saw the same document.
        """
        mine = ([s.name for s in self.sites], self.size, self.seed)
        if mine != ([s.name for s in other.sites], other.size, other.seed):
            raise SpecError("accumulators of different measures cannot be merged", where="RankAccumulator.merge")
        both = self.documents & other.documents
        if both:
            raise SpecError(
                "both accumulators saw the same document",
                where="RankAccumulator.merge",
                got=sorted(both)[:8],
                next_step="split streams at document boundaries: corpus.split(n)",
            )
        self.documents |= other.documents
        self.sample.merge(other.sample)
        self._open = None
        return self

    def finish(self) -> TokenSample:
        """Return the sample in the order of its keys."""
        self._open = None
        self.sample.sort()
        return self.sample

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and plain values from which ``restore`` continues exactly."""
        return self.sample.state("sample"), {"documents": sorted(self.documents), "open": self._open}

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.sample.restore("sample", arrays)
        self.documents = set(meta["documents"])
        self._open = None if meta["open"] is None else tuple(meta["open"])


def accumulator(params: ActivationRankParams, context: Context) -> RankAccumulator:
    """Return the accumulator to feed in the shared forward pass.

    Raises:
        SubjectError: If one site alone needs more memory than is given.
    """
    return RankAccumulator(_thinned(_asked(params, context), params), params.sample_tokens, params.seed)


def _asked(params: ActivationRankParams, context: Context) -> tuple[Site, ...]:
    return context.subject.sites([params.sites] if isinstance(params.sites, str) else list(params.sites))


def _thinned(sites: tuple[Site, ...], params: ActivationRankParams) -> tuple[Site, ...]:
    """As many sites, evenly spaced, as the memory holds."""
    needed = [params.sample_tokens * site.width * 4 for site in sites]
    budget = params.memory * 2**20
    if max(needed) > budget:
        widest = max(sites, key=lambda site: site.width)
        raise SubjectError(
            "the sample of one site is larger than the memory that is given to all",
            where=widest.name,
            allowed=f"{params.memory} MiB",
            got=f"{params.sample_tokens} tokens x {widest.width} units x 4 bytes = {max(needed) / 2**20:.0f} MiB",
            next_step="set memory to more MiB, or sample_tokens to less",
        )
    count = len(sites)
    while True:
        kept = np.unique(np.linspace(0, len(sites) - 1, count).round().astype(int))
        if sum(needed[index] for index in kept) <= budget:
            return tuple(sites[index] for index in kept)
        count -= 1


def result(params: ActivationRankParams, context: Context, accumulated: RankAccumulator) -> Result:
    """Build the result from the sample.

    Raises:
        SubjectError: If fewer than three tokens come after the first of a window.
    """
    sample = accumulated.finish()
    m = len(sample)
    if m < 3:
        raise SubjectError(
            "a rank needs three tokens or more after the first of a window",
            where=f"corpus {context.corpus.name}",
            got=f"{m} tokens",
            next_step="read more text: a larger token budget, or longer documents",
        )
    folds = np.array([fold_of(int(document), RANK_FOLDS) for document in sample.documents])
    documents = len(np.unique(sample.documents))
    ranks, spectra, scalars = [], [], []
    for site in accumulated.sites:
        whole, replicates, spectrum = _of_site(sample.parts[site.name], folds)
        reference = independent_ranks(m - 1, site.width)
        low, high = jackknife_interval(whole, replicates, params.level)
        for index, metric in enumerate(MEASURES):
            row = {"layer": site.layer, "site": site.name, "metric": metric, "mean": whole[index]}
            row |= {"low": max(low[index], 1.0) if np.isfinite(low[index]) else np.nan, "high": high[index]}
            row |= {"reference": reference[index], "ratio": whole[index] / reference[index]}
            ranks.append(row | {"largest": min(m - 1, site.width), "units": site.width, "tokens": m, "documents": documents})
        spectra.append(_spectrum(site, spectrum, m))
        scalars.append((whole, replicates))
    out = Result("activation_rank")
    out.add_table("ranks", pd.DataFrame(ranks), TABLES["ranks"])
    out.add_table("spectrum", pd.concat(spectra, ignore_index=True), TABLES["spectrum"])
    _scalars(out, scalars, params.level, m, documents)
    _notes(out, params, context, accumulated, m, documents)
    return out


def _of_site(values: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Effective ranks [3], the same without each fold [G, 3], and the squared singular values, descending."""
    m, n = values.shape
    # Scaled so that squares of products stay in range; ranks do not change.
    largest = float(np.abs(values).max())
    points = values.astype(np.float64) / (largest if largest > 0 else 1.0)
    present = np.unique(folds)
    subsets = [np.flatnonzero(folds != fold) for fold in present] if len(present) > 1 else []
    subsets = [rows for rows in subsets if len(rows) >= 3]
    if m <= n:
        product = points @ points.T
        spectrum = centered_spectrum(product)
        replicates = [effective_ranks(centered_spectrum(product[np.ix_(rows, rows)])) for rows in subsets]
    else:
        spectrum = column_spectrum(points)
        replicates = [effective_ranks(column_spectrum(points[rows])) for rows in subsets]
    # Folds differ in size and ranks grow with the number of tokens: each replicate is brought to the size of the whole by the
    # ratio of the references, or the size of the folds would look like uncertainty.
    whole = independent_ranks(m - 1, n)
    scaled = [ranks * whole / independent_ranks(len(rows) - 1, n) for ranks, rows in zip(replicates, subsets, strict=True)]
    return effective_ranks(spectrum), np.array(scaled).reshape(-1, len(MEASURES)), spectrum


def _spectrum(site: Site, energies: np.ndarray, tokens: int) -> pd.DataFrame:
    """Share of the variance held by the largest components, at numbers that grow by a constant factor."""
    largest = min(tokens - 1, site.width)
    components = np.unique(np.geomspace(1, largest, SPECTRUM_POINTS).round().astype(int))
    held = np.cumsum(energies)[components - 1] / energies.sum() if energies.sum() > 0 else np.full(len(components), np.nan)
    reference = independent_energy(tokens - 1, site.width, components)
    place = {"layer": site.layer, "site": site.name}
    return pd.DataFrame({**place, "components": components, "energy": held, "reference": reference})


def _scalars(out: Result, found: list[tuple[np.ndarray, np.ndarray]], level: float, tokens: int, documents: int) -> None:
    """Means over sites."""
    whole = np.array([ranks for ranks, _ in found])  # [L, 3]
    replicates = np.array([without for _, without in found])  # [L, G, 3]
    table = out.tables["ranks"]
    for index, metric in enumerate(MEASURES):
        mean = float(whole[:, index].mean())
        low, high = jackknife_interval(np.asarray(mean), replicates[:, :, index].mean(0), level)
        interval = Interval(float(low), float(high), level, METHOD, documents) if np.isfinite(low) else None
        text = f"{metric.replace('_', ' ')} = {_MEANING[metric]} of {tokens} centered tokens; mean over {len(found)} sites"
        out.add_scalar(f"mean_{metric}", mean, "", text, interval=interval)
        ratio = table.loc[table["metric"] == metric, "ratio"].mean()
        out.add_scalar(
            f"mean_{metric}_ratio", ratio, "", f"{metric.replace('_', ' ')} / that of independent entries; mean over sites"
        )
    out.add_scalar("tokens", tokens, "count", "tokens in the sample, after the first of each window")
    out.add_scalar("documents", documents, "count", "documents in the sample, the independent units of every interval")


def _notes(
    out: Result, params: ActivationRankParams, context: Context, accumulated: RankAccumulator, tokens: int, documents: int
) -> None:
    """Say what the reader has to know."""
    asked = len(_asked(params, context))
    if len(accumulated.sites) < asked:
        out.note(
            "info",
            f"{len(accumulated.sites)} of {asked} sites were measured, evenly spaced, to stay within {params.memory} MiB; "
            "the parameter memory allows more.",
            "ranks",
        )
    widest = max(site.width for site in accumulated.sites)
    if tokens <= widest:
        out.note(
            "info",
            f"The sample has {tokens} tokens for up to {widest} units: no rank can exceed {tokens - 1}. Compare with the "
            "reference, which has the same limit, and compare runs with equal samples only.",
            "ranks",
        )
    if documents < 2:
        out.note("warning", "All text is one document: no interval can be given.", "ranks")
    elif documents < 10:
        out.note("warning", f"Only {documents} documents: intervals are likely too narrow.", "ranks")

"""Activation rank, computed: a sample of tokens by hash, then singular values from inner products in float64.

The sample does not depend on batches or workers. With m sampled tokens, n units and m < n the m x m matrix of inner
products is taken once; leaving out a fold of documents leaves out rows and columns of it.
Memory: m * n * 4 bytes for each site; sites that do not fit are thinned out, and a note says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from sparsescope.activations.accumulators import DocumentAccumulator
from sparsescope.activations.context import Context
from sparsescope.activations.samples import TokenSample, token_keys
from sparsescope.core.result import Interval, Result
from sparsescope.core.tables import grid, places
from sparsescope.errors import SubjectError
from sparsescope.metrics.estimates import note_few_documents
from sparsescope.metrics.jackknife import JACKKNIFE, fold_of, jackknife_interval
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
    from sparsescope.analysis.activation_rank import ActivationRankParams
    from sparsescope.models.sites import Site

# A spectrum for each fold is the main cost; fewer folds than elsewhere keep it at a few seconds.
RANK_FOLDS = 5
SPECTRUM_POINTS = 64
_MEANING = {
    "entropy_rank": "exp(-sum p ln p), p = s / sum s",
    "stable_rank": "sum s^2 / max s^2",
    "participation": "(sum s^2)^2 / sum s^4",
}


class RankAccumulator(DocumentAccumulator):
    """A sample of tokens with their activations.

    Args:
        sites: Sites to keep.
        size: Tokens in the sample.
        seed: Seed of the sample.
    """

    def __init__(self, sites: tuple[Site, ...], size: int, seed: int) -> None:
        super().__init__(sites, (size, seed))
        self.seed = seed
        self.sample = TokenSample(size, {site.name: ((site.width,), np.float32) for site in self.sites})

    def _take(self, batch: ActivationBatch, cluster: int, seen: int) -> None:
        rows = np.flatnonzero(batch.positions > 0)
        keys = token_keys(self.seed, batch.document, seen, len(batch.positions))[rows]
        chosen, slots = self.sample.plan(keys, batch.document)
        if len(chosen) == 0:
            return
        for site in self.sites:
            values = batch.values[site.name]
            self.sample.parts[site.name][slots] = values[rows[chosen]].float().cpu().numpy()

    def _join(self, other: Self, places: list[tuple[int, int]]) -> None:
        self.sample.merge(other.sample)

    def finish(self) -> TokenSample:
        """Return the sample in the order of its keys."""
        super().finish()
        self.sample.sort()
        return self.sample

    def _arrays(self) -> dict[str, np.ndarray]:
        return self.sample.state("sample")

    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        self.sample.restore("sample", arrays)


def accumulator(params: ActivationRankParams, context: Context) -> RankAccumulator:
    """Return the accumulator to feed in the shared forward pass.

    Raises:
        SubjectError: If one site alone needs more memory than is given.
    """
    return RankAccumulator(_thinned(context.subject.sites(params.sites), params), params.sample_tokens, params.seed)


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
    sample, sites = accumulated.finish(), accumulated.sites
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
    found = [_of_site(sample.parts[site.name], folds) for site in sites]
    whole = np.array([ranks for ranks, _, _ in found])  # [L, 3]
    replicates = np.stack([without for _, without, _ in found], axis=1)  # [G, L, 3]
    reference = np.array([independent_ranks(m - 1, site.width) for site in sites])
    low, high = jackknife_interval(whole, replicates, params.level)
    units = np.array([[site.width] for site in sites])
    out = Result("activation_rank")
    out.add(
        "ranks",
        grid(
            [places(sites), {"metric": MEASURES}], mean=whole, low=np.maximum(low, 1.0), high=high, reference=reference,
            ratio=whole / reference, largest=np.minimum(m - 1, units), units=units, tokens=m, documents=documents,
        ),
    )  # fmt: skip
    out.add("spectrum", pd.concat([_spectrum(site, held, m) for site, (_, _, held) in zip(sites, found, strict=True)]))
    _scalars(out, whole, replicates, params.level, m, documents)
    _notes(out, params, context, sites, m, documents)
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
    components = np.unique(np.geomspace(1, min(tokens - 1, site.width), SPECTRUM_POINTS).round().astype(int))
    held = np.cumsum(energies)[components - 1] / energies.sum() if energies.sum() > 0 else np.nan
    reference = independent_energy(tokens - 1, site.width, components)
    return grid([{"components": components}], layer=site.layer, site=site.name, energy=held, reference=reference)


def _scalars(out: Result, whole: np.ndarray, replicates: np.ndarray, level: float, tokens: int, documents: int) -> None:
    """Means over sites."""
    table = out.tables["ranks"]
    over = f"mean over {len(whole)} sites"
    for index, metric in enumerate(MEASURES):
        mean, name = whole[:, index].mean(), metric.replace("_", " ")
        ends = jackknife_interval(mean, replicates[:, :, index].mean(1), level)
        text = f"{name} = {_MEANING[metric]} of {tokens} centered tokens; {over}"
        out.add_scalar(f"mean_{metric}", mean, "", text, interval=Interval.of(*ends, level, JACKKNIFE, documents))
        ratio = table.loc[table["metric"] == metric, "ratio"].mean()
        out.add_scalar(f"mean_{metric}_ratio", ratio, "", f"{name} / that of independent entries; mean over sites")
    out.add_scalar("tokens", tokens, "count", "tokens in the sample, after the first of each window")
    out.add_scalar("documents", documents, "count", "documents in the sample, the independent units of every interval")


def _notes(
    out: Result, params: ActivationRankParams, context: Context, sites: tuple[Site, ...], tokens: int, documents: int
) -> None:
    """Say what the reader has to know."""
    asked = len(context.subject.sites(params.sites))
    if len(sites) < asked:
        out.note(
            "info",
            f"{len(sites)} of {asked} sites were measured, evenly spaced, to stay within {params.memory} MiB; "
            "the parameter memory allows more.",
            "ranks",
        )
    widest = max(site.width for site in sites)
    if tokens <= widest:
        out.note(
            "info",
            f"The sample has {tokens} tokens for up to {widest} units: no rank can exceed {tokens - 1}. Compare with the "
            "reference, which has the same limit, and compare runs with equal samples only.",
            "ranks",
        )
    note_few_documents(out, documents, "ranks", "intervals")

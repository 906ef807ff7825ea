"""Activation rank, computed: a sample of tokens by hash, then singular values from inner products in float64.

The sample does not depend on batches or workers; sites that do not fit into the memory are thinned out,
and a note says so.
Shapes: m sampled tokens, L sites, G folds of documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sparsescope.activations.context import Context
from sparsescope.activations.samples import ActivationSample, sites_within
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.core.tables import grid, places
from sparsescope.errors import SubjectError
from sparsescope.metrics.estimates import note_few_documents
from sparsescope.metrics.jackknife import JACKKNIFE, fold_of, jackknife_interval
from sparsescope.metrics.rank import MEASURES, independent_energy, independent_ranks, ranks_and_folds

if TYPE_CHECKING:
    from sparsescope.analysis.activation_rank import ActivationRankParams
    from sparsescope.models.structure.sites import Site

# A spectrum for each fold is the main cost; fewer folds than elsewhere keep it at a few seconds.
RANK_FOLDS = 5
SPECTRUM_POINTS = 64
_MEANING = {
    "entropy_rank": "exp(-sum p ln p), p = s / sum s",
    "stable_rank": "sum s^2 / max s^2",
    "participation": "(sum s^2)^2 / sum s^4",
}


def accumulator(params: ActivationRankParams, context: Context) -> ActivationSample:
    """Return the accumulator to feed in the shared forward pass.

    Raises:
        SubjectError: If one site alone needs more memory than is given.
    """
    sites = sites_within(context.subject.sites(params.sites), params.sample_tokens, params.memory)
    return ActivationSample(sites, params.sample_tokens, params.seed)


def result(params: ActivationRankParams, context: Context, accumulated: ActivationSample) -> Result:
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
    found = [ranks_and_folds(sample.parts[site.name], folds) for site in sites]
    whole = np.array([ranks for ranks, _, _ in found])  # [L, 3]
    replicates = np.stack([without for _, without, _ in found], axis=1)  # [G, L, 3]
    reference = np.array([independent_ranks(m - 1, site.width) for site in sites])
    low, high = jackknife_interval(whole, replicates, params.level)
    units = np.array([[site.width] for site in sites])
    out = Result("activation_rank")
    out.add(
        "ranks",
        grid(
            [places(sites), {"metric": MEASURES}],
            mean=whole,
            low=np.maximum(low, 1.0),
            high=high,
            reference=reference,
            ratio=whole / reference,
            largest=np.minimum(m - 1, units),
            units=units,
            tokens=m,
            documents=documents,
        ),
    )
    out.add(
        "spectrum",
        pd.concat([_spectrum(site, held, m) for site, (_, _, held) in zip(sites, found, strict=True)]),
    )
    _scalars(out, whole, replicates, params.level, m, documents)
    _notes(out, params, context, sites, m, documents)
    return out


def _spectrum(site: Site, energies: np.ndarray, tokens: int) -> pd.DataFrame:
    """Share of the variance held by the largest components, at numbers that grow by a constant factor."""
    components = np.unique(np.geomspace(1, min(tokens - 1, site.width), SPECTRUM_POINTS).round().astype(int))
    held = np.cumsum(energies)[components - 1] / energies.sum() if energies.sum() > 0 else np.nan
    reference = independent_energy(tokens - 1, site.width, components)
    return grid(
        [{"components": components}], layer=site.layer, site=site.name, energy=held, reference=reference
    )


def _scalars(
    out: Result, whole: np.ndarray, replicates: np.ndarray, level: float, tokens: int, documents: int
) -> None:
    """Means over sites."""
    table = out.tables["ranks"]
    over = f"mean over {len(whole)} sites"
    for index, metric in enumerate(MEASURES):
        mean, name = whole[:, index].mean(), metric.replace("_", " ")
        ends = jackknife_interval(mean, replicates[:, :, index].mean(1), level)
        text = f"{name} = {_MEANING[metric]} of {tokens} centered tokens; {over}"
        out.add_scalar(
            f"mean_{metric}", mean, "", text, interval=Interval.of(*ends, level, JACKKNIFE, documents)
        )
        ratio = table.loc[table["metric"] == metric, "ratio"].mean()
        out.add_scalar(
            f"mean_{metric}_ratio", ratio, "", f"{name} / that of independent entries; mean over sites"
        )
    out.add_scalar("tokens", tokens, "count", "tokens in the sample, after the first of each window")
    out.add_scalar(
        "documents", documents, "count", "documents in the sample, the independent units of every interval"
    )


def _notes(
    out: Result,
    params: ActivationRankParams,
    context: Context,
    sites: tuple[Site, ...],
    tokens: int,
    documents: int,
) -> None:
    """Say what the reader has to know."""
    asked = len(context.subject.sites(params.sites))
    if len(sites) < asked:
        out.note(
            "info",
            f"{len(sites)} of {asked} sites were measured, evenly spaced, to stay within {params.memory} "
            "MiB; the parameter memory allows more.",
            "ranks",
        )
    widest = max(site.width for site in sites)
    if tokens <= widest:
        out.note(
            "info",
            f"The sample has {tokens} tokens for up to {widest} units: no rank can exceed {tokens - 1}. "
            "Compare with the reference, which has the same limit, and compare runs with equal samples only.",
            "ranks",
        )
    note_few_documents(out, documents, "ranks", "intervals")

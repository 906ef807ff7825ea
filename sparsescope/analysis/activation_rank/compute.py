"""Activation rank, computed: a sample of tokens by hash, then singular values from inner products in float64.

The sample does not depend on batches or workers; sites that do not fit into the memory are thinned out,
and a note says so. Of a mixture each expert is a site, with a sample of the tokens routed to it.
Shapes: m sampled tokens, L sites, G folds of documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sparsescope.activations.context import Context
from sparsescope.activations.hidden_layers import hidden_or_named
from sparsescope.activations.samples import ActivationSample, TokenSample, sites_within
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.core.tables import grid, places
from sparsescope.errors import SubjectError
from sparsescope.metrics.estimates import note_few_documents
from sparsescope.metrics.jackknife import JACKKNIFE, fold_of, jackknife_interval
from sparsescope.metrics.rank import MEASURES, independent_energy, independent_ranks, ranks_and_folds
from sparsescope.metrics.statistics import mean_over_present

if TYPE_CHECKING:
    from sparsescope.analysis.activation_rank import ActivationRankParams
    from sparsescope.models.structure.sites import Site

# A spectrum for each fold is the main cost; fewer folds than elsewhere keep it at a few seconds.
RANK_FOLDS = 5
SPECTRUM_POINTS = 64
FEWEST = 3  # tokens that have a rank
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
    asked = hidden_or_named(context.subject, params.sites)
    sites = sites_within(asked, params.sample_tokens, params.memory)
    return ActivationSample(sites, params.sample_tokens, params.seed)


def result(params: ActivationRankParams, context: Context, accumulated: ActivationSample) -> Result:
    """Build the result from the sample.

    Raises:
        SubjectError: If fewer than three tokens come after the first of a window.
    """
    accumulated.finish()
    sites = accumulated.sites
    found = [_ranks(accumulated.of(site), site) for site in sites]
    whole = np.array([one.ranks for one in found])  # [L, 3]
    replicates = np.stack([one.without for one in found], axis=1)  # [G, L, 3]
    tokens = np.array([[one.tokens] for one in found])
    documents = np.array([[one.documents] for one in found])
    if tokens.max() < FEWEST:
        raise SubjectError(
            "a rank needs three tokens or more after the first of a window",
            where=f"corpus {context.corpus.name}",
            got=f"{tokens.max()} tokens",
            next_step="read more text: a larger token budget, or longer documents",
        )
    unknown = np.full(len(MEASURES), np.nan)
    reference = np.array(
        [
            independent_ranks(one.tokens - 1, site.width) if one.known else unknown
            for site, one in zip(sites, found, strict=True)
        ]
    )
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
            largest=np.clip(tokens - 1, 0, units),
            units=units,
            tokens=tokens,
            documents=documents,
        ),
    )
    spectra = [_spectrum(site, one) for site, one in zip(sites, found, strict=True) if one.known]
    out.add("spectrum", pd.concat(spectra))
    _scalars(out, found, params.level, any(site.expert is not None for site in sites))
    _notes(out, params, context, sites, tokens[:, 0], int(documents.max()))
    return out


@dataclass(frozen=True, slots=True)
class _Ranks:
    """What was found of one site.

    Attributes:
        ranks: [3], in the order of ``MEASURES``; NaN with fewer than ``FEWEST`` tokens.
        without: The same without each fold of documents, [G, 3]; NaN where a fold has none of the tokens.
        energies: Squared singular values, descending.
        present: Which folds have any of the tokens, bool [G].
        tokens: Tokens in the sample.
        documents: Documents that they are of.
    """

    ranks: np.ndarray
    without: np.ndarray
    energies: np.ndarray
    present: np.ndarray
    tokens: int
    documents: int

    @property
    def known(self) -> bool:
        """Whether there are enough tokens for a rank."""
        return self.tokens >= FEWEST


def _ranks(sample: TokenSample, site: Site) -> _Ranks:
    """Ranks of the sampled tokens of one site."""
    m, documents = len(sample), len(np.unique(sample.documents))
    folds = np.array([fold_of(int(document), RANK_FOLDS) for document in sample.documents], int)
    counts = np.bincount(folds, minlength=RANK_FOLDS)
    without = np.full((RANK_FOLDS, len(MEASURES)), np.nan)
    if m < FEWEST:
        return _Ranks(without[0], without, np.empty(0), counts > 0, m, documents)
    ranks, replicates, energies = ranks_and_folds(sample.parts[site.name], folds)
    if len(replicates):
        without[(counts > 0) & (m - counts >= FEWEST)] = replicates
    return _Ranks(ranks, without, energies, counts > 0, m, documents)


def _spectrum(site: Site, found: _Ranks) -> pd.DataFrame:
    """Share of the variance held by the largest components, at numbers that grow by a constant factor."""
    energies, tokens = found.energies, found.tokens
    components = np.unique(np.geomspace(1, min(tokens - 1, site.width), SPECTRUM_POINTS).round().astype(int))
    held = np.cumsum(energies)[components - 1] / energies.sum() if energies.sum() > 0 else np.nan
    reference = independent_energy(tokens - 1, site.width, components)
    return grid(
        [{"components": components}], layer=site.layer, site=site.name, energy=held, reference=reference
    )


def _scalars(out: Result, found: list[_Ranks], level: float, experts: bool) -> None:
    """Means over the sites with enough tokens."""
    table, known = out.tables["ranks"], [one for one in found if one.known]
    tokens, documents = (max(getattr(one, name) for one in found) for name in ("tokens", "documents"))
    of = f"up to {tokens} centered tokens of an expert" if experts else f"{tokens} centered tokens"
    over = f"mean over {len(known)} sites"
    whole = np.array([one.ranks for one in known])  # [L, 3]
    # A fold that an expert has no token of changes nothing there; one that no site has a token of is none.
    present = np.array([one.present for one in found]).any(0)
    replicates = np.stack(
        [np.where(one.present[:, None], one.without, one.ranks) for one in known], axis=1
    )  # [G, L, 3]
    replicates[~present] = np.nan
    for index, metric in enumerate(MEASURES):
        mean, name = whole[:, index].mean(), metric.replace("_", " ")
        means = mean_over_present(replicates[:, :, index], 1) if experts else replicates[:, :, index].mean(1)
        ends = jackknife_interval(mean, means, level)
        text = f"{name} = {_MEANING[metric]} of {of}; {over}"
        out.add_scalar(
            f"mean_{metric}", mean, "", text, interval=Interval.of(*ends, level, JACKKNIFE, documents)
        )
        ratio = table.loc[table["metric"] == metric, "ratio"].mean()
        out.add_scalar(
            f"mean_{metric}_ratio", ratio, "", f"{name} / that of independent entries; mean over sites"
        )
    most = " (most of any site)" if experts else ""
    out.add_scalar("tokens", tokens, "count", f"tokens in the sample, after the first of each window{most}")
    out.add_scalar(
        "documents", documents, "count", "documents in the sample, the independent units of every interval"
    )


def _notes(
    out: Result,
    params: ActivationRankParams,
    context: Context,
    sites: tuple[Site, ...],
    tokens: np.ndarray,
    documents: int,
) -> None:
    """Say what the reader has to know; ``tokens`` are those of each site, [L]."""
    asked = len(hidden_or_named(context.subject, params.sites))
    if len(sites) < asked:
        out.note(
            "info",
            f"{len(sites)} of {asked} sites were measured, evenly spaced, to stay within {params.memory} "
            "MiB; the parameter memory allows more.",
            "ranks",
        )
    _note_experts(out, sites, tokens)
    widest, least, most = max(site.width for site in sites), int(tokens.min()), int(tokens.max())
    if least <= widest:
        said = f"has {most} tokens" if least == most else f"has {least} to {most} tokens, by site,"
        limit = f"{most - 1}" if least == most else "the tokens of its site less one"
        out.note(
            "info",
            f"The sample {said} for up to {widest} units: no rank can exceed {limit}. "
            "Compare with the reference, which has the same limit, and compare runs with equal samples only.",
            "ranks",
        )
    note_few_documents(out, documents, "ranks", "intervals")


def _note_experts(out: Result, sites: tuple[Site, ...], tokens: np.ndarray) -> None:
    """Say what the units of a mixture are, and which experts have no rank."""
    routed = [(site, int(n)) for site, n in zip(sites, tokens, strict=True) if site.expert is not None]
    if not routed:
        return
    counts = [n for _, n in routed]
    out.note(
        "info",
        "Units are hidden units of experts: each expert is a site, measured on a sample of the tokens routed "
        f"to it ({min(counts)} to {max(counts)} tokens after the first of a window). A rank grows with the "
        "tokens: compare experts by the ratio to the reference.",
        "ranks",
    )
    few = [site.name for site, n in routed if n < FEWEST]
    if few:
        out.note(
            "warning",
            f"{len(few)} of {len(routed)} experts got fewer than {FEWEST} tokens and have no rank, for "
            f"example {few[0]}; they are left out of means.",
            "ranks",
        )

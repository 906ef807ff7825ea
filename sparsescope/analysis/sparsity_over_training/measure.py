"""One checkpoint of ``sparsity_over_training``: sums over a text that tables and intervals are made of.

Shapes: D documents in the order of the corpus (of ``sums`` and ``counts`` clusters of documents, where there
are more than 4096), L sites, M metrics, 2 rules of unit use. The first position of each window is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparsescope.activations.capture import LiveSource
from sparsescope.activations.gradients import shrink_sums
from sparsescope.activations.losses import token_losses
from sparsescope.activations.sparsity_accumulator import SparsityAccumulator
from sparsescope.errors import SubjectError
from sparsescope.kernels.row_statistics import SHAPE_MEASURES
from sparsescope.models.variants import make_variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.sparsity_over_training import SparsityOverTrainingParams
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

ALWAYS_ON = 0.99
#: Places of the metrics among the statistics of the accumulator: exact zeros, L1 set, energy set, Gini.
_PICKED = (0, 1, 2, 3 + SHAPE_MEASURES.index("gini"))


def sites_of(subject: Subject, params: SparsityOverTrainingParams) -> tuple[Site, ...]:
    """The sites that are measured.

    Raises:
        SubjectError: The model has no MLP that can be read, or none of these sites.
    """
    found = subject.hidden_sites() if params.sites == "auto" else subject.sites(params.sites)
    if not found:
        raise SubjectError(
            "no MLP of this model can be read",
            where=subject.id,
            got=f"capabilities {', '.join(sorted(subject.capabilities))}",
            next_step="name sites: --set sites=...; the model's own are listed by subject.site_names()",
        )
    return found


def measure(
    subject: Subject, corpus: TokenizedCorpus, params: SparsityOverTrainingParams
) -> dict[str, NDArray[np.float64]]:
    """Sum what is asked for over a text.

    Args:
        subject: One checkpoint.
        corpus: The text, the same for all checkpoints.
        params: What is asked for.

    Returns:
        ``sums`` and ``counts`` [D, L, M], ``domain`` [D]; of the control ``control_sums`` and
        ``control_counts``; ``dead`` and ``always_on`` [L, 2], shares of units; ``seen`` [L], tokens;
        ``nll``, ``correct``, ``targets`` [D]; ``push``, ``square``, ``active`` [D, L]. What does not
        apply is left out.
    """
    found, dead = _densities(subject, corpus, params)
    arrays = {**found, **dead}
    if params.control:
        control, _ = _densities(make_variant(subject, "shuffled", seed=params.seed), corpus, params)
        arrays |= {f"control_{name}": array for name, array in control.items()}
    if {"causal", "logits"} <= subject.capabilities:
        arrays |= _losses(subject, corpus)
        sites = sites_of(subject, params)
        if params.push and all(
            site.kind == "input" and site.part is None and site.argument == 0 for site in sites
        ):
            pushed = shrink_sums(subject, corpus, sites)
            arrays |= {
                "push": pushed.push,
                "square": pushed.square,
                "active": pushed.count.astype(np.float64),
            }
    return arrays


def _densities(
    subject: Subject, corpus: TokenizedCorpus, params: SparsityOverTrainingParams
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Sums of the metrics by document and site, and the use of units, after the first
    position of each window.
    """
    accumulator = SparsityAccumulator(
        sites_of(subject, params), (params.share,), params.share, corpus.context
    )
    for batch in LiveSource(subject, corpus, accumulator.sites):
        accumulator.update(batch)
    statistics = accumulator.finish()
    order, domains, _ = accumulator.by_document()
    found = [statistics[site.name] for site in accumulator.sites]
    sums = np.stack([entry.sums[order][:, 1:, _PICKED].sum(1) for entry in found], axis=1)
    # [D, L, 2]: tokens, non-zero vectors
    tokens = np.stack([entry.counts[order][:, 1:].sum(1) for entry in found], axis=1)
    shaped = np.array([index >= 3 for index in _PICKED])
    counts = np.where(shaped, tokens[..., 1:2], tokens[..., :1]).astype(np.float64)
    seen = np.array([entry.lengths[1] for entry in found], np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = [entry.fired / n for entry, n in zip(found, seen, strict=True)]  # [2, U] each
    known = np.where(seen > 0, 1.0, np.nan)[:, None]
    use = {
        "dead": np.stack([(rate == 0).mean(1) for rate in rates]) * known,
        "always_on": np.stack([(rate > ALWAYS_ON).mean(1) for rate in rates]) * known,
        "seen": seen,
    }
    return {"sums": sums, "counts": counts, "domain": domains.astype(np.float64)}, use


def _losses(subject: Subject, corpus: TokenizedCorpus) -> dict[str, NDArray[np.float64]]:
    """Summed loss, right predictions and targets of each document."""
    found = token_losses(subject, corpus)
    place = {document.index: row for row, document in enumerate(corpus.documents)}
    rows = np.array([place[int(number)] for number in found.document])
    n = len(place)
    return {
        name: np.bincount(rows, values, n).astype(np.float64)
        for name, values in (("nll", found.nll), ("correct", found.correct), ("targets", np.ones(len(found))))
    }

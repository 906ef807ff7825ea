"""Upper bounds on what the measured densities could save: rows of the table ``upper_bounds``.

Active units are those that are not exactly zero, or those in the set with a large share of the energy. Only
hidden layers of MLPs count; a layer with experts has the density of the experts that run, weighted by the
tokens that they get.
Shapes: C documents, L sites, S statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.activations.bound_table import bound_rows, default_attended, schemes_of
from sparsescope.analysis.activation_sparsity import ActivationSparsityParams, percent_name
from sparsescope.metrics.bounds import Assumptions
from sparsescope.models.structure.dimensions import read_dimensions

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.metrics.estimates import DocumentBootstrap
    from sparsescope.models.structure.sites import Site

ENERGY_SHARES = (0.9, 0.99)


def bounds_of(
    params: ActivationSparsityParams,
    context: Context,
    sites: tuple[Site, ...],
    metrics: list[str],
    sums: np.ndarray,
    counts: np.ndarray,
    draws: DocumentBootstrap,
) -> list[dict[str, Any]]:
    """Rows of ``upper_bounds`` for each rule and scheme.

    Args:
        params: Parameters of the analysis.
        context: Subject and corpus.
        sites: Measured sites, [L].
        metrics: Metric ids, [S].
        sums: [C, L, S] statistics summed over the tokens of each document.
        counts: [C, L, S] tokens.
        draws: Resamples of the documents.

    Returns:
        Nothing where no hidden layer of an MLP was measured.
    """
    hidden = [
        index
        for index, site in enumerate(sites)
        if site.role.endswith("hook_post") and counts[:, index, 0].any()
    ]
    if not hidden:
        return []
    model = read_dimensions(context.subject)
    layers = sorted({sites[index].layer for index in hidden})
    width = np.array([sites[index].width for index in hidden], dtype=float)
    # [layer, site]
    member = np.array([[sites[index].layer == layer for index in hidden] for layer in layers], dtype=float)
    attended = default_attended(model, context.corpus.context) if params.attended is None else params.attended
    documents = int((counts[:, hidden, 0].sum(1) > 0).sum())
    rows = []
    for rule, metric in _rules(params):
        column = metrics.index(metric)
        active = (sums[:, hidden, column] * width) @ member.T  # [C, layer], units active, added over tokens
        running = (counts[:, hidden, column] * width) @ member.T
        measured = (active.sum(0) / running.sum(0), draws.replicates(active, running))
        for scheme in schemes_of(model):
            assumptions = Assumptions(scheme, attended, model.bytes_per_weight)
            rows += bound_rows(rule, model, layers, *measured, assumptions, draws, documents)
    return rows


def _rules(params: ActivationSparsityParams) -> list[tuple[str, str]]:
    """Names of rules with their metric ids: exact zeros, and the energy sets of large shares."""
    wanted = [share for share in params.shares if share in ENERGY_SHARES] or params.shares[-1:]
    names = [percent_name(share) for share in wanted]
    return [
        ("nonzero", "density_nonzero"),
        *((f"energy {name} %", f"density_energy_{name}") for name in names),
    ]

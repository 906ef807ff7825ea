"""Upper bounds on what a measured density could save, as table rows with intervals.

Shared by the analyses that measure densities. A bound is linear in the densities of the layers, so its
interval comes from the same resamples of documents. Shapes: L layers, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from sparsescope.core.columns import Column
from sparsescope.core.tables import with_interval
from sparsescope.metrics.bounds import (
    SCHEMES,
    Assumptions,
    ModelDimensions,
    Scheme,
    amdahl_bound,
    upper_bounds,
)
from sparsescope.metrics.estimates import DocumentBootstrap

_SAVED = Column(
    "saved_model", "fraction", "Upper bound on the share of the cost of the whole model that is saved."
)
COLUMNS: tuple[Column, ...] = (
    Column(
        "rule",
        "label",
        "Which units count as active: 'nonzero' (skipping the others changes nothing), or the smallest set "
        "with a share of the energy (skipping the others changes the output).",
    ),
    Column("scheme", "label", "When the active units are known; see the assumptions."),
    Column("quantity", "label", "What is counted: FLOPs (2 for a multiply-add) or weight bytes read."),
    Column("together", "count", "Tokens that are decoded for one reading of the weights."),
    Column(
        "density",
        "fraction",
        "Share of hidden units that are active on a token, or on any of the tokens together.",
    ),
    Column("dense", "value", "Cost of one decoded token of the dense model, in the quantity of the row."),
    Column("mlp_share", "fraction", "Share of the measured MLPs in it."),
    Column("saved_mlp", "fraction", "Upper bound on the share of the cost of these MLPs that is saved."),
    *with_interval(_SAVED, clause=" of saved_model"),
    Column(
        "amdahl", "value", "1 / (1 - saved_model): how many times smaller the count can get. It is no speed."
    ),
    Column("attended", "value", "Assumed mean number of attended positions.", "tokens"),
    Column("bytes_per_weight", "value", "Assumed size of a stored weight.", "bytes"),
    Column("assumptions", "label", "Everything that the bound rests on."),
    Column("layers", "count", "Layers whose density was measured; the others count as dense."),
    Column("documents", "count", "Documents behind the densities."),
)


def schemes_of(model: ModelDimensions) -> tuple[Scheme, ...]:
    """The schemes that differ: with two matrices, skipping all after the first is skipping the second."""
    return SCHEMES if any(layer.gated for layer in model.layers) else SCHEMES[1:]


def default_attended(model: ModelDimensions, context: int) -> float:
    """Mean attended length where nobody says: half of the context of a causal model, all of it else."""
    return context / 2 if model.causal else float(context)


def bound_rows(
    rule: str,
    model: ModelDimensions,
    layers: Sequence[int],
    densities: np.ndarray,
    replicates: np.ndarray,
    assumptions: Assumptions,
    draws: DocumentBootstrap,
    documents: int,
) -> list[dict[str, Any]]:
    """Rows of ``COLUMNS`` for one rule and one set of assumptions.

    Args:
        rule: Name of the rule.
        model: Shapes.
        layers: Measured layers, [L].
        densities: Their densities, [L]; of the union where ``assumptions.together`` is more than one.
        replicates: The same in each resample, [B, L]; NaN where a resample has no token of a layer.
        assumptions: What is assumed. With ``together`` more than one only the bytes are bounded: the
            arithmetic is that of each token.
        draws: Of the replicates; gives the interval.
        documents: Number of documents.
    """
    a = assumptions
    dense, saving = _coefficients(model, tuple(layers), a)
    ideal = _coefficients(
        model,
        tuple(layers),
        Assumptions("ideal predictor", a.attended, a.bytes_per_weight, together=a.together),
    )
    rows = []
    for index, quantity in enumerate(("FLOPs", "weight bytes")):
        if a.together > 1 and quantity == "FLOPs":
            continue
        fixed, weight = saving[index, 0].sum(), saving[index, 1]
        unit = ideal[1][index, 1]
        saved = float(fixed + (1 - densities) @ weight)
        low, high = map(float, draws.ends(fixed + (1 - replicates) @ weight, documents))
        share = float(unit.sum())
        rows.append(
            {
                "rule": rule,
                "scheme": a.scheme,
                "quantity": quantity,
                "together": a.together,
                "density": float(densities @ unit / share) if share else float("nan"),
                "dense": dense[index],
                "mlp_share": share,
                "saved_mlp": saved / share if share else float("nan"),
                "saved_model": saved,
                "low": low,
                "high": high,
                "amdahl": amdahl_bound(1.0, saved),
                "attended": a.attended,
                "bytes_per_weight": a.bytes_per_weight,
                "assumptions": a.text,
                "layers": len(layers),
                "documents": documents,
            }
        )
    return rows


@cache
def _coefficients(
    model: ModelDimensions, layers: tuple[int, ...], assumptions: Assumptions
) -> tuple[tuple[float, float], np.ndarray]:
    """What each layer saves: cost of the dense model, and [quantity, 2, L] shares of it.

    The first is saved when all units of the layer are active (by inputs, or less than 0 for a predictor), the
    second is saved in addition when none is; between them the bound is linear.
    """
    full = [upper_bounds(model, {layer: 1.0}, assumptions, {layer: 1.0}) for layer in layers]
    empty = [upper_bounds(model, {layer: 0.0}, assumptions, {layer: 0.0}) for layer in layers]
    ends = np.array(
        [[[both[index].saved_model for both in bounds] for bounds in (full, empty)] for index in range(2)]
    )
    return (full[0][0].dense, full[0][1].dense), np.stack([ends[:, 0], ends[:, 1] - ends[:, 0]], axis=1)

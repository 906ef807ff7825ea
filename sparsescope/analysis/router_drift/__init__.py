"""How routers move over training, read without their models: rows of a router against those at the end.

Nothing but the router matrices of each checkpoint is read (``models.formats.router_rows``): 4 MB of each
revision of OLMoE-1B-7B. Rows are taken less the mean row of their layer, since softmax does not see what all
rows share. Cosines with the row of the same expert at the last checkpoint and at the one before stand beside
the largest with the row of another expert: where both are alike, an expert is not the one of before. (A mean
over other experts says nothing, since rows less their mean add up to zero.) What tokens choose needs the
model: ``moe_routing_over_training``.
Shapes: T checkpoints, L layers, E experts, d model width.
"""

from __future__ import annotations

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import LAYER

_STEP = Column("step", "step", "Optimizer step of the checkpoint.")


class RouterDriftParams(Params):
    """Parameters of ``router_drift``: it has none."""


TABLES: dict[str, tuple[Column, ...]] = {
    "rows": (
        _STEP,
        LAYER,
        Column(
            "cosine", "value", "Cosine of a row and that of the same expert at the end, mean over experts."
        ),
        Column("low", "value", "5th percentile over experts; a range, not an interval.", low_of="cosine"),
        Column("high", "value", "95th percentile over experts.", high_of="cosine"),
        Column(
            "other", "value", "Largest cosine with the row of another expert at the end, mean over experts."
        ),
        Column("previous", "value", "Mean cosine with the row of the same expert one checkpoint before."),
        Column("norm", "value", "Mean norm of a row, less the mean row."),
        Column("common", "fraction", "Share of the squared norm of all rows in the mean row."),
        Column("alike", "value", "Mean absolute cosine of the rows of two experts; 1 / (E - 1) at least."),
        Column(
            "rank", "value", "Effective rank exp(H(s / sum s)) of the rows less their mean, at most E - 1."
        ),
        Column("experts", "count", "Experts."),
    ),
}

ANALYSIS = Analysis(
    name="router_drift",
    place=117,
    version="1",
    title="Router drift",
    summary="When the rows of routers settle, from the routers alone: no model is loaded.",
    params=RouterDriftParams,
    compute="sparsescope.analysis.router_drift.compute",
    view_module="sparsescope.analysis.router_drift.views",
    views=(
        View(
            "drift",
            "When router rows settle",
            "Cosine of the row of an expert with its row at the last checkpoint. Thin lines: layers, with "
            "the "
            "range over experts. Thick: their mean. Dotted: the nearest row of another expert. A learning "
            "rate "
            "that falls slows rows whatever is learned.",
            table="rows",
            formula="cos(v_e(step), v_e(last)), v_e less the mean row of the layer",
        ),
        View(
            "geometry",
            "Norms, ranks and likeness of rows",
            "Mean norm of a row, effective rank of the router, and mean absolute cosine of the rows of two "
            "experts (1 / (E - 1) where they are as far apart as rows that add up to zero can be). What all "
            "rows "
            "share, which softmax does not see, is the column common.",
            table="rows",
            formula="||v_e||;  exp(H(s / sum s));  |cos(v_e, v_f)|",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.router_drift.statements",
    headline=("early_cosine", "bytes_read"),
    inputs=("routers",),
    unit="checkpoints",
)

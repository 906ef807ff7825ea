"""Figures of ``sparse_inference``: functions of the stored result that say their finding in the title."""

from sparsescope.analysis.sparse_inference.views.bytes_left import accounting
from sparsescope.analysis.sparse_inference.views.inputs import atlas, per_matrix, tokens, unions
from sparsescope.analysis.sparse_inference.views.judged import comparisons, divergence, usable_range
from sparsescope.analysis.sparse_inference.views.quality_curves import quality

__all__ = [
    "accounting",
    "atlas",
    "comparisons",
    "divergence",
    "per_matrix",
    "quality",
    "tokens",
    "unions",
    "usable_range",
]

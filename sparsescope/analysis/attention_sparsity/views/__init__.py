"""Figures of ``attention_sparsity``: functions of the stored result that say their finding in the title."""

from sparsescope.analysis.attention_sparsity.views.heads import entropy_grid, sink_grid
from sparsescope.analysis.attention_sparsity.views.loss_with_fewer_keys import dose_response
from sparsescope.analysis.attention_sparsity.views.places import mass_profile, structure
from sparsescope.analysis.attention_sparsity.views.rows import coverage, entropy_by_length, output_error

__all__ = [
    "coverage",
    "dose_response",
    "entropy_by_length",
    "entropy_grid",
    "mass_profile",
    "output_error",
    "sink_grid",
    "structure",
]

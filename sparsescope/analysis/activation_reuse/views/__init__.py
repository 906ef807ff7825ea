"""Figures of ``activation_reuse``: functions of the stored result that say their finding in the title.

The rule 'nonzero' is drawn only where exact zeros say something (ReLU and its kin).
"""

from sparsescope.analysis.activation_reuse.views.chunks import aggregated, union_density, upper_bounds
from sparsescope.analysis.activation_reuse.views.units import lorenz, neighbors

__all__ = ["aggregated", "lorenz", "neighbors", "union_density", "upper_bounds"]

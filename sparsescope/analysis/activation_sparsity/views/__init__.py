"""Figures of ``activation_sparsity``: functions of the stored result that say their finding in the title.

Metric ids in the tables: ``density_nonzero``, ``density_l1_<p>`` and ``density_energy_<p>`` (smallest set of
units that holds p percent of the L1 norm or of the energy), ``hoyer``, ``gini``, ``pr2``, ``pr4``,
``entropy_number``, ``kurtosis``, ``treves_rolls``. Where a layer has experts, lines are medians
over the experts (``viz.layers``).
"""

from sparsescope.analysis.activation_sparsity.views.densities import concentration, per_layer, token_spread
from sparsescope.analysis.activation_sparsity.views.sparseness import lifetime, upper_bounds
from sparsescope.analysis.activation_sparsity.views.text import by_domain, by_position
from sparsescope.analysis.activation_sparsity.views.units import frequency, unit_use

__all__ = [
    "by_domain",
    "by_position",
    "concentration",
    "frequency",
    "lifetime",
    "per_layer",
    "token_spread",
    "unit_use",
    "upper_bounds",
]

"""Figures of ``moe_routing``: functions of the stored result that say their finding in the title."""

from sparsescope.analysis.moe_routing.views.domains import domains, specialization
from sparsescope.analysis.moe_routing.views.experts import coactivation, load, similarity
from sparsescope.analysis.moe_routing.views.graph import coactivation_graph
from sparsescope.analysis.moe_routing.views.in_order import cache, chunk_sparsity, repetition, token_experts
from sparsescope.analysis.moe_routing.views.taken_away import ablation_matrix, pruning

__all__ = [
    "ablation_matrix",
    "cache",
    "chunk_sparsity",
    "coactivation",
    "coactivation_graph",
    "domains",
    "load",
    "pruning",
    "repetition",
    "similarity",
    "specialization",
    "token_experts",
]

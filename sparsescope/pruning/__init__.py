"""Pruning: set weights of a trained model to zero, by six criteria, any pattern and any allocation.

``prune`` gives a new subject and its masks; ``save_pruned`` writes a plain model folder.
"""

from sparsescope.pruning.allocation import ATP, ERK, OWL, Allocation, Global, Uniform
from sparsescope.pruning.criteria import Criterion, criteria
from sparsescope.pruning.masks import MaskSet, Overlap, PackedMask, overlap
from sparsescope.pruning.patterns import NM, Blocks, Rows
from sparsescope.pruning.pruner import prune

__all__ = [
    "ATP",
    "ERK",
    "NM",
    "OWL",
    "Allocation",
    "Blocks",
    "Criterion",
    "Global",
    "MaskSet",
    "Overlap",
    "PackedMask",
    "Rows",
    "Uniform",
    "criteria",
    "overlap",
    "prune",
]

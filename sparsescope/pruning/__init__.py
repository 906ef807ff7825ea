"""Pruning: set weights of a trained model to zero, by any criterion, pattern and allocation.

``prune`` gives a new subject and its masks, ``save_pruned`` writes both as a plain model folder, ``describe``
and ``compare`` look at zeros, ``read_masks`` takes those of other tools. Names are loaded when they are first
used: records of criteria, patterns and allocations need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsescope.core.proofs import Proof as Proof
    from sparsescope.pruning.allocation import ATP as ATP
    from sparsescope.pruning.allocation import ERK as ERK
    from sparsescope.pruning.allocation import OWL as OWL
    from sparsescope.pruning.allocation import Allocation as Allocation
    from sparsescope.pruning.allocation import Global as Global
    from sparsescope.pruning.allocation import Uniform as Uniform
    from sparsescope.pruning.criteria import Criterion as Criterion
    from sparsescope.pruning.folder import SavedFolder as SavedFolder
    from sparsescope.pruning.folder import save_pruned as save_pruned
    from sparsescope.pruning.foreign import read_masks as read_masks
    from sparsescope.pruning.masks import MaskSet as MaskSet
    from sparsescope.pruning.masks import Overlap as Overlap
    from sparsescope.pruning.masks import PackedMask as PackedMask
    from sparsescope.pruning.masks import overlap as overlap
    from sparsescope.pruning.patterns import NM as NM
    from sparsescope.pruning.patterns import Blocks as Blocks
    from sparsescope.pruning.patterns import Rows as Rows
    from sparsescope.pruning.proof import prove_folder as prove_folder
    from sparsescope.pruning.pruner import prune as prune
    from sparsescope.pruning.zeros import ZeroChange as ZeroChange
    from sparsescope.pruning.zeros import Zeros as Zeros
    from sparsescope.pruning.zeros import compare as compare
    from sparsescope.pruning.zeros import describe as describe

_HOMES = {
    "allocation": ("ATP", "ERK", "OWL", "Allocation", "Global", "Uniform"),
    "criteria": ("Criterion",),
    "folder": ("SavedFolder", "save_pruned"),
    "foreign": ("read_masks",),
    "masks": ("MaskSet", "Overlap", "PackedMask", "overlap"),
    "patterns": ("NM", "Blocks", "Rows"),
    "proof": ("Proof", "prove_folder"),
    "pruner": ("prune",),
    "zeros": ("ZeroChange", "Zeros", "compare", "describe"),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparsescope.pruning' has no attribute {name!r}")
    return getattr(import_module(f"sparsescope.pruning.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})

"""Sparse-activation inference: which inputs of its matrices a model can do without, token by token.

``sparsify`` gives a new subject that masks what its matrices read, ``Calibration`` keeps the masks as an
artifact, ``account`` says what bytes and operations are left. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsescope.inference.accounting import account as account
    from sparsescope.inference.accounting import ceiling as ceiling
    from sparsescope.inference.accounting import inventory as inventory
    from sparsescope.inference.calibration import Calibration as Calibration
    from sparsescope.inference.calibration import calibrate as calibrate
    from sparsescope.inference.calibrator import Calibrator as Calibrator
    from sparsescope.inference.masks import Mask as Mask
    from sparsescope.inference.methods import METHODS as METHODS
    from sparsescope.inference.prefix import PrefixPolicy as PrefixPolicy
    from sparsescope.inference.sparsifier import sparsify as sparsify

_HOMES = {
    "accounting": ("account", "ceiling", "inventory"),
    "calibration": ("Calibration", "calibrate"),
    "calibrator": ("Calibrator",),
    "masks": ("Mask",),
    "methods": ("METHODS",),
    "prefix": ("PrefixPolicy",),
    "sparsifier": ("sparsify",),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparsescope.inference' has no attribute {name!r}")
    return getattr(import_module(f"sparsescope.inference.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})

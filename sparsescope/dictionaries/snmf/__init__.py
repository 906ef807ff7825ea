"""SNMF: semi-nonnegative factorization of activations into few-neuron features and non-negative codes.

Names are loaded when they are first used: importing this package imports neither torch nor scikit-learn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsescope.dictionaries.snmf.adapter import SNMFDictionary as SNMFDictionary
    from sparsescope.dictionaries.snmf.estimator import SNMF as SNMF
    from sparsescope.dictionaries.snmf.hierarchy import fit_hierarchy as fit_hierarchy
    from sparsescope.dictionaries.snmf.imported import import_factors as import_factors
    from sparsescope.dictionaries.snmf.sharing import neuron_sharing as neuron_sharing
    from sparsescope.dictionaries.snmf.stability import seed_stability as seed_stability
    from sparsescope.dictionaries.snmf.vocabulary import project_vocab as project_vocab

_PUBLIC = {
    "SNMF": "estimator",
    "SNMFDictionary": "adapter",
    "fit_hierarchy": "hierarchy",
    "import_factors": "imported",
    "neuron_sharing": "sharing",
    "project_vocab": "vocabulary",
    "seed_stability": "stability",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__

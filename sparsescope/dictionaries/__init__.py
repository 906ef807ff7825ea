"""Dictionaries: features that describe the activations of a site.

``SNMF`` factorises activations of an MLP into groups of neurons; the sparse autoencoders differ by the rule
that says which features are active; ``train`` trains several on one stream of activations;
``load_dictionary`` and ``save_saelens`` exchange them with other tools. Names are loaded when they are
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsescope.dictionaries.architectures import ARCHITECTURES as ARCHITECTURES
    from sparsescope.dictionaries.autoencoder import SparseAutoencoder as SparseAutoencoder
    from sparsescope.dictionaries.base import Dictionary as Dictionary
    from sparsescope.dictionaries.baselines import neuron_basis as neuron_basis
    from sparsescope.dictionaries.baselines import principal_components as principal_components
    from sparsescope.dictionaries.baselines import random_directions as random_directions
    from sparsescope.dictionaries.choice import BatchTopKSAE as BatchTopKSAE
    from sparsescope.dictionaries.choice import FeatureChoiceSAE as FeatureChoiceSAE
    from sparsescope.dictionaries.choice import MutualChoiceSAE as MutualChoiceSAE
    from sparsescope.dictionaries.codes import SparseCodes as SparseCodes
    from sparsescope.dictionaries.gated import GatedSAE as GatedSAE
    from sparsescope.dictionaries.interchange import load_dictionary as load_dictionary
    from sparsescope.dictionaries.interchange import load_saelens as load_saelens
    from sparsescope.dictionaries.interchange import save_saelens as save_saelens
    from sparsescope.dictionaries.jumprelu import JumpReLUSAE as JumpReLUSAE
    from sparsescope.dictionaries.matryoshka import MatryoshkaSAE as MatryoshkaSAE
    from sparsescope.dictionaries.relu import ReLUSAE as ReLUSAE
    from sparsescope.dictionaries.snmf import SNMF as SNMF
    from sparsescope.dictionaries.thresholds import set_thresholds as set_thresholds
    from sparsescope.dictionaries.topk import TopKSAE as TopKSAE
    from sparsescope.dictionaries.train import train as train
    from sparsescope.dictionaries.transcoder import Transcoder as Transcoder

_HOMES = {
    "architectures": ("ARCHITECTURES",),
    "autoencoder": ("SparseAutoencoder",),
    "base": ("Dictionary",),
    "baselines": ("neuron_basis", "principal_components", "random_directions"),
    "choice": ("BatchTopKSAE", "FeatureChoiceSAE", "MutualChoiceSAE"),
    "codes": ("SparseCodes",),
    "gated": ("GatedSAE",),
    "interchange": ("load_dictionary", "load_saelens", "save_saelens"),
    "jumprelu": ("JumpReLUSAE",),
    "matryoshka": ("MatryoshkaSAE",),
    "relu": ("ReLUSAE",),
    "snmf": ("SNMF",),
    "thresholds": ("set_thresholds",),
    "topk": ("TopKSAE",),
    "train": ("train",),
    "transcoder": ("Transcoder",),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparsescope.dictionaries' has no attribute {name!r}")
    return getattr(import_module(f"sparsescope.dictionaries.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})

"""The model under study: loading, identity, sites by role, parameters by role, checks.

``load`` and ``wrap`` make a ``Subject``; ``sites`` says which hook names exist; ``attach``
puts capture hooks on a model for the length of a ``with`` block. Nothing here ever changes
the model. Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsescope.models.catalog import registered_subjects as registered_subjects
    from sparsescope.models.doctor import examine as examine
    from sparsescope.models.entries import SubjectEntry as SubjectEntry
    from sparsescope.models.sources import load as load
    from sparsescope.models.sources import wrap as wrap
    from sparsescope.models.structure.sites import Site as Site
    from sparsescope.models.structure.sites import attach as attach
    from sparsescope.models.subject import Subject as Subject
    from sparsescope.models.subject import SubjectIdentity as SubjectIdentity
    from sparsescope.models.variants import VariantKind as VariantKind
    from sparsescope.models.variants import make_variant as make_variant
    from sparsescope.models.variants import registered_variants as registered_variants

_HOMES = {
    "SubjectEntry": "entries",
    "registered_subjects": "catalog",
    "examine": "doctor",
    "Site": "structure.sites",
    "attach": "structure.sites",
    "load": "sources",
    "wrap": "sources",
    "Subject": "subject",
    "SubjectIdentity": "subject",
    "VariantKind": "variants",
    "make_variant": "variants",
    "registered_variants": "variants",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that listing names stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

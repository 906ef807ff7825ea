"""What a variant declares of a model beyond its weights, and what readers of its results are told.

A declaration is about the very objects that were in the model: another hook of the same name in the same
place is not declared. A copy of the model has copies of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SpecError
from sparsescope.models.identity import foreign_hooks
from sparsescope.models.provenance.beyond_weights import Found, scan, sentences

if TYPE_CHECKING:
    from sparsescope.core.result import Severity


def undeclared(model: Any, declared: Sequence[Found]) -> list[Found]:
    """What no hash covers, without what was declared."""
    return [one for one in scan(model).unhashed if not any(one.same(known) for known in declared)]


def carried_over(declared: Sequence[Found], strays: Sequence[Found], copied: Any) -> tuple[Found, ...]:
    """What of a copied model is declared because the original of it is.

    Args:
        declared: What was declared of the original.
        strays: What of it was not; the copy of that is not declared either.
        copied: The copy.
    """
    known = {one.key for one in declared} - {one.key for one in strays}
    return tuple(one for one in scan(copied).unhashed if one.key in known)


def same_beyond(model: Any, other: Any) -> bool:
    """Whether two models have hooks and methods of the same names in the same places."""
    found, before = ([one.key for one in scan(each).unhashed] for each in (model, other))
    return found == before and foreign_hooks(model) == foreign_hooks(other)


def refuse_undeclared(model: Any, found: Sequence[Found], where: str) -> None:
    """Refuse a variant that does not say what it adds, where it adds something.

    Raises:
        SpecError: It has hooks or methods of its own.
    """
    if found or foreign_hooks(model):
        raise SpecError(
            "a variant with hooks or methods of its own must say what it adds",
            where=where,
            allowed="a hash of all that they compute with: thresholds, masks, factors",
            got="an empty one" + "".join(f"; {one}" for one in sentences(found)),
            next_step="without it two variants with other contents would be one run",
        )


def library_notes(model: Any) -> tuple[tuple[Severity, str], ...]:
    """Name what libraries put into a model, as notes of every result."""
    found = sentences(scan(model).libraries)
    if not found:
        return ()
    said = (
        f"Libraries changed how this model computes: {'; '.join(found)}. What they hold is taken as a matter "
        "of where and how it computes, and is no part of its identity."
    )
    return (("info", said),)

"""What ``verify`` and ``doctor`` looked at, one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Proof:
    """One thing that was looked at.

    Attributes:
        what: What must hold: of a pruned model ``masks``, ``count``, ``pattern``, ``zeros``, ``files`` or
            ``model``; of a dictionary ``files``, ``site``, ``L0`` or ``error``.
        ok: Whether it does.
        detail: What was seen.
    """

    what: str
    ok: bool
    detail: str

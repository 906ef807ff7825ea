"""What a reader of any result of a model has to know: that it was pruned, matrices
without a role, patches, compiled modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsescope.core.result import Severity
from sparsescope.models.entries import PRUNED_FROM
from sparsescope.models.provenance.declared import library_notes
from sparsescope.models.structure.applied import notes as applied_notes
from sparsescope.models.structure.coverage import uncovered_sentence
from sparsescope.models.structure.parameters import ParameterSite
from sparsescope.models.structure.roles import Block
from sparsescope.models.structure.visits import compiled_notes


def notes_of(
    model: Any, blocks: Sequence[Block], parameters: Sequence[ParameterSite], origin: str = ""
) -> tuple[tuple[Severity, str], ...]:
    """Return pairs of severity and sentence.

    Args:
        model: The HF model.
        blocks: Its blocks.
        parameters: Every matrix that has a role.
        origin: Precision of origin of its weights.
    """
    without_role = uncovered_sentence(model, blocks)
    said = [text for text in (_pruned_sentence(origin), without_role) if text is not None]
    first: list[tuple[Severity, str]] = [("info", text) for text in said]
    return (*first, *library_notes(model), *applied_notes(model, parameters), *compiled_notes(model))


def _pruned_sentence(origin: str) -> str | None:
    """Say that weights are those of a folder of a pruned model; None where they are not."""
    stored, mark, before = origin.partition(PRUNED_FROM)
    if not mark:
        return None
    return (
        f"The weights are those of a pruned model: stored as {stored}, and before any was set to zero as "
        f"{before.removesuffix(')')}; sparsity.json in its folder says how it was pruned."
    )

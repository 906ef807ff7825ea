"""What a reader of any result of a model has to know: matrices without a role, patches, compiled modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsescope.core.result import Severity
from sparsescope.models.declared import library_notes
from sparsescope.models.structure.applied import notes as applied_notes
from sparsescope.models.structure.coverage import uncovered_sentence
from sparsescope.models.structure.parameters import ParameterSite
from sparsescope.models.structure.roles import Block
from sparsescope.models.structure.visits import compiled_notes


def notes_of(
    model: Any, blocks: Sequence[Block], parameters: Sequence[ParameterSite]
) -> tuple[tuple[Severity, str], ...]:
    """Return pairs of severity and sentence.

    Args:
        model: The HF model.
        blocks: Its blocks.
        parameters: Every matrix that has a role.
    """
    without_role = uncovered_sentence(model, blocks)
    coverage: list[tuple[Severity, str]] = [] if without_role is None else [("info", without_role)]
    return (*coverage, *library_notes(model), *applied_notes(model, parameters), *compiled_notes(model))

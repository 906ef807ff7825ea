"""What a folder that ``sparsescope prune`` wrote says of the precision that its weights had before.

The weights of such a folder are stored in one precision and come from another: of a pruned SmolLM2 from
``gguf:Q4_1``. Only folders with ``sparsity.json`` say it, so that the identity of every other one stays.
"""

from __future__ import annotations

import re
from pathlib import Path

from sparsescope.core.strict_json import parse
from sparsescope.models.entries import PRUNED_FROM

FILE = "sparsity.json"
_NAME = re.compile(r"[A-Za-z0-9_:+. ()-]{1,160}")  # a file that others wrote


def with_origin(stored: str, folder: Path) -> str:
    """Return the precision of origin of a folder: ``float32 (pruned from gguf:Q4_1)`` where it was pruned.

    Args:
        stored: Precision in which its weights are stored.
        folder: The folder.
    """
    path = folder / FILE
    if not path.is_file():
        return stored
    try:
        origin = parse(path.read_bytes())["facts"]["parent"]["origin_precision"]
    except (OSError, ValueError, KeyError, TypeError):
        origin = None
    known = isinstance(origin, str) and _NAME.fullmatch(origin)
    return f"{stored}{PRUNED_FROM}{origin if known else 'an unknown precision'})"

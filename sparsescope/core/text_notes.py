"""What a reader of any result has to know of the text: less than was asked for, documents left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsescope.core.result import Severity

_HARMLESS = "blank documents"  # leaving them out takes nothing away


def notes_of_text(described: Mapping[str, Any] | None) -> list[tuple[Severity, str]]:
    """Return what the description of a text gives cause to say, with how much it matters.

    It is made from what runs store, so older runs have it too.

    Args:
        described: ``TokenizedCorpus.describe()``, or what a stored run has of it; None without a text.
    """
    found = described or {}
    if "budget" not in found:
        return []  # nothing was read, or what a series carries: nothing was selected
    said: list[tuple[Severity, str]] = [
        ("info" if note.startswith(_HARMLESS) else "warning", _sentence(note))
        for note in map(str, found.get("notes") or ())
    ]
    twice, short = (found.get(key) or 0 for key in ("near_duplicates", "too_short"))
    if twice:
        what = "document nearly repeats another" if twice == 1 else "documents nearly repeat others"
        said.append(
            (
                "warning",
                f"{twice:,} {what}, left out of the text (Jaccard index of word 5-grams 0.8 or more); "
                "--keep-duplicates (in Python deduplicate=False) keeps what repeats.",
            )
        )
    if short:
        what = "document has" if short == 1 else "documents have"
        said.append(
            (
                "warning",
                f"{short:,} {what} fewer than {found.get('min_tokens')} tokens, left out of the text.",
            )
        )
    return said


def _sentence(note: str) -> str:
    """A note of a text as a sentence, large numbers in groups."""
    grouped = re.sub(r"\b\d{4,}\b", lambda number: f"{int(number[0]):,}", note)
    return f"{grouped[:1].upper()}{grouped[1:]}".rstrip(".") + "."

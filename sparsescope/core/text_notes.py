"""What a reader of any result has to know of the text: less than was asked for, documents left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def notes_of_text(described: Mapping[str, Any] | None) -> list[str]:
    """Return the warnings that the description of a text gives cause for.

    They are made from what runs store, so older runs have them too.

    Args:
        described: ``TokenizedCorpus.describe()``, or what a stored run has of it; None without a text.
    """
    found = described or {}
    if "budget" not in found:
        return []  # nothing was read, or what a series carries: nothing was selected
    said = [f"{note[:1].upper()}{note[1:]}".rstrip(".") + "." for note in map(str, found.get("notes") or ())]
    twice, short = (found.get(key) or 0 for key in ("near_duplicates", "too_short"))
    if twice:
        what = (
            "1 document nearly repeats another" if twice == 1 else f"{twice:,} documents nearly repeat others"
        )
        said.append(
            f"{what}, left out of the text (Jaccard index of word 5-grams 0.8 or more); --keep-duplicates "
            "(in Python deduplicate=False) keeps what repeats."
        )
    if short:
        what = "1 document has" if short == 1 else f"{short:,} documents have"
        said.append(f"{what} fewer than {found.get('min_tokens')} tokens, left out of the text.")
    return said

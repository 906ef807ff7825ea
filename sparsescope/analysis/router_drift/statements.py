"""What router drift shows, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, defined, said_value

TITLES = {
    "early_share": "Share of the training that is looked at",
    "early_cosine": "Cosine with the end, early",
    "early_other": "That of the nearest other expert",
    "rank_last": "Effective rank at the end",
    "alike_last": "Likeness of two experts",
    "bytes_read": "Read",
    "bytes_whole": "Bytes of the checkpoints",
}


def statements(result: Result) -> list[Statement]:
    """How early rows had settled, and what was read for it."""
    read, whole = (result.scalars[name] for name in ("bytes_read", "bytes_whole"))
    found = defined(result, "early_cosine", "early_other", "early_share")
    names = ["bytes_read", "bytes_whole"]
    text = ""
    if found is not None:
        text = (
            f"After {said_value(found[2])} of the training the row of an expert has a cosine of "
            f"{said_value(found[0])} with its row at the end, the nearest row of another expert "
            f"{said_value(found[1])}. "
        )
        names = ["early_cosine", "early_other", *names]
    text += f"For this {said_value(read)} of {said_value(whole)} of weights were read."
    return [Statement(text, "drift", tuple(names))]

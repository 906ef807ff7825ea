"""Checks of the arguments of ``corpus``, each with a message of its own.

They are checked before anything is read or downloaded, so that a slip costs no time. Whole numbers are wanted
strictly (no floats, no booleans): the arguments are part of the digest that names a run.
"""

from __future__ import annotations

from typing import Literal, get_args

from sparsescope.errors import SpecError

BosPolicy = Literal["auto", "always", "never"]


def check_arguments(
    tokens: int | None,
    seed: int,
    context: int | None,
    bos: str,
    min_tokens: int,
    max_document_tokens: int | None,
) -> None:
    """Raise SpecError for the first argument that is not valid."""
    # name, value, least value, whether None is allowed, message, hint
    rules: tuple[tuple[str, object, int | None, bool, str, str], ...] = (
        ("tokens", tokens, 1, True, "the token budget must be positive", "None takes all the text there is"),
        ("seed", seed, None, False, "the seed must be a whole number", "give an int, for example 0"),
        (
            "context",
            context,
            2,
            True,
            "the context must hold at least two tokens",
            "left out, it is what the model takes",
        ),
        ("min_tokens", min_tokens, 1, False, "min_tokens must be positive", "2 is the default"),
        (
            "max_document_tokens",
            max_document_tokens,
            1,
            True,
            "max_document_tokens must be positive",
            "leave it out",
        ),
    )
    for where, value, least, optional, what, next_step in rules:
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            allowed = ("an int" if least is None else f"an int >= {least}") + (" or None" if optional else "")
            raise SpecError(what, where=where, allowed=allowed, got=repr(value), next_step=next_step)
    if bos not in get_args(BosPolicy):
        next_step = "'auto' does what the tokenizer does by itself"
        raise SpecError(
            "unknown BOS policy", where="bos", allowed=get_args(BosPolicy), got=repr(bos), next_step=next_step
        )

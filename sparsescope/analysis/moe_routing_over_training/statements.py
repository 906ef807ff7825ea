"""What routing over training shows, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, said, said_value

TITLES = {
    "early_saturation": "Settled after a tenth of the training",
    "early_load_chance": "Settled by chance, at these loads",
    "early_token_chance": "Settled if token ids decided",
    "since_start": "Specialization since the start",
    "excess_last": "Specialization at the end",
    "against_shuffled": "Beyond shuffled routers",
    "load_cv_first": "Load CV at the start",
    "load_cv_last": "Load CV at the end",
    "documents": "Documents",
}


def statements(result: Result) -> list[Statement]:
    """Whether experts came to specialize, and how early the routers had settled."""
    return [*_specialization(result), *_saturation(result)]


def _specialization(result: Result) -> list[Statement]:
    found = defined(result, "since_start", "excess_last")
    if found is None:
        return []
    since, last = found
    ends = since.interval
    reading = (
        ""
        if ends is None
        else ": training made it"
        if ends.low > 0
        else ": training lowered it"
        if ends.high < 0
        else ": that training made any of it is not shown"
    )
    text = (
        f"At the last checkpoint the expert tells {said_value(last)} about the domain beyond chance where "
        f"the token is "
        f"known, {said(since)} more than at the first ({basis(since)}){reading}."
    )
    names = ["since_start", "excess_last"]
    beyond = defined(result, "against_shuffled")
    if beyond is not None:
        text += f" With shuffled routers the last checkpoint tells {said(beyond[0])} less."
        names.append("against_shuffled")
    return [Statement(text, "specialization", tuple(names))]


def _saturation(result: Result) -> list[Statement]:
    found = defined(result, "early_saturation", "early_load_chance")
    if found is None:
        return []
    early, load = found
    token = defined(result, "early_token_chance")
    beside = f", choices that know the token alone {said_value(token[0])}" if token is not None else ""
    text = (
        f"After about a tenth of the training, {said(early)} of the experts of a token are those of the end; "
        f"independent choices with these loads would share {said_value(load)}{beside}."
    )
    return [Statement(text, "saturation", ("early_saturation",))]

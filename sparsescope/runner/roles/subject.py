"""The role ``subject``: one model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.result import Severity
from sparsescope.errors import SpecError
from sparsescope.models.subject import Subject
from sparsescope.models.variants import split_name

if TYPE_CHECKING:
    from sparsescope.core.run_store import Store


def open(given: Any, opened: Mapping[str, tuple[Any, ...]], store: Store | None) -> Subject:
    """Return the subject that was given; a name is not loaded here, since how to load it is
    the caller's choice.

    Raises:
        SpecError: It is something else.
    """
    if isinstance(given, Subject):
        return given
    raise SpecError(
        "this analysis studies one model",
        where="ss.run(subject)",
        allowed="a Subject",
        got=f"{type(given).__name__} {str(given)[:80]!r}",
        next_step='give ss.load("NAME"), or one checkpoint: series.subject(step)',
    )


def identity(value: Subject) -> dict[str, Any]:
    """Everything of a model that a result depends on."""
    return value.identity.as_dict()


def capabilities(value: Subject) -> frozenset[str]:
    """See ``Subject.capabilities``."""
    return value.capabilities


def notes(value: Subject) -> tuple[tuple[Severity, str], ...]:
    """See ``Subject.notes``; they join every result."""
    return value.notes


def unstorable(value: Subject) -> tuple[str, ...]:
    """See ``Subject.unstorable``."""
    return value.unstorable


def words(value: Subject, opened: Mapping[str, tuple[Any, ...]], flag: str) -> list[str] | None:
    """Options that load it again; None for a model in memory. Of a path of this machine only the
    last part is shown.
    """
    if not value.unchanged:
        return None
    found = value.identity.as_dict()
    _, place = split_name(str(value.source))
    # FOLDER@step-N
    local = Path(place).exists() or ("@" in place and Path(place.rpartition("@")[0]).exists())
    variants, bare = split_name(str(found["id"]))
    options = [
        flag,
        f"{variants}PATH/TO/{bare}" if local else str(found["id"]),
        "--dtype",
        str(found["dtype"]),
    ]
    options += ["--attention", str(found["attn_implementation"])]
    options += ["--revision", str(found["revision"])] if found.get("revision") else []
    return options + (["--trust-remote-code"] if found.get("trust_remote_code") else [])


def python(value: Subject) -> str:
    """How it is given in Python."""
    return f"ss.load({value.id!r}, ...)" if value.unchanged else "ss.wrap(model, tokenizer)"

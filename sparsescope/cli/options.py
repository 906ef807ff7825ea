"""Checks of option values that Typer's types do not make. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from sparsescope.errors import SpecError


def home_folder(text: str | Path) -> Path:
    """Return the folder of runs that ``--home`` names; an empty one, as an unset variable gives it, is refused."""
    if not str(text).strip() or "\0" in str(text):
        raise SpecError(
            "the folder of runs is empty", where="--home", allowed="a path", got=repr(str(text)),
            next_step="leave --home out for $SPARSESCOPE_HOME or ./runs, or write . for this folder",
        )  # fmt: skip
    return Path(text)

"""The exceptions that sparsescope raises on purpose.

Every message answers five questions: what went wrong, where, what is allowed, what was
got, and what to do next. The command line prints the message on one screen and exits
with code 1; anything that is not a ``SparsescopeError`` is a bug and exits with code 3.
"""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST_PART = 800


class SparsescopeError(Exception):
    """Base class. Build it from named parts so that no part is forgotten.

    Args:
        what: One sentence that says what went wrong.
        where: The field, file or site concerned.
        allowed: What would have been accepted.
        got: What was given.
        next_step: What the user can do now.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        allowed: str | Iterable[str] | None = None,
        got: object = None,
        next_step: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.allowed = allowed if allowed is None or isinstance(allowed, str) else ", ".join(allowed)
        self.got = None if got is None else str(got)
        self.next_step = next_step
        super().__init__(self.message())

    def message(self) -> str:
        """Return the parts that are present, one per line."""
        lines = [self.what]
        for label, part in (
            ("where", self.where),
            ("allowed", self.allowed),
            ("got", self.got),
            ("next", self.next_step),
        ):
            if part:
                lines.append(f"  {label + ':':9}{_one_line(part)}")
        return "\n".join(lines)


class SpecError(SparsescopeError):
    """A parameter, name or study file is not valid."""


class SubjectError(SparsescopeError):
    """A model, tokenizer, corpus or site cannot be used as asked."""


class ArtifactError(SparsescopeError):
    """A stored result cannot be read or written.

    Attributes:
        result: The result that could not be stored, so that it is not lost; None when reading.
    """

    result: object = None


class KernelError(SparsescopeError):
    """A kernel or backend cannot run, or gave a wrong answer."""


class DependencyError(SparsescopeError):
    """A package, file or service that is needed is missing."""


def _one_line(part: str) -> str:
    """A part of a message on one line, cut where it would fill the screen; the attributes keep all of it."""
    text = " ".join(part.splitlines())
    return text if len(text) <= _LONGEST_PART else text[:_LONGEST_PART] + " ..."


def near_matches(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return the known names closest to ``name``, best first (Jaro-Winkler, rapidfuzz)."""
    from rapidfuzz import process
    from rapidfuzz.distance import JaroWinkler

    found = process.extract(name, list(known), scorer=JaroWinkler.similarity, limit=limit, score_cutoff=0.6)
    return [match for match, _, _ in found]


def unknown_name(
    kind: str,
    name: str,
    known: Iterable[str],
    *,
    next_step: str,
    error: type[SparsescopeError] = SpecError,
) -> SparsescopeError:
    """Build the error for a name that is not registered, with near matches.

    Args:
        kind: What the name should have named, for example ``"analysis"``.
        name: The name that was given.
        known: Every name that would have worked.
        next_step: The command or call that lists the names.
        error: The exception class to build.

    Returns:
        The exception, to be raised by the caller.
    """
    known = sorted(known)
    near = near_matches(name, known)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return error(
        f"unknown {kind} {name!r}",
        allowed=known if len(known) <= 40 else f"{len(known)} names",
        got=repr(name),
        next_step=hint + next_step,
    )

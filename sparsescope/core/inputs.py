"""What an analysis reads, as it is declared: roles, and what is known of an input before it is opened.

A role is a kind of input: ``subject``, ``series``, ``text``, or one that a package adds. An analysis names
the roles that it reads; ``series?`` may be absent, ``dictionary*`` may come several times (once or more),
``dictionary*?`` any number of times. What a role is, how it is given and how it is opened says its record in
``runner/inputs.py``; nothing here opens anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sparsescope.errors import SpecError

ROLE_NAME = r"[a-z][a-z0-9_]{0,31}"
_DECLARED = re.compile(rf"({ROLE_NAME})(\*?)(\??)")
NOT_KNOWN = "not known until loaded"


@dataclass(frozen=True, slots=True)
class Input:
    """One declared input of an analysis.

    Attributes:
        role: Name of the role.
        repeated: Whether there may be several.
        optional: Whether there may be none.
    """

    role: str
    repeated: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one input without opening it.

    Attributes:
        role: Its role.
        name: What it is called in messages.
        has: Capabilities that it certainly has.
        lacks: Capabilities that it certainly lacks.
        whole: Whether ``has`` is all that it has; otherwise the rest shows when it is loaded.
        needs: Capabilities that it needs from the inputs beside it: a text needs a tokenizer.
        sure: Whether the name means an input of this role; otherwise only opening it tells.
    """

    role: str
    name: str
    has: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    whole: bool = False
    needs: frozenset[str] = frozenset()
    sure: bool = True


def declared_inputs(inputs: Iterable[str]) -> tuple[Input, ...]:
    """Read a declaration such as ``("subject", "text", "dictionary*")``.

    Raises:
        SpecError: If one is written in another way, or two have the same role.
    """
    found: dict[str, Input] = {}
    for text in inputs:
        match = _DECLARED.fullmatch(text) if isinstance(text, str) else None
        if match is None or match[1] in found:
            raise SpecError(
                "an input is declared twice" if match else "an input is not declared as a role",
                where="Analysis.inputs",
                allowed='names of roles, each once, for example ("subject", "text", '
                '"dictionary*", "series?")',
                got=repr(text)[:80],
            )
        found[match[1]] = Input(match[1], bool(match[2]), bool(match[3]))
    return tuple(found.values())


def why_not(inputs: Iterable[Input], requires: frozenset[str], known: Iterable[Known]) -> str | None:
    """Say why an analysis does not fit what is there.

    Args:
        inputs: What the analysis reads.
        requires: Capabilities that its inputs must have, all together.
        known: What is there. More than the analysis reads does no harm.

    Returns:
        None if it fits, the reason if it does not, or ``NOT_KNOWN``.
    """
    by_role: dict[str, list[Known]] = {}
    for entry in known:
        by_role.setdefault(entry.role, []).append(entry)
    read: list[Known] = []
    for wanted in inputs:
        there = by_role.get(wanted.role, [])
        if not there and not wanted.optional:
            return f"it reads a {wanted.role.replace('_', ' ')}, and none is given"
        if len(there) > 1 and not wanted.repeated:
            return f"it reads one {wanted.role.replace('_', ' ')}, and {len(there)} are given"
        if wanted.optional:  # one that those before it cannot read is left, not missed
            before = frozenset[str]().union(*(entry.has for entry in read))
            there = [entry for entry in there if not _surely_missing(entry.needs - before, read)]
        read += there
    has = frozenset[str]().union(*(entry.has for entry in read))
    # What an input needs, it needs from those that it comes after: a text is read by the model before it.
    asked = [(requires, read), *((entry.needs, read[:place]) for place, entry in enumerate(read))]
    missing, names = set[str](), list[str]()
    for needs, givers in asked:
        if lacking := _surely_missing(needs - has, givers):
            missing |= lacking
            names += [entry.name for entry in givers if not entry.needs]
    if missing:
        whose = ", ".join(dict.fromkeys(names)) or "what is given"
        return f"it needs {', '.join(sorted(missing)).replace('_', ' ')}, and {whose} has none"
    return NOT_KNOWN if requires.union(*(entry.needs for entry in read)) - has else None


def _surely_missing(needs: frozenset[str], givers: list[Known]) -> set[str]:
    """What none of these can have."""
    return {need for need in needs if all(entry.whole or need in entry.lacks for entry in givers)}

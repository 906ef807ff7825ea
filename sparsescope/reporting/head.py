"""The head of a report: what was measured on which model and text, what was found, and how sure it is.

Statements are made when they are shown (``core/statements.py``). Here they get the place of their figure and
are cut into pieces, so that a page can set numbers bold and intervals grey; nothing in them is markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, said_value, statements_of

_INTERVAL = r"\[[^\[\]]*\]"
_BASIS = r"\((?:[^()]*, )?(?:n = [\d,]+ [a-z]+|no interval)(?:, [^()]*)?\)"


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement as a page shows it.

    Args:
        parts: Its text in pieces, each with ``"number"``, ``"interval"``, ``"basis"`` (what an interval
            rests on) or ``""``.
        anchor: Where its figure is; empty where there is none.
        figure: Title of the figure.
    """

    parts: list[tuple[str, str]]
    anchor: str
    figure: str


def findings_of(result: Result, figures: Mapping[str, tuple[str, str]]) -> list[Finding]:
    """What a result shows, each with its figure.

    Args:
        result: The result.
        figures: Anchor and title of the figure of every view that is drawn.
    """
    return [Finding(parts_of(s, result), *figures.get(s.view, ("", ""))) for s in statements_of(result)]


def parts_of(statement: Statement, result: Result) -> list[tuple[str, str]]:
    """Cut a sentence: the first appearance of each of its numbers, intervals and what they rest on, and
    the words between.
    """
    numbers = [
        re.escape(said_value(result.scalars[name])) for name in statement.scalars if name in result.scalars
    ]
    longest_first = "|".join(sorted(set(numbers), key=len, reverse=True))
    pattern = f"(?P<interval>{_INTERVAL})|(?P<basis>{_BASIS})" + (
        rf"|(?<![\w.,])(?P<number>{longest_first})(?!\w|[.,]\d)" if numbers else ""
    )
    parts: list[tuple[str, str]] = []
    seen: set[str] = set()
    at = 0
    for match in re.finditer(pattern, statement.text):
        kind = str(match.lastgroup)
        if kind == "number" and match[0] in seen:
            continue
        seen.add(match[0])
        parts += [(statement.text[at : match.start()], ""), (match[0], kind)]
        at = match.end()
    return [part for part in (*parts, (statement.text[at:], "")) if part[0]]


def measured(results: Sequence[Result], most: int = 8) -> list[str]:
    """What was measured: a line for each model, with the texts that it read; the name only where
    there are several. Of more than ``most`` models the first, and how many there are.
    """
    texts: dict[tuple[str, str], dict[str, None]] = {}
    for result in results:
        subject = result.provenance.get("subject") or {}
        found = texts.setdefault((result.about or "a model in memory", _model(subject)), {})
        found[_text(result.provenance.get("corpus") or {})] = None
    lines = []
    for (name, model), read in texts.items():
        parts = [model, *read] if len(texts) == 1 else [name, model, *read]
        lines.append(" · ".join(part for part in parts if part))
    lines = [line for line in lines if line]
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most:,} more"]


def _model(subject: Mapping[str, Any]) -> str:
    parts = [str(subject["architecture"])] if subject.get("architecture") else []
    if subject.get("n_parameters"):
        parts.append(f"{subject['n_parameters'] / 1e6:,.1f} M parameters")
    if subject.get("n_layers"):
        parts.append(f"{subject['n_layers']} layer{'s' if subject['n_layers'] != 1 else ''}")
    return ", ".join(parts)


def _text(corpus: Mapping[str, Any]) -> str:
    tokens, documents = (
        f"{corpus[key]:,} {key}" if isinstance(corpus.get(key), int) else ""
        for key in ("tokens", "documents")
    )
    text = f"{tokens} of {corpus.get('name', 'a text')}" if tokens else str(corpus.get("name", ""))
    return f"{text} in {documents}" if documents else text


def warnings_of(results: Sequence[Result]) -> list[str]:
    """What limits how sure the findings are: every warning once, also where several analyses word the
    same cause differently.
    """
    found: dict[str, str] = {}
    for note in (note for result in results for note in result.notes if note.severity != "info"):
        found.setdefault(note.message.partition(":")[0], note.message)
    return list(found.values())

"""From what a user names as a corpus to its documents: a registered name, a file, or texts in memory.

A string is a file if it ends in .txt, .jsonl or .parquet (or .txt.gz and the like) or holds a path
separator, whether or not that file exists; every other string is a registered name, or several joined by
``+``. So a file called ``kjv`` in the working folder never replaces the registered corpus.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsescope.activations.text.documents import Document
from sparsescope.activations.text.files import ENDS, plain_name, read_file
from sparsescope.activations.text.in_memory import documents_in_memory
from sparsescope.activations.text.registered import registered_corpora, registered_entries
from sparsescope.core.escaping import well_formed
from sparsescope.core.files import given_path
from sparsescope.errors import SpecError, SubjectError

_LONGEST_NAME = 1024
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_MOST_DOMAINS = 32767  # TokenBatch.domain is int16


@dataclass(frozen=True, slots=True)
class Resolved:
    """The documents of a source.

    Args:
        name: Name of the corpus.
        documents: With text, ids unique, in the order of the source.
        licenses: License by domain; empty for a user's own texts.
        n_blank: Documents without text, left out.
    """

    name: str
    documents: tuple[Document, ...]
    licenses: Mapping[str, str]
    n_blank: int


def resolve(source: str | Path | Iterable[str | Document], name: str | None) -> Resolved:
    """Read every document of a source.

    Args:
        source: See ``sparsescope.corpus``.
        name: Name of the corpus; None for that of the source.

    Raises:
        SpecError: If the source is no source, or its name is not registered.
        SubjectError: If it cannot be read, has no text, or has two documents with one id.
        DependencyError: If a registered corpus is not available on this machine.
    """
    found, chosen, licenses = _read(source, name)
    documents = tuple(
        Document(well_formed(item.id), well_formed(item.domain), well_formed(item.text))
        for item in found
        if item.text.strip()
    )
    if not documents:
        raise SubjectError(
            "every document of the corpus is blank" if found else "the corpus has no documents",
            where=chosen,
            allowed="at least one document with text",
            got=f"{len(found)} documents",
            next_step="check that this is the right source",
        )
    domains = {document.domain for document in documents}
    if len(domains) > _MOST_DOMAINS:
        raise SubjectError(
            "the corpus has too many domains",
            where=chosen,
            allowed=f"at most {_MOST_DOMAINS}",
            got=len(domains),
            next_step="put the kind of text into domain, and what names a document into id",
        )
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise SubjectError(
                "two documents have the same id",
                where=chosen,
                got=repr(document.id),
                next_step="make ids unique, or leave them all out: documents are numbered then",
            )
        seen.add(document.id)
    return Resolved(chosen, documents, licenses, len(found) - len(documents))


def _read(
    source: str | Path | Iterable[str | Document], name: str | None
) -> tuple[list[Document], str, dict[str, str]]:
    """Return the documents of a source, the name of the corpus and the license of each domain."""
    if isinstance(source, str):
        _check_string(source)
    if isinstance(source, Path) or (isinstance(source, str) and is_path(source)):
        path = given_path(source, "corpus")
        named = name or plain_name(path)
        return read_file(path, named), named, {}
    if isinstance(source, str):
        entries = registered_entries(source)
        documents = [
            Document(f"{entry.name}/{document.id}", document.domain, document.text)
            for entry in entries
            for document in entry.load()
        ]
        found: dict[str, list[str]] = {}
        for entry in entries:
            found.setdefault(entry.domain, []).append(entry.license)
        licenses = {domain: ", ".join(dict.fromkeys(each)) for domain, each in found.items()}
        return documents, name or "+".join(entry.name for entry in entries), licenses
    return documents_in_memory(source, name or "texts"), name or "texts", {}


def _check_string(source: str) -> None:
    """Raise SpecError for a string that is neither a name nor a path, before it reaches the file system."""
    if not source.strip():
        raise SpecError(
            "the corpus name is empty", where="corpus", got=repr(source), allowed=sorted(registered_corpora())
        )
    if _URL.match(source):
        raise SpecError(
            "a URL is not read",
            where="corpus",
            allowed=("a registered name", "a path", "a list of texts"),
            got=repr(source[:200]),
            next_step="fetch the file first, for example: curl -LO URL",
        )
    if len(source) > _LONGEST_NAME or "\n" in source or "\0" in source:
        raise SpecError(
            "a text was given where a corpus is named",
            where="corpus",
            allowed=("a registered name", "a path", "a list of texts"),
            got=f"a string of {len(source)} characters",
            next_step="put it into a list: corpus([text])",
        )


def is_path(source: str) -> bool:
    """Return whether a string means a file rather than a registered name (see the head of this file)."""
    return source.lower().endswith(ENDS) or "/" in source or "\\" in source

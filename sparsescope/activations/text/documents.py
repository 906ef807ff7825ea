"""The plain records that every text source yields: documents and corpus entries.

A document is the unit of independence: statistics bootstrap over documents, streams split
between documents, and no batch holds two of them. This file imports nothing heavy, so a
plug-in can import it to register a corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sparsescope.core.shown import Shown


@dataclass(frozen=True, slots=True, repr=False)
class Document(Shown):
    """One text with its name and domain.

    Args:
        id: Unique within the corpus, for example ``"python-source/argparse.py"``.
        domain: The kind of text, for example ``"code"``; token budgets are split evenly over domains.
        text: The text itself. Never the id of a file.
    """

    id: str
    domain: str
    text: str

    def _shown(self) -> dict[str, object]:
        return {"id": self.id, "domain": self.domain, "characters": len(self.text), "text": self.text}


@dataclass(frozen=True, slots=True)
class CorpusEntry:
    """A registered corpus: what it is, and how its documents are read.

    A package registers one by the entry point group ``sparsescope.corpora`` with an entry point that
    names an object of this class.

    Args:
        name: Name for ``corpus(name)``; no ``+``, no path separator, no blank.
        summary: One sentence.
        license: SPDX identifier, or one sentence where there is none.
        domain: The domain of its documents.
        load: Reads every document, in a fixed order, with ids unique within the entry. Called on use, never
            when corpora are listed.
        origin: Where the text comes from, with its version.
    """

    name: str
    summary: str
    license: str
    domain: str
    load: Callable[[], Iterable[Document]]
    origin: str = ""

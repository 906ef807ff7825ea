"""From the bytes of a file to its text: what the first bytes say, gzip and zstd unpacked, UTF-8 decoded.

Every other encoding is refused, with what to do: a text that was read in a wrong one looks like text and
gives numbers.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pyarrow

from sparsescope.errors import SubjectError

MAX_BYTES = 2 * 1024**3
#: What may stand after ``.txt`` or ``.jsonl``; the first bytes decide.
PACKED_SUFFIXES = (".gz", ".zst")
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# UTF-32 first: its mark begins as that of UTF-16
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_PDF = b"%PDF-1."  # may be ASCII throughout
_OTHERS = {
    b"PK\x03\x04": ("a zip archive (or a .docx, .xlsx, .epub)", "unzip it and give one of its text files"),
    b"BZh": ("packed by bzip2", "unpack it: bunzip2 FILE"),
    b"\xfd7zXZ\x00": ("packed by xz", "unpack it: unxz FILE"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it and give one of its text files"),
    _PDF: ("a PDF", "turn it into text first, for example: pdftotext FILE"),
    b"PAR1": ("a Parquet file", "name it .parquet"),
}
_LOOKED_AT = 4096


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, packed by gzip or zstd or not: no byte order mark, lines end in
    line feeds.

    Raises:
        SubjectError: It is not UTF-8, or something else than text; unpacked it is too large, or damaged.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(8)
    packed = next((name for start, name in _PACKED.items() if head.startswith(start)), None)
    raw = path.read_bytes() if packed is None else _unpack(path, packed)
    _refuse_encodings(path, raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse_formats(path, raw)
        line = raw.count(b"\n", 0, error.start) + 1
        raise SubjectError(
            "the corpus file is not UTF-8",
            where=f"{path}, byte {error.start}, line {line}",
            got=repr(raw[error.start : error.start + 4]),
            next_step="convert it from the encoding that it has, for example of Western Europe: iconv -f "
            "WINDOWS-1252 -t UTF-8 old.txt > new.txt",
        ) from error
    if b"\0" in raw or raw.startswith(_PDF):
        _refuse_formats(path, raw)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unpack(path: Path, packed: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        with pyarrow.input_stream(str(path), compression=packed) as stream:
            while part := stream.read(1 << 22):
                size += len(part)
                parts.append(part)
                if size > MAX_BYTES:
                    break
    except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
        raise SubjectError(
            "the packed corpus file is damaged",
            where=str(path),
            got=f"{packed}: {(str(error).splitlines() or [''])[0][:200]}",
            next_step="fetch or pack it again",
        ) from error
    if size > MAX_BYTES:
        raise SubjectError(
            "the corpus file is too large to be read at once",
            where=str(path),
            allowed=f"at most {MAX_BYTES / 1024**3:.0f} GiB when it is unpacked",
            next_step="cut a part of it: a token budget uses a small share of such a file anyway",
        )
    return b"".join(parts)


def _refuse_encodings(path: Path, raw: bytes) -> None:
    """Raise SubjectError for UTF-16 and UTF-32, with their mark or without."""
    found = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), None)
    if found is None and b"\0" in raw:
        found = _without_mark(raw[:_LOOKED_AT])
    if found is not None:
        raise SubjectError(
            f"the corpus file is in {found}",
            where=str(path),
            allowed="UTF-8",
            got=repr(raw[:8]),
            next_step=f"convert it: iconv -f {found} -t UTF-8 old.txt > new.txt",
        )


def _refuse_formats(path: Path, raw: bytes) -> None:
    """Raise SubjectError for what is known by its first bytes, and for NULs; a text may begin with the same
    letters, so this is asked of what is no text only.
    """
    found = next((said for start, said in _OTHERS.items() if raw.startswith(start)), None)
    if found is None and b"\0" in raw:
        found = (f"no text: byte {raw.index(0)} is NUL", "give a text file; this one looks binary")
    if found is not None:
        raise SubjectError(
            f"the corpus file is {found[0]}",
            where=str(path),
            allowed="UTF-8 text, plain or packed by gzip or zstd",
            got=repr(raw[:8]),
            next_step=found[1],
        )


def _without_mark(head: bytes) -> str | None:
    """The encoding of a text in UTF-16 without its mark: of most letters one byte is zero."""
    pairs = len(head) // 2
    if not pairs:
        return None
    low, high = head[0 : 2 * pairs : 2].count(0) / pairs, head[1 : 2 * pairs : 2].count(0) / pairs
    if max(low, high) < 0.3 or min(low, high) > 0.1:
        return None
    return "UTF-16LE" if high > low else "UTF-16BE"

"""What the first bytes of a file say: packed text is read, other encodings and formats are named."""

import bz2
import gzip
import json
import lzma
import re
import zipfile

import pandas as pd
import pyarrow
import pytest

import sparsescope as ss
from sparsescope.activations.text import decoding
from sparsescope.errors import SpecError, SubjectError

TEXT = "Grüße aus der Stadt.\nA second line, with words enough.\n"


def pack(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data)
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


@pytest.mark.parametrize("how", ["gzip", "zstd"])
@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".TXT.ZST"])
def test_packed_text_is_read_whatever_the_name_says_of_packing(tmp_path, how, ending):
    path = tmp_path / f"letters{ending}"
    path.write_bytes(pack(TEXT.encode(), how))
    found = ss.corpus(str(path))
    assert [(d.id, d.text) for d in found.documents] == [("letters/0", TEXT)] and found.name == "letters"


def test_packed_lines_of_json_are_read_in_several_members(tmp_path):
    path = tmp_path / "many.jsonl.gz"
    lines = [json.dumps({"text": f"text {n}"}) + "\n" for n in range(4)]
    path.write_bytes(b"".join(gzip.compress(line.encode()) for line in lines))
    assert [document.text for document in ss.corpus(path).documents] == [f"text {n}" for n in range(4)]


@pytest.mark.parametrize(
    ("data", "said", "step"),
    [
        (TEXT.encode("utf-16"), "in UTF-16$", "iconv -f UTF-16 -t UTF-8"),
        (TEXT.encode("utf-32"), "in UTF-32$", "iconv -f UTF-32 "),
        (TEXT.encode("utf-16-le"), "in UTF-16LE$", "iconv -f UTF-16LE "),
        (TEXT.encode("utf-16-be"), "in UTF-16BE$", "iconv -f UTF-16BE "),
        (TEXT.encode("utf-16").decode("latin-1").encode(), "NUL|UTF-16", ""),  # iconv with a wrong encoding
        (TEXT.encode("latin-1"), "not UTF-8$", "iconv -f WINDOWS-1252"),
        (bz2.compress(TEXT.encode()), "bzip2", "bunzip2"),
        (lzma.compress(TEXT.encode()), "xz", "unxz"),
        (b"%PDF-1.7 ...", "a PDF", "pdftotext"),
        (b"\x7fELF\x02\x01\x01" + bytes(64), "NUL", "binary"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-9], "damaged", "again"),
        (pack(TEXT.encode("utf-16"), "gzip"), "in UTF-16$", "iconv"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_other_bytes_are_named_with_what_to_do(tmp_path, data, said, step):
    path = tmp_path / "given.txt"
    path.write_bytes(data)
    with pytest.raises(SubjectError) as caught:
        ss.corpus(path)
    assert re.search(said, caught.value.what) and step in (caught.value.next_step or "")


def test_a_zip_archive_says_to_unzip(tmp_path):
    path = tmp_path / "given.txt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", TEXT)
    with pytest.raises(SubjectError, match="zip archive"):
        ss.corpus(path)


def test_a_small_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 10_000)
    path = tmp_path / "bomb.txt"
    path.write_bytes(gzip.compress(b"a" * 1_000_000))
    with pytest.raises(SubjectError, match="too large"):
        ss.corpus(path)


def test_an_ordinary_text_may_hold_anything_else(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_text("PK is a name, BZh too; \ufeff in the middle \u2028 and \x1b, but no zero.\n", "utf-8")
    assert "zero" in ss.corpus(path).documents[0].text


@pytest.mark.parametrize(
    "url", ["https://example.org/a.txt", "s3://bucket/a.jsonl", "HF://datasets/x/y.parquet"]
)
def test_a_url_is_refused_as_one(url):
    with pytest.raises(SpecError, match="URL is not read"):
        ss.corpus(url)


@pytest.mark.parametrize(
    "begin", ["BZh is a name", "PAR1 and PAR2", "%PDF settings of LaTeX", "PK\x03\x04 in a log"]
)
def test_a_text_may_begin_as_other_formats_do(tmp_path, begin):
    (tmp_path / "odd.txt").write_text(f"{begin}, and more words.\n", encoding="utf-8")
    assert ss.corpus(tmp_path / "odd.txt").documents[0].text.startswith(begin)


def test_a_parquet_file_keeps_its_name(tmp_path):
    pd.DataFrame({"text": ["a", "b"]}).to_parquet(tmp_path / "mine.parquet")
    assert ss.corpus(tmp_path / "mine.parquet").name == "mine"

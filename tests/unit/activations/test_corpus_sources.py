"""Where text comes from: own files, registered corpora, plug-ins, packages; and what is said if it fails."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import pytest

from sparsescope.activations.corpus import CorpusEntry, Document, corpus, registered_corpora
from sparsescope.activations.text import packaged, registered
from sparsescope.activations.text.packaged import read_bible, wheel_path
from sparsescope.core import packages
from sparsescope.errors import ArtifactError, DependencyError, SpecError, SubjectError


def contents(found):
    return [(document.id, document.domain, document.text) for document in found.documents]


# Own files


def test_a_text_file_is_one_document_and_says_what_that_means(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_bytes(b"\xef\xbb\xbfChapter one\r\n\r\n\r\n\r\nChapter two\r\n")
    found = corpus(str(path))
    assert contents(found) == [("novel/0", "novel", "Chapter one\n\n\n\nChapter two\n")]
    assert "intervals over documents cannot be given" in found.notes[0]
    assert (found.name, found.license) == ("novel", "not stated")


@pytest.mark.parametrize("cut", ["\f", "\n<|endoftext|>\n"])
def test_form_feeds_and_end_of_text_lines_separate_documents(tmp_path, cut):
    path = tmp_path / "many.txt"
    path.write_text(cut.join(["one", "two", "  "]), encoding="utf-8")
    found = corpus(path)
    assert [text.strip() for _, _, text in contents(found)] == ["one", "two"]
    assert found.notes == ("blank documents left out: 1",)


def test_jsonl_with_and_without_domain_and_id(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"text": "a\u2028b"},
        {"text": "c", "domain": "law", "id": 7},
        {"text": "d", "domain": None, "extra": 1},
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    assert contents(corpus(path)) == [
        ("mine/0", "mine", "a\u2028b"),
        ("7", "law", "c"),
        ("mine/2", "mine", "d"),
    ]


def test_parquet_with_and_without_domain_and_id(tmp_path):
    path = tmp_path / "mine.parquet"
    pd.DataFrame({"text": ["a", None, "c"], "domain": ["x", "x", None], "other": [1, 2, 3]}).to_parquet(path)
    found = corpus(path)
    assert contents(found) == [("mine/0", "x", "a"), ("mine/2", "mine", "c")]
    assert found.notes == ("blank documents left out: 1",)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("latin.txt", "caf\u00e9 au lait".encode("latin-1"), r"not UTF-8[\s\S]*byte 3, line 1[\s\S]*iconv"),
        ("second.jsonl", b'{"text": "a"}\n{"text": \n', r"not JSON[\s\S]*line 2"),
        ("list.jsonl", b"[1]\n", r"not a JSON object[\s\S]*line 1[\s\S]*list"),
        ("named.jsonl", b'{"body": "a", "n": 1}\n', r"no field 'text'[\s\S]*'body', 'n'"),
        ("typed.jsonl", b'{"text": 5}\n', r"not a string[\s\S]*line 1, text[\s\S]*int"),
        ("twice.jsonl", b'{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}\n', r"same id[\s\S]*'x'"),
        ("empty.txt", b"", r"every document of the corpus is blank"),
        ("empty.jsonl", b"\n\n", r"has no documents"),
        ("broken.parquet", b"PAR1 no", r"not a readable Parquet file"),
        ("table.csv", b"text\na\n", r"of this kind cannot be read[\s\S]*\.jsonl[\s\S]*'\.csv'"),
    ],
)
def test_each_bad_file_has_its_own_message(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SubjectError, match=expected):
        corpus(str(path))


def test_a_parquet_file_without_text_lists_its_columns(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"content": ["a"], "lang": ["en"]}).to_parquet(path)
    with pytest.raises(SubjectError, match=r"no column 'text'[\s\S]*'content', 'lang'"):
        corpus(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "big.txt"
    path.write_text("text")
    monkeypatch.setattr("sparsescope.activations.text.files.MAX_BYTES", 3)
    with pytest.raises(SubjectError, match="too large to be read at once"):
        corpus(path)


@pytest.mark.parametrize("missing", ["nothing.txt", "some/folder/nothing", "nothing.JSONL"])
def test_a_missing_file(missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SubjectError, match="there is no such corpus file"):
        corpus(missing)


def test_a_folder_is_no_corpus_file(tmp_path):
    with pytest.raises(SubjectError, match="is a folder"):
        corpus(tmp_path)


def test_a_file_with_the_name_of_a_corpus_does_not_replace_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("python-docs").write_text("mine")
    assert len(corpus("python-docs").documents) > 50


# Names and texts in memory


def test_an_unknown_name_offers_near_matches():
    with pytest.raises(SpecError, match=r"unknown corpus 'pythondocs'[\s\S]*did you mean 'python-docs'"):
        corpus("pythondocs")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "name is empty"),
        ("python-docs+", "name is empty"),
        ("python-docs+python-docs", "named twice"),
        ("A sentence.\nAnother one.", "a text was given"),
        ("word/ " * 500, "a text was given"),
        (5, "no source of text"),
        ({"text": "a"}, "no source of text"),
        (b"bytes", "no source of text"),
    ],
)
def test_what_is_no_source_says_so(source, message):
    with pytest.raises(SpecError, match=message):
        corpus(source)


def test_lists_are_checked_item_by_item():
    with pytest.raises(SubjectError, match=r"not a string[\s\S]*item 1[\s\S]*NoneType"):
        corpus(["a", None])
    with pytest.raises(SubjectError, match="has no documents"):
        corpus([])
    with pytest.raises(SubjectError, match=r"is blank[\s\S]*2 documents"):
        corpus(["", " \n"])
    assert contents(corpus(text for text in ["a"])) == [("texts/0", "texts", "a")]


def test_a_domain_for_each_document_is_refused_before_it_overflows(monkeypatch):
    monkeypatch.setattr("sparsescope.activations.text.resolve._MOST_DOMAINS", 2)
    with pytest.raises(SubjectError, match="too many domains"):
        corpus([Document(str(n), str(n), "text") for n in range(3)])


# Registered corpora


def test_registered_corpora_are_listed_without_reading_them():
    found = registered_corpora()
    assert list(found)[:4] == ["python-docs", "python-source", "licenses", "kjv"]
    assert [found[name].domain for name in list(found)[:4]] == ["docs", "code", "legal", "scripture"]
    assert all(entry.summary and entry.license and entry.origin for entry in found.values())


def test_python_corpora_are_joined_with_ids_that_name_their_source():
    found = corpus("python-docs+python-source")
    assert found.domains == ("docs", "code")
    assert found.license == "PSF-2.0"
    ids = {document.id for document in found.documents}
    assert {"python-docs/while", "python-source/argparse.py", "python-source/json/decoder.py"} <= ids
    assert not any("test" in Path(name).parts or "_sysconfigdata" in name for name in ids)


def test_python_source_is_ordered_by_path_and_reads_declared_encodings(tmp_path):
    (tmp_path / "pkg" / "deeper").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    for name in ("b.py", "pkg/a.py", "pkg/deeper/no.py", "test/no.py", "_sysconfigdata_x.py"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a.py").write_bytes("# -*- coding: latin-1 -*-\n# é\n".encode("latin-1"))
    found = list(registered.python_source("code", tmp_path))
    assert [document.id for document in found] == ["a.py", "b.py", "pkg/a.py"]
    assert "é" in found[0].text


def test_absent_sources_say_what_to_do(tmp_path):
    with pytest.raises(DependencyError, match="carries no source"):
        list(registered.python_source("code", tmp_path))
    with pytest.raises(DependencyError, match=r"does not have[\s\S]*base-files[\s\S]*jsonl"):
        list(registered.licenses("legal", tmp_path / "none"))


def test_licenses_skip_the_links_to_newest_versions(tmp_path):
    (tmp_path / "GPL-3").write_text("text of version 3")
    (tmp_path / "GPL").symlink_to("GPL-3")
    assert [document.id for document in registered.licenses("legal", tmp_path)] == ["GPL-3"]


def mine() -> list[Document]:
    return [Document("1", "chat", "hello there")]


PLUG_IN = CorpusEntry("mine", "My texts", "CC0-1.0", "chat", mine)
IMPOSTOR = CorpusEntry("kjv", "Another", "CC0-1.0", "chat", mine)


def test_plug_ins_are_listed_and_broken_ones_fail_only_when_used(monkeypatch):
    here = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "plug_in_corpora", here)
    points = [
        EntryPoint("mine", "plug_in_corpora:PLUG_IN", registered.ENTRY_POINT_GROUP),
        EntryPoint("kjv", "plug_in_corpora:IMPOSTOR", registered.ENTRY_POINT_GROUP),
        EntryPoint("gone", "no_such_module_at_all:X", registered.ENTRY_POINT_GROUP),
        EntryPoint("odd", "plug_in_corpora:mine", registered.ENTRY_POINT_GROUP),
    ]
    monkeypatch.setattr(
        registered, "entry_points", lambda group: points if group == registered.ENTRY_POINT_GROUP else []
    )
    found = registered_corpora()
    assert contents(corpus("mine")) == [("mine/1", "chat", "hello there")]
    assert corpus("mine").license == "CC0-1.0"
    assert found["kjv"].domain == "scripture"
    assert "kjv@plug_in_corpora:IMPOSTOR" in found
    assert corpus("python-docs").documents
    for name, reason in (("gone", "ModuleNotFoundError"), ("odd", "is a function, not a CorpusEntry")):
        assert found[name].summary.startswith("cannot be loaded")
        with pytest.raises(DependencyError, match=reason):
            corpus(name)


def test_importing_and_reading_corpora_loads_no_torch():
    code = (
        "import sys; from sparsescope.activations.corpus import corpus; corpus('python-docs');"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


# Packaged text

MODULE = (
    'raise SystemExit("never run")\nbible = Bible(\n    Version.X,\n    """\n'
    "In [the] beginning. And so.\nSecond one.\n"
    'Third [was] here.""",\n    {1001001: 1, 1001002: 21, 1002001: 29, 2001001: 41},\n    {1001001: 21},\n'
    '    {Book.GENESIS: "Genesis", Book.SAMUEL_1: "1 Samuel"},\n    {Book.GENESIS: "The First"},\n)\n'
)


def make_wheel(path: Path, module: str = MODULE) -> dict[str, str]:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pkg/bible.py", module)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"package": "pkg", "version": "1.0", "file": path.name, "sha256": digest, "member": "pkg/bible.py"}


def test_the_bible_is_read_from_the_wheel_without_running_it(tmp_path):
    source = make_wheel(tmp_path / "pkg-1.0-py3-none-any.whl")
    found = list(read_bible(wheel_path(source, tmp_path), source["member"], "scripture"))
    assert [(document.id, document.text) for document in found] == [
        ("genesis.1", "In the beginning. And so.\n"),
        ("genesis.2", "Second one.\n"),
        ("samuel-1.1", "Third was here.\n"),
    ]


def test_a_module_of_another_layout_is_refused(tmp_path):
    source = make_wheel(tmp_path / "pkg.whl", "text = 'changed'")
    with pytest.raises(ArtifactError, match="not laid out as expected"):
        list(read_bible(tmp_path / "pkg.whl", source["member"], "scripture"))


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path):
    source = make_wheel(tmp_path / "pkg.whl") | {"sha256": "0" * 64}
    with pytest.raises(ArtifactError, match=r"not the pinned one[\s\S]*delete the file"):
        wheel_path(source, tmp_path)


def test_the_download_takes_wheels_only_and_lands_whole(tmp_path, monkeypatch):
    source = make_wheel(tmp_path / "pkg.whl")
    good = (tmp_path / "pkg.whl").read_bytes()
    commands = []

    def run(command, **_):
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / "pkg.whl").write_bytes(good)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    cache = tmp_path / "cache"
    assert wheel_path(source, cache) == wheel_path(source, cache) == cache / "pkg.whl"
    assert len(commands) == 1
    assert {"--only-binary=:all:", "--no-deps", "pkg==1.0"} <= set(commands[0])
    assert [path.name for path in cache.iterdir()] == ["pkg.whl"]


@pytest.mark.parametrize("outcome", ["fails", "hangs"])
def test_a_failed_download_says_how_to_do_it_by_hand(tmp_path, monkeypatch, outcome):
    source = make_wheel(tmp_path / "pkg.whl")

    def run(command, timeout, **_):
        if outcome == "hangs":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: x\nERROR: No matching distribution found\n"
        )

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(DependencyError, match="could not be downloaded") as caught:
        wheel_path(source, tmp_path / "cache")
    assert "pip download --no-deps --only-binary=:all:" in caught.value.next_step
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSESCOPE_CACHE", str(tmp_path))
    assert packaged.cache_folder() == tmp_path / "corpora"


def test_a_cache_folder_that_cannot_be_made_says_how_to_move_it(tmp_path):
    source = make_wheel(tmp_path / "pkg.whl")
    with pytest.raises(DependencyError, match=r"cannot be made[\s\S]*SPARSESCOPE_CACHE"):
        wheel_path(source | {"file": "other.whl"}, tmp_path / "pkg.whl" / "below-a-file")

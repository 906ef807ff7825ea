"""Tables and lists as corpora: texts in a fixed order, or a refusal that says what to give instead."""

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest

import sparsescope as ss
from sparsescope.errors import SpecError, SubjectError

TEXTS = ["The first text.", "Another one.", "And the last."]


def texts(found):
    return [document.text for document in found.documents]


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"text": TEXTS, "note": ["a", "b", "c"], "score": [1, 2, 3]}),
        pd.DataFrame({"body": TEXTS, "score": [1.0, 2.0, float("nan")]}),
        pyarrow.table({"text": TEXTS, "other": ["x"] * 3}),
        datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0]}),
        datasets.Dataset.from_dict({"text": [*TEXTS, "not chosen"]}).select(range(3)),
        pd.Series(TEXTS),
        np.array(TEXTS),
        tuple(TEXTS),
        (text for text in TEXTS),
        dict(enumerate(TEXTS)).values(),
    ],
    ids=lambda table: type(table).__name__,
)
def test_tables_and_sequences_give_their_texts(table):
    assert texts(ss.corpus(table)) == TEXTS


class Polars:
    """What a polars frame offers here: columns by name, a column as a series."""

    columns = ("body", "n")

    def __len__(self):
        return 3

    def __getitem__(self, name):
        return {"body": TEXTS, "n": [1, 2, 3]}[name]


def test_a_table_of_a_library_that_is_not_installed_is_read_by_what_it_offers():
    assert texts(ss.corpus(Polars())) == TEXTS


def test_a_table_gives_domain_and_id_and_missing_texts_are_blank():
    table = pd.DataFrame({"text": ["a b", None, "c d"], "domain": ["law", "law", None], "id": [7, 8, 9]})
    found = ss.corpus(table, name="mine")
    assert [(d.id, d.domain, d.text) for d in found.documents] == [("7", "law", "a b"), ("9", "mine", "c d")]
    assert found.notes == ("blank documents left out: 1",)


def test_a_table_and_a_list_of_the_same_texts_are_the_same_corpus():
    assert ss.corpus(pd.DataFrame({"text": TEXTS})).digest == ss.corpus(TEXTS).digest


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (set(TEXTS), "corpus(sorted(texts))"),
        (frozenset(TEXTS), "corpus(sorted(texts))"),
        ({"a": "one"}.keys(), "corpus(sorted(texts))"),
        ({"a": "one"}, "list(texts.values())"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})}), "['train']"),
        (b"bytes", "decode"),
        (7, "corpus([text"),
        (None, "corpus([text"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_gives_no_texts_in_a_fixed_order_is_refused(source, said):
    with pytest.raises(SpecError, match="no source of text") as caught:
        ss.corpus(source)
    assert said in caught.value.next_step and type(source).__name__ == caught.value.got


def test_an_open_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with (tmp_path / "a.txt").open() as file, pytest.raises(SpecError, match="no source of text") as caught:
        ss.corpus(file)
    assert "path of the file" in caught.value.next_step


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"title": TEXTS, "body": TEXTS}),
        pd.DataFrame({"n": [1, 2]}),
        pd.DataFrame(),
        pd.DataFrame([["a", "b"]], columns=["text", "text"]),
    ],
)
def test_a_table_without_one_column_of_texts_is_refused_with_its_columns(table):
    with pytest.raises(SpecError, match="which column") as caught:
        ss.corpus(table)
    assert all(repr(str(column)) in caught.value.got for column in table.columns)


def test_a_stream_is_refused_and_a_list_of_its_rows_says_how():
    stream = datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()
    with pytest.raises(SpecError, match="not in memory"):
        ss.corpus(stream)
    with pytest.raises(SubjectError, match="not a string") as caught:
        ss.corpus([{"text": "a"}])
    assert '[row["text"] for row in rows]' in caught.value.next_step
    with pytest.raises(SubjectError, match="not a string"):
        ss.corpus(pd.DataFrame({"text": ["a", 3]}))

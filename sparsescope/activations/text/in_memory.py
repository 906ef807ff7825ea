"""Texts that a user has in memory: lists of strings, and tables of pandas, polars, pyarrow or datasets.

A table gives the column ``text``, or its only column of strings, and the columns ``domain`` and ``id`` where
it has them, as a file does. What would give something else than texts in a fixed order is refused: an open
file (lines), a dictionary (keys), a set (another order in every process).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from sparsescope.activations.text.documents import Document
from sparsescope.activations.text.files import document_of_row
from sparsescope.errors import SpecError, SubjectError

_ALLOWED = ("a registered name", "a path", "a list of texts", "a table with a column text")
_EXAMPLE = "for texts in memory: corpus([text, text, ...])"


def documents_in_memory(source: Any, name: str) -> list[Document]:
    """Return the documents of texts in memory.

    Args:
        source: An iterable of strings or documents, or a table.
        name: Domain of documents that state none, and first part of ids that are not stated.

    Raises:
        SpecError: It is no source of texts, or a table without one column of them.
        SubjectError: A text is not a string.
    """
    _check(source)
    columns = _columns(source)
    return _of_texts(source, name) if columns is None else _of_table(source, columns, name)


def _check(source: Any) -> None:
    """Raise SpecError for what is no source, or would give something else than its texts."""
    hint = None
    if isinstance(source, Mapping):
        splits = all(_columns(value) is not None for value in source.values()) and bool(source)
        hint = (
            f"choose one of its tables, for example [{next(iter(source))!r}]"
            if splits
            else "a list of its values, if these are the texts: list(texts.values())"
        )
    elif isinstance(source, Set):
        hint = "its order differs from process to process; put it in order: corpus(sorted(texts))"
    elif hasattr(source, "read"):
        hint = "give the path of the file, or its whole text as one document: corpus([file.read()])"
    elif isinstance(source, bytes | bytearray | memoryview):
        hint = 'decode it: corpus([data.decode("utf-8")])'
    elif not isinstance(source, Iterable) and not hasattr(source, "columns"):
        hint = _EXAMPLE
    if hint is not None:
        raise SpecError(
            "this is no source of text",
            where="corpus",
            allowed=_ALLOWED,
            got=type(source).__name__,
            next_step=hint,
        )


def _columns(source: Any) -> list[str] | None:
    """Names of the columns of a table; None for what is no table."""
    names = getattr(source, "column_names", None)  # pyarrow, datasets
    if names is None and not isinstance(source, Sequence):
        names = getattr(source, "columns", None)  # pandas, polars
    return None if names is None or callable(names) else [str(name) for name in names]


def _of_table(table: Any, columns: list[str], name: str) -> list[Document]:
    if not hasattr(table, "__getitem__") or not hasattr(table, "__len__"):  # lazy, or a stream
        raise SpecError(
            "this table is not in memory",
            where="corpus",
            allowed=_ALLOWED,
            got=type(table).__name__,
            next_step="collect it, or take as many rows as you need, and give a list of their texts",
        )
    usual = [column for column in ("text", "domain", "id") if columns.count(column) == 1]
    read = {column: _values(table, column) for column in usual}
    if "text" not in read:
        others = [column for column in columns if column not in usual and columns.count(column) == 1]
        of_strings = {column: values for column in others if _holds_strings(values := _values(table, column))}
        if len(of_strings) != 1:
            raise SpecError(
                "it is not clear which column of the table holds the texts",
                where="corpus",
                allowed="a column 'text', or only one column of strings",
                got=f"columns {', '.join(map(repr, columns[:20])) or 'none'}",
                next_step="rename the column to 'text', or give the column alone: corpus(list(table[NAME]))",
            )
        read = {"text": next(iter(of_strings.values())), **read}
    rows = zip(*read.values(), strict=True)
    where = f"corpus, a {type(table).__name__}"
    return [
        document_of_row(dict(zip(read, row, strict=True)), f"row {n}", n, name, where)
        for n, row in enumerate(rows)
    ]


def _values(table: Any, column: str) -> list[Any]:
    """The values of a column, missing ones as None."""
    import pandas

    values = table[column]
    plain = values.to_pylist() if hasattr(values, "to_pylist") else list(values)
    return [None if pandas.api.types.is_scalar(value) and pandas.isna(value) else value for value in plain]


def _holds_strings(values: list[Any]) -> bool:
    return isinstance(next((value for value in values if value is not None), None), str)


def _of_texts(texts: Iterable[str | Document], name: str) -> list[Document]:
    """Turn strings (or ready documents) into documents with the ids ``name/0``, ``name/1``, ..."""
    documents = []
    for n, text in enumerate(texts):
        if isinstance(text, str):
            text = Document(f"{name}/{n}", name, text)
        if not isinstance(text, Document):
            raise SubjectError(
                "a text of the corpus is not a string",
                where=f"item {n}",
                allowed="str or Document",
                got=type(text).__name__,
                next_step="give a list of strings"
                + (': [row["text"] for row in rows]' if isinstance(text, Mapping) else ""),
            )
        documents.append(text)
    return documents

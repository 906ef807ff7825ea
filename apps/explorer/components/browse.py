"""Choosing the value that a view shows: from a box, or, where there are many, from the table behind the view.

The choice stands in the address under the name of the view, so a link opens the same value. Everything can be
done from the keyboard: typing words filters, and the buttons go through what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st
from components.text import plain

from sparsescope.core.columns import TEXT_KINDS, Column
from sparsescope.core.registry import View
from sparsescope.core.result import Result
from sparsescope.reporting.sections import choice_text
from sparsescope.viz.tables import heading
from sparsescope.viz.tokens import display

MOST_IN_BOX = 60
_SENT_ROWS = 1000
_TAKEN = frozenset({"run", "view", "a", "b"})


def choice(result: Result, view: View, key: str) -> Any:
    """Ask which value a view shall show; None of a view that shows all.

    Args:
        result: What is shown.
        view: The view.
        key: Of the widgets.
    """
    choices = view.choices(result)
    if not choices:
        return None
    name = f"{view.name}-value" if view.name in _TAKEN else view.name
    if len(choices) > MOST_IN_BOX:
        return _from_table(result, view, choices, key, name)
    return _from_box(result, view, choices, key, name)


def _from_box(result: Result, view: View, choices: Sequence[Any], key: str, name: str) -> Any:
    texts = [display(choice_text(result, view, value), limit=120, markup=False) for value in choices]
    label = plain(view.select.replace("_", " ").capitalize())
    index = st.selectbox(
        label,
        range(len(choices)),
        index=_asked(choices, name) or 0,
        key=f"select-{key}",
        format_func=lambda place: texts[place],
    )
    _remember(choices, index, name)
    return choices[index]


def _from_table(result: Result, view: View, choices: Sequence[Any], key: str, name: str) -> Any:
    """A table whose rows are filtered by words and chosen by a click, and buttons to go on."""
    frame, columns = result.tables[view.table], result.columns[view.table]
    words = st.text_input(
        "Find",
        key=f"find-{key}",
        placeholder=f"words of {_fields(columns)}",
        help="Rows that hold all of the words, in any order.",
    )
    left = _matching(frame, columns, words, view.select)
    values = left[view.select].dropna().unique().tolist()
    if not values:
        st.info(f"Nothing in this table holds {plain(words, limit=80)}; all rows are shown.")
        left, values = frame, list(choices)
    state = f"chosen-{key}"
    if state not in st.session_state:
        asked = _asked(choices, name)
        st.session_state[state] = choices[asked] if asked is not None else values[0]
    if st.session_state.get(f"found-{key}", "") != words:  # another search begins at its first row
        st.session_state[state] = values[0]
        st.session_state[f"found-{key}"] = words
    picked = _table(left, columns, f"rows-{key}-{words}")
    if picked is not None and st.session_state.get(f"picked-{key}") != (picked, words):
        st.session_state[f"picked-{key}"] = (picked, words)
        st.session_state[state] = left[view.select].iloc[picked]
    place = values.index(st.session_state[state]) if st.session_state[state] in values else 0
    row = st.container(horizontal=True, vertical_alignment="center")
    if row.button("Previous", key=f"before-{key}", disabled=place == 0):
        place -= 1
    if row.button("Next", key=f"after-{key}", disabled=place + 1 >= len(values)):
        place += 1
    place = max(0, min(place, len(values) - 1))
    st.session_state[state] = values[place]
    row.caption(f"{place + 1:,} of {len(values):,}: {plain(choice_text(result, view, values[place]))}")
    _remember(choices, list(choices).index(values[place]), name)
    return values[place]


def _table(left: pd.DataFrame, columns: Sequence[Column], key: str) -> int | None:
    """The rows that are left; the one that was clicked."""
    sent = left.head(_SENT_ROWS)
    config = {
        c.name: st.column_config.Column(display(heading(c), markup=False), help=plain(c.description))
        for c in columns
    }
    event: Any = st.dataframe(
        sent,
        hide_index=True,
        column_config=config,
        height=210,
        key=key,
        on_select="rerun",
        selection_mode="single-row",
    )
    if len(left) > len(sent):
        st.caption(f"Showing {len(sent):,} of {len(left):,} rows: filter for the others.")
    rows = event.selection.rows
    return int(rows[0]) if rows else None


def _matching(frame: pd.DataFrame, columns: Sequence[Column], words: str, select: str) -> pd.DataFrame:
    """Rows whose texts hold all words, whatever the case; the one of that very name first."""
    texts = [column.name for column in columns if column.kind in TEXT_KINDS]
    wanted = words.lower().split()
    if not wanted or not texts:
        return frame
    joined = frame[texts].fillna("").astype(str).agg("\n".join, axis=1).str.lower()
    mask = pd.Series(True, index=frame.index)
    for word in wanted:
        mask &= joined.str.contains(word, regex=False)
    found = frame[mask]
    named = found[select].astype(str).str.lower() == words.strip().lower()
    return pd.concat([found[named], found[~named]]) if named.any() else found


def _fields(columns: Sequence[Column]) -> str:
    names = [column.name.replace("_", " ") for column in columns if column.kind in TEXT_KINDS]
    return ", ".join(names[:4])


def _asked(choices: Sequence[Any], name: str) -> int | None:
    """The place of what the address asks for; a value that is not there gives a warning."""
    asked = st.query_params.get(name)
    if asked is None:
        return None
    for place, value in enumerate(choices):
        if str(value) == asked:
            return place
    st.warning(f"The link asks for {name} {plain(asked[:80])}, which is not here. The first is shown.")
    return None


def _remember(choices: Sequence[Any], index: int, name: str) -> None:
    """Put the choice into the address, once it is not what everybody sees."""
    text = str(choices[index])
    if (index or name in st.query_params) and st.query_params.get(name) != text:
        st.query_params[name] = text

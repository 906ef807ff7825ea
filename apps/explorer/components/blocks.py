"""The parts of a result page: headline numbers, notes, figures, tables with downloads, provenance."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from components import browse
from components.boundary import boundary
from components.text import plain
from pandas.io.formats.style import Styler
from streamlit.delta_generator import DeltaGenerator

from sparsescope.core.columns import TEXT_KINDS, Column
from sparsescope.core.registry import View
from sparsescope.core.result import Note, Result
from sparsescope.core.statements import headline_of
from sparsescope.reporting.artifacts import artifact_lines
from sparsescope.reporting.depth import left_out
from sparsescope.reporting.head import Finding, findings_of
from sparsescope.reporting.page import figure_page
from sparsescope.reporting.sections import (
    Card,
    card,
    draw,
    flat,
    origin_rows,
    record_of,
    table_csv,
    views_of,
)
from sparsescope.viz import theme
from sparsescope.viz.panel import Panel
from sparsescope.viz.tables import format_cell, heading, is_share
from sparsescope.viz.tokens import display

_STYLED_CELLS = 40_000
_SENT_ROWS = 20_000
_PER_ROW = 4
_CLEAR = "rgba(0,0,0,0)"
_CHART = {
    "displaylogo": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "svg"},
}


def findings(result: Result) -> None:
    """Say what the result shows; each sentence leads to its figure on this page."""
    titles = {view.name: (view.name, view.title) for view in views_of(result)}
    for finding in findings_of(result, titles):
        st.markdown(
            sentence(finding) + (f" [{plain(finding.figure)}](#{finding.anchor})" if finding.anchor else "")
        )


def sentence(finding: Finding) -> str:
    """A finding as Markdown: numbers bold, intervals grey."""
    shapes = {"number": "**{}**", "interval": ":gray[{}]", "basis": ":gray[{}]", "": "{}"}
    return "".join(shapes[kind].format(_word(text)) for text, kind in finding.parts)


def _word(text: str) -> str:
    """Foreign text for the middle of a line; blanks at its ends stay."""
    inner = text.strip()
    return text.replace(inner, plain(inner, limit=4000)) if inner else text


def headline(result: Result) -> None:
    """Show the headline numbers as cards and the others in a table."""
    first = headline_of(result)
    for start in range(0, len(first), _PER_ROW):
        places = st.columns(_PER_ROW)
        for place, scalar in zip(places, first[start : start + _PER_ROW], strict=False):
            _card(place, card(result, scalar))
    rest = [card(result, scalar) for scalar in result.scalars.values() if scalar not in first]
    if rest:
        with st.expander(f"{len(rest)} further numbers"):
            rows = [(c.label, c.value, c.interval, c.definition) for c in rest]
            st.dataframe(
                pd.DataFrame(rows, columns=["number", "value", "interval", "definition"]), hide_index=True
            )


def _card(place: DeltaGenerator, content: Card) -> None:
    with place.container(border=True, height="stretch"):
        st.metric(plain(content.label), plain(content.value), help=plain(content.definition, limit=800))
        if content.interval:
            st.caption(plain(content.interval))


def notes(result: Result) -> None:
    """Show what the reader of the numbers has to know: warnings open, notes of protocol folded."""
    shapes = {"error": st.error, "warning": st.warning}
    info = [note for note in result.notes if note.severity == "info"]
    for note in sorted(
        (n for n in result.notes if n not in info), key=lambda note: list(shapes).index(note.severity)
    ):
        shapes[note.severity](_note(note))
    if info:
        with st.expander(f"{len(info)} note{'s' * (len(info) > 1)} on method, precision and cost"):
            for note in info:
                st.markdown(_note(note))


def _note(note: Note) -> str:
    place = f" ({plain(note.place.replace('_', ' '))})" if note.place else ""
    return plain(note.message, limit=800) + place


@st.fragment
def figure(result: Result, view: View, key: str, *, heading_text: bool = True) -> None:
    """Draw one view with its texts, its downloads and the table behind it."""
    if heading_text:
        st.subheader(plain(view.title), anchor=view.name)
    with boundary("draw this figure"):
        drawn = draw(result, view, browse.choice(result, view, key))
        alt = _show(drawn, view, key)
        st.caption(plain(view.caption, limit=2000))
        row = st.container(horizontal=True)
        if view.formula or view.citation:
            with row.popover("Definition", icon=":material/function:"):
                st.code(view.formula or "see the source", language=None, wrap_lines=True)
                st.caption(plain(f"Source: {view.citation}" if view.citation else alt))
        name = f"{result.run_id or result.analysis}-{view.name}"
        source = f"{result.analysis}, run {result.run_id or 'not stored'}"
        row.download_button(
            "HTML",
            lambda: figure_page(drawn, title=view.title, source=source).encode(),
            f"{name}.html",
            "text/html",
            key=f"html-{key}",
            on_click="ignore",
            icon=":material/download:",
            help="The figure as one page that works offline. For SVG use the camera in the figure.",
        )
        if not isinstance(drawn, Panel):
            row.download_button(
                "JSON",
                lambda: str(drawn.to_json()).encode(),
                f"{name}.json",
                "application/json",
                key=f"json-{key}",
                on_click="ignore",
                icon=":material/download:",
                help="The figure as plotly JSON.",
            )
    if view.table in result.tables:
        with st.expander(
            f"Table {plain(view.table.replace('_', ' '))}: {len(result.tables[view.table]):,} rows"
        ):
            table(result, view.table, f"{key}-table")


def _show(drawn: go.Figure | Panel, view: View, key: str) -> str:
    """Put a figure or a panel on the page, in its colors; return what it says to people who do not see it."""
    mode: theme.Mode = "dark" if st.context.theme.type == "dark" else "light"
    if isinstance(drawn, Panel):
        st.iframe(
            drawn.page(mode, framed=True, clear=True), height=drawn.height, alt=drawn.alt
        )  # its policy lets no script run but its own
        return drawn.alt
    alt = str((drawn.layout.meta or {}).get("alt") or view.caption)
    shown = theme.restyle(drawn, mode)
    shown.update_layout(paper_bgcolor=_CLEAR, plot_bgcolor=_CLEAR)  # the page has its own background
    st.plotly_chart(shown, theme=None, key=f"figure-{key}", config=_CHART, alt=alt)
    return alt


def table(result: Result, name: str, key: str) -> None:
    """Show a table of a result with its downloads."""
    frame, columns = result.tables[name], result.columns[name]
    show_frame(frame, columns, key)
    row = st.container(horizontal=True)
    stem = f"{result.run_id or result.analysis}-{name}"
    row.download_button(
        "CSV",
        lambda: table_csv(result, name).encode(),
        f"{stem}.csv",
        "text/csv",
        key=f"csv-{key}",
        on_click="ignore",
        icon=":material/download:",
    )
    row.download_button(
        "Parquet",
        lambda: _parquet(frame),
        f"{stem}.parquet",
        "application/octet-stream",
        key=f"parquet-{key}",
        on_click="ignore",
        icon=":material/download:",
    )


def show_frame(frame: pd.DataFrame, columns: Sequence[Column], key: str) -> None:
    """Show a frame formatted by the kinds of its columns; sorting stays numeric."""
    if len(frame) > _SENT_ROWS:
        st.caption(f"Showing {_SENT_ROWS:,} of {len(frame):,} rows. The downloads have all.")
        frame = frame.head(_SENT_ROWS)
    config = {
        c.name: st.column_config.Column(display(heading(c), markup=False), help=plain(c.description))
        for c in columns
    }
    shown: object = frame
    if 0 < frame.size <= _STYLED_CELLS and frame.columns.is_unique and frame.index.is_unique:
        shown = _styled(frame, columns)
    st.dataframe(
        shown,
        hide_index=True,
        column_config=config,
        key=f"frame-{key}",
        height="auto" if len(frame) < 9 else 320,
    )


def _styled(frame: pd.DataFrame, columns: Sequence[Column]) -> Styler:
    """Give numbers their display text; a styler leaves the values as they are."""
    metric = next((c.name for c in columns if c.kind == "metric"), None)
    share = frame[metric].map(is_share) if metric else pd.Series(True, index=frame.index)
    styler = frame.style
    for column in columns:
        if column.kind not in TEXT_KINDS:
            for mask, sample in ((share, None), (~share, "")):
                show = partial(format_cell, column=column, metric=sample)
                styler = styler.format(show, subset=pd.IndexSlice[frame.index[mask], [column.name]])
    return styler


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def provenance(result: Result) -> None:
    """Show where the numbers come from and the command that makes them again."""
    st.divider()
    st.markdown("**Provenance**")
    rows = origin_rows(result)
    places = st.columns(3)
    for index, (label, text) in enumerate(rows):
        places[index % 3].markdown(f"{plain(label)}  \n:gray[{plain(text)}]")
    _artifacts(result)
    origin = result.provenance
    if depth := left_out(record_of(result), result):
        st.caption(plain(depth, limit=800))
    left, right = st.columns(2)
    for place, title, values in (
        (left, "Parameters", origin.get("params")),
        (right, "Environment", origin.get("environment")),
    ):
        if values:
            with place.expander(title):
                st.dataframe(pd.DataFrame(flat(values), columns=["name", "value"]), hide_index=True)
    if origin.get("command"):
        st.markdown("To make these numbers again:")
        _command(origin["command"])


def _artifacts(result: Result) -> None:
    """Name the artifacts that the run made and read; of one that is not there, the command
    that makes it again.
    """
    lines = artifact_lines(result)
    if lines:
        st.markdown("**Artifacts**")
    for line in lines:
        st.markdown(
            f"{plain(line.label)}  \n:gray[{plain(line.artifact_id)}, {plain(line.state, limit=400)}]"
        )
        if line.command:
            st.markdown("To make it again:")
            _command(line.command)


def _command(command: str) -> None:
    """Show a command on one line: what follows a line feed would be out of sight, and run
    when it is pasted.
    """
    st.code(display(command, limit=4000, markup=False), language="bash", wrap_lines=True)

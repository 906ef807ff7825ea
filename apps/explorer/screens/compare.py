"""Two runs of one analysis: what was set differently, what came out differently, figures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
import state
import streamlit as st
from components import blocks
from components.boundary import boundary
from components.text import plain

from sparsescope.core.numbers import format_number
from sparsescope.reporting.compare import Comparison, Difference, TableComparison, compare, format_delta
from sparsescope.reporting.sections import views_of
from sparsescope.viz.tables import csv

_SIGNS = {"better": "▲ better", "worse": "▼ worse", "same": "= same", "changed": "◆ changed", "": "–"}


def _differences(title: str, found: Sequence[Difference], same: str) -> None:
    st.subheader(title)
    if not found:
        st.caption(same)
        return
    rows = [(d.name, d.a, d.b) for d in found]
    st.dataframe(pd.DataFrame(rows, columns=["setting", "a", "b"]), hide_index=True)


def _scalars(comparison: Comparison, only_differences: bool) -> None:
    st.subheader("Numbers")
    rows = [
        {
            "number": change.title,
            "a": format_number(change.a, change.unit),
            "b": format_number(change.b, change.unit),
            "b - a": format_delta(change),
            "": _SIGNS[change.verdict],
            "intervals": {True: "apart", False: "overlap", None: "–"}[change.apart],
            "definition": change.definition,
        }
        for change in comparison.scalars
        if not (only_differences and change.verdict == "same")
    ]
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True)
        st.caption("Intervals that overlap do not prove equality; two runs on the same text are paired.")
    else:
        st.caption("All numbers are equal.")


def _tables(comparison: Comparison, only_differences: bool) -> None:
    st.subheader("Tables")
    for entry in comparison.tables:
        frame = entry.changed() if only_differences else entry.frame
        with st.expander(f"{plain(entry.name.replace('_', ' '))}: {len(frame):,} rows"):
            st.caption(plain(entry.summary()))
            blocks.show_frame(frame, entry.columns, f"compare-{entry.name}")
            comment = f"sparsescope compare {comparison.a} {comparison.b}, table {entry.name}"
            st.download_button(
                "CSV",
                partial(_csv, frame, entry, comment),
                f"compare-{entry.name}.csv",
                "text/csv",
                key=f"csv-compare-{entry.name}",
                on_click="ignore",
                icon=":material/download:",
            )


def _csv(frame: pd.DataFrame, entry: TableComparison, comment: str) -> bytes:
    return csv(frame, entry.columns, comments=[comment]).encode()


def _page() -> None:
    found = {run.run_id: run for run in state.runs()}
    counts = pd.Series([run.analysis for run in found.values()]).value_counts()
    pairs = [run_id for run_id, run in found.items() if counts.get(run.analysis, 0) > 1]
    if not pairs:
        st.info("Two runs of the same analysis are needed, for example of two models.")
        st.code(f"{state.FIRST_COMMAND}\n{state.SECOND_COMMAND}", language="bash")
        return
    left, right = st.columns(2)
    a = state.choose("Baseline (a)", pairs, "a", name=lambda key: found[key].label, where=left)
    others = [run_id for run_id in pairs if run_id != a and found[run_id].analysis == found[a].analysis]
    b = state.choose("Compared with (b)", others, "b", name=lambda key: found[key].label, where=right)
    only = st.toggle("Only differences", value=True, key="only")
    first, second = state.open_result(a), state.open_result(b)
    comparison = compare(first, second)
    for note in comparison.notes:
        st.warning(plain(note))
    _scalars(comparison, only)
    views = {view.name: view for view in views_of(first) if view.table in second.tables}
    if views:
        st.subheader("Figures side by side")
        name = state.choose("View", list(views), "view", name=lambda key: views[key].title)
        for letter, result in (("a", first), ("b", second)):
            st.markdown(f"**{letter}:** {plain(found[result.run_id or a].label)}")
            blocks.figure(result, views[name], f"compare-{letter}-{result.run_id}-{name}", heading_text=False)
    _tables(comparison, only)
    _differences("Settings that differ", comparison.settings, "All settings are equal.")
    _differences("Environment", comparison.environment, "The environments are equal.")


st.title("Compare two runs")
with boundary("compare these runs"):
    _page()

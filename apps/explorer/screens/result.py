"""One run: headline numbers, notes, every view with its table, provenance. Drawn from the registry alone."""

from __future__ import annotations

import state
import streamlit as st
from components import blocks
from components.boundary import boundary
from components.text import plain

from sparsescope.core.result import Result
from sparsescope.reporting.build import render
from sparsescope.reporting.sections import views_of

_ALL = "all"


def _page() -> None:
    found = {run.run_id: run for run in state.runs()}
    asked = st.query_params.get("run")
    broken = {run.run_id: run for run in state.index() if run.problem}
    if asked in broken and st.session_state.get("run") is None:
        run = broken[asked]
        st.title("Result")
        st.error(f"{plain(run.run_id)}: {plain(run.problem)}")
        st.markdown("Next step:")
        st.code(run.next_step or "sparsescope verify", language=None)
        return
    if not found:
        st.title("Result")
        st.info("There is no run to show yet. This command makes the first one.")
        st.code(state.FIRST_COMMAND, language="bash")
        return
    left, right = st.columns([3, 1])
    run_id = state.choose("Run", list(found), "run", name=lambda key: found[key].label, where=left)
    _forget_choices(run_id)
    result = state.open_result(run_id)
    views = {view.name: view for view in views_of(result)}
    titles = {_ALL: "All views", **{name: view.title for name, view in views.items()}}
    view = state.choose("View", list(titles), "view", name=lambda key: titles[key], where=right)
    run = found[run_id]
    st.title(plain(f"{state.title_of(run.analysis)}: {run.subject}"))
    record = state.record_of(run.analysis)
    if record:
        st.caption(plain(record.summary))
    if view == _ALL:
        _head(result)
    if not result.tables:
        st.info("This run has no tables.")
    for name, entry in views.items():
        if view in (_ALL, name):
            blocks.figure(result, entry, f"{run_id}-{name}")
    if view != _ALL:  # who asked for one figure sees it first
        _head(result)
    covered = {entry.table for entry in views.values()}
    further = [name for name in result.tables if name not in covered]
    if further and view == _ALL:
        st.subheader("Further tables")
        for name in further:
            with st.expander(f"Table {plain(name.replace('_', ' '))}: {len(result.tables[name]):,} rows"):
                blocks.table(result, name, f"{run_id}-{name}-further")
    st.download_button(
        "Report of this run (HTML)",
        lambda: render([result]).encode(),
        f"{run_id}.html",
        "text/html",
        key=f"report-{run_id}",
        on_click="ignore",
        icon=":material/description:",
    )
    blocks.provenance(result)


def _head(result: Result) -> None:
    """What the run found, what there is to know about it, and its numbers."""
    blocks.findings(result)
    blocks.notes(result)
    blocks.headline(result)


def _forget_choices(run_id: str) -> None:
    """What was chosen in the views of one run is no choice in another."""
    before = st.session_state.get("shown-run")
    if before not in (None, run_id):
        for name in set(st.query_params) - {"run", "view"}:
            del st.query_params[name]
    st.session_state["shown-run"] = run_id


with boundary("show this run"):
    _page()

"""The runs: what was found, what was measured on which model, the newest first, and what
could not be read.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pandas as pd
import shell
import state
import streamlit as st
from components.blocks import sentence
from components.boundary import boundary
from components.text import plain

from sparsescope.core.inputs import NOT_KNOWN
from sparsescope.core.numbers import format_scalar
from sparsescope.core.registry import analyses
from sparsescope.core.roles import roles
from sparsescope.core.statements import title_of
from sparsescope.reporting.head import findings_of
from sparsescope.viz.tokens import display

_NEWEST = 200
_SUBJECTS = 50


def _empty() -> None:
    st.info("There are no runs yet. Make the first one, then reload this page.", icon=":material/science:")
    st.code(state.FIRST_COMMAND, language="bash")
    st.caption("Which models are installed: sparsescope doctor")


def _coverage(found: Sequence[state.Run]) -> None:
    """A matrix of what was studied and analyses for each kind of what they study: models,
    series of checkpoints.
    """
    by_kind = {
        name: roles()[state.studied(name)].title for name in dict.fromkeys(run.analysis for run in found)
    }
    for title in dict.fromkeys(by_kind.values()):
        names = [record.name for record in analyses() if roles()[state.studied(record.name)].title == title]
        runs = [run for run in found if by_kind[run.analysis] == title]
        _matrix(title, names + sorted({run.analysis for run in runs} - set(names)), runs)


def _matrix(title: str, names: list[str], found: Sequence[state.Run]) -> None:
    """A cell opens the newest run; an empty one shows the command, or why the analysis does not fit."""
    st.subheader(plain(f"Analyses by {title}"))
    every = list(dict.fromkeys(run.subject for run in found))
    subjects = every[:_SUBJECTS]
    if len(every) > _SUBJECTS:
        st.caption(f"Those of the newest runs, {_SUBJECTS} of {len(every):,}; all: sparsescope list runs.")
    newest = {(run.subject, run.analysis): run for run in reversed(found)}
    widths = [2, *([3] * len(names))]
    heads = [title.capitalize(), *(state.title_of(name) for name in names)]
    for place, text in zip(st.columns(widths), heads, strict=True):
        place.markdown(f"**{plain(text)}**")
    for subject in subjects:
        known = state.known_of(subject, [run for run in found if run.subject == subject])
        places = st.columns(widths, vertical_alignment="center")
        places[0].markdown(plain(subject))
        for place, name in zip(places[1:], names, strict=True):
            run, record = newest.get((subject, name)), state.record_of(name)
            reason = record.fits(known) if record is not None else "its package is not installed"
            if run is not None:
                label = plain(f"{run.corpus or 'open'}, {run.created[:10]}")
                place.page_link(
                    shell.pages()["result"],
                    label=label,
                    icon=":material/check_circle:",
                    query_params={"run": run.run_id},
                )
            elif reason not in (None, NOT_KNOWN):
                place.markdown("–", help=plain(f"not for {subject}: {reason}"))
            else:
                with place.popover("not run", icon=":material/radio_button_unchecked:"):
                    st.code(
                        f"sparsescope run {name} --subject {shlex.quote(display(subject, markup=False))}",
                        language="bash",
                    )


def _newest(found: Sequence[state.Run]) -> None:
    """Table of runs; a selected row is opened."""
    st.subheader("Newest runs")
    more = f" The newest {_NEWEST} of {len(found):,} are here; all: sparsescope list runs."
    st.caption("Select a row to open the run." + (more if len(found) > _NEWEST else ""))
    rows = [
        (
            run.subject,
            state.title_of(run.analysis),
            run.corpus,
            run.tokens,
            run.warnings,
            run.preset,
            run.created.replace("T", " ")[:16],
            run.run_id,
        )
        for run in found[:_NEWEST]
    ]
    frame = pd.DataFrame(
        rows, columns=["model", "analysis", "corpus", "tokens", "warnings", "preset", "made (UTC)", "run"]
    )
    frame["tokens"] = frame["tokens"].astype("Int64")
    config = {"tokens": st.column_config.NumberColumn(format="localized")}
    event = st.dataframe(
        frame,
        hide_index=True,
        column_config=config,
        on_select="rerun",
        selection_mode="single-row",
        key="newest",
    )
    selected = event["selection"]["rows"]
    if selected and selected[0] < len(frame):
        shell.go("result", run=str(frame["run"].iloc[selected[0]]))


def _findings(found: Sequence[state.Run]) -> None:
    """The first finding of the newest run of every analysis of a model; its title opens the run."""
    st.subheader("What was found")
    subjects = list(dict.fromkeys(run.subject for run in found))
    subject = state.choose("Model", subjects, "model") if len(subjects) > 1 else subjects[0]
    newest = {run.analysis: run for run in reversed(found) if run.subject == subject}
    known = [record.name for record in analyses() if record.name in newest]
    for name in dict.fromkeys([*known, *newest]):
        left, right = st.columns([1, 4])
        left.page_link(
            shell.pages()["result"],
            label=plain(state.title_of(name)),
            query_params={"run": newest[name].run_id},
        )
        with right, boundary("say what this run found"):
            said = findings_of(state.open_result(newest[name].run_id), {})
            st.markdown(sentence(said[0]) if said else "–")


def _headlines(found: Sequence[state.Run]) -> None:
    """Headline numbers of the newest run of every model, one table for each analysis."""
    for name in dict.fromkeys(run.analysis for run in found):
        record = state.record_of(name)
        runs = {run.subject: run for run in reversed(found) if run.analysis == name}
        wanted = record.headline if record else ()
        rows = []
        for subject, run in runs.items():
            scalars = {scalar.name: scalar for scalar in run.scalars}
            shown = [n for n in wanted if n in scalars] or list(scalars)[:6]
            rows.append(
                {"model": subject} | {title_of(name, scalars[n]): format_scalar(scalars[n]) for n in shown}
            )
        if rows:
            st.subheader(plain(f"{state.title_of(name)}: headline numbers"))
            st.dataframe(pd.DataFrame(rows).fillna("–"), hide_index=True)


def _problems(found: Sequence[state.Run]) -> None:
    broken = [run for run in found if run.problem]
    if broken:
        st.subheader("Runs that cannot be read")
        for run in broken:
            st.error(
                f"{plain(run.run_id)}: {plain(run.problem)}"
                + (f". Next step: {plain(run.next_step)}" if run.next_step else "")
            )
        st.code("sparsescope verify", language="bash")
    waiting = state.unfinished()
    if waiting:
        st.info(
            f"{waiting} unfinished: run the same command again, it goes on where it stopped.",
            icon=":material/hourglass:",
        )


st.title("Runs")
with boundary("list the runs"):
    every = state.index()
    good = [run for run in every if not run.problem]
    if not every:
        _empty()
    if good:
        _findings(good)
        counts = st.columns(4)
        counts[0].metric("Runs", f"{len(good):,}", border=True)
        counts[1].metric("Models", f"{len({run.subject for run in good}):,}", border=True)
        counts[2].metric("Analyses", f"{len({run.analysis for run in good}):,}", border=True)
        counts[3].metric("Runs with warnings", f"{sum(run.warnings > 0 for run in good):,}", border=True)
        _coverage(good)
        _headlines(good)
        _newest(good)
    _problems(every)
for package, reason in analyses().broken.items():
    st.warning(f"The package {plain(package)} could not be loaded: {plain(reason)}")

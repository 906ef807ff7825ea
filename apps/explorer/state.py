"""What the pages read: the index of runs, opened results, and the choices that stand in the address.

Choices live in the query parameters (``run``, ``view``, ``a``, ``b``), so a link opens what its sender saw. A
parameter that names nothing gives a warning and the default. Reading is cached by run and by the time its
manifest was written; runs never change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st
from components.text import plain

from sparsescope.core.inputs import Known
from sparsescope.core.manifest import MANIFEST, RUN_ID
from sparsescope.core.numbers import Scalar
from sparsescope.core.registry import Analysis, find_record
from sparsescope.core.result import Result
from sparsescope.core.roles import known, roles
from sparsescope.core.run_store import Store, home
from sparsescope.errors import SparsescopeError, SpecError

FIRST_COMMAND = "sparsescope run activation_sparsity --subject smollm2-135m"
SECOND_COMMAND = "sparsescope run activation_sparsity --subject lazy-relu"


@dataclass(frozen=True, slots=True)
class Run:
    """One line of the index. ``problem`` and ``next_step`` are set where the run cannot be read."""

    run_id: str
    analysis: str
    subject: str = ""
    corpus: str = ""
    tokens: int | None = None
    created: str = ""
    warnings: int = 0
    preset: str = ""
    scalars: tuple[Scalar, ...] = ()
    problem: str = ""
    next_step: str = ""

    @property
    def label(self) -> str:
        """Name in lists: model, analysis, corpus, preset, time, the start of the digest."""
        preset = self.preset and f"{self.preset} preset"
        parts = (
            self.subject,
            title_of(self.analysis),
            self.corpus,
            preset,
            self.created[:16].replace("T", " "),
        )
        return " · ".join([*(part for part in parts if part), self.run_id.rsplit("-", 1)[-1][:6]])


def runs() -> list[Run]:
    """Return the runs that can be read, newest first."""
    return [run for run in index() if not run.problem]


def index() -> list[Run]:
    """Return every run folder, newest first, those that cannot be read included."""
    store = Store()
    complete = store.run_ids()
    found = [_read_index(str(store.root), run_id, _stamp(run_id)) for run_id in complete]
    for folder in sorted(store.root.iterdir()) if store.root.is_dir() else []:
        if RUN_ID.fullmatch(folder.name) and folder.is_dir() and folder.name not in complete:
            step = "run the analysis again; an interrupted run is resumed"
            analysis = folder.name.rsplit("-", 1)[0]
            found.append(Run(folder.name, analysis, problem="this run has no manifest", next_step=step))
    return found


def unfinished() -> int:
    """Return the number of runs with stored steps that were not finished."""
    partial = home() / ".partial"
    return sum(1 for folder in partial.iterdir() if folder.is_dir()) if partial.is_dir() else 0


def open_result(run_id: str) -> Result:
    """Open a run.

    Raises:
        ArtifactError: If it is missing, damaged or newer than this program.
    """
    return _open(str(home()), run_id, _stamp(run_id))


def title_of(analysis: str) -> str:
    """Return the title of an analysis; its name where the package is not installed."""
    record = record_of(analysis)
    return record.title if record else analysis


def record_of(analysis: str) -> Analysis | None:
    """Return the registered analysis or benchmark, or None."""
    try:
        return find_record(analysis)
    except SpecError:
        return None


def studied(analysis: str) -> str:
    """Return the role of what an analysis studies: the first that it reads; a model where its
    package is not installed.
    """
    record = record_of(analysis)
    return (
        record.roles[0] if record is not None and record.roles and record.roles[0] in roles() else "subject"
    )


def known_of(subject: str, found: Sequence[Run]) -> list[Known]:
    """Say what is known of what was studied, for ``Analysis.fits``: by its name, and by the runs
    that there are of it.

    Args:
        subject: Its name.
        found: Its runs.
    """
    records = [record for run in found if (record := record_of(run.analysis)) is not None]
    needs = frozenset[str]().union(*(record.requires for record in records))
    has = needs | ({"tokenizer"} if any("text" in record.roles for record in records) else frozenset())
    read = dict.fromkeys(studied(run.analysis) for run in found)
    try:
        named = [entry for entry in known(subject) if entry.role in read]
    except SparsescopeError:  # a folder of that name that is damaged
        named = []
    named += [Known(role, subject) for role in read if role not in {entry.role for entry in named}]
    text = Known("text", "text", needs=frozenset({"tokenizer"}))
    return [*(replace(entry, has=entry.has | has, lacks=entry.lacks - has) for entry in named), text]


def choose(
    label: str,
    options: Sequence[str],
    key: str,
    *,
    name: Callable[[str], str] = str,
    default: int = 0,
    where: Any = None,
) -> str:
    """Draw a select box whose value stands in the address as ``key``.

    Args:
        label: Label of the box.
        options: What can be chosen; at least one.
        key: Name of the query parameter and of the widget.
        name: Text of an option.
        default: Index that is chosen when the address names none.
        where: Streamlit container; the page when None.

    Returns:
        The chosen option.
    """
    container = where or st
    asked = st.query_params.get(key)
    if st.session_state.get(key) not in options:
        st.session_state.pop(key, None)
        if asked is not None and asked not in options:
            st.warning(
                f"The link asks for {key} {plain(asked[:80])}, which is not here. The default is shown."
            )
        st.session_state[key] = asked if asked in options else options[default]
    value = container.selectbox(label, options, key=key, format_func=name)
    if st.query_params.get(key) != value:
        st.query_params[key] = value
    return value


def _stamp(run_id: str) -> int:
    path = Store().path(run_id) / MANIFEST
    return path.stat().st_mtime_ns if path.is_file() else 0


@st.cache_data(max_entries=2000, show_spinner=False)
def _read_index(root: str, run_id: str, stamp: int) -> Run:
    """Read one line of the index; a broken manifest becomes a line with the problem."""
    try:
        manifest = Store(root).manifest(run_id)
    except SparsescopeError as error:
        return Run(run_id, run_id.rsplit("-", 1)[0], problem=error.what, next_step=error.next_step or "")
    corpus = manifest.spec.corpus or {}
    return Run(
        run_id=run_id,
        analysis=manifest.spec.analysis,
        subject=str(manifest.spec.subject.get("id", "")),
        corpus=str(corpus.get("name", "")),
        tokens=corpus.get("tokens") if isinstance(corpus.get("tokens"), int) else None,
        created=manifest.created,
        warnings=sum(note.severity != "info" for note in manifest.notes),
        preset=manifest.preset,
        scalars=manifest.scalars,
    )


@st.cache_data(max_entries=16, show_spinner=False)
def _open(root: str, run_id: str, stamp: int) -> Result:
    return Store(root).open(run_id)

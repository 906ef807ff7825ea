"""What an analysis returns: scalars, typed tables, tensors and notes. No figures, no model.

Every number carries its definition; a number that claims a trend or a difference carries
its interval and n. Tables are pandas frames in ``Result.tables``; what their columns mean is in
``Result.columns`` (``core/columns.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sparsescope.core.columns import STRICT, Column, declared_frame
from sparsescope.core.escaping import cell_html, display
from sparsescope.core.notebook_figures import also_as_html
from sparsescope.core.numbers import Direction, Interval, Scalar, format_scalar
from sparsescope.errors import SparsescopeError, SpecError, unknown_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sparsescope.core.artifacts import Artifact
    from sparsescope.viz.panel import Panel

Severity = Literal["info", "warning", "error"]


class Tensor:
    """An array with named dimensions, for example ``("layer", "neuron")``.

    Args:
        dims: Names of the dimensions.
        array: The numbers, or a function that reads them when they are first used.
    """

    __slots__ = ("_array", "dims")

    def __init__(self, dims: tuple[str, ...], array: np.ndarray | Callable[[], np.ndarray]) -> None:
        self.dims = dims
        self._array = array

    @property
    def array(self) -> np.ndarray:
        """The numbers.

        Raises:
            ArtifactError: Of a stored tensor, if its file is damaged or differs from its manifest.
        """
        if not isinstance(self._array, np.ndarray):
            self._array = self._array()
        return self._array

    def __repr__(self) -> str:
        shape = list(self._array.shape) if isinstance(self._array, np.ndarray) else "not read yet"
        return f"Tensor({', '.join(self.dims)}: {shape})"


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the reader of a number has to know. Shown in the app and the report."""

    __pydantic_config__ = STRICT

    severity: Severity
    message: str
    place: str = ""


@dataclass(slots=True)
class Result:
    """The outcome of one analysis on one subject.

    Attributes:
        analysis: Name of the analysis.
        scalars: Numbers by name.
        tables: pandas frames by name.
        columns: For every table, the meaning of its columns, in order.
        tensors: Arrays with named dimensions.
        notes: What the reader has to know.
        artifacts: What it leaves for other runs, by name, and what it read, by the role of the
            input; opened when used.
        provenance: Subject, corpus, parameters and environment, filled by the runner.
    """

    analysis: str
    scalars: dict[str, Scalar] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    columns: dict[str, tuple[Column, ...]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def add_scalar(
        self,
        name: str,
        value: float,
        unit: str,
        definition: str,
        *,
        direction: Direction = "none",
        interval: Interval | None = None,
        title: str = "",
    ) -> None:
        """Add one number; see ``Scalar`` for the arguments."""
        self.scalars[name] = Scalar(name, float(value), unit, direction, definition, interval, title)

    def add(self, name: str, table: pd.DataFrame | Iterable[Any]) -> None:
        """Add a table that the record of the analysis declares in ``Analysis.tables``.

        Args:
            name: Its name there.
            table: A frame, or rows (mappings, or sequences in the declared order). Columns are put into the
                declared order; a table without rows gets the types of its columns' kinds.

        Raises:
            SpecError: If the table is not declared, or its columns are others.
        """
        from sparsescope.core.registry import find_record

        declared = find_record(self.analysis).tables
        if name not in declared:
            raise unknown_name(
                "table",
                name,
                declared,
                next_step=f"declare it in the tables of the record of {self.analysis}",
            )
        columns = tuple(declared[name])
        self.add_table(name, declared_frame(name, columns, table, f"result of {self.analysis}"), columns)

    def add_table(self, name: str, frame: pd.DataFrame, columns: tuple[Column, ...]) -> None:
        """Add a table of columns that are given with it, after checking that frame and column meanings agree.

        Raises:
            SpecError: If a column has no meaning, a meaning has no column, or an interval is of a column
                that is not there.
        """
        given, described = list(frame.columns), [column.name for column in columns]
        if given != described:
            raise SpecError(
                f"table {name!r} and its column descriptions differ",
                where=f"result of {self.analysis}",
                allowed=described,
                got=given,
                next_step="describe each column once, in the order of the frame",
            )
        strays = {column.low_of or column.high_of for column in columns} - {"", *described}
        if strays:
            raise SpecError(
                f"table {name!r} has an interval of a column that it does not have",
                where=f"result of {self.analysis}",
                allowed=described,
                got=sorted(strays),
                next_step="name a column of the same table in low_of and high_of",
            )
        self.tables[name] = frame.reset_index(drop=True)
        self.columns[name] = columns

    def note(self, severity: Severity, message: str, place: str = "") -> None:
        """Add a note once."""
        entry = Note(severity, message, place)
        if entry not in self.notes:
            self.notes.append(entry)

    @property
    def about(self) -> str:
        """Id of what was measured: of the subject, else of the first other input; empty if nobody knows."""
        subject = self.provenance.get("subject") or {}
        others = (one for given in (self.provenance.get("inputs") or {}).values() for one in given)
        return str(subject.get("id") or next((one.get("id") for one in others), None) or "")

    @property
    def run_id(self) -> str | None:
        """The name of the stored run, or None for a result that is only in memory."""
        return self.provenance.get("run_id")

    def view(self, name: str | None = None, *, select: Any = None) -> go.Figure | Panel:
        """Draw one of the views of the analysis; the first when no name is given.

        Args:
            name: Name of the view.
            select: Of a view that shows one value of a column (``View.select``), which one;
                the first when None.

        Raises:
            SpecError: If the analysis has no view of that name, or the view has nothing for the value.
        """
        from sparsescope.core.registry import find_record

        also_as_html()
        return find_record(self.analysis).draw(name, self, select)

    def _ipython_display_(self) -> None:
        """Draw the result in a notebook: headline numbers, then the first view, which shares
        one plotly per page.
        """
        from IPython.display import HTML, display

        display(HTML(self._summary_html()))
        figure = self._first_figure()
        if figure is not None:
            also_as_html()
            display(figure)

    def _repr_html_(self) -> str:
        """The same as one piece of HTML that stands alone, for front ends that are not IPython."""
        figure = self._first_figure()
        return self._summary_html() + (
            "" if figure is None else figure.to_html(full_html=False, include_plotlyjs=True)
        )

    def _first_figure(self) -> go.Figure | Panel | None:
        """The first view; None where there is none, or the package that made the result is not installed.

        A run that others made may lack what the view needs; its numbers are shown all the same.
        """
        from sparsescope.core.registry import find_record

        try:
            record = find_record(self.analysis)
        except SpecError:
            return None
        try:
            return record.draw(None, self) if record.views else None
        except SparsescopeError as error:
            logging.getLogger(__name__).warning("the first view of %s failed: %s", self.analysis, error)
            return None
        except Exception:  # whatever the view of a plug-in raises
            logging.getLogger(__name__).exception("the first view of %s failed", self.analysis)
            return None

    def _summary_html(self) -> str:
        """What was measured, what was found, the numbers and the warnings; the other numbers
        and the notes folded.
        """
        from sparsescope.core.statements import headline_of, statements_of, title_of

        def table(scalars: Iterable[Scalar]) -> str:
            rows = "".join(
                f"<tr><td style='text-align:left' title='{cell_html(s.definition, 800)}'>"
                f"{cell_html(title_of(self.analysis, s))}</td>"
                f"<td style='text-align:right'>{cell_html(format_scalar(s))}</td></tr>"
                for s in scalars
            )
            return f"<table>{rows}</table>"

        def notes(found: list[Note]) -> str:
            lines = "".join(f"<li>{cell_html(n.severity)}: {cell_html(n.message, 800)}</li>" for n in found)
            return f"<ul>{lines}</ul>" if found else ""

        def folded(what: str, content: str) -> str:
            return f"<details><summary>{what}</summary>{content}</details>"

        first = headline_of(self)
        others = [scalar for scalar in self.scalars.values() if scalar not in first]
        said = "".join(f"<li>{cell_html(statement.text, 2000)}</li>" for statement in statements_of(self))
        info = [note for note in self.notes if note.severity == "info"]
        title = cell_html(f"{_title_of_analysis(self.analysis)} · {self.about or 'in memory'}")
        return (
            (
                f"<h4>{title}</h4><ul>{said}</ul>"
                f"{notes([note for note in self.notes if note not in info])}{table(first)}"
            )
            + (folded(f"{len(others)} further numbers", table(others)) if others else "")
            + (folded("notes on method, precision and cost", notes(info)) if info else "")
        )

    def __repr__(self) -> str:
        subject = display(self.about or "?", limit=200, markup=False)
        tables = ", ".join(f"{name}[{len(frame)}]" for name, frame in self.tables.items())
        return f"Result({self.analysis}, subject={subject}, scalars={list(self.scalars)}, tables={tables})"


def _title_of_analysis(name: str) -> str:
    """Its title, or its name where the package that made the result is not installed."""
    from sparsescope.core.registry import find_record

    try:
        return find_record(name).title
    except SpecError:
        return name

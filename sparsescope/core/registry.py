"""The registered analyses and how they are found.

Built-ins are discovered by listing the sub-packages of ``sparsescope.analysis``; third parties register
by the entry point group ``sparsescope.analyses``. A declaration is light (no torch, no plotly): ``compute``
and ``views`` are module names, imported when they are used.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from sparsescope.core.inputs import Input, Known, declared_inputs, why_not
from sparsescope.core.spec import Params
from sparsescope.errors import SparsescopeError, SpecError, unknown_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sparsescope.core.result import Column, Result

NAME_PATTERN = r"[a-z][a-z0-9_]{0,63}"
_REPLACED = {
    "input": 'inputs=("series",) or inputs=("subject", "text")',
    "reads_text": 'inputs=("series", "text")',
    "companions": 'inputs=("series*",), and json_schema_extra={"role": "series"} on the parameter',
}


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a definition comes from, for example ``("Li et al. 2023", "arXiv:2210.06313")``."""

    label: str
    reference: str


@dataclass(frozen=True, slots=True)
class View:
    """A figure that an analysis can draw from its stored result.

    Args:
        name: Name of the function in the views module.
        title: Title of the figure.
        caption: What is drawn and how to read it.
        formula: The definition, as text.
        table: The table with the numbers of the figure.
        citation: Where the definition comes from.
    """

    name: str
    title: str
    caption: str
    table: str
    formula: str = ""
    citation: str = ""


@dataclass(frozen=True, slots=True)
class Analysis:
    """The registered record of an analysis.

    Args:
        name: Identifier, ``[a-z][a-z0-9_]*``; also the first part of a run's folder name.
        version: Changes when a number changes for the same input.
        title: Heading in the app and the report.
        summary: One sentence.
        params: Parameter model.
        compute: Module with either ``accumulator(params, context)`` and ``result(params, context,
            accumulator)`` (fed in the shared forward pass) or ``compute(params, context)``.
        view_module: Module with one function ``(Result) -> Figure`` for each entry of ``views``.
        views: The figures, in reading order; empty for the generic ones.
        tables: Columns of every table that a result may have, by name; ``Result.add`` fills them.
        headline: Names of the scalars shown first, where the statements name none.
        statements: Module with ``statements(result)``, what a result shows in plain sentences, and ``TITLES``, what people read
            in place of the names of the scalars; see ``core/statements.py``. It imports neither torch nor plotly.
        requires: Capabilities that its inputs must have, all together.
        citations: Sources of the definitions.
        measures_time: Whether device, backend and threads join the digest.
        place: Order in listings and reports, small first; equal places go by name.
        inputs: The roles that it reads, for example ``("subject", "text")`` or ``("series*",)``; see ``core/inputs.py``. A
            parameter whose field has ``json_schema_extra={"role": ROLE}`` names further inputs of that role.
        unit: What its ``progress`` counts.
    """

    name: str
    version: str
    title: str
    summary: str
    params: type[Params]
    compute: str
    view_module: str = ""
    views: tuple[View, ...] = ()
    tables: Mapping[str, tuple[Column, ...]] = field(default_factory=dict, hash=False)
    headline: tuple[str, ...] = ()
    statements: str = ""
    requires: frozenset[str] = frozenset()
    citations: tuple[Citation, ...] = ()
    measures_time: bool = False
    place: int = 100
    inputs: tuple[str, ...] = ("subject", "text")
    unit: str = "tokens"

    @property
    def declared(self) -> tuple[Input, ...]:
        """The roles that it reads, in order."""
        return declared_inputs(self.inputs)

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the roles that it reads, in order."""
        return tuple(entry.role for entry in self.declared)

    @property
    def filled_by(self) -> dict[str, str]:
        """Parameters that name further inputs, with the role of these."""
        extras = {name: found.json_schema_extra for name, found in self.params.model_fields.items()}
        return {name: str(extra["role"]) for name, extra in extras.items() if isinstance(extra, dict) and "role" in extra}

    def fits(self, known: Iterable[Known]) -> str | None:
        """Say whether it can read what is there, without opening it.

        Args:
            known: What is known of each input; ``runner.inputs.known`` says it of a name.

        Returns:
            None if it fits, the reason if it does not, or ``NOT_KNOWN`` where only loading tells.
        """
        return why_not(self.declared, self.requires, known)

    def compute_module(self) -> Any:
        """Import and return the compute module (this may import torch)."""
        return importlib.import_module(self.compute)

    def draw(self, name: str | None, result: Result) -> go.Figure:
        """Draw the view ``name`` (the first when None) of a result.

        Raises:
            SpecError: If there is no such view.
        """
        known = [view.name for view in self.views]
        name = name or (known[0] if known else None)
        if name not in known:
            raise unknown_name("view", str(name), known, next_step=f"see: sparsescope show {self.name}")
        return getattr(importlib.import_module(self.view_module), name)(result)


class Registry:
    """Records by name. A second registration of a name is refused.

    Args:
        kind: What the records are, for messages.
    """

    def __init__(self, kind: str = "analysis") -> None:
        self.kind = kind
        self._records: dict[str, Analysis] = {}
        self.broken: dict[str, str] = {}

    def add(self, record: Analysis) -> None:
        """Register an analysis.

        Raises:
            SpecError: If it is no analysis, or its name is malformed or taken.
        """
        import re

        if not isinstance(record, Analysis):
            raise SpecError(f"this is a {type(record).__name__}, not an Analysis", got=repr(record)[:80])
        if not re.fullmatch(NAME_PATTERN, record.name):
            raise SpecError("analysis name is malformed", allowed=NAME_PATTERN, got=record.name)
        taken = {*record.params.model_fields} & {*record.roles}
        if taken or not {*record.filled_by.values()} <= {*record.roles}:
            raise SpecError(
                "a parameter has the name of an input, or fills one that is not declared",
                where=f"parameters of {record.name}",
                allowed=f"other names than {', '.join(record.roles)}; roles out of Analysis.inputs",
                got=", ".join(sorted(taken) or sorted(record.filled_by)),
            )
        if record.name in self._records:
            raise SpecError(
                f"analysis {record.name!r} is registered twice",
                got=f"{record.compute} after {self._records[record.name].compute}",
                next_step="uninstall one of the two packages",
            )
        self._records[record.name] = record

    def get(self, name: str) -> Analysis:
        """Return the analysis called ``name``.

        Raises:
            SpecError: If there is none; the message lists near matches.
        """
        if name not in self._records:
            raise unknown_name(self.kind, name, self._records, next_step="run: sparsescope list")
        return self._records[name]

    def __iter__(self) -> Iterator[Analysis]:
        return iter(sorted(self._records.values(), key=lambda record: (record.place, record.name)))

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self._records) or 'none'})"


@cache
def analyses() -> Registry:
    """Return the registry with built-in and installed analyses.

    A third-party package that fails to import does not take the tool down: it is listed in
    ``Registry.broken`` with its error and shown by ``sparsescope list``.
    """
    registry = Registry("analysis")
    _add_built_in(registry, "sparsescope.analysis")
    for point in entry_points(group="sparsescope.analyses"):
        try:
            registry.add(point.load())
        except SparsescopeError as error:
            registry.broken[point.name] = error.what
        except Exception as error:  # a foreign package may raise anything; it is reported, not hidden
            registry.broken[point.name] = f"{type(error).__name__}: {error}" + _new_field(error)
    return registry


def _new_field(error: Exception) -> str:
    """What took the place of a field of ``Analysis`` that a package of before still names."""
    for old, new in _REPLACED.items():
        if isinstance(error, TypeError) and f"unexpected keyword argument '{old}'" in str(error):
            return f"; say instead {new}"
    return ""


@cache
def benchmarks() -> Registry:
    """Return the registry of benchmarks: analyses that measure this machine and run only when asked for."""
    registry = Registry("benchmark")
    _add_built_in(registry, "sparsescope.bench")
    return registry


def find_record(name: str) -> Analysis:
    """Return the analysis or benchmark of this name.

    Raises:
        SpecError: If there is neither.
    """
    return benchmarks().get(name) if name in benchmarks() else analyses().get(name)


def _add_built_in(registry: Registry, package_name: str) -> None:
    """Register the ``ANALYSIS`` of every module of a package that declares one."""
    package = importlib.import_module(package_name)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name == "views":  # draws, declares nothing, and would load plotly
            continue
        declared = getattr(importlib.import_module(f"{package_name}.{module.name}"), "ANALYSIS", None)
        if declared is not None:
            registry.add(declared)

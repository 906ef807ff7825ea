"""The registered analyses and how they are found.

Built-ins are discovered by listing the sub-packages of ``sparsescope.analysis``; third parties register
by the entry point group ``sparsescope.analyses``. A declaration is light (no torch, no plotly): ``compute``
and ``views`` are module names, imported when they are used.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from sparsescope.core.inputs import Input, Known, declared_inputs, why_not
from sparsescope.core.named_code import Owner, function_of, module_of
from sparsescope.core.shown import Shown
from sparsescope.core.spec import Params, make_params, named_inputs
from sparsescope.errors import SparsescopeError, SpecError, unknown_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sparsescope.core.columns import Column
    from sparsescope.core.result import Result
    from sparsescope.viz.panel import Panel

NAME_PATTERN = r"[a-z][a-z0-9_]{0,63}"
#: The depth of an analysis: its defaults, or its preset ``quick``, where it declares one.
FULL, QUICK = "full", "quick"
#: What a compute module defines: both of the first, or the second.
ACCUMULATED = ("accumulator(params, context)", "result(params, context, accumulator)")
COMPUTED = "compute(params, context)"
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
        table: The table with the numbers of the figure; where a result lacks it, the view is not shown.
        citation: Where the definition comes from.
        select: Column of the table; the function then draws one of its values, ``(Result, value) -> Figure``.
            Of a table without rows the value is None, and the function says why there is nothing.
    """

    name: str
    title: str
    caption: str
    table: str
    formula: str = ""
    citation: str = ""
    select: str = ""

    def choices(self, result: Result) -> list[Any]:
        """What may be chosen: the values of the column ``select``, in the order of the table; empty of a
        view that has none.

        Raises:
            SpecError: The table is not there, or has no such column.
        """
        if not self.select:
            return []
        known = {name: frame for name, frame in result.tables.items() if name == self.table}
        columns = [column.name for name in known for column in result.columns[name]]
        if self.select not in columns:
            raise unknown_name(
                f"column of {self.table}",
                self.select,
                columns,
                next_step=f"correct View.select of {self.name}",
            )
        values: list[Any] = known[self.table][self.select].dropna().unique().tolist()
        return values

    def chosen(self, result: Result, value: Any = None) -> Any:
        """The value to draw: the given one, or the first where none is given; None where the table is empty.

        Raises:
            SpecError: The view takes no value, or its column does not have this one.
        """
        choices = self.choices(result)
        if value is None and self.select:
            return choices[0] if choices else None
        given = value.item() if getattr(value, "shape", None) == () else value  # a number of numpy
        for choice in choices:
            if type(given) in (type(choice), int) and given == choice:
                return choice
        raise SpecError(
            f"view {self.name} has nothing for this value of {self.select}"
            if self.select
            else f"view {self.name} takes no value",
            where=f"view {self.name} of {result.analysis}",
            allowed=[*map(repr, choices[:20]), *(["..."] if len(choices) > 20 else [])]
            if self.select
            else "no select",
            got=repr(value)[:200],
            next_step="choose one of View.choices(result)" if choices else None,
        )


@dataclass(frozen=True, slots=True, repr=False)
class Analysis(Shown):
    """The registered record of an analysis.

    Args:
        name: Identifier, ``[a-z][a-z0-9_]*``; also the first part of a run's folder name.
        version: Changes when a number changes for the same input.
        title: Heading in the app and the report.
        summary: One sentence.
        params: Parameter model.
        compute: Module with either ``accumulator(params, context)`` and ``result(params, context,
            accumulator)`` (fed in the shared forward pass) or ``compute(params, context)``.
        view_module: Module with one function ``(Result) -> Figure | Panel`` for each entry of ``views``; of a
            view that selects, ``(Result, value)``.
        views: The figures, in reading order; empty for the generic ones.
        tables: Columns of every table that a result may have, by name; ``Result.add`` fills them.
        headline: Names of the scalars shown first, where the statements name none.
        statements: Module with ``statements(result)``, what a result shows in plain sentences, and
            ``TITLES``, what people read in place of the names of the scalars; see ``core/statements.py``. It
            imports neither torch nor plotly.
        requires: Capabilities that its inputs must have, all together.
        citations: Sources of the definitions.
        measures_time: Whether device, backend and threads join the digest.
        place: Order in listings and reports, small first; equal places go by name.
        inputs: The roles that it reads, for example ``("subject", "text")`` or ``("series*",)``; see
            ``core/inputs.py``. A parameter whose field has ``json_schema_extra={"role": ROLE}`` names further
            inputs of that role. They are opened in this order: a text comes after who reads it.
        unit: What its ``progress`` counts; a phase that counts something else says so when it is told.
        exports: By format, ``"module:function"``, which writes a result for another tool. The function takes
            the result and an empty folder, and returns the paths of the files that it wrote.
        presets: By name, what differs from the defaults, for example ``{"quick": {"tokens": 1024}}``. A
            preset makes intervals wider, not wrong: a report takes ``quick``. Its name is a label of a stored
            run, not part of the digest. The defaults are called ``full``.
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
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    exports: Mapping[str, str] = field(default_factory=dict, hash=False)

    def _shown(self) -> dict[str, object]:
        return {
            "name": self.name,
            "title": self.title,
            "inputs": ", ".join(self.inputs),
            "parameters": ", ".join(self.params.model_fields),
            "views": ", ".join(view.name for view in self.views),
        }

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
        return named_inputs(self.params)

    def preset(self, name: str) -> dict[str, Any]:
        """What a preset sets; of ``full`` nothing.

        Raises:
            SpecError: There is no such preset.
        """
        known: dict[str, Mapping[str, Any]] = {FULL: {}, **self.presets}
        if name not in known:
            raise unknown_name(
                f"preset of {self.name}", name, known, next_step=f"see: sparsescope show {self.name}"
            )
        return dict(known[name])

    def preset_of(self, params: Params) -> str:
        """Name of the preset that gives these parameters, empty where none does."""
        return next((name for name, changes in self.presets.items() if self.params(**changes) == params), "")

    def fits(self, known: Iterable[Known]) -> str | None:
        """Say whether it can read what is there, without opening it.

        Args:
            known: What is known of each input; ``core.roles.known`` says it of a name.

        Returns:
            None if it fits, the reason if it does not, or ``NOT_KNOWN`` where only loading tells.
        """
        return why_not(self.declared, self.requires, known)

    @property
    def owner(self) -> Owner:
        """How messages about its code call it."""
        return Owner(f"analysis {self.name}", "Add an analysis", "check_analysis")

    def compute_module(self) -> Any:
        """Import and return the compute module (this may import torch).

        Raises:
            SpecError: It cannot be imported, or lacks a function.
        """
        module = module_of(self.compute, self.owner, "compute")
        if hasattr(module, "accumulator"):
            for call in ACCUMULATED:
                function_of(module, call, self.owner, "compute")
        elif hasattr(module, "compute"):
            function_of(module, COMPUTED, self.owner, "compute")
        else:
            raise SpecError(
                f"{self.owner.name} has neither the functions accumulator and result nor the function "
                "compute",
                where=f"module {self.compute}",
                allowed=f"def {' and def '.join(ACCUMULATED)}; or def {COMPUTED}",
                got=", ".join(name for name in vars(module) if not name.startswith("_"))[:200]
                or "an empty module",
                next_step=self.owner.next_step,
            )
        return module

    def view_function(self, view: View) -> Callable[..., go.Figure | Panel]:
        """Import and return the function of a view (this imports plotly).

        Raises:
            SpecError: The module cannot be imported, or lacks the function.
        """
        call = f"{view.name}(result, value)" if view.select else f"{view.name}(result)"
        module = module_of(self.view_module, self.owner, "view_module")
        drawing: Callable[..., go.Figure | Panel] = function_of(module, call, self.owner, "view_module")
        return drawing

    def draw(self, name: str | None, result: Result, select: Any = None) -> go.Figure | Panel:
        """Draw the view ``name`` (the first when None) of a result.

        Args:
            name: Name of the view.
            result: What is drawn.
            select: Value of the column ``View.select``; the first when None.

        Raises:
            SpecError: If there is no such view, it has nothing for the value, or its function is missing.
        """
        known = {view.name: view for view in self.views}
        name = name or next(iter(known), None)
        if name not in known:
            raise unknown_name("view", str(name), known, next_step=f"see: sparsescope show {self.name}")
        view = known[name]
        if select is not None and not view.select:
            view.chosen(result, select)  # refuses it
        draw = self.view_function(view)
        return draw(result, view.chosen(result, select)) if view.select else draw(result)


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
            SpecError: If it is no analysis, its name is malformed or taken, it names no module, or a
                preset is not valid.
        """
        if not isinstance(record, Analysis):
            raise SpecError(f"this is a {type(record).__name__}, not an Analysis", got=repr(record)[:80])
        if not re.fullmatch(NAME_PATTERN, record.name):
            raise SpecError("analysis name is malformed", allowed=NAME_PATTERN, got=record.name)
        required = [name for name, found in record.params.model_fields.items() if found.is_required()]
        if required:
            raise SpecError(
                "a parameter of an analysis has no default",
                where=f"parameters of {record.name}",
                got=", ".join(required),
                next_step="give it one: a report runs with the defaults; what must be given is an "
                "input, see Analysis.inputs",
            )
        taken = {*record.params.model_fields} & {*record.roles}
        if taken or not {*record.filled_by.values()} <= {*record.roles}:
            raise SpecError(
                "a parameter has the name of an input, or fills one that is not declared",
                where=f"parameters of {record.name}",
                allowed=f"other names than {', '.join(record.roles)}; roles out of Analysis.inputs",
                got=", ".join(sorted(taken) or sorted(record.filled_by)),
            )
        _check_presets(record)
        if not record.compute or (record.views and not record.view_module):
            missing = "view_module" if record.compute else "compute"
            raise SpecError(
                f"an analysis has no {missing}",
                where=f"Analysis.{missing} of {record.name}",
                allowed="the dotted name of a module",
                got=repr(getattr(record, missing)),
                next_step=record.owner.next_step,
            )
        for view in record.views:
            columns = [column.name for column in record.tables.get(view.table, ())]
            if view.select and columns and view.select not in columns:
                where = f"view {view.name} of {record.name}"
                raise unknown_name(
                    f"column of {view.table}", view.select, columns, next_step=f"correct View.select: {where}"
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
            SpecError: If there is none, with near matches, or its package cannot be used, with the reason.
        """
        if name in self.broken and name not in self._records:
            raise SpecError(
                f"the package that registers {self.kind} {name!r} cannot be used",
                got=self.broken[name],
                next_step="repair or uninstall the package that declares it",
            )
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


def _check_presets(record: Analysis) -> None:
    """Refuse a preset with the name of another, one that chooses what is read, and one that the
    parameters do not admit.

    Raises:
        SpecError: With what is wrong.
    """
    for name, changes in record.presets.items():
        where = f"preset {name!r} of {record.name}"
        if not re.fullmatch(NAME_PATTERN, name) or name == FULL:
            allowed = f"{NAME_PATTERN}; {FULL!r} is the name of the defaults"
            raise SpecError(
                "preset has a name that is malformed or taken", where=where, allowed=allowed, got=name
            )
        if read := sorted(changes.keys() & record.filled_by.keys()):
            allowed = "parameters that name no input"
            raise SpecError(
                "a preset sets parameters, never what is read",
                where=where,
                allowed=allowed,
                got=", ".join(read),
            )
        try:
            params = make_params(record.params, dict(changes), analysis=record.name)
        except SpecError as error:
            raise SpecError(
                f"{where}: {error.what}", where=where, allowed=error.allowed, got=error.got
            ) from None
        if params == record.params():
            raise SpecError(
                "a preset changes nothing", where=where, allowed="other values than the defaults", got=changes
            )


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

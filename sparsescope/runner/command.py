"""The command line that makes a run again, or the Python call where there is no such command."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from sparsescope.core.roles import role

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.core.registry import Analysis
    from sparsescope.core.spec import Params


def reproduce_command(record: Analysis, params: Params, context: Context) -> str:
    """Return the command line that makes this run again, or the Python call where there is no such command.

    Paths of this machine are not shown: of a folder or file only the last part is.

    Args:
        record: The analysis.
        params: Its parameters.
        context: Its inputs.
    """
    defaults = record.params().model_dump(mode="json")
    changed = {
        name: value for name, value in params.model_dump(mode="json").items() if value != defaults[name]
    }
    named = _first_values(record, context)
    words = ["sparsescope", "bench" if record.measures_time else "run", record.name]
    for name, value in named:
        options = role(name).functions().words(value, context.inputs, role(name).flag)
        if options is None:
            given = ", ".join(_call(name, value) for name, value in named)
            more = "".join(f", {name}={value!r}" for name, value in changed.items())
            return f"in Python: ss.run({record.name!r}, {given}{more})"
        words += options
    for name, value in changed.items():
        words += ["--set", f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"]
    return shlex.join(words)


def _first_values(record: Analysis, context: Context) -> list[tuple[str, object]]:
    """Role and value of every input but those that a parameter names."""
    filled = set(record.filled_by.values())
    return [
        (name, value)
        for name, values in context.inputs.items()
        for value in (values[:1] if name in filled else values)
    ]


def _call(name: str, value: object) -> str:
    """An argument of ``ss.run``: models, series and texts come by their place, others by keyword."""
    text: str = role(name).functions().python(value)
    return text if role(name).slot != "inputs" else f"{name}={text}"

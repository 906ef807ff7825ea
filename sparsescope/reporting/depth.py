"""What a preset leaves out, in words: of one result, and of a report of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsescope.core.registry import QUICK, Analysis
from sparsescope.core.result import Result


def left_out(record: Analysis, result: Result) -> str:
    """Say what the preset of a result changes; nothing where its parameters are of no preset.

    Args:
        record: Its analysis.
        result: The result.

    Returns:
        For example ``quick preset: tokens 1,024 of 4,096; --depth full runs the whole analysis``.
    """
    preset = str(result.provenance.get("preset") or "")
    if not preset:
        return ""
    given: Mapping[str, Any] = result.provenance.get("params") or {}
    defaults = record.params().model_dump(mode="json")
    changes = [
        _change(name.replace("_", " "), given[name], default)
        for name, default in defaults.items()
        if name in given and given[name] != default
    ]
    whole = "; --depth full runs the whole analysis" if preset == QUICK else ""
    return f"{preset} preset: {', '.join(changes) or 'what it changes is not known here'}{whole}"


def depth_of(results: Sequence[Result]) -> str:
    """Say at the head of a report how many of its analyses are quick ones; nothing where none is."""
    quick = sum(result.provenance.get("preset") == QUICK for result in results)
    if not quick:
        return ""
    which = "All of it comes" if quick == len(results) else f"{quick} of {len(results)} analyses come"
    return (
        f"{which} from quick presets: coarser grids and less held-out text, so intervals are "
        "wider. What each leaves out stands with its parameters; the same command with --depth "
        "full runs the whole analyses."
    )


def _change(name: str, given: Any, default: Any) -> str:
    """What one parameter leaves out: a smaller count, fewer values, or another value."""
    if isinstance(given, list) and isinstance(default, list) and all(value in default for value in given):
        return f"{len(given)} of {len(default)} {name}"
    if isinstance(given, int) and isinstance(default, int) and given < default:
        return f"{name} {given:,} of {default:,}"
    return f"{name} {_text(given)} instead of {_text(default)}"


def _text(value: Any) -> str:
    return (
        ", ".join(map(_text, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )

"""How the objects that users hold show themselves: one line in a terminal, a small table in a notebook.

Without this a text prints all of its documents, and a record of an analysis every column of its tables.
"""

from __future__ import annotations

from collections.abc import Mapping

from sparsescope.core.escaping import cell_html, display

_LONGEST = 80


class Shown:
    """Gives ``repr`` and the notebook's table from ``_shown``; dataclasses need ``repr=False``."""

    __slots__ = ()

    def _shown(self) -> Mapping[str, object]:
        """What it is, by words that a reader knows; a few short values."""
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = (f"{name}={_text(value)}" for name, value in self._shown().items())
        return f"{type(self).__name__}({', '.join(facts)})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{cell_html(name.replace('_', ' '))}</td>"
            f"<td style='text-align:left'>{cell_html(_text(value, quote=False), 2 * _LONGEST)}</td></tr>"
            for name, value in self._shown().items()
        )
        return f"<b>{cell_html(type(self).__name__)}</b><table>{rows}</table>"


def _text(value: object, *, quote: bool = True) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "_") if quote else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    shown = display(value, limit=_LONGEST, markup=False)
    return repr(shown) if quote else shown

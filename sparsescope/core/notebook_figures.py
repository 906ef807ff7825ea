"""Figures in notebooks that also show where plotly's own format is not known: in HTML made by nbconvert."""

from __future__ import annotations

import sys

_ALONE, _BOTH = "plotly_mimetype", "plotly_mimetype+notebook"


def also_as_html() -> None:
    """Have plotly store its figures as HTML too, in a notebook where it would store them as its JSON alone.

    That is plotly's own combination of renderers for notebooks that are converted; one that the user chose
    stays. Plotly's script is stored once, with the first figure.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    if shell is None or shell() is None:
        return  # no notebook
    import plotly.io

    if plotly.io.renderers.default == _ALONE:
        plotly.io.renderers.default = _BOTH

"""Foreign strings made safe and visible in figures: token text, labels, domains, ids, paths.

Every text of a figure that comes from data goes through ``display``; see ``core/escaping.py`` for what it
replaces and why. It lives there because stored results show themselves in notebooks without a figure.
"""

from __future__ import annotations

from sparsescope.core.escaping import display

__all__ = ["display"]

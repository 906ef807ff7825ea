"""sparsescope shows the sparse structure of trained models and measures what that structure buys.

Public names are loaded when they are first used, so ``import sparsescope`` is quick and imports no torch::

    import sparsescope as ss
    subject = ss.load("smollm2-135m")
    corpus = ss.corpus("python-docs", tokens=8192)
    result = ss.run("activation_sparsity", subject, corpus)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsescope.activations.capture import capture as capture
    from sparsescope.activations.corpus import corpus as corpus
    from sparsescope.core.registry import analyses as analyses
    from sparsescope.core.run_store import open_run
    from sparsescope.models.checkpoints import open_series as open_series
    from sparsescope.models.sources import load as load
    from sparsescope.models.sources import wrap as wrap
    from sparsescope.reporting.build import build
    from sparsescope.reporting.export import export as export
    from sparsescope.reporting.study import figure as figure
    from sparsescope.runner.run import run as run
    from sparsescope.runner.study_run import study as study

    open, report = open_run, build

__version__ = "0.1.0"

_PUBLIC = {
    "load": ("sparsescope.models.sources", "load"),
    "wrap": ("sparsescope.models.sources", "wrap"),
    "corpus": ("sparsescope.activations.corpus", "corpus"),
    "capture": ("sparsescope.activations.capture", "capture"),
    "open_series": ("sparsescope.models.checkpoints", "open_series"),
    "run": ("sparsescope.runner.run", "run"),
    "study": ("sparsescope.runner.study_run", "study"),
    "figure": ("sparsescope.reporting.study", "figure"),
    "open": ("sparsescope.core.run_store", "open_run"),
    "report": ("sparsescope.reporting.build", "build"),
    "export": ("sparsescope.reporting.export", "export"),
    "analyses": ("sparsescope.core.registry", "analyses"),
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparsescope' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})

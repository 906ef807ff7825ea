"""What a package imports to add to sparsescope: analyses, subjects, corpora, variants, inputs, recipes.

A package declares records and names them in its entry points; sparsescope then lists, runs, stores, draws
and compares them with no edit elsewhere. Declarations import no torch, and neither does this module::

    # toy_sparsity/__init__.py; in pyproject.toml: [project.entry-points."sparsescope.analyses"]
    from sparsescope.plugin import Analysis, Column, Field, Params, View

    class ShareParams(Params):
        above: float = Field(0.0, description="Threshold.")

    POSITIVE_SHARE = Analysis(
        name="positive_share", version="1", title="Share of positive activations",
        summary="How many activations of a layer are above a threshold.",
        params=ShareParams, compute="toy_sparsity.share", view_module="toy_sparsity.views",
        tables={"shares": (Column("layer", "layer", "Layer."),
                           Column("share", "fraction", "Share above it."))},
        views=(View("shares", "Positive activations by layer", "One bar for each layer.", table="shares"),),
    )

    # toy_sparsity/share.py: imported when the analysis runs
    from sparsescope.plugin import Context, Result

    def compute(params: ShareParams, context: Context) -> Result: ...

    # toy_sparsity/views.py: imported when a figure is drawn
    def shares(result: Result) -> plotly.graph_objects.Figure: ...

==========================  =========================================================================
entry point group           record
==========================  =========================================================================
``sparsescope.analyses``    ``Analysis``, with ``View``, ``Column``, ``Citation`` and a ``Params``
``sparsescope.subjects``    ``SubjectEntry``: its loader turns a ``LoadRequest`` into a ``LoadedModel``
``sparsescope.corpora``     ``CorpusEntry``, which yields ``Document`` objects
``sparsescope.variants``    ``VariantKind``: a subject made from another
``sparsescope.inputs``      ``Role``: another kind of input; ``Known`` says what its name alone tells
``sparsescope.recipes``     ``RecipeKind``: what trains artifacts of a kind
==========================  =========================================================================

An analysis gets a ``Context`` and gives a ``Result``. One that reads activations in the shared forward pass
has an ``Accumulator`` (``DocumentAccumulator`` is a base for it), which is fed ``ActivationBatch`` objects;
``DocumentBootstrap`` gives an ``Estimate`` with its ``Interval`` over documents. The module of
``Analysis.statements`` says what a result shows, as ``Statement`` objects whose numbers ``said`` and
``basis`` write; ``describe`` sets title and alt text of a figure. ``sparsescope.testing`` holds
records to their contracts; ``CONTRIBUTING.md`` has the recipes step by step.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsescope.activations.accumulators import Accumulator, DocumentAccumulator, with_room
from sparsescope.activations.context import Context
from sparsescope.activations.text.documents import CorpusEntry, Document
from sparsescope.core.artifacts import Artifact
from sparsescope.core.columns import Column
from sparsescope.core.inputs import Known
from sparsescope.core.numbers import Interval, Scalar
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.result import Note, Result, Tensor
from sparsescope.core.roles import Role
from sparsescope.core.spec import Params
from sparsescope.core.statements import Statement, basis, defined, said
from sparsescope.core.tables import places, with_interval
from sparsescope.errors import SparsescopeError, SpecError, SubjectError
from sparsescope.metrics.estimates import DocumentBootstrap, Estimate
from sparsescope.models.entries import LoadedModel, LoadRequest, SubjectEntry
from sparsescope.models.variants import VariantKind
from sparsescope.training.kinds import RecipeKind

if TYPE_CHECKING:
    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.subject import Subject
    from sparsescope.viz.figure import describe

# These import torch or plotly, so they are loaded when they are first used.
_LAZY = {
    "ActivationBatch": "sparsescope.activations.capture",
    "CheckpointSeries": "sparsescope.models.checkpoints",
    "Subject": "sparsescope.models.subject",
    "describe": "sparsescope.viz.figure",
}

__all__ = [
    "Accumulator",
    "ActivationBatch",
    "Analysis",
    "Artifact",
    "CheckpointSeries",
    "Citation",
    "Column",
    "Context",
    "CorpusEntry",
    "Document",
    "DocumentAccumulator",
    "DocumentBootstrap",
    "Estimate",
    "Field",
    "Interval",
    "Known",
    "LoadRequest",
    "LoadedModel",
    "Note",
    "Params",
    "RecipeKind",
    "Result",
    "Role",
    "Scalar",
    "SparsescopeError",
    "SpecError",
    "Statement",
    "Subject",
    "SubjectEntry",
    "SubjectError",
    "Tensor",
    "VariantKind",
    "View",
    "basis",
    "defined",
    "describe",
    "places",
    "said",
    "with_interval",
    "with_room",
]


def __getattr__(name: str) -> Any:
    """Import a name that needs torch or plotly when it is first used (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'sparsescope.plugin' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

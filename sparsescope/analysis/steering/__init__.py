"""Steering: does adding a feature's direction make a model say its concept, at equal strength.

The domains of a text are its concepts (WordNet's noun classes). For every concept each method gives one
direction, chosen on one half of the documents: difference in means, the feature of a dictionary that tells
the concept best, a random direction. It is added, and subtracted, at the same site and the same positions,
with the strength at which the predictions for neutral text have moved by a given KL divergence. The lift says
how much more the model then expects text of the concept than other text, on documents that nothing was chosen
on. Every method has as many tries.
Shapes: activations [token, d] of the site; directions [d].
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from sparsescope.analysis.steering.tables import TABLES
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params


class SteeringParams(Params):
    """Parameters of ``steering``."""

    site: str = Field(
        "",
        description="Where directions are added, where no dictionary is given; the hidden layer of the "
        "middle MLP when left out.",
    )
    targets: tuple[Annotated[float, Field(gt=0, le=10)], ...] = Field(
        (0.05, 0.15, 0.35), description="KL divergences in nats a token.", min_length=1, max_length=8
    )
    concepts: int = Field(26, ge=2, le=1000, description="Most concepts; those with most documents.")
    components: int = Field(
        100, ge=2, le=10_000, description="Features of the SNMF that is made where no dictionary is given."
    )
    iterations: int = Field(60, ge=1, le=10_000, description="Its most iterations.")
    neuron_share: float = Field(0.05, gt=0, le=1, description="Share of the neurons of each.")
    own_documents: int = Field(
        4, ge=1, le=1000, description="Test documents of a concept that are scored; half as many of training."
    )
    other_documents: int = Field(
        8, ge=2, le=1000, description="Test documents of other concepts; half as many of training."
    )
    neutral_documents: int = Field(3, ge=1, le=1000, description="Documents that strengths are set on.")
    document_tokens: int = Field(
        96, ge=16, le=10_000, description="Most tokens of a document that is scored."
    )
    resamples: int = Field(2000, ge=100, le=100_000, description="Bootstrap resamples of concepts.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of every draw.")

    @field_validator("targets")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) != len(value):
            raise ValueError("targets must be distinct")
        return tuple(sorted(value))


ANALYSIS = Analysis(
    name="steering",
    place=68,
    version="1",
    title="Steering by features",
    summary="Whether adding a feature's direction makes a model expect its concept, at equal KL divergence.",
    params=SteeringParams,
    compute="sparsescope.analysis.steering.compute",
    view_module="sparsescope.analysis.steering.views",
    views=(
        View(
            "lifts",
            "How much each method steers",
            "Lift at equal divergence, mean over concepts with its interval: by how much the loss on text of "
            "the concept falls more than on text of other concepts when the direction is added. The last "
            "group takes of each method the try (divergence and sign) that did best on training documents.",
            table="methods",
            formula="lift = fall of the loss on own text - fall of the loss on other text, nats a token",
            citation="Shafran et al. 2025, arXiv:2506.10920",
        ),
        View(
            "contrasts",
            "Adding against subtracting",
            "Half of the difference of the lifts of adding and of subtracting a direction. Any perturbation "
            "spoils some texts more than others, whatever its sign; this takes that out. Of random "
            "directions it is zero but for chance.",
            table="methods",
            formula="contrast = (lift(+) - lift(-)) / 2",
        ),
        View(
            "detection",
            "Does the direction tell the concept",
            "Area under the ROC curve of documents of the concept against others, by what the direction (or "
            "its feature) says of them, on documents that it was not chosen on.",
            table="detection",
        ),
        View(
            "concepts",
            "Concept by concept",
            "Contrast of every method for each concept, mean over the divergences.",
            table="concepts",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.steering.statements",
    inputs=("subject", "text", "dictionary*?"),
    requires=frozenset({"causal", "logits"}),
    unit="directions",
    presets={
        "quick": {
            "targets": (0.15,),
            "concepts": 2,
            "components": 24,
            "iterations": 10,
            "own_documents": 2,
            "other_documents": 4,
            "neutral_documents": 2,
            "document_tokens": 48,
            "resamples": 200,
        }
    },
    citations=(
        Citation("Shafran et al. (2025): SNMF, steering", "https://arxiv.org/abs/2506.10920"),
        Citation("Marks & Tegmark (2023): difference in means", "https://arxiv.org/abs/2310.06824"),
        Citation("WordNet", "https://wordnet.princeton.edu"),
    ),
)

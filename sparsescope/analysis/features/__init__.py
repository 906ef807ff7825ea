"""Features: what single features of a dictionary fire on, said by tokens and tested on other documents.

Dictionaries that are given are read; where none is given, a semi-nonnegative factorization of the hidden
layer of an MLP is fitted, which needs little text. One pass over the text writes for each dictionary where
each of its features is active (``core/feature_store.py``), and everything else is read from there. Labels are
short sets of tokens, made without a language model, and scored on documents that they were not made from.
Shapes: F features; rows are tokens of the text.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator

from sparsescope.analysis.features.tables import TABLES
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params

Control = Literal["neurons", "random"]


class FeaturesParams(Params):
    """Parameters of ``features``."""

    site: str = Field(
        "",
        description="Where a dictionary is made, and where given ones are that do not say it; the hidden "
        "layer of the MLP in the middle of the model when left out.",
    )
    components: int = Field(
        100, ge=1, le=10_000, description="Features of the SNMF that is made where none is given."
    )
    neuron_share: float = Field(
        0.05, gt=0, le=1, description="Share of the neurons that each of its features keeps."
    )
    iterations: int = Field(60, ge=1, le=10_000, description="Its most iterations.")
    baselines: tuple[Control, ...] = Field(
        ("neurons",), description="What stands beside: single neurons, random directions.", max_length=2
    )
    describe_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of the text that labels, and the SNMF, are made from; the rest scores them.",
    )
    firing_share: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="A feature that is active more often fires where it is among its strongest, on this "
        "share of the tokens.",
    )
    label_types: int = Field(8, ge=1, le=100, description="Most tokens of a label.")
    top: int = Field(8, ge=1, le=50, description="Strongest contexts of a feature that are shown.")
    window: int = Field(12, ge=1, le=100, description="Tokens before and after the one a context is of.")
    shown: int = Field(
        30,
        ge=1,
        le=50,
        description="Features of each dictionary, drawn at random, whose contexts are kept as tables; 50 in "
        "all dictionaries.",
    )
    pair_rows: int = Field(
        65_536, ge=256, le=10_000_000, description="Tokens on which firing together is counted."
    )
    map: bool = Field(True, description="Whether a map of the directions is drawn.")
    levels: tuple[int, ...] = Field(
        (),
        description="Components of the levels above an SNMF, descending, for example 50, 25.",
        max_length=6,
    )
    queries: int = Field(100, ge=0, le=10_000, description="Windows that search is tried with; 0 for none.")
    permutations: int = Field(
        500, ge=20, le=100_000, description="Permutations of the domains over documents."
    )
    resamples: int = Field(200, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of every draw.")

    @field_validator("levels")
    @classmethod
    def _descending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(low >= high for high, low in pairwise(value)) or min(value, default=1) < 1:
            raise ValueError("each level has fewer components than the level below, and one at least")
        return value


ANALYSIS = Analysis(
    name="features",
    place=67,
    version="1",
    title="What features fire on",
    summary="Features of a dictionary with the tokens they fire on, labels tested on other documents, and "
    "what they raise.",
    params=FeaturesParams,
    compute="sparsescope.analysis.features.compute",
    view_module="sparsescope.analysis.features.views",
    views=(
        View(
            "labels",
            "Does a label say where a feature fires",
            "A label is a short set of tokens, or a class of tokens, chosen on one half of the documents. "
            "The figure shows how well labels predict firing on the other half (area under the ROC curve): "
            "the middle half of the features as a bar, the median as a dot with its interval. Controls "
            "predict with the label of another feature that is about as dense, and with random tokens about "
            "as frequent.",
            table="label_scores",
            formula="AUROC = P(score of a token that fires > score of one that does not) + half of the ties",
        ),
        View(
            "browser",
            "Features at random",
            "Features that fire, drawn at random: none was chosen because it reads well. Open one to see its "
            "strongest contexts; the color is the activation. Type to filter by token, label or logit.",
            table="contexts",
        ),
        View(
            "feature",
            "One feature",
            "Label and its test, how strongly it is active, what its direction does to the logits, and "
            "contexts: the strongest, some from each quarter of its activations, weak ones, and tokens of "
            "the text at random.",
            table="features",
            select="name",
            formula="logits = W_U (gain of the final norm * direction), mean over the vocabulary taken out",
        ),
        View(
            "densities",
            "How often features are active",
            "Share of the features by the share of the tokens on which they are active.",
            table="densities",
        ),
        View(
            "domains",
            "Features of one kind of text",
            "Share of the features whose firing depends on the domain of the text, at a false discovery rate "
            "of 5 %, by the domain where they fire most. The null deals domains to whole documents: tokens "
            "of a document belong together.",
            table="domains",
        ),
        View(
            "retrieval",
            "Finding text by features",
            "Mean reciprocal rank of the right window of 128 tokens: the one that an excerpt is from, and "
            "the one that follows another in its document. The model reads both sides apart: activations "
            "carry what it has read. BM25 on the tokens of the same windows stands "
            "beside it. Bars are document-cluster bootstrap intervals.",
            table="retrieval",
            citation="Robertson & Zaragoza 2009; SPLADE, arXiv:2107.05720",
        ),
        View(
            "pruning",
            "What pruned search reads and misses",
            "Recall of the ten best against the share of the postings that are read, with block-max pruning. "
            "At alpha 1 nothing is lost; below it bounds are taken for smaller than they are.",
            table="pruning",
            citation="Mallia et al. 2024, arXiv:2405.01117",
        ),
        View(
            "map",
            "A map of the features",
            "Directions in two dimensions (t-SNE of their cosines): near on the map is near in direction, "
            "for near neighbours only; distances between groups mean nothing.",
            table="map",
            select="dictionary",
        ),
        View(
            "sharing",
            "Neurons that features share",
            "How many neurons are used by how many features of a dictionary whose features have few neurons, "
            "and what chance would give.",
            table="sharing",
            citation="Shafran et al. 2025, arXiv:2506.10920",
        ),
        View(
            "tree",
            "Features of features",
            "Each component of a level is a sum of components of the level below; the heaviest children of "
            "each, down to the features of the dictionary.",
            table="tree",
            citation="Shafran et al. 2025, arXiv:2506.10920",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.features.statements",
    exports={"neuronpedia": "sparsescope.analysis.features.neuronpedia:write_neuronpedia"},
    inputs=("subject", "text", "dictionary*?"),
    presets={
        "quick": {
            "components": 48,
            "iterations": 15,
            "shown": 12,
            "top": 5,
            "queries": 0,
            "permutations": 100,
            "resamples": 100,
        }
    },
    citations=(
        Citation("Shafran et al. (2025): SNMF", "https://arxiv.org/abs/2506.10920"),
        Citation(
            "Bricken et al. (2023): features and their contexts",
            "https://transformer-circuits.pub/2023/monosemantic-features",
        ),
        Citation("Karvonen et al. (2025): SAEBench", "https://arxiv.org/abs/2503.09532"),
    ),
)

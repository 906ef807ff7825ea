"""Dictionary quality: which features a layer uses, how well each kind of dictionary describes it, and what
the model loses when it goes on with the description.

Dictionaries that are given are scored on documents that they have not seen; where none is given, a TopK
autoencoder and an SNMF are trained on a share of the text and kept. Principal components, single neurons and
random directions with as many active features stand beside every score.
Shapes: D documents, rows [row, d], codes CSR [row, feature].
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sparsescope.analysis.dictionary_quality.tables import TABLES
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params

Baseline = Literal["pca", "pca_topk", "neurons", "random"]


class DictionaryQualityParams(Params):
    """Parameters of ``dictionary_quality``."""

    site: str = Field(
        "",
        description="Where dictionaries are trained, and where given ones are that do not say it; the hidden "
        "layer of the MLP in the middle of the model when left out.",
    )
    width: int = Field(
        4096,
        ge=2,
        le=1_000_000,
        description="Features of the autoencoder that is trained where none is given.",
    )
    k: int = Field(32, ge=1, le=100_000, description="Its active features of a token.")
    epochs: int = Field(24, ge=1, le=10_000, description="How often it reads the text.")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Highest learning rate; 1e-3 sqrt(4096 / width) when left out."
    )
    components: int = Field(
        128, ge=1, le=10_000, description="Features of the SNMF that is trained where none is given."
    )
    neuron_share: float = Field(
        0.05, gt=0, le=1, description="Share of the neurons that each feature of the SNMF keeps."
    )
    iterations: int = Field(60, ge=1, le=10_000, description="Most iterations of the SNMF.")
    train_share: float = Field(
        0.6, gt=0, lt=1, description="Share of the text that they are trained on; the rest is for evaluation."
    )
    match_l0: float | None = Field(
        None,
        gt=0,
        description="Set the thresholds of given dictionaries, on documents of their own, so that this many "
        "features are active.",
    )
    baselines: tuple[Baseline, ...] = Field(
        ("pca", "pca_topk", "neurons", "random"),
        description="What stands beside them, with as many active features.",
        max_length=4,
    )
    splice_baselines: tuple[Baseline, ...] = Field(
        ("pca", "pca_topk", "neurons", "random"),
        description="Those of the baselines that the model is run with as well.",
        max_length=4,
    )
    loss_tokens: int = Field(
        8192,
        ge=64,
        le=10_000_000,
        description="Tokens of the evaluation documents that losses are measured on.",
    )
    loss_document_tokens: int = Field(
        256, ge=16, le=1_000_000, description="Most of one document: many documents tell more than long ones."
    )
    probe_rows: int = Field(4096, ge=64, le=1_000_000, description="Tokens that probes read.")
    probe_sizes: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        (1, 2, 5), description="Features that a sparse probe may use.", min_length=1, max_length=8
    )
    permutations: int = Field(
        2, ge=1, le=100, description="Permutations of the labels for the null of probes."
    )
    absorption: bool = Field(True, description="Measure the absorption of first letters.")
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of division, training, random directions and bootstrap.")

    @field_validator("probe_sizes")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("values must be distinct")
        return tuple(sorted(value))


ANALYSIS = Analysis(
    name="dictionary_quality",
    place=65,
    version="1",
    title="Features of a layer",
    summary="How well dictionaries of features describe a layer, and what the model loses with them.",
    params=DictionaryQualityParams,
    compute="sparsescope.analysis.dictionary_quality.compute",
    view_module="sparsescope.analysis.dictionary_quality.views",
    views=(
        View(
            "frontier",
            "What is left unexplained, with how many features",
            "Fraction of variance unexplained (FVU) against the mean number of active features (L0), on "
            "documents that no dictionary has seen. Left and low is better; only points above each other "
            "are compared at equal L0. Open markers were never trained: they are what a dictionary has to "
            "beat. Bars are document-cluster bootstrap intervals.",
            table="quality",
            formula="FVU = sum |x - r|^2 / sum |x - mean|^2",
            citation="Gao et al. 2024, arXiv:2406.04093",
        ),
        View(
            "splice",
            "What the model loses with the description",
            "Rise of the loss of the next token when the model goes on with what a dictionary makes of the "
            "layer. This is the number that counts: variance that is not explained may not matter to the "
            "model, and the other way round. Setting the layer to zero, or to its mean, is the scale.",
            table="splice",
            formula="rise = mean over tokens of loss(spliced) - loss(model), same tokens",
            citation="Gao et al. 2024, arXiv:2406.04093",
        ),
        View(
            "comparisons",
            "Is one better than the other",
            "Paired differences between dictionaries, and between each and the baselines with as many "
            "active features. An interval that contains zero does not tell the two apart on this text. "
            "Where L0 differs (open markers), nothing follows if the better one has more active features.",
            table="comparisons",
            select="measure",
        ),
        View(
            "rules",
            "Is one rule better than another, in every seed",
            "Difference of the variance unexplained by two rules with as many active features, mean over "
            "the seeds that both were trained with. Dots have document intervals; ticks are the smallest and "
            "the largest difference of one seed.",
            table="rules",
        ),
        View(
            "densities",
            "How often features are active",
            "Share of the features by the share of tokens on which they are active. A peak at the right end "
            "are features that are nearly always on, which stand for no event; features that are never "
            "active are not in the figure.",
            table="densities",
            formula="density = tokens on which the feature is active / tokens",
        ),
        View(
            "dead_curve",
            "How long one must look to call a feature dead",
            "Share of the features that were active on none of the first n tokens. A curve that still falls "
            "at its end says that features are rare rather than dead.",
            table="dead_curve",
        ),
        View(
            "probing",
            "What few features say about a token",
            "Balanced accuracy of a probe that may use few features, on documents that it was not fitted "
            "on: mean over the tasks of a group. Lines mark the same procedure with permuted labels. Single "
            "neurons stand beside the dictionaries.",
            table="probing",
            citation="sparse probing, arXiv:2305.01610; SAEBench, arXiv:2503.09532",
        ),
        View(
            "absorption",
            "Features with holes",
            "Share of the tokens of a first letter on which the feature of that letter is silent, since "
            "another, more special one carries the letter. Two sets of parameters are in use, which give "
            "other numbers.",
            table="absorption",
            citation="Chanin et al. 2024, arXiv:2409.14507",
        ),
        View(
            "seeds",
            "Do two trainings find the same features",
            "Mean cosine of the best one-to-one matching of the directions of two dictionaries that differ "
            "by their seed, with what random directions agree by. Data directions are the harder measure: "
            "activations fill few of their dimensions.",
            table="seeds",
            formula="MCC = mean cosine of the matching that makes it largest",
            citation="arXiv:2505.20254",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.dictionary_quality.statements",
    inputs=("subject", "text", "dictionary*?"),
    presets={
        "quick": {
            "width": 1024,
            "epochs": 6,
            "components": 48,
            "iterations": 15,
            "splice_baselines": ("neurons",),
            "loss_tokens": 768,
            "loss_document_tokens": 48,
            "probe_rows": 2048,
            "absorption": False,
            "resamples": 500,
        }
    },
    citations=(
        Citation("Gao et al. (2024): TopK", "https://arxiv.org/abs/2406.04093"),
        Citation("Bussmann et al. (2024): BatchTopK", "https://arxiv.org/abs/2412.06410"),
        Citation("Bussmann et al. (2025): Matryoshka", "https://arxiv.org/abs/2503.17547"),
        Citation("Rajamanoharan et al. (2024): JumpReLU", "https://arxiv.org/abs/2407.14435"),
        Citation(
            "Rajamanoharan et al. (2024): Gated, reconstruction bias", "https://arxiv.org/abs/2404.16014"
        ),
        Citation("Karvonen et al. (2025): SAEBench", "https://arxiv.org/abs/2503.09532"),
        Citation("Shafran et al. (2025): SNMF", "https://arxiv.org/abs/2506.10920"),
        Citation("Chanin et al. (2024): absorption", "https://arxiv.org/abs/2409.14507"),
    ),
)

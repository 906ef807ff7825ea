"""Routing over training: when a router settles, and whether experts specialize while the model learns.

Every checkpoint reads the same tokens: the held-out text of the series, or one that is given. Saturation is
the share of its experts that a checkpoint already shares with the last one, churn what changes from the one
before; both beside what equal loads, and what a router that knows the token alone, would share by chance.
Specialization is mutual information beyond permuted labels of documents, beside the same checkpoint with
shuffled routers and as a paired difference from the first checkpoint: a model with random weights already
tells documents apart. Definitions and sources: ``metrics.routing``, ``metrics.document_nulls``.
Shapes: T checkpoints, L layers, D documents.
"""

from __future__ import annotations

from pydantic import Field

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import JACKKNIFED, LAYER, with_interval


class MoeRoutingOverTrainingParams(Params):
    """Parameters of ``moe_routing_over_training``."""

    permutations: int = Field(
        1000, ge=99, le=100_000, description="Permuted labels of documents behind each null."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of permutations, resamples and controls.")
    least_documents: int = Field(
        20, ge=2, description="Documents that every domain needs before domains are compared with intervals."
    )
    controls: int = Field(
        3,
        ge=0,
        le=100,
        description="Draws of shuffled routers that read the text at every checkpoint too, each as long "
        "as a pass.",
    )


_STEP = Column("step", "step", "Optimizer step of the checkpoint.")
_DOCUMENTS = Column("documents", "count", "Documents behind the row; they are the independent units.")


def _nats(name: str, description: str) -> Column:
    return Column(name, "value", description, "nats")


TABLES: dict[str, tuple[Column, ...]] = {
    "saturation": (
        _STEP,
        LAYER,
        *with_interval(
            Column(
                "saturation",
                "fraction",
                "Share of the experts of a token that the last checkpoint chooses too.",
            )
        ),
        *with_interval(
            Column("churn", "fraction", "1 - the same with the checkpoint before."), prefix="churn_"
        ),
        Column(
            "first_choice", "fraction", "Share of tokens whose first choice is that of the last checkpoint."
        ),
        Column("uniform_chance", "fraction", "k / E."),
        Column(
            "load_chance", "fraction", "Saturation of independent choices with the loads of both checkpoints."
        ),
        Column(
            "token_chance",
            "fraction",
            "The same where each token id has the loads that it has at both checkpoints; NaN where ids "
            "are rare.",
        ),
        Column("tokens", "count", "Tokens after the first of each window."),
        _DOCUMENTS,
    ),
    "specialization": (
        _STEP,
        LAYER,
        Column("measure", "metric", "I(E; D) of expert and domain, or the same given the token id."),
        _nats("information", "Plug-in mutual information, which chance makes positive."),
        _nats("null_mean", "The same with the labels of domains dealt anew to whole documents, mean."),
        Column("z", "value", "(information - null_mean) / its standard deviation."),
        Column("p", "value", "Share of permutations that reach the observed value, itself included."),
        *with_interval(_nats("excess", "information - null_mean: what chance does not give."), JACKKNIFED),
        _nats(
            "shuffled",
            "excess of the same checkpoint with shuffled routers, against its own null; mean over draws.",
        ),
        _nats("shuffled_sd", "Its standard deviation over draws; NaN for one draw."),
        *with_interval(
            _nats("beyond_shuffled", "excess - shuffled, on the same documents."),
            f"{JACKKNIFED}, paired,",
            "beyond_",
        ),
        *with_interval(
            _nats("since_start", "excess minus that of the first checkpoint, on the same documents."),
            f"{JACKKNIFED}, paired,",
            "start_",
        ),
        _DOCUMENTS,
    ),
    "load": (
        _STEP,
        LAYER,
        Column(
            "cv", "value", "Standard deviation of the tokens of an expert over their mean; 0 is balanced."
        ),
        Column("normalized_entropy", "fraction", "Entropy of the shares of slots over ln E; 1 is balanced."),
        Column("max_violation", "value", "MaxVio: (largest load - mean) / mean, over the whole text."),
        Column("dead", "fraction", "Share of experts without a token; not known below 50 E / k tokens."),
        _nats("router_entropy", "Mean entropy of the router's probabilities on a token; ln E at most."),
        Column("tokens", "count", "Tokens after the first of each window."),
    ),
}

ANALYSIS = Analysis(
    name="moe_routing_over_training",
    place=115,
    version="1",
    title="Routing over training",
    summary="When the routers of a mixture settle, and whether experts specialize beyond chance while it "
    "learns.",
    params=MoeRoutingOverTrainingParams,
    compute="sparsescope.analysis.moe_routing_over_training.compute",
    view_module="sparsescope.analysis.moe_routing_over_training.views",
    views=(
        View(
            "saturation",
            "When the routers settle",
            "Share of the experts of a token that a checkpoint shares with the last one. Thin lines: "
            "layers. Thick: "
            "their mean. Dotted: independent choices with the loads of both checkpoints. Dashed: choices "
            "that know "
            "the token id alone. Settling means more than what loads and token ids give. The last "
            "checkpoint shares "
            "everything with itself. A learning rate that falls lowers churn whatever is learned.",
            table="saturation",
            formula="mean |S_t(step) and S_t(last)| / k",
            citation="Muennighoff et al. 2024, arXiv:2409.02060, section 5.1",
        ),
        View(
            "specialization",
            "Whether experts specialize",
            "Mutual information of expert and domain where the token id is known, less what permuted "
            "labels of "
            "documents give, mean over layers. Gray: the same checkpoints with shuffled routers. The first "
            "checkpoint is a model that has learned nothing.",
            table="specialization",
            formula="I(E; D | token) - mean of the permuted labels",
        ),
        View(
            "load",
            "Load over training",
            "Coefficient of variation of the load, and entropy of its shares, by layer.",
            table="load",
            formula="sd(N_e) / mean(N_e);  H(f) / ln E",
            citation="Shazeer et al. 2017, arXiv:1701.06538",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.moe_routing_over_training.statements",
    headline=("early_saturation", "load_cv_last"),
    inputs=("series", "text"),
    unit="checkpoints",
    requires=frozenset({"experts"}),
    presets={"quick": {"permutations": 199, "resamples": 300, "controls": 1}},
    citations=(
        Citation("Muennighoff et al. 2024, OLMoE", "https://arxiv.org/abs/2409.02060"),
        Citation(
            "Shazeer et al. 2017, Sparsely-Gated Mixture-of-Experts", "https://arxiv.org/abs/1701.06538"
        ),
    ),
)

"""Routing of a mixture of experts: how even the load is, what experts specialize in, and which can go.

Specialization is mutual information of experts and domains, with and without what the token id tells,
against two
nulls: labels of domains dealt anew to whole documents, and the same model with its routers shuffled. Where an
expert matters for a domain is asked by taking it away, beside experts of like load. Shares of a text say how
often experts are chosen; chance stands beside each. Definitions and sources: ``metrics.expert_load``,
``coactivation``, ``specialization``, ``document_nulls``, ``routing_locality``, ``expert_cache``,
``super_experts``, ``expert_similarity``.
Shapes: L layers with a router, E experts, k of them per token, D documents.
"""

from __future__ import annotations

from pydantic import Field

from sparsescope.analysis.moe_routing.declared import TABLES, VIEWS
from sparsescope.core.registry import Analysis, Citation
from sparsescope.core.spec import Params


class MoeRoutingParams(Params):
    """Parameters of ``moe_routing``."""

    permutations: int = Field(
        1000, ge=99, le=100_000, description="Permuted labels of documents behind each null."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of permutations, resamples, samples and controls.")
    least_documents: int = Field(
        20, ge=2, description="Documents that every domain needs before domains are compared with intervals."
    )
    controls: int = Field(
        3,
        ge=0,
        le=100,
        description="Draws of shuffled routers that read the text too, each as long as a pass.",
    )
    lags: int = Field(8, ge=1, le=64, description="Distances of tokens whose experts are compared.")
    segment: int = Field(16, ge=2, le=1024, description="Tokens of a segment that a cache of experts serves.")
    alike: int = Field(
        512,
        ge=0,
        le=65_536,
        description="Tokens on which all experts of a layer are compared; 0 leaves it out.",
    )
    ablation_tokens: int = Field(
        8192, ge=0, description="Tokens of the text that is read without some experts; 0 leaves it out."
    )
    matched: int = Field(
        2, ge=1, le=16, description="Experts of like load beside each one that is taken away."
    )
    removed: tuple[float, ...] = Field(
        (0.125, 0.25, 0.375, 0.5),
        description="Shares of the experts of every layer that go, least salient first.",
    )
    random_orders: int = Field(3, ge=1, le=100, description="Random orders beside the criteria of pruning.")


ANALYSIS = Analysis(
    name="moe_routing",
    place=60,
    version="1",
    title="Mixture-of-experts routing",
    summary="How even the load of experts is, what they specialize in beyond chance, and which can go.",
    params=MoeRoutingParams,
    compute="sparsescope.analysis.moe_routing.compute",
    view_module="sparsescope.analysis.moe_routing.views",
    views=VIEWS,
    tables=TABLES,
    statements="sparsescope.analysis.moe_routing.statements",
    headline=("normalized_entropy", "max_violation", "shared_by_neighbors"),
    requires=frozenset({"experts"}),
    presets={
        "quick": {
            "permutations": 199,
            "controls": 1,
            "resamples": 300,
            "alike": 256,
            "ablation_tokens": 2048,
            "matched": 1,
            "removed": (0.25, 0.5),
            "random_orders": 1,
        }
    },
    citations=(
        Citation("Muennighoff et al. 2024, OLMoE", "https://arxiv.org/abs/2409.02060"),
        Citation("Jiang et al. 2024, Mixtral of Experts", "https://arxiv.org/abs/2401.04088"),
        Citation("Fedus et al. 2021, Switch Transformers", "https://arxiv.org/abs/2101.03961"),
        Citation("REAP the Experts, 2025", "https://arxiv.org/abs/2510.13999"),
    ),
)

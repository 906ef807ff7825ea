"""Sparse inference: which share of its weights a model can leave unread for a token, by which method, at
which loss.

Every method masks inputs of the block matrices (``sparsescope.inference``) in a copy that shares the weights,
calibrated on some documents, chosen on others, and measured beside the dense model on held-out ones.
Shapes: D documents, M masks.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from sparsescope.analysis.sparse_inference.tables import TABLES
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.errors import SparsescopeError
from sparsescope.inference.methods import read_method
from sparsescope.inference.prefix import PrefixPolicy

Share = Annotated[float, Field(gt=0, lt=1)]


class SparseInferenceParams(Params):
    """Parameters of ``sparse_inference``."""

    methods: tuple[str, ...] = Field(
        ("teal", "wina", "wina_released", "was", "rsparse", "cats", "auto"),
        description="What is compared at every target: METHOD[+ALLOCATION]; methods teal, wina, "
        "wina_released, was, rsparse, cats, top_p, cett, auto; allocations greedy, blocks, rotated.",
        min_length=1,
        max_length=16,
    )
    targets: tuple[Share, ...] = Field(
        (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.65),
        description="Shares of the block-matrix bytes that a token is not to read.",
        min_length=1,
        max_length=24,
    )
    prefixes: tuple[str, ...] = Field(
        ("all_sparse", "decode_only"),
        description="Prefix policies: all_sparse, dense_first_n:N, dense_fraction:F, decode_only.",
        min_length=1,
        max_length=6,
    )
    beside: tuple[str, ...] = Field(
        (),
        description="Methods measured at the targets of comparison alone, under the first prefix policy.",
        max_length=12,
    )
    compare_at: tuple[Share, ...] = Field(
        (0.25, 0.4, 0.5, 0.65),
        description="Targets at which methods are compared at equal bytes; they are measured in any case.",
        max_length=8,
    )
    reference: str = Field("auto", description="The method that the others are compared with.")
    choose: bool = Field(
        True,
        description="Let auto choose factors and centres on development text, which takes minutes; without, "
        "its Fisher weights and its budget alone.",
    )
    tolerances: tuple[Annotated[float, Field(gt=0, le=5)], ...] = Field(
        (0.01, 0.05, 0.1),
        description="Rises of the perplexity, as shares, at which the usable range is read.",
        min_length=1,
        max_length=6,
    )
    detail_at: Share = Field(
        0.5, description="The target at which matrices and masks are looked at one by one."
    )
    detail_methods: tuple[str, ...] = Field(
        ("teal", "wina", "auto"),
        description="Methods that are looked at so, and whose continuations are compared.",
        max_length=6,
    )
    divergence_at: tuple[Share, ...] = Field(
        (0.25, 0.5), description="Targets at which continuations are compared.", max_length=4
    )
    prompts: int = Field(16, ge=0, le=1024, description="Prompts that are continued; 0 for none.")
    prompt_tokens: int = Field(32, ge=2, le=100_000, description="Tokens of a prompt.")
    new_tokens: int = Field(64, ge=2, le=100_000, description="Tokens written after a prompt.")
    pruned: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="Sparsity of weights (Wanda) of one row that is pruned and then made sparse; 0 for none.",
    )
    tokens: int = Field(8192, ge=256, le=10_000_000, description="Held-out tokens.")
    calibration_tokens: int = Field(8192, ge=64, le=1_000_000, description="Tokens of other documents.")
    development_tokens: int = Field(
        2048, ge=64, le=1_000_000, description="Tokens of still others, on which auto and blocks choose."
    )
    document_tokens: int = Field(
        256,
        ge=16,
        le=1_000_000,
        description="Most tokens of one document: many documents tell more than long ones.",
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")

    @field_validator("methods", "beside", "detail_methods")
    @classmethod
    def _methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                read_method(name)
            except SparsescopeError as error:
                raise ValueError(f"{name!r}: {error.what}; allowed: {error.allowed}") from None
        if len(set(value)) != len(value):
            raise ValueError("methods must be distinct")
        return value

    @field_validator("prefixes")
    @classmethod
    def _prefixes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        read = []
        for name in value:
            try:
                read.append(PrefixPolicy.of(name).text)
            except SparsescopeError as error:
                raise ValueError(f"{name!r}: {error.what}; allowed: {error.allowed}") from None
        if len(set(read)) != len(read):
            raise ValueError("prefix policies must be distinct")
        return tuple(read)

    @field_validator("targets", "compare_at", "tolerances", "divergence_at")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) != len(value):
            raise ValueError("values must be distinct")
        return tuple(sorted(value))


ANALYSIS = Analysis(
    name="sparse_inference",
    place=90,
    version="2",
    title="Sparse inference",
    summary="Which share of the weights a token can leave unread, by which method, at which loss of quality.",
    params=SparseInferenceParams,
    compute="sparsescope.analysis.sparse_inference.compute",
    view_module="sparsescope.analysis.sparse_inference.views",
    views=(
        View(
            "quality",
            "What unread weights cost",
            "KL divergence from the dense model on held-out text against the share of block-matrix bytes "
            "that "
            "a token did not read there (realised, not asked for; adapters taken off). Lower is better; both "
            "axes are of the same tokens for every method. Bands are paired document-cluster bootstrap "
            "intervals.",
            table="quality",
            select="prefix",
            formula="KL = mean over targets of sum_v p_dense(v) log(p_dense(v) / p_sparse(v))",
            citation="TEAL, arXiv:2408.14690; WINA, arXiv:2505.19427; R-Sparse, arXiv:2504.19449; CATS, "
            "arXiv:2404.08763",
        ),
        View(
            "usable_range",
            "How far one can go",
            "For each method the largest share of block-matrix bytes whose perplexity stays within the "
            "tolerance, read from a monotone (isotonic) fit, with its interval. The share of all bytes of "
            "the "
            "model is smaller: output head and embeddings stay dense.",
            table="usable_range",
            select="prefix",
            formula="s* = max{s : isotonic (perplexity(s) / perplexity(dense) - 1) <= tolerance}",
        ),
        View(
            "comparisons",
            "Against every other method at equal bytes",
            "Ratio of KL divergences at the bytes that the other method realised on the held-out text, "
            "paired "
            "by document; below 1 the reference is closer to the dense model. Open markers are not resolved; "
            "intervals are not corrected for their number.",
            table="comparisons",
            formula="ratio = KL(first at the bytes of the second) / KL(second)",
        ),
        View(
            "per_matrix",
            "Errors of single matrices",
            "Relative squared error of the output of each matrix when its inputs are masked, on inputs of "
            "the "
            "dense model. A smaller error of every matrix need not make a better model: errors differ in "
            "what "
            "they do to the output.",
            table="per_matrix",
            select="role",
            formula="E||W r||^2 / E||W x||^2",
        ),
        View(
            "atlas",
            "Where inputs are kept",
            "Share of the inputs that a token keeps, by layer and by what is read, under one budget for the "
            "method. Thresholds give hard tokens more.",
            table="atlas",
            select="method",
        ),
        View(
            "unions",
            "What tokens share when they are decoded together",
            "Inputs that at least one of L consecutive tokens keeps: what a batch or a draft that is "
            "verified "
            "reads. Dotted: masks drawn channel by channel from their own frequency, so that only the "
            "likeness of neighbours is left out.",
            table="unions",
            select="method",
            formula="union(L) = mean over windows of |S_1 + ... + S_L| / K",
        ),
        View(
            "tokens",
            "What every token reads",
            "Share of the block-matrix bytes that each token reads: thresholds give every token the budget "
            "that it asks for.",
            table="tokens",
            select="document",
        ),
        View(
            "accounting",
            "What is left to read",
            "Share of the bytes of a decoded token that is not read: of the block matrices, and of the whole "
            "model, where output head, norms and adapters count. The bound is what a machine that waits for "
            "memory could gain at most, not a speed.",
            table="accounting",
        ),
        View(
            "divergence",
            "How long both write the same",
            "Greedy continuations of the same prompts: tokens before the first that differs.",
            table="divergence",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.sparse_inference.statements",
    headline=("dense_perplexity",),
    requires=frozenset({"causal", "logits"}),
    presets={
        "quick": {
            "methods": ("teal", "auto"),
            "targets": (0.25, 0.5),
            "prefixes": ("all_sparse",),
            "beside": (),
            "compare_at": (0.25, 0.5),
            "choose": False,
            "detail_methods": ("teal",),
            "divergence_at": (),
            "prompts": 0,
            "pruned": 0.0,
            "tokens": 768,
            "calibration_tokens": 512,
            "development_tokens": 256,
            "document_tokens": 128,
        }
    },
    citations=(
        Citation("TEAL (ICLR 2025)", "https://arxiv.org/abs/2408.14690"),
        Citation("WINA (2025)", "https://arxiv.org/abs/2505.19427"),
        Citation("R-Sparse (ICLR 2025)", "https://arxiv.org/abs/2504.19449"),
        Citation("CATS (COLM 2024)", "https://arxiv.org/abs/2404.08763"),
        Citation("Sparsing Law: CETT (ICML 2025)", "https://arxiv.org/abs/2411.02335"),
        Citation("Universal properties of activation sparsity: top-p", "https://arxiv.org/abs/2509.00454"),
    ),
)

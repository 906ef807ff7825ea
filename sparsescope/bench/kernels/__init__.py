"""What a sparse product costs on this machine, against dense products and against the bytes it must read.

Weights are random; inputs, and so the patterns of what is kept, are recorded: hidden activations of the
subject on the text, those of several layers side by side where the matrix is wider than one. Thresholds are
quantiles of |x| over all recorded inputs, and sparsity is what they achieve. Every variant goes through
copies of its weights, at least ``cold_bytes`` together, so that no weight is in a cache (``warm`` rows: one
copy, read again and again), and each product has another input. Variants take turns in an order that rotates;
a ratio is taken within a repeat. Selection of the kept inputs, allocation of outputs and the call from Python
are part of the time; on a GPU a repeat is one recorded graph. Before it is timed a product is compared with
the reference, and a wrong one ends the benchmark.

The byte limit of a product is the bytes of the dense float32 weights over those of the rows that it keeps, as
they are stored: 1 / (1 - sparsity) in float32, twice that in bfloat16.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, View
from sparsescope.core.spec import Params

Stored = Literal["float32", "bfloat16", "int8"]


class KernelsParams(Params):
    """Parameters of the benchmark ``kernels``."""

    shapes: tuple[str, ...] = Field(
        ("4096x4096", "11008x4096"), description="Matrices, OUTPUTSxINPUTS.", min_length=1
    )
    levels: tuple[float, ...] = Field(
        (0.25, 0.5, 0.65, 0.8, 0.9), description="Sparsities that thresholds are set for.", min_length=1
    )
    stored: tuple[Stored, ...] = Field(
        ("float32", "bfloat16", "int8"), description="How weights are stored.", min_length=1
    )
    backend: Literal["numba", "triton"] = Field("numba", description="Backend of the kernels.")
    tokens: tuple[int, ...] = Field(
        (2, 4, 6, 8), description="Tokens of products with a shared mask, on the first shape; none: left out."
    )
    block_ffn: str = Field(
        "1280x40x128",
        description="Layer of BlockFFN, WIDTHxEXPERTSxUNITS; the default is that of its 0.5B model "
        "(thunlp/BlockFFN); empty leaves it out.",
    )
    patterns: str = Field(
        "blockffn",
        description="Model with a router whose patterns the BlockFFN layer gets; needs as many experts.",
    )
    repeats: int = Field(7, ge=5, le=100, description="Repeats of every variant, after a warm-up.")
    cold_bytes: float = Field(1e9, ge=0, le=64e9, description="Bytes of weights that a variant goes through.")

    @field_validator("shapes")
    @classmethod
    def _shapes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            numbers(text, 2)
        return value

    @field_validator("block_ffn")
    @classmethod
    def _layer(cls, value: str) -> str:
        if value:
            numbers(value, 3)
        return value

    @field_validator("levels")
    @classmethod
    def _levels(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < level < 1 for level in value) or len(set(value)) < len(value):
            raise ValueError("levels lie between 0 and 1, each once")
        return tuple(sorted(value))

    @field_validator("tokens")
    @classmethod
    def _tokens(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 < count <= 8 for count in value):
            raise ValueError("2 to 8 tokens share a mask")
        return value


def numbers(text: str, count: int) -> tuple[int, ...]:
    """Read ``4096x4096``.

    Raises:
        ValueError: It is not so many numbers from 1 on.
    """
    parts = text.split("x")
    if len(parts) != count or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r} is not {count} numbers such as {'x'.join(['64'] * count)}")
    return tuple(int(part) for part in parts)


_SPEED = (
    Column("speedup", "value", "Median of: time of the best dense float32 product / this time, in a repeat."),
    Column("speedup_q1", "value", "First quartile.", low_of="speedup"),
    Column("speedup_q3", "value", "Third quartile.", high_of="speedup"),
)

ANALYSIS = Analysis(
    name="kernels",
    version="1",
    title="Sparse products on this machine",
    summary="Speed of sparse products against dense ones, and against the bytes that they must read.",
    params=KernelsParams,
    compute="sparsescope.bench.kernels.compute",
    view_module="sparsescope.bench.kernels.views",
    views=(
        View(
            "speedups",
            "Speed of one token against sparsity",
            "Speed relative to the best dense float32 product (of torch's and our own), with quartiles, "
            "weights not in a cache. Dotted: the byte limit 1 / (1 - sparsity) of float32.",
            table="products",
            formula="speedup = seconds(best dense float32) / seconds(sparse), within a repeat",
            select="shape",
        ),
        View(
            "several_tokens",
            "Tokens that share a mask",
            "Speed relative to the best dense float32 product of as many tokens. 'own': each token keeps its "
            "own inputs, the union is read; 'joint': one mask for all.",
            table="several",
            formula="speedup = seconds(best dense) / seconds(shared mask), within a repeat",
            select="tokens",
        ),
    ),
    tables={
        "ceilings": (
            Column("what", "label", "What was read or copied."),
            Column("rate", "value", "Median bytes a second, read and written.", "B/s"),
            Column("rate_q1", "value", "First quartile.", low_of="rate"),
            Column("rate_q3", "value", "Third quartile.", high_of="rate"),
        ),
        "dense": (
            Column("shape", "label", "Outputs x inputs."),
            Column("variant", "label", "Dense product."),
            Column("cache", "label", "cold: every product reads other weights; warm: the same ones."),
            Column("seconds", "seconds", "Median time of a product.", "s"),
            Column("rate", "value", "Bytes of weights a second at the median.", "B/s"),
            *_SPEED,
        ),
        "products": (
            Column("shape", "label", "Outputs x inputs."),
            Column("stored", "label", "How the weights are stored."),
            Column("cache", "label", "cold: every product reads other weights; warm: the same ones."),
            Column("target", "fraction", "Sparsity that the threshold was set for; 0 keeps everything."),
            Column("sparsity", "fraction", "Inputs that were dropped."),
            Column("seconds", "seconds", "Median time of a product.", "s"),
            *_SPEED,
            Column(
                "over_library", "value", "Median speed relative to the best dense float32 product of torch."
            ),
            Column("over_same", "value", "Median speed over the best dense product of the same stored type."),
            Column(
                "of_limit",
                "fraction",
                "Speed over the best dense float32 product / (its bytes / bytes of the kept rows as stored).",
            ),
            Column("rate", "value", "Bytes of kept weights a second at the median.", "B/s"),
            Column("of_read", "fraction", "Of the measured rate of reading."),
            Column(
                "error", "value", "Largest difference to the reference backend / largest output, one input."
            ),
        ),
        "break_even": (
            Column("shape", "label", "Outputs x inputs."),
            Column("stored", "label", "How the weights are stored."),
            Column(
                "sparsity",
                "fraction",
                "Sparsity from which the sparse product is faster than the best dense one with the same "
                "stored type (straight line between levels); NaN where it never is.",
            ),
        ),
        "several": (
            Column("tokens", "count", "Tokens read together."),
            Column("rule", "label", "own or joint mask."),
            Column("stored", "label", "How the weights are stored."),
            Column("target", "fraction", "Sparsity that the threshold was set for."),
            Column("sparsity", "fraction", "Rows that no token read."),
            Column("seconds", "seconds", "Median time.", "s"),
            *_SPEED,
            Column("of_limit", "fraction", "Of the byte limit of its rows."),
            Column("error", "value", "Largest difference to the reference backend / largest output."),
        ),
        "block_ffn": (
            Column("layer", "label", "Width x experts x units of an expert."),
            Column("stored", "label", "How the weights are stored."),
            Column("tokens", "count", "Tokens read together."),
            Column("sparsity", "fraction", "Experts that no token used."),
            Column("seconds", "seconds", "Median time.", "s"),
            *_SPEED,
            Column("of_limit", "fraction", "Of the byte limit of the experts that are read."),
            Column("error", "value", "Largest difference to the reference backend / largest output."),
        ),
    },
    statements="sparsescope.bench.kernels.statements",
    headline=("speedup_float32_50", "of_limit_float32_50", "speedup_bfloat16_50", "speedup_int8_50"),
    measures_time=True,
)

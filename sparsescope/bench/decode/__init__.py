"""How fast a model answers, dense and sparse, and how well in the same setting.

One token at a time, batch 1, teacher-forced on real text: every variant reads a prompt (not timed) and
then the same tokens of the text, so that its logits also say how well it predicts them. Variants take turns
in every window of text, in an order that rotates; ratios are taken within a window. The first half of the
documents calibrates the masks, windows are spread over the second half, across the joints of its
documents; what is scored does not overlap. Perplexity is over all tokens after the prompt, the first of which
is predicted by the untimed prompt; intervals draw windows again.

Dense baselines: transformers' model called token by token with its cache (eager), the same compiled, and our
own loop with nothing dropped; the best of those with the same stored type counts. ``generate`` is timed last
in each window, greedily, less the time of a pass over the prompt. Sparse variants are our loop with the masks
of a calibration; prompts are dense (``decode_only``), and sparsity is what they achieved on the timed tokens.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, View
from sparsescope.core.spec import Params
from sparsescope.errors import SparsescopeError
from sparsescope.inference.methods import read_method

Stored = Literal["float32", "bfloat16", "int8"]


class DecodeParams(Params):
    """Parameters of the benchmark ``decode``."""

    method: str = Field("teal", description="Method of the masks: teal, wina, was, auto, ...")
    targets: tuple[float, ...] = Field(
        (0.25, 0.5), description="Shares of the block bytes that masks are calibrated to leave unread."
    )
    stored: tuple[Stored, ...] = Field(
        ("float32", "bfloat16", "int8"),
        description="How weights are stored, output head included.",
        min_length=1,
    )
    prompts: tuple[int, ...] = Field((128, 512), description="Tokens of the prompt.", min_length=1)
    new_tokens: int = Field(128, ge=2, le=4096, description="Tokens that are timed after each prompt.")
    windows: int = Field(5, ge=3, le=100, description="Windows of text: the repeats of every variant.")
    compiled: bool = Field(
        False, description="Also time torch.compile of the model; needs a C++ compiler, minutes."
    )

    @field_validator("method")
    @classmethod
    def _method(cls, value: str) -> str:
        try:
            read_method(value)
        except SparsescopeError as error:
            raise ValueError(f"{error.what}; allowed: {error.allowed}") from None
        return value

    @field_validator("targets")
    @classmethod
    def _targets(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < target < 1 for target in value) or len(set(value)) < len(value):
            raise ValueError("targets lie between 0 and 1, each once")
        return value

    @field_validator("prompts")
    @classmethod
    def _prompts(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= prompt <= 100_000 for prompt in value):
            raise ValueError("a prompt has at least one token")
        return value


ANALYSIS = Analysis(
    name="decode",
    version="1",
    title="Decoding on this machine",
    summary="Tokens a second, dense and sparse, beside the perplexity of the same setting.",
    params=DecodeParams,
    compute="sparsescope.bench.decode.compute",
    view_module="sparsescope.bench.decode.views",
    views=(
        View(
            "speed_and_quality",
            "Tokens a second against perplexity",
            "Median tokens a second against perplexity relative to the dense float32 model "
            "on the very same tokens (its interval by windows). Up and to the left is better.",
            table="variants",
            formula="perplexity ratio = exp(mean NLL(variant) - mean NLL(dense float32))",
            select="prompt",
        ),
        View(
            "parts",
            "What a step consists of",
            "Time of the parts of a dense step of our loop, each measured alone: sparsity can save only "
            "the first.",
            table="parts",
        ),
    ),
    tables={
        "variants": (
            Column("prompt", "count", "Tokens of the prompt."),
            Column("variant", "label", "What generates."),
            Column("stored", "label", "How its weights are stored."),
            Column("target", "fraction", "Sparsity that masks were calibrated for; NaN of dense ones."),
            Column("sparsity", "fraction", "Share of the block weights left unread on the timed tokens."),
            Column("seconds", "seconds", "Median time of a token.", "s"),
            Column("rate", "value", "Tokens a second at the median.", "tokens/s"),
            Column("over_dense", "value", "Median speed over the best dense variant of its stored type."),
            Column("over_dense_q1", "value", "First quartile.", low_of="over_dense"),
            Column("over_dense_q3", "value", "Third quartile.", high_of="over_dense"),
            Column("over_generate", "value", "Median speed over transformers' generate (float32)."),
            Column("over_generate_q1", "value", "First quartile.", low_of="over_generate"),
            Column("over_generate_q3", "value", "Third quartile.", high_of="over_generate"),
            Column("perplexity", "value", "Of the tokens after the prompt."),
            Column("ratio", "value", "Perplexity / that of the dense float32 model."),
            Column("ratio_low", "value", "Lower end, windows drawn again.", low_of="ratio"),
            Column("ratio_high", "value", "Upper end.", high_of="ratio"),
            Column("kl", "value", "Mean KL(dense float32 || variant).", "nats"),
            Column("windows", "count", "Windows."),
        ),
        "parts": (
            Column("stored", "label", "How weights are stored."),
            Column("part", "label", "Part of a dense step."),
            Column("seconds", "seconds", "Median time.", "s"),
            Column("share", "fraction", "Of the step."),
        ),
    },
    statements="sparsescope.bench.decode.statements",
    headline=("best_over_generate", "best_rate"),
    measures_time=True,
)

"""What a benchmark of reading activations found, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, said

TITLES = {
    "capture_ratio": "Copying, time / bare pass",
    "statistics_ratio": "Every statistic, time / bare pass",
    "shards_ratio": "bfloat16 shards, time / bare pass",
    "shards_full_ratio": "float32 shards, time / bare pass",
    "logits_ratio": "Logits, time / bare pass",
    "speedup_over_plain_hooks": "Speed-up over plain hooks",
    "speedup_over_transformer_lens": "Speed-up over TransformerLens, lean",
    "speedup_over_transformer_lens_default": "Speed-up over TransformerLens",
    "checks_share": "Checks of every pass, share of its time",
    "peak_memory_growth": "Peak memory, long / short text",
}


def statements(result: Result) -> list[Statement]:
    """What reading costs beside the bare forward pass, and beside other ways of reading."""
    out = []
    if ratios := defined(result, "capture_ratio", "statistics_ratio"):
        copying, whole = ratios
        text = (
            f"Copying activations out takes {said(copying)} times as long as the bare forward pass, with "
            f"every statistic {said(whole)} times ({basis(copying, 'repeats')}, on this machine)."
        )
        out.append(Statement(text, "ratios", (copying.name, whole.name, "shards_ratio")))
    if hooks := defined(result, "speedup_over_plain_hooks"):
        text = (
            f"Plain hooks take {said(hooks[0])} times as long for the same numbers "
            f"({basis(hooks[0], 'repeats')})."
        )
        out.append(Statement(text, "speedups", (hooks[0].name, "speedup_over_transformer_lens")))
    return out

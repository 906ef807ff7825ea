"""What activation rank found, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.numbers import Scalar
from sparsescope.core.result import Result
from sparsescope.core.statements import (
    Statement,
    basis,
    by_layer,
    defined,
    has_experts,
    median_by_layer,
    rows,
    said,
    said_value,
)

TITLES = {
    "mean_entropy_rank": "Entropy rank (directions)",
    "mean_entropy_rank_ratio": "Entropy rank / that of noise",
    "mean_stable_rank": "Stable rank (directions)",
    "mean_stable_rank_ratio": "Stable rank / that of noise",
    "mean_participation": "Participation ratio (directions)",
    "mean_participation_ratio": "Participation ratio / that of noise",
    "tokens": "Tokens in the sample",
    "documents": "Documents in the sample",
}


def statements(result: Result) -> list[Statement]:
    """How many directions the tokens spread over, beside noise, and how that differs by layer."""
    names = ("mean_participation", "mean_participation_ratio")
    found = defined(result, *names)
    if found is None:
        return []
    rank, ratio = found
    experts = has_experts(result.tables.get("ranks"))
    whose = "an expert" if experts else "a layer"
    text = (
        f"The tokens of {whose} spread over about {said(rank)} directions ({basis(rank)}), "
        f"{said_value(ratio)} times as many as independent noise{_reading(rank, ratio)}."
    )
    out = [Statement(text, "ranks", names)]
    by_site, what = rows(result, "ranks", metric="participation"), "number of directions"
    if experts:
        by_site, what = median_by_layer(by_site, "mean"), f"{what} of the median expert"
    if spread := by_layer(by_site, "mean", ""):
        out.append(Statement(f"By layer, the {what} runs {spread}.", "ranks"))
    if others := defined(result, "mean_stable_rank", "mean_entropy_rank"):
        stable, entropy = others
        text = (
            f"That is the participation ratio; weighing the largest direction alone gives {said(stable)} "
            f"(stable rank), counting small ones too {said(entropy)} (entropy rank). All grow with the "
            "sample: compare equal samples only."
        )
        out.append(Statement(text, "ranks", (stable.name, entropy.name)))
    return out


def _reading(rank: Scalar, ratio: Scalar) -> str:
    """What the rank says, as far as its interval allows."""
    ends = rank.interval
    if ends is not None and (ends.low <= 0 or ends.high - ends.low > 2 * rank.value):
        return "; the interval is so wide that this text is too short to tell"
    if ratio.value > 0.9:
        return ", so hardly fewer"
    return ": few directions carry most of what varies" if ratio.value < 0.5 else ""

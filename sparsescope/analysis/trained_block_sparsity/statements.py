"""What trained block sparsity shows, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, rows, said, said_value

TITLES = {
    "loss_increase": "Loss beside the dense twin",
    "loss": "Loss",
    "dense_loss": "Loss of the dense twin",
    "parameter_ratio": "Weights over those of the dense twin",
    "token_sparsity": "Token sparsity (TLS)",
    "chunk_sparsity_8": "Chunk sparsity of 8 tokens (CLS 8)",
    "chunk_sparsity_8_independent": "CLS 8 of independent tokens",
    "chunk_sparsity_8_excess": "CLS 8 beyond independent tokens",
    "reuse": "Experts used again",
    "reuse_independent": "Experts used again by chance",
    "dead_experts": "Experts without a token",
    "models": "Models",
    "series": "Trainings",
    "tokens": "Tokens",
    "documents": "Documents",
}


def statements(result: Result) -> list[Statement]:
    """What the first model leaves out and what it loses, whether order has to do with it, and the others."""
    return [*_cost(result), *_order(result), *_others(result)]


def _units(result: Result) -> str:
    table = rows(result, "models")
    return "seeds" if table is not None and table["seeds"].iloc[0] > 1 else "documents"


def _cost(result: Result) -> list[Statement]:
    found = defined(result, "token_sparsity", "chunk_sparsity_8")
    if found is None:
        return []
    tokens, chunks = found
    text = (
        f"A token leaves out {said(tokens)} of the experts, 8 tokens in a row {said(chunks)} "
        f"({basis(tokens, _units(result))})"
    )
    names = ["token_sparsity", "chunk_sparsity_8"]
    increase = defined(result, "loss_increase")
    if increase:
        ends = increase[0].interval
        told = "the loss is not told apart from that of the dense twin"
        if ends is not None and ends.low > 0:
            told = "the loss is higher than that of the dense twin"
        elif ends is not None and ends.high < 0:
            told = "the loss is lower than that of the dense twin"
        elif ends is None:
            told = "the loss beside that of the dense twin, without an interval"
        text += f"; {told}: {said(increase[0])}"
        names.append("loss_increase")
    return [Statement(f"{text}.", "trade_off", tuple(names))]


def _order(result: Result) -> list[Statement]:
    names = ("chunk_sparsity_8_excess", "chunk_sparsity_8_independent", "reuse", "reuse_independent")
    found = defined(result, *names)
    if found is None:
        return []
    excess, null, reuse, chance = found
    ends = excess.interval
    told = "Tokens in a row leave out more than independent tokens"
    if ends is None:
        told = "Beside independent tokens, without an interval"
    elif ends.low <= 0:
        told = "That tokens in a row leave out more than independent tokens is not told apart from chance"
    over = basis(excess, _units(result))
    text = (
        f"{told}: by {said(excess)} of the experts, {over}, beyond {said_value(null)}. "
        f"Of the experts of a token, the next one uses {said_value(reuse)}, by chance {said_value(chance)}."
    )
    return [Statement(text, "chunks", names[:3])]


def _others(result: Result) -> list[Statement]:
    table = rows(result, "models")
    if table is None:
        return []
    others = table.iloc[1:]
    others = others[others["increase"].notna()]
    if others.empty:
        return []
    told = "; ".join(
        f"{row.model}: TLS {row.token_sparsity:.3f}, CLS 8 {row.chunk_sparsity:.3f}, "
        f"loss {100 * row.increase:+.2f} %"
        for row in others.itertuples()
    )
    return [Statement(f"Other models, beside the dense twin: {told}.", "trade_off", ("models",))]

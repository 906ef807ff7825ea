"""Loss and accuracy of a model on examples, and the loss that a training step descends.

One rule for both kinds of targets: [n] targets belong to the last position; [n, pos] targets are the
tokens themselves, and position i predicts token i + 1. Losses are means in nats; along training they are
summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional

from sparsescope.training.data import Examples

_ROWS, _TOKENS = 16384, 8192


def training_loss(
    model: Any,
    tokens: torch.Tensor,
    targets: torch.Tensor,
    balance: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the mean loss of a batch, plus ``balance`` times the load-balancing loss of a
    mixture of experts.

    Args:
        model: A causal model of transformers.
        tokens: int64 [n, pos].
        targets: int64 [n] or [n, pos].
        balance: Weight of the balancing loss of transformers (all layers pooled; its least value is the
            experts per token). A model with a ``penalty_weight`` has one of its own, and that weight.
        dtype: What the logits are converted to first. In float32 the gradient of a row vanishes when its loss
            is below about 1e-7, and what is left of the others kicks Adam out of the minimum again and again
            (Prieto et al. 2025).
    """
    balance = getattr(model, "penalty_weight", balance)
    if balance == 0.0:
        logits, chosen = target_logits(model, tokens, targets)
        return functional.cross_entropy(logits.to(dtype), chosen)
    output = model(input_ids=tokens, output_router_logits=True, **_no_cache(model))
    logits, chosen = _chosen(output.logits, targets)
    return functional.cross_entropy(logits.to(dtype), chosen) + balance * output.aux_loss


def target_logits(
    model: Any, tokens: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [target, V] and their targets [target].

    Args:
        model: A causal model of transformers.
        tokens: int64 [n, pos].
        targets: int64 [n] or [n, pos].
    """
    if targets.ndim == 1:
        if hasattr(model, "last_logits"):
            return model.last_logits(tokens), targets
        return model(input_ids=tokens, logits_to_keep=1, **_no_cache(model)).logits[:, -1], targets
    return _chosen(model(input_ids=tokens, **_no_cache(model)).logits, targets)


def _chosen(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits [target, V] that have a target, and the targets [target]."""
    if targets.ndim == 1:
        return logits[:, -1], targets
    return logits[:, :-1].reshape(-1, logits.shape[-1]), targets[:, 1:].reshape(-1)


def _no_cache(model: Any) -> dict[str, bool]:
    return {} if hasattr(model, "last_logits") else {"use_cache": False}


def measure(model: Any, examples: Iterable[Examples]) -> dict[str, dict[str, float]]:
    """Measure a model, in evaluation mode.

    Args:
        model: A causal model; its mode is put back.
        examples: What it is measured on.

    Returns:
        For each split (of text: ``validation/DOMAIN`` too) ``loss`` in nats, ``accuracy`` and the
        number ``n`` of targets. The value of a split with several parts is the mean over parts, each
        with the same weight.
    """
    training = model.training
    try:
        return _measured(model.eval(), examples)
    finally:
        model.train(training)


def _measured(model: Any, examples: Iterable[Examples]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    by_split: dict[str, list[dict[str, float]]] = {}
    for rows in examples:
        size = _ROWS if rows.targets.ndim == 1 else max(1, _TOKENS // rows.tokens.shape[1])
        total = correct = 0.0
        n = 0
        with torch.inference_mode():
            for start in range(0, len(rows.tokens), size):
                logits, targets = target_logits(
                    model, rows.tokens[start : start + size], rows.targets[start : start + size]
                )
                # float64, because a loss of 1e-8 is lost in float32 where log-sum-exp and the
                # logit nearly cancel
                total += float(functional.cross_entropy(logits.double(), targets, reduction="sum"))
                correct += float((logits.argmax(-1) == targets).sum())
                n += len(targets)
        values = {"loss": total / n, "accuracy": correct / n, "n": float(n)}
        by_split.setdefault(rows.split, []).append(values)
        if rows.part:
            found[f"{rows.split}/{rows.part}"] = values
    for split, parts in by_split.items():
        found[split] = {key: sum(part[key] for part in parts) / len(parts) for key in ("loss", "accuracy")}
        found[split]["n"] = sum(part["n"] for part in parts)
    return found

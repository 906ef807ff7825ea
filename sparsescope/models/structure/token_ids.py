"""Token ids that the embedding table of a model does not have: padding is harmless, others are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sparsescope.errors import SubjectError

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject


def within_table(subject: Subject, ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
    """Return the ids with masked ones that the embedding table lacks replaced by 0.

    A tokenizer to which ``[PAD]`` was added after training pads with an id beyond the table. What stands
    there is masked, so any id will do.

    Args:
        subject: The model, and its tokenizer for the message.
        ids: int64 [batch, pos].
        attention_mask: 1 where a token is real, [batch, pos]; None when all are.

    Returns:
        The ids, the very tensor where all are in the table.

    Raises:
        SubjectError: A real token has no row.
    """
    rows = table_rows(subject.model)
    if rows is None or ids.numel() == 0:
        return ids
    beyond = (ids < 0) | (ids >= rows)
    if not bool(beyond.any()):
        return ids
    real = beyond
    if attention_mask is not None:
        mask = torch.as_tensor(attention_mask, device=ids.device).to(torch.bool)
        if mask.shape != ids.shape:  # refused by the pass itself
            return ids
        real = beyond & mask
    if not bool(real.any()):
        return torch.where(beyond, 0, ids)
    found = int(ids[real][0])
    raise SubjectError(
        "a token id is beyond the embedding table of the model",
        where=f"{subject.id}, {int(real.sum())} of {ids.numel()} tokens; the first at "
        f"{tuple(int(place) for place in real.nonzero()[0])} of [batch, pos]",
        allowed=f"0 to {rows - 1}: the table has {rows} rows",
        got=f"id {found}{_named(subject, found)}",
        next_step="use the tokenizer that belongs to this model, or give the token a row "
        "(model.resize_token_embeddings(len(tokenizer))) and train it",
    )


def table_rows(model: Any) -> int | None:
    """Return the number of rows of the embedding table; None where the model does not say."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    rows = getattr(table, "num_embeddings", None)
    if rows is None and getattr(table, "weight", None) is not None:
        rows = table.weight.shape[0]
    return None if rows is None else int(rows)


def _named(subject: Subject, id: int) -> str:
    if subject.tokenizer is None or id < 0:
        return ""
    token = subject.tokenizer.convert_ids_to_tokens(id)
    if token is None:
        return ""
    return f", the token {str(token)!r}; the tokenizer has {len(subject.tokenizer)} tokens"

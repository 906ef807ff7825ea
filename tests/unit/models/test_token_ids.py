"""Token ids beyond the embedding table: padding is harmless, others are refused before the pass."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from sparsescope.errors import SubjectError
from sparsescope.models import load, wrap
from sparsescope.models.doctor import examine


@pytest.fixture(scope="module")
def padded() -> Any:
    """A model to whose tokenizer [PAD] was added after training."""
    plain = load("random-llama")
    tokenizer = copy.deepcopy(plain.tokenizer)
    rows = plain.model.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"<extra{i}>" for i in range(rows - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == rows
    return plain, wrap(copy.deepcopy(plain.model), tokenizer), rows


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_beyond_the_table_is_masked(padded: Any, side: str) -> None:
    plain, subject, rows = padded
    real = slice(2, None) if side == "left" else slice(None, -2)
    ids = np.full((1, 8), rows)
    ids[:, real] = np.arange(10, 16)
    mask = ids < rows
    found = subject.forward(ids, mask, logits=True)[:, real]
    wanted = plain.forward(np.arange(10, 16)[None], logits=True)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert ids.max() == rows  # the ids that were given are not written to


@pytest.mark.parametrize(("id", "token"), [(0, "'[PAD]'"), (1, ""), (-101, "")])
def test_real_tokens_beyond_the_table_are_refused(padded: Any, id: int, token: str) -> None:
    _, subject, rows = padded
    ids = np.arange(8).reshape(2, 4)
    ids[1, 2] = rows + id if id >= 0 else -100
    with pytest.raises(SubjectError, match="beyond the embedding table") as caught:
        subject.forward(ids)
    assert caught.value.allowed == f"0 to {rows - 1}: the table has {rows} rows"
    assert f"id {ids[1, 2]}" in (caught.value.got or "") and token in (caught.value.got or "")
    assert "1 of 8 tokens; the first at (1, 2)" in (caught.value.where or "")


def test_the_doctor_says_that_the_tokenizer_is_larger(padded: Any) -> None:
    _, subject, rows = padded
    found = examine(subject)
    assert found.healthy
    assert f"has {rows + 1} tokens and the embedding table {rows} rows" in found.notes[0]
    assert not examine(padded[0]).notes

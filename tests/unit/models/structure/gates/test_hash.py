"""Hash routing depends on the id of a token and on nothing else."""

from __future__ import annotations

import pytest
import torch

from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.structure.gates import make_gate


@pytest.mark.parametrize("k", [1, 2, 6])
def test_it_depends_on_the_id_alone(gate, states, token_ids, k):
    made = gate("hash", k=k)
    weights = made(states, token_ids).weights
    assert torch.equal(made(-7 * states.flip(0), token_ids).weights, weights)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(states, token_ids[order]).weights, weights[order])
    assert bool(((weights == 0) | (weights == 1 / k)).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(64))


def test_the_first_experts_are_dealt_evenly_and_those_of_an_id_differ(gate):
    table = gate("hash", k=3).table
    assert table.shape == (40, 3) and all(len(set(row)) == 3 for row in table.tolist())
    assert sorted(table[:, 0].bincount(minlength=6).tolist()) == [6, 6, 7, 7, 7, 7]
    assert len({tuple(sorted(row)) for row in table.tolist()}) > 10


def test_ids_are_needed(gate, states, token_ids):
    made = gate("hash")
    with pytest.raises(SubjectError, match="chooses by token ids"):
        made(states)
    with pytest.raises(SubjectError, match="from 0 to 39"):
        made(states, token_ids + 1)
    with pytest.raises(SpecError, match="how many token ids"):
        make_gate("hash", 12, 6)

"""Edits act while the block runs, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch

import sparsescope as ss
from sparsescope.errors import SubjectError
from sparsescope.models.doctor import count_hooks, sample_ids

NAMES = ["random-llama", "random-gpt2", "random-opt", "random-gemma2"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_kept_takes_the_mlps_out(name):
    """With the hidden layer at zero, a layer adds only its bias: the output of every MLP is the same for all tokens."""
    subject = ss.load(name)
    ids, sites = sample_ids(subject), subject.sites("blocks.*.mlp.hook_post")
    seen = []
    with (
        subject.edit(sites, lambda site, tensor: torch.zeros_like(tensor)),
        subject.attach(subject.sites("blocks.*.mlp.hook_out"), lambda site, tensor, rows: seen.append(tensor.flatten(0, 1))),
    ):
        subject.forward(ids)
    assert len(seen) == subject.n_layers
    assert all(torch.allclose(out, out[:1].expand_as(out)) for out in seen)


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_changes_no_bit_and_hooks_are_gone(name):
    subject = ss.load(name)
    ids, sites = sample_ids(subject), subject.sites("blocks.*.mlp.hook_post")
    before, hooks = subject.forward(ids).clone(), count_hooks(subject.model)
    with subject.edit(sites, lambda site, tensor: tensor.clone()):
        assert torch.equal(subject.forward(ids), before)
    for failure in (RuntimeError, KeyboardInterrupt):

        def fail(site, tensor, failure=failure):
            raise failure("on purpose")

        with pytest.raises(failure), subject.edit(sites, fail):
            subject.forward(ids)
        assert count_hooks(subject.model) == hooks
    assert torch.equal(subject.forward(ids), before)


def test_an_edit_equals_the_same_change_of_the_weights(llama):
    """Switching off units 0 to 9 of layer 1 is the same as zeroing columns 0 to 9 of its output matrix."""
    other = llama.copy()
    other.parameter("weight:blocks.1.mlp.out.weight")[:, :10] = 0
    ids = sample_ids(llama)

    def off(site, tensor):
        tensor = tensor.clone()
        tensor[..., :10] = 0
        return tensor

    with llama.edit(llama.sites("blocks.1.mlp.hook_post"), off):
        edited = llama.forward(ids, logits=True)
    torch.testing.assert_close(edited, other.forward(ids, logits=True))


def test_what_cannot_be_replaced_is_refused(llama):
    with (
        pytest.raises(SubjectError, match="cannot be replaced"),
        llama.edit(llama.sites("blocks.0.mlp.hook_out"), lambda s, t: t),
    ):
        pass
    with (
        pytest.raises(SubjectError, match="another shape"),
        llama.edit(llama.sites("blocks.0.mlp.hook_post"), lambda site, tensor: tensor[..., :3]),
    ):
        llama.forward(sample_ids(llama))

"""The push on active units, against finite differences, and what it must not touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.gradients import shrink_sums
from sparsescope.errors import SubjectError
from sparsescope.models.sources import load

SITES = "blocks.*.mlp.hook_post"


@pytest.fixture(scope="module", params=["random-opt", "random-llama"])
def case(request):
    subject = load(request.param)
    return subject, ss.corpus("python-docs", tokens=300, context=32).tokenize(subject.tokenizer)


def test_the_push_is_the_slope_of_the_loss_along_the_signs_of_the_activations(case):
    """L(a + h sign(a)) - L(a - h sign(a)) = 2 h push, at one site at a time, in every document."""
    subject, text = case[0].copy(), case[1]
    subject.model.double()
    sites = subject.sites(SITES)
    found = shrink_sums(subject, text, sites)
    assert found.documents.tolist() == [document.index for document in text.documents]
    # Of ReLU hardly a unit may cross its kink; the norms of Llama compute in float32,
    # whatever the weights are.
    step, rtol = (1e-7, 1e-4) if subject.id == "random-opt" else (1e-3, 1e-2)
    for column, site in enumerate(sites):
        slope = np.zeros(len(found.documents))
        for batch in text.batches():
            row = int(np.flatnonzero(found.documents == batch.document[0])[0])
            slope[row] += (loss(subject, site, batch, step) - loss(subject, site, batch, -step)) / (2 * step)
        np.testing.assert_allclose(found.push[:, column], slope, rtol=rtol, atol=rtol)


def loss(subject, site, batch, h):
    """Summed loss in float64 with h sign(a) added to the activations after the first position."""
    kept = torch.from_numpy(batch.text_mask & (batch.position > 0))[..., None]
    ids, wanted = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.text_mask[:, 1:])
    mask = torch.from_numpy(batch.attention_mask).long()
    with torch.no_grad(), subject.edit([site], lambda _, tensor: tensor + h * tensor.sign() * kept):
        logits = subject.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return float(
        torch.nn.functional.cross_entropy(logits[wanted].double(), ids[:, 1:][wanted], reduction="sum")
    )


def test_counts_and_bounds(case):
    subject, text = case
    sites = subject.sites(SITES)
    found = shrink_sums(subject, text, sites)
    positions = sum(max(0, row.sum() - 2) for batch in text.batches() for row in batch.attention_mask)
    assert (found.count.sum(0) <= positions * np.array([site.width for site in sites])).all() and (
        found.count.sum(0) > 0
    ).all()
    rms = np.sqrt(found.square.sum(0) / found.count.sum(0))
    assert (np.abs(found.push.sum(0) / found.count.sum(0)) <= rms).all(), (
        "a mean of signed slopes exceeds their root mean square"
    )


def test_the_model_is_left_as_it_was(case):
    subject, text = case
    ids = np.arange(3, 19)[None]
    before, flags = subject.forward(ids), [p.requires_grad for p in subject.model.parameters()]
    shrink_sums(subject, text, subject.sites(SITES))
    assert torch.equal(subject.forward(ids), before)
    assert [p.requires_grad for p in subject.model.parameters()] == flags
    assert all(p.grad is None for p in subject.model.parameters())
    assert not any(module._forward_pre_hooks for module in subject.model.modules())


def test_a_model_without_next_tokens_is_refused():
    from transformers import BertConfig, BertModel

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 300,
    }
    subject = ss.wrap(BertModel(BertConfig(**small)).eval(), load("random-llama").tokenizer)
    text = ss.corpus("python-docs", tokens=100, context=32).tokenize(subject.tokenizer)
    with pytest.raises(SubjectError, match="causal"):
        shrink_sums(subject, text, subject.sites(SITES))

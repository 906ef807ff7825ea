"""Fisher information of outputs against plain autograd, by another route than the code goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import sparsescope as ss
from sparsescope.activations.capture import tokenized
from sparsescope.inference.groups import input_groups
from sparsescope.inference.sensitivity import output_sensitivity


@pytest.fixture(scope="module")
def text(llama):
    return tokenized(ss.corpus("python-docs", tokens=2048, context=64), llama)


def test_sensitivity_is_the_same_each_time_and_leaves_the_model_alone(llama, text):
    groups = input_groups(llama)
    before = [p.requires_grad for p in llama.model.parameters()]
    found = output_sensitivity(llama, groups, text, tokens=256, seed=3)
    again = output_sensitivity(llama, groups, text, tokens=256, seed=3)
    assert [p.requires_grad for p in llama.model.parameters()] == before
    assert all(p.grad is None for p in llama.model.parameters())
    for key, value in found.items():
        assert torch.equal(value, again[key])
        assert value.ndim == 1 and bool((value >= 0).all()) and float(value.sum()) > 0
    assert {role for _, role in found} == {site.role for group in groups for site in group.matrices}


def test_sensitivity_is_the_mean_squared_gradient_of_the_drawn_labels(llama, text):
    """Against plain autograd with labels drawn in the same way."""
    one = text.select([text.documents[0].index])
    found = output_sensitivity(llama, input_groups(llama), one, tokens=10**6, seed=3)
    model = llama.copy().model
    outputs = {}
    for path in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.k_proj"):

        def keep(_module, _args, out, path=path):
            out.retain_grad()
            outputs[path] = out

        model.get_submodule(path).register_forward_hook(keep)
    generator, sums, count = torch.Generator().manual_seed(3), {}, 0
    for batch in one.batches(1024, "right"):
        mask = torch.from_numpy(batch.attention_mask.astype(np.int64))
        logits = model(input_ids=torch.from_numpy(batch.input_ids), attention_mask=mask).logits[mask.bool()]
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        functional.cross_entropy(logits, labels, reduction="sum").backward()
        wanted = torch.from_numpy(batch.text_mask & (batch.position > 0))
        count += int(wanted.sum())
        for path, out in outputs.items():
            sums[path] = sums.get(path, 0) + out.grad[wanted].double().square().sum(0)
    for path, key in (
        ("model.layers.1.mlp.down_proj", ("blocks.1.mlp.out", "mlp.out.weight")),
        ("model.layers.0.self_attn.k_proj", ("blocks.0.attn.in", "attn.k.weight")),
    ):
        torch.testing.assert_close(found[key], (sums[path] / count).float(), rtol=1e-3, atol=1e-9)


def test_sensitivity_of_experts_has_a_row_for_each():
    moe = ss.load("random-olmoe")
    text = tokenized(ss.corpus("python-docs", tokens=512, context=64), moe)
    found = output_sensitivity(moe, input_groups(moe), text, tokens=256)
    experts = {key: value for key, value in found.items() if ".experts." in key[0]}
    assert {role.rpartition(".experts.")[2] for _, role in experts} == {
        "gate.weight",
        "in.weight",
        "out.weight",
    }
    for value in experts.values():
        assert value.ndim == 2 and bool((value >= 0).all()) and float(value.sum()) > 0


class Levers:
    """The experts of a layer in a formula of their own, on all tokens at once, with a zero for every output.

    The gradient of the loss by the zero that is added to output o of expert e at token t is dL / dy_teo. No
    token is gathered or scattered, and no gradient passes through the code under test.
    """

    def __init__(self, experts, routing):
        self.experts, self.routing, self.zeros, self.chosen = experts, routing, {}, None

    def __call__(self, states, index, weights):
        module, count = self.experts, len(self.experts.down_proj)
        tokens = len(states)
        first, second = module.gate_up_proj.shape[1], module.down_proj.shape[1]
        self.zeros = {
            "in": torch.zeros(tokens, count, first, requires_grad=True),
            "out": torch.zeros(tokens, count, second, requires_grad=True),
        }
        hot = functional.one_hot(index, count)  # [t, k, e]
        self.chosen = hot.sum(1)  # [t, e]
        share = (hot * weights[..., None]).sum(1)
        both = torch.einsum("td,efd->tef", states, module.gate_up_proj) + self.zeros["in"]
        gate, up = both[..., : first // 2], both[..., first // 2 :]
        hidden = functional.silu(gate) * up
        out = torch.einsum("tef,edf->ted", hidden, module.down_proj) + self.zeros["out"]
        return torch.einsum("te,ted->td", share, out)


@pytest.mark.parametrize("name", ["random-olmoe", "random-mixtral"])
def test_sensitivity_of_experts_is_the_mean_over_the_tokens_that_were_routed_to_them(name):
    dense = ss.load(name)
    text = tokenized(ss.corpus("python-docs", tokens=256, context=64), dense)
    text = text.select([text.documents[0].index])
    found = output_sensitivity(dense, input_groups(dense), text, tokens=10**6, seed=5)

    model = dense.copy().model.eval()
    levers = {}
    for layer, block in enumerate(model.model.layers):
        levers[layer] = Levers(block.mlp.experts, None)
        block.mlp.experts.forward = levers[layer]
    generator = torch.Generator().manual_seed(5)
    sums: dict = {}
    for batch in text.batches(1024, "right"):
        mask = torch.from_numpy(batch.attention_mask.astype(np.int64))
        logits = model(input_ids=torch.from_numpy(batch.input_ids), attention_mask=mask).logits[mask.bool()]
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        functional.cross_entropy(logits, labels, reduction="sum").backward()
        wanted = torch.from_numpy(batch.text_mask & (batch.position > 0)).reshape(-1)
        for layer, lever in levers.items():
            for part, zero in lever.zeros.items():
                squares = zero.grad[wanted].double().square().sum(0)  # [e, o]
                routed = lever.chosen[wanted].sum(0).double()  # [e]
                before = sums.get((layer, part), (0, 0))
                sums[layer, part] = before[0] + squares, before[1] + routed
    for (layer, part), (squares, routed) in sums.items():
        assert int(routed.min()) < int(routed.max()), "means could be over all tokens"
        means = (squares / routed.clamp(min=1)[:, None]).float()
        group = f"blocks.{layer}.mlp.experts.{part}"
        half = means.shape[1] // 2
        expected = {"out": means} if part == "out" else {"gate": means[:, :half], "in": means[:, half:]}
        for key, value in expected.items():
            got = found[group, f"mlp.experts.{key}.weight"]
            assert float(value.max()) > 0
            torch.testing.assert_close(got, value, rtol=2e-3, atol=float(value.max()) * 1e-6)

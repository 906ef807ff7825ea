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
    """With the hidden layer at zero, a layer adds only its bias: the output of every MLP is the
    same for all tokens.
    """
    subject = ss.load(name)
    ids, sites = sample_ids(subject), subject.sites("blocks.*.mlp.hook_post")
    seen = []
    with (
        subject.edit(sites, lambda site, tensor: torch.zeros_like(tensor)),
        subject.attach(
            subject.sites("blocks.*.mlp.hook_out"),
            lambda site, tensor, rows: seen.append(tensor.flatten(0, 1)),
        ),
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


MIXTURES = ["random-olmoe", "random-mixtral", "random-qwen2moe"]


def experts_of(subject):
    return tuple(site for site in subject.sites("blocks.*.*") if site.kind == "experts")


def kept(site, tensor, rows=None):
    return tensor.clone()


@pytest.mark.parametrize("name", [*NAMES, *MIXTURES])
def test_every_dense_site_can_be_replaced_and_acts(name):
    """Outputs, inputs, arguments that route, and tuples: the same tensor changes no bit, another one
    changes the output.
    """
    subject = ss.load(name)
    ids = sample_ids(subject)
    before = subject.forward(ids)
    sites = [
        site
        for site in subject.sites("blocks.*.*")
        if site.kind != "experts" and site.role != "mlp.router.hook_out"
    ]
    with subject.edit(sites, kept):
        assert torch.equal(subject.forward(ids), before)
    for site in sites:
        with subject.edit([site], lambda site, tensor: tensor.flip(-1)):
            assert not torch.equal(subject.forward(ids), before), site.name
        assert torch.equal(subject.forward(ids), before)


def test_a_replaced_output_is_what_the_next_module_gets(llama):
    """An output that is replaced is seen by those who look later, and the residual stream goes on from it."""
    ids = sample_ids(llama)
    given = torch.randn((*ids.shape, llama.d_model), generator=torch.Generator().manual_seed(0))
    with llama.edit(llama.sites("blocks.*.mlp.hook_out"), kept):
        plain = llama.forward(ids)
    with llama.edit(llama.sites("blocks.1.hook_out"), lambda site, tensor: given):
        from_output = llama.forward(ids)
    with llama.edit(llama.sites("blocks.2.hook_in"), lambda site, tensor: given):
        assert torch.equal(llama.forward(ids), from_output)
    assert not torch.equal(from_output, plain)


def test_a_part_of_a_fused_output_is_replaced_alone():
    from transformers import Phi3Config, Phi3ForCausalLM

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 300,
    }
    model = Phi3ForCausalLM(Phi3Config(**small, num_key_value_heads=2, pad_token_id=0)).eval()
    subject = ss.wrap(model, ss.load("random-llama").tokenizer)
    sites, ids = subject.sites(["blocks.0.mlp.hook_pre", "blocks.0.mlp.hook_pre_linear"]), sample_ids(subject)
    assert all(site.part for site in sites)
    fused, seen = model.model.layers[0].mlp.gate_up_proj, []
    expected = fused.weight.detach().clone()
    for site in sites:
        expected[slice(*site.part)] *= 2 if site.role == "mlp.hook_pre" else 3
    with subject.edit(sites, lambda site, tensor: tensor * (2 if site.role == "mlp.hook_pre" else 3)):
        handle = fused.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
        subject.forward(ids)
        handle.remove()
    torch.testing.assert_close(seen[0][1], seen[0][0] @ expected.T)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_the_identity_inside_experts_is_the_plain_output_to_rounding(name, implementation):
    subject = ss.load(name).copy()
    subject.model.set_experts_implementation(implementation)
    ids, hooks = sample_ids(subject), count_hooks(subject.model)
    plain, rows_of = subject.forward(ids), {}

    def note(site, tensor, rows):
        assert tensor.shape == (len(rows), site.width) and (rows.diff() > 0).all()
        rows_of[site.name] = rows
        return tensor

    with subject.edit(experts_of(subject), note):
        torch.testing.assert_close(subject.forward(ids), plain, rtol=1e-5, atol=1e-6)
    read = {}
    with subject.attach(experts_of(subject), lambda site, tensor, rows: read.__setitem__(site.name, rows)):
        subject.forward(ids)
    assert rows_of.keys() == read.keys() and all(torch.equal(rows_of[key], read[key]) for key in read)
    assert count_hooks(subject.model) == hooks and torch.equal(subject.forward(ids), plain)


@pytest.mark.parametrize("name", MIXTURES)
def test_an_edit_inside_an_expert_equals_the_same_change_of_its_weights(name):
    """Units 0 to 9 of expert 1 switched off; the other experts, which no site names, go on as they are."""
    subject = ss.load(name)
    layer = subject.n_layers - 1
    other, ids = subject.copy(), sample_ids(subject)
    other.parameter(f"weight:blocks.{layer}.mlp.experts.1.out.weight")[:, :10] = 0

    def off(site, tensor, rows):
        return torch.cat([torch.zeros_like(tensor[:, :10]), tensor[:, 10:]], -1)

    with subject.edit(subject.sites(f"blocks.{layer}.mlp.experts.1.hook_post"), off):
        edited = subject.forward(ids, logits=True)
    assert not torch.allclose(edited, subject.forward(ids, logits=True), atol=1e-5)
    torch.testing.assert_close(edited, other.forward(ids, logits=True), rtol=1e-5, atol=1e-6)


def test_experts_with_biases_and_transposed_matrices_are_recomputed():
    from transformers import GptOssConfig, GptOssForCausalLM

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    experts = {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = GptOssForCausalLM(GptOssConfig(**small, **experts, vocab_size=300, pad_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    subject = ss.wrap(model, ss.load("random-llama").tokenizer)
    ids = sample_ids(subject)
    plain = subject.forward(ids)
    with subject.edit(experts_of(subject), kept):
        torch.testing.assert_close(subject.forward(ids), plain, rtol=1e-4, atol=1e-5)


def test_gradients_pass_through_the_hidden_layers_of_experts():
    """The slope of the output along a change of one hidden layer, against a difference quotient."""
    subject = ss.load("random-olmoe").copy()
    subject.model.double().set_experts_implementation("eager")
    ids = sample_ids(subject)
    site = next(s for s in experts_of(subject) if s.layer == 1)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    direction = torch.randn(
        subject.forward(ids, logits=True).shape, generator=torch.Generator().manual_seed(0)
    )

    def output(factor):
        with subject.edit([site], lambda site, tensor, rows: tensor * factor):
            return (subject.model(input_ids=torch.as_tensor(ids)).logits * direction).sum()

    slope = torch.autograd.grad(output(scale), scale)[0]
    with torch.no_grad():
        quotient = (output(1.01) - output(0.99)) / 0.02
    assert slope != 0 and float(slope) == pytest.approx(float(quotient), rel=1e-3)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("pattern", ["blocks.1.hook_out", "blocks.1.mlp.experts.hook_post"])
def test_hooks_of_outputs_and_experts_are_gone_after_a_failure(failure, pattern):
    subject = ss.load("random-olmoe")
    ids, hooks = sample_ids(subject), count_hooks(subject.model)
    weights = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    before = subject.forward(ids)

    def fail(site, tensor, rows=None):
        raise failure("on purpose")

    with pytest.raises(failure, match="on purpose"), subject.edit(subject.sites(pattern), fail):
        subject.forward(ids)
    assert count_hooks(subject.model) == hooks and torch.equal(subject.forward(ids), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in subject.model.state_dict().items())


def test_what_cannot_be_replaced_is_refused(llama):
    olmoe = ss.load("random-olmoe")
    hooks = count_hooks(olmoe.model)
    with (
        pytest.raises(SubjectError, match=r"cannot be replaced[\s\S]*hook_expert_indices"),
        olmoe.edit(olmoe.sites("blocks.0.mlp.router.hook_out"), lambda s, t: t),
    ):
        pass
    for subject, pattern in (
        (llama, "blocks.0.mlp.hook_post"),
        (llama, "blocks.0.hook_out"),
        (olmoe, "blocks.*.mlp.experts.*"),
    ):
        with (
            pytest.raises(SubjectError, match="another shape"),
            subject.edit(subject.sites(pattern), lambda site, tensor, rows=None: tensor[..., :3]),
        ):
            subject.forward(sample_ids(subject))
    with (
        pytest.raises(SubjectError, match="no such module"),
        olmoe.edit(llama.sites("blocks.0.mlp.hook_post"), kept),
    ):
        pass
    assert count_hooks(olmoe.model) == hooks


def test_an_edit_that_does_not_act_is_refused(llama, monkeypatch):
    """A model that goes around a module would give the numbers of the unedited one."""
    subject = llama.copy()
    mlp = subject.model.model.layers[0].mlp
    monkeypatch.setattr(mlp, "forward", lambda x: torch.zeros_like(x))
    with (
        pytest.raises(SubjectError, match=r"not at all[\s\S]*blocks.0.mlp.hook_post"),
        subject.edit(subject.sites("blocks.*.mlp.hook_post"), kept),
    ):
        subject.forward(sample_ids(subject))

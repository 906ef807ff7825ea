"""Capture: only real tokens, whatever the batch size and padding; nothing is left on the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.doctor import count_hooks
from sparsescope.testing import check_subject

ARCHITECTURES = [
    "random-llama", "random-gpt2", "random-opt", "random-gemma2", "random-qwen2moe", "random-olmoe", "random-mixtral",
]  # fmt: skip


def hidden_patterns(subject):
    return [name for name in subject.site_names() if name.endswith("hook_post")]


def rows(subject, corpus, sites, **options):
    """Everything that was captured: site -> array in the order of tokens, with the tokens and positions."""
    values, tokens = {}, []
    with ss.capture(subject, corpus, sites, **options) as source:
        for batch in source:
            for name, value in batch.values.items():
                # Expert rows carry the number of their token in the stream.
                number = batch.rows.get(name, np.arange(len(batch.token_ids))) + sum(map(len, tokens))
                values.setdefault(name, []).append((number, value.clone()))
            tokens.append(batch.token_ids)
    merged = {name: (np.concatenate([n for n, _ in parts]), torch.cat([v for _, v in parts])) for name, parts in values.items()}
    return merged, np.concatenate(tokens)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batch_size_and_padding_side_change_nothing(name, small_corpus):
    subject = ss.load(name)
    sites = hidden_patterns(subject)
    tokens = small_corpus.tokenize(subject.tokenizer)
    whole, ids = rows(subject, tokens, sites, batch_tokens=512)
    for options in ({"batch_tokens": 64}, {"batch_tokens": 512, "padding_side": "left"}):
        other, other_ids = rows(subject, tokens, sites, **options)
        np.testing.assert_array_equal(ids, other_ids)
        assert whole.keys() == other.keys()
        for site, (number, value) in whole.items():
            np.testing.assert_array_equal(number, other[site][0], err_msg=site)
            torch.testing.assert_close(value, other[site][1], rtol=1e-4, atol=2e-6)


def test_a_subset_equals_the_slice_of_everything(llama, small_corpus):
    everything, _ = rows(llama, small_corpus, "blocks.*.*")
    some, _ = rows(llama, small_corpus, ["blocks.1.mlp.hook_post", "blocks.2.attn.hook_z"])
    assert set(some) == {"blocks.1.mlp.hook_post", "blocks.2.attn.hook_z"}
    for name, (_, value) in some.items():
        assert torch.equal(value, everything[name][1])


def test_values_are_those_of_the_model(llama, small_corpus):
    tokens = small_corpus.tokenize(llama.tokenizer)
    seen = []
    down = llama.model.model.layers[1].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    try:
        with ss.capture(llama, tokens, "blocks.1.mlp.hook_post") as source:
            for batch, text in zip(source, tokens.batches(), strict=True):
                expected = seen[-1].reshape(-1, seen[-1].shape[-1])[torch.from_numpy(text.attention_mask.reshape(-1))]
                assert torch.equal(batch.values["blocks.1.mlp.hook_post"], expected)
                assert (batch.positions == text.position[text.attention_mask]).all()
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_subjects_keep_the_contract(name):
    check_subject(ss.load(name))


def test_hooks_are_gone_after_a_broken_loop(llama, small_corpus):
    before = count_hooks(llama.model)
    with ss.capture(llama, small_corpus, "blocks.*.mlp.hook_post") as source:
        for _ in source:
            break
    assert count_hooks(llama.model) == before
    with (
        pytest.raises(KeyboardInterrupt),
        ss.capture(llama, small_corpus, "blocks.*.mlp.hook_post") as source,
    ):
        for _ in source:
            raise KeyboardInterrupt
    assert count_hooks(llama.model) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_activation_names_site_and_batch(value, small_corpus):
    subject = ss.load("random-llama")
    layer = subject.model.model.layers[1].mlp.up_proj
    handle = layer.register_forward_hook(lambda module, args, output: output.index_fill(-1, torch.tensor([3]), value))
    try:
        with (
            pytest.raises(SubjectError, match=r"not finite[\s\S]*blocks\.1\.mlp\.hook_post, batch 0[\s\S]*unit 3"),
            ss.capture(subject, small_corpus, "blocks.*.mlp.hook_post") as source,
        ):
            next(iter(source))
    finally:
        handle.remove()


def test_large_finite_activations_are_accepted(small_corpus):
    subject = ss.load("random-llama")
    layer = subject.model.model.layers[0].mlp.up_proj
    handle = layer.register_forward_hook(lambda module, args, output: output * 1e35)
    try:
        with ss.capture(subject, small_corpus, "blocks.0.mlp.hook_in") as source:
            assert next(iter(source)).values
    finally:
        handle.remove()


def test_an_unmatched_site_lists_candidates(llama, small_corpus):
    with (
        pytest.raises(SubjectError, match=r"mlp\.hook_post"),
        ss.capture(llama, small_corpus, "blocks.*.mlp.hook_pst"),
    ):
        pass


def test_copies_in_another_type_are_labelled(llama, small_corpus):
    with ss.capture(llama, small_corpus, "blocks.0.mlp.hook_post", dtype="bfloat16") as source:
        assert next(iter(source)).values["blocks.0.mlp.hook_post"].dtype is torch.bfloat16
    with (
        pytest.raises(SpecError, match="activation dtype"),
        ss.capture(llama, small_corpus, "blocks.0.hook_out", dtype="int8"),
    ):
        pass

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
    "random-llama",
    "random-gpt2",
    "random-opt",
    "random-gemma2",
    "random-qwen2moe",
    "random-olmoe",
    "random-mixtral",
]


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
    merged = {
        name: (np.concatenate([n for n, _ in parts]), torch.cat([v for _, v in parts]))
        for name, parts in values.items()
    }
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
                expected = seen[-1].reshape(-1, seen[-1].shape[-1])[
                    torch.from_numpy(text.attention_mask.reshape(-1))
                ]
                assert torch.equal(batch.values["blocks.1.mlp.hook_post"], expected)
                assert (batch.positions == text.position[text.attention_mask]).all()
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_subjects_keep_the_contract(name):
    check_subject(ss.load(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pass_ends_after_the_last_wanted_block(name, small_corpus):
    """The values are those of whole passes, bit for bit, and what comes later is not run."""
    subject = ss.load(name)
    tokens, before = small_corpus.tokenize(subject.tokenizer), count_hooks(subject.model)
    output = subject.forward(np.arange(3, 12)[None], logits=True)
    first = next(tokens.batches())
    whole = modules_run(subject, lambda: subject.forward(first.input_ids, first.attention_mask))
    for layer, block in enumerate(subject.blocks):
        sites = [site.name for site in subject.sites(f"blocks.0-{layer}.*")]
        with ss.capture(subject, tokens, sites) as source:
            ran = modules_run(subject, lambda source=source: next(iter(source)))
        if layer == subject.n_layers - 1:  # what comes after the last block is next to nothing
            assert ran == whole
        else:
            assert ran == whole[: whole.index(block.path) + 1] and len(ran) < len(whole)
        found, _ = rows(subject, tokens, sites)
        expected = whole_passes(subject, tokens, sites)
        assert found.keys() == expected.keys()
        for site, (_, value) in found.items():
            assert torch.equal(value, expected[site]), site
    assert count_hooks(subject.model) == before
    assert torch.equal(subject.forward(np.arange(3, 12)[None], logits=True), output)


def modules_run(subject, run):
    """Paths of the modules that came to their end, in that order."""
    found = []
    handles = [
        module.register_forward_hook(lambda module, args, output, path=path: found.append(path))
        for path, module in subject.model.named_modules()
        # Called by capture too, which recomputes the hidden layers of experts
        if not path.endswith("experts.act_fn")
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def whole_passes(subject, tokens, sites):
    """What sites see in passes to the end, rows of real tokens only."""
    seen = {}
    for batch in tokens.batches():
        kept = torch.from_numpy(batch.text_mask | (batch.position == 0)).reshape(-1)

        def note(site, tensor, rows, kept=kept):
            chosen = tensor.reshape(-1, site.width)[kept] if rows is None else tensor[kept[rows]]
            seen.setdefault(site.name, []).append(chosen.clone())

        with subject.attach(subject.sites(sites), note):
            subject.forward(batch.input_ids, None if batch.attention_mask.all() else batch.attention_mask)
    return {
        site.name: torch.cat(seen.get(site.name, [torch.empty(0, site.width, dtype=subject.torch_dtype)]))
        for site in subject.sites(sites)
    }


def test_what_fails_in_a_shortened_pass_is_told(llama, small_corpus):
    before = count_hooks(llama.model)
    handle = llama.model.model.layers[0].register_forward_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("on purpose"))
    )
    try:
        with (
            pytest.raises(RuntimeError, match="on purpose"),
            ss.capture(llama, small_corpus, "blocks.0.mlp.hook_post") as source,
        ):
            next(iter(source))
    finally:
        handle.remove()
    assert count_hooks(llama.model) == before


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
    handle = layer.register_forward_hook(
        lambda module, args, output: output.index_fill(-1, torch.tensor([3]), value)
    )
    try:
        with (
            pytest.raises(
                SubjectError, match=r"not finite[\s\S]*blocks\.1\.mlp\.hook_post, batch 0[\s\S]*unit 3"
            ),
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

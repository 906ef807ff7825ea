"""Losses against the model's own, target by target, and masked passes that count what they keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.context import Context
from sparsescope.activations.edited_passes import EditedPasses, held_out
from sparsescope.activations.losses import token_losses
from sparsescope.errors import SpecError, SubjectError


@pytest.mark.parametrize(
    "name", ["random-llama", "random-gpt2", "random-opt", "random-gemma2", "random-olmoe", "glassllm"]
)
@pytest.mark.parametrize("batch_tokens", [64, 2048])
def test_losses_are_those_of_the_model(name, batch_tokens, small_corpus):
    """Gemma 2 caps its logits after the head; windows that are cut short come with padding."""
    subject = ss.load(name)
    text = small_corpus.tokenize(subject.tokenizer)
    found = token_losses(subject, text, batch_tokens=batch_tokens)
    nll, confidence, correct = [], [], []
    for batch in text.batches(64):
        for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            ids = row[mask]
            logp = subject.forward(ids[None], logits=True)[0].float().log_softmax(-1)
            nll += (-logp[:-1].gather(1, torch.from_numpy(ids[1:, None]))[:, 0]).tolist()
            confidence += logp[:-1].max(-1).values.exp().tolist()
            correct += (logp[:-1].argmax(-1) == torch.from_numpy(ids[1:])).tolist()
    assert (
        len(found) == len(nll) == sum(len(d) for d in text.documents) - (0 if text.prefix else text.n_windows)
    )
    np.testing.assert_allclose(found.nll, nll, atol=2e-4)
    np.testing.assert_allclose(found.confidence, confidence, atol=2e-4)
    assert (found.correct == np.array(correct)).mean() > 0.999
    assert set(found.document) == {document.index for document in text.documents}


def test_who_has_no_loss_is_refused(small_corpus):
    from transformers import BertConfig, BertModel

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 300,
    }
    encoder = ss.wrap(BertModel(BertConfig(**small)).eval(), ss.load("random-llama").tokenizer)
    with pytest.raises(SubjectError, match="causal"):
        token_losses(encoder, small_corpus.tokenize(encoder.tokenizer))
    with pytest.raises(SubjectError, match="no token"):
        llama = ss.load("random-llama")
        token_losses(
            llama,
            ss.corpus(["a"], context=8, deduplicate=False, min_tokens=1, bos="never").tokenize(
                llama.tokenizer
            ),
        )


def test_a_masked_pass_counts_what_it_keeps(llama, small_corpus):
    text = small_corpus.tokenize(llama.tokenizer)
    sites = llama.sites("blocks.*.mlp.hook_post")
    passes = EditedPasses(Context.of(subject=llama, text=text), text, sites)
    dense = passes.run("dense")
    all_kept = passes.run("all", lambda site, tensor: torch.ones_like(tensor, dtype=torch.bool))
    np.testing.assert_array_equal(dense.nll, all_kept.nll)
    positions = sum(int((b.text_mask & (b.position > 0)).sum()) for b in text.batches())
    np.testing.assert_array_equal(all_kept.width.sum(0), [positions * site.width for site in sites])
    assert (all_kept.density() == 1).all()
    third = passes.run(
        "third", lambda site, tensor: torch.arange(tensor.shape[-1]).expand_as(tensor) % 3 == 0
    )
    np.testing.assert_allclose(third.density(), [-(-site.width // 3) / site.width for site in sites])
    assert passes.passes == 3 and passes.targets.sum() == len(dense.nll)
    sums = passes.by_document(dense.nll)
    assert sums.sum() == pytest.approx(dense.nll.sum()) and len(sums) == len(text.documents)


def test_a_pass_takes_any_replacement_and_counts_nothing_then(llama, small_corpus):
    """Outputs too; half of a layer switched off by a replacement is the same as by a mask."""
    text = small_corpus.tokenize(llama.tokenizer)
    passes = EditedPasses(Context.of(subject=llama, text=text), text, llama.sites("blocks.*.mlp.hook_post"))

    def half(site, tensor):
        return (torch.arange(tensor.shape[-1]) % 2 == 0).expand_as(tensor)

    masked = passes.run("masked", half)
    replaced = passes.run("replaced", replace=lambda site, tensor: tensor * half(site, tensor))
    np.testing.assert_array_equal(masked.nll, replaced.nll)
    outputs = EditedPasses(Context.of(subject=llama, text=text), text, llama.sites("blocks.*.mlp.hook_out"))
    silent = outputs.run("silent", replace=lambda site, tensor: torch.zeros_like(tensor))
    nothing = passes.run("nothing", lambda site, tensor: torch.zeros_like(tensor, dtype=torch.bool))
    np.testing.assert_array_equal(silent.nll, nothing.nll)  # random-llama has no biases
    for uncounted in (replaced, silent, passes.run("dense")):
        with pytest.raises(SpecError, match="density"):
            uncounted.density()
    with pytest.raises(SpecError, match="one rule"):
        passes.run("both", half, replace=lambda site, tensor: tensor)


@pytest.mark.parametrize("name", ["random-olmoe", "random-mixtral", "random-qwen2moe"])
def test_passes_inside_experts_have_a_reference_that_is_recomputed_too(name, small_corpus):
    subject = ss.load(name)
    text = small_corpus.tokenize(subject.tokenizer)
    sites = tuple(site for site in subject.sites("blocks.*.*") if site.kind == "experts")
    passes = EditedPasses(Context.of(subject=subject, text=text), text, sites)
    dense = passes.run("dense")
    all_kept = passes.run("all", lambda site, tensor: torch.ones_like(tensor, dtype=torch.bool))
    np.testing.assert_array_equal(dense.nll, all_kept.nll)
    np.testing.assert_allclose(dense.nll, token_losses(subject, text).nll, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        dense.nll, passes.run("same", replace=lambda site, tensor: tensor.clone()).nll
    )

    routed = dict.fromkeys((site.name for site in sites), 0)
    for batch in text.batches():
        counted = torch.from_numpy(batch.text_mask & (batch.position > 0)).reshape(-1)
        seen = {}
        with subject.attach(sites, lambda site, tensor, rows, seen=seen: seen.update({site.name: rows})):
            subject.forward(batch.input_ids, batch.attention_mask)
        for site, rows in seen.items():
            routed[site] += int(counted[rows].sum())
    np.testing.assert_array_equal(all_kept.width.sum(0), [routed[site.name] * site.width for site in sites])
    third = passes.run(
        "third", lambda site, tensor: (torch.arange(tensor.shape[-1]) % 3 == 0).expand_as(tensor)
    )
    used = third.width.sum(0) > 0
    expected = np.array([-(-site.width // 3) / site.width for site in sites])
    np.testing.assert_allclose(third.density()[used], expected[used])
    assert np.abs(third.nll - dense.nll).max() > 1e-4


def test_finished_steps_are_not_done_again(llama, small_corpus):
    text = small_corpus.tokenize(llama.tokenizer)
    kept = {}

    def step(name, make):
        if name not in kept:
            kept[name] = make()
        return kept[name]

    told = []
    context = Context(
        {"subject": (llama,), "text": (text,)}, progress=lambda *what: told.append(what), step=step
    )
    first = EditedPasses(context, text, llama.sites("blocks.*.mlp.hook_post"), 2).run("dense")
    batches = len(told)
    again = EditedPasses(context, text, llama.sites("blocks.*.mlp.hook_post"), 2).run("dense")
    assert len(told) == batches + 1, "the second pass ran the model"
    assert again.nll is first.nll
    # What an older version kept of an unedited pass: zeros, which were no counts.
    kept["dense"] |= {
        "kept": np.zeros((len(text.documents), 3)),
        "width": np.zeros((len(text.documents), 3), np.int64),
    }
    assert EditedPasses(context, text, llama.sites("blocks.*.mlp.hook_post"), 2).run("dense").kept is None
    assert told[-1] == ("masked passes", text.n_tokens, 2 * text.n_tokens, "tokens")


def test_calibration_and_held_out_documents_are_apart(llama, small_corpus):
    text = small_corpus.tokenize(llama.tokenizer)
    calibration, rest = held_out(text, 200, 100)
    mine, theirs = ({d.index for d in part.documents} for part in (calibration, rest))
    assert mine and theirs and not mine & theirs
    assert {d.domain for d in calibration.documents} == {"fox", "dog"}
    with pytest.raises(SubjectError, match="too few documents"):
        held_out(text.select([0]), 200, 100)

"""Models whose real tokens would see padding: windows of different lengths do not share a pass."""

from __future__ import annotations

import pytest
import torch
import transformers

import sparsescope as ss
from sparsescope.activations.capture import LiveSource, tokenized
from sparsescope.errors import SubjectError
from sparsescope.models.zoo.byte_tokenizer import byte_tokenizer

SITE = "blocks.1.mlp.hook_post"
TEXTS = ["a cat and a mad hatter drink tea " * n for n in (3, 4, 5)]
SIZE = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
}


def wrapped(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**SIZE, num_attention_heads=4)
        model = getattr(transformers, f"{name}ForMaskedLM")(config).eval()
    return ss.wrap(model, byte_tokenizer(256))


def values(subject, text, **options):
    with ss.capture(subject, text, SITE, **options) as source:
        assert isinstance(source, LiveSource)
        found = [batch.values[SITE].clone() for batch in source]
        assert len(found) == source.n_batches
    return torch.cat(found), source


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["FNet", "Nystromformer", "Yoso", "ConvBert", "Roberta"])
def test_what_is_read_is_what_each_window_gives_alone(name, side):
    subject = wrapped(name)
    text = tokenized(ss.corpus(TEXTS, context=24, deduplicate=False), subject)
    assert text.pads(512)
    alone, _ = values(subject, text, batch_tokens=1)
    together, source = values(subject, text, batch_tokens=512, padding_side=side)
    assert (source.padding_side is None) == (name != "Roberta")
    assert float((alone - together).abs().max() / alone.abs().max()) < 1e-5
    assert subject.paddings.keys() == {(side, False)}


def test_batches_without_padding_are_the_same_windows(llama):
    text = tokenized(ss.corpus(TEXTS, context=24, deduplicate=False), llama)
    padded, unpadded = list(text.batches(512)), list(text.batches(512, None))
    assert not all(batch.attention_mask.all() for batch in padded)
    assert all(batch.attention_mask.all() for batch in unpadded)
    assert [batch.index for batch in unpadded] == list(range(text.n_batches(512, None)))
    assert sum(batch.n_tokens for batch in unpadded) == sum(batch.n_tokens for batch in padded)
    rows = [
        row[mask].tolist() for b in padded for row, mask in zip(b.input_ids, b.attention_mask, strict=True)
    ]
    assert rows == [row.tolist() for batch in unpadded for row in batch.input_ids]
    assert not text.pads(1)


def test_padding_is_not_measured_where_there_is_none(llama):
    subject = ss.load("random-llama")
    text = tokenized(ss.corpus(TEXTS, context=24, deduplicate=False), subject)
    LiveSource(subject, text, subject.sites(SITE), batch_tokens=1)
    assert subject.paddings == {}


def test_capture_refuses_windows_that_run_refuses():
    subject = wrapped("Roberta")
    long = ss.corpus(["a cat and a mad hatter drink tea " * 20], context=66, deduplicate=False)
    with (
        pytest.raises(SubjectError, match="longer than the model was made for") as caught,
        ss.capture(subject, long, SITE),
    ):
        pass
    assert "at most 64 tokens" in str(caught.value.allowed) and "context=64" in str(caught.value.next_step)
    fits = ss.corpus(["a cat and a mad hatter drink tea " * 20], context=64, deduplicate=False)
    found, _ = values(subject, fits)
    assert torch.isfinite(found).all()
    assert tokenized(ss.corpus(TEXTS), subject).context == 64

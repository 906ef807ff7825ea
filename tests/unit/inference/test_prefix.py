"""Which positions are sparse: counted by hand, with padding, with a cache, in pieces."""

from __future__ import annotations

import pytest
import torch

import sparsescope as ss
from sparsescope.activations.capture import tokenized
from sparsescope.errors import SubjectError
from sparsescope.inference.divergence import prompted_by
from sparsescope.inference.evaluate import HeldOut
from sparsescope.inference.groups import input_groups
from sparsescope.inference.install import install, reading_of
from sparsescope.inference.masks import Mask
from sparsescope.inference.prefix import PrefixPolicy


def sparse_of(subject, policy, threshold=0.3):
    masks = [Mask(group.name, group.parts, threshold) for group in input_groups(subject)]
    return install(subject, masks, PrefixPolicy.of(policy)), masks


@pytest.mark.parametrize(
    ("policy", "sparse"),
    [
        ("all_sparse", {1: 1, 2: 2, 7: 7, 60: 60}),
        ("dense_first_n:4", {1: 0, 2: 0, 7: 3, 60: 56}),
        ("dense_fraction:0.9", {1: 0, 2: 0, 7: 0, 60: 6}),
        ("dense_fraction:0", {1: 1, 2: 2, 7: 7, 60: 60}),
        ("decode_only", {1: 0, 2: 1, 7: 3, 60: 30}),
    ],
)
def test_how_many_tokens_are_sparse(llama, policy, sparse):
    subject, masks = sparse_of(llama, policy)
    reading = reading_of(subject)
    for length, expected in sparse.items():
        reading.counts = {}
        subject.forward(torch.arange(length)[None] % 50)
        there = reading.counts[masks[0].name][1]
        assert int(there.sum()) == expected * input_groups(llama)[0].width


@pytest.mark.parametrize("policy", ["all_sparse", "dense_first_n:4"])
def test_pieces_with_a_cache_are_one_pass(llama, policy):
    subject, _ = sparse_of(llama, policy)
    ids = torch.arange(20)[None] % 50
    whole = subject.forward(ids, logits=True)
    model, cache, parts = subject.model, None, []
    with torch.inference_mode():
        for begin, end in ((0, 3), (3, 11), (11, 12), (12, 20)):
            out = model(input_ids=ids[:, begin:end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


PIECES = [(0, 3), (3, 11), (11, 12), (12, 18)]  # the third is of one token
PROMPT = 18


def in_pieces(model, ids, pieces, cache=None):
    parts = []
    for begin, end in pieces:
        out = model(input_ids=ids[:, begin:end], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    return torch.cat(parts, 1)


@pytest.mark.parametrize(("policy", "dense"), [("dense_fraction:0.5", 9), ("decode_only", PROMPT)])
def test_a_prompt_in_pieces_is_one_pass_where_its_length_is_said(llama, policy, dense):
    """The prompt in one pass or in four, then two tokens that are decoded."""
    subject, _ = sparse_of(llama, policy, threshold=0.8)
    ids = torch.arange(20)[None] % 50
    decoded = [(PROMPT, 19), (19, 20)]
    with torch.inference_mode():
        whole = in_pieces(subject.model, ids, [(0, PROMPT), *decoded])
        with prompted_by(subject, [PROMPT]):
            pieces = in_pieces(subject.model, ids, [*PIECES, *decoded])
        plain = in_pieces(llama.model, ids, [(0, PROMPT), *decoded])
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pieces[:, :dense], plain[:, :dense], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pieces[:, dense:], plain[:, dense:], atol=1e-3)


def test_pieces_of_a_prompt_are_dense_when_only_what_is_decoded_is_sparse(llama):
    subject, _ = sparse_of(llama, "decode_only", threshold=0.8)
    ids = torch.arange(19)[None] % 50
    pieces = [(0, 3), (3, 11), (11, 18)]
    with torch.inference_mode():
        found = in_pieces(subject.model, ids, [*pieces, (18, 19)])
        plain = in_pieces(llama.model, ids, [*pieces, (18, 19)])
    assert torch.equal(found[:, :18], plain[:, :18])
    assert not torch.allclose(found[:, 18:], plain[:, 18:], atol=1e-3)


def test_a_share_of_a_prompt_in_pieces_is_refused_and_the_model_goes_on(llama):
    """A second piece would be all sparse, and the first half of the first piece alone dense."""
    subject, _ = sparse_of(llama, "dense_fraction:0.5")
    ids = torch.arange(20)[None] % 50
    with torch.inference_mode():
        whole = subject.model(input_ids=ids).logits
        with pytest.raises(SubjectError, match="prompted_by") as caught:
            in_pieces(subject.model, ids, [(0, 10), (10, 20)])
        assert "10 tokens after 10 in the cache" in str(caught.value)
        assert torch.equal(subject.model(input_ids=ids).logits, whole)
        in_pieces(subject.model, ids, [(0, 18), (18, 19), (19, 20)])  # one pass, then single tokens


@pytest.mark.parametrize("policy", ["all_sparse", "dense_first_n:4", "dense_fraction:0.5", "decode_only"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(llama, policy, side):
    subject, _ = sparse_of(llama, policy)
    long, short = torch.arange(12)[None] % 50, (torch.arange(7)[None] * 3 + 1) % 50
    fill = torch.zeros(1, 5, dtype=torch.int64)
    row = torch.cat([fill, short] if side == "left" else [short, fill], 1)
    mask = torch.ones(2, 12, dtype=torch.int64)
    real = slice(5, 12) if side == "left" else slice(0, 7)
    mask[1] = 0
    mask[1, real] = 1
    both = subject.forward(torch.cat([long, row]), mask)
    torch.testing.assert_close(both[1, real], subject.forward(short)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[0], subject.forward(long)[0], rtol=1e-4, atol=1e-5)


def test_decoding_is_sparse_after_a_dense_prompt(llama):
    subject, _ = sparse_of(llama, "decode_only", threshold=0.8)
    ids = torch.arange(10)[None] % 50
    with torch.inference_mode():
        prompt = subject.model(input_ids=ids, use_cache=True)
        dense = llama.model(input_ids=ids, use_cache=True)
        assert torch.equal(prompt.logits, dense.logits)
        one = subject.model(input_ids=ids[:, :1], past_key_values=prompt.past_key_values, use_cache=True)
        other = llama.model(input_ids=ids[:, :1], past_key_values=dense.past_key_values, use_cache=True)
    assert not torch.allclose(one.logits, other.logits, atol=1e-3)


def test_a_prompt_in_a_cache_scores_as_one_pass_does(glass):
    text = tokenized(ss.corpus("python-docs", tokens=1024, context=64), glass)
    held = HeldOut(glass, text)
    subject, masks = sparse_of(glass, "decode_only")
    cached = held.score(subject, masks)
    assert held._caches
    held._cached = False
    plain = held.score(subject, masks)
    assert (cached.kept == plain.kept).all() and (cached.there == plain.there).all()
    assert cached.kl == pytest.approx(plain.kl, rel=1e-4, abs=1e-6)
    # The same targets under every policy, and more damage where the prompt is sparse too
    everywhere, _ = sparse_of(glass, "all_sparse")
    assert held.score(everywhere, masks).kl.sum() > plain.kl.sum()


def test_sites_read_what_comes_before_the_mask(llama):
    subject, _ = sparse_of(llama, "all_sparse", threshold=0.5)
    ids = llama.sample_ids(1)
    found = {}
    with subject.attach(
        subject.sites("blocks.0.mlp.hook_post"), lambda s, x, rows: found.update(x=x.clone())
    ):
        subject.forward(ids)
    small = (found["x"].abs() <= 0.5) & (found["x"] != 0)
    assert bool(small.any()), "values below the threshold are seen"


def test_a_module_alone_knows_no_position(llama):
    subject, _ = sparse_of(llama, "dense_first_n:4")
    module = subject.model.get_submodule("model.layers.0.mlp.down_proj")
    with pytest.raises(SubjectError, match="whole model"):
        module(torch.zeros(1, 4, module.in_features))


def test_sinks_can_stay_dense(llama):
    """A token whose inputs are far larger than others is left alone, and does not count in thresholds."""
    group = next(group for group in input_groups(llama) if group.role == "mlp.out")
    mask = Mask(group.name, group.parts, 0.5, sink_norm=5.0)
    subject = install(llama, [mask], PrefixPolicy("all_sparse"))
    module = subject.model.get_submodule(group.matrices[0].module_path)
    x = torch.full((1, 2, group.width), 0.1)
    x[0, 0, 0] = 100.0
    dense = torch.nn.functional.linear(x, llama.parameter(group.matrices[0]))
    found = module(x)
    torch.testing.assert_close(found[0, 0], dense[0, 0])
    assert torch.equal(found[0, 1], torch.zeros_like(found[0, 1]))

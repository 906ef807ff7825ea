"""Greedy divergence: hand-made texts; decoding with a cache, padded, without either; what the prompt is."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations import continuations as writing
from sparsescope.activations.continuations import continuations, end_tokens
from sparsescope.activations.corpus import Document
from sparsescope.errors import SpecError, SubjectError
from sparsescope.inference.calibration import calibrate
from sparsescope.inference.calibrator import Calibrator
from sparsescope.inference.divergence import DenseTexts, compare, dense_texts, greedy_divergence
from sparsescope.inference.install import install
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.inference.sparsifier import split

SUBJECTS = ["glassllm", "random-llama", "random-gpt2", "random-opt", "bytes-moe", "random-olmoe"]
POLICIES = ["all_sparse", "dense_first_n:4", "dense_fraction:0.5", "decode_only"]
# Every model with two policies, every policy with three models
PAIRS = [
    (name, policy) for n, name in enumerate(SUBJECTS) for p, policy in enumerate(POLICIES) if (n + p) % 2 == 0
]


@cache
def dense(name):
    return ss.load(name)


@cache
def text(name):
    return ss.corpus("python-docs", tokens=2048, context=64).read_by(dense(name))


@cache
def calibration(name, target):
    return calibrate(Calibrator(dense(name), *split(text(name))), "teal", target)


def sparse(name, target=0.6, prefix="all_sparse"):
    return calibration(name, target).apply(dense(name), prefix)


@cache
def doubled(name):
    """In float64: in float32 rounding lets an input that is as large as its threshold pass now and then."""
    subject = dense(name).copy()
    subject.model.double()
    if "experts" in dense(name).capabilities:
        subject.model.set_experts_implementation("eager")  # the grouped product has no float64
    return subject


def exact(name, target, prefix):
    return install(doubled(name), calibration(name, target).masks, PrefixPolicy.of(prefix))


@cache
def written(name, new=16):
    return dense_texts(dense(name), text(name), prompts=6, prompt=8, new=new)


def decoded(subject, ids, new):
    """Logits of the prompt and of what is read token by token after it, [batch, pos, vocabulary]."""
    model, past, found = subject.model, None, []
    size = ids.shape[1] - new
    with torch.inference_mode():
        for start, end in [(0, size), *((n, n + 1) for n in range(size, ids.shape[1]))]:
            output = model(input_ids=ids[:, start:end], past_key_values=past, use_cache=True)
            past = output.past_key_values
            found.append(output.logits)
    return torch.cat(found, dim=1)


# ---------------------------------------------------------------------------------------- counting


def test_common_beginnings_of_texts_that_were_made_by_hand():
    theirs = np.array(
        [[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8], [5, 2, -1, -1], [5, 2, -1, -1], [9, 9, 9, 9]]
    )
    own = np.array([[5, 6, 7, 8], [5, 6, 1, 8], [1, 6, 7, 8], [5, 2, -1, -1], [5, 6, 7, 2], [9, 2, -1, -1]])
    made = DenseTexts("x", 10, (), np.zeros((6, 3), np.int32), np.arange(6), theirs.astype(np.int32))
    found = compare(made, own.astype(np.int32))
    assert found.length.tolist() == [4, 2, 0, 2, 1, 1]
    assert found.never.tolist() == [True, False, False, True, False, False]  # the fourth: both end there
    assert found.agree.tolist() == [4, 3, 3, 2, 1, 1]
    assert found.positions.tolist() == [4, 4, 4, 2, 4, 4]  # after an end there is nothing to agree on
    assert (found.censored, found.mean_length, found.share) == (2, 10 / 6, 14 / 22)
    assert (len(found), found.new) == (6, 4) and set(found.arrays()) >= {"length", "document", "sparse"}


def test_prompts_are_of_as_many_documents_as_there_are():
    words = "the quick brown fox jumps over a lazy dog while seven wizards box with gloves"
    texts = [Document(f"d{n}", "x", " ".join([words] * repeats)) for n, repeats in enumerate((1, 3, 2))]
    read = ss.corpus(texts, tokens=None, deduplicate=False).read_by(dense("glassllm"))
    lengths = [len(document) for document in read.documents]
    found = dense_texts(dense("glassllm"), read, prompts=5, prompt=min(lengths), new=3)
    assert found.document.tolist()[:3] == [0, 1, 2] and found.document.tolist()[3:] == [1, 2]
    second = read.documents[1].ids
    assert found.prompts[1].tolist() == second[: min(lengths)].tolist()
    assert found.prompts[3].tolist() == second[min(lengths) : 2 * min(lengths)].tolist()
    assert dense_texts(dense("glassllm"), read, prompts=2, prompt=4, new=3).document.tolist() == [0, 1]


# ---------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("name", [*SUBJECTS, "random-gemma2", "random-qwen2moe"])
def test_a_model_that_skips_nothing_writes_what_the_dense_one_writes(name):
    found = greedy_divergence(written(name), sparse(name, 0.0))
    assert found.censored == len(found) == 6 and found.share == 1
    assert found.dense is written(name).written  # made once
    np.testing.assert_array_equal(found.dense, found.sparse)
    own = continuations(dense(name), list(written(name).prompts), text(name).prefix, 16)
    assert [ids[ids >= 0].tolist() for ids in found.dense] == [ids.tolist() for ids in own]


@pytest.mark.parametrize(("name", "policy"), PAIRS)
def test_a_sparse_model_diverges(name, policy):
    found = greedy_divergence(written(name, 32), sparse(name, 0.8, policy))
    assert found.censored < len(found) and found.share < 1
    assert (found.length <= 32).all() and (found.length[found.never] == found.positions[found.never]).all()
    if policy == "decode_only":  # the prompt is dense, and so is the first token that it gives
        assert found.length.min() >= 1


@pytest.mark.parametrize("policy", POLICIES[:2])
@pytest.mark.parametrize("name", [*SUBJECTS, "random-gemma2", "random-qwen2moe"])
def test_decoding_with_a_cache_gives_what_the_whole_sequence_gives(name, policy):
    """Where the policy does not go by the prompt, a pass over the whole text is the very same model."""
    subject, new = sparse(name, 0.6, policy), 16
    found = greedy_divergence(written(name), subject).sparse
    prefix = np.tile(np.array(text(name).prefix, np.int64), (6, 1))
    ids = np.concatenate([prefix, written(name).prompts], axis=1)
    for _ in range(new):
        chosen = subject.forward(ids, logits=True)[:, -1].argmax(-1)
        ids = np.concatenate([ids, chosen.numpy()[:, None]], axis=1)
    whole = ids[:, -new:]
    ends = np.cumsum(np.isin(whole, list(end_tokens(subject))), axis=1)
    ended = ends - np.isin(whole, list(end_tokens(subject))) > 0
    np.testing.assert_array_equal(found, np.where(ended, -1, whole))
    given, same = torch.from_numpy(ids), exact(name, 0.6, policy)
    own, at_once = decoded(same, given, new), same.forward(given, logits=True)
    # Gemma 2 takes its norms and its softmax in float32 whatever the weights are.
    torch.testing.assert_close(own, at_once, atol=1e-6 if name == "random-gemma2" else 1e-10, rtol=1e-9)


@pytest.mark.parametrize("name", [*SUBJECTS, "random-gemma2", "random-qwen2moe"])
def test_a_decoded_token_is_sparse_and_the_prompt_is_the_dense_one(name):
    ids = np.concatenate([written(name).prompts, np.abs(written(name).written)], axis=1)
    ids, prompt = torch.from_numpy(ids).long(), 8
    own, theirs = decoded(sparse(name, 0.8, "decode_only"), ids, 16), decoded(dense(name), ids, 16)
    if "experts" in dense(name).capabilities:  # masked experts are summed one by one: equal but for rounding
        torch.testing.assert_close(own[:, :prompt], theirs[:, :prompt], atol=3e-5, rtol=1e-5)
    else:
        assert torch.equal(own[:, :prompt], theirs[:, :prompt])
    gaps = (own - theirs)[:, prompt:].abs().amax(-1)
    assert (gaps > 1e-3 * theirs.abs().max()).all()
    # What follows is what a model gives whose first positions are dense.
    own, other = (decoded(exact(name, 0.8, p), ids, 16) for p in ("decode_only", f"dense_first_n:{prompt}"))
    torch.testing.assert_close(own, other, atol=1e-6 if name == "random-gemma2" else 1e-10, rtol=1e-9)


@pytest.mark.parametrize(("name", "policy"), PAIRS)
def test_prompts_that_are_padded_on_the_left_are_continued_as_alone(name, policy, monkeypatch):
    subject = sparse(name, 0.5, policy)
    prompts = [ids[: 3 + n] for n, ids in enumerate(written(name).prompts)]
    shapes = []
    hook = subject.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    together = continuations(subject, prompts, text(name).prefix, 12)
    hook.remove()
    assert shapes[0][0] == 6 or shapes[-1][0] == 6  # before them, how the model takes padding is measured
    alone = [continuations(subject, [prompt], text(name).prefix, 12)[0] for prompt in prompts]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]
    # A model that does not take padding: only prompts of one length share passes.
    monkeypatch.setattr(type(subject), "takes_padding", lambda self, side: False)
    assert [ids.tolist() for ids in continuations(subject, prompts, text(name).prefix, 12)] == [
        ids.tolist() for ids in alone
    ]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["random-llama", "random-gpt2", "random-olmoe"])
def test_generate_of_transformers_writes_the_same(name, policy):
    subject = sparse(name, 0.6, policy)
    found = greedy_divergence(written(name), subject).sparse
    ids = torch.from_numpy(
        np.concatenate(
            [np.tile(np.array(text(name).prefix, np.int64), (6, 1)), written(name).prompts], axis=1
        )
    )
    theirs = subject.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=0
    )[:, ids.shape[1] :].numpy()
    for own, other in zip(found, theirs, strict=True):
        assert own[own >= 0].tolist() == other[: (own >= 0).sum()].tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_without_a_cache_keeps_to_its_policy(policy, monkeypatch):
    subject = sparse("random-llama", 0.6, policy)
    cached = greedy_divergence(written("random-llama"), subject)
    forward = type(subject.model).forward

    def plain(self, input_ids=None, attention_mask=None, logits_to_keep=0):
        return forward(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            logits_to_keep=logits_to_keep,
        )

    monkeypatch.setattr(type(subject.model), "forward", plain)
    assert not writing.takes_cache(subject.model)
    np.testing.assert_array_equal(greedy_divergence(written("random-llama"), subject).sparse, cached.sparse)


def test_an_end_of_text_ends_a_sequence(llama):
    subject = llama.copy()
    (end,) = end_tokens(subject)

    def choose(module, args, kwargs, output):
        output.logits[:] = 0
        read = kwargs["input_ids"][:, -1]
        output.logits[torch.arange(len(read)), -1, torch.where(read == 9, end, 9)] = 1
        return output

    hook = subject.model.register_forward_hook(choose, with_kwargs=True)
    found = dense_texts(subject, text("random-llama"), prompts=3, prompt=8, new=5)
    hook.remove()
    assert found.written.tolist() == [[9, end, -1, -1, -1]] * 3
    other = greedy_divergence(found, dense("random-llama"))
    assert (other.positions >= 2).all() and (other.length <= 2).all()


# ---------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_compared_is_refused():
    name = "random-llama"
    with pytest.raises(SpecError, match="prompts must be at least 1"):
        dense_texts(dense(name), text(name), prompts=0)
    with pytest.raises(SubjectError, match=r"more than the model was made for[^\x00]*200 \+ 100"):
        dense_texts(dense(name), text(name), prompt=200, new=100)
    short = ss.corpus(["a few words only"], tokens=None)
    with pytest.raises(SubjectError, match="no document is as long as a prompt"):
        dense_texts(dense(name), short, prompt=64, new=4)
    with pytest.raises(SubjectError, match="do not have the same token ids"):
        greedy_divergence(written("glassllm"), sparse(name))
    with pytest.raises(SpecError, match="leaves nothing sparse"):
        greedy_divergence(written(name), sparse(name, 0.6, "dense_first_n:80"))
    with pytest.raises(SubjectError, match="causal"):
        dense_texts(dense("minilm-l6"), ss.corpus(["a text " * 40], tokens=None, deduplicate=False), prompt=8)

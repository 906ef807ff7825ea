"""Attention read row by row: the same model, in memory linear in the length, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparsescope.errors import SpecError, SubjectError
from sparsescope.models import wrap
from sparsescope.models.attention import attention_rows, supports_attention_rows
from sparsescope.models.doctor import count_hooks

SUBJECTS = ["random-llama", "random-gpt2", "random-opt", "random-gemma2", "random-qwen2moe"]
IDS = torch.arange(300).reshape(2, 150) * 7 % 90 + 3


def bert():
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return wrap(transformers.AutoModelForMaskedLM.from_config(config).eval())


def eager(subject, ids):
    """Logits and attention weights of plain transformers on a copy of the model."""
    copy = subject.copy()
    copy.model.set_attn_implementation("eager")
    with torch.inference_mode():
        found = copy.model(input_ids=ids, output_attentions=True, use_cache=False)
    return found.logits, found.attentions


@pytest.mark.parametrize("name", [*SUBJECTS, "bert"])
@pytest.mark.parametrize("chunk", [256, 64, 7])
def test_parity_with_eager_attention(subject, name, chunk):
    it = bert() if name == "bert" else subject(name)
    logits, attentions = eager(it, IDS)
    found = {layer: torch.full_like(weights, -1) for layer, weights in enumerate(attentions)}

    def visit(rows):
        keys = slice(rows.first_key, rows.first_key + rows.weights.shape[3])
        part = found[rows.layer][:, :, rows.start : rows.start + rows.weights.shape[2]]
        part.zero_()
        part[..., keys] = rows.weights
        assert rows.length == IDS.shape[1] and not rows.weights[..., ~rows.allowed].any()

    with attention_rows(it, visit, chunk_rows=chunk):
        ours = it.forward(IDS, logits=True)
    assert (ours - logits).abs().max() <= 1e-4 * logits.abs().max()
    for layer, weights in enumerate(attentions):
        torch.testing.assert_close(found[layer], weights, rtol=1e-4, atol=1e-6)


def test_sliding_window_layers_see_their_window_only(subject):
    seen = {}
    with attention_rows(
        subject("random-gemma2"), lambda rows: seen.update({rows.layer: rows.allowed.sum(1)})
    ):
        subject("random-gemma2").forward(IDS)
    assert seen[0].max() == 64 and seen[1].max() == IDS.shape[1]


def test_what_a_visitor_returns_is_used(subject):
    it = subject("random-llama")
    plain = it.forward(IDS)
    with attention_rows(it, lambda rows: torch.zeros_like(rows.weights)):
        assert not torch.allclose(it.forward(IDS), plain)
    with attention_rows(it, lambda rows: rows.weights.clone()):
        torch.testing.assert_close(it.forward(IDS), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_as_before(subject, failure):
    it = subject("random-llama")
    output, identity, hooks = it.forward(IDS).clone(), it.identity, count_hooks(it.model)
    state = {name: tensor.clone() for name, tensor in it.model.state_dict().items()}
    names = set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS)

    def visit(rows):
        if failure is not None and rows.layer == 1:
            raise failure("on purpose")

    try:
        with attention_rows(it, visit):
            it.forward(IDS)
    except (RuntimeError, KeyboardInterrupt) as error:
        assert str(error) == "on purpose"
    else:
        assert failure is None
    assert (set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS)) == names
    assert it.identity == identity and it.unchanged and count_hooks(it.model) == hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in it.model.state_dict().items())
    assert torch.equal(it.forward(IDS), output)


def test_blocks_inside_each_other_and_side_by_side(subject):
    it, other = subject("random-llama"), subject("random-gpt2")
    seen = []
    with (
        attention_rows(it, lambda rows: seen.append("a")),
        attention_rows(other, lambda rows: seen.append("b")),
    ):
        it.forward(IDS)
        other.forward(IDS)
    assert seen == ["a"] * 3 + ["b"] * 3


def test_refusals(subject):
    config = transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)
    bloom = wrap(transformers.AutoModelForCausalLM.from_config(config))
    assert not supports_attention_rows(bloom)
    with pytest.raises(SubjectError, match="in its own code"), attention_rows(bloom, lambda rows: None):
        pass
    with pytest.raises(SpecError), attention_rows(subject("random-llama"), lambda rows: None, chunk_rows=0):
        pass
    mask = torch.ones_like(IDS)
    mask[0, 100:] = 0
    with (
        pytest.raises(SubjectError, match="padding"),
        attention_rows(subject("random-llama"), lambda rows: None),
    ):
        subject("random-llama").forward(IDS, mask)
    sizes = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    sinks = wrap(
        transformers.AutoModelForCausalLM.from_config(
            transformers.GptOssConfig(**sizes, **heads, pad_token_id=0)
        )
    )
    with pytest.raises(SubjectError, match="sink logits"), attention_rows(sinks, lambda rows: None):
        sinks.forward(IDS)


def test_two_attentions_in_one_layer_are_refused_by_name():
    """DiffLlama subtracts one softmax from another; each pass of a model of one layer is a new one."""
    sizes = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    it = wrap(transformers.AutoModelForCausalLM.from_config(transformers.DiffLlamaConfig(**sizes)).eval())
    with (
        pytest.raises(SubjectError, match="several attentions in one layer") as caught,
        attention_rows(it, lambda rows: None),
    ):
        it.forward(IDS)
    assert caught.value.got == "DiffLlamaAttention" and count_hooks(it.model) == 0
    plain = wrap(transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**sizes)).eval())
    seen = []
    with attention_rows(plain, lambda rows: seen.append(rows.layer)):
        plain.forward(IDS)
        plain.forward(IDS)
    assert seen == [0, 0]


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("window", [None, 300])
def test_memory_is_linear_in_the_length(window):
    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    kind = transformers.MistralConfig(
        **sizes, max_position_embeddings=4096, num_key_value_heads=1, sliding_window=window
    )
    subject = wrap(transformers.AutoModelForCausalLM.from_config(kind))
    largest = {}
    for length in (1024, 2048, 4096):
        ids = torch.arange(length)[None] % 60
        with Largest() as noted, attention_rows(subject, lambda rows: None, chunk_rows=128):
            subject.forward(ids)
        largest[length] = noted.elements
    assert largest[4096] <= 4.1 * largest[1024] and largest[4096] <= 2 * 128 * 4096
    # the instrument does see the T x T weights of eager attention
    with Largest() as noted, torch.inference_mode():
        subject.model.set_attn_implementation("eager")
        subject.model(input_ids=torch.arange(1024)[None] % 60, use_cache=False)
    assert noted.elements >= 1024 * 1024

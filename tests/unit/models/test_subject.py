"""Subjects: identity follows the weights, passes are clean, wrapped models stay bit-identical."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sparsescope.errors import SpecError, SubjectError
from sparsescope.models import Subject, load, registered_subjects, wrap
from sparsescope.models.doctor import count_hooks, examine, precision_note
from sparsescope.models.identity import check_finite, config_hash, weight_hash

RANDOM_NAMES = tuple(name for name in registered_subjects() if name.startswith("random-"))
IDS = np.random.default_rng(0).integers(3, 259, size=(2, 9))
Get = Callable[[str], Subject]


def small_llama(**more: Any) -> Any:
    facts = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**{**facts, "num_attention_heads": 4, **more})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


# --- identity


def test_the_hash_covers_names_dtypes_shapes_and_bytes() -> None:
    class Two(torch.nn.Module):
        def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Parameter(a), torch.nn.Parameter(b)

    one, two = torch.ones(2, 3), torch.zeros(3)
    reference = weight_hash(Two(one, two))
    assert reference == weight_hash(Two(one.clone(), two.clone()))
    assert reference == weight_hash(Two(one.T.contiguous().T, two)), "layout in memory must not matter"
    others = [
        Two(one.T, two),
        Two(one.double(), two),
        Two(one.reshape(6), two),
        Two(one, -two),
        Two(two, one),
    ]
    assert len({reference, *map(weight_hash, others)}) == 6  # -0.0 has other bytes than 0.0


def test_the_hash_is_what_its_definition_says() -> None:
    module = torch.nn.Linear(2, 1)
    whole = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters()):
        shape = ", ".join(map(str, tensor.shape))
        whole.update(f'["{name}", "float32", [{shape}]]'.encode())
        whole.update(hashlib.sha256(tensor.detach().numpy().tobytes()).digest())
    assert weight_hash(module) == whole.hexdigest()


def test_tied_weights_count_once() -> None:
    tied, free = wrap(small_llama(tie_word_embeddings=True)), wrap(small_llama(tie_word_embeddings=False))
    assert free.identity.n_parameters - tied.identity.n_parameters == 40 * 32
    assert tied.memory_estimate()["weights"] == 4 * tied.identity.n_parameters


@pytest.mark.parametrize("write", ["in place", "through .data", "replaced"])
def test_the_identity_follows_the_weights(write: str) -> None:
    model = small_llama()
    subject = wrap(model)
    before = subject.identity.weight_hash
    assert subject.identity.weight_hash == before
    weight = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        if write == "in place":
            weight[0, 0] += 1
        elif write == "through .data":
            weight.data.mul_(2)
        else:
            model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(weight * 2)
    assert subject.identity.weight_hash != before


def test_the_configuration_has_a_hash_of_its_own() -> None:
    plain = small_llama()
    other = small_llama(rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    assert weight_hash(plain) == weight_hash(other)
    assert config_hash(plain) != config_hash(other)
    plain.config.use_cache = False
    plain.config._name_or_path = "/somewhere/else"
    assert config_hash(plain) == config_hash(small_llama())


def test_identity_is_plain_json() -> None:
    facts = load("random-gpt2@2").identity.as_dict()
    assert facts["id"] == "random-gpt2" and facts["revision"] == "seed-2"
    assert facts["n_parameters"] == 183040 and facts["attn_implementation"] == "sdpa"
    assert all(isinstance(value, str | int | bool | None) for value in facts.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    model = small_llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4:6] = value
    model.model.norm.weight.data[0] = value
    with pytest.raises(SubjectError) as caught:
        wrap(model, id="broken")
    assert "3 weights are NaN or infinite, in 2 tensors" in caught.value.what
    assert "broken, first: model.layers.1.mlp.up_proj.weight (2 elements)" in (caught.value.where or "")


def test_large_finite_weights_are_no_error() -> None:
    model = small_llama().to(torch.float16)
    model.model.norm.weight.data.fill_(60000.0)  # the sum overflows, no element does
    check_finite(model, "model")


# --- passes


@pytest.mark.parametrize("name", RANDOM_NAMES)
def test_forward_is_the_model(name: str, subject: Get) -> None:
    model = subject(name)
    with torch.inference_mode():
        reference = model.model(input_ids=torch.as_tensor(IDS), use_cache=False).logits
    assert torch.equal(model.forward(IDS, logits=True), reference)
    hidden = model.forward(IDS)
    assert hidden.shape == (2, 9, 64) and hidden.is_inference() and not hidden.requires_grad


def test_without_logits_the_head_does_not_run(subject: Get) -> None:
    model = subject("random-llama")
    calls: list[int] = []
    handle = model.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    model.forward(IDS)
    assert calls == []
    model.forward(IDS, logits=True)
    handle.remove()
    assert calls == [1]


@pytest.mark.parametrize(
    "name", ["random-llama", "random-gpt2", "random-opt", "random-gemma2", "random-mixtral"]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name: str, side: str, subject: Get) -> None:
    model = subject(name)
    alone = model.forward(IDS[:1])
    row = np.zeros((1, 13), dtype=np.int64)
    mask = np.zeros((1, 13), dtype=bool)
    window = slice(4, 13) if side == "left" else slice(0, 9)
    row[:, window], mask[:, window] = IDS[:1], True
    padded = model.forward(row, mask)[:, window]
    assert torch.allclose(alone, padded, atol=1e-5)


def test_bad_inputs_are_explained(subject: Get) -> None:
    model = subject("random-llama")
    with pytest.raises(SubjectError, match=r"\[batch, pos\]"):
        model.forward([1, 2, 3])
    with pytest.raises(SubjectError, match=r"\[batch, pos\]"):
        model.forward(np.zeros((0, 4), dtype=np.int64))
    with pytest.raises(SubjectError, match="differ in shape"):
        model.forward(IDS, np.ones((2, 8)))


def test_dropout_is_off_and_the_mode_is_restored() -> None:
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5)
    model = transformers.GPT2LMHeadModel(config).train()
    model.transformer.h[0].eval()
    subject = wrap(model)
    modes = {path: module.training for path, module in model.named_modules()}
    assert torch.equal(subject.forward(IDS % 40), subject.forward(IDS % 40))
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert modes["transformer.h.1"] and not modes["transformer.h.0"]


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        (
            "random-llama",
            {"mlp_hidden", "mlp_gated", "attention", "logits", "tokenizer", "causal"},
            {"experts"},
        ),
        ("random-opt", {"mlp_hidden", "exact_zeros"}, {"mlp_gated", "encoder"}),
        ("random-gpt2", {"mlp_hidden"}, {"exact_zeros", "mlp_gated"}),
        ("random-olmoe", {"experts", "mlp_gated"}, {"mlp_hidden", "exact_zeros"}),
        ("random-qwen2moe", {"experts"}, {"mlp_hidden"}),
    ],
)
def test_capabilities(name: str, present: set[str], absent: set[str], subject: Get) -> None:
    assert present <= subject(name).capabilities
    assert not absent & subject(name).capabilities


def test_memory_estimate_adds_up(subject: Get) -> None:
    estimate = subject("random-llama").memory_estimate(100)
    assert estimate["captured"] == 100 * 3 * 176 * 4
    assert estimate["logits"] == 100 * 259 * 4
    assert estimate["total"] == sum(value for key, value in estimate.items() if key != "total")


def test_a_copy_shares_nothing(subject: Get) -> None:
    original = subject("random-llama")
    before = original.identity.weight_hash
    twin = original.copy(id="twin")
    assert (twin.id, twin.identity.weight_hash) == ("twin", before)
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.zero_()
    assert original.identity.weight_hash == before


# --- wrap


def state_bytes(model: Any) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def saved_bytes(model: Any, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", RANDOM_NAMES)
def test_a_wrapped_model_stays_bit_identical(name: str, tmp_path: Path) -> None:
    model = load(name).model
    ids = torch.as_tensor(IDS)

    def snapshot(folder: str) -> tuple[Any, ...]:
        with torch.no_grad():
            logits = model(ids).logits.numpy().tobytes()
        return state_bytes(model), logits, saved_bytes(model, tmp_path / folder), count_hooks(model)

    before = snapshot("before")
    flags = [parameter.requires_grad for parameter in model.parameters()]
    subject = wrap(model, id="mine")
    assert subject.model is model
    every = subject.sites("blocks.*.*")
    with subject.attach(every, lambda *_: None):
        subject.forward(ids)
    for error in (ValueError, KeyboardInterrupt):

        def fail(*_: Any, error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error), subject.attach(every, fail):
            subject.forward(ids)
    _ = subject.identity, subject.capabilities, subject.memory_estimate()
    examine(subject)
    subject.copy()
    assert snapshot("after") == before
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_a_wrapped_model_can_still_be_trained() -> None:
    model = small_llama().train()
    subject = wrap(model)
    subject.forward(IDS % 40)
    model(torch.as_tensor(IDS % 40), labels=torch.as_tensor(IDS % 40)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("model", ["glassllm", None, torch.nn.Linear(2, 2), {"weight": 1}])
def test_wrap_takes_hf_models_only(model: Any) -> None:
    with pytest.raises(SpecError, match="takes a model of transformers"):
        wrap(model)


def test_wrap_refuses_what_is_no_fast_tokenizer() -> None:
    with pytest.raises(SpecError, match="fast one"):
        wrap(small_llama(), tokenizer="gpt2")


def test_wrap_refuses_weights_on_meta() -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(small_llama().config)
    with pytest.raises(SubjectError, match="not loaded"):
        wrap(model)


def test_a_model_with_encoder_and_decoder_is_refused() -> None:
    config = transformers.T5Config(vocab_size=40, d_model=32, d_ff=48, num_layers=1, num_heads=2, d_kv=16)
    with pytest.raises(SubjectError, match="an encoder and a decoder"):
        wrap(transformers.T5ForConditionalGeneration(config))


def test_a_replaced_activation_is_seen() -> None:
    model = small_llama()
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
    subject = wrap(model)
    assert {site.activation for site in subject.sites("blocks.*.mlp.hook_post")} == {"relu"}
    assert "exact_zeros" in subject.capabilities


# --- encoder


def bare_bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.BertModel(config).eval()


def test_a_bare_bert_is_served_by_our_own_map() -> None:
    subject = wrap(bare_bert())
    assert {"encoder", "mlp_hidden", "attention"} <= subject.capabilities
    assert not {"logits", "causal", "tokenizer", "exact_zeros"} & subject.capabilities
    found: dict[str, torch.Tensor] = {}
    with subject.attach(
        subject.sites("blocks.*.*"), lambda site, tensor, _: found.__setitem__(site.name, tensor)
    ):
        subject.forward(IDS % 40)
    for layer in range(2):
        hidden = torch.nn.functional.gelu(found[f"blocks.{layer}.mlp.hook_pre"])
        assert torch.allclose(found[f"blocks.{layer}.mlp.hook_post"], hidden, atol=1e-6)
    assert subject.parameter("weight:blocks.0.mlp.out.weight").shape == (32, 48)
    with pytest.raises(SubjectError, match="no output head"):
        subject.forward(IDS % 40, logits=True)


# --- doctor


@pytest.mark.parametrize("name", [*RANDOM_NAMES, "glassllm"])
def test_the_doctor_finds_every_pass_bit_equal(name: str) -> None:
    subject = load(name)
    found = examine(subject)
    assert found.healthy and found.hooks_left == 0
    assert [row.what for row in found.parity] == ["hidden state"] * (subject.n_layers - 1) + [
        "backbone",
        "logits",
    ]
    assert all(row.max_abs_difference == 0 and row.argmax_agreement == 1 for row in found.parity)
    assert all(row.scale > 0 for row in found.parity)
    assert count_hooks(subject.model) == 0


def test_the_doctor_sees_a_pass_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = load("random-gpt2")
    honest = Subject.forward
    monkeypatch.setattr(Subject, "forward", lambda self, *a, **k: honest(self, *a, **k) + 0.5)
    found = examine(subject)
    assert not found.healthy
    assert [row.bit_equal for row in found.parity] == [True, True, False, False]
    assert found.parity[-1].max_abs_difference == pytest.approx(0.5)


def test_the_doctor_examines_an_encoder_without_tokenizer() -> None:
    found = examine(wrap(bare_bert()))
    assert found.healthy and [row.what for row in found.parity] == ["hidden state", "backbone"]


@pytest.mark.parametrize(
    ("origin", "dtype", "text"),
    [
        ("gguf:Q4_1", "float32", "quantized model, not the original"),
        ("gguf:F16", "float32", "stored in gguf:F16 and are computed in float32"),
        ("bfloat16", "float32", "stored in bfloat16 and are computed in float32"),
        ("float32", "float32", "stored and are computed in float32"),
    ],
)
def test_the_note_on_precision(origin: str, dtype: str, text: str) -> None:
    assert text in precision_note(origin, dtype)


# --- what earlier versions read otherwise


def test_only_subjects_that_were_read_otherwise_have_a_key_for_it() -> None:
    """A stored run of one of them holds other numbers: it must not be opened; all others must."""
    found = {name: load(name).identity.as_dict().get("reading") for name in RANDOM_NAMES}
    assert {name: read for name, read in found.items() if read} == {"random-qwen2moe": {"roles": 2}}
    tiny = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    fnet = transformers.FNetModel(transformers.FNetConfig(**tiny, max_position_embeddings=32))
    assert wrap(fnet.eval()).identity.reading["padding"] == "none"
    headless = transformers.LlamaModel(small_llama().config).eval()
    assert wrap(headless).identity.reading == {"causal": True}
    two_sided = small_llama()
    for layer in two_sided.model.layers:
        layer.self_attn.is_causal = False
    two_sided.config.is_causal = False
    assert wrap(two_sided).identity.reading == {"causal": False}


def test_the_key_joins_the_digest_of_a_run() -> None:
    from sparsescope.core.spec import Spec

    identity = load("random-qwen2moe").identity.as_dict()
    other = {name: value for name, value in identity.items() if name != "reading"}
    one, two = (Spec(analysis="a", version="1", params={}, subject=entry) for entry in (identity, other))
    assert one.digest != two.digest

"""Positions, padding and causality: measured, with the right values; and a measurement leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import sparsescope as ss
from sparsescope.activations.losses import check_causal
from sparsescope.errors import SubjectError
from sparsescope.models.doctor import count_hooks
from sparsescope.models.structure import positions
from sparsescope.models.structure.dimensions import read_dimensions

SIZE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
}
IDS = torch.arange(26).reshape(2, 13) * 7 % 90 + 3


def made(kind: str, config: str, dtype: torch.dtype = torch.float32, **values: Any) -> Any:
    """A model of a class, with noise on every parameter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, config)(**{**SIZE, **values})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


def roberta(pad: int = 1) -> Any:
    return made("RobertaForMaskedLM", "RobertaConfig", pad_token_id=pad)


def padded(ids: torch.Tensor, n: int, fill: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with n ids of padding on the left, and their mask."""
    ids = torch.cat([torch.full((len(ids), n), fill), ids], dim=1)
    mask = torch.ones_like(ids)
    mask[:, :n] = 0
    return ids, mask


# --- positions


@pytest.mark.parametrize("pad", [0, 1, 5])
def test_roberta_takes_as_many_tokens_as_there_are_positions_after_padding(pad: int) -> None:
    subject = ss.wrap(roberta(pad))
    limit = 66 - pad - 1
    assert subject.max_positions == limit
    ids = (torch.arange(66) * 7 % 80 + 10)[None]
    assert subject.forward(ids[:, :limit]).shape == (1, limit, 32)
    with pytest.raises((IndexError, RuntimeError)):
        subject.forward(ids[:, : limit + 1])


def test_positions_of_roberta_are_those_of_transformers() -> None:
    ids, mask = padded(IDS, 4)
    expected = (
        transformers.models.roberta.modeling_roberta.RobertaEmbeddings.create_position_ids_from_input_ids(
            ids, 1
        )
    )
    assert torch.equal(positions.Counting(2, 1).of(ids, mask), expected)
    assert expected[0].tolist() == [1, 1, 1, 1, *range(2, 15)]
    assert positions.Counting().of(ids, mask)[0].tolist() == [0, 0, 0, 0, *range(13)]


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("fill", [1, 7])
def test_left_padding_of_roberta_changes_nothing_whatever_the_id_at_padding(logits: bool, fill: int) -> None:
    subject = ss.wrap(roberta())
    alone = subject.forward(IDS, logits=logits)
    together = subject.forward(*padded(IDS, 4, fill), logits=logits)[:, 4:]
    assert float((alone - together).abs().max() / alone.abs().max()) < 1e-6


def test_a_token_that_is_the_padding_id_has_the_position_that_the_model_gives_it() -> None:
    subject = ss.wrap(roberta())
    ids = IDS.clone()
    ids[:, 5] = 1
    alone, together = subject.forward(ids), subject.forward(*padded(ids, 4))[:, 4:]
    assert float((alone - together).abs().max() / alone.abs().max()) < 1e-6


def test_models_that_count_from_zero_still_do() -> None:
    subject = ss.load("random-gpt2")
    ids, mask = padded(IDS, 4)
    given = subject.mask_arguments(subject.backbone, ids, mask)
    assert torch.equal(given["position_ids"], (mask.cumsum(1) - 1).clamp(min=0))
    assert "position_ids" not in subject.mask_arguments(subject.backbone, ids.flip(1), mask.flip(1))


# --- padding


def fnet() -> Any:
    return made("FNetForMaskedLM", "FNetConfig", pad_token_id=1)


def test_padding_that_would_change_real_tokens_is_refused_and_the_next_step_works() -> None:
    subject = ss.wrap(fnet())
    assert not subject.takes_padding("left") and not subject.takes_padding("right")
    with pytest.raises(SubjectError, match="padding on the left changes") as caught:
        subject.forward(*padded(IDS, 4))
    assert "rows of one length together, without a mask" in str(caught.value.next_step)
    assert torch.isfinite(subject.forward(IDS)).all()


def test_the_refusal_of_one_side_names_the_other_where_that_is_exact() -> None:
    subject = ss.wrap(made("RoFormerForMaskedLM", "RoFormerConfig", embedding_size=32, pad_token_id=1))
    assert subject.takes_padding("right") and not subject.takes_padding("left")
    ids, mask = padded(IDS, 4)
    with pytest.raises(SubjectError, match="pad on the right"):
        subject.forward(ids, mask)
    right = subject.forward(torch.cat([IDS, torch.ones(2, 4, dtype=torch.int64)], 1), mask.flip(1))
    assert float((right[:, :13] - subject.forward(IDS)).abs().max()) < 1e-5


# --- causality

LLAMA = ("LlamaForCausalLM", "LlamaConfig")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "config", "values", "causal", "head"),
    [
        (*LLAMA, {}, True, True),
        (*LLAMA, {"is_causal": False}, False, True),
        ("LlamaModel", "LlamaConfig", {}, True, False),
        ("LlamaForSequenceClassification", "LlamaConfig", {"num_labels": 1}, True, False),
        ("BertForMaskedLM", "BertConfig", {}, False, True),
        ("BertLMHeadModel", "BertConfig", {"is_decoder": True}, True, True),
        ("BertLMHeadModel", "BertConfig", {}, False, True),
        ("RobertaForCausalLM", "RobertaConfig", {"pad_token_id": 1}, False, True),
    ],
)
def test_causal_is_what_the_model_does(
    kind: str, config: str, values: dict[str, Any], causal: bool, head: bool, dtype: torch.dtype
) -> None:
    subject = ss.wrap(made(kind, config, dtype, **values))
    found = subject.capabilities & {"causal", "encoder", "logits"}
    assert found == {"causal" if causal else "encoder"} | ({"logits"} if head else set())
    assert read_dimensions(subject).causal == causal
    if causal and head:
        check_causal(subject)
    else:
        with pytest.raises(SubjectError, match="only a causal language model"):
            check_causal(subject)


def test_a_model_that_needs_more_than_ids_is_refused_with_the_reason() -> None:
    subject = ss.wrap(made("XmodForMaskedLM", "XmodConfig", pad_token_id=1))
    with pytest.raises(SubjectError, match="does not run on token ids alone") as caught:
        _ = subject.capabilities
    assert "language" in str(caught.value.got)


@pytest.mark.parametrize("vocabulary", [2, 5, 31, 96])
def test_the_rows_of_the_measurement_differ_everywhere(vocabulary: int) -> None:
    model = made(*LLAMA, vocab_size=vocabulary, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    first, second = positions._sample(model, 66)
    assert first.shape == second.shape == (1, 16) and (first != second).all()
    assert int(max(first.max(), second.max())) < vocabulary


# --- no trace


def test_hooks_of_others_do_not_see_the_measurement() -> None:
    subject = ss.wrap(roberta())
    seen: list[tuple[int, ...]] = []
    with subject.attach(
        subject.sites("blocks.*.hook_in"), lambda site, tensor, rows: seen.append(tensor.shape)
    ):
        subject.forward(*padded(IDS, 4))
        assert "encoder" in subject.capabilities
        assert count_hooks(subject.model) > 0
    assert seen == [(2, 17, 32)] * 2 and count_hooks(subject.model) == 0


def test_the_measurement_leaves_the_model_as_it_was() -> None:
    """BigBird replaces its sparse attention for good when it sees a short row."""
    model = made("BigBirdForMaskedLM", "BigBirdConfig", max_position_embeddings=1024, block_size=16).train()
    before = {name: type(module).__name__ for name, module in model.named_modules()}
    subject = ss.wrap(model)
    assert "encoder" in subject.capabilities and subject.takes_padding("left")
    assert {name: type(module).__name__ for name, module in model.named_modules()} == before
    assert model.bert.attention_type == "block_sparse" and all(module.training for module in model.modules())


def test_nothing_is_run_at_load() -> None:
    calls: list[int] = []
    model = roberta()
    model.roberta.embeddings.register_forward_hook(lambda *_: calls.append(1))
    subject = ss.wrap(model)
    assert (subject.max_positions, subject.paddings, calls) == (64, {}, [])

"""Blocks run one at a time give what the whole model gives, bit for bit; models of which this is not so are
refused.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsescope.activations.replay import Replay
from sparsescope.errors import SubjectError
from sparsescope.models import Subject, load, registered_subjects
from sparsescope.models.doctor import count_hooks
from sparsescope.pruning import prune

RANDOM_NAMES = tuple(name for name in registered_subjects() if name.startswith("random-"))


def block_outputs(subject: Subject, batch: Any, by_hand: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each block gives in one whole pass, by plain hooks, and the logits."""
    found: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).clone())

    blocks = [subject.model.get_submodule(block.path) for block in subject.blocks]
    handles = [block.register_forward_hook(keep) for block in blocks]
    output = by_hand.call(subject, batch)
    for handle in handles:
        handle.remove()
    return found, output.logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RANDOM_NAMES)
def test_every_block_gives_what_it_gives_in_a_whole_pass(name: str, dtype: str, by_hand: Any) -> None:
    subject = load(name, dtype=dtype)
    replay = Replay(subject, by_hand.document_text((150, 70, 64, 10), context=64), batch_tokens=200)
    assert [batch.input_ids.shape for batch in replay.batches] == [(3, 64), (2, 64), (1, 64), (1, 10)]
    assert [bool(batch.attention_mask.all()) for batch in replay.batches] == [False, False, True, True]
    whole = [block_outputs(subject, batch, by_hand)[0] for batch in replay.batches]
    for layer in range(subject.n_layers):
        for number, outputs in enumerate(whole):
            assert torch.equal(replay.run(layer, number), outputs[layer]), (layer, number)
        replay.advance(layer)
        assert all(torch.equal(a, b[layer]) for a, b in zip(replay.hidden, whole, strict=True))
    for number in range(len(replay.batches)):
        replay.check(number)
    assert count_hooks(subject.model) == 0
    assert not any("forward" in vars(module) for module in subject.model.modules())


@pytest.mark.parametrize("name", ["random-llama", "random-gpt2", "random-mixtral"])
def test_it_goes_on_with_the_weights_that_are_there(name: str, text: Any, by_hand: Any) -> None:
    subject = load(name)
    replay = Replay(subject, text)
    for layer in range(subject.n_layers):
        for site in subject.parameter_sites(f"weight:blocks.{layer}.*"):
            subject.parameter(site).mul_(0.5)
        replay.advance(layer)
    for number, batch in enumerate(replay.batches):
        assert torch.equal(replay.hidden[number], block_outputs(subject, batch, by_hand)[0][-1])
    replay.check()
    subject.parameter("weight:blocks.1.attn.o.weight")[0, 0] += 1
    with pytest.raises(SubjectError, match="depend on each other") as caught:
        replay.check()
    assert "propagation='dense'" in (caught.value.next_step or "")


def test_a_padded_batch_is_checked_as_well(text: Any, by_hand: Any) -> None:
    replay = Replay(load("random-llama"), text)
    assert replay.samples[0] == 0
    first, second = (replay.batches[number] for number in replay.samples)
    assert first.input_ids.shape != second.input_ids.shape or not second.attention_mask.all()
    for lengths, samples in {(64, 64, 10, 70): (0, 3), (64, 64, 10): (0, 2), (64, 64): (0,)}.items():
        assert Replay(load("random-llama"), by_hand.document_text(lengths, context=64)).samples == samples
    assert Replay(load("random-llama"), text.select([0])).samples == (0,)


def test_the_training_state_comes_back(text: Any) -> None:
    subject = load("random-llama")
    subject.model.train()
    replay = Replay(subject, text)
    replay.run(0, 0)
    assert all(module.training for module in subject.model.modules())


def test_an_error_in_a_pass_leaves_the_model_as_it_was(text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = load("random-llama")
    with monkeypatch.context() as patch:
        patch.setattr(subject.model.model.norm, "forward", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Replay(subject, text)
    assert count_hooks(subject.model) == 0
    assert not any("forward" in vars(layer) for layer in subject.model.model.layers)


def double(module: Any, args: Any) -> Any:
    return args[0] * 2, *args[1:]


def double_in_place(module: Any, args: Any) -> None:
    args[0].mul_(2)


@pytest.mark.parametrize("between", [double, double_in_place])
def test_a_model_that_computes_between_its_blocks_is_refused(between: Any, text: Any) -> None:
    subject = load("random-llama")
    subject.model.model.layers[1].register_forward_pre_hook(between)
    with pytest.raises(SubjectError, match="computes between its blocks") as caught:
        Replay(subject, text)
    assert "before block 1" in (caught.value.where or "")
    assert "propagation='dense'" in (caught.value.next_step or "")


def test_blocks_that_run_in_another_order_are_refused(text: Any) -> None:
    subject = load("random-llama")
    first, second, third = subject.blocks
    subject.blocks = (first, third, second)
    with pytest.raises(SubjectError, match="computes between its blocks"):
        Replay(subject, text)


def test_a_block_that_writes_to_what_it_reads_may_run_again(text: Any) -> None:
    subject = load("random-llama")
    layer = subject.model.model.layers[1]
    plain = layer.forward
    layer.forward = lambda states, **given: plain(states.mul_(1.5), **given)
    replay = Replay(subject, text)
    for number in range(3):
        assert torch.equal(replay.run(number, 0), replay.run(number, 0))
        replay.advance(number)
    replay.check()
    replay.restart()
    for number in range(3):
        replay.advance(number)
    replay.check()


def test_blocks_that_hand_on_something_beside_the_hidden_states_are_refused(text: Any) -> None:
    subject = load("random-llama")
    layers, given = subject.model.model.layers, {}
    plain = [layer.forward for layer in layers]

    def first(states: torch.Tensor, **more: Any) -> torch.Tensor:
        output = plain[0](states, **more)
        given["mean"] = output.mean()
        return output

    layers[0].forward = first
    layers[1].forward = lambda states, **more: plain[1](states + given["mean"], **more)
    replay = Replay(subject, text)
    for layer in range(3):
        replay.advance(layer)
    with pytest.raises(SubjectError, match="depend on each other beside the hidden states"):
        replay.check()


def test_a_block_that_fails_alone_is_an_error_with_its_reason(text: Any) -> None:
    replay = Replay(load("random-llama"), text)
    replay.hidden[0] = replay.hidden[0][:, :3]
    with pytest.raises(SubjectError, match="depend on each other") as caught:
        replay.run(0, 0)
    assert "block 0 alone: " in (caught.value.got or "")
    assert "propagation='dense'" in (caught.value.next_step or "")


def test_a_text_that_is_replayed_again_starts_over(text: Any) -> None:
    subject = load("random-gpt2")
    replay = Replay(subject, text)
    first = replay.hidden[0].clone()
    replay.advance(0)
    assert not torch.equal(replay.hidden[0], first)
    assert torch.equal(replay.restart().hidden[0], first)


def test_pruning_block_by_block_ends_with_the_checks(text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    monkeypatch.setattr(Replay, "check", lambda self, number=0: checked.append(number))
    given = load("random-llama")
    for scope in ("blocks", "weight:blocks.0.*"):
        prune(given, "wanda", 0.5, corpus=text, scope=scope)
    prune(given, "wanda", 0.5, corpus=text, propagation="dense")
    prune(given, "magnitude", 0.5, corpus=text)
    assert checked == [0, 1, 0, 1]

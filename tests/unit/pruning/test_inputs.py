"""What matrices read: padding never counts, experts have their own tokens, what cannot be judged is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import sparsescope as ss
from sparsescope.errors import SubjectError
from sparsescope.models import Subject, load
from sparsescope.models.doctor import count_hooks
from sparsescope.models.structure.experts import expert_hidden, expert_inputs
from sparsescope.pruning import prune
from sparsescope.pruning.inputs import Collector, InputStatistics
from sparsescope.pruning.scope import choose
from sparsescope.pruning.workbench import FEW_TOKENS, Workbench

ARCHITECTURES = ("random-llama", "random-gpt2", "random-qwen2moe", "random-olmoe")


def collect(subject: Subject, text: Any, reads: Any = "norms", first_positions: bool = True) -> Collector:
    return Workbench(subject, choose(subject)).statistics(text, reads, first_positions)


@pytest.mark.parametrize("reads", ["norms", "gram"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_statistics_are_those_of_the_captured_inputs(
    name: str, reads: str, subject: Any, text: Any, by_hand: Any
) -> None:
    found = collect(subject(name), text, reads)
    read = by_hand.captured(subject(name), text)
    for site in choose(subject(name)).matrices:
        entry, x = found.of(site), read[site.name]
        assert entry.tokens == len(x) and entry.norms is not None
        assert torch.allclose(entry.norms, x.square().mean(0).sqrt(), rtol=1e-5, atol=1e-9), site.name
        assert (entry.gram is None) == (reads == "norms") and (entry.squares is None) == (reads == "gram")
        if entry.gram is not None:
            scale = float(entry.gram.diagonal().max())
            assert torch.allclose(entry.gram, x.T @ x, rtol=1e-5, atol=1e-6 * scale), site.name
    assert found.bytes > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_never_counts(name: str, subject: Any, by_hand: Any) -> None:
    given = subject(name)
    padded = by_hand.document_text((70, 45, 33), context=32)
    assert padded.pads()
    padded_batches = list(padded.batches(2048, "right"))
    assert sum(int((~batch.attention_mask).sum()) for batch in padded_batches) > 30
    # The same windows as documents of their own: no pass has padding
    windows = [
        (document, start)
        for document in padded.documents
        for start in range(0, len(document.ids), padded.window)
    ]
    alone = replace(
        padded,
        documents=tuple(
            replace(document, index=n, id=f"w{n}", ids=document.ids[start : start + padded.window])
            for n, (document, start) in enumerate(windows)
        ),
    )
    assert not alone.pads() and alone.n_tokens == padded.n_tokens == 148
    one, other = collect(given, padded), collect(given, alone)
    for site in choose(given).matrices:
        a, b = one.of(site), other.of(site)
        assert a.tokens == b.tokens
        if site.expert is None:
            assert a.tokens == 148
        assert a.norms is not None and b.norms is not None
        assert torch.allclose(a.norms, b.norms, rtol=1e-4), site.name
    made = [prune(given, "sparsegpt", 0.5, corpus=corpus, scope="attention")[1] for corpus in (padded, alone)]
    for matrix in made[0]:
        assert (made[0][matrix].array() == made[1][matrix].array()).mean() > 0.99


def test_the_id_at_padding_changes_nothing(subject: Any, by_hand: Any) -> None:
    text = by_hand.document_text((70, 45), context=32)
    made = [
        prune(subject("random-mixtral"), "wanda", 0.5, corpus=replace(text, pad_id=pad))[1].masks
        for pad in (1, 77)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("name", ["random-gpt2", "random-olmoe"])
def test_first_positions_are_left_out_when_asked(name: str, subject: Any, by_hand: Any, text: Any) -> None:
    given, tokens = subject(name), by_hand.document_text((70, 45, 33), context=32)
    windows, total = tokens.n_windows, tokens.n_tokens
    with_first, without = collect(given, tokens), collect(given, tokens, first_positions=False)
    for site in choose(given).matrices:
        if site.expert is None:
            assert (with_first.of(site).tokens, without.of(site).tokens) == (total, total - windows)
        else:
            assert without.of(site).tokens <= with_first.of(site).tokens
    rows: list[torch.Tensor] = []
    mask = torch.empty(0)
    (site,) = given.parameter_sites("weight:blocks.0.attn.q.weight")
    handle = given.model.get_submodule(site.module_path).register_forward_pre_hook(
        lambda module, args: rows.append(args[0][mask].double())
    )
    for batch in by_hand.batches(given, tokens):
        mask = torch.from_numpy(batch.attention_mask).clone()
        mask[:, 0] = False
        by_hand.call(given, batch)
    handle.remove()
    found = without.of(site).norms
    assert found is not None
    assert torch.allclose(found, torch.cat(rows).square().mean(0).sqrt(), rtol=1e-5)
    sparse, masks = prune(given, "wanda", 0.5, corpus=tokens, first_positions=False)
    assert masks.facts["first_positions"] is False and "first_positions=false" in sparse.id


def test_a_first_special_token_counts_and_other_special_tokens_do_not(subject: Any, by_hand: Any) -> None:
    given = subject("random-llama")
    plain = by_hand.document_text((40,), context=21)
    with_special = replace(plain, prefix=(0,), suffix=(2,), context=22)  # two windows of twenty
    (site,) = given.parameter_sites("weight:blocks.0.attn.q.weight")
    assert collect(given, with_special).of(site).tokens == 42
    assert collect(given, with_special, first_positions=False).of(site).tokens == 40
    assert collect(given, replace(with_special, prefix=())).of(site).tokens == 40


def test_matrices_that_read_one_tensor_share_a_statistic(subject: Any, text: Any) -> None:
    given = subject("random-llama")
    found = collect(given, text, "gram")
    site = {s.name.removeprefix("weight:blocks.1."): s for s in given.parameter_sites("weight:blocks.1.*")}
    of = {name: found.of(entry) for name, entry in site.items()}
    assert of["attn.q.weight"] is of["attn.k.weight"] is of["attn.v.weight"]
    assert of["mlp.gate.weight"] is of["mlp.in.weight"]
    assert len({id(entry) for entry in of.values()}) == 4
    assert count_hooks(given.model) == 0


def test_inputs_of_experts_are_on_the_tokens_routed_to_them(subject: Any) -> None:
    module = subject("random-mixtral").model.model.layers[0].mlp.experts
    states = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    index = torch.randint(0, 4, (18, 2), generator=torch.Generator().manual_seed(1))
    index[index == 2] = 1  # nobody
    seen = {}
    for expert, into, hidden, rows in expert_inputs(module, states, index):
        assert torch.equal(rows, (index == expert).any(1).nonzero()[:, 0])
        assert torch.equal(into, states.reshape(18, 64)[rows])
        gate, up = torch.nn.functional.linear(into, module.gate_up_proj[expert]).chunk(2, -1)
        assert torch.allclose(hidden, torch.nn.functional.silu(gate) * up, atol=1e-6)
        seen[expert] = hidden
    assert sorted(seen) == [0, 1, 3]
    some = list(expert_inputs(module, states, index, (3, 2)))
    assert [entry[0] for entry in some] == [3] and torch.equal(some[0][2], seen[3])
    hidden_alone = list(expert_hidden(module, states, index, (0, 3)))
    assert all(torch.equal(hidden, seen[expert]) for expert, hidden, _ in hidden_alone)


# --- experts without tokens


@pytest.mark.parametrize("propagation", ["sequential", "dense"])
@pytest.mark.parametrize("criterion", ["wanda", "ria", "sparsegpt"])
def test_experts_without_a_token_are_named_and_pruned_by_magnitude(
    criterion: str, propagation: str, subject: Any, by_hand: Any
) -> None:
    given = subject("random-olmoe")
    text = by_hand.document_text((3,))
    sparse, masks = prune(given, criterion, 0.5, corpus=text, propagation=propagation)
    read = by_hand.captured(given, text, 0)  # in the first block, whatever the propagation
    starved = [name for name in masks if name in read and not len(read[name])]
    assert len(starved) >= 2 * 3
    notes = [note for note in masks.notes if "no calibration token" in note]
    assert len(notes) == 1 and all(name in notes[0] for name in starved[:4])
    assert int(notes[0].split()[0]) >= len(starved)
    for name in starved:
        weight, keep = given.parameter(name), masks[name].array()
        gone = by_hand.count(0.5, keep.size)
        scores = weight.double().abs()
        by_hand.assert_smallest_go(keep, scores, gone, criterion != "sparsegpt", name)
        assert torch.equal(sparse.parameter(name), weight * masks[name].tensor())
    few = [note for note in masks.notes if f"fewer than {FEW_TOKENS} tokens" in note]
    assert len(few) == 1 and "weight:blocks.0.attn.k.weight" in few[0]


def test_a_criterion_without_a_text_starves_nobody(subject: Any, by_hand: Any) -> None:
    masks = prune(subject("random-olmoe"), "magnitude", 0.5, corpus=by_hand.document_text((3,)))[1]
    assert not masks.notes and "calibration" not in masks.facts
    masks = prune(
        subject("random-olmoe"),
        "magnitude",
        0.5,
        allocation="owl@outlier=2",
        corpus=by_hand.document_text((3,)),
    )[1]
    assert not masks.notes


def test_a_matrix_that_is_no_experts_and_reads_nothing_is_an_error(subject: Any, by_hand: Any) -> None:
    text = by_hand.document_text((1, 1))  # only first positions
    for propagation in ("sequential", "dense"):
        with pytest.raises(SubjectError, match="read no calibration token") as caught:
            prune(
                subject("random-llama"),
                "wanda",
                0.5,
                corpus=text,
                propagation=propagation,
                first_positions=False,
            )
        assert "weight:blocks.0.attn.k.weight" in (caught.value.where or "")
    prune(subject("random-llama"), "wanda", 0.5, corpus=text)


# --- what cannot be judged


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("propagation", ["sequential", "dense"])
@pytest.mark.parametrize("criterion", ["wanda", "ria", "sparsegpt"])
def test_inputs_that_are_not_finite_are_an_error(
    criterion: str, propagation: str, allocation: str, text: Any
) -> None:
    given = load("random-llama")
    given.model.model.layers[1].post_attention_layernorm.weight.data[7] = torch.nan
    with pytest.raises(SubjectError, match="not finite on the calibration text") as caught:
        prune(given, criterion, 0.5, corpus=text, propagation=propagation, allocation=allocation, scope="mlp")
    assert "weight:blocks.1.mlp.gate.weight" in (caught.value.where or "")
    assert caught.value.got is not None and "of 64 inputs" in caught.value.got


def run(subject: Subject, collector: Collector, batch: Any) -> None:
    collector.begin(batch, "cpu")
    mask = None if batch.attention_mask.all() else batch.attention_mask
    subject.forward(batch.input_ids, mask)


def collector_of(subject: Subject) -> Collector:
    return Collector(subject.model, choose(subject).matrices, "norms")


def test_tokens_in_another_order_are_refused_where_there_is_padding(by_hand: Any) -> None:
    """As in Longformer, whose attention puts the tokens first and the batch second."""
    subject = load("random-llama")
    mlp = subject.model.model.layers[0].mlp

    def forward(states: torch.Tensor) -> torch.Tensor:
        hidden = mlp.act_fn(mlp.gate_proj(states)) * mlp.up_proj(states)
        return mlp.down_proj(hidden.transpose(0, 1)).transpose(0, 1)

    mlp.forward = forward
    padded, full = by_hand.document_text((70,), context=32), by_hand.document_text((64,), context=32)
    collector = collector_of(subject)
    with (
        collector.reading(),
        pytest.raises(SubjectError, match="reads other tokens than the text has") as caught,
    ):
        run(subject, collector, next(padded.batches(2048, "right")))
    assert "layers.0.mlp.down_proj" in (caught.value.where or "")
    collector = collector_of(subject)
    with collector.reading():  # without padding the order does not matter
        run(subject, collector, next(full.batches(2048, "right")))


def test_another_number_of_tokens_is_refused(by_hand: Any) -> None:
    subject = load("random-llama")
    mlp = subject.model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda states: torch.cat([plain(states[:, :4]), plain(states[:, 4:])], 1)
    collector = collector_of(subject)
    with collector.reading(), pytest.raises(SubjectError, match="other tokens than the text has") as caught:
        run(subject, collector, next(by_hand.document_text((30,), context=32).batches(2048, "right")))
    assert "layers.1.mlp" in (caught.value.where or "")


def test_experts_that_get_other_tokens_are_refused(by_hand: Any) -> None:
    subject = load("random-mixtral")
    experts = subject.model.model.layers[0].mlp.experts

    class Halved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = experts

        def forward(self, states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            half = len(states) // 2
            parts = [
                self.inner(states[cut], index[cut], weights[cut]) for cut in (slice(half), slice(half, None))
            ]
            return torch.cat(parts)

    subject.model.model.layers[0].mlp._modules["experts"] = Halved()
    collector = Collector(
        subject.model,
        [
            replace(site, module_path=f"{site.module_path}.inner")
            for site in choose(load("random-mixtral")).matrices
            if site.expert is not None and site.layer == 0
        ],
        "norms",
    )
    with collector.reading(), pytest.raises(SubjectError, match="other tokens than the text has"):
        run(subject, collector, next(by_hand.document_text((30,), context=32).batches(2048, "right")))


def test_matrices_that_share_their_input_in_some_passes_only_are_refused(by_hand: Any) -> None:
    batch = next(by_hand.document_text((30,), context=32).batches(2048, "right"))
    for first, second in ((True, False), (False, True)):
        subject = load("random-llama")
        mlp = subject.model.model.layers[0].mlp

        state = {"together": first}

        def forward(states: torch.Tensor, mlp: Any = mlp, state: dict[str, bool] = state) -> torch.Tensor:
            other = states if state["together"] else states.clone()
            return mlp.down_proj(mlp.act_fn(mlp.gate_proj(states)) * mlp.up_proj(other))

        mlp.forward = forward
        collector = collector_of(subject)
        with collector.reading():
            run(subject, collector, batch)
            state["together"] = second
            with pytest.raises(SubjectError, match="in some passes only"):
                run(subject, collector, batch)


def test_hooks_are_gone_after_an_error(by_hand: Any, text: Any) -> None:
    subject = load("random-llama")
    collector = collector_of(subject)
    with pytest.raises(ZeroDivisionError), collector.reading():
        assert count_hooks(subject.model) == 21
        raise ZeroDivisionError
    assert count_hooks(subject.model) == 0


def test_no_token_adds_nothing() -> None:
    found = InputStatistics()
    found.add(torch.empty(0, 4), False)
    assert found.tokens == 0 and found.norms is None


def test_a_corpus_is_tokenized_as_the_subject_reads_it(
    subject: Any, small_corpus: ss.Corpus, text: Any
) -> None:
    made = [
        prune(subject("random-llama"), "wanda", 0.5, corpus=corpus)[1].masks
        for corpus in (small_corpus, text)
    ]
    assert made[0] == made[1]

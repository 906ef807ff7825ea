"""The runner: one pass for several analyses, stored runs are opened, interrupted ones go on."""

from __future__ import annotations

import signal

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.activations.sparsity_accumulator import SparsityAccumulator
from sparsescope.core.run_store import Store
from sparsescope.errors import ArtifactError, SpecError, SubjectError
from sparsescope.runner import engine
from sparsescope.runner.run import Request, run, run_many
from sparsescope.testing import check_same_numbers

NAME = "activation_sparsity"


@pytest.fixture
def passes(monkeypatch):
    """Counts forward passes."""
    from sparsescope.models.subject import Subject

    original, calls = Subject.forward, []

    def counted(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Subject, "forward", counted)
    return calls


def test_several_analyses_share_one_forward_pass(llama, small_corpus, passes):
    tokens = small_corpus.tokenize(llama.tokenizer)
    requests = [
        Request(NAME),
        Request(NAME, {"sites": "blocks.*.hook_out"}),
        Request(NAME, {"shares": (0.5,)}),
    ]
    outcomes = run_many(requests, {"subject": llama, "text": tokens})
    assert len(passes) == tokens.n_batches()
    alone = run(NAME, llama, tokens, sites="blocks.*.hook_out")
    check_same_numbers(outcomes[1].result, alone)


def test_a_stored_run_is_opened_not_computed(llama, small_corpus, passes, tmp_path):
    first = run(NAME, llama, small_corpus, store=tmp_path)
    before = len(passes)
    second = run(NAME, llama, small_corpus, store=tmp_path)
    assert len(passes) == before
    check_same_numbers(first, second)
    assert run(NAME, llama, small_corpus, store=tmp_path, seed=1).run_id != first.run_id
    assert len(passes) > before


def test_an_interrupted_run_goes_on_and_ends_the_same(llama, small_corpus, passes, tmp_path, monkeypatch):
    expected = run(NAME, llama, small_corpus, batch_tokens=64)
    original, seen = SparsityAccumulator.update, []

    def interrupted(self, batch):
        seen.append(batch.index)
        if len(seen) == 7:
            signal.raise_signal(signal.SIGINT)  # in the middle of a batch: the batch is finished first
        original(self, batch)

    monkeypatch.setattr(SparsityAccumulator, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(NAME, llama, small_corpus, store=tmp_path, batch_tokens=64)
    monkeypatch.setattr(SparsityAccumulator, "update", original)
    before = len(passes)
    result = run(NAME, llama, small_corpus, store=tmp_path, batch_tokens=64)
    assert len(passes) - before == small_corpus.tokenize(llama.tokenizer).n_batches(64) - 7
    check_same_numbers(expected, result)
    assert not list((tmp_path / ".partial").iterdir()), "unfinished work of a finished run was left"


def test_a_pass_over_the_model_goes_on_from_a_store(llama, small_corpus, passes, tmp_path, monkeypatch):
    """Any source feeds accumulators, and equal streams have equal fingerprints."""
    from sparsescope.activations.store import write_store

    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    home, told = Store(tmp_path / "runs"), []

    class Stopping(SparsityAccumulator):
        def update(self, batch):
            super().update(batch)
            if len(told) == 4:
                raise KeyboardInterrupt

    def note(*what):
        told.append(what)

    with ss.capture(llama, small_corpus, "blocks.*.mlp.hook_post", batch_tokens=64) as live:
        options = (live.sites, (0.9,), 0.9, small_corpus.context)
        expected = SparsityAccumulator(*options)
        assert engine.one_pass(live, {"whole": expected}) == {}
        stored = write_store(live, tmp_path / "acts", shard_bytes=1)
        with pytest.raises(KeyboardInterrupt):
            engine.one_pass(live, {"begun": Stopping(*options)}, store=home, progress=note)
    begun, events = len(passes), []
    resumed = SparsityAccumulator(*options)
    engine.one_pass(stored, {"begun": resumed}, store=home, progress=note, events=events)
    assert len(passes) == begun, "the model was run"
    assert events[0]["event"] == "resumed" and events[0]["batch"] == 4 and events[0]["tokens"] == told[3][1]
    assert told[-1][1:] == (stored.n_tokens, stored.n_tokens)
    for accumulator in (expected, resumed):
        accumulator.finish()
    for name, array in expected.state()[0].items():
        np.testing.assert_allclose(resumed.state()[0][name], array, rtol=1e-12, err_msg=name)


def test_an_interrupt_within_an_update_keeps_no_half_counted_batch(
    llama, small_corpus, tmp_path, monkeypatch
):
    expected = run(NAME, llama, small_corpus, batch_tokens=64)
    original, seen = SparsityAccumulator._add, []

    def interrupted(self, *args):
        seen.append(1)
        if len(seen) == 8:  # the second of three sites, in the third batch
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(SparsityAccumulator, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(NAME, llama, small_corpus, store=tmp_path, batch_tokens=64)
    monkeypatch.setattr(SparsityAccumulator, "_add", original)
    check_same_numbers(expected, run(NAME, llama, small_corpus, store=tmp_path, batch_tokens=64))


def test_a_state_of_other_batches_is_not_used(llama, small_corpus, passes, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Store, "drop_partial", lambda self, digest: None)
    run(NAME, llama, small_corpus, store=tmp_path / "a", batch_tokens=64)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / ".partial").rename(tmp_path / "b" / ".partial")
    before = len(passes)
    run(NAME, llama, small_corpus, store=tmp_path / "b", batch_tokens=512)
    assert len(passes) - before == small_corpus.tokenize(llama.tokenizer).n_batches(512)


def test_one_failing_analysis_does_not_stop_the_others(llama, small_corpus):
    outcomes = run_many(
        [Request(NAME, {"sites": "blocks.*.nowhere"}), Request(NAME)],
        {"subject": llama, "text": small_corpus},
    )
    assert isinstance(outcomes[0].error, SubjectError) and outcomes[0].result is None
    assert outcomes[1].result is not None


def test_a_full_disk_does_not_lose_the_result(llama, small_corpus, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise ArtifactError("cannot store the run", got="ENOSPC")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(ArtifactError, match="ENOSPC") as caught:
        run(NAME, llama, small_corpus, store=tmp_path)
    assert caught.value.result.scalars["mean_gini"].value > 0


def test_windows_longer_than_the_model_are_refused(glass):
    with pytest.raises(SubjectError, match=r"longer than the model[\s\S]*128[\s\S]*--context 128"):
        run(NAME, glass, ss.corpus("python-docs", tokens=2000, context=256))


def test_unknown_names_are_refused_before_anything_runs(llama, small_corpus, passes):
    with pytest.raises(SpecError, match="did you mean 'activation_sparsity'"):
        run("activation_sparsty", llama, small_corpus)
    with pytest.raises(SpecError, match="unknown parameter"):
        run(NAME, llama, small_corpus, sits="x")
    assert not passes


def test_a_missing_capability_names_what_is_missing(small_corpus, monkeypatch):
    subject = ss.load("random-llama")
    monkeypatch.setattr(type(subject), "capabilities", frozenset({"causal"}))
    with pytest.raises(SubjectError, match="no hidden_units"):
        run(NAME, subject, small_corpus)


def test_progress_reaches_its_end_and_the_global_generators_are_untouched(llama, small_corpus):
    import torch

    seen = []
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    run(NAME, llama, small_corpus, progress=lambda phase, done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert torch.equal(torch_state, torch.random.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_a_phase_says_what_it_counts(llama, small_corpus):
    seen = []
    run("attention_sparsity", llama, small_corpus, progress=lambda *told: seen.append(told), dose_windows=1)
    units = {phase.split(": ")[-1]: unit for phase, _, _, unit in seen}
    assert units == {"attention rows": "tokens", "losses": "passes"}
    losses = [(done, total) for phase, done, total, _ in seen if phase.endswith("losses")]
    assert losses == [(done, len(losses) - 1) for done in range(len(losses))] and len(losses) > 3


def test_the_reproduce_command_makes_the_same_run(glass, tmp_path):
    import shlex

    from typer.testing import CliRunner

    from sparsescope.cli import app

    text = ss.corpus("python-docs", tokens=600, context=64, seed=3)
    result = run(NAME, glass, text, store=tmp_path, shares=(0.5, 0.9), seed=5)
    words = shlex.split(result.provenance["command"])
    assert words[:3] == ["sparsescope", "run", NAME]
    found = CliRunner().invoke(app, [*words[1:], "--home", str(tmp_path), "--json"])
    assert found.exit_code == 0, found.output
    assert f'"run": "{result.run_id}"' in found.output and '"stored_before": true' in found.output


def test_states_of_different_batches_are_never_mixed(llama, small_corpus, tmp_path, monkeypatch):
    """Two analyses were interrupted at the same batch number of different streams; together they start
    from the beginning.
    """
    requests = [Request(NAME), Request(NAME, {"shares": (0.5,)})]
    expected = run_many(requests, {"subject": llama, "text": small_corpus}, batch_tokens=64)
    original, seen = SparsityAccumulator.update, []

    def interrupted(self, batch):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(batch.index)
        original(self, batch)

    for request, batch_tokens in zip(requests, (32, 64), strict=True):
        seen.clear()
        monkeypatch.setattr(SparsityAccumulator, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(NAME, llama, small_corpus, store=tmp_path, batch_tokens=batch_tokens, **request.params)
    monkeypatch.setattr(SparsityAccumulator, "update", original)
    found = run_many(requests, {"subject": llama, "text": small_corpus}, store=tmp_path, batch_tokens=64)
    for a, b in zip(expected, found, strict=True):
        check_same_numbers(a.result, b.result)


@pytest.mark.parametrize("change", ["negated", "one neuron", "activation"])
def test_a_model_that_was_changed_in_memory_is_another_subject(change, small_corpus, tmp_path):
    import torch

    subject = ss.load("random-llama")
    before = run(NAME, subject, small_corpus, store=tmp_path)
    mlp = subject.model.model.layers[0].mlp
    if change == "negated":
        mlp.up_proj.weight.data.neg_()
    elif change == "one neuron":
        mlp.up_proj.weight.data[5] = 0
    else:
        mlp.act_fn = torch.nn.ReLU()
    after = run(NAME, subject, small_corpus, store=tmp_path)
    assert after.run_id != before.run_id
    assert before.provenance["command"].startswith("sparsescope run") is False  # own texts
    assert not subject.unchanged and ss.load("random-llama").unchanged


@pytest.mark.parametrize("what", ["weights", "part of the corpus", "another text of that name"])
def test_no_command_is_given_that_would_make_another_run(what, glass):
    subject, text = glass, ss.corpus("python-docs", tokens=600, context=64)
    tokens = text.tokenize(subject.tokenizer)
    assert run(NAME, subject, tokens).provenance["command"].startswith("sparsescope run")
    if what == "weights":
        subject = ss.load("glassllm")
        subject.model.model.layers[0].mlp.up_proj.weight.data[5] = 0
    elif what == "part of the corpus":
        tokens = tokens.split(2)[0]
    else:
        tokens = ss.corpus(
            ["other words " * 300] * 3, tokens=600, context=64, name="python-docs", deduplicate=False
        )
    assert run(NAME, subject, tokens).provenance["command"].startswith("in Python")

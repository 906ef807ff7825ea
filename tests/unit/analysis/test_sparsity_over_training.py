"""Sparsity over training: the numbers of each checkpoint are those of other analyses and of the trainer."""

from __future__ import annotations

import math

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.activations.corpus import Document
from sparsescope.activations.text.probe import probe_corpus
from sparsescope.analysis.sparsity_over_training import SparsityOverTrainingParams
from sparsescope.analysis.sparsity_over_training.compute import _Measured
from sparsescope.core.registry import analyses
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.checkpoints import Checkpoint, CheckpointSeries, open_series
from sparsescope.models.sources import load
from sparsescope.runner.run import Request, run_many

NAME = "sparsity_over_training"


def part_of(name, steps):
    """Some checkpoints of a shipped series; it carries the same text."""
    whole = open_series(name)
    chosen = [checkpoint for checkpoint in whole.checkpoints if checkpoint.step in steps]
    return CheckpointSeries(whole.name, chosen, whole._load, whole._folder)


@pytest.fixture(scope="module")
def relu():
    return ss.run(NAME, part_of("lazy-relu", {0, 1500}), resamples=200)


def test_a_relu_model_begins_with_half_of_its_units_and_ends_with_few(relu):
    table = relu.tables["per_layer"]
    first = table[(table["step"] == 0) & (table["metric"] == "density_nonzero")]
    assert len(first) == 4 and first["mean"].between(0.44, 0.56).all()
    assert relu.scalars["nonzero_first"].value == pytest.approx(0.5, abs=0.02)
    assert relu.scalars["nonzero_last"].value < 0.2
    assert relu.scalars["nonzero_control_last"].value == pytest.approx(0.5, abs=0.02)


def test_losses_are_those_that_the_trainer_recorded(relu):
    """The trainer measured the probe set itself: an oracle that shares no code with token_losses."""
    losses = relu.tables["losses"].set_index(["step", "domain"])
    for checkpoint in open_series("lazy-relu").checkpoints:
        if checkpoint.step in (0, 1500):
            row = losses.loc[(checkpoint.step, "all")]
            assert row["loss"] == pytest.approx(checkpoint.stored["probe"]["loss"], rel=1e-6)
            assert row["accuracy"] == pytest.approx(checkpoint.stored["probe"]["accuracy"], abs=1e-3)
            assert row["validation"] == pytest.approx(checkpoint.stored["validation"]["loss"], rel=1e-9)
    own = losses.loc[1500].drop("all")
    assert relu.scalars["trigram_margin"].value == pytest.approx((own["trigram"] - own["validation"]).min())
    assert (own["low"] < own["loss"]).all() and (own["loss"] < own["high"]).all()


def test_each_checkpoint_has_the_numbers_of_activation_sparsity(relu):
    text = probe_corpus(open_series("lazy-relu"))
    whole = ss.run("activation_sparsity", load("lazy-relu@step-1500"), text, resamples=200)
    control = ss.run("activation_sparsity", load("shuffled:lazy-relu@step-1500"), text, resamples=100)
    mine = relu.tables["per_layer"].query("step == 1500").set_index(["site", "metric"])
    for found, column in ((whole, "mean"), (control, "control")):
        theirs = found.tables["per_layer"].set_index(["site", "metric"])["mean"]
        np.testing.assert_allclose(mine[column], theirs.loc[mine.index], rtol=1e-12)
    ends = whole.tables["per_layer"].set_index(["site", "metric"]).loc[mine.index]
    np.testing.assert_allclose(mine[["low", "high"]], ends[["low", "high"]], rtol=1e-9)
    interval = whole.scalars["mean_nonzero"].interval
    last = relu.scalars["nonzero_last"].interval
    assert (last.low, last.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    use = whole.tables["unit_use"].set_index(["site", "rule"])
    ours = relu.tables["unit_use"].query("step == 1500").set_index(["site", "rule"])
    np.testing.assert_allclose(ours["dead_share"], use.loc[ours.index, "dead_share"])
    np.testing.assert_allclose(ours["always_on_share"], use.loc[ours.index, "always_on_share"])


def test_changes_are_paired(relu):
    table = relu.tables["per_checkpoint"].set_index(["step", "metric"])
    first, last = table.loc[(0, "density_nonzero")], table.loc[(1500, "density_nonzero")]
    assert (first["change"], first["change_low"], first["change_high"]) == (0, 0, 0)
    assert last["change"] == pytest.approx(last["mean"] - first["mean"])
    assert last["change_low"] < last["change"] < last["change_high"] < 0


def synthetic(steps, sums, domain, corpus):
    """Tables of sums that were made up: 10 tokens of each document at one site."""
    arrays = [
        {
            "sums": found,
            "counts": np.full(found.shape, 10.0),
            "domain": domain,
            "nll": found[:, 0, 0],
            "correct": found[:, 0, 0],
            "targets": np.full(len(found), 10.0),
        }
        for found in sums
    ]
    params = SparsityOverTrainingParams(control=False, resamples=200)
    return _Measured.of(steps, arrays, (load("random-opt").sites("blocks.0.mlp.hook_post")), corpus, params)


def test_the_same_documents_are_drawn_for_every_checkpoint():
    """Documents differ a lot, checkpoints by a constant: the interval of the change has no width."""
    corpus = ss.corpus(
        [f"{word} " * 12 for word in "abcdefgh"], tokens=None, context=16, deduplicate=False
    ).tokenize(load("random-opt").tokenizer)
    levels = np.linspace(0.5, 8, 8)[:, None, None] * np.ones((8, 1, 4))
    table = synthetic((0, 9), [levels, levels + 1], np.zeros(8), corpus).per_checkpoint().query("step == 9")
    assert (table["high"] - table["low"] > 0.2).all()
    np.testing.assert_allclose(table[["change", "change_low", "change_high"]], 0.1, rtol=1e-12)


def test_domains_of_one_document_give_no_interval_of_the_mean_loss():
    """Drawn together, each is in the resample or not: what is left does not vary and would look certain."""
    texts = [Document(f"d{n}", f"domain{n}", f"{word} " * 12) for n, word in enumerate("abc")]
    corpus = ss.corpus(texts, tokens=None, context=16, deduplicate=False).tokenize(
        load("random-opt").tokenizer
    )
    sums = np.arange(1.0, 4)[:, None, None] * np.ones((3, 1, 4))
    table = synthetic((0,), [sums], np.arange(3.0), corpus).losses()
    assert len(table) == 4 and table["low"].isna().all()
    assert table.iloc[-1]["loss"] == pytest.approx(0.2)


def test_experts_that_saw_no_token_leave_all_means():
    """Otherwise the change between checkpoints would compare different experts."""
    text = ss.corpus(["a short text"], tokens=None, context=32)
    checkpoints = [Checkpoint(1, "step1"), Checkpoint(2, "step2")]
    series = CheckpointSeries(
        "org/moe", checkpoints, lambda found: load("random-olmoe", revision=str(found.step))
    )
    result = ss.run(NAME, series, text, resamples=100, control=False)
    table = result.tables["per_layer"].query("metric == 'density_energy_90'")
    seen = table.groupby("site")["tokens"].min()
    assert (seen == 0).any() and (seen > 0).any()
    kept = table[table["site"].isin(seen.index[seen > 0])].groupby("step")["mean"].mean()
    whole = result.tables["per_checkpoint"].query("metric == 'density_energy_90'").set_index("step")["mean"]
    np.testing.assert_allclose(whole, kept, rtol=1e-12)
    assert any("sites saw no token" in note.message for note in result.notes)


def test_experts_are_measured_on_their_tokens():
    result = ss.run(NAME, part_of("bytes-moe", {1500}), control=False, resamples=100)
    table = result.tables["per_layer"]
    assert table["site"].str.contains("experts").all() and table["site"].nunique() == 32
    assert result.tables["push"].empty and math.isnan(table["control"].iloc[0])
    assert any("dense" in note.message for note in result.notes)
    for view in analyses().get(NAME).views:
        assert result.view(view.name).layout.meta["alt"]


@pytest.fixture
def foreign():
    """Two checkpoints that carry no text, as those of a hub model."""
    checkpoints = [Checkpoint(1, "step1"), Checkpoint(1000, "step1000")]
    return CheckpointSeries(
        "org/model", checkpoints, lambda found: load("random-opt", revision=str(found.step))
    )


def test_a_result_says_which_checkpoints_have_equal_weights(foreign):
    text = ss.corpus("python-docs", tokens=300, context=32)
    same = CheckpointSeries(
        "org/model", foreign.checkpoints, lambda found: load("random-opt", revision=str(min(found.step, 1)))
    )
    warned = [
        [
            note.message
            for note in ss.run(NAME, series, text, resamples=100).notes
            if "same weights" in note.message
        ]
        for series in (foreign, same)
    ]
    assert not warned[0] and len(warned[1]) == 1 and "2 of the 2 checkpoints" in warned[1][0]


def test_a_text_that_is_given_is_read(foreign, tmp_path):
    text = ss.corpus("python-docs", tokens=300, context=32)
    result = ss.run(NAME, foreign, text, store=tmp_path, resamples=100)
    assert result.tables["losses"]["trigram"].isna().all() and "trigram_margin" not in result.scalars
    assert result.provenance["corpus"]["name"] == "python-docs"
    assert any("may have read it" in note.message for note in result.notes)
    other = ss.run(
        NAME, foreign, ss.corpus("python-docs", tokens=310, context=32), store=tmp_path, resamples=100
    )
    assert other.run_id != result.run_id, "the text is part of what names a run"
    with pytest.raises(SpecError, match="reads a text"):
        ss.run(NAME, foreign)
    with pytest.raises(SubjectError, match="longer than the model"):
        ss.run(NAME, foreign, ss.corpus("python-docs", tokens=3000, context=2048))


def test_what_reads_no_text_refuses_one():
    with pytest.raises(SpecError, match="reads no text"):
        ss.run("grokking", "grokking-relu", ss.corpus("python-docs", tokens=50))
    with pytest.raises(SpecError, match="residues"):
        ss.run(NAME, "grokking-relu")


def test_an_interrupted_run_goes_on_after_its_last_checkpoint(foreign, tmp_path, monkeypatch):
    from sparsescope.analysis.sparsity_over_training import compute

    text, seen = ss.corpus("python-docs", tokens=200, context=32), []
    measure = compute.measure

    def stopping(subject, corpus, params):
        seen.append(subject.revision)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(subject, corpus, params)

    monkeypatch.setattr(compute, "measure", stopping)
    request = [Request(NAME, {"resamples": 100})]
    inputs = {"series": foreign, "text": text}
    with pytest.raises(KeyboardInterrupt):
        run_many(request, inputs, store=tmp_path)
    again = run_many(request, inputs, store=tmp_path)[0]
    assert seen == ["seed-1", "seed-1000", "seed-1000"], "the first checkpoint was measured again"
    monkeypatch.setattr(compute, "measure", measure)
    whole = ss.run(NAME, foreign, text, resamples=100)
    for name, frame in whole.tables.items():
        assert again.result.tables[name].equals(frame), name


def test_one_document_has_no_interval(foreign):
    result = ss.run(NAME, foreign, ss.corpus(["one document " * 20], tokens=None, context=32), resamples=100)
    assert (
        result.tables["per_checkpoint"]["low"].isna().all() and result.scalars["push_first"].interval is None
    )
    assert result.tables["losses"]["low"].isna().all() and result.tables["push"]["low"].isna().all()
    assert any("no interval" in note.message for note in result.notes)
    assert "no intervals" in result.view("push").layout.title.text.replace("<br>", " ")


def test_the_figures_say_what_happened(relu):
    record = analyses().get(NAME)
    titles = {view.name: relu.view(view.name).layout.title.text for view in record.views}
    assert "49.3" in titles["density"] and "step 1,500" in titles["density"]
    assert "3 of 3 domains" in titles["losses"].replace("<br>", " ")
    assert "1 of 4" in titles["push"].replace("<br>", " "), "the last layer alone has the sign of the theory"
    for view in record.views:
        assert view.table in relu.tables

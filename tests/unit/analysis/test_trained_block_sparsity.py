"""Trained block sparsity: numbers of tiny trainings by hand, twins by seed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import sparsescope as ss
from sparsescope.activations.text.documents import CorpusEntry, Document
from sparsescope.analysis.trained_block_sparsity import ANALYSIS, LENGTHS
from sparsescope.analysis.trained_block_sparsity.compute import Run, labels, model_rows, run_row, twin_of
from sparsescope.analysis.trained_block_sparsity.measure import Measured, count
from sparsescope.analysis.trained_block_sparsity.statements import statements
from sparsescope.core.registry import analyses
from sparsescope.core.result import Result
from sparsescope.core.roles import known
from sparsescope.errors import SpecError, SubjectError
from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.models.checkpoints import Checkpoint, CheckpointSeries, open_series
from sparsescope.models.structure.architectures import build_model
from sparsescope.models.zoo.byte_tokenizer import byte_tokenizer
from sparsescope.testing import check_analysis, check_figure, check_statements
from sparsescope.training import byte_text
from sparsescope.training.recipe import Recipe
from sparsescope.training.trainer import train

NAME = "trained_block_sparsity"
SIZES = {
    "vocab_size": 259,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
}
BLOCKS = {**SIZES, "ffn_experts": 6, "expert_size": 4, "loss_chunk": 4, "locality_loss": 0.0}
MODELS = {
    "weak": ("BlockFFNForCausalLM", {**BLOCKS, "chunk_loss": 0.0}),
    "strong": ("BlockFFNForCausalLM", {**BLOCKS, "chunk_loss": 0.5}),
    "dense": ("LlamaForCausalLM", {**SIZES, "intermediate_size": 18}),
}
RUNS = [("strong", 0), ("strong", 1), ("weak", 0), ("weak", 2), ("dense", 0), ("dense", 1)]
RECIPE = {
    "title": "A tiny run",
    "license": "Apache-2.0",
    "steps": 6,
    "checkpoints": [0, 6],
    "log_every": 3,
    "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0},
}
DATA = {
    "kind": "byte_text",
    "corpora": ["up", "down"],
    "context": 24,
    "windows_per_domain": 3,
    "probe_windows": 8,
}


def make_recipe(model, seed=0, **data):
    architecture, config = MODELS[model]
    made = {"architecture": architecture, "config": config}
    return Recipe.model_validate(
        {**RECIPE, "name": "tiny", "seed": seed, "model": made, "data": {**DATA, **data}}
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six trainings, and one whose held-out text is another."""

    def entry(name, order):
        texts = [" ".join(f"w{order * i * j % 97}" for j in range(40)) for i in range(1, 13)]
        documents = [Document(f"{name}{i}", name, text) for i, text in enumerate(texts)]
        return CorpusEntry(name, "toy", "CC0-1.0", name, lambda: documents)

    home = tmp_path_factory.mktemp("blocks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_text, "registered_entries", lambda name: [entry("up", 1), entry("down", -1)])
        made = {(m, seed): train(make_recipe(m, seed), home / f"{m}-{seed}") for m, seed in RUNS}
        made["other text"] = train(make_recipe("weak", 3, split_seed=5), home / "other")
    return made


@pytest.fixture(scope="module")
def result(folders):
    first, *others = (str(folders[run]) for run in RUNS)
    return ss.run(NAME, first, others=tuple(others), resamples=100)


def by_hand(folder):
    """Loss of a token; which experts it uses, bool [window, pos, layer, expert], without first tokens."""
    series = open_series(folder)
    tokens = torch.from_numpy(series.probe().tokens)
    model = series.subject(6).model
    with torch.no_grad():
        found = model(tokens, output_router_logits=True)
    loss = torch.nn.functional.cross_entropy(found.logits[:, :-1].reshape(-1, 259), tokens[:, 1:].reshape(-1))
    return float(loss), (torch.stack(found.router_logits, 2)[:, 1:] > 0).numpy()


@pytest.mark.parametrize("run", RUNS[:4], ids=str)
def test_a_training_by_hand(run, folders, result):
    row = result.tables["runs"].iloc[RUNS.index(run)]
    loss, used = by_hand(folders[run])
    assert row["loss"] == pytest.approx(loss, rel=1e-5) and row["low"] <= row["loss"] <= row["high"]
    assert (row["seed"], row["step"], row["tokens"]) == (str(run[1]), 6, used[..., 0, 0].size)
    name = result.tables["runs"]["series"].iloc[RUNS.index(run)]
    chunks = result.tables["chunks"]
    chunks = chunks[chunks["series"] == name].set_index("length")
    rates = used.mean((0, 1))  # [layer, expert]
    for length in LENGTHS:
        whole = used.shape[1] // length
        idle = [
            np.mean([not any(window[length * c : length * (c + 1), layer, e]) for e in range(6)])
            for window in used
            for c in range(whole)
            for layer in range(2)
        ]
        assert chunks.loc[length, "sparsity"] == pytest.approx(np.mean(idle))
        assert chunks.loc[length, "chunks"] == whole * len(used)
        assert chunks.loc[length, "independent"] == pytest.approx(((1 - rates) ** length).mean())
    assert row["token_sparsity"] == chunks.loc[1, "sparsity"]
    assert row["chunk_sparsity"] == chunks.loc[8, "sparsity"]
    assert row["excess"] == pytest.approx(row["chunk_sparsity"] - row["independent"])
    assert row["excess_low"] <= row["excess_high"]
    both = (used[:, :-1] & used[:, 1:]).sum() / used[:, :-1].sum()
    assert row["reuse"] == pytest.approx(both)
    assert row["dead"] == int((~used.any((0, 1))).sum()) and row["experts"] == 12


def test_longer_chunks_leave_out_less(result):
    for _, rows in result.tables["chunks"].groupby("series"):
        values = rows.sort_values("length")["sparsity"].to_numpy()
        assert (np.diff(values) <= 1e-12).all()
    runs = result.tables["runs"]
    sparse = runs[runs["experts"] > 0]
    assert (sparse["chunk_sparsity"] <= sparse["token_sparsity"]).all()
    layers = result.tables["layers"].groupby("series")["token_sparsity"].mean()
    assert layers.to_dict() == pytest.approx(sparse.set_index("series")["token_sparsity"].to_dict())


def test_increases_are_paired_by_seed_and_have_students_interval(result):
    runs = result.tables["runs"].set_index("series")
    models = result.tables["models"].set_index("model")
    strong, weak = "chunk 0.5, locality 0", "chunk 0, locality 0"
    assert list(models.index) == [strong, weak, "dense"] and models["seeds"].tolist() == [2, 2, 2]
    own = [runs.loc[f"strong-{seed}", "loss"] / runs.loc[f"dense-{seed}", "loss"] - 1 for seed in (0, 1)]
    assert models.loc[strong, "increase"] == pytest.approx(np.mean(own))
    ends = stats.t.interval(0.95, 1, np.mean(own), stats.sem(own))
    assert models.loc[strong, ["increase_low", "increase_high"]].tolist() == pytest.approx(ends)
    assert models["pairs"].tolist() == [2, 1, 0], "seed 2 has no dense twin"
    assert models.loc[weak, "increase"] == pytest.approx(
        runs.loc["weak-0", "loss"] / runs.loc["dense-0", "loss"] - 1
    )
    assert np.isnan(models.loc[weak, "increase_low"])
    assert runs.loc["weak-2", ["increase", "increase_low"]].isna().all()
    assert runs.loc["weak-0", "increase_low"] < runs.loc["weak-0", "increase"]
    assert models.loc["dense", ["increase", "token_sparsity", "reuse", "dead"]].isna().all()
    scalar = result.scalars["loss_increase"]
    assert scalar.value == models.loc[strong, "increase"] and scalar.interval.n == 2
    assert result.scalars["parameter_ratio"].value == pytest.approx(
        models.loc[strong, "parameters"] / models.loc["dense", "parameters"]
    )
    assert any("No dense twin of the same seed: weak-2" in note.message for note in result.notes)


def test_figures_and_words(result):
    check_statements(result)
    for view in ANALYSIS.views:
        check_figure(result.view(view.name))


def test_one_series_keeps_the_contract(folders):
    found = check_analysis(ANALYSIS, str(folders["strong", 0]))
    assert np.isnan(found.scalars["loss_increase"].value)
    assert any("No dense twin is among the series" in note.message for note in found.notes)
    for view in ANALYSIS.views:
        check_figure(found.view(view.name))


def test_windows_and_documents_are_kept_apart():
    active = np.zeros((6, 1, 2), bool)
    active[[0, 3], 0, 0] = True
    # One document of two windows (3 and 1 tokens), one of two tokens
    found = count(active, np.array([4, 4, 4, 4, 9, 9]), np.array([0, 0, 0, 1, 2, 2]), [4, 9])
    assert found["chunks"].tolist() == [[4, 1, 0, 0, 0], [2, 1, 0, 0, 0]]
    assert found["idle"][:, 0, :2].tolist() == [[3.0, 0.5], [2.0, 1.0]]
    assert found["used"].tolist() == [[[2, 0]], [[0, 0]]] and found["again"].tolist() == [[1], [0]]


def made_up(model, seed, loss, idle=0.8, spread=0.0):
    routed = model != "dense"
    options = {"chunk_loss": float(model), "locality_loss": 0.0} if routed else {}
    losses = 10 * (loss + spread * np.array([-1, 1, -1, 1.0]))
    chunks = np.full((4, 5), 10.0)
    return Run(
        f"{model}-{seed}", model, str(seed), 6,
        Measured(
            options, "Some", losses, np.full(4, 10.0),
            np.full((4, 2, 5), 10 * idle) if routed else None, chunks if routed else None,
            np.full((4, 2, 6), 10 * (1 - idle)) if routed else None,
            np.full((2, 2), 5.0) if routed else None, 40, 1000,
        ),
    )  # fmt: skip


def result_of(runs):
    draws = DocumentBootstrap.draw([0] * 4, 100, 0, 0.95)
    out = Result(NAME)
    table = [run_row(run, twin_of(run, runs), draws) for run in runs]
    out.add("models", model_rows(runs, table, 0.95))
    out.add("runs", table)
    return out


def test_what_is_measured_of_made_up_trainings():
    runs = [made_up("0.1", 0, 2.2), made_up("dense", 0, 2.0), made_up("dense", 1, 1.0)]
    row = result_of(runs).tables["runs"].iloc[0]
    assert row["increase"] == pytest.approx(0.1), "not beside the twin of another seed"
    assert row["token_sparsity"] == pytest.approx(0.8) and row["independent"] == pytest.approx(0.8**8)
    assert row["excess"] == pytest.approx(0.8 - 0.8**8) == row["excess_low"]
    assert row["reuse"] == 1 and row["reuse_independent"] == pytest.approx(0.2)
    assert labels([run.found for run in runs]) == ["chunk 0.1, locality 0", "dense", "dense"]


def test_a_text_that_is_given_is_read_by_series_of_others(folders):
    tokenizer = byte_tokenizer(24)

    def subject(found):
        return ss.wrap(build_model(*MODELS["weak"]), tokenizer, id="foreign")

    series = CheckpointSeries("foreign", [Checkpoint(1, "step1")], subject)
    text = ss.corpus(["a text of one document, and", "another one that is read too"], tokens=None, context=16)
    found = ss.run(NAME, series, text)
    assert found.tables["runs"]["seed"].tolist() == ["not known"]
    assert any("is not known" in note.message for note in found.notes)
    with pytest.raises(SpecError, match="reads a text"):
        ss.run(NAME, series)


def test_what_cannot_be_compared_is_refused(folders):
    first = str(folders["weak", 0])
    with pytest.raises(SubjectError, match="no small_experts"):
        ss.run(NAME, str(folders["dense", 0]))
    with pytest.raises(SpecError, match="different held-out texts"):
        ss.run(NAME, first, others=(str(folders["other text"]),))
    with pytest.raises(SpecError, match="the same model and the same seed"):
        ss.run(NAME, first, others=(first,))


def test_a_report_knows_which_series_fit(folders):
    record = analyses().get(NAME)
    text = known("python-docs", "corpus")
    fitting = [record.fits([*known(str(folders[run])), *text]) for run in (("weak", 0), ("dense", 0))]
    assert fitting[0] is None and "needs small experts" in str(fitting[1])


def test_what_is_said(result):
    first, second, third = (statement.text for statement in statements(result))
    assert "A token leaves out" in first and "dense twin" in first and "n = 2 seeds" in first
    assert "independent tokens" in second and "by chance" in second
    assert "chunk 0, locality 0: TLS" in third

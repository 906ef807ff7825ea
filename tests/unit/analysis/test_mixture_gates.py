"""Gates of mixtures compared: numbers of tiny trainings by hand, Student's intervals, and what is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

import sparsescope as ss
from sparsescope.activations.text.documents import CorpusEntry, Document
from sparsescope.analysis.mixture_gates import ANALYSIS, MixtureGatesParams
from sparsescope.analysis.mixture_gates.compute import Run, gate_rows, labels, over_seeds
from sparsescope.analysis.mixture_gates.measure import Measured, jaccard
from sparsescope.analysis.mixture_gates.statements import statements
from sparsescope.core.result import Result
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.checkpoints import Checkpoint, CheckpointSeries, open_series
from sparsescope.models.sources import load
from sparsescope.models.structure.architectures import build_model
from sparsescope.models.structure.gates.base import Gating
from sparsescope.models.zoo.byte_tokenizer import byte_tokenizer
from sparsescope.testing import check_analysis, check_figure, check_statements
from sparsescope.training import byte_text
from sparsescope.training.recipe import Recipe
from sparsescope.training.trainer import train

NAME, BYTES = "mixture_gates", byte_tokenizer(32)
SIZES = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
RECIPE = {
    "title": "A tiny run with a gate",
    "license": "Apache-2.0",
    "steps": 6,
    "checkpoints": [0, 3, 6],
    "log_every": 3,
    "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0},
}
DATA = {
    "kind": "byte_text",
    "corpora": ["up", "down"],
    "context": 16,
    "windows_per_domain": 3,
    "probe_windows": 5,
}
RUNS = [("top_k", 0), ("top_k", 1), ("sigmoid_bias", 0), ("sigmoid_bias", 1), ("relu", 0)]


def make_recipe(gate, seed=0, **data):
    model = {"architecture": "GatedMixtureForCausalLM", "config": {**SIZES, "gate": gate}}
    return Recipe.model_validate(
        {**RECIPE, "name": "tiny", "seed": seed, "model": model, "data": {**DATA, **data}}
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Five trainings, and one whose held-out text is another."""

    def entry(name, order):
        texts = [" ".join(f"w{order * i * j % 97}" for j in range(40)) for i in range(1, 13)]
        documents = [Document(f"{name}{i}", name, text) for i, text in enumerate(texts)]
        return CorpusEntry(name, "toy", "CC0-1.0", name, lambda: documents)

    home = tmp_path_factory.mktemp("gates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_text, "registered_entries", lambda name: [entry("up", 1), entry("down", -1)])
        made = {(gate, seed): train(make_recipe(gate, seed), home / f"{gate}-{seed}") for gate, seed in RUNS}
        made["other text"] = train(make_recipe("top_k", 2, split_seed=5), home / "other")
    return made


@pytest.fixture(scope="module")
def result(folders):
    first, *others = (str(folders[run]) for run in RUNS)
    return ss.run(NAME, first, others=tuple(others), resamples=100)


def by_hand(folder):
    """Loss of a token, and which experts it uses, bool [window, pos, layer, expert], at steps 3 and 6."""
    series = open_series(folder)
    tokens = torch.from_numpy(series.probe().tokens)
    found = {}
    for step in (3, 6):
        model = series.subject(step).model
        held: list[Gating] = []
        keep = partial(lambda held, module, given, out: held.append(out), held)
        handles = [gate.register_forward_hook(keep) for gate in model.gates]
        with torch.no_grad():
            logits = model(tokens).logits
        for handle in handles:
            handle.remove()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 259), tokens[:, 1:].reshape(-1))
        used = torch.stack([(gating.weights != 0).reshape(*tokens.shape, 6) for gating in held], dim=2)
        found[step] = float(loss), used[:, 1:].numpy()
    return found


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_training_by_hand(run, folders, result):
    gate = run[0]
    row = result.tables["runs"].iloc[RUNS.index(run)]
    assert (row["gate"], row["seed"]) == (gate, str(run[1]))
    found = by_hand(folders[run])
    loss, used = found[6]
    assert row["loss"] == pytest.approx(loss, rel=1e-5) and row["low"] <= row["loss"] <= row["high"]
    assert row["tokens"] == used[..., 0, 0].size and (row["step"], row["before"]) == (6, 3)
    flat, before = used.reshape(-1, 2, 6), found[3][1].reshape(-1, 2, 6)
    assert row["active"] == pytest.approx(np.mean([len(np.flatnonzero(s)) for t in flat for s in t]))
    load = flat.sum(0)
    assert row["load_cv"] == pytest.approx(np.mean([layer.std() / layer.mean() for layer in load]))
    changed = []
    for pair in zip(flat.reshape(-1, 6), before.reshape(-1, 6), strict=True):
        one, two = (set(np.flatnonzero(mask)) for mask in pair)
        changed.append(1 - len(one & two) / len(one | two) if one | two else 0.0)
    assert row["churn"] == pytest.approx(np.mean(changed)) and np.mean(changed) > 0
    assert (row["active"] == 2) == (gate != "relu")


def test_gates_are_means_over_seeds_with_students_interval(result):
    gates, runs = result.tables["gates"].set_index("gate"), result.tables["runs"]
    assert gates["seeds"].to_dict() == {"top_k": 2, "sigmoid_bias": 2, "relu": 1}
    loss = {gate: rows["loss"].to_numpy() for gate, rows in runs.groupby("gate")}
    for values, row, prefix in (
        (loss["top_k"], gates.loc["top_k"], ""),
        (loss["sigmoid_bias"] - loss["top_k"], gates.loc["sigmoid_bias"], "difference_"),
    ):
        ends = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
        assert (row[f"{prefix}low"], row[f"{prefix}high"]) == pytest.approx(ends)
    assert gates.loc["sigmoid_bias", "loss_difference"] == pytest.approx(
        np.mean(loss["sigmoid_bias"] - loss["top_k"])
    )
    assert gates.loc["relu", ["low", "active_low", "cv_high", "churn_low"]].isna().all()
    assert gates["comparable"].to_dict() == {"top_k": "yes", "sigmoid_bias": "yes", "relu": "no"}
    assert gates.loc[["top_k", "relu"], "loss_difference"].isna().all()
    assert gates["pairs"].to_dict() == {"top_k": 0, "sigmoid_bias": 2, "relu": 1}
    scalar = result.scalars["loss_difference_sigmoid_bias"]
    assert scalar.interval.n == 2 and "loss_difference_relu" not in result.scalars
    assert result.scalars["comparable_gates"].value == 2


@pytest.mark.parametrize("values", [[1.0, 2.5, 1.5], [2.0, 2.0], [0.3, 0.1, 0.2, 0.9, 0.4]])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_students_interval_is_that_of_scipy(values, level):
    found, spread = over_seeds(values, level), stats.sem(values)
    ends = stats.t.interval(level, len(values) - 1, np.mean(values), spread) if spread else (2.0, 2.0)
    assert found == pytest.approx((np.mean(values), *ends))


def test_one_seed_has_no_interval():
    assert over_seeds([1.5], 0.95)[0] == 1.5 and np.isnan(over_seeds([1.5], 0.95)[1:]).all()
    assert np.isnan(over_seeds([], 0.95)).all()


def made_up(gate, seed, loss, active, **options):
    found = Measured(
        gate, options, True, np.array([loss, loss]), np.ones(2), active, 0.1, 0.2, 100, (2, 6, 16)
    )
    return Run(f"{gate}-{seed}", gate, str(seed), (3, 6), found)


def result_of(runs, **params):
    out = Result(NAME, provenance={"params": params})
    out.add("gates", gate_rows(runs, MixtureGatesParams(**params)))
    return out


def test_a_loss_is_compared_within_the_tolerance_alone():
    runs = [made_up("top_k", seed, 2.0 + seed / 10, 2.0) for seed in range(3)]
    runs += [made_up("near", seed, 1.9 + seed / 10, 2.2) for seed in (1, 2, 3)]
    runs += [made_up("far", seed, 1.0, 2.21) for seed in range(3)]
    runs += [made_up("few", seed, 1.0, 1.79) for seed in range(3)]
    gates = result_of(runs).tables["gates"].set_index("gate")
    assert gates["comparable"].tolist() == ["yes", "yes", "no", "no"]
    assert gates.loc["near", "loss_difference"] == pytest.approx(-0.1) and gates.loc["near", "pairs"] == 2
    assert gates.loc[["far", "few"], "loss_difference"].isna().all()
    wider = result_of(runs, tolerance=0.2).tables["gates"].set_index("gate")
    assert wider.loc["far", "loss_difference"] == pytest.approx(1.0 - 2.1)
    away = [made_up("top_k", 0, 2.0, 3.0), made_up("near", 0, 1.9, 2.0)]
    assert result_of(away).tables["gates"]["loss_difference"].isna().all(), "the reference is not comparable"


def test_what_is_said_of_gates():
    noise = (0.0, 0.01, -0.01)
    runs = [made_up("top_k", seed, 2.0, 2.0) for seed in range(3)]
    runs += [made_up("good_one", seed, 1.8 + noise[seed], 2.0) for seed in range(3)]
    runs += [made_up("bad", seed, 2.2 + noise[seed], 2.0) for seed in range(3)]
    runs += [made_up("same", seed, 2.0 + noise[seed], 2.0) for seed in range(3)]
    runs += [made_up("single", 0, 2.1, 2.0), made_up("wide", 0, 1.0, 5.0)]
    first, second = (statement.text for statement in statements(result_of(runs)))
    assert "; lower: good one -0.2 [" in first and "; higher: bad +0.2 [" in first
    assert "; not told apart: same " in first and "without an interval: single +0.1." in first
    assert "wide 5" in second and "wide" not in first


def test_sets_of_any_size_have_a_jaccard_index():
    one = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]], bool)
    other = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0]], bool)
    assert jaccard(one, other).tolist() == pytest.approx([1 / 3, 1, 0])


def test_options_that_differ_are_in_the_name_of_a_gate():
    measured = [
        made_up("relu", 0, 1.0, 2.0, balance=0.0, rate=1.05).found,
        made_up("relu", 0, 1.0, 2.0, balance=0.1, rate=1.05).found,
        made_up("top_k", 0, 1.0, 2.0, k=2).found,
    ]
    assert labels(measured) == ["relu (balance=0.0)", "relu (balance=0.1)", "top_k"]


def test_figures_and_words(result):
    check_statements(result)
    for view in ANALYSIS.views:
        check_figure(result.view(view.name))
    marks = {trace.name: trace for trace in result.view("loss").data}
    assert marks["mean over seeds, not comparable"].marker.symbol == "circle-open"
    assert list(marks["mean over seeds, not comparable"].y) == ["relu"]
    assert any("relu" in note.message and "not compared" in note.message for note in result.notes)


def test_one_series_keeps_the_contract(folders):
    found = check_analysis(ANALYSIS, str(folders["relu", 0]))
    assert "No loss is compared" in " ".join(statement.text for statement in statements(found))
    assert any("No series has the gate top_k" in note.message for note in found.notes)


def test_a_run_goes_on_after_its_last_series(folders, tmp_path, monkeypatch):
    from sparsescope.analysis.mixture_gates import compute

    first, second = (str(folders[run]) for run in RUNS[:2])
    whole, calls = compute.measure, []

    def fails(series, corpus):
        calls.append(series.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(series, corpus)

    monkeypatch.setattr(compute, "measure", fails)
    with pytest.raises(KeyboardInterrupt):
        ss.run(NAME, first, store=tmp_path, others=(second,))
    ss.run(NAME, first, store=tmp_path, others=(second,))
    assert calls == ["top_k-0", "top_k-1", "top_k-1"]


def test_series_that_cannot_be_compared_are_refused(folders):
    first = str(folders["top_k", 0])
    with pytest.raises(SubjectError, match="no experts"):
        ss.run(NAME, first, others=("lazy-relu",))
    with pytest.raises(SubjectError, match="experts"):
        ss.run(NAME, "lazy-relu")
    with pytest.raises(SpecError, match="different held-out texts"):
        ss.run(NAME, first, others=(str(folders["other text"]),))
    with pytest.raises(SpecError, match="the same gate and the same seed"):
        ss.run(NAME, first, others=(first,))


def in_memory(name, models, tokenizer=BYTES):
    """A series that no trainer of ours made, of models by step."""

    def subject(found):
        return ss.wrap(models[found.step], tokenizer, id=name)

    return CheckpointSeries(name, [Checkpoint(step, f"step{step}") for step in models], subject)


def test_series_of_others_read_a_text_that_is_given():
    series = [
        in_memory(
            gate, {1: build_model("GatedMixtureForCausalLM", {**SIZES, "num_hidden_layers": 1, "gate": gate})}
        )
        for gate in ("top_k", "hash")
    ]
    text = ss.corpus(["a text of one document, and", "another one that is read too"], tokens=None, context=16)
    found = ss.run(NAME, series=series, corpus=text)
    gates = found.tables["gates"].set_index("gate")
    assert gates["active"].tolist() == [2, 2] and gates["churn"].isna().all()
    assert gates["pairs"].tolist() == [0, 0] and found.tables["runs"]["seed"].tolist() == ["not known"] * 2
    assert any("Churn needs two checkpoints" in note.message for note in found.notes)
    with pytest.raises(SpecError, match="reads a text"):
        ss.run(NAME, series=series)
    mute = in_memory("mute", {1: build_model("GatedMixtureForCausalLM", SIZES)}, None)
    with pytest.raises(SubjectError, match="reads other tokens"):
        ss.run(NAME, series=[series[0], mute], corpus=text)


def test_other_mixtures_are_top_k_with_a_note():
    plain = CheckpointSeries("org/moe", [Checkpoint(1, "step1")], lambda found: load("random-olmoe"))
    text = ss.corpus("python-docs", tokens=256, context=32)
    with pytest.raises(SubjectError, match="no gates"):
        ss.run(NAME, plain, text)  # a report on any mixture leaves this analysis out
    values = {**SIZES, "num_hidden_layers": 1, "gate": "hash", "vocab_size": 260}
    tokenizer = load("random-olmoe").tokenizer
    gated = in_memory("hash", {1: build_model("GatedMixtureForCausalLM", values)}, tokenizer)
    found = ss.run(NAME, series=[gated, plain], corpus=text)
    assert sorted(found.tables["gates"]["gate"]) == ["hash", "top_k"]
    assert any("names no gate" in note.message for note in found.notes)
    assert found.tables["gates"]["loss_difference"].isna().all()

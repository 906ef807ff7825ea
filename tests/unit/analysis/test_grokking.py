"""Grokking on a tiny run that memorizes, against brute force; phases, leads and figures on a
made-up run that groks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import sparsescope as ss
from sparsescope.activations.context import Context
from sparsescope.analysis.grokking import ANALYSIS, MEASURES, TABLES, GrokkingParams
from sparsescope.analysis.grokking import checkpoint as one
from sparsescope.analysis.grokking import compute as whole
from sparsescope.analysis.grokking import tables as make
from sparsescope.core.inputs import Known
from sparsescope.core.registry import analyses
from sparsescope.core.result import Result
from sparsescope.errors import SpecError, SubjectError
from sparsescope.metrics import fourier
from sparsescope.metrics.leads import aligned_rows, correlation_rows, lead_rows, lead_summary_rows, onset_rows
from sparsescope.metrics.onsets import find_onsets
from sparsescope.models.checkpoints import open_series
from sparsescope.runner.roles.series import identity as series_identity
from sparsescope.testing import check_analysis, check_figure, check_same_numbers
from sparsescope.training.recipe import Recipe
from sparsescope.training.trainer import train

RECIPE = {
    "name": "tiny",
    "title": "A tiny run",
    "license": "Apache-2.0",
    "steps": 60,
    "checkpoints": [0, 4, 8, 12, 30, 40, 50, 60],
    "log_every": 2,
    "model": {
        "architecture": "ModularTransformerForCausalLM",
        "config": {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
    },
    "data": {"kind": "modular_addition", "modulus": 7, "train_fraction": 0.5},
    "optimizer": {"learning_rate": 2e-2, "weight_decay": 1.0},
}
QUICK = {"surrogates": 19, "draws": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train(Recipe.model_validate(RECIPE), tmp_path_factory.mktemp("series") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same recipe with another seed."""
    return train(Recipe.model_validate({**RECIPE, "seed": 1}), tmp_path_factory.mktemp("series") / "other")


@pytest.fixture(scope="module")
def result(folder):
    return ss.run("grokking", folder, **QUICK)


def test_losses_are_those_of_the_training_and_the_run_memorized(folder, result):
    table, series = result.tables["checkpoints"], open_series(folder)
    for split in ("train", "test"):
        stored = [checkpoint.stored[split]["loss"] for checkpoint in series.checkpoints]
        np.testing.assert_allclose(table[f"{split}_loss"], stored, rtol=1e-5)
        np.testing.assert_allclose(
            table[f"{split}_accuracy"], [c.stored[split]["accuracy"] for c in series.checkpoints]
        )
    assert result.scalars["memorized_step"].value in range(4, 60)
    assert result.scalars["grokked"].value == 0 and np.isnan(result.scalars["generalized_step"].value)
    assert result.tables["phases"]["phase"].tolist() == ["memorization", "memorized"]
    assert result.tables["aligned"].empty


def test_measures_of_a_checkpoint_by_brute_force(folder):
    series = open_series(folder)
    task, subject = one.task_of(series), series.subject(60)
    params = GrokkingParams(**QUICK)
    keys = (1, 3)
    found = dict(zip(one.NAMES, one.measure(subject, task, keys, params)["values"], strict=True))
    logits = subject.forward(task.tokens, logits=True)[:, -1].double().numpy()
    sums, pi = task.tokens[:, :2].sum(1) % 7, fourier.projector(7, keys)
    residues = logits[:, :7]
    kept = pi @ residues
    restricted = fourier.cross_entropy(kept + (residues - kept).mean(0), sums)
    assert found["restricted_loss"] == pytest.approx(restricted.mean(), rel=1e-6)
    assert found["restricted_test_loss"] == pytest.approx(restricted[~task.train].mean(), rel=1e-6)
    assert found["excluded_loss"] == pytest.approx(
        fourier.cross_entropy(residues - kept, sums)[task.train].mean(), rel=1e-6
    )
    single = [
        fourier.cross_entropy(residues - fourier.projector(7, [k]) @ residues, sums)[task.train].mean()
        for k in keys
    ]
    assert found["excluded_one_loss"] == pytest.approx(np.mean(single), rel=1e-6)
    state = {name: value.double().numpy() for name, value in subject.model.state_dict().items()}
    assert found["weight_norm"] == pytest.approx(np.sqrt(sum((v**2).sum() for v in state.values())))
    s = np.linalg.svd(state["model.embed_tokens.weight"], compute_uv=False)
    assert found["rank_embedding"] == pytest.approx(np.exp(-np.sum(s / s.sum() * np.log(s / s.sum()))))
    assert 0 <= found["gini_weights"] <= 1 and found["collapsed"] == 0


def test_smallest_subnetwork_by_switching_units_off_in_the_model(folder):
    """The linear shortcut gives what forward passes with masked units give."""
    import torch

    series = open_series(folder)
    task, subject = one.task_of(series), series.subject(60)
    found = dict(
        zip(one.NAMES, one.measure(subject, task, (), GrokkingParams(**QUICK))["values"], strict=True)
    )
    state = subject.model.state_dict()
    into, out = (state[f"model.layers.0.mlp.{name}.weight"].double() for name in ("fc1", "fc2"))
    order = torch.argsort(-into.norm(dim=1) * out.norm(dim=0), stable=True)
    sums = task.tokens[:, :2].sum(1) % 7
    full = subject.forward(task.tokens, logits=True)[:, -1].argmax(-1).numpy()

    def predictions(size: int) -> np.ndarray:
        mask = torch.zeros(32)
        mask[order[:size]] = 1
        with subject.edit(subject.sites("blocks.*.mlp.hook_post"), lambda site, tensor: tensor * mask):
            return subject.forward(task.tokens, logits=True)[:, -1].argmax(-1).numpy()

    size = round(found["subnetwork"] * 32)
    accuracy = [(predictions(k)[task.train] == sums[task.train]).mean() for k in range(33)]
    assert accuracy[size] >= accuracy[32] and (size == 0 or accuracy[size - 1] < accuracy[32])
    size = round(found["subnetwork_agreement"] * 32)
    assert (predictions(size) == full).mean() >= 0.95 and (
        size == 0 or (predictions(size - 1) == full).mean() < 0.95
    )


def test_permuting_the_hidden_units_changes_nothing(folder):
    import torch

    series = open_series(folder)
    task, subject, params = one.task_of(series), series.subject(60), GrokkingParams(**QUICK)
    before = one.measure(subject, task, (1,), params)
    turned = subject.copy()
    mlp = turned.model.model.layers[0].mlp
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in (mlp.fc1.weight, mlp.fc1.bias):
            tensor.copy_(tensor[order])
        mlp.fc2.weight.copy_(mlp.fc2.weight[:, order])
    after = one.measure(turned, task, (1,), params)
    np.testing.assert_allclose(after["values"], before["values"], rtol=1e-4, atol=1e-6)


def test_a_stored_run_is_complete_opened_again_and_resumed(folder, tmp_path, monkeypatch):
    calls = []
    real = one.measure
    monkeypatch.setattr(whole.one, "measure", lambda *given: calls.append(1) or real(*given))

    def stop(*given):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return calls.append(1) or real(*given)

    monkeypatch.setattr(whole.one, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        ss.run("grokking", folder, store=tmp_path, **QUICK)
    monkeypatch.setattr(whole.one, "measure", lambda *given: calls.append(1) or real(*given))
    first = ss.run("grokking", folder, store=tmp_path, **QUICK)
    assert len(calls) == 8, "the three finished checkpoints were measured again"
    again = ss.run("grokking", folder, store=tmp_path, **QUICK)
    assert len(calls) == 8 and again.run_id == first.run_id
    check_same_numbers(first, again)
    check_same_numbers(first, ss.run("grokking", open_series(folder), **QUICK))
    assert first.provenance["corpus"] is None and "8 checkpoints" in first.provenance["subject"]["revision"]
    assert first.provenance["command"].startswith("sparsescope run grokking --subject")


def test_the_contract_of_every_analysis(folder):
    check_analysis(ANALYSIS, open_series(folder))


def test_every_number_is_defined_and_every_figure_is_complete(result):
    assert [c.name for c in TABLES["checkpoints"]] == result.tables["checkpoints"].columns.tolist()
    assert set(ANALYSIS.headline) <= set(result.scalars)
    assert all(scalar.definition for scalar in result.scalars.values())
    for view in ANALYSIS.views:
        assert view.table in result.tables
        check_figure(result.view(view.name), view.name)


def test_other_seeds_stand_beside_the_series_and_join_the_digest(folder, other):
    alone = series_identity(open_series(folder))
    both = series_identity(open_series(folder), open_series(other))
    assert alone["weight_hash"] != both["weight_hash"] and alone["id"] == both["id"] == "tiny"
    assert alone == series_identity(open_series(folder))
    found = ss.run("grokking", folder, seeds=(str(other),), **QUICK)
    assert found.tables["onsets"]["series"].tolist() == ["tiny", "other"]
    assert "generalized_step_median" in found.scalars and np.isnan(
        found.scalars["generalized_step_median"].value
    )
    for view in ANALYSIS.views:
        check_figure(found.view(view.name), view.name)


def test_the_digest_changes_with_a_checkpoint_and_with_the_curves(folder, tmp_path):
    series = open_series(folder)
    before = series_identity(series)["weight_hash"]
    content = series.trained
    last = content.checkpoints[-1].model_copy(update={"sha256": "0" * 64})
    changed = [
        content.model_copy(update={"checkpoints": [*content.checkpoints[:-1], last]}),
        content.model_copy(update={"files": {**content.files, "curves.parquet": "0" * 64}}),
        content.model_copy(update={"probe_digest": "0" * 64}),
    ]
    for other_content in changed:
        twin = open_series(folder)
        model = twin.subject(60)
        twin._folder = replace(twin._folder, content=other_content)
        twin._load = lambda checkpoint, model=model: model
        assert series_identity(twin)["weight_hash"] != before


def test_what_is_no_series_is_refused(folder, glass):
    with pytest.raises(SpecError, match="studies a series"):
        ss.run("grokking", glass)
    with pytest.raises(SpecError, match="reads no text"):
        ss.run("grokking", folder, ss.corpus(["some text"]))
    with pytest.raises(SubjectError, match="checkpoint series"):
        ss.run("grokking", "grokking-rely")
    with pytest.raises(SpecError, match="one model"):
        ss.run("activation_sparsity", "glassllm", ss.corpus(["some text"]))
    with pytest.raises(SpecError, match="reads a text"):
        ss.run("activation_sparsity", glass)
    with pytest.raises(SpecError, match="one model"):
        ss.run("activation_sparsity", open_series(folder), ss.corpus(["some text"]))
    with pytest.raises(SubjectError, match="needs what this series"):
        ss.run("grokking", "lazy-relu")
    with pytest.raises(SpecError, match="unknown parameter"):
        ss.run("grokking", folder, no_such_parameter=1)
    with pytest.raises(SpecError, match="no such frequency"):
        ss.run("grokking", folder, key_frequencies=(4,))
    model = [Known("subject", "glassllm"), Known("text", "text")]
    # So a report about one model leaves it out
    assert "reads a series" in analyses().get("grokking").fits(model)


def made_up(name: str = "made-up", generalized: int = 700) -> whole.Measured:
    """A run that memorizes at 100, whose test loss falls from 600 on; the measure
    neurons_explained moves at 300.
    """
    steps = np.arange(0, 1001, 10)
    test = np.where(steps >= generalized, 1.0, 0.1)
    loss = 10 ** np.interp(steps, [0, 100, 600, 750, 1000], [0.5, 1.2, 1.2, -4, -4.2])
    curves = pd.DataFrame(
        {
            "step": steps,
            "train_loss": 10.0 ** -(steps / 200),
            "test_loss": loss,
            "train_accuracy": (steps >= 100) * 1.0,
            "test_accuracy": test,
            "weight_norm": 50 - steps / 50,
        }
    )
    noise = np.random.default_rng(0).normal(0, 1e-3, len(steps))
    columns = {name: np.full(len(steps), np.nan) for name in one.NAMES}
    columns["neurons_explained"] = np.clip((steps - 300) / 200, 0, 1) + noise
    columns["restricted_loss"] = 4 * np.clip((900 - steps) / 800, 0, 1) + 0.01
    columns["weight_norm"] = 50 - steps / 50 + noise
    table = pd.DataFrame({**{k: curves[k] for k in ("step", *whole.LOSSES)}, **columns})
    onsets = find_onsets(steps, curves["train_accuracy"].to_numpy(), test)
    arrays = [
        {
            "tensors": np.ones((1, 3)),
            "units": np.array([0, int(s > 400) * 9, 1]),
            "embedding_norms": np.ones(3),
            "logit_energy": np.full(3, 1 / 3),
            "excluded": np.ones(3),
        }
        for s in steps
    ]
    return whole.Measured(name, curves, onsets, table, (2,), "units", 7, arrays, ["w"])


def table_of(name, rows):
    """The table as a result holds it."""
    out = Result("grokking")
    out.add(name, rows)
    return out.tables[name]


def correlated(own, params):
    return correlation_rows(own, make.FOLLOWED, draws=params.draws, level=params.level, seed=params.seed)


def test_phases_come_from_rules_and_change_points():
    own, params = made_up(), GrokkingParams(**QUICK)
    assert (own.onsets.memorized, own.onsets.generalized, own.onsets.grokked) == (100, 700, True)
    segments, cleanup = make.segments(own, params)
    phases = table_of("phases", make.phases(own, cleanup)).set_index("phase")
    assert phases.index.tolist() == ["memorization", "circuit formation", "cleanup", "after"]
    assert phases["begin"].tolist() == pytest.approx([0, 100, 600, 750], abs=20)
    assert phases["begin"].tolist()[1:] == phases["end"].tolist()[:-1], "phases leave a gap"
    segments = table_of("segments", segments)
    steep = segments[segments["curve"] == "test_loss"]["slope"].min()
    assert steep == pytest.approx(-5.2 / 0.15, rel=0.05)


def test_lead_times_of_several_runs():
    runs = [made_up("a"), made_up("b", 800), made_up("c", 900)]
    leads = table_of("leads", lead_rows(runs, make.FOLLOWED))
    mine = leads[leads["measure"] == "neurons_explained"]
    assert mine["half_way"].tolist() == pytest.approx([400] * 3, abs=5)
    assert mine["lead_half_way"].tolist() == pytest.approx([300, 400, 500], abs=5)
    assert (
        (mine["departure"] >= 300).all() and (mine["departure"] <= 330).all() and (mine["early"] == 11).all()
    )
    norm = leads[leads["measure"] == "weight_norm"]
    assert np.isfinite(norm["half_way"]).all()
    summary = table_of("lead_summary", lead_summary_rows(leads, 0.95)).set_index(["measure", "rule"])
    row = summary.loc[("neurons_explained", "half way")]
    assert (row["median"], row["series"], row["coverage"]) == (pytest.approx(400, abs=5), 3, 0.75)
    aligned = table_of("aligned", aligned_rows(runs, make.ALIGNED))
    part = aligned[(aligned["series"] == "b") & (aligned["measure"] == "test_accuracy")]
    assert (
        part.loc[part["relative"] >= 0, "value"].eq(1).all()
        and part.loc[part["relative"] < 0, "value"].lt(1).all()
    )


def test_correlations_say_what_a_trend_alone_gives():
    own, params = made_up(), GrokkingParams(**QUICK)
    table = table_of("correlations", correlated(own, params)).set_index(["measure", "score"])
    norm = table.loc[("weight_norm", "test accuracy")]
    assert norm["n"] == 91 and abs(norm["pearson"]) > 0.7 and norm["reading"] == "trend alone"
    assert norm["n_effective"] < 30 < norm["n"] and norm["least"] <= norm["pearson"] <= norm["most"]
    assert norm["low"] < norm["pearson"] < norm["high"]


@pytest.fixture(scope="module")
def drawn():
    own, params = made_up(), GrokkingParams(**QUICK)
    out = Result("grokking")
    segments, cleanup = make.segments(own, params)
    leads = table_of("leads", lead_rows([own], make.FOLLOWED))
    frames = {
        "checkpoints": own.checkpoints,
        "curves": own.curves,
        "phases": make.phases(own, cleanup),
        "segments": segments,
        "onsets": onset_rows([own]),
        "leads": leads,
        "lead_summary": lead_summary_rows(leads, params.level),
        "aligned": aligned_rows([own], make.ALIGNED),
        "correlations": correlated(own, params),
        "spectrum": make.spectrum(own),
        "tensors": make.tensors(own),
    }
    for name, frame in frames.items():
        out.add(name, frame)
    whole._scalars(out, own, [own], params)
    return out


def test_figures_of_a_run_that_groks(drawn):
    for view in ANALYSIS.views:
        check_figure(drawn.view(view.name), view.name)
    timeline = drawn.view("timeline")
    assert "memorized at step 100 and generalized at step 700, 7 times later" in timeline.layout.title.text
    names = {annotation.text for annotation in timeline.layout.annotations}
    assert {"memorization", "circuit formation"} <= names
    assert len(timeline.layout.shapes) == 4 * 4
    assert drawn.scalars["restricted_fall_midway"].value == pytest.approx(2.51 / 4.01, rel=0.02)
    assert drawn.scalars["lead_neurons_explained"].value == pytest.approx(300, abs=5)


def test_the_slider_shows_one_checkpoint_at_a_time(drawn):
    figure = drawn.view("checkpoint_slider")
    slider = figure.layout.sliders[0]
    assert len(figure.data) == 2 * len(slider.steps) == 2 * 101
    assert [trace.visible for trace in figure.data].count(True) == 2
    for index, step in enumerate(slider.steps):
        (change,) = step.args
        assert step.method == "restyle" and sum(change["visible"]) == 2
        shown = [trace for trace, visible in zip(figure.data, change["visible"], strict=True) if visible]
        assert {trace.name for trace in shown} == {f"step {10 * index}"} and {
            trace.yaxis for trace in shown
        } == {"y", "y2"}
    assert not figure.frames, "pages draw figures without frames"
    ends = [figure.layout[axis].range for axis in ("yaxis", "yaxis2")]
    assert all(low == 0 and high > 0 for low, high in ends)


def test_a_series_of_other_data_has_the_measures_of_its_weights(folder):
    """Without pairs there are no Fourier measures, and no forward pass."""
    series = open_series(folder)
    found = dict(
        zip(one.NAMES, one.measure(series.subject(60), None, (), GrokkingParams())["values"], strict=True)
    )
    defined = {name for name, value in found.items() if np.isfinite(value)}
    assert defined == {"weight_norm", "gini_weights", "rank_embedding", "rank_mlp_out"}


def test_series_of_others_have_no_curves():
    with pytest.raises(SpecError, match="no training curves"):
        one.task_of(type("Foreign", (), {"trained": None, "name": "x"})())
    context = Context.of(
        series=type("Foreign", (), {"trained": None, "name": "x", "steps": (1,), "__len__": lambda self: 1})()
    )
    with pytest.raises(SpecError, match="no training curves"):
        whole.compute(GrokkingParams(), context)


def test_measures_have_definitions():
    assert len(MEASURES) == len(set(one.NAMES)) and all(
        column.description.endswith(".") for column in MEASURES
    )


def test_a_seed_with_few_checkpoints_counts_by_its_curves_alone():
    few = made_up("few")
    few.checkpoints = few.checkpoints.iloc[::40].reset_index(drop=True)
    leads = table_of("leads", lead_rows([few], make.FOLLOWED))
    assert set(leads["measure"]) == {"train_loss", "weight_norm"} and (leads["points"] == 101).all()
    assert set(table_of("aligned", aligned_rows([few], make.ALIGNED))["measure"]) == {
        "train_accuracy",
        "test_accuracy",
        "weight_norm",
    }


def test_a_stored_series_opens_where_nothing_can_be_written(folder, other, tmp_path, monkeypatch):
    from sparsescope.core import files, publish
    from sparsescope.core.run_store import Store

    first = ss.run("grokking", folder, store=tmp_path, seeds=(str(other),), **QUICK)

    def refuse(*args, **kwargs):
        raise AssertionError("something was written")

    for module, name in (
        (Store, "check_writable"),
        (Store, "write"),
        (files, "write_file"),
        (publish, "publish"),
    ):
        monkeypatch.setattr(module, name, refuse)
    check_same_numbers(first, ss.run("grokking", folder, store=tmp_path, seeds=(str(other),), **QUICK))
    # What is not stored needs a folder, before anything is computed
    with pytest.raises(AssertionError, match="was written"):
        ss.run("grokking", folder, store=tmp_path, **QUICK)

"""A run whose identity does not cover all that computes: it is computed, not stored, and not mistaken for
another.
"""

from __future__ import annotations

import json

import pytest

import sparsescope as ss
from sparsescope.activations.capture import capture
from sparsescope.activations.store import write_store
from sparsescope.core.artifact_store import ArtifactStore
from sparsescope.core.run_store import Store
from sparsescope.errors import ArtifactError
from sparsescope.models.checkpoints import Checkpoint, CheckpointSeries
from sparsescope.models.zoo.registered import ENTRY_POINT_GROUP
from sparsescope.runner import engine
from sparsescope.runner.roles import series as series_role
from sparsescope.runner.run import Request, run, run_many

NAME = "activation_sparsity"
ROLE = "blocks.*.mlp.hook_post"


def with_hook(factor):
    """A Llama whose MLPs get their input times a factor, which no hash covers."""
    subject = ss.load("random-llama").copy()

    def scaled(module, inputs):
        return (inputs[0] * factor,)

    for block in subject.model.model.layers:
        block.mlp.register_forward_pre_hook(scaled)
    return subject


def number(result):
    return float(result.tables["per_layer"]["mean"].iloc[-1])


def warned(result):
    return [
        note.message for note in result.notes if note.severity == "warning" and "not stored" in note.message
    ]


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_two_hooks_of_one_name_are_never_one_run(small_corpus, tmp_path):
    plain = run(NAME, ss.load("random-llama"), small_corpus, store=tmp_path)
    stored = everything_in(tmp_path)
    found = {}
    for factor in (0.5, 1.0, 3.0):
        result = run(NAME, with_hook(factor), small_corpus, store=tmp_path)
        (said,) = warned(result)
        assert "forward pre-hook" in said and "with_hook.<locals>.scaled at model.layers.0.mlp and 2" in said
        assert "with_variant(" in said and result.run_id is None
        found[factor] = number(run(NAME, with_hook(factor), small_corpus))
        assert number(result) == found[factor], "with a store and without it is the same number"
    assert len(set(found.values())) == 3 and found[1.0] == number(plain)
    assert everything_in(tmp_path) == stored, "nothing was written"


def test_a_declared_variant_is_stored_and_opened(small_corpus, tmp_path):
    plain = ss.load("random-llama")

    def declared(factor):
        return with_hook(factor).with_variant("scaled", {}, of=plain, adds=str(factor))

    first = run(NAME, declared(0.5), small_corpus, store=tmp_path)
    other = run(NAME, declared(3.0), small_corpus, store=tmp_path)
    again = run_many([Request(NAME)], {"subject": declared(0.5), "text": small_corpus}, store=tmp_path)[0]
    assert warned(first) == [] and again.stored and again.result.run_id == first.run_id != other.run_id
    assert number(again.result) == number(first) != number(other)


def test_every_setting_of_an_adapter_is_a_run_of_its_own(lora, small_corpus, tmp_path):
    subject = ss.wrap(ss.load("random-llama").copy().model, ss.load("random-llama").tokenizer)
    layers = lora.put_into(subject.model)
    settings = {
        "default": lambda layer: None,
        "other": lambda layer: setattr(layer, "_active_adapter", ["other"]),
        "scaled": lambda layer: layer.scaling.update({"other": 5.0}),
        "disabled": lambda layer: setattr(layer, "_disable_adapters", True),
    }
    runs = {}
    for name, setting in settings.items():
        for layer in layers:
            setting(layer)
        result = run(NAME, subject, small_corpus, store=tmp_path)
        assert number(result) == number(run(NAME, subject, small_corpus)), name
        assert warned(result) == [] and result.run_id is not None
        runs[name] = (result.run_id, number(result))
    assert len({run_id for run_id, _ in runs.values()}) == len({value for _, value in runs.values()}) == 4


def test_no_state_is_kept_or_gone_on_from(small_corpus, tmp_path, monkeypatch):
    """What a killed run of one hook has left must not become part of a run of another."""
    from sparsescope.activations.sparsity_accumulator import SparsityAccumulator

    original, seen = SparsityAccumulator.update, []

    def interrupted(self, batch):
        original(self, batch)
        seen.append(batch.index)
        if len(seen) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(SparsityAccumulator, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(NAME, with_hook(0.0), small_corpus, store=tmp_path, batch_tokens=64)
    monkeypatch.setattr(SparsityAccumulator, "update", original)
    assert not (tmp_path / ".partial").exists()
    # A state that an older version left under this digest is not taken either
    monkeypatch.setattr(
        engine, "_resume", lambda source, accumulators, store: pytest.fail() if store else (0, 0, {})
    )
    run(NAME, with_hook(3.0), small_corpus, store=tmp_path, batch_tokens=64)
    monkeypatch.setattr("sparsescope.runner.run.kept_steps", lambda *_: pytest.fail("steps are kept"))
    run("effective_density", with_hook(3.0), small_corpus, store=tmp_path, preset="quick")
    assert everything_in(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_enough(small_corpus, tmp_path):
    place = tmp_path / "file"
    place.write_text("no folder")
    assert warned(run(NAME, with_hook(2.0), small_corpus, store=place))


def test_an_artifact_of_such_a_run_is_not_kept(small_corpus, tmp_path, monkeypatch):
    from sparsescope.core.registry import find_record

    module = find_record(NAME).compute_module()
    original = module.result

    def keeping(params, context, accumulator):
        with context.keep("toy", format="toy-1") as writer:
            (writer.folder / "weights.txt").write_text("1")
        return original(params, context, accumulator)

    monkeypatch.setattr(module, "result", keeping)
    result = run(NAME, with_hook(2.0), small_corpus, store=tmp_path)
    assert result.artifacts["toy"].present and ArtifactStore(tmp_path).ids() == []


def test_a_series_of_such_checkpoints_is_not_stored():
    made = CheckpointSeries(
        "mine", [Checkpoint(1, "a"), Checkpoint(2, "b")], lambda found: with_hook(found.step)
    )
    (said,) = series_role.unstorable(made)
    assert "with_hook.<locals>.scaled" in said
    plain = CheckpointSeries("mine", [Checkpoint(1, "a")], lambda found: ss.load("random-llama"))
    assert series_role.unstorable(plain) == ()


def test_a_role_of_a_package_may_say_it(small_corpus, llama, tmp_path, monkeypatch):
    from sparsescope.runner.roles import text

    monkeypatch.setattr(text, "unstorable", lambda value: ["this text changes"], raising=False)
    result = run(NAME, llama, small_corpus, store=tmp_path)
    assert warned(result) == ["This run is not stored: this text changes."] and everything_in(tmp_path) == []


def test_activations_are_not_continued_for_another_hook(small_corpus, tmp_path):
    def source(factor):
        return capture(with_hook(factor), small_corpus, [ROLE])

    with source(1.0) as live:
        write_store(live, tmp_path / "shards")
    with source(2.0) as live, pytest.raises(ArtifactError, match="cannot be told") as caught:
        write_store(live, tmp_path / "shards")
    assert "with_hook.<locals>.scaled" in str(caught.value)


PLUGIN = """
import os

from sparsescope.models.catalog import LoadRequest, SubjectEntry


def build(request):
    from sparsescope.models.zoo.random_configs import load_random

    loaded = load_random(LoadRequest("random-llama", request.revision, request.dtype))
    factor = float(os.environ["HOOKED_FACTOR"])
    for block in loaded.model.model.layers:
        block.mlp.register_forward_pre_hook(lambda module, inputs: (inputs[0] * factor,))
    return loaded


entry = SubjectEntry("hooked", "a toy with a hook", "MIT", "nowhere", "float32", build)
"""
STUDY = """
name = "toy"
title = "A hooked model"
question = "Is it stored?"
corpus = "python-docs"
tokens = 400
context = 64
[[subject]]
name = "hooked"
[[analysis]]
name = "activation_sparsity"
params = { resamples = 100 }
"""


@pytest.fixture
def hooked(tmp_path, monkeypatch):
    """A registered subject with a hook; returns the folder of runs."""
    root = tmp_path / "packages"
    info = root / "hooked_toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hooked-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\nhooked = hooked_toy_module:entry\n")
    (root / "hooked_toy_module.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("HOOKED_FACTOR", "2.0")
    return tmp_path / "runs"


def test_the_command_line_says_it(hooked, capsys, monkeypatch):
    from sparsescope.cli import app
    from sparsescope.cli.exit_codes import execute

    words = ["run", NAME, "--subject", "hooked", "--corpus", "python-docs", "--tokens", "400"]
    words += ["--context", "64", "--set", "resamples=100", "--home", str(hooked)]
    assert execute(app, words) == 0
    out = capsys.readouterr().out
    assert (
        "warning: This run is not stored: forward pre-hook hooked_toy_module.build.<locals>.<lambda>" in out
    )
    assert out.rstrip().endswith("\nnot stored") and "None" not in out
    values = set()
    for factor in ("2.0", "0.0"):
        monkeypatch.setenv("HOOKED_FACTOR", factor)
        assert execute(app, [*words, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["run"], said["path"], said["stored_before"]) == (None, None, False)
        assert "hooked_toy_module" in said["unstorable"][0]
        values.add(json.dumps(said["scalars"]))
    assert len(values) == 2 and Store(hooked).run_ids() == []


def test_a_report_says_it(hooked, capsys, tmp_path):
    from sparsescope.cli import app
    from sparsescope.cli.exit_codes import execute

    page = tmp_path / "report.html"
    words = ["report", "hooked", "--corpus", "python-docs", "--tokens", "256", "--context", "64"]
    assert execute(app, [*words, "--home", str(hooked), "--output", str(page)]) in (0, 2)
    text = page.read_text()
    assert "This run is not stored" in text and "not stored" in capsys.readouterr().err
    assert Store(hooked).run_ids() == []


def test_a_study_says_it(hooked, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    said = []
    outcome = ss.study(path, store=hooked, say=said.append)
    (made,) = outcome.runs
    assert made.error is None and made.unstorable
    assert any("is not stored: forward pre-hook" in line for line in said)
    assert Store(hooked).run_ids() == []
    from sparsescope.cli import listing

    assert listing.study_json(outcome, {})["runs"][0]["unstorable"]

"""Damaged and hostile studies: refused with a message, or read as data; nothing outside
the folder is opened.
"""

from __future__ import annotations

import json
from random import Random

import pytest

from sparsescope.runner.study import load_study
from sparsescope.runner.study_checks import check_study

STUDY = {
    "name": "small",
    "title": "A small study",
    "question": "Is it sparse?",
    "corpus": "python-docs",
    "tokens": 400,
    "subject": [
        {"name": "random-llama", "label": "one"},
        {"name": "random-opt", "control_of": "random-llama"},
    ],
    "analysis": [
        {"name": "activation_sparsity", "params": {"seed": 1}},
        {"name": "activation_sparsity", "id": "other", "params": {"seed": 2}},
    ],
    "figure": [
        {
            "analysis": "activation_sparsity",
            "table": "per_layer",
            "where": {"metric": "hoyer"},
            "title": "Hoyer",
        }
    ],
    "finding": [
        {
            "label": "f",
            "analysis": "activation_sparsity",
            "scalar": "mean_hoyer",
            "subject": "random-llama",
            "relation": "<",
            "value": 1.0,
        },
        {
            "label": "g",
            "analysis": "other",
            "scalar": "mean_hoyer",
            "subject": "random-opt",
            "relation": "<=",
            "times": 1.0,
            "other_subject": "random-llama",
            "other_analysis": "activation_sparsity",
        },
    ],
}


def toml(value):
    """A value as TOML on one line; None, which TOML lacks, as not a number."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "nan" if value is None else json.dumps(value).replace("\\ud800", "\\u0000")


def text(document):
    return "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in document.items())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.txt").write_text("precious")
    place = tmp_path / "small"
    place.mkdir()
    (place / "README.md").write_text("# Small\n")
    (place / "study.toml").write_text(text(STUDY))
    return place


def read(mutate, folder):
    def call():
        found = load_study(folder)
        check_study(found)
        return found

    return mutate.attempt(call, folder.parent)


def test_the_sound_study_is_read(mutate, folder):
    found, refusal = read(mutate, folder)
    assert refusal is None and load_study(folder) == found


@pytest.mark.parametrize("seed", range(80))
def test_a_changed_study(mutate, folder, seed):
    changed, _ = mutate.mutate_json(STUDY, Random(seed))
    (folder / "study.toml").write_text(text(changed))
    found, _ = read(mutate, folder)
    assert found is None or "precious" not in str(found)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_study(mutate, folder, seed):
    path = folder / "study.toml"
    path.write_bytes(mutate.mutate_bytes(path.read_bytes(), Random(seed)))
    read(mutate, folder)


@pytest.mark.parametrize(
    "name",
    ["../secret.txt", "/etc/passwd", "..", ".", "", "\0", "x" * 5000, "README.md/x", "link.md", "loop.md"],
)
def test_a_narrative_outside_the_folder_is_refused(mutate, folder, name):
    (folder / "link.md").symlink_to(folder.parent / "secret.txt")
    (folder / "loop.md").symlink_to(folder / "loop.md")
    (folder / "study.toml").write_text(text(STUDY | {"narrative": name}))
    assert read(mutate, folder)[1] is not None


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "/etc/passwd",
        "../small/../secret.txt",
        "~/x.txt",
        "\0.txt",
        "./link.txt",
        "a\\..\\b.txt",
    ],
)
def test_a_corpus_or_a_model_outside_the_folder_is_refused(mutate, folder, name):
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    for changed in (STUDY | {"corpus": name}, STUDY | {"subject": [{"name": name}]}):
        (folder / "study.toml").write_text(text(changed))
        assert read(mutate, folder)[1] is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b"a = " + b"[" * 50_000,
        b"\xff\xfe",
        b"x = 1\n" * 60_000,
        b"a." * 50_000 + b"b = 1",
        b"tokens = " + b"9" * 9000,
    ],
)
def test_a_file_that_is_no_study_is_refused(mutate, folder, content):
    (folder / "study.toml").write_bytes(content)
    assert read(mutate, folder)[1] is not None


def test_folders_and_pipes_are_no_studies(mutate, folder):
    import os

    (folder / "study.toml").unlink()
    os.mkfifo(folder / "study.toml")
    assert read(mutate, folder)[1] is not None
    (folder / "study.toml").unlink()
    (folder / "study.toml").mkdir()
    assert read(mutate, folder)[1] is not None

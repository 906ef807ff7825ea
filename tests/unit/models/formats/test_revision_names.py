"""Names of checkpoints: every form that published series use, their order, and what may not be mixed."""

from __future__ import annotations

import random

import pytest

from sparsescope.errors import SpecError
from sparsescope.models.formats.revision_names import ordered_names, parse_name


@pytest.mark.parametrize(
    ("name", "step", "tokens", "stage", "ingredient", "form"),
    [
        ("step0", 0, None, None, None, "stepN"),
        ("step143000", 143000, None, None, None, "stepN"),
        ("step1000-tokens4B", 1000, 4 * 10**9, None, None, "stepN-tokensMB"),
        ("stage1-step1000-tokens5B", 1000, 5 * 10**9, 1, None, "stage1-stepN-tokensMB"),
        ("stage2-ingredient3-step2000-tokens9B", 2000, 9 * 10**9, 2, 3, "stage2-ingredient3-stepN-tokensMB"),
        ("step5000-tokens20B", 5000, 20 * 10**9, None, None, "stepN-tokensMB"),
        ("checkpoint-500", 500, None, None, None, "checkpoint-N"),
        ("step-4000", 4000, None, None, None, "step-N"),
    ],
)
def test_every_form_is_read(name, step, tokens, stage, ingredient, form):
    found = parse_name(name)
    assert (found.revision, found.step, found.tokens, found.stage, found.ingredient, found.form) == (
        name, step, tokens, stage, ingredient, form,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "step",
        "step-",
        "step1000-tokens4",
        "stepx",
        "Step1",
        "step1 ",
        "checkpoint500",
        "epoch-3",
        "",
        "../step-1",
        "step²",
    ],
)
def test_other_names_are_no_checkpoints(name):
    assert parse_name(name) is None
    with pytest.raises(SpecError, match="not the name of a checkpoint"):
        ordered_names(["step1", name], "here")


def test_steps_are_put_in_numerical_order():
    names = [f"step{step}" for step in (0, 1, 2, 4, 512, 1000, 2000, 10000, 143000)]
    shuffled = names.copy()
    random.Random(0).shuffle(shuffled)
    assert [found.revision for found in ordered_names(shuffled, "here")] == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["step1", "step1"], "step 1 is there twice"),
        (["step-5", "step-005"], "step 5 is there twice"),
        (["step1000-tokens4B", "step1000-tokens5B"], "step 1000 is there twice"),
        (["step1", "checkpoint-2"], "mixed"),
        (["step1", "step-2"], "mixed"),
        (["step1000", "step2000-tokens8B"], "mixed"),
        (["stage1-step1000-tokens5B", "stage2-step2000-tokens9B"], "mixed"),
        (["stage1-step1000-tokens5B", "step2000-tokens9B"], "mixed"),
        (["stage2-ingredient1-step1-tokens5B", "stage2-ingredient2-step2-tokens9B"], "mixed"),
        ([], "no checkpoint"),
    ],
)
def test_repeated_and_mixed_names_are_refused(names, message):
    with pytest.raises(SpecError, match=message):
        ordered_names(names, "here")

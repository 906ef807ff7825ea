"""The page of a study in a real browser: figures draw, folded runs draw when they are opened,
nothing else happens.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsescope.reporting.build import build
from sparsescope.runner.study import Declaration, Study, StudyResult, StudyRun

SUBJECTS = [
    {"name": "m1", "label": "First"},
    {"name": "s1", "label": "Shuffled", "control_of": "m1"},
    {"name": "m2"},
]
FIGURE = {
    "analysis": "activation_sparsity",
    "table": "per_layer",
    "where": {"metric": "gini"},
    "low": "low",
    "high": "high",
    "reference": "reference",
    "relative": True,
    "title": "Gini",
}


@pytest.fixture(scope="module")
def report(synthetic, tmp_path_factory):
    values = {"name": "toy", "title": "Toy", "question": "Which?", "subject": SUBJECTS, "figure": [FIGURE]}
    declared = Declaration.model_validate(values | {"analysis": [{"name": "activation_sparsity"}]})
    runs = [
        StudyRun(
            subject, "activation_sparsity", synthetic.activation_result(subject.name, layers=6, seed=index)
        )
        for index, subject in enumerate(declared.subjects)
    ]
    outcome = StudyResult(
        Study(Path("study.toml"), declared, "# Toy\n\n## Method\n\n" + "\n\n".join(synthetic.HOSTILE)), runs
    )
    return build(outcome, tmp_path_factory.mktemp("study") / "study.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_folded_runs_are_drawn_when_they_are_opened(watch, report, scheme):
    watched = watch(report.as_uri(), color_scheme=scheme, offline=True)
    page = watched.page
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn='1']")
    assert page.locator(".plot .main-svg .cartesianlayer").count() == 1
    assert page.locator("#plot-c0 .scatterlayer path.js-line").count() >= 4
    page.locator("details.run > summary").first.click()
    page.wait_for_function("document.querySelectorAll('details.run[open] .plot .cartesianlayer').length >= 7")
    for box in page.locator("details.run[open] .plot .svg-container").all():
        assert box.bounding_box()["width"] > 600
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert watched.errors == [] and watched.requests == [] and watched.dialogs == []


def test_a_link_to_a_folded_run_opens_it(watch, report):
    page = watch(report.as_uri()).page
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]")
    page.locator("nav a[href='#s1-origin'], nav a[href='#s1']").first.click()
    assert page.locator("#s1").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")

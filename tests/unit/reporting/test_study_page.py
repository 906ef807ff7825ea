"""The page of a study, made of synthetic results: what stands where, what failed, hostile text, Markdown."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import sparsescope as ss
from sparsescope.errors import SpecError, SubjectError
from sparsescope.reporting.narrative import narrative_html
from sparsescope.reporting.study import across, colors, render_study, verdict_text
from sparsescope.runner.study import Declaration, Study, StudyResult, StudyRun

FIGURE = {
    "analysis": "activation_sparsity",
    "table": "per_layer",
    "where": {"metric": "density_energy_90"},
    "y": "mean",
    "low": "low",
    "high": "high",
    "reference": "reference",
    "relative": True,
    "title": "Energy",
    "caption": "How to read it.",
}


class Page(HTMLParser):
    """Tags, ids, links, scripts and words of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.words, self.kind = [], [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "script":
            self.kind = dict(attrs).get("type", "text/javascript")
            self.scripts.append((self.kind, dict(attrs).get("id"), ""))
        elif tag == "style":
            self.kind = "style"

    def handle_endtag(self, tag):
        if tag in {"script", "style"}:
            self.kind = None

    def handle_data(self, data):
        if self.kind is None:
            self.words.append(data)
        elif self.kind != "style":
            self.scripts[-1] = (*self.scripts[-1][:2], self.scripts[-1][2] + data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split()).replace("\N{NO-BREAK SPACE}", " ")

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


def make(synthetic, names, *, figures=(FIGURE,), findings=(), narrative="", title="Three models", **changes):
    """A study result: of each name, its label, what it is the control of, and its number of layers."""
    subjects = [
        {"name": name, "label": label} | ({"control_of": of} if of else {}) for name, label, of, _ in names
    ]
    values = {"name": "toy", "title": title, "question": "Which is sparser?", "subject": subjects} | changes
    values |= {
        "analysis": [{"name": "activation_sparsity"}],
        "figure": list(figures),
        "finding": list(findings),
    }
    declared = Declaration.model_validate(values)
    runs = []
    for index, (subject, (name, _, _, layers)) in enumerate(zip(declared.subjects, names, strict=True)):
        if layers:
            run = StudyRun(
                subject, "activation_sparsity", synthetic.activation_result(name, layers=layers, seed=index)
            )
        else:
            error = SubjectError("the model is broken", next_step="mend it")
            run = StudyRun(subject, "activation_sparsity", error=error)
        runs.append(run)
    return StudyResult(Study(Path("study.toml"), declared, narrative), runs)


NAMES = (
    ("m1", "First", None, 4),
    ("s1", "First shuffled", "m1", 4),
    ("m2", "Second", None, 6),
    ("m3", "Third", None, 0),
)


def finding(**rest):
    base = {"label": "a claim", "analysis": "activation_sparsity", "scalar": "mean_nonzero", "subject": "m1"}
    return base | {"relation": ">", "value": 0.99} | rest


@pytest.fixture(scope="module")
def outcome(synthetic):
    claims = [
        finding(),
        finding(label="a false claim", relation="<"),
        finding(label="of the third", subject="m3"),
    ]
    return make(synthetic, NAMES, findings=claims, narrative="# Three models\n\n## Method\n\nWords.")


@pytest.fixture(scope="module")
def parsed(outcome):
    return Page(render_study(outcome))


def test_question_text_claims_and_failures_are_there(parsed, outcome):
    for words in (
        "Three models",
        "Which is sparser?",
        "Method",
        "Words.",
        "HOLDS",
        "DOES NOT HOLD",
        "NOT CHECKED",
    ):
        assert words in parsed.text, words
    assert verdict_text(outcome) == "1 of 3 claims hold; 1 do not hold; 1 could not be checked"
    assert parsed.text.count(verdict_text(outcome)) == 2, "at the head and above the claims"
    assert "the model is broken" in parsed.text and "mend it" in parsed.text
    assert "Third was not measured" in parsed.text
    assert "sparsescope study toy" in parsed.text


def test_numbers_stand_side_by_side(outcome, parsed):
    table = across(outcome)[0]
    assert table.subjects == [("First", False), ("First shuffled", True), ("Second", False)]
    names = [name for name, _, _ in table.rows]
    assert "Units that are not exactly zero" not in names, "it says nothing about these models"
    assert names and all(len(cells) == 3 for _, _, cells in table.rows)
    value, interval = table.rows[names.index("Units that hold 90 % of the energy")][2][0]
    scalar = outcome.results[0].scalars["mean_density_energy_90"]
    assert value == f"{100 * scalar.value:.2f} %" and interval.endswith(
        f"n = {scalar.interval.n}".replace(" ", "\xa0")
    )
    assert [name for name, _ in table.said] == ["First", "First shuffled", "Second"]
    assert all(finding.anchor in parsed.values("id") for _, finding in table.said)
    assert "Models and text" in parsed.text


def test_a_control_has_the_color_of_its_subject(outcome):
    assert colors(outcome) == {"m1": 0, "s1": 0, "m2": 1, "m3": 2}


def test_the_figure_holds_every_subject_over_relative_depth(parsed):
    text = next(body for kind, key, body in parsed.scripts if key == "data-c0")
    figure = json.loads(text)
    lines = {trace["name"]: trace for trace in figure["data"] if trace.get("name") and trace["showlegend"]}
    assert set(lines) == {"First", "First shuffled", "Second", "reference"}
    assert figure["layout"]["xaxis"]["range"] == [-0.03, 1.03]
    assert lines["First shuffled"]["line"]["dash"] == "dash"
    assert "Third was not measured" in figure["layout"]["title"]["subtitle"]["text"]


def test_runs_are_folded_and_every_anchor_is_there(parsed):
    assert ("details", "class", "run") in parsed.attributes
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert {v[1:] for v in parsed.values("href") if v.startswith("#")} <= set(ids)


def test_scripts_are_allowed_by_their_hash(parsed):
    policy = next(v for v in parsed.values("content") if v and "script-src" in v)
    run = [text for kind, _, text in parsed.scripts if kind == "text/javascript"]
    assert len(run) == 3
    for text in run:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"table": "per_layr"}, "has no table 'per_layr'. near: per_layer"),
        ({"y": "meen"}, "has no column 'meen'. near: mean"),
        (
            {"where": {"metric": "giny"}},
            "No subject has rows for this figure in table per_layer (metric = giny)",
        ),
    ],
)
def test_a_figure_that_cannot_be_drawn_says_why(synthetic, change, said):
    text = Page(render_study(make(synthetic, NAMES[:1], figures=[FIGURE | change]))).text
    assert said in text and "HOLDS" not in text


def test_experts_are_joined_and_the_figure_says_so(synthetic):
    made = make(synthetic, (("m1", "Dense", None, 3), ("m2", "Experts", None, 3)))
    made.runs[1].result = synthetic.activation_result("m2", layers=3, experts=4)
    figure = next(body for _, key, body in Page(render_study(made)).scripts if key == "data-c0")
    assert "Experts: median and 5–95 % range over experts" in json.loads(figure)["layout"]["title"][
        "subtitle"
    ]["text"].replace("<br>", " ").replace("\xa0", " ")


def test_hostile_strings_stay_text(synthetic):
    bad = synthetic.HOSTILE
    figure = FIGURE | {"title": bad[0], "caption": bad[1], "y_title": bad[6]}
    claim = finding(label=bad[0], reading=bad[1], subject=bad[1])
    made = make(
        synthetic, ((bad[1], bad[0], None, 2), ("m2", bad[6], bad[1], 2)), figures=[figure], findings=[claim],
        narrative="\n\n".join(bad), title=bad[0], question=bad[1],
    )  # fmt: skip
    text = render_study(made)
    page = Page(text)
    assert [kind for kind, _, _ in page.scripts].count("text/javascript") == 3
    assert not {"img", "iframe", "object", "link"} & set(page.tags)
    assert "<img src=x" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "\u202e" not in text and "{{7*7}}" in page.text
    for kind, key, body in page.scripts:
        if kind == "application/json":
            assert "<" not in body, key


def test_report_writes_the_page_of_a_study(synthetic, tmp_path):
    path = ss.report(make(synthetic, NAMES[:1]), tmp_path / "study.html")
    assert "Which is sparser?" in path.read_text()


def test_a_study_without_a_result_has_no_page(synthetic):
    with pytest.raises(SpecError, match="nothing to report"):
        render_study(make(synthetic, NAMES[3:], figures=()))


def test_markdown_is_rendered_below_the_title():
    html = str(
        narrative_html(
            "# Title\n\n## Part\n\nSome *words*, `code`.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- one\n"
        )
    )
    assert "Title" not in html and "<h3>Part</h3>" in html and "<em>words</em>" in html
    assert "<td>1</td>" in html and "<li>one</li>" in html and "<h1" not in html


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;", "<script"),
        ("a <b onclick=x>b</b>", "&lt;b onclick=x&gt;", "<b"),
        ("[x](javascript:alert(1))", "javascript", "href"),
        ("[x](http://evil.example)", "x", "href"),
        ("[x](data:text/html,hi)", "x", "href"),
        ("[x](https://good.example)", 'href="https://good.example" rel="noopener noreferrer"', 'href="http:'),
        ("[x](#findings)", 'href="#findings"', "noopener"),
        ("![x](https://evil.example/x.png)", "x", "<img"),
        ("<https://good.example>", "https://good.example", "<https"),
        ("a\u202eb\x00c", "‹U+202E›", "\u202e"),
        ("{{7*7}}", "{{7*7}}", "49"),
        ("```\n<i>\n```", "&lt;i&gt;", "<i>"),
        ("[a [b](http://x.example) c](https://y.example)", "b", 'href="http:'),
        (">" * 5000 + " deeper than anyone writes", "<blockquote>", "<script"),
    ],
)
def test_markdown_carries_no_markup_of_its_own(text, kept, gone):
    html = str(narrative_html(text))
    assert kept in html and gone not in html

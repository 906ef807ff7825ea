"""The report: one file, no network, no foreign script, every figure with its texts and its table."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pandas as pd
import pytest

from sparsescope.core.columns import Column
from sparsescope.core.registry import analyses
from sparsescope.core.result import Result
from sparsescope.core.run_store import Store
from sparsescope.errors import ArtifactError, SpecError
from sparsescope.reporting import build, page
from sparsescope.reporting.sections import CSV_BUDGET, origin_text, section


class Page(HTMLParser):
    """Scripts, attributes, ids and the visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.attributes, self.words, self.tags = [], [], [], []
        self._kind = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self._kind = dict(attrs).get("type", "text/javascript")
            self.scripts.append([self._kind, dict(attrs).get("id"), ""])
        elif tag == "style":
            self._kind = "style"

    def handle_endtag(self, tag):
        if tag in {"script", "style"}:
            self._kind = None

    def handle_data(self, data):
        if self._kind is None:
            self.words.append(data)
        elif self._kind != "style":
            self.scripts[-1][2] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def stored(synthetic, tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    run_id = synthetic.store_result(home, synthetic.activation_result())
    return Store(home).open(run_id)


@pytest.fixture(scope="module")
def report(stored):
    return build.render([stored])


@pytest.fixture(scope="module")
def parsed(report):
    return Page(report)


def test_scripts_are_allowed_by_their_hash_and_nothing_else(parsed):
    policy = next(
        value
        for tag, name, value in parsed.attributes
        if tag == "meta" and name == "content" and "script-src" in value
    )
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["base-uri"] == directives["form-action"] == "'none'"
    assert "unsafe" not in directives["script-src"]
    run = [text for kind, _, text in parsed.scripts if kind == "text/javascript"]
    assert len(run) == 3
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in run}
    assert set(directives["script-src"].split()) == hashes


def test_nothing_is_loaded_from_elsewhere(parsed):
    for tag, name, value in parsed.attributes:
        if name in {"src", "href", "action", "poster", "data", "srcset", "background"} and value:
            local = value.startswith(("#", "data:text/csv"))
            assert local or (tag == "a" and value.startswith("https://")), (tag, name, value[:80])
    assert not {"img", "link", "iframe", "object", "embed", "form", "base"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]


def test_every_view_has_alt_text_caption_and_axis_titles(parsed, stored):
    views = analyses().get("activation_sparsity").views
    figures = [
        (kind, key, text)
        for kind, key, text in parsed.scripts
        if kind == "application/json" and key != "theme"
    ]
    assert len(figures) == len(views)
    for _, _, text in figures:
        layout = json.loads(text)["layout"]
        assert layout["meta"]["alt"]
        assert layout["xaxis"]["title"]["text"]
        assert layout["yaxis"]["title"]["text"]
    alts = [dict(a)["aria-label"] for a in _elements(parsed, "role", "img")]
    assert len(alts) == len(views)
    assert all(len(alt) > 40 for alt in alts)
    for view in views:
        assert view.title in parsed.text
        assert " ".join(view.caption.split())[:60] in parsed.text


def _elements(parsed, name, value):
    """Attribute lists of the elements that have ``name=value``."""
    groups, current = [], []
    for tag, key, val in parsed.attributes:
        if current and (tag, key) in {(t, k) for t, k, _ in current}:
            groups.append(current)
            current = []
        current.append((tag, key, val))
    groups.append(current)
    return [
        [(k, v) for _, k, v in group] for group in groups if (name, value) in [(k, v) for _, k, v in group]
    ]


def test_head_says_what_was_measured(parsed):
    for words in (
        "smollm2-135m",
        "main@12fd25f",
        "dequantized from gguf:Q4_1",
        "float32",
        "sdpa",
        "8,192 tokens, 79 documents",
        "source code (4,096 tokens)",
    ):
        assert words in parsed.text
    assert "sparsescope run activation_sparsity --subject smollm2-135m" in parsed.text
    assert "exact zeros say nothing here" in parsed.text
    assert "> 99.99 %" in parsed.text
    for word in ("Density", "Sparsity", "Half-normal reference", "Interval"):
        assert word in parsed.text


def test_long_tables_are_cut_and_say_so(parsed, stored):
    assert len(stored.tables["units"]) > 800
    assert f"Showing 800 of {len(stored.tables['units']):,} rows" in parsed.text
    assert f"{stored.run_id}/tables/units.parquet" in parsed.text


def test_the_csv_in_the_page_is_the_table(parsed, stored):
    links = [v for v in parsed.values("href") if v.startswith("data:text/csv")]
    texts = [unquote(link.split(",", 1)[1]) for link in links]
    text = next(t for t in texts if "table unit_use" in t)
    lines = text.splitlines()
    assert stored.run_id in lines[0]
    assert "effective_tokens [value, tokens]" in lines[1]
    assert len(lines) == 3 + len(stored.tables["unit_use"])


def test_no_path_of_this_machine_is_in_the_report(report, tmp_path_factory):
    assert str(tmp_path_factory.getbasetemp()) not in report
    assert str(pytest.__file__).rsplit("/", 2)[0] not in report


def test_size_is_small_enough_to_send(report):
    assert len(report.encode()) < 8_000_000


def hostile_result(synthetic):
    result = synthetic.activation_result(subject=synthetic.HOSTILE[0], layers=2, domains=synthetic.HOSTILE)
    for text in synthetic.HOSTILE:
        result.note("warning", text, text)
        result.add_scalar(text, 0.5, text, text)
    labels = pd.Series([*synthetic.HOSTILE, "\ud800 lone", "x" * 100_000], dtype=object)
    frame = pd.DataFrame({"label": labels, "value": 1.0})
    result.add_table(
        "odd", frame, (Column("label", "label", synthetic.HOSTILE[0]), Column("value", "value", "v", "<u>"))
    )
    result.provenance |= {
        "command": synthetic.HOSTILE[0],
        "params": {"<script>": synthetic.HOSTILE[1]},
        "environment": {"x": synthetic.HOSTILE[0]},
    }
    return result


def test_hostile_strings_stay_text(synthetic):
    text = build.render([hostile_result(synthetic)], title=synthetic.HOSTILE[0])
    parsed = Page(text)
    assert [kind for kind, _, _ in parsed.scripts].count("text/javascript") == 3
    assert "img" not in parsed.tags
    assert "<img src=x" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "{{7*7}}" in parsed.text, "a template expression in data is not evaluated"
    assert "\u202e" not in text
    assert "</script><script>alert(1)</script>" in parsed.text, "shown as it is"
    for kind, key, body in parsed.scripts:
        if kind == "application/json":
            assert "<" not in body, key
            json.loads(body)
    for link in (v for v in parsed.values("href") if v.startswith("data:text/csv")):
        assert not re.search(r"(^|,)=cmd", unquote(link), flags=re.M)


def test_figure_json_escapes_what_ends_a_script():
    assert page.json_block('{"a": "</script>\u2028&"}') == '{"a": "\\u003c/script\\u003e\\u2028\\u0026"}'
    assert json.loads(page.json_block({"a": "</script>&\u2029"})) == {"a": "</script>&\u2029"}


def test_links_in_citations_are_https_only(parsed):
    outside = [v for v in parsed.values("href") if not v.startswith(("#", "data:text/csv"))]
    assert outside
    assert all(v.startswith("https://") for v in outside)


def test_an_analysis_that_is_not_installed_is_shown_by_the_default_figures():
    result = Result("not_installed_here")
    frame = pd.DataFrame({"layer": [0, 1, 2], "value": [1.0, 2.0, 4.0]})
    result.add_table("curve", frame, (Column("layer", "layer", "Layer."), Column("value", "value", "Value.")))
    result.add_scalar("best", 3, "count", "A number.")
    text = Page(build.render([result])).text
    assert "Not installed here" in text
    assert "not stored" in text
    assert "Curve" in text


def test_a_view_that_fails_leaves_a_message_and_the_table(stored, monkeypatch):
    from sparsescope.analysis.activation_sparsity import views

    def broken(result):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(views, "concentration", broken)
    text = build.render([stored])
    assert "could not be drawn (RuntimeError)" in text
    assert "/secret/path" not in text
    assert text.count("data-figure=") == len(analyses().get("activation_sparsity").views) - 1


def test_several_results_share_one_bundle_and_are_put_side_by_side(synthetic, tmp_path):
    first = synthetic.store_result(tmp_path, synthetic.activation_result(layers=3))
    second = synthetic.store_result(
        tmp_path, synthetic.activation_result("pythia-70m", layers=3, seed=2), weight="2e" * 32
    )
    text = build.render([Store(tmp_path).open(run_id) for run_id in (first, second)])
    parsed = Page(text)
    assert [kind for kind, _, _ in parsed.scripts].count("text/javascript") == 3
    assert "Activation sparsity of 2 models" in parsed.text
    assert "side by side" in parsed.text
    ids = parsed.values("id")
    assert len(ids) == len(set(ids)), "anchors are unique"
    targets = {v[1:] for v in parsed.values("href") if v.startswith("#")}
    assert targets <= set(ids)


def test_sections_of_one_model_are_told_apart_by_corpus(synthetic, tmp_path):
    results = []
    for name, digest in (("docs", "ab" * 32), ("code", "cd" * 32)):
        corpus = synthetic.corpus_description(name, digest)
        run_id = synthetic.store_result(tmp_path, synthetic.activation_result(layers=2), corpus=corpus)
        results.append(Store(tmp_path).open(run_id))
    text = Page(build.render(results)).text
    for name in ("docs", "code"):
        assert text.count(f"Activation sparsity · smollm2-135m · {name}") == 3, (
            "in the contents, beside its finding and above"
        )


def test_build_writes_atomically_and_names_the_path(stored, tmp_path, monkeypatch):
    target = tmp_path / "sub" / "report.html"
    assert build.build([stored], target) == target
    assert target.read_text().startswith("<!doctype html>")
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(ArtifactError, match="cannot write the report"):
        build.build([stored], blocked / "report.html")


def test_a_report_of_nothing_says_what_to_run():
    with pytest.raises(SpecError) as error:
        build.render([])
    assert "sparsescope run" in error.value.next_step


@pytest.mark.parametrize(
    ("given", "said"), [("gguf:Q4_1", "dequantized from gguf:Q4_1"), ("float32", "float32"), (None, None)]
)
def test_origin_in_words(given, said):
    assert origin_text(given) == said


def test_tables_shared_by_views_stand_once(stored):
    found = section(stored, "s")
    shown = [figure.table.name for figure in found.figures if figure.table]
    assert len(shown) == len(set(shown))
    assert [block.name for block in found.tables] == ["units"]


def test_downloads_keep_to_their_budget(stored):
    found = section(stored, "s", budget=240_000)
    for block in [*found.tables, *(f.table for f in found.figures if f.table)]:
        assert block.download_rows in {block.total, min(800, block.total)}
        assert len(block.download) < 240_000


def test_one_figure_as_a_page(stored):
    figure = stored.view("frequency")
    parsed = Page(page.figure_page(figure, title="<b>x", source="run r"))
    assert len(parsed.scripts) == 5
    assert figure.layout.meta["alt"] in parsed.values("aria-label")


def test_the_glossary_states_the_half_normal_share(parsed):
    from scipy.stats import chi2, norm

    # Entries above t hold 90 % of the energy where the chi-square CDF (3 degrees of freedom) is 0.1 at t^2.
    share = 2 * norm.sf(chi2.ppf(0.1, 3) ** 0.5)
    assert f"yet {100 * share:.0f} % of its entries hold 90 % of its energy" in parsed.text


def test_the_same_run_stands_once(stored, tmp_path):
    text = build.render([stored, stored])
    assert text.count('<section id="s0">') == 1 and '<section id="s1">' not in text


def test_a_report_that_would_be_too_large_keeps_its_numbers_and_names_the_command(synthetic, monkeypatch):
    results = [synthetic.activation_result(f"model-{n}") for n in range(3)]
    whole, first = build.render(results), section(results[0], "s0", budget=CSV_BUDGET // 3)
    monkeypatch.setattr("sparsescope.reporting.sections.PAGE_BUDGET", first.nbytes)
    small = build.render(results)
    assert 0.7 < (len(whole) - len(small)) / (2 * first.nbytes) <= 1.1, "the estimate, and what goes"
    assert "The figures of 2 of 3 runs" in small and "left out" not in whole.split("<main")[1][:4000]
    drawn = [Page(text) for text in (whole, small)]
    figures = len(first.figures)
    assert [len(page.values("data-figure")) for page in drawn] == [3 * figures, figures]
    for table in results[2].tables:  # the tables are still there, with their first rows
        assert drawn[1].text.count(f"Table {table.replace('_', ' ')}") == 3
    for entry in (*first.cards, *first.others):
        assert drawn[1].text.count(entry.label) >= 3, "every number"
    anchors = {value for _, name, value in drawn[1].attributes if name == "id"}
    links = [
        value[1:]
        for tag, name, value in drawn[1].attributes
        if tag == "a" and name == "href" and value[:1] == "#"
    ]
    assert set(links) <= anchors
    assert drawn[1].text.count("To see them: ") == 2


def test_a_full_disk_is_told_by_what_was_written(stored, tmp_path, monkeypatch):
    """A report goes where the user said; only runs go to the folder of runs."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sparsescope.core.files.write_file", full)
    with pytest.raises(ArtifactError, match="cannot write the report") as caught:
        build.build([stored], tmp_path / "r.html")
    assert "another path" in caught.value.next_step and "SPARSESCOPE_HOME" not in caught.value.next_step
    monkeypatch.setattr("sparsescope.core.run_store.write_file", full)
    with pytest.raises(ArtifactError, match="folder of runs") as caught:
        Store(tmp_path / "runs").check_writable()
    assert "SPARSESCOPE_HOME" in caught.value.next_step

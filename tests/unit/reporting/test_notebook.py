"""A study as a notebook: what the shipped ones hold, that they run, what strings of a study can do
(nothing), what is refused.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from markdown_it import MarkdownIt

import sparsescope as ss
from sparsescope.errors import DependencyError, SparsescopeError, SpecError
from sparsescope.reporting import notebook as notebooks
from sparsescope.reporting.narrative import narrative_markdown, plain_markdown
from sparsescope.reporting.notebook import execute_notebook, study_notebook, write_notebook
from sparsescope.runner.study import Declaration, Study, StudyResult, StudyRun, load_study

ROOT = Path(__file__).resolve().parents[3]
STUDIES = sorted(path.parent.name for path in (ROOT / "analyses").glob("*/study.toml"))
MODELS = {"bergamot-en-pt": "random-opt", "minilm-l6": "random-gpt2", "smollm2-135m": "random-llama"}
PER_LAYER = {"analysis": "activation_sparsity", "table": "per_layer"}
ABOVE = {"analysis": "activation_sparsity", "relation": ">"}
FEW = {"tokens": "300", "context": "64"}


def declared(**changes):
    values = {
        "name": "toy",
        "title": "Toy",
        "question": "Which?",
        "subject": [{"name": "m1", "label": "First"}, {"name": "m2"}],
        "analysis": [{"name": "activation_sparsity"}],
        "figure": [
            PER_LAYER | {"where": {"metric": "gini"}, "title": "Gini", "caption": "How."},
            PER_LAYER | {"where": {"metric": "absent"}, "title": "Nothing"},
        ],
        "finding": [ABOVE | {"label": "dense", "scalar": "mean_gini", "subject": "m1", "value": 0}],
    }
    return Declaration.model_validate(values | changes)


def cells(made, kind):
    return [cell for cell in made.cells if cell.cell_type == kind]


def shown(cell):
    """What a code cell shows, by MIME type."""
    return {mime: data for output in cell.outputs for mime, data in output.get("data", {}).items()}


# -- the shipped notebooks ------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_notebook_is_what_the_command_writes(name, tmp_path):
    shipped = ROOT / "analyses" / name / f"{name}.ipynb"
    # In another folder, where the study has the same name because it comes with sparsescope.
    again = write_notebook(load_study(shipped.parent), tmp_path / "x.ipynb", execute=False)
    told = f"write it again: sparsescope study {name} --notebook analyses/{name}/{name}.ipynb --no-execute"
    assert again.read_text() == shipped.read_text(), told
    made = nbformat.read(shipped, as_version=4)
    nbformat.validate(made)
    study = load_study(shipped.parent).declared
    figures = [cell.source for cell in cells(made, "code") if "ss.figure" in cell.source]
    findings = [cell.source for cell in cells(made, "code") if ".findings[" in cell.source]
    assert len(figures) == len(study.figures) and len(findings) == len(study.findings)
    assert not any(cell.outputs or cell.execution_count for cell in cells(made, "code"))


def thinned(source, target, keep=2):
    """Copy a series with some checkpoints, the first and the last among them."""
    target.mkdir()
    series = json.loads((source / "series.json").read_text())
    last = len(series["checkpoints"]) - 1
    series["checkpoints"] = [series["checkpoints"][last * n // (keep - 1)] for n in range(keep)]
    (target / "series.json").write_text(json.dumps(series))
    for name in (*series["files"], *(checkpoint["file"] for checkpoint in series["checkpoints"])):
        shutil.copyfile(source / name, target / name)


def on_a_small_budget(name, folder):
    """Copy a study and its shipped notebook, with random models, few checkpoints, few tokens and few samples.

    A model that is not shipped becomes a random one of the same activation function; of a series the first
    and the last checkpoint stay.
    """
    home = folder / "analyses" / name
    home.mkdir(parents=True)
    study, notebook = (
        (ROOT / "analyses" / name / file).read_text() for file in ("study.toml", f"{name}.ipynb")
    )
    swaps, few = dict(MODELS), dict(FEW)
    if name == "pruned_small_models":  # read as models, not as series
        swaps |= {"lazy-relu": "random-opt", "lazy-swiglu": "random-llama", "bytes-moe": "random-olmoe"}
    if name in ("pruned_small_models", "essential_sparsity"):  # documents for three purposes
        few["tokens"] = "3000"
        study = study.replace("tokens = 20480", "tokens = 256").replace(" tokens = 12288", " tokens = 256")
        study = study.replace("document_tokens = 384", "document_tokens = 64")
        study = re.sub(r"(calibration_draw = \d)", r"\1, calibration_tokens = 64", study)
        study = re.sub(r"calibration_tokens = (\d)\d{3,}", r"calibration_tokens = 7\1", study)
        study = study.replace("finetune_steps = 200", "finetune_steps = 2, calibration_tokens = 64")
    if name == "pathways":  # six checkpoints: power needs some, and correlations
        study = study.replace("samples = 512", "samples = 40, least_samples = 20, permutations = 19")
        study = re.sub(r"^params\.pathways = \{.*?\}$", "", study, flags=re.M | re.S)
        for recipe in ("moe.toml", "moe_wd0.toml"):
            text = (ROOT / "analyses" / name / recipe).read_text()
            text = re.sub(r"checkpoints = \[.*?\]", "checkpoints = [0, 2, 4, 6, 8, 10]", text, flags=re.S)
            text = re.sub(r"^steps = .*$", "steps = 10", text, flags=re.M)
            (home / recipe).write_text(re.sub(r"^log_every = .*$", "log_every = 2", text, flags=re.M))
    if name == "blockffn":  # a twin of one seed beside each
        study = re.sub(r"^(seed\d|dense\d|half|double) = .*\n", "", study, flags=re.M)
        study = re.sub(
            r"inputs = \{ series = \[.*?\] \}", 'inputs = { series = ["recipe:dense"] }', study, flags=re.S
        )
        for recipe in (ROOT / "analyses" / name).glob("*.toml"):
            text = recipe.read_text().replace("800", "2").replace("log_every = 100", "log_every = 2")
            text = text.replace(', "python-source", "kjv"]', "]\nmax_domain_bytes = 200000")
            if recipe.name != "study.toml":
                (home / recipe.name).write_text(text)
    if name == "expert_specialization":
        study = study.replace(
            "ablation_tokens = 32768", "ablation_tokens = 128, alike = 16, random_orders = 1"
        )
    if name == "dictionaries":
        few["tokens"] = "4000"
        study = study.replace("loss_tokens = 4096, ", "").replace("+kjv", "")
        study, notebook = (text.replace("4608", "128") for text in (study, notebook))
        for recipe in (ROOT / "analyses" / name).glob("*.toml"):
            if recipe.name != "study.toml":
                text = recipe.read_text().replace("smollm2-135m", MODELS["smollm2-135m"])
                for old, new in (
                    ("+kjv", ""),
                    ("blocks.15", "blocks.1"),
                    ("4608", "128"),
                    ("= 1024", "= 128"),
                ):
                    text = text.replace(old, new)
                text = re.sub(r"^tokens = .*$", "tokens = 3000\\ncontext = 64", text, flags=re.M)
                (home / recipe.name).write_text(text.replace("width = 100", "width = 8"))
    if name in ("features", "steering"):
        few["tokens"] = "4000"
        study = study.replace("+kjv", "").replace("wordnet-nouns", "python-source+python-docs")
        study = study.replace(
            "levels = [50, 20]", "levels = [4, 2], permutations = 20, queries = 0, map = false"
        )
        if name == "steering":
            small = "targets = [0.01], own_documents = 1, other_documents = 2, neutral_documents = 1"
            study = study.replace("concepts = 20", f"concepts = 2, {small}, document_tokens = 24")
        for recipe in (ROOT / "analyses" / name).glob("*.toml"):
            if recipe.name != "study.toml":
                text = recipe.read_text().replace("smollm2-135m", MODELS["smollm2-135m"])
                for old, new in (
                    ("+kjv", ""),
                    ("wordnet-nouns", "python-source+python-docs"),
                    ("blocks.15", "blocks.1"),
                    ("4608", "64"),
                    ("k = 32", "k = 8"),
                    ("= 1024", "= 128"),
                    ("width = 100", "width = 8"),
                ):
                    text = text.replace(old, new)
                text = re.sub(r"^tokens = .*$", "tokens = 3000\ncontext = 64", text, flags=re.M)
                (home / recipe.name).write_text(text)
    if name == "convergent_learning":
        study = study.replace(
            "earlier = 5", "earlier = 1, targets = 12, shifts = 4, path_shifts = 1, rows = 400"
        )
        study = re.sub(
            r"^inputs = \{ series = .*$", 'inputs = { series = ["grokking-short-seed1"] }', study, flags=re.M
        )
    if name == "sparse_inference":
        few["tokens"] = "3000"
        small = (
            'compare_at = [0.25, 0.5], prefixes = ["all_sparse"], tokens = 256, calibration_tokens = 256, '
            "development_tokens = 64, document_tokens = 64, choose = false, detail_methods = "
        )
        study = study.replace("tokens = 60000", "tokens = 3000")
        study = re.sub(r"targets = \[[^]]*\]", "targets = [0.25, 0.5]", study)
        study = re.sub(r"(compare_at|prefixes) = \[[^]]*\], ", "", study)
        study = study.replace("detail_methods = []", f"{small}[]")
        first = f'params = {{ targets = [0.25, 0.5], {small}["teal", "wina"], prompts = 0, pruned = 0.0 }}'
        entry = '[[analysis]]\nname = "sparse_inference"\n'
        study = study.replace(entry, f"{entry}{first}\n", 1)
    for subject in load_study(ROOT / "analyses" / name).declared.subjects:
        if subject.name not in swaps and (ROOT / "data" / "models" / subject.name).is_dir():
            source, keep = ROOT / "data" / "models" / subject.name, 6 if name == "pathways" else 2
            thinned(source, home / subject.name, keep)
            swaps[subject.name] = f"./{subject.name}"
    for old, new in swaps.items():
        # but not where a study has the name of its model
        head, study = study.split("\n[[subject]]", 1)
        study = re.sub(rf'"(shuffled:)?{old}"', rf'"\g<1>{new}"', study)
        study = f"{head}\n[[subject]]{study}"
        notebook = re.sub(rf'(?<!ss\.study\()\\"(shuffled:)?{old}\\"', rf'\\"\g<1>{new}\\"', notebook)
    study = re.sub(r"^params\.grokking = \{.*?\}$", "", study, flags=re.M | re.S)
    study = re.sub(
        r"^(tokens|context) = .*$", lambda found: f"{found[1]} = {few[found[1]]}", study, flags=re.M
    )
    if name in ("lazy_neurons_emerge", "blockffn"):  # a short text in place of the one that the series carry
        study = study.replace("[[subject]]", '[[subject]]\ncorpus = "python-docs"').replace(
            "question =", "tokens = 300\nquestion ="
        )
    params = {
        "grokking": "surrogates = 19, draws = 100",
        "pathways": "resamples = 60, null_draws = 2, draws = 100",
        "dictionaries": "resamples = 100, loss_tokens = 200, probe_rows = 100, permutations = 1",
    }.get(name, "resamples = 100")
    first, *blocks = study.split("[[analysis]]")
    blocks = [
        block.replace("params = {", f"params = {{ {params},", 1)
        if "params = {" in block.partition("\n[[")[0]
        else f"\nparams = {{ {params} }}{block}"
        for block in blocks
    ]
    study = "[[analysis]]".join([first, *blocks])
    (home / "study.toml").write_text(study)
    (home / f"{name}.ipynb").write_text(notebook)
    return home / f"{name}.ipynb"


@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = on_a_small_budget(name, tmp_path)
    made = nbformat.read(path, as_version=4)
    execute_notebook(made, path.parent, tmp_path / "runs")
    study = load_study(path.parent).declared
    runs = len(study.subjects) * len(study.analyses)
    assert len(list((tmp_path / "runs").glob("*/manifest.json"))) == runs, (
        "the runs of the copy, each of them"
    )
    by_id = {cell.id: cell for cell in cells(made, "code")}
    assert "failed" not in "".join(output.text for output in by_id["study"].outputs)
    assert all(shown(cell) or cell.id == "study" for cell in by_id.values())
    for index in range(len(study.figures)):
        bundle = shown(by_id[f"figure-{index}"])
        assert (
            bundle["application/vnd.plotly.v1+json"]["layout"]["title"]["text"]
            and "Plotly.newPlot" in bundle["text/html"]
        )
    drawn = [
        trace
        for i in range(len(study.figures))
        for trace in figure(by_id[f"figure-{i}"])["data"]
        if trace.get("showlegend")
    ]
    assert len(drawn) >= len(study.subjects)
    for index, finding in enumerate(study.findings):
        html = shown(by_id[f"finding-{index}"])["text/html"]
        assert re.match(r"<p><b>(Holds|Does not hold|Not checked):</b>", html), finding.label
    checked = [shown(by_id[f"finding-{i}"])["text/html"] for i in range(len(study.findings))]
    assert sum("Not checked" in html for html in checked) <= len(checked) // 2
    for index in range(runs):
        assert figure(by_id[f"result-{index}"])["data"], "a result draws its first view"
    whole = json.dumps(made)
    assert str(tmp_path) not in whole and str(Path.home()) not in whole and "Traceback" not in whole


def figure(cell):
    return shown(cell)["application/vnd.plotly.v1+json"]


# -- execution ------------------------------------------------------------------------------------

STUDY = """
name = "toy"
title = "Two subjects"
question = "Which?"
corpus = "python-docs"
tokens = 300
context = 64
[[subject]]
name = "random-opt"
label = '''<img src=x onerror=alert(1)> $x$'''
[[subject]]
name = "nobody/nothing"
[[analysis]]
name = "activation_sparsity"
params = { resamples = 100 }
[[figure]]
analysis = "activation_sparsity"
table = "per_layer"
title = '''"), __import__("os").system("touch hacked"), ("'''
[[finding]]
label = "The second is sparse"
analysis = "activation_sparsity"
scalar = "mean_nonzero"
subject = "nobody/nothing"
relation = "<"
value = 1
"""


def test_a_notebook_of_a_failed_subject_and_hostile_words(tmp_path, monkeypatch):
    """One kernel for all of it: what failed is said, nothing is injected, no module is taken from the
    folder of the notebook.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "study.toml").write_text(STUDY)
    for module in ("sparsescope", "ipykernel_launcher", "torch", "traitlets"):
        (tmp_path / f"{module}.py").write_text(
            "from pathlib import Path\nPath('hacked').touch()\nraise SystemExit\n"
        )
    path = write_notebook(load_study(tmp_path / "study.toml"), tmp_path / "toy.ipynb", home=tmp_path / "runs")
    assert not (tmp_path / "hacked").exists()
    by_id = {cell.id: cell for cell in cells(nbformat.read(path, as_version=4), "code")}
    assert by_id["study"].source.endswith('study = ss.study("study.toml", say=print)')
    numbers = shown(by_id["numbers"])["text/html"]
    assert "These runs failed" in numbers and "nobody/nothing" in numbers
    assert "&lt;img src=x" in numbers and "<img" not in numbers and "$" not in numbers
    assert "was not measured" in shown(by_id["finding-0"])["text/html"]
    assert "was not measured" in figure(by_id["figure-0"])["layout"]["title"]["text"] + json.dumps(
        figure(by_id["figure-0"])
    )
    assert "text/html" in shown(by_id["result-0"]) and not by_id["result-1"].outputs, "None shows nothing"


def test_a_cell_that_fails_is_an_error_with_its_words(tmp_path):
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(SparsescopeError, match="division by zero"):
        execute_notebook(made, tmp_path, tmp_path / "runs")


# -- words of a study -----------------------------------------------------------------------------


def test_names_in_code_cells_are_literals(hostile_strings):
    from sparsescope.core.escaping import well_formed

    strings = [well_formed(text)[:200] for text in hostile_strings.STRINGS.values() if text]
    base = declared().figures[0].model_dump()
    figures, subjects = (
        [base | {"title": text} for text in strings[:60]],
        [{"name": text} for text in strings],
    )
    study = Study(Path("study.toml"), declared(figure=figures, subject=subjects, finding=[]), "")
    made = study_notebook(study, Path.cwd())
    allowed = {
        ast.Module,
        ast.Import,
        ast.alias,
        ast.Assign,
        ast.Expr,
        ast.Call,
        ast.Attribute,
        ast.Name,
        ast.Load,
        ast.Store,
        ast.Constant,
        ast.keyword,
    }
    first = []
    for cell in cells(made, "code"):
        nodes = list(ast.walk(ast.parse(cell.source)))
        assert {type(node) for node in nodes} <= allowed
        assert all(line.isprintable() for line in cell.source.split("\n"))
        first += [
            next(a.value for a in node.args if isinstance(a, ast.Constant))
            for node in nodes
            if isinstance(node, ast.Call)
        ]
    assert first[1:] == [entry.title for entry in study.declared.figures] + [
        entry.name for entry in study.declared.subjects
    ]


def rendered(markdown):
    """Markdown as the most lenient reader shows it: with HTML, images and any link."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)


def test_words_in_markdown_cells_stay_words(hostile_strings):
    for name, text in hostile_strings.STRINGS.items():
        for made in (plain_markdown(text), narrative_markdown(text)):
            html = rendered(made)
            tags = set(re.findall(r"<(/?\w+)", html))
            assert not {tag.strip("/") for tag in tags} & {
                "script",
                "img",
                "a",
                "svg",
                "iframe",
                "style",
                "b",
                "meta",
                "input",
            }, name
            assert (
                "$" not in made
                and not re.search(r"\\[(\[]", html)
                and "\u202e" not in made
                and "\0" not in made
            )
            assert not re.search(r"(http|ftp)://|www\.", made, re.IGNORECASE), f"{name}: a bare address"
        assert rendered(f"x {plain_markdown(text)}").count("<") == 2, (
            f"{name}: one paragraph and nothing in it"
        )


@pytest.mark.parametrize(
    "text",
    [
        "# a",
        "- a",
        "+ a",
        "1. a",
        "2) a",
        "* a",
        "> a",
        "---",
        "===",
        "```",
        "| a | b |",
        "a *b* _c_ `d` ~~e~~ [f] http://g",
    ],
)
def test_plain_text_is_no_markdown(text):
    from html import unescape

    assert unescape(rendered(plain_markdown(text))) == f"<p>{text}</p>\n"


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        (
            "# Title\n\n## Part\n\nSome *words* and `a < b`.",
            "<h2>Part</h2>\n<p>Some <em>words</em> and <code>a &lt; b</code>",
            "Title",
        ),
        ("[x](https://good.example)", 'href="https://good.example"', "javascript"),
        ("[x](#part) and [y]\n\n[y]: https://good.example", 'href="https://good.example"', "javascript"),
        ("[x](javascript:alert(1))", "[x] (javascript", "href"),
        ("[x]( \n javascript:alert(1))", "[x] (", "href"),
        ("[x](\\\n<javascript:alert(1)>)", "[x]", "href"),
        ("[x][y]\n\n[y]: javascript:alert(1)", "[x][y]", "href"),
        ("![x](https://evil.example/x.png)", "! <a", "<img"),
        ("![x][y]\n\n[y]: https://evil.example/x.png", "! <a", "<img"),
        ("\\<script>alert(1)</script>", "script", "<script"),
        ("\\![x](https://evil.example/x.png)", "x", "<img"),
        ("```\n<i>\n```\n\n    <b>", "‹i&gt;", "<i>"),
        ("<https://good.example> <a@b.c>", "‹https", "<a"),
        ("\\\\(x\\\\) $y$ \\begin{z}", "＼＼(x", "\\begin"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n\n- one", "<td>1</td>", "Title"),
    ],
)
def test_the_narrative_keeps_its_words_and_loses_its_markup(text, kept, gone):
    html = rendered(narrative_markdown(text))
    assert kept in html and gone not in html


# -- figures and packages -------------------------------------------------------------------------


@pytest.fixture
def outcome(synthetic):
    study = Study(Path("study.toml"), declared(), "")
    first, second = study.declared.subjects
    return StudyResult(
        study,
        [
            StudyRun(first, "activation_sparsity", synthetic.activation_result("m1", layers=6)),
            StudyRun(second, "activation_sparsity", error=SpecError("too little memory")),
        ],
    )


def test_a_declared_figure_by_title_and_by_place(outcome):
    assert (
        ss.figure(outcome, "Gini").to_json()
        == ss.figure(outcome).to_json()
        == ss.figure(outcome, 0).to_json()
    )
    assert {trace.name for trace in ss.figure(outcome).data if trace.showlegend} == {"First"}
    assert "has rows for this figure" in ss.figure(outcome, "Nothing").to_json()


@pytest.mark.parametrize(("which", "said"), [("Gin", "'Gini'"), (2, "0 to 1"), (-1, "0 to 1")])
def test_a_figure_that_is_not_declared(outcome, which, said):
    with pytest.raises(SpecError, match=said):
        ss.figure(outcome, which)


def test_an_outcome_shows_itself(outcome):
    html = outcome._repr_html_()
    assert "<th>First</th>" in html and "too little memory" in html and "<td>" in html
    assert repr(outcome) == "StudyResult(toy: 1 of 2 runs)"
    assert (
        outcome.findings[0]
        ._repr_html_()
        .startswith("<p><b>Holds:</b> mean gini of First above 0.<br>Measured: ")
    )


def test_figures_of_one_title_are_told_apart():
    same = [entry.model_dump() | {"title": "Same"} for entry in declared().figures]
    made = study_notebook(Study(Path("study.toml"), declared(figure=same), ""), Path.cwd())
    assert [cell.source for cell in cells(made, "code") if "figure(" in cell.source] == [
        "ss.figure(study, 0)",
        "ss.figure(study, 1)",
    ]


def test_a_study_is_named_by_its_path_where_it_has_no_name(tmp_path):
    home = tmp_path / "analyses" / "toy"
    for folder, said in (
        (home, '"toy"'),
        (tmp_path, '"toy"'),
        (tmp_path.parent, f'"{tmp_path.name}/analyses/toy/study.toml"'),
    ):
        assert f"ss.study({said}," in study_notebook(written(home), folder).cells[2].source


def written(home):
    home.mkdir(parents=True, exist_ok=True)
    (home / "study.toml").write_text(STUDY)
    return load_study(home)


@pytest.mark.parametrize("missing", ["nbformat", "nbclient", "ipykernel"])
def test_without_the_packages(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DependencyError, match=r"sparsescope\[notebook\]"):
        notebooks.check_packages()


# -- a reader's own notebook ----------------------------------------------------------------------


def test_a_result_keeps_its_figures_where_a_notebook_is_converted(tmp_path):
    """Plotly alone would store its JSON, which HTML made by nbconvert does not show; and a text is short."""
    code = (
        "import plotly.io\n"
        "import sparsescope as ss\n"
        "plotly.io.renderers.default = 'plotly_mimetype'  # what plotly chooses in a kernel\n"
        "text = ss.corpus(['one two three four ' * 50 + str(n) for n in range(9)], tokens=200, context=64)\n"
        "ss.run('activation_sparsity', ss.load('random-llama'), text, resamples=100)",
        "text",
    )
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in code])
    execute_notebook(made, tmp_path, tmp_path / "runs")
    drawn = [
        output["data"]
        for output in made.cells[0].outputs
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert len(drawn) == 1 and "Plotly.newPlot" in drawn[0]["text/html"]
    assert len(shown(made.cells[1])["text/plain"]) < 300 and "<table>" in shown(made.cells[1])["text/html"]

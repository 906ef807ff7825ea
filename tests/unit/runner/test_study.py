"""A study file: what is accepted, what is refused and how, how it is found, and what running it gives."""

from __future__ import annotations

import math

import pytest

import sparsescope as ss
from sparsescope.core.run_store import Store
from sparsescope.errors import SpecError
from sparsescope.runner import study as studies
from sparsescope.runner.study import load_study
from sparsescope.runner.study_checks import check_study
from sparsescope.runner.study_run import cost_text

HEAD = """
name = "toy"
title = "Two random models"
question = "Which of two random models is sparser?"
corpus = "python-docs"
tokens = 400
context = 64
"""
SUBJECTS = """
[[subject]]
name = "random-opt"
label = "OPT"
[[subject]]
name = "shuffled:random-opt"
label = "OPT shuffled"
control_of = "random-opt"
"""
ANALYSIS = """
[[analysis]]
name = "activation_sparsity"
params = { resamples = 100 }
"""
FIGURE = """
[[figure]]
analysis = "activation_sparsity"
table = "per_layer"
where = { metric = "gini" }
low = "low"
high = "high"
title = "Gini"
"""
FINDING = """
[[finding]]
label = "half of the units are active"
analysis = "activation_sparsity"
scalar = "mean_nonzero"
subject = "random-opt"
relation = "between"
value = [0.4, 0.6]
"""
WHOLE = HEAD + SUBJECTS + ANALYSIS + FIGURE + FINDING


def write(folder, text, readme=None):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if readme is not None:
        (folder / "README.md").write_text(readme)
    return path


def refused(tmp_path, text):
    with pytest.raises(SpecError) as caught:
        check_study(load_study(write(tmp_path, text)))
    return caught.value


def test_a_whole_file_is_read(tmp_path):
    study = load_study(write(tmp_path, WHOLE, "# Title\nwords"))
    check_study(study)
    assert (
        study.narrative == "# Title\nwords" and study.declared.seed == 0 and study.declared.dtype == "float32"
    )
    assert [s.control_of for s in study.declared.subjects] == [None, "random-opt"]
    assert study.subject("shuffled:random-opt").title == "OPT shuffled"
    assert "2 subjects x 1 analysis = 2 runs" in cost_text(study)
    assert load_study(tmp_path).declared == study.declared, "a folder names its file"


@pytest.mark.parametrize(
    ("old", "new", "where", "said"),
    [
        ('title = "Two', 'titel = "Two', "titel", "did you mean 'title'"),
        ('label = "OPT"', 'lable = "OPT"', "subject[0].lable", "did you mean 'label'"),
        ("tokens = 400", 'tokens = "400"', "tokens", "valid integer"),
        ("tokens = 400", "tokens = true", "tokens", "valid integer"),
        ("tokens = 400", "tokens = 0", "tokens", "greater than or equal to 1"),
        ('name = "toy"', 'name = "../toy"', "name", "pattern"),
        ('question = "Which of two random models is sparser?"', "", "question", "missing"),
        ('relation = "between"', 'relation = "about"', "finding[0].relation", "between"),
        ("value = [0.4, 0.6]", "value = 0.5", "finding[0]", "[low, high]"),
        ("value = [0.4, 0.6]", "value = [0.6, 0.4]", "finding[0]", "wrong order"),
        ("value = [0.4, 0.6]", "value = [nan, 0.4]", "finding[0].value", "finite"),
        ("value = [0.4, 0.6]", "times = 2.0", "finding[0]", "come together"),
        (
            "value = [0.4, 0.6]",
            'value=[0.4,0.6]\ntimes=2.0\nother_subject="random-opt"',
            "finding[0]",
            "either value",
        ),
        ('low = "low"\n', "", "figure[0]", "low and high"),
        ('name = "random-opt"', 'name = "random-otp"', "subject[0].name", "random-opt"),
        ('control_of = "random-opt"', 'control_of = "random-op"', "subject[1].control_of", "random-opt"),
        (
            'name = "activation_sparsity"',
            'name = "activation_sparsty"',
            "analysis[0].name",
            "activation_sparsity",
        ),
        ("resamples = 100", "resample = 100", "analysis[0].params", "resamples"),
        ("resamples = 100", "resamples = 1", "analysis[0].params", "100"),
        ('table = "per_layer"', 'table = "per_layr"', "figure[0].table", "per_layer"),
        ('low = "low"', 'low = "lwo"', "figure[0].low", "low"),
        ('low = "low"', 'low = "site"', "figure[0].low", "cannot be drawn"),
        ('metric = "gini"', 'metrik = "gini"', "figure[0].where.metrik", "metric"),
        ('subject = "random-opt"', 'subject = "random-gpt2"', "finding[0].subject", "random-opt"),
        ('corpus = "python-docs"', 'corpus = "python-dosc"', "corpus", "python-docs"),
        ('corpus = "python-docs"', 'corpus = "/etc/passwd"', "corpus", "inside"),
        ('corpus = "python-docs"', 'corpus = "../x.txt"', "corpus", "inside"),
        ('corpus = "python-docs"', 'corpus = "absent.txt"', "corpus", "study's folder"),
        ('corpus = "python-docs"', 'corpus = "generated@8:python-dosc"', "corpus", "python-docs"),
        ('corpus = "python-docs"', 'corpus = "generated@8:../x.txt"', "corpus", "inside"),
        ('corpus = "python-docs"', 'corpus = "generated@new=0:python-docs"', "corpus", "equal to 2"),
        ('name = "random-opt"', 'name = "../model.gguf"', "subject[0].name", "inside"),
        ('name = "random-opt"', 'name = "shuffled:/model"', "subject[0].name", "inside"),
        (
            'name = "activation_sparsity"',
            'id = "tight"\nname = "activation_sparsity"',
            "figure[0].analysis",
            "tight",
        ),
        (
            'name = "activation_sparsity"',
            'id = ""\nname = "activation_sparsity"',
            "analysis[0].id",
            "at least 1",
        ),
        ("value = [0.4, 0.6]", 'other_analysis = "activation_sparsity"', "finding[0]", "come together"),
        (
            'relation = "between"\nvalue = [0.4, 0.6]',
            'relation = "<"\ntimes = 1.0\nother_analysis = "activation_sparsity"',
            "finding[0]",
            "with itself",
        ),
        (
            'relation = "between"\nvalue = [0.4, 0.6]',
            'relation = "<"\ntimes = 1.0\nother_analysis = "activation_sparse"',
            "finding[0].other_analysis",
            "did you mean 'activation_sparsity'",
        ),
    ],
)
def test_what_is_wrong_is_named_with_file_key_and_what_is_allowed(tmp_path, old, new, where, said):
    assert WHOLE.count(old) >= 1
    error = refused(tmp_path, WHOLE.replace(old, new, 1))
    assert str(tmp_path / "study.toml") in error.where and where in error.where
    assert said in error.message()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"name = [", "not a TOML file"),
        (b"\xff", "not UTF-8"),
        (b"x = " + b"[" * 5000, "not a TOML file"),
        (b"# " + b"x" * 300_000, "too large"),
    ],
    ids=["syntax", "bytes", "deep", "large"],
)
def test_a_file_that_is_no_study(tmp_path, text, said):
    assert said in refused(tmp_path, text).message()


def test_a_subject_may_read_fewer_tokens(tmp_path):
    text = WHOLE.replace('control_of = "random-opt"', 'control_of = "random-opt"\ntokens = 300')
    found = load_study(write(tmp_path, text))
    assert "each subject on 300 to 400 tokens" in cost_text(found)
    outcome = ss.study(found.path)
    read = [run.result.provenance["corpus"]["tokens"] for run in outcome.runs]
    assert read == [400, 300]


@pytest.mark.parametrize("source", ["python-docs", "own.txt"])
def test_a_text_may_be_written_by_each_subject(tmp_path, source):
    (tmp_path / "own.txt").write_text("\f".join(f"a document, number {n} of them" for n in range(30)))
    text = WHOLE.replace('"python-docs"', f'"generated@prompt=8,new=12:{source}"')
    runs = ss.study(write(tmp_path, text)).runs
    described = [run.result.provenance["corpus"] for run in runs]
    assert [corpus["written_by"]["id"] for corpus in described] == ["random-opt", "shuffled:random-opt"]
    assert {corpus["name"] for corpus in described} == {f"generated@prompt=8,new=12:{source.split('.')[0]}"}
    assert [corpus["tokens"] for corpus in described] == [400, 400]


def test_too_many_runs_and_double_names(tmp_path):
    many = "".join(f'[[subject]]\nname = "random-opt@{n}"\n' for n in range(studies.MAX_RUNS + 1))
    assert "too many runs" in refused(tmp_path, HEAD + many + ANALYSIS).what
    assert "must differ" in refused(tmp_path, HEAD + SUBJECTS + SUBJECTS + ANALYSIS).what
    chain = '[[subject]]\nname = "random-gpt2"\ncontrol_of = "shuffled:random-opt"\n'
    assert "control of a control" in refused(tmp_path, HEAD + SUBJECTS + chain + ANALYSIS).what


def test_one_analysis_twice_needs_two_ids_and_other_parameters(tmp_path):
    tight = ANALYSIS.replace("params", 'id = "tight"\nparams').replace("resamples = 100", "use_share = 0.5")
    study = load_study(write(tmp_path, HEAD + SUBJECTS + ANALYSIS + tight))
    check_study(study)
    assert [entry.id for entry in study.declared.analyses] == ["activation_sparsity", "tight"]
    assert [study.suffix(entry.id) for entry in study.declared.analyses] == [
        " (activation_sparsity)",
        " (tight)",
    ]
    assert "2 subjects x 2 analyses = 4 runs" in cost_text(study)
    double = refused(tmp_path, HEAD + SUBJECTS + ANALYSIS + ANALYSIS)
    assert "must differ" in double.what and "analysis.id" in double.where
    same = refused(tmp_path, HEAD + SUBJECTS + ANALYSIS + ANALYSIS.replace("params", 'id = "tight"\nparams'))
    assert "same parameters for random-opt" in same.what and "'tight'" in same.got
    own = 'params = { tight = { use_share = 0.1, resamples = 100 } }\n[[subject]]\nname = "shuffled'
    loose = tight.replace("use_share = 0.5", "seed = 1")
    subjects = SUBJECTS.replace('[[subject]]\nname = "shuffled', own)
    check_study(load_study(write(tmp_path, HEAD + subjects + ANALYSIS + loose)))
    unknown = refused(tmp_path, HEAD + subjects.replace("tight =", "tigth =") + ANALYSIS + loose)
    assert "subject[0].params.tigth" in unknown.where and "did you mean 'tight'" in unknown.message()


def test_no_path_leaves_the_folder(tmp_path):
    outside = tmp_path / "secret.md"
    outside.write_text("secret")
    for name in ("../secret.md", str(outside)):
        with pytest.raises(SpecError, match="inside"):
            load_study(write(tmp_path / "a", f'narrative = "{name}"' + WHOLE))
    folder = tmp_path / "b"
    write(folder, WHOLE)
    (folder / "README.md").symlink_to(outside)
    with pytest.raises(SpecError, match="inside"):
        load_study(folder)
    with pytest.raises(SpecError, match="not there"):
        load_study(write(tmp_path / "c", 'narrative = "TEXT.md"' + WHOLE))


def test_a_folder_of_the_working_directory_is_not_taken_for_a_subject(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    error = refused(tmp_path / "study", WHOLE.replace('name = "random-opt"', 'name = "org/model"', 1))
    assert "outside of the study" in error.what


def test_a_name_is_found_from_below_and_the_nearest_goes_first(tmp_path, monkeypatch):
    write(tmp_path / "analyses" / "toy", WHOLE)
    write(tmp_path / "analyses" / "relu_gelu_swiglu", WHOLE)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert load_study("toy").path == tmp_path / "analyses" / "toy" / "study.toml"
    assert load_study("relu_gelu_swiglu").declared.name == "toy"
    with pytest.raises(SpecError, match="did you mean 'toy'"):
        load_study("toys")
    with pytest.raises(SpecError, match="list studies"):
        load_study("no/such/file.toml")


def test_every_study_of_the_repository_is_valid():
    known = studies.studies()
    assert "relu_gelu_swiglu" in known
    for path in known.values():
        study = load_study(path)
        check_study(study)
        assert study.declared.name == path.parent.name and study.narrative and study.declared.findings


def test_runs_of_one_analysis_are_found_by_their_ids(tmp_path):
    both = ANALYSIS + ANALYSIS.replace("params", 'id = "half the tokens"\nparams').replace(
        "100", "100, use_share = 0.5"
    )
    compared = 'relation = "<="\ntimes = 1.0\nother_analysis = "half the tokens"\n'
    finding = FINDING.replace('relation = "between"\nvalue = [0.4, 0.6]\n', compared)
    own = 'params = { "half the tokens" = { use_share = 0.7 } }\n'
    subjects = SUBJECTS.replace('label = "OPT"\n', 'label = "OPT"\n' + own)
    outcome = ss.study(write(tmp_path, HEAD + subjects + both + FIGURE + finding), store=tmp_path / "runs")
    assert [(run.subject.name, run.id) for run in outcome.runs[:2]] == [
        ("random-opt", "activation_sparsity"), ("random-opt", "half the tokens"),
    ]  # fmt: skip
    shares = [run.result.provenance["params"]["use_share"] for run in outcome.runs]
    assert shares == [0.9, 0.7, 0.9, 0.5]
    assert outcome.result("random-opt", "half the tokens") is outcome.runs[1].result
    assert set(outcome.frame()["id"]) == {"activation_sparsity", "half the tokens"}
    assert set(outcome.frame()["analysis"]) == {"activation_sparsity"}
    page = ss.report(outcome, tmp_path / "page.html").read_text()
    assert page.count("OPT: Activation sparsity (half the tokens)") >= 2
    assert "<h3>Activation sparsity (half the tokens)</h3>" in page and "OPT (half the tokens)" in page


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study with a subject that cannot be fetched, run once."""
    folder = tmp_path_factory.mktemp("study")
    broken = '[[subject]]\nname = "nobody/nothing"\n'
    path = write(folder, WHOLE.replace("[[analysis]]", broken + "[[analysis]]"))
    said, phases = [], []
    store = folder / "runs"
    outcome = ss.study(path, store=store, say=said.append, progress=lambda *step: phases.append(step))
    return path, store, outcome, said, phases


def test_a_subject_that_fails_does_not_stop_the_others(ran):
    _, store, outcome, said, phases = ran
    assert [run.subject.name for run in outcome.failed] == ["nobody/nothing"]
    assert len(outcome.results) == 2 and len(Store(store).run_ids()) == 2
    assert "3 subjects x 1 analysis = 3 runs" in said[0], "the cost is told before anything runs"
    assert any("failed" in line for line in said)
    assert {phase for phase, *_ in phases} == {"OPT: forward pass", "OPT shuffled: forward pass"}


def test_the_numbers_side_by_side(ran):
    outcome = ran[2]
    frame = outcome.frame()
    assert set(frame["subject"]) == {"random-opt", "shuffled:random-opt"}
    row = frame[(frame["subject"] == "random-opt") & (frame["scalar"] == "mean_nonzero")].iloc[0]
    scalar = outcome.result("random-opt", "activation_sparsity").scalars["mean_nonzero"]
    assert (
        row["value"] == scalar.value and row["low"] == scalar.interval.low and row["n"] == scalar.interval.n
    )
    verdict = outcome.findings[0]
    assert verdict.status == "holds" and verdict.value == scalar.value and not math.isnan(verdict.low)


def test_what_is_stored_is_opened(ran):
    path, store, first, _, _ = ran
    phases = []
    again = ss.study(path, store=store, progress=lambda *step: phases.append(step))
    assert [run.stored for run in again.runs] == [True, True, False] and phases == []
    assert [r.run_id for r in again.results] == [r.run_id for r in first.results]


def test_one_subject_is_in_memory_at_a_time(tmp_path, monkeypatch):
    import weakref

    from sparsescope.models import sources

    alive, load = [], sources.load

    def watched(*args, **kwargs):
        assert not [ref for ref in alive if ref() is not None], "the subject before is still in memory"
        subject = load(*args, **kwargs)
        alive.append(weakref.ref(subject.model))
        return subject

    monkeypatch.setattr(sources, "load", watched)
    outcome = ss.study(write(tmp_path, WHOLE), store=None)
    assert len(alive) == 2 and outcome.failed == []

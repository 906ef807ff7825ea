"""What every registered part is held to: the contract suites, light declarations, names that are
unique and well formed.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import sparsescope as ss
from sparsescope.activations.corpus import registered_corpora
from sparsescope.core.inputs import Known
from sparsescope.core.registry import NAME_PATTERN, analyses, benchmarks
from sparsescope.core.spec import Params
from sparsescope.models.catalog import registered_subjects
from sparsescope.testing import check_analysis, check_subject

CHECKED_ELSEWHERE = {  # tests/unit/activations/test_capture.py
    "random-llama",
    "random-gpt2",
    "random-opt",
    "random-gemma2",
    "random-qwen2moe",
    "random-olmoe",
    "random-mixtral",
}
COMPARE_DOMAINS = {"steering"}  # on a text of one kind they have nothing to say but a warning
RECORDS = [*analyses(), *benchmarks()]


@pytest.fixture(scope="module")
def text():
    return ss.corpus("python-docs", tokens=300, context=48)


@pytest.mark.parametrize("name", [record.name for record in analyses() if "subject" in record.roles])
def test_every_analysis_keeps_the_contract(name, glass, text):
    record = analyses().get(name)
    subject = ss.load("bytes-moe") if "experts" in record.requires else glass
    if name in COMPARE_DOMAINS:
        text = ss.corpus("python-docs+licenses", tokens=2000, context=48)
    result = check_analysis(record, subject, text)
    assert result.scalars and result.tables


def test_analyses_of_series_are_told_apart():
    """They read what no model is, so a report about a model leaves them out; tests/unit/analysis holds
    them to the contract.
    """
    model = [Known("subject", "a model", whole=True, has=frozenset({"tokenizer"})), Known("text", "a text")]
    assert {r.name for r in analyses() if "reads a series" in (r.fits(model) or "")} == {
        "convergent_learning",
        "grokking",
        "mixture_gates",
        "moe_routing_over_training",
        "pathways",
        "sparsity_over_training",
        "trained_block_sparsity",
        "weight_sparsity_over_training",
    }


@pytest.mark.parametrize("name", [name for name in registered_subjects() if name.startswith("glassllm")])
def test_small_trained_subjects_keep_the_contract(name):
    check_subject(ss.load(name))


def test_every_random_subject_is_checked_there_or_here():
    random = {name for name in registered_subjects() if name.startswith("random-")}
    assert random >= CHECKED_ELSEWHERE
    for name in sorted(random - CHECKED_ELSEWHERE):
        check_subject(ss.load(name))


def test_declarations_are_light():
    """Everything that is listed is declared without torch, plotly or a model library."""
    program = (
        "import sys\n"
        "from sparsescope.core.registry import analyses, benchmarks\n"
        "from sparsescope.models.catalog import registered_subjects\n"
        "names = [r.name for r in (*analyses(), *benchmarks())] + list(registered_subjects())\n"
        "assert len(names) > 5 and not analyses().broken, analyses().broken\n"
        "print(sorted({'torch', 'transformers', 'transformer_lens', 'plotly', 'streamlit', "
        "'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_names_are_unique_over_all_kinds():
    """``show NAME`` must mean one thing."""
    names = [record.name for record in RECORDS] + list(registered_subjects()) + list(registered_corpora())
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_every_record_is_complete(record):
    assert (
        re.fullmatch(NAME_PATTERN, record.name)
        and record.version
        and record.title
        and record.summary.endswith(".")
    )
    assert issubclass(record.params, Params)
    record.params()  # every parameter has a default: a report runs with the defaults
    for name, field in record.params.model_fields.items():
        assert field.description, f"parameter {name} says nothing"
    module = record.compute_module()
    assert hasattr(module, "compute") or (hasattr(module, "accumulator") and hasattr(module, "result"))
    names = [view.name for view in record.views]
    assert len(names) == len(set(names))
    for view in record.views:
        assert view.title and view.caption and view.table


@pytest.mark.parametrize("entry", registered_subjects().values(), ids=lambda entry: entry.name)
def test_every_subject_says_where_it_comes_from(entry):
    assert entry.summary and entry.license and entry.origin and entry.precision


@pytest.mark.parametrize("entry", registered_corpora().values(), ids=lambda entry: entry.name)
def test_every_corpus_says_where_it_comes_from(entry):
    assert entry.summary and entry.license and entry.domain

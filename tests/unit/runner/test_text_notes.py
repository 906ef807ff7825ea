"""What a reader has to know of a text stands with every result of it, also of an older run."""

from dataclasses import replace

import pytest

import sparsescope as ss
from sparsescope.activations.text.probe import probe_corpus
from sparsescope.cli import listing
from sparsescope.core.run_store import Store
from sparsescope.core.text_notes import notes_of_text
from sparsescope.reporting.build import render

FOX = "the quick brown fox jumps over a lazy dog while seven wizards box with gloves "
TEXTS = [
    FOX * 8,
    FOX * 8 + "and more",
    "Z",
    *(f"{n} other words of text {n * 7} for {n * 11} " * 6 for n in range(9)),
]
SAID = ("of the 5,000 tokens asked for are there", "1 document nearly repeats another", "fewer than 2 tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notes") / "runs"


@pytest.fixture(scope="module")
def result(llama, folder):
    text = ss.corpus(TEXTS, tokens=5000, context=64)
    return ss.run("activation_sparsity", llama, text, store=folder, resamples=100)


def warned(result):
    return [note.message for note in result.notes if note.severity == "warning"]


def test_a_result_warns_of_what_its_text_lacks(result):
    for said in SAID:
        assert sum(said in message for message in warned(result)) == 1, said
    assert "--keep-duplicates" in " ".join(warned(result))


def test_every_place_shows_it(result, folder):
    shown = listing.text(listing.describe(str(folder / result.run_id), None))
    for place in (render([result]), result._summary_html(), shown):
        assert all(said in place for said in SAID)
    assert "info" not in {note.severity for note in result.notes if "tokens asked for" in note.message}


def test_a_run_of_before_warns_when_it_is_opened(result, tmp_path):
    from sparsescope.core.spec import Spec

    before = replace(result, notes=[], provenance={})
    given = {key: result.provenance[key] for key in ("params", "subject", "corpus", "inputs")}
    spec = Spec(analysis=result.analysis, version="1", **given)
    Store(tmp_path).write(before, spec, seconds=1.0, environment={})
    said = [message for _, message in notes_of_text(result.provenance["corpus"])]
    assert len(said) == 3 and warned(Store(tmp_path).open(spec.run_id)) == said


def test_a_text_that_is_all_there_has_no_notes(llama, small_corpus):
    assert notes_of_text(small_corpus.read_by(llama).describe()) == []
    assert notes_of_text(None) == []


def test_the_text_of_a_series_was_not_selected():
    assert notes_of_text(probe_corpus(ss.open_series("lazy-relu")).describe()) == []


def test_duplicates_are_kept_where_that_is_asked_for(llama):
    text = ss.corpus(TEXTS, tokens=5000, context=64, deduplicate=False).read_by(llama)
    assert not [said for _, said in notes_of_text(text.describe()) if "repeat" in said]


def test_blank_documents_are_no_cause_for_a_warning(llama):
    text = ss.corpus(["a b c d", " "], tokens=3, context=8).read_by(llama)
    assert ("info", "Blank documents left out: 1.") in notes_of_text(text.describe())

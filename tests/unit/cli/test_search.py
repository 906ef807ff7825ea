"""The verb ``search``: windows and tokens that use features, or that are like a text."""

from __future__ import annotations

import pytest

import sparsescope as ss


@pytest.fixture(scope="module")
def run_id(glass, tmp_path_factory):
    """A run on the demo model; where it is kept, and its name."""
    folder = tmp_path_factory.mktemp("search")
    small = {
        "components": 12,
        "iterations": 5,
        "resamples": 100,
        "permutations": 40,
        "shown": 3,
        "queries": 0,
    }
    text = ss.corpus("python-docs+python-source", tokens=3000, context=128)
    found = ss.run("features", glass, text, store=folder, map=False, **small)
    return str(folder / found.run_id)


def test_features_find_windows_and_tokens(command, run_id):
    code, out, err = command("search", run_id, "--feature", "SNMF/3", "--top", "4")
    assert code == 0 and len(out.strip().splitlines()) == 6 and "postings read" in err
    code, found, _ = command(
        "search", run_id, "--feature", "SNMF/3", "--feature", "SNMF/5", "--unit", "token", "--json"
    )
    assert code == 0 and len(found["hits"]) == 10 and found["postings"] == found["all_postings"] > 0
    code, pruned, _ = command(
        "search",
        run_id,
        "--feature",
        "SNMF/3",
        "--feature",
        "SNMF/5",
        "--unit",
        "token",
        "--alpha",
        "1",
        "--json",
    )
    assert [h["score"] for h in pruned["hits"]] == pytest.approx([h["score"] for h in found["hits"]])
    assert pruned["postings"] <= found["postings"]


def test_a_text_is_encoded_and_found(command, run_id):
    code, found, _ = command(
        "search", run_id, "--text", "and he said unto them, Go ye into the city", "--json"
    )
    assert code == 0 and found["features"][0]["feature"].startswith("SNMF/") and len(found["hits"]) == 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "for features or for a text"),
        (("--feature", "SNMF/3", "--text", "x"), "for features or for a text"),
        (("--feature", "SNMF/999"), "feature of this run"),
        (("--feature", "SNMF/3", "--feature", "Neurons, largest 32/1"), "of one dictionary"),
        (("--feature", "SNMF/3", "--unit", "page"), "unit"),
        (("--feature", "SNMF/3", "--alpha", "2"), "out of range"),
        (("--text", "some words", "--dictionary", "Neurons, largest 32"), "nothing was trained"),
        (("--text", "some words", "--dictionary", "TopK"), "dictionary of this run"),
    ],
)
def test_bad_questions_say_what_can_be_asked(command, run_id, given, said):
    code, _, err = command("search", run_id, *given)
    assert code == 1 and said in err


def test_a_run_of_another_analysis_has_no_features(command, home, runs):
    code, _, err = command("search", runs[1], "--text", "words")
    assert code == 1 and "feature activations" in err

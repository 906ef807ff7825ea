"""Routing over training: checkpoints are compared on the same tokens, and differences are those of pairs."""

from __future__ import annotations

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.activations.routing import trace_routing
from sparsescope.activations.text.probe import probe_corpus
from sparsescope.analysis.moe_routing_over_training.statements import statements
from sparsescope.core.registry import analyses
from sparsescope.errors import SubjectError
from sparsescope.models.checkpoints import Checkpoint, CheckpointSeries, open_series
from sparsescope.models.sources import load
from sparsescope.models.structure.routing import routers

NAME = "moe_routing_over_training"
SMALL = {"permutations": 99, "resamples": 100, "controls": 1, "least_documents": 2}


def part_of(name, steps):
    """Some checkpoints of a shipped series; it carries the same text."""
    whole = open_series(name)
    chosen = [checkpoint for checkpoint in whole.checkpoints if checkpoint.step in steps]
    return CheckpointSeries(whole.name, chosen, whole._load, whole._folder)


@pytest.fixture(scope="module")
def series():
    return part_of("bytes-moe", {0, 100, 1500})


@pytest.fixture(scope="module")
def corpus():
    whole = probe_corpus(open_series("bytes-moe"))
    return whole.select(range(20))


@pytest.fixture(scope="module")
def result(series, corpus):
    return ss.run(NAME, series, corpus, **SMALL)


@pytest.fixture(scope="module")
def traces(series, corpus):
    return {step: trace_routing(s := series.subject(step), corpus, routers(s)) for step in series.steps}


def test_saturation_is_the_overlap_with_the_last_checkpoint(result, traces):
    table = result.tables["saturation"].set_index(["step", "layer"])
    for step, before in ((0, None), (100, 0), (1500, 100)):
        for layer in range(4):
            row, own = table.loc[(step, layer)], traces[step].index[:, layer]
            shared = [
                [len(set(a) & set(b)) / 2 for a, b in zip(own, other.index[:, layer], strict=True)]
                for other in (traces[1500], traces[before or 0])
            ]
            assert row["saturation"] == pytest.approx(np.mean(shared[0]))
            assert row["low"] <= row["saturation"] <= row["high"]
            if before is None:
                assert np.isnan(row["churn"])
            else:
                assert row["churn"] == pytest.approx(1 - np.mean(shared[1]))
            assert row["first_choice"] == (own[:, 0] == traces[1500].index[:, layer, 0]).mean()
    assert (table.loc[1500]["saturation"] == 1).all()
    assert (table["uniform_chance"] == 0.25).all()


def test_chance_is_that_of_shuffled_tokens(result, traces):
    """Independent choices: the overlap of tokens in random order, all of them and within each id."""
    table = result.tables["saturation"].set_index(["step", "layer"])
    generator = np.random.default_rng(0)
    one, last = traces[100], traces[1500]
    for layer in (0, 3):
        a, b = one.index[:, layer], last.index[:, layer]
        whole, within = [], []
        for _ in range(20):
            whole.append(
                (a[:, :, None] == b[generator.permutation(len(b))][:, None, :]).sum((1, 2)).mean() / 2
            )
            mixed = np.empty_like(b)
            for token in np.unique(last.token_ids):
                rows = np.flatnonzero(last.token_ids == token)
                mixed[rows] = b[generator.choice(rows, len(rows))]
            within.append((a[:, :, None] == mixed[:, None, :]).sum((1, 2)).mean() / 2)
        row = table.loc[(100, layer)]
        assert row["load_chance"] == pytest.approx(np.mean(whole), abs=0.01)
        assert row["token_chance"] == pytest.approx(np.mean(within), abs=0.01)


def test_specialization_is_compared_with_the_first_checkpoint(result):
    table = result.tables["specialization"].set_index(["step", "layer", "measure"])
    first, last = table.loc[0], table.loc[1500]
    assert last["since_start"].tolist() == pytest.approx((last["excess"] - first["excess"]).tolist())
    assert not first["since_start"].any()
    assert table["beyond_shuffled"].tolist() == pytest.approx((table["excess"] - table["shuffled"]).tolist())
    given = last.xs("I(E; D | token)", level="measure")
    assert result.scalars["since_start"].value == pytest.approx(given["since_start"].mean())
    assert result.scalars["against_shuffled"].value == pytest.approx(given["beyond_shuffled"].mean())
    assert result.scalars["since_start"].interval is not None


def test_what_it_says(result):
    texts = [statement.text for statement in statements(result)]
    assert len(texts) == 2 and "more than at the first" in texts[0] and "tenth of the training" in texts[1]
    for view in analyses().get(NAME).views:
        assert result.view(view.name).layout.meta["alt"]


def test_the_held_out_text_has_too_few_documents_for_intervals(series):
    """Four license texts and six modules: specialization is shown without intervals."""
    result = ss.run(NAME, part_of("bytes-moe", {0, 1500}), permutations=99, resamples=100, controls=0)
    assert result.tables["specialization"][["low", "start_low", "shuffled"]].isna().all(axis=None)
    assert result.scalars["since_start"].interval is None and "against_shuffled" not in result.scalars
    assert any("fewer than 20" in note.message for note in result.notes)
    assert "no interval" in statements(result)[0].text


def test_checkpoints_with_other_experts_are_refused():
    names = {1: "random-olmoe", 2: "random-mixtral"}
    series = CheckpointSeries(
        "org/odd", [Checkpoint(1, "step1"), Checkpoint(2, "step2")], lambda found: load(names[found.step])
    )
    text = ss.corpus("python-docs", tokens=256, context=32)
    with pytest.raises(SubjectError, match="differ in their experts"):
        ss.run(NAME, series, text, **SMALL)


def test_a_series_without_experts_is_refused_before_it_is_loaded():
    with pytest.raises(SubjectError, match="needs what this series"):
        ss.run(NAME, open_series("lazy-relu"))


def test_rare_token_ids_have_no_table():
    """Of 300 tokens most ids occur once: a table of ids would repeat what is observed."""
    texts = ["".join(chr(33 + (7 * n * i + n) % 90) for i in range(40)) for n in range(1, 9)]
    series = CheckpointSeries(
        "org/moe",
        [Checkpoint(1, "step1"), Checkpoint(2, "step2")],
        lambda found: load("random-olmoe", revision=str(found.step)),
    )
    result = ss.run(NAME, series, ss.corpus(texts, tokens=None, context=48), **SMALL)
    assert result.tables["saturation"]["token_chance"].isna().all()
    assert result.tables["specialization"].empty
    assert "early_token_chance" not in result.scalars

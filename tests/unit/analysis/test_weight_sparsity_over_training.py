"""Weight sparsity over training: drop points by hand, checkpoints without signal, the null, abruptness."""

from __future__ import annotations

import gc
import math
import weakref
from itertools import count

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.text.probe import probe_corpus
from sparsescope.analysis.weight_sparsity_over_training import (
    ANALYSIS,
    WeightSparsityOverTrainingParams,
)
from sparsescope.analysis.weight_sparsity_over_training import compute as module
from sparsescope.analysis.weight_sparsity_over_training.abrupt import largest_rise
from sparsescope.analysis.weight_sparsity_over_training.measure import Held
from sparsescope.analysis.weight_sparsity_over_training.rows import Course
from sparsescope.core.inputs import Known
from sparsescope.core.statements import statements_of
from sparsescope.errors import SpecError
from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.models.checkpoints import CheckpointSeries, open_series
from sparsescope.runner.run import Request, run_many
from sparsescope.testing import check_analysis, check_figure

NAME = ANALYSIS.name
GLOBAL = "Magnitude, global"
SMALL = {"curves": ("magnitude+global",), "random_masks": 1, "tolerances": (0.05,), "resamples": 100}


def part_of(name, steps, loaded=None):
    """Some checkpoints of a shipped series; ``loaded`` is told of each subject."""
    whole = open_series(name)
    chosen = [checkpoint for checkpoint in whole.checkpoints if checkpoint.step in steps]

    def load(checkpoint):
        subject = whole._load(checkpoint)
        if loaded is not None:
            loaded(subject)
        return subject

    return CheckpointSeries(whole.name, chosen, load, whole._folder)


@pytest.fixture(scope="module")
def grokked():
    """Two checkpoints: not trained, and long after generalization."""
    return ss.run(
        NAME, part_of("grokking-short", {0, 10_000}), **SMALL | {"random_masks": 2, "refine": 4}, tokens=1024
    )


@pytest.fixture(scope="module")
def text():
    small = {"levels": (0.2, 0.5, 0.8), "refine": 0, "tokens": 640, "document_tokens": 64}
    return ss.run(NAME, part_of("lazy-relu", {0, 1500}), **SMALL | small)


def cells(result, table, **where):
    frame = result.tables[table]
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame


def losses_by_hand(model, probe, rows):
    """Loss of each equation."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(probe.tokens[rows])).logits[:, -1].double().numpy()
    logits -= logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(rows)), probe.fields["answer"][rows]]


def test_the_contract():
    check_analysis(ANALYSIS, part_of("grokking-short", {0, 10_000}))


def test_a_drop_point_by_hand():
    """One sort of all magnitudes, one forward pass for each level, one interpolation."""
    series = part_of("grokking-short", {10_000})
    levels = (0.2, 0.4, 0.5, 0.6)
    result = ss.run(NAME, series, **SMALL | {"relative": ()}, levels=levels, refine=0)
    probe, subject = series.probe(), series.subject(10_000).copy()
    rows = np.flatnonzero(probe.fields["train"] == 0)
    dense = losses_by_hand(subject.model, probe, rows).mean()
    matrices = [subject.parameter(site) for site in subject.parameter_sites("weight:blocks.*.*")]
    kept = [matrix.clone() for matrix in matrices]
    every = torch.cat([matrix.reshape(-1) for matrix in kept])
    order = every.abs().argsort(stable=True)  # of equal ones the first
    damage = [0.0]
    for level in levels:
        left = every.clone()
        left[order[: round(level * len(order))]] = 0
        with torch.no_grad():
            for matrix, part in zip(matrices, left.split([m.numel() for m in matrices]), strict=True):
                matrix.copy_(part.reshape(matrix.shape))
        damage.append(losses_by_hand(subject.model, probe, rows).mean() - dense)
    assert damage == sorted(damage) and damage[-1] > 0.05
    row = cells(result, "drop_points", curve=GLOBAL).iloc[0]
    assert row["sparsity"] == pytest.approx(np.interp(0.05, damage, [0, *levels]), abs=1e-5)
    table = cells(result, "damage", curve=GLOBAL)
    np.testing.assert_allclose(table["damage"], damage[1:], rtol=1e-4, atol=1e-9)
    assert row["low"] < row["sparsity"] < row["high"]


def test_an_untrained_checkpoint_has_no_signal_and_no_drop_point(grokked):
    dense = grokked.tables["per_checkpoint"].set_index("step")
    assert dense.loc[0, "signal"].startswith("no signal") and dense.loc[10_000, "signal"] == "yes"
    assert dense.loc[0, "loss"] > dense.loc[0, "chance"] == pytest.approx(math.log(59))
    for table, value in (("drop_points", "sparsity"), ("excess", "excess")):
        known = grokked.tables[table].set_index("step")[value].notna()
        assert known.loc[10_000].all() and not known.loc[0].any()
    assert (cells(grokked, "drop_points", step=0)["censored"].str.startswith("no signal")).all()
    assert set(grokked.tables["damage"]["step"]) == {10_000}
    assert grokked.scalars["checkpoints_with_signal"].value == 1
    assert any("no signal" in note.message for note in grokked.notes)


def test_a_series_without_any_signal_says_so(tiny_series):
    result = ss.run(NAME, tiny_series, **SMALL)
    assert result.tables["drop_points"]["sparsity"].isna().all() and result.tables["damage"].empty
    assert math.isnan(result.scalars["sparsity_last_magnitude_global_at_0.05"].value)
    assert "No drop point" in statements_of(result)[0].text
    for view in ANALYSIS.views:
        check_figure(result.view(view.name), view.name)


def test_random_masks_are_the_null(grokked):
    row = cells(grokked, "drop_points", step=10_000, curve="Random", rule="+0.05 nats").iloc[0]
    assert row["least_mask"] < row["most_mask"] < 0.3, "two draws of masks"
    excess = cells(grokked, "excess", step=10_000, rule="+0.05 nats").iloc[0]
    own = cells(grokked, "drop_points", step=10_000, curve=GLOBAL, rule="+0.05 nats").iloc[0]
    assert excess["excess"] == pytest.approx(own["sparsity"] - row["sparsity"])
    assert 0.1 < excess["low"] < excess["excess"] < excess["high"]


def test_gaps_around_drop_points_are_halved(grokked):
    """The curve is flat, then steep: without this every drop point stands just above a level."""
    coarse = ss.run(NAME, part_of("grokking-short", {10_000}), **SMALL, tokens=1024, refine=0)
    where = {"step": 10_000, "curve": GLOBAL, "rule": "+0.05 nats"}
    before, after = (cells(result, "drop_points", **where).iloc[0] for result in (coarse, grokked))
    assert before["bracket"] == pytest.approx(0.1, abs=1e-3) and after["bracket"] <= 0.02
    assert before["sparsity"] < before["low"] + 0.01 and after["sparsity"] - before["sparsity"] > 0.01


def test_commuted_equations_are_one_document(grokked):
    row = grokked.tables["per_checkpoint"].iloc[0]
    assert row["tokens"] == 1024 and row["documents"] < 1024
    whole = ss.run(NAME, part_of("grokking-short", {0}), **SMALL).tables["per_checkpoint"].iloc[0]
    probe = open_series("grokking-short").probe()
    held = probe.tokens[probe.fields["train"] == 0]
    assert whole["documents"] == len({frozenset(pair) for pair in held[:, :2].tolist()})
    assert whole["tokens"] == len(held)


def test_equations_that_were_trained_on_can_be_scored():
    result = ss.run(NAME, part_of("grokking-short", {1000}), **SMALL, pairs="train", tokens=512, refine=0)
    assert result.tables["per_checkpoint"]["signal"].tolist() == ["yes"], "memorized, not generalized"
    held = ss.run(NAME, part_of("grokking-short", {1000}), **SMALL, tokens=512, refine=0)
    assert held.tables["per_checkpoint"]["signal"].tolist() != ["yes"]


def test_text_is_scored_beside_the_frequencies_of_other_documents(text):
    corpus = probe_corpus(open_series("lazy-relu"))
    row = text.tables["per_checkpoint"].set_index("step").loc[1500]
    other, taken = set(), 0
    for number, document in enumerate(corpus.documents):
        domains = {corpus.documents[k].domain for k in other}
        if taken < 2048 or document.domain not in domains:
            other.add(number)
            taken += len(document)
    assert row["signal"] == "yes" and row["documents"] == 10 and row["tokens"] == 10 * 63
    rest = [d for number, d in enumerate(corpus.documents) if number not in other][:10]
    read = np.concatenate([corpus.documents[number].ids for number in other])
    targets = np.concatenate([d.ids[1:64] for d in rest])
    known = 1 + max(read.max(), max(d.ids[:64].max() for d in rest))
    counts = 1 + np.bincount(read, minlength=known)
    assert row["chance"] == pytest.approx(-np.log(counts[targets] / counts.sum()).mean(), rel=1e-9)
    subject = open_series("lazy-relu").subject(1500)
    with torch.no_grad():
        logits = subject.model(input_ids=torch.tensor(np.stack([d.ids[:64] for d in rest]))).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), torch.from_numpy(targets).long()
    )
    assert row["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_a_relative_tolerance_is_a_share_of_the_gain(text):
    dense = text.tables["per_checkpoint"].set_index("step").loc[1500]
    tolerance = cells(text, "drop_points", step=1500, rule="5 % of the gain")["tolerance"]
    np.testing.assert_allclose(tolerance, 0.05 * (dense["chance"] - dense["loss"]))
    assert (cells(text, "drop_points", step=1500, rule="+0.05 nats")["tolerance"] == 0.05).all()


def test_one_checkpoint_is_in_memory_at_a_time():
    seen, alive = [], []

    def loaded(subject):
        gc.collect()
        alive.append(sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(subject.model))

    ss.run(NAME, part_of("grokking-short", {0, 250}, loaded), **SMALL, tokens=64)
    assert len(alive) >= 2 and max(alive) == 0


def test_an_interrupted_run_goes_on_after_its_last_checkpoint(tmp_path, monkeypatch):
    measure, seen, calls = module.measure, [], count(1)

    def stopping(subject, held, params):
        seen.append(subject.revision)
        if next(calls) == 2:
            raise KeyboardInterrupt
        return measure(subject, held, params)

    monkeypatch.setattr(module, "measure", stopping)
    series = part_of("grokking-short", {0, 9000, 10_000})
    request = [Request(NAME, {**SMALL, "tokens": 128, "levels": (0.2, 0.6), "refine": 0})]
    with pytest.raises(KeyboardInterrupt):
        run_many(request, {"series": series}, store=tmp_path)
    run_many(request, {"series": series}, store=tmp_path)
    assert len(seen) == 4 and seen[1] == seen[2] and seen.count(seen[0]) == 1


LEVELS = np.arange(1, 31) / 50


def course(drops, null, *, levels=LEVELS, documents=20):
    """Checkpoints whose damage passes 0.05 nats at these sparsities."""
    generator = np.random.default_rng(0)
    own = 1 + 0.1 * generator.normal(size=documents)
    ones = np.full(documents, 10)
    params = WeightSparsityOverTrainingParams(
        curves=("magnitude",), random_masks=1, tolerances=(0.05,), relative=(), resamples=100
    )
    arrays = []
    for where in zip(drops, null, strict=True):
        entry = {"nll": 10.0 * own, "correct": ones * 0.5}
        for number, at in enumerate(where):
            damage = 0.05 * np.exp(30 * (levels - at))[:, None] * own[None]
            entry |= {
                f"asked_{number}": levels,
                f"sparsity_{number}": levels,
                f"pruned_{number}": (entry["nll"] + 10 * damage)[None],
            }
        arrays.append(entry)
    steps = tuple(100 * 2**k for k in range(len(arrays)))
    held = Held(False, np.zeros(documents, np.int16), ones, 30.0 * own, None, "")
    draws = DocumentBootstrap.draw(held.strata, params.resamples, 0, 0.95)
    return Course(params, held, draws, steps, arrays)


def verdict(*args, **options):
    return course(*args, **options).abruptness()[0]


JUMP = [0.2 + 0.3 * (k >= 7) + 0.002 * k for k in range(13)]
FLAT = [0.1] * 13


def test_a_jump_is_abrupt_and_a_gradual_course_is_not():
    row = verdict(JUMP, FLAT)
    assert row["verdict"] == "abrupt" and (row["before"], row["after"]) == (6400, 12_800)
    assert row["jump"] == pytest.approx(0.302, abs=0.002) and row["share"] > 0.9 and row["p_value"] < 0.01
    assert row["beyond_random"] == pytest.approx(row["jump"], abs=1e-6)
    gradual = verdict([0.2 + 0.025 * k for k in range(13)], FLAT)
    assert gradual["verdict"].startswith("not abrupt") and gradual["p_value"] > 0.2
    assert verdict(JUMP[::-1], FLAT)["verdict"].startswith("not abrupt"), "it falls"


def test_fewer_than_twelve_checkpoints_say_nothing():
    row = verdict(JUMP[1:12], FLAT[1:12])
    assert row["verdict"] == "needs 12 checkpoints with signal, has 11" and math.isnan(row["p_value"])
    assert verdict(JUMP[:12], FLAT[:12])["verdict"] == "abrupt"


def test_what_random_masks_do_too_is_not_essential_sparsity():
    """Nor is a rise that is larger by less than the levels are apart, however certain."""
    for size in (0.32, 0.26):
        row = verdict(JUMP, [0.05 + size * (k >= 7) for k in range(13)])
        assert row["p_value"] < 0.01 and row["verdict"].startswith("not told from robustness")
    assert row["beyond_low"] > 0


def test_a_jump_between_coarse_levels_is_not_resolved():
    small = [0.39 + 0.09 * (k >= 7) for k in range(13)]
    assert verdict(small, FLAT)["verdict"] == "abrupt"
    coarse = verdict(small, FLAT, levels=np.arange(1, 10) / 10)
    assert coarse["verdict"].startswith("not resolved") and coarse["resolution"] == pytest.approx(0.2)


def test_what_random_masks_improve_has_no_drop_point():
    """An over-confident checkpoint: random masks lower its loss before they raise it."""
    found = course([0.4, 0.4], [0.1, 0.1])
    assert found.signal == ["yes", "yes"]
    arrays = found.arrays
    arrays[0]["pruned_1"][:, :3] -= 0.5 * found.held.targets
    again = Course(found.params, found.held, found.draws, found.steps, arrays)
    assert again.signal[0].startswith("over-confident") and again.signal[1] == "yes"
    row = again.drop_points()[0]
    assert math.isnan(row["sparsity"]) and row["censored"] == again.signal[0]
    assert again.drop_points()[2]["lowest"] < -0.4, "the first row of random masks"


def test_the_excess_is_paired():
    """Both curves are the same: no difference in any resample, though each has an interval."""
    found = course([0.4] * 2, [0.4] * 2)
    row, drop = found.excess()[0], found.drop_points()[0]
    assert (row["excess"], row["low"], row["high"]) == (0, 0, 0)
    assert drop["low"] < drop["high"]


def test_the_largest_rise_beside_gradual_courses():
    """With equal gaps the chance of a share is Fisher's, in closed form."""
    steps, m, share = 10.0 ** np.arange(13), 12, 0.35
    values = np.cumsum([0, share, *[(1 - share) / (m - 1)] * (m - 1)])
    found = largest_rise(steps, values, surrogates=20_000, seed=0)
    exact = sum((-1) ** (j + 1) * math.comb(m, j) * max(1 - j * share, 0) ** (m - 1) for j in range(1, m + 1))
    assert found.share == pytest.approx(share) and found.before == 0
    assert found.p_value == pytest.approx(exact, abs=3 * math.sqrt(exact / 20_000))
    wide = largest_rise([1, 1000, *range(1001, 1012)], values, surrogates=999, seed=0)
    assert wide.p_value > 0.9, "a long gap explains a large rise"
    assert largest_rise(steps, -values, surrogates=99, seed=0) is None


@pytest.mark.parametrize(
    ("curve", "why"),
    [
        ("wanda", "reads a calibration text"),
        ("magnitude+owl", "reads a calibration text"),
        ("random", "random masks are measured"),
        ("magnitude+2:4", "weight_sparsity measures the rest"),
        ("magnitude+finetuned", "weight_sparsity measures the rest"),
        ("nothing", "nothing"),
    ],
)
def test_curves_that_are_not_measured_here_are_refused(curve, why):
    with pytest.raises(SpecError, match=why):
        ss.run(NAME, "grokking-short", curves=(curve,))


def test_it_fits_both_kinds_of_series_of_our_own_trainer():
    own = [
        Known("series", "x", has=frozenset({"curves", kind}), whole=True) for kind in ("pairs", "tokenizer")
    ]
    assert [ANALYSIS.fits([known]) for known in own] == [None, None]
    other = Known("series", "org/model", lacks=frozenset({"curves", "pairs", "held_out_text"}))
    assert "curves" in ANALYSIS.fits([other])


def test_sentences_and_figures(grokked):
    said = " ".join(statement.text for statement in statements_of(grokked))
    assert "random masks" in said and "needs 12 checkpoints with signal, has 1" in said
    assert "step 10,000" in grokked.view("drop_points").layout.title.text.replace("<br>", " ")
    gray = [trace for trace in grokked.view("drop_points").data if trace.name == "Random"]
    assert gray and all(trace.line.dash == "dash" for trace in gray)

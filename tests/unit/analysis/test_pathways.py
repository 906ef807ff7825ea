"""Pathways over training: profiles, distances and contrasts against plain recomputation."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

import sparsescope as ss
from sparsescope.activations.text.probe import probe_corpus
from sparsescope.analysis.pathways import ANALYSIS, PathwaysParams
from sparsescope.analysis.pathways import measure as measures
from sparsescope.analysis.pathways import read as reading
from sparsescope.analysis.pathways.samples import samples_of
from sparsescope.analysis.pathways.statements import statements
from sparsescope.errors import SpecError, SubjectError
from sparsescope.metrics.memorized_samples import chosen_eps, memorized_from
from sparsescope.metrics.onsets import half_way
from sparsescope.models.checkpoints import Checkpoint, CheckpointSeries, open_series
from sparsescope.models.provenance.training_curves import training_curves
from sparsescope.models.sources import load
from sparsescope.testing import check_figure

NAME = "pathways"
SMALL = {
    "samples": 40, "least_samples": 10, "null_draws": 4, "permutations": 19, "resamples": 60, "draws": 100,
    "random_partitions": 2, "blocks": 8,
}  # fmt: skip


def part_of(name, steps):
    """Some checkpoints of a shipped series; it carries the same probe set and curves."""
    whole = open_series(name)
    chosen = [checkpoint for checkpoint in whole.checkpoints if checkpoint.step in steps]
    return CheckpointSeries(whole.name, chosen, whole._load, whole._folder)


@pytest.fixture(scope="module")
def series():
    return part_of("grokking-moe", {0, 150, 250, 500, 1000, 1350, 1450, 1600, 1700, 2000})


@pytest.fixture(scope="module")
def result(series):
    return ss.run(NAME, series, **SMALL)


@pytest.fixture(scope="module")
def samples(series):
    return samples_of(series, None, PathwaysParams(**SMALL))


@pytest.fixture(scope="module")
def plain(series, samples):
    """Router probabilities of the last token, from the router's own weights and what it reads."""
    subject = series.subject(1450)
    read = {}
    handles = [
        layer.mlp.gate.register_forward_pre_hook(lambda _, given, n=n: read.__setitem__(n, given[0]))
        for n, layer in enumerate(subject.model.model.layers)
    ]
    with torch.no_grad():
        logits = subject.model(torch.from_numpy(samples.tokens)).logits[:, -1]
    for handle in handles:
        handle.remove()
    profiles = []
    for n, layer in enumerate(subject.model.model.layers):
        states = read[n].reshape(len(samples), 3, -1)[:, -1]
        profiles.append((states @ layer.mlp.gate.weight.T).softmax(-1).detach().numpy())
    return np.stack(profiles, 1), logits.detach().numpy(), subject


def row(result, group, step=1450, table="checkpoints"):
    found = result.tables[table]
    return found[(found["step"] == step) & (found["group"] == group)].iloc[0]


def kept(profile, tau=0.7):
    order = sorted(range(len(profile)), key=lambda e: -profile[e])
    sums = np.cumsum([profile[e] for e in order])
    return order[: int(np.argmax(sums >= tau)) + 1]


def edits(one, two):
    last = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        new = [i]
        for j, b in enumerate(two, 1):
            new.append(min(last[j] + 1, new[-1] + 1, last[j - 1] + (a != b)))
        last = new
    return last[-1]


def test_samples_are_pairs_with_their_answers_and_units(samples):
    a, b = samples.tokens[:, 0], samples.tokens[:, 1]
    assert np.array_equal(samples.label, (a + b) % 59) and (samples.tokens[:, 2] == 59).all()
    assert np.array_equal(samples.targets[:, 2], samples.label) and (samples.targets[:, :2] == -1).all()
    unordered = {tuple(sorted(pair)) for pair in zip(a, b, strict=True)}
    assert len(np.unique(samples.unit)) == len(unordered)
    train = {tuple(row) for row in samples.tokens[samples.rows("train")]}
    assert len(train) == 40 and not train & {tuple(row) for row in samples.tokens[samples.rows("test")]}
    assert samples.read.tolist() == [False, False, True]


@pytest.mark.parametrize("group", ["train", "test"])
def test_distances_and_contrasts_are_those_of_plain_pathways(result, samples, plain, group):
    profiles, logits, _ = plain
    rows = samples.rows(group)
    paths = [[[(n, e) for e in kept(layer)] for n, layer in enumerate(profiles[i])] for i in rows]
    written = [
        [symbol for n, layer in enumerate(path) for symbol in [("end", n)] * (n > 0) + layer]
        for path in paths
    ]
    names = ["-".join(",".join(str(e) for _, e in layer) for layer in path) for path in paths]
    found = {"expert": [], "character": [], "normalized": [], "jaccard": [], "same": [], "other": []}
    for i in range(len(rows)):
        for j in range(i):
            if samples.unit[rows[i]] == samples.unit[rows[j]]:
                continue
            distance = edits(written[i], written[j])
            p, q = profiles[rows[i]], profiles[rows[j]]
            jaccard = np.mean(1 - np.minimum(p, q).sum(-1) / np.maximum(p, q).sum(-1))
            found["expert"].append(distance)
            found["character"].append(edits(names[i], names[j]))
            found["normalized"].append(distance / max(len(written[i]), len(written[j])))
            found["jaccard"].append(jaccard)
            same = samples.label[rows[i]] == samples.label[rows[j]]
            found["same" if same else "other"].append(jaccard)
    own = row(result, group)
    assert own["distance"] == pytest.approx(np.mean(found["expert"]))
    assert own["normalized"] == pytest.approx(np.mean(found["normalized"]))
    assert own["weighted_jaccard"] == pytest.approx(np.mean(found["jaccard"]), abs=1e-6)
    assert own["contrast"] == pytest.approx(np.mean(found["other"]) - np.mean(found["same"]), abs=1e-6)
    assert own["set_size"] == pytest.approx(np.mean([len(layer) for path in paths for layer in path]))
    entropies = -(profiles[rows] * np.log(profiles[rows])).sum(-1)
    assert own["path_entropy"] == pytest.approx(entropies.mean(), abs=1e-5)
    assert own["effective_experts"] == pytest.approx(np.exp(entropies).mean(), abs=1e-4)
    variants = result.tables["variants"]
    variants = variants[(variants["step"] == 1450) & (variants["group"] == group)]
    of = variants.set_index(["weights", "unit"])["distance"]
    assert of["softmax", "character"] == pytest.approx(np.mean(found["character"]))
    nll = torch.nn.functional.cross_entropy(torch.tensor(logits[rows]), torch.tensor(samples.label[rows]))
    assert own["loss"] == pytest.approx(float(nll), rel=1e-4)
    assert own["accuracy"] == np.mean(logits[rows].argmax(-1) == samples.label[rows])


def test_smoothness_and_dimension_are_their_formulas(result, samples, plain):
    profiles, _, subject = plain
    rows = samples.rows("train")
    gates = [layer.mlp.gate.weight.detach().double().numpy() for layer in subject.model.model.layers]
    smooth, rough = [], []
    for i in rows:
        for values, centered in ((smooth, True), (rough, False)):
            mixed = [
                profiles[i, n].astype(float) @ (gate - gate.mean(0) * centered)
                for n, gate in enumerate(gates)
            ]
            cosines = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in itertools.pairwise(mixed)]
            values.append(np.mean(cosines) if centered else 1 - np.mean(cosines) / (max(cosines) + 1e-8))
    own = row(result, "train")
    assert own["smoothness"] == pytest.approx(np.mean(smooth), abs=1e-5)
    assert own["roughness"] == pytest.approx(np.mean(rough), rel=1e-3)
    dimensions = []
    for n in range(4):
        kernel = profiles[rows, n].astype(float) @ profiles[rows, n].T.astype(float)
        ridge = 0.01 * np.trace(kernel) / len(rows)
        dimensions.append(np.trace(kernel @ np.linalg.inv(kernel + ridge * np.eye(len(rows)))))
    assert own["dimension"] == pytest.approx(np.mean(dimensions), rel=1e-4)
    assert own["dimension_low"] < own["dimension"] < own["dimension_high"]


def test_renormalized_weights_are_those_of_the_chosen_experts(samples, plain):
    profiles, _, subject = plain
    found = reading.read_checkpoint(subject, samples, [])
    np.testing.assert_allclose(found["softmax"], profiles, atol=1e-6)
    top = np.argsort(-profiles, -1)[..., :2]
    expected = np.zeros_like(profiles)
    np.put_along_axis(expected, top, np.take_along_axis(profiles, top, -1), -1)
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(found["renormalized"], expected, atol=1e-5)
    assert np.array_equal(found["first"], profiles.argmax(-1))


@pytest.mark.parametrize(
    "choice",
    [{"weights": "renormalized", "unit": "character"}, {"positions": "all", "tau": 0.99}, {"tau": 0.05}],
)
def test_other_readings_of_the_paper_are_measured_too(choice):
    """With the weights of the chosen experts of one token most entries of a profile are zero."""
    found = ss.run(NAME, part_of("grokking-moe", {250, 2000}), **SMALL, **choice)
    table, variants = found.tables["checkpoints"], found.tables["variants"]
    columns = ["distance", "excess", "weighted_jaccard", "smoothness", "dimension", "dimension_null"]
    assert np.isfinite(table[columns]).all(axis=None)
    wanted = {"unit": "expert", "weights": "softmax"} | choice
    own = variants[(variants["unit"] == wanted["unit"]) & (variants["weights"] == wanted["weights"])]
    assert table["distance"].tolist() == pytest.approx(own["distance"].tolist())


def test_the_nulls_keep_loads_and_take_links_away(result):
    table = result.tables["checkpoints"]
    assert (table["distance_low"] <= table["distance"]).all() and (
        table["distance"] <= table["distance_high"]
    ).all()
    assert table["excess"].tolist() == pytest.approx(
        (1 - table["distance"] / table["distance_null"]).tolist()
    )
    end = row(result, "test", 2000)
    assert end["excess"] > 0.2 and end["distance_z"] < -5 and end["dimension"] < end["dimension_null"]
    begin = row(result, "test", 0)
    assert abs(begin["contrast"]) < 0.02 and end["contrast_low"] > 0 and end["contrast_p"] == 0.05


def test_flow_counts_first_choices(result, samples, plain):
    profiles, _, _ = plain
    first = profiles.argmax(-1)
    table = result.tables["flow"]
    table = table[table["step"] == 1450].set_index(["layer", "expert", "next_expert"])["tokens"]
    assert table.groupby("layer").sum().tolist() == [80] * 3
    for (layer, one, two), count in table.items():
        assert count == ((first[:, layer] == one) & (first[:, layer + 1] == two)).sum()


def test_links_leads_and_what_is_said(result):
    table = result.tables["correlations"]
    assert (table["n"] == 9).all() and "distance_expert_softmax" in set(table["measure"])
    own = result.tables["checkpoints"].query("group == 'train' and step >= 75")
    score = result.tables["checkpoints"].query("group == 'test' and step >= 75")["accuracy"]
    found = table.query("measure == 'excess' and score == 'test accuracy'").iloc[0]
    assert found["spearman"] == pytest.approx(spearmanr(own["excess"], score).statistic)
    assert result.scalars["distance_correlation"].interval.n == 9
    led = {"test_loss", "test_loss_log10", "test_accuracy", "weight_norm", "excess", "contrast_unseen"}
    assert led <= set(result.tables["leads"]["measure"])
    power = result.tables["power"].groupby("over")["n"].max()
    assert power["all"] == 9 and power["steady"] == result.tables["steady"]["n"].max() < 9
    assert result.tables["swap"].empty and result.tables["foretelling"].empty
    texts = [statement.text for statement in statements(result)]
    assert "at the same loads" in texts[0] and "over 9 checkpoints" in texts[1]
    for view in ANALYSIS.views:
        figure = result.view(view.name)
        check_figure(figure, view.name)
    assert any("One run" in note.message for note in result.notes)


def test_a_run_that_was_interrupted_goes_on_after_its_last_checkpoint(series, result, tmp_path, monkeypatch):
    from sparsescope.analysis.pathways import tables as make

    with monkeypatch.context() as broken:
        broken.setattr(make, "followed", lambda own: 1 / 0)
        with pytest.raises(Exception, match="division by zero"):
            ss.run(NAME, series, store=tmp_path, **SMALL)
    monkeypatch.setattr(CheckpointSeries, "subject", _last_only(series))
    again = ss.run(NAME, series, store=tmp_path, **SMALL)
    for name, table in result.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)


def _last_only(series):
    """Only the last checkpoint, whose identity names the run, may be loaded."""
    load_one = series._load

    def subject(self, step):
        assert step == series.steps[-1], "a checkpoint is read again"
        return load_one(self.checkpoint(step))

    return subject


def test_memorized_groups_follow_the_rule_of_the_paper(series, samples):
    params = SMALL | {"samples": 120, "memorized_share": 0.2, "delta": 0.5}
    found = ss.run(NAME, series, **params).tables["memorized"]
    whole = samples_of(series, None, PathwaysParams(**params))
    losses = []
    for step in series.steps:
        read = reading.read_checkpoint(series.subject(step), whole, [])
        losses.append(read["loss"][whole.rows("train")])
    losses = np.stack(losses, 1)
    eps = chosen_eps(losses, 0.2, 0.5)
    since = memorized_from(losses, eps, 0.5)
    counts = {series.steps[at]: int((since == at).sum()) for at in np.unique(since[since >= 0])}
    expected = {step: count for step, count in counts.items() if count >= 10}
    assert expected and len(counts) > len(expected), "a group below least_samples is left out"
    assert dict(found.groupby("memorized_at")["samples"].first()) == expected
    assert found["eps"].iloc[0] == pytest.approx(eps)
    assert (found["relative"] == found["step"] - found["memorized_at"]).all()


def test_correlations_without_leaps_leave_them_out(result):
    """At step 1700 the training loss of this run leaps and its accuracy falls."""
    table = result.tables["checkpoints"]
    leaps = table.query("group == 'train' and step >= 75 and accuracy < 0.99")["step"].tolist()
    assert 1700 in leaps
    assert (result.tables["steady"]["n"] == 9 - len(leaps)).all()
    kept = table.query("step >= 75 and step not in @leaps")
    train, test = (kept[kept["group"] == group] for group in ("train", "test"))
    found = result.tables["steady"].query("measure == 'excess' and score == 'test accuracy'").iloc[0]
    assert found["pearson"] == pytest.approx(np.corrcoef(train["excess"], test["accuracy"])[0, 1])


def test_seeds_are_set_beside_each_other(series):
    steps = {0, 150, 250, 500, 1000, 1350, 1450, 1600, 1700, 2000}
    other = part_of("grokking-moe", steps)
    other.name = "again"
    context_seeds = ss.run(NAME, [series, other], **SMALL)
    swap = context_seeds.tables["swap"]
    assert (swap["series"] == 2).all() and set(swap["over"]) == {"all"}, "too few are steady"
    assert (swap["n"] == 9).all()
    own = swap.query("of == 'values' and score == 'test accuracy'")
    assert own["own"].tolist() == pytest.approx(own["other"].tolist()), (
        "the same run twice: no link of its own"
    )
    assert (own["p"] == 1).all()
    assert context_seeds.tables["checkpoints"]["series"].nunique() == 2


@pytest.fixture(scope="module")
def text():
    return ss.run(NAME, part_of("bytes-moe", {0, 300, 1500}), sample_tokens=32, **SMALL)


def test_text_is_read_in_samples_of_equal_length(text):
    series = open_series("bytes-moe")
    samples = samples_of(series, probe_corpus(series), PathwaysParams(sample_tokens=32, **SMALL))
    assert samples.groups == ("text",) and samples.tokens.shape == (40, 32)
    assert (samples.targets[:, 1:-1] == samples.tokens[:, 2:]).all() and (samples.targets[:, -1] == -1).all()
    assert not samples.read[0] and not samples.read[-1] and samples.read[1:-1].all()
    table = text.tables["checkpoints"]
    assert (table["samples"] == 40).all() and (table["units"] < 40).all()
    assert table["loss"].iloc[-1] < table["loss"].iloc[0]
    subject = series.subject(1500)
    with torch.no_grad():
        logits = subject.model(torch.from_numpy(samples.tokens)).logits[:, 1:-1]
    nll = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.from_numpy(samples.tokens[:, 2:]).reshape(-1)
    )
    assert table["loss"].iloc[-1] == pytest.approx(float(nll), rel=1e-4)
    assert np.isnan(text.scalars["memorized_step"].value) and text.tables["memorized"].empty
    assert any("what was trained on is not known" in note.message for note in text.notes)
    assert any("fewer than 8" in note.message for note in text.notes)
    for view in ANALYSIS.views:
        check_figure(text.view(view.name), view.name)


@pytest.fixture(scope="module")
def dense():
    return ss.run(NAME, part_of("grokking-short", {0, 250, 2500, 9000}), **SMALL)


def test_dense_models_have_blocks_of_neurons(dense):
    table = dense.tables["checkpoints"]
    assert table[["smoothness", "roughness", "markov_gain"]].isna().all(axis=None), "one layer"
    assert dense.tables["flow"].empty
    drawn = dense.tables["random_partitions"]
    assert set(drawn["measure"]) == set(measures.PARTITIONED) and drawn["random_sd"].notna().all()
    assert dense.tables["variants"]["weights"].unique().tolist() == ["mass"]
    assert any("One layer" in note.message for note in dense.notes)
    assert not any("look ahead" in note.message for note in dense.notes), "blocks are those of t_mem"
    for view in ANALYSIS.views:
        check_figure(dense.view(view.name), view.name)
    assert dense.scalars["distance_excess"].interval is not None


def test_profiles_of_blocks_are_shares_of_what_neurons_write():
    series = part_of("grokking-short", {250})
    params = PathwaysParams(**SMALL)
    samples, subject = samples_of(series, None, params), series.subject(250)
    own, other = (reading.make_partition(subject, params, draw) for draw in (None, 0))
    found = reading.read_checkpoint(subject, samples, [own, other])
    (site,) = subject.sites("blocks.*.mlp.hook_post")
    held = {}
    with subject.attach([site], lambda s, tensor, rows: held.__setitem__("a", tensor[:, -1].clone())):
        subject.forward(samples.tokens)
    written = subject.parameter("weight:blocks.0.mlp.out.weight").norm(dim=0)
    mass = (held["a"].abs() * written).numpy()
    for name, partition in (("mass", own), ("random", other)):
        profiles = found[name] if name == "mass" else found[name][0]
        for block in range(8):
            expected = mass[:, partition.labels[0] == block].sum(1) / mass.sum(1)
            np.testing.assert_allclose(profiles[:, 0, block], expected, atol=1e-5)
    assert np.bincount(own.labels[0]).max() - np.bincount(own.labels[0]).min() <= 1
    again = reading.make_partition(subject, params, 0)
    assert np.array_equal(again.labels[0], other.labels[0])


def test_blocks_of_the_last_checkpoint_look_ahead():
    found = ss.run(NAME, part_of("grokking-short", {250, 9000}), partition_from="last", **SMALL)
    assert any("look ahead" in note.message for note in found.notes)


def test_dense_models_of_text_are_read():
    found = ss.run(NAME, part_of("lazy-swiglu", {0, 1500}), sample_tokens=16, **SMALL)
    table = found.tables["checkpoints"]
    assert table["smoothness"].notna().all() and table["distance"].notna().all()
    assert any("look ahead" in note.message for note in found.notes), "this run never fits its text"


def test_leads_are_those_of_the_run_without_leaps(series):
    """The leap at step 1700 is no half of a way."""
    leads = ss.run(NAME, series, **SMALL).tables["leads"].set_index("measure")
    curves = training_curves(series).query("step < 75 or train_accuracy >= 0.99")
    for name, values in (
        ("test_accuracy", curves["test_accuracy"]),
        ("test_loss", curves["test_loss"]),
        ("test_loss_log10", np.log10(curves["test_loss"])),
    ):
        expected = half_way(curves["step"].to_numpy(), values.to_numpy(), 75, int(curves["step"].max()))
        assert leads.loc[name, "half_way"] == pytest.approx(expected)
    assert leads.loc["test_loss", "half_way"] < leads.loc["test_loss_log10", "half_way"]


def test_other_models_beside_a_series_are_told_from_seeds(series):
    found = ss.run(NAME, [series, part_of("grokking-short", {0, 250, 2500, 9000})], **SMALL)
    assert any("no other seeds of one recipe" in note.message for note in found.notes)
    assert not any("no other seeds" in note.message for note in ss.run(NAME, [series, series], **SMALL).notes)


def test_few_checkpoints_and_one_label_say_nothing():
    few = ss.run(NAME, part_of("bytes-moe", {0, 300, 700, 1500}), sample_tokens=16, **SMALL)
    assert not any("correlate" in statement.text for statement in statements(few))
    corpus = ss.corpus("python-docs", tokens=4096, context=64)
    alone = ss.run(NAME, part_of("bytes-moe", {0, 1500}), corpus, sample_tokens=16, **SMALL)
    assert np.isnan(alone.tables["labels"]["difference"]).all()
    assert "One label" in alone.view("labels").layout.title.text


# -- what it refuses ------------------------------------------------------------------------------


def foreign(names, name="org/odd"):
    return CheckpointSeries(
        name, [Checkpoint(step, f"step{step}") for step in names], lambda found: load(names[found.step])
    )


def test_series_of_others_read_a_text_that_is_given():
    corpus = ss.corpus("python-docs", tokens=2048, context=32)
    found = ss.run(NAME, foreign({1: "random-olmoe", 2: "random-olmoe"}), corpus, sample_tokens=16, **SMALL)
    assert len(found.tables["checkpoints"]) == 2 and np.isnan(found.tables["onsets"]["memorized"]).all()
    with pytest.raises(SpecError, match="nothing that the checkpoints could read") as caught:
        ss.run(NAME, foreign({1: "random-olmoe", 2: "random-olmoe"}), **SMALL)
    assert "--corpus" in str(caught.value)


def test_checkpoints_with_other_experts_are_refused():
    corpus = ss.corpus("python-docs", tokens=2048, context=32)
    with pytest.raises(SubjectError, match="differ in their experts"):
        ss.run(NAME, foreign({1: "random-olmoe", 2: "random-mixtral"}), corpus, sample_tokens=16, **SMALL)


def test_few_samples_and_long_samples_are_refused(series):
    with pytest.raises(SubjectError, match="too few samples") as caught:
        ss.run(NAME, series, samples=20)
    assert "30" in str(caught.value) and "train" in str(caught.value)
    with pytest.raises(SpecError, match="longer than the windows"):
        ss.run(NAME, part_of("bytes-moe", {0, 1500}), **(SMALL | {"sample_tokens": 200}))


def test_more_blocks_than_neurons_are_refused():
    with pytest.raises(SpecError, match="so many blocks"):
        ss.run(NAME, part_of("grokking-short", {250, 9000}), **(SMALL | {"blocks": 1024}))


def test_a_text_given_to_models_that_read_residues_is_refused(series):
    with pytest.raises((SpecError, SubjectError), match="tokenizer"):
        ss.run(NAME, series, ss.corpus("python-docs", tokens=512, context=32), **SMALL)

"""Dictionary quality of dictionaries that are given: their places, what they have seen, equal L0, seeds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, hstack

import sparsescope as ss
from sparsescope.analysis.dictionary_quality import ANALYSIS, over_seeds
from sparsescope.analysis.dictionary_quality.documents import divide
from sparsescope.analysis.dictionary_quality.entries import Entry
from sparsescope.analysis.dictionary_quality.measure import Sample
from sparsescope.analysis.dictionary_quality.probes import absorption_rows
from sparsescope.analysis.dictionary_quality.statements import statements
from sparsescope.core.artifact_store import ArtifactStore
from sparsescope.dictionaries import JumpReLUSAE, ReLUSAE, TopKSAE, Transcoder
from sparsescope.dictionaries.artifact import keep_dictionary
from sparsescope.dictionaries.baselines import neuron_basis
from sparsescope.dictionaries.documents import document_digest
from sparsescope.dictionaries.given import GivenDictionary
from sparsescope.dictionaries.rows import TensorRows
from sparsescope.dictionaries.train import train
from sparsescope.errors import SubjectError
from sparsescope.metrics.token_labels import LETTERS
from sparsescope.testing import check_figure, check_statements

NAME = "dictionary_quality"
SMALL = {
    "loss_tokens": 200,
    "loss_document_tokens": 32,
    "probe_rows": 150,
    "permutations": 1,
    "resamples": 100,
    "baselines": ("neurons",),
    "absorption": False,
}
SITE = "blocks.2.mlp.hook_post"


def text(tokens=2600, seed=0):
    return ss.corpus("python-docs", tokens=tokens, context=64, seed=seed)


def run(subject, dictionary, corpus=None, **params):
    return ss.run(NAME, subject, corpus or text(), dictionary=dictionary, **{**SMALL, **params})


def given(dictionary, folder, name="one", **training):
    return GivenDictionary(
        keep_dictionary(dictionary, ArtifactStore(folder).keep, training=training, meta={"name": name})
    )


@pytest.fixture(scope="module")
def rows(glass):
    """Activations of other text, to make dictionaries of."""
    with ss.capture(glass, text(2600, seed=9), [SITE]) as source:
        return torch.cat([batch.values[SITE][torch.from_numpy(batch.positions > 0)] for batch in source])


def topk(rows, seed=0, width=48, k=8):
    made = TopKSAE(rows.shape[1], width, k=k, site=SITE, seed=seed)
    return train(made, TensorRows(rows, batch_rows=256, site=SITE)).dictionaries["dictionary"]


def jumprelu(rows, l0, width=48):
    """Thresholds that this many features are above on these rows."""
    plain = topk(rows, width=width)
    made = JumpReLUSAE(rows.shape[1], width, site=SITE)
    with torch.no_grad():
        for name in ("encoder", "encoder_bias", "decoder", "decoder_bias"):
            getattr(made, name).copy_(getattr(plain, name))
        scores = (rows - made.decoder_bias) @ made.encoder.T + made.encoder_bias
        made.threshold.fill_(float(scores.flatten().topk(int(l0 * len(rows))).values[-1]))
    return made


def row_of(result, label, table="quality"):
    frame = result.tables[table]
    return frame[frame["dictionary"] == label].iloc[0]


def test_documents_that_were_seen_are_left_out(glass, rows, tmp_path):
    corpus = text().tokenize(glass.tokenizer, glass.max_positions)
    marks = [document_digest(document.ids) for document in corpus.documents]
    assert len(set(marks)) == len(marks) >= 20
    seen = {"train": marks[:5], "thresholds": marks[5:8], "held_out": marks[8:12]}
    one = given(topk(rows), tmp_path, documents=seen)
    result = run(glass, one)
    documents = result.tables["quality"]["documents"].iloc[0]
    entry = type("E", (), {"training": one.training, "label": "one"})()
    parts = divide(corpus, [entry], 0.6, 0)
    assert parts.left_out == 8 and documents == len([d for d in parts.evaluation.documents if len(d) > 1])
    used = {d.index for d in (*parts.fit.documents, *parts.evaluation.documents)}
    assert used == {document.index for document in corpus.documents[8:]}
    assert any("8 documents" in n.message and "left out" in n.message for n in result.notes)
    assert not any("not known which documents" in n.message for n in result.notes)
    entry.training = {"documents": {"train": marks[:-7]}}
    with pytest.raises(SubjectError, match="have not seen") as caught:
        divide(corpus, [entry], 0.6, 0)
    assert "one" in caught.value.where and "--seed" in caught.value.next_step
    entry.training = {"documents": {"train": marks[:-8]}}
    assert len(divide(corpus, [entry], 0.6, 0).evaluation.documents) >= 1
    entry.training = {}
    assert divide(corpus, [entry], 0.6, 0).left_out == 0


def test_a_dictionary_needs_a_place_in_the_model(glass, rows, tmp_path):
    lost = topk(rows)
    lost.site = "blocks.77.mlp.hook_post"
    with pytest.raises(SubjectError, match="no such site") as caught:
        run(glass, given(lost, tmp_path / "a", "lost"))
    assert "lost" in caught.value.where and "blocks.77" in caught.value.got
    assert "blocks.*.mlp.hook_post" in caught.value.allowed and "resid" not in caught.value.allowed
    lost.site = "blocks.1.hook_out"
    with pytest.raises(SubjectError, match="another width") as caught:
        run(glass, given(lost, tmp_path / "b", "wide"))
    assert "341" in caught.value.got and "128" in caught.value.got
    lost.site = ""
    nameless = given(lost, tmp_path / "c", "nameless")
    with pytest.raises(SubjectError, match="not known which site") as caught:
        run(glass, nameless)
    assert "--set site=" in caught.value.next_step
    result = run(glass, nameless, site="blocks.1.mlp.hook_post")
    assert set(result.tables["quality"]["site"]) == {"blocks.1.mlp.hook_post"}
    assert any("not known which documents nameless" in note.message for note in result.notes)


def test_thresholds_are_set_for_one_l0_on_other_documents(glass, rows, tmp_path):
    many, few = jumprelu(rows, 15.0), jumprelu(rows, 4.0)
    inputs = [
        given(many, tmp_path, "many"),
        given(few, tmp_path, "few"),
        given(topk(rows, k=8), tmp_path, "eight"),
        given(topk(rows, k=5), tmp_path, "five"),
    ]
    before = run(glass, inputs, text(1800))
    assert row_of(before, "many")["l0"] > 11 and row_of(before, "few")["l0"] < 6
    assert row_of(before, "many")["thresholds"] == "as in its file"
    after = run(glass, inputs, text(1800), match_l0=8.0)
    for label in ("many", "few"):
        assert row_of(after, label)["l0"] == pytest.approx(8.0, rel=0.15)
        assert "set for L0 8" in row_of(after, label)["thresholds"]
    assert row_of(after, "eight")["l0"] == row_of(before, "eight")["l0"]
    assert row_of(after, "five")["l0"] == pytest.approx(5.0, rel=0.1)
    notes = [note.message for note in after.notes if note.place == "match_l0"]
    assert len(notes) == 1 and "five" in notes[0] and "eight" not in notes[0]
    equal = (
        after.tables["comparisons"].query("first == 'many' and second == 'few' and measure == 'FVU'").iloc[0]
    )
    assert equal["equal_l0"] == "yes" and not equal["low"] > 0.05
    assert after.run_id is None and "At equal numbers of active features" in statements(after)[0].text


def test_dictionaries_that_differ_by_their_seed_are_matched(glass, rows, tmp_path):
    first, second, other = topk(rows, 0), topk(rows, 1), topk(rows, 2, width=40)
    turned = topk(rows, 0)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name in ("encoder", "encoder_bias", "decoder"):
            getattr(turned, name).copy_(getattr(first, name)[order])
    inputs = [given(one, tmp_path, name) for one, name in
              ((first, "a"), (second, "b"), (turned, "c"), (other, "d"))]  # fmt: skip
    result = run(glass, inputs)
    table = result.tables["seeds"].set_index(["first", "second"])
    assert sorted(table.index) == [("a", "b"), ("a", "c"), ("b", "c")], "of one width only"
    same = table.loc[("a", "c")]
    assert same["mcc"] == pytest.approx(1, abs=1e-5) and same["stable_90"] == 1 and same["used_70"] == 1
    apart = table.loc[("a", "b")]
    assert apart["chance"] < apart["mcc"] < 0.999 and apart["chance"] < apart["chance_data"] < 1
    assert apart["mcc"] == pytest.approx(table.loc[("b", "c")]["mcc"], abs=1e-5)
    both = result.tables["quality"].set_index("dictionary")
    assert both.loc["a", "fvu"] == pytest.approx(both.loc["c", "fvu"], rel=1e-5)
    check_figure(result.view("seeds"))


def test_rules_are_compared_over_the_seeds_that_both_have(glass, rows, tmp_path):
    """The numbers are those of the single comparisons; trained ones beat untrained ones in every seed."""
    trained = [given(topk(rows, seed), tmp_path, f"topk-48-k8-s{seed}") for seed in range(3)]
    raw = []
    for seed in range(2):
        made = TopKSAE(rows.shape[1], 48, k=8, site=SITE, seed=seed)
        made.begin(rows.mean(0), rows.mean(0), rows[:64], True)
        raw.append(given(made, tmp_path, f"raw-48-k8-s{seed}", facts={"architecture": "raw"}))
    result = run(glass, [*trained, *raw])
    fvu = result.tables["quality"].set_index("dictionary")["fvu"]
    row = result.tables["rules"].iloc[0]
    single = [fvu[f"topk-48-k8-s{seed}"] - fvu[f"raw-48-k8-s{seed}"] for seed in range(2)]
    assert len(result.tables["rules"]) == 1 and row["seeds"] == 2
    assert (row["first"], row["second"]) == ("topk-48-k8", "raw-48-k8")
    np.testing.assert_allclose(
        [row["difference"], row["least"], row["most"]], [np.mean(single), min(single), max(single)]
    )
    assert row["low"] <= row["difference"] <= row["high"] < 0 and row["verdict"] == "first is better"
    number = result.scalars["fvu_topk_48_k8_minus_raw_48_k8"]
    assert number.value == row["difference"] and number.interval.low == row["low"]
    spread = result.tables["families"].set_index("family")
    assert spread["seeds"].to_dict() == {"topk-48-k8": 3, "raw-48-k8": 2}
    mine = fvu[[f"topk-48-k8-s{seed}" for seed in range(3)]]
    found = spread.loc["topk-48-k8", ["fvu_least", "fvu", "fvu_most"]].astype(float)
    np.testing.assert_allclose(found, [mine.min(), mine.mean(), mine.max()])
    assert (
        "topk-48-k8 leaves" in statements(result)[0].text
        and "in each of 2 seeds" in statements(result)[0].text
    )
    assert len(result.tables["seeds"]) == 4  # three pairs of one family, one of the other
    check_figure(result.view("rules"))


def test_a_rule_that_wins_with_one_seed_only_is_not_better():
    ends, differences = (-0.2, -0.1), np.array([-0.3, 0.05])
    assert over_seeds._verdict(*ends, differences) == "seeds disagree"
    assert over_seeds._verdict(*ends, np.array([-0.3, -0.05])) == "first is better"
    assert over_seeds._verdict(0.1, 0.2, np.array([0.3, 0.05])) == "second is better"
    assert over_seeds._verdict(-0.1, 0.2, np.array([0.3, 0.05])) == "not distinguishable"


def test_two_sites_are_read_in_one_pass_and_kept_apart(glass, rows, tmp_path, monkeypatch):
    inside = topk(rows)
    outside = TopKSAE(128, 24, k=4, site="blocks.0.hook_out", seed=3)
    across = Transcoder(128, 32, k=4, site="blocks.1.mlp.hook_in", site_out="blocks.1.hook_mlp_out")
    with torch.no_grad():
        across.threshold.fill_(0.5)
    inputs = [
        given(inside, tmp_path, "inside"),
        given(outside, tmp_path, "outside"),
        given(across, tmp_path, "across"),
    ]
    every = ("pca", "pca_topk", "neurons", "random")
    result = run(glass, inputs, text(1800), baselines=every)
    quality = result.tables["quality"].set_index("dictionary")
    assert quality.loc["across", "site"] == "blocks.1.mlp.hook_in"
    assert quality.loc["across", "target"] == "blocks.1.mlp.hook_out"
    by_site = result.tables["quality"].groupby("site")["kind"].apply(list)
    assert by_site["blocks.1.mlp.hook_in"] == ["dictionary"], "nothing untrained maps one site to another"
    assert by_site["blocks.0.hook_out"].count("baseline") == 4
    splice = result.tables["splice"]
    assert (splice["kind"] == "ablation").sum() == 6
    for row in splice.itertuples():
        zero = splice[(splice["site"] == row.site) & splice["dictionary"].str.startswith("Set to zero")]
        assert row.zero_rise == zero["rise"].iloc[0]
    alone = run(glass, inputs[1], text(1800))
    assert row_of(alone, "outside")["fvu"] == pytest.approx(quality.loc["outside", "fvu"], rel=1e-6)
    pairs = result.tables["comparisons"]
    assert not set(pairs["second"]) & {"inside", "outside", "across"}, "other sites are no comparison"
    neurons = {name for name in result.tables["probing"]["dictionary"] if name.startswith("Neurons")}
    assert len(neurons) == 3
    check_statements(result)


def test_absorption_is_measured_by_both_sets_of_parameters(glass, rows, tmp_path):
    """Planted: the feature of a letter is silent on every fourth token, whose own feature carries the
    letter."""
    words = [f"{letter}{n}" for letter in LETTERS for n in range(8)]
    ids = np.tile(np.arange(len(words)), 9)
    letter, special = ids // 8, ids % 4 == 0
    codes = csr_array(np.eye(26)[letter] * ~special[:, None] + 0.0)
    codes = hstack([codes, csr_array(np.eye(len(words))[ids] * special[:, None])]).tocsr()
    dictionary = TopKSAE(26, 26 + len(words), k=1)
    with torch.no_grad():
        dictionary.decoder.copy_(
            torch.eye(26)[torch.tensor([*range(26), *(n // 8 for n in range(len(words)))])]
        )
    values = np.asarray(codes @ dictionary.decoder.detach().numpy(), np.float32)
    site = glass.sites(SITE)[0]
    entry = Entry("planted", dictionary, site, site)
    sample = Sample(ids, ids, ids, values, {"planted": codes})
    reader = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda one: words[one[0]]))
    place = SimpleNamespace(entries=[entry], sample=sample)
    table = list(absorption_rows(place, reader, ANALYSIS.params()))
    for name in ("paper", "code"):
        each = [row for row in table if row["parameters"] == name and row["letter"] != "mean"]
        mean = next(row for row in table if row["parameters"] == name and row["letter"] == "mean")
        assert mean["letters"] == len(each) >= 20 and mean["full"] == pytest.approx(
            np.mean([r["full"] for r in each])
        )
        assert 0.1 < mean["full"] < 0.45 and mean["fraction"] == pytest.approx(mean["full"]), (
            "a fourth is absorbed"
        )
    place.entries = [Entry("groups", neuron_basis(torch.from_numpy(values), 2), site, site)]
    assert not list(absorption_rows(place, reader, ANALYSIS.params())), "only of sparse autoencoders"
    result = run(glass, given(topk(rows), tmp_path), text(1400), absorption=True)
    assert "absorption" not in result.tables, "tokens of a small vocabulary cannot be divided"
    result.add("absorption", table)
    check_figure(result.view("absorption"))


def test_what_training_said_stands_beside_what_is_measured(glass, rows, tmp_path):
    trained = train(TopKSAE(341, 48, k=8, site=SITE), rows)
    counted = trained.census["dictionary"]
    facts = {**trained.facts["dictionary"], "dead_share": 0.125, "dead_counted_rows": 12345}
    census = {"rows": counted.rows, "rows_per_feature": counted.rows_per_feature.tolist(),
              "first_row": counted.first_row.tolist()}  # fmt: skip
    one = given(trained.dictionaries["dictionary"], tmp_path, facts=facts, census=census)
    result = run(glass, one)
    row = row_of(result, "one")
    said = {"training_fvu": "train_fvu", "training_dead_share": "dead_share"}
    for column in ("training_fvu", "training_dead_share", "gamma", "born_dead_raw", "born_dead_centred"):
        fact = said.get(column, column)
        assert row[column] == pytest.approx(facts[fact])
    assert {"training", "evaluation"} == set(result.tables["dead_curve"]["counted"])
    assert result.scalars["dead_share_one"].value == facts["dead_share"]
    assert "12345 tokens" in result.scalars["dead_share_one"].definition
    bare = run(glass, given(trained.dictionaries["dictionary"], tmp_path / "other", "bare"))
    row = row_of(bare, "bare")
    assert np.isnan(row["training_fvu"]) and row["gamma"] == pytest.approx(facts["gamma"], rel=0.2)
    assert bare.scalars["dead_share_bare"].value == row["dead_share"]


def test_labels_of_strangers_are_shown_as_text(glass, rows, tmp_path, hostile_strings):
    result = run(glass, given(ReLUSAE(341, 24, site=SITE), tmp_path), text(1400))
    before = {name: table.copy() for name, table in result.tables.items()}
    for label in list(hostile_strings.STRINGS.values())[:4]:
        for name, table in before.items():
            shown = table.copy()
            for column in {"dictionary", "first", "second"} & {*shown}:
                shown[column] = [label if value == "one" else value for value in shown[column]]
            result.tables[name] = shown
        for view in ANALYSIS.views:
            for value in view.choices(result)[:2] or [None] if view.table in result.tables else ():
                figure = result.view(view.name, select=value)
                check_figure(figure, view.name)
                figure.layout.meta = None  # the alt text is no markup; who shows it escapes it
                shown = figure.to_json().replace("\\u003c", "<")
                assert not [tag for tag in ("<script", "<img", "<svg", "<iframe") if tag in shown], view.name
        statements(result)

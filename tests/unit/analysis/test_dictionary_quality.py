"""Dictionary quality end to end: its numbers against independent computations, what is spliced and kept."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.context import Context
from sparsescope.activations.losses import token_losses
from sparsescope.analysis.dictionary_quality import ANALYSIS, report, trained_here
from sparsescope.analysis.dictionary_quality import splice as splicing
from sparsescope.analysis.dictionary_quality.documents import divide
from sparsescope.analysis.dictionary_quality.statements import statements
from sparsescope.core.registry import analyses
from sparsescope.dictionaries.documents import beginnings
from sparsescope.dictionaries.given import GivenDictionary
from sparsescope.dictionaries.places import default_site
from sparsescope.dictionaries.rows import RowFacts
from sparsescope.dictionaries.site_rows import fit_rows
from sparsescope.dictionaries.snmf import SNMFDictionary
from sparsescope.metrics.probing import sparse_probes, split_by_document
from sparsescope.metrics.token_labels import is_punctuation
from sparsescope.testing import check_figure, check_statements

NAME = "dictionary_quality"
SMALL = {
    "width": 96,
    "k": 8,
    "epochs": 3,
    "components": 12,
    "iterations": 6,
    "loss_tokens": 300,
    "loss_document_tokens": 48,
    "probe_rows": 900,
    "resamples": 100,
    "permutations": 1,
    "absorption": False,
}


def text(tokens=2200, seed=0):
    return ss.corpus("python-docs", tokens=tokens, context=64, seed=seed)


def run(subject, corpus=None, **params):
    store = params.pop("store", None)
    return ss.run(NAME, subject, corpus or text(), store=store, **{**SMALL, **params})


@pytest.fixture(scope="module")
def found(glass):
    return run(glass)


@pytest.fixture(scope="module")
def scored(glass):
    """The parts of the text; activations that count in the evaluation, [row, d]; their documents and ids."""
    parts = divide(text().tokenize(glass.tokenizer, glass.max_positions), [], 0.6, 0)
    site = default_site(glass).name
    rows, documents, ids = [], [], []
    with ss.capture(glass, parts.evaluation, [site]) as source:
        for batch in source:
            kept = batch.positions > 0
            rows.append(batch.values[site][torch.from_numpy(kept)].clone())
            documents += [batch.document] * int(kept.sum())
            ids += batch.token_ids[kept].tolist()
    return parts, torch.cat(rows), np.array(documents), np.array(ids)


def row_of(result, table, **where):
    frame = result.tables[table]
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, (table, where, len(frame))
    return frame.iloc[0]


def kept(result, name):
    return GivenDictionary(result.artifacts[name]).load()


def test_fvu_and_l0_are_what_the_kept_dictionaries_give(found, scored):
    _, x, documents, _ = scored
    for label in ("TopK", "SNMF"):
        dictionary = kept(found, label.lower())
        made = dictionary.reconstruct(x).double().numpy()
        y = x.double().numpy()
        fvu = ((y - made) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
        row = row_of(found, "quality", dictionary=label)
        assert row["fvu"] == pytest.approx(fvu, rel=1e-6)
        assert row["low"] < row["fvu"] < row["high"] and row["explained_variance"] == pytest.approx(
            1 - fvu, rel=1e-6
        )
        codes = dictionary.encode(x)
        assert row["l0"] == pytest.approx(len(codes.values) / len(x))
        active = codes.rows_per_feature.numpy()
        assert row["dead_share"] == pytest.approx((active == 0).mean())
        assert row["dense_share"] == pytest.approx((active > 0.1 * len(x)).mean())
        assert (row["tokens"], row["documents"]) == (len(x), len(set(documents.tolist())))
        assert found.scalars[f"fvu_{label.lower()}"].value == row["fvu"]
        scalar = found.scalars[f"fvu_{label.lower()}"].interval
        assert (scalar.low, scalar.high, scalar.n) == (row["low"], row["high"], row["documents"])


def test_what_is_kept_is_what_was_trained(found, glass, scored):
    """On the rows that it was trained on it makes the error that its training counted."""
    fit, site = scored[0].fit, default_site(glass)
    x = fit_rows(Context.of(subject=glass, text=fit), fit, [site], 0).rows[site.name]
    for name in ("topk", "snmf"):
        made, y = kept(found, name).reconstruct(x).double(), x.double()
        fvu = float((y - made).square().sum() / (y - y.mean(0)).square().sum())
        said = GivenDictionary(found.artifacts[name]).training["facts"]["train_fvu"]
        assert said == pytest.approx(fvu, rel=1e-4)


def test_what_is_kept_is_of_the_site_and_knows_its_documents(found, scored):
    from sparsescope.dictionaries.documents import document_digest

    parts = scored[0]
    for name, kind in (("topk", "topk"), ("snmf", "snmf")):
        given = GivenDictionary(found.artifacts[name])
        dictionary = given.load()
        assert dictionary.architecture == kind and dictionary.site == "blocks.2.mlp.hook_post"
        assert given.training["documents"]["train"] == [document_digest(d.ids) for d in parts.fit.documents]
        assert (
            "cpu_seconds" not in given.training["facts"]
            and given.label == {"topk": "TopK", "snmf": "SNMF"}[name]
        )
    assert isinstance(kept(found, "snmf"), SNMFDictionary)
    seen = {d.index for d in parts.fit.documents}
    assert not seen & {d.index for d in parts.evaluation.documents}


def test_the_rise_of_the_loss_is_that_of_replaced_activations(found, glass, scored):
    """The same with the edits of ``token_losses``, rule by rule."""
    parts, site = scored[0], default_site(glass)
    corpus = beginnings(parts.evaluation, SMALL["loss_tokens"], SMALL["loss_document_tokens"])
    assert max(map(len, corpus.documents)) <= 48 and 300 <= corpus.n_tokens < 348
    last = [document.index for document in parts.evaluation.documents][-len(corpus.documents) :]
    assert [document.index for document in corpus.documents] == last, "not the last part"
    mean = fit_rows(Context.of(subject=glass, text=parts.fit), parts.fit, [site], 0).facts[site.name].mean
    plain = token_losses(glass, corpus)
    dictionary = kept(found, "topk")
    rules = {"TopK": dictionary.reconstruct, "Set to zero": torch.zeros_like,
             "Set to its mean": lambda x: mean.expand_as(x)}  # fmt: skip

    def rise(rule):
        def replace(site, tensor, rows, batch):
            inside = torch.from_numpy(batch.text_mask & (batch.position > 0))
            out = tensor.clone()
            out[inside] = rule(tensor[inside])
            return out

        return token_losses(glass, corpus, sites=[site], replace=replace).nll - plain.nll

    zero = rise(torch.zeros_like).mean()
    for label, rule in rules.items():
        row, difference = row_of(found, "splice", dictionary=label), rise(rule)
        assert row["rise"] == pytest.approx(difference.mean(), abs=2e-6)
        assert (row["tokens"], row["documents"]) == (len(plain), len(set(plain.document.tolist())))
        assert row["zero_rise"] == pytest.approx(zero, abs=2e-6)
        if math.isfinite(row["recovered"]):
            assert row["recovered"] == pytest.approx(1 - difference.mean() / zero, abs=1e-4)
        assert row["rise_low"] < row["rise"] < row["rise_high"] and row["divergence"] > 0
    assert found.scalars["model_loss"].value == pytest.approx(plain.mean, abs=2e-6)


def spliced(subject, corpus, rule, facts, reads="blocks.1.mlp.hook_post", writes=""):
    site = {name: subject.sites(name)[0] for name in (reads, writes or reads)}
    variant = splicing.Variant("one", site[reads], site[writes or reads], rule)
    context = Context.of(subject=subject, text=corpus)
    return splicing.splice(context, corpus, [variant], dict.fromkeys(site, facts))


def limit(median):
    return RowFacts(1, torch.zeros(1), 1.0, 1.0, median, 0.0)


@pytest.mark.parametrize("name", ["glassllm", "random-gemma2"])  # gemma changes its logits after the head
def test_what_is_spliced_in_unchanged_changes_nothing(name):
    subject = ss.load(name)
    corpus = text(500).tokenize(subject.tokenizer, subject.max_positions)
    same = spliced(subject, corpus, lambda rows: rows, limit(1e9))
    assert (same.rises == 0).all() and (same.divergences == 0).all()
    plain = token_losses(subject, corpus)
    assert same.nll.sum() / same.targets.sum() == pytest.approx(plain.mean, rel=1e-6)
    other = spliced(subject, corpus, torch.zeros_like, limit(1e9))
    assert (other.divergences > 0).all() and (other.rises != 0).all()


def test_the_divergence_is_that_of_the_next_token(glass):
    corpus = text(60).tokenize(glass.tokenizer, glass.max_positions)
    assert len(corpus.documents) >= 1
    found = spliced(glass, corpus, torch.zeros_like, limit(1e9))
    total = 0.0
    site = glass.sites("blocks.1.mlp.hook_post")

    def zeroed(site, tensor):
        out = torch.zeros_like(tensor)
        out[:, 0] = tensor[:, 0]
        return out

    for batch in corpus.batches(2048):
        plain = glass.forward(batch.input_ids, logits=True).double().log_softmax(-1)
        with glass.edit(site, zeroed):
            other = glass.forward(batch.input_ids, logits=True).double().log_softmax(-1)
        apart = (plain.exp() * (plain - other)).sum(-1)[:, :-1]
        total += float(apart[torch.from_numpy(batch.text_mask[:, 1:])].sum())
    assert found.divergences.sum() == pytest.approx(total, rel=1e-4)


def test_first_positions_and_outliers_go_on_as_they_are(glass):
    corpus = text(400).tokenize(glass.tokenizer, glass.max_positions)
    seen = []

    def rule(rows):
        seen.append(rows)
        return torch.zeros_like(rows)

    spliced(glass, corpus, rule, limit(1e9))
    windows = sum(-(-len(d) // corpus.window) for d in corpus.documents)
    assert sum(map(len, seen)) == corpus.n_tokens - windows, "of each window one token stays"
    every = torch.cat(seen).norm(dim=1)
    seen.clear()
    bound = float(every.median())
    spliced(glass, corpus, rule, limit(bound / 10))
    assert sum(map(len, seen)) == int((every <= bound).sum()) < len(every)
    assert (spliced(glass, corpus, torch.zeros_like, limit(0.0)).rises == 0).all()


def test_a_transcoder_reads_one_site_and_writes_another(glass):
    corpus = text(300).tokenize(glass.tokenizer, glass.max_positions)
    facts, layer = limit(1e9), glass.sites("blocks.1.mlp.hook_in")[0].module_path
    module = copy.deepcopy(glass.model.get_submodule(layer))  # hooks would see it twice
    exact = spliced(
        glass, corpus, lambda rows: module(rows), facts, "blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out"
    )
    assert np.abs(exact.rises).max() < 1e-3
    zero = spliced(glass, corpus, torch.zeros_like, facts, "blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")
    direct = spliced(glass, corpus, torch.zeros_like, facts, "blocks.1.mlp.hook_out")
    assert np.allclose(zero.rises, direct.rises, atol=1e-6) and np.abs(zero.rises).min() > 1e-3


def test_probes_are_those_of_the_codes_of_the_sample(found, glass, scored):
    """With room for all tokens the sample is all of them."""
    _, x, documents, ids = scored
    assert (
        len(x) <= 900
        and row_of(found, "probing", dictionary="TopK", task="punctuation", features=2) is not None
    )
    texts = [glass.tokenizer.decode([int(i)]) for i in ids]
    labels = is_punctuation(texts)[:, None]
    halves = split_by_document(documents, 0)
    for label, codes in (("TopK", kept(found, "topk").encode(x).csr()), ("Neurons", x.numpy())):
        scores = sparse_probes(codes, labels, sizes=(1, 2, 5), permutations=1, split=halves).scores[0]
        for place, size in enumerate((1, 2, 5)):
            row = row_of(found, "probing", dictionary=label, task="punctuation", features=size)
            assert row["balanced_accuracy"] == pytest.approx(scores[place, 1], abs=1e-9)
            assert row["auroc"] == pytest.approx(scores[place, 2], abs=1e-6)
            assert 0.2 < row["null"] < 0.8 and row["tokens"] == len(halves.test)


def test_comparisons_are_paired_and_of_equal_l0_only_where_it_is(found):
    table, quality = found.tables["comparisons"], found.tables["quality"].set_index("dictionary")
    for row in table[table["measure"] == "FVU"].itertuples():
        assert row.difference == pytest.approx(quality.loc[row.first, "fvu"] - quality.loc[row.second, "fvu"])
        assert (row.equal_l0 == "yes") == (
            abs(row.first_l0 - row.second_l0) <= 0.1 * max(row.first_l0, row.second_l0)
        )
        better = (
            "first is better"
            if row.high < 0
            else "second is better"
            if row.low > 0
            else "not distinguishable"
        )
        if row.equal_l0 == "no" and better != "not distinguishable":
            fewer = "first is better" if row.first_l0 < row.second_l0 else "second is better"
            better = better if better == fewer else "more active features"
        assert row.verdict == better
    random = table[(table["second"] == "Random, largest 8") & (table["measure"] == "FVU")].iloc[0]
    assert random["verdict"] == "first is better", "random directions explain as much as trained ones"
    spread = quality.loc["TopK", "high"] - quality.loc["TopK", "low"]
    near = table[(table["second"] == "Neurons, largest 8") & (table["measure"] == "FVU")].iloc[0]
    assert near["high"] - near["low"] < 2 * spread
    splice = found.tables["splice"].set_index("dictionary")
    for row in table[table["measure"] == "loss"].itertuples():
        assert row.difference == pytest.approx(splice.loc[row.first, "rise"] - splice.loc[row.second, "rise"])


@pytest.mark.parametrize(
    ("low", "high", "first", "second", "said"),
    [
        (-0.2, -0.1, 10, 10.5, "first is better"),
        (-0.2, -0.1, 5, 10, "first is better"),
        (-0.2, -0.1, 10, 5, "more active features"),
        (0.1, 0.2, 10, 5, "second is better"),
        (0.1, 0.2, 5, 10, "more active features"),
        (-0.1, 0.2, 5, 10, "not distinguishable"),
        (math.nan, math.nan, 5, 10, "not distinguishable"),
    ],
)
def test_nothing_follows_where_the_better_one_has_more_active_features(low, high, first, second, said):
    assert report._verdict(low, high, first, second) == said


def test_the_recovered_share_is_of_the_rise_at_zero():
    """Two documents; setting to zero costs 2 nats a token, the dictionary 0.5."""
    site = SimpleNamespace(name="here", layer=0, role="mlp.hook_post")
    targets, domains = np.array([10, 30]), np.zeros(2, np.int64)
    rises = np.array([[4.0, 16.0], [25.0, 55.0]])
    numbers = (np.array([0, 1]), domains, targets, rises[1], rises, np.abs(rises))
    told = splicing.Spliced(("one", "zero here"), *numbers)
    corpus = SimpleNamespace(documents=())
    found = report.Reporter(ANALYSIS.params(**SMALL), corpus, [], told, {})
    row = found._spliced(0, "one", "dictionary", site)
    assert (row["rise"], row["zero_rise"], row["recovered"]) == (0.5, 2.0, 0.75)
    ends = sorted([1 - 4 / 25, 1 - 16 / 55])  # of the documents alone
    assert row["recovered_low"] == pytest.approx(ends[0]) and row["recovered_high"] == pytest.approx(ends[1])
    nothing = splicing.Spliced(told.names, *numbers[:4], rises * [[1, 1], [-1, 1]], numbers[5])
    row = report.Reporter(ANALYSIS.params(**SMALL), corpus, [], nothing, {})._spliced(0, "one", "", site)
    assert math.isnan(row["recovered"]), "zero ablation does not certainly raise the loss"


def test_densities_and_dead_curves_count_the_same_features(found, scored):
    x = scored[1]
    for label in ("TopK", "SNMF"):
        width = row_of(found, "quality", dictionary=label)["width"]
        dead = row_of(found, "quality", dictionary=label)["dead_share"]
        bins = found.tables["densities"][found.tables["densities"]["dictionary"] == label]
        assert bins["features"].sum() == round(width * (1 - dead)) and bins["share"].sum() == pytest.approx(
            1 - dead
        )
        curve = found.tables["dead_curve"]
        curve = curve[(curve["dictionary"] == label) & (curve["counted"] == "evaluation")]
        assert curve["dead_share"].is_monotonic_decreasing and curve["tokens"].iloc[-1] == len(x)
        assert curve["dead_share"].iloc[-1] == pytest.approx(dead)
        codes = kept(found, label.lower()).encode(x[:1])
        assert curve["dead_share"].iloc[0] == pytest.approx(1 - len(codes.values) / width)
    training = found.tables["dead_curve"].query("counted == 'training' and dictionary == 'TopK'")
    census = GivenDictionary(found.artifacts["topk"]).training["census"]
    silent = np.mean([count == 0 for count in census["rows_per_feature"]])
    assert (
        training["dead_share"].iloc[-1] == pytest.approx(silent)
        and training["tokens"].iloc[-1] == census["rows"]
    )


def test_baselines_have_as_many_active_features(found):
    quality = found.tables["quality"]
    level = row_of(found, "quality", dictionary="TopK")["l0"]
    for label in ("PCA, first 8", "PCA, largest 8", "Neurons, largest 8", "Random, largest 8"):
        assert row_of(found, "quality", dictionary=label)["l0"] == pytest.approx(level, rel=0.02)
    assert (quality["kind"] == "baseline").sum() == 8, "each at the L0 of either dictionary"
    first = row_of(found, "quality", dictionary="PCA, first 8")["fvu"]
    assert row_of(found, "quality", dictionary="PCA, largest 8")["fvu"] < first < 1


def test_the_result_says_what_it_found(found):
    check_statements(found)
    said = statements(found)
    assert len(said) == 3 and "hidden layer of the MLP in layer 2" in said[0].text
    assert "TopK" in said[0].text and "nats" in said[1].text and "never active" in said[2].text
    notes = " ".join(note.message for note in found.notes)
    assert "far too little" in notes and "first position of each window" in notes
    for view in ANALYSIS.views:
        if view.table in found.tables:
            check_figure(found.view(view.name), view.name)
    assert {"cost", "frequency_fit"} <= set(found.tables)


def test_a_verdict_needs_an_interval_on_one_side(found):
    """What the sentence says follows the table, also where nothing is told apart."""
    pairs = found.tables["comparisons"]
    mine = (pairs["measure"] == "FVU") & (pairs["first"] == "TopK") & (pairs["second"].str.endswith(" 8"))
    before = pairs.copy()
    pairs.loc[mine, ["difference", "low", "high"]] = [0.01, -0.02, 0.04]
    pairs.loc[mine, "verdict"] = "not distinguishable"
    found.tables["quality"].loc[0, "fvu"] = 0.0  # so that it is about this one
    text_ = statements(found)[0].text
    assert "not distinguishable: the first leaves +1 points [-2, 4]" in text_
    pairs.loc[mine, ["difference", "low", "high"]] = [-0.031, -0.04, -0.02]
    pairs.loc[mine, "verdict"] = "first is better"
    assert "TopK leaves 3.1 points [2, 4] less" in statements(found)[0].text
    pairs.loc[mine, ["difference", "low", "high"]] = [0.031, 0.02, 0.04]
    pairs.loc[mine, "verdict"] = "second is better"
    assert "8 leaves 3.1 points [2, 4] less than TopK" in statements(found)[0].text
    found.tables["comparisons"] = before


def test_an_interrupted_run_trains_nothing_again(glass, tmp_path, monkeypatch):
    calls = []
    original = trained_here._autoencoder
    monkeypatch.setattr(trained_here, "_autoencoder", lambda *given: calls.append(1) or original(*given))
    broken = splicing._passes

    def fail(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(splicing, "_passes", fail)
    small = text(1200)
    with pytest.raises(KeyboardInterrupt):
        run(glass, small, store=tmp_path)
    monkeypatch.setattr(splicing, "_passes", broken)
    result = run(glass, small, store=tmp_path)
    assert calls == [1]
    whole = run(glass, small)
    assert len(calls) == 2
    from sparsescope.testing import check_same_numbers

    check_same_numbers(result, whole)
    assert {name: one.id for name, one in result.artifacts.items()} == {
        name: one.id for name, one in whole.artifacts.items()
    }, "what was read back is not what was trained"


def test_a_model_without_a_loss_is_described_without_splicing(glass):
    encoder = ss.wrap(glass.model.base_model, glass.tokenizer)
    result = run(encoder, text(900))
    assert "splice" not in result.tables and set(result.tables["comparisons"]["measure"]) == {"FVU"}
    assert any("nothing is spliced in" in note.message for note in result.notes)
    assert len(statements(result)) == 2
    check_statements(result)


def test_without_a_dense_hidden_layer_the_block_is_described():
    experts = ss.load("random-olmoe")
    site = default_site(experts)
    assert site.name == f"blocks.{experts.n_layers // 2}.hook_out"
    assert default_site(ss.load("random-llama")).name == "blocks.1.mlp.hook_post"
    result = run(experts, text(700), width=32, loss_tokens=64)
    assert set(result.tables["quality"]["site"]) == {site.name} and "splice" in result.tables


def test_documents_are_divided_by_the_seed_and_by_no_one_twice(glass):
    corpus = text().tokenize(glass.tokenizer, glass.max_positions)
    parts = [divide(corpus, [], 0.6, seed) for seed in (0, 0, 1)]
    numbers = [[d.index for d in part.fit.documents] for part in parts]
    assert numbers[0] == numbers[1] != numbers[2]
    for part in parts:
        both = [d.index for d in (*part.fit.documents, *part.evaluation.documents)]
        assert sorted(both) == [d.index for d in corpus.documents]
        assert part.fit.n_tokens >= 0.6 * corpus.n_tokens and part.evaluation.documents
    with pytest.raises(ss.SubjectError if hasattr(ss, "SubjectError") else Exception, match="too few"):
        divide(corpus.select([0]), [], 0.6, 0)


def test_it_fits_models_and_no_series():
    from sparsescope.core.inputs import Known

    record = analyses().get(NAME)
    text_ = Known("text", "a text")
    assert record.fits([Known("subject", "a model", whole=True, has=frozenset({"tokenizer"})), text_]) is None
    assert "none is given" in record.fits([Known("series", "a series"), text_])
    assert json.dumps(record.params().model_dump(mode="json"))

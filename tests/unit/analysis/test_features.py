"""Features end to end: panel numbers against a naive dense computation, and what is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import sparsescope as ss
from sparsescope.analysis.features.contexts import RANDOM, STRONGEST, contexts_of
from sparsescope.analysis.features.domains import domain_links
from sparsescope.analysis.features.neighbours import by_direction, by_firing, counterparts
from sparsescope.core.feature_store import FeatureStore
from sparsescope.core.registry import analyses
from sparsescope.dictionaries.documents import drawn
from sparsescope.dictionaries.given import GivenDictionary
from sparsescope.dictionaries.logit_effects import final_norm, logit_effects, why_no_logits
from sparsescope.dictionaries.rows import facts_of
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.errors import SpecError, SubjectError
from sparsescope.testing import check_figure, check_statements

NAME = "features"
SITE = "blocks.2.mlp.hook_post"
SMALL = {
    "components": 12,
    "iterations": 5,
    "resamples": 100,
    "permutations": 40,
    "top": 4,
    "window": 6,
    "shown": 5,
}


def text(tokens=2600, seed=0):
    return ss.corpus("python-docs+python-source", tokens=tokens, context=64, seed=seed)


def topk(width=48, k=4, seed=0):
    return TopKSAE(341, width, k=k, site=SITE, seed=seed)


@pytest.fixture(scope="module")
def found(glass):
    """Two dictionaries, and neurons beside them."""
    return ss.run(NAME, glass, text(), dictionary=[topk(), topk(seed=1)], **SMALL)


@pytest.fixture(scope="module")
def dense(glass):
    """Codes of all tokens of the text, [token, feature]; whether each was counted; ids; documents."""
    corpus = text().tokenize(glass.tokenizer, glass.max_positions)
    rows, positions, documents, ids = [], [], [], []
    with ss.capture(glass, corpus, [SITE]) as source:
        for batch in source:
            rows.append(batch.values[SITE].float().clone())
            positions.append(batch.positions)
            documents += [batch.document] * len(batch.positions)
            ids += batch.token_ids.tolist()
    x, positions = torch.cat(rows), np.concatenate(positions)
    place = {document.index: number for number, document in enumerate(corpus.documents)}
    return x, positions, np.array(ids), np.array([place[d] for d in documents]), corpus


def stores(result):
    """By dictionary, in the order of the tables."""
    kept = {
        a.meta["dictionary"]: FeatureStore.of(a)
        for a in result.artifacts.values()
        if a.kind == "feature_activations"
    }
    return {name: kept[name] for name in result.tables["features"]["dictionary"].unique()}


def row_of(result, name):
    frame = result.tables["features"]
    return frame[frame["name"] == name].iloc[0]


@pytest.fixture(scope="module")
def codes(found, dense):
    """The first dictionary's codes of every token that counts; zero elsewhere."""
    x = dense[0]
    store = next(iter(stores(found).values()))
    counted = store.counted
    out = np.zeros((len(x), 48), np.float32)
    out[counted] = topk().encode(x[torch.from_numpy(counted)]).dense().numpy()
    return out, counted


def test_the_store_holds_what_the_dictionary_gives(found, dense, codes):
    x, positions, ids, documents, corpus = dense
    values, counted = codes
    store = next(iter(stores(found).values()))
    assert store.ids.tolist() == ids.tolist()
    assert not counted[positions == 0].any()
    limit = (
        10
        * facts_of(
            x[torch.from_numpy(positions > 0)], np.ones(int((positions > 0).sum()), np.int32)
        ).median_norm
    )
    assert counted[(positions > 0) & (x.norm(dim=1).numpy() < 0.5 * limit)].all()
    for feature in range(48):
        rows, activations = store.feature(feature)
        assert rows.tolist() == np.flatnonzero(values[:, feature]).tolist()
        np.testing.assert_allclose(activations, values[rows, feature], rtol=1e-5)
    assert [corpus.documents[n].id for n in documents] == [
        store.documents[n] for n in store.document_of(np.arange(len(ids)))
    ]


def test_numbers_of_a_feature_are_those_of_a_naive_computation(found, dense, codes):
    _, _, ids, documents, corpus = dense
    values, counted = codes
    first, _ = drawn(corpus.documents, 0.5, 0)
    describing = np.isin(documents, [n for n, d in enumerate(corpus.documents) if d in first]) & counted
    scoring = ~np.isin(documents, [n for n, d in enumerate(corpus.documents) if d in first]) & counted
    label = next(iter(stores(found)))
    scored = 0
    for feature in range(48):
        row, column = row_of(found, f"{label}/{feature}"), values[:, feature]
        active = column > 0
        assert row["density"] == pytest.approx(active.sum() / counted.sum())
        if not active.any():
            assert row["fires"] == 0 and not row["label"]
            continue
        assert row["mean"] == pytest.approx(column[active].mean(dtype=float), rel=1e-5)
        assert row["max"] == pytest.approx(column.max(), rel=1e-6)
        best = ids[np.argsort(-column, kind="stable")[: min(50, active.sum())]]
        assert row["purity"] == pytest.approx(np.bincount(best).max() / len(best))
        most = max(1, int(0.05 * counted.sum()))
        fires = active if active.sum() <= most else column > np.sort(column)[::-1][most]
        assert row["fires"] == pytest.approx(fires.sum() / counted.sum())
        if (
            row["label"]
            and "after" not in row["label"]
            and row["label"].startswith("'")
            and math.isfinite(row["auroc"])
        ):
            # the score of a token: the odds of firing on its type among the documents that make labels
            store = stores(found)[label]
            named = [t for t in np.unique(ids) if f"'{show(store, t)}'" in pieces(row["label"])]
            odds = {t: odds_of(ids, fires, describing, t) for t in named}
            score = np.array([odds.get(t, -1e9) for t in ids])
            wanted = roc_auc_score(fires[scoring], score[scoring])
            assert row["auroc"] == pytest.approx(wanted, abs=1e-9)
            inside = np.isin(ids, named)
            assert row["recall"] == pytest.approx((inside & fires & scoring).sum() / (fires & scoring).sum())
            named_there = (inside & scoring).sum()
            if named_there:
                both = (inside & fires & scoring).sum()
                assert row["precision"] == pytest.approx(both / named_there)
            scored += 1
    assert scored >= 5


def show(store, token):
    from sparsescope.core.escaping import display

    return display(store.texts([token])[0], limit=24, markup=False)


def pieces(label):
    return [f"'{part}'" for part in label[1:-1].split("', '")]


def odds_of(ids, fires, describing, token):
    at = describing & (ids == token)
    k, n = (fires & at).sum(), at.sum()
    return math.log((k + 0.5) / (n - k + 0.5))


def test_contexts_are_real_and_the_strongest_come_first(found, dense, codes):
    values, _ = codes
    store = next(iter(stores(found).values()))
    feature = int(np.argmax((values > 0).sum(0)))
    made = contexts_of(store, feature, top=4, window=6)
    strongest = [c for c in made if c.group == STRONGEST]
    peaks = [values[c.peak, feature] for c in strongest]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] == values[:, feature].max()
    windows = [store.ids[c.begin : c.end].tobytes() for c in strongest]
    assert len(set(windows)) == len(windows)
    for context in made:
        np.testing.assert_allclose(
            context.values,
            np.where(
                values[context.begin : context.end, feature] != 0,
                values[context.begin : context.end, feature],
                0,
            ),
            rtol=1e-6,
        )
        assert (
            store.document_of(np.array([context.begin, context.end - 1])).tolist() == [context.document] * 2
        )
    assert sum(c.group == RANDOM for c in made) == 2
    assert [c.peak for c in made] == [c.peak for c in contexts_of(store, feature, top=4, window=6)]


def test_counterparts_and_neighbours_are_those_of_dense_arrays(found):
    first, second = list(stores(found).values())[:2]
    dense = [np.concatenate([part.toarray() for part, _ in store.shards()]) for store in (first, second)]
    both = first.counted & second.counted
    made = counterparts(first, second, 10**6)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(dense[0][both].T, dense[1][both].T)[:48, 48:]
    together = (dense[0][both] != 0).T.astype(int) @ (dense[1][both] != 0).astype(int)
    r = np.where((together >= 5) & np.isfinite(r), r, -np.inf)
    for feature in range(48):
        if np.isfinite(r[feature].max()):
            assert made.values[feature, 0] == pytest.approx(r[feature].max(), abs=1e-5)
    thresholds = first.arrays["threshold"]
    fires = (dense[0] > np.maximum(thresholds, 0)).astype(int)
    both, sizes = fires.T @ fires, fires.sum(0)
    jaccard = np.where(both >= 5, both / np.maximum(sizes[:, None] + sizes - both, 1), -np.inf)
    np.fill_diagonal(jaccard, -np.inf)
    near = by_firing(first, thresholds, 10**6)
    for feature in range(48):
        if np.isfinite(jaccard[feature].max()):
            assert near.values[feature, 0] == pytest.approx(jaccard[feature].max(), rel=1e-6)
        else:
            assert near.features[feature, 0] == -1
    directions = topk().directions.detach().numpy()
    units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = units @ units.T - 3 * np.eye(48)
    np.testing.assert_allclose(
        by_direction(directions, np.ones(48, bool)).values[:, 0], cosines.max(1), atol=1e-6
    )


def test_logit_effects_are_the_products(glass):
    site = glass.sites(SITE)[0]
    directions = topk().directions.detach()
    made = logit_effects(glass, directions, site, top=6)
    gain, centred = final_norm(glass)
    assert not centred
    torch.testing.assert_close(gain, glass.model.model.norm.weight.float(), rtol=1e-3, atol=1e-4)
    w_out = glass.model.model.layers[2].mlp.down_proj.weight.float()
    head = glass.model.get_output_embeddings().weight.float()
    effects = ((directions @ w_out.T) * gain) @ head.T
    effects = effects - effects.mean(1, keepdim=True)
    high = effects.topk(6, dim=1)
    np.testing.assert_allclose(made.raised_by, high.values.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert (made.raised == high.indices.numpy()).mean() > 0.99
    np.testing.assert_allclose(made.spread, effects.std(1, correction=0).detach().numpy(), rtol=1e-4)
    assert "nonlinearity" in why_no_logits(glass, glass.sites("blocks.2.mlp.hook_pre")[0])


def test_domains_are_dealt_to_documents_and_not_to_tokens():
    """A feature that fires in one document of twenty is linked with no domain, however many tokens it has."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    tokens = np.full(20, 500)
    firings = random.binomial(500, 0.05, size=(20, 40))
    firings[:, 0] = np.where(labels == 1, 200, 5)
    firings[:, 1] = 0
    firings[3, 1] = 400  # one document alone
    made = domain_links(firings, tokens, labels, 400, 0)
    assert made.fdr[0] <= 0.1 and made.domain[0] == 1 and made.ratio[0] == pytest.approx(200 / 102.5)
    assert made.fdr[1] > 0.2
    assert (made.null_fdr <= 0.05).mean() < 0.1
    assert domain_links(firings, tokens, np.zeros(20, int), 40, 0) is None


def test_controls_are_near_chance_and_labels_are_not(glass):
    made = ss.run(
        NAME, glass, text(6000), components=24, iterations=8, resamples=100, permutations=40, baselines=()
    )
    table = made.tables["label_scores"].set_index("predictor")
    assert table.loc["its own label", "median"] > table.loc["label of another feature as dense", "median"]
    assert abs(table.loc["random tokens as frequent", "median"] - 0.5) < 0.06
    assert "SNMF" in made.tables["features"]["dictionary"].iloc[0]
    loaded = GivenDictionary(made.artifacts["snmf"]).load()
    assert loaded.width == 24


def test_views_and_sentences(found):
    record = analyses().get(NAME)
    check_statements(found)
    for view in record.views:
        if view.table in found.tables:
            drawn_view = record.draw(view.name, found)
            check_figure(drawn_view) if hasattr(drawn_view, "layout") else None
    panel = record.draw("feature", found, row_of(found, found.tables["features"]["name"].iloc[5])["name"])
    assert "predicts firing" in panel.html() or "none" in panel.html()


def test_levels_stand_above_the_factorization(glass):
    made = ss.run(NAME, glass, text(), **{**SMALL, "levels": (6, 3), "baselines": ()})
    levels = made.tables["levels"]
    assert levels["components"].tolist() == [12, 6, 3]
    assert levels["explained"].is_monotonic_decreasing
    tree = made.tables["tree"]
    assert set(tree["level"]) == {1, 2} and (tree["weight"] > 0).all()
    assert {name.partition("/")[0] for name in tree["child"][tree["level"] == 1]} == {"SNMF"}
    with pytest.raises(SpecError, match="fewer components"):
        ss.run(NAME, glass, text(), **{**SMALL, "levels": (12,)})


def test_one_document_is_too_few(glass):
    with pytest.raises(SubjectError, match="too few"):
        ss.run(NAME, glass, ss.corpus(["word " * 300], tokens=200, context=64), **SMALL)


def test_a_page_without_its_store_says_so(found, monkeypatch):
    import sparsescope.analysis.features.views as views

    monkeypatch.setattr(views, "_store", lambda result, dictionary: None)
    name = found.tables["features"]["name"].iloc[0]
    assert "run the analysis again" in views.feature(found, name).html()

"""How well features find text, beside BM25 on the same units, and what pruning saves and loses.

Two tasks have a right answer: the window that an excerpt is from, and the window that follows another in its
document. The model reads an excerpt alone, and a window that follows in another pass than the one before:
activations carry what the model has read, and would find their own context in each other.
Shapes: U units; Q queries; D documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch

from sparsescope.activations.capture import capture
from sparsescope.analysis.features.search import WINDOW, FeatureSearch
from sparsescope.dictionaries.documents import of_documents
from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.metrics.sparse_retrieval import Hits, SparseIndex, bm25_weights, recall, reciprocal_rank

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.analysis.features import FeaturesParams
    from sparsescope.analysis.features.report import Found

EXCERPT = 16
DEEPEST = 100
TOP = 10
ALPHAS = (1.0, 0.8, 0.6, 0.4)
TOKEN_QUERIES = 30
MOST_POSTINGS = 2 * 10**7
"""Entries up to which single tokens are indexed: the index holds them in double precision."""
LEAST_QUERIES = 10
FEATURES, BM25 = "features", "BM25 of tokens"
EXCERPT_TASK, NEXT_TASK = f"the window of an excerpt of {EXCERPT} tokens", "the window that follows"


def retrieval_rows(
    params: FeaturesParams, context: Context, one: Found, norm_limit: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of ``retrieval`` and of ``pruning``; empty where the text has too few windows.

    Args:
        params: Parameters of the analysis.
        context: Of the run: its model reads the excerpts.
        one: A dictionary with its store.
        norm_limit: Norm beyond which tokens do not count.
    """
    search = FeatureSearch(one.store)
    windows = np.diff(search.bounds)
    document = one.store.document_of(search.bounds[:-1])
    random = np.random.default_rng([params.seed, 31])
    whole = np.flatnonzero(windows == WINDOW)
    if len(whole) < 20 or params.queries == 0:
        return [], []
    asked = np.sort(random.choice(whole, min(params.queries, len(whole)), replace=False))
    counts = _counts(one, search)
    beside = SparseIndex(bm25_weights(counts))
    reach = context.corpus.window
    later = [int(unit) for unit in whole if _follows(search, document, int(unit), reach)]
    follows = (
        sorted(random.choice(later, min(params.queries, len(later)), replace=False).tolist()) if later else []
    )
    activations = search.activations
    rows: list[dict[str, Any]] = []
    excerpts = {
        int(unit): int(search.bounds[unit] + random.integers(0, WINDOW - EXCERPT + 1)) for unit in asked
    }
    queries = _encoded(context, one, search, excerpts, norm_limit)
    tokens = {
        unit: np.bincount(one.text.named[begin : begin + EXCERPT], minlength=counts.shape[1]).astype(float)
        for unit, begin in excerpts.items()
    }
    for task, units, made in (
        (EXCERPT_TASK, [int(unit) for unit in asked], {FEATURES: queries, BM25: tokens}),
        (
            NEXT_TASK,
            follows,
            {
                FEATURES: {u: search.weighted(activations[[u]].toarray().ravel()) for u in follows},
                BM25: {u: counts[[u]].toarray().ravel() for u in follows},
            },
        ),
    ):
        for name, index in ((FEATURES, search.index), (BM25, beside)):
            ranks = [_rank(index, made[name][unit], unit, task) for unit in units]
            if len(ranks) >= LEAST_QUERIES:
                rows.append(_row(params, one, task, name, ranks, document[units], len(windows)))
    return rows, list(_pruning(one, search, queries, random))


def _follows(search: FeatureSearch, document: NDArray[np.int64], unit: int, reach: int) -> bool:
    """Whether another window follows in the document, and the model read it in another pass."""
    if unit + 1 >= len(document) or document[unit + 1] != document[unit]:
        return False
    begin = int(search.store.offsets[document[unit]])
    first, second = (int(search.bounds[place]) - begin for place in (unit, unit + 1))
    return (first + WINDOW - 1) // reach < second // reach


def _encoded(
    context: Context, one: Found, search: FeatureSearch, excerpts: dict[int, int], norm_limit: float
) -> dict[int, NDArray[np.float64]]:
    """What excerpts ask for that the model reads alone; their first token does not count."""
    made = []
    for unit, begin in excerpts.items():
        whole = context.corpus.documents[int(one.store.document_of(np.array([begin]))[0])]
        ids = np.asarray(one.store.ids[begin : begin + EXCERPT])
        made.append(replace(whole, index=unit, ids=ids, whole=False))
    found = {unit: np.zeros(one.store.n_features) for unit in excerpts}
    site = one.entry.reads.name
    with capture(context.subject, of_documents(context.corpus, made), [site]) as source:
        for batch in source:
            rows = batch.values[site][torch.from_numpy(batch.positions > 0)].float().cpu()
            codes = one.entry.dictionary.encode(rows[rows.norm(dim=1) <= norm_limit])
            values = np.maximum(codes.values.detach().cpu().numpy(), 0)
            np.maximum.at(found[batch.document], codes.indices.cpu().numpy(), values)
    return {unit: search.weighted(values) for unit, values in found.items()}


def _counts(one: Found, search: FeatureSearch) -> scipy.sparse.csr_array:
    """Token types of each window, [U, type]."""
    units = np.repeat(np.arange(len(search.bounds) - 1), np.diff(search.bounds))
    ones = np.ones(one.store.n_rows)
    shape = (len(search.bounds) - 1, len(one.text.types))
    return scipy.sparse.coo_array((ones, (units, one.text.named)), shape).tocsr()


def _rank(index: SparseIndex, query: NDArray[np.float64], unit: int, task: str) -> float:
    """Reciprocal rank of the right window; the window that asks is no answer."""
    hits = index.search(query, DEEPEST + 1)
    if task == EXCERPT_TASK:
        return reciprocal_rank(hits, unit)
    other = hits.units != unit
    return reciprocal_rank(Hits(hits.units[other], hits.scores[other], 0, 0), unit + 1)


def _row(
    params: FeaturesParams,
    one: Found,
    task: str,
    index: str,
    ranks: list[float],
    documents: NDArray[np.int64],
    windows: int,
) -> dict[str, Any]:
    """Mean reciprocal rank, with an interval over documents."""
    found, place = np.unique(documents, return_inverse=True)
    sums, counts = np.bincount(place, ranks), np.bincount(place).astype(float)
    draws = DocumentBootstrap.draw(
        np.zeros(len(found), np.int64), params.resamples, params.seed, params.level
    )
    estimate = draws.ratio(sums, counts)
    return {
        "dictionary": one.entry.label,
        "task": task,
        "index": index,
        "mrr": float(estimate.mean),
        "low": float(estimate.low),
        "high": float(estimate.high),
        "first": float(np.mean(np.array(ranks) == 1.0)),
        "queries": len(ranks),
        "documents": len(found),
        "windows": windows,
    }


def _pruning(
    one: Found, search: FeatureSearch, queries: dict[int, NDArray[np.float64]], random: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """What pruned searches find of the exact ten, and how much of the index they read."""
    yield from _pruned(one, search, list(queries.values()))
    if int(one.arrays["active"].sum()) > MOST_POSTINGS:
        return
    by_token = FeatureSearch(one.store, "token")
    rows = random.choice(np.flatnonzero(one.store.counted), TOKEN_QUERIES, replace=False)
    yield from _pruned(one, by_token, [by_token.query_of_rows(int(row), int(row) + 1) for row in rows])


def _pruned(
    one: Found, search: FeatureSearch, queries: list[NDArray[np.float64]]
) -> Iterator[dict[str, Any]]:
    exact = [search.index.search(query, TOP) for query in queries]
    for alpha in ALPHAS:
        hits = [search.index.search(query, TOP, alpha) for query in queries]
        yield {
            "dictionary": one.entry.label,
            "unit": search.unit,
            "alpha": alpha,
            "recall": float(np.mean([recall(found, best) for found, best in zip(hits, exact, strict=True)])),
            "read": sum(found.postings for found in hits) / max(1, sum(found.all_postings for found in hits)),
            "queries": len(queries),
            "units": search.index.n_units,
            "tokens": one.store.n_rows,
        }

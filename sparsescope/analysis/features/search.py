"""Searching the text of a store by features: which windows or tokens use some features, and which features a
piece of text uses.

Units are windows of ``WINDOW`` tokens, which end with their document, or single tokens. A window has of each
feature its largest activation; weights are log(1 + activation / mean activation) times idf
(``metrics/sparse_retrieval.py``).
Shapes: U units; F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse

from sparsescope.core.feature_store import KIND, FeatureStore
from sparsescope.errors import ArtifactError, SpecError, unknown_name
from sparsescope.metrics.sparse_retrieval import SparseIndex, feature_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.core.result import Result

Unit = Literal["window", "token"]
WINDOW = 128
_SHOWN = 10  # tokens on each side of a token that is found


class FeatureSearch:
    """Search over the activations of one dictionary.

    Args:
        store: The activations and their text.
        unit: What is found.
        encoding: How new text is encoded as the store was: ``site`` and ``norm_limit``.

    Attributes:
        bounds: int64 [U + 1], where units begin; the last one is the number of tokens.
    """

    def __init__(
        self, store: FeatureStore, unit: Unit = "window", encoding: Mapping[str, Any] | None = None
    ) -> None:
        if unit not in ("window", "token"):
            raise unknown_name("unit", unit, ("window", "token"), next_step="choose one of them")
        self.store, self.unit, self.encoding = store, unit, dict(encoding or {})
        if unit == "token":
            self.bounds = np.arange(store.n_rows + 1)
        else:
            begins = [
                np.arange(a, b, WINDOW) for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)
            ]
            self.bounds = np.append(np.concatenate(begins), store.n_rows).astype(np.int64)

    @classmethod
    def of(cls, result: Result, dictionary: str = "", unit: Unit = "window") -> FeatureSearch:
        """Search the activations of a result.

        Args:
            result: Of ``features``.
            dictionary: Which of its dictionaries; the first when left out.
            unit: What is found.

        Raises:
            SpecError: The result has no such dictionary, or no features.
            ArtifactError: The activations are not there any more.
        """
        kept = {str(a.meta.get("dictionary")): a for a in result.artifacts.values() if a.kind == KIND}
        if not kept:
            raise SpecError(
                "this result has no feature activations",
                where=result.run_id or result.analysis,
                allowed="a run of features",
                next_step="run: sparsescope run features --subject NAME",
            )
        names = [name for name in result.tables["features"]["dictionary"].unique() if name in kept]
        name = dictionary or names[0]
        if name not in kept:
            raise unknown_name("dictionary of this run", name, names, next_step="see the table features")
        if not kept[name].present:
            raise ArtifactError(
                "the activations of these features are not here",
                where=kept[name].id,
                next_step="run the analysis again",
            )
        meta = kept[name].meta
        encoding: dict[str, Any] = {key: meta[key] for key in ("site", "norm_limit") if key in meta}
        return cls(FeatureStore.of(kept[name]), unit, encoding)

    @cached_property
    def activations(self) -> scipy.sparse.csr_array:
        """The largest activation of each feature in each unit, [U, F]; negative ones do not count."""
        parts = []
        for codes, begin in self.store.shards():
            entries = codes.tocoo()
            kept = entries.data > 0
            units = np.searchsorted(self.bounds, entries.row[kept] + begin, side="right") - 1
            parts.append((units, entries.col[kept], entries.data[kept]))
        units, features, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        return _largest(units, features, values, (len(self.bounds) - 1, self.store.n_features))

    @cached_property
    def scales(self) -> NDArray[np.float64]:
        """float64 [F], mean activation of each feature where it is active; 1 where it never is."""
        sums, counts = np.zeros(self.store.n_features), np.zeros(self.store.n_features)
        for codes, _ in self.store.shards():
            columns = np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))
            positive = codes.data > 0
            sums += np.bincount(columns[positive], codes.data[positive], minlength=len(sums))
            counts += np.bincount(columns[positive], minlength=len(sums))
        return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)

    @cached_property
    def index(self) -> SparseIndex:
        """The inverted index."""
        return SparseIndex(feature_weights(self.activations, self.scales))

    def query_of_rows(self, begin: int, end: int) -> NDArray[np.float64]:
        """What the tokens of a range of rows ask for: float64 [F]."""
        query = np.zeros(self.store.n_features)
        for codes, first in self.store.shards():
            low, high = max(begin - first, 0), min(end - first, codes.shape[0])
            if low < high:
                part = codes.tocsr()[low:high]
                np.maximum.at(query, part.indices, np.maximum(part.data, 0))
        return self.weighted(query)

    def weighted(self, activations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Weights of a query from the largest activation of each feature, [F]."""
        return np.log1p(np.maximum(activations, 0) / self.scales)

    def find(
        self, query: Mapping[int, float] | NDArray[np.float64], k: int = 10, alpha: float | None = None
    ) -> pd.DataFrame:
        """The units that use some features most.

        Args:
            query: Weights by feature, or [F] from ``query_of_rows`` or ``weighted``.
            k: How many.
            alpha: None for an exact search, else what bounds of blocks are multiplied with (see
                ``SparseIndex.search``).

        Returns:
            ``document``, ``position`` (of the first token of the unit), ``score``, ``text``, and in
            ``attrs`` how many of the postings of the query were read.

        Raises:
            SpecError: There is no such feature.
        """
        if isinstance(query, Mapping):
            wrong = [feature for feature in query if not 0 <= feature < self.store.n_features]
            if wrong:
                raise SpecError(
                    "there is no such feature",
                    where="FeatureSearch.find",
                    allowed=f"0 to {self.store.n_features - 1}",
                    got=", ".join(map(str, wrong[:10])),
                )
            dense = np.zeros(self.store.n_features)
            dense[list(query)] = list(query.values())
            query = dense
        hits = self.index.search(query, k, alpha)
        rows = []
        for unit, score in zip(hits.units.tolist(), hits.scores.tolist(), strict=True):
            begin, end = int(self.bounds[unit]), int(self.bounds[unit + 1])
            document = int(self.store.document_of(np.array([begin]))[0])
            if self.unit == "token":
                begin, end = self.store.window(begin, _SHOWN, _SHOWN)
            rows.append(
                {
                    "document": self.store.documents[document],
                    "position": int(self.bounds[unit] - self.store.offsets[document]),
                    "score": score,
                    "text": "".join(self.store.texts(self.store.ids[begin:end])),
                }
            )
        found = pd.DataFrame(rows, columns=["document", "position", "score", "text"])
        found.attrs = {"postings": hits.postings, "all_postings": hits.all_postings}
        return found

    def features_of(self, query: NDArray[np.float64], k: int = 10) -> pd.DataFrame:
        """The features that a query asks for most: ``feature``, ``weight`` (with idf, as in the index)."""
        units = self.index.n_units
        present = np.diff(self.index.postings.indptr)
        weights = query * np.log1p((units - present + 0.5) / (present + 0.5))
        order = np.argsort(-weights, kind="stable")[:k]
        order = order[weights[order] > 0]
        return pd.DataFrame({"feature": order, "weight": weights[order]})


def _largest(
    units: NDArray[np.integer],
    features: NDArray[np.integer],
    values: NDArray[np.floating],
    shape: tuple[int, int],
) -> scipy.sparse.csr_array:
    """The largest value of each unit and feature."""
    if not len(units):
        return scipy.sparse.csr_array(shape, dtype=np.float64)
    keys = units.astype(np.int64) * shape[1] + features
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    where = np.divmod(keys[begins], shape[1])
    data = np.maximum.reduceat(values, begins).astype(np.float64)
    return scipy.sparse.coo_array((data, where), shape).tocsr()

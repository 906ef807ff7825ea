"""Feature activations on disk: for each feature of a dictionary the tokens on which it is active, so that one
feature opens by reading its own entries and nothing else.

Shards are appended while the text is read. Each holds the entries of a range of rows, sorted by feature
(compressed sparse columns): a feature is one contiguous range in each shard, and its entries in the order of
the shards are in the order of the text. The text stands beside them as token ids with the strings of the
tokens that occur, so whoever reads the store needs no model and no tokenizer.

Files: ``index.json``, ``tokens.safetensors``, ``vocabulary.safetensors``, ``features.safetensors`` (arrays
with one entry for each feature), ``shard-00000.safetensors`` and so on.
Shapes: N rows (tokens of the text, document after document), F features, D documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save

from sparsescope.core.strict_json import parse
from sparsescope.core.tensor_header import read_tensors
from sparsescope.errors import ArtifactError, SpecError

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

    from sparsescope.core.artifact_store import ArtifactWriter
    from sparsescope.core.artifacts import Artifact

    Arrays = Mapping[str, NDArray[Any]]

KIND, FORMAT = "feature_activations", "postings"
INDEX, TOKENS, VOCABULARY, FEATURES = (
    "index.json",
    "tokens.safetensors",
    "vocabulary.safetensors",
    "features.safetensors",
)
VERSION = 1
_MOST_INDEX = 64 * 2**20


def shard_of(rows: scipy.sparse.csr_array, first_row: int) -> dict[str, NDArray[Any]]:
    """The entries of some rows, sorted by feature.

    Args:
        rows: [row, feature], rows of the text that follow one another; one without entries was not encoded.
        first_row: Number of the first of them in the text.

    Returns:
        ``rows`` int32 [entry], ``values`` float32 [entry], ``offsets`` int64 [F + 1], ``range`` int64 [2].

    Example:
        >>> import scipy.sparse
        >>> codes = scipy.sparse.csr_array(np.array([[0.0, 2.0], [1.0, 3.0]]))
        >>> made = shard_of(codes, 10)
        >>> made["rows"].tolist(), made["values"].tolist(), made["offsets"].tolist()
        ([11, 10, 11], [1.0, 2.0, 3.0], [0, 1, 3])
    """
    columns = rows.tocsc()
    columns.sort_indices()
    return {
        "rows": columns.indices.astype(np.int32) + np.int32(first_row),
        "values": columns.data.astype(np.float32),
        "offsets": columns.indptr.astype(np.int64),
        "range": np.array([first_row, first_row + rows.shape[0]], np.int64),
    }


@dataclass(frozen=True, slots=True)
class StoredText:
    """The text of a store.

    Attributes:
        ids: int32 [N], token ids.
        counted: bool [N], whether a token was encoded; those that were not are shown in contexts only.
        offsets: int64 [D + 1], where documents begin.
        documents: Their ids.
        domains: Names of the domains.
        domain_of: int32 [D].
        vocabulary: The strings of the token ids that occur.
    """

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    documents: Sequence[str]
    domains: Sequence[str]
    domain_of: NDArray[np.int32]
    vocabulary: Mapping[int, str]


class FeatureWriter:
    """Writes the files of a store; see the head of this file.

    Args:
        writer: From ``keep(KIND, format=FORMAT)``.
        features: F.
    """

    def __init__(self, writer: ArtifactWriter, features: int) -> None:
        self._writer, self._features = writer, features
        self._shards: list[str] = []

    def append(self, shard: Arrays) -> None:
        """Add the next shard, from ``shard_of``.

        Raises:
            SpecError: It has another number of features.
        """
        if len(shard["offsets"]) != self._features + 1:
            raise SpecError(
                "a shard has another number of features",
                where="feature store",
                allowed=str(self._features),
                got=len(shard["offsets"]) - 1,
            )
        name = f"shard-{len(self._shards):05d}.safetensors"
        self._write(name, shard)
        self._shards.append(name)

    def text(self, text: StoredText) -> None:
        """Write the text."""
        self._vocabulary = dict(text.vocabulary)
        self._write(
            TOKENS,
            {
                "ids": text.ids.astype(np.int32),
                "counted": text.counted.astype(np.uint8),
                "offsets": text.offsets.astype(np.int64),
                "domain": text.domain_of.astype(np.int32),
            },
        )
        self._named = {"documents": list(text.documents), "domains": list(text.domains)}

    def reader(self) -> FeatureStore:
        """What was written until now, before the artifact is there; the text must be written."""
        folder = self._writer.folder
        words = _words(self._vocabulary)
        return FeatureStore(
            self._index(), lambda name: words if name == VOCABULARY else read_tensors(folder / name)
        )

    def finish(self, features: Arrays, vocabulary: Mapping[int, str] | None = None) -> None:
        """Write the arrays with one entry for each feature, the strings of the tokens, and the index.

        Args:
            features: By name.
            vocabulary: Strings of further tokens, which the arrays name.

        Raises:
            SpecError: One has another length.
        """
        wrong = [name for name, values in features.items() if len(values) != self._features]
        if wrong:
            raise SpecError(
                "these arrays do not have one entry for each feature",
                where="feature store",
                allowed=str(self._features),
                got=", ".join(wrong),
            )
        self._write(FEATURES, features)
        self._write(VOCABULARY, _words({**self._vocabulary, **(vocabulary or {})}))
        self._writer.write(INDEX, json.dumps(self._index(), ensure_ascii=True).encode())

    def _index(self) -> dict[str, Any]:
        return {"version": VERSION, "features": self._features, "shards": self._shards, **self._named}

    def _write(self, name: str, arrays: Arrays) -> None:
        with self._writer.file(name) as handle:
            handle.write(save({key: np.ascontiguousarray(values) for key, values in arrays.items()}))


def _words(vocabulary: Mapping[int, str]) -> dict[str, NDArray[Any]]:
    """Strings of tokens as arrays."""
    known = sorted(vocabulary)
    words = [vocabulary[token].encode("utf-8", "surrogatepass") for token in known]
    return {
        "ids": np.array(known, np.int32),
        "text": np.frombuffer(b"".join(words) or b"\0", np.uint8),
        "offsets": np.cumsum([0, *map(len, words)]).astype(np.int64),
    }


class FeatureStore:
    """Reads a store; arrays are mapped, and what is not asked for is not read.

    Args:
        index: The content of ``index.json``.
        tensors: Gives the arrays of a file by its name.

    Attributes:
        n_features: F.
        documents: Ids of the documents.
        domains: Names of the domains.
    """

    def __init__(self, index: Mapping[str, Any], tensors: Callable[[str], Arrays]) -> None:
        self.n_features = int(index["features"])
        self.documents: list[str] = list(index["documents"])
        self.domains: list[str] = list(index["domains"])
        self._tensors = tensors
        self._shards = [tensors(name) for name in index["shards"]]
        text = tensors(TOKENS)
        self.ids: NDArray[np.int32] = text["ids"]
        self.offsets: NDArray[np.int64] = np.asarray(text["offsets"])
        self.domain_of: NDArray[np.int32] = np.asarray(text["domain"])
        self._counted = text["counted"]

    @classmethod
    def of(cls, artifact: Artifact) -> FeatureStore:
        """Open the store of an artifact.

        Raises:
            ArtifactError: It is missing or damaged, is something else, or was made by a newer version.
        """
        if artifact.kind != KIND:
            raise ArtifactError(
                "this artifact holds no feature activations", where=artifact.id, allowed=f"{KIND}-..."
            )
        path = artifact.path_of(INDEX)
        if path.stat().st_size > _MOST_INDEX:
            raise ArtifactError("the index of a feature store is too large", where=str(path))
        index = parse(path.read_text(encoding="utf-8"))
        known = isinstance(index, dict) and index.get("version") == VERSION
        if not known or not all(key in index for key in ("features", "shards", "documents", "domains")):
            raise ArtifactError(
                "this feature store cannot be read here",
                where=str(path),
                allowed=f"version {VERSION}",
                got=str(index.get("version") if isinstance(index, dict) else type(index).__name__),
                next_step="update sparsescope, or run the analysis again",
            )
        return cls(index, artifact.tensors)

    @property
    def n_rows(self) -> int:
        """N, tokens of the text."""
        return len(self.ids)

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """Bool [N], whether a token was encoded."""
        return np.asarray(self._counted).astype(bool)

    @cached_property
    def n_counted(self) -> int:
        """Tokens that were encoded."""
        return int(self.counted.sum())

    @cached_property
    def arrays(self) -> Arrays:
        """Arrays with one entry for each feature, by name."""
        return self._tensors(FEATURES)

    def feature(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens on which a feature is active.

        Args:
            number: The feature.

        Returns:
            Rows int64 [entry], ascending, and its values float32 [entry].

        Raises:
            SpecError: There is no such feature.
        """
        if not 0 <= number < self.n_features:
            raise SpecError(
                "there is no such feature",
                where="feature store",
                allowed=f"0 to {self.n_features - 1}",
                got=number,
            )
        parts = [
            (shard["rows"][begin:end], shard["values"][begin:end])
            for shard in self._shards
            for begin, end in [shard["offsets"][number : number + 2]]
            if end > begin
        ]
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        rows, values = zip(*parts, strict=True)
        return np.concatenate(rows).astype(np.int64), np.concatenate(values)

    def shards(self) -> Iterator[tuple[scipy.sparse.csc_array, int]]:
        """All entries, shard by shard: [row, feature] and the number of the first row."""
        from scipy.sparse import csc_array

        for shard in self._shards:
            begin, end = (int(place) for place in shard["range"])
            parts = (shard["values"], shard["rows"] - np.int32(begin), shard["offsets"])
            yield csc_array(parts, shape=(end - begin, self.n_features)), begin

    def document_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the document of each row."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def window(self, row: int, before: int, after: int) -> tuple[int, int]:
        """The rows around one, clipped at the ends of its document: the first, and one past the last."""
        document = int(self.document_of(np.array([row]))[0])
        return max(row - before, int(self.offsets[document])), min(
            row + after + 1, int(self.offsets[document + 1])
        )

    def texts(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """The strings of token ids; of one that does not occur in the text, ``<id>``."""
        known, blob, ends = self._vocabulary
        out = []
        for token in ids:
            place = int(np.searchsorted(known, token))
            if place < len(known) and known[place] == token:
                out.append(
                    bytes(blob[int(ends[place]) : int(ends[place + 1])]).decode("utf-8", "surrogatepass")
                )
            else:
                out.append(f"<{int(token)}>")
        return out

    @cached_property
    def _vocabulary(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        found = self._tensors(VOCABULARY)
        return np.asarray(found["ids"]), found["text"], np.asarray(found["offsets"])

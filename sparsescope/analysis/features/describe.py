"""Every feature described from its own entries: how often and how strongly it is active, a label, and how
well the label does on documents that it was not made from.

Shapes: F features; T token types; D documents; B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from sparsescope.core.escaping import display
from sparsescope.metrics.feature_labels import (
    choice_price,
    indicator_information,
    levels_auroc,
    matched_types,
    type_label,
)
from sparsescope.metrics.token_labels import binary_tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sparsescope.core.feature_store import FeatureStore

TOKEN, PREVIOUS, CLASS, NONE = "tokens", "tokens before", "class of tokens", "none"
STRONGEST = 50
LEAST_SCORED = 10
"""Firings on the scoring documents below which there is no score; a feature without a label scores 0.5."""
_LEAST_DOCUMENTS = 2
_LONGEST = 24
_CLASSES = {
    "digit": "digits",
    "capitalised": "capitalised tokens",
    "punctuation": "punctuation and signs",
    "leading_space": "tokens that begin a word",
}


@dataclass(slots=True)
class Described:
    """What is known of one feature.

    Attributes:
        active: Tokens on which it is active.
        fires: Tokens on which it fires.
        threshold: Above which it fires.
        mean: Mean activation where it is active.
        max: Largest.
        purity: Share of the strongest activations on one token type.
        strongest: Types of the strongest, the most frequent first.
        kind: What the label is made of.
        label: The label in words.
        members: Types of the label (``TOKEN``, ``PREVIOUS``), or the number of the class.
        weights: float64, of the types.
        auroc: On the other documents; NaN where it is not scored.
        replicates: float64 [B] of it.
        recall: Share of the firings there that the label covers.
        precision: Share of the tokens there that the label names on which it fires.
        by_document: int32 [D], firings in each document.
    """

    active: int
    fires: int
    threshold: float
    mean: float
    max: float
    purity: float
    strongest: NDArray[np.int64]
    kind: str = NONE
    label: str = ""
    members: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    auroc: float = float("nan")
    replicates: NDArray[np.float64] | None = None
    recall: float = float("nan")
    precision: float = float("nan")
    by_document: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))


class Text:
    """The text as types of tokens, with the counts that all features share.

    Args:
        store: The text.
        describing: bool [D], documents that labels are made from; the others score them.

    Attributes:
        types: int64 [T], token ids that occur.
        words: Their strings.
        named: int32 [N], the type of each token.
        before: int32 [N], the type of the token before; T at the beginning of a document.
        document: int32 [N].
        describing: bool [N], tokens that labels are made from.
        scoring: bool [N], tokens that score them.
        classes: bool [T + 1, class].
    """

    def __init__(self, store: FeatureStore, describing: NDArray[np.bool_]) -> None:
        self.store = store
        self.types, named = np.unique(np.asarray(store.ids), return_inverse=True)
        self.named = named.astype(np.int32)
        self.words = store.texts(self.types)
        count = len(self.types)
        self.before = np.empty_like(self.named)
        self.before[1:] = self.named[:-1]
        begins = store.offsets[:-1][np.diff(store.offsets) > 0]
        self.before[begins] = count
        self.document = np.repeat(np.arange(len(store.documents)), np.diff(store.offsets)).astype(np.int32)
        self.describing = describing[self.document] & store.counted
        self.scoring = ~describing[self.document] & store.counted
        self.class_names, classes = binary_tasks(self.words, letters=True)
        self.classes = np.concatenate([classes, np.zeros((1, classes.shape[1]), bool)])
        self.scored_documents = np.flatnonzero(~describing)
        self._number = np.full(len(store.documents), -1, np.int64)
        self._number[self.scored_documents] = np.arange(len(self.scored_documents))
        self.described = {
            TOKEN: np.bincount(self.named[self.describing], minlength=count + 1),
            PREVIOUS: np.bincount(self.before[self.describing], minlength=count + 1),
        }
        self.scored = {
            TOKEN: self._by_document(self.named),
            PREVIOUS: self._by_document(self.before),
        }
        self.scored_class = np.asarray(self.scored[TOKEN] @ self.classes.astype(np.float64))
        self.scored_tokens = np.asarray(self.scored[TOKEN].sum(1)).ravel()
        self.frequency = np.asarray(self.scored[TOKEN].sum(0)).ravel()

    def _by_document(self, named: NDArray[np.int32]) -> scipy.sparse.csc_array:
        """Tokens of each type in each document that scores, [D, T + 1]."""
        rows = np.flatnonzero(self.scoring)
        shape = (len(self.scored_documents), len(self.types) + 1)
        where = (self.number_of(rows), named[rows])
        return scipy.sparse.coo_array((np.ones(len(rows)), where), shape).tocsc()

    def number_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the documents of rows among those that score."""
        return self._number[self.document[rows]]

    def quoted(self, members: Sequence[int]) -> str:
        """Types in words: ``' import', ' from'``."""
        words = [self.words[t] if t < len(self.words) else "" for t in members]
        return ", ".join(
            f"'{display(word, limit=_LONGEST, markup=False)}'" if word else "the beginning" for word in words
        )


def describe(
    text: Text,
    firing_share: float,
    label_types: int,
    weights: NDArray[np.float64],
    progress: Callable[[int, int], None],
) -> list[Described]:
    """Describe all features of a store.

    Args:
        text: Its text.
        firing_share: See ``FeaturesParams``.
        label_types: Most types of a label.
        weights: float64 [B, D] of the documents that score.
        progress: Told how many features are done, of how many.
    """
    out = []
    for number in range(text.store.n_features):
        out.append(_describe(text, number, firing_share, label_types, weights))
        if number % 64 == 0 or number + 1 == text.store.n_features:
            progress(number + 1, text.store.n_features)
    return out


def _describe(
    text: Text, number: int, firing_share: float, label_types: int, weights: NDArray[np.float64]
) -> Described:
    store = text.store
    rows, values = store.feature(number)
    positive = values > 0
    rows, values = rows[positive], values[positive]
    if not len(rows):
        return Described(0, 0, 0.0, float("nan"), float("nan"), float("nan"), np.empty(0, np.int64))
    threshold = _threshold(values, store.n_counted, firing_share)
    firing = rows[values > threshold] if threshold > 0 else rows
    best = rows[np.argsort(-values, kind="stable")[:STRONGEST]]
    found, counts = np.unique(text.named[best], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    out = Described(
        active=len(rows),
        fires=len(firing),
        threshold=threshold,
        mean=float(values.mean(dtype=np.float64)),
        max=float(values.max()),
        purity=float(counts.max() / len(best)),
        strongest=found[order][:6].astype(np.int64),
        by_document=np.bincount(text.document[firing], minlength=len(store.documents)).astype(np.int32),
    )
    _label(text, out, firing[text.describing[firing]], label_types)
    _score(text, out, firing[text.scoring[firing]], weights)
    return out


def _threshold(values: NDArray[np.float32], counted: int, share: float) -> float:
    """0 where the feature is active on at most this share of the tokens, else what so many exceed."""
    most = max(1, int(share * counted))
    if len(values) <= most:
        return 0.0
    found = float(np.partition(values, len(values) - most - 1)[len(values) - most - 1])
    if found < values.max():
        return found
    below = values[values < found]  # so many are equal to the largest: they fire
    return float(below.max()) if len(below) else 0.0


def _label(text: Text, out: Described, firing: NDArray[np.int64], label_types: int) -> None:
    """Choose the label that tells most about firing on the describing documents."""
    if not len(firing):
        return
    size = len(text.types) + 1
    tokens = float(text.described[TOKEN].sum())
    best = 0.0
    for kind, named in ((TOKEN, text.named), (PREVIOUS, text.before)):
        counts = np.bincount(named[firing], minlength=size)
        found = type_label(counts, text.described[kind], most=label_types)
        if found is not None and found.gain > best:
            best = found.gain
            out.kind, out.members, out.weights = kind, found.types, found.weights
            words = text.quoted(found.types.tolist())
            out.label = words if kind == TOKEN else f"after {words}"
    present, counts = np.unique(text.named[firing], return_counts=True)
    both = counts @ text.classes[present].astype(np.float64)
    whole = text.described[TOKEN].astype(np.float64) @ text.classes
    gains = 2 * tokens * np.log(2) * indicator_information(both, whole, float(len(firing)), tokens)
    gains -= choice_price(len(gains))
    gains[both * tokens <= whole * len(firing)] = 0.0  # fires there less often than elsewhere
    place = int(np.argmax(gains))
    if gains[place] > best:
        out.kind, out.members = CLASS, np.array([place])
        odds = (both[place] + 0.5) / (whole[place] - both[place] + 0.5)
        out.weights, out.label = np.log([odds]), class_label(text.class_names[place])


def class_label(name: str) -> str:
    """A class of tokens in words."""
    letter = name.removeprefix("letter_")
    return _CLASSES.get(name, f"tokens that begin with {letter}" if letter != name else name)


def _score(text: Text, out: Described, firing: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
    """How well the label predicts firing on the scoring documents."""
    numbers = text.number_of(firing)
    if len(firing) < LEAST_SCORED or len(np.unique(numbers)) < _LEAST_DOCUMENTS:
        return
    if out.kind == NONE:  # who says nothing is right as often as chance
        out.auroc, out.replicates, out.recall = 0.5, np.full(len(weights), 0.5), 0.0
        return
    level, levels, whole = levels_of(text, out)
    at = _levels(text, out.kind, level, firing)
    fires = np.bincount(numbers * levels + at, minlength=len(whole) * levels).reshape(-1, levels)
    out.auroc = float(levels_auroc(fires.sum(0), (whole - fires).sum(0)))
    positive = weights @ fires
    out.replicates = levels_auroc(positive, weights @ whole - positive)
    out.recall = float(fires[:, 1:].sum() / len(firing))
    named = whole[:, 1:].sum()
    out.precision = float(fires[:, 1:].sum() / named) if named else float("nan")


def levels_of(text: Text, of: Described) -> tuple[NDArray[np.int64], int, NDArray[np.float64]]:
    """The score of a label: the level of each type (or class), how many levels there are, and the tokens of
    the scoring documents at each, [D, level]; level 0 is every token that the label does not name.
    """
    if of.kind == CLASS:
        place = int(of.members[0])
        level = text.classes[:, place].astype(np.int64)
        inside = text.scored_class[:, place : place + 1]
        return level, 2, np.concatenate([text.scored_tokens[:, None] - inside, inside], axis=1)
    odds, number = np.unique(of.weights, return_inverse=True)  # equal odds are a tie
    level = np.zeros(len(text.types) + 1, np.int64)
    level[of.members] = number + 1
    named = text.scored[of.kind][:, of.members].toarray()
    inside = named @ (number[:, None] == np.arange(len(odds)))
    rest = text.scored_tokens[:, None] - inside.sum(1, keepdims=True)
    return level, len(odds) + 1, np.concatenate([rest, inside], axis=1)


def _levels(text: Text, kind: str, level: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    named = text.before if kind == PREVIOUS else text.named
    return level[named[rows]]


def controls(
    text: Text, found: Sequence[Described], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How well firing is predicted by the label of another feature that is about as dense, and by random
    tokens that are about as frequent as those of the label.

    Args:
        text: The text.
        found: The features of a dictionary.
        seed: Of the draws.

    Returns:
        Two float64 [F]; NaN where a feature is not scored.
    """
    random = np.random.default_rng([seed, 17])
    usable = np.array([n for n, one in enumerate(found) if np.isfinite(one.auroc)], np.int64)
    other, types = np.full(len(found), np.nan), np.full(len(found), np.nan)
    order = usable[np.argsort([found[n].fires for n in usable], kind="stable")]
    place = {int(n): p for p, n in enumerate(order)}
    for number in usable:
        one = found[number]
        rows, values = text.store.feature(int(number))
        firing = rows[values > max(one.threshold, 0.0)]
        firing = firing[text.scoring[firing]]
        low = max(0, min(place[int(number)] - 5, len(order) - 11))
        near = [int(n) for n in order[low : low + 11] if n != number]
        if near:
            partner = found[int(random.choice(near))]
            other[number] = _with_label(text, partner, firing)
        if one.kind == NONE:
            types[number] = 0.5
            continue
        named = float(levels_of(text, one)[2][:, 1:].sum())
        chosen = matched_types(text.frequency, max(named, 1.0), random.permutation(len(text.types)))
        level = np.zeros(len(text.types) + 1, np.int64)
        level[chosen] = 1
        at = np.bincount(level[text.named[firing]], minlength=2)
        tokens = float(text.frequency[chosen].sum())
        types[number] = float(levels_auroc(at, np.array([text.scored_tokens.sum() - tokens, tokens]) - at))
    return other, types


def _with_label(text: Text, of: Described, firing: NDArray[np.int64]) -> float:
    """How well the label of a feature predicts where another fires."""
    if of.kind == NONE:
        return 0.5
    level, levels, whole = levels_of(text, of)
    at = np.bincount(_levels(text, of.kind, level, firing), minlength=levels)
    return float(levels_auroc(at, whole.sum(0) - at))


def arrays_of(found: Sequence[Described]) -> dict[str, NDArray[Any]]:
    """What a store keeps of each feature."""
    return {
        "active": np.array([one.active for one in found], np.int64),
        "fires": np.array([one.fires for one in found], np.int64),
        "threshold": np.array([one.threshold for one in found], np.float32),
    }

"""What checkpoints of a series are compared on: samples of equal length, with what is known of each.

Of modular addition: pairs that were trained on and pairs that were not; a + b and b + a are one unit, since
they are nearly the same question. Of text: the beginnings of windows of its documents, which are the units.
Profiles of long samples are near uniform, so that all samples have one length.

Shapes: S samples of T tokens; what is read are the positions that are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError, SubjectError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.pathways import PathwaysParams
    from sparsescope.models.checkpoints import CheckpointSeries

    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples that every checkpoint reads.

    Attributes:
        tokens: [S, T].
        targets: [S, T], the token that each position is to predict; -1 where none is scored.
        read: bool [T], positions whose routing counts.
        group: [S], place in ``groups``.
        groups: What samples are compared within: ``train`` and ``test``, or ``text``.
        label: [S], the answer, or the domain; pairs of one label and of two are set against each other.
        unit: [S], the independent unit of each sample.
        text: What they are, for people.
    """

    tokens: Ints
    targets: Ints
    read: NDArray[np.bool_]
    group: Ints
    groups: tuple[str, ...]
    label: Ints
    unit: Ints
    text: str

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, group: str) -> Ints:
        """The samples of a group."""
        return np.flatnonzero(self.group == self.groups.index(group))

    @property
    def scored(self) -> str:
        """The group whose loss and accuracy are the score: what was not trained on."""
        return self.groups[-1]


def samples_of(series: CheckpointSeries, corpus: TokenizedCorpus | None, params: PathwaysParams) -> Samples:
    """Take samples from the pairs of a series, or from a text.

    Raises:
        SpecError: There are neither pairs nor a text.
        SubjectError: A group has too few samples.
    """
    if series.trained is not None and series.trained.data.get("kind") == "modular_addition":
        found = _pairs(series, params)
    elif corpus is not None:
        found = _windows(corpus, params)
    else:
        raise SpecError(
            "there is nothing that the checkpoints could read",
            where=series.name,
            allowed="a series that carries pairs or text, or a text that is given",
            next_step="give the text: --corpus python-docs, in Python corpus=ss.corpus(...)",
        )
    for group in found.groups:
        if len(found.rows(group)) < params.least_samples:
            raise SubjectError(
                "a group has too few samples for mean distances",
                where=f"{series.name}, {group}",
                allowed=f"at least {params.least_samples} of {found.tokens.shape[1]} tokens (least_samples)",
                got=len(found.rows(group)),
                next_step="read more text, shorten sample_tokens, or raise samples",
            )
    return found


def _pairs(series: CheckpointSeries, params: PathwaysParams) -> Samples:
    probe = series.probe()
    assert series.trained is not None
    modulus, generator = int(series.trained.data["modulus"]), np.random.default_rng(params.seed)
    train = probe.fields["train"] == 1
    parts = [generator.permutation(np.flatnonzero(part))[: params.samples] for part in (train, ~train)]
    rows = np.concatenate([np.sort(part) for part in parts])
    tokens, answers = probe.tokens[rows], probe.fields["answer"][rows]
    targets = np.full_like(tokens, -1)
    targets[:, -1] = answers
    read = np.arange(tokens.shape[1]) >= (tokens.shape[1] - 1 if params.positions == "scored" else 1)
    ends = np.sort(tokens[:, :2], axis=1)
    where = "their last token" if params.positions == "scored" else "their tokens after the first"
    return Samples(
        tokens,
        targets,
        read,
        np.repeat([0, 1], [len(part) for part in parts]),
        ("train", "test"),
        answers,
        np.unique(ends[:, 0] * modulus + ends[:, 1], return_inverse=True)[1],
        f"{len(parts[0])} pairs a + b mod {modulus} that were trained on and {len(parts[1])} that were not, "
        f"at "
        f"{where}; a + b and b + a are one unit",
    )


def _windows(corpus: TokenizedCorpus, params: PathwaysParams) -> Samples:
    prefix, length = len(corpus.prefix), params.sample_tokens
    room = corpus.context - prefix - len(corpus.suffix)
    if length > room:
        raise SpecError(
            "samples are longer than the windows of this text",
            where="sample_tokens",
            allowed=f"at most {room}, context {corpus.context} less {corpus.context - room} special tokens",
            got=length,
        )
    cut = [
        (number, document.ids[start : start + length])
        for number, document in enumerate(corpus.documents)
        for start in range(0, len(document.ids) - length + 1, room)
    ]
    kept = [cut[place] for place in _spread(len(cut), params.samples)]
    body = np.array([ids for _, ids in kept], np.int64).reshape(-1, length)
    tokens = np.concatenate([np.tile(np.array(corpus.prefix, np.int64), (len(body), 1)), body], axis=1)
    unit = np.array([number for number, _ in kept], np.int64)
    after = np.arange(tokens.shape[1]) >= max(prefix, 1)
    targets = np.concatenate([tokens[:, 1:], np.full((len(tokens), 1), -1)], axis=1)
    targets[:, ~after] = -1
    domains = np.array([corpus.domains.index(document.domain) for document in corpus.documents])
    units = len(np.unique(unit))
    return Samples(
        tokens,
        targets,
        after & (targets[:1] >= 0).all(0) if params.positions == "scored" and len(targets) else after,
        np.zeros(len(tokens), np.int64),
        ("text",),
        domains[unit] if len(unit) else unit,
        unit,
        f"{len(tokens)} beginnings of windows, {length} tokens each, of {units} documents: {corpus.name}",
    )


def _spread(count: int, most: int) -> Ints:
    """As many places as are wanted, evenly spread."""
    return (
        np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
        if count
        else (np.zeros(0, np.int64))
    )

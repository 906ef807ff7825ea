"""Windows of the bytes of real text, by domain, split into training and validation by document.

The registered corpora give the documents, ``activations.text.splits`` splits them. Texts of the standard
library differ between versions of Python: the description carries a digest of all bytes used.

Shapes: windows int64 [n, context]; ids are bytes shifted by the special
tokens of ``models/zoo/byte_tokenizer.py``.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.text.documents import Document
from sparsescope.activations.text.registered import registered_entries
from sparsescope.activations.text.splits import SplitRule, as_bytes, split_documents
from sparsescope.errors import SpecError
from sparsescope.models.zoo.byte_tokenizer import SPECIAL_TOKENS, VOCABULARY_SIZE
from sparsescope.training.data import Examples
from sparsescope.training.ngrams import NgramModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.training.recipe import ByteText

FIRST_BYTE = len(SPECIAL_TOKENS)
_LOGGED_WINDOWS = 16
_VALIDATION_WINDOWS = 320


@dataclass(frozen=True, slots=True)
class Domain:
    """The bytes of one domain.

    Attributes:
        name: The domain.
        train: uint8 [n] of each training document.
        validation: uint8 [n] of each validation document.
        near_duplicates: Documents left out.
        digest: SHA-256 of names and bytes of both splits, in order.
    """

    name: str
    train: tuple[NDArray[np.uint8], ...]
    validation: tuple[NDArray[np.uint8], ...]
    near_duplicates: int
    digest: str


def split_domain(documents: Iterable[Document], recipe: ByteText) -> Domain:
    """Leave out near-duplicates and split a domain by document.

    Args:
        documents: All documents of the domain.
        recipe: Gives context, share and most bytes.

    Raises:
        SpecError: No document of a split is as long as the context.
    """
    found = list(documents)
    name = found[0].domain if found else "(none)"
    rule = SplitRule(recipe.context, recipe.validation_fraction, recipe.max_domain_bytes, recipe.split_seed)
    split = split_documents(found, rule)
    if not split.train:
        raise SpecError(
            "a domain has too little text for training and validation",
            where=f"domain {name}",
            allowed=f"at least two documents of {recipe.context} bytes",
            got=f"{len(split.validation)} such documents",
            next_step="choose another corpus, or a shorter context",
        )
    return Domain(
        name, as_bytes(split.train), as_bytes(split.validation), split.near_duplicates, split.digest
    )


class _Windows:
    """Every window of the training documents of a domain, each as likely as the others."""

    def __init__(self, documents: tuple[NDArray[np.uint8], ...], context: int) -> None:
        self.context = context
        self.bytes = torch.from_numpy(np.concatenate(documents).astype(np.int64)) + FIRST_BYTE
        lengths = torch.tensor([len(document) for document in documents])
        self.begin = lengths.cumsum(0) - lengths
        self.last = (lengths - context + 1).cumsum(0)  # windows up to the end of each document

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return windows int64 [count, context]."""
        number = torch.randint(int(self.last[-1]), (count,), generator=generator)
        document = torch.searchsorted(self.last, number, right=True)
        before = torch.where(document > 0, self.last[document - 1], 0)
        start = self.begin[document] + number - before
        return self.bytes[start[:, None] + torch.arange(self.context)]


class ByteTextData:
    """Batches with the same number of windows of each domain; validation windows do not overlap."""

    vocabulary = VOCABULARY_SIZE

    def __init__(self, recipe: ByteText) -> None:
        self.recipe = recipe
        self.entries = registered_entries("+".join(recipe.corpora))
        self.domains = [split_domain(entry.load(), recipe) for entry in self.entries]
        self._train = [_Windows(domain.train, recipe.context) for domain in self.domains]
        self._validation = [self._cut(domain.validation) for domain in self.domains]

    def _cut(self, documents: tuple[NDArray[np.uint8], ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut documents into windows and take some, evenly spread; the windows [n, context],
        the documents [n].
        """
        width = self.recipe.context
        rows, owners = [], []
        for number, document in enumerate(documents):
            whole = len(document) // width
            rows.append(document[: whole * width].reshape(whole, width))
            owners += [number] * whole
        windows = torch.from_numpy(np.concatenate(rows).astype(np.int64)) + FIRST_BYTE
        return _spread(windows, torch.tensor(owners), _VALIDATION_WINDOWS)

    def batch(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return windows of all domains, twice: the targets are the tokens themselves."""
        tokens = torch.cat(
            [windows.draw(self.recipe.windows_per_domain, generator) for windows in self._train]
        )
        return tokens, tokens

    def examples(self, *, whole: bool) -> list[Examples]:
        """Return validation windows of each domain, along training a few of them; of training text as
        many as of these few.
        """
        found = []
        for domain, (windows, owners), train in zip(self.domains, self._validation, self._train, strict=True):
            few, _ = _spread(windows, owners, len(windows) if whole else _LOGGED_WINDOWS)
            found.append(Examples("validation", domain.name, few, few))
            again = train.draw(_LOGGED_WINDOWS, torch.Generator().manual_seed(self.recipe.split_seed))
            found.append(Examples("train", domain.name, again, again))
        return found

    def probe(self) -> dict[str, torch.Tensor]:
        """Return validation windows: ``tokens`` [n, context], ``domain`` and ``document``
        (in its domain) [n].
        """
        parts = [_spread(*validation, self.recipe.probe_windows) for validation in self._validation]
        domain = torch.cat([torch.full((len(windows),), number) for number, (windows, _) in enumerate(parts)])
        return {
            "tokens": torch.cat([windows for windows, _ in parts]),
            "domain": domain,
            "document": torch.cat([owners for _, owners in parts]),
        }

    def probe_examples(self) -> list[Examples]:
        """Return the windows of the probe set."""
        tokens = self.probe()["tokens"]
        return [Examples("probe", "", tokens, tokens)]

    def describe(self) -> dict[str, Any]:
        """Return the domains with origin, license, sizes and digest."""
        return {
            "kind": "byte_text",
            "context": self.recipe.context,
            "python": platform.python_version(),
            "domains": {
                domain.name: {
                    "corpus": entry.name,
                    "origin": entry.origin,
                    "license": entry.license,
                    "train_documents": len(domain.train),
                    "train_bytes": sum(map(len, domain.train)),
                    "validation_documents": len(domain.validation),
                    "validation_bytes": sum(map(len, domain.validation)),
                    "validation_windows": len(windows),
                    "near_duplicates": domain.near_duplicates,
                    "digest": domain.digest,
                }
                for domain, entry, (windows, _) in zip(
                    self.domains, self.entries, self._validation, strict=True
                )
            },
        }

    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Return the loss of a unigram and of a trigram model of each domain on its validation
        windows, nats a byte.

        Each is fitted to the training bytes of its own domain, so it knows the domain, which the
        language model does not.
        """
        found = {}
        for domain, (windows, _) in zip(self.domains, self._validation, strict=True):
            rows = (windows - FIRST_BYTE).numpy()
            found[domain.name] = {
                name: NgramModel(domain.train, order).mean_loss(rows)
                for name, order in (("unigram", 1), ("trigram", 3))
            }
        return found


def _spread(windows: torch.Tensor, owners: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return at most ``count`` rows, evenly spread."""
    if len(windows) <= count:
        return windows, owners
    rows = torch.arange(count) * len(windows) // count
    return windows[rows], owners[rows]

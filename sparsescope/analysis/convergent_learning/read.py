"""The inputs that all checkpoints read, and the units of their layers on them.

Of modular addition: all pairs, at the last token; a + b and b + a are one group. Of text: tokens after the
first of their window, document after document; documents are the groups.
Shapes: rows [row, unit].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.activations.capture import capture
from sparsescope.activations.text.vocabulary import check_vocabulary
from sparsescope.dictionaries.documents import beginnings
from sparsescope.errors import SpecError, SubjectError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument
    from sparsescope.analysis.convergent_learning import ConvergentLearningParams
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

HIDDEN, RESIDUAL = "blocks.*.mlp.hook_post", "blocks.*.hook_out"
LEAST = 100
"""Inputs that units can be compared on."""
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Inputs:
    """What checkpoints read.

    Attributes:
        tokens: int64 [row, 3] of pairs; None of text.
        corpus: The text; None of pairs.
        group: int64 [row], rows that belong together.
        modulus: p of modular addition, whose rows are all pairs in order; 0 of the rest.
        words: What they are, for people.
    """

    tokens: NDArray[np.int64] | None
    corpus: TokenizedCorpus | None
    group: NDArray[np.int64]
    modulus: int
    words: str

    def __len__(self) -> int:
        return len(self.group)


def inputs_of(
    series: CheckpointSeries, corpus: TokenizedCorpus | None, params: ConvergentLearningParams
) -> Inputs:
    """Take the inputs from the pairs of a series, or from a text.

    Raises:
        SpecError: There are neither.
        SubjectError: There are too few.
    """
    if series.trained is not None and series.trained.data.get("kind") == "modular_addition":
        p, probe = int(series.trained.data["modulus"]), series.probe()
        ends = np.sort(probe.tokens[:, :2], axis=1)
        group = np.unique(ends[:, 0] * p + ends[:, 1], return_inverse=True)[1]
        return Inputs(probe.tokens, None, group, p, f"all {len(group):,} pairs a + b mod {p}")
    if corpus is None:
        raise SpecError(
            "there is nothing that the checkpoints could read",
            where=series.name,
            allowed="a series that carries pairs or text, or a text that is given",
            next_step="give the text: --corpus python-docs, in Python corpus=ss.corpus(...)",
        )
    # Of each document as much as makes the rows: many documents tell more than long ones
    each = max(2, -(-params.rows // max(1, len(corpus.documents))) + 1)
    part = beginnings(corpus, params.rows, each)
    groups = [_later_tokens(part, document) for document in part.documents]
    size = sum(groups)
    if len(part.documents) < 2 or size < LEAST:
        raise SubjectError(
            "there are too few inputs to compare units on",
            where=f"corpus {corpus.name}",
            allowed=f"2 documents and {LEAST} tokens or more",
            got=f"{len(part.documents)} documents, {size} tokens",
            next_step="read more text (--tokens), or raise rows",
        )
    group = np.repeat(np.arange(len(groups)), groups)
    return Inputs(None, part, group, 0, f"{size:,} tokens of {len(groups)} documents of {corpus.name}")


def _later_tokens(corpus: TokenizedCorpus, document: TokenizedDocument) -> int:
    """Tokens of a document that are not at position 0 of a window."""
    windows = -(-len(document) // corpus.window_of(document))
    return len(document) - (0 if corpus.prefix or len(document.before) else windows)


def sites_of(subject: Subject, params: ConvergentLearningParams) -> tuple[Site, ...]:
    """The layers that are compared.

    Raises:
        SpecError: A pattern names experts, which not every row reaches.
        SubjectError: It matches nothing.
    """
    if not params.sites:
        try:
            return subject.sites(HIDDEN)
        except SubjectError:  # mixtures
            return subject.sites(RESIDUAL)
    found = subject.sites(params.sites)
    layers = [site.layer for site in found]
    if len(set(layers)) < len(layers):
        raise SpecError(
            "a layer is named by several sites",
            where=f"sites, {subject.id}",
            allowed="a pattern with one site in each layer, for example blocks.*.hook_out",
            got=params.sites,
        )
    if any(site.kind == "experts" for site in found):
        raise SpecError(
            "not every input reaches an expert, so units of experts cannot be compared",
            where=f"sites, {subject.id}",
            allowed="a pattern of dense sites, for example blocks.*.hook_out",
            got=params.sites,
        )
    return found


def units_of(
    subject: Subject, inputs: Inputs, params: ConvergentLearningParams
) -> dict[str, NDArray[np.float32]]:
    """The units of every layer on the inputs, by layer number: float32 [row, unit]."""
    if inputs.corpus is not None:
        check_vocabulary(subject.tokenizer, inputs.corpus, subject.id)
    sites = sites_of(subject, params)
    parts: dict[str, list[NDArray[np.float32]]] = {str(site.layer): [] for site in sites}
    if inputs.tokens is not None:
        for start in range(0, len(inputs.tokens), _AT_ONCE):
            read: dict[str, torch.Tensor] = {}

            def keep(
                site: Site,
                tensor: torch.Tensor,
                rows: torch.Tensor | None,
                read: dict[str, torch.Tensor] = read,
            ) -> None:
                read[str(site.layer)] = tensor[:, -1].float().cpu()

            with subject.attach(sites, keep):
                subject.forward(inputs.tokens[start : start + _AT_ONCE])
            for layer, values in read.items():
                parts[layer].append(values.numpy().copy())
    else:
        assert inputs.corpus is not None
        with capture(subject, inputs.corpus, [site.name for site in sites]) as source:
            for batch in source:
                kept = torch.from_numpy(batch.positions > 0)
                for site in sites:
                    parts[str(site.layer)].append(batch.values[site.name][kept].float().cpu().numpy().copy())
    return {layer: np.concatenate(values) for layer, values in parts.items()}

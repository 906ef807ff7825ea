"""What the model loses when it goes on with what a dictionary makes of a site.

Every variant reads the same tokens as the model as it is, so that differences are paired by token. The first
position of a window, and tokens beyond ten median norms, go on as they are, as they do in training:
dictionaries never saw them. Where the reconstruction is the activation itself no bit changes.

Shapes: V variants, D documents; logits only for chunks of targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.activations.capture import padding_for
from sparsescope.activations.losses import BATCH_TOKENS, CHUNK, OutputHead
from sparsescope.dictionaries.rows import NORM_LIMIT
from sparsescope.errors import SubjectError
from sparsescope.models.formats.wrapping import float32_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus
    from sparsescope.analysis.dictionary_quality.entries import Entry
    from sparsescope.dictionaries.rows import RowFacts
    from sparsescope.models.structure.sites import Site

    Floats = NDArray[np.float64]
    #: Gives what stands in place of rows [row, d_out], from what is read there, [row, d_in].
    Rule = Callable[[torch.Tensor], torch.Tensor]

ZERO, MEAN = "zero", "mean"


@dataclass(frozen=True, slots=True)
class Variant:
    """A model that goes on with something else at one site.

    Attributes:
        name: Label of the dictionary, or ``zero`` or ``mean`` with the site.
        reads: The site whose rows the rule gets.
        writes: The site that is replaced.
        rule: What stands there.
    """

    name: str
    reads: Site
    writes: Site
    rule: Rule


@dataclass(frozen=True, slots=True)
class Spliced:
    """Sums by document over its targets.

    Attributes:
        names: V, the variants.
        documents: int64 [D], numbers of the documents.
        domains: int64 [D].
        targets: int64 [D].
        nll: float64 [D], loss of the model as it is, nats.
        rises: float64 [V, D], loss of the variant minus that.
        divergences: float64 [V, D], KL(model || variant) of the next token.
    """

    names: tuple[str, ...]
    documents: NDArray[np.int64]
    domains: NDArray[np.int64]
    targets: NDArray[np.int64]
    nll: Floats
    rises: Floats
    divergences: Floats


def variants_of(entries: Sequence[Entry], facts: dict[str, RowFacts]) -> list[Variant]:
    """Each dictionary in its place, and the site at zero and at its mean."""
    out = [_of_entry(entry) for entry in entries]
    for site in {entry.writes.name: entry.writes for entry in entries}.values():
        mean = facts[site.name].mean
        out.append(Variant(f"{ZERO} {site.name}", site, site, torch.zeros_like))
        out.append(Variant(f"{MEAN} {site.name}", site, site, _constant(mean)))
    return out


def _of_entry(entry: Entry) -> Variant:
    dictionary = entry.dictionary
    return Variant(entry.label, entry.reads, entry.writes, lambda rows: dictionary.reconstruct_rows(rows)[1])


def _constant(value: torch.Tensor) -> Rule:
    return lambda rows: value.to(rows).expand(len(rows), -1)


def splice(
    context: Context, corpus: TokenizedCorpus, variants: Sequence[Variant], facts: dict[str, RowFacts]
) -> Spliced:
    """Measure losses of all variants on the same targets.

    Args:
        context: Of the run; finished passes are not made again.
        corpus: The documents.
        variants: What is put in place.
        facts: By site, the median norm.

    Raises:
        SubjectError: A loss is not finite.
    """
    arrays = context.step("splice", lambda: _passes(context, corpus, variants, facts))
    return Spliced(tuple(variant.name for variant in variants), *(arrays[name] for name in _FIELDS))


_FIELDS = ("documents", "domains", "targets", "nll", "rises", "divergences")


def _passes(
    context: Context, corpus: TokenizedCorpus, variants: Sequence[Variant], facts: dict[str, RowFacts]
) -> dict[str, NDArray[np.generic]]:
    subject = context.subject
    numbers = [document.index for document in corpus.documents]
    place = {number: row for row, number in enumerate(numbers)}
    domains = np.array([corpus.domains.index(document.domain) for document in corpus.documents], np.int64)
    targets, nll = np.zeros(len(numbers), np.int64), np.zeros(len(numbers))
    rises, divergences = (np.zeros((len(variants), len(numbers))) for _ in range(2))
    done, total = 0, (1 + len(variants)) * corpus.n_tokens
    head: OutputHead | None = None
    for batch in corpus.batches(BATCH_TOKENS, padding_for(subject, corpus, BATCH_TOKENS)):
        wanted = batch.text_mask[:, 1:]
        if not wanted.any():
            continue
        ids, mask = batch.input_ids, None if batch.attention_mask.all() else batch.attention_mask
        head = head or OutputHead(subject, ids, mask)
        states = []
        for variant in (None, *variants):
            states.append(_states(head, ids, mask, wanted, batch, variant, facts))
            done += batch.n_tokens
            context.progress("splice", done, total)
        words = torch.from_numpy(ids[:, 1:][wanted]).to(states[0].device)
        row = place[int(batch.document[0])]
        losses, more, apart = _compare(head, states, words)
        targets[row] += len(words)
        nll[row] += losses
        rises[:, row] += more
        divergences[:, row] += apart
    if not (np.isfinite(nll).all() and np.isfinite(rises).all()):
        bad = [
            variant.name for variant, row in zip(variants, rises, strict=True) if not np.isfinite(row).all()
        ]
        raise SubjectError(
            "a loss is not finite",
            where=f"{subject.id}, spliced with {', '.join(bad) or 'nothing'}",
            next_step=float32_step(subject),
        )
    kept = targets > 0
    return {
        "documents": np.array(numbers, np.int64)[kept],
        "domains": domains[kept],
        "targets": targets[kept],
        "nll": nll[kept],
        "rises": rises[:, kept],
        "divergences": divergences[:, kept],
    }


def _states(
    head: OutputHead,
    ids: NDArray[np.int64],
    mask: NDArray[np.bool_] | None,
    wanted: NDArray[np.bool_],
    batch: TokenBatch,
    variant: Variant | None,
    facts: dict[str, RowFacts],
) -> torch.Tensor:
    """Last hidden states before each target, [target, d_model]."""
    chosen = torch.from_numpy(wanted)
    if variant is None:
        found = head.states(ids, mask)
    else:
        sites = list({site.name: site for site in (variant.reads, variant.writes)}.values())
        with head.subject.edit(sites, _replacing(variant, batch, facts)):
            found = head.states(ids, mask)
    return found[:, :-1][chosen.to(found.device)]


def _replacing(
    variant: Variant, batch: TokenBatch, facts: dict[str, RowFacts]
) -> Callable[..., torch.Tensor]:
    """The function that the model calls at the sites of a variant."""
    text = torch.from_numpy(batch.text_mask & (batch.position > 0))
    inside: list[torch.Tensor] = []
    read: list[torch.Tensor] = []

    def replace(site: Site, tensor: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        limit = NORM_LIMIT * facts[site.name].median_norm
        inside.append(tensor.float().norm(dim=-1) <= limit)
        read.append(tensor)
        if site.name != variant.writes.name:
            return tensor
        kept = text.to(tensor.device)
        for one in inside:
            kept = kept & one
        made = variant.rule(read[0][kept].float())
        out = tensor.clone()
        out[kept] = made.to(tensor.device, tensor.dtype)
        return out

    return replace


def _compare(
    head: OutputHead, states: list[torch.Tensor], words: torch.Tensor
) -> tuple[float, Floats, Floats]:
    """Sums over targets: loss as it is, rises [V], divergences [V]."""
    losses, more, apart = 0.0, np.zeros(len(states) - 1), np.zeros(len(states) - 1)
    with torch.inference_mode():
        for begin in range(0, len(words), CHUNK):
            part = slice(begin, begin + CHUNK)
            plain = head.logits(states[0][part]).log_softmax(-1)
            chance = plain.exp()
            own = plain.gather(-1, words[part, None])[:, 0].double()
            losses -= float(own.sum())
            for number, found in enumerate(states[1:]):
                other = head.logits(found[part]).log_softmax(-1)
                changed = other.gather(-1, words[part, None])[:, 0].double()
                more[number] += float((own - changed).sum())
                apart[number] += float((chance * (plain - other)).sum(-1).double().sum())
    return losses, more, apart

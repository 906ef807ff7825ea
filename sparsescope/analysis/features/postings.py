"""One pass over the text: where each feature is active, written shard by shard.

Position 0 of a window and tokens of more than ten median norms are not encoded, as in training; they stay in
the text, so that contexts are whole.
Shapes: N rows, tokens of the text in stream order; codes CSR [row, feature].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch

from sparsescope.activations.capture import capture
from sparsescope.core.escaping import well_formed
from sparsescope.core.feature_store import FORMAT, KIND, FeatureWriter, StoredText, shard_of
from sparsescope.dictionaries.rows import NORM_LIMIT
from sparsescope.dictionaries.site_rows import counted, sites_of
from sparsescope.errors import SubjectError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.dictionaries.base import Dictionary
    from sparsescope.dictionaries.rows import RowFacts
    from sparsescope.models.structure.sites import Site

    Arrays = dict[str, NDArray[Any]]

SHARD_TOKENS = 65_536
TRAINED, UNTRAINED = "dictionary", "baseline"


@dataclass(slots=True)
class Entry:
    """A dictionary in its place.

    Attributes:
        label: Its name in the tables, unique.
        dictionary: It.
        reads: The site that it reads.
        writes: The site that it reconstructs.
        kind: ``TRAINED`` or ``UNTRAINED``.
        training: What its training said; empty where nothing is known.
    """

    label: str
    dictionary: Dictionary
    reads: Site
    writes: Site
    kind: str = TRAINED
    training: dict[str, Any] = field(default_factory=dict)


@contextmanager
def written(
    context: Context, entries: Sequence[Entry], facts: dict[str, RowFacts]
) -> Iterator[list[FeatureWriter]]:
    """Run the model over the text and write where features are active, one store for each dictionary; the
    caller finishes them in the block, at whose end they are kept.

    Args:
        context: Of the run; a shard that is finished is not made again.
        entries: Dictionaries.
        facts: By site, the median norm beyond ten times which tokens are left out.

    Raises:
        SubjectError: An activation is NaN or infinite, or no token is left.
    """
    corpus = context.corpus
    with ExitStack() as stack:
        writers = []
        for number, entry in enumerate(entries):
            meta = {
                "dictionary": entry.label,
                "kind": entry.kind,
                "subject": context.subject.id,
                "site": entry.reads.name,
                "norm_limit": NORM_LIMIT * facts[entry.reads.name].median_norm,
            }
            name = "activations" if number == 0 else f"activations_{number}"
            kept = stack.enter_context(context.keep(KIND, name, format=FORMAT, meta=meta))
            writers.append(FeatureWriter(kept, entry.dictionary.width))
        masks: dict[str, list[NDArray[np.bool_]]] = {entry.reads.name: [] for entry in entries}
        row = 0
        for number, part in enumerate(_parts(corpus)):
            make = partial(encode_part, context, part, entries, facts, row)
            found = context.step(f"codes-{number:05d}", make)
            for place, writer in enumerate(writers):
                begin = f"{place}."
                writer.append({key[len(begin) :]: found[key] for key in found if key.startswith(begin)})
            for name, parts in masks.items():
                parts.append(found[f"counted {name}"].astype(bool))
            row += part.n_tokens
        text = _text(context)
        for entry, writer in zip(entries, writers, strict=True):
            mask = np.concatenate(masks[entry.reads.name])
            if not mask.any():
                raise SubjectError(
                    "no token of the text is left to encode",
                    where=f"corpus {corpus.name}, {entry.reads.name}",
                    got=f"{len(mask)} tokens, all at position 0 of a window or beyond ten median norms",
                    next_step="read more text (--tokens), or longer windows (--context)",
                )
            writer.text(StoredText(counted=mask, **text))
        yield writers


def _parts(corpus: TokenizedCorpus) -> Iterator[TokenizedCorpus]:
    """Documents that follow one another, a shard of each."""
    some: list[int] = []
    size = 0
    for document in corpus.documents:
        some.append(document.index)
        size += len(document)
        if size >= SHARD_TOKENS:
            yield corpus.select(some)
            some, size = [], 0
    if some:
        yield corpus.select(some)


@torch.no_grad()
def encode_part(
    context: Context,
    part: TokenizedCorpus,
    entries: Sequence[Entry],
    facts: dict[str, RowFacts],
    first_row: int,
) -> Arrays:
    """Codes of some documents, sorted by feature, and which tokens were encoded.

    Args:
        context: Of the run.
        part: The documents.
        entries: Dictionaries.
        facts: By site, the median norm beyond ten times which tokens are left out.
        first_row: Number of their first token in the whole text.
    """
    begins = dict(
        zip(
            (document.index for document in part.documents),
            np.cumsum([0, *(len(document) for document in part.documents)]),
            strict=False,
        )
    )
    before = {d.index: len(part.prefix) + len(d.before) for d in part.documents}
    seen = dict.fromkeys(begins, 0)
    sites = sites_of([(entry.reads, entry.reads) for entry in entries])
    masks = {site.name: np.zeros(part.n_tokens, np.uint8) for site in sites}
    rows: list[list[NDArray[Any]]] = [[] for _ in entries]
    codes: list[list[scipy.sparse.csr_array]] = [[] for _ in entries]
    done = 0
    with capture(context.subject, part, [site.name for site in sites]) as source:
        for batch in source:
            text = batch.positions >= before[batch.document]
            place = np.full(len(text), -1, np.int64)
            place[text] = begins[batch.document] + seen[batch.document] + np.arange(int(text.sum()))
            seen[batch.document] += int(text.sum())
            used = {site.name: counted(batch, (site.name, site.name), facts).numpy() & text for site in sites}
            for name, mask in used.items():
                masks[name][place[mask]] = 1
            for number, entry in enumerate(entries):
                mask = used[entry.reads.name]
                values = batch.values[entry.reads.name][torch.from_numpy(mask)].float().cpu()
                if len(values):
                    codes[number].append(entry.dictionary.encode(values).csr())
                    rows[number].append(place[mask])
            done += int(text.sum())
            context.progress("encode", first_row + done, context.corpus.n_tokens)
    out: Arrays = {f"counted {name}": mask for name, mask in masks.items()}
    for number, entry in enumerate(entries):
        made = _spread(codes[number], rows[number], part.n_tokens, entry.dictionary.width)
        out |= {f"{number}.{key}": values for key, values in shard_of(made, first_row).items()}
    return out


def _spread(
    codes: list[scipy.sparse.csr_array], rows: list[NDArray[Any]], tokens: int, width: int
) -> scipy.sparse.csr_array:
    """Codes of the tokens that were encoded as rows of all tokens."""
    if not codes:
        return scipy.sparse.csr_array((tokens, width), dtype=np.float32)
    counts = np.zeros(tokens, np.int64)
    counts[np.concatenate(rows)] = np.concatenate([np.diff(part.indptr) for part in codes])
    parts = (
        np.concatenate([part.data for part in codes]).astype(np.float32),
        np.concatenate([part.indices for part in codes]),
        np.concatenate([[0], np.cumsum(counts)]),
    )
    return scipy.sparse.csr_array(parts, shape=(tokens, width))


def _text(context: Context) -> dict[str, Any]:
    """What the stores hold of the text."""
    corpus = context.corpus
    ids = np.concatenate([document.ids for document in corpus.documents]).astype(np.int32)
    present = np.unique(ids).tolist()
    tokenizer = context.subject.tokenizer
    return {
        "ids": ids,
        "offsets": np.cumsum([0, *(len(document) for document in corpus.documents)]),
        "documents": [document.id for document in corpus.documents],
        "domains": corpus.domains,
        "domain_of": np.array([corpus.domains.index(d.domain) for d in corpus.documents], np.int32),
        "vocabulary": {int(token): well_formed(tokenizer.decode([token])) for token in present},
    }

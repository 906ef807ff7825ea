"""One pass over the evaluation documents: what every dictionary makes of the same tokens.

Reconstructions go into sums by document, activity into counts by feature, and a sample of the tokens is kept
with its codes for probes. Codes stay sparse: no [token, feature] array is made.

Shapes: rows [row, d]; codes CSR [row, feature]; D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch

from sparsescope.activations.capture import capture
from sparsescope.analysis.dictionary_quality.entries import DICTIONARY, Entry
from sparsescope.dictionaries.site_rows import counted, sites_of
from sparsescope.errors import SubjectError
from sparsescope.metrics.feature_counts import NEVER, first_active_rows
from sparsescope.metrics.reconstruction import ReconstructionSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.dictionaries.rows import RowFacts

    Arrays = dict[str, NDArray[Any]]

EXACT_BYTES = 2**28
"""Of the sums by document that make the intervals exact."""
_SAMPLE = ("ids", "documents", "positions")


@dataclass(slots=True)
class Sample:
    """Tokens that probes read.

    Attributes:
        ids: int64 [row], token ids.
        documents: int64 [row].
        positions: int64 [row], in the window.
        values: float32 [row, d], what is read.
        codes: By dictionary, CSR [row, feature].
    """

    ids: NDArray[np.int64]
    documents: NDArray[np.int64]
    positions: NDArray[np.int64]
    values: NDArray[np.float32]
    codes: dict[str, scipy.sparse.csr_array] = field(default_factory=dict)


@dataclass(slots=True)
class Place:
    """What was found at one place of the model.

    Attributes:
        entries: Dictionaries and baselines there.
        sums: Of their reconstructions; in this order.
        active: By label, int64 [feature], tokens on which each is active.
        first: By label, int64 [feature], the first of them; ``NEVER`` where there is none.
        tokens: Tokens counted.
        left_out: Tokens left out.
        sample: For probes.
    """

    entries: list[Entry]
    sums: ReconstructionSums
    active: dict[str, NDArray[np.int64]]
    first: dict[str, NDArray[np.int64]]
    tokens: int
    left_out: int
    sample: Sample


def evaluate(
    context: Context,
    corpus: TokenizedCorpus,
    entries: Sequence[Entry],
    facts: dict[str, RowFacts],
    probe_rows: int,
    seed: int,
) -> list[Place]:
    """Evaluate dictionaries on the same tokens.

    Args:
        context: Of the run; a pass that is finished is not made again.
        corpus: Evaluation documents.
        entries: Dictionaries and baselines.
        facts: By site, the median norm beyond ten times which tokens are left out.
        probe_rows: Tokens kept for probes.
        seed: Of their choice.

    Returns:
        One for each place, in the order of the entries.

    Raises:
        SubjectError: An activation is NaN or infinite, or no token is left.
    """
    found = [
        _empty([entry for entry in entries if entry.place == place], corpus, facts)
        for place in dict.fromkeys(entry.place for entry in entries)
    ]
    arrays = context.step("evaluate", lambda: _pass(context, corpus, found, facts, probe_rows, seed))
    for number, place in enumerate(found):
        _restore(place, arrays, f"{number}.")
        if not place.tokens:
            raise SubjectError(
                "no token of the evaluation documents is left to score",
                where=f"corpus {corpus.name}, {place.entries[0].reads.name}",
                got=f"{place.left_out} tokens, all at position 0 of a window or beyond ten median norms",
                next_step="read more text (--tokens), or longer windows (--context)",
            )
    return found


def _empty(entries: list[Entry], corpus: TokenizedCorpus, facts: dict[str, RowFacts]) -> Place:
    width = entries[0].writes.width
    exact = len(corpus.documents) * width * 8 <= EXACT_BYTES
    mean = facts[entries[0].writes.name].mean.numpy()
    labels = [entry.label for entry in entries]
    sums = ReconstructionSums(width, labels, mean, exact=exact)
    active = {entry.label: np.zeros(entry.dictionary.width, np.int64) for entry in entries}
    first = {entry.label: np.full(entry.dictionary.width, NEVER) for entry in entries}
    none = np.zeros(0, np.int64)
    sample = Sample(none, none, none, np.zeros((0, entries[0].reads.width), np.float32))
    return Place(entries, sums, active, first, 0, 0, sample)


def _pass(
    context: Context,
    corpus: TokenizedCorpus,
    places: list[Place],
    facts: dict[str, RowFacts],
    probe_rows: int,
    seed: int,
) -> Arrays:
    """Run the model once; what was found as arrays."""
    names = [site.name for site in sites_of([(p.entries[0].reads, p.entries[0].writes) for p in places])]
    held: list[list[dict[str, Any]]] = [[] for _ in places]
    done = 0
    with capture(context.subject, corpus, names, reuse=True) as source:
        share = min(1.0, probe_rows / max(1, source.n_tokens))
        for batch in source:
            chance = np.random.default_rng([seed, batch.index, 5]).random(len(batch.positions))
            for place, parts in zip(places, held, strict=True):
                reads, writes = place.entries[0].place
                kept = counted(batch, (reads, writes), facts)
                place.left_out += int((~kept).sum())
                if not bool(kept.any()):
                    continue
                rows = batch.values[reads].cpu()[kept].float()
                target = rows if reads == writes else batch.values[writes].cpu()[kept].float()
                chosen = chance[kept.numpy()] < share
                parts.append(_update(place, batch.document, rows, target, chosen))
                parts[-1] |= {
                    "ids": batch.token_ids[kept.numpy()][chosen],
                    "documents": np.full(int(chosen.sum()), batch.document, np.int64),
                    "positions": batch.positions[kept.numpy()][chosen].astype(np.int64),
                }
            done += len(batch.positions)
            context.progress("evaluate", done, source.n_tokens)
    out: Arrays = {}
    for number, (place, parts) in enumerate(zip(places, held, strict=True)):
        out |= {f"{number}.{name}": values for name, values in _arrays(place, parts).items()}
    return out


def _update(
    place: Place, document: int, rows: torch.Tensor, target: torch.Tensor, chosen: NDArray[np.bool_]
) -> dict[str, Any]:
    """Add rows of one document; return what is kept of the chosen ones."""
    made, counts = {}, {}
    kept: dict[str, Any] = {"values": rows.numpy()[chosen], "codes": {}}
    for entry in place.entries:
        codes, reconstruction = entry.dictionary.reconstruct_rows(rows)
        made[entry.label] = reconstruction.float().numpy()
        counts[entry.label] = codes.active_per_row.numpy()
        place.active[entry.label] += codes.rows_per_feature.numpy()
        csr = codes.csr()
        place.first[entry.label] = first_active_rows(csr, place.tokens, place.first[entry.label])
        if entry.kind == DICTIONARY:
            kept["codes"][entry.label] = csr[np.flatnonzero(chosen)].astype(np.float32)
    place.sums.update(document, target.numpy(), made, counts)
    place.tokens += len(rows)
    return kept


def _arrays(place: Place, parts: list[dict[str, Any]]) -> Arrays:
    """A place as arrays that ``_restore`` reads."""
    out: Arrays = {f"sums.{name}": values for name, values in place.sums.state().items()}
    out["counts"] = np.array([place.tokens, place.left_out], np.int64)
    for name in (*_SAMPLE, "values"):
        if parts:
            out[f"sample.{name}"] = np.concatenate([part[name] for part in parts])
    for number, entry in enumerate(place.entries):
        out[f"active.{number}"] = place.active[entry.label]
        out[f"first.{number}"] = place.first[entry.label]
        if entry.kind == DICTIONARY and parts:
            codes = scipy.sparse.vstack([part["codes"][entry.label] for part in parts], format="csr")
            out |= {f"codes.{number}.{name}": getattr(codes, name) for name in ("data", "indices", "indptr")}
    return out


def _restore(place: Place, arrays: Arrays, prefix: str) -> None:
    """Fill a place from what ``_arrays`` made."""
    own = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    place.sums.restore({n.removeprefix("sums."): v for n, v in own.items() if n.startswith("sums.")})
    place.tokens, place.left_out = (int(count) for count in own["counts"])
    if "sample.ids" in own:
        ids, documents, positions, values = (own[f"sample.{name}"] for name in (*_SAMPLE, "values"))
        place.sample = Sample(ids, documents, positions, values)
    for number, entry in enumerate(place.entries):
        place.active[entry.label] = own[f"active.{number}"]
        place.first[entry.label] = own[f"first.{number}"]
        if f"codes.{number}.indptr" in own:
            parts = tuple(own[f"codes.{number}.{name}"] for name in ("data", "indices", "indptr"))
            shape = (len(place.sample.ids), entry.dictionary.width)
            place.sample.codes[entry.label] = scipy.sparse.csr_array(parts, shape=shape)

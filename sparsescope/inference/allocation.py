"""How much each mask drops, for one target of block-matrix bytes.

``uniform``: the target, everywhere. ``greedy`` (TEAL, section 4.3 of arXiv:2408.14690): inside a block the
matrix whose further sparsity adds least to the error of the block's output goes first, in steps of equal
bytes; every block has the same share. ``blocks`` (WAS): the share of a block may rise with depth, within the
published bounds (s_i in [s_(i-1), target + .05], s_1 >= target - .05), chosen by the loss on the development
text among a few rising sequences in place of fifty trials of a tree-structured search; inside a block it is
greedy.
Shapes: hidden states [batch, pos, d_model].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.replay import Replay
from sparsescope.errors import unknown_name
from sparsescope.inference.install import install
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.kernels.score_histograms import quantile

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.inference.calibrator import Calibrator, MasksKey
    from sparsescope.inference.masks import Mask

#: Dropped share of each mask by its name.
Shares = dict[str, float]
Allocate = Callable[["Calibrator", Sequence["Mask"], float], Shares]

STEP = 0.05  # of the bytes of a block
GREEDY_TOKENS = 512
MOST = 0.95
MARGIN = 0.05
RAMPS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def uniform(bench: Calibrator, masks: Sequence[Mask], target: float) -> Shares:
    """The target for every mask."""
    return {mask.name: target for mask in masks}


def greedy(bench: Calibrator, masks: Sequence[Mask], target: float) -> Shares:
    """The row of each block's table that has the target."""
    tables = _tables(bench, masks)
    shares: Shares = {}
    for layer, rows in tables.items():
        shares |= _row(rows, target, layer)
    return shares


def blocks(bench: Calibrator, masks: Sequence[Mask], target: float) -> Shares:
    """Greedy inside blocks whose share rises with depth."""
    tables = _tables(bench, masks)
    layers = sorted(tables)
    counts = _dense_counts(bench, masks)
    best: tuple[float, Shares] | None = None
    text = bench.development or bench.text
    for ramp in RAMPS:
        offsets = np.linspace(-MARGIN, MARGIN, len(layers)) * ramp if len(layers) > 1 else np.zeros(1)
        shares: Shares = {}
        for layer, offset in zip(layers, offsets, strict=True):
            shares |= _row(tables[layer], min(max(target + float(offset), 0.0), MOST), layer)
        placed = _placed(masks, counts, shares)
        loss = _loss(install(bench.subject, placed, PrefixPolicy("all_sparse")), text)
        if best is None or loss < best[0]:
            best = (loss, shares)
    assert best is not None
    return best[1]


ALLOCATIONS: Mapping[str, Allocate] = {"uniform": uniform, "greedy": greedy, "blocks": blocks}


def find(name: str) -> Allocate:
    """Return an allocation.

    Raises:
        SpecError: There is none of this name.
    """
    if name not in ALLOCATIONS:
        raise unknown_name("allocation", name, ALLOCATIONS, next_step="uniform is the plain one")
    return ALLOCATIONS[name]


def _row(rows: list[Shares], target: float, layer: int) -> Shares:
    """The shares of a block between the two rows around a target; each row is one step of the bytes."""
    place = target / STEP
    before = min(int(place), len(rows) - 1)
    after = min(before + 1, len(rows) - 1)
    part = place - before if after > before else 0.0
    return {
        name: rows[before][name] + part * (rows[after][name] - rows[before][name]) for name in rows[before]
    }


def _tables(bench: Calibrator, masks: Sequence[Mask]) -> dict[int, list[Shares]]:
    """By layer, the shares after each step; kept by the calibrator."""
    key, kept = _key(masks), bench.kept.greedy
    if key not in kept:
        with bench.timed("greedy allocation"):
            kept[key] = greedy_tables(bench, masks)
    return kept[key]


def _key(masks: Sequence[Mask]) -> MasksKey:
    """By what tables and counts are kept: names of masks are the same for every score."""
    first = masks[0].scale
    mark = "" if first is None else f"{float(first.double().sum()):.6g}"
    return tuple(mask.name for mask in masks), mark


def greedy_rows(
    sizes: Mapping[str, int], error: Callable[[Shares], float], step: float = STEP, most: float = MOST
) -> list[Shares]:
    """Drop in steps of equal bytes, each where the error afterwards is smallest.

    Section 4.3 of arXiv:2408.14690. It knows of no model: the error may be any function of the shares. Where
    it is a sum of convex functions, one of each share, every row is the best of its number of steps (marginal
    analysis: Fox, Operations Research 14, 1966), as long as no name is at its largest share.

    Args:
        sizes: Weights by name.
        error: Of some shares, one for each name; asked (rows x names) times.
        step: Of the weights together, of one row.
        most: Largest share of a name. What a step leaves over at this bound goes to the names that drop
            least.

    Returns:
        Shares by name; row r drops r steps. As many rows as there are steps within ``most``, and that of
        zeros.
    """
    total = sum(sizes.values())
    now: Shares = dict.fromkeys(sizes, 0.0)
    rows = [dict(now)]
    for _ in range(int(most / step)):
        best: tuple[float, str, float] | None = None
        for name in now:
            if now[name] >= most:
                continue
            tried = min(now[name] + step * total / sizes[name], most)
            found = error({**now, name: tried})
            if best is None or found < best[0]:
                best = (found, name, tried)
        if best is None:
            break
        left = step * total - (best[2] - now[best[1]]) * sizes[best[1]]
        now[best[1]] = best[2]
        for name in sorted(now, key=lambda each: now[each]):
            if left <= 1e-9 * total:
                break
            taken = min((most - now[name]) * sizes[name], left)
            now[name] += taken / sizes[name]
            left -= taken
        rows.append(dict(now))
    return rows


def greedy_tables(
    bench: Calibrator, masks: Sequence[Mask], tokens: int = GREEDY_TOKENS
) -> dict[int, list[Shares]]:
    """Run every block many times on the same inputs and find which matrix goes next.

    Args:
        bench: The calibrator.
        masks: One for each matrix.
        tokens: Most tokens that a block is tried on.

    Returns:
        By layer, shares by mask; row r has r times ``STEP`` of the bytes of the block.
    """
    counts = _dense_counts(bench, masks)
    sparse = install(bench.subject, masks, PrefixPolicy("all_sparse"))  # its thresholds are 0 or are set here
    parts = _parts(sparse.model, masks)
    replay = Replay(
        bench.subject, _beginning(bench.text, tokens), next_step="use the uniform allocation: teal, was"
    )
    trial = Replay(sparse, _beginning(bench.text, tokens), next_step="use the uniform allocation: teal, was")
    tables: dict[int, list[Shares]] = {}
    by_layer: dict[int, list[Mask]] = {}
    for mask in masks:
        by_layer.setdefault(mask.layer, []).append(mask)
    for number, (layer, own) in enumerate(sorted(by_layer.items())):
        bench.progress("greedy allocation", number, len(by_layer))
        sizes = {mask.name: bench.weights(mask) for mask in own}
        wanted = [replay.run(layer, each) for each in range(len(replay.batches))]

        def error(shares: Shares, layer: int = layer, wanted: list[torch.Tensor] = wanted) -> float:
            for name, share in shares.items():
                parts[name](quantile(counts[name], min(share, 0.999)))
            squares, count = 0.0, 0
            for each, y in enumerate(wanted):
                off = (trial.run(layer, each, replay.hidden[each]) - y).float()
                mask = torch.from_numpy(replay.batches[each].text_mask & (replay.batches[each].position > 0))
                squares += float(off.norm(dim=-1)[mask.to(off.device)].sum())
                count += int(mask.sum())
            return squares / max(count, 1)

        tables[layer] = greedy_rows(sizes, error)
        replay.advance(layer)
    bench.progress("greedy allocation", len(by_layer), len(by_layer))
    return tables


def _parts(model: Any, masks: Sequence[Mask]) -> dict[str, Callable[[float], None]]:
    """Functions that set the threshold of a mask in an installed model."""
    from sparsescope.inference.modules import rounded_down

    found: dict[str, list[Any]] = {mask.name: [] for mask in masks}
    dtype: dict[str, torch.dtype] = {}
    for module in model.modules():
        parts = list(getattr(module, "parts", ()))
        for group in getattr(module, "by_matrix", {}).values():
            parts += group
        for part in parts:
            if part.mask.name in found:
                found[part.mask.name].append(part)
                dtype[part.mask.name] = next(module.parameters()).dtype

    def setter(mask: Mask) -> Callable[[float], None]:
        def put(threshold: float) -> None:
            limits: torch.Tensor = torch.tensor(threshold, dtype=torch.float64)
            if mask.scale is not None:
                limits = mask.scale * 0 - 1 if threshold < 0 else threshold / mask.scale
            exact = rounded_down(limits, dtype[mask.name])
            for part in found[mask.name]:
                part.limits = float(exact) if mask.scale is None else exact

        return put

    return {mask.name: setter(mask) for mask in masks}


def _dense_counts(bench: Calibrator, masks: Sequence[Mask]) -> Mapping[str, Any]:
    """Counts of the scores in the dense model; kept by the calibrator."""
    key, kept = _key(masks), bench.kept.score_counts
    if key not in kept:
        with bench.timed("reading the text"):
            found = bench.count(bench.subject, {m.name: m for m in masks}, "calibration: scores")
            kept[key] = found.counts
    return kept[key]


def _placed(masks: Sequence[Mask], counts: Mapping[str, Any], shares: Shares) -> list[Mask]:
    return [
        replace(mask, threshold=quantile(counts[mask.name], min(shares[mask.name], 0.999))) for mask in masks
    ]


def _loss(subject: Any, text: TokenizedCorpus) -> float:
    from sparsescope.activations.losses import token_losses

    return token_losses(subject, text).mean


def _beginning(text: TokenizedCorpus, tokens: int) -> TokenizedCorpus:
    """The first documents, cut to a number of tokens; a block is run on it hundreds of times."""
    chosen, left = [], tokens
    for document in text.documents:
        if left <= 0:
            break
        chosen.append(replace(document, ids=document.ids[: min(left, text.window)], whole=False))
        left -= len(chosen[-1])
    return replace(text, documents=tuple(chosen), digest=f"{text.digest[:48]}beginning")

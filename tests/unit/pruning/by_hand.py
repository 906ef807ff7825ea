"""Pruning by hand: plain torch hooks on whole passes, float64, slow. Nothing here uses the pruning package.

Inputs are captured as a module gets them, padding is dropped by the mask of the batch, every expert of a
mixture is followed by its own tokens, and masks are sorted row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch

SHARE = 1e-5  # scores that differ by less may be ordered either way: sums run in another order


def document_text(lengths: tuple[int, ...], context: int = 13, stride: int = 7, prefix: tuple[int, ...] = ()):
    """A tokenized corpus of documents of these lengths, ids from 3 to 92, windows of ``context``."""
    from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument

    documents = tuple(
        TokenizedDocument(
            n, f"d{n}", "ids", (np.arange(length) * (stride + 2 * n) % 90 + 3).astype(np.int32), True
        )
        for n, length in enumerate(lengths)
    )
    provenance: dict[str, Any] = {"domains": {"ids": {}}}
    return TokenizedCorpus(
        "ids", documents, ("ids",), context, prefix, (), 1, "", f"{lengths}{context}{stride}", provenance
    )


def batches(subject: Any, text: Any) -> list[Any]:
    """The passes over a text, padded on the right where the model takes it."""
    side = "right" if subject.takes_padding("right") else None
    return list(text.batches(2048, side))


def call(subject: Any, batch: Any) -> Any:
    """One whole pass of the HF model, logits and all."""
    given = {} if batch.attention_mask.all() else {"attention_mask": torch.from_numpy(batch.attention_mask)}
    with torch.no_grad():
        return subject.model(input_ids=torch.from_numpy(batch.input_ids), use_cache=False, **given)


def captured(
    subject: Any, text: Any, layer: int | None = None, experts: bool = True
) -> dict[str, torch.Tensor]:
    """What every matrix reads, padding left out: float64 [tokens, in] by name of the matrix."""
    found: dict[str, list[torch.Tensor]] = {}
    sites = [
        site
        for site in subject.parameter_sites("weight:blocks.*.*")
        if "router" not in site.role and (layer is None or site.layer == layer)
    ]
    by_path: dict[str, list[Any]] = {}
    for site in sites:
        if experts or site.expert is None:
            by_path.setdefault(site.module_path, []).append(site)
    real = torch.empty(0)

    def hook(path: str) -> Callable[..., None]:
        def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [*args, *kwargs.values()]
            states = given[0].reshape(-1, given[0].shape[-1])
            for site in by_path[path]:
                read = states[real]
                if site.expert is not None:
                    routed = (given[1].reshape(len(states), -1) == site.expert).any(-1)
                    read = states[routed & real]
                    if site.role.endswith("out.weight"):
                        gate, up = (read @ module.gate_up_proj[site.expert].T).chunk(2, -1)
                        read = torch.nn.functional.silu(gate) * up
                found.setdefault(site.name, []).append(read.double())

        return keep

    handles = [
        subject.model.get_submodule(path).register_forward_pre_hook(hook(path), with_kwargs=True)
        for path in by_path
    ]
    try:
        for batch in batches(subject, text):
            assert not batch.n_suffix
            real = torch.from_numpy(batch.attention_mask.reshape(-1))
            call(subject, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def magnitude(weight: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    return weight.double().abs()


def wanda(weight: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    return weight.double().abs() * read.square().sum(0).sqrt()


def ria(weight: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    size = weight.double().abs()
    share = size / size.sum(0, keepdim=True) + size / size.sum(1, keepdim=True)
    return share * read.square().sum(0).sqrt().sqrt()


SCORES = {"magnitude": magnitude, "wanda": wanda, "ria": ria}


def count(sparsity: float, n: int) -> int:
    """S n, rounded half down, without floating point."""
    return math.ceil(Fraction(str(sparsity)) * n - Fraction(1, 2))


def assert_smallest_go(keep: np.ndarray, scores: torch.Tensor, gone: int, by_row: bool, where: str) -> None:
    """Hold a mask to the smallest scores: of a matrix, or of each row with the rest on the first rows."""
    rows = scores.numpy() if by_row else scores.reshape(1, -1).numpy()
    kept = keep if by_row else keep.reshape(1, -1)
    each, more = divmod(gone, len(rows))
    for row, (values, found) in enumerate(zip(rows, kept, strict=True)):
        wanted = each + (row < more)
        assert (~found).sum() == wanted, f"{where} row {row}"
        if not 0 < wanted < len(values):
            continue
        expected = np.ones(len(values), bool)
        order = np.argsort(values, kind="stable")
        expected[order[:wanted]] = False
        limit = values[order[wanted - 1]]
        wrong = np.flatnonzero(found != expected)
        assert (abs(values[wrong] - limit) <= SHARE * limit).all(), f"{where} row {row}: {wrong}"
        assert len(wrong) <= 2, f"{where} row {row}"


def assert_masks(
    subject: Any, masks: Any, read: dict[str, torch.Tensor], criterion: str, sparsity: float
) -> int:
    """Hold the masks of some matrices to their inputs; returns how many weights were compared."""
    compared = 0
    for name, inputs in read.items():
        weight = subject.parameter(name)
        scores = SCORES[criterion](weight, inputs)
        keep = masks[name].array()
        gone = count(sparsity, keep.size)
        assert_smallest_go(keep, scores, gone, criterion != "magnitude", f"{criterion}, {name}")
        compared += keep.size
    return compared


def assert_sequential(
    subject: Any, masks: Any, text: Any, criterion: str, sparsity: float, experts: bool = True
) -> int:
    """Prune a copy block by block, running the whole model from the start each time, and hold the masks to
    what each block reads.
    """
    copy, compared = subject.copy(), 0
    for layer in range(subject.n_layers):
        read = captured(copy, text, layer, experts)
        compared += assert_masks(copy, masks, read, criterion, sparsity)
        for site in copy.parameter_sites(f"weight:blocks.{layer}.*"):
            if site.name in masks.masks:
                copy.parameter(site).masked_fill_(~masks[site.name].tensor(), 0)
    return compared

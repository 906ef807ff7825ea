"""Proof that a dictionary belongs to a model: 1,000 tokens are encoded again, and L0 and error compared
with the file.

The commonest fault of users is a wrong hook: the file loads, the width fits, and every number is nonsense.
So a dictionary must have about the L0 and the error that its file states.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from sparsescope.core.proofs import Proof
from sparsescope.dictionaries.base import fvu_and_l0
from sparsescope.dictionaries.rows import facts_of, kept_rows
from sparsescope.errors import SparsescopeError

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus
    from sparsescope.core.artifacts import Artifact
    from sparsescope.dictionaries.base import Dictionary
    from sparsescope.models.subject import Subject

TOKENS = 1000
#: L0 and FVU of a thousand tokens of another text differ from those of the file by so much at most.
L0_FACTOR, FVU_SLACK = 2.0, 0.25


def prove_files(artifact: Artifact) -> Proof:
    """Whether every file of the artifact has its size and checksum."""
    damage = artifact.verify()
    return Proof(
        "files", not damage, "; ".join(damage[:3]) or f"{len(artifact.files)} files, each as it was written"
    )


def prove_on(dictionary: Dictionary, told: dict[str, Any], subject: Subject, text: Corpus) -> list[Proof]:
    """Encode tokens of a text again and compare with what the file says.

    Args:
        dictionary: With its site.
        told: What the file says: ``held_out_l0`` or ``l0``, ``held_out_fvu`` or ``fvu``; may be empty.
        subject: The model.
        text: What it reads; the first thousand tokens count.

    Returns:
        Proofs ``site``, ``L0`` and ``error``; where the file says nothing, an error below all of the
        variance counts.
    """
    from sparsescope.activations.capture import capture
    from sparsescope.activations.shuffled import RowBatch

    try:
        sites = subject.sites(dictionary.site)
    except SparsescopeError as error:
        return [
            Proof("site", False, f"{dictionary.site or 'no site is named'}: {str(error).splitlines()[0]}")
        ]
    site = sites[0]
    if len(sites) != 1 or site.width != dictionary.d_in:
        return [
            Proof(
                "site", False, f"{site.name} has width {site.width}, the dictionary reads {dictionary.d_in}"
            )
        ]
    found = [Proof("site", True, f"{site.name}, width {site.width}")]
    values, positions = [], []
    with capture(subject, text, [site.name], dtype="float32") as source:
        for batch in source:
            values.append(batch.values[site.name].cpu().clone())
            positions.append(torch.from_numpy(batch.positions.copy()))
            if sum(map(len, values)) >= TOKENS:
                break
    rows, place = torch.cat(values)[: TOKENS + 1], torch.cat(positions).numpy()[: TOKENS + 1]
    whole = RowBatch(0, 0, place, place.astype("int64"), place, {site.name: rows})
    rows = kept_rows(whole, {site.name: facts_of(rows, place)})[0][site.name]
    same = dictionary.d_out == dictionary.d_in
    if same:
        fvu, l0, _ = fvu_and_l0(dictionary, rows)
    else:  # what a transcoder writes is not read here
        codes = dictionary.encode(rows)
        fvu, l0 = math.nan, len(codes.values) / max(1, len(rows))
    on = f"on {len(rows)} tokens of {text.name}"
    before = told.get("held_out_l0", told.get("l0"))
    if before:
        near = abs(math.log(max(l0, 1e-9) / before)) <= math.log(L0_FACTOR)
        found.append(Proof("L0", near, f"{l0:.1f} {on}; the file says {before:.1f}"))
    else:
        found.append(Proof("L0", l0 > 0, f"{l0:.1f} {on}; the file says nothing"))
    known = told.get("held_out_fvu", told.get("fvu"))
    if not same:
        return found
    if known is not None:
        near = fvu <= known + FVU_SLACK
        found.append(Proof("error", near, f"FVU {fvu:.3f} {on}; the file says {known:.3f}"))
    else:
        found.append(Proof("error", fvu < 1, f"FVU {fvu:.3f} {on}; below 1 it explains something"))
    return found

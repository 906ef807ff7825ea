"""Prune a model: choose the weights that go by criterion, pattern and allocation, and set them to zero.

The subject that is given stays as it is, bit for bit; what comes back is a subject of its own with the masks.
With ``propagation="sequential"`` each block is judged on what the pruned blocks before it give (as in Wanda
and SparseGPT), with ``"dense"`` on what the whole dense model gives it.
Shapes: matrices [out, in].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsescope.pruning.masks import MaskSet
from sparsescope.pruning.request import Request, calibration_text
from sparsescope.pruning.scope import Patterns, choose
from sparsescope.pruning.workbench import Tell, Workbench, quiet

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject
    from sparsescope.pruning.allocation import Allocation
    from sparsescope.pruning.criteria import Criterion
    from sparsescope.pruning.patterns import Pattern


def prune(
    subject: Subject,
    criterion: str | Criterion = "magnitude",
    sparsity: float | None = None,
    pattern: str | Pattern | None = None,
    allocation: str | Allocation = "uniform",
    scope: Patterns = "blocks",
    corpus: Corpus | TokenizedCorpus | None = None,
    propagation: str = "sequential",
    *,
    seed: int = 0,
    first_positions: bool = True,
    progress: Tell = quiet,
) -> tuple[Subject, MaskSet]:
    """Return a pruned subject and its masks; the given subject is untouched.

    Args:
        subject: The model.
        criterion: ``"magnitude"``, ``"random"``, ``"wanda"``, ``"ria"``, ``"sparsegpt"``.
        sparsity: Share of the weights in scope that go, from 0 on and below 1; an N:M pattern says it.
        pattern: ``NM(keep=2, group=4)`` or ``"2:4"``, ``"rows"``, ``"blocks:16x16"``; None: single weights.
        allocation: How the share differs between matrices: ``"uniform"``, ``"global"`` (one threshold),
            ``"erk"``, ``"owl"``, ``"atp"``.
        scope: Which matrices: ``"blocks"``, ``"mlp"``, ``"attention"``, or patterns such as
            ``weight:blocks.*.mlp.out.weight``.
        corpus: Calibration text of criteria and allocations that read one.
        propagation: ``"sequential"``: each block is judged on what the pruned ones before it give;
            ``"dense"``: on what the dense model gives it.
        seed: Of the criterion ``random``.
        first_positions: Whether the first token of each window counts in the calibration, as in the papers.
        progress: Told ``(phase, done, total)``.

    Returns:
        The pruned subject, a variant ``pruned`` of the given one, and the masks.

    Raises:
        SpecError: An argument is not valid, two contradict each other, or a text is missing.
        SubjectError: A weight is not finite, a matrix cannot be written to, or the model cannot be run block
            by block.

    Example:
        >>> from sparsescope.models.sources import load
        >>> sparse, masks = prune(load("random-llama"), sparsity=0.5)
        >>> round(masks.sparsity, 6), sparse.id
        (0.5, 'pruned@criterion=magnitude,sparsity=0.5:random-llama')
    """
    request = Request.of(criterion, sparsity, pattern, allocation, propagation, seed, first_positions)
    chosen = choose(subject, scope)
    request.check(chosen)
    text = calibration_text(request, corpus, subject)
    work = Workbench(subject, chosen)
    work.subject.with_variant("pruned", {}, of=subject)  # what is refused is refused before the work
    masks = work.prune(request, text, progress)
    defaults = {
        "pattern": None,
        "allocation": "uniform",
        "propagation": "sequential",
        "first_positions": True,
    }
    named = {
        key: value for key, value in request.facts.items() if key not in defaults or value != defaults[key]
    }
    if text is not None:
        named["corpus"] = text.digest[:12]
    if chosen.asked != "blocks":
        named["scope"] = chosen.asked
    made = work.subject.with_variant("pruned", named, of=subject)
    parent = made.variant.parent.model_dump(mode="json") if made.variant else {}
    facts = {**masks.facts, "parent": {**parent, "origin_precision": subject.origin_precision}}
    return made, MaskSet(masks.masks, facts, masks.notes)

"""What must hold of a model before its numbers are those of the model; asked beforehand, for ``doctor``.

Each check is what a run checks by itself at its first need: it passes, says what it saw, or raises the very
error that the run would raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from sparsescope.errors import SparsescopeError
from sparsescope.models.structure.positions import Side

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Attributes:
        what: What must hold.
        ok: Whether it does.
        detail: What was seen; where it does not hold, the error that a run would end with.
    """

    what: str
    ok: bool
    detail: str


def check(subject: Subject) -> tuple[Check, ...]:
    """Try everything on a subject that a run relies on; the subject is as before afterwards."""
    found = []
    for what, tried in CHECKS.items():
        try:
            found.append(Check(what, True, tried(subject)))
        except SparsescopeError as error:
            found.append(Check(what, False, str(error)))
    return tuple(found)


def _seen_once(subject: Subject) -> str:
    sites = subject.sites("blocks.*.*")
    with subject.attach(sites, lambda *_: None):
        subject.forward(subject.sample_ids(2))
    return f"{len(sites)} sites, each seen once in a pass"


def _edits_act(subject: Subject) -> str:
    sites = subject.hidden_sites()
    if not sites:
        return "no hidden layer of an MLP that could be edited"
    with subject.edit(sites, lambda site, tensor, rows=None: tensor):
        subject.forward(subject.sample_ids(2))
    return f"edits of {len(sites)} hidden layers reach the blocks that follow"


def _padding(subject: Subject) -> str:
    changed = [side for side in (LEFT, RIGHT) if not subject.takes_padding(side)]
    if changed:
        sides = " and the ".join(changed)
        return f"padding on the {sides} would change outputs, so that rows of one length run together"
    return "rows that are padded, left or right, give what they give alone"


def _causality(subject: Subject) -> str:
    causal = "causal" in subject.capabilities
    return f"outputs {'do not depend' if causal else 'depend'} on later tokens, as measured"


def _weights(subject: Subject) -> str:
    sites = subject.parameter_sites("weight:blocks.*.*")
    for site in sites:
        subject.parameter(site)
    return f"{len(sites)} matrices are those that their modules apply"


def _notes(subject: Subject) -> str:
    said = [*(sentence for _, sentence in subject.notes), *subject.unstorable]
    return " ".join(said) or "every matrix of a block has a role, and the identity covers what computes"


LEFT, RIGHT = get_args(Side)
CHECKS: dict[str, Callable[[Subject], str]] = {
    "sites": _seen_once,
    "edits": _edits_act,
    "weights": _weights,
    "padding": _padding,
    "causality": _causality,
    "notes of a run": _notes,
}

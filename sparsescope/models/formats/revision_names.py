"""Names of training checkpoints: ``step1000``,
``stage1-step1000-tokens5B``, ``checkpoint-500``, ``step-4000``.

Forms that are known: Pythia and PolyPythia ``step143000``; OLMo ``step1000-tokens4B``; OLMo 2
``stage1-step1000-tokens5B`` and ``stage2-ingredient1-step1000-tokens3B``; OLMoE ``step5000-tokens20B``;
Stanford CRFM and the trainer of transformers ``checkpoint-500``; our own trainer ``step-4000``. A series has
names of one form: steps of different stages, or of different ways of counting, must not be put on one axis.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sparsescope.errors import SpecError

_FORM = re.compile(
    r"(?:stage(?P<stage>\d{1,3})-)?(?:ingredient(?P<ingredient>\d{1,3})-)?"
    r"step(?P<dash>-?)(?P<step>\d{1,12})(?:-tokens(?P<tokens>\d{1,9})B)?|checkpoint-(?P<checkpoint>\d{1,12})"
)
FORMS = "step1000, step1000-tokens4B, stage1-step1000-tokens5B, checkpoint-1000, step-1000"


@dataclass(frozen=True, slots=True)
class CheckpointName:
    """What the name of a checkpoint says.

    Attributes:
        revision: The name itself.
        step: Optimizer step.
        form: What names of one series have in common, for example ``stage1-step-tokens``.
        stage: Stage of training, or None.
        ingredient: Number of the run of a stage whose runs are averaged later, or None.
        tokens: Tokens read so far (given in billions in the name), or None.
    """

    revision: str
    step: int
    form: str
    stage: int | None = None
    ingredient: int | None = None
    tokens: int | None = None


def parse_name(revision: str) -> CheckpointName | None:
    """Read the name of a checkpoint; None where it is not of a known form."""
    match = _FORM.fullmatch(revision)
    if match is None:
        return None
    found = match.groupdict()
    if found["checkpoint"] is not None:
        return CheckpointName(revision, int(found["checkpoint"]), "checkpoint-N")
    stage, ingredient, tokens = (
        None if found[key] is None else int(found[key]) for key in ("stage", "ingredient", "tokens")
    )
    form = f"step{found['dash']}N" + ("" if tokens is None else "-tokensMB")
    form = ("" if ingredient is None else f"ingredient{ingredient}-") + form
    form = ("" if stage is None else f"stage{stage}-") + form
    return CheckpointName(
        revision, int(found["step"]), form, stage, ingredient, None if tokens is None else tokens * 10**9
    )


def ordered_names(revisions: Iterable[str], where: str) -> tuple[CheckpointName, ...]:
    """Read the names of one series and put them in the order of their steps.

    Args:
        revisions: The names, in any order.
        where: What they belong to, for messages.

    Raises:
        SpecError: There is none, one is of no known form, forms are mixed, or a step is there twice.
    """
    names = []
    for revision in revisions:
        name = parse_name(revision)
        if name is None:
            raise SpecError(
                "this is not the name of a checkpoint",
                where=where,
                allowed=FORMS,
                got=repr(revision)[:120],
                next_step="leave it out of the series",
            )
        names.append(name)
    if not names:
        raise SpecError(
            "there is no checkpoint",
            where=where,
            allowed=FORMS,
            next_step="check the place, or the names of its checkpoints",
        )
    forms = Counter(name.form for name in names)
    if len(forms) > 1:
        raise SpecError(
            "names of different forms are mixed: their steps do not belong on one axis",
            where=where,
            allowed="names of one form",
            got=", ".join(f"{count} x {form}" for form, count in forms.most_common(8)),
            next_step="give the names of one form, for example with revisions=[...] or form='...'",
        )
    ordered = sorted(names, key=lambda name: name.step)
    _refuse_twice(ordered, where)
    return tuple(ordered)


def _refuse_twice(names: Sequence[CheckpointName], where: str) -> None:
    for first, second in pairwise(names):
        if first.step == second.step:
            raise SpecError(
                f"step {first.step} is there twice",
                where=where,
                got=f"{first.revision}, {second.revision}",
                next_step="leave one of them out",
            )

"""What is asked of pruning, checked before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, cast

from sparsescope.errors import SpecError, SubjectError
from sparsescope.pruning.allocation import Allocation, Uniform, read_allocation
from sparsescope.pruning.criteria import Criterion, Reads, find_criterion
from sparsescope.pruning.patterns import NM, Blocks, Pattern, Rows, read_pattern

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject
    from sparsescope.pruning.scope import Scope

Propagation = Literal["sequential", "dense"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, checked; see ``pruner.prune`` for the fields."""

    criterion: Criterion
    sparsity: float
    pattern: Pattern | None
    allocation: Allocation
    propagation: Propagation
    seed: int = 0
    first_positions: bool = True

    @classmethod
    def of(
        cls,
        criterion: str | Criterion = "magnitude",
        sparsity: float | None = None,
        pattern: str | Pattern | None = None,
        allocation: str | Allocation = "uniform",
        propagation: str = "sequential",
        seed: int = 0,
        first_positions: bool = True,
    ) -> Request:
        """Check what is asked for, without a model.

        Raises:
            SpecError: An argument is not valid, or two contradict each other.
        """
        found, shares, where = find_criterion(criterion), read_allocation(allocation), read_pattern(pattern)
        if propagation not in ("sequential", "dense"):
            raise SpecError(
                "unknown propagation",
                where="propagation",
                allowed=("sequential", "dense"),
                got=repr(propagation),
            )
        if found.solve is not None and isinstance(where, Rows | Blocks):
            raise SpecError(
                f"{found.name} prunes single weights or N:M groups",
                where="pattern",
                allowed="none or KEEP:GROUP",
                got=where.text,
                next_step="use wanda for whole rows and blocks",
            )
        if type(seed) is bool or not isinstance(seed, Integral):
            raise SpecError("a seed is a whole number", where="seed", got=repr(seed)[:120])
        value = _share(sparsity)
        if isinstance(where, NM):
            if value is not None and not math.isclose(value, where.sparsity, abs_tol=1e-9):
                raise SpecError(
                    "the pattern says the sparsity, and another one was given",
                    where="sparsity",
                    allowed=f"{where.sparsity:g} for {where.text}, or none",
                    got=f"{value:g}",
                    next_step="leave sparsity out",
                )
            if not isinstance(shares, Uniform):
                raise SpecError(
                    "an N:M pattern leaves the same share in every matrix, so nothing can be allocated",
                    where="allocation",
                    allowed="uniform",
                    got=shares.text,
                    next_step="leave allocation out, or prune single weights",
                )
            value = where.sparsity
        if value is None:
            raise SpecError(
                "how many weights go is not said",
                where="sparsity",
                allowed="a share from 0 on and below 1, or an N:M pattern",
                next_step="for example sparsity=0.5 (--sparsity 0.5)",
            )
        return cls(
            found, value, where, shares, cast("Propagation", propagation), int(seed), bool(first_positions)
        )

    @property
    def reads(self) -> Reads:
        """What is read of the text, by criterion or allocation."""
        wanted: set[Reads] = {self.criterion.reads, self.allocation.reads}
        return "gram" if "gram" in wanted else "norms" if "norms" in wanted else ""

    @property
    def sequential(self) -> bool:
        """Whether the masks of a block depend on those before it."""
        return bool(self.criterion.reads) and self.propagation == "sequential"

    @property
    def facts(self) -> dict[str, Any]:
        """The request as JSON values."""
        read = {"propagation": self.propagation, "first_positions": self.first_positions}
        return {
            "criterion": self.criterion.name,
            "sparsity": self.sparsity,
            "pattern": None if self.pattern is None else self.pattern.text,
            "allocation": self.allocation.text,
            **(read if self.reads else {}),
            **({"seed": self.seed} if self.criterion.drawn else {}),
        }

    def check(self, scope: Scope) -> None:
        """Refuse matrices that the pattern does not fit.

        Raises:
            SpecError: With the first of them.
        """
        if self.pattern is not None:
            for site in scope.matrices:
                self.pattern.check(site.name, site.shape)


def _share(sparsity: float | None) -> float | None:
    """Check a sparsity."""
    if sparsity is None:
        return None
    number = isinstance(sparsity, Real) and not isinstance(sparsity, bool)
    if not number or not 0 <= float(sparsity) < 1:  # NaN too
        raise SpecError(
            "a sparsity is a share of weights that go",
            where="sparsity",
            allowed="from 0 on and below 1",
            got=repr(sparsity)[:120],
            next_step="50 % is 0.5",
        )
    return float(sparsity)


def calibration_text(
    request: Request, corpus: Corpus | TokenizedCorpus | None, subject: Subject
) -> TokenizedCorpus | None:
    """The text that is read, None where none is.

    Raises:
        SpecError: One is read and none was given, or it is no text.
        SubjectError: It has no tokens, or windows that are longer than the model was made for.
    """
    if not request.reads:
        return None
    if corpus is None:
        who = request.criterion.name if request.criterion.reads else f"allocation {request.allocation.name}"
        raise SpecError(
            f"{who} reads a calibration text, and none was given",
            where="corpus",
            allowed='a corpus, for example ss.corpus("python-docs", tokens=8192)',
            next_step="give corpus= (--corpus NAME), or use magnitude, which reads none",
        )
    from sparsescope.activations.capture import check_context, tokenized

    text = tokenized(corpus, subject)
    if not text.n_tokens:
        raise SubjectError("the calibration text is empty", where=f"corpus {text.name}")
    check_context(subject, text)
    return text

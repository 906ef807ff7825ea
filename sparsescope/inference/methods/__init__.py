"""The methods of sparse inference, by name; records need no torch.

``METHOD[+ALLOCATION]``: ``teal``, ``teal+greedy``, ``was+blocks``. A method says which masks there are and
what their scores are, an allocation which share of each is dropped, for one target of block-matrix bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sparsescope.core.named_code import Owner, named_function
from sparsescope.errors import SpecError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from sparsescope.inference.calibrator import Calibrator
    from sparsescope.inference.masks import Mask
    from sparsescope.inference.statistics import Inputs

    Counts = Mapping[str, NDArray[np.int64]]


class Recipe(Protocol):
    """One method on one subject, ready to be placed at any target."""

    @property
    def ceiling(self) -> float:
        """The largest share of the block-matrix bytes that it can skip."""

    def masks(self) -> Sequence[Mask]:
        """The masks whose scores are counted, without thresholds."""

    def place(self, found: Inputs, target: float) -> list[Mask]:
        """The masks for a target.

        Args:
            found: What the model, dense or sparse, reads: counts of the scores of ``masks``.
            target: Share of the block-matrix bytes.
        """


@dataclass(frozen=True, slots=True)
class Method:
    """A way to decide which inputs are kept.

    Attributes:
        name: ``teal``.
        title: As it is written in text.
        summary: One line.
        citation: Where it was published; empty for our own.
        make: ``"module:function"``, takes a calibrator and the name of an allocation, gives a ``Recipe``.
        allocations: The allocations that it can have beside the uniform one.
        needs: What the subject must have: ``gate`` for a gated MLP, ``hidden`` for an MLP.
    """

    name: str
    title: str
    summary: str
    citation: str
    make: str
    allocations: tuple[str, ...] = ()
    needs: str = ""


_HERE = "sparsescope.inference.methods"
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "teal",
            "TEAL",
            "inputs of every matrix by magnitude",
            "arXiv:2408.14690",
            f"{_HERE}.scores:teal",
            ("greedy",),
        ),
        Method(
            "wina",
            "WINA",
            "magnitude times the L2 norm of the column, for every matrix its own",
            "arXiv:2505.19427",
            f"{_HERE}.scores:wina",
            ("greedy", "rotated"),
        ),
        Method(
            "wina_released",
            "WINA as released",
            "column norms for k and gate alone, magnitude for the other matrices",
            "arXiv:2505.19427, released code",
            f"{_HERE}.scores:wina_released",
            ("rotated",),
        ),
        Method(
            "was",
            "WAS",
            "magnitude times the L1 norm of the column",
            "WAS (EMNLP 2025)",
            f"{_HERE}.scores:was",
            ("greedy", "blocks"),
        ),
        Method(
            "rsparse",
            "R-Sparse",
            "WINA's score, and a low-rank product of what is dropped; their shares from a small grid",
            "arXiv:2504.19449",
            f"{_HERE}.rsparse:rsparse",
        ),
        Method(
            "cats",
            "CATS",
            "hidden units by the activated gate: rows of the second branch, columns of the last matrix",
            "arXiv:2404.08763",
            f"{_HERE}.cats:cats",
            needs="gate",
        ),
        Method(
            "top_p",
            "Top-p",
            "the smallest set of inputs that holds a share of the L1 norm of the token",
            "arXiv:2509.00454",
            f"{_HERE}.top_p:top_p",
        ),
        Method(
            "cett",
            "CETT",
            "hidden units by the norm of what they add, equal error of the MLP in every layer",
            "arXiv:2411.02335",
            f"{_HERE}.cett:cett",
            needs="hidden",
        ),
        Method(
            "auto",
            "auto",
            "one score for matrices that share an input, weighted by Fisher information, one budget for the "
            "model",
            "",
            f"{_HERE}.auto:auto",
        ),
    )
}


def read_method(text: str) -> tuple[Method, str]:
    """Read ``METHOD[+ALLOCATION]``.

    Returns:
        The method and its allocation, ``"uniform"`` where none is named.

    Raises:
        SpecError: There is no such method, or it has no such allocation.
    """
    name, _, allocation = str(text).partition("+")
    if name not in METHODS:
        raise unknown_name("method", name, METHODS, next_step="for example teal, wina, auto")
    method = METHODS[name]
    if allocation and allocation not in (*method.allocations, "uniform"):
        raise SpecError(
            f"{method.title} has no such allocation",
            where="method",
            allowed=[name, *(f"{name}+{each}" for each in method.allocations)],
            got=repr(text),
        )
    return method, allocation or "uniform"


def named(text: str) -> str:
    """A method as it is written in text: ``TEAL, greedy``.

    Example:
        >>> named("was+blocks")
        'WAS, blocks'
    """
    method, allocation = read_method(text)
    return method.title if allocation == "uniform" else f"{method.title}, {allocation}"


def recipe_of(text: str, bench: Calibrator) -> Recipe:
    """Make a method ready for a subject; kept by the calibrator.

    Raises:
        SpecError: There is no such method.
        SubjectError: The subject is not fit for it.
    """
    method, allocation = read_method(text)
    key = (method.name, allocation)
    if key not in bench.kept.recipes:
        make: Any = named_function(
            method.make, "(calibrator, allocation)", Owner(f"method {method.name}", "", ""), "make"
        )
        bench.kept.recipes[key] = make(bench, allocation)
    return bench.kept.recipes[key]

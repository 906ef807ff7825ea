"""How much each matrix loses so that all together lose what was asked for.

An allocation takes facts of each matrix and gives the number of weights that go from each; the numbers add up
to the budget exactly. It says nothing about which weights of a matrix go: it composes with every criterion.
Shapes: L matrices with n_l weights each; N = sum n_l; S the sparsity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sparsescope.errors import SpecError, unknown_name
from sparsescope.pruning.patterns import pruned_count

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from sparsescope.pruning.criteria import Reads

    Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MatrixFacts:
    """What an allocation may know of a matrix.

    Attributes:
        name: Its name.
        layer: Its block.
        shape: (out, in).
        scores: Gives the scores of the criterion, float [out, in].
        outliers: Gives magnitude times the norm of the input, the scores of Wanda, which OWL counts.
    """

    name: str
    layer: int
    shape: tuple[int, int]
    scores: Callable[[], torch.Tensor]
    outliers: Callable[[], torch.Tensor]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Allocation(ABC):
    """Shares a budget of zeros out over matrices."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    reads: ClassVar[Reads] = ""
    scored: ClassVar[bool] = False

    def counts(self, matrices: Sequence[MatrixFacts], sparsity: float) -> Counts:
        """Return how many weights go from each matrix, int64 [L]; their sum is S N, rounded half down.

        Raises:
            SpecError: The allocation cannot reach this sparsity.
        """
        sizes = np.array([matrix.weights for matrix in matrices], np.int64)
        return exact(self.shares(matrices, sparsity), sizes, pruned_count(sparsity, int(sizes.sum())))

    @abstractmethod
    def shares(self, matrices: Sequence[MatrixFacts], sparsity: float) -> NDArray[np.float64]:
        """Return the sparsity of each matrix, [L], about as much as asked for on the whole."""

    @property
    def text(self) -> str:
        """As the command line takes it."""
        values = [f"{field.name}={getattr(self, field.name):g}" for field in fields(self)]
        return f"{self.name}@{','.join(values)}" if values else self.name


def exact(shares: NDArray[np.float64], sizes: Counts, budget: int) -> Counts:
    """Round shares so that the counts add up to the budget: largest remainders first, none above its size.

    What is clipped, or was too much, is shared out by the weights that are left.

    Raises:
        SpecError: A share is no number.
    """
    if not np.isfinite(shares).all():
        raise SpecError(
            "an allocation gave a share that is no number",
            where="allocation",
            got=f"{int((~np.isfinite(shares)).sum())} of {len(shares)} shares",
            next_step="check its parameters",
        )
    wanted = np.clip(shares, 0, 1) * sizes
    for _ in range(60):  # what clips leaves a rest, that goes where there is room
        missing = budget - wanted.sum()
        room = sizes - wanted if missing > 0 else wanted
        if abs(missing) < 0.5 or not room.sum():
            break
        wanted = np.clip(wanted + missing * room / room.sum(), 0, sizes)
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    order = np.argsort(-(wanted - counts), kind="stable")
    rest = budget - int(counts.sum())
    while rest > 0:
        for place in order:
            if rest and counts[place] < sizes[place]:
                counts[place] += 1
                rest -= 1
    while rest < 0:
        for place in order[::-1]:
            if rest and counts[place] > 0:
                counts[place] -= 1
                rest += 1
    return counts


@dataclass(frozen=True)
class Uniform(Allocation):
    """Every matrix loses the same share."""

    name = "uniform"
    summary = "every matrix loses the same share"
    source = "Wanda, arXiv:2306.11695; SparseGPT, arXiv:2301.00774"

    def shares(self, matrices: Sequence[MatrixFacts], sparsity: float) -> NDArray[np.float64]:
        """Return the sparsity of each matrix, see ``Allocation.shares``."""
        return np.full(len(matrices), sparsity)

    def counts(self, matrices: Sequence[MatrixFacts], sparsity: float) -> Counts:
        """Each matrix rounds for itself, so that equal matrices lose equally many."""
        return np.array([pruned_count(sparsity, matrix.weights) for matrix in matrices], np.int64)


@dataclass(frozen=True)
class Global(Allocation):
    """Weights of all matrices compete: one threshold over the scores of the criterion."""

    name = "global"
    summary = "one threshold over the scores of all matrices"
    source = "essential sparsity, arXiv:2306.03805"
    scored = True

    def shares(self, matrices: Sequence[MatrixFacts], sparsity: float) -> NDArray[np.float64]:
        """Return the sparsity of each matrix, see ``Allocation.shares``."""
        counts = self.counts(matrices, sparsity)
        return counts / np.array([matrix.weights for matrix in matrices])

    def counts(self, matrices: Sequence[MatrixFacts], sparsity: float) -> Counts:
        """Exactly the smallest scores; of equal ones the first, matrix by matrix."""
        return global_counts([matrix.scores for matrix in matrices], sparsity)


def global_counts(scores: Sequence[Callable[[], torch.Tensor]], sparsity: float) -> Counts:
    """How many of the smallest scores of all matrices lie in each.

    Two passes of a radix selection over the bits of the float32 scores: nothing is concatenated.

    Args:
        scores: Give [out, in]; called twice.
        sparsity: Share of all that go.
    """
    high = np.stack([_bins(values(), None) for values in scores])
    budget = pruned_count(sparsity, int(high.sum()))
    if budget == 0:
        return np.zeros(len(scores), np.int64)
    cumulative = high.sum(0).cumsum()
    place = int(np.searchsorted(cumulative, budget))
    below = high[:, :place].sum(1)
    rest = budget - int(below.sum())
    low = np.stack([_bins(values(), place) for values in scores])
    cumulative = low.sum(0).cumsum()
    last = int(np.searchsorted(cumulative, rest))
    counts = below + low[:, :last].sum(1)
    rest -= int(low[:, :last].sum())
    for number, tied in enumerate(low[:, last]):  # equal scores: the first go
        taken = min(rest, int(tied))
        counts[number] += taken
        rest -= taken
    return counts.astype(np.int64)


def _bins(scores: torch.Tensor, high: int | None) -> Counts:
    """Count the upper 16 bits of the scores, or the lower ones of those whose upper bits are ``high``."""
    import torch

    bits = (scores.float() + 0.0).view(torch.int32).reshape(-1)  # -0.0 becomes 0.0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # in the order of the numbers, negative ones too
    upper = (bits >> 16) + (1 << 15)
    if high is not None:
        bits = bits[upper == high]
    return torch.bincount(upper if high is None else bits & 0xFFFF, minlength=1 << 16).cpu().numpy()


@dataclass(frozen=True)
class ERK(Allocation):
    """Erdos-Renyi: density in proportion to (out + in) / (out in); what would exceed 1 stays dense."""

    name = "erk"
    summary = "density grows with (out + in) / (out in): wide matrices lose more"
    source = "RigL, arXiv:1911.11134; Mocanu et al. 2018"

    def shares(self, matrices: Sequence[MatrixFacts], sparsity: float) -> NDArray[np.float64]:
        """Return the sparsity of each matrix, see ``Allocation.shares``."""
        sizes = np.array([matrix.weights for matrix in matrices], np.float64)
        raw = np.array([sum(matrix.shape) for matrix in matrices]) / sizes
        return 1 - erk_densities(raw, sizes, 1 - sparsity)


def erk_densities(
    raw: NDArray[np.float64], sizes: NDArray[np.float64], density: float
) -> NDArray[np.float64]:
    """Densities e raw, with e such that all together have the wanted density; none above 1, [L].

    Args:
        raw: Sum of the dimensions over their product, [L].
        sizes: Weights, [L].
        density: Wanted share of weights that stay.
    """
    dense = np.zeros(len(raw), bool)
    while True:
        free = ~dense
        if not free.any():
            return np.ones(len(raw))
        scale = (density * sizes.sum() - sizes[dense].sum()) / (raw * sizes)[free].sum()
        over = free & (scale * raw > 1)
        if not over.any():
            return np.where(dense, 1.0, np.clip(scale * raw, 0, 1))
        dense |= over


@dataclass(frozen=True)
class OWL(Allocation):
    """Blocks with many outlying scores lose less.

    Attributes:
        outlier: A score is an outlier above so many means of its block.
        spread: Densities differ from the mean by at most about this.
    """

    outlier: float = 5.0
    spread: float = 0.08

    name = "owl"
    summary = "blocks with more outlying scores |W| ||X|| lose less"
    source = "OWL, arXiv:2310.05175"
    reads = "norms"

    def shares(self, matrices: Sequence[MatrixFacts], sparsity: float) -> NDArray[np.float64]:
        """Return the sparsity of each matrix, see ``Allocation.shares``."""
        layers = np.array([matrix.layer for matrix in matrices])
        blocks = np.unique(layers)
        share = np.array([self._outliers([m for m in matrices if m.layer == block]) for block in blocks])
        width = share.max() - share.min()
        scaled = (share - share.min()) / width * 2 * self.spread if width > 0 else np.zeros(len(blocks))
        kept = scaled - scaled.mean() + (1 - sparsity)
        return 1 - kept[np.searchsorted(blocks, layers)]

    def _outliers(self, matrices: Sequence[MatrixFacts]) -> float:
        """Share of the scores of a block that exceed ``outlier`` times their mean."""
        sums = [float(matrix.outliers().sum(dtype=_double())) for matrix in matrices]
        size = sum(matrix.weights for matrix in matrices)
        limit = self.outlier * sum(sums) / size
        return sum(int((matrix.outliers() > limit).sum()) for matrix in matrices) / size


def _double() -> torch.dtype:
    import torch

    return torch.float64


@dataclass(frozen=True)
class ATP(Allocation):
    """Sparsity rises from block to block in equal steps: errors of early blocks add up.

    Attributes:
        spread: Sparsity of the last block minus that of the first; less where that would leave [0, 1].
    """

    spread: float = 0.2

    name = "atp"
    summary = "sparsity rises in equal steps from the first block to the last"
    source = "ATP, arXiv:2502.14770"

    def shares(self, matrices: Sequence[MatrixFacts], sparsity: float) -> NDArray[np.float64]:
        """Return the sparsity of each matrix, see ``Allocation.shares``."""
        layers = np.array([matrix.layer for matrix in matrices], np.float64)
        width = layers.max() - layers.min()
        place = (layers - layers.min()) / width - 0.5 if width else np.zeros(len(layers))
        spread = min(self.spread, 2 * sparsity, 2 * (1 - sparsity))
        return sparsity + spread * place


def allocations() -> dict[str, type[Allocation]]:
    """Every allocation by name."""
    return {kind.name: kind for kind in (Uniform, Global, ERK, OWL, ATP)}


def read_allocation(text: str | Allocation) -> Allocation:
    """Return the allocation that a text names: ``"owl"``, or with parameters ``"owl@outlier=7"``.

    Raises:
        SpecError: There is none, or a parameter is unknown or not a number.

    Example:
        >>> read_allocation("atp@spread=0.1")
        ATP(spread=0.1)
    """
    if isinstance(text, Allocation):
        return text
    name, _, rest = str(text).partition("@")
    known = allocations()
    if name not in known:
        raise unknown_name(
            "allocation", name, known, next_step="see: sparsescope prune --help", error=SpecError
        )
    kind = known[name]
    names = [field.name for field in fields(kind)]
    values = {}
    for part in rest.split(",") if rest else ():
        key, _, value = part.partition("=")
        try:
            values[key] = float(value)
            if key not in names or not np.isfinite(values[key]) or values[key] < 0:
                raise ValueError
        except ValueError:
            raise SpecError(
                "a parameter of an allocation cannot be read",
                where=f"allocation {name}",
                allowed=", ".join(f"{key}=NUMBER" for key in names) or "no parameters",
                got=repr(part)[:120],
            ) from None
    return kind(**values)

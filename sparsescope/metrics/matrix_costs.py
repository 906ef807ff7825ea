"""Cost of one decoded token when single matrices of the blocks are read only in part.

Where ``bounds`` scales an MLP by its share of active units, here every matrix of the blocks has a density of
its own: a matrix W [N, K] whose input keeps the share rho of its entries reads rho of its columns, one whose
output keeps the share sigma reads sigma of its rows: 2 N K rho sigma FLOPs, N K rho sigma weights. What a
method adds (low-rank factors U [N, r] and V [r, K], d x d rotations of the residual stream, thresholds and
biases by channel) is an ``Adapter`` and is counted like any other weight. Everything else is dense, as in
``bounds``: output head, norms, biases, routers, matrices without a role, and attention to N positions.

The word sparsity names three different numbers, which are always given together:
  block  share of the bytes of the block matrices that is not read, less the bytes of all adapters;
  mlp    the same of the MLP matrices, less the adapters of the MLPs;
  model  the same of all weights that a decoded token reads: output head, norms and routers included.
FLOPs likewise; there, model includes the scores of attention. The keys and values that are read are no
weights: they are in the roofline, and in none of the shares.

All of it bounds what is saved from above: irregular access, and choosing what is kept, cost nothing here,
apart from adapters. The row of the embedding (d weights) is left out, as in ``bounds``. A token reads the
matrices of its routed experts only; each expert is taken to be reached equally often.
Sources: WINA (arXiv:2505.19427) for the published count, which leaves adapters out; Williams et al. 2009,
"Roofline", for the time.
Shapes: W [N, K] = (out, in); d = d_model; r = rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from sparsescope.errors import SpecError, unknown_name
from sparsescope.metrics.bounds import (
    SCHEMES,
    Bandwidth,
    Cost,
    ModelDimensions,
    Roofline,
    Scheme,
    dense_cost,
    roofline,
)

Part = Literal["mlp", "attention", "residual"]
Quantity = Literal["bytes", "flops"]
PARTS: tuple[Part, ...] = get_args(Part)
# Keys of the costs: what belongs to the blocks' matrices, and what is read beside them.
BLOCK_MATRICES = ("mlp matrices", "attention matrices", "other matrices")
REST = ("router", "output head", "norms and biases", "attention scores")
_HERE = "metrics.matrix_costs"


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """One matrix of a block.

    Attributes:
        name: ``weight:blocks.3.mlp.out.weight``, as ``models.structure.parameters`` names it.
        role: ``mlp.out.weight``: without block and expert number.
        layer: Block number, from 0.
        shape: (out, in).
        bytes_per_weight: Bytes of one stored weight.
        expert: Number of the expert, None for other matrices.
        read: Share of the tokens that read the matrix at all: routed / experts for an expert, else 1.
    """

    name: str
    role: str
    layer: int
    shape: tuple[int, int]
    bytes_per_weight: float
    expert: int | None = None
    read: float = 1.0

    @property
    def part(self) -> Part:
        """The part of the block that the matrix belongs to."""
        return "mlp" if self.role.startswith("mlp.") else "attention"

    @property
    def weights(self) -> int:
        """Entries."""
        return self.shape[0] * self.shape[1]

    @property
    def stored_bytes(self) -> float:
        """Bytes of the whole matrix, however often it is read."""
        return self.weights * self.bytes_per_weight

    @property
    def group(self) -> str:
        """Name of this matrix in all experts at once; its own name where it is of no expert."""
        return self.name.replace(f".experts.{self.expert}.", ".experts.")


@dataclass(frozen=True, slots=True)
class Adapter:
    """Dense weights that a method adds, and that every token reads.

    Attributes:
        name: Says what it is and where, for example ``"low rank of weight:blocks.3.mlp.out.weight"``.
        part: The part of the block whose savings it reduces; ``"residual"`` counts against block and model.
        matrices: Shapes (out, in).
        vectors: Numbers of entries; an entry costs one FLOP (a comparison, an addition).
        bytes_per_weight: Bytes of one stored entry.
        read: Share of the tokens that read it.
    """

    name: str
    part: Part
    matrices: tuple[tuple[int, int], ...] = ()
    vectors: tuple[int, ...] = ()
    bytes_per_weight: float = 2.0
    read: float = 1.0

    def __post_init__(self) -> None:
        _check(self.part in PARTS, "the part of an adapter", self.name, PARTS, self.part)
        _check(0 <= self.read <= 1, "the share of tokens", self.name, "0 to 1", self.read)
        _check(self.bytes_per_weight > 0, "bytes_per_weight", self.name, "more than 0", self.bytes_per_weight)
        sizes = [n for shape in self.matrices for n in shape] + list(self.vectors)
        _check(all(n > 0 for n in sizes), "a size of an adapter", self.name, "1 or more", sizes)

    @property
    def bytes(self) -> float:
        """Bytes that a token reads of it."""
        entries = sum(n * k for n, k in self.matrices) + sum(self.vectors)
        return entries * self.bytes_per_weight * self.read

    @property
    def flops(self) -> float:
        """FLOPs of one token."""
        return (2 * sum(n * k for n, k in self.matrices) + sum(self.vectors)) * self.read


@dataclass(frozen=True, slots=True)
class MatrixRead:
    """What one token reads of one matrix, and what it would read of it in the dense model.

    Attributes:
        matrix: The matrix.
        density: Share of its entries that is read: columns times rows.
    """

    matrix: MatrixShape
    density: float

    @property
    def dense_bytes(self) -> float:
        """Bytes that a token reads in the dense model."""
        return self.matrix.stored_bytes * self.matrix.read

    @property
    def dense_flops(self) -> float:
        """FLOPs of a token in the dense model."""
        return 2 * self.matrix.weights * self.matrix.read

    @property
    def bytes(self) -> float:
        """Bytes that a token reads."""
        return self.dense_bytes * self.density

    @property
    def flops(self) -> float:
        """FLOPs of a token."""
        return self.dense_flops * self.density


@dataclass(frozen=True, slots=True)
class Shares:
    """Three sparsities side by side, as defined at the head of this file; less than 0 where the adapters
    cost more than is saved.
    """

    block: float
    mlp: float
    model: float


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """Bytes and FLOPs of everything that one decoded token reads.

    Attributes:
        dense: Cost of the dense model; keys ``BLOCK_MATRICES`` and ``REST``.
        read: Cost of the sparse model without its adapters; the same keys.
        matrices: What is read of each matrix that has a role.
        adapters: What the method adds.
        attended: Positions that the token attends to.
    """

    dense: Cost
    read: Cost
    matrices: tuple[MatrixRead, ...]
    adapters: tuple[Adapter, ...]
    attended: float

    @property
    def bytes(self) -> Shares:
        """The three sparsities of weight bytes, net of adapters."""
        return self.shares("bytes")

    @property
    def flops(self) -> Shares:
        """The three sparsities of FLOPs, net of adapters."""
        return self.shares("flops")

    @property
    def total_bytes(self) -> float:
        """Weight bytes that a token reads, adapters included."""
        return self.read.total_bytes + self.added("bytes")

    @property
    def total_flops(self) -> float:
        """FLOPs of a token, adapters included."""
        return self.read.total_flops + self.added("flops")

    @property
    def text(self) -> str:
        """One sentence with what the numbers rest on."""
        return (
            f"{self.attended:g} attended positions; {len(self.adapters)} adapters counted; output head, "
            "norms and routers dense; choosing what is kept and irregular access cost nothing"
        )

    def roofline(self, bandwidth: str | Bandwidth) -> Roofline:
        """The shortest time of a token: bytes of weights, adapters, keys and values over the bandwidth.

        Args:
            bandwidth: One of ``bounds.BANDWIDTHS``, or another one with its name.

        Raises:
            SpecError: The name is unknown.
        """
        read = self.total_bytes + self.read.cache_bytes
        return roofline(read, self.dense.total_bytes + self.dense.cache_bytes, bandwidth)

    def added(self, quantity: Quantity, parts: Sequence[Part] = PARTS) -> float:
        """Bytes or FLOPs of the adapters of some parts."""
        chosen = [adapter for adapter in self.adapters if adapter.part in parts]
        return sum(adapter.bytes if quantity == "bytes" else adapter.flops for adapter in chosen)

    def shares(self, quantity: Quantity, net: bool = True) -> Shares:
        """The three sparsities.

        Args:
            quantity: ``"bytes"`` or ``"flops"``.
            net: Whether adapters count as read. Without them it is what papers that forget them claim.
        """
        dense, read = (
            (cost.weight_bytes if quantity == "bytes" else cost.flops) for cost in (self.dense, self.read)
        )

        def share(keys: Iterable[str], parts: Sequence[Part]) -> float:
            keys = tuple(keys)
            whole = sum(dense[key] for key in keys)
            left = sum(read[key] for key in keys) + (self.added(quantity, parts) if net else 0.0)
            return 1 - left / whole if whole else 0.0

        return Shares(share(BLOCK_MATRICES, PARTS), share(BLOCK_MATRICES[:1], ("mlp",)), share(dense, PARTS))

    def published_cut(self, net: bool = False) -> float:
        """The cut of "GFLOPs" as published: multiply-adds saved in the block matrices, over those of the
        dense block matrices and the output head. Attention and norms are in neither.

        Args:
            net: Whether adapters are taken off; the publications leave them out.
        """
        whole = sum(self.dense.flops[key] for key in BLOCK_MATRICES)
        left = sum(self.read.flops[key] for key in BLOCK_MATRICES) + (self.added("flops") if net else 0.0)
        counted = whole + self.dense.flops["output head"]
        return (whole - left) / counted if counted else 0.0


def account_token(
    model: ModelDimensions,
    matrices: Sequence[MatrixShape],
    density: float | Mapping[str, float] = 1.0,
    *,
    row_density: float | Mapping[str, float] = 1.0,
    adapters: Sequence[Adapter] = (),
    attended: float = 0.0,
    bytes_per_weight: float | None = None,
) -> TokenAccount:
    """Count what one decoded token reads and computes.

    Args:
        model: Shapes of the whole model, for everything that is not in ``matrices``.
        matrices: The matrices of its blocks that have a role, without routers.
        density: Share of the input that is kept, in [0, 1]: for all matrices, or by name. A name without the
            number of the expert is for all experts of the layer. Matrices that are not named are dense.
        row_density: Share of the output that is computed, likewise.
        adapters: What the method adds.
        attended: Positions that the token attends to; 0 counts weights only.
        bytes_per_weight: Bytes of a weight outside ``matrices``, and of a key or value; those of the
            precision of computing when None.

    Raises:
        SpecError: A density is not in [0, 1], or a name is unknown.

    Example:
        >>> from sparsescope.metrics.bounds import LayerDimensions
        >>> layer = LayerDimensions(0, 4, d_mlp=16, gated=False, attention_weights=0, d_attention=0, d_kv=0)
        >>> model = ModelDimensions((layer,), 4, vocabulary=32, tied=True, parameters=256,
        ...                         bytes_per_weight=2.0, final_norm_weights=0, causal=True)
        >>> mlp = [MatrixShape("in", "mlp.in.weight", 0, (16, 4), 2.0),
        ...        MatrixShape("out", "mlp.out.weight", 0, (4, 16), 2.0)]
        >>> account_token(model, mlp, {"out": 0.5}).bytes  # 32 weights of 128; the head has another 128
        Shares(block=0.25, mlp=0.25, model=0.125)
        >>> factors = Adapter("rank 1", "mlp", matrices=((4, 1), (1, 16)))  # 20 weights more
        >>> account_token(model, mlp, {"out": 0.5}, adapters=[factors]).bytes.mlp
        0.09375
    """
    _check(attended >= 0, "attended", "account_token", "0 or more", attended)
    columns, rows = _by_matrix(matrices, density, "density"), _by_matrix(matrices, row_density, "row_density")
    reads = tuple(MatrixRead(m, c * r) for m, c, r in zip(matrices, columns, rows, strict=True))
    rest = _rest(model, matrices, attended, bytes_per_weight)
    dense = _with_matrices(rest, [(r.matrix.part, r.dense_flops, r.dense_bytes) for r in reads])
    read = _with_matrices(rest, [(r.matrix.part, r.flops, r.bytes) for r in reads])
    return TokenAccount(dense, read, reads, tuple(adapters), attended)


def skippable(matrices: Sequence[MatrixShape], scheme: Scheme) -> tuple[str, ...]:
    """Names of the matrices that could be skipped as a whole, if no unit were active.

    The schemes are those of ``bounds``: ``down only`` for methods that look at the hidden layer (CETT);
    ``first matrix computed`` for those that look at the gate (CATS), or in an MLP without one at the first
    matrix, and must compute it; ``ideal predictor`` for those that know the units beforehand (Deja Vu).

    Args:
        matrices: As in ``account_token``.
        scheme: When the active units are known.

    Raises:
        SpecError: The scheme is unknown.

    Example:
        >>> mlp = [MatrixShape(key, f"mlp.{key}.weight", 0, (8, 8), 2.0) for key in ("gate", "in", "out")]
        >>> skippable(mlp, "first matrix computed"), skippable(mlp, "down only")
        (('in', 'out'), ('out',))
        >>> skippable(mlp[1:], "first matrix computed")  # without a gate, the first matrix decides
        ('out',)
    """
    _check(scheme in SCHEMES, "scheme", "skippable", SCHEMES, scheme)
    found = [(m, *m.role.removesuffix(".weight").rpartition(".")[::2]) for m in matrices if m.part == "mlp"]
    gated = {(m.layer, home) for m, home, key in found if key == "gate"}
    return tuple(
        m.name
        for m, home, key in found
        if scheme == "ideal predictor"
        or key == "out"
        or (key == "in" and scheme == "first matrix computed" and (m.layer, home) in gated)
    )


def ceiling(model: ModelDimensions, matrices: Sequence[MatrixShape], skipped: Iterable[str]) -> Shares:
    """The largest shares of bytes that a method can leave out which may skip all of some matrices.

    Args:
        model: As in ``account_token``.
        matrices: As in ``account_token``.
        skipped: Names of the matrices that it may skip, for example those of ``skippable``.

    Example:
        >>> from sparsescope.metrics.bounds import LayerDimensions
        >>> layer = LayerDimensions(0, 4, d_mlp=8, gated=True, attention_weights=0, d_attention=0, d_kv=0)
        >>> model = ModelDimensions((layer,), 4, vocabulary=24, tied=True, parameters=192,
        ...                         bytes_per_weight=2.0, final_norm_weights=0, causal=True)
        >>> mlp = [MatrixShape(key, f"mlp.{key}.weight", 0, (8, 4), 2.0) for key in ("gate", "in", "out")]
        >>> most = ceiling(model, mlp, skippable(mlp, "first matrix computed"))
        >>> round(most.block, 3), round(most.model, 3)  # two of three matrices; the head has as many weights
        (0.667, 0.333)
    """
    return account_token(model, matrices, dict.fromkeys(skipped, 0.0)).bytes


def as_row(account: TokenAccount) -> dict[str, float | str]:
    """Return an account as one table row: the three sparsities of bytes and of FLOPs, totals, assumptions.

    Example:
        >>> each = dict.fromkeys((*BLOCK_MATRICES, *REST), 2.0)
        >>> cost = Cost(each, each, cache_bytes=0.0)
        >>> row = as_row(TokenAccount(cost, cost, (), (), 0.0))
        >>> row["block_bytes_sparsity"], row["total_bytes"]
        (0.0, 14.0)
    """
    row: dict[str, float | str] = {}
    for quantity, shares in (("bytes", account.bytes), ("flops", account.flops)):
        row |= {f"{name}_{quantity}_sparsity": getattr(shares, name) for name in ("block", "mlp", "model")}
    return row | {
        "dense_bytes": account.dense.total_bytes,
        "total_bytes": account.total_bytes,
        "adapter_bytes": account.added("bytes"),
        "cache_bytes": account.read.cache_bytes,
        "dense_flops": account.dense.total_flops,
        "total_flops": account.total_flops,
        "adapter_flops": account.added("flops"),
        "assumptions": account.text,
    }


def _rest(
    model: ModelDimensions, matrices: Sequence[MatrixShape], attended: float, bytes_per_weight: float | None
) -> Cost:
    """Everything but the matrices that have a role: the dense cost of the model without those."""
    named: dict[int, int] = {}
    for matrix in matrices:
        if matrix.part == "attention":
            named[matrix.layer] = named.get(matrix.layer, 0) + matrix.weights
    hollow = tuple(
        # Packed weights have fewer entries than their matrices, hence not less than 0.
        replace(
            layer,
            d_mlp=0,
            d_shared=0,
            attention_weights=max(layer.attention_weights - named.get(layer.layer, 0), 0),
        )
        for layer in model.layers
    )
    cost = dense_cost(replace(model, layers=hollow), attended=attended, bytes_per_weight=bytes_per_weight)

    def by_key(counts: Mapping[str, float]) -> dict[str, float]:
        own = {"other matrices": "attention projections", "router": "mlp"}
        return {key: counts[own.get(key, key)] for key in ("other matrices", *REST)}

    return Cost(by_key(cost.flops), by_key(cost.weight_bytes), cost.cache_bytes)


def _with_matrices(rest: Cost, matrices: Iterable[tuple[Part, float, float]]) -> Cost:
    """Add FLOPs and bytes of matrices, given with their part."""
    flops, weights = (dict.fromkeys(BLOCK_MATRICES, 0.0) | dict(of) for of in (rest.flops, rest.weight_bytes))
    for part, of_flops, of_bytes in matrices:
        flops[f"{part} matrices"] += of_flops
        weights[f"{part} matrices"] += of_bytes
    return Cost(flops, weights, rest.cache_bytes)


def _by_matrix(matrices: Sequence[MatrixShape], given: float | Mapping[str, float], what: str) -> list[float]:
    """Density of each matrix; a name of one expert goes before the name of all."""
    if not isinstance(given, Mapping):
        given = {matrix.group: given for matrix in matrices}
    known = {name for matrix in matrices for name in (matrix.name, matrix.group)}
    for name, value in given.items():
        if name not in known:
            step = "the names are those of the matrices that are accounted: [m.name for m in matrices]"
            raise unknown_name(f"matrix in {what}", name, known, next_step=step)
        _check(0 <= value <= 1, f"a {what}", name, "0 to 1", value)
    return [given.get(matrix.name, given.get(matrix.group, 1.0)) for matrix in matrices]


def _check(fine: bool, what: str, where: str, allowed: str | tuple[str, ...], got: object) -> None:
    if not fine:
        raise SpecError(
            f"{what} is out of range",
            where=f"{_HERE}: {where}",
            allowed=allowed,
            got=got,
            next_step="a density is the share that is kept: 0.5 for a sparsity of 50 %"
            if "density" in what
            else "mend this value",
        )

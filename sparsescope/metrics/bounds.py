"""Cost of one decoded token, and the most that activation sparsity could take off it.

FLOPs count 2 for a multiply-add. Bytes are weight bytes that are read once for the tokens that are decoded
together; they bound decoding that waits for memory. Every figure is an upper bound on what is saved, never a
speed: it leaves out the cost of irregular access, of finding the active units (unless a predictor is named),
and everything but arithmetic and weights. What is assumed is a field of ``Assumptions`` and is printed
beside the number.
Models whose single matrices are read in part, each with a density of its own, and what a method adds to
them (adapters): ``matrix_costs``.
Sources: Li et al. 2023 (arXiv:2210.06313) for the costs of a layer; Amdahl (1967) for the whole; Williams,
Waterman and Patterson 2009 ("Roofline") for the time.
Symbols: d = d_model, f = hidden width, rho = share of hidden units that are active, m = matrices of
the MLP (3 if gated).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sparsescope.errors import SpecError, unknown_name

Scheme = Literal["down only", "first matrix computed", "ideal predictor"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
PARTS = ("mlp", "attention projections", "attention scores", "output head", "norms and biases")
SCHEME_TEXT = {
    "down only": "the hidden layer is computed, then the second matrix is skipped for inactive units",
    "first matrix computed": "the matrix before the activation (the gate, if gated) is computed, then the "
    "others are skipped for inactive units",
    "ideal predictor": "the active units are known beforehand",
}
# A square, an addition, a scale and a weight for each entry.
NORM_FLOPS = 4


def _check(fine: bool, name: str, allowed: str | tuple[str, ...], got: object) -> None:
    if not fine:
        raise SpecError(f"{name} is out of range", where="metrics.bounds", allowed=allowed, got=got)


@dataclass(frozen=True, slots=True)
class LayerDimensions:
    """Shapes of one transformer block.

    Attributes:
        layer: Block number, from 0.
        d_model: Width of the residual stream.
        d_mlp: Hidden width of the MLP, or of one routed expert; 0 where there is none.
        gated: Whether the MLP multiplies two branches (three matrices).
        attention_weights: Entries of the attention matrices.
        d_attention: Heads times head size: width of the queries.
        d_kv: Key-value heads times head size.
        experts: Routed experts in the layer; 0 for a dense MLP.
        routed: Experts that one token is sent to.
        d_shared: Hidden width of the expert that every token uses; 0 without one.
        router_weights: Entries of the router.
        norm_weights: Entries of norms.
        bias_weights: Entries of biases and of other vectors.
        other_weights: Entries of matrices outside of attention and MLP: mixers of state-space layers, gates
            of shared experts. They count with the attention projections, as dense.
    """

    layer: int
    d_model: int
    d_mlp: int
    gated: bool
    attention_weights: int
    d_attention: int
    d_kv: int
    experts: int = 0
    routed: int = 0
    d_shared: int = 0
    router_weights: int = 0
    norm_weights: int = 0
    bias_weights: int = 0
    other_weights: int = 0

    @property
    def matrices(self) -> int:
        """Matrices of one MLP."""
        return 3 if self.gated else 2

    @property
    def active_width(self) -> int:
        """Hidden units that run for one token: all of a dense MLP, those of the routed and the
        shared experts else.
        """
        return (self.routed if self.experts else 1) * self.d_mlp + self.d_shared


@dataclass(frozen=True, slots=True)
class ModelDimensions:
    """Shapes of a whole model; tied weights are counted once in ``parameters``.

    Attributes:
        layers: The blocks, in order.
        d_model: Width of the residual stream.
        vocabulary: Rows of the output head; 0 without one.
        tied: Whether output head and embedding are one matrix.
        parameters: Entries of all weights, each once.
        bytes_per_weight: Bytes of one weight in the precision of computing.
        final_norm_weights: Entries of norms outside the blocks.
        causal: Whether a token attends to earlier ones only.
    """

    layers: tuple[LayerDimensions, ...]
    d_model: int
    vocabulary: int
    tied: bool
    parameters: int
    bytes_per_weight: float
    final_norm_weights: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a bound takes for granted; ``text`` is printed beside every number.

    Attributes:
        scheme: When the active units are known, one of ``SCHEMES``.
        attended: Mean number of positions that a token attends to.
        bytes_per_weight: Bytes of one stored weight.
        predictor_rank: Rank r of a predictor of the active units that costs 2 r (d + f) FLOPs
            a layer; 0 is free.
        input_density: Share of the MLP input that is not zero: the columns of the first
            matrices that are read.
        together: Tokens that are decoded for one reading of the weights (a batch, or a chunk that is verified
            at once). The densities given with it must be those of the union over these tokens, for bytes.
    """

    scheme: Scheme
    attended: float
    bytes_per_weight: float
    predictor_rank: int = 0
    input_density: float = 1.0
    together: int = 1

    def __post_init__(self) -> None:
        _check(self.scheme in SCHEMES, "scheme", SCHEMES, self.scheme)
        _check(self.attended >= 0, "attended", "0 or more", self.attended)
        _check(self.bytes_per_weight > 0, "bytes_per_weight", "more than 0", self.bytes_per_weight)
        _check(self.predictor_rank >= 0, "predictor_rank", "0 or more", self.predictor_rank)
        _check(0 <= self.input_density <= 1, "input_density", "0 to 1", self.input_density)
        _check(self.together >= 1, "together", "1 or more", self.together)

    @property
    def text(self) -> str:
        """One sentence with every assumption."""
        parts = [
            SCHEME_TEXT[self.scheme],
            f"{self.attended:g} attended positions",
            f"{self.bytes_per_weight:g} bytes a weight",
        ]
        parts.append(
            f"a predictor of rank {self.predictor_rank}"
            if self.predictor_rank
            else "finding them costs nothing"
        )
        if self.input_density < 1:
            parts.append(f"{self.input_density:.4g} of the MLP input is not zero")
        parts.append(f"weights are read once for {self.together} token{'s' if self.together > 1 else ''}")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one decoded token by part of the model, keys as in ``PARTS``.

    Attributes:
        flops: FLOPs.
        weight_bytes: Bytes of weights that are read, for one token or for the tokens decoded together.
        cache_bytes: Bytes of keys and values read; not weights, and in none of the shares.
    """

    flops: Mapping[str, float]
    weight_bytes: Mapping[str, float]
    cache_bytes: float

    @property
    def total_flops(self) -> float:
        """FLOPs of all parts."""
        return sum(self.flops.values())

    @property
    def total_bytes(self) -> float:
        """Weight bytes of all parts."""
        return sum(self.weight_bytes.values())


@dataclass(frozen=True, slots=True)
class UpperBound:
    """An upper bound on what sparsity saves, with everything that it rests on.

    Attributes:
        quantity: ``"FLOPs"`` or ``"weight bytes"``.
        dense: Cost of one token of the dense model.
        saved: Upper bound on the part of it that is saved (less than 0 where a predictor costs
            more than it saves).
        mlp_share: Share of the MLPs in ``dense``.
        saved_mlp: Share of the cost of the MLPs that is saved.
        saved_model: Share of the cost of the model that is saved.
        amdahl: dense / (dense - saved): by how much the count itself shrinks, at most.
        assumptions: What it rests on.
    """

    quantity: Literal["FLOPs", "weight bytes"]
    dense: float
    saved: float
    mlp_share: float
    saved_mlp: float
    saved_model: float
    amdahl: float
    assumptions: Assumptions


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A memory bandwidth in bytes/s, and whose it is."""

    name: str
    bytes_per_second: float

    def __post_init__(self) -> None:
        _check(self.bytes_per_second > 0, "bandwidth", "more than 0 bytes/s", self.bytes_per_second)


# Peak numbers of the makers.
BANDWIDTHS: Mapping[str, Bandwidth] = {
    name: Bandwidth(f"{name} (peak)", value)
    for name, value in (
        ("H200", 4.8e12),
        ("H100", 3.35e12),
        ("A100-80", 2.04e12),
        ("A6000", 0.768e12),
        ("L4", 3e11),
    )
}


@dataclass(frozen=True, slots=True)
class Roofline:
    """The shortest time of one token, if nothing but reading memory took time.

    Attributes:
        bandwidth: At which bandwidth.
        milliseconds: What is read, over the bandwidth.
        dense_milliseconds: The same of the dense model.
        ratio: Dense over sparse: how many times faster a token is at most; infinite if nothing is read.
    """

    bandwidth: Bandwidth
    milliseconds: float
    dense_milliseconds: float
    ratio: float


def roofline(read_bytes: float, dense_bytes: float, bandwidth: str | Bandwidth) -> Roofline:
    """Bound the time of one token by the bytes that it reads: weights, and keys and values if they count.

    Args:
        read_bytes: Bytes of the sparse model.
        dense_bytes: Bytes of the dense model.
        bandwidth: One of ``BANDWIDTHS``, or another one with its name.

    Raises:
        SpecError: The name is unknown.

    Example:
        >>> bound = roofline(2e9, 4e9, Bandwidth("a laptop", 50e9))
        >>> bound.milliseconds, bound.ratio
        (40.0, 2.0)
    """
    if isinstance(bandwidth, str):
        if bandwidth not in BANDWIDTHS:
            step = "for another device give Bandwidth(name, bytes_per_second)"
            raise unknown_name("bandwidth", bandwidth, BANDWIDTHS, next_step=step)
        bandwidth = BANDWIDTHS[bandwidth]
    speed = bandwidth.bytes_per_second / 1e3
    ratio = dense_bytes / read_bytes if read_bytes else float("inf")
    return Roofline(bandwidth, read_bytes / speed, dense_bytes / speed, ratio)


def attention_weights(d_model: int, d_attention: int, d_kv: int) -> int:
    """Entries of W_q, W_k, W_v and W_o: 2 d d_attention + 2 d d_kv; 4 d^2 without grouped queries.

    Example:
        >>> attention_weights(4, 4, 4)  # four square matrices
        64
        >>> attention_weights(576, 576, 192)  # a third as many key-value heads (SmolLM2-135M)
        884736
    """
    return 2 * d_model * d_attention + 2 * d_model * d_kv


def mlp_saving(
    gated: bool,
    density: float,
    scheme: Scheme,
    *,
    input_density: float = 1.0,
    predictor_rank: int = 0,
    d_model: int = 1,
    d_mlp: int = 1,
) -> float:
    """Share of the arithmetic of one MLP that is saved, at most.

    With m matrices and active share rho: ``down only`` (1 - rho) / m; ``first matrix computed`` (1 - rho)
    (m - 1) / m; ``ideal predictor`` 1 - rho. Inputs that are zero skip columns of what is left of the first
    m - 1 matrices. A predictor of rank r costs 2 r (d + f) FLOPs of 2 m d f. ``first matrix computed`` takes
    the gate to decide which units are active.

    Args:
        gated: Whether the MLP has three matrices.
        density: rho, the share of hidden units that are active.
        scheme: When the active units are known.
        input_density: Share of the MLP input that is not zero.
        predictor_rank: r; 0 for a predictor that costs nothing.
        d_model: d, used for the predictor only.
        d_mlp: f, used for the predictor only.

    Returns:
        A share of the dense cost, at most 1; less than 0 where the predictor costs more than is saved.

    Raises:
        SpecError: If a density is not in [0, 1] or the scheme is unknown.

    Example:
        >>> round(mlp_saving(gated=True, density=0.1, scheme="ideal predictor"), 6)
        0.9
        >>> round(mlp_saving(gated=True, density=0.1, scheme="first matrix computed"), 6)  # the gate stays
        0.6
    """
    _check(0 <= density <= 1, "density", "0 to 1", density)
    _check(0 <= input_density <= 1, "input_density", "0 to 1", input_density)
    _check(scheme in SCHEMES, "scheme", SCHEMES, scheme)
    m = 3 if gated else 2
    # Share of the m - 1 first matrices, and of the last, that is left when inactive units are skipped.
    first = {
        "down only": m - 1.0,
        "first matrix computed": 1.0 + (m - 2) * density,
        "ideal predictor": (m - 1) * density,
    }[scheme]
    predictor = predictor_rank * (d_model + d_mlp) / (d_model * d_mlp)
    return 1 - (first * input_density + density + predictor) / m


def dense_cost(
    model: ModelDimensions, *, attended: float, bytes_per_weight: float | None = None, together: int = 1
) -> Cost:
    """Cost of one decoded token of the dense model.

    FLOPs: MLP 2 m d f for each expert that runs, projections 2 for each weight, scores 4 N d_attention for N
    attended positions, output head 2 d V. Weight bytes: the same matrices, each read once for ``together``
    tokens and divided by them; of a mixture, the experts that ``together`` tokens reach if each picks its
    experts independently and evenly.

    Args:
        model: Shapes.
        attended: N.
        bytes_per_weight: Bytes of one weight; those of the precision of computing when None.
        together: Tokens that are decoded for one reading of the weights.

    Example:
        >>> layer = LayerDimensions(0, 4, d_mlp=16, gated=False, attention_weights=64, d_attention=4, d_kv=4)
        >>> model = ModelDimensions((layer,), 4, vocabulary=10, tied=True, parameters=232,
        ...                         bytes_per_weight=2.0, final_norm_weights=0, causal=True)
        >>> cost = dense_cost(model, attended=8)
        >>> cost.flops["mlp"], cost.weight_bytes["mlp"]  # 2 matrices of 4 x 16, 2 FLOPs and 2 bytes each
        (256.0, 256.0)
        >>> dense_cost(model, attended=8, together=4).weight_bytes["mlp"]  # read once for four tokens
        64.0
    """
    size = model.bytes_per_weight if bytes_per_weight is None else bytes_per_weight
    flops, weights = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    for layer in model.layers:
        d = layer.d_model
        flops["mlp"] += 2 * layer.matrices * d * layer.active_width + 2 * layer.router_weights
        weights["mlp"] += layer.matrices * d * _width_read(layer, together) + layer.router_weights
        flops["attention projections"] += 2 * (layer.attention_weights + layer.other_weights)
        weights["attention projections"] += layer.attention_weights + layer.other_weights
        flops["attention scores"] += 4 * attended * layer.d_attention
        flops["norms and biases"] += NORM_FLOPS * layer.norm_weights + layer.bias_weights
        weights["norms and biases"] += layer.norm_weights + layer.bias_weights
    flops["norms and biases"] += NORM_FLOPS * model.final_norm_weights
    weights["norms and biases"] += model.final_norm_weights
    flops["output head"] = 2.0 * model.d_model * model.vocabulary
    weights["output head"] = 1.0 * model.d_model * model.vocabulary
    cache = sum(2 * attended * layer.d_kv for layer in model.layers) * size
    return Cost(flops, {part: n * size / together for part, n in weights.items()}, cache)


def upper_bounds(
    model: ModelDimensions,
    densities: Mapping[int, float],
    assumptions: Assumptions,
    union_densities: Mapping[int, float] | None = None,
) -> tuple[UpperBound, UpperBound]:
    """Upper bounds on FLOPs and on weight bytes saved for one decoded token.

    Args:
        model: Shapes, from ``models.structure.dimensions.read_dimensions``.
        densities: Share of the hidden units that are active on a token, by layer, in [0, 1]; of a mixture, of
            the units of the experts that run. Layers that are not named stay dense.
        assumptions: What the bound rests on.
        union_densities: Share of the units that are active on any of ``assumptions.together`` tokens, by
            layer; needed for bytes where ``together`` is more than one.

    Returns:
        The bound on FLOPs and the one on weight bytes.

    Raises:
        SpecError: If a density is not in [0, 1], a layer is unknown, or the union densities are missing.

    Example:
        >>> layer = LayerDimensions(0, 4, d_mlp=16, gated=False, attention_weights=64, d_attention=4, d_kv=4)
        >>> model = ModelDimensions((layer,), 4, vocabulary=0, tied=True, parameters=192,
        ...                         bytes_per_weight=2.0, final_norm_weights=0, causal=True)
        >>> rests_on = Assumptions("ideal predictor", attended=0, bytes_per_weight=2.0)
        >>> flops, weights = upper_bounds(model, {0: 0.25}, rests_on)
        >>> weights.saved_mlp, weights.saved_model, weights.amdahl  # 96 weights of 128, of 192
        (0.75, 0.5, 2.0)
    """
    a = assumptions
    if a.together > 1 and union_densities is None:
        raise SpecError(
            "weights that are read for several tokens are needed by the union of their active units",
            where="upper_bounds(union_densities)",
            next_step="measure the union over chunks: sparsescope run activation_reuse",
        )
    unions = densities if union_densities is None else union_densities
    known = {layer.layer for layer in model.layers}
    for number in (*densities, *unions):
        _check(number in known, "layer", f"0 to {len(known) - 1}", number)
    cost = dense_cost(model, attended=a.attended, bytes_per_weight=a.bytes_per_weight, together=a.together)
    flops = weights = 0.0
    for layer in model.layers:
        options: dict[str, Any] = {
            "input_density": a.input_density,
            "predictor_rank": a.predictor_rank,
            "d_model": layer.d_model,
            "d_mlp": max(layer.active_width, 1),
        }
        unit = layer.matrices * layer.d_model
        if layer.layer in densities and layer.active_width:
            saving = mlp_saving(layer.gated, densities[layer.layer], a.scheme, **options)
            flops += 2 * unit * layer.active_width * saving
        if layer.layer in unions and layer.active_width:
            # Columns of inputs that are zero for one token are needed by others.
            options["input_density"] = a.input_density if a.together == 1 else 1.0
            saving = mlp_saving(layer.gated, unions[layer.layer], a.scheme, **options)
            weights += unit * _width_read(layer, a.together) * saving * a.bytes_per_weight / a.together
    return (
        _bound("FLOPs", cost.total_flops, cost.flops["mlp"], flops, a),
        _bound("weight bytes", cost.total_bytes, cost.weight_bytes["mlp"], weights, a),
    )


def amdahl_bound(share: float, saving: float) -> float:
    """1 / (1 - share * saving): by how much a count shrinks at most if ``saving`` of a ``share`` of it
    goes; infinite at 1.

    Example:
        >>> amdahl_bound(share=0.5, saving=1.0)  # half is left
        2.0
    """
    left = 1 - share * saving
    return 1 / left if left > 0 else float("inf")


def _bound(
    quantity: Literal["FLOPs", "weight bytes"], dense: float, mlp: float, saved: float, a: Assumptions
) -> UpperBound:
    share = mlp / dense if dense else 0.0
    of_mlp = saved / mlp if mlp else 0.0
    return UpperBound(quantity, dense, saved, share, of_mlp, share * of_mlp, amdahl_bound(share, of_mlp), a)


def _width_read(layer: LayerDimensions, together: int) -> float:
    """Hidden units whose weights are read for ``together`` tokens of the dense model."""
    if not layer.experts:
        return layer.d_mlp + layer.d_shared
    reached = layer.experts * (1 - (1 - layer.routed / layer.experts) ** together)
    return reached * layer.d_mlp + layer.d_shared


def as_row(bound: UpperBound) -> dict[str, object]:
    """Return a bound as one table row: numbers, then every assumption under its own name.

    Example:
        >>> rests_on = Assumptions("ideal predictor", attended=128, bytes_per_weight=2.0)
        >>> row = as_row(UpperBound("FLOPs", 10.0, 4.0, 0.8, 0.5, 0.4, 1.67, rests_on))
        >>> row["saved_model"], row["scheme"]
        (0.4, 'ideal predictor')
    """
    row = {name: value for name, value in asdict(bound).items() if name != "assumptions"}
    return row | asdict(bound.assumptions)

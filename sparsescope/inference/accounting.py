"""What every tensor that a decoded token reads costs, for a subject or for a configuration alone.

``inventory`` lists the matrices of the blocks with the shapes that their modules have; a configuration of
transformers is enough, because the model is then built on torch's meta device, which holds shapes and no
weights. ``account`` counts bytes and FLOPs when a method reads a share of each matrix, and all that the
method adds::

    found = inventory(LlamaConfig(), bytes_per_weight=2)
    account(found, 0.5).bytes                                   # Shares(block=0.5, mlp=0.5, model=0.490)
    account(found, 0.5, adapters=rotations(found)).bytes.model  # 0.328: two rotations a layer are dense
    ceiling(found, "first matrix computed").block               # 0.446: the gate must be read (CATS)

Definitions, symbols and what is left out: ``metrics.matrix_costs``. Fused matrices (q, k and v; gate and up)
are listed by role, as their row ranges. Routers, and matrices without a role, are dense.
Shapes: W [N, K] = (out, in); d = d_model; r = rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SpecError, SubjectError
from sparsescope.metrics.bounds import SCHEMES, ModelDimensions
from sparsescope.metrics.matrix_costs import (
    Adapter,
    MatrixShape,
    Shares,
    TokenAccount,
    account_token,
    skippable,
)
from sparsescope.metrics.matrix_costs import ceiling as ceiling_of
from sparsescope.models.sources import find_roles
from sparsescope.models.structure.dimensions import read_dimensions
from sparsescope.models.structure.parameters import ParameterSite
from sparsescope.models.structure.patterns import select
from sparsescope.models.structure.roles import features, submodule
from sparsescope.models.subject import Subject
from sparsescope.models.torch_environment import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ROUTER = "mlp.router.weight"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The matrices of a model and the shapes of everything else.

    Attributes:
        matrices: The matrices of the blocks by role, layer by layer, without routers.
        dimensions: Shapes of the whole model.
        bytes_per_weight: Bytes of a weight outside ``matrices``, and of a key or value.
    """

    matrices: tuple[MatrixShape, ...]
    dimensions: ModelDimensions
    bytes_per_weight: float

    @property
    def weights(self) -> int:
        """Entries of all matrices of the blocks, of every expert."""
        return sum(matrix.weights for matrix in self.matrices)

    @property
    def stored_bytes(self) -> float:
        """Bytes of all matrices of the blocks, of every expert."""
        return sum(matrix.stored_bytes for matrix in self.matrices)

    def select(self, patterns: str | Sequence[str]) -> tuple[MatrixShape, ...]:
        """Return the matrices that patterns such as ``weight:blocks.*.mlp.out.weight`` name.

        Raises:
            SubjectError: A pattern matches nothing.
        """
        sparse = {matrix.layer for matrix in self.matrices if matrix.expert is not None}
        return select(self.matrices, patterns, len(self.dimensions.layers), sorted(sparse))


class _Shapes(Subject):
    """A subject on the meta device: it has shapes, and cannot run."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What its class is made for; measuring it would need weights."""
        return frozenset({"causal", "logits"})


def inventory(
    source: Subject | PreTrainedConfig | Inventory,
    *,
    bytes_per_weight: float | None = None,
    other_bytes_per_weight: float | None = None,
) -> Inventory:
    """List the matrices of a model.

    Args:
        source: A subject; or a configuration of a causal language model, which takes no memory.
        bytes_per_weight: Bytes of a weight of the blocks' matrices: 2 for bfloat16, 0.5 for 4 bits. When
            None, what is stored; for a configuration, in the precision that it names, else float32.
        other_bytes_per_weight: Bytes of every other weight, and of a key or value. When None,
            ``bytes_per_weight``, else those of the precision of computing.

    Returns:
        The inventory; one that is given is returned as it is.

    Raises:
        SpecError: The configuration is of no causal language model, or bytes are not more than 0.
        SubjectError: The architecture is not known, or it is written nowhere how many experts a token uses.
    """
    if isinstance(source, Inventory):
        return source
    for name, given in (
        ("bytes_per_weight", bytes_per_weight),
        ("other_bytes_per_weight", other_bytes_per_weight),
    ):
        if given is not None and not given > 0:
            raise SpecError(
                f"{name} must be more than 0",
                where=f"inventory({name})",
                allowed="more than 0",
                got=given,
                next_step="2 for bfloat16, 1 for int8, 0.5 for 4 bits",
            )
    subject = source if isinstance(source, Subject) else _without_weights(source)
    dimensions = read_dimensions(subject)
    if other_bytes_per_weight is None:
        other_bytes_per_weight = bytes_per_weight or dimensions.bytes_per_weight
    routed = {layer.layer: _read_share(subject, layer.layer, dimensions) for layer in dimensions.layers}
    matrices = tuple(
        MatrixShape(
            name=site.name,
            role=site.role,
            layer=site.layer,
            shape=site.shape,
            bytes_per_weight=bytes_per_weight or _bytes_per_weight(subject.model, site),
            expert=site.expert,
            read=1.0 if site.expert is None else routed[site.layer],
        )
        for site in subject.parameter_sites("weight:blocks.*.*")
        if site.role != _ROUTER
    )
    return Inventory(matrices, dimensions, other_bytes_per_weight)


def account(
    source: Subject | PreTrainedConfig | Inventory,
    density: float | Mapping[str, float] = 1.0,
    *,
    row_density: float | Mapping[str, float] = 1.0,
    adapters: Sequence[Adapter] = (),
    attended: float = 0.0,
) -> TokenAccount:
    """Count what one decoded token reads and computes; see ``metrics.matrix_costs.account_token``.

    Args:
        source: As for ``inventory``, or an inventory, which says the bytes of a weight.
        density: Share of the input that each matrix keeps, in [0, 1]: one for all, or by name
            (``weight:blocks.3.mlp.out.weight``; of experts with their number, or without it for all of a
            layer). Matrices that are not named are dense.
        row_density: Share of the output rows that are computed, likewise.
        adapters: What the method adds: ``rotations``, ``low_rank``, ``channel_vectors``.
        attended: Positions that the token attends to; 0 counts weights only.

    Raises:
        SpecError: A density is not in [0, 1], or a name is unknown.
    """
    found = inventory(source)
    return account_token(
        found.dimensions,
        found.matrices,
        density,
        row_density=row_density,
        adapters=adapters,
        attended=attended,
        bytes_per_weight=found.bytes_per_weight,
    )


def ceiling(source: Subject | PreTrainedConfig | Inventory, skips: str | Sequence[str]) -> Shares:
    """The largest shares of bytes that a method can leave out, if it may skip all of some matrices.

    Args:
        source: As for ``account``.
        skips: When the active units of an MLP are known, one of ``bounds.SCHEMES``: ``"down only"`` (CETT),
            ``"first matrix computed"`` (CATS), ``"ideal predictor"``. Or patterns of the matrices that may
            be skipped: ``"weight:blocks.*.*"`` for methods that skip inputs of every matrix (TEAL, WINA).

    Raises:
        SubjectError: A pattern matches nothing.
        SpecError: It is neither a scheme nor a pattern.
    """
    found = inventory(source)
    scheme = next((known for known in SCHEMES if known == skips), None)
    if scheme is not None:
        names = skippable(found.matrices, scheme)
    else:
        names = tuple(matrix.name for matrix in found.select(skips))
    return ceiling_of(found.dimensions, found.matrices, names)


def rotations(source: Subject | PreTrainedConfig | Inventory, per_layer: int = 2) -> tuple[Adapter, ...]:
    """Dense d x d matrices that turn the residual stream of every layer, in the precision of the norms.

    WINA multiplies the residual by two a layer, after attention and after the MLP, so that the columns of k
    and gate are orthogonal; the last is the identity, and is multiplied all the same. LaRoSA has such
    matrices as well.

    Args:
        source: As for ``account``.
        per_layer: How many a layer has.
    """
    found = inventory(source)
    return tuple(
        Adapter(
            f"rotations of layer {layer.layer}",
            "residual",
            matrices=((layer.d_model, layer.d_model),) * per_layer,
            bytes_per_weight=found.bytes_per_weight,
        )
        for layer in found.dimensions.layers
    )


def low_rank(matrix: MatrixShape, rank: int) -> Adapter:
    """The factors U [N, r] and V [r, K] beside a matrix [N, K] (R-Sparse, low-rank compensation), in the
    precision of the matrix.
    """
    n, k = matrix.shape
    return Adapter(
        f"low rank of {matrix.name}",
        matrix.part,
        matrices=((n, rank), (rank, k)),
        bytes_per_weight=matrix.bytes_per_weight,
        read=matrix.read,
    )


def channel_vectors(
    matrix: MatrixShape, inputs: int = 0, outputs: int = 0, bytes_per_weight: float = 2.0
) -> Adapter:
    """Vectors beside a matrix [N, K]: thresholds or norms by input channel, biases by output channel.

    Args:
        matrix: The matrix. Where several share one mask, count its vector with one of them.
        inputs: Vectors of K entries.
        outputs: Vectors of N entries.
        bytes_per_weight: Bytes of an entry.
    """
    n, k = matrix.shape
    return Adapter(
        f"vectors of {matrix.name}",
        matrix.part,
        vectors=(k,) * inputs + (n,) * outputs,
        bytes_per_weight=bytes_per_weight,
        read=matrix.read,
    )


def _without_weights(config: PreTrainedConfig) -> Subject:
    """Build a subject that has the shapes of a configuration.

    Raises:
        SpecError: transformers makes no causal language model of it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        # A copy: transformers notes in it how the model was built. No random state is used up.
        with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except (AttributeError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise SpecError(
            "no causal language model can be built from this",
            where="inventory(source)",
            allowed="a Subject, or a configuration of a causal language model of transformers",
            got=f"{type(config).__name__} ({(str(error).strip().splitlines() or [''])[0][:160]})",
            next_step="LlamaConfig(hidden_size=4096), or sparsescope.load(NAME), or sparsescope.wrap(MODEL)",
        ) from error
    name = f"{config.model_type} (configuration)"
    return _Shapes(model, find_roles(model), None, id=name, revision=None, origin_precision="none")


def _read_share(subject: Subject, layer: int, dimensions: ModelDimensions) -> float:
    """Share of the tokens that read one expert of a layer, if the router is even; 1 without experts."""
    found = dimensions.layers[layer]
    if not found.experts:
        return 1.0
    if not found.routed:
        raise SubjectError(
            "how many experts a token is sent to is written nowhere",
            where=f"{subject.id}, layer {layer}",
            allowed="num_experts_per_tok in the configuration, or top_k in the router",
            got=f"{found.experts} experts",
            next_step="say it: model.config.num_experts_per_tok = 2",
        )
    return found.routed / found.experts


def _bytes_per_weight(model: Any, site: ParameterSite) -> float:
    """Stored bytes of a matrix over its entries, so that packed weights count as they are stored."""
    module = submodule(model, site.module_path)
    parameter = getattr(module, site.parameter, None)
    if parameter is None:
        raise SubjectError(
            "the module does not say what it stores",
            where=f"{site.name} ({site.module_path}, {type(module).__name__})",
            allowed=f"a tensor {site.parameter}",
            next_step="give bytes_per_weight, 0.5 for 4 bits",
        )
    if parameter.is_floating_point():
        return float(parameter.element_size())
    entries = parameter.numel() if site.expert is not None else prod(features(module))
    return parameter.numel() * parameter.element_size() / entries

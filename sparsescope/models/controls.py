"""Controls: models whose weights keep their distribution and lose their structure.

``shuffled:NAME``, a variant, is the subject NAME in which all entries of each MLP input matrix (gate and up,
or the first matrix; of each expert its own) are permuted within that matrix, and the biases of these matrices
are zero. Norms, attention, second matrices and the distribution of weights in every matrix are those of NAME;
learned directions and thresholds are gone. What a measure still shows on the control comes from architecture
and marginal distribution alone.

``shuffled_router:NAME`` is a mixture of experts in which the entries of each row of each router are permuted
within the row: every expert has a direction of the same size, and no learned one. (Permuting whole rows would
only give the experts of a layer other numbers.) What still tells domains apart then comes from the states
that are routed, through any directions.

The permutations depend on the seed, the layer and the role of the matrix, not on the order in
which they are drawn.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsescope.core.spec import Params
from sparsescope.errors import SubjectError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.structure.roles import Block
    from sparsescope.models.subject import Subject

_INPUT_ROLES = tuple(
    f"mlp.{part}{matrix}.weight" for part in ("", "experts.", "shared_expert.") for matrix in ("gate", "in")
)


class ShuffledParams(Params):
    """Parameters of ``shuffled`` and ``shuffled_router``."""

    seed: int = Field(0, ge=0, description="Draws the permutations.")


def make_control(subject: Subject, params: ShuffledParams) -> Subject:
    """Make the variant ``shuffled`` of a subject, which stays as it is;
    ``make_variant(subject, "shuffled", seed=3)`` calls it.

    Raises:
        SubjectError: The MLP input weights cannot be read as numbers.
    """
    control = subject.copy()
    shuffle_in_place(control.model, control.blocks, params.seed)
    return control.with_variant("shuffled", params.model_dump(mode="json"), of=subject)


def make_router_control(subject: Subject, params: ShuffledParams) -> Subject:
    """Make the variant ``shuffled_router`` of a mixture of experts, which stays as it is.

    Raises:
        SubjectError: It has no router with a matrix.
    """
    import numpy as np
    import torch

    from sparsescope.models.structure.applied import check_view
    from sparsescope.models.structure.parameters import parameters_of
    from sparsescope.models.structure.roles import submodule

    control = subject.copy(share_weights=True)  # a mixture of billions of weights differs in some thousands
    sites = [
        site for site in parameters_of(control.model, control.blocks) if site.role == "mlp.router.weight"
    ]
    if not sites:
        raise SubjectError(
            "this model has no routers that can be shuffled",
            where=subject.id,
            allowed="a mixture of experts with sites such as weight:blocks.*.mlp.router.weight",
            next_step="choose a mixture, such as bytes-moe",
        )
    tensors = [check_view(control.model, site) for site in sites]
    with torch.no_grad():
        for site, tensor in zip(sites, tensors, strict=True):
            generator = _generator(params.seed, site)
            order = generator.permuted(np.tile(np.arange(tensor.shape[1]), (tensor.shape[0], 1)), axis=1)
            shuffled = tensor.gather(1, torch.from_numpy(order).to(tensor.device))
            module = submodule(control.model, site.module_path)
            stored = shuffled.T.contiguous() if site.transposed else shuffled
            setattr(module, site.parameter, torch.nn.Parameter(stored, requires_grad=False))
    return control.with_variant("shuffled_router", params.model_dump(mode="json"), of=subject)


def shuffle_in_place(model: Any, blocks: Sequence[Block], seed: int) -> None:
    """Permute the MLP input matrices of a model and set their biases to zero.

    Args:
        model: HF model; it is changed.
        blocks: The roles in its blocks.
        seed: Draws the permutations.

    Raises:
        SubjectError: There is no MLP input matrix, it is packed by a quantization library, or its module
            applies another one (an adapter that is not merged).
    """
    import torch

    from sparsescope.models.structure.applied import check_view
    from sparsescope.models.structure.parameters import parameters_of

    sites = [site for site in parameters_of(model, blocks) if site.role in _INPUT_ROLES]
    if not sites:
        raise SubjectError(
            "this model has no MLP input matrices that can be shuffled",
            where=type(model).__name__,
            allowed="a model with sites such as weight:blocks.*.mlp.in.weight",
            next_step="choose another subject for a control",
        )
    # All are found to be what the model computes with before the first is changed
    tensors = [check_view(model, site) for site in sites]
    seen: set[tuple[int, ...]] = set()
    with torch.no_grad():
        for site, tensor in zip(sites, tensors, strict=True):
            place = (tensor.data_ptr(), *tensor.shape)
            if place in seen:  # layers that share their weights (ALBERT)
                continue
            seen.add(place)
            order = _generator(seed, site).permutation(tensor.numel())
            shuffled = tensor.reshape(-1)[torch.from_numpy(order).to(tensor.device)]
            tensor.copy_(shuffled.reshape(tensor.shape))
            bias = _bias(model, site)
            if bias is not None:
                bias.zero_()


def _generator(seed: int, site: ParameterSite) -> np.random.Generator:
    """Draws the permutations of one matrix, the same in whichever order matrices are shuffled."""
    import numpy as np

    key = hashlib.sha256(f"{seed} {site.name}".encode()).digest()[:16]
    return np.random.default_rng(int.from_bytes(key, "big"))


def _bias(model: Any, site: ParameterSite) -> torch.Tensor | None:
    """Return the bias that belongs to a matrix as a view, or None."""
    import torch

    from sparsescope.models.structure.roles import submodule

    module = submodule(model, site.module_path)
    name = "bias" if site.parameter == "weight" else f"{site.parameter}_bias"
    bias = getattr(module, name, None)
    if not isinstance(bias, torch.Tensor):
        return None
    bias = bias.detach()
    if site.expert is not None:
        bias = bias[site.expert]
    return bias if site.rows is None else bias[slice(*site.rows)]

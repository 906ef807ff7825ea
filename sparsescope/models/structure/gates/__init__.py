"""Gates of a mixture of experts, behind one protocol: what decides which experts a token uses, and how much.

``make_gate(name, width, experts, options)`` builds one; ``base.Gate`` is the protocol. One file for each
gate:

==================== ============================================= ======== =============================
gate                 chooses by                                    active   knob of the active experts
==================== ============================================= ======== =============================
``top_k``            the k largest of a softmax                    k        ``k``
``sigmoid_bias``     the k largest sigmoids, plus a balancing bias k        ``k``
``hash``             a fixed table of the token id                 k        ``k``
``relu``             every positive score, after RMSNorm           any      ``target`` (sets the penalty)
``dselect_k``        k binary codes of experts, each a smooth step 1 to E   ``target`` (sets the entropy)
``comet``            k binary trees over permuted experts          1 to E   ``target`` (sets the entropy)
``sparse_transport`` a transport plan, at most k experts a token   1 to k   ``gamma``
==================== ============================================= ======== =============================

Shapes used in all of them: N tokens, d width of a token, E experts, k experts, trees or selectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparsescope.core.spec import make_params
from sparsescope.errors import unknown_name

if TYPE_CHECKING:
    from sparsescope.models.structure.gates.base import Gate

#: The class of each gate, as module and name: importing one imports torch.
GATES: Mapping[str, tuple[str, str]] = {
    "top_k": ("top_k", "TopKGate"),
    "sigmoid_bias": ("sigmoid_bias", "SigmoidBiasGate"),
    "relu": ("relu", "ReluGate"),
    "dselect_k": ("dselect_k", "DSelectKGate"),
    "comet": ("comet", "CometGate"),
    "hash": ("hash_table", "HashGate"),
    "sparse_transport": ("sparse_transport", "SparseTransportGate"),
}


def gate_class(name: str) -> type[Gate[Any]]:
    """Return the class of a gate.

    Raises:
        SpecError: It is not one of ``GATES``.
    """
    if name not in GATES:
        raise unknown_name(
            "gate", name, GATES, next_step="sparsescope/models/structure/gates has one file for each"
        )
    module, found = GATES[name]
    return getattr(import_module(f"{__name__}.{module}"), found)


def gate_options(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """Check the options of a gate and fill in defaults.

    Args:
        name: One of ``GATES``.
        options: What differs from the defaults.

    Returns:
        The ``options`` model of the gate.

    Raises:
        SpecError: The gate or an option is unknown, or a value is not valid.
    """
    found = gate_class(name)
    file = f"see sparsescope/models/structure/gates/{GATES[name][0]}.py"
    return make_params(found.options_model, dict(options or {}), analysis=name, kind="gate", next_step=file)


def make_gate(
    name: str,
    width: int,
    experts: int,
    options: Mapping[str, Any] | None = None,
    *,
    vocabulary: int = 0,
    seed: int = 0,
    std: float = 0.02,
) -> Gate[Any]:
    """Build a gate at its initialization.

    Args:
        name: One of ``GATES``.
        width: d, of a token.
        experts: E.
        options: What differs from the defaults of the gate.
        vocabulary: Number of token ids, for a gate that reads them.
        seed: Draws the initialization.
        std: Standard deviation of its matrices, where the gate has no rule of its own.

    Raises:
        SpecError: The gate or an option is unknown, or a value is not valid.
    """
    import torch

    gate = gate_class(name)(width, experts, gate_options(name, options), vocabulary=vocabulary)
    gate.reset(torch.Generator().manual_seed(seed), std)
    return gate

"""The hidden layer of one expert, recomputed from the tokens routed to it, and the output with
hidden layers replaced.

transformers 5 stores all experts of a layer in 3-D tensors and runs them in one fused module, so
there is no module whose input is the hidden layer of an expert. Its input and the routing are
known at the module, hence the hidden layer is ``act(gate(x)) * up(x)`` on the routed rows.
The sum over experts of ``weight * down(hidden)`` is the output of the module, so hidden layers can
be replaced as well.

Shapes: T = batch * pos tokens, K = experts per token, E = experts, d = d_model, f = width of one expert.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from einops import rearrange
from torch.nn.functional import linear


def is_fused(module: Any) -> bool:
    """Tell whether a module is a fused expert module: ``forward(x, top_k_index, top_k_weights)``, or that
    of Llama 4, ``forward(x)`` with x [E * T, d] (see ``takes_routing``).
    """
    down = getattr(module, "down_proj", None)
    if not isinstance(down, torch.Tensor) or down.ndim != 3:
        return False
    into = next(
        (
            matrix
            for matrix in (getattr(module, name, None) for name in ("gate_up_proj", "up_proj"))
            if isinstance(matrix, torch.Tensor)
        ),
        None,
    )
    if into is None:
        return False
    return takes_routing(module) or (
        _inputs(module) == 1 and into.shape == (down.shape[0], down.shape[2], 2 * down.shape[1])
    )


def takes_routing(module: Any) -> bool:
    """Tell whether the routing is an input of a fused module.

    It is not in Llama 4: every expert gets every token, times the score of the token, which is zero
    where the router did not choose the expert.
    """
    return _inputs(module) >= 3


def _inputs(module: Any) -> int:
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def is_gated(module: Any) -> bool:
    """Tell whether the experts of a fused module are gated MLPs."""
    return bool(getattr(module, "has_gate", hasattr(module, "gate_up_proj")))


def is_transposed(module: Any) -> bool:
    """Tell whether the 3-D tensors are [E, in, out] instead of [E, out, in]."""
    return bool(getattr(module, "is_transposed", not takes_routing(module)))


def sizes(module: Any) -> tuple[int, int]:
    """Return the number of experts E and the width f of one expert."""
    shape = module.down_proj.shape  # [E, d, f], or [E, f, d] when transposed
    return int(shape[0]), int(shape[1 if is_transposed(module) else 2])


def expert_hidden(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor | None, experts: tuple[int, ...]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Recompute the hidden layer of some experts.

    Args:
        module: Fused expert module.
        hidden_states: Its input, [T, d] or [batch, pos, d].
        top_k_index: Experts of each token, int64 [T, K]; None where the module ``takes_routing`` not.
        experts: The experts wanted.

    Yields:
        For every wanted expert with at least one token: its number, the input of its second
        matrix [n_routed, f], and the rows int64 [n_routed] as ascending indices into T.
    """
    for expert, _, hidden, rows in expert_inputs(module, hidden_states, top_k_index, experts):
        yield expert, hidden, rows


def expert_inputs(
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor | None,
    experts: tuple[int, ...] | None = None,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What the matrices of some experts read; arguments as of ``expert_hidden``, None for all experts.

    Yields:
        Number of the expert, input of its first matrices [n_routed, d], of its second [n_routed, f], and
        the rows int64 [n_routed].
    """
    wanted = range(sizes(module)[0]) if experts is None else experts
    with torch.no_grad():
        if top_k_index is None:
            for expert, states in enumerate(_by_expert(module, hidden_states)):
                rows = _reached(states)
                if expert in wanted and rows.numel():
                    yield expert, states[rows], _hidden(module, states[rows], expert, rows), rows
            return
        flat, routing = (
            rearrange(hidden_states, "... d -> (...) d"),
            rearrange(top_k_index, "... k -> (...) k"),
        )
        for expert in wanted:
            rows = (routing == expert).any(dim=-1).nonzero().squeeze(-1)
            if rows.numel():
                yield expert, flat[rows], _hidden(module, flat[rows], expert, rows), rows


def expert_output(
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor | None,
    top_k_weights: torch.Tensor | None,
    replace: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Compute what a fused expert module gives when the hidden layers of its experts are replaced.

    With a replacement that changes nothing it is the output of the module up to rounding: the sums
    run in another order.

    Args:
        module: Fused expert module.
        hidden_states: Its input, [T, d] or [batch, pos, d].
        top_k_index: Experts of each token, int64 [T, K]; None where the module ``takes_routing`` not.
        top_k_weights: Their weights, [T, K]; likewise.
        replace: Gets expert, hidden layer [n_routed, f] and rows int64 [n_routed], for every expert with at
            least one token, and returns the hidden layer that goes on.

    Returns:
        The output of the module, shaped like ``hidden_states``.
    """
    if top_k_index is None or top_k_weights is None:
        parts = _by_expert(module, hidden_states)
        out = torch.zeros_like(parts)
        for expert, states in enumerate(parts):
            rows = _reached(states)
            if rows.numel():
                hidden = replace(expert, _hidden(module, states[rows], expert, rows), rows)
                out[expert, rows] = _product(module, "down_proj", hidden, expert, rows)
        return out.reshape(hidden_states.shape)
    flat, routing = rearrange(hidden_states, "... d -> (...) d"), rearrange(top_k_index, "... k -> (...) k")
    weights = rearrange(top_k_weights, "... k -> (...) k")
    total = torch.zeros_like(flat)
    for expert in range(sizes(module)[0]):
        chosen = routing == expert
        rows = chosen.any(dim=-1).nonzero().squeeze(-1)
        if not rows.numel():
            continue
        hidden = replace(expert, _hidden(module, flat[rows], expert, rows), rows)
        out = contribution(module, hidden, expert, rows)
        share = (weights * chosen).sum(dim=-1)[rows, None]
        total.index_add_(0, rows, (out * share).to(total.dtype))
    return total.reshape(hidden_states.shape)


def contribution(module: Any, hidden: torch.Tensor, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """What an expert says before its weight, [n, d], from its hidden layer [n, f] on some tokens.

    Args:
        module: Fused expert module.
        hidden: As ``expert_hidden`` gives it.
        expert: Its number.
        rows: The tokens, int64 [n].
    """
    out = _product(module, "down_proj", hidden, expert, rows)
    return module.post_expert_norm(out) if getattr(module, "has_post_expert_norm", False) else out


def _by_expert(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """The input of every expert, [E, T, d], of a module that takes no routing."""
    return rearrange(hidden_states, "(expert token) d -> expert token d", expert=sizes(module)[0])


def _reached(states: torch.Tensor) -> torch.Tensor:
    """Rows int64 [n_routed] of the tokens that were sent to an expert: its other inputs are zero."""
    return (states != 0).any(dim=-1).nonzero().squeeze(-1)


def _hidden(module: Any, states: torch.Tensor, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """Return the hidden layer [n, f] of one expert for the inputs [n, d] of some tokens."""
    before = _product(module, "gate_up_proj" if is_gated(module) else "up_proj", states, expert, rows)
    if not is_gated(module):
        return module.act_fn(before)
    if hasattr(module, "_apply_gate"):  # the gating of this architecture, with its clamps
        return module._apply_gate(before)
    gate, up = before.chunk(2, dim=-1)
    return module.act_fn(gate) * up


def _product(module: Any, name: str, states: torch.Tensor, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """What a mixture makes of the inputs of one matrix: one that masks what its experts read
    (``inference.modules``) does so here too, so that its hidden layers are what it computes with.
    """
    if getattr(module, "masks_inputs", False):
        found: torch.Tensor = module.masked_matrix(name, states, expert, rows)
        return found
    return apply_matrix(module, name, states, expert)


def apply_matrix(module: Any, name: str, states: torch.Tensor, expert: int) -> torch.Tensor:
    """Apply one matrix of an expert, with its bias where there is one.

    Args:
        module: Fused expert module.
        name: ``gate_up_proj``, ``up_proj`` or ``down_proj``.
        states: [n, in].
        expert: Its number.
    """
    weight = getattr(module, name)[expert]
    biases = getattr(module, f"{name}_bias", None)
    return linear(
        states, weight.T if is_transposed(module) else weight, None if biases is None else biases[expert]
    )

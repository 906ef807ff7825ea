"""Look at, or change, the attention weights of a running model, some rows at a time, in memory
linear in the length.

transformers lets an attention function be registered by name. ``attention_rows`` registers one for the length
of a ``with`` block: queries go in chunks, so that no [pos, pos] array is ever made, neither for the weights
nor for the mask: masks are rules of (query, key) that are evaluated for the rows at hand. The output is that
of eager attention.

Shapes: weights [batch, head, row, key]; rows are queries start..stop, keys are those that any of
these rows may see.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange

from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.structure.roles import submodule
from sparsescope.models.structure.visits import alone

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

CHUNK_ROWS = 256
_numbers = itertools.count()
# Arguments of attention functions that add to the scores in a way that is not reproduced here.
_REFUSED = {"s_aux": "sink logits beside the keys", "position_bias": "a learned bias for each distance"}


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """Attention of some queries of one layer.

    Attributes:
        layer: Block number.
        start: First query.
        weights: float32 [batch, head, row, key], softmax over the keys; 0 where a key is not allowed.
        first_key: Number of the first key of ``weights``.
        allowed: bool [row, key], whether the row may see the key; the same for every head and sequence.
        values: [batch, kv_head, key, head_dim], value vectors of these keys.
        length: Number of keys of the whole window.
    """

    layer: int
    start: int
    weights: torch.Tensor
    first_key: int
    allowed: torch.Tensor
    values: torch.Tensor
    length: int


# Gets the rows; what it returns is used in place of ``rows.weights``, None for no change.
Visit = Callable[[AttentionRows], torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class _RuleMask:
    """An attention mask as a rule, so that rows of it can be had without the others.

    A model that computes with its mask before attention (Doge adds to it) takes it for a tensor, and
    is refused.
    """

    rule: Callable[..., torch.Tensor]
    keys: int
    device: torch.device
    refuse: Callable[[], SubjectError]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Whether queries start..stop may see each key, bool [row, key]."""
        zero = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=self.device)
        query = torch.arange(start, stop, device=self.device)[None, None, :, None]
        key = torch.arange(self.keys, device=self.device)[None, None, None, :]
        found = self.rule(zero, zero, query, key)
        return found.expand(1, 1, stop - start, self.keys)[0, 0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # questions of the language, which have no tensor in mind
            raise AttributeError(name)
        raise self.refuse()

    def __getitem__(self, index: Any) -> Any:
        raise self.refuse()

    def __add__(self, other: Any) -> Any:
        raise self.refuse()

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __and__ = __rand__ = __or__ = __add__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = (part for part in (*args, *(kwargs or {}).values()) if isinstance(part, cls))
        raise next(found).refuse()


def supports_attention_rows(subject: Subject) -> bool:
    """Whether the model class computes attention through the interface of transformers (most do; BLOOM,
    MPT, GPT-J do not).
    """
    return bool(getattr(type(subject.model), "_supports_attention_backend", False))


@contextmanager
def attention_rows(subject: Subject, visit: Visit, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[None]:
    """Visit the attention weights of every layer while the ``with`` block runs forward
    passes without padding.

    The model is as before when the block ends, in whatever way it ends.

    Args:
        subject: The model.
        visit: Called for each chunk of rows of each layer. Exceptions end the forward pass
            and reach the caller.
        chunk_rows: Rows at a time.

    Raises:
        SubjectError: The class computes attention in its own code, adds terms to the scores that
            are not reproduced, or attends several times in one layer.
        SpecError: ``chunk_rows`` is not positive.

    Source: the attention interface of transformers 5 (``AttentionInterface``, ``AttentionMaskInterface``).
    """
    if chunk_rows < 1:
        raise SpecError(
            "a chunk has at least one row", where="chunk_rows", allowed="an int >= 1", got=chunk_rows
        )
    if not supports_attention_rows(subject):
        raise SubjectError(
            "this architecture computes attention in its own code, where its weights "
            "cannot be read row by row",
            where=f"{subject.id} ({type(subject.model).__name__})",
            allowed="classes with _supports_attention_backend in transformers",
            next_step="use another model family, for example Llama, GPT-2, OPT, Gemma, Qwen or BERT",
        )
    layers = _layers(subject)
    attended: set[int] = set()  # layers that have had their attention in the running pass

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        for name, meaning in _REFUSED.items():
            if kwargs.get(name) is not None:
                raise _refused(subject, f"attention with {meaning}", name)
        if id(module) not in layers:
            raise _refused(subject, "attention outside of the blocks", type(module).__name__)
        if layers[id(module)] in attended:
            # DiffLlama subtracts one softmax from another: neither is the attention of the layer.
            raise _refused(subject, "several attentions in one layer", type(module).__name__)
        attended.add(layers[id(module)])
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        causal = getattr(module, "is_causal", True)
        parts = []
        for start in range(0, query.shape[2], chunk_rows):
            stop = min(start + chunk_rows, query.shape[2])
            allowed = _allowed(subject, attention_mask, start, stop, key.shape[2], causal, query.device)
            seen = allowed.any(0).nonzero()
            first, last = int(seen[0]), int(seen[-1]) + 1
            allowed = allowed[:, first:last]
            keys, values = key[:, :, first:last], value[:, :, first:last]
            weights = _weights(query[:, :, start:stop], keys, allowed, scaling, softcap)
            rows = AttentionRows(layers[id(module)], start, weights, first, allowed, values, key.shape[2])
            changed = visit(rows)
            parts.append(_mixed(weights if changed is None else changed, values))
        return torch.cat(parts, 1), None

    def mask(
        *, mask_function: Callable[..., torch.Tensor], kv_length: int, device: Any = "cpu", **kwargs: Any
    ) -> _RuleMask:
        padding = kwargs.get("attention_mask")
        if padding is not None and not bool(padding.all()):
            raise _refused(subject, "padding", "attention_mask")
        return _RuleMask(
            mask_function,
            kv_length,
            torch.device(device),
            lambda: _refused(subject, "attention that computes with its mask", type(subject.model).__name__),
        )

    def entered(module: Any, args: tuple[Any, ...]) -> None:
        attended.discard(layers[id(module)])

    with alone(subject.model), _registered(subject.model, attend, mask), ExitStack() as stack:
        for block in subject.blocks:
            handle = submodule(subject.model, block.path).register_forward_pre_hook(entered)
            stack.callback(handle.remove)
        yield


@contextmanager
def _registered(model: Any, attend: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    """Have a model compute attention by functions of ours."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = f"sparsescope_rows_{next(_numbers)}"
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    configs[id(model.config)] = model.config
    before = {mark: vars(config).get("_attn_implementation_internal") for mark, config in configs.items()}
    try:
        # transformers looks only into the mapping of the class, which has no public way to
        # remove a name again.
        ALL_ATTENTION_FUNCTIONS.register(name, attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
        for config in configs.values():
            config._attn_implementation_internal = name
        yield
    finally:
        for found, config in configs.items():
            config._attn_implementation_internal = before[found]
        type(ALL_ATTENTION_FUNCTIONS)._global_mapping.pop(name, None)
        type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping.pop(name, None)


def _layers(subject: Subject) -> dict[int, int]:
    """Block number of every module below a block, by ``id`` of the module."""
    found: dict[int, int] = {}
    for block in subject.blocks:
        home = submodule(subject.model, block.path)
        found |= {id(module): block.layer for module in home.modules()}
    return found


def _allowed(
    subject: Subject, mask: Any, start: int, stop: int, keys: int, causal: bool, device: torch.device
) -> torch.Tensor:
    """Which keys queries start..stop may see, bool [row, key]."""
    if isinstance(mask, _RuleMask):
        return mask.rows(start, stop)
    if mask is not None:
        raise _refused(subject, "a mask that the model makes by itself", str(type(mask).__name__))
    if not causal:
        return torch.ones((stop - start, keys), dtype=torch.bool, device=device)
    return torch.arange(keys, device=device) <= torch.arange(start, stop, device=device)[:, None]


def _weights(
    query: torch.Tensor, key: torch.Tensor, allowed: torch.Tensor, scaling: float, softcap: float | None
) -> torch.Tensor:
    """Softmax of the scores in float32, [batch, head, row, key]. Heads that share a key
    are taken together.
    """
    grouped = rearrange(
        query, "batch (group head) row width -> batch group (head row) width", group=key.shape[1]
    )
    products = grouped @ key.mT
    scores = (
        rearrange(products, "batch group (head row) key -> batch (group head) row key", row=query.shape[2])
        * scaling
    )
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return torch.softmax(scores.float().masked_fill_(~allowed, float("-inf")), -1)


def _mixed(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values weighted, [batch, row, head, head_dim]."""
    given = weights.to(values.dtype)
    grouped = rearrange(
        given, "batch (group head) row key -> batch group (head row) key", group=values.shape[1]
    )
    mixed = grouped @ values
    return rearrange(
        mixed, "batch group (head row) width -> batch row (group head) width", row=weights.shape[2]
    )


def _refused(subject: Subject, what: str, got: str) -> SubjectError:
    return SubjectError(
        f"attention rows are not read from models with {what}",
        where=f"{subject.id} ({type(subject.model).__name__})",
        got=got,
        next_step="give one window per pass, without padding"
        if got == "attention_mask"
        else "leave this analysis out for this model; those of hidden units, such as activation_sparsity, "
        "do not read attention",
    )

"""What makes a model this model: the hash of its weights, and the check that they are numbers.

The hash is SHA-256 over the sorted names, dtypes, shapes and the SHA-256 of the raw bytes of
every parameter and stored buffer; tensors are hashed in parallel. Buffers that a model derives
from its configuration (rotary frequencies) are left out, because they differ in the last bit
between devices. Tied weights count once. The configuration has a hash of its own: the same
weights with another activation or rotary base are another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from sparsescope.core.variant import Parent, Variant
from sparsescope.errors import SubjectError
from sparsescope.models.torch_environment import dtype_name

# Keys of a configuration that do not change what the model computes.
_NOT_COMPUTING = frozenset(
    {
        "_name_or_path",
        "_model_name_or_path",
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "_attn_implementation_autoset",
        "attn_implementation",
        "_experts_implementation",
        "experts_implementation",
        "id2label",
        "label2id",
        "finetuning_task",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "auto_map",
        "task_specific_params",
        "initializer_range",
        "initializer_factor",
        "gguf_file",
    }
)


# Their hooks belong to the architecture, to the way a model is spread over devices, or to a
# pass that is running.
_LIBRARIES = frozenset({"torch", "transformers", "accelerate", "sparsescope"})


@dataclass(frozen=True, slots=True)
class SubjectIdentity:
    """Everything about a subject that a result depends on.

    Attributes:
        id: The name it was asked for under.
        revision: Commit, package version, seed, or None for models without one.
        weight_hash: SHA-256 of the weights as loaded, hex.
        config_hash: SHA-256 of the computing part of the configuration, hex.
        origin_precision: Precision in which the weights were stored, such as ``gguf:Q4_1``.
        dtype: Precision in which they compute.
        attn_implementation: ``eager``, ``sdpa``, ...
        device: Where the model lives.
        architecture: HF class name.
        n_parameters: Number of parameters; tied weights count once.
        n_layers: Number of transformer blocks.
        d_model: Width of the residual stream.
        trust_remote_code: Whether code of the model repository was allowed to run.
        variant: How it was made from another subject, None where it was not.
    """

    id: str
    revision: str | None
    weight_hash: str
    config_hash: str
    origin_precision: str
    dtype: str
    attn_implementation: str
    device: str
    architecture: str
    n_parameters: int
    n_layers: int
    d_model: int
    trust_remote_code: bool
    variant: Variant | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; a subject that is no variant has no such key."""
        found = {name: value for name, value in asdict(self).items() if name != "variant"}
        return found if self.variant is None else found | {"variant": self.variant.as_dict()}

    def as_parent(self) -> Parent:
        """Return what a variant of this subject says about it."""
        return Parent(
            id=self.id,
            revision=self.revision,
            weight_hash=self.weight_hash,
            config_hash=self.config_hash,
            variant=self.variant,
        )


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and stored buffer once, with its first name."""
    yield from model.named_parameters()
    stored = None
    for name, buffer in model.named_buffers():
        if stored is None:
            stored = set(model.state_dict(keep_vars=True))
        if name in stored:
            yield name, buffer


def weight_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the weights (see the head of this file), in hex."""
    tensors = sorted(named_tensors(model))
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda item: _tensor_digest(item[1]), tensors))
    whole = hashlib.sha256()
    for (name, tensor), digest in zip(tensors, digests, strict=True):
        whole.update(json.dumps([name, dtype_name(tensor.dtype), list(tensor.shape)]).encode())
        whole.update(digest)
    return whole.hexdigest()


def _tensor_digest(tensor: torch.Tensor) -> bytes:
    """Return the SHA-256 of the raw bytes of a tensor, in C order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()


def config_hash(model: Any) -> str:
    """Return the SHA-256 of the parts of the configuration, and of the modules, that change what
    the model computes.

    The modules count because they can be exchanged after loading (another activation), and so do
    hooks and replaced methods that no library put there: a model that they make sparse is not the
    dense one. What they hold is not seen (two thresholds look the same), so that whoever adds some
    declares a variant (``Subject.with_variant``).
    """

    def computing(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): computing(v) for k, v in value.items() if str(k) not in _NOT_COMPUTING}
        return [computing(item) for item in value] if isinstance(value, list | tuple) else value

    modules = [
        [path, type(module).__qualname__, module.extra_repr(), _functions(module)]
        for path, module in model.named_modules()
    ]
    facts = [computing(model.config.to_diff_dict()), modules]
    foreign = foreign_hooks(model)
    if foreign:
        facts.append(foreign)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _functions(module: torch.nn.Module) -> list[list[str]]:
    """Names of the plain functions that a module holds, for example its activation."""
    held = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, FunctionType | BuiltinFunctionType)
    }
    return [[name, value.__qualname__] for name, value in sorted(held.items())]


def foreign_hooks(model: Any) -> list[list[str]]:
    """Path of each module with hooks or replaced methods that no library put there, and their
    names; see ``config_hash``.
    """
    return [[path, *_foreign(module)] for path, module in model.named_modules() if _foreign(module)]


def _foreign(module: torch.nn.Module) -> list[str]:
    """Names of the forward hooks of a module, and of a method in place of its forward, that come from
    no library we know.
    """
    held = [("before", hook) for hook in module._forward_pre_hooks.values()]
    held += [("after", hook) for hook in module._forward_hooks.values()]
    replaced = vars(module).get("forward")
    # Those are in _functions
    if replaced is not None and not isinstance(replaced, FunctionType | BuiltinFunctionType):
        held.append(("instead", replaced))
    named = []
    for place, value in held:
        function = value.func if isinstance(value, partial) else value
        known_by = function if hasattr(function, "__qualname__") else type(function)
        if known_by.__module__.partition(".")[0] not in _LIBRARIES:
            named.append(f"{place} {known_by.__module__}.{known_by.__qualname__}")
    return named


def fingerprint(model: torch.nn.Module) -> tuple[Any, ...]:
    """Return a mark that changes when the weights change, several times cheaper than the hash.

    It holds the address and the write counter of each tensor, and its sum and norm: writes through ``.data``
    do not move the counter.
    """
    marks: list[Any] = []
    for name, tensor in named_tensors(model):
        plain = tensor.detach()
        version = None if tensor.is_inference() else tensor._version
        total = float(plain.sum(dtype=torch.float64))
        norm = (
            float(torch.linalg.vector_norm(plain, dtype=torch.float64)) if plain.is_floating_point() else 0.0
        )
        marks.append((name, tensor.dtype, tensor.data_ptr(), version, total, norm))
    return tuple(marks)


def check_finite(model: torch.nn.Module, where: str) -> None:
    """Refuse a model with NaN or Inf in its weights.

    Args:
        model: The model.
        where: What to call it in the message.

    Raises:
        SubjectError: It names the first such tensor and counts the elements in all of them.
    """
    bad: list[tuple[str, int]] = []
    for name, tensor in named_tensors(model):
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        values = tensor.detach()
        # NaN and Inf survive a sum, so one fast sum clears a tensor; only a doubtful one is counted.
        if not bool(torch.isfinite(values.sum())):
            count = int((~torch.isfinite(values)).sum())
            if count:
                bad.append((name, count))
    if bad:
        raise SubjectError(
            f"{sum(count for _, count in bad)} weights are NaN or infinite, in {len(bad)} tensors",
            where=f"{where}, first: {bad[0][0]} ({bad[0][1]} elements)",
            allowed="finite numbers",
            next_step="the checkpoint is damaged or its training diverged: use an earlier one",
        )

"""What makes a model this model: the hash of its weights, and the check that they are numbers.

The hash is SHA-256 over the sorted names, dtypes, shapes and the SHA-256 of the raw bytes of
every parameter and stored buffer; tensors are hashed in parallel. Buffers that a model derives
from its configuration (rotary frequencies) are left out, because they differ in the last bit
between devices. Tied weights count once. What modules of quantized models store in packed form counts as
what they unpack it to: integers with their scales. The configuration has a hash of its own: the same weights
with another activation or rotary base are another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from sparsescope.core.variant import Parent, Variant
from sparsescope.errors import SubjectError
from sparsescope.models.provenance.beyond_weights import LIBRARIES, scan
from sparsescope.models.provenance.tensor_bytes import plain_tensors, tensor_digest
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
        reading: What earlier versions read otherwise; see ``reading.reading_of``.
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
    reading: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; ``variant`` and ``reading`` where there is something."""
        found = {name: value for name, value in asdict(self).items() if name not in ("variant", "reading")}
        found |= {"reading": dict(self.reading)} if self.reading else {}
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
    """Yield every parameter and stored buffer once, with its first name, then the tensors that modules
    store in packed form.

    Raises:
        SubjectError: A module stores something that is neither tensors nor plain values.
    """
    yield from _living(model)
    yield from ((name, value) for name, value in _packed(model) if isinstance(value, torch.Tensor))


def _living(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and stored buffers: the tensors that the modules hold themselves."""
    yield from model.named_parameters()
    stored = None
    for name, buffer in model.named_buffers():
        if stored is None:
            stored = set(model.state_dict(keep_vars=True))
        if name in stored:
            yield name, buffer


def _packed(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """What a model stores beside parameters and buffers, taken apart: tensors, which are made anew
    every time, and plain values. Dynamically quantized layers store their weights like this.
    """
    state = model.state_dict(keep_vars=True)
    seen = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for name, value in state.items():
        if id(value) in seen:
            continue
        for part, content in _parts(name, value):
            half = state.get(f"{name.rpartition('.')[0]}.dtype") is torch.float16
            # float16 weights are unpacked as float32; the bias beside them is kept in float32
            yield part, content.half() if half and part.endswith("._packed_params.0") else content


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values in something that is stored."""
    if isinstance(value, tuple | list):
        for number, entry in enumerate(value):
            yield from _parts(f"{name}.{number}", entry)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _parts(f"{name}.{key}", entry)
    elif value is None or isinstance(value, torch.Tensor | torch.dtype | str | int | float):
        yield name, value
    else:
        raise SubjectError(
            "a module of this model stores something that is no tensor, so that its weights cannot be hashed",
            where=name,
            allowed="tensors and plain values, in tuples, lists and mappings",
            got=f"{type(value).__module__}.{type(value).__qualname__}",
            next_step="load the model without quantization",
        )


def weight_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the weights (see the head of this file), in hex."""
    tensors = sorted(named_tensors(model), key=lambda item: item[0])
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda item: tensor_digest(item[1]), tensors))
    whole = hashlib.sha256()
    for (name, tensor), digest in zip(tensors, digests, strict=True):
        whole.update(json.dumps([name, dtype_name(tensor.dtype), list(tensor.shape)]).encode())
        whole.update(digest)
    plain = [[name, str(value)] for name, value in _packed(model) if not isinstance(value, torch.Tensor)]
    if plain:  # only of packed weights, such as the type that they are packed in
        whole.update(json.dumps(plain).encode())
    return whole.hexdigest()


def n_parameters(model: torch.nn.Module) -> int:
    """Count the parameters, packed ones too; tied weights count once."""
    return sum(tensor.numel() for tensor in (*model.parameters(), *_packed_arrays(model)))


def _packed_arrays(model: torch.nn.Module) -> list[torch.Tensor]:
    """The packed tensors that are parameters; single numbers are scales."""
    return [value for _, value in _packed(model) if isinstance(value, torch.Tensor) and value.ndim > 0]


def stored_precision(model: Any) -> str:
    """Return the precision of the weights of a model in memory: that of transformers, and where some
    are quantized every precision that is there, that of most weights first, such as ``qint8+float32``.
    """
    sizes: dict[str, int] = {}
    for tensor in (*model.parameters(), *_packed_arrays(model)):
        name = dtype_name(tensor.dtype)
        sizes[name] = sizes.get(name, 0) + tensor.numel()
    if not _packed_arrays(model) and {"float64", "float32", "bfloat16", "float16"}.issuperset(sizes):
        return dtype_name(model.dtype)
    return "+".join(sorted(sizes, key=lambda name: -sizes[name]))


def config_hash(model: Any) -> str:
    """Return the SHA-256 of the parts of the configuration, and of the modules, that change what
    the model computes.

    The modules count because they can be exchanged after loading (another activation), and so do
    hooks and replaced methods that no library put there: a model that they make sparse is not the
    dense one. What they hold is not seen (two thresholds look the same), so that no run is stored of such a
    model, unless a variant declares what they compute with (``Subject.with_variant``). Modules that were put
    into the model, such as LoRA layers, count with their attributes; see ``beyond_weights``.
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
    held = scan(model).facts
    if held:
        facts.append({"held": held})
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
        if known_by.__module__.partition(".")[0] not in LIBRARIES:
            named.append(f"{place} {known_by.__module__}.{known_by.__qualname__}")
    return named


def fingerprint(model: torch.nn.Module) -> tuple[Any, ...]:
    """Return a mark that changes when the weights change, several times cheaper than the hash.

    It holds the address and the write counter of each tensor, and its sum and norm: writes through ``.data``
    do not move the counter.
    """
    marks: list[Any] = []
    for name, tensor in _living(model):
        version = None if tensor.is_inference() else tensor._version
        marks.append((name, tensor.dtype, tensor.data_ptr(), version, *_sums(tensor)))
    for name, value in _packed(model):  # unpacked at another address every time
        marks.append((name, *_sums(value)) if isinstance(value, torch.Tensor) else (name, str(value)))
    return tuple(marks)


def _sums(tensor: torch.Tensor) -> list[float]:
    """Sum and norm of what a tensor consists of."""
    found: list[float] = []
    for part in plain_tensors(tensor):
        # torch has no sums of floats of a byte or less: their bytes are summed
        numbers = part.view(torch.uint8) if _is_tiny(part) else part
        found.append(float(numbers.sum(dtype=torch.float64)))
        squares = numbers if numbers.is_floating_point() else numbers.double()
        found.append(float(torch.linalg.vector_norm(squares, dtype=torch.float64)))
    return found


def _is_tiny(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() == 1


def check_finite(model: torch.nn.Module, where: str) -> None:
    """Refuse a model with NaN or Inf in its weights; of quantized ones, in their scales.

    Args:
        model: The model.
        where: What to call it in the message.

    Raises:
        SubjectError: It names the first such tensor and counts the elements in all of them, or a module
            stores its weights in a form that cannot be read.
    """
    bad: list[tuple[str, int]] = []
    for name, tensor in named_tensors(model):
        if tensor.is_meta:
            continue
        count = sum(_not_finite(part) for part in plain_tensors(tensor) if part.is_floating_point())
        if count:
            bad.append((name, count))
    if bad:
        raise SubjectError(
            f"{sum(count for _, count in bad)} weights are NaN or infinite, in {len(bad)} tensors",
            where=f"{where}, first: {bad[0][0]} ({bad[0][1]} elements)",
            allowed="finite numbers",
            next_step="the checkpoint is damaged or its training diverged: use an earlier one",
        )


def check_computable(model: torch.nn.Module, where: str) -> None:
    """Refuse a model with linear layers of torch that hold floats of a byte: torch multiplies with none.

    Args:
        model: The model. Layers of other kinds, and those with hooks, may convert their weights.
        where: What to call it in the message.

    Raises:
        SubjectError: It names the first of them.
    """
    for path, module in model.named_modules():
        if type(module) is not torch.nn.Linear or module._forward_pre_hooks or "forward" in vars(module):
            continue
        if _is_tiny(module.weight):
            raise SubjectError(
                "torch cannot compute with weights of this precision",
                where=f"{where}, first: {path}.weight (torch.nn.Linear)",
                allowed="float32, bfloat16, float16, or layers that convert their weights",
                got=dtype_name(module.weight.dtype),
                next_step="convert the model first, for example: model.to(torch.bfloat16)",
            )


def _not_finite(values: torch.Tensor) -> int:
    """Count the elements that are NaN or infinite."""
    if _is_tiny(values):
        if "float4" in str(values.dtype):  # two in a byte, and every bit pattern is a number
            return 0
        values = values.float()
    # NaN and Inf survive a sum, so one fast sum clears a tensor; only a doubtful one is counted.
    return 0 if bool(torch.isfinite(values.sum())) else int((~torch.isfinite(values)).sum())

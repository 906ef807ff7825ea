"""The matrix that a module applies: the stored one where that is it, else the one that takes input to output.

A weight that is read says something of a model only if the model computes with it. A linear module is asked
once: ``module(x) = W x + b`` on a drawn ``x``, up to the rounding of its precision. Under an adapter that is
not merged, a parametrization or a hook it need not hold; then the module is applied to the identity, and what
comes out, less what comes out of zero, is the matrix, provided that it holds on another ``x``. What is not
linear (thresholds, quantized activations) applies no matrix and is refused by name.
The 3-D tensors of experts are compared through the recomputation of the whole mixture (``experts``).

Shapes: W [out, in], x [1, n, in]; of experts x [tokens, d].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from sparsescope.errors import SubjectError
from sparsescope.models.provenance.beyond_weights import LIBRARIES
from sparsescope.models.structure.experts import expert_output, is_fused, is_transposed, sizes, takes_routing
from sparsescope.models.structure.parameters import ParameterSite, read
from sparsescope.models.structure.roles import features, is_linear, submodule

if TYPE_CHECKING:
    from sparsescope.core.result import Severity

_ROWS = 4
_CHUNK = 1024  # rows of the identity that a module sees at once
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def applied(model: Any, site: ParameterSite, checked: dict[str, Any]) -> torch.Tensor:
    """Return the matrix that a module applies.

    Args:
        model: The HF model; it is as before afterwards.
        site: The matrix.
        checked: What was found of each module before; it is added to. A module is asked again when its
            weights or hooks are others.

    Returns:
        As ``parameters.read``: a view of the parameter where that is applied. Else a tensor that was
        computed, which torch refuses to write to.

    Raises:
        SubjectError: The module applies no matrix, or experts compute something else than their tensors say.
    """
    module = submodule(model, site.module_path)
    if not (is_linear(module) or is_fused(module)):
        return read(model, site)  # a router, whose output is no product alone
    mark = _mark(module)
    if mark is None or checked.get(site.module_path) != mark:
        with _undisturbed(module):
            if is_fused(module):
                _check_experts(module, site)
            elif not _is_stored(model, module, site):
                return _computed(model, module, site)
        checked[site.module_path] = _mark(module)
    return read(model, site)


def check_view(model: Any, site: ParameterSite) -> torch.Tensor:
    """Return a matrix to be written to.

    Raises:
        SubjectError: What the module applies is another one, so that writing would not do what is meant.
    """
    tensor = applied(model, site, {})
    if tensor.is_inference():
        raise SubjectError(
            "the module does not apply the matrix that it stores, so that it cannot be changed there",
            where=f"{site.name} ({site.module_path}, {_kind(submodule(model, site.module_path))})",
            allowed="modules without adapters, hooks and parametrizations",
            next_step="merge the adapter into the weights first: merge_and_unload()",
        )
    return tensor


def notes(model: Any, sites: Sequence[ParameterSite]) -> tuple[tuple[Severity, str], ...]:
    """Say of which modules another matrix is read than the stored one, as notes of every result."""
    found = not_views(model, sites)
    if not found:
        return ()
    said = (
        f"{len(found)} modules, {found[0]} first, do not apply the matrix that they store: where weights are "
        "read, it is the matrix that takes their input to their output (adapters included)."
    )
    return (("info", said),)


def not_views(model: Any, sites: Sequence[ParameterSite]) -> list[str]:
    """Paths of the modules whose matrix is computed, because it is not the stored one."""
    paths: dict[str, ParameterSite] = {}
    for site in sites:
        module = submodule(model, site.module_path)
        # What a library made, and nobody changed, needs no check here
        if is_linear(module) and (_mark(module) is None or _changed(module)):
            paths.setdefault(site.module_path, site)
    found = []
    for path, site in paths.items():
        module = submodule(model, path)
        try:
            with _undisturbed(module):
                if not _is_stored(model, module, site):
                    _computed(model, module, site)
                    found.append(path)
        except SubjectError:  # reading it says so
            continue
    return found


def _mark(module: Any) -> tuple[Any, ...] | None:
    """What a module computes with, as far as it can be told without computing; None for modules of
    other packages, which are asked every time.
    """
    if type(module).__module__.partition(".")[0] not in LIBRARIES:
        return None
    tensors = (*module.parameters(), *module.buffers())
    marks: list[Any] = [id(module), type(module)]
    marks += [(id(t), t.data_ptr(), None if t.is_inference() else t._version) for t in tensors]
    for part in module.modules():
        marks += [id(hook) for name in _HOOKS for hook in _others(getattr(part, name)).values()]
        marks += [(name, id(value)) for name, value in sorted(vars(part).items()) if callable(value)]
    return tuple(marks)


def _changed(module: Any) -> bool:
    """Whether a module has hooks, functions or parts that its class does not have by itself."""
    hooks = any(_others(getattr(part, name)) for part in module.modules() for name in _HOOKS)
    weight = getattr(module, "weight", None)
    return hooks or "forward" in vars(module) or not isinstance(weight, torch.nn.Parameter)


def _others(hooks: dict[int, Any]) -> dict[int, Any]:
    """Hooks without those of a pass of ours that is going on, which must not see what is tried here."""
    return {key: hook for key, hook in hooks.items() if not _ours(hook)}


def _ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "sparsescope"


@contextmanager
def _undisturbed(module: Any) -> Iterator[None]:
    """Run a module by itself: no dropout, no gradient, no hook of a pass that is going on, no mask of sparse
    inference, whose matrix is what it applies to the inputs that it keeps; afterwards all is as before.
    """
    parts = list(module.modules())
    training = [part for part in parts if part.training]
    masking = [part for part in parts if getattr(part, "masks_inputs", False)]
    hooks = [(part, name, getattr(part, name)) for part in parts for name in _HOOKS]
    try:
        for part in training:
            part.training = False
        for part in masking:
            part.masks_inputs = False
        for part, name, found in hooks:
            if len(_others(found)) < len(found):
                setattr(part, name, type(found)(_others(found)))
        with torch.inference_mode():
            yield
    finally:
        for part, name, found in hooks:
            setattr(part, name, found)
        for part in masking:
            part.masks_inputs = True
        for part in training:
            part.training = True


def _is_stored(model: Any, module: Any, site: ParameterSite) -> bool:
    """Whether a linear module applies the matrix that it stores."""
    n_out, n_in = features(module)
    x = _drawn((1, _ROWS, n_in), model, module)
    found = _output(module, x, site)  # before reading: a pre-hook may make the weight
    weight = getattr(module, "weight", None)
    held = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    if not isinstance(weight, torch.Tensor) or id(weight) not in held or not weight.is_floating_point():
        return False
    matrix = read(model, replace(site, rows=None))
    if tuple(matrix.shape) != (n_out, n_in) or matrix.dtype != x.dtype:
        return False
    bias = getattr(module, "bias", None)
    if _close(found, linear(x, matrix, bias if isinstance(bias, torch.Tensor) else None), n_in):
        return True
    return _close(found, linear(x, matrix) + _output(module, torch.zeros_like(x), site), n_in)


def _computed(model: Any, module: Any, site: ParameterSite) -> torch.Tensor:
    """The matrix that takes the input of a module to its output.

    Raises:
        SubjectError: There is none.
    """
    _, n_in = features(module)
    with _undisturbed(module):
        x = _drawn((1, _ROWS, n_in), model, module, seed=1)
        bias = _output(module, torch.zeros_like(x), site)[:, :1]
        rows = []
        for begin in range(0, n_in, _CHUNK):
            count = min(_CHUNK, n_in - begin)
            units = torch.zeros(1, count, n_in, dtype=x.dtype, device=x.device)
            units[0, torch.arange(count), begin + torch.arange(count)] = 1
            rows.append((_output(module, units, site) - bias)[0])
        matrix = torch.cat(rows).T.contiguous()
        found, expected = _output(module, x, site), linear(x, matrix) + bias
        if not _close(found, expected, n_in, roundings=2):
            off = (found - expected).float().norm() / expected.float().norm()
            raise SubjectError(
                "the module applies no matrix: its output is not linear in its input, as with quantized "
                "activations or thresholds",
                where=f"{site.name} ({site.module_path}, {_kind(module)})",
                allowed="modules that compute W x + b",
                got=f"an output that differs from the nearest matrix by {float(off):.2g} of its norm",
                next_step="load the model without quantization, or read the subject before it was changed",
            )
        if site.rows is not None:
            matrix = matrix[slice(*site.rows)]
        return matrix.clone()


def _check_experts(module: Any, site: ParameterSite) -> None:
    """Compare a mixture with what its tensors say; every expert gets a token.

    Raises:
        SubjectError: They differ.
    """
    n_experts, width = sizes(module)
    top_k = min(2, n_experts)
    tokens = -(-n_experts // top_k)
    weight = module.down_proj
    if not weight.is_floating_point() or weight.element_size() == 1:
        return  # reading it says so
    d_model = int(weight.shape[2 if is_transposed(module) else 1])
    x = _draw((tokens, d_model), weight.dtype, weight.device, 0)
    if not takes_routing(module):  # every expert runs on a stretch of the rows that it is given (Llama 4)
        x = _draw((n_experts * tokens, d_model), weight.dtype, weight.device, 0)
        expected = expert_output(module, x, None, None, lambda expert, hidden, rows: hidden)
        _experts_agree(module, site, _output(module, x, site).reshape(x.shape), expected, d_model + width)
        return
    index = (torch.arange(tokens * top_k, device=weight.device) % n_experts).reshape(tokens, top_k)
    shares = torch.full((tokens, top_k), 1 / top_k, dtype=weight.dtype, device=weight.device)
    found = _output(module, x, site, index, shares)
    expected = expert_output(module, x, index, shares, lambda expert, hidden, rows: hidden)
    _experts_agree(module, site, found, expected, d_model + width)


def _experts_agree(
    module: Any, site: ParameterSite, found: torch.Tensor, expected: torch.Tensor, terms: int
) -> None:
    """Refuse experts that compute something else than their tensors say."""
    if not _close(found, expected, terms, roundings=4):
        off = (found - expected).float().norm() / expected.float().norm()
        raise SubjectError(
            "the experts compute something else than the matrices that they store say",
            where=f"{site.name} ({site.module_path}, {_kind(module)})",
            allowed="experts without adapters, hooks and quantized activations",
            got=f"an output that differs by {float(off):.2g} of its norm",
            next_step="merge adapters into the weights: merge_and_unload()",
        )


def _output(module: Any, x: torch.Tensor, site: ParameterSite, *more: torch.Tensor) -> torch.Tensor:
    """Call a module.

    Raises:
        SubjectError: It cannot be called, as where weights are packed and the library that reads them is
            not for this device.
    """
    try:
        output = module(x, *more)
    except Exception as error:
        weight = getattr(module, "weight", None)
        packed = isinstance(weight, torch.Tensor) and (
            not weight.is_floating_point() or weight.element_size() == 1
        )
        raise SubjectError(
            "the weights are packed by a quantization library and cannot be read as numbers"
            if packed
            else "the module cannot be applied by itself, so that what its weight does is not known",
            where=f"{site.name} ({site.module_path}, {_kind(module)})",
            allowed="float32, bfloat16, float16" if packed else "modules that take one input",
            got=str(getattr(weight, "dtype", "")) if packed else f"{type(error).__name__}: {error}"[:300],
            next_step="load the model without quantization" if packed else "merge adapters, or remove hooks",
        ) from error
    if not isinstance(output, tuple | list):
        found: torch.Tensor = output
        return found
    # The router of Llama 4 gives its scores second, after what it makes of them
    second = site.role == "mlp.router.weight" and [part.shape for part in output] == [output[0].shape] * 2
    return output[1 if second else 0]


def _drawn(shape: tuple[int, ...], model: Any, module: Any, seed: int = 0) -> torch.Tensor:
    """A drawn input in the precision and on the device of a module."""
    held = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    usual = [tensor for tensor in held if tensor.element_size() > 1]
    like = (usual or held or [next(p for p in model.parameters() if p.is_floating_point())])[0]
    dtype = like.dtype if like.element_size() > 1 else torch.float32
    return _draw(shape, dtype, like.device, seed)


def _draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def _close(found: torch.Tensor, expected: torch.Tensor, terms: int, roundings: int = 1) -> bool:
    """Whether two outputs agree up to rounding: each number to a step of the precision, sums of ``terms`` in
    another order to that of float32.
    """
    if found.shape != expected.shape:
        return False
    step = torch.finfo(found.dtype).eps
    tolerance = roundings * step + 4 * terms**0.5 * min(step, torch.finfo(torch.float32).eps)
    found, expected = found.double(), expected.double()
    return bool((found - expected).norm() <= tolerance * expected.norm())


def _kind(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"

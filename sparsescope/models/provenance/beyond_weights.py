"""What a model computes with besides weights, configuration and the code of its classes: hooks, methods that
were replaced in memory, adapters.

What can be hashed joins ``identity.config_hash``: the attributes of modules that were put into a model, such
as the active adapters, merged flags and scalings of a LoRA layer. What cannot be hashed, a function with
whatever it closes over, is named: a run that it computes has no identity, so that none is stored or opened
for it. What the libraries put there themselves (dispatch over devices, pruning masks) is named as well.

Nothing of a model as a library builds it is found, so that its hash is the one of its weights and
configuration alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch.nn.modules import module as _torch_module

from sparsescope.models.provenance.tensor_bytes import tensor_digest

#: Their hooks belong to the architecture, to the way a model is spread over devices, or to a pass
#: that is running.
LIBRARIES = frozenset({"torch", "transformers", "accelerate", "sparsescope"})
_EDITS = "sparsescope.models.structure.edits"  # its hooks change what a model computes
_HOOKS = {
    "forward pre-hook": "_forward_pre_hooks",
    "forward hook": "_forward_hooks",
    "backward pre-hook": "_backward_pre_hooks",
    "backward hook": "_backward_hooks",
}
# Functions that a library keeps in a module and that change how it computes, not what.
_SETTINGS = frozenset({"_gradient_checkpointing_func", "_compiled_call_impl"})
_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))
_DEEPEST = 6

CURE = (
    "to have it stored, declare a variant (subject.copy(), then with_variant(..., adds=HASH OF WHAT IT "
    "COMPUTES WITH)), merge adapters into the weights (merge_and_unload()), or save the changed model and "
    "load it again"
)


@dataclass(frozen=True, slots=True)
class Found:
    """Something in a model that its weights, configuration and classes do not show.

    Attributes:
        path: HF path of the module; ``*`` for every module.
        what: What it is there, for example ``forward hook``.
        name: Where its code is from, for example ``my_package.sparse.threshold``.
        value: The object itself; by it the same one is known again.
    """

    path: str
    what: str
    name: str
    value: Any

    @property
    def key(self) -> tuple[str, str, str]:
        """What a copy of it has too."""
        return self.path, self.what, self.name

    def same(self, other: Found) -> bool:
        """Whether the other one is this very object in the same place."""
        return self.key == other.key and self.value is other.value


@dataclass(slots=True)
class Scan:
    """What was found in a model.

    Attributes:
        unhashed: What no hash covers.
        libraries: What libraries put there.
        facts: What joins the hash, as JSON values; empty for a model as a library builds it.
    """

    unhashed: list[Found] = field(default_factory=list)
    libraries: list[Found] = field(default_factory=list)
    facts: list[Any] = field(default_factory=list)


class _Opaque(Exception):
    """A value that cannot be hashed."""


def scan(model: torch.nn.Module) -> Scan:
    """Look through a model for what its weights, configuration and classes do not show.

    Args:
        model: The HF model; it is not changed.
    """
    scanner = _Scanner(model)
    for kind, name in _HOOKS.items():
        for hook in getattr(_torch_module, f"_global{name}", {}).values():
            scanner.hook("*", kind, hook)
    scanner.registered()
    classes: set[type] = set()
    for path, module in model.named_modules():
        for kind, name in _HOOKS.items():
            for hook in getattr(module, name, {}).values():
                scanner.hook(path, kind, hook)
        scanner.held(path, module)
        if type(module) not in classes:
            classes.add(type(module))
            scanner.patched_class(path, type(module))
        if _top(type(module).__module__) not in scanner.home:
            scanner.own(path, module)
    return scanner.found


def sentences(found: Sequence[Found]) -> list[str]:
    """Say what was found, one sentence part for each thing, however many modules have it."""
    places: dict[tuple[str, str], list[str]] = {}
    for one in found:
        places.setdefault((one.what, one.name), []).append(one.path)
    said = []
    for (what, name), paths in places.items():
        first = {"*": "every module", "": "the model"}.get(paths[0], paths[0])
        more = f" and {len(paths) - 1} other modules" if len(paths) > 1 else ""
        said.append(f"{what} {name} at {first}{more}")
    return said


class _Scanner:
    """Looks through one model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.found = Scan()
        self.paths = {id(module): path for path, module in model.named_modules()}
        tensors = (*model.named_parameters(), *model.named_buffers())
        self.tensors = {id(tensor): name for name, tensor in tensors}
        # Classes of these are the architecture: the configuration says what they hold
        self.home = LIBRARIES | {"transformers_modules", _top(type(model).__module__)}

    def hook(self, path: str, kind: str, hook: Any) -> None:
        """Sort a hook."""
        origin = _origin(hook)
        if origin == _EDITS:
            self.found.unhashed.append(Found(path, "edit that is going on", "Subject.edit", hook))
        elif _top(origin) != "sparsescope":
            self._sort(path, kind, hook)

    def registered(self) -> None:
        """Sort the functions that the configuration names: a user can register an attention of any name."""
        from transformers.integrations import moe
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        config = getattr(self.model, "config", None)
        registries = {
            "attention": (ALL_ATTENTION_FUNCTIONS, "_attn_implementation"),
            "experts": (getattr(moe, "ALL_EXPERTS_FUNCTIONS", {}), "_experts_implementation"),
        }
        for kind, (registry, key) in registries.items():
            name = getattr(config, key, None)
            function = registry.get(name) if isinstance(name, str) else None
            if function is not None and (foreign := self.unknown(function)):
                self.found.unhashed.append(Found("", f"{kind} function {name!r},", foreign, function))

    def held(self, path: str, module: torch.nn.Module) -> None:
        """Sort the functions that a module holds itself, in place of those of its class or beside them."""
        for name, value in sorted(vars(module).items()):
            if name in _OF_EVERY_MODULE | _SETTINGS or isinstance(value, type):
                continue
            if isinstance(value, torch.nn.Module):
                if id(value) not in self.paths:  # hidden from the tree, and its weights from the hash
                    self.found.unhashed.append(Found(path, f"module {name},", _name(type(value)), value))
            elif name == "_hf_hook":
                for hook in getattr(value, "hooks", (value,)):
                    if _top(type(hook).__module__) not in LIBRARIES:
                        self.found.unhashed.append(Found(path, "hook", _name(type(hook)), hook))
            elif callable(value):
                self._function(path, module, name, value)

    def _function(self, path: str, module: torch.nn.Module, name: str, value: Any) -> None:
        """Sort one function that a module holds."""
        shadows = hasattr(type(module), name)
        what = f"replaced method {name}," if shadows else f"function {name},"
        foreign = self.unknown(value)
        if foreign:
            if not _of_its_package(value, type(module)):
                self.found.unhashed.append(Found(path, what, foreign, value))
            return
        fact = self._described(module, name, value)
        if fact:
            self.found.facts.append([path, name, *fact])
        if shadows and (fact or not isinstance(value, MethodType)):
            self.found.libraries.append(Found(path, what, _name(value), value))

    def _described(self, module: torch.nn.Module, name: str, value: Any) -> list[Any]:
        """What of a function of a library ``config_hash`` does not see by its name; empty for nothing."""
        if isinstance(value, MethodType):
            own = value.__self__ is module and getattr(type(module), value.__name__, None) is value.__func__
            if own and (name == value.__name__ or not hasattr(type(module), name)):
                return []  # its own method, also kept under another name as accelerate does
            return [_name(value), self._plain(value.__self__)]
        if isinstance(value, partial):
            arguments = [argument for argument in value.args if argument is not module]
            if not arguments and not value.keywords:
                return []  # a wrapper of the module itself
            usual = _as_made(type(module), name)  # type: ignore[arg-type]  # its hash is that of any class
            if isinstance(usual, partial) and (usual.func, usual.args, usual.keywords) == (
                value.func,
                value.args,
                value.keywords,
            ):
                return []  # as an activation of transformers holds its function
            try:
                return [_name(value.func), self._plain(arguments), self._plain(value.keywords)]
            except _Opaque:
                return [_name(value.func)]
        return []

    def patched_class(self, path: str, cls: type) -> None:
        """Find a ``forward`` that was put into a class of another package."""
        trusted = self.home | {_top(base.__module__) for base in cls.__mro__}
        for name in ("forward", "__call__"):
            function = getattr(cls, name, None)
            if function is not None and (foreign := self.unknown(function, trusted)):
                what = f"method {name} of class {cls.__qualname__},"
                self.found.unhashed.append(Found(path, what, foreign, function))

    def own(self, path: str, module: torch.nn.Module) -> None:
        """Take the attributes of a module that does not belong to the architecture, such as a LoRA layer."""
        cls = type(module)
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            # Its code has no name by which it could be found again
            self.found.unhashed.append(Found(path, "class that was made in memory,", _name(cls), cls))
        facts: dict[str, Any] = {}
        for name, value in vars(module).items():
            if name in _OF_EVERY_MODULE or (callable(value) and not isinstance(value, torch.nn.Module)):
                continue  # functions are sorted above
            try:
                facts[name] = self._plain(value)
            except _Opaque:
                self.found.unhashed.append(Found(path, f"attribute {name},", _name(type(value)), value))
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            facts[name] = None if buffer is None else _digest(buffer)
        self.found.facts.append([path, _name(cls), facts])

    def _sort(self, path: str, what: str, value: Any) -> None:
        foreign = self.unknown(value)
        target = self.found.unhashed if foreign else self.found.libraries
        target.append(Found(path, what, foreign or _name(value), value))

    def unknown(
        self, value: Any, trusted: frozenset[str] = LIBRARIES, seen: frozenset[int] = frozenset()
    ) -> str | None:
        """Name of the first thing in a function whose content no hash covers; None where there is none.

        The place of its code decides, not its name: ``functools.wraps`` gives a function the name of another.
        """
        if id(value) in seen:  # a function that refers to itself
            return None
        inner: list[Any] = [wrapped] if (wrapped := _wrapped(value)) is not None else []
        if isinstance(value, partial):
            inner += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            inner += [value.__func__, value.__self__]
        elif isinstance(value, FunctionType):
            if _top(_origin(value)) not in trusted:
                return _name(value)
            inner += [part for part in _closed_over(value) if callable(part)]
        elif isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            inner += [] if owner is None or isinstance(owner, ModuleType) else [owner]
        elif isinstance(value, torch.nn.Module):
            return None if id(value) in self.paths else _name(type(value))
        elif isinstance(value, torch.Tensor):
            return None if id(value) in self.tensors else "a tensor"
        elif isinstance(value, type):
            return None if _top(value.__module__) in trusted | {"builtins"} else _name(value)
        elif not isinstance(value, str | int | float | bool | None) and not inner:
            known = _top(type(value).__module__) in trusted | {"builtins"}
            return None if known and type(value).__name__ != "ScriptFunction" else _name(type(value))
        seen |= {id(value)}
        return next((name for part in inner if (name := self.unknown(part, trusted, seen))), None)

    def _plain(self, value: Any, depth: int = 0) -> Any:
        """Return a value as JSON.

        Raises:
            _Opaque: It holds something that has no such form.
        """
        if isinstance(value, str | int | float | bool | None):
            return value
        if isinstance(value, torch.Tensor):
            return ["tensor", self.tensors.get(id(value)) or _digest(value)]
        if isinstance(value, torch.nn.Module) and id(value) in self.paths:
            return ["module", self.paths[id(value)]]
        if isinstance(value, torch.device):
            return "device"  # where it lives changes nothing
        if isinstance(value, torch.dtype | Enum):
            return str(value)
        if isinstance(value, type):
            return _name(value)
        if depth >= _DEEPEST:
            raise _Opaque
        if isinstance(value, Mapping):
            return {str(key): self._plain(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(entry, depth + 1) for entry in value]
        if isinstance(value, set | frozenset):
            return sorted(str(self._plain(entry, depth + 1)) for entry in value)
        if callable(value) and isinstance(value, FunctionType | BuiltinFunctionType | MethodType | partial):
            if self.unknown(value):
                raise _Opaque
            return _name(value)
        cls = type(value)
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__ or not hasattr(value, "__dict__"):
            raise _Opaque
        return [_name(cls), self._plain(vars(value), depth + 1)]


@cache
def _as_made(cls: type, name: str) -> Any:
    """What a new module of a class, made without arguments, holds under a name; None where it cannot be
    made like that.
    """
    try:
        return vars(cls()).get(name)
    except Exception:  # whatever a constructor raises without its arguments
        return None


def _top(module: str) -> str:
    """The package that a module is in."""
    return module.partition(".")[0]


def _wrapped(value: Any) -> Any:
    """What a decorated function says that it decorates."""
    if isinstance(value, type | torch.nn.Module | torch.Tensor | MethodType):
        return None
    return getattr(value, "__dict__", {}).get("__wrapped__")


def _closed_over(function: FunctionType) -> Iterator[Any]:
    """What a function carries besides its code."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _origin(value: Any) -> str:
    """The module that the code of a hook or function is in."""
    if isinstance(value, partial):
        return _origin(value.func)
    if isinstance(value, MethodType):
        return _origin(value.__func__)
    if isinstance(value, FunctionType):
        return str(value.__globals__.get("__name__", ""))
    if isinstance(value, BuiltinFunctionType):
        return str(value.__module__)
    return str(type(value).__module__)


def _name(value: Any) -> str:
    """Where the code of something is from, for people and for the hash."""
    if isinstance(value, partial):
        return f"partial of {_name(value.func)}"
    if isinstance(value, MethodType):
        return _name(value.__func__)
    if isinstance(value, FunctionType):
        return f"{_origin(value)}.{value.__code__.co_qualname}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else _name(type(value))


def _of_its_package(value: Any, cls: type) -> bool:
    """Whether a function is one that the package of a class has under a name, as a class of its own
    architecture holds its activation.
    """
    return (
        isinstance(value, FunctionType)
        and value.__closure__ is None
        and not value.__defaults__
        and "<" not in value.__qualname__
        and _top(_origin(value)) == _top(cls.__module__) != "__main__"
    )


def _digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor that is neither parameter nor stored buffer."""
    head = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    return hashlib.sha256(head + tensor_digest(tensor)).hexdigest()

"""Code that a record names as text: modules are imported when they are used, functions looked up here.

Where a module or a function is not there, or takes other arguments, the package that declares the record is
wrong. The error then says which record, which module, what was expected and where the recipe stands.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from sparsescope.errors import SparsescopeError, SpecError


@dataclass(frozen=True, slots=True)
class Owner:
    """What names code.

    Attributes:
        name: As messages call it, for example ``"analysis hot_units"``.
        guide: Heading of the recipe in CONTRIBUTING.md.
        check: Function of ``sparsescope.testing`` that tries all of it; empty where there is none.
    """

    name: str
    guide: str
    check: str = ""

    @property
    def next_step(self) -> str:
        """Where the recipe stands, and what tries the code."""
        more = f"; sparsescope.testing.{self.check} tries all of it" if self.check else ""
        return f'see "{self.guide}" in CONTRIBUTING.md{more}'


def module_of(name: str, owner: Owner, field: str) -> ModuleType:
    """Import a module.

    Args:
        name: Its dotted name.
        owner: What names it.
        field: Where it is named, for example ``"compute"``.

    Raises:
        SpecError: It cannot be imported.
    """
    try:
        return import_module(name)
    except SparsescopeError:
        raise
    except Exception as error:  # a package may raise anything
        raise SpecError(
            f"the module that {owner.name} names as {field} cannot be imported",
            where=f"module {name or repr(name)}",
            allowed="the dotted name of a module of an installed package",
            got=f"{type(error).__name__}: {error}",
            next_step=f"the trace: python -c 'import {name}'; {owner.next_step}" if name else owner.next_step,
        ) from error


def function_of(module: ModuleType, call: str, owner: Owner, field: str) -> Any:
    """Look up a function of a module.

    Args:
        module: The module.
        call: How it is called, for example ``"result(params, context, accumulator)"``.
        owner: What names the module.
        field: Where it is named.

    Raises:
        SpecError: There is no such function, or it cannot be called so.
    """
    name = call.partition("(")[0]
    found = getattr(module, name, None)
    where = f"module {module.__name__}, which {owner.name} names as {field}"
    if not callable(found):
        raise SpecError(
            f"{owner.name} has no function {name}",
            where=where,
            allowed=f"def {call}",
            got=_functions(module) if found is None else f"{name} is a {type(found).__name__}",
            next_step=owner.next_step,
        )
    if not takes(found, call):
        raise SpecError(
            f"the function {name} of {owner.name} takes other arguments",
            where=where,
            allowed=f"def {call}",
            got=f"def {name}{inspect.signature(found)}",
            next_step=owner.next_step,
        )
    return found


def named_function(path: str, call: str, owner: Owner, field: str) -> Any:
    """Look up a function that is named ``module:function``; see ``function_of``.

    Args:
        path: The name.
        call: Its arguments, for example ``"(subject, params)"``.
        owner: What names it.
        field: Where it is named.
    """
    module, _, name = path.partition(":")
    return function_of(module_of(module, owner, field), f"{name}{call}", owner, field)


def takes(function: Any, call: str) -> bool:
    """Whether a function can be called as written, for example ``"finish()"``; True where it does not say."""
    arguments = [part for part in call.partition("(")[2].rstrip(")").split(",") if part.strip()]
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _functions(module: ModuleType) -> str:
    """The functions and classes that a module defines itself."""
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return f"only {', '.join(own[:12])}" if own else "no function"

"""Roles of inputs: how each is given, what is known of it unopened, how it is opened, what its identity is.

A role is registered by its record. Built-in are ``subject``, ``series`` and ``text`` (``runner/inputs.py``);
a package adds one by the entry point group ``sparsescope.inputs``. The record is light: its ``opener`` is a
module that is imported when an input is opened.

An opener has five functions, and may have four more::

    open(given, opened, store)      what an analysis gets: from a name, or from what is opened already
    identity(value, *others)        plain values; "id" for people, "digest" for the digest of the
                                    run (see ``Role.slot``)
    capabilities(value)             what analyses can ask of it, a frozenset of names
    words(value, opened, flag)      options of the command line that give it again, None where there are none
    python(value)                   how it is given in Python
    carried(opened)                 what is read where nobody gave one, because another input carries
                                    it; None for nothing
    artifact(value)                 the artifact behind it; the run names it among those that it read
    notes(value)                    what every result of it says, as pairs of severity and sentence
    unstorable(value)               what the identity does not cover, a clause each; then no run of it is
                                    stored, or opened for it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from sparsescope.core.inputs import ROLE_NAME, Known
from sparsescope.core.named_code import Owner, function_of, module_of, named_function
from sparsescope.errors import DependencyError, unknown_name

ENTRY_POINT_GROUP = "sparsescope.inputs"
#: What an opener defines.
OPENER = (
    "open(given, opened, store)",
    "identity(value)",
    "capabilities(value)",
    "words(value, opened, flag)",
    "python(value)",
)


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of input.

    Args:
        name: Its name in ``Analysis.inputs``; also its keyword in ``ss.run``.
        title: What it is, for people: ``"model"``.
        summary: How it is given, one sentence.
        opener: Module with the functions that the head of this file describes.
        known: ``"module:function"`` that says, without torch and without a network, what is known of an
            input that is given by name: ``Known``, or None where the name means none of this role. When
            empty, any name may be one.
        option: Option of the command line that it shares with another role; ``--NAME`` when empty.
        slot: Field of the stored spec that holds its identity: ``"subject"``, ``"corpus"``, or ``"inputs"``.
    """

    name: str
    title: str
    summary: str
    opener: str
    known: str = ""
    option: str = ""
    slot: Literal["subject", "corpus", "inputs"] = "inputs"

    @property
    def flag(self) -> str:
        """The option of the command line, for example ``--subject``."""
        return "--" + (self.option or self.name.replace("_", "-"))

    @property
    def owner(self) -> Owner:
        """How messages about its code call it."""
        return Owner(f"input {self.name}", "Add an input, a variant, an artifact")

    def functions(self) -> Any:
        """Import and return the opener.

        Raises:
            SpecError: It cannot be imported, or lacks a function.
        """
        module = module_of(self.opener, self.owner, "opener")
        for call in OPENER:
            function_of(module, call, self.owner, "opener")
        return module

    def known_by(self, name: str) -> Known | None:
        """What is known of an input that is given by this name; None where the name means
        none of this role.
        """
        if not self.known:
            return Known(self.name, name)
        found: Known | None = named_function(self.known, "(name)", self.owner, "known")(name)
        return found


@cache
def roles() -> Mapping[str, Role]:
    """Return every role by name: built-in ones, then those of entry points.

    A plug-in that cannot be imported stays listed with its error as summary; using it raises.
    """
    # By name: this layer imports nothing above it
    built_in = import_module("sparsescope.runner.inputs").BUILT_IN
    found: dict[str, Role] = {role.name: role for role in built_in}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in found:
            continue
        try:
            role = point.load()
            if (
                not isinstance(role, Role)
                or not re.fullmatch(ROLE_NAME, role.name)
                or role.name != point.name
            ):
                raise TypeError(f"{point.value} is no Role of the name {point.name!r}")
            if role.slot != "inputs" or role.option:
                raise TypeError("the fields slot and option are those of built-in roles; leave them out")
        except Exception as error:  # a broken plug-in must not break the others
            role = Role(point.name, point.name, f"cannot be imported: {error}", opener="")
        found[point.name] = role
    return found


def role(name: str) -> Role:
    """Return the role of a name.

    Raises:
        SpecError: If there is none.
        DependencyError: If the package that registers it cannot be imported.
    """
    if name not in roles():
        raise unknown_name(
            "role of inputs",
            name,
            roles(),
            next_step=f"a package registers it by the entry point {ENTRY_POINT_GROUP}",
        )
    found = roles()[name]
    if not found.opener:
        raise DependencyError(
            f"the plug-in that registers input {name!r} cannot be used: {found.summary}",
            where=f"entry point {ENTRY_POINT_GROUP}: {name}",
            next_step="repair or uninstall the package that declares it",
        )
    return found


def told(inputs: Mapping[str, tuple[Any, ...]], function: str) -> list[Any]:
    """What the inputs of a run say by one of the functions of their openers that give several things.

    Args:
        inputs: What was opened, by role.
        function: Its name; an opener need not have it.
    """
    openers = [(role(name).functions(), values) for name, values in inputs.items()]
    return [
        one
        for opener, values in openers
        if hasattr(opener, function)
        for value in values
        for one in getattr(opener, function)(value)
    ]


def known(name: str, option: str = "subject") -> list[Known]:
    """Say what a name that is given by an option of the command line may be, for ``Analysis.fits``.

    Args:
        name: What was given.
        option: The option, without dashes.

    Returns:
        One entry for each role that the name can fill: the name of a shipped series is its
        last checkpoint too.
    """
    asked = [
        entry.known_by(name) for entry in roles().values() if entry.flag == f"--{option.replace('_', '-')}"
    ]
    return [entry for entry in asked if entry is not None]

"""Subjects made from other subjects by name: ``KIND@ARGS:NAME``, without importing torch.

ARGS are ``3``, the value of the first parameter of the kind, or ``seed=3,other=x``, or both in this order;
they are left out for the defaults. Variants nest from the outside in: ``a@1:b@2:smollm2-135m@main`` is a of b
of smollm2-135m. An existing file or folder whose name looks like this is that file or folder, a registered
subject that subject.

A kind is a record (``VariantKind``); its function makes the subject (``Subject.with_variant``). Third parties
add kinds through the entry point group ``sparsescope.variants``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from sparsescope.core.files import given_path
from sparsescope.core.named_code import Owner, named_function
from sparsescope.core.spec import Params, make_params, read_arguments
from sparsescope.core.variant import argument_text, arguments_text
from sparsescope.errors import DependencyError, SpecError, SubjectError, unknown_name
from sparsescope.models.zoo.registered import registered_subjects

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

ENTRY_POINT_GROUP = "sparsescope.variants"
_KIND = r"[a-z][a-z0-9_]{1,63}"  # a single letter is the drive of a path
_PREFIX = re.compile(rf"({_KIND})(?:@([^:]*))?:(?!//)(.*)", re.DOTALL)
_NUMBERED = re.compile(r"(.*)@([0-9]+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class VariantKind:
    """A way to make a subject from another.

    Attributes:
        name: Registered name, lower case.
        summary: One line for listings.
        params: Its parameters; the first one may be given without its name.
        make: ``"module:function"`` or a callable. It takes a subject and the parameters, leaves that subject
            as it is, and returns another one that ``Subject.with_variant`` was called on with this name.
        numbered: Whether a last ``@3`` of digits is the first parameter too: ``shuffled:NAME@3``. Such a kind
            is not made of itself, where the number could belong to either.
        broken: Why it cannot be used; empty where it can.
    """

    name: str
    summary: str
    params: type[Params]
    make: str | Callable[[Subject, Any], Subject]
    numbered: bool = False
    broken: str = ""

    @property
    def example(self) -> str:
        """How it is written, with the default of its first parameter."""
        fields = self.params.model_fields
        first = next(iter(fields), None)
        if first is None:
            return f"{self.name}:NAME"
        return (
            f"{self.name}@"
            f"{first.upper() if fields[first].is_required() else argument_text(fields[first].default)}:NAME"
        )

    def read(self, text: str | None) -> Params:
        """Return the parameters that ARGS set.

        Args:
            text: What stands between ``@`` and ``:``; None where nothing does.

        Raises:
            SpecError: ARGS are malformed, or name an unknown parameter or a wrong value.
        """
        return read_arguments(
            self.params, text, name=self.name, example=self.example, kind="variant",
            next_step=f"see: sparsescope show {self.name}",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class VariantRequest:
    """One variant that a name asks for: its kind and its parameters."""

    kind: VariantKind
    params: Params

    def of(self, subject: Subject) -> Subject:
        """Make the variant of a subject, which stays as it is.

        Raises:
            SpecError: The function of the kind is missing or broke its contract.
        """
        make = self.kind.make
        if isinstance(make, str):
            owner = Owner(
                f"variant {self.kind.name}", "Add an input, a variant, an artifact", "check_variant"
            )
            make = named_function(make, "(subject, params)", owner, "make")
        made = make(subject, self.params)
        declared = getattr(made, "variant", None)
        if declared is None or declared.kind != self.kind.name or declared.parent.id != subject.id:
            raise SpecError(
                f"the function of variant {self.kind.name!r} did not declare what it made",
                where=str(self.kind.make),
                allowed=f"a subject returned by .with_variant({self.kind.name!r}, ..., of=subject)",
                got="no declaration" if declared is None else declared.text,
            )
        made.id = self._id(subject.id)
        return made

    def _id(self, id: str) -> str:
        """The shortest name that ``read_name`` reads as this variant of the subject ``id``."""
        values, fields = self.params.model_dump(mode="json"), self.kind.params.model_fields
        defaults = self.kind.params.model_construct().model_dump(mode="json")
        changed = {
            name: value for name, value in values.items() if name not in defaults or value != defaults[name]
        }
        if not changed:
            return f"{self.kind.name}:{id}"
        first = next(iter(fields))
        if list(changed) != [first]:
            return f"{self.kind.name}@{arguments_text(changed)}:{id}"
        value = argument_text(changed[first])
        return f"{self.kind.name}:{id}@{value}" if self.kind.numbered else f"{self.kind.name}@{value}:{id}"


#: Kinds of rooms above this one: modules with a ``KIND``, imported when kinds are listed, and light.
_ABOVE = ("sparsescope.inference.variant",)


@cache
def _built_in() -> tuple[VariantKind, ...]:
    from sparsescope.models.controls import ShuffledParams

    shuffled = VariantKind(
        "shuffled",
        "a control: the entries of every MLP input matrix are permuted, biases are zero; "
        "shuffled:NAME@3 takes seed 3",
        ShuffledParams,
        "sparsescope.models.controls:make_control",
        numbered=True,
    )
    router = VariantKind(
        "shuffled_router",
        "a control of mixtures of experts: the entries of every row of every router are permuted",
        ShuffledParams,
        "sparsescope.models.controls:make_router_control",
    )
    return shuffled, router, *(import_module(name).KIND for name in _ABOVE)


def registered_variants() -> dict[str, VariantKind]:
    """Return every kind of variant by name: built-in ones, then those of entry points.

    A plug-in that cannot be imported stays listed and says so; using it raises. A plug-in cannot
    replace a built-in name.
    """
    kinds = {kind.name: kind for kind in _built_in()}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in kinds:
            continue
        try:
            kind = point.load()
            if not isinstance(kind, VariantKind):
                raise TypeError(f"{point.value} is a {type(kind).__name__}, not a VariantKind")
            if kind.name != point.name or not re.fullmatch(_KIND, kind.name):
                raise ValueError(
                    f"the name {kind.name!r} is not that of the entry point, or does not match {_KIND}"
                )
        except Exception as error:  # a broken plug-in must not break the listing of the others
            kind = VariantKind(
                point.name, f"cannot be imported: {error}", Params, point.value, broken=str(error)
            )
        kinds[point.name] = kind
    return kinds


def find_variant(name: str) -> VariantKind:
    """Return the kind of variant called ``name``.

    Raises:
        SubjectError: If there is none; the message lists near matches.
        DependencyError: If its plug-in cannot be used.
    """
    kinds = registered_variants()
    if name not in kinds:
        raise unknown_name(
            "kind of variant",
            name,
            kinds,
            next_step="`sparsescope list variants` lists them; a name with a colon is "
            "KIND@ARGS:NAME, or an existing path",
            error=SubjectError,
        )
    kind = kinds[name]
    if kind.broken:
        raise DependencyError(
            f"the plug-in that registers variant {name!r} cannot be used: {kind.broken}",
            where=f"entry point {ENTRY_POINT_GROUP}: {name} = {kind.make}",
            next_step="repair or uninstall the package that declares it",
        )
    return kind


def make_variant(subject: Subject, kind: str, **params: Any) -> Subject:
    """Return a variant of a subject, which stays as it is: ``make_variant(subject, "shuffled", seed=3)``.

    Raises:
        SubjectError: There is no such kind, or the subject is not fit for it.
        SpecError: A parameter is not valid.
        DependencyError: The plug-in of this kind cannot be used.
    """
    found = find_variant(kind)
    return VariantRequest(found, make_params(found.params, params, analysis=kind, kind="variant")).of(subject)


def split_name(text: str) -> tuple[str, str]:
    """Split a name into its ``KIND@ARGS:`` parts and the rest; the two together are the name. Kinds
    are not looked up.
    """
    rest = text
    while (match := _PREFIX.fullmatch(rest)) is not None and not _means_itself(rest):
        rest = match[3]
    return text[: len(text) - len(rest)], rest


def read_name(text: str) -> tuple[tuple[VariantRequest, ...], str]:
    """Read the variants that a name asks for.

    Args:
        text: The name of a subject, with or without variants.

    Returns:
        The variants, the outermost first, and the name of the subject that the innermost is made of.

    Raises:
        SubjectError: A kind is unknown, or nothing is named that the variant could be made of.
        SpecError: The arguments of a kind are not valid.
        DependencyError: The plug-in of a kind cannot be used.
    """
    prefix, name = split_name(text)
    asked: list[VariantRequest] = []
    while prefix:
        match = _PREFIX.fullmatch(prefix)
        if match is None:
            raise SubjectError("the name of a variant cannot be read", where=text, got=repr(prefix))
        kind, arguments, prefix = find_variant(match[1]), match[2], match[3]
        if kind.numbered and arguments is None and (number := _NUMBERED.fullmatch(name)) is not None:
            name, arguments = number[1], number[2]
        if kind.numbered and asked and asked[-1].kind is kind:
            raise SubjectError(
                "a control is made of a subject that is none", where=text, got=f"{kind.name} of {kind.name}"
            )
        asked.append(VariantRequest(kind, kind.read(arguments)))
    if asked and not name.strip():
        raise SubjectError(
            "a variant is made of a subject",
            where=text,
            allowed=f"{asked[-1].kind.example}, with the name of a model in place of NAME",
            got=f"{name!r} in place of NAME",
            next_step="`sparsescope list subjects` lists names of models",
        )
    return tuple(asked), name


def _means_itself(text: str) -> bool:
    """Whether a name that looks like that of a variant is the name of a registered
    subject, file or folder.
    """
    places = [text, text.rpartition("@")[0]]  # the latter is empty without a revision
    return any(
        ":" in place and (place in registered_subjects() or given_path(place, "name of a subject").exists())
        for place in places
    )


def listed_variants() -> list[dict[str, str]]:
    """Return a row for each kind of variant: name, summary, example."""
    return [
        {"name": kind.name, "summary": kind.summary, "example": kind.example}
        for kind in registered_variants().values()
    ]

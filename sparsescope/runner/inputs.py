"""The roles that inputs of analyses have: how each is given, what is known of it unopened, how it is opened, what its identity is.

A role is registered by its record. Built-in are ``subject``, ``series`` and ``text``; a package adds one by the entry point
group ``sparsescope.inputs``. The record is light: its ``opener`` is a module that is imported when an input is opened.

An opener has five functions, and may have two more::

    open(given, opened, store)      what an analysis gets: from a name, or from what is opened already
    identity(value, *others)        plain values; "id" for people, "digest" for the digest of the run (see ``Role.slot``)
    capabilities(value)             what analyses can ask of it, a frozenset of names
    words(value, opened, flag)      options of the command line that give it again, None where there are none
    python(value)                   how it is given in Python
    carried(opened)                 what is read where nobody gave one, because another input carries it; None for nothing
    artifact(value)                 the artifact behind it; the run names it among those that it read
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparsescope.core.inputs import ROLE_NAME, Known
from sparsescope.errors import DependencyError, SparsescopeError, SpecError, unknown_name

if TYPE_CHECKING:
    from sparsescope.core.artifact import Store
    from sparsescope.core.registry import Analysis

ENTRY_POINT_GROUP = "sparsescope.inputs"
_OWN = frozenset({"curves", "pairs", "held_out_text"})  # what only our own trainer leaves in a series


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of input.

    Args:
        name: Its name in ``Analysis.inputs``; also its keyword in ``ss.run``.
        title: What it is, for people: ``"model"``.
        summary: How it is given, one sentence.
        opener: Module with the functions that the head of this file describes.
        known: Says, without torch and without a network, what is known of an input that is given by name; None where the
            name means none of this role. Without it, any name may be one.
        option: Option of the command line that it shares with another role; ``--NAME`` when empty.
        slot: Field of the stored spec that holds its identity: ``"subject"``, ``"corpus"``, or ``"inputs"``.
    """

    name: str
    title: str
    summary: str
    opener: str
    known: Callable[[str], Known | None] | None = None
    option: str = ""
    slot: Literal["subject", "corpus", "inputs"] = "inputs"

    @property
    def flag(self) -> str:
        """The option of the command line, for example ``--subject``."""
        return "--" + (self.option or self.name.replace("_", "-"))

    def functions(self) -> Any:
        """Import and return the opener."""
        return import_module(self.opener)


@dataclass(frozen=True, slots=True)
class Fallback:
    """An input that nobody asked for: it stands back behind one that another input carries.

    A series of language models carries its held-out text; the default text of a report is not read in its place.
    """

    value: Any


def _known_subject(name: str) -> Known | None:
    """Of a checkpoint of our own trainer it is known whether it reads text; of the rest nothing before it is loaded."""
    from sparsescope.models.catalog import resolve

    try:
        found = resolve(name)
    except SparsescopeError:
        return None
    path = Path(name).expanduser()
    if found.kind == "folder" and _series_kind(name) is None and not (path / "config.json").is_file() and "@" not in name:
        return None  # a folder of checkpoints is no model
    kind = _series_kind(found.request.name)
    lacks = frozenset({"tokenizer"}) if kind not in (None, "byte_text") else frozenset[str]()
    return Known("subject", name, lacks=lacks)


def _known_series(name: str) -> Known | None:
    from sparsescope.models.catalog import HUB_ID
    from sparsescope.models.revision_names import parse_name

    kind = _series_kind(name)
    if kind is not None:
        return Known("series", name, has=frozenset(series_capabilities(kind)), whole=True)
    path = Path(name).expanduser()
    if path.is_dir() and any(parse_name(entry.name) is not None for entry in path.iterdir() if entry.is_dir()):
        return Known("series", name, lacks=_OWN)
    return Known("series", name, lacks=_OWN, sure=False) if HUB_ID.fullmatch(name) and not path.exists() else None


def series_capabilities(kind: str) -> set[str]:
    """Capabilities of a series of our own trainer, by the kind of its data.

    ``curves``: what the trainer measured along the way. ``held_out_text`` and ``tokenizer``: its models read text, and it carries
    some. ``pairs``: questions with one right answer, some for training and some for testing.
    """
    return {"curves", *(("held_out_text", "tokenizer") if kind == "byte_text" else ("pairs",))}


def _series_kind(name: str) -> str | None:
    """The kind of data of a series of our own trainer, by name or folder; None for anything else.

    Raises:
        DependencyError: A shipped series is missing from this installation.
        ArtifactError: The folder of a series is damaged.
    """
    from sparsescope.models.embedded import embedded_folder, embedded_series
    from sparsescope.models.series_file import FILE, SeriesFolder

    folder = embedded_folder(name) if name in embedded_series() else Path(name).expanduser()
    return str(SeriesFolder.open(folder).content.data.get("kind")) if (folder / FILE).is_file() else None


def _known_text(name: str) -> Known:
    return Known("text", name, whole=True, needs=frozenset({"tokenizer"}))


_BUILT_IN = (
    Role(
        "subject",
        "model",
        "a registered name, hub id, model folder or .gguf file; in Python a Subject",
        opener="sparsescope.runner.roles.subject",
        known=_known_subject,
        slot="subject",
    ),
    Role(
        "series",
        "series of checkpoints",
        "a shipped series, the folder of a training, a folder of checkpoints or a hub id; in Python a CheckpointSeries",
        opener="sparsescope.runner.roles.series",
        known=_known_series,
        option="subject",
        slot="subject",
    ),
    Role(
        "text",
        "text",
        "a registered corpus, several joined by '+', or a .txt, .jsonl or .parquet file; in Python a Corpus",
        opener="sparsescope.runner.roles.text",
        known=_known_text,
        option="corpus",
        slot="corpus",
    ),
)


@cache
def roles() -> Mapping[str, Role]:
    """Return every role by name: built-in ones, then those of entry points.

    A plug-in that cannot be imported stays listed with its error as summary; using it raises.
    """
    found = {role.name: role for role in _BUILT_IN}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in found:
            continue
        try:
            role = point.load()
            if not isinstance(role, Role) or not re.fullmatch(ROLE_NAME, role.name) or role.name != point.name:
                raise TypeError(f"{point.value} is no Role of the name {point.name!r}")
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
        raise unknown_name("role of inputs", name, roles(), next_step=f"a package registers it by the entry point {ENTRY_POINT_GROUP}")
    found = roles()[name]
    if not found.opener:
        raise DependencyError(
            f"the plug-in that registers input {name!r} cannot be used: {found.summary}",
            where=f"entry point {ENTRY_POINT_GROUP}: {name}",
            next_step="repair or uninstall the package that declares it",
        )
    return found


def known(name: str, option: str = "subject") -> list[Known]:
    """Say what a name that is given by an option of the command line may be, for ``Analysis.fits``.

    Args:
        name: What was given.
        option: The option, without dashes.

    Returns:
        One entry for each role that the name can fill: the name of a shipped series is its last checkpoint too.
    """
    found = []
    for entry in roles().values():
        if entry.flag == f"--{option.replace('_', '-')}":
            answer = Known(entry.name, name) if entry.known is None else entry.known(name)
            if answer is not None:
                found.append(answer)
    return found


def open_inputs(record: Analysis, given: Mapping[str, Any], opened: dict[Any, Any], store: Store | None) -> dict[str, tuple[Any, ...]]:
    """Open what an analysis reads.

    Args:
        record: The analysis.
        given: By role: one input or a list of several, opened or as its role takes it. More than the analysis reads does no harm.
        opened: What was opened before, so that analyses share it; it is added to.
        store: The folder of runs, where artifacts are looked for.

    Returns:
        By role, in the order of the declaration, what was opened.

    Raises:
        SpecError: If one is missing, or there are several of one that is read once.
        SparsescopeError: If one cannot be opened.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for wanted in record.declared:
        kind = role(wanted.role)
        values = given.get(wanted.role)
        values = list(values) if isinstance(values, list | tuple) and wanted.repeated else [] if values is None else [values]
        if isinstance(given.get(wanted.role), Fallback | None) and hasattr(kind.functions(), "carried"):
            own = kind.functions().carried(found)
            values = values if own is None else [own]
        if not values and not wanted.optional:
            raise missing_input(record, kind)
        found[wanted.role] = tuple(_open(kind, value, found, opened, store) for value in values)
    return found


def _open(kind: Role, value: Any, found: Mapping[str, tuple[Any, ...]], opened: dict[Any, Any], store: Store | None) -> Any:
    value = value.value if isinstance(value, Fallback) else value
    beside = tuple(id(entry) for name in found for entry in found[name][:1])  # a text depends on who reads it
    key = (kind.name, value if isinstance(value, str | Path) else id(value), beside)
    if key not in opened:
        opened[key] = kind.functions().open(value, found, store), value  # what is given must not be freed: its id names it
    return opened[key][0]


def missing_input(record: Analysis, kind: Role) -> SpecError:
    """The error of an input that was not given."""
    return SpecError(
        f"{record.name} reads {_article(kind.title)}",
        where=f"ss.run({kind.name}=...), {kind.flag}",
        allowed=kind.summary,
        got="none",
        next_step=f'see: sparsescope show {record.name}',
    )


def refuse_unread(record: Analysis, given: Iterable[str]) -> None:
    """Refuse inputs that an analysis does not read.

    Args:
        record: The analysis.
        given: Roles of what was given.

    Raises:
        SpecError: If it does not read one of them.
    """
    for name in given:
        if name not in record.roles:
            read = ", ".join(_article(role(entry).title) for entry in record.roles)
            raise SpecError(
                f"{record.name} reads no {role(name).title}: it reads {read}",
                where=f"ss.run({name}=...), {role(name).flag}",
                got=f"a {role(name).title}",
                next_step=f"leave it out; see: sparsescope show {record.name}",
            )


def _article(title: str) -> str:
    return f"{'an' if title[0] in 'aeiou' else 'a'} {title}"

"""The built-in roles of inputs, and the opening of what an analysis reads; ``core/roles.py``
says what a role is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.files import given_path
from sparsescope.core.inputs import Known
from sparsescope.core.roles import Role, role
from sparsescope.errors import SparsescopeError, SpecError

if TYPE_CHECKING:
    from sparsescope.core.registry import Analysis
    from sparsescope.core.run_store import Store
    from sparsescope.models.formats.series_file import SeriesFolder

_OWN = frozenset({"curves", "pairs", "held_out_text"})  # what only our own trainer leaves in a series


@dataclass(frozen=True, slots=True)
class Fallback:
    """An input that nobody asked for: it stands back behind one that another input carries.

    A series of language models carries its held-out text; the default text of a report is not
    read in its place.
    """

    value: Any


@dataclass(frozen=True, slots=True)
class Lost:
    """An input that could not be made: who reads it fails with this error, and the others go on."""

    error: SparsescopeError


def known_subject(name: str) -> Known | None:
    """Of a checkpoint of our own trainer it is known whether it reads text; of the rest nothing
    before it is loaded.
    """
    from sparsescope.models.catalog import resolve

    try:
        found = resolve(name)
    except SparsescopeError:
        return None
    path = given_path(name, "name of a subject")
    if (
        found.kind == "folder"
        and _series_kind(name) is None
        and not (path / "config.json").is_file()
        and "@" not in name
    ):
        return None  # a folder of checkpoints is no model
    kind = _series_kind(found.request.name)
    lacks = frozenset({"tokenizer"}) if kind not in (None, "byte_text") else frozenset[str]()
    return Known("subject", name, lacks=lacks)


def known_series(name: str) -> Known | None:
    """A series of our own trainer says what it has; of checkpoints of others it is known what they lack."""
    from sparsescope.models.catalog import HUB_ID
    from sparsescope.models.formats.revision_names import parse_name

    folder = _series_folder(name)
    if folder is not None:
        has = series_capabilities(str(folder.content.data.get("kind")), folder.kinds)
        return Known("series", name, has=frozenset(has), whole=True)
    path = given_path(name, "name of a series")
    if path.is_dir() and any(
        parse_name(entry.name) is not None for entry in path.iterdir() if entry.is_dir()
    ):
        return Known("series", name, lacks=_OWN)
    return (
        Known("series", name, lacks=_OWN, sure=False)
        if HUB_ID.fullmatch(name) and not path.exists()
        else None
    )


def series_capabilities(kind: str, models: frozenset[str]) -> set[str]:
    """Capabilities of a series of our own trainer, by the kind of its data and of its models.

    ``curves``: what the trainer measured along the way. ``held_out_text`` and ``tokenizer``: its
    models read text, and it carries some. ``pairs``: questions with one right answer, some for
    training and some for testing. What ``models`` are: ``experts`` of mixtures, ``gates`` that have a name,
    ``small_experts`` in an MLP.
    """
    reads = ("held_out_text", "tokenizer") if kind == "byte_text" else ("pairs",)
    return {"curves", *reads, *models}


def _series_kind(name: str) -> str | None:
    """The kind of data of a series of our own trainer; None for anything else. Raises as
    ``_series_folder``.
    """
    folder = _series_folder(name)
    return None if folder is None else str(folder.content.data.get("kind"))


def _series_folder(name: str) -> SeriesFolder | None:
    """The folder of a series of our own trainer, by name or folder; None for anything else.

    Raises:
        DependencyError: A shipped series is missing from this installation.
        ArtifactError: The folder of a series is damaged.
    """
    from sparsescope.models.formats.series_file import FILE, SeriesFolder
    from sparsescope.models.zoo.shipped_series import shipped_folder, shipped_names

    folder = shipped_folder(name) if name in shipped_names() else given_path(name, "name of a series")
    return SeriesFolder.open(folder) if (folder / FILE).is_file() else None


def known_text(name: str) -> Known:
    """A text has nothing and needs a model that reads it; whether it is there is found
    out when it is made.
    """
    return Known("text", name, whole=True, needs=frozenset({"tokenizer"}))


BUILT_IN = (
    Role(
        "subject",
        "model",
        "a registered name, hub id, model folder or .gguf file; in Python a Subject",
        opener="sparsescope.runner.roles.subject",
        known="sparsescope.runner.inputs:known_subject",
        slot="subject",
    ),
    Role(
        "series",
        "series of checkpoints",
        "a shipped series, the folder of a training, a folder of checkpoints or a hub id; in "
        "Python a CheckpointSeries",
        opener="sparsescope.runner.roles.series",
        known="sparsescope.runner.inputs:known_series",
        option="subject",
        slot="subject",
    ),
    Role(
        "text",
        "text",
        "a registered corpus, several joined by '+', a .txt, .jsonl or .parquet file, or generated@ARGS: "
        "before one of these; in Python a Corpus",
        opener="sparsescope.runner.roles.text",
        known="sparsescope.runner.inputs:known_text",
        option="corpus",
        slot="corpus",
    ),
    Role(
        "dictionary",
        "dictionary",
        "the id of a kept dictionary, or a folder of SAELens, sparsify, dictionary_learning or Gemma "
        "Scope; in Python a Dictionary",
        opener="sparsescope.runner.roles.dictionary",
    ),
    Role(
        "routers",
        "series of routers",
        "a shipped series, a folder of checkpoints, or a hub id, of which NAME@REVISION,REVISION takes some "
        "revisions; nothing but the routers is read",
        opener="sparsescope.runner.roles.routers",
    ),
)


def open_inputs(
    record: Analysis, given: Mapping[str, Any], opened: dict[Any, Any], store: Store | None
) -> dict[str, tuple[Any, ...]]:
    """Open what an analysis reads.

    Args:
        record: The analysis.
        given: By role: one input or a list of several, opened or as its role takes it. More than the analysis
            reads does no harm.
        opened: What was opened before, or the error of trying, so that analyses share it; it is added to.
        store: The folder of runs, where artifacts are looked for.

    Returns: By role, in the order of the declaration, what was opened.

    Raises:
        SpecError: If one is missing, or there are several of one that is read once.
        SparsescopeError: If one cannot be opened.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for wanted in record.declared:
        kind = role(wanted.role)
        values = given.get(wanted.role)
        values = (
            list(values)
            if isinstance(values, list | tuple) and wanted.repeated
            else []
            if values is None
            else [values]
        )
        if isinstance(given.get(wanted.role), Fallback | None) and hasattr(kind.functions(), "carried"):
            try:
                own = kind.functions().carried(found)
            except SpecError:  # what carries it has none: one that need not be there is not read
                if not wanted.optional:
                    raise
                own, values = None, []
            values = values if own is None else [own]
        if not values and not wanted.optional:
            raise missing_input(record, kind)
        found[wanted.role] = tuple(_open(kind, value, found, opened, store) for value in values)
    return found


def _open(
    kind: Role, value: Any, found: Mapping[str, tuple[Any, ...]], opened: dict[Any, Any], store: Store | None
) -> Any:
    value = value.value if isinstance(value, Fallback) else value
    if isinstance(value, Lost):
        raise value.error
    beside = tuple(id(entry) for name in found for entry in found[name][:1])  # a text depends on who reads it
    key = (kind.name, value if isinstance(value, str | Path) else id(value), beside)
    if key not in opened:
        # What is given must not be freed: its id names it
        try:
            opened[key] = kind.functions().open(value, found, store), value, None
        except SparsescopeError as error:  # who reads it too need not wait for it to fail again
            opened[key] = None, value, error
    made, _, failed = opened[key]
    if failed is not None:
        raise failed
    return made


def missing_input(record: Analysis, kind: Role) -> SpecError:
    """The error of an input that was not given."""
    return SpecError(
        f"{record.name} reads {_article(kind.title)}",
        where=f"ss.run({kind.name}=...), {kind.flag}",
        allowed=kind.summary,
        got="none",
        next_step=f"see: sparsescope show {record.name}",
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

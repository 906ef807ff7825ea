"""A study is data: ``analyses/<name>/study.toml`` says which subjects, which analyses, which
figures, which claims.

This file reads such a declaration and finds it by name; ``study_checks`` checks what it refers to,
``study_run`` runs it, ``findings`` checks its claims, ``reporting/study.py`` renders it. Nothing here imports
torch. The text of a study (its ``narrative``) is a Markdown file in the same folder. No path of a study may
leave that folder: a study from someone else reads nothing but itself, registered corpora and models.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsescope.core.files import check_name, given_path, storage_errors
from sparsescope.core.registry import NAME_PATTERN
from sparsescope.errors import SparsescopeError, SpecError, near_matches, unknown_name

if TYPE_CHECKING:
    import pandas as pd

    from sparsescope.core.result import Result
    from sparsescope.runner.findings import CheckedFinding

FILE = "study.toml"
MAX_BYTES = 256 * 1024
MAX_NARRATIVE_BYTES = 1024 * 1024
MAX_RUNS = 200
# The parser takes time and memory that grow with the square of the parts of a dotted key.
_DEEPEST = 32
_DOTTED = re.compile(rf"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*){{{_DEEPEST}}}""")

Name = Annotated[str, Field(min_length=1, max_length=300)]
Short = Annotated[str, Field(min_length=1, max_length=200)]
Long = Annotated[str, Field(max_length=4000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
#: What an input of a further role is given by: a name, a file of the study, or ``recipe:NAME``;
#: several in a list.
Given = Name | Annotated[list[Name], Field(min_length=1, max_length=50)]
Relation = Literal["<", "<=", ">", ">=", "between"]


class _Declared(BaseModel):
    """What stands in the file: types as written, no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StudyRecipe(_Declared):
    """A recipe of a model, a file in the study's folder, with another seed; the model's name ends in it."""

    file: Name
    seed: int = Field(ge=0)


class StudySubject(_Declared):
    """One ``[[subject]]``."""

    name: Name = Field(description="As ss.load takes it; a path inside the study's folder; or recipe:NAME.")
    label: Short | None = Field(None, description="Name in figures and tables; the name when left out.")
    control_of: Name | None = Field(None, description="Name of the subject that this one is the control of.")
    corpus: Name | None = Field(None, description="Text of this subject, where it differs.")
    tokens: int | None = Field(None, ge=1, le=2**31, description="Tokens of this subject, where they differ.")
    context: int | None = Field(None, ge=2, description="Longest window of this subject, where it differs.")
    inputs: dict[str, Given] = Field(
        default_factory=dict, description="Further inputs of this subject, by role, also of series beside it."
    )
    params: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="By id of the analysis: parameters of this subject alone."
    )

    @property
    def title(self) -> str:
        """Name in figures and tables."""
        return self.label or self.name


class StudyAnalysis(_Declared):
    """One ``[[analysis]]``. The same analysis may stand here several times, with other
    parameters under other ids.
    """

    name: Name = Field(description="Registered name; see: sparsescope list analyses.")
    id: Short = Field(
        description="What figures, findings and parameters of subjects call it; the name when left out."
    )
    params: dict[str, Any] = Field(default_factory=dict, description="What differs from the defaults.")

    @model_validator(mode="before")
    @classmethod
    def _called_by_its_name(cls, values: Any) -> Any:
        return {"id": values["name"], **values} if isinstance(values, dict) and "name" in values else values


class StudyFigure(_Declared):
    """One ``[[figure]]``: a column of a table, one line for each subject."""

    analysis: Name = Field(description="Id of the analysis.")
    table: Name
    where: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Rows to take: column = value."
    )
    x: Name = Field("layer", description="Column on the horizontal axis.")
    y: Name = Field("mean", description="Column on the vertical axis.")
    low: Name | None = Field(None, description="Column with the lower ends of the band.")
    high: Name | None = Field(None, description="Column with the upper ends of the band.")
    reference: Name | None = Field(None, description="Column with values of a reference, drawn dotted.")
    reference_title: Short = Field("reference", description="What the reference is, for the legend.")
    relative: bool = Field(False, description="Stretch x of every subject to 0-1: relative depth for layers.")
    log_x: bool = False
    log_y: bool = False
    title: Short
    y_title: Short | None = None
    caption: Long = ""

    @model_validator(mode="after")
    def _both_ends(self) -> StudyFigure:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high come together or not at all")
        return self


class StudyFinding(_Declared):
    """One ``[[finding]]``: a claim about a scalar that the report checks.

    ``relation`` compares the scalar of ``subject`` (divided by its scalar ``per``, where given) with
    ``value``, or with ``times`` x the same of ``other_subject``, of ``other_analysis`` (the same analysis
    with other parameters), or of both.
    """

    label: Short
    analysis: Name = Field(description="Id of the analysis.")
    scalar: Name
    subject: Name
    per: Name | None = None
    relation: Relation
    value: Number | Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    other_subject: Name | None = Field(None, description="Subject to compare with; the same when left out.")
    other_analysis: Name | None = Field(
        None, description="Id of the analysis to compare with; the same when left out."
    )
    times: Number | None = None
    reading: Long = Field("", description="What the outcome means; shown below the claim.")

    @model_validator(mode="after")
    def _one_comparison(self) -> StudyFinding:
        if self.compares != (self.times is not None):
            raise ValueError("times and other_subject or other_analysis come together or not at all")
        if (self.value is None) == (self.times is None):
            raise ValueError("give either value, or times and other_subject or other_analysis")
        if self.other_analysis == self.analysis and self.other_subject in (None, self.subject):
            raise ValueError("this compares a number with itself")
        if (self.relation == "between") != isinstance(self.value, list):
            raise ValueError("relation 'between' takes value = [low, high], and only that")
        if isinstance(self.value, list) and self.value[0] > self.value[1]:
            raise ValueError("value = [low, high] is in the wrong order")
        return self

    @property
    def compares(self) -> bool:
        """Whether it is about two runs."""
        return self.other_subject is not None or self.other_analysis is not None


class Declaration(_Declared):
    """The content of ``study.toml``."""

    name: str = Field(pattern=f"^{NAME_PATTERN}$")
    title: Short
    question: Annotated[str, Field(min_length=1, max_length=600)] = Field(
        description="What is asked, in one sentence."
    )
    narrative: Name = Field("README.md", description="Markdown file in the study's folder.")
    corpus: Name = "python-docs+python-source"
    tokens: int = Field(16384, ge=1, le=2**31)
    context: int | None = Field(None, ge=2)
    document_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of one document; fewer give more documents, the units of intervals.",
    )
    keep_duplicates: bool = Field(False, description="Whether documents that nearly repeat others are kept.")
    seed: int = Field(0, ge=0)
    dtype: Name = "float32"
    inputs: dict[str, Given] = Field(
        default_factory=dict, description="Further inputs of all subjects, by role."
    )
    recipes: dict[str, Name | StudyRecipe] = Field(
        default_factory=dict,
        max_length=50,
        description="Files in the study's folder, or {file, seed}; what they train is made when absent.",
    )
    subjects: list[StudySubject] = Field(alias="subject", min_length=1)
    analyses: list[StudyAnalysis] = Field(alias="analysis", min_length=1)
    figures: list[StudyFigure] = Field(alias="figure", default_factory=list, max_length=60)
    findings: list[StudyFinding] = Field(alias="finding", default_factory=list, max_length=200)


_SECTIONS: dict[str, type[BaseModel]] = {
    "subject": StudySubject, "analysis": StudyAnalysis, "figure": StudyFigure, "finding": StudyFinding,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Study:
    """A study that was read.

    Attributes:
        path: The file.
        declared: What it says.
        narrative: The text beside it, Markdown; empty where there is none.
    """

    path: Path
    declared: Declaration
    narrative: str = ""

    @property
    def folder(self) -> Path:
        """The folder that no path of the study may leave."""
        return self.path.resolve().parent

    def subject(self, name: str) -> StudySubject:
        """The declared subject of this name; ``study_checks`` has seen that it is there."""
        return next(entry for entry in self.declared.subjects if entry.name == name)

    def analysis(self, id: str) -> StudyAnalysis:
        """The declared analysis of this id; ``study_checks`` has seen that it is there."""
        return next(entry for entry in self.declared.analyses if entry.id == id)

    def suffix(self, id: str) -> str:
        """`` (id)`` where the name of the analysis does not say which entry is meant, otherwise nothing."""
        name = self.analysis(id).name
        alone = sum(entry.name == name for entry in self.declared.analyses) == 1
        return "" if alone and id == name else f" ({id})"


@dataclass(slots=True)
class StudyRun:
    """What became of one analysis of one subject.

    Attributes:
        subject: Whose run it is.
        analysis: Registered name of the analysis.
        result: What came out; None where it failed.
        error: Why it failed.
        stored: Whether the run was there before.
        unstorable: Why it is neither stored nor opened, where it is not.
        id: What the study calls this analysis with these parameters; its name when left out.
    """

    subject: StudySubject
    analysis: str
    result: Result | None = None
    error: SparsescopeError | None = None
    stored: bool = False
    id: str = ""
    unstorable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.id = self.id or self.analysis


@dataclass(slots=True)
class StudyResult:
    """The outcome of a study.

    Attributes:
        study: What was asked.
        runs: One for each subject and analysis, in the order of the file.
    """

    study: Study
    runs: list[StudyRun] = field(default_factory=list)

    @property
    def results(self) -> list[Result]:
        """The results that are there."""
        return [run.result for run in self.runs if run.result is not None]

    @property
    def failed(self) -> list[StudyRun]:
        """The runs that failed, with their errors."""
        return [run for run in self.runs if run.error is not None]

    def result(self, subject: str, id: str) -> Result | None:
        """The result of one analysis, by its id, of one subject; None where it failed."""
        found = (run.result for run in self.runs if run.subject.name == subject and run.id == id)
        return next(found, None)

    @property
    def findings(self) -> list[CheckedFinding]:
        """The checked claims, in the order of the file."""
        from sparsescope.runner.findings import check

        return [check(finding, self) for finding in self.study.declared.findings]

    def __repr__(self) -> str:
        return f"StudyResult({self.study.declared.name}: {len(self.results)} of {len(self.runs)} runs)"

    def _repr_html_(self) -> str:
        """Draw the outcome in a notebook: headline numbers, a column for each subject."""
        from sparsescope.runner.study_html import numbers_html

        return numbers_html(self)

    def frame(self) -> pd.DataFrame:
        """Every number side by side: one row for each scalar of each run, with its interval and n."""
        import pandas as pd

        rows: list[tuple[Any, ...]] = []
        for run in self.runs:
            about = (run.subject.name, run.subject.title, run.subject.control_of, run.analysis, run.id)
            for scalar in run.result.scalars.values() if run.result is not None else ():
                i = scalar.interval
                ends = (i.low, i.high, i.n) if i else (float("nan"), float("nan"), None)
                made = run.result.run_id if run.result else None
                rows.append((*about, scalar.name, scalar.value, scalar.unit, *ends, made))
        names = "subject label control_of analysis id scalar value unit low high n run"
        return pd.DataFrame(rows, columns=names.split())


def studies(start: Path | None = None) -> dict[str, Path]:
    """Return the studies that can be named, with their files.

    These are the folders of ``analyses/`` in ``start`` (the working directory when None) or the
    nearest folder above it that has one, and those that came with sparsescope. A name in the working
    directory goes first.

    Args:
        start: Where to look from.
    """
    here = (start or Path.cwd()).resolve()
    package = Path(__file__).resolve().parent.parent
    own = next(
        (folder / "analyses" for folder in (here, *here.parents) if (folder / "analyses").is_dir()), None
    )
    found: dict[str, Path] = {}
    for folder in (own, package.parent / "analyses", package / "studies"):
        if folder is None or not folder.is_dir():
            continue
        for path in sorted(folder.glob(f"*/{FILE}")):
            if re.fullmatch(NAME_PATTERN, path.parent.name):
                found.setdefault(path.parent.name, path)
    return found


def load_study(target: str | Path) -> Study:
    """Read a study.

    Args:
        target: A name of ``studies()``, a file, or a folder with a ``study.toml``.

    Raises:
        SpecError: If there is no such study, or the file is not valid.
        ArtifactError: If the file cannot be read.
    """
    path = _find(target)
    declared = _declaration(path)
    return Study(path, declared, _narrative(path, declared.narrative))


def inside(folder: Path, name: str, *, where: str) -> Path:
    """Return a path of a study, resolved; links are followed.

    Raises:
        SpecError: If it leaves the folder of the study, or no file can have this name.
    """
    check_name(name, where)
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError):  # a link that leads to itself, a NUL
        path = None
    if path is None or not path.is_relative_to(folder):
        raise SpecError(
            "a path of a study must stay inside its folder",
            where=where,
            allowed="a relative path below the folder of study.toml",
            got=repr(name),
            next_step="copy the file into the folder of the study",
        )
    return path


def _find(target: str | Path) -> Path:
    path = given_path(target, "name of a study")
    if path.is_dir():
        path = path / FILE
    if path.is_file():
        return path
    if re.fullmatch(NAME_PATTERN, str(target)):
        known = studies()
        if str(target) in known:
            return known[str(target)]
        raise unknown_name("study", str(target), known, next_step="run: sparsescope list studies")
    raise SpecError(
        "there is no such study",
        where=str(target),
        allowed=f"a name, a TOML file, or a folder with a {FILE}",
        next_step="run: sparsescope list studies",
    )


def _read(path: Path, limit: int) -> str:
    """Read a text file of at most ``limit`` bytes."""
    with storage_errors("read the study", path), path.open("rb") as handle:
        data = handle.read(limit + 1)
    if len(data) > limit:
        raise SpecError(
            "this file of a study is too large", where=str(path), allowed=f"at most {limit:,} bytes"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SpecError("this file of a study is not UTF-8", where=str(path), got=str(error)) from None


def _declaration(path: Path) -> Declaration:
    text = _read(path, MAX_BYTES)
    try:
        if _DOTTED.search(text):
            raise ValueError(f"a key of more than {_DEEPEST} parts")
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise SpecError(
            "the study is not a TOML file",
            where=str(path),
            got=str(error)[:200],
            next_step="see https://toml.io for the format",
        ) from None
    try:
        return Declaration.model_validate(values)
    except ValidationError as error:
        raise _not_valid(path, error) from None


def _not_valid(path: Path, error: ValidationError) -> SpecError:
    """The first problem of a file, with its key and what would have been accepted."""
    problems = error.errors()
    # An unknown key is often a misspelled one, and then the cause of a second problem: name it first.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    # What follows are the branches of a union, which are no keys; the exception is an unknown key.
    depth = 3 if str(first["loc"][0]) in _SECTIONS else 1
    loc = first["loc"] if first["type"] == "extra_forbidden" else first["loc"][:depth]
    where = f"{path}: " + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc
    ).lstrip(".")
    model = _SECTIONS.get(str(loc[0]), Declaration) if len(loc) > 2 else Declaration
    keys = [item.alias or name for name, item in model.model_fields.items()]
    if first["type"] == "extra_forbidden":
        name = str(loc[-1])
        near = near_matches(name, keys)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "remove it"
        return SpecError(
            f"unknown key {name!r} in a study", where=where, allowed=keys, got=name, next_step=hint
        )
    missing = first["type"] == "missing"
    what = f"key {loc[-1]!r} is missing in a study" if missing else "a value of a study is not valid"
    said = dict.fromkeys(p["msg"].removeprefix("Value error, ") for p in problems if p["loc"][:depth] == loc)
    allowed = (
        f"relation is one of {', '.join(get_args(Relation))}" if loc[-1] == "relation" else " or ".join(said)
    )
    return SpecError(
        what,
        where=where,
        allowed=keys if missing else allowed,
        got=None if missing else _short(first.get("input")),
        next_step="the keys are explained in sparsescope/runner/study.py",
    )


def _short(value: Any) -> str:
    """A value for a message; of a table its keys."""
    text = f"a table with {', '.join(map(str, value))}" if isinstance(value, Mapping) else repr(value)
    return text[:200]


def _narrative(path: Path, name: str) -> str:
    """The text of the study; a study without one is complete, one that names a file that
    is not there is not.
    """
    file = inside(path.resolve().parent, name, where=f"{path}: narrative")
    if not file.is_file():
        if name == "README.md":
            return ""
        raise SpecError("the narrative of the study is not there", where=f"{path}: narrative", got=name)
    return _read(file, MAX_NARRATIVE_BYTES)

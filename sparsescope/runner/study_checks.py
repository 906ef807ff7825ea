"""Everything a study refers to is there: checked before a model is loaded.

Subjects by name (no network), corpora, analyses with their parameters, tables and columns of figures,
subjects of findings. Scalars and the values of filters are known only when a result is there; the report says
where one is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

from sparsescope.core.columns import TEXT_KINDS
from sparsescope.core.files import given_path
from sparsescope.core.inputs import NOT_KNOWN, Known
from sparsescope.core.registry import Analysis, analyses, find_record
from sparsescope.core.roles import known, role, roles
from sparsescope.core.spec import make_params
from sparsescope.errors import SparsescopeError, SpecError, SubjectError, unknown_name
from sparsescope.runner.recipes import PREFIX, SeriesRecipe, checked_input, declared_recipe
from sparsescope.runner.study import MAX_RUNS, Study, StudyFigure, inside

_TEXT_FILES = (".txt", ".jsonl", ".parquet")


def check_study(study: Study) -> None:
    """Check a study; see the head of this file.

    Raises:
        SpecError: With the file, the key, what is allowed (with near matches) and what was got.
    """
    declared, file = study.declared, study.path
    count = len(declared.subjects) * len(declared.analyses)
    if count > MAX_RUNS:
        raise SpecError(
            "the study has too many runs", where=str(file), allowed=f"at most {MAX_RUNS}", got=count
        )
    names = [entry.name for entry in declared.subjects]
    _distinct(names, f"{file}: subject.name")
    _distinct([entry.title for entry in declared.subjects], f"{file}: subject.label")
    _distinct([entry.id for entry in declared.analyses], f"{file}: analysis.id")
    for index, subject in enumerate(declared.subjects):
        where = f"{file}: subject[{index}]"
        if subject.control_of is not None:
            _known(
                "subject", subject.control_of, [n for n in names if n != subject.name], f"{where}.control_of"
            )
            if study.subject(subject.control_of).control_of is not None:
                raise SpecError("a control of a control", where=f"{where}.control_of", got=subject.control_of)
        _at(f"{where}.name", partial(load_name, study, subject.name))
        _at(f"{where}.corpus", partial(text_source, study, subject.corpus))
        _at(f"{where}.inputs", partial(_check_inputs, study, subject.inputs, f"{where}.inputs"))
    _at(f"{file}: corpus", partial(text_source, study, None))
    _at(f"{file}: dtype", partial(_check_dtype, declared.dtype))
    records = {}
    for index, analysis in enumerate(declared.analyses):
        where = f"{file}: analysis[{index}]"
        _known("analysis", analysis.name, [record.name for record in analyses()], f"{where}.name")
        records[analysis.id] = record = analyses().get(analysis.name)
        _at(f"{where}.params", partial(_check_params, record, analysis.params))
    for index, subject in enumerate(declared.subjects):
        for id, own in subject.params.items():
            where = f"{file}: subject[{index}].params.{id}"
            _known("analysis of this study", id, records, where)
            _at(where, partial(_check_params, records[id], {**study.analysis(id).params, **own}))
    _check_runs_differ(study)
    _check_inputs(study, declared.inputs, f"{file}: inputs")
    for name in declared.recipes:
        _at(f"{file}: recipes.{name}", partial(declared_recipe, study, name))
    _check_fit(study)
    read = {name for record in records.values() for name in record.roles}
    _refuse_unread(declared.inputs, read, f"{file}: inputs")
    for index, subject in enumerate(declared.subjects):
        _refuse_unread(subject.inputs, read, f"{file}: subject[{index}].inputs")
    _refuse_unused_recipes(study)
    for index, figure in enumerate(declared.figures):
        _check_figure(figure, records, f"{file}: figure[{index}]")
    for index, finding in enumerate(declared.findings):
        where = f"{file}: finding[{index}]"
        _known("analysis of this study", finding.analysis, records, f"{where}.analysis")
        _known("subject of this study", finding.subject, names, f"{where}.subject")
        if finding.other_subject is not None:
            _known("subject of this study", finding.other_subject, names, f"{where}.other_subject")
        if finding.other_analysis is not None:
            _known("analysis of this study", finding.other_analysis, records, f"{where}.other_analysis")


def _at(where: str, action: Callable[[], object]) -> None:
    """Run a check; its error gets the place in the file."""
    try:
        action()
    except SparsescopeError as error:
        raise SpecError(
            error.what, where=where, allowed=error.allowed, got=error.got, next_step=error.next_step
        ) from error


def load_name(study: Study, name: str) -> str:
    """Return what ``ss.load`` takes for a subject of a study: a path becomes one inside the study's folder,
    and ``recipe:NAME`` stays what it is.

    Raises:
        SpecError: If the path leaves the folder, or the recipe is not one of a model.
        SubjectError: If nothing has this name.
    """
    from sparsescope.models.catalog import resolve
    from sparsescope.models.variants import split_name

    if name.startswith(PREFIX):
        _series_recipe(study, name)
        return name
    prefix, bare = split_name(name)
    if bare.startswith((".", "/", "~", "\\")) or bare.lower().endswith(".gguf"):
        name = prefix + str(inside(study.folder, bare, where=f"{study.path}: subject.name"))
    elif resolve(name, dtype=study.declared.dtype).kind in ("folder", "gguf"):
        # A folder of the working directory that happens to have this name: what a study means
        # must not depend on it.
        raise SpecError(
            "this subject is a folder outside of the study",
            where=str(study.path),
            allowed="a registered name, organization/model, or ./folder inside the study",
            got=repr(name),
            next_step="run it from another directory, or copy the model into the folder of the study",
        )
    resolve(name, dtype=study.declared.dtype)
    return name


def _series_recipe(study: Study, text: str) -> SeriesRecipe:
    """The recipe of a model that ``recipe:NAME`` means.

    Raises:
        SpecError: There is none, or it trains an artifact.
    """
    found = declared_recipe(study, text.removeprefix(PREFIX))
    if not isinstance(found, SeriesRecipe):
        raise SpecError(
            "this recipe trains an artifact, not a model",
            where=f"{study.path}: {text}",
            allowed="a recipe without the key kind",
            got=found.kind.name,
        )
    return found


def repeated_roles(analysis: str) -> set[str]:
    """Roles of models and series of which an analysis takes several."""
    found = find_record(analysis).declared
    return {wanted.role for wanted in found if wanted.repeated and role(wanted.role).slot == "subject"}


def text_source(study: Study, name: str | None) -> str | Path:
    """Return what ``ss.corpus`` takes: registered names joined by ``+``, or a file inside the study's folder,
    with or without ``generated@ARGS:`` before it.

    Args:
        study: The study.
        name: What a subject asks for; the default of the study when None.

    Raises:
        SpecError: If there is no such corpus, the path leaves the folder, or ARGS are not valid.
        SubjectError: If the file is not there.
    """
    from sparsescope.activations.corpus import registered_corpora
    from sparsescope.activations.generated import read_name, split_name

    given = study.declared.corpus if name is None else name
    read_name(given)
    prefix, name = split_name(given)
    if "/" in name or "\\" in name or name.lower().endswith(_TEXT_FILES):
        path = inside(study.folder, name, where=f"{study.path}: corpus")
        if not path.is_file():
            raise SubjectError(
                "there is no such text",
                where=str(study.path),
                allowed="a file in the study's folder",
                got=name,
            )
        return f"{prefix}{path}" if prefix else path
    for part in name.split("+"):
        if part not in registered_corpora():
            raise unknown_name(
                "corpus", part, registered_corpora(), next_step="run: sparsescope list corpora"
            )
    return given


def _check_params(record: Analysis, given: dict[str, object]) -> None:
    """Check the parameters of an analysis. Inputs that they name are registered ones: a path could
    lead out of the study.
    """
    params = make_params(record.params, given, analysis=record.name)
    for parameter, filled in record.filled_by.items():
        for name in getattr(params, parameter):
            if given_path(name, parameter).exists() or not any(
                found.sure for found in known(name, role(filled).flag[2:]) if found.role == filled
            ):
                raise SpecError(
                    f"an input of a study that a parameter names must be a registered {role(filled).title}",
                    where=parameter,
                    allowed="a registered name",
                    got=repr(name),
                    next_step="give a name that sparsescope list shows",
                )


def _check_inputs(study: Study, inputs: Mapping[str, str | list[str]], where: str) -> None:
    """Check inputs of further roles: the role is known, a file lies in the study, a recipe is declared."""
    there = {record.name for record in analyses()}  # an unknown one is refused in its own place
    further = {n for n, found in roles().items() if found.slot == "inputs"}.union(
        *(repeated_roles(entry.name) for entry in study.declared.analyses if entry.name in there)
    )
    for name, given in inputs.items():
        if name not in further:
            raise unknown_name(
                "role of inputs",
                name,
                sorted(further),
                next_step=f"models and texts have keys of their own; {where}",
            )
        for text in [given] if isinstance(given, str) else given:
            checked_input(study, text)
            if text.startswith(PREFIX) and role(name).slot == "subject":
                _series_recipe(study, text)
            elif text.startswith(PREFIX) and isinstance(
                declared_recipe(study, text.removeprefix(PREFIX)), SeriesRecipe
            ):
                raise SpecError(
                    "this recipe trains a model, not an artifact",
                    where=f"{where}.{name}",
                    allowed="a recipe with the key kind",
                    got=text,
                )


def _refuse_unread(inputs: Mapping[str, object], read: Collection[str], where: str) -> None:
    """Refuse an input that no analysis of the study reads: who gave it believes that it counts."""
    for name in inputs:
        if name not in read:
            further = sorted(entry for entry in read if role(entry).slot == "inputs")
            raise SpecError(
                f"no analysis of this study reads the input {name!r}",
                where=f"{where}.{name}",
                allowed=further or "no further inputs for these analyses",
                got=name,
                next_step="leave it out, or add an analysis that reads it; see: sparsescope show ANALYSIS",
            )


def _refuse_unused_recipes(study: Study) -> None:
    """Refuse a recipe that no input takes."""
    declared = study.declared
    taken = {
        text
        for inputs in (declared.inputs, *(subject.inputs for subject in declared.subjects))
        for given in inputs.values()
        for text in ([given] if isinstance(given, str) else given)
    } | {subject.name for subject in declared.subjects}
    for name in declared.recipes:
        if f"{PREFIX}{name}" not in taken:
            raise SpecError(
                "no input of this study is trained by this recipe",
                where=f"{study.path}: recipes.{name}",
                allowed=f'an input that takes it: inputs = {{ ROLE = "{PREFIX}{name}" }}',
                got=name,
                next_step="leave it out, or give it to an input",
            )


def _check_runs_differ(study: Study) -> None:
    """Refuse two ids that mean the same run: a claim that compares them would compare a
    number with itself.
    """
    for subject in study.declared.subjects:
        seen: dict[tuple[str, str], str] = {}
        for entry in study.declared.analyses:
            given = {**entry.params, **subject.params.get(entry.id, {})}
            run = (
                entry.name,
                make_params(analyses().get(entry.name).params, given, analysis=entry.name).model_dump_json(),
            )
            if run in seen:
                raise SpecError(
                    f"two analyses of the study have the same parameters for {subject.name}",
                    where=f"{study.path}: analysis.params",
                    got=f"{seen[run]!r} and {entry.id!r}",
                    next_step="change a parameter, or leave one of them out",
                )
            seen[run] = entry.id


def _check_fit(study: Study) -> None:
    """Refuse an analysis that a subject certainly does not fit; what only loading tells is
    found out when it runs.
    """
    declared = study.declared
    for index, subject in enumerate(declared.subjects):
        of_recipe = subject.name.startswith(PREFIX)  # what it has shows when it is trained
        under = (
            [Known(name, subject.name) for name in ("subject", "series")]
            if of_recipe
            else known(load_name(study, subject.name))
        )
        there = [*under, *known(subject.corpus or declared.corpus, "corpus")]
        # Series beside the one under study go to analyses that take several, and are left by others
        there += [
            Known(name, subject.name, needs=frozenset())
            for name in {**declared.inputs, **subject.inputs}
            if role(name).slot == "inputs"
        ]
        for analysis in declared.analyses:
            reason = analyses().get(analysis.name).fits(there)
            if reason not in (None, NOT_KNOWN):
                raise SpecError(
                    f"{analysis.name} does not fit {subject.name}: {reason}",
                    where=f"{study.path}: subject[{index}]",
                    next_step=f"leave one of them out; see: sparsescope show {analysis.name}",
                )


def _check_figure(figure: StudyFigure, records: Mapping[str, Analysis], where: str) -> None:
    _known("analysis of this study", figure.analysis, records, f"{where}.analysis")
    tables = records[figure.analysis].tables
    if not tables:  # an analysis of someone else that declares nothing: known when the result is there
        return
    _known(f"table of {records[figure.analysis].name}", figure.table, tables, f"{where}.table")
    columns = {column.name: column for column in tables[figure.table]}
    asked = {key: getattr(figure, key) for key in ("x", "y", "low", "high", "reference")}
    for key, name in (*asked.items(), *((f"where.{name}", name) for name in figure.where)):
        if name is None:
            continue
        _known(f"column of {figure.table}", name, columns, f"{where}.{key}")
        if key in asked and columns[name].kind in TEXT_KINDS:
            numeric = [c.name for c in columns.values() if c.kind not in TEXT_KINDS]
            raise SpecError(
                "a column of text cannot be drawn", where=f"{where}.{key}", allowed=numeric, got=name
            )


def _check_dtype(name: str) -> None:
    from sparsescope.models.catalog import check_dtype

    check_dtype(name)


def _known(kind: str, name: str, known: Iterable[str], where: str) -> None:
    known = list(known)
    if name not in known:
        error = unknown_name(kind, name, known, next_step="mend the name in the file")
        raise SpecError(
            error.what, where=where, allowed=error.allowed, got=error.got, next_step=error.next_step
        )


def _distinct(names: list[str], where: str) -> None:
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise SpecError("names in a study must differ", where=where, got=", ".join(map(repr, double)))

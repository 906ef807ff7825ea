"""Inputs of a study as its file gives them: a name, a file, or what a recipe trains when it is absent.

A recipe of an artifact leaves it among the artifacts; one of a model leaves the series of its checkpoints in
``<home>/series/<12 hex>/<name>``, where the digits stand for the recipe.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.artifact_store import ArtifactStore
from sparsescope.core.artifacts import Artifact
from sparsescope.core.files import check_name, given_path
from sparsescope.core.roles import Role, role
from sparsescope.core.run_store import Store
from sparsescope.core.spec import canonical_json, with_digest
from sparsescope.errors import ArtifactError, SpecError, unknown_name
from sparsescope.models.formats import series_file
from sparsescope.runner.study import Study, StudyRecipe, inside
from sparsescope.training.kinds import ArtifactRecipe, read_artifact_recipe
from sparsescope.training.recipe import Recipe, changed_text, read_recipe

if TYPE_CHECKING:
    from sparsescope.runner.engine import ProgressCallback

PREFIX = "recipe:"
PARTIAL = ".partial"
SERIES = "series"


@dataclass(frozen=True, slots=True)
class SeriesRecipe:
    """A recipe of a model, which leaves a series of checkpoints.

    Attributes:
        recipe: What is trained.
        text: Text of the recipe, with the values that the study changed.
    """

    recipe: Recipe
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe: by it the series is found again."""
        return hashlib.sha256(canonical_json(self.recipe.model_dump(mode="json")).encode()).hexdigest()


def trained_series(recipe: SeriesRecipe, store: Store | None) -> Path:
    """Return the folder of the series of a recipe: the one that is there, or a new one.

    Args:
        recipe: What trains it. A training that was interrupted goes on.
        store: The folder of runs; None for a series that lives as long as the process.

    Raises:
        SparsescopeError: It cannot be trained or written.
    """
    root = Path(_temporary().name) if store is None else store.root
    folder = root / SERIES / recipe.digest[:12] / recipe.recipe.name
    if not (folder / series_file.FILE).is_file():
        from sparsescope.training.trainer import train

        train(recipe.recipe, folder, recipe_text=recipe.text)
    return folder


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes when the process ends."""
    return tempfile.TemporaryDirectory(prefix="sparsescope-")


def trained(
    recipe: ArtifactRecipe, store: Store | None, progress: ProgressCallback | None = None
) -> list[Artifact]:
    """Return the artifacts of a recipe: those that are there, or new ones.

    Args:
        recipe: What trains them.
        store: The folder of runs; None for artifacts that live as long as the object.
        progress: Told what is done.

    Raises:
        ArtifactError: They cannot be stored.
        SparsescopeError: An input that the recipe names cannot be opened.
    """
    digest = recipe.digest(inputs_of(recipe, store))
    kept = ArtifactStore(None if store is None else store.root)
    if found := _kept(kept, digest):
        return found

    def keep(kind: str, *, meta: dict[str, Any] | None = None, **facts: Any) -> Any:
        facts.setdefault("made_by", f"sparsescope train {recipe.path.name}")
        return kept.keep(kind, meta={**(meta or {}), "recipe": digest}, **facts)

    def tell(phase: str, done: int, total: int, unit: str = "steps") -> None:
        if progress is not None:
            progress(phase, done, total, unit)

    if store is None:
        with tempfile.TemporaryDirectory() as folder:
            return recipe.train(keep, tell, Path(folder) / PARTIAL / digest[:12])
    work = store.root / PARTIAL / f"train-{digest[:12]}"
    made = recipe.train(keep, tell, work)
    shutil.rmtree(work, ignore_errors=True)
    return made


def _kept(kept: ArtifactStore, digest: str) -> list[Artifact]:
    """The artifacts of a recipe, if each of its parts is there."""
    parts: dict[int, Artifact] = {}
    for artifact_id in kept.ids():
        try:
            found = kept.open(artifact_id)
            if found.meta.get("recipe") != digest or not found.present:
                continue
            number, count = found.meta.get("part", (0, 1))
        except (ArtifactError, TypeError, ValueError):  # damaged: verify says so
            continue
        parts.setdefault(int(number), found)
        if len(parts) == count:
            return [parts[part] for part in sorted(parts)]
    return []


def inputs_of(recipe: ArtifactRecipe, store: Store | None) -> dict[str, list[str]]:
    """Return the digests of the inputs that a recipe names, by key: the name of a model says too little.

    Args:
        recipe: The recipe.
        store: The folder of runs, where artifacts are looked for.

    Raises:
        SparsescopeError: One cannot be opened.
    """
    found: dict[str, list[str]] = {}
    for key, name in recipe.kind.reads.items():
        given = getattr(recipe.params, key)
        values = given if isinstance(given, list | tuple) else [] if given is None else [given]
        found[key] = [_digest(role(name), value, store) for value in values]
    return {key: digests for key, digests in found.items() if digests}


def _digest(kind: Role, value: Any, store: Store | None) -> str:
    """The digest of one input; of a text that of its documents, which no model need read for that."""
    if kind.name == "text":
        from sparsescope.activations.corpus import corpus

        return corpus(value, tokens=None, min_tokens=1).digest
    if kind.name == "subject":  # its role takes no name, since how to load a model is the caller's choice
        from sparsescope.models.sources import load

        value = load(value)
    identity = kind.functions().identity(kind.functions().open(value, {}, store))
    return str(with_digest(identity)["digest"])


def declared_recipe(study: Study, name: str) -> ArtifactRecipe | SeriesRecipe:
    """Return a recipe that a study names.

    Raises:
        SpecError: The study declares no such recipe, it leaves the folder, it is not valid, or a seed is
            given to the recipe of an artifact.
    """
    recipes = study.declared.recipes
    if name not in recipes:
        raise unknown_name(
            "recipe of this study", name, recipes, next_step=f'declare it: recipes.{name} = "FILE.toml"'
        )
    where, given = f"{study.path}: recipes.{name}", recipes[name]
    file, seed = (given.file, given.seed) if isinstance(given, StudyRecipe) else (given, None)
    path = inside(study.folder, file, where=where)
    found = read_artifact_recipe(path)
    if found is not None:
        if seed is not None:
            raise SpecError(
                "the recipe of an artifact says its own seed",
                where=where,
                allowed="the name of a file",
                got=f"seed = {seed}",
                next_step="write the seed into the recipe",
            )
        return found
    plain = read_recipe(path)
    called = None if seed is None else f"{plain.name}-seed{seed}"
    text = changed_text(path.read_text(encoding="utf-8"), seed=seed, name=called)
    return SeriesRecipe(read_recipe(path, seed=seed, name=called), text)


def given_input(
    study: Study, text: str, store: Store | None, progress: ProgressCallback | None = None
) -> list[Artifact] | Artifact | str | Path:
    """Return what a role takes for an input of a study; a recipe may give several.

    Args:
        study: The study.
        text: ``recipe:NAME``, the name of a file of the study, or a name that the role knows.
        store: The folder of runs.
        progress: Told about a training.

    Raises:
        SpecError: A path leaves the folder of the study, or there is no such recipe.
    """
    if text.startswith(PREFIX):
        recipe = declared_recipe(study, text.removeprefix(PREFIX))
        if isinstance(recipe, SeriesRecipe):
            return trained_series(recipe, store)
        found = trained(recipe, store, progress)
        return found if len(found) > 1 else found[0]
    return checked_input(study, text)


def checked_input(study: Study, text: str) -> str | Path:
    """The same without training anything: for a check before anything runs."""
    if text.startswith(PREFIX):
        declared_recipe(study, text.removeprefix(PREFIX))
        return text
    check_name(text, f"{study.path}: inputs")
    if "/" in text or "\\" in text or text.startswith((".", "~")) or (study.folder / text).exists():
        return inside(study.folder, text, where=f"{study.path}: inputs")
    if given_path(text, f"{study.path}: inputs").exists():
        # A file of the working directory that happens to have this name: what a study means
        # must not depend on it.
        raise SpecError(
            "this input is a file outside of the study", where=f"{study.path}: inputs", got=repr(text),
            next_step="copy it into the folder of the study, or run it from another directory",
        )  # fmt: skip
    return text

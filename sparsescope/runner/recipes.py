"""Inputs of a study as its file gives them: a name, a file, or an artifact that is trained from a recipe
when it is absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.artifact_store import ArtifactStore
from sparsescope.core.artifacts import Artifact
from sparsescope.core.run_store import Store
from sparsescope.errors import ArtifactError, SpecError, unknown_name
from sparsescope.runner.study import Study, inside
from sparsescope.training.kinds import ArtifactRecipe, read_artifact_recipe

if TYPE_CHECKING:
    from sparsescope.runner.engine import ProgressCallback

PREFIX = "recipe:"


def trained(
    recipe: ArtifactRecipe, store: Store | None, progress: ProgressCallback | None = None
) -> Artifact:
    """Return the artifact of a recipe: the one that is there, or a new one.

    Args:
        recipe: What trains it.
        store: The folder of runs; None for an artifact that lives as long as the object.
        progress: Told what is done.

    Raises:
        ArtifactError: It cannot be stored.
    """
    kept = ArtifactStore(None if store is None else store.root)
    for artifact_id in kept.ids():
        try:
            found = kept.open(artifact_id)
        except ArtifactError:  # damaged: verify says so
            continue
        if found.meta.get("recipe") == recipe.digest and found.present:
            return found

    def keep(kind: str, *, meta: dict[str, Any] | None = None, **facts: Any) -> Any:
        facts.setdefault("made_by", f"sparsescope train {recipe.path.name}")
        return kept.keep(kind, meta={**(meta or {}), "recipe": recipe.digest}, **facts)

    def tell(phase: str, done: int, total: int, unit: str = "steps") -> None:
        if progress is not None:
            progress(phase, done, total, unit)

    made: Artifact = recipe.train(keep, tell)
    return made


def declared_recipe(study: Study, name: str) -> ArtifactRecipe:
    """Return a recipe that a study names.

    Raises:
        SpecError: The study declares no such recipe, it leaves the folder, or it trains no artifact.
    """
    recipes = study.declared.recipes
    if name not in recipes:
        raise unknown_name(
            "recipe of this study", name, recipes, next_step=f'declare it: recipes.{name} = "FILE.toml"'
        )
    where = f"{study.path}: recipes.{name}"
    found = read_artifact_recipe(inside(study.folder, recipes[name], where=where))
    if found is None:
        raise SpecError(
            "this recipe trains a model, not an artifact", where=where, allowed="a recipe with the key kind"
        )
    return found


def given_input(
    study: Study, text: str, store: Store | None, progress: ProgressCallback | None = None
) -> Artifact | str | Path:
    """Return what a role takes for an input of a study.

    Args:
        study: The study.
        text: ``recipe:NAME``, the name of a file of the study, or a name that the role knows.
        store: The folder of runs.
        progress: Told about a training.

    Raises:
        SpecError: A path leaves the folder of the study, or there is no such recipe.
    """
    if text.startswith(PREFIX):
        return trained(declared_recipe(study, text.removeprefix(PREFIX)), store, progress)
    return checked_input(study, text)


def checked_input(study: Study, text: str) -> str | Path:
    """The same without training anything: for a check before anything runs."""
    if text.startswith(PREFIX):
        declared_recipe(study, text.removeprefix(PREFIX))
        return text
    if "/" in text or "\\" in text or text.startswith((".", "~")) or (study.folder / text).exists():
        return inside(study.folder, text, where=f"{study.path}: inputs")
    if Path(text).exists():
        # A file of the working directory that happens to have this name: what a study means
        # must not depend on it.
        raise SpecError(
            "this input is a file outside of the study", where=f"{study.path}: inputs", got=repr(text),
            next_step="copy it into the folder of the study, or run it from another directory",
        )  # fmt: skip
    return text

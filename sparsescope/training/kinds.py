"""Recipes of artifacts: TOML files whose key ``kind`` names what trains one, and whose other keys
are its parameters.

Kinds are registered by the entry point group ``sparsescope.recipes``. A recipe without ``kind`` trains
a small model (``training/recipe.py``). Nothing here imports torch: ``train`` is a module that is
imported when it is used.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sparsescope.core.spec import Params, canonical_json, make_params
from sparsescope.errors import DependencyError, SpecError, unknown_name

ENTRY_POINT_GROUP = "sparsescope.recipes"


@dataclass(frozen=True, slots=True)
class RecipeKind:
    """What trains artifacts of one kind.

    Args:
        name: The value of the key ``kind`` of its recipes.
        summary: One sentence.
        params: The other keys of its recipes.
        train: Module with ``train(params, keep, progress) -> Artifact``. ``keep`` is ``ArtifactStore.keep``
            of the folder of runs; ``progress(phase, done, total, unit)`` is told what is done.
    """

    name: str
    summary: str
    params: type[Params]
    train: str


@dataclass(frozen=True, slots=True)
class ArtifactRecipe:
    """A recipe that was read.

    Attributes:
        path: The file.
        kind: What trains it.
        params: Its parameters, defaults filled in.
    """

    path: Path
    kind: RecipeKind
    params: Params

    @property
    def digest(self) -> str:
        """SHA-256 of kind and parameters: by it the artifact is found again."""
        return hashlib.sha256(
            canonical_json([self.kind.name, self.params.model_dump(mode="json")]).encode()
        ).hexdigest()

    def train(self, keep: Any, progress: Any) -> Any:
        """Train and return the artifact."""
        return import_module(self.kind.train).train(self.params, keep, progress)


@cache
def recipe_kinds() -> Mapping[str, RecipeKind | DependencyError]:
    """Return the kinds by name; one whose package cannot be imported is there as the error of its use."""
    found: dict[str, RecipeKind | DependencyError] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            kind = point.load()
            if not isinstance(kind, RecipeKind):
                raise TypeError(f"{point.value} is a {type(kind).__name__}, not a RecipeKind")
            found[point.name] = kind
        except Exception as error:  # a broken plug-in must not break the others
            found[point.name] = DependencyError(
                f"the plug-in that trains {point.name!r} cannot be used: {error}",
                where=f"entry point {ENTRY_POINT_GROUP}: {point.name} = {point.value}",
                next_step="repair or uninstall the package that declares it",
            )
    return found


def read_artifact_recipe(path: Path) -> ArtifactRecipe | None:
    """Read a recipe of an artifact; None where the file is a recipe of a model.

    Raises:
        SpecError: It is no TOML file, or its kind or a parameter is unknown.
        DependencyError: The package that trains it cannot be imported.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError("the recipe is no TOML file", where=str(path), got=str(error)[:200]) from None
    if "kind" not in values:
        return None
    name = str(values.pop("kind"))
    if name not in recipe_kinds():
        raise unknown_name(
            "kind of recipe",
            name,
            recipe_kinds(),
            next_step=f"a package registers it by the entry point {ENTRY_POINT_GROUP}",
        )
    kind = recipe_kinds()[name]
    if isinstance(kind, DependencyError):
        raise kind
    return ArtifactRecipe(path, kind, make_params(kind.params, values, analysis=f"recipe {path.name}"))

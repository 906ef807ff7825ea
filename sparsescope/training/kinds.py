"""Recipes of artifacts: TOML files whose key ``kind`` names what trains one, and whose other keys
are its parameters.

Kinds are registered by the entry point group ``sparsescope.recipes``. A recipe without ``kind`` trains
a small model (``training/recipe.py``). Nothing here imports torch: ``train`` is a module that is
imported when it is used.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sparsescope.core.artifacts import Artifact
from sparsescope.core.named_code import Owner, function_of, module_of
from sparsescope.core.spec import Params, canonical_json, make_params, named_inputs
from sparsescope.errors import DependencyError, SpecError, unknown_name

ENTRY_POINT_GROUP = "sparsescope.recipes"


@dataclass(frozen=True, slots=True)
class RecipeKind:
    """What trains artifacts of one kind.

    Args:
        name: The value of the key ``kind`` of its recipes.
        summary: One sentence.
        params: The other keys of its recipes. A key that names an input (a model, a text, a series) says so
            by ``json_schema_extra={"role": ROLE}``: another input of the same name trains another artifact.
        train: Module with ``train(params, keep, progress) -> Artifact``, or a list of them. ``keep`` is
            ``ArtifactStore.keep`` of the folder of runs; ``progress(phase, done, total, unit)`` is told
            what is done. Several have ``meta["part"] = [number, how many]``.
        version: Raised when the same recipe trains something else, so that what it trained before is not
            taken for it.
        resumes: Whether ``train`` takes a fourth argument, a folder for unfinished work. It stays until the
            artifacts are kept, so that a training goes on after an interruption.
    """

    name: str
    summary: str
    params: type[Params]
    train: str
    version: int = 1
    resumes: bool = False

    @property
    def reads(self) -> dict[str, str]:
        """Keys that name inputs, with their roles."""
        return named_inputs(self.params)


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

    def digest(self, read: Mapping[str, Sequence[str]]) -> str:
        """SHA-256 of kind, version, parameters and inputs: by it the artifact is found again.

        Args:
            read: Digests of the inputs that it names, by key (``runner.recipes.inputs_of``).
        """
        named: list[Any] = [self.kind.name, self.params.model_dump(mode="json")]
        # Only what there is: what was trained before there were versions and inputs is found by its name
        beyond = {
            **({"version": self.kind.version} if self.kind.version > 1 else {}),
            **({"inputs": {key: list(digests) for key, digests in read.items()}} if read else {}),
        }
        return hashlib.sha256(canonical_json([*named, beyond] if beyond else named).encode()).hexdigest()

    def train(self, keep: Any, progress: Any, work: Path) -> list[Artifact]:
        """Train and return the artifacts.

        Args:
            keep: ``ArtifactStore.keep``.
            progress: Told what is done.
            work: Folder for unfinished work.

        Raises:
            SpecError: The module of the kind cannot be imported, lacks ``train``, or returned no artifact.
        """
        owner = Owner(f"recipe kind {self.kind.name}", "Add an input, a variant, an artifact")
        module = module_of(self.kind.train, owner, "train")
        given = (self.params, keep, progress, *([work] if self.kind.resumes else []))
        call = "train(params, keep, progress" + (", work)" if self.kind.resumes else ")")
        made = function_of(module, call, owner, "train")(*given)
        found = made if isinstance(made, list) and made else [made]
        if not all(isinstance(one, Artifact) for one in found):
            raise SpecError(
                f"the function train of {owner.name} returned no artifact",
                where=f"module {self.kind.train}",
                allowed="writer.artifact, after the block of keep, or a list of artifacts",
                got=type(made).__name__,
                next_step=owner.next_step,
            )
        return found


@cache
def recipe_kinds() -> Mapping[str, RecipeKind | DependencyError]:
    """Return the kinds by name; one whose package cannot be imported is there as the error of its use."""
    # By name: this layer imports nothing above it
    built_in = import_module("sparsescope.dictionaries.recipe").RECIPE
    found: dict[str, RecipeKind | DependencyError] = {built_in.name: built_in}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            kind = point.load()
            if not isinstance(kind, RecipeKind):
                raise TypeError(f"{point.value} is a {type(kind).__name__}, not a RecipeKind")
            if type(kind.version) is not int or kind.version < 1:
                raise TypeError(f"its version is {kind.version!r}, not a whole number from 1 on")
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

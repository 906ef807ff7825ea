"""A recipe: one TOML file that says model, data, optimizer, schedule, checkpoints and seed
of one training run.

Nothing else goes into a run: the same recipe on the same machine with the same versions gives the
same checkpoints, bit for bit. A recipe is data: it names architectures and data sets that are known
here, and no code.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsescope.core.files import given_path, storage_errors
from sparsescope.errors import SpecError, unknown_name
from sparsescope.models.structure.architectures import ARCHITECTURES
from sparsescope.training.schedule import Decay, Schedule

_MAX_BYTES = 64 * 1024
_MAX_CHECKPOINTS = 500


class _Declared(BaseModel):
    """What stands in the file: types as written, no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelRecipe(_Declared):
    """``[model]``: the architecture and what of its configuration differs from the defaults."""

    architecture: str
    config: dict[str, Any] = Field(default_factory=dict)
    no_special_ids: bool = Field(
        True, description="Set pad, bos and eos ids to None: a default pad id would freeze a token."
    )

    @model_validator(mode="after")
    def _known(self) -> ModelRecipe:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is one of {', '.join(ARCHITECTURES)}")
        return self

    @property
    def values(self) -> dict[str, Any]:
        """Values of the configuration, special ids included."""
        ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")) if self.no_special_ids else {}
        return {**ids, **self.config}


class ModularAddition(_Declared):
    """``[data] kind = "modular_addition"``: all pairs (a, b); [a, b, =] -> (a + b) mod p at
    the last position.
    """

    kind: Literal["modular_addition"]
    modulus: int = Field(ge=2, le=1000)
    train_fraction: float = Field(gt=0, lt=1)
    split_seed: int = Field(0, ge=0)
    batch_size: int | None = Field(None, ge=1, description="Pairs in a step; None for all of them.")
    replacement: bool = Field(
        False, description="Draw every step anew; else each pass over the pairs takes each once."
    )


class ByteText(_Declared):
    """``[data] kind = "byte_text"``: windows of the bytes of documents, the same number of each
    domain in every batch.
    """

    kind: Literal["byte_text"]
    corpora: list[str] = Field(min_length=1, description="Registered corpora; each gives its domain.")
    context: int = Field(ge=4, le=1024)
    windows_per_domain: int = Field(ge=1, description="Windows of each domain in a step.")
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the bytes of a domain, in whole documents."
    )
    max_domain_bytes: int = Field(1_000_000, ge=1000, description="Most bytes of a domain.")
    probe_windows: int = Field(64, ge=1, description="Validation windows of each domain in the probe set.")
    split_seed: int = Field(0, ge=0)


class OptimizerRecipe(_Declared):
    """``[optimizer]``: AdamW on every parameter."""

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.9, 0.98]
    warmup_steps: int = Field(10, ge=0, description="Steps of a linear ramp.")
    decay: Decay = "constant"
    final_fraction: float = Field(
        0.1, ge=0, le=1, description="Of the learning rate, at the end of a cosine or a line."
    )
    clip_norm: float | None = Field(None, gt=0)
    loss_dtype: Literal["float32", "float64"] = Field(
        "float32", description="In float32, losses below 1e-7 vanish."
    )
    balance: float = Field(
        0.0, ge=0, description="Weight of the load-balancing loss of a mixture of experts."
    )

    def schedule(self, steps: int) -> Schedule:
        """Learning rates of a run of ``steps`` steps."""
        return Schedule(
            self.learning_rate, steps, self.warmup_steps, self.decay, final_fraction=self.final_fraction
        )


class Recipe(_Declared):
    """The content of a recipe file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    title: str
    license: str
    seed: int = Field(0, ge=0, le=2**31, description="Draws initialization and batches.")
    steps: int = Field(ge=1, le=10**7)
    checkpoints: list[int] = Field(
        min_length=1, max_length=_MAX_CHECKPOINTS, description="Steps; 0 is the initialization."
    )
    log_every: int = Field(ge=1)
    threads: int = Field(
        1, ge=1, le=64, description="Threads of torch; another number may change the last bits."
    )
    model: ModelRecipe
    data: ModularAddition | ByteText = Field(discriminator="kind")
    optimizer: OptimizerRecipe

    @model_validator(mode="after")
    def _steps_in_order(self) -> Recipe:
        if self.checkpoints != sorted(set(self.checkpoints)):
            raise ValueError("checkpoints are ascending, each once")
        if self.checkpoints[0] < 0 or self.checkpoints[-1] > self.steps:
            raise ValueError(f"checkpoints lie in 0 to {self.steps}")
        return self


_ANALYSES = "analyses"


def find_recipe(target: str) -> Path:
    """Return the file of a recipe.

    Args:
        target: A file, ``analyses/STUDY/FILE.toml`` of a shipped study wherever it lies, or the name of a
            shipped series, which has its recipe beside it.

    Raises:
        SpecError: It is neither.
        DependencyError: The shipped series is missing from this installation.
    """
    from sparsescope.models.formats.series_file import RECIPE
    from sparsescope.models.zoo.shipped_series import shipped_folder, shipped_names

    path = given_path(target, "recipe")
    if path.is_file():
        return path
    if target in shipped_names():
        return shipped_folder(target) / RECIPE
    if path.parts[:1] == (_ANALYSES,) and ".." not in path.parts:
        package = Path(__file__).resolve().parent.parent  # in a wheel they lie in the package
        for folder in (package.parent / _ANALYSES, package / "studies"):
            if (found := folder.joinpath(*path.parts[1:])).is_file():
                return found
    raise unknown_name(
        "recipe", target, shipped_names(), next_step="give a TOML file, or the name of a shipped series"
    )


def changed_text(text: str, **changes: str | int | None) -> str:
    """Return the text of a recipe with values at its top level replaced; None changes nothing.

    The copy beside the checkpoints must be the recipe that made them. A file that is written in an unusual
    way (a quoted key) is returned as it is.
    """
    section = re.search(r"^\[", text, flags=re.MULTILINE)
    head, rest = (text, "") if section is None else (text[: section.start()], text[section.start() :])
    for key, value in changes.items():
        if value is not None:
            line = f"{key} = {json.dumps(value)}"
            changed = re.sub(rf"^{key}[ \t]*=.*$", line, head, count=1, flags=re.MULTILINE)
            head = changed if changed != head or line in head else f"{head}{line}\n"
    try:
        found = tomllib.loads(head + rest)
    except tomllib.TOMLDecodeError:
        return text
    return (
        head + rest
        if all(found.get(key) == value for key, value in changes.items() if value is not None)
        else text
    )


def read_recipe(path: Path, **changes: Any) -> Recipe:
    """Read a recipe file.

    Args:
        path: The TOML file.
        **changes: Values in place of those at the top level of the file, for example ``seed=1``;
            None changes nothing.

    Raises:
        SpecError: It is no TOML, or a value is missing, unknown or not valid.
        ArtifactError: It cannot be read.
    """
    with storage_errors("read the recipe", path):
        raw = path.read_bytes()
    try:
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"it has {len(raw)} bytes, more than any recipe")
        values = tomllib.loads(raw.decode())
        return Recipe.model_validate(
            {**values, **{key: value for key, value in changes.items() if value is not None}}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise SpecError(
            f"the recipe is not valid: {'.'.join(map(str, first['loc'])) or 'as a whole'}",
            where=str(path),
            allowed=first["msg"],
            got=repr(first.get("input"))[:200],
            next_step="sparsescope/training/recipe.py says what each key means",
        ) from None
    except (ValueError, RecursionError) as error:  # TOML's and Unicode's own errors are ValueErrors too
        raise SpecError(
            "the recipe is no TOML file",
            where=str(path),
            got=str(error)[:200],
            next_step="see https://toml.io for the format, and analyses/grokking/relu.toml for an example",
        ) from error

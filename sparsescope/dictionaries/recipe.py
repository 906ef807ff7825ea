"""Recipes of dictionaries: a TOML file that says model, site, text, and any number of dictionaries. No
torch here.

kind = "dictionaries"
subject = "smollm2-135m"
corpus = "python-source"
tokens = 1_000_000
site = "blocks.15.mlp.hook_post"

[[dictionaries]]
architecture = "topk"
width = 4608
k = 32
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sparsescope.core.spec import Params
from sparsescope.dictionaries.architectures import ARCHITECTURES, find_architecture
from sparsescope.errors import SparsescopeError
from sparsescope.training.kinds import RecipeKind

SNMF = "snmf"
_TRAINED = ", ".join([*(name for name, entry in ARCHITECTURES.items() if entry.trained), SNMF])


class DictionaryRecipe(BaseModel):
    """One ``[[dictionaries]]``; keys that are not listed are settings of its architecture."""

    model_config = ConfigDict(frozen=True, extra="allow")

    architecture: str = Field(description=f"One of {_TRAINED}.")
    width: int = Field(ge=1, description="Number of features.")
    name: str = Field("", max_length=80, description="Name in tables; made from architecture, k and seed.")
    seed: int = Field(0, ge=0, le=2**31, description="Draws the initial directions.")

    @field_validator("architecture")
    @classmethod
    def _known(cls, value: str) -> str:
        if value == SNMF:
            return value
        try:
            found = find_architecture(value)
        except SparsescopeError as error:
            raise ValueError(f"{error.what}; allowed: {_TRAINED}") from None
        if not found.trained:
            raise ValueError(f"{value} is read from files, and not trained here")
        return found.name

    @model_validator(mode="after")
    def _possible(self) -> DictionaryRecipe:
        k = self.settings.get("k")
        if k is not None and (type(k) is not int or not 1 <= k <= self.width):
            raise ValueError(f"k is a whole number from 1 to the width, {self.width}; got {k!r}")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the architecture."""
        return dict(self.model_extra or {})

    @property
    def label(self) -> str:
        """The name in tables."""
        if self.name:
            return self.name
        k = self.settings.get("k")
        return f"{self.architecture}-{self.width}" + (f"-k{k}" if k else "") + f"-s{self.seed}"


class DictionariesParams(Params):
    """The keys of a recipe of dictionaries."""

    subject: str = Field(description="Model, by name.", json_schema_extra={"role": "subject"})
    corpus: str = Field(description="Text, by name.", json_schema_extra={"role": "text"})
    tokens: int = Field(1_000_000, ge=1, description="Tokens of the text.")
    context: int | None = Field(None, ge=2, description="Tokens in a window; None for what the model takes.")
    site: str = Field(description="Site that is read, for example blocks.15.mlp.hook_post.")
    site_out: str = Field("", description="Site that transcoders write.")
    dictionaries: tuple[DictionaryRecipe, ...] = Field(min_length=1, description="What is trained.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type that the model computes in.")
    stored: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="Type that activations are stored in."
    )
    seed: int = Field(
        0, ge=0, le=2**31, description="Draws documents, what is held out, and the order of rows."
    )
    held_out: float = Field(
        0.1, gt=0, lt=0.5, description="Share of the text that is held out; thresholds are set on one "
        "half of these documents, errors computed on the other."
    )  # fmt: skip
    epochs: int = Field(1, ge=1, le=100, description="How often every row comes.")
    batch_rows: int = Field(4096, ge=16, description="Rows in a step.")
    buffer_rows: int = Field(2**17, ge=16, description="Rows that are mixed with each other.")
    learning_rate: float | None = Field(None, gt=0, description="None for 1e-3 sqrt(4096 / width).")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which it rises.")
    decay: float = Field(0.25, ge=0, le=1, description="Share of the steps in which it falls to 0.")
    dead_window: int | None = Field(
        None,
        ge=1,
        description="Rows without activity after which a feature is dead; None for one pass, within which "
        "nothing is dead: with one epoch, AuxK needs a smaller one.",
    )
    centred: bool = Field(True, description="Whether the mean is taken out of the rows at the beginning.")
    scores: Literal["float32", "bfloat16"] = Field(
        "float32",
        # What was trained before there was a choice is found by its old name
        exclude_if=lambda value: value == "float32",
        description="Type that features are scored in to choose the active ones; all else is exact.",
    )
    snmf_rows: int = Field(50_000, ge=16, description="Rows that an SNMF is fitted to.")
    log: tuple[str, ...] = Field(
        (), exclude=True, description="Where curves go too: tensorboard:FOLDER, wandb:PROJECT."
    )

    @model_validator(mode="after")
    def _distinct(self) -> DictionariesParams:
        labels = [entry.label for entry in self.dictionaries]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise ValueError(f"two dictionaries are called {twice}: give them a name or a seed of their own")
        transcoders = {entry.architecture == "transcoder" for entry in self.dictionaries}
        if True in transcoders and (False in transcoders or not self.site_out):
            raise ValueError("transcoders need site_out, and a recipe of their own")
        return self


RECIPE = RecipeKind(
    "dictionaries",
    "sparse autoencoders and semi-nonnegative factorizations of one site of a model",
    DictionariesParams,
    "sparsescope.dictionaries.from_recipe",
    resumes=True,
)

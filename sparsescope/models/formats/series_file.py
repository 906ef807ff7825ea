"""The folder of a checkpoint series that this project trained, read and checked.

``series.json`` names everything else with its SHA-256: ``config.json``, ``recipe.toml`` (what made it),
``curves.parquet`` (losses along training), ``probe.safetensors`` (the tokens on which analyses evaluate every
checkpoint) and one ``step-N.safetensors`` for each checkpoint, float16. For each checkpoint it has the
measures of the float32 weights (``trained``) and of the same weights rounded to float16 (``stored``):
``{split: {"loss", "accuracy", "n"}}``; losses in nats, of modular addition at the last position, of text per
byte. Splits are train and test, or train and validation with their domains (``validation/code``) and, of the
stored weights, ``probe``: the mean over the probe set, which can be had again without the texts.
``curves.parquet`` is long: step, measure (``loss``, ``accuracy``, ``squared_norm``), split, part (a domain,
the name of a tensor, or empty), value.

Shapes: probe ``tokens`` [n, pos]; other arrays of the probe are [n] (``answer``,
``train``, ``domain``, ``document``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsescope.core.files import sha256_file
from sparsescope.core.strict_json import parse
from sparsescope.core.tensor_header import read_header
from sparsescope.errors import ArtifactError, SpecError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

FILE, CURVES, PROBE, CONFIG, RECIPE = (
    "series.json",
    "curves.parquet",
    "probe.safetensors",
    "config.json",
    "recipe.toml",
)
FORMAT = 1
#: What configurations of mixtures call the number of their experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
#: What that of BlockFFN calls the number of experts that its MLP is made of.
_SMALL_EXPERTS = "ffn_experts"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Measures = dict[str, dict[str, float]]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StoredCheckpoint(_Declared):
    """One checkpoint: its file, and what was measured when it was made."""

    step: int = Field(ge=0)
    file: str
    sha256: Digest
    float32_hash: Digest = Field(description="SHA-256 of the weights before rounding (identity.weight_hash).")
    trained: Measures
    stored: Measures


class SeriesFile(_Declared):
    """The content of ``series.json``."""

    format: Literal[1]
    name: str
    title: str
    license: str
    seed: int
    architecture: str
    n_parameters: int
    files: dict[str, Digest]
    probe_digest: Digest
    data: dict[str, Any]
    baselines: dict[str, dict[str, float]] = {}
    events: dict[str, int | None] = {}
    environment: dict[str, Any]
    checkpoints: list[StoredCheckpoint] = Field(min_length=1)


@dataclass(frozen=True, slots=True, eq=False)
class ProbeSet:
    """The tokens on which every checkpoint of a series is evaluated.

    Attributes:
        tokens: int64 [n, pos].
        fields: Further arrays [n]; of modular addition ``answer`` and ``train`` (1 where the pair was trained
            on), of text ``domain`` (index into the ``domains`` of the data's description) and ``document``.
        digest: SHA-256 of all of them.
    """

    tokens: NDArray[np.int64]
    fields: Mapping[str, NDArray[np.int64]]
    digest: str


def probe_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of named arrays: names, shapes and values as little-endian int64, in the
    order of the names.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name], "<i8")
        digest.update(json.dumps([name, list(values.shape)]).encode() + values.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class SeriesFolder:
    """A folder whose ``series.json`` was read. The other files are checked when they are opened."""

    folder: Path
    content: SeriesFile

    @classmethod
    def open(cls, folder: Path) -> SeriesFolder:
        """Read ``series.json``.

        Raises:
            ArtifactError: It is missing or not valid, or names files that are not beside it.
        """
        path = folder / FILE
        try:
            raw = parse(path.read_bytes())
            content = SeriesFile.model_validate(raw)
            steps = [checkpoint.step for checkpoint in content.checkpoints]
            if steps != sorted(set(steps)):
                raise ValueError("the steps are not ascending")
            names = [*content.files, *(checkpoint.file for checkpoint in content.checkpoints)]
            strange = next((name for name in names if not _NAME.fullmatch(name)), None)
            if strange is not None:
                raise ValueError(f"{strange[:80]!r} is not the name of a file beside it")
        except (OSError, ValueError) as error:  # a ValidationError is a ValueError too
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            newer = (
                isinstance(error, ValidationError) and isinstance(raw, dict) and raw.get("format") != FORMAT
            )
            raise ArtifactError(
                "the checkpoint series cannot be read",
                where=str(path),
                got=f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)[:200],
                next_step="upgrade sparsescope"
                if newer
                else "copy the folder again, or train it again from its recipe",
            ) from error
        return cls(folder, content)

    @property
    def kinds(self) -> frozenset[str]:
        """What its configuration says of its models, read without checking the file: ``experts``, and
        ``gates`` where it names the gate of a mixture; ``small_experts`` of an MLP (BlockFFN).
        """
        try:
            config = parse((self.folder / CONFIG).read_bytes())
        except (OSError, ValueError):
            return frozenset()  # a damaged file is reported where it is opened
        known = config if isinstance(config, dict) else {}
        counts = [known.get(name) for name in _EXPERTS]
        found = {"experts"} if any(isinstance(count, int) and count > 0 for count in counts) else set()
        if isinstance(known.get(_SMALL_EXPERTS), int):
            found.add("small_experts")
        return frozenset(
            found | ({"gates"} if "experts" in found and isinstance(known.get("gate"), str) else set())
        )

    def checkpoint(self, step: int) -> StoredCheckpoint:
        """Return the record of a step.

        Raises:
            SpecError: The series has no checkpoint of that step.
        """
        for found in self.content.checkpoints:
            if found.step == step:
                return found
        steps = [found.step for found in self.content.checkpoints]
        near = sorted(steps, key=lambda known: abs(known - step))[:2]
        raise SpecError(
            f"the series {self.content.name!r} has no checkpoint of step {step}",
            where="step",
            allowed=", ".join(map(str, steps)),
            got=step,
            next_step=f"take a step that is there, the nearest are {' and '.join(map(str, sorted(near)))}",
        )

    def path(self, name: str) -> Path:
        """Return a file of the series after checking its SHA-256.

        Raises:
            ArtifactError: It is missing or not the one that ``series.json`` names.
        """
        known = {**self.content.files, **{found.file: found.sha256 for found in self.content.checkpoints}}
        path = self.folder / name
        found = sha256_file(path) if path.is_file() else "no file"
        if name not in known or found != known[name]:
            raise ArtifactError(
                "a file of the checkpoint series is missing or damaged",
                where=str(path),
                allowed=f"sha256 {known.get(name)}",
                got=found,
                next_step="copy the folder again, or train it again from its recipe",
            )
        return path

    def model(self, step: int, attn_implementation: str | None = None) -> PreTrainedModel:
        """Return the model of a step, its float16 weights in float32.

        Raises:
            SpecError: There is no such step.
            ArtifactError: A file is missing or damaged, or the weights are not those of the architecture.
        """
        from safetensors.torch import load_file

        from sparsescope.models.identity import named_tensors
        from sparsescope.models.structure.architectures import build_model

        path = self.path(self.checkpoint(step).file)
        values = parse(self.path(CONFIG).read_bytes(), constants=True)
        model = build_model(self.content.architecture, values, attn_implementation=attn_implementation)
        here = dict(named_tensors(model))
        header = {name: entry.shape for name, entry in read_header(path).items()}
        if header != {name: tuple(tensor.shape) for name, tensor in here.items()}:
            raise ArtifactError(
                "the weights of a checkpoint are not those of its architecture",
                where=str(path),
                allowed=f"{len(here)} tensors of {self.content.architecture}",
                got=f"{len(header)} tensors, or other shapes",
                next_step="copy the folder again, or train it again from its recipe",
            )
        copy_weights(here, load_file(path))
        return model

    def probe(self) -> ProbeSet:
        """Return the probe set.

        Raises:
            ArtifactError: It is damaged, or not the one that the series was made with.
        """
        from safetensors.numpy import load_file

        path = self.path(PROBE)
        arrays = {name: array.astype(np.int64) for name, array in load_file(path).items()}
        digest = probe_digest(arrays)
        if digest != self.content.probe_digest or "tokens" not in arrays:
            raise ArtifactError(
                "the probe set is not the one of this series",
                where=str(path),
                allowed=f"digest {self.content.probe_digest}",
                got=digest,
                next_step="copy the folder again, or train it again from its recipe",
            )
        return ProbeSet(arrays.pop("tokens"), arrays, digest)

    def curves(self) -> pd.DataFrame:
        """Return the measures along training: columns step, measure, split, part, value."""
        import pandas as pd

        return pd.read_parquet(self.path(CURVES))


def copy_weights(target: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Copy tensors by name into those of a model; dtypes may differ, names and shapes may not."""
    import torch

    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])

"""Models that this project trained and ships with their checkpoints, as registered subjects.

``load("grokking-relu")`` is the last checkpoint, ``load("grokking-relu@step-4000")`` that of step 4000; which
steps there are says ``models.checkpoints.open_series("grokking-relu").steps``. Weights are stored in float16.
What made them stands beside them in ``recipe.toml``; ``sparsescope train`` makes them again.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.errors import DependencyError, SpecError
from sparsescope.models.entries import LoadedModel, LoadRequest, SubjectEntry

if TYPE_CHECKING:
    from sparsescope.models.formats.series_file import SeriesFolder

# name -> summary. Listing them reads no file; `open_series` says the steps.
_SERIES = {
    "grokking-relu": "one-layer ReLU transformer that groks addition mod 113, with checkpoints",
    "grokking-relu-wd0": "control of grokking-relu: no weight decay, never generalizes",
    "grokking-moe": "OLMoE of 4 layers that groks addition mod 59, 8 experts, 2 routed, with checkpoints",
    "grokking-moe-wd0": "control of grokking-moe: no weight decay",
    "grokking-short": (
        "smaller ReLU transformer that groks addition mod 59; five seeds show the spread of the onset"
    ),
    "bytes-moe": "OLMoE language model on bytes of four kinds of text, with checkpoints",
    "lazy-relu": "ReLU language model on bytes (OPT), with checkpoints from step 0",
    "lazy-swiglu": (
        "SwiGLU language model on bytes (Llama) of the size of lazy-relu, with checkpoints from step 0"
    ),
    "blockffn": (
        "BlockFFN language model on bytes: each MLP is 40 small experts, of which tokens in a row use few"
    ),
}
# Runs of another seed with few checkpoints, for what needs several runs: `open_series` opens them, `load`
# does not name them.
_OTHER_SEEDS = (
    "grokking-moe-seed1",
    "grokking-moe-seed2",
    *(f"grokking-short-seed{seed}" for seed in range(1, 5)),
)
_REVISION = re.compile(r"(?:step-?)?(\d{1,12})")


@cache
def models_folder() -> Path:
    """Return the folder of the shipped series: of the installed package, or of the repository in a checkout.

    Raises:
        DependencyError: It is in neither place.
    """
    here = Path(__file__).resolve()
    places = [folder / "data" / "models" for folder in here.parents[2:4]]
    for place in places:
        if place.is_dir():
            return place
    raise DependencyError(
        "the shipped models are missing from this installation",
        where=" or ".join(map(str, places)),
        next_step="reinstall sparsescope, or work in a checkout of the repository",
    )


def shipped_names() -> tuple[str, ...]:
    """Return the names of the shipped series."""
    return (*_SERIES, *_OTHER_SEEDS)


def shipped_folder(name: str) -> Path:
    """Return the folder of a shipped series.

    Raises:
        DependencyError: This installation lacks it.
    """
    folder = models_folder() / name
    if not (folder / "series.json").is_file():
        raise DependencyError(
            f"the weights of {name!r} are missing from this installation",
            where=str(folder),
            next_step="reinstall sparsescope, or train them again from their recipe in analyses/",
        )
    return folder


def shipped_subjects() -> tuple[SubjectEntry, ...]:
    """Return the entries of the shipped series for the list of subjects."""
    return tuple(
        SubjectEntry(
            name,
            f"{summary}; {name}@step-N is one of them",
            license="Apache-2.0 (trained by this project)",
            origin="trained from the recipe that lies beside the weights",
            precision="float16",
            loader="sparsescope.models.zoo.shipped_series:load_shipped",
        )
        for name, summary in _SERIES.items()
    )


def load_shipped(request: LoadRequest) -> LoadedModel:
    """Load one checkpoint of a shipped series: the last one, or that of ``revision``
    (``step-4000`` or ``4000``).

    Raises:
        SpecError: The revision is no step, or the series has no such checkpoint.
        DependencyError: This installation lacks the series.
        ArtifactError: A file is damaged.
    """
    return load_series_folder(shipped_folder(request.name), request)


def load_series_folder(path: Path, request: LoadRequest) -> LoadedModel:
    """Load one checkpoint of a series of our own trainer from any folder: the last one, or
    that of the revision.

    Raises:
        SpecError: The revision is no step, or the series has no such checkpoint.
        ArtifactError: A file is damaged.
    """
    from sparsescope.models.formats.series_file import SeriesFolder
    from sparsescope.models.torch_environment import torch_dtype

    folder = SeriesFolder.open(path)
    step = step_of(folder, request.revision)
    model: Any = folder.model(step, request.attn_implementation)
    model.to(torch_dtype(request.dtype))
    return LoadedModel(model, read_tokenizer(folder), f"step-{step}", "float16")


def step_of(folder: SeriesFolder, revision: str | None) -> int:
    """Read the step from a revision; None is the last one.

    Raises:
        SpecError: It is written in another way.
    """
    if revision is None:
        return folder.content.checkpoints[-1].step
    match = _REVISION.fullmatch(revision)
    if match is None:
        raise SpecError(
            "a checkpoint is named by its step",
            where="load(revision)",
            allowed=", ".join(f"step-{found.step}" for found in folder.content.checkpoints),
            got=repr(revision),
            next_step=f'for example load("NAME@step-{folder.content.checkpoints[-1].step}")',
        )
    return int(match.group(1))


def read_tokenizer(folder: SeriesFolder) -> Any:
    """Return the tokenizer of a series; None for arithmetic, whose models read residues and "="
    as ids and no text.
    """
    from sparsescope.models.zoo.byte_tokenizer import byte_tokenizer

    described = folder.content.data
    return byte_tokenizer(int(described["context"])) if described["kind"] == "byte_text" else None

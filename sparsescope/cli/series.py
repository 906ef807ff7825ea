"""Series of checkpoints on the command line: which target is one, and how their analyses are run.

A series of modular addition has no text that a model analysis could read: a report about it holds the analyses of series. A
report about a series of language models holds the analyses of its last checkpoint, then those of series that read text.
One checkpoint is a model as any other: ``NAME@step-N``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.runner.run import Outcome


def kind_of_series(target: str) -> str | None:
    """Return what a trained series is about, ``"modular_addition"`` or ``"byte_text"``; None for what is none.

    Raises:
        DependencyError: A shipped series is missing from this installation.
        ArtifactError: The folder of a series is damaged.
    """
    from sparsescope.models.embedded import embedded_folder, embedded_series
    from sparsescope.models.series_file import FILE, SeriesFolder

    folder = embedded_folder(target) if target in embedded_series() else Path(target).expanduser()
    return str(SeriesFolder.open(folder).content.data.get("kind")) if (folder / FILE).is_file() else None


def series_requests(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The analyses of series that a report about a series of this kind holds, with default parameters."""
    from sparsescope.core.registry import analyses

    return [(record.name, {}) for record in analyses() if record.input == "series" and record.reads_text == (kind == "byte_text")]


def run_on_series(
    wanted: list[tuple[str, dict[str, Any]]], target: str, home: Path | None, text: Corpus | None = None
) -> list[Outcome]:
    """Run analyses of a series with a progress bar.

    Args:
        wanted: Analyses with their parameters.
        target: The series.
        home: Folder of runs.
        text: The text that they read; None for the held-out text of the series.

    Raises:
        SpecError: An analysis studies a model, or reads no text, or lacks one.
        SubjectError: There is no such series.
    """
    from sparsescope.cli import console

    console.say(f"opening {target}")
    from sparsescope.models.checkpoints import open_series
    from sparsescope.runner.run import Request
    from sparsescope.runner.series import run_series

    series: CheckpointSeries = open_series(target)
    with console.progress_bar() as progress:
        requests = [Request(name, params) for name, params in wanted]
        return run_series(requests, series, text, store=home or True, progress=progress)


def refuse_model_options(name: str, *, without: str = "", **given: object) -> None:
    """Refuse options that say how a model is loaded, or what it reads, where a series is opened.

    Args:
        name: The analysis.
        without: The option without which these have no meaning; empty where they never have one.
        **given: Option and value; a value that is None, False or the default is no complaint.

    Raises:
        SpecError: One was given.
    """
    set_ = [f"--{option.replace('_', '-')}" for option, value in given.items() if value]
    if set_:
        raise SpecError(
            f"{name} studies a series of checkpoints: these options have no meaning{f' without {without}' if without else ''}",
            where=", ".join(set_),
            got="checkpoints are computed on the CPU in float32, on the text of the series unless another one is given",
            next_step=f"leave them out: sparsescope run {name} --subject SERIES",
        )

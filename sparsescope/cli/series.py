"""Series of checkpoints on the command line: which target is one, and how their analyses are run.

A shipped or local series of modular addition has no text that a model analysis could read; a report about it holds the
analyses of series. One checkpoint of it is a model as any other: ``NAME@step-N``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.runner.run import Outcome


def is_series(target: str) -> bool:
    """Whether a report about ``target`` is one about a series: a trained series whose models read no text.

    Raises:
        DependencyError: A shipped series is missing from this installation.
        ArtifactError: The folder of a series is damaged.
    """
    from sparsescope.models.embedded import embedded_folder, embedded_series
    from sparsescope.models.series_file import FILE, SeriesFolder

    folder = embedded_folder(target) if target in embedded_series() else Path(target).expanduser()
    return (folder / FILE).is_file() and SeriesFolder.open(folder).content.data.get("kind") == "modular_addition"


def series_requests() -> list[tuple[str, dict[str, Any]]]:
    """Every analysis of series, with default parameters."""
    from sparsescope.core.registry import analyses

    return [(record.name, {}) for record in analyses() if record.input == "series"]


def run_on_series(wanted: list[tuple[str, dict[str, Any]]], target: str, home: Path | None) -> list[Outcome]:
    """Run analyses of a series with a progress bar.

    Raises:
        SpecError: An analysis studies a model.
        SubjectError: There is no such series.
    """
    from sparsescope.cli import console

    console.say(f"opening {target}")
    from sparsescope.models.checkpoints import open_series
    from sparsescope.runner.run import Request
    from sparsescope.runner.series import run_series

    series: CheckpointSeries = open_series(target)
    with console.progress_bar() as progress:
        return run_series([Request(name, params) for name, params in wanted], series, store=home or True, progress=progress)


def refuse_model_options(name: str, **given: object) -> None:
    """Refuse options that say how a model is loaded, or what it reads, where a series is opened.

    Args:
        name: The analysis.
        **given: Option and value; a value that is None, False or the default is no complaint.

    Raises:
        SpecError: One was given.
    """
    set_ = [f"--{option.replace('_', '-')}" for option, value in given.items() if value]
    if set_:
        raise SpecError(
            f"{name} studies a series of checkpoints: these options have no meaning",
            where=", ".join(set_),
            next_step=f"leave them out: sparsescope run {name} --subject SERIES",
        )

"""Where the curves of a training go beside its own record: TensorBoard or Weights & Biases, both optional
packages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sparsescope.errors import DependencyError, SpecError

Sink = Callable[[int, Mapping[str, float]], None]


def open_sink(target: str) -> Sink:
    """Open a sink, called as ``sink(step, values)``.

    Args:
        target: ``tensorboard:FOLDER`` or ``wandb:PROJECT``.

    Raises:
        SpecError: It is something else.
        DependencyError: The package is not installed.
    """
    kind, _, place = target.partition(":")
    if kind not in ("tensorboard", "wandb") or not place:
        raise SpecError(
            "curves cannot go there",
            where="log",
            allowed="tensorboard:FOLDER, wandb:PROJECT",
            got=repr(target),
        )
    return _tensorboard(place) if kind == "tensorboard" else _wandb(place)


def _tensorboard(folder: str) -> Sink:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard", error) from None
    writer = SummaryWriter(folder)

    def sink(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return sink


def _wandb(project: str) -> Sink:
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb", error) from None
    run = wandb.init(project=project)

    def sink(step: int, values: Mapping[str, float]) -> None:
        run.log(dict(values), step=step)

    return sink


def _missing(package: str, error: ImportError) -> DependencyError:
    return DependencyError(
        f"curves cannot go to {package}: the package is not installed",
        where="log",
        got=str(error),
        next_step=f"pip install {package}, or leave the key log out of the recipe",
    )

"""A series of checkpoints of one training run, in ascending steps, one model in memory at a time.

``open_series("grokking-relu")`` reads a series that ships with the project; the output folder of our trainer,
a local folder of ``step-N`` or ``checkpoint-N`` folders in the layout of transformers, and a hub model with
its revisions work alike::

    for checkpoint, subject in open_series("grokking-relu"):
        ...                       # the subject of the step before is let go when the next one is loaded

Which tokens the checkpoints are compared on is part of a trained series
(``series.probe()``), fixed by digest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sparsescope.core.files import given_path
from sparsescope.core.shown import Shown
from sparsescope.errors import DependencyError, SpecError, SubjectError
from sparsescope.models.formats import series_file
from sparsescope.models.formats.revision_names import CheckpointName, ordered_names, parse_name
from sparsescope.models.formats.router_rows import FolderFiles, HubFiles, read_router_rows
from sparsescope.models.formats.series_file import ProbeSet, SeriesFolder

if TYPE_CHECKING:
    import pandas as pd

    from sparsescope.models.formats.router_rows import Files, RouterRows
    from sparsescope.models.subject import Subject

# Batch of Pythia, in tokens; its revisions count steps alone. The first generation (-v0) counts otherwise.
_PYTHIA = re.compile(r"EleutherAI/pythia-(?!.*-v0)[\w.-]+")
_PYTHIA_STEP_TOKENS = 2_097_152


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint of a series.

    Attributes:
        step: Optimizer step.
        revision: Its name in the series, for example ``step-4000`` or ``stage1-step1000-tokens5B``.
        tokens: Tokens read so far, None where that is not known.
        stage: Stage of training, None where there is one.
        trained: Measures of the weights as they were trained, by split; empty where none were recorded.
        stored: The same of the weights as they are stored, which is what a subject computes with.
    """

    step: int
    revision: str
    tokens: int | None = None
    stage: int | None = None
    trained: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    stored: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class CheckpointSeries(Shown):
    """Checkpoints in the order of their steps. Made by ``open_series``.

    Args:
        name: Name for titles and messages.
        checkpoints: The checkpoints, ascending.
        load: Gives the subject of one of them.
        folder: The folder of a series of our own trainer, else None.
        files: Gives the files of one of them, for what is read without loading it.

    Attributes:
        hashes: Hash of the weights by step, as far as it is known: a series of our own trainer says them,
            those of others are known once its identity was asked for.
    """

    def __init__(
        self,
        name: str,
        checkpoints: Sequence[Checkpoint],
        load: Callable[[Checkpoint], Subject],
        folder: SeriesFolder | None = None,
        files: Callable[[Checkpoint], Files] | None = None,
    ) -> None:
        self.name = name
        self.checkpoints = tuple(checkpoints)
        self._load = load
        self._folder, self._files = folder, files
        self._routers: dict[int, RouterRows] = {}
        self.hashes: dict[int, str] = {}
        if folder is not None:
            self.hashes = {found.step: found.sha256 for found in folder.content.checkpoints}

    def _shown(self) -> dict[str, object]:
        return {
            "name": self.name,
            "checkpoints": len(self),
            "steps": f"{self.steps[0]} to {self.steps[-1]}",
        }

    def __len__(self) -> int:
        return len(self.checkpoints)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the checkpoints, ascending."""
        return tuple(checkpoint.step for checkpoint in self.checkpoints)

    def checkpoint(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step.

        Raises:
            SpecError: The series has none of that step.
        """
        for checkpoint in self.checkpoints:
            if checkpoint.step == step:
                return checkpoint
        raise SpecError(
            f"the series has no checkpoint of step {step}",
            where=self.name,
            allowed=", ".join(map(str, self.steps)),
            got=repr(step),
            next_step="take one of these steps",
        )

    def subject(self, step: int) -> Subject:
        """Load the checkpoint of a step; its revision is the name of the checkpoint.

        Raises:
            SpecError: The series has none of that step.
            SubjectError: It cannot be used.
        """
        return self._load(self.checkpoint(step))

    def routers(self, step: int) -> RouterRows:
        """Read the routers of the checkpoint of a step and nothing else of it; they are kept.

        Raises:
            SpecError: The series has none of that step, or was not opened from files.
            SubjectError: It has no routers that can be read by themselves.
            DependencyError: The hub cannot be reached, or does not serve byte ranges.
        """
        checkpoint = self.checkpoint(step)
        if self._files is None:
            raise SpecError(
                "the files of this series are not known",
                where=self.name,
                allowed="a series that open_series opened",
                next_step='open it by name, folder or hub id: ss.open_series("bytes-moe")',
            )
        if step not in self._routers:
            self._routers[step] = read_router_rows(self._files(checkpoint))
        return self._routers[step]

    def __iter__(self) -> Iterator[tuple[Checkpoint, Subject]]:
        return self.subjects()

    def subjects(self, done: Iterable[int] = ()) -> Iterator[tuple[Checkpoint, Subject]]:
        """Yield each checkpoint and its subject, ascending; the series keeps none of them.

        Args:
            done: Steps to leave out, which are not loaded: those that an earlier pass has finished.
        """
        known = set(done)
        for checkpoint in self.checkpoints:
            if checkpoint.step not in known:
                yield checkpoint, self._load(checkpoint)

    @property
    def repeated(self) -> tuple[tuple[int, ...], ...]:
        """Steps whose checkpoints have equal weights, in groups, as far as hashes are known."""
        groups: dict[str, list[int]] = {}
        for step in self.steps:
            if step in self.hashes:
                groups.setdefault(self.hashes[step], []).append(step)
        return tuple(tuple(steps) for steps in groups.values() if len(steps) > 1)

    def probe(self) -> ProbeSet:
        """Return the tokens on which checkpoints of this series are compared; their digest is checked.

        Raises:
            SpecError: Only series of our own trainer carry one.
            ArtifactError: It is damaged.
        """
        return self._trained("probe set").probe()

    def curves(self) -> pd.DataFrame:
        """Return the measures along training: columns step, measure, split, part, value.

        Raises:
            SpecError: Only series of our own trainer carry them.
            ArtifactError: The file is damaged.
        """
        return self._trained("training curves").curves()

    @property
    def shipped(self) -> bool:
        """Whether it is one of the series that come with the project, which its name opens."""
        from sparsescope.models.zoo.shipped_series import models_folder

        try:
            return (
                self._folder is not None and self._folder.folder.resolve().parent == models_folder().resolve()
            )
        except DependencyError:  # an installation without them
            return False

    @property
    def trained(self) -> series_file.SeriesFile | None:
        """What a series of our own trainer says of itself; None for others."""
        return None if self._folder is None else self._folder.content

    @property
    def kinds(self) -> frozenset[str]:
        """What the models of our own trainer are: ``experts``, ``gates``; see ``SeriesFolder``."""
        return frozenset() if self._folder is None else self._folder.kinds

    def _trained(self, what: str) -> SeriesFolder:
        if self._folder is None:
            raise SpecError(
                f"this series carries no {what}",
                where=self.name,
                allowed="series of sparsescope.training",
                next_step="choose the tokens yourself, and keep them the same for all checkpoints",
            )
        return self._folder


def distinct_names(series: Sequence[CheckpointSeries]) -> list[str]:
    """Names of series that are set beside each other; of equal ones with their places."""
    names = [found.name for found in series]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names)]


def open_series(
    source: str | Path, *, revisions: Sequence[str] | None = None, form: str | None = None
) -> CheckpointSeries:
    """Open a series by name.

    Args:
        source: Registered series (``models.zoo.shipped_series.shipped_names()``), folder, or
            hub id ``organization/model``.
        revisions: Names of the checkpoints to take, of a folder or a hub model; all of them when None.
        form: Take the names of this form only, for example ``stage1-stepN-tokensMB``, where
            there are several.

    Raises:
        SpecError: Names are mixed, repeated or of no known form, or there is no checkpoint.
        SubjectError: There is no such series.
        ArtifactError: The folder of a trained series is damaged.
        DependencyError: The hub cannot be asked for the revisions.
    """
    from sparsescope.models.zoo.shipped_series import shipped_folder, shipped_names

    text = str(source)
    folder = shipped_folder(text) if text in shipped_names() else given_path(text, "name of a series")
    if (folder / series_file.FILE).is_file():
        return _trained_series(SeriesFolder.open(folder), text)
    if folder.is_dir():
        return _folder_series(folder, revisions, form)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) and ".." not in text:
        return _hub_series(text, revisions, form)
    from sparsescope.errors import unknown_name

    raise unknown_name(
        "checkpoint series",
        text,
        shipped_names(),
        next_step="give a registered series, a folder of checkpoints, or a hub id organization/model",
        error=SubjectError,
    )


def _trained_series(folder: SeriesFolder, text: str) -> CheckpointSeries:
    """A series of our own trainer; ``text`` is what it was opened with."""
    from sparsescope.models.sources import load as load_subject
    from sparsescope.models.zoo.shipped_series import shipped_subjects

    registered = any(entry.name == text for entry in shipped_subjects())
    checkpoints = [
        Checkpoint(found.step, f"step-{found.step}", trained=found.trained, stored=found.stored)
        for found in folder.content.checkpoints
    ]

    def load(checkpoint: Checkpoint) -> Subject:
        return load_subject(text if registered else folder.folder.resolve(), checkpoint.revision)

    # By its folder, as `load` names it: a run of one's own may come from a recipe with the name
    # of a shipped series.
    def files(checkpoint: Checkpoint) -> Files:
        return FolderFiles(folder.folder, folder.checkpoint(checkpoint.step).file)

    return CheckpointSeries(folder.folder.resolve().name, checkpoints, load, folder, files)


def _folder_series(folder: Path, revisions: Sequence[str] | None, form: str | None) -> CheckpointSeries:
    """A folder with one folder of transformers for each checkpoint; others in it (logs) are not looked at."""
    from sparsescope.models.sources import load as load_subject

    there = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir()]
    if revisions is None:
        revisions = [name for name in there if parse_name(name) is not None]
    absent = [name for name in revisions if name not in there]
    if absent:
        raise SpecError(
            "the folder has no such checkpoint",
            where=str(folder),
            got=", ".join(absent[:5]),
            next_step="give names of folders in it",
        )
    names = ordered_names(_of_form(revisions, form), str(folder))

    def load(checkpoint: Checkpoint) -> Subject:
        subject = load_subject(folder / checkpoint.revision)
        subject.id, subject.revision = folder.name, checkpoint.revision
        return subject

    def files(checkpoint: Checkpoint) -> Files:
        return FolderFiles(folder / checkpoint.revision)

    return CheckpointSeries(folder.name, [_named(name) for name in names], load, files=files)


def _hub_series(repository: str, revisions: Sequence[str] | None, form: str | None) -> CheckpointSeries:
    """A hub model whose branches are checkpoints; without ``revisions`` the hub is asked for them."""
    from sparsescope.models.sources import load as load_subject

    if revisions is None:
        revisions = [name for name in _branches(repository) if parse_name(name) is not None]
    names = ordered_names(_of_form(revisions, form), repository)
    per_step = _PYTHIA_STEP_TOKENS if _PYTHIA.fullmatch(repository) else None

    def load(checkpoint: Checkpoint) -> Subject:
        subject = load_subject(repository, revision=checkpoint.revision)
        # The commit that it stands for is not needed: weights are hashed
        subject.revision = checkpoint.revision
        return subject

    def files(checkpoint: Checkpoint) -> Files:
        return HubFiles(repository, checkpoint.revision)

    return CheckpointSeries(repository, [_named(name, per_step) for name in names], load, files=files)


def _branches(repository: str) -> list[str]:
    """Ask the hub for the names of all branches.

    Raises:
        DependencyError: It cannot be reached, or has no such model.
    """
    from huggingface_hub import HfApi, constants

    try:
        if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {
            "1",
            "ON",
            "YES",
            "TRUE",
        }:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        return [branch.name for branch in HfApi().list_repo_refs(repository).branches]
    except Exception as error:  # connection errors of httpx, and of whatever follows it
        raise DependencyError(
            "the hub cannot be asked for the checkpoints of this model",
            where=repository,
            got=f"{type(error).__name__}: {str(error).strip()[:120]}",
            next_step="give the names: open_series(..., revisions=[...]); cached ones are then "
            "loaded without a network",
        ) from error


def _of_form(revisions: Sequence[str], form: str | None) -> list[str]:
    if form is None:
        return list(revisions)
    return [name for name in revisions if (parsed := parse_name(name)) is not None and parsed.form == form]


def _named(name: CheckpointName, tokens_per_step: int | None = None) -> Checkpoint:
    tokens = name.step * tokens_per_step if name.tokens is None and tokens_per_step else name.tokens
    return Checkpoint(name.step, name.revision, tokens, name.stage)

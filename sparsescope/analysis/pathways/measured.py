"""What was measured of a series, in the form that tables are made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.analysis.pathways.measure import UNITS, VALUES, kinds_of
from sparsescope.metrics.leads import log_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sparsescope.analysis.pathways import PathwaysParams
    from sparsescope.analysis.pathways.measure import Group
    from sparsescope.analysis.pathways.samples import Samples
    from sparsescope.metrics.onsets import Onsets

    Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Steady:
    """A series without the checkpoints at which its training loss leaps; see ``metrics.leads.Followed``."""

    name: str
    onsets: Onsets
    curves: pd.DataFrame
    checkpoints: pd.DataFrame


@dataclass(frozen=True)
class Measured:
    """A series with everything that was measured of it.

    Attributes:
        name: Its name.
        steps: Steps of its checkpoints.
        samples: What they read.
        groups: Groups of samples.
        curves: What the training logged: ``step`` alone for a series of others.
        onsets: When it memorized and generalized.
        read: What ``read_checkpoint`` gave, with ``shape``, by checkpoint.
        arrays: What ``measure_checkpoint`` gave, by checkpoint.
        dense: Whether blocks of neurons stand for experts.
        ahead: Whether these blocks come from the last checkpoint.
        params: Parameters of the analysis.
    """

    name: str
    steps: tuple[int, ...]
    samples: Samples
    groups: Sequence[Group]
    curves: pd.DataFrame
    onsets: Onsets
    read: Sequence[Arrays]
    arrays: Sequence[Arrays]
    dense: bool
    ahead: bool
    params: PathwaysParams

    @property
    def layers(self) -> list[int]:
        """Layers with experts or blocks."""
        return [int(layer) for layer in self.read[0]["shape"][:, 0]]

    def like(self, other: Measured) -> bool:
        """Whether it may be another seed of the same recipe: the same layers, experts and kind of samples."""
        mine, theirs = (m.read[0]["shape"].tolist() for m in (self, other))
        same = mine == theirs and self.dense == other.dense
        return same and self.samples.tokens.shape == other.samples.tokens.shape

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of weights."""
        return kinds_of(self.read[0])

    def values(self, name: str, group: int = 0) -> NDArray[np.float64]:
        """A measure over checkpoints."""
        return np.array([each["values"][group, VALUES.index(name)] for each in self.arrays])

    @cached_property
    def checkpoints(self) -> pd.DataFrame:
        """Measures by checkpoint, wide, as ``metrics.leads`` follows them.

        Pathways are those of the first group, what was trained on where it is known; ``test_loss`` and
        ``test_accuracy`` are those of the last.
        """
        frame = pd.DataFrame(
            {
                "step": self.steps,
                "weight_norm": [each["norm"].item() for each in self.read],
                "rank_embedding": [each["rank"].item() for each in self.read],
            }
        )
        names = ("train", "test") if len(self.groups) > 1 else ("test",)
        for group, name in enumerate(names):
            frame[f"{name}_loss"] = self.values("loss", group)
            frame[f"{name}_accuracy"] = self.values("accuracy", group)
        for number, kind in enumerate(self.kinds):
            for place, unit in enumerate(UNITS):
                found = [each["variants"][0, number, place, 0] for each in self.arrays]
                frame[f"distance_{unit}_{kind}"] = found
        for name in ("excess", "normalized", "weighted_jaccard", "contrast", "set_size", "effective_experts",
                     "smoothness", "roughness", "dimension", "markov_gain"):  # fmt: skip
            frame[name] = self.values(name)
        frame["test_loss_log10"] = log_loss(frame["test_loss"])
        if len(self.groups) > 1:
            frame["contrast_unseen"] = self.values("contrast", len(self.groups) - 1)
        return frame

    @property
    def steady(self) -> Steady:
        """The same without leaps: after t_mem the training accuracy is below the level again, and everything
        moves at once.
        """
        return Steady(
            self.name, self.onsets, self._without_leaps(self.curves), self._without_leaps(self.checkpoints)
        )

    def _without_leaps(self, frame: pd.DataFrame) -> pd.DataFrame:
        if "train_accuracy" not in frame or self.onsets.memorized is None:
            return frame
        low = frame["train_accuracy"] < self.params.accuracy
        return frame[~(low & (frame["step"] >= self.onsets.memorized))].reset_index(drop=True)

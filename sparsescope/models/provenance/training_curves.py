"""What a training logged along the way, as one wide frame: losses, accuracies and the norm of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.models.checkpoints import CheckpointSeries

LOSSES = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")


def training_curves(series: CheckpointSeries) -> pd.DataFrame:
    """Return the logged curves, wide: step, the four of ``LOSSES``, weight_norm; and the name
    of the second split.

    Raises:
        SpecError: The series has no curves, or none of a second split.
    """
    long = series.curves()
    whole = long[(long["part"] == "") & long["measure"].isin(["loss", "accuracy"])]
    splits = set(whole["split"])
    second = "test" if "test" in splits else "validation"
    if not {"train", second} <= splits:
        raise SpecError(
            "the curves of this series have no training split or nothing to test on",
            where=series.name,
            allowed="train, and test or validation",
            got=", ".join(sorted(splits)),
        )
    by = whole.pivot_table(index="step", columns=["measure", "split"], values="value")
    frame = pd.DataFrame(
        {
            f"{name}_{what}": by[(what, split)]
            for what in ("loss", "accuracy")
            for name, split in (("train", "train"), ("test", second))
        }
    )
    squares = long[long["measure"] == "squared_norm"].groupby("step")["value"].sum()
    frame["weight_norm"] = np.sqrt(squares.reindex(frame.index))
    frame["split"] = second
    return frame.reset_index()[["step", *LOSSES, "weight_norm", "split"]]

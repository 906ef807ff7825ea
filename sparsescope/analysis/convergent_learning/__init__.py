"""Convergent learning: do two trainings of a recipe, or two checkpoints of a training, find the same units.

Units of the hidden layers of two checkpoints are compared over the same inputs: one-to-one (best matching),
one-to-few (a LASSO path says how many units of the one make a unit of the other), and many-to-many (spectral
co-clustering). The null shifts the rows of one against those of the other. For modular addition the truth is
known: a block should be a Fourier frequency. Features of small factorizations are compared too, with one
dictionary applied to both and with one trained on each.
Shapes: rows [row, unit] of each checkpoint.
"""

from __future__ import annotations

from pydantic import Field

from sparsescope.analysis.convergent_learning.tables import TABLES
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params

_LI = "Li et al. 2016, arXiv:1511.07543"


class ConvergentLearningParams(Params):
    """Parameters of ``convergent_learning``."""

    sites: str = Field(
        "",
        description="Whose units are compared, for example blocks.*.hook_out; the hidden layers of dense "
        "MLPs when left out, or the residual stream where a model has none.",
    )
    rows: int = Field(4096, ge=200, le=200_000, description="Most inputs (tokens, or pairs of an addition).")
    earlier: int = Field(
        3, ge=0, le=50, description="Earlier checkpoints that the last one is compared with."
    )
    most_pairs: int = Field(10, ge=1, le=200, description="Most pairs of seeds.")
    targets: int = Field(500, ge=10, le=10_000, description="Units that are looked for; more are drawn from.")
    candidates: int = Field(
        200, ge=5, le=2000, description="Units, those that correlate most, that a LASSO path may use."
    )
    predictors: int = Field(20, ge=1, le=200, description="Most units of a path.")
    blocks: int = Field(6, ge=2, le=100, description="Blocks of the co-clustering.")
    components: int = Field(
        16, ge=0, le=500, description="Features of the factorizations that are compared; 0 for none."
    )
    shifts: int = Field(19, ge=4, le=1000, description="Shifts of the rows, for the null of matchings.")
    path_shifts: int = Field(
        19, ge=1, le=100, description="Those of them for which LASSO paths are made too."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of units.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of every draw.")


ANALYSIS = Analysis(
    name="convergent_learning",
    place=118,
    version="1",
    title="Convergent learning",
    summary="Whether seeds or checkpoints of a training have the same units: one-to-one, by few, in blocks.",
    params=ConvergentLearningParams,
    compute="sparsescope.analysis.convergent_learning.compute",
    view_module="sparsescope.analysis.convergent_learning.views",
    views=(
        View(
            "classes",
            "How units of one are found in the other",
            "Shares of the units of the second checkpoint: one-to-one (mutual best matches that correlate by "
            "0.7 or more), one-to-few (five units of the first say what all say, at least 80 % of the "
            "variance), distributed (more are needed), unique (all together say less than half), "
            "and between.",
            table="classes",
            citation=_LI,
        ),
        View(
            "matched",
            "Matched correlations, best first",
            "The largest correlation of every unit, in which many may share a match, and that of the "
            "one-to-one matching. The gap between them is splitting and merging. Dotted: rows shifted.",
            table="matched",
            select="pair",
            citation=_LI,
        ),
        View(
            "predictors",
            "How many units make one",
            "Mean R^2, on rows that were not fitted, with the first units that enter a LASSO path. Dotted: "
            "rows shifted.",
            table="predictors",
            citation=_LI,
        ),
        View(
            "blocks",
            "Blocks of units, and what they are",
            "Mean absolute correlation within and between the blocks of a spectral co-clustering. For "
            "modular addition the table says whether blocks are Fourier frequencies.",
            table="blocks",
            citation="Dhillon 2001; " + _LI,
        ),
        View(
            "dictionaries",
            "Features of small dictionaries",
            "Mean correlation of features with their counterparts: the same feature of one factorization "
            "that is applied to both checkpoints, and the best one-to-one partner where each has its own.",
            table="dictionaries",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.convergent_learning.statements",
    headline=("one_to_one_seeds", "one_to_one_checkpoints"),
    inputs=("series*", "text?"),
    unit="pairs",
    presets={
        "quick": {
            "rows": 1500,
            "earlier": 2,
            "most_pairs": 3,
            "targets": 100,
            "shifts": 9,
            "path_shifts": 3,
            "resamples": 200,
        }
    },
    citations=(
        Citation("Li et al. (2016): Convergent learning", "https://arxiv.org/abs/1511.07543"),
        Citation("Kornblith et al. (2019): CKA", "https://arxiv.org/abs/1905.00414"),
        Citation("Raghu et al. (2017): SVCCA", "https://arxiv.org/abs/1706.05806"),
    ),
)

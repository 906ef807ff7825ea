"""What a step of an autoencoder and a factorization cost, against plain torch, scikit-learn and SAELens.

Autoencoders: blocks of steps of each variant run one after the other, in an order that rotates from repeat
to repeat; all begin with the same weights and see the same batches. A ratio is taken within a repeat. A
step includes AuxK over a share of features that are declared dead, the count of dead features, gradient
projection and norms. SAELens runs in a process of its own, with its defaults, and takes its turn there.
SNMF: the published multiplicative update and ours begin with the same codes and keep the same share of the
dictionary; errors are computed outside the timer. scikit-learn's NMF needs rows without negative entries,
so it and ours factor the positive part of the rows, from the same codes and without pruning.
"""

from __future__ import annotations

from pydantic import Field

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, View
from sparsescope.core.spec import Params


class DictionariesParams(Params):
    """Parameters of the benchmark ``dictionaries``."""

    site: str = Field(
        "",
        description="Site whose rows autoencoders are trained on; empty for the output of the middle layer.",
    )
    width: int = Field(16_384, ge=2, description="Features of the autoencoder.")
    k: int = Field(32, ge=1, description="Active features of a row.")
    batch: int = Field(4096, ge=16, description="Rows in a step.")
    steps: int = Field(2, ge=1, le=1000, description="Steps in a repeat.")
    repeats: int = Field(5, ge=2, le=100, description="Repeats of every variant, after a warm-up.")
    dead_share: float = Field(
        0.02, ge=0, lt=1, description="Share of the features that are declared dead, for AuxK."
    )
    low_precision: bool = Field(True, description="Also time bfloat16 scores for the choice of features.")
    snmf_site: str = Field(
        "", description="Site of the factorization; empty for the hidden layer of the middle MLP."
    )
    components: int = Field(100, ge=1, description="Components of the factorization; 0 rows skip it.")
    snmf_rows: int = Field(20_000, ge=0, description="Rows of the factorization; 0 leaves it out.")
    sparsity: float = Field(0.01, gt=0, le=1, description="Share of the dictionary that is kept.")
    updates: int = Field(200, ge=2, description="Published updates whose error is to be reached.")
    nmf_iterations: int = Field(
        50,
        ge=0,
        description="Iterations of scikit-learn's NMF whose error is to be reached; 0 leaves it out.",
    )
    saelens: str = Field("", description="Python of an environment that has SAELens; empty leaves it out.")


ANALYSIS = Analysis(
    name="dictionaries",
    version="1",
    title="Cost of dictionaries",
    summary="Time of a training step and of a factorization, against other implementations.",
    params=DictionariesParams,
    compute="sparsescope.bench.dictionaries.compute",
    view_module="sparsescope.bench.dictionaries.views",
    views=(
        View(
            "steps",
            "Activations a second of a training step",
            "Rows of a batch over the median time of a step, by variant. All begin with the same weights and "
            "see the same batches, by turns; SAELens has its own.",
            table="steps",
            formula="activations a second = batch / seconds(step)",
        ),
        View(
            "errors",
            "Error of the factorization against time",
            "Squared error over squared norm, against the time of the iterations; errors are taken outside "
            "the timer. All begin with the same codes.",
            table="errors",
            formula="error = |X - G H|^2 / |X|^2",
        ),
    ),
    tables={
        "steps": (
            Column("variant", "label", "Implementation."),
            Column("seconds", "seconds", "Median time of a step.", "s"),
            Column("rate", "value", "Median activations a second.", "1/s"),
            Column(
                "speedup", "value", "Median time of the dense step over that of this one, within a repeat."
            ),
            Column("speedup_q1", "value", "First quartile.", low_of="speedup"),
            Column("speedup_q3", "value", "Third quartile.", high_of="speedup"),
            Column("fvu", "fraction", "Variance unexplained in the last steps, on rows trained on."),
            Column("steps", "count", "Steps timed."),
        ),
        "curve": (
            Column("variant", "label", "Implementation."),
            Column("step", "step", "Optimizer step."),
            Column("seconds", "seconds", "Time spent on steps so far.", "s"),
            Column("fvu", "fraction", "Variance unexplained before the step."),
        ),
        "errors": (
            Column("variant", "label", "Implementation."),
            Column("iteration", "step", "Iteration."),
            Column("seconds", "seconds", "Time spent on iterations so far.", "s"),
            Column("error", "fraction", "Squared error over squared norm."),
        ),
    },
    statements="sparsescope.bench.dictionaries.statements",
    headline=("step_speedup", "snmf_speedup", "saelens_speedup"),
    measures_time=True,
)

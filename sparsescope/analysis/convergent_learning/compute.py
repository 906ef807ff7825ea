"""Convergent learning, computed: units of checkpoints on the same inputs, pair by pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.convergent_learning import ConvergentLearningParams
from sparsescope.analysis.convergent_learning.compare import compare
from sparsescope.analysis.convergent_learning.read import Inputs, inputs_of, sites_of, units_of
from sparsescope.analysis.convergent_learning.report import add_tables
from sparsescope.core.result import Result
from sparsescope.errors import SpecError
from sparsescope.models.checkpoints import distinct_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.models.checkpoints import CheckpointSeries

    Arrays = dict[str, NDArray[Any]]

SEEDS, CHECKPOINTS = "seeds", "checkpoints"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two checkpoints.

    Attributes:
        kind: What differs.
        name: For tables.
        first: Number of the series, and step.
        second: The same.
    """

    kind: str
    name: str
    first: tuple[int, int]
    second: tuple[int, int]


def compute(params: ConvergentLearningParams, context: Context) -> Result:
    """Run the analysis."""
    series = (context.series, *context.companions)
    corpus = context.inputs["text"][0] if context.inputs.get("text") else None
    inputs = inputs_of(series[0], corpus, params)
    _check_alike(series)
    pairs = list(_pairs(series, params))
    if not pairs:
        raise SpecError(
            "there is nothing to compare",
            where=series[0].name,
            allowed="a series of two checkpoints, or a second series",
            next_step="give another series of the recipe, or earlier=1 and more",
        )
    found: list[tuple[Pair, str, Arrays]] = []
    held: dict[tuple[int, int], dict[str, NDArray[np.float32]]] = {}
    for number, pair in enumerate(pairs):
        context.progress("compare", number, len(pairs), "pairs")
        made = context.step(f"pair-{number:03d}", partial(_compare, series, pair, inputs, params, held))
        layers = sorted({key.partition(" ")[0] for key in made}, key=int)
        for layer in layers:
            begin = f"{layer} "
            found.append(
                (pair, layer, {key[len(begin) :]: made[key] for key in made if key.startswith(begin)})
            )
    context.progress("compare", len(pairs), len(pairs), "pairs")
    out = Result("convergent_learning")
    add_tables(out, params, found, inputs)
    _notes(out, params, series, inputs, pairs)
    return out


def _check_alike(series: tuple[CheckpointSeries, ...]) -> None:
    """Refuse series that read other inputs: their rows would not be the same.

    Raises:
        SpecError: One does.
    """

    def what(one: CheckpointSeries) -> tuple[Any, ...] | None:
        return (
            None if one.trained is None else (one.trained.data.get("kind"), one.trained.data.get("modulus"))
        )

    for one in series[1:]:
        if what(one) != what(series[0]):
            raise SpecError(
                "these series read other inputs, so their units cannot be compared",
                where=one.name,
                allowed=f"series of the data of {series[0].name}: {what(series[0])}",
                got=str(what(one)),
            )


def _pairs(series: tuple[CheckpointSeries, ...], params: ConvergentLearningParams) -> Iterator[Pair]:
    names = distinct_names(list(series))
    for one, two in list(combinations(range(len(series)), 2))[: params.most_pairs]:
        first, second = (one, series[one].steps[-1]), (two, series[two].steps[-1])
        yield Pair(SEEDS, f"{names[one]} and {names[two]}", first, second)
    steps = series[0].steps
    places = np.unique(
        np.linspace(0, len(steps) - 2, min(params.earlier, len(steps) - 1)).round().astype(int)
    )
    for place in places.tolist() if params.earlier and len(steps) > 1 else []:
        name = f"{names[0]} at {steps[-1]} and {steps[place]}"
        yield Pair(CHECKPOINTS, name, (0, steps[-1]), (0, steps[place]))


def _compare(
    series: tuple[CheckpointSeries, ...],
    pair: Pair,
    inputs: Inputs,
    params: ConvergentLearningParams,
    held: dict[tuple[int, int], dict[str, NDArray[np.float32]]],
) -> Arrays:
    """All layers of a pair, side by side."""
    wanted = (pair.first, pair.second)
    for place in [place for place in held if place not in wanted and len(held) > len(series)]:
        del held[place]  # units of few checkpoints fit in memory
    for place in wanted:
        if place not in held:
            held[place] = units_of(series[place[0]].subject(place[1]), inputs, params)
    first, second = held[pair.first], held[pair.second]
    same = pair.kind == CHECKPOINTS
    out: Arrays = {}
    for layer in first:
        varies = layer in second and min(np.ptp(part, axis=0).any() for part in (first[layer], second[layer]))
        if varies:
            made = compare(first[layer], second[layer], inputs.group, inputs.modulus, same, params)
            out |= {f"{layer} {key}": values for key, values in made.items()}
    return out


def _notes(
    out: Result,
    params: ConvergentLearningParams,
    series: tuple[CheckpointSeries, ...],
    inputs: Inputs,
    pairs: list[Pair],
) -> None:
    out.note("info", f"units are compared on {inputs.words}", place="pairs")
    sites = sites_of(series[0].subject(series[0].steps[-1]), params)
    if not params.sites and sites[0].role != "mlp.hook_post":
        out.note(
            "info",
            "this model has no dense hidden layer: entries of the residual stream are compared, a basis that "
            "nothing singles out, so one-to-one matches are not to be expected",
            place="classes",
        )
    possible = len(series) * (len(series) - 1) // 2
    seeds = sum(pair.kind == SEEDS for pair in pairs)
    if seeds < possible:
        out.note("info", f"{seeds} of {possible} pairs of seeds are compared (most_pairs)", place="pairs")
    if len(series) == 1:
        out.note("info", "one series: seeds are compared where others are given (--series)", place="classes")
    out.note(
        "info",
        f"LASSO paths use the {params.candidates} units that correlate most with a unit, for at "
        f"most {params.targets} units of a layer; rows are fitted on one half of the "
        "groups, and judged on the other",
        place="predictors",
    )
    out.note(
        "info",
        "intervals of shares are over the units of a pair, which are not independent trainings; pairs of the "
        "same series share a member",
        place="classes",
    )

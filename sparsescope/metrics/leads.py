"""How early measures move before a run generalizes, and how they go with its score: rows of shared tables.

Lead of a measure in a series: steps from its departure, and from the half of its way, to t_gen
(``metrics.onsets``). Over series, the independent units, the median with its exact interval. Correlations are
over the checkpoints of one series from t_mem on, beside what a trend alone gives (``metrics.trends``). Of a
measure whose name ends in ``_loss`` the logarithm departs and correlates; half of its way is that of the loss
itself, which on a logarithmic scale is another step: give ``loss_log10`` as a measure of its own where that
matters. ``core.onset_tables`` declares the columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sparsescope.metrics.onsets import Onsets, find_onsets, first_departure, half_way, median_range
from sparsescope.metrics.trends import LEAST_N, correlate

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Rows of a table, in the order of its columns.
Rows = list[tuple[object, ...]]
#: With fewer checkpoints the step at which a measure moves is not known well enough to speak of a lead.
LEAST_CHECKPOINTS = 8
_SMALLEST = 1e-12


class Followed(Protocol):
    """A series along training. Frames have the column ``step``, ascending, and one for each measure."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def onsets(self) -> Onsets:
        """When it memorized and generalized."""

    @property
    def curves(self) -> pd.DataFrame:
        """What was logged along training."""

    @property
    def checkpoints(self) -> pd.DataFrame:
        """What was measured of its checkpoints; with ``test_accuracy`` and ``test_loss``."""


def log_loss(values: pd.Series) -> Array:
    """Decimal logarithm of a loss; a loss of zero counts as 1e-12.

    Example:
        >>> import pandas as pd
        >>> log_loss(pd.Series([0.1, 0.0])).round(3).tolist()
        [-1.0, -12.0]
    """
    return np.log10(np.maximum(values.to_numpy(np.float64), _SMALLEST))


def values_of(table: pd.DataFrame, name: str) -> Array:
    """Values of a measure; of a loss its logarithm.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"test_loss": [1.0, 0.01], "weight_norm": [3.0, 2.0]})
        >>> values_of(table, "test_loss").tolist(), values_of(table, "weight_norm").tolist()
        ([0.0, -2.0], [3.0, 2.0])
    """
    if name.endswith("_loss") and table[name].notna().any():
        return log_loss(table[name])
    return table[name].to_numpy(np.float64)


def _points(series: Followed, name: str) -> pd.DataFrame | None:
    """Where a measure is known: in the logs of the training, or at checkpoints if there are enough."""
    if name in series.curves and series.curves[name].notna().any():
        return series.curves
    there = name in series.checkpoints
    enough = there and series.checkpoints[name].notna().sum() >= LEAST_CHECKPOINTS
    return series.checkpoints if enough else None


def made_up_series() -> Followed:
    """A series for examples: checkpoints at steps 0, 10, ..., 100, a norm that grows evenly.

    Example:
        >>> made_up_series().onsets.generalized
        80
    """
    import pandas as pd

    steps = np.arange(0, 101, 10)
    train, test = (steps >= 20).astype(np.float64), np.where(steps >= 80, 1.0, steps / 200)
    frame = pd.DataFrame({"step": steps, "weight_norm": 1.0 * steps, "test_accuracy": test})
    frame["test_loss"] = 2 - test
    return _Example("made up", find_onsets(steps, train, test), frame[["step"]], frame)


@dataclass(frozen=True, slots=True)
class _Example:
    """The series of ``made_up_series``."""

    name: str
    onsets: Onsets
    curves: pd.DataFrame
    checkpoints: pd.DataFrame


def onset_rows(measured: Iterable[Followed]) -> Rows:
    """When each series memorized and generalized: rows of ``onsets``.

    Example:
        >>> (row,) = onset_rows([made_up_series()])
        >>> row[:6]  # name, t_mem, t_gen, delay, ratio, grokked
        ('made up', 20.0, 80.0, 60.0, 4.0, 'yes')
    """
    rows: Rows = []
    for series in measured:
        o = series.onsets
        steps = [math.nan if value is None else float(value) for value in (o.memorized, o.generalized)]
        lost = math.nan if o.lost_at is None else float(o.lost_at)
        last = float(series.curves["step"].iloc[-1])
        rows.append((series.name, *steps, o.delay, o.ratio, "yes" if o.grokked else "no", lost, last))
    return rows


def lead_rows(measured: Iterable[Followed], measures: Sequence[str]) -> Rows:
    """Lead of each measure in each series, by both rules: rows of ``leads``.

    Args:
        measured: The series; of one with few checkpoints only what its curves have.
        measures: Names of measures.

    Example:
        >>> (row,) = lead_rows([made_up_series()], ["weight_norm"])
        >>> row[1], row[4], row[5]  # half of its way from step 20 on is made at 60, 20 steps before t_gen
        ('weight_norm', 60.0, 20.0)
    """
    rows: Rows = []
    for series in measured:
        memorized = series.onsets.memorized
        generalized = math.nan if series.onsets.generalized is None else float(series.onsets.generalized)
        for name in measures:
            table = _points(series, name)
            if table is None:
                continue
            # a loss leaves its band on a logarithmic scale
            steps, values = table["step"].to_numpy(), values_of(table, name)
            left = half = math.nan
            early = 0
            if memorized is not None:
                early = int(np.sum(np.isfinite(values) & (steps <= memorized)))
                left = first_departure(steps, values, memorized)
                half = half_way(steps, table[name].to_numpy(np.float64), memorized, int(steps[-1]))
            count = int(np.isfinite(values).sum())
            leads = (left, generalized - left, half, generalized - half)
            rows.append((series.name, name, *leads, count, early))
    return rows


def lead_summary_rows(leads: pd.DataFrame, level: float) -> Rows:
    """Median lead over series with its exact interval: rows of ``lead_summary`` from the table ``leads``.

    Example:
        >>> import pandas as pd
        >>> leads = pd.DataFrame({"measure": ["rank"] * 3, "lead_departure": [math.nan] * 3})
        >>> lead_summary_rows(leads.assign(lead_half_way=[10.0, 30.0, 20.0]), level=0.95)
        [('rank', 'half way', 20.0, 10.0, 30.0, 0.75, 3)]
    """
    rows: Rows = []
    for name in dict.fromkeys(leads["measure"]):
        part = leads[leads["measure"] == name]
        for rule, column in (("departure", "lead_departure"), ("half way", "lead_half_way")):
            found = median_range(part[column].to_numpy(), level)
            if found.n:
                rows.append((name, rule, found.median, found.low, found.high, found.level, found.n))
    return rows


def aligned_rows(measured: Iterable[Followed], measures: Sequence[str]) -> Rows:
    """Measures over step - t_gen of every series that generalized: rows of ``aligned``.

    Example:
        >>> rows = aligned_rows([made_up_series()], ["weight_norm"])
        >>> rows[0], rows[8]  # t_gen is step 80
        (('made up', 'weight_norm', -80.0, 0.0), ('made up', 'weight_norm', 0.0, 80.0))
    """
    rows: Rows = []
    for series in measured:
        if series.onsets.generalized is None:
            continue
        for name in measures:
            table = _points(series, name)
            if table is None:
                continue
            values = table[["step", name]].dropna()
            rows += [
                (series.name, name, float(step - series.onsets.generalized), float(value))
                for step, value in values.itertuples(index=False)
            ]
    return rows


def since_memorized(series: Followed) -> pd.DataFrame:
    """The checkpoints from t_mem on; all of a series that did not memorize.

    Example:
        >>> since_memorized(made_up_series())["step"].tolist()[:3]  # t_mem is step 20
        [20, 30, 40]
    """
    table, memorized = series.checkpoints, series.onsets.memorized
    return table if memorized is None else table[table["step"] >= memorized]


def correlation_rows(
    series: Followed, measures: Sequence[str], *, draws: int, level: float, seed: int
) -> Rows:
    """Correlation of each measure with test accuracy and log test loss: rows of ``correlations``.

    Args:
        series: The series; its checkpoints from t_mem on count.
        measures: Names of measures.
        draws: Monotone surrogates and permutations.
        level: Coverage of the intervals.
        seed: Their seed.

    Example:
        >>> rows = correlation_rows(made_up_series(), ["weight_norm"], draws=99, level=0.95, seed=0)
        >>> [(row[1], row[2], row[-1]) for row in rows]  # both only rise
        [('test accuracy', 9, 'trend alone'), ('log10 test loss', 9, 'trend alone')]
    """
    table = since_memorized(series)
    steps = table["step"].to_numpy(np.float64)
    scores = {
        "test accuracy": table["test_accuracy"].to_numpy(np.float64),
        "log10 test loss": log_loss(table["test_loss"]),
    }
    rows: Rows = []
    for name in measures:
        values = values_of(table, name)
        if not np.isfinite(values).any():
            continue
        for title, score in scores.items():
            c = correlate(steps, values, score, draws=draws, level=level, seed=seed)
            reading = "beyond trend" if c.beyond_trend else "too few" if c.n < LEAST_N else "trend alone"
            reading = reading if math.isfinite(c.pearson) else "not defined"
            whole = (c.pearson, c.low, c.high, c.spearman, c.spearman_p, c.kendall, c.differenced, c.partial)
            rows.append(
                (name, title, c.n, *whole, c.trend_percentile, c.least, c.most, c.n_effective, reading)
            )
    return rows

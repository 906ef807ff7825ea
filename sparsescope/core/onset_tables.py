"""Tables of onsets, leads and correlations along training, which analyses of checkpoint series share.

``metrics.leads`` fills them, ``viz.leads`` draws them.
"""

from __future__ import annotations

from sparsescope.core.columns import Column

SERIES = Column("series", "label", "Name of the series.")
_MEASURE = Column("measure", "metric", "The measure.")

#: By name: ``onsets``, ``leads``, ``lead_summary``, ``aligned``, ``correlations``.
ONSET_TABLES: dict[str, tuple[Column, ...]] = {
    "onsets": (
        SERIES,
        Column(
            "memorized",
            "value",
            "t_mem: first step of consecutive logs with the wanted training accuracy.",
            "steps",
        ),
        Column(
            "generalized",
            "value",
            "t_gen: the same of the test accuracy; missing where it never comes.",
            "steps",
        ),
        Column("delay", "value", "t_gen - t_mem.", "steps"),
        Column("ratio", "value", "t_gen / t_mem."),
        Column("grokked", "label", "Whether t_gen >= t_mem + max(3 logs, t_mem / 2)."),
        Column(
            "lost_at",
            "value",
            "Step from which the test accuracy fell below 0.9 again; missing where it did not.",
            "steps",
        ),
        Column("last_step", "value", "Last logged step.", "steps"),
    ),
    "leads": (
        SERIES,
        _MEASURE,
        Column(
            "departure",
            "value",
            "First step at which the CUSUM of the measure (of a loss: its logarithm) leaves "
            "its band before t_mem.",
            "steps",
        ),
        Column("lead_departure", "value", "t_gen - departure.", "steps"),
        Column(
            "half_way",
            "value",
            "Step at which half of the way from t_mem to the last checkpoint is made for good.",
            "steps",
        ),
        Column("lead_half_way", "value", "t_gen - half way.", "steps"),
        Column(
            "points",
            "count",
            "Checkpoints with a value, or logs where the training logged the measure; at least 8.",
        ),
        Column("early", "count", "Of these at or before t_mem; the CUSUM needs four."),
    ),
    "lead_summary": (
        _MEASURE,
        Column("rule", "label", "'departure' or 'half way'."),
        Column("median", "value", "Median lead over series.", "steps"),
        Column("low", "value", "Lower end between order statistics.", "steps", low_of="median"),
        Column("high", "value", "Upper end between order statistics.", "steps", high_of="median"),
        Column("coverage", "fraction", "Exact coverage of this interval; 0 with one series."),
        Column("series", "count", "Series with a value; they are the independent units."),
    ),
    "aligned": (
        SERIES,
        _MEASURE,
        Column("relative", "value", "Step - t_gen.", "steps"),
        Column("value", "value", "The measure."),
    ),
    "correlations": (
        _MEASURE,
        Column("score", "label", "What it is correlated with, over the checkpoints from t_mem on."),
        Column("n", "count", "Checkpoints; they are not independent."),
        Column("pearson", "value", "Pearson correlation (of a loss: of its logarithm)."),
        Column(
            "low",
            "value",
            "Lower end of the Fisher z interval, as if checkpoints were independent.",
            low_of="pearson",
        ),
        Column("high", "value", "Upper end.", high_of="pearson"),
        Column("spearman", "value", "Rank correlation."),
        Column("spearman_p", "value", "Its two-sided permutation p, exact up to n = 9."),
        Column("kendall", "value", "Kendall's tau-b."),
        Column(
            "differenced", "value", "Pearson correlation of the differences between neighboring checkpoints."
        ),
        Column("partial", "value", "Pearson correlation given log(1 + step)."),
        Column("trend_percentile", "value", "Share of monotone surrogates with a smaller |r|.", "%"),
        Column("least", "value", "Smallest correlation when one checkpoint is left out."),
        Column("most", "value", "Largest correlation when one checkpoint is left out."),
        Column("n_effective", "value", "n (1 - r1 r2) / (1 + r1 r2) with the autocorrelations of both."),
        Column(
            "reading",
            "label",
            "'beyond trend' for n >= 8 and a trend percentile of 95 or more; else "
            "'trend alone', or 'too few'.",
        ),
    ),
}

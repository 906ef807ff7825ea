"""Headline numbers and notes of ``pathways``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from sparsescope.core.numbers import Interval
from sparsescope.metrics.estimates import BOOTSTRAP, note_few_documents
from sparsescope.metrics.jackknife import JACKKNIFE
from sparsescope.metrics.run_links import EXACT_UP_TO
from sparsescope.metrics.trends import LEAST_N

if TYPE_CHECKING:
    from sparsescope.analysis.pathways import PathwaysParams
    from sparsescope.analysis.pathways.measured import Measured
    from sparsescope.core.result import Result

_LED = (
    "test_loss",
    "test_loss_log10",
    "weight_norm",
    "rank_embedding",
    "excess",
    "smoothness",
    "dimension",
    "contrast_unseen",
)
_BOOTSTRAP = BOOTSTRAP.replace("document", "unit")


def headline_distance(own: Measured, params: PathwaysParams) -> str:
    """Name of the followed measure that is the distance of the run."""
    return f"distance_{params.unit}_{own.kinds[0] if own.dense else params.weights}"


def fill(out: Result, measured: Sequence[Measured], params: PathwaysParams) -> None:
    """Add the numbers and the notes."""
    own = measured[0]
    _values(out, own, params)
    if len(measured) > 1:
        count = sum(m.onsets.generalized is not None for m in measured)
        text = f"series that generalized within their steps, of {len(measured)}"
        out.add_scalar("generalized_series", count, "count", text)
    _links(out, own, measured, params)
    _leads(out, measured)
    _notes(out, own, measured, params)


def _values(out: Result, own: Measured, params: PathwaysParams) -> None:
    table, group, last = out.tables["checkpoints"], own.groups[0].name, own.steps[-1]
    rows = table[(table["series"] == own.name) & (table["group"] == group)].set_index("step")
    final = rows.loc[last]
    memorized = own.onsets.memorized
    for name, value, text in (
        ("memorized_step", memorized, f"t_mem: training accuracy >= {params.accuracy:g}"),
        ("generalized_step", own.onsets.generalized, f"t_gen: test accuracy >= {params.accuracy:g}"),
    ):
        found = math.nan if value is None else value
        out.add_scalar(name, found, "count", f"{text} in {params.logs} consecutive logs; one run")

    def interval(row: pd.Series, low: str, high: str, method: str = _BOOTSTRAP) -> Interval | None:
        return Interval.of(row[low], row[high], params.level, method, int(row["units"]))

    what = f"{params.unit} edits, {own.kinds[0] if own.dense else params.weights} weights, tau {params.tau:g}"
    of = f"step {last}, {int(final['samples'])} samples ({group})"
    out.add_scalar(
        "distance", final["distance"], "", f"mean edit distance of pathways, {what}; {of}",
        interval=interval(final, "distance_low", "distance_high"),
    )  # fmt: skip
    out.add_scalar(
        "distance_excess", final["excess"], "fraction",
        f"share by which pathways are closer than those of samples at the same loads; {what}; {of}",
        interval=interval(final, "excess_low", "excess_high"),
    )  # fmt: skip
    out.add_scalar(
        "contrast", final["contrast"], "",
        f"weighted Jaccard distance of two labels minus that of one; {of}",
        interval=interval(final, "contrast_low", "contrast_high"),
    )  # fmt: skip
    out.add_scalar(
        "smoothness", final["smoothness"], "", f"mean centered cosine from layer to layer; {of}",
        interval=interval(final, "smoothness_low", "smoothness_high"),
    )  # fmt: skip
    out.add_scalar(
        "roughness", final["roughness"], "", f"1 - mean / largest raw cosine, the paper's measure; {of}"
    )
    out.add_scalar(
        "dimension", final["dimension"], "", f"effective dimension of the routing kernel, ridge 0.01; {of}",
        interval=interval(final, "dimension_low", "dimension_high", JACKKNIFE.replace("documents", "units")),
    )  # fmt: skip
    if len(own.groups) > 1:
        unseen = table[(table["series"] == own.name) & (table["group"] == own.groups[-1].name)].set_index(
            "step"
        )
        text = (
            f"weighted Jaccard distance of two labels minus that of one, of what was not trained; step {last}"
        )
        out.add_scalar(
            "contrast_unseen", unseen.loc[last]["contrast"], "", text,
            interval=interval(unseen.loc[last], "contrast_low", "contrast_high"),
        )  # fmt: skip
        if memorized is not None and (unseen.index >= memorized).any():
            first = unseen[unseen.index >= memorized].iloc[0]
            text = f"the same at step {int(first.name)}, the first checkpoint from t_mem on"
            out.add_scalar(
                "contrast_unseen_memorized", first["contrast"], "", text,
                interval=interval(first, "contrast_low", "contrast_high"),
            )  # fmt: skip
    drawn = out.tables["random_partitions"]
    drawn = drawn[(drawn["series"] == own.name) & (drawn["step"] == last) & (drawn["measure"] == "excess")]
    if len(drawn):
        text = f"mean excess with {params.random_partitions} random partitions; {of}"
        out.add_scalar("excess_random", drawn["random_mean"].iloc[0], "fraction", text)
    later = rows[rows.index >= memorized] if memorized is not None else rows
    for name in ("excess", "contrast", "smoothness", "dimension"):
        change = final[name] - later.iloc[0][name] if len(later) else math.nan
        text = (
            f"{name} at step {last} minus that at step {later.index[0]}"
            if len(later)
            else f"{name}: no t_mem"
        )
        out.add_scalar(f"{name}_change", change, "fraction" if name == "excess" else "", f"{text}; one run")


def _links(out: Result, own: Measured, measured: Sequence[Measured], params: PathwaysParams) -> None:
    name = headline_distance(own, params)
    found = out.tables["correlations"]
    row = found[(found["measure"] == name) & (found["score"] == "test accuracy")]
    if len(row):
        first = row.iloc[0]
        of = f"mean edit distance and test accuracy, {int(first['n'])} checkpoints of one run"
        ends = Interval.of(
            first["low"], first["high"], params.level, "Fisher z, as if independent", int(first["n"])
        )
        out.add_scalar(
            "distance_correlation", first["pearson"], "", f"Pearson correlation of {of}", interval=ends
        )
        out.add_scalar(
            "distance_spearman_p", first["spearman_p"], "", f"permutation p of the rank correlation of {of}"
        )
        out.add_scalar(
            "distance_trend_percentile",
            first["trend_percentile"],
            "%",
            f"share of monotone surrogates below; {of}",
        )
        out.add_scalar(
            "distance_differenced", first["differenced"], "", f"correlation of the differences of {of}"
        )
        beyond = found[(found["score"] == "test accuracy") & found["reading"].eq("beyond trend")]
        text = "measures whose correlation with the test accuracy lies beyond 95 % of monotone surrogates"
        out.add_scalar("beyond_trend", len(beyond), "count", text)
    steady = out.tables["steady"]
    row = steady[(steady["measure"] == name) & (steady["score"] == "test accuracy")]
    if len(row):
        first = row.iloc[0]
        of = f"mean edit distance and test accuracy, {int(first['n'])} checkpoints without leaps of one run"
        out.add_scalar("steady_correlation", first["pearson"], "", f"Pearson correlation of {of}")
        out.add_scalar(
            "steady_differenced", first["differenced"], "", f"correlation of the differences of {of}"
        )
    swap = out.tables["swap"]
    named = swap[(swap["measure"] == name) & (swap["score"] == "test accuracy") & (swap["of"] == "values")]
    without = named[named["over"] == "steady"]
    if len(without):
        first = without.iloc[0]
        of = f"{int(first['series'])} series, {int(first['n'])} checkpoints without leaps"
        out.add_scalar("swap_own_steady", first["own"], "", f"correlation of distance and own accuracy; {of}")
        out.add_scalar("swap_other_steady", first["other"], "", f"with the accuracy of other series; {of}")
        out.add_scalar("swap_p_steady", first["p"], "", f"permutation p of the swap; {of}")
    row = named[named["over"] == "all"]
    if len(row):
        first = row.iloc[0]
        of = f"{int(first['series'])} series, {int(first['n'])} checkpoints"
        out.add_scalar(
            "swap_own", first["own"], "", f"mean correlation of distance and own test accuracy; {of}"
        )
        out.add_scalar("swap_other", first["other"], "", f"the same with the accuracy of other series; {of}")
        ways = math.factorial(len(measured)) if len(measured) <= EXACT_UP_TO else params.draws + 1
        out.add_scalar("swap_p", first["p"], "", f"permutation p of the swap, at least {1 / ways:.2g}; {of}")
    power = out.tables["power"]
    row = power[(power["measure"] == name) & power["strength"].eq(0.5)].set_index("over")
    for over, scalar in (("all", "power_half"), ("steady", "power_half_steady")):
        if over in row.index:
            text = f"share of links of 0.5 in the increments that their correlation finds, {over}, n = "
            found = row.loc[over]
            out.add_scalar(scalar, found["differences"], "fraction", text + str(int(found["n"])))


def _leads(out: Result, measured: Sequence[Measured]) -> None:
    summary = out.tables["lead_summary"]
    for name in _LED:
        row = summary[(summary["measure"] == name) & (summary["rule"] == "half way")]
        if not len(row):
            continue
        first = row.iloc[0]
        count = int(first["series"])
        spread = None
        if count > 1:
            method = "order statistics over series, of their median"
            low, high, coverage = (float(first[key]) for key in ("low", "high", "coverage"))
            spread = Interval(low, high, coverage, method, count)
        over = f"median over {count} series" if count > 1 else "one run"
        text = f"t_gen minus the step at which {name} made half of its way, {over}"
        out.add_scalar(f"lead_{name}", first["median"], "count", text, interval=spread)


def _notes(out: Result, own: Measured, measured: Sequence[Measured], params: PathwaysParams) -> None:
    out.note("info", f"Read: {own.samples.text}.", "checkpoints")
    note_few_documents(out, own.groups[0].units, "checkpoints")
    several = own.read[0]["rows"].shape[1]
    text = f"{several} experts" if not own.dense else f"{several} blocks of neurons in place of experts"
    kept = own.values("set_size")[-1]
    out.note(
        "info",
        f"Pathways keep {kept:.3g} of {text} in a layer at the last checkpoint "
        f"(tau {params.tau:g}). The paper says neither whether characters or experts are edited nor which "
        "weights are meant: both are in the table of variants.",
        "variants",
    )
    ahead = [m.name for m in measured if m.ahead]
    if ahead:
        out.note(
            "warning",
            f"The blocks of neurons of {', '.join(ahead)} come from the last checkpoint: measures of earlier "
            "ones look ahead, and no lead can be claimed.",
            "leads",
        )
    other = [m.name for m in measured[1:] if not m.like(own)]
    if other:
        out.note(
            "warning",
            f"{', '.join(other)} differ from {own.name} in layers, experts or samples: no other seeds of one "
            "recipe, so leads and swap over them mix models.",
            "leads",
        )
    if len(own.layers) < 2:
        out.note(
            "info", "One layer: smoothness and steps from layer to layer are not defined.", "checkpoints"
        )
    elif len(own.layers) < 4:
        out.note(
            "info",
            "Fewer than four layers: the paper's roughness says nothing and is left out.",
            "checkpoints",
        )
    if not out.tables["memorized"].shape[0]:
        why = (
            "what was trained on is not known"
            if "train" not in own.samples.groups
            else f"no checkpoint has {params.least_samples} samples that are memorized from it on"
        )
        out.note("info", f"No groups of memorized samples: {why}.", "memorized")
    n = int(out.tables["correlations"]["n"].max()) if len(out.tables["correlations"]) else 0
    if n < LEAST_N:
        out.note(
            "warning",
            f"{n} checkpoints: correlations over fewer than {LEAST_N} are not read.",
            "correlations",
        )
    out.note(
        "info",
        "Checkpoints follow each other: they are not independent, and the intervals of correlations are too "
        "narrow by that.",
        "correlations",
    )
    if len(measured) == 1:
        out.note(
            "warning",
            "One run: nothing is said about other seeds. Give further series as seeds for leads with an "
            "interval and for the swap test.",
            "leads",
        )
    elif not len(out.tables["swap"]):
        out.note(
            "warning", f"The series have fewer than {LEAST_N} checkpoints in common: no swap test.", "swap"
        )

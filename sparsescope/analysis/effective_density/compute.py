"""Effective density, computed: thresholds on calibration tokens, losses on held-out documents,
densities where they cross.

One calibration pass gives the CETT curve of every layer. Bisection over one CETT level for all layers then
runs masked passes until the rise of perplexity is within the tolerance of the wanted one; the top-p rule runs
its grid until both criteria are passed. All passes see the same tokens, so differences are paired.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from sparsescope.activations.bound_table import bound_rows, default_attended, schemes_of
from sparsescope.activations.context import Context
from sparsescope.activations.edited_passes import EditedPass, EditedPasses, held_out
from sparsescope.activations.hidden_layers import HIDDEN, hidden_or_named
from sparsescope.analysis.effective_density import EffectiveDensityParams
from sparsescope.analysis.effective_density.calibration import Calibration
from sparsescope.core.result import Result
from sparsescope.core.tables import grid, places
from sparsescope.kernels.topk_masks import top_p_mask
from sparsescope.metrics.bounds import Assumptions
from sparsescope.metrics.estimates import PAIRED_BOOTSTRAP, DocumentBootstrap
from sparsescope.metrics.isotonic_crossing import resampled_crossings, tolerance_crossing
from sparsescope.models.structure.dimensions import read_dimensions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.structure.sites import Site

MOST_PASSES = 16


@dataclass(slots=True)
class _Rule:
    """The measured points of one rule, by setting."""

    name: str
    points: dict[float, EditedPass] = field(default_factory=dict)


def compute(params: EffectiveDensityParams, context: Context) -> Result:
    """Run the analysis."""
    calibration, chosen = held_out(context.corpus, params.tokens, params.calibration_tokens)
    sites = hidden_or_named(context.subject, HIDDEN)
    begin = time.perf_counter()
    calibrated = Calibration.read(context, calibration, sites, params.calibration_tokens)
    seconds = time.perf_counter() - begin

    # A search takes about five passes; the grid often ends early.
    passes = EditedPasses(context, chosen, sites, 1 + 5 * len(params.percents) + len(params.shares))
    dense = passes.run("dense")
    norms = calibrated.norms

    def by_cett(level: float) -> Callable[[Site, torch.Tensor], torch.Tensor]:
        limits = calibrated.thresholds(level)
        return lambda site, tensor: tensor.abs().float() * norms[site.name] >= limits[site.name]

    def by_top_p(share: float) -> Callable[[Site, torch.Tensor], torch.Tensor]:
        return lambda site, tensor: top_p_mask(tensor, share)

    rules = (_Rule("CETT"), _Rule("top-p"))
    levels = {}
    for percent in params.percents:
        levels[percent] = _bisect(rules[0], percent, params.tolerance, passes, dense, by_cett)
    for share in params.shares:
        rules[1].points[share] = passes.run(f"top-p-{share:g}", by_top_p(share))
        if _passed(rules[1].points[share], dense, params):
            break

    out = Result("effective_density")
    report = _Reporter(params, passes, dense, sites)
    found = {percent: (level, rules[0].points[level]) for percent, level in levels.items()}
    out.add("effective", report.effective(rules))
    out.add("curve", report.curve(rules))
    out.add("per_layer", report.per_layer(found, calibrated))
    out.add("bounds", report.bounds(found, context))
    cost = [
        ("calibration", 1, calibration.n_tokens),
        ("dense pass", 1, chosen.n_tokens),
        ("bisection of CETT", len(rules[0].points), len(rules[0].points) * chosen.n_tokens),
        ("top-p grid", len(rules[1].points), len(rules[1].points) * chosen.n_tokens),
    ]
    out.add("cost", cost)
    _scalars(out, report)
    _notes(out, context, report, levels, calibration, chosen, seconds)
    _note_experts(out, calibrated)
    return out


def _rise(found: EditedPass, dense: EditedPass) -> float:
    """Rise of perplexity in percent; the largest float where the model broke down."""
    difference = float((found.nll - dense.nll).mean())
    return 100 * math.expm1(min(difference, 700.0))


def _bisect(
    rule: _Rule,
    percent: float,
    tolerance: float,
    passes: EditedPasses,
    dense: EditedPass,
    by_cett: Callable[[float], Callable[[Site, torch.Tensor], torch.Tensor]],
) -> float:
    """Find the CETT level whose rise of perplexity is ``percent``; points of earlier searches bracket it.

    Between the ends the logarithm of the level is interpolated in the logarithm of the loss (the loss grows
    about as a power of CETT); when that moves one end only, plain bisection takes over.
    """
    low, low_rise, high, high_rise = 0.0, 0.0, 1.0, math.inf
    for level, found in sorted(rule.points.items()):
        rise = _rise(found, dense)
        if rise <= percent and level > low:
            low, low_rise = level, rise
        elif rise > percent and level < high:
            high, high_rise = level, rise
    side = 0
    for _ in range(MOST_PASSES):
        if low_rise > 0 and math.isfinite(high_rise) and abs(side) < 2:
            share = math.log(percent / low_rise) / math.log(high_rise / low_rise)
            level = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        elif low > 0 and math.isinf(high_rise):
            level = min(2 * low, 1.0)  # at 1 every unit is off: more cannot be lost
        elif low > 0:
            level = math.sqrt(low * high)
        else:
            level = min(0.2, high / 2)
        level = float(f"{level:.6g}")
        if level not in rule.points:
            rule.points[level] = passes.run(f"cett-level-{level:g}", by_cett(level))
        rise = _rise(rule.points[level], dense)
        if abs(rise - percent) < tolerance:
            return level
        if rise <= percent:
            low, low_rise, side = level, max(rise, low_rise), min(side, 0) - 1
        else:
            high, high_rise, side = level, rise, max(side, 0) + 1
        if abs(side) > 2:
            side = 0
        if high - low < 1e-5:
            break
    if math.isinf(high_rise):  # with every unit off the rise is still smaller: no level gives it
        return max(rule.points)
    return min(rule.points, key=lambda at: abs(_rise(rule.points[at], dense) - percent))


def _passed(found: EditedPass, dense: EditedPass, params: EffectiveDensityParams) -> bool:
    """Whether the grid can stop: every criterion is clearly exceeded, so that the crossings lie inside."""
    accuracy = found.correct.mean() / max(dense.correct.mean(), 1e-12)
    return _rise(found, dense) > 1.5 * params.percents[-1] and accuracy < 1 - 2 * (1 - params.keep_score)


class _Reporter:
    """Turns passes into rows with intervals."""

    def __init__(
        self,
        params: EffectiveDensityParams,
        passes: EditedPasses,
        dense: EditedPass,
        sites: tuple[Site, ...],
    ) -> None:
        self.params, self.passes, self.dense = params, passes, dense
        self.layers = [site.layer for site in sites]
        self.draws = DocumentBootstrap.draw(
            passes.domains, params.resamples, params.seed, params.level, PAIRED_BOOTSTRAP
        )
        self.n = {"documents": len(passes.documents), "tokens": int(passes.targets.sum())}
        self.dense_correct = passes.by_document(dense.correct)

    def density(self, found: EditedPass, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Kept share of the units of each layer, [L]; in each resample, [B, L]. Of a layer of a mixture the
        units are those of the experts that tokens were sent to.
        """
        return found.joined(self.layers).density(weights)

    def loss(self, found: EditedPass) -> tuple[float, NDArray[np.float64]]:
        """Mean paired difference of the loss, and its value in each resample [B]."""
        sums = self.passes.by_document(found.nll - self.dense.nll)
        return sums.sum() / self.n["tokens"], self.draws.replicates(sums, self.passes.targets)

    def accuracy_lost(self, found: EditedPass) -> tuple[float, NDArray[np.float64]]:
        """Share of the dense accuracy that is lost, and its value in each resample [B]."""
        correct, drawn = self.passes.by_document(found.correct), self.draws.totals(self.dense_correct)
        # Where the dense model is never right there is nothing to lose.
        resampled = 1 - np.divide(self.draws.totals(correct), drawn, out=np.ones_like(drawn), where=drawn > 0)
        whole = self.dense_correct.sum()
        return float(1 - correct.sum() / whole) if whole else 0.0, resampled

    def criteria(self) -> list[tuple[str, str, float]]:
        """Label, kind and tolerance of every criterion."""
        rises = [(f"perplexity +{p:g} %", "loss", math.log1p(p / 100)) for p in self.params.percents]
        return [
            *rises,
            (f"{self.params.keep_score:.4g} of dense accuracy", "accuracy", 1 - self.params.keep_score),
        ]

    def effective(self, rules: tuple[_Rule, ...]) -> list[dict[str, Any]]:
        """Densities where each rule meets each criterion, from isotonic fits."""
        rows = []
        untouched = np.zeros(self.params.resamples)
        for rule in rules:
            found = list(rule.points.values())
            sparsity = np.array([0.0, *(1 - self.density(point).mean() for point in found)])
            drawn = np.stack(
                [untouched, *(1 - self.density(point, self.draws.weights).mean(1) for point in found)], 1
            )
            for label, kind, tolerance in self.criteria():
                measured = [
                    self.loss(point) if kind == "loss" else self.accuracy_lost(point) for point in found
                ]
                damage = np.array([0.0, *(mean for mean, _ in measured)])
                replicates = np.stack([untouched, *(values for _, values in measured)], 1)
                at = tolerance_crossing(sparsity, damage, tolerance)
                low, high = map(float, self.draws.ends(resampled_crossings(drawn, replicates, tolerance)))
                censored = (
                    "sparsity is a lower bound: the loss stayed within the tolerance" if at.censored else "no"
                )
                row = {
                    "rule": rule.name,
                    "criterion": label,
                    "density": 1 - at.at,
                    "sparsity": at.at,
                    "low": 1 - high,
                }
                rows.append(row | {"high": 1 - low, "bracket": at.bracket, "censored": censored, **self.n})
        return rows

    def curve(self, rules: tuple[_Rule, ...]) -> list[dict[str, Any]]:
        """Every measured point, densest first; the dense model heads each curve."""
        rows = []
        for rule in rules:
            setting = 0.0 if rule.name == "CETT" else 1.0
            rows.append(self._point(rule.name, setting, 1.0, self.dense))
            points = [
                self._point(rule.name, at, float(self.density(found).mean()), found)
                for at, found in rule.points.items()
            ]
            rows += sorted(points, key=lambda row: -row["density"])
        return rows

    def _point(self, rule: str, setting: float, density: float, found: EditedPass) -> dict[str, Any]:
        mean, values = self.loss(found)
        rise = (mean, *map(float, self.draws.ends(values)))
        names = (f"perplexity_rise{end}" for end in ("", "_low", "_high"))
        row = {"rule": rule, "setting": setting, "density": density, "sparsity": 1 - density}
        row |= dict(zip(names, map(_growth, rise), strict=True))
        lost, _ = self.accuracy_lost(found)
        return row | {"accuracy": float(found.correct.mean()), "relative_accuracy": 1 - lost}

    def per_layer(
        self, found: dict[float, tuple[float, EditedPass]], calibrated: Calibration
    ) -> pd.DataFrame:
        """Density of each layer, or expert, at each wanted rise, with the threshold and the CETT that it
        really has; NaN for an expert without held-out tokens.
        """
        frames = []
        for percent, (level, point) in found.items():
            density, low, high = self.draws.ratio(*point.counts)
            thresholds, errors = calibrated.at(level)
            frames.append(
                grid(
                    [places(calibrated.sites)],
                    percent=percent,
                    density=density,
                    sparsity=1 - density,
                    low=low,
                    high=high,
                    threshold=thresholds,
                    cett=errors,
                )
            )
        return pd.concat(frames)

    def bounds(self, found: dict[float, tuple[float, EditedPass]], context: Context) -> list[dict[str, Any]]:
        """Upper bounds on what is saved per decoded token at each rise, for each way to
        know the active units.
        """
        model = read_dimensions(context.subject)
        attended = default_attended(model, context.corpus.context)
        layers = sorted(set(self.layers))
        rows = []
        for percent, (_, point) in found.items():
            measured = (self.density(point), self.density(point, self.draws.weights))
            for scheme in schemes_of(model):
                assumed = Assumptions(scheme, attended, model.bytes_per_weight)
                name = f"perplexity +{percent:g} %"
                rows += bound_rows(name, model, layers, *measured, assumed, self.draws, self.n["documents"])
        return rows


def _growth(difference: float) -> float:
    """exp(difference) - 1 without overflow."""
    return math.expm1(min(difference, 700.0))


def _scalars(out: Result, report: _Reporter) -> None:
    """Headline numbers from the table ``effective``."""
    params, draws, table = report.params, report.draws, out.tables["effective"]
    where = f"on {report.n['tokens']} held-out tokens; isotonic fit of the measured points"
    wanted = [
        (f"_ppl_{p:g}", f"perplexity +{p:g} %", f"perplexity rises by {p:g} %") for p in params.percents
    ]
    for rule, suffix in (("CETT", "cett"), ("top-p", "top_p")):
        rows = {row.criterion: row for row in table[table["rule"] == rule].itertuples()}
        for name, criterion, meaning in wanted:
            row = rows[criterion]
            text = (
                f"share of hidden units kept by the {rule} rule, mean over layers and tokens, "
                f"where {meaning}, {where}"
            )
            spread = draws.between(row.low, row.high)
            out.add_scalar(f"density_{suffix}{name}", row.density, "fraction", text, interval=spread)
            text, spread = f"sparsity = 1 - density_{suffix}{name}", draws.between(1 - row.high, 1 - row.low)
            out.add_scalar(f"sparsity_{suffix}{name}", row.sparsity, "fraction", text, interval=spread)
        row = rows[report.criteria()[-1][0]]
        text = (
            f"sparsity of the {rule} rule where {params.keep_score:.4g} of the dense next-token "
            f"accuracy is left, {where}"
        )
        spread = draws.between(1 - row.high, 1 - row.low)
        out.add_scalar(f"critical_sparsity_{suffix}", row.sparsity, "fraction", text, interval=spread)
    dense = report.dense
    low, high = draws.ends(draws.replicates(report.passes.by_document(dense.nll), report.passes.targets))
    spread = draws.between(np.exp(low), np.exp(high))
    text = "exp of the mean loss in nats of the untouched model on the held-out tokens, each in its window"
    perplexity = math.exp(min(float(dense.nll.mean()), 700.0))
    out.add_scalar("dense_perplexity", perplexity, "", text, interval=spread, direction="lower")
    text = "share of the held-out tokens that the untouched model predicts first"
    out.add_scalar("dense_accuracy", float(dense.correct.mean()), "fraction", text, direction="higher")


def _notes(
    out: Result,
    context: Context,
    report: _Reporter,
    levels: dict[float, float],
    calibration: TokenizedCorpus,
    chosen: TokenizedCorpus,
    seconds: float,
) -> None:
    """Say how close the search came, what it cost and what the perplexity is of."""
    passes = report.passes
    out.note(
        "info",
        f"cost apart from the shared forward pass: calibration {seconds:.0f} s on {calibration.n_tokens} "
        f"tokens, {passes.passes} passes {passes.seconds:.0f} s on {chosen.n_tokens} held-out tokens each",
        place="cost",
    )
    out.note(
        "info",
        f"protocol: corpus {context.corpus.name}, windows of {context.corpus.context} tokens without "
        f"overlap, losses of every text token but the first of a window, {context.subject.dtype}, "
        f"{len(passes.documents)} held-out documents; masks act on every position, densities leave out "
        "the first of each window",
        place="protocol",
    )
    curve = out.tables["curve"]
    if 100 * curve["perplexity_rise_high"].min() < 0:
        out.note(
            "warning",
            "switching units off lowers the perplexity of this text, beyond its interval: the model fits the "
            "text badly, and a rise of perplexity does not find the units that it needs; read the accuracy "
            "criterion, or take other text",
            place="precision",
        )
    for percent, level in levels.items():
        row = curve[(curve["rule"] == "CETT") & (curve["setting"] == level)].iloc[0]
        missed = abs(100 * row["perplexity_rise"] - percent)
        reached = (
            f"CETT {level:.4g} gives a rise of {100 * row['perplexity_rise']:.3f} % for {percent:g} % wanted"
        )
        if missed < report.params.tolerance:
            out.note("info", reached, place="bisection")
        elif level >= 1.0 and 100 * row["perplexity_rise"] < percent:
            lost = f"with every unit off the perplexity changes by {100 * row['perplexity_rise']:+.3g} %"
            out.note("warning", f"{lost}: no CETT level gives a rise of {percent:g} %", place="bisection")
        else:
            out.note("warning", f"{reached}: the search ended {missed:.3f} points away", place="bisection")
    # The dense pass is compared with itself
    known = curve[curve["perplexity_rise_high"] > curve["perplexity_rise_low"]]
    if len(known):
        wanted = report.params.percents[len(report.params.percents) // 2]
        row = known.loc[(100 * known["perplexity_rise"] - wanted).abs().idxmin()]
        spread = 50 * (row["perplexity_rise_high"] - row["perplexity_rise_low"])
        out.note(
            "info",
            f"with these tokens a rise of {100 * row['perplexity_rise']:.3g} % is known to within "
            f"{spread:.2g} points either way: more held-out tokens narrow the intervals of the densities",
            place="precision",
        )
    elif report.n["documents"] < 2:
        out.note("warning", "one held-out document: no interval can be given", place="precision")


def _note_experts(out: Result, calibrated: Calibration) -> None:
    """Say what the units of a mixture are, and how well their thresholds are known."""
    tokens = calibrated.tokens_of_experts()
    if not tokens:
        return
    out.note(
        "info",
        "units are hidden units on routed tokens: masks act on the units of every expert that a token is "
        "sent to, and of a shared expert likewise, and the density of a layer counts these units alone; each "
        "expert has a threshold of its own, at the same CETT of its output; where tokens go is left to the "
        "routers",
        place="protocol",
    )
    none = [name for name, count in tokens.items() if not count]
    out.note(
        "warning" if none else "info",
        f"thresholds of an expert rest on the calibration tokens sent to it, {min(tokens.values())} to "
        f"{max(tokens.values())}"
        + (
            f"; {len(none)} of {len(tokens)} experts got none, for example {none[0]}, and keep all units in "
            "the CETT rule (below level 1, which leaves none on)"
            if none
            else ""
        ),
        place="bisection",
    )

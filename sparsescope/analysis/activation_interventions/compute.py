"""Interventions, computed: masked passes over the same tokens, all differences paired by token.

Random sets and corrupted tokens come from generators seeded by the spec and by the batch, so a pass that is repeated after an
interruption draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from sparsescope.activations.context import Context
from sparsescope.activations.edited import EditedPass, EditedPasses, held_out
from sparsescope.analysis.activation_interventions import TABLES, ActivationInterventionsParams
from sparsescope.core.result import Interval, Result
from sparsescope.kernels.keep_masks import random_k_mask, top_k_mask
from sparsescope.metrics.calibration import BINS, bin_of, expected_calibration_error, null_calibration_errors, reliability_bins
from sparsescope.metrics.statistics import bootstrap_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenBatch
    from sparsescope.models.sites import Site

SITES = "blocks.*.mlp.hook_post"
METHOD = "paired document-cluster bootstrap, percentile"


def compute(params: ActivationInterventionsParams, context: Context) -> Result:
    """Run the analysis."""
    _, chosen = held_out(context.corpus, params.tokens)
    planned = 1 + len({*params.densities, params.robust_density}) + len(params.densities) + 2 * len(params.corruption)
    passes = EditedPasses(context, chosen, context.subject.sites(SITES), planned)
    dense = passes.run("dense")
    found: dict[tuple[str, float], EditedPass] = {("dense", 1.0): dense}
    for kept in sorted({*params.densities, params.robust_density}, reverse=True):
        found["top-k", kept] = passes.run(f"top-{kept:g}", _top(kept))
    for kept in sorted(params.densities, reverse=True):
        found["random-k", kept] = passes.run(f"random-{kept:g}", _random(kept, params.seed, context.subject.device))
    pool = np.concatenate([document.ids for document in chosen.documents])
    corrupted: dict[tuple[str, float], EditedPass] = {}
    for share in params.corruption:
        swap = _corrupt(share, pool, params.seed)
        corrupted["dense", share] = passes.run(f"dense-corrupted-{share:g}", None, swap)
        corrupted["top-k", share] = passes.run(f"top-corrupted-{share:g}", _top(params.robust_density), swap)

    out = Result("activation_interventions")
    report = _Reporter(params, passes, dense)
    out.add_table("loss_curve", report.loss_curve(found), TABLES["loss_curve"])
    out.add_table("calibration", report.calibration(found), TABLES["calibration"])
    clean = {"dense": dense, "top-k": found["top-k", params.robust_density]}
    out.add_table("reliability", report.reliability(clean), TABLES["reliability"])
    out.add_table("robustness", report.robustness(clean, corrupted), TABLES["robustness"])
    _scalars(out, report)
    out.note(
        "info",
        f"{passes.passes} passes over {chosen.n_tokens} tokens, {passes.seconds:.0f} s, apart from the shared forward pass",
        place="cost",
    )
    out.note(
        "info",
        f"protocol: corpus {context.corpus.name}, windows of {context.corpus.context} tokens without overlap, losses of every "
        f"text token but the first of a window, {context.subject.dtype}; k units are kept on every position in every layer; "
        "the model is frozen, so published results of models trained with top-k are no comparison",
        place="protocol",
    )
    if not report.enough:
        out.note("warning", "one document: no interval can be given", place="precision")
    return out


def _top(kept: float) -> Callable[[Site, torch.Tensor], torch.Tensor]:
    return lambda site, tensor: top_k_mask(tensor, _k(site, kept))


def _k(site: Site, kept: float) -> int:
    """Units to keep, at least one."""
    return max(1, round(kept * site.width))


def _random(kept: float, seed: int, device: str) -> Callable[[Site, torch.Tensor], torch.Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return lambda site, tensor: random_k_mask(tensor != 0, _k(site, kept), generator)


def _corrupt(share: float, pool: NDArray[np.int32], seed: int) -> Callable[[TokenBatch], NDArray[np.int64]]:
    """Replace text tokens independently with probability ``share`` by tokens drawn from the text (maybe by themselves)."""

    def replace(batch: TokenBatch) -> NDArray[np.int64]:
        generator = np.random.default_rng([seed, int(batch.document[0]), int(batch.offset[0])])
        # Both arrays are drawn whole, so that a larger share replaces the same tokens and more.
        chance, drawn = generator.random(batch.input_ids.shape), generator.choice(pool, batch.input_ids.shape)
        return np.where((chance < share) & batch.text_mask, drawn, batch.input_ids)

    return replace


class _Reporter:
    """Turns passes into tables with paired intervals."""

    def __init__(self, params: ActivationInterventionsParams, passes: EditedPasses, dense: EditedPass) -> None:
        self.params, self.passes, self.dense = params, passes, dense
        self.targets = passes.targets.astype(float)
        self.documents = int((self.targets > 0).sum())
        self.enough = self.documents >= 2
        self.weights = bootstrap_weights(passes.domains, params.resamples, params.seed)
        self.drawn = self.weights @ self.targets

    def difference(self, values: NDArray[np.float64]) -> dict[str, float]:
        """Mean of a paired difference [target] with its interval."""
        sums = self.passes.by_document(values)
        low, high = self.range((self.weights @ sums) / self.drawn)
        return {"mean": float(sums.sum() / self.targets.sum()), "low": low, "high": high}

    def range(self, values: NDArray[np.float64]) -> tuple[float, float]:
        """Percentile interval; NaN with fewer than two documents."""
        if not self.enough:
            return math.nan, math.nan
        tail = 100 * (1 - self.params.level) / 2
        low, high = np.percentile(values, [tail, 100 - tail])
        return float(low), float(high)

    @property
    def n(self) -> dict[str, int]:
        return {"tokens": int(self.targets.sum()), "documents": self.documents}

    def loss_curve(self, found: dict[tuple[str, float], EditedPass]) -> pd.DataFrame:
        """One row for each model."""
        rows = []
        for (model, kept), one in found.items():
            rise = self.difference(one.nll - self.dense.nll)
            row = {"model": model, "kept": kept, "loss": float(one.nll.mean()), "loss_rise": rise["mean"]}
            row |= {"low": rise["low"], "high": rise["high"], "accuracy": float(one.correct.mean())}
            rows.append(row | {"changed": float((one.correct != self.dense.correct).mean()), **self.n})
        return pd.DataFrame(rows)

    def calibration(self, found: dict[tuple[str, float], EditedPass]) -> pd.DataFrame:
        """ECE of the dense and the top-k models with interval and null."""
        rows = []
        for (model, kept), one in found.items():
            if model == "random-k":
                continue
            low, high = self.range(self._resampled_error(one))
            null = null_calibration_errors(one.confidence, self.params.null_draws, self.params.seed)
            row = {"model": model, "kept": kept, "ece": expected_calibration_error(one.confidence, one.correct)}
            row |= {"low": low, "high": high, "null": float(null.mean()), "null_high": float(np.quantile(null, 0.95))}
            row |= {"confidence": float(one.confidence.mean()), "accuracy": float(one.correct.mean())}
            rows.append(row | self.n)
        return pd.DataFrame(rows)

    def _resampled_error(self, one: EditedPass) -> NDArray[np.float64]:
        """ECE of each resample [B], from the sums of each document and bin."""
        cells = self.passes.where * BINS + bin_of(one.confidence)
        size = len(self.passes.documents) * BINS
        gap = np.bincount(cells, one.correct - one.confidence.astype(np.float64), size).reshape(-1, BINS)
        return np.abs(self.weights @ gap).sum(1) / self.drawn  # type: ignore[no-any-return]

    def reliability(self, models: dict[str, EditedPass]) -> pd.DataFrame:
        """Accuracy against confidence, by bin."""
        rows = []
        for model, one in models.items():
            bins = reliability_bins(one.confidence, one.correct)
            for count, confidence, accuracy in zip(bins.count, bins.confidence, bins.accuracy, strict=True):
                if count:
                    interval = binomtest(round(accuracy * count), int(count)).proportion_ci(self.params.level, "wilson")
                    kept = 1.0 if model == "dense" else self.params.robust_density
                    rows.append((model, kept, confidence, accuracy, interval.low, interval.high, int(count)))
        return pd.DataFrame(rows, columns=[column.name for column in TABLES["reliability"]])

    def robustness(self, clean: dict[str, EditedPass], corrupted: dict[tuple[str, float], EditedPass]) -> pd.DataFrame:
        """Rise of the loss under corruption, and by how much more it rises for the sparse model."""
        rows = []
        for share in self.params.corruption:
            rises = {model: corrupted[model, share].nll - clean[model].nll for model in clean}
            for model, rise in rises.items():
                own = self.difference(rise)
                row: dict[str, Any] = {"model": model, "corrupted": share, "loss": float(corrupted[model, share].nll.mean())}
                row |= {"loss_rise": own["mean"], "low": own["low"], "high": own["high"]}
                excess = self.difference(rise - rises["dense"]) if model != "dense" else dict.fromkeys(own, math.nan)
                row |= {"excess": excess["mean"], "excess_low": excess["low"], "excess_high": excess["high"]}
                rows.append(row | self.n)
        return pd.DataFrame(rows, columns=[column.name for column in TABLES["robustness"]])


def _scalars(out: Result, report: _Reporter) -> None:
    """Headline numbers, at the density whose robustness is measured or the nearest to it."""
    params = report.params
    curve, errors, robust = (out.tables[name] for name in ("loss_curve", "calibration", "robustness"))

    def interval(low: float, high: float, method: str = METHOD) -> Interval | None:
        return Interval(float(low), float(high), params.level, method, report.documents) if math.isfinite(low) else None

    for model, suffix in (("top-k", "top_k"), ("random-k", "random_k")):
        rows = curve[curve["model"] == model]
        row = rows.loc[(rows["kept"] - params.robust_density).abs().idxmin()]
        text = f"loss with {row['kept']:.4g} of the units of each layer kept ({model}) - dense loss, {report.n['tokens']} tokens"
        spread = interval(row["low"], row["high"])
        out.add_scalar(f"loss_rise_{suffix}", row["loss_rise"], "nats", text, interval=spread, direction="lower")
    for model, suffix in (("dense", "dense"), ("top-k", "top_k")):
        rows = errors[errors["model"] == model]
        row = rows.loc[(rows["kept"] - params.robust_density).abs().idxmin()]
        kept = "" if model == "dense" else f" with {row['kept']:.4g} of the units kept"
        text = f"expected calibration error of the most probable token{kept}; a calibrated model would show {row['null']:.4f}"
        spread = interval(row["low"], row["high"], "document-cluster bootstrap, percentile")
        out.add_scalar(f"ece_{suffix}", row["ece"], "fraction", text, interval=spread, direction="lower")
    rows = robust[robust["model"] == "top-k"]
    if len(rows):
        row = rows.iloc[-1]
        text = (
            f"rise of the loss with {row['corrupted']:.4g} of the input tokens replaced: sparse model "
            f"({params.robust_density:.4g} kept) - dense model; negative means that the sparse model is more robust"
        )
        spread = interval(row["excess_low"], row["excess_high"])
        out.add_scalar("robustness_excess", row["excess"], "nats", text, interval=spread, direction="lower")
    else:
        out.add_scalar("robustness_excess", math.nan, "nats", "not measured: no corruption was asked for")

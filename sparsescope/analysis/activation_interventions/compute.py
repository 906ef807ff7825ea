"""Interventions, computed: masked passes over the same tokens, all differences paired by token.

Random sets and corrupted tokens come from generators seeded by the spec and by the batch, so a pass that is
repeated after an interruption draws the same.
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
from sparsescope.activations.edited_passes import EditedPass, EditedPasses, held_out
from sparsescope.analysis.activation_interventions import ActivationInterventionsParams
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.kernels.topk_masks import random_k_mask, top_k_mask
from sparsescope.metrics.calibration import (
    BINS,
    bin_of,
    expected_calibration_error,
    null_calibration_errors,
    reliability_bins,
)
from sparsescope.metrics.estimates import BOOTSTRAP, PAIRED_BOOTSTRAP, DocumentBootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenBatch
    from sparsescope.models.structure.sites import Site


def compute(params: ActivationInterventionsParams, context: Context) -> Result:
    """Run the analysis."""
    _, chosen = held_out(context.corpus, params.tokens)
    planned = (
        1
        + len({*params.densities, params.robust_density})
        + len(params.densities)
        + 2 * len(params.corruption)
    )
    sites = context.subject.hidden_sites()
    passes = EditedPasses(context, chosen, sites, planned)
    dense = passes.run("dense")
    found: dict[tuple[str, float], EditedPass] = {("dense", 1.0): dense}
    for kept in sorted({*params.densities, params.robust_density}, reverse=True):
        found["top-k", kept] = passes.run(f"top-{kept:g}", _top(kept))
    for kept in sorted(params.densities, reverse=True):
        found["random-k", kept] = passes.run(
            f"random-{kept:g}", _random(kept, params.seed, context.subject.device)
        )
    pool = np.concatenate([document.ids for document in chosen.documents])
    corrupted: dict[tuple[str, float], EditedPass] = {}
    for share in params.corruption:
        swap = _corrupt(share, pool, params.seed)
        corrupted["dense", share] = passes.run(f"dense-corrupted-{share:g}", None, swap)
        corrupted["top-k", share] = passes.run(f"top-corrupted-{share:g}", _top(params.robust_density), swap)

    out = Result("activation_interventions")
    report = _Reporter(params, passes, dense)
    clean = {"dense": dense, "top-k": found["top-k", params.robust_density]}
    out.add("loss_curve", report.loss_curve(found))
    out.add("calibration", report.calibration(found))
    out.add("reliability", report.reliability(clean))
    out.add("robustness", report.robustness(clean, corrupted))
    _scalars(out, report)
    out.note(
        "info",
        f"{passes.passes} passes over {chosen.n_tokens} tokens, {passes.seconds:.0f} s, apart from "
        "the shared forward pass",
        place="cost",
    )
    out.note(
        "info",
        f"protocol: corpus {context.corpus.name}, windows of {context.corpus.context} tokens without "
        f"overlap, losses of every text token but the first of a window, {context.subject.dtype}; k units "
        "are kept on every position in every layer; the model is frozen, so published results of models "
        "trained with top-k are no comparison",
        place="protocol",
    )
    if any(site.expert is not None for site in sites):
        out.note(
            "info",
            "units are hidden units on routed tokens: of every expert that a token is sent to, the share of "
            "its units is kept, and of a shared expert likewise; where tokens go is left to the routers",
            place="protocol",
        )
    if report.n["documents"] < 2:
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
    """Replace text tokens independently with probability ``share`` by tokens drawn from the text
    (maybe by themselves).
    """

    def replace(batch: TokenBatch) -> NDArray[np.int64]:
        generator = np.random.default_rng([seed, int(batch.document[0]), int(batch.offset[0])])
        # Both arrays are drawn whole, so that a larger share replaces the same tokens and more.
        chance, drawn = generator.random(batch.input_ids.shape), generator.choice(pool, batch.input_ids.shape)
        return np.where((chance < share) & batch.text_mask, drawn, batch.input_ids)

    return replace


class _Reporter:
    """Turns passes into rows with paired intervals."""

    def __init__(
        self, params: ActivationInterventionsParams, passes: EditedPasses, dense: EditedPass
    ) -> None:
        self.params, self.passes, self.dense = params, passes, dense
        self.draws = DocumentBootstrap.draw(
            passes.domains, params.resamples, params.seed, params.level, PAIRED_BOOTSTRAP
        )
        self.n = {"tokens": int(passes.targets.sum()), "documents": int((passes.targets > 0).sum())}

    def difference(self, values: NDArray[np.float64], name: str, prefix: str = "") -> dict[str, float]:
        """Mean of a paired difference [target] with its interval."""
        found = self.draws.ratio(self.passes.by_document(values), self.passes.targets)
        return dict(zip((name, f"{prefix}low", f"{prefix}high"), map(float, found), strict=True))

    def loss_curve(self, found: dict[tuple[str, float], EditedPass]) -> list[dict[str, Any]]:
        """One row for each model."""
        return [
            {
                "model": model,
                "kept": kept,
                "loss": float(one.nll.mean()),
                **self.difference(one.nll - self.dense.nll, "loss_rise"),
                "accuracy": float(one.correct.mean()),
                "changed": float((one.correct != self.dense.correct).mean()),
                **self.n,
            }
            for (model, kept), one in found.items()
        ]

    def calibration(self, found: dict[tuple[str, float], EditedPass]) -> list[dict[str, Any]]:
        """ECE of the dense and the top-k models with interval and null."""
        rows = []
        for (model, kept), one in found.items():
            if model == "random-k":
                continue
            low, high = self.draws.ends(self._resampled_error(one), self.n["documents"])
            null = null_calibration_errors(one.confidence, self.params.null_draws, self.params.seed)
            row = {
                "model": model,
                "kept": kept,
                "ece": expected_calibration_error(one.confidence, one.correct),
            }
            row |= {"low": float(low), "high": float(high), "null": float(null.mean())}
            row |= {"null_high": float(np.quantile(null, 0.95)), "confidence": float(one.confidence.mean())}
            rows.append(row | {"accuracy": float(one.correct.mean()), **self.n})
        return rows

    def _resampled_error(self, one: EditedPass) -> NDArray[np.float64]:
        """ECE of each resample [B], from the sums of each document and bin."""
        cells = self.passes.where * BINS + bin_of(one.confidence)
        size = len(self.passes.documents) * BINS
        gap = np.bincount(cells, one.correct - one.confidence.astype(np.float64), size).reshape(-1, BINS)
        return np.abs(self.draws.totals(gap)).sum(1) / self.draws.totals(self.passes.targets)

    def reliability(self, models: dict[str, EditedPass]) -> list[tuple[Any, ...]]:
        """Accuracy against confidence, by bin."""
        rows = []
        for model, one in models.items():
            kept, bins = (
                1.0 if model == "dense" else self.params.robust_density,
                reliability_bins(one.confidence, one.correct),
            )
            for count, confidence, accuracy in zip(bins.count, bins.confidence, bins.accuracy, strict=True):
                if count:
                    interval = binomtest(round(accuracy * count), int(count)).proportion_ci(
                        self.params.level, "wilson"
                    )
                    rows.append((model, kept, confidence, accuracy, interval.low, interval.high, int(count)))
        return rows

    def robustness(
        self, clean: dict[str, EditedPass], corrupted: dict[tuple[str, float], EditedPass]
    ) -> list[dict[str, Any]]:
        """Rise of the loss under corruption, and by how much more it rises for the sparse model."""
        rows = []
        for share in self.params.corruption:
            rises = {model: corrupted[model, share].nll - clean[model].nll for model in clean}
            for model, rise in rises.items():
                excess = self.difference(rise - rises["dense"], "excess", "excess_")
                row = {"model": model, "corrupted": share, "loss": float(corrupted[model, share].nll.mean())}
                row |= self.difference(rise, "loss_rise")
                rows.append(row | (excess if model != "dense" else dict.fromkeys(excess, math.nan)) | self.n)
        return rows


def _scalars(out: Result, report: _Reporter) -> None:
    """Headline numbers, at the density whose robustness is measured or the nearest to it."""
    params, draws = report.params, report.draws
    curve, errors, robust = (out.tables[name] for name in ("loss_curve", "calibration", "robustness"))

    def near(table: pd.DataFrame, model: str) -> pd.Series:
        rows = table[table["model"] == model]
        return rows.loc[(rows["kept"] - params.robust_density).abs().idxmin()]

    for model, suffix in (("top-k", "top_k"), ("random-k", "random_k")):
        row = near(curve, model)
        text = (
            f"loss with {row['kept']:.4g} of the units of each layer kept ({model}) - dense loss, "
            f"{report.n['tokens']} tokens"
        )
        spread = draws.between(row["low"], row["high"], row["documents"])
        out.add_scalar(
            f"loss_rise_{suffix}", row["loss_rise"], "nats", text, interval=spread, direction="lower"
        )
    for model, suffix in (("dense", "dense"), ("top-k", "top_k")):
        row = near(errors, model)
        kept = "" if model == "dense" else f" with {row['kept']:.4g} of the units kept"
        text = (
            f"expected calibration error of the most probable token{kept}; a calibrated model would "
            f"show {row['null']:.4f}"
        )
        spread = Interval.of(row["low"], row["high"], params.level, BOOTSTRAP, row["documents"])
        out.add_scalar(f"ece_{suffix}", row["ece"], "fraction", text, interval=spread, direction="lower")
    rows = robust[robust["model"] == "top-k"]
    if len(rows):
        row = rows.iloc[-1]
        text = (
            f"rise of the loss with {row['corrupted']:.4g} of the input tokens replaced: sparse model "
            f"({params.robust_density:.4g} kept) - dense model; negative means that the "
            "sparse model is more robust"
        )
        spread = draws.between(row["excess_low"], row["excess_high"], row["documents"])
        out.add_scalar("robustness_excess", row["excess"], "nats", text, interval=spread, direction="lower")
    else:
        out.add_scalar("robustness_excess", math.nan, "nats", "not measured: no corruption was asked for")

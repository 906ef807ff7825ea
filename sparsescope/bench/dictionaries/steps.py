"""Training steps of one TopK autoencoder, by turns: dense codes, sparse codes, SAELens."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from sparsescope.bench.dictionaries.dense_step import DenseStep
from sparsescope.bench.dictionaries.saelens import SAELens
from sparsescope.bench.timing import interleaved
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.dictionaries.rows import TensorRows
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.dictionaries.train import DictionaryTraining, Settings

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.bench.dictionaries import DictionariesParams

DENSE, SPARSE, SPARSE_BF16 = "dense, float32", "sparse, float32", "sparse, bfloat16 scores"


def time_steps(
    params: DictionariesParams, context: Context, rows: torch.Tensor, site: str, out: Result
) -> None:
    """Fill the tables ``steps`` and ``curve``, and their numbers."""
    ours = {SPARSE: _Sparse(params, rows, site, low_precision=False)}
    if params.low_precision:
        ours[SPARSE_BF16] = _Sparse(params, rows, site, low_precision=True)
    first = ours[SPARSE]
    variants: dict[str, _Dense | _Sparse | SAELens] = {DENSE: _Dense(params, rows, site, first), **ours}
    sizes = {"width": params.width, "k": params.k, "batch": params.batch, "dead": int(_dead(params).sum())}
    with ExitStack() as stack:
        if params.saelens:
            peer = stack.enter_context(SAELens(params.saelens, rows, rate=first.rate, **sizes))
            variants[f"SAELens {peer.version}"] = peer
        found = interleaved(
            [partial(variant.run, params.steps) for variant in variants.values()],
            params.repeats,
            told=lambda done, count: context.progress("steps", done, count, "runs"),
        )
    curves = {name: variant.fvu for name, variant in variants.items()}
    seconds = dict(zip(variants, found / params.steps, strict=True))
    out.add("steps", [_row(name, seconds, curves[name], params) for name in variants])
    out.add("curve", [row for name in variants for row in _curve(name, seconds[name], curves[name], params)])
    _numbers(params, rows, site, seconds, curves, out)


class _Sparse:
    """Our step, as the trainer does it."""

    def __init__(
        self, params: DictionariesParams, rows: torch.Tensor, site: str, *, low_precision: bool
    ) -> None:
        self.begun = TopKSAE(rows.shape[1], params.width, k=params.k, site=site)
        scores: Literal["float32", "bfloat16"] = "bfloat16" if low_precision else "float32"
        settings = Settings(warmup=0.0, decay=0.0, scores=scores)
        self.rate = settings.rate(params.width)
        self.training = DictionaryTraining(
            {"topk": self.begun}, _batches(params, rows, site), settings, "bench", "cpu", (), None
        )
        self.dead = _dead(params)
        self.done = 0
        self.fvu: list[float] = []

    def run(self, steps: int) -> None:
        held = self.training
        for _ in range(steps):
            held.extra["since.topk"][self.dead] = held.window
            before = float(held.extra["sums.topk"][0])
            held.update(self.done)
            self.done += 1
            self.fvu.append(float(held.extra["sums.topk"][0]) - before)


class _Dense:
    """The same step with dense codes, from the same start."""

    def __init__(self, params: DictionariesParams, rows: torch.Tensor, site: str, like: _Sparse) -> None:
        self.scale, self.site = like.training.scale_in, site
        variance = like.training.row_facts[site].variance / self.scale**2
        self.step = DenseStep(like.begun, like.rate, variance)
        self.stream = _batches(params, rows, site).batches()
        self.dead = _dead(params)
        self.fvu: list[float] = []

    def run(self, steps: int) -> None:
        for _ in range(steps):
            batch = next(self.stream).values[self.site] / self.scale
            self.fvu.append(self.step.update(batch, self.dead))


def _batches(params: DictionariesParams, rows: torch.Tensor, site: str) -> TensorRows:
    total = params.steps * (params.repeats + 1)
    epochs = -(-total * params.batch // len(rows))
    return TensorRows(rows, batch_rows=params.batch, epochs=epochs, site=site)


def _dead(params: DictionariesParams) -> torch.Tensor:
    dead = torch.zeros(params.width, dtype=torch.bool)
    dead[: int(params.dead_share * params.width)] = True
    return dead


def _speedup(base: Any, of: Any) -> tuple[float, float, float]:
    """Median and quartiles of the ratio within a repeat."""
    low, middle, high = np.percentile(base / of, [25, 50, 75])
    return float(middle), float(low), float(high)


def _row(name: str, seconds: dict[str, Any], fvu: list[float], params: DictionariesParams) -> dict[str, Any]:
    median = float(np.median(seconds[name]))
    middle, low, high = _speedup(seconds[DENSE], seconds[name])
    return {
        "variant": name, "seconds": median, "rate": params.batch / median, "speedup": middle,
        "speedup_q1": low, "speedup_q3": high, "fvu": float(np.mean(fvu[-params.steps :])),
        "steps": params.steps * params.repeats,
    }  # fmt: skip


def _curve(name: str, seconds: Any, fvu: list[float], params: DictionariesParams) -> list[dict[str, Any]]:
    """Steps after the warm-up: time so far and error before each."""
    spent = np.cumsum(np.repeat(seconds, params.steps))
    return [
        {"variant": name, "step": number, "seconds": float(time), "fvu": fvu[number]}
        for number, time in enumerate(spent, params.steps)
    ]


def _numbers(
    params: DictionariesParams,
    rows: torch.Tensor,
    site: str,
    seconds: dict[str, Any],
    curves: dict[str, list[float]],
    out: Result,
) -> None:
    sizes = f"d_in {rows.shape[1]}, {params.width} features, k {params.k}, batches of {params.batch}"

    def speed(key: str, base: str, of: str, what: str) -> None:
        middle, low, high = _speedup(seconds[base], seconds[of])
        out.add_scalar(
            key, middle, "", f"median time of {what}, {sizes}", direction="higher",
            interval=Interval.of(low, high, 0.5, "quartiles over interleaved repeats", params.repeats),
        )  # fmt: skip

    speed("step_speedup", DENSE, SPARSE, "a dense step over a sparse one")
    ends = {name: float(np.mean(fvu[-params.steps :])) for name, fvu in curves.items()}
    out.add_scalar(
        "step_fvu_ratio", ends[SPARSE] / ends[DENSE], "",
        "variance unexplained after equally many steps, sparse over dense",
    )  # fmt: skip
    if SPARSE_BF16 in seconds:
        speed("step_speedup_bf16", DENSE, SPARSE_BF16, "a dense step over one with bfloat16 scores")
        out.add_scalar(
            "step_fvu_ratio_bf16", ends[SPARSE_BF16] / ends[DENSE], "",
            "variance unexplained after equally many steps, sparse with bfloat16 scores over dense",
        )  # fmt: skip
    peers = [name for name in seconds if name.startswith("SAELens")]
    for peer in peers:
        speed("saelens_speedup", peer, SPARSE, "SAELens' step over ours")
        if SPARSE_BF16 in seconds:
            speed(
                "saelens_speedup_bf16", peer, SPARSE_BF16, "SAELens' step over ours with bfloat16 scores"
            )  # fmt: skip
        out.note("info", f"{peer} ran with its defaults in a process of its own, in turn with the others; "
                 "its start and its batches are its own.", place="steps")  # fmt: skip
    spread = np.diff(np.percentile(seconds[DENSE], [25, 75]))[0] / np.median(seconds[DENSE])
    if spread > 0.1:
        out.note(
            "warning", f"The dense step varied by {spread:.0%} between quartiles: other work on this machine?"
        )
    out.note(
        "info",
        f"{len(rows)} rows of {site}; {sizes}; {int(_dead(params).sum())} features declared dead.",
        place="steps",
    )

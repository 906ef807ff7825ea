"""What reading activations costs, against the bare forward pass of the same model without its output head.

Every repeat runs all variants one after the other on the same batches, in an order that rotates from repeat to repeat;
a ratio is taken within a repeat, so that slow drifts of the machine cancel. Median and quartiles of the ratios are
reported. Memory: peak resident size while streaming, above the size before, for two corpora of different length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsescope.core.registry import Analysis, View
from sparsescope.core.result import Column, Result
from sparsescope.core.spec import Params

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus


class CaptureParams(Params):
    """Parameters of the benchmark ``capture``."""

    sites: str = Field("blocks.*.mlp.hook_post", description="Sites to capture.")
    repeats: int = Field(5, ge=3, le=100, description="Repeats of every variant, after one warm-up.")
    batch_tokens: int = Field(2048, ge=1, description="Most token positions in one forward pass.")


ANALYSIS = Analysis(
    name="capture",
    version="1",
    title="Cost of reading activations",
    summary="Time and memory of capture, statistics and shards against the bare forward pass.",
    params=CaptureParams,
    compute="sparsescope.bench.capture",
    view_module="sparsescope.bench.views",
    views=(
        View(
            "ratios",
            "Time relative to the bare forward pass",
            "Median over repeats of the time of a variant divided by the time of the bare forward pass (without output head) "
            "of the same repeat; lines show the quartiles. Variants of another dtype are labelled: they compute other numbers.",
            table="variants",
            formula="ratio = seconds(variant) / seconds(bare forward), within a repeat",
        ),
    ),
    headline=("capture_ratio", "statistics_ratio", "shards_ratio"),
    measures_time=True,
)

_VARIANTS = (
    Column("variant", "label", "What was run."),
    Column("seconds", "seconds", "Median time for all tokens.", "s"),
    Column("rate", "value", "Tokens a second at the median.", "tokens/s"),
    Column("ratio", "value", "Median ratio to the bare forward pass of the same repeat."),
    Column("ratio_q1", "value", "First quartile of the ratio."),
    Column("ratio_q3", "value", "Third quartile of the ratio."),
    Column("repeats", "count", "Repeats."),
)
_MEMORY = (
    Column("tokens", "count", "Tokens streamed."),
    Column("peak_extra", "bytes", "Peak resident size while streaming, above the size before the first stream.", "bytes"),
)


def compute(params: CaptureParams, context: Context) -> Result:
    """Run the benchmark."""
    import shutil
    import tempfile
    from functools import partial

    import numpy as np
    import torch

    from sparsescope.activations.accumulators import SparsityAccumulator
    from sparsescope.activations.capture import capture
    from sparsescope.activations.store import write_store

    subject, corpus = context.subject, context.corpus
    folder = tempfile.mkdtemp(prefix="sparsescope-bench-")
    half = subject.copy() if subject.dtype == "float32" else None
    if half is not None:
        half.model.to(torch.bfloat16)

    def forward(model: Any = subject, logits: bool = False) -> None:
        for tokens in corpus.batches(params.batch_tokens):
            mask = None if tokens.attention_mask.all() else torch.from_numpy(tokens.attention_mask).to(subject.device)
            model.forward(torch.from_numpy(tokens.input_ids).to(subject.device), mask, logits=logits)
            _wait(subject.device)

    def copying() -> None:
        for _ in live:
            _wait(subject.device)

    def statistics() -> None:
        accumulator = SparsityAccumulator(live.sites, (0.5, 0.9, 0.95, 0.99), 0.9, corpus.context)
        for batch in live:
            accumulator.update(batch)
        accumulator.finish()

    def shards(source: Any, name: str) -> None:
        shutil.rmtree(f"{folder}/{name}", ignore_errors=True)
        write_store(source, f"{folder}/{name}")

    forward()  # what the model itself needs is not the cost of reading it
    memory = _memory(context, params)
    try:
        with (
            capture(subject, corpus, params.sites, batch_tokens=params.batch_tokens) as live,
            capture(subject, corpus, params.sites, batch_tokens=params.batch_tokens, dtype="bfloat16") as compact,
        ):
            sites = len(live.sites)
            variants: dict[str, Callable[[], None]] = {
                "bare forward": forward,
                "forward with logits": partial(forward, logits=True),
                f"copying {sites} sites": copying,
                f"copying and every statistic of {sites} sites": statistics,
                f"storing {sites} sites as bfloat16 shards": partial(shards, compact, "bfloat16"),
                f"storing {sites} sites as {subject.dtype} shards": partial(shards, live, subject.dtype),
            }
            if half is not None:
                variants["bare forward in bfloat16 (other numbers)"] = partial(forward, half)
            seconds = _interleaved(list(variants.values()), params.repeats)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = Result("capture")
    _variants(result, list(variants), seconds, corpus.n_tokens)
    result.add_table("memory", memory, _MEMORY)
    short, long = memory.to_dict("records")
    result.add_scalar(
        "peak_memory_growth", long["peak_extra"] / max(short["peak_extra"], 1), "", direction="lower",
        definition=f"peak extra memory for {long['tokens']} tokens / for {short['tokens']} tokens",
    )  # fmt: skip
    spread = np.diff(np.percentile(seconds[0], [25, 75]))[0] / np.median(seconds[0])
    if spread > 0.1:
        result.note("warning", f"The bare forward pass varied by {spread:.0%} between quartiles: other work on this machine?")
    return result


def _memory(context: Context, params: CaptureParams) -> Any:
    """Peak extra memory of a short and a long stream. Both are taken above the size before the first one: memory that
    the first gave back to the allocator is still resident.
    """
    import gc
    from functools import partial

    import pandas as pd
    import psutil

    gc.collect()
    before = psutil.Process().memory_info().rss
    parts = (context.corpus.split(4)[0], context.corpus)
    peaks = [_peak(partial(_stream, context, params, part)) - before for part in parts]
    return pd.DataFrame({"tokens": [part.n_tokens for part in parts], "peak_extra": peaks})


def _stream(context: Context, params: CaptureParams, corpus: TokenizedCorpus) -> None:
    """Capture and take statistics of a corpus, as an analysis does."""
    from sparsescope.activations.accumulators import SparsityAccumulator
    from sparsescope.activations.capture import capture

    with capture(context.subject, corpus, params.sites, batch_tokens=params.batch_tokens) as source:
        accumulator = SparsityAccumulator(source.sites, (0.5, 0.9, 0.95, 0.99), 0.9, corpus.context)
        for batch in source:
            accumulator.update(batch)
        accumulator.finish()


def _interleaved(variants: list[Callable[[], None]], repeats: int) -> Any:
    """Time every variant in every repeat, after one warm-up. Returns float64 [variant, repeat] in seconds."""
    import time

    import numpy as np

    seconds = np.empty((len(variants), repeats))
    for variant in variants:
        variant()
    for repeat in range(repeats):
        for step in range(len(variants)):
            index = (step + repeat) % len(variants)
            begin = time.perf_counter()
            variants[index]()
            seconds[index, repeat] = time.perf_counter() - begin
    return seconds


def _variants(result: Result, names: list[str], seconds: Any, tokens: int) -> None:
    """Table and scalars of the times; ``seconds`` is [variant, repeat], the first variant is the reference."""
    import numpy as np
    import pandas as pd

    from sparsescope.core.result import Interval

    ratios = seconds / seconds[:1]
    low, middle, high = np.percentile(ratios, [25, 50, 75], axis=1)
    typical = np.median(seconds, axis=1)
    repeats = seconds.shape[1]
    frame = pd.DataFrame(
        {
            "variant": names, "seconds": typical, "rate": tokens / typical, "ratio": middle, "ratio_q1": low, "ratio_q3": high,
            "repeats": repeats,
        }
    )  # fmt: skip
    result.add_table("variants", frame, _VARIANTS)
    wanted = {"logits": 1, "capture": 2, "statistics": 3, "shards": 4, "shards_full": 5}
    for name, index in wanted.items():
        result.add_scalar(
            f"{name}_ratio", middle[index], "", f"median over {repeats} repeats: seconds({names[index]}) / seconds({names[0]})",
            direction="lower", interval=Interval(low[index], high[index], 0.5, "quartiles over repeats", repeats),
        )  # fmt: skip


def _peak(call: Callable[[], None]) -> int:
    """Peak resident size of this process during ``call``, sampled every 10 ms; bytes."""
    import threading

    import psutil

    process = psutil.Process()
    peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        call()
    finally:
        done.set()
        thread.join()
    return max(peak, process.memory_info().rss)


def _wait(device: str) -> None:
    """Wait for an accelerator, which computes behind the back of the clock."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()

"""What reading activations costs, against the bare forward pass of the same model without its output head.

Every repeat runs all variants one after the other on the same batches, in an order that rotates from repeat
to repeat; a ratio is taken within a repeat, so that slow drifts of the machine cancel. Median and quartiles
of the ratios are reported. Memory: peak resident size while streaming, above the size before, for two corpora
of different length.

The same sites are also read in the ways of ``peers.py``: plain hooks, and TransformerLens with its
documented arguments and with every argument that saves it work. They are timed only where they give the
same numbers as we do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from sparsescope.bench.check_cost import CHECKS, check_cost
from sparsescope.bench.timing import interleaved, wait
from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, View
from sparsescope.core.result import Result
from sparsescope.core.spec import Params

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.structure.sites import Site


class CaptureParams(Params):
    """Parameters of the benchmark ``capture``."""

    sites: str = Field("blocks.*.mlp.hook_post", description="Sites to capture.")
    repeats: int = Field(5, ge=3, le=100, description="Repeats of every variant, after one warm-up.")
    batch_tokens: int = Field(2048, ge=1, description="Most token positions in one forward pass.")
    transformer_lens: bool = Field(
        True,
        description="Compare with TransformerLens, on a copy of the model, where it knows the architecture.",
    )


TABLES: dict[str, tuple[Column, ...]] = {
    "variants": (
        Column("variant", "label", "What was run."),
        Column("seconds", "seconds", "Median time for all tokens.", "s"),
        Column("rate", "value", "Tokens a second at the median.", "tokens/s"),
        Column("ratio", "value", "Median ratio to the bare forward pass of the same repeat."),
        Column("ratio_q1", "value", "First quartile of the ratio.", low_of="ratio"),
        Column("ratio_q3", "value", "Third quartile of the ratio.", high_of="ratio"),
        Column("repeats", "count", "Repeats."),
    ),
    "peers": (
        Column("peer", "label", "Another way to read the same activations."),
        Column("seconds", "seconds", "Its median time for all tokens.", "s"),
        Column("ours", "seconds", "Our median time.", "s"),
        Column("speedup", "value", "Median over repeats of its time / our time in the same repeat."),
        Column("speedup_q1", "value", "First quartile.", low_of="speedup"),
        Column("speedup_q3", "value", "Third quartile.", high_of="speedup"),
        Column("repeats", "count", "Repeats."),
        Column(
            "difference",
            "value",
            "Largest difference to our values, relative to the largest value of the site.",
        ),
    ),
    "memory": (
        Column("tokens", "count", "Tokens streamed."),
        Column(
            "peak_extra",
            "bytes",
            "Peak resident size while streaming, above the size before the first stream.",
            "bytes",
        ),
    ),
    "checks": CHECKS,
}

ANALYSIS = Analysis(
    name="capture",
    version="3",
    title="Cost of reading activations",
    summary="Time and memory of capture, statistics and shards against the bare forward pass.",
    params=CaptureParams,
    compute="sparsescope.bench.capture",
    view_module="sparsescope.bench.views",
    views=(
        View(
            "ratios",
            "Time relative to the bare forward pass",
            "Median over repeats of the time of a variant divided by the time of the bare forward pass "
            "(without output head) of the same repeat; lines show the quartiles. Variants of another dtype "
            "are labelled: they compute other numbers.",
            table="variants",
            formula="ratio = seconds(variant) / seconds(bare forward), within a repeat",
        ),
        View(
            "speedups",
            "Time of other ways to read the same activations",
            "Median over repeats of the time that another way takes for the same sites, batches and dtype, "
            "divided by ours (copying real tokens out, with a check for NaN); lines show the quartiles. "
            "Plain hooks copy every tensor, padding included, during the forward pass without output head. "
            "TransformerLens keeps tensors without copying them; its default call computes logits, its lean "
            "call (output_attentions=False, use_cache=False, logits_to_keep=1) almost none. All give the "
            "same numbers as ours up to `difference`.",
            table="peers",
            formula="speedup = seconds(other way) / seconds(copying), within a repeat",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.bench.statements",
    headline=(
        "capture_ratio",
        "statistics_ratio",
        "shards_ratio",
        "speedup_over_plain_hooks",
        "speedup_over_transformer_lens",
    ),
    measures_time=True,
)

_PLAIN, _LENS_DEFAULT, _LENS = (
    "plain hooks",
    "TransformerLens run_with_cache",
    "TransformerLens run_with_cache, lean",
)
_PEER_SCALARS = {
    _PLAIN: (
        "speedup_over_plain_hooks",
        "plain forward hooks that copy the same tensors, without output head",
    ),
    _LENS_DEFAULT: (
        "speedup_over_transformer_lens_default",
        "run_with_cache(names_filter, return_type=None)",
    ),
    _LENS: (
        "speedup_over_transformer_lens",
        (
            "run_with_cache(names_filter, return_type=None, output_attentions=False, "
            "use_cache=False, logits_to_keep=1)"
        ),
    ),
}
# Largest relative difference at which two ways count as reading the same numbers.
_SAME = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


def compute(params: CaptureParams, context: Context) -> Result:
    """Run the benchmark."""
    import shutil
    import tempfile
    from functools import partial

    import numpy as np
    import torch

    from sparsescope.activations.capture import capture
    from sparsescope.activations.sparsity_accumulator import SparsityAccumulator
    from sparsescope.activations.store import write_store
    from sparsescope.bench.peers import arguments

    subject, corpus = context.subject, context.corpus
    folder = tempfile.mkdtemp(prefix="sparsescope-bench-")
    half = subject.copy() if subject.dtype == "float32" else None
    if half is not None:
        half.model.to(torch.bfloat16)

    def forward(model: Any = subject, logits: bool = False) -> None:
        for tokens in corpus.batches(params.batch_tokens):
            model.forward(*arguments(tokens, subject.device), logits=logits)
            wait(subject.device)

    def copying() -> None:
        for _ in live:
            wait(subject.device)

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
            capture(subject, corpus, params.sites, batch_tokens=params.batch_tokens, reuse=True) as live,
            capture(
                subject, corpus, params.sites, batch_tokens=params.batch_tokens, dtype="bfloat16", reuse=True
            ) as compact,
        ):
            sites = len(live.sites)
            variants: dict[str, Callable[[], None]] = {
                "bare forward": forward,
                (copies := f"copying {sites} sites"): copying,
                (with_statistics := f"copying and every statistic of {sites} sites"): statistics,
                (compact_shards := f"storing {sites} sites as bfloat16 shards"): partial(
                    shards, compact, "bfloat16"
                ),
                (full_shards := f"storing {sites} sites as {subject.dtype} shards"): partial(
                    shards, live, subject.dtype
                ),
            }
            if "logits" in subject.capabilities:
                variants["forward with logits"] = partial(forward, logits=True)
            if half is not None:
                variants["bare forward in bfloat16 (other numbers)"] = partial(forward, half)
            peers, notes = _peers(context, params, live.sites)
            variants |= {peer: call for peer, (call, _) in peers.items()}
            seconds = interleaved(list(variants.values()), params.repeats)
            checks = check_cost(subject, params.sites, copying, params.repeats)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = Result("capture")
    wanted = {
        "capture": copies,
        "statistics": with_statistics,
        "shards": compact_shards,
        "shards_full": full_shards,
    }
    wanted |= {"logits": "forward with logits"} if "logits" in subject.capabilities else {}
    _variants(result, list(variants), wanted, seconds, corpus.n_tokens)
    ours, theirs = seconds[list(variants).index(copies)], seconds[len(variants) - len(peers) :]
    _speedups(result, {peer: difference for peer, (_, difference) in peers.items()}, ours, theirs)
    for note in notes:
        result.note("info", note)
    result.add("memory", memory)
    short, long = memory.to_dict("records")
    result.add_scalar(
        "peak_memory_growth", long["peak_extra"] / max(short["peak_extra"], 1), "", direction="lower",
        definition=f"peak extra memory for {long['tokens']} tokens / for {short['tokens']} tokens",
    )  # fmt: skip
    result.add("checks", checks)
    result.add_scalar(
        "checks_share", float(checks["share"][0]), "", direction="lower",
        definition="median over repeats of the time in the checks of every pass / time of that copying pass",
    )  # fmt: skip
    spread = np.diff(np.percentile(seconds[0], [25, 75]))[0] / np.median(seconds[0])
    if spread > 0.1:
        result.note(
            "warning",
            f"The bare forward pass varied by {spread:.0%} between quartiles: other work on this machine?",
        )
    return result


def _peers(
    context: Context, params: CaptureParams, sites: Sequence[Site]
) -> tuple[dict[str, tuple[Callable[[], None], float]], list[str]]:
    """Return the other ways that give our numbers, with their largest differences, and notes
    on those left out.
    """
    from functools import partial

    from sparsescope.bench import peers
    from sparsescope.errors import SubjectError

    subject, corpus = context.subject, context.corpus
    ways: dict[str, Callable[..., Generator[Any, None, None]]] = {}
    notes = []
    why = peers.why_not_hooks(sites)
    if why is None:
        ways[_PLAIN] = partial(peers.plain_hooks, subject, sites)
    else:
        notes.append(f"Plain hooks are left out: {why}.")
    if params.transformer_lens:
        try:
            bridge = subject.bridge()
            why = peers.why_not_transformer_lens(bridge, sites)
        except SubjectError as error:
            why = error.what
        if why is None:
            ways[_LENS_DEFAULT] = partial(peers.run_with_cache, bridge, sites)
            ways[_LENS] = partial(peers.run_with_cache, bridge, sites, **peers.LEAN)
        else:
            notes.append(f"TransformerLens is left out: {why}.")

    def stream(way: Callable[..., Generator[Any, None, None]]) -> None:
        for _ in way(corpus.batches(params.batch_tokens)):
            wait(subject.device)

    found: dict[str, tuple[Callable[[], None], float]] = {}
    for name, way in ways.items():
        try:
            values = way(corpus.batches(params.batch_tokens))
            difference = peers.largest_difference(values, subject, sites, corpus, params.batch_tokens)
        except Exception as error:  # code of others: the benchmark of our own goes on without it
            notes.append(f"{name} is left out: it fails here ({type(error).__name__}: {str(error)[:200]}).")
            continue
        if difference <= _SAME[subject.dtype]:
            found[name] = partial(stream, way), difference
        else:
            notes.append(
                f"{name} is left out: its values differ from ours by {difference:.2g} of the largest value."
            )
    return found, notes


def _memory(context: Context, params: CaptureParams) -> Any:
    """Peak extra memory of a short and a long stream. Both are taken above the size before the first one:
    memory that the first gave back to the allocator is still resident.
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
    from sparsescope.activations.capture import capture
    from sparsescope.activations.sparsity_accumulator import SparsityAccumulator

    with capture(
        context.subject, corpus, params.sites, batch_tokens=params.batch_tokens, reuse=True
    ) as source:
        accumulator = SparsityAccumulator(source.sites, (0.5, 0.9, 0.95, 0.99), 0.9, corpus.context)
        for batch in source:
            accumulator.update(batch)
        accumulator.finish()


def _variants(result: Result, names: list[str], wanted: dict[str, str], seconds: Any, tokens: int) -> None:
    """Table of all times, scalars of the ``wanted`` (scalar -> variant); ``seconds`` is [variant, repeat],
    the first variant is the reference.
    """
    import numpy as np
    import pandas as pd

    from sparsescope.core.numbers import Interval

    ratios = seconds / seconds[:1]
    low, middle, high = np.percentile(ratios, [25, 50, 75], axis=1)
    typical = np.median(seconds, axis=1)
    repeats = seconds.shape[1]
    frame = pd.DataFrame(
        {
            "variant": names,
            "seconds": typical,
            "rate": tokens / typical,
            "ratio": middle,
            "ratio_q1": low,
            "ratio_q3": high,
            "repeats": repeats,
        }
    )
    result.add("variants", frame)
    for name, variant in wanted.items():
        index = names.index(variant)
        result.add_scalar(
            f"{name}_ratio",
            middle[index],
            "",
            f"median over {repeats} repeats: seconds({variant}) / seconds({names[0]})",
            direction="lower",
            interval=Interval(low[index], high[index], 0.5, "quartiles over repeats", repeats),
        )


def _speedups(result: Result, differences: dict[str, float], ours: Any, theirs: Any) -> None:
    """Table and scalars of the other ways; ``ours`` is [repeat], ``theirs`` is [way, repeat], in seconds."""
    import numpy as np

    from sparsescope.core.numbers import Interval

    repeats = len(ours)
    rows = []
    for (name, difference), seconds in zip(differences.items(), theirs, strict=True):
        low, middle, high = np.percentile(seconds / ours, [25, 50, 75])
        rows.append([name, np.median(seconds), np.median(ours), middle, low, high, repeats, difference])
        scalar, way = _PEER_SCALARS[name]
        result.add_scalar(
            scalar,
            middle,
            "",
            f"median over {repeats} repeats: seconds({way}) / seconds(copying the same sites with capture)",
            direction="higher",
            interval=Interval(low, high, 0.5, "quartiles over repeats", repeats),
        )
    result.add("peers", rows)


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

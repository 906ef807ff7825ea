"""The measurements of the benchmark ``decode``; see its declaration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.bench.decode.parts import parts_of_step
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.errors import SpecError, SubjectError
from sparsescope.inference.calibration import calibrate
from sparsescope.inference.calibrator import Calibrator
from sparsescope.inference.decode import Decoder
from sparsescope.inference.decode.weights import check_model
from sparsescope.metrics.estimates import DocumentBootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.bench.decode import DecodeParams
    from sparsescope.models.subject import Subject

_RESAMPLES = 2000
_NOT_COMPUTED = ("cats", "top_p", "rsparse")
_AFFORDABLE = 1.05  # perplexity ratio up to which a variant counts as good enough


@dataclass
class Variant:
    """Something that answers token by token.

    Attributes:
        name: What it is.
        stored: Type of its weights.
        begin: Reads a prompt, untimed; returns its last logits.
        step: Reads one token; returns the logits after it.
        target: Of the calibration; NaN of dense ones.
        decoder: Our loop, where it is that.
        seconds: Of a token, by window.
        nll: Of the timed tokens, by window, summed; ``kl`` likewise.
    """

    name: str
    stored: str
    begin: Callable[[list[int]], torch.Tensor]
    step: Callable[[int], torch.Tensor]
    target: float = float("nan")
    decoder: Decoder | None = None
    seconds: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    sparsity: list[float] = field(default_factory=list)


def compute(params: DecodeParams, context: Context) -> Result:
    """Run the benchmark."""
    subject, text = context.subject, context.corpus
    if subject.dtype != "float32":
        raise SubjectError(
            "the reference of this benchmark is the float32 model; stored types are its own parameter",
            where="bench decode",
            allowed="--dtype float32",
            got=subject.dtype,
            next_step="leave --dtype out, and set stored=bfloat16",
        )
    check_model(subject)
    _check_method(params.method)
    half = [document.index for document in text.documents][: max(1, len(text.documents) // 2)]
    rest = [document.index for document in text.documents][len(half) :]
    if not rest:
        raise SpecError(
            "masks are calibrated on other documents than those that are timed",
            where="bench decode",
            allowed="two documents or more",
            got=len(text.documents),
            next_step="give more text: --tokens 4096",
        )
    windows = {
        prompt: _windows(text.select(rest), prompt, params.new_tokens, params.windows)
        for prompt in params.prompts
    }
    bench = Calibrator(
        subject,
        text.select(half),
        None,
        "blocks",
        lambda phase, done, total: context.progress(phase, done, total, "tokens"),
    )
    longest = max(params.prompts) + params.new_tokens + 1
    found = {
        target: calibrate(bench, params.method, target, "decode_only") for target in sorted(params.targets)
    }
    out, rows = Result("decode"), []
    for stored in params.stored:
        decoder = Decoder(subject, stored=stored, longest=longest)
        rows += [{"stored": stored, **row} for row in parts_of_step(decoder, min(params.prompts))]
    out.add("parts", rows)
    table: list[dict[str, Any]] = []
    for prompt, texts in windows.items():
        variants = _transformers(subject, params, out if prompt == params.prompts[0] else None)
        for stored in params.stored:
            variants.append(
                _ours(f"our loop, {stored}", stored, Decoder(subject, stored=stored, longest=longest))
            )
            for target, calibration in found.items():
                decoder = Decoder(subject, calibration, stored=stored, longest=longest)
                name = f"our loop, {stored}, {params.method} {100 * target:g} %"
                variants.append(_ours(name, stored, decoder, target))
        generate: list[float] = []
        for number, window in enumerate(texts):
            context.progress(f"prompts of {prompt} tokens", number, len(texts), "windows")
            _window(variants, window, prompt, number)
            generate.append(_generate(subject, window[:prompt], params.new_tokens))
        table += _rows(params, prompt, variants, np.array(generate))
    out.add("variants", table)
    _scalars(out, params, table)
    if params.windows < 10:
        out.note(
            "warning",
            f"Only {params.windows} windows: intervals of perplexity are likely too narrow.",
            place="windows",
        )
    return out


def _check_method(method: str) -> None:
    """Refuse a method whose masks the loop does not compute, before anything is calibrated.

    Raises:
        SpecError: It is one of those.
    """
    name, _, allocation = method.partition("+")
    if name in _NOT_COMPUTED or "rotated" in allocation:
        raise SpecError(
            "the decoding loop does not compute the masks of this method",
            where="bench decode: method",
            allowed="teal, wina, wina_released, was, auto, with greedy or blocks",
            got=method,
            next_step="sparse_inference compares the quality of all methods",
        )


def _windows(text: Any, prompt: int, new: int, count: int) -> list[list[int]]:
    """Windows of prompt and continuation, spread evenly; continuations do not overlap.

    Raises:
        SpecError: The text is too short.
    """
    ids = [int(token) for document in text.documents for token in document.ids]
    there = (len(ids) - prompt) // new
    if there < count:
        raise SpecError(
            "the text is too short for so many windows",
            where="bench decode",
            allowed=f"{prompt + count * new} tokens after the first half of the documents",
            got=len(ids),
            next_step=f"give more text (--tokens {4 * (prompt + count * new)}), or fewer windows",
        )
    spread = np.linspace(0, len(ids) - prompt - new, count).astype(
        int
    )  # over the whole text, `new` apart at least
    return [ids[at : at + prompt + new] for at in spread]


def _ours(name: str, stored: str, decoder: Decoder, target: float = float("nan")) -> Variant:
    return Variant(name, stored, decoder.begin, decoder.step, target, decoder)


def _transformers(subject: Subject, params: DecodeParams, out: Result | None) -> list[Variant]:
    """The model of transformers, called token by token with its cache."""
    variants = [_stepped("transformers, eager", "float32", subject.model, subject.model)]
    models = [("float32", subject.model)]
    if "bfloat16" in params.stored:
        half = subject.copy().model.to(torch.bfloat16)
        models.append(("bfloat16", half))
        variants.append(_stepped("transformers, eager, bfloat16", "bfloat16", half, half))
    if not params.compiled:
        if out is not None:
            out.note("info", "torch.compile was not timed; --set compiled=true adds it.", place="baselines")
        return variants
    for stored, model in models:
        name = "transformers, compiled" + ("" if stored == "float32" else f", {stored}")
        made = torch.compile(model, dynamic=True)
        variant = _stepped(name, stored, model, made)
        try:
            variant.begin([1, 2, 3])
            for token in (4, 5, 6):
                variant.step(token)
        except Exception as error:  # code of others and a compiler: the benchmark goes on without it
            if out is not None:
                said = f"{type(error).__name__}: {str(error)[:200]}"
                out.note("warning", f"{name} is left out: it fails here ({said}).", place="baselines")
            continue
        variants.append(variant)
    return variants


def _stepped(name: str, stored: str, model: Any, called: Any) -> Variant:
    cache: list[Any] = [None]

    def read(ids: list[int], module: Any) -> torch.Tensor:
        with torch.inference_mode():
            said = module(
                input_ids=torch.tensor([ids]), past_key_values=cache[0], use_cache=True, logits_to_keep=1
            )
        cache[0] = said.past_key_values
        return said.logits[0, -1].float()

    def begin(prompt: list[int]) -> torch.Tensor:
        cache[0] = None
        return read(prompt, model)

    return Variant(name, stored, begin, lambda token: read([token], called))


def _window(variants: Sequence[Variant], window: list[int], prompt: int, number: int) -> None:
    """Let every variant read one window, by turns."""
    targets = torch.tensor(window[prompt:])
    logits: dict[int, torch.Tensor] = {}
    for turn in range(len(variants)):
        place = (turn + number) % len(variants)
        variant = variants[place]
        said = [variant.begin(window[:prompt])]
        if variant.decoder is not None:
            variant.decoder.forget_counts()
        begun = time.perf_counter()
        said += [variant.step(token) for token in window[prompt:-1]]
        variant.seconds.append((time.perf_counter() - begun) / (len(window) - prompt - 1))
        if variant.decoder is not None:
            variant.sparsity.append(variant.decoder.realised())
        logits[place] = torch.stack(said).log_softmax(-1, dtype=torch.float64)
    dense = logits[0]
    for place, variant in enumerate(variants):
        own = logits[place]
        variant.nll.append(float(-own.gather(1, targets[:, None]).sum()))
        variant.kl.append(float((dense.exp() * (dense - own)).sum()))


def _generate(subject: Subject, prompt: list[int], new: int) -> float:
    """Seconds of a token of transformers' generate, greedy, less a pass over the prompt."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        for _ in range(2):  # the first one wakes threads up
            begun = time.perf_counter()
            subject.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
            passed = time.perf_counter() - begun
        begun = time.perf_counter()
        subject.model.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        return (time.perf_counter() - begun - passed) / (new - 1)


def _rows(
    params: DecodeParams, prompt: int, variants: Sequence[Variant], generate: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """The table of one length of prompt."""
    tokens = params.new_tokens
    draws = DocumentBootstrap.draw(np.zeros(params.windows, int), _RESAMPLES, 0, 0.95)
    counts = np.full(params.windows, tokens)
    best: dict[str, NDArray[np.float64]] = {}
    for variant in variants:
        took = np.array(variant.seconds)
        if np.isnan(variant.target) and (
            variant.stored not in best or np.median(took) < np.median(best[variant.stored])
        ):
            best[variant.stored] = took
    rows = []
    base = np.array(variants[0].nll)
    listed = [(variant, np.array(variant.seconds)) for variant in variants]
    for variant, took in listed:
        difference = draws.ratio(np.array(variant.nll) - base, counts)
        rows.append(
            {
                "prompt": prompt,
                "variant": variant.name,
                "stored": variant.stored,
                "target": variant.target,
                "sparsity": float(np.mean(variant.sparsity)) if variant.sparsity else 0.0,
                "seconds": float(np.median(took)),
                "rate": 1 / float(np.median(took)),
                **_quartiles("over_dense", best[variant.stored] / took),
                **_quartiles("over_generate", generate / took),
                "perplexity": float(np.exp(np.sum(variant.nll) / (tokens * params.windows))),
                "ratio": float(np.exp(difference.mean)),
                "ratio_low": float(np.exp(difference.low)),
                "ratio_high": float(np.exp(difference.high)),
                "kl": float(np.sum(variant.kl) / (tokens * params.windows)),
                "windows": params.windows,
            }
        )
    rows.append(
        {
            **rows[0],
            "variant": "transformers, generate",
            "seconds": float(np.median(generate)),
            "rate": 1 / float(np.median(generate)),
            **_quartiles("over_dense", best["float32"] / generate),
            **_quartiles("over_generate", np.ones(params.windows)),
        }
    )
    return rows


def _quartiles(name: str, ratio: NDArray[np.float64]) -> dict[str, float]:
    low, middle, high = np.percentile(ratio, [25, 50, 75])
    return {name: float(middle), f"{name}_q1": float(low), f"{name}_q3": float(high)}


def _scalars(out: Result, params: DecodeParams, table: Sequence[dict[str, Any]]) -> None:
    """The fastest variant that answers nearly as well, at the first length of prompt."""
    first = [row for row in table if row["prompt"] == params.prompts[0]]
    good = [row for row in first if row["ratio"] <= _AFFORDABLE]
    best = max(good, key=lambda row: row["rate"])
    where = (
        f"({best['variant']}; {100 * best['sparsity']:.1f} % of the block weights unread, perplexity times "
    )
    where += f"{best['ratio']:.3f}), prompts of {params.prompts[0]} tokens"
    spread = Interval(
        best["over_generate_q1"], best["over_generate_q3"], 0.5, "quartiles over windows", params.windows
    )
    out.add_scalar(
        "best_over_generate",
        best["over_generate"],
        "",
        "median speed over transformers' generate in float32 of the fastest variant whose perplexity is at "
        f"most 1.05 times that of the dense float32 model {where}",
        direction="higher",
        interval=spread,
    )
    out.add_scalar(
        "best_rate", best["rate"], "tokens/s", f"tokens a second of that variant {where}", direction="higher"
    )
    for row in first:
        if row["target"] == row["target"]:
            name = f"{row['stored']}_{100 * row['target']:g}".replace(".", "_")
            out.add_scalar(
                f"over_dense_{name}",
                row["over_dense"],
                "",
                f"median speed over the best dense variant with the same stored type ({row['variant']}), "
                f"{100 * row['sparsity']:.1f} % of the block weights unread, perplexity times "
                f"{row['ratio']:.3f}",
                direction="higher",
                interval=Interval(
                    row["over_dense_q1"], row["over_dense_q3"], 0.5, "quartiles over windows", params.windows
                ),
            )

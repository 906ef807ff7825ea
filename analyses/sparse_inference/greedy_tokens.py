"""Does the decoding loop write what the sparse model writes? And how far does transformers agree with itself?

Masks are thresholds: an input that rounding moves over one changes every later token through the cache, so
two correct programs part at some token. For each method and pair of programs this prints how many tokens come
before that point, and that everything before it agrees: greedy tokens, and logits to rounding. The pairs: the
compiled loop and transformers in float32, and transformers with two threads against itself in float64 and
with one thread. For the loop and transformers it also compares how many inputs a matrix keeps of a forced
token, after such points too.

    python analyses/sparse_inference/greedy_tokens.py
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch

import sparsescope as ss
from sparsescope.inference.calibration import Calibration, calibrate
from sparsescope.inference.calibrator import Calibrator
from sparsescope.inference.decode.decoder import Decoder
from sparsescope.inference.decode.weights import GROUPS, ROLES
from sparsescope.inference.install import reading_of
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.inference.sparsifier import split
from sparsescope.models.subject import Subject

PROMPTS, PROMPT, NEW = 8, 32, 64
APART = 1e-3  # logits that differ by more have seen other masks; rounding alone gives 1e-4 at most
Logits = Callable[[list[int], list[int]], torch.Tensor]


def by_transformers(model: torch.nn.Module, threads: int) -> Logits:
    """Logits after the prompt and each forced token, with a cache, [NEW, V]."""

    @torch.inference_mode()
    def run(prompt: list[int], answer: list[int]) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            ids, cache, rows = prompt, None, []
            for token in answer:
                out = model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
                cache, ids = out.past_key_values, [token]
                rows.append(out.logits[0, -1].double())
            return torch.stack(rows)
        finally:
            torch.set_num_threads(before)

    return run


def compare(one: Logits, other: Logits, prompts: list[list[int]], answers: list[list[int]]) -> str:
    """How far two programs agree on the same tokens."""
    agreed, steps, worst, smallest = 0, 0, 0.0, float("inf")
    for prompt, answer in zip(prompts, answers, strict=True):
        first, second = one(prompt, answer), other(prompt, answer)
        off = (first - second).abs().amax(1)
        apart = next((n for n, value in enumerate(off.tolist()) if value > APART), NEW)
        agreed, steps = agreed + apart, steps + NEW
        if apart:
            same = first[:apart].argmax(1) == second[:apart].argmax(1)
            assert bool(same.all()), "another token at the same masks"
            worst = max(worst, float(off[:apart].max()))
        top = first.topk(2).values
        smallest = min(smallest, float((top[:, 0] - top[:, 1]).min()))
    return (
        f"{agreed} of {steps} tokens before masks part, the same tokens there, logits to {worst:.1g} "
        f"(smallest top-2 gap {smallest:.1g})"
    )


def kept_apart(
    sparse: Subject, decoder: Decoder, found: Calibration, prompts: list[list[int]], answers: list[list[int]]
) -> str:
    """By how many inputs, of all, what a matrix keeps of a token differs in number."""
    apart = whole = 0
    reading = reading_of(sparse)
    assert reading is not None
    groups = {
        mask.name: next(n for n, name in enumerate(GROUPS) if mask.roles[0] in ROLES[name])
        for mask in found.masks
    }
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            cache = sparse.model(torch.tensor([prompt]), use_cache=True).past_key_values
            decoder.begin(prompt)
            for token in answer:
                reading.counts = {}
                cache = sparse.model(
                    torch.tensor([[token]]), past_key_values=cache, use_cache=True
                ).past_key_values
                decoder.forget_counts()
                decoder.step(token)
                step = decoder.compiled_step
                for mask in found.masks:
                    group = groups[mask.name]
                    part = 0 if step.groups[group].joint else list(ROLES[GROUPS[group]]).index(mask.roles[0])
                    have, there = reading.counts[mask.name]
                    apart += abs(int(step.kept[mask.layer, group, part]) - int(have))
                    whole += int(there)
    return f"{apart:,} of {whole:,} inputs, {apart / whole:.2%}"


def main() -> None:
    """Print all comparisons."""
    torch.set_num_threads(2)
    dense = ss.load("smollm2-135m")
    text = ss.corpus("python-docs+python-source", tokens=8192, context=256).read_by(dense)
    half = [document.index for document in text.documents][: len(text.documents) // 2]
    bench = Calibrator(dense, *split(text.select(half)), "blocks", lambda *_: None)
    prompts = [
        document.ids[:PROMPT].tolist()
        for document in text.documents
        if document.index not in half and len(document) >= PROMPT
    ][:PROMPTS]
    policy = PrefixPolicy.of("decode_only")
    for method, target in (("dense", 0.0), ("teal", 0.25), ("teal", 0.5), ("was", 0.4)):
        found = None if method == "dense" else calibrate(bench, method, target, policy, "sparse")
        sparse = dense if found is None else found.apply(dense)
        decoder = Decoder(dense, found, longest=PROMPT + NEW + 1)
        answers = [decoder.generate(prompt, NEW) for prompt in prompts]
        ours: Logits = lambda prompt, answer, decoder=decoder: decoder.force(prompt, answer).double()  # noqa: E731
        plain = by_transformers(sparse.model, 2)
        pairs = {
            "the loop and transformers": (ours, plain),
            "transformers and itself in float64": (
                plain,
                by_transformers(copy.deepcopy(sparse.model).double(), 2),
            ),
            "transformers and itself with one thread": (plain, by_transformers(sparse.model, 1)),
        }
        sys.stdout.write(f"{method} {target:.0%}\n")
        for name, (one, other) in pairs.items():
            sys.stdout.write(f"  {name}: {compare(one, other, prompts, answers)}\n")
            sys.stdout.flush()
        if found is not None:
            said = kept_apart(sparse, decoder, found, prompts, answers)
            sys.stdout.write(f"  kept inputs of a token and matrix differ in number by {said}\n")


if __name__ == "__main__":
    main()

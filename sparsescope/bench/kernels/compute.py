"""The measurements of the benchmark ``kernels``; see its declaration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import silu

from sparsescope.bench.kernels import numbers
from sparsescope.bench.kernels.inputs import recorded_experts, recorded_inputs
from sparsescope.bench.timing import interleaved, wait
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.errors import KernelError
from sparsescope.kernels.backends import check_backend
from sparsescope.kernels.block_ffn import BlockFFN
from sparsescope.kernels.shared_mask_gemm import dropped, shared_mask_gemm
from sparsescope.kernels.sparse_gemv import SparseGemv, product_bytes
from sparsescope.kernels.weight_rows import WeightRows, rows_by_channel, rows_by_output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.bench.kernels import KernelsParams

_PATIENCE = 64  # runs of a warm variant
_ABOVE = 1.1  # times the measured rate of reading that is not believed
_ROUNDING = 1e-4  # largest difference to the reference, of the largest output


@dataclass
class Variant:
    """One way to make a product.

    Attributes:
        facts: What it is, for the tables.
        call: ``call(n)`` makes product number n, with weights and inputs in turn.
        count: How many products a repeat makes.
        nbytes: Bytes of weights that a product reads on average.
    """

    facts: dict[str, Any]
    call: Callable[[int], Any]
    count: int
    nbytes: float


class Bench:
    """Times variants and writes the tables."""

    def __init__(self, params: KernelsParams, context: Context) -> None:
        self.params, self.context = params, context
        self.device = torch.device(context.subject.device)
        check_backend(params.backend, self.device)
        self.out = Result("kernels")
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.read = 1.0  # bytes a second

    def time(self, variants: Sequence[Variant], phase: str) -> NDArray[np.float64]:
        """Seconds of a product, [variant, repeat]."""

        def run(replay: Callable[[], None]) -> None:
            replay()
            wait(self.device.type)

        seconds = interleaved(
            [partial(run, self._loop(variant)) for variant in variants],
            self.params.repeats,
            told=lambda done, total: self.context.progress(phase, done, total, "variants"),
        )
        return seconds / np.array([variant.count for variant in variants])[:, None]

    def _loop(self, variant: Variant) -> Callable[[], None]:
        """All products of a repeat; on a GPU one recorded graph: launches from Python are not timed."""

        def loop() -> None:
            for number in range(variant.count):
                variant.call(number)

        if self.device.type != "cuda":
            return loop
        loop()  # compiles what is recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loop()
        return graph.replay

    def verify(self, found: torch.Tensor, expected: torch.Tensor, what: str) -> float:
        """Largest difference to the reference, over the largest output.

        Raises:
            KernelError: It is too large to be rounding: what is wrong is not timed.
        """
        error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        if not error <= _ROUNDING:
            raise KernelError(
                "a kernel gives other numbers than the reference",
                where=what,
                allowed=f"a difference of at most {_ROUNDING:g} of the largest output",
                got=f"{error:.3g} with the backend {self.params.backend}",
                next_step="run the tests of tests/unit/kernels on this machine, and report it",
            )
        return error

    def copies(self, weight: WeightRows) -> list[WeightRows]:
        """The weights and copies of them, more bytes than the bound together."""
        count = max(2, -(-int(self.params.cold_bytes) // weight.nbytes))
        return [weight, *(replace(weight, data=weight.data.clone()) for _ in range(count - 1))]

    def add(self, table: str, row: dict[str, Any]) -> None:
        """Add a row to a table."""
        self.rows.setdefault(table, []).append(row)


def compute(params: KernelsParams, context: Context) -> Result:
    """Run the benchmark."""
    bench = Bench(params, context)
    _ceilings(bench)
    for shape in params.shapes:
        _products(bench, shape)
    if params.tokens:
        _several(bench, params.shapes[0])
    if params.block_ffn:
        _block_ffn(bench)
    for name, rows in bench.rows.items():
        bench.out.add(name, rows)
    _scalars(bench)
    return bench.out


def _ceilings(bench: Bench) -> None:
    """How fast memory is read and copied."""
    size = max(int(bench.params.cold_bytes), 1 << 20) // 4
    source = torch.ones(size, device=bench.device)
    target = torch.empty_like(source)
    found = bench.time(
        [
            Variant({}, lambda _: source.sum(), 1, 4 * size),
            Variant({}, lambda _: target.copy_(source), 1, 8 * size),
        ],
        "ceilings",
    )
    for what, seconds, moved in (("read", found[0], 4 * size), ("copy", found[1], 8 * size)):
        low, middle, high = np.percentile(moved / seconds, [25, 50, 75])
        bench.add("ceilings", {"what": what, "rate": middle, "rate_q1": low, "rate_q3": high})
    bench.read = bench.rows["ceilings"][0]["rate"]


def _magnitudes(x: torch.Tensor) -> torch.Tensor:
    """|x|, thinned evenly to what ``quantile`` takes."""
    return x.abs().flatten()[:: max(1, x.numel() // 1_000_000)]


def _generator(bench: Bench) -> torch.Generator:
    return torch.Generator(bench.device).manual_seed(0)


def _products(bench: Bench, shape: str) -> None:
    """One token: dense products, and sparse ones at every level and stored type."""
    params, context = bench.params, bench.context
    outputs, inputs = numbers(shape, 2)
    x = recorded_inputs(context, inputs).to(bench.device)
    first = x[:, 0].contiguous()
    edges = {level: float(_magnitudes(x).quantile(level)) for level in params.levels}
    matrix = torch.randn(outputs, inputs, generator=_generator(bench), device=bench.device)
    variants: list[Variant] = []
    full = 4 * outputs * inputs
    count = max(2, -(-int(params.cold_bytes) // full))
    plain = [matrix.clone() for _ in range(count)]

    def mv(copies: Sequence[torch.Tensor], vectors: torch.Tensor, n: int) -> Any:
        return torch.mv(copies[n % len(copies)], vectors[n % len(vectors)])

    def sparse(products: Sequence[SparseGemv], n: int) -> Any:
        return products[n % len(products)](first[n % len(first)])

    for cache, copies, runs in (("cold", plain, count), ("warm", plain[:1], _PATIENCE)):
        facts = {"variant": "torch float32", "cache": cache, "library": True}
        variants.append(Variant(facts, partial(mv, copies, first), runs, full))
    half = [copy.bfloat16() for copy in plain]
    vectors = first.bfloat16()
    for cache, copies, runs in (("cold", half, count), ("warm", half[:1], _PATIENCE)):
        facts = {"variant": "torch bfloat16", "cache": cache, "library": True}
        variants.append(Variant(facts, partial(mv, copies, vectors), runs, full / 2))
    for stored in params.stored:
        weights = bench.copies(rows_by_channel([matrix], stored))
        whole = product_bytes(weights[0], inputs)
        for cache, group in (("cold", weights), ("warm", weights[:1])):
            runs = min(len(group), 4 * count) if cache == "cold" else _PATIENCE
            for level, edge in {0.0: -1.0, **edges}.items():
                used = first[torch.arange(runs) % len(first)]
                sparsity = float((used.abs() <= edge).double().mean())
                facts = {"stored": stored, "cache": cache, "target": level, "sparsity": sparsity}
                expected = SparseGemv(weights[0], edge, backend="reference")(first[0])
                made = SparseGemv(weights[0], edge, backend=params.backend)(first[0])
                facts["error"] = bench.verify(made, expected, f"{shape}, {stored}")
                variants.append(
                    Variant(
                        facts,
                        partial(sparse, [SparseGemv(one, edge, backend=params.backend) for one in group]),
                        runs,
                        whole - (whole - product_bytes(weights[0], 0)) * sparsity,
                    )
                )
    seconds = bench.time(variants, shape)
    _dense_and_sparse(bench, shape, variants, seconds, full)


def _dense_and_sparse(
    bench: Bench, shape: str, variants: Sequence[Variant], seconds: NDArray[np.float64], full: float
) -> None:
    """Rows of products of one shape, against the best dense ones."""
    best: dict[tuple[str, str], NDArray[np.float64]] = {}
    library: dict[str, NDArray[np.float64]] = {}
    for variant, took in zip(variants, seconds, strict=True):
        facts, cache = variant.facts, variant.facts["cache"]
        if "library" in facts:
            stored = facts["variant"].removeprefix("torch ")
            if stored == "float32":
                library[cache] = took
        elif facts["target"] == 0:
            stored = facts["stored"]
        else:
            continue
        known = best.get((stored, cache))
        if known is None or np.median(took) < np.median(known):
            best[stored, cache] = took
    low, middle, high = np.percentile(best["float32", "cold"], [25, 50, 75])
    if high - low > 0.1 * middle:
        bench.out.note(
            "warning",
            f"The best dense product of {shape} varied by {(high - low) / middle:.0%} between quartiles: "
            "other work on this machine?",
        )
    for variant, took in zip(variants, seconds, strict=True):
        facts, cache = variant.facts, variant.facts["cache"]
        row = {
            "shape": shape,
            "cache": cache,
            "seconds": float(np.median(took)),
            "rate": variant.nbytes / float(np.median(took)),
            **_quartiles(best["float32", cache] / took),
        }
        if "library" in facts:
            bench.add("dense", {**row, "variant": facts["variant"]})
            continue
        if facts["target"] == 0:
            bench.add("dense", {**row, "variant": f"{bench.params.backend} {facts['stored']}"})
        row |= {name: facts[name] for name in ("stored", "target", "sparsity", "error")}
        row["over_library"] = float(np.median(library[cache] / took))
        row["over_same"] = float(np.median(best[facts["stored"], cache] / took))
        row["of_limit"] = row["speedup"] * variant.nbytes / full
        row["of_read"] = row["rate"] / bench.read
        if cache == "cold" and row["of_read"] > _ABOVE:
            what = f"{shape}, {facts['stored']}, {100 * facts['sparsity']:.0f} % dropped"
            bench.out.note(
                "warning",
                f"{what}: {100 * row['of_read']:.0f} % of the measured rate of reading; other work slowed "
                "that measurement, or weights were in a cache.",
                place="ceilings",
            )
        bench.add("products", row)
    for stored in bench.params.stored:
        cold = [row for row in bench.rows["products"] if _is(row, shape=shape, stored=stored, cache="cold")]
        fastest = float(np.median(best[stored, "cold"]))
        points = [(row["sparsity"], fastest / row["seconds"]) for row in cold]
        bench.add("break_even", {"shape": shape, "stored": stored, "sparsity": break_even(points)})


def break_even(points: Sequence[tuple[float, float]]) -> float:
    """Sparsity from which on a speedup stays at 1 or above, on straight lines between the points.

    Args:
        points: (sparsity, speedup), ascending in sparsity.

    Returns:
        NaN where the last point is below 1; the first sparsity where no point is.
    """
    below = [place for place, (_, speedup) in enumerate(points) if speedup < 1]
    if not below:
        return points[0][0]
    if below[-1] == len(points) - 1:
        return float("nan")
    (low, slow), (high, fast) = points[below[-1]], points[below[-1] + 1]
    return low + (high - low) * (1 - slow) / (fast - slow)


def _several(bench: Bench, shape: str) -> None:
    """Two to eight tokens that share what they read."""
    params = bench.params
    outputs, inputs = numbers(shape, 2)
    x = recorded_inputs(bench.context, inputs).to(bench.device)
    edges = {level: float(_magnitudes(x).quantile(level)) for level in params.levels}
    matrix = torch.randn(outputs, inputs, generator=_generator(bench), device=bench.device)
    full = 4 * outputs * inputs
    count = max(2, -(-int(params.cold_bytes) // full))
    plain = [matrix.clone() for _ in range(count)]
    stores = {stored: bench.copies(rows_by_channel([matrix], stored)) for stored in params.stored}

    def product(copies: Sequence[torch.Tensor], tokens: int, turned: bool, n: int) -> Any:
        weight, rows = copies[n % len(copies)], x[n % len(x), :tokens]
        return rows @ weight if turned else rows @ weight.T

    def shared(copies: Sequence[WeightRows], tokens: int, edge: float, rule: Any, n: int) -> Any:
        return shared_mask_gemm(
            x[n % len(x), :tokens], copies[n % len(copies)], edge, rule=rule, backend=params.backend
        )

    turned = [weight.T.contiguous() for weight in plain]
    ours = stores.get("float32") or bench.copies(rows_by_channel([matrix]))
    for tokens in params.tokens:
        dense = [
            Variant({}, partial(product, plain, tokens, False), count, full),
            Variant({}, partial(product, turned, tokens, True), count, full),
            Variant({}, partial(shared, ours, tokens, -1.0, "own"), count, full),
        ]
        variants = list(dense)
        for stored, copies in stores.items():
            runs = min(len(copies), 4 * count)
            for rule in ("own", "joint"):
                for level, edge in edges.items():
                    used = x[torch.arange(runs) % len(x), :tokens]
                    limit = torch.full((inputs,), edge, device=x.device)
                    gone = torch.stack([dropped(rows, limit, rule).all(0) for rows in used])
                    facts: dict[str, Any] = {"stored": stored, "rule": rule, "target": level}
                    facts["sparsity"] = float(gone.double().mean())
                    facts["error"] = bench.verify(
                        shared(copies[:1], tokens, edge, rule, 0),
                        shared_mask_gemm(x[0, :tokens], copies[0], edge, rule=rule, backend="reference"),
                        f"{shape}, {stored}, {tokens} tokens, {rule}",
                    )
                    kept = inputs * (1 - facts["sparsity"])
                    call = partial(shared, copies, tokens, edge, rule)
                    variants.append(Variant(facts, call, runs, product_bytes(copies[0], kept)))
        seconds = bench.time(variants, f"{shape}, {tokens} tokens")
        best = seconds[int(np.argmin(np.median(seconds[: len(dense)], 1)))]
        for variant, took in list(zip(variants, seconds, strict=True))[len(dense) :]:
            row = {"tokens": tokens, **variant.facts, "seconds": float(np.median(took))}
            row |= _quartiles(best / took)
            row["of_limit"] = row["speedup"] * variant.nbytes / full
            bench.add("several", row)


def _block_ffn(bench: Bench) -> None:
    """A layer of BlockFFN, with recorded patterns."""
    params = bench.params
    width, experts, units = numbers(params.block_ffn, 3)
    gates = recorded_experts(params.patterns, experts).to(bench.device)
    generator = _generator(bench)
    hidden = experts * units
    up = torch.randn(hidden, width, generator=generator, device=bench.device) / width**0.5
    down = torch.randn(width, hidden, generator=generator, device=bench.device) / hidden**0.5
    x = torch.randn(len(gates), 8, width, generator=generator, device=bench.device)
    full = 8 * hidden * width
    count = max(2, -(-int(params.cold_bytes) // full))
    plain = [(up.clone(), down.clone()) for _ in range(count)]
    stores = {}
    for stored in params.stored:
        ups, downs = rows_by_output(up, stored), rows_by_channel([down], stored)
        needed = max(count, -(-int(params.cold_bytes) // (ups.nbytes + downs.nbytes)))
        stores[stored] = [
            BlockFFN(
                replace(ups, data=ups.data.clone()),
                replace(downs, data=downs.data.clone()),
                backend=params.backend,
            )
            for _ in range(needed)
        ]

    def dense(tokens: int, n: int) -> Any:
        first, second = plain[n % count]
        weights = gates[n % len(gates), :tokens].repeat_interleave(units, 1)
        return (silu(x[n % len(x), :tokens] @ first.T) * weights) @ second.T

    def layer(copies: Sequence[BlockFFN], router: torch.Tensor, tokens: int, n: int) -> Any:
        at = n % len(gates)
        return copies[n % len(copies)](x[at, :tokens], router[at, :tokens])

    everyone = gates.clamp(min=1e-3)  # every expert is used: our own dense layer

    for tokens in (1, *params.tokens):
        runs = max(count, len(gates))
        variants = [Variant({}, partial(dense, tokens), runs, full)]
        if "float32" in stores:
            variants.append(Variant({}, partial(layer, stores["float32"], everyone, tokens), runs, full))
        baselines = len(variants)
        used = gates[torch.arange(runs) % len(gates), :tokens]
        sparsity = float((used == 0).all(1).double().mean())
        for stored, copies in stores.items():
            reads = (1 - sparsity) * (copies[0].up.nbytes + copies[0].down.nbytes)
            reference = BlockFFN(copies[0].up, copies[0].down, backend="reference")
            error = bench.verify(
                layer(copies[:1], gates, tokens, 0),
                layer([reference], gates, tokens, 0),
                f"BlockFFN, {stored}, {tokens} tokens",
            )
            facts = {"stored": stored, "error": error}
            variants.append(
                Variant(facts, partial(layer, copies, gates, tokens), max(runs, len(copies)), reads)
            )
        seconds = bench.time(variants, f"BlockFFN, {tokens} tokens")
        best = seconds[int(np.argmin(np.median(seconds[:baselines], 1)))]
        for variant, took in list(zip(variants, seconds, strict=True))[baselines:]:
            row = {"layer": params.block_ffn, "tokens": tokens, "sparsity": sparsity, **variant.facts}
            row |= {"seconds": float(np.median(took)), **_quartiles(best / took)}
            row["of_limit"] = row["speedup"] * variant.nbytes / full
            bench.add("block_ffn", row)


def _quartiles(ratio: NDArray[np.float64]) -> dict[str, float]:
    low, middle, high = np.percentile(ratio, [25, 50, 75])
    return {"speedup": float(middle), "speedup_q1": float(low), "speedup_q3": float(high)}


def _is(row: dict[str, Any], **facts: object) -> bool:
    return all(row[name] == value for name, value in facts.items())


def _scalars(bench: Bench) -> None:
    """The first shape at every level, cold."""
    shape, repeats = bench.params.shapes[0], bench.params.repeats
    for row in bench.rows["products"]:
        if row["target"] == 0 or not _is(row, shape=shape, cache="cold"):
            continue
        name = f"{row['stored']}_{100 * row['target']:g}".replace(".", "_")
        bench.out.add_scalar(
            f"speedup_{name}",
            row["speedup"],
            "",
            f"median over repeats of the time of the best dense float32 product ({shape}) / the time of the "
            f"sparse product with {row['stored']} weights, at a sparsity of {row['sparsity']:.3f}",
            direction="higher",
            interval=Interval(row["speedup_q1"], row["speedup_q3"], 0.5, "quartiles over repeats", repeats),
        )
        bench.out.add_scalar(
            f"of_limit_{name}",
            row["of_limit"],
            "fraction",
            "that speed / (bytes of the dense float32 weights / bytes of the kept rows as they are stored)",
            direction="higher",
        )
    bench.out.note(
        "info",
        f"Inputs are recorded activations of {bench.context.subject.id}; weights are random, so nothing is "
        "said about quality here: see the benchmark decode.",
    )

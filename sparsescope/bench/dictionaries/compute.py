"""The measurements of the benchmark ``dictionaries``; see its declaration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsescope.core.result import Result

if TYPE_CHECKING:
    import torch

    from sparsescope.activations.context import Context
    from sparsescope.bench.dictionaries import DictionariesParams


def compute(params: DictionariesParams, context: Context) -> Result:
    """Run the benchmark."""
    out = Result("dictionaries")
    subject = context.subject
    middle = subject.n_layers // 2
    site = params.site or f"blocks.{middle}.hook_out"
    snmf_site = params.snmf_site or f"blocks.{middle}.mlp.hook_post"
    names = [site, *([snmf_site] if params.snmf_rows else [])]
    rows = _rows(context, names)
    _steps(params, context, rows[site], site, out)
    if params.snmf_rows:
        _factorizations(params, context, rows[snmf_site][: params.snmf_rows], snmf_site, out)
    return out


def _rows(context: Context, names: list[str]) -> dict[str, torch.Tensor]:
    """Rows of the sites over the text, position 0 and outliers left out."""
    import numpy as np
    import torch

    from sparsescope.activations.capture import capture
    from sparsescope.activations.shuffled import RowBatch
    from sparsescope.dictionaries.rows import facts_of, kept_rows

    held: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    positions = []
    with capture(context.subject, context.corpus, names, dtype="float32") as source:
        done = 0
        for batch in source:
            done += len(batch.token_ids)
            context.progress("activations", done, source.n_tokens, "tokens")
            positions.append(batch.positions)
            for name in names:
                held[name].append(batch.values[name].cpu())
    place = np.concatenate(positions)
    values = {name: torch.cat(found) for name, found in held.items()}
    numbers = np.zeros(len(place), np.int32)
    kept = {}
    for name, found in values.items():
        whole = RowBatch(0, 0, numbers, numbers.astype(np.int64), place.astype(np.int32), {name: found})
        kept[name] = kept_rows(whole, {name: facts_of(found, place)})[0][name]
    return kept


def _steps(params: DictionariesParams, context: Context, rows: torch.Tensor, site: str, out: Result) -> None:
    import numpy as np
    import torch

    from sparsescope.bench.dictionaries.dense_step import DenseStep
    from sparsescope.bench.timing import interleaved
    from sparsescope.dictionaries.rows import TensorRows
    from sparsescope.dictionaries.topk import TopKSAE
    from sparsescope.dictionaries.train import DictionaryTraining, Settings

    total = params.steps * (params.repeats + 1)
    epochs = -(-total * params.batch // len(rows))
    settings = Settings(warmup=0.0, decay=0.0)

    def batches() -> TensorRows:
        return TensorRows(rows, batch_rows=params.batch, epochs=epochs, site=site)

    def training(low: bool) -> DictionaryTraining:
        made = TopKSAE(rows.shape[1], params.width, k=params.k, site=site)
        made.low_precision = low
        begun.append(made)
        return DictionaryTraining({"topk": made}, batches(), settings, "bench", "cpu", (), None)

    begun: list[TopKSAE] = []
    ours = {"sparse, float32": training(False)}
    if params.low_precision:
        ours["sparse, bfloat16 scores"] = training(True)
    first = ours["sparse, float32"]
    variance = first.row_facts[site].variance / first.scale_in**2
    dense = DenseStep(begun[0], settings.rate(params.width), variance)
    dead = torch.zeros(params.width, dtype=torch.bool)
    dead[: int(params.dead_share * params.width)] = True
    stream = batches().batches()
    curves: dict[str, list[float]] = {}
    made_steps = dict.fromkeys([*ours, "dense"], 0)

    def run_dense() -> None:
        for _ in range(params.steps):
            batch = next(stream).values[site] / first.scale_in
            curves.setdefault("dense, float32", []).append(dense.update(batch, dead))

    def runner(name: str) -> Any:
        def run() -> None:
            held = ours[name]
            for _ in range(params.steps):
                held.extra["since.topk"][dead] = held.window
                before = float(held.extra["sums.topk"][0])
                held.update(made_steps[name])
                made_steps[name] += 1
                curves.setdefault(name, []).append(float(held.extra["sums.topk"][0]) - before)

        return run

    names = ["dense, float32", *ours]
    seconds = interleaved(
        [run_dense, *(runner(name) for name in ours)],
        params.repeats,
        told=lambda done, count: context.progress("steps", done, count, "repeats"),
    ) / params.steps  # fmt: skip
    table, curve = [], []
    for place, name in enumerate(names):
        low, middle, high = np.percentile(seconds[0] / seconds[place], [25, 50, 75])
        late = curves[name][-max(1, params.steps) :]
        table.append(_row(name, seconds[place], middle, low, high, float(np.mean(late)), params))
        spent = np.cumsum(np.repeat(seconds[place], params.steps))
        curve += [
            {
                "variant": name,
                "step": params.steps + number,
                "seconds": float(time),
                "fvu": curves[name][params.steps + number],
            }
            for number, time in enumerate(spent)
        ]
    sizes = f"d_in {rows.shape[1]}, {params.width} features, k {params.k}, batches of {params.batch}"
    out.add_scalar(
        "step_speedup", table[1]["speedup"], "", f"median time of a dense step over a sparse one, {sizes}",
        direction="higher",
    )  # fmt: skip
    out.add_scalar(
        "step_fvu_ratio", table[1]["fvu"] / table[0]["fvu"], "",
        "variance unexplained after equally many steps, sparse over dense",
    )  # fmt: skip
    if params.saelens:
        context.progress("SAELens", 0, 1, "processes")
        times, version = _saelens(params, rows, first.settings.rate(params.width))
        ratio = np.median(times) / np.median(seconds[1])
        row = _row(
            f"SAELens {version}",
            times,
            float(np.median(seconds[0]) / np.median(times)),
            np.nan,
            np.nan,
            np.nan,
            params,
        )
        table.append(row | {"steps": len(times)})
        out.add_scalar(
            "saelens_speedup",
            float(ratio),
            "",
            f"median time of SAELens' step over ours, {sizes}",
            direction="higher",
        )
        out.note(
            "info",
            f"SAELens {version} with its defaults ran in a process of its own, after the others.",
            place="steps",
        )
    out.add("steps", table)
    out.add("curve", curve)
    spread = np.diff(np.percentile(seconds[0], [25, 75]))[0] / np.median(seconds[0])
    if spread > 0.1:
        out.note(
            "warning", f"The dense step varied by {spread:.0%} between quartiles: other work on this machine?"
        )
    out.note(
        "info",
        f"{len(rows)} rows of {site}; {sizes}; {int(dead.sum())} features declared dead.",
        place="steps",
    )


def _row(
    name: str, seconds: Any, middle: float, low: float, high: float, fvu: float, params: DictionariesParams
) -> dict[str, Any]:
    import numpy as np

    median = float(np.median(seconds))
    return {
        "variant": name, "seconds": median, "rate": params.batch / median, "speedup": middle,
        "speedup_q1": low, "speedup_q3": high, "fvu": fvu, "steps": params.steps * params.repeats,
    }  # fmt: skip


def _saelens(params: DictionariesParams, rows: torch.Tensor, rate: float) -> tuple[Any, str]:
    """Seconds of SAELens' steps, and its version."""
    import json
    import subprocess
    import tempfile
    from pathlib import Path

    import numpy as np
    import torch

    from sparsescope.bench.dictionaries import saelens_peer
    from sparsescope.errors import DependencyError

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, rows.numpy())
        count = params.steps * params.repeats
        given = [str(path), params.width, params.k, params.batch, count, torch.get_num_threads(), rate]
        command = [params.saelens, str(saelens_peer.__file__), *map(str, given)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3600)  # noqa: S603
            found = json.loads(done.stdout.splitlines()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            told = getattr(error, "stderr", "") or str(error)
            raise DependencyError(
                "SAELens could not be timed",
                where="saelens",
                allowed="the python of an environment with sae-lens",
                got=str(told).strip()[-300:],
                next_step="python -m venv ENV; ENV/bin/pip install torch==2.13.0 sae-lens==6.54.12",
            ) from None
    return np.array(found["seconds"]), str(found["version"])


def _factorizations(
    params: DictionariesParams, context: Context, rows: torch.Tensor, site: str, out: Result
) -> None:
    """Errors against time, from the same codes."""
    import numpy as np
    import torch

    from sparsescope.dictionaries.snmf.published import published_updates
    from sparsescope.dictionaries.snmf.rows import Rows
    from sparsescope.dictionaries.snmf.solver import Settings, factorize, support_size, timed

    x = rows.contiguous()
    start = torch.rand(len(x), params.components, generator=torch.Generator().manual_seed(0)).clamp_min(1e-6)
    whole = float(x.double().square().sum())

    def error(codes: np.ndarray, components: np.ndarray) -> float:
        left = 0.0
        h = torch.from_numpy(np.asarray(components, np.float64))
        for part, code in zip(x.split(4096), torch.from_numpy(np.asarray(codes)).split(4096), strict=True):
            left += float((part.double() - code.double() @ h).square().sum())
        return left / whole

    settings = Settings(support_size(params.sparsity, x.shape[1]))
    list(factorize(Rows(x[:256].numpy()), start[:256].numpy().copy(), settings, 1))  # compiled now
    table: list[dict[str, Any]] = []
    name = "multiplicative update (published), torch"
    states = published_updates(x, start.clone(), sparsity=params.sparsity, iterations=params.updates)
    last = 0.0
    for number, (seconds, (codes, components)) in enumerate(timed(states), 1):
        context.progress("published updates", number, params.updates, "iterations")
        if number % 10 == 0 or number in (1, 2, 5, params.updates):
            last = error(codes.numpy(), components.numpy())
            table.append({"variant": name, "iteration": number, "seconds": seconds, "error": last})
    spent = seconds
    reached = None
    ours = timed(factorize(Rows(x.numpy()), start.numpy().copy(), settings, params.updates))
    for number, (seconds, state) in enumerate(ours, 1):
        found = error(state.codes, state.components)
        table.append(
            {"variant": "sparsescope, float32", "iteration": number, "seconds": seconds, "error": found}
        )
        if reached is None and found <= last:
            reached = seconds
        if reached is not None and seconds > 2 * reached:
            break
    out.add("errors", table)
    what = f"{len(x)} rows of {site}, {params.components} components, {params.sparsity:.1%} of each kept"
    out.add_scalar(
        "snmf_published_seconds", spent, "seconds", f"time of {params.updates} published updates, {what}"
    )
    if reached is None:
        out.note(
            "warning",
            f"The factorization did not reach the error {last:.4f} of {params.updates} published updates.",
        )
    else:
        out.add_scalar(
            "snmf_speedup", spent / reached, "",
            f"time of {params.updates} published updates over the time to their error, {what}",
            direction="higher",
        )  # fmt: skip
    out.note("info", f"Error of {params.updates} published updates: {last:.5f}; {what}.", place="errors")

"""What pruning costs, against one forward pass with logits over the calibration text.

Every repeat runs the pass and all ways to prune one after the other, in an order that rotates from repeat
to repeat; a ratio is taken within a repeat, so that slow drifts of the machine cancel. Calibration is part
of the time. Median and quartiles are reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, View
from sparsescope.core.result import Result
from sparsescope.core.spec import Params

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparsescope.activations.context import Context
    from sparsescope.pruning.request import Request

Name = Literal["magnitude", "random", "wanda", "ria", "sparsegpt"]


class PruneParams(Params):
    """Parameters of the benchmark ``prune``."""

    criteria: tuple[Name, ...] = Field(
        ("magnitude", "wanda", "ria", "sparsegpt"),
        description="Criteria, each with both propagations where it reads a text.",
        min_length=1,
    )
    sparsity: float = Field(0.5, gt=0, lt=1, description="Share of the weights in scope that go.")
    scope: str = Field("blocks", description="Which matrices: blocks, mlp, attention, or a pattern.")
    repeats: int = Field(3, ge=2, le=100, description="Repeats of every variant, after one warm-up pass.")


ANALYSIS = Analysis(
    name="prune",
    version="1",
    title="Cost of pruning",
    summary="Time of each criterion against a forward pass with logits over its calibration text.",
    params=PruneParams,
    compute="sparsescope.bench.prune",
    view_module="sparsescope.bench.views",
    views=(
        View(
            "pruning",
            "Time to prune relative to a forward pass",
            "Median over repeats of the time to prune every matrix in scope, calibration included, divided "
            "by the time of a forward pass with logits over the calibration text in the same repeat; lines "
            "show the quartiles. Sequential propagation runs every block twice, dense propagation once.",
            table="variants",
            formula="ratio = seconds(prune) / seconds(forward pass with logits), within a repeat",
        ),
    ),
    tables={
        "variants": (
            Column("variant", "label", "Criterion and propagation."),
            Column("seconds", "seconds", "Median time.", "s"),
            Column("ratio", "value", "Median ratio to the forward pass with logits of the same repeat."),
            Column("ratio_q1", "value", "First quartile of the ratio.", low_of="ratio"),
            Column("ratio_q3", "value", "Third quartile of the ratio.", high_of="ratio"),
            Column("beyond", "seconds", "Median of the time beyond as many passes as it makes.", "s"),
            Column("passes", "value", "Passes that it makes: 0 without a text, 1 dense, 2 sequential."),
            Column("memory", "bytes", "Statistics and hidden states held at once.", "bytes"),
            Column("repeats", "count", "Repeats."),
        ),
    },
    statements="sparsescope.bench.prune_statements",
    headline=("wanda_sequential_beyond", "wanda_dense_beyond", "sparsegpt_sequential_seconds"),
    measures_time=True,
)


def compute(params: PruneParams, context: Context) -> Result:
    """Run the benchmark."""
    from functools import partial

    import numpy as np

    from sparsescope.bench.timing import interleaved, wait
    from sparsescope.pruning.criteria import find_criterion
    from sparsescope.pruning.request import Request
    from sparsescope.pruning.scope import choose
    from sparsescope.pruning.workbench import Workbench

    subject, text = context.subject, context.corpus
    work = Workbench(subject, choose(subject, params.scope))
    batches = [
        (batch.input_ids, None if batch.attention_mask.all() else batch.attention_mask)
        for batch in text.batches()
    ]

    def forward() -> None:
        for ids, mask in batches:
            subject.forward(ids, mask, logits=subject.has_head)
        wait(subject.device)

    memory: dict[str, int] = {}

    def run(name: str, request: Request) -> None:
        made = work.prune(request, text if request.reads else None)
        memory[name] = int(made.facts.get("memory", 0))
        wait(subject.device)

    variants: dict[str, tuple[int, Callable[[], None]]] = {"forward pass with logits": (1, forward)}
    for criterion in params.criteria:
        reads = bool(find_criterion(criterion).reads)
        for propagation in ("dense", "sequential") if reads else ("dense",):
            label = f"{criterion}, {propagation}" if reads else criterion
            request = Request.of(criterion, params.sparsity, propagation=propagation)
            passes = (2 if propagation == "sequential" else 1) if reads else 0
            variants[label] = passes, partial(run, label, request)
    seconds = interleaved(
        [call for _, call in variants.values()],
        params.repeats,
        warmed=1,
        before=work.reset,
        told=lambda done, total: context.progress("variants", done, total, "variants"),
    )
    out, rows = Result("prune"), []
    for place, (name, (passes, _)) in enumerate(variants.items()):
        ratio = seconds[place] / seconds[0]
        beyond = seconds[place] - passes * seconds[0]
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        rows.append(
            {
                "variant": name,
                "seconds": float(np.median(seconds[place])),
                "ratio": middle,
                "ratio_q1": low,
                "ratio_q3": high,
                "beyond": float(np.median(beyond)),
                "passes": float(passes),
                "memory": memory.get(name, 0),
                "repeats": params.repeats,
            }
        )
        if place:
            slug = name.replace(", ", "_")
            what = f"to prune {params.sparsity:g} of {work.scope.weights} weights by {name}"
            out.add_scalar(
                f"{slug}_seconds", rows[-1]["seconds"], "seconds", f"median time {what}", direction="lower"
            )
            definition = f"median over repeats of the time {what} less {passes} forward passes with logits "
            definition += f"over its {text.n_tokens} calibration tokens"
            out.add_scalar(f"{slug}_beyond", rows[-1]["beyond"], "seconds", definition, direction="lower")
    out.add("variants", rows)
    spread = np.diff(np.percentile(seconds[0], [25, 75]))[0] / np.median(seconds[0])
    if spread > 0.1:
        out.note(
            "warning",
            f"The forward pass varied by {spread:.0%} between quartiles: other work on this machine?",
        )
    out.note("info", work.scope.text, place="scope")
    return out

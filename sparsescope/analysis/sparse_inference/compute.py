"""Sparse inference, computed: calibrate every method, make the model sparse, read held-out text.

Methods are calibrated on one part of the text, choose on another, and are judged on a third that nothing was
chosen on. Shapes: D documents.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsescope.activations.context import Context
from sparsescope.activations.losses import check_causal
from sparsescope.analysis.sparse_inference import SparseInferenceParams
from sparsescope.analysis.sparse_inference.details import atlas_rows, divergence_rows, per_matrix
from sparsescope.analysis.sparse_inference.measure import Measuring, Point
from sparsescope.analysis.sparse_inference.rows import Reporter
from sparsescope.analysis.sparse_inference.statements import policy_words, slug
from sparsescope.analysis.sparse_inference.texts import Texts, part_text
from sparsescope.core.result import Result
from sparsescope.errors import SubjectError
from sparsescope.inference.methods import named
from sparsescope.inference.prefix import SUMMARIES, PrefixPolicy
from sparsescope.metrics.estimates import note_few_documents
from sparsescope.models.doctor import precision_note


def compute(params: SparseInferenceParams, context: Context) -> Result:
    """Run the analysis.

    Raises:
        SubjectError: The subject has no loss of the next token, nothing to mask, or no method is fit for it;
            or the text has too few documents.
    """
    check_causal(context.subject)
    texts = part_text(context.corpus, params)
    special = texts.held_out.context - texts.held_out.window
    longest = max(min(len(d) + special, texts.held_out.context) for d in texts.held_out.documents)
    for prefix in params.prefixes:
        PrefixPolicy.of(prefix).check(longest, "prefixes")
    measuring = Measuring(params, context, texts)
    dense = measuring.dense()
    points = _points(params, measuring)
    if not points:
        raise SubjectError(
            "no method reaches any of the targets on this subject",
            where=context.subject.id,
            allowed=", ".join(f"{named(m)} up to {c:.3g}" for m, c in measuring.ceilings.items()) or "none",
            got=", ".join(f"{100 * target:g} %" for target in params.targets),
            next_step="choose smaller targets, or teal, wina or auto, which mask every matrix",
        )
    pruned = _pruned(params, measuring)
    report = Reporter(params, measuring, dense, points)
    out = Result("sparse_inference")
    out.add("quality", report.quality(pruned))
    sometimes: dict[str, list[dict[str, Any]]] = {
        "comparisons": report.comparisons(),
        "usable_range": report.usable_range(),
        "domains": report.domains(),
        "per_matrix": per_matrix(measuring),
        "choices": report.choices(),
    }
    names = [document.id for document in texts.held_out.documents]
    sometimes["atlas"], sometimes["unions"], sometimes["tokens"] = atlas_rows(measuring, names)
    sometimes["divergence"] = divergence_rows(measuring)
    out.add("accounting", report.accounting())
    out.add("ceilings", report.ceilings())
    out.add("calibration", report.calibration())
    for name, rows in sometimes.items():
        if rows:  # a view whose table is not there is not shown
            out.add(name, rows)
    _scalars(out, report, dense)
    _notes(out, context, report, texts)
    return out


def _points(params: SparseInferenceParams, measuring: Measuring) -> list[Point]:
    """Every method at every target and policy; what cannot be reached is left out."""
    targets = sorted({*params.targets, *params.compare_at})
    beyond = round(min(max(targets) + 0.03, 0.97), 4)
    wanted: list[tuple[str, float, str]] = []
    for method in params.methods:
        own = targets
        if method == params.reference and len(params.methods) > 1:
            own = [*targets, beyond]  # others may skip a little more than was asked for
        measuring.chains[method] = own
        wanted += [(method, target, prefix) for target in own for prefix in params.prefixes]
    for method in params.beside:
        if method not in params.methods:
            measuring.chains[method] = list(params.compare_at)
            wanted += [(method, target, params.prefixes[0]) for target in params.compare_at]
    wanted = [point for point in wanted if measuring.reaches(point[0], point[1])]
    measuring.planned = len(wanted)
    points = [measuring.point(*point) for point in wanted]
    measuring.context.progress("points", len(points), len(points), "points")
    return points


def _pruned(params: SparseInferenceParams, measuring: Measuring) -> list[tuple[str, Point | None, Any]]:
    """The rows of a model that is pruned and then made sparse."""
    method = next((name for name in ("wina", "teal", *params.methods) if name in params.methods), "")
    target = min(params.compare_at or params.targets, key=lambda value: abs(value - 0.4))
    if not params.pruned or not measuring.reaches(method, target):
        return []
    point, alone = measuring.pruned(method, target)
    if point is None or alone is None:
        return []
    return [
        (f"Wanda {100 * params.pruned:g} % alone", None, alone),
        (point.method, point, point.scores),
    ]


def _scalars(out: Result, report: Reporter, dense: dict[str, Any]) -> None:
    """The numbers that stand alone."""
    params = report.params
    nll = float(dense["nll"].sum() / dense["targets"].sum())
    interval = report.draws.ratio(dense["nll"], dense["targets"])
    out.add_scalar(
        "dense_perplexity",
        math.exp(nll),
        "",
        "exp of the mean loss of the dense model on the scored targets",
        interval=report.draws.between(np.exp(interval.low), np.exp(interval.high)),
    )
    out.add_scalar(
        "block_share",
        report.total / max(_read_weights(report), 1),
        "fraction",
        "weights of the block matrices / all weights that a decoded token reads",
    )
    for row in report.comparisons():
        first, second = row["first"], row["second"]
        out.add_scalar(
            f"{slug(first)}_over_{slug(second)}_at_{row['target']:g}{_suffix(params, row['prefix'])}",
            row["ratio"],
            "",
            f"KL of {first} / KL of {second} at the bytes that {second} realised ({row['prefix']})",
            direction="lower",
            interval=report.draws.between(row["ratio_low"], row["ratio_high"]),
            title=f"KL, {first} / {second}, {100 * row['target']:g} %{_words(params, row['prefix'])}",
        )
    for row in report.usable_range():
        method, tolerance = row["method"], row["tolerance"]
        out.add_scalar(
            f"range_{slug(method)}_at_{tolerance:g}{_suffix(params, row['prefix'])}",
            row["sparsity"],
            "fraction",
            f"largest share of block-matrix bytes that {method} skips within {100 * tolerance:g} % "
            f"perplexity ({row['prefix']})",
            direction="higher",
            interval=report.draws.between(row["low"], row["high"]),
            title=f"Unread bytes within {100 * tolerance:g} %, {method}{_words(params, row['prefix'])}",
        )
    for point in report.points:
        if point.prefix == params.prefixes[0] and point.target in params.compare_at:
            kl = report.draws.ratio(point.scores.kl, report.targets)
            out.add_scalar(
                f"kl_{slug(point.title)}_at_{point.target:g}",
                float(kl.mean),
                "nats",
                f"mean KL(dense || sparse) of {point.title} at {100 * point.target:g} % ({point.prefix})",
                direction="lower",
                interval=report.draws.between(kl.low, kl.high),
                title=f"KL, {point.title}, {100 * point.target:g} %",
            )
    _matrix_scalars(out, params)


def _matrix_scalars(out: Result, params: SparseInferenceParams) -> None:
    """On how many matrices WINA has a smaller error than TEAL."""
    table = out.tables.get("per_matrix")
    if table is None:
        return
    wide = table.pivot_table(index="matrix", columns="method", values="error")
    if {"WINA", "TEAL"} <= set(wide.columns):
        both = wide[["WINA", "TEAL"]].dropna()
        if len(both):
            out.add_scalar(
                "wina_below_teal",
                float((both["WINA"] < both["TEAL"]).mean()),
                "fraction",
                f"share of the {len(both)} matrices whose output error is smaller under WINA than under "
                f"TEAL at "
                f"{100 * params.detail_at:g} %",
                title="Matrices with less error under WINA than TEAL",
            )


def _read_weights(report: Reporter) -> float:
    """Weights that a decoded token of the dense model reads."""
    first = report.account(report.points[0])
    return first.dense.total_bytes / report.inventory.dimensions.bytes_per_weight


def _words(params: SparseInferenceParams, prefix: str) -> str:
    """What a title says of the prefix policy: nothing for the first one."""
    return "" if prefix == params.prefixes[0] else f", {policy_words(prefix)}"


def _suffix(params: SparseInferenceParams, prefix: str) -> str:
    """What a name says of the prefix policy: nothing for the first one."""
    return "" if prefix == params.prefixes[0] else f"_{prefix.split(':')[0]}"


def _notes(out: Result, context: Context, report: Reporter, texts: Texts) -> None:
    """Say what was measured on what text, and what the numbers cannot say."""
    params, measuring = report.params, report.measuring
    identity = context.subject.identity
    out.note("info", precision_note(identity.origin_precision, identity.dtype), place="precision")
    policies = "; ".join(
        f"{prefix}: {SUMMARIES[PrefixPolicy.of(prefix).kind].partition(': dense_')[0]}"
        for prefix in params.prefixes
    )
    out.note(
        "info",
        f"protocol: corpus {context.corpus.name}, windows of {texts.held_out.context} tokens without "
        f"overlap, "
        f"{context.subject.dtype}; scored are the {report.n['tokens']} tokens that second halves of windows "
        f"predict, in {report.n['documents']} held-out documents, under every prefix policy the same "
        f"({policies}); "
        f"thresholds from {texts.calibration.n_tokens} tokens of {len(texts.calibration.documents)} other "
        "documents, the first token of a window left out, refitted in the sparse model until the bytes are "
        f"within half a point of the target (under {params.prefixes[0]}, for every policy); choices on "
        f"{0 if texts.development is None else texts.development.n_tokens} tokens of still others",
        place="protocol",
    )
    out.note(
        "info",
        "sparsity is the share of the bytes of the block matrices that a sparse position did not read on the "
        "held-out text, with products of low rank, rotations and vectors taken off; output head, embeddings "
        "and norms stay dense and count in the share of the model",
        place="bytes",
    )
    out.note(
        "info",
        "no speed was measured: masks are applied to dense arithmetic, and the bound is that of bytes",
        place="speed",
    )
    for method, why in measuring.unfit.items():
        said = why if method == "pruned" else f"{named(method)} is not measured: {why}"
        out.note("info", said, place="methods")
    left = [
        f"{named(method)} ({100 * ceiling:.3g} %)"
        for method, ceiling in measuring.ceilings.items()
        if ceiling * 0.98 < max((*params.targets, *params.compare_at))
    ]
    if left:
        out.note(
            "info",
            f"methods that skip some matrices only appear up to their ceilings: {', '.join(left)}",
            place="ceilings",
        )
    drift = [
        point
        for point in report.points
        if abs(float(point.skipped() + point.adapters * _rotated(point)) / report.total - point.target)
        > 0.015
    ]
    if drift:
        worst = max(drift, key=lambda p: abs(float(p.skipped()) / report.total - p.target))
        got = f"{100 * float(worst.skipped()) / report.total:.3g} %"
        out.note(
            "warning",
            f"{len(drift)} points skip more than 1.5 points more or less on the held-out text than was asked "
            f"for ({worst.title} at {100 * worst.target:g} %: {got}): read figures against realised bytes",
            place="bytes",
        )
    if texts.held_out.n_tokens < params.tokens:
        out.note(
            "info",
            f"{texts.held_out.n_tokens} held-out tokens were there for {params.tokens} wanted: more text "
            "(--tokens) narrows the intervals",
            place="protocol",
        )
    if measuring.seconds or measuring.bench.seconds:
        spent = {**measuring.bench.seconds, **measuring.seconds}
        said = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in sorted(spent.items()))
        out.note("info", f"time of this process: {said}", place="cost")
    note_few_documents(out, report.n["documents"], "held-out text")


def _rotated(point: Point) -> int:
    """Whether the adapters of a point are outside of its target, as a rotation is."""
    return int("rotated" in point.method)

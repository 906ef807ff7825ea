"""Weight sparsity, computed: prune at every level, then read drop points off paired losses.

All curves are measured at the levels asked for; then each is measured where the widest bracket of one of its
drop points can be halved.
Shapes: K levels of a curve, level 0 the dense model; D documents; L matrices.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.activations.context import Context
from sparsescope.activations.losses import check_causal
from sparsescope.analysis.weight_sparsity import WeightSparsityParams
from sparsescope.analysis.weight_sparsity.measure import Measuring, Point
from sparsescope.analysis.weight_sparsity.rows import Reporter
from sparsescope.core.result import Result
from sparsescope.errors import SpecError, SubjectError
from sparsescope.metrics.estimates import DocumentBootstrap, note_few_documents
from sparsescope.metrics.isotonic_crossing import tolerance_crossing
from sparsescope.models.doctor import precision_note
from sparsescope.pruning.curves import Curve, read_curve
from sparsescope.pruning.patterns import NM, read_pattern

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument

    Floats = NDArray[np.float64]

METHOD = "paired document-cluster bootstrap, studentized"
NARROW = 0.02  # brackets below this are not halved


def compute(params: WeightSparsityParams, context: Context) -> Result:
    """Run the analysis."""
    check_causal(context.subject)
    curves = [read_curve(name) for name in params.curves]
    calibration, chosen = split_text(context.corpus, params)
    training = _training(context, calibration, chosen) if any(curve.finetuned for curve in curves) else None
    measuring = Measuring(params, context, calibration, chosen, training)
    levels = sorted({*params.levels, params.compare_at})
    for curve in curves:
        if curve.pattern is not None:  # before the work, not after it
            for site in measuring.scope.matrices:
                curve.pattern.check(site.name, site.shape)
    singles, unfit = _patterns(curves, params, measuring)
    measuring.planned = len(curves) * (len(levels) + params.refine) + len(singles)
    dense = {"zero-shot": measuring.dense()}
    if training is not None:
        dense["fine-tuned"] = measuring.dense(finetuned=True)
    points: dict[str, list[Point]] = {curve.name: [] for curve in curves}
    beside = _next(levels, params.compare_at)
    for level in levels:
        for curve in curves:
            points[curve.name].append(
                measuring.point(curve, level, masks=level == beside, compared=level == params.compare_at)
            )
    for curve in curves:
        _refine(measuring, curve, points[curve.name], dense[curve.kind][0])
    for curve in singles:
        assert isinstance(curve.pattern, NM)
        points[curve.name] = [measuring.point(curve, curve.pattern.sparsity)]
    context.progress("levels", measuring.measured, measuring.measured, "levels")
    draws = DocumentBootstrap.draw(measuring.domains, params.resamples, params.seed, params.level, METHOD)
    report = Reporter(params, measuring, dense, draws, curves, singles, points)
    out = Result("weight_sparsity")
    out.add("curve", report.curve("zero-shot"))
    out.add("drop_points", report.drop_points())
    out.add("detectors", report.detectors())
    out.add("per_matrix", report.per_matrix())
    out.add("cost", report.cost())
    out.add("scope", report.scope())
    sometimes = {
        "comparisons": report.comparisons(),
        "zeros": report.zeros(),
        "overlap": report.overlaps(beside),
        "reconstruction": report.reconstruction(),
        "finetuned": report.curve("fine-tuned"),
    }
    for name, rows in sometimes.items():
        if rows:  # a view whose table is not there is not shown
            out.add(name, rows)
    report.scalars(out)
    _notes(out, context, report, calibration, chosen, training)
    for text in unfit:
        out.note("info", text, place="patterns")
    return out


def _training(context: Context, calibration: TokenizedCorpus, chosen: TokenizedCorpus) -> TokenizedCorpus:
    """The documents that are neither read for calibration nor held out.

    Raises:
        SubjectError: There are none.
    """
    used = {document.index for text in (calibration, chosen) for document in text.documents}
    rest = [document.index for document in context.corpus.documents if document.index not in used]
    if not rest:
        raise SubjectError(
            "fine-tuning reads documents that are neither held out nor read for calibration; none is left",
            where=f"corpus {context.corpus.name}",
            got=f"{len(context.corpus.documents)} documents, {context.corpus.n_tokens} tokens",
            next_step="read more text (--tokens), or hold out less (--set tokens=...)",
        )
    return context.corpus.select(rest)


def split_text(
    corpus: TokenizedCorpus, params: WeightSparsityParams
) -> tuple[TokenizedCorpus, TokenizedCorpus]:
    """Take documents for calibration from the beginning of the stream, held-out ones from its end.

    The stream interleaves the domains. Held-out documents are the same for every draw of calibration
    documents where the text is long enough.

    Raises:
        SubjectError: There are too few documents for both.
    """
    documents = [_beginning(d, params.calibration_document_tokens) for d in corpus.documents]
    start = 0
    for draw in range(params.calibration_draw + 1):
        end, taken = start, 0
        while taken < params.calibration_tokens and end < len(documents):
            taken += len(documents[end])
            end += 1
        if draw < params.calibration_draw:
            start = end
    held: list[TokenizedDocument] = []
    taken = 0
    for document in reversed(corpus.documents[min(end, len(documents) - 1) :]):
        if taken >= params.tokens:
            break
        held.append(_beginning(document, params.document_tokens))
        taken += len(held[-1])
    first = {document.index for document in held}
    calibration = [document for document in documents[start:end] if document.index not in first]
    if not held or not calibration:
        raise SubjectError(
            "criteria are calibrated on some documents and judged on others, and there are too few documents",
            where=f"corpus {corpus.name}, draw {params.calibration_draw}",
            allowed=f"at least {params.calibration_tokens * (params.calibration_draw + 1)} tokens and a "
            "document more",
            got=f"{len(documents)} documents, {corpus.n_tokens} tokens",
            next_step="read more text (--tokens), or calibrate on less (--set calibration_tokens=...)",
        )
    return _of(corpus, calibration), _of(corpus, held[::-1])


def _beginning(document: TokenizedDocument, most: int) -> TokenizedDocument:
    """The first tokens of a document."""
    return replace(document, ids=document.ids[:most], whole=document.whole and len(document) <= most)


def _of(corpus: TokenizedCorpus, documents: list[TokenizedDocument]) -> TokenizedCorpus:
    """The corpus of some beginnings of its documents."""
    mark = f"{corpus.digest} {[(document.index, len(document)) for document in documents]}"
    return replace(corpus, documents=tuple(documents), digest=hashlib.sha256(mark.encode()).hexdigest())


def _patterns(
    curves: list[Curve], params: WeightSparsityParams, measuring: Measuring
) -> tuple[list[Curve], list[str]]:
    """The N:M points of each criterion that is asked for, and why a pattern is left out."""
    names = dict.fromkeys(curve.criterion.name for curve in curves if not curve.finetuned)
    found, unfit = [], []
    for text in params.patterns:
        points = [read_curve(f"{name}+{text}") for name in names]
        try:
            for site in measuring.scope.matrices:
                assert points[0].pattern is not None
                points[0].pattern.check(site.name, site.shape)
        except SpecError as error:
            unfit.append(f"{text} is not measured: {error.what} ({error.where}: {error.got})")
            continue
        found += [point for point in points if point.name not in {curve.name for curve in curves}]
    return found, unfit


def _next(levels: list[float], level: float) -> float | None:
    """The level after the one of comparison, or before it where it is the last."""
    place = levels.index(level)
    return levels[place + 1] if place + 1 < len(levels) else levels[place - 1] if place else None


def _refine(measuring: Measuring, curve: Curve, points: list[Point], dense: Floats) -> None:
    """Measure where the widest bracket of a drop point is halved."""
    for _ in range(measuring.params.refine):
        order = sorted(points, key=lambda point: point.asked)
        levels = np.array([0.0, *(point.asked for point in order)])
        total = measuring.targets.sum()
        damage = np.array([0.0, *(float((point.nll - dense).sum() / total) for point in order)])
        found = [tolerance_crossing(levels, damage, tolerance) for tolerance in measuring.params.tolerances]
        widest = max(found, key=lambda crossing: -1 if math.isnan(crossing.bracket) else crossing.bracket)
        if math.isnan(widest.bracket) or widest.bracket <= NARROW:
            return
        place = int(np.searchsorted(levels, widest.at, side="right"))
        low, high = levels[place - 1], levels[min(place, len(levels) - 1)]
        if widest.at <= low and place >= 2:  # the crossing lies at a measured level
            low, high = levels[place - 2], levels[place - 1]
        points.append(measuring.point(curve, round(float(low + high) / 2, 4)))


def _notes(
    out: Result,
    context: Context,
    report: Reporter,
    calibration: TokenizedCorpus,
    chosen: TokenizedCorpus,
    training: TokenizedCorpus | None,
) -> None:
    """Say what is pruned, on what text, and what the numbers cannot say."""
    params, measuring = report.params, report.measuring
    out.note("info", measuring.scope.text, place="scope")
    identity = context.subject.identity
    out.note("info", precision_note(identity.origin_precision, identity.dtype), place="precision")
    if not report.signal:
        out.note(
            "warning",
            "the dense model is not better on this text than the frequencies of its tokens, so there is no "
            "quality that pruning could break: no drop point is given",
            place="drop_points",
        )
    read = [curve for curve in report.curves if curve.criterion.reads or curve.allocation.reads]
    out.note(
        "info",
        f"protocol: corpus {context.corpus.name}, windows of {chosen.context} tokens without overlap, "
        f"losses of every text token but the first of a window, {context.subject.dtype}, "
        f"{report.n['documents']} held-out documents, {report.n['tokens']} target tokens"
        + (
            f"; calibration on {calibration.n_tokens} tokens of {len(calibration.documents)} other "
            f"documents, {params.propagation} propagation, first tokens of windows "
            f"{'count' if params.first_positions else 'left out'}"
            if read
            else ""
        ),
        place="protocol",
    )
    out.note(
        "info",
        "intervals of drop points invert a studentized bootstrap test over documents, those of differences "
        "are studentized as well; they say how another text of this kind would differ, not how another "
        "calibration text or seed would",
        place="intervals",
    )
    if chosen.n_tokens < params.tokens:
        out.note(
            "info",
            f"{chosen.n_tokens} held-out tokens were there for {params.tokens} wanted: at most "
            f"{params.document_tokens} of each document that is not read for calibration; more text "
            "(--tokens) narrows the intervals",
            place="protocol",
        )
    if training is not None:
        out.note(
            "info",
            f"fine-tuned curves: {params.finetune_steps} updates on {training.n_tokens} tokens of "
            f"{len(training.documents)} other documents, AdamW at {params.finetune_rate:g}; the reference is "
            "the dense model trained on for the same updates",
            place="fine-tuning",
        )
    blind = sorted(
        {tolerance for (_, tolerance), least in report.detectable.items() if not least <= tolerance}
    )
    if blind and report.n["documents"] > 1:
        worst = max(value for value in report.detectable.values() if math.isfinite(value))
        out.note(
            "warning",
            f"a damage of {', '.join(f'{value:g}' for value in blind)} nats cannot be told from none on this "
            f"text for every curve (least detectable: up to {worst:.3g} nats): read these drop points with "
            "their intervals, or hold out more text",
            place="drop_points",
        )
    note_few_documents(out, report.n["documents"], "held-out text")
    if params.patterns and read_pattern(params.patterns[0]) is not None:
        out.note(
            "info",
            "zeros are set in the stored weights; no speed follows from them in plain runtimes: that is "
            "measured by benchmarks of kernels",
            place="speed",
        )

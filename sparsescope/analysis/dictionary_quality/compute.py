"""Dictionary quality, computed: fit or read, evaluate on the same tokens, splice, probe.

Three kinds of passes over the model: through the site for the rows that things are fitted on, through the
site for the evaluation, and whole ones for the losses. Each is a step that an interrupted run does not make
again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sparsescope.activations.context import Context
from sparsescope.analysis.dictionary_quality import DictionaryQualityParams
from sparsescope.analysis.dictionary_quality import entries as given_entries
from sparsescope.analysis.dictionary_quality.documents import Parts, divide
from sparsescope.analysis.dictionary_quality.entries import BASELINE, DICTIONARY, Entry
from sparsescope.analysis.dictionary_quality.measure import Place, evaluate
from sparsescope.analysis.dictionary_quality.over_seeds import family_rows, rule_rows
from sparsescope.analysis.dictionary_quality.probes import absorption_rows, probe_rows
from sparsescope.analysis.dictionary_quality.report import Reporter
from sparsescope.analysis.dictionary_quality.scalars import add_scalars
from sparsescope.analysis.dictionary_quality.seeds import seed_rows
from sparsescope.analysis.dictionary_quality.splice import Spliced, splice, variants_of
from sparsescope.analysis.dictionary_quality.trained_here import Made, train_here
from sparsescope.core.result import Result
from sparsescope.dictionaries.documents import beginnings
from sparsescope.dictionaries.places import site_named
from sparsescope.dictionaries.site_rows import FitRows, fit_rows, sites_of
from sparsescope.metrics.estimates import note_few_documents
from sparsescope.models.doctor import precision_note

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus

FEW_TOKENS = 1_000_000
"""Training tokens below which a note says what a dictionary is not good for."""


class _Clock:
    """How long each part took."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def part(self, name: str, tokens: int) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.rows.append({"step": name, "seconds": time.perf_counter() - begun, "tokens": tokens})


def compute(params: DictionaryQualityParams, context: Context) -> Result:
    """Run the analysis."""
    subject, clock, made, others = context.subject, _Clock(), None, list[str]()
    entries = given_entries.read_given(context.inputs.get("dictionary", ()), subject, params.site)
    given = bool(entries)
    parts = divide(context.corpus, entries, params.train_share, params.seed)
    if given:
        sites = sites_of([(entry.reads, entry.writes) for entry in entries])
    else:
        sites = [site_named(subject, params.site)]
    with clock.part("read activations", parts.fit.n_tokens):
        read = fit_rows(context, parts.fit, sites, params.seed)
    if not given:
        with clock.part("train", parts.fit.n_tokens * params.epochs):
            made = train_here(params, context, parts.fit, read, sites[0])
        entries = made.entries
    elif params.match_l0 is not None:
        others = given_entries.match_l0(entries, params.match_l0, read.rows)
    with clock.part("baselines", len(read.rows[sites[0].name])):
        entries += given_entries.make_baselines(entries, read.rows, params.baselines, params.seed)
    with clock.part("evaluate", parts.evaluation.n_tokens):
        places = evaluate(context, parts.evaluation, entries, read.facts, params.probe_rows, params.seed)
    losses = beginnings(parts.evaluation, params.loss_tokens, params.loss_document_tokens)
    spliced = _splice(params, context, losses, entries, read, clock)
    report = Reporter(params, parts.evaluation, places, spliced, read.facts)
    out = Result("dictionary_quality")
    out.add("quality", report.quality())
    rules = rule_rows(report)
    sometimes = {
        "comparisons": report.comparisons(),
        "splice": report.splice(),
        "families": family_rows(report),
        "rules": rules,
        "densities": report.densities(),
        "dead_curve": report.dead_curve(),
        "frequency_fit": report.frequency_fit(),
        **_of_sample(params, context, places, read, clock),
    }
    for name, rows in sometimes.items():
        if rows:
            out.add(name, rows)
    out.add("cost", clock.rows)
    parts_of_it = ", ".join(f"{row['step']} {row['seconds']:.3g} s" for row in clock.rows)
    out.note("info", f"passes and training of its own: {parts_of_it}", place="cost")
    add_scalars(out, report, rules)
    _notes(out, params, context, parts, read, report, losses)
    _trained_notes(out, params, entries, made, others, read)
    return out


def _splice(
    params: DictionaryQualityParams,
    context: Context,
    corpus: TokenizedCorpus,
    entries: Sequence[Entry],
    read: FitRows,
    clock: _Clock,
) -> Spliced | None:
    """Losses, where the model has a loss of the next token and the text has targets."""
    if not {"causal", "logits"} <= context.subject.capabilities or not corpus.documents:
        return None
    wanted = [
        e for e in entries if e.kind == DICTIONARY or e.dictionary.architecture in params.splice_baselines
    ]
    variants = variants_of(wanted, read.facts)
    with clock.part("splice", corpus.n_tokens * (1 + len(variants))):
        return splice(context, corpus, variants, read.facts)


def _of_sample(
    params: DictionaryQualityParams, context: Context, places: Sequence[Place], read: FitRows, clock: _Clock
) -> dict[str, list[dict[str, Any]]]:
    """What is measured on a sample of the tokens, and on directions alone."""
    probing: list[dict[str, Any]] = []
    absorbed: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    tokens = sum(len(place.sample.ids) for place in places)
    for number, place in enumerate(places):
        context.progress("probe", number, len(places), "sites")
        if context.subject.tokenizer is not None:
            with clock.part("probe", len(place.sample.ids)):
                found = list(probe_rows(place, context.subject, params))
                if len(places) > 1:  # neurons of which site
                    where = f" (layer {place.entries[0].reads.layer}, {place.entries[0].reads.role})"
                    for row in found:
                        row["dictionary"] += where if row["kind"] == BASELINE else ""
                probing += found
            if params.absorption:
                with clock.part("absorption", len(place.sample.ids)):
                    absorbed += absorption_rows(place, context.subject, params)
        seeds += seed_rows(place, read.rows[place.entries[0].writes.name], params.seed)
    context.progress("probe", len(places), len(places), "sites")
    return {"probing": probing, "absorption": absorbed, "seeds": seeds} if tokens else {"seeds": seeds}


def _notes(
    out: Result,
    params: DictionaryQualityParams,
    context: Context,
    parts: Parts,
    read: FitRows,
    report: Reporter,
    losses: TokenizedCorpus,
) -> None:
    """Say on what text, which tokens, and what the numbers cannot say."""
    evaluated = sum(place.tokens for place in report.places)
    left = sum(place.left_out for place in report.places)
    out.note(
        "info",
        f"protocol: corpus {context.corpus.name}, windows of {context.corpus.context} tokens, "
        f"{context.subject.dtype}; {len(parts.fit.documents)} documents ({parts.fit.n_tokens} tokens) to fit "
        f"on, {len(parts.evaluation.documents)} others ({parts.evaluation.n_tokens} tokens) to score on; "
        "means of the variance are of the tokens scored",
        place="protocol",
    )
    out.note(
        "info",
        "the first position of each window, and tokens beyond ten median norms, are left out, as in "
        f"training: {left} of {left + evaluated} evaluation tokens; where a dictionary is spliced in, these "
        "go on as they are",
        place="tokens",
    )
    if parts.left_out:
        out.note(
            "info",
            f"{parts.left_out} documents of the text are left out: a dictionary was trained on them, or its "
            "thresholds were set on them",
            place="protocol",
        )
    if params.baselines:
        out.note(
            "info",
            "baselines have as many active features as the dictionaries (differences below 10 % count as "
            "equal) and their mean as bias, fitted on documents that are not scored: the first principal "
            "components are active on every token; the largest ones are chosen for each token, with their "
            "signs, and so are the neurons that are farthest from their means; random directions are chosen "
            "as in a TopK autoencoder, with a factor of least squares",
            place="quality",
        )
    if report.spliced is None:
        why = "no loss of the next token" if losses.documents else "no token with a context"
        out.note("info", f"there is {why} here, so nothing is spliced in", place="splice")
    else:
        tokens, documents = int(report.spliced.targets.sum()), len(report.spliced.targets)
        out.note(
            "info",
            f"losses: {tokens} targets of {documents} evaluation documents, at most "
            f"{params.loss_document_tokens} tokens of each; the recovered share has the rise at zero "
            "ablation as its denominator",
            place="splice",
        )
        if any(math.isnan(row["recovered"]) for row in report.splice()):
            out.note(
                "info",
                "where setting a site to zero does not certainly raise the loss, no recovered share is given",
                place="splice",
            )
        note_few_documents(out, documents, "splice")
    out.note(
        "info", precision_note(context.subject.identity.origin_precision, context.subject.dtype), "precision"
    )
    if any(not place.sums.exact for place in report.places):
        out.note(
            "info",
            "there are too many documents to keep their means one by one: intervals of explained variance "
            "take the mean of all for that of each resample",
            place="quality",
        )
    note_few_documents(out, report.documents(), "evaluation")


def _trained_notes(
    out: Result,
    params: DictionaryQualityParams,
    entries: Sequence[Entry],
    made: Made | None,
    others: Sequence[str],
    read: FitRows,
) -> None:
    """Say what the dictionaries were trained on."""
    if made is not None:
        out.note(
            "warning",
            f"these dictionaries were trained here on {read.seen} tokens: enough to see how much structure "
            "there is and what a description costs, far too little for features to be read or named "
            "(published ones take 50 million tokens and more); train some with a recipe and give them "
            "(--dictionary)",
            place="training",
        )
        out.note(
            "info",
            f"features of the SNMF have {100 * params.neuron_share:g} % of the neurons each; its codes are "
            "not sparse: a token is a sum of most of them, so their number says little",
            place="quality",
        )
        if not made.converged:
            out.note("info", f"the SNMF was stopped after {params.iterations} iterations", place="training")
        if read.held < 1:
            out.note(
                "info",
                f"{100 * read.held:.3g} % of the tokens were held to be trained on, as many as fit in "
                "memory; a recipe (sparsescope train) reads all of them",
                place="training",
            )
        return
    dictionaries = [entry for entry in entries if entry.kind == DICTIONARY]
    unknown = [entry.label for entry in dictionaries if not isinstance(entry.training.get("documents"), dict)]
    if unknown:
        out.note(
            "warning",
            f"it is not known which documents {', '.join(unknown)} saw in training: where some of them are "
            "scored here, the errors look smaller than they are",
            place="training",
        )
    few = [
        entry.label
        for entry in dictionaries
        if 0
        < float(entry.facts.get("rows_read", 0)) / max(1.0, float(entry.facts.get("epochs", 1)))
        < FEW_TOKENS
    ]
    if few:
        out.note("info", f"trained on fewer than a million tokens: {', '.join(few)}", place="training")
    if others:
        out.note(
            "info",
            f"the number of active features of {', '.join(others)} cannot be set by thresholds and stays as "
            "it is",
            place="match_l0",
        )
    if any(entry.reads.name != entry.writes.name for entry in dictionaries):
        out.note(
            "info", "transcoders have no baselines: nothing untrained maps one site to another", "quality"
        )

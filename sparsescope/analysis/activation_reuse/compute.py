"""Activation reuse, computed: from sums by document to tables with nulls and intervals.

Means are ratios of sums over documents; intervals resample documents within domains. Rates of units, which
the nulls need, come from all tokens but the first of each window.
Shapes: C documents, L sites, R rules, K chunk lengths, B resamples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsescope.activations.context import Context
from sparsescope.analysis.activation_reuse.accumulate import ReuseAccumulator
from sparsescope.analysis.activation_reuse.tables import CHUNK, Measured
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.errors import SubjectError
from sparsescope.metrics.estimates import note_few_documents
from sparsescope.metrics.jackknife import JACKKNIFE, jackknife_interval
from sparsescope.metrics.statistics import mean_over_present

if TYPE_CHECKING:
    from sparsescope.analysis.activation_reuse import ActivationReuseParams

_ACTIVE = {"nonzero": "not exactly zero", "in use": "in the energy set"}


def accumulator(params: ActivationReuseParams, context: Context) -> ReuseAccumulator:
    """Return the accumulator to feed in the shared forward pass."""
    return ReuseAccumulator(
        context.subject.sites(params.sites), params.use_share, context.corpus.context, params.seed
    )


def result(params: ActivationReuseParams, context: Context, accumulated: ReuseAccumulator) -> Result:
    """Build the result from the sums.

    Raises:
        SubjectError: If there is no token after the first of a window.
    """
    found = accumulated.finish()
    if not found.fold_tokens.any():
        raise SubjectError(
            "there is no token after the first of a window, and the first one is not measured",
            where=f"corpus {context.corpus.name}",
            got=f"{context.corpus.n_tokens} tokens in {len(found.documents)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    measured = Measured.of(params, found)
    out = Result("activation_reuse")
    out.add("union_density", measured.unions())
    out.add("chunk_sparsity", measured.chunk_sparsity())
    out.add("aggregated", measured.aggregated())
    out.add("neighbors", measured.neighbors())
    out.add("lorenz", measured.lorenz())
    out.add("concentration", measured.concentration())
    out.add("upper_bounds", measured.bounds(params, context))
    _scalars(out, measured)
    _jackknifed(out, measured)
    _notes(out, context, measured)
    return out


def _scalars(out: Result, measured: Measured) -> None:
    """Means over sites, with intervals where they are means over tokens of documents."""
    draws, sums, documents = measured.draws, measured.sums, measured.documents
    over = f"mean over {len(measured.found.sites)} sites"
    # Sites have equal numbers of chunks.
    sparsity = draws.ratio(sums["union"].mean(1), sums["chunks"][:, None, :]).complement  # [R, K]
    overlap = mean_over_present(draws.replicates(sums["overlap"], sums["pairs"]), axis=1)  # [B, R]
    neighbors = out.tables["neighbors"]
    for index, (rule, meaning) in enumerate(_ACTIVE.items()):
        suffix = rule.replace(" ", "_")
        for name, k, text in (
            ("token_sparsity", 1, "a token"),
            ("chunk_sparsity", CHUNK, f"any of {CHUNK} consecutive tokens"),
        ):
            if k.bit_length() <= measured.found.levels and sums["chunks"][:, k.bit_length() - 1].any():
                mean, low, high = (values[index, k.bit_length() - 1] for values in sparsity)
                text = f"sparsity: share of units that are not active ({meaning}) on {text}; {over}"
                out.add_scalar(
                    f"{name}_{suffix}", mean, "fraction", text, interval=draws.between(low, high, documents)
                )
        rows = neighbors[neighbors["rule"] == rule]
        text = f"Jaccard index of the units ({meaning}) of two consecutive tokens; {over}"
        interval = draws.interval(overlap[:, index], documents)
        out.add_scalar(f"neighbor_overlap_{suffix}", rows["mean"].mean(), "", text, interval=interval)
        for name, of in (("within", "the same document"), ("across", "different documents")):
            text = f"null: Jaccard index of the units ({meaning}) of random tokens of {of}; {over}"
            out.add_scalar(f"neighbor_overlap_{name}_{suffix}", rows[name].mean(), "", text)
    out.add_scalar(
        "tokens", measured.found.fold_tokens.sum(), "count", "tokens after the first of each window"
    )
    out.add_scalar("documents", documents, "count", "documents, the independent units of every interval")


def _jackknifed(out: Result, measured: Measured) -> None:
    """Means over sites of numbers that are no means over tokens."""
    unions, level, use = out.tables["union_density"], measured.draws.level, measured.use_replicates
    for index, (rule, meaning) in enumerate(_ACTIVE.items()):
        by_rule = out.tables["concentration"].query("rule == @rule")
        rows = unions[(unions["rule"] == rule) & (unions["chunk"] == CHUNK)]
        numbers = [
            (
                "hot_share",
                by_rule["hot_share"],
                use[:, 1, :, index],
                "fraction",
                f"smallest share of units with 80 % of all firings ({meaning})",
            ),
            (
                "gini_of_use",
                by_rule["gini"],
                use[:, 0, :, index],
                "",
                f"Gini coefficient of how often units are {meaning}",
            ),
        ]
        if len(rows):
            text = (
                f"union density of {CHUNK} consecutive tokens / that of independent tokens with the "
                f"same rates ({meaning})"
            )
            replicates = measured.ratios[:, :, index, CHUNK.bit_length() - 1]
            numbers.append((f"union_ratio_{CHUNK}", rows["ratio"], replicates, "", text))
        for name, values, replicates, unit, text in numbers:
            mean = values.mean()
            interval = Interval.of(
                *jackknife_interval(mean, replicates.mean(1), level), level, JACKKNIFE, measured.documents
            )
            text = f"{text}; mean over {len(values)} sites"
            out.add_scalar(f"{name}_{rule.replace(' ', '_')}", mean, unit, text, interval=interval)


def _notes(out: Result, context: Context, measured: Measured) -> None:
    """Say what the reader has to know."""
    documents, clusters, place = len(measured.found.documents), len(measured.found.clusters), "union_density"
    if context.subject.identity.dtype in {"bfloat16", "float16"}:
        out.note(
            "warning",
            "Small values underflow to exact zeros in this dtype: use float32 for the rule 'nonzero'.",
            place,
        )
    if min(float(rate[0].mean()) for rate in measured.rates) > 0.98:
        out.note(
            "info",
            "More than 98 % of entries are not exactly zero, as expected of SwiGLU and GELU: "
            "read the rule 'in use'.",
            place,
        )
    note_few_documents(out, documents, place, "intervals")
    if clusters < documents:
        out.note(
            "info", f"{documents} documents were grouped into {clusters} clusters to bound memory.", place
        )

"""Activation reuse, computed: from sums by document to tables with nulls and intervals.

Means are ratios of sums over documents; intervals resample documents within domains. Rates of units, which
the nulls need, come from all tokens but the first of each window. Of a mixture the same tables hold the
hidden units of its experts and, by the rule 'routed', the experts themselves.
Shapes: C documents, L sites, R rules, K chunk lengths, B resamples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sparsescope.activations.context import Context
from sparsescope.activations.hidden_layers import experts_by_layer, hidden_or_named
from sparsescope.analysis.activation_reuse.accumulate import MixtureReuse, ReuseAccumulator
from sparsescope.analysis.activation_reuse.tables import CHUNK, Measured
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.errors import SubjectError
from sparsescope.metrics.estimates import note_few_documents
from sparsescope.metrics.jackknife import JACKKNIFE, jackknife_interval
from sparsescope.metrics.statistics import mean_over_present

if TYPE_CHECKING:
    from sparsescope.analysis.activation_reuse import ActivationReuseParams

# By rule: what the units are, and when one is active.
_ACTIVE = {
    "nonzero": ("units", "not exactly zero"),
    "in use": ("units", "in the energy set"),
    "routed": ("experts", "chosen by the router"),
}
# A share of the units that can be used at all: above it, exact zeros say nothing.
_ALMOST_ALL = 0.98


def accumulator(params: ActivationReuseParams, context: Context) -> ReuseAccumulator | MixtureReuse:
    """Return the accumulator to feed in the shared forward pass.

    Raises:
        SubjectError: Some experts of a layer are asked for without the others.
    """
    sites = hidden_or_named(context.subject, params.sites)
    experts, every = experts_by_layer(sites), experts_by_layer(context.subject.hidden_sites())
    for layer, group in experts.items():
        if len(group) < len(every[layer]):
            raise SubjectError(
                "reuse is of the units of all experts of a layer: without the others, most tokens use none",
                where=f"sites of layer {layer}",
                allowed=f"all {len(every[layer])} experts, or none",
                got=f"{len(group)} of them",
                next_step="ask for blocks.*.mlp.experts.hook_post",
            )
    make = MixtureReuse if experts else ReuseAccumulator
    return make(sites, params.use_share, context.corpus.context, params.seed)


def result(
    params: ActivationReuseParams, context: Context, accumulated: ReuseAccumulator | MixtureReuse
) -> Result:
    """Build the result from the sums.

    Raises:
        SubjectError: If there is no token after the first of a window.
    """
    accumulated.finish()
    found = accumulated.units if isinstance(accumulated, MixtureReuse) else accumulated
    if not found.fold_tokens.any():
        raise SubjectError(
            "there is no token after the first of a window, and the first one is not measured",
            where=f"corpus {context.corpus.name}",
            got=f"{context.corpus.n_tokens} tokens in {len(found.documents)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    measured = Measured.of(params, found)
    experts = Measured.of(params, accumulated.experts) if isinstance(accumulated, MixtureReuse) else None
    parts = [measured] if experts is None else [measured, experts]
    out = Result("activation_reuse")
    out.add("union_density", pd.concat([part.unions() for part in parts]))
    out.add("chunk_sparsity", pd.concat([part.chunk_sparsity() for part in parts]))
    out.add("aggregated", pd.concat([part.aggregated() for part in parts]))
    out.add("neighbors", pd.concat([part.neighbors() for part in parts]))
    out.add("lorenz", pd.concat([part.lorenz() for part in parts]))
    out.add("concentration", pd.concat([part.concentration() for part in parts]))
    out.add("upper_bounds", measured.bounds(params, context, experts))
    _scalars(out, measured)
    tokens = found.fold_tokens.sum()
    out.add_scalar("tokens", tokens, "count", "tokens after the first of each window")
    text = "documents, the independent units of every interval"
    out.add_scalar("documents", measured.documents, "count", text)
    _jackknifed(out, measured)
    if experts is not None:
        out.add("load", experts.load())
        _scalars(out, experts)
        _jackknifed(out, experts)
    _notes(out, context, measured, experts)
    return out


def _scalars(out: Result, measured: Measured) -> None:
    """Means over sites, with intervals where they are means over tokens of documents."""
    draws, sums, documents = measured.draws, measured.sums, measured.documents
    over = f"mean over {len(measured.found.places)} sites"
    # Sites have equal numbers of chunks.
    sparsity = draws.ratio(sums["union"].mean(1), sums["chunks"][:, None, :]).complement  # [R, K]
    overlap = mean_over_present(draws.replicates(sums["overlap"], sums["pairs"]), axis=1)  # [B, R]
    neighbors = out.tables["neighbors"]
    for index, rule in enumerate(measured.found.rules):
        units, meaning = _ACTIVE[rule]
        suffix = rule.replace(" ", "_")
        for name, k, text in (
            ("token_sparsity", 1, "a token"),
            ("chunk_sparsity", CHUNK, f"any of {CHUNK} consecutive tokens"),
        ):
            if k.bit_length() <= measured.found.levels and sums["chunks"][:, k.bit_length() - 1].any():
                mean, low, high = (values[index, k.bit_length() - 1] for values in sparsity)
                text = f"sparsity: share of {units} that are not active ({meaning}) on {text}; {over}"
                out.add_scalar(
                    f"{name}_{suffix}", mean, "fraction", text, interval=draws.between(low, high, documents)
                )
        rows = neighbors[neighbors["rule"] == rule]
        text = f"Jaccard index of the {units} ({meaning}) of two consecutive tokens; {over}"
        interval = draws.interval(overlap[:, index], documents)
        out.add_scalar(f"neighbor_overlap_{suffix}", rows["mean"].mean(), "", text, interval=interval)
        for name, of in (("within", "the same document"), ("across", "different documents")):
            text = f"null: Jaccard index of the {units} ({meaning}) of random tokens of {of}; {over}"
            out.add_scalar(f"neighbor_overlap_{name}_{suffix}", rows[name].mean(), "", text)


def _jackknifed(out: Result, measured: Measured) -> None:
    """Means over sites of numbers that are no means over tokens."""
    unions, level, use = out.tables["union_density"], measured.draws.level, measured.use_replicates
    for index, rule in enumerate(measured.found.rules):
        of, meaning = _ACTIVE[rule]
        by_rule = out.tables["concentration"].query("rule == @rule")
        rows = unions[(unions["rule"] == rule) & (unions["chunk"] == CHUNK)]
        numbers = [
            (
                "hot_share",
                by_rule["hot_share"],
                use[:, 1, :, index],
                "fraction",
                f"smallest share of {of} with 80 % of all firings ({meaning})",
            ),
            (
                "gini_of_use",
                by_rule["gini"],
                use[:, 0, :, index],
                "",
                f"Gini coefficient of how often {of} are {meaning}",
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


def _notes(out: Result, context: Context, measured: Measured, experts: Measured | None) -> None:
    """Say what the reader has to know."""
    documents, clusters, place = len(measured.found.documents), len(measured.found.clusters), "union_density"
    if context.subject.identity.dtype in {"bfloat16", "float16"}:
        out.note(
            "warning",
            "Small values underflow to exact zeros in this dtype: use float32 for the rule 'nonzero'.",
            place,
        )
    within = "" if experts is None else " of the experts that a token is sent to"
    if min(_share_nonzero(measured, experts)) > _ALMOST_ALL:
        out.note(
            "info",
            f"More than 98 % of entries{within} are not exactly zero, as expected of SwiGLU and GELU: "
            "read the rule 'in use'.",
            place,
        )
    if experts is not None:
        _note_experts(out)
    note_few_documents(out, documents, place, "intervals")
    if clusters < documents:
        out.note(
            "info", f"{documents} documents were grouped into {clusters} clusters to bound memory.", place
        )


def _share_nonzero(measured: Measured, experts: Measured | None) -> list[float]:
    """Share of entries that are not exactly zero at each place, of experts among those that are computed."""
    shares = [float(rate[0].mean()) for rate in measured.rates]
    if experts is None:
        return shares
    sent = dict(zip(experts.found.experts, (float(rate.mean()) for rate in experts.rates), strict=True))
    return [
        share / max(sent[place.layer], 1e-12) if place.kind == "experts" else share
        for place, share in zip(measured.found.places, shares, strict=True)
    ]


def _note_experts(out: Result) -> None:
    """Say what the units of a mixture are, and how evenly its experts are loaded."""
    load = out.tables["load"]
    even, least, most = (
        100 * float(x) for x in (load["share"].mean(), load["share"].min(), load["share"].max())
    )
    out.note(
        "info",
        "The units of a layer are the hidden units of all its experts; those of an expert are active on no "
        "token that was not sent to it, and 'in use' is judged within each expert. The rule 'routed' counts "
        "experts instead of hidden units. Upper bounds take the share of the units of the experts that the "
        "tokens together reach.",
        "union_density",
    )
    out.note(
        "info",
        f"Load: an expert got {least:.3g} % to {most:.3g} % of the {int(load['tokens'].max())} tokens, with "
        f"{even:.3g} % on average over the experts; see the table load.",
        "concentration",
    )

"""Features, computed: read or fit dictionaries, write where their features are active, describe each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.features import FeaturesParams
from sparsescope.analysis.features.describe import Text, arrays_of, controls, describe
from sparsescope.analysis.features.factors import check_levels, factor_rows
from sparsescope.analysis.features.neighbours import by_direction, by_firing, counterparts, flat_map
from sparsescope.analysis.features.postings import TRAINED, UNTRAINED, Entry, written
from sparsescope.analysis.features.report import NEURONS, Found, add_tables
from sparsescope.analysis.features.retrieval import retrieval_rows
from sparsescope.core.escaping import well_formed
from sparsescope.core.result import Result
from sparsescope.dictionaries.baselines import neuron_basis, random_directions
from sparsescope.dictionaries.documents import drawn
from sparsescope.dictionaries.logit_effects import logit_effects, why_no_logits
from sparsescope.dictionaries.places import place_given, site_named, unique
from sparsescope.dictionaries.rows import NORM_LIMIT
from sparsescope.dictionaries.site_rows import FitRows, fit_rows, sites_of
from sparsescope.dictionaries.small import keep_here, small_snmf, snmf_of, training_said
from sparsescope.errors import SubjectError
from sparsescope.metrics.estimates import DocumentBootstrap, note_few_documents
from sparsescope.models.doctor import precision_note

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.core.feature_store import FeatureWriter

ACTIVE_NEURONS = 32
"""Active neurons (or random directions) of a token, where those stand beside."""
FIT_SHARE = 0.2
"""Share of the text that is read beforehand where dictionaries are given."""
LEAST_FIT = 4096
TOP_LOGITS = 10


def compute(params: FeaturesParams, context: Context) -> Result:
    """Run the analysis."""
    subject, corpus = context.subject, context.corpus
    out = Result("features")
    given = place_given(context.inputs.get("dictionary", ()), subject, params.site)
    if len(corpus.documents) < 2:
        raise SubjectError(
            "labels are made from some documents and tested on others, and there are too few",
            where=f"corpus {corpus.name}",
            allowed="2 documents or more",
            got=f"{len(corpus.documents)} document",
            next_step="read more text (--tokens, --corpus)",
        )
    first, _ = drawn(corpus.documents, params.describe_share, params.seed)
    describing = corpus.select([document.index for document in first])
    entries = [
        Entry(one.label, one.dictionary, one.reads, one.writes, training=one.training) for one in given
    ]
    sites = sites_of([(e.reads, e.reads) for e in entries]) or [site_named(subject, params.site)]
    begun = time.perf_counter()
    read = fit_rows(context, _sample(describing, corpus) if given else describing, sites, params.seed)
    if not given:
        entries = [_fitted(params, context, describing, read, out)]
    check_levels(params, entries)
    seconds = {"fit": time.perf_counter() - begun}
    entries += _baselines(params, entries, read)
    begun = time.perf_counter()
    searched: list[dict[str, Any]] = []
    cut: list[dict[str, Any]] = []
    with written(context, entries, read.facts) as writers:
        seconds["encode"] = time.perf_counter() - begun
        begun = time.perf_counter()
        mask = np.isin([d.index for d in corpus.documents], [d.index for d in first])
        strata = [corpus.domains.index(d.domain) for d in corpus.documents]
        draws = DocumentBootstrap.draw(np.array(strata)[~mask], params.resamples, params.seed, params.level)
        found = [
            _found(params, context, entry, writer, mask, draws)
            for entry, writer in zip(entries, writers, strict=True)
        ]
        pairs = list(_counterparts(params, context, found))
        for one, writer in zip(found, writers, strict=True):
            writer.finish(one.arrays, one.words)
        seconds["describe"] = time.perf_counter() - begun
        add_tables(out, params, found, draws)
        if pairs:
            out.add("counterparts", pairs)
        for one in found:
            if one.entry.kind == TRAINED:
                context.progress(f"search {one.entry.label}", 0, 1, "dictionaries")
                ranks, pruned = retrieval_rows(
                    params, context, one, NORM_LIMIT * read.facts[one.entry.reads.name].median_norm
                )
                searched += ranks
                cut += pruned
                context.progress(f"search {one.entry.label}", 1, 1, "dictionaries")
        if searched:
            out.add("retrieval", searched)
            out.add("pruning", cut)
    factors = factor_rows(params, entries, found, read, context)
    for name, rows in factors.items():
        if rows:
            out.add(name, rows)
    _notes(out, params, context, entries, found, seconds, read)
    return out


def _sample(describing: TokenizedCorpus, corpus: TokenizedCorpus) -> TokenizedCorpus:
    """Documents for norms and means, a share of the text: a store costs little more than one pass."""
    wanted = max(LEAST_FIT, FIT_SHARE * corpus.n_tokens)
    chosen: list[int] = []
    size = 0
    for document in describing.documents:
        if chosen and size + len(document) > wanted:
            continue
        chosen.append(document.index)
        size += len(document)
        if size >= wanted:
            break
    return describing.select(chosen)


def _fitted(
    params: FeaturesParams, context: Context, corpus: TokenizedCorpus, read: FitRows, out: Result
) -> Entry:
    """The SNMF that is made where nothing is given."""
    (name,) = read.rows
    site = context.subject.sites(name)[0]
    arrays = context.step(
        "train-snmf",
        lambda: small_snmf(
            context,
            read.rows[name],
            site,
            params.components,
            params.neuron_share,
            params.iterations,
            params.seed,
        ),
    )
    made, training = snmf_of(arrays, site), training_said(arrays, corpus, site)
    keep_here(context, made, "SNMF", training, params.seed)
    out.note(
        "info",
        f"the SNMF was made here from {len(read.rows[name]):,} tokens of the documents that labels are made "
        "from; give a dictionary (--dictionary) to look at another",
        place="training",
    )
    if not bool(arrays["converged"][0]):
        out.note("info", f"the SNMF was stopped after {params.iterations} iterations", place="training")
    return Entry("SNMF", made, site, site, TRAINED, training)


def _baselines(params: FeaturesParams, entries: Sequence[Entry], read: FitRows) -> list[Entry]:
    """What nobody trained, one of each kind for each site."""
    out: list[Entry] = []
    sites = {entry.reads.name: entry.reads for entry in entries}
    for name, site in sites.items():
        rows = read.rows[name]
        active = min(ACTIVE_NEURONS, site.width)
        where = "" if len(sites) == 1 else f", layer {site.layer}"
        for kind in params.baselines:
            if kind == "neurons":
                made = neuron_basis(rows, active, site=name)
                label = f"Neurons, largest {active}{where}"
            else:
                width = max(entry.dictionary.width for entry in entries if entry.reads.name == name)
                made = random_directions(rows, max(width, 4 * active), active, seed=params.seed, site=name)
                label = f"Random, largest {active}{where}"
            taken = [entry.label for entry in (*entries, *out)]
            out.append(Entry(unique(label, taken), made, site, site, UNTRAINED))
    return out


def _found(
    params: FeaturesParams,
    context: Context,
    entry: Entry,
    writer: FeatureWriter,
    describing: NDArray[np.bool_],
    draws: DocumentBootstrap,
) -> Found:
    """Everything about the features of one dictionary."""
    store = writer.reader()
    text = Text(store, describing)

    def tell(done: int, total: int) -> None:
        context.progress(f"describe {entry.label}", done, total, "features")

    features = describe(text, params.firing_share, params.label_types, draws.weights, tell)
    other, types = controls(text, features, params.seed)
    live = np.array([one.fires > 0 for one in features])
    directions = entry.dictionary.directions.detach().float().cpu().numpy()
    near = by_direction(directions, live)
    arrays = arrays_of(features)
    together = by_firing(store, arrays["threshold"], params.pair_rows)
    places = np.full((len(features), 2), np.nan, np.float32)
    if params.map and entry.kind == TRAINED:
        context.progress(f"map {entry.label}", 0, 1, "maps")
        places = flat_map(directions, live, params.seed)
        context.progress(f"map {entry.label}", 1, 1, "maps")
    arrays |= {
        "near": near.features,
        "near_cosine": near.values,
        "together": together.features,
        "together_jaccard": together.values,
    } | _top_neurons(entry, directions)
    words, reason = _logits(context, entry, arrays)
    return Found(entry, store, text, features, other, types, near, together, places, arrays, words, reason)


def _counterparts(
    params: FeaturesParams, context: Context, found: Sequence[Found]
) -> Iterator[dict[str, Any]]:
    """For each feature the one of each other dictionary that is active alike; beside trained ones only."""
    trained = [one for one in found if one.entry.kind == TRAINED]
    for one in trained:
        for other in trained:
            if other is one:
                continue
            context.progress(f"compare {one.entry.label}", 0, 1, "dictionaries")
            made = counterparts(one.store, other.store, params.pair_rows)
            context.progress(f"compare {one.entry.label}", 1, 1, "dictionaries")
            for number, (feature, value) in enumerate(
                zip(made.features[:, 0], made.values[:, 0], strict=True)
            ):
                if feature >= 0:
                    yield {
                        "name": one.name(number),
                        "other": other.entry.label,
                        "counterpart": other.name(int(feature)),
                        "correlation": float(value),
                    }


def _top_neurons(entry: Entry, directions: NDArray[np.float32]) -> dict[str, Any]:
    """The neurons with the largest entries of each direction, where the site has neurons."""
    if entry.writes.role != "mlp.hook_post":
        return {}
    order = np.argsort(-np.abs(directions), axis=1, kind="stable")[:, :NEURONS]
    return {
        "neurons": order.astype(np.int32),
        "neuron_weights": np.take_along_axis(directions, order, 1).astype(np.float32),
        "magnitude": np.abs(directions).sum(1).astype(np.float32),
    }


def _logits(context: Context, entry: Entry, arrays: dict[str, Any]) -> tuple[dict[int, str], str]:
    """Add effects on logits to the arrays; the strings of their tokens, or the reason why there are none."""
    reason = why_no_logits(context.subject, entry.writes)
    if reason:
        return {}, reason
    context.progress(f"logits {entry.label}", 0, 1, "dictionaries")
    made = logit_effects(context.subject, entry.dictionary.directions.detach(), entry.writes, top=TOP_LOGITS)
    context.progress(f"logits {entry.label}", 1, 1, "dictionaries")
    arrays |= {
        "raised": made.raised,
        "raised_by": made.raised_by,
        "lowered": made.lowered,
        "lowered_by": made.lowered_by,
        "logit_spread": made.spread,
        "logit_kurtosis": made.kurtosis,
        "logit_histogram": made.histogram,
    }
    tokenizer = context.subject.tokenizer
    ids = np.unique(np.concatenate([made.raised, made.lowered], axis=1))
    return {int(token): well_formed(tokenizer.decode([int(token)])) for token in ids}, ""


def _notes(
    out: Result,
    params: FeaturesParams,
    context: Context,
    entries: Sequence[Entry],
    found: Sequence[Found],
    seconds: dict[str, float],
    read: FitRows,
) -> None:
    store = found[0].store
    left = store.n_rows - store.n_counted
    out.note(
        "info",
        f"{left:,} of {store.n_rows:,} tokens were not encoded: those at position 0 of a window, and those "
        "of more than ten median norms; contexts show them without a value",
        place="features",
    )
    dense = [one.entry.label for one in found if (one.arrays["threshold"] > 0).mean() > 0.5]
    if dense:
        out.note(
            "info",
            f"most features of {', '.join(dense)} are active on more than {100 * params.firing_share:g} % of "
            "the tokens; they fire where they are among their strongest, on that share",
            place="features",
        )
    known = [e for e in entries if isinstance(e.training.get("documents"), dict)]
    if known and context.inputs.get("dictionary"):
        out.note(
            "info",
            "the dictionaries may have been trained on these documents: labels are made and tested on "
            "different ones, and nothing here says how well a dictionary describes new text "
            "(dictionary_quality does)",
            place="features",
        )
    for one in found:
        if one.no_logits:
            out.note("info", f"{one.entry.label}: no logits, since {one.no_logits}", place="feature")
            break
    documents = len(found[0].text.scored_documents)
    note_few_documents(out, documents, "label_scores")
    steps = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    passes = read.seen / max(1, context.corpus.n_kept)
    out.note(
        "info",
        f"{steps}; {1 + passes:.2f} passes through the model up to layer "
        f"{max(entry.reads.layer for entry in entries)}",
        place="cost",
    )
    out.note(
        "info", precision_note(context.subject.identity.origin_precision, context.subject.dtype), "precision"
    )

"""Tables and numbers of ``features`` from what was found about each dictionary.

Shapes: F features; D documents; B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.features.contexts import contexts_of
from sparsescope.analysis.features.describe import CLASS, NONE, PREVIOUS, TOKEN, Described, Text
from sparsescope.analysis.features.domains import FOUND, DomainLinks, domain_links
from sparsescope.analysis.features.postings import TRAINED, Entry
from sparsescope.core.escaping import display
from sparsescope.core.numbers import slug_of
from sparsescope.metrics.feature_counts import density_histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.analysis.features import FeaturesParams
    from sparsescope.analysis.features.neighbours import Neighbours
    from sparsescope.core.feature_store import FeatureStore
    from sparsescope.core.result import Result
    from sparsescope.metrics.estimates import DocumentBootstrap

OWN, OTHER, RANDOM = "its own label", "label of another feature as dense", "random tokens as frequent"
NEURONS = 8
MOST_SHOWN = 50
"""Features whose contexts are kept as tables, all dictionaries together: a report holds all of them."""
_WORDS = 5


@dataclass(slots=True)
class Found:
    """What was found about the features of one dictionary.

    Attributes:
        entry: The dictionary.
        store: Where its features are active.
        text: The text.
        features: Each described.
        other: float64 [F], area under the curve with the label of another feature.
        types: float64 [F], with random tokens.
        near: By direction.
        together: By firing.
        places: float32 [F, 2], on the map.
        arrays: What the store keeps of each feature.
        words: Strings of the tokens of the logits.
        no_logits: Why there are none.
    """

    entry: Entry
    store: FeatureStore
    text: Text
    features: list[Described]
    other: NDArray[np.float64]
    types: NDArray[np.float64]
    near: Neighbours
    together: Neighbours
    places: NDArray[np.float32]
    arrays: dict[str, Any]
    words: dict[int, str]
    no_logits: str

    def name(self, feature: int) -> str:
        """The name of a feature in tables; empty of -1, which stands for none."""
        return "" if feature < 0 else f"{self.entry.label}/{feature}"

    @property
    def live(self) -> list[int]:
        """Features that fire."""
        return [number for number, one in enumerate(self.features) if one.fires > 0]


def add_tables(out: Result, params: FeaturesParams, found: Sequence[Found], draws: DocumentBootstrap) -> None:
    """Add all tables that every dictionary has, and the numbers that stand alone."""
    domains: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    taken: set[str] = set()
    scores: list[dict[str, Any]] = []
    for one in found:
        links = _links(params, one)
        rows += list(_features(one, links, draws))
        domains += list(_domains(one, links))
        of_it = list(_scores(one, draws))
        scores += of_it
        _scalars(out, one, of_it, links, draws, slug_of(one.entry.label, taken))
    out.add("features", rows)
    placed = [row for one in found for row in _map(one)]
    if placed:
        drawn = {row["name"]: row for row in rows}
        out.add("map", [{**row, **_on_map(drawn[row["name"]])} for row in placed])
    out.add("label_scores", scores)
    out.add("label_kinds", [row for one in found for row in _kinds(one)])
    out.add("densities", [row for one in found for row in _densities(one)])
    if domains:
        out.add("domains", domains)
    trained = sum(one.entry.kind == TRAINED for one in found)
    each = max(1, min(params.shown, MOST_SHOWN // max(1, trained)))
    shown = [(one, number) for one in found for number in _drawn(params, one, each)]
    out.add("contexts", [row for one, number in shown for row in _contexts(params, one, number)])
    out.add("neurons", [row for one, number in shown for row in _neurons(one, number)])


def _links(params: FeaturesParams, one: Found) -> DomainLinks | None:
    text = one.text
    firings = np.stack(
        [
            f.by_document if len(f.by_document) else np.zeros(len(one.store.documents), np.int32)
            for f in one.features
        ],
        axis=1,
    )
    tokens = np.bincount(text.document[one.store.counted], minlength=len(one.store.documents))
    return domain_links(firings, tokens, np.asarray(one.store.domain_of), params.permutations, params.seed)


def _features(one: Found, links: DomainLinks | None, draws: DocumentBootstrap) -> Any:
    counted = max(1, one.store.n_counted)
    raised, lowered = one.arrays.get("raised"), one.arrays.get("lowered")
    low = np.full(len(one.features), np.nan)
    high = low.copy()
    scored = [n for n, f in enumerate(one.features) if f.replicates is not None]
    if scored:
        low[scored], high[scored] = draws.ends(
            np.stack([f.replicates for f in one.features if f.replicates is not None], axis=1)
        )
    for number, f in enumerate(one.features):
        domain = int(links.domain[number]) if links is not None else -1
        yield {
            "name": one.name(number),
            "dictionary": one.entry.label,
            "feature": number,
            "label": f.label,
            "auroc": f.auroc,
            "auroc_low": low[number],
            "auroc_high": high[number],
            "auroc_control": one.other[number],
            "recall": f.recall,
            "precision": f.precision,
            "density": f.active / counted,
            "fires": f.fires / counted,
            "mean": f.mean,
            "max": f.max,
            "purity": f.purity,
            "strongest": one.text.quoted(f.strongest.tolist()),
            "raises": _tokens(one, raised, number),
            "lowers": _tokens(one, lowered, number),
            "domain": one.store.domains[domain] if domain >= 0 else None,
            "domain_ratio": links.ratio[number] if links is not None and domain >= 0 else math.nan,
            "domain_fdr": links.fdr[number] if links is not None else math.nan,
            "nearest": one.name(int(one.near.features[number, 0])),
            "nearest_cosine": float(one.near.values[number, 0]),
            "fires_with": one.name(int(one.together.features[number, 0])),
            "fires_with_jaccard": float(one.together.values[number, 0]),
        }


def _map(one: Found) -> Any:
    for number in np.flatnonzero(np.isfinite(one.places[:, 0])).tolist():
        x, y = one.places[number].tolist()
        yield {"name": one.name(number), "dictionary": one.entry.label, "x": x, "y": y}


def _on_map(row: dict[str, Any]) -> dict[str, Any]:
    """What the map says of a feature beside its place."""
    domain = row["domain"] if row["domain_fdr"] <= FOUND else None
    return {"label": row["label"], "domain": domain, "nearest_cosine": row["nearest_cosine"]}


def _tokens(one: Found, ids: NDArray[np.int32] | None, number: int) -> str:
    if ids is None:
        return ""
    return ", ".join(
        f"'{display(one.words[int(token)], limit=24, markup=False)}'" for token in ids[number][:_WORDS]
    )


def _scores(one: Found, draws: DocumentBootstrap) -> Any:
    """Medians over features of the areas under the curve, of labels and of controls."""
    own = np.array([f.auroc for f in one.features])
    scored = np.isfinite(own)
    if not scored.any():
        return
    replicates = np.stack([f.replicates for f in one.features if f.replicates is not None], axis=1)
    low, high = draws.ends(np.nanmedian(replicates, axis=1))
    documents = len(one.text.scored_documents)
    for name, values, ends in (
        (OWN, own, (float(low), float(high))),
        (OTHER, one.other, (math.nan, math.nan)),
        (RANDOM, one.types, (math.nan, math.nan)),
    ):
        usable = values[np.isfinite(values)]
        if not len(usable):
            continue
        yield {
            "dictionary": one.entry.label,
            "kind": one.entry.kind,
            "predictor": name,
            "features": len(usable),
            "median": float(np.median(usable)),
            "low": ends[0],
            "high": ends[1],
            "lower_quarter": float(np.quantile(usable, 0.25)),
            "upper_quarter": float(np.quantile(usable, 0.75)),
            "above_90": float((usable > 0.9).mean()),
            "documents": documents,
        }


def _kinds(one: Found) -> Any:
    for kind in (TOKEN, PREVIOUS, CLASS, NONE):
        of_it = [f for f in one.features if f.fires > 0 and f.kind == kind]
        values = [f.auroc for f in of_it if math.isfinite(f.auroc)]
        if of_it:
            yield {
                "dictionary": one.entry.label,
                "kind": kind,
                "features": len(of_it),
                "median": float(np.median(values)) if values else math.nan,
            }


def _densities(one: Found) -> Any:
    made = density_histogram([f.active for f in one.features], max(1, one.store.n_counted))
    for number, count in enumerate(made.features.tolist()):
        yield {
            "dictionary": one.entry.label,
            "density_from": float(10 ** made.edges[number]),
            "density_to": float(10 ** made.edges[number + 1]),
            "features": count,
            "share": count / len(one.features),
        }


def _domains(one: Found, links: DomainLinks | None) -> Any:
    if links is None:
        return
    fires = max(1, int((links.domain >= 0).sum()))
    documents = np.bincount(one.store.domain_of, minlength=len(one.store.domains))
    found, null = links.fdr <= FOUND, links.null_fdr <= FOUND
    for number, name in enumerate(one.store.domains):
        yield {
            "dictionary": one.entry.label,
            "domain": name,
            "features": int((found & (links.domain == number)).sum()),
            "share": float((found & (links.domain == number)).sum() / fires),
            "null_share": float((null & (links.null_domain == number)).sum() / fires),
            "documents": int(documents[number]),
        }


def _drawn(params: FeaturesParams, one: Found, shown: int) -> list[int]:
    """Features whose contexts are kept as tables, drawn at random from those that fire."""
    if one.entry.kind != TRAINED or not one.live:
        return []
    random = np.random.default_rng([params.seed, 29])
    return sorted(random.choice(one.live, min(shown, len(one.live)), replace=False).tolist())


def _contexts(params: FeaturesParams, one: Found, number: int) -> Any:
    store = one.store
    made = contexts_of(store, number, top=params.top, window=params.window, seed=params.seed)
    for place, context in enumerate(made):
        begin = int(store.offsets[context.document])
        words = store.texts(store.ids[context.begin : context.end])
        for step, (word, value) in enumerate(zip(words, context.values.tolist(), strict=True)):
            yield {
                "name": one.name(number),
                "context": place,
                "group": context.group,
                "document": store.documents[context.document],
                "position": context.begin + step - begin,
                "token_text": word,
                "value": value,
                "peak": int(context.begin + step == context.peak),
            }


def _neurons(one: Found, number: int) -> Any:
    if "neurons" not in one.arrays:
        return
    whole = float(one.arrays["magnitude"][number])
    for neuron, weight in zip(
        one.arrays["neurons"][number], one.arrays["neuron_weights"][number], strict=True
    ):
        if weight != 0:
            yield {
                "name": one.name(number),
                "neuron": int(neuron),
                "weight": float(weight),
                "share": float(abs(weight) / whole),
            }


def _scalars(
    out: Result,
    one: Found,
    scores: Sequence[dict[str, Any]],
    links: DomainLinks | None,
    draws: DocumentBootstrap,
    slug: str,
) -> None:
    label, documents = one.entry.label, len(one.text.scored_documents)
    for row in scores:
        name = {OWN: "label_auroc", OTHER: "control_auroc"}.get(row["predictor"])
        if name is None:
            continue
        out.add_scalar(
            f"{name}_{slug}",
            row["median"],
            "",
            f"median over {row['features']} features of {label} of the area under the ROC curve of firing "
            f"against {row['predictor']}, on {documents} documents that labels were not made from",
            direction="higher" if name == "label_auroc" else "none",
            interval=draws.between(row["low"], row["high"], documents),
            title=("Labels" if name == "label_auroc" else "Labels of other features")
            + f" predict firing, {label}",
        )
        if name == "label_auroc":
            out.add_scalar(
                f"labelled_{slug}",
                row["above_90"],
                "fraction",
                f"features of {label} whose label predicts firing with an area above 0.9 / those that "
                "are scored",
                direction="higher",
                title=f"Features that a label predicts well, {label}",
            )
    out.add_scalar(
        f"fire_{slug}",
        len(one.live) / max(1, len(one.features)),
        "fraction",
        f"features of {label} that fire on one of {one.store.n_counted} tokens / its "
        f"{len(one.features)} features",
        title=f"Features that fire, {label}",
    )
    if links is not None:
        fires = max(1, int((links.domain >= 0).sum()))
        for name, values, what in (
            ("domain_specific", links.fdr, "domains"),
            ("domain_specific_null", links.null_fdr, "domains that were dealt to documents at random"),
        ):
            out.add_scalar(
                f"{name}_{slug}",
                float((values <= FOUND).sum() / fires),
                "fraction",
                f"features of {label} whose firing is linked with {what} at a false discovery rate of "
                f"{100 * FOUND:g} % (mutual information against permuted documents) / those that fire",
                title=f"Features of one domain, {label}" + (", chance" if name.endswith("null") else ""),
            )

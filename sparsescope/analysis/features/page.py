"""The page of one feature, and the list of features drawn at random: panels of escaped text.

The page reads the store, so every feature has one; the list is made of tables alone, so that it can be drawn
where the store is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.features.contexts import RANDOM, STRONGEST, FeatureContext, contexts_of
from sparsescope.core.columns import Column
from sparsescope.viz.panel import BARS, Panel, Tag, tag
from sparsescope.viz.sentences import percent, subject_prefix
from sparsescope.viz.token_strip import Scale, mark, visible
from sparsescope.viz.tokens import display

if TYPE_CHECKING:
    import pandas as pd

    from sparsescope.core.feature_store import FeatureStore
    from sparsescope.core.result import Result

_ACTIVATION = Column("activation", "value", "Activation of the feature.")
_BINS = 40
_LISTED = {STRONGEST: 4}  # contexts of each group in the list; one of the others
_READOUT = "Point at a token, or go to one with Tab and through them with the arrow keys; a click keeps it."
_HINT = "filter: token, label, logit"


def feature_page(result: Result, row: Any, store: FeatureStore | None, others: Sequence[Any]) -> Panel:
    """Everything about one feature.

    Args:
        result: What it is of.
        row: Its row of the table ``features``.
        store: Where it is active; None where that is not there any more.
        others: Rows of ``counterparts``.
    """
    number = int(row.feature)
    body: list[Tag] = [_facts(result, row, store, others)]
    subtitle = f"{subject_prefix(result)}active on {percent(row.density)} of the tokens"
    if row.fires < row.density * 0.999:
        subtitle += f", fires on {percent(row.fires)}"
    title = f"{row.name}: {row.label}" if row.label else f"{row.name}: no label"
    if store is None:
        body.append(tag("p", "The activations are not here: run the analysis again to see contexts."))
    else:
        _, values = store.feature(number)
        body.append(_histogram(values[values > 0]))
        params = result.provenance.get("params") or {}
        made = contexts_of(
            store,
            number,
            top=int(params.get("top", 8)),
            window=int(params.get("window", 12)),
            seed=int(params.get("seed", 0)),
        )
        body += _strips(store, made, values)
    alt = (
        f"{row.name}. Label: {row.label or 'none'}; it predicts firing with {_interval(row)}. "
        f"Strongest tokens: {row.strongest}. Raises: {row.raises or 'not known'}."
    )
    return Panel(
        title=title,
        subtitle=subtitle,
        alt=alt,
        body=(
            tag("p", _READOUT, class_="readout", data_readout="", aria_live="polite"),
            tag("div", *body, class_="feature-page"),
        ),
        caption="Color is the activation, from none to the largest of this feature.",
        rows=30,
        most_rows=30,
    )


def feature_list(result: Result) -> Panel:
    """Features that were drawn at random, with some of their contexts."""
    table, features = result.tables["contexts"], result.tables["features"].set_index("name")
    items = []
    for name, part in table.groupby("name", sort=False):
        if name in features.index:
            items.append(_item(result, str(name), features.loc[name], part))
    dictionaries = list(dict.fromkeys(str(name).rpartition("/")[0] for name in table["name"]))
    words = f"{len(items)} features of {', '.join(dictionaries)}"
    count = tag("span", f"{len(items)} of {len(items)}", data_count="", aria_live="polite")
    field = tag("input", type="search", placeholder=_HINT, aria_label="Filter the features", data_filter="")
    first = ", ".join(
        f"{name}: {features.loc[name, 'label'] or 'no label'}"
        for name in list(dict.fromkeys(table["name"]))[:3]
    )
    return Panel(
        title=f"{words}, drawn at random from those that fire",
        subtitle=f"{subject_prefix(result)}label, its test on other documents, and contexts; none was chosen",
        alt=f"A list of {words} with labels and contexts. The first: {first}.",
        body=(
            tag("div", field, count, class_="find"),
            tag("p", _READOUT, class_="readout", data_readout="", aria_live="polite"),
            tag("div", *items, class_="items"),
        ),
        caption="Color is the activation, from none to the largest of each feature.",
        rows=2 * len(items),
        most_rows=22,
    )


def _item(result: Result, name: str, row: Any, contexts: pd.DataFrame) -> Tag:
    """One feature of the list; opened, it shows its contexts."""
    said = [f"area {row.auroc:.2f}"] if math.isfinite(row.auroc) else ["not tested"]
    said.append(f"fires on {percent(row.fires)}")
    head = tag(
        "summary",
        tag("b", name),
        " ",
        row.label or "no label",
        " ",
        tag("span", f"({', '.join(said)})", class_="number"),
    )
    scale = Scale.of(np.append(contexts["value"].to_numpy(float), [0.0, float(row["max"])]))
    parts: list[Tag] = [
        tag(
            "div",
            *_pair("Raises", _chips(row.raises)),
            *_pair("Lowers", _chips(row.lowers)),
            class_="facts",
        )
    ]
    shown: dict[str, int] = {}
    for _, part in contexts.groupby("context", sort=True):
        group = str(part["group"].iloc[0])
        shown[group] = shown.get(group, 0) + 1
        if group == RANDOM or shown[group] > _LISTED.get(group, 1):
            continue
        if shown[group] == 1:
            parts.append(tag("p", group, class_="group"))
        rows = zip(part["token_text"], part["value"], part["position"], part["peak"], strict=True)
        parts.append(_strip(rows, scale))
    searched = " ".join([name, row.label, row.strongest, row.raises, row.lowers, str(row.domain or "")])
    return tag("details", head, *parts, data_item=searched)


def _facts(result: Result, row: Any, store: FeatureStore | None, others: Sequence[Any]) -> Tag:
    """What is known of a feature, line by line."""
    lines: list[Tag] = []
    if row.label:
        text = f"predicts firing in other documents with area {_interval(row)}"
        if math.isfinite(row.auroc_control):
            text += f" (the label of another feature as dense: {row.auroc_control:.2f})"
        if math.isfinite(row.recall):
            text += f"; covers {percent(row.recall)} of the firings, and it fires on "
            text += f"{percent(row.precision)} of what it names"
        lines += _pair("Label", [tag("b", row.label), " ", text])
    else:
        lines += _pair("Label", ["none: it fires on no token more often than chance would give"])
    lines += _pair("Strongest on", [*_chips(row.strongest), f" purity {percent(row.purity)}"])
    arrays = store.arrays if store is not None else {}
    number = int(row.feature)
    if store is not None and "raised" in arrays:
        for title, ids, values in (("Raises", "raised", "raised_by"), ("Lowers", "lowered", "lowered_by")):
            lines += _pair(
                title, _valued(store.texts(arrays[ids][number]), arrays[values][number], "{:+.2f}")
            )
    elif row.raises:
        lines += _pair("Raises", _chips(row.raises)) + _pair("Lowers", _chips(row.lowers))
    if row.domain and math.isfinite(row.domain_fdr):
        found = "linked with the domain" if row.domain_fdr <= 0.05 else "no link with domains is found"
        lines += _pair(
            "Text",
            [
                f"fires {row.domain_ratio:.3g} times as often in {row.domain}; {found} "
                f"(FDR {row.domain_fdr:.2g})"
            ],
        )
    if "neurons" in arrays:
        weights, whole = arrays["neuron_weights"][number], float(arrays["magnitude"][number])
        names = [str(neuron) for neuron in arrays["neurons"][number]]
        shares = ", ".join(percent(abs(float(weight)) / whole) for weight in weights[:3]) if whole else ""
        lines += _pair(
            "Neurons",
            [
                *_valued(names, weights, "{:+.2f}"),
                f" the first have {shares} of the direction" if shares else "",
            ],
        )
    lines += _near(result, row)
    for other in others:
        label = _label_of(result, other.counterpart)
        lines += _pair(
            f"In {other.other}", [f"{other.counterpart}, r = {other.correlation:.2f}: {label or 'no label'}"]
        )
    return tag("div", *lines, class_="facts")


def _near(result: Result, row: Any) -> list[Tag]:
    out = []
    if row.nearest and math.isfinite(row.nearest_cosine):
        text = (
            f"{row.nearest}, cosine {row.nearest_cosine:.2f}: {_label_of(result, row.nearest) or 'no label'}"
        )
        out += _pair("Nearest", [text])
    if row.fires_with and math.isfinite(row.fires_with_jaccard):
        label = _label_of(result, row.fires_with) or "no label"
        text = f"{row.fires_with}, Jaccard {row.fires_with_jaccard:.2f}: {label}"
        out += _pair("Fires with", [text])
    return out


def _label_of(result: Result, name: str) -> str:
    table = result.tables["features"]
    found = table["label"][table["name"] == name]
    return str(found.iloc[0]) if len(found) else ""


def _pair(what: str, parts: Sequence[Tag | str]) -> list[Tag]:
    return [tag("span", what, class_="what"), tag("span", *parts)]


def _chips(quoted: str) -> list[Tag | str]:
    """Quoted tokens of a table as they stand there: what is in a token cannot be told from what separates."""
    return [tag("span", quoted, class_="word")] if quoted else ["not known"]


def _valued(words: Sequence[str], values: Iterable[float], form: str) -> list[Tag | str]:
    parts: list[Tag | str] = []
    for word, value in zip(words, values, strict=True):
        text = display(word, spaces=True, limit=40, markup=False) or "∅"
        parts += [tag("span", *visible(text), class_="word"), f" {form.format(float(value))}  "]
    return parts


def _interval(row: Any) -> str:
    if not math.isfinite(row.auroc):
        return "an area that is not tested: too few firings in other documents"
    ends = f" [{row.auroc_low:.2f}, {row.auroc_high:.2f}]" if math.isfinite(row.auroc_low) else ""
    return f"{row.auroc:.2f}{ends}"


def _histogram(values: np.ndarray) -> Tag:
    """How strong its activations are, as bars: their number in bins of equal width."""
    if not len(values):
        return tag("p", "It is active on no token of this text.")
    high = float(values.max())
    counts = np.histogram(values, _BINS, range=(0.0, high if high > 0 else 1.0))[0]
    steps = np.ceil(np.sqrt(counts / counts.max()) * BARS).astype(int)
    bars = [
        tag("span", class_=f"bar-{step}", title=f"{count:,} tokens up to {high * (place + 1) / _BINS:.3g}")
        for place, (step, count) in enumerate(zip(steps.tolist(), counts.tolist(), strict=True))
    ]
    label = f"Histogram of {len(values):,} activations up to {high:.3g}"
    return tag(
        "div",
        tag("p", f"{len(values):,} activations (heights are square roots of counts)", class_="group"),
        tag("div", *bars, class_="bars", role="img", aria_label=label),
        tag("div", tag("span", "0"), tag("span", f"{high:.3g}"), class_="ends"),
    )


def _strips(store: FeatureStore, made: Sequence[FeatureContext], values: np.ndarray) -> list[Tag]:
    """The contexts, group by group."""
    scale = Scale.of(np.append(np.maximum(values, 0).astype(float), 0.0))
    scale = Scale(0.0, scale.high, 0.0, False, scale.above)
    out: list[Tag] = []
    before = ""
    for context in made:
        if context.group != before:
            out.append(tag("p", context.group, class_="group"))
            before = context.group
        words = store.texts(store.ids[context.begin : context.end])
        begin = int(store.offsets[context.document])
        positions = range(context.begin - begin, context.end - begin)
        peaks = (row == context.peak for row in range(context.begin, context.end))
        out.append(_strip(zip(words, context.values.tolist(), positions, peaks, strict=True), scale))
    return out


def _strip(rows: Iterable[tuple[Any, ...]], scale: Scale) -> Tag:
    """One context as a line; tokens on which the feature is not active are plain text."""
    parts: list[Tag | str] = []
    first = True
    for word, value, position, peak in rows:
        text, value = str(word), float(value)
        if value == 0 and not peak:
            parts += visible(display(text.replace("\n", " ⏎ "), spaces=False, limit=60, markup=False))
            continue
        (one, *_) = mark(
            text, value, position, _ACTIVATION, f"{scale.shade(value)}{' peak' if peak else ''}", first=first
        )
        parts.append(one)
        first = False
    return tag("div", *parts, class_="strip line")

"""What ``features`` found, in sentences."""

from __future__ import annotations

from typing import Any

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, rows, said

TITLES = {
    "label_auroc_{}": "Labels predict firing, {}",
    "control_auroc_{}": "Labels of other features predict firing, {}",
    "labelled_{}": "Features that a label predicts well, {}",
    "fire_{}": "Features that fire, {}",
    "domain_specific_{}": "Features of one domain, {}",
    "domain_specific_null_{}": "Features of one domain, {}, chance",
}


def statements(result: Result) -> list[Statement]:
    """Whether labels predict firing, beside single neurons, and how many features are of one domain."""
    return [*_labels(result), *_domains(result)]


def _slugs(result: Result) -> list[tuple[str, str]]:
    """Trained dictionaries, by label, with what ends the names of their numbers."""
    table = rows(result, "label_scores", kind="dictionary")
    if table is None:
        return []
    names = list(dict.fromkeys(table["dictionary"]))
    begin, title = "label_auroc_", TITLES["label_auroc_{}"]
    ends = {s.title: name.removeprefix(begin) for name, s in result.scalars.items() if name.startswith(begin)}
    return [(name, ends[title.format(name)]) for name in names if title.format(name) in ends]


def _labels(result: Result) -> list[Statement]:
    parts, named = [], []
    for label, slug in _slugs(result)[:3]:
        scalar, share = result.scalars[f"label_auroc_{slug}"], result.scalars[f"labelled_{slug}"]
        control = result.scalars.get(f"control_auroc_{slug}")
        text = f"{label} {said(scalar)}"
        text += f" (another feature's label: {said(control)})" if control is not None else ""
        parts.append(f"{text}, above 0.9 for {said(share)} of its features")
        named += [scalar.name, share.name]
    if not parts:
        return []
    text = (
        "How well a short label predicts where a feature fires in other documents, the median area under the "
        f"ROC curve (0.5 is chance): {'; '.join(parts)} ({basis(result.scalars[named[0]])})."
    )
    beside = _neurons(result)
    return [Statement(f"{text} {beside}".rstrip(), "labels", tuple(named))]


def _neurons(result: Result) -> str:
    """What single neurons do beside them."""
    table = rows(result, "label_scores", kind="baseline", predictor="its own label")
    if table is None or not len(table):
        return ""
    row: Any = next(table.itertuples())
    return f"Beside them: {row.dictionary} {row.median:.3g}."


def _domains(result: Result) -> list[Statement]:
    parts, named = [], []
    for label, slug in _slugs(result)[:3]:
        scalar = result.scalars.get(f"domain_specific_{slug}")
        null = result.scalars.get(f"domain_specific_null_{slug}")
        if scalar is not None and null is not None:
            parts.append(f"of {label} {said(scalar)} (chance: {said(null)})")
            named.append(scalar.name)
    if not parts:
        return []
    text = (
        "Features whose firing depends on the kind of text, against kinds dealt to whole documents: "
        f"{', '.join(parts)}."
    )
    return [Statement(text, "domains", tuple(named))]

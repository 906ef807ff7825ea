"""The numbers of ``dictionary_quality`` that stand alone, named after the dictionaries."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsescope.analysis.dictionary_quality.entries import DICTIONARY, Entry
from sparsescope.analysis.dictionary_quality.splice import ZERO

if TYPE_CHECKING:
    from sparsescope.analysis.dictionary_quality.report import Reporter
    from sparsescope.core.result import Result

_MOST = 48  # letters of a label in a name


def add_scalars(out: Result, report: Reporter, rules: Sequence[Mapping[str, Any]] = ()) -> None:
    """Add the numbers of every dictionary, what rules differ by over seeds, and the scale of the losses."""
    taken: set[str] = set()
    for number, entry in report.entries:
        if entry.kind == DICTIONARY:
            slug = _slug(entry.label, taken)
            _of_entry(out, report, number, entry, slug)
    for row in rules:
        number = next(n for n, entry in report.entries if entry.writes.name == row["site"])
        out.add_scalar(
            f"fvu_{_plain(row['first'])}_minus_{_plain(row['second'])}",
            row["difference"],
            "",
            f"variance unexplained by {row['first']} minus that by {row['second']}, mean over {row['seeds']} "
            f"seeds (one seed: {row['least']:+.3g} to {row['most']:+.3g}), of the same documents",
            interval=report.draws[number].between(row["low"], row["high"], row["documents"]),
            title=f"Variance unexplained, {row['first']} minus {row['second']}",
        )
    if report.spliced is None or report.losses is None:
        return
    tokens = int(report.spliced.targets.sum())
    for site in dict.fromkeys(entry.writes.name for _, entry in report.entries):
        layer = next(entry.writes.layer for _, entry in report.entries if entry.writes.name == site)
        value, low, high = report.rises[f"{ZERO} {site}"]
        many = len({entry.writes.name for _, entry in report.entries}) > 1
        out.add_scalar(
            f"zero_rise_{_slug(site, taken)}" if many else "zero_rise",
            value,
            "nats",
            f"mean loss with the site of layer {layer} set to zero minus the loss of the model, {tokens} "
            "tokens",
            interval=report.losses.between(low, high),
            title=f"Rise of the loss, layer {layer} set to zero",
        )
    spliced, losses = report.spliced, report.losses
    found = losses.ratio(spliced.nll, spliced.targets)
    out.add_scalar(
        "model_loss",
        float(found.mean),
        "nats",
        "mean loss of the next token of the model as it is, on the tokens that dictionaries are spliced in "
        "on",
        interval=losses.between(found.low, found.high),
        direction="lower",
        title="Loss of the model as it is",
    )


def _of_entry(out: Result, report: Reporter, number: int, entry: Entry, slug: str) -> None:
    """FVU, L0, rise of the loss and dead share of one dictionary."""
    place, draws, found = report.places[number], report.draws[number], report.estimates[entry.label]
    documents = report.documents(number)
    where = f"{place.tokens} tokens of {documents} documents that it has not seen, as far as that is known"
    value, low, high = found["fvu"]
    out.add_scalar(
        f"fvu_{slug}",
        value,
        "fraction",
        f"sum of squared errors of {entry.label} / sum of squared distances to the mean, over {where}",
        interval=draws.between(low, high, documents),
        direction="lower",
        title=f"Variance unexplained, {entry.label}",
    )
    value, low, high = found["l0"]
    out.add_scalar(
        f"l0_{slug}",
        value,
        "",
        f"mean number of features of {entry.label} that are active on a token, over {where}",
        interval=draws.between(low, high, documents),
        title=f"Active features of a token, {entry.label}",
    )
    if entry.label in report.rises and report.spliced is not None and report.losses is not None:
        value, low, high = report.rises[entry.label]
        out.add_scalar(
            f"loss_rise_{slug}",
            value,
            "nats",
            f"mean loss with the reconstruction of {entry.label} in place of the activations minus the loss "
            f"of the model, on the same {int(report.spliced.targets.sum())} tokens",
            interval=report.losses.between(low, high),
            direction="lower",
            title=f"Rise of the loss, {entry.label} spliced in",
        )
    counted = entry.facts.get("dead_share")
    if isinstance(counted, int | float) and math.isfinite(counted):
        dead, rows = float(counted), entry.facts.get("dead_counted_rows")
        of = (
            f"the {rows} tokens counted after its training"
            if rows
            else "the tokens counted after its training"
        )
    else:
        dead, of = float((place.active[entry.label] == 0).mean()), f"{place.tokens} evaluation tokens"
    out.add_scalar(
        f"dead_share_{slug}",
        dead,
        "fraction",
        f"features of {entry.label} that are active on none of {of} / its features",
        direction="lower",
        title=f"Dead features, {entry.label}",
    )


def _plain(label: str) -> str:
    """A label as part of a name."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")[:_MOST].strip("_") or "dictionary"


def _slug(label: str, taken: set[str]) -> str:
    """A label as part of a name, unique."""
    plain = _plain(label)
    found, number = plain, 2
    while found in taken:
        found, number = f"{plain}_{number}", number + 1
    taken.add(found)
    return found

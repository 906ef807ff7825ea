"""What dictionary quality found, in sentences."""

from __future__ import annotations

import math
import re
from typing import Any

from sparsescope.core.numbers import Scalar, format_number
from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, rows, said

TITLES = {
    "fvu_{}": "Variance unexplained, {}",
    "l0_{}": "Active features of a token, {}",
    "loss_rise_{}": "Rise of the loss, {} spliced in",
    "dead_share_{}": "Dead features, {}",
    "zero_rise": "Rise of the loss, layer set to zero",
    "model_loss": "Loss of the model as it is",
}
_WORDS = {
    "mlp.hook_post": "the hidden layer of the MLP",
    "mlp.hook_out": "the output of the MLP",
    "mlp.hook_in": "the input of the MLP",
    "attn.hook_z": "the heads of attention",
    "attn.hook_out": "the output of attention",
    "hook_in": "the residual stream before the block",
    "hook_resid_pre": "the residual stream before the block",
    "hook_out": "the residual stream after the block",
    "hook_resid_post": "the residual stream after the block",
}


def statements(result: Result) -> list[Statement]:
    """How much is explained with how many features, what splicing costs, how many features are dead."""
    return [*_explained(result), *_loss(result), *_dead(result)]


def plain(label: object) -> str:
    """A label as it stands in a sentence."""
    return str(label).replace("_", " ")


def place_of(row: Any) -> str:
    """A site in words: ``the hidden layer of the MLP in layer 3``."""
    role = re.sub(r"^blocks\.\d+\.", "", str(row.site))
    return f"{_WORDS.get(role, role.replace('_', ' ').replace('.', ' '))} in layer {row.layer:g}"


def _dictionaries(result: Result) -> list[Any]:
    """Dictionaries of the first site, the least unexplained variance first."""
    table = rows(result, "quality", kind="dictionary")
    if table is None:
        return []
    table = table[(table["site"] == table["site"].iloc[0]) & (table["target"] == table["target"].iloc[0])]
    return sorted(table.itertuples(), key=lambda row: row.fvu if math.isfinite(row.fvu) else math.inf)


def scalar_of(result: Result, prefix: str, label: str) -> Scalar | None:
    """The number of a dictionary, which its title names."""
    title = TITLES[prefix + "{}"].format(label)
    return next((scalar for scalar in result.scalars.values() if scalar.title == title), None)


def _explained(result: Result) -> list[Statement]:
    found = _dictionaries(result)
    if not found:
        return []
    parts, named = [], []
    for row in found[:3]:
        scalar = scalar_of(result, "fvu_", row.dictionary)
        if scalar is None:
            continue
        parts.append(
            f"{plain(row.dictionary)} {said(scalar)} with {row.l0:.3g} active features of {row.width:,}"
        )
        named.append(scalar)
    if not parts:
        return []
    text = f"Of the variance of {place_of(found[0])} these stay unexplained: {'; '.join(parts)} "
    text += f"({basis(named[0])}). {_over_seeds(result) or _verdict(result, found)}".rstrip()
    return [Statement(text, "frontier", tuple(scalar.name for scalar in named))]


def _over_seeds(result: Result) -> str:
    """What rules differ by, where there are several seeds: the largest clear difference."""
    table = rows(result, "rules")
    if table is None:
        return ""
    clear = table[table["verdict"].isin(["first is better", "second is better"])]
    if not len(clear):
        pairs = f"{len(table)} pairs" if len(table) > 1 else "pair"
        return f"Over {int(table['seeds'].max())} seeds none of the {pairs} of rules is told apart."
    row = clear.loc[clear["difference"].abs().idxmax()]
    first, second = plain(row["first"]), plain(row["second"])
    better, worse = (first, second) if row["difference"] < 0 else (second, first)
    seeds = sorted(100 * abs(row[name]) for name in ("least", "most"))
    return (
        f"At equal numbers of active features {better} leaves {100 * abs(row['difference']):.3g} points less "
        f"than {worse} in each of {int(row['seeds'])} seeds ({seeds[0]:.3g} to {seeds[1]:.3g})."
    )


def _verdict(result: Result, found: list[Any]) -> str:
    """Which is best at equal L0, or what the best baseline does where no two have the same."""
    best = found[0]
    pairs = rows(result, "comparisons", measure="FVU", equal_l0="yes", site=best.target)
    if pairs is None:
        return ""
    names = {row.dictionary for row in found}
    own = pairs[(pairs["first"].isin(names)) & (pairs["second"].isin(names))]
    own = own[(own["first"] == best.dictionary) | (own["second"] == best.dictionary)]
    if len(own):
        row = next(own.itertuples())
        return _sentence(row, "At equal numbers of active features")
    others = pairs[(pairs["first"] == best.dictionary) & ~pairs["second"].isin(names)]
    if not len(others):
        return ""
    row = next(
        others.loc[others["difference"].sort_values(ascending=False).index].itertuples()
    )  # the hardest
    return _sentence(row, "Beside the best of what nobody trained, with as many active features,")


def _sentence(row: Any, begin: str) -> str:
    first, second = plain(row.first), plain(row.second)
    if row.verdict == "not distinguishable":
        left = f": the first leaves {100 * row.difference:+.3g} points{ends}" if (ends := _ends(row)) else ""
        return f"{begin} {first} and {second} are not distinguishable{left}."
    better, worse = (first, second) if row.difference < 0 else (second, first)
    return f"{begin} {better} leaves {100 * abs(row.difference):.3g} points{_ends(row)} less than {worse}."


def _ends(row: Any) -> str:
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return ""
    turned = row.difference < 0 and row.verdict != "not distinguishable"
    low, high = (-row.high, -row.low) if turned else (row.low, row.high)
    return f" [{100 * low:.3g}, {100 * high:.3g}]"


def _loss(result: Result) -> list[Statement]:
    parts, named = [], []
    for row in _dictionaries(result)[:3]:
        scalar = scalar_of(result, "loss_rise_", row.dictionary)
        if scalar is not None:
            parts.append(f"by {said(scalar)} with {plain(row.dictionary)}")
            named.append(scalar)
    if not named:
        return []
    verb = "rises" if all(scalar.value >= 0 for scalar in named) else "changes"
    text = (
        f"With the description in place of the layer the loss {verb} {', '.join(parts)} ({basis(named[0])})"
    )
    zero = next((s for name, s in result.scalars.items() if name.startswith("zero_rise")), None)
    if zero is not None:
        text += f"; with the layer set to zero by {said(zero)}"
        named.append(zero)
    return [Statement(text + ".", "splice", tuple(scalar.name for scalar in named))]


def _dead(result: Result) -> list[Statement]:
    found = _dictionaries(result)
    parts, named = [], []
    for row in found[:3]:
        scalar = scalar_of(result, "dead_share_", row.dictionary)
        if scalar is not None:
            dense = f", {format_number(row.dense_share, 'fraction')} on more than a tenth of those scored"
            tokens = re.search(r"the (\d+) tokens|(\d+) evaluation tokens", scalar.definition)
            count = "" if tokens is None else f" {int(tokens[1] or tokens[2]):,}"
            parts.append(
                f"of {plain(row.dictionary)} {said(scalar)} are never active on{count or ' the'} "
                f"tokens{dense}"
            )
            named.append(scalar)
    if not parts:
        return []
    text = "Of the features " + "; ".join(parts)
    return [Statement(text + ".", "dead_curve", tuple(scalar.name for scalar in named))]

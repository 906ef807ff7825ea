"""What sparse inference found, in sentences, and the words that its figures share with them.

Nothing here needs torch. Sentences read tables, so that runs without a method, a policy or a comparison
have fewer of them and never a wrong one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sparsescope.core.numbers import format_number
from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

TITLES = {
    "dense_perplexity": "Perplexity, dense model",
    "block_share": "Block matrices among the weights of a token",
    "wina_below_teal": "Matrices with less error under WINA than TEAL",
}
DENSE = "dense"
AT_LEAST = "at least"  # how a bound begins in the column ``censored``
_TOLERANCE = 0.05
_MOST_EXCEPTIONS = 4
_POLICIES = {"all_sparse": "every position sparse", "decode_only": "dense prompt, sparse after it"}


def statements(result: Result) -> list[Statement]:
    """How far one can go, whether the reference is better than what was published, what single errors say."""
    return [*(_range(result) or _plain(result)), *_compared(result), *_matrices(result)]


# -- words and choices that figures share ----------------------------------------------------------


def policy_words(prefix: object) -> str:
    """A prefix policy as it stands in a sentence."""
    name, _, number = str(prefix).partition(":")
    try:
        if name == "dense_first_n":
            return f"first {int(number)} positions dense"
        if name == "dense_fraction":
            return f"first {100 * float(number):g} % dense"
    except ValueError:
        pass
    return _POLICIES.get(name, str(prefix).replace("_", " "))


def params_of(result: Result) -> dict[str, Any]:
    """Parameters of the run; empty of a result that was not run."""
    found: dict[str, Any] = result.provenance.get("params") or {}
    return found


def titles_of(names: Sequence[str]) -> list[str]:
    """Methods as tables name them; what is no method any more stays as it is."""
    from sparsescope.errors import SparsescopeError
    from sparsescope.inference.methods import named

    found = []
    for name in names:
        try:
            found.append(named(name))
        except SparsescopeError:
            found.append(str(name))
    return found


def reference_of(result: Result) -> str:
    """The method that the others are compared with, as tables name it."""
    return titles_of([params_of(result).get("reference", "auto")])[0]


def first_policy(frame: pd.DataFrame) -> str:
    """The prefix policy that a table names first: the one that sentences are about."""
    return str(frame["prefix"].iloc[0])


def middle(values: Any) -> float:
    """The middle one of some values; of an even number the larger of the two."""
    found = sorted({float(value) for value in values})
    return found[len(found) // 2]


def next_to(values: Any, wanted: float) -> float:
    """The value that is next to a wanted one; of two the smaller."""
    return min(sorted({float(value) for value in values}), key=lambda value: abs(value - wanted))


def middle_target(result: Result, frame: pd.DataFrame) -> float:
    """The middle target of comparison, as far as a table has it."""
    asked = params_of(result).get("compare_at")
    targets = frame["target"][frame["target"] > 0]
    return next_to(targets, middle(asked)) if asked else middle(targets)


def spoken(name: object) -> str:
    """A method in a sentence, where a comma would end it: ``TEAL (greedy)``."""
    head, _, allocation = str(name).replace("_", " ").partition(", ")
    return (
        f"{head} ({allocation})"
        if allocation and not head.startswith("Wanda ")
        else str(name).replace("_", " ")
    )


def slug(title: str) -> str:
    """A method as a part of the name of a number: ``teal_greedy``."""
    return "".join(c if c.isalnum() else "_" for c in title.lower()).strip("_").replace("__", "_")


# -- sentences -------------------------------------------------------------------------------------


def _range(result: Result) -> list[Statement]:
    table = result.tables.get("usable_range")
    if table is None or not len(table):
        return []
    table = table[table["prefix"] == first_policy(table)]
    tolerance = next_to(table["tolerance"], _TOLERANCE)
    found = [
        row for row in table[table["tolerance"] == tolerance].itertuples() if math.isfinite(row.sparsity)
    ]
    if not found:
        return []
    found.sort(key=lambda row: -row.sparsity)
    best = found[0]
    text = f"Within {100 * tolerance:g} % perplexity {spoken(best.method)} leaves {_gone(result, best)}"
    text += f", the most of {len(found)} methods" if len(found) > 1 else ""
    names = [_range_name(best)]
    beside = next((row for row in found if row.method == "TEAL" and row is not best), None)
    if beside is not None:
        text += f"; TEAL {_gone(result, beside, brief=True)}"
        names.append(_range_name(beside))
    text += f"; n = {best.documents:,} documents, {policy_words(best.prefix)}."
    if all(str(row.censored).startswith(AT_LEAST) for row in found):
        text += " All are bounds: no method was measured beyond the tolerance."
    return [Statement(text, "usable_range", (*names, "dense_perplexity"))]


def _range_name(row: Any) -> str:
    return f"range_{slug(row.method)}_at_{row.tolerance:g}"


def _gone(result: Result, row: Any, *, brief: bool = False) -> str:
    """``31.20 % [30.1, 32.4] of the block-matrix bytes unread (25.10 % [24.2, 26.0] of all ...)``."""
    bound = f"{AT_LEAST} " if str(row.censored).startswith(AT_LEAST) else ""
    text = bound + _share(row.sparsity, row.low, row.high)
    text += "" if brief else " of the block-matrix bytes unread"
    share = result.scalars.get("block_share")
    if share is None or not math.isfinite(share.value):
        return text
    of_model = _share(*(share.value * end for end in (row.sparsity, row.low, row.high)))
    return f"{text} ({of_model} of {'the model' if brief else 'all bytes that a decoded token reads'})"


def _plain(result: Result) -> list[Statement]:
    """What is known of a run with a single target: quality there."""
    table = result.tables.get("quality")
    if table is None:
        return []
    own = table[(table["target"] > 0) & (table["prefix"] == first_policy(table))]
    if not len(own):
        return []
    target = middle_target(result, own)
    own = own[own["target"] == target].sort_values("kl")
    parts = [
        f"{spoken(row.method)} {_number(row.kl, row.kl_low, row.kl_high)}" for row in own.head(3).itertuples()
    ]
    first = own.iloc[0]
    text = f"With {100 * target:g} % of the block-matrix bytes to be left unread the KL divergence from the "
    text += f"dense model is, in nats: {'; '.join(parts)} (n = {int(first['documents']):,} documents, "
    text += f"{policy_words(first['prefix'])})."
    return [Statement(text, "quality", (f"kl_{slug(first['method'])}_at_{target:g}", "dense_perplexity"))]


def _compared(result: Result) -> list[Statement]:
    table = result.tables.get("comparisons")
    if table is None or not len(table):
        return []
    main = table[table["prefix"] == first_policy(table)]
    target = middle_target(result, main)
    here = main[main["target"] == target].sort_values("ratio", ascending=False)
    hardest = next(here.itertuples())
    first = spoken(hardest.first)
    ratio = _number(hardest.ratio, hardest.ratio_low, hardest.ratio_high)
    text = f"At equal bytes, {100 * target:g} % asked for, {first} has {ratio} times the KL divergence of "
    text += spoken(hardest.second)
    text += f", the best of {len(here)} other methods" if len(here) > 1 else ""
    text += f" (paired, n = {hardest.documents:,} documents"
    if hardest.verdict == "not resolved":
        text += "; not resolved"
    text += f", {policy_words(hardest.prefix)}). {_verdicts(table, first)}"
    name = f"{slug(hardest.first)}_over_{slug(hardest.second)}_at_{target:g}"
    return [Statement(text, "comparisons", (name,))]


def _verdicts(table: pd.DataFrame, first: str) -> str:
    """In how many comparisons the first is better, and which are the others."""
    better = int((table["verdict"] == "first is better").sum())
    if better == len(table):
        alone = "The one comparison favors it" if better == 1 else f"All {better} comparisons favor {first}"
        return f"{alone}, without a correction for their number."
    text = f"{better} of {len(table)} comparisons favor {first}"
    many = table["prefix"].nunique() > 1
    for verdict, words in (("second is better", "worse"), ("not resolved", "not resolved")):
        part = table[table["verdict"] == verdict]
        if not len(part):
            continue
        said = [
            f"{spoken(row.second)} at {100 * row.target:g} %"
            + (f" ({policy_words(row.prefix)})" if many else "")
            for row in part.head(_MOST_EXCEPTIONS).itertuples()
        ]
        more = len(part) - len(said)
        text += f"; {words} against {', '.join(said)}{f' and {more} more' if more else ''}"
    return text + "."


def _matrices(result: Result) -> list[Statement]:
    share, table = result.scalars.get("wina_below_teal"), result.tables.get("per_matrix")
    if share is None or table is None or not math.isfinite(share.value):
        return []
    count = table[table["method"].isin(["WINA", "TEAL"])].groupby("matrix")["method"].nunique()
    text = f"WINA's output error is below TEAL's on {format_number(share.value, 'fraction')} of "
    text += f"{int((count == 2).sum()):,} matrices"
    at = params_of(result).get("detail_at", 0.5)
    text += f" with {100 * at:g} % of the bytes unread"
    pair = [_at(result, name, at) for name in ("WINA", "TEAL")]
    if any(row is None for row in pair) or pair[0].target != pair[1].target:
        return [
            Statement(
                text + "; end to end both were not measured at one target.", "per_matrix", (share.name,)
            )
        ]
    wina, teal = pair
    ends = [
        f"{_number(row.kl, row.kl_low, row.kl_high)} nats with {100 * row.realised:.3g} % unread"
        for row in pair
    ]
    apart = wina.kl_high < teal.kl_low or teal.kl_high < wina.kl_low
    same = (share.value > 0.5) == (wina.kl < teal.kl)
    if not apart:
        verdict = "end to end that is not resolved"
    elif same:
        verdict = "that carries over end to end"
    else:
        verdict = "that does not carry over end to end"
    text += f"; {verdict}: KL divergence {ends[0]} against {ends[1]}"
    known = all(math.isfinite(end) for row in pair for end in (row.kl_low, row.kl_high))
    why = "" if apart else "intervals overlap, unpaired; " if known else "no intervals; "
    text += f" ({why}n = {wina.documents:,} documents)."
    named = tuple(f"kl_{slug(row.method)}_at_{row.target:g}" for row in pair)
    return [Statement(text, "per_matrix", (share.name, *named))]


def _at(result: Result, method: str, target: float) -> Any:
    """The row of quality of a method next to a target, under the first policy."""
    table = rows(result, "quality", method=method)
    if table is None:
        return None
    table = table[table["prefix"] == first_policy(result.tables["quality"])]
    if not len(table):
        return None
    return next(table[table["target"] == next_to(table["target"], target)].itertuples())


def _share(value: float, low: float, high: float) -> str:
    ends = f" [{100 * low:.2f}, {100 * high:.2f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return format_number(value, "fraction") + ends


def _number(value: float, low: float, high: float) -> str:
    ends = f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:.3g}{ends}"

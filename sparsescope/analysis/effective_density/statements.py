"""What effective density found, in sentences, and the titles of its numbers.

The perplexity criterion leads, unless switching units off lowers the perplexity of the text:
then accuracy does.
"""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import (
    Statement,
    basis,
    by_layer,
    defined,
    has_experts,
    median_by_layer,
    nearest,
    rows,
    said,
    said_value,
)

TITLES = {
    "density_cett_ppl_{}": "Units at perplexity +{} % (CETT)",
    "sparsity_cett_ppl_{}": "Units off, perplexity +{} % (CETT)",
    "density_top_p_ppl_{}": "Units at perplexity +{} % (top-p)",
    "sparsity_top_p_ppl_{}": "Units off, perplexity +{} % (top-p)",
    "critical_sparsity_cett": "Critical sparsity (CETT)",
    "critical_sparsity_top_p": "Critical sparsity (top-p)",
    "dense_perplexity": "Perplexity, untouched model",
    "dense_accuracy": "Accuracy, untouched model",
}
_RULES = {"cett": "CETT", "top_p": "top-p"}


def statements(result: Result) -> list[Statement]:
    """How many units the model needs at a small loss, and how that differs by layer."""
    by_perplexity, by_accuracy = _perplexity(result), _accuracy(result)
    order = [*by_accuracy, *by_perplexity] if _misfit(result) else [*by_perplexity, *by_accuracy]
    return [*order, *_layers(result)]


def _misfit(result: Result) -> bool:
    """Whether switching units off lowers the perplexity beyond its interval: then the model
    fits the text badly.
    """
    curve = result.tables.get("curve")
    return (
        curve is not None
        and "perplexity_rise_high" in curve
        and bool((curve["perplexity_rise_high"] < 0).any())
    )


def _perplexity(result: Result) -> list[Statement]:
    name = nearest(result, "density_cett_ppl_", 1)
    if name is None:
        return []
    density, percent = result.scalars[name], name.rpartition("_")[2]
    kept = result.scalars.get(name.replace("density", "sparsity"))
    criterion = f"perplexity +{percent} %"
    text = (
        f"Perplexity rises by {percent} % when {said(density)} of the hidden units stay "
        f"on ({basis(density)}), "
    )
    text += "chosen token by token."
    if _censored(result, "CETT", criterion):
        text += " That rise was not met within the levels tried: the number is only a bound."
    elif _misfit(result):
        text += (
            " Do not rely on it: switching units off lowers the perplexity of this text, "
            "which the model fits badly."
        )
    elif (other := defined(result, f"density_top_p_ppl_{percent}")) and not _censored(
        result, "top-p", criterion
    ):
        text += f" Chosen by magnitude alone (top-p), {said_value(other[0])} are needed."
    return [Statement(text, "loss_curve", (name, *([kept.name] if kept else [])))]


def _accuracy(result: Result) -> list[Statement]:
    """The rule that can switch more units off."""
    found = [(rule, known[0]) for rule in _RULES if (known := defined(result, f"critical_sparsity_{rule}"))]
    if not found:
        return []
    rule, critical = max(found, key=lambda item: item[1].value)
    keep = (result.provenance.get("params") or {}).get("keep_score", 0.99)
    text = (
        f"{said(critical)} of the hidden units can be switched off with {100 * keep:g} % of the accuracy of "
        f"the next token left ({_RULES[rule]}, {basis(critical)})."
    )
    if (table := rows(result, "effective", rule=_RULES[rule])) is not None:
        last = table[~table["criterion"].astype(str).str.startswith("perplexity")]
        if len(last) and str(last["censored"].iloc[0]) != "no":
            text += " The loss was not met within the levels tried: the number is only a bound."
    named = [
        critical.name,
        *(name for name in ("dense_perplexity", "dense_accuracy") if name in result.scalars),
    ]
    return [Statement(text, "accuracy_curve", tuple(named))]


def _layers(result: Result) -> list[Statement]:
    name = nearest(result, "density_cett_ppl_", 1)
    percent = float(name.rpartition("_")[2]) if name else 1.0
    table, who = rows(result, "per_layer", percent=percent), "the units that stay on at that level"
    if has_experts(table):
        table, who = median_by_layer(table, "density"), f"{who} in the median expert"
    spread = by_layer(table, "density")
    return [Statement(f"By layer, {who} run {spread}.", "per_layer")] if spread else []


def _censored(result: Result, rule: str, criterion: str) -> bool:
    table = rows(result, "effective", rule=rule, criterion=criterion)
    return table is not None and "censored" in table and str(table["censored"].iloc[0]) != "no"

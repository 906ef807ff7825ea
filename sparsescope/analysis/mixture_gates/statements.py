"""What a comparison of gates shows, in sentences, and the titles of its numbers."""

from __future__ import annotations

from typing import Any

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, defined, rows, said

TITLES = {
    "gates": "Gates",
    "series": "Trainings",
    "comparable_gates": "Gates with comparable losses",
    "reference_loss": "Loss of the reference gate",
    "loss_difference_{}": "Loss beside the reference: {}",
    "tokens": "Tokens",
    "documents": "Documents",
}


def statements(result: Result) -> list[Statement]:
    """Which gates lose more or less than the reference, and which cannot be compared."""
    table = rows(result, "gates")
    if table is None:
        return []
    reference = str(result.provenance.get("params", {}).get("reference", "top_k"))
    return [*_differences(result, table, reference), *_not_comparable(table), *_without(result, table)]


def said_gate(name: str) -> str:
    """A gate in words."""
    return name.replace("_", " ").replace("=", " ")


def _differences(result: Result, table: Any, reference: str) -> list[Statement]:
    compared = table[table["loss_difference"].notna()]
    if compared.empty:
        return []
    ended = compared[compared["difference_low"].notna()]
    groups = (
        ("lower", ended[ended["difference_high"] < 0]),
        ("higher", ended[ended["difference_low"] > 0]),
        ("not told apart", ended[(ended["difference_low"] <= 0) & (ended["difference_high"] >= 0)]),
        ("compared with one seed, without an interval", compared[compared["difference_low"].isna()]),
    )
    parts = [
        f"{reading}: {', '.join(map(_difference, found.itertuples()))}"
        for reading, found in groups
        if len(found)
    ]
    loss = defined(result, "reference_loss")
    beside = f" ({said(loss[0])})" if loss else ""
    text = (
        f"Loss beside {said_gate(reference)}{beside}, paired by seed, in nats; {'; '.join(parts)}. "
        "Intervals are over seeds, for each gate alone."
    )
    names = ("reference_loss", *(name for name in result.scalars if name.startswith("loss_difference_")))
    return [Statement(text, "loss", tuple(name for name in names if name in result.scalars))]


def _difference(row: Any) -> str:
    ends = ""
    if row.difference_low == row.difference_low:
        ends = f" [{row.difference_low:+.3g}, {row.difference_high:+.3g}], n = {row.pairs} seeds"
    return f"{said_gate(row.gate)} {row.loss_difference:+.3g}{ends}"


def _not_comparable(table: Any) -> list[Statement]:
    away = table[table["comparable"] == "no"]
    if away.empty:
        return []
    told = ", ".join(f"{said_gate(row.gate)} {row.active:.3g}" for row in away.itertuples())
    text = f"Not comparable in loss, since they use more or fewer experts for a token: {told}."
    return [Statement(text, "active", ("comparable_gates",))]


def _without(result: Result, table: Any) -> list[Statement]:
    """What is left to say where no loss is compared."""
    if table["loss_difference"].notna().any():
        return []
    told = ", ".join(
        f"{said_gate(row.gate)} {row.loss:.4g} nats with {row.active:.3g} experts, n = {row.seeds} seeds"
        for row in table.itertuples()
    )
    return [Statement(f"No loss is compared with the reference. Loss: {told}.", "loss", ("gates",))]

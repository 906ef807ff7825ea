"""Tables and numbers of ``convergent_learning``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.convergent_learning.compare import quantiles
from sparsescope.metrics.unit_matching import CLASSES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.analysis.convergent_learning import ConvergentLearningParams
    from sparsescope.analysis.convergent_learning.read import Inputs
    from sparsescope.core.result import Result

WAYS = ("one dictionary applied to both", "one dictionary trained on each")


def add_tables(
    out: Result,
    params: ConvergentLearningParams,
    found: Sequence[tuple[Any, str, dict[str, NDArray[Any]]]],
    inputs: Inputs,
) -> None:
    """Add all tables and the numbers that stand alone.

    Args:
        out: The result.
        params: Parameters of the analysis.
        found: For each pair and layer the arrays of ``compare``.
        inputs: What was read.
    """
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("pairs", "classes", "matched", "predictors", "blocks", "dictionaries")
    }
    for pair, layer, made in found:
        place = {"pair": pair.name, "kind": pair.kind, "layer": int(layer)}
        tables["pairs"].append({**place, **_pair(made, inputs)})
        tables["classes"] += [{**place, **row} for row in _classes(made, params)]
        tables["matched"] += [{**place, **row} for row in _matched(made)]
        tables["predictors"] += [
            {
                **place,
                "predictors": size,
                "explained": float(value),
                "null": float(null),
                "dense": float(made["dense"][0]),
            }
            for size, (value, null) in enumerate(zip(made["explained"], made["null_explained"], strict=True))
        ]
        if "blocks" in made:
            tables["blocks"].append({**place, **_blocks(made)})
        for way, components, correlation, same, null, same_null in made.get("dictionaries", np.empty((0, 6))):
            tables["dictionaries"].append(
                {
                    **place,
                    "way": WAYS[int(way)],
                    "components": int(components),
                    "correlation": float(correlation),
                    "null": float(null),
                    "same": float(same),
                    "same_null": float(same_null),
                }
            )
    for name, rows in tables.items():
        if rows:
            out.add(name, rows)
    _scalars(out, found)


def _pair(made: dict[str, NDArray[Any]], inputs: Inputs) -> dict[str, Any]:
    return {
        "units_first": int(made["units"][0]),
        "units_second": int(made["units"][1]),
        "best": float(made["best"].mean()),
        "best_null": float(made["null_best"].mean()),
        "partner": float(made["partner"].mean()),
        "partner_null": float(made["null_partner"].mean()),
        "cka": float(made["likeness"][0]),
        "cka_null": float(made["null_cka"].mean()),
        "svcca": float(made["likeness"][1]),
        "rows": len(inputs),
    }


def _classes(made: dict[str, NDArray[Any]], params: ConvergentLearningParams) -> list[dict[str, Any]]:
    """Shares of the classes, with intervals over units and what shifted rows give."""
    classes = made["classes"]
    random = np.random.default_rng([params.seed, 43])
    draws = random.integers(0, len(classes), (params.resamples, len(classes)))
    tail = (1 - params.level) / 2
    rows = []
    for place, name in enumerate(CLASSES):
        inside = classes == place
        low, high = np.quantile(inside[draws].mean(1), [tail, 1 - tail])
        null = made["null_shares"][:, place]
        rows.append(
            {
                "class": name,
                "share": float(inside.mean()),
                "low": float(low),
                "high": float(high),
                "null_share": float(null.mean()),
                "null_high": float(null.max()),
                "p": float((1 + (null >= inside.mean() - 1e-12).sum()) / (1 + len(null))),
                "units": len(classes),
            }
        )
    return rows


def _matched(made: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    partner = dict(quantiles(made["partner"]))
    known = np.array(sorted(partner)), np.array([partner[rank] for rank in sorted(partner)])
    null = dict(quantiles(made["null_best"]))
    return [
        {
            "rank": rank,
            "best": value,
            "partner": float(np.interp(rank, *known)),
            "null": null.get(rank, math.nan),
        }
        for rank, value in quantiles(made["best"])
    ]


def _blocks(made: dict[str, NDArray[Any]]) -> dict[str, Any]:
    count, within, between, null = made["blocks"].tolist()
    first, second, same, dealt = made["truth"].tolist()
    return {
        "blocks": int(count),
        "within": within,
        "between": between,
        "within_null": null,
        "truth_first": first,
        "truth_second": second,
        "same_frequency": same,
        "same_frequency_null": dealt,
    }


def _scalars(out: Result, found: Sequence[tuple[Any, str, dict[str, NDArray[Any]]]]) -> None:
    """Means over the pairs of a kind, with the range over pairs in the definition."""
    for kind in dict.fromkeys(pair.kind for pair, _, _ in found):
        of_it = [made for pair, _, made in found if pair.kind == kind]
        for name, title in (("one-to-one", "Units found one-to-one"), ("unique", "Unique units")):
            place = CLASSES.index(name)
            shares = [float((made["classes"] == place).mean()) for made in of_it]
            null = [float(made["null_shares"][:, place].mean()) for made in of_it]
            ends = f"{min(shares):.3g} to {max(shares):.3g} over {len(shares)} pairs and layers"
            slug = f"{name.replace('-', '_')}_{kind}"
            out.add_scalar(
                slug,
                float(np.mean(shares)),
                "fraction",
                f"mean share of the units of one checkpoint that are {name} in the other ({ends})",
                title=f"{title}, {kind}",
            )
            out.add_scalar(
                f"{slug}_null",
                float(np.mean(null)),
                "fraction",
                "the same with the rows of one shifted against those of the other, mean over shifts",
                title=f"{title}, {kind}, rows shifted",
            )
        out.add_scalar(
            f"cka_{kind}",
            float(np.mean([made["likeness"][0] for made in of_it])),
            "",
            f"mean linear centred kernel alignment of the layers of two checkpoints, {len(of_it)} pairs and "
            "layers",
            title=f"Alignment of layers (CKA), {kind}",
        )

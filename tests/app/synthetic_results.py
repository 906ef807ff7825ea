"""Stored runs made of random numbers with the shape of real ones, for tests of figures, report and explorer.

The numbers follow simple curves over layers, so that figures look like real ones; nothing here is measured.
``activation_result`` fills every table that the analysis declares, with its columns in its order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sparsescope.analysis.activation_sparsity import TABLES
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.core.run_store import Store
from sparsescope.core.spec import Spec

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{7*7}}",
    "=cmd()|' /C calc'!A0",
    "a\u202eb\u2066c",
    "![x](http://evil.example/x.png)",
    "<b>bold</b>&lt;i&gt; $x$ %{y}",
)
SHARES = ("50", "90", "95", "99")


def _sites(layer: int, experts: int) -> list[str]:
    if not experts:
        return [f"blocks.{layer}.mlp.hook_post"]
    return [f"blocks.{layer}.mlp.experts.{e}.hook_post" for e in range(experts)]


def _metrics(rng: np.random.Generator, depth: float, relu: bool) -> dict[str, tuple[float, float]]:
    """Mean and reference of every metric at a relative depth in [0, 1]."""
    nonzero = 0.04 + 0.03 * depth if relu else 1.0 - 1e-6
    energy = {"50": 0.02, "90": 0.16, "95": 0.24, "99": 0.42}
    half = {"50": 0.124, "90": 0.445, "95": 0.553, "99": 0.735}
    half_l1 = {"50": 0.239, "90": 0.646, "95": 0.749, "99": 0.887}
    wave = 1 + 0.5 * np.sin(3 * depth) - 0.35 * depth + rng.normal(0, 0.02)
    found = {"density_nonzero": (nonzero, np.nan)}
    for p in SHARES:
        value = min(energy[p] * wave, 0.98)
        found[f"density_energy_{p}"] = (min(value, nonzero), half[p])
        found[f"density_l1_{p}"] = (min(nonzero, 1.3 * value + 0.1), half_l1[p])
    for name, base, reference in (
        ("hoyer", 0.4, 0.206),
        ("gini", 0.62, 0.414),
        ("pr2", 0.4, 0.6366),
        ("pr4", 0.09, 1 / 3),
    ):
        found[name] = (base * (0.8 + 0.3 * depth) + rng.normal(0, 0.01), reference)
    found["entropy_number"] = (1.3 * found["pr2"][0], 0.7529)
    found["kurtosis"] = (1 / found["pr4"][0], 3.0)
    found["treves_rolls"] = (1 - found["pr2"][0], 0.3634)
    return found


def _interval(value: float, documents: int) -> tuple[float, float]:
    if documents < 2 or not np.isfinite(value):
        return np.nan, np.nan
    return value * 0.97, value * 1.03 if value > 1 else min(1.0, value * 1.03)


def activation_tables(
    layers: int = 30,
    *,
    experts: int = 0,
    relu: bool = False,
    documents: int = 79,
    domains: tuple[str, ...] = ("documentation", "source code"),
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Every declared table, filled."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[dict]] = {name: [] for name in TABLES}
    tokens, width = 8192, 1536
    bins = [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 127), (128, 255)]
    ranks = np.linspace(0, 1, 65)[1:]
    for layer in range(layers):
        depth = layer / max(layers - 1, 1)
        for site in _sites(layer, experts):
            place = {"layer": layer, "site": site}
            size = {"tokens": tokens, "documents": documents}
            metrics = _metrics(rng, depth, relu)
            for metric, (value, reference) in metrics.items():
                low, high = _interval(value, documents)
                rows["per_layer"].append(
                    place
                    | size
                    | {
                        "metric": metric,
                        "mean": value,
                        "low": low,
                        "high": high,
                        "sparsity": 1 - value if metric.startswith("density") else np.nan,
                        "q05": 0.6 * value,
                        "q50": 0.97 * value,
                        "q95": 1.5 * value if value > 1 else min(1.0, 1.5 * value),
                        "reference": reference,
                    }
                )
            for metric in ("density_nonzero", "density_energy_90", "hoyer"):
                value = metrics[metric][0]
                for first, last in bins:
                    here = value * (
                        0.15
                        if first == 0 and layer > 2 and metric != "density_nonzero"
                        else 1 - 0.02 * np.log1p(first) / 5
                    )
                    low, high = _interval(here, documents)
                    rows["by_position"].append(
                        place
                        | {
                            "position": first,
                            "position_end": last,
                            "metric": metric,
                            "mean": here,
                            "low": low,
                            "high": high,
                        }
                        | size
                    )
                for index, domain in enumerate(domains):
                    here = min(1.0, value * (1 + 0.06 * index))
                    low, high = _interval(here, documents)
                    rows["by_domain"].append(
                        place
                        | {"domain": domain, "metric": metric, "mean": here, "low": low, "high": high}
                        | size
                    )
            use = np.clip(0.9 * (1 - ranks) ** (1.5 + 2 * depth) + 1e-4, 0, 1)
            use[-2:] = 0 if layer % 3 == 0 else use[-2:]
            fire = np.clip(use * 0.5, 0, 1) if relu else np.ones_like(use)
            for rank, nonzero, in_use in zip(ranks, fire, use, strict=True):
                rows["frequency"].append(place | {"rank": rank, "nonzero": nonzero, "in_use": in_use})
            for rule, curve in (("nonzero", fire), ("in use", use)):
                dead, always = int((curve == 0).mean() * width), int((curve > 0.99).mean() * width)
                rows["unit_use"].append(
                    place
                    | size
                    | {
                        "rule": rule,
                        "units": width,
                        "dead": dead,
                        "dead_share": dead / width,
                        "dead_bound": 0.002,
                        "always_on": always,
                        "always_on_share": always / width,
                        "always_on_bound": 0.998,
                        **{
                            f"below_{p}%": float((curve < float(p) / 100).mean())
                            for p in ("0.1", "1", "10", "50")
                        },
                        "icc": 0.05,
                        "effective_tokens": 1700.5,
                    }
                )
            for neuron in range(0, 40):
                rows["units"].append(
                    place
                    | {
                        "neuron": neuron,
                        "nonzero": 1.0,
                        "in_use": float(rng.uniform()),
                        "documents_nonzero": documents,
                        "documents_in_use": int(rng.integers(0, documents + 1)),
                        "mean_magnitude": float(rng.exponential(0.2)),
                        "lifetime_sparseness": 0.3 + 0.01 * neuron,
                    }
                )
            life = 0.5 + 0.2 * depth
            low, high = _interval(life, documents)
            rows["lifetime"].append(
                place
                | size
                | {"mean": life, "low": low, "high": high, "q05": 0.7 * life, "q50": life, "q95": 1.2 * life}
                | {"population": metrics["treves_rolls"][0], "reference": 0.3634, "units": width}
            )
    rows["upper_bounds"] = bound_rows(0.05 if relu else 1.0, layers, documents)
    return {name: pd.DataFrame(rows[name], columns=[c.name for c in TABLES[name]]) for name in TABLES}


def bound_rows(nonzero: float, layers: int, documents: int) -> list[dict]:
    """Bounds of a gated model whose MLPs are 0.57 of its FLOPs."""
    found = []
    for rule, density in (("nonzero", nonzero), ("energy 90 %", 0.16), ("energy 99 %", 0.42)):
        for scheme, part in (
            ("down only", 1 / 3),
            ("first matrix computed", 2 / 3),
            ("ideal predictor", 1.0),
        ):
            for quantity, dense in (("FLOPs", 2.8e8), ("weight bytes", 5.4e8)):
                saved = part * (1 - density)
                low, high = _interval(0.57 * saved, documents)
                found.append(
                    {
                        "rule": rule,
                        "scheme": scheme,
                        "quantity": quantity,
                        "together": 1,
                        "density": density,
                        "dense": dense,
                    }
                    | {
                        "mlp_share": 0.57,
                        "saved_mlp": saved,
                        "saved_model": 0.57 * saved,
                        "low": low,
                        "high": high,
                    }
                    | {"amdahl": 1 / (1 - 0.57 * saved), "attended": 128.0, "bytes_per_weight": 4.0}
                    | {"assumptions": "made up", "layers": layers, "documents": documents}
                )
    return found


def activation_result(subject: str = "smollm2-135m", **options) -> Result:
    """A result of ``activation_sparsity`` with every table, headline scalars and notes."""
    result = Result("activation_sparsity")
    documents = options.get("documents", 79)
    for name, frame in activation_tables(**options).items():
        result.add_table(name, frame, TABLES[name])

    def interval(value: float) -> Interval | None:
        if documents < 2:
            return None
        return Interval(0.97 * value, min(1.0, 1.03 * value), 0.95, "document-cluster bootstrap", documents)

    table = result.tables["per_layer"].groupby("metric")["mean"].mean()
    for name, metric, text in (
        (
            "mean_nonzero",
            "density_nonzero",
            "Share of units that are not exactly zero, averaged over tokens and layers.",
        ),
        (
            "mean_density_energy_90",
            "density_energy_90",
            "Share of units in the smallest set with 90 % of the energy.",
        ),
        (
            "mean_density_l1_90",
            "density_l1_90",
            "Share of units in the smallest set with 90 % of the L1 norm.",
        ),
    ):
        result.add_scalar(name, table[metric], "fraction", text, interval=interval(table[metric]))
    result.add_scalar(
        "mean_zero_sparsity",
        1 - table["density_nonzero"],
        "fraction",
        "1 - mean_nonzero.",
        direction="higher",
    )
    result.add_scalar(
        "mean_gini",
        table["gini"],
        "",
        "Gini coefficient of |v|, averaged over tokens and layers.",
        interval=interval(table["gini"]),
    )
    result.add_scalar(
        "mean_hoyer", table["hoyer"], "", "Hoyer sparsity of |v|, averaged over tokens and layers."
    )
    result.add_scalar(
        "dead_units", 144, "count", "Units that were never in use, over all layers.", direction="lower"
    )
    result.note("warning", "The activation function is SiLU: exact zeros say nothing here.", "mean_nonzero")
    if documents < 2:
        result.note("warning", "One document: no interval can be given.", "intervals")
    result.provenance = {"subject": subject_identity(subject)}
    return result


def subject_identity(subject: str = "smollm2-135m", weight: str = "1f" * 32) -> dict:
    """What the runner records about a model."""
    return {
        "id": subject,
        "revision": "main@12fd25f",
        "weight_hash": weight,
        "origin_precision": "gguf:Q4_1",
        "dtype": "float32",
        "attn_implementation": "sdpa",
        "device": "cpu",
        "architecture": "LlamaForCausalLM",
        "n_parameters": 134_515_008,
        "n_layers": 30,
        "d_model": 576,
        "trust_remote_code": False,
    }


def corpus_description(name: str = "python-docs", digest: str = "ab" * 32) -> dict:
    """What the runner records about a corpus."""
    return {
        "name": name,
        "license": "PSF-2.0",
        "digest": digest,
        "tokens": 8192,
        "documents": 79,
        "budget": 8192,
        "context": 256,
        "domains": {
            "documentation": {"tokens": 4096, "documents": 40},
            "source code": {"tokens": 4096, "documents": 39},
        },
        "seed": 0,
    }


def store_result(
    home: Path,
    result: Result,
    *,
    params: dict | None = None,
    weight: str = "1f" * 32,
    corpus: dict | None = None,
) -> str:
    """Store a result the way the runner does; return the id of the run."""
    subject = result.provenance.get("subject", {}).get("id", "smollm2-135m")
    spec = Spec(
        analysis=result.analysis,
        version="1",
        params=params or {"sites": "auto", "seed": 0},
        subject=subject_identity(subject, weight),
        corpus=corpus or corpus_description(),
    )
    Store(home).write(
        result,
        spec,
        seconds=31.4,
        environment={"sparsescope": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "cpu": "2 cores"},
        command=f"sparsescope run {result.analysis} --subject {subject} --corpus python-docs --tokens 8192",
    )
    return spec.run_id

"""What activation sparsity found, in sentences, and the titles of its numbers.

Exact zeros lead only where there are some: of SwiGLU and GELU their count says nothing.
"""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, by_layer, defined, nearest, rows, said, said_value

TITLES = {
    "mean_nonzero": "Units that are not exactly zero",
    "mean_zero_sparsity": "Units that are exactly zero",
    "mean_density_l1_{}": "Units that hold {} % of the L1 norm",
    "mean_sparsity_l1_{}": "Units beyond {} % of the L1 norm",
    "mean_density_energy_{}": "Units that hold {} % of the energy",
    "mean_sparsity_energy_{}": "Units beyond {} % of the energy",
    "mean_hoyer": "Hoyer sparseness",
    "mean_gini": "Gini coefficient",
    "mean_pr2": "Participation ratio (PR2)",
    "mean_pr4": "Participation of energies (PR4)",
    "mean_entropy_number": "Entropy number",
    "mean_kurtosis": "Kurtosis",
    "mean_treves_rolls": "Treves-Rolls sparseness",
    "dead_units": "Units never nonzero",
    "always_on_units": "Units nearly always nonzero",
    "dead_units_in_use": "Units never in use",
    "always_on_units_in_use": "Units nearly always in use",
    "units": "Hidden units",
    "tokens": "Tokens",
    "documents": "Documents",
    "bound_flops_saved_nonzero": "FLOPs saved at most, zeros",
    "bound_weight_bytes_saved_nonzero": "Bytes saved at most, zeros",
    "bound_flops_saved_energy_{}": "FLOPs saved at most, {} % energy",
    "bound_weight_bytes_saved_energy_{}": "Bytes saved at most, {} % energy",
}
NEARLY_ALL = 0.98  # a larger share of nonzero entries is what a smooth activation function gives by itself


def statements(result: Result) -> list[Statement]:
    """How few units carry a token, how that differs by layer, and what skipping the others could save."""
    zeros = defined(result, "mean_nonzero", "mean_zero_sparsity")
    if zeros is not None and zeros[0].value <= NEARLY_ALL:
        return _of_zeros(result)
    return _of_energy(result)


def _of_zeros(result: Result) -> list[Statement]:
    """A model with exact zeros (ReLU)."""
    nonzero, zero = result.scalars["mean_nonzero"], result.scalars["mean_zero_sparsity"]
    text = (
        f"{said(nonzero)} of the hidden units are not zero on a token, on average over layers "
        f"({basis(nonzero)}): the other {said_value(zero)} could be skipped without any change of the output."
    )
    out = [
        Statement(
            text,
            "per_layer",
            ("mean_nonzero", "mean_zero_sparsity", _energy(result), "mean_gini", "dead_units"),
        )
    ]
    if spread := by_layer(rows(result, "per_layer", metric="density_nonzero"), "mean"):
        out.append(Statement(f"By layer, the share of units that are not zero runs {spread}.", "per_layer"))
    if bound := defined(result, "bound_weight_bytes_saved_nonzero"):
        text = (
            f"Skipping the zeros saves at most {said(bound[0])} of the weight bytes that one decoded token "
            "reads: a bound on counts, not a speed."
        )
        out.append(Statement(text, "upper_bounds", (bound[0].name,)))
    return out


def _of_energy(result: Result) -> list[Statement]:
    """A model without exact zeros (SwiGLU, GELU), or a run that did not count them."""
    name = _energy(result)
    if not name:
        return []
    held, percent = result.scalars[name], name.rpartition("_")[2]
    text = (
        f"{said(held)} of the hidden units hold {percent} % of a token's energy (squared activations), on "
        f"average over layers ({basis(held)})."
    )
    named = (
        name,
        name.replace("density", "sparsity"),
        nearest(result, "mean_density_l1_", 90) or "",
        "mean_gini",
    )
    out = [Statement(text, "per_layer", (*named, "dead_units_in_use"))]
    if spread := by_layer(rows(result, "per_layer", metric=name.removeprefix("mean_")), "mean"):
        out.append(Statement(f"By layer, that share of units runs {spread}.", "per_layer"))
    if bound := defined(result, f"bound_weight_bytes_saved_energy_{percent}"):
        zeros = defined(result, "mean_nonzero")
        text = (
            f"{said_value(zeros[0])} of the units are not zero, so hardly any can be skipped for free. "
            if zeros
            else ""
        )
        text += (
            f"Leaving out the weak ones saves at most {said(bound[0])} of the weight bytes that one "
            "decoded token reads, and changes the output by an amount that is not measured here: a bound "
            "on counts, not a speed."
        )
        out.append(Statement(text, "upper_bounds", (bound[0].name,)))
    return out


def _energy(result: Result) -> str:
    """The density of the energy set nearest to 90 %; empty where there is none."""
    return nearest(result, "mean_density_energy_", 90) or ""

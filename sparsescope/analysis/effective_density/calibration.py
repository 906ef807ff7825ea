"""CETT curves of all hidden layers from one pass over the calibration tokens.

Of a mixture each expert is a layer of its own: its curve is that of its output on the tokens routed to it,
before the weight that the router gives it. An expert that no calibration token reached has no threshold, and
keeps all of its units.
Shapes: M calibration tokens of a site, f hidden units, d = d_model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.activations.capture import capture
from sparsescope.activations.context import Context
from sparsescope.analysis.effective_density.cett import CettCurve, cett, cett_curve, column_norms

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.structure.sites import Site


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was read on the calibration tokens, by name of the site.

    Attributes:
        sites: The hidden layers.
        hidden: float32 [M, f].
        weights: float32 [d, f], the matrices that read them.
        norms: float32 [f], see ``column_norms``.
        curves: CETT against the threshold.
    """

    sites: tuple[Site, ...]
    hidden: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    norms: dict[str, torch.Tensor]
    curves: dict[str, CettCurve]

    @classmethod
    def read(
        cls, context: Context, calibration: TokenizedCorpus, sites: tuple[Site, ...], tokens: int
    ) -> Calibration:
        """Run the pass, on about so many of its tokens, and measure the curves."""
        hidden = _hidden(context, calibration, sites, tokens)
        weights = {site.name: _weight(context, site) for site in sites}
        curves = {site.name: _curve(context, site, hidden[site.name], weights[site.name]) for site in sites}
        return cls(sites, hidden, weights, {name: column_norms(w) for name, w in weights.items()}, curves)

    def thresholds(self, level: float) -> dict[str, float]:
        """Threshold of each site at a CETT level."""
        return {name: curve.threshold(level) for name, curve in self.curves.items()}

    def at(self, level: float) -> tuple[list[float], list[float]]:
        """Threshold of each site at a CETT level, and the CETT that it really has; NaN without tokens."""
        limits = self.thresholds(level)
        with torch.inference_mode():
            errors = [
                cett(self.hidden[name], self.weights[name], self.norms[name], limits[name])
                for name in (site.name for site in self.sites)
            ]
        return [limits[site.name] for site in self.sites], errors

    def tokens_of_experts(self) -> dict[str, int]:
        """Calibration tokens that were routed to each expert."""
        return {site.name: len(self.hidden[site.name]) for site in self.sites if site.expert is not None}


def _hidden(
    context: Context, calibration: TokenizedCorpus, sites: tuple[Site, ...], tokens: int
) -> dict[str, torch.Tensor]:
    """Activations of evenly spread calibration tokens after the first of each window, float32
    [M, f] for each site; at sites of experts those of the tokens among them that were routed there.
    """
    parts: dict[str, list[torch.Tensor]] = {site.name: [] for site in sites}
    total = calibration.n_tokens
    stride = max(1, total // tokens)
    done = 0
    with capture(context.subject, calibration, [site.name for site in sites], reuse=True) as source:
        for batch in source:
            context.progress("calibration", done, total)
            chosen = np.flatnonzero(batch.positions > 0)[::stride]
            for name, values in batch.values.items():
                at = np.flatnonzero(np.isin(batch.rows[name], chosen)) if name in batch.rows else chosen
                parts[name].append(values[torch.from_numpy(at).to(values.device)].float())
            done += len(batch.positions)
    context.progress("calibration", total, total)
    return {name: torch.cat(rows) for name, rows in parts.items()}


def _weight(context: Context, site: Site) -> torch.Tensor:
    matrix = f"weight:{site.name.removesuffix('hook_post')}out.weight"
    return context.subject.parameter(matrix).detach().float()


def _curve(context: Context, site: Site, hidden: torch.Tensor, weight: torch.Tensor) -> CettCurve:
    if not len(hidden):  # nothing is known: whatever the level below 1, all units stay
        return CettCurve(np.zeros(1), np.zeros(1))

    def measure() -> dict[str, np.ndarray]:
        with torch.inference_mode():
            curve = cett_curve(hidden, weight)
        return {"thresholds": curve.thresholds, "values": curve.values}

    of = {"mlp.hook_post": "", "mlp.experts.hook_post": f"-expert-{site.expert}"}.get(site.role, "-shared")
    return CettCurve(**context.step(f"cett-{site.layer}{of}", measure))

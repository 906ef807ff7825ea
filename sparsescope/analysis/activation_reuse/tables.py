"""The tables of ``activation_reuse`` from its sums by document.

Nulls take the rates of units from all tokens but the first of each window. Numbers that are no means over
tokens (ratios to a null, inequality of units) have jackknife intervals over folds of documents, in which the
rates are taken anew.
Shapes: C documents, L places, R rules, K chunk lengths, B resamples, G folds with documents, U units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from einops import rearrange

from sparsescope.activations.bound_table import bound_rows, default_attended, schemes_of
from sparsescope.core.tables import grid, places
from sparsescope.kernels.active_sets import RULES, overlaps
from sparsescope.metrics.bounds import Assumptions
from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.metrics.jackknife import fold_of, jackknife_interval
from sparsescope.metrics.reuse import gini_of_rates, hot_share, lorenz_curve, union_nulls
from sparsescope.models.structure.dimensions import read_dimensions

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.analysis.activation_reuse import ActivationReuseParams
    from sparsescope.analysis.activation_reuse.accumulate import ReuseAccumulator

CHUNK = 8  # tokens of chunk-level sparsity
BOUND_CHUNKS = (1, 8, 64)


@dataclass(slots=True)
class Measured:
    """What was summed, in the order of documents, and what all tables share.

    Attributes:
        found: The accumulator, finished.
        draws: Resamples of documents.
        sums: As those of the accumulator, but ``union`` and ``first`` are shares of the units of their site.
        axes: Sites and rules, the first axes of every table.
        use: Gini coefficient and hot share of the rates, [2, L, R].
        use_replicates: The same without each fold of documents, [G, 2, L, R].
        ratios: Union density / marginal null without each fold, [G, L, R, K]; NaN where nothing is left.
    """

    found: ReuseAccumulator
    draws: DocumentBootstrap
    sums: dict[str, np.ndarray]
    axes: list[dict[str, Any]]
    use: np.ndarray = field(init=False)
    use_replicates: np.ndarray = field(init=False)
    ratios: np.ndarray = field(init=False)

    @classmethod
    def of(cls, params: ActivationReuseParams, found: ReuseAccumulator) -> Measured:
        """Put the sums in order, and leave out each fold of documents in turn."""
        order, domains, numbers = found.by_document()
        sums = {name: array[order] for name, array in found.sums.items()}
        widths = np.array([place.width for place in found.places], dtype=float)[:, None, None]
        sums |= {name: sums[name] / widths for name in ("union", "first")}
        draws = DocumentBootstrap.draw(domains, params.resamples, params.seed, params.level)
        self = cls(found, draws, sums, [places(found.places), {"rule": list(found.rules)}])
        folds = np.array([fold_of(number) for number in numbers.tolist()])
        use, ratios = [], []
        self.use = _inequality([fired.sum(0) for fired in found.fired])
        for fold in np.flatnonzero(found.fold_tokens):
            kept, left = folds != fold, [fired.sum(0) - fired[fold] for fired in found.fired]
            tokens = max(int(found.fold_tokens.sum() - found.fold_tokens[fold]), 1)
            with np.errstate(invalid="ignore", divide="ignore"):
                density = sums["union"][kept].sum(0) / sums["chunks"][kept].sum(0)
                ratios.append(density / self._nulls([fired / tokens for fired in left])[..., 1])
            use.append(_inequality(left))
        self.use_replicates, self.ratios = np.array(use), np.array(ratios)
        return self

    @property
    def rates(self) -> list[np.ndarray]:
        """Share of tokens on which each unit is active, [R, U] for each site."""
        return [fired.sum(0) / int(self.found.fold_tokens.sum()) for fired in self.found.fired]

    @property
    def documents(self) -> int:
        """Documents with a token after the first of a window."""
        return int((self.sums["chunks"][:, 0] > 0).sum())

    def _nulls(self, rates: list[np.ndarray]) -> np.ndarray:
        """Both nulls of the union for each site, rule and number of tokens, [L, R, K, 2]."""
        return np.array([union_nulls(site, self.found.levels) for site in rates])

    def _by_length(self, length: str, counted: str, count: str, **values: np.ndarray) -> pd.DataFrame:
        """A row for each number of tokens that there are chunks (or windows) of, from arrays [L, R, K]."""
        counts = self.sums[counted]
        kept = counts.any(0)
        cells = values | {count: counts.sum(0), "documents": (counts > 0).sum(0)}
        sizes = [1 << n for n in np.flatnonzero(kept).tolist()]
        frame = grid(
            [*self.axes, {length: sizes}], **{name: array[..., kept] for name, array in cells.items()}
        )
        return frame.sort_values(["layer", "site", "rule", length], kind="stable")

    def unions(self) -> pd.DataFrame:
        """Union density against chunk length."""
        density = self.draws.ratio(self.sums["union"], self.sums["chunks"][:, None, None, :])
        nulls = self._nulls(self.rates)
        ratio = _over(density.mean, nulls[..., 1])
        low, high = jackknife_interval(ratio, self.ratios, self.draws.level)
        return self._by_length(
            "chunk",
            "chunks",
            "chunks",
            **density._asdict(),
            independent=nulls[..., 0],
            marginal=nulls[..., 1],
            ratio=ratio,
            ratio_low=low,
            ratio_high=high,
        )

    def chunk_sparsity(self) -> pd.DataFrame:
        """Token-level and chunk-level sparsity; the second is NaN where no window has 8
        tokens after the first.
        """
        sparsity = self.draws.ratio(self.sums["union"], self.sums["chunks"][:, None, None, :]).complement
        columns = {}
        for name, k in (("token", 1), ("chunk", CHUNK)):
            n = k.bit_length() - 1
            for column, values in zip(("sparsity", "low", "high"), sparsity, strict=True):
                columns[f"{name}_{column}"] = values[:, :, n] if n < self.found.levels else np.nan
        return grid(self.axes, **columns, documents=self.documents)

    def aggregated(self) -> pd.DataFrame:
        """Share of units that the first t tokens leave unused."""
        unused = self.draws.ratio(self.sums["first"], self.sums["firsts"][:, None, None, :]).complement
        nulls = 1 - self._nulls(self.rates)
        return self._by_length(
            "tokens",
            "firsts",
            "windows",
            **unused._asdict(),
            independent=nulls[..., 0],
            marginal=nulls[..., 1],
            ratio=_over(unused.mean, nulls[..., 1]),
        )

    def neighbors(self) -> pd.DataFrame:
        """Jaccard index of neighbours with both nulls."""
        pairs = self.sums["pairs"]
        columns: dict[str, np.ndarray] = {}
        for name, prefix, values in (
            ("mean", "", self.sums["overlap"]),
            ("within", "within_", self.sums["within"]),
            ("excess", "excess_", self.sums["overlap"] - self.sums["within"]),
        ):
            columns |= dict(
                zip((name, f"{prefix}low", f"{prefix}high"), self.draws.ratio(values, pairs), strict=True)
            )
        sample = self.found.sample
        left = np.flatnonzero(sample.documents[:-1] != sample.documents[1:])
        across, across_pairs = [], []
        for n in range(len(self.found.places)):
            bits = np.ascontiguousarray(rearrange(sample.parts[str(n)], "token rule word -> rule token word"))
            total, count = overlaps(bits, left, left + 1)
            across.append(_over(total, count))
            across_pairs.append(count)
        columns |= {"across": np.array(across), "across_pairs": np.array(across_pairs)}
        return grid(self.axes, **columns, pairs=pairs.sum(0), documents=(pairs > 0).sum(0))

    def lorenz(self) -> pd.DataFrame:
        """Lorenz curves."""
        frames = []
        for site, both in zip(self.found.places, self.rates, strict=True):
            for rule, rate in zip(self.found.rules, both, strict=True):
                units, firings = lorenz_curve(rate)
                curve = {"units_share": units, "firings_share": firings}
                frames.append(grid([curve], layer=site.layer, site=site.name, rule=rule))
        return pd.concat(frames)

    def concentration(self) -> pd.DataFrame:
        """Inequality of units with intervals."""
        low, high = (
            np.clip(ends, 0, 1)
            for ends in jackknife_interval(self.use, self.use_replicates, self.draws.level)
        )
        columns: dict[str, np.ndarray] = {}
        for index, (name, prefix) in enumerate((("gini", "gini"), ("hot_share", "hot"))):
            columns |= {name: self.use[index], f"{prefix}_low": low[index], f"{prefix}_high": high[index]}
        units = np.array([[place.width] for place in self.found.places])
        tokens = int(self.found.fold_tokens.sum())
        return grid(self.axes, **columns, units=units, tokens=tokens, documents=len(self.found.documents))

    def load(self) -> pd.DataFrame:
        """How many tokens were sent to each expert, where experts are the units."""
        tokens = int(self.found.fold_tokens.sum())
        frames = []
        for place, fired in zip(self.found.places, self.found.fired, strict=True):
            group, sent = self.found.experts[place.layer], fired.sum(0)[0]
            where = places(group) | {"expert": np.arange(len(group))}
            frames.append(grid([where], routed=sent, share=sent / tokens, tokens=tokens))
        return pd.concat(frames)

    def bounds(
        self, params: ActivationReuseParams, context: Context, experts: Measured | None = None
    ) -> list[dict[str, Any]]:
        """Upper bounds on weight bytes when weights are read once for a chunk.

        Args:
            params: Parameters of the analysis.
            context: Subject and corpus.
            experts: Reuse of experts. The density of a layer of a mixture is of the units of the experts that
                the chunk reaches: the dense model reads no others.
        """
        layers, shares = self._hidden_layers(context, experts)
        if not layers:
            return []
        model = read_dimensions(context.subject)
        attended = (
            default_attended(model, context.corpus.context) if params.attended is None else params.attended
        )
        rows: list[dict[str, Any]] = []
        for index, rule in enumerate(RULES):
            name = rule if rule == "nonzero" else f"energy {100 * params.use_share:g} %"
            for k in BOUND_CHUNKS:
                n = k.bit_length() - 1
                if n >= self.found.levels or not self.sums["chunks"][:, n].any():
                    continue
                count = self.sums["chunks"][:, n]
                active, there = shares[0][:, :, index, n], shares[1][:, :, n]
                measured = (active.sum(0) / there.sum(0), self.draws.replicates(active, there))
                for scheme in schemes_of(model):
                    assumed = Assumptions(scheme, attended, model.bytes_per_weight, together=k)
                    bounds = bound_rows(
                        name, model, layers, *measured, assumed, self.draws, int((count > 0).sum())
                    )
                    rows += [row for row in bounds if row["quantity"] == "weight bytes"]
        return rows

    def _hidden_layers(
        self, context: Context, experts: Measured | None
    ) -> tuple[list[int], tuple[np.ndarray, np.ndarray]]:
        """Layers of which every hidden unit was measured; and, as shares of their hidden units that are added
        over chunks, what chunks use there, [C, layer, R, K], and what the dense model reads, [C, layer, K].
        """
        measured = {site.name for site in self.found.sites}
        lacking = {site.layer for site in context.subject.hidden_sites() if site.name not in measured}
        hidden = [
            (n, place)
            for n, place in enumerate(self.found.places)
            if place.role.endswith("hook_post") and place.layer not in lacking
        ]
        active: dict[int, Any] = {}
        there: dict[int, Any] = {}
        for n, place in hidden:
            share = place.width / sum(other.width for _, other in hidden if other.layer == place.layer)
            reached = self.sums["chunks"]
            if place.kind == "experts" and experts is not None:
                # Sums of shares of the experts that a chunk reaches, in place of whole layers
                reached = experts.sums["union"][:, list(experts.found.experts).index(place.layer), 0]
            active[place.layer] = active.get(place.layer, 0.0) + self.sums["union"][:, n] * share
            there[place.layer] = there.get(place.layer, 0.0) + reached * share
        if not active:
            return [], (np.empty(0), np.empty(0))
        return list(active), (np.stack(list(active.values()), 1), np.stack(list(there.values()), 1))


def _over(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A / b; NaN where b is not positive."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)


def _inequality(fired: list[np.ndarray]) -> np.ndarray:
    """Gini coefficient and hot share of how often the units of each site fired, [2, L, R]."""
    return np.array(
        [[measure(site.astype(float)) for site in fired] for measure in (gini_of_rates, hot_share)]
    )

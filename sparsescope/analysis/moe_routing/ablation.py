"""The loss of a mixture without some of its experts: single ones for each domain, and the least salient ones.

An expert that a domain chooses most need not matter for it. It is taken away (its weight is zero, the others
keep theirs) beside experts of the same layer with the most similar load, and the difference is what its
being the specialist of that domain means. Ranks of pruning criteria are followed by taking the least experts
of every layer away at once, where tokens go to their next best expert, beside random orders.
All passes read the same tokens: differences are paired by document.
Shapes: D documents, E experts.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.activations.edited_passes import held_out
from sparsescope.activations.losses import token_losses
from sparsescope.metrics.estimates import PAIRED_BOOTSTRAP, DocumentBootstrap, Estimate
from sparsescope.models.structure.routing import without_experts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.analysis.moe_routing.tables import Measured
    from sparsescope.core.numbers import Interval
    from sparsescope.models.structure.routing import Router

#: Criteria of the table ``saliency`` that order experts, by the name that a reader sees.
CRITERIA = {"frequency": "frequency", "soft mass": "soft_mass", "EAN": "ean", "REAP": "reap"}
RANDOM = "random order"


class Ablations:
    """Passes without experts, and what they say.

    Args:
        measured: Shares, resamples and parameters.
        context: Of the run; its steps keep finished passes.
        routers: Routers of the mixture.
    """

    def __init__(self, measured: Measured, context: Context, routers: Sequence[Router]) -> None:
        self.measured, self.context, self.routers = measured, context, tuple(routers)
        params = measured.params
        _, self.corpus = held_out(context.corpus, params.ablation_tokens)
        self.plan = measured.specialists(params.matched)
        singles = {(layer, expert) for entry in self.plan for layer, expert in (entry[:2], *entry[3])}
        self.singles = sorted(singles)
        orders = len(CRITERIA) + params.random_orders
        self.planned, self.done = 1 + len(self.singles) + orders * len(self._counts()), 0
        self.dense = self._losses("whole", {}, "zero")
        self.documents = np.unique(self.dense["document"])
        places = np.searchsorted(self.documents, self.dense["document"])
        self.domain = np.zeros(len(self.documents), np.int64)
        self.domain[places] = self.dense["domain"]
        self.targets = np.bincount(places).astype(np.float64)
        self._places = places
        self.draws = DocumentBootstrap.draw(
            self.domain, params.resamples, params.seed, params.level, PAIRED_BOOTSTRAP
        )
        self._changes: dict[tuple[int, int], NDArray[np.float64]] = {}

    def single(self) -> pd.DataFrame | None:
        """The table ``ablation``; None where the text has one domain."""
        if not self.plan:
            return None
        for layer, expert in self.singles:
            name = f"without-{layer}-{expert}"
            self._changes[layer, expert] = self._change(name, {layer: [expert]}, "zero")
        rows: list[dict[str, Any]] = []
        for layer, expert, chosen_for, matched in self.plan:
            for role, (at, number) in (
                ("specialist", (layer, expert)),
                *(("matched", pair) for pair in matched),
            ):
                for domain in self._domains():
                    member = self.domain == domain
                    found = self.draws.among(member).ratio(
                        self._changes[at, number][member], self.targets[member]
                    )
                    rows.append(
                        {
                            "layer": at,
                            "expert": number,
                            "chosen_for": self.measured.names[chosen_for],
                            "role": role,
                            "domain": self.measured.names[domain],
                            "change": float(found.mean),
                            **self._ends(found, member),
                            "share": self.measured.share_of(at, number, domain),
                            "tokens": int(self.targets[member].sum()),
                            "documents": int(member.sum()),
                        }
                    )
        return pd.DataFrame(rows)

    def matrix(self) -> pd.DataFrame:
        """The table ``ablation_matrix``: specialists minus experts of like load, mean over layers."""
        rows: list[dict[str, Any]] = []
        for (chosen_for, domain), effect in self._effects.items():
            member = self.domain == domain
            found = self.draws.among(member).ratio(effect[member], self.targets[member])
            rows.append(
                {
                    "chosen_for": self.measured.names[chosen_for],
                    "domain": self.measured.names[domain],
                    "effect": float(found.mean),
                    **self._ends(found, member),
                    "documents": int(member.sum()),
                }
            )
        return pd.DataFrame(rows)

    def own_minus_others(self) -> tuple[float, Interval | None] | None:
        """Effect of specialists on their own domain minus that on the others, mean over domains, in nats a
        token; the interval where every domain has documents enough. None where one domain was read.
        """
        values: dict[bool, list[float]] = {True: [], False: []}
        replicates: dict[bool, list[NDArray[np.float64]]] = {True: [], False: []}
        for (chosen_for, domain), effect in self._effects.items():
            member, own = self.domain == domain, chosen_for == domain
            values[own].append(effect[member].sum() / self.targets[member].sum())
            draws = self.draws.among(member)
            replicates[own].append(draws.replicates(effect[member], self.targets[member]))
        if not values[True] or not values[False]:  # the part that is read has one domain
            return None
        total = float(np.mean(values[True]) - np.mean(values[False]))
        drawn = np.mean(replicates[True], axis=0) - np.mean(replicates[False], axis=0)
        enough = np.bincount(self.domain)[self._domains()].min() >= self.measured.params.least_documents
        return total, self.draws.interval(drawn) if enough else None

    @cached_property
    def _effects(self) -> dict[tuple[int, int], NDArray[np.float64]]:
        """Change without the specialists of a domain minus that without experts of like load, mean over
        layers, summed by document, [D]: by that domain and the one whose tokens are read.
        """
        found: dict[tuple[int, int], NDArray[np.float64]] = {}
        for chosen_for in sorted({entry[2] for entry in self.plan}):
            effects = [
                self._changes[layer, expert] - np.mean([self._changes[pair] for pair in matched], axis=0)
                for layer, expert, of, matched in self.plan
                if of == chosen_for
            ]
            found |= {(chosen_for, domain): np.mean(effects, axis=0) for domain in self._domains()}
        return found

    def pruning(self, saliency: pd.DataFrame) -> pd.DataFrame:
        """The table ``pruning``.

        Args:
            saliency: The table of that name, which orders the experts.
        """
        params = self.measured.params
        orders = {
            name: [_order(rows[column]) for rows in self._by_layer(saliency)]
            for name, column in CRITERIA.items()
        }
        generator = np.random.default_rng([params.seed, 1])
        for number in range(params.random_orders):
            orders[f"{RANDOM} {number + 1}"] = [generator.permutation(r.experts) for r in self.routers]
        flagged = [set(rows.loc[rows["super"] == "super", "expert"]) for rows in self._by_layer(saliency)]
        documents, tokens = len(self.documents), int(self.targets.sum())
        rows: list[dict[str, Any]] = []
        for name, order in orders.items():
            for share, count in self._counts().items():
                gone = {
                    r.layer: [int(e) for e in ids[:count]] for r, ids in zip(self.routers, order, strict=True)
                }
                step = f"pruned-{name.replace(' ', '-')}-{count}"
                change = self._change(step, gone, self._semantics)
                found = self.draws.ratio(change, self.targets)
                lost = sum(len(s & set(gone[r.layer])) for r, s in zip(self.routers, flagged, strict=True))
                rows.append(
                    {
                        "criterion": name,
                        "removed": share,
                        "change": float(found.mean),
                        "low": float(found.low),
                        "high": float(found.high),
                        "super_removed": lost,
                        "tokens": tokens,
                        "documents": documents,
                    }
                )
        return pd.DataFrame(rows)

    @property
    def _semantics(self) -> str:
        """Tokens go to their next best expert, or, where the router cannot be asked again, nowhere."""
        return "mask_reselect" if all(router.rule is not None for router in self.routers) else "zero"

    def _counts(self) -> dict[float, int]:
        """Experts of a layer that go at each share; at least as many stay as a token needs."""
        router, found = self.routers[0], {}
        for share in self.measured.params.removed:
            count = math.floor(share * router.experts + 1e-9)
            if 0 < count <= router.experts - router.k:
                found[count / router.experts] = count
        return found

    def _by_layer(self, table: pd.DataFrame) -> list[pd.DataFrame]:
        return [table[table["layer"] == router.layer].sort_values("expert") for router in self.routers]

    def _domains(self) -> list[int]:
        return [int(domain) for domain in np.unique(self.domain)]

    def _ends(self, found: Estimate, member: NDArray[np.bool_]) -> dict[str, float]:
        """The interval, where the domain has documents enough."""
        enough = int(member.sum()) >= self.measured.params.least_documents
        ends = (found.low, found.high) if enough else (math.nan, math.nan)
        return dict(zip(("low", "high"), map(float, ends), strict=True))

    def _change(self, name: str, removed: Mapping[int, Sequence[int]], semantics: str) -> NDArray[np.float64]:
        """Loss without experts minus that with them, summed by document, [D]."""
        nll = self._losses(name, removed, semantics)["nll"] - self.dense["nll"]
        return np.bincount(self._places, nll, len(self.documents)).astype(np.float64)

    def _losses(
        self, name: str, removed: Mapping[int, Sequence[int]], semantics: str
    ) -> dict[str, NDArray[Any]]:
        """Losses of one pass, a step of the run."""

        def run() -> dict[str, NDArray[Any]]:
            with without_experts(self.context.subject, self.routers, removed, semantics):
                found = token_losses(self.context.subject, self.corpus)
            return {"nll": found.nll, "document": found.document, "domain": found.domain}

        self.context.progress("passes without experts", self.done, self.planned, "passes")
        arrays = self.context.step(name, run)
        self.done += 1
        self.context.progress("passes without experts", self.done, self.planned, "passes")
        return arrays


def _order(scores: pd.Series) -> NDArray[np.int64]:
    """Experts, the least salient first; those that no token chose before all, equal ones by number."""
    return np.argsort(scores.fillna(-np.inf).to_numpy(float), kind="stable")

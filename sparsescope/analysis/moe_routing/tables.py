"""From a trace of the routing to tables with intervals and nulls.

Shapes: N tokens, D documents, L layers, E experts, k experts per token, F folds of documents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sparsescope.activations.routing_information import MEASURES, DomainInformation, folds_by_domain
from sparsescope.core.tables import grid
from sparsescope.metrics.coactivation import coactivation, coactivation_chance, pair_counts
from sparsescope.metrics.document_nulls import domain_tables
from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.metrics.expert_cache import cache_hit_rate, segment_coverage
from sparsescope.metrics.expert_load import ExpertLoad, auxiliary_loss, expert_load
from sparsescope.metrics.information import entropy
from sparsescope.metrics.jackknife import FOLDS, jackknife_interval
from sparsescope.metrics.routing import expert_counts
from sparsescope.metrics.routing_locality import (
    chunk_sparsity,
    chunk_sparsity_chance,
    expert_mask,
    repetition,
    repetition_chance,
    shifted_repetition,
    windows,
)
from sparsescope.metrics.specialization import domain_specialization, vocabulary_specialization
from sparsescope.metrics.super_experts import super_experts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sparsescope.activations.routing import RoutingTrace
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.moe_routing import MoeRoutingParams
    from sparsescope.models.structure.routing import Router
    from sparsescope.models.subject import Subject

    Array = NDArray[np.float64]

FIRST, SHARED = "first choice", "shared"
CHUNKS = (1, 2, 4, 8, 16)
_SHIFTS, _SHOWN, _ORDERS = 100, 300, 20
#: A specialist takes at least this many times its fair share of its domain's slots, so that it has tokens to
# lose.
_LEAST_LOAD = 0.25


@dataclass(frozen=True)
class Measured:
    """What the passes gave, and the resamples that all tables share."""

    params: MoeRoutingParams
    corpus: TokenizedCorpus
    routers: Sequence[Router]
    trace: RoutingTrace
    information: DomainInformation | None
    shuffled: DomainInformation | None

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers with a router."""
        return [router.layer for router in self.routers]

    @property
    def k(self) -> int:
        """Experts per token."""
        return self.routers[0].k

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains, by index."""
        return self.corpus.domains

    @cached_property
    def domains(self) -> list[int]:
        """Indices of the domains that have a token."""
        return [int(domain) for domain in np.unique(self.trace.domain)]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Place of the domain of each document in ``domains``, [D]."""
        return np.searchsorted(self.domains, self.trace.domain)

    @cached_property
    def chosen(self) -> Array:
        """Choices, [D, L, E]."""
        return self.trace.chosen().astype(np.float64)

    @cached_property
    def tokens_of(self) -> Array:
        """Tokens, [D]."""
        return self.trace.tokens.astype(np.float64)

    @cached_property
    def without(self) -> Array:
        """Which documents stay when a fold is left out, float64 [F, D]."""
        return (folds_by_domain(self.trace.domain) != np.arange(FOLDS)[:, None]).astype(np.float64)

    @cached_property
    def draws(self) -> DocumentBootstrap:
        """Resamples of documents, within domains."""
        params = self.params
        return DocumentBootstrap.draw(self.trace.domain, params.resamples, params.seed, params.level)

    @cached_property
    def fewest(self) -> int:
        """Documents of the domain that has the fewest."""
        return int(np.bincount(self.labels).min())

    @property
    def compares(self) -> bool:
        """Whether every domain has documents enough for intervals of comparisons."""
        return self.fewest >= self.params.least_documents

    # Load

    def load(self) -> pd.DataFrame:
        """One row for each layer and domain, and for the whole text."""
        parts = [("all", np.ones(len(self.labels), bool))]
        if len(self.domains) > 1:
            parts += [(self.names[domain], self.trace.domain == domain) for domain in self.domains]
        return pd.concat([self._load_of(name, member) for name, member in parts], ignore_index=True)

    def _load_of(self, name: str, member: NDArray[np.bool_]) -> pd.DataFrame:
        trace, tokens = self.trace, self.tokens_of[member]
        n = tokens.sum()

        def load_of(weights: Array) -> ExpertLoad:
            counts = np.tensordot(weights, self.chosen[member], 1)
            return expert_load(counts, np.broadcast_to((weights @ tokens)[..., None], counts.shape[:-1]))

        whole = load_of(np.ones(len(tokens)))
        folds = load_of(self.without[:, member]).cv
        folds[self.without[:, member].all(1)] = np.nan  # a fold without documents leaves nothing out
        low, high = jackknife_interval(whole.cv, folds, self.params.level)
        counts = self.chosen[member].sum(0)

        def per_token(values: NDArray[Any]) -> Array:
            return np.asarray(values[member].sum(0) / n, np.float64)

        return pd.DataFrame(
            {
                "layer": self.layers,
                "domain": name,
                "cv": whole.cv,
                "low": low,
                "high": high,
                "normalized_entropy": whole.normalized_entropy,
                "effective_experts": whole.effective_experts,
                "max_violation": whole.max_violation,
                "max_token_share": whole.max_token_share,
                "dead": whole.dead,
                "auxiliary_loss": auxiliary_loss(counts, trace.mass[member].sum(0), np.full(len(counts), n)),
                "z_loss": per_token(trace.squared_logsumexp),
                "router_entropy": per_token(trace.entropy),
                "margin": per_token(trace.margin),
                "near_ties": per_token(trace.near_ties),
                "tokens": int(n),
                "documents": int(member.sum()),
            }
        )

    # Specialization

    @cached_property
    def domain_table(self) -> Array:
        """Share of the tokens of a domain that choose an expert, [L, domain, E]."""
        return domain_specialization(
            domain_tables(self.chosen, self.labels), np.bincount(self.labels, self.tokens_of)
        )

    def share_of(self, layer: int, expert: int, domain: int) -> float:
        """Share of the tokens of a domain that choose an expert."""
        place = self.domains.index(domain)
        return float(self.domain_table[self.layers.index(layer), place, expert])

    def domain_shares(self) -> pd.DataFrame:
        """One row for each layer, expert and domain."""
        mean = self.domain_table.mean(1)  # [L, E]
        frames = []
        for place, domain in enumerate(self.domains):
            member = self.trace.domain == domain
            found = self.draws.among(member).ratio(self.chosen[member], self.tokens_of[member][:, None, None])
            with np.errstate(invalid="ignore", divide="ignore"):
                lift = self.domain_table[:, place] / mean
            frames.append(
                grid(
                    [{"layer": self.layers}, {"expert": range(self.trace.experts)}],
                    share=found.mean, low=found.low, high=found.high, all_share=mean, lift=lift,
                ).assign(
                    domain=self.names[domain],
                    tokens=int(self.tokens_of[member].sum()),
                    documents=int(member.sum()),
                )
            )  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    def specialization(self) -> pd.DataFrame | list[Any]:
        """One row for each layer and measure; none where the text has one domain."""
        found = self.information
        if found is None:
            return []
        from scipy.stats import false_discovery_control

        level, nan = self.params.level, np.full(found.value.shape, np.nan)
        low, high = found.ends(level) if self.compares else (nan, nan)
        shuffled, spread, (beyond, beyond_low, beyond_high) = nan, nan, (nan, nan, nan)
        if self.shuffled is not None:
            shuffled, spread = self.shuffled.excess, self.shuffled.null_sd
            beyond, beyond_low, beyond_high = found.against(self.shuffled, level)
            if not self.compares:
                beyond_low = beyond_high = nan
        whole = float(entropy(np.bincount(self.labels, self.tokens_of)))
        known = np.isfinite(found.p)
        q = nan.copy()
        q[known] = false_discovery_control(found.p[known])
        return grid(
            [{"layer": self.layers}, {"measure": MEASURES}],
            information=found.value, null_mean=found.null_mean, null_sd=found.null_sd, z=found.z, p=found.p,
            q=q, excess=found.excess, low=low, high=high, shuffled=shuffled, shuffled_sd=spread,
            beyond_shuffled=beyond,
            beyond_low=beyond_low, beyond_high=beyond_high, of_entropy=found.excess / whole,
            documents=len(self.labels),
        )  # fmt: skip

    def specialists(self, matched: int) -> list[tuple[int, int, int, tuple[tuple[int, int], ...]]]:
        """Layer, expert and domain of the specialists, each with the experts of like load beside it.

        The specialist of a domain is the expert whose share in it is most above its mean over domains. Like
        load: the nearest shares of the whole text, among experts that are no specialists of that domain.
        """
        if len(self.domains) < 2:
            return []
        mean = self.domain_table.mean(1)
        fair = _LEAST_LOAD * self.k / self.trace.experts
        found = []
        for place, layer in enumerate(self.layers):
            for column, domain in enumerate(self.domains):
                share = self.domain_table[place, column]
                gain = np.where(share >= fair, share - mean[place], -np.inf)
                expert = int(gain.argmax())
                distance = np.abs(mean[place] - mean[place, expert])
                distance[expert] = np.inf
                near = np.argsort(distance, kind="stable")[: min(matched, len(distance) - 1)]
                found.append((layer, expert, domain, tuple((layer, int(e)) for e in near)))
        return found

    def vocabulary(self) -> pd.DataFrame:
        """One row for each layer and kind of token."""
        trace, experts = self.trace, self.trace.experts
        generator = np.random.default_rng([self.params.seed, 2])
        rows = []
        for of, ids in (("read", trace.token_ids), ("next", trace.next_ids)):
            there = np.flatnonzero(ids >= 0)
            _, known = np.unique(ids[there], return_inverse=True)
            seen = np.bincount(known)
            for place, layer in enumerate(self.layers):
                first = trace.index[there, place, :1].astype(np.int64)
                found = vocabulary_specialization(expert_counts(first, known, experts), seen)
                chance = [
                    vocabulary_specialization(
                        expert_counts(generator.permutation(first), known, experts), seen
                    ).mean
                    for _ in range(_ORDERS)
                ]
                rows.append((layer, of, found.mean, float(np.mean(chance)), found.ids))
        return pd.DataFrame(rows, columns=["layer", "of", "share", "chance", "ids"])

    def coactivation(self) -> pd.DataFrame:
        """One row for each layer and ordered pair of experts, of a router that chooses several."""
        trace, experts = self.trace, self.trace.experts
        fold = folds_by_domain(trace.domain)[trace.document]
        ordered = [(one, other) for one in range(experts) for other in range(experts) if one != other]
        one, other = np.array(ordered).T
        frames = []
        for place, layer in enumerate(self.layers):
            parts = pair_counts(trace.index[:, place].astype(np.int64), experts, documents=fold)
            tokens = np.bincount(fold, minlength=len(parts)).astype(np.float64)
            whole = coactivation(parts.sum(0), tokens.sum())
            left = coactivation(parts.sum(0) - parts, tokens.sum() - tokens).lift
            low, high = jackknife_interval(whole.lift, left, self.params.level)
            # Of a pair that never meets no fold differs from the others: that is no certainty
            low, high = (np.where(parts.sum(0) > 0, end, np.nan) for end in (low, high))
            own = np.diagonal(parts.sum(0))
            frames.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "expert": one,
                        "other": [str(number) for number in other],
                        "share": whole.shares[one, other],
                        "chance": coactivation_chance(self.k, experts),
                        "lift": whole.lift[one, other],
                        "low": low[one, other],
                        "high": high[one, other],
                        "phi": whole.phi[one, other],
                        "together": parts.sum(0)[one, other].astype(np.int64),
                        "expected": own[one] * own[other] / tokens.sum(),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    # Order of the text

    def repetition(self) -> pd.DataFrame:
        """One row for each layer, lag and measure."""
        lags, runs = self.params.lags, self.runs
        frames = []
        for place, layer in enumerate(self.layers):
            selections = self.trace.index[:, place].astype(np.int64)
            found = repetition(selections, runs, lags)
            by_document = [
                np.stack(
                    [
                        np.bincount(self._document_of_run, part[:, lag], len(self.labels))
                        for lag in range(lags)
                    ],
                    1,
                )
                for part in (found.first, found.shared, found.pairs)
            ]
            counts = self.chosen[:, place].sum(0)
            firsts = np.bincount(selections[:, 0], minlength=len(counts))
            chance = repetition_chance(counts, firsts)
            shifted = shifted_repetition(
                selections, self.trace.document.astype(np.int64), lags, _SHIFTS, self.params.seed
            )
            shifted = shifted.mean(0) if np.isfinite(shifted).all() else np.full(3, np.nan)
            for number, measure in enumerate((FIRST, SHARED)):
                estimate = self.draws.ratio(by_document[number], by_document[2])
                frames.append(
                    pd.DataFrame(
                        {
                            "layer": layer,
                            "lag": np.arange(1, lags + 1),
                            "measure": measure,
                            "mean": estimate.mean,
                            "low": estimate.low,
                            "high": estimate.high,
                            "load_chance": float(chance[number]),
                            "shifted": float(shifted[number]),
                            "documents": len(self.labels),
                        }
                    )
                )
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def runs(self) -> NDArray[np.int64]:
        """Number of the run of consecutive positions (a window, without its first token) of each token."""
        trace = self.trace
        begins = np.append(True, (np.diff(trace.positions) != 1) | (np.diff(trace.document) != 0))
        return np.cumsum(begins) - 1

    @cached_property
    def _document_of_run(self) -> NDArray[np.int64]:
        begins = np.flatnonzero(np.diff(self.runs, prepend=-1))
        return self.trace.document[begins].astype(np.int64)

    def cache(self) -> pd.DataFrame | list[Any]:
        """One row for each layer, size and rule; none where no window is as long as a segment."""
        spans = windows(self.runs, self.params.segment)
        if not len(spans):
            return []
        experts, k = self.trace.experts, self.k
        sizes = sorted({size for factor in (1, 1.5, 2, 3, 4) if (size := math.ceil(factor * k)) <= experts})
        order = np.random.default_rng([self.params.seed, 3]).permutation(len(self.trace.index))
        rows = []
        for place, layer in enumerate(self.layers):
            selections = self.trace.index[:, place].astype(np.int64)
            for size in sizes:
                for rule in ("fixed", "Belady", "LRU"):
                    hits, chance = (
                        _served(s, spans, experts, size, rule) for s in (selections, selections[order])
                    )
                    rows.append((layer, size, rule, hits, chance, len(spans)))
        return pd.DataFrame(rows, columns=["layer", "size", "rule", "hits", "chance", "segments"])

    def chunk_sparsity(self) -> pd.DataFrame:
        """One row for each layer and length of a chunk."""
        frames = []
        runs, rates = self.runs, self.chosen.sum(0) / self.tokens_of.sum()
        for place, layer in enumerate(self.layers):
            active = expert_mask(self.trace.index[:, place].astype(np.int64), self.trace.experts)
            for chunk in CHUNKS:
                spans = windows(runs, chunk)
                if not len(spans):
                    continue
                document = self.trace.document[spans[:, 0]]
                sums, counts = (
                    np.bincount(document, values, len(self.labels))
                    for values in (chunk_sparsity(active, spans), np.ones(len(spans)))
                )
                found = self.draws.ratio(sums, counts)
                alike, own = chunk_sparsity_chance(rates[place], chunk)
                ends = map(float, found)
                frames.append((layer, chunk, *ends, own, alike, int((counts > 0).sum())))
        columns = ["layer", "chunk", "sparsity", "low", "high", "independent", "alike", "documents"]
        return pd.DataFrame(frames, columns=columns)

    # Experts

    def similarity(self, compared: dict[str, NDArray[Any]]) -> pd.DataFrame:
        """One row for each pair of experts of a layer, from ``alike``."""
        frame = pd.DataFrame(compared)
        return frame.assign(
            layer=frame["layer"].astype(int),
            expert=frame["expert"].astype(int),
            other=frame["other"].astype(int).astype(str),
        )

    def saliency(self) -> pd.DataFrame:
        """One row for each layer and expert."""
        trace, tokens = self.trace, self.tokens_of.sum()
        chosen = self.chosen.sum(0)
        reap = self.draws.ratio(trace.weighted_norm, self.chosen)
        peak = np.where(chosen > 0, trace.peak.max(0), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            weight = trace.weight.sum(0) / chosen
        return grid(
            [{"layer": self.layers}, {"expert": range(trace.experts)}],
            frequency=chosen / tokens, soft_mass=trace.mass.sum(0) / tokens, mean_weight=weight,
            ean=trace.norm.sum(0) / tokens, reap=reap.mean, low=reap.low, high=reap.high, peak=peak,
            super=np.where(super_experts(peak), "super", ""), tokens=chosen.astype(np.int64),
        )  # fmt: skip

    def tokens(self, subject: Subject) -> pd.DataFrame:
        """The beginning of one document of each domain, with the first choice of every layer."""
        trace, frames = self.trace, []
        decode = subject.tokenizer.decode if subject.tokenizer is not None else str
        by_number = {document.index: document.id for document in self.corpus.documents}
        for domain in self.domains:
            number = int(np.flatnonzero(trace.domain == domain)[0])
            rows = np.flatnonzero(trace.document == number)[:_SHOWN]
            text = [decode([int(token)]) for token in trace.token_ids[rows]]
            name = f"{self.names[domain]}: {by_number.get(int(trace.documents[number]), number)}"
            for place, layer in enumerate(self.layers):
                frames.append(
                    pd.DataFrame(
                        {
                            "document": name,
                            "position": np.arange(len(rows)),
                            "token_text": text,
                            "layer": layer,
                            "expert": trace.index[rows, place, 0].astype(np.int64),
                        }
                    )
                )
        return pd.concat(frames, ignore_index=True)


def _served(
    selections: NDArray[np.int64], spans: NDArray[np.int64], experts: int, size: int, rule: str
) -> float:
    """Mean share of the requests of a segment that a cache serves."""
    if rule == "fixed":
        return float(segment_coverage(selections, spans, experts, size).mean())
    how: Literal["belady", "lru"] = "belady" if rule == "Belady" else "lru"
    return float(cache_hit_rate(selections, spans, experts, size, how).mean())

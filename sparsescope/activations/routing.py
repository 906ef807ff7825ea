"""Where a mixture of experts sends the tokens of a text: one pass, kept as small whole numbers.

The trace holds the chosen experts of every token (2 bytes for each layer and choice), from which
co-activation, locality, and the comparison with another checkpoint are taken; what needs the scores of all
experts is summed by document while the text is read, so that no scores are kept. The first position of a
window is left out, as in all statistics, and so is padding, which the model routes as well.

Shapes: N tokens, D documents, L layers with a router, E experts, k experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.capture import BATCH_TOKENS, LiveSource, check_context
from sparsescope.errors import SubjectError
from sparsescope.models.structure.experts import contribution
from sparsescope.models.structure.roles import submodule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.structure.routing import Router
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

#: Scores of two experts that differ by less are a near tie: rounding may decide it.
NEAR_TIE = 1e-3


@dataclass(frozen=True, slots=True)
class RoutingTrace:
    """The routing of a text.

    Attributes:
        index: int16 [N, L, k], the experts of each token, the one with the largest weight first.
        token_ids: int32 [N].
        next_ids: int32 [N], the token that comes next in the window; -1 at its end.
        positions: int32 [N], position in the window.
        document: int32 [N], place of the document of each token in ``documents``.
        documents: int32 [D], numbers of the documents in the corpus.
        domain: int16 [D], index of their domain.
        mass: float64 [D, L, E], probabilities of the experts, summed over tokens.
        weight: float64 [D, L, E], weights that the model applied, summed over tokens.
        squared_logsumexp: float64 [D, L], summed over tokens: the z-loss times tokens.
        entropy: float64 [D, L], nats, of the probabilities of a token, summed.
        margin: float64 [D, L], score of the last expert chosen minus the first one left out, summed; NaN
            where a router does not choose by its scores alone (a bias, groups, an unknown rule).
        near_ties: float64 [D, L], tokens whose margin is below ``NEAR_TIE``; NaN likewise.
        norm: float64 [D, L, E], Euclidean norm of what an expert says before its weight, summed over the
            tokens sent to it; empty where outputs were not read.
        weighted_norm: float64 [D, L, E], the same times the weight.
        peak: float64 [D, L, E], largest absolute entry.
    """

    index: NDArray[np.int16]
    token_ids: NDArray[np.int32]
    next_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    document: NDArray[np.int32]
    documents: NDArray[np.int32]
    domain: NDArray[np.int16]
    mass: NDArray[np.float64]
    weight: NDArray[np.float64]
    squared_logsumexp: NDArray[np.float64]
    entropy: NDArray[np.float64]
    margin: NDArray[np.float64]
    near_ties: NDArray[np.float64]
    norm: NDArray[np.float64]
    weighted_norm: NDArray[np.float64]
    peak: NDArray[np.float64]

    @property
    def experts(self) -> int:
        """Experts of a layer, E."""
        return self.mass.shape[-1]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Tokens of each document, int64 [D]."""
        return np.bincount(self.document, minlength=len(self.documents)).astype(np.int64)

    def chosen(self) -> NDArray[np.int64]:
        """How often each document chose each expert, int64 [D, L, E]."""
        documents, (_, layers, _), experts = len(self.documents), self.index.shape, self.experts
        places = (
            self.document[:, None, None].astype(np.int64) * layers + np.arange(layers)[:, None]
        ) * experts
        counts = np.bincount((places + self.index).reshape(-1), minlength=documents * layers * experts)
        return counts.reshape(documents, layers, experts).astype(np.int64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, for a step of a run."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> RoutingTrace:
        """The trace from its ``arrays``."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def trace_routing(
    subject: Subject,
    corpus: TokenizedCorpus,
    routers: Sequence[Router],
    *,
    outputs: bool = False,
    told: Callable[[int, int], None] | None = None,
) -> RoutingTrace:
    """Read a text and keep where each token was sent.

    Args:
        subject: The mixture.
        corpus: The text as its tokenizer sees it.
        routers: From ``models.structure.routing.routers(subject)``.
        outputs: Compute what each expert says on its tokens too, about twice the time.
        told: Called with batches read and batches in all.

    Raises:
        SubjectError: Layers have other numbers of experts, every expert gets every token, the windows are
            too long, or no token is after the first of a window.
    """
    shapes = {(router.experts, router.k) for router in routers}
    if any(experts == k for experts, k in shapes):
        raise SubjectError(
            "every token is sent to every expert, so that nothing is chosen",
            where=subject.id,
            allowed="a router that leaves experts out",
            got=f"{routers[0].k} of {routers[0].experts} experts for each token",
            next_step="gates of which weights are zero instead (a varying number of experts) are not "
            "read here",
        )
    if len(shapes) > 1:
        raise SubjectError(
            "layers of this mixture have different numbers of experts",
            where=subject.id,
            allowed="as many experts, and as many of them per token, in every layer",
            got=sorted(shapes),
        )
    check_context(subject, corpus)
    sites = [site for router in routers for site in router.sites]
    if outputs:
        sites += [site for group in _by_layer(subject, routers).values() for site in group]
    source = LiveSource(subject, corpus, tuple(sites), batch_tokens=BATCH_TOKENS, reuse=True)
    reader = _Reader(subject, routers, outputs)
    for number, batch in enumerate(source):
        reader.take(batch)
        if told is not None:
            told(number + 1, source.n_batches)
    if not reader.index:
        raise SubjectError(
            "there is no token after the first of a window, and the first one is not measured",
            where=f"corpus {corpus.name}",
            got=f"{corpus.n_tokens} tokens in {len(corpus.documents)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    return reader.finish()


class _Reader:
    """What is kept and summed of the batches."""

    def __init__(self, subject: Subject, routers: Sequence[Router], outputs: bool) -> None:
        self.subject, self.routers, self.outputs = subject, routers, outputs
        self.shape = (len(routers), routers[0].experts)
        self.index: list[NDArray[np.int16]] = []
        self.columns: dict[str, list[NDArray[np.int32]]] = {
            name: [] for name in ("token_ids", "next_ids", "positions", "document")
        }
        self.places: dict[tuple[int, int], int] = {}
        self.sums: list[dict[str, NDArray[Any]]] = []
        self.expert_sites = _by_layer(subject, routers) if outputs else {}

    def take(self, batch: ActivationBatch) -> None:
        rows = np.flatnonzero(batch.positions > 0)
        if not len(rows):
            return
        key = (batch.document, batch.domain)
        if key not in self.places:
            self.places[key] = len(self.places)
            self.sums.append(self._empty())
        sums = self.sums[self.places[key]]
        followed = np.append(batch.positions[1:] == batch.positions[:-1] + 1, False)
        following = np.where(followed, np.append(batch.token_ids[1:], -1), -1)
        for name, values in (
            ("token_ids", batch.token_ids),
            ("next_ids", following),
            ("positions", batch.positions),
            ("document", np.full(len(followed), self.places[key])),
        ):
            self.columns[name].append(values[rows].astype(np.int32))
        chosen = [self._layer(n, router, batch, rows, sums) for n, router in enumerate(self.routers)]
        self.index.append(np.stack(chosen, axis=1).astype(np.int16))

    def _layer(
        self, n: int, router: Router, batch: ActivationBatch, rows: NDArray[np.int64], sums: dict[str, Any]
    ) -> NDArray[np.int64]:
        """Sum one layer; its experts in the order of their weights, [token, k]."""
        given, index, weights = (batch.values[site.name][rows].cpu() for site in router.sites)
        weights = weights.double()
        order = weights.argsort(dim=-1, descending=True, stable=True)
        index, weights = index.gather(-1, order), weights.gather(-1, order)
        probabilities, scores = router.probabilities(given).double(), router.scores(given).double()
        applied = torch.zeros(len(rows), router.experts, dtype=torch.float64).scatter_(1, index, weights)
        sums["mass"][n] += probabilities.sum(0).numpy()
        sums["weight"][n] += applied.sum(0).numpy()
        sums["squared_logsumexp"][n] += float(scores.logsumexp(-1).square().sum())
        sums["entropy"][n] += float(torch.special.entr(probabilities).sum())
        best = scores.topk(router.k + 1, dim=-1).values
        margin = best[:, -2] - best[:, -1]
        # With a bias or groups a choice does not go by the scores
        sums["margin"][n] += float(margin.sum()) if router.by_score else np.nan
        sums["near_ties"][n] += int((margin < NEAR_TIE).sum()) if router.by_score else np.nan
        if self.outputs:
            self._outputs(n, router, batch, sums)
        return index.numpy()

    def _outputs(self, n: int, router: Router, batch: ActivationBatch, sums: dict[str, Any]) -> None:
        """Sum what the experts of one layer say on the tokens sent to them."""
        sites = self.expert_sites[router.layer]
        module = submodule(self.subject.model, sites[0].module_path)
        index, weights = batch.values[router.index.name], batch.values[router.weights.name].double()
        with torch.inference_mode():
            for expert, site in enumerate(sites):
                rows = batch.rows[site.name]
                after = np.flatnonzero(batch.positions[rows] > 0)
                if not len(after):
                    continue
                tokens = torch.from_numpy(rows[after])
                said = contribution(module, batch.values[site.name][torch.from_numpy(after)], expert, tokens)
                norm = said.double().norm(dim=-1)
                share = (weights[tokens] * (index[tokens] == expert)).sum(-1)
                sums["norm"][n, expert] += float(norm.sum())
                sums["weighted_norm"][n, expert] += float((norm * share).sum())
                sums["peak"][n, expert] = max(sums["peak"][n, expert], float(said.abs().max()))

    def _empty(self) -> dict[str, NDArray[Any]]:
        shape = self.shape
        found: dict[str, NDArray[Any]] = {name: np.zeros(shape) for name in ("mass", "weight")}
        found |= {
            name: np.zeros(shape[:1]) for name in ("squared_logsumexp", "entropy", "margin", "near_ties")
        }
        said = shape if self.outputs else (0, 0)
        return found | {name: np.zeros(said) for name in ("norm", "weighted_norm", "peak")}

    def finish(self) -> RoutingTrace:
        documents, domains = np.array(list(self.places), np.int64).T
        columns = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        sums = {name: np.stack([found[name] for found in self.sums]) for name in self.sums[0]}
        places = {"documents": documents.astype(np.int32), "domain": domains.astype(np.int16)}
        return RoutingTrace.of({"index": np.concatenate(self.index), **columns, **sums, **places})


def _by_layer(subject: Subject, routers: Sequence[Router]) -> dict[int, list[Site]]:
    """The sites of the experts of each layer, by number."""
    found = [site for site in subject.hidden_sites() if site.expert is not None]
    found.sort(key=lambda site: site.expert or 0)
    return {router.layer: [site for site in found if site.layer == router.layer] for router in routers}

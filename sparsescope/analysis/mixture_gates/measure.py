"""What is measured of one series of mixtures on a text: its last checkpoint, and the one before for churn.

Shapes: N tokens after the first of each window, L layers, E experts, D documents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.capture import BATCH_TOKENS, LiveSource, check_context
from sparsescope.activations.losses import token_losses
from sparsescope.activations.text.vocabulary import check_vocabulary
from sparsescope.errors import SubjectError
from sparsescope.metrics.expert_load import expert_load
from sparsescope.models.structure.routing import routers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.subject import Subject

    Arrays = dict[str, NDArray[Any]]

#: The gate of mixtures that do not name one.
UNNAMED = "top_k"


@dataclass(frozen=True, slots=True)
class Measured:
    """One series, measured.

    Attributes:
        gate: Name of its gate.
        options: What its configuration says of the gate; of other mixtures their architecture.
        named: Whether the configuration names the gate.
        losses: float64 [D], nats, summed over the targets of each document.
        targets: float64 [D], number of them.
        active: Experts of a token with a weight that is not zero, mean over tokens and layers.
        load_cv: Coefficient of variation of the load, mean over layers.
        churn: 1 - Jaccard index, mean over tokens and layers; NaN where there is one checkpoint after step 0.
        tokens: N.
        sizes: Layers with a router, experts, width of the residual stream.
    """

    gate: str
    options: Mapping[str, Any]
    named: bool
    losses: NDArray[np.float64]
    targets: NDArray[np.float64]
    active: float
    load_cv: float
    churn: float
    tokens: int
    sizes: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean loss of a token, nats."""
        return float(self.losses.sum() / self.targets.sum())

    @classmethod
    def of(cls, arrays: Arrays) -> Measured:
        """From what ``measure`` returned."""
        gate = json.loads(arrays["gate"].tobytes())
        counts, tokens = arrays["load"], int(arrays["tokens"][0])
        cv = expert_load(counts, np.full(len(counts), tokens)).cv
        return cls(
            **gate,
            losses=arrays["losses"],
            targets=arrays["targets"],
            active=float(counts.sum() / (tokens * len(counts))),
            load_cv=float(cv.mean()),
            churn=float(arrays["churn"].mean()),
            tokens=tokens,
            sizes=tuple(arrays["sizes"].tolist()),
        )


def measured_steps(series: CheckpointSeries) -> tuple[int | None, int]:
    """The steps that are measured: the last one, and before it the one that churn is counted from; step 0
    is none, since nothing is learned there.
    """
    trained = [step for step in series.steps if step > 0]
    return (trained[-2] if len(trained) > 1 else None), series.steps[-1]


def measure(series: CheckpointSeries, corpus: TokenizedCorpus) -> Arrays:
    """Read the text with the last checkpoint, and with the one before.

    Raises:
        SubjectError: It is no mixture, its routing cannot be read, its checkpoints differ in their experts,
            or it has another vocabulary than the text.
    """
    before, last = measured_steps(series)
    subject = series.subject(last)
    check_vocabulary(subject.tokenizer, corpus, series.name)
    used = used_experts(subject, corpus)
    found = token_losses(subject, corpus)
    numbers = [document.index for document in corpus.documents]
    size = max(numbers) + 1
    config = subject.model.config
    named = config.model_type == "gated_mixture"
    gate = {
        "gate": config.gate if named else UNNAMED,
        "options": dict(config.gate_options or {})
        if named
        else {"architecture": type(subject.model).__name__},
        "named": named,
    }
    arrays: Arrays = {
        "gate": np.frombuffer(json.dumps(gate).encode(), np.uint8),
        "losses": np.bincount(found.document, found.nll, minlength=size)[numbers],
        "targets": np.bincount(found.document, minlength=size)[numbers].astype(np.float64),
        "load": used.sum(0),
        "tokens": np.array([len(used)]),
        "sizes": np.array([*used.shape[1:], subject.d_model]),
        "churn": np.array([np.nan]),
    }
    if before is not None:
        del subject  # one model in memory at a time
        earlier = used_experts(series.subject(before), corpus)
        if earlier.shape != used.shape:
            raise SubjectError(
                "the checkpoints of this series differ in their experts",
                where=f"{series.name}, steps {before} and {last}",
                allowed=f"as at step {last}: {used.shape[1]} layers of {used.shape[2]} experts",
                got=f"{earlier.shape[1]} layers of {earlier.shape[2]} experts",
                next_step="compare checkpoints of one architecture",
            )
        arrays["churn"] = 1 - jaccard(used, earlier).mean(0)
    return arrays


def jaccard(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """|S and S'| / |S or S'| of sets given as masks [..., E]; 1 where both are empty.

    Example:
        >>> jaccard(np.array([[True, True, False]]), np.array([[True, False, True]])).round(3).tolist()
        [0.333]
    """
    either = (one | other).sum(-1)
    return np.where(either == 0, 1.0, (one & other).sum(-1) / np.maximum(either, 1))


def used_experts(subject: Subject, corpus: TokenizedCorpus) -> NDArray[np.bool_]:
    """Which experts each token after the first of a window uses: weights that are not zero, bool [N, L, E].

    Raises:
        SubjectError: It is no mixture, its routing cannot be read, layers have other numbers of experts, the
            windows are too long, or no token is after the first of a window.
    """
    found = routers(subject)
    experts = {router.experts for router in found}
    if len(experts) > 1:
        raise SubjectError(
            "layers of this mixture have different numbers of experts",
            where=subject.id,
            allowed="as many experts in every layer",
            got=sorted(experts),
        )
    check_context(subject, corpus)
    sites = tuple(site for router in found for site in (router.index, router.weights))
    parts = []
    for batch in LiveSource(subject, corpus, sites, batch_tokens=BATCH_TOKENS, reuse=True):
        rows = np.flatnonzero(batch.positions > 0)
        used = torch.zeros(len(rows), len(found), *experts, dtype=torch.bool)
        for layer, router in enumerate(found):
            index, weights = (batch.values[site.name][rows].cpu() for site in (router.index, router.weights))
            token, slot = (weights != 0).nonzero(as_tuple=True)
            used[token, layer, index[token, slot]] = True
        parts.append(used.numpy())
    tokens = np.concatenate(parts)
    if not len(tokens):
        raise SubjectError(
            "there is no token after the first of a window, and the first one is not measured",
            where=f"corpus {corpus.name}",
            got=f"{corpus.n_tokens} tokens in {len(corpus.documents)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    return tokens

"""What is measured of one series on a text: the loss, and which small experts its tokens use.

Shapes: N tokens after the first of each window, D documents, L layers with a router, E experts of a layer,
K chunk lengths.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.activations.capture import BATCH_TOKENS, LiveSource, check_context
from sparsescope.activations.losses import token_losses
from sparsescope.activations.text.vocabulary import check_vocabulary
from sparsescope.analysis.trained_block_sparsity import LENGTHS
from sparsescope.errors import SubjectError
from sparsescope.metrics.routing_locality import chunk_sparsity, windows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.subject import Subject

    Arrays = dict[str, NDArray[Any]]

WEIGHTS = "mlp.router.hook_weights"
#: What a configuration says of the training of small experts.
_OPTIONS = ("chunk_loss", "locality_loss", "loss_chunk", "ffn_experts", "expert_size")


@dataclass(frozen=True, slots=True)
class Measured:
    """One series, measured.

    Attributes:
        options: What its configuration says of the experts; empty of a dense model.
        architecture: Name of its class.
        losses: float64 [D], nats, summed over the targets of each document.
        targets: float64 [D], number of them.
        idle: float64 [D, L, K], share of experts that a chunk does not use, summed over chunks; None of a
            dense model, as all that follow.
        chunks: float64 [D, K], whole chunks.
        used: float64 [D, L, E], tokens that use each expert.
        again: float64 [2, L], uses of experts by tokens that have a next one, and those of them that it
            repeats.
        tokens: N.
        parameters: Weights of the model.
    """

    options: Mapping[str, Any]
    architecture: str
    losses: NDArray[np.float64]
    targets: NDArray[np.float64]
    idle: NDArray[np.float64] | None
    chunks: NDArray[np.float64] | None
    used: NDArray[np.float64] | None
    again: NDArray[np.float64] | None
    tokens: int
    parameters: int

    @property
    def loss(self) -> float:
        """Mean loss of a token, nats."""
        return float(self.losses.sum() / self.targets.sum())

    @property
    def rates(self) -> NDArray[np.float64]:
        """Share of the tokens that use each expert, [L, E]; none of a dense model."""
        return np.zeros((0, 0)) if self.used is None else self.used.sum(0) / self.tokens

    @classmethod
    def of(cls, arrays: Arrays) -> Measured:
        """From what ``measure`` returned."""
        said = json.loads(arrays["said"].tobytes())
        kept: dict[str, Any] = {name: arrays.get(name) for name in ("idle", "chunks", "used", "again")}
        return cls(**said, losses=arrays["losses"], targets=arrays["targets"], **kept)


def measure(series: CheckpointSeries, corpus: TokenizedCorpus) -> Arrays:
    """Read the text with the last checkpoint.

    Raises:
        SubjectError: It has another vocabulary than the text, layers differ in their number of experts, or no
            token is after the first of a window.
    """
    subject = series.subject(series.steps[-1])
    check_vocabulary(subject.tokenizer, corpus, series.name)
    found = token_losses(subject, corpus)
    numbers = [document.index for document in corpus.documents]
    size = max(numbers) + 1
    targets = np.bincount(found.document, minlength=size)[numbers].astype(np.float64)
    arrays = {
        "losses": np.bincount(found.document, found.nll, minlength=size)[numbers],
        "targets": targets,
    }
    config, routed = subject.model.config, "small_experts" in subject.capabilities
    tokens = int(targets.sum())
    if routed:
        active, owners, starts = used_experts(subject, corpus)
        arrays |= count(active, owners, starts, numbers)
        tokens = len(active)
    said = {
        "options": {name: getattr(config, name) for name in _OPTIONS if routed and hasattr(config, name)},
        "architecture": type(subject.model).__name__,
        "tokens": tokens,
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
    }
    return {**arrays, "said": np.frombuffer(json.dumps(said).encode(), np.uint8)}


def used_experts(
    subject: Subject, corpus: TokenizedCorpus
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Which experts each token after the first of a window uses: weights that are not zero.

    Returns:
        bool [N, L, E]; the document of each token, int64 [N]; its window, int64 [N], ascending from 0.

    Raises:
        SubjectError: Layers differ in their number of experts, the windows are too long, or no token is after
            the first of a window.
    """
    check_context(subject, corpus)
    sites = subject.sites(f"blocks.*.{WEIGHTS}")
    widths = {site.width for site in sites}
    if len(widths) > 1:
        raise SubjectError(
            "layers of this model have different numbers of experts",
            where=subject.id,
            allowed="as many experts in every layer",
            got=sorted(widths),
        )
    masks, documents, positions = [], [], []
    for batch in LiveSource(subject, corpus, sites, batch_tokens=BATCH_TOKENS, reuse=True):
        rows = np.flatnonzero(batch.positions > 0)
        masks.append(np.stack([(batch.values[site.name][rows] != 0).cpu().numpy() for site in sites], axis=1))
        documents.append(np.full(len(rows), batch.document, np.int64))
        positions.append(batch.positions[rows].astype(np.int64))
    active, owners, places = (np.concatenate(parts) for parts in (masks, documents, positions))
    if not len(active):
        raise SubjectError(
            "there is no token after the first of a window, and the first one is not measured",
            where=f"corpus {corpus.name}",
            got=f"{corpus.n_tokens} tokens in {len(corpus.documents)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    begins = np.ones(len(owners), bool)
    begins[1:] = (owners[1:] != owners[:-1]) | (places[1:] != places[:-1] + 1)
    return active, owners, np.cumsum(begins) - 1


def count(
    active: NDArray[np.bool_], owners: NDArray[np.int64], starts: NDArray[np.int64], numbers: list[int]
) -> Arrays:
    """Sums over tokens and chunks: ``idle``, ``chunks``, ``used`` and ``again`` of ``Measured``.

    Args:
        active: bool [N, L, E].
        owners: Document of each token, int64 [N].
        starts: Window of each token, int64 [N], ascending from 0.
        numbers: Numbers of the documents, D.
    """
    size, layers = max(numbers) + 1, active.shape[1]
    used = np.zeros((size, *active.shape[1:]))
    runs = np.flatnonzero(np.diff(owners, prepend=-1))  # where the tokens of a document begin
    np.add.at(used, owners[runs], np.add.reduceat(active, runs, axis=0, dtype=np.float64))
    idle, chunks = np.zeros((size, layers, len(LENGTHS))), np.zeros((size, len(LENGTHS)))
    for place, length in enumerate(LENGTHS):
        spans = windows(starts, length)
        whose = owners[spans[:, 0]]
        chunks[:, place] = np.bincount(whose, minlength=size)
        for layer in range(layers):
            unused = chunk_sparsity(active[:, layer], spans)
            idle[:, layer, place] = np.bincount(whose, unused, minlength=size)
    pairs = np.flatnonzero(starts[1:] == starts[:-1])
    before = active[pairs]
    again = np.stack([before.sum((0, 2)), (before & active[pairs + 1]).sum((0, 2))])
    return {
        "idle": idle[numbers],
        "chunks": chunks[numbers],
        "used": used[numbers],
        "again": again.astype(np.float64),
    }

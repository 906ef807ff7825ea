"""One checkpoint read: profiles of all samples, first choices, losses, router rows.

In a mixture a profile is the mean of the probabilities of the router, or of the weights of the chosen experts
brought to a sum of 1. A dense layer has blocks of neurons in place of experts, and their share in what is
written in place of weights (``metrics.neuron_partitions``); the row of a block is the mean of the input rows
of its neurons, by what they write.

Shapes: S samples, T tokens, L layers with experts or blocks, E experts or blocks; N tokens that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.errors import SubjectError
from sparsescope.metrics.neuron_partitions import alike, block_masses, dealt, neighbors
from sparsescope.metrics.rank import effective_ranks
from sparsescope.models.structure.routing import Router, routers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.analysis.pathways import PathwaysParams
    from sparsescope.analysis.pathways.samples import Samples
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

    Array = NDArray[np.float64]
    Arrays = dict[str, NDArray[Any]]

_BATCH_TOKENS = 4096
#: Kinds of weights of a mixture, and that of a dense model.
WEIGHTS, MASS = ("softmax", "renormalized"), "mass"


@dataclass(frozen=True, slots=True)
class Partition:
    """Blocks of neurons of every dense layer.

    Attributes:
        labels: By layer, int [f].
        blocks: B.
    """

    labels: dict[int, NDArray[np.int64]]
    blocks: int


def is_mixture(subject: Subject) -> bool:
    """Whether it has experts; a dense model has blocks of neurons.

    Raises:
        SubjectError: It has neither experts nor hidden units that can be read.
    """
    if any(block.experts is not None for block in subject.blocks):
        return True
    if "mlp_hidden" in subject.capabilities:
        return False
    raise SubjectError(
        "this model has neither experts nor hidden units that can be read",
        where=subject.id,
        allowed="a mixture of experts, or a model with sites blocks.*.mlp.hook_post",
        got=sorted(subject.capabilities),
        next_step=f"sparsescope doctor {subject.id} says what it has",
    )


def make_partition(subject: Subject, params: PathwaysParams, draw: int | None = None) -> Partition:
    """Divide the neurons of a dense model.

    Args:
        subject: The checkpoint whose weights say which neurons are alike.
        params: Blocks and how they are made.
        draw: Number of a random partition; None for that of ``params``.

    Raises:
        SpecError: A layer has fewer neurons than blocks.
    """
    generator = np.random.default_rng([params.seed, 0 if draw is None else draw + 1])
    labels = {}
    for site in subject.sites("blocks.*.mlp.hook_post"):
        if draw is not None:
            labels[site.layer] = dealt(site.width, params.blocks, generator)
        elif params.partition == "neighbors":
            labels[site.layer] = neighbors(site.width, params.blocks)
        else:
            labels[site.layer] = alike(_input_rows(subject, site.layer), params.blocks, params.seed)
    return Partition(labels, params.blocks)


def _input_rows(subject: Subject, layer: int) -> Array:
    """What each neuron reads, [f, d]; of a gated layer [f, 2 d], its gate beside it."""
    names = ("in", "gate") if "mlp_gated" in subject.capabilities else ("in",)
    parts = [_weight(subject, f"weight:blocks.{layer}.mlp.{name}.weight") for name in names]
    return np.concatenate(parts, axis=1)


def _weight(subject: Subject, name: str) -> Array:
    found: Array = subject.parameter(name).detach().double().cpu().numpy()
    return found


def shape_of(subject: Subject) -> Arrays:
    """Layers, experts and experts for each token of a mixture; of a dense model layers and neurons."""
    if is_mixture(subject):
        return {"shape": np.array([(r.layer, r.experts, r.k) for r in routers(subject)], np.int64)}
    sites = subject.sites("blocks.*.mlp.hook_post")
    return {"shape": np.array([(site.layer, site.width, 0) for site in sites], np.int64)}


def read_checkpoint(subject: Subject, samples: Samples, partitions: Sequence[Partition]) -> Arrays:
    """Read all samples.

    Args:
        subject: The checkpoint.
        samples: What it reads.
        partitions: Of a dense model its partition, and random ones behind it; none of a mixture.

    Returns:
        ``softmax`` and ``renormalized``, or ``mass`` and ``random`` [R, ...], float32 [S, L, E]; ``first``
        int16 [N, L], the expert of largest weight at each token that is read, and ``owner`` int32 [N], its
        sample; ``loss`` and ``right`` [S], means over scored tokens; ``rows`` float32 [L, E, d]; ``rank`` of
        the embedding and ``norm`` of all weights.
    """
    reader = _Mixture(subject) if not partitions else _Dense(subject, partitions)
    loss, right = [], []
    for rows in np.array_split(
        np.arange(len(samples)), min(max(1, -(-samples.tokens.size // _BATCH_TOKENS)), len(samples))
    ):
        held: dict[str, torch.Tensor] = {}
        with subject.attach(reader.sites, _keeper(held)):
            logits = subject.forward(samples.tokens[rows], logits=True)
        found = _scores(logits, samples.targets[rows])
        loss.append(found[0])
        right.append(found[1])
        reader.take(held, samples.read)
    count = len(samples)
    embedding = subject.model.get_input_embeddings().weight.detach().double().cpu().numpy()
    spectrum = np.linalg.svd(embedding, compute_uv=False) ** 2
    return reader.finish() | {
        "owner": np.repeat(np.arange(count, dtype=np.int32), int(samples.read.sum())),
        "loss": np.concatenate(loss),
        "right": np.concatenate(right),
        "rank": np.array(effective_ranks(spectrum)[0], np.float64),
        "norm": np.array(
            sum(float(p.detach().double().square().sum()) for p in subject.model.parameters()) ** 0.5
        ),
    }


def _keeper(
    held: dict[str, torch.Tensor],
) -> Callable[[Site, torch.Tensor, torch.Tensor | None], None]:
    def keep(site: Site, tensor: torch.Tensor, rows: torch.Tensor | None) -> None:
        held[site.name] = tensor.clone()

    return keep


def _scores(logits: torch.Tensor, targets: NDArray[np.int64]) -> tuple[Array, Array]:
    """Loss and share of right answers of each sample, means over its scored positions."""
    wanted = torch.from_numpy(targets).to(logits.device)
    scored = wanted >= 0
    loss = torch.nn.functional.cross_entropy(logits[scored].double(), wanted[scored], reduction="none")
    right = (logits[scored].argmax(-1) == wanted[scored]).double()
    rows = scored.nonzero()[:, 0]
    count = scored.sum(1).double()
    sums = [torch.zeros(len(wanted), dtype=torch.float64, device=logits.device) for _ in range(2)]
    means = [one.index_add_(0, rows, values) / count for one, values in zip(sums, (loss, right), strict=True)]
    return means[0].cpu().numpy(), means[1].cpu().numpy()


class _Mixture:
    """Profiles of a mixture of experts."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.routers: tuple[Router, ...] = routers(subject)
        self.sites = tuple(site for router in self.routers for site in router.sites)
        self.parts: dict[str, list[Array]] = {name: [] for name in WEIGHTS}
        self.first: list[NDArray[np.int16]] = []

    def take(self, held: dict[str, torch.Tensor], read: NDArray[np.bool_]) -> None:
        found: dict[str, list[Array]] = {name: [] for name in WEIGHTS}
        first = []
        for router in self.routers:
            given, index, weights = (held[site.name][:, torch.from_numpy(read)] for site in router.sites)
            batch, pos, _ = given.shape
            flat = router.probabilities(given.reshape(batch * pos, -1)).double().cpu()
            chosen = index.reshape(batch * pos, -1).long().cpu()
            share = weights.reshape(batch * pos, -1).double().cpu()
            share = share / share.sum(-1, keepdim=True).clamp_min(1e-20)
            applied = torch.zeros_like(flat).scatter_(1, chosen, share)
            for name, values in zip(WEIGHTS, (flat, applied), strict=True):
                mean = values.reshape(batch, pos, -1).mean(1).numpy()
                found[name].append(mean / mean.sum(-1, keepdims=True))
            first.append(chosen.gather(1, share.argmax(-1, keepdim=True))[:, 0].numpy().astype(np.int16))
        for name in WEIGHTS:
            self.parts[name].append(np.stack(found[name], axis=1))
        self.first.append(np.stack(first, axis=1))

    def finish(self) -> Arrays:
        rows = []
        for router in self.routers:
            try:
                rows.append(_weight(self.subject, f"weight:blocks.{router.layer}.mlp.router.weight"))
            except SubjectError:  # a hash has no directions
                rows.append(np.zeros((router.experts, 0)))
        return {
            **{name: np.concatenate(parts).astype(np.float32) for name, parts in self.parts.items()},
            "first": np.concatenate(self.first),
            "rows": np.stack(rows).astype(np.float32),
        }


class _Dense:
    """Profiles of blocks of neurons."""

    def __init__(self, subject: Subject, partitions: Sequence[Partition]) -> None:
        self.subject, self.partitions = subject, partitions
        self.sites = subject.sites("blocks.*.mlp.hook_post")
        self.written = {
            site.layer: np.linalg.norm(_weight(subject, f"weight:blocks.{site.layer}.mlp.out.weight"), axis=0)
            for site in self.sites
        }
        self.parts: list[list[Array]] = [[] for _ in partitions]
        self.first: list[NDArray[np.int16]] = []
        self.mass = {site.layer: np.zeros(site.width) for site in self.sites}

    def take(self, held: dict[str, torch.Tensor], read: NDArray[np.bool_]) -> None:
        profiles: list[list[Array]] = [[] for _ in self.partitions]
        first = []
        for site in self.sites:
            values = held[site.name][:, torch.from_numpy(read)].double().cpu().numpy()
            batch, pos, width = values.shape
            flat = np.abs(values.reshape(-1, width))
            self.mass[site.layer] += (flat * self.written[site.layer]).sum(0)
            for number, partition in enumerate(self.partitions):
                labels = partition.labels[site.layer]
                masses = block_masses(flat, self.written[site.layer], labels, partition.blocks)
                profiles[number].append(masses.reshape(batch, pos, -1).mean(1))
                if number == 0:
                    first.append(masses.argmax(-1).astype(np.int16))
        for number, found in enumerate(profiles):
            self.parts[number].append(np.stack(found, axis=1))
        self.first.append(np.stack(first, axis=1))

    def finish(self) -> Arrays:
        own = self.partitions[0]
        rows = []
        for site in self.sites:
            weights = _input_rows(self.subject, site.layer)
            mass, labels = self.mass[site.layer], own.labels[site.layer]
            share = np.zeros((own.blocks, len(labels)))
            share[labels, np.arange(len(labels))] = mass
            rows.append(share @ weights / np.maximum(share.sum(1, keepdims=True), 1e-30))
        whole = [np.concatenate(parts).astype(np.float32) for parts in self.parts]
        return {
            MASS: whole[0],
            "random": np.stack(whole[1:]) if len(whole) > 1 else np.zeros((0, *whole[0].shape), np.float32),
            "first": np.concatenate(self.first),
            "rows": np.stack(rows).astype(np.float32),
        }

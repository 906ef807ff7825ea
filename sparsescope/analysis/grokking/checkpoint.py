"""The measures of one checkpoint: one forward pass over all pairs, and its weights.

Losses and accuracies are over the whole vocabulary V, as in training; Fourier measures over
the p residues alone.
Shapes: pairs [p^2, 3] in the order a p + b; logits [p^2, V] of the last position; hidden [p^2, f] of the last
position, the units of all dense layers side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.analysis.grokking import MEASURES, GrokkingParams
from sparsescope.errors import SpecError
from sparsescope.metrics import fourier
from sparsescope.metrics.onsets import smallest_subset
from sparsescope.metrics.rank import effective_ranks
from sparsescope.metrics.sparsity import gini
from sparsescope.models.identity import named_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

    Array = NDArray[np.float64]

NAMES = tuple(column.name for column in MEASURES)
_ROWS = 4096
_HIDDEN = "blocks.*.mlp.hook_post"


@dataclass(frozen=True, slots=True)
class Task:
    """All pairs of modular addition.

    Attributes:
        modulus: p.
        tokens: int64 [p^2, 3].
        train: bool [p^2].
    """

    modulus: int
    tokens: NDArray[np.int64]
    train: NDArray[np.bool_]

    @property
    def sums(self) -> NDArray[np.int64]:
        """The right answers, int64 [p^2]."""
        pairs = np.arange(self.modulus**2)
        return (pairs // self.modulus + pairs % self.modulus) % self.modulus


def task_of(series: CheckpointSeries) -> Task | None:
    """Return the pairs of a series of modular addition, None for other data.

    Raises:
        SpecError: The series was not trained by this project, or its probe set is not all pairs in order.
    """
    if series.trained is None:
        raise SpecError(
            "this series has no training curves and no probe set",
            where=series.name,
            allowed="series of sparsescope.training",
            next_step="train it with sparsescope train RECIPE",
        )
    described = series.trained.data
    if described.get("kind") != "modular_addition":
        return None
    p, probe = int(described["modulus"]), series.probe()
    pairs = np.arange(p * p)
    wanted = np.stack([pairs // p, pairs % p], 1)
    if len(probe.tokens) != p * p or not np.array_equal(probe.tokens[:, :2], wanted):
        raise SpecError(
            "the probe set is not all pairs in order", where=series.name, allowed=f"{p * p} rows [a, b, =]"
        )
    return Task(p, probe.tokens, probe.fields["train"] == 1)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one forward pass over all pairs gives; ``hidden`` has no columns where no dense
    layer can be read.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float32]


def run_pass(subject: Subject, task: Task) -> Pass:
    """Run all pairs through a checkpoint."""
    sites = subject.sites(_HIDDEN) if "mlp_hidden" in subject.capabilities else ()
    logits, hidden = [], []
    for start in range(0, len(task.tokens), _ROWS):
        read: dict[str, torch.Tensor] = {}
        with subject.attach(sites, _reader(read)):
            found = subject.forward(task.tokens[start : start + _ROWS], logits=True)[:, -1]
        logits.append(found.float().cpu().numpy())
        if sites:
            hidden.append(torch.cat([read[site.name] for site in sites], -1).float().cpu().numpy())
    return Pass(
        np.concatenate(logits),
        np.concatenate(hidden) if hidden else np.zeros((len(task.tokens), 0), np.float32),
    )


def _reader(read: dict[str, torch.Tensor]) -> Callable[[Site, torch.Tensor, torch.Tensor | None], None]:
    """Keep the last position of each site."""

    def keep(site: Site, tensor: torch.Tensor, rows: torch.Tensor | None) -> None:
        read[site.name] = tensor[:, -1].clone()

    return keep


def find_keys(subject: Subject, task: Task, params: GrokkingParams) -> tuple[tuple[int, ...], str]:
    """Key frequencies of the last checkpoint, and how they were found.

    Raises:
        SpecError: A given frequency does not exist.
    """
    if params.key_frequencies:
        fourier.sum_filter(task.modulus, params.key_frequencies)  # refuses what is no frequency
        return tuple(sorted(set(params.key_frequencies))), "given"
    found = run_pass(subject, task)
    if found.hidden.shape[1]:
        dominant = fourier.dominant_frequencies(fourier.neuron_energies(found.hidden)[0], params.explained)
        if keys := fourier.keys_of_neurons(dominant, params.key_share):
            return keys, "units"
    energies = fourier.component_norms(_embedding(subject, task)) ** 2
    return fourier.keys_of_energies(energies, params.times_flat), "embedding"


def _embedding(subject: Subject, task: Task) -> Array:
    """Embedding of the residues, [p, d]."""
    return subject.model.get_input_embeddings().weight.detach().double().cpu().numpy()[: task.modulus]


def measure(
    subject: Subject, task: Task | None, keys: Sequence[int], params: GrokkingParams
) -> dict[str, NDArray[Any]]:
    """Measure a checkpoint.

    Args:
        subject: The checkpoint.
        task: The pairs; None for series of other data, which have the measures of the weights alone.
        keys: Key frequencies.
        params: Parameters of the analysis.

    Returns:
        ``values`` [measures] in the order of ``MEASURES``, NaN where not defined; ``losses`` [4]
        (train and test loss, train and test accuracy; empty without a task); ``tensors``
        [parameters, 3] (squared norm, effective and stable rank); ``units``, ``embedding_norms``,
        ``logit_energy`` and ``excluded`` [frequencies].
    """
    values = dict.fromkeys(NAMES, np.nan)
    tensors = _weights(subject, values)
    arrays = {"tensors": tensors, "losses": np.zeros(0)}
    if task is not None:
        arrays |= _on_pairs(subject, task, list(keys), params, values)
    arrays["values"] = np.array([values[name] for name in NAMES])
    return arrays


def _weights(subject: Subject, values: dict[str, float]) -> Array:
    """Norms, ranks and Gini of the weights: fills ``values`` and returns one row for each parameter."""
    rows, entries = [], []
    for _, tensor in named_tensors(subject.model):
        array = tensor.detach().double().cpu().numpy()
        rows.append((float((array**2).sum()), *_ranks(array)))
        if array.ndim >= 2:
            entries.append(array.ravel())
    values["weight_norm"] = float(np.sqrt(sum(row[0] for row in rows)))
    values["gini_weights"] = float(gini(np.concatenate(entries)))
    values["rank_embedding"] = _ranks(
        subject.model.get_input_embeddings().weight.detach().double().cpu().numpy()
    )[0]
    out = [_ranks(subject.parameter(name).detach().double().cpu().numpy())[0] for name in _out_names(subject)]
    values["rank_mlp_out"] = float(np.mean(out)) if out else np.nan
    return np.array(rows)


def _out_names(subject: Subject) -> list[str]:
    """Names of the second MLP matrices, of experts all of a layer together."""
    return [
        f"weight:blocks.{block.layer}.mlp.{'experts.' if block.experts is not None else ''}out.weight"
        for block in subject.blocks
    ]


def _ranks(array: Array) -> tuple[float, float]:
    """Effective and stable rank of a matrix, the mean over the first axis of three; NaN for vectors."""
    if array.ndim < 2 or min(array.shape[-2:]) < 2:
        return np.nan, np.nan
    stacked = array.reshape(-1, *array.shape[-2:])
    found = np.array(
        [effective_ranks(np.linalg.svd(matrix, compute_uv=False) ** 2)[:2] for matrix in stacked]
    )
    return float(found[:, 0].mean()), float(found[:, 1].mean())


def _on_pairs(
    subject: Subject, task: Task, keys: list[int], params: GrokkingParams, values: dict[str, float]
) -> dict[str, NDArray[Any]]:
    """The measures that need the outputs for all pairs: fills ``values``, returns losses and spectra."""
    p, sums, found = task.modulus, task.sums, run_pass(subject, task)
    logits = found.logits[:, :p].astype(np.float64)
    means, train = fourier.sum_means(logits), np.flatnonzero(task.train)
    losses, right = (
        fourier.cross_entropy(found.logits.astype(np.float64), sums),
        found.logits.argmax(1) == sums,
    )
    test = ~task.train
    whole = [losses[task.train].mean(), losses[test].mean(), right[task.train].mean(), right[test].mean()]
    excluded = fourier.excluded_losses(logits, means, train)
    if keys:
        values["restricted_loss"] = fourier.restricted_loss(means, keys)
        counts = np.bincount(sums[test], minlength=p)
        values["restricted_test_loss"] = fourier.restricted_loss(means, keys, counts)
        values["excluded_loss"] = fourier.excluded_loss(logits, means, keys, train)
        values["excluded_one_loss"] = float(excluded[np.array(keys) - 1].mean())
        values["explained_variance"] = fourier.explained_variance(logits, means, keys)
    values["collapsed"] = _collapsed(found.logits[train], sums[train])
    norms = fourier.component_norms(_embedding(subject, task))
    values["gini_embedding"] = float(gini(norms))
    units = np.zeros(p // 2, dtype=np.int64)
    if found.hidden.shape[1]:
        dominant = fourier.dominant_frequencies(fourier.neuron_energies(found.hidden)[0], params.explained)
        values["neurons_explained"] = float((dominant > 0).mean())
        units = np.bincount(dominant, minlength=p // 2 + 1)[1:]
        _subnetworks(subject, task, found, params, values)
    return {
        "losses": np.array(whole), "units": units, "embedding_norms": norms,
        "logit_energy": fourier.sum_energies(means), "excluded": excluded,
    }  # fmt: skip


def _collapsed(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Share of rows whose cross-entropy is exactly 0 in float32: the other classes vanish in the sum."""
    found = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(targets), reduction="none"
    )
    return float((found == 0).double().mean())


def _subnetworks(
    subject: Subject, task: Task, found: Pass, params: GrokkingParams, values: dict[str, float]
) -> None:
    """Smallest sub-networks of a model of one dense layer whose logits are linear in its hidden
    units; NaN for others.
    """
    layer = _linear_layer(subject, task, found)
    if layer is None:
        return
    to_logits, importance = layer
    values["gini_neuron_logit"] = float(
        gini(fourier.component_norms(to_logits[: task.modulus].astype(np.float64)))
    )
    order = np.argsort(-importance, kind="stable")
    hidden, directions = found.hidden[:, order], to_logits[:, order]
    base = found.logits - hidden @ directions.T
    sums, total = task.sums, len(order)
    full = found.logits.argmax(1)
    wanted = float((full[task.train] == sums[task.train]).mean())
    train_hidden, train_base, train_sums = hidden[task.train], base[task.train], sums[task.train]

    def accuracy(size: int) -> float:
        kept = train_base + train_hidden[:, :size] @ directions[:, :size].T
        return float((kept.argmax(1) == train_sums).mean())

    def agreement(size: int) -> float:
        return float(((base + hidden[:, :size] @ directions[:, :size].T).argmax(1) == full).mean())

    values["subnetwork"] = smallest_subset(accuracy, total, wanted) / total
    values["subnetwork_agreement"] = smallest_subset(agreement, total, params.agreement) / total


def _linear_layer(subject: Subject, task: Task, found: Pass) -> tuple[NDArray[np.float32], Array] | None:
    """W_U W_out [V, f] and the importance ||w_in|| ||w_out|| of each unit, if the logits are
    linear in the units.

    That is tried, on some pairs: with all units switched off the logits must be what W_U W_out says.
    """
    if subject.n_layers != 1 or "mlp_gated" in subject.capabilities:
        return None
    out = subject.parameter("weight:blocks.0.mlp.out.weight").detach()
    head = subject.model.get_output_embeddings().weight.detach()
    to_logits = (head @ out).float().cpu().numpy()
    rows = np.linspace(0, len(task.tokens) - 1, 64).astype(int)
    with subject.edit(subject.sites(_HIDDEN), lambda site, tensor: torch.zeros_like(tensor)):
        off = subject.forward(task.tokens[rows], logits=True)[:, -1].float().cpu().numpy()
    error = np.abs(off + found.hidden[rows] @ to_logits.T - found.logits[rows]).max()
    if error > 1e-3 * max(1.0, float(np.abs(found.logits).max())):
        return None
    into = subject.parameter("weight:blocks.0.mlp.in.weight").detach()
    return to_logits, (into.double().norm(dim=1) * out.double().norm(dim=0)).cpu().numpy()

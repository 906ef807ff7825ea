"""What checkpoints are scored on, and one checkpoint: dense, pruned at every level, and with random masks.

Text: windows of held-out documents that the series carries. Modular addition: equations of the probe set,
with the loss of the answer at the last position over the whole vocabulary, as in training.
Shapes: W ways to prune (curves, then random masks), K levels of one way, M draws of masks, D documents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from sparsescope.activations.edited_passes import held_out
from sparsescope.activations.losses import check_causal, token_losses
from sparsescope.activations.text.probe import probe_corpus
from sparsescope.metrics.drop_points import has_signal
from sparsescope.metrics.isotonic_crossing import tolerance_crossing
from sparsescope.pruning.curves import Curve, read_curve
from sparsescope.pruning.request import Request
from sparsescope.pruning.scope import choose
from sparsescope.pruning.workbench import Workbench
from sparsescope.training.measure import target_logits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.weight_sparsity_over_training import WeightSparsityOverTrainingParams as Params
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.subject import Subject

    Floats = NDArray[np.float64]

RANDOM = "random"
NARROW = 0.02  # gaps between levels below this are not halved
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Held:
    """What every checkpoint is scored on.

    Attributes:
        pairs: Whether these are equations of modular addition.
        strata: int [D], domains of documents.
        targets: int64 [D].
        chance: float64 [D], loss without knowledge, summed over the targets.
        score: Gives the loss and the right answers of a model, summed over the targets, [D] each.
        text: What it is, in words.
    """

    pairs: bool
    strata: NDArray[np.int16]
    targets: NDArray[np.int64]
    chance: Floats
    score: Callable[[Subject], tuple[Floats, Floats]]
    text: str


def held_of(series: CheckpointSeries, params: Params) -> Held:
    """Return what the checkpoints of a series are scored on.

    Raises:
        SpecError: The series carries neither text nor equations.
        SubjectError: Its text has too few documents.
    """
    if series.trained is not None and series.trained.data.get("kind") == "modular_addition":
        return _equations(series, params)
    return _documents(probe_corpus(series), params)


def _equations(series: CheckpointSeries, params: Params) -> Held:
    """Equations of one split; a + b and b + a share an answer and count as one document."""
    probe = series.probe()
    assert series.trained is not None
    p = int(series.trained.data["modulus"])
    rows = np.flatnonzero(probe.fields["train"] == (params.pairs == "train"))
    if len(rows) > params.tokens:
        rows = np.sort(np.random.default_rng(params.seed).permutation(rows)[: params.tokens])
    tokens, answers = torch.from_numpy(probe.tokens[rows]), torch.from_numpy(probe.fields["answer"][rows])
    ends = np.sort(probe.tokens[rows, :2], axis=1)
    _, where = np.unique(ends[:, 0] * p + ends[:, 1], return_inverse=True)
    targets = np.bincount(where)

    def score(subject: Subject) -> tuple[Floats, Floats]:
        nll, right = [], []
        with torch.inference_mode():
            for start in range(0, len(tokens), _ROWS):
                part = slice(start, start + _ROWS)
                logits, wanted = target_logits(
                    subject.model, tokens[part].to(subject.device), answers[part].to(subject.device)
                )
                nll.append(functional.cross_entropy(logits.double(), wanted, reduction="none").cpu())
                right.append((logits.argmax(-1) == wanted).double().cpu())
        found = (torch.cat(values).numpy() for values in (nll, right))
        summed, correct = (np.bincount(where, values).astype(np.float64) for values in found)
        return summed, correct

    kind = "trained" if params.pairs == "train" else "not trained"
    text = f"{len(rows)} equations a + b mod {p} that were {kind} on; a + b and b + a are one document"
    strata = np.zeros(len(targets), np.int16)
    chance = targets.astype(np.float64) * math.log(p)
    return Held(True, strata, targets, chance, score, text)


def _documents(corpus: TokenizedCorpus, params: Params) -> Held:
    """The beginnings of documents; frequencies of tokens are counted in other ones."""
    other, rest = held_out(corpus, corpus.n_tokens, params.unigram_tokens)
    chosen = _beginnings(rest, params.document_tokens, params.tokens)
    scored = [document for document in chosen.documents if len(document) + len(chosen.prefix) >= 2]
    numbers = np.array(sorted(document.index for document in scored), np.int32)
    domains = {document.index: chosen.domains.index(document.domain) for document in scored}
    targets, chance = np.zeros(len(numbers), np.int64), np.zeros(len(numbers))
    vocabulary = 1 + max(int(d.ids.max(initial=0)) for text in (other, chosen) for d in text.documents)
    counts = np.ones(vocabulary)
    for document in other.documents:
        counts += np.bincount(document.ids, minlength=vocabulary)
    cost = np.log(counts.sum()) - np.log(counts)
    for batch in chosen.batches(2048, "right"):
        wanted = batch.text_mask[:, 1:]
        where = np.searchsorted(numbers, np.broadcast_to(batch.document[:, None], wanted.shape)[wanted])
        targets += np.bincount(where, minlength=len(numbers))
        chance += np.bincount(where, cost[batch.input_ids[:, 1:][wanted]], len(numbers))

    def score(subject: Subject) -> tuple[Floats, Floats]:
        found = token_losses(subject, chosen)
        where = np.searchsorted(numbers, found.document)
        nll, right = (
            np.bincount(where, values, len(numbers)).astype(np.float64)
            for values in (found.nll, found.correct.astype(np.float64))
        )
        return nll, right

    text = (
        f"{int(targets.sum())} tokens of {len(numbers)} documents of {corpus.name}, windows of "
        f"{corpus.context}; frequencies of {other.n_tokens} tokens of {len(other.documents)} other documents "
        "are chance"
    )
    strata = np.array([domains[int(number)] for number in numbers], np.int16)
    return Held(False, strata, targets, chance, score, text)


def _beginnings(corpus: TokenizedCorpus, most: int, tokens: int) -> TokenizedCorpus:
    """The first tokens of each document, until there are enough; the last one may exceed it."""
    taken, found = 0, []
    for document in corpus.documents:
        if taken >= tokens:
            break
        whole = document.whole and len(document) <= most
        found.append(replace(document, ids=document.ids[:most], whole=whole))
        taken += len(found[-1])
    mark = f"{corpus.digest} {most} {[document.index for document in found]}"
    return replace(corpus, documents=tuple(found), digest=hashlib.sha256(mark.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Rule:
    """How much damage is tolerated.

    Attributes:
        value: Nats, or a share.
        relative: Whether it is a share of what the dense checkpoint gains on chance.
    """

    value: float
    relative: bool

    @property
    def name(self) -> str:
        """As figures say it: ``+0.05 nats``, ``5 % of the gain``."""
        return f"{100 * self.value:g} % of the gain" if self.relative else f"+{self.value:g} nats"

    @property
    def slug(self) -> str:
        """In the names of scalars."""
        return f"{self.value:g}_of_gain" if self.relative else f"{self.value:g}"

    def at(self, nll: Floats, held: Held) -> float:
        """The tolerance at a checkpoint, nats."""
        gain = float((held.chance - nll).sum() / held.targets.sum())
        return self.value * gain if self.relative else self.value


def rules_of(params: Params) -> list[Rule]:
    """The tolerances, absolute ones first."""
    return [
        *(Rule(value, False) for value in params.tolerances),
        *(Rule(value, True) for value in params.relative),
    ]


def curves_of(params: Params) -> list[Curve]:
    """The W ways to prune: the curves that were asked for, then random masks."""
    return [*map(read_curve, params.curves), read_curve(RANDOM)]


def has_skill(nll: Floats, held: Held) -> bool:
    """Whether a dense checkpoint is below chance by 1.96 paired standard errors."""
    targets, total = held.targets, held.targets.sum()
    gain = nll - held.chance
    rest = gain - gain.sum() / total * targets
    error = math.sqrt(len(rest) / max(len(rest) - 1, 1) * float(rest @ rest)) / total
    return has_signal(float(nll.sum() / total), float(held.chance.sum() / total), error)


def measure(subject: Subject, held: Held, params: Params) -> dict[str, Floats]:
    """Score a checkpoint, dense and, where it has signal, pruned; the subject stays as it is.

    Returns:
        ``nll`` and ``correct`` [D] of the dense checkpoint. For way number w, where there is signal,
        ``asked_w`` and ``sparsity_w`` [K], rising, and ``pruned_w`` [M, K, D], losses, with M draws of
        random masks and M = 1 of a curve.
    """
    check_causal(subject)
    nll, correct = held.score(subject)
    found = {"nll": nll, "correct": correct}
    if not has_skill(nll, held):
        return found
    work = Workbench(subject, choose(subject, params.scope))
    for number, curve in enumerate(curves_of(params)):
        seeds = [params.seed + draw for draw in range(params.random_masks if curve.criterion.drawn else 1)]

        def point(level: float, curve: Curve = curve, seeds: list[int] = seeds) -> tuple[float, Floats]:
            return _pruned(work, held, curve, level, seeds)

        points = {level: point(level) for level in params.levels}
        for _ in range(params.refine):
            level = _between(points, nll, held, params)
            if level is None:
                break
            points[level] = point(level)
        asked = sorted(points)
        found[f"asked_{number}"] = np.array(asked)
        found[f"sparsity_{number}"] = np.array([points[level][0] for level in asked])
        found[f"pruned_{number}"] = np.stack([points[level][1] for level in asked], axis=1)
    return found


def _pruned(
    work: Workbench, held: Held, curve: Curve, level: float, seeds: list[int]
) -> tuple[float, Floats]:
    """Sparsity of the masks, and the losses with those of each seed, [M, D]."""
    losses, sparsity = [], 0.0
    for seed in seeds:
        work.reset()
        request = Request.of(curve.criterion, level, curve.pattern, curve.allocation, "dense", seed)
        sparsity = work.prune(request).sparsity
        losses.append(held.score(work.subject)[0])
    return sparsity, np.stack(losses)


def _between(
    points: dict[float, tuple[float, Floats]], nll: Floats, held: Held, params: Params
) -> float | None:
    """The level that halves the widest gap in which a drop point lies; None where all are narrow.

    A steep curve crosses the tolerance just above the last level without damage, wherever it really does:
    without this a drop point would jump when it passes a level.
    """
    asked = np.array([0.0, *sorted(points)])
    total = held.targets.sum()
    damage = np.array([0.0, *((points[level][1] - nll).sum(1).mean() / total for level in sorted(points))])
    gaps = []
    for rule in rules_of(params):
        crossing = tolerance_crossing(asked, damage, rule.at(nll, held))
        after = int(np.searchsorted(asked, crossing.at, side="right"))
        if after < len(asked) and not math.isnan(crossing.bracket):
            gaps.append((float(asked[after] - asked[after - 1]), float(asked[after - 1])))
    width, low = max(gaps, default=(0.0, 0.0))
    return round(low + width / 2, 4) if width > NARROW else None

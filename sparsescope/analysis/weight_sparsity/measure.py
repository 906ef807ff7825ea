"""Prune, measure, keep: one finished step for each level of each curve.

The dense model and the pruned ones read the same held-out documents. What a step keeps is enough for every
table, so that a run that was killed prunes no level twice.
Shapes: D documents, L matrices.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.activations.losses import token_losses
from sparsescope.activations.replay import Replay
from sparsescope.pruning.curves import Curve
from sparsescope.pruning.finetune import finetune
from sparsescope.pruning.inputs import Collector
from sparsescope.pruning.masks import MaskSet, PackedMask
from sparsescope.pruning.request import Request
from sparsescope.pruning.scope import Scope, choose
from sparsescope.pruning.selection import keep_mask, retained_energy
from sparsescope.pruning.workbench import Workbench

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.weight_sparsity import WeightSparsityParams
    from sparsescope.models.subject import Subject

    Floats = NDArray[np.float64]
    Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Point:
    """One pruned model.

    Attributes:
        curve: How it was pruned.
        asked: The sparsity that was asked for.
        nll: float64 [D], loss summed over the targets of each document, nats.
        correct: float64 [D], targets that are the most probable token.
        kept: int64 [L], weights that stay in each matrix.
        retained: float64 [L], share of the sum of squares that they hold.
        seconds: Time to prune.
        memory: Bytes of statistics and hidden states held at once.
        more: What only some levels keep: ``bits``, ``oracle``, ``masked``, ``error``, ``floor``.
    """

    curve: Curve
    asked: float
    nll: Floats
    correct: Floats
    kept: NDArray[np.int64]
    retained: Floats
    seconds: float
    memory: int
    more: Arrays


class Measuring:
    """Prunes and measures the subject of a run.

    Args:
        params: Parameters of the analysis.
        context: Of the run.
        calibration: Text that criteria read.
        held_out: Text on which losses are measured.
        training: Text for fine-tuning; None where no curve is fine-tuned.

    Attributes:
        scope: The matrices.
        documents: int32 [D], numbers of the held-out documents that have targets.
        targets: int64 [D].
        domains: int16 [D].
        planned: How many levels there will be; for the progress bar.
    """

    def __init__(
        self,
        params: WeightSparsityParams,
        context: Context,
        calibration: TokenizedCorpus,
        held_out: TokenizedCorpus,
        training: TokenizedCorpus | None,
    ) -> None:
        self.params, self.context = params, context
        self.calibration, self.held_out, self.training = calibration, held_out, training
        self.scope: Scope = choose(context.subject, params.scope)
        scored = [d for d in held_out.documents if len(d) + len(held_out.prefix) >= 2]
        self.documents = np.array(sorted(document.index for document in scored), np.int32)
        by_index = {document.index: held_out.domains.index(document.domain) for document in scored}
        self.domains = np.array([by_index[index] for index in self.documents.tolist()], np.int16)
        self.targets = np.zeros(len(self.documents), np.int64)
        self.planned, self.measured = 0, 0
        self._statistics: dict[str, Collector] = {}
        self._replayed: Replay | None = None

    @cached_property
    def work(self) -> Workbench:
        """The copy that is pruned; made at the first level that is not kept already."""
        return Workbench(self.context.subject, self.scope)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Weights of each matrix, [L]."""
        return np.array([site.shape[0] * site.shape[1] for site in self.scope.matrices], np.int64)

    def dense(self, *, finetuned: bool = False) -> tuple[Floats, Floats]:
        """Loss and correct targets of the dense model by document, [D]; of the fine-tuned one if asked."""

        def make() -> Arrays:
            if not finetuned:
                return self._score(self.context.subject)
            copy = self.context.subject.copy()
            self._finetune(copy, None)
            return self._score(copy)

        found = self.context.step("dense-finetuned" if finetuned else "dense", make)
        self.targets = found["targets"]
        return found["nll"], found["correct"]

    def point(self, curve: Curve, asked: float, *, masks: bool = False, compared: bool = False) -> Point:
        """Prune at one level and measure, or read it back.

        Args:
            curve: How.
            asked: The sparsity.
            masks: Keep the masks.
            compared: Keep what only the level of comparison needs.
        """
        self.context.progress("levels", self.measured, max(self.planned, self.measured + 1), "levels")
        found = self.context.step(
            f"{curve.slug}-{asked:g}", lambda: self._measure(curve, asked, masks or compared, compared)
        )
        self.measured += 1
        known = ("nll", "correct", "targets", "kept", "retained", "cost")
        return Point(
            curve,
            asked,
            found["nll"],
            found["correct"],
            found["kept"],
            found["retained"],
            float(found["cost"][0]),
            int(found["cost"][1]),
            {name: values for name, values in found.items() if name not in known},
        )

    def masks_of(self, point: Point) -> MaskSet:
        """The masks of a point that kept them."""
        masks, place = {}, 0
        for site in self.scope.matrices:
            size = -(-site.shape[0] * site.shape[1] // 8)
            masks[site.name] = PackedMask(site.shape, point.more["bits"][place : place + size])
            place += size
        return MaskSet(masks)

    def unigram(self) -> Floats:
        """Loss by document of the frequencies of the tokens in the calibration text, one added to each,
        [D]: what a model that uses no context reaches.
        """
        vocabulary = 1 + max(
            int(document.ids.max(initial=0))
            for text in (self.calibration, self.held_out)
            for document in text.documents
        )
        counts = np.ones(vocabulary)
        for document in self.calibration.documents:
            counts += np.bincount(document.ids, minlength=vocabulary)
        cost = np.log(counts.sum()) - np.log(counts)
        sums = np.zeros(len(self.documents))
        for batch in self.held_out.batches(2048, "right"):
            wanted = batch.text_mask[:, 1:]
            if wanted.any():
                place = int(np.searchsorted(self.documents, batch.document[0]))
                sums[place] += cost[batch.input_ids[:, 1:][wanted]].sum()
        return sums

    def _measure(self, curve: Curve, asked: float, masks: bool, compared: bool) -> Arrays:
        work = self.work if not curve.finetuned else Workbench(self.context.subject, self.scope)
        work.reset()
        request = Request.of(
            curve.criterion,
            asked,
            curve.pattern,
            curve.allocation,
            self.params.propagation,
            self.params.seed,
            self.params.first_positions,
        )
        request.check(self.scope)
        begun = time.perf_counter()
        made = work.prune(
            request,
            self.calibration if request.reads else None,
            self._tell,
            dense=self._dense_statistics(request),
            replay=None if curve.finetuned else self._replay,
            floor_rows=self.params.floor_rows if compared else 0,
        )
        seconds = time.perf_counter() - begun
        kept, retained, oracle = [], [], []
        for site in self.scope.matrices:
            weight, keep = self.context.subject.parameter(site), made[site.name].tensor()
            kept.append(made[site.name].kept)
            retained.append(retained_energy(weight, keep.to(weight.device)))
            if compared:
                gone = made[site.name].weights - kept[-1]
                best = keep_mask(weight.float().square(), gone, curve.pattern, "matrix")
                oracle.append(retained_energy(weight, best))
        if curve.finetuned:
            self._finetune(work.subject, made)
        found = self._score(work.subject) | {
            "kept": np.array(kept, np.int64),
            "retained": np.array(retained),
            "cost": np.array([seconds, float(made.facts.get("memory", 0))]),
        }
        if masks:
            found["bits"] = np.concatenate([made[site.name].bits for site in self.scope.matrices])
        if compared:
            found["oracle"] = np.array(oracle)
            if work.reconstruction:
                errors = [work.reconstruction.get(site.name) for site in self.scope.matrices]
                for name in ("masked", "error", "floor", "rows"):
                    found[name] = np.array([getattr(e, name, np.nan) for e in errors], np.float64)
        return found

    def _dense_statistics(self, request: Request) -> Collector | None:
        """Statistics of the dense copy, read once for all levels."""
        if not request.reads or not self.work.needs_dense(request):
            return None
        if request.reads not in self._statistics:
            self._statistics[request.reads] = self.work.statistics(
                self.calibration, request.reads, request.first_positions, self._tell
            )
        return self._statistics[request.reads]

    def _replay(self) -> Replay:
        """The calibration text before the first block; recorded once for all levels."""
        if self._replayed is None:
            self._replayed = Replay(self.work.subject, self.calibration)
        return self._replayed.restart()

    def _finetune(self, subject: Subject, masks: MaskSet | None) -> None:
        assert self.training is not None
        finetune(
            subject,
            masks,
            self.training,
            steps=self.params.finetune_steps,
            rate=self.params.finetune_rate,
            seed=self.params.seed,
            progress=lambda done, total: self.context.progress("fine-tuning", done, total, "steps"),
        )

    def _score(self, subject: Subject) -> Arrays:
        losses = token_losses(subject, self.held_out)
        where = np.searchsorted(self.documents, losses.document)
        size = len(self.documents)
        return {
            "nll": np.bincount(where, losses.nll, size),
            "correct": np.bincount(where, losses.correct.astype(np.float64), size),
            "targets": np.bincount(where, minlength=size),
        }

    def _tell(self, phase: str, done: int, total: int) -> None:
        self.context.progress(phase, done, total, "batches" if phase == "calibration" else phase)

"""A copy of a model that is pruned, and set back, as often as wanted.

Shapes: matrices [out, in].
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sparsescope.activations.capture import padding_for
from sparsescope.activations.replay import BATCH_TOKENS, Replay
from sparsescope.errors import SubjectError
from sparsescope.models.formats.wrapping import check_step
from sparsescope.models.structure.parameters import read
from sparsescope.pruning.allocation import MatrixFacts
from sparsescope.pruning.criteria import magnitude as _magnitude
from sparsescope.pruning.criteria import wanda as _wanda
from sparsescope.pruning.inputs import Collector, InputStatistics
from sparsescope.pruning.masks import MaskSet, PackedMask, writable
from sparsescope.pruning.selection import keep_mask

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.subject import Subject
    from sparsescope.pruning.criteria import Reads
    from sparsescope.pruning.request import Request
    from sparsescope.pruning.scope import Scope

#: Matrices of experts that fewer tokens reached are named.
FEW_TOKENS = 32
Tell = Callable[[str, int, int], None]


def quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(slots=True)
class Workbench:
    """A copy of a model that is pruned, and set back, as often as wanted.

    Args:
        original: The dense model; it is not changed.
        scope: Its matrices that are pruned.

    Attributes:
        subject: The copy.
        reconstruction: Of the last pruning, where it was asked for: by matrix, relative errors of its output
            of the mask alone, of the weights as changed, and the least-squares floor.

    Raises:
        SubjectError: A weight is not finite, or a matrix cannot be written to.
    """

    original: Subject
    scope: Scope
    subject: Subject = field(init=False)
    reconstruction: dict[str, Reconstruction] = field(init=False, default_factory=dict)
    _pairs: list[tuple[ParameterSite, torch.Tensor, torch.Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        for site in self.scope.matrices:
            matrix = read(self.original.model, site)
            packed = matrix.element_size() == 1  # refused below
            if not packed and not bool(torch.isfinite(matrix.sum(dtype=torch.float64))):
                raise SubjectError(
                    "a weight is not finite, so that weights cannot be ordered",
                    where=site.name,
                    got=f"{int((~torch.isfinite(matrix)).sum())} of {matrix.numel()} weights",
                    next_step=f"check the weights with: {check_step(self.original)}",
                )
        self.subject = self.original.copy()
        self._pairs = [
            (site, self.original.parameter(site), writable(self.subject, site))
            for site in self.scope.matrices
        ]

    def reset(self) -> None:
        """Set the copy back to the dense weights."""
        with torch.no_grad():
            for _, dense, view in self._pairs:
                view.copy_(dense)

    def statistics(
        self,
        text: TokenizedCorpus,
        reads: Reads,
        first_positions: bool = True,
        progress: Tell = quiet,
    ) -> Collector:
        """Read the inputs of every matrix of the copy as it now is, in one pass over a text."""
        collector = Collector(self.subject.model, self.scope.matrices, reads, first_positions)
        side = padding_for(self.subject, text, BATCH_TOKENS)
        total = text.n_batches(BATCH_TOKENS, side)
        with collector.reading():
            for number, batch in enumerate(text.batches(BATCH_TOKENS, side)):
                progress("calibration", number, total)
                collector.begin(batch, self.subject.device)
                mask = None if batch.attention_mask.all() else batch.attention_mask
                self.subject.forward(batch.input_ids, mask)
        progress("calibration", total, total)
        return collector

    def prune(
        self,
        request: Request,
        text: TokenizedCorpus | None = None,
        progress: Tell = quiet,
        dense: Collector | None = None,
        replay: Callable[[], Replay] | None = None,
        floor_rows: int = 0,
    ) -> MaskSet:
        """Prune the copy, which must be dense, and return the masks.

        Args:
            request: What is asked for.
            text: The calibration text, where one is read.
            progress: Told ``(phase, done, total)``.
            dense: Statistics of the dense copy on this text, where they are there already.
            replay: Gives the text on its way through the dense copy, where it was begun before.
            floor_rows: Rows of each matrix for ``reconstruction``, of criteria that solve; 0 for none.
        """
        begun = time.perf_counter()
        if dense is None and text is not None and request.reads and self.needs_dense(request):
            dense = self.statistics(text, request.reads, request.first_positions, progress)
        counts = self._counts(request, dense)
        done = _Done(request, counts, floor_rows=floor_rows)
        if request.sequential:
            assert text is not None
            self._sequentially(request, text, done, progress, replay)
        else:
            for number, (site, matrix, view) in enumerate(self._pairs):
                progress("matrices", number, len(self._pairs))
                done.add(site, matrix, view, None if dense is None else dense.of(site))
        progress("matrices", len(self._pairs), len(self._pairs))
        facts = {
            **request.facts,
            "scope": self.scope.text,
            "weights": self.scope.weights,
            "seconds": round(time.perf_counter() - begun, 3),
        }
        if text is not None and request.reads:
            facts["calibration"] = {
                "corpus": text.name,
                "tokens": text.n_tokens,
                "documents": len(text.documents),
                "context": text.context,
                "digest": text.digest,
            }
        self.reconstruction = done.reconstruction
        if dense is not None:
            done.memory = max(done.memory, dense.bytes)
        if done.memory:
            facts["memory"] = done.memory
        if done.damping:
            facts["damping"] = max(done.damping.values())
        return MaskSet(done.masks, facts, tuple(self._notes(request, done)))

    def needs_dense(self, request: Request) -> bool:
        """Whether statistics of the dense model are read."""
        allocates = request.allocation.reads or (request.allocation.scored and request.criterion.reads)
        return bool(allocates) or not request.sequential

    def _counts(self, request: Request, dense: Collector | None) -> dict[str, int]:
        """How many weights of each matrix go."""

        def facts(site: ParameterSite, matrix: torch.Tensor) -> MatrixFacts:
            inputs = None if dense is None else dense.of(site)
            return MatrixFacts(
                site.name,
                site.layer,
                site.shape,
                lambda: request.criterion.score(matrix.float(), inputs, generator_of(request.seed, site)),
                lambda: _wanda.score(matrix.float(), inputs, generator_of(request.seed, site)),
            )

        known = [facts(site, matrix) for site, matrix, _ in self._pairs]
        counts = request.allocation.counts(known, request.sparsity)
        return {entry.name: int(count) for entry, count in zip(known, counts, strict=True)}

    def _sequentially(
        self,
        request: Request,
        text: TokenizedCorpus,
        done: _Done,
        progress: Tell,
        begin: Callable[[], Replay] | None,
    ) -> None:
        replay = Replay(self.subject, text) if begin is None else begin()
        by_layer: dict[int, list[tuple[ParameterSite, torch.Tensor, torch.Tensor]]] = {}
        for pair in self._pairs:
            by_layer.setdefault(pair[0].layer, []).append(pair)
        last = max(by_layer)
        for layer in range(self.subject.n_layers):
            progress("blocks", layer, self.subject.n_layers)
            here = by_layer.get(layer, [])
            if here:
                collector = Collector(
                    self.subject.model, [site for site, _, _ in here], request.reads, request.first_positions
                )
                with collector.reading():
                    for number, batch in enumerate(replay.batches):
                        collector.begin(batch, self.subject.device)
                        replay.run(layer, number)
                done.memory = max(done.memory, collector.bytes + replay.bytes)
                for site, matrix, view in here:
                    done.add(site, matrix, view, collector.of(site))
            if layer < last:
                replay.advance(layer)
        for layer in range(last, self.subject.n_layers):
            replay.advance(layer, replay.samples)
        for number in replay.samples:
            replay.check(number)

    def _notes(self, request: Request, done: _Done) -> list[str]:
        notes = []
        if done.starved:
            notes.append(
                f"{len(done.starved)} expert matrices got no calibration token and were pruned by magnitude: "
                f"{', '.join(done.starved[:4])}{' ...' if len(done.starved) > 4 else ''}"
            )
        if done.few:
            notes.append(
                f"{len(done.few)} matrices were calibrated on fewer than {FEW_TOKENS} tokens: "
                f"{', '.join(done.few[:4])}{' ...' if len(done.few) > 4 else ''}"
            )
        if done.damping and max(done.damping.values()) > 0.011:
            worst = max(done.damping, key=lambda name: done.damping[name])
            notes.append(
                f"the Hessian of {worst} took a damping of {done.damping[worst]:g} times its mean diagonal"
            )
        return notes


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Squared errors of the output of a matrix on the calibration text, over that of the output itself.

    Attributes:
        masked: Of the mask without any update.
        error: Of the weights as they were changed.
        floor: The least that any weights with this mask reach.
        rows: Rows over which all three are taken.
    """

    masked: float
    error: float
    floor: float
    rows: int


def reconstruction(
    weight: torch.Tensor, changed: torch.Tensor, keep: torch.Tensor, gram: torch.Tensor, rows: int
) -> Reconstruction:
    """Compare a pruned matrix with the best one of its mask, on evenly spread rows.

    Args:
        weight: The dense matrix, [out, in].
        changed: The pruned one.
        keep: bool [out, in].
        gram: float64 [in, in], X X^T.
        rows: How many rows; all where there are fewer.
    """
    from sparsescope.pruning.criteria.sparsegpt import least_squares_floor, reconstruction_error

    count = min(rows, weight.shape[0])
    chosen = torch.linspace(0, weight.shape[0] - 1, count, device=weight.device).round().long()
    dense, mask = weight[chosen].double(), keep[chosen]
    whole = float(((dense @ gram) * dense).sum()) or 1.0
    return Reconstruction(
        float(reconstruction_error(dense, dense * mask, gram).sum()) / whole,
        float(reconstruction_error(dense, changed[chosen].double(), gram).sum()) / whole,
        float(least_squares_floor(dense, mask, gram).sum()) / whole,
        count,
    )


@dataclass(slots=True)
class _Done:
    """The masks so far."""

    request: Request
    counts: Mapping[str, int]
    masks: dict[str, PackedMask] = field(default_factory=dict)
    starved: list[str] = field(default_factory=list)
    few: list[str] = field(default_factory=list)
    damping: dict[str, float] = field(default_factory=dict)
    floor_rows: int = 0
    reconstruction: dict[str, Reconstruction] = field(default_factory=dict)
    memory: int = 0

    def add(
        self, site: ParameterSite, matrix: torch.Tensor, view: torch.Tensor, inputs: InputStatistics | None
    ) -> None:
        """Prune one matrix: ``matrix`` has the dense weights, ``view`` is written to."""
        request, criterion = self.request, self.request.criterion
        count = self.counts[site.name]
        weight = matrix.float()
        if criterion.reads and (inputs is None or not inputs.tokens):
            self.starved.append(site.name)
            inputs = None
        elif inputs is not None and criterion.reads and inputs.tokens < FEW_TOKENS:
            self.few.append(site.name)
        with torch.no_grad():
            if criterion.solve is not None and inputs is not None:
                solved = criterion.solve(weight, inputs, count, request.pattern, site.name)
                self.damping[site.name] = solved.damping
                keep = solved.keep
                view.copy_(solved.weight.to(view.dtype))
                view.masked_fill_(~keep, 0)
                if self.floor_rows and inputs.gram is not None:
                    self.reconstruction[site.name] = reconstruction(
                        weight, view, keep, inputs.gram, self.floor_rows
                    )
            else:
                starved = bool(criterion.reads) and inputs is None
                score = _magnitude.score if starved else criterion.score
                scores = score(weight, inputs, generator_of(request.seed, site))
                keep = keep_mask(scores, count, request.pattern, criterion.groups)
                view.masked_fill_(~keep, 0)
        self.masks[site.name] = PackedMask.of(keep)


def generator_of(seed: int, site: ParameterSite) -> torch.Generator:
    """A generator that depends on the seed and the name of a matrix only."""
    key = hashlib.sha256(f"{seed} {site.name}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)

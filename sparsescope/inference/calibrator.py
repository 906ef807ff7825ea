"""What methods are calibrated with: the groups of a model, norms of its matrices, what they read, gradients.

Everything is computed when first asked for and kept, so that many methods and targets share one reading of
the text. Shapes: matrices [N, K]; norms [K], of experts [E, K].
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from sparsescope.errors import SpecError, SubjectError
from sparsescope.inference.groups import InputGroup, input_groups
from sparsescope.inference.masks import Mask
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.inference.statistics import InputReader, Inputs, Tell, quiet
from sparsescope.models.structure.roles import experts_per_token

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.inference.methods import Recipe
    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.subject import Subject

LEAST_TOKENS = 32
SINK = 8.0  # times the usual norm of a token's inputs
SAMPLE = 1024
REFIT_TOKENS = 2048


#: Names of masks, and a mark of their scales.
MasksKey = tuple[tuple[str, ...], str]
#: Method, prefix policy, treatment of sinks, target.
PointKey = tuple[str, PrefixPolicy, str, float | None]


@dataclass(slots=True)
class Kept:
    """What was computed once for a subject and a text, and is shared by methods and targets.

    Attributes:
        recipes: Methods made ready, by name and allocation.
        dense_counts: What the dense model reads, counted by the scores of a method, by
            ``METHOD[+ALLOCATION]``.
        sparse_counts: What the last sparse model of a point read.
        score_counts: Counts of the scores of some masks in the dense model, int64 [BINS] by name of the mask.
        greedy: By layer, shares by mask after each greedy step.
        rotations: Q, [K, K], by group.
        weight_hash: Of the dense model.
    """

    recipes: dict[tuple[str, str], Recipe] = field(default_factory=dict)
    dense_counts: dict[str, Inputs] = field(default_factory=dict)
    sparse_counts: dict[PointKey, Inputs] = field(default_factory=dict)
    score_counts: dict[MasksKey, Mapping[str, NDArray[np.int64]]] = field(default_factory=dict)
    greedy: dict[MasksKey, dict[int, list[dict[str, float]]]] = field(default_factory=dict)
    rotations: dict[str, torch.Tensor] = field(default_factory=dict)
    weight_hash: str | None = None


@dataclass(slots=True)
class Calibrator:
    """Calibrates methods on one subject and one text.

    Args:
        subject: The dense model; it is not changed.
        text: Calibration text.
        development: Text on which variants of a method are chosen; the calibration text when None.
        scope: ``"blocks"``, ``"mlp"`` or ``"attention"``.
        progress: Told ``(phase, done, total)``.
        sample: Tokens of each group that are kept as they are.
        refit_tokens: Tokens of the text that a sparse model reads again while its thresholds are set.

    Attributes:
        groups: The inputs in scope.
        refit: That part of the text.
        seconds: What was spent, by what it was spent on.
        kept: What methods share.

    Raises:
        SubjectError: The model has nothing to mask, or the text has too few tokens.
    """

    subject: Subject
    text: TokenizedCorpus
    development: TokenizedCorpus | None = None
    scope: str = "blocks"
    progress: Tell = quiet
    sample: int = SAMPLE
    refit_tokens: int = REFIT_TOKENS
    refit: TokenizedCorpus = field(init=False)
    groups: tuple[InputGroup, ...] = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)
    _inputs: Inputs | None = None
    _counts: dict[str, Mapping[str, object]] = field(default_factory=dict)
    _norms: dict[tuple[str, str, int], torch.Tensor] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)

    def __post_init__(self) -> None:
        self.groups = input_groups(self.subject, self.scope)
        self.refit = beginning(self.text, self.refit_tokens)
        counted = sum(max(len(document) - 1, 0) for document in self.text.documents)
        if counted < LEAST_TOKENS:
            raise SubjectError(
                "the calibration text is too short",
                where=f"corpus {self.text.name}",
                allowed=f"at least {LEAST_TOKENS} tokens after the first of a window; 8,192 are usual",
                got=f"{self.text.n_tokens} tokens in {len(self.text.documents)} documents",
                next_step="give a longer text: ss.corpus(..., tokens=8192), or --calibration-tokens",
            )

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time of a block to ``seconds``."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begun

    @property
    def by_name(self) -> dict[str, InputGroup]:
        """The groups by name."""
        return {group.name: group for group in self.groups}

    def routed(self, group: InputGroup) -> int:
        """Experts that one token reads of a mixture; 1 of a dense group."""
        if not group.experts:
            return 1
        experts = self.subject.blocks[group.layer].experts
        assert experts is not None
        return experts_per_token(self.subject.model, experts) or 1

    def weights(self, mask: Mask) -> int:
        """Weights of the matrices that a mask skips, as one token reads them: those of routed experts."""
        group = self.by_name[mask.group]
        rows = group.outputs(mask.roles)
        for role in mask.saves:
            site = next(
                s for g in self.groups for s in g.matrices if s.layer == group.layer and s.role == role
            )
            rows += site.shape[1]
        return self.routed(group) * group.width * rows

    def with_sinks(self, masks: Sequence[Mask], sinks: str) -> list[Mask]:
        """Have masks leave tokens alone whose inputs are far larger than usual, where that is asked for."""
        if sinks == "sparse":
            return list(masks)
        return [
            replace(mask, sink_norm=self._usual_norm(mask) * SINK) if mask.kind == "score" else mask
            for mask in masks
        ]

    def _usual_norm(self, mask: Mask) -> float:
        """Median norm of the scaled inputs of a mask, over sampled tokens."""
        group = self.by_name[mask.group]
        found = []
        for expert in range(group.experts) if group.experts else [None]:
            x = self.inputs.sample(mask.group, expert)
            if x is None:
                continue
            scale = mask.scale
            if scale is not None:
                x = x * (scale if scale.ndim == 1 else scale[expert or 0]).float()
            found.append(x.norm(dim=-1))
        return float(torch.cat(found).median())

    @property
    def weight_hash(self) -> str:
        """Hash of the weights, taken once: the model does not change while it is calibrated."""
        if self.kept.weight_hash is None:
            self.kept.weight_hash = self.subject.identity.weight_hash
        return self.kept.weight_hash

    @property
    def total_weights(self) -> int:
        """Weights of all matrices in scope that one token reads."""
        return sum(self.routed(group) * group.width * group.outputs() for group in self.groups)

    @property
    def inputs(self) -> Inputs:
        """What the dense model reads: samples of each group."""
        if self._inputs is None:
            with self.timed("reading the text"):
                reader = InputReader(self.subject, self.groups, {}, self.sample)
                self._inputs = reader.read(self.text, self.progress, "calibration: inputs")
        return self._inputs

    def count(self, subject: Subject, masks: Mapping[str, Mask], phase: str) -> Inputs:
        """Count the scores of masks as a model reads them: the dense one on the whole text, a sparse one on
        the part of it that thresholds are refitted on.

        Args:
            subject: The model.
            masks: By the name of their counts.
            phase: What the progress says.
        """
        text = self.text if subject is self.subject else self.refit
        return InputReader(subject, self.groups, masks).read(text, self.progress, phase)

    def sites(self, group: InputGroup, role: str) -> list[ParameterSite]:
        """The matrices of one role in a group; of a mixture one for each expert."""
        return [site for site in group.matrices if site.role == role]

    def matrix(self, site: ParameterSite) -> torch.Tensor:
        """A matrix in at least float32, [N, K].

        Raises:
            SubjectError: It is not finite, or cannot be read as numbers.
        """
        weight = self.subject.parameter(site)
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if not bool(torch.isfinite(exact.sum())):
            raise SubjectError("a weight is not finite, so that inputs cannot be scored", where=site.name)
        return exact

    def norms(self, group: InputGroup, role: str, p: int = 2) -> torch.Tensor:
        """Norm of each column of a matrix, [K], of experts [E, K].

        Args:
            group: The group.
            role: The matrix, ``attn.q.weight``.
            p: 1 or 2.
        """
        key = (group.name, role, p)
        if key not in self._norms:
            found = [torch.linalg.vector_norm(self.matrix(s), ord=p, dim=0) for s in self.sites(group, role)]
            self._norms[key] = torch.stack(found) if group.experts else found[0]
        return self._norms[key]


def beginning(text: TokenizedCorpus, tokens: int) -> TokenizedCorpus:
    """The first documents of a text, up to a number of tokens; at least one."""
    taken, chosen = 0, []
    for document in text.documents:
        if taken >= tokens:
            break
        chosen.append(document.index)
        taken += len(document)
    return text if len(chosen) == len(text.documents) else text.select(chosen)


def check_target(target: float) -> float:
    """Return a target sparsity.

    Raises:
        SpecError: It is not in [0, 1).
    """
    if not isinstance(target, int | float) or not 0 <= target < 1:
        raise SpecError(
            "the target is no sparsity",
            where="target",
            allowed="a share of the block-matrix bytes, from 0 on and below 1",
            got=repr(target),
            next_step=f"for {target:g} %: target={target / 100:g}"
            if isinstance(target, int | float) and 1 < target < 100
            else "for example target=0.4",
        )
    return float(target)


def check_reach(method: str, target: float, ceiling: float) -> None:
    """Refuse a target that a method cannot reach.

    Raises:
        SpecError: It would have to skip more than everything that it can skip.
    """
    if target > ceiling + 1e-9:
        raise SpecError(
            f"{method} cannot reach this target",
            where="target",
            allowed=f"at most {ceiling:.3g}: it skips these matrices only, and a token needs some of each",
            got=f"{target:g}",
            next_step="choose a smaller target, or a method that masks every matrix: teal, wina, auto",
        )


def policy_of(prefix: str | PrefixPolicy, text: TokenizedCorpus) -> PrefixPolicy:
    """Read a prefix policy and check that something is sparse in the windows of a text."""
    policy = PrefixPolicy.of(prefix)
    special = text.context - text.window
    longest = max(min(len(d) + special, text.context) for d in text.documents)
    policy.check(longest, f"corpus {text.name}")
    return policy

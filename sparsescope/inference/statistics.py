"""What matrices read on a calibration text: counts of scores for each mask, and a sample of inputs.

One pass gives thresholds for every target: scores of each mask are counted on a logarithmic grid (never a
signed histogram, whose half would be taken for both), and some tokens are kept as they are for what needs
more than counts (errors of outputs, medians, factors). Padding never counts, nor does the first token of a
window, on which massive activations sit; under a prefix policy only sparse positions do. The model may be
sparse itself: inputs are then what the sparse blocks before them give, read before the mask.

Shapes: x [tokens, K]; counts int64 [BINS].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.capture import padding_for
from sparsescope.inference.groups import InputGroup
from sparsescope.inference.install import reading_of
from sparsescope.inference.masks import Mask
from sparsescope.kernels.score_histograms import add_scores, new_counts
from sparsescope.models.structure.experts import apply_matrix, expert_inputs, is_fused, takes_routing
from sparsescope.models.structure.sites import argument, module_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus
    from sparsescope.models.subject import Subject

BATCH_TOKENS = 2048
Tell = Callable[[str, int, int], None]


def quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(slots=True)
class Inputs:
    """What the groups of a model read.

    Attributes:
        counts: By name of the mask, int64 [BINS].
        samples: By name of the group, [n, K] in the model's precision; of a mixture by (group, expert).
        tokens: Tokens that counted.
        kept: Of a sparse model, inputs kept and inputs there by name of the mask.
        shares: Of a mixture, tokens of each expert, int64 [E], by group.
    """

    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    samples: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    tokens: int = 0
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)
    shares: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def sample(self, group: str, expert: int | None = None) -> torch.Tensor | None:
        """Sampled inputs of a group, or of one of its experts, float32 [n, K]; None where none came."""
        found = self.samples.get((group, -1 if expert is None else expert))
        return None if found is None else found.float()


@dataclass(slots=True)
class InputReader:
    """Reads a text through a model and counts.

    Args:
        subject: The model; dense, or sparse.
        groups: The groups that are read.
        masks: What is scored, by the name of its counts.
        sample: Tokens kept of each group, spread over the text; 0 for none.
        gate: Activation of the gates, for masks that go by them.
    """

    subject: Subject
    groups: Sequence[InputGroup]
    masks: Mapping[str, Mask] = field(default_factory=dict)
    sample: int = 0
    found: Inputs = field(default_factory=Inputs)
    _rows: NDArray[np.int64] | None = None
    _kept: dict[tuple[str, int], list[torch.Tensor]] = field(default_factory=dict)
    _stride: int = 1
    _wanted: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def read(self, text: TokenizedCorpus, progress: Tell = quiet, phase: str = "calibration") -> Inputs:
        """Run the text through the model once.

        Args:
            text: The calibration text.
            progress: Told ``(phase, tokens, tokens)``.
            phase: What the progress says.
        """
        side = padding_for(self.subject, text, BATCH_TOKENS)
        total = text.n_tokens
        self._stride = max(1, total // max(self.sample, 1))
        done = 0
        with self._hooked():
            for batch in text.batches(BATCH_TOKENS, side):
                progress(phase, done, total)
                done += batch.n_tokens
                self._begin(batch)
                if not self._wanted.any():
                    continue
                self.found.tokens += int(self._wanted.sum())
                mask = None if batch.attention_mask.all() else batch.attention_mask
                reading = reading_of(self.subject)
                if reading is not None:
                    reading.counts = {}
                    reading.counted = torch.from_numpy(self._wanted.reshape(batch.text_mask.shape))
                self.subject.forward_through(self._last, batch.input_ids, mask)
                for name, sums in ({} if reading is None else reading.counts or {}).items():
                    kept, there = (int(number) for number in sums.sum(-1))
                    before = self.found.kept.get(name, (0, 0))
                    self.found.kept[name] = (before[0] + kept, before[1] + there)
                if reading is not None:
                    reading.counts = reading.counted = None
        progress(phase, total, total)
        self.found.samples = {key: torch.cat(parts) for key, parts in self._kept.items()}
        return self.found

    @property
    def _last(self) -> int:
        return max(group.layer for group in self.groups)

    def _begin(self, batch: TokenBatch) -> None:
        """Which tokens of the next pass count."""
        wanted = batch.text_mask & (batch.position > 0)
        reading = reading_of(self.subject)
        if reading is not None and reading.policy.kind != "all_sparse":
            lengths = torch.from_numpy(batch.attention_mask.sum(-1))
            first = reading.policy.first_sparse(lengths).numpy()
            place = batch.attention_mask.cumsum(-1) - 1
            wanted = wanted & (place >= first[:, None])
        self._wanted = wanted.reshape(-1)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        by_group: dict[str, dict[str, Mask]] = {}
        for name, mask in self.masks.items():
            by_group.setdefault(mask.group, {})[name] = mask
        with ExitStack() as handles:
            fused: dict[str, list[InputGroup]] = {}
            for group in self.groups:
                path = group.matrices[0].module_path
                module = module_at(self.subject.model, path)
                if is_fused(module):
                    fused.setdefault(path, []).append(group)
                    continue
                scored = by_group.get(group.name, {})
                inputs = {name: mask for name, mask in scored.items() if mask.kind != "gate"}
                handle = module.register_forward_pre_hook(self._linear(group, inputs), with_kwargs=True)
                handles.callback(handle.remove)
                gates = [name for name, mask in scored.items() if mask.kind == "gate"]
                if gates:
                    handles.callback(self._gate(group, gates))
            for path, groups in fused.items():
                module = module_at(self.subject.model, path)
                hook = self._experts(groups, by_group)
                handles.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def _linear(self, group: InputGroup, masks: Mapping[str, Mask]) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = argument(args, kwargs, 0)
            flat = x.reshape(-1, x.shape[-1])
            self._add(group.name, -1, flat if self._wanted.all() else flat[self._chosen()], masks)

        return hook

    def _gate(self, group: InputGroup, names: Sequence[str]) -> Callable[[], None]:
        """Read the activated gate of the layer of a group."""
        from sparsescope.inference.gates import gate_of

        site, act = gate_of(self.subject, group.layer)
        module = module_at(self.subject.model, site.module_path)
        rows = slice(None) if site.rows is None else slice(*site.rows)

        def hook(_module: Any, _args: Any, output: torch.Tensor) -> None:
            flat = output[..., rows].reshape(-1, site.shape[0])
            flat = flat if self._wanted.all() else flat[self._chosen()]
            for name in names:
                add_scores(self._counts(name), act(flat))

        return module.register_forward_hook(hook).remove

    def _experts(self, groups: Sequence[InputGroup], by_group: Mapping[str, Mapping[str, Mask]]) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = argument(args, kwargs, 0)
            index = argument(args, kwargs, 1) if takes_routing(module) else None
            counted = torch.from_numpy(self._wanted)
            for expert, into, hidden, rows in expert_inputs(module, states, index):
                chosen = counted[rows.cpu()].to(into.device)
                for group in groups:
                    second = group.role.endswith("out")
                    x = (hidden if second else into)[chosen]
                    scored = by_group.get(group.name, {})
                    gates = [name for name, mask in scored.items() if mask.kind == "gate"]
                    for name in gates:
                        add_scores(self._counts(name), self._expert_gate(group, module, into[chosen], expert))
                    shares = self.found.shares.setdefault(group.name, np.zeros(group.experts, np.int64))
                    shares[expert] += len(x)
                    self._add(group.name, expert, x, {n: m for n, m in scored.items() if n not in gates})

        return hook

    def _expert_gate(self, group: InputGroup, module: Any, states: torch.Tensor, expert: int) -> torch.Tensor:
        """The activated gate of an expert, [n, f]."""
        from sparsescope.inference.gates import gate_of

        site, act = gate_of(self.subject, group.layer, group.role.removesuffix(".out"))
        both = apply_matrix(module, "gate_up_proj", states, expert)
        return act(both[..., slice(*(site.rows or (0, site.shape[0], 1)))])

    def _chosen(self) -> torch.Tensor:
        return torch.from_numpy(np.flatnonzero(self._wanted)).to(self.subject.device)

    def _counts(self, name: str) -> NDArray[np.int64]:
        return self.found.counts.setdefault(name, new_counts())

    def _add(self, group: str, expert: int, x: torch.Tensor, masks: Mapping[str, Mask]) -> None:
        if not len(x):
            return
        for name, mask in masks.items():
            scale = mask.scale
            if scale is not None and scale.ndim == 2:
                scale = scale[expert]
            values = x
            if mask.rotation is not None:
                values = x @ mask.rotation.to(x.dtype)
            if mask.sink_norm is not None:
                norms = (values.float() if scale is None else values.float() * scale).norm(dim=-1)
                values = values[norms <= mask.sink_norm]
            add_scores(self._counts(name), values, scale, mask.centre)
        if self.sample:
            kept = self._kept.setdefault((group, expert), [])
            stride = self._stride if expert < 0 else 1
            room = self.sample - sum(len(part) for part in kept)
            if room > 0:
                kept.append(x[::stride][:room].clone())

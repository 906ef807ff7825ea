"""How much the output of every matrix matters: the diagonal of the Fisher information.

h_o = E[(dL / dy_o)^2] over calibration tokens, with L the loss of labels that the model itself draws, summed
over a
window: to second order, a change e of the outputs of a matrix costs sum_o h_o e_o^2 / 2 nats of KL. One
    backward
pass for all matrices; the text and one seed decide it. Of experts the gradient is traced through the expert
on the tokens that were routed to it.

Shapes: y [tokens, N]; h [N], of experts [E, N].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from sparsescope.activations.capture import padding_for
from sparsescope.activations.losses import check_causal
from sparsescope.inference.groups import InputGroup
from sparsescope.inference.statistics import Tell, quiet
from sparsescope.models.passes import evaluating
from sparsescope.models.structure.experts import apply_matrix, is_fused, is_gated, sizes, takes_routing
from sparsescope.models.structure.roles import submodule
from sparsescope.models.structure.sites import argument, module_at, with_argument
from sparsescope.models.structure.visits import alone
from sparsescope.models.token_ids import within_table

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject

BATCH_TOKENS = 1024
MOST_LOGITS = 2**26


def output_sensitivity(
    subject: Subject,
    groups: Sequence[InputGroup],
    text: TokenizedCorpus,
    tokens: int,
    seed: int = 0,
    progress: Tell = quiet,
) -> dict[tuple[str, str], torch.Tensor]:
    """Measure h for the matrices of some groups.

    Args:
        subject: A causal model with its output head.
        groups: The inputs whose matrices are measured.
        text: Calibration text.
        tokens: How many of its tokens are read.
        seed: Draws the labels.
        progress: Told ``(phase, done, total)``.

    Returns:
        By name of the group and role of the matrix, float32 [N], of experts [E, N].

    Raises:
        SubjectError: The subject has no loss of the next token.
    """
    check_causal(subject)
    measure = _Measure(subject, groups)
    generator = torch.Generator(device=subject.device).manual_seed(seed)
    vocabulary = int(subject.model.get_output_embeddings().weight.shape[0])
    size = max(1, min(BATCH_TOKENS, MOST_LOGITS // vocabulary))
    side = padding_for(subject, text, size)
    done = 0
    for batch in text.batches(size, side):
        if done >= tokens:
            break
        progress("sensitivity", min(done, tokens), tokens)
        wanted = batch.text_mask & (batch.position > 0)
        if not wanted.any():
            continue
        done += int(wanted.sum())
        ids = torch.from_numpy(batch.input_ids).to(subject.device)
        mask = (
            None if batch.attention_mask.all() else torch.from_numpy(batch.attention_mask).to(subject.device)
        )
        ids = within_table(subject, ids, mask)
        measure.begin(wanted)
        arguments = subject.mask_arguments(subject.model, ids, mask)
        with alone(subject.model), torch.enable_grad(), evaluating(subject.model), measure.hooked():
            logits = subject.model(input_ids=ids, **arguments).logits
            real = torch.from_numpy(batch.attention_mask.astype(bool)).to(logits.device)
            chosen = logits[real].float()
            labels = torch.multinomial(chosen.detach().softmax(-1), 1, generator=generator)[:, 0]
            loss = functional.cross_entropy(chosen, labels, reduction="sum")
            torch.autograd.grad(loss, [measure.lever])
    progress("sensitivity", tokens, tokens)
    return measure.found()


class _Measure:
    """Sums of squared gradients by group and role."""

    def __init__(self, subject: Subject, groups: Sequence[InputGroup]) -> None:
        self.subject, self.groups = subject, groups
        self.sums: dict[tuple[str, str], torch.Tensor] = {}
        self.counts: dict[tuple[str, str], Any] = {}
        self.lever = torch.zeros(())
        self.rows: torch.Tensor | None = None
        self.wanted: np.ndarray = np.zeros(0, bool)

    def begin(self, wanted: np.ndarray) -> None:
        """Say which tokens of the next pass count, bool [batch, pos]."""
        self.wanted = wanted.reshape(-1)
        self.rows = torch.from_numpy(np.flatnonzero(self.wanted)).to(self.subject.device)

    def found(self) -> dict[tuple[str, str], torch.Tensor]:
        """Means."""
        result = {}
        for key, total in self.sums.items():
            count = self.counts[key]
            if isinstance(count, torch.Tensor):
                count = count.clamp(min=1)[:, None]
            result[key] = (total / count).float()
        return result

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Have hooks on the modules; gradients begin before the first block, and weights need none."""
        model = self.subject.model
        asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
        dtype = self.subject.torch_dtype
        self.lever = torch.zeros((), dtype=dtype, device=self.subject.device, requires_grad=True)

        def start(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_argument(args, kwargs, 0, argument(args, kwargs, 0) + self.lever)

        with ExitStack() as stack:
            for parameter in asked:
                parameter.requires_grad_(False)
                stack.callback(parameter.requires_grad_, True)
            first = submodule(model, self.subject.blocks[0].path)
            stack.callback(first.register_forward_pre_hook(start, with_kwargs=True).remove)
            seen: set[str] = set()
            for group in self.groups:
                for site in group.matrices:
                    if site.module_path in seen:
                        continue
                    module = module_at(model, site.module_path)
                    if is_fused(module):
                        seen.add(site.module_path)
                        hook = module.register_forward_hook(self._experts(group.layer), with_kwargs=True)
                    else:
                        hook = module.register_forward_hook(self._linear(group, site.module_path))
                        seen.add(site.module_path)
                    stack.callback(hook.remove)
            yield

    def _linear(self, group: InputGroup, path: str) -> Any:
        sites = [site for site in group.matrices if site.module_path == path]

        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            def add(gradient: torch.Tensor) -> None:
                flat = gradient.reshape(-1, gradient.shape[-1])[self.rows].float()
                squares = flat.square().sum(0, dtype=torch.float64)
                for site in sites:
                    own = squares if site.rows is None else squares[slice(*site.rows)]
                    self._add((group.name, site.role), own, len(flat))

            output.register_hook(add)

        return hook

    def _add(self, key: tuple[str, str], squares: torch.Tensor, count: int) -> None:
        self.sums[key] = self.sums[key] + squares if key in self.sums else squares
        self.counts[key] = self.counts.get(key, 0) + count

    def _experts(self, layer: int) -> Any:
        groups = {g.role.rpartition(".")[2]: g for g in self.groups if g.layer == layer and g.experts}

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
            states = argument(args, kwargs, 0).detach()
            routed = takes_routing(module)
            index = argument(args, kwargs, 1) if routed else None
            weights = argument(args, kwargs, 2).detach() if routed else None

            def add(gradient: torch.Tensor) -> None:
                self._trace(module, groups, states, index, weights, gradient)

            output.register_hook(add)

        return hook

    def _trace(
        self,
        module: Any,
        groups: dict[str, InputGroup],
        states: torch.Tensor,
        index: torch.Tensor | None,
        weights: torch.Tensor | None,
        gradient: torch.Tensor,
    ) -> None:
        """Follow the gradient of the output of a mixture into each of its experts."""
        experts, _ = sizes(module)
        flat = states.reshape(-1, states.shape[-1])
        above = gradient.reshape(-1, gradient.shape[-1])
        counted = torch.from_numpy(self.wanted).to(flat.device)
        for expert in range(experts):
            if index is None or weights is None:
                tokens = len(flat) // experts
                rows = (flat[expert * tokens : (expert + 1) * tokens] != 0).any(-1).nonzero()[:, 0]
                into, slope = flat[expert * tokens + rows], above[expert * tokens + rows]
            else:
                chosen = index.reshape(-1, index.shape[-1]) == expert
                rows = chosen.any(-1).nonzero()[:, 0]
                share = (weights.reshape(-1, weights.shape[-1]) * chosen).sum(-1)[rows, None]
                into, slope = flat[rows], above[rows] * share.to(above.dtype)
            keep = counted[rows]
            if not bool(keep.any()):
                continue
            into, slope = into[keep], slope[keep]
            name = "gate_up_proj" if is_gated(module) else "up_proj"
            with torch.enable_grad():
                before = apply_matrix(module, name, into, expert).detach().requires_grad_(True)
                if not is_gated(module):
                    hidden = module.act_fn(before)
                elif hasattr(module, "_apply_gate"):
                    hidden = module._apply_gate(before)
                else:
                    gate, up = before.chunk(2, dim=-1)
                    hidden = module.act_fn(gate) * up
                out = apply_matrix(module, "down_proj", hidden, expert)
                (below,) = torch.autograd.grad(out, [before], slope.to(out.dtype))
            squares = below.float().square().sum(0, dtype=torch.float64)
            if "in" in groups:
                for site in (s for s in groups["in"].matrices if s.expert == expert):
                    own = squares if site.rows is None else squares[slice(*site.rows)]
                    self._expert((groups["in"].name, site.role), own, expert, experts, len(into))
            if "out" in groups:
                site = groups["out"].matrices[0]
                second = slope.float().square().sum(0, dtype=torch.float64)
                self._expert((groups["out"].name, site.role), second, expert, experts, len(into))

    def _expert(
        self, key: tuple[str, str], squares: torch.Tensor, expert: int, experts: int, count: int
    ) -> None:
        if key not in self.sums:
            self.sums[key] = torch.zeros(experts, len(squares), dtype=torch.float64, device=squares.device)
            self.counts[key] = torch.zeros(experts, dtype=torch.float64, device=squares.device)
        self.sums[key][expert] += squares
        self.counts[key][expert] += count

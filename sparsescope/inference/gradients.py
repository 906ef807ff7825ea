"""Backward passes that look at gradients inside the blocks: at matrices, and in experts.

The loss is that of labels which the model itself draws, summed over a window, so that squared gradients are
Fisher information. Gradients begin before the first block, weights need none, and the model is left as it
was. Experts live in one fused module; the gradient at its output is followed into each of them on the tokens
that were routed to it.

Shapes: T tokens of a pass; n of them that count and were routed to an expert; x [T, K], y [T, N].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from sparsescope.activations.capture import padding_for
from sparsescope.activations.losses import check_causal
from sparsescope.inference.groups import InputGroup
from sparsescope.inference.statistics import Tell, quiet
from sparsescope.models.structure.experts import apply_matrix, is_fused, is_gated, sizes, takes_routing
from sparsescope.models.structure.passes import evaluating
from sparsescope.models.structure.roles import submodule
from sparsescope.models.structure.sites import argument, module_at, with_argument
from sparsescope.models.structure.token_ids import within_table
from sparsescope.models.structure.visits import alone

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject

BATCH_TOKENS = 1024
MOST_LOGITS = 2**26


@dataclass(frozen=True, slots=True)
class Traced:
    """One expert on the counted tokens that were routed to it, with the gradients of the loss.

    Attributes:
        expert: Its number.
        experts: How many there are.
        rows: int64 [n], which tokens of the pass they are.
        inputs: [n, d].
        hidden: Input of the second matrix, [n, f].
        at_inputs: Gradient at the inputs, through this expert alone, [n, d].
        at_first: At the outputs of the first matrices, gate and up together, [n, N].
        at_hidden: [n, f].
        at_outputs: At the outputs of the second matrix, [n, d].
    """

    expert: int
    experts: int
    rows: torch.Tensor
    inputs: torch.Tensor
    hidden: torch.Tensor
    at_inputs: torch.Tensor
    at_first: torch.Tensor
    at_hidden: torch.Tensor
    at_outputs: torch.Tensor


class GradientPasses:
    """Runs a text forward and backward; what is kept of the gradients is for its classes to say.

    Attributes:
        wanted: bool [T], the tokens of the pass that count.
        rows: int64, their numbers.
    """

    def __init__(self, subject: Subject, groups: Sequence[InputGroup]) -> None:
        self.subject, self.groups = subject, groups
        self.lever = torch.zeros(())
        self.rows: torch.Tensor | None = None
        self.wanted: np.ndarray = np.zeros(0, bool)

    def attach(self, module: Any, group: InputGroup, path: str) -> Any:
        """Put a hook on a module that is no mixture, and return its handle."""
        raise NotImplementedError

    def take(self, groups: dict[str, InputGroup], traced: Traced) -> None:
        """Keep what is wanted of an expert; ``groups`` by the key ``in`` or ``out``."""
        raise NotImplementedError

    def end(self) -> None:
        """Called after the backward pass of a batch."""

    def run(self, text: TokenizedCorpus, tokens: int, seed: int = 0, progress: Tell = quiet) -> None:
        """Read the beginning of a text.

        Args:
            text: Calibration text.
            tokens: How many of its tokens are read.
            seed: Draws the labels.
            progress: Told ``(phase, done, total)``.

        Raises:
            SubjectError: The subject has no loss of the next token.
        """
        subject = self.subject
        check_causal(subject)
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
                None
                if batch.attention_mask.all()
                else torch.from_numpy(batch.attention_mask).to(subject.device)
            )
            ids = within_table(subject, ids, mask)
            self._begin(wanted)
            arguments = subject.mask_arguments(subject.model, ids, mask)
            with alone(subject.model), torch.enable_grad(), evaluating(subject.model), self._hooked():
                logits = subject.model(input_ids=ids, **arguments).logits
                real = torch.from_numpy(batch.attention_mask.astype(bool)).to(logits.device)
                chosen = logits[real].float()
                labels = torch.multinomial(chosen.detach().softmax(-1), 1, generator=generator)[:, 0]
                loss = functional.cross_entropy(chosen, labels, reduction="sum")
                torch.autograd.grad(loss, [self.lever])
            self.end()
        progress("sensitivity", tokens, tokens)

    def _begin(self, wanted: np.ndarray) -> None:
        """Say which tokens of the next pass count, bool [batch, pos]."""
        self.wanted = wanted.reshape(-1)
        self.rows = torch.from_numpy(np.flatnonzero(self.wanted)).to(self.subject.device)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
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
                    seen.add(site.module_path)
                    module = module_at(model, site.module_path)
                    if is_fused(module):
                        hook = module.register_forward_hook(self._experts(group.layer), with_kwargs=True)
                    else:
                        hook = self.attach(module, group, site.module_path)
                    stack.callback(hook.remove)
            yield

    def _experts(self, layer: int) -> Any:
        groups = {
            group.role.rpartition(".")[2]: group
            for group in self.groups
            if group.layer == layer and group.experts
        }

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
            states = argument(args, kwargs, 0).detach()
            routed = takes_routing(module)
            index = argument(args, kwargs, 1) if routed else None
            weights = argument(args, kwargs, 2).detach() if routed else None

            def add(gradient: torch.Tensor) -> None:
                for traced in self._trace(module, states, index, weights, gradient):
                    self.take(groups, traced)

            output.register_hook(add)

        return hook

    def _trace(
        self,
        module: Any,
        states: torch.Tensor,
        index: torch.Tensor | None,
        weights: torch.Tensor | None,
        gradient: torch.Tensor,
    ) -> Iterator[Traced]:
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
            rows, into, slope = rows[keep], into[keep], slope[keep]
            name = "gate_up_proj" if is_gated(module) else "up_proj"
            with torch.enable_grad():
                leaf = into.detach().requires_grad_(True)
                before = apply_matrix(module, name, leaf, expert)
                if not is_gated(module):
                    hidden = module.act_fn(before)
                elif hasattr(module, "_apply_gate"):
                    hidden = module._apply_gate(before)
                else:
                    gate, up = before.chunk(2, dim=-1)
                    hidden = module.act_fn(gate) * up
                out = apply_matrix(module, "down_proj", hidden, expert)
                wanted = [leaf, before, hidden]
                at_inputs, at_first, at_hidden = torch.autograd.grad(out, wanted, slope.to(out.dtype))
            yield Traced(expert, experts, rows, into, hidden.detach(), at_inputs, at_first, at_hidden, slope)

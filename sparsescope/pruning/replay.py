"""Run the blocks of a model one at a time over a whole text, so that each is pruned on what the pruned ones
before it give.

What a block gets beside the hidden states (masks, positions) does not depend on them, so it is recorded in
passes whose blocks return their input: nothing is computed there. That every block reads exactly what the one
before it gave is checked, in one real pass, bit for bit; a model that computes between its blocks, or hands
something beside the hidden states from block to block, is refused.
Shapes: hidden states [batch, pos, d_model], one tensor for each batch of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

from sparsescope.activations.capture import padding_for
from sparsescope.errors import SubjectError
from sparsescope.models.passes import evaluating
from sparsescope.models.structure.roles import submodule
from sparsescope.models.structure.sites import argument, with_argument
from sparsescope.models.structure.visits import alone

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus
    from sparsescope.models.subject import Subject

BATCH_TOKENS = 2048
_NEXT = "give propagation='dense' (--propagation dense): one pass over the whole model"


@dataclass(slots=True)
class _Call:
    """What a block was called with, the hidden states aside."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Replay:
    """A text on its way through the blocks of a model.

    Args:
        subject: The model; its weights may change between blocks.
        corpus: The text.
        batch_tokens: Most positions in one pass.

    Attributes:
        batches: The batches of the text.
        hidden: The hidden states that the next block reads, one tensor for each batch.

    Raises:
        SubjectError: The model computes between its blocks.
    """

    def __init__(self, subject: Subject, corpus: TokenizedCorpus, batch_tokens: int = BATCH_TOKENS) -> None:
        self.subject = subject
        self.blocks = [submodule(subject.model, block.path) for block in subject.blocks]
        side = padding_for(subject, corpus, batch_tokens)
        self.batches: list[TokenBatch] = list(corpus.batches(batch_tokens, side))
        self._check_chain(self.batches[0])
        self.hidden: list[torch.Tensor] = []
        self._calls: list[list[_Call]] = []  # by batch, by layer
        for batch in self.batches:
            first, calls = self._record(batch)
            self.hidden.append(first)
            self._calls.append(calls)
        self._first = list(self.hidden)

    def run(self, layer: int, number: int, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Run one block on one batch.

        Args:
            layer: Its number.
            number: The number of the batch.
            hidden: What it reads; what the blocks before gave when None.
        """
        call = self._calls[number][layer]
        given = self.hidden[number] if hidden is None else hidden
        args, kwargs = with_argument(call.args, call.kwargs, 0, given)
        with alone(self.subject.model), torch.inference_mode(), evaluating(self.subject.model):
            try:
                return _states(self.blocks[layer](*args, **kwargs))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
                raise self._depend(f"block {layer} alone: {type(error).__name__}: {error}"[:300]) from error

    @property
    def bytes(self) -> int:
        """Size of the hidden states."""
        return sum(tensor.nbytes for tensor in self.hidden)

    def restart(self) -> Replay:
        """Go back to the first block; the weights may be others by now."""
        self.hidden = list(self._first)
        return self

    def advance(self, layer: int) -> None:
        """Put what a block gives in place of what it read."""
        for number in range(len(self.batches)):
            self.hidden[number] = self.run(layer, number)

    @property
    def samples(self) -> tuple[int, ...]:
        """Numbers of the batches to ``check``: the first, and one that is padded, or else of another shape."""
        rest = list(enumerate(self.batches))[1:]
        padded = [number for number, batch in rest if not batch.attention_mask.all()]
        first = self.batches[0].input_ids.shape
        other = [number for number, batch in rest if batch.input_ids.shape != first]
        return 0, *(padded or other)[:1]

    def check(self, number: int = 0) -> None:
        """Compare what came out of the last block with a whole pass over the model as it now is.

        Raises:
            SubjectError: They differ: a block gets something of the blocks before it beside their output.
        """
        with self._watching() as seen:
            self._forward(self.batches[number])
        if not torch.equal(seen[-1][1], self.hidden[number]):
            difference = float((seen[-1][1] - self.hidden[number]).abs().max())
            raise self._depend(f"outputs that differ by up to {difference:.3g}")

    def _forward(self, batch: TokenBatch) -> None:
        mask = None if batch.attention_mask.all() else batch.attention_mask
        self.subject.forward(batch.input_ids, mask)

    def _record(self, batch: TokenBatch) -> tuple[torch.Tensor, list[_Call]]:
        """What each block is called with, in a pass whose blocks return their input."""
        calls: list[_Call] = []
        first: list[torch.Tensor] = []
        beside = {id(part) for rest in self._outputs for part in rest or () if isinstance(part, torch.Tensor)}

        def stub(layer: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                given = argument(args, kwargs, 0)
                if not first:
                    first.append(given)
                if given.data_ptr() != first[0].data_ptr() or given.shape != first[0].shape:
                    raise self._between(layer)
                args, kwargs = with_argument(args, kwargs, 0, None)
                if beside & {id(part) for part in (*args, *kwargs.values())}:
                    raise self._depend(f"block {layer} reads more than one output of the block before it")
                # A cache would grow each time a block runs
                calls.append(
                    _Call(
                        tuple(None if isinstance(part, Cache) else part for part in args),
                        {name: None if isinstance(part, Cache) else part for name, part in kwargs.items()},
                    )
                )
                return self._shape_of_output(layer, given)

            return forward

        with _replaced(self.blocks, stub):
            self._forward(batch)
        if len(calls) != len(self.blocks):
            raise self._between(len(calls))
        return first[0], calls

    def _shape_of_output(self, layer: int, hidden: torch.Tensor) -> Any:
        rest = self._outputs[layer]
        return hidden if rest is None else (hidden, *rest)

    def _check_chain(self, batch: TokenBatch) -> None:
        """Run the model once, and compare what each block reads with what the one before gave."""
        with self._watching() as seen:
            self._forward(batch)
        if len(seen) != len(self.blocks):
            raise self._between(len(seen))
        for layer in range(1, len(seen)):
            if not torch.equal(seen[layer][0], seen[layer - 1][1]):
                raise self._between(layer)
        self._outputs = [rest for _, _, rest in seen]

    @contextmanager
    def _watching(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor, tuple[Any, ...] | None]]]:
        """Collect input, output and the rest of the output of each block."""
        seen: list[tuple[torch.Tensor, torch.Tensor, tuple[Any, ...] | None]] = []

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            rest = tuple(output[1:]) if isinstance(output, tuple | list) else None
            seen.append((argument(args, kwargs, 0), _states(output), rest))

        handles = [block.register_forward_hook(hook, with_kwargs=True) for block in self.blocks]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _depend(self, got: str) -> SubjectError:
        return SubjectError(
            "the blocks of this model depend on each other beside the hidden states, so that they cannot "
            "be run one at a time",
            where=f"{self.subject.id} ({type(self.subject.model).__name__})",
            got=got,
            next_step=_NEXT,
        )

    def _between(self, layer: int) -> SubjectError:
        return SubjectError(
            "this model computes between its blocks, so that they cannot be run one at a time",
            where=f"{self.subject.id} ({type(self.subject.model).__name__}), before block {layer}",
            allowed="models whose blocks read what the block before gave",
            next_step=_NEXT,
        )


def _states(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return states


@contextmanager
def _replaced(blocks: Sequence[Any], make: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """Give blocks other forwards while the ``with`` block runs."""
    before = [vars(block).get("forward") for block in blocks]
    try:
        for layer, block in enumerate(blocks):
            block.forward = make(layer)
        yield
    finally:
        for block, found in zip(blocks, before, strict=True):
            if found is None:
                vars(block).pop("forward", None)
            else:
                block.forward = found

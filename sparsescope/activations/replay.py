"""Run the blocks of a model one at a time over a whole text: so each can be pruned on what the pruned ones
before it give, or tried many times on the same inputs.

What a block gets beside the hidden states (masks, positions) does not depend on them, so it is recorded in
passes whose blocks return their input: nothing is computed there. Other outputs of a block that a later one
reads are handed on. That every block reads exactly what the one before it gave is checked, in one real pass,
bit for bit; a model that computes between its blocks is refused.
Shapes: hidden states [batch, pos, d_model], one tensor for each batch of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

from sparsescope.activations.capture import padding_for
from sparsescope.errors import SubjectError
from sparsescope.models.structure.passes import evaluating
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
    """What a block was called with, the hidden states aside.

    Attributes:
        args: By position.
        kwargs: By name.
        handed: Places where it reads another output of a block: the number of the block, and of the output.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    handed: dict[int | str, tuple[int, int]]


class Replay:
    """A text on its way through the blocks of a model.

    Args:
        subject: The model; its weights may change between blocks.
        corpus: The text.
        batch_tokens: Most positions in one pass.
        next_step: What to do where the model cannot be run so, for the error.

    Attributes:
        batches: The batches of the text.
        hidden: The hidden states that the next block reads, one tensor for each batch.

    Raises:
        SubjectError: The model computes between its blocks.
    """

    def __init__(
        self,
        subject: Subject,
        corpus: TokenizedCorpus,
        batch_tokens: int = BATCH_TOKENS,
        next_step: str = _NEXT,
    ) -> None:
        self.subject, self.next_step = subject, next_step
        self.blocks = [submodule(subject.model, block.path) for block in subject.blocks]
        side = padding_for(subject, corpus, batch_tokens)
        self.batches: list[TokenBatch] = list(corpus.batches(batch_tokens, side))
        self._outputs: list[tuple[Any, ...] | None] = []  # what each block gives beside the hidden states
        self._read: set[tuple[int, int]] = set()  # those of them that another block reads
        self._check_chain(self.batches[0])
        self.hidden: list[torch.Tensor] = []
        self._calls: list[list[_Call]] = []  # by batch, by layer
        self._handed: list[dict[tuple[int, int], torch.Tensor]] = [{} for _ in self.batches]
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
        return _states(self._output(layer, number, self.hidden[number] if hidden is None else hidden))

    def _output(self, layer: int, number: int, hidden: torch.Tensor) -> Any:
        call, handed = self._calls[number][layer], self._handed[number]
        args, kwargs = with_argument(call.args, call.kwargs, 0, hidden.clone())  # it may write to it
        args = tuple(handed[call.handed[n]] if n in call.handed else part for n, part in enumerate(args))
        kwargs = {
            name: handed[call.handed[name]] if name in call.handed else part for name, part in kwargs.items()
        }
        # A block is looked through, not the whole model: this runs for every block and batch
        with alone(self.subject.model), torch.inference_mode(), evaluating(self.blocks[layer]):
            try:
                return self.blocks[layer](*args, **kwargs)
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

    def advance(self, layer: int, numbers: Sequence[int] | None = None) -> None:
        """Put what a block gives in place of what it read.

        Args:
            layer: Its number.
            numbers: Of the batches; all when None.
        """
        for number in range(len(self.batches)) if numbers is None else numbers:
            output = self._output(layer, number, self.hidden[number])
            self.hidden[number] = _states(output)
            for place, key in ((key[1], key) for key in self._read if key[0] == layer):
                self._handed[number][key] = output[1 + place]

    @property
    def samples(self) -> tuple[int, ...]:
        """Numbers of the batches to ``check``: the first, and one that is padded or else of another shape."""
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
        found: list[torch.Tensor] = []
        handle = self.blocks[-1].register_forward_hook(lambda _module, _args, out: found.append(_states(out)))
        try:
            self._forward(self.batches[number])
        finally:
            handle.remove()
        if not _same(found[-1], self.hidden[number]):
            difference = float((found[-1] - self.hidden[number]).abs().max())
            raise self._depend(f"outputs that differ by up to {difference:.3g}")

    def _forward(self, batch: TokenBatch) -> None:
        mask = None if batch.attention_mask.all() else batch.attention_mask
        self.subject.forward(batch.input_ids, mask)

    def _record(self, batch: TokenBatch) -> tuple[torch.Tensor, list[_Call]]:
        """What each block is called with, in a pass whose blocks return their input."""
        calls: list[_Call] = []
        first: list[torch.Tensor] = []
        beside: dict[int, tuple[int, int]] = {}
        alive: list[Any] = []
        inside = {id(part) for rest in self._outputs for part in _tensors(rest)}

        def stub(layer: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                given = argument(args, kwargs, 0)
                if layer != len(calls):
                    raise self._between(layer)
                if not first:
                    first.append(given)
                if given.data_ptr() != first[0].data_ptr() or given.shape != first[0].shape:
                    raise self._between(layer)
                args, kwargs = with_argument(args, kwargs, 0, None)
                # A cache would grow each time a block runs
                args = tuple(None if isinstance(part, Cache) else part for part in args)
                kwargs = {name: None if isinstance(part, Cache) else part for name, part in kwargs.items()}
                named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
                handed = {place: beside[id(part)] for place, part in named if id(part) in beside}
                rest = [part for place, part in named if place not in handed]
                if any(id(part) in inside or id(part) in beside for part in _tensors(rest)):
                    raise self._depend(f"block {layer} reads a part of another output of a block before it")
                calls.append(_Call(args, kwargs, handed))
                self._read.update(handed.values())
                found = self._outputs[layer]
                if found is None:
                    return given
                # Copies, so that each output of each block is known again
                copies = [part.clone() if isinstance(part, torch.Tensor) else part for part in found]
                beside.update(
                    {id(part): (layer, n) for n, part in enumerate(copies) if isinstance(part, torch.Tensor)}
                )
                alive.append(copies)
                return (given, *copies)

            return forward

        with _replaced(self.blocks, stub):
            self._forward(batch)
        if len(calls) != len(self.blocks):
            raise self._between(len(calls))
        return first[0], calls

    def _check_chain(self, batch: TokenBatch) -> None:
        """Run the model once, and compare what each block reads with what the one before gave."""
        last: list[torch.Tensor] = []  # a copy: what is computed in place is seen

        def reads(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if last and not _same(argument(args, kwargs, 0), last[0]):
                raise self._between(len(self._outputs))

        def gives(module: Any, args: tuple[Any, ...], output: Any) -> None:
            last[:] = [_states(output).clone()]
            self._outputs.append(tuple(output[1:]) if isinstance(output, tuple | list) else None)

        with ExitStack() as handles:
            for block in self.blocks:
                handles.callback(block.register_forward_pre_hook(reads, with_kwargs=True).remove)
                handles.callback(block.register_forward_hook(gives).remove)
            self._forward(batch)
        if len(self._outputs) != len(self.blocks):
            raise self._between(len(self._outputs))

    def _depend(self, got: str) -> SubjectError:
        return SubjectError(
            "the blocks of this model depend on each other beside the hidden states, so that they cannot "
            "be run one at a time",
            where=f"{self.subject.id} ({type(self.subject.model).__name__})",
            got=got,
            next_step=self.next_step,
        )

    def _between(self, layer: int) -> SubjectError:
        return SubjectError(
            "this model computes between its blocks, so that they cannot be run one at a time",
            where=f"{self.subject.id} ({type(self.subject.model).__name__}), before block {layer}",
            allowed="models whose blocks read what the block before gave",
            next_step=self.next_step,
        )


def _states(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return states


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal; NaN, which is refused where it is read, is equal to itself."""
    if torch.equal(one, other):
        return True
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value, however deep."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


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

"""What a model writes after given beginnings: greedy or sampled continuations, as token ids.

Not ``transformers.generate``: that takes the settings of ``generation_config`` (repetition penalty, top-k)
where none are given, and draws from the global random state. Here a token is the most probable one, or drawn
from softmax(logits / temperature) over the whole vocabulary by the inverse of its distribution function; the
number that decides it is fixed by seed, row and step, so it does not depend on which rows share a pass.

Prompts of several lengths are padded on the left where the model takes that; elsewhere those of one length
share passes.

Shapes: rows = prompts that share passes; logits [rows, vocabulary].
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.errors import SubjectError
from sparsescope.models.formats.wrapping import check_step, float32_step
from sparsescope.models.structure.passes import evaluating
from sparsescope.models.structure.roles import text_config
from sparsescope.models.structure.token_ids import within_table
from sparsescope.models.structure.visits import alone

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.models.subject import Subject

    #: Called as ``enough(number of the prompt, ids written after it)``.
    Enough = Callable[[int, NDArray[np.int32]], bool]

_log = logging.getLogger(__name__)
# Fixed, since rounding differs a little between sizes of a batch, and near ties are decided by it.
ROWS = 16


def end_tokens(subject: Subject) -> frozenset[int]:
    """Return the ids that end a text: those of the model, of its tokenizer where the model names none."""
    holders = [getattr(subject.model, "generation_config", None), text_config(subject.model)]
    for holder in [*holders, subject.tokenizer]:
        found = getattr(holder, "eos_token_id", None)
        if found is not None:
            return frozenset([found] if isinstance(found, int) else map(int, found))
    return frozenset()


def takes_cache(model: Any) -> bool:
    """Whether a model goes on from its keys and values; others read the whole text for every token."""
    return {"past_key_values", "use_cache"} <= set(inspect.signature(model.forward).parameters)


def continuations(
    subject: Subject,
    prompts: Sequence[NDArray[np.int32]],
    prefix: Sequence[int],
    new: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    rows: int = ROWS,
    enough: Enough | None = None,
) -> list[NDArray[np.int32]]:
    """Let a model write on.

    Args:
        subject: A causal model with its output head; it is left as it was, and so is the global random state.
        prompts: int32 [tokens] each.
        prefix: Special tokens before every prompt.
        new: Most tokens that are written after each.
        temperature: 0 for the most probable token; otherwise tokens are drawn.
        seed: Seed of an own generator for drawing.
        rows: Most prompts that share passes.
        enough: Asked after every token whether a text ends there, beside end-of-text tokens.

    Returns:
        For each prompt what was written, int32 [1 to new]; an end-of-text token is its last.

    Raises:
        SubjectError: The subject does not predict the next token, or logits are not finite.
    """
    if not {"causal", "logits"} <= subject.capabilities:
        raise SubjectError(
            "only a causal language model with its output head writes text",
            where=subject.id,
            allowed="subjects with causal, logits",
            got=", ".join(sorted(subject.capabilities)),
            next_step="give it a corpus that is there; `sparsescope list corpora` lists them",
        )
    chances = None
    if temperature > 0:
        generator = torch.Generator().manual_seed(seed)
        chances = torch.rand((len(prompts), new), generator=generator, dtype=torch.float64)
    _log.info("%s writes up to %d tokens after each of %d prompts", subject.id, new, len(prompts))
    written: list[Any] = [None] * len(prompts)
    for numbers in _shared(subject, [len(prompt) for prompt in prompts], rows):
        longest = max(len(prompts[number]) for number in numbers)
        ids = np.zeros((len(numbers), len(prefix) + longest), np.int64)
        mask = np.zeros(ids.shape, bool)
        for row, number in enumerate(numbers):
            whole = [*prefix, *prompts[number]]
            ids[row, ids.shape[1] - len(whole) :], mask[row, ids.shape[1] - len(whole) :] = whole, True
        given = within_table(subject, torch.as_tensor(ids, device=subject.device), mask)
        padded = None if mask.all() else torch.as_tensor(mask, device=subject.device).long()
        drawn = None if chances is None else chances[numbers].to(subject.device)
        found = _written(subject, given, padded, new, drawn, temperature, numbers, enough)
        for number, own in zip(numbers, found, strict=True):
            written[number] = own
    return written


def _shared(subject: Subject, lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Which prompts share passes: in their order where all have one length, else those of like length."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    pads = lengths and lengths[order[0]] != lengths[order[-1]] and subject.takes_padding("left")
    start = 0
    while start < len(order):
        end = min(start + rows, len(order))
        if not pads:
            same = lengths[order[start]]
            end = next((n for n in range(start, end) if lengths[order[n]] != same), end)
        yield order[start:end]
        start = end


def _written(
    subject: Subject,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    new: int,
    chances: torch.Tensor | None,
    temperature: float,
    numbers: Sequence[int],
    enough: Enough | None,
) -> list[NDArray[np.int32]]:
    """Continue some rows, int64 [rows, pos]; ``mask`` is 0 at padding, None where there is none; ``chances``
    [rows, new] in [0, 1) decide what is drawn.
    """
    model = subject.model
    # Without a cache that it takes (state-space models have another), the model reads everything again.
    cached = takes_cache(model)
    accepted = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    past, read, ends, first = None, ids, list(end_tokens(subject)), ids.shape[1]
    lengths = np.zeros(len(ids), np.int64)  # 0 as long as a row goes on
    with alone(model), torch.inference_mode(), evaluating(model):
        for step in range(new):
            given = subject.mask_arguments(model, ids, mask)
            if cached:
                given |= {"use_cache": True, "past_key_values": past}
                if "position_ids" in given:
                    given["position_ids"] = given["position_ids"][:, -read.shape[1] :]
            output = model(input_ids=read, **given, **extra)
            chosen = _choose(subject, output.logits[:, -1], chances, step, temperature)
            ids = torch.cat([ids, chosen[:, None]], dim=1)
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            past = getattr(output, "past_key_values", None) if cached else None
            read = ids if past is None else chosen[:, None]
            ended = np.isin(chosen.cpu().numpy(), ends)
            if enough is not None:
                texts = ids[:, first:].cpu().numpy().astype(np.int32)
                for row in np.flatnonzero((lengths == 0) & ~ended).tolist():
                    ended[row] = enough(numbers[row], texts[row])
            lengths[ended & (lengths == 0)] = step + 1
            if lengths.all():
                break
    lengths[lengths == 0] = new
    found = ids[:, first:].cpu().numpy().astype(np.int32)
    return [row[:length] for row, length in zip(found, lengths, strict=True)]


def _choose(
    subject: Subject, logits: torch.Tensor, chances: torch.Tensor | None, step: int, temperature: float
) -> torch.Tensor:
    """Next token of each row, int64 [rows], from logits [rows, vocabulary]."""
    if not bool(torch.isfinite(logits).all()):
        raise SubjectError(
            "the logits of the next token are not finite",
            where=f"{subject.id}, new token {step}",
            next_step=f"{float32_step(subject)}; check the weights with: {check_step(subject)}",
        )
    if chances is None:
        return logits.argmax(-1)
    upto = (logits.double() / temperature).softmax(-1).cumsum(-1)
    # The last sum is 1 but for rounding: relative to it no number below 1 is beyond the vocabulary.
    place = torch.searchsorted(upto, chances[:, step, None] * upto[:, -1:], right=True)[:, 0]
    return place.clamp(max=logits.shape[-1] - 1)

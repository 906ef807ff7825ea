"""How a model counts positions, and whether padding, or later tokens, change what it computes.

Nothing here is guessed from names of architectures: what a model does is measured by short passes, when it is
first needed. Two facts come of it. A model is *causal* if its output at a position does not depend on later
tokens. A side *takes padding* if the output of real tokens is the same with padding on that side as without:
that fails where the mask does not reach everything that mixes tokens (FNet, Nystroemformer, convolutions).

Positions with padding on the left: models with rotary positions, and GPT-2 or BERT, count from 0 at the first
real token. RoBERTa and its relatives begin at the padding index of their position embedding + 1, and count
only tokens that are no padding; Nystroemformer and YOSO begin at the first entry of a buffer. The way that
makes a padded row equal to the row alone is taken.

Shapes: ids and masks [batch, pos]; outputs [batch, pos, width].
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from sparsescope.errors import SubjectError
from sparsescope.models.structure.passes import evaluating
from sparsescope.models.structure.roles import text_config
from sparsescope.models.structure.visits import alone

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

Side = Literal["left", "right"]

# Largest relative difference that is rounding, by precision. In float32 sums in another order (experts get
# other tokens with them) move outputs by 1e-6, an attention that sees a token by more than 1e-3.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Padded rows take another way through the kernels of attention than rows without a mask.
_PADDED_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 6e-2}
_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Counting:
    """How position ids follow from a mask.

    Attributes:
        first: Position of the first real token.
        padding_idx: Where the model counts only ids that are not this one, and gives it this position.
    """

    first: int = 0
    padding_idx: int | None = None

    def of(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Position ids int64 [batch, pos] for int64 ids and mask."""
        if self.padding_idx is None:
            return (mask.cumsum(dim=1) - 1).clamp(min=0) + self.first
        counted = mask * (ids != self.padding_idx)
        return counted.cumsum(dim=1) * counted + self.padding_idx


def position_embedding(model: Any) -> Any:
    """Return the table of positions that keeps a row for padding (RoBERTa), or None."""
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        rows = getattr(module, "weight", None)
        if "pos" in name and getattr(module, "padding_idx", None) is not None and rows is not None:
            return module
    return None


def usable_positions(model: Any) -> int | None:
    """Return how many positions a model was made for, None where its configuration sets no limit.

    Rows of the table of positions that stand for padding, and those before them, are no position of a token:
    RoBERTa with ``max_position_embeddings`` 514 takes 512 tokens.
    """
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    table = position_embedding(model)
    return limit if table is None else min(limit, int(table.weight.shape[0]) - int(table.padding_idx) - 1)


def _countings(model: Any, module: Any) -> tuple[Counting | None, ...]:
    """Return the ways to count that come into question for padding on the left, the likeliest first; None
    stands for no position ids, where the model counts by itself.
    """
    if "position_ids" not in inspect.signature(module.forward).parameters:
        return (None,)
    found: list[Counting | None] = []
    table = position_embedding(model)
    if table is not None:
        padding = int(table.padding_idx)
        found.append(Counting(padding + 1, padding))
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] == "position_ids" and buffer.numel():
            found.append(Counting(int(buffer.flatten()[0])))
    return tuple(dict.fromkeys([*found, Counting(), None]))


@dataclass(frozen=True, slots=True)
class Padding:
    """What padding on one side does.

    Attributes:
        counting: How positions are counted; None leaves that to the model.
        error: By how much the outputs of real tokens differ from those of the row alone, relative to the
            largest.
        sound: Whether that is rounding.
    """

    counting: Counting | None
    error: float
    sound: bool


def arguments(subject: Subject, module: Any, ids: torch.Tensor, attention_mask: Any) -> dict[str, Any]:
    """Return mask, positions and cache switch for a pass; see ``Subject.mask_arguments``."""
    accepted = inspect.signature(module.forward).parameters
    found: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if attention_mask is None:
        return found
    mask = torch.as_tensor(attention_mask, device=subject.device).to(torch.int64)
    if mask.shape != ids.shape:
        raise SubjectError(
            "mask and token ids differ in shape",
            where="Subject.forward(attention_mask)",
            allowed=str(tuple(ids.shape)),
            got=tuple(mask.shape),
            next_step="give one mask entry per token",
        )
    found["attention_mask"] = mask
    full: dict[Side, bool] = {"left": bool(mask[:, 0].all()), "right": bool(mask[:, -1].all())}
    for side in (side for side, without in full.items() if not without):
        measured = padding(subject, module, side)
        if not measured.sound:
            raise _padding_refused(subject, module, side, measured.error)
        if measured.counting is not None:
            found["position_ids"] = measured.counting.of(ids, mask)
    return found


def is_causal(subject: Subject) -> bool:
    """Measure whether outputs do not depend on later tokens.

    The second half of a row gets other tokens; the outputs of the first half are compared.

    Raises:
        SubjectError: The model does not run on token ids.
    """
    first, second = _sample(subject.model, subject.max_positions)
    half = first.shape[1] // 2
    if not half:
        return True  # there are no later tokens
    other = torch.cat([first[:, :half], second[:, half:]], dim=1)
    backbone = subject.backbone
    try:
        outputs = [_unseen(subject, backbone, ids)[:, :half] for ids in (first, other)]
    except Exception as error:
        raise SubjectError(
            "the model does not run on token ids alone",
            where=f"{subject.id} ({type(subject.model).__name__})",
            got=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}",
            next_step="load the language part of the model alone",
        ) from error
    return _distance(*outputs) <= _ROUNDING.get(subject.torch_dtype, 1e-5)


def padding(subject: Subject, module: Any, side: Side) -> Padding:
    """Measure what padding on one side does, once for each subject and module.

    On the left the ways to count positions are tried, and the first that is exact is taken.

    Args:
        subject: The model.
        module: What is run: the model, or its backbone.
        side: Where the padding is.
    """
    key = side, module is subject.model
    if key not in subject.paddings:
        bound = _PADDED_ROUNDING.get(subject.torch_dtype, 1e-4)
        best = Padding(None, float("inf"), False)
        for counting in _countings(subject.model, module) if side == "left" else (None,):
            try:
                error = _padding_error(subject, module, side, counting)
            except (
                IndexError,
                RuntimeError,
                ValueError,
            ):  # positions beyond the table, a shape it cannot pad
                continue
            if error < best.error:
                best = Padding(counting, error, error <= bound)
            if best.sound:
                break
        subject.paddings[key] = best
    return subject.paddings[key]


def _padding_error(subject: Subject, module: Any, side: Side, counting: Counting | None) -> float:
    """By how much padding changes the outputs of real tokens: a row alone, and beside a longer one."""
    long, short = _sample(subject.model, subject.max_positions)
    n_padding = long.shape[1] // 3
    short = short[:, n_padding:]
    fill = torch.full_like(long[:, :n_padding], _padding_id(subject.model))
    parts = [fill, short] if side == "left" else [short, fill]
    real = slice(n_padding, None) if side == "left" else slice(0, short.shape[1])
    ids = torch.cat([long, torch.cat(parts, dim=1)])
    mask = torch.ones_like(ids)
    mask[1] = 0
    mask[1, real] = 1
    given = {} if counting is None else {"position_ids": counting.of(ids, mask)}
    together = _unseen(subject, module, ids, attention_mask=mask, **given)
    alone = [_unseen(subject, module, row) for row in (long, short)]
    return max(_distance(alone[0], together[:1]), _distance(alone[1], together[1:, real]))


def _unseen(subject: Subject, module: Any, ids: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
    """Outputs of a module in a pass that no hook sees and that leaves the model as it was."""
    switch = arguments(subject, module, ids, None)
    model = subject.model
    with alone(model), torch.inference_mode(), evaluating(model), _left_as_it_was(model):
        output = module(input_ids=ids, **switch, **given)
    return output.logits if module is subject.model and subject.has_head else output.last_hidden_state


def _padding_refused(subject: Subject, module: Any, side: Side, error: float) -> SubjectError:
    """Build the error for a padded row that would not give what the row alone gives."""
    step = "run rows of one length together, without a mask; ss.capture and ss.run do so by themselves"
    if padding(subject, module, "right" if side == "left" else "left").sound:
        step = f"pad on the {'right' if side == 'left' else 'left'}, or {step}"
    size = "cannot be run" if error == float("inf") else f"outputs that differ by {error:.2g} of the largest"
    return SubjectError(
        f"padding on the {side} changes what this model computes for the real tokens",
        where=f"{subject.id} ({type(subject.model).__name__})",
        allowed="rows without padding on that side",
        got=f"beside those of the row alone: {size}",
        next_step=step,
    )


@contextmanager
def _left_as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Run passes in a ``with`` block that nobody else sees and that leave no trace.

    The hooks of all modules are off: they are for the passes of others. Those by which a sparse model
    knows its positions (``inference.prefix``) are a part of it and stay. Attributes, submodules and buffers
    that modules replace during a pass are put back (BigBird changes its attention for good on a short row).
    """
    kept: list[tuple[torch.nn.Module, dict[str, Any], list[tuple[dict[Any, Any], dict[Any, Any]]]]] = []
    for module in model.modules():
        inner: list[dict[Any, Any]] = [
            module._modules,
            module._buffers,
            module._forward_hooks,
            module._forward_pre_hooks,
        ]
        kept.append((module, dict(vars(module)), [(entry, dict(entry)) for entry in inner]))
    for _, _, pairs in kept:
        for hooks, _ in pairs[2:]:
            for key in [key for key, hook in hooks.items() if not _of_the_model(hook)]:
                del hooks[key]
    try:
        yield
    finally:
        for module, attributes, pairs in kept:
            for entry, before in ((vars(module), attributes), *pairs):
                entry.clear()
                entry.update(before)


def _of_the_model(hook: Any) -> bool:
    """Whether a hook is a part of the model that it is on."""
    return bool(getattr(getattr(hook, "__self__", None), "belongs_to_model", False))


def _sample(model: Any, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two rows of ids, int64 [1, pos] each, different everywhere; none is special where there is a
    choice.
    """
    config = text_config(model)
    length = min(_LENGTH, limit or _LENGTH)
    vocabulary = int(getattr(config, "vocab_size", None) or model.get_input_embeddings().weight.shape[0])
    special = {
        value
        for name, value in vars(config).items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    drawn = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0)).tolist()
    plain = [id for id in drawn if id > 3 and id not in special]
    ids = torch.tensor(plain if len(plain) > 1 else drawn, device=next(model.parameters()).device)
    places = torch.arange(length, device=ids.device)
    rows = [ids[(places + shift) % len(ids)][None] for shift in (0, max(1, len(ids) // 2))]
    return rows[0], rows[1]


def _padding_id(model: Any) -> int:
    """An id that the model takes at padding."""
    found = getattr(text_config(model), "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else 0


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest value; infinite where a value is not a number."""
    one, other = one.double(), other.double()
    found = float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))
    return float("inf") if math.isnan(found) else found

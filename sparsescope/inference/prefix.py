"""Which positions are sparse: a named policy, and where a pass stands.

Published numbers differ in what they leave dense: TEAL the first half of a window, WINA the first hundredth,
R-Sparse by its default the first nine tenths. So the policy is a value of its own, part of the identity of a
sparse model and printed beside every number.

Positions are those of the sequence, never columns of a batch: padding on the left and a cache change
nothing, and under ``all_sparse`` and ``dense_first_n`` neither does a prompt that is read in pieces.
``dense_fraction`` and ``decode_only`` go by the prompt. A pass of several tokens after others in a cache is
one more piece of it: dense under ``decode_only``, and refused under ``dense_fraction``, whose share would be
of a length that nobody has said; ``divergence.prompted_by`` says it, and then pieces are one pass under both.
Where it is not said, a last piece of one token looks like a token that is decoded, and is taken for one.
Shapes: B sequences of T tokens in one pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from sparsescope.errors import SpecError, SubjectError, unknown_name

if TYPE_CHECKING:
    import torch

PrefixKind = Literal["all_sparse", "dense_first_n", "dense_fraction", "decode_only"]
KINDS: tuple[PrefixKind, ...] = get_args(PrefixKind)
SUMMARIES: dict[PrefixKind, str] = {
    "all_sparse": "every position",
    "dense_first_n": "every position but the first n of a sequence: dense_first_n:4",
    "dense_fraction": "every position after a share of the prompt, or of a window that is scored: "
    "dense_fraction:0.5",
    "decode_only": "tokens that are decoded, after a dense prompt; of a window that is scored without a "
    "cache, the second half",
}
_FORM = re.compile(r"([a-z_]+)(?:[:=]([^:]+))?")


@dataclass(frozen=True, slots=True)
class PrefixPolicy:
    """Which positions are sparse.

    Attributes:
        kind: One of ``KINDS``.
        value: n of ``dense_first_n``, the share of ``dense_fraction``; 0 for the others.
    """

    kind: PrefixKind
    value: float = 0.0

    @classmethod
    def of(cls, text: str | PrefixPolicy) -> PrefixPolicy:
        """Read a policy: ``all_sparse``, ``dense_first_n:4``, ``dense_fraction:0.5``, ``decode_only``.

        Raises:
            SpecError: There is no such policy, its number is missing or out of range, or it leaves
                nothing sparse.

        Example:
            >>> PrefixPolicy.of("dense_first_n:4").text
            'dense_first_n:4'
        """
        if isinstance(text, PrefixPolicy):
            return text
        match = _FORM.fullmatch(str(text).strip())
        name = match[1] if match else str(text)
        if match is None or name not in KINDS:
            raise unknown_name(
                "prefix policy", name, KINDS, next_step="for example all_sparse, or dense_first_n:4"
            )
        kind = KINDS[KINDS.index(name)]
        given = match[2]
        if kind in ("all_sparse", "decode_only"):
            if given is not None:
                raise SpecError("this prefix policy takes no number", where="prefix", got=str(text))
            return cls(kind)
        try:
            value = float(given) if given is not None else float("nan")
        except ValueError:
            value = float("nan")
        if kind == "dense_first_n":
            if not (value >= 0 and value == math.floor(value)):
                raise SpecError(
                    "the number of dense first positions cannot be read",
                    where="prefix",
                    allowed="dense_first_n:N with a whole number, 0 or more",
                    got=str(text),
                )
        elif not 0 <= value < 1:
            nothing = value >= 1
            raise SpecError(
                "this prefix policy leaves nothing sparse" if nothing else "the dense share cannot be read",
                where="prefix",
                allowed="dense_fraction:F with 0 <= F < 1",
                got=str(text),
                next_step="all_sparse, or decode_only for a dense prompt",
            )
        return cls(kind, value)

    @property
    def text(self) -> str:
        """As it is written."""
        return self.kind if self.kind in ("all_sparse", "decode_only") else f"{self.kind}:{self.value:g}"

    def check(self, longest: int | None, where: str) -> None:
        """Refuse a policy that leaves nothing sparse in windows of at most ``longest`` tokens.

        Raises:
            SpecError: Every position of every window would be dense.
        """
        if self.kind == "dense_first_n" and longest is not None and self.value >= longest:
            raise SpecError(
                "this prefix policy leaves nothing sparse",
                where=where,
                allowed=f"fewer than {longest} dense positions: no window is longer",
                got=self.text,
                next_step="give a smaller number, or all_sparse",
            )

    def first_sparse(self, lengths: torch.Tensor) -> torch.Tensor:
        """Position from which a window is sparse that is read in one pass, without a cache.

        Args:
            lengths: int64 [B], tokens of each window.

        Returns:
            int64 [B].
        """
        if self.kind == "all_sparse":
            return lengths * 0
        if self.kind == "dense_first_n":
            return lengths * 0 + int(self.value)
        share = 0.5 if self.kind == "decode_only" else self.value
        return (lengths.double() * share).ceil().long()


SINKS = ("sparse", "dense")


def check_sinks(sinks: str) -> str:
    """Return how tokens are treated whose inputs are far larger than those of others.

    Raises:
        SpecError: It is neither ``sparse`` nor ``dense``.
    """
    if sinks not in SINKS:
        raise unknown_name(
            "treatment of sinks", sinks, SINKS, next_step="dense leaves tokens with very large inputs alone"
        )
    return sinks


@dataclass(slots=True)
class Reading:
    """Where the pass of a sparse model stands; one for all its modules.

    The module that runs the blocks calls it before and after its pass.

    Attributes:
        policy: Which positions are sparse.
        starts: int64 [B], overrides the first sparse position of each sequence; for passes that go on
            from a dense prompt in a cache.
        counts: By name of the mask, inputs kept and inputs there in the pass, int64 [2, B]; collected
            when not None.
        counted: bool [B, T], which sparse positions are counted; all when None.
        shares: What an input of each mask weighs, by its name: its bytes / bytes of all masks; or None.
        read: With ``shares``, what each position reads, [B, T].
        record: With the names of masks, the inputs that they kept in the pass, bool [B, T, width], by name.
        scratch: What one module leaves for another of its layer: the gate, by layer.
    """

    belongs_to_model: ClassVar[bool] = True  # its hooks stay where those of a pass are switched off

    policy: PrefixPolicy
    starts: torch.Tensor | None = None
    counts: dict[str, torch.Tensor] | None = None
    counted: torch.Tensor | None = None
    shares: Mapping[str, float] | None = None
    read: torch.Tensor | None = None
    record: dict[str, torch.Tensor | None] | None = None
    scratch: dict[int, torch.Tensor] = field(default_factory=dict)
    active: bool = False
    sparse: torch.Tensor | None = None  # bool [B, T]; None where all positions are
    shape: tuple[int, int] = (0, 0)
    _seen: set[tuple[str, int]] = field(default_factory=set)  # masks that were counted in this pass

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the backbone runs; reads ids, mask, positions and cache."""
        import torch

        named = {**dict(zip(("input_ids", "attention_mask"), args, strict=False)), **kwargs}
        first = named.get("input_ids")
        given = named.get("inputs_embeds") if first is None else first
        if given is None:
            raise SubjectError("a pass of a sparse model reads token ids or embeddings", where="forward")
        batch, length = int(given.shape[0]), int(given.shape[1])
        past = _past(named.get("past_key_values"))
        if self.policy.kind == "dense_fraction" and self.starts is None and past and length > 1:
            raise SubjectError(
                "the length of a prompt that is read in pieces is not known, and a share of it is dense",
                where="forward",
                allowed="the whole prompt in the first pass of a sequence, then single tokens",
                got=f"{length} tokens after {past} in the cache, under {self.policy.text}",
                next_step="say it, by divergence.prompted_by(subject, [TOKENS]) around all passes; or take "
                "dense_first_n:N, or decode_only",
            )
        self.shape, self.active = (batch, length), True
        self.scratch.clear()
        self._seen.clear()
        if self.counts is not None:
            self.counts = {}
        if self.shares is not None:
            self.read = torch.zeros(batch * length, dtype=torch.float64, device=given.device)
        if self.policy.kind == "all_sparse" and self.starts is None:
            self.sparse = None
            return
        mask = named.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        position = _positions(named.get("position_ids"), mask, past, length).to(given.device)
        position = position.expand(batch, length)
        if self.starts is not None:
            self.sparse = position >= self.starts.to(given.device)[:, None]
        elif self.policy.kind == "decode_only" and (past or named.get("use_cache")):
            decoding = past > 0 and length == 1
            self.sparse = torch.full((batch, length), decoding, device=given.device)
        elif self.policy.kind == "dense_fraction" and past:
            self.sparse = torch.ones((batch, length), dtype=torch.bool, device=given.device)
        else:
            own = torch.full((batch,), length, device=given.device) if mask is None else mask.sum(-1)
            self.sparse = position >= self.policy.first_sparse(own.to(given.device))[:, None]

    def end(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Called after the backbone ran, also where it failed."""
        self.active = False
        self.scratch.clear()

    def of(self, x: torch.Tensor, where: str) -> torch.Tensor | None:
        """Which rows of an input are sparse, bool [..., 1]; None where all are.

        Args:
            x: [B, T, width] or [B * T, width].
            where: Name of the reader, for the error.

        Raises:
            SubjectError: The module reads other tokens than the model does, or runs outside of a pass of the
                model, where positions are not known.
        """
        if not self.active:
            if self.policy.kind == "all_sparse":
                return None
            raise SubjectError(
                "positions are known in a pass of the whole model only",
                where=where,
                allowed="prefix policy all_sparse",
                got=self.policy.text,
                next_step="run the model, or make the subject with prefix='all_sparse'",
            )
        batch, length = self.shape
        if tuple(x.shape[:-1]) not in ((batch, length), (batch * length,), (1, batch * length)):
            raise SubjectError(
                "a matrix reads other tokens than the model does",
                where=where,
                allowed=f"[{batch}, {length}, width]",
                got=list(x.shape),
                next_step="leave it dense: give another scope",
            )
        return None if self.sparse is None else self.sparse.reshape(*x.shape[:-1], 1)

    def count(
        self, name: str, kept: torch.Tensor, width: int, rows: torch.Tensor | None = None, expert: int = -1
    ) -> None:
        """Count the kept inputs of one mask, once in a pass where several matrices have it.

        Args:
            name: Of the mask.
            kept: int64 [B, T] or [tokens], inputs that it keeps of each token.
            width: Inputs there.
            rows: int64 [tokens], which tokens of the pass they are; all, in order, when None.
            expert: Number of the expert.
        """
        import torch

        if not self.active or (self.counts is None and self.shares is None):
            return
        if (name, expert) in self._seen:
            return
        self._seen.add((name, expert))
        batch, length = self.shape
        kept = kept.reshape(-1)
        if self.shares is not None and self.read is not None:
            part = kept.double() * self.shares.get(name, 0.0)
            if rows is None:
                self.read += part
            else:
                self.read.index_add_(0, rows, part)
        if self.counts is None:
            return
        weight = torch.ones_like(kept)
        for chosen in (self.counted, self.sparse):
            if chosen is not None:
                flat = chosen.to(kept.device).reshape(-1)
                weight = weight * (flat if rows is None else flat[rows])
        both = torch.stack([kept * weight, weight * width])
        if rows is None:
            sums = both.reshape(2, batch, length).sum(-1)
        else:
            sums = both.new_zeros(2, batch)
            sums.index_add_(1, rows // length, both)
        self.counts[name] = self.counts[name] + sums if name in self.counts else sums

    def see(self, name: str, masked: torch.Tensor) -> None:
        """Record what one mask kept: what is not zero afterwards."""
        if self.record is not None and name in self.record and self.active:
            self.record[name] = (masked != 0).reshape(*self.shape, -1)


def _past(cache: Any) -> int:
    """Tokens in a cache."""
    return 0 if cache is None else int(cache.get_seq_length())


def _positions(given: Any, mask: torch.Tensor | None, past: int, length: int) -> torch.Tensor:
    """Position of each token in its sequence, int64 [B or 1, T]; padding has some position below those of its
    sequence.
    """
    import torch

    # Positions of a model may start at another number than 0 (RoBERTa); a mask tells them apart from padding
    if mask is not None and mask.shape[-1] == past + length:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    if isinstance(given, torch.Tensor) and given.ndim == 2:
        return given
    return torch.arange(past, past + length)[None]

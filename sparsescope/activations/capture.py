"""Activations of a running model, batch by batch, in bounded memory.

``capture`` gives an ``ActivationSource``: iterating it runs the model over the corpus once and yields one
``ActivationBatch`` per forward pass. Padding never gets out: values are the rows of real tokens only.
Hooks are removed when the iteration ends, however it ends, and the model computes exactly what it
computes without them.
Shapes: values [token, width]; at expert sites only the tokens routed there, with ``rows`` saying which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from sparsescope.core.shown import Shown
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.formats.wrapping import check_step, float32_step
from sparsescope.models.structure.sites import attach
from sparsescope.models.torch_environment import dtype_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.corpus import Corpus
    from sparsescope.activations.text.tokenized import PaddingSide, TokenBatch, TokenizedCorpus
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

BATCH_TOKENS = 2048


@dataclass(slots=True)
class ActivationBatch:
    """Activations of some windows of one document.

    Attributes:
        index: Number of the batch in its stream.
        document: Number of the document in the whole corpus.
        domain: Index of its domain.
        token_ids: int64 [token].
        positions: int32 [token], position in the window; 0 is the first token of a window.
        values: For each site, [token, width], or [routed, width] at an expert site. They are the batch's own,
            unless the source was told to use its memory again (``reuse``).
        rows: For each expert site, int64 [routed] indices into ``token_ids``; dense sites are not listed.
    """

    index: int
    document: int
    domain: int
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int32]
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, NDArray[np.int64]] = field(default_factory=dict)


class ActivationSource(Protocol):
    """Stream of activation batches: live (runs the model) or stored. The same batches come every time.

    Attributes:
        sites: The sites, in the order of the model.
        n_batches: Batches of one iteration; batch number n has index n.
        n_tokens: Tokens of one iteration.
    """

    sites: tuple[Site, ...]
    n_batches: int
    n_tokens: int

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a state that was stored in the middle of one source to
        go on with another.
        """

    def batches(self, start: int = 0) -> Iterator[ActivationBatch]:
        """Yield the batches from number ``start`` on, without the work of those before."""

    def __iter__(self) -> Iterator[ActivationBatch]:
        """All batches."""


class LiveSource(Shown):
    """Runs the model and yields what the sites see. Made by ``capture``.

    Attributes:
        sites: The sites, in the order of the model.
        n_batches: Forward passes of one iteration.
        n_tokens: Tokens of one iteration: those of the text, and the first special token of each window.
    """

    def __init__(
        self,
        subject: Subject,
        corpus: TokenizedCorpus,
        sites: tuple[Site, ...],
        *,
        batch_tokens: int = BATCH_TOKENS,
        padding_side: PaddingSide = "right",
        dtype: torch.dtype | None = None,
        reuse: bool = False,
    ) -> None:
        self.subject, self.corpus, self.sites = subject, corpus, sites
        self.batch_tokens, self.dtype, self.reuse = batch_tokens, dtype, reuse
        self.padding_side = padding_for(subject, corpus, batch_tokens, padding_side)
        self.n_batches = corpus.n_batches(batch_tokens, self.padding_side)
        self.n_tokens = corpus.n_kept
        self._buffers: dict[str, torch.Tensor] = {}
        self._last_layer = max((site.layer for site in sites), default=subject.n_layers - 1)

    def _shown(self) -> dict[str, object]:
        return {
            "subject": self.subject.id,
            "corpus": self.corpus.name,
            "sites": len(self.sites),
            "tokens": self.n_tokens,
            "batches": self.n_batches,
        }

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides which rows are in which batch; the model is named by the run that
        the state belongs to.
        """
        found: dict[str, Any] = {
            "batch_tokens": self.batch_tokens,
            "padding_side": self.padding_side,
            "corpus": self.corpus.digest,
        }
        if self.dtype is None or self.dtype == self.subject.torch_dtype:
            return found
        return {**found, "dtype": dtype_name(self.dtype)}

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[ActivationBatch]:
        """Yield batches from number ``start`` on; skipped batches cost no forward pass."""
        for tokens in self.corpus.batches(self.batch_tokens, self.padding_side):
            if tokens.index >= start:
                yield self._run(tokens)

    def _run(self, tokens: TokenBatch) -> ActivationBatch:
        """One forward pass with hooks, up to the last block that a site is in."""
        position = tokens.position
        # The first position of a window is kept even where it is BOS: it is a stratum of its own.
        kept = tokens.kept_mask
        flat = np.flatnonzero(kept)
        # Where a token ended up among the kept ones, -1 where it is padding.
        place = np.full(kept.size, -1, np.int64)
        place[flat] = np.arange(len(flat))
        batch = ActivationBatch(
            index=tokens.index,
            document=int(tokens.document[0]),
            domain=int(tokens.domain[0]),
            token_ids=tokens.input_ids.reshape(-1)[flat],
            positions=position.reshape(-1)[flat],
        )
        chosen = None if len(flat) == kept.size else torch.from_numpy(flat).to(self.subject.device)

        def keep(site: Site, tensor: torch.Tensor, rows: torch.Tensor | None) -> None:
            if rows is None:
                values = tensor.reshape(-1, tensor.shape[-1])
                values = self._copy(site, values, chosen)
            else:
                where = place[rows.cpu().numpy()]
                real = np.flatnonzero(where >= 0)
                batch.rows[site.name] = where[real]
                chosen_rows = None if len(real) == len(where) else torch.from_numpy(real).to(tensor.device)
                values = self._copy(site, tensor, chosen_rows)
            _refuse_non_finite(values, site, batch, self.subject)
            batch.values[site.name] = values

        with torch.inference_mode(), attach(self.subject.model, self.sites, keep):
            self.subject.forward_through(
                self._last_layer,
                torch.from_numpy(tokens.input_ids).to(self.subject.device),
                None
                if tokens.attention_mask.all()
                else torch.from_numpy(tokens.attention_mask).to(self.subject.device),
            )
        for site in self.sites:
            # An expert that no token of this batch was routed to; other sites are seen, or refused
            if site.kind == "experts" and site.name not in batch.values:
                dtype = self.dtype or self.subject.torch_dtype
                batch.values[site.name] = torch.empty(
                    (0, site.width), dtype=dtype, device=self.subject.device
                )
                batch.rows[site.name] = np.empty(0, np.int64)
        return batch

    def _copy(self, site: Site, values: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
        """Copy the chosen rows: where memory is used again, into the buffer of the site, which is allocated
        once and grows when it must.
        """
        rows = len(values) if chosen is None else len(chosen)
        if not self.reuse:
            dtype = self.dtype or values.dtype
            return values.to(dtype, copy=True) if chosen is None else values[chosen].to(dtype)
        buffer = self._buffers.get(site.name)
        if buffer is None or len(buffer) < rows:
            # Dense sites see up to batch_tokens rows; allocating that at once avoids growing step by step.
            size = max(
                rows, min(self.batch_tokens, 2 * rows) if site.kind == "experts" else self.batch_tokens
            )
            buffer = torch.empty((size, site.width), dtype=self.dtype or values.dtype, device=values.device)
            self._buffers[site.name] = buffer
        target = buffer[:rows]
        if chosen is None:
            target.copy_(values)
        elif target.dtype == values.dtype:
            torch.index_select(values, 0, chosen, out=target)
        else:
            target.copy_(values[chosen])
        return target


@contextmanager
def capture(
    subject: Subject,
    corpus: Corpus | TokenizedCorpus,
    sites: str | Sequence[str],
    *,
    batch_tokens: int = BATCH_TOKENS,
    padding_side: PaddingSide = "right",
    dtype: str | None = None,
    reuse: bool = False,
) -> Iterator[LiveSource]:
    """Read activations of a model on a corpus.

    Args:
        subject: The model.
        corpus: What it reads.
        sites: Site names or patterns, for example ``"blocks.*.mlp.hook_post"``.
        batch_tokens: Most positions in one forward pass.
        padding_side: ``"right"`` or ``"left"``; it changes nothing but the padding. Where padding would
            change what the model computes, windows of different lengths do not share a pass.
        dtype: Type of the copies (``"float32"``, ``"bfloat16"``, ``"float16"``); the model's own when None.
        reuse: Use the memory of one batch again for the next, which saves time where each batch is done with
            before the next one comes.

    Yields:
        The source. Its buffers are freed when the block ends.

    Raises:
        SubjectError: If a pattern matches no site, windows are longer than the model was made for, or (while
            iterating) if an activation is NaN or infinite.

    Example:
        >>> with ss.capture(subject, corpus, sites="blocks.*.mlp.hook_post") as source:
        ...     for batch in source:
        ...         print(batch.values["blocks.0.mlp.hook_post"].shape)
    """
    text = tokenized(corpus, subject)
    check_context(subject, text)
    source = LiveSource(
        subject,
        text,
        subject.sites(sites),
        batch_tokens=batch_tokens,
        padding_side=padding_side,
        dtype=None if dtype is None else torch_dtype(dtype),
        reuse=reuse,
    )
    try:
        yield source
    finally:
        source._buffers.clear()


def tokenized(corpus: Corpus | TokenizedCorpus, subject: Subject) -> TokenizedCorpus:
    """Return the corpus as the subject's tokenizer sees it, in windows that the model takes unless a
    context was given. What the subject writes itself (``generated``) is written here.

    Raises:
        SpecError: If either is something else, for example a name that has not been loaded.
        SubjectError: See ``Corpus.tokenize`` and ``GeneratedCorpus.read_by``.
    """
    from sparsescope.activations.corpus import Corpus
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject

    if not isinstance(subject, Subject):
        step = "ss.load(name), or ss.wrap(model, tokenizer) for a model in memory"
        raise SpecError(
            "this is not a subject",
            where="subject",
            allowed="a Subject",
            got=repr(subject)[:80],
            next_step=step,
        )
    if isinstance(corpus, TokenizedCorpus):
        return corpus
    if not isinstance(corpus, Corpus):
        step = "ss.corpus(name, file or list of texts)"
        raise SpecError(
            "this is not a corpus", where="corpus", allowed="a Corpus", got=repr(corpus)[:80], next_step=step
        )
    return corpus.read_by(subject)


def check_context(subject: Subject, text: TokenizedCorpus) -> None:
    """Refuse windows that are longer than the model was made for: rotary models would
    answer, with nonsense.

    Raises:
        SubjectError: A window is longer than ``subject.max_positions``.
    """
    limit, full = subject.max_positions, text.context
    longest = max(min(len(d) + full - text.window_of(d), full) for d in text.documents)
    if limit is not None and longest > limit:
        raise SubjectError(
            "the windows are longer than the model was made for",
            where=f"context of corpus {text.name}",
            allowed=f"at most {limit} tokens for {subject.id}",
            got=text.context,
            next_step=f"ss.corpus(..., context={limit}), or --context {limit}",
        )


def padding_for(
    subject: Subject, corpus: TokenizedCorpus, batch_tokens: int, side: PaddingSide = "right"
) -> PaddingSide | None:
    """Return the side to pad on: the one that is asked for, or None (no padding) where it would change what
    the model computes for real tokens. That is measured only where a batch has padding.
    """
    return side if not corpus.pads(batch_tokens) or subject.takes_padding(side) else None


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch type of a name.

    Raises:
        SpecError: If it is not one that activations are stored in.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise SpecError("unknown activation dtype", where="dtype", allowed=known, got=repr(name))
    return known[name]


def _refuse_non_finite(values: torch.Tensor, site: Site, batch: ActivationBatch, subject: Subject) -> None:
    """Fail fast on NaN and infinity: every statistic after them would be silently wrong."""
    # A sum is one quick pass and is never finite when an entry is not; an overflow is looked at more closely.
    if values.numel() == 0 or bool(torch.isfinite(values.sum(dtype=torch.float32))):
        return
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad) == 0:
        return
    row, unit = (int(index) for index in bad[0])
    raise SubjectError(
        "an activation is not finite",
        where=f"{site.name}, batch {batch.index}, document {batch.document}",
        allowed="finite values",
        got=f"{len(bad)} of {values.numel()} entries; the first is {float(values[row, unit])} at "
        f"token {row}, unit {unit}",
        next_step=f"{float32_step(subject)}; check the weights with: {check_step(subject)}",
    )

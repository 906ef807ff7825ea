"""Losses of a model whose activations are changed, with what was kept where units are switched off,
and what passes cost.

Each pass runs the model over the same held-out documents with another rule, so every difference is paired by
token. A rule is applied to every position; the kept share leaves out the first position of a window, as all
statistics do. A pass without a rule is the reference of the others: where the sites are hidden layers of
experts, whose edits compute the mixture once more, it takes that recomputation too, so that the edit alone
makes the difference.

Shapes: D documents with targets, L sites; sums are [D] or [D, L].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.activations.losses import BATCH_TOKENS, token_losses
from sparsescope.errors import SpecError, SubjectError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus
    from sparsescope.models.structure.sites import Site

    #: Gives the mask, bool and shaped like the tensor ([batch, pos, width], or [routed, width] at an expert
    #: site), of the units that stay on.
    Keep = Callable[[Site, torch.Tensor], torch.Tensor]
    #: Gives what goes on in place of the tensor, of its shape and dtype.
    Change = Callable[[Site, torch.Tensor], torch.Tensor]
    ReplaceIds = Callable[[TokenBatch], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class EditedPass:
    """What one pass found.

    Attributes:
        nll: float64 [target], loss in nats.
        correct: bool [target], whether the most probable token is the target.
        confidence: float32 [target], the largest probability.
        kept: float64 [D, L], units kept, summed over the positions after the first of each window (at expert
            sites those routed there); None where the pass switched no units off.
        width: int64 [D, L], units there, summed the same way; kept / width is the density.
    """

    nll: NDArray[np.float64]
    correct: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    kept: NDArray[np.float64] | None = None
    width: NDArray[np.int64] | None = None

    def density(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Kept share of each site, [L]; with ``weights`` [B, D] of resampled documents, [B, L].

        Raises:
            SpecError: The pass switched no units off.
        """
        kept, width = self.counts
        if weights is None:
            return kept.sum(0) / np.maximum(width.sum(0), 1)
        return (weights @ kept) / np.maximum(weights @ width.astype(np.float64), 1)

    @property
    def counts(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """``kept`` and ``width``, [D, L] each.

        Raises:
            SpecError: The pass switched no units off.
        """
        if self.kept is None or self.width is None:
            raise SpecError(
                "only a pass that keeps some units has a density",
                where="EditedPass.density",
                allowed="passes run with keep=",
                next_step="run(name, keep=...)",
            )
        return self.kept, self.width

    def joined(self, groups: Sequence[int]) -> EditedPass:
        """The same pass with the units of some sites taken together, for example of the experts of a layer.

        Args:
            groups: The group of each site, [L]; in the result groups stand in the place of sites, in order.

        Raises:
            SpecError: The pass switched no units off.
        """
        kept, width = self.counts
        member = np.asarray(groups)[:, None] == np.unique(groups)
        return replace(self, kept=kept @ member.astype(np.float64), width=width @ member.astype(np.int64))


class EditedPasses:
    """Runs passes over one text and counts them.

    Args:
        context: Of the run; its steps keep finished passes.
        corpus: The held-out documents.
        sites: Where activations are changed; of any kind that ``models.structure.edits`` replaces.
        planned: How many passes there will be, as far as is known; for the progress bar.

    Attributes:
        documents: int32 [D], numbers of the documents that have targets.
        where: int64 [target], index of the document of each target in ``documents``.
        domains: int16 [D].
        passes: How many passes ran.
        seconds: How long they took together.

    Raises:
        SubjectError: No document has a target.
    """

    def __init__(
        self, context: Context, corpus: TokenizedCorpus, sites: Sequence[Site], planned: int = 1
    ) -> None:
        self.context, self.corpus, self.sites, self.planned = context, corpus, tuple(sites), planned
        self.passes, self.seconds = 0, 0.0
        scored = [document for document in corpus.documents if len(document) + len(corpus.prefix) >= 2]
        if not scored:
            raise SubjectError(
                "no token of the text is predicted from another one, so there is no loss to compare",
                where=f"corpus {corpus.name}",
                allowed="a held-out document of at least 2 tokens, special tokens before it included",
                got=f"{len(corpus.documents)} held-out documents of 1 token",
                next_step="read longer documents",
            )
        self.documents = np.array(sorted(document.index for document in scored), np.int32)
        self.where = np.empty(0, np.int64)
        by_index = {document.index: corpus.domains.index(document.domain) for document in scored}
        self.domains = np.array([by_index[index] for index in self.documents.tolist()], np.int16)

    def run(
        self,
        name: str,
        keep: Keep | None = None,
        replace_ids: ReplaceIds | None = None,
        *,
        replace: Change | None = None,
    ) -> EditedPass:
        """Run one pass, or read it back if this run did it before it was interrupted.

        Args:
            name: File name of the step, unique within the run.
            keep: The units that stay on; the others are set to zero, and those that stay are counted.
            replace_ids: Other token ids to read; see ``token_losses``.
            replace: Any other change of the activations, in place of ``keep``. Without either the
                model stays as it is.

        Raises:
            SpecError: Both ``keep`` and ``replace`` are given.
        """
        if keep is not None and replace is not None:
            raise SpecError(
                "a pass follows one rule",
                where=f"EditedPasses.run({name!r})",
                allowed="keep or replace",
                got="both",
                next_step="put the mask into the function that replaces",
            )
        begin = time.perf_counter()
        arrays = self.context.step(name, lambda: self._run(keep, replace, replace_ids))
        self.passes += 1
        self._say(0)
        self.seconds += time.perf_counter() - begin
        self.where = np.searchsorted(self.documents, arrays["document"])
        counted = {} if keep is None else {"kept": arrays["kept"], "width": arrays["width"]}
        return EditedPass(arrays["nll"], arrays["correct"], arrays["confidence"], **counted)

    def _say(self, tokens: int) -> None:
        """Tell the progress bar how far the passes are, this one by ``tokens``."""
        every = self.corpus.n_tokens
        total = max(self.planned, self.passes) * every
        self.context.progress("masked passes", self.passes * every + tokens, total, "tokens")

    def _run(
        self, keep: Keep | None, replace: Change | None, replace_ids: ReplaceIds | None
    ) -> dict[str, np.ndarray]:
        counts = _Counts(self.documents, self.sites)
        done = 0

        def read(batch: TokenBatch) -> NDArray[np.int64]:
            nonlocal done
            self._say(done)
            done += batch.n_tokens
            return batch.input_ids if replace_ids is None else replace_ids(batch)

        def apply(
            site: Site, tensor: torch.Tensor, rows: torch.Tensor | None, batch: TokenBatch
        ) -> torch.Tensor:
            if keep is not None:
                mask = keep(site, tensor)
                counts.add(site, mask, rows, batch)
                return tensor * mask
            return tensor if replace is None else replace(site, tensor)

        unedited = keep is None and replace is None
        sites = [site for site in self.sites if site.kind == "experts"] if unedited else self.sites
        losses = token_losses(
            self.context.subject,
            self.corpus,
            batch_tokens=BATCH_TOKENS,
            sites=sites,
            replace=apply if sites else None,
            replace_ids=read,
        )
        arrays: dict[str, np.ndarray] = {
            name: getattr(losses, name) for name in ("document", "nll", "correct", "confidence")
        }
        return arrays if keep is None else arrays | {"kept": counts.kept, "width": counts.width}

    def by_document(self, values: NDArray[np.floating] | NDArray[np.bool_]) -> NDArray[np.float64]:
        """Sum of a quantity [target] over the targets of each document, [D]."""
        sums = np.bincount(self.where, weights=values.astype(np.float64), minlength=len(self.documents))
        return sums.astype(np.float64)

    @property
    def targets(self) -> NDArray[np.int64]:
        """Targets of each document, [D]."""
        return np.bincount(self.where, minlength=len(self.documents))


class _Counts:
    """Units kept and units there, by document and site."""

    def __init__(self, documents: NDArray[np.int32], sites: Sequence[Site]) -> None:
        self.documents = documents
        self.column = {site.name: index for index, site in enumerate(sites)}
        self.kept = np.zeros((len(documents), len(sites)))
        self.width = np.zeros((len(documents), len(sites)), np.int64)

    def add(self, site: Site, mask: torch.Tensor, rows: torch.Tensor | None, batch: TokenBatch) -> None:
        """Count a mask [batch, pos, width], or [routed, width] with ``rows`` [routed] of batch * pos."""
        counted = torch.from_numpy(batch.text_mask & (batch.position > 0)).to(mask.device)
        if rows is not None:
            counted = counted.reshape(-1)[rows]
        place = int(np.searchsorted(self.documents, batch.document[0])), self.column[site.name]
        self.kept[place] += int((mask.sum(-1) * counted).sum())
        self.width[place] += int(counted.sum()) * site.width


def held_out(corpus: TokenizedCorpus, tokens: int, first: int = 0) -> tuple[TokenizedCorpus, TokenizedCorpus]:
    """Take whole documents for two purposes: some for calibration, then others that are held out.

    Documents are taken in stream order, which interleaves the domains; the calibration part gets at least one
    document of each domain where there are enough.

    Args:
        corpus: The text.
        tokens: Held-out tokens wanted; the last document may exceed it.
        first: Calibration tokens wanted; 0 gives all of the documents to the held-out part.

    Returns:
        Calibration part and held-out part. With ``first`` = 0 both are the held-out part.

    Raises:
        SubjectError: If there are not enough documents for two parts.
    """
    calibration: dict[int, str] = {}
    rest: list[int] = []
    taken = {"calibration": 0, "rest": 0}
    present = {document.domain for document in corpus.documents}
    for document in corpus.documents:
        lacking = taken["calibration"] < first or (
            first and document.domain in present - set(calibration.values())
        )
        if lacking and len(calibration) < len(corpus.documents) - 1:
            calibration[document.index] = document.domain
            taken["calibration"] += len(document)
        elif taken["rest"] < tokens:
            rest.append(document.index)
            taken["rest"] += len(document)
    if not rest or (first and not calibration):
        raise SubjectError(
            "thresholds are chosen on some documents and judged on others, and there are too few documents",
            where=f"corpus {corpus.name}",
            allowed="at least 2 documents",
            got=len(corpus.documents),
            next_step="read more text: a larger token budget, or a corpus of several documents",
        )
    chosen = corpus.select(rest)
    return (corpus.select(calibration) if first else chosen), chosen

"""Dose-response: how much the loss rises when rows of attention keep only some keys.

The model runs as it is, but for the weights: kept ones are scaled so that a row sums to what it did. All
layers and heads at once; nothing is fitted, so no text is needed beside the one that is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.activations.losses import token_losses
from sparsescope.analysis.attention_sparsity.rows import contiguous_keys
from sparsescope.kernels import attention_rows as kernels
from sparsescope.models.attention import AttentionRows, attention_rows

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.attention_sparsity import AttentionSparsityParams
    from sparsescope.models.subject import Subject

SHORTEST = 16


@dataclass(frozen=True, slots=True)
class Dose:
    """One level of one rule.

    Attributes:
        rule: ``top-p``, ``local`` or ``random``.
        setting: Share or width.
        kept: Query-key pairs that were kept, all layers and heads.
        pairs: Pairs that may attend.
        rises: float64 [document], sum over tokens of the rise of the loss, in nats.
    """

    rule: str
    setting: float
    kept: int
    pairs: int
    rises: np.ndarray

    @property
    def sparsity(self) -> float:
        """1 - kept / pairs."""
        return 1 - self.kept / self.pairs


@dataclass(frozen=True, slots=True)
class Response:
    """All levels of all rules.

    Attributes:
        doses: The levels.
        tokens: int64 [document], tokens whose loss was measured.
        strata: Domain of each document.
        loss: Mean loss of the unchanged model, nats.
    """

    doses: tuple[Dose, ...]
    tokens: np.ndarray
    strata: np.ndarray
    loss: float


class _Keeper:
    """Changes the weights by a rule and counts pairs."""

    def __init__(self, rule: str, setting: float, seed: int) -> None:
        self.rule, self.setting, self.seed = rule, setting, seed
        self.kept = self.pairs = 0
        self.windows = 0

    def visit(self, rows: AttentionRows) -> torch.Tensor:
        """Return the weights that are left."""
        low, high = contiguous_keys(rows)
        # ``token_losses`` first tries the output head on a few tokens: these are not counted, and
        # draw alike each time.
        counted = rows.length >= SHORTEST
        self.windows += counted and rows.layer == 0 and rows.start == 0
        state = np.random.SeedSequence([self.seed, self.windows if counted else 0, rows.layer, rows.start])
        changed = []
        for weights in rows.weights.contiguous().cpu().numpy():
            if self.rule == "local":
                new, kept = kernels.keep_local(
                    weights, low, high, rows.start, rows.first_key, int(self.setting)
                )
            else:
                seed = int(state.generate_state(1)[0]) if self.rule == "random" else None
                new, kept = kernels.keep_top(weights, low, high, self.setting, seed)
            if counted:
                self.kept += kept
                self.pairs += weights.shape[0] * int((high - low).sum())
            changed.append(torch.from_numpy(new))
        return torch.stack(changed).to(rows.weights.device)


def losses_with_fewer_keys(
    context: Context, corpus: TokenizedCorpus, params: AttentionSparsityParams
) -> Response:
    """Measure the loss of the unchanged model and at every level, on the same tokens.

    Args:
        context: A causal model with its output head; progress and steps of the run.
        corpus: The windows, each of at least ``SHORTEST`` positions.
        params: Parameters of the analysis.
    """
    levels = [("top-p", share) for share in params.dose_shares]
    levels += [("local", float(width)) for width in params.dose_widths if width < corpus.context]
    levels += [("random", share) for share in params.dose_random]
    passes = len(levels) + 1
    context.progress("losses", 0, passes, "passes")
    plain = context.step("loss", lambda: _plain(context.subject, corpus, params))
    context.progress("losses", 1, passes, "passes")
    numbers, where = np.unique(plain["document"], return_inverse=True)
    tokens = np.bincount(where)
    strata = np.array([plain["domain"][where == number][0] for number in range(len(numbers))])
    doses = []
    for index, (rule, setting) in enumerate(levels):
        found = context.step(f"dose-{index}", partial(_dosed, context.subject, corpus, params, rule, setting))
        rises = np.bincount(where, weights=found["nll"] - plain["nll"])
        kept, pairs = (int(n) for n in found["pairs"])
        doses.append(Dose(rule, setting, kept, pairs, rises))
        context.progress("losses", index + 2, passes, "passes")
    return Response(tuple(doses), tokens, strata, float(plain["nll"].mean()))


def _plain(
    subject: Subject, corpus: TokenizedCorpus, params: AttentionSparsityParams
) -> dict[str, np.ndarray]:
    """Losses of the unchanged model; one window per pass, like the changed ones, so that only
    the weights differ.
    """
    with attention_rows(subject, lambda rows: None, chunk_rows=params.chunk):
        found = token_losses(subject, corpus, batch_tokens=1)
    return {"nll": found.nll, "document": found.document, "domain": found.domain}


def _dosed(
    subject: Subject, corpus: TokenizedCorpus, params: AttentionSparsityParams, rule: str, setting: float
) -> dict[str, np.ndarray]:
    keeper = _Keeper(rule, setting, params.seed)
    with attention_rows(subject, keeper.visit, chunk_rows=params.chunk):
        found = token_losses(subject, corpus, batch_tokens=1)
    return {"nll": found.nll, "pairs": np.array([keeper.kept, keeper.pairs])}

"""``sparsify``: a model that reads only a part of its weights for every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsescope.activations.capture import tokenized
from sparsescope.errors import SpecError
from sparsescope.inference.accounting import inventory
from sparsescope.inference.calibration import Calibration, adapter_weights, calibrate
from sparsescope.inference.calibrator import Calibrator, check_target
from sparsescope.inference.mask_accounting import account_masks, mask_facts
from sparsescope.inference.methods import read_method
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.inference.statistics import Tell, quiet

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus
    from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument
    from sparsescope.metrics.matrix_costs import TokenAccount
    from sparsescope.models.subject import Subject


def sparsify(
    subject: Subject,
    method: str = "auto",
    target: float = 0.5,
    corpus: Corpus | TokenizedCorpus | None = None,
    prefix: str | PrefixPolicy | None = None,
    *,
    scope: str = "blocks",
    sinks: str = "sparse",
    calibration: Calibration | None = None,
    progress: Tell = quiet,
) -> Subject:
    """Return a sparse model; the given subject is untouched, and the weights are shared.

    Args:
        subject: The model.
        method: ``teal``, ``wina``, ``wina_released``, ``was``, ``rsparse``, ``cats``, ``top_p``, ``cett``,
            ``auto``, or one with an allocation: ``teal+greedy``, ``was+blocks``, ``wina+rotated``.
        target: Share of the block-matrix bytes that a token does not read, from 0 on and below 1.
        corpus: Calibration text; a fifth of its documents is kept for choices of ``auto`` and ``was+blocks``.
        prefix: ``all_sparse``, ``dense_first_n:N``, ``dense_fraction:F`` or ``decode_only``; when None that
            of the calibration, or ``all_sparse``.
        scope: ``"blocks"``, ``"mlp"`` or ``"attention"``.
        sinks: ``"sparse"``, or ``"dense"``: tokens with far larger inputs than usual keep all of them.
        calibration: What was found before, in place of method, target and corpus.
        progress: Told ``(phase, done, total)``.

    Returns:
        The sparse model, a variant ``sparsified`` of the given one. Its identity covers method, thresholds,
        biases and prefix policy.

    Raises:
        SpecError: An argument is not valid, a text is missing, or the method cannot reach the target.
        SubjectError: The subject is not fit for the method, or the calibration is of another model.

    Example:
        >>> from sparsescope.models.sources import load
        >>> from sparsescope.activations.corpus import corpus
        >>> dense = load("random-llama")
        >>> sparse = sparsify(dense, "teal", 0.5, corpus("python-docs", tokens=2048))
        >>> sparse.variant.kind, sparse.variant.parameters["method"]
        ('sparsified', 'teal')
    """
    policy = PrefixPolicy.of("all_sparse" if prefix is None else prefix)
    if calibration is not None:
        return calibration.apply(subject, None if prefix is None else policy)
    read_method(method)
    check_target(target)
    if corpus is None:
        raise SpecError(
            "thresholds are quantiles of what a model reads, so a calibration text is needed",
            where="sparsify(corpus)",
            allowed="a Corpus",
            next_step='for example ss.corpus("python-docs+python-source", tokens=8192)',
        )
    text = tokenized(corpus, subject)
    fit, development = split(text)
    bench = Calibrator(subject, fit, development, scope, progress)
    return calibrate(bench, method, target, policy, sinks).apply(subject)


def account_of(bench: Calibrator, calibration: Calibration) -> TokenAccount:
    """What a decoded token reads, as on the calibration text."""
    facts = [mask_facts(bench, mask) for mask in calibration.masks]
    adapters = adapter_weights(calibration.masks)
    return account_masks(inventory(bench.subject), facts, calibration.facts["dropped"], adapters)


def find_calibration(name: str) -> Calibration:
    """Open a calibration that was kept.

    Args:
        name: ``calibration-<12 hex>`` in the folder of runs, or a folder.

    Raises:
        ArtifactError: There is none, or it is damaged.
    """
    from sparsescope.core.artifact_store import ArtifactStore
    from sparsescope.core.files import given_path
    from sparsescope.core.run_store import home

    path = given_path(name, "calibration")
    return Calibration.load(path if path.is_dir() else ArtifactStore(home()).open(name))


def split(text: TokenizedCorpus, share: float = 0.2) -> tuple[TokenizedCorpus, TokenizedCorpus | None]:
    """Part a text into calibration and development documents: every fifth document is for development.

    Args:
        text: All documents.
        share: Of the documents that is for development.

    Returns:
        Both; None for the second where there are too few documents.
    """
    every = max(2, round(1 / share))
    if len(text.documents) < every:
        return text, None
    chosen = [document.index for n, document in enumerate(text.documents) if n % every == every - 1]
    rest = [document.index for n, document in enumerate(text.documents) if n % every != every - 1]
    return text.select(rest), text.select(chosen)


def beginnings(
    documents: Sequence[TokenizedDocument], tokens: int, most: int
) -> tuple[list[TokenizedDocument], int]:
    """Take the first ``most`` tokens of documents until there are enough; returns them and how many documents
    that took.
    """
    from dataclasses import replace

    taken = 0
    chosen: list[TokenizedDocument] = []
    for number, document in enumerate(documents):
        if taken >= tokens:
            return chosen, number
        ids = document.ids[:most]
        chosen.append(replace(document, ids=ids, whole=document.whole and len(document) <= most))
        taken += len(ids)
    return chosen, len(documents)

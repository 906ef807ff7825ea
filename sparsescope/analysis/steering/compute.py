"""Steering, computed: directions of training documents, strengths on neutral text, lifts of others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.losses import Reference, TokenLosses, token_losses
from sparsescope.analysis.steering import SteeringParams
from sparsescope.analysis.steering.calibrate import REACHED, Calibration
from sparsescope.analysis.steering.directions import Direction, directions_of, document_means
from sparsescope.analysis.steering.report import add_tables
from sparsescope.core.result import Result
from sparsescope.dictionaries.documents import of_documents
from sparsescope.dictionaries.places import Placed, place_given, site_named
from sparsescope.dictionaries.site_rows import FitRows, fit_rows
from sparsescope.dictionaries.small import keep_here, small_snmf, snmf_of, training_said
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.doctor import precision_note

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus, TokenizedDocument
    from sparsescope.models.structure.sites import Site

LEAST_DOCUMENTS = 4
"""Documents of a concept: two to choose on, two to judge on."""
START = 0.25  # strength, in median norms, at which the search begins


@dataclass(frozen=True, slots=True)
class Parts:
    """The text, divided.

    Attributes:
        train: bool [D], documents that directions are chosen on; the others judge them.
        concept: int64 [D], number of the concept of a document; -1 for none.
        names: Of the concepts.
    """

    train: NDArray[np.bool_]
    concept: NDArray[np.int64]
    names: list[str]


def compute(params: SteeringParams, context: Context) -> Result:
    """Run the analysis."""
    subject, corpus = context.subject, context.corpus
    out = Result("steering")
    given = place_given(context.inputs.get("dictionary", ()), subject, params.site)
    sites = {one.writes.name: one.writes for one in given}
    if len(sites) > 1 or any(one.reads.name != one.writes.name for one in given):
        raise SpecError(
            "directions are compared at one site",
            where="--dictionary",
            allowed="dictionaries of one site, no transcoders",
            got=", ".join(sites),
        )
    site = next(iter(sites.values())) if sites else site_named(subject, params.site)
    parts = _divide(params, corpus)
    if len(parts.names) < 2:
        out.note("warning", _too_few(corpus), place="concepts")
        return out
    training = corpus.select([d.index for d, kept in zip(corpus.documents, parts.train, strict=True) if kept])
    read = fit_rows(context, training, [site], params.seed)
    if not given:
        given = [_fitted(params, context, training, read, site)]
    found = document_means(context, corpus, site, read.facts, given)
    scored, neutral = _texts(params, corpus, parts)
    bench = _Bench(context, site, read.facts[site.name].median_norm, scored, neutral)
    random = np.random.default_rng([params.seed, 53])
    tries: list[dict[str, Any]] = []
    chosen: list[tuple[str, Direction]] = []
    total = len(parts.names) * (2 + len(given))
    for number, name in enumerate(parts.names):
        made = directions_of(parts.concept == number, parts.train, found, given, random)
        for place, direction in enumerate(made):
            context.progress("steer", number * len(made) + place, total)
            chosen.append((name, direction))
            steer = partial(bench.steer, params, direction, number)
            arrays = context.step(f"steer-{number:04d}-{place:02d}", steer)
            tries += _rows(name, direction, arrays["tries"])
    context.progress("steer", total, total)
    documents = int((~parts.train & (parts.concept >= 0)).sum())
    add_tables(out, params, tries, chosen, documents)
    _notes(out, params, context, parts, site, scored, neutral, len(context.inputs.get("dictionary", ())) == 0)
    return out


def _divide(params: SteeringParams, corpus: TokenizedCorpus) -> Parts:
    """Half of the documents of every concept to choose on, the others to judge on."""
    domain = np.array([corpus.domains.index(document.domain) for document in corpus.documents])
    sizes = np.bincount(domain, minlength=len(corpus.domains))
    order = [int(n) for n in np.argsort(-sizes, kind="stable") if sizes[n] >= LEAST_DOCUMENTS][
        : params.concepts
    ]
    random = np.random.default_rng([params.seed, 47])
    train = np.zeros(len(domain), bool)
    concept = np.full(len(domain), -1)
    for number, place in enumerate(sorted(order)):
        members = np.flatnonzero(domain == place)
        concept[members] = number
        train[random.permutation(members)[: len(members) // 2]] = True
    return Parts(train, concept, [corpus.domains[place] for place in sorted(order)])


def _too_few(corpus: TokenizedCorpus) -> str:
    """Why nothing is steered: a text of one kind says nothing of concepts, and is no fault of a report."""
    domain = [document.domain for document in corpus.documents]
    sizes = ", ".join(f"{name} {domain.count(name)}" for name in corpus.domains[:8])
    return (
        f"concepts are the domains of the text, and fewer than two have {LEAST_DOCUMENTS} documents "
        f"({sizes}): give a labelled text (--corpus wordnet-nouns, corpora joined by '+', a file of domains)"
    )


def _texts(params: SteeringParams, corpus: TokenizedCorpus, parts: Parts) -> tuple[_Scored, TokenizedCorpus]:
    """Documents that are scored, of the training and of the test half, and training documents of all concepts
    that strengths are set on.
    """
    random = np.random.default_rng([params.seed, 59])
    chosen: list[int] = []
    for half in (True, False):
        of_half = np.flatnonzero((parts.train == half) & (parts.concept >= 0))
        for number in range(len(parts.names)):
            most = max(1, params.own_documents // 2) if half else params.own_documents
            chosen += of_half[parts.concept[of_half] == number][:most].tolist()
    cut = [_cut(corpus.documents[place], params.document_tokens) for place in chosen]
    train = random.permutation(np.flatnonzero(parts.train))[: params.neutral_documents]
    neutral = [_cut(corpus.documents[place], params.document_tokens) for place in sorted(train.tolist())]
    scored = _Scored(
        corpus, cut, parts.concept[chosen], parts.train[chosen], params.other_documents, params.seed
    )
    return scored, of_documents(corpus, neutral)


def _cut(document: TokenizedDocument, most: int) -> TokenizedDocument:
    return replace(document, ids=document.ids[:most], whole=document.whole and len(document) <= most)


@dataclass(frozen=True, slots=True)
class _Scored:
    """Documents of both halves; of a concept its own, and some of the others."""

    corpus: TokenizedCorpus
    documents: list[TokenizedDocument]
    concept: NDArray[np.int64]
    train: NDArray[np.bool_]
    others: int
    seed: int

    def of(self, concept: int) -> tuple[TokenizedCorpus, dict[str, NDArray[np.int64]]]:
        """The text for a concept, and the numbers of its documents: its own and others, of both halves."""
        groups: dict[str, list[int]] = {}
        # Others of its own: what they have in common would be an error of all concepts at once
        order = np.random.default_rng([self.seed, 67, concept]).permutation(len(self.documents))
        for half, name in ((True, "train"), (False, "test")):
            rest = [int(place) for place in order if self.train[place] == half]
            groups[f"{name} own"] = [place for place in rest if self.concept[place] == concept]
            most = max(1, self.others // 2) if half else self.others
            groups[f"{name} others"] = [place for place in rest if self.concept[place] != concept][:most]
        places = sorted(place for group in groups.values() for place in group)
        numbers = {
            name: np.array([self.documents[place].index for place in group]) for name, group in groups.items()
        }
        return of_documents(self.corpus, [self.documents[place] for place in places]), numbers


class _Bench:
    """Runs the model with a direction added, on neutral and on scored text."""

    def __init__(
        self, context: Context, site: Site, norm: float, scored: _Scored, neutral: TokenizedCorpus
    ) -> None:
        self.subject, self.site, self.norm = context.subject, site, norm
        self.scored, self.neutral = scored, neutral
        self._reference: Reference | None = None
        self._base: dict[int, TokenLosses] = {}

    def steer(self, params: SteeringParams, direction: Direction, concept: int) -> dict[str, NDArray[Any]]:
        """All tries of a direction: [try, (sign, target, achieved, strength, reached, own, others, train own,
        train others)].
        """
        text, numbers = self.scored.of(concept)
        if concept not in self._base:
            self._base = {
                concept: token_losses(self.subject, text)
            }  # methods of a concept follow one another
        base = self._base[concept]
        groups = [
            np.isin(base.document, numbers[name])
            for name in ("test own", "test others", "train own", "train others")
        ]
        rows = []
        for sign in (1.0, -1.0):
            vector = torch.from_numpy(sign * self.norm * direction.vector).float().to(self.subject.device)
            calibration = Calibration(partial(self._divergence, vector), START)
            for target in params.targets:
                made = calibration.at(target)
                fall = base.nll - self._losses(text, made.strength * vector, len(base))
                rows.append(
                    [
                        sign,
                        target,
                        made.achieved,
                        made.strength,
                        float(made.status == REACHED),
                        *(fall[group].mean() for group in groups),
                    ]
                )
        return {"tries": np.array(rows)}

    def _losses(self, text: TokenizedCorpus, vector: torch.Tensor, targets: int) -> NDArray[np.float64]:
        """Loss of every target with a vector added; NaN where the model breaks down."""
        try:
            return token_losses(self.subject, text, sites=[self.site], replace=_adding(vector)).nll
        except SubjectError:
            return np.full(targets, np.nan)

    def _divergence(self, vector: torch.Tensor, strength: float) -> float:
        """Mean KL(model || steered model) of the next token on the neutral text."""
        if self._reference is None:
            self._reference = Reference()
            token_losses(self.subject, self.neutral, record=self._reference)
        try:
            found = token_losses(
                self.subject,
                self.neutral,
                sites=[self.site],
                replace=_adding(strength * vector),
                reference=self._reference,
            )
        except SubjectError:  # a loss that is not finite: far too strong
            return float("inf")
        assert found.kl is not None
        return float(found.kl.mean())


def _adding(vector: torch.Tensor) -> Any:
    """Adds a vector at every position of a window but the first, where attention sinks sit."""

    def added(site: Site, tensor: torch.Tensor, rows: torch.Tensor | None, batch: TokenBatch) -> torch.Tensor:
        later = torch.from_numpy(batch.position > 0).to(tensor.device)
        return tensor + (later[..., None] * vector).to(tensor.dtype)

    return added


def _fitted(
    params: SteeringParams, context: Context, corpus: TokenizedCorpus, read: FitRows, site: Site
) -> Placed:
    """The SNMF that is made where no dictionary is given."""
    arrays = context.step(
        "train-snmf",
        lambda: small_snmf(
            context,
            read.rows[site.name],
            site,
            params.components,
            params.neuron_share,
            params.iterations,
            params.seed,
        ),
    )
    made, training = snmf_of(arrays, site), training_said(arrays, corpus, site)
    keep_here(context, made, "SNMF", training, params.seed)
    return Placed("SNMF", made, site, site, training)


def _rows(concept: str, direction: Direction, tries: NDArray[np.float64]) -> list[dict[str, Any]]:
    return [
        {
            "concept": concept,
            "method": direction.method,
            "direction": direction.name,
            "sign": sign,
            "target": target,
            "achieved": achieved,
            "strength": strength,
            "status": REACHED if reached else "not reached",
            "lift": own - others,
            "own": own,
            "others": others,
            "train_lift": train_own - train_others,
        }
        for sign, target, achieved, strength, reached, own, others, train_own, train_others in tries.tolist()
    ]


def _notes(
    out: Result,
    params: SteeringParams,
    context: Context,
    parts: Parts,
    site: Site,
    scored: _Scored,
    neutral: TokenizedCorpus,
    made_here: bool,
) -> None:
    out.note(
        "info",
        f"directions are added at {site.name} to every position of a window but the first; strengths are "
        f"set on {neutral.n_tokens:,} tokens of {len(neutral.documents)} training documents of all concepts",
        place="tries",
    )
    out.note(
        "info",
        f"of each concept at most {params.own_documents} test documents are scored beside "
        f"{params.other_documents} of others, {params.document_tokens} tokens each at most; the try that is "
        "reported as chosen was chosen on half as many of the training half",
        place="methods",
    )
    if made_here:
        out.note(
            "info",
            "the SNMF was made here from the training documents; give dictionaries (--dictionary) to "
            "compare them",
            place="methods",
        )
    if len(parts.names) < 20:
        out.note(
            "warning",
            f"only {len(parts.names)} concepts: intervals over concepts say little below 20",
            place="methods",
        )
    out.note(
        "info", precision_note(context.subject.identity.origin_precision, context.subject.dtype), "precision"
    )

"""Corpora: text with document ids, domains, license and digest, cut to a token budget by a seed.

``corpus("python-docs+python-source", tokens=16384).tokenize(tokenizer)`` gives what a model reads. The budget
counts tokens of the text; special tokens (BOS, CLS) come on top: they are in the attention mask but not in
``text_mask``, because token statistics leave them out. Long documents are read from their beginning. The
selection depends on arguments, texts and tokenizer alone: it is equal in every process and on every platform.

``corpus("generated@prompt=32,new=64:python-docs")`` is a text that the subject writes itself
(``generated.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.activations.text.arguments import BosPolicy, check_arguments
from sparsescope.activations.text.digests import corpus_digest, stream_digest
from sparsescope.activations.text.documents import CorpusEntry, Document
from sparsescope.activations.text.duplicates import NearDuplicates
from sparsescope.activations.text.registered import registered_corpora
from sparsescope.activations.text.resolve import resolve
from sparsescope.activations.text.token_budget import (
    DomainFill,
    LeftOut,
    fill_evenly,
    interleave,
    seeded_order,
)
from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus, TokenizedDocument
from sparsescope.activations.text.vocabulary import encoder, padding_id, special_tokens, vocabulary_hash
from sparsescope.core.shown import Shown
from sparsescope.errors import SubjectError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sparsescope.models.subject import Subject

#: The corpora that a subject writes are corpora: their module stands on this one, and is named here.
_WRITTEN = "sparsescope.activations.generated"

__all__ = [
    "Corpus",
    "CorpusEntry",
    "Document",
    "TokenBatch",
    "TokenizedCorpus",
    "TokenizedDocument",
    "corpus",
    "registered_corpora",
]

# One document gives at most this part of its domain's share, so that a domain has at least 16 documents.
_DOCUMENTS_PER_SHARE = 16
_OWN_LICENSE = "not stated"
DEFAULT_CONTEXT = 256


@dataclass(frozen=True, slots=True, repr=False)
class Corpus(Shown):
    """Text to be read by a model. Made by ``corpus``.

    Args:
        name: Name for titles and tables.
        documents: Every document that may be drawn, in the order of the source; no blank text, ids unique.
        license: License of the text, all domains together.
        budget: Text tokens wanted; None for all.
        seed: Draws the order of documents.
        context: Longest window, special tokens included; None until a model says what
            it takes (``tokenize``).
        bos: ``"auto"``, ``"always"`` or ``"never"``.
        min_tokens: Documents with fewer tokens are left out.
        max_document_tokens: Most tokens of one document; None for the default rule.
        deduplicate: Whether near-duplicates are left out.
        licenses: License of each domain.
        notes: What a reader of results should know.

    Attributes:
        digest: SHA-256 of texts, ids, domains and every argument that changes the tokens; as long as the
            context is open, with the one that ``tokenize`` takes without a model.
    """

    name: str
    documents: tuple[Document, ...]
    license: str
    budget: int | None
    seed: int
    context: int | None
    bos: BosPolicy
    min_tokens: int
    max_document_tokens: int | None
    deduplicate: bool
    licenses: Mapping[str, str]
    notes: tuple[str, ...]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        context = self.context or DEFAULT_CONTEXT
        limits = (self.min_tokens, self.max_document_tokens, self.deduplicate)
        digest = corpus_digest(self.documents, (self.budget, self.seed, context, self.bos, *limits))
        object.__setattr__(self, "digest", digest)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, in the order of their first document."""
        return tuple(dict.fromkeys(document.domain for document in self.documents))

    def _shown(self) -> dict[str, object]:
        return {
            "name": self.name,
            "documents": len(self.documents),
            "domains": ", ".join(self.domains),
            "tokens": "all" if self.budget is None else self.budget,
            "context": self.context or "what the model takes",
            "seed": self.seed,
            "digest": self.digest[:12],
        }

    def describe(self) -> dict[str, Any]:
        """Return plain values for reports: what may be drawn.

        What was drawn is known once there is a tokenizer: ``TokenizedCorpus.describe``.
        """
        domains: dict[str, dict[str, Any]] = {}
        for domain, documents in self._by_domain().items():
            domains[domain] = {
                "available_documents": len(documents),
                "available_characters": sum(len(document.text) for document in documents),
                "license": self.licenses.get(domain, _OWN_LICENSE),
            }
        return {
            "name": self.name,
            "license": self.license,
            "domains": domains,
            "budget": self.budget,
            "context": self.context,
            "bos": self.bos,
            "seed": self.seed,
            "min_tokens": self.min_tokens,
            "max_document_tokens": self.max_document_tokens,
            "deduplicate": self.deduplicate,
            "notes": list(self.notes),
            "digest": self.digest,
        }

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase | None, max_positions: int | None = None
    ) -> TokenizedCorpus:
        """Draw documents and tokenize them until the budget is met.

        The budget is split evenly over domains; what one lacks goes to the others. The total is exactly
        ``min(budget, tokens there are)``. Text that looks like a special token (``"</s>"``) is text.

        Args:
            tokenizer: A Hugging Face tokenizer (``subject.tokenizer``); it is not changed.
            max_positions: What the model takes (``subject.max_positions``), None for no limit or no model. A
                context that was not given is this, 256 at most; everything that is hashed has that number, as
                if it had been given.

        Raises:
            SubjectError: If there is no tokenizer, the context has no room for text, or no document is left.
        """
        if tokenizer is None:
            raise SubjectError(
                "this model has no tokenizer, so it cannot read text",
                where="subject.tokenizer",
                next_step="give one: ss.wrap(model, tokenizer)",
            )
        if self.context is None:
            chosen = replace(self, context=min(DEFAULT_CONTEXT, max_positions or DEFAULT_CONTEXT))
            return chosen.tokenize(tokenizer)
        encode = encoder(tokenizer)
        prefix, suffix = special_tokens(tokenizer, self.bos)
        window = self.context - len(prefix) - len(suffix)
        if window < 1:
            raise SubjectError(
                "the context has no room for text beside the special tokens",
                where="context",
                allowed=f"at least {len(prefix) + len(suffix) + 1}",
                got=self.context,
                next_step="ask for a longer context, or bos='never'",
            )
        left_out = LeftOut()
        seen = NearDuplicates() if self.deduplicate and len(self.documents) > 1 else None
        fills = [
            DomainFill(
                seeded_order(documents, self.seed),
                encode,
                cap=self._cap(window),
                hard=self.max_document_tokens is not None,
                min_tokens=self.min_tokens,
                seen=seen,
                left_out=left_out,
            )
            for documents in self._by_domain().values()
        ]
        fill_evenly(fills, self.budget)
        documents = tuple(
            TokenizedDocument(
                index=n,
                id=taken.document.id,
                domain=taken.document.domain,
                ids=taken.ids[: taken.count],
                whole=taken.whole and taken.count == len(taken.ids),
            )
            for n, taken in enumerate(interleave(fills))
        )
        if not documents:
            raise SubjectError(
                "no document of the corpus is left",
                where=self.name,
                allowed=f"documents of at least {self.min_tokens} tokens",
                got=f"{len(left_out.too_short)} too short",
                next_step="lower min_tokens, or give longer texts",
            )
        vocabulary = vocabulary_hash(tokenizer)
        return TokenizedCorpus(
            name=self.name,
            documents=documents,
            domains=self.domains,
            context=self.context,
            prefix=prefix,
            suffix=suffix,
            pad_id=padding_id(tokenizer),
            tokenizer_hash=vocabulary,
            digest=stream_digest(self.digest, vocabulary, prefix, suffix, documents),
            provenance=self._provenance(documents, left_out),
        )

    def read_by(self, subject: Subject) -> TokenizedCorpus:
        """Return what a subject reads: ``tokenize`` with its tokenizer, in windows that it takes.

        Raises:
            SubjectError: See ``tokenize``.
        """
        return self.tokenize(subject.tokenizer, subject.max_positions)

    def makes(self, value: TokenizedCorpus, subject: Subject) -> bool:
        """Whether ``read_by`` gives that very token stream; for the command that makes a run again."""
        return self.read_by(subject).digest == value.digest

    def generated(self, prompt: int = 32, new: int = 64, temperature: float = 0.0, seed: int = 0) -> Corpus:
        """Return the text that a subject writes itself after beginnings of these documents.

        Args:
            prompt: Tokens of each prompt.
            new: Most tokens that are written after each; the budget counts both.
            temperature: 0 for the most probable token, else sampling.
            seed: Seed of sampling.

        Raises:
            SpecError: An argument is not valid.
        """
        written: Any = import_module(_WRITTEN)
        given = {"prompt": prompt, "new": new, "temperature": temperature, "seed": seed}
        made: Corpus = written.GeneratedCorpus.of(self, written.written_with(given))
        return made

    def _by_domain(self) -> dict[str, list[Document]]:
        """Return the documents of each domain, domains in the order of their first document."""
        groups: dict[str, list[Document]] = {}
        for document in self.documents:
            groups.setdefault(document.domain, []).append(document)
        return groups

    def _cap(self, window: int) -> int | None:
        """Return the most tokens taken from one document, None for all of them."""
        if self.max_document_tokens is not None or self.budget is None:
            return self.max_document_tokens
        share = self.budget // len(self.domains)
        return max(1, share // _DOCUMENTS_PER_SHARE // window) * window

    def _provenance(self, documents: tuple[TokenizedDocument, ...], left_out: LeftOut) -> dict[str, Any]:
        """Return what ``TokenizedCorpus.describe`` adds to its own counts."""
        notes = list(self.notes)
        total = sum(map(len, documents))
        if self.budget is not None and total < self.budget:
            notes.append(f"only {total} of the {self.budget} tokens asked for are there")
        if len(documents) == 1 and len(self.documents) > 1:
            notes.append("one document was drawn: intervals over documents cannot be given")
        return {
            **self.describe(),
            "notes": notes,
            "near_duplicates": len(left_out.near_duplicates),
            "near_duplicate_of": dict(left_out.near_duplicates),
            "too_short": len(left_out.too_short),
        }


def corpus(
    source: str | Path | Iterable[str | Document],
    tokens: int | None = 8192,
    seed: int = 0,
    context: int | None = None,
    bos: BosPolicy = "auto",
    min_tokens: int = 2,
    name: str | None = None,
    *,
    max_document_tokens: int | None = None,
    deduplicate: bool = True,
) -> Corpus:
    """Return a corpus of real text.

    Args:
        source: A registered name (``registered_corpora()``), several joined by ``+``, the path of a .txt,
            .jsonl or .parquet file (columns text, optional domain and id), or a list of texts. A string is a
            path if it has one of these suffixes or a path separator, and a name otherwise.
            ``generated@prompt=32,new=64,temperature=0.8,seed=1:NAME`` is what the subject itself writes after
            beginnings of documents of NAME, any of these but a list (``Corpus.generated`` takes those too).
        tokens: Text tokens wanted, split evenly over domains; None for all there are.
        seed: Draws the order of documents.
        context: Longest window in tokens, special tokens included; longer documents give several windows.
            None for what the model takes that will read them, 256 at most.
        bos: Special tokens of every window: ``"auto"`` those that the tokenizer itself adds, ``"always"`` at
            least a BOS (or CLS), ``"never"`` none.
        min_tokens: Documents with fewer tokens are left out.
        name: Name for titles and tables; by default the registered name, the file's stem or ``"texts"``.
        max_document_tokens: Most tokens taken from one document. By default a sixteenth of its domain's
            share, in whole windows and at least one, raised only where documents run out; no cap where
            ``tokens`` is None. A number given here is never raised.
        deduplicate: Leave out near-duplicates (Jaccard index of word 5-grams at least 0.8).

    Raises:
        SpecError: If an argument is not valid or the name is not registered.
        SubjectError: If the file cannot be read or there is no text in it.
        DependencyError: If a registered corpus is not available on this machine.
    """
    check_arguments(tokens, seed, context, bos, min_tokens, max_document_tokens)
    if isinstance(source, str):
        module: Any = import_module(_WRITTEN)
        written, source = module.read_name(source)
        if written is not None:
            prompts = corpus(
                source, tokens, seed, context, bos, min_tokens,
                max_document_tokens=max_document_tokens, deduplicate=deduplicate,
            )  # fmt: skip
            made: Corpus = module.GeneratedCorpus.of(prompts, written, name)
            return made
    found = resolve(source, name)
    notes = []
    if found.n_blank:
        notes.append(f"blank documents left out: {found.n_blank}")
    if len(found.documents) == 1:
        notes.append(
            "one document: intervals over documents cannot be given. Separate documents with form feeds"
            " or lines '<|endoftext|>' (.txt), or give one a line (.jsonl)"
        )
    return Corpus(
        name=found.name,
        documents=found.documents,
        license=", ".join(dict.fromkeys(found.licenses.values())) or _OWN_LICENSE,
        budget=tokens,
        seed=seed,
        context=context,
        bos=bos,
        min_tokens=min_tokens,
        max_document_tokens=max_document_tokens,
        deduplicate=deduplicate,
        licenses=found.licenses,
        notes=tuple(notes),
    )

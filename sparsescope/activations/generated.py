"""Text that a model writes itself: ``generated@prompt=32,new=64:python-docs``.

The beginnings of documents of another corpus are prompts, and the subject that reads the corpus continues
each of them, greedily or by sampling. What it wrote is kept as token ids: never decoded and tokenized again.
The name has the form of a variant, ``KIND@ARGS:NAME``; an existing file of such a name is that file.

Strata: of one prompt come two documents, the prompt in the domain ``prompt`` and what was written after it in
the domain ``generated``. The second is read after the first, as context that is not counted twice
(``TokenizedDocument.before``): every token has the position and the keys that it had when it was written.
Both have documents as their independent units; over both together intervals take the two for independent,
which a note of every result says.

A token is counted where the model reads it. The last token that is written is read by nobody when a model
decodes; here it is read too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from sparsescope.activations.corpus import Corpus
from sparsescope.activations.text.digests import stream_digest
from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument
from sparsescope.activations.text.vocabulary import padding_id, special_tokens
from sparsescope.core.spec import Params, canonical_json, make_params, read_arguments, with_digest
from sparsescope.core.variant import arguments_text
from sparsescope.errors import SpecError, SubjectError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from sparsescope.models.subject import Subject

KIND = "generated"
DOMAINS = ("prompt", "generated")
_LENGTHS = ("prompt", "new")
EXAMPLE = "generated@prompt=32,new=64:python-docs"
_NAME = re.compile(rf"{KIND}(?:@([^:]*))?:(.*)", re.DOTALL)
_DESCRIBED = ("id", "revision", "weight_hash", "config_hash", "dtype", "device", "variant")
# A continuation of one token has no neighbour, and without BOS losses could not place it
_LEAST = 2
_TOGETHER = (
    "A prompt and what the model wrote after it are two documents here. Numbers over both together take them "
    "for independent: the intervals of such means can be too narrow, by a factor of up to 1.41. Numbers of "
    "one domain (prompt, generated) are not affected."
)


class GeneratedParams(Params):
    """The arguments of ``generated@ARGS:NAME``."""

    prompt: int = Field(default=32, ge=1, description="Tokens of each prompt, special tokens not counted.")
    new: int = Field(default=64, ge=_LEAST, description="Most tokens that are written after each prompt.")
    temperature: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="0: always the most probable token; else sampling.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of sampling.")

    def described(self) -> dict[str, Any]:
        """The arguments that change the text: without temperature there is nothing to draw."""
        found = self.model_dump(mode="json")
        return found if self.temperature else {**found, "seed": None}

    @property
    def text(self) -> str:
        """``generated@ARGS:`` as it is written before a corpus. Lengths are always said: a reader of a title
        has to know them.
        """
        shown = {key: value for key, value in self.described().items() if self.temperature or key in _LENGTHS}
        return f"{KIND}@{arguments_text(shown)}:"


_MEANING = " ".join(f"{key}: {one.description}" for key, one in GeneratedParams.model_fields.items())


def written_with(given: Mapping[str, Any]) -> GeneratedParams:
    """Check the arguments that say how a text is written.

    Raises:
        SpecError: One is unknown or not valid.
    """
    found = make_params(GeneratedParams, dict(given), analysis=KIND, kind="corpus", next_step=_MEANING)
    return cast("GeneratedParams", found)


def split_name(text: str) -> tuple[str, str]:
    """Split the name of a corpus into ``generated@ARGS:`` (or nothing) and the rest."""
    match = _NAME.fullmatch(text)
    if match is None or os.path.exists(text):  # noqa: PTH110 - False where it can be no path
        return "", text
    return text[: len(text) - len(match[2])], match[2]


def read_name(text: str) -> tuple[GeneratedParams | None, str]:
    """Read the name of a corpus.

    Returns:
        How it is generated, None for one that is not, and the name of the corpus that the prompts come from.

    Raises:
        SpecError: The arguments are not valid, or no corpus is named.
    """
    prefix, name = split_name(text)
    if not prefix:
        return None, text
    if not name.strip() or split_name(name)[0]:
        raise SpecError(
            "a generated text has prompts, the beginnings of documents of a corpus that is there",
            where=text[:200],
            allowed=EXAMPLE,
            got=f"{name[:80]!r} as the corpus of the prompts",
            next_step="`sparsescope list corpora` lists corpora; a file may stand there too",
        )
    match = _NAME.fullmatch(text)
    arguments = match[1] if match else None
    found = read_arguments(
        GeneratedParams, arguments, name=KIND, example=EXAMPLE, kind="corpus", next_step=_MEANING
    )
    return cast("GeneratedParams", found), name


@dataclass(frozen=True, slots=True, repr=False)
class GeneratedCorpus(Corpus):
    """A text that is written by the subject that reads it. Made by ``corpus`` and ``Corpus.generated``.

    The fields are those of the corpus that prompts come from, but for the name; ``budget`` counts prompt and
    new tokens together.

    Args:
        written: How it is written.
    """

    written: GeneratedParams = field(default_factory=GeneratedParams)

    def __post_init__(self) -> None:
        Corpus.__post_init__(self)
        if self.max_document_tokens is not None:
            raise SpecError(
                "the length of a generated document is that of the prompt and of what is written",
                where="max_document_tokens",
                allowed="None",
                got=self.max_document_tokens,
                next_step=f"give prompt and new, for example {EXAMPLE}",
            )
        object.__setattr__(self, "digest", _sha256([KIND, self.digest, self.written.described()]))

    @classmethod
    def of(cls, source: Corpus, written: GeneratedParams, name: str | None = None) -> GeneratedCorpus:
        """Return the text that a model writes after beginnings of documents of ``source``."""
        plain = _fields(source)
        return cls(**{**plain, "name": name or written.text + source.name}, written=written)

    def describe(self) -> dict[str, Any]:
        """Return plain values for reports: what may be drawn, and how it is written."""
        return {**Corpus.describe(self), KIND: self.written.described()}

    def tokenize(
        self, tokenizer: PreTrainedTokenizerBase | None, max_positions: int | None = None
    ) -> TokenizedCorpus:
        """Refused: a tokenizer alone writes no text.

        Raises:
            SpecError: Always.
        """
        raise SpecError(
            "a generated text is written by a model, not by a tokenizer",
            where=self.name,
            next_step="give the model: corpus.read_by(subject)",
        )

    def read_by(self, subject: Subject) -> TokenizedCorpus:
        """Let the subject write the text.

        What comes back can be read by other models with the same tokenizer too, and be given to ``ss.run``
        several times, where it is not written anew.

        Raises:
            SubjectError: The subject has no tokenizer or writes no text, prompt and new tokens are more than
                it was made for, or no document is as long as a prompt.
            SpecError: The context or the budget has no room for a prompt and what comes after it.
        """
        from sparsescope.activations.continuations import continuations, end_tokens

        prompts = self._prompts(subject)
        ask = self.written
        found = continuations(
            subject,
            [document.ids for document in prompts.documents],
            prompts.prefix,
            ask.new,
            temperature=ask.temperature,
            seed=ask.seed,
        )
        documents, short = _documents(prompts, found, end_tokens(subject))
        if len(documents) == len(prompts.documents):
            raise SubjectError(
                "the model ended every text at once",
                where=f"{subject.id}, {self.name}",
                allowed=f"continuations of at least {_LEAST} tokens",
                got=f"{short} shorter ones",
                next_step="take longer prompts, another corpus, or a temperature",
            )
        return TokenizedCorpus(
            name=self.name,
            documents=documents,
            domains=DOMAINS,
            context=prompts.context,
            prefix=prompts.prefix,
            suffix=(),  # a text that goes on has no end
            pad_id=padding_id(subject.tokenizer),
            tokenizer_hash=prompts.tokenizer_hash,
            digest=stream_digest(
                self._origin(prompts, subject), prompts.tokenizer_hash, prompts.prefix, (), documents
            ),
            provenance=self._written_by(subject, prompts, documents, short),
        )

    def makes(self, value: TokenizedCorpus, subject: Subject) -> bool:
        """Whether this subject writes that very text: from the same prompts, in the same way. It is not
        written again for that.
        """
        return bool(value.provenance.get("origin") == self._origin(self._prompts(subject), subject))

    def _prompts(self, subject: Subject) -> TokenizedCorpus:
        """The beginnings of documents, all of one length, one document each."""
        ask, tokenizer = self.written, subject.tokenizer
        if tokenizer is None:
            return Corpus.tokenize(self, None)  # says what is missing
        prefix, _ = special_tokens(tokenizer, self.bos)
        context, budget = self._context(subject, len(prefix)), self.budget
        count = None if budget is None else budget // (ask.prompt + ask.new)
        if count == 0:
            raise SpecError(
                "the token budget is less than one prompt with what is written after it",
                where=f"tokens of {self.name}",
                allowed=f"at least {ask.prompt + ask.new}",
                got=budget,
                next_step=f"ask for more tokens, or for a shorter prompt and fewer new ones: {EXAMPLE}",
            )
        # The budget is split over domains, and a remainder is too short for a prompt: one more for each.
        tokens = None if count is None else (count + len(self.domains)) * ask.prompt
        longest = {"min_tokens": max(self.min_tokens, ask.prompt), "max_document_tokens": ask.prompt}
        source = Corpus(**{**_fields(self), **longest, "budget": tokens, "context": context})
        try:
            text = source.tokenize(tokenizer)
        except SubjectError as error:
            raise SubjectError(
                "no document is as long as a prompt",
                where=self.name,
                allowed=f"documents of at least {ask.prompt} tokens",
                got=error.got,
                next_step=f"ask for shorter prompts, for example {EXAMPLE}, or give longer texts",
            ) from error
        whole = [document.index for document in text.documents if len(document) == ask.prompt]
        return replace(text.select(whole[:count]), suffix=())

    def _context(self, subject: Subject, special: int) -> int:
        """The longest window: the one that was given, or what prompt and new tokens need."""
        ask, limit = self.written, subject.max_positions
        needed = special + ask.prompt + ask.new
        if limit is not None and needed > limit:
            raise SubjectError(
                "prompt and new tokens are more than the model was made for",
                where=f"{self.name}, read by {subject.id}",
                allowed=f"prompt + new of at most {limit - special}",
                got=f"{ask.prompt} + {ask.new}",
                next_step=f"ask for fewer, for example {EXAMPLE}",
            )
        if self.context is not None and needed > self.context:
            raise SpecError(
                "the context has no room for the prompt and the new tokens",
                where=f"context of {self.name}",
                allowed=f"at least {needed}",
                got=self.context,
                next_step="leave the context out, or ask for fewer tokens",
            )
        # Where prompts are longer than what follows: room for either after a prompt, so that analyses that
        # cut windows by one length for all documents leave prompts whole.
        roomy = special + ask.prompt + max(ask.prompt, ask.new)
        return self.context or (roomy if limit is None else min(roomy, limit))

    def _origin(self, prompts: TokenizedCorpus, subject: Subject) -> str:
        """What the text follows from: prompts, subject, and how it writes."""
        by = with_digest(subject.identity.as_dict())["digest"]
        return _sha256([KIND, prompts.digest, by, self.written.described()])

    def _written_by(
        self,
        subject: Subject,
        prompts: TokenizedCorpus,
        documents: tuple[TokenizedDocument, ...],
        short: int,
    ) -> dict[str, Any]:
        """What ``TokenizedCorpus.describe`` adds to its own counts."""
        found, by = prompts.provenance, subject.identity.as_dict()
        notes, total = list(self.notes), sum(map(len, documents))
        if self.budget is not None and total < self.budget:
            notes.append(f"{total} of the {self.budget} tokens asked for are there")
        if short:
            notes.append(f"continuations of fewer than {_LEAST} tokens left out: {short}")
        return {
            **self.describe(),
            "context": prompts.context,
            "license": f"prompts: {self.license}; the rest was written by {subject.id}",
            "domains": {
                "prompt": {"license": self.license},
                "generated": {"license": f"written by {subject.id}"},
            },
            "written_by": {key: by[key] for key in _DESCRIBED if key in by},
            "prompts": {"digest": prompts.digest, "documents": len(prompts.documents)},
            "ended": sum(document.whole for document in documents),
            "origin": self._origin(prompts, subject),
            "notes": notes,
            "caution": _TOGETHER,
            "near_duplicates": found["near_duplicates"],
            "near_duplicate_of": found["near_duplicate_of"],
            "too_short": found["too_short"],
        }


def _documents(
    prompts: TokenizedCorpus, written: list[NDArray[np.int32]], ends: Set[int]
) -> tuple[tuple[TokenizedDocument, ...], int]:
    """Return prompts and what was written after each, side by side, and how many of these were too short."""
    documents: list[TokenizedDocument] = []
    for prompt, ids in zip(prompts.documents, written, strict=True):
        parts = [(DOMAINS[0], prompt.ids, prompt.ids[:0])]
        parts += [(DOMAINS[1], ids, prompt.ids)] if len(ids) >= _LEAST else []
        for domain, own, before in parts:
            name = f"{prompt.id} ({domain})"
            ended = domain == DOMAINS[1] and int(own[-1]) in ends
            documents.append(TokenizedDocument(len(documents), name, domain, own, ended, before))
    short = 2 * len(written) - len(documents)
    return tuple(documents), short


def _fields(corpus: Corpus) -> dict[str, Any]:
    """The arguments of a plain corpus with the same documents."""
    return {one.name: getattr(corpus, one.name) for one in fields(Corpus) if one.init}


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()

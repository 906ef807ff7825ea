"""The role ``text``: what models read, as the tokenizer of the model beside it sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsescope.activations.capture import check_context, tokenized
from sparsescope.activations.text.probe import probe_corpus
from sparsescope.core.result import Severity
from sparsescope.core.text_notes import notes_of_text
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.core.run_store import Store
    from sparsescope.models.subject import Subject


def open(given: Any, opened: Mapping[str, tuple[Any, ...]], store: Store | None) -> TokenizedCorpus:
    """Tokenize a text for the model, or the last checkpoint, that reads it.

    Raises:
        SpecError: There is no model beside it, or it is no text.
        SubjectError: The model has no tokenizer, its windows are shorter than the context, or it cannot write
            the text that it was asked for.
    """
    reader = _reader(opened)
    text = tokenized(given, reader)
    check_context(reader, text)
    return text


def carried(opened: Mapping[str, tuple[Any, ...]]) -> TokenizedCorpus | None:
    """The held-out text of a series of our own trainer: what is read where nobody gave a text.

    Raises:
        SpecError: Its models read no text.
    """
    for series in opened.get("series", ())[:1]:
        if series.trained is not None:
            return probe_corpus(series)
    return None


def _reader(opened: Mapping[str, tuple[Any, ...]]) -> Subject:
    for subject in opened.get("subject", ())[:1]:
        return subject
    for series in opened.get("series", ())[:1]:
        return series.subject(series.steps[-1])
    raise SpecError(
        "a text is read by a model, and there is none beside it",
        where="Analysis.inputs",
        allowed='("subject", "text") or ("series", "text")',
    )


def identity(value: TokenizedCorpus) -> dict[str, Any]:
    """What was drawn, and the digest of the token stream."""
    return {**value.describe(), "digest": value.digest}


def capabilities(value: TokenizedCorpus) -> frozenset[str]:
    """A text has none."""
    return frozenset()


def notes(value: TokenizedCorpus) -> tuple[tuple[Severity, str], ...]:
    """What a reader of any result on this text has to know."""
    caution = value.provenance.get("caution")
    said = tuple(notes_of_text(value.describe()))
    return said if caution is None else (*said, ("info", str(caution)))


def words(value: TokenizedCorpus, opened: Mapping[str, tuple[Any, ...]], flag: str) -> list[str] | None:
    """Options that make this very token stream; none for what a series carries, None where
    no options make it.

    The text is made again to see whether it is the same: that costs little. Of one that a model wrote only
    the prompts are.
    """
    from sparsescope.activations.corpus import corpus, registered_corpora
    from sparsescope.activations.generated import split_name

    found = value.describe()
    if "budget" not in found:
        return []  # the held-out text of a series needs no option
    _, source = split_name(value.name)
    if found.get("budget") is None or any(name not in registered_corpora() for name in source.split("+")):
        return None
    most = None if value.name != source else found.get("max_document_tokens")
    again = corpus(
        value.name,
        tokens=found["budget"],
        max_document_tokens=most,
        **{key: found[key] for key in ("seed", "context", "bos", "deduplicate")},
    )
    if not again.makes(value, _reader(opened)):
        return None
    options = [(flag, "name"), ("--tokens", "budget"), ("--context", "context"), ("--seed", "seed")]
    words = [word for option, key in options for word in (option, str(found[key]))]
    words += [] if most is None else ["--document-tokens", str(most)]
    words += [] if found["deduplicate"] else ["--keep-duplicates"]
    return words + (["--bos", str(found["bos"])] if found["bos"] != "auto" else [])


def python(value: TokenizedCorpus) -> str:
    """How it is given in Python."""
    return "ss.corpus(...)"

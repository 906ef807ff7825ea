"""What a corpus needs to know of a tokenizer: how it encodes, which special tokens it adds, its hash.

Works through the public interface of Hugging Face tokenizers, fast or slow, and leaves them as they were.
Special tokens are found by asking the tokenizer, not by reading its attributes: ``bos_token_id`` is set on
many tokenizers (GPT-2, SmolLM2) that never add it by themselves.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from sparsescope.errors import SubjectError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sparsescope.activations.text.token_budget import Encode
    from sparsescope.activations.text.tokenized import TokenizedCorpus

_PROBE = "a"


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Return the function text -> token ids, without special tokens.

    Text that spells a special token is encoded as the text it is: a document that mentions ``<|im_end|>``
    does not end anything.
    """

    def encode(text: str) -> list[int]:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        before = getattr(backend, "encode_special_tokens", None)
        try:
            return list(
                tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
                    "input_ids"
                ]
            )
        finally:
            # The call leaves this flag changed on the Rust tokenizer, where other users would meet it.
            if backend is not None and before is not None:
                backend.encode_special_tokens = before

    return encode


def special_tokens(
    tokenizer: PreTrainedTokenizerBase, policy: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids put before and after the text of every window.

    Args:
        tokenizer: A Hugging Face tokenizer.
        policy: ``"auto"`` (what it adds by itself), ``"always"`` (at least a BOS or CLS in front) or
            ``"never"``.

    Raises:
        SubjectError: If a BOS is asked for and the tokenizer has none, or its special tokens cannot be told.
    """
    if policy == "never":
        return (), ()
    bare = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    full = list(tokenizer(_PROBE)["input_ids"])
    starts = [n for n in range(len(full) - len(bare) + 1) if full[n : n + len(bare)] == bare]
    if not starts:
        raise SubjectError(
            "the special tokens of this tokenizer cannot be told from its text tokens",
            where=type(tokenizer).__name__,
            got=f"{_PROBE!r} -> {full} with and {bare} without special tokens",
            next_step="use bos='never'",
        )
    prefix, suffix = tuple(full[: starts[0]]), tuple(full[starts[0] + len(bare) :])
    if policy == "always" and not prefix:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        if first is None:
            raise SubjectError(
                "this tokenizer has no BOS token",
                where="bos='always'",
                allowed="a tokenizer with bos_token or cls_token",
                got=type(tokenizer).__name__,
                next_step="use bos='auto' or bos='never'",
            )
        prefix = (int(first),)
    return prefix, suffix


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to put at padding: that of the pad token, else of EOS, else 0. It is always masked."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the vocabulary: every (token, id), ordered by id and token."""
    entries = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def check_vocabulary(tokenizer: PreTrainedTokenizerBase | None, corpus: TokenizedCorpus, name: str) -> None:
    """Refuse a model whose tokens are others than those of a text.

    Args:
        tokenizer: Of the model.
        corpus: The text.
        name: Of the series, for the error.

    Raises:
        SubjectError: It has no tokenizer, or another vocabulary.
    """
    if tokenizer is None or vocabulary_hash(tokenizer) != corpus.tokenizer_hash:
        raise SubjectError(
            "this series reads other tokens than the first one, so that losses of a token cannot be compared",
            where=name,
            allowed=f"the vocabulary in which {corpus.name} was read",
            got="no tokenizer" if tokenizer is None else "another vocabulary",
            next_step="compare series with the same tokenizer",
        )

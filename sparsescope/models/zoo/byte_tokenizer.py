"""A tokenizer of single bytes, for random models: any text works, and nothing is learned.

Ids 0, 1, 2 are ``<pad>``, ``<bos>``, ``<eos>``; id 3 + b is the byte b of the UTF-8 text.
It is a real fast tokenizer (``tokenizers`` BPE without merges), so it batches, decodes,
saves and reloads like that of a trained model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
PAD_ID, BOS_ID, EOS_ID = range(3)
VOCABULARY_SIZE = 256 + len(SPECIAL_TOKENS)


def byte_alphabet() -> list[str]:
    """Return the printable character that stands for each byte 0..255.

    This is the byte-level alphabet of GPT-2 (Radford et al. 2019), which ``tokenizers``
    uses: visible Latin-1 characters stand for themselves, the others are moved above 255.
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(byte if byte in visible else next(moved)) for byte in range(256)]


def byte_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer.

    Args:
        context: Longest sequence of the model, in tokens.

    Returns:
        A fast tokenizer that adds no token by itself and reads ``"<bos>"`` in a text as five bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *byte_alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL_TOKENS, strict=True)),
        model_max_length=context,
        split_special_tokens=True,  # a text that contains "<bos>" must not inject the token
        clean_up_tokenization_spaces=False,
    )

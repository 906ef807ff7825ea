"""A long text is tokenized in pieces: the tokens are those of the whole text, with every kind of tokenizer"""

import hashlib

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import sparsescope as ss
from sparsescope.activations.text.token_budget import encode_head
from sparsescope.activations.text.vocabulary import encoder

SENTENCE = "The quick brown fox jumps over 13 lazy dogs; naïve café owners, antidisestablishmentarianism.\n"
HEX = "\n".join(hashlib.sha512(str(n).encode()).hexdigest() for n in range(200))
TEXTS = {
    "hex lines": HEX,
    "hex words": HEX.replace("\n", " "),
    "words around the limit": " ".join("ab" * n for n in range(40, 61)) * 12,
    "prose": SENTENCE * 60,
    "hex, then prose": HEX[:900] + " " + SENTENCE * 40,
    "one word": HEX.replace("\n", ""),
    "one blank, early": "a " + HEX.replace("\n", ""),
    "blanks": " " * 700 + SENTENCE + "\t\n " * 500 + SENTENCE * 20,
    "no blanks": "".join(chr(0x4E00 + n % 900) for n in range(4000)),
}


def trained(kind: str) -> PreTrainedTokenizerFast:
    if kind == "wordpiece":  # as BERT: one [UNK] for a word of over 100 characters
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=400,
            unk_token="<unk>",
            special_tokens=["<unk>"],
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        if kind == "byte-level BPE":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        else:  # merges reach over blanks
            alphabet = []
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    read = [SENTENCE * 5, HEX[:2000], *([] if kind == "unigram" else [TEXTS["no blanks"][:900]])]
    tokenizer.train_from_iterator(read, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]" if kind == "wordpiece" else None
    )


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "byte-level BPE", "BPE"])
def test_the_beginning_of_a_text_has_the_tokens_of_the_whole(kind):
    encode = encoder(trained(kind))
    for name, text in TEXTS.items():
        whole = encode(text)
        for n in (1, 7, 30, 100, 480):
            ids, complete = encode_head(encode, text, n)
            assert ids.tolist() == whole[:n], (name, n)
            assert complete == (len(whole) <= n), (name, n)


def test_long_words_of_a_corpus_are_what_wordpiece_makes_of_them():
    tokenizer = trained("wordpiece")
    found = ss.corpus([HEX], tokens=150, context=32).tokenize(tokenizer)
    unknown = tokenizer.convert_tokens_to_ids("[UNK]")
    assert found.n_tokens == 150 and {id for document in found.documents for id in document.ids} == {unknown}

"""Budget, windows, special tokens, batches and digests of corpora, on a byte-level tokenizer.

The tokenizer gives one token for each UTF-8 byte, so that every count below can be read off the text.
"""

import json
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from sparsescope.activations.corpus import Document, corpus
from sparsescope.errors import SpecError, SubjectError


def byte_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """One token for each byte; optionally a template such as ``"<s> $A </s>"``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {"<s>": 256, "</s>": 257}
    backend = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(alphabet)} | special, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    if template:
        used = [(token, n) for token, n in special.items() if token in template]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def prose(n: int, words: int, seed: int = 0) -> list[str]:
    """``n`` unrelated texts of ``words`` words each."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [" ".join("".join(draw.choices(letters, k=5)) for _ in range(words)) for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def text_of(tokenizer, document) -> str:
    return tokenizer.decode(document.ids.tolist())


def test_budget_is_exact_and_spread_over_many_documents(tokenizer):
    found = corpus(prose(40, 200), tokens=4000, context=50).tokenize(tokenizer)
    assert found.n_tokens == 4000
    assert len(found.documents) == 16  # a sixteenth of the budget each: 250 tokens, five whole windows
    assert {len(document) for document in found.documents} == {250}


def test_long_documents_are_read_further_only_where_documents_run_out(tokenizer):
    found = corpus(prose(2, 200), tokens=2000, context=50).tokenize(tokenizer)
    assert found.n_tokens == 2000
    assert len(found.documents) == 2
    assert all(
        text.startswith(text_of(tokenizer, document)) for text, document in matched(found, prose(2, 200))
    )


def matched(found, texts):
    return [(texts[int(document.id.split("/")[1])], document) for document in found.documents]


def test_an_explicit_cap_is_never_exceeded(tokenizer):
    found = corpus(prose(3, 200), tokens=2000, max_document_tokens=70).tokenize(tokenizer)
    assert [len(document) for document in found.documents] == [70, 70, 70]
    assert any("only 210 of the 2000" in note for note in found.describe()["notes"])


def test_all_tokens_are_taken_without_a_budget(tokenizer):
    texts = [*prose(5, 30), "ünïcödé"]
    found = corpus(texts, tokens=None).tokenize(tokenizer)
    assert found.n_tokens == sum(len(text.encode()) for text in texts)
    assert sorted(text_of(tokenizer, document) for document in found.documents) == sorted(texts)
    assert all(document.whole for document in found.documents)


def test_budget_is_split_evenly_over_domains_and_shortage_goes_to_the_others(tokenizer):
    texts = [Document(f"a/{n}", "a", text) for n, text in enumerate(prose(20, 100, seed=1))]
    texts += [Document(f"b/{n}", "b", text) for n, text in enumerate(prose(20, 100, seed=2))]
    even = corpus(texts, tokens=3001, context=64).tokenize(tokenizer).describe()["domains"]
    assert (even["a"]["tokens"], even["b"]["tokens"]) == (1501, 1500)
    texts += [Document("c/0", "c", "x" * 100)]
    found = corpus(texts, tokens=3000, context=64).tokenize(tokenizer)
    assert {name: entry["tokens"] for name, entry in found.describe()["domains"].items()} == {
        "a": 1450,
        "b": 1450,
        "c": 100,
    }


def test_every_prefix_of_the_stream_has_both_domains(tokenizer):
    texts = [
        Document(f"{d}/{n}", d, text) for d in "ab" for n, text in enumerate(prose(20, 100, seed=ord(d)))
    ]
    documents = corpus(texts, tokens=4000, context=50).tokenize(tokenizer).documents
    tokens = np.array([len(document) for document in documents])
    in_a = np.array([document.domain == "a" for document in documents])
    share = np.cumsum(tokens * in_a) / np.cumsum(tokens)
    assert np.abs(share[3:] - 0.5).max() <= 0.125


def test_near_duplicates_and_short_documents_are_left_out_and_counted(tokenizer):
    first, second = prose(2, 60)
    found = corpus([first, second, first.upper(), first + " tail", "x"], tokens=None).tokenize(tokenizer)
    described = found.describe()
    assert described["documents"] == 2
    assert described["near_duplicates"] == 2
    assert described["too_short"] == 1
    assert set(described["near_duplicate_of"]) <= {"texts/0", "texts/2", "texts/3"}
    kept = corpus([first, second, first.upper()], tokens=None, deduplicate=False).tokenize(tokenizer)
    assert len(kept.documents) == 3


def test_all_documents_too_short_is_an_error(tokenizer):
    with pytest.raises(SubjectError, match=r"no document of the corpus is left[\s\S]*2 too short"):
        corpus(["ab", "cd"], min_tokens=3).tokenize(tokenizer)


def test_windows_offsets_and_positions_for_both_paddings(tokenizer):
    found = corpus(["abcdefghij"], tokens=None, context=4).tokenize(tokenizer)
    right, left = (next(found.batches(100, side)) for side in ("right", "left"))
    assert right.offset.tolist() == left.offset.tolist() == [0, 4, 8]
    assert right.attention_mask.tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert left.attention_mask.tolist() == [[True] * 4, [True] * 4, [False, False, True, True]]
    assert right.position.tolist()[2] == [0, 1, -1, -1]
    assert left.position.tolist()[2] == [-1, -1, 0, 1]
    assert left.text_position.tolist()[2] == [-1, -1, 8, 9]
    assert tokenizer.decode(left.input_ids[2][left.attention_mask[2]].tolist()) == "ij"
    assert (right.input_ids.dtype, right.document.dtype, right.domain.dtype, right.offset.dtype) == (
        np.int64,
        np.int32,
        np.int16,
        np.int32,
    )


@pytest.mark.parametrize(
    ("template", "bos", "prefix", "suffix"),
    [
        (None, "auto", (), ()),
        (None, "always", (256,), ()),
        ("<s> $A", "auto", (256,), ()),
        ("<s> $A", "never", (), ()),
        ("<s> $A </s>", "auto", (256,), (257,)),
        ("$A </s>", "always", (256,), (257,)),
    ],
)
def test_special_tokens_frame_every_window_and_are_not_counted(template, bos, prefix, suffix):
    found = corpus(["abcdefghij"], tokens=None, context=6, bos=bos).tokenize(byte_tokenizer(template))
    assert (found.prefix, found.suffix) == (prefix, suffix)
    assert found.n_tokens == 10
    text = []
    for batch in found.batches(100):
        assert batch.n_tokens == 10
        assert batch.attention_mask.sum() == 10 + found.n_windows * (len(prefix) + len(suffix))
        for row, mask, inside in zip(batch.input_ids, batch.attention_mask, batch.text_mask, strict=True):
            real = row[mask].tolist()
            assert len(real) <= 6
            assert tuple(real[: len(prefix)]) == prefix
            assert tuple(real[len(real) - len(suffix) :]) == suffix
            text += row[inside].tolist()
        assert sorted(batch.text_position[batch.text_mask].tolist()) == list(range(10))
    assert text == found.documents[0].ids.tolist()


def test_the_context_must_have_room_for_text():
    with pytest.raises(SubjectError, match="no room for text"):
        corpus(["some text"], context=2).tokenize(byte_tokenizer("<s> $A </s>"))


def test_a_slow_tokenizer_works_and_one_without_bos_says_so():
    byt5 = ByT5Tokenizer()
    found = corpus(["zwei", "drei vier"], tokens=None, context=8).tokenize(byt5)
    assert found.suffix == (byt5.eos_token_id,)
    assert found.n_tokens == 13
    with pytest.raises(SubjectError, match="no BOS token"):
        corpus(["zwei"], bos="always").tokenize(byt5)


def test_no_tokenizer_is_an_error():
    with pytest.raises(SubjectError, match="has no tokenizer"):
        corpus(["text"]).tokenize(None)


def test_text_that_spells_a_special_token_is_text_and_the_tokenizer_stays_as_it_was(tokenizer):
    before = tokenizer.backend_tokenizer.encode_special_tokens
    found = corpus(["end </s> here"], tokens=None).tokenize(tokenizer)
    assert 257 not in found.documents[0].ids
    assert found.n_tokens == len("end </s> here")
    assert tokenizer.backend_tokenizer.encode_special_tokens == before
    assert 257 in tokenizer("end </s> here")["input_ids"]


@pytest.mark.parametrize(
    "text", ["\ud800 lone", "nul \0 inside", "\ufeff mark", "e\u0301\u200d", "\u2028 line"]
)
def test_odd_unicode_is_read(tokenizer, text):
    found = corpus([text], tokens=None).tokenize(tokenizer)
    assert text_of(tokenizer, found.documents[0]) == text.replace("\ud800", "\ufffd")


def test_only_the_beginning_of_a_huge_line_is_tokenized(tokenizer, monkeypatch):
    lengths = []
    original = type(tokenizer).__call__

    def spy(self, text, **options):
        lengths.append(len(text))
        return original(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", spy)
    found = corpus(["x" * 1_000_000, "some other text"], tokens=500, context=100).tokenize(tokenizer)
    assert found.n_tokens == 500
    assert max(lengths) < 10_000


def test_a_text_of_few_long_tokens_is_read_until_it_gives_enough():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "w" * 90: 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    found = corpus([("w" * 90 + " ") * 300], tokens=200, context=100).tokenize(words)
    assert found.documents[0].ids.tolist() == [1] * 200


def test_seed_draws_the_documents(tokenizer):
    texts = prose(60, 100)

    def ids(seed):
        return [
            document.id for document in corpus(texts, tokens=2000, seed=seed).tokenize(tokenizer).documents
        ]

    assert ids(0) == ids(0)
    assert set(ids(0)) != set(ids(1))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 301},
        {"seed": 1},
        {"context": 33},
        {"bos": "never"},
        {"min_tokens": 3},
        {"max_document_tokens": 40},
        {"deduplicate": False},
    ],
)
def test_digest_changes_with_every_argument_that_changes_tokens(change):
    usual = {"tokens": 300, "context": 32}
    texts = prose(4, 30)
    assert corpus(texts, **usual).digest == corpus(list(texts), **usual).digest
    assert corpus(texts, **usual).digest != corpus(texts, **(usual | change)).digest


def test_digest_covers_texts_ids_and_domains_but_not_the_title():
    base = [Document("a", "x", "some text"), Document("b", "x", "other text")]
    digests = {corpus(base).digest}
    digests.add(corpus([base[0], Document("c", "x", "other text")]).digest)
    digests.add(corpus([base[0], Document("b", "y", "other text")]).digest)
    digests.add(corpus([base[0], Document("b", "x", "other texts")]).digest)
    assert len(digests) == 4
    assert corpus(base, name="title").digest == corpus(base).digest


def test_tokenized_digest_covers_the_vocabulary(tokenizer):
    texts = corpus(prose(4, 30))
    other = byte_tokenizer()
    assert texts.tokenize(tokenizer).digest == texts.tokenize(other).digest
    other.add_tokens(["zzzzzz"])
    assert texts.tokenize(tokenizer).digest != texts.tokenize(other).digest
    assert texts.tokenize(tokenizer).digest != texts.tokenize(byte_tokenizer("<s> $A")).digest


def test_digest_is_a_constant_of_the_text_in_any_process():
    code = "from sparsescope.activations.corpus import corpus; print(corpus(['ä text', 'second']).digest)"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        assert done.stdout.strip() == corpus(["ä text", "second"]).digest
    assert corpus(["ä text", "second"]).digest == DIGEST


# Pinned: a change means that stored runs no longer match their corpora; raise SELECTION_VERSION with it.
DIGEST = "4c0267a5749c90a7909b82869694d63c44e22ec53bc517c19a27c69796bb494b"


def test_describe_is_plain_and_complete(tokenizer):
    texts = corpus(prose(8, 40), tokens=600, name="mine")
    before, after = texts.describe(), texts.tokenize(tokenizer).describe()
    assert json.loads(json.dumps(after)) == after
    assert before["domains"]["mine"]["available_documents"] == 8
    assert (after["name"], after["budget"], after["context"], after["bos"]) == ("mine", 600, 256, "auto")
    assert after["tokens"] == after["domains"]["mine"]["tokens"] == 600
    assert after["digest"] != before["digest"]


def test_select_and_split_keep_numbers_and_refuse_nonsense(tokenizer):
    whole = corpus(prose(12, 40), tokens=None).tokenize(tokenizer)
    part = whole.select([7, 2, 2])
    assert [document.index for document in part.documents] == [2, 7]
    assert part.document(7).id == whole.documents[7].id
    assert whole.select(range(12)).digest == whole.digest != part.digest
    assert [len(found.documents) for found in whole.split(4)] == [3, 3, 3, 3]
    assert len(whole.split(50)) == 12
    for wrong in ([99], []):
        with pytest.raises(SpecError, match="document"):
            whole.select(wrong)
    with pytest.raises(SpecError, match="at least one part"):
        whole.split(0)
    with pytest.raises(SubjectError, match="no such document"):
        part.document(3)


def test_batches_refuse_wrong_arguments_at_once(tokenizer):
    found = corpus(["some text"]).tokenize(tokenizer)
    with pytest.raises(SpecError, match="padding side"):
        found.batches(padding_side="middle")
    with pytest.raises(SpecError, match="room for a token"):
        found.batches(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": 0}, "token budget must be positive"),
        ({"tokens": -5}, "token budget must be positive"),
        ({"tokens": 2.5}, "token budget must be positive"),
        ({"context": 1}, "at least two tokens"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"min_tokens": 0}, "min_tokens must be positive"),
        ({"max_document_tokens": 0}, "max_document_tokens must be positive"),
        ({"bos": "maybe"}, "unknown BOS policy"),
    ],
)
def test_wrong_arguments_have_a_message_each(arguments, message):
    with pytest.raises(SpecError, match=message) as caught:
        corpus(["text"], **arguments)
    assert caught.value.where == next(iter(arguments))
    assert caught.value.allowed


def test_the_global_random_state_is_untouched(tokenizer):
    random.seed(5)
    np.random.seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist()
    corpus(prose(3, 20)).tokenize(tokenizer)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_corpora_travel_to_workers(tokenizer):
    texts = corpus(prose(4, 30))
    assert pickle.loads(pickle.dumps(texts)).digest == texts.digest
    found = texts.tokenize(tokenizer)
    there = pickle.loads(pickle.dumps(found))
    for ours, theirs in zip(found.batches(64), there.batches(64), strict=True):
        assert np.array_equal(ours.input_ids, theirs.input_ids)

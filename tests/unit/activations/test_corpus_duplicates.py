"""Near-duplicates: closed forms of the Jaccard index, the threshold, and the recall of the MinHash bands."""

import random

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.activations.text.duplicates import NearDuplicates, jaccard, shingles, signature
from sparsescope.models.zoo.byte_tokenizer import byte_tokenizer


def numbered(start: int, stop: int) -> str:
    """A text of distinct words; two of them share a 5-gram exactly where their ranges overlap."""
    return " ".join(f"w{n}" for n in range(start, stop))


def test_shingles_are_the_distinct_word_5_grams():
    assert shingles(numbered(0, 100)).size == 96
    assert shingles("a b c d e a b c d e a b c d e").size == 5
    assert shingles("a b").size == shingles("").size == 1
    assert np.array_equal(shingles("One TWO three, four five"), shingles("one two\nthree ,four  FIVE"))
    assert not np.array_equal(shingles("one two three four five"), shingles("five four three two one"))


def test_shingles_are_constants_of_the_text():
    assert shingles("the quick brown fox jumps").tolist() == [12566469996745686458]


def test_jaccard_closed_form():
    # 5-grams 0..95 and 50..145: 46 shared of 146
    assert jaccard(shingles(numbered(0, 100)), shingles(numbered(50, 150))) == pytest.approx(46 / 146)
    assert jaccard(shingles("a b c d e"), shingles("a b c d e")) == 1.0
    assert jaccard(shingles("a b c d e"), shingles("f g h i j")) == 0.0


def test_signature_estimates_jaccard():
    first, second = shingles(numbered(0, 2004)), shingles(numbered(1000, 3004))
    estimate = np.mean(signature(first) == signature(second))
    assert abs(estimate - 1 / 3) < 4 * np.sqrt(1 / 3 * 2 / 3 / 128)


def test_the_threshold_is_exact():
    # n - 4 shingles each; an overlap of k words shares k - 4: J = (k-4) / (2(n-4) - (k-4))
    base = numbered(0, 94)  # 90 shingles
    at = numbered(10, 104)  # 80 shared of 100: 0.80
    below = numbered(11, 105)  # 79 shared of 101: 0.78
    for other, expected in ((at, "base"), (below, None)):
        seen = NearDuplicates()
        assert seen.find("base", base) is None
        assert seen.find("other", other) == expected


def test_a_dropped_document_is_not_compared_with_later_ones():
    seen = NearDuplicates()
    assert seen.find("a", numbered(0, 94)) is None
    assert seen.find("b", numbered(10, 104)) == "a"
    assert seen.find("c", numbered(20, 114)) is None  # 0.8 from b, which was dropped, and 0.64 from a


def test_no_pair_above_the_threshold_is_missed():
    draw = random.Random(0)
    for trial in range(100):
        words = [f"t{trial}x{draw.randrange(10**6)}" for _ in range(300)]
        changed = list(words)
        for _ in range(4):  # four changed words touch at most 20 of 296 5-grams: J >= 0.87
            changed[draw.randrange(300)] = f"new{draw.randrange(10**6)}"
        seen = NearDuplicates()
        seen.find("first", " ".join(words))
        assert seen.find("second", " ".join(changed)) == "first"


def test_text_without_blanks_has_shingles_too():
    text = "字" * 5 + "".join(chr(0x4E00 + n) for n in range(400))
    seen = NearDuplicates()
    assert shingles(text).size > 10
    assert seen.find("a", text) is None
    assert seen.find("b", text + "終") == "a"
    assert seen.find("c", "".join(chr(0x5E00 + n) for n in range(400))) is None


# In a corpus: whole documents are compared


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(256)


def licensed(count: int) -> list[str]:
    """Texts with one beginning of 1,500 characters and other words after it."""
    draw = random.Random(1)
    header = numbered(0, 300)[:1500]
    return [header + " " + " ".join(f"x{draw.randrange(10**6)}" for _ in range(900)) for _ in range(count)]


def test_documents_that_only_begin_alike_stay(tokenizer):
    first, second = licensed(2)
    assert jaccard(shingles(first), shingles(second)) < 0.35
    found = ss.corpus(licensed(40), tokens=2048, context=64).tokenize(tokenizer)
    assert found.provenance["near_duplicates"] == 0 and found.n_tokens == 2048
    assert len(found.documents) >= 16


def test_documents_that_differ_only_at_their_ends_are_found(tokenizer):
    whole = numbered(0, 3000)
    twice = ss.corpus([whole, whole + " and an end", numbered(5000, 8000)], tokens=None)
    found = twice.tokenize(tokenizer)
    assert found.provenance["near_duplicates"] == 1 and len(found.documents) == 2
    kept = ss.corpus([whole, whole + " and an end"], tokens=400, deduplicate=False).tokenize(tokenizer)
    assert kept.provenance["near_duplicates"] == 0 and len(kept.documents) == 2

"""Labels of tokens that need no model to tell: from the decoded text of each token, and from its position.

They make tasks for probes: whether features of a dictionary say which letter a token begins with, whether
it is a digit, and so on. Every function takes the texts of the tokens as the tokenizer decodes them one by
one, with a space in front where there is one. Shapes: texts [row]; labels [row].
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

T = TypeVar("T", np.int64, np.bool_)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NO_LETTER = -1
POSITION_EDGES = (1, 4, 16, 64, 256)


def first_letters(texts: Sequence[str]) -> NDArray[np.int64]:
    """The letter that each token begins with, 0 to 25 for a to z; ``NO_LETTER`` for any other token.

    White space in front is skipped and case does not count. A letter with an accent counts as the letter
    without, and what begins with another alphabet, a digit or a sign has none.

    Example:
        >>> first_letters([" Apple", "zebra", "École", "7up", " ", "яблоко"]).tolist()
        [0, 25, 4, -1, -1, -1]
    """

    def letter(text: str) -> int:
        bare = unicodedata.normalize("NFD", text.lstrip())[:1].lower()
        return LETTERS.find(bare) if bare else NO_LETTER

    return _labels(letter, texts, np.int64)


def has_digit(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether a token holds a decimal digit of any script.

    Example:
        >>> has_digit([" 12", "v2", "two", "²"]).tolist()
        [True, True, False, False]
    """
    return _labels(lambda text: any(sign.isdecimal() for sign in text), texts, np.bool_)


def is_number(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether a token is nothing but decimal digits, white space around it aside.

    Example:
        >>> is_number([" 12", "v2", "3.5", ""]).tolist()
        [True, False, False, False]
    """
    return _labels(lambda text: text.strip().isdecimal(), texts, np.bool_)


def is_capitalised(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether the first sign of a token, after white space, is an upper-case letter.

    Example:
        >>> is_capitalised([" The", "the", "NASA", " (The", ""]).tolist()
        [True, False, True, False, False]
    """
    return _labels(lambda text: text.lstrip()[:1].isupper(), texts, np.bool_)


def is_punctuation(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether a token is punctuation or symbols (Unicode categories P and S), white space aside.

    Example:
        >>> is_punctuation([".", ' "', "$", "a.", " "]).tolist()
        [True, True, True, False, False]
    """

    def signs(text: str) -> bool:
        bare = text.strip()
        return bool(bare) and all(unicodedata.category(sign)[0] in "PS" for sign in bare)

    return _labels(signs, texts, np.bool_)


def starts_with_space(texts: Sequence[str]) -> NDArray[np.bool_]:
    r"""Whether a token begins with white space: the first of a word, in most tokenizers.

    Example:
        >>> starts_with_space([" the", "the", "\n", ""]).tolist()
        [True, False, True, False]
    """
    return _labels(lambda text: text[:1].isspace(), texts, np.bool_)


def position_buckets(positions: ArrayLike, edges: Sequence[int] = POSITION_EDGES) -> NDArray[np.int64]:
    """The bucket of each position in its document or window: how many edges are at or below it.

    Args:
        positions: int [row], 0 for the first token.
        edges: Ascending; bucket b holds ``edges[b - 1]`` <= position < ``edges[b]``.

    Example:
        >>> position_buckets([0, 1, 3, 4, 1000]).tolist()
        [0, 1, 1, 2, 5]
    """
    return np.searchsorted(np.asarray(edges), np.asarray(positions), side="right").astype(np.int64)


def binary_tasks(
    texts: Sequence[str], positions: ArrayLike | None = None, *, letters: bool = True
) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """All of these labels as binary tasks.

    Args:
        texts: [row].
        positions: int [row]; no tasks about position when None.
        letters: Whether each letter is a task.

    Returns:
        Names [task] and labels, bool [row, task].

    Example:
        >>> names, labels = binary_tasks([" The", "7"], letters=False)
        >>> names
        ('digit', 'capitalised', 'punctuation', 'leading_space')
        >>> labels.astype(int).tolist()
        [[0, 1, 0, 1], [1, 0, 0, 0]]
    """
    columns: dict[str, NDArray[np.bool_]] = {
        "digit": has_digit(texts),
        "capitalised": is_capitalised(texts),
        "punctuation": is_punctuation(texts),
        "leading_space": starts_with_space(texts),
    }
    if letters:
        first = first_letters(texts)
        columns |= {f"letter_{letter}": first == place for place, letter in enumerate(LETTERS)}
    if positions is not None:
        buckets = position_buckets(positions)
        columns |= {f"position_{b}": buckets == b for b in range(len(POSITION_EDGES) + 1)}
    return tuple(columns), np.stack(list(columns.values()), 1)


def _labels(label: Callable[[str], int], texts: Sequence[str], dtype: type[T]) -> NDArray[T]:
    """One label for each text; equal texts, of which there are many, are looked at once."""
    known: dict[str, int] = {}
    for text in texts:
        if text not in known:
            known[text] = label(text)
    return np.array([known[text] for text in texts], dtype)

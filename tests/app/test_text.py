"""Foreign text is never Markdown."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.reporting import explorer

sys.path.append(str(explorer.app().parent))
from components.text import plain


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain words 12", "plain words 12"),
        ("![x](http://e.example)", "\\!\\[x\\]\\(http\\:\u2060\\/\\/e\\.example\\)"),
        ("www.e.example a@e.example", "www\u2060\\.e\\.example a\\@\u2060e\\.example"),
        (":red[x] $y$", r"\:red\[x\] \$y\$"),
        ("<b>&lt;", r"\<b\>\&lt\;"),
        ("blocks.3.mlp_x", r"blocks\.3\.mlp\_x"),
        ("a\nb", "a⏎b"),
    ],
)
def test_plain(raw, shown):
    assert plain(raw) == shown


def test_shortcodes_are_broken():
    assert "\u2060" in plain(":material/home:")
    assert "\u2060" not in plain("gguf:Q4_1")


@given(st.text(max_size=60))
def test_every_punctuation_character_is_escaped(text):
    shown = plain(text)
    position = 0
    while position < len(shown):
        if shown[position] == "\\":
            position += 2
            continue
        assert shown[position] not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
        position += 1

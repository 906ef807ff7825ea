"""Strings drawn in figures cannot be markup; colors can be read; dark twins keep data as they are."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.tokens import display

ANY_TEXT = st.text(st.characters(codec=None), max_size=60)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("<b>x</b>", "‹b›x‹/b›"),
        ("&lt;i&gt;", "＆lt;i＆gt;"),
        ("a\nb\tc\x00", "a⏎b⇥c␀"),
        ("a\u202eb", "a‹U+202E›b"),
        ("\ud800", "\ufffd"),
        ("$x$", "＄x＄"),
        ("%{y}", "％{y}"),
        ("50 %", "50 %"),
        ("naïve 日本", "naïve 日本"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("\u2028", "⏎"),
    ],
)
def test_display_shows_what_would_be_interpreted(raw, shown):
    assert display(raw) == shown


def test_display_of_tokens_shows_spaces_and_cuts_long_text():
    assert display(" the ", spaces=True) == "·the·"
    assert display("x" * 100_000) == "x" * 80 + "…"


def test_display_without_markup_leaves_markup_to_the_template():
    assert display("<b>&\x07", markup=False) == "<b>&␇"


@given(ANY_TEXT)
def test_display_never_lets_markup_or_control_through(text):
    shown = display(text, limit=1000)
    assert not set(shown) & set("<>&$\x00\n\r\t\u202e\u2066\ufeff")
    assert "%{" not in shown
    shown.encode("utf-8")


@given(ANY_TEXT)
def test_display_keeps_ordinary_characters(text):
    ordinary = "".join(c for c in text if c.isalnum())
    shown = display(text, limit=1000)
    position = -1
    for character in ordinary:
        position = shown.find(character, position + 1)
        assert position >= 0


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_colors_have_enough_contrast(mode):
    for color in (theme.INK[mode], theme.MUTED[mode], *theme.CATEGORIES[mode]):
        assert theme.contrast(color, theme.BACKGROUND[mode]) >= 4.5, color


def test_line_colors_can_be_seen_in_both_forms():
    for color in theme.ramp(64):
        assert theme.contrast(color, theme.BACKGROUND["light"]) >= 2.95
        assert theme.contrast(theme.twins()[color], theme.BACKGROUND["dark"]) >= 2.95


def test_contrast_of_known_pairs():
    assert theme.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert theme.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WCAG's usual example


def test_every_palette_color_has_one_twin():
    twins = theme.twins()
    for color in (*theme.CATEGORIES["light"], *theme.CLASSES["light"], *theme.ramp(64), theme.INK["light"]):
        assert color in twins


def test_dark_form_changes_colors_and_no_data():
    figure = fig.panels()
    label = theme.BLUE  # a label that reads like a color stays a label
    fig.line(figure, [0, 1], [0.1, 0.2], label, color=theme.BLUE, texts=[label, "b"], legend=True)
    fig.band(figure, [0, 1], [0, 0], [1, 1], color=theme.BLUE)
    fig.describe(figure, title="t", subtitle="s", alt="alt")
    dark = theme.restyle(figure, "dark")
    assert dark.data[0].line.color == theme.twins()[theme.BLUE]
    assert dark.data[0].name == label
    assert dark.data[0].customdata[0] == label
    assert list(dark.data[0].y) == [0.1, 0.2]
    assert dark.data[1].fillcolor == theme.rgba(theme.twins()[theme.BLUE], 0.18)
    assert dark.layout.template.layout.paper_bgcolor == theme.BACKGROUND["dark"]
    assert dark.layout.meta["alt"] == "alt"
    assert figure.data[0].line.color == theme.BLUE, "the given figure is not changed"


def test_ramp_is_ordered_and_of_the_asked_length():
    for count in (1, 2, 30, 80):
        assert len(theme.ramp(count)) == count
    assert isinstance(theme.template("light"), go.layout.Template)

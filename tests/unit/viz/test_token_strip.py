"""The token strip: order, documents, colors, white space, what is cut off, what is missing, errors."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sparsescope.core.columns import Column
from sparsescope.core.result import Result
from sparsescope.errors import SpecError
from sparsescope.testing import check_figure
from sparsescope.viz import generic, theme, token_strip
from sparsescope.viz.panel import KINDS, Panel
from sparsescope.viz.panel import css as panel_css
from sparsescope.viz.token_strip import Scale, is_text

COLUMNS = (
    Column("document", "document", "Document."),
    Column("position", "position", "Position."),
    Column("text", "token_text", "The token."),
    Column("norm", "value", "Norm of the token.", "activation"),
    Column("sign", "value", "Positive or negative."),
)


def result(rows, columns=COLUMNS):
    made = Result("toy")
    made.add_table("tokens", pd.DataFrame(rows, columns=[column.name for column in columns]), columns)
    return made


@pytest.fixture
def two():
    rows = [("b", n, f" w{n}", float(n), n - 2.0) for n in (2, 0, 1, 4, 3)]
    return result(
        [*rows, ("a", 0, "x\n\ny", 7.0, math.nan), ("a", 1, "", math.inf, 0.0), ("a", 2, None, 3.0, 1.0)]
    )


def tags(panel):
    return [tag for top in panel.body for tag in top]


def marks(panel):
    return [tag for tag in tags(panel) if "data-mark" in tag.attributes]


def words(tag):
    return "".join(part if isinstance(part, str) else words(part) for part in tag.parts)


def test_tokens_of_one_document_stand_in_order(two):
    panel = token_strip.token_strip(two, "tokens")
    check_figure(panel)
    assert [words(mark) for mark in marks(panel)] == ["·w0", "·w1", "·w2", "·w3", "·w4"]
    assert marks(panel)[2].attributes["title"] == "·w2  ·  position 2  ·  norm 2"
    assert [mark.attributes["tabindex"] for mark in marks(panel)] == ["0", "-1", "-1", "-1", "-1"]
    assert "5 tokens of document b" in panel.alt and "between 0 at ·w0 and 4 at ·w4" in panel.alt
    assert panel.subtitle == "Norm of the token; document b; 5 tokens"


def test_white_space_breaks_and_missing_values_are_seen(two):
    panel = token_strip.token_strip(two, "tokens", document="a")
    assert [words(mark) for mark in marks(panel)] == ["x⏎⏎y", "∅", "∅"]
    assert [tag.name for tag in tags(panel)].count("br") == 2
    assert [mark.attributes["class"] for mark in marks(panel)] == ["mark plus-8", "mark plus-8", "mark"]
    assert (
        "norm ∞" in marks(panel)[1].attributes["title"] and "(empty)" in marks(panel)[1].attributes["title"]
    )
    other = token_strip.token_strip(two, "tokens", document="a", value="sign", title="Signs")
    assert (
        marks(other)[0].attributes["class"] == "mark none" and "sign –" in marks(other)[0].attributes["title"]
    )
    assert other.title == "Signs"


def test_both_signs_grow_from_zero(two):
    panel = token_strip.token_strip(two, "tokens", value="sign")
    assert [mark.attributes["class"] for mark in marks(panel)] == [
        "mark minus-8", "mark minus-4", "mark", "mark plus-4", "mark plus-8",
    ]  # fmt: skip
    legend = words(panel.body[0])
    assert "-2" in legend and "no color: 0" in legend
    swatches = [tag.attributes.get("class", "") for tag in panel.body[0].parts[2].parts]
    assert swatches == [*(f"minus-{n}" for n in range(8, 0, -1)), "", *(f"plus-{n}" for n in range(1, 9))]


def test_the_colors_do_not_follow_one_extreme():
    numbers = np.array([*np.linspace(1, 2, 200), 500.0])
    scale = Scale.of(numbers)
    assert scale.above and not scale.below and scale.high < 2.1 and scale.low == 1.0
    assert scale.shade(500.0) == "plus-8" and scale.shade(1.0) == ""
    made = result([("d", n, "t", number, 0.0) for n, number in enumerate(numbers)])
    assert "≥ 1." in words(token_strip.token_strip(made, "tokens").body[0])


@pytest.mark.parametrize(
    ("numbers", "shades"),
    [
        ([-1.0, -3.0], ["", "minus-8"]),
        ([5.0, 5.0], ["", ""]),
        ([math.nan], ["none"]),
        ([-1e308, 1e308], ["minus-8", "plus-8"]),
    ],
)
def test_shades(numbers, shades):
    scale = Scale.of(np.array(numbers))
    assert [scale.shade(number) for number in numbers] == shades


def test_a_long_document_is_cut_and_says_so():
    made = result([("d", n, "t", float(n), 0.0) for n in range(3000)])
    panel = token_strip.token_strip(made, "tokens")
    assert len(marks(panel)) == token_strip.MOST_TOKENS and "the first 800 of 3,000 tokens" in panel.subtitle
    assert "2,999" in words(panel.body[0]), "one scale for what is shown and what is not"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"table": "token"}, "did you mean 'tokens'"),
        ({"value": "norms"}, "did you mean 'norm'"),
        ({"value": "position"}, "norm"),
        ({"document": "c"}, "no such document"),
    ],
)
def test_what_is_not_there_is_named(two, asked, said):
    with pytest.raises(SpecError) as caught:
        token_strip.token_strip(two, **{"table": "tokens", **asked})
    assert said in caught.value.message()


@pytest.mark.parametrize("kept", [slice(0, 2), slice(0, 3)])
def test_a_table_without_tokens_or_numbers(two, kept):
    made = result(two.tables["tokens"].iloc[:, kept], COLUMNS[kept])
    assert not is_text(made.tables["tokens"], made.columns["tokens"])
    with pytest.raises(SpecError, match="no tokens to color" if kept.stop == 2 else "no number to color"):
        token_strip.token_strip(made, "tokens")


def test_the_default_figure_of_a_text_is_the_text(two):
    assert generic.select_column(two, "tokens") == "document"
    assert isinstance(generic.draw(two, "tokens"), Panel)
    assert "document a" in generic.draw(two, "tokens", "a").subtitle
    layers = (Column("layer", "layer", "Layer."), *COLUMNS)
    frame = two.tables["tokens"].assign(layer=0)[[column.name for column in layers]]
    twice = pd.concat([frame, frame])
    for changed, columns in ((frame, layers), (twice.drop(columns="layer"), COLUMNS)):
        made = result(changed, columns)
        assert not isinstance(generic.draw(made, "tokens"), Panel), (
            "several numbers for one token are no text"
        )
        assert generic.select_column(made, "tokens") == ""


ROUTED = (
    *COLUMNS[:3],
    Column("layer", "layer", "Layer."),
    Column("expert", "expert", "Expert of the token."),
)


def routed(experts=(3, 3, 5, 1, 3, 5), layers=2):
    """Documents a and b; the experts of layer 1 have ten more than those of layer 0."""
    rows = [
        (document, n, f" w{n}", layer, expert + 10 * layer)
        for document in "ab"
        for layer in range(layers)
        for n, expert in enumerate(experts)
    ]
    return result(rows, ROUTED)


def swatches(panel):
    return [
        (part.parts[0].attributes["class"], words(part.parts[1]))
        for part in panel.body[0].parts
        if part.attributes.get("class") == "kind"
    ]


def test_experts_have_colors_by_how_frequent_they_are():
    panel = token_strip.token_strip(routed(), "tokens", where={"layer": 1})
    check_figure(panel)
    classes = [mark.attributes["class"] for mark in marks(panel)]
    assert classes == [f"mark kind-{n}" for n in (1, 1, 2, 3, 1, 2)]
    assert marks(panel)[2].attributes["title"] == "·w2  ·  position 2  ·  expert 15"
    assert swatches(panel) == [
        ("swatch kind-1", "13: 50 %"), ("swatch kind-2", "15: 33.3 %"), ("swatch kind-3", "11: 16.7 %"),
    ]  # fmt: skip
    assert panel.subtitle == "Expert of the token; layer 1; document a; 6 tokens"
    assert (
        "colored by expert of each token. The most frequent: 13 (50 %), 15 (33.3 %), 11 (16.7 %)."
        in panel.alt
    )
    remarked = token_strip.token_strip(routed(), "tokens", where={"layer": 1}, remark="the last layer")
    assert remarked.subtitle == f"{panel.subtitle}; the last layer"


def test_an_expert_has_the_same_color_in_all_documents():
    rows = [("a", n, "t", 0, expert) for n, expert in enumerate([1, 1, 1, 2])]
    rows += [("b", n, "t", 0, expert) for n, expert in enumerate([2, 3])]
    made = result(rows, ROUTED)
    first, second = (token_strip.token_strip(made, "tokens", document=name) for name in "ab")
    assert [mark.attributes["class"] for mark in marks(first)][-1] == "mark kind-2"
    assert [mark.attributes["class"] for mark in marks(second)] == ["mark kind-2", "mark kind-3"]
    assert swatches(second) == [("swatch kind-2", "2: 50 %"), ("swatch kind-3", "3: 50 %")]


@pytest.mark.parametrize(
    ("many", "others"), [(KINDS, ""), (KINDS + 1, "2 others: "), (KINDS + 4, "5 others: ")]
)
def test_the_others_share_the_gray_color(many, others):
    experts = [expert for expert in range(many) for _ in range(20 - expert)]
    panel = token_strip.token_strip(routed(experts, layers=1), "tokens", value="expert")
    shown = swatches(panel)
    assert [name for name, _ in shown] == [f"swatch kind-{n}" for n in range(1, KINDS + 1)]
    assert shown[-1][1].startswith(others or f"{KINDS - 1}: ")
    assert marks(panel)[-1].attributes["class"] == f"mark kind-{KINDS}"


def test_a_token_without_an_expert_has_no_color():
    panel = token_strip.token_strip(routed([1, math.nan], layers=1), "tokens")
    assert marks(panel)[1].attributes["class"] == "mark none"
    assert marks(panel)[1].attributes["title"].endswith("expert –") and swatches(panel)[0][1] == "1: 100 %"
    nothing = token_strip.token_strip(routed([math.nan], layers=1), "tokens")
    assert "no expert is known" in words(nothing.body[0]) and "no finite number" in nothing.alt


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"layers": 1}, "did you mean 'layer'"),
        ({"layer": 7}, "there is no row with this layer"),
        ({"layer": "0"}, "'0'"),
        (None, "a token has several rows, and one color"),
    ],
)
def test_rows_that_are_not_there_or_too_many_are_named(where, said):
    with pytest.raises(SpecError) as caught:
        token_strip.token_strip(routed(), "tokens", where=where)
    assert said in caught.value.message()


def test_rows_are_chosen_for_numbers_too(two):
    panel = token_strip.token_strip(two, "tokens", where={"position": 3})
    assert [words(mark) for mark in marks(panel)] == ["·w3"] and "position 3; document b" in panel.subtitle
    assert not is_text(routed().tables["tokens"], routed().columns["tokens"])


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_on_the_colors_of_experts_can_be_read(mode):
    kinds = theme.kinds(mode)
    assert len({background for background, _ in kinds}) == len(kinds) == KINDS
    assert all(theme.contrast(ink, background) >= 4.5 for background, ink in kinds)
    assert kinds[-1][0] == (theme.SLATE if mode == "light" else theme.twins()[theme.SLATE])
    assert all(f"--kind-{n}: {background};" in panel_css() for n, (background, _) in enumerate(kinds, 1))
    assert (
        f".panel .kind-{KINDS} {{ background: var(--kind-{KINDS}); color: var(--kind-{KINDS}-ink); }}"
        in panel_css()
    )

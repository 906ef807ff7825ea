"""Panels: nothing but escaped parts and one script; the page of one; colors that can be read."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape

import pytest

from sparsescope.errors import SpecError
from sparsescope.viz import panel, theme
from sparsescope.viz.panel import Panel, Tag, tag

BAD = "</div><script>alert(1)</script>\"' onclick=x"


def some():
    return Panel(
        BAD,
        BAD,
        BAD,
        (tag("div", BAD, tag("span", BAD, title=BAD, data_mark=""), tag("br"), class_="strip"),),
        caption=BAD,
    )


@pytest.mark.parametrize(
    ("name", "attributes"),
    [("script", {}), ("img", {}), ("div", {"onclick": "x"}), ("span", {"style": "x"}), ("p", {"href": "x"})],
)
def test_other_elements_and_attributes_are_refused(name, attributes):
    with pytest.raises(SpecError, match="no such element or attribute"):
        Tag(name, (), attributes)


def test_whatever_text_says_it_stays_text():
    text = some().html()
    assert set(re.findall(r"<(\w+)", text)) == {"div", "p", "b", "span", "br"}
    assert "<script" not in text and 'onclick=x"' not in unescape(re.sub(r'"[^"]*"', "", text))
    assert text.count("&lt;script&gt;") == 6


@pytest.mark.parametrize("framed", [True, False])
def test_a_page_of_its_own_allows_its_script_alone(framed):
    page = some().page("dark", framed=framed, source="run <r>")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == page.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src" in page
    assert not re.search(r"(src|href)=|@import|url\(", page) and 'data-theme="dark"' in page
    assert ("run &lt;r&gt;" in page) and ('class="framed"' in page) == framed


def test_a_notebook_gets_a_frame_without_its_origin():
    shown = some()._repr_html_()
    assert re.findall(r"<(\w+)", shown) == ["iframe"] and 'sandbox="allow-scripts"' in shown
    assert some().to_html() == some().page()
    inside = unescape(re.search(r'srcdoc="([^"]*)"', shown).group(1))
    assert inside == some().page("light", framed=True), (
        "its own background: that of the notebook is not known"
    )


def test_the_script_sets_text_and_builds_no_markup():
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", panel.script()
    )


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("hue", ["blue", "vermilion"])
def test_every_shade_can_be_read_and_grows(mode, hue):
    shades = theme.shades(mode, hue, panel.SHADES)
    assert all(theme.contrast(ink, background) >= 4.5 for background, ink in shades)
    away = [theme.contrast(background, theme.BACKGROUND[mode]) for background, _ in shades]
    assert away == sorted(away) and away[0] > 1.1 and shades[-1][0] in theme.CATEGORIES[mode]
    assert all(background in panel.css() for background, _ in shades)

"""What a report says of presets: at its head, and where the parameters stand."""

from __future__ import annotations

import html
import re

import pytest
from pydantic import Field

from sparsescope.core.registry import Analysis
from sparsescope.core.result import Result
from sparsescope.core.spec import Params
from sparsescope.reporting.build import render
from sparsescope.reporting.depth import depth_of, left_out


class SomeParams(Params):
    """Parameters."""

    tokens: int = Field(4096, description="Tokens.")
    dose_shares: tuple[float, ...] = Field((0.5, 0.9, 0.99), description="Shares.")
    tolerance: float = Field(0.05, description="Tolerance.")
    rule: str = Field("top", description="Rule.")


RECORD = Analysis("some", "1", "Some", "Some.", SomeParams, "nowhere")


def made(preset, **changed):
    """A result with these parameters and this label."""
    result = Result("some")
    result.add_scalar("x", 1, "count", "A number.")
    result.provenance = {
        "params": SomeParams(**changed).model_dump(mode="json"),
        "preset": preset,
        "subject": {"id": "small"},
    }
    return result


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens": 1024}, "tokens 1,024 of 4,096"),
        ({"tokens": 8192}, "tokens 8192 instead of 4096"),
        ({"dose_shares": (0.5, 0.99)}, "2 of 3 dose shares"),
        ({"dose_shares": (0.75,)}, "dose shares 0.75 instead of 0.5, 0.9, 0.99"),
        ({"tolerance": 0.01}, "tolerance 0.01 instead of 0.05"),
        ({"tokens": 16, "rule": "low"}, "tokens 16 of 4,096, rule low instead of top"),
    ],
)
def test_a_sentence_says_what_is_left_out(changed, said):
    assert (
        left_out(RECORD, made("quick", **changed))
        == f"quick preset: {said}; --depth full runs the whole analysis"
    )


def test_what_is_no_preset_needs_no_sentence():
    assert left_out(RECORD, made("", tokens=16)) == "" and depth_of([made("", tokens=16)]) == ""
    assert left_out(RECORD, made("sharp", tokens=16)) == "sharp preset: tokens 16 of 4,096"
    assert depth_of([made("sharp")]) == ""


def test_the_head_counts_the_quick_ones():
    assert depth_of([made("quick"), made("")]).startswith("1 of 2 analyses come from quick presets")
    assert depth_of([made("quick")]).startswith("All of it comes from quick presets")


def test_a_preset_of_a_package_that_is_not_installed_and_a_hostile_name():
    page = render([made("quick", tokens=16), made("<b>x</b>")])
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.split("</head>")[1])).split())
    assert "quick preset: what it changes is not known here; --depth full" in text
    assert "1 of 2 analyses come from quick presets" in text
    assert "<b>x</b>" not in page and "<b>x</b> preset" in html.unescape(page)

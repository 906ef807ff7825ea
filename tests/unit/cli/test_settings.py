"""``--set NAME=VALUE``: the type of the parameter decides what a text means."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from sparsescope.cli.settings import parse_set
from sparsescope.core.spec import Params, make_params
from sparsescope.errors import SpecError


class Everything(Params):
    count: int = 1
    limit: int | None = 5
    ratio: float = Field(0.5, gt=0)
    flag: bool = False
    name: str = "a"
    shares: tuple[float, ...] = (0.5,)
    sites: str | tuple[str, ...] = "auto"
    mode: Literal["fast", "slow"] = "fast"
    layers: Literal["all"] | tuple[int, ...] = "all"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("count=7", 7),
        ("count=-3", -3),
        ("limit=none", None),
        ("limit=8", 8),
        ("ratio=1e-3", 0.001),
        ("ratio=2", 2.0),
        ("flag=true", True),
        ("flag=False", False),
        ("name=5", "5"),
        ("name=none", "none"),
        ("name=a,b", "a,b"),
        ("shares=[0.5, 0.9]", (0.5, 0.9)),
        ("shares=(0.5,0.9)", (0.5, 0.9)),
        ("shares=[0.5]", (0.5,)),
        ("shares=0.5, 0.9", (0.5, 0.9)),
        ('sites=["a", "b"]', ("a", "b")),
        ("sites=[a,b]", ("a", "b")),
        ("sites=[a]", ("a",)),
        ("name=[a]", "[a]"),
        ("name=a=b", "a=b"),
        ("name=", ""),
        ("shares=0.5", (0.5,)),
        ("shares=0.5,0.9", (0.5, 0.9)),
        ("sites=blocks.*.hook_out", "blocks.*.hook_out"),
        ("sites=a,b", ("a", "b")),
        ("mode=slow", "slow"),
        ("layers=all", "all"),
        ("layers=1,2", (1, 2)),
    ],
)
def test_a_value_becomes_what_the_parameter_takes(text, value):
    name = text.partition("=")[0]
    given = parse_set([text], Everything, analysis="toy")
    found = getattr(make_params(Everything, given, analysis="toy"), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "count=1.5",
        "count=true",
        "count=",
        "ratio=0",
        "ratio=x",
        "flag=maybe",
        "mode=medium",
        "shares=0.5,",
        "limit=x",
        "nme=a",
    ],
)
def test_other_values_are_refused(text):
    with pytest.raises(SpecError):
        parse_set([text], Everything, analysis="toy")


def test_the_last_of_two_wins_and_nothing_else_is_filled_in():
    assert parse_set(["count=1", "count=2"], Everything, analysis="toy") == {"count": "2"}
    assert parse_set([], Everything, analysis="toy") == {}

"""Presets of analyses: what a declaration may say, and that a name is no part of a digest."""

from __future__ import annotations

import pytest
from pydantic import Field

from sparsescope.core.registry import Analysis, Registry, analyses
from sparsescope.core.spec import Params
from sparsescope.errors import SpecError


class SomeParams(Params):
    """Parameters."""

    tokens: int = Field(4096, ge=16, description="Tokens.")
    shares: tuple[float, ...] = Field((0.5, 0.9), description="Shares.")
    others: tuple[str, ...] = Field((), description="Texts to read.", json_schema_extra={"role": "text"})


def record(**presets):
    """An analysis with these presets."""
    return Analysis(
        "some", "1", "Some", "Some.", SomeParams, "nowhere", inputs=("subject", "text*"), presets=presets
    )


def test_a_preset_changes_parameters_and_full_none():
    found = record(quick={"tokens": 1024}, sharp={"shares": (0.99,)})
    Registry().add(found)
    assert found.preset("quick") == {"tokens": 1024} and found.preset("full") == {}
    assert (
        found.preset_of(SomeParams(tokens=1024)) == "quick"
        and found.preset_of(SomeParams(shares=(0.99,))) == "sharp"
    )
    assert found.preset_of(SomeParams()) == found.preset_of(SomeParams(tokens=1024, shares=(0.99,))) == ""
    found.preset("quick")["tokens"] = 1
    assert found.presets == {"quick": {"tokens": 1024}, "sharp": {"shares": (0.99,)}}, (
        "the declaration can be changed"
    )


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(
        SpecError, match=r"unknown preset of some 'quik'[\s\S]*full, quick[\s\S]*did you mean 'quick'"
    ):
        record(quick={"tokens": 1024}).preset("quik")


@pytest.mark.parametrize(
    ("presets", "message"),
    [
        ({"Quick": {"tokens": 1024}}, "malformed or taken"),
        ({"full": {"tokens": 1024}}, "malformed or taken"),
        ({"quick": {"token": 1024}}, "preset 'quick' of some: unknown parameter 'token'"),
        ({"quick": {"tokens": 1}}, "preset 'quick' of some: parameter 'tokens' is not valid"),
        ({"quick": {}}, "changes nothing"),
        ({"quick": {"tokens": 4096}}, "changes nothing"),
        ({"quick": {"others": ("a text",)}}, "never what is read"),
    ],
)
def test_a_wrong_preset_is_refused_at_registration(presets, message):
    registry = Registry()
    with pytest.raises(SpecError, match=message):
        registry.add(record(**presets))
    assert "some" not in registry


def test_every_analysis_of_a_model_has_a_quick_preset_or_is_in_the_shared_pass():
    """A report takes minutes only where analyses run passes of their own."""
    for found in analyses():
        own = not hasattr(found.compute_module(), "accumulator") and "subject" in found.roles
        assert not own or "quick" in found.presets, found.name

"""The code of "Add an analysis" in CONTRIBUTING.md is an analysis that passes the checks it names."""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path

import pytest

import sparsescope as ss
from sparsescope.core import registry
from sparsescope.core.registry import Registry
from sparsescope.plugin import Analysis, Column, Field, Params, with_interval
from sparsescope.testing import check_accumulator, check_analysis

TEXT = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODULE = "near_zero_of_contributing"


class NearParams(Params):
    """Parameters of ``near_zero``."""

    sites: str = Field("blocks.*.mlp.hook_post", description="Sites to measure.")
    below: float = Field(0.01, gt=0, description="Threshold.")
    resamples: int = Field(400, ge=10, description="Bootstrap resamples.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


NEAR_ZERO = Analysis(
    name="near_zero",
    version="1",
    title="Near zero",
    summary="How many activations are near zero.",
    params=NearParams,
    compute=MODULE,
    tables={
        "per_layer": (
            Column("layer", "layer", "Layer."),
            Column("site", "site", "Site."),
            *with_interval(Column("share", "fraction", "Activations near zero / all.")),
        )
    },
    headline=("mean_share",),
    requires=frozenset({"mlp_hidden"}),
    presets={"quick": {"resamples": 200}},
)


@pytest.fixture
def near(monkeypatch):
    """The module ``compute.py`` of the text; its analysis is registered beside the others."""
    section = TEXT.partition("## Add an analysis")[2].partition("\n## ")[0]
    blocks = [
        textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", section, re.M | re.S)
    ]
    (code,) = [block for block in blocks if "def accumulator" in block]
    module = types.ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    exec(compile(code, "CONTRIBUTING.md", "exec"), vars(module))
    known = Registry()
    for record in (*registry.analyses(), NEAR_ZERO):
        known.add(record)
    monkeypatch.setattr(registry, "analyses", lambda: known)
    return module


def test_the_analysis_of_the_text_passes_its_checks(near, llama, small_corpus):
    result = check_analysis(NEAR_ZERO, llama, small_corpus)
    share = result.scalars["mean_share"]
    assert 0 < share.value < 1 and share.interval.low <= share.value <= share.interval.high
    with ss.capture(llama, small_corpus, "blocks.*.mlp.hook_post") as source:
        check_accumulator(lambda: near.Near(source.sites, 0.01), list(source))


def test_the_order_of_a_stream_does_not_matter(near, llama, small_corpus):
    with ss.capture(llama, small_corpus, "blocks.*.mlp.hook_post") as source:
        batches = list(source)
        found = []
        for stream in (batches, sorted(batches, key=lambda batch: -batch.document)):
            accumulator = near.Near(source.sites, 0.01)
            for batch in stream:
                accumulator.update(batch)
            found.append([*accumulator.finish(), *accumulator.finish()])
    assert all((a == b).all() for a, b in zip(*found, strict=True))

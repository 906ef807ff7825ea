"""Digests name runs: equal settings give equal digests, every change gives another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.analysis.activation_sparsity import ActivationSparsityParams
from sparsescope.core.spec import Spec, canonical_json, make_params
from sparsescope.errors import SpecError

SUBJECT = {
    "id": "m",
    "revision": "r",
    "weight_hash": "w",
    "config_hash": "c",
    "origin_precision": "float32",
    "dtype": "float32",
    "attn_implementation": "sdpa",
    "device": "cpu",
}


def spec(**changes):
    values = {
        "analysis": "a",
        "version": "1",
        "params": {"x": 1, "y": [1, 2]},
        "subject": SUBJECT,
        "corpus": {"digest": "d"},
    }
    return Spec(**{**values, **changes})


def test_the_order_of_keys_does_not_matter():
    turned = spec(params={"y": [1, 2], "x": 1}, subject=dict(reversed(SUBJECT.items())))
    assert turned.digest == spec().digest
    assert turned.run_id == f"a-{spec().digest[:12]}"


@pytest.mark.parametrize(
    "change",
    [
        {"analysis": "b"},
        {"version": "2"},
        {"params": {"x": 2, "y": [1, 2]}},
        {"corpus": {"digest": "e"}},
        {"corpus": None},
        {"timing": {"device": "cpu", "threads": 2}},
        *({"subject": {**SUBJECT, key: "other"}} for key in SUBJECT if key not in ("id", "device")),
    ],
)
def test_everything_that_changes_a_number_changes_the_digest(change):
    assert spec(**change).digest != spec().digest


@pytest.mark.parametrize("key", ["id", "device"])
def test_names_and_devices_do_not(key):
    assert spec(subject={**SUBJECT, key: "other"}).digest == spec().digest


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=6))
def test_canonical_json_is_blind_to_insertion_order(values):
    assert canonical_json(values) == canonical_json(dict(reversed(list(values.items()))))


def test_an_unknown_parameter_is_refused_with_near_matches():
    with pytest.raises(SpecError, match=r"unknown parameter 'sead'[\s\S]*did you mean 'seed'"):
        make_params(ActivationSparsityParams, {"sead": 1}, analysis="activation_sparsity")


@pytest.mark.parametrize(
    ("name", "value"), [("shares", (0.5, 0.5001)), ("level", 1.0), ("resamples", 1), ("use_share", "x")]
)
def test_a_value_out_of_range_names_parameter_and_value(name, value):
    with pytest.raises(SpecError, match=f"parameter '{name}'[^$]*got"):
        make_params(ActivationSparsityParams, {name: value}, analysis="activation_sparsity")

"""The benchmark of dictionaries: what it compares is the same computation; what it says is in its tables."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.decomposition import non_negative_factorization

import sparsescope as ss
from sparsescope.bench.dictionaries import ANALYSIS, DictionariesParams, factorizations, saelens_peer
from sparsescope.bench.dictionaries.compute import compute
from sparsescope.core.statements import statements_of
from sparsescope.errors import DependencyError
from sparsescope.plugin import Context


@pytest.fixture(scope="module")
def context():
    subject = ss.load("glassllm")
    text = ss.corpus("python-docs", tokens=900, context=64).tokenize(subject.tokenizer, subject.max_positions)
    return Context.of(subject=subject, text=text)


SMALL = {"width": 160, "k": 6, "batch": 128, "steps": 2, "repeats": 3, "dead_share": 0.1}


@pytest.fixture(scope="module")
def result(context):
    params = DictionariesParams(
        **SMALL, snmf_rows=400, components=6, updates=10, sparsity=0.1, nmf_iterations=6
    )
    return compute(params, context)


def test_both_steps_are_the_same_computation(result):
    """Choice, gradients, AuxK, projection, norms and Adam: five steps later the errors still agree."""
    curve = result.tables["curve"].pivot(index="step", columns="variant", values="fvu")
    assert len(curve) == 6
    np.testing.assert_allclose(curve["sparse, float32"], curve["dense, float32"], rtol=2e-4)
    assert curve["dense, float32"].iloc[-1] < curve["dense, float32"].iloc[0]


def test_tables_and_numbers_belong_together(result):
    steps = result.tables["steps"].set_index("variant")
    assert steps.loc["dense, float32", "speedup"] == 1
    assert result.scalars["step_speedup"].value == steps.loc["sparse, float32", "speedup"]
    np.testing.assert_allclose(steps["rate"], 128 / steps["seconds"])
    errors = result.tables["errors"]
    published = errors[errors["variant"].str.startswith("multiplicative")]
    assert published["iteration"].iloc[-1] == 10 and (published["seconds"].diff().dropna() > 0).all()
    assert (errors["error"].between(0, 1)).all()
    ours = errors[errors["variant"] == factorizations.OURS]
    assert ours["error"].min() <= published["error"].iloc[-1]


def test_the_opponent_is_what_scikit_learn_does(result):
    """Iterations one by one are the same as all in one call; both factor the positive part."""
    errors = result.tables["errors"]
    theirs = errors[errors["variant"] == factorizations.NMF]
    assert list(theirs["iteration"]) == [1, 2, 5, 6] and (theirs["error"].diff().dropna() < 0).all()
    assert errors.loc[errors["variant"] == factorizations.OURS_NMF, "error"].min() <= theirs["error"].min()
    x, start = torch.rand(60, 20), torch.rand(60, 4)
    *_, (codes, components) = factorizations._nmf(x, start, 5)
    generator = np.random.default_rng(0)
    begun = (generator.random((4, 20)) * (float(x.numpy().mean()) / 1.0)).astype(np.float32)
    whole = non_negative_factorization(
        x.numpy(), start.numpy().copy(), begun, n_components=4, init="custom", max_iter=5, tol=0
    )
    np.testing.assert_allclose(codes @ components, whole[0] @ whole[1], rtol=1e-4)


def test_a_peer_takes_its_turn(context, tmp_path, monkeypatch):
    """A stand-in for the script that speaks as it does: its steps are counted, its errors kept."""
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys\n"
        "print('9.9', flush=True)\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'seconds': 1.0, 'fvu': [0.5] * int(line)}), flush=True)\n"
    )
    monkeypatch.setattr(saelens_peer, "__file__", str(script))
    params = DictionariesParams(**{**SMALL, "repeats": 2, "steps": 3}, snmf_rows=0, saelens=sys.executable)
    found = compute(params, context)
    steps = found.tables["steps"].set_index("variant")
    assert steps.loc["SAELens 9.9", ["steps", "fvu"]].tolist() == [6, 0.5]
    curve = found.tables["curve"]
    assert (curve["variant"] == "SAELens 9.9").sum() == 6
    assert found.scalars["saelens_speedup"].value > 0 and found.scalars["saelens_speedup"].interval.n == 2
    found.analysis = ANALYSIS.name
    assert "SAELens" in " ".join(statement.text for statement in statements_of(found))


def test_what_it_says(result):
    result.analysis = ANALYSIS.name
    text = " ".join(statement.text for statement in statements_of(result))
    assert (
        "times as fast as the same step with dense codes" in text
        and "published updates" in text
        and "NMF" in text
    )


def test_the_factorization_can_be_left_out(context):
    found = compute(DictionariesParams(**{**SMALL, "repeats": 2, "steps": 1}, snmf_rows=0), context)
    assert "errors" not in found.tables and "snmf_speedup" not in found.scalars


def test_an_environment_without_saelens_is_named(context):
    params = DictionariesParams(**{**SMALL, "repeats": 2, "steps": 1}, snmf_rows=0, saelens=sys.executable)
    with pytest.raises(DependencyError, match="SAELens could not be timed") as caught:
        compute(params, context)
    assert "sae_lens" in caught.value.got

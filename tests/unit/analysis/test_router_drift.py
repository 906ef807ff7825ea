"""Router drift: cosines and ranks against plain formulas, on the shipped mixture and on made-up routers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.analysis.router_drift import ANALYSIS
from sparsescope.analysis.router_drift.statements import statements
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.checkpoints import Checkpoint, CheckpointSeries, open_series
from sparsescope.models.formats.router_rows import RouterRows
from sparsescope.models.zoo.shipped_series import shipped_folder
from sparsescope.testing import check_figure


@pytest.fixture(scope="module")
def result():
    return ss.run("router_drift", routers="bytes-moe")


def made_up(rows):
    """A series of routers: step to [L, E, d]."""
    series = CheckpointSeries(
        "made-up", [Checkpoint(step, f"step{step}") for step in rows], lambda found: None
    )
    for step, values in rows.items():
        values = np.asarray(values, np.float32)
        digest = f"{step}{values.sum()}"
        series._routers[step] = RouterRows(tuple(range(len(values))), values, digest, 10, 1000)
    series._files = lambda found: None
    return series


def test_rows_are_compared_with_the_end_and_with_the_step_before(result):
    series = open_series("bytes-moe")
    table = result.tables["rows"].set_index(["step", "layer"])
    last = series.routers(1500).rows.astype(float)
    for step, before in ((100, 50), (700, 400)):
        rows, former = (series.routers(s).rows.astype(float) for s in (step, before))
        for layer in range(4):
            v, w, u = (each[layer] - each[layer].mean(0) for each in (rows, last, former))
            cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in w] for a in v]
            found = table.loc[(step, layer)]
            assert found["cosine"] == pytest.approx(np.mean(np.diag(cosine)))
            others = np.array(cosine) - 9 * np.eye(8)
            assert found["other"] == pytest.approx(others.max(1).mean())
            assert found["previous"] == pytest.approx(
                np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(v, u, strict=True)])
            )
            assert found["norm"] == pytest.approx(np.mean(np.linalg.norm(v, axis=1)))
            shares = np.linalg.svd(v, compute_uv=False)
            shares = shares[shares > 1e-12] / shares.sum()
            assert found["rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
            assert found["rank"] <= 7 and found["low"] <= found["cosine"] <= found["high"]
    assert table.loc[1500]["cosine"].tolist() == pytest.approx([1] * 4)
    assert table.loc[0]["previous"].isna().all()


def test_a_shift_that_all_rows_share_is_not_seen():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(2, 6, 16))
    found = ss.run("router_drift", routers=made_up({1: rows + 5, 2: rows})).tables["rows"].set_index("step")
    assert found.loc[1]["cosine"].tolist() == pytest.approx([1, 1], abs=1e-4)
    assert (found.loc[1]["common"] > 0.9).all() and (found.loc[2]["common"] < 0.5).all()


def test_orthogonal_rows_have_full_rank_and_nothing_in_common():
    rows = np.eye(4)[None] * 2.0
    found = ss.run("router_drift", routers=made_up({0: rows, 1: rows, 2: rows})).tables["rows"].iloc[-1]
    assert found["rank"] == pytest.approx(3) and found["alike"] == pytest.approx(1 / 3)
    assert found["other"] == pytest.approx(-1 / 3) and found["common"] == pytest.approx(0.25)


def test_what_it_says(result):
    (said,) = statements(result)
    assert "94.5 kB of 10.3 MB" in said.text and "After 6.67 % of the training" in said.text
    assert result.about == "bytes-moe" and result.provenance["subject"] == {}
    for view in ANALYSIS.views:
        check_figure(result.view(view.name), view.name)
        assert "bytes-moe: " in str(result.view(view.name).layout.title.subtitle.text)
    assert "--routers bytes-moe" in result.provenance["command"]


def test_a_page_holds_runs_with_and_without_a_model(tmp_path):
    """Some results have no model, or are in memory and say nothing of where they come from."""
    drift = ss.run("router_drift", routers="bytes-moe", store=tmp_path)
    model = ss.run("activation_rank", ss.load("random-opt"), ss.corpus("python-docs", tokens=300, context=48))
    bare = ss.run("router_drift", routers="grokking-moe")
    bare.provenance = {}
    page = ss.report([drift, model, bare], tmp_path / "page.html").read_text()
    assert "Model and text: bytes-moe" in page and "Model and text: random-opt" in page
    assert "Model and text: in memory" in page


def test_routers_that_differ_are_refused():
    with pytest.raises(SubjectError, match="differ in layers or experts"):
        ss.run("router_drift", routers=made_up({1: np.zeros((2, 4, 8)), 2: np.ones((2, 6, 8))}))
    with pytest.raises(SubjectError, match="read by themselves"):
        ss.run("router_drift", routers="lazy-swiglu")
    with pytest.raises(SpecError, match="series of checkpoints"):
        ss.run("router_drift", routers=7)
    with pytest.raises(SpecError, match="read whole"):
        ss.run("router_drift", routers="bytes-moe@step-0")


def test_a_folder_whose_name_has_an_at_sign_is_opened(tmp_path):
    folder = tmp_path / "a@b"
    shutil.copytree(shipped_folder("bytes-moe"), folder)
    assert len(ss.run("router_drift", routers=str(folder)).tables["rows"]["step"].unique()) == 8


def test_one_checkpoint_says_nothing_of_settling():
    found = ss.run("router_drift", routers=made_up({5: np.random.default_rng(1).normal(size=(1, 4, 8))}))
    assert "early_cosine" not in found.scalars and any("nothing to settle" in n.message for n in found.notes)
    assert statements(found)[0].text.startswith("For this")


def test_stored_runs_are_found_again_by_their_routers(tmp_path):
    first = ss.run("router_drift", routers="bytes-moe", store=tmp_path)
    again = ss.run("router_drift", routers=open_series("bytes-moe"), store=tmp_path)
    assert first.run_id == again.run_id
    other = ss.run("router_drift", routers="grokking-moe", store=tmp_path)
    assert other.run_id != first.run_id

"""An activation store of schema 1 replays its batches, an unfinished one is completed, an unfinished
training goes on exactly.
"""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.activations.store import ActivationStore, write_store
from sparsescope.errors import ArtifactError
from sparsescope.models.formats.series_file import SeriesFolder
from sparsescope.training.recipe import read_recipe
from sparsescope.training.trainer import train


def test_a_store_yields_the_batches_that_were_written(freeze, frozen):
    store = ActivationStore(freeze.FROZEN / "activations" / "whole")
    assert store.verify() == []
    assert (store.n_batches, store.n_tokens) == (
        frozen["activations"]["batches"],
        frozen["activations"]["tokens"],
    )
    assert freeze.digest(store) == frozen["activations"]["sha256"]
    assert [site.name for site in store.sites] == ["blocks.1.mlp.hook_post"]


def test_a_store_is_of_the_same_source(freeze, frozen, copied, same_machine, same_weights):
    """A complete store is opened, not written again; what the model gives now is what it holds."""
    if not same_weights(frozen["runs"]["time"]):  # of the same model
        return
    folder = copied("activations/whole")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with freeze.source() as source:
        assert write_store(source, folder).folder == folder
        live = [batch.values["blocks.1.mlp.hook_post"].clone() for batch in source]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    tolerance = {"rtol": 0, "atol": 0} if same_machine else {"rtol": 1e-4, "atol": 1e-6}
    for batch, values in zip(ActivationStore(folder), live, strict=True):
        np.testing.assert_allclose(
            values.numpy(), batch.values["blocks.1.mlp.hook_post"].numpy(), **tolerance
        )


def test_an_unfinished_store_is_completed(freeze, frozen, copied, same_machine, same_weights):
    folder = copied("activations/unfinished")
    kept = {path: path.stat().st_ino for path in (folder / "shards").iterdir()}
    assert len(kept) == 2
    with pytest.raises(ArtifactError, match="not a complete"):
        ActivationStore(folder)
    if not same_weights(frozen["runs"]["time"]):
        return
    with freeze.source() as source:
        store = write_store(source, folder, shard_bytes=20_000)
    assert {path: path.stat().st_ino for path in kept} == kept, "finished shards were written again"
    assert store.n_batches == frozen["activations"]["batches"] and store.verify() == []
    if same_machine:
        assert freeze.digest(store) == frozen["activations"]["sha256"]


def test_an_unfinished_training_ends_with_the_same_checkpoints(freeze, frozen, copied, same_machine):
    folder = copied("training")
    assert train(read_recipe(freeze.FROZEN / "tiny.toml"), folder) == folder
    expected, found = frozen["training"]["checkpoints"], freeze.marks(folder)
    assert found == expected if same_machine else found[:2] == expected[:2] and found[2][0] == expected[2][0]
    curves = SeriesFolder.open(folder).curves()
    before = frozen["training"]["curves"]
    assert curves[["step", "measure", "split", "part"]].values.tolist() == [row[:4] for row in before]
    np.testing.assert_allclose(
        curves["value"], [row[4] for row in before], rtol=1e-12 if same_machine else 1e-3
    )

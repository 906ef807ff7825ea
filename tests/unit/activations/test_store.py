"""Activation shards: replayed as they were, resumed where they stopped, refused when they
are something else.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations import store as module
from sparsescope.activations.sparsity_accumulator import SparsityAccumulator
from sparsescope.activations.store import ActivationStore, write_store
from sparsescope.core.locks import locked
from sparsescope.errors import ArtifactError
from sparsescope.testing import check_source

PATTERNS = {"random-llama": "blocks.*.mlp.hook_post", "random-olmoe": "blocks.*.mlp.experts.hook_post"}


def copies(source):
    return [
        (
            b.index,
            b.document,
            b.domain,
            b.token_ids.copy(),
            b.positions.copy(),
            {k: v.clone() for k, v in b.values.items()},
            {k: v.copy() for k, v in b.rows.items()},
        )
        for b in source
    ]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x[:3] == y[:3]
        np.testing.assert_array_equal(x[3], y[3])
        np.testing.assert_array_equal(x[4], y[4])
        assert x[5].keys() == y[5].keys() and x[6].keys() == y[6].keys()
        for name in x[5]:
            assert torch.equal(x[5][name], y[5][name]), name
        for name in x[6]:
            np.testing.assert_array_equal(x[6][name], y[6][name])


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("shard_bytes", [1, 100_000, 10**9])
def test_a_store_replays_the_stream(name, shard_bytes, small_corpus, tmp_path):
    subject = ss.load(name)
    with ss.capture(subject, small_corpus, PATTERNS[name], batch_tokens=128) as source:
        live = copies(source)
        stored = write_store(source, tmp_path / "acts", shard_bytes=shard_bytes)
    same(live, copies(stored))
    assert stored.n_batches == len(live) and stored.n_tokens == sum(len(b[3]) for b in live)
    assert stored.sites == source.sites and stored.verify() == []


@pytest.mark.parametrize("name", PATTERNS)
def test_live_and_stored_sources_keep_the_contract(name, small_corpus, tmp_path):
    with ss.capture(ss.load(name), small_corpus, PATTERNS[name], batch_tokens=128) as source:
        check_source(source)
        stored = write_store(source, tmp_path / "acts", shard_bytes=30_000)
        check_source(stored)
        # A pass over the model can go on from the disk, and the other way round; the keys are
        # those of older states.
        assert stored.fingerprint == source.fingerprint
        assert source.fingerprint == {
            "batch_tokens": 128,
            "padding_side": "right",
            "corpus": source.corpus.digest,
        }
    with ss.capture(
        ss.load(name), small_corpus, PATTERNS[name], batch_tokens=128, dtype="bfloat16"
    ) as rounded:
        assert rounded.fingerprint == {**source.fingerprint, "dtype": "bfloat16"}
        assert write_store(rounded, tmp_path / "rounded").fingerprint == rounded.fingerprint


def test_going_on_opens_no_earlier_shard(llama, small_corpus, tmp_path, monkeypatch):
    with ss.capture(llama, small_corpus, PATTERNS["random-llama"], batch_tokens=128) as source:
        stored = write_store(source, tmp_path / "acts", shard_bytes=1)
    opened, original = [], module.load_shard
    monkeypatch.setattr(module, "load_shard", lambda path: opened.append(path) or original(path))
    assert [batch.index for batch in stored.batches(stored.n_batches - 2)] == [
        stored.n_batches - 2,
        stored.n_batches - 1,
    ]
    assert opened == stored.shard_paths[-2:] and list(stored.batches(stored.n_batches)) == []


def test_statistics_from_disk_equal_those_from_the_model(llama, small_corpus, tmp_path):
    with ss.capture(llama, small_corpus, PATTERNS["random-llama"]) as source:
        stored = write_store(source, tmp_path / "acts")
        found = []
        for stream in (source, stored):
            accumulator = SparsityAccumulator(source.sites, (0.9,), 0.9, small_corpus.context)
            for batch in stream:
                accumulator.update(batch)
            accumulator.finish()
            found.append(accumulator.state()[0])
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name], err_msg=name)


@pytest.mark.parametrize("shards_before", [1, 3])
def test_writing_goes_on_after_the_last_shard(llama, small_corpus, tmp_path, monkeypatch, shards_before):
    original, written = module.save_shard, []

    def failing(tensors, path):
        if len(written) == shards_before:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        return original(tensors, path)

    with ss.capture(llama, small_corpus, PATTERNS["random-llama"], batch_tokens=128) as source:
        live = copies(source)
        monkeypatch.setattr(module, "save_shard", failing)
        with pytest.raises(ArtifactError, match="ENOSPC"):
            write_store(source, tmp_path / "acts", shard_bytes=1)
        with pytest.raises(ArtifactError, match="not a complete"):
            ActivationStore(tmp_path / "acts")
        monkeypatch.setattr(module, "save_shard", original)
        stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "acts" / "shards").iterdir()}
        assert len(stamps) == shards_before
        stored = write_store(source, tmp_path / "acts", shard_bytes=1)
    same(live, copies(stored))
    for name, stamp in stamps.items():
        assert (tmp_path / "acts" / "shards" / name).stat().st_mtime_ns == stamp, (
            "a finished shard was written again"
        )


def test_a_folder_with_other_activations_is_refused(llama, small_corpus, tmp_path):
    with ss.capture(llama, small_corpus, "blocks.0.mlp.hook_post") as source:
        write_store(source, tmp_path / "acts")
    with (
        ss.capture(llama, small_corpus, "blocks.1.mlp.hook_post") as source,
        pytest.raises(ArtifactError, match="another sites"),
    ):
        write_store(source, tmp_path / "acts")


def test_a_folder_that_another_process_writes_to_is_left_alone(llama, small_corpus, tmp_path):
    folder = tmp_path / "acts"
    folder.mkdir()
    with ss.capture(llama, small_corpus, "blocks.0.mlp.hook_post") as source:
        with (
            locked(folder, "mine", where=folder, next_step="wait"),
            pytest.raises(ArtifactError, match="another process writes") as caught,
        ):
            write_store(source, folder)
        assert caught.value.where == str(folder) and "then reads them" in caught.value.next_step
        stored = write_store(source, folder)
        with locked(folder, "mine", where=folder, next_step="wait"):
            assert write_store(source, folder).n_tokens == stored.n_tokens  # complete: nobody writes


def test_damage_is_found(llama, small_corpus, tmp_path):
    with ss.capture(llama, small_corpus, "blocks.0.mlp.hook_post") as source:
        stored = write_store(source, tmp_path / "acts")
    shard = next((tmp_path / "acts" / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert stored.verify() == [f"{shard.name} is damaged"]
    shard.write_bytes(data[:100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        list(stored)


def test_a_file_system_without_direct_writes_is_served(llama, small_corpus, tmp_path, monkeypatch):
    from sparsescope.activations import shard_file

    real = shard_file.os.open

    def refusing(path, flags, *more):
        if flags & getattr(shard_file.os, "O_DIRECT", 0):
            raise OSError(22, "Invalid argument")
        return real(path, flags, *more)

    monkeypatch.setattr(shard_file.os, "open", refusing)
    with ss.capture(llama, small_corpus, "blocks.0.mlp.hook_post") as source:
        live = copies(source)
        same(live, copies(write_store(source, tmp_path / "acts")))

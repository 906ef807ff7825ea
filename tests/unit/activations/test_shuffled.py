"""Shuffled rows of a store: all of them once an epoch, in an order that the seed says, from any batch on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations import shuffled as module
from sparsescope.activations.shuffled import RowBatch, ShuffledRows
from sparsescope.activations.store import ActivationStore, write_store
from sparsescope.errors import SpecError

DENSE = ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_in")


@pytest.fixture(scope="module")
def stores(llama, small_corpus, tmp_path_factory):
    """Dense sites and all experts of a mixture, in shards of about one batch, and the dense
    ones in one shard.
    """
    made = {}
    for name, subject, sites, shard_bytes in (
        ("dense", llama, DENSE, 1),
        ("one shard", llama, DENSE, 10**9),
        ("experts", ss.load("random-olmoe"), "blocks.*.mlp.experts.hook_post", 40_000),
    ):
        with ss.capture(subject, small_corpus, sites, batch_tokens=128) as source:
            made[name] = write_store(
                source, tmp_path_factory.mktemp("stores") / name, shard_bytes=shard_bytes
            )
    return made


def stream(store: ActivationStore, site: str) -> list[tuple[int, int, int, bytes]]:
    """All rows of a site in the order of the store: document, token, position, values."""
    found = []
    for batch in store:
        rows = batch.rows.get(site, np.arange(len(batch.token_ids)))
        for row, value in zip(rows, batch.values[site], strict=True):
            found.append(
                (
                    batch.document,
                    int(batch.token_ids[row]),
                    int(batch.positions[row]),
                    value.numpy().tobytes(),
                )
            )
    return found


def rows_of(batches: Iterable[RowBatch], site: str) -> list[tuple[int, int, int, bytes]]:
    return [
        (int(document), int(token), int(position), value.numpy().tobytes())
        for batch in batches
        for document, token, position, value in zip(
            batch.documents, batch.token_ids, batch.positions, batch.values[site], strict=True
        )
    ]


@pytest.mark.parametrize(("batch_rows", "buffer_rows"), [(7, 30), (64, 64), (100, 10**6), (10**6, 1)])
@pytest.mark.parametrize(
    ("name", "sites"), [("dense", DENSE), ("experts", ("blocks.1.mlp.experts.3.hook_post",))]
)
def test_every_row_comes_once_an_epoch(name, sites, batch_rows, buffer_rows, stores):
    rows = ShuffledRows(stores[name], sites, batch_rows=batch_rows, buffer_rows=buffer_rows, epochs=2, seed=3)
    batches = list(rows)
    assert [batch.index for batch in batches] == list(range(rows.n_batches))
    expected = {site: sorted(stream(stores[name], site)) for site in sites}
    assert rows.n_rows == len(expected[sites[0]])
    orders = []
    for epoch in (0, 1):
        mine = [batch for batch in batches if batch.epoch == epoch]
        assert all(len(batch.token_ids) == min(batch_rows, rows.n_rows) for batch in mine[:-1])
        for site in sites:
            assert sorted(rows_of(mine, site)) == expected[site]
        orders.append(rows_of(mine, sites[0]))
    assert orders[0] != orders[1] != stream(stores[name], sites[0])


@pytest.mark.parametrize("buffer_rows", [30, 200])
def test_any_batch_can_be_the_first(buffer_rows, stores):
    rows = ShuffledRows(stores["dense"], DENSE, batch_rows=10, buffer_rows=buffer_rows, epochs=3, seed=1)
    whole = list(rows)
    for start in (0, 1, 2, 3, rows.n_batches // 3, rows.n_batches // 2, rows.n_batches - 1, rows.n_batches):
        rest = list(rows.batches(start))
        assert [batch.index for batch in rest] == list(range(start, rows.n_batches))
        assert rows_of(rest, DENSE[1]) == rows_of(whole[start:], DENSE[1])


def test_the_order_is_that_of_the_seed_whatever_the_shards(stores):
    def order(name: str, **options: int) -> list[tuple[int, int, int, bytes]]:
        return rows_of(ShuffledRows(stores[name], DENSE, batch_rows=16, buffer_rows=128, **options), DENSE[0])

    assert order("dense", seed=5) == order("dense", seed=5) == order("one shard", seed=5)
    assert order("dense", seed=5) != order("dense", seed=6)
    # The first epoch does not depend on how many follow.
    assert order("dense", seed=5, epochs=2)[: len(order("dense", seed=5))] == order("dense", seed=5)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    order("dense", seed=5)
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()


def test_a_buffer_mixes_documents_and_is_all_that_is_held(stores, monkeypatch):
    held: list[int] = []
    original: Callable[..., RowBatch] = ShuffledRows._read

    def measured(self, order, first):
        buffer = original(self, order, first)
        held.append(len(buffer.token_ids))
        assert all(len(values) == len(buffer.token_ids) for values in buffer.values.values())
        return buffer

    monkeypatch.setattr(ShuffledRows, "_read", measured)
    rows = ShuffledRows(stores["dense"], DENSE, batch_rows=50, buffer_rows=300)
    batches = list(rows)
    assert max(held) == 300 and sum(held) == rows.n_rows
    assert all(len(set(batch.documents)) > 1 for batch in batches)


def test_only_the_shards_of_a_buffer_are_opened_for_it(stores, monkeypatch):
    rows = ShuffledRows(stores["dense"], DENSE, batch_rows=20, buffer_rows=20)
    opened: list[str] = []
    original = module.load_shard
    monkeypatch.setattr(module, "load_shard", lambda path: opened.append(path.name) or original(path))
    next(rows.batches(rows.n_batches - 1))
    assert 0 < len(opened) < len(stores["dense"].shard_paths) == len(set(stores["dense"].shard_paths))


def test_its_fingerprint_changes_with_what_changes_the_rows(stores):
    plain = ShuffledRows(stores["dense"], DENSE, batch_rows=16, buffer_rows=64)
    assert (
        plain.fingerprint
        == ShuffledRows(stores["one shard"], DENSE, batch_rows=16, buffer_rows=60, epochs=9).fingerprint
    )
    others = [
        ShuffledRows(stores["dense"], DENSE, batch_rows=16, buffer_rows=80),
        ShuffledRows(stores["dense"], DENSE, batch_rows=8, buffer_rows=64),
        ShuffledRows(stores["dense"], DENSE[:1], batch_rows=16, buffer_rows=64),
        ShuffledRows(stores["dense"], DENSE, batch_rows=16, buffer_rows=64, seed=1),
    ]
    assert all(other.fingerprint != plain.fingerprint for other in others)


def test_what_cannot_be_shuffled_is_refused(stores):
    with pytest.raises(SpecError, match=r"unknown stored site[\s\S]*hook_post"):
        ShuffledRows(stores["dense"], ["blocks.0.mlp.hook_pst"])
    with pytest.raises(SpecError, match="rows of its own"):
        ShuffledRows(stores["experts"])
    for wrong in ({"batch_rows": 0}, {"buffer_rows": 0}, {"epochs": 0}, {"seed": -1}):
        with pytest.raises(SpecError, match=f"too small[\\s\\S]*{next(iter(wrong))}"):
            ShuffledRows(stores["dense"], **wrong)


def test_an_expert_without_tokens_is_refused(small_corpus, tmp_path):
    subject = ss.load("random-mixtral").copy()
    router = subject.model.get_submodule(subject.blocks[0].experts.router)
    with torch.no_grad():
        router.weight.zero_()  # all experts alike: the first two are taken
    with ss.capture(subject, small_corpus, "blocks.0.mlp.experts.hook_post") as source:
        store = write_store(source, tmp_path / "acts")
    empty = [site.name for site in store.sites if not stream(store, site.name)]
    with pytest.raises(SpecError, match="no token was routed"):
        ShuffledRows(store, empty[:1])

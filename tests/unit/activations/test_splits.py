"""What a training never read: documents of its validation and beyond its most bytes, proved by a digest."""

from __future__ import annotations

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.activations.text.documents import Document
from sparsescope.activations.text.registered import registered_corpora, registered_entries
from sparsescope.activations.text.splits import SplitRule, split_documents, unread
from sparsescope.errors import DependencyError, SpecError
from sparsescope.models.checkpoints import open_series

RULE = SplitRule(context=8, max_bytes=1200)


def documents(count=60):
    generator = np.random.default_rng(0)
    return [
        Document(f"d{n}", "toy", " ".join(map(str, generator.integers(0, 10**6, 8)))) for n in range(count)
    ]


def test_every_document_is_in_one_part():
    found = [*documents(), Document("twin", "toy", documents()[3].text), Document("short", "toy", "x")]
    split = split_documents(found, RULE)
    parts = [set(split.train), set(split.validation), set(split.beyond)]
    assert sum(map(len, parts)) == 60 and len(set.union(*parts)) == 60 and split.near_duplicates == 1
    assert all(parts), "no part is empty here"
    used = sum(map(len, (*split.train.values(), *split.validation.values())))
    assert used <= RULE.max_bytes


def test_unread_is_what_the_training_left():
    found = documents()
    split = split_documents(found, RULE)
    left = [document.id for document in unread(found, RULE, split.digest, "toy")]
    assert set(left) == set(split.validation) | set(split.beyond)
    assert left == [document.id for document in found if document.id in set(left)], (
        "in the order of the source"
    )
    with pytest.raises(DependencyError, match="are not those of the training"):
        read = next(iter(split.train))
        others = [document for document in found if document.id != read]
        list(unread(others, RULE, split.digest, "toy"))


def test_the_shipped_models_never_read_the_corpora_that_say_so():
    """The digest of the split is the one that their series recorded; windows of training are not in it."""
    for name, domain in (("python-source-unread", "code"), ("kjv-unread", "scripture")):
        (entry,) = registered_entries(name)
        assert entry.domain == domain
    left = list(registered_entries("python-source-unread")[0].load())
    whole = {document.id: document.text for document in registered_entries("python-source")[0].load()}
    assert 100 < len(left) < len(whole) and all(whole[document.id] == document.text for document in left)
    trained = split_documents(registered_entries("python-source")[0].load(), SplitRule(context=128))
    assert not {document.id for document in left} & set(trained.train)
    for series in ("bytes-moe", "lazy-relu", "lazy-swiglu"):
        content = open_series(series).trained
        assert content is not None
        recorded = content.data["domains"]["code"]
        assert recorded["digest"] == trained.digest
        assert recorded["train_documents"] == len(trained.train)
        assert recorded["validation_documents"] == len(trained.validation)


def test_another_python_is_told(monkeypatch):
    from sparsescope.activations.text import registered

    sources = {name: dict(table) for name, table in registered.sources().items()}
    sources["python-source-unread"]["split"] = "0" * 64
    monkeypatch.setattr(registered, "sources", lambda: sources)
    with pytest.raises(DependencyError, match="another version of Python"):
        list(registered_corpora()["python-source-unread"].load())


def test_fewer_tokens_of_a_document_give_more_documents():
    glass = ss.load("glassllm")
    few, many = (
        ss.corpus("python-source", tokens=2048, context=64, max_document_tokens=most).read_by(glass)
        for most in (512, 64)
    )
    assert len(few.documents) == 4 and len(many.documents) == 32
    text = ss.corpus("python-source", tokens=512, context=64, max_document_tokens=64)
    command = ss.run("activation_rank", glass, text).provenance["command"]
    assert command.endswith("--document-tokens 64"), "the command does not make this text again"
    with pytest.raises(SpecError, match="max_document_tokens"):
        ss.corpus("python-source", max_document_tokens=0)

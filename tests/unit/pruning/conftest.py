"""Small subjects, a text with padding, and pruning by hand."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sparsescope.models import Subject, load


@cache
def _shared(name: str) -> Subject:
    return load(name)


@pytest.fixture
def subject() -> Any:
    """Return a function that gives a subject by name. It is shared: do not write to its weights."""
    return _shared


@pytest.fixture(scope="session")
def by_hand() -> Any:
    """The module with pruning by hand (by_hand.py)."""
    name = "pruning_by_hand"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("by_hand.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def text(small_corpus: Any) -> Any:
    """900 tokens in windows of 64; the last window of each document is shorter."""
    llama = _shared("random-llama")
    found = small_corpus.tokenize(llama.tokenizer, llama.max_positions)
    assert found.pads()
    return found

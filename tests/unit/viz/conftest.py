"""Gives the tests of this folder the generator of synthetic results (tests/app/synthetic_results.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "app" / "synthetic_results.py"


@pytest.fixture(scope="session")
def synthetic():
    """The module with ``activation_result``, ``store_result`` and the hostile strings."""
    if "synthetic_results" not in sys.modules:
        spec = importlib.util.spec_from_file_location("synthetic_results", SOURCE)
        module = importlib.util.module_from_spec(spec)
        sys.modules["synthetic_results"] = module
        spec.loader.exec_module(module)
    return sys.modules["synthetic_results"]

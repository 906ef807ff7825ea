"""Shared by all tests: no model hub, small real and random subjects, loaded once for each process."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
# Other work on the machine makes drawing slow; it says nothing about the code
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
# Workers of pytest-xdist share the processors: with more threads than processors, threads wait for each other
# instead of computing. The processes that tests start take it over.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C in what it starts in the background; tests of interrupts, and their processes,
    # must not inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take longest, the longest first: a worker that gets one of them last works alone for a minute.
LONGEST = (
    "unit/reporting/test_notebook.py",
    "fault/test_kill.py",
    "frozen/test_runs.py",
    "unit/cli/test_errors.py",
    "unit/analysis/test_activation_sparsity.py",
    "contract/test_registry.py",
    "fault/test_disk.py",
    "fault/test_kill_training.py",
    "unit/analysis/test_weight_sparsity.py",
    "contract/test_architectures.py",
    "unit/cli/test_depth.py",
    "app/test_pages.py",
    "browser/test_hostile.py",
    "contract/test_family.py",
    "parity/test_pruning.py",
    "contract/test_plugin.py",
)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    order = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def llama():
    import sparsescope as ss

    return ss.load("random-llama")


@pytest.fixture(scope="session")
def glass():
    import sparsescope as ss

    return ss.load("glassllm")


@pytest.fixture(scope="session")
def tiny_series(tmp_path_factory):
    """The folder ``tiny`` of a series of three checkpoints, trained in a moment; a test that
    damages it takes a copy.
    """
    from sparsescope.training.recipe import Recipe
    from sparsescope.training.trainer import train

    recipe = {
        "name": "tiny",
        "title": "A tiny run",
        "license": "Apache-2.0",
        "steps": 8,
        "checkpoints": [0, 2, 8],
        "log_every": 4,
        "model": {
            "architecture": "ModularTransformerForCausalLM",
            "config": {
                "vocab_size": 12,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_attention_heads": 2,
            },
        },
        "data": {"kind": "modular_addition", "modulus": 11, "train_fraction": 0.5},
        "optimizer": {"learning_rate": 1e-2, "weight_decay": 1.0},
    }
    return train(Recipe.model_validate(recipe), tmp_path_factory.mktemp("series") / "tiny")


@pytest.fixture(scope="session")
def texts():
    """Six documents of different words in two domains."""
    from sparsescope.activations.corpus import Document

    sentence = "the quick brown fox jumps over a lazy dog while seven wizards box with gloves made of velvet"
    words = sentence.split()
    return [
        Document(
            f"doc{n}",
            "fox" if n % 2 else "dog",
            " ".join(words[(n * 7 + i * (n + 2)) % len(words)] for i in range(60)),
        )
        for n in range(6)
    ]


@pytest.fixture(scope="session")
def small_corpus(texts):
    import sparsescope as ss

    return ss.corpus(texts, tokens=900, context=64, name="small", deduplicate=False)


def helper(name, folder):
    """A module of helpers that lies beside the tests; loaded once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def lora():
    """The module with ``LoraLinear`` and ``put_into`` (tests/fixtures/lora.py)."""
    return helper("lora", "fixtures")


@pytest.fixture(scope="session")
def synthetic():
    """The module with ``activation_result``, ``store_result`` and the
    hostile strings (tests/app/synthetic_results.py).
    """
    return helper("synthetic_results", "app")


@pytest.fixture(scope="session")
def hostile_strings():
    """The module with ``STRINGS`` and ``result`` (tests/fixtures/hostile.py)."""
    return helper("hostile", "fixtures")


@pytest.fixture(scope="session")
def mutate():
    """The module that damages documents and bounds what reading them may cost (tests/fixtures/mutate.py)."""
    return helper("mutate", "fixtures")


@pytest.fixture(scope="session")
def browsers():
    """The module that finds or gets a browser (tests/fixtures/browsers.py)."""
    return helper("browsers", "fixtures")


@pytest.fixture(scope="session")
def ordinary():
    """The module with ``ordinary_user`` (tests/fixtures/ordinary.py)."""
    return helper("ordinary", "fixtures")


@pytest.fixture(scope="session")
def shown_commands():
    """The module with ``check_command`` (tests/fixtures/shown_commands.py)."""
    return helper("shown_commands", "fixtures")

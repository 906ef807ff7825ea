"""Where the curves of a training go: both packages are called as they want, and named where missing."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from sparsescope.errors import DependencyError, SpecError
from sparsescope.training.sinks import open_sink


def test_tensorboard_gets_every_number_and_writes_at_once(monkeypatch, tmp_path):
    told = []

    class Writer:
        def __init__(self, folder):
            told.append(("folder", folder))

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def flush(self):
            told.append("flush")

    module = ModuleType("tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    sink = open_sink(f"tensorboard:{tmp_path}")
    sink(7, {"a/fvu": 0.5, "a/l0": 32.0})
    assert told == [("folder", str(tmp_path)), ("a/fvu", 0.5, 7), ("a/l0", 32.0, 7), "flush"]


def test_weights_and_biases_gets_one_record_a_step(monkeypatch):
    told = []

    class Run:
        def log(self, values, step):
            told.append((values, step))

    module = ModuleType("wandb")
    module.init = lambda project: told.append(project) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    sink = open_sink("wandb:features:of a layer")
    sink(3, {"a/fvu": 0.25})
    assert told == ["features:of a layer", ({"a/fvu": 0.25}, 3)]


@pytest.mark.parametrize(
    ("target", "module"), [("tensorboard:x", "torch.utils.tensorboard"), ("wandb:x", "wandb")]
)
def test_a_package_that_is_missing_is_named(target, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match="not installed") as caught:
        open_sink(target)
    package = target.partition(":")[0]
    assert package in caught.value.what and f"pip install {package}" in caught.value.next_step


@pytest.mark.parametrize("target", ["", "csv:x", "tensorboard", "wandb:", ":x", "TensorBoard:x"])
def test_other_targets_are_refused(target):
    with pytest.raises(SpecError, match="cannot go there") as caught:
        open_sink(target)
    assert caught.value.got == repr(target) and "tensorboard:FOLDER" in caught.value.allowed

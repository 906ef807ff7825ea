"""Every public function of ``sparsescope.metrics`` has a worked example, and the examples are right."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import sparsescope.metrics as metrics

NAMES = [module.name for module in pkgutil.iter_modules(metrics.__path__)]
MODULES = [importlib.import_module(f"{metrics.__name__}.{name}") for name in NAMES]
FUNCTIONS = [
    pytest.param(function, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_public_function_has_an_example(function):
    found = doctest.DocTestParser().get_examples(function.__doc__)
    assert found, "add two to four lines that show what the number means"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_examples_hold(module, capsys):
    failed = doctest.testmod(module).failed
    assert not failed, capsys.readouterr().out


def test_there_are_functions_to_look_at():
    assert len(MODULES) > 10 and len(FUNCTIONS) > 80

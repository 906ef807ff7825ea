"""What the release of schema 1 wrote (tests/fixtures/frozen), and how its numbers are compared with those
of the present code.

On the machine of the fixtures (processor, instructions, packages, one thread) floats agree to 1e-12 relative
and all else is equal, apart from measured times. On another machine the last bits of a forward pass differ,
so a unit may fall on the other side of a threshold, equal units may change places and a bisection may end a
step apart. There ids, shapes, names, units and definitions are still equal; of the entries of a column one in
ten may differ, the others and the scalars agree to 1e-3 relative or 1e-4 (to 1e-2 in bfloat16).
``ATEN_CPU_CAPABILITY=avx2`` makes another machine of the one at hand.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
EXACT = 1e-12
#: Family and model of processors that call themselves as the one of the fixtures does, while the very release
#: that wrote them gives other last bits there.
OTHERS = {("25", "17")}


@pytest.fixture(autouse=True)
def one_thread():
    """As the fixtures were made: sums over another number of threads may differ in the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def freeze():
    """The module that wrote the fixtures (tests/fixtures/freeze.py)."""
    if "freeze" not in sys.modules:
        spec = importlib.util.spec_from_file_location("freeze", FIXTURES / "freeze.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["freeze"] = module
        spec.loader.exec_module(module)
    return sys.modules["freeze"]


@pytest.fixture(scope="session")
def frozen(freeze):
    """``frozen.json``."""
    return freeze.described()


@pytest.fixture
def same_machine(freeze, frozen):
    """Whether the last bits must be those of the fixtures."""
    return freeze.machine() == frozen["made_with"] and freeze.processor_model() not in OTHERS


@pytest.fixture
def same_weights(freeze, same_machine):
    """Tells whether the subject of a run has the weights it had.

    Random ones are drawn otherwise by processors without AVX2; a run of them is another run there,
    and holds nothing.
    """

    def same(run):
        if same_machine or not run["subject"].startswith("random-"):
            return True
        now = freeze.subject(run["subject"]).identity.weight_hash
        return (
            now
            == json.loads((freeze.FROZEN / "stored" / run["run"] / "manifest.json").read_text())["spec"][
                "subject"
            ]["weight_hash"]
        )

    return same


@pytest.fixture
def copied(freeze, tmp_path):
    """Copies a part of the fixtures, which tests must not write into."""

    def copy(part, to="copy"):
        return shutil.copytree(freeze.FROZEN / part, tmp_path / to, dirs_exist_ok=True)

    return copy


@pytest.fixture
def check_same(same_machine):
    """Checks a result of the present code against the frozen one."""

    def check(old, new):
        assert old.provenance["digest"] == new.provenance["digest"], "another run"
        assert meanings(old) == meanings(new)
        rtol = EXACT if same_machine else 1e-2 if old.provenance["subject"]["dtype"] == "bfloat16" else 1e-3
        if same_machine:
            assert notes(old) == notes(new)
        for name, scalar in old.scalars.items():
            mine, theirs = numbers(scalar), numbers(new.scalars[name])
            assert len(mine) == len(theirs) and close(mine, theirs, rtol).all(), (
                f"{name}: {mine}, now {theirs}"
            )
        for name, frame in old.tables.items():
            check_table(name, frame, new.tables[name], old.columns[name], rtol)
        for name, tensor in old.tensors.items():
            mine, theirs = tensor.array, new.tensors[name].array
            assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, name
            assert agrees(close(mine, theirs, rtol), rtol), f"tensor {name}"

    return check


def meanings(result):
    """The texts of a result that depend on no number; fields that a later release adds are left out."""
    scalars = [
        (s.name, s.unit, s.direction, s.definition, s.interval and s.interval.method)
        for s in result.scalars.values()
    ]
    columns = {
        name: [(c.name, c.kind, c.description, c.unit) for c in found]
        for name, found in result.columns.items()
    }
    return scalars, columns, {name: tensor.dims for name, tensor in result.tensors.items()}


def notes(result):
    """The notes, without the seconds that something took."""
    return [
        (note.severity, re.sub(r"\b[\d.]+ s\b", "... s", note.message), note.place) for note in result.notes
    ]


def numbers(scalar):
    """The value of a scalar and, where it has one, its interval."""
    i = scalar.interval
    return np.array([scalar.value] if i is None else [scalar.value, i.low, i.high, i.level, i.n], dtype=float)


def check_table(name, old, new, columns, rtol):
    """Rows in the same order; types of empty tables are free."""
    assert list(old.columns) == list(new.columns) and len(old) == len(new), f"table {name}"
    for column in columns if len(old) else ():
        mine, theirs = old[column.name], new[column.name]
        assert mine.dtype == theirs.dtype, f"{name}.{column.name}: {mine.dtype}, now {theirs.dtype}"
        # Which counts what rounds to zero
        if column.kind == "seconds" or (column.name == "collapsed" and rtol > EXACT):
            continue
        if mine.dtype.kind in "iu":
            found = (
                (mine == theirs).to_numpy()
                if rtol == EXACT
                else close(mine.to_numpy(), theirs.to_numpy(), rtol)
            )
        elif mine.dtype.kind == "f":
            found = close(mine.to_numpy(), theirs.to_numpy(), rtol)
        else:
            found = (mine.eq(theirs) | mine.isna() & theirs.isna()).to_numpy(dtype=bool)
        where = f"{name}.{column.name}"
        assert agrees(found, rtol), f"{where}: {mine[~found].tolist()[:5]}, now {theirs[~found].tolist()[:5]}"


def close(old, new, rtol):
    """Where two arrays agree, NaN with NaN."""
    return np.isclose(new, old, rtol=rtol, atol=0.0 if rtol == EXACT else 1e-4, equal_nan=True)


def agrees(found, rtol):
    """Whether enough entries agree: all of them, on another machine 90 %."""
    return bool(found.all()) if rtol == EXACT else found.size == 0 or float(found.mean()) >= 0.9

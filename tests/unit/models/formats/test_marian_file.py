"""The reader of Marian files: exact values, and a clear refusal of whatever does not add up."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsescope.errors import SubjectError
from sparsescope.models.formats.marian_file import parse_marian, read_marian

_spec = importlib.util.spec_from_file_location(
    "marian_writer", Path(__file__).parents[1] / "marian_writer.py"
)
assert _spec and _spec.loader
writer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(writer)

MATRIX = np.arange(-3, 3).reshape(2, 3)  # (in, out)
EMBEDDING = np.arange(-4, 4).reshape(4, 2)
VECTOR = np.array([[0.5, -1.25, 3.0]])
CONFIG = b'dim-emb: 2\ntransformer-preprocess: ""\nenc-depth: 6\n\0'


def entries(**changed: Any) -> dict[str, Any]:
    plain = {
        "Wemb": (writer.INTGEMM8, (4, 2), writer.intgemm_data(EMBEDDING, 4.0, transpose=False)),
        "encoder_l1_ffn_W1": (writer.INTGEMM8, (2, 3), writer.intgemm_data(MATRIX, 2.0)),
        "encoder_l1_ffn_b1": (writer.FLOAT32, (1, 3), writer.float_data(VECTOR)),
        "special:model.yml": (writer.INT8, (len(CONFIG),), CONFIG),
    }
    return {**plain, **changed}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(data: bytes) -> Path:
        path = tmp_path / "model.bin"
        path.write_bytes(data)
        return path

    return write


def test_values_are_those_that_were_written(write: Any) -> None:
    file = read_marian(write(writer.marian_bytes(entries())))
    assert list(file.weights) == ["Wemb", "encoder_l1_ffn_W1", "encoder_l1_ffn_b1"]
    np.testing.assert_array_equal(file.weights["Wemb"], EMBEDDING / 4)
    np.testing.assert_array_equal(file.weights["encoder_l1_ffn_W1"], MATRIX / 2)
    np.testing.assert_array_equal(file.weights["encoder_l1_ffn_b1"], VECTOR)
    assert all(array.dtype == np.float32 for array in file.weights.values())
    assert file.precision == "intgemm8"
    assert (file.option("dim-emb"), file.option("transformer-preprocess"), file.option("absent")) == (
        "2",
        "",
        None,
    )


def test_every_truncation_is_refused() -> None:
    whole = writer.marian_bytes(entries())
    for length in range(len(whole)):
        with pytest.raises(SubjectError, match="truncated or damaged"):
            parse_marian(whole[:length], "cut")


def test_bytes_behind_the_last_entry_are_refused(write: Any) -> None:
    with pytest.raises(SubjectError) as caught:
        read_marian(write(writer.marian_bytes(entries()) + b"x"))
    assert "1 bytes follow" in str(caught.value.got)


def test_any_changed_byte_of_the_head_is_read_or_refused_but_never_breaks() -> None:
    whole = writer.marian_bytes(entries())
    head = 16 + 4 * 32 + len("Wemb encoder_l1_ffn_W1 encoder_l1_ffn_b1 special:model.yml ") + 7 * 4 + 8
    refused = 0
    for position in range(head):
        for value in (0, 1, 0x7F, 0xFF):
            mutated = bytearray(whole)
            if mutated[position] == value:
                continue
            mutated[position] = value
            try:
                parse_marian(bytes(mutated), "mutated")
            except SubjectError:
                refused += 1
    assert refused > 2 * head  # what is read in spite of a change is another name


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"Wemb": (0x0402, (4, 2), bytes(16))}, "0x402"),
        ({"Wemb": (0x5101, (4, 2), bytes(16))}, "0x5101"),
        ({"Wemb": (0x0404, (4, 0), b"")}, "(4, 0)"),
        ({"Wemb": (0x0404, (4, -2), bytes(32))}, "(4, -2)"),
        ({"Wemb": (0x0404, (2**31 - 1,) * 8, bytes(32))}, "needs"),
        ({"Wemb": (0x0404, (1,) * 9, bytes(4))}, "9 dimensions"),
        ({"Wemb": (0x4101, (4, 2), writer.intgemm_data(EMBEDDING, 0.0))}, "multiplier"),
        ({"Wemb": (0x4101, (4, 2), writer.intgemm_data(EMBEDDING, float("nan")))}, "multiplier"),
        ({"Wemb": (0x4101, (4, 2), writer.intgemm_data(EMBEDDING, -1.0))}, "multiplier"),
        ({"Wemb": (0x0404, (4, 2), bytes(600))}, "needs 32 bytes"),
    ],
)
def test_entries_that_do_not_add_up_are_named(write: Any, change: dict[str, Any], got: str) -> None:
    with pytest.raises(SubjectError) as caught:
        read_marian(write(writer.marian_bytes(entries(**change))))
    assert got in str(caught.value.got) and "Wemb" in f"{caught.value.where} {caught.value.got}"


def test_a_name_that_is_there_twice_is_refused(write: Any) -> None:
    data = writer.marian_bytes(entries(Wemc=(writer.FLOAT32, (1, 1), bytes(4)))).replace(b"Wemc\0", b"Wemb\0")
    with pytest.raises(SubjectError) as caught:
        read_marian(write(data))
    assert "twice" in str(caught.value.got)


@pytest.mark.parametrize(
    "data", [b"", b"GGUF", struct.pack("<QQ", 2, 1), struct.pack("<QQ", 1, 0), struct.pack("<QQ", 1, 2**63)]
)
def test_other_files_are_refused(write: Any, data: bytes) -> None:
    with pytest.raises(SubjectError) as caught:
        read_marian(write(data))
    assert caught.value.next_step


def test_a_file_of_the_configuration_alone_is_refused(write: Any) -> None:
    only = {"special:model.yml": entries()["special:model.yml"]}
    with pytest.raises(SubjectError) as caught:
        read_marian(write(writer.marian_bytes(only)))
    assert "no weights" in str(caught.value.got)


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="cannot be read"):
        read_marian(tmp_path / "absent.bin")

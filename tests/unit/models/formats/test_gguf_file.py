"""GGUF files: dequantized weights in HF layout, precision of origin, mended tokenizer, damage."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from sparsescope.errors import SubjectError
from sparsescope.models import load

_spec = importlib.util.spec_from_file_location("gguf_fixture", Path(__file__).parents[1] / "conftest.py")
assert _spec is not None and _spec.loader is not None
fixture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixture)


@pytest.fixture(scope="module")
def loaded(tiny_gguf: Path) -> Any:
    return load(tiny_gguf)


def rounded(weight: np.ndarray) -> np.ndarray:
    """Return what Q8_0 keeps of a matrix."""
    kind = gguf.GGMLQuantizationType.Q8_0
    return gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)


def test_weights_and_precision_of_origin(loaded: Any, tmp_path: Path) -> None:
    weights = fixture.write_tiny_gguf(tmp_path / "again.gguf")
    assert loaded.origin_precision == "gguf:Q8_0" and loaded.dtype == "float32"
    for role, name in (("out", "down"), ("in", "up"), ("gate", "gate")):
        expected = rounded(weights[f"blk.0.ffn_{name}.weight"])
        assert np.array_equal(loaded.parameter(f"weight:blocks.0.mlp.{role}.weight").numpy(), expected)
    # GGUF stores q and k with rotary pairs side by side, HF in two halves.
    stored = (
        rounded(weights["blk.0.attn_q.weight"]).reshape(4, 8, 2, 64).transpose(0, 2, 1, 3).reshape(64, 64)
    )
    assert np.array_equal(loaded.parameter("weight:blocks.0.attn.q.weight").numpy(), stored)


def test_it_runs_and_saves_like_any_model(loaded: Any, tmp_path: Path) -> None:
    ids = loaded.tokenizer("hello", return_tensors="pt").input_ids
    reference = loaded.forward(ids, logits=True)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.forward(ids, logits=True), reference)
    assert again.identity.weight_hash == loaded.identity.weight_hash


def test_the_smollm_tokenizer_splits_digits_first(loaded: Any, tmp_path: Path) -> None:
    assert loaded.tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]
    fixture.write_tiny_gguf(tmp_path / "plain.gguf", pre_tokenizer="default")
    plain = load(tmp_path / "plain.gguf")
    assert plain.tokenizer.tokenize("x  12") == ["x", "Ġ", "Ġ", "1", "2"]
    assert loaded.tokenizer.model_max_length == 128


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -2000])
def test_a_truncated_file_is_refused(keep: int, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:keep])
    with pytest.raises(SubjectError, match=r"truncated or damaged|not a GGUF file"):
        load(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.gguf"
    path.write_bytes(b"\x89PNG" + bytes(100))
    with pytest.raises(SubjectError, match="not a GGUF file"):
        load(path)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "nonesuch")
    writer.add_tensor("weight", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SubjectError) as caught:
        load(tmp_path / "odd.gguf")
    assert "nonesuch" in str(caught.value)


def test_infinite_weights_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_gguf.read_bytes())
    data[-64 * 4 : -64 * 4 + 4] = np.float32(np.inf).tobytes()  # in the last norm
    path = tmp_path / "inf.gguf"
    path.write_bytes(bytes(data))
    with pytest.raises(SubjectError, match="NaN or infinite"):
        load(path)


def test_a_file_has_no_revisions(tiny_gguf: Path) -> None:
    with pytest.raises(SubjectError, match="no revisions"):
        load(tiny_gguf, revision="main")

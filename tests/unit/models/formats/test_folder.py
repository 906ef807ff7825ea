"""Local folders: loaded exactly, and every kind of damage has its own message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsescope.errors import SubjectError
from sparsescope.models import load

Damage = Callable[[Path], Any]


@pytest.fixture
def folder(saved_folder: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder, to be damaged."""
    return Path(shutil.copytree(saved_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_folder_gives_the_same_model(folder: Path) -> None:
    original, loaded = load("random-llama"), load(folder)
    assert loaded.identity.weight_hash == original.identity.weight_hash
    assert loaded.identity.config_hash == original.identity.config_hash
    assert (loaded.origin_precision, loaded.revision, loaded.dtype) == ("float32", None, "float32")
    assert (loaded.id, loaded.source) == ("model", str(folder))  # no path of this disk in the id
    ids = original.tokenizer("some text", return_tensors="pt").input_ids
    assert torch.equal(ids, loaded.tokenizer("some text", return_tensors="pt").input_ids)
    assert torch.equal(original.forward(ids, logits=True), loaded.forward(ids, logits=True))
    assert not any(module.training for module in loaded.model.modules())


def test_origin_and_compute_precision_are_told_apart(folder: Path) -> None:
    load("random-llama", dtype="bfloat16").model.save_pretrained(folder)
    subject = load(folder, dtype="float32")
    assert (subject.origin_precision, subject.dtype) == ("bfloat16", "float32")


def test_a_pickled_checkpoint_is_read_without_running_code(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load(folder).identity.weight_hash == load("random-llama").identity.weight_hash


def test_a_pickle_with_code_is_refused(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(SubjectError, match="weights cannot be read"):
        load(folder)
    assert not (folder / "ran").exists()


def set_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, :3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.gate_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def truncate_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00")


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def lose_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: edit_config(f, model_type="nonesuch"), "unknown to the installed transformers"),
        (lambda f: edit_config(f, auto_map={"AutoModel": "code.Model"}), "runs code from its own repository"),
        (lambda f: edit_config(f, hidden_size=128, head_dim=32), "weights"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (truncate, "weights cannot be read"),
        (truncate_header, "weights cannot be read"),
        (lose_shard, "1 of the weight files are missing"),
        (drop_tensor, "1 weights of the checkpoint are missing; they would be random"),
        (set_nan, "3 weights are NaN or infinite"),
        (remove_tokenizer, "has no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer cannot be read"),
    ],
)
def test_each_damage_has_its_own_message(damage: Damage, message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(SubjectError) as caught:
        load(folder)
    assert message in caught.value.what
    assert caught.value.where and caught.value.next_step


def test_missing_weights_name_the_first(folder: Path) -> None:
    drop_tensor(folder)
    with pytest.raises(SubjectError) as caught:
        load(folder)
    assert "model.layers.2.mlp.gate_proj.weight" in (caught.value.got or "")


def test_a_folder_has_no_revisions(folder: Path) -> None:
    with pytest.raises(SubjectError, match="no revisions"):
        load(folder, revision="main")


def test_a_folder_of_gguf_points_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(SubjectError) as caught:
        load(tmp_path)
    assert "model.gguf" in (caught.value.next_step or "")


def test_an_attention_implementation_that_is_missing_is_explained(folder: Path) -> None:
    for name in (str(folder), "random-llama", "glassllm"):
        with pytest.raises(SubjectError, match="attention implementation cannot be used"):
            load(name, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_implementation_is_recorded(attention: str, folder: Path) -> None:
    assert load(folder, attn_implementation=attention).identity.attn_implementation == attention


def test_loading_leaves_the_switches_of_transformers_alone(folder: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(folder)
    truncate(folder)
    with pytest.raises(SubjectError):
        load(folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsescope.models.formats import config_checks

    elements = sum(tensor.numel() for tensor in load(folder).model.parameters())
    monkeypatch.setattr(config_checks, "free_memory", lambda: 3 * elements)
    read = []
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: read.append(1))
    with pytest.raises(SubjectError, match="does not fit in the memory that is free") as refused:
        load(folder)
    assert f"{elements:,} weights in float32" in str(refused.value) and "bfloat16" in str(refused.value)
    assert not read
    monkeypatch.undo()
    monkeypatch.setattr(config_checks, "free_memory", lambda: 3 * elements)
    assert load(folder, dtype="bfloat16").dtype == "bfloat16"


def test_what_reading_experts_takes_besides_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest stack of experts twice: transformers builds it from the tensors of each expert."""
    from types import SimpleNamespace

    import torch

    from sparsescope.models.formats import config_checks

    def plan(*shapes: tuple[int, ...]) -> SimpleNamespace:
        made = [torch.empty(shape, device="meta") for shape in shapes]
        return SimpleNamespace(config=SimpleNamespace(), parameters=lambda: iter(made))

    monkeypatch.setattr(config_checks, "free_memory", lambda: 4 * (100 + 2 * 60) - 1)
    config_checks.check_memory(plan((60, 1), (40,)), "float32", "dense")
    with pytest.raises(SubjectError, match="does not fit") as refused:
        config_checks.check_memory(plan((3, 4, 5), (40,)), "float32", "mixture")
    assert "100 weights in float32, and stacked experts" in str(refused.value)
    monkeypatch.setattr(config_checks, "free_memory", lambda: 4 * (100 + 2 * 60))
    config_checks.check_memory(plan((3, 4, 5), (40,)), "float32", "mixture")


def test_free_memory_is_that_of_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsescope.models.formats import config_checks

    monkeypatch.setattr(config_checks, "_CGROUP", tmp_path)
    whole = config_checks.free_memory()
    assert whole > 2**28
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    assert config_checks.free_memory() == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert config_checks.free_memory() > 2**28

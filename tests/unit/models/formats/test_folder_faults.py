"""Faults of folders that transformers does not explain: adapters, names of wrapped weights, other shapes,
a tokenizer in the folder above.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsescope.errors import SubjectError
from sparsescope.models import load
from sparsescope.models.checkpoints import open_series
from sparsescope.models.doctor import examine


@pytest.fixture
def folder(saved_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename(folder: Path, change: Any, pickled: bool = False) -> None:
    path = folder / "model.safetensors"
    weights = {change(name): tensor for name, tensor in load_file(path).items()}
    if pickled:
        path.unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace(".mlp.", "._orig_mod.mlp."),
        lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    ],
    ids=["compiled", "parallel", "both", "compiled blocks", "checkpointed blocks"],
)
def test_names_of_wrappers_are_taken_off(change: Any, pickled: bool, folder: Path) -> None:
    rename(folder, change, pickled)
    found, wanted = load(folder).identity, load("random-llama").identity
    assert (found.weight_hash, found.config_hash) == (wanted.weight_hash, wanted.config_hash)


def test_weights_that_are_missing_beside_wrapped_names_are_still_refused(folder: Path) -> None:
    rename(folder, lambda name: f"_orig_mod.{name}".replace("layers.2.mlp.up_proj", "layers.2.mlp.lost"))
    with pytest.raises(SubjectError, match="1 weights of the checkpoint are missing"):
        load(folder)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_stale_vocabulary_size_says_what_to_edit(prefix: str, pickled: bool, folder: Path) -> None:
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    rename(folder, lambda name: prefix + name, pickled)
    edit_config(folder, vocab_size=rows + 8)
    with pytest.raises(
        SubjectError, match=r"weights of the checkpoint have another shape than its config.json says"
    ) as caught:
        load(folder)
    assert f"embed_tokens.weight [{rows}, " in (caught.value.got or "")
    assert f"embed_tokens.weight [{rows + 8}, " in (caught.value.allowed or "")
    assert f"vocab_size = {rows + 8} should be {rows}" in (caught.value.next_step or "")
    edit_config(folder, vocab_size=rows)
    assert load(folder).identity.weight_hash == load("random-llama").identity.weight_hash


def test_another_stale_size_says_what_to_edit(folder: Path) -> None:
    width = json.loads((folder / "config.json").read_text())["intermediate_size"]
    edit_config(folder, intermediate_size=width + 16)
    with pytest.raises(SubjectError, match="another shape") as caught:
        load(folder)
    assert f"intermediate_size = {width + 16} should be {width}" in (caught.value.next_step or "")


def adapter(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    raw = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.2-1B", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    save_file({"base_model.model.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")


def test_a_folder_with_an_adapter_alone_names_its_base_model(tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    with pytest.raises(SubjectError, match=r"has an adapter \(LoRA\), not a model") as caught:
        load(tmp_path / "lora")
    assert "kind LORA for the base model meta-llama/Llama-3.2-1B" in (caught.value.got or "")
    assert "merge_and_unload()" in (caught.value.next_step or "")


def test_a_model_with_an_adapter_beside_it_is_refused(folder: Path) -> None:
    adapter(folder)
    with pytest.raises(SubjectError, match="a model and an adapter"):
        load(folder)


def test_a_damaged_adapter_is_still_one(tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_config.json").write_text("[")
    with pytest.raises(SubjectError, match="not a model"):
        load(tmp_path / "lora")


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """The output of a Trainer: the tokenizer beside its checkpoints."""
    home = tmp_path / "run"
    for step in (250, 500, 750):
        shutil.copytree(folder, home / f"checkpoint-{step}", ignore=shutil.ignore_patterns("tokenizer*"))
    for path in folder.glob("tokenizer*"):
        shutil.copy(path, home)
    return home


def test_the_tokenizer_of_a_checkpoint_lies_in_the_folder_above(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, whole = load(run / "checkpoint-500"), load(folder)
    assert subject.tokenizer("some text").input_ids == whole.tokenizer("some text").input_ids
    assert examine(subject).notes == (
        "The tokenizer is that of the folder above, run: the checkpoint has none.",
    )
    assert examine(whole).notes == ()
    monkeypatch.chdir(run)
    assert load("checkpoint-500").tokenizer is not None
    (run / "checkpoint-500").rename(
        run / "best"
    )  # no name of a checkpoint: whose tokenizer it is is not known
    with pytest.raises(SubjectError, match="has no tokenizer"):
        load(run / "best")


def test_a_series_says_which_checkpoints_are_the_same(run: Path) -> None:
    from sparsescope.runner.roles import series as role

    series = open_series(run)
    assert role.notes(series) == () and series.repeated == ()  # nothing is hashed for the note
    role.identity(series)
    assert series.repeated == ((250, 500, 750),)
    ((severity, message),) = role.notes(series)
    assert severity == "warning" and "3 of the 3 checkpoints of run" in message
    assert "steps 250, 500, 750" in message


def test_a_trained_series_says_it_by_its_digests() -> None:
    from sparsescope.runner.roles import series as role

    series = open_series("lazy-relu")
    assert len(series.hashes) == len(series) and role.notes(series) == ()
    first, second = series.steps[:2]
    series.hashes[second] = series.hashes[first]
    assert f"steps {first}, {second}" in role.notes(series)[0][1]

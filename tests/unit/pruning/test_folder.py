"""A pruned model as a plain folder: it loads as any other with its zeros in place, or it is not there."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import sparsescope as ss
from sparsescope.errors import ArtifactError, SparsescopeError, SpecError, SubjectError
from sparsescope.pruning import NM, MaskSet, PackedMask, prove_folder, prune, save_pruned
from sparsescope.pruning import folder as saving
from sparsescope.pruning.masks import FACTS, MASKS

IDS = torch.tensor([[5, 9, 2, 11, 30, 7, 1, 3]])


def tiny_gguf(path):
    """The writer of the tests of the models layer."""
    place = Path(__file__).parents[1] / "models" / "conftest.py"
    spec = importlib.util.spec_from_file_location("models_conftest", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_tiny_gguf(path)
    return ss.load(path)


@pytest.fixture(scope="module")
def sparse():
    return prune(ss.load("random-llama"), sparsity=0.5)


@pytest.fixture(scope="module")
def good(sparse, tmp_path_factory):
    """A folder that was saved. Copy it before damaging it."""
    folder = tmp_path_factory.mktemp("good") / "model"
    save_pruned(*sparse, folder, command="sparsescope prune random-llama")
    return folder


@pytest.fixture
def copied(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "model"))


def plain_logits(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("random-llama", "float32"),
        ("random-gpt2", "float32"),  # Conv1D, tied embeddings
        ("random-olmoe", "float32"),  # experts in one tensor, on the disk one by one
        ("random-llama", "bfloat16"),
        ("glassllm", "float32"),
        ("gguf", "float32"),
    ],
)
def test_plain_transformers_computes_the_same(name, dtype, tmp_path):
    subject = tiny_gguf(tmp_path / "tiny.gguf") if name == "gguf" else ss.load(name)
    if dtype == "bfloat16":  # rounded as transformers rounds, which leaves rotary frequencies in float32
        subject.model.save_pretrained(tmp_path / "dense")
        subject.tokenizer.save_pretrained(tmp_path / "dense")
        subject = ss.load(tmp_path / "dense", dtype=dtype)
    sparse, masks = prune(subject, sparsity=0.4)
    saved = save_pruned(sparse, masks, tmp_path / "model")
    found = plain_logits(tmp_path / "model", getattr(torch, dtype))
    assert torch.equal(found, sparse.forward(IDS, logits=True))
    assert not torch.equal(found, subject.forward(IDS, logits=True))
    assert (saved.dtype, saved.pruned) == (dtype, masks.weights - masks.kept)
    again = ss.load(tmp_path / "model", dtype=dtype)
    assert again.identity.weight_hash == sparse.identity.weight_hash
    assert again.identity.config_hash == sparse.identity.config_hash
    for name, mask in MaskSet.load(tmp_path / "model").masks.items():
        assert mask == masks[name]
        assert not bool(again.parameter(name)[~mask.tensor()].any())


def test_zeros_stand_in_the_file_where_the_masks_say(good, sparse):
    stored = load_file(good / "model.safetensors")
    for layer in range(3):
        for key, role in {"self_attn.q_proj": "attn.q", "mlp.down_proj": "mlp.out"}.items():
            mask = sparse[1][f"weight:blocks.{layer}.{role}.weight"].array()
            zero = (stored[f"model.layers.{layer}.{key}.weight"] == 0).numpy()
            assert (zero == ~mask).all()


def test_what_was_counted(tmp_path):
    subject = ss.load("random-gpt2", dtype="bfloat16")
    sparse, masks = prune(subject, sparsity=0.5)
    saved = save_pruned(sparse, masks, tmp_path / "model")
    scope = sum(site.shape[0] * site.shape[1] for site in subject.parameter_sites("weight:blocks.*.*"))
    assert (saved.scope_weights, saved.pruned) == (scope, scope // 2)
    assert saved.parameters == sum(p.numel() for p in sparse.model.parameters())  # the table once
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert "lm_head.weight" not in stored
    zeros = sum(int((tensor == 0).sum()) for tensor in stored.values())
    assert saved.zeros == zeros > saved.pruned, "biases that start at zero count too"
    assert saved.bytes_zeros == 2 * zeros
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert saved.bytes_weights == size and saved.bytes_sparsity == 2 * zeros / size
    assert saved.bytes_packed == size - 2 * scope + 2 * (scope // 2) + scope // 8
    assert saved.bytes_masks == scope // 8
    assert {role.role for role in saved.roles} == {
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.o",
        "mlp.in",
        "mlp.out",
    }
    assert sum(role.pruned for role in saved.roles) == saved.pruned


def test_two_of_four_is_packed_with_two_bits_for_each_value(tmp_path):
    sparse, masks = prune(ss.load("random-llama", dtype="bfloat16"), pattern=NM(keep=2, group=4))
    saved = save_pruned(sparse, masks, tmp_path / "model")
    dense = 2 * saved.scope_weights
    assert saved.bytes_packed == saved.bytes_weights - dense + dense * 9 // 16  # 56.25 %, as NVIDIA stores it
    assert "2 bits" in saved.packed_form


def test_masks_and_origin_lie_beside_the_model(good, sparse):
    masks = MaskSet.load(good)
    assert masks.masks == dict(sparse[1].masks)
    facts = masks.facts
    parent = ss.load("random-llama").identity
    assert facts["parent"]["id"] == "random-llama" and facts["parent"]["revision"] == parent.revision
    assert facts["parent"]["weight_hash"] == parent.weight_hash
    assert facts["parent"]["origin_precision"] == "float32"
    assert facts["command"] == "sparsescope prune random-llama" and facts["criterion"] == "magnitude"
    assert facts["versions"].keys() == {"python", *saving._PACKAGES}
    assert facts["saved"]["weight_hash"] == sparse[0].identity.weight_hash
    listed = {path.name for path in good.iterdir()} - {FACTS}
    assert set(facts["saved"]["files"]) == listed >= {"config.json", "model.safetensors", "tokenizer.json"}
    modes = {path.stat().st_mode for path in good.iterdir()}
    assert len(modes) == 1, "safetensors would keep its files for their owner"


def test_the_model_in_memory_stays_as_it_is(sparse, tmp_path):
    model = ss.load("random-llama").model
    tokenizer = sparse[0].tokenizer
    subject = ss.wrap(model, tokenizer)
    masks = MaskSet({"weight:blocks.0.attn.q.weight": sparse[1]["weight:blocks.0.attn.q.weight"]})
    masks.apply(subject)
    before, hashed = dict(vars(model.config)), subject.identity
    saved = save_pruned(subject, masks, tmp_path / "model")
    assert vars(model.config) == before and subject.identity == hashed
    assert saved.pruned == masks.weights - masks.kept


def test_kept_weights_that_are_zero_are_counted(sparse, tmp_path):
    subject = sparse[0].copy()
    name = "weight:blocks.0.attn.q.weight"
    keep = sparse[1][name].tensor()
    with torch.no_grad():
        matrix = subject.parameter(name)
        places = keep.nonzero()[:3]
        matrix[places[:, 0], places[:, 1]] = torch.tensor([0.0, -0.0, 0.0])
    saved = save_pruned(subject, sparse[1], tmp_path / "model")
    assert saved.kept_zeros == 3
    proofs = {proof.what: proof for proof in prove_folder(tmp_path / "model")}
    assert proofs["zeros"].ok and "3 weights that the masks keep" in proofs["zeros"].detail


# -- nothing is written ----------------------------------------------------------------------------


def refused(tmp_path, kind, what, *call, **more):
    """The error of a call that must leave the folder as it was."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind) as caught:
        save_pruned(*call, **more)
    assert what in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    return str(caught.value)


def test_a_folder_with_something_in_it_is_left_alone(sparse, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_check_zeros", None)  # found out before any work
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    refused(tmp_path, SpecError, "the folder is not empty", *sparse, tmp_path / "full")
    refused(tmp_path, SpecError, "there is a file of this name", *sparse, tmp_path / "full" / "notes.txt")
    refused(tmp_path, SpecError, "cannot be made there", *sparse, tmp_path / "full" / "notes.txt" / "x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(tmp_path, SpecError, "there is a file of this name", *sparse, tmp_path / "link")
    refused(tmp_path, SpecError, "no file can have this name", *sparse, tmp_path / ("x" * 300))
    refused(tmp_path, SpecError, "has no name", *sparse, " ")


def test_an_empty_folder_is_taken(sparse, tmp_path):
    (tmp_path / "empty").mkdir()
    save_pruned(*sparse, tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"] and (tmp_path / "empty" / MASKS).is_file()


def test_masks_that_do_not_fit(sparse, tmp_path):
    target = tmp_path / "model"
    dense = ss.load("random-llama")
    said = refused(
        tmp_path, SpecError, "weights that the masks remove are not zero", dense, sparse[1], target
    )
    assert "69,120 weights in 21 of 21 matrices" in said
    other = MaskSet({"weight:blocks.3.attn.q.weight": PackedMask.of(torch.ones(64, 64))})
    refused(tmp_path, SpecError, "no matrix of this name", dense, other, target)
    other = MaskSet({"weight:blocks.0.attn.q.weight": PackedMask.of(torch.ones(8, 8))})
    refused(tmp_path, SpecError, "another shape than its matrix", dense, other, target)
    refused(tmp_path, SpecError, "there are no masks", dense, MaskSet({}), target)


def test_models_that_no_folder_could_hold(sparse, tmp_path, monkeypatch):
    target = tmp_path / "model"
    bare = ss.wrap(sparse[0].model)
    refused(tmp_path, SubjectError, "without tokenizer", bare, sparse[1], target)
    grokking = ss.load("grokking-relu")
    masks = prune(grokking, sparsity=0.5)
    refused(tmp_path, SubjectError, "plain transformers could not load", *masks, target)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    refused(tmp_path, ArtifactError, "not enough room", *sparse, target)


@pytest.mark.parametrize("step", ["model", "masks"])
def test_a_disk_that_refuses_leaves_nothing(sparse, tmp_path, monkeypatch, step):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if step == "masks":
        monkeypatch.setattr(MaskSet, "save", full)
    else:
        monkeypatch.setattr(type(sparse[0].tokenizer), "save_pretrained", full)
    said = refused(tmp_path, ArtifactError, "cannot be saved", *sparse, tmp_path / "model")
    assert "No space left on device" in said


def test_an_interrupt_leaves_nothing(sparse, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(MaskSet, "save", stop)
    refused(tmp_path, KeyboardInterrupt, "", *sparse, tmp_path / "model")


def test_what_comes_back_otherwise_is_not_kept(sparse, tmp_path, monkeypatch):
    write, name = saving._write_model, "model.layers.1.mlp.down_proj.weight"

    def spoiled(change):
        def spoil(subject, folder):
            write(subject, folder)
            stored = load_file(folder / "model.safetensors")
            change(stored)
            save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})

        return spoil

    def lose(stored):
        places = (stored[name] == 0).nonzero()[:5]
        stored[name][places[:, 0], places[:, 1]] = 1.0

    def shift(stored):
        stored["model.norm.weight"] += 1.0

    def round_off(stored):
        for key in stored:
            stored[key] = stored[key].bfloat16()

    monkeypatch.setattr(saving, "_write_model", spoiled(lose))
    said = refused(tmp_path, ArtifactError, "not the pruned model", *sparse, tmp_path / "model")
    assert "weight:blocks.1.mlp.out.weight" in said and "5 removed weights are not zero" in said
    monkeypatch.setattr(saving, "_write_model", spoiled(shift))
    said = refused(tmp_path, ArtifactError, "not the pruned model", *sparse, tmp_path / "model")
    assert "model.norm.weight" in said and "other numbers" in said
    monkeypatch.setattr(saving, "_write_model", spoiled(round_off))
    refused(tmp_path, ArtifactError, "not the pruned model", *sparse, tmp_path / "model")
    monkeypatch.setattr(saving, "_write_model", spoiled(lambda stored: stored.pop(name)))
    refused(tmp_path, SubjectError, "are missing", *sparse, tmp_path / "model")


# -- the folder as a subject -----------------------------------------------------------------------


def test_the_subject_says_that_it_was_pruned_and_from_what(sparse, good, tmp_path):
    subject = ss.load(good)
    assert subject.origin_precision == "float32 (pruned from float32)"
    (note,) = [text for severity, text in subject.notes if "pruned model" in text]
    assert "stored as float32" in note and FACTS in note
    quantized, masks = prune(tiny_gguf(tmp_path / "tiny.gguf"), sparsity=0.5)
    save_pruned(quantized, masks, tmp_path / "model")
    again = ss.load(tmp_path / "model")
    assert again.origin_precision == "float32 (pruned from gguf:Q8_0)"
    assert any("as gguf:Q8_0;" in text for _, text in again.notes)
    twice, masks = prune(again, sparsity=0.6)
    save_pruned(twice, masks, tmp_path / "twice")
    third = ss.load(tmp_path / "twice")
    assert third.origin_precision == "float32 (pruned from float32 (pruned from gguf:Q8_0))"


def test_a_folder_without_masks_is_what_it_was(copied):
    (copied / FACTS).unlink()
    (copied / MASKS).unlink()
    plain = ss.load(copied)
    assert plain.origin_precision == "float32" and not any("pruned" in text for _, text in plain.notes)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"facts": 3}', '{"facts": {"parent": {"origin_precision": "<b>"}}}']
)
def test_a_damaged_record_hides_no_model(copied, content):
    (copied / FACTS).write_text(content)
    assert ss.load(copied).origin_precision == "float32 (pruned from an unknown precision)"


# -- proof -----------------------------------------------------------------------------------------


def failed(folder):
    return {proof.what: proof.detail for proof in prove_folder(folder) if not proof.ok}


def edit_facts(folder, **changes):
    content = json.loads((folder / FACTS).read_text())
    content["facts"].update(changes)
    (folder / FACTS).write_text(json.dumps(content))


def test_a_good_folder_is_proved(good):
    proofs = {proof.what: proof for proof in prove_folder(good)}
    assert list(proofs) == ["masks", "files", "count", "pattern", "zeros"]
    assert all(proof.ok for proof in proofs.values())
    assert "69,120 of 138,240" in proofs["count"].detail and "as asked (50 %)" in proofs["count"].detail
    assert "all 69,120 removed weights are zero" in proofs["zeros"].detail


def test_weights_that_changed_are_found(copied):
    stored = load_file(copied / "model.safetensors")
    matrix = stored["model.layers.2.self_attn.o_proj.weight"]
    lost = int((matrix == 0).sum())
    stored["model.layers.2.self_attn.o_proj.weight"] = matrix + 0.5
    save_file(stored, copied / "model.safetensors", metadata={"format": "pt"})
    found = failed(copied)
    assert set(found) == {"files", "zeros"}
    assert "model.safetensors has another checksum" in found["files"]
    assert f"{lost:,} of 69,120 removed weights are not zero, in 1 of 21 matrices" in found["zeros"]
    assert "50.0 % -> 48.5 %" in found["zeros"]


def test_files_that_are_gone_or_cut_are_found(copied):
    (copied / "tokenizer_config.json").unlink()
    (copied / "generation_config.json").write_text("{}")
    found = failed(copied)
    assert set(found) == {"files"}
    assert "tokenizer_config.json is missing" in found["files"] and "has 2 bytes" in found["files"]
    (copied / "model.safetensors").unlink()
    assert set(failed(copied)) == {"files", "model"}


def test_a_record_that_names_files_elsewhere(copied):
    facts = json.loads((copied / FACTS).read_text())["facts"]
    (copied.parent / "secret").write_bytes(b"")
    empty = {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    files = {"../secret": empty, "config.json": 3}
    edit_facts(copied, saved={**facts["saved"], "files": files})
    assert (
        "2 of 2 files" in failed(copied)["files"] and "is no file of this folder" in failed(copied)["files"]
    )


def test_masks_that_are_damaged_are_found(copied):
    (copied / MASKS).write_bytes((copied / MASKS).read_bytes()[:-9])
    assert set(failed(copied)) == {"masks"}
    (copied / FACTS).unlink()
    with pytest.raises(SparsescopeError, match="the folder has no masks"):
        prove_folder(copied)


@pytest.mark.parametrize(
    ("facts", "what", "said"),
    [
        ({"sparsity": 0.4}, "count", "not as asked (40 %)"),
        ({"pattern": "2:4"}, "pattern", "2:4 does not hold in 21 of 21 matrices"),
        ({"pattern": "rows"}, "pattern", "rows does not hold"),
        ({"pattern": "of the future"}, "pattern", "unknown pattern"),
        ({"saved": {"pruned": 69_121}}, "count", "but 69,121 when it was saved"),
    ],
)
def test_masks_that_are_not_what_was_asked_for(copied, facts, what, said):
    edit_facts(copied, **facts)
    assert said in failed(copied)[what]


def test_two_of_four_is_proved(tmp_path):
    save_pruned(*prune(ss.load("random-llama"), pattern="2:4"), tmp_path / "model")
    proofs = {proof.what: proof for proof in prove_folder(tmp_path / "model")}
    assert (
        all(proof.ok for proof in proofs.values()) and proofs["pattern"].detail == "2:4 holds in every matrix"
    )

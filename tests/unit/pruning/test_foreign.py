"""Masks of other tools: their files are written here by hand, and read back under our names."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils import prune as torch_prune

import sparsescope as ss
from sparsescope.errors import SpecError, SubjectError
from sparsescope.pruning import prune, read_masks, save_pruned
from sparsescope.pruning.masks import MASKS

Q, OUT = "weight:blocks.0.attn.q.weight", "weight:blocks.0.mlp.out.weight"


@pytest.fixture(scope="module")
def subject():
    return ss.load("random-llama")


@pytest.fixture(scope="module")
def hooked(subject):
    """The model with the hooks of torch.nn.utils.prune on two matrices and the output head."""
    model = copy.deepcopy(subject.model)
    layer = model.model.layers[0]
    torch_prune.l1_unstructured(layer.self_attn.q_proj, "weight", amount=0.5)
    torch_prune.random_structured(layer.mlp.down_proj, "weight", amount=0.25, dim=0)
    torch_prune.l1_unstructured(model.lm_head, "weight", amount=0.1)
    return model


def check_hooked(masks, hooked):
    layer = hooked.model.layers[0]
    assert set(masks) == {Q, OUT}
    assert np.array_equal(masks[Q].array(), layer.self_attn.q_proj.weight_mask.bool().numpy())
    assert np.array_equal(masks[OUT].array(), layer.mlp.down_proj.weight_mask.bool().numpy())
    assert masks[Q].sparsity == 0.5 and masks[OUT].sparsity == 0.25
    assert masks.facts["format"] == "torch.nn.utils.prune"
    (note,) = masks.notes
    assert "1 masks were left out" in note and "lm_head.weight" in note


# -- torch.nn.utils.prune --------------------------------------------------------------------------


def test_a_module_with_its_hooks_on(subject, hooked):
    check_hooked(read_masks(hooked, subject), hooked)


@pytest.mark.parametrize("form", ["state", "wrapped", "nested", "pt", "safetensors"])
def test_a_state_dict_in_any_form(subject, hooked, tmp_path, form):
    state = {**hooked.state_dict(), "model.causal_mask": torch.full((4, 4), -1.0)}  # a buffer, and no mask
    source = state
    if form == "wrapped":
        source = {f"module._orig_mod.{key}": value for key, value in state.items()}
    if form in ("nested", "pt"):
        source = tmp_path / "pruned.pt"
        torch.save({"epoch": 3, "state_dict": state} if form == "nested" else state, source)
    if form == "safetensors":
        source = tmp_path / "pruned.safetensors"
        save_file({key: value.clone().contiguous() for key, value in state.items()}, source)
    check_hooked(read_masks(source, subject), hooked)


def test_conv1d_is_turned(tmp_path):
    subject = ss.load("random-gpt2")
    model = copy.deepcopy(subject.model)
    torch_prune.l1_unstructured(model.transformer.h[1].mlp.c_fc, "weight", amount=0.5)
    torch_prune.l1_unstructured(model.transformer.h[1].attn.c_attn, "weight", amount=0.5)
    masks = read_masks(model, subject)
    stored = model.transformer.h[1].mlp.c_fc.weight_mask.bool().numpy()
    assert np.array_equal(masks["weight:blocks.1.mlp.in.weight"].array(), stored.T)
    fused = model.transformer.h[1].attn.c_attn.weight_mask.bool().numpy().T
    for number, key in enumerate("qkv"):
        part = fused[64 * number : 64 * (number + 1)]
        assert np.array_equal(masks[f"weight:blocks.1.attn.{key}.weight"].array(), part)


def test_experts_in_one_tensor():
    subject = ss.load("random-olmoe")
    model = copy.deepcopy(subject.model)
    experts = model.model.layers[0].mlp.experts
    torch_prune.l1_unstructured(experts, "gate_up_proj", amount=0.5)
    masks = read_masks(model, subject)
    width = experts.gate_up_proj_mask.shape[1] // 2
    stored = experts.gate_up_proj_mask[5].bool().numpy()
    assert np.array_equal(masks["weight:blocks.0.mlp.experts.5.gate.weight"].array(), stored[:width])
    assert np.array_equal(masks["weight:blocks.0.mlp.experts.5.in.weight"].array(), stored[width:])


def test_without_a_model_names_stay(hooked):
    masks = read_masks(hooked)
    assert set(masks) == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "lm_head.weight",
    }
    layer = torch_prune.l1_unstructured(torch.nn.Linear(4, 4), "bias", amount=2)
    with pytest.raises(SpecError, match="no mask in it is that of a matrix"):
        read_masks(layer)


class Trap:
    """Pickled code that leaves a file where it runs."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_no_pickled_code_runs(subject, tmp_path):
    torch.save({"a": Trap(tmp_path / "ran")}, tmp_path / "trap.pt")
    with pytest.raises(SpecError, match="cannot be read"):
        read_masks(tmp_path / "trap.pt", subject)
    assert not (tmp_path / "ran").exists()


# -- compressed-tensors ----------------------------------------------------------------------------


def by_hand(weight):
    """The tensors of ``sparse-bitmask`` for one matrix, bit by bit."""
    rows, columns = weight.shape
    bits = torch.zeros(rows, (columns + 7) // 8, dtype=torch.uint8)
    values = []
    for row in range(rows):
        for column in range(columns):
            if weight[row, column] != 0:
                bits[row, column // 8] += 1 << column % 8
                values.append(weight[row, column])
    counts = (weight != 0).sum(1)
    return {
        "compressed": torch.stack(values),
        "bitmask": bits,
        "shape": torch.tensor([rows, columns]),
        "row_offsets": counts.cumsum(0) - counts,
    }


def compressed(folder, weights, joint="."):
    """A folder as compressed-tensors writes it: some matrices packed, the rest plain."""
    folder.mkdir()
    tensors = {"model.norm.weight": torch.ones(4)}
    for name, weight in weights.items():
        tensors |= {f"{name}{joint}{part}": tensor for part, tensor in by_hand(weight).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj"]
)
def test_a_bitmask_checkpoint(subject, tmp_path, name):
    sparse, masks = prune(subject, sparsity=0.37)
    folder = compressed(tmp_path / "model", {name: sparse.parameter(Q), "lm_head.weight": torch.eye(9)})
    found = read_masks(folder, subject)
    assert dict(found.masks) == {Q: masks[Q]} and found.facts["format"] == "compressed-tensors"
    assert "lm_head.weight" in found.notes[0]
    assert dict(read_masks(folder / "model.safetensors", subject).masks) == {Q: masks[Q]}


def test_a_bitmask_whose_rows_end_within_a_byte(tmp_path):
    weight = torch.randn(5, 13, generator=torch.Generator().manual_seed(1))
    weight[weight.abs() < 0.6] = 0
    found = read_masks(compressed(tmp_path / "model", {"layer": weight}))
    assert np.array_equal(found["layer.weight"].array(), (weight != 0).numpy())


def test_experts_one_by_one(tmp_path):
    subject = ss.load("random-olmoe")
    sparse, masks = prune(subject, sparsity=0.5)
    names = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
    weights = {
        f"model.layers.1.mlp.experts.3.{stored}.weight": sparse.parameter(
            f"weight:blocks.1.mlp.experts.3.{ours}.weight"
        )
        for ours, stored in names.items()
    }
    found = read_masks(compressed(tmp_path / "model", weights), subject)
    assert set(found) == {f"weight:blocks.1.mlp.experts.3.{ours}.weight" for ours in names}
    assert all(found[name] == masks[name] for name in found)


def test_a_bitmask_that_is_damaged(subject, tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"
    parts = by_hand(prune(subject, sparsity=0.5)[0].parameter(Q))
    for change, what in (
        ({"compressed": parts["compressed"][:-1]}, "keeps another number of weights than are stored"),
        ({"bitmask": parts["bitmask"][:, :-1].contiguous()}, "does not fit its shape"),
        ({"shape": torch.tensor([64])}, "does not fit its shape"),
    ):
        save_file(
            {f"{name}.{part}": t for part, t in {**parts, **change}.items()}, tmp_path / "x.safetensors"
        )
        with pytest.raises(SpecError, match=what):
            read_masks(tmp_path / "x.safetensors", subject)


# -- files of masks --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj.weight"])
def test_masks_by_module(subject, tmp_path, suffix, name):
    keep = np.random.default_rng(0).random((64, 64)) < 0.7
    path = tmp_path / f"masks.{suffix}"
    if suffix == "npz":
        np.savez(path, **{name: keep.astype(np.float32)})
    else:
        save_file({name: torch.from_numpy(keep)}, path)
    found = read_masks(path, subject)
    assert list(found) == [Q] and np.array_equal(found[Q].array(), keep) and found.notes == ()


def test_masks_with_other_values_are_refused(subject, tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    np.savez(tmp_path / "scores.npz", **{name: np.full((64, 64), 0.5)})
    with pytest.raises(SpecError, match="other values than 0 and 1"):
        read_masks(tmp_path / "scores.npz", subject)
    np.savez(tmp_path / "objects.npz", **{name: np.array([{}], dtype=object)})
    with pytest.raises(SpecError, match="cannot be read"):
        read_masks(tmp_path / "objects.npz", subject)
    save_file({name: torch.randn(64, 64)}, tmp_path / "weights.safetensors")
    with pytest.raises(SpecError, match="weights, not masks"):
        read_masks(tmp_path / "weights.safetensors", subject)


def test_masks_of_another_model(subject, tmp_path):
    np.savez(tmp_path / "shape.npz", **{"model.layers.0.self_attn.q_proj": np.ones((64, 32), bool)})
    with pytest.raises(SpecError, match="another shape than its parameter") as caught:
        read_masks(tmp_path / "shape.npz", subject)
    assert "64 x 64" in str(caught.value) and "64 x 32" in str(caught.value)
    np.savez(tmp_path / "names.npz", **{"encoder.layer.0.dense": np.ones((64, 64), bool)})
    with pytest.raises(SpecError, match="none of their names") as caught:
        read_masks(tmp_path / "names.npz", subject)
    assert "encoder.layer.0.dense" in str(caught.value) and "self_attn" in str(caught.value)


# -- our own folders, plain zeros, nothing ---------------------------------------------------------


def test_a_folder_of_ours(subject, tmp_path):
    sparse, masks = prune(subject, sparsity=0.5)
    save_pruned(sparse, masks, tmp_path / "model")
    for source in (tmp_path / "model", str(tmp_path / "model" / MASKS)):
        found = read_masks(source)
        assert dict(found.masks) == dict(masks.masks) and found.facts["criterion"] == "magnitude"


def test_plain_zeros_are_a_mask(subject):
    sparse, masks = prune(subject, sparsity=0.5)
    found = read_masks(sparse)
    assert dict(found.masks) == dict(masks.masks) and found.facts["format"] == "plain zeros"
    assert found.notes == ()
    with pytest.raises(SubjectError, match="no weight of this model is zero"):
        read_masks(subject)
    rounded = prune(subject, sparsity=0.002)[0]
    assert "does not look pruned" in read_masks(rounded).notes[0]


def test_what_holds_no_masks(subject, tmp_path):
    (tmp_path / "folder").mkdir()
    subject.model.save_pretrained(tmp_path / "dense")
    (tmp_path / "x.txt").write_text("text")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    np.savez(tmp_path / "empty.npz")
    for source, what in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "folder", "hold no masks"),
        (tmp_path / "dense", "hold no masks"),
        (tmp_path / "x.txt", "ends with .txt"),
        (tmp_path / "broken.safetensors", ""),
        (tmp_path / "broken.npz", "cannot be read"),
        (tmp_path / "empty.npz", "no tensor in it"),
        (subject.model, "weights, not masks"),
        (7, "neither a path nor a model"),
    ):
        with pytest.raises(SpecError) as caught:
            read_masks(source, subject)
        assert what in str(caught.value) and (what == "" or "next:" in str(caught.value)), str(caught.value)

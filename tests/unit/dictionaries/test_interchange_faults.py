"""Files that cannot be read exactly: each fault has a message that names file and field or tensor."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsescope.dictionaries import load_dictionary, load_saelens
from sparsescope.errors import ArtifactError, SpecError

HERE = Path(__file__).resolve().parents[2] / "fixtures" / "dictionaries" / "read"
WEIGHTS = "sae_weights.safetensors"


def copied(tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(HERE / name, folder)
    return folder


def fields(**changes):
    """An edit of a configuration; dots lead into it, ... takes a field away."""

    def edit(folder):
        path = next(folder / file for file in ("cfg.json", "config.json") if (folder / file).exists())
        config = json.loads(path.read_text())
        for key, value in changes.items():
            *way, last = key.split("__")
            part = config
            for step in way:
                part = part[step]
            if value is ...:
                del part[last]
            else:
                part[last] = value
        path.write_text(json.dumps(config))

    return edit


def tensors(change, file=WEIGHTS):
    """An edit of tensors."""

    def edit(folder):
        found = load_file(folder / file)
        change(found)
        save_file({key: value.contiguous() for key, value in found.items()}, folder / file)

    return edit


def bytes_of(file, change):
    def edit(folder):
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return edit


def gone(file):
    return lambda folder: (folder / file).unlink()


def nan(name, value=float("nan")):
    def change(found):
        found[name].view(-1)[3] = value

    return change


def state(change):
    """An edit of a pickled state dict."""

    def edit(folder):
        found = torch.load(folder / "ae.pt", weights_only=True)
        change(found)
        torch.save(found, folder / "ae.pt")

    return edit


FAULTS = {
    # fixture, edit, what the message has
    "truncated": (
        "saelens_topk",
        bytes_of(WEIGHTS, lambda b: b[:-40]),
        [WEIGHTS, "cannot be read", "bytes of data"],
    ),
    "cut in its header": ("saelens_topk", bytes_of(WEIGHTS, lambda b: b[:60]), [WEIGHTS, "cannot be read"]),
    "empty weights": ("saelens_topk", bytes_of(WEIGHTS, lambda b: b""), [WEIGHTS, "0 bytes"]),
    "no configuration": ("saelens_topk", gone("cfg.json"), ["cfg.json", "ENOENT"]),
    "no configuration of sparsify": ("sparsify_topk", gone("cfg.json"), ["cfg.json", "ENOENT"]),
    "configuration no JSON": ("saelens_topk", bytes_of("cfg.json", lambda b: b[:-5]), ["cfg.json", "JSON"]),
    "configuration a list": ("saelens_topk", bytes_of("cfg.json", lambda b: b"[]"), ["JSON object", "list"]),
    "a key twice": (
        "saelens_topk",
        bytes_of("cfg.json", lambda b: b'{"k": 1, "k": 2}'),
        ["'k' is there twice"],
    ),
    "missing tensor": (
        "saelens_topk",
        tensors(lambda t: t.pop("b_enc")),
        ["b_enc is missing", WEIGHTS, "W_enc"],
    ),
    "missing threshold": (
        "saelens_jumprelu",
        tensors(lambda t: t.pop("threshold")),
        ["threshold is missing"],
    ),
    "missing skip": ("saelens_skip_transcoder", tensors(lambda t: t.pop("W_skip")), ["W_skip is missing"]),
    "extra tensor": (
        "saelens_topk",
        tensors(lambda t: t.update(W_more=torch.ones(2))),
        ["W_more", "does not have"],
    ),
    "threshold too many": (
        "saelens_standard",
        tensors(lambda t: t.update(threshold=torch.ones(24))),
        ["threshold"],
    ),
    "wrong shape": (
        "saelens_topk",
        tensors(lambda t: t.update(W_enc=t["W_enc"].T)),
        ["W_enc", "[8, 24]", "[24, 8]"],
    ),
    "wrong width": ("saelens_topk", fields(d_sae=23), ["W_enc", "[8, 23]", "[8, 24]"]),
    "whole numbers": (
        "saelens_topk",
        tensors(lambda t: t.update(b_enc=t["b_enc"].int())),
        ["b_enc", "int32"],
    ),
    "NaN weight": ("saelens_topk", tensors(nan("W_dec")), ["W_dec", "NaN", "1 of 192", "[0, 3]", WEIGHTS]),
    "infinite weight": ("saelens_topk", tensors(nan("b_dec", float("inf"))), ["b_dec", "infinite"]),
    "NaN threshold": ("saelens_jumprelu", tensors(nan("threshold")), ["threshold", "NaN"]),
    "NaN of sparsify": ("sparsify_topk", tensors(nan("W_dec"), "sae.safetensors"), ["W_dec", "NaN"]),
    "NaN of Gemma Scope": ("gemma_scope_2", tensors(nan("w_enc"), "params.safetensors"), ["W_enc", "NaN"]),
    "unknown architecture": (
        "saelens_topk",
        fields(architecture="topkk"),
        ["architecture", "cfg.json", "topkk", "topk?"],
    ),
    "no architecture": ("saelens_topk", fields(architecture=...), ["architecture", "missing", "standard"]),
    "matching pursuit": (
        "saelens_topk",
        fields(architecture="matching_pursuit"),
        ["matching_pursuit", "residual"],
    ),
    "temporal": ("saelens_topk", fields(architecture="temporal"), ["temporal", "earlier positions"]),
    "k above the width": (
        "saelens_topk",
        fields(k=25),
        ["k of the dictionary", "cfg.json, k", "1 to 24", "25"],
    ),
    "k of nothing": ("saelens_topk", fields(k=0), ["cfg.json, k", "1 to 24", "0"]),
    "k a fraction": ("saelens_topk", fields(k=2.5), ["cfg.json, k", "2.5"]),
    "k a truth": ("saelens_topk", fields(k=True), ["cfg.json, k", "True"]),
    "no k": ("saelens_topk", fields(k=...), ["k of the dictionary is missing"]),
    "k of a batch": ("saelens_matryoshka", fields(k=0.0), ["cfg.json, k", "above 0"]),
    "k of an old file": (
        "saelens_v5_topk",
        fields(activation_fn_kwargs={"k": 25}),
        ["activation_fn_kwargs.k", "25"],
    ),
    "no k of an old file": (
        "saelens_v5_topk",
        fields(activation_fn_kwargs={}),
        ["activation_fn_kwargs.k", "missing"],
    ),
    "another activation": (
        "saelens_v3_jumprelu",
        fields(activation_fn_str="tanh-relu"),
        ["activation_fn", "tanh-relu"],
    ),
    "after an activation": (
        "saelens_v5_topk",
        fields(activation_fn_kwargs={"k": 2, "postact_fn": "abs"}),
        ["postact_fn"],
    ),
    "k of sparsify": ("sparsify_topk", fields(k=25), ["cfg.json, k", "25"]),
    "k of dictionary_learning": (
        "dl_topk",
        state(lambda s: s.update(k=torch.tensor(25))),
        ["ae.pt, k", "1 to 24"],
    ),
    "k 0 of dictionary_learning": (
        "dl_topk",
        state(lambda s: s.update(k=torch.tensor(0))),
        ["ae.pt, k", "1 to 24"],
    ),
    "unknown field": (
        "saelens_topk",
        fields(gain=2.0),
        ["gain", "cfg.json", "might change", "apply_b_dec_to_input"],
    ),
    "field of another kind": ("saelens_standard", fields(k=3), ["cfg.json, k", "might change"]),
    "field of an old file": ("saelens_v3_jumprelu", fields(normalize_outputs="x"), ["normalize_outputs"]),
    "unknown field of sparsify": ("sparsify_topk", fields(gain=2.0), ["gain", "might change"]),
    "signed": ("sparsify_topk", fields(signed=True), ["signed"]),
    "groupmax": ("sparsify_topk", fields(activation="groupmax"), ["groupmax", "of each group"]),
    "one norm for all rows": (
        "saelens_topk",
        fields(normalize_activations="constant_norm_rescale"),
        ["constant_norm_rescale"],
    ),
    "whitened": (
        "saelens_topk",
        fields(normalize_activations="covariance_whitening"),
        ["covariance_whitening", "whitening"],
    ),
    "unknown normalisation": (
        "saelens_topk",
        fields(normalize_activations="l2"),
        ["normalize_activations", "'l2'"],
    ),
    "scaled by nobody knows what": (
        "saelens_batchtopk_scaled",
        gone("activation_scaler.json"),
        ["normalize_activations", "expected_average_only_in", "activation_scaler.json", "mean norm"],
    ),
    "scaled in an old file": (
        "saelens_v2_standard",
        fields(normalize_activations=True),
        ["expected_average_only_in"],
    ),
    "scaled by 0": (
        "saelens_batchtopk_scaled",
        bytes_of("activation_scaler.json", lambda b: b'{"scaling_factor": 0}'),
        ["activation_scaler.json, scaling_factor", "above 0"],
    ),
    "scaled and whitened": (
        "saelens_batchtopk_scaled",
        bytes_of("activation_scaler.json", lambda b: b'{"scaling_factor": 2, "has_whitening": true}'),
        ["has_whitening"],
    ),
    "layer_norm of a transcoder": (
        "saelens_transcoder",
        fields(normalize_activations="layer_norm"),
        ["layer_norm", "undo"],
    ),
    "bias of a transcoder": (
        "saelens_transcoder",
        fields(apply_b_dec_to_input=True),
        ["apply_b_dec_to_input"],
    ),
    "no width of the output": (
        "saelens_transcoder",
        fields(d_out=...),
        ["d_out of the dictionary is missing"],
    ),
    "features scaled or not": (
        "saelens_v2_standard",
        tensors(lambda t: t.update(scaling_factor=torch.full((24,), 2.0))),
        ["scaling_factor", "finetuning_scaling_factor"],
    ),
    "type": ("saelens_topk", fields(dtype="int8"), ["dtype", "int8", "bfloat16"]),
    "version": ("saelens_topk", fields(metadata__sae_lens_version="newest"), ["sae_lens_version", "newest"]),
    "metadata": ("saelens_topk", fields(metadata=[1]), ["metadata", "an object"]),
    "reshape": ("saelens_topk", fields(reshape_activations="hook_q"), ["reshape_activations", "hook_q"]),
    "densities": (
        "saelens_jumprelu",
        tensors(lambda t: t.update(sparsity=torch.ones(3)), "sparsity.safetensors"),
        ["sparsity", "[24]", "[3]"],
    ),
    "unknown class": (
        "dl_topk",
        fields(trainer__dict_class="IdentityDict"),
        ["trainer.dict_class", "IdentityDict", "GatedAutoEncoder"],
    ),
    "no class": ("dl_topk", fields(trainer=...), ["trainer.dict_class", "missing"]),
    "class of other tensors": (
        "dl_topk",
        fields(trainer__dict_class="GatedAutoEncoder"),
        ["gate_bias is missing"],
    ),
    "width of dictionary_learning": (
        "dl_topk",
        fields(trainer__dict_size=23),
        ["trainer.dict_size", "24, as the weights"],
    ),
    "turned weights": (
        "dl_topk",
        state(lambda s: s.update({"decoder.weight": s["decoder.weight"].T.clone()})),
        ["decoder.weight", "[8, 24]"],
    ),
    "NaN of dictionary_learning": ("dl_gated", state(nan("r_mag")), ["r_mag", "NaN", "ae.pt"]),
    "NaN in a threshold for all": (
        "dl_batch_topk",
        state(lambda s: s.update(threshold=torch.tensor(float("nan")))),
        ["threshold", "NaN"],
    ),
    "groups": (
        "dl_matryoshka",
        state(lambda s: s.update(threshold=torch.tensor(-1.0), group_sizes=torch.tensor([4, 8]))),
        ["group_sizes", "add up to 24"],
    ),
    "pickle cut": ("dl_topk", bytes_of("ae.pt", lambda b: b[:-200]), ["ae.pt", "cannot be read"]),
    "npz cut": ("gemma_scope", bytes_of("params.npz", lambda b: b[:-200]), ["params.npz", "cannot be read"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    name, edit, parts = FAULTS[fault]
    folder = copied(tmp_path, name)
    edit(folder)
    with pytest.raises(ArtifactError) as caught:
        load_dictionary(folder)
    message = str(caught.value)
    for part in (*parts, "where:", "next:"):
        assert part in message, message
    assert str(folder) in message


def test_what_cannot_compute_is_let_through(tmp_path):
    folder = copied(tmp_path, "saelens_topk")
    fields(finetuning_scaling_factor=False, gain=None, other=False, l1_coefficient=0.5, model_name="tiny")(
        folder
    )
    assert load_saelens(folder).metadata["sparsescope"]["read_from"]["other_fields"] == {
        "l1_coefficient": 0.5
    }


def test_a_sum_that_overflows_is_no_fault(tmp_path):
    folder = copied(tmp_path, "saelens_topk")
    tensors(lambda t: t["b_dec"].fill_(3e38))(folder)
    assert bool(load_saelens(folder).decoder_bias.isfinite().all())


def test_thresholds_that_never_open_are_no_fault(tmp_path):
    folder = copied(tmp_path, "saelens_jumprelu")
    tensors(nan("threshold", float("inf")))(folder)
    found = load_saelens(folder)
    assert not found.encode(torch.full((2, 8), 50.0)).rows_per_feature[3]


class _Code:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/sparsescope-pickled-code-ran"),))


def test_no_pickled_code_runs(tmp_path):
    mark = Path("/tmp/sparsescope-pickled-code-ran")
    mark.unlink(missing_ok=True)
    for number, save in enumerate((torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2)))):
        folder = copied(tmp_path / str(number), "dl_topk")
        save({"encoder.weight": _Code()}, folder / "ae.pt")
        with pytest.raises(ArtifactError, match="no pickled code runs"):
            load_dictionary(folder)
        torch.save({"encoder.weight": [1, 2]}, folder / "ae.pt")
        with pytest.raises(ArtifactError, match="is a list"):
            load_dictionary(folder)
        torch.save([torch.ones(2)], folder / "ae.pt")
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_dictionary(folder)
    npz = copied(tmp_path, "gemma_scope") / "params.npz"
    np.savez(npz, W_enc=np.array([_Code()], dtype=object))
    with pytest.raises(ArtifactError, match="no pickled code runs"):
        load_dictionary(npz)
    assert not mark.exists()


def test_a_path_that_is_no_folder(tmp_path):
    with pytest.raises(SpecError, match="no such folder"):
        load_saelens(tmp_path / "none")
    with pytest.raises(SpecError, match="no file can have"):
        load_dictionary("a" * 300)
    with pytest.raises(ArtifactError, match=r"SNMF\.load"):
        (tmp_path / "snmf.safetensors").write_bytes(b"")
        load_dictionary(tmp_path)

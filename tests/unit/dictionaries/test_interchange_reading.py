"""Dictionaries that other tools wrote: codes are those that the tools gave (tests/fixtures/dictionaries)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsescope.dictionaries import load_dictionary, load_saelens, set_thresholds
from sparsescope.dictionaries.interchange import detect_format
from sparsescope.errors import ArtifactError, SpecError

HERE = Path(__file__).resolve().parents[2] / "fixtures" / "dictionaries"
EXPECTED = load_file(HERE / "expected.safetensors")
NAMES = sorted(folder.name for folder in (HERE / "read").iterdir())
LAYOUTS = {"saelens": "saelens", "sparsify": "sparsify", "dl": "dictionary_learning", "gemma": "gemma_scope"}
ARCHITECTURES = {
    "saelens_standard": "relu",
    "saelens_gated": "gated",
    "saelens_topk": "topk",
    "saelens_abstopk": "abstopk",
    "saelens_jumprelu": "jumprelu",
    "saelens_batchtopk_plain": "jumprelu",
    "saelens_matryoshka": "jumprelu",
    "saelens_transcoder": "relu",
    "saelens_jumprelu_skip_transcoder": "jumprelu",
    "saelens_v5_topk": "topk",
    "dl_autoencoder": "relu",
    "dl_topk": "topk",
    "dl_batch_topk": "jumprelu",
    "sparsify_skip_transcoder": "topk",
}


def folder_of(name):
    return HERE / "read" / name


def changed(tmp_path, name, **fields):
    """A copy of a fixture whose configuration has other fields; None takes one away."""
    folder = tmp_path / name
    shutil.copytree(folder_of(name), folder)
    path = next(folder / file for file in ("cfg.json", "config.json") if (folder / file).exists())
    config = json.loads(path.read_text())
    for key, value in fields.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_codes_and_outputs_are_those_of_the_tool(name):
    x, codes, out = (EXPECTED[f"{name}/{key}"] for key in ("x", "codes", "out"))
    dictionary = load_dictionary(folder_of(name))
    found, wanted = dictionary.encode(x).dense(), codes.reshape(-1, dictionary.width)
    assert torch.equal(found != 0, wanted != 0)
    # bfloat16 keeps 8 bits, and the tool rounds once more
    near = {"rtol": 2**-7, "atol": 2**-5} if name.endswith("bfloat16") else {"rtol": 2e-6, "atol": 2e-6}
    assert torch.allclose(found.float(), wanted, **near)
    again = dictionary.reconstruct(x)
    assert again.shape == out.shape and torch.allclose(again.float(), out, **near)
    assert np.linalg.norm(codes) > 1 and 0 < int((codes != 0).sum()) < codes.numel()


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_is_known_by_the_names_of_files(name):
    folder = folder_of(name)
    form = LAYOUTS[name.split("_")[0]]
    assert detect_format(folder) == form
    files = [file for file in folder.iterdir() if detect_format_or_none(file) == form]
    assert len(files) == 1
    assert torch.equal(load_dictionary(files[0]).encoder, load_dictionary(str(folder)).encoder)


def detect_format_or_none(file):
    try:
        return detect_format(file)
    except ArtifactError:
        return None


@pytest.mark.parametrize(("name", "architecture"), ARCHITECTURES.items())
def test_architectures(name, architecture):
    assert load_dictionary(folder_of(name)).architecture == architecture
    assert load_dictionary(folder_of(name), architecture=architecture).architecture == architecture
    with pytest.raises(SpecError, match="another architecture"):
        load_dictionary(
            folder_of(name), architecture="feature_choice" if architecture != "jumprelu" else "topk"
        )


def test_the_type_can_be_chosen():
    for dtype in ("float64", "torch.bfloat16", "float16"):
        found = load_dictionary(folder_of("saelens_jumprelu"), dtype=dtype)
        assert {str(p.dtype) for p in found.parameters()} == {f"torch.{dtype.removeprefix('torch.')}"}
    assert load_dictionary(folder_of("saelens_bfloat16")).encoder.dtype == torch.bfloat16
    wide = load_dictionary(folder_of("saelens_topk"), dtype="float64")
    codes = wide.encode(EXPECTED["saelens_topk/x"]).dense()
    assert codes.dtype == torch.float64
    assert torch.allclose(codes.float(), EXPECTED["saelens_topk/codes"], atol=2e-6)
    with pytest.raises(SpecError, match="int8"):
        load_dictionary(folder_of("saelens_topk"), dtype="int8")


def test_a_dictionary_does_not_hold_its_file(tmp_path):
    folder = changed(tmp_path, "saelens_standard")
    found = load_saelens(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"")
    assert torch.equal(
        found.decoder, load_file(folder_of("saelens_standard") / "sae_weights.safetensors")["W_dec"]
    )


# -- What SAELens says of a dictionary ---------------------------------------------------------------


def test_metadata_are_kept_also_where_they_are_zero_false_or_null():
    found = load_saelens(folder_of("saelens_standard"))
    assert found.site == "blocks.0.hook_resid_pre"
    for key, value in {
        "prepend_bos": False, "hook_head_index": None, "seqpos_slice": [0, None],
        "exclude_special_tokens": [0], "an_own_key": {"kept": [1, 0, False, None, ""]},
        "sae_lens_version": "6.54.12",
    }.items():  # fmt: skip
        assert key in found.metadata and found.metadata[key] == value
    assert found.metadata["sparsescope"]["read_from"] == {"layout": "SAELens", "architecture": "standard"}


def test_old_fields_move_into_metadata():
    found = load_saelens(folder_of("saelens_v2_standard"))
    assert found.site == "blocks.1.hook_resid_pre" and found.metadata["prepend_bos"] is True
    assert found.metadata["hook_head_index"] is None and found.subtract_decoder_bias
    others = found.metadata["sparsescope"]["read_from"]["other_fields"]
    assert others["lr"] == 0.0004 and others["hook_point_layer"] == 1
    later = load_saelens(folder_of("saelens_v3_jumprelu"))
    assert later.metadata["prepend_bos"] is False and later.metadata["neuronpedia_id"] == "tiny/1-res"
    assert not later.subtract_decoder_bias
    assert load_saelens(folder_of("saelens_v5_topk")).k == 3


@pytest.mark.parametrize(
    ("version", "old"),
    [("6.54.12", False), ("6.0.0-rc.0", False), ("6.0.0rc2", False), ("10.1", False), ("6.0.0", False),
     ("5.11.0", True), ("6.0.0-beta.1", True), ("6.0.0a3", True), ("", True)],
)  # fmt: skip
def test_the_version_says_whether_fields_are_moved(tmp_path, version, old):
    # An old file would have the k of its activation function; a new one has it at the top
    folder = changed(
        tmp_path, "saelens_topk_plain", metadata={"sae_lens_version": version}, hook_point="blocks.5.x"
    )
    if old:
        config = json.loads((folder / "cfg.json").read_text())
        del config["k"]
        (folder / "cfg.json").write_text(
            json.dumps(config | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}})
        )
        found = load_saelens(folder)
        assert found.k == 2 and found.site == "blocks.5.x"
    else:
        with pytest.raises(ArtifactError, match="hook_point"):
            load_saelens(folder)


def test_hook_z_rows_in_any_shape():
    found, x = load_saelens(folder_of("saelens_hook_z")), EXPECTED["saelens_hook_z/x"]
    assert found.metadata["reshape_activations"] == "hook_z" and x.shape == (2, 2, 2, 4)
    flat = found.encode(x.reshape(4, 8))
    for shape in ((2, 2, 2, 4), (4, 2, 4), (2, 2, 8), (1, 4, 8)):
        codes = found.encode(x.reshape(shape))
        assert torch.equal(codes.dense(), flat.dense())
        assert found.reconstruct(x.reshape(shape)).shape == shape
    old = load_saelens(folder_of("saelens_v5_gated_hook_z"))
    assert old.metadata["reshape_activations"] == "hook_z"
    assert "reshape_activations" not in load_saelens(folder_of("saelens_standard")).metadata


def test_densities_come_from_their_logarithms():
    found = load_saelens(folder_of("saelens_jumprelu"))
    wanted = (
        10 ** load_file(folder_of("saelens_jumprelu") / "sparsity.safetensors")["sparsity"].double() - 1e-10
    )
    assert np.allclose(found.metadata["densities"], wanted, rtol=1e-12)
    assert "densities" not in load_saelens(folder_of("saelens_hook_z")).metadata


def test_a_transcoder_writes_another_site():
    found = load_saelens(folder_of("saelens_jumprelu_skip_transcoder"))
    assert (found.site, found.site_out) == ("blocks.0.hook_mlp_in", "blocks.0.hook_mlp_out")
    assert (found.d_in, found.d_out) == (8, 10) and not found.subtract_decoder_bias
    assert load_dictionary(folder_of("saelens_transcoder"), architecture="transcoder").d_out == 10


def test_a_row_of_zeros_of_a_rescaled_dictionary_is_never_active(tmp_path):
    folder = changed(tmp_path, "saelens_topk")
    tensors = load_file(folder / "sae_weights.safetensors")
    x = EXPECTED["saelens_topk/x"]
    first = int(EXPECTED["saelens_topk/codes"][0].argmax())
    tensors["W_dec"][first] = 0
    save_file(tensors, folder / "sae_weights.safetensors")
    found = load_saelens(folder)
    codes = found.encode(x).dense()
    assert not codes[:, first].any() and int((codes[0] != 0).sum()) == 5
    assert not found.decoder[first].any()


def test_training_over_batches_rescales_unless_it_says_otherwise(tmp_path):
    found = load_saelens(changed(tmp_path, "saelens_matryoshka", rescale_acts_by_decoder_norm=None))
    codes = found.encode(EXPECTED["saelens_matryoshka/x"]).dense()
    assert torch.allclose(codes, EXPECTED["saelens_matryoshka/codes"], atol=2e-6)


def test_features_that_old_versions_scale_before_decoding(tmp_path):
    folder = changed(tmp_path, "saelens_v2_standard", finetuning_scaling_factor=True)
    tensors = load_file(folder / "sae_weights.safetensors")
    scale = tensors["scaling_factor"] = torch.linspace(0.5, 2, 24)
    save_file(tensors, folder / "sae_weights.safetensors")
    x, codes = EXPECTED["saelens_v2_standard/x"], EXPECTED["saelens_v2_standard/codes"]
    found = load_saelens(folder)
    assert torch.allclose(found.encode(x).dense(), codes, atol=2e-6)
    assert torch.allclose(
        found.reconstruct(x), (codes * scale) @ tensors["W_dec"] + tensors["b_dec"], atol=1e-5
    )


def test_our_k_of_a_dictionary_with_thresholds_is_known_again():
    assert load_dictionary(HERE / "ours" / "batch_topk").k == 4
    assert load_saelens(folder_of("saelens_batchtopk_scaled")).k == 4  # round(4.5)
    assert load_saelens(folder_of("saelens_jumprelu")).k == 24  # nothing says it


# -- sparsify, dictionary_learning, Gemma Scope ---------------------------------------------------------


def test_the_rows_of_sparsify_are_not_turned():
    tensors = load_file(folder_of("sparsify_square") / "sae.safetensors")
    found = load_dictionary(folder_of("sparsify_square"))
    assert found.width == found.d_in == 8
    assert torch.equal(found.decoder, tensors["W_dec"]) and torch.equal(
        found.encoder, tensors["encoder.weight"]
    )
    assert found.metadata["hf_hook_name"] == "sparsify_square"


def test_latents_of_sparsify_can_be_a_factor(tmp_path):
    for fields in ({"num_latents": 0, "expansion_factor": 3}, {"num_latents": None, "expansion_factor": 3}):
        folder = changed(tmp_path / str(fields["num_latents"]), "sparsify_topk", **fields)
        assert load_dictionary(folder).width == 24


def test_a_threshold_that_was_never_set_must_be_set(tmp_path):
    for name, prefixes in (("dl_batch_topk", None), ("dl_matryoshka", [4, 12, 24])):
        folder = changed(tmp_path, name)
        state = torch.load(folder / "ae.pt", weights_only=True)
        torch.save(state | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
        found = load_dictionary(folder)
        x = EXPECTED[f"{name}/x"]
        with pytest.raises(SpecError, match="set_thresholds"):
            found.encode(x)
        assert set_thresholds(found, x).encode(x).active_per_row.sum() == 4 * len(x)
        assert getattr(found, "prefixes", None) == prefixes


def test_a_checkpoint_finds_its_configuration(tmp_path):
    folder = changed(tmp_path, "dl_topk")
    (folder / "checkpoints").mkdir()
    checkpoint = folder / "checkpoints" / "ae_10.pt"
    (folder / "ae.pt").rename(checkpoint)
    assert load_dictionary(checkpoint).metadata["model_name"] == "tiny"


def test_weights_without_a_configuration(tmp_path):
    for name in (name for name in NAMES if name.startswith("dl_")):
        bare = tmp_path / name
        bare.mkdir()
        shutil.copy(folder_of(name) / "ae.pt", bare)
        x, codes = EXPECTED[f"{name}/x"], EXPECTED[f"{name}/codes"]
        if name in ("dl_topk", "dl_batch_topk"):
            with pytest.raises(ArtifactError, match=r"config\.json"):
                load_dictionary(bare)
        architecture = name.removeprefix("dl_") if name in ("dl_topk", "dl_batch_topk") else None
        found = load_dictionary(bare, architecture=architecture).encode(x).dense()
        assert torch.allclose(found, codes, atol=2e-6)


def test_k_of_dictionary_learning_is_that_of_the_weights(tmp_path):
    config = json.loads((folder_of("dl_topk") / "config.json").read_text())["trainer"]
    other = changed(tmp_path / "a", "dl_topk", trainer=config | {"k": 2})
    with pytest.raises(ArtifactError, match=r"trainer\.k"):
        load_dictionary(other)
    annealed = changed(tmp_path / "b", "dl_topk", trainer=config | {"k": 2, "k_anneal_steps": 100})
    assert load_dictionary(annealed).k == 4
    without = changed(tmp_path / "c", "dl_topk", trainer=config | {"k": 3})
    state = torch.load(without / "ae.pt", weights_only=True)
    del state["k"]
    torch.save(state, without / "ae.pt")
    assert load_dictionary(without).k == 3


def test_decoder_columns_with_unit_norm_stay_as_they_are(tmp_path):
    folder = changed(tmp_path, "dl_autoencoder")
    state = torch.load(folder / "ae.pt", weights_only=True)
    state["decoder.weight"] = torch.nn.functional.normalize(state["decoder.weight"], dim=0)
    torch.save(state, folder / "ae.pt")
    found = load_dictionary(folder)
    assert torch.equal(found.encoder, state["encoder.weight"])
    assert torch.equal(found.decoder, state["decoder.weight"].T)


# -- Finding the layout ------------------------------------------------------------------------------


def test_what_was_tried_is_said_where_nothing_fits(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        detect_format(tmp_path / "none")
    with pytest.raises(ArtifactError) as caught:
        load_dictionary(tmp_path)
    message = str(caught.value)
    for part in ("sae_weights.safetensors", "sae.safetensors", "ae.pt", "params.npz", "an empty folder"):
        assert part in message
    (tmp_path / "layers.3").mkdir()
    shutil.copy(folder_of("sparsify_topk") / "sae.safetensors", tmp_path / "layers.3")
    with pytest.raises(ArtifactError, match=r"one dictionary: layers\.3"):
        load_dictionary(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        detect_format(tmp_path / "notes.txt")


def test_a_folder_of_several_layouts_is_not_guessed(tmp_path):
    folder = changed(tmp_path, "saelens_standard")
    shutil.copy(folder_of("sparsify_topk") / "sae.safetensors", folder)
    with pytest.raises(
        ArtifactError, match=r"saelens, sparsify \(sae\.safetensors, sae_weights\.safetensors\)"
    ):
        load_dictionary(folder)
    assert load_dictionary(folder / "sae_weights.safetensors").architecture == "relu"


def test_an_unknown_architecture_is_refused():
    with pytest.raises(SpecError, match="batch_topk"):
        load_dictionary(folder_of("saelens_topk"), architecture="topkk")


def test_the_layout_needs_no_torch():
    code = (
        "import sys; from sparsescope.dictionaries.interchange import detect_format;"
        f"print(detect_format({str(folder_of('dl_topk'))!r}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dictionary_learning", "False"]

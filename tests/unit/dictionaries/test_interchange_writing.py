"""What we write: SAELens loaded these folders and encoded the same (tests/fixtures/dictionaries/ours)."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsescope.dictionaries import (
    BatchTopKSAE,
    JumpReLUSAE,
    ReLUSAE,
    TopKSAE,
    Transcoder,
    load_dictionary,
    load_saelens,
    save_saelens,
)
from sparsescope.dictionaries.interchange import saelens
from sparsescope.errors import ArtifactError, SpecError

HERE = Path(__file__).resolve().parents[2] / "fixtures" / "dictionaries"
EXPECTED = load_file(HERE / "ours_expected.safetensors")
NAMES = sorted(folder.name for folder in (HERE / "ours").iterdir())
OF_SAELENS = [
    f"saelens_{name}"
    for name in (
        "standard",
        "no_shift",
        "gated",
        "topk_plain",
        "jumprelu",
        "hook_z",
        "layer_norm",
        "bfloat16",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    )
]


@pytest.fixture(scope="module")
def ours():
    spec = importlib.util.spec_from_file_location("make_fixtures", HERE / "make_fixtures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.our_dictionaries()


def text_of(folder):
    """The configuration without the versions of the packages."""
    return re.sub(r'"(sae_lens_)?version": "[^"]*"', '"version"', (folder / "cfg.json").read_text())


def close(a, b):
    return torch.allclose(a.float(), b.float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_saelens_loaded_is_still_what_is_written(ours, tmp_path, name):
    folder, frozen = save_saelens(ours[name], tmp_path / name), HERE / "ours" / name
    assert {path.name for path in folder.iterdir()} == {path.name for path in frozen.iterdir()}
    assert text_of(folder) == text_of(frozen)
    weights = "sae_weights.safetensors"
    assert (folder / weights).read_bytes() == (frozen / weights).read_bytes()
    if name == "relu":
        logs = load_file(folder / "sparsity.safetensors")["sparsity"]
        assert torch.allclose(logs, load_file(frozen / "sparsity.safetensors")["sparsity"])
        assert logs[0] == -10 and torch.allclose(10 ** logs[1:], torch.arange(1, 24) / 24)


@pytest.mark.parametrize("name", NAMES)
def test_saelens_encodes_what_was_written_as_we_do(ours, name):
    x, codes, out = (EXPECTED[f"{name}/{key}"] for key in ("x", "codes", "out"))
    for dictionary in (ours[name], load_dictionary(HERE / "ours" / name)):
        found = dictionary.encode(x).dense()
        wanted = codes.reshape(found.shape)
        assert torch.equal(found != 0, wanted != 0) and close(found, wanted)
        assert close(dictionary.reconstruct(x), out)
    assert int((codes != 0).sum())


@pytest.mark.parametrize("name", OF_SAELENS)
def test_a_file_of_saelens_is_written_as_it_was(tmp_path, name):
    original = HERE / "read" / name
    folder = save_saelens(load_saelens(original), tmp_path / "new")
    before, after = (json.loads((path / "cfg.json").read_text()) for path in (original, folder))
    own = after["metadata"].pop("sparsescope")
    assert own["read_from"]["layout"] == "SAELens" and "kept" not in own
    assert after == before
    old, new = (load_file(path / "sae_weights.safetensors") for path in (original, folder))
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    if name == "saelens_jumprelu":
        logs = [load_file(path / "sparsity.safetensors")["sparsity"] for path in (original, folder)]
        assert torch.allclose(*logs)


@pytest.mark.parametrize(
    "name",
    [
        *(f"ours/{name}" for name in NAMES),
        "read/saelens_standard",
        "read/dl_topk",
        "read/saelens_topk",
        "read/saelens_batchtopk_scaled",
        "read/gemma_scope_2",
        "read/saelens_v2_standard",
    ],
)
def test_writing_again_changes_nothing(tmp_path, name):
    first = save_saelens(load_dictionary(HERE / name), tmp_path / "first")
    second = save_saelens(load_dictionary(first), tmp_path / "second")
    for file in sorted(first.iterdir()):
        if file.name == "sparsity.safetensors":
            logs = [load_file(folder / file.name)["sparsity"] for folder in (first, second)]
            assert torch.allclose(*logs)
        else:
            assert file.read_bytes() == (second / file.name).read_bytes()


@pytest.mark.parametrize("folder", sorted((HERE / "read").iterdir()), ids=lambda folder: folder.name)
def test_what_was_read_encodes_the_same_after_writing(tmp_path, folder):
    dictionary = load_dictionary(folder)
    if dictionary.architecture == "topk" and "transcoder" in folder.name:
        with pytest.raises(SpecError, match="no transcoder"):
            save_saelens(dictionary, tmp_path / "new")
        return
    again = load_saelens(save_saelens(dictionary, tmp_path / "new"))
    x = load_file(HERE / "expected.safetensors")[f"{folder.name}/x"]
    one, other = dictionary.encode(x), again.encode(x)
    assert torch.equal(one.indices, other.indices) and torch.equal(one.values, other.values)
    assert torch.equal(dictionary.reconstruct(x), again.reconstruct(x))


def test_the_version_is_always_one_of_version_6(tmp_path):
    for folder in ("saelens_v2_standard", "gemma_scope", "sparsify_topk", "saelens_v3_jumprelu"):
        written = save_saelens(load_dictionary(HERE / "read" / folder), tmp_path / folder)
        metadata = json.loads((written / "cfg.json").read_text())["metadata"]
        assert metadata["sae_lens_version"] == "6.54.12"
    assert metadata["sae_lens_training_version"] == "3.18.2"
    assert metadata["neuronpedia_id"] == "tiny/1-res"


def test_our_own_facts_are_under_our_name(tmp_path):
    dictionary = BatchTopKSAE(8, 16, k=2, site="blocks.0.hook_resid_pre")
    dictionary.threshold.fill_(0.5)
    dictionary.metadata = {
        "model_name": "tiny",
        "threshold_source": {"rows": 10},
        "sparsescope": {"recipe": 1},
    }
    folder = save_saelens(dictionary, tmp_path / "new")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu"
    own = config["metadata"].pop("sparsescope")
    assert config["metadata"].keys() == {
        "model_name", "hook_name", "sae_lens_version", "sae_lens_training_version",
    }  # fmt: skip
    assert (
        own["trained_as"] == "batch_topk" and own["threshold_source"] == {"rows": 10} and own["recipe"] == 1
    )
    assert own["settings"]["k"] == 2


def test_a_transcoder_that_subtracts_its_bias_is_written_with_it_in_the_encoder(tmp_path):
    dictionary = JumpReLUSAE(8, 16, site="a", site_out="b", subtract_decoder_bias=True, skip=True)
    torch.manual_seed(0)
    for parameter in dictionary.parameters():
        parameter.data.copy_(torch.randn(parameter.shape) * 0.5)
    folder = save_saelens(dictionary, tmp_path / "new")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu_skip_transcoder" and config["apply_b_dec_to_input"] is False
    again, x = load_saelens(folder), torch.randn(20, 8)
    assert torch.equal(again.encode(x).indices, dictionary.encode(x).indices)
    assert torch.allclose(again.encode(x).values, dictionary.encode(x).values, atol=1e-5)
    assert torch.allclose(again.reconstruct(x), dictionary.reconstruct(x), atol=1e-5)


def test_an_empty_folder_is_taken_and_a_link_followed(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    save_saelens(ReLUSAE(4, 8), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    save_saelens(ReLUSAE(4, 8), tmp_path / "deep" / "down")
    assert load_saelens(str(tmp_path / "deep" / "down")).width == 8


# -- What cannot be written, and leaves nothing behind --------------------------------------------------


def refused(dictionary, tmp_path, error, match):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=match) as caught:
        save_saelens(dictionary, tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before
    return caught.value


def test_a_place_with_files_is_left_alone(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("mine")
    refused(ReLUSAE(4, 8), tmp_path, ArtifactError, "something at this place")
    assert (tmp_path / "new" / "mine.txt").read_text() == "mine"


def test_a_rule_without_thresholds_is_refused(tmp_path):
    refused(BatchTopKSAE(4, 8, k=2), tmp_path, SpecError, "not set")
    refused(Transcoder(4, 8, k=2, site_out="b"), tmp_path, SpecError, "not set")


def test_dictionaries_that_saelens_does_not_have_are_refused(tmp_path):
    refused(TopKSAE(4, 8, k=2, d_out=6), tmp_path, SpecError, "no transcoder")
    refused(ReLUSAE(4, 8, site_out="b", normalize="layer_norm"), tmp_path, SpecError, "layer_norm")

    class Other(ReLUSAE):
        architecture = "other"

    refused(Other(4, 8), tmp_path, SpecError, "no architecture")
    refused(object(), tmp_path, SpecError, "only sparse autoencoders")


@pytest.mark.parametrize("densities", [[0.5], [-0.1] * 8, [1.5] * 8, [float("nan")] * 8, "no", [None] * 8])
def test_densities_are_shares_of_rows(tmp_path, densities):
    dictionary = ReLUSAE(4, 8)
    dictionary.metadata["densities"] = densities
    refused(dictionary, tmp_path, SpecError, "densities")


def test_metadata_must_be_json(tmp_path):
    dictionary = ReLUSAE(4, 8)
    dictionary.metadata["mean"] = torch.zeros(3)
    refused(dictionary, tmp_path, SpecError, "no JSON")


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, failing):
    dictionary, calls = ReLUSAE(4, 8), []
    dictionary.metadata["densities"] = [0.5] * 8
    write = saelens.write_file

    def full(path, data):
        calls.append(path)
        if len(calls) == failing:
            path.write_bytes(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(saelens, "write_file", full)
    refused(dictionary, tmp_path, ArtifactError, "ENOSPC")
    assert len(calls) == failing

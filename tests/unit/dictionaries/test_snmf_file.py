"""SNMF on disk: bit-equal round trips, damage, and factors of another implementation."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sparsescope.core.files import sha256_file
from sparsescope.dictionaries.snmf import SNMF, import_factors
from sparsescope.dictionaries.snmf.file import DESCRIPTION, TENSORS, provenance
from sparsescope.errors import ArtifactError, SpecError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def _x(dtype=np.float32):
    random = np.random.default_rng(0)
    return (random.exponential(size=(60, 4)) @ random.normal(size=(4, 20))).astype(dtype)


def _fitted(dtype=np.float32, **params):
    return SNMF(5, sparsity=0.2, max_iter=4, **params).fit(_x(dtype))


def _rewrite(folder, change):
    """Change the tensors of a folder so that only their content is wrong, not their checksum."""
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)
    text = json.loads((folder / DESCRIPTION).read_text())
    text["tensors_sha256"] = sha256_file(folder / TENSORS)
    (folder / DESCRIPTION).write_text(json.dumps(text))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("moved", [False, True])
def test_every_array_comes_back_to_the_bit(tmp_path, dtype, moved):
    model = _fitted(dtype, center=moved, scale=moved, random_state=3)
    model.save(tmp_path / "m", provenance={"model": "toy", "tokens": np.int64(60)})
    found = SNMF.load(tmp_path / "m")
    assert found.get_params() == model.get_params()
    for name, value in vars(model).items():
        other = getattr(found, name)
        if isinstance(value, np.ndarray):
            assert other.dtype == value.dtype
            assert other.tobytes() == value.tobytes()
        else:
            assert other == value, name
    np.testing.assert_array_equal(found.transform(_x(dtype)), model.transform(_x(dtype)))
    assert provenance(tmp_path / "m", SNMF) == {"model": "toy", "tokens": 60}
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [DESCRIPTION, TENSORS]
    found.save(tmp_path / "again")
    assert (tmp_path / "again" / TENSORS).read_bytes() == (tmp_path / "m" / TENSORS).read_bytes()


def test_names_of_neurons_and_batches_come_back(tmp_path):
    import pandas as pd

    frame = pd.DataFrame(_x(), columns=[f"n{i}" for i in range(20)])
    SNMF(5, sparsity=0.2, max_iter=4, random_state=np.random.RandomState(0)).fit(frame).save(tmp_path)
    found = SNMF.load(tmp_path)
    assert found.feature_names_in_.tolist() == list(frame.columns)
    assert found.random_state is None
    before = found.components_.copy()
    found.partial_fit(frame)
    assert found.n_samples_seen_ == 120
    assert (found.components_ != before).any()


def test_values_that_are_no_json_are_refused(tmp_path):
    for wrong in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(SpecError, match="provenance"):
            _fitted().save(tmp_path / "m", provenance=wrong)


def test_a_truncated_file_is_refused(tmp_path):
    _fitted().save(tmp_path)
    size = (tmp_path / TENSORS).stat().st_size
    for length in (0, 7, 60, size - 1):
        os.truncate(tmp_path / TENSORS, length)
        with pytest.raises(ArtifactError, match="header of a tensor file"):
            SNMF.load(tmp_path)


def test_a_changed_bit_is_noticed(tmp_path):
    _fitted().save(tmp_path)
    data = bytearray((tmp_path / TENSORS).read_bytes())
    data[-3] ^= 1
    (tmp_path / TENSORS).write_bytes(data)
    with pytest.raises(ArtifactError, match="not of one writing"):
        SNMF.load(tmp_path)


def _put(name, place, value):
    def change(tensors):
        tensors[name][place] = value

    return change


def _cut(name):
    def change(tensors):
        tensors[name] = tensors[name][:-1].copy()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("components_data", 0, np.nan), "NaN or infinite"),
        (_put("usage", 0, np.inf), "NaN or infinite"),
        (_cut("components_indptr"), "another shape"),
        (_cut("usage"), "another shape"),
        (_cut("components_indices"), "no sparse matrix"),
        (_put("components_indices", 0, 20), "no sparse matrix"),
        (_put("components_indices", 0, -1), "no sparse matrix"),
        (_put("components_indptr", 1, 99), "no sparse matrix"),
        (_put("components_indptr", 0, 1), "no sparse matrix"),
        (
            lambda tensors: tensors["components_indices"].__setitem__(1, tensors["components_indices"][0]),
            "twice",
        ),
        (lambda tensors: tensors.pop("usage"), "tensors are missing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    _fitted().save(tmp_path)
    _rewrite(tmp_path, change)
    with pytest.raises(ArtifactError, match=message):
        SNMF.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.pop("params"), "lacks parts"),
        (lambda text: text.update(schema_version=2), "another version"),
        (lambda text: text.update(params=[]), "not valid"),
        (lambda text: text["params"].update(sparsity=7), "parameters"),
        (lambda text: text["params"].update(backend="x"), "parameters"),
        (lambda text: text["fitted"].pop("n_iter_"), "missing"),
        (lambda text: text["fitted"].update(n_features_in_=9), "no sparse matrix"),
        (lambda text: text["fitted"].update(n_features_in_="9"), "missing"),
        (lambda text: text["fitted"].update(loss_curve_="x"), "numbers"),
        (lambda text: text["fitted"].update(reconstruction_err_=None), "numbers"),
        (lambda text: text["fitted"].update(feature_names_in_=["a"]), "names"),
        (lambda text: text["params"].update(n_components=4), "another shape"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, change, message):
    _fitted().save(tmp_path)
    text = json.loads((tmp_path / DESCRIPTION).read_text())
    change(text)
    (tmp_path / DESCRIPTION).write_text(json.dumps(text))
    with pytest.raises(ArtifactError, match=message):
        SNMF.load(tmp_path)


def test_folders_that_are_not_there_or_no_json(tmp_path):
    with pytest.raises(ArtifactError, match="cannot read the description"):
        SNMF.load(tmp_path / "none")
    (tmp_path / DESCRIPTION).write_text("{")
    with pytest.raises(ArtifactError, match="not valid"):
        SNMF.load(tmp_path)


def test_factors_of_another_implementation(tmp_path):
    random = np.random.default_rng(0)
    f, g = random.normal(size=(20, 3)) * (random.random((20, 3)) < 0.3), random.random((60, 3))
    about = {
        "token_ids": [1, 2],
        "sample_ids": [0, 0],
        "labels": ["a", "b"],
        "layer": 4,
        "mode": "mlp",
        "config": {"r": 3},
    }
    torch.save({"F": torch.tensor(f), "G": torch.tensor(g), **about}, tmp_path / "snmf_factors.pt")
    found = import_factors(tmp_path / "snmf_factors.pt")
    np.testing.assert_allclose(found.components, f.T.astype(np.float32))
    np.testing.assert_allclose(found.codes, g.astype(np.float32))
    assert found.about == about
    model = found.snmf(_x())
    norms = np.linalg.norm(f, axis=0)[:, None]
    np.testing.assert_allclose(model.components_, f.T / norms, rtol=1e-5)
    assert model.score(_x()) == pytest.approx(model.total_explained_variance_ratio_)


class _Dangerous:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/snmf-code-ran",))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"F": torch.ones(4, 2)}, "no factors"),
        ({"F": torch.ones(4, 2), "G": torch.ones(5, 3)}, "do not fit"),
        ({"F": torch.ones(4, 2), "G": torch.full((5, 2), torch.nan)}, "do not fit"),
        ({"F": torch.ones(4, 2), "G": -torch.ones(5, 2)}, "negative"),
        ([torch.ones(4, 2)], "no factors"),
        ({"F": _Dangerous()}, "cannot be read"),
    ],
)
def test_factors_that_are_none_are_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "snmf_factors.pt")
    with pytest.raises(ArtifactError, match=message):
        import_factors(tmp_path / "snmf_factors.pt")
    assert not Path("/tmp/snmf-code-ran").exists()


def test_a_damaged_or_missing_file_of_factors_is_refused(tmp_path):
    (tmp_path / "snmf_factors.pt").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ArtifactError, match="cannot be read"):
        import_factors(tmp_path / "snmf_factors.pt")
    with pytest.raises(ArtifactError, match="cannot read factors"):
        import_factors(tmp_path / "other.pt")

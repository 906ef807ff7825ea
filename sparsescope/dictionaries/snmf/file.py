"""A fitted SNMF on disk: ``snmf.safetensors`` and ``snmf.json`` in a folder. Nothing is pickled.

Tensors: components_data [entry], components_indices int32 [entry], components_indptr int64 [k + 1], usage and
explained_variance_ratio [k], mean and scale [d] where there are any. The JSON has the parameters, fitted
numbers, the provenance that the caller gives, and the SHA-256 of the tensors, so that a half-written pair is
noticed. Sums of ``partial_fit`` are not kept: it begins to collect anew from the components.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
from sklearn.utils.validation import check_is_fitted

from sparsescope.core.files import given_path, replace_file, sha256_file, storage_errors
from sparsescope.core.strict_json import parse
from sparsescope.core.tensor_header import read_tensors
from sparsescope.errors import ArtifactError, SpecError

if TYPE_CHECKING:
    from sparsescope.dictionaries.snmf.estimator import SNMF

TENSORS, DESCRIPTION = "snmf.safetensors", "snmf.json"
SCHEMA_VERSION = 1
_NUMBERS = (
    "reconstruction_err_",
    "total_explained_variance_ratio_",
    "n_iter_",
    "converged_",
    "loss_curve_",
    "n_features_in_",
    "n_samples_seen_",
)


def save(snmf: SNMF, path: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a fitted SNMF into a folder, which is made; what is there of the same names is replaced.

    Args:
        snmf: Fitted.
        path: The folder.
        provenance: JSON values, for example model, hook, layer, dataset, tokens, sha256.

    Raises:
        SpecError: The provenance is no JSON.
        ArtifactError: The disk refuses.
    """
    from safetensors.numpy import save as tensor_bytes

    check_is_fitted(snmf)
    sparse = scipy.sparse.csr_array(snmf.components_)
    tensors = {
        "components_data": sparse.data,
        "components_indices": sparse.indices.astype(np.int32),
        "components_indptr": sparse.indptr.astype(np.int64),
        "usage": snmf.component_usage_,
        "explained_variance_ratio": snmf.explained_variance_ratio_,
    }
    tensors |= {n: v for n, v in (("mean", snmf.mean_), ("scale", snmf.scale_)) if v is not None}
    data = tensor_bytes({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    params = snmf.get_params()
    if isinstance(params["random_state"], np.random.RandomState):
        params["random_state"] = None  # a generator has no name; provenance can say how it was made
    described = {
        "schema_version": SCHEMA_VERSION,
        "params": params,
        "fitted": {name: getattr(snmf, name) for name in _NUMBERS},
        "provenance": dict(provenance or {}),
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    if hasattr(snmf, "feature_names_in_"):
        described["fitted"]["feature_names_in_"] = [str(name) for name in snmf.feature_names_in_]
    try:
        text = json.dumps(described, indent=1, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise SpecError(
            "the provenance cannot be written",
            where="provenance",
            allowed="JSON values: text, finite numbers, lists, objects",
            got=str(error),
        ) from None
    folder = given_path(path, "folder of an SNMF")
    replace_file(folder / TENSORS, data, action="write the components")
    replace_file(folder / DESCRIPTION, text.encode(), action="write the description")


def load(path: str | Path, kind: type[SNMF]) -> SNMF:
    """Read what ``save`` wrote; every array is the same to the bit.

    Args:
        path: The folder.
        kind: The estimator that is made.

    Raises:
        ArtifactError: The folder is not complete, damaged, or says things that do not agree.
    """
    return _read(given_path(path, "folder of an SNMF"), kind)[0]


def provenance(path: str | Path, kind: type[SNMF]) -> dict[str, Any]:
    """The provenance that was given to ``save``; everything is checked as in ``load``.

    Raises:
        ArtifactError: As ``load``.
    """
    return _read(given_path(path, "folder of an SNMF"), kind)[1]["provenance"]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def wrong(path: Path, what: str, allowed: str, got: object) -> ArtifactError:
    """The error of a file that cannot be used."""
    return ArtifactError(
        what, where=str(path), allowed=allowed, got=str(got)[:200], next_step="copy or make the folder again"
    )


def _read(folder: Path, kind: type[SNMF]) -> tuple[SNMF, dict[str, Any]]:
    description, file = folder / DESCRIPTION, folder / TENSORS
    with storage_errors("read the description of an SNMF", description):
        text = description.read_bytes()
    try:
        known = parse(text)
    except ValueError as error:
        raise wrong(description, "the description of an SNMF is not valid", "JSON", error) from None
    keys = {"schema_version", "params", "fitted", "provenance", "tensors_sha256"}
    if not isinstance(known, dict) or not keys <= known.keys():
        raise wrong(description, "the description of an SNMF lacks parts", ", ".join(sorted(keys)), known)
    if known["schema_version"] != SCHEMA_VERSION:
        raise wrong(
            description, "this format is of another version", str(SCHEMA_VERSION), known["schema_version"]
        )
    if not all(isinstance(known[name], dict) for name in ("params", "fitted", "provenance")):
        raise wrong(description, "the description of an SNMF is not valid", "objects", known)
    tensors = read_tensors(file)
    if sha256_file(file) != known["tensors_sha256"]:
        raise wrong(file, "components and description are not of one writing", known["tensors_sha256"], "")
    try:
        snmf = kind(**known["params"])
        snmf._validate_params()
    except (TypeError, ValueError) as error:
        raise wrong(description, "the parameters of an SNMF are not valid", "those of SNMF", error) from None
    _set_fitted(snmf, known["fitted"], tensors, folder)
    return snmf, known


def _set_fitted(snmf: SNMF, fitted: dict[str, Any], tensors: Mapping[str, np.ndarray], folder: Path) -> None:
    description, file = folder / DESCRIPTION, folder / TENSORS
    missing = [name for name in _NUMBERS if name not in fitted]
    width = fitted.get("n_features_in_")
    if missing or type(width) is not int or width < 1:
        raise wrong(description, "fitted numbers are missing", ", ".join(_NUMBERS), missing or width)
    _check_numbers(fitted, description, width)
    names = (
        "components_data",
        "components_indices",
        "components_indptr",
        "usage",
        "explained_variance_ratio",
    )
    lacking = [name for name in names if name not in tensors]
    if lacking:
        raise wrong(file, "tensors are missing", ", ".join(names), f"without {', '.join(lacking)}")
    arrays = {name: np.array(value) for name, value in tensors.items()}
    data, indices, offsets, usage, ratio = (arrays[name] for name in names)
    k = snmf.n_components
    bad = [name for name, value in arrays.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if bad:
        raise wrong(file, "tensors have NaN or infinite entries", "finite numbers", ", ".join(bad))
    shapes = {
        "usage": (usage, k),
        "explained_variance_ratio": (ratio, k),
        "components_indptr": (offsets, k + 1),
    }
    shapes |= {name: (arrays[name], width) for name in ("mean", "scale") if name in arrays}
    for name, (value, size) in shapes.items():
        if value.shape != (size,):
            raise wrong(
                file, "a tensor has another shape than the description says", f"{name} [{size}]", value.shape
            )
    if (
        data.dtype not in (np.float32, np.float64)
        or data.ndim != 1
        or indices.shape != data.shape
        or indices.dtype.kind != "i"
        or offsets.dtype.kind != "i"
        or offsets[0] != 0
        or offsets[-1] != len(data)
        or (np.diff(offsets) < 0).any()
        or ((indices < 0) | (indices >= width)).any()
    ):
        raise wrong(
            file,
            "the components are no sparse matrix",
            f"rows of entries with columns below {width}",
            f"{len(data)} entries, columns up to {indices.max(initial=-1)}",
        )
    sparse = scipy.sparse.csr_array((data, indices, offsets), shape=(k, width))
    if not sparse.has_canonical_format:
        raise wrong(
            file, "an entry of the components is there twice, or out of order", "ascending columns", ""
        )
    for name in _NUMBERS:
        setattr(snmf, name, fitted[name])
    if "feature_names_in_" in fitted:
        snmf.feature_names_in_ = np.array(fitted["feature_names_in_"], object)
    snmf.components_, snmf.n_components_ = sparse.toarray(), k
    snmf.support_sizes_ = np.diff(offsets).astype(np.int64)
    snmf.component_usage_, snmf.explained_variance_ratio_ = usage, ratio
    snmf.mean_, snmf.scale_, snmf._sums = arrays.get("mean"), arrays.get("scale"), None


def _check_numbers(fitted: Mapping[str, Any], description: Path, width: int) -> None:
    kinds = {"n_iter_": int, "n_samples_seen_": int, "converged_": bool, "loss_curve_": list}
    odd = [name for name in _NUMBERS if not isinstance(fitted[name], kinds.get(name, int | float))]
    if odd or not all(isinstance(value, int | float) for value in fitted["loss_curve_"]):
        raise wrong(description, "fitted numbers are no numbers", "numbers", ", ".join(odd) or "loss_curve_")
    labels = fitted.get("feature_names_in_", [""] * width)
    if not isinstance(labels, list) or len(labels) != width or not all(isinstance(n, str) for n in labels):
        raise wrong(description, "the names of the neurons do not fit", f"{width} texts", labels)

"""Read the folders of dictionary_learning (saprmarks): ``config.json`` and ``ae.pt``.

Of dictionary-learning 0.1.0 (``dictionary.py``, ``trainers/*.py``), by ``dict_class``:

- AutoEncoder: ReLU; ``bias`` is subtracted. ``from_pretrained`` gives decoder columns unit norm, and so do
  we.
- AutoEncoderNew: ReLU; the decoder bias is not subtracted.
- AutoEncoderTopK: the k largest. Its ``threshold`` is not used unless asked for, and is not used here.
- BatchTopKSAE, MatryoshkaBatchTopKSAE: ReLU strictly above one threshold, which is a JumpReLU dictionary;
  -1 is one that was never set, and then it must be set here before anything is encoded.
- GatedAutoEncoder: as SAELens, with other names.
- JumpReluAutoEncoder: strictly above the thresholds; the decoder bias is not subtracted.

encoder.weight is [dict_size, activation_dim], decoder.weight [activation_dim, dict_size]; W_enc and W_dec
are turned the other way. Which of them a file has is known by their names. The pickle is read with
weights_only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from sparsescope.dictionaries.autoencoder import SparseAutoencoder
from sparsescope.dictionaries.choice import BatchTopKSAE
from sparsescope.dictionaries.gated import GatedSAE
from sparsescope.dictionaries.interchange.reading import Config, Weights, build, dtype_named
from sparsescope.dictionaries.jumprelu import JumpReLUSAE
from sparsescope.dictionaries.matryoshka import MatryoshkaSAE
from sparsescope.dictionaries.relu import ReLUSAE
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.errors import ArtifactError

CONFIG, WEIGHTS = "config.json", "ae.pt"
_KINDS: dict[str, type[SparseAutoencoder]] = {
    "AutoEncoder": ReLUSAE,
    "AutoEncoderNew": ReLUSAE,
    "AutoEncoderTopK": TopKSAE,
    "BatchTopKSAE": JumpReLUSAE,
    "MatryoshkaBatchTopKSAE": JumpReLUSAE,
    "GatedAutoEncoder": GatedSAE,
    "JumpReluAutoEncoder": JumpReLUSAE,
}
_OTHER = "copy the file again, or take another checkpoint of the training"
_OF_BATCHES = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
#: Classes by our names of architectures, for files without a configuration.
_BY_NAME = {"topk": "AutoEncoderTopK", "batch_topk": "BatchTopKSAE", "jumprelu": "BatchTopKSAE"}


def load(path: Path, dtype: str | None = None, architecture: str | None = None) -> SparseAutoencoder:
    """Read a folder of dictionary_learning, or its ``ae.pt`` or a checkpoint.

    Args:
        path: The folder or the file.
        dtype: Type of the parameters; None for the one of the tensors.
        architecture: ``topk`` or ``batch_topk``, where a file without a configuration can be either.

    Raises:
        ArtifactError: A file is missing or damaged, or a field or tensor cannot be used.
        SpecError: The type is unknown.
    """
    file = path / WEIGHTS if path.is_dir() else path
    homes = [file.parent, file.parent.parent] if file.parent.name == "checkpoints" else [file.parent]
    home = next((home for home in homes if (home / CONFIG).is_file()), None)
    weights = Weights.pickled(file)
    whole = Config(file, {}) if home is None else Config.read(home / CONFIG)
    trainer = whole.part("trainer")
    name = _class_of(weights, architecture) if home is None else trainer.choice("dict_class", _KINDS)
    width, d_in = _sizes(weights, name)
    for key, size in (("activation_dim", d_in), ("dict_size", width)):
        if key in trainer.fields and trainer.whole(key) != size:
            raise trainer.fault(key, f"{size}, as the weights have", trainer.fields[key])
    k = _k(weights, trainer, width) if name == "AutoEncoderTopK" or name in _OF_BATCHES else None
    threshold = float(weights.number("threshold")) if "threshold" in weights.tensors and k else None
    if threshold is not None and not math.isfinite(threshold):
        raise ArtifactError(
            "the threshold of the dictionary is NaN or infinite",
            where=f"{file}, threshold",
            allowed="a finite number",
            got=threshold,
            next_step=_OTHER,
        )
    groups = weights.tensors.pop("group_sizes", None) if name == "MatryoshkaBatchTopKSAE" else None
    kind, parts = _KINDS[name], _parts(weights, name, width, d_in)
    weights.done()
    settings: dict[str, Any] = {
        "subtract_decoder_bias": name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    }
    prefixes = None
    if name in _OF_BATCHES:
        if threshold is None or threshold < 0:
            kind = BatchTopKSAE
            if groups is not None:
                kind, prefixes = MatryoshkaSAE, groups.cumsum(0).tolist()
        else:
            parts["threshold"] = torch.full_like(parts["encoder_bias"], threshold)
    wanted = parts["encoder"].dtype if dtype is None else dtype_named(dtype, "dtype")
    found = build(kind, parts, wanted, k=k, **settings)
    if isinstance(found, MatryoshkaSAE):
        found.prefixes = _checked_prefixes(prefixes, width, file)
    found.metadata = _metadata(name, whole)
    return found


def _class_of(weights: Weights, architecture: str | None) -> str:
    """The class of a file without a configuration, by its tensors.

    Raises:
        ArtifactError: No class has them, or two have.
    """
    names = weights.tensors
    if "gate_bias" in names:
        return "GatedAutoEncoder"
    if "W_enc" in names:
        return "MatryoshkaBatchTopKSAE" if "group_sizes" in names else "JumpReluAutoEncoder"
    if "bias" in names:
        return "AutoEncoder"
    if "decoder.bias" in names:
        return "AutoEncoderNew"
    if "encoder.weight" in names and architecture in _BY_NAME:
        return _BY_NAME[architecture]
    both = "encoder.weight" in names
    raise ArtifactError(
        "the class of the dictionary is not known: TopK and BatchTopK files have the same tensors" if both
        else "these are not the tensors of a dictionary",
        where=str(weights.path), allowed=f"a {CONFIG} beside it with trainer.dict_class: {', '.join(_KINDS)}",
        got=", ".join(sorted(names))[:300],
        next_step=f"copy {CONFIG} beside it{', or give architecture: topk or batch_topk' if both else ''}",
    )  # fmt: skip


def _sizes(weights: Weights, name: str) -> tuple[int, int]:
    """Features and inputs."""
    if name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        d_in, width = weights.shape("W_enc", 2)
        return width, d_in
    width, d_in = weights.shape("encoder.weight", 2)
    return width, d_in


def _k(weights: Weights, trainer: Config, width: int) -> int:
    """Active features of a row: what the weights were used with, also while training still lowers it.

    Raises:
        ArtifactError: File and configuration say different things, or it is not possible.
    """
    if "k" not in weights.tensors:
        return trainer.whole("k", 1, width, "the number of features")
    k = weights.number("k")
    if type(k) is not int or not 1 <= k <= width:
        raise ArtifactError(
            "k of the dictionary cannot be used",
            where=f"{weights.path}, k",
            allowed=f"a whole number from 1 to {width}, the number of features",
            got=k,
            next_step=_OTHER,
        )
    annealed = bool(trainer.fields.get("k_anneal_steps") or trainer.fields.get("anneal_k"))
    if "k" in trainer.fields and trainer.fields["k"] != k and not annealed:
        raise trainer.fault("k", f"{k}, as {weights.path.name} says", trainer.fields["k"])
    return k


def _parts(weights: Weights, name: str, width: int, d_in: int) -> dict[str, torch.Tensor]:
    """The tensors of a class by our names."""
    if name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        found = {
            "encoder": weights.take("W_enc", d_in, width).T,
            "encoder_bias": weights.take("b_enc", width),
            "decoder": weights.take("W_dec", width, d_in),
            "decoder_bias": weights.take("b_dec", d_in),
        }
        if name == "JumpReluAutoEncoder":
            found["threshold"] = weights.take("threshold", width)
        return found
    gated = name == "GatedAutoEncoder"
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
    found = {
        "encoder": weights.take("encoder.weight", width, d_in),
        "encoder_bias": weights.take("gate_bias" if gated else "encoder.bias", width),
        "decoder": weights.take("decoder.weight", d_in, width).T,
        "decoder_bias": weights.take(bias.get(name, "b_dec"), d_in),
    }
    if gated:
        found["magnitude_log"] = weights.take("r_mag", width)
        found["magnitude_bias"] = weights.take("mag_bias", width)
    if name == "AutoEncoder":
        norms = found["decoder"].norm(dim=1)
        if not torch.allclose(norms, torch.ones_like(norms)):
            norms = norms.where(norms > 0, 1)
            found["encoder"] = found["encoder"] * norms[:, None]
            found["encoder_bias"] = found["encoder_bias"] * norms
            found["decoder"] = found["decoder"] / norms[:, None]
    return found


def _checked_prefixes(prefixes: list[int] | None, width: int, file: Path) -> list[int]:
    if prefixes and prefixes[0] > 0 and prefixes[-1] == width and prefixes == sorted(set(prefixes)):
        return [int(prefix) for prefix in prefixes]
    raise ArtifactError(
        "the groups of the dictionary are not possible",
        where=f"{file}, group_sizes",
        allowed=f"sizes above 0 that add up to {width}, the number of features",
        got=f"{list(prefixes or [])} added up"[:120],
        next_step=_OTHER,
    )


def _metadata(name: str, config: Config) -> dict[str, Any]:
    trainer, buffer = config.part("trainer").fields, config.part("buffer").fields
    found: dict[str, Any] = {}
    if isinstance(trainer.get("lm_name"), str):
        found["model_name"] = trainer["lm_name"]
    if isinstance(buffer.get("ctx_len"), int):
        found["context_size"] = buffer["ctx_len"]
    read: dict[str, Any] = {"layout": "dictionary_learning", "architecture": name}
    if config.fields:
        read["other_fields"] = dict(config.fields)
    return found | {"sparsescope": {"read_from": read}}

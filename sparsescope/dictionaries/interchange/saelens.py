"""Read and write the folders of SAELens: ``cfg.json``, ``sae_weights.safetensors``,
``sparsity.safetensors``.

Of SAELens 6.54.12 (``saes/*.py``): W_enc is [d_in, d_sae] and W_dec [d_sae, d_out]; JumpReLU is open
strictly above its threshold; TopK takes the k largest scores, then ReLU; layer_norm divides by the standard
deviation (of d_in - 1) plus 1e-5 and multiplies with the standard deviation alone. With
``rescale_acts_by_decoder_norm`` scores are multiplied with the norms of decoder rows before the k largest
are taken, and divided again before decoding: unit rows with the factor in the encoder compute the same, and
that is what is loaded.

``metadata`` of a dictionary has what SAELens keeps there, unchanged; ``reshape_activations`` where it is
hook_z; ``densities``, the share of rows on which each feature is active, where there is a file of them; and
under ``sparsescope`` where it came from. Version 6 drops fields that it does not know, so nothing of ours is
outside.
"""

from __future__ import annotations

import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sparsescope.core.files import given_path, storage_errors, sync_path, write_file
from sparsescope.core.publish import temporary_path
from sparsescope.dictionaries.architectures import ARCHITECTURES
from sparsescope.dictionaries.autoencoder import SparseAutoencoder
from sparsescope.dictionaries.base import Dictionary
from sparsescope.dictionaries.interchange.reading import Config, Weights, build, dtype_named
from sparsescope.dictionaries.interchange.saelens_config import (
    CONFIG,
    METADATA,
    OF_BATCHES,
    READ,
    SCALER,
    SPARSITY,
    VERSION,
    WEIGHTS,
    Described,
    describe,
)
from sparsescope.errors import ArtifactError, SpecError

_DENSITY_FLOOR = 1e-10  # what SAELens adds before the logarithm
#: Names in the file of the parameters; those of two dimensions are stored the other way round, but for W_dec.
_NAMES = {
    "encoder_bias": "b_enc",
    "decoder_bias": "b_dec",
    "threshold": "threshold",
    "magnitude_log": "r_mag",
    "magnitude_bias": "b_mag",
}


def load(folder: Path, dtype: str | None = None) -> SparseAutoencoder:
    """Read a folder of SAELens.

    Args:
        folder: The folder.
        dtype: Type of the parameters; None for the one that the configuration names.

    Raises:
        ArtifactError: A file is missing or damaged, or a field or tensor cannot be used.
        SpecError: The type is unknown.
    """
    config = Config.read(folder / CONFIG)
    said = describe(config)
    wanted = dtype_named(said.dtype if dtype is None else dtype, "dtype")
    weights = Weights.safetensors(folder / WEIGHTS)
    parts = _parts(said, weights)
    weights.done()
    if said.scaled:
        _fold_scale(parts, said, _scale(folder, config))
    if said.rescale:
        _fold_norms(parts)
    entry = ARCHITECTURES[READ[said.architecture]]
    found = build(
        entry.load(), parts, wanted, k=_k(said),
        site=_text(said.metadata, "hook_name"), site_out=_text(said.metadata, "hook_name_out"),
        subtract_decoder_bias=said.subtract, normalize=said.normalize,
    )  # fmt: skip
    found.metadata = _metadata(said, folder)
    return found


def save(dictionary: Dictionary, folder: str | Path) -> Path:
    """Write a dictionary as a folder that SAELens loads, with the rule that is exported.

    Args:
        dictionary: A sparse autoencoder or transcoder.
        folder: A new folder, or one that is empty.

    Returns:
        The folder.

    Raises:
        SpecError: SAELens has no dictionary of this kind, or its metadata are no JSON.
        ArtifactError: The folder has files, or the disk refuses; nothing is left behind.
    """
    final = given_path(folder, "save_saelens(folder)")
    if not isinstance(dictionary, SparseAutoencoder):
        raise SpecError(
            "only sparse autoencoders and transcoders have a layout of SAELens",
            where="save_saelens(dictionary)",
            allowed=list(READ),
            got=type(dictionary).__name__,
            next_step="store it with its own save",
        )
    with torch.no_grad():
        plain = dictionary.to_inference()
        config, tensors = _config(plain), _tensors(plain)
    densities = plain.metadata.get("densities")
    logs = None if densities is None else _log_densities(densities, plain.width)
    try:
        text = json.dumps(config, indent=1) + "\n"
    except (TypeError, ValueError) as error:
        raise SpecError(
            "the metadata of the dictionary are no JSON",
            where="metadata",
            got=str(error)[:200],
            next_step="keep only text, numbers, lists and mappings with names in it",
        ) from None
    _publish(final, text, tensors, logs)
    return final


# Reading


def _parts(said: Described, weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors of an architecture by our names."""
    d_in, width, d_out = said.d_in, said.d_sae, said.d_out
    found = {
        "encoder": weights.take("W_enc", d_in, width).T,
        "decoder": weights.take("W_dec", width, d_out),
        "decoder_bias": weights.take("b_dec", d_out),
        "encoder_bias": weights.take("b_gate" if said.architecture == "gated" else "b_enc", width),
    }
    if said.architecture == "gated":
        found["magnitude_log"] = weights.take("r_mag", width)
        found["magnitude_bias"] = weights.take("b_mag", width)
    elif said.architecture in OF_BATCHES:
        found["threshold"] = weights.take("topk_threshold").expand(width)
    elif "jumprelu" in said.architecture:
        if "log_threshold" in weights.tensors:  # of versions before 6, and of training
            found["threshold"] = weights.take("log_threshold", width).exp()
        else:
            found["threshold"] = weights.take("threshold", width)
    if "skip" in said.architecture:
        found["skip_weight"] = weights.take("W_skip", d_out, d_in)
    weights.renamed({"finetuning_scaling_factor": "scaling_factor"})
    if "scaling_factor" in weights.tensors:
        scale = weights.take("scaling_factor", width)
        if not torch.allclose(scale, torch.ones_like(scale)):
            if not said.finetuned:
                raise ArtifactError(
                    "the file scales its features, and its configuration says that it does not",
                    where=f"{weights.path}, scaling_factor",
                    allowed="ones, or finetuning_scaling_factor true in cfg.json",
                    got=f"{float(scale.min()):.4g} to {float(scale.max()):.4g}",
                    next_step="SAELens refuses it too: find out which of the two is meant",
                )
            # Versions before 6 scale what is decoded, not the codes
            found["decoder"] = found["decoder"] * scale[:, None]
    return found


def _scale(folder: Path, config: Config) -> float:
    """The factor that activations were multiplied with, which training keeps in a file of its own.

    Raises:
        ArtifactError: There is none: SAELens would load the dictionary without it, and encode something else.
    """
    if not (folder / SCALER).is_file():
        raise config.fault(
            "normalize_activations", f"none, layer_norm, or a {SCALER} beside it with the factor",
            "expected_average_only_in",
            f'write {SCALER} with {{"scaling_factor": sqrt(d_in) / mean norm of the activations}}; where the '
            "factor is folded into the weights already, write none here",
        )  # fmt: skip
    scaler = Config.read(folder / SCALER)
    factor = scaler.fields.get("scaling_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise scaler.fault("scaling_factor", "a number above 0", factor)
    if scaler.flag("has_whitening", False):
        raise scaler.fault(
            "has_whitening", "false", True, "dictionaries of whitened activations are not read"
        )
    return float(factor)


def _fold_scale(parts: dict[str, torch.Tensor], said: Described, factor: float) -> None:
    """What SAELens does when training ends (``fold_activation_norm_scaling_factor``)."""
    parts["encoder"] = parts["encoder"] * factor
    parts["decoder"] = parts["decoder"] / factor
    parts["decoder_bias"] = parts["decoder_bias"] / factor
    if said.rescale and "threshold" in parts:  # in units of scores times norms, which have become smaller
        parts["threshold"] = parts["threshold"] / factor


def _fold_norms(parts: dict[str, torch.Tensor]) -> None:
    """Put the norms of decoder rows into the encoder; thresholds are in units of the product already.

    A row of zeros makes the scores of its feature zero: it is never active.
    """
    norms = parts["decoder"].norm(dim=1)
    parts["encoder"] = parts["encoder"] * norms[:, None]
    parts["encoder_bias"] = parts["encoder_bias"] * norms
    parts["decoder"] = parts["decoder"] / norms.where(norms > 0, 1)[:, None]


def _k(said: Described) -> int | None:
    """Active features of a row: for TopK of the file, for thresholds what they aim at, where it is known."""
    if said.k is not None:
        return max(1, round(said.k))
    own = said.metadata.get("sparsescope")
    settings = own.get("settings") if isinstance(own, dict) else None
    k = settings.get("k") if isinstance(settings, dict) else None
    return k if type(k) is int and 1 <= k <= said.d_sae else None


def _metadata(said: Described, folder: Path) -> dict[str, Any]:
    found = dict(said.metadata)
    own = found.get("sparsescope")
    own = dict(own) if isinstance(own, dict) else {}
    read: dict[str, Any] = {"layout": "SAELens", "architecture": said.architecture}
    if said.others:
        read["other_fields"] = said.others
    own.setdefault("read_from", read)
    # So that names that only the file knows go back to where they were
    own["kept"] = sorted(set(said.metadata) - METADATA - {"sparsescope"})
    found["sparsescope"] = own
    if said.hook_z:
        found["reshape_activations"] = "hook_z"
    if (folder / SPARSITY).is_file():
        weights = Weights.safetensors(folder / SPARSITY)
        logs = weights.take("sparsity", said.d_sae)
        weights.done()
        found["densities"] = (10 ** logs.double() - _DENSITY_FLOOR).clamp(0, 1).tolist()
    return found


def _text(metadata: dict[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


# Writing


def _architecture(dictionary: SparseAutoencoder) -> str:
    """Its name in SAELens.

    Raises:
        SpecError: There is none.
    """
    name = {"relu": "standard"}.get(dictionary.architecture, dictionary.architecture)
    own = dictionary.metadata.get("sparsescope")
    read = own.get("read_from") if isinstance(own, dict) else None
    was = str(read.get("architecture")) if isinstance(read, dict) else ""
    skip = dictionary.skip_weight is not None
    transcoder = dictionary.d_out != dictionary.d_in or bool(dictionary.site_out) or skip
    if transcoder or was.endswith("transcoder"):
        skipping = "skip_" if skip else ""
        if name in ("standard", "jumprelu") and dictionary.normalize == "none":
            return f"{'' if name == 'standard' else 'jumprelu_'}{skipping}transcoder"
        raise SpecError(
            "SAELens has no transcoder of this kind",
            where="save_saelens(dictionary)",
            allowed="relu, jumprelu, without layer_norm",
            got=f"{dictionary.architecture}, {dictionary.normalize}",
            next_step="train a transcoder whose exported rule has thresholds",
        )
    if name not in READ or name in OF_BATCHES:
        raise SpecError(
            "SAELens has no architecture of this name",
            where="save_saelens(dictionary)",
            allowed="relu, gated, topk, abstopk, jumprelu, and those that export a JumpReLU autoencoder",
            got=dictionary.architecture,
        )
    return name


def _config(dictionary: SparseAutoencoder) -> dict[str, Any]:
    architecture = _architecture(dictionary)
    transcoder = architecture.endswith("transcoder")
    reshape = dictionary.metadata.get("reshape_activations") == "hook_z"
    found: dict[str, Any] = {
        "d_in": dictionary.d_in,
        "d_sae": dictionary.width,
        "dtype": str(dictionary.encoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.subtract_decoder_bias and not transcoder,
        "normalize_activations": dictionary.normalize,
        "reshape_activations": "hook_z" if reshape else "none",
        "metadata": _written_metadata(dictionary),
    }
    if architecture in ("topk", "abstopk"):
        found |= {"k": dictionary.config["k"], "rescale_acts_by_decoder_norm": False}
    if transcoder:
        found["d_out"] = dictionary.d_out
    return found | {"architecture": architecture}


def _written_metadata(dictionary: SparseAutoencoder) -> dict[str, Any]:
    given = dict(dictionary.metadata)
    for key in ("densities", "reshape_activations"):
        given.pop(key, None)
    own = given.pop("sparsescope", None)
    own = dict(own) if isinstance(own, dict) else {}
    kept = own.pop("kept", [])
    names = METADATA | set(kept if isinstance(kept, list) else [])
    found = {key: value for key, value in given.items() if key in names}
    own |= {key: value for key, value in given.items() if key not in names}
    own |= {
        "version": version("sparsescope"),
        "architecture": dictionary.architecture,
        "settings": {name: getattr(dictionary, name) for name in dictionary.settings},
    }
    if dictionary.site:
        found["hook_name"] = dictionary.site
    if dictionary.site_out:
        found["hook_name_out"] = dictionary.site_out
    # A version below 6 would make SAELens read the file as an old one
    return {
        **found,
        "sae_lens_version": VERSION,
        "sae_lens_training_version": found.get("sae_lens_training_version"),
        "sparsescope": own,
    }


def _tensors(dictionary: SparseAutoencoder) -> dict[str, torch.Tensor]:
    """Tensors as SAELens names and turns them."""
    own = {name: value.detach().cpu() for name, value in dictionary.named_parameters()}
    found = {"W_enc": own["encoder"].T, "W_dec": own["decoder"]}
    if dictionary.skip_weight is not None:
        found["W_skip"] = own["skip_weight"]
    found |= {theirs: own[ours] for ours, theirs in _NAMES.items() if ours in own}
    if dictionary.architecture == "gated":
        found["b_gate"] = found.pop("b_enc")
    if dictionary.subtract_decoder_bias and _architecture(dictionary).endswith("transcoder"):
        # W (x - b) + c = W x + (c - W b); SAELens subtracts nothing from the input of a transcoder
        wide = own["encoder_bias"].double() - own["encoder"].double() @ own["decoder_bias"].double()
        found["b_enc"] = wide.to(own["encoder_bias"].dtype)
    return {name: tensor.contiguous() for name, tensor in sorted(found.items())}


def _log_densities(densities: Any, width: int) -> torch.Tensor:
    """log10 of the densities, [width], as SAELens stores them.

    Raises:
        SpecError: They are no shares of rows, or of other features.
    """
    try:
        found = torch.as_tensor(densities, dtype=torch.float64).detach().cpu()
        good = tuple(found.shape) == (width,) and bool(((found >= 0) & (found <= 1)).all())
    except (TypeError, ValueError, RuntimeError):
        good = False
    if not good:
        raise SpecError(
            "the densities of the dictionary are not possible",
            where="metadata, densities",
            allowed=f"{width} numbers from 0 to 1, one for each feature",
            got=repr(densities)[:120],
        )
    return (found + _DENSITY_FLOOR).log10().float()


def _publish(final: Path, text: str, tensors: dict[str, torch.Tensor], logs: torch.Tensor | None) -> None:
    """Write the folder beside its place, and rename it when it is complete.

    Raises:
        ArtifactError: The place has files, or the disk refuses; nothing is left behind.
    """
    from safetensors.torch import save as to_bytes

    with storage_errors("write the dictionary", final):
        final = final.resolve()
        if final.exists() and (not final.is_dir() or any(final.iterdir())):
            raise ArtifactError(
                "there is something at this place already",
                where=str(final),
                allowed="a new folder, or one that is empty",
                next_step="give another folder",
            )
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(final.parent, "dictionary")
        try:
            temporary.mkdir()
            for name, content in (
                (WEIGHTS, tensors),
                (SPARSITY, None if logs is None else {"sparsity": logs}),
            ):
                if content is not None:
                    write_file(temporary / name, to_bytes(content))
            write_file(temporary / CONFIG, text.encode())
            sync_path(temporary)
            temporary.rename(final)  # takes the place of an empty folder
            sync_path(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

"""Read the folders of EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors``.

Of sparsify 1.3.3 (``sparse_coder.py``, ``fused_encoder.py``): encoder.weight is [num_latents, d_in], and
W_dec has the same arrangement, one row for each feature: it is not to be turned, also where num_latents is
d_in. num_latents 0 means ``d_in * expansion_factor``. b_dec is subtracted from the input unless
``transcode``; ``skip_connection`` adds W_skip x, of the input as it came. Multi-TopK is a loss, and changes
no code. What is written is as wide as what is read.
"""

from __future__ import annotations

from pathlib import Path

from sparsescope.dictionaries.autoencoder import SparseAutoencoder
from sparsescope.dictionaries.interchange.reading import Config, Weights, build, dtype_named
from sparsescope.dictionaries.topk import TopKSAE

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_FIELDS = (
    "activation",
    "expansion_factor",
    "normalize_decoder",
    "num_latents",
    "k",
    "multi_topk",
    "skip_connection",
    "transcode",
    "d_in",
    "signed",
)


def load(folder: Path, dtype: str | None = None) -> SparseAutoencoder:
    """Read a folder of sparsify, that of one hook point.

    Args:
        folder: The folder.
        dtype: Type of the parameters; None for the one of the tensors.

    Raises:
        ArtifactError: A file is missing or damaged, or a field or tensor cannot be used.
        SpecError: The type is unknown.
    """
    config = Config.read(folder / CONFIG)
    activation = config.choice("activation", ("topk", "groupmax"), "topk")
    if activation == "groupmax":
        raise config.fault(
            "activation", "topk", activation,
            "dictionaries of groupmax cannot be read: one feature of each group is active, not the k largest",
        )  # fmt: skip
    if config.flag("signed", False):
        raise config.fault("signed", "false", True, "signed codes of old versions are not read")
    config.refuse_others(_FIELDS)
    d_in = config.whole("d_in")
    width = config.whole("num_latents", 0) if config.fields.get("num_latents") is not None else 0
    if not width:
        # Its default where the file does not say it
        factor = config.whole("expansion_factor") if "expansion_factor" in config.fields else 32
        width = d_in * factor
    k = config.whole("k", 1, width, "the number of features")
    weights = Weights.safetensors(folder / WEIGHTS)
    parts = {
        "encoder": weights.take("encoder.weight", width, d_in),
        "encoder_bias": weights.take("encoder.bias", width),
        "decoder": weights.take("W_dec", width, d_in),
        "decoder_bias": weights.take("b_dec", d_in),
    }
    if config.flag("skip_connection", False):
        parts["skip_weight"] = weights.take("W_skip", d_in, d_in)
    weights.done()
    transcode = config.flag("transcode", False)
    wanted = parts["encoder"].dtype if dtype is None else dtype_named(dtype, "dtype")
    found = build(TopKSAE, parts, wanted, k=k, subtract_decoder_bias=not transcode)
    read = {"layout": "sparsify", "architecture": "transcoder" if transcode else "topk"}
    found.metadata = {
        "hf_hook_name": folder.resolve().name,
        "sparsescope": {"read_from": read | {"other_fields": dict(config.fields)}},
    }
    return found

"""Read the files of Gemma Scope: ``params.npz``, and ``params.safetensors`` of Gemma Scope 2.

JumpReLU dictionaries (Lieberum et al., arXiv:2408.05147) with W_enc [d_in, width], b_enc, threshold, W_dec
[width, d_out] and b_dec [d_out]; the decoder bias is not subtracted from the input. Gemma Scope 2 has the
names in lower case, and affine_skip_connection [d_in, d_out] in transcoders with a linear skip. The files do
not say which site they are of; those of the embedding are of embeddings as the model scales them.
"""

from __future__ import annotations

from pathlib import Path

from sparsescope.dictionaries.autoencoder import SparseAutoencoder
from sparsescope.dictionaries.interchange.reading import Weights, build, dtype_named
from sparsescope.dictionaries.jumprelu import JumpReLUSAE

WEIGHTS, WEIGHTS_2 = "params.npz", "params.safetensors"


def load(path: Path, dtype: str | None = None) -> SparseAutoencoder:
    """Read a file of Gemma Scope, or the folder that it is in.

    Args:
        path: The file or the folder.
        dtype: Type of the parameters; None for the one of the tensors.

    Raises:
        ArtifactError: The file is missing or damaged, or a tensor cannot be used.
        SpecError: The type is unknown.
    """
    file = path
    if path.is_dir():
        file = path / (WEIGHTS if (path / WEIGHTS).exists() else WEIGHTS_2)
    weights = Weights.npz(file) if file.suffix == ".npz" else Weights.safetensors(file)
    weights.renamed({"w_enc": "W_enc", "w_dec": "W_dec"})
    d_in, width = weights.shape("W_enc", 2)
    d_out = weights.shape("W_dec", 2)[1]
    parts = {
        "encoder": weights.take("W_enc", d_in, width).T,
        "encoder_bias": weights.take("b_enc", width),
        "threshold": weights.take("threshold", width),
        "decoder": weights.take("W_dec", width, d_out),
        "decoder_bias": weights.take("b_dec", d_out),
    }
    if "affine_skip_connection" in weights.tensors:
        parts["skip_weight"] = weights.take("affine_skip_connection", d_in, d_out).T
    weights.done()
    wanted = parts["encoder"].dtype if dtype is None else dtype_named(dtype, "dtype")
    found = build(JumpReLUSAE, parts, wanted, subtract_decoder_bias=False)
    layout = "Gemma Scope" if file.suffix == ".npz" else "Gemma Scope 2"
    found.metadata = {"sparsescope": {"read_from": {"layout": layout, "architecture": "jumprelu"}}}
    return found

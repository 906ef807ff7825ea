"""Transcoders (Dunefsky et al., arXiv:2406.11944): the input of an MLP is encoded, its output is decoded.

The rule is BatchTopK's, so that the exported file is a JumpReLU transcoder. With ``skip`` (Paulo et al.,
arXiv:2501.18823) a linear map of the input is added.
"""

from __future__ import annotations

from typing import Any

from sparsescope.dictionaries.choice import BatchTopKSAE
from sparsescope.errors import SpecError


class Transcoder(BatchTopKSAE):
    """Sparse autoencoder from one site to another.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        d_out: Width of what it writes.
        site_out: Name of the site that it writes.
        k: Mean number of active features of a row.
        skip: Whether a linear map of the input is added.
        **settings: See ``BatchTopKSAE``.

    Raises:
        SpecError: It has no ``site_out``.
    """

    architecture = "transcoder"

    def __init__(self, d_in: int, width: int, *, site_out: str = "", **settings: Any) -> None:
        if not site_out:
            raise SpecError(
                "a transcoder needs the site that it writes",
                where="Transcoder(site_out)",
                next_step="give for example site_out='blocks.3.hook_mlp_out'",
            )
        super().__init__(d_in, width, site_out=site_out, **{**settings, "subtract_decoder_bias": False})

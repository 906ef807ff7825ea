"""Norms of decoder rows put into the encoder: the same codes up to the factor, the same output."""

from __future__ import annotations

import pytest
import torch

from sparsescope.dictionaries import (
    BatchTopKSAE,
    FeatureChoiceSAE,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    ReLUSAE,
    TopKSAE,
    Transcoder,
)
from sparsescope.dictionaries.topk import AbsTopKSAE
from sparsescope.errors import SpecError

D, F = 8, 24
MADE = {
    "relu": lambda: ReLUSAE(D, F),
    "layer_norm": lambda: ReLUSAE(D, F, normalize="layer_norm"),
    "gated": lambda: GatedSAE(D, F),
    "jumprelu": lambda: JumpReLUSAE(D, F),
    "batch_topk": lambda: BatchTopKSAE(D, F, k=4),
    "feature_choice": lambda: FeatureChoiceSAE(D, F, k=4),
    "matryoshka": lambda: MatryoshkaSAE(D, F, k=4),
    "transcoder": lambda: Transcoder(D, F, k=4, d_out=10, site_out="b", skip=True),
    "float64": lambda: JumpReLUSAE(D, F, dtype="float64"),
}


def filled(name):
    dictionary = MADE[name]()
    generator = torch.Generator().manual_seed(3)
    for key, parameter in dictionary.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.5
        parameter.data.copy_(drawn.abs() if key == "threshold" else drawn)
    if isinstance(dictionary, BatchTopKSAE):
        dictionary.threshold.copy_(torch.rand(dictionary.threshold.shape, generator=generator) + 0.3)
    return dictionary, torch.randn(40, D, generator=generator)


@pytest.mark.parametrize("name", MADE)
def test_folding_changes_neither_output_nor_which_features_are_active(name):
    dictionary, x = filled(name)
    before, out, norms = (
        dictionary.encode(x),
        dictionary.reconstruct(x),
        dictionary.decoder.norm(dim=1).detach(),
    )
    assert 0 < len(before.indices) < 40 * F and float(norms.max() / norms.min()) > 1.5
    dictionary.fold_decoder_norm()
    after = dictionary.encode(x)
    assert torch.equal(before.indices, after.indices) and torch.equal(before.offsets, after.offsets)
    assert torch.allclose(after.values, before.values * norms[before.indices.long()], rtol=1e-5, atol=1e-5)
    assert torch.allclose(dictionary.reconstruct(x), out, rtol=1e-5, atol=1e-5)
    assert torch.allclose(dictionary.decoder.norm(dim=1), torch.ones_like(norms))
    inference = dictionary.to_inference()
    assert torch.equal(inference.encode(x).indices, before.indices)
    assert torch.allclose(inference.reconstruct(x), out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MADE)
def test_factors_that_are_folded_are_gone(name):
    dictionary, x = filled(name)
    dictionary.fold_decoder_norm()
    values = {
        key: value.detach().clone()
        for key, value in (*dictionary.named_parameters(), *dictionary.named_buffers())
    }
    codes = dictionary.encode(x)
    factors = torch.linspace(0.2, 5, F, dtype=dictionary.encoder.dtype)
    with torch.no_grad():
        dictionary.decoder.mul_(factors[:, None])
        dictionary.encoder.div_(factors[:, None])
        dictionary.encoder_bias.div_(factors)
        for key in ("threshold", "magnitude_bias"):
            if hasattr(dictionary, key):
                getattr(dictionary, key).div_(factors)
    assert torch.allclose(
        dictionary.encode(x).values, codes.values / factors[codes.indices.long()], atol=1e-5
    )
    dictionary.fold_decoder_norm()
    for key, value in (*dictionary.named_parameters(), *dictionary.named_buffers()):
        assert torch.allclose(value, values[key].expand_as(value), rtol=1e-5, atol=1e-6), key
    again = dictionary.encode(x)
    assert torch.equal(again.indices, codes.indices)
    assert torch.allclose(again.values, codes.values, rtol=1e-5, atol=1e-5)


def test_a_row_of_zeros_stays():
    dictionary, x = filled("relu")
    dictionary.decoder.data[3] = 0
    out = dictionary.reconstruct(x)
    dictionary.fold_decoder_norm()
    assert not dictionary.decoder[3].any() and torch.allclose(dictionary.reconstruct(x), out, atol=1e-5)


@pytest.mark.parametrize("kind", [TopKSAE, AbsTopKSAE])
def test_the_k_largest_would_be_others(kind):
    dictionary, x = kind(D, F, k=4), torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    codes, out = dictionary.encode(x), dictionary.reconstruct(x)
    dictionary.decoder.data.mul_(3)
    dictionary.encoder.data.div_(3)
    dictionary.fold_decoder_norm()  # one norm for all keeps their order
    again = dictionary.encode(x)
    assert torch.equal(again.indices, codes.indices) and torch.allclose(again.values, codes.values, atol=1e-5)
    assert torch.allclose(dictionary.reconstruct(x), out, atol=1e-5)
    dictionary.decoder.data[0] *= 1.01
    kept = dictionary.encoder.detach().clone()
    with pytest.raises(SpecError, match="among the k largest"):
        dictionary.fold_decoder_norm()
    assert torch.equal(dictionary.encoder, kept)

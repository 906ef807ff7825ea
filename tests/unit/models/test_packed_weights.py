"""Weights in other forms than floats of two bytes or more: hashed, counted and named, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsescope.errors import SubjectError
from sparsescope.models import Subject, load, wrap
from sparsescope.models.identity import fingerprint, weight_hash


def quantized(dtype: torch.dtype, change: float = 0.0) -> Subject:
    model = load("random-llama").model
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] += change
    return wrap(torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "origin", "itemsize"),
    [(torch.qint8, "qint8+float32", 1), (torch.float16, "float16+float32", 2)],
)
def test_packed_weights_are_weights(dtype: torch.dtype, origin: str, itemsize: int) -> None:
    plain = load("random-llama")
    subject = quantized(dtype)
    assert (subject.origin_precision, subject.dtype) == (origin, "float32")
    assert subject.identity.n_parameters == plain.identity.n_parameters
    linear = sum(
        module.weight.numel() for module in plain.model.modules() if isinstance(module, torch.nn.Linear)
    )
    saved = plain.memory_estimate()["weights"] - subject.memory_estimate()["weights"]
    # What is unpacked has scales beside it, in a few bytes a layer
    assert 0 <= linear * (4 - itemsize) - saved < 64 * 22
    assert subject.unstorable == ()
    hashes = {subject.identity.weight_hash, quantized(dtype).identity.weight_hash}
    assert len(hashes) == 1, "made again it is the same"
    assert quantized(dtype, 0.05).identity.weight_hash not in hashes
    assert plain.identity.weight_hash not in hashes


def test_both_packings_of_one_model_are_two_models() -> None:
    assert quantized(torch.qint8).identity.weight_hash != quantized(torch.float16).identity.weight_hash


def test_the_identity_follows_packed_weights() -> None:
    subject = quantized(torch.qint8)
    layer = subject.model.model.layers[0].mlp.down_proj
    before, mark = subject.identity, fingerprint(subject.model)
    assert fingerprint(subject.model) == mark and subject.identity == before
    weight = layer.weight()
    other = torch.quantize_per_tensor(weight.dequantize() * 2, 2 * weight.q_scale(), 0, torch.qint8)
    assert torch.equal(other.int_repr(), weight.int_repr())
    layer.set_weight_bias(other, layer.bias())  # the same integers under another scale
    assert subject.identity.weight_hash != before.weight_hash


def test_float16_matrices_that_are_packed_can_be_read() -> None:
    found = quantized(torch.float16).parameter("weight:blocks.0.mlp.out.weight")
    right = load("random-llama").parameter("weight:blocks.0.mlp.out.weight").half().float()
    assert torch.equal(found, right)


def test_channels_have_scales_of_their_own() -> None:
    class Held(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            scales, zeros = torch.tensor([0.1, scale]), torch.zeros(2, dtype=torch.int64)
            made = torch.quantize_per_channel(torch.zeros(2, 3), scales, zeros, 0, torch.qint8)
            self.register_buffer("weight", made)

    hashes = {weight_hash(Held(scale)) for scale in (0.1, 0.2)}
    assert len(hashes) == 2
    assert fingerprint(Held(0.1))[0][4:] != fingerprint(Held(0.2))[0][4:]


class Converting(torch.nn.Linear):
    """A layer that keeps its weight in a byte and computes in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.float())


def in_bytes(dtype: torch.dtype, cls: type = Converting) -> Any:
    model = load("random-llama").model
    for block in model.model.layers:
        block.mlp.down_proj.__class__ = cls
        weight = block.mlp.down_proj.weight.detach().to(dtype)
        block.mlp.down_proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    return model


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_floats_of_a_byte_are_hashed_and_read(dtype: torch.dtype) -> None:
    model = in_bytes(dtype)
    subject = wrap(model)
    name = str(dtype).removeprefix("torch.")
    assert subject.origin_precision == f"float32+{name}"
    before = subject.identity.weight_hash
    assert wrap(in_bytes(dtype)).identity.weight_hash == before
    weight = model.model.layers[0].mlp.down_proj.weight
    assert torch.equal(subject.parameter("weight:blocks.0.mlp.out.weight"), weight.float())
    assert subject.forward([[1, 2, 3]]).isfinite().all()
    weight.data.view(torch.uint8)[0, :2] = 8
    assert subject.identity.weight_hash != before
    weight.data.view(torch.uint8)[0, 0] = 127  # NaN in both
    with pytest.raises(SubjectError, match="1 weights are NaN") as caught:
        wrap(model)
    assert "down_proj.weight" in str(caught.value)


def test_linear_layers_that_cannot_compute_are_refused_by_name() -> None:
    with pytest.raises(SubjectError, match="cannot compute with weights of this precision") as caught:
        wrap(in_bytes(torch.float8_e4m3fn, torch.nn.Linear), id="small")
    message = str(caught.value)
    assert "small, first: model.layers.0.mlp.down_proj.weight" in message and "float8_e4m3fn" in message


def test_what_is_stored_in_no_known_form_is_refused_by_name() -> None:
    class Strange(torch.nn.Module):
        def get_extra_state(self) -> Any:
            return {"table": object()}

    model = load("random-llama").model
    model.model.layers[1].mlp.extra = Strange()
    with pytest.raises(SubjectError, match="cannot be hashed") as caught:
        wrap(model)
    assert "model.layers.1.mlp.extra._extra_state.table" in str(caught.value)

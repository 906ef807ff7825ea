"""Published tables from configurations alone; matrices against state dicts; what a mixture reads."""

from __future__ import annotations

import pytest
import torch
import transformers

import sparsescope as ss
from sparsescope.errors import SpecError, SubjectError
from sparsescope.inference import accounting as a
from sparsescope.metrics.bounds import BANDWIDTHS, SCHEMES, dense_cost, mlp_saving
from sparsescope.metrics.matrix_costs import as_row
from sparsescope.models.structure.dimensions import read_dimensions

ZOO = ["random-llama", "random-gpt2", "random-opt", "random-gemma2", "random-olmoe", "random-qwen2moe"]
DENSE = ZOO[:4]


def shaped(kind, d, f, layers, heads, kv, vocabulary, **more):
    config = getattr(transformers, f"{kind}Config")
    return config(
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocabulary,
        **more,
    )


CONFIGS = {
    "Llama-2-7B": lambda: shaped("Llama", 4096, 11008, 32, 32, 32, 32000),
    "Llama-3-8B": lambda: shaped("Llama", 4096, 14336, 32, 32, 8, 128256),
    "Mistral-7B": lambda: shaped("Mistral", 4096, 14336, 32, 32, 8, 32000),
    "Qwen2.5-7B": lambda: shaped("Qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Phi-4": lambda: shaped("Phi3", 5120, 17920, 40, 40, 10, 100352, pad_token_id=None),
}
CUTS = (0.25, 0.40, 0.50, 0.65)
# specs/sparse_inference.md 2.4: weights of blocks (1e9); in percent what rotations add, cuts without, with.
TABLE = {
    "Llama-2-7B": (6.476, 16.6, (24.5, 39.2, 49.0, 63.7), (8.3, 23.0, 32.8, 47.5)),
    "Llama-3-8B": (6.979, 15.4, (23.2, 37.2, 46.5, 60.4), (8.9, 22.9, 32.2, 46.1)),
    "Mistral-7B": (6.979, 15.4, (24.5, 39.3, 49.1, 63.8), (9.4, 24.2, 34.0, 48.7)),
    "Qwen2.5-7B": (6.525, 11.0, (23.1, 36.9, 46.1, 60.0), (12.9, 26.7, 36.0, 49.8)),
    "Phi-4": (13.63, 15.4, (24.1, 38.5, 48.2, 62.6), (9.3, 23.7, 33.4, 47.8)),
}


@pytest.fixture(scope="module")
def inventories():
    return {name: a.inventory(config(), bytes_per_weight=2) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", TABLE)
def test_the_published_table_and_what_it_leaves_out(name, inventories):
    found, (weights, added, claimed, real) = inventories[name], TABLE[name]
    assert f"{found.weights / 1e9:.4g}" == f"{weights:.4g}"
    rotations = a.rotations(found)
    assert [len(one.matrices) for one in rotations] == [2] * len(found.dimensions.layers)
    for cut, without, having in zip(CUTS, claimed, real, strict=True):
        counted = a.account(found, 1 - cut, adapters=rotations)
        assert counted.added("flops") / (2 * found.weights) == pytest.approx(added / 100, abs=0.0005)
        assert round(100 * counted.published_cut(), 1) == without
        assert round(100 * counted.published_cut(net=True), 1) == having
        assert counted.bytes.block < cut == pytest.approx(counted.shares("bytes", net=False).block)


# The same, 9.1: milliseconds of a token of Llama-3-8B, weights only, and how many times faster by bytes.
MILLISECONDS = {
    "H200": (3.13, 2.40, 1.96, 1.67, 1.24),
    "H100": (4.48, 3.44, 2.81, 2.40, 1.77),
    "A100-80": (7.36, 5.65, 4.62, 3.94, 2.91),
    "A6000": (19.5, 15.0, 12.3, 10.5, 7.7),
    "L4": (50.0, 38.4, 31.4, 26.8, 19.8),
}
FASTER = {
    "Llama-2-7B": (1.32, 1.64, 1.96, 2.76),
    "Llama-3-8B": (1.30, 1.59, 1.87, 2.53),
    "Qwen2.5-7B": (1.30, 1.59, 1.86, 2.50),
    "Phi-4": (1.32, 1.63, 1.93, 2.68),
}


def test_the_published_roofline(inventories):
    assert list(MILLISECONDS) == list(BANDWIDTHS)
    for device, row in MILLISECONDS.items():
        for cut, milliseconds in zip((0.0, *CUTS), row, strict=True):
            bound = a.account(inventories["Llama-3-8B"], 1 - cut).roofline(device)
            assert bound.milliseconds == pytest.approx(
                milliseconds, abs=0.0051 if milliseconds < 7.5 else 0.051
            )
            assert bound.bandwidth.name == f"{device} (peak)"
    for name, row in FASTER.items():
        for cut, ratio in zip(CUTS, row, strict=True):
            assert a.account(inventories[name], 1 - cut).roofline("H100").ratio == pytest.approx(
                ratio, abs=0.0051
            )


def block_matrices(subject):
    """Bytes of every tensor of the blocks with two or more dimensions."""
    inside = tuple(f"{block.path}." for block in subject.blocks)
    return {
        name: tensor.numel() * tensor.element_size()
        for name, tensor in subject.model.state_dict().items()
        if name.startswith(inside) and tensor.ndim >= 2
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ZOO)
def test_the_matrices_are_those_of_the_state_dict(name, dtype):
    subject = ss.load(name, dtype=dtype)
    found = a.inventory(subject)
    routers = sum(layer.router_weights for layer in found.dimensions.layers) * found.bytes_per_weight
    # The gate of a shared expert (one row) has no role
    others = sum(layer.other_weights for layer in found.dimensions.layers) * found.bytes_per_weight
    assert found.stored_bytes + routers + others == sum(block_matrices(subject).values())
    assert others == 0 or name == "random-qwen2moe"
    assert all(m.stored_bytes == subject.parameter(m.name).nbytes for m in found.matrices)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("attended", [0, 100])
def test_a_dense_token_costs_what_the_bounds_say(name, attended):
    subject = ss.load(name)
    counted, expected = (
        a.account(subject, attended=attended),
        dense_cost(read_dimensions(subject), attended=attended),
    )
    assert counted.total_bytes == counted.dense.total_bytes == pytest.approx(expected.total_bytes)
    assert counted.total_flops == counted.dense.total_flops == pytest.approx(expected.total_flops)
    assert counted.read.cache_bytes == expected.cache_bytes
    assert counted.bytes == counted.flops == a.Shares(0, 0, 0)
    mlp = counted.dense.weight_bytes["mlp matrices"] + counted.dense.weight_bytes["router"]
    assert mlp == pytest.approx(expected.weight_bytes["mlp"])


def test_a_tied_head_is_read_once_and_is_no_matrix_of_a_block():
    more = {"tie_word_embeddings": True}
    tied, apart = (
        a.inventory(shaped("Llama", 64, 176, 2, 4, 2, 500, **given), bytes_per_weight=2)
        for given in (more, {})
    )
    assert tied.matrices == apart.matrices and tied.dimensions.tied and not apart.dimensions.tied
    assert a.account(tied, 0.5).total_bytes == a.account(apart, 0.5).total_bytes
    assert a.account(tied).dense.weight_bytes["output head"] == 2 * 64 * 500


def test_fused_matrices_cost_what_separate_ones_cost():
    fused = a.inventory(shaped("Phi3", 64, 176, 2, 4, 2, 500, pad_token_id=None))
    apart = a.inventory(shaped("Llama", 64, 176, 2, 4, 2, 500))
    assert fused.matrices == apart.matrices
    density = {m.name: 0.1 * (n % 10) for n, m in enumerate(apart.matrices)}
    assert a.account(fused, density) == a.account(apart, density)
    model = transformers.Phi3ForCausalLM(shaped("Phi3", 64, 176, 2, 4, 2, 500, pad_token_id=None))
    assert a.inventory(ss.wrap(model, None)).stored_bytes == sum(
        block_matrices(ss.wrap(model, None)).values()
    )


def test_conv1d_is_read_as_out_by_in():
    shapes = {m.role: m.shape for m in a.inventory(ss.load("random-gpt2")).matrices}
    assert shapes["mlp.in.weight"] == (256, 64) and shapes["mlp.out.weight"] == (64, 256)
    assert shapes["attn.q.weight"] == shapes["attn.o.weight"] == (64, 64)


def test_a_configuration_gives_what_its_model_gives():
    subject = ss.load("random-llama", dtype="bfloat16")
    config = transformers.LlamaConfig(**subject.model.config.to_dict())
    before, state = config.to_dict(), torch.get_rng_state()
    found = a.inventory(config, bytes_per_weight=2)
    assert found.matrices == a.inventory(subject).matrices
    assert a.account(found, 0.3, attended=5) == a.account(subject, 0.3, attended=5)
    assert config.to_dict() == before and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("dtype", "size"), [(None, 4), ("bfloat16", 2)])
def test_a_configuration_may_name_its_precision(dtype, size):
    found = a.inventory(shaped("Llama", 64, 176, 2, 4, 2, 500, dtype=dtype))
    assert found.bytes_per_weight == size and {m.bytes_per_weight for m in found.matrices} == {size}


class Packed(torch.nn.Module):
    """A linear module that stores two weights in a byte; all are zero."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)

    def forward(self, x):
        return x.new_zeros(*x.shape[:-1], self.out_features)


def test_packed_weights_count_as_they_are_stored():
    subject = ss.load("random-llama")
    mlp = subject.model.model.layers[0].mlp
    mlp.down_proj = Packed(mlp.down_proj)
    sizes = {m.name: m.bytes_per_weight for m in a.inventory(subject).matrices}
    assert sizes.pop("weight:blocks.0.mlp.out.weight") == 0.5 and set(sizes.values()) == {4}
    mlp.down_proj.packed = mlp.down_proj._parameters.pop("weight")  # under another name
    with pytest.raises(SubjectError, match="does not say what it stores"):
        a.inventory(subject)
    assert {m.bytes_per_weight for m in a.inventory(subject, bytes_per_weight=1).matrices} == {1}


def test_only_routed_experts_are_read():
    found = a.inventory(ss.load("random-olmoe"))
    d, f, experts, routed, layers = 64, 48, 8, 2, 2
    expert_matrices = [m for m in found.matrices if m.expert is not None]
    assert len(expert_matrices) == 3 * experts * layers and {m.read for m in expert_matrices} == {
        routed / experts
    }
    dense = a.account(found).dense
    assert dense.weight_bytes["mlp matrices"] == 4 * 3 * d * f * routed * layers
    assert dense.flops["mlp matrices"] == 2 * 3 * d * f * routed * layers
    assert dense.weight_bytes["router"] == 4 * experts * d * layers
    half = a.account(found, {"weight:blocks.0.mlp.experts.out.weight": 0.5})  # all experts of one layer
    assert half.bytes.mlp == pytest.approx(0.5 / (3 * layers))
    one = a.account(found, {"weight:blocks.0.mlp.experts.3.out.weight": 0.5})
    assert one.bytes.mlp == pytest.approx(half.bytes.mlp / experts)
    factors = [a.low_rank(m, 4) for m in expert_matrices if m.role.endswith("out.weight")]
    assert a.account(found, adapters=factors).added("bytes") == 4 * 4 * (d + f) * routed * layers


def test_adapters_are_bytes_too():
    found = a.inventory(ss.load("random-llama"))
    plain = a.account(found, 0.5)
    (down,) = found.select("weight:blocks.1.mlp.out.weight")
    added = [
        a.low_rank(down, rank=8),
        a.channel_vectors(down, inputs=1, outputs=1, bytes_per_weight=4),
        *a.rotations(found),
    ]
    loaded = a.account(found, 0.5, adapters=added)
    factors, vectors, rotations = 4 * 8 * (64 + 176), 4 * (64 + 176), 4 * 3 * 2 * 64 * 64
    assert loaded.total_bytes == plain.total_bytes + factors + vectors + rotations
    assert loaded.total_flops == plain.total_flops + factors / 2 + vectors / 4 + rotations / 2
    dense = loaded.dense.weight_bytes
    block = sum(dense[key] for key in ("mlp matrices", "attention matrices", "other matrices"))
    assert loaded.bytes.block == pytest.approx(0.5 - (factors + vectors + rotations) / block)
    assert loaded.bytes.mlp == pytest.approx(0.5 - (factors + vectors) / dense["mlp matrices"])
    assert (
        loaded.bytes.model < plain.bytes.model < plain.bytes.block == loaded.shares("bytes", net=False).block
    )
    assert loaded.roofline("L4").ratio < plain.roofline("L4").ratio
    assert as_row(loaded)["adapter_bytes"] == factors + vectors + rotations


def test_keys_and_values_are_read_but_are_no_weights():
    found = a.inventory(
        shaped("Llama", 64, 176, 2, 4, 2, 500), bytes_per_weight=0.5, other_bytes_per_weight=2
    )
    none, many = a.account(found, 0.5), a.account(found, 0.5, attended=1000)
    assert many.read.cache_bytes == 2 * 1000 * (2 * 16) * 2 * 2  # keys and values, two layers, two bytes
    assert many.bytes == none.bytes and many.flops.model < none.flops.model
    read, dense = many.total_bytes + many.read.cache_bytes, many.dense.total_bytes + many.dense.cache_bytes
    assert many.roofline("L4").ratio == pytest.approx(dense / read) and many.roofline("L4").ratio < 1.8
    assert many.roofline("L4").milliseconds == pytest.approx(read / 0.3e9)
    assert many.dense.weight_bytes["attention matrices"] == 0.5 * (2 * 64 * 64 + 2 * 64 * 32) * 2
    assert many.dense.weight_bytes["output head"] == 2 * 64 * 500


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_ceiling_is_the_bound_of_an_mlp_without_active_units(name, scheme):
    subject = ss.load(name)
    most = a.ceiling(subject, scheme)
    gated = name in ("random-llama", "random-gemma2")
    assert most.mlp == pytest.approx(mlp_saving(gated, 0.0, scheme))
    dense = a.account(subject).dense.weight_bytes
    share = dense["mlp matrices"] / (dense["mlp matrices"] + dense["attention matrices"])
    assert most.block == pytest.approx(most.mlp * share) and most.model < most.block


def test_ceilings_of_patterns_and_of_experts():
    assert a.ceiling(ss.load("random-olmoe"), "first matrix computed").mlp == pytest.approx(2 / 3)
    every = a.ceiling(ss.load("random-llama"), "weight:blocks.*.*")
    assert (every.block, every.mlp) == (1, 1) and every.model < 1
    down = a.ceiling(ss.load("random-llama"), ["weight:blocks.*.mlp.out.weight"])
    assert down == a.ceiling(ss.load("random-llama"), "down only")
    with pytest.raises(SubjectError):
        a.ceiling(ss.load("random-llama"), "weight:blocks.*.mlp.outt.weight")


def test_mistakes_are_told():
    subject = ss.load("random-llama")
    with pytest.raises(SpecError, match="density is out of range") as caught:
        a.account(subject, {"weight:blocks.0.mlp.out.weight": 1.2})
    said = caught.value
    assert all((said.what, said.where, said.allowed, said.got, said.next_step)) and "mlp.out" in said.where
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(SpecError, match="out of range"):
            a.account(subject, wrong)
        with pytest.raises(SpecError, match="row_density is out of range"):
            a.account(subject, row_density=wrong)
    with pytest.raises(SpecError, match=r"did you mean 'weight:blocks\.0\.mlp\.out\.weight'"):
        a.account(subject, {"weight:blocks.0.mlp.outs.weight": 0.5})
    with pytest.raises(SpecError, match="bytes_per_weight must be more than 0"):
        a.inventory(subject, bytes_per_weight=0)
    with pytest.raises(SpecError, match="no causal language model"):
        a.inventory(transformers.T5Config())
    with pytest.raises(SpecError, match="did you mean 'H100'"):
        a.account(subject).roofline("H1000")


def test_a_mixture_that_does_not_say_its_routing_is_refused():
    subject = ss.load("random-mixtral")
    subject.model.config.num_experts_per_tok = 0
    for layer in subject.model.model.layers:
        layer.mlp.gate.top_k = 0
        layer.mlp.top_k = 0
    with pytest.raises(SubjectError, match="written nowhere"):
        a.inventory(subject)

"""Our own role map: no import of TransformerLens for common families, and names that no class uses now."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers

from sparsescope.models.structure.roles import BlockReader, Matrix, Mlp, activation_of

_CONFIG = transformers.LlamaConfig(
    vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
)


def reader() -> BlockReader:
    return BlockReader(transformers.LlamaForCausalLM(_CONFIG))


def container(**shapes: tuple[int, int]) -> torch.nn.Module:
    module = torch.nn.Module()
    for name, (n_in, n_out) in shapes.items():
        module.add_module(name, torch.nn.Linear(n_in, n_out))
    return module


def test_registered_subjects_do_not_import_transformer_lens() -> None:
    code = (
        "import sys\n"
        "from sparsescope.models import load, registered_subjects\n"
        "names = [n for n in registered_subjects() if n.startswith(('random-', 'glassllm'))]\n"
        "print(sum(len(load(n).sites('blocks.*.*')) > 0 for n in names) == len(names))\n"
        "print('transformer_lens' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize(
    ("shapes", "gate", "into", "out"),
    [
        ({"w1": (32, 48), "w2": (48, 32), "w3": (32, 48)}, "w1", "w3", "w2"),
        (
            {"gate_proj": (32, 48), "up_proj": (32, 48), "down_proj": (48, 32)},
            "gate_proj",
            "up_proj",
            "down_proj",
        ),
        ({"up_proj": (32, 48), "down_proj": (48, 32)}, None, "up_proj", "down_proj"),
        ({"fc_in": (32, 48), "fc_out": (48, 32)}, None, "fc_in", "fc_out"),
        ({"lin1": (32, 48), "lin2": (48, 32)}, None, "lin1", "lin2"),
    ],
)
def test_names_of_mlp_matrices(shapes: Any, gate: str | None, into: str, out: str) -> None:
    mlp = reader().mlp_in(container(**shapes), "mlp")
    assert isinstance(mlp, Mlp)
    assert mlp.into == Matrix(f"mlp.{into}") and mlp.out == Matrix(f"mlp.{out}")
    assert (mlp.gate.path if mlp.gate else None) == (f"mlp.{gate}" if gate else None)


def test_a_second_matrix_that_does_not_lead_back_is_no_mlp() -> None:
    assert reader().mlp_in(container(fc1=(32, 48), fc2=(48, 31)), "mlp") is None
    assert reader().mlp_in(container(other=(32, 48)), "mlp") is None


@pytest.mark.parametrize(
    ("module", "family"),
    [
        (torch.nn.ReLU(), "relu"),
        (torch.nn.ReLU6(), "relu6"),
        (torch.nn.LeakyReLU(), "leakyrelu"),
        (torch.nn.GELU(), "gelu"),
        (torch.nn.SiLU(), "silu"),
        (torch.nn.Tanh(), "tanh"),
        (transformers.activations.ACT2FN["gelu_new"], "gelu"),
        (transformers.activations.ACT2FN["gelu_pytorch_tanh"], "gelu"),
        (transformers.activations.ACT2FN["quick_gelu"], "gelu"),
        (transformers.activations.ACT2FN["silu"], "silu"),
        (transformers.activations.ACT2FN["relu2"], "relu2"),
    ],
)
def test_families_of_activations(module: torch.nn.Module, family: str) -> None:
    holder = torch.nn.Module()
    holder.act_fn = module
    assert activation_of(holder, "mlp", _CONFIG) == (family, "mlp.act_fn")


def test_without_a_module_the_configuration_names_the_activation() -> None:
    assert activation_of(torch.nn.Module(), "mlp", _CONFIG) == ("silu", None)

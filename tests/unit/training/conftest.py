"""A recipe that trains in a fraction of a second."""

from __future__ import annotations

import pytest

TINY = """
name = "tiny"
title = "A tiny run"
license = "Apache-2.0"
seed = 3
steps = 30
checkpoints = [0, 10, 30]
log_every = 5

[model]
architecture = "ModularTransformerForCausalLM"
config = { vocab_size = 8, hidden_size = 16, intermediate_size = 32, num_attention_heads = 2 }

[data]
kind = "modular_addition"
modulus = 7
train_fraction = 0.5
batch_size = 16

[optimizer]
learning_rate = 1e-2
weight_decay = 1.0
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def recipe(recipe_file):
    from sparsescope.training.recipe import read_recipe

    return read_recipe(recipe_file)

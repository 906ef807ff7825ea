"""Random models of seven architectures, for tests and for baselines at initialization.

``random-opt`` is seed 0; ``random-opt@3`` and ``revision="seed-3"`` are seed 3. The weights
depend only on the name and the seed, and the random state of the process is left as it was.
A trained model must differ from these: a random ReLU network has density 1/2, because its
pre-activations are symmetric (zero biases and zero-mean weights; Li et al. 2023, "The Lazy
Neuron Phenomenon").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SpecError
from sparsescope.models.entries import LoadedModel, LoadRequest
from sparsescope.models.torch_environment import attention_errors, quiet_transformers, torch_dtype
from sparsescope.models.zoo.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY_SIZE, byte_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONTEXT = 256

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 64,
    "num_attention_heads": 4,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}

# name -> (class of the configuration, its parameters)
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "random-llama": ("LlamaConfig", {**_GROUPED, "num_hidden_layers": 3, "intermediate_size": 176}),
    "random-gpt2": (
        "GPT2Config",
        {
            **{k: v for k, v in _COMMON.items() if k.endswith("_id") or k == "vocab_size"},
            "n_positions": CONTEXT,
            "n_embd": 64,
            "n_head": 4,
            "n_layer": 3,
        },
    ),
    "random-opt": (
        "OPTConfig",
        {**_COMMON, "num_hidden_layers": 4, "ffn_dim": 512, "word_embed_proj_dim": 64},
    ),
    "random-gemma2": (
        "Gemma2Config",
        {**_GROUPED, "num_hidden_layers": 2, "intermediate_size": 192, "head_dim": 16, "sliding_window": 64},
    ),
    "random-qwen2moe": (
        "Qwen2MoeConfig",
        {
            **_GROUPED,
            "num_hidden_layers": 3,
            "intermediate_size": 128,
            "mlp_only_layers": [0],
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 96,
        },
    ),
    "random-olmoe": (
        "OlmoeConfig",
        {
            **_COMMON,
            "num_hidden_layers": 2,
            "intermediate_size": 48,
            "num_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "random-mixtral": (
        "MixtralConfig",
        {
            **_GROUPED,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}


def random_config(name: str) -> PreTrainedConfig:
    """Return the configuration of a random subject.

    Args:
        name: A registered name that starts with ``random-``.
    """
    import transformers

    class_name, parameters = _CONFIGS[name]
    return getattr(transformers, class_name)(**parameters)


def seed_of(revision: str | None) -> int:
    """Read the seed from a revision: None is 0; ``"3"`` and ``"seed-3"`` are 3.

    Raises:
        SpecError: It is written in another way.
    """
    if revision is None:
        return 0
    match = re.fullmatch(r"(?:seed-)?(\d{1,9})", revision)
    if match is None:
        raise SpecError(
            "a random subject takes its seed as revision",
            where="load(revision)",
            allowed="seed-N with N from 0 to 999999999",
            got=repr(revision),
            next_step='for example load("random-opt@3")',
        )
    return int(match.group(1))


def load_random(request: LoadRequest) -> LoadedModel:
    """Build a random subject.

    The weights are drawn in float32 on the CPU and then rounded to the requested dtype, so the
    same seed gives the same model in every dtype up to rounding.
    """
    import torch
    from transformers import AutoModelForCausalLM

    seed = seed_of(request.revision)
    config = random_config(request.name)
    attention = request.attn_implementation
    options = {"attn_implementation": attention} if attention else {}
    with attention_errors(attention), quiet_transformers(), torch.random.fork_rng(devices=[]):
        # The default generator, not torch.manual_seed: that one would also reseed every GPU.
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    model.eval()
    model.to(torch_dtype(request.dtype))
    return LoadedModel(model, byte_tokenizer(CONTEXT), f"seed-{seed}", "float32")

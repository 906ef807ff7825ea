"""Pruning block by block on every causal text model type of transformers: its masks are those that the whole
model gives, run again from the start for every block, or it is refused with the way that works.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsescope as ss
from sparsescope.errors import SubjectError
from sparsescope.models import Subject
from sparsescope.models.doctor import count_hooks
from sparsescope.pruning import prune


def _beside(*parts: str) -> Any:
    path = Path(__file__).parents[1].joinpath(*parts)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architectures = _beside("fixtures", "architectures.py")
by_hand = _beside("unit", "pruning", "by_hand.py")
TYPES = [name for name, home in architectures.model_types().items() if home == "AutoModelForCausalLM"]
#: Two windows, then one with a padded one.
TEXT = by_hand.document_text((26, 18))

NO_SUBJECT = frozenset(
    [
        "cpmant",
        "ctrl",
        "falcon_mamba",
        "hrm_text",
        "jetmoe",
        "longcat_flash",
        "mamba",
        "mamba2",
        "nemotron_h",
        "recurrent_gemma",
        "rwkv",
        "xlm",
        "xlnet",
        "xlstm",
        "zamba2",
    ]
)
# Type -> words of the refusal; all others are pruned
REFUSED: dict[str, str] = {}


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_pruned_block_by_block_or_refused_with_the_way_that_works(name: str) -> None:
    try:
        subject = ss.wrap(architectures.build(name), id=name)
    except SubjectError:
        assert name in NO_SUBJECT
        return
    assert name not in NO_SUBJECT
    before = {key: tensor.clone() for key, tensor in subject.model.state_dict().items()}
    if name in REFUSED:
        with pytest.raises(SubjectError) as caught:
            prune(subject, "wanda", 0.5, corpus=TEXT)
        assert REFUSED[name] in str(caught.value)
        assert "propagation='dense'" in (caught.value.next_step or "")
        sparse, masks = prune(subject, "wanda", 0.5, corpus=TEXT, propagation="dense")
    else:
        sparse, masks = prune(subject, "wanda", 0.5, corpus=TEXT)  # the check in it holds, or it raises
    assert masks.sparsity == 0.5
    for matrix in masks:
        weight = sparse.parameter(matrix)
        assert torch.equal(weight[~masks[matrix].tensor()], torch.zeros(masks[matrix].weights // 2)), matrix
    assert all(torch.equal(tensor, before[key]) for key, tensor in subject.model.state_dict().items())
    assert count_hooks(sparse.model) == count_hooks(subject.model) == 0


#: Parallel branches, fused and alternating qkv, norms at other places, several streams, keys of other layers,
#: latent attention, linear attention, state-space layers, experts of all forms, a cache that cannot be turned
#: off, routers and chosen keys that are handed on from block to block.
SAMPLED: dict[str, dict[str, Any]] = {
    "bamba": {},
    "bloom": {},
    "deepseek_v3": {},
    "deepseek_v4": {},
    "falcon": {"alibi": True},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt_neox": {},
    "gpt_oss": {},
    "glm_moe_dsa": {"index_topk": 4, "indexer_types": ["full", "shared"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {},
    "olmo2": {},
    "opt": {"do_layer_norm_before": False},
    "phi": {},
    "qwen3_moe": {},
    "qwen3_next": {},
    "stablelm": {"use_parallel_residual": True},
    "trocr": {},
    "zaya": {},
}
_PLAIN_EXPERTS = ("deepseek_v3", "qwen3_moe", "qwen3_next")


def _sampled(name: str) -> tuple[Subject, bool]:
    given = SAMPLED[name]
    return ss.wrap(architectures.build(name, **given), id=name), name in _PLAIN_EXPERTS


@pytest.mark.parametrize("name", SAMPLED)
def test_its_masks_are_those_of_whole_passes_from_the_start(name: str) -> None:
    subject, experts = _sampled(name)
    _, masks = prune(subject, "wanda", 0.5, corpus=TEXT)
    compared = by_hand.assert_sequential(subject, masks, TEXT, "wanda", 0.5, experts)
    assert compared > 0 and (compared == masks.weights or any("experts" in matrix for matrix in masks))
    _, dense = prune(subject, "wanda", 0.5, corpus=TEXT, propagation="dense")
    read = by_hand.captured(subject, TEXT, experts=experts)
    assert by_hand.assert_masks(subject, dense, read, "wanda", 0.5) == compared
    assert dense.masks != masks.masks

"""The models of the PyPI package ``glassllm`` as HF Llama models.

The package computes in NumPy and differs from HF in layout only: its matrices are (in, out),
and its rotary embedding rotates neighboring pairs (0, 1), (2, 3), ... where HF rotates the two
halves of a head. Transposing every matrix and reordering the rows of q and k gives the same
function. The weights are stored in float16.

Shapes: d = d_model, h = number of heads, p = size of one head.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einops import rearrange

from sparsescope.errors import DependencyError, SubjectError
from sparsescope.models.entries import LoadedModel, LoadRequest
from sparsescope.models.torch_environment import attention_errors, quiet_transformers, torch_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

_LANGUAGES = {"glassllm": "en", "glassllm-pt": "pt"}
_SPACE = "▁"
_SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>")


def load_glassllm(request: LoadRequest) -> LoadedModel:
    """Load the English (``glassllm``) or Portuguese (``glassllm-pt``) model of the package.

    Raises:
        DependencyError: The package is not installed.
        SubjectError: A revision other than the installed version is asked for.
    """
    files = _package_files()
    revision = f"glassllm=={version('glassllm')}"
    if request.revision not in (None, revision, version("glassllm")):
        raise SubjectError(
            f"subject {request.name!r} has no such revision",
            where="load(revision)",
            allowed=revision,
            got=repr(request.revision),
            next_step="leave revision out, or install that version of glassllm",
        )
    stem = files / _LANGUAGES[request.name]
    tokenizer = glass_tokenizer(stem.with_suffix(".tokenizer.json"))
    model = glass_model(stem.with_suffix(".npz"), request.attn_implementation)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.to(torch_dtype(request.dtype))
    return LoadedModel(model, tokenizer, revision, "float16")


def _package_files() -> Path:
    """Return the folder of weights of the installed package, without importing the package."""
    spec = find_spec("glassllm")
    folder = Path(spec.origin).parent / "weights" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise DependencyError(
            "the package glassllm, which carries this model, is not installed",
            where="load('glassllm')",
            next_step="pip install 'sparsescope[demo]'",
        )
    return folder


def interleaved_to_halves(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder the rows of q or k from interleaved rotary pairs to the two halves of HF.

    Args:
        weight: Matrix [h * p, d], (out, in); rows 2i and 2i+1 of a head rotate together.
        n_heads: Number of heads h in this matrix (query heads, or key heads).

    Returns:
        Matrix [h * p, d] in which rows i and i + p/2 of a head rotate together.
    """
    return rearrange(weight, "(head pair two) d -> (head two pair) d", head=n_heads, two=2)


def glass_model(path: Path, attn_implementation: str | None = None, *, permute: bool = True) -> Any:
    """Read one ``.npz`` of the package into a ``LlamaForCausalLM``.

    Args:
        path: The ``.npz`` file.
        attn_implementation: Passed to the model, None for the default of transformers.
        permute: Reorder q and k. Without it the model is wrong; tests use this as a control.

    Raises:
        SubjectError: The file cannot be read or lacks a tensor.
    """
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        with np.load(path) as data:  # allow_pickle stays False
            stored = json.loads(str(data["__config__"]))
            names = [key for key in data.files if key != "__config__"]
            arrays = {key: torch.from_numpy(data[key].astype(np.float32)) for key in names}
    except (OSError, ValueError, KeyError) as error:
        raise SubjectError(
            f"the weights of glassllm cannot be read: {error}",
            where=str(path),
            next_step="pip install --force-reinstall glassllm",
        ) from error
    config = LlamaConfig(
        vocab_size=stored["vocab_size"],
        hidden_size=stored["d_model"],
        intermediate_size=arrays["blocks.0.ffn.W1"].shape[1],
        num_hidden_layers=stored["n_layers"],
        num_attention_heads=stored["n_heads"],
        num_key_value_heads=stored["n_kv_heads"],
        max_position_embeddings=stored["max_len"],
        rope_parameters={"rope_type": "default", "rope_theta": stored["rope_base"]},
        rms_norm_eps=stored["eps"],
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with attention_errors(attn_implementation), quiet_transformers(), torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM._from_config(config, dtype=torch.float32, **options)
    state = {"model.embed_tokens.weight": arrays["E"], "model.norm.weight": arrays["norm_f.gamma"]}
    for layer in range(stored["n_layers"]):
        source, target = f"blocks.{layer}.", f"model.layers.{layer}."
        for name, heads in (("q", stored["n_heads"]), ("k", stored["n_kv_heads"]), ("v", 0), ("o", 0)):
            weight = arrays[f"{source}attn.W_{name.upper()}"].T.contiguous()
            state[f"{target}self_attn.{name}_proj.weight"] = (
                interleaved_to_halves(weight, heads) if heads and permute else weight
            )
        for name, key in (("gate", "W1"), ("up", "W3"), ("down", "W2")):
            state[f"{target}mlp.{name}_proj.weight"] = arrays[f"{source}ffn.{key}"].T.contiguous()
        state[f"{target}input_layernorm.weight"] = arrays[f"{source}norm1.gamma"]
        state[f"{target}post_attention_layernorm.weight"] = arrays[f"{source}norm2.gamma"]
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def glass_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Express the character BPE of the package exactly in ``tokenizers``.

    The package normalizes to NFC, writes spaces as U+2581, cuts the text into newlines, words
    with their leading spaces, and runs of spaces, and merges inside these chunks. Unknown
    characters give one ``<unk>`` each.

    Args:
        path: ``<language>.tokenizer.json`` of the package: its alphabet and merges.

    Returns:
        A fast tokenizer with the same ids. Special tokens written out in a text are read as text,
        as the package does.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        merges = [(left, right) for left, right in data["merges"]]
        tokens = (*_SPECIAL_TOKENS, *data["alphabet"], *(left + right for left, right in merges))
    except (OSError, ValueError, KeyError) as error:
        raise SubjectError(
            f"the tokenizer of glassllm cannot be read: {error}",
            where=str(path),
            next_step="pip install --force-reinstall glassllm",
        ) from error
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=_SPECIAL_TOKENS[1], fuse_unk=False)
    )
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", _SPACE)])
    chunks = Regex(rf"\n|{_SPACE}*[^{_SPACE}\n]+|{_SPACE}+")
    backend.pre_tokenizer = pre_tokenizers.Split(chunks, behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), _SPECIAL_TOKENS, strict=True)),
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )

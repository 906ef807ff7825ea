"""Whether transformers computes what a GGUF file says: every key is used, harmless, or refused by name.

The reader of transformers takes the keys that it knows and drops the others without a word, so a file with
rotary scaling, a soft cap or a sliding window becomes another model. Here each key of the architecture is
compared with the configuration that was read. What differs is set in the configuration where that is exact,
and refused elsewhere. Keys of other name spaces than ``general``, ``tokenizer``, ``split``, ``adapter`` and
the architecture are notes of those who made the file: nothing computes with them.

Source of the meanings: the GGUF specification of ggml, and ``llama-model.cpp`` and ``llama-vocab.cpp`` of
llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sparsescope.errors import SubjectError
from sparsescope.models.formats.gguf_rope import head_width, settle_rope

# The tensors say it too: another shape or number of them is refused when they are read.
_SHAPES = {
    "vocab_size",
    "embedding_length",
    "feed_forward_length",
    "block_count",
    "expert_count",
    "expert_shared_count",
    "shortconv.l_cache",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    "ssm.group_count",
    "nextn_predict_layers",
}
# Nothing that a pass computes depends on it, or its reader takes it as it is.
_HARMLESS = {
    "context_length",
    "tensor_data_layout",
    "pooling_type",
    "decoder_start_token_id",
    "attention.relative_buckets_count",
    "full_attention_interval",
}
# Where the configuration says the same: the first of these names that its class has; whether it may be set.
_SAME = {
    "attention.head_count": (("n_head", "num_attention_heads", "num_heads"), False),
    "attention.layer_norm_rms_epsilon": (("rms_norm_eps", "norm_eps", "layer_norm_epsilon"), True),
    "attention.layer_norm_epsilon": (("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon"), True),
    "attn_logit_softcapping": (("attn_logit_softcapping",), True),
    "final_logit_softcapping": (("final_logit_softcapping",), True),
    "router_logit_softcapping": (("router_logit_softcapping",), True),
    "logit_scale": (("logit_scale",), True),
    "expert_used_count": (("num_experts_per_tok",), True),
    "expert_feed_forward_length": (("moe_intermediate_size",), True),
    "expert_shared_feed_forward_length": (("shared_expert_intermediate_size",), True),
    "expert_weights_norm": (("norm_topk_prob",), True),
    "expert_weights_scale": (("routed_scaling_factor",), True),
    "use_parallel_residual": (("use_parallel_residual",), False),
}
# Values that change nothing in a model which has no such part.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logit_scale": (0, 1),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.temperature_scale": (0,),
    "attention.temperature_length": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.shared_kv_layers": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_feed_forward_length": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_weights_norm": (False,),
    "expert_weights_scale": (0, 1),
    "expert_gating_func": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "leading_dense_block_count": (0,),
    "moe_every_n_layers": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "nextn_predict_layers": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
}
_SOFTMAX = 1  # of ``expert_gating_func``
_TOKENIZER = {
    *(f"ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "scores", "merges")),
    *(f"ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom", "unknown", "seperator", "separator")),
    *(f"ggml.{name}_token_id" for name in ("padding", "mask", "cls", "prefix", "suffix", "middle")),
    *(f"ggml.fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
    *(f"ggml.{name}" for name in ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix")),
    *(f"ggml.{name}" for name in ("precompiled_charsmap", "remove_extra_whitespaces", "token_type_count")),
    *("ggml.eog_token_ids", "huggingface.json", "chat_template", "chat_templates"),
}


def check_whole(values: Mapping[str, Any], where: str) -> None:
    """Refuse a part of a split model, and a file that is no model.

    Args:
        values: The keys of the file.
        where: The file, for the message.

    Raises:
        SubjectError: It is one.
    """
    parts = values.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise SubjectError(
            f"this file is part {int(values.get('split.no') or 0) + 1} of a GGUF model in {parts} files",
            where=where,
            allowed="a model in one file",
            got=f"split.count = {parts}",
            next_step="join them with llama.cpp, then load MODEL.gguf: llama-gguf-split --merge "
            f"NAME-00001-of-{parts:05d}.gguf MODEL.gguf",
        )
    kind = values.get("general.type", "model")
    if kind != "model":
        raise SubjectError(
            "this GGUF file is no model by itself",
            where=where,
            allowed="general.type = model",
            got=f"general.type = {str(kind)[:80]}",
            next_step="join an adapter with its base model (llama-export-lora of llama.cpp), or load the "
            "file of the language model itself",
        )


def settle(values: Mapping[str, Any], config: Any, rope_freqs: Any, where: str) -> None:
    """Make a configuration say what the file says, or refuse the file.

    Args:
        values: The keys of the file.
        config: What transformers read of them; it is changed in place.
        rope_freqs: The tensor ``rope_freqs.weight`` of the file, an array, or None.
        where: The file, for the message.

    Raises:
        SubjectError: Keys that change what is computed, and cannot be set.
    """
    architecture = str(values.get("general.architecture"))
    prefix = f"{architecture}."
    own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    text = config.get_text_config()
    left: dict[str, Any] = {}
    # The widths of heads first: other keys are compared with what they say.
    for name in sorted(own, key=lambda name: (name != "attention.key_length", name)):
        if not _agrees(name, own, text):
            left[prefix + name] = own[name]
    _check_heads(own, text, prefix, left)
    for name, value in settle_rope(own, text, rope_freqs).items():
        left[f"{prefix}{name}" if name in own else name] = value
    left |= {
        name: value
        for name, value in values.items()
        if name.startswith("adapter.")
        or (name.startswith("tokenizer.") and not _tokenizer_key(name.removeprefix("tokenizer.")))
    }
    if left:
        raise dropped(left, where)


def dropped(left: Mapping[str, Any], where: str) -> SubjectError:
    """Build the error for parts of a file that transformers leaves out.

    Args:
        left: Name of each key or tensor, and its value.
        where: The file, for the message.
    """
    named = "; ".join(f"{name} = {str(value)[:60]}" for name, value in list(left.items())[:5])
    return SubjectError(
        f"transformers leaves out {len(left)} parts of this GGUF file; "
        "the model would compute something else",
        where=where,
        allowed="files of which every key and tensor is used",
        got=named + (f"; and {len(left) - 5} more" if len(left) > 5 else ""),
        next_step="load the original checkpoint of this model (safetensors), which says it in its own way",
    )


def _agrees(name: str, own: Mapping[str, Any], config: Any) -> bool:
    """Whether the configuration computes what a key says; it is set where it can be."""
    value = own[name]
    if name.startswith("rope."):  # all of them in settle_rope
        return True
    known = _SPECIAL.get(name)
    if known is not None and known(value, own, config):
        return True
    if name in _SAME:
        attributes, settable = _SAME[name]
        attribute = next((found for found in attributes if hasattr(type(config), found)), None)
        if attribute is not None:
            return _same(config, attribute, value, settable)
    if isinstance(value, int | float) and value in _NEUTRAL.get(name, ()):
        return True
    if name == "expert_count":  # in the tensors too, but a class without experts does not look for them
        return hasattr(type(config), "num_experts") or hasattr(type(config), "num_local_experts")
    return name in _SHAPES or name in _HARMLESS


def _same(config: Any, attribute: str, value: Any, settable: bool) -> bool:
    """Whether an attribute has the value, after setting it where that is allowed."""
    found = getattr(config, attribute)
    if (
        isinstance(value, int | float)
        and isinstance(found, int | float)
        and math.isclose(found, value, rel_tol=1e-6)
    ):
        return True
    if not value and not found:
        return True
    if settable:
        setattr(config, attribute, value or None if attribute.endswith("softcapping") else value)
    return settable


def _one(value: Any) -> Any:
    """A value that is stated for each layer, where all layers have the same."""
    return value[0] if isinstance(value, list) and len(set(value)) == 1 else value


def _key_length(value: Any, own: Mapping[str, Any], config: Any) -> bool:
    if getattr(config, "global_head_dim", None) is not None:  # two widths; its reader knows both
        return bool(config.global_head_dim == value)
    if head_width(config) != value and hasattr(type(config), "head_dim"):
        config.head_dim = value
    return head_width(config) == value


def _value_length(value: Any, own: Mapping[str, Any], config: Any) -> bool:
    return bool(value == own.get("attention.key_length", head_width(config)))


def _kv_heads(value: Any, own: Mapping[str, Any], config: Any) -> bool:
    value = _one(value)
    if config.model_type in ("falcon", "lfm2"):  # shapes say it; lfm2 gives 0 to layers without attention
        return True
    heads = getattr(config, "num_key_value_heads", None) or own.get("attention.head_count")
    return bool(heads == value)


def _scale(value: Any, own: Mapping[str, Any], config: Any) -> bool:
    scalar = getattr(config, "query_pre_attn_scalar", None) or head_width(config)
    return bool(scalar) and math.isclose(value, scalar**-0.5, rel_tol=1e-5)


def _window(value: Any, own: Mapping[str, Any], config: Any) -> bool:
    used = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    # A window as long as the text that the model was made for hides nothing.
    return bool(used == value or (used is None and value >= own.get("context_length", math.inf)))


def _pattern(value: Any, own: Mapping[str, Any], config: Any) -> bool:
    layers = getattr(config, "layer_types", None)
    if not layers:
        return False
    sliding = [kind == "sliding_attention" for kind in layers]
    if isinstance(value, list):
        return sliding == [bool(entry) for entry in value]
    return bool(value) and sliding == [(layer + 1) % value != 0 for layer in range(len(layers))]


def _gating(value: Any, own: Mapping[str, Any], config: Any) -> bool:
    if hasattr(type(config), "scoring_func"):  # its reader translates it
        return True
    return bool(value == _SOFTMAX) and hasattr(type(config), "norm_topk_prob")


_SPECIAL: dict[str, Callable[[Any, Mapping[str, Any], Any], bool]] = {
    "attention.key_length": _key_length,
    "attention.value_length": _value_length,
    "attention.head_count_kv": _kv_heads,
    "attention.scale": _scale,
    "attention.sliding_window": _window,
    "attention.sliding_window_pattern": _pattern,
    "expert_gating_func": _gating,
}


def _check_heads(own: Mapping[str, Any], config: Any, prefix: str, left: dict[str, Any]) -> None:
    """Note where heads without a stated width are not those of the embedding divided by their number.

    The reader of Llama files takes the rotary width for the width of heads.
    """
    heads, width = own.get("attention.head_count"), own.get("embedding_length")
    if "attention.key_length" in own or not isinstance(heads, int) or not isinstance(width, int) or not heads:
        return
    named = getattr(config, "head_dim", None)
    if named is not None and named != width // heads:
        if own.get("rope.dimension_count") == named:
            config.head_dim = width // heads  # settle_rope then says that the rotary width differs
        else:
            left[f"{prefix}attention.head_count"] = heads


def _tokenizer_key(name: str) -> bool:
    return name in _TOKENIZER or name.startswith(("chat_template.", "ggml.chat_template"))

"""Rotary positions as a GGUF file states them, set in the configuration of transformers.

llama.cpp turns key and query by ``position * scale * base ** (-2 i / width) / factor_i``. The scale is one
over ``rope.scaling.factor`` (or the older key ``rope.scale_linear``), of kind ``linear`` where no kind is
given; YaRN mixes it in by frequency. The factors are the tensor ``rope_freqs.weight``, which converters write
for the scaling of Llama 3; they are used where the parameters of that scaling give the very same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Their classes read ``rope_parameters`` of every kind in the same way.
_FAMILIES = ("llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
_LLAMA3_LENGTHS = (8192,)  # what converters write without asking; others by their key
_LOW, _HIGH = 1.0, 4.0
_SECTIONED = ("qwen3_5_text", "qwen3_5_moe_text")
_SCALING = "rope.scaling."


def settle_rope(own: Mapping[str, Any], config: Any, rope_freqs: Any) -> dict[str, Any]:
    """Set the rotary parameters of a configuration.

    Args:
        own: Keys of the file, without the name of the architecture.
        config: Configuration of the language model; changed in place.
        rope_freqs: The tensor ``rope_freqs.weight``, an array, or None.

    Returns:
        The keys, and the tensor, that could not be set; empty when the model will compute what the file says.
    """
    left: dict[str, Any] = {}
    parameters: Any = getattr(config, "rope_parameters", None)
    flat = isinstance(parameters, dict) and "rope_theta" in parameters
    base = own.get("rope.freq_base")
    if base is not None and not _has_base(config, parameters, float(base)):
        if flat:
            config.rope_parameters = {**parameters, "rope_theta": float(base)}
        else:
            left["rope.freq_base"] = base
    local = own.get("rope.freq_base_swa")
    if local is not None and not _theta(parameters, "sliding_attention", float(local)):
        left["rope.freq_base_swa"] = local
    for name in ("rope.dimension_count", "rope.dimension_count_swa"):
        if name in own and own[name] != _rotary_width(config, parameters):
            left[name] = own[name]
    sections = own.get("rope.dimension_sections")
    if sections is not None and config.model_type not in _SECTIONED and any(sections):
        left["rope.dimension_sections"] = sections
    scaling = {name: value for name, value in own.items() if _is_scaling(name)}
    wanted = _wanted(scaling, own, left)
    if rope_freqs is not None:
        found = _llama3(own, config, rope_freqs)
        if found is None or (found and wanted):
            left["rope_freqs.weight"] = "factors that no known scaling gives"
        wanted = found or wanted
    if wanted and config.model_type in _FAMILIES and isinstance(config.rope_parameters, dict):
        config.rope_parameters = {**config.rope_parameters, **wanted}
    elif wanted:
        left |= scaling or {"rope_freqs.weight": "scaling of a family whose classes are not known to take it"}
    known = {"rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.dimension_count_swa"}
    known |= {"rope.dimension_sections", *scaling}
    return left | {name: own[name] for name in own if name.startswith("rope.") and name not in known}


def head_width(config: Any) -> int:
    """Width of the heads that a configuration computes with."""
    own = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    if own is not None:
        return int(own)
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "n_head", None)
    return int(config.hidden_size // heads) if heads else 0


def _is_scaling(name: str) -> bool:
    return name.startswith(_SCALING) or name == "rope.scale_linear"


def _theta(parameters: Any, kind: str, base: float) -> bool:
    """Whether the layers of a kind have this base."""
    own = parameters.get(kind) if isinstance(parameters, dict) else None
    return isinstance(own, dict) and math.isclose(own.get("rope_theta", 0), base, rel_tol=1e-6)


def _has_base(config: Any, parameters: Any, base: float) -> bool:
    if not isinstance(parameters, dict):
        return False
    return _theta(parameters, "full_attention", base) or _theta({"": parameters}, "", base)


def _rotary_width(config: Any, parameters: Any) -> int:
    """How many numbers of each head are turned; 0 in a model without rotary positions."""
    if not isinstance(parameters, dict):
        return 0
    named = getattr(config, "rotary_dim", None)
    if named is not None:
        return int(named)
    own = parameters.get("full_attention", parameters)
    return int(head_width(config) * ((own or {}).get("partial_rotary_factor") or 1.0))


def _wanted(scaling: Mapping[str, Any], own: Mapping[str, Any], left: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of transformers for the scaling of a file; empty for none.

    ``left`` gets the keys that have no place in them.
    """
    factor = float(scaling.get(f"{_SCALING}factor") or scaling.get("rope.scale_linear") or 1.0)
    kind = scaling.get(f"{_SCALING}type", "linear")
    # Neutral values by key; YaRN alone gives some of them a place.
    neutral: dict[str, tuple[Any, ...]] = {
        "alpha": (0, 1),
        "attn_factor": (1,),
        "yarn_attn_factor": (1,),
        "yarn_log_multiplier": (0,),
        "yarn_ext_factor": (1,) if kind == "yarn" else (0,),
    }
    taken = {"type", "factor", "finetuned", "original_context_length", "yarn_beta_fast", "yarn_beta_slow"}
    for name, value in scaling.items():
        short = name.removeprefix(_SCALING)
        if short not in taken and name != "rope.scale_linear" and value not in neutral.get(short, ()):
            left[name] = value
    if kind == "none" or (kind == "linear" and factor == 1):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    length = scaling.get(f"{_SCALING}original_context_length") or own.get("context_length")
    if kind != "yarn" or not length:
        left[f"{_SCALING}type"] = kind
        return {}
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(length),
        "beta_fast": float(scaling.get(f"{_SCALING}yarn_beta_fast") or 32.0),
        "beta_slow": float(scaling.get(f"{_SCALING}yarn_beta_slow") or 1.0),
    }


def _llama3(own: Mapping[str, Any], config: Any, rope_freqs: Any) -> dict[str, Any] | None:
    """Parameters of the scaling of Llama 3 that give these factors; empty where all are 1; None for none."""
    import numpy as np

    given = np.asarray(rope_freqs, dtype=np.float64).reshape(-1)
    parameters = getattr(config, "rope_parameters", None)
    if not len(given) or not np.isfinite(given).all():
        return None
    if (given == 1).all():
        return {}
    base = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    width = _rotary_width(config, parameters)
    if base is None or width != 2 * len(given):
        return None
    factor = float(given.max())
    named = own.get(f"{_SCALING}original_context_length")
    for length in (*((int(named),) if named else ()), *_LLAMA3_LENGTHS):
        frequency = float(base) ** (-np.arange(0, width, 2) / width)
        smooth = (length * frequency / (2 * math.pi) - _LOW) / (_HIGH - _LOW)
        expected = 1 / ((1 - smooth.clip(0, 1)) / factor + smooth.clip(0, 1))
        if np.allclose(given, expected, rtol=1e-5, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": length,
            }
    return None

"""The architectures that this project trains and ships, and a model of one of them from
plain configuration values.

Three classes of transformers and three of our own. Building one draws its initialization from a seed and
leaves the random state of the process as it was: the same seed gives the same weights in every process of
one torch version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SpecError, unknown_name
from sparsescope.models.torch_environment import attention_errors, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARCHITECTURES: Mapping[str, str] = {
    "ModularTransformerForCausalLM": "sparsescope.models.zoo.modular_transformer",
    "LlamaForCausalLM": "transformers",
    "OPTForCausalLM": "transformers",
    "OlmoeForCausalLM": "transformers",
    "GatedMixtureForCausalLM": "sparsescope.models.zoo.gated_mixture",
    "BlockFFNForCausalLM": "sparsescope.models.zoo.blockffn",
}


def architecture(name: str) -> type[PreTrainedModel]:
    """Return the class of an architecture.

    Raises:
        SpecError: It is not one of ``ARCHITECTURES``.
    """
    if name not in ARCHITECTURES:
        raise unknown_name(
            "architecture",
            name,
            ARCHITECTURES,
            next_step="choose one of the architectures that can be trained",
        )
    return getattr(import_module(ARCHITECTURES[name]), name)


def make_known(names: Iterable[str]) -> None:
    """Tell transformers about those of the named architectures that are our own, so that it loads a folder
    of one.

    Args:
        names: What a configuration calls its architectures; others are left to transformers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in names:
        if ARCHITECTURES.get(name, "transformers") != "transformers":
            own: Any = architecture(name)
            AutoConfig.register(own.config_class.model_type, own.config_class, exist_ok=True)
            AutoModelForCausalLM.register(own.config_class, own, exist_ok=True)


# Two names of former versions of transformers, which its configurations still read.
_FORMER = frozenset({"rope_theta", "rope_scaling"})


def check_config(name: str, values: Iterable[str]) -> None:
    """Refuse names that the configuration of an architecture does not have: transformers keeps them and
    nothing reads them.

    Args:
        name: One of ``ARCHITECTURES``.
        values: Names of the values.

    Raises:
        SpecError: It names the first that is unknown, with near matches.
    """
    config: Any = architecture(name).config_class
    known = {key for key in vars(config()) if not key.startswith("_")} | set(config.attribute_map)
    if "rope_parameters" in known:
        known |= _FORMER
    for value in values:
        if value not in known:
            raise unknown_name(
                "value of the model's configuration",
                value,
                known,
                next_step="mend [model.config] of the recipe",
            )


def build_model(
    name: str, values: Mapping[str, Any], seed: int = 0, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Build a model at its initialization, in float32 on the CPU.

    Args:
        name: One of ``ARCHITECTURES``.
        values: Values of its configuration; what is left out takes the default of the class.
        seed: Draws the initialization.
        attn_implementation: ``eager``, ``sdpa``, ...; None for the default of transformers.

    Returns:
        The model in evaluation mode.

    Raises:
        SpecError: The architecture is unknown, or its configuration refuses a value.
    """
    import torch

    found: Any = architecture(name)
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        config = found.config_class.from_dict({**values, "architectures": [name]})
        with attention_errors(attn_implementation), quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = found._from_config(config, dtype=torch.float32, **options)
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise SpecError(
            "no model can be built from this configuration",
            where=name,
            got=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}",
            next_step="mend the values of the model's configuration",
        ) from error
    return model.eval()

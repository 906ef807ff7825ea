"""What to do with an object that ``wrap`` does not take, and with an error about a wrapped model.

Wrappers are known by what they hold, not by their class, so that none of their packages is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SpecError, SubjectError

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

# Where wrappers keep what they wrap: torch.compile; DataParallel, DDP and DeepSpeed; FSDP; pipelines,
# Lightning and others.
_INSIDE = ("_orig_mod", "module", "_fsdp_wrapped_module", "model", "llm", "language_model", "backbone")
_DEEPEST = 4


def check_wrappable(model: Any) -> None:
    """Refuse what is no plain model of transformers, with the call that gives one.

    Raises:
        SpecError: It is a wrapper, a name, a class, a state dict, or something else.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise SpecError(
            "wrap takes a model of transformers",
            where="wrap(model)",
            allowed="an instance of transformers.PreTrainedModel",
            got=f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__,
            next_step=_cure(model),
        )


def _cure(model: Any) -> str:
    """The call that works, for an object that is no model of transformers."""
    from transformers import PreTrainedModel

    if isinstance(model, str | Path):
        return f"to load by name call sparsescope.load({str(model)!r})"
    if isinstance(model, type):
        return "give an instance, for example AutoModelForCausalLM.from_pretrained(...)"
    names = {kind.__name__ for kind in type(model).__mro__}
    if names & {"TransformerBridge", "HookedTransformer"}:
        return (
            "give the model of transformers itself, loaded again (a bridge renames its parameters): "
            "wrap(AutoModelForCausalLM.from_pretrained(...), tokenizer)"
        )
    if isinstance(model, Mapping):
        return "build the model of this state dict: model = CLASS(config); model.load_state_dict(...)"
    if isinstance(model, tuple | list) and any(isinstance(part, PreTrainedModel) for part in model):
        return "give its parts: wrap(model, tokenizer)"
    path = _path_inside(model)
    if path is not None:
        merged = "" if "merge_and_unload" not in path else " (the adapters are then part of the weights)"
        if "_fsdp_wrapped_module" in path:
            merged = "; its weights must be gathered on this device (FSDP.summon_full_params)"
        tokenizer = "tokenizer" if getattr(model, "tokenizer", None) is None else "model.tokenizer"
        return f"it holds one: wrap(model{path}, {tokenizer}){merged}"
    return "give a model of transformers; other modules have no blocks whose names are known"


def _path_inside(model: Any, depth: int = 0) -> str | None:
    """The attributes that lead to a model of transformers inside a wrapper; None where there is none."""
    from transformers import PreTrainedModel

    if depth > _DEEPEST:
        return None
    if isinstance(model, PreTrainedModel):
        return ""
    if callable(getattr(model, "merge_and_unload", None)):  # PeftModel
        return ".merge_and_unload()"
    for name in _INSIDE:
        held = getattr(model, name, None)
        rest = None if held is None or held is model else _path_inside(held, depth + 1)
        if rest is not None:
            return f".{name}{rest}"
    return None


def check_depth(model: Any) -> None:
    """Refuse a model from which blocks were cut, or to which they were added, after it was loaded.

    Raises:
        SubjectError: It has another number of blocks than its configuration says.
    """
    import torch

    from sparsescope.models.structure.roles import text_config

    wanted = getattr(text_config(model), "num_hidden_layers", None)
    lists = [
        (path, len(module))
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module)
        and len({type(block) for block in module}) <= 3
        and any(True for _ in module[0].children())
    ]
    if not isinstance(wanted, int) or not lists or any(count == wanted for _, count in lists):
        return
    path, count = min(lists, key=lambda item: item[0].count("."))
    if _made_with(model, path) == count:
        return  # the class counts its blocks in another way: roles.find_blocks says so
    raise SubjectError(
        "the model has another number of blocks than its configuration says",
        where=f"{type(model).__name__}.{path}",
        allowed=f"num_hidden_layers = {wanted} blocks",
        got=f"{count} blocks",
        next_step=f"if it is meant so, say it: model.config.num_hidden_layers = {count}",
    )


def _made_with(model: Any, path: str) -> int | None:
    """How many blocks the class of a model makes there; None where that cannot be tried."""
    import torch

    try:
        with torch.device("meta"):
            fresh = type(model)(model.config)
        return len(fresh.get_submodule(path))
    except Exception:
        return None


def check_step(subject: Subject) -> str:
    """Return what checks the weights of a subject: the command line for one that has a name, else Python."""
    if subject.source is not None:
        return f"sparsescope doctor --subject {subject.source}"
    return "sparsescope.models.doctor.examine(subject)"


def float32_step(subject: Subject) -> str:
    """Return what computes in float32: a parameter of ``load``, or a conversion of a wrapped model."""
    if subject.source is not None:
        return "load it with dtype='float32' (--dtype float32)"
    return "convert the model before it is wrapped: model.float()"

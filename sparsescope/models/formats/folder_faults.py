"""Faults of model folders that transformers does not explain: adapters, other shapes, names of wrapped
weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsescope.core.strict_json import parse
from sparsescope.core.tensor_header import read_header
from sparsescope.errors import SubjectError

_ADAPTER = "adapter_config.json"
# What torch.compile, FSDP and checkpointing put into the names of weights, anywhere; DDP does so in front.
_WRAPPERS = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_IN_FRONT = r"^module\."


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter (LoRA and others), with the base model and the way to merge them.

    Where the base model lies beside its adapter too, transformers would compute with both, which the
    weights by role do not show.

    Raises:
        SubjectError: There is one.
    """
    if not (folder / _ADAPTER).is_file():
        return
    try:
        raw = parse((folder / _ADAPTER).read_bytes(), constants=True)
        base = str(raw.get("base_model_name_or_path") or "")[:200]
        kind = str(raw.get("peft_type") or "unknown")[:40]
    except (OSError, ValueError, AttributeError):
        base, kind = "", "unknown"
    whole = (folder / "config.json").is_file() and any(
        not path.name.startswith("adapter_")
        for pattern in ("*.safetensors", "pytorch_model*.bin")
        for path in folder.glob(pattern)
    )
    raise SubjectError(
        "the folder has a model and an adapter; which of them is meant cannot be said"
        if whole
        else "the folder has an adapter (LoRA), not a model",
        where=str(folder / _ADAPTER),
        got=f"an adapter of kind {kind} for the base model {base or '(not named)'}",
        next_step=f"move {_ADAPTER} and adapter_model.* away to study the model without them, or merge them"
        if whole
        else f"merge it with its base model: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("
        f"{base or 'BASE'!r}), FOLDER).merge_and_unload().save_pretrained(NEW), save "
        "the tokenizer there too, and load NEW",
    )


def wrapped_names(report: dict[str, Any]) -> dict[str, str]:
    """Return the renaming (pattern -> replacement) that gives stored weights the names of the model.

    A state dict of a model under torch.compile or DDP has the names of the wrapper in those of its weights.

    Args:
        report: The loading information of transformers.

    Returns:
        Nothing where names have no such parts, or where the model does not miss them.
    """
    missing = {str(name) for name in report.get("missing_keys") or []}
    unused = [str(name) for name in report.get("unexpected_keys") or []]
    found = {}
    for pattern in (_WRAPPERS, _IN_FRONT):
        if any(re.search(pattern, name) and _stripped(name) in missing for name in unused):
            found[pattern] = ""
    return found


def _stripped(name: str) -> str:
    return re.sub(_IN_FRONT, "", re.sub(_WRAPPERS, "", name))


def other_shapes(folder: Path, plan: Any, config: Any) -> SubjectError | None:
    """Say which weights have another shape than the configuration asks for, and what to edit.

    Args:
        folder: The model folder.
        plan: The model of its configuration, on the meta device; None where it was not built.
        config: The configuration.

    Returns:
        The error; None where all shapes agree, or cannot be compared.
    """
    if plan is None:
        return None
    wanted = {name: tuple(tensor.shape) for name, tensor in plan.state_dict().items()}
    tables = _tables(plan)
    faults = []
    for stored, shape in _stored_shapes(folder):
        name = next((n for n in _names(plan, stored) if n in wanted), None)
        if name is not None and wanted[name] != shape:
            faults.append((stored, shape, wanted[name], tables.get(name, 0)))
    if not faults:
        return None
    # A table says more than the many matrices that may differ with it
    stored, shape, asked, is_table = max(faults, key=lambda fault: fault[3])
    place = next((i for i, pair in enumerate(zip(shape, asked, strict=False)) if pair[0] != pair[1]), 0)
    values = config.get_text_config().to_dict()
    keys = [key for key, value in values.items() if isinstance(value, int) and value == asked[place]]
    if is_table and place == 0:
        keys = ["vocab_size"]
    edit = (
        f"{' or '.join(keys)} = {asked[place]} should be {shape[place]}" if keys else "another size is meant"
    )
    return SubjectError(
        f"{len(faults)} weights of the checkpoint have another shape than its config.json says",
        where=str(folder / "config.json"),
        allowed=f"{stored} {list(asked)}, as config.json says",
        got=f"{stored} {list(shape)}",
        next_step=f"edit config.json: {edit}; or take the config.json that was saved with these weights",
    )


def _tables(plan: Any) -> dict[str, int]:
    """Names of the embedding table (2) and of the matrix of the output head (1)."""
    modules = (plan.get_output_embeddings(), plan.get_input_embeddings())
    marks = {id(module.weight): mark for mark, module in enumerate(modules, 1) if module is not None}
    named = plan.state_dict(keep_vars=True).items()
    return {name: marks[id(tensor)] for name, tensor in named if id(tensor) in marks}


def _names(plan: Any, stored: str) -> Iterator[str]:
    """Names that a stored weight may have in the model: with and without the name of its backbone."""
    name = _stripped(stored)
    prefix = f"{plan.base_model_prefix}."
    yield from (name, prefix + name, name.removeprefix(prefix))


def _stored_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every stored weight; nothing where a file cannot be read."""
    from transformers.modeling_utils import load_state_dict  # with weights_only, as it loads them

    paths = sorted(folder.glob("*.safetensors"))
    try:
        for path in paths:
            yield from ((name, tuple(entry.shape)) for name, entry in read_header(path, SubjectError).items())
        for path in () if paths else sorted(folder.glob("pytorch_model*.bin")):
            for name, tensor in load_state_dict(path, map_location="meta").items():
                yield name, tuple(tensor.shape)
    except Exception:  # a damaged file has a message of its own
        return

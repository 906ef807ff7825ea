"""Whether a configuration can belong to the weights that lie beside it, found out before
anything is allocated.

A configuration is a file that others wrote. One that asks for 10^9 layers keeps transformers building modules
for hours; one that asks for a few more layers than are stored has them filled with random values first and
refused afterwards. So counts are bounded, and the model is built once on torch's meta device, which holds
shapes without memory, and its size compared with that of the stored weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsescope.core.tensor_header import read_header
from sparsescope.errors import SubjectError

MOST_LAYERS = 1024
MOST_PARTS = 65_536
_LAYERS = re.compile(
    r"(num_hidden_layers|num_layers|n_layers?|\w*(encoder|decoder)_layers|num_blocks|block_count)"
)
_PARTS = re.compile(r"\w*(heads|experts|n_head|groups|num_labels)")
_LENGTHS = re.compile(
    r"(max_position_embeddings|n_positions|hidden_size|n_embd|d_model|vocab_size|intermediate_size|head_dim)"
)
# Room for tied weights stored once and for small models with large derived parts.
_FACTOR, _SLACK = 2, 2**24
_CGROUP = Path("/sys/fs/cgroup")
_MOST_BUFFERS = 2**27  # elements; derived tables such as causal masks and sinusoids
_PACKED = {"U8", "I8", "I32", "U32", "I64", "F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"}


def check_counts(values: Any, where: str) -> None:
    """Refuse sizes that no model has, and values that are no numbers.

    Args:
        values: The parsed configuration, with nested parts.
        where: The file, for the message.

    Raises:
        SubjectError: The first value that cannot be.
    """
    for name, value in _numbers(values, ""):
        key = name.rsplit(".", 1)[-1]
        bounds = None
        if _LAYERS.fullmatch(key):
            bounds = (1, MOST_LAYERS)
        elif _PARTS.fullmatch(key):
            bounds = (0, MOST_PARTS)
        elif _LENGTHS.fullmatch(key):
            bounds = (1, 2**40)
        unknown = isinstance(value, float) and math.isnan(value)
        if unknown or (bounds is not None and not bounds[0] <= value <= bounds[1]):
            raise SubjectError(
                f"the configuration has a value that no model has: {name[:80]}",
                where=where,
                allowed=f"{bounds[0]} to {bounds[1]}" if bounds else "a number",
                got=str(value)[:80],
                next_step="copy the file again, or ask who made it",
            )


def check_size(model_class: Any, config: Any, stored: int, where: str) -> Any:
    """Refuse a configuration whose model is much larger than its stored weights.

    Args:
        model_class: HF class of the model.
        config: Its configuration.
        stored: Elements of the stored weights, at least; see ``stored_elements``.
        where: The file, for the message.

    Returns:
        The model on torch's meta device.

    Raises:
        SubjectError: The model cannot be built, or is too large for its weights.
    """
    import torch
    from torch.random import fork_rng

    try:
        build = getattr(model_class, "from_config", None) or model_class._from_config
        with torch.device("meta"), fork_rng(devices=[]):
            model = build(config)
    except Exception as error:
        raise SubjectError(
            "no model can be built from this configuration",
            where=where,
            got=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}",
            next_step="copy the file again, or upgrade transformers",
        ) from error
    wanted = sum(parameter.numel() for parameter in model.parameters())
    derived = sum(buffer.numel() for buffer in model.buffers())
    if wanted > _FACTOR * stored + _SLACK or derived > _MOST_BUFFERS + _FACTOR * stored:
        raise SubjectError(
            "the configuration asks for a model that is much larger than its weights; "
            "the rest would be random",
            where=where,
            allowed=f"about {stored:,} weights, as many as are stored",
            got=f"{wanted:,} weights and {derived:,} derived values",
            next_step="the configuration belongs to another model, or files are "
            "missing: copy the folder again",
        )
    return model


def check_memory(plan: Any, dtype: str, where: str) -> None:
    """Refuse a model that does not fit in the free memory, before the system ends the process for it.

    Weights are counted, on the CPU, in the precision that they are read in, and what reading takes besides:
    transformers stacks the experts of a layer, which takes about two of the stacked tensors more (measured:
    1.3 GiB for the shape of OLMoE, where two are 1.0). A pass takes more. Quantized models, whose weights
    keep their own precision, are not checked.

    Args:
        plan: The model on torch's meta device, from ``check_size``.
        dtype: Name of the precision.
        where: The file, for the message.

    Raises:
        SubjectError: It does not fit; with what it takes, and what there is.
    """
    if getattr(plan.config, "quantization_config", None) is not None:
        return
    sizes = [parameter.numel() for parameter in plan.parameters()]
    stacked = max((parameter.numel() for parameter in plan.parameters() if parameter.ndim == 3), default=0)
    check_room(sum(sizes), dtype, where, 2 * stacked)


def check_room(elements: int, dtype: str, where: str, besides: int = 0) -> None:
    """The same from the number of weights, and of those that reading takes ``besides``; raises as
    ``check_memory``.
    """
    from sparsescope.models.torch_environment import torch_dtype

    wanted, free = (elements + besides) * torch_dtype(dtype).itemsize, free_memory()
    if wanted <= free:
        return
    smaller = " or dtype='bfloat16', which takes half" if dtype == "float32" else ""
    raise SubjectError(
        "this model does not fit in the memory that is free",
        where=where,
        allowed=f"weights of up to {free / 2**30:.1f} GiB",
        got=f"{wanted / 2**30:.1f} GiB: {elements:,} weights in {dtype}"
        + (", and stacked experts while they are read" if besides else ""),
        next_step=f"a machine with more memory{smaller}",
    )


def free_memory() -> int:
    """Bytes that this process may still take: what is free, within the limit of its control group."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(limit - used, 0))


def _number(path: Path) -> int | None:
    """The number in a file of the kernel; None where there is no such file, or it says ``max``."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def stored_elements(folder: Path) -> int:
    """Return how many weights the files of a folder hold: exactly for safetensors, at most for other formats.

    Raises:
        SubjectError: The header of a file is damaged.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        return sum(path.stat().st_size for path in folder.glob("pytorch_model*.bin"))
    total = 0
    for path in paths:
        for entry in read_header(
            path, SubjectError, "the weights cannot be read: the header of a file is not valid"
        ).values():
            begin, end = entry.span
            # Quantized weights share bytes: two in each, and more of them where a tensor holds whole words.
            total += 2 * (end - begin) if entry.dtype in _PACKED else entry.elements
    return total


def _numbers(values: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the dotted name and value of every number of nested dicts and lists."""
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for name, value in items:
        label = f"{prefix}{name}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield label, value
        else:
            yield from _numbers(value, f"{label}.")

"""The only file that imports TransformerLens: its name map, and a real bridge on a copy.

Building a ``TransformerBridge`` renames the parameters of the wrapped model in place. So we take
only the ``component_mapping`` of the architecture adapter (canonical name -> HF module path), which
needs no bridge, and hook the HF modules ourselves. ``build_bridge`` makes a real bridge on a deep
copy, for people who want to go on in TransformerLens (>= 4.3).
"""

from __future__ import annotations

import copy
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SubjectError
from sparsescope.models.structure.roles import (
    Attention,
    Block,
    Matrix,
    Mlp,
    activation_of,
    find_blocks,
    is_linear,
    submodule,
    text_config,
)
from sparsescope.models.torch_environment import quiet_transformers

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject


def component_paths(model: Any) -> dict[str, str]:
    """Return the name map of TransformerLens for one block: canonical name -> HF path.

    Names are relative to the block (``mlp.out``); paths are those of layer 0, from the model. The
    list of blocks itself is under ``blocks``. Names whose module does not exist in layer 0 are left out.

    Raises:
        SubjectError: TransformerLens has no adapter for the architecture.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    config = copy.deepcopy(model.config)  # adapters write to it
    try:
        with quiet_transformers():
            adapter = ArchitectureAdapterFactory.select_architecture_adapter(
                build_bridge_config_from_hf(config, type(model).__name__, type(model).__name__, model.dtype)
            )
        blocks = (adapter.component_mapping or {})["blocks"]
    except Exception as error:  # KeyError, ValueError, NotImplementedError, AttributeError by architecture
        raise _no_adapter(model, error) from error
    paths = {"blocks": str(blocks.name)}
    pending = [("", f"{blocks.name}.0", blocks)]
    while pending:
        prefix, home, component = pending.pop()
        for name, child in (component.submodules or {}).items():
            path = f"{home}.{child.name}" if child.name else home
            if submodule(model, path) is not None:
                paths[f"{prefix}{name}"] = path
                pending.append((f"{prefix}{name}.", path, child))
    return paths


def block_modules(model: Any) -> tuple[Block, ...]:
    """Return the roles of every block as TransformerLens names them.

    Raises:
        SubjectError: TransformerLens has no adapter for the architecture.
    """
    paths = component_paths(model)
    home = f"{paths['blocks']}.0"
    blocks: list[Block] = []
    for layer in range(len(find_blocks(model)[1])):
        own = f"{paths['blocks']}.{layer}"
        moved = {name: own + path.removeprefix(home) for name, path in paths.items() if name != "blocks"}
        here = {name: path for name, path in moved.items() if submodule(model, path) is not None}
        matrices = {name: Matrix(path) for name, path in here.items() if is_linear(submodule(model, path))}
        blocks.append(_block(model, layer, own, here, matrices))
    return tuple(blocks)


def _block(model: Any, layer: int, path: str, here: dict[str, str], matrices: dict[str, Matrix]) -> Block:
    """Build the roles of one block from the paths and matrices that TransformerLens names."""
    mlp = attention = None
    if "mlp.in" in matrices and "mlp.out" in matrices:
        container = here.get("mlp", path)
        config = text_config(model)
        activation = activation_of(submodule(model, container), container, config)
        home = None if container == path else container
        mlp = Mlp(home, matrices["mlp.in"], matrices["mlp.out"], matrices.get("mlp.gate"), *activation)
    if "attn" in here and "attn.o" in matrices:
        found = {role: matrices.get(f"attn.{role}") for role in ("q", "k", "v", "qkv")}
        parts = {role: matrix for role, matrix in found.items() if matrix is not None}
        attention = Attention(here["attn"], matrices["attn.o"], **parts)
    return Block(layer, path, mlp, None, attention)


def build_bridge(subject: Subject) -> Any:
    """Build a ``TransformerBridge`` on a deep copy of the model and tokenizer of a subject.

    Raises:
        SubjectError: TransformerLens has no adapter for the architecture.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = copy.deepcopy(subject.model)
    # TransformerLens reloads the tokenizer by name to make it prepend BOS. The name is that of a
    # folder of ours, so that it never asks the hub.
    with TemporaryDirectory() as folder, quiet_transformers():
        tokenizer = _reloaded(subject.tokenizer, folder)
        try:
            return build_bridge_from_module(
                model,
                type(model).__name__,
                hf_config=copy.deepcopy(model.config),
                tokenizer=tokenizer,
                model_name=subject.id,
            )
        except Exception as error:
            raise _no_adapter(model, error) from error


def _reloaded(tokenizer: Any, folder: str) -> Any:
    """Return a copy of a tokenizer that knows ``folder`` as its name, or None."""
    if tokenizer is None:
        return None
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    reloaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    reloaded.init_kwargs["name_or_path"] = folder
    return reloaded


def _no_adapter(model: Any, error: Exception) -> SubjectError:
    """Build the error for an architecture that TransformerLens refuses."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return SubjectError(
        f"TransformerLens has no adapter for {type(model).__name__}",
        where=type(model).__module__,
        got=lines[0][:200],
        next_step="the sites of subject.site_names() do not need a bridge where the family is a common one",
    )

"""Load a model folder in the HF layout (``config.json`` and weights), and explain failures.

Every way in which a folder can be unusable has its own message: no configuration, unknown or
unsupported architecture, no weights, truncated or mismatched weights, no tokenizer. Weights
that a checkpoint lacks are an error, because transformers would fill them with random values.
Safetensors is preferred; a ``pytorch_model.bin`` is read with ``weights_only=True``, the
default of transformers 5, so that no pickled code runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsescope.errors import SubjectError
from sparsescope.models.catalog import LoadedModel, LoadRequest
from sparsescope.models.quiet import attention_errors, quiet_transformers, torch_dtype

_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")


def load_folder(request: LoadRequest, folder: Path | None = None, revision: str | None = None) -> LoadedModel:
    """Load the model and the tokenizer of a folder.

    Args:
        request: The parameters of ``load``; its name is the folder unless ``folder`` is given.
        folder: The folder, when the request names something else (a hub id).
        revision: The revision that the folder holds, None for a plain folder.

    Raises:
        SubjectError: The folder cannot be used; the message says why and what to do.
    """
    if folder is None:
        folder = Path(request.name).expanduser()
        if request.revision is not None:
            raise SubjectError(
                "a local folder has no revisions",
                where=str(folder),
                got=f"revision={request.revision!r}",
                next_step="leave revision out, or give the folder that holds that revision",
            )
    check_layout(folder)
    config = read_config(folder, request.trust_remote_code)
    model = read_weights(folder, config, request)
    tokenizer = read_tokenizer(folder, request.trust_remote_code)
    return LoadedModel(model, tokenizer, revision, stored_precision(folder))


def check_layout(folder: Path) -> None:
    """Refuse a folder without configuration, weights or tokenizer.

    Raises:
        SubjectError: One of them is missing.
    """
    if not (folder / "config.json").is_file():
        ggufs = sorted(folder.glob("*.gguf"))
        hint = f"load the file itself: {ggufs[0]}" if ggufs else "give the folder written by save_pretrained"
        raise SubjectError("the folder has no config.json", where=str(folder), next_step=hint)
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHT_PATTERNS):
        raise SubjectError(
            "the folder has no weights",
            where=str(folder),
            allowed=("model.safetensors", "model-*.safetensors with its index", "pytorch_model.bin"),
            next_step="save the model again with model.save_pretrained(folder)",
        )
    for index in folder.glob("*.safetensors.index.json"):
        missing = sorted(shard for shard in _shards(index) if not (folder / shard).is_file())
        if missing:
            raise SubjectError(
                f"{len(missing)} of the weight files are missing",
                where=str(folder),
                got=f"first: {missing[0]}",
                next_step="copy or download the rest of the model",
            )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise SubjectError(
            "the folder has no tokenizer",
            where=str(folder),
            allowed=_TOKENIZER_FILES,
            next_step="call tokenizer.save_pretrained(folder), or load the model yourself and call "
            "sparsescope.wrap(model, tokenizer=None)",
        )


def _shards(index: Path) -> set[str]:
    """Return the file names that an index of sharded weights mentions; none when it is damaged."""
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return {f"a readable {index.name}"}


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Read ``config.json``.

    Raises:
        SubjectError: It is not JSON, or its architecture is unknown to the installed transformers.
    """
    from transformers import AutoConfig

    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SubjectError(
            f"config.json cannot be read: {error}", where=str(folder), next_step="copy the folder again"
        ) from error
    if "auto_map" in raw and not trust_remote_code:
        raise SubjectError(
            "this model runs code from its own repository",
            where=str(folder / "config.json"),
            got=f"auto_map: {', '.join(map(str, raw['auto_map']))}",
            next_step="read that code; if you trust it, load with trust_remote_code=True",
        )
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # transformers raises ValueError, KeyError, OSError, validation errors
        raise SubjectError(
            "the architecture of this model is unknown to the installed transformers",
            where=str(folder / "config.json"),
            got=f"model_type={raw.get('model_type')!r}: {_first_line(error)}",
            next_step="upgrade transformers, or check model_type in config.json",
        ) from error


def model_class(config: Any) -> Any:
    """Return the HF class that the checkpoint was saved from.

    Saying it exactly matters: a head that the checkpoint lacks would be filled with random values.
    """
    import transformers

    for name in config.architectures or []:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel if not config.architectures else transformers.AutoModelForCausalLM


def read_weights(folder: Path, config: Any, request: LoadRequest, **options: Any) -> Any:
    """Build the model and read its weights.

    Args:
        folder: The folder.
        config: Its configuration.
        request: Gives dtype, attention implementation and ``trust_remote_code``.
        **options: Further parameters of ``from_pretrained``.

    Returns:
        The model in evaluation mode.

    Raises:
        SubjectError: Weights are truncated, missing or of another shape, or the attention
            implementation is not one that the model has.
    """
    from torch.random import fork_rng

    if request.attn_implementation:
        options["attn_implementation"] = request.attn_implementation
    try:
        with attention_errors(request.attn_implementation), quiet_transformers(), fork_rng(devices=[]):
            model, report = model_class(config).from_pretrained(
                folder,
                config=config,
                dtype=torch_dtype(request.dtype),
                trust_remote_code=request.trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except SubjectError:
        raise
    except Exception as error:
        raise SubjectError(
            "the weights cannot be read: a file is truncated, damaged or of another format",
            where=str(folder),
            got=f"{type(error).__name__}: {_first_line(error)}",
            next_step="copy or download the model again",
        ) from error
    faults = {"missing_keys": "are missing", "mismatched_keys": "have another shape than the model"}
    for key, what in faults.items():
        names = sorted(str(name) for name in report.get(key) or [])
        if names:
            raise SubjectError(
                f"{len(names)} weights of the checkpoint {what}; they would be random",
                where=str(folder),
                got=f"first: {names[0]}",
                next_step="check `architectures` in config.json, or copy the model again",
            )
    return model.eval()


def read_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """Read the fast tokenizer of a folder.

    Raises:
        SubjectError: It cannot be read, or is not a fast tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:
        raise SubjectError(
            "the tokenizer cannot be read",
            where=str(folder),
            got=f"{type(error).__name__}: {_first_line(error)}",
            next_step="call tokenizer.save_pretrained(folder) again with the tokenizer of this model",
        ) from error
    if not tokenizer.is_fast:
        raise SubjectError(
            "the tokenizer is not a fast one, so token positions cannot be traced back to the text",
            where=str(folder),
            got=type(tokenizer).__name__,
            next_step="save it as tokenizer.json (a `tokenizers` tokenizer)",
        )
    return tokenizer


def stored_precision(folder: Path) -> str:
    """Return the dtype in which most weights of a folder are stored.

    Reads only the headers of the safetensors files; for other formats the dtype that
    ``config.json`` declares.
    """
    from collections import Counter

    from safetensors import safe_open

    sizes: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no dict and cannot be iterated)
                part = file.get_slice(name)
                count = 1
                for length in part.get_shape():
                    count *= length
                sizes[part.get_dtype()] += count
    if sizes:
        stored = sizes.most_common(1)[0][0]
        names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
        return names.get(stored, stored.lower())
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    declared = raw.get("dtype") or raw.get("torch_dtype")
    return str(declared).removeprefix("torch.") if declared else "unknown"


def _first_line(error: Exception) -> str:
    """Return the first line of an exception, cut to 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__

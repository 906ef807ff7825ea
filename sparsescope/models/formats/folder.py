"""Load a model folder in the HF layout (``config.json`` and weights), and explain failures.

Every way in which a folder can be unusable has its own message: no configuration, unknown or
unsupported architecture, no weights, an adapter without its model, truncated or mismatched weights, no
tokenizer. Weights that a checkpoint lacks are an error, because transformers would fill them with random
values.
Safetensors is preferred; a ``pytorch_model.bin`` is read with ``weights_only=True``, the
default of transformers 5, so that no pickled code runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sparsescope.core.files import given_path
from sparsescope.core.strict_json import parse
from sparsescope.errors import SubjectError
from sparsescope.models.entries import LoadedModel, LoadRequest
from sparsescope.models.formats.config_checks import check_counts, check_memory, check_size, stored_elements
from sparsescope.models.formats.folder_faults import other_shapes, refuse_adapter, wrapped_names
from sparsescope.models.formats.pruned_origin import with_origin
from sparsescope.models.formats.revision_names import parse_name
from sparsescope.models.structure.architectures import make_known
from sparsescope.models.torch_environment import attention_errors, quiet_transformers, torch_dtype

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
        folder = given_path(request.name, "name of a subject")
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
    home = tokenizer_folder(folder)
    # The folder above has no config.json of its own that would say which tokenizer it is
    known = {} if home == folder else {"config": config}
    tokenizer = read_tokenizer(home or folder, request.trust_remote_code, **known)
    return LoadedModel(model, tokenizer, revision, with_origin(stored_precision(folder), folder))


def check_layout(folder: Path) -> None:
    """Refuse a folder without configuration, weights or tokenizer.

    Raises:
        SubjectError: One of them is missing.
    """
    refuse_adapter(folder)
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
    if tokenizer_folder(folder) is None:
        raise SubjectError(
            "the folder has no tokenizer",
            where=str(folder),
            allowed=_TOKENIZER_FILES,
            next_step="call tokenizer.save_pretrained(folder), or load the model yourself and call "
            "sparsescope.wrap(model, tokenizer=None)",
        )


def tokenizer_folder(folder: Path) -> Path | None:
    """Return the folder that the tokenizer lies in: the folder itself, or that of the training run around a
    checkpoint such as ``checkpoint-500``; None where there is none.
    """
    homes = [folder]
    if parse_name(folder.resolve().name) is not None:
        homes.append(folder.resolve().parent)
    return next(
        (home for home in homes if any((home / name).is_file() for name in _TOKENIZER_FILES)),
        None,
    )


def _shards(index: Path) -> set[str]:
    """Return the file names that an index of sharded weights mentions; a name that no file has
    when it is damaged.
    """
    try:
        names = set(parse(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {f"a readable {index.name}"}
    for name in names:
        # Shards lie beside their index; a path would let a downloaded folder read files
        # elsewhere on this disk.
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}", name):
            raise SubjectError(
                "the index of the weights names a file that is not in this folder",
                where=str(index),
                allowed="names of files beside it",
                got=repr(name)[:120],
                next_step="do not use this folder, or copy it again",
            )
    return names


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Read ``config.json``.

    Raises:
        SubjectError: It is not JSON, or its architecture is unknown to the installed transformers.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    path = folder / "config.json"
    try:
        raw = parse(path.read_bytes(), constants=True)
        if not isinstance(raw, dict):
            raise ValueError(f"the top level is a {type(raw).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise SubjectError(
            f"config.json cannot be read: {str(error)[:200]}",
            where=str(path),
            allowed="a JSON object in UTF-8",
            got=str(error)[:200],
            next_step="copy the folder again",
        ) from error
    if "auto_map" in raw and not trust_remote_code:
        code = raw["auto_map"]
        raise SubjectError(
            "this model runs code from its own repository",
            where=str(path),
            got=f"auto_map: {', '.join(map(str, code)) if isinstance(code, dict | list) else code}",
            next_step="read that code; if you trust it, load with trust_remote_code=True",
        )
    declared = raw.get("architectures")
    if declared is None:
        declared = []
    if not isinstance(declared, list) or not all(isinstance(name, str) for name in declared):
        raise SubjectError(
            "`architectures` of this configuration is not a list of names",
            where=str(path),
            allowed='for example ["LlamaForCausalLM"]',
            got=repr(declared)[:120],
            next_step="mend that value in config.json, or copy the folder again",
        )
    check_counts(raw, str(path))
    make_known(declared)
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # transformers raises ValueError, KeyError, OSError, validation errors
        kind = raw.get("model_type")
        known = isinstance(kind, str) and kind in CONFIG_MAPPING
        raise SubjectError(
            "transformers refuses a value of this configuration"
            if known
            else "the architecture of this model is unknown to the installed transformers",
            where=str(path),
            got=f"model_type={kind!r}: {_first_lines(error)}",
            next_step="mend that value in config.json, or copy the folder again"
            if known
            else "upgrade transformers, or check model_type in config.json",
        ) from error


def model_class(config: Any) -> Any:
    """Return the HF class that the checkpoint was saved from.

    Saying it exactly matters: a head that the checkpoint lacks would be filled with random values.
    """
    import transformers

    declared = config.architectures if isinstance(config.architectures, list) else []
    for name in declared:
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel if not declared else transformers.AutoModelForCausalLM


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
    plan = None
    if not getattr(config, "auto_map", None):  # code of the repository has its own classes
        plan = check_size(model_class(config), config, stored_elements(folder), str(folder))
        check_memory(plan, request.dtype, str(folder))
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
        faults = other_shapes(folder, plan, config)
        if faults is not None:
            raise faults from error
        raise SubjectError(
            "the weights cannot be read: a file is truncated, damaged or of another format",
            where=str(folder),
            got=f"{type(error).__name__}: {_first_line(error)}",
            next_step="copy or download the model again",
        ) from error
    wrapped = wrapped_names(report)
    if wrapped and "key_mapping" not in options:
        del model
        return read_weights(folder, config, request, **options, key_mapping=wrapped)
    check_loaded(model, report, str(folder))
    return model.eval()


def check_loaded(model: Any, report: dict[str, Any], where: str) -> None:
    """Refuse a model of which a part is random, or a checkpoint of which layers were left out.

    Args:
        model: The loaded model.
        report: The loading information of transformers.
        where: The folder or file, for the message.

    Raises:
        SubjectError: Weights are missing, of another shape, or of layers that the
            configuration does not have.
    """
    faults = {"missing_keys": "are missing", "mismatched_keys": "have another shape than the model"}
    for key, what in faults.items():
        names = sorted(str(name) for name in report.get(key) or [])
        if names:
            raise SubjectError(
                f"{len(names)} weights of the checkpoint {what}; they would be random",
                where=where,
                got=f"first: {names[0]}",
                next_step="check `architectures` in config.json, or copy the model again",
            )
    _check_unused(model, report.get("unexpected_keys") or [], where)


def _check_unused(model: Any, unused: Any, where: str) -> None:
    """Refuse weights of further layers like those of the model: its configuration names too few.

    Other unused weights (heads, old buffers) are common and harmless.
    """
    number = re.compile(r"\.\d+\.")
    kinds = {number.sub(".0.", name) for name, _ in model.named_parameters() if number.search(name)}
    further = sorted(
        str(name) for name in unused if number.search(str(name)) and number.sub(".0.", str(name)) in kinds
    )
    if further:
        raise SubjectError(
            f"{len(further)} weights of the checkpoint belong to layers that its configuration does not have",
            where=where,
            got=f"first: {further[0]}",
            next_step="check the number of layers in config.json, or copy the model again",
        )


def read_tokenizer(folder: Path, trust_remote_code: bool = False, **options: Any) -> Any:
    """Read the fast tokenizer of a folder.

    Args:
        folder: The folder.
        trust_remote_code: Whether code of the folder may run.
        **options: Further parameters of ``from_pretrained``.

    Raises:
        SubjectError: It cannot be read, or is not a fast tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True, **options
            )
    except BaseException as error:
        # A panic of the Rust library is no Exception, but not a reason to end the program either.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
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
    raw = parse((folder / "config.json").read_bytes(), constants=True)
    declared = raw.get("dtype") or raw.get("torch_dtype")
    return str(declared).removeprefix("torch.") if declared else "unknown"


def _first_line(error: BaseException) -> str:
    """Return the first line of an exception, cut to 200 characters."""
    return _first_lines(error, 1)


def _first_lines(error: BaseException, count: int = 2) -> str:
    """Return the first lines of an exception as one, cut to 200 characters."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return " ".join(lines[:count])[:200] if lines else type(error).__name__

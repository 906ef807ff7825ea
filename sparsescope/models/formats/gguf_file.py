"""Load a ``.gguf`` file: transformers dequantizes it, and we remember the precision of origin.

Two things are mended on the way. The pre-tokenizer of the family named ``smollm`` splits every
digit before it splits words; transformers 5.23 leaves that out, which changes the ids of
text such as ``"x  1"``. And the loaded model calls itself quantized although its weights are
plain floats, which would forbid ``save_pretrained``.
"""

from __future__ import annotations

from collections import Counter
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from sparsescope.errors import DependencyError, SubjectError
from sparsescope.models.entries import LoadedModel, LoadRequest
from sparsescope.models.formats.config_checks import check_counts, check_size
from sparsescope.models.formats.folder import check_loaded
from sparsescope.models.formats.gguf_header import read_header
from sparsescope.models.torch_environment import attention_errors, quiet_transformers, torch_dtype

_MAGIC = b"GGUF"


def load_gguf(request: LoadRequest, path: Path | None = None) -> LoadedModel:
    """Load a GGUF file.

    Args:
        request: The parameters of ``load``; its name is the file unless ``path`` is given.
        path: The file.

    Raises:
        SubjectError: The file is damaged, or its architecture is not one that transformers reads.
        DependencyError: The package ``gguf`` is not installed.
    """
    from torch.random import fork_rng
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if path is None:
        path = Path(request.name).expanduser()
        if request.revision is not None:
            raise SubjectError(
                "a file has no revisions",
                where=str(path),
                got=f"revision={request.revision!r}",
                next_step="leave revision out",
            )
    _check_magic(path)
    header = read_header(path)
    check_counts(header.values, str(path))
    attention = request.attn_implementation
    options = {"attn_implementation": attention} if attention else {}
    precision, pre_tokenizer = _read_header(path)
    try:
        # transformers prints a bar of its own here that no switch turns off.
        silence = redirect_stderr(StringIO())
        with attention_errors(attention), quiet_transformers(), silence, fork_rng(devices=[]):
            where = {"gguf_file": path.name, "local_files_only": True}
            dtype = torch_dtype(request.dtype)
            config = AutoConfig.from_pretrained(path.parent, **where)
            check_counts(config.to_dict(), str(path))
            check_size(AutoModelForCausalLM, config, header.elements, str(path))
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=dtype, output_loading_info=True, **where, **options
            )
            model, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    except SubjectError:
        raise
    except BaseException as error:
        # A panic of the Rust tokenizer is no Exception, but not a reason to end the program either.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise SubjectError(
            "the GGUF file cannot be read: it is damaged, or of an architecture that transformers lacks",
            where=str(path),
            got=f"{type(error).__name__}: {str(error).strip()[:200]}",
            next_step="copy the file again; the manual of transformers lists the architectures it reads",
        ) from error
    check_loaded(model, report, str(path))
    _forget_quantization(model)
    _mend_tokenizer(tokenizer, pre_tokenizer, model.config)
    return LoadedModel(model.eval(), tokenizer, None, precision)


def _check_magic(path: Path) -> None:
    """Refuse a file that does not begin like GGUF.

    Raises:
        SubjectError: It does not.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        what = f"the file cannot be read: {error}"
        raise SubjectError(what, where=str(path), next_step="check the path") from error
    if head != _MAGIC:
        raise SubjectError(
            "this is not a GGUF file",
            where=str(path),
            allowed="a file that begins with the bytes GGUF",
            got=repr(head),
            next_step="copy or download the file again",
        )


def _read_header(path: Path) -> tuple[str, str | None]:
    """Return the precision of origin, such as ``gguf:Q4_1``, and the name of the pre-tokenizer.

    The precision is the tensor type that holds most weights.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise DependencyError(
            "the package gguf, which reads this file, is not installed",
            where=str(path),
            next_step="pip install gguf",
        ) from error
    try:
        reader = GGUFReader(path)
        sizes: Counter[str] = Counter()
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        field = reader.fields.get("tokenizer.ggml.pre")
        pre_tokenizer = bytes(field.parts[-1]).decode("utf-8") if field is not None else None
        return f"gguf:{sizes.most_common(1)[0][0]}", pre_tokenizer
    except Exception as error:  # a damaged file fails in numpy, struct or the enums of gguf
        raise SubjectError(
            "the GGUF file is truncated or damaged",
            where=str(path),
            got=f"{type(error).__name__}: {str(error).strip()[:200]}",
            next_step="copy or download the file again",
        ) from error


def _forget_quantization(model: Any) -> None:
    """Drop the marks of quantization from a dequantized model, so that it saves like any other."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _mend_tokenizer(tokenizer: Any, pre_tokenizer: str | None, config: Any) -> None:
    r"""Restore the digit splitting of the ``smollm`` family and the length limit.

    Source of the rule: the pre-tokenizer table of llama.cpp (``LLAMA_VOCAB_PRE_TYPE_SMOLLM``:
    first every ``\p{N}`` alone, then the pattern of GPT-2).
    """
    from tokenizers import pre_tokenizers

    if pre_tokenizer == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)

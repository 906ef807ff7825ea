"""Load a ``.gguf`` file: transformers dequantizes it, and we remember the precision of origin.

Transformers drops keys and tensors that it does not know. So every one is looked at: it is used, set in the
configuration (``gguf_keys``, ``gguf_rope``), harmless, or the file is refused.

Two more things are mended on the way. The pre-tokenizers of the kind of ``smollm`` split every
digit before they split words; transformers 5.23 leaves that out, which changes the ids of
text such as ``"x  1"``. And the loaded model calls itself quantized although its weights are
plain floats, which would forbid ``save_pretrained``.
"""

from __future__ import annotations

from collections import Counter
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from sparsescope.core.files import given_path
from sparsescope.errors import DependencyError, SubjectError
from sparsescope.models.entries import LoadedModel, LoadRequest
from sparsescope.models.formats.config_checks import check_counts, check_memory, check_size
from sparsescope.models.formats.folder import check_loaded
from sparsescope.models.formats.gguf_header import Header, read_header
from sparsescope.models.formats.gguf_keys import check_whole, dropped, settle
from sparsescope.models.torch_environment import attention_errors, quiet_transformers, torch_dtype

_MAGIC = b"GGUF"
_ROPE_FREQS = "rope_freqs.weight"
# Values of ``tokenizer.ggml.pre`` by what they stand for in the table of llama.cpp (``llama-vocab.cpp``).
_DIGITS_FIRST = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_LIKE_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "mellum"}
_LIKE_GPT2 |= {"jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "roberta-bpe", "modern-bert", "a.x-4.0"}


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
        path = given_path(request.name, "name of a subject")
        if request.revision is not None:
            raise SubjectError(
                "a file has no revisions",
                where=str(path),
                got=f"revision={request.revision!r}",
                next_step="leave revision out",
            )
    _check_magic(path)
    header = read_header(path)
    check_whole(header.values, str(path))
    check_counts(header.values, str(path))
    attention = request.attn_implementation
    options = {"attn_implementation": attention} if attention else {}
    precision, rope_freqs = _read_tensors(path)
    try:
        # transformers prints a bar of its own here that no switch turns off.
        silence = redirect_stderr(StringIO())
        with attention_errors(attention), quiet_transformers(), silence, fork_rng(devices=[]):
            where = {"gguf_file": path.name, "local_files_only": True}
            dtype = torch_dtype(request.dtype)
            config = AutoConfig.from_pretrained(path.parent, **where)
            check_counts(config.to_dict(), str(path))
            settle(header.values, config, rope_freqs, str(path))
            plan = check_size(AutoModelForCausalLM, config, header.elements, str(path))
            _check_tensors(header, plan, str(path))
            check_memory(plan, request.dtype, str(path))
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, config=config, dtype=dtype, output_loading_info=True, **where, **options
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
    unused = sorted(str(name) for name in report.get("unexpected_keys") or [])
    if unused:
        raise dropped(dict.fromkeys(unused, "a tensor without a place"), str(path))
    _forget_quantization(model)
    _mend_tokenizer(tokenizer, header.values, model.config, str(path))
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


def _read_tensors(path: Path) -> tuple[str, Any]:
    """Return the precision of origin, such as ``gguf:Q4_1``, and the factors of the rotary frequencies.

    The precision is the tensor type that holds most weights. The factors are an array, or None.
    """
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise DependencyError(
            "the package gguf, which reads this file, is not installed",
            where=str(path),
            next_step="pip install gguf",
        ) from error
    try:
        factors = None
        sizes: Counter[str] = Counter()
        for tensor in GGUFReader(path).tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
            if tensor.name == _ROPE_FREQS:
                factors = dequantize(tensor.data, tensor.tensor_type)
        return f"gguf:{sizes.most_common(1)[0][0]}", factors
    except Exception as error:  # a damaged file fails in numpy, struct or the enums of gguf
        raise SubjectError(
            "the GGUF file is truncated or damaged",
            where=str(path),
            got=f"{type(error).__name__}: {str(error).strip()[:200]}",
            next_step="copy or download the file again",
        ) from error


def _check_tensors(header: Header, plan: Any, where: str) -> None:
    """Refuse a file with a tensor that the reader of transformers would leave out.

    Args:
        header: The header of the file.
        plan: The model that its configuration asks for, on the meta device.
        where: The file, for the message.

    Raises:
        SubjectError: Tensors have no place in the model.
    """
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    architecture = str(header.values.get("general.architecture"))
    if is_gguf_arch_supported(architecture):  # the newer reader reports what it leaves out
        return
    legacy: Any = reader
    processor = legacy.TENSOR_PROCESSORS.get(architecture, legacy.TensorProcessor)(
        config=plan.config.to_dict()
    )
    places = legacy.get_gguf_hf_weights_map(plan, processor)
    # Experts lie in one tensor, which is named without the ending
    known = {*places, *(f"{name}.weight" for name in places), _ROPE_FREQS}
    if architecture == "gpt2":
        known.add("output.weight")
    unused = {name: f"shape {shape}" for name, shape in header.shapes.items() if name not in known}
    if unused:
        raise dropped(unused, where)


def _forget_quantization(model: Any) -> None:
    """Drop the marks of quantization from a dequantized model, so that it saves like any other."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _mend_tokenizer(tokenizer: Any, values: dict[str, Any], config: Any, where: str) -> None:
    r"""Restore the digit splitting of the ``smollm`` kind and the length limit, and refuse other differences.

    Source of the rule: the pre-tokenizer table of llama.cpp (``LLAMA_VOCAB_PRE_TYPE_SMOLLM``:
    first every ``\p{N}`` alone, then the pattern of GPT-2).

    Raises:
        SubjectError: The tokens of the file are cut in a way that transformers does not know.
    """
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind, split = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if split in _DIGITS_FIRST:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    # "default" is what converters write who do not know; the pattern of GPT-2 is as good as another
    elif kind == "gpt2" and split not in {None, "default", *_LIKE_GPT2, *GGUF_PRE_TOKENIZER_SPLITS}:
        raise _other_tokens("tokenizer.ggml.pre", split, where)
    space = values.get("tokenizer.ggml.add_space_prefix")
    if kind == "llama" and space is not None:
        first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[:1]
        if bool(first and first[0].startswith("\u2581")) != bool(space):
            raise _other_tokens("tokenizer.ggml.add_space_prefix", space, where)
    limit = getattr(config, "max_position_embeddings", None)  # positions of BLOOM have no end
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit or tokenizer.model_max_length)


def _other_tokens(key: str, value: Any, where: str) -> SubjectError:
    return SubjectError(
        "transformers would cut text into other tokens than this GGUF file says",
        where=where,
        got=f"{key} = {str(value)[:80]}",
        next_step="load the original checkpoint of this model with its own tokenizer",
    )

"""``load`` a subject by name, or ``wrap`` a HF model that is already in memory.

A name is checked without importing torch, and a wrong one is refused without touching the
network (``catalog.resolve``). Loaded weights are checked for NaN and Inf. Downloads and
dequantized models live in ``core.packages.cache_dir()``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.files import given_path
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.catalog import Reference, registered_subjects, resolve
from sparsescope.models.entries import LoadedModel

if TYPE_CHECKING:
    from sparsescope.models.structure.roles import Block
    from sparsescope.models.subject import Subject


def load(
    name: str | Path,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Load a subject by name.

    Args:
        name: Registered name (``sparsescope list subjects``), hub id ``organization/model``, model folder,
            folder of a training run of ours, or ``.gguf`` file. ``NAME@REVISION`` is short for ``revision``.
            ``KIND@ARGS:NAME`` is a variant of NAME (``sparsescope list variants``), for example
            ``shuffled:NAME``, a control with permuted MLP input weights.
        revision: Branch, tag or commit of a hub model; ``step-N`` of a training run; ``seed-N``
            of a random subject.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        attn_implementation: ``eager``, ``sdpa``, ...; None for the default of transformers.
        trust_remote_code: Let code of the model repository run. It is recorded in the identity.

    Returns:
        The subject, in evaluation mode.

    Raises:
        SpecError: A parameter is not valid.
        SubjectError: The name is unknown, or the model is damaged or not supported.
        DependencyError: The model cannot be fetched, the device is not there, or a plug-in cannot be used.
    """
    reference = resolve(name, revision, dtype, device, attn_implementation, trust_remote_code)
    from sparsescope.models.identity import check_finite
    from sparsescope.models.torch_environment import check_device

    check_device(device)
    loaded = _load(reference)
    check_finite(loaded.model, where=reference.request.name)
    loaded.model.to(device)  # type: ignore[arg-type]  # the wrapper of transformers hides the overloads
    # A path is named by its last part: where a model lies on this disk is no property of the model.
    id = Path(reference.request.name).name if reference.kind in ("folder", "gguf") else reference.request.name
    subject = _subject(loaded, id=id, trust_remote_code=trust_remote_code)
    del loaded  # a model that variants are made of is not kept beside them
    for variant in reversed(reference.variants):
        subject = variant.of(subject)
    return subject.loaded_as(str(name))


def wrap(model: Any, tokenizer: Any = None, id: str | None = None) -> Subject:
    """Make a subject of a HF model that is already in memory. The model is never changed.

    Args:
        model: ``transformers.PreTrainedModel``, in any precision, on any device.
        tokenizer: Its fast tokenizer; None when only token ids will be used.
        id: Name of the subject; by default the class name.

    Raises:
        SpecError: ``model`` is not a HF model, or the tokenizer is not a fast one.
        SubjectError: The architecture is not supported, or weights are NaN, infinite or not loaded; or blocks
            were cut from the model.
    """
    from sparsescope.models.formats.wrapping import check_depth, check_wrappable
    from sparsescope.models.identity import check_computable, check_finite, stored_precision

    check_wrappable(model)
    if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
        raise SpecError(
            "the tokenizer must be a fast one",
            where="wrap(tokenizer)",
            allowed="a tokenizer of transformers with is_fast, or None",
            got=type(tokenizer).__name__,
            next_step="load it with AutoTokenizer.from_pretrained(...)",
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SubjectError(
            "the weights of the model are not loaded (device `meta`)",
            where="wrap(model)",
            next_step="load it without device_map offloading",
        )
    check_depth(model)
    name = id or type(model).__name__
    check_finite(model, where=name)
    check_computable(model, where=name)
    origin = stored_precision(model)
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        method = quantizer.quantization_config.quant_method
        origin = str(getattr(method, "value", method))
    loaded = LoadedModel(model, tokenizer, getattr(model.config, "_commit_hash", None), origin)
    remote = type(model).__module__.startswith("transformers_modules.")  # code of a repository
    return _subject(loaded, id=name, trust_remote_code=remote)


def _load(reference: Reference) -> LoadedModel:
    """Call the loader that the reference names."""
    request = reference.request
    if reference.entry is not None:
        return reference.entry.load(request)
    if reference.kind == "gguf":
        from sparsescope.models.formats.gguf_file import load_gguf

        return load_gguf(request)
    if reference.kind == "folder":
        from sparsescope.models.formats.series_file import FILE

        if (given_path(request.name, "name of a subject") / FILE).is_file():  # written by `sparsescope train`
            from sparsescope.models.zoo.shipped_series import load_series_folder

            return load_series_folder(given_path(request.name, "name of a subject"), request)
        from sparsescope.models.formats.folder import load_folder

        return load_folder(request)
    from sparsescope.models.formats.hub import load_hub

    return load_hub(request, registered=registered_subjects())


def _subject(loaded: LoadedModel, id: str, trust_remote_code: bool) -> Subject:
    """Find the roles of a loaded model and build the subject."""
    from sparsescope.models.subject import Subject

    return Subject(
        loaded.model,
        find_roles(loaded.model),
        loaded.tokenizer,
        id=id,
        revision=loaded.revision,
        origin_precision=loaded.origin_precision,
        trust_remote_code=trust_remote_code,
    )


def find_roles(model: Any) -> tuple[Block, ...]:
    """Return the roles in every block: our own map first, else that of TransformerLens.

    Raises:
        SubjectError: Neither knows the architecture.
    """
    from sparsescope.models.structure.roles import BlockReader, find_blocks, unsupported

    path, blocks = find_blocks(model)
    reader = BlockReader(model)
    found = tuple(reader.read(layer, f"{path}.{layer}", block) for layer, block in enumerate(blocks))
    if any(block.mlp or block.experts for block in found):
        return found
    from sparsescope.models.bridge import block_modules

    try:
        found = block_modules(model)
    except SubjectError as error:
        raise unsupported(model, "its blocks are known neither to us nor to TransformerLens") from error
    if not any(block.mlp or block.experts for block in found):
        raise unsupported(model, "no MLP was found in its blocks")
    return found

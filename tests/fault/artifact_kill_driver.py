"""Kills processes that keep an artifact at random moments and records what they leave behind.

Started by ``test_artifact_kill.py`` in a process of its own, which forks one child for each trial. A moment
is drawn evenly within the time that an undisturbed child needs, and a little beyond it.
Usage: artifact_kill_driver.py HOME SEED KILLS; prints one JSON line for each trial.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from safetensors.numpy import save_file

from sparsescope.core.artifact_store import ArtifactStore
from sparsescope.core.run_store import Store

CHUNK = bytes(range(256)) * 256  # 64 KiB


def keep(home: Path) -> str:
    """Keep an artifact of three files, 6 MiB: two streamed, one that a library saves."""
    import numpy as np

    with ArtifactStore(home).keep("toy", format="toy-1") as writer:
        for name in ("first.bin", "deep/second.bin"):
            with writer.file(name) as handle:
                for _ in range(32):
                    handle.write(CHUNK)
        save_file({"x": np.ones(1 << 19, np.float32)}, writer.folder / "third.safetensors")
    return writer.artifact.id


def start(home: Path) -> int:
    """Fork a process that keeps the artifact."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        keep(home)
        code = 0
    finally:
        os._exit(code)


def disturbed(home: Path, offset: float) -> int:
    """Kill a child ``offset`` seconds after its start; return its exit code, negative for a signal."""
    child = start(home)
    time.sleep(offset)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def undisturbed(home: Path) -> float:
    """Seconds that a child takes which nobody kills."""
    began = time.monotonic()
    os.waitpid(start(home), 0)
    taken = time.monotonic() - began
    shutil.rmtree(home)
    return taken


def check(home: Path, expected: str) -> dict[str, object]:
    """What the killed process left, and what the next one makes of it."""
    store = Store(home)
    folder = home / "artifacts"
    names = (
        [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    )
    found: dict[str, object] = {
        "names": names,
        "listed": store.artifacts.ids(),
        "left_by_it": len(list(folder.glob(".tmp-*"))),
    }
    found["verdicts"] = [verdict.status for verdict in store.artifacts.verify()]
    stamp = (folder / expected / "artifact.json").stat().st_mtime_ns if names else None
    found["again"] = keep(home) == expected and store.artifacts.open(expected).verify() == []
    found["kept_the_old"] = stamp in (None, (folder / expected / "artifact.json").stat().st_mtime_ns)
    found["left"] = [path.name for path in folder.iterdir() if path.name != expected]
    return found


def main(home: Path, seed: int, kills: int) -> None:
    generator = random.Random(seed)
    expected = keep(home / "reference")
    for number in range(kills):
        # Measured anew each time: how long the disk takes changes from one moment to the next.
        offset = generator.random() * 1.1 * min(undisturbed(home / "length") for _ in range(2))
        code = disturbed(home / "runs", offset)
        print(
            json.dumps(
                {"trial": number, "at": round(offset, 4), "code": code, **check(home / "runs", expected)}
            ),
            flush=True,
        )
        shutil.rmtree(home / "runs")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""Kills trainings of dictionaries at random moments and records what they leave behind.

Started by ``test_kill_dictionaries.py`` in a process of its own; as ``train_driver.py`` does, it imports
everything once and forks one child for each trial, with one thread of torch. A child saves after every step.
A moment is a random one, which seldom falls into a save on a fast disk, or one held open within a save: the
child stops before a file takes its name, and is killed there.
Usage: dictionary_driver.py HOME SEED KILLS; prints one JSON line for each trial.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from safetensors import SafetensorError, safe_open

from sparsescope.dictionaries.architectures import make
from sparsescope.dictionaries.rows import TensorRows
from sparsescope.dictionaries.train import DictionaryTraining, Settings, train
from sparsescope.training import loop
from sparsescope.training.state import FILE, PREVIOUS

STEPS = 24
BEGIN, STEP, SAVE, HELD, END = b"b", b"s", b"w", b"h", b"e"


def run(folder: Path | None) -> str:
    """Train three architectures; a digest of all that came out."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(STEPS * 20, 40, generator=generator).relu() + 0.2
    given = {name: make(name, 40, 400, k=4) for name in ("topk", "feature_choice", "jumprelu")}
    settings = Settings(learning_rate=1e-2, dead_window=100)
    made = train(given, TensorRows(rows, batch_rows=20), settings=settings, folder=folder)
    digest = hashlib.sha256()
    for name, found in made.dictionaries.items():
        for key, tensor in found.state_dict().items():
            digest.update(key.encode() + tensor.numpy().tobytes())
        facts = {key: value for key, value in made.facts[name].items() if key != "cpu_seconds"}
        digest.update(json.dumps(facts, sort_keys=True).encode())
        digest.update(made.census[name].rows_per_feature.tobytes())
    digest.update(made.curves.to_json().encode())
    return digest.hexdigest()


def start(folder: Path, hold: int | None = None) -> tuple[int, int]:
    """Fork a process that trains; return its id, and a pipe that tells of steps and saves.

    ``hold`` names the renaming, counted from 0, before which the process waits to be killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    code = 99
    try:
        loop.SAVE_SECONDS = 0.0
        plain, update, save = DictionaryTraining.__init__, loop._update, loop.save_state

        def init(self, *words):
            plain(self, *words)
            self.saves = 0.0  # save after every step
            os.write(writer, BEGIN)

        def updated(*words):
            update(*words)
            os.write(writer, STEP)

        def saved(*words):
            save(*words)
            os.write(writer, SAVE)

        rename, renamings = Path.replace, itertools.count()

        def renamed(self, target):
            if next(renamings) == hold:
                os.write(writer, HELD)
                time.sleep(600)
            return rename(self, target)

        DictionaryTraining.__init__, loop._update, loop.save_state = init, updated, saved
        Path.replace = renamed
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        found = run(folder)
        os.write(writer, END + found.encode())
        code = 0
    finally:
        os._exit(code)


def finished(folder: Path) -> tuple[str, bytes, float]:
    """Let a training run to its end; its digest, what it told, and the seconds of its steps."""
    child, reader = start(folder)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        assert pipe.read(1) == BEGIN, folder.with_suffix(".log").read_text()
        begun, told = time.monotonic(), b""
        while (mark := pipe.read(1)) not in (END, b""):
            told += mark
        seconds, digest = time.monotonic() - begun, pipe.read(64).decode()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(folder.with_suffix(".log").read_text())
    return digest, told, seconds


def killed(folder: Path, offset: float, hold: int | None) -> tuple[int, bytes]:
    """Kill a training at a renaming, or ``offset`` seconds after its first step could begin.

    Returns:
        Its exit code and what it told.
    """
    child, reader = start(folder, hold)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        assert pipe.read(1) == BEGIN, folder.with_suffix(".log").read_text()
        told = b""
        if hold is None:
            time.sleep(offset)
        else:
            while (mark := pipe.read(1)) not in (HELD, END, b""):
                told += mark
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        while part := pipe.read(4096):
            told += part
    return code, told


def step_of(path: Path) -> int:
    """The step of a saved state; -1 where there is none, -2 where it cannot be read."""
    if not path.is_file():
        return -1
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["facts"])["step"]
    except SafetensorError:
        return -2


def main(home: Path, seed: int, kills: int) -> None:
    torch.set_num_threads(1)
    generator = random.Random(seed)
    with contextlib.redirect_stdout(sys.stderr):
        expected = run(None)  # imports what the children use
    gc.freeze()
    folder = home / "run"
    digest, told, seconds = finished(folder)
    assert (digest, told) == (expected, (STEP + SAVE) * STEPS), "an undisturbed process gives other bits"
    for number in range(kills):
        shutil.rmtree(folder)
        record = {"trial": number, "kills": []}
        # Three kinds: a random moment, a random moment and then a save, a save. The first save renames one
        # file, every later one two.
        moments = [None, generator.randrange(3)] if number % 2 else [generator.randrange(3, 2 * STEPS - 1)]
        if number % 3 == 2:
            moments[-1] = 2 * generator.randrange(2, STEPS) - 1  # both files are there
        for hold in [None] if number == 0 else moments:
            code, told = killed(folder, generator.random() * seconds, hold)
            left = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            record["kills"].append(
                {
                    "code": code,
                    "made": told.count(STEP),
                    "saves": told.count(SAVE),
                    "newest": step_of(folder / FILE),
                    "previous": step_of(folder / PREVIOUS),
                    "half": sum(name.endswith(".tmp") for name in left),
                }
            )
        if number % 3 == 2 and (folder / FILE).is_file() and (folder / PREVIOUS).is_file():
            data = (folder / FILE).read_bytes()
            (folder / FILE).write_bytes(data[: generator.randrange(len(data))])
            record["damaged"] = True
        digest, told, _ = finished(folder)
        record["again"] = told.count(STEP)
        record["same"] = digest == expected
        record["left"] = sorted(path.name for path in folder.iterdir() if path.name != "lock")
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""Kills real ``sparsescope run`` processes at random moments and records what they leave behind.

Started by ``test_kill.py`` in a process of its own. It imports everything once and forks one child for each
trial, so that a trial costs half a second; one thread of torch, since a fork would lose the others. A moment
is drawn evenly within one of three phases of the run (start, forward pass, write), whose lengths are those of
an undisturbed run.
Usage: kill_driver.py HOME SEED KILLS; prints one JSON line for each trial.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
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

from sparsescope import cli
from sparsescope.core.run_store import Store
from sparsescope.runner import engine
from sparsescope.runner import run as runner
from sparsescope.testing import check_same_numbers

COMMAND = [
    "sparsescope",
    "run",
    "activation_sparsity",
    "--subject",
    "glassllm",
    "--corpus",
    "python-docs",
    "--tokens",
    "600",
    "--context",
    "32",
    "--batch-tokens",
    "32",
    "--set",
    "resamples=100",
    "--set",
    "shares=0.5,0.9",
]
# What a process says when it gets there
MARKS = {"start": b"s", "pass": b"p", "batch 5": b"5", "write": b"w"}
PHASES = ("start", "pass", "write")
NO_SAVING = 1e9


def start(home: Path, *, save_seconds: float, more: tuple[str, ...] = ()) -> tuple[int, int]:
    """Fork a process that runs the command line; return its id and a pipe that tells when a phase begins."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    code = 99
    try:
        engine.SAVE_SECONDS = save_seconds
        runner.one_pass = announced(runner.one_pass, writer, MARKS["pass"])
        runner.LiveSource._run = announced(runner.LiveSource._run, writer, MARKS["batch 5"], call=5)
        Store.write = announced(Store.write, writer, MARKS["write"])
        log = os.open(home.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = [*COMMAND, "--home", str(home), *more]
        os.write(writer, MARKS["start"])
        cli.main()
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def announced(function, writer, mark, call=1):
    """The function, saying so when it is called for the first (or another) time."""
    calls = []

    def announcing(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.write(writer, mark)
        return function(*args, **kwargs)

    return announcing


def undisturbed(home: Path, more: tuple[str, ...] = ()) -> dict[str, float]:
    """Run to the end; return the seconds of each phase."""
    child, reader = start(home, save_seconds=NO_SAVING, more=more)
    times = []
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while mark := pipe.read(1):
            if mark != MARKS["batch 5"]:
                times.append(time.monotonic())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    times.append(time.monotonic())
    if code != 0:
        raise SystemExit(f"the next run failed with {code}: {home.with_suffix('.log').read_text()}")
    return {phase: b - a for phase, a, b in zip(PHASES, times, times[1:], strict=False)}


def disturbed(
    home: Path, number: int, phase: str, offset: float, save_seconds: float, how: signal.Signals
) -> int:
    """Send a signal ``offset`` seconds after a phase began; return the exit code, negative for a signal."""
    child, reader = start(home, save_seconds=save_seconds)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while (mark := pipe.read(1)) != MARKS[phase]:
            if not mark:
                raise SystemExit(
                    f"trial {number} ended before {phase}: {home.with_suffix('.log').read_text()}"
                )
        time.sleep(offset)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, how)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(
        b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)
    ).hexdigest()


def check(store: Store, reference, older: dict[str, str]) -> dict[str, object]:
    """What the interrupted process left, and what the next one makes of it."""
    found = {"verdicts": sorted({v.status for v in store.verify()} | {"ok"})}
    found["unreadable"] = []
    for name in store.run_ids():
        try:
            store.open(name)
        except Exception as error:
            found["unreadable"].append(f"{name}: {error}")
    found["altered"] = [name for name, before in older.items() if fingerprint(store.path(name)) != before]
    half = [
        p.name
        for p in store.root.iterdir()
        if not p.name.startswith(".") and not (p / "manifest.json").is_file()
    ]
    found["half_written"] = half
    found["complete"] = store.has(reference.run_id)
    found["saved"] = len(list(store.root.glob(".partial/*/*.safetensors")))
    found["left_by_it"] = len(list(store.root.glob(".tmp-*")))
    found["lengths"] = undisturbed(store.root)
    again = store.open(reference.run_id)
    try:
        check_same_numbers(reference, again)
        found["differs"] = ""
    except AssertionError as error:
        found["differs"] = str(error)
    log = [
        json.loads(line)["event"]
        for line in (store.path(reference.run_id) / "events.jsonl").read_text().splitlines()
    ]
    found["resumed"] = "resumed" in log
    found["left"] = [
        str(p.relative_to(store.root)) for p in (*store.root.glob(".tmp-*"), *store.root.glob(".partial/*"))
    ]
    return found


def together(home: Path, reference, older: dict[str, str]) -> dict[str, object]:
    """Two processes make the same run at the same time."""
    children = [start(home, save_seconds=0.0)[0] for _ in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"phase": "together", "codes": codes, **check(Store(home), reference, older)}


def main(home: Path, seed: int, kills: int) -> None:
    torch.set_num_threads(1)
    generator = random.Random(seed)
    sys.argv = [*COMMAND, "--home", str(home / "reference")]
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        cli.main()  # compiles and imports what the children use, and gives the expected result
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # a collection in a child would look at all that was imported, and copy it to do so
    reference = Store(home / "reference").open(Store(home / "reference").run_ids()[0])
    store = Store(home / "runs")
    undisturbed(store.root, ("--set", "seed=7"))
    older = {name: fingerprint(store.path(name)) for name in store.run_ids()}
    lengths = undisturbed(store.root)
    shutil.rmtree(store.path(reference.run_id))
    trials = [(PHASES[n % 3], signal.SIGKILL, 0.0 if n // 3 % 2 else NO_SAVING) for n in range(kills)]
    trials += [("batch 5", how, NO_SAVING) for how in (signal.SIGINT, signal.SIGTERM)]
    for number, (phase, how, save_seconds) in enumerate(trials):
        share = generator.random() if phase in lengths else 0.0
        code = disturbed(store.root, number, phase, share * lengths.get(phase, 0.0), save_seconds, how)
        record = {
            "trial": number,
            "phase": phase,
            "at": round(share, 3),
            "saving": save_seconds == 0,
            "signal": how.name,
            "code": code,
            "said": store.root.with_suffix(".log").read_text(),
            **check(store, reference, older),
        }
        # How long the disk takes changes from one moment to the next; a pass that went on is
        # shorter than a whole one.
        lengths |= {name: seconds for name, seconds in record["lengths"].items() if name != "pass"}
        print(json.dumps(record), flush=True)
        shutil.rmtree(store.path(reference.run_id))
    print(json.dumps(together(store.root, reference, older)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

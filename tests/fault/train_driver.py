"""Kills real ``sparsescope train`` processes at random moments and records what they leave behind.

Started by ``test_kill_training.py`` in a process of its own; as ``kill_driver.py`` does, it imports
everything once and forks one child for each trial, with one thread of torch. A moment is drawn evenly within
the steps, or within the writing of the finished series, whose lengths are those of an undisturbed training.
Usage: train_driver.py HOME SEED KILLS; prints one JSON line for each trial.
"""

from __future__ import annotations

import contextlib
import gc
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
from safetensors import safe_open

from sparsescope import cli
from sparsescope.training import loop, trainer
from sparsescope.training.recipe import read_recipe
from sparsescope.training.state import FILE

RECIPE = """
name = "tiny"
title = "A tiny run"
license = "Apache-2.0"
steps = 60
checkpoints = [0, 20, 60]
log_every = 20
[model]
architecture = "ModularTransformerForCausalLM"
config = { vocab_size = 8, hidden_size = 16, intermediate_size = 32, num_attention_heads = 2 }
[data]
kind = "modular_addition"
modulus = 7
train_fraction = 0.5
batch_size = 16
[optimizer]
learning_rate = 1e-2
weight_decay = 1.0
"""
BEGIN, STEP, FINISH = b"b", b"s", b"f"


def start(output: Path, saves: float) -> tuple[int, int]:
    """Fork a process that trains; return its id and a pipe that tells of its beginning, of each step,
    and of its last part.

    Args:
        output: Folder of the series; recipe and log lie beside it.
        saves: The state is saved when this many times the length of a save have passed; 0
            for after every step.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    code = 99
    try:
        loop.SAVE_SECONDS, loop.SAVES = 0.0, saves
        update, finish, run = loop._update, trainer.finish, trainer.run_training

        def told(before, function, after):
            def telling(*args, **kwargs):
                os.write(writer, before)
                found = function(*args, **kwargs)
                os.write(writer, after)
                return found

            return telling

        loop._update = told(b"", update, STEP)
        trainer.finish = told(FINISH, finish, b"")
        trainer.run_training = told(BEGIN, run, b"")
        log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["sparsescope", "train", str(output.with_suffix(".toml")), "--output", str(output)]
        cli.main()
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def undisturbed(output: Path) -> tuple[dict[bytes, float], int]:
    """Train to the end; return the seconds of each phase and the number of steps."""
    child, reader = start(output, saves=10.0)
    times, steps = {}, 0
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while mark := pipe.read(1):
            steps += mark == STEP
            if mark != STEP:
                times[mark] = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end = time.monotonic()
    if code != 0:
        raise SystemExit(f"the training failed with {code}: {output.with_suffix('.log').read_text()}")
    return {BEGIN: times[FINISH] - times[BEGIN], FINISH: end - times[FINISH]}, steps


def killed(output: Path, phase: bytes, offset: float, saves: float) -> tuple[int, int]:
    """Kill a training ``offset`` seconds after a phase began; return its exit code and the
    steps that it had made.
    """
    child, reader = start(output, saves)
    steps = 0
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while (mark := pipe.read(1)) != phase:
            if not mark:
                raise SystemExit(f"the training ended too early: {output.with_suffix('.log').read_text()}")
            steps += mark == STEP
        time.sleep(offset)
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        steps += pipe.read().count(STEP)
    return code, steps


def outcome(output: Path) -> list[list[object]]:
    """What a finished series holds, without what was measured of the machine."""
    content = json.loads((output / "series.json").read_text())
    stored = [[record["step"], record["sha256"], record["float32_hash"]] for record in content["checkpoints"]]
    # There where only its removal was cut short
    names = {path.name for path in output.iterdir()} - {trainer.PARTIAL}
    return [stored, sorted(content["files"].items()), sorted(names)]


def main(home: Path, seed: int, kills: int) -> None:
    torch.set_num_threads(1)
    generator = random.Random(seed)
    reference, output = home / "reference", home / "run"
    for folder in (reference, output):
        folder.with_suffix(".toml").write_text(RECIPE)
    with contextlib.redirect_stdout(sys.stderr):
        # Imports what the children use
        trainer.train(read_recipe(reference.with_suffix(".toml")), reference, recipe_text=RECIPE)
    gc.freeze()  # a collection in a child would look at all that was imported, and copy it to do so
    expected = outcome(reference)
    lengths, steps = undisturbed(output)
    shutil.rmtree(output)
    for number in range(kills):
        phase, saves = (BEGIN, BEGIN, FINISH)[number % 3], (0.0, 10.0)[number % 2]
        code, made = killed(output, phase, generator.random() * lengths[phase], saves)
        path, saved = output / trainer.PARTIAL / FILE, 0
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                saved = json.loads(file.metadata()["facts"])["step"]
        complete = (output / "series.json").is_file()
        again = 0 if complete else undisturbed(output)[1]
        record = {
            "trial": number,
            "phase": phase.decode(),
            "saves": saves,
            "code": code,
            "made": made,
            "saved": saved,
            "again": again,
            "complete": complete,
            "steps": steps,
            "same": outcome(output) == expected,
        }
        print(json.dumps(record), flush=True)
        shutil.rmtree(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

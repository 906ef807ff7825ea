"""Processes that a driver kills: each driver runs in a process of its own and prints one JSON
record for each trial.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """``driven(driver, seed, kills)``: the records of a driver of this folder."""

    def run(driver, seed, kills):
        program = Path(__file__).with_name(f"{driver}.py")
        words = [sys.executable, str(program), str(tmp_path_factory.mktemp("kill")), str(seed), str(kills)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=280, env=environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        records = [json.loads(line) for line in done.stdout.splitlines()]
        for record in records:
            print({key: value for key, value in record.items() if key != "said"})
        return records

    return run

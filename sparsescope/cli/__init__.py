"""The command line. ``sparsescope report SUBJECT`` is the main job.

Exit codes: 0 ok, 1 user error, 2 partial (some runs failed), 3 internal error, 130 interrupted.
Nothing heavy is imported here: torch comes with the verb that needs it.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from sparsescope.cli import looking, measuring, pages, pruning, searching, sparsifying
from sparsescope.cli.root import app

# The verbs add themselves when they are imported
__all__ = ["app", "looking", "main", "measuring", "pages", "pruning", "searching", "sparsifying"]


def main() -> None:
    """Entry point: run the command line and turn exceptions into exit codes."""
    import signal

    from sparsescope.cli.exit_codes import execute

    # A closed one is None, and print would take standard output instead of standard error
    nowhere = Path(os.devnull)
    sys.stdout, sys.stderr = sys.stdout or nowhere.open("w"), sys.stderr or nowhere.open("w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files and models, on a terminal that knows ASCII only
            stream.reconfigure(errors="backslashreplace")
    # What a scheduler sends before it kills is treated as Ctrl-C: the state of a run is saved.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(execute(app, sys.argv[1:]))

"""From the words of a command line to an exit code, with every error on one screen.

0 ok, 1 user error, 2 partial, 3 internal error, 130 interrupted. Typer's own ``main`` is not used: it turns
Ctrl-C and a closed pipe into exit codes before anything here could say what became of the work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsescope.cli import console
from sparsescope.errors import SparsescopeError, SpecError

if TYPE_CHECKING:
    import typer


def execute(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    Args:
        app: The verbs.
        arguments: The words after the program's name.
    """
    import typer
    from typer.main import get_command

    wants_json = "--json" in arguments
    try:
        command = get_command(app)
        with command.make_context("sparsescope", list(arguments)) as context:
            command.invoke(context)
        return 0
    except SparsescopeError as error:
        console.error_json(error) if wants_json else console.say(f"error: {error}")
        return 1
    except typer.Exit as error:
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted; a run that is started again goes on from its last saved state")
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone (| head). Nothing more can be printed, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Usage errors are told by what they can do: Typer brings classes of its own in some versions,
        # click's in others.
        if hasattr(error, "show") and hasattr(error, "format_message"):
            if wants_json:
                console.error_json(SpecError(error.format_message(), next_step="see: sparsescope --help"))
            else:
                error.show()
            return 1
        if _out_of_memory(error):
            short = SparsescopeError(
                "there is not enough memory",
                got=_first_line(error),
                next_step="lower --batch-tokens, measure fewer sites, or take --dtype bfloat16; sparsescope "
                "doctor --subject NAME says what a model needs",
            )
            console.error_json(short) if wants_json else console.say(f"error: {short}")
            return 1
        return _internal(error, wants_json)


def _out_of_memory(error: Exception) -> bool:
    """Whether the system or torch ran out of memory: torch has a class for accelerators and a
    plain one for the CPU.
    """
    return (
        isinstance(error, MemoryError)
        or "OutOfMemory" in type(error).__name__
        or "allocate memory" in str(error)
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _internal(error: Exception, wants_json: bool) -> int:
    """Report a bug: one line and the next step, and the trace where it is asked for."""
    if os.environ.get("SPARSESCOPE_DEBUG"):
        import traceback

        traceback.print_exc()
        return 3
    bug = SparsescopeError(
        f"internal error: {type(error).__name__}: {_first_line(error)}",
        next_step="run it again with SPARSESCOPE_DEBUG=1 for the trace and report it",
    )
    console.error_json(bug) if wants_json else console.say(str(bug))
    return 3

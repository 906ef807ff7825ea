"""From the words of a command line to an exit code, with every error on one screen.

0 ok, 1 user error, 2 partial, 3 internal error, 130 interrupted. Typer's own ``main`` is not used: it turns
Ctrl-C and a closed pipe into exit codes before anything here could say what became of the work.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsescope.cli import console
from sparsescope.errors import SparsescopeError, SpecError

if TYPE_CHECKING:
    import typer


# What a path, a permission or a disk is to blame for, and no bug
_OF_THE_MACHINE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EIO,
    errno.EMFILE,
    errno.ENOTDIR,
    errno.EISDIR,
}


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
    except console.OutputLost as error:
        return _output_lost(error)
    except SparsescopeError as error:
        return _told(error, wants_json)
    except typer.Exit as error:
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted; a run that is started again goes on from its last saved state")
        return 130
    except BrokenPipeError:
        _print_no_more()  # the reader of a pipe has gone (| head)
        return 0
    except Exception as error:
        # Usage errors are told by what they can do: Typer brings classes of its own in some versions,
        # click's in others.
        if hasattr(error, "show") and hasattr(error, "format_message"):
            if wants_json:
                usage = SpecError(error.format_message(), next_step="see: sparsescope --help")
                return _told(usage, wants_json)
            error.show()
            return 1
        if _out_of_memory(error):
            short = SparsescopeError(
                "there is not enough memory",
                got=_first_line(error),
                next_step="lower --batch-tokens, measure fewer sites, or take --dtype bfloat16; sparsescope "
                "doctor --subject NAME says what a model needs",
            )
            return _told(short, wants_json)
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            place = "" if error.filename is None else os.fsdecode(error.filename)
            refused = SparsescopeError(
                "the system refused to read or write",
                where=place or "a file",
                got=f"{errno.errorcode[error.errno]}: {error.strerror}",
                next_step="mend the cause (permissions, disk, name) and run the same command again",
            )
            return _told(refused, wants_json)
        return _internal(error, wants_json)


def _told(error: SparsescopeError, wants_json: bool, code: int = 1) -> int:
    """Print an error and return the exit code."""
    try:
        console.error_json(error) if wants_json else console.say(f"error: {error}")
    except console.OutputLost as lost:
        console.say(f"error: {error}")
        return _output_lost(lost)
    except BrokenPipeError:
        _print_no_more()
    return code


def _output_lost(error: SparsescopeError) -> int:
    """Say on standard error that standard output is lost."""
    _print_no_more()
    console.say(f"error: {error}")
    return 1


def _print_no_more() -> None:
    """Let nothing be printed again, not even at exit, what waits to be printed included."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    if wants_json:
        return _told(bug, wants_json, 3)
    console.say(str(bug))
    return 3

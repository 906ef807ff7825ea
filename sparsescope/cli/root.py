"""The command line as an object, to which the verbs add themselves, and its version."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="sparsescope",
    help="Shows the sparse structure of trained models and measures what it buys.\n\n"
    "Start with: sparsescope report smollm2-135m",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sparsescope import __version__
        from sparsescope.cli.console import out

        out(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass

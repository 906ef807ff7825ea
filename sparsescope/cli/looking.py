"""Verbs that show what there is: names, runs, this installation, the explorer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sparsescope.cli.options import (
    Home,
    Json,
    ModelOptions,
    with_options,
)
from sparsescope.cli.root import app
from sparsescope.errors import DependencyError, unknown_name

if TYPE_CHECKING:
    pass


@app.command("list")
def list_names(
    what: Annotated[
        str,
        typer.Argument(
            help="analyses, subjects, variants, corpora, benchmarks, inputs, studies, runs or "
            "artifacts; all when left out."
        ),
    ] = "all",
    home: Home = None,
    json: Json = False,
) -> None:
    """List everything that has a name: analyses, subjects, variants, corpora, studies,
    stored runs and more.
    """
    from sparsescope.cli import console, listing

    sections = listing.sections(home)
    if what != "all" and what not in sections:
        raise unknown_name("kind of name", what, ["all", *sections], next_step="run: sparsescope list")
    chosen = {name: rows for name, rows in sections.items() if what in ("all", name)}
    if json:
        console.out_json(chosen)
        return
    for name, rows in chosen.items():
        console.out(f"{name}\n")
        empty = (
            f"  none yet; make one with: sparsescope report {listing.DEFAULT_SUBJECT}\n"
            if name == "runs"
            else "  none yet\n"
        )
        console.out(
            console.table(list(rows[0]), [list(row.values()) for row in rows]) + "\n" if rows else empty
        )


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="An analysis, benchmark, subject, variant, corpus, run or artifact.")
    ],
    home: Home = None,
    json: Json = False,
) -> None:
    """Show one analysis with its parameters and definitions, or a subject, corpus, run or artifact."""
    from sparsescope.cli import console, listing

    found = listing.describe(name, home)
    if json:
        console.out_json(found)
    else:
        console.out(listing.text(found))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A run: its id, or its folder.")],
    second: Annotated[str, typer.Argument(help="Another run of the same analysis.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Compare two stored runs: what was set differently and what came out differently."""
    from sparsescope.cli import console, listing
    from sparsescope.reporting.compare import compare as compare_results

    found = compare_results(listing.open_run(first, home), listing.open_run(second, home))
    if json:
        console.out_json(listing.comparison_json(found))
    else:
        console.out(listing.comparison_text(found))


@app.command()
def verify(
    home: Home = None,
    remove_unfinished: Annotated[
        float | None,
        typer.Option(
            help="Delete the saved work of interrupted runs that is older than this many days.", min=0
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check sizes and checksums of every stored run and artifact, and list the saved work
    of interrupted runs.
    """
    from dataclasses import asdict

    from sparsescope.cli import console, listing
    from sparsescope.core.run_store import Store

    store = Store(home)
    verdicts, artifacts = store.verify(), store.artifacts.verify()
    bad = sum(run.status != "ok" for run in verdicts) + sum(artifact.status != "ok" for artifact in artifacts)
    removed = [] if remove_unfinished is None else store.remove_unfinished(86_400 * remove_unfinished)
    waiting = store.unfinished()
    if json:
        partial = {"unfinished": [asdict(u) for u in waiting], "removed": [asdict(u) for u in removed]}
        found = {
            "runs": [asdict(v) for v in verdicts],
            "artifacts": [asdict(v) for v in artifacts],
            "bad": bad,
        }
        console.out_json({"folder": str(store.root), **found, **partial})
    elif verdicts or artifacts:
        console.out(listing.verdicts_text(verdicts, artifacts))
    else:
        console.out(f"no run is stored in {store.root}")
    if (waiting or removed) and not json:
        console.out(listing.unfinished_text(waiting, removed))
    if bad:
        raise typer.Exit(1)


@app.command()
@with_options()
def doctor(
    *,
    subject: Annotated[
        str | None,
        typer.Option(
            help="A subject to load, to try as runs need it, and to compare with plain transformers."
        ),
    ] = None,
    model: ModelOptions,
    home: Home = None,
    json: Json = False,
) -> None:
    """Check this installation; with --subject, what runs rely on, the parity of a model with plain
    transformers, its memory and capabilities.
    """
    from sparsescope.cli import console, diagnosis

    findings = diagnosis.installation(home)
    examination = None
    if subject is not None:
        from sparsescope.models.doctor import examine

        examination = examine(model.load(subject))
    if json:
        console.out_json(diagnosis.as_json(findings, examination))
    else:
        console.out(diagnosis.as_text(findings, examination))
    if any(not finding.ok for finding in findings) or (examination is not None and not examination.healthy):
        raise typer.Exit(1)


@app.command()
def explore(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8501,
    home: Home = None,
    json: Json = False,
) -> None:
    """Open the explorer on 127.0.0.1 and show every stored run; Ctrl-C ends it."""
    import subprocess

    from sparsescope.cli import console
    from sparsescope.reporting import explorer

    command = explorer.command(port)
    if json:
        console.out_json({"address": explorer.address(port), "command": command})
        return
    console.say(f"explorer: {explorer.address(port)}  (Ctrl-C ends it)")
    try:
        # Our own fixed command line
        ended = subprocess.run(command, env=explorer.environment(home), check=False)  # noqa: S603
    except KeyboardInterrupt:  # the way to end it
        return
    if ended.returncode not in (0, 130, -2):
        raise DependencyError(
            "the explorer ended with an error",
            got=f"exit code {ended.returncode}",
            next_step=f"is port {port} taken? try: sparsescope explore --port {port + 1}",
        )

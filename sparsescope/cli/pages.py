"""Verbs that write a page: a report, a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsescope.cli.options import (
    BatchTokens,
    Depth,
    Device,
    Home,
    InputOptions,
    Json,
    ModelOptions,
    TextOptions,
    notebook_file,
    output_file,
    with_options,
)
from sparsescope.cli.root import app
from sparsescope.cli.running import GrowingReport, Target, check_output, run_requests
from sparsescope.errors import SparsescopeError, SpecError, unknown_name

if TYPE_CHECKING:
    from sparsescope.core.result import Result
    from sparsescope.runner.run import Outcome


@app.command()
@with_options()
def report(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Subjects and series of checkpoints (analysed if they were not), and stored runs."
        ),
    ],
    *,
    more: InputOptions,
    text: TextOptions,
    model: ModelOptions,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The HTML file.", parser=output_file, metavar="PATH")
    ] = Path("report.html"),
    depth: Depth = "quick",
    fallback: Annotated[
        str | None,
        typer.Option(help="Subject to take, with a notice, for one that cannot be fetched (no network)."),
    ] = None,
    batch_tokens: BatchTokens = 2048,
    home: Home = None,
    json: Json = False,
) -> None:
    """Run every analysis that fits the subjects and write one self-contained HTML file; its
    path is printed last.
    """
    from sparsescope.cli import console, listing
    from sparsescope.core.registry import FULL, QUICK
    from sparsescope.core.result import Note
    from sparsescope.core.run_store import means_run

    if depth not in (QUICK, FULL):
        raise unknown_name("depth", depth, (QUICK, FULL), next_step="leave --depth out for quick")
    check_output(output)
    found = {name: Target(name, model, text, more) for name in targets if not means_run(name)}
    if fallback is not None:
        ModelOptions(model.dtype, model.device).check(fallback)
    # One that is not there fails now
    stored = {name: listing.open_run(name, home) for name in targets if name not in found}
    if not found and (given := [*more.inputs, *text.changed, *model.changed]):
        raise SpecError(
            "these options have no meaning for stored runs",
            where=", ".join(given),
            next_step="leave them out",
        )
    results: list[Result] = []
    failed: list[Outcome] = []
    lost: list[SparsescopeError] = []
    for place, target in enumerate(targets):
        if target in stored:
            results.append(stored[target])
            continue
        try:
            inputs, wanted, notice = found[target].open(fallback)
        except SparsescopeError as error:
            if len(targets) == 1:
                raise
            lost.append(error)  # what was computed of the others is not lost with it
            console.say(f"{target} is left out\n{error}")
            continue
        growing = GrowingReport(output, results, len(results) + len(wanted) + len(targets) - place - 1)
        requests = [(record.name, dict(record.presets.get(depth, {}))) for record in wanted]
        for outcome in run_requests(requests, inputs, home, batch_tokens, rather_full=True, done=growing.add):
            if outcome.error is not None:
                failed.append(outcome)  # with a result where only storing it failed
            if outcome.result is not None:
                if notice:
                    outcome.result.notes.insert(0, Note("warning", notice, "subject"))
                results.append(outcome.result)
    causes = {str(outcome.error): outcome.error for outcome in failed if outcome.error is not None}
    if not results and len(causes) == 1:
        raise next(iter(causes.values()))  # once, also where all read what could not be opened
    if not results and lost:
        raise lost[0]
    for outcome in failed:
        console.say(f"{outcome.spec.analysis} failed\n{outcome.error}")
    if not results:
        raise SpecError(
            "no analysis succeeded, so there is nothing to report", next_step="mend the causes named above"
        )
    from sparsescope.reporting.build import build

    path = build(results, output).resolve()
    if json:
        runs = [listing.result_json(result) for result in results]
        console.out_json(
            {
                "report": str(path),
                "bytes": path.stat().st_size,
                "runs": runs,
                "failed": len(failed) + len(lost),
            }
        )
    else:
        for result in results:
            console.say(listing.summary(result))
        console.out(str(path))
    if failed or lost:
        raise typer.Exit(2)


@app.command()
def study(
    target: Annotated[str, typer.Argument(help="A name (see: sparsescope list studies), or a TOML file.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The HTML file; NAME.html when left out, none with --notebook.",
            parser=output_file,
            metavar="PATH",
        ),
    ] = None,
    notebook: Annotated[
        Path | None,
        typer.Option(
            help="Write a notebook (.ipynb) and execute it on the stored runs.",
            parser=notebook_file,
            metavar="PATH",
        ),
    ] = None,
    execute: Annotated[
        bool, typer.Option(help="Whether the study runs; without it the notebook has no outputs.")
    ] = True,
    device: Device = "cpu",
    home: Home = None,
    json: Json = False,
) -> None:
    """Run a study (subjects x analyses, what is stored is opened) and write its report or notebook; the
    path is printed last.
    """
    from sparsescope.cli import console, listing
    from sparsescope.reporting.notebook import check_packages, write_notebook
    from sparsescope.runner.study import load_study
    from sparsescope.runner.study_checks import check_study

    if not execute and (notebook is None or output is not None or json):
        raise SpecError(
            "a study that is not run gives a notebook alone",
            where="--no-execute",
            next_step="--notebook FILE.ipynb",
        )
    found = load_study(target)
    if notebook is None:
        output = output or Path(f"{found.declared.name}.html")
    else:
        check_output(notebook, "--notebook FILE.ipynb")
        check_packages()
    if output is not None:
        check_output(output)
    check_study(found)  # everything in the file is checked before torch is imported
    if notebook is not None and not execute:
        console.out(str(write_notebook(found, notebook, execute=False).resolve()))
        return
    from sparsescope.runner.study_run import run_study

    with console.progress_bar() as progress:
        outcome = run_study(found, store=home or True, device=device, progress=progress, say=console.say)
    failed = [run.error for run in outcome.failed if run.error is not None]
    if not outcome.results and failed:
        raise failed[0]
    from sparsescope.reporting.build import build

    written = {"report": build(outcome, output).resolve()} if output is not None else {}
    if notebook is not None:
        console.say("executing the notebook on the stored runs")
        written["notebook"] = write_notebook(found, notebook, home=home).resolve()
    if json:
        console.out_json(listing.study_json(outcome, written))
    else:
        console.out(listing.study_text(outcome))
        console.out("\n".join(map(str, written.values())))
    if failed:
        raise typer.Exit(2)

"""The command line. ``sparsescope report SUBJECT`` is the main job.

Exit codes: 0 ok, 1 user error, 2 partial (some runs failed), 3 internal error, 130 interrupted.
Nothing heavy is imported here: torch comes with the verb that needs it.
"""

from __future__ import annotations

import io
import sys
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
    Preset,
    Set,
    TextOptions,
    with_options,
)
from sparsescope.cli.running import GrowingReport, Target, check_output, given_inputs, raise_if_failed, run_requests
from sparsescope.errors import DependencyError, SparsescopeError, SpecError, unknown_name

if TYPE_CHECKING:
    from sparsescope.core.result import Result
    from sparsescope.runner.run import Outcome
    from sparsescope.training.kinds import ArtifactRecipe

app = typer.Typer(
    name="sparsescope",
    help="Shows the sparse structure of trained models and measures what it buys.\n\nStart with: sparsescope report smollm2-135m",
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
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command("list")
def list_names(
    what: Annotated[
        str,
        typer.Argument(
            help="analyses, subjects, variants, corpora, benchmarks, inputs, studies, runs or artifacts; all when left out."
        ),
    ] = "all",
    home: Home = None,
    json: Json = False,
) -> None:
    """List everything that has a name: analyses, subjects, variants, corpora, studies, stored runs and more."""
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
        empty = f"  none yet; make one with: sparsescope report {listing.DEFAULT_SUBJECT}\n" if name == "runs" else "  none yet\n"
        console.out(console.table(list(rows[0]), [list(row.values()) for row in rows]) + "\n" if rows else empty)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="An analysis, benchmark, subject, variant, corpus, run or artifact.")],
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
@with_options()
def run(
    *,
    analysis: Annotated[str, typer.Argument(help="Name of the analysis; see: sparsescope list analyses.")],
    subject: Annotated[
        str | None,
        typer.Option(help="Registered name, hub id, model folder or .gguf file; of some analyses a series of checkpoints."),
    ] = None,
    more: InputOptions,
    text: TextOptions,
    model: ModelOptions,
    preset: Preset = "full",
    set_: Set = None,
    batch_tokens: BatchTokens = 2048,
    home: Home = None,
    json: Json = False,
) -> None:
    """Run one analysis and store its result; a run that is stored already is opened."""
    from sparsescope.cli import console, listing
    from sparsescope.cli.settings import parse_set
    from sparsescope.core.registry import analyses

    record = analyses().get(analysis)
    start = record.preset(preset)  # a wrong name fails before the model is loaded
    params = start | parse_set(set_ or [], record.params, analysis=record.name)
    inputs = given_inputs(record, subject, model, text, more)
    outcomes = run_requests([(record.name, params)], inputs, home, batch_tokens)
    raise_if_failed(outcomes)
    outcome = outcomes[0]
    if json:
        console.out_json(listing.outcome_json(outcome))
        return
    console.out(listing.findings(outcome))
    console.out(str(outcome.path))


@app.command()
@with_options()
def report(
    targets: Annotated[
        list[str], typer.Argument(help="Subjects and series of checkpoints (analysed if they were not), and stored runs.")
    ],
    *,
    more: InputOptions,
    text: TextOptions,
    model: ModelOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    depth: Depth = "quick",
    fallback: Annotated[
        str | None, typer.Option(help="Subject to take, with a notice, for one that cannot be fetched (no network).")
    ] = None,
    batch_tokens: BatchTokens = 2048,
    home: Home = None,
    json: Json = False,
) -> None:
    """Run every analysis that fits the subjects and write one self-contained HTML file; its path is printed last."""
    from sparsescope.cli import console, listing
    from sparsescope.core.manifest import RUN_ID
    from sparsescope.core.registry import FULL, QUICK
    from sparsescope.core.result import Note

    if depth not in (QUICK, FULL):
        raise unknown_name("depth", depth, (QUICK, FULL), next_step="leave --depth out for quick")
    check_output(output)
    found = {name: Target(name, model, text, more) for name in targets if not RUN_ID.fullmatch(Path(name).name)}
    if fallback is not None:
        ModelOptions(model.dtype, model.device).check(fallback)
    stored = {name: listing.open_run(name, home) for name in targets if name not in found}  # one that is not there fails now
    if not found and (given := [*more.inputs, *text.changed, *model.changed]):
        raise SpecError("these options have no meaning for stored runs", where=", ".join(given), next_step="leave them out")
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
    if not results and len(failed) == 1 and failed[0].error is not None:
        raise failed[0].error
    if not results and lost:
        raise lost[0]
    for outcome in failed:
        console.say(f"{outcome.spec.analysis} failed\n{outcome.error}")
    if not results:
        raise SpecError("no analysis succeeded, so there is nothing to report", next_step="mend the causes named above")
    from sparsescope.reporting.build import build

    path = build(results, output).resolve()
    if json:
        runs = [listing.result_json(result) for result in results]
        console.out_json({"report": str(path), "bytes": path.stat().st_size, "runs": runs, "failed": len(failed) + len(lost)})
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
        Path | None, typer.Option("--output", "-o", help="The HTML file; NAME.html when left out, none with --notebook.")
    ] = None,
    notebook: Annotated[Path | None, typer.Option(help="Write a notebook (.ipynb) and execute it on the stored runs.")] = None,
    execute: Annotated[bool, typer.Option(help="Whether the study runs; without it the notebook has no outputs.")] = True,
    device: Device = "cpu",
    home: Home = None,
    json: Json = False,
) -> None:
    """Run a study (subjects x analyses, what is stored is opened) and write its report or notebook; the path is printed last."""
    from sparsescope.cli import console, listing
    from sparsescope.reporting.notebook import check_packages, write_notebook
    from sparsescope.runner.study import load_study
    from sparsescope.runner.study_checks import check_study

    if not execute and (notebook is None or output is not None or json):
        raise SpecError("a study that is not run gives a notebook alone", where="--no-execute", next_step="--notebook FILE.ipynb")
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


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe, for example analyses/grokking/relu.toml, or the name of a shipped series.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the checkpoints of a model.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than that of the recipe.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name than that of the recipe.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train what a recipe says: a small model, whose checkpoints are kept in --output, or an artifact in the folder of runs.

    The same command goes on after an interruption.
    """
    from sparsescope.cli import console
    from sparsescope.training.kinds import read_artifact_recipe
    from sparsescope.training.recipe import changed_text, find_recipe, read_recipe

    path = find_recipe(recipe)
    if (of_artifact := read_artifact_recipe(path)) is not None:
        _train_artifact(of_artifact, home, json, {"--output": output, "--seed": seed, "--name": name})
        return
    if output is None:
        raise SpecError("where the checkpoints go is not said", where="--output", next_step="for example: --output my-run")
    declared = read_recipe(path, seed=seed, name=name)  # a wrong value is found before torch is imported
    from sparsescope.training.trainer import train as run_recipe

    text = changed_text(path.read_text(encoding="utf-8"), seed=seed, name=name)
    folder = run_recipe(declared, output, recipe_text=text)
    if json:
        console.out_json({"series": declared.name, "folder": str(folder), "steps": declared.steps, "seed": declared.seed})
    else:
        console.out(str(folder))


def _train_artifact(recipe: ArtifactRecipe, home: Path | None, json: bool, given: dict[str, object]) -> None:
    """Train an artifact; one of the same recipe that is there is taken."""
    from sparsescope.cli import console
    from sparsescope.core.run_store import Store
    from sparsescope.runner.recipes import trained

    if wrong := [option for option, value in given.items() if value is not None]:
        raise SpecError(
            "these options have no meaning for the recipe of an artifact",
            where=", ".join(wrong),
            next_step="leave them out: an artifact is kept in the folder of runs, and its recipe says the rest",
        )
    with console.progress_bar() as progress:
        artifact = trained(recipe, Store(home), progress)
    if json:
        console.out_json({"artifact": artifact.id, "folder": str(artifact.path)})
    else:
        console.out(str(artifact.path))


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
        float | None, typer.Option(help="Delete the saved work of interrupted runs that is older than this many days.", min=0)
    ] = None,
    json: Json = False,
) -> None:
    """Check sizes and checksums of every stored run and artifact, and list the saved work of interrupted runs."""
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
        found = {"runs": [asdict(v) for v in verdicts], "artifacts": [asdict(v) for v in artifacts], "bad": bad}
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
    subject: Annotated[str | None, typer.Option(help="A subject to load and compare with plain transformers.")] = None,
    model: ModelOptions,
    home: Home = None,
    json: Json = False,
) -> None:
    """Check this installation; with --subject, the parity of a model with plain transformers, its memory and capabilities."""
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
@with_options(tokens=4096)
def bench(
    *,
    name: Annotated[str, typer.Argument(help="Name of the benchmark; see: sparsescope list benchmarks.")],
    subject: Annotated[str, typer.Option(help="Registered name, hub id, model folder or .gguf file.")] = "smollm2-135m",
    more: InputOptions,
    text: TextOptions,
    model: ModelOptions,
    set_: Set = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write an HTML report with the figure.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Measure on this machine: interleaved repeats, spread, environment; the result is stored and can be reported."""
    from sparsescope.cli import console, listing
    from sparsescope.cli.settings import parse_set
    from sparsescope.core.registry import benchmarks

    record = benchmarks().get(name)
    params = parse_set(set_ or [], record.params, analysis=record.name)
    inputs = given_inputs(record, subject, model, text, more)
    outcomes = run_requests([(record.name, params)], inputs, home, 2048, again=True)
    raise_if_failed(outcomes)
    outcome = outcomes[0]
    if json:
        console.out_json(listing.outcome_json(outcome))
        return
    if outcome.result is not None:
        console.out(listing.tables_text(outcome.result))
        if output is not None:
            from sparsescope.reporting.build import build

            console.out(str(build([outcome.result], output).resolve()))
    console.out(str(outcome.path))


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
        ended = subprocess.run(command, env=explorer.environment(home), check=False)  # noqa: S603  # our own fixed command line
    except KeyboardInterrupt:  # the way to end it
        return
    if ended.returncode not in (0, 130, -2):
        raise DependencyError(
            "the explorer ended with an error",
            got=f"exit code {ended.returncode}",
            next_step=f"is port {port} taken? try: sparsescope explore --port {port + 1}",
        )


def main() -> None:
    """Entry point: run the command line and turn exceptions into exit codes."""
    import signal

    from sparsescope.cli.exit_codes import execute

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files and models, on a terminal that knows ASCII only
    # What a scheduler sends before it kills is treated as Ctrl-C: the state of a run is saved.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(execute(app, sys.argv[1:]))

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

from sparsescope.cli.options import home_folder
from sparsescope.cli.series import kind_of_series, refuse_model_options, run_on_series, series_requests
from sparsescope.cli.work import (
    GrowingReport,
    check_output,
    fitting,
    load_subject,
    make_text,
    raise_if_failed,
    run_requests,
)
from sparsescope.errors import DependencyError, SpecError, unknown_name

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus as TextCorpus
    from sparsescope.core.result import Result
    from sparsescope.runner.run import Outcome

app = typer.Typer(
    name="sparsescope",
    help="Shows the sparse structure of trained models and measures what it buys.\n\nStart with: sparsescope report smollm2-135m",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

REPORT_CORPUS = "python-docs+python-source"
REPORT_TOKENS = 16384

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Corpus = Annotated[str, typer.Option(help="Registered name, names joined by '+', or a .txt, .jsonl or .parquet file.")]
Tokens = Annotated[int, typer.Option(help="Tokens to read, split evenly over the domains of the corpus.")]
Context = Annotated[int | None, typer.Option(help="Longest window; 256, or what the model can take if that is less.")]
Seed = Annotated[int, typer.Option(help="Seed of the choice of documents.")]
Bos = Annotated[str, typer.Option(help="Beginning-of-sequence token: auto (as the tokenizer does), always, never.")]
Dtype = Annotated[str, typer.Option(help="Compute type: float32, bfloat16 (quicker, labelled), float16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Attention = Annotated[str | None, typer.Option(help="Attention implementation, eager or sdpa; that of transformers by default.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let code of the model's repository run; recorded.")]
Home = Annotated[
    Path | None,
    typer.Option(help="Folder of stored runs; $SPARSESCOPE_HOME or ./runs by default.", parser=home_folder, metavar="PATH"),
]
BatchTokens = Annotated[int, typer.Option(help="Most token positions in one forward pass.", min=1, max=2**24)]


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
        str, typer.Argument(help="analyses, subjects, corpora, benchmarks, studies, runs or artifacts; all when left out.")
    ] = "all",
    home: Home = None,
    json: Json = False,
) -> None:
    """List analyses, subjects, corpora, benchmarks, studies, stored runs and artifacts."""
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
    name: Annotated[str, typer.Argument(help="An analysis, benchmark, subject, corpus, run or artifact.")],
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
def run(
    analysis: Annotated[str, typer.Argument(help="Name of the analysis; see: sparsescope list analyses.")],
    subject: Annotated[
        str, typer.Option(help="Registered name, hub id, model folder or .gguf file; of some analyses a series of checkpoints.")
    ],
    corpus: Annotated[
        str | None,
        typer.Option(
            help=f"Registered name, names joined by '+', or a .txt, .jsonl or .parquet file; {REPORT_CORPUS} when left out, "
            "of a series of checkpoints its own held-out text."
        ),
    ] = None,
    tokens: Tokens = REPORT_TOKENS,
    context: Context = None,
    seed: Seed = 0,
    bos: Bos = "auto",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    revision: Revision = None,
    attention: Attention = None,
    trust_remote_code: Trust = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Parameter of the analysis, NAME=VALUE; repeatable.")] = None,
    batch_tokens: BatchTokens = 2048,
    home: Home = None,
    json: Json = False,
) -> None:
    """Run one analysis and store its result; a run that is stored already is opened."""
    from sparsescope.cli import console, listing
    from sparsescope.cli.settings import parse_set
    from sparsescope.core.registry import analyses

    record = analyses().get(analysis)
    params = parse_set(set_ or [], record.params, analysis=record.name)  # a wrong name fails before the model is loaded
    if record.input == "series":
        refuse_model_options(
            record.name, revision=revision, attention=attention, trust_remote_code=trust_remote_code, device=device != "cpu",
            dtype=dtype != "float32", batch_tokens=batch_tokens != 2048,
        )  # fmt: skip
        if corpus is None:  # options of a text that nobody asked for
            refuse_model_options(
                record.name, tokens=tokens != REPORT_TOKENS, context=context, seed=seed, bos=bos != "auto", without="--corpus"
            )
        text = None
        if (given := corpus) is not None:
            make_text(given, tokens, context, seed, bos)

            def text(longest: int) -> TextCorpus:
                return make_text(given, tokens, context or longest, seed, bos)

        outcomes = run_on_series([(record.name, params)], subject, home, text)
    else:
        corpus = corpus or REPORT_CORPUS
        make_text(corpus, tokens, context, seed, bos)
        model = load_subject(subject, revision, dtype, device, attention, trust_remote_code)
        outcomes = run_requests([(record.name, params)], model, corpus, tokens, context, seed, bos, batch_tokens, home)
    raise_if_failed(outcomes)
    outcome = outcomes[0]
    if json:
        console.out_json(listing.outcome_json(outcome))
        return
    console.out(listing.headline(outcome))
    console.out(str(outcome.path))


@app.command()
def report(
    targets: Annotated[
        list[str], typer.Argument(help="Subjects and series of checkpoints (analysed if they were not), and stored runs.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
    corpus: Corpus = REPORT_CORPUS,
    tokens: Tokens = REPORT_TOKENS,
    context: Context = None,
    seed: Seed = 0,
    bos: Bos = "auto",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    revision: Revision = None,
    attention: Attention = None,
    trust_remote_code: Trust = False,
    fallback: Annotated[
        str | None, typer.Option(help="Subject to take, with a notice, for one that cannot be fetched (no network).")
    ] = None,
    batch_tokens: BatchTokens = 2048,
    home: Home = None,
    json: Json = False,
) -> None:
    """Run every analysis that fits the subjects and write one self-contained HTML file; its path is printed last."""
    from sparsescope.cli import console, listing
    from sparsescope.core.artifact import Store
    from sparsescope.core.manifest import RUN_ID
    from sparsescope.core.result import Note
    from sparsescope.models.catalog import resolve

    check_output(output)
    named = [t for t in targets if not RUN_ID.fullmatch(Path(t).name)]
    kinds = {name: kind_of_series(name) for name in named}
    for name in [*(t for t in named if kinds[t] != "modular_addition"), *([fallback] if fallback else [])]:
        resolve(name, dtype=dtype, device=device)  # a wrong name is found out now, not after the work on the first
        make_text(corpus, tokens, context, seed, bos)
    results: list[Result] = []
    failed: list[Outcome] = []
    for target in targets:
        name = Path(target).name
        if RUN_ID.fullmatch(name):
            folder = Path(target)
            store = Store(folder.resolve().parent) if folder.is_dir() else Store(home)
            results.append(store.open(name))
            continue
        of_series = [] if (kind := kinds[target]) is None else series_requests(kind)
        if kind == "modular_addition":
            outcomes = run_on_series(of_series, target, home)
            failed += [outcome for outcome in outcomes if outcome.error is not None]
            results += [outcome.result for outcome in outcomes if outcome.result is not None]
            continue
        notice = None
        try:
            model = load_subject(target, revision, dtype, device, attention, trust_remote_code)
        except DependencyError as error:
            if fallback is None:
                raise
            notice = f"{target} could not be fetched, so this report is about {fallback} instead ({error.what})"
            console.say(f"NOTE: {notice}")
            model = load_subject(fallback, None, dtype, device, attention, False)
        wanted = fitting(model)
        growing = GrowingReport(
            output, results, len(results) + len(wanted) + len(of_series) + len(targets) - targets.index(target) - 1
        )
        outcomes = run_requests(wanted, model, corpus, tokens, context, seed, bos, batch_tokens, home, done=growing.add)
        outcomes += run_on_series(of_series, target, home) if of_series else []
        for outcome in outcomes:
            if outcome.error is not None:
                failed.append(outcome)  # with a result where only storing it failed
            if outcome.result is None:
                continue
            if notice is not None:
                outcome.result.notes.insert(0, Note("warning", notice, "subject"))
            results.append(outcome.result)
    if not results and len(failed) == 1 and failed[0].error is not None:
        raise failed[0].error
    for outcome in failed:
        console.say(f"{outcome.spec.analysis} failed\n{outcome.error}")
    if not results:
        raise SpecError("no analysis succeeded, so there is nothing to report", next_step="mend the causes named above")
    from sparsescope.reporting.build import build

    path = build(results, output).resolve()
    if json:
        runs = [{"run": result.run_id, "subject": result.provenance["subject"]["id"]} for result in results]
        console.out_json({"report": str(path), "bytes": path.stat().st_size, "runs": runs, "failed": len(failed)})
    else:
        for result in results:
            console.say(listing.summary(result))
        console.out(str(path))
    if failed:
        raise typer.Exit(2)


@app.command()
def study(
    target: Annotated[str, typer.Argument(help="A name (see: sparsescope list studies), or a TOML file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The HTML file; NAME.html when left out.")] = None,
    device: Device = "cpu",
    home: Home = None,
    json: Json = False,
) -> None:
    """Run a study (subjects x analyses, what is stored is opened) and write its report; the path is printed last."""
    from sparsescope.cli import console, listing
    from sparsescope.runner.study import load_study
    from sparsescope.runner.study_checks import check_study

    found = load_study(target)
    output = output or Path(f"{found.declared.name}.html")
    check_output(output)
    check_study(found)  # everything in the file is checked before torch is imported
    from sparsescope.runner.study_run import run_study

    with console.progress_bar() as progress:
        outcome = run_study(found, store=home or True, device=device, progress=progress, say=console.say)
    failed = [run.error for run in outcome.failed if run.error is not None]
    if not outcome.results and failed:
        raise failed[0]
    from sparsescope.reporting.build import build

    path = build(outcome, output).resolve()
    if json:
        console.out_json(listing.study_json(outcome, path))
    else:
        console.out(listing.study_text(outcome))
        console.out(str(path))
    if failed:
        raise typer.Exit(2)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe, for example analyses/grokking/relu.toml, or the name of a shipped series.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoints.")],
    seed: Annotated[int | None, typer.Option(help="Another seed than that of the recipe.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name than that of the recipe.")] = None,
    json: Json = False,
) -> None:
    """Train a small model from a recipe and keep its checkpoints; the same command goes on after an interruption."""
    from sparsescope.cli import console
    from sparsescope.training.recipe import changed_text, find_recipe, read_recipe

    path = find_recipe(recipe)
    declared = read_recipe(path, seed=seed, name=name)  # a wrong value is found before torch is imported
    from sparsescope.training.trainer import train as run_recipe

    text = changed_text(path.read_text(encoding="utf-8"), seed=seed, name=name)
    folder = run_recipe(declared, output, recipe_text=text)
    if json:
        console.out_json({"series": declared.name, "folder": str(folder), "steps": declared.steps, "seed": declared.seed})
    else:
        console.out(str(folder))


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
    from sparsescope.core.artifact import Store

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
def doctor(
    subject: Annotated[str | None, typer.Option(help="A subject to load and compare with plain transformers.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    revision: Revision = None,
    attention: Attention = None,
    trust_remote_code: Trust = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Check this installation; with --subject, the parity of a model with plain transformers, its memory and capabilities."""
    from sparsescope.cli import checkup, console

    findings = checkup.installation(home)
    examination = None
    if subject is not None:
        from sparsescope.models.doctor import examine

        examination = examine(load_subject(subject, revision, dtype, device, attention, trust_remote_code))
    if json:
        console.out_json(checkup.as_json(findings, examination))
    else:
        console.out(checkup.as_text(findings, examination))
    if any(not finding.ok for finding in findings) or (examination is not None and not examination.healthy):
        raise typer.Exit(1)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="Name of the benchmark; see: sparsescope list benchmarks.")],
    subject: Annotated[str, typer.Option(help="Registered name, hub id, model folder or .gguf file.")] = "smollm2-135m",
    corpus: Corpus = REPORT_CORPUS,
    tokens: Tokens = 4096,
    context: Context = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Parameter of the benchmark, NAME=VALUE; repeatable.")] = None,
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
    make_text(corpus, tokens, context, 0, "auto")
    model = load_subject(subject, None, dtype, device, None, False)
    outcomes = run_requests([(record.name, params)], model, corpus, tokens, context, 0, "auto", 2048, home, again=True)
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

    from sparsescope.cli.guard import execute

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files and models, on a terminal that knows ASCII only
    # What a scheduler sends before it kills is treated as Ctrl-C: the state of a run is saved.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(execute(app, sys.argv[1:]))

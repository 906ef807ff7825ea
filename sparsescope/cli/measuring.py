"""Verbs that compute: an analysis, a benchmark, a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsescope.cli.options import (
    BatchTokens,
    Home,
    InputOptions,
    Json,
    ModelOptions,
    Preset,
    Set,
    TextOptions,
    output_file,
    with_options,
)
from sparsescope.cli.root import app
from sparsescope.cli.running import check_output, given_inputs, raise_if_failed, run_requests
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.training.kinds import ArtifactRecipe


@app.command()
@with_options()
def run(
    *,
    analysis: Annotated[str, typer.Argument(help="Name of the analysis; see: sparsescope list analyses.")],
    subject: Annotated[
        str | None,
        typer.Option(
            help="Registered name, hub id, model folder or .gguf file; of some analyses a "
            "series of checkpoints."
        ),
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
    console.out(listing.place(outcome))


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe, for example analyses/grokking/relu.toml, or the name of a shipped series."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the checkpoints of a model.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than that of the recipe.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name than that of the recipe.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train what a recipe says: a small model, whose checkpoints are kept in --output, or an artifact in
    the folder of runs.

    The same command goes on after an interruption.
    """
    from sparsescope.cli import console
    from sparsescope.core.files import given_path
    from sparsescope.training.kinds import read_artifact_recipe
    from sparsescope.training.recipe import changed_text, find_recipe, read_recipe

    if output is not None:
        output = given_path(output, "--output")
    path = find_recipe(recipe)
    if (of_artifact := read_artifact_recipe(path)) is not None:
        _train_artifact(of_artifact, home, json, {"--output": output, "--seed": seed, "--name": name})
        return
    if output is None:
        raise SpecError(
            "where the checkpoints go is not said", where="--output", next_step="for example: --output my-run"
        )
    declared = read_recipe(path, seed=seed, name=name)  # a wrong value is found before torch is imported
    from sparsescope.training.trainer import train as run_recipe

    text = changed_text(path.read_text(encoding="utf-8"), seed=seed, name=name)
    folder = run_recipe(declared, output, recipe_text=text)
    if json:
        console.out_json(
            {"series": declared.name, "folder": str(folder), "steps": declared.steps, "seed": declared.seed}
        )
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
            next_step="leave them out: an artifact is kept in the folder of runs, and "
            "its recipe says the rest",
        )
    with console.progress_bar() as progress:
        made = trained(recipe, Store(home), progress)
    if json:
        rows = [{"artifact": one.id, "folder": str(one.path)} for one in made]
        console.out_json(rows[0] if len(rows) == 1 else rows)
    else:
        console.out("\n".join(str(one.path) for one in made))


@app.command()
@with_options(tokens=4096)
def bench(
    *,
    name: Annotated[str, typer.Argument(help="Name of the benchmark; see: sparsescope list benchmarks.")],
    subject: Annotated[
        str, typer.Option(help="Registered name, hub id, model folder or .gguf file.")
    ] = "smollm2-135m",
    more: InputOptions,
    text: TextOptions,
    model: ModelOptions,
    set_: Set = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Also write an HTML report with the figure.",
            parser=output_file,
            metavar="PATH",
        ),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Measure on this machine: interleaved repeats, spread, environment; the result is stored
    and can be reported.
    """
    from sparsescope.cli import console, listing
    from sparsescope.cli.settings import parse_set
    from sparsescope.core.registry import benchmarks

    record = benchmarks().get(name)
    if output is not None:
        check_output(output)
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
    console.out(listing.place(outcome))

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
from sparsescope.errors import DependencyError, SpecError, unknown_name

if TYPE_CHECKING:
    from pathlib import Path


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
def export(
    run: Annotated[str, typer.Argument(help="A run: its id, or its folder.")],
    format: Annotated[
        str, typer.Argument(help="csv (every table), or a format of its analysis: features have neuronpedia.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="The folder to write: it is not there yet, or is empty.")
    ],
    home: Home = None,
    json: Json = False,
) -> None:
    """Write a stored run as files for other tools."""
    from sparsescope.cli import console, listing
    from sparsescope.reporting.export import export as write

    files = [str(path) for path in write(listing.open_run(run, home), format, output)]
    if json:
        console.out_json({"files": files})
    else:
        console.out("".join(f"{name}\n" for name in files))


@app.command()
def verify(
    folder: Annotated[
        str | None,
        typer.Argument(
            help="A folder of sparsescope prune, or a dictionary; the folder of runs when left out."
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="Of a dictionary: the model that encodes 1,000 tokens again for a comparison."),
    ] = None,
    corpus: Annotated[str, typer.Option(help="Of a dictionary: the text for that.")] = "python-docs",
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
    of interrupted runs; of the folder of a pruned model, its files, its masks and every zero; of a
    dictionary (id or folder) its files, and with --subject L0 and error on 1,000 tokens.
    """
    from dataclasses import asdict

    from sparsescope.cli import console, listing
    from sparsescope.core.run_store import Store

    if folder is not None and (subject is not None or _is_dictionary(folder)):
        _verify_dictionary(folder, subject, corpus, home, json)
        return
    if subject is not None:
        raise SpecError(
            "a model is only asked about a dictionary",
            where="--subject",
            next_step="give its id or folder too",
        )
    if folder is not None:
        _verify_pruned(folder, home is not None or remove_unfinished is not None, json)
        return
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


def _is_dictionary(given: str) -> bool:
    """Whether this is the id of a kept dictionary, or a folder in a layout of one."""
    from sparsescope.core.files import given_path
    from sparsescope.core.sealed import ID
    from sparsescope.dictionaries.artifact import KIND
    from sparsescope.dictionaries.interchange import FORMATS

    path = given_path(given, "FOLDER")
    if ID.fullmatch(path.name) and path.name.startswith(f"{KIND}-"):
        return True
    return path.is_dir() and any((path / name).is_file() for names in FORMATS.values() for name in names)


def _verify_dictionary(given: str, subject: str | None, corpus: str, home: Path | None, json: bool) -> None:
    """Compare a dictionary with its checksums, and on a model with what its file says."""
    from dataclasses import asdict

    from sparsescope.cli import console, diagnosis
    from sparsescope.core.roles import role
    from sparsescope.core.run_store import Store
    from sparsescope.dictionaries.proof import prove_files, prove_on

    found = role("dictionary").functions().open(given, {}, Store(home))
    proofs = [prove_files(found.artifact)]
    if subject is not None and proofs[0].ok:
        from sparsescope.activations.corpus import corpus as open_corpus
        from sparsescope.models.sources import load

        dictionary = found.load()
        told = found.training.get("facts") or getattr(dictionary, "metadata", {})
        proofs += prove_on(dictionary, told, load(subject), open_corpus(corpus, tokens=1200))
    if json:
        console.out_json({"dictionary": found.artifact.id, "proofs": [asdict(proof) for proof in proofs]})
    else:
        console.out(diagnosis.proofs_text(proofs))
    if not all(proof.ok for proof in proofs):
        raise typer.Exit(1)


def _verify_pruned(folder: str, more: bool, json: bool) -> None:
    """Prove what the folder of a pruned model says of itself."""
    from dataclasses import asdict

    from sparsescope.cli import console, diagnosis
    from sparsescope.core.files import given_path
    from sparsescope.pruning.proof import prove_folder

    if more:
        raise SpecError(
            "these options are about the folder of runs, and the folder of a model was given",
            where="--home, --remove-unfinished",
            got=folder,
            next_step="leave them out, or leave the folder out",
        )
    path = given_path(folder, "FOLDER")
    proofs = prove_folder(path)
    if json:
        console.out_json({"folder": str(path), "proofs": [asdict(proof) for proof in proofs]})
    else:
        console.out(diagnosis.proofs_text(proofs))
    if not all(proof.ok for proof in proofs):
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
    masks: Annotated[
        str | None,
        typer.Option(
            help="Masks that the subject was pruned with: a folder of sparsescope prune, a file of "
            "torch.nn.utils.prune, a folder of compressed-tensors, an .npz or .safetensors file of masks; "
            "by default those in its own folder."
        ),
    ] = None,
    model: ModelOptions,
    home: Home = None,
    json: Json = False,
) -> None:
    """Check this installation; with --subject, what runs rely on, the parity of a model with plain
    transformers, its memory and capabilities, and of a pruned one whether its zeros are there.
    """
    from sparsescope.cli import console, diagnosis
    from sparsescope.core.files import given_path

    if masks is not None and subject is None:
        raise SpecError("masks without a subject", where="--masks", next_step="give --subject NAME too")
    if masks is not None:
        given_path(masks, "--masks")
    findings = diagnosis.installation(home)
    examination = zeros = None
    if subject is not None:
        from sparsescope.models.doctor import examine

        loaded = model.load(subject)
        zeros = diagnosis.zeros_of(loaded, masks)  # masks that cannot be read are said before the rest
        examination = examine(loaded)
    if json:
        console.out_json(diagnosis.as_json(findings, examination, zeros))
    else:
        console.out(diagnosis.as_text(findings, examination, zeros))
    healthy = (examination is None or examination.healthy) and (zeros is None or zeros.healthy)
    if any(not finding.ok for finding in findings) or not healthy:
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

"""The verb that calibrates sparse inference: masks as an artifact, and what they leave unread."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsescope.cli.options import Home, Json, ModelOptions, TextOptions, with_options
from sparsescope.cli.root import app

if TYPE_CHECKING:
    from sparsescope.core.artifacts import Artifact
    from sparsescope.inference.calibration import Calibration
    from sparsescope.metrics.matrix_costs import TokenAccount

CALIBRATION_TOKENS = 8192


@app.command()
@with_options(tokens=CALIBRATION_TOKENS)
def sparsify(
    *,
    subject: Annotated[str, typer.Argument(help="Registered name, hub id, model folder or .gguf file.")],
    method: Annotated[
        str,
        typer.Option(
            help="teal, wina, wina_released, was, rsparse, cats, top_p, cett, auto; with an allocation: "
            "teal+greedy, was+blocks, wina+rotated."
        ),
    ] = "auto",
    target: Annotated[
        float, typer.Option(help="Share of the block-matrix bytes that a token does not read.")
    ] = 0.4,
    prefix: Annotated[
        str,
        typer.Option(
            help="Which positions are sparse: all_sparse, dense_first_n:N, dense_fraction:F, decode_only."
        ),
    ] = "all_sparse",
    scope: Annotated[str, typer.Option(help="Which matrices: blocks, mlp, attention.")] = "blocks",
    sinks: Annotated[
        str,
        typer.Option(
            help="sparse, or dense: tokens whose inputs are far larger than usual keep all of them."
        ),
    ] = "sparse",
    text: TextOptions,
    model: ModelOptions,
    home: Home = None,
    json: Json = False,
) -> None:
    """Find the masks of a method on a calibration text, and keep them as an artifact of the folder of runs.

    Every verb takes the sparse model: --subject sparsified@calibration=ID:SUBJECT.
    """
    from sparsescope.cli import console
    from sparsescope.inference.methods import read_method
    from sparsescope.inference.prefix import PrefixPolicy, check_sinks

    model.check(subject)  # names before torch is imported, everything before the model is loaded
    read_method(method)
    check_sinks(sinks)
    policy = PrefixPolicy.of(prefix)
    corpus = text.asked()
    dense = model.load(subject)
    from sparsescope.activations.capture import tokenized
    from sparsescope.core.artifact_store import ArtifactStore
    from sparsescope.core.run_store import home as default_home
    from sparsescope.inference.calibration import calibrate
    from sparsescope.inference.calibrator import Calibrator, check_target
    from sparsescope.inference.sparsifier import account_of, split

    check_target(target)
    fit, development = split(tokenized(corpus, dense))
    with console.progress_bar() as show:
        bench = Calibrator(
            dense, fit, development, scope, lambda phase, done, total: show(phase, done, total, "tokens")
        )
        found = calibrate(bench, method, target, policy, sinks)
    made_by = f"sparsify {subject} --method {method} --target {target:g} --prefix {policy.text}"
    kept = found.save(ArtifactStore(home or default_home()), made_by)
    account = account_of(bench, found)
    if json:
        console.out_json(as_json(found, kept, account))
        return
    # By its id it is found in the folder of runs that is used where none is named
    place = kept.id if home is None else shlex.quote(str(kept.path))
    console.out(as_text(f"sparsified@calibration={place}:{subject}", subject, found, kept, account))


def as_json(found: Calibration, kept: Artifact, account: TokenAccount) -> dict[str, Any]:
    """What was found, as plain values."""
    shares = account.bytes
    return {
        "artifact": kept.id,
        "path": str(kept.path),
        "method": found.method,
        "target": found.target,
        "prefix": found.prefix,
        **{name: value for name, value in found.facts.items() if name != "seconds"},
        "sparsity": {"block": shares.block, "mlp": shares.mlp, "model": shares.model},
        "bytes": {"dense": account.dense.total_bytes, "read": account.total_bytes},
    }


def as_text(name: str, subject: str, found: Calibration, kept: Artifact, account: TokenAccount) -> str:
    """The same as text: what is left unread by three counts, and what can be done with it."""
    from sparsescope.cli.console import table
    from sparsescope.inference.methods import named
    from sparsescope.viz.tables import format_bytes

    shares = account.bytes
    facts = found.facts
    rows = [
        ["block matrices", f"{100 * shares.block:.2f} %"],
        ["MLP matrices", f"{100 * shares.mlp:.2f} %"],
        ["whole model", f"{100 * shares.model:.2f} %"],
    ]
    read, dense = account.total_bytes, account.dense.total_bytes
    parts = [
        f"{named(found.method)} at {100 * found.target:g} %, {found.prefix}: {100 * found.realised:.2f} % of "
        f"the block-matrix bytes are not read\non the calibration text ({facts['corpus']}, "
        f"{facts['tokens']:,} tokens, {facts['rounds']} rounds)",
        table(["share of bytes not read, adapters taken off", ""], rows),
        f"a decoded token reads {format_bytes(read)} of {format_bytes(dense)}: at most {dense / read:.3g} "
        "times as fast where\nmemory is what decoding waits for; no speed was measured",
        f"kept as {kept.id} ({kept.path})",
        f"next\n  sparsescope run activation_sparsity --subject {name}\n"
        f"  sparsescope run sparse_inference --subject {subject}",
    ]
    return "\n\n".join(parts)

"""The verb that prunes: a plain model folder with zeros, and what it says of it.

What is saved and what is not is said each time: zeros are numbers too, so that a plain folder is as large
and a plain runtime as slow as before.
"""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsescope.cli.options import Json, ModelOptions, TextOptions, with_options
from sparsescope.cli.root import app
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.pruning.folder import SavedFolder
    from sparsescope.pruning.masks import MaskSet
    from sparsescope.pruning.request import Request

CALIBRATION_TOKENS = 8192
_UNITS = {"calibration": "batches", "blocks": "blocks", "matrices": "matrices"}


@app.command()
@with_options(tokens=CALIBRATION_TOKENS)
def prune(
    *,
    subject: Annotated[str, typer.Argument(help="Registered name, hub id, model folder or .gguf file.")],
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="Folder of the pruned model; not there yet, or empty.", metavar="FOLDER"
        ),
    ],
    criterion: Annotated[
        str,
        typer.Option(
            help="Which weights go: magnitude, random (read no text), wanda, ria, sparsegpt (read a "
            "calibration text)."
        ),
    ] = "magnitude",
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the weights in scope that go, 0.5 for half.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="What goes together: KEEP:GROUP such as 2:4 (says the sparsity), rows, blocks:16x16; "
            "single weights when left out."
        ),
    ] = None,
    allocation: Annotated[
        str,
        typer.Option(help="How the share differs between matrices: uniform, global, erk, owl, atp."),
    ] = "uniform",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="Which matrices: blocks (the default), mlp, attention, or a pattern such as "
            "weight:blocks.*.mlp.out.weight; patterns are repeatable."
        ),
    ] = None,
    propagation: Annotated[
        str,
        typer.Option(
            help="sequential: each block is judged on what the pruned ones before it give; dense: on "
            "what the dense model gives."
        ),
    ] = "sequential",
    prune_seed: Annotated[int, typer.Option(help="Seed of the criterion random.")] = 0,
    first_positions: Annotated[
        bool, typer.Option(help="Whether the first token of each window counts in the calibration.")
    ] = True,
    text: TextOptions,
    model: ModelOptions,
    json: Json = False,
) -> None:
    """Set weights to zero and save the model as a plain folder, which every verb takes as a subject.

    The weights are stored in the precision of --dtype.
    """
    from sparsescope.cli import console
    from sparsescope.pruning.folder import check_savable, check_target, save_pruned
    from sparsescope.pruning.request import Request

    model.check(subject)  # names before torch is imported, everything before the model is loaded
    target = check_target(output)
    wanted = scope or ["blocks"]
    names: str | list[str] = wanted[0] if len(wanted) == 1 else wanted
    request = Request.of(criterion, sparsity, pattern, allocation, propagation, prune_seed, first_positions)
    _refuse_meaningless(request, text)
    corpus = text.asked() if request.reads else None
    dense = model.load(subject)
    check_savable(dense, target)
    from sparsescope.pruning.pruner import prune as run

    with console.progress_bar() as show:
        pruned, masks = run(
            dense,
            request.criterion,
            sparsity,
            request.pattern,
            request.allocation,
            names,
            corpus,
            request.propagation,
            seed=request.seed,
            first_positions=request.first_positions,
            progress=lambda phase, done, total: show(phase, done, total, _UNITS.get(phase, "")),
        )
    del dense  # it is not kept in memory beside the pruned one and the one that is read back
    console.say(f"saving {target} and reading it back")
    command = _command(subject, request, names, text, model, target)
    saved = save_pruned(pruned, masks, target, command)
    console.out_json(as_json(saved, masks)) if json else console.out(as_text(saved, masks))


def as_json(saved: SavedFolder, masks: MaskSet) -> dict[str, Any]:
    """What was done and saved, as plain values."""
    return {**saved.as_dict(), "made": dict(masks.facts), "notes": list(masks.notes)}


def as_text(saved: SavedFolder, masks: MaskSet) -> str:
    """The same as text: how sparse by three counts and by role, what was read, what was saved or not."""
    from sparsescope.cli.console import table
    from sparsescope.pruning.masks import FACTS, MASKS
    from sparsescope.pruning.patterns import NM, read_pattern
    from sparsescope.viz.tables import format_bytes

    facts, pattern = masks.facts, read_pattern(masks.facts["pattern"])
    how = [facts["criterion"], f"pattern {pattern.text}" if pattern else "single weights"]
    how += [f"allocation {facts['allocation']}"] if facts["allocation"] != "uniform" else []
    counted = [
        ("weights in scope", f"{saved.pruned:,}", f"{saved.scope_weights:,}", saved.scope_sparsity),
        ("all parameters", f"{saved.zeros:,}", f"{saved.parameters:,}", saved.sparsity),
        (
            "bytes on disk",
            format_bytes(saved.bytes_zeros),
            format_bytes(saved.bytes_weights),
            saved.bytes_sparsity,
        ),
    ]
    rows = [
        [name, zeros, total, _percent(share), _percent(1 - share)] for name, zeros, total, share in counted
    ]
    spread = any(role.most - role.least > 5e-5 for role in saved.roles)
    roles = [
        [
            role.role, role.matrices, f"{role.weights:,}", f"{role.pruned:,}",
            _percent(role.pruned / role.weights),
            *([f"{_percent(role.least)} to {_percent(role.most)}"] if spread else []),
        ]
        for role in saved.roles
    ]  # fmt: skip
    headings = ["role", "matrices", "weights", "removed", "sparsity", *(["of one matrix"] if spread else [])]
    share = saved.bytes_packed / saved.bytes_weights
    files = [
        [
            "weights, as a dense model",
            format_bytes(saved.bytes_weights),
            f"{saved.dtype}; zeros are stored too",
        ],
        ["masks and provenance", format_bytes(saved.bytes_masks), f"{MASKS}, {FACTS}"],
        [
            "weights, packed: NOT saved",
            format_bytes(saved.bytes_packed),
            f"{100 * share:.1f} % of dense: {saved.packed_form}",
        ],
    ]
    place = shlex.quote(str(saved.folder))
    parts = [
        f"{saved.folder}: {_percent(saved.scope_sparsity)} of the weights in scope are zero "
        f"({', '.join(how)})",
        str(facts["scope"]),
        table(["zeros among", "zeros", "of", "sparsity", "density"], rows),
        table(headings, roles),
        _calibration(masks),
        "\n".join(f"note: {note}" for note in masks.notes),
        "saved\n" + table(["what", "size", ""], files) + _grown(saved, masks),
        _unchanged(isinstance(pattern, NM) and (pattern.keep, pattern.group) == (2, 4)),
        f"read back from the disk: {len(masks)} matrices, all {saved.pruned:,} removed weights are zero, "
        f"every parameter as in memory{_others(saved)}",
        f"next\n  sparsescope report {place}\n  sparsescope doctor --subject {place}",
    ]
    return "\n\n".join(part for part in parts if part)


def _unchanged(two_of_four: bool) -> str:
    """What zeros alone do not give."""
    said = (
        "Plain runtimes neither shrink nor speed up: what loads model folders loads this one as any other\n"
        "and computes with its zeros, in the memory and the time of the dense model. "
    )
    if two_of_four:
        return said + (
            "2:4 can be quicker\non GPUs with sparse tensor cores, in bfloat16 or float16, once its matrices "
            "are converted\n(torch.sparse.to_sparse_semi_structured); nothing converts them by itself."
        )
    return said + "Both fall only with\na format and with kernels made for zeros."


def _grown(saved: SavedFolder, masks: MaskSet) -> str:
    """Say that weights of two bytes were saved with four."""
    origin = str(masks.facts["parent"]["origin_precision"]).split(" ")[0]
    if saved.dtype != "float32" or origin not in ("bfloat16", "float16"):
        return ""
    return (
        f"\nnote: the weights came as {origin} and are saved as float32, twice as large; --dtype {origin} "
        "keeps their size"
    )


def _others(saved: SavedFolder) -> str:
    """Zeros that no mask says, as quantization leaves them."""
    others = saved.zeros - saved.pruned
    return f"; {others:,} more are zero as before, {saved.kept_zeros:,} of them in scope" if others else ""


def _calibration(masks: MaskSet) -> str:
    """What was read, in one sentence; empty where nothing was."""
    read, seconds = masks.facts.get("calibration"), masks.facts.get("seconds")
    took = f"{seconds:,.1f} s" if isinstance(seconds, int | float) else ""
    if not read:
        return f"no text was read; {took}"
    first = "" if masks.facts.get("first_positions", True) else ", without the first token of each window"
    return (
        f"calibrated on {read['tokens']:,} tokens of {read['corpus']} ({read['documents']:,} documents, "
        f"windows of {read['context']}{first}), propagation {masks.facts.get('propagation')}; {took}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _refuse_meaningless(request: Request, text: TextOptions) -> None:
    """Refuse options that would change nothing.

    Raises:
        SpecError: One was given.
    """
    wrong = []
    if not request.reads:
        wrong += text.changed_from({"tokens": CALIBRATION_TOKENS})
        wrong += [] if request.first_positions else ["--no-first-positions"]
    if not request.criterion.reads and request.propagation != "sequential":
        wrong.append("--propagation")
    if not request.criterion.drawn and request.seed:
        wrong.append("--prune-seed")
    if wrong:
        name = request.criterion.name
        drawn = " and is drawn with --prune-seed" if request.criterion.drawn else ""
        raise SpecError(
            f"these options have no meaning for {name}",
            where=", ".join(wrong),
            got=f"{name} reads no text{drawn}"
            if not request.reads
            else f"the masks of {name} are not drawn"
            if wrong == ["--prune-seed"]
            else f"{name} judges no block by what it reads",
            next_step="leave them out, or take another criterion; see: sparsescope prune --help",
        )


def _command(
    subject: str,
    request: Request,
    names: str | list[str],
    text: TextOptions,
    model: ModelOptions,
    target: Path,
) -> str:
    """The command line that makes the folder again."""
    words: list[object] = ["sparsescope", "prune", subject, "--criterion", request.criterion.name]
    if request.pattern is not None:
        words += ["--pattern", request.pattern.text]
    if getattr(request.pattern, "group", None) is None:
        words += ["--sparsity", request.sparsity]
    if request.allocation.text != "uniform":
        words += ["--allocation", request.allocation.text]
    for name in [names] if isinstance(names, str) else names:
        words += [] if name == "blocks" else ["--scope", name]
    if request.criterion.reads and request.propagation != "sequential":
        words += ["--propagation", request.propagation]
    words += ["--prune-seed", request.seed] if request.seed else []
    words += [] if request.first_positions else ["--no-first-positions"]
    for group, defaults in ((text, {"tokens": CALIBRATION_TOKENS}), (model, {})):
        for entry in fields(group):
            option, value = f"--{entry.name.replace('_', '-')}", getattr(group, entry.name)
            if option in group.changed_from(defaults):
                words += [option] if value is True else [option, value]
    return shlex.join(map(str, [*words, "--output", target]))

"""A study as a notebook: question, narrative, then a cell for each figure, finding and run,
in the public API.

The cells are what a reader would type, so a notebook is a place to go on from; nothing in it is an internal
helper. nbformat writes notebooks and nbclient executes them, as papermill does underneath. papermill itself
was rejected, because it sets the parameters of a notebook, and those of a study stand in its file; jupytext,
because its notebooks have no outputs, and the figures of a study are what is to be seen.

Texts of a study go into Markdown cells and are escaped as in ``narrative``; names go into code cells as
Python literals. The kernel runs code of this file only: no module and no start-up file is taken from the
folder of the notebook.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.files import given_output, replace_file
from sparsescope.core.run_store import Store
from sparsescope.errors import DependencyError, SparsescopeError
from sparsescope.reporting.narrative import narrative_markdown, plain_markdown
from sparsescope.runner.study import Study, studies

if TYPE_CHECKING:
    from nbformat import NotebookNode

#: A figure is stored as plotly's JSON, for front ends that know it, and as HTML that draws
#: itself, for all others.
_RENDERER = "plotly_mimetype+notebook"


def write_notebook(
    study: Study, path: str | Path, *, home: str | Path | None = None, execute: bool = True
) -> Path:
    """Write the notebook of a study.

    Args:
        study: What was read; see ``load_study``.
        path: The notebook; an existing one is replaced atomically.
        home: Folder of runs; ``$SPARSESCOPE_HOME`` or ``runs`` when None. What is stored there is opened,
            the rest is computed.
        execute: Whether the cells are run; without it the notebook has no outputs.

    Returns:
        The path.

    Raises:
        DependencyError: If the packages of the extra ``notebook`` are not installed.
        SparsescopeError: If a cell fails.
        ArtifactError: If the file cannot be written.
    """
    nbformat = require("nbformat")
    target = given_output(path, "path", "notebook")
    made = study_notebook(study, target.resolve().parent)
    if execute:
        execute_notebook(made, target.resolve().parent, Store(home).root)
    replace_file(target, (nbformat.writes(made) + "\n").encode(), action="write the notebook")
    return target


def study_notebook(study: Study, folder: Path) -> NotebookNode:
    """Return the notebook of a study, without outputs; the same study always gives the same notebook.

    Args:
        study: What was read.
        folder: Where the notebook will lie: a study that has no name there is named by its path from there.

    Raises:
        DependencyError: If the packages of the extra ``notebook`` are not installed.
    """
    make, declared = require("nbformat").v4, study.declared
    cells: list[NotebookNode] = []

    def text(name: str, source: str) -> None:
        cells.append(make.new_markdown_cell(source, id=name))

    def code(name: str, source: str) -> None:
        cells.append(make.new_code_cell(source, id=name))

    text("title", f"# {plain_markdown(declared.title)}\n\n**{plain_markdown(declared.question)}**")
    if study.narrative:
        text("narrative", narrative_markdown(study.narrative))
    text("runs", _RUNS)
    code(
        "study",
        f"import sparsescope as ss\n\nstudy = ss.study({_literal(_target(study, folder))}, say=print)",
    )
    code("numbers", "study")
    titles = [entry.title for entry in declared.figures]
    for index, entry in enumerate(declared.figures):
        heading = "## Figures\n\n" if index == 0 else ""
        text(
            f"figure-{index}-text",
            f"{heading}### {plain_markdown(entry.title)}\n\n{plain_markdown(entry.caption)}".strip(),
        )
        code(
            f"figure-{index}",
            f"ss.figure(study, {_literal(entry.title) if titles.count(entry.title) == 1 else index})",
        )
    for index, finding in enumerate(declared.findings):
        heading = "## Findings\n\n" if index == 0 else ""
        text(f"finding-{index}-text", f"{heading}### {plain_markdown(finding.label)}")
        code(f"finding-{index}", f"study.findings[{index}]")
    text("results", _RESULTS)
    for index, (subject, analysis) in enumerate(
        (s.name, a.id) for s in declared.subjects for a in declared.analyses
    ):
        code(f"result-{index}", f"study.result({_literal(subject)}, {_literal(analysis)})")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return make.new_notebook(
        cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )


_RUNS = """## Runs

Runs that are stored in `$SPARSESCOPE_HOME`, or in the folder `runs` beside this notebook, are opened; what \
is not there is computed. Every number is in `study.frame()`."""
_RESULTS = """## Single runs

A result shows its numbers, its notes and its first figure. `result.view(NAME)` draws the others, \
`result.tables[NAME]` is a pandas frame and `result.scalars[NAME]` a number with its definition and \
interval. A run that failed has no result; the list below the numbers says why."""


def require(name: str) -> Any:
    """Import a module of the extra ``notebook``.

    Raises:
        DependencyError: If it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
            raise
        raise DependencyError(
            "notebooks need packages that are not installed",
            where="--notebook",
            got=f"no module {error.name}",
            next_step="pip install 'sparsescope[notebook]'",
        ) from None


def check_packages() -> None:
    """Find out before minutes of work whether a notebook can be written and executed.

    Raises:
        DependencyError: If the packages of the extra ``notebook`` are not installed.
    """
    for name in ("nbformat", "nbclient", "ipykernel"):
        require(name)


def _target(study: Study, folder: Path) -> str:
    """The name of a study where it has one in this folder, else its path from there."""
    path = study.path.resolve()
    named = studies(folder).get(path.parent.name)
    return (
        path.parent.name if named is not None and named.resolve() == path else os.path.relpath(path, folder)
    )


def _literal(text: str) -> str:
    """A string as Python source: in double quotes where that needs no escape."""
    shown = repr(text)
    return f'"{text}"' if shown == f"'{text}'" and '"' not in text else shown


def _quiet(warnings: str | None) -> str:
    """``$PYTHONWARNINGS`` without the advice to install progress bars, which shows a path of this machine."""
    return ",".join([*filter(None, [warnings]), "ignore:IProgress not found"])


def execute_notebook(made: NotebookNode, folder: Path, home: Path) -> None:
    """Run the cells in a kernel of this Python, one after the other; outputs go into ``made``."""
    client, config = require("nbclient"), require("traitlets.config").Config
    with tempfile.TemporaryDirectory(prefix="sparsescope-") as private:
        environment = {
            **os.environ,
            "SPARSESCOPE_HOME": str(home.resolve()),
            "PLOTLY_RENDERER": _RENDERER,
            "PYTHONSAFEPATH": "1",
            "IPYTHONDIR": private,
            "PYTHONWARNINGS": _quiet(os.environ.get("PYTHONWARNINGS")),
        }
        runner = client.NotebookClient(
            made,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--InteractiveShellApp.ignore_cwd=True"],
            # Sockets in a folder of this user, in place of ports that anyone on the machine can reach.
            config=config(KernelManager={"transport": "ipc", "connection_file": f"{private}/kernel.json"}),
        )
        try:
            runner.execute(cwd=str(folder), env=environment)
        except client.exceptions.CellExecutionError as error:
            raise SparsescopeError(
                "a cell of the notebook failed",
                got=f"{error.ename}: {error.evalue}",
                next_step="run the study without --notebook",
            ) from error
        except client.exceptions.DeadKernelError as error:
            raise SparsescopeError(
                "the kernel of the notebook ended", got=error, next_step="is there enough memory?"
            ) from error
    made.metadata["language_info"] = {"name": "python"}  # not the version of this machine

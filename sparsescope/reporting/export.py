"""Results as files for other tools: tables as CSV, and what an analysis declares in ``Analysis.exports``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sparsescope.core.files import given_path, storage_errors
from sparsescope.core.named_code import named_function
from sparsescope.errors import SpecError, unknown_name
from sparsescope.reporting.sections import record_of, table_csv

if TYPE_CHECKING:
    from sparsescope.core.result import Result

CSV = "csv"


def formats(result: Result) -> list[str]:
    """The formats that a result can be written in."""
    return [CSV, *record_of(result).exports]


def export(result: Result, format: str, folder: str | Path) -> list[Path]:
    """Write a result for another tool.

    Args:
        result: What is written.
        format: ``"csv"``, or one that its analysis declares, for example ``"neuronpedia"``.
        folder: A folder that is not there yet, or is empty.

    Returns:
        The files that were written.

    Raises:
        SpecError: There is no such format, or something is in the folder.
        ArtifactError: The disk refuses, or something that the format needs is missing.
    """
    record = record_of(result)
    if format not in formats(result):
        raise unknown_name(
            f"format of {result.analysis}", format, formats(result), next_step="choose one of these"
        )
    target = given_path(folder, "folder")
    with storage_errors("write there", target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise SpecError(
                "something is there already",
                where="folder",
                allowed="a folder that is not there yet, or is empty",
                got=str(target),
                next_step="choose another folder with: --output FOLDER",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, so that an export that fails leaves nothing behind
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".sparsescope-") as place:
            made = Path(place) / "export"
            made.mkdir()
            written = (
                _csv(result, made)
                if format == CSV
                else named_function(record.exports[format], "(result, folder)", record.owner, "exports")(
                    result, made
                )
            )
            names = [path.relative_to(made) for path in written]
            if target.exists():
                target.rmdir()
            made.rename(target)
    return [target / name for name in names]


def _csv(result: Result, folder: Path) -> list[Path]:
    out = []
    for name in result.tables:
        path = folder / f"{name}.csv"
        path.write_text(table_csv(result, name), encoding="utf-8")
        out.append(path)
    return out

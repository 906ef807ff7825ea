"""The artifacts that a run made and read, as its provenance names them in a report and in the explorer."""

from __future__ import annotations

from dataclasses import dataclass

from sparsescope.core.result import Result
from sparsescope.viz.tables import format_bytes


@dataclass(frozen=True, slots=True)
class ArtifactLine:
    """One artifact of a run.

    Args:
        label: ``made`` or ``read``, and its name in the run.
        artifact_id: Its id.
        state: Format and size, or that it is not there.
        command: Of one that is not there, the command that makes it again; empty where none is known.
    """

    label: str
    artifact_id: str
    state: str
    command: str = ""


def artifact_lines(result: Result) -> list[ArtifactLine]:
    """What a run made, then what it read; an artifact that is not there is an empty
    state with its command.
    """
    read = result.provenance.get("artifacts", {}).get("read", {})
    lines = []
    for name, artifact in sorted(result.artifacts.items(), key=lambda item: item[0] in read):
        label = f"read: {name}" if name in read else f"made: {name}"
        if artifact.present:
            lines.append(
                ArtifactLine(label, artifact.id, f"{artifact.format}, {format_bytes(artifact.bytes)}")
            )
        else:
            lines.append(ArtifactLine(label, artifact.id, "not in this folder of runs", artifact.remake))
    return lines

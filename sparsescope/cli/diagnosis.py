"""What ``doctor`` looks at: the installation, the folder of runs, and a subject's parity
with plain transformers.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.cli.console import table
from sparsescope.errors import SparsescopeError

if TYPE_CHECKING:
    from sparsescope.models.doctor import Examination


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: What was checked.
        ok: Whether it is as it should be.
        detail: What was found; what to do when it is not ok.
    """

    what: str
    ok: bool
    detail: str


def installation(home: Path | None) -> list[Finding]:
    """Check packages, processor, memory, the folder of runs and the registries."""
    import torch

    from sparsescope.core.environment import environment
    from sparsescope.core.registry import analyses
    from sparsescope.core.run_store import Store

    found = environment()
    packages = found["packages"]
    findings = [
        Finding("packages", True, ", ".join(f"{name} {version}" for name, version in packages.items())),
        Finding("machine", True, f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB"),
        Finding(
            "accelerator",
            True,
            torch.cuda.get_device_name() if torch.cuda.is_available() else "none, computing on the CPU",
        ),
        Finding("threads", True, f"torch uses {torch.get_num_threads()}"),
    ]
    store = Store(home)
    try:
        store.check_writable()
        findings.append(
            Finding("folder of runs", True, f"{store.root.resolve()}, {len(store.run_ids())} runs")
        )
    except SparsescopeError as error:
        findings.append(Finding("folder of runs", False, str(error)))
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
    findings.append(
        Finding(
            "model hub",
            True,
            "offline (HF_HUB_OFFLINE is set)" if offline else "used when a subject needs it",
        )
    )
    broken = analyses().broken
    detail = f"{len(analyses())} analyses" + "".join(
        f"; {name} cannot be imported: {why}" for name, why in broken.items()
    )
    findings.append(Finding("registry", not broken, detail))
    return findings


def as_json(findings: list[Finding], examination: Examination | None) -> dict[str, Any]:
    """The findings as plain values."""
    found: dict[str, Any] = {"installation": [asdict(finding) for finding in findings]}
    if examination is not None:
        found["subject"] = {**asdict(examination), "healthy": examination.healthy}
    return found


def as_text(findings: list[Finding], examination: Examination | None) -> str:
    """The findings as text."""
    parts = [
        table(["check", "", "found"], [[f.what, "ok" if f.ok else "PROBLEM", f.detail] for f in findings])
    ]
    if examination is None:
        return parts[0]
    rows = [
        [
            row.what if row.layer is None else f"{row.what} {row.layer}",
            f"{row.max_abs_difference:.3g}", f"{row.scale:.3g}", f"{100 * row.argmax_agreement:.1f} %",
            "yes" if row.bit_equal else "no",
        ]
        for row in examination.parity
    ]  # fmt: skip
    parts += [
        "\n  ".join(
            [
                f"subject {examination.subject} ({examination.architecture})",
                examination.precision_note,
                *examination.notes,
            ]
        ),
        "what a run relies on\n"
        + table(
            ["check", "", "found"],
            [[c.what, "ok" if c.ok else "PROBLEM", " ".join(c.detail.split())] for c in examination.checks],
        ),
        "parity with plain transformers, same dtype and attention implementation\n"
        + table(["compared", "largest difference", "largest value", "same argmax", "bit-equal"], rows),
        f"memory, {examination.memory_tokens} tokens a batch\n"
        + table(
            ["part", "MiB"], [[name, f"{size / 2**20:,.1f}"] for name, size in examination.memory.items()]
        ),
        f"capabilities: {', '.join(examination.capabilities)}\n"
        f"sites: {examination.n_sites}, hooks left behind: {examination.hooks_left}",
        "healthy"
        if examination.healthy
        else "PROBLEM: see the checks above, and the rows that are not bit-equal",
    ]
    return "\n\n".join(parts)

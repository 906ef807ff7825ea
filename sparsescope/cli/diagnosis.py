"""What ``doctor`` looks at: the installation, the folder of runs, a subject's parity
with plain transformers, and its zeros.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.cli.console import table
from sparsescope.errors import SparsescopeError

if TYPE_CHECKING:
    from sparsescope.core.proofs import Proof
    from sparsescope.models.doctor import Examination
    from sparsescope.models.subject import Subject
    from sparsescope.pruning.zeros import ZeroChange, Zeros

_LOST_ROWS = 40


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
    from sparsescope.kernels.compiled_cache import find_cache

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
    compiled = find_cache()
    where = f"kept in {compiled.folder}"
    if not compiled.lasting:
        where = (
            "compiled again in every process: neither the code nor your cache can be written to; set "
            "SPARSESCOPE_CACHE to a folder that can"
        )
    findings.append(Finding("compiled kernels", compiled.lasting, where))
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


@dataclass(frozen=True, slots=True)
class ZeroDiagnosis:
    """The zeros of a subject.

    Attributes:
        found: Its zeros, matrix by matrix.
        masks: Where its masks are; empty where it has none.
        proofs: What was proved with them.
        changes: What the masks removed of each matrix, and what is zero now.
        notes: What there is to say of the masks.
    """

    found: Zeros
    masks: str = ""
    proofs: tuple[Proof, ...] = ()
    changes: tuple[ZeroChange, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether everything was proved."""
        return all(proof.ok for proof in self.proofs)


def zeros_of(subject: Subject, masks: str | None) -> ZeroDiagnosis | None:
    """Look at the zeros of a subject.

    Args:
        subject: The subject.
        masks: Where its masks are; None for those in its own folder, if there are any.

    Returns:
        None where no matrix has more than 1 % of zeros and there are no masks.

    Raises:
        SpecError: The masks that were given cannot be read, or are of another model.
    """
    from sparsescope.core.proofs import Proof
    from sparsescope.pruning.foreign import read_masks
    from sparsescope.pruning.proof import prove
    from sparsescope.pruning.zeros import compare, describe

    try:
        found = describe(subject)
    except SparsescopeError:  # no matrices that could be looked at; the checks of a run say so
        if masks is not None:
            raise
        return None
    own = masks is None
    place = _own_folder(subject) if masks is None else masks
    if place is None:
        return ZeroDiagnosis(found) if found.notable else None
    try:
        read = read_masks(place, subject)
        changes = compare(subject, read)
    except SparsescopeError as error:
        if not own:
            raise
        return ZeroDiagnosis(found, place, (Proof("masks", False, error.message()),))
    return ZeroDiagnosis(found, place, prove(read, changes), changes, read.notes)


def _own_folder(subject: Subject) -> str | None:
    """The folder that a subject was loaded from, where it has masks."""
    from sparsescope.core.files import given_path
    from sparsescope.models.catalog import resolve
    from sparsescope.pruning.proof import has_masks

    if subject.source is None or subject.variant is not None:
        return None
    found = resolve(subject.source)
    folder = given_path(found.request.name, "--subject")
    return str(folder) if found.kind == "folder" and has_masks(folder) else None


def as_json(
    findings: list[Finding], examination: Examination | None, zeros: ZeroDiagnosis | None = None
) -> dict[str, Any]:
    """The findings as plain values."""
    found: dict[str, Any] = {"installation": [asdict(finding) for finding in findings]}
    if examination is not None:
        found["subject"] = {**asdict(examination), "healthy": examination.healthy}
    if zeros is not None:
        found["zeros"] = {
            **zeros.found.as_dict(),
            "masks": zeros.masks or None,
            "proofs": [asdict(proof) for proof in zeros.proofs],
            "lost": [
                {**asdict(change), "then": change.then, "now": change.now}
                for change in zeros.changes
                if change.lost
            ],
            "notes": list(zeros.notes),
            "healthy": zeros.healthy,
        }
    return found


def as_text(
    findings: list[Finding], examination: Examination | None, zeros: ZeroDiagnosis | None = None
) -> str:
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
        *([] if zeros is None else [zeros_text(zeros)]),
        _verdict(examination, zeros),
    ]
    return "\n\n".join(parts)


def _verdict(examination: Examination, zeros: ZeroDiagnosis | None) -> str:
    if not examination.healthy:
        return "PROBLEM: see the checks above, and the rows that are not bit-equal"
    if zeros is not None and not zeros.healthy:
        return "PROBLEM: see the zeros above"
    return "healthy"


def zeros_text(zeros: ZeroDiagnosis) -> str:
    """The zeros of a subject as text."""
    from sparsescope.pruning.proof import lost_by_role, total_text
    from sparsescope.pruning.zeros import PATTERNS

    found, parts = zeros.found, []
    parts.append(
        f"zeros: {found.zeros:,} of {found.weights:,} weights of attention and MLP, sparsity "
        f"{100 * found.share:.2f} % (density {100 * (1 - found.share):.2f} %), more than 1 % in "
        f"{len(found.notable)} of {len(found.matrices)} matrices"
    )
    rows = [
        [pattern.text, _groups(pair[0]), _groups(pair[1])]
        for pattern in PATTERNS
        if (pair := found.compliance(pattern)) is not None
    ]
    if rows and found.zeros:
        parts.append(table(["pattern", "groups in which it holds", "by chance at this sparsity"], rows))
    parts += [f"note: {note}" for note in zeros.notes]
    if not zeros.masks:
        parts.append("no masks: which of these zeros were meant is not known; give them with --masks")
        return "\n".join(parts)
    parts.append(f"masks of {zeros.masks}\n{proofs_text(zeros.proofs)}")
    lost = [change for change in zeros.changes if change.lost]
    if lost:
        listed = [[c.name, f"{c.weights:,}", f"{c.pruned:,}", f"{c.lost:,}", c.text] for c in lost]
        more = f"\n... and {len(lost) - _LOST_ROWS} more; --json has all" if len(lost) > _LOST_ROWS else ""
        parts += [
            "matrices whose zeros were lost\n"
            + table(["matrix", "weights", "removed", "not zero now", "sparsity"], listed[:_LOST_ROWS])
            + more,
            f"lost in {lost_by_role(zeros.changes)}; all matrices {total_text(zeros.changes)}",
            "zeros are lost where an adapter is merged into pruned weights, or weights are trained without "
            "their mask;\nread_masks(FOLDER, subject).apply(subject) of sparsescope.pruning sets them to zero"
            " again, and drops what was learned there",
        ]
    return "\n".join(parts)


def _groups(share: float) -> str:
    """A share of groups; 100 % only where it is all of them."""
    return "> 99.99 %" if 0.99995 <= share < 1 else f"{100 * share:.2f} %"


def proofs_text(proofs: Sequence[Proof]) -> str:
    """Proofs as text."""
    rows = [[proof.what, "ok" if proof.ok else "PROBLEM", " ".join(proof.detail.split())] for proof in proofs]
    return table(["check", "", "found"], rows)

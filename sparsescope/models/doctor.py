"""Check a subject: do our passes give what plain transformers gives, how much memory, what can it do.

``examine`` runs a fixed sample of tokens twice, once plainly and once under capture hooks on every
site, and compares layer by layer. It returns plain values and prints nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsescope.models.provenance.checks import Check, check
from sparsescope.models.structure.roles import text_config
from sparsescope.models.structure.token_ids import table_rows, within_table
from sparsescope.models.subject import evaluating
from sparsescope.models.torch_environment import quiet_transformers

if TYPE_CHECKING:
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

SAMPLE_SHAPE = (2, 24)
PASSAGE = "The quick brown fox jumps over the lazy dog, and 7 owls watch it from the old oak tree. " * 4


@dataclass(frozen=True, slots=True)
class ParityRow:
    """One comparison with plain transformers.

    Attributes:
        what: ``hidden state``, ``backbone`` or ``logits``.
        layer: Block whose output is compared, None for the whole model.
        max_abs_difference: Largest absolute difference.
        scale: Largest absolute value of the reference.
        argmax_agreement: Share of positions with the same largest element.
        bit_equal: Whether every bit agrees.
    """

    what: str
    layer: int | None
    max_abs_difference: float
    scale: float
    argmax_agreement: float
    bit_equal: bool


@dataclass(frozen=True, slots=True)
class Examination:
    """The findings of ``examine``.

    Attributes:
        subject: Id of the subject.
        architecture: HF class name.
        identity: All fields of the identity.
        precision_note: One sentence on the precision of origin.
        parity: Comparisons with plain transformers.
        memory: Bytes by part, for ``memory_tokens`` tokens.
        memory_tokens: Tokens per batch of the memory estimate.
        capabilities: What analyses can ask of it.
        n_sites: Number of sites.
        hooks_left: Hooks that the capture left behind; 0 when all is well.
        checks: What a run relies on; see ``checks.check``.
        notes: What else a reader has to know, in sentences.
    """

    subject: str
    architecture: str
    identity: dict[str, Any]
    precision_note: str
    parity: tuple[ParityRow, ...]
    memory: dict[str, int]
    memory_tokens: int
    capabilities: tuple[str, ...]
    n_sites: int
    hooks_left: int
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether every comparison is bit-equal, every check passed and no hook is left."""
        passed = all(check.ok for check in self.checks)
        return passed and all(row.bit_equal for row in self.parity) and self.hooks_left == 0


def examine(subject: Subject, batch_tokens: int = 2048) -> Examination:
    """Examine a subject.

    Args:
        subject: The subject; it is not changed.
        batch_tokens: Tokens per batch for the memory estimate.

    Returns:
        The findings, as plain values.
    """
    ids = within_table(subject, sample_ids(subject))
    before = count_hooks(subject.model)
    checks = check(subject)
    plain = _plain_pass(subject, ids)
    captured = _captured_pass(subject, ids, checks[0].ok)
    rows = []
    # The last hidden state that transformers reports is already normed, so it is the backbone row.
    for layer, reference in enumerate(plain["hidden"][1 : subject.n_layers] if checks[0].ok else ()):
        rows.append(compare("hidden state", layer, reference, captured["hidden"][layer]))
    rows.append(compare("backbone", None, plain["backbone"], captured["backbone"]))
    if "logits" in plain:
        rows.append(compare("logits", None, plain["logits"], captured["logits"]))
    identity = subject.identity
    return Examination(
        subject=subject.id,
        architecture=identity.architecture,
        identity=identity.as_dict(),
        precision_note=precision_note(identity.origin_precision, identity.dtype),
        parity=tuple(rows),
        memory=subject.memory_estimate(batch_tokens),
        memory_tokens=batch_tokens,
        capabilities=tuple(sorted(subject.capabilities)),
        n_sites=len(subject.site_names()),
        hooks_left=count_hooks(subject.model) - before,
        checks=checks,
        notes=tuple(tokenizer_notes(subject)),
    )


def tokenizer_notes(subject: Subject) -> list[str]:
    """What the tokenizer and the model of a subject do not have in common."""
    if subject.tokenizer is None:
        return []
    found = []
    model, own = (str(getattr(part, "name_or_path", "")) for part in (subject.model, subject.tokenizer))
    if model and own and Path(own) == Path(model).resolve().parent:
        found.append(f"The tokenizer is that of the folder above, {Path(own).name}: the checkpoint has none.")
    rows, tokens = table_rows(subject.model), len(subject.tokenizer)
    if rows is not None and tokens > rows:
        found.append(
            f"The tokenizer has {tokens} tokens and the embedding table {rows} rows: text with one of "
            "the others is refused, padding is not."
        )
    return found


def sample_ids(subject: Subject) -> torch.Tensor:
    """Return the fixed sample of token ids [batch, pos]: a sentence, or spread ids; as long as
    the model can take.
    """
    batch, length = SAMPLE_SHAPE
    length = min(length, subject.max_positions or length)
    if subject.tokenizer is not None:
        ids = subject.tokenizer(PASSAGE, add_special_tokens=False, verbose=False)["input_ids"]
        ids = (ids * (batch * length // max(1, len(ids)) + 1))[: batch * length]
    else:
        vocabulary = int(text_config(subject.model).vocab_size)
        ids = [(17 + 31 * i) % vocabulary for i in range(batch * length)]
    return torch.tensor(ids, dtype=torch.int64, device=subject.device).reshape(batch, length)


def _plain_pass(subject: Subject, ids: torch.Tensor) -> dict[str, Any]:
    """Run a twin of the model as a user of transformers would.

    transformers leaves hooks of its own behind once hidden states were asked for, and these must
    not stay on the model of the user. So the twin has its own modules; the weights are shared.
    """
    shared = {id(tensor): tensor for tensor in (*subject.model.parameters(), *subject.model.buffers())}
    twin = copy.deepcopy(subject.model, shared).eval()
    mask = torch.ones_like(ids)
    with torch.inference_mode(), quiet_transformers(), evaluating(twin):
        output = twin(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        path = next(path for path, module in subject.model.named_modules() if module is subject.backbone)
        backbone = twin.get_submodule(path)(input_ids=ids, attention_mask=mask)
    found = {"hidden": output.hidden_states, "backbone": backbone.last_hidden_state}
    if "logits" in subject.capabilities:
        found["logits"] = output.logits
    return found


def _captured_pass(subject: Subject, ids: torch.Tensor, readable: bool) -> dict[str, Any]:
    """Run the model through ``Subject.forward`` with hooks on every site, if these can be read."""
    hidden: dict[int, torch.Tensor] = {}

    def keep(site: Site, tensor: torch.Tensor, rows: torch.Tensor | None) -> None:
        if site.role == "hook_out":
            hidden[site.layer] = tensor

    mask = torch.ones_like(ids)
    found: dict[str, Any] = {"hidden": hidden}
    with subject.attach(subject.sites("blocks.*.*") if readable else (), keep):
        found["backbone"] = subject.forward(ids, mask)
        if "logits" in subject.capabilities:
            found["logits"] = subject.forward(ids, mask, logits=True)
    return found


def compare(what: str, layer: int | None, reference: torch.Tensor, ours: torch.Tensor) -> ParityRow:
    """Compare two tensors [batch, pos, width]."""
    difference = (reference.double() - ours.double()).abs().max()
    return ParityRow(
        what,
        layer,
        max_abs_difference=float(difference),
        scale=float(reference.double().abs().max()),
        argmax_agreement=float((reference.argmax(-1) == ours.argmax(-1)).double().mean()),
        bit_equal=bool(torch.equal(reference, ours)),
    )


def count_hooks(model: torch.nn.Module) -> int:
    """Count the forward hooks on all modules of a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def precision_note(origin: str, dtype: str) -> str:
    """Say in one sentence what the precision of origin means for the numbers."""
    if origin.startswith("gguf:") and origin.removeprefix("gguf:") not in {"F32", "F16", "BF16"}:
        return (
            f"The weights were stored as {origin.removeprefix('gguf:')} (GGUF, quantized) and are computed "
            f"in {dtype}: results describe the quantized model, not the original checkpoint."
        )
    if origin == dtype:
        return f"The weights were stored and are computed in {dtype}."
    return f"The weights were stored in {origin} and are computed in {dtype}."

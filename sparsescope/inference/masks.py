"""One mask of sparse inference: which inputs of some matrices are kept, and what stands in for the rest.

All training-free methods are one family: channel i of token t is kept unless |x_i - m_i| c_i <= threshold.
TEAL has c = 1, WINA the L2 norm of column i, WAS its L1 norm (gamma = 1 in |x_i| c_i^gamma); m is 0 for all
of them. ``top_p`` keeps the smallest set that holds a share of the L1 norm of a token, ``gate`` asks the
output of the gate instead of the input (CATS). A NaN is never dropped; a channel with c = 0 always is,
unless the threshold is below 0, which keeps all.

What is dropped can be replaced, at no cost in bytes but vectors: a bias for each output, a centre m that
every channel falls back to; or at the cost of two matrices: their product of low rank.

Shapes: x [..., K]; matrices [N, K].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from sparsescope.core.spec import canonical_json

if TYPE_CHECKING:
    import torch

MaskKind = Literal["score", "top_p", "gate"]
MASK_KINDS: tuple[MaskKind, ...] = get_args(MaskKind)


@dataclass(frozen=True, slots=True)
class LowRank:
    """What stands in for the dropped inputs of a matrix: left (right r), r the dropped part of x.

    Attributes:
        left: [N, r].
        right: [r, K].
    """

    left: torch.Tensor
    right: torch.Tensor

    @property
    def weights(self) -> int:
        """Weights that every token reads."""
        return self.left.numel() + self.right.numel()


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Which inputs of some matrices are kept.

    Attributes:
        group: Name of the input group, ``blocks.3.mlp.in``.
        roles: Roles of the matrices that it is applied to.
        threshold: Scores up to it are dropped; below 0 none. Of ``top_p`` the share of the norm that is kept.
        scale: c, float32 or float64 [K], of experts [E, K]; None for ones.
        kind: What the score is of.
        centre: m, [K]; None for zeros.
        bias: Added to the outputs of sparse positions, by role, [N].
        low_rank: By role.
        rotation: Q, [K, K]: the score is of Q^T x, the matrices are W Q; None without one.
        sink_norm: Tokens whose norm of scaled inputs is larger are left dense; None for none.
        saves: Roles of matrices whose rows are skipped by this mask (``gate``: the other matrix of the
            layer).
    """

    group: str
    roles: tuple[str, ...]
    threshold: float
    scale: torch.Tensor | None = None
    kind: MaskKind = "score"
    centre: torch.Tensor | None = None
    bias: Mapping[str, torch.Tensor] = field(default_factory=dict)
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    rotation: torch.Tensor | None = None
    sink_norm: float | None = None
    saves: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``blocks.3.attn.in`` where it is one for all matrices of the group, else with their keys:
        ``blocks.3.attn.in[q]``.
        """
        keys = ",".join(role.removesuffix(".weight").rpartition(".")[2] for role in self.roles)
        return f"{self.group}[{keys}]"

    @property
    def counted_as(self) -> str:
        """Name of the counts of its scores: those of inputs less their centre are others."""
        return self.name if self.centre is None else f"{self.name} centred"

    @property
    def layer(self) -> int:
        """Block number."""
        return int(self.group.split(".")[1])

    @property
    def limits(self) -> torch.Tensor | float:
        """tau_i = threshold / c_i: |x_i - m_i| up to it is dropped; float32 or float64, [K] or [E, K]."""
        if self.scale is None:
            return self.threshold
        if self.threshold < 0:  # keeps all, also where c is 0
            return self.scale * 0 - 1
        return self.threshold / self.scale

    def facts(self) -> dict[str, Any]:
        """What it is, without tensors, as JSON values."""
        return {
            "group": self.group,
            "roles": list(self.roles),
            "threshold": self.threshold,
            "kind": self.kind,
            "sink_norm": self.sink_norm,
            "saves": list(self.saves),
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, those that it has."""
        found = {"scale": self.scale, "centre": self.centre, "rotation": self.rotation}
        named = {name: tensor for name, tensor in found.items() if tensor is not None}
        named |= {f"bias.{role}": tensor for role, tensor in self.bias.items()}
        for role, pair in self.low_rank.items():
            named |= {f"left.{role}": pair.left, f"right.{role}": pair.right}
        return named

    @classmethod
    def of(cls, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Mask:
        """Make the mask again from what ``facts`` and ``tensors`` gave."""
        part = {
            kind: {
                name.removeprefix(f"{kind}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{kind}.")
            }
            for kind in ("bias", "left", "right")
        }
        return cls(
            facts["group"],
            tuple(facts["roles"]),
            float(facts["threshold"]),
            scale=tensors.get("scale"),
            kind=facts["kind"],
            centre=tensors.get("centre"),
            bias=part["bias"],
            low_rank={role: LowRank(left, part["right"][role]) for role, left in part["left"].items()},
            rotation=tensors.get("rotation"),
            sink_norm=facts["sink_norm"],
            saves=tuple(facts["saves"]),
        )


def masks_digest(masks: Sequence[Mask], more: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of everything that masks compute with.

    Args:
        masks: In their order.
        more: What else decides the outputs: the prefix policy.
    """
    from sparsescope.models.provenance.tensor_bytes import tensor_digest

    digest = hashlib.sha256(canonical_json(dict(more)).encode())
    for mask in masks:
        digest.update(canonical_json(mask.facts()).encode())
        for name, tensor in sorted(mask.tensors().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
            digest.update(tensor_digest(tensor))
    return digest.hexdigest()

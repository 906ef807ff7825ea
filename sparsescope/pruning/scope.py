"""Which matrices are pruned: chosen by role, each once, and said in words.

Embeddings, output head, norms, biases and the routers of mixtures are never in scope. ``blocks`` is every
other matrix of the blocks, as in essential sparsity, Wanda and SparseGPT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SubjectError, unknown_name

if TYPE_CHECKING:
    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.subject import Subject

Patterns = str | Sequence[str]

SCOPES = {
    "blocks": "every matrix of attention and MLP, experts included",
    "mlp": "the matrices of the MLPs, experts included",
    "attention": "the matrices of attention",
}
_ROUTER = "router.weight"


@dataclass(frozen=True, slots=True)
class Scope:
    """The matrices that are pruned.

    Attributes:
        asked: As it was asked for.
        matrices: Each once, layer by layer.
        tied: Names of matrices whose storage is that of one in ``matrices``.
        left_out: Parameters of the model that are not in scope, by what they are.
    """

    asked: str
    matrices: tuple[ParameterSite, ...]
    tied: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def weights(self) -> int:
        """Weights in scope."""
        return sum(site.shape[0] * site.shape[1] for site in self.matrices)

    @property
    def text(self) -> str:
        """In one sentence: what is in, what is not."""
        roles: dict[str, int] = {}
        for site in self.matrices:
            name = site.role.removesuffix(".weight")
            roles[name] = roles.get(name, 0) + 1
        parts = ", ".join(f"{count} x {name}" for name, count in roles.items())
        out = ", ".join(f"{name} {count:,}" for name, count in self.left_out.items() if count)
        tied = f"; {len(self.tied)} more share the storage of these and count once" if self.tied else ""
        return (
            f"scope {self.asked}: {self.weights:,} weights in {len(self.matrices)} matrices ({parts}){tied}; "
            f"not in scope: {out or 'nothing'}"
        )


def choose(subject: Subject, scope: Patterns = "blocks") -> Scope:
    """Return the matrices that a scope names.

    Args:
        subject: The model.
        scope: ``"blocks"``, ``"mlp"``, ``"attention"``, or patterns such as
            ``weight:blocks.*.mlp.out.weight``.

    Raises:
        SubjectError: It names nothing, a matrix twice (two names of one storage), or a packed one.
    """
    text = scope if isinstance(scope, str) else ", ".join(scope)
    sites: list[ParameterSite] = []
    if isinstance(scope, str) and not scope.startswith("weight:"):
        if scope not in SCOPES:
            raise unknown_name(
                "scope",
                scope,
                {**SCOPES, "weight:blocks.*.mlp.out.weight": ""},
                next_step="or give patterns of parameters: weight:blocks.*.mlp.*.weight",
                error=SubjectError,
            )
        parts = {"blocks": ("attn.", "mlp."), "mlp": ("mlp.",), "attention": ("attn.",)}[scope]
        sites = [
            site
            for site in subject.parameter_sites("weight:blocks.*.*")
            if site.role.startswith(parts) and not site.role.endswith(_ROUTER)
        ]
        if not sites:
            raise SubjectError("this model has no matrices in scope", where=subject.id, got=scope)
    else:
        sites = list(subject.parameter_sites(scope))
        routers = [site.name for site in sites if site.role.endswith(_ROUTER)]
        if routers:
            raise SubjectError(
                "routers are not pruned: they choose experts, a handful of weights each",
                where="scope",
                got=routers[0],
                next_step="leave them out: weight:blocks.*.mlp.experts.*",
            )
    kept: dict[tuple[Any, ...], ParameterSite] = {}
    tied: list[str] = []
    for site in sites:
        first = kept.setdefault(_place(subject, site), site)
        if first is not site:
            tied.append(site.name)
            if text not in SCOPES:
                raise SubjectError(
                    "one matrix is named twice: the two have the same storage",
                    where="scope",
                    got=f"{first.name} and {site.name}",
                    next_step="name one of them; pruning it prunes both",
                )
    matrices = tuple(kept.values())
    return Scope(text, matrices, tuple(tied), _left_out(subject, matrices))


def _place(subject: Subject, site: ParameterSite) -> tuple[Any, ...]:
    import torch

    from sparsescope.models.structure.parameters import read
    from sparsescope.models.structure.roles import submodule

    module = submodule(subject.model, site.module_path)
    if not isinstance(getattr(module, site.parameter, None), torch.Tensor):
        raise SubjectError(
            "the weights are packed by a quantization library and cannot be written to",
            where=f"{site.name} ({site.module_path}, {type(module).__name__})",
            allowed="float32, bfloat16, float16",
            next_step="load the model without quantization",
        )
    tensor = read(subject.model, site)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _left_out(subject: Subject, matrices: Sequence[ParameterSite]) -> dict[str, int]:
    """Parameters that are not in scope, each storage once, by kind."""
    from sparsescope.models.structure.roles import submodule

    covered: dict[int, int] = {}
    for site in matrices:
        holder = getattr(submodule(subject.model, site.module_path), site.parameter)
        covered[id(holder)] = covered.get(id(holder), 0) + site.shape[0] * site.shape[1]
    tables = {
        id(module.weight): name
        for name, module in (
            ("output head", subject.model.get_output_embeddings()),
            ("embeddings", subject.model.get_input_embeddings()),
        )
        if module is not None and hasattr(module, "weight")
    }
    head, table = subject.model.get_output_embeddings(), subject.model.get_input_embeddings()
    if head is not None and table is not None and getattr(head, "weight", 0) is getattr(table, "weight", 1):
        tables[id(table.weight)] = "embeddings (also the output head)"
    out: dict[str, int] = {}
    seen: set[int] = set()
    for parameter in subject.model.parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        rest = parameter.numel() - covered.get(id(parameter), 0)
        kind = tables.get(id(parameter), "other matrices" if parameter.ndim >= 2 else "norms and biases")
        out[kind] = out.get(kind, 0) + rest
    return {name: count for name, count in out.items() if count > 0}

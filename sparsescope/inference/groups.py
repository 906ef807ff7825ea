"""The inputs that can be sparse: matrices of a block that read one tensor, by role.

A block of a dense model has four: what q, k and v read (``attn.in``), what o reads (``attn.out``), what gate
and in read (``mlp.in``), what out reads (``mlp.out``). In a mixture the inputs of all experts of a layer are
one group, so that an expert that few tokens reach has the threshold of its layer. Routers, embeddings and the
output head stay dense.
Shapes: matrices [out, in]; a group reads K = in channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsescope.errors import SubjectError, unknown_name

if TYPE_CHECKING:
    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.subject import Subject

SCOPES = ("blocks", "mlp", "attention")


@dataclass(frozen=True, slots=True)
class InputGroup:
    """Matrices that read one tensor.

    Attributes:
        name: ``blocks.3.attn.in``.
        layer: Block number, from 0.
        role: ``attn.in``, ``attn.out``, ``mlp.in``, ``mlp.out``, ``mlp.experts.in``, ...
        matrices: Those that read it; of a mixture those of all experts.
        width: Channels, K.
    """

    name: str
    layer: int
    role: str
    matrices: tuple[ParameterSite, ...]
    width: int

    @property
    def parts(self) -> tuple[str, ...]:
        """Roles of its matrices, each once: ``attn.q.weight``, ``attn.k.weight``, ..."""
        return tuple(dict.fromkeys(site.role for site in self.matrices))

    @property
    def experts(self) -> int:
        """How many experts read it, each its own tokens; 0 for a dense group."""
        return len({site.expert for site in self.matrices if site.expert is not None})

    def outputs(self, roles: Sequence[str] | None = None) -> int:
        """Weights that one channel of one token costs: rows of the matrices (of one expert) together.

        Args:
            roles: Of these matrices; of all when None.
        """
        one = [site for site in self.matrices if not site.expert]  # expert 0, or none
        return sum(site.shape[0] for site in one if roles is None or site.role in roles)


def input_groups(subject: Subject, scope: str = "blocks") -> tuple[InputGroup, ...]:
    """Return the groups of a model, layer by layer.

    Args:
        subject: The model.
        scope: ``"blocks"``, ``"mlp"`` or ``"attention"``.

    Raises:
        SubjectError: Unknown scope, the model has no matrices there, or two layers share a module.
    """
    if scope not in SCOPES:
        raise unknown_name("scope", scope, SCOPES, next_step="blocks is all of them", error=SubjectError)
    prefix = {"blocks": ("attn.", "mlp."), "mlp": ("mlp.",), "attention": ("attn.",)}[scope]
    found: dict[tuple[int, str], list[ParameterSite]] = {}
    home: dict[tuple[str, tuple[int, int, int] | None, int | None], ParameterSite] = {}
    for site in subject.parameter_sites("weight:blocks.*.*"):
        if not site.role.startswith(prefix) or site.role.endswith("router.weight"):
            continue
        first = home.setdefault((_module_id(subject, site), site.rows, site.expert), site)
        if first is not site:
            raise SubjectError(
                "two layers share a module, so that they cannot have inputs of their own",
                where=f"{first.name} and {site.name}",
                got=site.module_path,
                next_step="choose a model whose layers have weights of their own",
            )
        found.setdefault((site.layer, role_of(site)), []).append(site)
    if not found:
        raise SubjectError("this model has no matrices in scope", where=subject.id, got=scope)
    return tuple(
        InputGroup(f"blocks.{layer}.{role}", layer, role, tuple(sites), sites[0].shape[1])
        for (layer, role), sites in found.items()
    )


def role_of(site: ParameterSite) -> str:
    """The group that a matrix belongs to, without its layer."""
    home, key = site.role.removesuffix(".weight").rsplit(".", 1)
    return f"{home}.{'out' if key in ('o', 'out') else 'in'}"


def _module_id(subject: Subject, site: ParameterSite) -> str:
    from sparsescope.models.structure.roles import submodule

    return f"{id(submodule(subject.model, site.module_path))}.{site.parameter}"

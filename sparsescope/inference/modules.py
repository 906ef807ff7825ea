"""Modules that mask what they read: the reference implementation of sparse inference.

A linear module of a copied model gets a class of its own that masks its input and then computes as before,
with the very weights of the original. Nothing of the model's code is copied, so any architecture whose
matrices have roles works: Linear, Conv1D, fused modules whose parts have masks of their own, mixtures of
experts. Hooks on such a module see the input before the mask.

The arithmetic is dense: this says what a sparse model computes, not how fast. Scores are compared in the
precision of the activations with limits that are rounded down to it, which decides every entry as float32
does.
Shapes: x [..., K], matrices [N, K].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

from sparsescope.inference.masks import Mask
from sparsescope.inference.prefix import Reading
from sparsescope.kernels.masked_inputs import mask_inputs
from sparsescope.kernels.topk_masks import top_p_mask
from sparsescope.models.structure.experts import (
    apply_matrix,
    expert_output,
    is_gated,
    takes_routing,
)
from sparsescope.models.structure.parameters import read
from sparsescope.models.structure.roles import features

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparsescope.models.structure.parameters import ParameterSite


@dataclass(slots=True)
class Part:
    """One mask as a module applies it, in the precision of its activations.

    Attributes:
        mask: The mask.
        rows: Output rows that it makes; None for all.
        limits: tau, [K], of experts [E, K], or a number.
        centre: [K], or None.
        shift: Added to the outputs of sparse positions, [N of these rows], or None.
        weight: W Q where there is a rotation, [N, K].
        low_rank: left [N, r] and right [r, K], or None.
    """

    mask: Mask
    rows: slice | None
    limits: torch.Tensor | float
    centre: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    low_rank: tuple[torch.Tensor, torch.Tensor] | None = None
    scale: torch.Tensor | None = None

    def apply(
        self, x: torch.Tensor, asked: torch.Tensor, sparse: torch.Tensor | None, expert: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Mask some inputs.

        Args:
            x: [..., K].
            asked: What the score is of: x, or the activated gate.
            sparse: bool [..., 1], the sparse positions; all when None.
            expert: Number of the expert.

        Returns:
            What goes into the product: at sparse positions the kept inputs less their centre. How many inputs
            of each position the mask keeps, int64 [...]. The dropped part of x, where something stands in for
            it that reads it.
        """
        limits = self.limits
        if isinstance(limits, torch.Tensor) and limits.ndim == 2:
            limits = limits[expert]
        plain = self.mask.kind == "score" and self.mask.sink_norm is None and self.low_rank is None
        if plain:
            values = x if self.centre is None else x - self.centre
            flat = values.reshape(-1, values.shape[-1])
            rows = None if sparse is None or self.centre is not None else sparse.reshape(-1)
            masked, kept = mask_inputs(flat, limits, rows)
            z = masked.reshape(x.shape)
            if sparse is not None and self.centre is not None:
                z = torch.where(sparse, z, x)
            return z, kept.reshape(x.shape[:-1]), None
        keep = self._keep(asked, limits, expert)
        drop = ~keep if sparse is None else ~keep & sparse
        if self.centre is None:
            z = x.masked_fill(drop, 0)
        else:
            z = (x - self.centre).masked_fill(~keep, 0)
            z = z if sparse is None else torch.where(sparse, z, x)
        rest = None if self.low_rank is None else x.masked_fill(keep, 0)
        return z, keep.sum(-1), rest

    def _keep(self, asked: torch.Tensor, limits: torch.Tensor | float, expert: int) -> torch.Tensor:
        if self.mask.kind == "top_p":
            return top_p_mask(asked, self.mask.threshold)
        score = asked if self.centre is None or self.mask.kind == "gate" else asked - self.centre
        # Not "greater": a NaN is kept, so that it is seen
        keep = ~(score.abs() <= limits)
        if self.mask.sink_norm is not None:
            scale = self.scale
            if scale is not None and scale.ndim == 2:
                scale = scale[expert]
            values = asked.float() if scale is None else asked.float() * scale
            keep |= values.norm(dim=-1, keepdim=True) > self.mask.sink_norm
        return keep

    def finish(self, y: torch.Tensor, rest: torch.Tensor | None, sparse: torch.Tensor | None) -> torch.Tensor:
        """Add what stands in for the dropped inputs, at sparse positions."""
        extra: torch.Tensor | None = self.shift
        if rest is not None and self.low_rank is not None:
            left, right = self.low_rank
            product = linear(linear(rest, right), left)
            extra = product if extra is None else extra + product
        if extra is None:
            return y
        return y + extra if sparse is None else torch.where(sparse, y + extra, y)


class SparseLinear:
    """Masks the input of a linear module; a base of classes made by ``sparse_class``.

    Attributes:
        parts: The masks of its output rows; together they make all rows.
        reading: Where the pass of the model stands.
        site: HF path, for errors.
        publishes: Layer, output rows and activation of a gate that another module asks for; or None.
        masks_inputs: Off while the matrix of the module is read.
    """

    parts: tuple[Part, ...]
    reading: Reading
    site: str
    publishes: tuple[int, slice | None, Callable[[torch.Tensor], torch.Tensor]] | None
    masks_inputs: bool

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Mask, multiply, add."""
        dense: Callable[..., torch.Tensor] = super().forward  # type: ignore[misc]  # of the base class
        if not self.masks_inputs:
            return dense(x, *args, **kwargs)
        if len(self.parts) == 1 and self.parts[0].rows is None and self.parts[0].weight is None:
            y = self._one(self.parts[0], x, lambda z: dense(z, *args, **kwargs))
        elif self.parts:
            y = torch.cat([self._one(part, x, self._product(part)) for part in self.parts], dim=-1)
        else:
            y = dense(x, *args, **kwargs)
        if self.publishes is not None:
            layer, rows, act = self.publishes
            self.reading.scratch[layer] = act(y if rows is None else y[..., rows])
        return y

    def _one(
        self, part: Part, x: torch.Tensor, product: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        sparse = self.reading.of(x, self.site)
        if part.mask.rotation is not None:
            x = x @ part.mask.rotation.to(x.dtype)
        asked = self.reading.scratch[part.mask.layer] if part.mask.kind == "gate" else x
        z, kept, rest = part.apply(x, asked, sparse)
        self.reading.count(part.mask.name, kept, x.shape[-1])
        self.reading.see(part.mask.name, z)
        return part.finish(product(z), rest, sparse)

    def _product(self, part: Part) -> Callable[[torch.Tensor], torch.Tensor]:
        module: Any = self
        rows = part.rows or slice(None)
        weight = part.weight
        if weight is None:
            weight = module.weight.T[rows] if is_conv1d(module) else module.weight[rows]
        bias = None if module.bias is None else module.bias[rows]
        return lambda z: linear(z, weight, bias)


class SparseExperts:
    """Masks the inputs of the matrices of every expert; a base of classes made by ``sparse_class``.

    Attributes:
        by_matrix: The masks of ``gate``, ``in`` and ``out``, each with the rows of its parameter.
        reading: Where the pass of the model stands.
        site: HF path, for errors.
        gate_rows: Outputs of ``gate_up_proj`` that are the gate, where a mask asks for it.
        gate: The activated gate of the expert that is being computed, [n, f].
        masks_inputs: Off while matrices are read.
    """

    by_matrix: dict[str, list[Part]]
    reading: Reading
    site: str
    gate_rows: slice | None
    gate: torch.Tensor
    masks_inputs: bool

    def masked_matrix(self, name: str, states: torch.Tensor, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """The product of one parameter of an expert with its masked input.

        Args:
            name: ``down_proj``, ``gate_up_proj`` or ``up_proj``.
            states: [n, K].
            expert: Its number.
            rows: int64 [n], tokens of the pass.

        Returns:
            [n, N].
        """
        parts = self.by_matrix.get(name, [])
        y = (
            self._masked(name, parts, states, expert, rows)
            if parts
            else apply_matrix(self, name, states, expert)
        )
        if self.gate_rows is not None and name == "gate_up_proj":
            module: Any = self
            self.gate = module.act_fn(y[..., self.gate_rows])
        return y

    def _masked(
        self, name: str, parts: Sequence[Part], states: torch.Tensor, expert: int, rows: torch.Tensor
    ) -> torch.Tensor:
        reading = self.reading
        if not reading.active and reading.policy.kind != "all_sparse":
            reading.of(states, self.site)  # says that positions are not known
        sparse = reading.sparse if reading.active else None
        sparse = None if sparse is None else sparse.reshape(-1)[rows][:, None]
        found: list[tuple[slice | None, torch.Tensor]] = []
        for part in parts:
            asked = self.gate if part.mask.kind == "gate" else states
            z, kept, rest = part.apply(states, asked, sparse, expert)
            reading.count(part.mask.name, kept, states.shape[-1], rows, expert)
            found.append((part.rows, part.finish(apply_matrix(self, name, z, expert), rest, sparse)))
        if found[0][0] is None:
            return found[0][1]
        # Rows without a mask are those of the dense product
        whole = torch.empty_like(found[0][1]) if len(found) > 1 else apply_matrix(self, name, states, expert)
        for which, y in found:
            whole[:, which] = y[:, which]
        return whole

    def _all_dense(self) -> bool:
        """Whether no position of the pass is sparse: then the mixture computes as it always did, bit for
        bit.
        """
        sparse = self.reading.sparse
        dense = self.reading.active and sparse is not None and not bool(sparse.any())
        return dense or not self.masks_inputs


class SparseRoutedExperts(SparseExperts):
    """A mixture whose module is given the routing."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Compute expert by expert; ``expert_output`` asks for the masked products."""
        if self._all_dense():
            whole: torch.Tensor = super().forward(hidden_states, top_k_index, top_k_weights)  # type: ignore[misc]
            return whole
        return expert_output(
            self, hidden_states, top_k_index, top_k_weights, lambda _expert, hidden, _: hidden
        )


class SparseScoredExperts(SparseExperts):
    """A mixture whose module gets the tokens of every expert (Llama 4)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute expert by expert."""
        if self._all_dense():
            whole: torch.Tensor = super().forward(hidden_states)  # type: ignore[misc]
            return whole
        return expert_output(self, hidden_states, None, None, lambda _expert, hidden, _: hidden)


@dataclass(slots=True)
class Installer:
    """Puts masks into the modules of a copied model.

    Args:
        model: The copy; it is changed.
        reading: Where its passes stand.
    """

    model: Any
    reading: Reading
    _linear: dict[str, list[tuple[ParameterSite, Mask]]] = field(default_factory=dict)
    _gate_rows: dict[str, slice] = field(default_factory=dict)

    def add(self, site: ParameterSite, mask: Mask) -> None:
        """Have a matrix masked."""
        self._linear.setdefault(site.module_path, []).append((site, mask))

    def gates(self, layer: int, site: ParameterSite, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Have the activated output of a gate kept for the second matrix of its layer; before ``install``."""
        if site.expert is not None:
            self._gate_rows[site.module_path] = slice(*(site.rows or (0, site.shape[0], 1)))
            return
        module = self.module(site.module_path)
        if not isinstance(module, SparseLinear):
            self._swap(site.module_path, ())
            module = self.module(site.module_path)
        module.publishes = (layer, None if site.rows is None else slice(*site.rows), act)

    def module(self, path: str) -> Any:
        """The module at a path."""
        return self.model.get_submodule(path)

    def install(self) -> None:
        """Change the modules."""
        for path, found in self._linear.items():
            if found[0][0].expert is not None:
                self._experts(path, found)
                continue
            ordered = sorted(found, key=lambda pair: pair[0].rows or (0, 0, 1))
            self._swap(path, tuple(self._part(site, mask) for site, mask in ordered))

    def _swap(self, path: str, parts: tuple[Part, ...]) -> None:
        module = self.module(path)
        if parts and parts[0].rows is not None:
            rest = _dense_rest(parts, features(module)[0])
            parts = tuple(sorted((*parts, *rest), key=lambda part: part.rows.start if part.rows else 0))
            if len({id(part.mask) for part in parts}) == 1 and all(p.shift is None for p in parts):
                parts = (_merged(parts[0]),)
        publishes = getattr(module, "publishes", None)
        if not isinstance(module, SparseLinear):  # the gate of another mask is one already
            module.__class__ = sparse_class(SparseLinear, module.__class__)
        module.parts, module.reading, module.site = parts, self.reading, path
        module.publishes, module.masks_inputs = publishes, True

    def _experts(self, path: str, found: Sequence[tuple[ParameterSite, Mask]]) -> None:
        module = self.module(path)
        by_matrix: dict[str, list[Part]] = {}
        seen: set[tuple[str, str]] = set()
        for site, mask in found:
            if (site.role, mask.name) in seen:  # one part serves all experts
                continue
            seen.add((site.role, mask.name))
            by_matrix.setdefault(site.parameter, []).append(self._part(site, mask))
        for name, parts in by_matrix.items():
            if is_gated(module) and name == "gate_up_proj":
                rows = [part.rows for part in parts]
                if len(parts) > 1 and parts[0].mask is parts[1].mask and all(p.shift is None for p in parts):
                    by_matrix[name] = [_merged(parts[0])]
                assert all(row is not None for row in rows)
        base = SparseRoutedExperts if takes_routing(module) else SparseScoredExperts
        module.__class__ = sparse_class(base, module.__class__)
        module.by_matrix, module.reading, module.site = by_matrix, self.reading, path
        module.gate_rows = self._gate_rows.get(path)
        module.masks_inputs = True

    def _part(self, site: ParameterSite, mask: Mask) -> Part:
        weight = read(self.model, site)
        dtype, device = weight.dtype, weight.device
        limits = mask.limits
        if isinstance(limits, torch.Tensor):
            limits = rounded_down(limits, dtype).to(device)
        elif mask.kind != "top_p":
            limits = float(rounded_down(torch.tensor(limits, dtype=torch.float64), dtype))
        part = Part(mask, None if site.rows is None else slice(*site.rows), limits)
        part.scale = None if mask.scale is None else mask.scale.float().to(device)
        exact = torch.promote_types(dtype, torch.float32)
        bias = mask.bias.get(site.role)
        shift = None if bias is None else bias.to(device, exact)
        if mask.rotation is not None:
            part.weight = (weight.to(exact) @ mask.rotation.to(device, exact)).to(dtype)
        if mask.centre is not None:
            part.centre = mask.centre.to(device, dtype)
            made = (weight if part.weight is None else part.weight).to(exact) @ part.centre.to(exact)
            shift = made if shift is None else shift + made
        part.shift = None if shift is None else shift.to(dtype)
        pair = mask.low_rank.get(site.role)
        if pair is not None and pair.left.shape[1]:
            part.low_rank = (pair.left.to(device, dtype), pair.right.to(device, dtype))
        return part


def _merged(part: Part) -> Part:
    """One mask for every row of a fused module."""
    part.rows = None
    return part


def _dense_rest(parts: Sequence[Part], rows: int) -> list[Part]:
    """A mask that keeps all, for the rows of a fused module that have none."""
    at, rest = 0, []
    for part in [*parts, None]:
        begin = rows if part is None or part.rows is None else part.rows.start
        if begin > at:
            rest.append(
                Part(Mask(f"blocks.{parts[0].mask.layer}.dense", ("rest",), -1.0), slice(at, begin), -1.0)
            )
        at = rows if part is None or part.rows is None else part.rows.stop
    return rest


@cache
def sparse_class(mixin: Any, base: Any) -> Any:
    """The class of a module that masks what it reads; it keeps the name of its base, which roles go by."""
    return type(
        base.__name__, (mixin, base), {"__module__": __name__, "__qualname__": f"Sparse{base.__name__}"}
    )


def is_conv1d(module: Any) -> bool:
    """Whether a module stores its matrix as (in, out)."""
    return type(module).__name__ == "Conv1D"


def rounded_down(limits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest values of a type that are not above the limits: |x| <= limit then holds for the same x.

    Args:
        limits: float32 or float64; infinity stays.
        dtype: Type of x.
    """
    near = limits.to(dtype)
    above = near.to(limits.dtype) > limits
    return torch.where(above, torch.nextafter(near, torch.full_like(near, -torch.inf)), near)

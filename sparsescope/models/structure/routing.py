"""The routing of a mixture of experts: what a router says, how that becomes a choice, and passes in which
experts are taken away.

``routers(subject)`` finds the routers of a model by role, runs it on a few tokens, checks that what the
routers give are scores of experts, and looks for the rule that turns these into the experts and weights that
the model goes on with. A rule is taken only where it gives the very choice of the model; an architecture
with another one can be read, not asked to choose again.

``without_experts`` takes experts away under one of three meanings, which differ (``SEMANTICS``). Weights of
the model are not touched.

Shapes: T tokens, E experts of a layer, k experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import rearrange, repeat

from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.structure.edits import edit
from sparsescope.models.structure.roles import submodule
from sparsescope.models.structure.sites import attach

if TYPE_CHECKING:
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

LOGITS, INDEX, WEIGHTS = "mlp.router.hook_out", "mlp.hook_expert_indices", "mlp.hook_expert_weights"
#: What taking an expert away means for the tokens that chose it.
SEMANTICS: dict[str, str] = {
    "zero": "its weight is zero; the other experts of the token keep theirs",
    "zero_renormalise": "its weight is zero, and those of the other experts grow to the same sum",
    "mask_reselect": "the router cannot choose it: the token goes to its next best expert",
}
_PROBE_TOKENS = 64


class Choice(NamedTuple):
    """Experts of each token, int64 [T, k], and their weights [T, k]."""

    experts: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class Rule:
    """How the scores of a router become experts and weights.

    Attributes:
        scoring: ``softmax`` over all experts, or ``sigmoid`` of each.
        normalised: Whether the weights of a token sum to ``scale``. Softmax over the chosen scores alone
            (gpt-oss, Granite) is softmax over all, normalised.
        scale: Factor of the weights.
        bias: [E], added to the scores for the choice alone (DeepSeek-AI 2024, arXiv:2412.19437, eq. 16).
        groups: Experts are chosen within ``kept_groups`` of so many groups.
        kept_groups: See ``groups``.
        group_top: A group counts as the sum of its ``group_top`` best scores.
    """

    scoring: str
    normalised: bool
    scale: float = 1.0
    bias: torch.Tensor | None = None
    groups: int = 1
    kept_groups: int = 1
    group_top: int = 1

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The share of each expert in the scores of a token, float32 [T, E]; rows sum to 1."""
        scores = self._scores(logits)
        return scores / scores.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)

    def choose(self, logits: torch.Tensor, k: int, removed: torch.Tensor | None = None) -> Choice:
        """Choose the experts of each token.

        Args:
            logits: [T, E].
            k: Experts per token.
            removed: bool [E], experts that cannot be chosen.
        """
        scores = self._scores(logits)
        if removed is not None:
            scores = scores.masked_fill(removed, 0.0)
            if self.scoring == "softmax":  # as if the router had no such row
                scores = self._scores(logits.float().masked_fill(removed, -torch.inf))
        ranked = scores if self.bias is None else scores + self.bias.float()
        if removed is not None:
            ranked = ranked.masked_fill(removed, -torch.inf)
        if self.groups > 1:
            by_group = rearrange(ranked, "token (group expert) -> token group expert", group=self.groups)
            best = by_group.topk(self.group_top, dim=-1).values.sum(-1)
            kept = torch.zeros_like(best, dtype=torch.bool)
            kept.scatter_(1, best.topk(self.kept_groups, dim=-1).indices, True)
            members = ranked.shape[-1] // self.groups
            ranked = ranked.masked_fill(
                ~repeat(kept, "token group -> token (group expert)", expert=members), -torch.inf
            )
        index = ranked.topk(k, dim=-1).indices
        weights = scores.gather(1, index)
        if removed is not None:  # too few experts are left for k: the rest weigh nothing
            weights = weights.masked_fill(removed[index], 0.0)
        if self.normalised:
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
        return Choice(index, weights * self.scale)

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        scores = logits.float()
        return scores.softmax(-1) if self.scoring == "softmax" else scores.sigmoid()


@dataclass(frozen=True, slots=True)
class Router:
    """The router of one layer.

    Attributes:
        layer: Number of the transformer block; not the place among the routers, since blocks may be dense.
        experts: E.
        k: Experts per token.
        logits: Site of its scores.
        index: Site of the experts of each token.
        weights: Site of their weights.
        path: HF path of its module.
        rule: How it chooses, or None where no known rule gives its choice.
        gives_probabilities: Whether its "scores" are softmax probabilities already, as those of some releases
            of transformers 5 are (issue 45120 there); ``scores`` takes the logarithm then.
    """

    layer: int
    experts: int
    k: int
    logits: Site
    index: Site
    weights: Site
    path: str
    rule: Rule | None
    gives_probabilities: bool = False

    @property
    def by_score(self) -> bool:
        """Whether the k largest scores are chosen: known, and neither a bias nor groups stand between."""
        return self.rule is not None and self.rule.bias is None and self.rule.groups == 1

    @property
    def sites(self) -> tuple[Site, Site, Site]:
        """Scores, experts, weights."""
        return self.logits, self.index, self.weights

    def scores(self, given: torch.Tensor) -> torch.Tensor:
        """The logits, float32 [T, E], from what the site of the scores holds."""
        return given.float().clamp_min(1e-38).log() if self.gives_probabilities else given.float()

    def probabilities(self, given: torch.Tensor) -> torch.Tensor:
        """Probabilities over all experts, float32 [T, E], from what the site of the scores holds; softmax
        where the rule is not known.
        """
        return (self.rule or Rule("softmax", False)).probabilities(self.scores(given))


def routers(subject: Subject) -> tuple[Router, ...]:
    """Find and check the routers of a mixture of experts.

    Returns: One for each layer that has one, by layer.

    Raises:
        SubjectError: It is no mixture, its routing cannot be read, or what its routers give is not what a
            router gives.
    """
    found: dict[int, dict[str, Site]] = {}
    for site in subject.sites("blocks.*.*"):
        if site.role in {LOGITS, INDEX, WEIGHTS}:
            found.setdefault(site.layer, {})[site.role] = site
    layers = [block.layer for block in subject.blocks if block.experts is not None]
    if not layers:
        raise SubjectError(
            "this model is dense: it has no experts, and nothing is routed",
            where=subject.id,
            allowed="a mixture of experts, such as bytes-moe or random-olmoe",
            next_step="`sparsescope list subjects` names registered ones",
        )
    lacking = [layer for layer in layers if len(found.get(layer, {})) < 3]
    if lacking:
        raise SubjectError(
            "the routing of this mixture cannot be read",
            where=f"{subject.id}, layer {lacking[0]}",
            allowed="a router, and a module of experts that takes the experts and the weights of each token",
            got=f"only {sorted(found.get(lacking[0], {})) or 'neither'}",
            next_step="Llama 4, whose experts get every token, is one of these; its hidden units can be read",
        )
    sites = [found[layer][role] for layer in layers for role in (LOGITS, INDEX, WEIGHTS)]
    held: dict[str, torch.Tensor] = {}

    def keep(site: Site, tensor: torch.Tensor, rows: torch.Tensor | None) -> None:
        held[site.name] = rearrange(tensor, "batch pos width -> (batch pos) width").clone()

    with attach(subject.model, sites, keep):
        subject.forward(subject.sample_ids(_PROBE_TOKENS))
    return tuple(_checked(subject, layer, found[layer], held) for layer in layers)


def _checked(
    subject: Subject, layer: int, sites: Mapping[str, Site], held: Mapping[str, torch.Tensor]
) -> Router:
    logits, index, weights = (held[sites[role].name] for role in (LOGITS, INDEX, WEIGHTS))
    experts = logits.shape[-1]
    where = f"{subject.id}, layer {layer}"
    if not logits.is_floating_point():
        raise SubjectError(
            "what the router gives as scores are whole numbers: indices, most likely",
            where=f"{where}, {sites[LOGITS].module_path}",
            allowed=f"floating-point scores [tokens, {experts}]",
            got=str(logits.dtype),
            next_step="this version of transformers returns them in another order: update it, or report it",
        )
    if index.is_floating_point() or index.min() < 0 or index.max() >= experts:
        raise SubjectError(
            "the experts of a token are no numbers of experts",
            where=f"{where}, {sites[INDEX].module_path}",
            allowed=f"whole numbers from 0 to {experts - 1}",
            got=f"{index.dtype} from {index.min().item()} to {index.max().item()}",
        )
    sums = logits.float().sum(-1)
    probabilities = bool((logits >= 0).all() and (sums - 1).abs().max() < 1e-3)
    path = sites[LOGITS].module_path
    given = logits.float().clamp_min(1e-38).log() if probabilities else logits.float()
    rule = _rule(submodule(subject.model, path), given, Choice(index, weights))
    return Router(
        layer,
        experts,
        index.shape[-1],
        sites[LOGITS],
        sites[INDEX],
        sites[WEIGHTS],
        path,
        rule,
        probabilities,
    )


def _rule(module: Any, logits: torch.Tensor, choice: Choice) -> Rule | None:
    """The rule that gives the choice of the model on every token, or None."""
    bias = getattr(module, "e_score_correction_bias", None)
    groups = int(getattr(module, "num_group", getattr(module, "n_group", 1)) or 1)
    facts: dict[str, Any] = {
        "bias": bias.detach() if isinstance(bias, torch.Tensor) else None,
        "groups": groups,
        "kept_groups": int(getattr(module, "topk_group", 1) or 1),
    }
    scales = {1.0, float(getattr(module, "routed_scaling_factor", 1.0) or 1.0)}
    kinds = product(("softmax", "sigmoid"), (False, True), sorted(scales), (1, 2) if groups > 1 else (1,))
    for scoring, normalised, scale, top in kinds:
        rule = Rule(scoring, normalised, scale, group_top=top, **facts)
        if _gives(rule, logits, choice):
            return rule
    return None


def _gives(rule: Rule, logits: torch.Tensor, choice: Choice) -> bool:
    """Whether a rule chooses the very experts that the model chose, with its weights to the rounding of their
    precision. The order within a token does not count: some routers do not sort.
    """
    ours, theirs = (_by_expert(each) for each in (rule.choose(logits, choice.experts.shape[-1]), choice))
    if not torch.equal(ours.experts, theirs.experts):
        return False
    # Relative: weights of many experts are small, and an absolute rounding of bfloat16 would pass any of them
    rounding = 4 * torch.finfo(choice.weights.dtype).eps
    return bool(torch.allclose(ours.weights, theirs.weights, rtol=rounding, atol=1e-6))


def _by_expert(choice: Choice) -> Choice:
    """The same, in the order of the numbers of the experts."""
    experts, order = choice.experts.sort(dim=-1)
    return Choice(experts.long(), choice.weights.float().gather(-1, order))


@contextmanager
def without_experts(
    subject: Subject,
    routers: Sequence[Router],
    removed: Mapping[int, Sequence[int]],
    semantics: str = "zero",
) -> Iterator[None]:
    """Take experts away while the ``with`` block runs forward passes of a subject.

    Args:
        subject: The mixture; it is not changed.
        routers: Its routers, from ``routers(subject)``.
        removed: The experts, by layer.
        semantics: A key of ``SEMANTICS``. Single experts taken away differ between the first and the last by
            the factor 1 / (1 - weight) and the expert that steps in.

    Raises:
        SpecError: The semantics, a layer or an expert is unknown, or no expert would be left.
        SubjectError: ``mask_reselect`` is asked of a router whose rule is not known.
    """
    by_layer = {router.layer: router for router in routers}
    gone = _masks(by_layer, removed, semantics)
    for layer in gone:
        if semantics == "mask_reselect" and by_layer[layer].rule is None:
            raise SubjectError(
                "how this router chooses is not known, so it cannot be asked to choose again",
                where=f"{subject.id}, layer {layer}, {by_layer[layer].path}",
                allowed="softmax or sigmoid scores, with a bias, groups and a factor",
                next_step="take the experts away with semantics 'zero' or 'zero_renormalise'",
            )
    logits: dict[int, torch.Tensor] = {}
    chosen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def read(site: Site, tensor: torch.Tensor, rows: torch.Tensor | None) -> None:
        logits[site.layer] = tensor

    def choose_again(site: Site, index: torch.Tensor) -> torch.Tensor:
        router, mask = by_layer[site.layer], gone[site.layer].to(index.device)
        if semantics != "mask_reselect" or router.rule is None:
            chosen[site.layer] = (index, index)
            return index
        batch, _, k = index.shape
        flat = rearrange(logits.pop(site.layer), "batch pos expert -> (batch pos) expert")
        again = router.rule.choose(router.scores(flat), k, mask)
        shaped = [rearrange(part, "(batch pos) k -> batch pos k", batch=batch) for part in again]
        # A token that had none of them keeps its choice to the bit
        same = ~mask[index].any(-1, keepdim=True)
        after = torch.where(same, index, shaped[0].to(index.dtype))
        chosen[site.layer] = (after, torch.where(same, 0.0, shaped[1]))
        return after

    def weigh(site: Site, weights: torch.Tensor) -> torch.Tensor:
        after, again = chosen.pop(site.layer)
        mask = gone[site.layer].to(weights.device)
        if semantics == "mask_reselect":
            fresh = again.any(-1, keepdim=True)
            return torch.where(fresh, again.to(weights.dtype), weights)
        left = weights.masked_fill(mask[after], 0.0)
        if semantics == "zero":
            return left
        sums = left.sum(-1, keepdim=True)
        return torch.where(sums > 0, left * (weights.sum(-1, keepdim=True) / sums), left).to(weights.dtype)

    def replace(site: Site, tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        return choose_again(site, tensor) if site.role == INDEX else weigh(site, tensor)

    changed = [site for layer in gone for site in (by_layer[layer].index, by_layer[layer].weights)]
    with (
        attach(subject.model, [by_layer[layer].logits for layer in gone], read),
        edit(subject.model, changed, replace),
    ):
        yield


def _masks(
    by_layer: Mapping[int, Router], removed: Mapping[int, Sequence[int]], semantics: str
) -> dict[int, torch.Tensor]:
    """Which experts go, bool [E] by layer, checked."""
    where = "without_experts"
    if semantics not in SEMANTICS:
        raise SpecError("unknown semantics", where=where, allowed=sorted(SEMANTICS), got=repr(semantics))
    masks: dict[int, torch.Tensor] = {}
    for layer, experts in removed.items():
        router = by_layer.get(layer)
        if router is None:
            raise SpecError(
                "no mixture here",
                where=f"{where}, layer {layer}",
                allowed=[str(number) for number in sorted(by_layer)],
            )
        wrong = [expert for expert in experts if not 0 <= expert < router.experts]
        if wrong:
            raise SpecError(
                "there is no such expert",
                where=f"{where}, layer {layer}",
                allowed=f"0 to {router.experts - 1}",
                got=wrong,
            )
        if not len(experts):
            continue
        mask = torch.zeros(router.experts, dtype=torch.bool)
        mask[list(experts)] = True
        if bool(mask.all()):
            raise SpecError(
                "no expert would be left",
                where=f"{where}, layer {layer}",
                allowed=f"at most {router.experts - 1} experts",
                got=f"all {router.experts}",
            )
        masks[layer] = mask
    return masks

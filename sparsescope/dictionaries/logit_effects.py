"""What the direction of a feature does to the logits if nothing after its layer reacts to it ("logit lens").

The direction is taken to the residual stream by the matrix that its site is multiplied with, through the gain
of the final norm, and times the unembedding; its mean over the vocabulary, which changes no probability, is
taken out. The length that the norm divides by is left out, so values are comparable between features of one
dictionary and say nothing in nats (logit lens of decoder directions as in sae_vis and Neuronpedia).

Shapes: directions [feature, width of the site]; W_U [token, model].
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

BINS = 40
_AT_ONCE = 64
# What is added to the residual stream as it is, and what a matrix makes of it.
_RESIDUAL = ("hook_in", "hook_out", "attn.hook_out", "mlp.hook_out")
_MATRIX = {"mlp.hook_post": "mlp.out.weight", "attn.hook_z": "attn.out.weight"}


@dataclass(frozen=True, slots=True)
class LogitEffects:
    """Effects of each feature.

    Attributes:
        raised: int32 [feature, top], tokens of the largest effects, largest first.
        raised_by: float32 [feature, top].
        lowered: int32 [feature, top], tokens of the smallest effects, smallest first.
        lowered_by: float32 [feature, top].
        spread: float32 [feature], standard deviation over the vocabulary.
        kurtosis: float32 [feature], excess kurtosis: large where few tokens stand out.
        histogram: int32 [feature, BINS], tokens between the smallest effect and the largest, in bins of equal
            width.
    """

    raised: NDArray[np.int32]
    raised_by: NDArray[np.float32]
    lowered: NDArray[np.int32]
    lowered_by: NDArray[np.float32]
    spread: NDArray[np.float32]
    kurtosis: NDArray[np.float32]
    histogram: NDArray[np.int32]


def why_no_logits(subject: Subject, site: Site) -> str:
    """The reason why directions of a site have no effect on logits that can be told, or an empty string."""
    if "logits" not in subject.capabilities:
        return "this model gives no logits"
    if "causal" not in subject.capabilities:  # masked language models transform before their output head
        return "this model is no causal language model"
    if site.role not in _RESIDUAL and site.role not in _MATRIX:
        return f"what is at {site.name} reaches the residual stream through a nonlinearity"
    if site.role in _RESIDUAL and site.width != subject.d_model:
        return f"{site.name} has another width than the residual stream"
    head = subject.model.get_output_embeddings()
    if getattr(head, "weight", None) is None or head.weight.shape[-1] != subject.d_model:
        return "the output head does not read the residual stream"
    return ""


@torch.no_grad()
def residual_directions(subject: Subject, directions: torch.Tensor, site: Site) -> torch.Tensor:
    """Directions of a site as what they add to the residual stream, float32 [feature, model].

    Args:
        subject: The model.
        directions: [feature, width].
        site: Where they are; ``why_no_logits`` is empty for it, logits aside.

    Raises:
        SubjectError: The model has no such matrix.
    """
    rows = directions.float().to(subject.device)
    if site.role in _RESIDUAL:
        return rows
    weight = subject.parameter(f"weight:blocks.{site.layer}.{_MATRIX[site.role]}")
    return rows.to(weight.device) @ weight.float().T


@torch.no_grad()
def logit_effects(subject: Subject, directions: torch.Tensor, site: Site, *, top: int = 10) -> LogitEffects:
    """Effects of directions on the logits.

    Args:
        subject: The model.
        directions: [feature, width of the site].
        site: Where they are; ``why_no_logits`` is empty for it.
        top: Tokens of each sign.
    """
    head = subject.model.get_output_embeddings().weight
    gain, centred = final_norm(subject)
    rows = residual_directions(subject, directions, site)
    if centred:
        rows = rows - rows.mean(1, keepdim=True)
    rows = rows * gain
    unembedding = head.float().T
    parts: list[tuple[torch.Tensor, ...]] = []
    top = min(top, head.shape[0])
    for some in rows.split(_AT_ONCE):
        effects = some @ unembedding
        effects -= effects.mean(1, keepdim=True)
        high, raised = effects.topk(top, dim=1)
        low, lowered = effects.topk(top, dim=1, largest=False)
        spread = effects.std(1, correction=0)
        kurtosis = (effects / spread[:, None].clamp(min=1e-20)).pow(4).mean(1) - 3
        parts.append(
            (raised.int(), high, lowered.int(), low, spread, kurtosis, _histogram(effects, low, high))
        )
    return LogitEffects(*(torch.cat(found).cpu().numpy() for found in zip(*parts, strict=True)))


def _histogram(effects: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Tokens by effect, int32 [feature, BINS], from the smallest effect of each feature to its largest."""
    begin, end = low[:, :1], high[:, :1]
    places = ((effects - begin) / (end - begin).clamp(min=1e-20) * BINS).long().clamp(0, BINS - 1)
    counts = torch.zeros(len(effects), BINS, dtype=torch.int32, device=effects.device)
    return counts.scatter_add_(1, places, torch.ones_like(places, dtype=torch.int32))


def final_norm(subject: Subject) -> tuple[torch.Tensor, bool]:
    """What the last norm of a model multiplies each entry with, and whether it takes the mean out.

    It is asked with rows of +-1, whose length and mean are known, so that norms that store 1 + gain need no
    case of their own. A model without a last norm, or with one that has no parameters, multiplies with 1.

    Returns:
        float32 [model], and a bool.
    """
    norm = _last_norm(subject)
    head = subject.model.get_output_embeddings().weight
    width = subject.d_model
    ones = torch.ones(width, device=head.device)
    if norm is None:
        return ones, False
    signs = ones.clone()
    signs[1::2] = -1
    with torch.inference_mode():
        asked = torch.stack([signs, -signs, signs + 1]).to(subject.torch_dtype)
        plus, minus, shifted = norm(asked).float()
    gain = (plus - minus) / 2 * signs
    scale = float(gain.abs().mean().clamp(min=1e-20))
    centred = width % 2 == 0 and bool((shifted - plus).abs().max() <= 1e-2 * scale)
    return gain.clone(), centred


def _last_norm(subject: Subject) -> Any:
    """The module that has one weight for each entry of the residual stream and runs after the last block,
    found by running the model: some declare it before their blocks.
    """
    width, paths = subject.d_model, [block.path for block in subject.blocks]
    ran: list[Any] = []
    with ExitStack() as hooks:
        for name, module in subject.model.named_modules():
            last = name == paths[-1]
            inside = any(name == path or name.startswith(f"{path}.") for path in paths)
            shapes = [tuple(parameter.shape) for parameter in module.parameters(recurse=False)]
            norm = not inside and shapes and all(shape == (width,) for shape in shapes)
            if last or norm:
                found = None if last else module
                handle = module.register_forward_hook(lambda *_, found=found: ran.append(found))
                hooks.callback(handle.remove)
        subject.forward(subject.sample_ids(1))
    after = ran[len(ran) - ran[::-1].index(None) :] if None in ran else []
    return after[-1] if after else None

"""Components as directions in the residual stream, and the tokens that these raise.

A component z writes r = z W_out; norm and unembedding turn it into logits. The norm may have a bias and
divides by a length, so the logits of -r are computed and not negated. A direction alone says what a feature
adds where nothing else is there: read it as a label of late layers.
Shapes: components [k, d]; W_out [d, model]; W_U [model, token].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sparsescope.errors import SpecError

_COMPONENTS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class VocabularyProjection:
    """Tokens of each component.

    Attributes:
        directions: r, [k, model].
        raised: int64 [k, top], tokens of highest logit of +r, best first.
        raised_logits: [k, top].
        lowered: int64 [k, top], tokens of highest logit of -r.
        lowered_logits: [k, top], the logits of -r.
    """

    directions: torch.Tensor
    raised: torch.Tensor
    raised_logits: torch.Tensor
    lowered: torch.Tensor
    lowered_logits: torch.Tensor


def project_vocab(
    components: np.ndarray | torch.Tensor,
    w_out: torch.Tensor,
    unembedding: torch.Tensor,
    *,
    norm: Callable[[torch.Tensor], torch.Tensor] | None = None,
    top: int = 25,
) -> VocabularyProjection:
    """Return the tokens that components and their negatives raise most.

    Args:
        components: [k, d].
        w_out: [d, model], as rows are multiplied: r = z W_out.
        unembedding: [model, token].
        norm: The final norm of the model, from [row, model] to [row, model]; None for none.
        top: Tokens of each sign, at most as many as there are.

    Raises:
        SpecError: Widths do not fit, or ``top`` is below 1.
    """
    rows = torch.as_tensor(components).to(w_out.device, w_out.dtype)
    if rows.dim() != 2 or rows.shape[1] != w_out.shape[0] or w_out.shape[1] != unembedding.shape[0]:
        raise SpecError(
            "widths do not fit",
            where="project_vocab",
            allowed="components [k, d], w_out [d, model], unembedding [model, token]",
            got=f"{list(rows.shape)}, {list(w_out.shape)}, {list(unembedding.shape)}",
            next_step="a weight of nn.Linear is stored as [out, in]: give its transpose",
        )
    if top < 1:
        raise SpecError("at least one token is wanted", where="top", allowed="1 or more", got=top)
    top = min(top, unembedding.shape[1])
    found = []
    with torch.no_grad():
        directions = rows @ w_out
        for some in directions.split(_COMPONENTS_AT_ONCE):
            sides = [(norm(side) if norm else side) @ unembedding for side in (some, -some)]
            found.append([part for side in sides for part in side.topk(top, dim=1)])
    values = [torch.cat(parts) for parts in zip(*found, strict=True)]
    return VocabularyProjection(directions, values[1], values[0], values[3], values[2])

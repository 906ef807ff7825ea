"""SparseGPT: weights go one column after the other, and those to the right make up for it.

The optimal brain surgeon for each row with one Hessian for all: H = X X^T / T + damping. U is the upper
Cholesky factor of H^-1, so that U_jj^2 is the first diagonal element of the inverse of what is left of H from
column j on. In blocks of 128 columns the scores w_ij^2 / U_jj^2 are compared over the whole block (an N:M
pattern chooses within its groups when the sweep reaches them); then each column passes its error on to the
columns to its right.
Shapes: W [r, c], H [c, c], X [c, T].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsescope.errors import SpecError, SubjectError
from sparsescope.pruning.criteria import Criterion, Solved
from sparsescope.pruning.patterns import NM, Pattern

if TYPE_CHECKING:
    import torch

    from sparsescope.pruning.inputs import InputStatistics

BLOCK = 128
DAMPING = 0.01
MOST_DAMPING = 10.0


def score(weight: torch.Tensor, inputs: InputStatistics | None, generator: torch.Generator) -> torch.Tensor:
    """Return the saliency of each weight by itself, W_ij^2 / [H^-1]_jj, [out, in]: it orders weights of
    different matrices for a global allocation; ``solve`` chooses within the matrix.
    """
    if inputs is None or inputs.gram is None:
        return weight.square()
    import torch

    upper, _, _ = inverse_factor(inputs.gram / inputs.tokens, "a matrix")
    inverse = torch.linalg.vector_norm(upper, dim=0).square()  # the diagonal of U^T U
    return weight.square() / inverse.to(weight.device, weight.dtype)


def inverse_factor(hessian: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return U with H^-1 = U^T U, upper triangular, which inputs are dead, and the damping that it took.

    Dead inputs (zero on every token) get a diagonal of one. The damping is a share of the mean diagonal: .01
    as published, and ten times as much as often as the factorization fails, up to 10.

    Args:
        hessian: float64 [c, c], X X^T / T.
        name: Of the matrix, for the message.

    Raises:
        SubjectError: The factorization fails with the most damping too: there are numbers that are not
            finite, or of sizes that float64 cannot hold together.
    """
    import torch

    dead = hessian.diagonal() == 0  # a negative one is no sum of squares: the factorization fails
    base = hessian.double().clone()
    base.diagonal()[dead] = 1.0
    mean = float(base.diagonal().mean())
    damping = DAMPING
    while damping <= MOST_DAMPING * 1.001:
        damped = base.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed) and bool(torch.isfinite(lower).all()):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and bool(torch.isfinite(upper).all()):
                return upper, dead, damping
        damping *= 10
    diagonal = hessian.diagonal()
    raise SubjectError(
        "the Hessian of a matrix cannot be inverted, so that SparseGPT has no solution",
        where=name,
        allowed=f"a factorization with damping up to {MOST_DAMPING:g} times the mean diagonal",
        got=f"diagonal from {float(diagonal.min()):.3g} to {float(diagonal.max()):.3g}",
        next_step="check the weights before it, calibrate on more tokens, or use wanda",
    )


def solve(
    weight: torch.Tensor,
    inputs: InputStatistics,
    count: int,
    pattern: Pattern | None,
    name: str = "a matrix",
) -> Solved:
    """Choose the mask and change the weights that stay.

    Args:
        weight: [r, c], float32 or float64, which is the precision of the sweep; it is not changed.
        inputs: With the Gram matrix of what it reads.
        count: Weights that go, spread evenly over blocks of 128 columns.
        pattern: None or N:M.
        name: Of the matrix, for messages.

    Returns:
        Mask, weights and the damping.

    Raises:
        SpecError: The pattern is another one.
        SubjectError: The Hessian cannot be inverted.
    """
    import torch

    from sparsescope.pruning.selection import smallest

    if pattern is not None and not isinstance(pattern, NM):
        raise SpecError(
            "SparseGPT prunes single weights or N:M groups",
            where="pattern",
            allowed="none or KEEP:GROUP",
            got=pattern.text,
            next_step="use wanda for whole rows and blocks",
        )
    if inputs.gram is None:
        raise SpecError("SparseGPT needs the Gram matrix of the inputs", where=name)
    upper, dead, damping = inverse_factor(inputs.gram / inputs.tokens, name)
    upper = upper.to(weight.device, weight.dtype)
    rows, columns = weight.shape
    left = weight.clone()
    left[:, dead.to(weight.device)] = 0
    keep = torch.ones_like(left, dtype=torch.bool)
    done = 0
    # No group of a pattern ends in another block
    width = BLOCK if pattern is None else max(pattern.group, BLOCK // pattern.group * pattern.group)
    for begin in range(0, columns, width):
        end = min(begin + width, columns)
        # Contiguous columns: rows of the transposed block
        part = left[:, begin:end].T.contiguous()
        factor = upper[begin:end, begin:end].contiguous()
        gone = torch.zeros_like(part, dtype=torch.bool)
        if pattern is None:
            until = -(-count * end // columns) if end < columns else count
            scores = part.square() / factor.diagonal()[:, None].square()
            gone = smallest(scores.T.reshape(1, -1), until - done).reshape(rows, -1).T.contiguous()
            done = until
        errors = torch.empty_like(part)
        for j in range(end - begin):
            if pattern is not None and (begin + j) % pattern.group == 0:
                stop = j + pattern.group
                scores = part[j:stop].square() / factor.diagonal()[j:stop, None].square()
                gone[j:stop] = smallest(scores.T, pattern.group - pattern.keep).T
            error = torch.where(gone[j], part[j], 0) / factor[j, j]
            errors[j] = error
            part[j:].addr_(factor[j, j:], error, alpha=-1)
            part[j][gone[j]] = 0
        left[:, begin:end] = part.T
        keep[:, begin:end] = ~gone.T
        if end < columns:
            left[:, end:].addmm_(errors.T, upper[begin:end, end:], alpha=-1)
    left *= keep
    return Solved(keep, left, damping)


def reconstruction_error(weight: torch.Tensor, changed: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """||(W' - W) X||^2 of each row, float64 [r].

    Args:
        weight: [r, c].
        changed: [r, c].
        gram: float64 [c, c], X X^T.
    """
    difference = (changed - weight).double()
    return ((difference @ gram) * difference).sum(1)


def least_squares_floor(weight: torch.Tensor, keep: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The least ||(W' - W) X||^2 of each row that any weights with this mask reach, float64 [r].

    The rest of each row is fitted exactly: with P the pruned and K the kept inputs it is
    w_P (G_PP - G_PK G_KK^-1 G_KP) w_P. Where G_KK is singular its pseudo-inverse is taken.

    Args:
        weight: [r, c].
        keep: bool [r, c].
        gram: float64 [c, c], X X^T without damping.
    """
    import torch

    found = []
    for row, mask in zip(weight.double(), keep, strict=True):
        gone = row * ~mask
        target = gram @ gone
        if not mask.any():
            found.append(gone @ target)
            continue
        kept = gram[mask][:, mask]
        factor, failed = torch.linalg.cholesky_ex(kept)
        side = target[mask]
        if int(failed):
            fitted = torch.linalg.pinv(kept, hermitian=True) @ side
        else:
            fitted = torch.cholesky_solve(side[:, None], factor)[:, 0]
        found.append((gone @ target - side @ fitted).clamp(min=0))
    return torch.stack(found)


CRITERION = Criterion(
    name="sparsegpt",
    title="SparseGPT",
    summary="Columns are pruned from left to right; the weights that stay make up for the error.",
    equation="S_ij = W_ij^2 / U_jj^2 with H^-1 = U^T U, H = X X^T / T + .01 mean(diag) I; "
    "W_i,j: -= (W_ij / U_jj) U_j,j: for each that goes",
    source="Frantar & Alistarh, arXiv:2301.00774, algorithm 1",
    score=score,
    reads="gram",
    solve=solve,
)

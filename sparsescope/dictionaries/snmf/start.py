"""Where a factorization starts: non-negative codes, from which the first dictionary follows by least squares.

- ``nndsvd``: singular triplets u s v; since the dictionary is signed, each triplet gives the half of +-u that
  has more mass (Boutsidis & Gallopoulos 2008 split both factors). The other halves follow when triplets
  run out, then halves of random projections.
- ``kmeans``: k-means++ seeds on rows of unit norm, some Lloyd iterations, and for codes the cosine with the
own
  center, next to a small constant.
- ``random``: uniform codes, as published.
Shapes: n rows, d neurons, k components; codes [n, k].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsescope.dictionaries.snmf.rows import DENSE_BLOCK, Array, Rows

#: Codes of zero would stay zero under multiplicative updates; relative to the mean code of the component.
SMALLEST = 1e-6
_LLOYD = 15
_POWER = 4
_EXACT_WIDTH = 256


def start_codes(rows: Rows, components: int, kind: str, random: np.random.RandomState) -> np.ndarray:
    """Codes to start from, in the type of the rows, [n, k].

    Args:
        rows: What is factored.
        components: k.
        kind: ``"nndsvd"``, ``"kmeans"`` or ``"random"``.
        random: Source of all that is drawn.
    """
    make = {"nndsvd": _nndsvd, "kmeans": _kmeans, "random": _random}[kind]
    return make(rows, components, random).astype(rows.x.dtype)


def _random(rows: Rows, components: int, random: np.random.RandomState) -> Array:
    return np.maximum(random.uniform(size=(len(rows), components)), SMALLEST)


def _nndsvd(rows: Rows, components: int, random: np.random.RandomState) -> Array:
    left, values = _singular(rows, min(components, *rows.x.shape), random)
    # Directions of a singular value that is rounding are not codes of anything
    usable = values > values.max(initial=0) * 1e-6
    left, values = left[:, usable], values[usable]
    weight = rows.row_weights
    first, other = _halves(left, weight)
    codes = np.concatenate([first, other[:, other.any(0)]], axis=1)[:, :components]
    if (missing := components - codes.shape[1]) > 0:
        # Halves of random projections: what a row gets depends on its entries, not on its place
        image = rows.right(random.standard_normal((rows.x.shape[1], missing)))
        codes = np.concatenate([codes, _halves(image, weight)[0]], axis=1)
    return np.maximum(codes, SMALLEST * (weight @ codes) / weight.sum())


def _halves(values: Array, weight: Array) -> tuple[Array, Array]:
    """The heavier one of positive part and negated negative part of each column, and the lighter one."""
    upper, lower = np.maximum(values, 0), np.maximum(-values, 0)
    positive = weight @ upper**2 >= weight @ lower**2
    return np.where(positive, upper, lower), np.where(positive, lower, upper)


def _singular(rows: Rows, rank: int, random: np.random.RandomState) -> tuple[Array, Array]:
    """Left singular vectors [n, rank] and values of w^(1/2) X, without the weights on the vectors.

    Exact for narrow rows; else by subspace iteration with a random start (Halko, Martinsson & Tropp 2011).
    """
    neurons = rows.x.shape[1]
    if neurons <= max(_EXACT_WIDTH, 2 * rank):
        basis = np.eye(neurons)
    else:
        basis = random.standard_normal((neurons, min(neurons, rank + 10)))
        for _ in range(_POWER):
            basis = np.linalg.qr(basis)[0]
            basis = rows.left(rows.right(basis)).T
        basis = np.linalg.qr(basis)[0]
    image = rows.right(basis)
    weight = rows.row_weights
    squares, vectors = np.linalg.eigh((image * weight[:, None]).T @ image)
    order = np.argsort(-squares, kind="stable")[:rank]
    values = np.sqrt(np.maximum(squares[order], 0))
    return image @ vectors[:, order] / np.maximum(values, 1e-300), values


def _kmeans(rows: Rows, components: int, random: np.random.RandomState) -> Array:
    """Assignments to centers on the sphere, as soft one-hot codes."""
    centers = _seeds(rows, components, random)
    norms = _norms(rows)
    inverse = np.divide(1, norms, where=norms > 0, out=np.zeros_like(norms))
    number = np.arange(len(rows))
    for _ in range(_LLOYD):
        cosine = rows.right(centers.T) * inverse[:, None]
        nearest = cosine.argmax(1)
        codes = np.zeros((len(rows), components))
        codes[number, nearest] = inverse
        sums = rows.left(codes)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.divide(sums, length, where=length > 0, out=centers.copy())  # an empty one stays
        if np.allclose(moved, centers, atol=1e-6):
            break
        centers = moved
    soft = np.full((len(rows), components), SMALLEST)
    soft[number, nearest] = np.maximum(cosine[number, nearest], SMALLEST)
    soft *= np.maximum(norms, SMALLEST * norms.max(initial=0))[:, None]
    return np.maximum(soft, np.finfo(np.float32).tiny)


def _seeds(rows: Rows, components: int, random: np.random.RandomState) -> Array:
    """k-means++: seeds are drawn by squared distance from those before (Arthur & Vassilvitskii 2007)."""
    norms = _norms(rows)
    weight = (norms > 0) * rows.row_weights
    distance = np.ones(len(rows))
    centers = np.zeros((components, rows.x.shape[1]))
    for c in range(components):
        chance = np.cumsum(weight * distance)
        if chance[-1] <= 0:  # fewer different rows than components: any direction serves
            centers[c] = random.standard_normal(rows.x.shape[1])
        else:
            chosen = min(int(np.searchsorted(chance, random.uniform() * chance[-1], "right")), len(rows) - 1)
            centers[c] = rows.dense(slice(chosen, chosen + 1))[0]
        centers[c] /= max(np.linalg.norm(centers[c]), 1e-300)
        cosine = rows.right(centers[c][:, None])[:, 0] / np.maximum(norms, 1e-300)
        distance = np.minimum(distance, np.maximum(0, 1 - cosine))
        distance[distance < 1e-9] = 0
    return centers


def _norms(rows: Rows) -> NDArray[np.float64]:
    parts = [np.linalg.norm(rows.dense(part), axis=1) for part in rows.blocks(DENSE_BLOCK)]
    return np.concatenate(parts)

"""The rows that are factored, and every pass over them: codes, sums of products, errors.

Centring and scaling are never applied to the rows: x' = (x - mean) / scale enters through the dictionary and
through sums, so no copy of the activations is made, and none is larger than a block of rows.
Shapes: n rows, d neurons, k components; G codes [n, k]; H components [k, d]; w weights [n].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from sparsescope.kernels.nonnegative_codes import (
    by_chunks,
    coordinate_sweeps,
    nonnegative_least_squares,
    sparse_products,
)

Array = NDArray[np.float64]
#: Rows of one block: sums are taken in the type of the rows within it, in float64 between blocks.
BLOCK, DENSE_BLOCK = 1 << 14, 1 << 11
#: Above this share of non-zero entries a dense product is the quicker one.
DENSE = 0.2
_SMALL_PRODUCT = 1 << 24  # multiplications that take less time than to look for zeros
#: Added to the denominator of the multiplicative rule, as published.
FLOOR = 1e-6
Pool = Executor | None
DType = np.dtype[np.floating]


@dataclass(frozen=True, slots=True)
class Sums:
    """What the dictionary step needs to know of rows and codes.

    Attributes:
        codes: S = G^T w G, float64 [k, k].
        products: B = G^T w X, float64 [k, d].
        total: T = sum of w x^2.
    """

    codes: Array
    products: Array
    total: float

    def loss(self, components: Array) -> float:
        """Squared error |X - G H|^2 = T - 2 <B, H> + <S, H H^T>: no residual is formed."""
        return self.total + self.change(components)

    def change(self, components: Array) -> float:
        """The part of the loss that depends on H."""
        return float((self.codes * gram(components)).sum() - 2 * (self.products * components).sum())

    def faded(self, share: float) -> Sums:
        """The same, weighted by a factor."""
        return Sums(self.codes * share, self.products * share, self.total * share)

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.codes + other.codes, self.products + other.products, self.total + other.total)

    def rescaled(self, norms: Array) -> Sums:
        """Those of the codes G diag(norms), [k]."""
        return Sums(self.codes * norms * norms[:, None], self.products * norms[:, None], self.total)


@dataclass
class Rows:
    """Rows with their weights, and how they are centred and scaled.

    Attributes:
        x: float32 or float64 [n, d], never written to.
        weights: float64 [n], or None for 1.
        mean: float64 [d], taken off; None for 0.
        scale: float64 [d], divided by; None for 1.
    """

    x: np.ndarray
    weights: Array | None = None
    mean: Array | None = None
    scale: Array | None = None
    _tensor: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with warnings.catch_warnings():  # read-only arrays are welcome: nothing writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._tensor = torch.from_numpy(np.asarray(self.x))

    def __len__(self) -> int:
        return len(self.x)

    def blocks(self, size: int = BLOCK) -> Iterator[slice]:
        """Blocks of rows."""
        for begin in range(0, len(self.x), size):
            yield slice(begin, min(begin + size, len(self.x)))

    @property
    def row_weights(self) -> Array:
        """w, [n]: ones where there are none."""
        return np.ones(len(self.x)) if self.weights is None else self.weights

    @property
    def total_weight(self) -> float:
        """Sum of the weights."""
        return float(self.row_weights.sum())

    def dense(self, part: slice) -> Array:
        """Some rows, centred and scaled, float64: small parts only."""
        x = np.array(self.x[part], np.float64)
        if self.mean is not None:
            x -= self.mean
        return x if self.scale is None else x / self.scale

    def right(self, matrix: Array) -> Array:
        """The product x' M of all rows, float64 [n, m], for M [d, m]."""
        scaled = matrix if self.scale is None else matrix / self.scale[:, None]
        shift = None if self.mean is None else self.mean @ scaled
        factor = torch.from_numpy(np.ascontiguousarray(scaled, self.x.dtype))
        out = np.empty((len(self.x), matrix.shape[1]))
        for part in self.blocks():
            out[part] = (self._tensor[part] @ factor).numpy()
            if shift is not None:
                out[part] -= shift
        return out

    def left(self, matrix: np.ndarray) -> Array:
        """M^T w x', float64 [m, d], for M [n, m]."""
        out = np.zeros((matrix.shape[1], self.x.shape[1]))
        sums = np.zeros(matrix.shape[1])
        for part in self.blocks():
            factor = matrix[part] if self.weights is None else matrix[part] * self.weights[part, None]
            # [d, m] and not [m, d]: oneDNN and MKL read the long rows once this way
            ours = torch.from_numpy(np.ascontiguousarray(factor, self.x.dtype))
            out += (self._tensor[part].T @ ours).T.numpy()
            sums += factor.sum(0, dtype=np.float64)
        if self.mean is not None:
            out -= sums[:, None] * self.mean
        return out if self.scale is None else out / self.scale

    def energy(self) -> tuple[float, float]:
        """Sum of w x'^2, and of w (x' - mean of x')^2: what a constant row cannot explain."""
        total, first, weights = 0.0, np.zeros(self.x.shape[1]), self.row_weights
        for part in self.blocks(DENSE_BLOCK):
            x = self.dense(part)
            total += float(weights[part] @ np.einsum("td,td->t", x, x))
            first += weights[part] @ x
        return total, max(0.0, total - float(first @ first) / max(self.total_weight, 1e-300))

    def moments(self) -> tuple[Array, Array]:
        """Weighted mean and standard deviation of each neuron, [d]."""
        first, second = np.zeros(self.x.shape[1]), np.zeros(self.x.shape[1])
        weights = self.row_weights
        for part in self.blocks(DENSE_BLOCK):
            first += weights[part] @ self.dense(part)
        mean = first / self.total_weight
        for part in self.blocks(DENSE_BLOCK):
            second += weights[part] @ (self.dense(part) - mean) ** 2
        return mean, np.sqrt(second / self.total_weight)

    def sums(self, codes: np.ndarray, total: float) -> Sums:
        """S, B and T for codes [n, k]; T is the energy."""
        gram_sum = np.zeros((codes.shape[1],) * 2)
        for part in self.blocks():
            # In float64, which costs little: rounding to float32 can make S indefinite
            g = codes[part].astype(np.float64)
            weighted = g if self.weights is None else g * self.weights[part, None]
            gram_sum += (torch.from_numpy(weighted).T @ torch.from_numpy(g)).numpy()
        return Sums((gram_sum + gram_sum.T) / 2, self.left(codes), total)

    def improve(self, codes: np.ndarray, components: Array, sweeps: int, executor: Pool) -> None:
        """Sweeps of coordinate descent over the codes of all rows, in place and in their type."""
        q = gram(components).astype(codes.dtype)

        def step(part: slice, p: np.ndarray) -> None:
            coordinate_sweeps(p, q, codes[part], sweeps)

        self._products(components, codes.dtype, step, executor)

    def exact(self, components: Array, executor: Pool = None) -> tuple[Array, Array]:
        """Exact non-negative codes of each row, and the squared error of each row.

        Returns:
            G, float64 [n, k]; errors without weights, float64 [n].
        """
        q = gram(components)
        codes = np.zeros((len(self.x), len(components)))
        errors = np.empty(len(self.x))

        def step(part: slice, p: np.ndarray) -> None:
            g = codes[part]
            nonnegative_least_squares(p.copy(), q, g)
            x = self.dense(part)
            squares = np.einsum("td,td->t", x, x)
            errors[part] = squares - np.einsum("tk,tk->t", g, 2 * p - g @ q)
            # Rows that are explained almost wholly: the difference of large numbers is taken entry by entry
            close = np.flatnonzero(errors[part] < 1e-6 * squares)
            errors[part.start + close] = ((x[close] - g[close] @ components) ** 2).sum(1)

        self._products(components, np.dtype(np.float64), step, executor)
        return codes, errors

    def errors(self, codes: np.ndarray, components: Array) -> Array:
        """Squared error of each row for given codes, without weights, float64 [n]; entry by entry."""
        out = np.empty(len(self.x))
        for part in self.blocks(DENSE_BLOCK):
            out[part] = ((self.dense(part) - codes[part].astype(np.float64) @ components) ** 2).sum(1)
        return out

    def multiply(self, codes: np.ndarray, components: Array, steps: int, executor: Pool) -> None:
        """The multiplicative rule of Ding, Li & Jordan (2010) over the codes of all rows, in place."""
        q = gram(components).astype(codes.dtype)
        upper, lower = np.maximum(q, 0), np.maximum(-q, 0)

        def step(part: slice, p: np.ndarray) -> None:
            g = codes[part]
            for _ in range(steps):
                up = np.maximum(p, 0) + g @ lower
                g *= np.sqrt(up / (np.maximum(-p, 0) + g @ upper + FLOOR))

        self._products(components, codes.dtype, step, executor)

    def _products(
        self, components: Array, dtype: DType, work: Callable[[slice, np.ndarray], None], executor: Pool
    ) -> None:
        """Call ``work(rows, P)`` with P = x' H^T of each chunk of rows, [row, k], which it may overwrite."""
        scaled = components if self.scale is None else components / self.scale
        shift = None if self.mean is None else (scaled @ self.mean).astype(dtype)
        many = np.count_nonzero(scaled) > DENSE * scaled.size
        sparse = None if many else scipy.sparse.csr_array(scaled.astype(dtype))
        factor = torch.from_numpy(np.ascontiguousarray(scaled.T, dtype))
        for block in self.blocks(DENSE_BLOCK if many else BLOCK):
            whole = (self._tensor[block].to(factor.dtype) @ factor).numpy() if many else None
            start = block.start

            def chunk(begin: int, end: int, whole: np.ndarray | None = whole, start: int = start) -> None:
                part = slice(start + begin, start + end)
                if whole is None:
                    x = self.x[part]
                    # A kernel is compiled for arrays that can be written; a few rows are quickly copied
                    x = x if x.flags.writeable and x.flags.c_contiguous else np.array(x, order="C")
                    p = np.empty((end - begin, len(components)), dtype)
                    sparse_products(x, sparse, p)
                else:
                    p = whole[begin:end]
                if shift is not None:
                    p -= shift
                work(part, p)

            by_chunks(block.stop - start, chunk, executor)


def worth_sparse(components: Array) -> bool:
    """Whether products with H are quicker by way of its non-zero entries."""
    small = len(components) * components.size <= _SMALL_PRODUCT
    return not small and bool(np.count_nonzero(components) <= DENSE * components.size)


def gram(components: Array) -> Array:
    """H H^T, by way of the non-zero entries where there are few."""
    if not worth_sparse(components):
        return components @ components.T
    sparse = scipy.sparse.csr_array(components)
    return (sparse @ sparse.T).toarray()


@contextmanager
def threads() -> Iterator[Executor | None]:
    """As many threads as torch uses; None for one."""
    count = torch.get_num_threads()
    if count == 1:
        yield None
        return
    with ThreadPoolExecutor(count) as executor:
        yield executor

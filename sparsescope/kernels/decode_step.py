"""One decoded token of a Llama-like model, from the embedding to the logits, without returning to Python.

Norms, products, rotary positions, attention over the cache and the output head run in one compiled call
(``decode_step_compiled.py``), so that what is left outside the matrices is small, and dense and sparse steps
are the same code. The arrays belong to the caller; nothing is copied.

Shapes: L layers; d width; K inputs and P padded outputs of a group of matrices; S longest sequence; h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.errors import SpecError
from sparsescope.kernels.sparse_gemv import threads, words
from sparsescope.kernels.weight_rows import BYTES, WeightRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUPS = ("attn.in", "attn.out", "mlp.in", "mlp.out")


@dataclass(frozen=True, slots=True, eq=False)
class StackedRows:
    """One group of matrices that read one input, of all layers.

    Attributes:
        layers: Its weights by channel, layer by layer: views of one tensor.
        data: [L, K, P].
        scale: Of int8, float32 [L, N]; [L, 0] otherwise.
        bias: Of dense and of sparse positions, float32 [2, L, N], or [2, L, 0].
        limits: float32 [L, parts, K], one for each matrix.
        centres: float32 [L, parts, K], what inputs of sparse positions are taken relative to.
        joint: Whether all matrices have the same mask.
    """

    layers: tuple[WeightRows, ...]
    data: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    limits: torch.Tensor
    centres: torch.Tensor
    joint: bool

    def __post_init__(self) -> None:
        entries = 4 // BYTES[self.layers[0].stored]
        if not self.joint and any(outputs % entries for outputs in self.layers[0].outputs):
            raise SpecError(
                "matrices with masks of their own begin inside of a word",
                where="stored weights",
                allowed=f"outputs that are multiples of {entries}, or one mask for all of them",
                got=list(self.layers[0].outputs),
                next_step="store them as float32",
            )

    def arrays(self) -> tuple[Any, ...]:
        """What the compiled step takes: words [L, K, P / entries], scales, biases, joint, offsets."""
        shape = (len(self.layers), len(self.layers[0].data), -1)
        flat = WeightRows(
            self.data.flatten(0, 1),
            self.layers[0].stored,
            self.layers[0].width,
            "channel",
            self.layers[0].outputs,
        )
        offsets = np.cumsum([0, *self.layers[0].outputs]).astype(np.int64)
        return (
            words(flat).reshape(shape),
            self.scale.numpy(),
            self.bias.numpy(),
            self.joint,
            offsets,
        )


@dataclass(eq=False)
class DecodeStep:
    """The compiled step over given arrays.

    Attributes:
        norms: float32 [L, 2, d]: before attention, before the MLP.
        groups: What q, k and v read; what o reads; gate and up; down.
        final_norm: float32 [d].
        head: By output.
        cosines: float32 [S, size / 2], and ``sines``: of the rotary positions.
        keys: float32 [L, kv heads, S, size], and ``values``.
        heads: h, a multiple of the heads of keys.
        epsilon: Of the norms.
        kept: int64 [L, 4, 3], kept inputs of each matrix over all steps since it was cleared.
    """

    norms: torch.Tensor
    groups: Sequence[StackedRows]
    final_norm: torch.Tensor
    head: WeightRows
    cosines: torch.Tensor
    sines: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    heads: int
    epsilon: float
    kept: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        kv_heads, longest, size = self.keys.shape[1:]
        d = self.norms.shape[2]
        widest = max(group.data.shape[1] for group in self.groups)
        most = max(group.data.shape[2] for group in self.groups)
        hidden = self.groups[3].data.shape[1]
        self._threads = threads()
        self.kept = np.zeros((len(self.norms), 4, 3), np.int64)
        floats = np.float32
        self._layers: tuple[Any, ...] = (self.norms.numpy(), *(group.arrays() for group in self.groups))
        self._masks = tuple((group.limits.numpy(), group.centres.numpy()) for group in self.groups)
        self._sizes = (self.heads, kv_heads, size, self._threads, floats(self.epsilon))
        self._cache = (self.keys.numpy(), self.values.numpy(), self.cosines.numpy(), self.sines.numpy())
        scale = np.empty(0, floats) if self.head.scale is None else self.head.scale.numpy()
        self._head = (words(self.head), scale)
        self._work = (
            np.empty(widest + 1, np.int32),
            np.empty(widest + 1, floats),
            np.empty((self._threads, most), floats),
            np.empty(d, floats),
            np.empty(most, floats),
            np.empty((self.heads, size), floats),
            np.empty(hidden, floats),
            np.empty((self.heads, longest), floats),
            np.arange(len(self.head.data), dtype=np.int32),
            np.empty(self.head.data.shape[1], floats),
        )

    def __call__(self, x: torch.Tensor, position: int, sparse: bool) -> torch.Tensor:
        """Run one token.

        Args:
            x: Its embedding, float32 [d]; overwritten.
            position: Its position; keys and values of earlier ones are in the cache.
            sparse: Whether masks act.

        Returns:
            Logits, float32 [vocabulary].

        Raises:
            SpecError: The position is outside of the cache, or x has another width: compiled loops look at no
                bounds.
        """
        longest = self.keys.shape[2]
        if not 0 <= position < longest or x.shape != self.norms.shape[2:]:
            raise SpecError(
                "the step has no such place",
                where="DecodeStep",
                allowed=f"positions 0 to {longest - 1}, x [{self.norms.shape[2]}]",
                got=f"position {position}, x {list(x.shape)}",
                next_step="make the caches longer, or give the embedding of this model",
            )
        logits = np.empty(len(self.head.data), np.float32)
        _loops().step(
            x.numpy(), position, sparse, self._layers, self._masks, self._sizes, self._cache,
            self.final_norm.numpy(), self._head, self._work, self.kept, logits,
        )  # fmt: skip
        return torch.from_numpy(logits)

    def matrices(self) -> None:
        """Only the products of a dense step with the matrices of the blocks, on what the scratch holds."""
        from sparsescope.kernels.sparse_gemv import loops

        indices, values, partial, *_ = self._work
        indices[:-1] = np.arange(len(indices) - 1)
        values[:] = 1
        for group, arrays in zip(self.groups, self._layers[1:], strict=True):
            data, inputs = arrays[0], group.data.shape[1]
            out = np.empty(group.data.shape[2], np.float32)
            for layer in range(len(data)):
                loops().add_kept_rows(
                    data[layer], indices, values, inputs, 0, data.shape[2], self._threads, partial, out
                )

    def output_head(self) -> None:
        """Only the output head."""
        from sparsescope.kernels.sparse_gemv import loops

        rows, planes = self._work[8], self._work[9]
        out = np.empty(len(rows), np.float32)
        loops().dot_kept_rows(self._head[0], self._work[3], rows, len(rows), self._threads, planes, out)

    def attention(self, length: int) -> None:
        """Only attention over so many tokens in the cache, in every layer."""
        keys, values = self._cache[:2]
        query, groups = self._work[5], self.heads // keys.shape[1]
        out = np.empty_like(query)
        for layer in range(len(keys)):
            _loops().attend(
                query, keys[layer], values[layer], length, groups, self._work[7], self._threads, out
            )


@cache
def _loops() -> Any:
    from sparsescope.kernels import decode_step_compiled

    return decode_step_compiled

"""Weights stored row by row for kernels that read some rows only: by input channel, or by output.

A sparse product y = W (m * x) needs the columns of W that the mask m keeps. Stored by channel, a column is a
row of memory, and what is dropped is not read. Matrices that read one input are stacked: one list of
channels serves all of them. The same copy serves products of many tokens (``product``).

Types: float32; bfloat16; int8 with one scale for each output, q = round(W / scale), scale = max |W| / 127,
stored as q + 128 in a byte. Rows are padded with zeros to a multiple of 16, so that each is aligned.

Shapes: matrices [N, K] = (outputs, inputs); by channel: data [K, P]; by output: data [N, P]; P the padded
length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from sparsescope.core.shown import Shown
from sparsescope.errors import SpecError, unknown_name

Stored = Literal["float32", "bfloat16", "int8"]
STORED: tuple[Stored, ...] = get_args(Stored)
BYTES: dict[Stored, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
ZERO = 128  # the byte that stands for 0
ALIGNED = 16  # entries that a row is padded to, and bytes that it is aligned to
_CHUNK = 1 << 22  # entries that are made float32 at once


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WeightRows(Shown):
    """Matrices stored row by row.

    Attributes:
        data: [rows, P] float32, bfloat16, or uint8 for int8.
        stored: The type.
        width: Entries of a row without the padding.
        by: What a row is: an input ``channel`` of all matrices, or an ``output``.
        outputs: Outputs of each stacked matrix; one number for rows by output.
        scale: Of int8, float32 [outputs]; None otherwise.
    """

    data: torch.Tensor
    stored: Stored
    width: int
    by: Literal["channel", "output"]
    outputs: tuple[int, ...]
    scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.stored not in STORED:
            raise unknown_name("type of weights", self.stored, STORED, next_step="float32 is exact")
        check_rows(self.data, self.stored)

    def _shown(self) -> dict[str, object]:
        return {
            "rows": len(self.data),
            "by": self.by,
            "width": self.width,
            "outputs": self.n_outputs,
            "stored": self.stored,
        }

    @property
    def n_outputs(self) -> int:
        """Outputs of all matrices."""
        return sum(self.outputs)

    @property
    def n_inputs(self) -> int:
        """Inputs of every matrix."""
        return len(self.data) if self.by == "channel" else self.width

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, without padding."""
        return self.width * BYTES[self.stored]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, without padding, and of scales."""
        return len(self.data) * self.row_bytes + (0 if self.scale is None else 4 * len(self.scale))

    def dense(self) -> torch.Tensor:
        """The stored matrix, float32 [outputs, inputs]."""
        values = self._values(0, len(self.data))
        return values.T if self.by == "channel" else values

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Dense product with the stored weights, for tokens read together.

        Args:
            x: float32 [T, K].

        Returns:
            float32 [T, N].
        """
        if self.stored == "float32":
            rows = self.data[:, : self.width]
            return x @ rows if self.by == "channel" else x @ rows.T
        step = max(1, _CHUNK // self.width)
        if self.by == "output":
            parts = [
                x @ self._values(at, min(at + step, len(self.data))).T
                for at in range(0, len(self.data), step)
            ]
            return torch.cat(parts, 1)
        out = x.new_zeros(len(x), self.width)
        for at in range(0, len(self.data), step):
            end = min(at + step, len(self.data))
            out.addmm_(x[:, at:end], self._values(at, end))
        return out

    def _values(self, begin: int, end: int) -> torch.Tensor:
        """Rows as float32, scales applied."""
        values = self.data[begin:end, : self.width].float()
        if self.scale is None:
            return values
        values -= ZERO
        return values * (self.scale if self.by == "channel" else self.scale[begin:end, None])


def rows_by_channel(matrices: Sequence[torch.Tensor], stored: Stored = "float32") -> WeightRows:
    """Store matrices that read one input, channel by channel.

    Args:
        matrices: [N_i, K] each, stacked in this order.
        stored: The type; float32 and bfloat16 weights are stored exactly in their own.

    Raises:
        SpecError: No matrix, different inputs, or an unknown type.
    """
    _check_matrices(matrices)
    stacked = torch.cat([matrix.detach() for matrix in matrices])
    data, scale = _stored(stacked, stored)
    made = torch.zeros(data.shape[1], _padded(len(stacked)), dtype=data.dtype, device=data.device)
    if stored == "int8":
        made += ZERO
    made[:, : len(stacked)] = data.T
    return WeightRows(made, stored, len(stacked), "channel", tuple(len(matrix) for matrix in matrices), scale)


def rows_by_output(matrix: torch.Tensor, stored: Stored = "float32") -> WeightRows:
    """Store a matrix output by output.

    Args:
        matrix: [N, K].
        stored: The type.

    Raises:
        SpecError: It is no matrix, or an unknown type.
    """
    _check_matrices([matrix])
    data, scale = _stored(matrix.detach(), stored)
    rows, width = data.shape
    made = torch.zeros(rows, _padded(width), dtype=data.dtype, device=data.device)
    if stored == "int8":
        made += ZERO
    made[:, :width] = data
    return WeightRows(made, stored, width, "output", (rows,), scale)


def check_rows(data: torch.Tensor, stored: Stored) -> None:
    """Check that kernels can read stored rows.

    Raises:
        SpecError: They are of another type, no matrix, not contiguous, not aligned or not padded.
    """
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}[stored]
    again = "store them again: rows_by_channel(matrices, stored)"
    if data.ndim != 2 or data.dtype != kind:
        raise SpecError(
            "stored weights are of another type",
            where="WeightRows.data",
            allowed=f"{kind} [rows, length]",
            got=f"{data.dtype} {list(data.shape)}",
            next_step=again,
        )
    if not data.is_contiguous():
        raise SpecError(
            "stored weights are not contiguous: a kernel would read other rows than those it is given",
            where="WeightRows.data",
            allowed=f"strides ({data.shape[1]}, 1)",
            got=f"strides {tuple(data.stride())}",
            next_step=again,
        )
    if data.data_ptr() % ALIGNED:
        raise SpecError(
            "stored weights are misaligned",
            where="WeightRows.data",
            allowed=f"an address that is a multiple of {ALIGNED} bytes",
            got=f"{data.data_ptr() % ALIGNED} bytes off",
            next_step=again + "; a view that begins inside of a row is not aligned",
        )
    if data.shape[1] % ALIGNED:
        raise SpecError(
            "rows of stored weights are not padded",
            where="WeightRows.data",
            allowed=f"a multiple of {ALIGNED} entries",
            got=data.shape[1],
            next_step=again,
        )


def _stored(matrix: torch.Tensor, stored: Stored) -> tuple[torch.Tensor, torch.Tensor | None]:
    if stored == "int8":
        values = matrix.float()
        largest = values.abs().amax(1)
        if not bool(largest.isfinite().all()):
            raise SpecError(
                "weights that are not finite have no scale",
                where="int8",
                allowed="finite weights",
                got="NaN or infinity",
                next_step="store them in float32",
            )
        scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        return ((values / scale[:, None]).round() + ZERO).to(torch.uint8), scale
    if stored not in STORED:
        raise unknown_name("type of weights", stored, STORED, next_step="float32 is exact")
    return matrix.to(torch.float32 if stored == "float32" else torch.bfloat16), None


def _check_matrices(matrices: Sequence[torch.Tensor]) -> None:
    widths = {tuple(matrix.shape[1:]) for matrix in matrices}
    if len(widths) != 1 or any(matrix.ndim != 2 for matrix in matrices):
        raise SpecError(
            "matrices that are stacked read one input",
            where="weights",
            allowed="one or more matrices [outputs, inputs] with the same inputs",
            got=[list(matrix.shape) for matrix in matrices],
            next_step="store them apart",
        )


def _padded(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED

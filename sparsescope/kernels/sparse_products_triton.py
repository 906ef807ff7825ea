"""Sparse products on a GPU: launches of the device programs, and the sizes of their blocks.

A product is three or four launches: select, join segments (if there are several), add kept rows, add parts.
Workspaces and grids depend on shapes only, and nothing waits for the device: a CUDA graph may record a call
once another one with the same shapes has compiled the programs.

Block sizes are reasoned, not tuned: not measured on a GPU. A program of one token has 8 KB (int8) or 16 KB of
weights in flight, and there are four for each multiprocessor, where bandwidth times latency is about 20 KB
(H100, H200). Its two warps share each row and load 16 bytes for a thread, so that sums stay in the thread. A
thread has more sums with more tokens and takes fewer rows at once, as many as it holds in registers: a test
compiles that. The interpreter's cost is one of calls, so it gets few and large blocks.

Shapes: x [T, K], T from 1 to 8; weights by channel, N outputs of padded length P; y float32 [T, N].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from sparsescope.errors import KernelError
from sparsescope.kernels import sparse_products_programs as programs
from sparsescope.kernels.backends import interpreted
from sparsescope.kernels.weight_rows import BYTES, Stored, WeightRows

SEGMENT = 256  # inputs that one program selects from
WARPS = 2  # of a program that reads weights
_LOADED = 16  # bytes that a thread loads at once
_ROWS = 16  # rows of a step at most
_HELD = 128  # weights of a step that a thread holds at most
_PER_PROCESSOR = 4  # programs for each multiprocessor
_MOST_PARTS = 64  # what one program adds up, at once
_REDUCED = 64  # columns of a program that adds parts


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sizes of the blocks of a product.

    Attributes:
        rows: Kept rows of a step.
        columns: Entries of a row.
        parts: Parts that the kept rows are split into.
        group: Entries that a thread loads at once.
    """

    rows: int
    columns: int
    parts: int
    group: int


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What is kept, on the device: indices [room], values [T, room], the number in count [1]."""

    indices: torch.Tensor
    values: torch.Tensor
    count: torch.Tensor

    @property
    def room(self) -> int:
        return len(self.indices)


def gemv(values: torch.Tensor, weight: WeightRows, edge: torch.Tensor) -> torch.Tensor:
    """Multiply one token.

    Args:
        values: float32 [K].
        weight: By channel.
        edge: Limits, float32 [K].

    Returns:
        float32 [N].
    """
    return gemm(values[None], weight, edge, "own")[0]


def gemm(values: torch.Tensor, weight: WeightRows, edge: torch.Tensor, rule: str) -> torch.Tensor:
    """Multiply up to eight tokens: each row that one of them keeps is read once.

    Args:
        values: float32 [T, K].
        weight: By channel.
        edge: Limits, float32 [K].
        rule: ``own`` or ``joint``.

    Returns:
        float32 [T, N].
    """
    _check_loaded(weight.data)
    with torch.cuda.device_of(weight.data):
        kept = _select(values.contiguous(), edge.contiguous(), rule == "joint")
        return _add_rows(kept, kept.values, weight, 1)


def block_ffn_tokens(
    x: torch.Tensor, gates: torch.Tensor, up: WeightRows, down: WeightRows, width: int
) -> torch.Tensor:
    """Compute the block feed-forward layer of up to eight tokens.

    Args:
        x: float32 [T, d].
        gates: float32 [T, E].
        up: By output, [E * width, d].
        down: By channel, [E * width, d].
        width: Hidden units of an expert.

    Returns:
        float32 [T, d].
    """
    _check_loaded(up.data)
    tokens, units, device = len(x), len(up.data), x.device
    with torch.cuda.device_of(up.data):
        kept = _select(gates.contiguous(), None, joint=False)  # experts whose weight is not 0 for some token
        hidden = torch.empty(tokens, units, device=device)
        blocks = blocks_of(up.stored, tokens, up.data.shape[1], units, _processors(device))
        steps = -(-units // blocks.rows)
        programs.weigh_kept_rows[(min(steps, _PER_PROCESSOR * (_processors(device) or 1)),)](
            up.data,
            x.contiguous(),
            kept.indices,
            kept.values,
            kept.count,
            up.scale,
            hidden,
            up.width,
            up.data.shape[1],
            kept.room,
            units,
            WIDTH=width,
            TOKENS=tokens,
            BIASED=up.stored == "int8",
            ROWS=blocks.rows,
            COLUMNS=blocks.columns,
            GROUP=blocks.group,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
        return _add_rows(kept, hidden, down, width)


def blocks_of(stored: Stored, tokens: int, padded: int, rows: int, processors: int | None) -> Blocks:
    """Choose block sizes from shapes.

    Args:
        stored: Type of the weights.
        tokens: How many.
        padded: Length of a row.
        rows: Rows, if all are kept.
        processors: Multiprocessors of the GPU; None for the interpreter.
    """
    group = _LOADED // BYTES[stored]
    if processors is None:
        return Blocks(64, min(512, triton.next_power_of_2(padded)), min(3, -(-rows // 64)), group)
    columns = 32 * WARPS * group
    taken = min(_ROWS, _HELD // group, 2 * _HELD // (group * triton.next_power_of_2(tokens)))
    wanted = -(-_PER_PROCESSOR * processors // -(-padded // columns))
    # Two steps for a part at least, where half of the rows are kept
    return Blocks(taken, columns, max(1, min(wanted, _MOST_PARTS, -(-rows // (4 * taken)))), group)


def _select(x: torch.Tensor, limits: torch.Tensor | None, joint: bool) -> _Kept:
    tokens, inputs = x.shape
    segments = -(-inputs // SEGMENT)
    room, slots, device = segments * SEGMENT, triton.next_power_of_2(tokens), x.device
    indices = torch.empty(room, dtype=torch.int32, device=device)
    values = torch.empty(tokens, room, device=device)
    counts = torch.empty(segments, dtype=torch.int32, device=device)
    programs.select_segment[(segments,)](
        x,
        limits,
        indices,
        values,
        counts,
        inputs,
        room,
        TOKENS=tokens,
        SLOTS=slots,
        JOINT=joint,
        SEGMENT=SEGMENT,
        enable_fp_fusion=False,  # a joint score is rounded as that of the other backends
    )
    if segments == 1:
        return _Kept(indices, values, counts)
    joined = _Kept(
        torch.empty(room, dtype=torch.int32, device=device),
        torch.empty(tokens, room, device=device),
        torch.empty(1, dtype=torch.int32, device=device),
    )
    programs.join_segments[(segments,)](
        indices,
        values,
        counts,
        joined.indices,
        joined.values,
        joined.count,
        room,
        TOKENS=tokens,
        SLOTS=slots,
        SEGMENT=SEGMENT,
        SEGMENTS=triton.next_power_of_2(segments),
        enable_fp_fusion=False,
    )
    return joined


def _add_rows(kept: _Kept, values: torch.Tensor, weight: WeightRows, width: int) -> torch.Tensor:
    """Sum kept rows, ``width`` of them for each index, times values [T, room * width or less]."""
    tokens, device = len(values), values.device
    rows, padded = weight.data.shape
    blocks = blocks_of(weight.stored, tokens, padded, rows, _processors(device))
    partials = torch.empty(blocks.parts, tokens, padded, device=device)
    programs.add_kept_rows[(triton.cdiv(padded, blocks.columns), blocks.parts)](
        weight.data,
        kept.indices,
        values,
        kept.count,
        partials,
        padded,
        values.shape[1],
        WIDTH=width,
        TOKENS=tokens,
        BIASED=weight.stored == "int8",
        ROWS=blocks.rows,
        COLUMNS=blocks.columns,
        num_warps=WARPS,
        enable_fp_fusion=True,
    )
    out = torch.empty(tokens, weight.width, device=device)
    columns = _REDUCED if _processors(device) else min(512, triton.next_power_of_2(padded))
    programs.add_parts[(triton.cdiv(weight.width, columns), tokens)](
        partials,
        weight.scale,
        out,
        weight.width,
        padded,
        blocks.parts,
        TOKENS=tokens,
        PARTS=triton.next_power_of_2(blocks.parts),
        COLUMNS=columns,
        enable_fp_fusion=True,
    )
    return out


def _processors(device: torch.device) -> int | None:
    """Multiprocessors of a GPU; None for the interpreter."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _check_loaded(data: torch.Tensor) -> None:
    """Check that the programs were loaded for the device that they are to run on.

    Raises:
        KernelError: TRITON_INTERPRET was set or removed after they were loaded.
    """
    compiled = isinstance(programs.add_parts, triton.JITFunction)
    if data.device.type == "cpu" and compiled:
        raise KernelError(
            "triton's programs were loaded for a GPU, and the weights are on the CPU",
            where="backend",
            allowed="TRITON_INTERPRET=1 before the process starts",
            got="set later" if interpreted() else "not set",
            next_step="start again with TRITON_INTERPRET=1, or name the backend numba",
        )

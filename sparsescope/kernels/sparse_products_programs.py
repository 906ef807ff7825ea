"""The device programs of sparse products (Triton); imported when one is first used.

Selection is segment-wise: each program lists what it keeps of ``SEGMENT`` inputs by a running count, and the
lists are joined in the order of segments. How many are kept stays on the device; grids are of the largest
number, and what has nothing to do writes zeros. Kept rows are split into equal parts of the joined list,
whatever segments they come from, and the sums of the parts are added in a fixed order. There are no atomics:
results are the same from run to run.

Weights become float32 as soon as they are loaded: the interpreter keeps bfloat16 as integers, and computes
with those. Every product is made and summed in float32. Up to eight tokens have a sum each, so that a row is
loaded once for all of them; the compiler removes sums of tokens that are not there.

Both axes of each load and store are masked. Rows are padded (``WeightRows``), so masks along a row are those
of the padded length, which keeps loads wide; what padding gives is not stored in the result.

Shapes: data [rows, P] as stored; x [T, K]; values and gates [T, room]; indices int32 [room]; counts int32
[segments]; count int32 [1]; partials float32 [parts, T, P]; out float32 [T, N].
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
# mypy: disallow-incomplete-defs=False
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def select_segment(
    x,
    limits,
    indices,
    values,
    counts,
    inputs,
    room,
    TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
    JOINT: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """List what one segment of the inputs keeps, from its own first place on; without limits, what is not 0.

    Grid: (segments,).
    """
    segment = tl.program_id(0)
    channel = segment * SEGMENT + tl.arange(0, SEGMENT)
    token = tl.arange(0, SLOTS)
    inside = channel < inputs
    there = (token < TOKENS)[:, None] & inside[None, :]
    entries = tl.load(x + token[:, None] * inputs + channel[None, :], mask=there, other=0.0)
    limit = tl.zeros([SEGMENT], tl.float32)
    if limits is not None:
        limit = tl.load(limits + channel, mask=inside, other=0.0)
    if JOINT:
        energy = tl.sum(entries * entries, 0)
        size = tl.sqrt_rn(tl.div_rn(energy, tl.full([SEGMENT], TOKENS, tl.float32)))
        kept = inside & ~(size <= limit)  # not "size > limit": a NaN is kept
    else:
        own = there & ~(tl.abs(entries) <= limit[None, :])
        entries = tl.where(own, entries, 0.0)
        kept = tl.max(own.to(tl.int32), 0) > 0
    number = kept.to(tl.int32)
    place = segment * SEGMENT + tl.cumsum(number, 0) - number
    tl.store(indices + place, channel, mask=kept)
    tl.store(
        values + token[:, None] * room + place[None, :],
        entries,
        mask=(token < TOKENS)[:, None] & kept[None, :],
    )
    tl.store(counts + segment, tl.sum(number, 0))


@triton.jit
def join_segments(
    local_indices,
    local_values,
    counts,
    indices,
    values,
    count,
    room,
    TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    """Move the list of one segment behind those before it. Grid: (segments,); SEGMENTS is a power of 2."""
    segment = tl.program_id(0)
    each = tl.arange(0, SEGMENTS)
    sizes = tl.load(counts + each, mask=each < tl.num_programs(0), other=0)
    before = tl.sum(tl.where(each < segment, sizes, 0), 0)
    size = tl.sum(tl.where(each == segment, sizes, 0), 0)
    token, entry = tl.arange(0, SLOTS), tl.arange(0, SEGMENT)
    listed = entry < size
    there = (token < TOKENS)[:, None] & listed[None, :]
    start = segment * SEGMENT + entry
    channel = tl.load(local_indices + start, mask=listed, other=0)
    tl.store(indices + before + entry, channel, mask=listed)
    moved = tl.load(local_values + token[:, None] * room + start[None, :], mask=there, other=0.0)
    tl.store(values + token[:, None] * room + (before + entry)[None, :], moved, mask=there)
    tl.store(count, tl.sum(sizes, 0), mask=segment == 0)


@triton.jit
def _steps(kept, part, parts, ROWS: tl.constexpr):
    """First step of a part, and the one after its last: steps of ROWS rows, as many in each part."""
    steps = tl.cdiv(kept, ROWS)
    more = steps % parts
    low = steps // parts * part + tl.minimum(part, more)
    return low, low + steps // parts + (part < more).to(tl.int32)


@triton.jit
def _rows(indices, place, kept, WIDTH: tl.constexpr):
    """Rows of weights at places of the list: WIDTH neighbours for each index."""
    index = tl.load(indices + place // WIDTH, mask=place < kept, other=0)
    return index * WIDTH + place % WIDTH


@triton.jit
def _weights(data, row, columns, there, padded, BIASED: tl.constexpr):
    """Stored rows as float32 [rows, columns], without scales; read once, so they may leave caches first."""
    loaded = tl.load(
        data + row.to(tl.int64)[:, None] * padded + columns[None, :],  # rows * P may pass 2^31
        mask=there[:, None] & (columns < padded)[None, :],
        other=0,
        eviction_policy="evict_first",
    ).to(tl.float32)
    return loaded - 128.0 if BIASED else loaded


@triton.jit
def _add(total, weights, values, place, there):
    value = tl.load(values + place, mask=there, other=0.0)
    return total + tl.sum(weights * value[:, None], 0)


@triton.jit
def _put(total, partials, line, columns, padded):
    tl.store(partials + line.to(tl.int64) * padded + columns, total, mask=columns < padded)


@triton.jit
def add_kept_rows(
    data,
    indices,
    values,
    count,
    partials,
    padded,
    room,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum values[t, r] * data[row r] over one part of the listed rows. Grid: (blocks of columns, parts).

    Where all threads of a program share a row, each has its columns of all rows: no step exchanges anything.
    """
    part = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, ROWS)
    kept = tl.load(count) * WIDTH
    low, high = _steps(kept, part, tl.num_programs(1), ROWS)
    sum0 = tl.zeros([COLUMNS], tl.float32)
    sum1 = tl.zeros([COLUMNS], tl.float32)
    sum2 = tl.zeros([COLUMNS], tl.float32)
    sum3 = tl.zeros([COLUMNS], tl.float32)
    sum4 = tl.zeros([COLUMNS], tl.float32)
    sum5 = tl.zeros([COLUMNS], tl.float32)
    sum6 = tl.zeros([COLUMNS], tl.float32)
    sum7 = tl.zeros([COLUMNS], tl.float32)
    row = _rows(indices, low * ROWS + lane, kept, WIDTH)
    for step in range(low, high):
        place = step * ROWS + lane
        there = place < kept
        weights = _weights(data, row, columns, there, padded, BIASED)
        row = _rows(indices, place + ROWS, kept, WIDTH)  # of the next step: its load waits for no other
        sum0 = _add(sum0, weights, values, place, there)
        if TOKENS > 1:
            sum1 = _add(sum1, weights, values + room, place, there)
        if TOKENS > 2:
            sum2 = _add(sum2, weights, values + 2 * room, place, there)
        if TOKENS > 3:
            sum3 = _add(sum3, weights, values + 3 * room, place, there)
        if TOKENS > 4:
            sum4 = _add(sum4, weights, values + 4 * room, place, there)
        if TOKENS > 5:
            sum5 = _add(sum5, weights, values + 5 * room, place, there)
        if TOKENS > 6:
            sum6 = _add(sum6, weights, values + 6 * room, place, there)
        if TOKENS > 7:
            sum7 = _add(sum7, weights, values + 7 * room, place, there)
    line = part * TOKENS
    _put(sum0, partials, line, columns, padded)
    if TOKENS > 1:
        _put(sum1, partials, line + 1, columns, padded)
    if TOKENS > 2:
        _put(sum2, partials, line + 2, columns, padded)
    if TOKENS > 3:
        _put(sum3, partials, line + 3, columns, padded)
    if TOKENS > 4:
        _put(sum4, partials, line + 4, columns, padded)
    if TOKENS > 5:
        _put(sum5, partials, line + 5, columns, padded)
    if TOKENS > 6:
        _put(sum6, partials, line + 6, columns, padded)
    if TOKENS > 7:
        _put(sum7, partials, line + 7, columns, padded)


@triton.jit
def add_parts(
    partials,
    scale,
    out,
    outputs,
    padded,
    parts,
    TOKENS: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the parts, apply the scales of int8. Grid: (blocks of columns, tokens); PARTS is a power of 2."""
    token = tl.program_id(1)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.arange(0, PARTS)
    inside = columns < outputs
    found = tl.load(
        partials + (part[:, None] * TOKENS + token).to(tl.int64) * padded + columns[None, :],
        mask=(part < parts)[:, None] & (columns < padded)[None, :],
        other=0.0,
    )
    total = tl.sum(found, 0)
    if scale is not None:
        total = total * tl.load(scale + columns, mask=inside, other=0.0)
    tl.store(out + token * outputs + columns, total, mask=inside)


@triton.jit
def _dot(total, weights, x, columns, inputs, GROUP: tl.constexpr):
    """Add products to sums of GROUP neighbours, which one thread has loaded: they need one register."""
    entries = tl.load(x + columns, mask=columns < inputs, other=0.0)
    groups: tl.constexpr = [total.shape[0], total.shape[1], GROUP]
    return total + tl.sum(tl.reshape(weights * entries[None, :], groups), 2)


@triton.jit
def _put_hidden(total, factor, gates, hidden, place, there, WIDTH: tl.constexpr):
    """SiLU of the dot products, by the weight of the expert; 0 where a token does not use it, even of NaN."""
    value = tl.sum(total, 1) * factor
    gate = tl.load(gates + place // WIDTH, mask=there, other=0.0)
    weighed = gate * value / (1.0 + tl.exp(-value))
    tl.store(hidden + place, tl.where(gate != 0.0, weighed, 0.0), mask=there)


@triton.jit
def weigh_kept_rows(
    data,
    x,
    indices,
    gates,
    count,
    scale,
    hidden,
    inputs,
    padded,
    gate_room,
    hidden_room,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """hidden[t, r] = gate * SiLU(data[row r] . x[t]) for one part of the listed rows. Grid: (parts,)."""
    lane = tl.arange(0, ROWS)
    kept = tl.load(count) * WIDTH
    low, high = _steps(kept, tl.program_id(0), tl.num_programs(0), ROWS)
    for step in range(low, high):
        place = step * ROWS + lane
        there = place < kept
        row = _rows(indices, place, kept, WIDTH)
        sum0 = tl.zeros([ROWS, COLUMNS // GROUP], tl.float32)
        sum1 = tl.zeros([ROWS, COLUMNS // GROUP], tl.float32)
        sum2 = tl.zeros([ROWS, COLUMNS // GROUP], tl.float32)
        sum3 = tl.zeros([ROWS, COLUMNS // GROUP], tl.float32)
        sum4 = tl.zeros([ROWS, COLUMNS // GROUP], tl.float32)
        sum5 = tl.zeros([ROWS, COLUMNS // GROUP], tl.float32)
        sum6 = tl.zeros([ROWS, COLUMNS // GROUP], tl.float32)
        sum7 = tl.zeros([ROWS, COLUMNS // GROUP], tl.float32)
        for begin in range(0, padded, COLUMNS):
            columns = begin + tl.arange(0, COLUMNS)
            weights = _weights(data, row, columns, there, padded, BIASED)
            sum0 = _dot(sum0, weights, x, columns, inputs, GROUP)
            if TOKENS > 1:
                sum1 = _dot(sum1, weights, x + inputs, columns, inputs, GROUP)
            if TOKENS > 2:
                sum2 = _dot(sum2, weights, x + 2 * inputs, columns, inputs, GROUP)
            if TOKENS > 3:
                sum3 = _dot(sum3, weights, x + 3 * inputs, columns, inputs, GROUP)
            if TOKENS > 4:
                sum4 = _dot(sum4, weights, x + 4 * inputs, columns, inputs, GROUP)
            if TOKENS > 5:
                sum5 = _dot(sum5, weights, x + 5 * inputs, columns, inputs, GROUP)
            if TOKENS > 6:
                sum6 = _dot(sum6, weights, x + 6 * inputs, columns, inputs, GROUP)
            if TOKENS > 7:
                sum7 = _dot(sum7, weights, x + 7 * inputs, columns, inputs, GROUP)
        factor = tl.full([ROWS], 1.0, tl.float32)
        if scale is not None:
            factor = tl.load(scale + row, mask=there, other=0.0)
        _put_hidden(sum0, factor, gates, hidden, place, there, WIDTH)
        if TOKENS > 1:
            _put_hidden(sum1, factor, gates + gate_room, hidden + hidden_room, place, there, WIDTH)
        if TOKENS > 2:
            _put_hidden(sum2, factor, gates + 2 * gate_room, hidden + 2 * hidden_room, place, there, WIDTH)
        if TOKENS > 3:
            _put_hidden(sum3, factor, gates + 3 * gate_room, hidden + 3 * hidden_room, place, there, WIDTH)
        if TOKENS > 4:
            _put_hidden(sum4, factor, gates + 4 * gate_room, hidden + 4 * hidden_room, place, there, WIDTH)
        if TOKENS > 5:
            _put_hidden(sum5, factor, gates + 5 * gate_room, hidden + 5 * hidden_room, place, there, WIDTH)
        if TOKENS > 6:
            _put_hidden(sum6, factor, gates + 6 * gate_room, hidden + 6 * hidden_room, place, there, WIDTH)
        if TOKENS > 7:
            _put_hidden(sum7, factor, gates + 7 * gate_room, hidden + 7 * hidden_room, place, there, WIDTH)

"""The bodies of the kernels on images; ``jitted.py`` says what a body is and makes the rest of a kernel.

::

    x [n,c,h,w] ── pack ─> room [c][h][w][lanes] ── tiles ─> region [channels][places][lanes] ── unpack ─> y

A convolution takes as many rows of the batch as a vector has lanes side by side, so that every operation is
on whole vectors for any size of image, kernel and stride. Its inner loop is a *tile*: some channels by some
places, whose sums stay in registers. Elements beyond the edges are never read, not even as zeros: a window
at the edge has fewer products. The sum of an output is one chain of multiply-adds, the same in every tile
and for any number of parts.
"""

from __future__ import annotations

from fastae.kernels.jitted_maths import activate, differentiate, pick, plus, root
from fastae.kernels.jitted_products import count_blocks, edge, in_tiles, multiply, multiply_sums
from fastae.kernels.jitted_runtime import (
    OPTIONS,
    apart,
    copy,
    room,
    share,
    vector,
    window,
)
from fastae.kernels.jitted_tiles import (
    CHANNELS,
    FEW,
    PLACES,
    ROW,
    conv_column,
    conv_few,
    conv_few_column,
    conv_one,
    conv_row,
    conv_tile,
    flat,
    grad_column,
    grad_one,
    grad_row,
    grad_tile,
    lane_sum,
    lanes_of,
    numbers_of,
    pack,
    plain,
    stack_of,
    unpack,
)

# isort: split
from numba import njit, types

_REGION = 32  # places of a region: with its channels it fits into the first cache
_TAPS = 9  # elements of a kernel whose gradients are summed at a time
_RUN = 8  # numbers that describe a run of places
_RANGES = 4 + 4 * PLACES  # numbers that describe the windows of a group of elements
_TABLES = 4  # tables of runs, one for each column of a pool's window

_region = stack_of(3 * CHANNELS * _REGION)
_sums = stack_of(_TAPS * CHANNELS * PLACES)
_start = stack_of(1)
_runs = numbers_of(_TABLES * (_REGION * _RUN + 1))
_ranges = numbers_of(_RANGES * _TAPS)


# --- geometry ------------------------------------------------------------------------------------
#
# Along one axis: (elements of the kernel, stride, dilation, padding before, size of what is read).


@njit(**OPTIONS)
def _common(a, b):
    """Greatest common divisor."""
    while b:
        a, b = b, a % b
    return a


@njit(**OPTIONS)
def _reach(place, axis, spread):
    """Say what the sum at a place is over.

    That is: the first element of the kernel, the step to the next, their number, where the first one reads,
    and how far from there the next one does. Where `spread` is set each element that is read has a window on
    what is written, not the other way round.
    """
    kernel, stride, dilation, padding, size = axis
    if not spread:
        source = place * stride - padding
        first = 0 if source >= 0 else (dilation - 1 - source) // dilation
        stop = 0 if source >= size else (size - source + dilation - 1) // dilation
        return first, 1, max(0, min(kernel, stop) - first), source + first * dilation, dilation
    place += padding
    common = _common(stride, dilation)
    step, back = stride // common, dilation // common
    for first in range(min(step, kernel)):
        if (place - first * dilation) % stride == 0:
            source = (place - first * dilation) // stride
            if source >= size:
                beyond = (source - size) // back + 1
                first += beyond * step
                source -= beyond * back
            if source < 0 or first >= kernel:
                break
            return first, step, min((kernel - 1 - first) // step, source // back) + 1, source, -back
    return 0, 1, 0, 0, 0


@njit(**OPTIONS)
def _find_runs(axis, spread, left, columns, times, offset, runs, table):
    """Write runs of places whose windows have the same elements of the kernel inside; return how many.

    The places are (left + t) times + offset for t < columns. A run is: its first t, the step to the next,
    their number, then what `_reach` says of the first.
    """
    kernel, stride, dilation, padding, size = axis
    apart = min(stride, columns) if spread else 1
    count = 0
    for phase in range(apart):
        t = phase
        while t < columns:
            place = (left + t) * times + offset
            first, step, taps, source, move = _reach(place, axis, spread)
            length = 1
            if taps and first < step and first + taps * step >= kernel:  # all that there can be
                if spread:
                    last = (size - 1) * stride + first * dilation - padding
                else:
                    last = (size - 1 + padding - (kernel - 1) * dilation) // stride
                length = (min((last - offset) // times - left, columns - 1) - t) // apart + 1
            at = table + _RUN * count
            runs[at], runs[at + 1], runs[at + 2], runs[at + 3] = t, apart, length, first
            runs[at + 4], runs[at + 5], runs[at + 6], runs[at + 7] = step, taps, source, move
            count += 1
            t += length * apart
    return count


@njit(**OPTIONS)
def _one_window(axis_h, axis_w, height, width):
    """Whether an image of (height, width) has one window, which is all of it."""
    whole = True
    for (kernel, _, dilation, padding, _), size in ((axis_h, height), (axis_w, width)):
        whole &= padding == 0 and kernel == size and (dilation == 1 or kernel == 1)
    return whole


# --- convolution ---------------------------------------------------------------------------------


@njit(**OPTIONS)
def _spread_product(x, w, b, saved, activation, slope, n, channels, outputs, area, y, part, parts):
    """`_convolve` of images of one element to images of one window: y = f(b + x w), or f'(saved) x w."""
    m = outputs * area
    tiled = in_tiles(n, m, channels)
    blocks = count_blocks(tiled, m, n * channels * m, parts)
    for block in range(*share(blocks, part, parts)):
        start, stop = edge(m, block, blocks), edge(m, block + 1, blocks)
        size = stop - start
        rest, to = window(w, start, w.size - start), window(y, start, y.size - start)
        multiply(tiled, n, size, channels, x, rest, to, m)
        for i in range(n):
            row = window(y, i * m + start, size)
            if b.size:
                for o in range(start // area, (stop - 1) // area + 1):
                    for j in range(max(o * area - start, 0), min((o + 1) * area - start, size)):
                        row[j] += b[o]
            activate(row, activation)
            if slope and saved.size:
                differentiate(row, window(saved, i * m + start, size), slope)


@njit(**OPTIONS)
def _tiles(w, w_first, x, x_first, y, y_first, start, high, length, sizes, moves):
    """All places of a run for 1, FEW or CHANNELS channels: tiles side by side, the last of which overlaps."""
    x_step, y_step = moves[7], moves[9]
    wide = ROW if high == 1 else PLACES
    t = 0
    while t < length:
        full = length >= wide
        if full:
            t = min(t, length - wide)
        x_at, y_at = x_first + t * x_step, y_first + t * y_step
        if high == CHANNELS:
            if full:
                conv_tile(w, w_first, x, x_at, y, y_at, start, sizes, moves)
            else:
                conv_column(w, w_first, x, x_at, y, y_at, start, sizes, moves)
        elif high == FEW:
            if full:
                conv_few(w, w_first, x, x_at, y, y_at, start, sizes, moves)
            else:
                conv_few_column(w, w_first, x, x_at, y, y_at, start, sizes, moves)
        elif full:
            conv_row(w, w_first, x, x_at, y, y_at, start, sizes, moves)
        else:
            conv_one(w, w_first, x, x_at, y, y_at, start, sizes, moves)
        t += wide if full else 1


@njit(**OPTIONS)
def _largest(region, size, other, where, k):
    """Keep the larger of region and what lies `other` further, and in what lies at `where` which it was."""
    best, value, position = window(region, 0, size), window(region, other, size), window(region, where, size)
    number = region.dtype.type(k)
    for j in range(size):
        larger = (value[j] > best[j]) | ((value[j] != value[j]) & (best[j] == best[j]))
        best[j] = pick(larger, value[j], best[j])
        position[j] = pick(larger, number, position[j])


def _integers(count):
    return types.UniTuple(types.int64, count)


@apart(
    lambda real: (
        *(vector(real, readonly=True),) * 4,
        *(types.int64, types.int64, _integers(8)),
        *(_integers(2),) * 5,
        types.int64,
        *(vector(real),) * 3,
        *(types.int64, types.int64),
    )
)
@njit(**OPTIONS)
def _convolve(
    x,
    w,
    b,
    saved,
    activation,
    slope,
    shape,
    kernel,
    strides,
    padding,
    dilation,
    pool,
    spread,
    room,
    y,
    position,
    part,
    parts,
):
    """Every sum over windows: y = f(b + sum), or f'(saved) sum, or the largest of each pool of them.

    `shape` is n, groups, then channels of a group, height and width of what is read and of what is written;
    `spread` as in `_reach`, and of w's two numbers of channels the second is then that of what is written.
    """
    lanes = lanes_of(x)
    n, groups, inputs, ih, iw, outputs, oh, ow = shape
    kh, kw = kernel
    axis_h = (kh, strides[0], dilation[0], padding[0], ih)
    axis_w = (kw, strides[1], dilation[1], padding[1], iw)
    if spread and groups == 1 and ih == iw == 1 and _one_window(axis_h, axis_w, oh, ow):
        _spread_product(x, w, b, saved, activation, slope, n, inputs, outputs, oh * ow, y, part, parts)
        return
    blocks, tiles = (n + lanes - 1) // lanes, (outputs + CHANNELS - 1) // CHANNELS
    packed = groups * inputs * ih * iw * lanes
    active = min(parts, blocks * groups * tiles, room.size // packed)
    if part >= active:
        return
    start_unit, stop_unit = share(blocks * groups * tiles, part, active)
    place = part * packed
    w_input, w_output = inputs * kh * kw, outputs * kh * kw
    w_group = outputs * w_input
    w_input, w_output = (w_output, kh * kw) if spread else (kh * kw, w_input)
    x_row, x_step = groups * inputs * ih * iw, lanes * (1 if spread else strides[1] * pool[1])
    y_row, area = groups * outputs * oh * ow, oh * ow
    region, start, runs = _region(x), _start(x), _runs()
    each = CHANNELS * _REGION * lanes
    windows = pool[0] * pool[1]
    unit = start_unit
    while unit < stop_unit:
        block = unit // (groups * tiles)
        end = min(stop_unit, (block + 1) * groups * tiles)
        count = min(lanes, n - block * lanes)
        pack(x, block * lanes * x_row, x_row, count, x_row, room, place)
        for left in range(0, ow, _REGION):
            columns = min(_REGION, ow - left)
            height = _REGION // columns
            for k in range(min(pool[1], _TABLES)):
                table = k * (_REGION * _RUN + 1)
                runs[table] = _find_runs(axis_w, spread, left, columns, pool[1], k, runs, table + 1)
            for tile in range(unit, end):
                group, channel = tile % (groups * tiles) // tiles, tile % tiles * CHANNELS
                channels = min(CHANNELS, outputs - channel)
                whole = channels == CHANNELS
                for top in range(0, oh, height):
                    rows = min(height, oh - top)
                    size = rows * columns
                    moves_y = size * lanes
                    for k in range(windows):
                        at = 0 if k == 0 else each
                        down, right = k // pool[1], k % pool[1]
                        if pool[1] > _TABLES:
                            table = 0
                            runs[0] = _find_runs(
                                axis_w, spread, left, columns, pool[1], right, runs, plain(1)
                            )
                        else:
                            table = right * (_REGION * _RUN + 1)
                        o = 0
                        while o < channels:
                            high = CHANNELS if whole else FEW if channels - o >= FEW else 1
                            first_o = group * outputs + channel + o
                            for i in range(high):
                                start[i] = b[first_o + i] if b.size else 0
                            for row in range(rows):
                                u, u_step, us, i, i_step = _reach(
                                    (top + row) * pool[0] + down, axis_h, spread
                                )
                                for run in range(runs[table]):
                                    r = table + 1 + _RUN * run
                                    v, v_step, vs, j, j_step = (
                                        runs[r + 3],
                                        runs[r + 4],
                                        runs[r + 5],
                                        runs[r + 6],
                                        runs[r + 7],
                                    )
                                    _tiles(
                                        w,
                                        group * w_group + (channel + o) * w_output + u * kw + v,
                                        room,
                                        place + ((group * inputs * ih + i) * iw + j) * lanes,
                                        region,
                                        at + ((o * rows + row) * columns + runs[r]) * lanes,
                                        start,
                                        high,
                                        runs[r + 2],
                                        (inputs, us, vs),
                                        (
                                            w_input,
                                            u_step * kw,
                                            v_step,
                                            ih * iw * lanes,
                                            i_step * iw * lanes,
                                            j_step * lanes,
                                            w_output,
                                            x_step,
                                            moves_y,
                                            runs[r + 1] * lanes,
                                        ),
                                    )
                            o += high
                        if activation:
                            activate(window(region, at, channels * moves_y), activation)
                        if k:
                            _largest(region, channels * moves_y, each, 2 * each, k)
                        elif windows > 1:
                            window(region, 2 * each, channels * moves_y)[:] = 0
                    _deliver(
                        region,
                        plain(0),
                        count,
                        channels,
                        rows,
                        columns,
                        y,
                        block * lanes * y_row + (group * outputs + channel) * area + top * ow + left,
                        y_row,
                        area,
                        ow,
                        saved,
                        slope,
                    )
                    if position.size:
                        if windows == 1:
                            window(region, 2 * each, channels * moves_y)[:] = 0
                        _deliver(
                            region,
                            2 * each,
                            count,
                            channels,
                            rows,
                            columns,
                            position,
                            block * lanes * y_row + (group * outputs + channel) * area + top * ow + left,
                            y_row,
                            area,
                            ow,
                            saved,
                            plain(0),
                        )
        unit = end


@njit(**OPTIONS)
def _deliver(region, place, count, channels, rows, columns, y, first, y_row, area, ow, saved, slope):
    """Channels, rows and columns of a region to where they belong in y, times the slope at `saved`."""
    lanes = lanes_of(region)
    # Of what lies side by side in both as much at once as there is.
    pieces, lines, size = channels, rows, columns
    if columns == ow:
        lines, size = 1, rows * columns
        if size == area:
            pieces, size = 1, channels * size
    for c in range(pieces):
        for line in range(lines):
            at = place + (c * rows + line) * columns * lanes
            to = first + c * area + line * ow
            unpack(region, at, count, size, y, to, y_row)
            if slope and saved.size:
                for i in range(count):
                    differentiate(window(y, to + i * y_row, size), window(saved, to + i * y_row, size), slope)


@njit(**OPTIONS)
def _inside(tap, axis, count):
    """Range of the windows, of `count`, whose element `tap` is inside the image."""
    _, stride, dilation, padding, size = axis
    off = tap * dilation - padding
    start = 0 if off >= 0 else (stride - 1 - off) // stride
    stop = 0 if off >= size else (size - 1 - off) // stride + 1
    return start, min(stop, count)


@njit(**OPTIONS)
def _first_of(step, each, kw, span):
    """First column of the kernel of a group of `span`: the last group of a row overlaps the one before."""
    return min(step % each * span, kw - span)


@njit(**OPTIONS)
def _find_ranges(tap_h, tap_w, span, axis_h, axis_w, oh, ow, ranges, at):
    """Rows of windows, columns where a group of the kernel's elements is inside, and where each alone."""
    ranges[at], ranges[at + 1] = _inside(tap_h, axis_h, oh)
    left, right = 0, ow
    for j in range(span):
        start, stop = _inside(tap_w + j, axis_w, ow)
        left, right = max(left, start), min(right, stop)
    right = max(left, right)
    ranges[at + 2], ranges[at + 3] = left, right
    for j in range(span):
        start, stop = _inside(tap_w + j, axis_w, ow)
        place = at + 4 + 4 * j
        ranges[place], ranges[place + 1] = start, min(left, stop)
        ranges[place + 2], ranges[place + 3] = max(right, start), stop


@njit(**OPTIONS)
def _grad_tiles(p, p_first, q, q_first, sums, at, start, whole, wide, sizes, moves):
    """Add the products of a stretch of places to the sums of an element of the kernel, or of PLACES."""
    if whole and wide:
        grad_tile(p, p_first, q, q_first, sums, at, start, sizes, moves)
    elif whole:
        grad_column(p, p_first, q, q_first, sums, at, start, sizes, moves)
    elif wide:
        grad_row(p, p_first, q, q_first, sums, at, start, sizes, moves)
    else:
        grad_one(p, p_first, q, q_first, sums, at, start, sizes, moves)


@apart(
    lambda real: (
        *(vector(real, readonly=True),) * 2,
        _integers(8),
        *(_integers(2),) * 4,
        *(vector(real),) * 2,
        *(types.int64, types.int64),
    )
)
@njit(**OPTIONS)
def _correlate(a, x, shape, kernel, strides, padding, dilation, room, dw, part, parts):
    """dw[o, c] = sum over all windows of a[o] x[c]; `shape` as in `_convolve`, x read and a written.

    The channels of a tile, p, are of whichever has more; the places of a tile are channels of the other, q,
    or, where those of x are fewer, neighbours in a row of the kernel. With fewer tiles than parts, each part
    has some elements of the kernel.
    """
    lanes = lanes_of(a)
    n, groups, inputs, ih, iw, outputs, oh, ow = shape
    kh, kw = kernel
    axis_h = (kh, strides[0], dilation[0], padding[0], ih)
    axis_w = (kw, strides[1], dilation[1], padding[1], iw)
    if groups == 1 and oh == ow == 1 and _one_window(axis_h, axis_w, ih, iw):
        m = inputs * ih * iw
        tiled = in_tiles(outputs, m, n)
        count = count_blocks(tiled, m, n * outputs * m, parts)
        for block in range(*share(count, part, parts)):
            start, stop = edge(m, block, count), edge(m, block + 1, count)
            rest, to = window(x, start, x.size - start), window(dw, start, dw.size - start)
            multiply_sums(tiled, outputs, stop - start, n, a, outputs, rest, to, m)
        return
    swapped = inputs > outputs
    p_channels, q_channels = (inputs, outputs) if swapped else (outputs, inputs)
    p_area, q_area = (ih * iw, oh * ow) if swapped else (oh * ow, ih * iw)
    p_row, q_row = groups * p_channels * p_area, groups * q_channels * q_area
    blocks, tiles = (n + lanes - 1) // lanes, (p_channels + CHANNELS - 1) // CHANNELS
    along = not swapped and q_channels < PLACES <= kw
    span = PLACES if along else 1
    each = (kw + span - 1) // span
    # Each part has what it needs of p, and all of q for itself.
    sliced = groups * tiles < parts
    most = room.size // (blocks * lanes)
    active = min(parts, kh * each) if sliced else min(parts, groups * tiles)
    while active and (active if sliced else 1) * p_row + active * q_row > most:
        active -= 1
    if part >= active:
        return
    p_place = blocks * lanes * (part * p_row if sliced else 0)
    q_place = blocks * lanes * ((active if sliced else 1) * p_row + part * q_row)
    first_tile, stop_tile = (0, groups * tiles) if sliced else share(groups * tiles, part, active)
    first_step, stop_step = share(kh * each, part, active) if sliced else (0, kh * each)
    q, p = (a, x) if swapped else (x, a)
    for block in range(blocks):
        first, count = block * lanes * q_row, min(lanes, n - block * lanes)
        pack(q, first, q_row, count, q_row, room, q_place + first)
    sums, start, ranges = _sums(a), _start(a), _ranges()
    x_steps, a_steps = (strides[0] * iw * lanes, strides[1] * lanes), (ow * lanes, lanes)
    p_steps, q_steps = (x_steps, a_steps) if swapped else (a_steps, x_steps)
    for tile in range(first_tile, stop_tile):
        group, channel = tile // tiles, tile % tiles * CHANNELS
        channels = min(CHANNELS, p_channels - channel)
        whole = channels == CHANNELS
        height = max(1, _REGION * (1 if whole else CHANNELS) // ow)
        p_channel = group * p_channels + channel
        for block in range(blocks):
            first, count = block * lanes * p_row, min(lanes, n - block * lanes)
            at, size = p_channel * p_area, channels * p_area
            pack(p, first + at, p_row, count, size, room, p_place + first + at * lanes)
        for r in range(1 if whole else channels):
            other = 0
            while other < q_channels:
                wide = q_channels - other >= PLACES
                width = PLACES if wide else 1
                q_channel = group * q_channels + other
                for step in range(first_step, stop_step, _TAPS):
                    taps = min(_TAPS, stop_step - step)
                    for t in range(taps):
                        _find_ranges(
                            (step + t) // each,
                            _first_of(step + t, each, kw, span),
                            span,
                            *(axis_h, axis_w, oh, ow, ranges, _RANGES * t),
                        )
                    sums[:] = 0
                    for block in range(blocks):
                        p_first = p_place + block * lanes * p_row + (p_channel + r) * p_area * lanes
                        q_first = q_place + block * lanes * q_row + q_channel * q_area * lanes
                        for top in range(0, oh, height):
                            for t in range(taps):
                                tap_h, tap_w = (step + t) // each, _first_of(step + t, each, kw, span)
                                up, down = (
                                    max(top, ranges[_RANGES * t]),
                                    min(top + height, ranges[_RANGES * t + 1]),
                                )
                                for piece in range(1 + 2 * PLACES if along else 1):
                                    # all elements of the kernel that stand side by side, then each alone
                                    at = _RANGES * t + 2 + 2 * piece
                                    left, right = ranges[at], ranges[at + 1]
                                    if up >= down or left >= right:
                                        continue
                                    column = (piece - 1) // 2 if piece else 0
                                    i = up * strides[0] + tap_h * dilation[0] - padding[0]
                                    j = left * strides[1] + (tap_w + column) * dilation[1] - padding[1]
                                    x_at, a_at = (i * iw + j) * lanes, (up * ow + left) * lanes
                                    _grad_tiles(
                                        room,
                                        p_first + (x_at if swapped else a_at),
                                        room,
                                        q_first + (a_at if swapped else x_at),
                                        sums,
                                        (t * CHANNELS * PLACES + column) * lanes,
                                        start,
                                        whole,
                                        wide or (along and piece == 0),
                                        (1, down - up, right - left),
                                        (
                                            0,
                                            p_steps[0],
                                            p_steps[1],
                                            0,
                                            q_steps[0],
                                            q_steps[1],
                                            p_area * lanes,
                                            dilation[1] * lanes if along else q_area * lanes,
                                            PLACES * lanes,
                                            lanes,
                                        ),
                                    )
                    for t in range(taps):
                        tap_w = _first_of(step + t, each, kw, span)
                        done = (step + t) % each * span - tap_w  # of this group, by the one before
                        for i in range(CHANNELS if whole else 1):
                            for j in range(done, span if along else width):
                                near = 0 if along else j
                                o, c = (
                                    (group * q_channels + other + near, channel + r + i)
                                    if swapped
                                    else (p_channel + r + i, other + near)
                                )
                                tap = (step + t) // each * kw + tap_w + (j if along else 0)
                                dw[(o * inputs + c) * kh * kw + tap] = lane_sum(
                                    sums, ((t * CHANNELS + i) * PLACES + j) * lanes
                                )
                other += width


@njit(**OPTIONS)
def _sum_channels(da, db, part, parts):
    """db[o] = the sum of da[n, o] over rows and places."""
    n, channels = da.shape[:2]
    area = da.shape[2] * da.shape[3]
    for o in range(*share(db.size, part, parts)):
        whole = da.dtype.type(0)
        for i in range(n):
            row = window(da, (i * channels + o) * area, area)
            total = da.dtype.type(0)
            for j in range(area):
                total = plus(total, row[j])
            whole += total
        db[o] = whole


@njit(**OPTIONS)
def _slope(dy, y, activation, da):
    """da = dy f'(y)."""
    width = dy.shape[2] * dy.shape[3]
    for i in range(dy.shape[0] * dy.shape[1]):
        row = window(da, i * width, width)
        copy(window(dy, i * width, width), row)
        differentiate(row, window(y, i * width, width), activation)


# The bodies: one for each row of the table, its arguments, then the share.


@njit(**OPTIONS)
def _conv2d_forward(
    x,
    w,
    b,
    activation,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    dilation_h,
    dilation_w,
    groups,
    room,
    y,
    part,
    parts,
):
    n, _, ih, iw = x.shape
    o, cg, kh, kw = w.shape
    shape = (n, groups, cg, ih, iw, o // groups, y.shape[2], y.shape[3])
    nothing = window(y, 0, 0)
    _convolve(
        flat(x),
        flat(w),
        flat(b),
        flat(nothing),
        activation,
        plain(0),
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (plain(1), plain(1)),
        plain(0),
        room,
        window(y, 0, y.size),
        nothing,
        part,
        parts,
    )


@njit(**OPTIONS)
def _conv2d_max_pool2d_forward(
    x,
    w,
    b,
    activation,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    dilation_h,
    dilation_w,
    groups,
    pool_h,
    pool_w,
    room,
    y,
    position,
    part,
    parts,
):
    n, _, ih, iw = x.shape
    o, cg, kh, kw = w.shape
    shape = (n, groups, cg, ih, iw, o // groups, y.shape[2], y.shape[3])
    _convolve(
        flat(x),
        flat(w),
        flat(b),
        flat(window(y, 0, 0)),
        activation,
        plain(0),
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (pool_h, pool_w),
        plain(0),
        room,
        window(y, 0, y.size),
        window(position, 0, position.size),
        part,
        parts,
    )


@njit(**OPTIONS)
def _conv2d_input_grad(
    da,
    w,
    x,
    activation,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    dilation_h,
    dilation_w,
    groups,
    room,
    dx,
    part,
    parts,
):
    n, _, ih, iw = dx.shape
    o, cg, kh, kw = w.shape
    shape = (n, groups, o // groups, da.shape[2], da.shape[3], cg, ih, iw)
    nothing = window(dx, 0, 0)
    _convolve(
        flat(da),
        flat(w),
        flat(nothing),
        flat(x),
        plain(0),
        activation,
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (plain(1), plain(1)),
        plain(1),
        room,
        window(dx, 0, dx.size),
        nothing,
        part,
        parts,
    )


@njit(**OPTIONS)
def _conv2d_weight_grad(
    x,
    da,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    dilation_h,
    dilation_w,
    groups,
    room,
    dw,
    db,
    part,
    parts,
):
    n, _, ih, iw = x.shape
    o, cg, kh, kw = dw.shape
    shape = (n, groups, cg, ih, iw, o // groups, da.shape[2], da.shape[3])
    _correlate(
        flat(da),
        flat(x),
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        room,
        window(dw, 0, dw.size),
        part,
        parts,
    )
    _sum_channels(da, db, part, parts)


@njit(**OPTIONS)
def _conv2d_backward(
    dy,
    x,
    w,
    y,
    activation,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    dilation_h,
    dilation_w,
    groups,
    room,
    da,
    dx,
    dw,
    db,
    part,
    parts,
):
    if part:  # the sums need all of da: the pieces of this kernel are what a team runs
        return
    _slope(dy, y, activation, da)
    _conv2d_input_grad(
        da,
        w,
        x[:0],
        0,
        stride_h,
        stride_w,
        padding_top,
        padding_left,
        padding_bottom,
        padding_right,
        dilation_h,
        dilation_w,
        groups,
        room,
        dx,
        0,
        1,
    )
    _conv2d_weight_grad(
        x,
        da,
        stride_h,
        stride_w,
        padding_top,
        padding_left,
        padding_bottom,
        padding_right,
        dilation_h,
        dilation_w,
        groups,
        room,
        dw,
        db,
        0,
        1,
    )


@njit(**OPTIONS)
def _conv_transpose2d_forward(
    x,
    w,
    b,
    activation,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
    room,
    y,
    part,
    parts,
):
    n, _, ih, iw = x.shape
    c, og, kh, kw = w.shape
    shape = (n, groups, c // groups, ih, iw, og, y.shape[2], y.shape[3])
    nothing = window(y, 0, 0)
    _convolve(
        flat(x),
        flat(w),
        flat(b),
        flat(nothing),
        activation,
        plain(0),
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (plain(1), plain(1)),
        plain(1),
        room,
        window(y, 0, y.size),
        nothing,
        part,
        parts,
    )


@njit(**OPTIONS)
def _conv_transpose2d_input_grad(
    da,
    w,
    x,
    activation,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
    room,
    dx,
    part,
    parts,
):
    n, _, ih, iw = dx.shape
    c, og, kh, kw = w.shape
    shape = (n, groups, og, da.shape[2], da.shape[3], c // groups, ih, iw)
    nothing = window(dx, 0, 0)
    _convolve(
        flat(da),
        flat(w),
        flat(nothing),
        flat(x),
        plain(0),
        activation,
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (plain(1), plain(1)),
        plain(0),
        room,
        window(dx, 0, dx.size),
        nothing,
        part,
        parts,
    )


@njit(**OPTIONS)
def _conv_transpose2d_weight_grad(
    x,
    da,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
    room,
    dw,
    db,
    part,
    parts,
):
    n, _, ih, iw = x.shape
    c, og, kh, kw = dw.shape
    shape = (n, groups, og, da.shape[2], da.shape[3], c // groups, ih, iw)
    _correlate(
        flat(x),
        flat(da),
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        room,
        window(dw, 0, dw.size),
        part,
        parts,
    )
    _sum_channels(da, db, part, parts)


@njit(**OPTIONS)
def _conv_transpose2d_backward(
    dy,
    x,
    w,
    y,
    activation,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    output_padding_h,
    output_padding_w,
    dilation_h,
    dilation_w,
    groups,
    room,
    da,
    dx,
    dw,
    db,
    part,
    parts,
):
    if part:  # as in `_conv2d_backward`
        return
    _slope(dy, y, activation, da)
    _conv_transpose2d_input_grad(
        da,
        w,
        x[:0],
        0,
        stride_h,
        stride_w,
        padding_top,
        padding_left,
        padding_bottom,
        padding_right,
        output_padding_h,
        output_padding_w,
        dilation_h,
        dilation_w,
        groups,
        room,
        dx,
        0,
        1,
    )
    _conv_transpose2d_weight_grad(
        x,
        da,
        stride_h,
        stride_w,
        padding_top,
        padding_left,
        padding_bottom,
        padding_right,
        output_padding_h,
        output_padding_w,
        dilation_h,
        dilation_w,
        groups,
        room,
        dw,
        db,
        0,
        1,
    )


# --- weights of an upsampling and a convolution in one ---------------------------------------------


@njit(**OPTIONS)
def _spread_weight(w, turned, factor_h, factor_w, v, part, parts):
    """v = w, each element added to a field of the factors; `turned`: its channels swapped, by half a turn."""
    kh, kw = w.shape[2:]
    inputs, outputs = v.shape[:2]
    for c in range(*share(inputs, part, parts)):
        for o in range(outputs):
            v[c, o] = 0
            for i in range(kh):
                for j in range(kw):
                    value = w[o, c, kh - 1 - i, kw - 1 - j] if turned else w[c, o, i, j]
                    for p in range(i, i + factor_h):
                        for q in range(j, j + factor_w):
                            v[c, o, p, q] += value


@njit(**OPTIONS)
def _gather_weight(dv, turned, factor_h, factor_w, dw, part, parts):
    """dw = the sums of dv over the fields that its elements were added to."""
    kh, kw = dw.shape[2:]
    inputs, outputs = dv.shape[:2]
    for c in range(*share(inputs, part, parts)):
        for o in range(outputs):
            for i in range(kh):
                for j in range(kw):
                    total = dv.dtype.type(0)
                    for p in range(i, i + factor_h):
                        for q in range(j, j + factor_w):
                            total += dv[c, o, p, q]
                    if turned:
                        dw[o, c, kh - 1 - i, kw - 1 - j] = total
                    else:
                        dw[c, o, i, j] = total


@njit(**OPTIONS)
def _upsample_conv2d_weight(w, factor_h, factor_w, v, part, parts):
    _spread_weight(w, True, factor_h, factor_w, v, part, parts)


@njit(**OPTIONS)
def _upsample_conv2d_weight_grad(dv, factor_h, factor_w, dw, part, parts):
    _gather_weight(dv, True, factor_h, factor_w, dw, part, parts)


@njit(**OPTIONS)
def _upsample_conv_transpose2d_weight(w, factor_h, factor_w, v, part, parts):
    _spread_weight(w, False, factor_h, factor_w, v, part, parts)


@njit(**OPTIONS)
def _upsample_conv_transpose2d_weight_grad(dv, factor_h, factor_w, dw, part, parts):
    _gather_weight(dv, False, factor_h, factor_w, dw, part, parts)


# --- pooling -------------------------------------------------------------------------------------
#
# Images share nothing: a part has some of the n c of them. For each element of the window, the places of a
# row whose window has it inside the image are one loop.


@njit(**OPTIONS)
def _max_pool2d_forward(
    x,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    y,
    position,
    part,
    parts,
):
    n, channels, ih, iw = x.shape
    oh, ow = y.shape[2:]
    axis_h = (kernel_h, stride_h, 1, padding_top, ih)
    axis_w = (kernel_w, stride_w, 1, padding_left, iw)
    real = x.dtype.type
    where = room(x)
    for image in range(*share(n * channels, part, parts)):
        for p in range(oh):
            u_first, _, u_count, i, _ = _reach(p, axis_h, plain(0))
            for left in range(0, ow, where.size):
                width = min(where.size, ow - left)
                best = window(y, (image * oh + p) * ow + left, width)
                for q in range(width):
                    where[q] = -1  # nothing yet
                for u in range(u_count):
                    row = window(x, (image * ih + i + u) * iw, iw)
                    for v in range(kernel_w):
                        start, stop = _inside(v, axis_w, ow)
                        start, stop = max(start - left, 0), min(stop - left, width)
                        number = real((u_first + u) * kernel_w + v)
                        off = left * stride_w + v - padding_left
                        for q in range(start, stop):
                            value, top = row[q * stride_w + off], best[q]
                            larger = (where[q] < 0) | (value > top) | ((value != value) & (top == top))
                            best[q] = pick(larger, value, top)
                            where[q] = pick(larger, number, where[q])
                if position.size:
                    copy(window(where, 0, width), window(position, (image * oh + p) * ow + left, width))


@njit(**OPTIONS)
def _max_pool2d_backward(
    dy,
    position,
    y,
    activation,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    dx,
    part,
    parts,
):
    n, channels, ih, iw = dx.shape
    oh, ow = dy.shape[2:]
    axis_h = (kernel_h, stride_h, 1, padding_top, ih)
    axis_w = (kernel_w, stride_w, 1, padding_left, iw)
    real = dx.dtype.type
    zero = real(0)
    slope = room(dx)
    # The common case in vector code: pairs of columns side by side, each written once.
    paired = kernel_w == stride_w == 2 and padding_left == 0 and 2 * ow <= iw
    paired &= kernel_h == stride_h and padding_top == 0
    for image in range(*share(n * channels, part, parts)):
        if not paired or oh * kernel_h < ih or 2 * ow < iw:
            window(dx, image * ih * iw, ih * iw)[:] = 0
        for p in range(oh):
            u_first, _, u_count, i, _ = _reach(p, axis_h, plain(0))
            for left in range(0, ow, slope.size):
                width = min(slope.size, ow - left)
                at = (image * oh + p) * ow + left
                where, some = window(position, at, width), window(slope, 0, width)
                copy(window(dy, at, width), some)
                if activation and y.size:
                    differentiate(some, window(y, at, width), activation)
                for u in range(u_count):
                    first = (image * ih + i + u) * iw
                    if paired:
                        row = window(dx, first + 2 * left, 2 * width)
                        number = real(2 * u)
                        following = real(2 * u + 1)
                        for q in range(width):
                            row[2 * q] = pick(where[q] == number, some[q], zero)
                            row[2 * q + 1] = pick(where[q] == following, some[q], zero)
                        continue
                    row = window(dx, first, iw)
                    for v in range(kernel_w):
                        start, stop = _inside(v, axis_w, ow)
                        start, stop = max(start - left, 0), min(stop - left, width)
                        number = real((u_first + u) * kernel_w + v)
                        off = left * stride_w + v - padding_left
                        for q in range(start, stop):
                            row[q * stride_w + off] += pick(where[q] == number, some[q], zero)


@njit(**OPTIONS)
def _conv2d_max_pool2d_weight_grad(
    x,
    dy,
    position,
    y,
    activation,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    dilation_h,
    dilation_w,
    groups,
    pool_h,
    pool_w,
    room,
    da,
    dw,
    db,
    part,
    parts,
):
    if part:  # the sums need all of da: unpadded Programs have its two kernels instead
        return
    _max_pool2d_backward(dy, position, y, activation, pool_h, pool_w, pool_h, pool_w, 0, 0, 0, 0, da, 0, 1)
    _conv2d_weight_grad(
        x,
        da,
        stride_h,
        stride_w,
        padding_top,
        padding_left,
        padding_bottom,
        padding_right,
        dilation_h,
        dilation_w,
        groups,
        room,
        dw,
        db,
        0,
        1,
    )


@njit(**OPTIONS)
def _avg_pool2d_forward(
    x,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    count_include_pad,
    y,
    part,
    parts,
):
    n, channels, ih, iw = x.shape
    oh, ow = y.shape[2:]
    axis_h = (kernel_h, stride_h, 1, padding_top, ih)
    axis_w = (kernel_w, stride_w, 1, padding_left, iw)
    real = x.dtype.type
    for image in range(*share(n * channels, part, parts)):
        for p in range(oh):
            _, _, u_count, i, _ = _reach(p, axis_h, plain(0))
            total = window(y, (image * oh + p) * ow, ow)
            total[:] = 0
            for u in range(u_count):
                row = window(x, (image * ih + i + u) * iw, iw)
                for v in range(kernel_w):
                    start, stop = _inside(v, axis_w, ow)
                    for q in range(start, stop):
                        total[q] += row[q * stride_w + v - padding_left]
            if count_include_pad:
                count = real(kernel_h * kernel_w)
                for q in range(ow):
                    total[q] /= count
            else:
                for q in range(ow):
                    total[q] /= real(u_count * _reach(q, axis_w, plain(0))[2])


@njit(**OPTIONS)
def _avg_pool2d_backward(
    dy,
    x,
    activation,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    padding_top,
    padding_left,
    padding_bottom,
    padding_right,
    count_include_pad,
    dx,
    part,
    parts,
):
    n, channels, ih, iw = dx.shape
    oh, ow = dy.shape[2:]
    axis_h = (kernel_h, stride_h, 1, padding_top, ih)
    axis_w = (kernel_w, stride_w, 1, padding_left, iw)
    real = dx.dtype.type
    share_of = room(dx)
    for image in range(*share(n * channels, part, parts)):
        whole = window(dx, image * ih * iw, ih * iw)
        whole[:] = 0
        for p in range(oh):
            _, _, u_count, i, _ = _reach(p, axis_h, plain(0))
            for left in range(0, ow, share_of.size):
                width = min(share_of.size, ow - left)
                slope = window(dy, (image * oh + p) * ow + left, width)
                if count_include_pad:
                    count = real(kernel_h * kernel_w)
                    for q in range(width):
                        share_of[q] = slope[q] / count
                else:
                    for q in range(width):
                        share_of[q] = slope[q] / real(u_count * _reach(left + q, axis_w, plain(0))[2])
                for u in range(u_count):
                    row = window(dx, (image * ih + i + u) * iw, iw)
                    for v in range(kernel_w):
                        start, stop = _inside(v, axis_w, ow)
                        start, stop = max(start - left, 0), min(stop - left, width)
                        off = left * stride_w + v - padding_left
                        for q in range(start, stop):
                            row[q * stride_w + off] += share_of[q]
        if activation and x.size:
            differentiate(whole, window(x, image * ih * iw, ih * iw), activation)


# --- upsampling ----------------------------------------------------------------------------------


@njit(**OPTIONS)
def _upsample2d_forward(x, factor_h, factor_w, y, part, parts):
    n, channels, ih, iw = x.shape
    width = iw * factor_w
    for line in range(*share(n * channels * ih, part, parts)):
        source, row = window(x, line * iw, iw), window(y, line * factor_h * width, width)
        for j in range(iw):
            for b in range(factor_w):
                row[j * factor_w + b] = source[j]
        for a in range(1, factor_h):
            copy(row, window(y, (line * factor_h + a) * width, width))


@njit(**OPTIONS)
def _upsample2d_backward(dy, x, activation, factor_h, factor_w, dx, part, parts):
    n, channels, ih, iw = dx.shape
    width = iw * factor_w
    for line in range(*share(n * channels * ih, part, parts)):
        row = window(dx, line * iw, iw)
        row[:] = 0
        for a in range(factor_h):
            source = window(dy, (line * factor_h + a) * width, width)
            for b in range(factor_w):
                for j in range(iw):
                    row[j] += source[j * factor_w + b]
        if activation and x.size:
            differentiate(row, window(x, line * iw, iw), activation)


# --- batch normalisation: a part has some of the channels ------------------------------------------


@njit(**OPTIONS)
def _batchnorm2d_forward(
    x, gamma, beta, activation, epsilon, momentum, running_mean, running_var, y, mean, inv_std, part, parts
):
    n, channels, ih, iw = x.shape
    area = ih * iw
    real = x.dtype.type
    one, least, weight = real(1), real(epsilon), real(momentum)
    count, unbiased = real(n * area), real(n * area / max(n * area - 1, 1))
    for c in range(*share(channels, part, parts)):
        # Differences to the first number lose nothing where the mean is far from 0.
        origin = window(x, c * area, 1)[0]
        total = real(0)
        for i in range(n):
            row, sum_ = window(x, (i * channels + c) * area, area), real(0)
            for j in range(area):
                sum_ = plus(sum_, row[j] - origin)
            total += sum_
        centre = origin + total / count
        total = real(0)
        for i in range(n):
            row, sum_ = window(x, (i * channels + c) * area, area), real(0)
            for j in range(area):
                e = row[j] - centre
                sum_ = plus(sum_, e * e)
            total += sum_
        var = total / count
        running_mean[c] += weight * (centre - running_mean[c])
        running_var[c] += weight * (var * unbiased - running_var[c])
        scale = one / root(var + least)
        mean[c], inv_std[c] = centre, scale
        factor, shift = gamma[c], beta[c]
        for i in range(n):
            at = (i * channels + c) * area
            row, source = window(y, at, area), window(x, at, area)
            for j in range(area):
                row[j] = factor * ((source[j] - centre) * scale) + shift
            activate(row, activation)


@njit(**OPTIONS)
def _batchnorm2d_inference(x, gamma, beta, running_mean, running_var, activation, epsilon, y, part, parts):
    n, channels, ih, iw = x.shape
    area = ih * iw
    least = x.dtype.type(epsilon)
    for image in range(*share(n * channels, part, parts)):
        c = image % channels
        scale, centre, shift = gamma[c] / root(running_var[c] + least), running_mean[c], beta[c]
        row, source = window(y, image * area, area), window(x, image * area, area)
        for j in range(area):
            row[j] = (source[j] - centre) * scale + shift
        activate(row, activation)


@njit(**OPTIONS)
def _batchnorm2d_backward(dy, x, gamma, y, mean, inv_std, activation, dx, dgamma, dbeta, part, parts):
    n, channels, ih, iw = x.shape
    area = ih * iw
    real = x.dtype.type
    per_number = real(1 / (n * area))
    for c in range(*share(channels, part, parts)):
        centre, scale = mean[c], inv_std[c]
        total, along = real(0), real(0)
        for i in range(n):
            at = (i * channels + c) * area
            row, source = window(dx, at, area), window(x, at, area)
            copy(window(dy, at, area), row)
            differentiate(row, window(y, at, area), activation)
            sum_1, sum_h = real(0), real(0)
            for j in range(area):
                sum_1 = plus(sum_1, row[j])
                sum_h = plus(sum_h, row[j] * (source[j] - centre))
            total += sum_1
            along += sum_h
        along *= scale
        dgamma[c], dbeta[c] = along, total
        factor, all_1, all_h = gamma[c] * scale, per_number * total, per_number * along
        for i in range(n):
            at = (i * channels + c) * area
            row, source = window(dx, at, area), window(x, at, area)
            for j in range(area):
                h = (source[j] - centre) * scale
                row[j] = factor * (row[j] - all_1 - h * all_h)


# --- images and rows -----------------------------------------------------------------------------


@njit(**OPTIONS)
def _copy_share(x, y, part, parts):
    """Images and their rows are the same numbers one after the other."""
    start, stop = share(y.size, part, parts)
    copy(window(x, start, stop - start), window(y, start, stop - start))


@njit(**OPTIONS)
def _images_from_rows(x, y, part, parts):
    _copy_share(x, y, part, parts)


@njit(**OPTIONS)
def _rows_from_images(x, y, part, parts):
    _copy_share(x, y, part, parts)

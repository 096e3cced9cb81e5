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

from fastae.kernels.jitted_maths import activate, differentiate, multiply, pick, plus, root
from fastae.kernels.jitted_runtime import (
    OPTIONS,
    apart,
    copy,
    count_blocks,
    data,
    edge,
    gemm,
    room,
    share,
    vector,
    window,
)

# isort: split
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))

_BYTES = 64 if _WIDE else 32  # of a vector
_CHANNELS = 8 if _WIDE else 4  # of a tile: with three places their sums fill most registers
_PLACES = 3
_ROW = 8  # places of a tile of one channel

_REGION = 32  # places of a region: with its channels it fits into the first cache
_TAPS = 9  # elements of a kernel whose gradients are summed at a time
_RUN = 8  # numbers that describe a run of places
_TABLES = 4  # tables of runs, one for each column of a pool's window


# --- vectors ---------------------------------------------------------------------------------------


@intrinsic
def _lanes(typing, array):
    """Numbers in a vector."""
    size = _BYTES * 8 // array.dtype.bitwidth
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, size)


@intrinsic
def _flat(typing, array):
    """All of a C-contiguous array as one row that is only read: one type for whatever a kernel is given."""
    from numba.np.arrayobj import populate_array

    signature = types.Array(array.dtype, 1, "C", readonly=True)(array)

    def generate(context, builder, signature, arguments):
        whole = context.make_array(signature.args[0])(context, builder, arguments[0])
        result = context.make_array(signature.return_type)(context, builder)
        populate_array(result, whole.data, [whole.nitems], [whole.itemsize], whole.itemsize, meminfo=None)
        return result._getvalue()

    return signature, generate


@intrinsic
def _plain(typing, value):
    """An integer. The type of a constant holds its value: what is called would be compiled for it alone."""
    return types.int64(types.int64), lambda context, builder, signature, arguments: arguments[0]


def _stack(vectors):
    """Make a function of an array: it gives a row of so many vectors, until its caller returns."""

    @intrinsic
    def stack(typing, array):
        from numba.np.arrayobj import populate_array

        signature = types.Array(array.dtype, 1, "C")(array)

        def generate(context, builder, signature, arguments):
            element = signature.return_type.dtype
            real, itemsize = context.get_data_type(element), element.bitwidth // 8
            size = context.get_constant(types.intp, vectors * _BYTES // itemsize)
            memory = cgutils.alloca_once(builder, real, size=size)
            memory.align = 64
            result = context.make_array(signature.return_type)(context, builder)
            itemsize = context.get_constant(types.intp, itemsize)
            populate_array(result, memory, [size], [itemsize], itemsize, meminfo=None)
            return result._getvalue()

        return signature, generate

    return stack


_region = _stack(3 * _CHANNELS * _REGION)
_sums = _stack(_TAPS * _CHANNELS * _PLACES)
_start = _stack(1)


def _numbers(count):
    """Make a function that gives a row of so many integers, until its caller returns."""

    @intrinsic
    def numbers(typing):
        from numba.np.arrayobj import populate_array

        signature = types.Array(types.int64, 1, "C")()

        def generate(context, builder, signature, arguments):
            word = ir.IntType(64)
            memory = cgutils.alloca_once(builder, word, size=context.get_constant(types.intp, count))
            result = context.make_array(signature.return_type)(context, builder)
            size, itemsize = (context.get_constant(types.intp, v) for v in (count, 8))
            populate_array(result, memory, [size], [itemsize], itemsize, meminfo=None)
            return result._getvalue()

        return signature, generate

    return numbers


_runs = _numbers(_TABLES * (_REGION * _RUN + 1))
_ranges = _numbers(4 * _TAPS)


def _load(builder, pointer, form, align):
    value = builder.load(builder.bitcast(pointer, form.as_pointer()))
    value.align = align
    return value


def _store(builder, value, pointer, align):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = align


def _mask(places):
    word = ir.IntType(32)
    return ir.Constant(ir.VectorType(word, len(places)), [ir.Constant(word, p) for p in places])


def _turned(builder, rows):
    """Transpose a square of vectors: interleaved with its other half as often as it can be halved."""
    size = len(rows)
    half = size // 2
    low = _mask([i // 2 + i % 2 * size for i in range(size)])
    high = _mask([half + i // 2 + i % 2 * size for i in range(size)])
    for _ in range(half.bit_length()):
        rows = [
            builder.shuffle_vector(rows[i], rows[i + half], mask) for i in range(half) for mask in (low, high)
        ]
    return rows


def _vector(context, type_):
    """Vector type of an array, its lanes, and the bytes of a number."""
    itemsize = type_.dtype.bitwidth // 8
    return ir.VectorType(context.get_data_type(type_.dtype), _BYTES // itemsize), _BYTES // itemsize, itemsize


@intrinsic
def _turn_in(typing, x, first, stride, count, y, place):
    """y[place + lanes j + i] = x[first + stride i + j], and 0 for rows i from count on."""
    signature = types.void(x, first, stride, count, y, place)

    def generate(context, builder, signature, arguments):
        x, first, stride, count, y, place = arguments
        form, lanes, itemsize = _vector(context, signature.args[0])
        nothing = cgutils.alloca_once_value(builder, ir.Constant(form, None))
        source = builder.gep(data(context, builder, signature.args[0], x), [first])
        target = builder.gep(data(context, builder, signature.args[4], y), [place])
        nothing = builder.bitcast(nothing, source.type)
        rows = []
        for i in range(lanes):
            number = ir.Constant(ir.IntType(64), i)
            row = builder.gep(source, [builder.mul(stride, number)])
            there = builder.icmp_signed("<", number, count)
            rows.append(_load(builder, builder.select(there, row, nothing), form, itemsize))
        for j, row in enumerate(_turned(builder, rows)):
            place = builder.gep(target, [ir.Constant(ir.IntType(64), j * lanes)])
            _store(builder, row, place, itemsize)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _turn_out(typing, x, place, y, first, stride, count):
    """y[first + stride i + j] = x[place + lanes j + i] for rows i below count."""
    signature = types.void(x, place, y, first, stride, count)

    def generate(context, builder, signature, arguments):
        x, place, y, first, stride, count = arguments
        form, lanes, itemsize = _vector(context, signature.args[0])
        nowhere = cgutils.alloca_once(builder, form)
        source = builder.gep(data(context, builder, signature.args[0], x), [place])
        target = builder.gep(data(context, builder, signature.args[2], y), [first])
        nowhere = builder.bitcast(nowhere, target.type)
        columns = [
            _load(builder, builder.gep(source, [ir.Constant(ir.IntType(64), j * lanes)]), form, itemsize)
            for j in range(lanes)
        ]
        for i, row in enumerate(_turned(builder, columns)):
            number = ir.Constant(ir.IntType(64), i)
            place = builder.gep(target, [builder.mul(stride, number)])
            there = builder.icmp_signed("<", number, count)
            _store(builder, row, builder.select(there, place, nowhere), itemsize)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _lane_sum(typing, x, place):
    """Sum of a vector, halves added to halves."""
    signature = x.dtype(x, place)

    def generate(context, builder, signature, arguments):
        form, lanes, itemsize = _vector(context, signature.args[0])
        source = data(context, builder, signature.args[0], arguments[0])
        value = _load(builder, builder.gep(source, [arguments[1]]), form, itemsize)
        while lanes > 1:
            lanes //= 2
            low, high = (
                builder.shuffle_vector(value, value, _mask([k + i for i in range(lanes)])) for k in (0, lanes)
            )
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return signature, generate


def _tile(rows, columns, weights):
    """Make the inner loops of a convolution, for some channels by some places.

    ``y[r, c] += sum_abd p[r, a, b, d] q[c, a, b, d]``, vectors of lanes, each held in a register. Where
    `weights` is set p are numbers, the same for all lanes, and the sums begin with ``start[r]``, not with y.
    A multiply-add is one operation where the processor has it: of a product that is added nothing is rounded
    or lost to overflow, and NaN and infinity are as in two.
    """

    @intrinsic
    def tile(typing, p, p_first, q, q_first, y, y_first, start, sizes, moves):
        """`moves`: in p, then in q, of a, b and d; then in p of r, in q of c, in y of r and of c."""
        signature = types.void(p, p_first, q, q_first, y, y_first, start, sizes, moves)

        def generate(context, builder, signature, arguments):
            form, lanes, itemsize = _vector(context, signature.args[0])
            fused = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(form, [form] * 3),
                f"llvm.fmuladd.v{lanes}f{8 * itemsize}",
            )
            zeros = _mask([0] * lanes)

            def number(value):
                return ir.Constant(ir.IntType(64), value)

            def at(place, first, *steps):
                for move, times in steps:
                    first = builder.add(first, builder.mul(move, times))
                pointer = data(context, builder, signature.args[place], arguments[place])
                return builder.gep(pointer, [first])

            def spread(pointer):
                value = builder.insert_element(
                    ir.Constant(form, ir.Undefined), builder.load(pointer), ir.Constant(ir.IntType(32), 0)
                )
                return builder.shuffle_vector(value, value, zeros)

            sizes = [builder.extract_value(arguments[7], i) for i in range(3)]
            moves = [builder.extract_value(arguments[8], i) for i in range(10)]
            p_moves, q_moves, (p_row, q_column, y_row, y_column) = moves[:3], moves[3:6], moves[6:]
            places = {
                (r, c): at(4, arguments[5], (y_row, number(r)), (y_column, number(c)))
                for r in range(rows)
                for c in range(columns)
            }
            sums = {}
            for r in range(rows):
                first = spread(at(6, number(r))) if weights else None
                for c in range(columns):
                    value = first if weights else _load(builder, places[r, c], form, itemsize)
                    sums[r, c] = cgutils.alloca_once(builder, form)
                    builder.store(value, sums[r, c])
            with (
                cgutils.for_range(builder, sizes[0]) as a,
                cgutils.for_range(builder, sizes[1]) as b,
                cgutils.for_range(builder, sizes[2]) as d,
            ):
                step = (a.index, b.index, d.index)
                p_place = at(0, arguments[1], *zip(p_moves, step, strict=True))
                q_place = at(2, arguments[3], *zip(q_moves, step, strict=True))
                q = [
                    _load(builder, builder.gep(q_place, [builder.mul(q_column, number(c))]), form, itemsize)
                    for c in range(columns)
                ]
                for r in range(rows):
                    place = builder.gep(p_place, [builder.mul(p_row, number(r))])
                    p = spread(place) if weights else _load(builder, place, form, itemsize)
                    for c in range(columns):
                        builder.store(builder.call(fused, (p, q[c], builder.load(sums[r, c]))), sums[r, c])
            for place in places:
                _store(builder, builder.load(sums[place]), places[place], itemsize)
            return context.get_dummy_value()

        return signature, generate

    return tile


_conv_tile = _tile(_CHANNELS, _PLACES, True)
_conv_column = _tile(_CHANNELS, 1, True)
_conv_row = _tile(1, _ROW, True)
_conv_one = _tile(1, 1, True)
_grad_tile = _tile(_CHANNELS, _PLACES, False)
_grad_column = _tile(_CHANNELS, 1, False)
_grad_row = _tile(1, _PLACES, False)
_grad_one = _tile(1, 1, False)


@njit(**OPTIONS)
def _pack(x, first, stride, count, size, y, place):
    """y[place + lanes j + i] = x[first + stride i + j] for j < size, and 0 for rows i from count on."""
    lanes = _lanes(x)
    if size >= lanes:
        for j in range(0, size, lanes):
            j = min(j, size - lanes)  # the last overlaps
            _turn_in(x, first + j, stride, count, y, place + lanes * j)
    else:
        for j in range(size):
            for i in range(lanes):
                y[place + lanes * j + i] = x[first + stride * i + j] if i < count else 0


@njit(**OPTIONS)
def _unpack(x, place, count, size, y, first, stride):
    """y[first + stride i + j] = x[place + lanes j + i] for j < size and rows i below count."""
    lanes = _lanes(x)
    if size >= lanes:
        for j in range(0, size, lanes):
            j = min(j, size - lanes)
            _turn_out(x, place + lanes * j, y, first + j, stride, count)
    else:
        for i in range(count):
            for j in range(size):
                y[first + stride * i + j] = x[place + lanes * j + i]


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
    blocks = count_blocks(m, n * channels * m)
    for block in range(*share(blocks, part, parts)):
        start, stop = edge(m, block, blocks), edge(m, block + 1, blocks)
        size = stop - start
        rest, to = window(w, start, w.size - start), window(y, start, y.size - start)
        multiply(n, size, channels, x, rest, to, m)
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
def _tiles(w, w_first, x, x_first, y, y_first, start, whole, length, sizes, moves):
    """All places of a run: tiles side by side, the last of which overlaps."""
    x_step, y_step = moves[7], moves[9]
    t = 0
    if whole:
        if length >= _PLACES:
            while t < length:
                t = min(t, length - _PLACES)
                _conv_tile(w, w_first, x, x_first + t * x_step, y, y_first + t * y_step, start, sizes, moves)
                t += _PLACES
        while t < length:
            _conv_column(w, w_first, x, x_first + t * x_step, y, y_first + t * y_step, start, sizes, moves)
            t += 1
    else:
        if length >= _ROW:
            while t < length:
                t = min(t, length - _ROW)
                _conv_row(w, w_first, x, x_first + t * x_step, y, y_first + t * y_step, start, sizes, moves)
                t += _ROW
        while t < length:
            _conv_one(w, w_first, x, x_first + t * x_step, y, y_first + t * y_step, start, sizes, moves)
            t += 1


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
    lanes = _lanes(x)
    n, groups, inputs, ih, iw, outputs, oh, ow = shape
    kh, kw = kernel
    axis_h = (kh, strides[0], dilation[0], padding[0], ih)
    axis_w = (kw, strides[1], dilation[1], padding[1], iw)
    if spread and groups == 1 and ih == iw == 1 and _one_window(axis_h, axis_w, oh, ow):
        _spread_product(x, w, b, saved, activation, slope, n, inputs, outputs, oh * ow, y, part, parts)
        return
    blocks, tiles = (n + lanes - 1) // lanes, (outputs + _CHANNELS - 1) // _CHANNELS
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
    each = _CHANNELS * _REGION * lanes
    windows = pool[0] * pool[1]
    unit = start_unit
    while unit < stop_unit:
        block = unit // (groups * tiles)
        end = min(stop_unit, (block + 1) * groups * tiles)
        count = min(lanes, n - block * lanes)
        _pack(x, block * lanes * x_row, x_row, count, x_row, room, place)
        for left in range(0, ow, _REGION):
            columns = min(_REGION, ow - left)
            height = _REGION // columns
            for k in range(min(pool[1], _TABLES)):
                table = k * (_REGION * _RUN + 1)
                runs[table] = _find_runs(axis_w, spread, left, columns, pool[1], k, runs, table + 1)
            for tile in range(unit, end):
                group, channel = tile % (groups * tiles) // tiles, tile % tiles * _CHANNELS
                channels = min(_CHANNELS, outputs - channel)
                whole = channels == _CHANNELS
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
                                axis_w, spread, left, columns, pool[1], right, runs, _plain(1)
                            )
                        else:
                            table = right * (_REGION * _RUN + 1)
                        for o in range(1 if whole else channels):
                            first_o = group * outputs + channel + o
                            for i in range(_CHANNELS if whole else 1):
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
                                        whole,
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
                        if activation:
                            activate(window(region, at, channels * moves_y), activation)
                        if k:
                            _largest(region, channels * moves_y, each, 2 * each, k)
                        elif windows > 1:
                            window(region, 2 * each, channels * moves_y)[:] = 0
                    _deliver(
                        region,
                        _plain(0),
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
                            _plain(0),
                        )
        unit = end


@njit(**OPTIONS)
def _deliver(region, place, count, channels, rows, columns, y, first, y_row, area, ow, saved, slope):
    """Channels, rows and columns of a region to where they belong in y, times the slope at `saved`."""
    lanes = _lanes(region)
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
            _unpack(region, at, count, size, y, to, y_row)
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
def _grad_tiles(p, p_first, q, q_first, sums, at, start, whole, wide, sizes, moves):
    """Add the products of a stretch of places to the sums of one element of the kernel."""
    if whole and wide:
        _grad_tile(p, p_first, q, q_first, sums, at, start, sizes, moves)
    elif whole:
        _grad_column(p, p_first, q, q_first, sums, at, start, sizes, moves)
    elif wide:
        _grad_row(p, p_first, q, q_first, sums, at, start, sizes, moves)
    else:
        _grad_one(p, p_first, q, q_first, sums, at, start, sizes, moves)


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

    The channels of a tile, p, are of whichever has more; the places of a tile are channels of the other.
    """
    lanes = _lanes(a)
    n, groups, inputs, ih, iw, outputs, oh, ow = shape
    kh, kw = kernel
    axis_h = (kh, strides[0], dilation[0], padding[0], ih)
    axis_w = (kw, strides[1], dilation[1], padding[1], iw)
    if groups == 1 and oh == ow == 1 and _one_window(axis_h, axis_w, ih, iw):
        m = inputs * ih * iw
        count = count_blocks(m, n * outputs * m)
        for block in range(*share(count, part, parts)):
            start, stop = edge(m, block, count), edge(m, block + 1, count)
            rest, to = window(x, start, x.size - start), window(dw, start, dw.size - start)
            gemm(outputs, stop - start, n, a, outputs, True, rest, m, False, to, m)
        return
    swapped = inputs > outputs
    p_channels, q_channels = (inputs, outputs) if swapped else (outputs, inputs)
    p_area, q_area = (ih * iw, oh * ow) if swapped else (oh * ow, ih * iw)
    p_row, q_row = groups * p_channels * p_area, groups * q_channels * q_area
    blocks, tiles = (n + lanes - 1) // lanes, (p_channels + _CHANNELS - 1) // _CHANNELS
    # Each part has what it needs of p, and all of q for itself.
    active = min(parts, groups * tiles, room.size // (blocks * lanes) // q_row)
    while active > 1 and blocks * lanes * (p_row + active * q_row) > room.size:
        active -= 1
    if part >= active:
        return
    q_place = blocks * lanes * (p_row + part * q_row)
    q, p = (a, x) if swapped else (x, a)
    for block in range(blocks):
        first, count = block * lanes * q_row, min(lanes, n - block * lanes)
        _pack(q, first, q_row, count, q_row, room, q_place + first)
    sums, start, ranges = _sums(a), _start(a), _ranges()
    height = max(1, _REGION // ow)
    x_steps, a_steps = (strides[0] * iw * lanes, strides[1] * lanes), (ow * lanes, lanes)
    p_steps, q_steps = (x_steps, a_steps) if swapped else (a_steps, x_steps)
    for tile in range(*share(groups * tiles, part, active)):
        group, channel = tile // tiles, tile % tiles * _CHANNELS
        channels = min(_CHANNELS, p_channels - channel)
        whole = channels == _CHANNELS
        p_channel = group * p_channels + channel
        for block in range(blocks):
            first, count = block * lanes * p_row, min(lanes, n - block * lanes)
            size = channels * p_area
            _pack(p, first + p_channel * p_area, p_row, count, size, room, first + p_channel * p_area * lanes)
        for r in range(1 if whole else channels):
            other = 0
            while other < q_channels:
                wide = q_channels - other >= _PLACES
                width = _PLACES if wide else 1
                q_channel = group * q_channels + other
                for tap in range(0, kh * kw, _TAPS):
                    taps = min(_TAPS, kh * kw - tap)
                    for t in range(taps):
                        ranges[4 * t], ranges[4 * t + 1] = _inside((tap + t) // kw, axis_h, oh)
                        ranges[4 * t + 2], ranges[4 * t + 3] = _inside((tap + t) % kw, axis_w, ow)
                    sums[:] = 0
                    for block in range(blocks):
                        p_first = block * lanes * p_row + (p_channel + r) * p_area * lanes
                        q_first = q_place + block * lanes * q_row + q_channel * q_area * lanes
                        for top in range(0, oh, height):
                            for t in range(taps):
                                up, down = max(top, ranges[4 * t]), min(top + height, ranges[4 * t + 1])
                                left, right = ranges[4 * t + 2], ranges[4 * t + 3]
                                if up >= down or left >= right:
                                    continue
                                i = up * strides[0] + (tap + t) // kw * dilation[0] - padding[0]
                                j = left * strides[1] + (tap + t) % kw * dilation[1] - padding[1]
                                x_at, a_at = (i * iw + j) * lanes, (up * ow + left) * lanes
                                _grad_tiles(
                                    room,
                                    p_first + (x_at if swapped else a_at),
                                    room,
                                    q_first + (a_at if swapped else x_at),
                                    sums,
                                    t * _CHANNELS * _PLACES * lanes,
                                    start,
                                    whole,
                                    wide,
                                    (1, down - up, right - left),
                                    (
                                        0,
                                        p_steps[0],
                                        p_steps[1],
                                        0,
                                        q_steps[0],
                                        q_steps[1],
                                        p_area * lanes,
                                        q_area * lanes,
                                        _PLACES * lanes,
                                        lanes,
                                    ),
                                )
                    for t in range(taps):
                        for i in range(_CHANNELS if whole else 1):
                            for j in range(width):
                                o, c = (
                                    (group * q_channels + other + j, channel + r + i)
                                    if swapped
                                    else (p_channel + r + i, other + j)
                                )
                                dw[(o * inputs + c) * kh * kw + tap + t] = _lane_sum(
                                    sums, ((t * _CHANNELS + i) * _PLACES + j) * lanes
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
        _flat(x),
        _flat(w),
        _flat(b),
        _flat(nothing),
        activation,
        _plain(0),
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (_plain(1), _plain(1)),
        _plain(0),
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
        _flat(x),
        _flat(w),
        _flat(b),
        _flat(window(y, 0, 0)),
        activation,
        _plain(0),
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (pool_h, pool_w),
        _plain(0),
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
        _flat(da),
        _flat(w),
        _flat(nothing),
        _flat(x),
        _plain(0),
        activation,
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (_plain(1), _plain(1)),
        _plain(1),
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
        _flat(da),
        _flat(x),
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
        _flat(x),
        _flat(w),
        _flat(b),
        _flat(nothing),
        activation,
        _plain(0),
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (_plain(1), _plain(1)),
        _plain(1),
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
        _flat(da),
        _flat(w),
        _flat(nothing),
        _flat(x),
        _plain(0),
        activation,
        shape,
        (kh, kw),
        (stride_h, stride_w),
        (padding_top, padding_left),
        (dilation_h, dilation_w),
        (_plain(1), _plain(1)),
        _plain(0),
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
        _flat(x),
        _flat(da),
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
            u_first, _, u_count, i, _ = _reach(p, axis_h, _plain(0))
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
            u_first, _, u_count, i, _ = _reach(p, axis_h, _plain(0))
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
            _, _, u_count, i, _ = _reach(p, axis_h, _plain(0))
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
                    total[q] /= real(u_count * _reach(q, axis_w, _plain(0))[2])


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
            _, _, u_count, i, _ = _reach(p, axis_h, _plain(0))
            for left in range(0, ow, share_of.size):
                width = min(share_of.size, ow - left)
                slope = window(dy, (image * oh + p) * ow + left, width)
                if count_include_pad:
                    count = real(kernel_h * kernel_w)
                    for q in range(width):
                        share_of[q] = slope[q] / count
                else:
                    for q in range(width):
                        share_of[q] = slope[q] / real(u_count * _reach(left + q, axis_w, _plain(0))[2])
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

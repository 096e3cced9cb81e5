"""Vectors in Numba, and the inner loops of products and convolutions that hold their sums in registers.

Numba has no words for a vector: these functions say it to LLVM. A *tile* is some rows by some columns of
sums, each a vector in a register.
"""

from __future__ import annotations

from fastae.kernels.jitted_runtime import OPTIONS, data

# isort: split
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
BYTES = 64 if _WIDE else 32  # of a vector
CHANNELS = 8 if _WIDE else 4  # of a tile: with three places their sums fill most registers
FEW = 3  # channels of a lower tile
PLACES = 3
ROW = 8  # places of a tile of one channel


@intrinsic
def lanes_of(typing, array):
    """Numbers in a vector."""
    size = BYTES * 8 // array.dtype.bitwidth
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, size)


@intrinsic
def flat(typing, array):
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
def plain(typing, value):
    """An integer. The type of a constant holds its value: what is called would be compiled for it alone."""
    return types.int64(types.int64), lambda context, builder, signature, arguments: arguments[0]


def stack_of(vectors):
    """Make a function of an array: it gives a row of so many vectors, until its caller returns."""

    @intrinsic
    def stack(typing, array):
        from numba.np.arrayobj import populate_array

        signature = types.Array(array.dtype, 1, "C")(array)

        def generate(context, builder, signature, arguments):
            element = signature.return_type.dtype
            real, itemsize = context.get_data_type(element), element.bitwidth // 8
            size = context.get_constant(types.intp, vectors * BYTES // itemsize)
            memory = cgutils.alloca_once(builder, real, size=size)
            memory.align = 64
            result = context.make_array(signature.return_type)(context, builder)
            itemsize = context.get_constant(types.intp, itemsize)
            populate_array(result, memory, [size], [itemsize], itemsize, meminfo=None)
            return result._getvalue()

        return signature, generate

    return stack


def numbers_of(count):
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
    return ir.VectorType(context.get_data_type(type_.dtype), BYTES // itemsize), BYTES // itemsize, itemsize


@intrinsic
def turn_in(typing, x, first, stride, count, y, place):
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
def turn_out(typing, x, place, y, first, stride, count):
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
def lane_sum(typing, x, place):
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


def tile_of(rows, columns, weights):
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


def line_of(columns):
    """Make the inner loop of a product with zeros: a row of so many vectors of sums, each in a register.

    ``y[c] += x[step p] w[w_step p, c]`` for each bit p of a word, the lowest first.
    """

    @intrinsic
    def line(typing, x, x_first, x_step, word, w, w_first, w_step, y, y_first):
        signature = types.void(x, x_first, x_step, word, w, w_first, w_step, y, y_first)

        def generate(context, builder, signature, arguments):
            form, lanes, itemsize = _vector(context, signature.args[0])
            integer = ir.IntType(64)
            fused = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(form, [form] * 3),
                f"llvm.fmuladd.v{lanes}f{8 * itemsize}",
            )
            zeros = _mask([0] * lanes)

            def at(place, first):
                pointer = data(context, builder, signature.args[place], arguments[place])
                return builder.gep(pointer, [first])

            places = [
                at(7, builder.add(arguments[8], ir.Constant(integer, c * lanes))) for c in range(columns)
            ]
            sums = [cgutils.alloca_once(builder, form) for _ in places]
            for place, total in zip(places, sums, strict=True):
                builder.store(_load(builder, place, form, itemsize), total)
            left = cgutils.alloca_once(builder, integer)
            builder.store(arguments[3], left)
            test, body, done = (builder.append_basic_block(name) for name in ("test", "body", "done"))
            builder.branch(test)
            builder.position_at_end(test)
            word = builder.load(left)
            builder.cbranch(builder.icmp_unsigned("!=", word, ir.Constant(integer, 0)), body, done)
            builder.position_at_end(body)
            p = builder.cttz(word, ir.Constant(ir.IntType(1), 1))
            builder.store(builder.and_(word, builder.sub(word, ir.Constant(integer, 1))), left)
            number = builder.load(at(0, builder.add(arguments[1], builder.mul(arguments[2], p))))
            undefined = ir.Constant(form, ir.Undefined)
            number = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
            number = builder.shuffle_vector(number, number, zeros)
            row = at(4, builder.add(arguments[5], builder.mul(arguments[6], p)))
            for c, total in enumerate(sums):
                by = _load(builder, builder.gep(row, [ir.Constant(integer, c * lanes)]), form, itemsize)
                builder.store(builder.call(fused, (number, by, builder.load(total))), total)
            builder.branch(test)
            builder.position_at_end(done)
            for place, total in zip(places, sums, strict=True):
                _store(builder, builder.load(total), place, itemsize)
            return context.get_dummy_value()

        return signature, generate

    return line


def finite_of(columns):
    """Make a test of a factor: whether so many vectors of each of some rows are finite."""

    @intrinsic
    def finite(typing, w, first, step, rows):
        signature = types.int64(w, first, step, rows)

        def generate(context, builder, signature, arguments):
            w, first, step, rows = arguments
            form, lanes, itemsize = _vector(context, signature.args[0])
            source = builder.gep(data(context, builder, signature.args[0], w), [first])
            sums = [cgutils.alloca_once_value(builder, ir.Constant(form, None)) for _ in range(columns)]
            with cgutils.for_range(builder, rows) as p:
                row = builder.gep(source, [builder.mul(step, p.index)])
                for c, total in enumerate(sums):
                    place = builder.gep(row, [ir.Constant(ir.IntType(64), c * lanes)])
                    value = _load(builder, place, form, itemsize)  # its difference from itself is 0 or NaN
                    builder.store(builder.fadd(builder.load(total), builder.fsub(value, value)), total)
            total = builder.load(sums[0])
            for other in sums[1:]:
                total = builder.fadd(total, builder.load(other))
            bits = builder.bitcast(
                builder.fcmp_unordered("uno", total, ir.Constant(form, None)), ir.IntType(lanes)
            )
            nothing = builder.icmp_unsigned("==", bits, ir.Constant(bits.type, 0))
            return builder.zext(nothing, ir.IntType(64))

        return signature, generate

    return finite


@intrinsic
def others_in(typing, x, first):
    """Bits of a vector: whether x[first + i] is not 0."""
    signature = types.int64(x, first)

    def generate(context, builder, signature, arguments):
        form, lanes, itemsize = _vector(context, signature.args[0])
        source = builder.gep(data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        is_other = builder.fcmp_unordered(
            "!=", _load(builder, source, form, itemsize), ir.Constant(form, None)
        )
        return builder.zext(builder.bitcast(is_other, ir.IntType(lanes)), ir.IntType(64))

    return signature, generate


@intrinsic
def others_below(typing, x, first, step, count, words, place):
    """Bits of a vector of columns: bit p of words[place + i], whether x[first + step p + i] is not 0."""
    signature = types.void(x, first, step, count, words, place)

    def generate(context, builder, signature, arguments):
        x, first, step, count, words, place = arguments
        form, lanes, itemsize = _vector(context, signature.args[0])
        integer = ir.IntType(64)
        integers = ir.VectorType(integer, lanes)
        source = builder.gep(data(context, builder, signature.args[0], x), [first])
        total = cgutils.alloca_once_value(builder, ir.Constant(integers, None))
        with cgutils.for_range(builder, count) as p:
            row = _load(builder, builder.gep(source, [builder.mul(step, p.index)]), form, itemsize)
            is_other = builder.fcmp_unordered("!=", row, ir.Constant(form, None))
            bit = builder.shl(ir.Constant(integer, 1), p.index)
            bits = builder.insert_element(ir.Constant(integers, None), bit, ir.Constant(ir.IntType(32), 0))
            bits = builder.shuffle_vector(bits, bits, _mask([0] * lanes))
            bits = builder.select(is_other, bits, ir.Constant(integers, None))
            builder.store(builder.or_(builder.load(total), bits), total)
        target = builder.gep(data(context, builder, signature.args[4], words), [place])
        _store(builder, builder.load(total), target, 8)
        return context.get_dummy_value()

    return signature, generate


line_8, line_4, line_1 = (line_of(columns) for columns in (8, 4, 1))
finite_8, finite_4, finite_1 = (finite_of(columns) for columns in (8, 4, 1))
conv_tile = tile_of(CHANNELS, PLACES, True)
conv_column = tile_of(CHANNELS, 1, True)
conv_few = tile_of(FEW, PLACES, True)
conv_few_column = tile_of(FEW, 1, True)
conv_row = tile_of(1, ROW, True)
conv_one = tile_of(1, 1, True)
grad_tile = tile_of(CHANNELS, PLACES, False)
grad_column = tile_of(CHANNELS, 1, False)
grad_row = tile_of(1, PLACES, False)
grad_one = tile_of(1, 1, False)


@njit(**OPTIONS)
def pack(x, first, stride, count, size, y, place):
    """y[place + lanes j + i] = x[first + stride i + j] for j < size, and 0 for rows i from count on."""
    lanes = lanes_of(x)
    if size >= lanes:
        for j in range(0, size, lanes):
            j = min(j, size - lanes)  # the last overlaps
            turn_in(x, first + j, stride, count, y, place + lanes * j)
    else:
        for j in range(size):
            for i in range(lanes):
                y[place + lanes * j + i] = x[first + stride * i + j] if i < count else 0


@njit(**OPTIONS)
def unpack(x, place, count, size, y, first, stride):
    """y[first + stride i + j] = x[place + lanes j + i] for j < size and rows i below count."""
    lanes = lanes_of(x)
    if size >= lanes:
        for j in range(0, size, lanes):
            j = min(j, size - lanes)
            turn_out(x, place + lanes * j, y, first + j, stride, count)
    else:
        for i in range(count):
            for j in range(size):
                y[first + stride * i + j] = x[place + lanes * j + i]

"""Products of matrices in Numba: small ones in tiles of registers, large ones by BLAS, some without zeros.

BLAS copies a factor into another order before it multiplies, which only many rows repay, and its blocks are
too large for threads to share what is small. Whether a product is made in tiles goes by its dims alone, and
so do the blocks of BLAS; in tiles every number is one sum in one order wherever it is cut. So the bits do not
depend on the number of parts. Where a factor is of zeros for the most part, as behind ReLU, these are passed
over. To choose that instead of BLAS every part looks at the same rows of all of the factor; instead of tiles,
whose bits are the same, a part looks at its own rows.
"""

from __future__ import annotations

from fastae.kernels.jitted_runtime import OPTIONS, apart, data, vector, window
from fastae.kernels.jitted_tiles import (
    BYTES,
    CHANNELS,
    PLACES,
    conv_column,
    conv_tile,
    finite_1,
    finite_4,
    finite_8,
    grad_column,
    grad_tile,
    lane_sum,
    lanes_of,
    line_1,
    line_4,
    line_8,
    numbers_of,
    others_below,
    others_in,
    pack,
    stack_of,
)
from fastae.kernels.table import SMALL_WEIGHT

# isort: split
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_LARGEST = 1 << 23  # multiply-adds of a product in tiles
_PANEL = 1024  # vectors of a factor that is laid out anew

# A block has at least so many multiply-adds and columns: of BLAS, of tiles. As it ends at a multiple of 8,
# that is at least a vector's 16.
_GRAIN, _NARROWEST = 1 << 19, 64
_GRAIN_OF_TILES, _NARROWEST_OF_TILES = 1 << 14, 24
_MOST_BLOCKS = 8

# Vectors of a sum from which its lanes are added in the end; of shorter ones a factor is turned first.
_LONG = 16

# How a product is made.
_BLAS, _TILES, _WITHOUT_ZEROS = 0, 1, 2

# Of a product without zeros: rows and vectors of columns at a time, steps whose bits are a word, and the most
# steps. Such a share of a factor are others at most, and a product has rows and vectors of columns.
_ROWS, _COLUMNS, _STEPS, _MOST_STEPS = 64, 8, 64, 2048
_OTHERS, _FEWEST_ROWS, _FEWEST_VECTORS = 0.625, 8, 4

_zeros = stack_of(1)
_lines = stack_of(_ROWS * _COLUMNS)
_words = numbers_of(_ROWS * _MOST_STEPS // _STEPS)
_sums = stack_of(CHANNELS * PLACES)
_panel = stack_of(_PANEL)


# --- BLAS ------------------------------------------------------------------------------------------


@intrinsic
def gemm(typing, m, n, k, a, lda, a_turned, b, ldb, b_turned, c, ldc):
    """c[m, n] = a b, either factor transposed where its flag is set; rows lie lda, ldb, ldc apart.

    The routine behind ``np.dot``, which itself copies a block of columns before it multiplies.
    """
    signature = types.void(m, n, k, a, lda, a_turned, b, ldb, b_turned, c, ldc)

    def generate(context, builder, signature, arguments):
        m, n, k, a, lda, a_turned, b, ldb, b_turned, c, ldc = arguments
        real, char = signature.args[9].dtype, ir.IntType(8)
        size, pointer = context.get_value_type(types.intp), cgutils.voidptr_t

        def number(value):
            return builder.bitcast(
                cgutils.alloca_once_value(builder, context.get_constant(real, value)), pointer
            )

        def start(place, value):
            return builder.bitcast(data(context, builder, signature.args[place], value), pointer)

        def letter(turned):
            return builder.select(
                cgutils.is_not_null(builder, turned), ir.Constant(char, ord("t")), ir.Constant(char, ord("n"))
            )

        routine = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(
                ir.IntType(32),
                [char] * 3 + [size] * 3 + [pointer] * 2 + [size, pointer, size, pointer, pointer, size],
            ),
            "numba_xxgemm",
        )
        kind = ir.Constant(char, ord("s" if real == types.float32 else "d"))
        # BLAS counts along columns: it is given the transposed product, c^T = b^T a^T.
        shape_and_factors = (n, m, k, number(1.0), start(6, b), ldb, start(3, a), lda)
        builder.call(
            routine,
            (kind, letter(b_turned), letter(a_turned), *shape_and_factors, number(0.0), start(9, c), ldc),
        )
        return context.get_dummy_value()

    return signature, generate


# --- tiles -----------------------------------------------------------------------------------------
#
# For at least a tile's rows; the last tiles overlap those before.


@njit(**OPTIONS)
def _tiles_below(rows, full, x, x_row, w, w_first, y, left, width, zeros, sizes, moves):
    """All rows of y from column `left` on, as wide as a tile, or, where it is not `full`, as a vector."""
    for i in range(0, rows, CHANNELS):
        i = min(i, rows - CHANNELS)
        if full:
            conv_tile(x, x_row * i, w, w_first, y, width * i + left, zeros, sizes, moves)
        else:
            conv_column(x, x_row * i, w, w_first, y, width * i + left, zeros, sizes, moves)


@njit(**OPTIONS)
def _narrow(rows, columns, depth, x, x_row, x_step, panel, y, width):
    """y[i, j] = sum_d x[x_row i + x_step d] panel[d, j] for fewer columns than the lanes of a panel."""
    lanes = lanes_of(y)
    zeros, sums = _zeros(y), _sums(y)
    zeros[:] = 0
    for i in range(0, rows, CHANNELS):
        i = min(i, rows - CHANNELS)
        moves = (0, 0, x_step, 0, 0, lanes, x_row, 0, lanes, 0)
        conv_column(x, x_row * i, panel, 0, sums, 0, zeros, (1, 1, depth), moves)
        for r in range(CHANNELS):
            for j in range(columns):
                y[width * (i + r) + j] = sums[lanes * r + j]


@apart(
    lambda real: (
        *(types.int64,) * 3,
        vector(real, readonly=True),
        *(types.int64,) * 2,
        vector(real, readonly=True),
        vector(real),
        types.int64,
    )
)
@njit(**OPTIONS)
def _in_tiles(rows, columns, depth, x, x_row, x_step, w, y, width):
    """y[i, j] = sum_d x[x_row i + x_step d] w[d, j]; rows of w and of y lie `width` apart."""
    lanes = lanes_of(y)
    if columns < lanes:
        panel = _panel(y)
        for d in range(depth):
            for j in range(lanes):
                panel[d * lanes + j] = w[d * width + j] if j < columns else 0
        _narrow(rows, columns, depth, x, x_row, x_step, panel, y, width)
        return
    zeros = _zeros(y)
    zeros[:] = 0
    sizes = (1, 1, depth)
    moves = (0, 0, x_step, 0, 0, width, x_row, lanes, width, lanes)
    wide = PLACES * lanes
    j = 0
    while j < columns:
        full = columns >= wide and columns - j > lanes
        size = wide if full else lanes
        j = min(j, columns - size)
        _tiles_below(rows, full, x, x_row, w, j, y, j, width, zeros, sizes, moves)
        j += size


@njit(**OPTIONS)
def _dots(rows, columns, depth, x, w, y, width):
    """`_turned_in_tiles` of long sums: of vectors along them, whose lanes are added in the end."""
    lanes = lanes_of(y)
    sums = _sums(y)
    whole = depth // lanes * lanes
    sizes = (1, 1, depth // lanes)
    moves = (0, 0, lanes, 0, 0, lanes, depth, depth, PLACES * lanes, lanes)
    wide = PLACES if columns >= PLACES else 1
    for j in range(0, columns, wide):
        j = min(j, columns - wide)
        for i in range(0, rows, CHANNELS):
            i = min(i, rows - CHANNELS)
            sums[:] = 0
            if wide > 1:
                grad_tile(x, depth * i, w, depth * j, sums, 0, sums, sizes, moves)
            else:
                grad_column(x, depth * i, w, depth * j, sums, 0, sums, sizes, moves)
            for r in range(CHANNELS):
                for c in range(wide):
                    total = lane_sum(sums, (PLACES * r + c) * lanes)
                    for d in range(whole, depth):
                        total += x[depth * (i + r) + d] * w[depth * (j + c) + d]
                    y[width * (i + r) + j + c] = total


@apart(
    lambda real: (
        *(types.int64,) * 3,
        *(vector(real, readonly=True),) * 2,
        vector(real),
        types.int64,
    )
)
@njit(**OPTIONS)
def _turned_in_tiles(rows, columns, depth, x, w, y, width):
    """y[i, j] = sum_d x[i, d] w[j, d]; rows of y lie `width` apart."""
    lanes = lanes_of(y)
    if depth >= _LONG * lanes:
        _dots(rows, columns, depth, x, w, y, width)
        return
    panel, zeros = _panel(y), _zeros(y)
    if columns < lanes:
        pack(w, 0, depth, columns, depth, panel, 0)
        _narrow(rows, columns, depth, x, depth, 1, panel, y, width)
        return
    zeros[:] = 0
    sizes = (1, 1, depth)
    moves = (0, 0, 1, 0, 0, lanes, depth, depth * lanes, width, lanes)
    wide = PLACES * lanes
    j = 0
    while j < columns:
        full = columns >= wide and columns - j > lanes
        size = wide if full else lanes
        j = min(j, columns - size)
        for c in range(size // lanes):
            pack(w, (j + c * lanes) * depth, depth, lanes, depth, panel, c * depth * lanes)
        _tiles_below(rows, full, x, depth, panel, 0, y, j, width, zeros, sizes, moves)
        j += size


# --- without zeros ---------------------------------------------------------------------------------


@njit(**OPTIONS)
def _lines_of(vectors, words, word, finite, all_of, rows, x, first, x_row, x_step, w, w_first, width, sums):
    """Add terms to some rows of sums, so many vectors wide."""
    size = vectors * lanes_of(sums)
    for i in range(rows):
        bits, start = words[word + i] if finite else all_of, first + x_row * i
        if vectors == 8:
            line_8(x, start, x_step, bits, w, w_first, width, sums, i * size)
        elif vectors == 4:
            line_4(x, start, x_step, bits, w, w_first, width, sums, i * size)
        else:
            line_1(x, start, x_step, bits, w, w_first, width, sums, i * size)


@njit(**OPTIONS)
def _are_finite(vectors, w, first, width, rows):
    if vectors == 8:
        return finite_8(w, first, width, rows)
    if vectors == 4:
        return finite_4(w, first, width, rows)
    return finite_1(w, first, width, rows)


@apart(
    lambda real: (
        *(types.int64,) * 3,
        vector(real, readonly=True),
        *(types.int64,) * 2,
        vector(real, readonly=True),
        vector(real),
        types.int64,
    )
)
@njit(**OPTIONS)
def _without_zeros(rows, columns, depth, x, x_row, x_step, w, y, width):
    """`_in_tiles`, the terms alone in which x is not 0. Where w is not finite all of them."""
    lanes = lanes_of(y)
    words, sums = _words(), _lines(y)
    each = (depth + _STEPS - 1) // _STEPS
    for top in range(0, rows, _ROWS):
        some = min(_ROWS, rows - top)
        for e in range(each):
            first, steps = x_row * top + x_step * _STEPS * e, min(_STEPS, depth - _STEPS * e)
            whole = some // lanes * lanes if x_row == 1 else 0  # of columns a vector at a time, else of steps
            for i in range(0, whole, lanes):
                others_below(x, first + i, x_step, steps, words, e * _ROWS + i)
            for i in range(whole, some):
                word, start = types.int64(0), first + x_row * i
                beside = steps // lanes * lanes if x_step == 1 else 0
                for d in range(0, beside, lanes):
                    word |= others_in(x, start + d) << types.int64(d)
                for d in range(beside, steps):
                    word |= types.int64(x[start + x_step * d] != 0) << types.int64(d)
                words[e * _ROWS + i] = word
        j = 0
        while j < columns:
            vectors = 1
            if columns - j > 4 * lanes and columns >= 8 * lanes:
                vectors = 8
            elif columns >= 4 * lanes:
                vectors = 4
            size = vectors * lanes
            j = min(j, columns - size)  # the last overlaps
            for i in range(some * size):
                sums[i] = 0
            for e in range(each):
                first = width * _STEPS * e + j
                steps = min(_STEPS, depth - _STEPS * e)
                finite = _are_finite(vectors, w, first, width, steps)
                one = types.int64(1)
                all_of = -one if steps == _STEPS else (one << types.int64(steps)) - one
                start = x_row * top + x_step * _STEPS * e
                given = (some, x, start, x_row, x_step, w, first, width, sums)
                _lines_of(vectors, words, e * _ROWS, finite, all_of, *given)
            for i in range(some):
                made, row = window(sums, i * size, size), window(y, width * (top + i) + j, size)
                for c in range(size):
                    row[c] = made[c]
            j += size


@njit(**OPTIONS)
def way_of(rows, columns, depth, x, top, n):
    """How a product with n rows of x, or with these turned, is made: without its zeros if they are many."""
    k = x.shape[1]
    lanes = lanes_of(x)
    if n >= _FEWEST_ROWS and depth <= _MOST_STEPS and columns >= _FEWEST_VECTORS * lanes:
        others = 0
        for i in range(8):
            row = window(x, (top + n * i // 8) * k, k)
            count = 0
            for j in range(k):
                count += row[j] != 0
            others += count
        # each row of a block costs as much as some 50 vectors, and a term more than in a tile
        each = 50 / (min(depth, _STEPS) * min(columns // lanes, _COLUMNS))
        if others <= 8 * k * min(_OTHERS, 0.8 - each):
            return _WITHOUT_ZEROS
    return _TILES if in_tiles(rows, columns, depth) else _BLAS


# --- whichever is faster ---------------------------------------------------------------------------


@njit(**OPTIONS)
def in_tiles(rows, columns, depth):
    """Whether a product is made in tiles: a matter of its dims alone."""
    laid_out = depth <= _PANEL or columns >= BYTES // 4
    return rows >= CHANNELS and rows * columns * depth <= _LARGEST and laid_out


@njit(**OPTIONS)
def count_blocks(tiled, size, work, parts):
    """Number of blocks of `size` rows or columns: of tiles one for each part, of BLAS for any parts."""
    if tiled:
        return max(1, min(parts, size // _NARROWEST_OF_TILES, work // _GRAIN_OF_TILES))
    return max(1, min(size // _NARROWEST, work // _GRAIN, _MOST_BLOCKS))


@njit(**OPTIONS)
def cut(tiled, rows, columns, depth, parts):
    """Number of blocks of rows and of columns. In tiles it is rows where the table says so."""
    size = columns * depth
    if tiled and rows >= CHANNELS * parts and (size <= SMALL_WEIGHT or rows * (columns + depth) > size):
        return parts, 1
    return 1, count_blocks(tiled, columns, rows * size, parts)


@njit(**OPTIONS)
def cut_weight(tiled, rows, columns, depth, parts):
    """Number of blocks of rows and of columns of a weight's gradient: rows if there are enough."""
    work = rows * columns * depth
    down = count_blocks(tiled, rows, work, parts)
    across = count_blocks(tiled, columns, work, parts) if tiled else 1
    return (1, across) if across > down else (down, 1)


@njit(**OPTIONS)
def edge(size, block, blocks):
    """Where a block begins: at a multiple of 8."""
    return size if block == blocks else min(size, (size * block // blocks + 4) // 8 * 8)


@njit(**OPTIONS)
def multiply(way, n, m, k, x, w, y, width):
    """y = x w for n rows of k numbers and m columns of w; rows of w, as those of y, lie `width` apart.

    BLAS copies w first, in an order that serves many rows: for one row that would take most of the time.
    """
    if way == _WITHOUT_ZEROS:
        _without_zeros(n, m, k, x, k, 1, w, y, width)
        return
    if way == _TILES:
        _in_tiles(n, m, k, x, k, 1, w, y, width)
        return
    if n != 1:
        gemm(n, m, k, x, k, False, w, width, False, y, width)
        return
    y = window(y, 0, m)
    whole = k // 4 * 4
    for j in range(m):
        y[j] = y.dtype.type(0)
    for i in range(0, whole, 4):
        a, b = window(w, i * width, m), window(w, (i + 1) * width, m)
        c, d = window(w, (i + 2) * width, m), window(w, (i + 3) * width, m)
        p, q, r, s = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(m):
            y[j] += (p * a[j] + q * b[j]) + (r * c[j] + s * d[j])
    for i in range(whole, k):
        a, p = window(w, i * width, m), x[i]
        for j in range(m):
            y[j] += p * a[j]


@njit(**OPTIONS)
def multiply_turned(tiled, n, m, k, x, w, y, width):
    """y = x w^T for n rows of k numbers and m rows of w; rows of y lie `width` apart."""
    if tiled:
        _turned_in_tiles(n, m, k, x, w, y, width)
    else:
        gemm(n, m, k, x, k, False, w, k, True, y, width)


@njit(**OPTIONS)
def multiply_sums(way, n, m, k, x, size, da, y, width):
    """y = x^T da for n columns of x, whose k rows lie `size` apart; those of da and y lie `width` apart."""
    if way == _WITHOUT_ZEROS:
        _without_zeros(n, m, k, x, 1, size, da, y, width)
    elif way == _TILES:
        _in_tiles(n, m, k, x, 1, size, da, y, width)
    else:
        gemm(n, m, k, x, size, True, da, width, False, y, width)

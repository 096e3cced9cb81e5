"""Every kernel in Numba.

::

    body _dense_forward(x, w, b, activation, y, part, parts)
      ├── array form        dense_forward(x, w, b, activation, y)          called by people
      └── instruction form  dense_forward_<hash>(arena, operands, part, parts)
                                │  its address, in a vector with one place for each row of the table
                            _run_batches: gather, every instruction, the update; one call an epoch

Both forms are generated from the row of ``table.py`` and compiled when they are first asked for, by
kernel and dtype, with explicit signatures; Numba keeps them on disk. No network is ever compiled.
What is marked `apart` the instruction forms call by its address: it is compiled once for all of them.
The bodies of the kernels on images are in ``jitted_images.py``, what multiplies matrices is in
``jitted_products.py``. What Numba has no words for stands in ``jitted_tiles.py``, as far as it is vectors,
and, with the epoch, in ``jitted_runtime.py``; exp and its like are in ``jitted_maths.py``.

A body computes the share of its outputs that falls to ``part`` of ``parts``. No sum depends on how the
outputs are shared out, so their bits do not.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastae.kernels import jitted_images, jitted_runtime
from fastae.kernels.jitted_maths import (
    activate,
    add,
    bits,
    cosine_of_turn,
    differentiate,
    exp,
    key,
    log,
    log1p,
    log_of_rest,
    of_rank,
    pick,
    plus,
    rank,
    root,
)
from fastae.kernels.jitted_products import (
    count_blocks,
    cut,
    cut_weight,
    edge,
    in_tiles,
    multiply,
    multiply_sums,
    multiply_turned,
    way_of,
)
from fastae.kernels.jitted_runtime import (
    OPTIONS,
    REALS,
    ROOM,
    STAMP,
    at,
    cache_works,
    compiled,
    copy,
    near,
    room,
    row_of,
    said,
    share,
    window,
)
from fastae.kernels.jitted_tiles import CHANNELS
from fastae.kernels.table import KERNELS, Array, Kernel

# isort: split
import numba
from numba import carray, cfunc, njit, types

if TYPE_CHECKING:
    from fastae.program import Routine

PADDED = False
FUSED_UPDATE = False

_PANEL = ROOM  # columns that batch normalisation works on at a time, so that they stay in cache


def prepare(array: np.ndarray) -> np.ndarray:
    """Numba kernels take the array itself."""
    return array


def describe() -> dict[str, str]:
    """What compiles the kernels of this backend, and for what."""
    from llvmlite import binding

    return {
        "numba": numba.__version__,
        "compiler": "LLVM " + ".".join(map(str, binding.llvm_version_info)),
        "instruction set": binding.get_host_cpu_name(),
        "cache": "on disk" if cache_works() else "no writable folder",
    }


# --- one row -------------------------------------------------------------------------------------
#
# Numba takes a bare 1.0 for double precision: constants are made in the type of the array.


# Losses of a row: the sum is returned, da becomes factor times the slope.


@njit(**OPTIONS)
def _squared_error(y, target, da, factor):
    total = y.dtype.type(0)
    for j in range(y.size):
        e = y[j] - target[j]
        total = plus(total, e * e)
        da[j] = factor * e
    return total


@njit(**OPTIONS)
def _absolute_error(y, target, da, factor):
    zero = y.dtype.type(0)
    total = zero
    for j in range(y.size):
        e = y[j] - target[j]
        total = plus(total, abs(e))
        da[j] = pick(e > zero, factor, pick(e < zero, -factor, e))  # NaN stays NaN
    return total


@njit(**OPTIONS)
def _huber_error(y, target, da, factor, delta):
    half = y.dtype.type(0.5)
    total = y.dtype.type(0)
    for j in range(y.size):
        e = y[j] - target[j]
        size = abs(e)
        total = plus(total, pick(size <= delta, half * e * e, delta * (size - half * delta)))
        da[j] = factor * pick(e > delta, delta, pick(e < -delta, -delta, e))
    return total


@njit(**OPTIONS)
def _cross_entropy(y, target, da, factor):
    one, least = y.dtype.type(1), y.dtype.type(1e-12)
    total = y.dtype.type(0)
    for j in range(y.size):
        v, t = y[j], target[j]
        total = plus(total, -(t * log(v) + (one - t) * log_of_rest(v)))
        slope = v * (one - v)
        da[j] = factor * ((v - t) / pick(slope < least, least, slope))
    return total


@njit(**OPTIONS)
def _cross_entropy_of_logits(z, target, da, factor):
    zero, one = z.dtype.type(0), z.dtype.type(1)
    total = zero
    for j in range(z.size):
        v, t = z[j], target[j]
        e = exp(-abs(v))
        total = plus(total, (pick(v <= zero, zero, v) - v * t) + log1p(e))
        da[j] = factor * (pick(v < zero, e, one) / (one + e) - t)
    return total


# Updates of a stretch of parameters.


@njit(**OPTIONS)
def _descend(w, g, rate, decay):
    """w -= rate (g + decay w)."""
    for j in range(w.size):
        w[j] -= rate * (g[j] + decay * w[j])


@njit(**OPTIONS)
def _adapt(w, g, first, second, t, rate, beta1, beta2, epsilon, decay, decoupled):
    """Adam's update number t, from 1; `first` and `second` are the moments."""
    real = w.dtype.type
    step = real(rate / (1 - beta1**t))
    unbiased = real(1 / math.sqrt(1 - beta2**t))
    shrink, penalty = real(rate * decay if decoupled else 0.0), real(0.0 if decoupled else decay)
    kept1, new1, kept2, new2 = real(beta1), real(1 - beta1), real(beta2), real(1 - beta2)
    least = real(epsilon)
    for j in range(w.size):
        slope = g[j] + penalty * w[j]
        mean = kept1 * first[j] + new1 * slope
        square = kept2 * second[j] + new2 * slope * slope
        first[j] = mean
        second[j] = square
        w[j] = (w[j] - shrink * w[j]) - step * mean / (root(square) * unbiased + least)


# --- the bodies: one for each row of the table, its arguments, then the share --------------------


@njit(**OPTIONS)
def _dense_block(x, w, b, activation, y, way, top, bottom, left, right):
    """y = f(x w + b) for some rows and columns."""
    k = x.shape[1]
    m = w.shape[1]
    size, first = right - left, top * m + left
    rows, rest = window(x, top * k, (bottom - top) * k), window(w, left, w.size - left)
    multiply(way, bottom - top, size, k, rows, rest, window(y, first, y.size - first), m)
    for i in range(top, bottom):
        row = window(y, i * m + left, size)
        if b.size:
            add(row, window(b, left, size))
        activate(row, activation)


@njit(**OPTIONS)
def _dense_forward(x, w, b, activation, y, part, parts):
    n, k = x.shape
    m = w.shape[1]
    tiled = in_tiles(n, m, k)
    way = 1 if tiled else way_of(n, m, k, x, 0, n)
    down, across = cut(way, n, m, k, parts)
    for block in range(*share(down * across, part, parts)):
        i, j = block // across, block % across
        rows, columns = share(n, i, down), (edge(m, j, across), edge(m, j + 1, across))
        if tiled:  # by its own rows: of others nobody may know yet
            way = way_of(n, m, k, x, rows[0], rows[1] - rows[0])
        _dense_block(x, w, b, activation, y, way, *rows, *columns)


@njit(**OPTIONS)
def _dense_input_grad(da, w, x, activation, dx, part, parts):
    n, m = da.shape
    k = w.shape[0]
    tiled = in_tiles(n, k, m)
    down, across = cut(tiled, n, k, m, parts)
    for block in range(*share(down * across, part, parts)):
        i, j = block // across, block % across
        top, bottom = share(n, i, down)
        left, size = edge(k, j, across), edge(k, j + 1, across) - edge(k, j, across)
        rows, rest = window(da, top * m, (bottom - top) * m), window(w, left * m, size * m)
        first = top * k + left
        multiply_turned(tiled, bottom - top, size, m, rows, rest, window(dx, first, dx.size - first), k)
        if activation and x.size:
            for row in range(first, first + (bottom - top) * k, k):
                differentiate(window(dx, row, size), window(x, row, size), activation)


@njit(**OPTIONS)
def _column_sums(da, sums, left):
    """sums = sum_n da, from column `left` on; four rows at a time: fewer roundings, fewer passes."""
    n, m = da.shape
    size = sums.size
    whole = 1 + (n - 1) // 4 * 4
    copy(window(da, left, size), sums)
    for first in range(left + m, left + whole * m, 4 * m):
        a, b = window(da, first, size), window(da, first + m, size)
        c, d = window(da, first + 2 * m, size), window(da, first + 3 * m, size)
        for j in range(size):
            sums[j] += (a[j] + b[j]) + (c[j] + d[j])
    for i in range(whole, n):
        add(sums, window(da, i * m + left, size))


@njit(**OPTIONS)
def _weight_grad_block(x, da, dw, way, block, down, across):
    """One of `down` x `across` blocks of dw = x^T da; the rows and the columns that it has."""
    n, k = x.shape
    m = da.shape[1]
    i, j = block // across, block % across
    top, bottom, left, right = (
        edge(k, i, down),
        edge(k, i + 1, down),
        edge(m, j, across),
        edge(m, j + 1, across),
    )
    columns, rest = window(x, top, x.size - top), window(da, left, da.size - left)
    first = top * m + left
    to = window(dw, first, dw.size - first)
    multiply_sums(way, bottom - top, right - left, n, columns, k, rest, to, m)
    return top, bottom, left, right


@njit(**OPTIONS)
def _dense_weight_grad(x, da, dw, db, part, parts):
    n, k = x.shape
    m = da.shape[1]
    way = way_of(k, m, n, x, 0, n)
    down, across = cut_weight(way, k, m, n, parts)
    for block in range(*share(down * across, part, parts)):
        _weight_grad_block(x, da, dw, way, block, down, across)
    if db.size:
        start, stop = share(m, part, parts)
        _column_sums(da, window(db, start, stop - start), start)


@njit(**OPTIONS)
def _dense_sgd(x, da, learning_rate, weight_decay, dw, w, b, part, parts):
    n, k = x.shape
    m = da.shape[1]
    rate, decay = w.dtype.type(learning_rate), w.dtype.type(weight_decay)
    way = way_of(k, m, n, x, 0, n)
    down, across = cut_weight(way, k, m, n, parts)
    for block in range(*share(down * across, part, parts)):
        top, bottom, left, right = _weight_grad_block(x, da, dw, way, block, down, across)
        # what lies side by side at once
        size = (bottom - top) * m if across == 1 else right - left
        for first in range(top * m + left, bottom * m, m if across > 1 else size):
            _descend(window(w, first, size), window(dw, first, size), rate, decay)
    if b.size:
        for j in range(*share(m, part, parts)):
            total = w.dtype.type(0)
            for i in range(n):
                total += da[i, j]
            b[j] -= rate * (total + decay * b[j])


@njit(**OPTIONS)
def _dense_adam(
    x,
    da,
    step,
    learning_rate,
    beta1,
    beta2,
    epsilon,
    weight_decay,
    decoupled,
    dw,
    db,
    w,
    b,
    exp_avg_w,
    exp_avg_b,
    exp_avg_sq_w,
    exp_avg_sq_b,
    part,
    parts,
):
    n, k = x.shape
    m = da.shape[1]
    how = (step[0] + 1, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
    way = way_of(k, m, n, x, 0, n)
    down, across = cut_weight(way, k, m, n, parts)
    for block in range(*share(down * across, part, parts)):
        top, bottom, left, right = _weight_grad_block(x, da, dw, way, block, down, across)
        # what lies side by side at once
        size = (bottom - top) * m if across == 1 else right - left
        for first in range(top * m + left, bottom * m, m if across > 1 else size):
            mean, square = window(exp_avg_w, first, size), window(exp_avg_sq_w, first, size)
            _adapt(window(w, first, size), window(dw, first, size), mean, square, *how)
    if b.size:
        start, stop = share(m, part, parts)
        _column_sums(da, window(db, start, stop - start), start)
        size = stop - start
        mean, square = window(exp_avg_b, start, size), window(exp_avg_sq_b, start, size)
        _adapt(window(b, start, size), window(db, start, size), mean, square, *how)


@njit(**OPTIONS)
def _dense_backward(dy, x, w, y, activation, da, dx, dw, db, part, parts):
    if part:  # the products need all of da: the pieces of this kernel are what a team runs
        return
    for i in range(dy.shape[0]):
        copy(row_of(dy, i), row_of(da, i))
        differentiate(row_of(da, i), row_of(y, i), activation)
    _dense_input_grad(da, w, x[:0], 0, dx, 0, 1)
    _dense_weight_grad(x, da, dw, db, 0, 1)


@njit(**OPTIONS)
def _activation_forward(x, activation, y, part, parts):
    for i in range(*share(x.shape[0], part, parts)):
        copy(row_of(x, i), row_of(y, i))
        activate(row_of(y, i), activation)


@njit(**OPTIONS)
def _activation_backward(dy, y, activation, dx, part, parts):
    for i in range(*share(dy.shape[0], part, parts)):
        copy(row_of(dy, i), row_of(dx, i))
        differentiate(row_of(dx, i), row_of(y, i), activation)


@njit(**OPTIONS)
def _subsample_forward(x, stride, y, part, parts):
    for i in range(*share(y.shape[0], part, parts)):
        row, source = row_of(y, i), row_of(x, i)
        for j in range(row.size):
            row[j] = source[stride * j]


@njit(**OPTIONS)
def _subsample_backward(dy, stride, dx, part, parts):
    for i in range(*share(dx.shape[0], part, parts)):
        row, source = row_of(dx, i), row_of(dy, i)
        row[:] = 0
        for j in range(source.size):
            row[stride * j] = source[j]


@njit(**OPTIONS)
def _branch_sum(x1, x2, y, part, parts):
    for i in range(*share(y.shape[0], part, parts)):
        row, a, b = row_of(y, i), row_of(x1, i), row_of(x2, i)
        for j in range(row.size):
            row[j] = a[j] + b[j]


@njit(**OPTIONS)
def _biased_sum(x1, x2, b, activation, y, part, parts):
    for i in range(*share(y.shape[0], part, parts)):
        row, one, other = row_of(y, i), row_of(x1, i), row_of(x2, i)
        for j in range(row.size):
            row[j] = one[j] + other[j]
        if b.size:
            add(row, b)  # behind their sum, as everywhere
        activate(row, activation)


@njit(**OPTIONS)
def _bias_grad(da, db, part, parts):
    start, stop = share(db.size, part, parts)
    _column_sums(da, window(db, start, stop - start), start)


@njit(**OPTIONS)
def _weight(y, sample_weight, i):
    """Weight of a row's loss."""
    return sample_weight[i] if sample_weight.size else y.dtype.type(1)


@njit(**OPTIONS)
def _sse(y, target, sample_weight, activation, row_loss, da, part, parts):
    two = y.dtype.type(2)
    for i in range(*share(y.shape[0], part, parts)):
        weight = _weight(y, sample_weight, i)
        row_loss[i] = weight * _squared_error(row_of(y, i), row_of(target, i), row_of(da, i), two * weight)
        differentiate(row_of(da, i), row_of(y, i), activation)


@njit(**OPTIONS)
def _mse_part(y, target, sample_weight, activation, columns, row_loss, da, part, parts):
    two, count = y.dtype.type(2), y.dtype.type(float(y.shape[0]) * columns)
    for i in range(*share(y.shape[0], part, parts)):
        factor = _weight(y, sample_weight, i) / count
        row_loss[i] = factor * _squared_error(row_of(y, i), row_of(target, i), row_of(da, i), two * factor)
        differentiate(row_of(da, i), row_of(y, i), activation)


@njit(**OPTIONS)
def _mse(y, target, sample_weight, activation, row_loss, da, part, parts):
    _mse_part(y, target, sample_weight, activation, y.shape[1], row_loss, da, part, parts)


@njit(**OPTIONS)
def _mae(y, target, sample_weight, activation, row_loss, da, part, parts):
    count = y.dtype.type(y.size)
    for i in range(*share(y.shape[0], part, parts)):
        factor = _weight(y, sample_weight, i) / count
        row_loss[i] = factor * _absolute_error(row_of(y, i), row_of(target, i), row_of(da, i), factor)
        differentiate(row_of(da, i), row_of(y, i), activation)


@njit(**OPTIONS)
def _huber(y, target, sample_weight, activation, delta, row_loss, da, part, parts):
    count, bound = y.dtype.type(y.size), y.dtype.type(delta)
    for i in range(*share(y.shape[0], part, parts)):
        factor = _weight(y, sample_weight, i) / count
        row_loss[i] = factor * _huber_error(row_of(y, i), row_of(target, i), row_of(da, i), factor, bound)
        differentiate(row_of(da, i), row_of(y, i), activation)


@njit(**OPTIONS)
def _bce(y, target, sample_weight, activation, row_loss, da, part, parts):
    count = y.dtype.type(y.size)
    for i in range(*share(y.shape[0], part, parts)):
        factor = _weight(y, sample_weight, i) / count
        row_loss[i] = factor * _cross_entropy(row_of(y, i), row_of(target, i), row_of(da, i), factor)
        differentiate(row_of(da, i), row_of(y, i), activation)


@njit(**OPTIONS)
def _bce_with_logits(logits, target, sample_weight, row_loss, da, part, parts):
    count = logits.dtype.type(logits.size)
    for i in range(*share(logits.shape[0], part, parts)):
        factor = _weight(logits, sample_weight, i) / count
        row_loss[i] = factor * _cross_entropy_of_logits(
            row_of(logits, i), row_of(target, i), row_of(da, i), factor
        )


@njit(**OPTIONS)
def _total(row_loss, loss, part, parts):
    if part == 0:
        result = loss.dtype.type(0)
        for i in range(row_loss.size):
            result += row_loss[i]
        loss[0] = result


@njit(**OPTIONS)
def _row_mse(y, target, error, part, parts):
    for i in range(*share(y.shape[0], part, parts)):
        row, goal = row_of(y, i), row_of(target, i)
        total = y.dtype.type(0)
        for j in range(row.size):
            e = row[j] - goal[j]
            total = plus(total, e * e)
        error[i] = total / row.size


@njit(**OPTIONS)
def _sgd(g, learning_rate, weight_decay, w, part, parts):
    start, stop = share(w.size, part, parts)
    rate, decay = w.dtype.type(learning_rate), w.dtype.type(weight_decay)
    _descend(window(w, start, stop - start), window(g, start, stop - start), rate, decay)


@njit(**OPTIONS)
def _momentum(g, learning_rate, momentum, nesterov, weight_decay, w, velocity, part, parts):
    real = w.dtype.type
    rate, kept, decay = real(learning_rate), real(momentum), real(weight_decay)
    start, stop = share(w.size, part, parts)
    size = stop - start
    w, g, velocity = window(w, start, size), window(g, start, size), window(velocity, start, size)
    for j in range(size):
        slope = g[j] + decay * w[j]
        speed = kept * velocity[j] + slope
        velocity[j] = speed
        w[j] -= rate * pick(nesterov, slope + kept * speed, speed)


@njit(**OPTIONS)
def _adam(
    g,
    step,
    learning_rate,
    beta1,
    beta2,
    epsilon,
    weight_decay,
    decoupled,
    w,
    exp_avg,
    exp_avg_sq,
    part,
    parts,
):
    start, stop = share(w.size, part, parts)
    how = (step[0] + 1, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
    size = stop - start
    mean, square = window(exp_avg, start, size), window(exp_avg_sq, start, size)
    _adapt(window(w, start, size), window(g, start, size), mean, square, *how)


@njit(**OPTIONS)
def _rmsprop(g, learning_rate, alpha, epsilon, weight_decay, w, square_avg, part, parts):
    real = w.dtype.type
    rate, least, decay = real(learning_rate), real(epsilon), real(weight_decay)
    kept, new = real(alpha), real(1 - alpha)
    start, stop = share(w.size, part, parts)
    size = stop - start
    w, g, square_avg = window(w, start, size), window(g, start, size), window(square_avg, start, size)
    for j in range(size):
        slope = g[j] + decay * w[j]
        square = kept * square_avg[j] + new * slope * slope
        square_avg[j] = square
        w[j] -= rate * slope / (root(square) + least)


@njit(**OPTIONS)
def _adagrad(g, learning_rate, epsilon, weight_decay, w, square_sum, part, parts):
    real = w.dtype.type
    rate, least, decay = real(learning_rate), real(epsilon), real(weight_decay)
    start, stop = share(w.size, part, parts)
    size = stop - start
    w, g, square_sum = window(w, start, size), window(g, start, size), window(square_sum, start, size)
    for j in range(size):
        slope = g[j] + decay * w[j]
        square = square_sum[j] + slope * slope
        square_sum[j] = square
        w[j] -= rate * slope / (root(square) + least)


@njit(**OPTIONS)
def _clip_by_norm(max_norm, g, norm, part, parts):
    if part == 0:
        squares = 0.0
        for j in range(g.size):
            v = np.float64(g[j])
            squares = plus(squares, v * v)
        length = root(squares)
        norm[0] = length
        if length > max_norm:
            factor = g.dtype.type(max_norm / length)
            for j in range(g.size):
                g[j] *= factor


# Batch normalisation goes over its columns panel by panel, and over the rows of a panel: loads are
# contiguous and the panel stays in cache.


@njit(**OPTIONS)
def _difference_sums(x, centre, sums, left):
    """sums = sum_n (x - centre) from column `left` on; four rows at a time."""
    n, m = x.shape
    size = sums.size
    whole = n // 4 * 4
    for j in range(size):
        sums[j] = 0
    for first in range(left, left + whole * m, 4 * m):
        a, b = window(x, first, size), window(x, first + m, size)
        c, d = window(x, first + 2 * m, size), window(x, first + 3 * m, size)
        for j in range(size):
            s = centre[j]
            sums[j] += ((a[j] - s) + (b[j] - s)) + ((c[j] - s) + (d[j] - s))
    for i in range(whole, n):
        a = window(x, i * m + left, size)
        for j in range(size):
            sums[j] += a[j] - centre[j]


@njit(**OPTIONS)
def _product_sums(da, x, centre, sums, left):
    """sums = sum_n da (x - centre) from column `left` on; two rows at a time."""
    n, m = x.shape
    size = sums.size
    whole = n // 2 * 2
    for j in range(size):
        sums[j] = 0
    for first in range(left, left + whole * m, 2 * m):
        da0, da1 = window(da, first, size), window(da, first + m, size)
        x0, x1 = window(x, first, size), window(x, first + m, size)
        for j in range(size):
            sums[j] += da0[j] * (x0[j] - centre[j]) + da1[j] * (x1[j] - centre[j])
    for i in range(whole, n):
        da0, x0 = window(da, i * m + left, size), window(x, i * m + left, size)
        for j in range(size):
            sums[j] += da0[j] * (x0[j] - centre[j])


@njit(**OPTIONS)
def _square_sums(x, centre, sums, left):
    """sums = sum_n (x - centre)^2 from column `left` on; four rows at a time."""
    n, m = x.shape
    size = sums.size
    whole = n // 4 * 4
    for j in range(size):
        sums[j] = 0
    for first in range(left, left + whole * m, 4 * m):
        a, b = window(x, first, size), window(x, first + m, size)
        c, d = window(x, first + 2 * m, size), window(x, first + 3 * m, size)
        for j in range(size):
            s = centre[j]
            ea, eb, ec, ed = a[j] - s, b[j] - s, c[j] - s, d[j] - s
            sums[j] += (ea * ea + eb * eb) + (ec * ec + ed * ed)
    for i in range(whole, n):
        a = window(x, i * m + left, size)
        for j in range(size):
            e = a[j] - centre[j]
            sums[j] += e * e


@njit(**OPTIONS)
def _normalise(
    x,
    gamma,
    beta,
    activation,
    epsilon,
    momentum,
    running_mean,
    running_var,
    y,
    mean,
    inv_std,
    start,
    stop,
):
    """Batch normalisation of the columns from `start` to `stop`."""
    n, m = x.shape
    real = x.dtype.type
    one, least, weight = real(1), real(epsilon), real(momentum)
    count, unbiased = real(n), real(n / max(n - 1, 1))
    slope = room(x)
    for left in range(start, stop, _PANEL):
        size = min(_PANEL, stop - left)
        centre, scale = window(mean, left, size), window(inv_std, left, size)
        # Differences to the first row lose nothing where the mean is far from 0.
        origin = window(x, left, size)
        _difference_sums(x, origin, centre, left)
        for j in range(size):
            centre[j] = origin[j] + centre[j] / count
        _square_sums(x, centre, scale, left)
        followed, spread = window(running_mean, left, size), window(running_var, left, size)
        for j in range(size):
            followed[j] += weight * (centre[j] - followed[j])
        for j in range(size):
            var = scale[j] / count
            spread[j] += weight * (var * unbiased - spread[j])
            scale[j] = one / root(var + least)
        factor, shift = window(gamma, left, size), window(beta, left, size)
        for j in range(size):
            slope[j] = factor[j] * scale[j]
        for first in range(left, left + n * m, m):
            row, source = window(y, first, size), window(x, first, size)
            for j in range(size):
                row[j] = (source[j] - centre[j]) * slope[j] + shift[j]
            activate(row, activation)


@njit(**OPTIONS)
def _batchnorm_forward(
    x,
    gamma,
    beta,
    activation,
    epsilon,
    momentum,
    running_mean,
    running_var,
    y,
    mean,
    inv_std,
    part,
    parts,
):
    m = x.shape[1]
    start, stop = edge(m, part, parts), edge(m, part + 1, parts)
    running = running_mean, running_var
    _normalise(x, gamma, beta, activation, epsilon, momentum, *running, y, mean, inv_std, start, stop)


@njit(**OPTIONS)
def _dense_batchnorm_forward(
    x,
    w,
    b,
    gamma,
    beta,
    activation,
    epsilon,
    momentum,
    running_mean,
    running_var,
    z,
    y,
    mean,
    inv_std,
    part,
    parts,
):
    # a block of columns is normalised by the thread that made it
    running = running_mean, running_var
    n, k = x.shape
    m = w.shape[1]
    way = way_of(n, m, k, x, 0, n)
    blocks = count_blocks(way, m, n * k * m, parts)
    for block in range(*share(blocks, part, parts)):
        left, right = edge(m, block, blocks), edge(m, block + 1, blocks)
        _dense_block(x, w, b, 0, z, way, 0, n, left, right)
        _normalise(z, gamma, beta, activation, epsilon, momentum, *running, y, mean, inv_std, left, right)


@njit(**OPTIONS)
def _follow(x, gamma, beta, running_mean, running_var, activation, epsilon, y, start, stop):
    """Normalise the columns from `start` to `stop` with the running statistics; x may be y."""
    n, m = x.shape
    least = x.dtype.type(epsilon)
    scale = room(x)
    for left in range(start, stop, _PANEL):
        size = min(_PANEL, stop - left)
        centre, spread = window(running_mean, left, size), window(running_var, left, size)
        factor, shift = window(gamma, left, size), window(beta, left, size)
        for j in range(size):
            scale[j] = factor[j] / root(spread[j] + least)
        for first in range(left, left + n * m, m):
            row, source = window(y, first, size), window(x, first, size)
            for j in range(size):
                row[j] = (source[j] - centre[j]) * scale[j] + shift[j]
            activate(row, activation)


@njit(**OPTIONS)
def _batchnorm_inference(x, gamma, beta, running_mean, running_var, activation, epsilon, y, part, parts):
    m = x.shape[1]
    start, stop = edge(m, part, parts), edge(m, part + 1, parts)
    _follow(x, gamma, beta, running_mean, running_var, activation, epsilon, y, start, stop)


@njit(**OPTIONS)
def _dense_batchnorm_inference(
    x, w, b, gamma, beta, running_mean, running_var, activation, epsilon, y, part, parts
):
    n, k = x.shape
    m = w.shape[1]
    way = way_of(n, m, k, x, 0, n)
    blocks = count_blocks(way, m, n * k * m, parts)
    for block in range(*share(blocks, part, parts)):
        left, right = edge(m, block, blocks), edge(m, block + 1, blocks)
        _dense_block(x, w, b, 0, y, way, 0, n, left, right)
        _follow(y, gamma, beta, running_mean, running_var, activation, epsilon, y, left, right)


@njit(**OPTIONS)
def _batchnorm_backward(dy, x, gamma, y, mean, inv_std, activation, dx, dgamma, dbeta, part, parts):
    n, m = x.shape
    per_row = x.dtype.type(1 / n)
    start, stop = edge(m, part, parts), edge(m, part + 1, parts)
    for left in range(start, stop, _PANEL):
        size = min(_PANEL, stop - left)
        for first in range(left, left + n * m, m):
            row = window(dx, first, size)
            copy(window(dy, first, size), row)
            differentiate(row, window(y, first, size), activation)
        centre, scale = window(mean, left, size), window(inv_std, left, size)
        factor = window(gamma, left, size)
        sum_h, sum_1 = window(dgamma, left, size), window(dbeta, left, size)
        _column_sums(dx, sum_1, left)
        _product_sums(dx, x, centre, sum_h, left)
        for j in range(size):
            sum_h[j] *= scale[j]
        for first in range(left, left + n * m, m):
            row, source = window(dx, first, size), window(x, first, size)
            for j in range(size):
                h = (source[j] - centre[j]) * scale[j]
                row[j] = factor[j] * scale[j] * (row[j] - per_row * sum_1[j] - h * (per_row * sum_h[j]))


@njit(**OPTIONS)
def _softmax_forward(x, y, part, parts):
    for i in range(*share(x.shape[0], part, parts)):
        row, source = row_of(y, i), row_of(x, i)
        highest = rank(source[0])
        for j in range(row.size):
            r = rank(source[j])
            highest = pick(r > highest, r, highest)
        top, total = of_rank(highest), x.dtype.type(0)
        for j in range(row.size):
            e = exp(source[j] - top)
            total = plus(total, e)
            row[j] = e
        for j in range(row.size):
            row[j] /= total


@njit(**OPTIONS)
def _softmax_backward(dy, y, dx, part, parts):
    for i in range(*share(dx.shape[0], part, parts)):
        row, slope, saved = row_of(dx, i), row_of(dy, i), row_of(y, i)
        total = y.dtype.type(0)
        for j in range(row.size):
            total = plus(total, slope[j] * saved[j])
        for j in range(row.size):
            row[j] = saved[j] * (slope[j] - total)


@njit(**OPTIONS)
def _drop(x, counter, rate, stream, divisor, y, part, parts):
    """y = 0 where bits < rate 2^32, else x / divisor."""
    zero = x.dtype.type(0)
    low, high = key(counter, stream)
    last = np.uint32(max(math.ceil(rate * 2.0**32) - 1, 0))  # of the bits that drop an element, if any does
    for i in range(*share(x.shape[0], part, parts)):
        row, source = row_of(y, i), row_of(x, i)
        if rate == 0:
            copy(source, row)
            continue
        for j in range(row.size):
            dropped = bits(i * row.size + j, low, high) <= last
            row[j] = pick(dropped, zero, source[j] / divisor)


@njit(**OPTIONS)
def _dropout_forward(x, counter, rate, stream, y, part, parts):
    _drop(x, counter, rate, stream, x.dtype.type(1 - rate), y, part, parts)


@njit(**OPTIONS)
def _dropout_backward(dy, counter, rate, stream, dx, part, parts):
    _drop(dy, counter, rate, stream, dy.dtype.type(1 - rate), dx, part, parts)


@njit(**OPTIONS)
def _masking_noise(x, counter, rate, stream, y, part, parts):
    _drop(x, counter, rate, stream, x.dtype.type(1), y, part, parts)


@njit(**OPTIONS)
def _gaussian_noise(x, counter, stddev, stream, y, part, parts):
    real = x.dtype.type
    one, two, deviation, unit = real(1), real(2), real(stddev), real(2.0**-24)
    low, high = key(counter, stream)
    for i in range(*share(x.shape[0], part, parts)):
        row, source = row_of(y, i), row_of(x, i)
        for j in range(row.size):
            e = 2 * (i * row.size + j)
            u = (real(np.int32(bits(e, low, high) >> np.uint32(8))) + one) * unit
            v = real(np.int32(bits(e + 1, low, high) >> np.uint32(8))) * unit
            row[j] = source[j] + deviation * (root(-two * log(u)) * cosine_of_turn(v))


@njit(**OPTIONS)
def _gather_rows(data, order, x, part, parts):
    for i in range(*share(x.shape[0], part, parts)):
        copy(row_of(data, order[i]), row_of(x, i))


# --- compiled when first asked for ---------------------------------------------------------------


def _source(name: str) -> Any:
    """Body of a kernel in Python."""
    return (vars(jitted_images) | globals())[f"_{name}"].py_func


@cache
def _body(name: str, char: str) -> Any:
    """Compiled body of a kernel for a dtype. What it does not write may be read-only."""
    real = REALS[char]
    arguments = []
    for a in KERNELS[name].arguments:
        if isinstance(a, Array):
            element = types.int64 if a.kind == "index" else real
            arguments.append(types.Array(element, len(a.dims), "C", readonly=not a.written))
        else:
            arguments.append(types.float64 if a.kind == "real" else types.int64)
    return compiled(_source(name), types.void(*arguments, types.int64, types.int64))


class _Bodies(dict):
    """Bodies by kernel and dtype.char, compiled when looked up."""

    def __missing__(self, key: tuple[str, str]) -> Any:
        with said():
            body = self[key] = _body(*key)
        return body


_bodies = _Bodies()


def _array_form(kernel: Kernel) -> str:
    """Source of what is called by the kernel's name."""
    names = [a.name for a in kernel.arguments]
    first = next(a.name for a in kernel.arrays if a.kind == "real")
    lines = [f"def {kernel.name}({', '.join(names)}):", f"    {kernel.formula + '.'!r}"]
    for a in kernel.arrays:
        if a.optional and len(a.dims) > 1:  # absent comes with one dim
            lines += [
                f"    if {a.name}.ndim == 1:",
                f"        {a.name} = {a.name}.reshape({'0, ' * len(a.dims)})",
            ]
    call = f"_bodies[{kernel.name!r}, {first}.dtype.char]({', '.join(names)}, 0, 1)"
    # BLAS on several threads would add up in another order.
    lines += (
        ["    with jitted_runtime.one_thread():", f"        {call}"]
        if kernel.name.startswith(("dense", "conv"))
        else [f"    {call}"]
    )
    return "\n".join(lines) + "\n"


def _instruction_form(kernel: Kernel) -> tuple[str, str]:
    """Name and source of what a Program calls. The name tells the source: Numba's cache goes by it."""
    lines = []
    count = len(kernel.arguments)
    lines += [f"    n_{dim} = operands[{count + i}]" for i, dim in enumerate(kernel.dims)]
    for i, a in enumerate(kernel.arguments):
        if not isinstance(a, Array):
            value = f"at(operands, {i}, float64)[0]" if a.kind == "real" else f"operands[{i}]"
        else:
            shape = [d if d.isdigit() else f"n_{d}" for d in a.dims]
            if a.optional:
                shape[0] += f" if operands[{i}] >= 0 else 0"
            element = "int64" if a.kind == "index" else "real"
            value = f"carray(at(arena, operands[{i}], {element}), ({', '.join(shape)},))"
        lines.append(f"    a_{a.name} = {value}")
    lines.append(f"    body({', '.join('a_' + a.name for a in kernel.arguments)}, part, parts)")
    body = "\n".join(lines) + "\n"
    name = f"{kernel.name}_{hashlib.sha256((STAMP + body).encode()).hexdigest()[:12]}"
    return name, f"def {name}(arena, operands, part, parts):\n{body}"


@cache
def _instruction(name: str, char: str) -> Any:
    """Compiled instruction form of a kernel for a dtype: an object with an ``address``."""
    real = REALS[char]
    title, source = _instruction_form(KERNELS[name])
    names = {
        "at": at,
        # Part of the form: compiled before and then again with it, it would take half as long again.
        "body": njit(inline="always", **OPTIONS)(near(_source(name), char)),
        "carray": carray,
        "float64": types.float64,
        "int64": types.int64,
        "real": real,
        "__name__": __name__,
    }
    exec(compile(source, __file__, "exec"), names)
    signature = types.void(types.CPointer(real), types.CPointer(types.int64), types.int64, types.int64)
    return cfunc(signature, cache=cache_works(), **OPTIONS)(names[title])


for _kernel in KERNELS.values():
    exec(compile(_array_form(_kernel), f"<array form of {_kernel.name}>", "exec"))


class Executor(jitted_runtime.Executor):
    """Runs a Program with the kernels of this module."""

    instruction = staticmethod(_instruction)

    @staticmethod
    def keeps_rows(routine: Routine, rows: int, parts: int) -> bool:
        """Return whether each part has the same rows wherever the table shares out by rows."""
        for instruction in routine.instructions:
            if instruction.kernel in ("dense_forward", "dense_input_grad") and instruction.by_rows(rows):
                k, m = (instruction.dims(rows)[name] for name in "km")
                columns, depth = (m, k) if instruction.kernel == "dense_forward" else (k, m)
                if not in_tiles.py_func(rows, columns, depth):
                    return False
        return rows >= CHANNELS * parts

"""Every kernel in NumPy: products by BLAS, the rest by ufuncs that write where they are told.

No kernel allocates once it has run on a thread: outputs serve as scratch where they can, and where
they cannot a room that each thread keeps does. What each kernel computes, and where its formula
comes from, stands in its row of ``table.py``.

Floating-point warnings are the caller's: run inside ``np.errstate(all="ignore")`` to have none.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np

from fastae.executor import PythonExecutor
from fastae.kernels.vector_images import *  # noqa: F403
from fastae.kernels.vector_maths import (
    BITS,
    LARGE,
    ONE,
    SCRATCH,
    WEYL,
    ZERO,
    activate,
    differentiate,
    sigmoid_from,
)

PADDED = False
FUSED_UPDATE = False

_CHUNK = 1 << 15  # elements of a long vector worked on at a time, so that all it takes part in stays in cache


def prepare(array: np.ndarray) -> np.ndarray:
    """NumPy kernels take the array itself."""
    return array


def describe() -> dict[str, str]:
    """What runs the kernels of this backend."""
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return {"numpy": np.__version__, "blas": f"{blas.get('name', '?')} {blas.get('version', '?')}"}


# --- dense layers --------------------------------------------------------------------------------


def dense_forward(x, w, b, activation: int, y) -> None:
    """y = f(x w + b)."""
    x.dot(w, y)
    if b.size:
        np.add(y, b, y)
    if activation:
        activate(y, activation, y)


def dense_backward(dy, x, w, y, activation: int, da, dx, dw, db) -> None:
    """da = dy f'(y); dx = da w^T; dw = x^T da; db = sum_n da."""
    differentiate(dy, y, activation, da)
    da.dot(w.T, dx)
    x.T.dot(da, dw)
    np.add.reduce(da, 0, out=db)


def dense_input_grad(da, w, x, activation: int, dx) -> None:
    """dx = (da w^T) f'(x)."""
    da.dot(w.T, dx)
    if activation and x.size:
        differentiate(dx, x, activation, dx)


def dense_weight_grad(x, da, dw, db) -> None:
    """dw = x^T da; db = sum_n da."""
    x.T.dot(da, dw)
    if db.size:
        np.add.reduce(da, 0, out=db)


def dense_sgd(x, da, learning_rate: float, weight_decay: float, dw, w, b) -> None:
    """w -= learning_rate (x^T da + weight_decay w); b alike with sum_n da."""
    x.T.dot(da, dw)
    sgd(dw.reshape(-1), learning_rate, weight_decay, w.reshape(-1))
    if b.size:
        db = dw[0]  # free again
        np.add.reduce(da, 0, out=db)
        sgd(db, learning_rate, weight_decay, b)


def dense_adam(
    x,
    da,
    step,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    decoupled: int,
    dw,
    db,
    w,
    b,
    exp_avg_w,
    exp_avg_b,
    exp_avg_sq_w,
    exp_avg_sq_b,
) -> None:
    """Adam with g = x^T da for w, sum_n da for b."""
    constants = step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled
    x.T.dot(da, dw)
    adam(dw.reshape(-1), *constants, w.reshape(-1), exp_avg_w.reshape(-1), exp_avg_sq_w.reshape(-1))
    if b.size:
        np.add.reduce(da, 0, out=db)
        adam(db, *constants, b, exp_avg_b, exp_avg_sq_b)


# --- element by element --------------------------------------------------------------------------


def activation_forward(x, activation: int, y) -> None:
    """y = f(x)."""
    activate(x, activation, y)


def activation_backward(dy, y, activation: int, dx) -> None:
    """dx = dy f'(y)."""
    differentiate(dy, y, activation, dx)


def subsample_forward(x, stride: int, y) -> None:
    """y[:, j] = x[:, stride j]."""
    np.copyto(y, x[:, ::stride])


def subsample_backward(dy, stride: int, dx) -> None:
    """dx[:, stride j] = dy[:, j], else 0."""
    dx.fill(0)
    dx[:, ::stride] = dy


def branch_sum(x1, x2, y) -> None:
    """y = x1 + x2."""
    np.add(x1, x2, y)


def biased_sum(x1, x2, b, activation: int, y) -> None:
    """y = f((x1 + x2) + b)."""
    np.add(x1, x2, y)
    if b.size:
        np.add(y, b, y)
    if activation:
        activate(y, activation, y)


def bias_grad(da, db) -> None:
    """db = sum_n da."""
    np.add.reduce(da, 0, out=db)


# --- batch normalisation -------------------------------------------------------------------------


def batchnorm_forward(
    x,
    gamma,
    beta,
    activation: int,
    epsilon: float,
    momentum: float,
    running_mean,
    running_var,
    y,
    mean,
    inv_std,
) -> None:
    """y = f(gamma (x - mean) inv_std + beta), with the mean and the variance of each column."""
    n = len(x)
    room = SCRATCH.take(x.dtype.char, x.shape)
    row = room[0]
    np.add.reduce(x, 0, out=mean)
    np.divide(mean, n, mean)
    np.subtract(x, mean, y)
    # A long sum of large numbers errs by more than the spread of float32 data may be; the sum of what it
    # left does not.
    np.add.reduce(y, 0, out=row)
    np.divide(row, n, row)
    np.add(mean, row, mean)
    np.subtract(y, row, y)
    np.multiply(y, y, room)
    np.add.reduce(room, 0, out=inv_std)

    np.subtract(mean, running_mean, row)
    np.multiply(row, momentum, row)
    np.add(running_mean, row, running_mean)
    np.divide(inv_std, max(n - 1, 1), row)
    np.subtract(row, running_var, row)
    np.multiply(row, momentum, row)
    np.add(running_var, row, running_var)

    np.divide(inv_std, n, inv_std)
    np.add(inv_std, epsilon, inv_std)
    np.sqrt(inv_std, inv_std)
    np.divide(ONE[x.dtype.char], inv_std, inv_std)
    np.multiply(gamma, inv_std, row)
    np.multiply(y, row, y)
    np.add(y, beta, y)
    if activation:
        activate(y, activation, y)


def batchnorm_inference(
    x, gamma, beta, running_mean, running_var, activation: int, epsilon: float, y
) -> None:
    """y = f(gamma (x - running_mean) / sqrt(running_var + epsilon) + beta)."""
    scale = SCRATCH.take(x.dtype.char, gamma.shape)
    np.add(running_var, epsilon, scale)
    np.sqrt(scale, scale)
    np.divide(gamma, scale, scale)
    np.subtract(x, running_mean, y)
    np.multiply(y, scale, y)
    np.add(y, beta, y)
    if activation:
        activate(y, activation, y)


def batchnorm_backward(dy, x, gamma, y, mean, inv_std, activation: int, dx, dgamma, dbeta) -> None:
    """dx = gamma inv_std (da - dbeta / n - h dgamma / n), da = dy f'(y), h = (x - mean) inv_std."""
    n = len(x)
    da = dy
    if activation:
        differentiate(dy, y, activation, dx)
        da = dx
    h, products = SCRATCH.take(x.dtype.char, (2, *x.shape))
    row = products[0]
    np.add.reduce(da, 0, out=dbeta)
    np.subtract(x, mean, h)
    np.multiply(h, inv_std, h)
    np.multiply(da, h, products)
    np.add.reduce(products, 0, out=dgamma)
    np.divide(dgamma, n, row)
    np.multiply(h, row, h)
    np.divide(dbeta, n, row)
    np.subtract(da, row, dx)
    np.subtract(dx, h, dx)
    np.multiply(gamma, inv_std, row)
    np.multiply(dx, row, dx)


def dense_batchnorm_forward(
    x,
    w,
    b,
    gamma,
    beta,
    activation: int,
    epsilon: float,
    momentum: float,
    running_mean,
    running_var,
    z,
    y,
    mean,
    inv_std,
) -> None:
    """z = x w + b; y = f(gamma (z - mean) inv_std + beta)."""
    dense_forward(x, w, b, 0, z)
    batchnorm_forward(
        z, gamma, beta, activation, epsilon, momentum, running_mean, running_var, y, mean, inv_std
    )


def dense_batchnorm_inference(
    x, w, b, gamma, beta, running_mean, running_var, activation: int, epsilon: float, y
) -> None:
    """y = f(gamma (x w + b - running_mean) / sqrt(running_var + epsilon) + beta)."""
    dense_forward(x, w, b, 0, y)
    batchnorm_inference(y, gamma, beta, running_mean, running_var, activation, epsilon, y)


# --- softmax -------------------------------------------------------------------------------------


def softmax_forward(x, y) -> None:
    """y = exp(x - max_m x) / sum_m exp(x - max_m x)."""
    column = SCRATCH.take(x.dtype.char, (len(x), 1))
    np.maximum.reduce(x, 1, out=column, keepdims=True)
    np.subtract(x, column, y)
    np.exp(y, y)  # at most 1: cannot overflow
    np.add.reduce(y, 1, out=column, keepdims=True)
    np.divide(y, column, y)


def softmax_backward(dy, y, dx) -> None:
    """dx = y (dy - sum_m dy y)."""
    column = SCRATCH.take(y.dtype.char, (len(y), 1))
    np.matmul(dy[:, None, :], y[:, :, None], column[:, :, None])
    np.subtract(dy, column, dx)
    np.multiply(dx, y, dx)


# --- random numbers from a counter: table.py says which ------------------------------------------

_WORD32 = 0xFFFFFFFF
_WORD64 = 0xFFFFFFFFFFFFFFFF
_FACTOR1 = np.full((), 0x7FEB352D, np.uint32)
_FACTOR2 = np.full((), 0x846CA68B, np.uint32)
_SHIFTS = {by: np.full((), by, np.uint32) for by in (8, 15, 16)}
_SIGNED_SHIFT = np.full((), 8, np.int32)
_QUARTER = np.full((), 1 << 22, np.int32)  # of 2^24


def _mix64(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _WORD64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _WORD64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _WORD64
    return z ^ z >> 31


def _key(counter: np.ndarray, stream: int) -> tuple[int, np.uint32]:
    """Halves of the key."""
    step, seed = counter.tolist()
    key = _mix64(_mix64(_mix64(seed) + step) + stream)
    return key & _WORD32, np.uint32(key >> 32)


def _bits(first: int, every: int, key: tuple[int, np.uint32], room: np.ndarray) -> np.ndarray:
    """bits(e) for e = first, first + every, ..., in the first row of ``room``."""
    h, shifted = room
    low, high = key
    if every == 1:
        np.add(SCRATCH.steps(h.size), np.uint32((low + first * WEYL) & _WORD32), h)
    else:
        np.multiply(SCRATCH.steps(h.size), np.uint32(every), h)
        np.add(h, np.uint32((low + first * WEYL) & _WORD32), h)
    np.bitwise_xor(h, high, h)
    np.right_shift(h, _SHIFTS[16], shifted)
    np.bitwise_xor(h, shifted, h)
    np.multiply(h, _FACTOR1, h)
    np.right_shift(h, _SHIFTS[15], shifted)
    np.bitwise_xor(h, shifted, h)
    np.multiply(h, _FACTOR2, h)
    np.right_shift(h, _SHIFTS[16], shifted)
    np.bitwise_xor(h, shifted, h)
    return h


def _zero_some(x: np.ndarray, counter, rate: float, stream: int, scale: float, y: np.ndarray) -> None:
    """y = 0 where bits(i m + j) < rate 2^32, else scale x."""
    threshold = math.ceil(rate * 2.0**32)
    if threshold > _WORD32:  # a rate that rounds to 1
        y.fill(0)
        return
    least = np.uint32(threshold)
    key = _key(counter, stream)
    words = BITS[x.dtype.char]
    source, result = x.reshape(-1), y.reshape(-1)
    for start in range(0, source.size, _CHUNK):
        taken, given = source[start : start + _CHUNK], result[start : start + _CHUNK]
        h = _bits(start, 1, key, SCRATCH.take("I", (2, given.size)))
        kept = SCRATCH.take("?", given.shape)
        chosen = SCRATCH.take(words.char, given.shape)
        np.greater_equal(h, least, kept)
        np.copyto(chosen, kept)
        if scale != 1.0:
            np.multiply(taken, scale, given)
            taken = given
        # The bits of x times 0 or 1, as in the derivative of relu.
        np.multiply(taken.view(words), chosen, given.view(words))


def dropout_forward(x, counter, rate: float, stream: int, y) -> None:
    """y = 0 where bits(i m + j) < rate 2^32, else x / (1 - rate)."""
    _zero_some(x, counter, rate, stream, 1.0 / (1.0 - rate), y)


def dropout_backward(dy, counter, rate: float, stream: int, dx) -> None:
    """dx = 0 where bits(i m + j) < rate 2^32, else dy / (1 - rate)."""
    _zero_some(dy, counter, rate, stream, 1.0 / (1.0 - rate), dx)


def masking_noise(x, counter, rate: float, stream: int, y) -> None:
    """y = 0 where bits(i m + j) < rate 2^32, else x."""
    _zero_some(x, counter, rate, stream, 1.0, y)


def gaussian_noise(x, counter, stddev: float, stream: int, y) -> None:
    """y = x + stddev sqrt(-2 log u) cos(2 pi v), u and v from bits(2 e) and bits(2 e + 1)."""
    key = _key(counter, stream)
    source, result = x.reshape(-1), y.reshape(-1)
    for start in range(0, source.size, _CHUNK):
        taken, given = source[start : start + _CHUNK], result[start : start + _CHUNK]
        room = SCRATCH.take("I", (2, given.size))
        radius, cosine = SCRATCH.take(x.dtype.char, (2, given.size))
        h = _bits(2 * start, 2, key, room)
        np.right_shift(h, _SHIFTS[8], h)
        np.copyto(radius, h.view(np.int32))  # below 2^24, and signed words are faster to convert
        np.add(radius, ONE[x.dtype.char], radius)
        np.multiply(radius, 2.0**-24, radius)
        np.log(radius, radius)
        np.multiply(radius, -2.0, radius)
        np.sqrt(radius, radius)
        np.multiply(radius, stddev, radius)
        # As a signed word the angle lies within half a turn; the cosine is the sine of its exact distance
        # from a quarter turn, precise where it is near 0.
        h = _bits(2 * start + 1, 2, key, room).view(np.int32)
        np.right_shift(h, _SIGNED_SHIFT, h)
        np.absolute(h, h)
        np.subtract(_QUARTER, h, h)
        np.copyto(cosine, h)
        np.multiply(cosine, 2.0 * math.pi / 2**24, cosine)
        np.sin(cosine, cosine)
        np.multiply(radius, cosine, radius)
        np.add(taken, radius, given)


# --- losses --------------------------------------------------------------------------------------


def _finish(y, sample_weight, activation: int, row_loss, da) -> None:
    """Weight the rows, and take da through the activation."""
    if sample_weight.size:
        np.multiply(row_loss, sample_weight, row_loss)
        np.multiply(da, sample_weight[:, None], da)
    if activation:
        differentiate(da, y, activation, da)


def _squares(y: np.ndarray, target: np.ndarray, row_loss: np.ndarray, error: np.ndarray) -> None:
    """error = y - target; row_loss = sum_m error^2."""
    np.subtract(y, target, error)
    # A product of a row with a column for each row: the squares are never stored.
    np.matmul(error[:, None, :], error[:, :, None], row_loss[:, None, None])


def sse(y, target, sample_weight, activation: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2; da = 2 (y - target) f'(y)."""
    _squares(y, target, row_loss, da)
    np.add(da, da, da)
    _finish(y, sample_weight, activation, row_loss, da)


def mse(y, target, sample_weight, activation: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2 / (n m); da = 2 (y - target) / (n m) f'(y)."""
    mse_part(y, target, sample_weight, activation, y.shape[1], row_loss, da)


def mse_part(y, target, sample_weight, activation: int, columns: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2 / (n columns); da = 2 (y - target) / (n columns) f'(y)."""
    count = len(y) * columns
    _squares(y, target, row_loss, da)
    np.divide(row_loss, count, row_loss)
    np.multiply(da, 2.0 / count, da)
    _finish(y, sample_weight, activation, row_loss, da)


def mae(y, target, sample_weight, activation: int, row_loss, da) -> None:
    """row_loss = sum_m |y - target| / (n m); da = sign(y - target) / (n m) f'(y)."""
    np.subtract(y, target, da)
    distance = SCRATCH.take(y.dtype.char, y.shape)
    np.absolute(da, distance)
    np.add.reduce(distance, 1, out=row_loss)
    np.divide(row_loss, y.size, row_loss)
    # The sign, faster than np.sign: what is not 0 is made large, twice for the subnormal, and clipped.
    np.multiply(da, LARGE[y.dtype.char], da)
    np.multiply(da, LARGE[y.dtype.char], da)
    np.minimum(da, 1.0 / y.size, out=da)
    np.maximum(da, -1.0 / y.size, out=da)
    _finish(y, sample_weight, activation, row_loss, da)


def huber(y, target, sample_weight, activation: int, delta: float, row_loss, da) -> None:
    """row_loss = sum_m c (e - c / 2) / (n m), e = y - target, c = clip(e, -delta, delta)."""
    half = SCRATCH.take(y.dtype.char, y.shape)  # of c
    np.subtract(y, target, da)
    np.minimum(da, delta, out=half)
    np.maximum(half, -delta, out=half)
    np.multiply(half, 0.5, half)
    np.subtract(da, half, da)
    np.matmul(half[:, None, :], da[:, :, None], row_loss[:, None, None])
    np.multiply(row_loss, 2.0 / y.size, row_loss)
    np.multiply(half, 2.0 / y.size, da)
    _finish(y, sample_weight, activation, row_loss, da)


def bce(y, target, sample_weight, activation: int, row_loss, da) -> None:
    """row_loss = sum_m -(target log y + (1 - target) log(1 - y)) / (n m), each log at least -100."""
    one = ONE[y.dtype.char]
    room = SCRATCH.take(y.dtype.char, y.shape)
    np.negative(y, da)
    np.log1p(da, da)
    np.maximum(da, -100.0, out=da)
    np.subtract(one, target, room)
    np.multiply(da, room, da)
    np.log(y, room)
    np.maximum(room, -100.0, out=room)
    np.multiply(room, target, room)
    np.add(da, room, da)
    np.add.reduce(da, 1, out=row_loss)
    np.divide(row_loss, -y.size, row_loss)
    np.subtract(one, y, room)
    np.multiply(room, y, room)
    np.maximum(room, 1e-12, out=room)
    np.subtract(y, target, da)
    np.divide(da, room, da)
    np.multiply(da, 1.0 / y.size, da)
    _finish(y, sample_weight, activation, row_loss, da)


def bce_with_logits(logits, target, sample_weight, row_loss, da) -> None:
    """row_loss = sum_m (max(z, 0) - z target + log1p(exp(-|z|))) / (n m), z = logits."""
    e, room = SCRATCH.take(logits.dtype.char, (2, *logits.shape))
    np.maximum(logits, ZERO[logits.dtype.char], out=da)
    np.multiply(logits, target, room)
    np.subtract(da, room, da)
    np.absolute(logits, e)
    np.negative(e, e)
    np.exp(e, e)
    np.log1p(e, room)
    np.add(da, room, da)
    np.add.reduce(da, 1, out=row_loss)
    np.divide(row_loss, logits.size, row_loss)
    sigmoid_from(logits, e, da)
    np.subtract(da, target, da)
    np.multiply(da, 1.0 / logits.size, da)
    _finish(logits, sample_weight, 0, row_loss, da)


def total(row_loss, loss) -> None:
    """loss = sum_n row_loss."""
    np.add.reduce(row_loss, 0, out=loss, keepdims=True)


def row_mse(y, target, error) -> None:
    """error = sum_m (y - target)^2 / m."""
    _squares(y, target, error, SCRATCH.take(y.dtype.char, y.shape))
    np.divide(error, y.shape[1], error)


# --- optimisers and data -------------------------------------------------------------------------


def _by_chunks(
    update: Callable[..., None], rooms: int, vectors: tuple[np.ndarray, ...], constants: tuple[float, ...]
) -> None:
    """update(scratch, *vectors, *constants), a chunk of the vectors at a time, with rows of scratch."""
    size = vectors[0].size
    scratch = SCRATCH.take(vectors[0].dtype.char, (rooms, min(size, _CHUNK)))
    if size <= _CHUNK:
        update(scratch, *vectors, *constants)
        return
    for start in range(0, size, _CHUNK):
        parts = [vector[start : start + _CHUNK] for vector in vectors]
        update(scratch[:, : parts[0].size], *parts, *constants)


def _decayed(g: np.ndarray, w: np.ndarray, weight_decay: float, room: np.ndarray) -> np.ndarray:
    """Return g + weight_decay w, in ``room`` if that is not g."""
    if weight_decay == 0.0:
        return g
    np.multiply(w, weight_decay, room)
    np.add(g, room, room)
    return room


def _sgd(scratch, g, w, learning_rate: float, weight_decay: float) -> None:
    step = scratch[0]
    np.multiply(_decayed(g, w, weight_decay, step), learning_rate, step)
    np.subtract(w, step, w)


def sgd(g, learning_rate: float, weight_decay: float, w) -> None:
    """w -= learning_rate (g + weight_decay w)."""
    _by_chunks(_sgd, 1, (g, w), (learning_rate, weight_decay))


def _momentum(
    scratch, g, w, velocity, learning_rate: float, momentum: float, nesterov: int, weight_decay: float
) -> None:
    step, room = scratch
    g = _decayed(g, w, weight_decay, room)
    np.multiply(velocity, momentum, velocity)
    np.add(velocity, g, velocity)
    if nesterov:
        np.multiply(velocity, momentum, step)
        np.add(g, step, step)
        np.multiply(step, learning_rate, step)
    else:
        np.multiply(velocity, learning_rate, step)
    np.subtract(w, step, w)


def momentum(
    g, learning_rate: float, momentum: float, nesterov: int, weight_decay: float, w, velocity
) -> None:
    """velocity = momentum velocity + g; w -= learning_rate velocity, or one step ahead of it."""
    _by_chunks(_momentum, 2, (g, w, velocity), (learning_rate, momentum, nesterov, weight_decay))


def _moving_square(average: np.ndarray, g: np.ndarray, decay: float, room: np.ndarray) -> None:
    """average = decay average + (1 - decay) g^2."""
    np.multiply(average, decay, average)
    np.multiply(g, 1.0 - decay, room)
    np.multiply(room, g, room)
    np.add(average, room, average)


def _adam(
    scratch,
    g,
    w,
    exp_avg,
    exp_avg_sq,
    rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    shrink: float,
) -> None:
    step = scratch[0]
    if shrink != 1.0:
        np.multiply(w, shrink, w)
    if weight_decay:
        g = _decayed(g, w, weight_decay, scratch[1])
    np.multiply(exp_avg, beta1, exp_avg)
    np.multiply(g, 1.0 - beta1, step)
    np.add(exp_avg, step, exp_avg)
    _moving_square(exp_avg_sq, g, beta2, step)
    np.sqrt(exp_avg_sq, step)
    np.add(step, epsilon, step)
    np.divide(exp_avg, step, step)
    np.multiply(step, rate, step)
    np.subtract(w, step, w)


def adam(
    g,
    step,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    decoupled: int,
    w,
    exp_avg,
    exp_avg_sq,
) -> None:
    """w -= learning_rate / (1 - beta1^t) exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + epsilon)."""
    t = int(step[0]) + 1
    # The root of the second correction is taken out of the denominator: a pass less.
    root = math.sqrt(1.0 - beta2**t)
    rate = learning_rate * root / (1.0 - beta1**t)
    shrink = 1.0 - learning_rate * weight_decay if decoupled else 1.0
    weight_decay = 0.0 if decoupled else weight_decay
    _by_chunks(
        _adam,
        2 if weight_decay else 1,
        (g, w, exp_avg, exp_avg_sq),
        (rate, beta1, beta2, epsilon * root, weight_decay, shrink),
    )


def _rmsprop(
    scratch, g, w, square_avg, learning_rate: float, alpha: float, epsilon: float, weight_decay: float
) -> None:
    step, room = scratch
    g = _decayed(g, w, weight_decay, room)
    _moving_square(square_avg, g, alpha, step)
    np.sqrt(square_avg, step)
    np.add(step, epsilon, step)
    np.divide(g, step, step)
    np.multiply(step, learning_rate, step)
    np.subtract(w, step, w)


def rmsprop(
    g, learning_rate: float, alpha: float, epsilon: float, weight_decay: float, w, square_avg
) -> None:
    """w -= learning_rate g / (sqrt(square_avg) + epsilon)."""
    _by_chunks(_rmsprop, 2, (g, w, square_avg), (learning_rate, alpha, epsilon, weight_decay))


def _adagrad(scratch, g, w, square_sum, learning_rate: float, epsilon: float, weight_decay: float) -> None:
    step, room = scratch
    g = _decayed(g, w, weight_decay, room)
    np.multiply(g, g, step)
    np.add(square_sum, step, square_sum)
    np.sqrt(square_sum, step)
    np.add(step, epsilon, step)
    np.divide(g, step, step)
    np.multiply(step, learning_rate, step)
    np.subtract(w, step, w)


def adagrad(g, learning_rate: float, epsilon: float, weight_decay: float, w, square_sum) -> None:
    """w -= learning_rate g / (sqrt(square_sum) + epsilon)."""
    _by_chunks(_adagrad, 2, (g, w, square_sum), (learning_rate, epsilon, weight_decay))


def clip_by_norm(max_norm: float, g, norm) -> None:
    """norm = sqrt(sum_p g^2); g *= max_norm / norm where norm > max_norm."""
    squares = 0.0
    for start in range(0, g.size, _CHUNK):
        part = g[start : start + _CHUNK]
        room = SCRATCH.take("d", part.shape)
        np.copyto(room, part)
        np.multiply(room, room, room)
        squares += float(np.add.reduce(room))
    length = math.sqrt(squares)
    if length > max_norm:
        np.multiply(g, max_norm / length, g)
    norm[0] = length


def gather_rows(data, order, x) -> None:
    """x[i] = data[order[i]]."""
    data.take(order, 0, x, "clip")  # "raise" would take into a copy first


class Executor(PythonExecutor):
    """Runs a Program with the kernels of this module."""

    kernels = sys.modules[__name__]

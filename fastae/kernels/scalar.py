"""Every kernel in plain Python loops: the readable definition the other backends are held to.

Arrays are memoryviews: ``x[i, k]`` reads and writes the array underneath, and reading gives a
Python float, so sums are taken in double precision whatever the dtype and rounded once when stored.
What each kernel computes, and where its formula comes from, stands in its row of ``table.py``.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable

from fastae.executor import PythonExecutor
from fastae.kernels.scalar_images import *  # noqa: F403
from fastae.kernels.scalar_maths import ACTIVATIONS, GRADIENTS, divide, log, log1p, root, sigmoid

PADDED = False
FUSED_UPDATE = False

prepare = memoryview


def describe() -> dict[str, str]:
    """What runs the kernels of this backend."""
    return {"interpreter": f"{platform.python_implementation()} {platform.python_version()}"}


# --- dense layers --------------------------------------------------------------------------------


def dense_forward(x, w, b, activation: int, y) -> None:
    """y = f(x w + b)."""
    f = ACTIVATIONS[activation]
    n, k = x.shape
    m = w.shape[1]
    inputs = range(k)
    for i in range(n):
        for j in range(m):
            total = 0.0
            for c in inputs:
                total += x[i, c] * w[c, j]
            if len(b):
                total += b[j]
            y[i, j] = f(total)


def dense_backward(dy, x, w, y, activation: int, da, dx, dw, db) -> None:
    """da = dy f'(y); dx = da w^T; dw = x^T da; db = sum_n da."""
    activation_backward(dy, y, activation, da)
    dense_input_grad(da, w, _ABSENT, 0, dx)
    dense_weight_grad(x, da, dw, db)


def dense_input_grad(da, w, x, activation: int, dx) -> None:
    """dx = (da w^T) f'(x)."""
    gradient = GRADIENTS[activation]
    n, m = da.shape
    k = w.shape[0]
    saved = len(x) > 0
    outputs = range(m)
    for i in range(n):
        for c in range(k):
            total = 0.0
            for j in outputs:
                total += da[i, j] * w[c, j]
            dx[i, c] = gradient(total, x[i, c]) if saved else total


def dense_weight_grad(x, da, dw, db) -> None:
    """dw = x^T da; db = sum_n da."""
    n, k = x.shape
    m = da.shape[1]
    rows = range(n)
    for c in range(k):
        for j in range(m):
            total = 0.0
            for i in rows:
                total += x[i, c] * da[i, j]
            dw[c, j] = total
    if len(db):
        for j in range(m):
            total = 0.0
            for i in rows:
                total += da[i, j]
            db[j] = total


def dense_sgd(x, da, learning_rate: float, weight_decay: float, dw, w, b) -> None:
    """w -= learning_rate (x^T da + weight_decay w); b alike with sum_n da."""
    n, k = x.shape
    m = da.shape[1]
    rows = range(n)
    for c in range(k):
        for j in range(m):
            total = 0.0
            for i in rows:
                total += x[i, c] * da[i, j]
            w[c, j] -= learning_rate * (total + weight_decay * w[c, j])
    if len(b):
        for j in range(m):
            total = 0.0
            for i in rows:
                total += da[i, j]
            b[j] -= learning_rate * (total + weight_decay * b[j])


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
    dense_weight_grad(x, da, dw, db)
    update = _adam(step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
    k, m = w.shape
    for c in range(k):
        for j in range(m):
            w[c, j], exp_avg_w[c, j], exp_avg_sq_w[c, j] = update(
                dw[c, j], w[c, j], exp_avg_w[c, j], exp_avg_sq_w[c, j]
            )
    for j in range(len(b)):
        b[j], exp_avg_b[j], exp_avg_sq_b[j] = update(db[j], b[j], exp_avg_b[j], exp_avg_sq_b[j])


# --- element by element --------------------------------------------------------------------------


def activation_forward(x, activation: int, y) -> None:
    """y = f(x)."""
    f = ACTIVATIONS[activation]
    n, m = x.shape
    for i in range(n):
        for j in range(m):
            y[i, j] = f(x[i, j])


def activation_backward(dy, y, activation: int, dx) -> None:
    """dx = dy f'(y)."""
    gradient = GRADIENTS[activation]
    n, m = dy.shape
    for i in range(n):
        for j in range(m):
            dx[i, j] = gradient(dy[i, j], y[i, j])


def subsample_forward(x, stride: int, y) -> None:
    """y[:, j] = x[:, stride j]."""
    n, m = y.shape
    for i in range(n):
        for j in range(m):
            y[i, j] = x[i, stride * j]


def subsample_backward(dy, stride: int, dx) -> None:
    """dx[:, stride j] = dy[:, j], else 0."""
    n, k = dx.shape
    for i in range(n):
        for c in range(k):
            dx[i, c] = 0.0 if c % stride else dy[i, c // stride]


def branch_sum(x1, x2, y) -> None:
    """y = x1 + x2."""
    n, m = y.shape
    for i in range(n):
        for j in range(m):
            y[i, j] = x1[i, j] + x2[i, j]


def biased_sum(x1, x2, b, activation: int, y) -> None:
    """y = f((x1 + x2) + b)."""
    f = ACTIVATIONS[activation]
    n, m = y.shape
    for i in range(n):
        for j in range(m):
            y[i, j] = f(x1[i, j] + x2[i, j] + (b[j] if len(b) else 0.0))


def bias_grad(da, db) -> None:
    """db = sum_n da."""
    n, m = da.shape
    for j in range(m):
        total = 0.0
        for i in range(n):
            total += da[i, j]
        db[j] = total


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
    f = ACTIVATIONS[activation]
    n, m = x.shape
    rows = range(n)
    for j in range(m):
        total = 0.0
        for i in rows:
            total += x[i, j]
        center = total / n
        squares = 0.0
        for i in rows:
            deviation = x[i, j] - center
            squares += deviation * deviation
        scale = divide(1.0, root(squares / n + epsilon))
        for i in rows:
            y[i, j] = f(gamma[j] * (x[i, j] - center) * scale + beta[j])
        mean[j] = center
        inv_std[j] = scale
        running_mean[j] += momentum * (center - running_mean[j])
        running_var[j] += momentum * (squares / max(n - 1, 1) - running_var[j])


def batchnorm_inference(
    x, gamma, beta, running_mean, running_var, activation: int, epsilon: float, y
) -> None:
    """y = f(gamma (x - running_mean) / sqrt(running_var + epsilon) + beta)."""
    f = ACTIVATIONS[activation]
    n, m = x.shape
    for j in range(m):
        scale = divide(gamma[j], root(running_var[j] + epsilon))
        for i in range(n):
            y[i, j] = f(scale * (x[i, j] - running_mean[j]) + beta[j])


def batchnorm_backward(dy, x, gamma, y, mean, inv_std, activation: int, dx, dgamma, dbeta) -> None:
    """dx = gamma inv_std (da - dbeta / n - h dgamma / n), da = dy f'(y), h = (x - mean) inv_std."""
    gradient = GRADIENTS[activation]
    n, m = dy.shape
    rows = range(n)
    for j in range(m):
        total = 0.0  # of da
        along = 0.0  # of da h
        for i in rows:
            da = gradient(dy[i, j], y[i, j])
            total += da
            along += da * ((x[i, j] - mean[j]) * inv_std[j])
        for i in rows:
            da = gradient(dy[i, j], y[i, j])
            h = (x[i, j] - mean[j]) * inv_std[j]
            dx[i, j] = gamma[j] * inv_std[j] * (da - total / n - h * along / n)
        dgamma[j] = along
        dbeta[j] = total


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
    n, m = x.shape
    columns = range(m)
    for i in range(n):
        top = max(x[i, j] for j in columns)
        powers = [math.exp(x[i, j] - top) for j in columns]  # at most 1: cannot overflow
        total = 0.0
        for power in powers:
            total += power
        for j in columns:
            y[i, j] = powers[j] / total


def softmax_backward(dy, y, dx) -> None:
    """dx = y (dy - sum_m dy y)."""
    n, m = dy.shape
    columns = range(m)
    for i in range(n):
        total = 0.0
        for j in columns:
            total += dy[i, j] * y[i, j]
        for j in columns:
            dx[i, j] = y[i, j] * (dy[i, j] - total)


# --- random numbers from a counter: table.py says which ------------------------------------------

_WORD32 = 0xFFFFFFFF
_WORD64 = 0xFFFFFFFFFFFFFFFF


def _mix64(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _WORD64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _WORD64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _WORD64
    return z ^ z >> 31


def _mix32(h: int) -> int:
    h = ((h ^ h >> 16) * 0x7FEB352D) & _WORD32
    h = ((h ^ h >> 15) * 0x846CA68B) & _WORD32
    return h ^ h >> 16


def _generator(counter, stream: int) -> Callable[[int], int]:
    """Return bits(e), which gives 32 random bits for element e."""
    step, seed = counter
    key = _mix64(_mix64(_mix64(seed) + step) + stream)
    low, high = key & _WORD32, key >> 32

    def bits(e: int) -> int:
        return _mix32(((e * 0x9E3779B9 + low) & _WORD32) ^ high)

    return bits


def _zero_some(x, counter, rate: float, stream: int, kept: float, y) -> None:
    """y = 0 where bits(i m + j) < rate 2^32, else x / kept."""
    bits = _generator(counter, stream)
    threshold = rate * 2.0**32
    n, m = x.shape
    for i in range(n):
        for j in range(m):
            y[i, j] = 0.0 if bits(i * m + j) < threshold else x[i, j] / kept


def dropout_forward(x, counter, rate: float, stream: int, y) -> None:
    """y = 0 where bits(i m + j) < rate 2^32, else x / (1 - rate)."""
    _zero_some(x, counter, rate, stream, 1.0 - rate, y)


def dropout_backward(dy, counter, rate: float, stream: int, dx) -> None:
    """dx = 0 where bits(i m + j) < rate 2^32, else dy / (1 - rate)."""
    _zero_some(dy, counter, rate, stream, 1.0 - rate, dx)


def masking_noise(x, counter, rate: float, stream: int, y) -> None:
    """y = 0 where bits(i m + j) < rate 2^32, else x."""
    _zero_some(x, counter, rate, stream, 1.0, y)


def gaussian_noise(x, counter, stddev: float, stream: int, y) -> None:
    """y = x + stddev sqrt(-2 log u) cos(2 pi v), u and v from bits(2 e) and bits(2 e + 1)."""
    bits = _generator(counter, stream)
    n, m = x.shape
    for i in range(n):
        for j in range(m):
            e = i * m + j
            u = ((bits(2 * e) >> 8) + 1) / 2**24  # never 0
            v = (bits(2 * e + 1) >> 8) / 2**24
            # The sine of the angle's exact distance from a quarter turn: precise where the cosine is near 0.
            cosine = math.sin(2.0 * math.pi * (0.25 - min(v, 1.0 - v)))
            y[i, j] = x[i, j] + stddev * (math.sqrt(-2.0 * math.log(u)) * cosine)


# --- losses --------------------------------------------------------------------------------------


def _loss(
    of: Callable[[float, float], tuple[float, float]],
    y,
    target,
    sample_weight,
    activation: int,
    count: int,
    row_loss,
    da,
) -> None:
    """Loss of each row and da, divided by ``count``: ``of`` gives an element's loss and its slope."""
    gradient = GRADIENTS[activation]
    n, m = y.shape
    for i in range(n):
        weight = sample_weight[i] if len(sample_weight) else 1.0
        total = 0.0
        for j in range(m):
            loss, slope = of(y[i, j], target[i, j])
            total += loss
            da[i, j] = gradient(weight * slope / count, y[i, j])
        row_loss[i] = weight * total / count


def _squared(y: float, target: float) -> tuple[float, float]:
    error = y - target
    return error * error, 2.0 * error


def _absolute(y: float, target: float) -> tuple[float, float]:
    error = y - target
    return abs(error), 1.0 if error > 0.0 else -1.0 if error < 0.0 else error  # NaN stays NaN


def _cross_entropy(y: float, target: float) -> tuple[float, float]:
    # max keeps its first argument if that is NaN.
    loss = -(target * max(log(y), -100.0) + (1.0 - target) * max(log1p(-y), -100.0))
    return loss, (y - target) / max(y * (1.0 - y), 1e-12)


def _cross_entropy_of_logit(z: float, target: float) -> tuple[float, float]:
    return max(z, 0.0) - z * target + math.log1p(math.exp(-abs(z))), sigmoid(z) - target


def sse(y, target, sample_weight, activation: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2; da = 2 (y - target) f'(y)."""
    _loss(_squared, y, target, sample_weight, activation, 1, row_loss, da)


def mse(y, target, sample_weight, activation: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2 / (n m); da = 2 (y - target) / (n m) f'(y)."""
    n, m = y.shape
    _loss(_squared, y, target, sample_weight, activation, n * m, row_loss, da)


def mse_part(y, target, sample_weight, activation: int, columns: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2 / (n columns); da = 2 (y - target) / (n columns) f'(y)."""
    _loss(_squared, y, target, sample_weight, activation, len(y) * columns, row_loss, da)


def mae(y, target, sample_weight, activation: int, row_loss, da) -> None:
    """row_loss = sum_m |y - target| / (n m); da = sign(y - target) / (n m) f'(y)."""
    n, m = y.shape
    _loss(_absolute, y, target, sample_weight, activation, n * m, row_loss, da)


def huber(y, target, sample_weight, activation: int, delta: float, row_loss, da) -> None:
    """row_loss = sum_m e^2 / 2 / (n m), e = y - target, but linear beyond delta."""

    def of(y: float, target: float) -> tuple[float, float]:
        error = y - target
        if abs(error) <= delta:
            return error * error / 2.0, error
        return delta * (abs(error) - delta / 2.0), min(max(error, -delta), delta)

    n, m = y.shape
    _loss(of, y, target, sample_weight, activation, n * m, row_loss, da)


def bce(y, target, sample_weight, activation: int, row_loss, da) -> None:
    """row_loss = sum_m -(target log y + (1 - target) log(1 - y)) / (n m), each log at least -100."""
    n, m = y.shape
    _loss(_cross_entropy, y, target, sample_weight, activation, n * m, row_loss, da)


def bce_with_logits(logits, target, sample_weight, row_loss, da) -> None:
    """row_loss = sum_m (max(z, 0) - z target + log1p(exp(-|z|))) / (n m), z = logits."""
    n, m = logits.shape
    _loss(_cross_entropy_of_logit, logits, target, sample_weight, 0, n * m, row_loss, da)


def total(row_loss, loss) -> None:
    """loss = sum_n row_loss."""
    result = 0.0
    for i in range(len(row_loss)):
        result += row_loss[i]
    loss[0] = result


def row_mse(y, target, error) -> None:
    """error = sum_m (y - target)^2 / m."""
    n, m = y.shape
    for i in range(n):
        result = 0.0
        for j in range(m):
            e = y[i, j] - target[i, j]
            result += e * e  # e ** 2 would raise where it overflows
        error[i] = result / m


# --- optimisers and data -------------------------------------------------------------------------


def sgd(g, learning_rate: float, weight_decay: float, w) -> None:
    """w -= learning_rate (g + weight_decay w)."""
    for i in range(len(w)):
        w[i] -= learning_rate * (g[i] + weight_decay * w[i])


def momentum(
    g, learning_rate: float, momentum: float, nesterov: int, weight_decay: float, w, velocity
) -> None:
    """velocity = momentum velocity + g; w -= learning_rate velocity, or one step ahead of it."""
    for i in range(len(w)):
        slope = g[i] + weight_decay * w[i]
        speed = momentum * velocity[i] + slope
        velocity[i] = speed
        w[i] -= learning_rate * (slope + momentum * speed if nesterov else speed)


def _adam(
    step,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    decoupled: int,
) -> Callable[[float, float, float, float], tuple[float, float, float]]:
    """Return what makes (w, exp_avg, exp_avg_sq) of one parameter from its g and what they were."""
    t = step[0] + 1
    rate = divide(learning_rate, 1.0 - beta1**t)
    correction = 1.0 - beta2**t

    def update(g: float, w: float, exp_avg: float, exp_avg_sq: float) -> tuple[float, float, float]:
        if decoupled:
            w -= learning_rate * weight_decay * w
        else:
            g += weight_decay * w
        exp_avg = beta1 * exp_avg + (1.0 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1.0 - beta2) * g * g
        w -= rate * divide(exp_avg, root(divide(exp_avg_sq, correction)) + epsilon)
        return w, exp_avg, exp_avg_sq

    return update


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
    update = _adam(step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled)
    for i in range(len(w)):
        w[i], exp_avg[i], exp_avg_sq[i] = update(g[i], w[i], exp_avg[i], exp_avg_sq[i])


def rmsprop(
    g, learning_rate: float, alpha: float, epsilon: float, weight_decay: float, w, square_avg
) -> None:
    """w -= learning_rate g / (sqrt(square_avg) + epsilon)."""
    for i in range(len(w)):
        slope = g[i] + weight_decay * w[i]
        square = alpha * square_avg[i] + (1.0 - alpha) * slope * slope
        square_avg[i] = square
        w[i] -= learning_rate * divide(slope, root(square) + epsilon)


def adagrad(g, learning_rate: float, epsilon: float, weight_decay: float, w, square_sum) -> None:
    """w -= learning_rate g / (sqrt(square_sum) + epsilon)."""
    for i in range(len(w)):
        slope = g[i] + weight_decay * w[i]
        square = square_sum[i] + slope * slope
        square_sum[i] = square
        w[i] -= learning_rate * divide(slope, root(square) + epsilon)


def clip_by_norm(max_norm: float, g, norm) -> None:
    """norm = sqrt(sum_p g^2); g *= max_norm / norm where norm > max_norm."""
    try:
        squares = math.fsum(g[i] * g[i] for i in range(len(g)))  # long: a plain loop would err by many ulp
    except OverflowError:
        squares = math.inf
    length = math.sqrt(squares)
    if length > max_norm:
        scale = max_norm / length
        for i in range(len(g)):
            g[i] *= scale
    norm[0] = length


def gather_rows(data, order, x) -> None:
    """x[i] = data[order[i]]."""
    n, k = x.shape
    for i in range(n):
        row = order[i]
        for c in range(k):
            x[i, c] = data[row, c]


_ABSENT = memoryview(b"")


class Executor(PythonExecutor):
    """Runs a Program with the kernels of this module."""

    kernels = sys.modules[__name__]

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

PADDED = False
FUSED_UPDATE = False

prepare = memoryview


def describe() -> dict[str, str]:
    """What runs the kernels of this backend."""
    return {"interpreter": f"{platform.python_implementation()} {platform.python_version()}"}


# --- activations: y = f(x), and dy f'(y) from the output y ---------------------------------------


def _linear(x: float) -> float:
    return x


def _relu(x: float) -> float:
    return 0.0 if x <= 0.0 else x  # written so that NaN stays NaN


def _sigmoid(x: float) -> float:
    e = math.exp(-abs(x))  # at most 1: cannot overflow
    return e / (1.0 + e) if x < 0.0 else 1.0 / (1.0 + e)


def _linear_gradient(dy: float, y: float) -> float:
    return dy


def _relu_gradient(dy: float, y: float) -> float:
    return dy if y > 0.0 else 0.0  # a choice, not a product: an infinite dy does not pass either


def _sigmoid_gradient(dy: float, y: float) -> float:
    return dy * (y * (1.0 - y))


def _tanh_gradient(dy: float, y: float) -> float:
    return dy * (1.0 - y * y)


# Indexed by Activation.code.
_FORWARD: tuple[Callable[[float], float], ...] = (_linear, _relu, _sigmoid, math.tanh)
_GRADIENT: tuple[Callable[[float, float], float], ...] = (
    _linear_gradient,
    _relu_gradient,
    _sigmoid_gradient,
    _tanh_gradient,
)


# --- dense layers --------------------------------------------------------------------------------


def dense_forward(x, w, b, activation: int, y) -> None:
    """y = f(x w + b)."""
    f = _FORWARD[activation]
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
    gradient = _GRADIENT[activation]
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


def dense_sgd(x, da, learning_rate: float, dw, w, b) -> None:
    """w -= learning_rate x^T da; b -= learning_rate sum_n da."""
    n, k = x.shape
    m = da.shape[1]
    rows = range(n)
    for c in range(k):
        for j in range(m):
            total = 0.0
            for i in rows:
                total += x[i, c] * da[i, j]
            w[c, j] -= learning_rate * total
    if len(b):
        for j in range(m):
            total = 0.0
            for i in rows:
                total += da[i, j]
            b[j] -= learning_rate * total


# --- element by element --------------------------------------------------------------------------


def activation_forward(x, activation: int, y) -> None:
    """y = f(x)."""
    f = _FORWARD[activation]
    n, m = x.shape
    for i in range(n):
        for j in range(m):
            y[i, j] = f(x[i, j])


def activation_backward(dy, y, activation: int, dx) -> None:
    """dx = dy f'(y)."""
    gradient = _GRADIENT[activation]
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


# --- losses --------------------------------------------------------------------------------------


def _squared_error(y, target, activation: int, count: int, row_loss, da) -> None:
    """Loss of each row and da, both divided by ``count``."""
    gradient = _GRADIENT[activation]
    n, m = y.shape
    for i in range(n):
        total = 0.0
        for j in range(m):
            error = y[i, j] - target[i, j]
            total += error * error
            da[i, j] = gradient(2.0 * error / count, y[i, j])
        row_loss[i] = total / count


def sse(y, target, activation: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2; da = 2 (y - target) f'(y)."""
    _squared_error(y, target, activation, 1, row_loss, da)


def mse(y, target, activation: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2 / (n m); da = 2 (y - target) / (n m) f'(y)."""
    n, m = y.shape
    _squared_error(y, target, activation, n * m, row_loss, da)


def total(row_loss, loss) -> None:
    """loss = sum_n row_loss."""
    result = 0.0
    for i in range(len(row_loss)):
        result += row_loss[i]
    loss[0] = result


# --- optimisers and data -------------------------------------------------------------------------


def sgd(g, learning_rate: float, w) -> None:
    """w -= learning_rate g."""
    for i in range(len(w)):
        w[i] -= learning_rate * g[i]


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

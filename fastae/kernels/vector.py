"""Every kernel in NumPy: products by BLAS, the rest by ufuncs that write where they are told.

No kernel allocates once it has run on a thread: outputs serve as scratch where they can, and where
they cannot a room that each thread keeps does. What each kernel computes, and where its formula
comes from, stands in its row of ``table.py``.

Floating-point warnings are the caller's: run inside ``np.errstate(all="ignore")`` to have none.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np

from fastae.executor import PythonExecutor

PADDED = False
FUSED_UPDATE = False

_CHUNK = 1 << 16  # elements of a long vector worked on at a time, so that the scratch stays in cache

# By dtype.char, because a Python number costs a conversion in every call of a ufunc.
_ZERO = {c: np.zeros((), c) for c in "fd"}
_ONE = {c: np.ones((), c) for c in "fd"}
_BITS: dict[str, np.dtype[Any]] = {"f": np.dtype(np.int32), "d": np.dtype(np.int64)}


def prepare(array: np.ndarray) -> np.ndarray:
    """NumPy kernels take the array itself."""
    return array


def describe() -> dict[str, str]:
    """What runs the kernels of this backend."""
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return {"numpy": np.__version__, "blas": f"{blas.get('name', '?')} {blas.get('version', '?')}"}


class _Rooms(threading.local):
    """Scratch memory of this thread: a buffer for each type, grown when a larger one is asked for."""

    def __init__(self) -> None:
        self._rooms: dict[str, np.ndarray] = {}
        self._views: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def take(self, char: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return room for an array; the next of the same type gets the same room."""
        try:
            return self._views[char, shape]
        except KeyError:
            pass
        size = math.prod(shape)
        if char not in self._rooms or self._rooms[char].size < size or len(self._views) >= 64:
            self._views.clear()
            self._rooms[char] = np.empty(size, char)
        view = self._views[char, shape] = self._rooms[char][:size].reshape(shape)
        return view


_SCRATCH = _Rooms()


# --- activations: f(x) -> y, where x may be y ----------------------------------------------------


def _relu(x: np.ndarray, y: np.ndarray) -> None:
    np.maximum(x, _ZERO[x.dtype.char], out=y)  # NaN stays NaN


def _sigmoid(x: np.ndarray, y: np.ndarray) -> None:
    e = _SCRATCH.take(x.dtype.char, x.shape)
    np.absolute(x, e)
    np.negative(e, e)
    np.exp(e, e)  # at most 1: cannot overflow
    positive = _SCRATCH.take("?", x.shape)
    np.greater_equal(x, _ZERO[x.dtype.char], positive)
    np.copyto(y, positive)
    np.maximum(y, e, out=y)  # the numerator: 1 where x >= 0, else e
    np.add(e, _ONE[x.dtype.char], e)
    np.divide(y, e, y)


def _tanh(x: np.ndarray, y: np.ndarray) -> None:
    np.tanh(x, y)


def _activate(x: np.ndarray, activation: int, y: np.ndarray) -> None:
    if activation == 1:
        _relu(x, y)
    elif activation == 2:
        _sigmoid(x, y)
    elif activation == 3:
        _tanh(x, y)
    elif x is not y:
        np.copyto(y, x)


def _differentiate(dy: np.ndarray, y: np.ndarray, activation: int, dx: np.ndarray) -> None:
    """dy f'(y) -> dx, where dy may be dx."""
    if activation == 1:
        # The bits of dy times 0 or 1: a choice rather than a product, so that an infinite dy does not
        # pass where y is 0. Comparing into bytes and widening them is faster than comparing into words.
        bits = _BITS[y.dtype.char]
        positive = _SCRATCH.take("?", y.shape)
        chosen = _SCRATCH.take(bits.char, y.shape)
        np.greater(y, _ZERO[y.dtype.char], positive)
        np.copyto(chosen, positive)
        np.multiply(dy.view(bits), chosen, dx.view(bits))
    elif activation == 2:
        slope = _SCRATCH.take(y.dtype.char, y.shape)
        np.subtract(_ONE[y.dtype.char], y, slope)
        np.multiply(slope, y, slope)
        np.multiply(dy, slope, dx)
    elif activation == 3:
        slope = _SCRATCH.take(y.dtype.char, y.shape)
        np.multiply(y, y, slope)
        np.subtract(_ONE[y.dtype.char], slope, slope)
        np.multiply(dy, slope, dx)
    elif dy is not dx:
        np.copyto(dx, dy)


# --- dense layers --------------------------------------------------------------------------------


def dense_forward(x, w, b, activation: int, y) -> None:
    """y = f(x w + b)."""
    x.dot(w, y)
    if b.size:
        np.add(y, b, y)
    if activation:
        _activate(y, activation, y)


def dense_backward(dy, x, w, y, activation: int, da, dx, dw, db) -> None:
    """da = dy f'(y); dx = da w^T; dw = x^T da; db = sum_n da."""
    _differentiate(dy, y, activation, da)
    da.dot(w.T, dx)
    x.T.dot(da, dw)
    np.add.reduce(da, 0, out=db)


def dense_input_grad(da, w, x, activation: int, dx) -> None:
    """dx = (da w^T) f'(x)."""
    da.dot(w.T, dx)
    if activation and x.size:
        _differentiate(dx, x, activation, dx)


def dense_weight_grad(x, da, dw, db) -> None:
    """dw = x^T da; db = sum_n da."""
    x.T.dot(da, dw)
    if db.size:
        np.add.reduce(da, 0, out=db)


def dense_sgd(x, da, learning_rate: float, dw, w, b) -> None:
    """w -= learning_rate x^T da; b -= learning_rate sum_n da."""
    x.T.dot(da, dw)
    np.multiply(dw, learning_rate, dw)
    np.subtract(w, dw, w)
    if b.size:
        db = _SCRATCH.take(b.dtype.char, b.shape)
        np.add.reduce(da, 0, out=db)
        np.multiply(db, learning_rate, db)
        np.subtract(b, db, b)


# --- element by element --------------------------------------------------------------------------


def activation_forward(x, activation: int, y) -> None:
    """y = f(x)."""
    _activate(x, activation, y)


def activation_backward(dy, y, activation: int, dx) -> None:
    """dx = dy f'(y)."""
    _differentiate(dy, y, activation, dx)


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


# --- losses --------------------------------------------------------------------------------------


def _squares(y: np.ndarray, target: np.ndarray, row_loss: np.ndarray, error: np.ndarray) -> None:
    """error = y - target; row_loss = sum_m error^2."""
    np.subtract(y, target, error)
    # A product of a row with a column for each row: the squares are never stored.
    np.matmul(error[:, None, :], error[:, :, None], row_loss[:, None, None])


def sse(y, target, activation: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2; da = 2 (y - target) f'(y)."""
    _squares(y, target, row_loss, da)
    np.add(da, da, da)
    if activation:
        _differentiate(da, y, activation, da)


def mse(y, target, activation: int, row_loss, da) -> None:
    """row_loss = sum_m (y - target)^2 / (n m); da = 2 (y - target) / (n m) f'(y)."""
    _squares(y, target, row_loss, da)
    np.divide(row_loss, y.size, row_loss)
    np.multiply(da, 2.0 / y.size, da)
    if activation:
        _differentiate(da, y, activation, da)


def total(row_loss, loss) -> None:
    """loss = sum_n row_loss."""
    np.add.reduce(row_loss, 0, out=loss, keepdims=True)


# --- optimisers and data -------------------------------------------------------------------------


def sgd(g, learning_rate: float, w) -> None:
    """w -= learning_rate g."""
    size = w.size
    step = _SCRATCH.take(w.dtype.char, (min(size, _CHUNK),))
    if size <= _CHUNK:
        np.multiply(g, learning_rate, step)
        np.subtract(w, step, w)
        return
    for start in range(0, size, _CHUNK):
        part = w[start : start + _CHUNK]
        scaled = step[: part.size]
        np.multiply(g[start : start + _CHUNK], learning_rate, scaled)
        np.subtract(part, scaled, part)


def gather_rows(data, order, x) -> None:
    """x[i] = data[order[i]]."""
    data.take(order, 0, x, "clip")  # "raise" would take into a copy first


class Executor(PythonExecutor):
    """Runs a Program with the kernels of this module."""

    kernels = sys.modules[__name__]

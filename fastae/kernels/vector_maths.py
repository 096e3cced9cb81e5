"""What all NumPy kernels share: scratch memory of each thread, and the activations."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

__all__ = ["BITS", "LARGE", "ONE", "SCRATCH", "WEYL", "ZERO", "activate", "differentiate", "sigmoid_from"]

# By dtype.char, because a Python number costs a conversion in every call of a ufunc.
ZERO = {c: np.zeros((), c) for c in "fd"}
ONE = {c: np.ones((), c) for c in "fd"}
_SLOPE = {c: np.full((), 0.01, c) for c in "fd"}  # of leaky_relu below 0
LARGE = {"f": np.full((), 2.0**127, "f"), "d": np.full((), 2.0**1023)}
BITS: dict[str, np.dtype[Any]] = {"f": np.dtype(np.int32), "d": np.dtype(np.int64)}

WEYL = 0x9E3779B9  # of the counter that random numbers come from


class _Rooms(threading.local):
    """Scratch memory of this thread: a buffer for each type, grown when a larger one is asked for."""

    def __init__(self) -> None:
        self._rooms: dict[str, np.ndarray] = {}
        self._views: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
        self._steps = np.empty(0, np.uint32)

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

    def steps(self, count: int) -> np.ndarray:
        """Return e 0x9E3779B9 modulo 2^32 for e = 0, ..., count - 1; not to be written to."""
        if self._steps.size < count:
            self._steps = np.arange(count, dtype=np.uint32)
            np.multiply(self._steps, np.uint32(WEYL), self._steps)
        return self._steps[:count]


SCRATCH = _Rooms()


# --- activations: f(x) -> y, where x may be y ----------------------------------------------------


def _relu(x: np.ndarray, y: np.ndarray) -> None:
    np.maximum(x, ZERO[x.dtype.char], out=y)  # NaN stays NaN


def _sigmoid(x: np.ndarray, y: np.ndarray) -> None:
    e = SCRATCH.take(x.dtype.char, x.shape)
    np.absolute(x, e)
    np.negative(e, e)
    np.exp(e, e)  # at most 1: cannot overflow
    sigmoid_from(x, e, y)


def sigmoid_from(x: np.ndarray, e: np.ndarray, y: np.ndarray) -> None:
    """Sigmoid of x from e = exp(-|x|), which is overwritten."""
    positive = SCRATCH.take("?", x.shape)
    np.greater_equal(x, ZERO[x.dtype.char], positive)
    np.copyto(y, positive)
    np.maximum(y, e, out=y)  # the numerator: 1 where x >= 0, else e
    np.add(e, ONE[x.dtype.char], e)
    np.divide(y, e, y)


def _tanh(x: np.ndarray, y: np.ndarray) -> None:
    np.tanh(x, y)


def _leaky_relu(x: np.ndarray, y: np.ndarray) -> None:
    lower = SCRATCH.take(x.dtype.char, x.shape)
    np.multiply(x, _SLOPE[x.dtype.char], lower)
    np.maximum(x, lower, out=y)


def _elu(x: np.ndarray, y: np.ndarray) -> None:
    lower = SCRATCH.take(x.dtype.char, x.shape)
    np.minimum(x, ZERO[x.dtype.char], out=lower)
    np.expm1(lower, lower)  # precise near 0, where exp(x) - 1 is not
    np.maximum(x, lower, out=y)  # exp(x) - 1 >= x


def _softplus(x: np.ndarray, y: np.ndarray) -> None:
    e = SCRATCH.take(x.dtype.char, x.shape)
    np.absolute(x, e)
    np.negative(e, e)
    np.exp(e, e)
    np.log1p(e, e)
    np.maximum(x, ZERO[x.dtype.char], out=y)
    np.add(y, e, y)


def activate(x: np.ndarray, activation: int, y: np.ndarray) -> None:
    """f(x) -> y, where x may be y."""
    if activation == 1:
        _relu(x, y)
    elif activation == 2:
        _sigmoid(x, y)
    elif activation == 3:
        _tanh(x, y)
    elif activation == 4:
        _leaky_relu(x, y)
    elif activation == 5:
        _elu(x, y)
    elif activation == 6:
        _softplus(x, y)
    elif x is not y:
        np.copyto(y, x)


def differentiate(dy: np.ndarray, y: np.ndarray, activation: int, dx: np.ndarray) -> None:
    """dy f'(y) -> dx, where dy may be dx."""
    if activation == 1:
        # The bits of dy times 0 or 1: a choice rather than a product, so that an infinite dy does not
        # pass where y is 0. Comparing into bytes and widening them is faster than comparing into words.
        bits = BITS[y.dtype.char]
        positive = SCRATCH.take("?", y.shape)
        chosen = SCRATCH.take(bits.char, y.shape)
        np.greater(y, ZERO[y.dtype.char], positive)
        np.copyto(chosen, positive)
        np.multiply(dy.view(bits), chosen, dx.view(bits))
    elif activation == 2:
        slope = SCRATCH.take(y.dtype.char, y.shape)
        np.subtract(ONE[y.dtype.char], y, slope)
        np.multiply(slope, y, slope)
        np.multiply(dy, slope, dx)
    elif activation == 3:
        slope = SCRATCH.take(y.dtype.char, y.shape)
        np.multiply(y, y, slope)
        np.subtract(ONE[y.dtype.char], slope, slope)
        np.multiply(dy, slope, dx)
    elif activation == 4:
        positive = SCRATCH.take("?", y.shape)
        slope = SCRATCH.take(y.dtype.char, y.shape)
        np.greater(y, ZERO[y.dtype.char], positive)
        np.copyto(slope, positive)
        np.maximum(slope, _SLOPE[y.dtype.char], out=slope)
        np.multiply(dy, slope, dx)
    elif activation == 5:
        slope = SCRATCH.take(y.dtype.char, y.shape)
        np.minimum(y, ZERO[y.dtype.char], out=slope)
        np.add(slope, ONE[y.dtype.char], slope)
        np.multiply(dy, slope, dx)
    elif activation == 6:
        slope = SCRATCH.take(y.dtype.char, y.shape)
        np.negative(y, slope)
        np.expm1(slope, slope)
        np.negative(slope, slope)
        np.multiply(dy, slope, dx)
    elif dy is not dx:
        np.copyto(dx, dy)

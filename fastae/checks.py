"""Checks of arguments that several modules make: the message names the argument, what was expected and given."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["all_finite", "integer", "real_dtype", "within"]

Array = npt.NDArray[Any]

#: Elements looked at in one go: they stay in the cache for the second look.
_CHUNK = 1 << 18


def integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int if it is a whole number within bounds and no bool; else an error."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, given {type(value).__name__} {value!r:.50}") from None
    if number < minimum or (maximum is not None and number > maximum):
        bounds = f"at least {minimum}" + (f", at most {maximum}" if maximum is not None else "")
        raise ValueError(f"{name}: expected {bounds}, given {number}")
    return number


def real_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return float32 or float64 as a dtype; a ValueError for any other."""
    try:
        real = np.dtype(dtype) if dtype is not None else None
    except TypeError:
        real = None
    if real != np.float32 and real != np.float64:
        raise ValueError(f"dtype: expected float32 or float64, given {dtype!r}")
    assert real is not None
    return real


def all_finite(values: Array) -> bool:
    """Whether a one-dimensional array has neither NaN nor infinity, without a temporary of its size."""
    with np.errstate(invalid="ignore"):
        for start in range(0, values.size, _CHUNK):
            part = values[start : start + _CHUNK]
            # NaN passes through both; twice as fast as isfinite and all.
            if not (math.isfinite(np.minimum.reduce(part)) and math.isfinite(np.maximum.reduce(part))):
                return False
    return True


def within(name: str, rows: Array, low: float, high: float, why: str = "") -> None:
    """Raise a ValueError that tells the first element of a matrix that is not finite or out of bounds.

    Parameters
    ----------
    name : str
        Used in the message.
    rows : ndarray, (n, k), C-contiguous
        Looked at without a temporary of its size.
    low, high : float
        Smallest and largest value allowed; infinity is not.
    why : str
        What is said of a value that is out of bounds.
    """
    flat = rows.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        least, most = np.minimum.reduce(part), np.maximum.reduce(part)
        if low <= least and most <= high and math.isfinite(least) and math.isfinite(most):
            continue
        at = int(np.flatnonzero(~(np.isfinite(part) & (part >= low) & (part <= high)))[0])
        row, column = divmod(start + at, rows.shape[1])
        expected = f"values from {low:g} to {high:g}{why}" if math.isfinite(part[at]) else "finite values"
        raise ValueError(f"{name}: expected {expected}, given {part[at]} in row {row}, column {column}")

"""Checks of arguments: each message names the argument, what was expected and what was given."""

from __future__ import annotations

import math
import operator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae import arrays
from fastae.layers import real_number
from fastae.losses import Loss
from fastae.network import Network

__all__ = ["Checks", "Rows", "all_finite", "integer", "matrix", "real_dtype", "within"]

Array = npt.NDArray[Any]

#: Rows with their targets and their weights, where there are any.
Rows = tuple[Array, Array | None, Array | None]

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


def matrix(array: Array) -> Array:
    """View a C-contiguous array of one or more rows as a matrix, a row for each of its rows."""
    plain = array if type(array) is np.ndarray else array.view(np.ndarray)
    return plain if plain.ndim == 2 else plain.reshape(len(plain), -1)


@cache
def _row_shapes(shape: tuple[int, ...]) -> dict[tuple[int, ...], None]:
    """List the shapes that a row of this shape may be given in."""
    known = dict.fromkeys([shape, (math.prod(shape),)])
    if len(shape) == 3 and shape[0] == 1:  # images of one channel need not say so
        known[shape[1:]] = None
    return known


class Checks:
    """What the arrays given to a trainer must be; each check gives a view or raises an error.

    Parameters
    ----------
    network : Network
        Gives the shapes of rows.
    loss : Loss
        May bound targets.
    dtype : numpy.dtype
        Of every array.
    batch_size : int
        Rows of a batch.
    """

    def __init__(self, network: Network, loss: Loss, dtype: np.dtype[Any], batch_size: int) -> None:
        self.input_shape, self.output_shape = network.input_shape, network.output_shape
        self.network = network
        self.loss, self.dtype, self.batch_size = loss, dtype, batch_size

    def rows(self, name: str, X: Any, shape: tuple[int, ...], *, finite: bool = True) -> Array:
        """Return X as a matrix, a row for each of its rows, by a view."""
        if type(X) is not np.ndarray:
            X = self._array(name, X)
        if X.dtype != self.dtype:
            raise TypeError(
                f"{name}: expected dtype {self.dtype}, as the trainer has, given {X.dtype}; "
                f"{name}.astype({self.dtype.name!r}) converts it"
            )
        known = _row_shapes(shape)
        if X.shape[1:] not in known:
            shaped = " or ".join(f"(N, {', '.join(map(str, row))})" for row in known)
            where = (
                f"; {self.network.trace()}" if "target" in name and len(self.network.output_shape) > 1 else ""
            )
            raise ValueError(f"{name}: expected shape {shaped}, given {X.shape}{where}")
        if not len(X):
            raise ValueError(f"{name}: expected one or more rows, given shape {X.shape}")
        flags = X.flags
        if not (flags.c_contiguous and flags.aligned):
            raise ValueError(
                f"{name}: expected a C-contiguous, aligned array, given strides {X.strides}; "
                f"numpy.ascontiguousarray makes one"
            )
        rows = matrix(X)
        if finite:
            within(name, rows, -math.inf, math.inf)
        return rows

    @staticmethod
    def _array(name: str, value: Any) -> Array:
        """Return an ndarray, or another library's array seen as one."""
        array = value if isinstance(value, np.ndarray) else arrays.view(value, name)
        if array is None or isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected {arrays.OFFERS}, given {type(value).__name__}")
        return array

    def triple(self, X: tuple[str, Any], target: tuple[str, Any], sample_weight: tuple[str, Any]) -> Rows:
        """Return rows, target and weights, each given with its name."""
        name, given = X
        data = self.rows(name, given, self.input_shape)
        wanted = None
        if target[1] is not None:
            wanted = self.rows(*target, self.output_shape)
            if len(wanted) != len(data):
                raise ValueError(
                    f"{target[0]}: expected {len(data)} rows, as {name} has, given {len(wanted)}"
                )
            name = target[0]
        elif not self._comparable():
            raise ValueError(
                f"{target[0]}: expected an array, since the output has another shape than the input "
                f"({self.output_shape}, {self.input_shape}), given None; {self.network.trace()}"
            )
        if self.loss.target_range is not None:
            why = f", as the loss {self.loss.name} takes them for a target"
            within(name, data if wanted is None else wanted, *self.loss.target_range, why)
        return data, wanted, self.weights(*sample_weight, len(data))

    def _comparable(self) -> bool:
        """Whether the input can be the target: of one shape, or of one size where one of them is flat."""
        shapes = {self.input_shape, self.output_shape}
        flat = 1 in map(len, shapes)
        return len(shapes) == 1 or (flat and len(set(map(math.prod, shapes))) == 1)

    def weights(self, name: str, given: Any, n: int) -> Array | None:
        """Return the weights of n rows in the dtype of the rows."""
        if given is None:
            return None
        seen = None if isinstance(given, np.ndarray) else arrays.view(given, name)
        values = np.asarray(given if seen is None else seen)
        if values.dtype.kind not in "fiub" or isinstance(given, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected real numbers, given {type(given).__name__} of {values.dtype}")
        if values.shape != (n,):
            raise ValueError(f"{name}: expected shape ({n},), one for each row, given {values.shape}")
        with np.errstate(over="ignore"):
            weights = np.ascontiguousarray(values, self.dtype)
        within(name, weights.reshape(-1, 1), 0.0, math.inf)
        return weights

    def split(
        self, X: Any, target: Any, sample_weight: Any, validation_data: Any, validation_split: Any
    ) -> tuple[Rows, Rows | None]:
        """Return training and validation rows; where they are split, views of the same arrays."""
        rows = self.triple(("X", X), ("target", target), ("sample_weight", sample_weight))
        if validation_split is None:
            return rows, self.validation(validation_data, rows[1] is not None)
        if validation_data is not None:
            raise ValueError("validation_split: expected None, since validation_data is given")
        share = real_number("validation_split", validation_split, 0, 1, open_low=True)
        n = len(rows[0])
        kept = n - round(n * share)
        if not 0 < kept < n:
            raise ValueError(
                f"validation_split: expected a share that leaves one or more of {n} rows on both sides, "
                f"given {validation_split}"
            )

        def part(of: slice) -> Rows:
            data, wanted, weights = rows
            return data[of], None if wanted is None else wanted[of], None if weights is None else weights[of]

        return part(slice(kept)), part(slice(kept, n))

    def validation(self, given: Any, with_target: bool) -> Rows | None:
        """Return validation rows."""
        if given is None:
            return None
        if isinstance(given, tuple):
            if len(given) not in (2, 3):
                raise ValueError(
                    "validation_data: expected X, (X, target) or (X, target, sample_weight), "
                    f"given a tuple of {len(given)}"
                )
            named = [(f"validation_data[{i}]", part) for i, part in enumerate((*given, None)[:3])]
            return self.triple(named[0], named[1], named[2])
        if with_target:
            raise ValueError("validation_data: expected (X, target), since a target is given, given X alone")
        return self.triple(("validation_data", given), ("target of validation_data", None), ("", None))

    def out(self, out: Any, shape: tuple[int, ...], source: Array) -> Array:
        """Return `out`, or a new array where it is None."""
        if out is None:
            return np.empty(shape, self.dtype)
        if type(out) is not np.ndarray:
            out = self._array("out", out)
        if out.dtype != self.dtype:
            raise TypeError(f"out: expected dtype {self.dtype}, as the trainer has, given {out.dtype}")
        if out.shape != shape:
            raise ValueError(f"out: expected shape {shape}, given {out.shape}")
        flags = out.flags
        if not (flags.c_contiguous and flags.aligned and flags.writeable):
            raise ValueError("out: expected a C-contiguous, aligned, writable array, given one that is not")
        if np.may_share_memory(out, source):  # exact: both are contiguous
            raise ValueError("out: expected memory of its own, given an array that overlaps the input")
        return out

    def steps(self, n: int, sampling: str, steps: int | None) -> tuple[int, int]:
        """Return the updates of an epoch, and its rows."""
        most = -(-n // self.batch_size)
        if steps is None:
            return most, n
        steps = integer("steps_per_epoch", steps, 1)
        if sampling == "replacement":
            return steps, steps * self.batch_size
        if steps > most:
            raise ValueError(
                f"steps_per_epoch: expected at most {most} with sampling={sampling!r} and {n} rows, "
                f"given {steps}; use more epochs, or sampling='replacement'"
            )
        return steps, min(steps * self.batch_size, n)

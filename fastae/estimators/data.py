"""Rows, targets and weights on their way from scikit-learn to a Trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastae import arrays
from fastae.trainer import Trainer

Array = npt.NDArray[Any]

Data = tuple[Array, Array | None, Array | None]


def seen(name: str, value: Any) -> Any:
    """Return another library's array as an ndarray on its memory, and the rest to scikit-learn's checks."""
    if value is None or isinstance(value, np.ndarray):
        return value
    array = arrays.view(value, name)
    return value if array is None else array


def split(data: Data, fraction: float, random: np.random.RandomState) -> tuple[Data, Data]:
    """Part rows, targets and weights at random into those to train on and those to hold back."""
    n = len(data[0])
    kept = n - round(n * fraction)
    if not 0 < kept < n:
        raise ValueError(
            f"validation_fraction: expected a share that leaves one or more of {n} rows on both sides, "
            f"given {fraction}"
        )
    order = random.permutation(n)

    def part(chosen: Array) -> Data:
        found = [None if array is None else array[chosen] for array in data]
        if found[2] is not None and not found[2].any():
            raise ValueError("sample_weight: expected weights > 0 in both parts of the rows, given others")
        assert found[0] is not None
        return found[0], found[1], found[2]

    return part(order[:kept]), part(order[kept:])


def weighed(data: Data) -> Data:
    """Return the same with weights of mean 1: the losses of fastae divide by the number of rows."""
    rows, target, weights = data
    return rows, target, None if weights is None else weights * (len(weights) / weights.sum())


def explicit_target(trainer: Trainer, data: Data) -> Data:
    """Name the rows as target where the output has another shape than the input and as many elements."""
    rows, target, weights = data
    if target is None and trainer.net.input_shape != trainer.net.output_shape:
        target = rows
    return rows, target, weights

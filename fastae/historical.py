"""The comparison AutoEncNet was published with, in the form it was published in.

These two functions are here to be measured, by ``fastae demo`` and by ``benchmarks/``; nothing else in
fastae calls them. They compute the input layer forward, ``relu(x w + b)``, with B=20 images, 225 inputs
and 75 outputs in float64. The scalar form is not the scalar *backend* (``kernels/scalar.py``): it indexes
NumPy arrays one element at a time and keeps every product in a list, which is slower than loops over
Python floats. The published ratio says as much about that as about vectors, so it is shown beside
measurements made with care and never in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final, NamedTuple

import numpy as np

__all__ = [
    "PUBLISHED",
    "SHAPE",
    "Comparison",
    "compare",
    "input_layer",
    "scalar_input_layer",
    "vector_input_layer",
]

#: Batch, inputs and outputs of the published comparison.
SHAPE: Final = (20, 225, 75)


class Comparison(NamedTuple):
    """Seconds of the scalar and the vector form, and their ratio."""

    scalar: float
    vector: float
    ratio: float


#: As published: one run of each form. The ratio was printed from times not rounded like these.
PUBLISHED: Final = Comparison(0.1991, 0.0004, 475.6281)


def input_layer(
    shape: tuple[int, int, int] = SHAPE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the arguments of both forms.

    Parameters
    ----------
    shape : tuple of int, default (20, 225, 75)
        Batch B, inputs D and outputs P.
    seed : int, default 0
        Seed of the generator.

    Returns
    -------
    x : ndarray of float64, shape (B, D)
        Inputs, uniform on (-1, 1), as images with their mean subtracted and divided by 255 are.
    w : ndarray of float64, shape (D, P)
        Weights, uniform on ±sqrt(6 / (D + P)).
    b : ndarray of float64, shape (P,)
        Biases, zero.
    """
    batch, inputs, outputs = shape
    rng = np.random.default_rng(seed)
    limit = np.sqrt(6 / (inputs + outputs))
    x = rng.uniform(-1, 1, (batch, inputs))
    w = rng.uniform(-limit, limit, (inputs, outputs))
    return x, w, np.zeros(outputs)


def scalar_input_layer(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Input layer forward, the published scalar form: loops over NumPy elements, products in a list.

    Parameters
    ----------
    x : ndarray of float64, shape (B, D)
    w : ndarray of float64, shape (D, P)
    b : ndarray of float64, shape (P,)

    Returns
    -------
    ndarray of float64, shape (B, P)
    """
    a = np.zeros((x.shape[0], w.shape[1]))
    for n in range(x.shape[0]):
        for m in range(w.shape[1]):
            products = []
            for k in range(x.shape[1]):
                products.append(x[n, k] * w[k, m])  # noqa: PERF401 (this list is what is measured)
            a[n, m] = sum(products) + b[m]
    z = np.zeros(a.shape)
    for n in range(a.shape[0]):
        for m in range(a.shape[1]):
            z[n, m] = a[n, m] if a[n, m] > 0 else 0.0
    return z


def vector_input_layer(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Input layer forward, the published vector form: one matmul, bias, relu, each with a new array.

    Parameters
    ----------
    x : ndarray of float64, shape (B, D)
    w : ndarray of float64, shape (D, P)
    b : ndarray of float64, shape (P,)

    Returns
    -------
    ndarray of float64, shape (B, P)
    """
    a = np.matmul(x, w) + b
    return np.maximum(a, 0)


def _best(
    form: Callable[..., np.ndarray], arguments: tuple[np.ndarray, ...], repeats: int
) -> tuple[float, np.ndarray]:
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        result = form(*arguments)
        best = min(best, perf_counter() - start)
    return best, result


def compare(
    scalar_repeats: int = 1, vector_repeats: int = 1, shape: tuple[int, int, int] = SHAPE
) -> Comparison:
    """Time both forms on the same arguments; with one repeat of each, exactly as published.

    Parameters
    ----------
    scalar_repeats, vector_repeats : int, default 1
        Runs of each form, of which the fastest counts.
    shape : tuple of int, default (20, 225, 75)
        Batch, inputs and outputs.

    Returns
    -------
    Comparison
        Seconds of each form and their ratio.

    Raises
    ------
    ArithmeticError
        The two forms disagree by more than 1e-12 of the sum of absolute products, so that there is
        nothing to compare.
    """
    x, w, b = arguments = input_layer(shape)
    scalar_seconds, expected = _best(scalar_input_layer, arguments, scalar_repeats)
    vector_seconds, result = _best(vector_input_layer, arguments, vector_repeats)
    if not np.all(np.abs(result - expected) <= 1e-12 * (np.abs(x) @ np.abs(w) + np.abs(b))):
        raise ArithmeticError("the two historical forms disagree")
    return Comparison(scalar_seconds, vector_seconds, scalar_seconds / vector_seconds)

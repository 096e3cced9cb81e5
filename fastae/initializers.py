"""Initial values of parameters, drawn in float64: every backend and dtype starts from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["INITIALIZERS", "check", "initialize"]

Float64 = npt.NDArray[np.float64]
Initializer = Callable[[np.random.Generator, tuple[int, ...], int, int], Float64]


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], limit: float) -> Float64:
    return rng.uniform(-limit, limit, shape)


#: Each takes (generator, shape, fan_in, fan_out). Sources: Glorot, Bengio, Understanding the
#: difficulty of training deep feedforward neural networks (2010); He et al., Delving deep into
#: rectifiers (2015); the last is PyTorch's default for linear and convolutional layers.
INITIALIZERS: dict[str, Initializer] = {
    "zeros": lambda rng, shape, n, m: np.zeros(shape),
    "ones": lambda rng, shape, n, m: np.ones(shape),
    "identity": lambda rng, shape, n, m: np.eye(shape[0], shape[1]),
    "glorot_uniform": lambda rng, shape, n, m: _uniform(rng, shape, math.sqrt(6 / (n + m))),
    "glorot_normal": lambda rng, shape, n, m: rng.normal(0.0, math.sqrt(2 / (n + m)), shape),
    "he_uniform": lambda rng, shape, n, m: _uniform(rng, shape, math.sqrt(6 / n)),
    "he_normal": lambda rng, shape, n, m: rng.normal(0.0, math.sqrt(2 / n), shape),
    "uniform_fan_in": lambda rng, shape, n, m: _uniform(rng, shape, 1 / math.sqrt(n)),
}


def check(argument: str, name: object, *, matrix: bool = True) -> None:
    """Raise a ValueError unless `name` is an initializer that `argument` may have.

    Parameters
    ----------
    argument : str
        Name used in the message.
    name : object
        What was given.
    matrix : bool
        Whether the parameter is a matrix; "identity" is for matrices alone.
    """
    known = [k for k in INITIALIZERS if matrix or k != "identity"]
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}; got {name!r}")


def initialize(
    name: str, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, fan_out: int
) -> Float64:
    """Draw the values of one parameter.

    Parameters
    ----------
    name : str
        A key of `INITIALIZERS`.
    rng : numpy.random.Generator
        Where random values are drawn from.
    shape : tuple of int
        Shape of the parameter.
    fan_in, fan_out : int
        Inputs and outputs each unit of the layer sees.

    Returns
    -------
    ndarray of float64, `shape`
    """
    check("initializer", name, matrix=len(shape) == 2)
    return INITIALIZERS[name](rng, shape, fan_in, fan_out)

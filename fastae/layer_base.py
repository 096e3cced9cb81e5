"""What all layers are made of: the base class, the description of a parameter, checks of arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from operator import index
from typing import Any, ClassVar, TypeAlias

from fastae.kernels.table import ACTIVATIONS

__all__ = [
    "ACTIVATION_NAMES",
    "Layer",
    "ParameterSpec",
    "Shape",
    "check_activation",
    "check_bool",
    "check_name",
    "flat",
    "image",
    "positive_int",
    "real_number",
]

Shape: TypeAlias = tuple[int, ...]

#: Names of the activations a layer may have; softmax is no matter of single elements.
ACTIVATION_NAMES = (*ACTIVATIONS, "softmax")


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter array of a layer.

    Parameters
    ----------
    name : str
        Such as "weight"; within a Network preceded by the layer's name, "in.weight".
    shape : tuple of int
        Its shape; dense weights are (in, out).
    trainable : bool
        Whether training changes it.
    initializer : str
        A key of `fastae.initializers.INITIALIZERS`.
    fan_in, fan_out : int
        Inputs and outputs each unit of the layer sees, for the initializer.
    statistic : bool
        Whether training changes it without a gradient: a running mean or variance.
    """

    name: str
    shape: Shape
    trainable: bool
    initializer: str
    fan_in: int
    fan_out: int
    statistic: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def positive_int(name: str, value: Any) -> int:
    """Return `value` as an int if it is a whole number >= 1 and no bool; otherwise raise a ValueError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer >= 1; got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be an integer >= 1; got {number}")
    return number


def real_number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = True,
) -> float:
    """Return `value` as a float if it is a finite number between `low` and `high`; else raise a ValueError.

    Parameters
    ----------
    name : str
        Used in the message.
    value : object
        What was given; a bool is no number.
    low, high : float
        Bounds.
    open_low, open_high : bool
        Whether the bound itself is out of them.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number; got {value!r}")
    number = float(value)
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if not math.isfinite(number) or below or above:
        bounds = f"{'>' if open_low else '>='} {low:g}"
        if high != math.inf:
            bounds = f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must be finite and {bounds}; got {value!r}")
    return number


def check_bool(name: str, value: object) -> None:
    """Raise a ValueError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}")


def check_activation(name: str, value: object, known: Sequence[str] = ACTIVATION_NAMES) -> None:
    """Raise a ValueError unless `value` is one of the known activations."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def check_name(value: object) -> None:
    """Raise a ValueError unless `value` may be the name of a layer."""
    if value is None:
        return
    # The dot separates a layer's name from a parameter's, so a name has none.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][\w-]{0,63}", value, re.ASCII):
        raise ValueError(
            "name must be None, or a letter or '_' and then at most 63 letters, digits, '_' or '-'; "
            f"got {value!r}"
        )


def flat(layer: str, shape: Shape) -> int:
    """Return the features of a row of the input of a layer that takes rows alone."""
    if len(shape) != 1:
        hint = "; a Flatten before it makes it so" if len(shape) > 1 else ""
        raise ValueError(f"input of {layer} must have one dimension, (features,); got shape {shape}{hint}")
    return shape[0]


def image(layer: str, shape: Shape) -> tuple[int, int, int]:
    """Return channels, height and width of a row of the input of a layer that takes images alone."""
    if len(shape) != 3:
        hint = "; a Reshape before it makes it so" if len(shape) == 1 else ""
        raise ValueError(
            f"input of {layer} must have three dimensions, (channels, height, width); got shape {shape}{hint}"
        )
    channels, height, width = shape
    return channels, height, width


@dataclass(frozen=True)
class Layer:
    """What all layers share."""

    kind: ClassVar[str]

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of a row of the output for that of a row of the input, or raise a ValueError."""
        raise NotImplementedError

    def parameters(self, shape: Shape) -> tuple[ParameterSpec, ...]:
        """Return the parameters for an input of that shape, in the order they are stored."""
        return ()

"""Layers as declarations: what they compute is emitted by `fastae.lowering`, how is in the kernels.

A layer knows the shape of its output and the parameters it needs for a given input shape. A new
layer is a frozen dataclass here, a line in `LAYERS`, and a function in ``lowering.py`` that lowers it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real
from operator import index
from typing import Any, ClassVar, TypeAlias

from fastae import initializers
from fastae.kernels.table import ACTIVATIONS

__all__ = [
    "ACTIVATION_NAMES",
    "LAYERS",
    "Activation",
    "BatchNorm",
    "Dense",
    "Dropout",
    "GaussianNoise",
    "Layer",
    "MaskingNoise",
    "Parallel",
    "ParameterSpec",
    "Subsample",
    "from_dict",
    "positive_int",
    "real_number",
    "to_dict",
]

Shape: TypeAlias = tuple[int, ...]

#: Names of the activations a layer may have; softmax is no matter of single elements.
ACTIVATION_NAMES = (*ACTIVATIONS, "softmax")

#: Parallel layers may be nested this deep; a file that nests deeper is refused.
MAX_DEPTH = 32


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


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}")


def _check_activation(name: str, value: object) -> None:
    if not isinstance(value, str) or value not in ACTIVATION_NAMES:
        raise ValueError(f"{name} must be one of {', '.join(ACTIVATION_NAMES)}; got {value!r}")


def _check_name(value: object) -> None:
    if value is None:
        return
    # The dot separates a layer's name from a parameter's, so a name has none.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][\w-]{0,63}", value, re.ASCII):
        raise ValueError(
            "name must be None, or a letter or '_' and then at most 63 letters, digits, '_' or '-'; "
            f"got {value!r}"
        )


def _flat(layer: str, shape: Shape) -> int:
    if len(shape) != 1:
        raise ValueError(f"input of {layer} must have one dimension, (features,); got shape {shape}")
    return shape[0]


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


@dataclass(frozen=True)
class Dense(Layer):
    """Fully connected layer, ``y = f(x W + b)``; (features,) to (units,).

    Parameters
    ----------
    units : int
        Width of the output, >= 1.
    activation : str
        One of `ACTIVATION_NAMES`.
    use_bias : bool
        Whether there is a b.
    kernel_initializer, bias_initializer : str
        Keys of `fastae.initializers.INITIALIZERS`.
    trainable : bool
        False: W and b keep their values. If those are the identity and zeros, the product is not
        computed at all.
    name : str, optional
        Its name in listings and files; a Network gives one to a layer without.

    Raises
    ------
    ValueError
        When an argument is not as stated.
    """

    kind: ClassVar[str] = "dense"

    units: int
    activation: str = "linear"
    use_bias: bool = True
    kernel_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"
    trainable: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", positive_int("units", self.units))
        _check_activation("activation", self.activation)
        _check_bool("use_bias", self.use_bias)
        initializers.check("kernel_initializer", self.kernel_initializer)
        initializers.check("bias_initializer", self.bias_initializer, matrix=False)
        _check_bool("trainable", self.trainable)
        _check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (units,)."""
        _flat("Dense", shape)
        return (self.units,)

    def parameters(self, shape: Shape) -> tuple[ParameterSpec, ...]:
        """Return weight (features, units) and, if used, bias (units,)."""
        n, m = _flat("Dense", shape), self.units
        weight = ParameterSpec("weight", (n, m), self.trainable, self.kernel_initializer, n, m)
        bias = ParameterSpec("bias", (m,), self.trainable, self.bias_initializer, n, m)
        return (weight, bias) if self.use_bias else (weight,)


@dataclass(frozen=True)
class Activation(Layer):
    """Activation: softmax of each row, (features,), or one of every element.

    Parameters
    ----------
    activation : str
        One of `ACTIVATION_NAMES`.
    name : str, optional
        Its name in listings and files.
    """

    kind: ClassVar[str] = "activation"

    activation: str
    name: str | None = None

    def __post_init__(self) -> None:
        _check_activation("activation", self.activation)
        _check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the input."""
        if self.activation == "softmax":
            _flat("a softmax", shape)
        return shape


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalisation, ``y = f(gamma (x - mean) / sqrt(variance + epsilon) + beta)``; (features,).

    Training takes mean and variance of the batch, which needs two rows or more, and lets running
    ones follow; everything else takes the running ones.

    Parameters
    ----------
    momentum : float
        Weight of a batch in the running mean and variance, in [0, 1].
    epsilon : float
        Added to the variance, > 0.
    activation : str
        One of `ACTIVATION_NAMES`.
    name : str, optional
        Its name in listings and files.

    Raises
    ------
    ValueError
        When an argument is not as stated.

    Notes
    -----
    The conventions are those of PyTorch's BatchNorm1d: the running variance is the unbiased one, that
    of the batch is not.

    References
    ----------
    Ioffe, Szegedy, Batch normalization (2015).
    """

    kind: ClassVar[str] = "batchnorm"

    momentum: float = 0.1
    epsilon: float = 1e-5
    activation: str = "linear"
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "momentum", real_number("momentum", self.momentum, 0, 1, open_high=False))
        object.__setattr__(self, "epsilon", real_number("epsilon", self.epsilon, 0, open_low=True))
        _check_activation("activation", self.activation)
        _check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the input, (features,)."""
        _flat("BatchNorm", shape)
        return shape

    def parameters(self, shape: Shape) -> tuple[ParameterSpec, ...]:
        """Return gamma and beta, which are trained, and running_mean and running_var; (features,) each."""
        m = _flat("BatchNorm", shape)
        return (
            ParameterSpec("gamma", (m,), True, "ones", m, m),
            ParameterSpec("beta", (m,), True, "zeros", m, m),
            ParameterSpec("running_mean", (m,), False, "zeros", m, m, statistic=True),
            ParameterSpec("running_var", (m,), False, "ones", m, m, statistic=True),
        )


@dataclass(frozen=True)
class Dropout(Layer):
    """Zeros in place of some elements, drawn anew for each batch, the others made larger; in training alone.

    Parameters
    ----------
    rate : float
        Probability of a zero, in [0, 1); what is kept is divided by 1 - rate.
    name : str, optional
        Its name in listings and files.

    Raises
    ------
    ValueError
        When an argument is not as stated.

    References
    ----------
    Srivastava et al., Dropout (2014).
    """

    kind: ClassVar[str] = "dropout"

    rate: float
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", real_number("rate", self.rate, 0, 1))
        _check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the input."""
        return shape


@dataclass(frozen=True)
class GaussianNoise(Layer):
    """Normally distributed noise, drawn anew for each batch, added in training alone.

    Parameters
    ----------
    stddev : float
        Standard deviation, finite and >= 0.
    name : str, optional
        Its name in listings and files.

    Raises
    ------
    ValueError
        When an argument is not as stated.
    """

    kind: ClassVar[str] = "gaussian_noise"

    stddev: float
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stddev", real_number("stddev", self.stddev, 0))
        _check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the input."""
        return shape


@dataclass(frozen=True)
class MaskingNoise(Layer):
    """Zeros in place of some elements, drawn anew for each batch, in training alone; the others stay.

    Parameters
    ----------
    rate : float
        Probability of a zero, in [0, 1).
    name : str, optional
        Its name in listings and files.

    Raises
    ------
    ValueError
        When an argument is not as stated.

    References
    ----------
    Vincent et al., Stacked denoising autoencoders (2010).
    """

    kind: ClassVar[str] = "masking_noise"

    rate: float
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", real_number("rate", self.rate, 0, 1))
        _check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the input."""
        return shape


@dataclass(frozen=True)
class Subsample(Layer):
    """Every `stride`-th feature, beginning with the first; (features,) to (ceil(features / stride),).

    Parameters
    ----------
    stride : int
        Distance between kept features, >= 1.
    name : str, optional
        Its name in listings and files.
    """

    kind: ClassVar[str] = "subsample"

    stride: int
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", positive_int("stride", self.stride))
        _check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (ceil(features / stride),)."""
        return (-(-_flat("Subsample", shape) // self.stride),)


@dataclass(frozen=True, init=False)
class Parallel(Layer):
    """Branches that read the same input and whose outputs, of one shape, are summed.

    Parameters
    ----------
    *branches : sequence of Layer
        Two or more; an empty one passes its input on.
    name : str, optional
        Its name in listings and files.

    Raises
    ------
    ValueError
        With fewer than two branches, or when one holds something that is not a layer.
    """

    kind: ClassVar[str] = "parallel"

    branches: tuple[tuple[Layer, ...], ...]
    name: str | None = None

    def __init__(self, *branches: Sequence[Layer], name: str | None = None) -> None:
        if len(branches) < 2:
            raise ValueError(f"branches must be two or more sequences of layers; got {len(branches)}")
        checked = tuple(check_layers(f"branches[{i}]", branch) for i, branch in enumerate(branches))
        object.__setattr__(self, "branches", checked)
        object.__setattr__(self, "name", name)
        _check_name(name)


#: The closed registry: a file names a layer by one of these words and by nothing else.
LAYERS: dict[str, type[Layer]] = {
    cls.kind: cls
    for cls in (Dense, Activation, BatchNorm, Dropout, GaussianNoise, MaskingNoise, Subsample, Parallel)
}


def check_layers(argument: str, layers: Any) -> tuple[Layer, ...]:
    """Return `layers` as a tuple if it is a sequence of layers; otherwise raise a ValueError."""
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise ValueError(f"{argument} must be a sequence of layers; got {layers!r}")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer) or LAYERS.get(getattr(layer, "kind", "")) is not type(layer):
            raise ValueError(f"{argument}[{i}] must be a layer ({', '.join(LAYERS)}); got {layer!r}")
    return tuple(layers)


def to_dict(layer: Layer) -> dict[str, Any]:
    """Return a layer as plain values."""
    data: dict[str, Any] = {"type": layer.kind}
    for f in fields(layer):
        data[f.name] = getattr(layer, f.name)
    if isinstance(layer, Parallel):
        data["branches"] = [[to_dict(inner) for inner in branch] for branch in layer.branches]
    return data


def from_dict(data: Any, *, depth: int = 0) -> Layer:
    """Return the layer that `to_dict` gave; a ValueError for anything else.

    Parameters
    ----------
    data : dict
        With "type", a key of `LAYERS`, and the layer's fields.
    depth : int
        How many Parallel layers are around this one.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"layers must not be nested deeper than {MAX_DEPTH}")
    if not isinstance(data, dict):
        raise ValueError(f"a layer must be a dict; got {data!r:.100}")
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in LAYERS:
        raise ValueError(f"type of a layer must be one of {', '.join(LAYERS)}; got {kind!r:.100}")
    cls = LAYERS[kind]
    values = {key: value for key, value in data.items() if key != "type"}
    unknown = sorted(str(key) for key in values.keys() - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"layer of type {kind} has no field {', '.join(unknown)[:100]}")
    try:
        if cls is Parallel:
            branches = values.pop("branches", ())
            if not isinstance(branches, list) or not all(isinstance(b, list) for b in branches):
                raise ValueError("branches of a parallel layer must be a list of lists of layers")
            return Parallel(*([from_dict(d, depth=depth + 1) for d in b] for b in branches), **values)
        return cls(**values)
    except TypeError as error:  # a field without default is missing
        raise ValueError(f"layer of type {kind}: {error}") from None

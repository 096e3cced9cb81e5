"""Layers as declarations: what they compute is emitted by `fastae.lowering`, how is in the kernels.

A layer knows the shape of its output and the parameters it needs for a given input shape. A new
layer is a frozen dataclass here (one of images in ``image_layers.py``), a line in `LAYERS`, and a
function in ``graph.py`` (``image_graph.py``) that lowers it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from fastae import initializers
from fastae.image_layers import AvgPool2D, Conv2D, ConvTranspose2D, MaxPool2D, Upsample2D
from fastae.layer_base import (
    ACTIVATION_NAMES,
    Layer,
    ParameterSpec,
    Shape,
    check_activation,
    check_bool,
    check_name,
    flat,
    positive_int,
    real_number,
)

__all__ = [
    "ACTIVATION_NAMES",
    "LAYERS",
    "Activation",
    "AvgPool2D",
    "BatchNorm",
    "Conv2D",
    "ConvTranspose2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GaussianNoise",
    "Layer",
    "MaskingNoise",
    "MaxPool2D",
    "Parallel",
    "ParameterSpec",
    "Reshape",
    "Shape",
    "Subsample",
    "Upsample2D",
    "from_dict",
    "positive_int",
    "real_number",
    "to_dict",
]

#: Parallel layers may be nested this deep; a file that nests deeper is refused.
MAX_DEPTH = 32


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
        check_activation("activation", self.activation)
        check_bool("use_bias", self.use_bias)
        initializers.check("kernel_initializer", self.kernel_initializer)
        initializers.check("bias_initializer", self.bias_initializer, matrix=False)
        check_bool("trainable", self.trainable)
        check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (units,)."""
        flat("Dense", shape)
        return (self.units,)

    def parameters(self, shape: Shape) -> tuple[ParameterSpec, ...]:
        """Return weight (features, units) and, if used, bias (units,)."""
        n, m = flat("Dense", shape), self.units
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
        check_activation("activation", self.activation)
        check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the input."""
        if self.activation == "softmax":
            flat("a softmax", shape)
        return shape


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalisation, ``y = f(gamma (x - mean) / sqrt(variance + epsilon) + beta)``.

    Each feature of (features,) has its mean and variance, each channel of (channels, height, width)
    those of its pixels. Training takes those of the batch, which needs two numbers or more, and lets
    running ones follow; everything else takes the running ones.

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
    The conventions are those of PyTorch's BatchNorm1d and BatchNorm2d: the running variance is the
    unbiased one, that of the batch is not.

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
        check_activation("activation", self.activation)
        check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the input, (features,) or (channels, height, width)."""
        if len(shape) not in (1, 3):
            raise ValueError(
                "input of BatchNorm must have one dimension, (features,), or three, (channels, height, "
                f"width); got shape {shape}"
            )
        if self.activation == "softmax":
            flat("a softmax", shape)
        return shape

    def parameters(self, shape: Shape) -> tuple[ParameterSpec, ...]:
        """Return gamma and beta, which are trained, and running_mean and running_var.

        Each is (features,), or (channels,) for images.
        """
        m = self.output_shape(shape)[0]
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
        check_name(self.name)

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
        check_name(self.name)

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
        check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the input."""
        return shape


@dataclass(frozen=True)
class Flatten(Layer):
    """The same numbers as one row, channel after channel; nothing is computed.

    Parameters
    ----------
    name : str, optional
        Its name in listings and files.
    """

    kind: ClassVar[str] = "flatten"

    name: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (product of the dimensions,)."""
        return (math.prod(shape),)


@dataclass(frozen=True)
class Reshape(Layer):
    """The same numbers, in the same order, in another shape; nothing is computed.

    Parameters
    ----------
    shape : tuple of int
        Of a row of the output, such as (channels, height, width).
    name : str, optional
        Its name in listings and files.

    Raises
    ------
    ValueError
        When an argument is not as stated, or the input has another number of elements.
    """

    kind: ClassVar[str] = "reshape"

    shape: Shape
    name: str | None = None

    def __post_init__(self) -> None:
        given = self.shape
        if not isinstance(given, Sequence) or isinstance(given, str) or not 1 <= len(given) <= 8:
            raise ValueError(f"shape must be a tuple of 1 to 8 integers; got {given!r:.100}")
        object.__setattr__(self, "shape", tuple(positive_int("shape", length) for length in given))
        check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape declared."""
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(
                f"shape {self.shape} has {math.prod(self.shape)} elements; "
                f"got an input of shape {shape} with {math.prod(shape)}"
            )
        return self.shape


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
        check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (ceil(features / stride),)."""
        return (-(-flat("Subsample", shape) // self.stride),)


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
        check_name(name)


#: The closed registry: a file names a layer by one of these words and by nothing else.
LAYERS: dict[str, type[Layer]] = {
    cls.kind: cls
    for cls in (
        *(Dense, Activation, BatchNorm, Dropout, GaussianNoise, MaskingNoise, Subsample, Parallel),
        *(Conv2D, ConvTranspose2D, MaxPool2D, AvgPool2D, Upsample2D, Flatten, Reshape),
    )
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

"""Layers of images, (channels, height, width): convolutions, pooling and upsampling.

Sizes follow the formulas of PyTorch and ONNX; "same" is that of Keras. A layer's `geometry` gives the
constants its kernels take for an input of a known shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, ClassVar, TypeAlias

from fastae import initializers
from fastae.kernels.table import ACTIVATIONS
from fastae.layer_base import (
    Layer,
    ParameterSpec,
    Shape,
    check_activation,
    check_bool,
    check_name,
    image,
    positive_int,
)

__all__ = ["AvgPool2D", "Conv2D", "ConvTranspose2D", "MaxPool2D", "Upsample2D"]

Pair: TypeAlias = tuple[int, int]
#: Top, left, bottom, right.
Sides: TypeAlias = tuple[int, int, int, int]
Padding: TypeAlias = "int | str | Sequence[int]"

#: Largest stride and the like, as the kernels take them.
FARTHEST = (1 << 31) - 1

_NAMES = ("height", "width")


# -- arguments -----------------------------------------------------------------------------------------


def _whole(name: str, value: Any, minimum: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer >= {minimum}; got {value!r:.100}") from None
    if not minimum <= number <= FARTHEST:
        most = "" if number < minimum else f" and <= {FARTHEST}"
        raise ValueError(f"{name} must be an integer >= {minimum}{most}; got {number}")
    return number


def _pair(name: str, value: Any, minimum: int = 1) -> Pair:
    """Return (height, width) of what is given as one integer or as two."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        if len(value) != 2:
            raise ValueError(f"{name} must be an integer or a pair (height, width); got {value!r:.100}")
        return _whole(name, value[0], minimum), _whole(name, value[1], minimum)
    number = _whole(name, value, minimum)
    return number, number


def _padding(value: Any) -> Sides | str:
    """Return the four sides, or "same", which depends on the input."""
    if isinstance(value, str):
        if value == "valid":
            return 0, 0, 0, 0
        if value == "same":
            return value
    elif not isinstance(value, Sequence) or isinstance(value, bytes | bytearray):
        number = _whole("padding", value, 0)
        return number, number, number, number
    elif len(value) == 2:
        top, left = (_whole("padding", side, 0) for side in value)
        return top, left, top, left
    elif len(value) == 4:
        top, left, bottom, right = (_whole("padding", side, 0) for side in value)
        return top, left, bottom, right
    raise ValueError(
        "padding must be 'valid', 'same', an integer, (height, width) or (top, left, bottom, right); "
        f"got {value!r:.100}"
    )


def _around(size: int, extent: int, stride: int) -> Pair:
    """Zeros before and behind so that the windows of an extent number ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


def _sides(padding: Sides | str, size: Pair, extent: Pair, stride: Pair) -> Sides:
    """Return the four sides for an input of that size."""
    if not isinstance(padding, str):
        return padding
    (top, bottom), (left, right) = map(_around, size, extent, stride)
    return top, left, bottom, right


def _windows(layer: str, size: Pair, sides: Sides, extent: Pair, stride: Pair) -> Pair:
    """Count the windows that fit into a padded image, or raise a ValueError."""
    padded = size[0] + sides[0] + sides[2], size[1] + sides[1] + sides[3]
    if extent[0] > padded[0] or extent[1] > padded[1]:
        raise ValueError(
            f"{layer}: the kernel must not be larger than the padded image; "
            f"got a kernel that spans {extent[0]}x{extent[1]} and {size[0]}x{size[1]} padded to "
            f"{padded[0]}x{padded[1]}"
        )
    return (padded[0] - extent[0]) // stride[0] + 1, (padded[1] - extent[1]) // stride[1] + 1


def _constants(**given: Pair | Sides) -> dict[str, int]:
    """Return the constants of the kernels: stride=(1, 2) as stride_h=1, stride_w=2."""
    found: dict[str, int] = {}
    for name, values in given.items():
        ends = ("h", "w") if len(values) == 2 else ("top", "left", "bottom", "right")
        found |= {f"{name}_{end}": value for end, value in zip(ends, values, strict=True)}
    return found


# -- convolutions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Convolution(Layer):
    """What both convolutions have in common."""

    filters: int
    kernel_size: int | Pair
    stride: int | Pair = 1
    padding: Padding = 0
    dilation: int | Pair = 1
    groups: int = 1
    activation: str = "linear"
    use_bias: bool = True
    kernel_initializer: str = "glorot_uniform"
    bias_initializer: str = "zeros"
    trainable: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("filters", positive_int("filters", self.filters))
        for name in ("kernel_size", "stride", "dilation"):
            put(name, _pair(name, getattr(self, name)))
        put("padding", _padding(self.padding))
        put("groups", _whole("groups", self.groups, 1))
        if self.filters % self.groups:
            raise ValueError(f"filters must be divisible by groups; got {self.filters} and {self.groups}")
        check_activation("activation", self.activation, tuple(ACTIVATIONS))
        check_bool("use_bias", self.use_bias)
        initializers.check("kernel_initializer", self.kernel_initializer, matrix=False)
        initializers.check("bias_initializer", self.bias_initializer, matrix=False)
        check_bool("trainable", self.trainable)
        check_name(self.name)

    @property
    def extent(self) -> Pair:
        """Rows and columns the kernel spans."""
        (kh, kw), (dh, dw) = self.kernel_size, self.dilation  # type: ignore[misc]
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    def channels(self, shape: Shape) -> int:
        """Return the channels of the input, which the groups must divide."""
        channels = image(type(self).__name__, shape)[0]
        if channels % self.groups:
            raise ValueError(f"input channels must be divisible by groups; got {channels} and {self.groups}")
        return channels

    def _specs(self, first: int, second: int) -> tuple[ParameterSpec, ...]:
        """Return weight (first, second, kh, kw), and the bias."""
        kh, kw = self.kernel_size  # type: ignore[misc]
        n, m = second * kh * kw, first * kh * kw
        shape = (first, second, kh, kw)
        weight = ParameterSpec("weight", shape, self.trainable, self.kernel_initializer, n, m)
        bias = ParameterSpec("bias", (self.filters,), self.trainable, self.bias_initializer, n, m)
        return (weight, bias) if self.use_bias else (weight,)


@dataclass(frozen=True)
class Conv2D(_Convolution):
    """Convolution (cross-correlation) with its activation; (channels, h, w) to (filters, h', w').

    ``h' = floor((h + top + bottom - dilation (kernel - 1) - 1) / stride) + 1``.

    Parameters
    ----------
    filters : int
        Channels of the output, >= 1.
    kernel_size : int or (height, width)
        Of the kernel, >= 1.
    stride : int or (height, width)
        Distance between windows, >= 1.
    padding : "valid", "same", int, (height, width) or (top, left, bottom, right)
        Zeros around the image: none with "valid"; with "same" as many as make h' = ceil(h / stride), an
        odd one below or at the right, as Keras has it.
    dilation : int or (height, width)
        Distance between the elements of the kernel, >= 1.
    groups : int
        Blocks of channels that do not see each other; it divides both numbers of channels.
    activation : str
        One of `fastae.kernels.table.ACTIVATIONS`.
    use_bias : bool
        Whether each channel of the output has a bias.
    kernel_initializer, bias_initializer : str
        Keys of `fastae.initializers.INITIALIZERS` other than "identity".
    trainable : bool
        False: weight and bias keep their values.
    name : str, optional
        Its name in listings and files.

    Raises
    ------
    ValueError
        When an argument is not as stated, the kernel is larger than the padded image, or groups do not
        divide the channels.

    References
    ----------
    Dumoulin, Visin, A guide to convolution arithmetic for deep learning (2016).
    """

    kind: ClassVar[str] = "conv2d"

    def output_shape(self, shape: Shape) -> Shape:
        """Return (filters, h', w')."""
        self.channels(shape)
        size: Pair = shape[1], shape[2]
        stride: Pair = self.stride  # type: ignore[assignment]
        return (self.filters, *_windows("Conv2D", size, self.sides(shape), self.extent, stride))

    def sides(self, shape: Shape) -> Sides:
        """Return the zeros at the top, left, bottom and right of an input of that shape."""
        return _sides(self.padding, shape[1:], self.extent, self.stride)  # type: ignore[arg-type]

    def geometry(self, shape: Shape) -> dict[str, int]:
        """Return the constants of the kernels for an input of that shape."""
        given = {"stride": self.stride, "padding": self.sides(shape), "dilation": self.dilation}
        return {**_constants(**given), "groups": self.groups}  # type: ignore[arg-type]

    def parameters(self, shape: Shape) -> tuple[ParameterSpec, ...]:
        """Return weight (filters, channels / groups, kh, kw) and, if used, bias (filters,)."""
        return self._specs(self.filters, self.channels(shape) // self.groups)


@dataclass(frozen=True)
class ConvTranspose2D(_Convolution):
    """Transposed convolution with its activation; (channels, h, w) to (filters, h', w').

    ``h' = (h - 1) stride - top - bottom + dilation (kernel - 1) + output_padding + 1``: it takes sizes
    back to what a Conv2D with the same arguments made them from.

    Parameters
    ----------
    filters : int
        Channels of the output, >= 1.
    kernel_size, stride, dilation, groups
        As of `Conv2D`.
    padding : "valid", "same", int, (height, width) or (top, left, bottom, right)
        What is cut off the output: nothing with "valid"; with "same" as much as makes h' = h stride, as
        Keras has it.
    activation, use_bias, kernel_initializer, bias_initializer, trainable, name
        As of `Conv2D`.
    output_padding : int or (height, width)
        Rows below and columns at the right that are added to the output, smaller than the stride or than
        the dilation; 0 with "same", which finds its own.

    Raises
    ------
    ValueError
        When an argument is not as stated, nothing would be left of the output, or groups do not divide
        the channels.

    References
    ----------
    Dumoulin, Visin, A guide to convolution arithmetic for deep learning (2016).
    """

    kind: ClassVar[str] = "conv_transpose2d"

    output_padding: int | Pair = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        added = _pair("output_padding", self.output_padding, 0)
        object.__setattr__(self, "output_padding", added)
        for name, extra, stride, dilation in zip(_NAMES, added, self.stride, self.dilation, strict=True):  # type: ignore[arg-type]
            if extra >= max(stride, dilation):
                raise ValueError(
                    f"output_padding must be smaller than stride or dilation; got {extra}, {stride} and "
                    f"{dilation} for the {name}"
                )
        if self.padding == "same" and any(added):
            raise ValueError(f"output_padding must be 0 with padding 'same', which finds it; got {added}")

    def _resolved(self) -> tuple[Sides, Pair]:
        """Return what is cut off at the four sides, and what is added."""
        if not isinstance(self.padding, str):
            return self.padding, self.output_padding  # type: ignore[return-value]
        cut, added = [], []
        for extent, stride in zip(self.extent, self.stride, strict=True):  # type: ignore[arg-type]
            total = max(extent - stride, 0)
            cut.append((total // 2, total - total // 2))
            added.append(max(stride - extent, 0))
        (top, bottom), (left, right) = cut
        return (top, left, bottom, right), (added[0], added[1])

    def output_shape(self, shape: Shape) -> Shape:
        """Return (filters, h', w')."""
        self.channels(shape)
        sides, added = self._resolved()
        found = []
        for i in (0, 1):
            cut = sides[i] + sides[i + 2]
            whole = (shape[i + 1] - 1) * self.stride[i] + self.extent[i] + added[i]  # type: ignore[index]
            if whole <= cut:
                raise ValueError(
                    f"ConvTranspose2D: padding must leave something of the {_NAMES[i]}; "
                    f"got padding {sides[i]} and {sides[i + 2]} of {whole}"
                )
            found.append(whole - cut)
        return (self.filters, *found)

    def geometry(self, shape: Shape) -> dict[str, int]:
        """Return the constants of the kernels."""
        sides, added = self._resolved()
        given = {"stride": self.stride, "padding": sides, "output_padding": added, "dilation": self.dilation}
        return {**_constants(**given), "groups": self.groups}  # type: ignore[arg-type]

    def parameters(self, shape: Shape) -> tuple[ParameterSpec, ...]:
        """Return weight (channels, filters / groups, kh, kw) and, if used, bias (filters,)."""
        # fan_in counts the filters, as PyTorch and Keras have it.
        return self._specs(self.channels(shape), self.filters // self.groups)


# -- pooling and upsampling ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pooling(Layer):
    """What both poolings have in common."""

    kernel_size: int | Pair
    stride: int | Pair | None = None
    padding: Padding = 0
    name: str | None = None

    def __post_init__(self) -> None:
        kernel = _pair("kernel_size", self.kernel_size)
        object.__setattr__(self, "kernel_size", kernel)
        stride = kernel if self.stride is None else _pair("stride", self.stride)
        object.__setattr__(self, "stride", stride)
        padding = _padding(self.padding)
        object.__setattr__(self, "padding", padding)
        if not isinstance(padding, str):
            for i in (0, 1):
                if 2 * max(padding[i], padding[i + 2]) > kernel[i]:
                    raise ValueError(
                        f"padding must be at most half of kernel_size; got {padding[i]} and {padding[i + 2]} "
                        f"for a {_NAMES[i]} of {kernel[i]}"
                    )
        check_name(self.name)

    def sides(self, shape: Shape) -> Sides:
        """Return the padding at the top, left, bottom and right of an input of that shape."""
        return _sides(self.padding, shape[1:], self.kernel_size, self.stride)  # type: ignore[arg-type]

    def output_shape(self, shape: Shape) -> Shape:
        """Return (channels, h', w')."""
        layer = type(self).__name__
        channels, height, width = image(layer, shape)
        kernel, stride = self.kernel_size, self.stride
        windows = _windows(layer, (height, width), self.sides(shape), kernel, stride)  # type: ignore[arg-type]
        return (channels, *windows)

    def geometry(self, shape: Shape) -> dict[str, int]:
        """Return the constants of the kernels for an input of that shape."""
        given = {"kernel": self.kernel_size, "stride": self.stride, "padding": self.sides(shape)}
        return _constants(**given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class MaxPool2D(_Pooling):
    """Largest number of each window; (channels, h, w) to (channels, h', w').

    ``h' = floor((h + top + bottom - kernel) / stride) + 1``; what is padded is never the largest. The
    gradient goes to the first of equal numbers; a NaN is the largest.

    Parameters
    ----------
    kernel_size : int or (height, width)
        Of a window, >= 1.
    stride : int or (height, width), optional
        Distance between windows, >= 1; `kernel_size` when not given.
    padding : "valid", "same", int, (height, width) or (top, left, bottom, right)
        As of `Conv2D`, and at most half of `kernel_size`.
    name : str, optional
        Its name in listings and files.

    Raises
    ------
    ValueError
        When an argument is not as stated, or a window is larger than the padded image.
    """

    kind: ClassVar[str] = "max_pool2d"


@dataclass(frozen=True)
class AvgPool2D(_Pooling):
    """Mean of each window; (channels, h, w) to (channels, h', w').

    Parameters
    ----------
    kernel_size, stride, padding, name
        As of `MaxPool2D`.
    count_include_pad : bool
        Whether the zeros of the padding count.

    Raises
    ------
    ValueError
        When an argument is not as stated, or a window is larger than the padded image.
    """

    kind: ClassVar[str] = "avg_pool2d"

    count_include_pad: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("count_include_pad", self.count_include_pad)

    def geometry(self, shape: Shape) -> dict[str, int]:
        """Return the constants of the kernels for an input of that shape."""
        return {**super().geometry(shape), "count_include_pad": int(self.count_include_pad)}


@dataclass(frozen=True)
class Upsample2D(Layer):
    """Nearest upsampling: every row and every column several times.

    Parameters
    ----------
    factor : int or (height, width)
        How often, >= 1.
    name : str, optional
        Its name in listings and files.

    Raises
    ------
    ValueError
        When an argument is not as stated.
    """

    kind: ClassVar[str] = "upsample2d"

    factor: int | Pair = 2
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _pair("factor", self.factor))
        check_name(self.name)

    def output_shape(self, shape: Shape) -> Shape:
        """Return (channels, h factor, w factor)."""
        channels, height, width = image("Upsample2D", shape)
        return channels, height * self.factor[0], width * self.factor[1]  # type: ignore[index]

    def geometry(self, shape: Shape) -> dict[str, int]:
        """Return the constants of the kernels."""
        return _constants(factor=self.factor)  # type: ignore[arg-type]

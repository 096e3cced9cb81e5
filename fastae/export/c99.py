"""C99 of a Model: its arrays, the few functions it needs, and one that calls them layer after layer.

A new layer needs a function registered with `emit`, and what it calls in `FUNCTIONS`. A value of the row is
a stretch of memory that lives from the call that first names it to the last: those that never live at the
same time share one array on the stack.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import fastae
from fastae.export import Model, Walk
from fastae.graph import is_identity
from fastae.layers import (
    Activation,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Flatten,
    GaussianNoise,
    Layer,
    MaskingNoise,
    MaxPool2D,
    Parallel,
    Reshape,
    Shape,
    Subsample,
    Upsample2D,
)
from fastae.network import Placed

__all__ = ["ACTIVATIONS", "FUNCTIONS", "build_source", "check_prefix", "emit"]

#: y[i] of one element v. NaN stays NaN; no exponential can overflow. $F is f for float, nothing for double.
ACTIVATIONS: Final = {
    "relu": "y[i] = v < 0 ? 0 : v;",
    "sigmoid": "const $T e = exp$F(v < 0 ? v : -v);\n        y[i] = (v < 0 ? e : 1) / (1 + e);",
    "tanh": "y[i] = tanh$F(v);",
    "leaky_relu": "y[i] = v > 0 ? v : 0.01$F * v;",
    "elu": "y[i] = v > 0 ? v : expm1$F(v);",
    "softplus": "y[i] = (v > 0 ? v : 0) + log1p$F(exp$F(v > 0 ? -v : v));",
}

_ELEMENTWISE = """\
/* y = f(x), element by element; y may be x */
static void $P_{name}(const $T *x, long n, $T *y)
{{
    long i;
    for (i = 0; i < n; i++) {{
        const $T v = x[i];
        {code}
    }}
}}
"""

#: The functions a file may have: $P is the prefix, $T float or double.
FUNCTIONS: Final = {
    **{name: _ELEMENTWISE.format(name=name, code=code) for name, code in ACTIVATIONS.items()},
    "softmax": """\
/* y = exp(x - max) / sum; y may be x */
static void $P_softmax(const $T *x, long n, $T *y)
{
    $T most = x[0], sum = 0;
    long i;
    for (i = 1; i < n; i++)
        if (x[i] > most)
            most = x[i];
    for (i = 0; i < n; i++) {
        y[i] = exp$F(x[i] - most);
        sum += y[i];
    }
    for (i = 0; i < n; i++)
        y[i] /= sum;
}
""",
    "dense": """\
/* y = x w + b: w is (n, m), b may be NULL */
static void $P_dense(const $T *x, const $T *w, const $T *b, long n, long m, $T *y)
{
    long i, j;
    for (j = 0; j < m; j++)
        y[j] = b ? b[j] : 0;
    for (i = 0; i < n; i++)
        for (j = 0; j < m; j++)
            y[j] += x[i] * w[i * m + j];
}
""",
    "batchnorm": """\
/* y = (x - mean) scale + beta for each of n features or channels, of size elements each */
static void $P_batchnorm(const $T *x, const $T *mean, const $T *scale, const $T *beta, long n,
                         long size, $T *y)
{
    long i, j;
    for (i = 0; i < n; i++)
        for (j = 0; j < size; j++)
            y[i * size + j] = (x[i * size + j] - mean[i]) * scale[i] + beta[i];
}
""",
    "conv2d": """\
/* y = x * w + b: x is (c, h, v), w (m, c / groups, kh, kv), y (m, oh, ov); b may be NULL. s: stride, d:
   dilation, top and left: zeros around x */
static void $P_conv2d(const $T *x, const $T *w, const $T *b, long c, long h, long v, long m, long oh,
                      long ov, long kh, long kv, long sh, long sv, long dh, long dv, long top, long left,
                      long groups, $T *y)
{
    const long n = c / groups;
    long o, i, p, q, r, s;
    for (o = 0; o < m; o++) {
        $T *to = y + o * oh * ov;
        for (r = 0; r < oh * ov; r++)
            to[r] = b ? b[o] : 0;
        for (i = 0; i < n; i++)
            for (p = 0; p < kh; p++)
                for (q = 0; q < kv; q++) {
                    const $T k = w[((o * n + i) * kh + p) * kv + q];
                    const $T *from = x + (o / (m / groups) * n + i) * h * v;
                    for (r = 0; r < oh; r++) {
                        const long row = r * sh + p * dh - top;
                        if (row < 0 || row >= h)
                            continue;
                        for (s = 0; s < ov; s++) {
                            const long column = s * sv + q * dv - left;
                            if (column >= 0 && column < v)
                                to[r * ov + s] += k * from[row * v + column];
                        }
                    }
                }
    }
}
""",
    "conv_transpose2d": """\
/* The same the other way: x is (c, h, v), w (c, m / groups, kh, kv), y (m, oh, ov); top and left are cut
   off y */
static void $P_conv_transpose2d(const $T *x, const $T *w, const $T *b, long c, long h, long v, long m,
                                long oh, long ov, long kh, long kv, long sh, long sv, long dh, long dv,
                                long top, long left, long groups, $T *y)
{
    const long n = m / groups;
    long o, i, p, q, r, s;
    for (o = 0; o < m; o++)
        for (r = 0; r < oh * ov; r++)
            y[o * oh * ov + r] = b ? b[o] : 0;
    for (i = 0; i < c; i++)
        for (o = 0; o < n; o++) {
            $T *to = y + (i / (c / groups) * n + o) * oh * ov;
            for (p = 0; p < kh; p++)
                for (q = 0; q < kv; q++) {
                    const $T k = w[((i * n + o) * kh + p) * kv + q];
                    for (r = 0; r < h; r++) {
                        const long row = r * sh + p * dh - top;
                        if (row < 0 || row >= oh)
                            continue;
                        for (s = 0; s < v; s++) {
                            const long column = s * sv + q * dv - left;
                            if (column >= 0 && column < ov)
                                to[row * ov + column] += k * x[(i * h + r) * v + s];
                        }
                    }
                }
        }
}
""",
    "max_pool2d": """\
/* y = largest number of each window within x; x is (c, h, v), y (c, oh, ov); NaN is the largest */
static void $P_max_pool2d(const $T *x, long c, long h, long v, long oh, long ov, long kh, long kv, long sh,
                          long sv, long top, long left, $T *y)
{
    long i, p, q, r, s;
    for (i = 0; i < c; i++)
        for (r = 0; r < oh; r++)
            for (s = 0; s < ov; s++) {
                $T most = 0;
                int any = 0;
                for (p = r * sh - top; p < r * sh - top + kh; p++)
                    for (q = s * sv - left; q < s * sv - left + kv; q++)
                        if (p >= 0 && p < h && q >= 0 && q < v) {
                            const $T k = x[(i * h + p) * v + q];
                            if (!any || k > most || k != k)
                                most = k;
                            any = 1;
                        }
                y[(i * oh + r) * ov + s] = most;
            }
}
""",
    "avg_pool2d": """\
/* y = mean of each window; x is (c, h, v), y (c, oh, ov); padded: whether what is not in x counts as 0 */
static void $P_avg_pool2d(const $T *x, long c, long h, long v, long oh, long ov, long kh, long kv, long sh,
                          long sv, long top, long left, int padded, $T *y)
{
    long i, p, q, r, s;
    for (i = 0; i < c; i++)
        for (r = 0; r < oh; r++)
            for (s = 0; s < ov; s++) {
                $T sum = 0;
                long count = 0;
                for (p = r * sh - top; p < r * sh - top + kh; p++)
                    for (q = s * sv - left; q < s * sv - left + kv; q++)
                        if (p >= 0 && p < h && q >= 0 && q < v) {
                            sum += x[(i * h + p) * v + q];
                            count++;
                        }
                y[(i * oh + r) * ov + s] = sum / ($T)(padded ? kh * kv : count);
            }
}
""",
    "upsample2d": """\
/* y = x with every row fh times and every column fv times; x is (c, h, v) */
static void $P_upsample2d(const $T *x, long c, long h, long v, long fh, long fv, $T *y)
{
    long r, s;
    for (r = 0; r < c * h * fh; r++)
        for (s = 0; s < v * fv; s++)
            y[r * v * fv + s] = x[r / fh * v + s / fv];
}
""",
    "subsample": """\
/* y = every stride-th element of x, n of them */
static void $P_subsample(const $T *x, long stride, long n, $T *y)
{
    long i;
    for (i = 0; i < n; i++)
        y[i] = x[i * stride];
}
""",
    "add": """\
/* y = x1 + x2; y may be one of them */
static void $P_add(const $T *x1, const $T *x2, long n, $T *y)
{
    long i;
    for (i = 0; i < n; i++)
        y[i] = x1[i] + x2[i];
}
""",
    "copy": """\
static void $P_copy(const $T *x, long n, $T *y)
{
    long i;
    for (i = 0; i < n; i++)
        y[i] = x[i];
}
""",
    "mse": """\
/* mean of (y - x)^2 */
static $T $P_mse(const $T *x, const $T *y, long n)
{
    $T sum = 0;
    long i;
    for (i = 0; i < n; i++)
        sum += (y[i] - x[i]) * (y[i] - x[i]);
    return sum / ($T)n;
}
""",
}


def check_prefix(prefix: Any) -> str:
    """Return the prefix of all names if it is one; otherwise raise a ValueError."""
    if not isinstance(prefix, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,39}", prefix):
        raise ValueError(
            f"prefix: expected a letter and then at most 39 letters, digits or '_', given {prefix!r:.80}"
        )
    return prefix


@dataclass(eq=False)
class Value:
    """A row on its way; `name` is known at the end."""

    size: int
    name: str = ""


class Source(Walk[Value]):
    """Arrays and calls so far."""

    def __init__(self, model: Model, prefix: str) -> None:
        super().__init__(model)
        self.prefix = prefix
        self.real, self.suffix = ("float", "f") if model.dtype == np.float32 else ("double", "")
        self.input = Value(math.prod(model.input_shape), "x")
        self.arrays: list[str] = []
        self.constants = 0  # elements of them all
        self.calls: list[tuple[str, tuple[Value | str | int, ...]]] = []

    def layer(self, placed: Placed, x: Value) -> Value:
        return emit(placed.layer, self, placed, x)

    def array(self, title: str, values: npt.NDArray[Any]) -> str:
        """Add an array of weights; its name."""
        name = f"{self.prefix}_w{len(self.arrays)}"
        numbers = values.astype(self.model.dtype).ravel()
        shape = "x".join(map(str, values.shape))
        self.constants += values.size
        self.arrays.append(
            f"/* {title}, {shape} */\n"
            f"static const {self.real} {name}[{len(numbers)}] = {{\n{self._numbers(numbers)}\n}};\n"
        )
        return name

    def parameter(self, placed: Placed, name: str) -> str:
        """Add a parameter of a layer as it is; the name of its array."""
        return self.array(f"{placed.name}.{name}", self.weight(placed, name))

    def _numbers(self, numbers: npt.NDArray[Any]) -> str:
        texts = [hexadecimal(value) + self.suffix for value in numbers.tolist()]
        step = 6 if self.suffix else 4
        return ",\n".join("    " + ", ".join(texts[i : i + step]) for i in range(0, len(texts), step))

    def call(self, function: str, *arguments: Value | str | int) -> None:
        """Add a call; it may write to those of its values that no call before has named, and to its last."""
        self.calls.append((function, arguments))

    def value(self, shape: Shape) -> Value:
        """Return a new value for a row of that shape."""
        return Value(math.prod(shape))

    def activate(self, x: Value, activation: str, y: Value) -> Value:
        """Add an activation from x to y, which may be x; its output."""
        if activation == "linear":
            return x
        self.call(activation, x, x.size, y)
        return y


@singledispatch
def emit(layer: Layer, to: Source, placed: Placed, x: Value) -> Value:
    """Add the calls of a layer that reads `x`, which they leave as it is; its output."""
    raise to.unknown(layer, "C")


@emit.register
def _(layer: Dense, to: Source, placed: Placed, x: Value) -> Value:
    y = to.value(placed.output_shape)
    if is_identity(placed):
        return to.activate(x, layer.activation, y)
    w = to.parameter(placed, "weight")
    b = to.parameter(placed, "bias") if layer.use_bias else "NULL"
    to.call("dense", x, w, b, x.size, y.size, y)
    return to.activate(y, layer.activation, y)


@emit.register
def _(layer: Activation, to: Source, placed: Placed, x: Value) -> Value:
    return to.activate(x, layer.activation, to.value(placed.output_shape))


@emit.register
def _(layer: BatchNorm, to: Source, placed: Placed, x: Value) -> Value:
    y, channels = to.value(placed.output_shape), placed.output_shape[0]
    variance = to.weight(placed, "running_var").astype(np.float64)
    scale = to.weight(placed, "gamma") / np.sqrt(variance + layer.epsilon)
    mean = to.parameter(placed, "running_mean")
    factor = to.array(f"{placed.name}: gamma / sqrt(running_var + epsilon)", scale)
    to.call("batchnorm", x, mean, factor, to.parameter(placed, "beta"), channels, x.size // channels, y)
    return to.activate(y, layer.activation, y)


@emit.register(Dropout)
@emit.register(GaussianNoise)
@emit.register(MaskingNoise)
def _(layer: Layer, to: Source, placed: Placed, x: Value) -> Value:
    return x  # in training alone


@emit.register
def _(layer: Subsample, to: Source, placed: Placed, x: Value) -> Value:
    y = to.value(placed.output_shape)
    to.call("subsample", x, layer.stride, y.size, y)
    return y


@emit.register(Conv2D)
@emit.register(ConvTranspose2D)
def _(layer: Conv2D | ConvTranspose2D, to: Source, placed: Placed, x: Value) -> Value:
    y, g = to.value(placed.output_shape), layer.geometry(placed.input_shape)
    w = to.parameter(placed, "weight")
    b = to.parameter(placed, "bias") if layer.use_bias else "NULL"
    kernel = to.weight(placed, "weight").shape[2:]
    names = ("stride_h", "stride_w", "dilation_h", "dilation_w", "padding_top", "padding_left", "groups")
    constants = [g[name] for name in names]
    to.call(layer.kind, x, w, b, *placed.input_shape, *placed.output_shape, *kernel, *constants, y)
    return to.activate(y, layer.activation, y)


@emit.register(MaxPool2D)
@emit.register(AvgPool2D)
def _(layer: MaxPool2D | AvgPool2D, to: Source, placed: Placed, x: Value) -> Value:
    y, g = to.value(placed.output_shape), layer.geometry(placed.input_shape)
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "padding_top", "padding_left")
    constants = [g[name] for name in names]
    if isinstance(layer, AvgPool2D):
        constants.append(g["count_include_pad"])
    to.call(layer.kind, x, *placed.input_shape, *placed.output_shape[1:], *constants, y)
    return y


@emit.register
def _(layer: Upsample2D, to: Source, placed: Placed, x: Value) -> Value:
    y, g = to.value(placed.output_shape), layer.geometry(placed.input_shape)
    to.call(layer.kind, x, *placed.input_shape, g["factor_h"], g["factor_w"], y)
    return y


@emit.register(Flatten)
@emit.register(Reshape)
def _(layer: Layer, to: Source, placed: Placed, x: Value) -> Value:
    return x  # the same numbers in the same order


@emit.register
def _(layer: Parallel, to: Source, placed: Placed, x: Value) -> Value:
    y = to.value(placed.output_shape)
    first, *others = to.branches(placed, x)
    for other in others:
        to.call("add", first, other, y.size, y)
        first = y
    return y


# -- the file ------------------------------------------------------------------------------------------


def hexadecimal(value: float) -> str:
    """Write a number as C99's hexadecimal float, which is exact."""
    mantissa, exponent = float(value).hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}"


def _place(calls: Iterable[tuple[str, tuple[Any, ...]]]) -> list[int]:
    """Name the values that have no name yet after arrays they share; the sizes of these."""
    calls = list(calls)
    last = {
        value: i for i, (_, arguments) in enumerate(calls) for value in arguments if isinstance(value, Value)
    }
    sizes: list[int] = []
    free: list[int] = []
    held: dict[Value, int] = {}
    for i, (_, arguments) in enumerate(calls):
        for value in arguments:
            if isinstance(value, Value) and not value.name:
                if not free:
                    free.append(len(sizes))
                    sizes.append(0)
                # What fits, and fits best; else the largest, which has to grow least.
                slot = min(free, key=lambda s: (sizes[s] < value.size, abs(sizes[s] - value.size)))
                free.remove(slot)
                sizes[slot] = max(sizes[slot], value.size)
                held[value], value.name = slot, f"t{slot}"
        free.extend(held.pop(value) for value in [v for v in held if last[v] == i])
    return sizes


def _plain(text: str) -> str:
    """Return a text that ends no comment and begins none."""
    return re.sub(r"[^A-Za-z0-9_ .,+()-]", "_", text)


def _dims(shape: Shape) -> str:
    return f"{math.prod(shape)}" + (f" ({' x '.join(map(str, shape))})" if len(shape) > 1 else "")


def build_source(model: Model, prefix: str) -> str:
    """Write the file, as `fastae.export.to_c` describes."""
    to = Source(model, prefix)
    y = to.chain(model.layers, to.input)
    real, name = to.real, f"{prefix}_{model.part}"
    row, out = _dims(model.input_shape), _dims(model.output_shape)
    if model.scores:
        to.call("mse", to.input, y, to.input.size)
    elif y is to.input:
        to.call("copy", to.input, y.size, y := Value(y.size, "y"))
    else:
        y.name = "y"
    sizes = _place(to.calls)

    def text(call: tuple[str, tuple[Value | str | int, ...]]) -> str:
        function, arguments = call
        words = (argument.name if isinstance(argument, Value) else str(argument) for argument in arguments)
        return f"{prefix}_{function}({', '.join(words)})"

    body = [f"    {real} t{slot}[{size}];" for slot, size in enumerate(sizes)]
    body += [f"    {text(call)};" for call in (to.calls[:-1] if model.scores else to.calls)]
    if model.part == "score":
        signature = f"{real} {name}(const {real} *x)"
        contract = f"Returns the mean squared error of the reconstruction of x, {row} numbers."
        body.append(f"    return {text(to.calls[-1])};")
    elif model.threshold is not None:
        signature = f"int {name}(const {real} *x, {real} *score)"
        contract = (
            f"Puts the mean squared error of the reconstruction of x, {row} numbers, into *score. Returns 1 "
            f"for an outlier, whose score is above {model.threshold:.9g} or NaN, and 0 for any other row."
        )
        body.append(f"    *score = {text(to.calls[-1])};")
        body.append(f"    return !((double)*score <= {hexadecimal(model.threshold)});")
    else:
        signature = f"void {name}(const {real} *x, {real} *y)"
        what = {"encode": "the code", "decode": "the output for the code"}.get(model.part, "the output for")
        contract = (
            f"Reads x, {row} numbers, and writes y, {out} numbers: {what} "
            f"{'of the row ' if model.part == 'encode' else ''}x. x and y must not overlap."
        )
    used = list(dict.fromkeys(function for function, _ in to.calls))
    functions = [
        FUNCTIONS[function].replace("$P", prefix).replace("$T", real).replace("$F", to.suffix)
        for function in used
    ]
    called = re.findall(r"\b(exp|expm1|log1p|tanh)f?\(", "".join(functions))
    maths = [function + to.suffix for function in sorted(set(called))]
    stack, constants = (count * model.dtype.itemsize for count in (sum(sizes), to.constants))
    title = _plain(model.network.name or "An autoencoder")
    paragraphs = [
        f"{title}: {model.part}, written by fastae {fastae.__version__}.",
        f"{signature};",
        f"{contract} Rows of several dimensions have the last one fastest; NaN is computed with.",
        f"Numbers are of type {real}. Nothing is allocated and there is no state, so threads may share it.",
        f"It takes {stack} bytes of the stack and {constants} bytes of constants.",
        f"From <math.h>: {', '.join(maths)}." if maths else "No function of the standard library is called.",
        f"To compile: cc -std=c99 -O2 -c FILE.c{'; link with -lm' if maths else ''}. Declare it as above.",
    ]
    comment = "\n *\n".join(
        "\n".join(f" * {line}" for line in textwrap.wrap(paragraph, 100)) for paragraph in paragraphs
    )
    headers = ["math.h"] if maths else []
    if any("NULL" in arguments for _, arguments in to.calls):
        headers.append("stddef.h")
    pieces = [
        f"/*\n{comment}\n */\n",
        "".join(f"#include <{header}>\n" for header in headers),
        f"{signature};\n",
        *to.arrays,
        *functions,
        signature + "\n{\n" + "\n".join(body) + "\n}\n",
    ]
    return "\n".join(piece for piece in pieces if piece)

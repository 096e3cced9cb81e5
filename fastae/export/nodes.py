"""An ONNX graph of a Model: a node or a few for each layer.

A new layer needs a function registered with `emit`. Names of values have a slash, which neither layers nor
parameters have: ``<layer>/<operator>``. Parameters keep their names.
"""

from __future__ import annotations

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
    Subsample,
    Upsample2D,
)
from fastae.network import Placed

__all__ = ["IR_VERSION", "OPSET", "build_model", "emit"]

OPSET: Final = 18
IR_VERSION: Final = 8

#: Protocol buffers end at 2 GiB; the graph itself is small beside the weights.
MAX_BYTES: Final = 2**31 - 2**20

#: Operators of the activations, with their attributes.
OPERATORS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "elu": ("Elu", {"alpha": 1.0}),
    "softplus": ("Softplus", {}),
    "softmax": ("Softmax", {"axis": -1}),
}

#: What a graph reads, and what it gives, by part.
INPUTS: Final = {"decode": "code"}
OUTPUTS: Final = {"encode": "code", "decode": "reconstruction", "reconstruct": "reconstruction"}


def _library() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError('export to ONNX needs onnx: pip install "fastae[onnx]"') from error
    return onnx


class Graph(Walk[str]):
    """Nodes and initializers so far; a value is its name."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.onnx = _library()
        self.nodes: list[Any] = []
        self.taken: dict[str, int] = {}  # how often a name was asked for
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def layer(self, placed: Placed, x: str) -> str:
        return emit(placed.layer, self, placed, x)

    def node(self, operator: str, inputs: list[str], scope: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        output = f"{scope}/{operator}"
        if count := self.taken.setdefault(output, 0):
            output += f"_{count}"
        self.taken[f"{scope}/{operator}"] += 1
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(self, name: str, values: npt.ArrayLike, dtype: type[np.generic] | None = None) -> str:
        """Add an initializer of the model's dtype, or of another; its name."""
        self.constants[name] = np.ascontiguousarray(values, self.model.dtype if dtype is None else dtype)
        return name

    def parameter(self, placed: Placed, name: str) -> str:
        """Add a parameter of a layer as it is; its name."""
        return self.constant(f"{placed.name}.{name}", self.weight(placed, name))

    def number(self, value: float) -> str:
        """Add a single number of the model's dtype; its name."""
        return self.constant(f"constant/{value:g}", value)

    def activate(self, x: str, activation: str, scope: str) -> str:
        """Add an activation; its output."""
        if activation == "linear":
            return x
        if self.model.dtype == np.float64 and activation in ("leaky_relu", "elu", "softplus"):
            return self._composed(x, activation, scope)
        operator, attributes = OPERATORS[activation]
        return self.node(operator, [x], scope, **attributes)

    def _composed(self, x: str, activation: str, scope: str) -> str:
        """Add what runtimes have in float32 alone, from operators that they have in float64 too.

        The numbers of the attributes would be float32 besides: 0.01 is another one there.
        """
        zero, one = self.number(0.0), self.number(1.0)
        if activation == "leaky_relu":
            low = self.node("Mul", [x, self.number(0.01)], scope)
            return self.node("Max", [x, low], scope)
        if activation == "elu":
            low = self.node("Exp", [self.node("Min", [x, zero], scope)], scope)
            return self.node("Max", [x, self.node("Sub", [low, one], scope)], scope)
        e = self.node("Exp", [self.node("Neg", [self.node("Abs", [x], scope)], scope)], scope)
        e = self.node("Log", [self.node("Add", [e, one], scope)], scope)
        return self.node("Add", [self.node("Max", [x, zero], scope), e], scope)

    def flat(self, x: str, scope: str) -> str:
        """Add what makes rows of one dimension."""
        return self.node("Flatten", [x], scope, axis=1)


@singledispatch
def emit(layer: Layer, to: Graph, placed: Placed, x: str) -> str:
    """Add the nodes of a layer that reads `x`; the name of its output."""
    raise to.unknown(layer, "ONNX")


@emit.register
def _(layer: Dense, to: Graph, placed: Placed, x: str) -> str:
    if not is_identity(placed):
        inputs = [x, to.parameter(placed, "weight")]
        if layer.use_bias:
            x = to.node("Gemm", [*inputs, to.parameter(placed, "bias")], placed.name)
        else:
            x = to.node("MatMul", inputs, placed.name)
    return to.activate(x, layer.activation, placed.name)


@emit.register
def _(layer: Activation, to: Graph, placed: Placed, x: str) -> str:
    return to.activate(x, layer.activation, placed.name)


@emit.register
def _(layer: BatchNorm, to: Graph, placed: Placed, x: str) -> str:
    inputs = [x, *(to.parameter(placed, name) for name in ("gamma", "beta", "running_mean"))]
    if to.model.dtype == np.float32:
        inputs.append(to.parameter(placed, "running_var"))
    else:  # the attribute is float32: what it lacks goes to the variance
        lacking = layer.epsilon - float(np.float32(layer.epsilon))
        variance = to.weight(placed, "running_var") + lacking
        inputs.append(to.constant(f"{placed.name}/running_var", variance))
    y = to.node("BatchNormalization", inputs, placed.name, epsilon=layer.epsilon)
    return to.activate(y, layer.activation, placed.name)


@emit.register(Dropout)
@emit.register(GaussianNoise)
@emit.register(MaskingNoise)
def _(layer: Layer, to: Graph, placed: Placed, x: str) -> str:
    return x  # in training alone


@emit.register
def _(layer: Subsample, to: Graph, placed: Placed, x: str) -> str:
    ends = {"starts": 0, "ends": placed.input_shape[0], "axes": 1, "steps": layer.stride}
    return to.node(
        "Slice",
        [x, *(to.constant(f"{placed.name}/{name}", [value], np.int64) for name, value in ends.items())],
        placed.name,
    )


@emit.register
def _(layer: Parallel, to: Graph, placed: Placed, x: str) -> str:
    return to.node("Sum", to.branches(placed, x), placed.name)


def _window(layer: Conv2D | ConvTranspose2D | MaxPool2D | AvgPool2D, placed: Placed) -> dict[str, Any]:
    """Return the attributes that a window over an image has."""
    g = layer.geometry(placed.input_shape)
    found: dict[str, Any] = {
        "kernel_shape": layer.kernel_size,
        "strides": [g["stride_h"], g["stride_w"]],
        "pads": [g[f"padding_{side}"] for side in ("top", "left", "bottom", "right")],
    }
    if isinstance(layer, Conv2D | ConvTranspose2D):
        found |= {"dilations": [g["dilation_h"], g["dilation_w"]], "group": g["groups"]}
    if isinstance(layer, ConvTranspose2D):
        found["output_padding"] = [g["output_padding_h"], g["output_padding_w"]]
    return found


@emit.register(Conv2D)
@emit.register(ConvTranspose2D)
def _(layer: Conv2D | ConvTranspose2D, to: Graph, placed: Placed, x: str) -> str:
    names = ("weight", "bias") if layer.use_bias else ("weight",)
    operator = "Conv" if isinstance(layer, Conv2D) else "ConvTranspose"
    inputs = [x, *(to.parameter(placed, name) for name in names)]
    y = to.node(operator, inputs, placed.name, **_window(layer, placed))
    return to.activate(y, layer.activation, placed.name)


@emit.register
def _(layer: MaxPool2D, to: Graph, placed: Placed, x: str) -> str:
    return to.node("MaxPool", [x], placed.name, **_window(layer, placed))


@emit.register
def _(layer: AvgPool2D, to: Graph, placed: Placed, x: str) -> str:
    counted = int(layer.count_include_pad)
    return to.node("AveragePool", [x], placed.name, count_include_pad=counted, **_window(layer, placed))


@emit.register
def _(layer: Upsample2D, to: Graph, placed: Placed, x: str) -> str:
    g = layer.geometry(placed.input_shape)
    scales = to.constant(f"{placed.name}/scales", [1, 1, g["factor_h"], g["factor_w"]], np.float32)
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return to.node("Resize", [x, "", scales], placed.name, **how)


@emit.register
def _(layer: Flatten, to: Graph, placed: Placed, x: str) -> str:
    return to.flat(x, placed.name)


@emit.register
def _(layer: Reshape, to: Graph, placed: Placed, x: str) -> str:
    shape = to.constant(f"{placed.name}/shape", [-1, *layer.shape], np.int64)
    return to.node("Reshape", [x, shape], placed.name)


def _score(to: Graph, x: str, y: str) -> tuple[str, ...]:
    """Add the mean squared error of each row and, with a threshold, whether it is above it."""
    if len(to.model.input_shape) > 1:
        x = to.flat(x, "score")
    if len(to.model.output_shape) > 1:
        y = to.flat(y, "score")
    error = to.node("Sub", [y, x], "score")
    square = to.node("Mul", [error, error], "score")
    axis = to.constant("score/axis", [1], np.int64)
    score = to.node("ReduceMean", [square, axis], "score", keepdims=0)
    if to.model.threshold is None:
        return (score,)
    # In float64, so that the threshold is what was given; NaN is an outlier.
    double = to.node("Cast", [score], "score", to=to.onnx.TensorProto.DOUBLE)
    threshold = to.constant("score/threshold", to.model.threshold, np.float64)
    normal = to.node("LessOrEqual", [double, threshold], "score")
    return score, to.node("Not", [normal], "score")


def build_model(model: Model) -> Any:
    """Make the ONNX model, as `fastae.export.onnx_model` describes."""
    to = Graph(model)
    onnx, helper = to.onnx, to.onnx.helper
    x = INPUTS.get(model.part, "x")
    y = to.chain(model.layers, x)
    real, boolean = helper.np_dtype_to_tensor_dtype(model.dtype), onnx.TensorProto.BOOL
    ends: dict[str, tuple[str, int, tuple[int, ...]]]
    if model.scores:
        found = _score(to, x, y)
        ends = {
            name: (value, dtype, ())
            for name, value, dtype in zip(("score", "outlier"), found, (real, boolean), strict=False)
        }
    else:
        ends = {OUTPUTS[model.part]: (y, real, model.output_shape)}
    for name, (value, _, _) in ends.items():  # a value on the way may also be the input itself
        to.nodes.append(helper.make_node("Identity", [value], [name], f"{name}/Identity"))
    size = sum(array.nbytes for array in to.constants.values())
    if size > MAX_BYTES:
        raise ValueError(f"model: expected weights of {MAX_BYTES} bytes at most for ONNX, given {size}")
    graph = helper.make_graph(
        to.nodes,
        model.network.name or "network",
        [helper.make_tensor_value_info(x, real, ("batch", *model.input_shape))],
        [
            helper.make_tensor_value_info(name, dtype, ("batch", *shape))
            for name, (_, dtype, shape) in ends.items()
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in to.constants.items()],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fastae",
        producer_version=fastae.__version__,
        doc_string=f"{model.part} of an autoencoder",
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto

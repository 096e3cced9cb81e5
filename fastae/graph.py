"""The graph of a network in lowering: values, the ops that make them, and what each layer becomes.

Each op emits its own instructions. Those of images are in ``image_graph.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import singledispatch
from typing import TYPE_CHECKING, TypeAlias

from fastae.kernels.table import ACTIVATIONS
from fastae.layers import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    Flatten,
    GaussianNoise,
    Layer,
    MaskingNoise,
    Parallel,
    Reshape,
    Subsample,
)
from fastae.network import Placed
from fastae.program import COUNTER, Slot

if TYPE_CHECKING:
    from fastae.lowering import _Lowering

__all__ = ["Op", "Operand", "Value", "activate", "build", "draw", "is_identity"]

Random: TypeAlias = Dropout | GaussianNoise | MaskingNoise
Operand: TypeAlias = Slot | int | float | str | None


@dataclass(eq=False)
class Value:
    """An array of the batch that an op makes or, for the batch itself, that is given.

    `slot` is its home: rows [n, m] or images [n, c, h, w], as its op writes it. Who wants the other face
    of the same numbers asks `_Lowering.face`, so a Flatten or a Reshape is no op.

    `activation` is the one its op ends with: a gradient of the value times f'(value) is what that
    op's backward needs. `uses` counts the ops that read it. Nothing negative is in it when
    `nonnegative`. `source` is the value that stands for it in the modes in which its op is left out.
    `gradients` gathers what has reached it so far.
    """

    name: str
    slot: Slot
    activation: str = "linear"
    nonnegative: bool = False
    needs_gradient: bool = False
    source: Value | None = None
    random: bool = False  # its op is left out in all modes but "train"
    uses: int = 0
    gradients: list[Slot] = field(default_factory=list)
    fused: bool = False  # whether f' is already in the gradient

    @property
    def fusable(self) -> str:
        """The activation whose derivative the only reader of the value may fuse into its gradient."""
        return self.activation if self.uses == 1 else "linear"


class Op:
    """A step of the computation that reads `inputs` and makes `output`."""

    inputs: tuple[Value, ...]
    output: Value
    #: Whether the backward instruction applies the derivative of the output's activation itself, where
    #: the gradient comes without it.
    differentiates = False

    def forward(self, to: _Lowering) -> None:
        """Emit the instructions that make the output."""
        raise NotImplementedError

    def backward(self, to: _Lowering, da: Slot) -> None:
        """Emit those of the backward pass, from the gradient of the output before its activation."""
        raise NotImplementedError


def fused_note(x: Value, f: str) -> str:
    """What a listing says of an instruction that applies the derivative of the activation of `x`."""
    return f"derivative of {x.name}'s {f} fused" if f != "linear" else ""


class DenseOp(Op):
    """y = f(x w + b)."""

    def __init__(self, to: _Lowering, placed: Placed, layer: Dense, x: Value, f: str, name: str) -> None:
        self.name, self.trainable = placed.name, layer.trainable
        self.w = to.slots[f"{placed.name}.weight"]
        self.b = to.slots[f"{placed.name}.bias"] if layer.use_bias else None
        self.inputs = (x,)
        self.output = to.value(name, placed.output_shape, [x], f, layer.trainable)

    def only_for(self, reader: BatchNormOp) -> bool:
        """Whether the bare product is all that `reader` reads, as rows, and nothing else reads it."""
        y = self.output
        rows = reader.kernel == "batchnorm"
        return rows and reader.inputs == (y,) and y.uses == 1 and y.activation == "linear"

    def forward(self, to: _Lowering) -> None:
        x, y = to.rows_of(to.place(self.inputs[0])), self.output
        to.emit("dense_forward", x=x, w=self.w, b=self.b, activation=to.activation(y), y=y.slot)

    def backward(self, to: _Lowering, da: Slot) -> None:
        (x,), da = self.inputs, to.rows_of(da)
        if x.needs_gradient:  # first, since it reads the weights that the update changes
            f = x.fusable
            dx = to.gradient_slot(x, self.name, to.width(x), fused=True)
            saved = to.rows_of(x.slot) if f != "linear" else None
            to.emit("dense_input_grad", fused_note(x, f), da=da, w=self.w, x=saved, activation=f, dx=dx)
        if self.trainable:
            to.dense_update(to.rows_of(to.place(x)), da, self.w, self.b)


class BatchNormOp(Op):
    """y = f(gamma (x - mean) / sqrt(var + epsilon) + beta)."""

    differentiates = True

    def __init__(self, to: _Lowering, placed: Placed, layer: BatchNorm, x: Value, f: str, name: str) -> None:
        self.name, self.layer = placed.name, layer
        self.gamma, self.beta, self.running_mean, self.running_var = (
            to.slots[p.name] for p in placed.parameters
        )
        self.mean = to.slot(f"{placed.name}.mean", self.gamma.shape)
        self.inv_std = to.slot(f"{placed.name}.inv_std", self.gamma.shape)
        self.inputs = (x,)
        self.output = to.value(name, placed.output_shape, [x], f, trainable=True)
        self.shape = self.output.slot.shape[1:]
        self.kernel = "batchnorm" if len(self.shape) == 1 else "batchnorm2d"
        self.needs_rows = 2 if math.prod(self.shape[1:]) == 1 else 1

    def forward(self, to: _Lowering) -> None:
        x, f = to.face(to.place(self.inputs[0]), self.shape), to.activation(self.output)
        self.normalise(to, self.kernel, f"{f} fused" if f != "linear" else "", x=x)

    def forward_with(self, to: _Lowering, dense: DenseOp) -> None:
        """Emit the one instruction that makes the output of `dense` and from it the own one."""
        f, z = to.activation(self.output), self.inputs[0]
        steps = "product and normalisation" if f == "linear" else f"product, normalisation and {f}"
        x = to.rows_of(to.place(dense.inputs[0]))
        made = {"z": z.slot} if to.mode == "train" else {}  # the backward pass reads it
        note = f"{dense.name} and {self.name}: {steps} in one"
        self.normalise(to, "dense_batchnorm", note, x=x, w=dense.w, b=dense.b, **made)

    def normalise(self, to: _Lowering, kernel: str, note: str, **operands: Slot | None) -> None:
        """Emit `kernel` in the form for training or the other."""
        both: dict[str, Operand] = {
            **operands,
            "gamma": self.gamma,
            "beta": self.beta,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "activation": to.activation(self.output),
            "epsilon": self.layer.epsilon,
            "y": self.output.slot,
        }
        if to.mode == "train":
            both |= {"momentum": self.layer.momentum, "mean": self.mean, "inv_std": self.inv_std}
            to.emit(f"{kernel}_forward", note, **both)
        else:
            to.emit(f"{kernel}_inference", note, **both)

    def backward(self, to: _Lowering, da: Slot) -> None:
        (x,), y = self.inputs, self.output
        f = "linear" if y.fused else y.activation
        if x.needs_gradient:
            dx = to.gradient_slot(x, self.name, self.shape, fused=False)
        else:  # the kernel makes it in any case
            dx = to.slot(f"{self.name}.dx", y.slot.shape, batched=True)
        to.emit(
            f"{self.kernel}_backward",
            fused_note(y, f),
            dy=to.face(da, self.shape),
            x=to.face(to.place(x), self.shape),
            gamma=self.gamma,
            y=y.slot,
            mean=self.mean,
            inv_std=self.inv_std,
            activation=f,
            dx=dx,
            dgamma=to.gradient_of[self.gamma.name],
            dbeta=to.gradient_of[self.beta.name],
        )


class ActivationOp(Op):
    """y = f(x)."""

    def __init__(self, to: _Lowering, name: str, activation: str, x: Value) -> None:
        self.inputs = (x,)
        self.output = to.value(name, to.width(x), [x], activation)
        self.output.source = x

    def forward(self, to: _Lowering) -> None:
        x, y = to.rows_of(to.place(self.inputs[0])), self.output
        to.emit("activation_forward", x=x, activation=y.activation, y=y.slot)

    def backward(self, to: _Lowering, da: Slot) -> None:
        to.pass_gradient(self.inputs[0], da)


class SoftmaxOp(Op):
    """y = softmax(x); its derivative is no matter of single elements, so nothing is fused."""

    def __init__(self, to: _Lowering, name: str, x: Value) -> None:
        self.name = name
        self.inputs = (x,)
        self.output = to.value(name, to.width(x), [x])
        self.output.nonnegative = True

    def forward(self, to: _Lowering) -> None:
        to.emit("softmax_forward", x=to.rows_of(to.place(self.inputs[0])), y=self.output.slot)

    def backward(self, to: _Lowering, da: Slot) -> None:
        (x,) = self.inputs
        dx = to.gradient_slot(x, self.name, to.width(x), fused=False)
        to.emit("softmax_backward", dy=to.rows_of(da), y=self.output.slot, dx=dx)


class RandomOp(Op):
    """Dropout or noise: in training alone."""

    def __init__(self, to: _Lowering, name: str, layer: Random, x: Value, stream: int) -> None:
        self.name, self.layer = name, layer
        constant = "stddev" if isinstance(layer, GaussianNoise) else "rate"
        self.constants = {constant: getattr(layer, constant), "stream": stream, "counter": COUNTER}
        self.inputs = (x,)
        self.output = to.value(name, to.width(x), [x])
        self.output.nonnegative = x.nonnegative and constant == "rate"
        self.output.source, self.output.random = x, True

    def forward(self, to: _Lowering) -> None:
        kernel = "dropout_forward" if isinstance(self.layer, Dropout) else self.layer.kind
        x = to.rows_of(to.place(self.inputs[0]))
        to.emit(kernel, "in training alone", x=x, y=self.output.slot, **self.constants)

    def backward(self, to: _Lowering, da: Slot) -> None:
        (x,) = self.inputs
        if isinstance(self.layer, GaussianNoise):
            to.pass_gradient(x, da)
            return
        dx, da = to.gradient_slot(x, self.name, to.width(x), fused=False), to.rows_of(da)
        note = "the same zeros as forward"
        if isinstance(self.layer, Dropout):
            to.emit("dropout_backward", note, dy=da, dx=dx, **self.constants)
        else:
            to.emit("masking_noise", note, x=da, y=dx, **self.constants)


class SubsampleOp(Op):
    """y = every stride-th column of x."""

    def __init__(self, to: _Lowering, placed: Placed, layer: Subsample, x: Value) -> None:
        self.name, self.stride = placed.name, layer.stride
        self.inputs = (x,)
        self.output = to.value(placed.name, placed.output_shape, [x])
        self.output.nonnegative = x.nonnegative

    def forward(self, to: _Lowering) -> None:
        x, y = to.rows_of(to.place(self.inputs[0])), self.output.slot
        to.emit("subsample_forward", x=x, stride=self.stride, y=y)

    def backward(self, to: _Lowering, da: Slot) -> None:
        (x,) = self.inputs
        dx = to.gradient_slot(x, self.name, to.width(x), fused=False)
        to.emit("subsample_backward", dy=to.rows_of(da), stride=self.stride, dx=dx)


class SumOp(Op):
    """y = x1 + x2."""

    def __init__(self, to: _Lowering, name: str, x1: Value, x2: Value) -> None:
        self.inputs = (x1, x2)
        self.output = to.value(name, to.width(x1), self.inputs)
        self.output.nonnegative = x1.nonnegative and x2.nonnegative

    def forward(self, to: _Lowering) -> None:
        x1, x2 = (to.rows_of(to.place(x)) for x in self.inputs)
        to.emit("branch_sum", x1=x1, x2=x2, y=self.output.slot)

    def backward(self, to: _Lowering, da: Slot) -> None:
        for x in self.inputs:
            to.pass_gradient(x, da)


@singledispatch
def build(layer: Layer, to: _Lowering, placed: Placed, x: Value) -> Value:
    """Add the ops of a layer that reads `x`; its output."""
    raise NotImplementedError(f"no lowering of layers of type {layer.kind}")


@build.register(Dense)
@build.register(BatchNorm)
def _(layer: Dense | BatchNorm, to: _Lowering, placed: Placed, x: Value) -> Value:
    if is_identity(placed):
        to.notes.append(f"{placed.name}: product with fixed identity dropped")
        to.constraints[f"{placed.name}.weight"] = "identity"
        if isinstance(layer, Dense) and layer.use_bias:
            to.constraints[f"{placed.name}.bias"] = "zeros"
        return activate(to, placed.name, layer.activation, x)
    f, name = layer.activation, placed.name
    if f not in ACTIVATIONS:  # softmax, an op of its own
        f, name = "linear", f"{placed.name}.linear"
    if isinstance(layer, Dense):
        y = to.add(DenseOp(to, placed, layer, x, f, name))
    else:
        y = to.add(BatchNormOp(to, placed, layer, x, f, name))
    return y if f == layer.activation else activate(to, placed.name, layer.activation, y)


@build.register(Activation)
def _(layer: Activation, to: _Lowering, placed: Placed, x: Value) -> Value:
    return activate(to, placed.name, layer.activation, x)


@build.register(Flatten)
@build.register(Reshape)
def _(layer: Flatten | Reshape, to: _Lowering, placed: Placed, x: Value) -> Value:
    return x  # the same numbers in the same order: who reads them asks for the face it wants


@build.register(Dropout)
@build.register(GaussianNoise)
@build.register(MaskingNoise)
def _(layer: Random, to: _Lowering, placed: Placed, x: Value) -> Value:
    return draw(to, placed.name, layer, x, next(to.streams))


@build.register(Subsample)
def _(layer: Subsample, to: _Lowering, placed: Placed, x: Value) -> Value:
    return to.add(SubsampleOp(to, placed, layer, x))


@build.register(Parallel)
def _(layer: Parallel, to: _Lowering, placed: Placed, x: Value) -> Value:
    ends = [to.chain(branch, x) for branch in placed.branches]
    y = ends[0]
    for i, end in enumerate(ends[1:], 1):
        y = to.add(SumOp(to, placed.name if i == len(ends) - 1 else f"{placed.name}.{i}", y, end))
    return y


def activate(to: _Lowering, name: str, activation: str, x: Value) -> Value:
    """Return the activation of `x`, or `x` itself where that is the same."""
    if activation == "linear":
        return x
    if activation == "softmax":
        return to.add(SoftmaxOp(to, name, x))
    if activation == "relu" and x.nonnegative:
        # Exact backward too: where such a value is 0, the derivatives below it are 0.
        of = "relu" if x.activation == "relu" else "a value that is never negative"
        to.notes.append(f"{name}: relu of {of} dropped")
        return x
    return to.add(ActivationOp(to, name, activation, x))


def draw(to: _Lowering, name: str, layer: Random, x: Value, stream: int) -> Value:
    """Return `x` with dropout or noise, or `x` itself where that is the same."""
    amount = layer.stddev if isinstance(layer, GaussianNoise) else layer.rate
    return to.add(RandomOp(to, name, layer, x, stream)) if amount else x


def is_identity(placed: Placed) -> bool:
    """Whether a layer's product with its weight is for certain and always the input itself."""
    layer = placed.layer
    return (
        isinstance(layer, Dense)
        and not layer.trainable
        and layer.kernel_initializer == "identity"
        and placed.input_shape == placed.output_shape
        and not (layer.use_bias and layer.bias_initializer != "zeros")
    )

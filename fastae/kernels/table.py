"""The table of kernels: one row each, four implementations, everything else derived.

::

    table.py ──┬── scalar.py     pure-Python loops     (the readable definition)
               ├── vector.py     NumPy
               ├── jitted.py     Numba
               └── compiled/     Cython and small C headers
                     │
    from a row come: the checked call in ``fastae.ops``, the instruction form a Program runs,
    the parity, gradient and hostile-input tests, and the benchmarks.

A kernel is called with the arguments of its row, by position, in this order: inputs, saved
tensors, constants, workspaces, states, outputs. Outputs are owned by the caller, C-contiguous and
overwritten; states are updated in place; the content of a workspace means nothing afterwards.
Nothing is allocated, raised or returned.

An *instruction* is the same call with every array replaced by its offset in an arena. Its operands
are, in order: one number for each argument (offset in elements, or -1 for an absent optional array;
a constant as int64, or as the bits of a float64), then the value of each dim.

This module needs the standard library alone: the build reads it before anything is installed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace

__all__ = ["ACTIVATIONS", "KERNELS", "Activation", "Array", "Constant", "Kernel", "signature_hash"]


@dataclass(frozen=True)
class Activation:
    """An element-wise activation y = f(x), its derivative written in y, and its cost."""

    code: int
    formula: str
    derivative: str
    flops: int
    exact: bool = False  # maps integers to integers


#: Sigmoid and tanh use the form whose exponential cannot overflow: with e = exp(-|x|) sigmoid is 1/(1+e) for
#: x >= 0 and e/(1+e) below; with u = exp(-2|x|) - 1, precise near 0 too, tanh is sign(x) (-u)/(2+u).
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "linear": Activation(0, "x", "1", 0, exact=True),
        # The derivative at exactly 0 is 0, as the field has it (the AutoEncNet original uses 1).
        "relu": Activation(1, "max(x, 0)", "1 if y > 0 else 0", 1, exact=True),
        "sigmoid": Activation(2, "1 / (1 + exp(-x))", "y (1 - y)", 16),
        "tanh": Activation(3, "tanh(x)", "1 - y^2", 16),
    }
)


@dataclass(frozen=True)
class Array:
    """An array argument. ``dims`` are names, or digits for a fixed size."""

    name: str
    dims: tuple[str, ...]
    role: str  # "in", "saved", "work", "state" or "out"
    optional: bool = False  # absent: None in ops, an array of size 0 in the kernels
    kind: str = "real"  # "real" (float32 or float64, one for the whole call) or "index" (int64)

    @property
    def written(self) -> bool:
        """Whether the kernel writes to it."""
        return self.role in ("work", "state", "out")


@dataclass(frozen=True)
class Constant:
    """A constant argument of kind "activation", "int" or "real"."""

    name: str
    kind: str
    default: object = None  # None: must be given
    minimum: float | None = None  # smallest value allowed
    doc: str = ""


@dataclass(frozen=True)
class Kernel:
    """One row of the table."""

    name: str
    summary: str
    formula: str
    source: str
    arguments: tuple[Array | Constant, ...]
    flops: Callable[[SimpleNamespace], float]
    derived: Mapping[str, Callable[[SimpleNamespace], int]] = field(default_factory=dict)
    gradient: str | None = None  # the kernel that takes d(output) to d(input)
    loss: bool = False  # gives a loss and its gradient
    exact: bool = True  # sums and products alone: exact on small integers

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The array arguments in positional order."""
        return tuple(a for a in self.arguments if isinstance(a, Array))

    @property
    def constants(self) -> tuple[Constant, ...]:
        """The constant arguments in positional order."""
        return tuple(a for a in self.arguments if isinstance(a, Constant))

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dims in order of first appearance."""
        seen = dict.fromkeys(d for a in self.arrays for d in a.dims if not d.isdigit())
        return tuple(seen)

    @property
    def given(self) -> tuple[Array, ...]:
        """Arrays the caller passes to the checked call (inputs, saved, states)."""
        return tuple(a for a in self.arrays if a.role in ("in", "saved", "state"))

    @property
    def outputs(self) -> tuple[Array, ...]:
        """Arrays the kernel computes."""
        return tuple(a for a in self.arrays if a.role == "out")

    @property
    def free_dims(self) -> tuple[str, ...]:
        """Dims that no given array fixes and none derives: the checked call asks for them."""
        fixed = {d for a in self.given for d in a.dims if not a.optional}
        return tuple(d for d in self.dims if d not in fixed and d not in self.derived)

    def shape(self, array: Array, dims: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of an array for given values of the dims."""
        return tuple(int(d) if d.isdigit() else dims[d] for d in array.dims)

    def count_flops(self, dims: Mapping[str, int], constants: Mapping[str, object]) -> float:
        """Floating-point operations of one call; one of an activation counts as stated there."""
        return float(self.flops(SimpleNamespace(**dims, **constants)))

    def count_bytes(self, dims: Mapping[str, int], itemsize: int, present=None) -> int:
        """Bytes moved if every array is read or written once, and a state is both."""
        total = 0
        for a in self.arrays:
            if a.role == "work" or (a.optional and present is not None and a.name not in present):
                continue
            size = 1
            for length in self.shape(a, dims):
                size *= length
            total += size * (8 if a.kind == "index" else itemsize) * (2 if a.role == "state" else 1)
        return total


_ARRAY = re.compile(r"(\w+)\[([\w,]+)\](\?)?(?::(\w+))?")

ACTIVATION = Constant("activation", "activation", "linear", doc="name of the activation")
LEARNING_RATE = Constant("learning_rate", "real", None, 0.0, "step size, >= 0")
STRIDE = Constant("stride", "int", None, 1, "distance between kept columns, >= 1")


def _arrays(spec: str, role: str) -> tuple[Array, ...]:
    """Parse e.g. ``"x[n,k] b[m]? order[n]:index"``."""
    return tuple(
        Array(name, tuple(dims.split(",")), role, bool(optional), kind or "real")
        for name, dims, optional, kind in _ARRAY.findall(spec)
    )


def _act(d: SimpleNamespace) -> int:
    return ACTIVATIONS[d.activation].flops


KERNELS: dict[str, Kernel] = {}


def _row(
    name: str,
    summary: str,
    formula: str,
    *,
    inputs: str = "",
    saved: str = "",
    constants: tuple[Constant, ...] = (),
    work: str = "",
    state: str = "",
    out: str = "",
    flops: Callable[[SimpleNamespace], float],
    source: str,
    **more,
) -> None:
    arguments: tuple[Array | Constant, ...] = (
        *_arrays(inputs, "in"),
        *_arrays(saved, "saved"),
        *constants,
        *_arrays(work, "work"),
        *_arrays(state, "state"),
        *_arrays(out, "out"),
    )
    KERNELS[name] = Kernel(name, summary, formula, source, arguments, flops, **more)


_BOOK = "Goodfellow, Bengio, Courville, Deep Learning (2016), ch. 6"

_row(
    "dense_forward",
    "Fully connected layer with its activation.",
    "y = f(x w + b)",
    inputs="x[n,k] w[k,m] b[m]?",
    constants=(ACTIVATION,),
    out="y[n,m]",
    flops=lambda d: 2 * d.n * d.k * d.m + (1 + _act(d)) * d.n * d.m,
    source=_BOOK,
    gradient="dense_backward",
)
_row(
    "dense_backward",
    "All gradients of a fully connected layer.",
    "da = dy f'(y); dx = da w^T; dw = x^T da; db = sum_n da",
    inputs="dy[n,m] x[n,k] w[k,m]",
    saved="y[n,m]",
    constants=(ACTIVATION,),
    work="da[n,m]",
    out="dx[n,k] dw[k,m] db[m]",
    flops=lambda d: 4 * d.n * d.k * d.m + (2 + _act(d)) * d.n * d.m,
    source=_BOOK,
)
_row(
    "dense_input_grad",
    "Gradient of a dense layer's input, times the derivative of the activation that made it.",
    "dx = (da w^T) f'(x)",
    inputs="da[n,m] w[k,m]",
    saved="x[n,k]?",
    constants=(ACTIVATION,),
    out="dx[n,k]",
    flops=lambda d: 2 * d.n * d.k * d.m + (d.activation != "linear") * 3 * d.n * d.k,
    source=_BOOK,
)
_row(
    "dense_weight_grad",
    "Gradients of a dense layer's weight and bias.",
    "dw = x^T da; db = sum_n da",
    inputs="x[n,k] da[n,m]",
    out="dw[k,m] db[m]?",
    flops=lambda d: 2 * d.n * d.k * d.m + d.n * d.m,
    source=_BOOK,
)
_row(
    "dense_sgd",
    "Gradient of a dense layer's weight and bias, applied at once by gradient descent.",
    "w -= learning_rate x^T da; b -= learning_rate sum_n da",
    inputs="x[n,k] da[n,m]",
    constants=(LEARNING_RATE,),
    work="dw[k,m]",
    state="w[k,m] b[m]?",
    flops=lambda d: 2 * d.n * d.k * d.m + d.n * d.m + 2 * d.k * d.m,
    source="Robbins, Monro, A stochastic approximation method (1951)",
)
_row(
    "activation_forward",
    "Activation of every element.",
    "y = f(x)",
    inputs="x[n,m]",
    constants=(ACTIVATION,),
    out="y[n,m]",
    flops=lambda d: _act(d) * d.n * d.m,
    source=_BOOK,
    gradient="activation_backward",
)
_row(
    "activation_backward",
    "Gradient through an activation, from its output.",
    "dx = dy f'(y)",
    inputs="dy[n,m]",
    saved="y[n,m]",
    constants=(ACTIVATION,),
    out="dx[n,m]",
    flops=lambda d: (d.activation != "linear") * 3 * d.n * d.m,
    source=_BOOK,
)
_row(
    "subsample_forward",
    "Every stride-th column, beginning with the first.",
    "y[:, j] = x[:, stride j]",
    inputs="x[n,k]",
    constants=(STRIDE,),
    out="y[n,m]",
    flops=lambda d: 0,
    source="AutoEncNet's link branch",
    derived={"m": lambda d: -(-d.k // d.stride)},
    gradient="subsample_backward",
)
_row(
    "subsample_backward",
    "Gradient of the subsample: zero in the columns that were left out.",
    "dx[:, stride j] = dy[:, j], else 0",
    inputs="dy[n,m]",
    constants=(STRIDE,),
    out="dx[n,k]",
    flops=lambda d: 0,
    source="AutoEncNet's link branch",
    derived={"m": lambda d: -(-d.k // d.stride)},
)
_row(
    "branch_sum",
    "Sum of two branches.",
    "y = x1 + x2",
    inputs="x1[n,m] x2[n,m]",
    out="y[n,m]",
    flops=lambda d: d.n * d.m,
    source="AutoEncNet's output layer",
)
_row(
    "sse",
    "Sum of squared errors, a loss for each row, and its gradient before the last activation.",
    "row_loss = sum_m (y - target)^2; da = 2 (y - target) f'(y)",
    inputs="y[n,m] target[n,m]",
    constants=(ACTIVATION,),
    out="row_loss[n] da[n,m]",
    flops=lambda d: (4 + (d.activation != "linear") * 3) * d.n * d.m,
    source="AutoEncNet",
    loss=True,
)
_row(
    "mse",
    "Mean squared error: row losses that add up to the mean, and the gradient before the last activation.",
    "row_loss = sum_m (y - target)^2 / (n m); da = 2 (y - target) / (n m) f'(y)",
    inputs="y[n,m] target[n,m]",
    constants=(ACTIVATION,),
    out="row_loss[n] da[n,m]",
    flops=lambda d: (5 + (d.activation != "linear") * 3) * d.n * d.m,
    source="PyTorch's MSELoss with reduction='mean'",
    loss=True,
    exact=False,
)
_row(
    "total",
    "Sum of the row losses.",
    "loss = sum_n row_loss",
    inputs="row_loss[n]",
    out="loss[1]",
    flops=lambda d: d.n,
    source="one sum, kept apart so that no sum is ever split over threads",
)
_row(
    "sgd",
    "Gradient descent.",
    "w -= learning_rate g",
    inputs="g[p]",
    constants=(LEARNING_RATE,),
    state="w[p]",
    flops=lambda d: 2 * d.p,
    source="Robbins, Monro, A stochastic approximation method (1951)",
)
_row(
    "gather_rows",
    "Rows of the data in the given order: a mini-batch.",
    "x[i] = data[order[i]]",
    inputs="data[r,k] order[n]:index",
    out="x[n,k]",
    flops=lambda d: 0,
    source="mini-batch sampling",
)


def signature_hash() -> str:
    """Hash the names, kinds and order of all arguments: code generated from another table shows by it."""
    rows = [
        (k.name, [(a.name, a.dims, a.optional) if isinstance(a, Array) else (a.name,) for a in k.arguments])
        for k in KERNELS.values()
    ]
    kinds = [[a.kind for a in k.arguments] for k in KERNELS.values()]
    codes = [(name, a.code) for name, a in ACTIVATIONS.items()]
    return hashlib.sha256(repr((rows, kinds, codes)).encode()).hexdigest()

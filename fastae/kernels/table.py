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
from typing import Any

__all__ = ["ACTIVATIONS", "KERNELS", "Activation", "Array", "Constant", "Kernel", "signature_hash"]


@dataclass(frozen=True)
class Activation:
    """An element-wise activation y = f(x), its derivative written in y, and its cost."""

    code: int
    formula: str
    derivative: str
    flops: int
    exact: bool = False  # maps integers to integers
    nonnegative: bool = False  # gives nothing negative, so that a relu of it changes nothing


#: All use the form whose exponential cannot overflow: with e = exp(-|x|) sigmoid is 1/(1+e) for x >= 0 and
#: e/(1+e) below, softplus is max(x, 0) + log1p(e); with u = exp(-2|x|) - 1, precise near 0 too, tanh is
#: sign(x) (-u)/(2+u), or what the language's own tanh gives. Softmax needs a whole row: a kernel of its own.
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "linear": Activation(0, "x", "1", 0, exact=True),
        # The derivative at exactly 0 is 0, as the field has it (the AutoEncNet original uses 1).
        "relu": Activation(1, "max(x, 0)", "1 if y > 0 else 0", 1, exact=True, nonnegative=True),
        "sigmoid": Activation(2, "1 / (1 + exp(-x))", "y (1 - y)", 16, nonnegative=True),
        "tanh": Activation(3, "tanh(x)", "1 - y^2", 16),
        "leaky_relu": Activation(4, "x if x > 0 else 0.01 x", "1 if y > 0 else 0.01", 2),
        "elu": Activation(5, "x if x > 0 else exp(x) - 1", "1 if y > 0 else y + 1", 16),
        "softplus": Activation(6, "log(1 + exp(x))", "1 - exp(-y)", 24, nonnegative=True),
    }
)


@dataclass(frozen=True)
class Array:
    """An array argument. ``dims`` are names, or digits for a fixed size."""

    name: str
    dims: tuple[str, ...]
    role: str  # "in", "saved", "work", "state" or "out"
    optional: bool = False  # absent: None in ops, an array of size 0 in the kernels
    spare: bool = False  # a workspace that calls need, and padded Programs have no more of than they ask for
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
    above: float | None = None  # what it must be larger than
    maximum: float | None = None  # largest value allowed
    below: float | None = None  # what it must be smaller than
    part_of: str = ""  # the argument of the checked call that gives it with others, as stride gives two


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
    at_least: Mapping[str, int] = field(default_factory=dict)  # dims the checked call wants larger than 1
    #: What dims and constants must be to each other: in words, and whether they are.
    demands: tuple[tuple[str, Callable[[SimpleNamespace], bool]], ...] = ()
    #: Whether the threads of `cython` and `numba` share it out by rows of the batch, each reading of
    #: arrays of the batch its own rows alone (of 4 or 8 and more): between two such nobody waits.
    by_rows: Callable[[SimpleNamespace], bool] | None = None
    #: Whether threads of `cython`, where a Program gives it ``room``, add up their own images first and are
    #: called again when all have done that, with a negative number of parts, to add the sums of both halves.
    in_two_passes: bool = False

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
    def workspace_dims(self) -> tuple[str, ...]:
        """Dims of workspaces alone: what is larger than needed will do."""
        return tuple(d for d in self.dims if not any(d in a.dims for a in self.arrays if a.role != "work"))

    @property
    def free_dims(self) -> tuple[str, ...]:
        """Dims that no given array fixes and none derives: the checked call asks for them."""
        fixed = {d for a in self.given for d in a.dims if not a.optional}
        return tuple(d for d in self.dims if d not in fixed and d not in self.derived)

    def shape(self, array: Array, dims: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of an array for given values of the dims."""
        return tuple(int(d) if d.isdigit() else dims[d] for d in array.dims)

    def derive(self, known: Mapping[str, Any]) -> dict[str, int]:
        """Return the derived dims for given values of the other dims and of the constants.

        Raises
        ------
        ValueError
            When the values break a demand of the row, or a dim would be less than 1.
        """
        space = SimpleNamespace(**known)
        for text, holds in self.demands:
            if not holds(space):
                given = ", ".join(
                    f"{name}={known[name]}" for name in known if re.search(rf"\b{name}\b", text)
                )
                raise ValueError(f"{self.name}: expected {text}, given {given}")
        found: dict[str, int] = {}
        for name, rule in self.derived.items():
            found[name] = rule(space)
            if found[name] < 1:
                given = ", ".join(f"{n}={v}" for n, v in known.items())
                raise ValueError(f"{self.name}: expected dims that make {name} >= 1, given {given}")
            setattr(space, name, found[name])
        return found

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


_ARRAY = re.compile(r"(\w+)\[([\w,]+)\]([?~])?(?::(\w+))?")

ACTIVATION = Constant("activation", "activation", "linear", doc="name of the activation")
LEARNING_RATE = Constant("learning_rate", "real", None, doc="step size, > 0", above=0.0)
WEIGHT_DECAY = Constant("weight_decay", "real", 0.0, 0.0, "L2 penalty added to the gradient, >= 0")
EPSILON = Constant("epsilon", "real", 1e-5, 0.0, "added to the variance, >= 0")
MOMENTUM = Constant(
    "momentum", "real", 0.1, 0.0, "weight of the batch in the running statistics, in [0, 1]", maximum=1.0
)
RATE = Constant("rate", "real", None, 0.0, "probability of a zero, in [0, 1)", below=1.0)
STREAM = Constant("stream", "int", 0, 0, "tells the places in a network that draw random numbers apart")
STRIDE = Constant("stride", "int", None, 1, "distance between kept columns, >= 1")


def _arrays(spec: str, role: str) -> tuple[Array, ...]:
    """Parse e.g. ``"x[n,k] b[m]? order[n]:index"``; ``~`` marks a spare workspace, as ``?`` does too."""
    if "~" in spec and role != "work":
        raise ValueError(f"only a workspace is spare; given {spec!r}")
    return tuple(
        Array(name, tuple(dims.split(",")), role, mark == "?", bool(mark) and role == "work", kind or "real")
        for name, dims, mark, kind in _ARRAY.findall(spec)
    )


def _act(d: SimpleNamespace) -> int:
    return ACTIVATIONS[d.activation].flops


def _rows(d: SimpleNamespace) -> bool:
    return True


#: Numbers of a weight that is small: to read all of it costs a thread less than to wait for another.
SMALL_WEIGHT = 1 << 15


def _rows_or_weight(d: SimpleNamespace) -> bool:
    """A product's rows stay with their thread, unless the weight is large and larger than they are.

    What a thread writes stays in its core's cache, and to take it from there costs more than the
    arithmetic on it.
    """
    return d.k * d.m <= SMALL_WEIGHT or d.n * (d.k + d.m) > d.k * d.m


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
    by_rows=_rows_or_weight,
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
    by_rows=_rows_or_weight,
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
    "w -= learning_rate (x^T da + weight_decay w); b alike with sum_n da",
    inputs="x[n,k] da[n,m]",
    constants=(LEARNING_RATE, WEIGHT_DECAY),
    work="dw[k,m]~",
    state="w[k,m] b[m]?",
    flops=lambda d: 2 * d.n * d.k * d.m + d.n * d.m + 4 * d.k * d.m,
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
    by_rows=_rows,
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
    by_rows=_rows,
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
    by_rows=_rows,
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
    by_rows=_rows,
)
_row(
    "branch_sum",
    "Sum of two branches.",
    "y = x1 + x2",
    inputs="x1[n,m] x2[n,m]",
    out="y[n,m]",
    flops=lambda d: d.n * d.m,
    source="AutoEncNet's output layer",
    by_rows=_rows,
)
_row(
    "biased_sum",
    "Sum of two parts of a product, with its bias and activation.",
    "y = f((x1 + x2) + b)",
    inputs="x1[n,m] x2[n,m] b[m]?",
    constants=(ACTIVATION,),
    out="y[n,m]",
    flops=lambda d: (2 + _act(d)) * d.n * d.m,
    source="row-parallel layer of Megatron-LM (Shoeybi et al., 2019)",
    by_rows=_rows,
)
_row(
    "bias_grad",
    "Gradient of a bias.",
    "db = sum_n da",
    inputs="da[n,m]",
    out="db[m]",
    flops=lambda d: d.n * d.m,
    source=_BOOK,
)
_LOSS_INPUTS = "y[n,m] target[n,m] sample_weight[n]?"


def _loss(name: str, summary: str, of: str, slope: str, cost: int, source: str, **changes: Any) -> None:
    """Add a loss: row losses that add up to the batch's, and the gradient before the last activation."""
    more: dict[str, Any] = {"constants": (ACTIVATION,), "exact": False, "inputs": _LOSS_INPUTS} | changes
    _row(
        name,
        summary,
        f"row_loss = sample_weight {of}; da = sample_weight {slope}",
        out="row_loss[n] da[n,m]",
        flops=lambda d: (cost + (getattr(d, "activation", "linear") != "linear") * 3) * d.n * d.m,
        source=source,
        loss=True,
        by_rows=_rows,
        **more,
    )


_loss(
    "sse",
    "Sum of squared errors.",
    "sum_m (y - target)^2",
    "2 (y - target) f'(y)",
    4,
    "AutoEncNet",
    exact=True,
)
_loss(
    "mse",
    "Mean squared error, over the rows and columns of the batch.",
    "sum_m (y - target)^2 / (n m)",
    "2 (y - target) / (n m) f'(y)",
    5,
    "PyTorch's MSELoss with reduction='mean'",
)
_loss(
    "mse_part",
    "What some columns contribute to the mean squared error over all of them.",
    "sum_m (y - target)^2 / (n columns)",
    "2 (y - target) / (n columns) f'(y)",
    5,
    "mse of a row that lies in parts, as in Megatron-LM (Shoeybi et al., 2019) each processor has one",
    constants=(ACTIVATION, Constant("columns", "int", None, 1, "columns of the whole row, >= 1")),
)
_loss(
    "mae",
    "Mean absolute error (L1).",
    "sum_m |y - target| / (n m)",
    "sign(y - target) / (n m) f'(y)",
    4,
    "PyTorch's L1Loss with reduction='mean'",
)
_loss(
    "huber",
    "Huber loss: squared near 0, absolute beyond delta.",
    "sum_m (e^2 / 2 if |e| <= delta else delta (|e| - delta / 2)) / (n m), e = y - target",
    "clip(e, -delta, delta) / (n m) f'(y)",
    7,
    "Huber, Robust estimation of a location parameter (1964)",
    constants=(
        ACTIVATION,
        Constant("delta", "real", 1.0, doc="where the loss becomes linear, > 0", above=0.0),
    ),
)
_loss(
    "bce",
    "Binary cross-entropy of probabilities.",
    "sum_m -(target log y + (1 - target) log(1 - y)) / (n m), each log at least -100",
    "(y - target) / max(y (1 - y), 1e-12) / (n m) f'(y)",
    50,
    "PyTorch's BCELoss with reduction='mean', whose bounds keep it finite at 0 and 1",
)
_loss(
    "bce_with_logits",
    "Binary cross-entropy of sigmoid(logits), the sigmoid fused: stable for any logits.",
    "sum_m (max(z, 0) - z target + log1p(exp(-|z|))) / (n m), z = logits",
    "(sigmoid(z) - target) / (n m)",
    40,
    "PyTorch's BCEWithLogitsLoss with reduction='mean'",
    inputs=_LOSS_INPUTS.replace("y[", "logits["),
    constants=(),
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
    "row_mse",
    "Mean squared error of each row: how well it is reconstructed, a score for anomalies.",
    "error = sum_m (y - target)^2 / m",
    inputs="y[n,m] target[n,m]",
    out="error[n]",
    flops=lambda d: 3 * d.n * d.m + d.n,
    source="the usual score of a reconstruction",
    exact=False,
    by_rows=_rows,
)
_row(
    "sgd",
    "Gradient descent.",
    "w -= learning_rate (g + weight_decay w)",
    inputs="g[p]",
    constants=(LEARNING_RATE, WEIGHT_DECAY),
    state="w[p]",
    flops=lambda d: 4 * d.p,
    source="Robbins, Monro, A stochastic approximation method (1951)",
)
_row(
    "momentum",
    "Gradient descent with momentum, Nesterov's where nesterov is 1.",
    "g += weight_decay w; velocity = momentum velocity + g; "
    "w -= learning_rate (g + momentum velocity if nesterov else velocity)",
    inputs="g[p]",
    constants=(
        LEARNING_RATE,
        Constant("momentum", "real", 0.9, 0.0, "share of the velocity kept, in [0, 1)", below=1.0),
        Constant("nesterov", "int", 0, 0, "1 to look ahead, 0 not to", maximum=1),
        WEIGHT_DECAY,
    ),
    state="w[p] velocity[p]",
    flops=lambda d: 8 * d.p,
    source="PyTorch's SGD; Sutskever et al. (2013)",
)
_ADAM = (
    LEARNING_RATE,
    Constant("beta1", "real", 0.9, 0.0, "decay of exp_avg, in [0, 1)", below=1.0),
    Constant("beta2", "real", 0.999, 0.0, "decay of exp_avg_sq, in [0, 1)", below=1.0),
    Constant("epsilon", "real", 1e-8, 0.0, "added to the root, >= 0"),
    WEIGHT_DECAY,
    Constant(
        "decoupled",
        "int",
        0,
        0,
        "1: weight_decay shrinks w itself (AdamW); 0: it is added to g (Adam)",
        maximum=1,
    ),
)
_ADAM_FORMULA = (
    "t = step + 1; decoupled: w -= learning_rate weight_decay w, else g += weight_decay w; "
    "exp_avg = beta1 exp_avg + (1 - beta1) g; exp_avg_sq = beta2 exp_avg_sq + (1 - beta2) g^2; "
    "w -= learning_rate / (1 - beta1^t) exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + epsilon)"
)
_row(
    "adam",
    "Adam and AdamW.",
    _ADAM_FORMULA,
    inputs="g[p] step[1]:index",
    constants=_ADAM,
    state="w[p] exp_avg[p] exp_avg_sq[p]",
    flops=lambda d: 14 * d.p,
    source="Kingma, Ba, Adam (2015); Loshchilov, Hutter, Decoupled weight decay (2019)",
    exact=False,
)
_row(
    "dense_adam",
    "Gradient of a dense layer's weight and bias, applied at once by Adam.",
    f"g = x^T da for w, sum_n da for b; {_ADAM_FORMULA}",
    inputs="x[n,k] da[n,m] step[1]:index",
    constants=_ADAM,
    work="dw[k,m]~ db[m]~",
    state="w[k,m] b[m]? exp_avg_w[k,m] exp_avg_b[m]? exp_avg_sq_w[k,m] exp_avg_sq_b[m]?",
    flops=lambda d: 2 * d.n * d.k * d.m + d.n * d.m + 14 * d.k * d.m,
    source="Kingma, Ba, Adam (2015); Loshchilov, Hutter, Decoupled weight decay (2019)",
    exact=False,
)
_row(
    "rmsprop",
    "RMSprop.",
    "g += weight_decay w; square_avg = alpha square_avg + (1 - alpha) g^2; "
    "w -= learning_rate g / (sqrt(square_avg) + epsilon)",
    inputs="g[p]",
    constants=(
        LEARNING_RATE,
        Constant("alpha", "real", 0.99, 0.0, "decay of square_avg, in [0, 1)", below=1.0),
        Constant("epsilon", "real", 1e-8, 0.0, "added to the root, >= 0"),
        WEIGHT_DECAY,
    ),
    state="w[p] square_avg[p]",
    flops=lambda d: 9 * d.p,
    source="Hinton, Neural networks for machine learning, lecture 6e (2012), as PyTorch's RMSprop",
    exact=False,
)
_row(
    "adagrad",
    "Adagrad.",
    "g += weight_decay w; square_sum += g^2; w -= learning_rate g / (sqrt(square_sum) + epsilon)",
    inputs="g[p]",
    constants=(
        LEARNING_RATE,
        Constant("epsilon", "real", 1e-10, 0.0, "added to the root, >= 0"),
        WEIGHT_DECAY,
    ),
    state="w[p] square_sum[p]",
    flops=lambda d: 8 * d.p,
    source="Duchi, Hazan, Singer, Adaptive subgradient methods (2011), as PyTorch's Adagrad",
    exact=False,
)
_row(
    "clip_by_norm",
    "All gradients scaled so that their Euclidean norm is at most max_norm.",
    "norm = sqrt(sum_p g^2), summed in float64; g *= max_norm / norm where norm > max_norm",
    constants=(Constant("max_norm", "real", None, doc="largest norm, > 0", above=0.0),),
    state="g[p]",
    out="norm[1]",
    flops=lambda d: 3 * d.p,
    source="Pascanu, Mikolov, Bengio, On the difficulty of training recurrent networks (2013)",
    exact=False,
)
_BATCHNORM = "Ioffe, Szegedy, Batch normalization (2015)"
_row(
    "batchnorm_forward",
    "Batch normalisation with the batch's statistics, and its activation; running statistics follow.",
    "y = f(gamma (x - mean) inv_std + beta); mean = mean_n x; var = mean_n (x - mean)^2 (two passes); "
    "inv_std = 1 / sqrt(var + epsilon); running_mean += momentum (mean - running_mean); "
    "running_var += momentum (var n / (n - 1) - running_var)",
    inputs="x[n,m] gamma[m] beta[m]",
    constants=(ACTIVATION, EPSILON, MOMENTUM),
    state="running_mean[m] running_var[m]",
    out="y[n,m] mean[m] inv_std[m]",
    flops=lambda d: (7 + _act(d)) * d.n * d.m,
    source=f"{_BATCHNORM}, with the conventions of PyTorch's BatchNorm1d",
    gradient="batchnorm_backward",
    exact=False,
    at_least={"n": 2},
)
_row(
    "batchnorm_inference",
    "Batch normalisation with the running statistics, and its activation.",
    "y = f(gamma (x - running_mean) / sqrt(running_var + epsilon) + beta)",
    inputs="x[n,m] gamma[m] beta[m] running_mean[m] running_var[m]",
    constants=(ACTIVATION, EPSILON),
    out="y[n,m]",
    flops=lambda d: (3 + _act(d)) * d.n * d.m,
    source=_BATCHNORM,
    exact=False,
)
_row(
    "batchnorm_backward",
    "All gradients of batch normalisation with the statistics of the batch, through its activation.",
    "da = dy f'(y); h = (x - mean) inv_std; dbeta = sum_n da; dgamma = sum_n da h; "
    "dx = gamma inv_std (da - dbeta / n - h dgamma / n)",
    inputs="dy[n,m] x[n,m] gamma[m]",
    saved="y[n,m] mean[m] inv_std[m]",
    constants=(ACTIVATION,),
    out="dx[n,m] dgamma[m] dbeta[m]",
    flops=lambda d: 13 * d.n * d.m,
    source=_BATCHNORM,
    exact=False,
)
_row(
    "dense_batchnorm_forward",
    "Fully connected layer, batch normalisation of its output and activation; running statistics follow.",
    "z = x w + b; then as batchnorm_forward of z: y = f(gamma (z - mean) inv_std + beta); mean = mean_n z; "
    "var = mean_n (z - mean)^2; inv_std = 1 / sqrt(var + epsilon); "
    "running_mean += momentum (mean - running_mean); "
    "running_var += momentum (var n / (n - 1) - running_var)",
    inputs="x[n,k] w[k,m] b[m]? gamma[m] beta[m]",
    constants=(ACTIVATION, EPSILON, MOMENTUM),
    state="running_mean[m] running_var[m]",
    out="z[n,m] y[n,m] mean[m] inv_std[m]",
    flops=lambda d: 2 * d.n * d.k * d.m + (8 + _act(d)) * d.n * d.m,
    source=f"{_BATCHNORM}, with the conventions of PyTorch's BatchNorm1d",
    exact=False,
    at_least={"n": 2},
)
_row(
    "dense_batchnorm_inference",
    "Fully connected layer, batch normalisation with the running statistics and activation.",
    "y = f(gamma (x w + b - running_mean) / sqrt(running_var + epsilon) + beta)",
    inputs="x[n,k] w[k,m] b[m]? gamma[m] beta[m] running_mean[m] running_var[m]",
    constants=(ACTIVATION, EPSILON),
    out="y[n,m]",
    flops=lambda d: 2 * d.n * d.k * d.m + (4 + _act(d)) * d.n * d.m,
    source=_BATCHNORM,
    exact=False,
)
_row(
    "softmax_forward",
    "Softmax of each row.",
    "y = exp(x - max_m x) / sum_m exp(x - max_m x)",
    inputs="x[n,m]",
    out="y[n,m]",
    flops=lambda d: 18 * d.n * d.m,
    source=_BOOK,
    gradient="softmax_backward",
    exact=False,
    by_rows=_rows,
)
_row(
    "softmax_backward",
    "Gradient through a softmax, from its output.",
    "dx = y (dy - sum_m dy y)",
    inputs="dy[n,m]",
    saved="y[n,m]",
    out="dx[n,m]",
    flops=lambda d: 4 * d.n * d.m,
    source=_BOOK,
    by_rows=_rows,
)
# Images: [n, channels, height, width], NCHW. Each convolution has four rows: forward, the gradients of its
# input and of its weight, and all in one. A derived dim follows from those before it and the constants.


#: Of strides and the like: products of two of them and a size do not overflow.
_FARTHEST = (1 << 31) - 1


def _pair(name: str, default: int | None, minimum: int, doc: str) -> tuple[Constant, Constant]:
    """Two constants, for height and width, that a checked call takes as one argument."""
    h, w = (
        Constant(f"{name}_{end}", "int", default, minimum, doc, part_of=name, maximum=_FARTHEST)
        for end in ("h", "w")
    )
    return h, w


_STRIDES = _pair("stride", 1, 1, "distance between windows, >= 1")
_PADDING = tuple(
    Constant(
        f"padding_{side}",
        "int",
        0,
        0,
        "zeros around the image, >= 0",
        part_of="padding",
        maximum=_FARTHEST,
    )
    for side in ("top", "left", "bottom", "right")
)
_OUTPUT_PADDING = _pair("output_padding", 0, 0, "rows below and columns at the right that are added, >= 0")
_DILATIONS = _pair("dilation", 1, 1, "distance between the elements of a kernel, >= 1")
_GROUPS = Constant(
    "groups", "int", 1, 1, "blocks of channels that do not see each other, >= 1", maximum=_FARTHEST
)
_CONV = (*_STRIDES, *_PADDING, *_DILATIONS, _GROUPS)
_CONV_TRANSPOSE = (*_STRIDES, *_PADDING, *_OUTPUT_PADDING, *_DILATIONS, _GROUPS)
_POOL = (
    *_pair("kernel", None, 1, "size of a window, >= 1"),
    *_pair("stride", None, 1, "distance between windows, >= 1"),
    *_PADDING,
)
_FACTORS = _pair("factor", None, 1, "how often each row and column is repeated, >= 1")


def _windows(size: int, before: int, after: int, extent: int, stride: int) -> int:
    """Count the windows of an extent that fit into a padded size."""
    return (size + before + after - extent) // stride + 1


def _conv_height(d: SimpleNamespace) -> int:
    return _windows(d.ih, d.padding_top, d.padding_bottom, d.dilation_h * (d.kh - 1) + 1, d.stride_h)


def _conv_width(d: SimpleNamespace) -> int:
    return _windows(d.iw, d.padding_left, d.padding_right, d.dilation_w * (d.kw - 1) + 1, d.stride_w)


def _conv_transpose_height(d: SimpleNamespace) -> int:
    spread = (d.ih - 1) * d.stride_h + d.dilation_h * (d.kh - 1) + 1
    return spread - d.padding_top - d.padding_bottom + d.output_padding_h


def _conv_transpose_width(d: SimpleNamespace) -> int:
    spread = (d.iw - 1) * d.stride_w + d.dilation_w * (d.kw - 1) + 1
    return spread - d.padding_left - d.padding_right + d.output_padding_w


def _filled(n: int) -> int:
    """Rows of a batch filled up to blocks of 16."""
    return -(-n // 16) * 16


def _conv_room(d: SimpleNamespace) -> int:
    """Elements of a convolution's workspace: both images in blocks of rows, and every window as a column."""
    return _filled(d.n) * (d.c * d.ih * d.iw + d.o * d.oh * d.ow) + d.n * d.c * d.kh * d.kw * d.oh * d.ow


def _conv_transpose_room(d: SimpleNamespace) -> int:
    return _filled(d.n) * (d.c * d.ih * d.iw + d.o * d.oh * d.ow) + d.n * d.o * d.kh * d.kw * d.ih * d.iw


def _conv_flops(d: SimpleNamespace) -> float:
    """Every element of the kernel with every window, in the padding too."""
    return 2 * d.n * d.o * d.cg * d.kh * d.kw * d.oh * d.ow


def _conv_transpose_flops(d: SimpleNamespace) -> float:
    return 2 * d.n * d.c * d.og * d.kh * d.kw * d.ih * d.iw


_CONV_DIMS = {"c": lambda d: d.cg * d.groups, "oh": _conv_height, "ow": _conv_width, "s": _conv_room}
_CONV_TRANSPOSE_DIMS = {
    "o": lambda d: d.og * d.groups,
    "oh": _conv_transpose_height,
    "ow": _conv_transpose_width,
    "s": _conv_transpose_room,
}
_GROUPED_OUTPUTS = (("o divisible by groups", lambda d: d.o % d.groups == 0),)
_GROUPED_INPUTS = (("c divisible by groups", lambda d: d.c % d.groups == 0),)
_GROUPED = (*_GROUPED_OUTPUTS, *_GROUPED_INPUTS)
_SMALL_OUTPUT_PADDING = (
    (
        "output_padding_h < max(stride_h, dilation_h)",
        lambda d: d.output_padding_h < max(d.stride_h, d.dilation_h),
    ),
    (
        "output_padding_w < max(stride_w, dilation_w)",
        lambda d: d.output_padding_w < max(d.stride_w, d.dilation_w),
    ),
)
_ARITHMETIC = (
    "Dumoulin, Visin, A guide to convolution arithmetic for deep learning (2016), as PyTorch and ONNX"
)
_IN_GROUP = (
    "i = p stride_h + u dilation_h - padding_top, j alike; x is 0 beyond its edges, c in the group of o"
)
_row(
    "conv2d_forward",
    "Convolution (cross-correlation) with its activation.",
    f"y[n,o,p,q] = f(b[o] + sum_cuv x[n,c,i,j] w[o,c,u,v]); {_IN_GROUP}",
    inputs="x[n,c,ih,iw] w[o,cg,kh,kw] b[o]?",
    constants=(ACTIVATION, *_CONV),
    work="room[s]?",
    out="y[n,o,oh,ow]",
    flops=lambda d: _conv_flops(d) + (1 + _act(d)) * d.n * d.o * d.oh * d.ow,
    source=_ARITHMETIC,
    derived=_CONV_DIMS,
    demands=_GROUPED_OUTPUTS,
    gradient="conv2d_backward",
)
_row(
    "conv2d_backward",
    "All gradients of a convolution.",
    f"da = dy f'(y); dx[n,c,i,j] = sum_opquv da[n,o,p,q] w[o,c,u,v]; "
    f"dw[o,c,u,v] = sum_npq da[n,o,p,q] x[n,c,i,j]; db[o] = sum_npq da[n,o,p,q]; {_IN_GROUP}",
    inputs="dy[n,o,oh,ow] x[n,c,ih,iw] w[o,cg,kh,kw]",
    saved="y[n,o,oh,ow]",
    constants=(ACTIVATION, *_CONV),
    work="room[s]? da[n,o,oh,ow]",
    out="dx[n,c,ih,iw] dw[o,cg,kh,kw] db[o]",
    flops=lambda d: 2 * _conv_flops(d) + (2 + _act(d)) * d.n * d.o * d.oh * d.ow,
    source=_ARITHMETIC,
    derived=_CONV_DIMS,
    demands=_GROUPED_OUTPUTS,
)
_row(
    "conv2d_input_grad",
    "Gradient of a convolution's input, times the derivative of the activation that made it.",
    f"dx[n,c,i,j] = f'(x[n,c,i,j]) sum_opquv da[n,o,p,q] w[o,c,u,v]; {_IN_GROUP}",
    inputs="da[n,o,oh,ow] w[o,cg,kh,kw]",
    saved="x[n,c,ih,iw]?",
    constants=(ACTIVATION, *_CONV),
    work="room[s]?",
    out="dx[n,c,ih,iw]",
    flops=lambda d: _conv_flops(d) + (d.activation != "linear") * 3 * d.n * d.c * d.ih * d.iw,
    source=_ARITHMETIC,
    derived=_CONV_DIMS,
    demands=_GROUPED_OUTPUTS,
)
_row(
    "conv2d_weight_grad",
    "Gradients of a convolution's weight and bias.",
    f"dw[o,c,u,v] = sum_npq da[n,o,p,q] x[n,c,i,j]; db[o] = sum_npq da[n,o,p,q]; {_IN_GROUP}",
    inputs="x[n,c,ih,iw] da[n,o,oh,ow]",
    constants=_CONV,
    work="room[s]?",
    out="dw[o,cg,kh,kw] db[o]?",
    flops=lambda d: _conv_flops(d) + d.n * d.o * d.oh * d.ow,
    source=_ARITHMETIC,
    derived={"cg": lambda d: d.c // d.groups, "oh": _conv_height, "ow": _conv_width, "s": _conv_room},
    demands=_GROUPED,
    in_two_passes=True,
)
_SPREAD = "p = i stride_h + u dilation_h - padding_top, q alike; o in the group of c"
_row(
    "conv_transpose2d_forward",
    "Transposed convolution with its activation.",
    f"y[n,o,p,q] = f(b[o] + sum_cijuv x[n,c,i,j] w[c,o,u,v]); {_SPREAD}",
    inputs="x[n,c,ih,iw] w[c,og,kh,kw] b[o]?",
    constants=(ACTIVATION, *_CONV_TRANSPOSE),
    work="room[s]?",
    out="y[n,o,oh,ow]",
    flops=lambda d: _conv_transpose_flops(d) + (1 + _act(d)) * d.n * d.o * d.oh * d.ow,
    source=_ARITHMETIC,
    derived=_CONV_TRANSPOSE_DIMS,
    demands=(*_GROUPED_INPUTS, *_SMALL_OUTPUT_PADDING),
    gradient="conv_transpose2d_backward",
)
_row(
    "conv_transpose2d_backward",
    "All gradients of a transposed convolution.",
    f"da = dy f'(y); dx[n,c,i,j] = sum_ouv da[n,o,p,q] w[c,o,u,v]; "
    f"dw[c,o,u,v] = sum_nij x[n,c,i,j] da[n,o,p,q]; db[o] = sum_npq da[n,o,p,q]; {_SPREAD}",
    inputs="dy[n,o,oh,ow] x[n,c,ih,iw] w[c,og,kh,kw]",
    saved="y[n,o,oh,ow]",
    constants=(ACTIVATION, *_CONV_TRANSPOSE),
    work="room[s]? da[n,o,oh,ow]",
    out="dx[n,c,ih,iw] dw[c,og,kh,kw] db[o]",
    flops=lambda d: 2 * _conv_transpose_flops(d) + (2 + _act(d)) * d.n * d.o * d.oh * d.ow,
    source=_ARITHMETIC,
    derived=_CONV_TRANSPOSE_DIMS,
    demands=(*_GROUPED_INPUTS, *_SMALL_OUTPUT_PADDING),
)
_row(
    "conv_transpose2d_input_grad",
    "Gradient of a transposed convolution's input, times the derivative of the activation that made it.",
    f"dx[n,c,i,j] = f'(x[n,c,i,j]) sum_ouv da[n,o,p,q] w[c,o,u,v]; {_SPREAD}",
    inputs="da[n,o,oh,ow] w[c,og,kh,kw]",
    saved="x[n,c,ih,iw]?",
    constants=(ACTIVATION, *_CONV_TRANSPOSE),
    work="room[s]?",
    out="dx[n,c,ih,iw]",
    flops=lambda d: _conv_transpose_flops(d) + (d.activation != "linear") * 3 * d.n * d.c * d.ih * d.iw,
    source=_ARITHMETIC,
    derived=_CONV_TRANSPOSE_DIMS,
    demands=(*_GROUPED_INPUTS, *_SMALL_OUTPUT_PADDING),
)
_row(
    "conv_transpose2d_weight_grad",
    "Gradients of a transposed convolution's weight and bias.",
    f"dw[c,o,u,v] = sum_nij x[n,c,i,j] da[n,o,p,q]; db[o] = sum_npq da[n,o,p,q]; {_SPREAD}",
    inputs="x[n,c,ih,iw] da[n,o,oh,ow]",
    constants=_CONV_TRANSPOSE,
    work="room[s]?",
    out="dw[c,og,kh,kw] db[o]?",
    flops=lambda d: _conv_transpose_flops(d) + d.n * d.o * d.oh * d.ow,
    source=_ARITHMETIC,
    derived={
        "og": lambda d: d.o // d.groups,
        "oh": _conv_transpose_height,
        "ow": _conv_transpose_width,
        "s": _conv_transpose_room,
    },
    demands=(*_GROUPED, *_SMALL_OUTPUT_PADDING),
    in_two_passes=True,
)
# A nearest upsampling and the convolution behind it are one transposed convolution whose stride is the
# factor, with fewer products: its weight is that of the convolution, summed over what is repeated.
_row(
    "upsample_conv2d_weight",
    "Weight of the transposed convolution that is an upsampling and then a convolution.",
    "v[c,o,p,q] = sum_ab w[o,c,u,v], a < factor_h, b < factor_w, u = kh - 1 - (p - a), v = kw - 1 - (q - b)",
    inputs="w[o,c,kh,kw]",
    constants=_FACTORS,
    out="v[c,o,vh,vw]",
    flops=lambda d: d.o * d.c * d.kh * d.kw * d.factor_h * d.factor_w,
    source="both are linear: the composition of their kernels",
    derived={"vh": lambda d: d.kh + d.factor_h - 1, "vw": lambda d: d.kw + d.factor_w - 1},
    gradient="upsample_conv2d_weight_grad",
)
_row(
    "upsample_conv2d_weight_grad",
    "Gradient of the convolution's weight from that of the transposed one's.",
    "dw[o,c,u,v] = sum_ab dv[c,o,p,q], p = kh - 1 - u + a, q = kw - 1 - v + b",
    inputs="dv[c,o,vh,vw]",
    constants=_FACTORS,
    out="dw[o,c,kh,kw]",
    flops=lambda d: d.o * d.c * d.kh * d.kw * d.factor_h * d.factor_w,
    source="both are linear: the composition of their kernels",
    derived={"kh": lambda d: d.vh - d.factor_h + 1, "kw": lambda d: d.vw - d.factor_w + 1},
)
_row(
    "upsample_conv_transpose2d_weight",
    "Weight of the transposed convolution that is an upsampling and then one of stride 1.",
    "v[c,o,p,q] = sum_ab w[c,o,p-a,q-b], a < factor_h, b < factor_w",
    inputs="w[c,o,kh,kw]",
    constants=_FACTORS,
    out="v[c,o,vh,vw]",
    flops=lambda d: d.o * d.c * d.kh * d.kw * d.factor_h * d.factor_w,
    source="both are linear: the composition of their kernels",
    derived={"vh": lambda d: d.kh + d.factor_h - 1, "vw": lambda d: d.kw + d.factor_w - 1},
    gradient="upsample_conv_transpose2d_weight_grad",
)
_row(
    "upsample_conv_transpose2d_weight_grad",
    "Gradient of the transposed convolution's weight from that of the one it became part of.",
    "dw[c,o,u,v] = sum_ab dv[c,o,u+a,v+b]",
    inputs="dv[c,o,vh,vw]",
    constants=_FACTORS,
    out="dw[c,o,kh,kw]",
    flops=lambda d: d.o * d.c * d.kh * d.kw * d.factor_h * d.factor_w,
    source="both are linear: the composition of their kernels",
    derived={"kh": lambda d: d.vh - d.factor_h + 1, "kw": lambda d: d.vw - d.factor_w + 1},
)
_POOL_DIMS = {
    "oh": lambda d: _windows(d.ih, d.padding_top, d.padding_bottom, d.kernel_h, d.stride_h),
    "ow": lambda d: _windows(d.iw, d.padding_left, d.padding_right, d.kernel_w, d.stride_w),
}
_POOL_DEMANDS = (  # else a window could lie in the padding alone
    (
        "padding_top and padding_bottom <= kernel_h / 2",
        lambda d: 2 * max(d.padding_top, d.padding_bottom) <= d.kernel_h,
    ),
    (
        "padding_left and padding_right <= kernel_w / 2",
        lambda d: 2 * max(d.padding_left, d.padding_right) <= d.kernel_w,
    ),
)
_AT = "i = p stride_h - padding_top + u, j = q stride_w - padding_left + v"
_row(
    "max_pool2d_forward",
    "Largest number of each window, and where in the window it stands.",
    f"y[n,c,p,q] = max_uv x[n,c,i,j], {_AT}; position = u kernel_w + v of the first; a NaN is the largest",
    inputs="x[n,c,ih,iw]",
    constants=_POOL,
    out="y[n,c,oh,ow] position[n,c,oh,ow]?",
    flops=lambda d: d.n * d.c * d.oh * d.ow * d.kernel_h * d.kernel_w,
    source="PyTorch's MaxPool2d",
    derived=_POOL_DIMS,
    demands=_POOL_DEMANDS,
    gradient="max_pool2d_backward",
)
_row(
    "max_pool2d_backward",
    "Gradient through a max-pooling, times the derivative of the activation that made its input.",
    f"dx[n,c,i,j] = sum_pq dy[n,c,p,q] f'(y[n,c,p,q]) where position = u kernel_w + v; {_AT}",
    inputs="dy[n,c,oh,ow] position[n,c,oh,ow]",
    saved="y[n,c,oh,ow]?",
    constants=(ACTIVATION, *_POOL),
    out="dx[n,c,ih,iw]",
    flops=lambda d: 4 * d.n * d.c * d.oh * d.ow,
    source="PyTorch's MaxPool2d",
    derived=_POOL_DIMS,
    demands=_POOL_DEMANDS,
)
_row(
    "conv2d_max_pool2d_forward",
    "Convolution with its activation and a max-pooling of windows side by side, in one pass.",
    "y, position = max_pool2d_forward(conv2d_forward(x, w, b)) with kernel and stride (pool_h, pool_w)",
    inputs="x[n,c,ih,iw] w[o,cg,kh,kw] b[o]?",
    constants=(ACTIVATION, *_CONV, *_pair("pool", None, 1, "size of a window of the pooling, >= 1")),
    work="room[s]?",
    out="y[n,o,oh,ow] position[n,o,oh,ow]?",
    flops=lambda d: (
        2 * d.n * d.o * d.cg * d.kh * d.kw * d.oh * d.ow * d.pool_h * d.pool_w
        + (2 + _act(d)) * d.n * d.o * d.oh * d.ow * d.pool_h * d.pool_w
    ),
    source=_ARITHMETIC,
    derived={
        "c": lambda d: d.cg * d.groups,
        "oh": lambda d: _conv_height(d) // d.pool_h,
        "ow": lambda d: _conv_width(d) // d.pool_w,
        "s": lambda d: (
            _filled(d.n) * (d.c * d.ih * d.iw + 2 * d.o * d.oh * d.ow)
            + d.n * (d.c * d.kh * d.kw + d.o) * _conv_height(d) * _conv_width(d)
        ),
    },
    demands=_GROUPED_OUTPUTS,
)
_row(
    "conv2d_max_pool2d_weight_grad",
    "Gradients of the weight and bias of a convolution with a max-pooling of windows side by side.",
    "dw, db = conv2d_weight_grad(x, max_pool2d_backward(dy, position, y)) with kernel and stride "
    "(pool_h, pool_w)",
    inputs="x[n,c,ih,iw] dy[n,o,ph,pw] position[n,o,ph,pw]",
    saved="y[n,o,ph,pw]?",
    constants=(ACTIVATION, *_CONV, *_pair("pool", None, 1, "size of a window of the pooling, >= 1")),
    work="room[s]? da[n,o,oh,ow]~",
    out="dw[o,cg,kh,kw] db[o]?",
    flops=lambda d: (
        2 * d.n * d.o * d.cg * d.kh * d.kw * d.ph * d.pw * d.pool_h * d.pool_w + 5 * d.n * d.o * d.ph * d.pw
    ),
    source=_ARITHMETIC,
    derived={
        "cg": lambda d: d.c // d.groups,
        "oh": _conv_height,
        "ow": _conv_width,
        "ph": lambda d: d.oh // d.pool_h,
        "pw": lambda d: d.ow // d.pool_w,
        "s": _conv_room,
    },
    demands=_GROUPED,
    in_two_passes=True,
)
_COUNT_PADDING = Constant(
    "count_include_pad",
    "int",
    1,
    0,
    "1: a mean is over the whole window; 0: over what is no padding",
    maximum=1,
)
_row(
    "avg_pool2d_forward",
    "Mean of each window.",
    f"y[n,c,p,q] = sum_uv x[n,c,i,j] / count, {_AT}; count = kernel_h kernel_w, or those in the image",
    inputs="x[n,c,ih,iw]",
    constants=(*_POOL, _COUNT_PADDING),
    out="y[n,c,oh,ow]",
    flops=lambda d: d.n * d.c * d.oh * d.ow * (d.kernel_h * d.kernel_w + 1),
    source="PyTorch's AvgPool2d",
    derived=_POOL_DIMS,
    demands=_POOL_DEMANDS,
    gradient="avg_pool2d_backward",
    exact=False,
)
_row(
    "avg_pool2d_backward",
    "Gradient through a mean-pooling, times the derivative of the activation that made its input.",
    f"dx[n,c,i,j] = f'(x[n,c,i,j]) sum_pq dy[n,c,p,q] / count; {_AT}",
    inputs="dy[n,c,oh,ow]",
    saved="x[n,c,ih,iw]?",
    constants=(ACTIVATION, *_POOL, _COUNT_PADDING),
    out="dx[n,c,ih,iw]",
    flops=lambda d: d.n * d.c * d.oh * d.ow * (d.kernel_h * d.kernel_w + 1),
    source="PyTorch's AvgPool2d",
    derived=_POOL_DIMS,
    demands=_POOL_DEMANDS,
    exact=False,
)
_row(
    "upsample2d_forward",
    "Nearest upsampling: every row and every column several times.",
    "y[n,c,p,q] = x[n, c, p // factor_h, q // factor_w]",
    inputs="x[n,c,ih,iw]",
    constants=_FACTORS,
    out="y[n,c,oh,ow]",
    flops=lambda d: 0,
    source="PyTorch's Upsample with mode='nearest'",
    derived={"oh": lambda d: d.ih * d.factor_h, "ow": lambda d: d.iw * d.factor_w},
    gradient="upsample2d_backward",
)
_row(
    "upsample2d_backward",
    "Gradient through a nearest upsampling, times the derivative of the activation that made its input.",
    "dx[n,c,i,j] = f'(x[n,c,i,j]) sum_ab dy[n, c, i factor_h + a, j factor_w + b]",
    inputs="dy[n,c,oh,ow]",
    saved="x[n,c,ih,iw]?",
    constants=(ACTIVATION, *_FACTORS),
    out="dx[n,c,ih,iw]",
    flops=lambda d: d.n * d.c * d.oh * d.ow,
    source="PyTorch's Upsample with mode='nearest'",
    derived={"oh": lambda d: d.ih * d.factor_h, "ow": lambda d: d.iw * d.factor_w},
)
_SEVERAL = (("n ih iw >= 2", lambda d: d.n * d.ih * d.iw >= 2),)
_row(
    "batchnorm2d_forward",
    "Batch normalisation of images, each channel with its statistics in the batch, and its activation.",
    "as batchnorm_forward, the means over n, ih and iw, and n ih iw in place of n",
    inputs="x[n,c,ih,iw] gamma[c] beta[c]",
    constants=(ACTIVATION, EPSILON, MOMENTUM),
    state="running_mean[c] running_var[c]",
    out="y[n,c,ih,iw] mean[c] inv_std[c]",
    flops=lambda d: (7 + _act(d)) * d.n * d.c * d.ih * d.iw,
    source=f"{_BATCHNORM}, with the conventions of PyTorch's BatchNorm2d",
    gradient="batchnorm2d_backward",
    exact=False,
    demands=_SEVERAL,
)
_row(
    "batchnorm2d_inference",
    "Batch normalisation of images with the running statistics, and its activation.",
    "y = f(gamma (x - running_mean) / sqrt(running_var + epsilon) + beta), each of its channel",
    inputs="x[n,c,ih,iw] gamma[c] beta[c] running_mean[c] running_var[c]",
    constants=(ACTIVATION, EPSILON),
    out="y[n,c,ih,iw]",
    flops=lambda d: (3 + _act(d)) * d.n * d.c * d.ih * d.iw,
    source=_BATCHNORM,
    exact=False,
)
_row(
    "batchnorm2d_backward",
    "All gradients of batch normalisation of images, through its activation.",
    "as batchnorm_backward, the sums over n, ih and iw, and n ih iw in place of n",
    inputs="dy[n,c,ih,iw] x[n,c,ih,iw] gamma[c]",
    saved="y[n,c,ih,iw] mean[c] inv_std[c]",
    constants=(ACTIVATION,),
    out="dx[n,c,ih,iw] dgamma[c] dbeta[c]",
    flops=lambda d: 13 * d.n * d.c * d.ih * d.iw,
    source=_BATCHNORM,
    exact=False,
)
_row(
    "images_from_rows",
    "Rows of numbers as images; in a Program, in the layout a backend keeps images in.",
    "y[n,c,i,j] = x[n, (c ih + i) iw + j]",
    inputs="x[n,m]",
    out="y[n,c,ih,iw]",
    flops=lambda d: 0,
    source="NCHW, as PyTorch and ONNX have it",
    derived={"m": lambda d: d.c * d.ih * d.iw},
    gradient="rows_from_images",
)
_row(
    "rows_from_images",
    "Images as rows of numbers; in a Program, from the layout a backend keeps images in.",
    "y[n, (c ih + i) iw + j] = x[n,c,i,j]",
    inputs="x[n,c,ih,iw]",
    out="y[n,m]",
    flops=lambda d: 0,
    source="NCHW, as PyTorch and ONNX have it",
    derived={"m": lambda d: d.c * d.ih * d.iw},
    gradient="images_from_rows",
)
# Random numbers come from a counter, so that every backend, any number of threads and a resumed training
# draw the same. counter = (step, seed). mix64 is the finaliser of SplitMix64 (Steele, Lea, Flood 2014), mix32
# that of a 32-bit hash of low bias (Wellons 2018); all arithmetic is modulo 2^64 or 2^32:
#     mix64(z): z += 0x9E3779B97F4A7C15; z = (z ^ z >> 30) 0xBF58476D1CE4E5B9;
#               z = (z ^ z >> 27) 0x94D049BB133111EB; z ^ z >> 31
#     mix32(h): h = (h ^ h >> 16) 0x7FEB352D; h = (h ^ h >> 15) 0x846CA68B; h ^ h >> 16
#     key = mix64(mix64(mix64(seed) + step) + stream); low, high = its halves
#     bits(e) = mix32((e 0x9E3779B9 + low) ^ high), for element e = i m + j of an array [n, m]
_row(
    "dropout_forward",
    "Inverted dropout.",
    "y = 0 where bits(i m + j) < rate 2^32, else x / (1 - rate)",
    inputs="x[n,m] counter[2]:index",
    constants=(RATE, STREAM),
    out="y[n,m]",
    flops=lambda d: 8 * d.n * d.m,
    source="Srivastava et al., Dropout (2014)",
    gradient="dropout_backward",
    exact=False,
    by_rows=_rows,
)
_row(
    "dropout_backward",
    "Gradient through dropout: the same zeros, drawn again.",
    "dx = 0 where bits(i m + j) < rate 2^32, else dy / (1 - rate)",
    inputs="dy[n,m] counter[2]:index",
    constants=(RATE, STREAM),
    out="dx[n,m]",
    flops=lambda d: 8 * d.n * d.m,
    source="Srivastava et al., Dropout (2014)",
    exact=False,
    by_rows=_rows,
)
_row(
    "masking_noise",
    "Zeros in place of some inputs, for training a denoiser.",
    "y = 0 where bits(i m + j) < rate 2^32, else x",
    inputs="x[n,m] counter[2]:index",
    constants=(RATE, STREAM),
    out="y[n,m]",
    flops=lambda d: 8 * d.n * d.m,
    source="Vincent et al., Stacked denoising autoencoders (2010)",
    by_rows=_rows,
)
_row(
    "gaussian_noise",
    "Normally distributed noise added to the input, for training a denoiser.",
    "y = x + stddev sqrt(-2 log u) cos(2 pi v), u = ((bits(2 e) >> 8) + 1) / 2^24, "
    "v = (bits(2 e + 1) >> 8) / 2^24, e = i m + j",
    inputs="x[n,m] counter[2]:index",
    constants=(Constant("stddev", "real", None, 0.0, "standard deviation, >= 0"), STREAM),
    out="y[n,m]",
    flops=lambda d: 60 * d.n * d.m,
    source="Box, Muller, A note on the generation of random normal deviates (1958)",
    exact=False,
    by_rows=_rows,
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

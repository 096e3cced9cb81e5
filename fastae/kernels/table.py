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
LEARNING_RATE = Constant("learning_rate", "real", None, doc="step size, > 0", above=0.0)
WEIGHT_DECAY = Constant("weight_decay", "real", 0.0, 0.0, "L2 penalty added to the gradient, >= 0")
EPSILON = Constant("epsilon", "real", 1e-5, 0.0, "added to the variance, >= 0")
RATE = Constant("rate", "real", None, 0.0, "probability of a zero, in [0, 1)", below=1.0)
STREAM = Constant("stream", "int", 0, 0, "tells the places in a network that draw random numbers apart")
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
    "w -= learning_rate (x^T da + weight_decay w); b alike with sum_n da",
    inputs="x[n,k] da[n,m]",
    constants=(LEARNING_RATE, WEIGHT_DECAY),
    work="dw[k,m]",
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
    work="dw[k,m] db[m]",
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
_MOMENTUM = Constant(
    "momentum",
    "real",
    0.1,
    0.0,
    "weight of the batch in the running statistics, in [0, 1]",
    maximum=1.0,
)
_BATCHNORM = "Ioffe, Szegedy, Batch normalization (2015)"
_row(
    "batchnorm_forward",
    "Batch normalisation with the batch's statistics, and its activation; running statistics follow.",
    "y = f(gamma (x - mean) inv_std + beta); mean = mean_n x; var = mean_n (x - mean)^2 (two passes); "
    "inv_std = 1 / sqrt(var + epsilon); running_mean += momentum (mean - running_mean); "
    "running_var += momentum (var n / (n - 1) - running_var)",
    inputs="x[n,m] gamma[m] beta[m]",
    constants=(ACTIVATION, EPSILON, _MOMENTUM),
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
    constants=(ACTIVATION, EPSILON, _MOMENTUM),
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

"""Against PyTorch, in float64: whole trainings, and the kernels on images one by one.

The same weights and batches, the losses of 200 updates:

::

    Network ──┬── Trainer.fit, in batches as the rows lie ──> losses of the batches ──┐
              └── twin: the same as torch modules ── autograd, torch.optim ──> losses ┴── equal to 1e-9

What is random, dropout and noise, is compared in test_kernels with its definition.

A kernel on images is compared over a grid of its sizes and constants: what it computes, and every gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from fastae import models, ops
from fastae.backend import NAMES
from fastae.kernels.table import ACTIVATIONS
from fastae.layers import (
    Activation,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Flatten,
    MaxPool2D,
    Parallel,
    Reshape,
    Subsample,
    Upsample2D,
)
from fastae.network import Network, Placed
from fastae.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from fastae.trainer import Trainer

UPDATES = 200
NARROW = 64  # image_dim of what is not run as published

SYSTEMS = {
    "autoencnet": lambda: models.autoencnet(NARROW, 20),
    "quark_mlp": lambda: with_image_dim(models.quark_mlp(), NARROW),
    "batchnorm_mlp": lambda: models.batchnorm_mlp(NARROW, 16),
    "deep_mlp": lambda: with_image_dim(models.deep_mlp(), NARROW),
    "deep_mlp_linear_code": lambda: with_image_dim(models.deep_mlp_linear_code(), NARROW),
}
AS_PUBLISHED = {name: getattr(models, name) for name in SYSTEMS} | {
    "batchnorm_mlp": lambda: models.batchnorm_mlp(196, 32)  # its widths are arguments
}

# Batch normalisation of a few rows makes a training chaotic: PyTorch parts from itself too, started a
# rounding apart. In batches of 32 and with these steps it keeps within 1e-10 of itself.
ROWS = {"batchnorm_mlp": 32}
SCALES = {"autoencnet": 2e-4, "batchnorm_mlp": 0.1}

#: By name, as functions of the scale of their steps.
OPTIMISERS: dict[str, Callable[[float], Optimizer]] = {
    "sgd": lambda scale: SGD(0.5 * scale),
    "sgd_weight_decay": lambda scale: SGD(0.5 * scale, weight_decay=0.01),
    "momentum": lambda scale: SGD(0.2 * scale, momentum=0.9),
    "momentum_weight_decay": lambda scale: SGD(0.2 * scale, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda scale: SGD(0.2 * scale, momentum=0.8, nesterov=True),
    "adam": lambda scale: Adam(1e-3),
    "adam_weight_decay": lambda scale: Adam(1e-3, weight_decay=1e-3),
    "adamw": lambda scale: AdamW(1e-3, betas=(0.8, 0.99), weight_decay=0.05),
    "rmsprop": lambda scale: RMSprop(3e-4, weight_decay=1e-4),
    "adagrad": lambda scale: Adagrad(3e-3, weight_decay=1e-4),
    "clipped_sgd": lambda scale: SGD(0.5 * scale, clip_norm=0.02 / scale),
    "clipped_adam": lambda scale: Adam(1e-3, clip_norm=0.02 / scale),
}
LOSSES = ("sse", "mse", "mae", "huber", "bce", "bce_with_logits")


#: Each backend that makes 200 updates of a deep network in less than a minute.
on_fast_backends = pytest.mark.parametrize("backend", [n for n in NAMES if n != "scalar"], indirect=True)


# Networks -------------------------------------------------------------------------------------------------


def with_image_dim(net: Network, image_dim: int) -> Network:
    """The network with inputs and outputs of another width."""
    last = replace(net.decoder[-1], units=image_dim)
    return Network(net.encoder, [*net.decoder[:-1], last], image_dim, recipe=net.recipe)


def ending_with(net: Network, activation: str) -> Network:
    """The network with another activation at the end."""
    last = replace(net.decoder[-1], activation=activation)
    return Network(net.encoder, [*net.decoder[:-1], last], net.input_shape, recipe=net.recipe)


def suited(net: Network, loss: str) -> Network:
    """The network with an end that gives what the loss takes: probabilities, logits, or anything."""
    if loss == "bce":
        return ending_with(net, "sigmoid")
    last = net.decoder[-1].activation
    return ending_with(net, "linear") if loss == "bce_with_logits" and last == "sigmoid" else net


# The twin -------------------------------------------------------------------------------------------------


def activation(torch: Any, name: str) -> Callable[[Any], Any]:
    """PyTorch's function of fastae's name."""
    functions = torch.nn.functional
    by_name = {"linear": lambda x: x, "softmax": lambda x: functions.softmax(x, 1)}
    return by_name.get(name) or getattr(functions, name)


class Twin:
    """A Network as torch modules, made from its declaration."""

    def __init__(self, torch: Any, net: Network) -> None:
        self.torch, self.input_shape = torch, net.input_shape
        self.tensors: dict[str, Any] = {}  # under fastae's names
        self.module = self.chain(net.placed_encoder + net.placed_decoder)

    def chain(self, placed: tuple[Placed, ...]) -> Any:
        return self.torch.nn.Sequential(*(self.layer(p) for p in placed))

    def layer(self, placed: Placed) -> Any:
        nn, layer, double = self.torch.nn, placed.layer, self.torch.float64
        match layer:
            case Dense():
                made = nn.Linear(placed.input_shape[0], layer.units, bias=layer.use_bias, dtype=double)
                made.requires_grad_(layer.trainable)
                names = {"weight": made.weight, "bias": made.bias}
            case BatchNorm():
                of = nn.BatchNorm1d if len(placed.input_shape) == 1 else nn.BatchNorm2d
                made = of(placed.input_shape[0], layer.epsilon, layer.momentum, dtype=double)
                names = {"gamma": made.weight, "beta": made.bias}
                names |= {"running_mean": made.running_mean, "running_var": made.running_var}
            case Conv2D() | ConvTranspose2D():
                options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
                of = nn.Conv2d if isinstance(layer, Conv2D) else nn.ConvTranspose2d
                if of is nn.ConvTranspose2d:
                    options["output_padding"] = layer.output_padding
                # All of these have the same padding at opposite sides.
                options |= {"padding": self.padding(placed), "bias": layer.use_bias, "dtype": double}
                made = of(placed.input_shape[0], layer.filters, layer.kernel_size, **options)
                made.requires_grad_(layer.trainable)
                names = {"weight": made.weight, "bias": made.bias}
            case MaxPool2D():
                return nn.MaxPool2d(layer.kernel_size, layer.stride, self.padding(placed))
            case AvgPool2D():
                counted = {"count_include_pad": layer.count_include_pad}
                return nn.AvgPool2d(layer.kernel_size, layer.stride, self.padding(placed), **counted)
            case Upsample2D():
                return nn.Upsample(scale_factor=tuple(map(float, layer.factor)), mode="nearest")
            case Flatten() | Reshape():
                return self.function(lambda x: x.reshape(len(x), *placed.output_shape))
            case Activation():
                return self.activation(layer.activation)
            case Subsample():
                return self.function(lambda x: x[:, :: layer.stride])
            case Parallel():
                branches = nn.ModuleList(self.chain(b) for b in placed.branches)
                return self.function(lambda x: sum(branch(x) for branch in branches), branches)
            case _:
                raise NotImplementedError(type(layer).__name__)
        self.tensors |= {f"{placed.name}.{name}": t for name, t in names.items() if t is not None}
        return nn.Sequential(made, self.activation(layer.activation))

    @staticmethod
    def padding(placed: Placed) -> tuple[int, int]:
        top, left, bottom, right = placed.layer.padding
        assert (top, left) == (bottom, right)
        return top, left

    def activation(self, name: str) -> Any:
        return self.function(activation(self.torch, name))

    def function(self, of: Callable[[Any], Any], inner: Any = None) -> Any:
        """Make a module of a function and of the modules it calls."""
        module = self.torch.nn.Module()
        module.inner = inner
        module.forward = of
        return module

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Copy fastae's, which are (in, out) where PyTorch's are (out, in)."""
        assert weights.keys() == self.tensors.keys()
        with self.torch.no_grad():
            for name, values in weights.items():
                self.tensors[name].copy_(self.torch.tensor(values.T if values.ndim == 2 else values))

    def weights(self) -> dict[str, np.ndarray]:
        arrays = {name: t.detach().numpy() for name, t in self.tensors.items()}
        return {name: (a.T if a.ndim == 2 else a).copy() for name, a in arrays.items()}

    def output(self, x: Any) -> Any:
        """What the network makes of rows, as rows."""
        return self.module(x.reshape(-1, *self.input_shape)).reshape(len(x), -1)

    def optimiser(self, of: Optimizer) -> Any:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        c, optim = dict(of.constants), self.torch.optim
        c["lr"] = c.pop("learning_rate")
        c["eps"] = c.pop("epsilon", None)
        c["betas"] = (c.pop("beta1", None), c.pop("beta2", None))
        names = {
            SGD: (optim.SGD, ("momentum", "nesterov")),
            Adam: (optim.Adam, ("betas", "eps")),
            AdamW: (optim.AdamW, ("betas", "eps")),
            RMSprop: (optim.RMSprop, ("alpha", "eps")),
            Adagrad: (optim.Adagrad, ("eps",)),
        }
        make, own = names[type(of)]
        constants = {name: c[name] for name in ("lr", "weight_decay", *own) if name in c}
        if "nesterov" in constants:
            constants["nesterov"] = bool(constants["nesterov"])
        return make(parameters, **constants)

    def loss(self, name: str, y: Any, target: Any, sample_weight: Any) -> Any:
        f = self.torch.nn.functional
        of = {
            "sse": f.mse_loss,
            "mse": f.mse_loss,
            "mae": f.l1_loss,
            "huber": f.huber_loss,
            "bce": f.binary_cross_entropy,
            "bce_with_logits": f.binary_cross_entropy_with_logits,
        }[name]
        if sample_weight is None:
            return of(y, target, reduction="sum" if name == "sse" else "mean")
        weighted = sample_weight[:, None] * of(y, target, reduction="none")
        return weighted.sum() if name == "sse" else weighted.mean()

    def fit(
        self,
        data: np.ndarray,
        target: np.ndarray | None = None,
        sample_weight: np.ndarray | None = None,
        *,
        loss: str,
        optimizer: Optimizer,
        batch_size: int,
    ) -> np.ndarray:
        """Train on the rows as they lie; the losses of the batches."""
        torch = self.torch
        x = torch.tensor(data)
        t = x if target is None else torch.tensor(target)
        weight = None if sample_weight is None else torch.tensor(sample_weight)
        optimiser = self.optimiser(optimizer)
        self.module.train()
        losses = []
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            optimiser.zero_grad()
            value = self.loss(loss, self.output(x[rows]), t[rows], None if weight is None else weight[rows])
            value.backward()
            if optimizer.clip_norm is not None:
                self.clip(optimizer.clip_norm)
            optimiser.step()
            losses.append(value.item())
        return np.array(losses)

    def clip(self, max_norm: float) -> None:
        """As clip_grad_norm_, but for the 1e-6 that is added to the norm there."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = self.torch.sqrt(sum((g**2).sum() for g in gradients))
        if norm > max_norm:
            for g in gradients:
                g *= max_norm / norm

    def evaluate(self, data: np.ndarray, *, loss: str) -> float:
        self.module.eval()
        x = self.torch.tensor(data)
        with self.torch.no_grad():
            return float(self.loss(loss, self.output(x), x, None))


# Comparing ------------------------------------------------------------------------------------------------


def images(n: int, width: int, seed: int = 0) -> np.ndarray:
    """Rows with a structure to learn, in (0, 1)."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, 5)) @ rng.normal(size=(5, width)) + rng.normal(size=(n, width)) / 4
    return 1 / (1 + np.exp(-mixed - 2 * rng.normal(size=width)))


@cache
def expected(torch: Any, net: Network, loss: str, optimizer: Optimizer, batch_size: int) -> tuple:
    """What PyTorch makes of it: losses, final weights, and the loss of the first rows in evaluation."""
    twin = Twin(torch, net)
    twin.set_weights(net.initial_weights(3))
    data = images(UPDATES * batch_size, math.prod(net.input_shape))
    losses = twin.fit(data, loss=loss, optimizer=optimizer, batch_size=batch_size)
    return losses, twin.weights(), twin.evaluate(data[:batch_size], loss=loss)


def compare(torch: Any, net: Network, backend: str, loss: str, optimizer: Optimizer, batch_size: int) -> None:
    losses, weights, evaluated = expected(torch, net, loss, optimizer, batch_size)
    arguments = {"loss": loss, "optimizer": optimizer, "batch_size": batch_size, "backend": backend}
    trainer = Trainer(net, **arguments, dtype="float64", seed=0)
    trainer.set_weights(net.initial_weights(3))
    data = images(UPDATES * batch_size, math.prod(net.input_shape))
    history = trainer.fit(data, epochs=1, sampling="sequential")
    assert len(history.batch_loss) == UPDATES
    np.testing.assert_allclose(history.batch_loss, losses, rtol=1e-9, atol=0)
    np.testing.assert_allclose(trainer.evaluate(data[:batch_size]), evaluated, rtol=1e-9)
    for name, values in trainer.weights.items():  # a bias before batch normalisation follows rounding alone
        np.testing.assert_allclose(values, weights[name], rtol=1e-6, atol=1e-6, err_msg=name)
    start = net.initial_weights(3)
    learned = [p.name for p in net.parameters if p.trainable and len(p.shape) > 1]
    still = [name for name in learned if (weights[name] == start[name]).all()]
    assert not still, f"nothing was learned in {still}, and so little compared"
    assert abs(evaluated / losses[0] - 1) > 1e-3, "little was learned, and so little compared"


@on_fast_backends
@pytest.mark.parametrize("system", SYSTEMS)
def test_published_training(torch, backend, system):
    """Widths, loss and optimiser as published, in smaller batches."""
    net = AS_PUBLISHED[system]()
    compare(torch, net, backend, net.recipe.loss, net.recipe.optimizer, ROWS.get(system, 4))


@on_fast_backends
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_system_and_optimiser(torch, backend, system, optimiser):
    net = SYSTEMS[system]()
    optimizer = OPTIMISERS[optimiser](SCALES.get(system, 1.0))
    compare(torch, net, backend, net.recipe.loss, optimizer, ROWS.get(system, 8))


@on_fast_backends
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_system_and_loss(torch, backend, system, loss):
    net = suited(SYSTEMS[system](), loss)
    optimizer = Adam(1e-4 if loss == "mae" else 1e-3)  # a sign as gradient is as good as chaos
    compare(torch, net, backend, loss, optimizer, ROWS.get(system, 8))


@on_fast_backends
@pytest.mark.parametrize("loss", LOSSES)
def test_targets_and_weights_of_rows(torch, backend, loss):
    """Outputs narrower than the inputs, weights of which some are 0, and a last batch of fewer rows."""
    rng = np.random.default_rng(9)
    end = {"bce": "sigmoid", "bce_with_logits": "linear"}.get(loss, "softplus")
    net = Network(
        [Dense(9, "elu", name="a"), BatchNorm(activation="tanh", name="b"), Dense(4, "leaky_relu", name="c")],
        [Dense(6, "softplus", name="d"), Dense(5, "softmax", name="e"), Dense(7, end, name="f")],
        11,
    )
    data, target = images(205, 11), images(205, 7, seed=1)
    weight = rng.integers(0, 3, 205) / 2
    arguments = {"loss": loss, "optimizer": Adam(5e-3), "batch_size": 10}
    trainer = Trainer(net, **arguments, backend=backend, dtype="float64", seed=0)
    twin = Twin(torch, net)
    twin.set_weights(trainer.weights)
    losses = twin.fit(data, target, weight, **arguments)
    history = trainer.fit(data, target, epochs=1, sampling="sequential", sample_weight=weight)
    np.testing.assert_allclose(history.batch_loss, losses, rtol=1e-9)


# Networks of images ---------------------------------------------------------------------------------------


def every_image_layer() -> Network:
    """A network with every class of image layers, and most ways in which they meet."""
    return Network(
        [
            Conv2D(4, 3, padding=1),
            BatchNorm(activation="elu"),
            Parallel(
                [Conv2D(4, (3, 1), padding=(1, 0), groups=2, activation="tanh"), Activation("leaky_relu")],
                [],
            ),
            Conv2D(6, 3, stride=2, padding=2, dilation=2, activation="softplus"),
            MaxPool2D(3, 1, 1),  # its windows overlap
            AvgPool2D(2, 1, 1, count_include_pad=False),
            Flatten(),
            Dense(9, "tanh"),
        ],
        [
            Dense(32, "leaky_relu"),
            Reshape((2, 4, 4)),
            Conv2D(4, 2, activation="sigmoid", use_bias=False),
            Activation("tanh"),  # after an activation: a layer of its own
            Upsample2D((2, 1)),
            AvgPool2D((3, 1), padding=(1, 0)),
            Upsample2D(2),  # part of the convolution
            Conv2D(3, 3, padding=(2, 1), activation="elu"),
            MaxPool2D(2),  # part of the convolution, were it not for the upsampling
            Conv2D(4, 2, padding=1, activation="tanh"),
            MaxPool2D((1, 2)),  # part of it
            ConvTranspose2D(4, 3, 2, 1, dilation=2, groups=2, output_padding=1, activation="leaky_relu"),
            Upsample2D((1, 2)),  # part of the transposed convolution
            ConvTranspose2D(2, (1, 3), padding=(0, 1), activation="elu"),
            Conv2D(1, (3, 5), activation="linear"),
            Activation("sigmoid"),
        ],
        (1, 8, 8),
    )


IMAGE_SYSTEMS = {
    "upsample_conv": models.upsample_conv,
    "strided_conv": models.strided_conv,
    "generic_conv": models.generic_conv,
    "every_image_layer": every_image_layer,
}


@on_fast_backends
@pytest.mark.parametrize("system", IMAGE_SYSTEMS)
def test_training_on_images(torch, backend, system):
    """As published, in smaller batches."""
    net = IMAGE_SYSTEMS[system]()
    optimizer = net.recipe.optimizer if net.recipe else Adam(1e-3, weight_decay=1e-4)
    compare(torch, net, backend, "mse", optimizer, 4)


def test_scalar_too(torch):
    """The definition itself, for a few updates of a small system."""
    net = models.autoencnet(12, 5)
    data = images(60, 12)
    arguments = {"loss": "sse", "optimizer": Adam(1e-3), "batch_size": 6}
    trainer = Trainer(net, **arguments, backend="scalar", dtype="float64", seed=0)
    twin = Twin(torch, net)
    twin.set_weights(trainer.weights)
    losses = twin.fit(data, **arguments)
    history = trainer.fit(data, epochs=1, sampling="sequential")
    np.testing.assert_allclose(history.batch_loss, losses, rtol=1e-12)


# Kernels on images ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """Sizes and constants of one comparison; pairs: (height, width), four: (top, left, bottom, right)."""

    rows: int
    groups: int
    inputs: int  # channels of one group
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    output_padding: tuple[int, int]
    pool: tuple[int, int]
    pool_padding: tuple[int, int, int, int]
    activation: str
    before: str  # the activation that made the input
    bias: bool
    seed: int

    def __str__(self) -> str:
        fields = [
            f"{self.rows}x{self.groups * self.inputs}",
            self.size,
            self.kernel,
            self.stride,
            self.padding,
        ]
        parts = ("x".join(map(str, f)) if isinstance(f, tuple) else f for f in fields)
        return f"{self.seed}-{'-'.join(parts)}"

    @classmethod
    def drawn(cls, seed: int) -> Geometry:
        """A geometry of which a convolution, a transposed one and a pooling all leave something."""
        rng = np.random.default_rng([4, seed])

        def pair(low: int, high: int) -> tuple[int, int]:
            h, w = rng.integers(low, high + 1, 2)
            return int(h), int(w)

        while True:
            groups = int(rng.choice([1, 1, 1, 2, 2, 3, 4, 5]))
            stride, dilation, kernel, pool = pair(1, 3), pair(1, 3), pair(1, 5), pair(1, 4)
            made = cls(
                rows=(1, 3, 17)[seed % 3],
                groups=groups,
                inputs=int(rng.integers(1, 5 // groups + 1)),
                outputs=int(rng.choice([1, 2, 3, 9 if groups == 1 else 1])),
                size=pair(1, 11),
                kernel=kernel,
                stride=stride,
                padding=(*pair(0, 3), *pair(0, 3)),
                dilation=dilation,
                output_padding=tuple(
                    int(rng.integers(max(both))) for both in zip(stride, dilation, strict=True)
                ),
                pool=pool,
                pool_padding=tuple(int(rng.integers(side // 2 + 1)) for side in pool * 2),
                activation=str(rng.choice(list(ACTIVATIONS))),
                before=str(rng.choice(list(ACTIVATIONS))),
                bias=seed % 4 > 0,
                seed=seed,
            )
            if made.leaves_something():
                return made

    def leaves_something(self) -> bool:
        for end in (0, 1):
            extent = self.dilation[end] * (self.kernel[end] - 1) + 1
            around = self.padding[end] + self.padding[end + 2]
            spread = (self.size[end] - 1) * self.stride[end] + extent - around
            pooled = self.size[end] + self.pool_padding[end] + self.pool_padding[end + 2] - self.pool[end]
            if self.size[end] + around < extent or spread < 1 or pooled < 0:
                return False
        return True

    @property
    def products(self) -> int:
        """Of a convolution whose windows begin at every element: what a plain loop takes its time for."""
        return math.prod((self.rows, self.groups, self.inputs, self.outputs, *self.size, *self.kernel))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.rows, self.groups * self.inputs, *self.size

    @property
    def convolution(self) -> dict[str, Any]:
        """The constants of a convolution, as fastae.ops takes them."""
        names = ("stride", "padding", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    @property
    def pooling(self) -> dict[str, Any]:
        return {"kernel": self.pool, "stride": self.stride, "padding": self.pool_padding}


GRID = [Geometry.drawn(seed) for seed in range(60)]
SMALL = [g for g in GRID if g.products < 20_000]  # for loops in plain Python


def test_the_grid_has_every_kind():
    """Of what is drawn nothing may be missing by chance, in the part for scalar neither."""
    for grid in (GRID, SMALL):
        assert {g.rows for g in grid} == {1, 3, 17}
        assert {g.groups * g.inputs for g in grid} == {1, 2, 3, 4, 5}
        assert {g.activation for g in grid} == {g.before for g in grid} == set(ACTIVATIONS)
        assert {g.bias for g in grid} == {True, False}
        for end in (0, 1):
            assert {g.kernel[end] for g in grid} == {1, 2, 3, 4, 5}
            assert {g.stride[end] for g in grid} == {g.dilation[end] for g in grid} == {1, 2, 3}
            assert {g.output_padding[end] for g in grid} == {0, 1, 2}
            assert {g.size[end] % 2 for g in grid} == {0, 1}
            assert {g.padding[end] < g.padding[end + 2] for g in grid} == {True, False}
            assert {g.pool[end] for g in grid} == {1, 2, 3, 4}
        assert any(g.groups > 1 and g.inputs > 1 and g.outputs > 1 for g in grid)


over_the_grid = pytest.mark.parametrize(
    ("backend", "geometry"),
    [pytest.param(n, g, id=f"{n}-{g}") for n in NAMES for g in (SMALL if n == "scalar" else GRID)],
    indirect=["backend"],
)


class Traced:
    """PyTorch's tensors of one comparison, and the gradients of those that were asked for."""

    def __init__(self, torch: Any, geometry: Geometry) -> None:
        self.torch, self.rng = torch, np.random.default_rng([5, geometry.seed])

    def random(self, *shape: int) -> Any:
        return self.tensor(self.rng.normal(size=shape))

    def tensor(self, values: np.ndarray) -> Any:
        return self.torch.tensor(values, dtype=self.torch.float64).requires_grad_()

    def activated(self, name: str, z: Any) -> Any:
        """f(z), of both of which the gradient is kept."""
        z.retain_grad()
        y = activation(self.torch, name)(z.clone())
        y.retain_grad()
        return y

    def backward(self, y: Any) -> np.ndarray:
        """Go back from y with random numbers; they are returned."""
        dy = self.rng.normal(size=tuple(y.shape))
        y.backward(self.torch.tensor(dy))
        return dy

    def surrounded(self, x: Any, padding: tuple[int, int, int, int], value: float = 0.0) -> Any:
        """The images with something around them: PyTorch's own padding is the same at opposite sides."""
        top, left, bottom, right = padding
        return self.torch.nn.functional.pad(x, (left, right, top, bottom), value=value)


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy().copy()


def check(name: str, backend: str, expected: dict[str, Any], *inputs: np.ndarray, **more: Any) -> list:
    """Call the function of fastae.ops with outputs full of NaN; compare those that are expected."""
    out = [np.full(tuple(e.shape), np.nan) for e in expected.values()]
    getattr(ops, name)(*inputs, **more, out=tuple(out) if len(out) > 1 else out[0], backend=backend)
    for result, (which, tensor) in zip(out, expected.items(), strict=True):
        message = f"{name}: {which}"
        np.testing.assert_allclose(result, array(tensor), rtol=1e-10, atol=1e-10, err_msg=message)
    return out


def check_convolution(t: Traced, name: str, backend: str, g: Geometry, convolve: Callable, w: Any) -> None:
    """A convolution of either kind: x = before(z), y = activation(convolve(x, w, b)), and all gradients."""
    constants = g.convolution | ({} if name == "conv2d" else {"output_padding": g.output_padding})
    z = t.random(*g.shape)
    x = t.activated(g.before, z)
    b = t.random(g.groups * g.outputs) if g.bias else t.tensor(np.zeros(g.groups * g.outputs))
    a = convolve(x, w, b)
    y = t.activated(g.activation, a)
    dy = t.backward(y)
    images, weight = array(x), array(w)
    f = {"activation": g.activation} | constants
    check(f"{name}_forward", backend, {"y": y}, images, weight, array(b) if g.bias else None, **f)
    gradients = {"dx": x.grad, "dw": w.grad, "db": b.grad}
    check(f"{name}_backward", backend, gradients, dy, images, weight, array(y), **f)
    f = {"activation": g.before, "ih": g.size[0], "iw": g.size[1]} | constants
    check(f"{name}_input_grad", backend, {"dx": z.grad}, array(a.grad), weight, images, **f)
    f = {"kh": g.kernel[0], "kw": g.kernel[1]} | constants
    gradients = {"dw": w.grad, "db": b.grad}
    check(f"{name}_weight_grad", backend, gradients, images, array(a.grad), **f)


@over_the_grid
def test_conv2d(torch, backend, geometry):
    t, g = Traced(torch, geometry), geometry
    options = {"stride": g.stride, "dilation": g.dilation, "groups": g.groups}

    def convolve(x: Any, w: Any, b: Any) -> Any:
        return torch.nn.functional.conv2d(t.surrounded(x, g.padding), w, b, **options)

    w = t.random(g.groups * g.outputs, g.inputs, *g.kernel)
    check_convolution(t, "conv2d", backend, g, convolve, w)


@over_the_grid
def test_conv_transpose2d(torch, backend, geometry):
    t, g = Traced(torch, geometry), geometry
    options = {"stride": g.stride, "dilation": g.dilation, "groups": g.groups}
    top, left, bottom, right = g.padding

    def convolve(x: Any, w: Any, b: Any) -> Any:
        """Its padding is what is cut off."""
        more = {"output_padding": g.output_padding}
        y = torch.nn.functional.conv_transpose2d(x, w, b, **options, **more)
        return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]

    w = t.random(g.groups * g.inputs, g.outputs, *g.kernel)
    check_convolution(t, "conv_transpose2d", backend, g, convolve, w)


@over_the_grid
def test_conv2d_max_pool2d(torch, backend, geometry):
    """Both in one pass; then back through both."""
    t, g = Traced(torch, geometry), geometry
    functions = torch.nn.functional
    x, w, b = (
        t.random(*g.shape),
        t.random(g.groups * g.outputs, g.inputs, *g.kernel),
        t.random(g.outputs * g.groups),
    )
    options = {"stride": g.stride, "dilation": g.dilation, "groups": g.groups}
    a = functions.conv2d(t.surrounded(x, g.padding), w, b, **options)
    a.retain_grad()
    pool = tuple(min(size, window) for size, window in zip(a.shape[2:], g.pool, strict=True))
    # PyTorch's softplus of the same number is not always the same, and so a tie in the padding none behind
    # it. All activations are monotone, and relu alone makes ties: it comes before the pooling too.
    compared = torch.relu(a) if g.activation == "relu" else a
    y, at = functions.max_pool2d(compared, pool, pool, return_indices=True)
    y = activation(torch, g.activation)(y)
    dy = t.backward(y)
    position = at // a.shape[3] % pool[0] * pool[1] + at % a.shape[3] % pool[1]
    f = {"activation": g.activation, "pool": pool} | g.convolution
    inputs = (array(x), array(w), array(b))
    name = "conv2d_max_pool2d_forward"
    found, positions = check(name, backend, {"y": y, "position": position}, *inputs, **f)
    f = {"activation": g.activation, "kernel": pool, "stride": pool, "ih": a.shape[2], "iw": a.shape[3]}
    check("max_pool2d_backward", backend, {"dx": a.grad}, dy, positions, found, **f)
    f = {"activation": g.activation, "pool": pool, "kh": g.kernel[0], "kw": g.kernel[1]} | g.convolution
    both = {"dw": w.grad, "db": b.grad}
    check("conv2d_max_pool2d_weight_grad", backend, both, array(x), dy, positions, found, **f)


@over_the_grid
def test_max_pool2d(torch, backend, geometry):
    """Of integers, of which many are the same: the first of them has the gradient."""
    t, g = Traced(torch, geometry), geometry
    z = t.tensor(t.rng.integers(-3, 4, g.shape))
    x = t.activated(g.before, z)
    y = torch.nn.functional.max_pool2d(t.surrounded(x, g.pool_padding, -math.inf), g.pool, g.stride)
    dy = t.backward(y)
    position = np.full(tuple(y.shape), np.nan)
    result = np.full(tuple(y.shape), np.nan)
    ops.max_pool2d_forward(array(x), **g.pooling, out=(result, position), backend=backend)
    np.testing.assert_array_equal(result, array(y))
    f = {"ih": g.size[0], "iw": g.size[1]} | g.pooling
    check("max_pool2d_backward", backend, {"dx": x.grad}, dy, position, **f)
    f["activation"] = g.before
    check("max_pool2d_backward", backend, {"dx": z.grad}, dy, position, array(y), **f)


@over_the_grid
def test_max_pool2d_of_nan(torch, backend, geometry):
    """One in each image: it is the largest of every window that has it, and has their gradients."""
    t, g = Traced(torch, geometry), geometry
    values = t.rng.normal(size=(*g.shape[:2], math.prod(g.size)))
    np.put_along_axis(values, t.rng.integers(0, values.shape[2], (*g.shape[:2], 1)), np.nan, 2)
    x = t.tensor(values.reshape(g.shape))
    y = torch.nn.functional.max_pool2d(t.surrounded(x, g.pool_padding, -math.inf), g.pool, g.stride)
    dy = t.backward(y)
    result, position = ops.max_pool2d_forward(array(x), **g.pooling, backend=backend)
    np.testing.assert_array_equal(result, array(y))
    f = {"ih": g.size[0], "iw": g.size[1]} | g.pooling
    check("max_pool2d_backward", backend, {"dx": x.grad}, dy, position, **f)


@over_the_grid
@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_avg_pool2d(torch, backend, geometry, count_include_pad):
    t, g = Traced(torch, geometry), geometry
    z = t.random(*g.shape)
    x = t.activated(g.before, z)
    around = 1.0 if count_include_pad else 0.0
    mean = torch.nn.functional.avg_pool2d
    counted = mean(t.surrounded(torch.ones_like(x), g.pool_padding, around), g.pool, g.stride)
    y = mean(t.surrounded(x, g.pool_padding), g.pool, g.stride) / counted
    dy = t.backward(y)
    f = {"count_include_pad": count_include_pad} | g.pooling
    check("avg_pool2d_forward", backend, {"y": y}, array(x), **f)
    f |= {"ih": g.size[0], "iw": g.size[1], "activation": g.before}
    check("avg_pool2d_backward", backend, {"dx": z.grad}, dy, array(x), **f)


@over_the_grid
def test_upsample2d(torch, backend, geometry):
    t, g = Traced(torch, geometry), geometry
    z = t.random(*g.shape)
    x = t.activated(g.before, z)
    y = torch.nn.functional.interpolate(x, scale_factor=tuple(map(float, g.pool)), mode="nearest")
    dy = t.backward(y)
    found = check("upsample2d_forward", backend, {"y": y}, array(x), factor=g.pool)
    np.testing.assert_array_equal(found[0], array(y))
    f = {"factor": g.pool, "activation": g.before, "ih": g.size[0], "iw": g.size[1]}
    check("upsample2d_backward", backend, {"dx": z.grad}, dy, array(x), **f)


@over_the_grid
def test_batchnorm2d(torch, backend, geometry):
    """Training, with the running statistics, and evaluation with those."""
    t, g = Traced(torch, geometry), geometry
    channels = g.shape[1]
    size = g.size if g.rows * math.prod(g.size) > 2 else (3, 5)  # of two the variance may be nothing
    x, gamma, beta = t.random(g.rows, channels, *size), t.random(channels), t.random(channels)
    running = {"running_mean": t.rng.normal(size=channels), "running_var": t.rng.uniform(0.5, 2, channels)}
    updated = {name: torch.tensor(values) for name, values in running.items()}
    constants = {"epsilon": 1e-3, "momentum": 0.3}

    def normalise(training: bool) -> Any:
        more = {"training": training, "momentum": constants["momentum"], "eps": constants["epsilon"]}
        return torch.nn.functional.batch_norm(x, weight=gamma, bias=beta, **updated, **more)

    y = t.activated(g.activation, normalise(True))
    dy = t.backward(y)
    mean = x.mean((0, 2, 3))
    inv_std = 1 / torch.sqrt(x.var((0, 2, 3), unbiased=False) + constants["epsilon"])
    inputs, f = (array(x), array(gamma), array(beta)), {"activation": g.activation}
    expected = {"y": y, "mean": mean, "inv_std": inv_std}
    saved = check("batchnorm2d_forward", backend, expected, *inputs, **running, **f, **constants)
    for name, values in running.items():
        np.testing.assert_allclose(values, updated[name].numpy(), rtol=1e-10, atol=1e-10, err_msg=name)
    gradients = {"dx": x.grad, "dgamma": gamma.grad, "dbeta": beta.grad}
    check("batchnorm2d_backward", backend, gradients, dy, *inputs[:2], *saved, **f)
    evaluated = {"y": activation(torch, g.activation)(normalise(False))}
    f["epsilon"] = constants["epsilon"]
    check("batchnorm2d_inference", backend, evaluated, *inputs, **running, **f)

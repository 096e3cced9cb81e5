"""Training steps of the published systems in JAX: compiled step by step, and as one scan over the epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastae.layers import (
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Flatten,
    MaxPool2D,
    Reshape,
    Upsample2D,
)
from fastae.network import Placed

from .contenders import UPDATES, Problem

IMAGES = ("NCHW", "OIHW", "NCHW")


class Jax:
    """The network as its user would write it in JAX.

    It runs on as many threads as its process had processors when it imported jax.

    Parameters
    ----------
    problem : Problem
        What is trained.
    dtype : str
        "float32" (float64 is an option of the whole process in JAX).
    scan : bool
        Whether several updates are one compiled call; else each update is.
    """

    def __init__(self, problem: Problem, dtype: str, *, scan: bool) -> None:
        import jax

        self.jax, self.np, self.scan = jax, jax.numpy, scan
        self.batch = problem.batch
        weights = {name: self.np.asarray(value, dtype) for name, value in problem.weights.items()}
        fixed = {p.name for p in problem.net.parameters if not p.trainable}
        self.fixed = {name: w for name, w in weights.items() if name in fixed}
        trained = {name: w for name, w in weights.items() if name not in fixed}
        forward = self._autoencnet if problem.name == "autoencnet" else self._layers(problem)
        loss_of = {"sse": self._sse, "mse": self._mse, "bce": self._bce}[problem.recipe.loss]

        def loss(parameters: dict, x: Any) -> tuple[Any, dict]:
            y, statistics = forward({**self.fixed, **parameters}, x, True)
            return loss_of(y, x), statistics

        begin, update = self._optimizer(problem)
        images = self.np.asarray(problem.images, dtype)
        self.images = images.reshape(-1, *problem.net.input_shape)
        self.order = self.np.asarray(problem.order.reshape(-1, problem.batch), "int32")

        def step(state: tuple, rows: Any) -> tuple[tuple, Any]:
            parameters, statistics, moments = state
            whole = {**parameters, **statistics}
            slope = jax.value_and_grad(lambda p, x: loss({**whole, **p}, x), has_aux=True)
            (value, statistics), gradients = slope(parameters, self.images[rows])
            parameters, moments = update(parameters, gradients, moments)
            return (parameters, statistics, moments), value

        statistics = {n: w for n, w in self.fixed.items() if n.rpartition(".")[2].startswith("running_")}
        self.fixed = {name: w for name, w in self.fixed.items() if name not in statistics}
        self.state = (trained, statistics, begin(trained))
        self.step = jax.jit(step, donate_argnums=0)
        self.epoch = jax.jit(lambda state, order: jax.lax.scan(step, state, order), donate_argnums=0)
        self.forward = jax.jit(lambda parameters, x: forward({**self.fixed, **parameters}, x, False)[0])

    # forward

    def _act(self, name: str, x: Any) -> Any:
        if name == "linear":
            return x
        return {"relu": self.jax.nn.relu, "sigmoid": self.jax.nn.sigmoid}[name](x)

    def _autoencnet(self, w: dict, x: Any, training: bool) -> tuple[Any, dict]:
        relu = self.jax.nn.relu
        z = relu(x @ w["in.weight"] + w["in.bias"])
        link = x[:, ::3] @ w["link.weight"]
        return relu((z + link) @ w["out.weight"] + w["out.bias"]), {}

    def _layers(self, problem: Problem) -> Callable[[dict, Any, bool], tuple[Any, dict]]:
        def forward(w: dict, x: Any, training: bool) -> tuple[Any, dict]:
            statistics: dict[str, Any] = {}
            for placed in problem.net.layers:
                x = self._layer(placed, w, x, statistics if training else None)
            return x, statistics

        return forward

    def _layer(self, placed: Placed, w: dict, x: Any, statistics: dict | None) -> Any:
        layer, name, jnp, lax = placed.layer, placed.name, self.np, self.jax.lax
        if isinstance(layer, Flatten | Reshape):
            return x.reshape(len(x), *placed.output_shape)
        if isinstance(layer, Upsample2D):
            return x.repeat(2, axis=2).repeat(2, axis=3)
        if isinstance(layer, MaxPool2D):
            window = (1, 1, *layer.kernel_size)
            return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
        if isinstance(layer, Dense):
            y = x @ w[f"{name}.weight"] + w[f"{name}.bias"]
        elif isinstance(layer, BatchNorm):
            if statistics is None:
                mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
            else:
                mean, variance = x.mean(0), x.var(0)
                n, m = len(x), layer.momentum
                for end, new in (("mean", mean), ("var", variance * n / (n - 1))):
                    key = f"{name}.running_{end}"
                    statistics[key] = (1 - m) * w[key] + m * new
            scale = w[f"{name}.gamma"] * lax.rsqrt(variance + layer.epsilon)
            y = (x - mean) * scale + w[f"{name}.beta"]
        elif isinstance(layer, ConvTranspose2D):
            # a convolution of the input with zeros in between, by the kernel turned round
            kernel = w[f"{name}.weight"][:, :, ::-1, ::-1].swapaxes(0, 1)
            pads = [
                (k - 1 - p, k - 1 - p + extra)
                for k, p, extra in zip(
                    layer.kernel_size, layer.padding[:2], layer.output_padding, strict=True
                )
            ]
            y = lax.conv_general_dilated(
                x, kernel, (1, 1), pads, lhs_dilation=layer.stride, dimension_numbers=IMAGES
            )
            y = y + w[f"{name}.bias"][:, None, None]
        elif isinstance(layer, Conv2D):
            pads = [(p, p) for p in layer.padding[:2]]
            y = lax.conv_general_dilated(x, w[f"{name}.weight"], layer.stride, pads, dimension_numbers=IMAGES)
            y = y + w[f"{name}.bias"][:, None, None]
        else:
            raise TypeError(f"{name}: a {type(layer).__name__} has no counterpart here")
        return self._act(layer.activation, y)

    # losses and optimisers

    def _sse(self, y: Any, x: Any) -> Any:
        return ((y - x) ** 2).sum()

    def _mse(self, y: Any, x: Any) -> Any:
        return ((y - x) ** 2).mean()

    def _bce(self, y: Any, x: Any) -> Any:
        log = self.np.log
        tiny = 1e-7  # a float32 sigmoid may be exactly 0 or 1
        y = self.np.clip(y, tiny, 1 - tiny)
        return -(x * log(y) + (1 - x) * log(1 - y)).mean()

    def _optimizer(self, problem: Problem) -> tuple[Callable, Callable]:
        optimizer, tree = problem.recipe.optimizer, self.jax.tree.map
        c = optimizer.constants
        if optimizer.kernel == "sgd":
            rate, decay = c["learning_rate"], c["weight_decay"]
            return (
                lambda p: (),
                lambda p, g, m: (tree(lambda w, d: w - rate * (d + decay * w), p, g), m),
            )
        if optimizer.kernel != "adam":
            raise TypeError(f"{optimizer} has no counterpart here")
        rate, beta1, beta2, epsilon = (c[n] for n in ("learning_rate", "beta1", "beta2", "epsilon"))

        def begin(p: dict) -> tuple:
            return self.np.zeros((), "int32"), tree(self.np.zeros_like, p), tree(self.np.zeros_like, p)

        def update(p: dict, g: dict, moments: tuple) -> tuple[dict, tuple]:
            count, first, second = moments
            count = count + 1
            if c["weight_decay"]:
                g = tree(lambda d, w: d + c["weight_decay"] * w, g, p)
            first = tree(lambda a, d: beta1 * a + (1 - beta1) * d, first, g)
            second = tree(lambda a, d: beta2 * a + (1 - beta2) * d * d, second, g)
            size = rate / (1 - beta1**count)
            root = self.np.sqrt(1 - beta2**count)
            p = tree(lambda w, a, b: w - size * a / (self.np.sqrt(b) / root + epsilon), p, first, second)
            return p, (count, first, second)

        return begin, update

    # what is timed

    def train(self, updates: int = UPDATES) -> Any:
        """So many updates; waits for their end, and gives the losses."""
        if self.scan:
            self.state, losses = self.epoch(self.state, self.order[:updates])
            return losses.block_until_ready()
        losses = []
        for i in range(updates):
            self.state, loss = self.step(self.state, self.order[i])
            losses.append(loss)
        losses[-1].block_until_ready()
        return losses

    def infer(self, x: np.ndarray) -> np.ndarray:
        """Reconstruct rows, a NumPy array to a NumPy array, by the weights as they are."""
        return np.asarray(self.forward({**self.state[0], **self.state[1]}, x))

    def losses(self, updates: int) -> np.ndarray:
        """Losses of the first updates, as an array."""
        return np.array([float(loss) for loss in self.train(updates)])

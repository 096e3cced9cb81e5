"""Training steps of the published systems in three hands: formulas in NumPy, fastae, and PyTorch eager.

All begin from the same weights and see the same batches; nothing is timed before the losses agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np

from fastae import datasets, models
from fastae.backend import layout
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
from fastae.lowering import lower
from fastae.network import Network, Placed, Recipe
from fastae.optimizers import Adam
from fastae.program import Program

from .machine import unavailable
from .summary import TORCH

#: Those of images, which compiled PyTorch takes part in too.
IMAGE_SYSTEMS = ("upsample_conv", "strided_conv", "generic_conv")

#: Every system; AutoEncNet is the one the others follow.
SYSTEMS = ("autoencnet", "quark_mlp", "batchnorm_mlp", "deep_mlp", "deep_mlp_linear_code", *IMAGE_SYSTEMS)

#: Updates of an epoch here; that of AutoEncNet's 1000 images.
UPDATES = 50

#: Updates whose losses are compared before anything is timed.
CHECKED = 3

#: Relative difference allowed between a loss and the float64 reference's. Adam's first steps have the size
#: of the learning rate whatever the gradient, so that rounding turns round those of gradients near 0.
LOSS_TOLERANCE = {"float32": 5e-5, "float64": 1e-10}

#: Why the scalar backend sits out.
SCALAR_SKIPS = {
    name: f"a step of {name} takes it a minute or so"
    for name in ("batchnorm_mlp", "deep_mlp", "deep_mlp_linear_code", *IMAGE_SYSTEMS)
}

Weights = Mapping[str, np.ndarray]


class Problem:
    """A system with images, the order in which they are drawn, and initial weights, from fixed seeds.

    Parameters
    ----------
    name : str
        Of a published system; or of `net`.
    net : Network, optional
        For rows of 784 pixels, with a recipe.
    updates : int
        Of an epoch.

    Attributes
    ----------
    images : float64 [n, pixels]
        The bundled digits, on a canvas of the system's size and prepared as the system has it.
    order : int64 [updates * batch]
        With replacement; over again after UPDATES batches.
    """

    def __init__(self, name: str, net: Network | None = None, updates: int = UPDATES) -> None:
        self.name = name
        self.net: Network = net or models.MODELS[name]()
        assert self.net.recipe is not None
        self.recipe: Recipe = self.net.recipe
        self.batch = self.recipe.batch_size
        if name == "autoencnet":
            self.images, _ = datasets.autoencnet_data(datasets.digits_canvas(15)[:1000])
        else:
            self.images = datasets.rows(datasets.digits_canvas(28), "float64")
        drawn = np.random.default_rng(11).integers(0, len(self.images), self.batch * UPDATES)
        self.order = np.resize(drawn, self.batch * updates)
        self.weights: Weights = self.net.initial_weights(seed=5)

    def lower(self, module: Any, dtype: str) -> Program:
        """The published training as a backend runs it."""
        return lower(
            self.net,
            batch_size=self.batch,
            loss=self.recipe.loss,
            optimizer=self.recipe.optimizer,
            dtype=dtype,
            **layout(module),
        )

    def cost(self, dtype: str, *, rows: int = 0, updates: int = 0) -> dict[str, float]:
        """FLOPs and bytes of so many updates, or of reconstructing some rows, as the table counts them.

        They are those of the plain program, fused in no way, for every contender.
        """
        from fastae.kernels import vector

        program = self.lower(vector, dtype)
        routine = program.routine("train" if updates else "reconstruct")
        times = updates or rows / self.batch
        return {"flops": times * routine.flops(), "bytes": times * routine.bytes()}

    @cached_property
    def reference(self) -> np.ndarray:
        """Losses of the first updates in float64, by someone else's arithmetic where there is any."""
        if self.name == "autoencnet":
            return autoencnet_losses(self, self.order, CHECKED)
        if TORCH not in unavailable():
            return TorchEager(self, "float64").losses(CHECKED)
        from fastae.kernels import vector

        return Fastae(self, vector, "float64").losses(CHECKED)

    def check(self, losses: np.ndarray, dtype: str, who: str) -> None:
        """Compare losses of the first updates with the reference; equal losses come before any timing."""
        expected = self.reference[: len(losses)]
        what = f"{self.name} by {who} in {dtype}"
        np.testing.assert_allclose(losses, expected, rtol=LOSS_TOLERANCE[dtype], err_msg=what)


def plain(width: int, batch: int, updates: int = UPDATES) -> str:
    """Name of a network of two dense layers with so many hidden units, and of its training."""
    return f"784-{width}-784, batches of {batch}, {updates} updates"


@cache
def problem(name: str) -> Problem:
    """The problem of a system, or of a network that has its name of `plain`."""
    found = re.fullmatch(r"784-(\d+)-784, batches of (\d+), (\d+) updates", name)
    if found is None:
        return Problem(name)
    width, batch, updates = map(int, found.groups())
    recipe = Recipe(loss="mse", optimizer=Adam(1e-3), batch_size=batch, epochs=1)
    net = Network([Dense(width, "relu")], [Dense(784, "sigmoid")], 784, recipe=recipe)
    return Problem(name, net, updates)


# -- AutoEncNet in NumPy -------------------------------------------------------------------------------


def autoencnet_output(weights: Weights, x: np.ndarray) -> np.ndarray:
    """AutoEncNet's forward pass from formulas written out; the product with the identity is left out."""
    z = np.maximum(x @ weights["in.weight"] + weights["in.bias"], 0)
    s = z + x[:, ::3] @ weights["link.weight"]
    return np.maximum(s @ weights["out.weight"] + weights["out.bias"], 0)


def autoencnet_losses(problem: Problem, order: np.ndarray, updates: int) -> np.ndarray:
    """Loss of each of AutoEncNet's first updates, from formulas written out in float64."""
    w = {name: value.copy() for name, value in problem.weights.items()}
    rate = problem.recipe.optimizer.constants["learning_rate"]
    losses = np.empty(updates)
    for i, rows in enumerate(order[: updates * problem.batch].reshape(updates, -1)):
        x = problem.images[rows]
        x_red = x[:, ::3]
        z = np.maximum(x @ w["in.weight"] + w["in.bias"], 0)
        s = z + x_red @ w["link.weight"]
        y = np.maximum(s @ w["out.weight"] + w["out.bias"], 0)
        losses[i] = ((y - x) ** 2).sum()
        da = 2 * (y - x) * (y > 0)
        ds = da @ w["out.weight"].T
        da_in = ds * (z > 0)
        gradients = {
            "in.weight": x.T @ da_in,
            "in.bias": da_in.sum(0),
            "link.weight": x_red.T @ ds,
            "out.weight": s.T @ da,
            "out.bias": da.sum(0),
        }
        for name, gradient in gradients.items():
            w[name] -= rate * gradient
    return losses


# -- contenders ----------------------------------------------------------------------------------------


class Fastae:
    """A backend's executor on the lowered network, on so many threads; None: as it chooses."""

    def __init__(self, problem: Problem, module: Any, dtype: str, n_threads: int | None = 1) -> None:
        program = problem.lower(module, dtype)
        arena = program.new_arena()
        program.write_weights(arena, problem.weights)
        self.batch = problem.batch
        self.executor = module.Executor(program, arena, n_threads)
        self.routine = program.routine("train")
        self.images = np.ascontiguousarray(problem.images, dtype)
        self.order = problem.order

    def train(self, updates: int = UPDATES, losses: np.ndarray | None = None) -> None:
        """One call: so many updates."""
        rows = self.order[: updates * self.batch]
        self.executor.run(self.routine, self.images, None, rows, losses=losses)

    def losses(self, updates: int) -> np.ndarray:
        """Losses of the first updates."""
        losses = np.full(updates, np.nan)
        self.train(updates, losses)
        return losses


class TorchEager:
    """The network as its user would write it in PyTorch.

    Parameters
    ----------
    problem : Problem
        What is trained.
    dtype : str
        "float32" or "float64".
    fused : bool
        Whether Adam is PyTorch's fused one.
    compiled : bool
        Whether network and loss go through torch.compile; else they are run eagerly.
    n_threads : int
        Threads of the whole process from now on.
    """

    def __init__(
        self,
        problem: Problem,
        dtype: str,
        *,
        fused: bool = True,
        compiled: bool = False,
        n_threads: int = 1,
    ) -> None:
        import torch

        torch.set_num_threads(n_threads)
        self.torch, self.real = torch, getattr(torch, dtype)
        net = self._autoencnet if problem.name == "autoencnet" else self._sequential
        self.fused = fused
        self.forward, parameters = net(problem)
        self.optimizer = self._optimizer(problem, parameters)
        functional = torch.nn.functional
        self.loss = {
            "sse": lambda y, x: ((y - x) ** 2).sum(),
            "mse": functional.mse_loss,
            "bce": functional.binary_cross_entropy,
        }[problem.recipe.loss]
        forward, loss = self.forward, self.loss

        def both(x: Any) -> Any:
            return loss(forward(x), x)

        self.both = torch.compile(both) if compiled else both
        images = torch.from_numpy(problem.images).to(self.real)
        self.images = images.reshape(-1, *problem.net.input_shape)
        self.batches = list(torch.from_numpy(problem.order).split(problem.batch))
        self.instruction_set = torch.backends.cpu.get_cpu_capability()

    def _fill(self, layer: Any, **values: np.ndarray | None) -> Any:
        with self.torch.no_grad():
            for name, value in values.items():
                if value is not None:
                    getattr(layer, name).copy_(self.torch.from_numpy(value))
        return layer

    def _linear(self, weights: Weights, name: str, bias: bool = True) -> Any:
        w = weights[f"{name}.weight"]
        inputs, outputs = w.shape
        layer = self.torch.nn.Linear(inputs, outputs, bias=bias, dtype=self.real)
        return self._fill(layer, weight=w.T, bias=weights[f"{name}.bias"] if bias else None)

    def _convolution(self, weights: Weights, placed: Placed) -> Any:
        layer, nn = placed.layer, self.torch.nn
        options = {"stride": layer.stride, "padding": layer.padding[:2], "dtype": self.real}
        of = nn.Conv2d
        if isinstance(layer, ConvTranspose2D):
            of = nn.ConvTranspose2d
            options["output_padding"] = layer.output_padding
        made = of(placed.input_shape[0], layer.filters, layer.kernel_size, **options)
        return self._fill(made, weight=weights[f"{placed.name}.weight"], bias=weights[f"{placed.name}.bias"])

    def _autoencnet(self, problem: Problem) -> tuple[Any, list[Any]]:
        first, last = (self._linear(problem.weights, name) for name in ("in", "out"))
        link = self._linear(problem.weights, "link", bias=False)

        def forward(x: Any) -> Any:
            return last(first(x).relu() + link(x[:, ::3])).relu()

        return forward, [p for layer in (first, link, last) for p in layer.parameters()]

    def _sequential(self, problem: Problem) -> tuple[Any, list[Any]]:
        nn, w = self.torch.nn, problem.weights
        modules: list[Any] = []
        for placed in problem.net.layers:
            layer, name = placed.layer, placed.name
            if isinstance(layer, Dense):
                modules.append(self._linear(w, name))
            elif isinstance(layer, BatchNorm):
                made = nn.BatchNorm1d(*placed.input_shape, layer.epsilon, layer.momentum, dtype=self.real)
                modules.append(self._fill(made, weight=w[f"{name}.gamma"], bias=w[f"{name}.beta"]))
            elif isinstance(layer, Conv2D | ConvTranspose2D):
                modules.append(self._convolution(w, placed))
            elif isinstance(layer, MaxPool2D):
                modules.append(nn.MaxPool2d(layer.kernel_size))
                continue
            elif isinstance(layer, Upsample2D):
                modules.append(nn.Upsample(scale_factor=2, mode="nearest"))
                continue
            elif isinstance(layer, Flatten | Reshape):
                modules.append(nn.Flatten() if isinstance(layer, Flatten) else nn.Unflatten(1, layer.shape))
                continue
            else:
                raise TypeError(f"{name}: a {type(layer).__name__} has no counterpart here")
            if layer.activation != "linear":
                modules.append({"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[layer.activation]())
        net = nn.Sequential(*modules)
        return net, list(net.parameters())

    def _optimizer(self, problem: Problem, parameters: list[Any]) -> Any:
        optimizer, optim = problem.recipe.optimizer, self.torch.optim
        c = optimizer.constants
        if optimizer.kernel == "sgd":
            return optim.SGD(parameters, c["learning_rate"], weight_decay=c["weight_decay"])
        if optimizer.kernel != "adam":
            raise TypeError(f"{optimizer} has no counterpart here")
        return optim.Adam(
            parameters,
            c["learning_rate"],
            (c["beta1"], c["beta2"]),
            c["epsilon"],
            c["weight_decay"],
            fused=self.fused,
        )

    def step(self, rows: Any) -> Any:
        """One update; gives the loss as a tensor, which nobody waits for."""
        self._train_mode(True)
        x = self.images[rows]
        loss = self.both(x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def train(self, updates: int = UPDATES) -> list:
        """A loop of updates."""
        return [self.step(rows) for rows in self.batches[:updates]]

    def infer(self, x: np.ndarray) -> np.ndarray:
        """Reconstruct rows, a NumPy array to a NumPy array, by the weights as they are."""
        self._train_mode(False)
        with self.torch.inference_mode():
            return self.forward(self.torch.from_numpy(x)).numpy()

    def _train_mode(self, wanted: bool) -> None:
        """Have batch normalisation use the batch, or what it has gathered; looked at first, for speed."""
        if isinstance(self.forward, self.torch.nn.Module) and self.forward.training != wanted:
            self.forward.train(wanted)

    def losses(self, updates: int) -> np.ndarray:
        """Losses of the first updates, as an array."""
        return np.array([float(loss) for loss in self.train(updates)])

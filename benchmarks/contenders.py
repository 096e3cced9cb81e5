"""AutoEncNet's training step in three hands: straight NumPy (the reference), fastae, and PyTorch eager.

All begin from the same weights and see the same batches; nothing is timed before the losses agree. The
product with the fixed identity W_rec is left out of all three, as fastae's lowering does, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastae import datasets, models
from fastae.kernels.table import KERNELS
from fastae.optimizers import SGD
from fastae.program import lower

from .kernel_cases import SIZES

BATCH, PIXELS, HIDDEN = SIZES["n"], SIZES["k"], SIZES["m"]
STRIDE, LEARNING_RATE = 3, 1e-4
UPDATES = 50  # of an epoch: 1000 images

#: Relative difference allowed between a loss and the float64 reference's.
LOSS_TOLERANCE = {"float32": 1e-5, "float64": 1e-10}

Weights = Mapping[str, np.ndarray]


@dataclass
class Problem:
    """Images, the order in which they are drawn, and initial weights, all from fixed seeds."""

    images: np.ndarray = field(init=False)  # float64 [1000, 225]
    order: np.ndarray = field(init=False)  # int64 [1000], with replacement
    weights: Weights = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(11)
        pixels = datasets.digits_canvas(15)[: BATCH * UPDATES].reshape(-1, PIXELS)
        self.images = (pixels - pixels.mean(0)) / 255
        self.order = rng.integers(0, len(self.images), BATCH * UPDATES)
        self.weights = models.autoencnet(PIXELS, HIDDEN).initial_weights(seed=5)


def reconstruct(weights: Weights, x: np.ndarray) -> np.ndarray:
    """Forward pass of the reference."""
    z = np.maximum(x @ weights["in.weight"] + weights["in.bias"], 0)
    s = z + x[:, ::STRIDE] @ weights["link.weight"]
    return np.maximum(s @ weights["out.weight"] + weights["out.bias"], 0)


def reference_losses(problem: Problem, updates: int, order: np.ndarray) -> np.ndarray:
    """Loss of each of the first updates, from formulas written out in float64."""
    w = {name: value.copy() for name, value in problem.weights.items()}
    losses = np.empty(updates)
    for i, rows in enumerate(order[: updates * BATCH].reshape(-1, BATCH)):
        x = problem.images[rows]
        x_red = x[:, ::STRIDE]
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
            w[name] -= LEARNING_RATE * gradient
    return losses


def check_losses(
    losses: np.ndarray, problem: Problem, dtype: str, who: str, order: np.ndarray | None = None
) -> None:
    """Compare with the reference; equal losses come before any timing."""
    expected = reference_losses(problem, len(losses), problem.order if order is None else order)
    np.testing.assert_allclose(losses, expected, rtol=LOSS_TOLERANCE[dtype], err_msg=who)


def _calls(rows: int, training: bool) -> list[tuple[str, dict[str, int], dict[str, object]]]:
    """Kernels of a forward pass or of an update, with their dims and constants."""
    calls: list[tuple[str, dict[str, int], dict[str, object]]] = [
        ("subsample_forward", {"n": rows, "k": PIXELS, "m": HIDDEN}, {"stride": STRIDE}),
        ("branch_sum", {"n": rows, "m": HIDDEN}, {}),
    ]
    for k, m, activation in (
        (PIXELS, HIDDEN, "relu"),
        (HIDDEN, HIDDEN, "linear"),
        (HIDDEN, PIXELS, "relu"),
    ):
        sizes = {"n": rows, "k": k, "m": m}
        calls.append(("dense_forward", sizes, {"activation": activation}))
        if training:
            calls.append(("dense_weight_grad", sizes, {}))
    if training:
        calls += [
            ("sse", {"n": rows, "m": PIXELS}, {"activation": "relu"}),
            ("dense_input_grad", {"n": rows, "k": HIDDEN, "m": PIXELS}, {"activation": "relu"}),
            ("sgd", {"p": SIZES["p"]}, {"learning_rate": LEARNING_RATE}),
        ]
    return calls


def cost(dtype: str, *, rows: int = BATCH, updates: int = 0) -> dict[str, float]:
    """FLOPs and bytes, as the table counts them, of so many updates, or of a forward pass of some rows."""
    itemsize = np.dtype(dtype).itemsize
    calls = _calls(rows, training=updates > 0)
    return {
        "flops": max(updates, 1) * sum(KERNELS[k].count_flops(sizes, c) for k, sizes, c in calls),
        "bytes": max(updates, 1) * sum(KERNELS[k].count_bytes(sizes, itemsize) for k, sizes, _ in calls),
    }


class Fastae:
    """A backend's executor on the lowered network, one thread."""

    def __init__(self, problem: Problem, module: Any, dtype: str) -> None:
        program = lower(
            models.autoencnet(PIXELS, HIDDEN),
            batch_size=BATCH,
            loss="sse",
            optimizer=SGD(LEARNING_RATE),
            dtype=dtype,
            padded=module.PADDED,
            fused_update=module.FUSED_UPDATE,
        )
        arena = program.new_arena()
        program.write_weights(arena, problem.weights)
        self.executor = module.Executor(program, arena, 1)
        self.routine = program.routine("train", own_target=False)
        self.images = np.ascontiguousarray(problem.images, dtype)
        self.order = problem.order

    def train(self, order: np.ndarray, losses: np.ndarray | None = None) -> None:
        """One call: an update for every 20 entries of ``order``."""
        self.executor.run(self.routine, self.images, None, order, losses=losses)

    def losses(self, updates: int) -> np.ndarray:
        """Losses of the first updates."""
        losses = np.full(updates, np.nan)
        self.train(self.order[: updates * BATCH], losses)
        return losses


class TorchEager:
    """The network as its user would write it in PyTorch, run eagerly on one thread."""

    def __init__(self, problem: Problem, dtype: str) -> None:
        import torch

        torch.set_num_threads(1)
        real = getattr(torch, dtype)

        def linear(w: np.ndarray, b: np.ndarray | None = None):
            layer = torch.nn.Linear(*w.shape, bias=b is not None, dtype=real)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(w.T))
                if b is not None:
                    layer.bias.copy_(torch.from_numpy(b))
            return layer

        w = problem.weights
        self.layer_in = linear(w["in.weight"], w["in.bias"])
        self.layer_link = linear(w["link.weight"])
        self.layer_out = linear(w["out.weight"], w["out.bias"])
        layers = (self.layer_in, self.layer_link, self.layer_out)
        self.optimizer = torch.optim.SGD([p for layer in layers for p in layer.parameters()], LEARNING_RATE)
        self.images = torch.from_numpy(problem.images).to(real)
        self.batches = list(torch.from_numpy(problem.order).split(BATCH))
        self.instruction_set = torch.backends.cpu.get_cpu_capability()

    def step(self, rows):
        """One update; gives the loss as a tensor, which nobody waits for."""
        x = self.images[rows]
        s = self.layer_in(x).relu() + self.layer_link(x[:, ::STRIDE])
        y = self.layer_out(s).relu()
        loss = ((y - x) ** 2).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def train(self, updates: int = UPDATES) -> list:
        """A loop of updates."""
        return [self.step(rows) for rows in self.batches[:updates]]

    def losses(self, updates: int) -> np.ndarray:
        """Losses of the first updates, as an array."""
        return np.array([float(loss) for loss in self.train(updates)])

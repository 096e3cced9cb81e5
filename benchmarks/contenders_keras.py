"""Training steps of the published systems in Keras 3: a batch at a time, and as a fit of the epoch.

The backend is the one that the environment variable KERAS_BACKEND names when keras is imported. "jax" is
compiled, "torch" runs eagerly: compiled a step took as long (upsample_conv, 18 ms), after half a minute.
"""

from __future__ import annotations

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


class Keras:
    """The network as its user would write it in Keras: images with their channels last.

    Parameters
    ----------
    problem : Problem
        What is trained.
    dtype : str
        "float32" or "float64".
    fit : bool
        Whether several updates are one call of ``fit``; else each is one of ``train_on_batch``.
    """

    def __init__(self, problem: Problem, dtype: str, *, fit: bool) -> None:
        import keras

        self.keras, self.fit, self.dtype = keras, fit, dtype
        self.batch = problem.batch
        keras.backend.set_floatx(dtype)
        #: Content of layers that have any, channels last; set when all are built.
        self.content: list[tuple[Any, list[np.ndarray]]] = []
        shape = problem.net.input_shape
        self.shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
        x = keras.Input(self.shape)
        y = self._autoencnet(problem, x) if problem.name == "autoencnet" else self._layers(problem, x)
        self.model = keras.Model(x, y)
        for layer, values in self.content:
            layer.set_weights(values)
        self.model.compile(
            self._optimizer(problem),
            {"sse": self._sse, "mse": "mse", "bce": "binary_crossentropy"}[problem.recipe.loss],
            jit_compile=keras.backend.backend() == "jax",
            steps_per_execution=UPDATES if fit else 1,  # callbacks once an epoch, not after every update
        )
        images = self._channels_last(np.asarray(problem.images, dtype).reshape(-1, *shape))
        self.drawn = images[problem.order]

    @staticmethod
    def _channels_last(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if x.ndim == 4 else x  # no copy of one channel

    # the network

    def _put(self, layer: Any, *values: np.ndarray) -> Any:
        self.content.append((layer, list(values)))
        return layer

    def _autoencnet(self, problem: Problem, x: Any) -> Any:
        w, dense = problem.weights, self.keras.layers.Dense
        first = self._put(dense(75, "relu"), w["in.weight"], w["in.bias"])
        link = self._put(dense(75, use_bias=False), w["link.weight"])
        last = self._put(dense(225, "relu"), w["out.weight"], w["out.bias"])
        return last(first(x) + link(x[:, ::3]))

    def _layers(self, problem: Problem, x: Any) -> Any:
        layers = problem.net.layers
        for i, placed in enumerate(layers):
            before = layers[i - 1] if i else None
            after = layers[i + 1] if i + 1 < len(layers) else None
            x = self._layer(placed, before, after, problem.weights, x)
        return x

    def _layer(self, placed: Placed, before: Placed | None, after: Placed | None, w: Any, x: Any) -> Any:
        layer, name, kit = placed.layer, placed.name, self.keras.layers
        if isinstance(layer, Flatten):
            return kit.Flatten()(x)
        if isinstance(layer, Reshape):
            c, h, width = layer.shape
            return kit.Reshape((h, width, c))(x)
        if isinstance(layer, Upsample2D):
            return kit.UpSampling2D(2)(x)
        if isinstance(layer, MaxPool2D):
            return kit.MaxPooling2D(layer.kernel_size)(x)
        if isinstance(layer, Dense):
            weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
            # The pixels of an image that is flattened come in another order here.
            if before is not None and isinstance(before.layer, Flatten):
                weight = weight[self._order(before.input_shape)]
            if after is not None and isinstance(after.layer, Reshape):
                order = self._order(after.output_shape)
                weight, bias = weight[:, order], bias[order]
            return self._put(kit.Dense(layer.units, layer.activation), weight, bias)(x)
        if isinstance(layer, BatchNorm):
            # Its running variance is that of the batch, n / (n - 1) of which the others keep.
            made = kit.BatchNormalization(momentum=1 - layer.momentum, epsilon=layer.epsilon)
            ends = ("gamma", "beta", "running_mean", "running_var")
            x = self._put(made, *(w[f"{name}.{end}"] for end in ends))(x)
            return x if layer.activation == "linear" else kit.Activation(layer.activation)(x)
        if not isinstance(layer, Conv2D | ConvTranspose2D):
            raise TypeError(f"{name}: a {type(layer).__name__} has no counterpart here")
        values = w[f"{name}.weight"].transpose(2, 3, 1, 0), w[f"{name}.bias"]
        top, left = layer.padding[:2]
        if isinstance(layer, ConvTranspose2D):
            made = kit.Conv2DTranspose(layer.filters, layer.kernel_size, layer.stride)
            x = self._put(made, *values)(x)
            if any(layer.padding):
                ends = [(p, p - extra) for p, extra in zip((top, left), layer.output_padding, strict=True)]
                x = kit.Cropping2D(ends)(x)
            return x if layer.activation == "linear" else kit.Activation(layer.activation)(x)
        if any(layer.padding):
            x = kit.ZeroPadding2D((top, left))(x)
        made = kit.Conv2D(layer.filters, layer.kernel_size, layer.stride, activation=layer.activation)
        return self._put(made, *values)(x)

    @staticmethod
    def _order(shape: tuple[int, ...]) -> np.ndarray:
        """Where each pixel of a flattened (channels, height, width) is, channels last."""
        return np.moveaxis(np.arange(np.prod(shape)).reshape(shape), 0, -1).ravel()

    # loss and optimiser

    def _sse(self, x: Any, y: Any) -> Any:
        ops = self.keras.ops
        return ops.sum(ops.square(y - x))

    def _optimizer(self, problem: Problem) -> Any:
        optimizer, kit = problem.recipe.optimizer, self.keras.optimizers
        c = optimizer.constants
        if optimizer.kernel == "sgd" and not c["weight_decay"]:
            return kit.SGD(c["learning_rate"])
        if optimizer.kernel != "adam":
            raise TypeError(f"{optimizer} has no counterpart here")
        decay, ops = c["weight_decay"], self.keras.ops

        class Adam(kit.Adam):
            """Keras's, with epsilon beside the corrected moment, and a decay that is part of the gradient.

            Its own decay goes past the moments, as AdamW's does, its epsilon is beside the uncorrected one.
            """

            def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
                if decay:
                    gradient = gradient + decay * variable
                epsilon, time = self.epsilon, ops.cast(self.iterations + 1, variable.dtype)
                self.epsilon = epsilon * ops.sqrt(1 - ops.power(self.beta_2, time))
                super().update_step(gradient, variable, learning_rate)
                self.epsilon = epsilon

        return Adam(c["learning_rate"], c["beta1"], c["beta2"], c["epsilon"])

    # what is timed

    def train(self, updates: int = UPDATES) -> list[float]:
        """So many updates; their losses, or the mean of all where they are a fit."""
        x = self.drawn[: updates * self.batch]
        if self.fit:
            done = self.model.fit(x, x, self.batch, epochs=1, shuffle=False, verbose=0)
            return done.history["loss"]
        batches = (x[i : i + self.batch] for i in range(0, len(x), self.batch))
        return [self.model.train_on_batch(b, b) for b in batches]

    def infer(self, x: np.ndarray) -> np.ndarray:
        """Reconstruct rows, a NumPy array to a NumPy array, by the weights as they are."""
        y = self.model.predict_on_batch(self._channels_last(x))
        return np.moveaxis(y, -1, 1) if y.ndim == 4 else y

    def losses(self, updates: int) -> np.ndarray:
        """Losses of the first updates, as an array."""
        whole, found = self.drawn, []
        for i in range(updates):
            self.drawn = whole[i * self.batch :]
            found += self.train(1)
        self.drawn = whole
        return np.array(found)

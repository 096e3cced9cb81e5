"""The published networks, each with its published training as its recipe."""

from __future__ import annotations

from collections.abc import Callable

from fastae.layers import BatchNorm, Dense, Layer, Parallel, Subsample, positive_int
from fastae.network import Network, Recipe
from fastae.optimizers import SGD, Adam

__all__ = ["MODELS", "autoencnet", "batchnorm_mlp", "deep_mlp", "deep_mlp_linear_code", "quark_mlp"]


def autoencnet(image_dim: int = 225, hidden: int = 75) -> Network:
    """Declare AutoEncNet: two branches, one of every third pixel, summed into the code.

    ::

        x ─┬─ in: relu(x W + b) ── rec: relu(z I + 0), fixed ─┬─ + ── out: relu(z W + b) ── y
           └─ every third pixel ── link: x W ─────────────────┘

    Parameters
    ----------
    image_dim : int
        Number of pixels, >= 1; published with 225 (15x15).
    hidden : int
        Width of the code, >= 1; published with 75.

    Returns
    -------
    Network
        (image_dim,) to (image_dim,), recipe: SSE, SGD with learning rate 1e-4, batches of 20 drawn
        with replacement, 1000 updates (20 epochs of the published 1000 images), float64.

    Raises
    ------
    ValueError
        When a width is not a positive integer.
    """
    return Network(
        encoder=[
            Parallel(
                [
                    Dense(hidden, "relu", name="in"),
                    Dense(hidden, "relu", kernel_initializer="identity", trainable=False, name="rec"),
                ],
                [Subsample(3, name="every_third"), Dense(hidden, use_bias=False, name="link")],
                name="sum",
            )
        ],
        decoder=[Dense(image_dim, "relu", name="out")],
        input_shape=image_dim,
        name="autoencnet",
        recipe=Recipe(
            loss="sse",
            optimizer=SGD(1e-4),
            batch_size=20,
            epochs=20,
            dtype="float64",
            sampling="replacement",
            updates=1000,
            published={"first_loss": 110.0, "last_loss": 50.0, "input_layer_speedup": 475.6281},
            reference={"first_loss": 119.0, "last_loss": 47.0},
        ),
    )


def quark_mlp() -> Network:
    """Declare the small network of the Quark document: 784-10-10-784 with a code of 10.

    Returns
    -------
    Network
        (784,) to (784,), 16584 parameters, Glorot uniform; recipe: MSE, Adam with learning rate 1e-3,
        batches of 32, 10 epochs of MNIST. Published: validation loss 0.0675 after the first epoch,
        0.0566 after the last, 23 minutes in all.
    """
    return Network(
        encoder=[Dense(10, "sigmoid", name="hidden"), Dense(10, "relu", name="code")],
        decoder=[Dense(784, "sigmoid", name="out")],
        input_shape=784,
        name="quark_mlp",
        recipe=Recipe(
            loss="mse",
            optimizer=Adam(1e-3),
            batch_size=32,
            epochs=10,
            published={
                "parameters": 16584,
                "validation_loss_epoch_1": 0.0675,
                "validation_loss": 0.0566,
                "minutes": 23.0,
            },
            reference={
                "training_loss": 0.0464,
                "validation_loss_epoch_1": 0.0621,
                "validation_loss": 0.0460,
            },
        ),
    )


def batchnorm_mlp(image_dim: int = 784, num_hidden: int = 128) -> Network:
    """Declare a network whose every layer, the last one too, is dense, batch-normalised and rectified.

    ::

        image_dim - 4 num_hidden - 2 num_hidden - num_hidden - 2 num_hidden - 4 num_hidden - image_dim

    Parameters
    ----------
    image_dim : int
        Number of pixels, >= 1.
    num_hidden : int
        Width of the code, >= 1.

    Returns
    -------
    Network
        (image_dim,) to (image_dim,), weights and biases U(+-1/sqrt(fan_in)) as PyTorch's; recipe: MSE,
        Adam with learning rate 1e-3, batches of 128, 20 epochs of MNIST. Published without figures: a
        learning rate of 0.1, or no ReLU on the last layer, gave visibly bad images.

    Raises
    ------
    ValueError
        When a width is not a positive integer.
    """
    h = positive_int("num_hidden", num_hidden)

    def chain(*widths: int) -> list[Layer]:
        blocks = [(_torch_dense(width), BatchNorm(activation="relu")) for width in widths]
        return [layer for block in blocks for layer in block]

    return Network(
        encoder=chain(4 * h, 2 * h, h),
        decoder=chain(2 * h, 4 * h, positive_int("image_dim", image_dim)),
        input_shape=image_dim,
        name="batchnorm_mlp",
        recipe=Recipe(
            loss="mse",
            optimizer=Adam(1e-3),
            batch_size=128,
            epochs=20,
            reference={"training_loss": 0.0057, "validation_loss": 0.0049},
        ),
    )


def deep_mlp() -> Network:
    """Declare a deep network with a code of 4: 784-256-128-64-32-16-8-4 and back.

    Returns
    -------
    Network
        (784,) to (784,), ReLU, the code too, and a sigmoid at the end, Glorot uniform; recipe: binary
        cross-entropy, Adam, batches of 32, 20 epochs of MNIST. Published: pictures of code and
        reconstruction.
    """
    widths = (256, 128, 64, 32, 16, 8, 4)
    return Network(
        encoder=[Dense(width, "relu") for width in widths],
        decoder=[*(Dense(width, "relu") for width in widths[-2::-1]), Dense(784, "sigmoid")],
        input_shape=784,
        name="deep_mlp",
        recipe=Recipe(
            loss="bce",
            optimizer=Adam(1e-3),
            batch_size=32,
            epochs=20,
            reference={"training_loss": 0.1391, "validation_loss": 0.1414},
        ),
    )


def deep_mlp_linear_code() -> Network:
    """Declare a deep network with a linear code of 10.

    ::

        784-256-128-32-16-10 | 16-32-64-128-256-784

    The encoder has no layer of 64, as published.

    Returns
    -------
    Network
        (784,) to (784,), ReLU, a linear code, a sigmoid at the end, weights and biases
        U(+-1/sqrt(fan_in)) as PyTorch's; recipe: MSE, Adam with learning rate 1e-3 and weight decay
        1e-5, batches of 64, 10 epochs of MNIST. Published: pictures of reconstructions.
    """
    return Network(
        encoder=[
            *(_torch_dense(width, "relu") for width in (256, 128, 32, 16)),
            _torch_dense(10, name="code"),
        ],
        decoder=[
            *(_torch_dense(width, "relu") for width in (16, 32, 64, 128, 256)),
            _torch_dense(784, "sigmoid", name="out"),
        ],
        input_shape=784,
        name="deep_mlp_linear_code",
        recipe=Recipe(
            loss="mse",
            optimizer=Adam(1e-3, weight_decay=1e-5),
            batch_size=64,
            epochs=10,
            reference={"training_loss": 0.0302, "validation_loss": 0.0300},
        ),
    )


def _torch_dense(units: int, activation: str = "linear", name: str | None = None) -> Dense:
    """Declare a dense layer that starts as PyTorch's does."""
    start = "uniform_fan_in"
    return Dense(units, activation, kernel_initializer=start, bias_initializer=start, name=name)


#: The closed registry: names in files and on the command line resolve here alone.
MODELS: dict[str, Callable[..., Network]] = {
    model.__name__: model for model in (autoencnet, quark_mlp, batchnorm_mlp, deep_mlp, deep_mlp_linear_code)
}

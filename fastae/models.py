"""The published networks, each with its published training as its recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastae.layers import (
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Flatten,
    Layer,
    MaxPool2D,
    Parallel,
    Reshape,
    Subsample,
    Upsample2D,
    positive_int,
)
from fastae.network import Network, Recipe
from fastae.optimizers import SGD, Adam

__all__ = [
    "MODELS",
    "autoencnet",
    "batchnorm_mlp",
    "deep_mlp",
    "deep_mlp_linear_code",
    "generic_conv",
    "quark_mlp",
    "strided_conv",
    "upsample_conv",
]


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


def upsample_conv() -> Network:
    """Declare a convolutional network that comes back by upsampling, with a code of 8x5x5.

    ::

        28 - conv 16 - 26 - pool - 13 - conv 8 - 11 - pool - 5 | up - 10 - conv^T 8 - 12 - up - 24 -
        conv^T 16 - 26 - conv^T 1 - 28

    Returns
    -------
    Network
        (1, 28, 28) to itself, kernels 3x3, ReLU and a sigmoid at the end, Glorot uniform; recipe: MSE,
        Adam with learning rate 1e-3, batches of 32, 10 epochs of MNIST. Published: pictures of input, code
        and output.
    """
    return Network(
        encoder=[
            *(Conv2D(16, 3, activation="relu"), MaxPool2D(2)),
            *(Conv2D(8, 3, activation="relu"), MaxPool2D(2)),
        ],
        decoder=[
            *(Upsample2D(2), ConvTranspose2D(8, 3, activation="relu")),
            *(Upsample2D(2), ConvTranspose2D(16, 3, activation="relu")),
            ConvTranspose2D(1, 3, activation="sigmoid"),
        ],
        input_shape=(1, 28, 28),
        name="upsample_conv",
        recipe=Recipe(
            loss="mse",
            optimizer=Adam(1e-3),
            batch_size=32,
            epochs=10,
            reference={"training_loss": 0.0056, "validation_loss": 0.0054},
        ),
    )


def strided_conv() -> Network:
    """Declare a convolutional network that comes back by strides, with a code of 64x1x1.

    ::

        28 - conv 16 - 28 - pool - 14 - conv 32 - 12 - pool - 6 - conv 64, 6x6 - 1 |
        conv^T 32, 7x7 - 7 - conv^T 16, stride 2 - 14 - conv^T 1, stride 2 - 28

    Returns
    -------
    Network
        (1, 28, 28) to itself, ReLU, a linear code, a sigmoid at the end, weights and biases
        U(+-1/sqrt(fan_in)) as PyTorch's; recipe: MSE, Adam with learning rate 1e-3 and weight decay 1e-5,
        batches of 64, 10 epochs of MNIST. Published: pictures of reconstructions.
    """

    def twice(filters: int, activation: str, name: str | None = None) -> ConvTranspose2D:
        return ConvTranspose2D(filters, 3, 2, 1, activation=activation, name=name, output_padding=1)

    return Network(
        encoder=_torch_start(
            *(Conv2D(16, 3, padding=1, activation="relu"), MaxPool2D(2)),
            *(Conv2D(32, 3, activation="relu"), MaxPool2D(2)),
            Conv2D(64, 6, name="code"),
        ),
        decoder=_torch_start(
            ConvTranspose2D(32, 7, activation="relu"),
            twice(16, "relu"),
            twice(1, "sigmoid", "out"),
        ),
        input_shape=(1, 28, 28),
        name="strided_conv",
        recipe=Recipe(
            loss="mse",
            optimizer=Adam(1e-3, weight_decay=1e-5),
            batch_size=64,
            epochs=10,
            reference={"training_loss": 0.0033, "validation_loss": 0.0032},
        ),
    )


def generic_conv(
    source: Sequence[int] = (28, 28), kernels: Sequence[int] = (5, 5), filters: int = 3, latent_dim: int = 100
) -> Network:
    """Declare a convolutional network of any depth with a dense code.

    For each kernel a convolution to `filters` times as many channels, ReLU and a max-pooling of 2x2; then
    dense layers to the code and back, ReLU both; then for each kernel, the last one first, an upsampling
    by 2 and a transposed convolution, ReLU, to a `filters`-th of the channels.

    Parameters
    ----------
    source : (height, width) or (channels, height, width)
        Of an image. Sizes must come back to themselves: the convolutions' outputs must be even.
    kernels : sequence of int
        Size of each convolution's kernel, >= 1.
    filters : int
        Factor of the channels, >= 1.
    latent_dim : int
        Width of the code, >= 1.

    Returns
    -------
    Network
        (channels, height, width) to itself, Glorot uniform; recipe: MSE, Adam with learning rate 1e-3,
        batches of 32, 150 epochs of the first 1000 training images of MNIST, validated on the next 1000.
        The figures are those of the default arguments.

    Raises
    ------
    ValueError
        When an argument is not as stated, or a size does not come back to itself; the message tells the
        sizes near it that do.
    """
    if not isinstance(source, Sequence) or isinstance(source, str) or len(source) not in (2, 3):
        raise ValueError(f"source must be (height, width) or (channels, height, width); got {source!r:.100}")
    if not isinstance(kernels, Sequence) or isinstance(kernels, str) or not kernels:
        raise ValueError(f"kernels must be one or more integers; got {kernels!r:.100}")
    channels, height, width = (1, *source) if len(source) == 2 else source
    sides = [positive_int("kernels", k) for k in kernels]
    sizes = [_pooled(name, size, sides) for name, size in (("height", height), ("width", width))]
    factor, depth = positive_int("filters", filters), len(sides)
    channels = positive_int("source", channels)
    widths = [channels * factor**i for i in range(depth + 1)]
    last = (widths[-1], *sizes)
    encoder: list[Layer] = []
    decoder: list[Layer] = [Dense(math.prod(last), "relu"), Reshape(last)]
    for k, wide in zip(sides, widths[1:], strict=True):
        encoder += [Conv2D(wide, k, activation="relu"), MaxPool2D(2)]
    for k, wide in zip(sides[::-1], widths[-2::-1], strict=True):
        decoder += [Upsample2D(2), ConvTranspose2D(wide, k, activation="relu")]
    published = (channels, *source[-2:], sides, factor, latent_dim) == (1, 28, 28, [5, 5], 3, 100)
    return Network(
        encoder=[*encoder, Flatten(), Dense(latent_dim, "relu", name="code")],
        decoder=decoder,
        input_shape=(channels, height, width),
        name="generic_conv",
        recipe=Recipe(
            loss="mse",
            optimizer=Adam(1e-3),
            batch_size=32,
            epochs=150,
            train_rows=1000,
            validation_rows=1000,
            reference={"training_loss": 0.0089, "validation_loss": 0.0136} if published else {},
        ),
    )


def _pooled(name: str, size: int, kernels: Sequence[int]) -> int:
    """Return a size after convolutions and poolings that upsampling and convolutions take back to it."""

    def smallest(size: int) -> int:
        """The size at the end; 0 where it does not come back."""
        for k in kernels:
            size -= k - 1
            if size < 2 or size % 2:
                return 0
            size //= 2
        return size

    size = positive_int(f"{name} of source", size)
    if end := smallest(size):
        return end
    least = 1
    for k in reversed(kernels):  # and every 2^depth-th size from there on
        least = 2 * least + k - 1
    step = 1 << len(kernels)
    below = least + (size - least) // step * step
    near = [n for n in (below - step, below, below + step, below + 2 * step) if n >= least] or [least]
    raise ValueError(
        f"{name} of source must come back to itself through kernels {tuple(kernels)!r:.100}, each followed "
        f"by a pooling of 2; got {size}, near which {', '.join(map(str, near))} would"
    )


def _torch_start(*layers: Layer) -> list[Layer]:
    """Return layers of which those with weights start as PyTorch's do."""
    start = "uniform_fan_in"
    return [
        replace(layer, kernel_initializer=start, bias_initializer=start)
        if isinstance(layer, Dense | Conv2D | ConvTranspose2D)
        else layer
        for layer in layers
    ]


def _torch_dense(units: int, activation: str = "linear", name: str | None = None) -> Layer:
    """Declare a dense layer that starts as PyTorch's does."""
    (layer,) = _torch_start(Dense(units, activation, name=name))
    return layer


#: The closed registry: names in files and on the command line resolve here alone.
MODELS: dict[str, Callable[..., Network]] = {
    model.__name__: model
    for model in (
        *(autoencnet, quark_mlp, batchnorm_mlp, deep_mlp, deep_mlp_linear_code),
        *(upsample_conv, strided_conv, generic_conv),
    )
}

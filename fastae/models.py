"""The published networks, each with its published training as its recipe."""

from __future__ import annotations

from fastae.layers import Dense, Parallel, Subsample
from fastae.network import Network, Recipe
from fastae.optimizers import SGD

__all__ = ["autoencnet"]


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
        ),
    )

"""AutoEncNet, trained end to end, against a straight NumPy implementation that shares nothing with fastae."""

import numpy as np
import pytest

from fastae.models import autoencnet
from fastae.trainer import Trainer

PIXELS, BATCH, LEARNING_RATE = 225, 20, 1e-4


def images(n: int, seed: int) -> np.ndarray:
    """Grey images of one or two soft strokes on 15x15, as AutoEncNet prepares them: float64 (n, 225)."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:15, :15]
    pixels = np.zeros((n, 15, 15))
    for _ in range(2):
        y, x, angle = rng.uniform(4, 11, (3, n, 1, 1))
        along = (row - y) * np.sin(angle) + (column - x) * np.cos(angle)
        across = (row - y) * np.cos(angle) - (column - x) * np.sin(angle)
        pixels += np.exp(-((along / 4) ** 2) - (across / 1.2) ** 2)
    grey = np.rint(255 * np.minimum(pixels, 1)).reshape(n, PIXELS)
    return (grey - grey.mean(axis=0)) / 255


def reference(weights, data, rows):
    """Loss of every update and the weights after the last, from the formulas, with the fixed layer in."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    losses = []
    for i in range(0, len(rows), BATCH):
        x = data[rows[i : i + BATCH]]
        z_in = np.maximum(x @ w["in.weight"] + w["in.bias"], 0)
        z_rec = np.maximum(z_in @ w["rec.weight"] + w["rec.bias"], 0)
        x_red = x[:, ::3]
        z = z_rec + x_red @ w["link.weight"]
        y = np.maximum(z @ w["out.weight"] + w["out.bias"], 0)
        losses.append(((y - x) ** 2).sum())

        d_out = 2 * (y - x) * (y > 0)
        d_z = d_out @ w["out.weight"].T
        d_in = ((d_z * (z_rec > 0)) @ w["rec.weight"].T) * (z_in > 0)
        gradients = {
            "out.weight": z.T @ d_out,
            "out.bias": d_out.sum(axis=0),
            "link.weight": x_red.T @ d_z,
            "in.weight": x.T @ d_in,
            "in.bias": d_in.sum(axis=0),
        }
        for name, gradient in gradients.items():
            w[name] -= LEARNING_RATE * gradient
    return np.array(losses), w


@pytest.fixture(scope="module")
def data():
    return images(1000, seed=3)


@pytest.mark.parametrize("seed", [0, 17])
def test_every_update_matches_straight_numpy(backend, data, seed):
    if backend == "scalar" and seed:
        pytest.skip("an update of the scalar backend takes a good part of a second; one seed is enough")
    updates = 3 if backend == "scalar" else 1000
    trainer = Trainer.from_recipe(autoencnet(), backend=backend, seed=seed)
    initial = trainer.weights
    rows = np.random.default_rng(seed).integers(0, len(data), updates * BATCH)

    history = trainer.fit(data[rows], epochs=1, sampling="sequential")

    losses, weights = reference(initial, data, rows)
    assert history.updates == updates
    np.testing.assert_allclose(history.batch_loss, losses, rtol=1e-9)
    for name, value in trainer.weights.items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-7, atol=1e-10, err_msg=name)
    if updates == 1000:
        assert history.batch_loss[-50:].mean() < 0.6 * history.batch_loss[:5].mean()


def test_float32_stays_close(backend, data):
    updates = 2 if backend == "scalar" else 200
    trainer = Trainer.from_recipe(autoencnet(), backend=backend, dtype="float32", seed=1)
    rows = np.random.default_rng(1).integers(0, len(data), updates * BATCH)
    losses, _ = reference(trainer.weights, data, rows)
    history = trainer.fit(data[rows].astype(np.float32), epochs=1, sampling="sequential")
    np.testing.assert_allclose(history.batch_loss, losses, rtol=1e-4)


def test_recipe_as_published(data):
    recipe = autoencnet().recipe
    assert recipe is not None
    trainer = Trainer.from_recipe(autoencnet(), backend="numpy", seed=5)
    history = trainer.fit(data, epochs=recipe.epochs, sampling=recipe.sampling)
    assert history.updates == recipe.updates == 1000
    assert history.loss[-1] < 0.6 * history.batch_loss[0]
    np.testing.assert_array_equal(trainer.weights["rec.weight"], np.eye(75))

"""Estimators: scikit-learn's own checks, the Trainer's bits, and results that a linear model misses."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import sys

import numpy as np
import pytest

if os.environ.get("CI"):
    import pandas as pd
    import sklearn
else:
    sklearn = pytest.importorskip("sklearn")
    pd = pytest.importorskip("pandas")

from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastae
from fastae import Autoencoder, AutoencoderOutlierDetector, CheckpointError, EarlyStopping, Trainer
from fastae import backend as backends
from fastae.layers import (
    Activation,
    Conv2D,
    Dense,
    Flatten,
    GaussianNoise,
    MaskingNoise,
    MaxPool2D,
    Reshape,
    Upsample2D,
)
from fastae.losses import huber
from fastae.network import Network
from fastae.optimizers import SGD, Adam, RMSprop

BOTH = [Autoencoder, AutoencoderOutlierDetector]
SMALL = {"hidden_layer_sizes": (3,), "max_iter": 3}
TINY = {**SMALL, "backend": "numpy", "random_state": 0}

#: In CI all of them, so that one that cannot be loaded fails.
AVAILABLE = [
    name for name, reason in backends.available_backends().items() if reason is None or os.environ.get("CI")
]
RNG = np.random.default_rng(0)
X = RNG.random((60, 7))


@pytest.fixture(scope="module")
def digits():
    """1797 images of 64 pixels in [0, 1], and their labels."""
    images, labels = fastae.datasets.digits()
    return images.reshape(len(images), -1) / 16.0, labels


def curved(n, seed, shuffled=False):
    """Rows on a curved surface of two dimensions in six; shuffled, they lie beside it."""
    rng = np.random.default_rng(seed)
    u, v = rng.uniform(-1, 1, (2, n))
    height = u * v
    flat = np.stack([u, v, rng.permutation(height) if shuffled else height], axis=1)
    return flat @ np.random.default_rng(5).normal(size=(3, 6))


def mse(a, b):
    return float(np.mean((np.asarray(a, float) - b) ** 2))


@parametrize_with_checks([cls(backend=name, **SMALL) for name in AVAILABLE for cls in BOTH])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# What is computed -----------------------------------------------------------------------------------------


def seed_of(random_state):
    return int(np.random.RandomState(random_state).randint(2**31 - 1))


NET = Network([Dense(5, "tanh"), Dense(2)], [Dense(5, "tanh"), Dense(7)], 7)


def layers_of(latent, hidden, inner, outer):
    return Network(
        [*(Dense(n, inner) for n in hidden), Dense(latent)],
        [*(Dense(n, inner) for n in hidden[::-1]), Dense(7, outer)],
        7,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("given", "network", "expected"),
    [
        ({}, layers_of(2, (100,), "relu", "linear"), {"decay": 1e-4 / (60 * 7), "batch_size": 60}),
        (
            {"latent_dim": 3, "hidden_layer_sizes": (6, 4), "activation": "logistic", "batch_size": 16},
            layers_of(3, (6, 4), "sigmoid", "linear"),
            {"decay": 1e-4 / (16 * 7), "batch_size": 16},
        ),
        (
            {"hidden_layer_sizes": (), "loss": "bce", "alpha": 0.5, "learning_rate_init": 0.01},
            layers_of(2, (), "relu", "sigmoid"),
            {"decay": 0.5 / (60 * 7), "batch_size": 60, "loss": "bce", "rate": 0.01},
        ),
        (
            {"hidden_layer_sizes": 4, "output_activation": "identity", "loss": "sse", "shuffle": False},
            layers_of(2, (4,), "relu", "linear"),
            {"decay": 1e-4, "batch_size": 60, "loss": "sse"},
        ),
        (
            {"network": NET, "solver": RMSprop(0.02), "loss": huber(0.3), "noise": GaussianNoise(0.1)},
            NET,
            {"optimizer": RMSprop(0.02), "batch_size": 60, "loss": huber(0.3), "noise": GaussianNoise(0.1)},
        ),
        (
            {"network": NET, "solver": "sgd", "momentum": 0.5, "alpha": 0, "learning_rate_init": 0.1},
            NET,
            {"optimizer": SGD(0.1, 0.5, nesterov=True), "batch_size": 60},
        ),
        ({"network": NET, "solver": "sgd", "momentum": 0, "alpha": 0}, NET, {"optimizer": SGD(1e-3)}),
    ],
)
def test_training_has_the_bits_of_the_trainer(backend, dtype, given, network, expected):
    rows = X.astype(dtype)
    estimator = Autoencoder(max_iter=3, random_state=7, backend=backend, **given).fit(rows)
    optimizer = expected.get(
        "optimizer", Adam(expected.get("rate", 1e-3), weight_decay=expected.get("decay", 0))
    )
    trainer = Trainer(
        network,
        expected.get("loss", "mse"),
        optimizer,
        expected.get("batch_size", 60),
        backend,
        dtype,
        seed=seed_of(7),
        noise=expected.get("noise"),
    )
    history = trainer.fit(rows, epochs=3, sampling="shuffle" if given.get("shuffle", True) else "sequential")
    assert estimator.loss_curve_ == history.loss
    codes = trainer.encode(rows)
    assert estimator.transform(rows).dtype == dtype
    assert estimator.transform(rows).tobytes() == codes.tobytes()
    assert estimator.inverse_transform(codes).tobytes() == trainer.decode(codes).tobytes()
    assert estimator.reconstruct(rows).tobytes() == trainer.reconstruct(rows).tobytes()
    errors = ((trainer.reconstruct(rows).astype(float) - rows) ** 2).mean(axis=1)
    np.testing.assert_allclose(estimator.score_samples(rows), -errors, rtol=1e-5)
    assert estimator.score(rows) == pytest.approx(-errors.mean(), rel=1e-5)
    centred = codes - codes.mean(axis=0, dtype=float)
    np.testing.assert_allclose(estimator.code_mean_, codes.mean(axis=0, dtype=float), atol=1e-12)
    np.testing.assert_allclose(estimator.code_covariance_, centred.T @ centred / len(rows), atol=1e-12)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_early_stopping_keeps_what_was_best_on_the_rows_held_back(loss):
    noisy = np.random.default_rng(1).random((80, 7))
    estimator = Autoencoder(
        6, (64,), loss=loss, learning_rate_init=0.05, max_iter=400, early_stopping=True, tol=0,
        validation_fraction=0.25, random_state=3, n_iter_no_change=5, backend="numpy",
    ).fit(noisy)  # fmt: skip
    random = np.random.RandomState(3)
    random.randint(2**31 - 1)
    held = noisy[random.permutation(80)[60:]]
    scores = estimator.validation_scores_
    assert 6 <= estimator.n_iter_ == len(scores) == len(estimator.loss_curve_) < 400
    assert estimator.best_validation_score_ == max(scores) > scores[-1]
    assert scores.index(max(scores)) == len(scores) - 6
    assert estimator.trainer_.evaluate(held) == pytest.approx(-max(scores), rel=1e-12)
    assert estimator.best_loss_ is None
    assert estimator.loss_ == estimator.loss_curve_[-1]


def test_ends_when_the_loss_does_not_improve_by_tol():
    estimator = Autoencoder(**TINY | {"max_iter": 300, "tol": 0.5, "n_iter_no_change": 4}).fit(X)
    assert estimator.n_iter_ == 5
    assert estimator.best_loss_ == min(estimator.loss_curve_)
    assert estimator.validation_scores_ is None
    looked_on = Autoencoder(**TINY | {"max_iter": 9, "tol": 0, "n_iter_no_change": 8}).fit(X)
    alone = Autoencoder(**TINY | {"max_iter": 9, "tol": 0, "n_iter_no_change": 9}).fit(X)
    assert alone.loss_curve_ == looked_on.loss_curve_


def test_float64_is_computed_in_float64():
    """Against NumPy: float32 anywhere on the way would show at 1e-7."""
    estimator = Autoencoder(2, (5,), "tanh", max_iter=20, random_state=0).fit(X)
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = (
        [estimator.trainer_.weights[f"dense_{i}.{name}"] for name in ("weight", "bias")] for i in range(1, 5)
    )
    codes = np.tanh(X @ w1 + b1) @ w2 + b2
    again = np.tanh(codes @ w3 + b3) @ w4 + b4
    np.testing.assert_allclose(estimator.transform(X), codes, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(estimator.inverse_transform(codes), again, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(estimator.score_samples(X), -((again - X) ** 2).mean(axis=1), rtol=1e-11)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("data", "asked", "result"),
    [
        ("float64", None, "float64"), ("float32", None, "float32"), ("int32", None, "float64"),
        ("float16", None, "float64"), (">f8", None, "float64"), ("bool", None, "float64"),
        ("float64", "float32", "float32"), ("float32", np.float64, "float64"),
        ("uint8", "float32", "float32"),
    ],
)  # fmt: skip
def test_dtype_follows_the_data_unless_it_is_asked_for(cls, data, asked, result):
    rows = (X * 5).astype(data)
    estimator = cls(dtype=asked, **TINY).fit(rows)
    assert estimator.reconstruct(rows).dtype == result
    assert estimator.reconstruct((X * 5).astype("float32")).dtype == result
    assert estimator.score_samples(rows).dtype == "float64"
    if cls is Autoencoder:
        assert estimator.transform(rows).dtype == estimator.sample(3).dtype == result


@pytest.mark.parametrize("layout", ["fortran", "strided", "unaligned", "list", "frame"])
def test_rows_of_any_layout(layout):
    block = np.zeros(X.nbytes + 1, np.uint8)
    unaligned = block[1:].view(X.dtype).reshape(X.shape)
    unaligned[...] = X
    given = {
        "fortran": np.asfortranarray(X), "strided": np.repeat(X, 2, axis=1)[:, ::2], "unaligned": unaligned,
        "list": X.tolist(), "frame": pd.DataFrame(X),
    }[layout]  # fmt: skip
    expected = Autoencoder(**TINY).fit(X)
    estimator = Autoencoder(**TINY).fit(given, given)
    assert estimator.transform(given).tobytes() == expected.transform(X).tobytes()


@pytest.mark.parametrize("way", ["repeated", "scaled", "early"])
@pytest.mark.parametrize("cls", BOTH)
def test_weights_count_as_rows(backend, cls, way):
    """Rows of weight 0 may hold anything, a weight of 3 is the row three times, only alpha sees a factor."""
    weights = np.array([0, 1, 3] * 20)
    wild = np.where(weights[:, None] == 0, 1e3, X)
    options = {**SMALL, "backend": backend, "random_state": 1, "alpha": 0.3 if way == "repeated" else 0}
    options["early_stopping"] = way == "early"
    if way == "repeated":
        one = cls(**options).fit(wild, sample_weight=weights)
        other = cls(**options).fit(np.repeat(X, weights, axis=0))
    else:
        one, other = (cls(**options).fit(X, None, w) for w in (weights, weights * 0.37))
    plain = cls(**options).fit(X)
    np.testing.assert_allclose(one.reconstruct(X), other.reconstruct(X), rtol=1e-9)
    assert not np.allclose(one.reconstruct(X), plain.reconstruct(X), rtol=1e-6)
    if cls is Autoencoder:
        np.testing.assert_allclose(one.code_mean_, other.code_mean_, rtol=1e-8)
        np.testing.assert_allclose(one.code_covariance_, other.code_covariance_, rtol=1e-8)
    else:
        assert one.offset_ == pytest.approx(other.offset_, rel=1e-9)
        np.testing.assert_array_equal(one.predict(X), other.predict(X))


def test_score_with_weights_and_a_target():
    estimator = Autoencoder(**TINY).fit(X)
    weights = RNG.random(60)
    clean = X + 1
    errors = ((estimator.reconstruct(X) - clean) ** 2).mean(axis=1)
    assert estimator.score(X, clean, weights) == pytest.approx(-np.average(errors, weights=weights))
    assert estimator.score(X, RNG.integers(0, 3, 60)) == estimator.score(X)


@pytest.mark.parametrize("labels", [RNG.integers(0, 3, 60), ["a", "b"] * 30, pd.Series(range(60)), None])
def test_labels_are_ignored(labels):
    expected = Autoencoder(**TINY).fit(X).transform(X)
    assert Autoencoder(**TINY).fit(X, labels).transform(X).tobytes() == expected.tobytes()
    assert AutoencoderOutlierDetector(**TINY).fit(X, labels).n_features_in_ == 7


def test_logits_come_back_as_values_of_the_data(digits):
    """bce_with_logits is the stable form of a sigmoid and bce: they are one model."""
    rows = digits[0][:300]
    options = {"latent_dim": 4, "max_iter": 5, "random_state": 0, "alpha": 0}
    logits = Autoencoder(loss="bce_with_logits", **options).fit(rows)
    values = Autoencoder(loss="bce", **options).fit(rows)
    np.testing.assert_allclose(logits.reconstruct(rows), values.reconstruct(rows), rtol=1e-6)
    np.testing.assert_allclose(logits.score_samples(rows), values.score_samples(rows), rtol=1e-6)
    codes = logits.transform(rows)
    np.testing.assert_allclose(logits.inverse_transform(codes), logits.reconstruct(rows), rtol=1e-12)
    assert 0 < logits.sample(20, 0).min() < logits.sample(20, 0).max() < 1


# Going on -------------------------------------------------------------------------------------------------


def test_warm_start_goes_on():
    estimator = Autoencoder(warm_start=True, **TINY).fit(X)
    once = list(estimator.loss_curve_)
    estimator.fit(X)
    trainer = Trainer(
        estimator.trainer_.net, "mse", estimator.trainer_.optimizer, 60, "numpy", "float64", seed=seed_of(0)
    )
    curves = [trainer.fit(X, epochs=3).loss for _ in range(2)]
    assert estimator.loss_curve_ == curves[0] + curves[1]
    assert estimator.loss_curve_[:3] == once
    assert estimator.n_iter_ == 6
    assert estimator.transform(X).tobytes() == trainer.encode(X).tobytes()

    estimator.set_params(learning_rate_init=1e-9).fit(X)  # another optimiser, the weights as they were
    np.testing.assert_allclose(estimator.transform(X), trainer.encode(X), atol=1e-6)
    assert estimator.n_iter_ == 9
    before = estimator.transform(X)
    with pytest.raises(ValueError, match="warm_start: expected the network of the last fit"):
        estimator.set_params(latent_dim=3).fit(X)
    with pytest.raises(ValueError, match="features"):
        estimator.set_params(latent_dim=2).fit(X[:, :5])
    assert estimator.transform(X).tobytes() == before.tobytes()


def test_fit_begins_anew():
    estimator = Autoencoder(**TINY).fit(X[:, :5]).partial_fit(X[:, :5])
    assert estimator.fit(X).transform(X).tobytes() == Autoencoder(**TINY).fit(X).transform(X).tobytes()
    assert estimator.n_iter_ == 3


def test_partial_fit_learns_from_portions():
    estimator = Autoencoder(batch_size=8, **TINY)
    trainer = Trainer(
        layers_of(2, (3,), "relu", "linear"), "mse", Adam(1e-3, weight_decay=1e-4 / (8 * 7)), 8, "numpy",
        "float64", seed=seed_of(0),
    )  # fmt: skip
    losses = []
    for part in (X[:20], X[20:40].astype("float32"), X[40:].tolist()):
        estimator.partial_fit(part)
        losses.append(trainer.partial_fit(np.array(part, float)))
    assert estimator.loss_curve_ == losses
    assert estimator.n_iter_ == 3
    assert estimator.transform(X).tobytes() == trainer.encode(X).tobytes()
    clean = X + 1
    weights = np.arange(60.0)
    estimator.partial_fit(X, clean, weights)
    assert estimator.loss_ == trainer.partial_fit(X, clean, weights / weights.mean())
    with pytest.raises(ValueError, match="7 features"):
        estimator.partial_fit(X[:, :6])


def test_codes_of_earlier_portions_fade():
    """With a step too small to matter, the Gaussian is that of all codes; after many more, of the last."""
    estimator = Autoencoder(**TINY | {"learning_rate_init": 1e-12})
    estimator.partial_fit(X[:20]).partial_fit(X[20:50]).partial_fit(X[50:])
    codes = estimator.transform(X)
    np.testing.assert_allclose(estimator.code_mean_, codes.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(estimator.code_covariance_, np.cov(codes.T, bias=True), rtol=1e-6)
    for _ in range(300):
        estimator.partial_fit(X[:5] + 10)
    codes = estimator.transform(X[:5] + 10)
    np.testing.assert_allclose(estimator.code_mean_, codes.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(estimator.code_covariance_, np.cov(codes.T, bias=True), rtol=1e-6)


# What it is for -------------------------------------------------------------------------------------------


def test_a_code_of_two_holds_more_than_two_principal_components(digits):
    rows, _ = digits
    train, test = rows[:1500], rows[1500:]
    pca = PCA(2).fit(train)
    linear = mse(pca.inverse_transform(pca.transform(test)), test)
    options = {"hidden_layer_sizes": (128, 64), "batch_size": 64, "random_state": 0, "dtype": "float32"}
    estimator = Autoencoder(2, max_iter=60, **options).fit(train)
    assert -estimator.score(test) < 0.85 * linear
    assert -Autoencoder(2, max_iter=1, **options).fit(train).score(test) > linear


@pytest.mark.parametrize("way", ["clean y", "noise"])
def test_denoising_beats_principal_components(digits, way):
    rows, _ = digits
    rng = np.random.default_rng(0)
    noisy = rows + rng.normal(0, 0.3, rows.shape)
    model = Autoencoder(
        32, (128,), batch_size=64, max_iter=60, random_state=0, dtype="float32",
        noise=None if way == "clean y" else GaussianNoise(0.3),
    )  # fmt: skip
    model.fit(noisy[:1500], rows[:1500]) if way == "clean y" else model.fit(rows[:1500])
    best_linear = min(
        mse(p.inverse_transform(p.transform(noisy[1500:])), rows[1500:])
        for p in (PCA(k).fit(noisy[:1500]) for k in (4, 8, 12, 16, 24, 32))
    )
    cleaned = mse(model.reconstruct(noisy[1500:]), rows[1500:])
    assert cleaned < 0.9 * best_linear < 0.3**2
    assert model.score(noisy[1500:], rows[1500:]) == pytest.approx(-cleaned, rel=1e-4)


def test_outliers_beside_a_curved_surface():
    """Every marginal of theirs is normal, so a linear model of rank 2 or 3 sees little."""
    normal, strange = curved(1000, 0), curved(40, 1, shuffled=True)
    test = np.concatenate([curved(500, 2), curved(500, 3, shuffled=True)])
    label = np.repeat([1, 0], 500)
    options = {"hidden_layer_sizes": (32, 32), "activation": "tanh", "batch_size": 32, "random_state": 0}
    options |= {"learning_rate_init": 5e-3, "alpha": 0, "n_iter_no_change": 200}
    model = AutoencoderOutlierDetector(0.04, 2, max_iter=60, **options)
    train = np.concatenate([normal, strange])
    verdict = model.fit_predict(train)
    assert (verdict == -1).sum() == int(0.04 * 1040)
    assert (verdict[1000:] == -1).mean() > 0.5
    assert roc_auc_score(label, model.decision_function(test)) > 0.9
    pca = PCA(2).fit(train)
    linear = -((pca.inverse_transform(pca.transform(test)) - test) ** 2).mean(axis=1)
    assert roc_auc_score(label, linear) < 0.8
    untrained = AutoencoderOutlierDetector(0.04, 2, max_iter=1, **options).fit(train)
    assert roc_auc_score(label, untrained.decision_function(test)) < 0.8


@pytest.mark.parametrize("contamination", [0.5, 0.29, 0.1, 0.017, 1e-4])
def test_as_many_outliers_as_asked_for(backend, contamination):
    rows = np.random.default_rng(0).random((100, 4))
    model = AutoencoderOutlierDetector(contamination, backend=backend, random_state=0, **SMALL).fit(rows)
    found = model.predict(rows)
    assert (found == -1).sum() == {0.5: 50, 0.29: 29, 0.1: 10, 0.017: 1, 1e-4: 0}[contamination]
    alone = np.concatenate([model.predict(row[None]) for row in rows])  # other bits with BLAS, the same side
    np.testing.assert_array_equal(alone, found)
    np.testing.assert_array_equal(model.decision_function(rows), model.score_samples(rows) - model.offset_)


def test_samples_of_a_linear_model_have_the_moments_of_its_reconstructions():
    rows = np.random.default_rng(0).normal([5, -2, 1, 0], [2, 1, 0.5, 0.1], (400, 4)) @ np.eye(4)
    model = Autoencoder(
        2, (), max_iter=500, learning_rate_init=0.02, random_state=0, n_iter_no_change=500, alpha=0
    ).fit(rows)
    again = model.reconstruct(rows)
    drawn = model.sample(200_000, random_state=1)
    scale = again.std(axis=0).max()
    np.testing.assert_allclose(drawn.mean(axis=0), again.mean(axis=0), atol=0.02 * scale)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(again.T, bias=True), atol=0.02 * scale**2)
    wrong = model.inverse_transform(np.random.default_rng(1).normal(size=(200_000, 2)))
    assert abs(wrong.mean(axis=0) - again.mean(axis=0)).max() > 0.2 * scale


def test_samples_are_nearer_to_digits_than_decoded_noise(digits):
    rows, _ = digits
    model = Autoencoder(8, (128,), batch_size=64, max_iter=40, random_state=0, dtype="float32").fit(rows)

    def distance(drawn):
        return np.mean([np.sqrt(((rows - row) ** 2).sum(axis=1)).min() for row in drawn])

    noise = np.random.default_rng(0).normal(size=(100, 8))
    assert distance(model.sample(100, 0)) < 0.8 * distance(model.inverse_transform(noise))
    np.testing.assert_array_equal(model.sample(9, 3), model.sample(9, 3))
    np.testing.assert_array_equal(model.sample(9, np.random.RandomState(3)), model.sample(9, random_state=3))
    assert not np.array_equal(model.sample(9, 3), model.sample(9, 4))
    assert model.sample().shape == (1, 64)


# With the rest of scikit-learn ----------------------------------------------------------------------------


def test_in_a_pipeline_and_a_search_on_two_processes(digits):
    """The codes tell digits apart; the search finds the wider one."""
    rows, labels = digits[0][:600], digits[1][:600]
    pipeline = make_pipeline(
        MinMaxScaler(),
        Autoencoder(
            hidden_layer_sizes=(32,), batch_size=32, learning_rate_init=5e-3, random_state=0, backend="numpy"
        ),
        LogisticRegression(max_iter=500),
    )
    grid = {"autoencoder__latent_dim": [1, 10], "autoencoder__max_iter": [30]}
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2).fit(rows, labels)
    assert search.best_params_["autoencoder__latent_dim"] == 10
    one, ten = search.cv_results_["mean_test_score"]
    assert one < 0.6
    assert ten > 0.8
    alone = clone(pipeline).set_params(autoencoder__latent_dim=10, autoencoder__max_iter=30)
    alone.fit(rows, labels)
    np.testing.assert_array_equal(alone.predict(rows), search.predict(rows))
    plain = Autoencoder(hidden_layer_sizes=(), learning_rate_init=0.02, random_state=0, backend="numpy")
    by_score = GridSearchCV(plain, {"latent_dim": [1, 6]}, cv=2, n_jobs=2).fit(rows[:, 20:30])
    assert by_score.best_params_["latent_dim"] == 6


def test_weights_are_routed():
    with sklearn.config_context(enable_metadata_routing=True):
        model = Autoencoder(**TINY).set_fit_request(sample_weight=True)
        piped = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), model)
        weights = np.arange(60.0)
        piped.fit(X, sample_weight=weights)
    expected = Autoencoder(**TINY).fit(StandardScaler().fit_transform(X), sample_weight=weights)
    assert piped[-1].loss_curve_ == expected.loss_curve_


@pytest.mark.parametrize("cls", BOTH)
def test_clone_copy_and_pickle(backend, cls):
    net = fastae.models.autoencnet()
    rows = RNG.random((6, 225))
    model = cls(network=net, noise=MaskingNoise(0.1), backend=backend, max_iter=1, random_state=0).fit(rows)
    fresh = clone(model)
    assert fresh.network == net
    assert not hasattr(fresh, "trainer_")
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.trainer_ is not model.trainer_
        assert again.score_samples(rows).tobytes() == model.score_samples(rows).tobytes()
        assert again.network == net
        again.set_params(warm_start=True).fit(rows)  # may change, without the other
        assert again.n_iter_ == 2
        assert model.n_iter_ == 1
        assert again.score_samples(rows).tobytes() != model.score_samples(rows).tobytes()


def test_data_frames_in_and_out():
    frame = pd.DataFrame(X, columns=list("abcdefg"), index=range(100, 160))
    model = Autoencoder(latent_dim=3, **TINY).set_output(transform="pandas").fit(frame)
    codes = model.transform(frame)
    assert list(codes.columns) == ["autoencoder0", "autoencoder1", "autoencoder2"]
    assert list(codes.columns) == list(model.get_feature_names_out())
    assert list(codes.index) == list(frame.index)
    assert list(model.feature_names_in_) == list("abcdefg")
    expected = Autoencoder(latent_dim=3, **TINY).fit(X).transform(X)
    np.testing.assert_array_equal(codes.to_numpy(), expected)
    np.testing.assert_array_equal(model.inverse_transform(codes), model.reconstruct(frame))
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame[list("gfedcba")])


def test_the_backend_in_effect_is_used():
    with fastae.use_backend("numpy"):
        model = Autoencoder(**SMALL).fit(X)
        assert set(model.trainer_._engines) == {"numpy"}
    with fastae.use_backend("scalar"):
        model.transform(X)
    assert set(model.trainer_._engines) == {"numpy", "scalar"}


# scikit-learn's callbacks ---------------------------------------------------------------------------------


class Recorder:
    """A callback of scikit-learn: notes tasks, scores what is fitted so far, and asks for an end."""

    def __init__(self, last=None):
        self.last, self.events, self.scores = last, [], []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
        self.events.append(("end", context.task_name, context.task_id))
        self.scores.append(fitted_estimator.score_samples(X).mean())
        return context.task_name == "epoch" and context.task_id == self.last


@pytest.fixture
def callbacks():
    if not os.environ.get("CI"):
        pytest.importorskip("sklearn.callback")
    import sklearn.callback

    return sklearn.callback


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("cls", BOTH)
def test_callbacks_see_each_epoch(callbacks, cls, early):
    options = {**TINY, "max_iter": 5, "early_stopping": early}
    recorder = Recorder()
    model = cls(**options).set_callbacks(recorder).fit(X)
    epochs = [(when, "epoch", i) for i in range(5) for when in ("begin", "end")]
    assert recorder.events == ["setup", ("begin", "fit", 0), *epochs, ("end", "fit", 0), "teardown"]
    assert model.loss_curve_ == cls(**options).fit(X).loss_curve_
    for i in range(5):
        part = cls(**options | {"max_iter": i + 1, "early_stopping": False}).fit(X)
        if not early:
            assert recorder.scores[i] == part.score_samples(X).mean()
    assert recorder.scores[-1] == model.score_samples(X).mean()
    assert len(set(recorder.scores[:5])) == 5
    with pytest.raises(ValueError, match="latent_dim"):
        model.set_params(latent_dim=0).fit(X)


def test_callbacks_end_a_fit(callbacks):
    recorder = Recorder(last=1)
    model = Autoencoder(**TINY).set_callbacks(recorder).fit(X)
    assert model.n_iter_ == 2
    assert recorder.events[-3:] == [("end", "epoch", 1), ("end", "fit", 0), "teardown"]
    patient = Autoencoder(**TINY | {"max_iter": 50, "tol": 0.5, "n_iter_no_change": 4})
    recorder = Recorder()
    assert patient.set_callbacks(recorder).fit(X).n_iter_ == 5
    assert recorder.events.count(("end", "epoch", 4)) == 1
    assert ("begin", "epoch", 5) not in recorder.events


def test_the_callbacks_of_scikit_learn_work_through_a_pipeline(callbacks):
    monitor = callbacks.ScoringMonitor(scoring=lambda model, X, y: {"score": model.score(X, y)})
    Autoencoder(**TINY).set_callbacks(monitor).fit(X)
    scores = [row["score"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    expected = [Autoencoder(**TINY | {"max_iter": i}).fit(X).score(X) for i in (1, 2, 3)]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)

    class Everywhere(Recorder):
        max_propagation_depth = None

    recorder = Everywhere()
    recorder.on_fit_task_end = lambda estimator, context: recorder.events.append(context.task_name)
    piped = make_pipeline(StandardScaler(), Autoencoder(**TINY)).set_callbacks(recorder)
    piped.fit(X)
    assert recorder.events.count("epoch") == 3


# Networks -------------------------------------------------------------------------------------------------


def test_rows_of_images_are_flat():
    """A network whose rows have three dimensions takes and gives rows of their product."""
    rows = RNG.random((30, 12))
    options = {"max_iter": 4, "backend": "numpy", "random_state": 0}
    net = Network([Flatten(), Dense(2)], [Dense(4, "tanh"), Dense(12), Reshape((1, 3, 4))], (1, 3, 4))
    model = Autoencoder(network=net, **options).fit(rows)
    same = Network([Dense(2)], [Dense(4, "tanh"), Dense(12)], 12)
    expected = Autoencoder(network=same, **options).fit(rows)
    assert model.loss_curve_ == expected.loss_curve_
    assert model.transform(rows).tobytes() == expected.transform(rows).tobytes()
    assert model.reconstruct(rows).shape == (30, 12)
    assert model.score_samples(rows).tobytes() == expected.score_samples(rows).tobytes()
    assert model.sample(5, 0).tobytes() == expected.sample(5, 0).tobytes()
    early = [Autoencoder(network=n, early_stopping=True, **options).fit(rows) for n in (net, same)]
    assert early[0].validation_scores_ == early[1].validation_scores_
    parts = [Autoencoder(network=n, **options).partial_fit(rows) for n in (net, same)]
    assert parts[0].loss_curve_ == parts[1].loss_curve_
    detectors = [AutoencoderOutlierDetector(network=n, **options).fit(rows) for n in (net, same)]
    assert detectors[0].offset_ == detectors[1].offset_


def test_a_code_that_is_an_image(backend):
    """Codes of a convolutional network are rows too, and come back through the decoder."""
    net = Network(
        [Conv2D(2, 3, padding="same", activation="relu"), MaxPool2D(2)],
        [Upsample2D(2), Conv2D(1, 3, padding="same")],
        (1, 4, 6),
    )
    rows = RNG.random((20, 24))
    model = Autoencoder(network=net, max_iter=3, backend=backend, random_state=0).fit(rows)
    codes = model.transform(rows)
    assert codes.shape == (20, 12)
    assert len(model.get_feature_names_out()) == 12
    np.testing.assert_allclose(model.inverse_transform(codes), model.reconstruct(rows), rtol=1e-12)
    assert model.sample(3, 0).shape == (3, 24)
    assert model.loss_curve_[-1] < model.loss_curve_[0]


def test_a_network_may_put_out_other_rows_than_it_takes():
    net = Network([Dense(2)], [Dense(3)], 7)
    target = X[:, :3] ** 2
    model = Autoencoder(network=net, max_iter=4, backend="numpy", random_state=0).fit(X, target)
    assert model.reconstruct(X).shape == (60, 3)
    assert model.score(X, target) == pytest.approx(-mse(model.reconstruct(X), target))
    with pytest.raises(ValueError, match="3 outputs for 7 features"):
        model.score_samples(X)
    with pytest.raises(ValueError, match="network: expected an output of 7 features"):
        clone(model).fit(X)


# Bad input ------------------------------------------------------------------------------------------------

WRONG = [
    ({"latent_dim": 0}, "latent_dim: expected at least 1, given 0"),
    ({"latent_dim": 2.0}, "latent_dim: expected an int, given float 2.0"),
    ({"hidden_layer_sizes": (3, 0)}, r"hidden_layer_sizes\[1\]: expected at least 1, given 0"),
    ({"hidden_layer_sizes": "ab"}, r"hidden_layer_sizes\[0\]: expected an int"),
    ({"activation": "swish"}, "activation: expected one of linear, relu.*given 'swish'"),
    ({"output_activation": 3}, "output_activation: expected one of"),
    ({"loss": "bce", "output_activation": "relu"}, "output_activation: expected sigmoid"),
    ({"loss": "bce_with_logits", "output_activation": "sigmoid"}, "bce_with_logits takes logits"),
    ({"loss": "hinge"}, "loss must be one of"),
    ({"network": [3, 2, 3]}, "network: expected a Network or None, given list"),
    ({"network": Network([Dense(2)], [Dense(8)], 8)}, r"network: expected an input of 7 features.*\(8,\)"),
    ({"network": Network([Dense(2)], [Dense(8)], 7)}, r"network: expected an output of 7 features.*\(8,\)"),
    ({"network": Network([Activation("relu")], [Activation("relu")], 7)}, "trainable parameters"),
    ({"solver": "lbfgs"}, "solver: expected adam, sgd or a fastae.Optimizer, given 'lbfgs'"),
    ({"alpha": -1}, "alpha must be finite and >= 0; got -1"),
    ({"batch_size": "all"}, "batch_size: expected an int or 'auto', given 'all'"),
    ({"batch_size": 0}, "batch_size: expected at least 1, given 0"),
    ({"learning_rate_init": 0}, "learning_rate_init must be finite and > 0; got 0"),
    ({"max_iter": 0}, "max_iter: expected at least 1, given 0"),
    ({"shuffle": 1}, "shuffle: expected True or False, given 1"),
    ({"tol": float("nan")}, "tol must be finite"),
    ({"verbose": 3}, "verbose: expected at least 0, at most 2, given 3"),
    ({"momentum": 1, "solver": "sgd"}, r"momentum must be finite and in \[0, 1\); got 1"),
    ({"validation_fraction": 1.0}, r"validation_fraction must be finite and in \(0, 1\); got 1.0"),
    ({"validation_fraction": 1e-3, "early_stopping": True}, "validation_fraction: expected a share.*60 rows"),
    ({"n_iter_no_change": 0}, "n_iter_no_change: expected at least 1, given 0"),
    ({"noise": 0.1}, "noise: expected GaussianNoise, MaskingNoise or None, given 0.1"),
    ({"backend": "fortran"}, "backend: expected one of|unknown backend"),
    ({"backend": "numpy", "n_threads": 2}, "thread"),
    ({"dtype": "float16"}, "dtype: expected float32 or float64, given 'float16'"),
    ({"random_state": "dice"}, "dice"),
]


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(("parameters", "message"), WRONG, ids=[str(p)[:50] for p, _ in WRONG])
def test_wrong_parameters(cls, parameters, message):
    """One line that says what; nothing is fitted then, and what was before stays."""
    model = cls(**TINY).fit(X)
    before = model.score_samples(X)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        model.set_params(**parameters).fit(X)
    assert "\n" not in str(caught.value)
    assert model.score_samples(X).tobytes() == before.tobytes()
    fresh = cls(**TINY | parameters)
    calls = [fresh.fit]
    if cls is Autoencoder and "early_stopping" not in parameters:  # partial_fit holds nothing back
        calls.append(fresh.partial_fit)
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=message):
            call(X)
        assert not hasattr(fresh, "trainer_")


@pytest.mark.parametrize("share", [0, -0.1, 0.51, 1, float("nan"), "auto", None, True])
def test_wrong_contamination(share):
    with pytest.raises(
        ValueError, match=r"contamination must be (a number|finite and in \(0, 0.5\])"
    ) as caught:
        AutoencoderOutlierDetector(share, **TINY).fit(X)
    assert "\n" not in str(caught.value)


HOLED = np.where(np.arange(420).reshape(60, 7) == 38, np.nan, X)
ROWS = [
    ((HOLED,), {}, "Input X contains NaN"),
    ((X[:0],), {}, "0 sample"),
    ((X[0],), {}, "1D array"),
    ((np.array([["a"] * 7]),), {}, "could not convert string"),
    ((X, X[:59]), {}, r"y: expected None, labels .*\(60, 7\); given shape \(59, 7\)"),
    ((X, X[:, :6]), {}, r"given shape \(60, 6\)"),
    ((X, HOLED), {}, "Input y contains NaN"),
    ((X, None, np.ones(59)), {}, r"sample_weight.shape == \(59,\)"),
    ((X, None, np.full(60, -1.0)), {}, "sample_weight: expected weights >= 0.*the least given is -1"),
    ((X, None, np.zeros(60)), {}, "one or more of them > 0|at least one non-zero"),
    ((X + 0.5,), {"loss": "bce"}, r"X: expected values from 0 to 1, as the loss bce takes them"),
    ((X, X - 0.5), {"loss": "bce_with_logits"}, "y: expected values from 0 to 1, as the loss bce_with"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "parameters", "message"), ROWS, ids=[m[:30] for _, _, m in ROWS])
def test_wrong_rows(arguments, parameters, message):
    model = Autoencoder(**TINY, **parameters)
    for call in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=message):
            call(*arguments)
        assert not hasattr(model, "trainer_")


def test_wrong_rows_of_a_fitted_one():
    model = Autoencoder(latent_dim=3, **TINY)
    for call in (
        model.transform,
        model.inverse_transform,
        model.reconstruct,
        model.score_samples,
        model.score,
    ):
        with pytest.raises(NotFittedError):
            call(X)
    for call in (model.sample, model.get_feature_names_out, lambda: model.save("nowhere")):
        with pytest.raises(NotFittedError):
            call()
    model.fit(X)
    for call in (model.transform, model.reconstruct, model.score_samples, model.score):
        with pytest.raises(ValueError, match="X has 6 features, but Autoencoder is expecting 7"):
            call(X[:, :6])
    with pytest.raises(ValueError, match="X: expected 3 codes a row, given 7"):
        model.inverse_transform(X)
    for n in (0, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="n: expected"):
            model.sample(n)


def test_a_fit_that_diverges_leaves_the_last_one():
    model = Autoencoder(**TINY).fit(X)
    before = model.transform(X)
    model.set_params(solver="sgd", learning_rate_init=1e6, max_iter=100, alpha=0)
    with pytest.raises(fastae.DivergenceError, match="training diverged"), np.errstate(all="ignore"):
        model.fit(X * 100)
    assert model.transform(X).tobytes() == before.tobytes()


# Files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files():
    if not os.environ.get("CI"):
        pytest.importorskip("safetensors")


def attributes(model):
    """All that a fit leaves, but for the trainer."""
    return {k: v for k, v in vars(model).items() if k.endswith("_") and k != "trainer_"}


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"hidden_layer_sizes": np.array([4, 3]), "latent_dim": np.int64(2), "tol": np.float64(1e-5)},
        {"network": NET, "solver": RMSprop(0.01), "noise": MaskingNoise(0.2), "loss": huber(0.5)},
        {
            "early_stopping": True,
            "dtype": np.float32,
            "batch_size": 8,
            "random_state": np.random.RandomState(0),
        },
        {"loss": "bce", "hidden_layer_sizes": 3, "random_state": None, "n_threads": 1, "warm_start": True},
    ],
)
def test_a_file_gives_the_estimator_back(files, tmp_path, backend, cls, parameters):
    frame = pd.DataFrame(X, columns=list("abcdefg"))
    model = cls(**{**SMALL, "backend": backend, "random_state": 0, **parameters}).fit(frame)
    model.save(tmp_path / "model.safetensors")
    again = fastae.load(tmp_path / "model.safetensors")
    assert type(again) is cls
    assert again.score_samples(frame).tobytes() == model.score_samples(frame).tobytes()
    assert attributes(again).keys() == attributes(model).keys()
    for name, value in attributes(model).items():
        np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)
    for name, value in model.get_params().items():
        if name == "random_state" and not isinstance(value, int):
            assert again.random_state is None
        elif name == "hidden_layer_sizes":
            np.testing.assert_array_equal(again.hidden_layer_sizes, value)
        elif name == "dtype" and value is not None:
            assert np.dtype(again.dtype) == value
        else:
            assert getattr(again, name) == value, name
    with pytest.raises(ValueError, match="feature names"):
        again.score_samples(frame[list("gfedcba")])
    if cls is AutoencoderOutlierDetector:
        np.testing.assert_array_equal(again.predict(frame), model.predict(frame))
        return
    assert again.sample(5, 1).tobytes() == model.sample(5, 1).tobytes()
    for one in (model, again):  # the state of the optimiser too
        one.partial_fit(frame)
    assert again.transform(frame).tobytes() == model.transform(frame).tobytes()
    np.testing.assert_array_equal(again.code_covariance_, model.code_covariance_)


def test_another_backend_may_be_asked_for(files, tmp_path):
    model = Autoencoder(**TINY).fit(X)
    model.save(tmp_path / "a")
    again = fastae.load(tmp_path / "a", backend="scalar", n_threads=1)
    assert (again.backend, again.n_threads) == ("scalar", 1)
    np.testing.assert_allclose(again.transform(X), model.transform(X), rtol=1e-12)
    assert set(again.trainer_._engines) == {"scalar"}


def test_saving_needs_right_parameters(files, tmp_path):
    model = Autoencoder(**TINY).fit(X)
    with pytest.raises(ValueError, match="latent_dim"):
        model.set_params(latent_dim=0).save(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_a_file_of_an_estimator_needs_scikit_learn(files, tmp_path, monkeypatch):
    Autoencoder(**TINY).fit(X).save(tmp_path / "a")
    for name in [name for name in sys.modules if name.startswith("fastae.estimators")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(fastae, "estimators", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r'pip install "fastae\[sklearn\]"'):
        fastae.load(tmp_path / "a")


def forge(path, change):
    """Change the declaration of a file, or its arrays, and make the checksum right."""
    import safetensors.numpy

    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    declared = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["fastae"])
    held = safetensors.numpy.load(content)
    change(declared, held)
    content = safetensors.numpy.save(held, {"fastae": json.dumps(declared), "sha256": "0" * 64})
    path.write_bytes(content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1))


def parameter(name, value):
    return lambda declared, held: declared["estimator"]["parameters"].update({name: value})


def fitted(name, value):
    return lambda declared, held: declared["estimator"]["fitted"].update({name: value})


def array(name, value):
    return lambda declared, held: held.update({f"estimator/{name}": np.asarray(value, float)})


HOSTILE = {
    "kind": lambda d, h: d["estimator"].update(type="os.system"),
    "other kind": lambda d, h: d["estimator"].update(type="AutoencoderOutlierDetector"),
    "kind of a list": lambda d, h: d["estimator"].update(type=["Autoencoder"]),
    "none": lambda d, h: d.update(estimator=None),
    "field": lambda d, h: d["estimator"].update(more=1),
    "no field": lambda d, h: d["estimator"].pop("fitted"),
    "parameters": lambda d, h: d["estimator"].update(parameters=[]),
    "no parameter": lambda d, h: d["estimator"]["parameters"].pop("tol"),
    "more parameters": parameter("__class__", "x"),
    "latent_dim": parameter("latent_dim", -1),
    "hidden": parameter("hidden_layer_sizes", [[3]]),
    "hidden dict": parameter("hidden_layer_sizes", {"type": "dense"}),
    "network": parameter("network", {"type": "os"}),
    "network text": parameter("network", "autoencnet"),
    "noise": parameter("noise", {"type": "dense", "units": 3}),
    "solver": parameter("solver", {"type": "__import__"}),
    "loss": parameter("loss", {"type": []}),
    "backend": parameter("backend", "../x"),
    "random_state": parameter("random_state", [1, 2]),
    "dtype": parameter("dtype", "object"),
    "names": fitted("feature_names_in", ["a"]),
    "names of numbers": fitted("feature_names_in", [1, 2, 3, 4, 5, 6, 7]),
    "names of a text": fitted("feature_names_in", "abcdefg"),
    "more fitted": fitted("offset", 1.0),
    "weight": fitted("codes_weight", -1.0),
    "weight of a text": fitted("codes_weight", "1"),
    "curve": array("loss_curve", []),
    "curve of rows": array("loss_curve", [[1.0]]),
    "scores": array("validation_scores", [[1.0]]),
    "mean": array("code_mean", [0.0]),
    "mean of nothing": array("code_mean", [0.0, np.nan]),
    "covariance": array("code_covariance", np.zeros((3, 3))),
    "no array": lambda d, h: h.pop("estimator/code_mean"),
    "array not named": lambda d, h: d["estimator"]["arrays"].remove("code_mean"),
    "array twice": lambda d, h: d["estimator"]["arrays"].append("code_mean"),
    "more arrays": lambda d, h: (d["estimator"]["arrays"].append("x"), h.update({"estimator/x": np.ones(2)})),
    "float32": lambda d, h: h.update({"estimator/code_mean": np.zeros(2, np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(files, tmp_path, what):
    path = tmp_path / "a"
    Autoencoder(**TINY).fit(X).save(path)
    forge(path, lambda declared, held: None)
    assert type(fastae.load(path)) is Autoencoder
    forge(path, HOSTILE[what])
    with pytest.raises(CheckpointError, match="is not a checkpoint of fastae") as caught:
        fastae.load(path)
    assert caught.value.reason == "invalid"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, float("1e400"), "1", True])
def test_hostile_offset(files, tmp_path, value):
    path = tmp_path / "a"
    AutoencoderOutlierDetector(**TINY).fit(X).save(path)
    forge(path, fitted("offset", value))
    with pytest.raises(CheckpointError, match="is not a checkpoint of fastae"):
        fastae.load(path)


def test_a_trainer_does_not_go_on_from_the_file_of_an_estimator(files, tmp_path):
    model = Autoencoder(**TINY).fit(X)
    model.save(tmp_path / "a")
    trainer = pickle.loads(pickle.dumps(model.trainer_))
    with pytest.raises(CheckpointError, match="no fit to go on with"):
        trainer.fit(X, epochs=9, callbacks=[EarlyStopping("loss")], resume=tmp_path / "a")


def test_takes_arrays_of_other_libraries(foreign, same_bits):
    rng = np.random.default_rng(0)
    X, weight = rng.uniform(size=(30, 6)), rng.uniform(size=30)

    def fitted(show):
        ae = fastae.Autoencoder(3, (), batch_size=8, max_iter=2, random_state=0, backend="numpy")
        ae.fit(show(X), show(X[:, ::-1].copy()), sample_weight=show(weight))
        return [ae.transform(show(X)), ae.inverse_transform(show(ae.transform(X)))]

    for one, other in zip(fitted(foreign), fitted(lambda array: array), strict=True):
        same_bits(one, other, "with arrays of another library")

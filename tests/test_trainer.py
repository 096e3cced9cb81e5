"""The Trainer: what it refuses, what it repeats, what it leaves behind when a fit ends early."""

import _thread
import gc
import io
import os
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from fastae.backend import use_backend
from fastae.callbacks import Callback, CosineDecay, EarlyStopping, Progress, ReduceOnPlateau
from fastae.engine import Engine
from fastae.fitting import Order
from fastae.layers import Activation, BatchNorm, Dense, Dropout, GaussianNoise, MaskingNoise
from fastae.models import autoencnet
from fastae.network import Network
from fastae.optimizers import SGD, Adam, AdamW
from fastae.trainer import DivergenceError, History, Trainer
from fastae.worker import Job

WIDTH, CODE = 9, 4


def small_net(target_width=WIDTH, activation="linear"):
    return Network(
        encoder=[Dense(6, "tanh", name="a"), Dense(CODE, "relu", name="b")],
        decoder=[Dense(target_width, activation, name="c")],
        input_shape=WIDTH,
    )


def make(net=None, **arguments):
    defaults = {"optimizer": SGD(0.05), "batch_size": 8, "backend": "numpy", "dtype": "float64", "seed": 4}
    return Trainer(net or small_net(), **{**defaults, **arguments})


def rows(n, width=WIDTH, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(dtype)


def same_weights(first, second):
    assert first.keys() == second.keys()
    return all(np.array_equal(first[name], second[name]) for name in first)


def updates_held(trainer):
    """Updates that the weights have seen, as the arena's header has it."""
    return trainer._current.header[0]


def finite(trainer):
    return all(np.isfinite(value).all() for value in trainer.weights.values())


def reference_fit(weights, x, target, orders, batch_size, learning_rate, loss, sample_weight=None):
    """Losses of every batch and final weights of `small_net`, straight from the formulas."""
    factor = np.ones(len(x)) if sample_weight is None else np.asarray(sample_weight, float)
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    losses = []
    for order in orders:
        for i in range(0, len(order), batch_size):
            chosen = order[i : i + batch_size]
            h0, t = x[chosen], target[chosen]
            h1 = np.tanh(h0 @ w["a.weight"] + w["a.bias"])
            h2 = np.maximum(h1 @ w["b.weight"] + w["b.bias"], 0)
            y = h2 @ w["c.weight"] + w["c.bias"]
            share = factor[chosen, None] / (y.size if loss == "mse" else 1)
            losses.append((share * (y - t) ** 2).sum())
            d3 = 2 * (y - t) * share
            d2 = (d3 @ w["c.weight"].T) * (h2 > 0)
            d1 = (d2 @ w["b.weight"].T) * (1 - h1**2)
            for name, inputs, d in (("c", h2, d3), ("b", h1, d2), ("a", h0, d1)):
                w[f"{name}.weight"] -= learning_rate * inputs.T @ d
                w[f"{name}.bias"] -= learning_rate * d.sum(axis=0)
    return np.array(losses), w


class Recorder:
    """A callback that keeps what it is told."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.epochs, self.progress, self.ended = [], [], 0

    def on_epoch_end(self, trainer, epoch, logs):
        self.epochs.append((epoch, logs))
        return epoch == self.stop_after

    def on_progress(self, done, total):
        self.progress.append((done, total))

    def on_fit_end(self, trainer):
        self.ended += 1


def record_orders(monkeypatch):
    """Orders of the rows of every training epoch from now on."""
    draw, orders = Order.draw, []

    def spy(self):
        orders.append(draw(self))
        return orders[-1]

    monkeypatch.setattr(Order, "draw", spy)
    return orders


# Bad input ------------------------------------------------------------------------------------------------

GOOD = rows(20)
NAN, INFINITE = GOOD.copy(), GOOD.copy()
NAN[3, 2], INFINITE[19, 8] = np.nan, -np.inf
READ_ONLY = np.empty((20, CODE))
READ_ONLY.flags.writeable = False
UNALIGNED = np.zeros(GOOD.nbytes + 1, np.uint8)[1:].view(np.float64).reshape(GOOD.shape)

BAD_DATA = {
    "list": (GOOD.tolist(), TypeError, ["an ndarray", "list"]),
    "masked": (np.ma.masked_array(GOOD), TypeError, ["an ndarray", "MaskedArray"]),
    "float32": (GOOD.astype(np.float32), TypeError, ["float64", "float32"]),
    "integers": (GOOD.astype(np.int64), TypeError, ["float64", "int64"]),
    "other byte order": (GOOD.astype(">f8"), TypeError, ["float64", ">f8"]),
    "objects": (GOOD.astype(object), TypeError, ["float64", "object"]),
    "no dimension": (np.array(1.0), ValueError, ["(N, 9)", "()"]),
    "one dimension": (GOOD[0], ValueError, ["(N, 9)", "(9,)"]),
    "three dimensions": (GOOD.reshape(20, 3, 3), ValueError, ["(N, 9)", "(20, 3, 3)"]),
    "width": (rows(20, 8), ValueError, ["(N, 9)", "(20, 8)"]),
    "no rows": (GOOD[:0], ValueError, ["one or more rows", "(0, 9)"]),
    "Fortran order": (np.asfortranarray(GOOD), ValueError, ["C-contiguous", "(8, 160)"]),
    "every other row": (GOOD[::2], ValueError, ["C-contiguous", "(144, 8)"]),
    "unaligned": (UNALIGNED, ValueError, ["aligned"]),
    "NaN": (NAN, ValueError, ["finite", "nan", "row 3, column 2"]),
    "infinity": (INFINITE, ValueError, ["finite", "-inf", "row 19, column 8"]),
}

ARGUMENTS_OF_FIT = [
    ({"epochs": 0}, ValueError, ["epochs", "at least 1", "0"]),
    ({"epochs": 2.0}, TypeError, ["epochs", "int", "2.0"]),
    ({"epochs": True}, TypeError, ["epochs", "int", "True"]),
    ({"sampling": "random"}, ValueError, ["sampling", "shuffle, replacement, sequential", "random"]),
    ({"sampling": None}, ValueError, ["sampling", "None"]),
    ({"steps_per_epoch": 0}, ValueError, ["steps_per_epoch", "at least 1"]),
    ({"steps_per_epoch": 4}, ValueError, ["steps_per_epoch", "at most 3", "shuffle", "given 4"]),
    ({"steps_per_epoch": 4, "sampling": "sequential"}, ValueError, ["steps_per_epoch", "at most 3"]),
    ({"steps_per_epoch": 1.5}, TypeError, ["steps_per_epoch", "int", "1.5"]),
    ({"verbose": 3}, ValueError, ["verbose", "at most 2", "3"]),
    ({"verbose": "yes"}, TypeError, ["verbose", "int", "yes"]),
    ({"callbacks": Progress()}, TypeError, ["callbacks", "iterable", "Progress"]),
    ({"callbacks": [print]}, TypeError, ["callbacks[0]", "on_epoch_end"]),
    ({"callbacks": 3}, TypeError, ["callbacks", "iterable", "int"]),
    ({"target": GOOD[:10]}, ValueError, ["target", "20 rows", "10"]),
    ({"target": NAN}, ValueError, ["target", "finite", "row 3, column 2"]),
    ({"target": rows(20, 5)}, ValueError, ["target", "(N, 9)", "(20, 5)"]),
    ({"validation_data": (GOOD,)}, ValueError, ["validation_data", "(X, target)", "tuple of 1"]),
    ({"validation_data": [GOOD, GOOD]}, TypeError, ["validation_data", "an ndarray", "list"]),
    ({"validation_data": NAN}, ValueError, ["validation_data", "finite"]),
    ({"validation_data": rows(3, 8)}, ValueError, ["validation_data", "(N, 9)", "(3, 8)"]),
    ({"validation_data": (GOOD, None, [1.0])}, ValueError, ["validation_data[2]", "(20,)", "(1,)"]),
    ({"validation_split": 0.1, "validation_data": GOOD}, ValueError, ["validation_split", "validation_data"]),
    ({"validation_split": 0.0}, ValueError, ["validation_split", "0"]),
    ({"validation_split": 1}, ValueError, ["validation_split", "1"]),
    ({"validation_split": 0.01}, ValueError, ["validation_split", "20 rows", "0.01"]),
    ({"validation_split": 0.99}, ValueError, ["validation_split", "20 rows", "0.99"]),
    ({"validation_split": "half"}, ValueError, ["validation_split", "half"]),
    ({"validation_split": np.nan}, ValueError, ["validation_split", "nan"]),
    ({"sample_weight": np.ones(19)}, ValueError, ["sample_weight", "(20,)", "(19,)"]),
    ({"sample_weight": np.ones((20, 1))}, ValueError, ["sample_weight", "(20,)", "(20, 1)"]),
    ({"sample_weight": 2.0}, ValueError, ["sample_weight", "(20,)", "()"]),
    ({"sample_weight": [1.0] * 19 + [-1.0]}, ValueError, ["sample_weight", "-1.0", "row 19"]),
    ({"sample_weight": [np.nan] * 20}, ValueError, ["sample_weight", "finite", "nan", "row 0"]),
    ({"sample_weight": [1.0, np.inf] * 10}, ValueError, ["sample_weight", "finite", "inf", "row 1"]),
    ({"sample_weight": ["a"] * 20}, TypeError, ["sample_weight", "real"]),
    ({"sample_weight": np.ones(20, complex)}, TypeError, ["sample_weight", "real", "complex128"]),
    ({"sample_weight": np.ma.masked_array(np.ones(20))}, TypeError, ["sample_weight", "MaskedArray"]),
    ({"callbacks": [EarlyStopping()]}, ValueError, ["EarlyStopping", "validation data", "val_loss"]),
    ({"resume": True}, ValueError, ["resume", "True", "no such fit"]),
    ({"validation_data": (GOOD, GOOD[:3])}, ValueError, ["validation_data[1]", "20 rows", "3"]),
    ({"target": GOOD, "validation_data": GOOD}, ValueError, ["validation_data", "(X, target)", "X alone"]),
]

ARGUMENTS_OF_TRAINER = [
    ({"net": "autoencnet"}, TypeError, ["net", "Network", "str"]),
    ({"loss": "hinge"}, ValueError, ["loss", "mse", "hinge"]),
    ({"optimizer": "newton"}, ValueError, ["optimizer", "sgd", "newton"]),
    ({"optimizer": SGD}, ValueError, ["optimizer"]),
    ({"batch_size": 0}, ValueError, ["batch_size", "at least 1", "0"]),
    ({"batch_size": 8.0}, TypeError, ["batch_size", "int", "8.0"]),
    ({"batch_size": True}, TypeError, ["batch_size", "int", "True"]),
    ({"backend": "fortran"}, ValueError, ["backend", "scalar, numpy, numba, cython", "fortran"]),
    ({"backend": 1}, TypeError, ["backend", "name", "int"]),
    ({"dtype": "float16"}, ValueError, ["dtype", "float32 or float64", "float16"]),
    ({"dtype": None}, ValueError, ["dtype", "None"]),
    ({"dtype": "reals"}, ValueError, ["dtype", "reals"]),
    ({"dtype": ">f8"}, ValueError, ["dtype", ">f8"]),
    ({"n_threads": 0}, ValueError, ["n_threads", "at least 1", "0"]),
    ({"n_threads": "two"}, TypeError, ["n_threads", "int", "two"]),
    ({"seed": -1}, ValueError, ["seed", "at least 0", "-1"]),
    ({"seed": 2**63}, ValueError, ["seed", "at most", str(2**63)]),
    ({"seed": 1.5}, TypeError, ["seed", "int", "1.5"]),
    ({"noise": 0.1}, TypeError, ["noise", "GaussianNoise", "0.1"]),
    ({"noise": Dropout(0.1)}, TypeError, ["noise", "GaussianNoise", "Dropout"]),
]


def refuses(error, texts, call, *arguments, **named):
    with pytest.raises(error) as caught:
        call(*arguments, **named)
    assert type(caught.value) is error
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused_before_anything_changes(case):
    bad, error, texts = BAD_DATA[case]
    trainer = make()
    trainer.fit(GOOD, epochs=1)
    weights, history = trainer.weights, trainer.history
    refuses(error, ["X", *texts], trainer.fit, bad)
    refuses(error, ["target", *texts], trainer.fit, GOOD, bad)
    refuses(error, ["validation_data", *texts], trainer.fit, GOOD, validation_data=(bad, GOOD))
    refuses(error, ["X", *texts], trainer.evaluate, bad)
    if case not in ("NaN", "infinity"):
        refuses(error, ["X", *texts], trainer.encode, bad)
        refuses(error, ["X", *texts], trainer.reconstruct, bad)
    assert same_weights(trainer.weights, weights)
    assert trainer.history is history


@pytest.mark.parametrize(("arguments", "error", "texts"), ARGUMENTS_OF_FIT)
def test_bad_arguments_of_fit(arguments, error, texts):
    trainer = make()
    weights = trainer.weights
    refuses(error, texts, trainer.fit, GOOD, **arguments)
    assert same_weights(trainer.weights, weights)
    assert trainer.history.updates == 0


@pytest.mark.parametrize(("arguments", "error", "texts"), ARGUMENTS_OF_TRAINER)
def test_bad_arguments_of_the_trainer(arguments, error, texts):
    refuses(error, texts, Trainer, **{"net": small_net(), **arguments})


@pytest.mark.parametrize(
    ("out", "error", "texts"),
    [
        ([0.0], TypeError, ["an ndarray", "list"]),
        (np.empty((20, CODE), np.float32), TypeError, ["float64", "float32"]),
        (np.empty((19, CODE)), ValueError, ["(20, 4)", "(19, 4)"]),
        (np.empty(20 * CODE), ValueError, ["(20, 4)", "(80,)"]),
        (np.empty((CODE, 20)).T, ValueError, ["C-contiguous"]),
        (READ_ONLY, ValueError, ["writable"]),
    ],
)
def test_bad_out(out, error, texts):
    refuses(error, ["out", *texts], make().encode, GOOD, out=out)


def test_out_must_not_overlap():
    block = rows(40)
    before = block.copy()
    refuses(ValueError, ["out", "overlaps"], make().reconstruct, block[:20], out=block[19:39])
    np.testing.assert_array_equal(block, before)


def test_bad_code():
    refuses(ValueError, ["Z", "(N, 4)", "(20, 9)"], make().decode, GOOD)


def test_bad_weights_leave_the_old_ones():
    trainer = Trainer.from_recipe(autoencnet(12, 4), backend="numpy", seed=0)
    good: dict[str, Any] = trainer.weights
    bad: dict[str, tuple[Any, type[Exception], list[str]]] = {
        "missing": ({k: v for k, v in good.items() if k != "out.bias"}, ValueError, ["out.bias"]),
        "unknown": ({**good, "extra": np.zeros(3)}, ValueError, ["extra"]),
        "shape": ({**good, "out.bias": np.zeros(3)}, ValueError, ["out.bias", "(12,)", "(3,)"]),
        "NaN": ({**good, "out.bias": np.full(12, np.nan)}, ValueError, ["out.bias", "finite"]),
        "text": ({**good, "out.bias": np.full(12, "a")}, TypeError, ["out.bias", "real"]),
        "identity": ({**good, "rec.weight": 2 * np.eye(4)}, ValueError, ["rec.weight", "identity"]),
        "zeros": ({**good, "rec.bias": np.ones(4)}, ValueError, ["rec.bias", "zeros"]),
        "no dict": ([1, 2], TypeError, ["weights", "dict", "list"]),
    }
    for weights, error, texts in bad.values():
        if isinstance(weights, dict):
            weights["in.weight"] = good["in.weight"] + 1
        refuses(error, texts, trainer.set_weights, weights)
        assert same_weights(trainer.weights, good)


def test_threads_where_there_are_none(backend):
    if backend in ("scalar", "numpy"):
        refuses(ValueError, ["n_threads", "1", "2"], make(backend=backend, n_threads=2).fit, GOOD)
    else:
        one, two = (make(backend=backend, n_threads=n) for n in (1, 2))
        one.fit(GOOD, epochs=2)
        two.fit(GOOD, epochs=2)
        assert same_weights(one.weights, two.weights)


def test_a_missing_target_where_shapes_differ():
    trainer = make(small_net(5))
    refuses(ValueError, ["target", "(5,)", "(9,)", "None"], trainer.fit, GOOD)
    trainer.fit(GOOD, rows(20, 5), epochs=1)


def test_nothing_to_train():
    net = Network([Activation("relu")], [Activation("linear")], WIDTH)
    refuses(ValueError, ["trainable"], make(net).fit, GOOD)


def test_no_recipe():
    refuses(ValueError, ["recipe"], Trainer.from_recipe, small_net())


# Training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "sse"])
@pytest.mark.parametrize(("n", "batch_size"), [(21, 8), (16, 8), (5, 8), (8, 1)])
def test_batches_and_the_last_partial_one(backend, loss, n, batch_size):
    rate = 0.05 if loss == "mse" else 0.002
    trainer = make(backend=backend, loss=loss, batch_size=batch_size, optimizer=SGD(rate))
    x, target = rows(n), rows(n, seed=1)
    initial = trainer.weights
    history = trainer.fit(x, target, epochs=2, sampling="sequential")
    losses, weights = reference_fit(initial, x, target, [np.arange(n)] * 2, batch_size, rate, loss)
    np.testing.assert_allclose(history.batch_loss, losses, rtol=1e-12)
    for name, value in trainer.weights.items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-11, atol=1e-13, err_msg=name)
    per_epoch = losses.reshape(2, -1)
    sizes = np.diff([*range(0, n, batch_size), n])
    expected = per_epoch @ sizes / n if loss == "mse" else per_epoch.sum(axis=1) * batch_size / n
    np.testing.assert_allclose(history.loss, expected, rtol=1e-12)
    assert history.updates == losses.size
    assert len(history.seconds) == 2


def test_the_input_is_its_own_target(backend):
    x = rows(20)
    one, other = make(backend=backend), make(backend=backend)
    one.fit(x, epochs=2)
    other.fit(x, x.copy(), epochs=2)
    np.testing.assert_array_equal(one.history.batch_loss, other.history.batch_loss)
    assert same_weights(one.weights, other.weights)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sampling", ["shuffle", "replacement", "sequential"])
def test_same_seed_same_result(backend, dtype, sampling):
    x = rows(20, dtype=dtype)
    first, second, other = (make(backend=backend, dtype=dtype, seed=seed) for seed in (7, 7, 8))
    for trainer in (first, second, other):
        trainer.fit(x, epochs=2, sampling=sampling)
        trainer.fit(x, epochs=1, sampling=sampling)
    np.testing.assert_array_equal(first.history.batch_loss, second.history.batch_loss)
    assert same_weights(first.weights, second.weights)
    assert not same_weights(first.weights, other.weights)
    assert {value.dtype.name for value in first.weights.values()} == {dtype}


def test_initial_weights_are_those_of_the_network():
    assert same_weights(make(seed=11).weights, small_net().initial_weights(11, "float64"))


def test_a_drawn_seed_is_recorded():
    x = rows(20)
    one, two = make(seed=None), make(seed=None)
    assert one.seed_ != two.seed_
    again = make(seed=one.seed_)
    one.fit(x, epochs=2)
    again.fit(x, epochs=2)
    assert same_weights(one.weights, again.weights)


def test_shuffle_takes_every_row_once(monkeypatch):
    trainer = make()
    orders = record_orders(monkeypatch)
    trainer.fit(rows(20), epochs=3)
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert orders[0].dtype == np.int64


def test_replacement_draws_as_many_rows(monkeypatch):
    trainer = make()
    orders = record_orders(monkeypatch)
    trainer.fit(rows(20), epochs=40, sampling="replacement")
    assert {len(order) for order in orders} == {20}
    drawn = np.concatenate(orders)
    assert len(set(orders[0])) < 20
    counts = np.bincount(drawn, minlength=20)
    assert ((counts > 15) & (counts < 75)).all()  # 40 expected, standard deviation 6.2


def test_sequential_goes_as_the_rows_lie(monkeypatch):
    trainer = make()
    orders = record_orders(monkeypatch)
    trainer.fit(rows(20), epochs=2, sampling="sequential")
    assert orders == [None, None]


@pytest.mark.parametrize(
    ("sampling", "steps", "expected"),
    [
        ("shuffle", 2, 16),
        ("shuffle", 3, 20),
        ("sequential", 2, 16),
        ("replacement", 2, 16),
        ("replacement", 9, 72),
    ],
)
def test_steps_per_epoch(monkeypatch, sampling, steps, expected):
    trainer = make()
    orders = record_orders(monkeypatch)
    history = trainer.fit(rows(20), epochs=2, sampling=sampling, steps_per_epoch=steps)
    assert [len(order) for order in orders] == [expected] * 2
    assert history.updates == 2 * steps
    if sampling == "sequential":
        np.testing.assert_array_equal(orders[0], np.arange(16))


def test_validation_is_evaluate(backend):
    x, y, vx, vy = (rows(n, seed=n) for n in (20, 20, 11, 11))
    trainer = make(backend=backend, loss="sse", optimizer=SGD(0.001))
    seen = []

    class Check:
        def on_epoch_end(self, trainer, epoch, logs):
            seen.append((logs["val_loss"], trainer.evaluate(vx, vy)))

    history = trainer.fit(x, y, epochs=3, validation_data=(vx, vy), callbacks=[Check()])
    assert history.val_loss == [first for first, _ in seen]
    assert all(first == second for first, second in seen)


@pytest.mark.parametrize("loss", ["mse", "sse"])
def test_evaluate_is_on_the_scale_of_a_batch(backend, loss):
    x = rows(21)
    trainer = make(backend=backend, loss=loss)
    error = (trainer.reconstruct(x) - x) ** 2
    expected = error.mean() if loss == "mse" else error.sum(axis=1).mean() * 8
    assert trainer.evaluate(x) == pytest.approx(expected, rel=1e-13)
    assert trainer.evaluate(x[:3]) == pytest.approx(
        (error[:3].mean() if loss == "mse" else error[:3].sum(axis=1).mean() * 8), rel=1e-13
    )


def test_the_recipe():
    trainer = Trainer.from_recipe(autoencnet(12, 4), batch_size=7)
    assert (trainer.loss.name, trainer.optimizer, trainer.batch_size) == ("sse", SGD(1e-4), 7)
    assert trainer.dtype == np.float64


def test_read_only_data_and_memory_maps(tmp_path):
    x = rows(20)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    one, two = make(), make()
    one.fit(x, epochs=1)
    two.fit(mapped, epochs=1)
    assert same_weights(one.weights, two.weights)
    assert type(two.encode(mapped)) is np.ndarray


@pytest.mark.parametrize("loss", ["mse", "sse"])
@pytest.mark.parametrize("sampling", ["sequential", "shuffle", "replacement"])
def test_sample_weights_multiply_the_losses_of_their_rows(backend, monkeypatch, loss, sampling):
    rate = 0.05 if loss == "mse" else 0.002
    trainer = make(backend=backend, loss=loss, optimizer=SGD(rate))
    x, target = rows(21), rows(21, seed=1)
    weights = np.random.default_rng(2).uniform(0, 3, 21)
    weights[4] = 0
    initial = trainer.weights
    orders = record_orders(monkeypatch)
    history = trainer.fit(x, target, epochs=2, sampling=sampling, sample_weight=weights.tolist())
    taken = [np.arange(21) if order is None else order for order in orders]
    losses, expected = reference_fit(initial, x, target, taken, 8, rate, loss, weights)
    np.testing.assert_allclose(history.batch_loss, losses, rtol=1e-12)
    for name, value in trainer.weights.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-11, atol=1e-13, err_msg=name)
    error = (trainer.reconstruct(x) - target) ** 2 * weights[:, None]
    mean = error.mean() if loss == "mse" else error.sum() / 21 * 8
    assert trainer.evaluate(x, target, weights) == pytest.approx(mean, rel=1e-12)
    plain = trainer.evaluate(x, target)
    assert trainer.evaluate(x, target, np.ones(21, int)) == pytest.approx(plain, rel=1e-14)


def test_weights_of_one_change_nothing(backend):
    x = rows(21, dtype="float32")
    one, other = (make(backend=backend, dtype="float32") for _ in range(2))
    one.fit(x, epochs=2)
    other.fit(x, epochs=2, sample_weight=np.ones(21, bool))
    assert same_weights(one.weights, other.weights)
    np.testing.assert_array_equal(one.history.batch_loss, other.history.batch_loss)


def test_validation_split_takes_the_last_rows(backend):
    x, y, w = rows(25), rows(25, seed=1), np.linspace(0, 2, 25)
    split, given = make(backend=backend), make(backend=backend)
    first = split.fit(x, y, epochs=3, validation_split=0.2, sample_weight=w)
    second = given.fit(
        x[:20], y[:20], epochs=3, validation_data=(x[20:], y[20:], w[20:]), sample_weight=w[:20]
    )
    assert first.val_loss == second.val_loss == [*first.val_loss]
    assert len(first.val_loss) == 3
    assert first.loss == second.loss
    assert same_weights(split.weights, given.weights)
    assert make().fit(GOOD, epochs=1, validation_split=0.5).val_loss[0] > 0  # X alone


def test_partial_fit_goes_on_where_it_was(backend):
    x, y, w = rows(40), rows(40, seed=1), np.linspace(0, 2, 40)
    portions, whole = (make(backend=backend, optimizer=Adam(0.01)) for _ in range(2))
    losses = [portions.partial_fit(x[i : i + 16], y[i : i + 16], w[i : i + 16]) for i in (0, 16, 32)]
    history = whole.fit(x, y, epochs=1, sampling="sequential", sample_weight=w)
    assert same_weights(portions.weights, whole.weights)
    assert updates_held(portions) == updates_held(whole) == 5
    np.testing.assert_allclose(losses[0], history.batch_loss[:2].mean(), rtol=1e-14)
    assert losses[2] == history.batch_loss[4]
    assert portions.history.updates == 0
    refuses(ValueError, ["X", "(N, 9)"], portions.partial_fit, rows(4, 8))
    refuses(ValueError, ["sample_weight", "(4,)"], portions.partial_fit, rows(4), None, np.ones(3))


def test_the_default_optimizer():
    assert Trainer(small_net()).optimizer == Adam(1e-3)


@pytest.mark.parametrize("noise", [GaussianNoise(0.3), MaskingNoise(0.3)])
def test_noise_is_in_training_alone_and_is_drawn_from_seed_and_step(backend, noise):
    x = rows(20)
    plain = make(backend=backend)
    noisy, again, other = (make(backend=backend, noise=noise, seed=seed) for seed in (4, 4, 5))
    for trainer in (noisy, again, other):
        trainer.set_weights(plain.weights)
    assert noisy.evaluate(x) == plain.evaluate(x)
    for trainer in (plain, noisy, again):
        trainer.fit(x, epochs=2)
    assert not same_weights(noisy.weights, plain.weights)
    assert same_weights(noisy.weights, again.weights)
    assert list(noisy._current.header[:2]) == [6, 4]
    first = make(backend=backend, noise=noise, seed=4)
    first.set_weights(other.weights)
    losses = [t.fit(x, epochs=1, sampling="sequential").batch_loss[0] for t in (first, other)]
    assert losses[0] != losses[1]


def test_a_denoiser_compares_with_the_clean_rows(backend):
    """Everything masked: the output is that of zeros, the loss that to the rows."""
    x = rows(8)
    trainer = make(backend=backend, noise=MaskingNoise(1 - 1e-12))
    (loss,) = ((trainer.reconstruct(0 * x) - x) ** 2).mean().reshape(1)
    assert trainer.fit(x, epochs=1).batch_loss[0] == pytest.approx(loss, rel=1e-12)


def bce_net():
    return Network([Dense(4, "relu")], [Dense(WIDTH, "sigmoid")], WIDTH)


@pytest.mark.parametrize("loss", ["bce", "bce_with_logits"])
def test_targets_of_cross_entropy(loss):
    net = bce_net() if loss == "bce" else small_net()
    trainer = make(net, loss=loss)
    weights = trainer.weights
    good = np.random.default_rng(0).random((20, WIDTH))
    for value in (1.5, -1e-9, np.nan):
        bad = good.copy()
        bad[7, 3] = value
        texts = ["row 7, column 3", "finite" if np.isnan(value) else "from 0 to 1"]
        refuses(ValueError, ["X", *texts], trainer.fit, bad)
        refuses(ValueError, ["X", *texts], trainer.partial_fit, bad)
        refuses(ValueError, ["target", *texts], trainer.fit, good, bad)
        refuses(ValueError, ["validation_data", *texts], trainer.fit, good, validation_data=bad)
        refuses(ValueError, ["validation_data[1]", *texts], trainer.fit, good, validation_data=(good, bad))
        refuses(ValueError, ["target", *texts], trainer.evaluate, good, bad)
    assert same_weights(trainer.weights, weights)
    trainer.fit(5 * good, np.round(good), epochs=1)  # what is no target may be anything
    assert np.isfinite(trainer.history.loss).all()


def norm_net():
    return Network(
        [Dense(6, "tanh"), BatchNorm(), Dropout(0.2), Dense(CODE, "relu"), BatchNorm()], [Dense(WIDTH)], WIDTH
    )


def test_batchnorm_is_not_trained_on_one_row():
    texts = ["X", "2 rows or more", "batch normalisation", "has 1"]
    trainer = make(norm_net())
    weights = trainer.weights
    refuses(ValueError, texts, trainer.fit, rows(17))
    refuses(ValueError, texts, trainer.fit, rows(1))
    refuses(ValueError, texts, trainer.fit, rows(20), validation_split=0.15)
    refuses(ValueError, texts, trainer.partial_fit, rows(9))
    refuses(ValueError, texts, make(norm_net(), batch_size=1).fit, rows(20))
    assert same_weights(trainer.weights, weights)
    assert trainer.history.updates == 0
    trainer.fit(rows(17), epochs=1, steps_per_epoch=2, validation_data=rows(1))
    trainer.fit(rows(17), epochs=1, steps_per_epoch=3, sampling="replacement")
    trainer.reconstruct(rows(1))
    make(batch_size=1).fit(rows(17), epochs=1)  # without, one row will do


@pytest.mark.parametrize("rate", [0, -1e-3, np.nan, np.inf, "0.1", True, None])
def test_bad_learning_rates(rate):
    trainer = make()
    refuses(ValueError, ["learning_rate"], setattr, trainer, "learning_rate", rate)
    assert trainer.learning_rate == 0.05


@pytest.mark.parametrize(
    ("make_bad", "name"),
    [
        (lambda: Adam(0.0), "learning_rate"),
        (lambda: Adam(np.inf), "learning_rate"),
        (lambda: Adam(betas=(1.0, 0.9)), r"betas\[0\]"),
        (lambda: AdamW(betas=(0.9, 1.5)), r"betas\[1\]"),
        (lambda: AdamW(weight_decay=-1e-3), "weight_decay"),
        (lambda: SGD(momentum=1.0), "momentum"),
        (lambda: Dropout(1.0), "rate"),
        (lambda: Dropout(-0.1), "rate"),
        (lambda: MaskingNoise(1.0), "rate"),
        (lambda: GaussianNoise(-1.0), "stddev"),
        (lambda: GaussianNoise(np.nan), "stddev"),
    ],
)
def test_bad_hyperparameters(make_bad, name):
    with pytest.raises(ValueError, match=name):
        make_bad()


def test_the_learning_rate_can_be_set(backend):
    x = rows(20)
    changed, other = make(backend=backend, optimizer=SGD(0.5)), make(backend=backend, optimizer=SGD(0.02))
    changed.learning_rate = 0.02
    changed.fit(x, epochs=1)
    other.fit(x, epochs=1)
    assert same_weights(changed.weights, other.weights)
    changed.learning_rate = np.float32(0.5)
    other.learning_rate = 0.5
    changed.fit(x, epochs=1)
    other.fit(x, epochs=1)
    assert same_weights(changed.weights, other.weights)
    assert (changed.learning_rate, changed.optimizer) == (0.5, SGD(0.5))
    assert other.optimizer == SGD(0.02)


def test_the_learning_rate_goes_along_to_another_backend():
    one, other = make(backend=None), make(backend="scalar", optimizer=SGD(0.01))
    with use_backend("numpy"):
        one.learning_rate = 0.01
        one.encode(GOOD)
    with use_backend("scalar"):
        one.fit(GOOD, epochs=1)
    other.fit(GOOD, epochs=1)
    np.testing.assert_allclose(one.weights["a.weight"], other.weights["a.weight"], rtol=1e-12)


@pytest.mark.parametrize("optimizer", [SGD(0.01, momentum=0.9), Adam(0.01)])
def test_the_whole_state_goes_along_to_another_backend(backend, optimizer):
    x = rows(20)
    wandering, staying = (make(norm_net(), backend=None, optimizer=optimizer) for _ in range(2))
    for name in ("numpy", backend, "numpy"):
        with use_backend(name):
            wandering.fit(x, epochs=1)
        with use_backend("numpy"):
            staying.fit(x, epochs=1)
    for name, value in wandering.weights.items():
        np.testing.assert_allclose(value, staying.weights[name], rtol=1e-9, atol=1e-11, err_msg=name)


def test_memory_is_one_copy_of_the_data_and_the_arena():
    rng = np.random.default_rng(0)
    net = Network([Dense(8, "relu")], [Dense(256)], 256)
    x = rng.random((20_000, 256), np.float32)  # 20 MB
    weights = np.ones(20_000, np.float32)
    trainer = Trainer(net, batch_size=32, backend="numpy", seed=0)
    trainer.fit(x[:64], epochs=1)  # what is imported and made once
    for arguments in ({}, {"sampling": "replacement"}, {"sampling": "sequential"}):
        tracemalloc.start()
        try:
            trainer.fit(x, epochs=2, validation_split=0.1, sample_weight=weights, **arguments)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * 8 * 20_000  # the order of the rows, and a draw


# Inference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_encode_decode_reconstruct_agree(backend, dtype):
    trainer = make(backend=backend, dtype=dtype)
    x = rows(21, dtype=dtype)
    codes = trainer.encode(x)
    assert codes.shape == (21, CODE)
    assert codes.dtype == dtype
    np.testing.assert_array_equal(trainer.decode(codes), trainer.reconstruct(x))
    w = trainer.weights
    h = np.tanh(x @ w["a.weight"] + w["a.bias"])
    h = np.maximum(h @ w["b.weight"] + w["b.bias"], 0)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(codes, h, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        trainer.reconstruct(x), h @ w["c.weight"] + w["c.bias"], rtol=tolerance, atol=tolerance
    )


def test_rows_do_not_see_each_other(backend):
    trainer = make(backend=backend)
    x = rows(21)
    whole = trainer.reconstruct(x)
    alone = np.concatenate([trainer.reconstruct(x[i : i + 1]) for i in range(21)])
    if backend == "cython":  # a contract: the same bits
        np.testing.assert_array_equal(alone, whole)
    np.testing.assert_allclose(alone, whole, rtol=1e-13, atol=1e-15)
    spoilt = x.copy()
    spoilt[5] = np.nan
    others = np.arange(21) != 5
    np.testing.assert_array_equal(trainer.reconstruct(spoilt)[others], whole[others])
    assert np.isnan(trainer.reconstruct(spoilt)[5]).all()


def test_out_is_filled_and_returned(backend):
    trainer = make(backend=backend)
    x = rows(21)
    out = np.full((21, WIDTH), np.nan)
    assert trainer.reconstruct(x, out=out) is out
    np.testing.assert_array_equal(out, trainer.reconstruct(x))


def test_rows_of_several_dimensions():
    net = Network([Activation("relu")], [Activation("tanh")], (2, 3))
    trainer = make(net)
    x = rows(10, 6)
    codes = trainer.encode(x.reshape(10, 2, 3))
    assert codes.shape == (10, 2, 3)
    np.testing.assert_array_equal(codes, np.maximum(x, 0).reshape(10, 2, 3))
    np.testing.assert_array_equal(trainer.encode(x), codes)
    refuses(ValueError, ["X", "(N, 2, 3) or (N, 6)", "(10, 3, 2)"], trainer.encode, x.reshape(10, 3, 2))


def test_inference_changes_nothing(backend):
    trainer = make(backend=backend)
    weights = trainer.weights
    trainer.reconstruct(rows(20))
    trainer.evaluate(rows(20))
    assert same_weights(trainer.weights, weights)


# Backends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_go_along_when_the_backend_changes(backend, dtype):
    x = rows(20, dtype=dtype)
    wandering, staying = make(backend=None, dtype=dtype), make(backend="numpy", dtype=dtype)
    for name in ("numpy", backend, "numpy", backend):
        with use_backend(name):
            before = wandering.weights
            codes = wandering.encode(x)
            assert same_weights(wandering.weights, before)
            wandering.fit(x, epochs=1)
            assert wandering._current.backend.name == name
        np.testing.assert_allclose(codes, staying.encode(x), rtol=1e-4, atol=1e-5)
        staying.fit(x, epochs=1)
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    for name, value in wandering.weights.items():
        np.testing.assert_allclose(value, staying.weights[name], rtol=tolerance, atol=tolerance)
    assert updates_held(wandering) == 12


def test_a_fit_keeps_its_backend():
    trainer = make(backend=None)

    class Switch:
        def on_epoch_end(self, trainer, epoch, logs):
            with use_backend("scalar"):
                trainer.encode(GOOD)
            assert trainer._current.backend.name == "numpy"

    with use_backend("numpy"):
        trainer.fit(GOOD, epochs=2, callbacks=[Switch()])
    still = make(backend="numpy")
    still.fit(GOOD, epochs=2)
    assert same_weights(trainer.weights, still.weights)


def test_set_weights_takes_what_weights_gives(backend):
    trained, fresh = make(backend=backend), make(backend=backend, seed=9)
    trained.fit(GOOD, epochs=1)
    fresh.set_weights(trained.weights)
    assert same_weights(fresh.weights, trained.weights)
    np.testing.assert_array_equal(fresh.encode(GOOD), trained.encode(GOOD))
    trained.weights["a.bias"][:] = 5  # a copy
    assert same_weights(fresh.weights, trained.weights)


def test_the_program_is_that_of_the_backend(backend):
    trainer = make(backend=backend)
    assert "dense_forward" in str(trainer.program)
    assert trainer.program is trainer.program


# Callbacks ------------------------------------------------------------------------------------------------


def test_callbacks_see_the_fit_and_can_end_it(backend):
    stopper, other = Recorder(stop_after=2), Recorder()
    assert isinstance(stopper, Callback)
    history = make(backend=backend).fit(GOOD, epochs=5, validation_data=GOOD, callbacks=[stopper, other])
    assert len(history.loss) == 2
    for recorder in (stopper, other):
        assert [epoch for epoch, _ in recorder.epochs] == [1, 2]
        assert [logs["loss"] for _, logs in recorder.epochs] == history.loss
        assert [logs["val_loss"] for _, logs in recorder.epochs] == history.val_loss
        assert [logs["seconds"] for _, logs in recorder.epochs] == history.seconds
        done = [done for done, _ in recorder.progress]
        assert done == sorted(done)
        assert done[-1] == 6
        assert {total for _, total in recorder.progress} == {15}
        assert recorder.ended == 1


def test_progress_comes_while_an_epoch_runs():
    recorder = Recorder()
    make().fit(GOOD, epochs=1, sampling="replacement", steps_per_epoch=6000, callbacks=[recorder])
    assert any(0 < done < 6000 for done, _ in recorder.progress)


@pytest.mark.parametrize("where", ["on_epoch_end", "on_progress"])
def test_an_error_in_a_callback_ends_the_fit(where):
    recorder = Recorder()

    def fail(*arguments):
        raise LookupError("from the callback")

    setattr(recorder, where, fail)
    steps = 10 if where == "on_epoch_end" else 10**5
    trainer = make()
    with pytest.raises(LookupError, match="from the callback"):
        trainer.fit(GOOD, epochs=3, sampling="replacement", steps_per_epoch=steps, callbacks=[recorder])
    assert recorder.ended == 1
    assert trainer.history.updates == updates_held(trainer) > 0
    trainer.fit(GOOD, epochs=1)


def test_the_trainer_at_work_is_not_to_be_used():
    trainer = make()
    recorder = Recorder()
    setattr(recorder, "on_progress", lambda done, total: trainer.encode(GOOD))  # noqa: B010
    with pytest.raises(RuntimeError, match="on_epoch_end"):
        trainer.fit(GOOD, epochs=1, sampling="replacement", steps_per_epoch=10**5, callbacks=[recorder])
    trainer.encode(GOOD)


def test_verbose(capsys, monkeypatch):
    make().fit(GOOD, epochs=2)
    assert capsys.readouterr() == ("", "")
    make().fit(GOOD, epochs=2, validation_data=GOOD, verbose=2)
    out, err = capsys.readouterr()
    assert not out
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 1", "epoch 2"]
    assert "val_loss" in err
    monkeypatch.setitem(sys.modules, "tqdm", None)  # as if not installed
    make().fit(GOOD, epochs=2, verbose=1)
    assert capsys.readouterr().err.splitlines()[-1].startswith("6 of 6 updates, epoch 1: loss ")


def test_a_bar_with_tqdm():
    pytest.importorskip("tqdm")
    text = io.StringIO()
    make().fit(GOOD, epochs=2, callbacks=[Progress(1, file=text)])
    assert "6/6" in text.getvalue()
    assert "loss=" in text.getvalue()


# Divergence -----------------------------------------------------------------------------------------------


def replayed(updates, **arguments):
    """Weights after so many updates of one epoch in sequence."""
    trainer = make(**arguments)
    if updates:
        trainer.fit(rows(80), epochs=1, sampling="sequential", steps_per_epoch=updates)
    return trainer.weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sampling", ["sequential", "shuffle"])
def test_divergence_leaves_the_last_finite_weights(backend, dtype, sampling):
    # A linear net: the error grows by a factor at each update until a square or a weight overflows.
    net = Network([Dense(CODE, name="a")], [Dense(WIDTH, name="b")], WIDTH)
    trainer = make(net, backend=backend, dtype=dtype, optimizer=SGD(20.0))
    x = rows(80, dtype=dtype)
    with pytest.raises(DivergenceError, match="diverged") as caught:
        trainer.fit(x, epochs=3, sampling=sampling)
    error = caught.value
    assert isinstance(error, ArithmeticError)
    assert f"update {error.step} (epoch {error.epoch} of 3)" in str(error)
    assert f"after update {error.kept}," in str(error)
    assert trainer.history.updates == error.step
    assert not np.isfinite(trainer.history.batch_loss[error.step - 1])
    assert np.isfinite(trainer.history.batch_loss[: error.step - 1]).all()
    assert 0 <= error.kept < error.step
    assert updates_held(trainer) == error.kept
    assert finite(trainer)
    if error.epoch == 1 and sampling == "sequential":
        again = make(net, backend=backend, dtype=dtype, optimizer=SGD(20.0))
        if error.kept:
            again.fit(x, epochs=1, sampling="sequential", steps_per_epoch=error.kept)
        assert same_weights(trainer.weights, again.weights)
    trainer.set_weights(make(net, dtype=dtype).weights)
    assert np.isfinite(trainer.evaluate(x))


def test_divergence_in_one_update(backend):
    """The first update overflows the weights, the second loss shows it."""
    trainer = make(backend=backend, optimizer=SGD(1e308))
    x = 1e3 * rows(80)
    weights = trainer.weights
    with pytest.raises(DivergenceError) as caught:
        trainer.fit(x, 1e3 * x, epochs=2, sampling="sequential")
    assert caught.value.kept < caught.value.step
    assert finite(trainer)
    if caught.value.kept == 0:
        assert same_weights(trainer.weights, weights)


def dead_net():
    """One weight and one bias that overflow to -inf, behind a relu that hides it: y is 0 from then on."""
    return Network(
        [Dense(1, kernel_initializer="ones", trainable=False, name="a")],
        [Dense(1, "relu", kernel_initializer="ones", name="b")],
        1,
    )


def test_weights_that_overflow_behind_a_dead_relu(backend):
    trainer = make(dead_net(), backend=backend, optimizer=SGD(1e307), batch_size=1)
    recorder = Recorder()
    x = np.ones((10, 1))
    target = np.ones((10, 1))  # y = 1: no error, no update
    target[4:] = -1e3
    with pytest.raises(DivergenceError) as caught:
        trainer.fit(x, target, epochs=2, sampling="sequential", callbacks=[recorder])
    # An infinite weight times a weight decay of 0 is NaN, and some backends do multiply.
    if np.isfinite(trainer.history.batch_loss).all():
        assert "weights are not finite" in str(caught.value)
        assert caught.value.step == 10
    assert (caught.value.epoch, caught.value.kept) == (1, 4)
    assert trainer.weights["b.weight"].item() == 1
    assert recorder.epochs == []
    assert updates_held(trainer) == 4


def test_divergence_in_a_later_epoch_goes_back_to_its_last_update(backend):
    trainer = make(dead_net(), backend=backend, optimizer=SGD(1e307), batch_size=1)
    x = np.ones((3, 1))
    target = np.ones((3, 1))

    class Spoil:
        def on_epoch_end(self, trainer, epoch, logs):
            target[2] = -1e3  # the data are the caller's

    with pytest.raises(DivergenceError) as caught:
        trainer.fit(x, target, epochs=2, sampling="sequential", callbacks=[Spoil()])
    assert (caught.value.step, caught.value.epoch, caught.value.kept) == (6, 2, 5)
    assert updates_held(trainer) == 5
    assert trainer.history.loss == [0.0]
    assert len(trainer.history.seconds) == 1


def test_divergence_leaves_the_statistics_of_the_updates_that_were_made(backend):
    """The loss overflows while all weights stay finite; that batch's statistics are not kept."""
    x = rows(40)
    target = x.copy()
    target[20] = 1e200
    trainer, again = (make(norm_net(), backend=backend) for _ in range(2))
    with pytest.raises(DivergenceError, match="loss of update 3") as caught:
        trainer.fit(x, target, epochs=1, sampling="sequential")
    again.fit(x, target, epochs=1, sampling="sequential", steps_per_epoch=2)
    assert caught.value.kept == 2 == updates_held(trainer)
    assert same_weights(trainer.weights, again.weights)


# Resuming -------------------------------------------------------------------------------------------------


class Break:
    """Interrupts at the first look at a running epoch, so many times, wherever that is."""

    def __init__(self, times=1):
        self.times = times

    def on_progress(self, done, total):
        if self.times and 0 < done < total:
            self.times -= 1
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer, epoch, logs):
        pass


def rich(backend, **arguments):
    """A trainer with everything that has a state."""
    defaults = {"optimizer": Adam(0.01), "noise": GaussianNoise(0.1), "dtype": "float32"}
    return make(norm_net(), backend=backend, **{**defaults, **arguments})


@pytest.mark.parametrize("sampling", ["shuffle", "replacement", "sequential"])
def test_an_interrupted_fit_can_be_resumed(backend, sampling):
    n = 256 if backend == "scalar" else 4000
    x = rows(n, dtype="float32")
    call = {"epochs": 3, "sampling": sampling, "validation_split": 0.1, "sample_weight": np.linspace(0, 2, n)}

    def callbacks():
        return [CosineDecay(4), ReduceOnPlateau(patience=1, monitor="loss"), EarlyStopping()]

    whole, broken = rich(backend), rich(backend)
    expected = whole.fit(x, callbacks=callbacks(), **call)
    breaking, parts, resume = Break(3), 1, False
    while True:
        try:
            history = broken.fit(x, callbacks=[breaking, *callbacks()], resume=resume, **call)
        except KeyboardInterrupt:
            assert finite(broken)
            parts, resume = parts + 1, True
            continue
        break
    assert parts == 4 or backend in ("cython", "numba")  # where an epoch may be over sooner than a look
    assert same_weights(broken.weights, whole.weights)
    assert history is broken.history
    assert (history.loss, history.val_loss) == (expected.loss, expected.val_loss)
    np.testing.assert_array_equal(history.batch_loss, expected.batch_loss)
    assert len(history.seconds) == 3
    assert broken.learning_rate == whole.learning_rate
    again = [t.fit(x, epochs=1).loss for t in (whole, broken)]  # the random numbers too
    assert again[0] == again[1]


@pytest.mark.parametrize("where", ["batches", "validation"])
def test_a_fit_interrupted_at_the_end_of_an_epoch_can_be_resumed(monkeypatch, where):
    x = rows(40)
    whole, broken = make(), make()
    expected = whole.fit(x, epochs=3, validation_data=x[:9])
    watch, calls = broken._watch, []

    def interrupt(*arguments):
        calls.append(None)
        if len(calls) < 4:  # of train, validation, train, validation
            watch(*arguments)
        if len(calls) == (3 if where == "batches" else 4):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(broken, "_watch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            broken.fit(x, epochs=3, validation_data=x[:9])
    history = broken.fit(x, epochs=3, validation_data=x[:9], resume=True)
    assert same_weights(broken.weights, whole.weights)
    assert (history.val_loss, len(history.loss)) == (expected.val_loss, 3)
    np.testing.assert_array_equal(history.batch_loss, expected.batch_loss)


@pytest.mark.parametrize("skip", [0, 1])
def test_an_epoch_that_cannot_begin_keeps_its_place(monkeypatch, skip):
    """Neither the order of the rows nor the losses so far are lost by what fails before a batch."""
    x = rows(4000)
    whole, broken = make(), make()
    expected = whole.fit(x, epochs=2)
    if skip:
        with pytest.raises(KeyboardInterrupt):
            broken.fit(x, epochs=2, callbacks=[Break()])

    def fail(self, into):
        raise MemoryError

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "save", fail)
            with pytest.raises(MemoryError):
                broken.fit(x, epochs=2, resume=broken._position is not None)
    history = broken.fit(x, epochs=2, resume=True)
    assert same_weights(broken.weights, whole.weights)
    np.testing.assert_array_equal(history.batch_loss, expected.batch_loss)


class Fail:
    """Raises once, at the end of an epoch, told before or after the others."""

    def __init__(self, epoch, last, error=KeyboardInterrupt):
        self.epoch, self.comes_last, self.error = epoch, last, error

    def on_epoch_end(self, trainer, epoch, logs):
        if epoch == self.epoch:
            self.epoch = None
            raise self.error


class Collect:
    """A callback whose state changes in place."""

    def __init__(self):
        self.seen, self.sums = [], np.zeros(1)

    def on_epoch_end(self, trainer, epoch, logs):
        self.seen.append(epoch)
        self.sums += logs["val_loss"]

    def state_dict(self):
        return {"seen": self.seen, "sums": self.sums}

    def load_state_dict(self, state):
        self.seen, self.sums = state["seen"], state["sums"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, LookupError])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("epoch", [1, 3])
def test_an_epoch_whose_callbacks_were_cut_short_is_told_again(epoch, last, error):
    x = rows(40)
    call = {"epochs": 5, "validation_split": 0.2}

    def callbacks():
        return [Collect(), ReduceOnPlateau(patience=1, min_delta=9.0), EarlyStopping(patience=4)]

    whole, broken = make(), make()
    expected, theirs, mine = whole.fit(x, callbacks=(first := callbacks()), **call), first, callbacks()
    fail = Fail(epoch, last, error)
    told = [mine[0], mine[1], fail, mine[2]]
    with pytest.raises(error):
        broken.fit(x, callbacks=told, **call)
    assert mine[0].seen == list(range(1, epoch))
    assert (len(broken.history.loss), len(broken.history.val_loss)) == (epoch, epoch - 1)
    assert broken.learning_rate == pytest.approx(0.05 if epoch == 1 else 0.005)
    history = broken.fit(x, callbacks=told, resume=True, **call)
    assert mine[0].seen == theirs[0].seen
    assert mine[0].sums == theirs[0].sums
    assert [c.state_dict()["waited"] for c in mine[1:]] == [c.state_dict()["waited"] for c in theirs[1:]]
    assert (history.loss, history.val_loss) == (expected.loss, expected.val_loss)
    assert len(history.seconds) == len(expected.seconds)
    assert same_weights(broken.weights, whole.weights)
    assert broken.learning_rate == whole.learning_rate


def test_callbacks_keep_their_states_when_one_refuses():
    x = rows(20)
    trainer = make()
    call = {"validation_data": x[:3], "resume": True}
    trainer.fit(x, epochs=2, validation_data=x[:3], callbacks=[Collect(), Collect()])

    class Refuse(Collect):
        def load_state_dict(self, state):
            raise ValueError("refused")

    Refuse.__name__ = "Collect"
    first = Collect()
    with pytest.raises(ValueError, match="refused"):
        trainer.fit(x, epochs=3, callbacks=[first, Refuse()], **call)
    assert (first.seen, first.sums) == ([], 0)
    trainer.fit(x, epochs=3, callbacks=[first, Collect()], **call)
    assert first.seen == [1, 2, 3]


def test_a_fit_that_is_over_can_be_made_longer():
    x = rows(20)
    whole, parts = make(), make()
    whole.fit(x, epochs=5)
    parts.fit(x, epochs=2)
    recorder = Recorder()
    history = parts.fit(x, epochs=5, resume=True, callbacks=[recorder])
    assert same_weights(parts.weights, whole.weights)
    assert [epoch for epoch, _ in recorder.epochs] == [3, 4, 5]
    assert recorder.progress[0] == (6, 15)
    assert len(history.loss) == 5
    assert parts.fit(x, epochs=5, resume=True) is history  # nothing is left
    assert same_weights(parts.weights, whole.weights)


def test_what_cannot_be_resumed():
    x = rows(20)
    trainer = make()
    trainer.fit(x, epochs=2, validation_data=x[:3], callbacks=[EarlyStopping(restore_best=False)])
    weights, history = trainer.weights, trainer.history
    good = {"validation_data": x[:3], "callbacks": [EarlyStopping()], "epochs": 4, "resume": True}
    for change, texts in [
        ({"validation_data": x[:4]}, ["validation_rows 3, not 4"]),
        ({"sampling": "replacement"}, ["sampling shuffle, not replacement"]),
        ({"steps_per_epoch": 2}, ["steps 3, not 2"]),
        ({"sample_weight": np.ones(20)}, ["sample_weight False, not True"]),
        ({"target": x, "validation_data": (x[:3], x[:3])}, ["target False, not True"]),
        ({"callbacks": []}, ["callbacks", "EarlyStopping", "none"]),
        ({"callbacks": [EarlyStopping(), ReduceOnPlateau()]}, ["callbacks", "ReduceOnPlateau"]),
    ]:
        refuses(ValueError, texts, trainer.fit, x, **{**good, **change})
    refuses(ValueError, ["rows 20, not 19"], trainer.fit, x[:19], **good)
    assert same_weights(trainer.weights, weights)
    assert trainer.history is history
    trainer.fit(x, **good)
    trainer.partial_fit(x)
    refuses(ValueError, ["no such fit"], trainer.fit, x, **good)
    trainer.fit(x, epochs=1)
    trainer.set_weights(weights)
    refuses(ValueError, ["no such fit"], trainer.fit, x, **good)


def make_diverging():
    return make(optimizer=SGD(1e308))


def test_a_fit_that_diverged_is_not_resumed():
    x = 1e3 * rows(20)
    trainer = make_diverging()
    with pytest.raises(DivergenceError):
        trainer.fit(x, epochs=2)
    refuses(ValueError, ["no such fit"], trainer.fit, x, resume=True)


def test_divergence_in_an_epoch_that_was_resumed():
    """The steps are counted over both parts, and the weights go back to the last finite ones."""
    x = np.ones((40000, 1))  # as many as are seen while they run
    target = np.ones((40000, 1))
    target[39990:] = -1e3
    trainer = make(dead_net(), optimizer=SGD(1e307), batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, target, epochs=1, sampling="sequential", callbacks=[Break()])
    assert 0 < trainer.history.updates < 39990
    with pytest.raises(DivergenceError) as caught:
        trainer.fit(x, target, epochs=1, sampling="sequential", resume=True)
    assert caught.value.kept == 39990 == updates_held(trainer)
    assert caught.value.epoch == 1
    assert finite(trainer)


# Interrupts, threads, processes ---------------------------------------------------------------------------


class Interrupt:
    """Ctrl-C a moment after the fit is seen to run."""

    def __init__(self):
        self.at = 0.0
        self.timer: Any = None

    def _send(self):
        self.at = time.perf_counter()
        _thread.interrupt_main()

    def on_progress(self, done, total):
        if self.timer is None and done:
            self.timer = threading.Timer(0.1, self._send)
            self.timer.start()

    def on_epoch_end(self, trainer, epoch, logs):
        pass


@pytest.mark.timed
def test_interrupt(backend):
    # As many updates as take some seconds.
    net, steps = (autoencnet(30, 10), 3000) if backend == "scalar" else (autoencnet(), 150_000)
    trainer = Trainer.from_recipe(net, backend=backend, seed=0)
    x = 0.1 * rows(100, net.input_shape[0])
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, epochs=5, sampling="replacement", steps_per_epoch=steps, callbacks=[interrupt])
    waited = time.perf_counter() - interrupt.at
    interrupt.timer.join()
    assert waited < 0.1  # 0.05 and a batch
    history = trainer.history
    assert 0 < history.updates < steps
    assert np.isfinite(history.batch_loss).all()
    assert history.loss == []
    assert updates_held(trainer) == history.updates
    assert finite(trainer)
    weights = trainer.weights
    assert trainer.reconstruct(x).shape == x.shape
    trainer.fit(x, epochs=1)
    assert not same_weights(trainer.weights, weights)


def test_a_fit_after_a_finished_cosine_says_that_it_learns_nothing():
    x = rows(100)
    trainer = make()
    trainer.fit(x, epochs=2, callbacks=[CosineDecay(2)])
    with pytest.warns(RuntimeWarning, match=r"learning rate of 2\.23e-308, where a schedule has ended"):
        trainer.fit(x, epochs=1)
    trainer.learning_rate = trainer.optimizer.constants["learning_rate"]
    trainer.fit(x, epochs=1)  # a warning would be an error


@pytest.mark.timed
def test_an_interrupted_fit_goes_on_as_if_it_had_not_been():
    """The weights are those after `updates` whole updates: nothing is half done."""
    x = rows(2000)
    trainer = make(batch_size=1)
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, epochs=1000, sampling="sequential", callbacks=[interrupt])
    interrupt.timer.join()
    epochs, rest = divmod(trainer.history.updates, 2000)
    again = make(batch_size=1)
    if epochs:
        again.fit(x, epochs=epochs, sampling="sequential")
    if rest:
        again.fit(x, epochs=1, sampling="sequential", steps_per_epoch=rest)
    assert same_weights(trainer.weights, again.weights)


def test_a_job_is_over_even_if_an_interrupt_swallowed_the_news():
    job = Job(lambda: None)
    job.run()
    assert job._done.acquire(timeout=0)  # what the interrupted wait had done
    start = time.perf_counter()
    assert job.wait(60)
    assert time.perf_counter() - start < 10


def test_an_error_on_the_worker_thread_reaches_the_caller(monkeypatch):
    trainer = make()
    executor = trainer._engine().executor

    def fail(*arguments, **named):
        raise MemoryError("on the worker")

    with monkeypatch.context() as patch:
        patch.setattr(executor, "run", fail)
        with pytest.raises(MemoryError, match="on the worker"):
            trainer.fit(GOOD)
    trainer.fit(GOOD, epochs=1)


def test_two_threads_on_one_trainer(backend):
    trainer = make(backend=backend)
    inputs = [rows(40, seed=seed) for seed in range(4)]
    expected = [trainer.reconstruct(x) for x in inputs]
    wrong: list[int] = []
    start = threading.Barrier(4)

    def work(i):
        start.wait()
        results = [trainer.reconstruct(inputs[i]) for _ in range(3 if backend == "scalar" else 20)]
        wrong.extend(i for result in results if not np.array_equal(result, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_fit_on_another_thread_than_the_main_one():
    trainer, other = make(), make()
    thread = threading.Thread(target=lambda: trainer.fit(GOOD, epochs=2))
    thread.start()
    thread.join()
    other.fit(GOOD, epochs=2)
    assert same_weights(trainer.weights, other.weights)


def test_the_worker_goes_with_the_trainer():
    def workers():
        return [thread for thread in threading.enumerate() if thread.name == "fastae"]

    gc.collect()
    before = set(workers())
    trainer = make()
    trainer.fit(GOOD, epochs=2)
    trainer.fit(GOOD, epochs=2)
    (mine,) = set(workers()) - before
    del trainer
    gc.collect()
    mine.join(5)
    assert not mine.is_alive()


def test_a_process_ends_with_trainers_alive():
    code = """
    import numpy as np
    from fastae.layers import Dense
    from fastae.network import Network
    from fastae.trainer import Trainer
    net = Network([Dense(2)], [Dense(3)], 3)
    trainer = Trainer(net, backend="numpy", seed=0)
    trainer.cycle = trainer
    trainer.fit(np.ones((5, 3), np.float32), epochs=2)
    print("done")
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_train():
    trainer, other = make(), make()
    trainer.fit(GOOD, epochs=1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            trainer.fit(GOOD, epochs=1)
            other.fit(GOOD, epochs=1)
            other.fit(GOOD, epochs=1)
            status = 0 if same_weights(trainer.weights, other.weights) else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    if done == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(done[1]) == 0


def test_history_before_a_fit():
    history = make().history
    assert isinstance(history, History)
    assert history.batch_loss.shape == (0,)
    assert history.updates == 0


# Arrays of other libraries ---------------------------------------------------------------------------------


def test_takes_arrays_of_other_libraries(foreign, same_bits):
    """Everything that is an array may be another library's, and gives the same bits."""
    rng = np.random.default_rng(0)
    X, target = (rng.uniform(size=(20, 6)).astype(np.float32) for _ in range(2))
    weight, codes = rng.uniform(size=20), np.empty((20, 3), np.float32)

    def train(show):
        net = Network(encoder=[Dense(3)], decoder=[Dense(6)], input_shape=6)
        trainer = Trainer(net, seed=0, batch_size=8, backend="numpy")
        held = (show(X), show(target), show(weight))
        trainer.fit(show(X), show(target), epochs=2, sample_weight=show(weight), validation_data=held)
        codes[...] = np.nan
        returned = trainer.encode(show(X), out=show(codes))
        assert type(returned) is np.ndarray
        assert np.shares_memory(returned, codes)
        return trainer, [codes.copy(), trainer.decode(show(codes)), *trainer.weights.values()]

    trainer, expected = train(lambda array: array)
    _, found = train(foreign)
    for one, other in zip(found, expected, strict=True):
        same_bits(one, other, "with arrays of another library")
    with pytest.raises(TypeError, match=r"^X: expected dtype float32, as the trainer has, given float64"):
        trainer.encode(foreign(X.astype(np.float64)))
    with pytest.raises(TypeError, match=r"^X: expected an ndarray, or an object with .*, given list$"):
        trainer.encode(X.tolist())

"""Estimators on the 1797 digits: beside the Trainer they wrap, beside MLPRegressor, and for a single row."""

import numpy as np
import pytest

import fastae
from fastae import Autoencoder, Trainer, datasets

from .machine import instruction_set
from .summary import MLP, ONE_ROW, TRAINER, estimator_fit

pytestmark = pytest.mark.benchmark(max_time=1.0)

LATENT, HIDDEN, EPOCHS = 16, 64, 20


@pytest.fixture
def rows(dtype):
    images, _ = datasets.digits()
    return (images.reshape(len(images), -1) / 16).astype(dtype)


#: Rows of a batch: the default of both, where large products take most of the time, and a usual one.
BATCHES = (200, 32)


def autoencoder(backend_name, batch=200):
    return Autoencoder(
        LATENT,
        (HIDDEN,),
        batch_size=batch,
        max_iter=EPOCHS,
        n_iter_no_change=EPOCHS,
        random_state=0,
        backend=backend_name,
        n_threads=1,
    )


def trained(model, rows):
    """A function that trains as the model does, on the Trainer alone; it gives the losses."""
    last = model.trainer_

    def train():
        # A Network is declared anew, as the estimator does.
        net = fastae.Network(last.net.encoder, last.net.decoder, last.net.input_shape)
        trainer = Trainer(
            net, last.loss, last.optimizer, last.batch_size, model.backend, last.dtype, 1, seed_of(0)
        )
        return trainer.fit(rows, epochs=EPOCHS).loss

    return train


def seed_of(random_state):
    return int(np.random.RandomState(random_state).randint(2**31 - 1))


def mlp(batch):
    """MLPRegressor of the same widths. Its code has a relu too: it knows one activation."""
    from sklearn.neural_network import MLPRegressor

    return MLPRegressor(
        hidden_layer_sizes=(HIDDEN, LATENT, HIDDEN),
        batch_size=batch,
        max_iter=EPOCHS,
        n_iter_no_change=EPOCHS,
        random_state=0,
    )


def error_of(again, rows):
    return float(np.mean((again.astype(float) - rows) ** 2))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("what", ["estimator", "trainer"])
def test_fit(what, batch, rows, backend_name, module, dtype, measure):
    if backend_name == "scalar":
        pytest.skip(f"scalar: {EPOCHS} epochs take it minutes")
    model = autoencoder(backend_name, batch).fit(rows)
    train = trained(model, rows)
    assert train() == model.loss_curve_
    measure(
        train if what == "trainer" else lambda: model.fit(rows),
        group=estimator_fit(batch),
        backend=f"{backend_name}{TRAINER if what == 'trainer' else ''}",
        dtype=dtype,
        instruction_set=instruction_set(module),
    )


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # so many epochs were asked for
def test_fit_of_mlp_regressor(batch, rows, dtype, measure):
    """At equal epochs the autoencoder must have the lower loss, or its speed says nothing."""
    model = mlp(batch).fit(rows, rows)
    assert model.n_iter_ == EPOCHS
    ours = autoencoder("numpy", batch).fit(rows)
    assert error_of(ours.reconstruct(rows), rows) <= error_of(model.predict(rows), rows)
    measure(lambda: model.fit(rows, rows), group=estimator_fit(batch), backend=MLP, dtype=dtype, rounds=5)


def test_transform_of_one_row(rows, backend_name, module, dtype, measure):
    """A row alone, as a service gets it, scikit-learn's validation included."""
    model = autoencoder(backend_name)
    if backend_name == "scalar":
        model.set_params(max_iter=1)
    several = rows[:200]
    model.fit(several)
    row = several[:1]
    hidden, code = ([model.trainer_.weights[f"dense_{i}.{p}"] for p in ("weight", "bias")] for i in (1, 2))
    expected = np.maximum(row @ hidden[0] + hidden[1], 0) @ code[0] + code[1]
    np.testing.assert_allclose(model.transform(row), expected, rtol=1e-4, atol=1e-5)
    measure(
        model.transform,
        (row,),
        group=ONE_ROW,
        backend=backend_name,
        dtype=dtype,
        instruction_set=instruction_set(module),
    )

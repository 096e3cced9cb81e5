"""AutoEncNet's training: one update, an epoch in one call, and Trainer.fit; PyTorch eager beside them."""

import numpy as np
import pytest

import fastae

from . import autoencnet as net
from .machine import instruction_set, unavailable
from .summary import EPOCH, FIT, STEP, TORCH

CHECKED = 3  # updates whose losses are compared before anything is timed

pytestmark = pytest.mark.benchmark(max_time=0.5)

EACH = pytest.mark.parametrize(("group", "updates"), [(STEP, 1), (EPOCH, net.UPDATES)], ids=["step", "epoch"])


@pytest.fixture(scope="module")
def problem():
    return net.Problem()


@EACH
def test_executor(group, updates, problem, backend_name, module, dtype, measure):
    contender = net.Fastae(problem, module, dtype)
    net.check_losses(contender.losses(CHECKED), problem, dtype, backend_name)
    slow = backend_name == "scalar"
    measure(
        contender.train,
        (problem.order[: updates * net.BATCH],),
        group=group,
        backend=backend_name,
        dtype=dtype,
        **net.cost(dtype, updates=updates),
        instruction_set=instruction_set(module),
        rounds=(1 if updates > 1 else 3) if slow else None,
        warm_up=not slow,
    )


@EACH
def test_torch_eager(group, updates, problem, dtype, measure):
    if TORCH in unavailable():
        pytest.skip(unavailable()[TORCH])
    contender = net.TorchEager(problem, dtype)
    net.check_losses(contender.losses(CHECKED), problem, dtype, TORCH)
    measure(
        contender.train,
        (updates,),
        group=group,
        backend=TORCH,
        dtype=dtype,
        **net.cost(dtype, updates=updates),
        instruction_set=contender.instruction_set,
    )


def test_fit(problem, backend_name, module, dtype, measure):
    """What a user calls: with checks, shuffling, history and the thread that listens for Ctrl-C."""
    if backend_name == "scalar":
        pytest.skip("the scalar epoch is measured once, without the Trainer")
    images = np.ascontiguousarray(problem.images, dtype)
    trainer = fastae.Trainer(
        fastae.models.autoencnet(),
        loss="sse",
        optimizer=fastae.SGD(net.LEARNING_RATE),
        batch_size=net.BATCH,
        backend=backend_name,
        dtype=dtype,
        n_threads=1,
        seed=0,
    )
    trainer.set_weights(problem.weights)
    losses = trainer.fit(images[: CHECKED * net.BATCH], epochs=1, sampling="sequential").batch_loss
    net.check_losses(losses, problem, dtype, backend_name, order=np.arange(len(images)))
    measure(
        lambda: trainer.fit(images, epochs=1),
        group=FIT,
        backend=backend_name,
        dtype=dtype,
        **net.cost(dtype, updates=net.UPDATES),
        instruction_set=instruction_set(module),
    )

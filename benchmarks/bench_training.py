"""Training of the dense systems: one update, an epoch in one call, Trainer.fit; PyTorch eager beside them."""

import numpy as np
import pytest

import fastae

from . import contenders, summary
from .machine import instruction_set, unavailable
from .summary import FIT, TORCH

pytestmark = pytest.mark.benchmark(max_time=0.5)

EACH = pytest.mark.parametrize(
    ("group", "updates"), [(summary.step, 1), (summary.epoch, contenders.UPDATES)], ids=["step", "epoch"]
)


@pytest.fixture(params=contenders.SYSTEMS)
def problem(request):
    return contenders.problem(request.param)


@EACH
def test_executor(group, updates, problem, backend_name, module, dtype, measure):
    slow = backend_name == "scalar"
    if slow and problem.name in contenders.SCALAR_SKIPS:
        pytest.skip(f"scalar: {contenders.SCALAR_SKIPS[problem.name]}")
    if slow and updates > 1 and problem.name != "autoencnet":
        pytest.skip(f"scalar: {updates} steps of {problem.name} take it a minute or so; one is measured")
    contender = contenders.Fastae(problem, module, dtype)
    problem.check(contender.losses(1 if slow else contenders.CHECKED), dtype, backend_name)
    measure(
        contender.train,
        (updates,),
        group=group(problem.name),
        backend=backend_name,
        dtype=dtype,
        **problem.cost(dtype, updates=updates),
        instruction_set=instruction_set(module),
        rounds=(1 if updates > 1 else 3) if slow else None,
        warm_up=not slow,
    )


@EACH
def test_torch_eager(group, updates, problem, dtype, measure):
    if TORCH in unavailable():
        pytest.skip(unavailable()[TORCH])
    contender = contenders.TorchEager(problem, dtype)
    problem.check(contender.losses(contenders.CHECKED), dtype, TORCH)
    measure(
        contender.train,
        (updates,),
        group=group(problem.name),
        backend=TORCH,
        dtype=dtype,
        **problem.cost(dtype, updates=updates),
        instruction_set=contender.instruction_set,
    )


def test_fit(backend_name, module, dtype, measure):
    """What a user calls: with checks, shuffling, history and the thread that listens for Ctrl-C."""
    if backend_name == "scalar":
        pytest.skip("scalar: its epoch is measured once, without the Trainer")
    problem = contenders.problem("autoencnet")
    images = np.ascontiguousarray(problem.images, dtype)
    options = {"backend": backend_name, "dtype": dtype, "n_threads": 1, "seed": 0}
    trainer = fastae.Trainer.from_recipe(problem.net, **options)
    trainer.set_weights(problem.weights)
    few = images[: contenders.CHECKED * problem.batch]
    losses = trainer.fit(few, epochs=1, sampling="sequential").batch_loss
    expected = contenders.autoencnet_losses(problem, np.arange(len(few)), contenders.CHECKED)
    np.testing.assert_allclose(losses, expected, rtol=contenders.LOSS_TOLERANCE[dtype])
    measure(
        lambda: trainer.fit(images, epochs=1),
        group=FIT,
        backend=backend_name,
        dtype=dtype,
        **problem.cost(dtype, updates=contenders.UPDATES),
        instruction_set=instruction_set(module),
    )

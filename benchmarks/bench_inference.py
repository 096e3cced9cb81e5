"""AutoEncNet's reconstruction of 1 and of 1000 rows through the public call, ``Trainer.reconstruct``."""

import numpy as np
import pytest

import fastae

from . import contenders
from .kernel_cases import assert_close
from .machine import instruction_set

pytestmark = pytest.mark.benchmark(max_time=0.3)


@pytest.mark.parametrize("rows", [1, 1000])
def test_reconstruct(rows, backend_name, module, dtype, measure):
    problem = contenders.problem("autoencnet")
    images = np.ascontiguousarray(problem.images[:rows], dtype)
    options = {"backend": backend_name, "dtype": dtype, "n_threads": 1, "seed": 0}
    trainer = fastae.Trainer.from_recipe(problem.net, **options)
    several = images[: 5 * problem.batch]
    expected = contenders.autoencnet_output(trainer.weights, several)
    assert_close(trainer.reconstruct(several), expected, dtype, backend_name)
    measure(
        trainer.reconstruct,
        (images,),
        group=f"inference of {rows} row{'s' * (rows > 1)}",
        backend=backend_name,
        dtype=dtype,
        **problem.cost(dtype, rows=rows),
        instruction_set=instruction_set(module),
        rounds=(1 if rows > 1 else 5) if backend_name == "scalar" else None,
        warm_up=backend_name != "scalar",
    )

"""Every kernel of the table, forward and backward, on every backend in both dtypes, in AutoEncNet's sizes."""

import numpy as np
import pytest

from fastae.kernels.table import KERNELS

from .kernel_cases import Case, activations, assert_close, reference
from .machine import instruction_set

pytestmark = pytest.mark.benchmark(max_time=0.15)

ROWS = [(name, activation) for name, kernel in KERNELS.items() for activation in activations(kernel)]


@pytest.fixture(autouse=True)
def quiet():
    """NumPy's kernels leave warnings of overflow to their caller; some overflow on purpose."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize(("name", "activation"), ROWS, ids=["-".join(filter(None, row)) for row in ROWS])
def test_kernel(name, activation, backend_name, module, dtype, measure):
    case = Case(name, activation)
    function, arguments, written = case.call(module, dtype)
    function(*arguments)
    for array, expected in reference(name, activation, backend_name).items():
        assert_close(written[array], expected, dtype, f"{backend_name} {name} {array}")
    sizes = ", ".join(f"{dim}={size}" for dim, size in case.dims.items())
    measure(
        function,
        arguments,
        group=f"kernel {name} {activation} ({sizes})".replace("  ", " "),
        backend=backend_name,
        dtype=dtype,
        flops=case.flops(),
        bytes=case.bytes(dtype),
        instruction_set=instruction_set(module),
        rounds=3 if backend_name == "scalar" else None,
        warm_up=False,
    )

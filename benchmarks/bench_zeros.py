"""Products of matrices with zeros, as ReLU and the background of an image leave them, beside one without."""

import numpy as np
import pytest

from fastae import ops

from .machine import instruction_set

pytestmark = pytest.mark.benchmark(max_time=0.15)

ROWS, DEPTH, COLUMNS = 64, 784, 256


@pytest.mark.parametrize("share", [1, 0.5, 0.05], ids=lambda share: f"{share:.0%}")
@pytest.mark.parametrize("kernel", ["dense_forward", "dense_weight_grad"])
def test_product(kernel, share, backend_name, module, measure):
    """Of so many numbers of a factor that are not zero; FLOPs as of all."""
    if backend_name == "scalar":
        pytest.skip("scalar: takes every term, whatever it is")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, DEPTH)).astype("float32") * (rng.uniform(size=(ROWS, DEPTH)) < share)
    x = x.astype("float32")
    if kernel == "dense_forward":
        other = rng.normal(size=(DEPTH, COLUMNS)).astype("float32")
        out, expected = np.full((ROWS, COLUMNS), np.nan, "float32"), x @ other
        arguments = (x, other, None)
    else:
        other = rng.normal(size=(ROWS, COLUMNS)).astype("float32")
        out = np.full((DEPTH, COLUMNS), np.nan, "float32"), np.full(COLUMNS, np.nan, "float32")
        expected, arguments = x.T @ other, (x, other)

    def run():
        getattr(ops, kernel)(*arguments, out=out, backend=backend_name)

    run()
    found = out[0] if isinstance(out, tuple) else out
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    measure(
        run,
        (),
        group=f"{kernel} of a factor of which {share:.0%} is not zero",
        backend=backend_name,
        dtype="float32",
        flops=2 * ROWS * DEPTH * COLUMNS,
        bytes=4 * (ROWS * DEPTH + ROWS * COLUMNS + DEPTH * COLUMNS),
        instruction_set=instruction_set(module),
    )

"""The comparison AutoEncNet was published with, beside the four backends: input layer forward.

"historical scalar" and "historical vector" are the published forms, kept in ``fastae.historical`` to be
measured only; they are not backends. Published: 475.6281x, one run of each.
"""

import numpy as np
import pytest

from fastae import historical
from fastae.kernels.table import ACTIVATIONS, KERNELS

from .kernel_cases import assert_close
from .machine import instruction_set
from .summary import HISTORICAL_SCALAR, HISTORICAL_VECTOR, INPUT_LAYER

pytestmark = pytest.mark.benchmark(max_time=0.3)

DIMS = dict(zip("nkm", historical.SHAPE, strict=True))
ROW = KERNELS["dense_forward"]
FLOPS = ROW.count_flops(DIMS, {"activation": "relu"})


def expected(x, w, b):
    """The layer once more, by a sum that is neither of the forms nor a kernel."""
    return np.maximum((x[:, :, None] * w[None]).sum(1) + b, 0)


@pytest.mark.parametrize(
    ("label", "form", "rounds"),
    [
        (HISTORICAL_SCALAR, historical.scalar_input_layer, 5),
        (HISTORICAL_VECTOR, historical.vector_input_layer, None),
    ],
    ids=["scalar", "vector"],
)
def test_published_form(label, form, rounds, measure):
    arguments = historical.input_layer()
    assert_close(form(*arguments), expected(*arguments), "float64", label)
    measure(
        form,
        arguments,
        group=INPUT_LAYER,
        backend=label,
        dtype="float64",
        flops=FLOPS,
        bytes=ROW.count_bytes(DIMS, 8),
        instruction_set="NumPy's own",
        rounds=rounds,
    )


def test_backend(backend_name, module, dtype, measure):
    originals = [a.astype(dtype) for a in historical.input_layer()]
    y = np.full((DIMS["n"], DIMS["m"]), np.nan, dtype)
    x, w, b, out = (module.prepare(a) for a in (*originals, y))
    arguments = (x, w, b, ACTIVATIONS["relu"].code, out)
    module.dense_forward(*arguments)
    assert_close(y, expected(*(a.astype(np.float64) for a in originals)), dtype, backend_name)
    measure(
        module.dense_forward,
        arguments,
        group=INPUT_LAYER,
        backend=backend_name,
        dtype=dtype,
        flops=FLOPS,
        bytes=ROW.count_bytes(DIMS, np.dtype(dtype).itemsize),
        instruction_set=instruction_set(module),
        rounds=5 if backend_name == "scalar" else None,
        warm_up=False,
    )

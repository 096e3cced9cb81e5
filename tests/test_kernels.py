"""Every kernel of every backend against its definition; all but the last section derived from the table.

The reference is the scalar backend in float64. It is itself held by finite differences, by the NumPy
one-liners below, and by PyTorch.
"""

from __future__ import annotations

import itertools
import os
from functools import cache

import numpy as np
import pytest

from fastae import backend as backends
from fastae import ops
from fastae.kernels.table import ACTIVATIONS, KERNELS, Kernel

ROWS = list(KERNELS.values())
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 32, 33)  # around the register tiles: 5 rows, 16 lanes
LARGE = {"n": 20, "k": 225, "m": 75, "p": 40_000, "r": 50}  # AutoEncNet
SMALL = {"n": 3, "k": 5, "m": 4, "p": 6, "r": 7}


def own_dims(row: Kernel) -> list[str]:
    return [d for d in row.dims if d not in row.derived]


def grid(row: Kernel) -> list[dict[str, int]]:
    """Sizes in which every dim takes every value of SIZES, in company that varies."""
    names = own_dims(row)
    orders = [np.random.default_rng(i).permutation(SIZES).tolist() for i in range(len(names))]
    return [
        dict.fromkeys(names, 1),
        *(dict(zip(names, sizes, strict=True)) for sizes in zip(*orders, strict=True)),
    ]


def sizes(row: Kernel, known: dict[str, int]) -> dict[str, int]:
    return {d: known.get(d, 4) for d in own_dims(row)}


def absences(row: Kernel, activation: str) -> list[tuple[str, ...]]:
    """Ways to leave out optional arrays; a saved output is needed for all derivatives but 1."""
    optional = [a.name for a in row.arrays if a.optional and (a.role != "saved" or activation == "linear")]
    return [some for count in range(len(optional) + 1) for some in itertools.combinations(optional, count)]


def activations_of(row: Kernel) -> list[str]:
    return list(ACTIVATIONS) if any(c.kind == "activation" for c in row.constants) else ["linear"]


def rows_and_activations(rows: list[Kernel] = ROWS, *, exact: bool = False) -> list[object]:
    return [
        pytest.param(
            row, activation, id=f"{row.name}-{activation}" if len(activations_of(row)) > 1 else row.name
        )
        for row in rows
        for activation in activations_of(row)
        if ACTIVATIONS[activation].exact or not exact
    ]


def by_name(row: Kernel) -> str:
    return row.name


# Parity ---------------------------------------------------------------------------------------------------


def magnitude(case) -> dict[str, np.ndarray]:
    """What the sums of a kernel come to when nothing cancels: sum |a| |b|.

    It is the kernel itself, linear and in float64, of the absolute values, with all signs equal and with one
    array at a time negative, whichever gives more: a row that subtracts cancels in the first.
    """
    if "activation" in case.constants:
        case = case.with_constants(activation="linear")
    absolute = {name: np.abs(values) for name, values in case.inputs.items()}
    real = [a.name for a in case.row.given if a.kind == "real" and a.name in absolute]
    scalar = backends.load("scalar")
    trials = [case.with_inputs(**absolute | {name: -absolute[name]}).run(scalar) for name in real]
    trials.append(case.with_inputs(**absolute).run(scalar))
    return {a.name: np.max([np.abs(t[a.name]) for t in trials], axis=0) for a in case.results}


@cache
def reference(make_case, name: str, dims: tuple, activation: str, absent: tuple) -> tuple[dict, dict]:
    case = make_case(KERNELS[name], dict(dims), "float64", activation=activation, absent=absent)
    return case.run(backends.load("scalar")), magnitude(case)


def check_parity(make_case, backend, row, dims, dtype, activation, absent) -> None:
    """Compare with the reference, to 4 eps sum|a||b|.

    No activation is steeper than 1, nor is a derivative larger, so an error before the activation
    is not larger after it; what the activation adds is a few ulp of the result.
    """
    expected, scale = reference(make_case, row.name, tuple(dims.items()), activation, absent)
    case = make_case(row, dims, dtype, activation=activation, absent=absent)
    actual = case.run(backend)
    eps = np.finfo(dtype).eps * (2 if dtype == np.float64 else 1)  # the reference errs as much in float64
    for a in case.results:
        bound = scale[a.name]
        if not ACTIVATIONS[activation].exact:
            bound = bound + np.abs(expected[a.name])
        error = np.abs(actual[a.name] - expected[a.name])
        worst = np.max(error / (eps * bound + np.finfo(dtype).tiny))
        assert (error <= 4 * eps * bound).all(), (
            f"{backend.name}: {case}: {a.name}: error {worst:.2f} eps sum|a||b|"
        )


@pytest.mark.parametrize(("row", "activation"), rows_and_activations())
def test_parity(make_case, loaded, row, activation, dtype):
    for dims in grid(row):
        for absent in absences(row, activation):
            check_parity(make_case, loaded, row, dims, dtype, activation, absent)


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_parity_in_autoencnets_sizes(make_case, loaded, row, dtype):
    check_parity(make_case, loaded, row, sizes(row, LARGE), dtype, activations_of(row)[-1], ())


@pytest.mark.parametrize(
    ("row", "activation"), rows_and_activations([r for r in ROWS if r.exact], exact=True)
)
def test_same_bits_on_small_integers(make_case, same_bits, loaded, row, activation, dtype):
    """Exact sums are the same in any order. A zero has no sign here: where every product is -0, the sum is
    -0 if it starts with the first (BLAS) and +0 if it starts from 0.
    """
    scalar = backends.load("scalar")
    cases = [(dims, absent) for dims in grid(row) for absent in absences(row, activation)]
    for dims, absent in [*cases, (sizes(row, LARGE), ())]:
        options = {"activation": activation, "absent": absent, "integers": True}
        expected = make_case(row, dims, "float64", **options).run(scalar)
        case = make_case(row, dims, dtype, **options)
        for name, actual in case.run(loaded).items():
            message = f"{loaded.name}: {case}: {name}"
            same_bits(actual + 0.0, expected[name].astype(dtype) + 0.0, message)


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_readonly_and_writeable_inputs_are_alike(make_case, same_bits, loaded, row, dtype):
    case = make_case(row, sizes(row, SMALL), dtype)
    readonly = case.run(loaded)
    for name, values in case.run(loaded, readonly=False).items():
        same_bits(values, readonly[name], f"{loaded.name}: {case}: {name}")


@pytest.mark.parametrize("row", [r for r in ROWS if any(c.kind == "int" for c in r.constants)], ids=by_name)
def test_every_integer_constant(make_case, loaded, row, dtype):
    scalar = backends.load("scalar")
    for constant in (c for c in row.constants if c.kind == "int"):
        for value in range(int(constant.minimum or 0), 12):
            options = {"constants": {constant.name: value}}
            expected = make_case(row, sizes(row, SMALL), "float64", **options).run(scalar)
            actual = make_case(row, sizes(row, SMALL), dtype, **options).run(loaded)
            for name, values in actual.items():
                np.testing.assert_allclose(values, expected[name], rtol=4 * np.finfo(dtype).eps)


# Gradients ------------------------------------------------------------------------------------------------

STEP = 1e-5  # truncation about STEP^2, rounding about 1e-16 / STEP


def central_differences(function, values: np.ndarray) -> np.ndarray:
    """d function / d values, where function is of the whole array and gives a number."""
    gradient = np.empty_like(values)
    for i in np.ndindex(values.shape):
        ends = []
        for step in (STEP, -STEP):
            moved = values.copy()
            moved[i] += step
            ends.append(function(moved))
        gradient[i] = (ends[0] - ends[1]) / (2 * STEP)
    return gradient


def assert_gradient(analytic: np.ndarray, numeric: np.ndarray, message: str) -> None:
    error = np.abs(analytic - numeric).max() / np.abs(numeric).max()
    assert error <= 1e-6, f"{message}: error {error:.1e}\n{analytic}\n{numeric}"


@pytest.mark.parametrize(("row", "activation"), rows_and_activations([r for r in ROWS if r.gradient]))
def test_gradient(make_case, loaded, row, activation):
    """The row named in ``gradient`` gives, as d<input>, the derivative of sum(output * d<output>)."""
    backward = KERNELS[row.gradient]
    for absent in absences(row, activation):
        forward = make_case(row, sizes(row, SMALL), activation=activation, absent=absent)
        outputs = forward.run(loaded)
        rng = np.random.default_rng(5)
        weights = {name: rng.uniform(0.5, 1.5, y.shape) for name, y in outputs.items()}

        def total(forward=forward, weights=weights, **moved):
            result = forward.with_inputs(**moved).run(loaded)
            return sum(float((result[name] * w).sum()) for name, w in weights.items())

        case = make_case(backward, {d: forward.dims[d] for d in own_dims(backward)}, activation=activation)
        known = forward.inputs | outputs | {f"d{name}": w for name, w in weights.items()}
        gradients = case.with_inputs(**{a.name: known[a.name] for a in backward.given}).run(loaded)
        for a in row.given:
            if a.kind == "real" and a.name in forward.inputs:
                numeric = central_differences(lambda v, a=a: total(**{a.name: v}), forward.inputs[a.name])
                assert_gradient(gradients[f"d{a.name}"], numeric, f"{loaded.name}: {case}: d{a.name}")


@pytest.mark.parametrize(("row", "activation"), rows_and_activations([r for r in ROWS if r.loss]))
def test_gradient_of_loss(make_case, loaded, row, activation):
    """``da`` is the derivative of sum(row_loss) by the input of the activation."""
    case = make_case(row, sizes(row, SMALL), activation=activation)
    output = row.given[0]
    a = np.random.default_rng(3).uniform(0.2, 2, row.shape(output, case.dims))
    a[::2] *= -1  # away from zero, where relu bends

    def at(values):
        y = ops.activation_forward(values, activation=activation, backend=loaded)
        return case.with_inputs(**{output.name: y}).run(loaded)

    numeric = central_differences(lambda v: float(at(v)["row_loss"].sum()), a)
    assert_gradient(at(a)["da"], numeric, f"{loaded.name}: {case}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parts_of_dense_backward_agree_with_it(loaded, activation):
    rng = np.random.default_rng(1)
    x, w, b, dy = (rng.uniform(-1, 1, s) for s in [(6, 9), (9, 7), (7,), (6, 7)])
    y = ops.dense_forward(x, w, b, activation, backend=loaded)
    dx, dw, db = ops.dense_backward(dy, x, w, y, activation, backend=loaded)
    da = ops.activation_backward(dy, y, activation, backend=loaded)

    def close(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)

    close(ops.dense_input_grad(da, w, backend=loaded), dx)
    for each, expected in zip(ops.dense_weight_grad(x, da, backend=loaded), (dw, db), strict=True):
        close(each, expected)
    close(ops.dense_weight_grad(x, da, out=(np.empty_like(dw), None), backend=loaded)[0], dw)
    for each, expected in zip(
        ops.dense_sgd(x, da, w.copy(), b.copy(), learning_rate=0.1, backend=loaded),
        (w - 0.1 * dw, b - 0.1 * db),
        strict=True,
    ):
        close(each, expected)
    saved = ops.activation_forward(x, activation, backend=loaded)
    close(
        ops.dense_input_grad(da, w, saved, activation, backend=loaded),
        ops.activation_backward(dx, saved, activation, backend=loaded),
    )


# Values that are easy to get wrong ------------------------------------------------------------------------

NAN, INF = np.nan, np.inf
AT_EXTREMES = {
    "linear": ([-INF, -1e4, 0, 1e4, INF, NAN], [-INF, -1e4, 0, 1e4, INF, NAN]),
    "relu": ([-INF, -1e4, 0, 1e4, INF, NAN], [0, 0, 0, 1e4, INF, NAN]),
    "sigmoid": ([-INF, -1e4, 0, 1e4, INF, NAN], [0, 0, 0.5, 1, 1, NAN]),
    "tanh": ([-INF, -1e4, 0, 1e4, INF, NAN], [-1, -1, 0, 1, 1, NAN]),
}


@pytest.mark.parametrize("activation", AT_EXTREMES)
def test_extremes(loaded, activation, dtype):
    """At infinity and at NaN, without a warning; 37 columns, so that vectors and their rest see each."""
    x, expected = (np.resize(np.array(v, dtype), 37 * 6).reshape(6, 37) for v in AT_EXTREMES[activation])
    np.testing.assert_array_equal(ops.activation_forward(x, activation, backend=loaded), expected)
    one = np.ones((3, 1), dtype)
    np.testing.assert_array_equal(
        ops.dense_forward(one, x[:1].copy(), None, activation, backend=loaded),
        np.repeat(expected[:1], 3, axis=0),
    )


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_overflow_gives_no_warning(make_case, loaded, row, dtype):
    """Nor an error: what does not fit is infinite, or NaN where infinities meet."""
    case = make_case(row, sizes(row, SMALL), dtype)
    huge = {n: v * (np.finfo(dtype).max / 4) for n, v in case.inputs.items() if v.dtype == dtype}
    arrays = {name: guarded.array for name, guarded in case.with_inputs(**huge).allocate().items()}
    getattr(ops, row.name)(**case.keywords(arrays), backend=loaded)


EXACTLY = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("activation", EXACTLY)
def test_accuracy_of_activation(loaded, activation, dtype):
    """Four eps, relative: sigmoid and tanh are one exponential, one sum and one division, each within a
    few ulp, and neither result is close to zero but where the exponential, or x itself, is.
    """
    span = np.linspace(-30, 30, 2001)
    x = np.concatenate([span, span / 1e3, np.geomspace(1e-8, 80, 300), -np.geomspace(1e-8, 80, 300)])
    x = x.astype(np.float32).astype(dtype).reshape(1, -1)
    expected = EXACTLY[activation](x.astype(np.longdouble))
    y = ops.activation_forward(x, activation, backend=loaded)
    error = np.abs(y - expected) / np.where(expected == 0, 1, np.abs(expected)) / np.finfo(dtype).eps
    worst = error.argmax()
    assert error[0, worst] <= 4, (
        f"{loaded.name}: {activation}({x[0, worst]}) errs by {error[0, worst]:.1f} eps"
    )


def test_relu_has_no_slope_at_zero(loaded, dtype):
    y = np.array([[-0.0, 0.0, 1.0, 2.0]], dtype)
    dy = np.array([[5.0, np.inf, 7.0, -8.0]], dtype)
    dx = ops.activation_backward(dy, y, "relu", backend=loaded)
    np.testing.assert_array_equal(dx, [[0, 0, 7, -8]])


def test_mean_squared_error_adds_up_to_the_mean(loaded):
    rng = np.random.default_rng(2)
    y, target = rng.uniform(size=(2, 7, 11))
    row_loss, _ = ops.mse(y, target, backend=loaded)
    loss = ops.total(row_loss, backend=loaded)
    np.testing.assert_allclose(loss[0], np.mean((y - target) ** 2), rtol=1e-14)


# The definitions once more, by other means ------------------------------------------------------------------

SLOPE = {
    "linear": np.ones_like,
    "relu": lambda y: (y > 0) * 1.0,
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y**2,
}


def squared_error(scale):
    return lambda y, target, activation: {
        "row_loss": ((y - target) ** 2).sum(1) * scale(y),
        "da": 2 * (y - target) * scale(y) * SLOPE[activation](y),
    }


def scatter(dy, stride, k):
    dx = np.zeros((len(dy), k))
    dx[:, ::stride] = dy
    return dx


DEFINITIONS = {
    "dense_forward": lambda x, w, b, activation: {"y": EXACTLY[activation](x @ w + b)},
    "dense_backward": lambda dy, x, w, y, activation: {
        "dx": (dy * SLOPE[activation](y)) @ w.T,
        "dw": x.T @ (dy * SLOPE[activation](y)),
        "db": (dy * SLOPE[activation](y)).sum(0),
    },
    "dense_input_grad": lambda da, w, x, activation: {"dx": da @ w.T * SLOPE[activation](x)},
    "dense_weight_grad": lambda x, da: {"dw": x.T @ da, "db": da.sum(0)},
    "dense_sgd": lambda x, da, w, b, learning_rate: {
        "w": w - learning_rate * x.T @ da,
        "b": b - learning_rate * da.sum(0),
    },
    "activation_forward": lambda x, activation: {"y": EXACTLY[activation](x)},
    "activation_backward": lambda dy, y, activation: {"dx": dy * SLOPE[activation](y)},
    "subsample_forward": lambda x, stride: {"y": x[:, ::stride]},
    "subsample_backward": lambda dy, stride, k: {"dx": scatter(dy, stride, k)},
    "branch_sum": lambda x1, x2: {"y": x1 + x2},
    "sse": squared_error(lambda y: 1),
    "mse": squared_error(lambda y: 1 / y.size),
    "total": lambda row_loss: {"loss": row_loss.sum(keepdims=True)},
    "sgd": lambda g, w, learning_rate: {"w": w - learning_rate * g},
    "gather_rows": lambda data, order: {"x": data[order]},
}


@pytest.mark.parametrize(
    ("row", "activation"), rows_and_activations([r for r in ROWS if r.name in DEFINITIONS])
)
def test_scalar_is_the_definition(make_case, row, activation):
    for dims in grid(row)[::3]:
        case = make_case(row, dims, activation=activation)
        actual = case.run(backends.load("scalar"))
        for name, expected in DEFINITIONS[row.name](**case.keywords(case.inputs)).items():
            np.testing.assert_allclose(actual[name], expected, rtol=1e-13, atol=1e-13)


@pytest.fixture(scope="module")
def torch():
    if os.environ.get("CI_TORCH"):
        import torch

        return torch
    return pytest.importorskip("torch")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", [r.name for r in ROWS if r.loss])
def test_against_pytorch(torch, loaded, activation, loss):
    """A layer and a loss, forward and backward, against autograd in float64."""
    rng = np.random.default_rng(4)
    x, w, b, target = (rng.uniform(-1, 1, s) for s in [(6, 9), (9, 7), (7,), (6, 7)])
    tx, tw, tb = (torch.tensor(v, requires_grad=True) for v in (x, w, b))
    function = {"linear": lambda v: v}.get(activation) or getattr(torch, activation)
    reduction = {"sse": "sum", "mse": "mean"}[loss]
    ty = function(tx @ tw + tb)
    ty.retain_grad()
    tloss = torch.nn.functional.mse_loss(ty, torch.tensor(target), reduction=reduction)
    tloss.backward()

    y = ops.dense_forward(x, w, b, activation, backend=loaded)
    row_loss, dy = getattr(ops, loss)(y, target, backend=loaded)
    _, da = getattr(ops, loss)(y, target, activation, backend=loaded)
    pairs = {
        "y": (y, ty),
        "loss": (ops.total(row_loss, backend=loaded)[0], tloss),
        "dy": (dy, ty.grad),
        "dx": (ops.dense_input_grad(da, w, backend=loaded), tx.grad),
    }
    gradients = ops.dense_backward(dy, x, w, y, activation, backend=loaded)
    pairs |= zip(("dx", "dw", "db"), zip(gradients, (tx.grad, tw.grad, tb.grad), strict=True), strict=True)
    for name, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-11, atol=1e-13, err_msg=name)

"""Every kernel of every backend against its definition; all but the last section derived from the table.

The reference is the scalar backend in float64. It is itself held by finite differences, by the NumPy
one-liners below, and by PyTorch.
"""

from __future__ import annotations

import itertools
import os
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from fastae import backend as backends
from fastae import ops
from fastae.kernels.table import ACTIVATIONS, KERNELS, Kernel

ROWS = list(KERNELS.values())
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 32, 33)  # around the register tiles: 5 rows, 16 lanes
LARGE = {"n": 20, "k": 225, "m": 75, "p": 40_000, "r": 50}  # AutoEncNet
SMALL = {"n": 3, "k": 5, "m": 4, "p": 6, "r": 7}
WIDE = {"n": 3, "k": 5, "m": 19, "p": 37, "r": 7}  # whole vectors and a rest


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
    """Ways to leave out optional arrays; a saved output is needed for all derivatives but 1, and the states
    of one parameter come together.
    """
    optional = [a for a in row.arrays if a.optional and (a.role != "saved" or activation == "linear")]
    groups = [(a.name,) for a in optional if a.role != "state"]
    if states := tuple(a.name for a in optional if a.role == "state"):
        groups.append(states)
    return [
        tuple(itertools.chain(*some))
        for count in range(len(groups) + 1)
        for some in itertools.combinations(groups, count)
    ]


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
    absolute = {
        name: np.abs(values) if values.dtype == case.dtype else values for name, values in case.inputs.items()
    }
    real = [a.name for a in case.row.given if a.kind == "real" and a.name in absolute]
    scalar = backends.load("scalar")
    trials = [case.with_inputs(**absolute | {name: -absolute[name]}).run(scalar) for name in real]
    trials.append(case.with_inputs(**absolute).run(scalar))
    return {a.name: np.max([np.abs(t[a.name]) for t in trials], axis=0) for a in case.results}


def of_loss(element, slope):
    """Bounds of a loss from those of one element's loss and slope, which the sum and the products keep."""

    def bounds(v, found):
        weight = getattr(v, "sample_weight", np.ones(len(v.target)))[:, None] / v.target.size
        return {"row_loss": (weight * element(v)).sum(1), "da": weight * slope(v)}

    return bounds


def huber_element(v):
    """Beyond delta the loss is delta (e - delta / 2), the difference of two numbers that are exact to an ulp."""
    e = np.abs(v.y - v.target)
    return np.where(e <= v.delta, e**2, v.delta * (e + v.delta))


def cross_entropy(v):
    """Each logarithm to a few ulp of itself, be it close to 0 or not."""
    with np.errstate(divide="ignore"):
        log, log_rest = (np.maximum(f, -100) for f in (np.log(v.y), np.log1p(-v.y)))
    return -v.target * log - (1 - v.target) * log_rest


def cross_entropy_slope(v):
    """y - target and 1 - y have one rounding each, for both are of numbers that are exact."""
    return np.abs(v.y - v.target) / np.maximum(v.y * (1 - v.y), 1e-12)


def logits_element(v):
    z = v.logits
    return np.maximum(z, 0) + np.abs(z) * v.target + np.log1p(np.exp(-np.abs(z)))


def updated(v, g, size, w, first, second, *, form):
    """Bounds of an update by ``rate first / (root(second) + epsilon)`` of the gradient g.

    g + weight_decay w may cancel: its error is of the size G of what is added, and then that of first and
    second is. The root halves a relative error, G^2 / second; it comes in as step times that.
    """
    G = size + (v.weight_decay * np.abs(w) if not getattr(v, "decoupled", 0) else 0)
    g = g + (v.weight_decay * w if not getattr(v, "decoupled", 0) else 0)
    if form == "adam":
        t = v.step[0] + 1
        m, big_m = v.beta1 * first + (1 - v.beta1) * g, v.beta1 * np.abs(first) + (1 - v.beta1) * G
        s, big_s = v.beta2 * second + (1 - v.beta2) * g**2, v.beta2 * second + (1 - v.beta2) * G**2
        rate, root = v.learning_rate / (1 - v.beta1**t), np.sqrt(s / (1 - v.beta2**t))
    else:
        keep, add = (v.alpha, 1 - v.alpha) if form == "rmsprop" else (1, 1)
        m, big_m = g, G
        s, big_s = keep * second + add * g**2, keep * second + add * G**2
        rate, root = v.learning_rate, np.sqrt(s)
    step = rate / (root + v.epsilon)
    decayed = np.abs(w) * (1 + v.learning_rate * v.weight_decay)
    return decayed + step * (big_m + np.abs(m) * (1 + big_s / s)), big_m, big_s


def bounds_of_dense_adam(v, found):
    gradients = {
        "w": (v.x.T @ v.da, np.abs(v.x).T @ np.abs(v.da)),
        "b": (v.da.sum(0), np.abs(v.da).sum(0)),
    }
    result = {}
    for name, (g, size) in gradients.items():
        names = [name, f"exp_avg_{name}", f"exp_avg_sq_{name}"]
        if hasattr(v, name):
            arrays = (getattr(v, n) for n in names)
            result |= zip(names, updated(v, g, size, *arrays, form="adam"), strict=True)
    return result


def bounds_of_norm(v, found):
    """Squares add up in float64, in any order: the square root of their number of its ulp, as a rule."""
    eps = np.finfo(np.float64).eps * np.sqrt(v.g.size) / np.finfo(v.dtype).eps
    return {name: np.abs(value) * (1 + eps) for name, value in found.items()}


def bounds_of_batchnorm(v, found):
    """The mean errs by an ulp of A = mean |x|, and so does x - mean. In the variance the first is squared,
    and the second is an ulp of a deviation: what is left is relative.
    """
    inv_std, mean = found["inv_std"], np.abs(v.x).mean(0)
    count = len(v.x) / max(len(v.x) - 1, 1)
    return {
        "y": np.abs(v.gamma) * inv_std * (np.abs(v.x) + 2 * mean) + np.abs(v.beta),
        "mean": mean,
        "inv_std": 2 * inv_std,
        "running_mean": np.abs(v.running_mean) + v.momentum * (mean + np.abs(v.running_mean)),
        "running_var": v.running_var + v.momentum * (v.x.var(0) * count + v.running_var),
    }


def bounds_of_batchnorm_inference(v, found):
    scale = np.abs(v.gamma) / np.sqrt(v.running_var + v.epsilon)
    return {"y": scale * (np.abs(v.x) + np.abs(v.running_mean)) + np.abs(v.beta)}


def bounds_of_batchnorm_backward(v, found):
    """All signs equal, in every sum."""
    da, h = np.abs(v.dy), (np.abs(v.x) + np.abs(v.mean)) * v.inv_std
    total, along = da.sum(0), (da * h).sum(0)
    dx = np.abs(v.gamma) * v.inv_std * (da + (total + h * along) / len(da))
    return {"dx": dx, "dgamma": along, "dbeta": total}


def bounds_of_softmax(v, found):
    """exp has the error of x - max, an ulp of that, as a relative one; the largest is in the sum too."""
    return {"y": found["y"] * (1 + np.ptp(v.x, axis=1, keepdims=True))}


def itself(v, found):
    """A product or two: zeros are exactly there."""
    return {name: np.abs(value) for name, value in found.items()}


#: Bounds for what is not linear in each of its arrays, where `magnitude` says nothing: functions of the
#: arguments and of the results, both in float64.
BOUNDS = {
    "mae": of_loss(lambda v: np.abs(v.y - v.target), np.ones_like),
    "huber": of_loss(huber_element, lambda v: np.minimum(np.abs(v.y - v.target), v.delta)),
    "bce": of_loss(cross_entropy, cross_entropy_slope),
    "bce_with_logits": of_loss(logits_element, lambda v: 1 / (1 + np.exp(-v.logits)) + v.target),
    "adam": lambda v, found: dict(
        zip(
            ("w", "exp_avg", "exp_avg_sq"),
            updated(v, v.g, np.abs(v.g), v.w, v.exp_avg, v.exp_avg_sq, form="adam"),
            strict=True,
        )
    ),
    "dense_adam": bounds_of_dense_adam,
    "rmsprop": lambda v, found: dict(
        zip(
            ("w", "square_avg"),
            updated(v, v.g, np.abs(v.g), v.w, 0, v.square_avg, form="rmsprop")[::2],
            strict=True,
        )
    ),
    "adagrad": lambda v, found: dict(
        zip(
            ("w", "square_sum"),
            updated(v, v.g, np.abs(v.g), v.w, 0, v.square_sum, form="adagrad")[::2],
            strict=True,
        )
    ),
    "clip_by_norm": bounds_of_norm,
    "batchnorm_forward": bounds_of_batchnorm,
    "batchnorm_inference": bounds_of_batchnorm_inference,
    "batchnorm_backward": bounds_of_batchnorm_backward,
    "softmax_forward": bounds_of_softmax,
    "dropout_forward": itself,
    "dropout_backward": itself,
    # Each of x and the noise is exact to a few ulp, however close to 0 the cosine.
    "gaussian_noise": lambda v, found: {"y": np.abs(v.x) + np.abs(found["y"] - v.x)},
}


@cache
def reference(make_case, name: str, dims: tuple, constants: tuple, activation: str, absent: tuple) -> tuple:
    """The case in float64, what it gives, and the bounds of an error of one eps."""
    options = {"activation": activation, "absent": absent, "constants": dict(constants)}
    case = make_case(KERNELS[name], dict(dims), "float64", **options)
    found = case.run(backends.load("scalar"))
    return case, found, magnitude(case) if name not in BOUNDS else None


def check_parity(make_case, backend, row, dims, dtype, activation, absent, constants=()) -> None:
    """Compare with the reference, to 4 eps sum|a||b|, or of what stands in BOUNDS.

    No activation is steeper than 1, nor is a derivative larger, so an error before the activation
    is not larger after it; what the activation adds is a few ulp of the result.
    """
    exact, expected, scale = reference(
        make_case, row.name, tuple(dims.items()), tuple(constants), activation, absent
    )
    if scale is None:
        scale = BOUNDS[row.name](SimpleNamespace(**exact.inputs, **exact.constants, dtype=dtype), expected)
    options = {"activation": activation, "absent": absent, "constants": dict(constants)}
    case = make_case(row, dims, dtype, **options)
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
    """What an activation does at the edge of a vector is seen in every size where it is all there is, or with
    the first of them; the others are given every fourth.
    """
    every = activation in ("linear", "relu") or row.name.startswith("activation")
    for dims in grid(row)[:: 1 if every else 4]:
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
    for constant in (c for c in row.constants if c.kind == "int"):
        last = 11 if constant.maximum is None else int(constant.maximum)
        for value in range(int(constant.minimum or 0), last + 1):
            given = [(constant.name, value)]
            check_parity(make_case, loaded, row, sizes(row, SMALL), dtype, "linear", (), given)


@pytest.mark.parametrize(("row", "activation"), rows_and_activations())
def test_nan_goes_where_it_goes_in_the_definition(make_case, loaded, row, activation, dtype):
    case = make_case(row, sizes(row, WIDE), dtype, activation=activation)
    exact = make_case(row, sizes(row, WIDE), activation=activation)
    for a in (a for a in row.given if a.kind == "real"):
        for place in (0, -1, slice(None, None, 3)):
            poisoned = case.inputs[a.name].copy()
            poisoned.flat[place] = np.nan
            expected = exact.with_inputs(**{a.name: poisoned.astype(np.float64)}).run(backends.load("scalar"))
            for name, actual in case.with_inputs(**{a.name: poisoned}).run(loaded).items():
                np.testing.assert_array_equal(
                    np.isnan(actual), np.isnan(expected[name]), f"{loaded.name}: {case}: {a.name} to {name}"
                )


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

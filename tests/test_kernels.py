"""Every kernel of every backend against its definition; all but the last section derived from the table.

The reference is the scalar backend in float64. It is itself held by finite differences, by the NumPy
one-liners below, and by PyTorch.
"""

from __future__ import annotations

import itertools
import zlib
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from fastae import backend as backends
from fastae import ops
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Kernel

ROWS = list(KERNELS.values())
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 32, 33)  # around the register tiles: 5 rows, 16 lanes
LARGE = {"n": 20, "k": 225, "m": 75, "p": 40_000, "r": 50}  # AutoEncNet
SMALL = {"n": 3, "k": 5, "m": 4, "p": 6, "r": 7}
WIDE = {"n": 3, "k": 5, "m": 19, "p": 37, "r": 7}  # whole vectors and a rest
# Images that suit the constants that a case has by itself; 19 of them fill a block of rows and a rest.
LARGE |= {"c": 6, "o": 4, "cg": 3, "og": 2, "ih": 9, "iw": 8, "kh": 3, "kw": 2, "vh": 5, "vw": 7}
SMALL |= {"c": 4, "o": 4, "cg": 2, "og": 2, "ih": 4, "iw": 6, "kh": 2, "kw": 3, "vh": 3, "vw": 5}
WIDE |= SMALL | {"n": 19, "k": 5, "m": 19, "p": 37, "ih": 3, "iw": 6}


def own_dims(row: Kernel) -> list[str]:
    return [d for d in row.dims if d not in row.derived]


def is_of_images(row: Kernel) -> bool:
    return any(len(a.dims) == 4 for a in row.arrays)


def grid(row: Kernel) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Sizes in which every dim takes every value of SIZES, in company that varies, and constants."""
    if is_of_images(row):
        return grid_of_images(row.name)
    names = own_dims(row)
    orders = [np.random.default_rng(i).permutation(SIZES).tolist() for i in range(len(names))]
    sizes = [
        dict.fromkeys(names, 1),
        *(dict(zip(names, sizes, strict=True)) for sizes in zip(*orders, strict=True)),
    ]
    return [(dims, {}) for dims in sizes]


#: What sizes and constants of kernels on images are drawn from, each as often as the others.
DRAWN = {
    "n": (1, 2, 3, 15, 16, 17, 33),
    "channels": (1, 2, 3, 4, 5, 8, 16, 17),
    "size": (1, 2, 3, 4, 5, 6, 7, 9, 11),
    "kernel": (1, 2, 3, 4, 5),
    "stride": (1, 1, 2, 3),
    "padding": (0, 0, 1, 2, 3),
    "padding of a pooling": (0, 0, 1, 2),  # at most half a window
    "output_padding": (0, 0, 1, 2),
    "dilation": (1, 1, 2, 3),
    "groups": (1, 1, 1, 2, 3),
    "pool": (1, 2, 3),
    "factor": (1, 2, 3),
    "count_include_pad": (0, 1),
}
MOST_FLOPS = 10_000  # of a call: a millisecond or two of the scalar backend


@cache
def grid_of_images(name: str) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Valid sizes and constants that are cheap, drawn until every one of DRAWN has been there."""
    row = KERNELS[name]
    of_dims = dict.fromkeys(("ih", "iw"), "size") | dict.fromkeys(("kh", "kw", "vh", "vw"), "kernel")
    of_dims |= dict.fromkeys(("c", "o", "cg", "og"), "channels") | {"n": "n"}
    families = {d: of_dims[d] for d in own_dims(row)}
    families |= {c.name: c.part_of or c.name for c in row.constants if c.kind == "int"}
    if any(c.name == "kernel_h" for c in row.constants):
        families |= {n: f"{f} of a pooling" for n, f in families.items() if f == "padding"}
    wanted = {(name, value) for name, family in families.items() for value in DRAWN[family]}
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    chosen: list[tuple[dict[str, int], dict[str, int]]] = []
    for trial in itertools.count():
        if not wanted:
            return chosen
        assert trial < 50_000, f"{name}: no case has {wanted}"
        drawn = {name: int(rng.choice(DRAWN[family])) for name, family in families.items()}
        if len(chosen) == 1:  # what a convolution mostly is: as large as the image
            drawn |= {
                n: {"kernel": 3, "size": 6, "output_padding": 0}.get(f, 1)
                for n, f in families.items()
                if f != "n"
            }
        constants = {c.name: drawn[c.name] for c in row.constants if c.name in drawn}
        dims = {d: drawn[d] for d in own_dims(row)}
        each = constants.get("groups", 1)
        dims |= {d: dims[d] * each for d in ("c", "o") if d in dims and dims[d] * each <= 17}
        options = constants | {c.name: "linear" for c in row.constants if c.kind == "activation"}
        new = wanted & {(name, value) for name, value in (dims | constants).items()}
        if len(new) < (3 if trial < 1000 else 1):  # first what brings much
            continue
        try:
            derived = row.derive(dims | options)
        except ValueError:
            continue
        if row.count_flops(dims | derived, options) <= MOST_FLOPS:
            chosen.append((dims, constants))
            wanted -= new


def sizes(row: Kernel, known: dict[str, int]) -> dict[str, int]:
    return {d: known.get(d, 4) for d in own_dims(row)}


def absences(row: Kernel, activation: str) -> list[tuple[str, ...]]:
    """Ways to leave out optional arrays; a saved output is needed for all derivatives but 1, and the states
    of one parameter come together.
    """
    optional = [a for a in row.arrays if a.optional and (a.role != "saved" or activation == "linear")]
    optional = [a for a in optional if a.role != "work"]  # which only a Program may go without
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


def is_number(a: Array) -> bool:
    """Whether it may have any value: neither an index nor a position."""
    return a.kind == "real" and a.name != "position"


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
    real = [a.name for a in case.row.given if is_number(a) and a.name in absolute]
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
    """Beyond delta the loss is delta (e - delta / 2), a difference of numbers that are exact to an ulp."""
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


def bounds_of_dense_batchnorm(v, found):
    """What is normalised errs already, by e = sum |x| |w| + |b|. The mean errs by the mean of it, the
    variance by twice the mean of |z - mean| e, and inv_std by half of that, relative to the variance.
    """
    inv_std = found["inv_std"]
    e = np.abs(v.x) @ np.abs(v.w) + np.abs(getattr(v, "b", 0))
    d, mean = np.abs(found["z"] - found["mean"]), e.mean(0)
    spread = (d * (e + mean)).mean(0)
    relative = 2 + spread * inv_std**2
    count = len(v.x) / max(len(v.x) - 1, 1)
    var = (d**2).mean(0) * count
    return {
        "z": e,
        "y": np.abs(v.gamma) * inv_std * (e + 2 * mean + d * relative) + np.abs(v.beta),
        "mean": mean,
        "inv_std": relative * inv_std,
        "running_mean": np.abs(v.running_mean) + v.momentum * (mean + np.abs(v.running_mean)),
        "running_var": v.running_var + v.momentum * (var + 2 * spread * count + v.running_var),
    }


def bounds_of_dense_batchnorm_inference(v, found):
    scale = np.abs(v.gamma) / np.sqrt(v.running_var + v.epsilon)
    e = np.abs(v.x) @ np.abs(v.w) + np.abs(getattr(v, "b", 0))
    return {"y": scale * (e + np.abs(v.running_mean)) + np.abs(v.beta)}


def bounds_of_batchnorm_backward(v, found):
    """All signs equal, in every sum."""
    da, h = np.abs(v.dy), (np.abs(v.x) + np.abs(v.mean)) * v.inv_std
    total, along = da.sum(0), (da * h).sum(0)
    dx = np.abs(v.gamma) * v.inv_std * (da + (total + h * along) / len(da))
    return {"dx": dx, "dgamma": along, "dbeta": total}


def by_channel(function):
    """The same of images, whose rows and places are the rows of a batch normalisation."""

    def rows(array):
        return array.transpose(0, 2, 3, 1).reshape(-1, array.shape[1]) if array.ndim == 4 else array

    def wrapped(v, found):
        flat = {name: rows(a) if isinstance(a, np.ndarray) else a for name, a in vars(v).items()}
        shapes = {name: a.shape for name, a in (vars(v) | found).items() if isinstance(a, np.ndarray)}
        bounds = function(SimpleNamespace(**flat), {name: rows(a) for name, a in found.items()})
        for name, bound in bounds.items():
            if len(shape := shapes[name]) == 4:
                n, c, h, w = shape
                bounds[name] = bound.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        return bounds

    return wrapped


def bounds_of_pooled_convolution(v, found):
    """That of the convolution; and where two numbers of a window are as close, either may be the first."""
    geometry = {
        "stride": (v.stride_h, v.stride_w),
        "padding": (v.padding_top, v.padding_left, v.padding_bottom, v.padding_right),
        "dilation": (v.dilation_h, v.dilation_w),
        "groups": v.groups,
    }
    b = getattr(v, "b", np.zeros(len(v.w)))
    pool = {"kernel": (v.pool_h, v.pool_w), "stride": (v.pool_h, v.pool_w), "padding": 0}
    size = see(convolution(np.abs(v.x), np.abs(v.w), np.abs(b), **geometry), **pool)
    numbers = see(EXACTLY[v.activation](convolution(v.x, v.w, b, **geometry)), **pool)
    bounds = {"y": size.max((-2, -1))}
    if "position" in found:
        flat = np.sort(numbers.reshape(*numbers.shape[:4], -1), -1)
        gap = flat[..., -1] - flat[..., -2] if flat.shape[-1] > 1 else np.inf
        eps = np.finfo(v.dtype).eps
        # Equal ones are equal in every type where nothing is rounded after them, as behind a relu.
        certain = (gap > 16 * eps * (bounds["y"] + np.abs(flat[..., -1]))) | (
            (gap == 0) & ACTIVATIONS[v.activation].exact
        )
        bounds["position"] = np.where(certain, 0, np.inf)
    return bounds


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
    "row_mse": lambda v, found: {"error": ((np.abs(v.y) + np.abs(v.target)) ** 2).mean(1)},
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
    "dense_batchnorm_forward": bounds_of_dense_batchnorm,
    "dense_batchnorm_inference": bounds_of_dense_batchnorm_inference,
    "batchnorm2d_forward": by_channel(bounds_of_batchnorm),
    "batchnorm2d_inference": by_channel(bounds_of_batchnorm_inference),
    "batchnorm2d_backward": by_channel(bounds_of_batchnorm_backward),
    "conv2d_max_pool2d_forward": bounds_of_pooled_convolution,
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
    for dims, constants in grid(row)[:: 1 if every else 4]:
        for absent in absences(row, activation):
            check_parity(make_case, loaded, row, dims, dtype, activation, absent, constants.items())


@pytest.mark.parametrize("row", [r for r in ROWS if "kernel_h" in [c.name for c in r.constants]], ids=by_name)
def test_windows_of_a_pooling_side_by_side(make_case, loaded, row, dtype):
    """As most are, and with rows and columns left over, or padding after the last ones."""
    for height, width in itertools.product((2, 3, 4, 5), (2, 5, 6, 35)):
        for bottom, right, stride_h in itertools.product((0, 1), (0, 1), (2, 3)):
            constants = dict.fromkeys(("kernel_h", "kernel_w", "stride_w"), 2) | {"stride_h": stride_h}
            constants |= {"padding_top": 0, "padding_left": 0}
            constants |= {"padding_bottom": bottom, "padding_right": right}
            dims = {"n": 2, "c": 2, "ih": height, "iw": width}
            check_parity(make_case, loaded, row, dims, dtype, "relu", (), constants.items())


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_parity_in_autoencnets_sizes(make_case, loaded, row, dtype):
    check_parity(make_case, loaded, row, sizes(row, LARGE), dtype, activations_of(row)[-1], ())


@cache
def exactly(
    make_case, name: str, dims: tuple, constants: tuple, activation: str, absent: tuple
) -> dict[str, np.ndarray]:
    options = {"activation": activation, "absent": absent, "constants": dict(constants), "integers": True}
    return make_case(KERNELS[name], dict(dims), "float64", **options).run(backends.load("scalar"))


@pytest.mark.parametrize(
    ("row", "activation"), rows_and_activations([r for r in ROWS if r.exact], exact=True)
)
def test_same_bits_on_small_integers(make_case, same_bits, loaded, row, activation, dtype):
    """Exact sums are the same in any order. A zero has no sign here: where every product is -0, the sum is
    -0 if it starts with the first (BLAS) and +0 if it starts from 0.
    """
    cases = [(*each, absent) for each in grid(row) for absent in absences(row, activation)]
    for dims, constants, absent in [*cases, (sizes(row, LARGE), {}, ())]:
        options = {"activation": activation, "absent": absent}
        given = (tuple(dims.items()), tuple(constants.items()))
        expected = exactly(make_case, row.name, *given, activation, absent)
        case = make_case(row, dims, dtype, constants=constants, integers=True, **options)
        for name, actual in case.run(loaded).items():
            message = f"{loaded.name}: {case}: {name}"
            same_bits(actual + 0.0, expected[name].astype(dtype) + 0.0, message)


@pytest.mark.parametrize(("n", "k", "m"), [(67, 700, 203), (26, 401, 80), (41, 4096, 5)])
def test_a_product_of_many_steps_keeps_its_order(loaded, same_bits, dtype, n, k, m):
    """Many rows pass over some steps of a large weight, then over the next; a row alone over all of them."""
    if loaded.name == "scalar":
        n = 1
    rng = np.random.default_rng(5)
    x, w, b = (rng.integers(-3, 4, shape).astype(dtype) for shape in ((n, k), (k, m), (m,)))
    y = np.full((n, m), np.nan, dtype)
    ops.dense_forward(x, w, b, out=y, backend=loaded)
    same_bits(y, x @ w + b, "integers")
    if loaded.name != "cython":
        return  # the bits of a row are promised of cython alone
    x, w, b = (rng.normal(size=shape).astype(dtype) for shape in ((n, k), (k, m), (m,)))
    y.fill(np.nan)
    ops.dense_forward(x, w, b, "relu", out=y, backend=loaded)
    for i in range(n):
        alone = np.full((1, m), np.nan, dtype)
        ops.dense_forward(x[i : i + 1], w, b, "relu", out=alone, backend=loaded)
        same_bits(y[i : i + 1], alone, f"row {i}")
    x = np.ascontiguousarray(x.T)
    dw, db = np.full((n, m), np.nan, dtype), np.full(m, np.nan, dtype)
    ops.dense_weight_grad(x, w, out=(dw, db), backend=loaded)
    for i in range(n):
        alone = np.full((1, m), np.nan, dtype), np.full(m, np.nan, dtype)
        ops.dense_weight_grad(np.ascontiguousarray(x[:, i : i + 1]), w, out=alone, backend=loaded)
        same_bits(dw[i : i + 1], alone[0], f"row {i} of the weight's gradient")


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_readonly_and_writeable_inputs_are_alike(make_case, same_bits, loaded, row, dtype):
    case = make_case(row, sizes(row, SMALL), dtype)
    readonly = case.run(loaded)
    for name, values in case.run(loaded, readonly=False).items():
        same_bits(values, readonly[name], f"{loaded.name}: {case}: {name}")


@pytest.mark.parametrize("row", [r for r in ROWS if any(c.kind == "int" for c in r.constants)], ids=by_name)
def test_every_integer_constant(make_case, loaded, row, dtype):
    for constant in (c for c in row.constants if c.kind == "int"):
        last = 11 if constant.maximum is None else min(11, int(constant.maximum))
        tried = 0
        for value in range(int(constant.minimum or 0), last + 1):
            given = [(constant.name, value)]
            try:
                make_case(row, sizes(row, SMALL), constants=dict(given))
            except ValueError:  # which the image is too small for, say; the grid has others
                continue
            tried += 1
            check_parity(make_case, loaded, row, sizes(row, SMALL), dtype, "linear", (), given)
        assert tried > 1, f"{row.name}: {constant.name}"


@pytest.mark.parametrize(("row", "activation"), rows_and_activations())
@pytest.mark.parametrize("backend", [n for n in backends.NAMES if n != "scalar"], indirect=True)
def test_nan_goes_where_it_goes_in_the_definition(make_case, loaded, row, activation, dtype):
    """Into a gradient and a moment of a weight that is NaN too, be the decay coupled to them or not."""
    for constants, poisoned_ones in poisonings(row):
        options = {"activation": activation, "constants": constants}
        case = make_case(row, sizes(row, WIDE), dtype, **options)
        for name in poisoned_ones:
            for place in PLACES:
                expected = nans(make_case, row.name, activation, tuple(constants.items()), name, place)
                for result, actual in poisoned(case, name, place).run(loaded).items():
                    message = f"{loaded.name}: {case}: {name} to {result}"
                    np.testing.assert_array_equal(np.isnan(actual), expected[result], message)


PLACES = {"first": 0, "last": -1, "every third": slice(None, None, 3)}


def poisoned(case, name: str, place: str):
    """The case with NaN in an array."""
    values = case.inputs[name].copy()
    values.flat[PLACES[place]] = np.nan
    return case.with_inputs(**{name: values})


@cache
def nans(
    make_case, kernel: str, activation: str, constants: tuple, name: str, place: str
) -> dict[str, np.ndarray]:
    """Where the definition has NaN."""
    row = KERNELS[kernel]
    case = make_case(row, sizes(row, WIDE), activation=activation, constants=dict(constants))
    found = poisoned(case, name, place).run(backends.load("scalar"))
    return {result: np.isnan(values) for result, values in found.items()}


def poisonings(row: Kernel) -> list[tuple[dict[str, int], list[str]]]:
    """Constants to poison with, and the arrays to poison.

    Beyond the edges of an image nothing is multiplied in the definition, and zeros may be elsewhere: with
    padding only the image that has windows on it is poisoned, or what is spread over another.
    """
    names = [a.name for a in row.given if is_number(a)]
    if any(c.name == "decoupled" for c in row.constants):
        return [({"decoupled": 0}, names)]
    if not row.name.startswith("conv"):
        return [({}, names)]
    unpadded = {f"padding_{side}": 0 for side in ("top", "left", "bottom", "right")}
    alone = ["x"] if row.name.endswith("forward") else ["da"] if row.name == "conv2d_input_grad" else []
    return [(unpadded, names), ({}, alone)]


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


DIFFERENTIATED = [r for r in ROWS if r.gradient and any(a.name[0] == "d" for a in KERNELS[r.gradient].given)]


@pytest.mark.parametrize(("row", "activation"), rows_and_activations(DIFFERENTIATED))
def test_gradient(make_case, loaded, row, activation):
    """The row named in ``gradient`` gives, as d<input>, the derivative of sum(output * d<output>)."""
    backward = KERNELS[row.gradient]
    needed = {a.name for a in backward.given if not a.optional}
    small = SMALL | {"n": 2} if is_of_images(row) else SMALL  # scalar loops over images take seconds
    for absent in absences(row, activation):
        if needed & set(absent):
            continue
        forward = make_case(row, sizes(row, small), activation=activation, absent=absent)
        results = forward.run(loaded)
        rng = np.random.default_rng(5)
        given = {a.name for a in backward.given}
        weights = {
            a.name: rng.uniform(0.5, 1.5, results[a.name].shape) for a in row.outputs if f"d{a.name}" in given
        }

        def total(forward=forward, weights=weights, **moved):
            result = forward.with_inputs(**moved).run(loaded)
            return sum(float((result[name] * w).sum()) for name, w in weights.items())

        case = make_case(
            backward,
            {d: forward.dims[d] for d in own_dims(backward)},
            activation=activation,
            constants={c.name: forward.constants[c.name] for c in backward.constants if c in row.constants},
        )
        known = forward.inputs | results | {f"d{name}": w for name, w in weights.items()}
        gradients = case.with_inputs(**{a.name: known[a.name] for a in backward.given}).run(loaded)
        for a in row.given:
            if a.kind == "real" and a.role == "in" and a.name in forward.inputs:
                numeric = central_differences(lambda v, a=a: total(**{a.name: v}), forward.inputs[a.name])
                assert_gradient(gradients[f"d{a.name}"], numeric, f"{loaded.name}: {case}: d{a.name}")


@pytest.mark.parametrize(("row", "activation"), rows_and_activations([r for r in ROWS if r.loss]))
def test_gradient_of_loss(make_case, loaded, row, activation):
    """``da`` is the derivative of sum(row_loss) by the input of the activation."""
    for absent in absences(row, activation):
        case = make_case(row, sizes(row, SMALL), activation=activation, absent=absent)
        output = row.given[0]
        shape = row.shape(output, case.dims)
        rng = np.random.default_rng(3)
        if row.name == "bce":
            a = rng.uniform(0.1, 0.5, shape)  # whatever the activation, its output is in (0, 1)
        else:
            a = rng.uniform(0.2, 2, shape)
            a[::2] *= -1  # away from zero, where relu bends

        def at(values, case=case, output=output):
            y = ops.activation_forward(values, activation=activation, backend=loaded)
            return case.with_inputs(**{output.name: y}).run(loaded)

        numeric = central_differences(lambda v, at=at: float(at(v)["row_loss"].sum()), a)
        assert_gradient(at(a)["da"], numeric, f"{loaded.name}: {case}")


#: Several blocks of rows of the batch and of channels.
SHARED = {
    "n": 37,
    "c": 24,
    "o": 20,
    "cg": 12,
    "og": 10,
    "ih": 12,
    "iw": 11,
    "kh": 3,
    "kw": 3,
    "vh": 5,
    "vw": 4,
}
#: An image that is one window, wide enough that its product is cut into several blocks.
ONE_WINDOW = {"n": 37, "c": 64, "o": 64, "cg": 64, "og": 64, "ih": 5, "iw": 6, "kh": 5, "kw": 6}
#: Few channels: elements of a kernel stand side by side in a tile, and parts share them.
FEW_CHANNELS = {"n": 19, "c": 2, "o": 3, "cg": 2, "og": 2, "ih": 9, "iw": 13, "kh": 4, "kw": 7}
SPARSE = {"stride_w": 2, "dilation_w": 2, "padding_left": 5, "padding_right": 4, "padding_top": 2}


def cases_of_shares(row: Kernel) -> list[tuple[dict[str, int], dict[str, int]]]:
    cases = [*grid(row)[::2], (sizes(row, SHARED), {})]
    if row.name.startswith("conv"):
        plain = {c.name: c.minimum for c in row.constants if c.kind == "int"}
        seen = {"ih": 1, "iw": 1} if "transpose" in row.name else {}
        cases.append((sizes(row, ONE_WINDOW | seen), plain))
        few = FEW_CHANNELS | ({"c": 3, "o": 2} if "transpose" in row.name else {})
        sparse = plain | {name: value for name, value in SPARSE.items() if name in plain}
        cases += [(sizes(row, few), plain), (sizes(row, few | {"iw": 31}), sparse)]
    return cases


#: Rows, columns and sums of products: less than a tile, tiles that overlap, sums of lanes, more than a panel.
PRODUCTS = [
    *((n, k, m) for n in (1, 3, 4, 9, 33) for k, m in ((1, 1), (5, 2), (7, 17), (75, 31), (130, 9))),
    *(
        (16, 1100, 54),
        (1100, 8, 54),
        (20, 225, 75),
        (32, 784, 10),
        (32, 10, 784),
        (17, 1100, 3),
        (17, 3, 1100),
        (64, 260, 2),
        (40, 600, 400),
    ),
]


def run_in_parts(loaded, case, parts):
    """Results of a numba kernel that so many parts share; of its room no two may write to one place."""
    module, row, dtype = loaded.module, case.row, case.dtype
    guarded = case.allocate()
    code = ACTIVATIONS[case.constants.get("activation", "linear")].code
    values = case.constants | {"activation": code}
    arguments = [guarded[a.name].array if isinstance(a, Array) else values[a.name] for a in row.arguments]
    bits = guarded["room"].array.view(f"u{dtype.itemsize}") if "room" in guarded else np.zeros(0, int)
    untouched = bits.copy()
    owned = np.zeros(bits.shape, bool)
    with module.jitted_runtime.one_thread():
        for part in range(parts):
            bits[...] = untouched
            module._bodies[row.name, dtype.char](*arguments, part, parts)
            written = bits != untouched
            assert not (owned & written).any(), f"{case}: two of {parts} parts write to one place"
            owned |= written
    for array in case.results:
        guarded[array.name].check(f"{case}: {array.name}")
    return {array.name: guarded[array.name].array for array in case.results}


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        *itertools.product(("dense_forward", "dense_input_grad"), ("linear", "sigmoid")),
        *itertools.product(("dense_weight_grad", "dense_sgd", "dense_adam"), ("linear",)),
    ],
)
@pytest.mark.parametrize("backend", ["numba"], indirect=True)
def test_shares_of_products_make_up_the_whole(make_case, same_bits, loaded, name, activation, dtype):
    row = KERNELS[name]
    for n, k, m in PRODUCTS:
        dims = sizes(row, {"n": n, "k": k, "m": m})
        case = make_case(row, dims, dtype, activation=activation)
        whole = run_in_parts(loaded, case, 1)
        for parts in (2, 3, 7):
            for array, found in run_in_parts(loaded, case, parts).items():
                same_bits(found, whole[array], f"{case}: {array}, {parts} parts")
        if activation == "linear" and row.exact:
            case = make_case(row, dims, dtype, activation=activation, integers=True)
            expected = case.run(backends.load("numpy"))
            for array, found in run_in_parts(loaded, case, 2).items():
                same_bits(found + 0.0, expected[array] + 0.0, f"{case}: {array}")


@pytest.mark.parametrize("name", [name for name in KERNELS if "batchnorm" in name and "2d" not in name])
@pytest.mark.parametrize("backend", ["numba"], indirect=True)
def test_shares_of_normalised_columns_make_up_the_whole(make_case, same_bits, loaded, name, dtype):
    """Of fewer columns than parts, too."""
    row = KERNELS[name]
    for m in (1, 5, 6, 7, 14, 15, 23, 100):
        case = make_case(row, sizes(row, {"n": 9, "k": 11, "m": m}), dtype, activation="relu")
        whole = run_in_parts(loaded, case, 1)
        for parts in (2, 3, 5, 7, 8):
            for array, found in run_in_parts(loaded, case, parts).items():
                same_bits(found, whole[array], f"{case}: {array}, {parts} parts")


@pytest.mark.parametrize("backend", ["numba"], indirect=True)
def test_no_block_of_a_product_is_smaller_than_a_tile(loaded):
    """Tiles are chosen for the whole of it; a vector has 16 numbers at most, a tile 8 rows."""
    products = loaded.module.jitted_images
    count, edge = products.count_blocks.py_func, products.edge.py_func
    for size, parts in itertools.product(range(1, 1000), (2, 3, 7, 64)):
        blocks = count(True, size, 1 << 23, parts)
        edges = [edge(size, block, blocks) for block in range(blocks + 1)]
        assert edges == sorted(edges)
        assert edges[0] == 0
        assert edges[-1] == size
        assert blocks == 1 or min(np.diff(edges)) >= 16, (size, parts)


@pytest.mark.parametrize("row", [r for r in ROWS if is_of_images(r)], ids=by_name)
@pytest.mark.parametrize("backend", ["numba"], indirect=True)
def test_shares_of_images_make_up_the_whole(make_case, same_bits, loaded, row, dtype):
    for dims, constants in cases_of_shares(row):
        case = make_case(row, dims, dtype, activation="relu", constants=constants)
        whole = run_in_parts(loaded, case, 1)
        for parts in (2, 3, 7):
            for array, found in run_in_parts(loaded, case, parts).items():
                same_bits(found, whole[array], f"{case}: {array}, {parts} parts")


#: Kernels whose lanes hold other things when images are few, with what they are then called without.
GATHERS = {
    "conv2d_forward": (),
    "conv2d_max_pool2d_forward": ("position",),
    "conv2d_input_grad": ("x",),
    "conv_transpose2d_forward": (),
    "conv_transpose2d_input_grad": ("x",),
}
#: A single place on one side, of which 43 outputs are no whole lines, and images of many cells.
ONE_SIDE = {"c": 29, "o": 43, "cg": 29, "og": 43, "ih": 4, "iw": 6, "kh": 4, "kw": 6}
LARGER = {"c": 3, "o": 14, "cg": 3, "og": 14, "ih": 23, "iw": 26, "kh": 3, "kw": 5}


@pytest.mark.parametrize("odd", ["usual", "zeros", "nothing but -0", "infinite weights", "NaN"])
@pytest.mark.parametrize("name", GATHERS)
@pytest.mark.parametrize("backend", ["cython"], indirect=True)
def test_few_images_have_the_bits_they_have_among_many(make_case, same_bits, loaded, name, odd, dtype):
    row, rng, many = KERNELS[name], np.random.default_rng(len(odd)), 17
    plain = {c.name: c.minimum for c in row.constants if c.kind == "int"}
    apart = plain | {n: 2 for n in plain if "stride" in n} | {n: 1 for n in plain if n.startswith("padding")}
    one_side = ONE_SIDE | ({"ih": 1, "iw": 1} if "transpose" in name else {})
    cases = [*grid(row), *((sizes(row, d), plain) for d in (one_side, LARGER)), (sizes(row, LARGER), apart)]
    for (dims, constants), activation in zip(cases, itertools.cycle(["relu", "linear", "tanh"])):
        absent = GATHERS[name]
        activation = "linear" if "x" in absent else activation
        options = {"activation": activation, "absent": absent, "constants": constants}
        all_of_them = make_case(row, dims | {"n": many}, dtype, **options)
        images, *weights = row.given[0].name, *(a.name for a in row.given[1:] if a.name not in absent)
        inputs = dict(all_of_them.inputs)
        if odd == "zeros":  # of which a sum may become -0
            inputs[images] = inputs[images] * rng.integers(0, 2, inputs[images].shape).astype(dtype)
            inputs |= {w: inputs[w] * dtype.type(-0.0) for w in weights if w != "w"}
        elif odd == "nothing but -0":  # from the first product to the last
            inputs[images] = np.zeros_like(inputs[images])
            inputs |= {w: -np.abs(inputs[w]) * (w == "w") for w in weights}
        elif odd == "infinite weights":
            inputs["w"] = np.where(rng.uniform(size=inputs["w"].shape) < 0.1, dtype.type(np.inf), inputs["w"])
        elif odd == "NaN":
            inputs[images] = np.where(
                rng.uniform(size=inputs[images].shape) < 0.1, dtype.type(np.nan), inputs[images]
            )
        found = all_of_them.with_inputs(**inputs).run(loaded)
        for few in (1, 2, 3, 5, 8):
            case = make_case(row, dims | {"n": few}, dtype, **options)
            case = case.with_inputs(**inputs | {images: inputs[images][:few].copy()})
            for made, of_many in zip(case.run(loaded).values(), found.values(), strict=True):
                # which of several NaN it is says nothing
                alike = [np.where(np.isnan(y), dtype.type(np.nan), y) for y in (made, of_many[:few])]
                same_bits(*alike, str(case))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", ["cython"], indirect=True)
def test_a_number_has_its_bits_wherever_it_stands(loaded, same_bits, activation, dtype):
    """A formula takes several vectors side by side, of a row or more, and those that are left one by one."""
    rng = np.random.default_rng(3)
    for n, m in [(1, 203), (3, 16), (5, 37), (33, 19), (40, 130)]:
        x, w, b = (rng.normal(scale=4, size=shape).astype(dtype) for shape in ((n, m), (m, m), (m,)))
        x.flat[:40:7] = [0, -0.0, 1e-40, -90, 90, -np.inf]
        y = np.full((n, m), np.nan, dtype)
        ops.activation_forward(x, activation, out=y, backend=loaded)
        for at in np.ndindex(n, m):
            alone = ops.activation_forward(x[at].reshape(1, 1), activation, backend=loaded)
            same_bits(y[at].reshape(1, 1), alone, f"{at} of {n} x {m}")
        x = rng.normal(size=(n, m)).astype(dtype)
        y.fill(np.nan)
        ops.dense_forward(x, w, b, activation, out=y, backend=loaded)
        linear = ops.dense_forward(x, w, b, backend=loaded)
        same_bits(y, ops.activation_forward(linear, activation, backend=loaded), f"{n} x {m}")
        for i in range(n):
            alone = ops.dense_forward(x[i : i + 1], w, b, activation, backend=loaded)
            same_bits(y[i : i + 1], alone, f"row {i} of {n} x {m}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", ["cython"], indirect=True)
def test_a_normalised_number_has_its_bits_wherever_it_stands(loaded, same_bits, activation, dtype):
    rng = np.random.default_rng(6)
    for n, m in [(2, 33), (7, 130), (40, 19)]:
        x, columns = rng.normal(size=(n, m)).astype(dtype), rng.uniform(0.5, 2, (4, m)).astype(dtype)
        y, moved = (
            ops.batchnorm_inference(*map(np.ascontiguousarray, given), activation, backend=loaded)
            for given in ((x, *columns), (np.roll(x, 1, 1), *np.roll(columns, 1, 1)))
        )
        same_bits(moved, np.roll(y, 1, axis=1), f"{n} x {m}")


@pytest.mark.parametrize("row", [r for r in ROWS if r.loss], ids=by_name)
@pytest.mark.parametrize("backend", ["cython"], indirect=True)
def test_a_gradient_of_a_loss_has_its_bits_wherever_it_stands(loaded, same_bits, row, dtype):
    rng = np.random.default_rng(4)
    for m in (33, 130, 203):
        y, target = (rng.uniform(size=(3, m)).astype(dtype) for _ in range(2))
        moved = [np.roll(x, 1, axis=1) for x in (y, target)]
        constants = {c.name: 0.3 if c.kind == "real" else m for c in row.constants if c.default is None}
        da, again = (
            getattr(ops, row.name)(*given, **constants, backend=loaded)[1] for given in ((y, target), moved)
        )
        same_bits(again, np.roll(da, 1, axis=1), f"{row.name}: {m} columns")


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
    for decay in (0.0, 0.2):
        constants = {"learning_rate": 0.1, "weight_decay": decay, "backend": loaded}
        fused = ops.dense_sgd(x, da, w.copy(), b.copy(), **constants)
        for each, g, parameter in zip(fused, (dw, db), (w, b), strict=True):
            close(each, parameter - 0.1 * (g + decay * parameter))
            if parameter.ndim == 1:
                close(each, ops.sgd(g, parameter.copy(), **constants))
    saved = ops.activation_forward(x, activation, backend=loaded)
    close(
        ops.dense_input_grad(da, w, saved, activation, backend=loaded),
        ops.activation_backward(dx, saved, activation, backend=loaded),
    )


@pytest.mark.parametrize("decoupled", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_adam_is_its_parts(loaded, dtype, decoupled, bias):
    """The gradient and then the update: to the error of the gradient, for both have one formula."""
    rng = np.random.default_rng(8)
    x, da, w, b = (rng.uniform(-1, 1, s).astype(dtype) for s in [(6, 37), (6, 19), (37, 19), (19,)])
    step = np.array([3])
    constants = {"learning_rate": 0.02, "weight_decay": 0.1, "decoupled": decoupled, "backend": loaded}
    first, second = ([np.abs(rng.uniform(0.5, 1, p.shape).astype(dtype)) for p in (w, b)] for _ in range(2))
    dw, db = ops.dense_weight_grad(x, da, backend=loaded)
    expected = [
        ops.adam(g.ravel(), step, *(a.flatten() for a in (p, m, v)), **constants)
        for g, p, m, v in zip((dw, db), (w, b), first, second, strict=True)
    ]
    states = [[p, m, v] for p, m, v in zip((w, b), first, second, strict=True)]
    absent = [None] * 3
    weight, other = [a.copy() for a in states[0]], [a.copy() for a in states[1]] if bias else absent
    ops.dense_adam(
        x,
        da,
        step,
        weight[0],
        other[0],
        exp_avg_w=weight[1],
        exp_avg_b=other[1],
        exp_avg_sq_w=weight[2],
        exp_avg_sq_b=other[2],
        **constants,
    )
    for actual, parts in zip((weight, other) if bias else (weight,), expected, strict=False):
        for a, e in zip(actual, parts, strict=True):
            np.testing.assert_allclose(a.ravel(), e, rtol=0, atol=20 * np.finfo(dtype).eps)


STATES = {
    "sgd": (),
    "momentum": ("velocity",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "rmsprop": ("square_avg",),
    "adagrad": ("square_sum",),
}
OPTIMISERS = {
    "sgd": ("sgd", {"weight_decay": 0.01}),
    "momentum": ("momentum", {"weight_decay": 0.01}),
    "nesterov": ("momentum", {"nesterov": 1, "momentum": 0.8}),
    "adam": ("adam", {"weight_decay": 0.01}),
    "adamw": ("adam", {"weight_decay": 0.01, "decoupled": 1}),
    "rmsprop": ("rmsprop", {"weight_decay": 0.01}),
    "adagrad": ("adagrad", {"weight_decay": 0.01}),
}
STEPS = 30


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_several_updates(loaded, optimiser, dtype):
    """From states of zero, with the default decays, against the definition in float64.

    An update errs by a few ulp of the weight and of itself, and here it is no larger than the weight.
    """
    kernel, constants = OPTIMISERS[optimiser]
    constants = {"learning_rate": 0.01} | constants
    rng = np.random.default_rng(6)
    gradients = rng.normal(size=(STEPS, 37)).astype(np.float32).astype(dtype)
    w = rng.uniform(-1, 1, 37).astype(np.float32).astype(dtype)
    arrays = {"w": w, **{name: np.zeros(37, dtype) for name in STATES[kernel]}}
    expected = {name: a.astype(np.float64) for name, a in arrays.items()}
    every = {c.name: c.default for c in KERNELS[kernel].constants} | constants
    for t, g in enumerate(gradients):
        step = {"step": np.array([t])} if kernel == "adam" else {}
        getattr(ops, kernel)(g=g, **step, **arrays, **constants, backend=loaded)
        expected = DEFINITIONS[kernel](g=g.astype(np.float64), **step, **expected, **every)
    for name, actual in arrays.items():
        np.testing.assert_allclose(
            actual, expected[name], rtol=0, atol=4 * STEPS * np.finfo(dtype).eps, err_msg=name
        )


# Values that are easy to get wrong ------------------------------------------------------------------------

NAN, INF = np.nan, np.inf
AT_EXTREMES = {
    "linear": ([-INF, -1e4, 0, 1e4, INF, NAN], [-INF, -1e4, 0, 1e4, INF, NAN]),
    "relu": ([-INF, -1e4, 0, 1e4, INF, NAN], [0, 0, 0, 1e4, INF, NAN]),
    "sigmoid": ([-INF, -1e4, 0, 1e4, INF, NAN], [0, 0, 0.5, 1, 1, NAN]),
    "tanh": ([-INF, -1e4, 0, 1e4, INF, NAN], [-1, -1, 0, 1, 1, NAN]),
    "leaky_relu": ([-INF, -1e4, 0, 1e4, INF, NAN], [-INF, -1e2, 0, 1e4, INF, NAN]),
    "elu": ([-INF, -1e4, 0, 1e4, INF, NAN], [-1, -1, 0, 1e4, INF, NAN]),
    "softplus": ([-INF, -1e4, 0, 1e4, INF, NAN], [0, 0, np.log(2), 1e4, INF, NAN]),
}


@pytest.mark.parametrize("activation", AT_EXTREMES)
def test_extremes(loaded, activation, dtype):
    """At infinity and at NaN, without a warning; 37 columns, so that vectors and their rest see each."""
    assert AT_EXTREMES.keys() == ACTIVATIONS.keys()
    x, expected = (np.resize(np.array(v, dtype), 37 * 6).reshape(6, 37) for v in AT_EXTREMES[activation])
    exactly = {"rtol": 2 * np.finfo(dtype).eps if activation == "softplus" else 0, "atol": 0}
    np.testing.assert_allclose(ops.activation_forward(x, activation, backend=loaded), expected, **exactly)
    one = np.ones((3, 1), dtype)
    y = ops.dense_forward(one, x[:1].copy(), None, activation, backend=loaded)
    np.testing.assert_allclose(y, np.repeat(expected[:1], 3, axis=0), **exactly)
    slope = ops.activation_backward(np.ones_like(x), expected, activation, backend=loaded)
    assert (np.isfinite(slope) | np.isnan(expected)).all()


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_overflow_gives_no_warning(make_case, loaded, row, dtype):
    """Nor an error: what does not fit is infinite, or NaN where infinities meet."""
    case = make_case(row, sizes(row, SMALL), dtype)
    names = [a.name for a in row.given if is_number(a)]
    huge = {n: case.inputs[n] * (np.finfo(dtype).max / 4) for n in names}
    arrays = {name: guarded.array for name, guarded in case.with_inputs(**huge).allocate().items()}
    getattr(ops, row.name)(**case.keywords(arrays), backend=loaded)


EXACTLY = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "leaky_relu": lambda x: np.where(x > 0, x, x / 100),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.logaddexp(x, 0),
}


@pytest.mark.parametrize("activation", EXACTLY)
def test_accuracy_of_activation(loaded, activation, dtype):
    """Four eps, relative: one exponential or its distance from 1, one sum and one division or logarithm, each
    within a few ulp, and no result is close to zero but where the exponential, or x itself, is.
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


def wide(values, dtype) -> np.ndarray:
    """The values in turn, in rows of 37."""
    return np.resize(np.array(values, dtype), (len(values), 37))


def test_cross_entropy_of_logits_is_stable(loaded, dtype):
    z, target = (wide(v, dtype) for v in ([1e4, 1e4, -1e4, -1e4, 0], [1, 0, 1, 0, 0.5]))
    loss = wide([0, 1e4, 1e4, 0, np.log(2)], np.float64)
    row_loss, da = ops.bce_with_logits(z, target, backend=loaded)
    np.testing.assert_allclose(row_loss, loss.sum(1) / z.size, rtol=40 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(da, (wide([0, 1, -1, 0, 0], dtype) / dtype.type(z.size)))

    z, target = wide([INF, INF, -INF], dtype), wide([1, 0, 0.5], dtype)
    row_loss, da = ops.bce_with_logits(z, target, backend=loaded)
    np.testing.assert_array_equal(da, (z > 0) / dtype.type(z.size) - target / dtype.type(z.size))
    assert not np.isfinite(row_loss).any()


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_cross_entropy_is_finite_at_0_and_1(loaded, activation, dtype):
    """The bounds of its logarithms and of its denominator; behind a sigmoid no gradient is left."""
    y, target = (wide(v, dtype) for v in ([0, 0, 1, 1, 1], [0, 1, 0, 1, 0.25]))
    row_loss, da = ops.bce(y, target, activation=activation, backend=loaded)
    loss = wide([0, 100, 100, 0, 75], np.float64)
    np.testing.assert_allclose(row_loss, loss.sum(1) / y.size, rtol=40 * np.finfo(dtype).eps)
    slope = 0 if activation == "sigmoid" else (y - target) / 1e-12 / y.size
    np.testing.assert_allclose(da, slope * np.ones_like(y), rtol=4 * np.finfo(dtype).eps)


def test_softmax_of_large_numbers(loaded, dtype):
    x = wide([1e4, -1e4, 0, 3e4], dtype)[:, :37]
    y = ops.softmax_forward(x + 0.0, backend=loaded)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y.sum(1), 1, rtol=8 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(y == 0, x < x.max())


def test_norm_of_large_gradients(loaded):
    """Squares that float32 cannot hold: they are of float64."""
    g = np.full(37, 1e30, np.float32)
    norm = ops.clip_by_norm(g, max_norm=2.0, backend=loaded)
    np.testing.assert_allclose(norm, 1e30 * np.sqrt(37), rtol=1e-6)
    np.testing.assert_allclose(g, 2 / np.sqrt(37), rtol=1e-6)


def test_norm_within_bounds_changes_nothing(loaded, same_bits, dtype):
    for g in (np.linspace(-1, 1, 37).astype(dtype), np.zeros(37, dtype)):
        clipped = g.copy()
        norm = ops.clip_by_norm(clipped, max_norm=100.0, backend=loaded)
        same_bits(clipped, g, "gradients")
        np.testing.assert_allclose(norm, np.linalg.norm(g), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("center", [1e4, -1e4])
def test_variance_about_a_large_mean(loaded, center):
    """In float32, whose ulp at 1e4 is 1e-3: the squares of the numbers would have an error of 8."""
    x = np.random.default_rng(0).normal(size=(200, 37))
    x = (center + (x - x.mean(0)) / x.std(0)).astype(np.float32)
    ones, zeros = np.ones(37, np.float32), np.zeros(37, np.float32)
    running = [zeros.copy(), ones.copy()]
    y, mean, inv_std = ops.batchnorm_forward(x, ones, zeros, *running, momentum=1.0, backend=loaded)
    np.testing.assert_allclose(mean, center, rtol=1e-6)
    np.testing.assert_allclose(inv_std**-2.0, 1, rtol=1e-3)
    np.testing.assert_allclose(running[1], 200 / 199, rtol=1e-3)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-3)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-3)


def test_column_without_variance(loaded, dtype):
    """Its deviations are 0 and epsilon alone keeps them so."""
    x = np.full((5, 37), 0.1, dtype)
    gamma, beta = np.full(37, 2, dtype), np.full(37, 3, dtype)
    running = np.zeros((2, 37), dtype)
    y, _, inv_std = ops.batchnorm_forward(x, gamma, beta, running[0], running[1], backend=loaded)
    np.testing.assert_allclose(y, 3, rtol=1e-4)
    np.testing.assert_allclose(inv_std, 1e-5**-0.5, rtol=1e-5)
    np.testing.assert_allclose(running[1], 0, atol=1e-14)


def test_mean_squared_error_adds_up_to_the_mean(loaded):
    rng = np.random.default_rng(2)
    y, target = rng.uniform(size=(2, 7, 11))
    row_loss, _ = ops.mse(y, target, backend=loaded)
    loss = ops.total(row_loss, backend=loaded)
    np.testing.assert_allclose(loss[0], np.mean((y - target) ** 2), rtol=1e-14)


# Random numbers -------------------------------------------------------------------------------------------

COUNTERS = [(0, 0), (1, 0), (0, 1), (7, 123), (2**31, 2**32), (2**62, 2**63 - 1)]


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("stream", [0, 1, 5, 2**62])
@pytest.mark.parametrize("rate", [0.0, 2.0**-32, 0.25, 0.1, 1 - 2.0**-32, np.nextafter(1, 0)])
def test_zeros_are_those_of_the_definition(loaded, counter, stream, rate, dtype):
    x = np.ones((13, 41), dtype)
    counter = np.array(counter)
    dropped = random_bits(x.shape, counter, stream) < rate * 2.0**32
    for kernel in ("dropout_forward", "dropout_backward", "masking_noise"):
        y = getattr(ops, kernel)(x, counter, rate, stream, backend=loaded)
        np.testing.assert_array_equal(y == 0, dropped, kernel)
        kept = 1 if kernel == "masking_noise" else 1 / (1 - rate)
        np.testing.assert_allclose(y[~dropped], kept, rtol=2 * np.finfo(dtype).eps, err_msg=kernel)


@pytest.mark.parametrize("counter", COUNTERS)
def test_noise_is_that_of_the_definition(loaded, counter, dtype):
    """To a few ulp of the deviate, but where the definition itself has a cosine of what is rounded."""
    x = np.zeros((13, 41), dtype)
    y = ops.gaussian_noise(x, np.array(counter), 1.5, 3, backend=loaded)
    expected = 1.5 * normal_deviates(x.shape, counter, 3)
    np.testing.assert_allclose(y, expected, rtol=8 * np.finfo(dtype).eps, atol=1e-14)


def test_noise_of_no_size(loaded, same_bits, dtype):
    x = np.linspace(-1, 1, 5 * 37, dtype=dtype).reshape(5, 37)
    counter = np.array([3, 4])
    same_bits(ops.gaussian_noise(x, counter, 0.0, backend=loaded), x, "gaussian_noise")
    same_bits(ops.dropout_forward(x, counter, 0.0, backend=loaded), x, "dropout_forward")


MANY = 1 << 15


def bits_over(what: str, start: int) -> np.ndarray:
    """Random words of MANY places that differ in one thing: the element, the step, the seed or the stream."""
    if what == "element":
        return random_bits((MANY,), (start, 5), 1)
    place = ("step", "seed", "stream").index(what)
    at = [3, 5, 1]
    words = []
    for value in range(start * MANY, (start + 1) * MANY):
        at[place] = value
        words.append(random_bits((1,), at[:2], at[2])[0])
    return np.array(words)


@pytest.mark.parametrize("what", ["element", "step", "seed", "stream"])
def test_bits_are_uniform(what):
    """The definition's bits, which every backend has: each bit, each byte, and pairs of neighbours.

    Six standard deviations, so that of some hundred comparisons none fails by chance.
    """
    words = bits_over(what, 2)
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1)
    assert np.abs(bits.mean(0) - 0.5).max() < 6 * 0.5 / np.sqrt(MANY)
    for byte in words.view(np.uint8).reshape(-1, 4).T:
        count = np.bincount(byte, minlength=256)
        chi = ((count - MANY / 256) ** 2 / (MANY / 256)).sum()
        assert abs(chi - 255) < 6 * np.sqrt(2 * 255)
    u = words / 2**32 - 0.5
    for lag in (1, 2, 3, 41, 784):
        assert abs(np.mean(u[lag:] * u[:-lag]) * 12) < 6 / np.sqrt(MANY)
    assert abs(u.mean()) < 6 * np.sqrt(1 / 12 / MANY)
    assert abs(u.var() - 1 / 12) < 6 * np.sqrt(1 / 180 / MANY)


def test_no_two_streams_are_alike():
    """Streams, steps and seeds of neighbouring and of swapped numbers have nothing to do with one another."""
    places = list(itertools.product(range(4), repeat=3))
    u = np.array([random_bits((1 << 13,), at[:2], at[2]) for at in places]) / 2**32 - 0.5
    correlation = 12 * u @ u.T / u.shape[1]
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 6 / np.sqrt(u.shape[1])
    assert len({row.tobytes() for row in u}) == len(places)
    # Nor is one another's beginning, later.
    first = {value: i for i, value in enumerate(u[:, 0])}
    shared = [i for i, row in enumerate(u) for value in row[1:] if first.get(value, i) != i]
    assert len(shared) <= 1  # of half a million words of 32 bits about 2^-7 meet one of 64


def test_share_of_zeros(loaded):
    x = np.ones((100, 784), np.float32)
    for rate in (0.05, 0.3, 0.5, 0.9):
        y = ops.dropout_forward(x, np.array([4, 9]), rate, backend=loaded)
        assert abs((y == 0).mean() - rate) < 6 * np.sqrt(rate * (1 - rate) / x.size)
        assert abs(y.mean() - 1) < 6 * np.sqrt(rate / (1 - rate) / x.size)


def test_noise_is_normal(loaded, dtype):
    """Its moments, its distribution at quantiles, and that neighbours are independent."""
    x = np.zeros((200, 784) if loaded.name != "scalar" else (50, 784), dtype)
    z = ops.gaussian_noise(x, np.array([0, 42]), 2.0, backend=loaded).ravel().astype(np.float64) / 2
    n = z.size
    assert abs(z.mean()) < 6 / np.sqrt(n)
    assert abs(z.var() - 1) < 6 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 6 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 6 * np.sqrt(96 / n)
    for point, share in [(-2.3263479, 0.01), (-1, 0.15865525), (0, 0.5), (1.6448536, 0.95), (3, 0.9986501)]:
        assert abs((z < point).mean() - share) < 6 * np.sqrt(share * (1 - share) / n)
    for lag in (1, 2, 784):
        assert abs(np.mean(z[lag:] * z[:-lag])) < 6 / np.sqrt(n)


# The definitions once more, by other means ------------------------------------------------------------------

SLOPE = {
    "linear": np.ones_like,
    "relu": lambda y: (y > 0) * 1.0,
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y**2,
    "leaky_relu": lambda y: np.where(y > 0, 1, 0.01),
    "elu": lambda y: np.where(y > 0, 1, y + 1),
    "softplus": lambda y: -np.expm1(-y),
}


def loss_of(element, slope, scale=lambda y: 1 / y.size):
    def both(y, target, sample_weight, activation="linear", **constants):
        weight = sample_weight[:, None] * scale(y)
        with np.errstate(divide="ignore"):
            of = element(y, target, **constants)
        return {
            "row_loss": (weight * of).sum(1),
            "da": weight * slope(y, target, **constants) * SLOPE[activation](y),
        }

    return both


def mse_part(y, target, sample_weight, columns, activation):
    of = DEFINITIONS["mse"](y, target, sample_weight, activation)
    return {name: value * y.shape[1] / columns for name, value in of.items()}


def bce_with_logits(logits, target, sample_weight):
    p = 1 / (1 + np.exp(-logits))
    of_probabilities = DEFINITIONS["bce"](p, target, sample_weight, "sigmoid")
    return {"row_loss": of_probabilities["row_loss"], "da": sample_weight[:, None] * (p - target) / p.size}


def scatter(dy, stride, k):
    dx = np.zeros((len(dy), k))
    dx[:, ::stride] = dy
    return dx


def momentum(g, w, velocity, learning_rate, momentum, nesterov, weight_decay):
    g = g + weight_decay * w
    velocity = momentum * velocity + g
    return {
        "w": w - learning_rate * (g + momentum * velocity if nesterov else velocity),
        "velocity": velocity,
    }


def adam(g, step, w, exp_avg, exp_avg_sq, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled):
    t = step[0] + 1
    if decoupled:
        w = w * (1 - learning_rate * weight_decay)
    else:
        g = g + weight_decay * w
    m = beta1 * exp_avg + (1 - beta1) * g
    v = beta2 * exp_avg_sq + (1 - beta2) * g**2
    w = w - learning_rate * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
    return {"w": w, "exp_avg": m, "exp_avg_sq": v}


def dense_adam(x, da, step, w, b, exp_avg_w, exp_avg_b, exp_avg_sq_w, exp_avg_sq_b, **constants):
    found = {
        "w": adam(x.T @ da, step, w, exp_avg_w, exp_avg_sq_w, **constants),
        "b": adam(da.sum(0), step, b, exp_avg_b, exp_avg_sq_b, **constants),
    }
    return {
        (name if state == "w" else f"{state}_{name}"): values
        for name, states in found.items()
        for state, values in states.items()
    }


def rmsprop(g, w, square_avg, learning_rate, alpha, epsilon, weight_decay):
    g = g + weight_decay * w
    square_avg = alpha * square_avg + (1 - alpha) * g**2
    return {"w": w - learning_rate * g / (np.sqrt(square_avg) + epsilon), "square_avg": square_avg}


def adagrad(g, w, square_sum, learning_rate, epsilon, weight_decay):
    g = g + weight_decay * w
    square_sum = square_sum + g**2
    return {"w": w - learning_rate * g / (np.sqrt(square_sum) + epsilon), "square_sum": square_sum}


def clip_by_norm(g, max_norm):
    norm = np.linalg.norm(g)
    return {"g": g * min(1, max_norm / norm), "norm": np.array([norm])}


def batchnorm_forward(x, gamma, beta, running_mean, running_var, activation, epsilon, momentum):
    mean, var = x.mean(0), x.var(0)
    unbiased = var if len(x) == 1 else x.var(0, ddof=1)
    return {
        "y": EXACTLY[activation](gamma * (x - mean) / np.sqrt(var + epsilon) + beta),
        "mean": mean,
        "inv_std": (var + epsilon) ** -0.5,
        "running_mean": (1 - momentum) * running_mean + momentum * mean,
        "running_var": (1 - momentum) * running_var + momentum * unbiased,
    }


def batchnorm_backward(dy, x, gamma, y, mean, inv_std, activation):
    da, h = dy * SLOPE[activation](y), (x - mean) * inv_std
    dx = gamma * inv_std * (da - da.mean(0) - h * (da * h).mean(0))
    return {"dx": dx, "dgamma": (da * h).sum(0), "dbeta": da.sum(0)}


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


def random_bits(shape, counter, stream, factor=1, offset=0) -> np.ndarray:
    """bits(factor e + offset) of every element e, as table.py defines them."""

    def mix64(z):
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    step, seed = map(int, counter)
    key = mix64(mix64(mix64(seed) + step) + int(stream))
    e = (np.arange(np.prod(shape), dtype=np.uint64) * factor + offset) % 2**32
    h = (e * 0x9E3779B9 % 2**32 + key % 2**32) % 2**32 ^ np.uint64(key >> 32)
    h = (h ^ h >> np.uint64(16)) * 0x7FEB352D % 2**32
    h = (h ^ h >> np.uint64(15)) * 0x846CA68B % 2**32
    return (h ^ h >> np.uint64(16)).astype(np.uint32).reshape(shape)


def zeros_in(x, counter, rate, stream):
    return random_bits(x.shape, counter, stream) < rate * 2.0**32


def normal_deviates(shape, counter, stream):
    u = ((random_bits(shape, counter, stream, 2) >> 8) + 1) / 2**24
    v = (random_bits(shape, counter, stream, 2, 1) >> 8) / 2**24
    return np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)


# Images: what each window sees; for a gradient the adjoint of a linear map, from what it makes of each image
# that has a single 1.


def see(x, kernel, stride, padding, dilation=1, outside=0.0):
    """[n,c,p,q,u,v]: element (u, v) of each window."""
    kernel, stride, dilation = (np.broadcast_to(v, 2) for v in (kernel, stride, dilation))
    top, left, bottom, right = np.broadcast_to(padding, 4)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=outside)
    extent = tuple(dilation * (kernel - 1) + 1)
    seen = np.lib.stride_tricks.sliding_window_view(padded, extent, (2, 3))
    return seen[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def convolution(x, w, b=0.0, *, stride, padding, dilation, groups):
    seen = see(x, w.shape[2:], stride, padding, dilation)
    n, _, p, q, kh, kw = seen.shape
    seen = seen.reshape(n, groups, -1, p, q, kh, kw)
    each = w.reshape(groups, -1, *w.shape[1:])
    y = np.einsum("ngcpquv,gocuv->ngopq", seen, each).reshape(n, -1, p, q)
    return y + np.reshape(b, (-1, 1, 1))


def adjoint(function, dy, shape):
    """Of a linear function of images of a shape, at dy."""
    size = np.prod(shape)
    units = np.eye(size).reshape(size, *shape)
    made = function(units)[:, :, : dy.shape[2], : dy.shape[3]]
    return np.einsum("kopq,nopq->nk", made, dy).reshape(-1, *shape)


def convolution_weight_grad(x, da, kernel, stride, padding, dilation, groups):
    seen = see(x, kernel, stride, padding, dilation)[:, :, : da.shape[2], : da.shape[3]]
    n, _, p, q, kh, kw = seen.shape
    seen = seen.reshape(n, groups, -1, p, q, kh, kw)
    each = da.reshape(n, groups, -1, p, q)
    return np.einsum("ngopq,ngcpquv->gocuv", each, seen).reshape(da.shape[1], -1, kh, kw)


def conv2d_backward(dy, x, w, y, activation, **geometry):
    da = dy * SLOPE[activation](y)
    return {
        "dx": adjoint(lambda v: convolution(v, w, **geometry), da, x.shape[1:]),
        "dw": convolution_weight_grad(x, da, w.shape[2:], **geometry),
        "db": da.sum((0, 2, 3)),
    }


def conv_transpose(x, w, stride, padding, output_padding, dilation, groups):
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    padded = np.broadcast_to(padding, 4)
    sides = zip(x.shape[2:], w.shape[2:], stride, dilation, output_padding, strict=True)
    shape = [
        (i - 1) * s + d * (k - 1) + 1 + o - before - after
        for (i, k, s, d, o), before, after in zip(sides, padded[:2], padded[2:], strict=True)
    ]
    return adjoint(lambda v: convolution(v, w, **geometry), x, (w.shape[1] * groups, *shape))


def conv_transpose2d_input_grad(da, w, x, activation, output_padding, **geometry):
    dx = convolution(da, w, **geometry)[:, :, : x.shape[2], : x.shape[3]]
    return {"dx": dx * SLOPE[activation](x)}


def conv_transpose2d_backward(dy, x, w, y, activation, output_padding, **geometry):
    da = dy * SLOPE[activation](y)
    return {
        "dx": convolution(da, w, **geometry)[:, :, : x.shape[2], : x.shape[3]],
        "dw": convolution_weight_grad(da, x, w.shape[2:], **geometry),
        "db": da.sum((0, 2, 3)),
    }


def upsampled_weight(w, factor):
    """The full convolution with a field of ones."""
    h, v = factor
    padded = np.pad(w, ((0, 0), (0, 0), (h - 1, h - 1), (v - 1, v - 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (h, v), (2, 3)).sum((-2, -1))


def turned(w):
    return w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)


def upsampled_weight_grad(dv, factor):
    h, v = factor
    return np.lib.stride_tricks.sliding_window_view(dv, (h, v), (2, 3)).sum((-2, -1))


def max_pool(x, kernel, stride, padding=0):
    seen = see(x, kernel, stride, padding, outside=-np.inf)
    flat = seen.reshape(*seen.shape[:4], -1)
    return {"y": flat.max(-1), "position": flat.argmax(-1)}


def max_pool2d_backward(dy, position, y, activation, kernel, stride, padding, ih, iw):
    top, left, bottom, right = padding
    dx = np.zeros((*dy.shape[:2], top + ih + bottom, left + iw + right))
    n, c, p, q = np.indices(dy.shape)
    u, v = np.divmod(position.astype(int), kernel[1])
    np.add.at(dx, (n, c, p * stride[0] + u, q * stride[1] + v), dy * SLOPE[activation](y))
    return {"dx": dx[:, :, top : top + ih, left : left + iw]}


def conv2d_max_pool2d_weight_grad(x, dy, position, y, activation, pool, kh, kw, **geometry):
    ih, iw = (size * by for size, by in zip(dy.shape[2:], pool, strict=True))
    da = max_pool2d_backward(dy, position, y, activation, pool, pool, (0, 0, 0, 0), ih, iw)["dx"]
    return {"dw": convolution_weight_grad(x, da, (kh, kw), **geometry), "db": da.sum((0, 2, 3))}


def avg_pool(x, kernel, stride, padding, count_include_pad):
    inside = see(np.ones((1, 1, *x.shape[2:])), kernel, stride, padding).sum((-2, -1))
    return see(x, kernel, stride, padding).sum((-2, -1)) / (np.prod(kernel) if count_include_pad else inside)


def avg_pool2d_backward(dy, x, activation, ih, iw, **pooling):
    dx = adjoint(lambda v: avg_pool(v, **pooling), dy, x.shape[1:])
    return {"dx": dx * SLOPE[activation](x)}


def upsample2d_backward(dy, x, activation, factor, ih, iw):
    split = dy.reshape(*dy.shape[:2], ih, factor[0], iw, factor[1])
    return {"dx": split.sum((3, 5)) * SLOPE[activation](x)}


def batchnorm2d_forward(x, gamma, beta, running_mean, running_var, activation, epsilon, momentum):
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
    columns = [v[:, None, None] for v in (gamma, mean, np.sqrt(var + epsilon), beta)]
    return {
        "y": EXACTLY[activation](columns[0] * (x - columns[1]) / columns[2] + columns[3]),
        "mean": mean,
        "inv_std": (var + epsilon) ** -0.5,
        "running_mean": (1 - momentum) * running_mean + momentum * mean,
        "running_var": (1 - momentum) * running_var + momentum * x.var((0, 2, 3), ddof=1),
    }


def batchnorm2d_inference(x, gamma, beta, running_mean, running_var, activation, epsilon):
    scale = gamma / np.sqrt(running_var + epsilon)
    shift = beta - running_mean * scale
    return {"y": EXACTLY[activation](x * scale[:, None, None] + shift[:, None, None])}


def batchnorm2d_backward(dy, x, gamma, y, mean, inv_std, activation):
    da, h = dy * SLOPE[activation](y), (x - mean[:, None, None]) * inv_std[:, None, None]
    along = (da * h).mean((0, 2, 3), keepdims=True)
    dx = (gamma * inv_std)[:, None, None] * (da - da.mean((0, 2, 3), keepdims=True) - h * along)
    return {"dx": dx, "dgamma": (da * h).sum((0, 2, 3)), "dbeta": da.sum((0, 2, 3))}


DEFINITIONS = {
    "dense_forward": lambda x, w, b, activation: {"y": EXACTLY[activation](x @ w + b)},
    "dense_backward": lambda dy, x, w, y, activation: {
        "dx": (dy * SLOPE[activation](y)) @ w.T,
        "dw": x.T @ (dy * SLOPE[activation](y)),
        "db": (dy * SLOPE[activation](y)).sum(0),
    },
    "dense_input_grad": lambda da, w, x, activation: {"dx": da @ w.T * SLOPE[activation](x)},
    "dense_weight_grad": lambda x, da: {"dw": x.T @ da, "db": da.sum(0)},
    "dense_sgd": lambda x, da, w, b, learning_rate, weight_decay: {
        "w": w - learning_rate * (x.T @ da + weight_decay * w),
        "b": b - learning_rate * (da.sum(0) + weight_decay * b),
    },
    "activation_forward": lambda x, activation: {"y": EXACTLY[activation](x)},
    "activation_backward": lambda dy, y, activation: {"dx": dy * SLOPE[activation](y)},
    "subsample_forward": lambda x, stride: {"y": x[:, ::stride]},
    "subsample_backward": lambda dy, stride, k: {"dx": scatter(dy, stride, k)},
    "branch_sum": lambda x1, x2: {"y": x1 + x2},
    "biased_sum": lambda x1, x2, b, activation: {"y": EXACTLY[activation](x1 + x2 + b)},
    "bias_grad": lambda da: {"db": da.sum(0)},
    "sse": loss_of(lambda y, t: (y - t) ** 2, lambda y, t: 2 * (y - t), scale=lambda y: 1),
    "mse": loss_of(lambda y, t: (y - t) ** 2, lambda y, t: 2 * (y - t)),
    "mse_part": mse_part,
    "mae": loss_of(lambda y, t: np.abs(y - t), lambda y, t: np.sign(y - t)),
    "huber": loss_of(
        lambda y, t, delta: np.where(
            np.abs(y - t) <= delta, (y - t) ** 2 / 2, delta * (np.abs(y - t) - delta / 2)
        ),
        lambda y, t, delta: np.clip(y - t, -delta, delta),
    ),
    "bce": loss_of(
        lambda y, t: -t * np.maximum(np.log(y), -100) - (1 - t) * np.maximum(np.log1p(-y), -100),
        lambda y, t: (y - t) / np.maximum(y * (1 - y), 1e-12),
    ),
    "bce_with_logits": bce_with_logits,
    "total": lambda row_loss: {"loss": row_loss.sum(keepdims=True)},
    "row_mse": lambda y, target: {"error": ((y - target) ** 2).mean(1)},
    "sgd": lambda g, w, learning_rate, weight_decay: {"w": w - learning_rate * (g + weight_decay * w)},
    "momentum": momentum,
    "adam": adam,
    "dense_adam": dense_adam,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "clip_by_norm": clip_by_norm,
    "batchnorm_forward": batchnorm_forward,
    "batchnorm_inference": lambda x, gamma, beta, running_mean, running_var, activation, epsilon: {
        "y": EXACTLY[activation](gamma * (x - running_mean) / np.sqrt(running_var + epsilon) + beta)
    },
    "batchnorm_backward": batchnorm_backward,
    "dense_batchnorm_forward": lambda x, w, b, gamma, beta, running_mean, running_var, **constants: {
        "z": x @ w + b,
        **batchnorm_forward(x @ w + b, gamma, beta, running_mean, running_var, **constants),
    },
    "dense_batchnorm_inference": lambda x, w, b, running_mean, running_var, **others: {
        "y": EXACTLY[others["activation"]](
            others["gamma"] * (x @ w + b - running_mean) / np.sqrt(running_var + others["epsilon"])
            + others["beta"]
        )
    },
    "conv2d_forward": lambda x, w, b, activation, **geometry: {
        "y": EXACTLY[activation](convolution(x, w, b, **geometry))
    },
    "conv2d_backward": conv2d_backward,
    "conv2d_input_grad": lambda da, w, x, activation, ih, iw, **geometry: {
        "dx": adjoint(lambda v: convolution(v, w, **geometry), da, x.shape[1:]) * SLOPE[activation](x)
    },
    "conv2d_weight_grad": lambda x, da, kh, kw, **geometry: {
        "dw": convolution_weight_grad(x, da, (kh, kw), **geometry),
        "db": da.sum((0, 2, 3)),
    },
    "conv_transpose2d_forward": lambda x, w, b, activation, **geometry: {
        "y": EXACTLY[activation](conv_transpose(x, w, **geometry) + b[:, None, None])
    },
    "conv_transpose2d_backward": conv_transpose2d_backward,
    "conv_transpose2d_input_grad": lambda da, w, x, activation, ih, iw, **geometry: (
        conv_transpose2d_input_grad(da, w, x, activation, **geometry)
    ),
    "conv_transpose2d_weight_grad": lambda x, da, kh, kw, output_padding, **geometry: {
        "dw": convolution_weight_grad(da, x, (kh, kw), **geometry),
        "db": da.sum((0, 2, 3)),
    },
    "upsample_conv2d_weight": lambda w, factor: {"v": upsampled_weight(turned(w), factor)},
    "upsample_conv2d_weight_grad": lambda dv, factor: {"dw": turned(upsampled_weight_grad(dv, factor))},
    "upsample_conv_transpose2d_weight": lambda w, factor: {"v": upsampled_weight(w, factor)},
    "upsample_conv_transpose2d_weight_grad": lambda dv, factor: {"dw": upsampled_weight_grad(dv, factor)},
    "max_pool2d_forward": max_pool,
    "max_pool2d_backward": max_pool2d_backward,
    "conv2d_max_pool2d_forward": lambda x, w, b, activation, pool, **geometry: max_pool(
        EXACTLY[activation](convolution(x, w, b, **geometry)), pool, pool
    ),
    "conv2d_max_pool2d_weight_grad": conv2d_max_pool2d_weight_grad,
    "avg_pool2d_forward": lambda x, **pooling: {"y": avg_pool(x, **pooling)},
    "avg_pool2d_backward": avg_pool2d_backward,
    "upsample2d_forward": lambda x, factor: {"y": np.kron(x, np.ones(factor))},
    "upsample2d_backward": upsample2d_backward,
    "batchnorm2d_forward": batchnorm2d_forward,
    "batchnorm2d_inference": batchnorm2d_inference,
    "batchnorm2d_backward": batchnorm2d_backward,
    "images_from_rows": lambda x, c, ih, iw: {"y": x.reshape(-1, c, ih, iw)},
    "rows_from_images": lambda x: {"y": x.reshape(len(x), -1)},
    "softmax_forward": lambda x: {"y": softmax(x)},
    "softmax_backward": lambda dy, y: {"dx": y * (dy - (dy * y).sum(1, keepdims=True))},
    "dropout_forward": lambda x, counter, rate, stream: {
        "y": np.where(zeros_in(x, counter, rate, stream), 0, x / (1 - rate))
    },
    "dropout_backward": lambda dy, counter, rate, stream: {
        "dx": np.where(zeros_in(dy, counter, rate, stream), 0, dy / (1 - rate))
    },
    "masking_noise": lambda x, counter, rate, stream: {
        "y": np.where(zeros_in(x, counter, rate, stream), 0, x)
    },
    "gaussian_noise": lambda x, counter, stddev, stream: {
        "y": x + stddev * normal_deviates(x.shape, counter, stream)
    },
    "gather_rows": lambda data, order: {"x": data[order]},
}


@pytest.mark.parametrize(("row", "activation"), rows_and_activations())
def test_scalar_is_the_definition(make_case, row, activation):
    for dims, constants in grid(row)[::3]:
        case = make_case(row, dims, activation=activation, constants=constants)
        actual = case.run(backends.load("scalar"))
        for name, expected in DEFINITIONS[row.name](**case.keywords(case.inputs)).items():
            np.testing.assert_allclose(actual[name], expected, rtol=1e-13, atol=1e-13)


TORCH_LOSSES = {
    "sse": lambda f, y, t: f.mse_loss(y, t, reduction="sum"),
    "mse": lambda f, y, t: f.mse_loss(y, t),
    "mse_part": lambda f, y, t: f.mse_loss(y, t) * y.shape[1] / 10,
    "mae": lambda f, y, t: f.l1_loss(y, t),
    "huber": lambda f, y, t: f.huber_loss(y, t),
    "bce": lambda f, y, t: f.binary_cross_entropy(y, t),
    "bce_with_logits": lambda f, y, t: f.binary_cross_entropy_with_logits(y, t),
}


@pytest.mark.parametrize(
    ("row", "activation"), rows_and_activations([r for r in ROWS if r.loss and r.name != "bce"])
)
def test_against_pytorch(torch, loaded, row, activation):
    """A layer and a loss, forward and backward, against autograd in float64."""
    against_pytorch(torch, loaded, row.name, activation)


@pytest.mark.parametrize("activation", ["sigmoid", "softplus", "elu"])
def test_cross_entropy_against_pytorch(torch, loaded, activation):
    """With activations whose outputs are, or here happen to be, probabilities."""
    against_pytorch(torch, loaded, "bce", activation, bias=0.0 if activation == "sigmoid" else -0.5)


def against_pytorch(torch, loaded, loss, activation, bias=None):
    f = torch.nn.functional
    rng = np.random.default_rng(4)
    x, w, b = (rng.uniform(-1, 1, s) for s in [(6, 9), (9, 7), (7,)])
    target = rng.uniform(0, 1, (6, 7))
    if bias is not None:
        w, b = np.abs(w) / 9, b / 10 + (0.5 if activation == "elu" else bias)
        x = np.abs(x) / 2
    tx, tw, tb = (torch.tensor(v, requires_grad=True) for v in (x, w, b))
    function = {"linear": lambda v: v}.get(activation) or getattr(f, activation)
    ty = function(tx @ tw + tb)
    ty.retain_grad()
    tloss = TORCH_LOSSES[loss](f, ty, torch.tensor(target))
    tloss.backward()

    y = ops.dense_forward(x, w, b, activation, backend=loaded)
    constants = {"columns": 10} if loss == "mse_part" else {}
    row_loss, dy = getattr(ops, loss)(y, target, **constants, backend=loaded)
    fused = {} if loss == "bce_with_logits" else {"activation": activation}
    _, da = getattr(ops, loss)(y, target, **fused, **constants, backend=loaded)
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


@pytest.mark.parametrize("activation", ["linear", "relu", "sigmoid"])
def test_batchnorm_against_pytorch(torch, loaded, activation):
    """Three batches: outputs, all gradients and the running statistics; then inference."""
    rng = np.random.default_rng(11)
    gamma, beta = rng.uniform(0.5, 1.5, 37), rng.uniform(-1, 1, 37)
    layer = torch.nn.BatchNorm1d(37, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(gamma))
        layer.bias.copy_(torch.tensor(beta))
    function = {"linear": lambda v: v}.get(activation) or getattr(torch, activation)
    running = np.stack([np.zeros(37), np.ones(37)])

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-11, atol=1e-13)

    for n in (2, 6, 32):
        x, dy = rng.normal(3, 2, (n, 37)), rng.normal(size=(n, 37))
        tx = torch.tensor(x, requires_grad=True)
        layer.zero_grad()
        ty = function(layer(tx))
        ty.backward(torch.tensor(dy))
        y, mean, inv_std = ops.batchnorm_forward(
            x, gamma, beta, running[0], running[1], activation, backend=loaded
        )
        close(y, ty)
        gradients = ops.batchnorm_backward(dy, x, gamma, y, mean, inv_std, activation, backend=loaded)
        if n > 2:  # of two rows, every deviation is one: what is left of dx is rounding
            for ours, theirs in zip(gradients, (tx.grad, layer.weight.grad, layer.bias.grad), strict=True):
                close(ours, theirs)
        close(running[0], layer.running_mean)
        close(running[1], layer.running_var)
    layer.eval()
    ours = ops.batchnorm_inference(x, gamma, beta, running[0], running[1], activation, backend=loaded)
    close(ours, function(layer(tx)))


def test_softmax_against_pytorch(torch, loaded):
    x, dy = np.random.default_rng(12).normal(0, 5, (2, 6, 37))
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.softmax(tx, 1)
    ty.backward(torch.tensor(dy))
    y = ops.softmax_forward(x, backend=loaded)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-12)
    dx = ops.softmax_backward(dy, y, backend=loaded)
    np.testing.assert_allclose(dx, tx.grad.numpy(), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimiser_against_pytorch(torch, loaded, name):
    kernel, constants = OPTIMISERS[name]
    settings = {"momentum": 0.9} if kernel == "momentum" else {}
    settings |= {key: bool(v) if key == "nesterov" else v for key, v in constants.items()}
    if kernel == "adagrad":
        settings["lr_decay"] = 0.0
    settings.pop("decoupled", None)
    theirs = {"momentum": "SGD", "nesterov": "SGD", "sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
    maker = getattr(torch.optim, theirs.get(name) or {"rmsprop": "RMSprop", "adagrad": "Adagrad"}[name])
    rng = np.random.default_rng(13)
    w = rng.normal(size=37)
    tw = torch.tensor(w, requires_grad=True)
    optimiser = maker([tw], lr=0.01, **settings)
    states = {state: np.zeros(37) for state in STATES[kernel]}
    for t in range(STEPS):
        g = rng.normal(size=37)
        tw.grad = torch.tensor(g)
        optimiser.step()
        step = {"step": np.array([t])} if kernel == "adam" else {}
        getattr(ops, kernel)(g=g, w=w, **step, **states, learning_rate=0.01, **constants, backend=loaded)
        np.testing.assert_allclose(w, tw.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_clip_against_pytorch(torch, loaded):
    """But for the 1e-6 that PyTorch adds to the norm."""
    for size in (0.5, 3.0):
        g = np.random.default_rng(14).normal(size=400) * size
        tg = torch.tensor(g.copy(), requires_grad=True)
        tg.grad = torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_([tg], 20.0)
        np.testing.assert_allclose(ops.clip_by_norm(g, max_norm=20.0, backend=loaded), norm, rtol=1e-14)
        np.testing.assert_allclose(g, tg.grad.numpy(), rtol=1e-7)

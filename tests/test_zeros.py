"""Products that pass over zeros: without a trace in the result, and in less time."""

import re
from pathlib import Path

import numpy as np
import pytest

from fastae import backend as backends
from fastae import image_graph, ops
from fastae.kernels import compiled as compiled_kernels
from fastae.kernels.table import KERNELS
from fastae.layers import Activation, Conv2D, Dense, Flatten, MaxPool2D, Reshape
from fastae.lowering import lower
from fastae.network import Network
from fastae.optimizers import SGD

in_cython = pytest.mark.parametrize("backend", ["cython"], indirect=True)
compiled = pytest.mark.parametrize("backend", ["cython", "numba"], indirect=True)

#: Of a matrix with so many numbers other than zero. The last is no less work without its zeros.
SHARES = [0, 0.05, 0.5, 0.8]

#: Kernels with a product of x that has columns of their own.
BY_COLUMNS = [
    "dense_forward",
    "dense_weight_grad",
    "dense_sgd",
    "dense_adam",
    "dense_batchnorm_forward",
    "dense_batchnorm_inference",
]


def emptied(values: np.ndarray, share: float) -> np.ndarray:
    """The values with zeros, of either sign, instead of all but a share of them."""
    rng = np.random.default_rng(8)
    zeros = np.copysign(0, rng.normal(size=values.shape)).astype(values.dtype)
    return np.where(rng.uniform(size=values.shape) < share, values, zeros)


def ones_of(case, columns: slice) -> dict[str, np.ndarray]:
    """Inputs of so many columns of what a kernel makes."""
    there = {a.name: a for a in case.row.given}
    return {
        name: values[..., columns].copy() if there[name].dims[-1] == "m" else values
        for name, values in case.inputs.items()
    }


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", BY_COLUMNS)
@in_cython
def test_a_product_has_the_bits_of_one_that_takes_every_term(
    make_case, same_bits, loaded, name, share, dtype
):
    """Which one of few columns does: four vectors, of two numbers or more, are the least worth it."""
    row = KERNELS[name]
    for n, k, m in ((67, 150, 203), (9, 520, 130), (300, 33, 64), (8, 1, 70), (130, 1100, 72)):
        whole = make_case(row, {"n": n, "k": k, "m": m}, dtype, activation="relu")
        inputs = {"x": emptied(whole.inputs["x"], share)}
        if "b" in whole.inputs:  # a sum that is -0 in one way must be in the other
            inputs["b"] = whole.inputs["b"] * (np.arange(m) % 3 > 0) * dtype.type(-1)
        whole = whole.with_inputs(**inputs)
        found = whole.run(loaded)
        for first in range(0, m, 7):
            columns = slice(first, min(first + 7, m))
            few = make_case(
                row, {"n": n, "k": k, "m": columns.stop - first}, dtype, activation="relu"
            ).with_inputs(**ones_of(whole, columns))
            made_of_few = few.run(loaded)
            for result, made in made_of_few.items():
                if "z" in made_of_few and result != "z":
                    continue  # statistics of the product
                same_bits(found[result][..., columns].copy(), made, f"{whole}: {result}, {columns}")


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", BY_COLUMNS[:2])
@compiled
def test_a_product_is_exact_on_integers(make_case, same_bits, loaded, name, share, dtype):
    """Narrow, with columns over, and so large that BLAS would take it."""
    for n, k, m in ((33, 150, 203), (9, 20, 64), (70, 5, 77), (130, 700, 150)):
        case = make_case(KERNELS[name], {"n": n, "k": k, "m": m}, dtype, integers=True)
        case = case.with_inputs(x=emptied(case.inputs["x"], share))
        expected = case.run(backends.load("numpy"))
        for result, made in case.run(loaded).items():
            same_bits(made + 0, expected[result] + 0, f"{case}: {result}")


@pytest.mark.parametrize("name", BY_COLUMNS[:2])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@compiled
def test_a_zero_times_what_is_not_finite_is_nan(make_case, loaded, name, bad, dtype):
    case = make_case(KERNELS[name], {"n": 33, "k": 150, "m": 203}, dtype)
    other = "w" if name == "dense_forward" else "da"
    values = case.inputs[other].copy()
    values[::11, ::7] = bad
    case = case.with_inputs(**{"x": emptied(case.inputs["x"], 0.05), other: values})
    expected = case.run(backends.load("scalar"))
    for result, made in case.run(loaded).items():
        np.testing.assert_array_equal(np.isnan(made), np.isnan(expected[result]), result)
        np.testing.assert_array_equal(np.isinf(made), np.isinf(expected[result]), result)


#: Constants of a convolution, and sizes: of the image, of the kernel, of the channels in and out.
CONVOLUTIONS = [
    ({}, (12, 11), (3, 3), (17, 5)),
    ({"padding_top": 1, "padding_left": 2, "padding_right": 1}, (9, 14), (3, 5), (16, 3)),
    ({"stride_h": 2, "stride_w": 3, "padding_bottom": 1}, (15, 20), (4, 2), (33, 4)),
    ({"dilation_h": 2, "dilation_w": 3, "padding_top": 2, "padding_left": 3}, (13, 16), (2, 3), (16, 6)),
    ({"groups": 2, "stride_h": 3}, (19, 9), (1, 1), (32, 6)),
    ({"stride_w": 2, "dilation_w": 2}, (8, 40), (5, 8), (16, 2)),
    ({"padding_left": 4, "padding_right": 4}, (10, 6), (7, 6), (40, 3)),
]


@pytest.mark.parametrize("share", [0, 0.02, 0.2, 0.5])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: "-".join(case[0]) or "plain")
@in_cython
def test_a_gradient_of_images_has_the_bits_of_one_that_takes_every_term(
    backend, same_bits, case, share, dtype
):
    """Which one of few channels does. A transposed convolution without bias is the same sum."""
    constants, (ih, iw), (kh, kw), (c, o) = case
    plain = {"stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1, "groups": 1}
    plain |= {f"padding_{side}": 0 for side in ("top", "left", "bottom", "right")}
    k = plain | constants
    options = {
        "stride": (k["stride_h"], k["stride_w"]),
        "padding": tuple(k[f"padding_{side}"] for side in ("top", "left", "bottom", "right")),
        "dilation": (k["dilation_h"], k["dilation_w"]),
        "groups": k["groups"],
    }
    oh = (ih + k["padding_top"] + k["padding_bottom"] - k["dilation_h"] * (kh - 1) - 1) // k["stride_h"] + 1
    ow = (iw + k["padding_left"] + k["padding_right"] - k["dilation_w"] * (kw - 1) - 1) // k["stride_w"] + 1
    rng = np.random.default_rng(3)
    n, groups = 19, k["groups"]
    da = emptied(rng.normal(size=(n, o, oh, ow)).astype(dtype), share)
    w = rng.normal(size=(o, c // groups, kh, kw)).astype(dtype)
    saved = rng.normal(size=(n, c, ih, iw)).astype(dtype)
    out = np.full(saved.shape, np.nan, dtype)
    ops.conv2d_input_grad(da, w, saved, "relu", ih=ih, iw=iw, out=out, backend="cython", **options)
    each = c // groups
    for first in range(0, each, 3):
        some = slice(first, first + 1)
        read = np.concatenate([saved[:, g * each :][:, some] for g in range(groups)], axis=1)
        few = np.full(read.shape, np.nan, dtype)
        part = np.ascontiguousarray(w[:, some])
        ops.conv2d_input_grad(
            da, part, np.ascontiguousarray(read), "relu", ih=ih, iw=iw, out=few, backend="cython", **options
        )
        made = np.concatenate([out[:, g * each :][:, some] for g in range(groups)], axis=1)
        same_bits(made, few, f"channels {some}")
    if ih == (oh - 1) * k["stride_h"] + k["dilation_h"] * (kh - 1) + 1 - k["padding_top"] - k[
        "padding_bottom"
    ] and iw == (ow - 1) * k["stride_w"] + k["dilation_w"] * (kw - 1) + 1 - (
        k["padding_left"] + k["padding_right"]
    ):
        forward = np.full(out.shape, np.nan, dtype)
        ops.conv_transpose2d_forward(da, w, None, "linear", out=forward, backend="cython", **options)
        ops.conv2d_input_grad(da, w, None, "linear", ih=ih, iw=iw, out=out, backend="cython", **options)
        same_bits(forward, out, "transposed")


@in_cython
def test_zeros_of_a_gradient_times_weights_that_are_not_finite_are_nan(backend, dtype):
    rng = np.random.default_rng(3)
    da = emptied(rng.normal(size=(19, 5, 10, 9)).astype(dtype), 0.1)
    w = rng.normal(size=(5, 17, 3, 3)).astype(dtype)
    w[2, ::5] = np.inf
    found, expected = (
        ops.conv2d_input_grad(da, w, ih=12, iw=11, backend=name) for name in ("cython", "numpy")
    )
    # inside: what lies beyond an edge may be a zero that is multiplied, or nothing at all
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_array_equal(np.isnan(found[inside]), np.isnan(expected[inside]))


@pytest.mark.timed
@in_cython
def test_a_product_takes_less_time_without_the_zeros(backend, slowdown):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(64, 600)).astype("float32"), rng.normal(size=(600, 200)).astype("float32")
    few, da = emptied(x, 0.05), rng.normal(size=(64, 200)).astype("float32")
    y, out = np.empty((64, 200), "float32"), (np.empty((600, 200), "float32"), np.empty(200, "float32"))
    for of in (
        lambda x: ops.dense_forward(x, w, None, out=y, backend="cython"),
        lambda x: ops.dense_weight_grad(x, da, out=out, backend="cython"),
    ):
        assert slowdown(lambda of=of: of(few), than=lambda of=of: of(x)) < 0.6
    images = rng.normal(size=(64, 16, 12, 12)).astype("float32")
    kernel = rng.normal(size=(16, 16, 3, 3)).astype("float32")
    options = {"ih": 14, "iw": 14, "out": np.empty((64, 16, 14, 14), "float32"), "backend": "cython"}
    sparse = emptied(images, 0.02)
    taken = slowdown(
        lambda: ops.conv2d_input_grad(sparse, kernel, **options),
        than=lambda: ops.conv2d_input_grad(images, kernel, **options),
    )
    assert taken < 0.8  # both lay images side by side, and back


def test_a_gradient_is_read_from_the_windows_of_a_pooling():
    def kernels(*chain, shape):
        net = Network(chain, [Activation("linear")], shape)
        program = lower(net, batch_size=32, loss="mse", optimizer="sgd", dtype="float32", padded=True)
        return [i.kernel for i in program.routine("train", True).instructions]

    from_windows = "conv2d_max_pool2d_weight_grad"
    two = (Conv2D(16, 3, padding=1), Conv2D(4, 3), MaxPool2D(2))
    assert from_windows in kernels(*two, shape=(1, 10, 10))
    assert kernels(*two, shape=(1, 10, 10)).count("conv2d_weight_grad") == 1  # of the first
    assert from_windows not in kernels(Conv2D(15, 3), Conv2D(4, 3), MaxPool2D(2), shape=(1, 12, 12))
    assert from_windows not in kernels(Conv2D(16, 3), Conv2D(4, 3), MaxPool2D((1, 2)), shape=(1, 12, 12))
    assert from_windows not in kernels(Conv2D(16, 3), Conv2D(4, 3), MaxPool2D(2), shape=(1, 13, 13))
    assert from_windows not in kernels(Conv2D(16, 1), Conv2D(4, 7), MaxPool2D(2), shape=(1, 12, 12))
    assert from_windows not in kernels(Conv2D(16, 1), Conv2D(4, 3), MaxPool2D(2), shape=(1, 26, 26))


@pytest.mark.parametrize("backend", ["cython", "numba", "numpy"], indirect=True)
def test_what_relu_hides_is_no_number_in_the_gradient_under_a_pooling(loaded, dtype):
    """Infinity times weights below zero is hidden, and zero times infinity is not a number."""
    shape = (17, 8, 10)
    net = Network(
        [Conv2D(5, 3, activation="relu"), MaxPool2D(2), Flatten()], [Dense(1360), Reshape(shape)], shape
    )
    layout = backends.layout(loaded.module)
    program = lower(net, batch_size=32, loss="mse", optimizer=SGD(0.01), dtype=dtype, **layout)
    fused = [i.kernel for i in program.routine("train", True).instructions if "max_pool2d_weight" in i.kernel]
    assert bool(fused) == (loaded.name == "cython")
    weights = dict(net.initial_weights(0))
    weights["conv2d_1.weight"][:, 3] = -np.abs(weights["conv2d_1.weight"][:, 3])
    arena = program.new_arena()
    program.write_weights(arena, weights)
    x = np.random.default_rng(1).uniform(size=(32, *shape)).astype(dtype)
    target = x.copy()
    x[20, 3, 4, 4] = np.inf
    losses = np.full(1, np.nan)
    executor = loaded.module.Executor(program, arena, 1)
    rows = x.reshape(32, -1), target.reshape(32, -1)
    executor.run(program.routine("train", True), *rows, None, losses=losses)
    assert np.isfinite(losses).all()
    found = program.read_weights(arena)["conv2d_1.weight"]
    assert np.isnan(found[:, 3]).all()
    assert np.isfinite(np.delete(found, 3, axis=1)).all()


def test_windows_may_be_more_than_bits_of_a_word(dtype):
    """Lowering leaves such images to the gathers: AVX-512 cannot lay that many places side by side."""
    rng = np.random.default_rng(5)
    x, w = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((9, 17, 20, 20), (3, 17, 2, 3)))
    options = {"pool": (2, 2), "padding": (0, 1, 1, 1), "activation": "relu"}
    y, position = ops.conv2d_max_pool2d_forward(x, w, None, **options, backend="numpy")
    dy = rng.integers(-4, 5, y.shape).astype(dtype)
    made = []
    for name in ("cython", "numpy"):
        dw, db = np.full(w.shape, np.nan, dtype), np.full(3, np.nan, dtype)
        ops.conv2d_max_pool2d_weight_grad(
            x, dy, position, y, kh=2, kw=3, **options, out=(dw, db), backend=name
        )
        made.append((dw, db))
    for a, b in zip(*made, strict=True):
        np.testing.assert_array_equal(a, b)


def test_fields_of_images_are_not_larger_than_can_be_counted(dtype):
    """A stride so large that the places of a field are more than 64 bits count."""
    x, w = np.ones((9, 4, 5, 5), dtype), np.ones((4, 16, 4, 4), dtype)
    x[:, :, 1:] = 0
    far = {"stride": 2**30 - 1, "padding": 2**31 - 1}
    y = ops.conv_transpose2d_forward(x, w, None, backend="cython", **far)
    np.testing.assert_array_equal(y, ops.conv_transpose2d_forward(x, w, None, backend="numpy", **far))


def test_lowering_and_the_kernel_agree_on_what_comes_image_by_image():
    """Where the kernel cannot, it lays out the windows for each tile anew."""
    header = (Path(compiled_kernels.__file__).parent / "image_zeros.h").read_text()
    sizes = dict(re.findall(r"#define (ZERO_\w+) (\d+)", header))
    lanes = 16  # most of them
    assert int(re.findall(r"ZERO_FIELD .* (\d+)\)", header)[0]) == image_graph._FIELD
    assert image_graph._TAPS * lanes * int(sizes["ZERO_CHANNELS"]) == int(sizes["ZERO_PACKED"])

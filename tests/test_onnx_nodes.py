"""The ONNX package's own tests of single nodes, run by fastae.ops.

::

    onnx.backend.test ── cases of OPERATORS ──> adapter ──┬── fastae.ops ──> outputs, as the package has them
                                                          └── OutOfScope ──> reason, as OUT_OF_SCOPE has it

Every case of these operators is run or listed. A version of ONNX with other cases is told apart by its names:
a new case is run too, and where the adapter refuses it, the test fails until it is listed or can be run.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fastae import ops

RANK = "images have a height and a width, no more and no less"
CEIL = "no window reaches beyond the padding"
DILATED = "windows of a pooling have no gaps"
PADDED = "no window of a pooling lies in the padding alone: it is at most half a window"
ORDER = "places are counted row by row"
INTEGERS = "float32 and float64 alone"
SLOPE = "an activation has its default constant"
AXIS = "what is flattened are the images of a batch"
MATRIX = "a bias is one number for each output"
NEAREST = "no interpolation but nearest"
FACTOR = "every row and every column comes a whole number of times"
PLACES = "the places that are read are not each of them repeated"

#: What is not run, of each operator, and why.
OUT_OF_SCOPE: dict[str, dict[str, tuple[str, ...]]] = {
    "AveragePool": {
        RANK: (
            "test_averagepool_1d_default",
            "test_averagepool_3d_default",
            "test_averagepool_3d_dilations_small",
            "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False",
            "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True",
            "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False",
            "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True",
        ),
        CEIL: ("test_averagepool_2d_ceil", "test_averagepool_2d_ceil_last_window_starts_on_pad"),
        DILATED: ("test_averagepool_2d_dilations",),
        PADDED: ("test_averagepool_2d_pads", "test_averagepool_2d_pads_count_include_pad"),
    },
    "ConvTranspose": {RANK: ("test_convtranspose_1d", "test_convtranspose_3d")},
    "Elu": {SLOPE: ("test_elu", "test_elu_example")},
    "Flatten": {
        AXIS: (
            "test_flatten_axis0",
            "test_flatten_axis2",
            "test_flatten_axis3",
            "test_flatten_negative_axis1",
            "test_flatten_negative_axis2",
            "test_flatten_negative_axis4",
        ),
    },
    "Gemm": {MATRIX: ("test_gemm_default_matrix_bias",)},
    "LeakyRelu": {SLOPE: ("test_leakyrelu", "test_leakyrelu_example")},
    "MaxPool": {
        RANK: (
            "test_maxpool_1d_default",
            "test_maxpool_3d_default",
            "test_maxpool_3d_dilations",
            "test_maxpool_3d_dilations_use_ref_impl",
            "test_maxpool_3d_dilations_use_ref_impl_large",
        ),
        CEIL: ("test_maxpool_2d_ceil", "test_maxpool_2d_ceil_output_size_reduce_by_one"),
        DILATED: ("test_maxpool_2d_dilations",),
        INTEGERS: ("test_maxpool_2d_uint8",),
        ORDER: ("test_maxpool_with_argmax_2d_precomputed_strides",),
        PADDED: ("test_maxpool_2d_pads",),
    },
    "Resize": {
        NEAREST: (
            "test_resize_downsample_scales_cubic",
            "test_resize_downsample_scales_cubic_A_n0p5_exclude_outside",
            "test_resize_downsample_scales_cubic_align_corners",
            "test_resize_downsample_scales_cubic_antialias",
            "test_resize_downsample_scales_linear",
            "test_resize_downsample_scales_linear_align_corners",
            "test_resize_downsample_scales_linear_antialias",
            "test_resize_downsample_scales_linear_half_pixel_symmetric",
            "test_resize_downsample_sizes_cubic",
            "test_resize_downsample_sizes_cubic_antialias",
            "test_resize_downsample_sizes_linear_antialias",
            "test_resize_downsample_sizes_linear_pytorch_half_pixel",
            "test_resize_tf_crop_and_resize",
            "test_resize_tf_crop_and_resize_axes_2_3",
            "test_resize_tf_crop_and_resize_axes_3_2",
            "test_resize_tf_crop_and_resize_extrapolation_value",
            "test_resize_upsample_scales_cubic",
            "test_resize_upsample_scales_cubic_A_n0p5_exclude_outside",
            "test_resize_upsample_scales_cubic_align_corners",
            "test_resize_upsample_scales_cubic_asymmetric",
            "test_resize_upsample_scales_linear",
            "test_resize_upsample_scales_linear_align_corners",
            "test_resize_upsample_scales_linear_half_pixel_symmetric",
            "test_resize_upsample_sizes_cubic",
        ),
        FACTOR: (
            "test_resize_downsample_scales_nearest",
            "test_resize_downsample_sizes_nearest",
            "test_resize_downsample_sizes_nearest_not_larger",
            "test_resize_downsample_sizes_nearest_not_smaller",
            "test_resize_upsample_sizes_nearest",
            "test_resize_upsample_sizes_nearest_axes_2_3",
            "test_resize_upsample_sizes_nearest_axes_3_2",
            "test_resize_upsample_sizes_nearest_not_larger",
        ),
        PLACES: (
            "test_resize_upsample_sizes_nearest_ceil_half_pixel",
            "test_resize_upsample_sizes_nearest_floor_align_corners",
            "test_resize_upsample_sizes_nearest_round_prefer_ceil_asymmetric",
        ),
    },
}


# The adapter ----------------------------------------------------------------------------------------------


class OutOfScope(Exception):
    """What a node asks for and fastae does not have."""


def demand(fulfilled: bool, reason: str) -> None:
    if not fulfilled:
        raise OutOfScope(reason)


class Node:
    """One node with its inputs.

    Attributes
    ----------
    inputs : list of ndarray or None
        As the operator's documentation numbers them; None where one is left out.
    outputs : int
        How many of them are asked for.
    """

    def __init__(self, onnx: Any, case: Any, backend: str) -> None:
        (node,) = case.model.graph.node
        ((given, self.expected),) = case.data_sets
        by_name = dict(zip((i.name for i in case.model.graph.input), given, strict=True))
        self.inputs = [by_name[name] if name else None for name in node.input]
        self.outputs = len(node.output)
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.backend = backend
        self.used: set[str] = set()

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute or its default value, text as str."""
        self.used.add(name)
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def input(self, place: int) -> np.ndarray | None:
        return self.inputs[place] if place < len(self.inputs) else None

    def images(self) -> np.ndarray:
        x = self.inputs[0]
        demand(x.ndim == 4, RANK)
        demand(x.dtype in (np.float32, np.float64), INTEGERS)
        return x

    def run(self, name: str, *arrays: np.ndarray | None, **constants: Any) -> Any:
        return getattr(ops, name)(*arrays, **constants, backend=self.backend)


def split(total: int, auto_pad: str) -> tuple[int, int]:
    """Padding before and after; the odd one after for SAME_UPPER, before for all others."""
    less = total // 2
    return (less, total - less) if auto_pad == "SAME_UPPER" else (total - less, less)


def padding(node: Node, size: Sequence[int], extent: Sequence[int], stride: Sequence[int]) -> tuple:
    """(top, left, bottom, right) of windows of an extent."""
    auto_pad = node.attribute("auto_pad", "NOTSET")
    pads = node.attribute("pads", (0, 0, 0, 0))
    if auto_pad in ("NOTSET", "VALID"):
        return tuple(pads)
    needed = [max((-(-i // s) - 1) * s + e - i, 0) for i, e, s in zip(size, extent, stride, strict=True)]
    (top, bottom), (left, right) = (split(total, auto_pad) for total in needed)
    return top, left, bottom, right


def convolution(node: Node) -> tuple[dict[str, Any], list[int]]:
    """What both convolutions have, and the extent of the kernel."""
    x, w = node.images(), node.inputs[1]
    assert tuple(node.attribute("kernel_shape", w.shape[2:])) == w.shape[2:]
    constants = {
        "stride": tuple(node.attribute("strides", (1, 1))),
        "dilation": tuple(node.attribute("dilations", (1, 1))),
        "groups": node.attribute("group", 1),
    }
    assert x.dtype == w.dtype
    return constants, [d * (k - 1) + 1 for d, k in zip(constants["dilation"], w.shape[2:], strict=True)]


def conv(node: Node) -> tuple:
    constants, extent = convolution(node)
    x = node.images()
    constants["padding"] = padding(node, x.shape[2:], extent, constants["stride"])
    return (node.run("conv2d_forward", x, node.inputs[1], node.input(2), **constants),)


def conv_transpose(node: Node) -> tuple:
    constants, extent = convolution(node)
    x, stride = node.images(), constants["stride"]
    auto_pad = node.attribute("auto_pad", "NOTSET")
    added = list(node.attribute("output_padding", (0, 0)))
    pads = list(node.attribute("pads", (0, 0, 0, 0)))
    same = [i * s for i, s in zip(x.shape[2:], stride, strict=True)] if auto_pad.startswith("SAME") else None
    wanted = node.attribute("output_shape", same)
    for end in (0, 1) if wanted else ():
        total = (x.shape[2 + end] - 1) * stride[end] + extent[end] + added[end] - wanted[end]
        added[end] += max(-total, 0)  # larger than what there is
        pads[end], pads[end + 2] = split(max(total, 0), auto_pad)
    constants |= {"padding": tuple(pads), "output_padding": tuple(added)}
    return (node.run("conv_transpose2d_forward", x, node.inputs[1], node.input(2), **constants),)


def pooling(node: Node) -> dict[str, Any]:
    x = node.images()
    kernel = tuple(node.attribute("kernel_shape", None))
    stride = tuple(node.attribute("strides", (1, 1)))
    demand(tuple(node.attribute("dilations", (1, 1))) == (1, 1), DILATED)
    demand(not node.attribute("ceil_mode", 0), CEIL)
    around = padding(node, x.shape[2:], kernel, stride)
    demand(all(2 * side <= size for side, size in zip(around, kernel * 2, strict=True)), PADDED)
    return {"kernel": kernel, "stride": stride, "padding": around}


def max_pool(node: Node) -> tuple:
    constants = pooling(node)
    demand(not node.attribute("storage_order", 0), ORDER)
    x = node.images()
    y, position = node.run("max_pool2d_forward", x, **constants)
    # Places in the whole of x, from those in the windows.
    u, v = np.divmod(position.astype(np.int64), constants["kernel"][1])
    n, c, p, q = np.indices(y.shape)
    i = p * constants["stride"][0] - constants["padding"][0] + u
    j = q * constants["stride"][1] - constants["padding"][1] + v
    return (y, np.ravel_multi_index((n, c, i, j), x.shape))[: node.outputs]


def average_pool(node: Node) -> tuple:
    constants = pooling(node)
    constants["count_include_pad"] = node.attribute("count_include_pad", 0)
    return (node.run("avg_pool2d_forward", node.images(), **constants),)


def batch_normalization(node: Node) -> tuple:
    x = node.images()
    _, gamma, beta, mean, var = node.inputs
    epsilon, momentum = node.attribute("epsilon", 1e-5), node.attribute("momentum", 0.9)
    if not node.attribute("training_mode", 0):
        return (node.run("batchnorm2d_inference", x, gamma, beta, mean, var, epsilon=epsilon),)
    updated, running_var = mean.copy(), var.copy()
    constants = {"epsilon": epsilon, "momentum": 1 - momentum}  # of the new, not of the old
    y, _, _ = node.run("batchnorm2d_forward", x, gamma, beta, updated, running_var, **constants)
    # ONNX takes the variance of the batch as it is, PyTorch and fastae that of what it is a sample of.
    count = x.size // x.shape[1]
    kept = momentum * var
    return y, updated, kept + (running_var - kept) * (count - 1) / count


def gemm(node: Node) -> tuple:
    """A dense layer; its weight and bias are scaled and laid out as they would be once for all."""
    a, b, c = node.inputs[0], node.inputs[1], node.input(2)
    a = np.ascontiguousarray(a.T) if node.attribute("transA", 0) else a
    b = b.T if node.attribute("transB", 0) else b
    b = np.ascontiguousarray(a.dtype.type(node.attribute("alpha", 1.0)) * b)
    beta = a.dtype.type(node.attribute("beta", 1.0))
    if c is not None:
        demand(c.ndim < 2 or len(c) == 1, MATRIX)
        c = np.ascontiguousarray(np.broadcast_to((beta * c).reshape(-1), b.shape[1:]))
    return (node.run("dense_forward", a, b, c),)


def activation(name: str, **constants: float) -> Callable[[Node], tuple]:
    """Adapt an activation; its constants are ONNX's default ones, and fastae has no others."""

    def run(node: Node) -> tuple:
        for constant, value in constants.items():
            demand(math.isclose(node.attribute(constant, value), value, rel_tol=1e-6), SLOPE)
        x = node.inputs[0]
        rows = x.reshape(len(x) if x.ndim > 1 else 1, -1)
        return (node.run("activation_forward", rows, activation=name).reshape(x.shape),)

    return run


def flatten(node: Node) -> tuple:
    x = node.images()
    demand(node.attribute("axis", 1) % x.ndim == 1, AXIS)
    return (node.run("rows_from_images", x),)


def upsample(node: Node) -> tuple:
    demand(node.attribute("mode", "nearest") == "nearest", NEAREST)
    return (enlarge(node, node.inputs[1]),)


def resize(node: Node) -> tuple:
    x = node.images()
    demand(node.attribute("mode", "nearest") == "nearest", NEAREST)
    scales, sizes = node.input(2), node.input(3)
    axes = [axis % x.ndim for axis in node.attribute("axes", range(x.ndim))]
    whole = np.ones(x.ndim)
    if scales is not None:
        whole[axes] = scales
    else:
        whole[axes] = sizes / np.array(x.shape)[axes]
        fit = {"stretch": None, "not_larger": np.min, "not_smaller": np.max}
        policy = fit[node.attribute("keep_aspect_ratio_policy", "stretch")]
        if policy:
            whole[axes] = policy(whole[axes])
    y = enlarge(node, whole)
    # With a whole factor these round to what is repeated.
    mode = node.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = node.attribute("nearest_mode", "round_prefer_floor")
    repeated = {"half_pixel": ("round_prefer_floor", "round_prefer_ceil"), "asymmetric": ("floor",)}
    demand(rounding in repeated.get(mode, ()), PLACES)
    return (y,)


def enlarge(node: Node, scales: np.ndarray) -> np.ndarray:
    factors = [round(float(scale)) for scale in scales]
    demand(bool((scales == factors).all()) and factors[:2] == [1, 1] and min(factors) >= 1, FACTOR)
    return node.run("upsample2d_forward", node.images(), factor=tuple(factors[2:]))


OPERATORS: dict[str, Callable[[Node], tuple]] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Elu": activation("elu", alpha=1.0),
    "Flatten": flatten,
    "Gemm": gemm,
    "LeakyRelu": activation("leaky_relu", alpha=0.01),
    "MaxPool": max_pool,
    "Relu": activation("relu"),
    "Resize": resize,
    "Sigmoid": activation("sigmoid"),
    "Softplus": activation("softplus"),
    "Tanh": activation("tanh"),
    "Upsample": upsample,
}


# The tests ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx():
    """The package; without it a test is skipped, but in CI, where it has to be there, it fails."""
    if os.environ.get("CI"):
        import onnx
    else:
        onnx = pytest.importorskip("onnx")
    return onnx


@pytest.fixture(scope="module")
def cases(onnx) -> dict[str, list]:
    """Cases of one node, by its operator. All are made, which takes seconds: ours are not asked for alone."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the casts in cases of others
        collected = collect_testcases(None)
    found: dict[str, list] = {operator: [] for operator in OPERATORS}
    for case in collected:
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in found:
            found[nodes[0].op_type].append(case)
    return found


@pytest.mark.parametrize("operator", OPERATORS)
def test_node(onnx, cases, backend, operator):
    """Each case is computed as the package has it, or it is one of those that are listed with this reason."""
    refused: dict[str, str] = {}
    for case in cases[operator]:
        node = Node(onnx, case, backend)
        try:
            found = OPERATORS[operator](node)
        except OutOfScope as reason:
            refused[case.name] = str(reason)
            continue
        assert node.used >= node.attributes.keys(), f"{case.name}: what the adapter does not look at"
        for result, expected in zip(found, node.expected, strict=True):
            assert result.dtype == expected.dtype, case.name
            np.testing.assert_allclose(result, expected, case.rtol, case.atol, err_msg=case.name)
    listed = {n: why for why, names in OUT_OF_SCOPE.get(operator, {}).items() for n in names}
    assert refused == listed, "of this version of ONNX: those that are not run; those that are listed"
    assert len(refused) < len(cases[operator]), "nothing was run"

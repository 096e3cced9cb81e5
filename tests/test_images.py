"""Networks of images: shapes, what is refused, what they are lowered to, and how they train.

Whole trainings are compared with PyTorch in test_pytorch.
"""

import itertools
import math
from functools import partial
from time import perf_counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastae
from fastae import models
from fastae.backend import NAMES
from fastae.kernels.table import KERNELS
from fastae.layers import (
    Activation,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Flatten,
    GaussianNoise,
    MaxPool2D,
    Parallel,
    Reshape,
    Subsample,
    Upsample2D,
    from_dict,
    to_dict,
)
from fastae.lowering import lower
from fastae.network import Network
from fastae.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from fastae.trainer import Trainer

SHORT = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

small, pairs = st.integers(1, 4), st.tuples(st.integers(1, 4), st.integers(1, 4))


# -- shapes --------------------------------------------------------------------------------------------


def after(torch, module, shape):
    """Shape that a torch module makes of images; None where it refuses, or nothing is left."""
    try:
        made = tuple(module(torch.zeros((1, *shape))).shape[1:])
    except (RuntimeError, ValueError):
        return None
    return made if min(made) else None


def declared(make, shape):
    """Shape that a layer declares; None where it is refused."""
    try:
        return make().output_shape(shape)
    except ValueError:
        return None


@SHORT
@given(st.data())
def test_convolutions_have_the_shapes_of_pytorch(torch, data):
    groups, times = data.draw(st.tuples(small, small))
    shape = (data.draw(st.sampled_from([groups, 2 * groups, 3])), *data.draw(st.tuples(small, small)))
    kernel, stride, dilation = (data.draw(pairs) for _ in range(3))
    padding = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    more = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    try:
        made = torch.nn.Conv2d(shape[0], groups * times, kernel, **more)
    except ValueError:
        made = None
    expected = None if made is None else after(torch, made, shape)
    assert declared(lambda: Conv2D(groups * times, kernel, **more), shape) == expected
    more["output_padding"] = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    try:
        made = torch.nn.ConvTranspose2d(shape[0], groups * times, kernel, **more)
    except ValueError:
        made = None
    expected = None if made is None else after(torch, made, shape)
    assert declared(lambda: ConvTranspose2D(groups * times, kernel, **more), shape) == expected


@SHORT
@given(st.data())
def test_pools_have_the_shapes_of_pytorch(torch, data):
    shape, kernel = (2, *data.draw(pairs)), data.draw(pairs)
    stride = data.draw(st.one_of(st.none(), pairs))
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    for layer, of in ((MaxPool2D, torch.nn.MaxPool2d), (AvgPool2D, torch.nn.AvgPool2d)):
        expected = after(torch, of(kernel, stride, padding), shape)
        assert declared(lambda of=layer: of(kernel, stride, padding), shape) == expected


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_same_is_that_of_keras(size, kernel, stride, dilation):
    """Ceil(size / stride), the odd zero at the end; and back to size * stride."""
    layer = Conv2D(1, kernel, stride, "same", dilation)
    shape = (1, size, size)
    assert layer.output_shape(shape) == (1, -(-size // stride), -(-size // stride))
    top, left, bottom, right = layer.sides(shape)
    assert (top, bottom) == (left, right)
    assert bottom - top in (0, 1)
    needed = (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size
    assert top + bottom == max(needed, 0)
    back = ConvTranspose2D(1, kernel, stride, "same", dilation)
    assert back.output_shape(shape) == (1, size * stride, size * stride)
    # The transposed convolution is the gradient of the one that went there.
    there = Conv2D(1, kernel, stride, "same", dilation).sides(back.output_shape(shape))
    geometry = back.geometry(shape)
    assert tuple(geometry[f"padding_{side}"] for side in ("top", "left", "bottom", "right")) == there
    pool = MaxPool2D(kernel, stride, "same")
    assert pool.output_shape(shape) == layer.output_shape(shape)
    assert 2 * max(pool.sides(shape)) <= kernel


def test_an_argument_may_be_given_in_several_ways():
    assert Conv2D(2, 3, padding="valid") == Conv2D(2, (3, 3), (1, 1), 0) == Conv2D(2, [3, 3], padding=(0, 0))
    assert Conv2D(2, 3, padding=(1, 2)) == Conv2D(2, 3, padding=[1, 2, 1, 2])
    assert MaxPool2D(2) == MaxPool2D((2, 2), 2, 0)
    assert Upsample2D() == Upsample2D((2, 2))


@pytest.mark.parametrize(
    "layer",
    [
        Conv2D(4, (3, 2), 2, (1, 0, 2, 1), 2, 2, "elu", False, "he_normal", trainable=False, name="a"),
        Conv2D(4, 3, padding="same"),
        ConvTranspose2D(4, 3, (2, 3), 1, output_padding=(1, 2), bias_initializer="ones"),
        MaxPool2D(3, 2, 1, "pool"),
        AvgPool2D((2, 3), count_include_pad=False),
        Upsample2D((1, 3)),
        Flatten("flat"),
        Reshape((2, 3, 4)),
    ],
)
def test_a_layer_comes_back_from_plain_values(layer):
    import json

    assert from_dict(json.loads(json.dumps(to_dict(layer)))) == layer


def test_fans_are_those_of_pytorch_and_keras(torch):
    for layer, of, shape in (
        (Conv2D(6, (3, 5), groups=2), torch.nn.Conv2d, (6, 2, 3, 5)),
        (ConvTranspose2D(6, (3, 5), groups=2), torch.nn.ConvTranspose2d, (4, 3, 3, 5)),
    ):
        weight, bias = layer.parameters((4, 8, 8))
        twin = of(4, 6, (3, 5), groups=2)
        assert weight.shape == shape == tuple(twin.weight.shape)
        assert (weight.fan_in, weight.fan_out) == torch.nn.init._calculate_fan_in_and_fan_out(twin.weight)
        limit = 1 / math.sqrt(weight.fan_in)
        for p, start in ((weight, twin.weight), (bias, twin.bias)):
            assert float(start.abs().max().detach()) <= limit
            assert p.shape == tuple(start.shape)
    # Keras: kernel size times inputs, kernel size times outputs; for Glorot's sum the order is all one.
    weight, _ = Conv2D(16, 3).parameters((4, 8, 8))
    assert (weight.fan_in, weight.fan_out) == (36, 144)


# -- what is refused -----------------------------------------------------------------------------------

HOSTILE = [
    (lambda: Conv2D(2, 5), (1, 3, 9), "got a kernel that spans 5x5 and 3x9 padded to 3x9"),
    (lambda: Conv2D(2, 3, dilation=3, padding=1), (1, 4, 4), "spans 7x7 and 4x4 padded to 6x6"),
    (lambda: Conv2D(2, 3, stride=0), None, "stride must be an integer >= 1; got 0"),
    (lambda: Conv2D(2, 3, stride=(1, -2)), None, "stride must be an integer >= 1; got -2"),
    (lambda: Conv2D(2, 3, dilation=0), None, "dilation must be an integer >= 1; got 0"),
    (lambda: Conv2D(2, 3, padding=-1), None, "padding must be an integer >= 0; got -1"),
    (lambda: Conv2D(2, 3, padding="full"), None, "padding must be 'valid', 'same', .*got 'full'"),
    (lambda: Conv2D(2, 3, padding=(1, 2, 3)), None, "padding must be .* got \\(1, 2, 3\\)"),
    (lambda: Conv2D(2, 3, padding=b"same"), None, "padding must be an integer >= 0; got b'same'"),
    (lambda: Conv2D(2, 3, padding=np.ones(2)), None, "padding must be an integer >= 0; got array"),
    (lambda: Conv2D(2, b"33"), None, "kernel_size must be an integer >= 1; got b'33'"),
    (lambda: Conv2D(2, 0), None, "kernel_size must be an integer >= 1; got 0"),
    (lambda: Conv2D(2, 2**31), None, "kernel_size must be .* <= 2147483647; got 2147483648"),
    (lambda: Conv2D(2, 2.5), None, "kernel_size must be an integer >= 1; got 2.5"),
    (lambda: Conv2D(2, True), None, "kernel_size must be an integer"),
    (lambda: Conv2D(2, (1, 2, 3)), None, "kernel_size must be an integer or a pair"),
    (lambda: Conv2D(0, 3), None, "filters must be an integer >= 1; got 0"),
    (lambda: Conv2D(3, 3, groups=2), None, "filters must be divisible by groups; got 3 and 2"),
    (lambda: Conv2D(4, 1, groups=2), (3, 4, 4), "input channels must be divisible by groups; got 3 and 2"),
    (lambda: Conv2D(4, 1, activation="softmax"), None, "activation must be one of .*got 'softmax'"),
    (lambda: Conv2D(4, 1, kernel_initializer="identity"), None, "kernel_initializer must be"),
    (lambda: Conv2D(4, 1), (16,), r"three dimensions, .*\(16,\); a Reshape"),
    (lambda: Conv2D(4, 1), (4, 4), r"three dimensions, .*\(4, 4\)"),
    (lambda: Conv2D(2**40, 3), (2**20, 8, 8), "number of bytes below 2\\*\\*63; got shape \\(1099511627776"),
    (lambda: ConvTranspose2D(1, 3, 2, output_padding=2), None, "smaller than stride or dilation; got 2, 2"),
    (lambda: ConvTranspose2D(1, 3, 2, "same", output_padding=1), None, "must be 0 with padding 'same'"),
    (
        lambda: ConvTranspose2D(1, 3, padding=2),
        (1, 2, 2),
        "leave something of the height; got padding 2",
    ),
    (lambda: ConvTranspose2D(1, 2**31 - 1), (1, 2**31, 2**31), "number of bytes below 2\\*\\*63"),
    (lambda: MaxPool2D(3, padding=2), None, "at most half of kernel_size; got 2 and 2 for a height of 3"),
    (lambda: AvgPool2D(2, padding=(0, 0, 0, 2)), None, "half of kernel_size; got 0 and 2 for a width of 2"),
    (lambda: MaxPool2D(4), (1, 3, 8), "spans 4x4 and 3x8 padded to 3x8"),
    (lambda: MaxPool2D(2, 0), None, "stride must be an integer >= 1; got 0"),
    (lambda: AvgPool2D(2, count_include_pad=1), None, "count_include_pad must be True or False"),
    (lambda: Upsample2D(0), None, "factor must be an integer >= 1; got 0"),
    (lambda: Upsample2D(2**31 - 1), (1, 2**20, 2**20), "number of bytes below 2\\*\\*63"),
    (lambda: Upsample2D(2), (3,), "three dimensions"),
    (lambda: Reshape((2, 3)), (7,), "shape \\(2, 3\\) has 6 elements; got .* 7"),
    (lambda: Reshape((0, 3)), None, "shape must be an integer >= 1"),
    (lambda: Reshape(6), None, "shape must be a tuple"),
    (lambda: Dense(3), (1, 4, 4), r"one dimension, .*\(1, 4, 4\); a Flatten"),
    (lambda: Subsample(2), (1, 4, 4), "one dimension"),
    (lambda: Activation("softmax"), (1, 4, 4), "one dimension"),
    (lambda: BatchNorm(activation="softmax"), (1, 4, 4), "one dimension"),
    (lambda: BatchNorm(), (4, 4), "one dimension, .* or three"),
]


@pytest.mark.parametrize(("make", "shape", "message"), HOSTILE)
def test_what_cannot_be_is_refused_with_its_numbers(make, shape, message):
    def declare():
        layer = make()
        assert shape is not None, "refused without an input"
        Network([layer], [Activation("linear")], shape)

    with pytest.raises(ValueError, match=message):
        declare()


def test_an_input_beyond_64_bits_is_refused():
    with pytest.raises(ValueError, match="input_shape must have a number of bytes below"):
        Network([Flatten()], [Dense(1)], (2**31, 2**31, 2**31))


def test_a_network_that_misses_its_target_tells_the_way():
    net = Network(
        [Conv2D(2, 3, name="a"), MaxPool2D(2, name="b")], [ConvTranspose2D(1, 2, 2, name="c")], (1, 9, 9)
    )
    way = r"input \(1, 9, 9\) -> a \(2, 7, 7\) -> b \(2, 3, 3\), the code -> c \(1, 6, 6\)"
    trainer = Trainer(net, backend="cython", seed=0)
    with pytest.raises(ValueError, match=rf"target: .*another shape than the input.*{way}"):
        trainer.fit(np.zeros((4, 1, 9, 9), np.float32))
    with pytest.raises(ValueError, match=rf"target: expected shape .*6, 6.*given \(4, 1, 9, 9\); {way}"):
        trainer.fit(np.zeros((4, 81), np.float32), np.zeros((4, 1, 9, 9), np.float32))
    with pytest.raises(ValueError, match=way):
        lower(net, batch_size=2, loss="mse", optimizer="sgd").routine("train")


# -- lowering ------------------------------------------------------------------------------------------


def lowered(net, **more):
    return lower(net, **{"batch_size": 20, "loss": "mse", "optimizer": SGD(0.01), **more})


def kernels_of(routine):
    return [i.kernel for i in routine.instructions]


FORWARD = {
    "upsample_conv": [
        *["conv2d_max_pool2d_forward"] * 2,
        *["upsample_conv_transpose2d_weight", "conv_transpose2d_forward"] * 2,
        "conv_transpose2d_forward",
    ],
    "strided_conv": [*["conv2d_max_pool2d_forward"] * 2, "conv2d_forward", *["conv_transpose2d_forward"] * 3],
    "generic_conv": [
        *["conv2d_max_pool2d_forward"] * 2,
        *["dense_forward"] * 2,
        *["upsample_conv_transpose2d_weight", "conv_transpose2d_forward"] * 2,
    ],
}


def pooled_at_once(kernels, system):
    """Kernels of an unpadded Program as a padded one has them: the first layer is differentiated in one.

    Of 16 channels or more, as strided_conv's second layer has, a weight is too.
    """
    at_once = "conv2d_max_pool2d_weight_grad"
    text = " ".join(kernels).replace(" ".join(FIRST), at_once)
    if system == "strided_conv":
        text = text.replace(" ".join(POOLED), " ".join([*POOLED[:2], at_once]))
    return text.split()


TRANSPOSED = ["conv_transpose2d_input_grad", "conv_transpose2d_weight_grad"]
COMPOSED = [*TRANSPOSED, "upsample_conv_transpose2d_weight_grad"]
FIRST = ["max_pool2d_backward", "conv2d_weight_grad"]
POOLED = ["max_pool2d_backward", "conv2d_input_grad", "conv2d_weight_grad"]
BACKWARD = {
    "upsample_conv": [*TRANSPOSED, *COMPOSED, *COMPOSED, *POOLED, *FIRST],
    "strided_conv": [*TRANSPOSED * 3, "conv2d_input_grad", "conv2d_weight_grad", *POOLED, *FIRST],
    "generic_conv": [*COMPOSED * 2, *["dense_input_grad", "dense_weight_grad"] * 2, *POOLED, *FIRST],
}


@pytest.mark.parametrize("system", FORWARD)
def test_the_systems_are_lowered_to_the_instructions_they_need(system):
    program = lowered(models.MODELS[system]())
    train = program.routine("train")
    assert kernels_of(train) == [*FORWARD[system], "mse", *BACKWARD[system], "total", "sgd"]
    assert kernels_of(program.routine("evaluate")) == [*FORWARD[system], "mse", "total"]
    assert kernels_of(program.routine("reconstruct")) == FORWARD[system]
    assert kernels_of(program.routine("encode")) + kernels_of(program.routine("decode")) == FORWARD[system]
    assert not any("activation" in k or "upsample2d" in k for k in kernels_of(train))
    for routine in program.losing.values():
        positions = [s for i in routine.instructions for a, s in i.arrays if a.name == "position"]
        assert bool(positions) == routine.trains, "positions serve the gradients alone"
    listing = train.listing()
    assert "max_pool2d_1: fused into conv2d_1" in listing
    assert ("upsample2d_1: made part of conv_transpose2d_1, which then has fewer FLOPs" in listing) == (
        system != "strided_conv"
    )


CONVERSIONS = ("images_from_rows", "rows_from_images")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("system", FORWARD)
def test_padded_programs_convert_only_where_another_face_is_read(system, fused):
    plain = lowered(models.MODELS[system](), fused_update=fused)
    program = lowered(models.MODELS[system](), padded=True, fused_update=fused)
    batch, out = ("images_from_rows", "batch"), ("rows_from_images", None)
    dense = system == "generic_conv"
    middle = [out, ("images_from_rows", "dense_1.out")] if dense else []
    expected = {
        # The loss and its gradient are rows.
        "train": [batch, *middle, out, ("images_from_rows", None), *middle],
        "evaluate": [batch, *middle, out],
        "encode": [batch, out],
        "decode": [("images_from_rows", "dense_1.out" if dense else None), out],
        "reconstruct": [batch, *middle, out],
    }
    for name, conversions in expected.items():
        ours, theirs = program.routine(name), plain.routine(name)
        found = [(i.kernel, i.operands[0].name) for i in ours.instructions if i.kernel in CONVERSIONS]
        assert [k for k, _ in found] == [k for k, _ in conversions], name
        for (_, source), (_, wanted) in zip(found, conversions, strict=True):
            assert name == "train" or wanted is None or source == wanted, name
        assert [k for k in kernels_of(ours) if k not in CONVERSIONS] == pooled_at_once(
            kernels_of(theirs), system
        )
        assert len(set(found)) == len(found), "nothing is laid twice"
        for i in ours.instructions:  # in their own layout images need no workspace, but for half of a sum
            names = {a.name: slot for a, slot in i.arrays}
            if i.in_two_passes:
                assert names["room"].size == names["dw"].size + max(names["dw"].shape[:2])
            else:
                assert "room" not in names
        assert ours.input.shape[1:] == (math.prod(ours.input.shape[1:]),)


def test_images_of_padded_programs_lie_side_by_side():
    for dtype, lanes in (("float32", 16), ("float64", 8)):
        program = lowered(models.strided_conv(), padded=True, dtype=dtype, batch_size=20)
        images = [s for s in program.slots.values() if s.batched and len(s.shape) == 4]
        assert images
        for slot in images:
            assert slot.lanes == lanes
            assert slot.size == -(-20 // lanes) * lanes * math.prod(slot.shape[1:])
            arena = program.new_arena()
            place = arena[slot.offset : slot.offset + slot.size]
            place[:] = np.arange(slot.size) % 1009
            n, c, h, w = slot.shape[0] - 1, slot.shape[1] - 1, slot.shape[2] - 1, 0
            at = ((n // lanes * slot.shape[1] + c) * slot.shape[2] + h) * slot.shape[3] + w
            view = program.view(arena, slot)
            assert view.shape == slot.shape
            assert view[n, c, h, w] == place[at * lanes + n % lanes]
        weights = [s for s in program.parameters if len(s.shape) == 4]
        assert weights
        assert all(s.lanes == 1 for s in weights)
        spans = sorted((s.offset, s.offset + s.size) for s in program.slots.values())
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert spans[-1][1] <= program.arena_size


def chain_of(*chain, shape=(2, 6, 6)):
    return lowered(Network(list(chain), [Activation("linear")], shape))


def train_of(*chain, **more):
    program = chain_of(*chain, **more)
    return program.routine("train", True)


def test_an_activation_is_applied_by_the_convolution_before_it():
    a = train_of(Conv2D(2, 3, padding=1), Activation("tanh"))
    b = train_of(Conv2D(2, 3, padding=1, activation="tanh"))
    assert kernels_of(a) == kernels_of(b)
    assert "conv2d_1" in a.notes[0]


def test_a_pooling_is_computed_with_the_convolution_only_where_it_can_be():
    first = Conv2D(2, 3, activation="relu")
    for pool in (
        MaxPool2D(2, 1),
        MaxPool2D(2, padding=1),
        MaxPool2D(3, 2),
        AvgPool2D(2),
        MaxPool2D((4, 1), (1, 4)),
    ):
        assert "conv2d_forward" in kernels_of(train_of(first, pool)), pool
    assert "conv2d_forward" not in kernels_of(train_of(first, MaxPool2D((4, 1))))
    assert "conv2d_forward" in kernels_of(train_of(Conv2D(2, 1), MaxPool2D((5, 4)), shape=(2, 10, 8)))
    # What else reads the convolution: a branch, or whoever encodes.
    shared = train_of(first, Parallel([MaxPool2D(2)], [AvgPool2D(2)]))
    assert "conv2d_max_pool2d_forward" not in kernels_of(shared)
    code = lowered(Network([first], [MaxPool2D(2)], (2, 6, 6)))
    assert kernels_of(code.routine("encode")) == ["conv2d_forward"]


def test_the_gradient_before_a_pooling_is_made_as_it_is_read_only_where_that_saves_work():
    def kernels(*chain, shape):
        net = Network(chain, [Activation("linear")], shape)
        return kernels_of(lowered(net, padded=True).routine("train", True))

    once = "conv2d_max_pool2d_weight_grad"
    assert once in kernels(Conv2D(2, 3), MaxPool2D(2), shape=(3, 6, 8))
    assert once in kernels(Conv2D(8, 3, groups=2), MaxPool2D(2), shape=(6, 6, 8))
    for layer, shape in ((Conv2D(8, 3), (4, 6, 8)), (Conv2D(8, 5), (1, 8, 8)), (Conv2D(8, 7), (2, 8, 8))):
        assert once not in kernels(layer, MaxPool2D(2), shape=shape)  # it would be made twice
    assert once not in kernels(Conv2D(2, 3), MaxPool2D(2), shape=(3, 7, 8))  # the last row is in no window
    assert once not in kernels(Conv2D(2, 3), MaxPool2D(2), shape=(3, 6, 9))
    two = kernels(Conv2D(2, 1), Conv2D(2, 3), MaxPool2D(2), shape=(1, 6, 8))  # two read it
    assert once not in two
    assert "max_pool2d_backward" in two


def test_an_upsampling_becomes_part_of_a_convolution_only_where_that_saves_work():
    one = train_of(Upsample2D(2), Conv2D(2, 3, padding=1))
    assert kernels_of(one)[:2] == ["upsample_conv2d_weight", "conv_transpose2d_forward"]
    plain = chain_of(Upsample2D(2), Conv2D(2, 3, padding=1), shape=(2, 6, 6))
    assert plain.routine("train", True).flops() < 2 * 20 * 4 * 9 * 144 * 2  # forward and gradient as declared
    for conv in (
        Conv2D(2, 1),  # as many products
        Conv2D(2, 3, stride=2),
        Conv2D(2, 3, dilation=2),
        Conv2D(2, 3, groups=2),
        Conv2D(2, 3, padding=3),  # more padding than the kernel reaches over
        ConvTranspose2D(2, 3, 2),
    ):
        assert kernels_of(train_of(Upsample2D(2), conv))[0] == "upsample2d_forward", conv
    apart = lowered(Network([Upsample2D(2)], [Conv2D(2, 3, padding=1)], (2, 6, 6)))
    assert kernels_of(apart.routine("encode")) == ["upsample2d_forward"]


def test_the_derivative_of_the_layer_below_is_fused_into_gradients_of_images():
    for layer, kernel in (
        (Conv2D(2, 3), "conv2d_input_grad"),
        (ConvTranspose2D(2, 3), "conv_transpose2d_input_grad"),
        (AvgPool2D(2), "avg_pool2d_backward"),
        (MaxPool2D(3, 1), "max_pool2d_backward"),
        (Upsample2D(2), "upsample2d_backward"),
    ):
        train = train_of(Conv2D(2, 1, activation="elu"), layer)
        (found,) = (i for i in train.instructions if i.kernel == kernel)
        assert found.constants["activation"] == "elu"
        assert any(a.role == "saved" and a.name in "xy" for a, _ in found.arrays)
        assert "derivative of conv2d_1's elu fused" in found.note
        assert "activation_backward" not in kernels_of(train)


def test_batch_normalisation_of_images_needs_two_numbers():
    assert chain_of(BatchNorm()).needs_rows == 1
    assert chain_of(BatchNorm(), shape=(3, 1, 1)).needs_rows == 2
    assert chain_of(BatchNorm(), Flatten(), BatchNorm()).needs_rows == 2


def test_every_instruction_of_images_is_used():
    """Those that a Program never has are the gradients in one, for who calls kernels."""
    used = set()
    for chain in (
        [Conv2D(2, 3), BatchNorm(), MaxPool2D(2, 1), AvgPool2D(2, 1), Upsample2D(2), AvgPool2D(2)],
        [ConvTranspose2D(2, 3), Conv2D(2, 3), MaxPool2D(2), Upsample2D(2), Conv2D(2, 3, padding=1)],
        [Conv2D(2, 1), Upsample2D(2), ConvTranspose2D(2, 3), Conv2D(2, 1)],
        [Conv2D(2, 1), MaxPool2D(2)],
    ):
        program = lowered(Network(chain, [Activation("linear")], (2, 6, 6)), padded=True)
        for routine in (program.routine("train", True), program.routine("evaluate", True)):
            used |= set(kernels_of(routine))
    of_images = {name for name, row in KERNELS.items() if {"ih", "kh", "vh"} & set(row.dims)}
    assert of_images - used == {"conv2d_backward", "conv_transpose2d_backward"}


# -- training ------------------------------------------------------------------------------------------

each_backend = pytest.mark.parametrize("backend", NAMES, indirect=True)
on_fast_backends = pytest.mark.parametrize("backend", [n for n in NAMES if n != "scalar"], indirect=True)
with_threads = pytest.mark.parametrize("backend", ["numba", "cython"], indirect=True)


def little():
    """A small network with what training can do to images: noise, normalisation, branches, an image code."""
    return Network(
        [
            Conv2D(3, 3, padding="same", use_bias=False, name="in"),  # the bias would follow rounding alone
            BatchNorm(activation="relu"),
            Dropout(0.1),
            Parallel([Conv2D(3, 1, name="branch")], [Activation("tanh")]),
            MaxPool2D(2),
            Conv2D(2, 2, activation="tanh", name="code"),
        ],
        [
            Upsample2D(3),
            Conv2D(2, 2, activation="elu"),
            Dropout(0.2),
            Flatten(),
            Dense(36),
            Reshape((1, 6, 6)),
        ],
        (1, 6, 6),
    )


def rows(n, shape=(1, 6, 6), dtype="float64", seed=0):
    return np.random.default_rng(seed).uniform(size=(n, *shape)).astype(dtype)


def trained(net, data, backend, *, epochs=2, weights=None, **more):
    options = {"batch_size": 5, "dtype": data.dtype, "seed": 3, **more}
    trainer = Trainer(net, backend=backend, **options)
    if weights is not None:
        trainer.set_weights(weights)
    trainer.fit(data, epochs=epochs)
    return trainer


@each_backend
def test_rows_and_images_are_taken_alike(backend):
    net = Network([Conv2D(2, 3, name="code")], [ConvTranspose2D(1, 3)], (1, 4, 5))
    data = rows(7, (1, 4, 5))
    results = []
    for x in (data, data.reshape(7, 20), data.reshape(7, 4, 5)):
        trainer = trained(net, x, backend)
        code = trainer.encode(x)
        assert code.shape == (7, 2, 2, 3)
        assert trainer.reconstruct(x).shape == (7, 1, 4, 5)
        np.testing.assert_array_equal(trainer.decode(code), trainer.reconstruct(x))
        np.testing.assert_array_equal(trainer.decode(code.reshape(7, 12)), trainer.reconstruct(x))
        results.append(trainer.weights)
    for other in results[1:]:
        for name, value in other.items():
            np.testing.assert_array_equal(value, results[0][name])
    with pytest.raises(
        ValueError, match=r"expected shape \(N, 1, 4, 5\) or \(N, 20\) or \(N, 4, 5\), given \(7, 5, 4\)"
    ):
        trainer.encode(np.zeros((7, 5, 4)))


@on_fast_backends
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.05, momentum=0.9),
        Adam(1e-2, weight_decay=1e-3),
        AdamW(1e-2),
        RMSprop(1e-3),
        Adagrad(1e-2),
        Adam(1e-2, clip_norm=0.05),
    ],
    ids=lambda o: f"{type(o).__name__}{'_clipped' if o.clip_norm else ''}",
)
def test_backends_agree_with_the_definition(backend, optimizer):
    """Noise, weights of rows and a batch of fewer rows too; all optimisers; seven rows in fives."""
    data, more = rows(7), {"optimizer": optimizer, "noise": GaussianNoise(0.1)}
    weight = np.array([1.0, 0.5, 0, 2, 1, 1, 3])
    trainers = []
    for name in ("scalar", backend):
        trainer = Trainer(little(), backend=name, batch_size=5, dtype="float64", seed=3, **more)
        trainer.fit(data, epochs=2, sample_weight=weight, validation_data=rows(3, seed=1))
        trainers.append(trainer)
    a, b = trainers
    np.testing.assert_allclose(b.history.batch_loss, a.history.batch_loss, rtol=1e-9)
    np.testing.assert_allclose(b.history.val_loss, a.history.val_loss, rtol=1e-9)
    for name, value in a.weights.items():
        np.testing.assert_allclose(b.weights[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(b.encode(data), a.encode(data), rtol=1e-7, atol=1e-9)


@on_fast_backends
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_fused_gives_what_is_not(backend, dtype):
    """The same network with a Reshape that changes nothing where two layers would become one."""

    fused = Network(
        [Conv2D(3, 3, activation="relu", name="a"), MaxPool2D(2), Conv2D(2, 2, name="b")],
        [Upsample2D(2), ConvTranspose2D(3, 2, activation="elu", name="c"), ConvTranspose2D(1, 4, name="d")],
        (1, 8, 8),
    )
    data = rows(20, (1, 8, 8), dtype)
    shapes = {p.name: p.output_shape for p in fused.layers}
    unfused = Network(
        [fused.encoder[0], Reshape(shapes["a"]), *fused.encoder[1:]],
        [fused.decoder[0], Reshape(shapes["upsample2d_1"]), *fused.decoder[1:]],
        (1, 8, 8),
    )
    assert "max_pool2d_forward" in kernels_of(lowered(unfused).routine("train"))
    assert "upsample2d_forward" in kernels_of(lowered(unfused).routine("train"))
    assert "max_pool2d_forward" not in kernels_of(lowered(fused).routine("train"))
    assert "upsample2d_forward" not in kernels_of(lowered(fused).routine("train"))
    a, b = (trained(n, data, backend, optimizer=SGD(0.05)) for n in (fused, unfused))
    tolerance = {"float32": 1e-4, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(a.history.batch_loss, b.history.batch_loss, rtol=tolerance)
    for name, value in a.weights.items():
        np.testing.assert_allclose(b.weights[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


POOLED_FIRST = {
    "2x2": (Conv2D(9, 3, activation="relu"), MaxPool2D(2), (1, 8, 10)),
    "padded": (Conv2D(4, 5, padding=2, activation="relu"), MaxPool2D(2), (1, 14, 12)),
    "mostly edge": (Conv2D(4, 5, padding=2, activation="relu"), MaxPool2D(2), (1, 8, 6)),
    "strided": (Conv2D(3, 3, stride=2, padding=1), MaxPool2D(2), (2, 15, 20)),
    "dilated": (Conv2D(3, 3, dilation=2, padding=2, activation="tanh"), MaxPool2D(2), (3, 8, 8)),
    "groups": (Conv2D(6, 3, groups=3, activation="relu"), MaxPool2D((1, 2)), (6, 5, 8)),
    "no bias": (Conv2D(4, 1, use_bias=False, activation="elu"), MaxPool2D((3, 1)), (3, 6, 4)),
    "large windows": (Conv2D(17, 2, activation="relu"), MaxPool2D(4), (1, 9, 13)),
    "wide": (Conv2D(8, 3, padding=1, activation="relu"), MaxPool2D(2), (1, 6, 302)),
    "kernel wider": (Conv2D(2, (2, 9), padding=(1, 4), activation="relu"), MaxPool2D(2), (1, 3, 4)),
    "image by image": (Conv2D(18, 3, activation="relu"), MaxPool2D(2), (16, 8, 10)),
    "channels over": (Conv2D(5, (2, 5), padding=1, activation="tanh"), MaxPool2D((2, 3)), (21, 7, 14)),
    "strides by image": (
        Conv2D(33, (4, 2), (2, 1), (1, 0), activation="relu"),
        MaxPool2D((2, 4)),
        (17, 8, 13),
    ),
    "dilated by image": (Conv2D(3, 3, padding=2, dilation=2, activation="elu"), MaxPool2D(3), (16, 9, 9)),
    "groups by image": (Conv2D(6, (1, 7), groups=2, use_bias=False), MaxPool2D(2), (32, 4, 20)),
    "most windows": (Conv2D(2, 1, activation="relu"), MaxPool2D(2), (16, 16, 16)),
}


@pytest.mark.parametrize("case", POOLED_FIRST)
@pytest.mark.parametrize("backend", ["cython"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_pooling_behind_the_first_convolution_is_what_it_is_apart(backend, case, dtype):
    """A Reshape that changes nothing keeps them apart; batches of 64 rows, summed in halves, one of 13."""
    conv, pool, shape = POOLED_FIRST[case]
    kept = Network([conv, pool], [Flatten(), Dense(math.prod(shape)), Reshape(shape)], shape)
    parts = [conv, Reshape(kept.layers[0].output_shape), pool]
    apart = Network(parts, [Flatten(), Dense(math.prod(shape)), Reshape(shape)], shape)
    data = rows(141, shape, dtype)
    options = {"optimizer": SGD(0.05), "batch_size": 64}
    one = trained(kept, data, backend, n_threads=1, **options)
    kernels = kernels_of(one.program.routine("train"))
    assert "conv2d_max_pool2d_weight_grad" in kernels
    assert not {"max_pool2d_backward", "conv2d_weight_grad"} & set(kernels)
    three = trained(kept, data, backend, n_threads=3, **options)
    other = trained(apart, data, backend, n_threads=1, **options)
    assert "max_pool2d_backward" in kernels_of(other.program.routine("train"))
    tolerance = {"float32": 1e-4, "float64": 1e-12}[dtype]
    for (name, value), now in zip(one.weights.items(), other.weights.values(), strict=True):
        np.testing.assert_array_equal(three.weights[name], value, err_msg=name)
        np.testing.assert_allclose(now, value, rtol=tolerance, atol=tolerance, err_msg=name)
    # Forward each number is the same sum.
    other.set_weights(dict(zip(other.weights, one.weights.values(), strict=True)))
    np.testing.assert_array_equal(one.encode(data), other.encode(data))


@with_threads
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_threads_gives_the_same_bits(backend, dtype):
    data = rows(23, dtype=dtype)
    one, two, three = (trained(little(), data, backend, n_threads=n) for n in (1, 2, 3))
    for other in (two, three):
        assert other.history.batch_loss == pytest.approx(one.history.batch_loss, rel=0, abs=0)
        for name, value in one.weights.items():
            np.testing.assert_array_equal(other.weights[name], value, err_msg=name)


@pytest.mark.parametrize("backend", ["cython"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(backend, dtype):
    for net in (little(), models.strided_conv(), models.upsample_conv()):
        data = rows(37, net.input_shape, dtype)
        several = Trainer(net, backend=backend, batch_size=20, dtype=dtype, seed=0)
        alone = Trainer(net, backend=backend, batch_size=1, dtype=dtype, seed=0)
        np.testing.assert_array_equal(several.reconstruct(data), alone.reconstruct(data))
        np.testing.assert_array_equal(several.encode(data), alone.encode(data))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_share_few_images_too(dtype):
    """Layers of several tiles of outputs, and one of a single output; to one place and from it."""
    net = Network(
        [Conv2D(21, 3, padding="same", activation="relu"), MaxPool2D(2), Conv2D(70, 7, activation="tanh")],
        [ConvTranspose2D(15, 7, activation="relu"), ConvTranspose2D(1, 2, 2, activation="sigmoid")],
        (2, 14, 14),
    )
    images = rows(32, net.input_shape, dtype)
    options = {"backend": "cython", "batch_size": 32, "dtype": dtype, "seed": 0}
    among_many = Trainer(net, n_threads=1, **options).reconstruct(images)
    for n_threads in (1, 2, 3):
        trainer = Trainer(net, n_threads=n_threads, **options)
        for few in (1, 2, 3, 5, 8):
            assert trainer.reconstruct(images[:few]).tobytes() == among_many[:few].tobytes(), (n_threads, few)


@on_fast_backends
def test_a_fit_goes_on_from_a_file_as_if_it_had_not_stopped(backend, tmp_path):
    pytest.importorskip("safetensors")
    data = rows(23)

    class Stop:
        def on_epoch_end(self, trainer, epoch, logs):
            if epoch == 2:
                trainer.save(tmp_path / "a.safetensors")
                raise KeyboardInterrupt

    whole = trained(little(), data, backend, epochs=4)
    part = Trainer(little(), backend=backend, batch_size=5, dtype="float64", seed=3)
    with pytest.raises(KeyboardInterrupt):
        part.fit(data, epochs=4, callbacks=[Stop()])
    again = fastae.load(tmp_path / "a.safetensors")
    assert again.net == little()
    again.fit(data, epochs=4, resume=True)
    assert list(again.history.batch_loss) == list(whole.history.batch_loss)
    for name, value in whole.weights.items():
        np.testing.assert_array_equal(again.weights[name], value, err_msg=name)


def test_weights_go_along_when_the_backend_changes():
    data, net = rows(9), little()
    trainer = trained(net, data, "cython")
    codes = trainer.encode(data)
    trainer.backend = "scalar"
    np.testing.assert_allclose(trainer.encode(data), codes, rtol=1e-10, atol=1e-12)


# -- the systems ---------------------------------------------------------------------------------------


def test_the_systems_have_the_published_shapes():
    codes = {"upsample_conv": (8, 5, 5), "strided_conv": (64, 1, 1), "generic_conv": (100,)}
    sizes = {"upsample_conv": 3217, "strided_conv": 183745, "generic_conv": 30560}
    for name, code in codes.items():
        net = models.MODELS[name]()
        assert net.input_shape == net.output_shape == (1, 28, 28)
        assert net.code_shape == code
        assert net.n_parameters == sizes[name]
        starts = {p.initializer for p in net.parameters}
        assert starts == ({"uniform_fan_in"} if name == "strided_conv" else {"glorot_uniform", "zeros"})


@SHORT
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 2),
)
def test_generic_conv_comes_back_or_tells_what_would(kernels, height, width, channels):
    try:
        net = models.generic_conv((channels, height, width), kernels, 2, 5)
    except ValueError as error:
        of = str(error).partition(" of source")[0]
        near = [int(n) for n in str(error).partition("near which ")[2].rpartition(" would")[0].split(", ")]
        assert near
        assert {"height": height, "width": width}[of] not in near
        for size in near:
            models.generic_conv((channels, size, size), kernels, 2, 5)
    else:
        assert net.output_shape == (channels, height, width)
        assert len(net.encoder) == 2 * len(kernels) + 2


def test_generic_conv_refuses_what_it_cannot_take():
    for arguments, message in (
        (((28,),), "source must be"),
        ((28,), "source must be"),
        (((28, 28), ()), "kernels must be one or more"),
        (((28, 28), (5, 0)), "kernels must be an integer >= 1"),
        (((28, 28), (5, 5), 0), "filters must be an integer >= 1"),
        (((28, 28), (5, 5), 3, 0), "units must be an integer >= 1"),
        (((27, 28), (5, 5)), "height of source must come back .* got 27, near which 20, 24, 28, 32 would"),
    ):
        with pytest.raises(ValueError, match=message):
            models.generic_conv(*arguments)


@each_backend
def test_a_stride_much_larger_than_the_image_takes_no_time(backend):
    """The loops go over places of the output, not over the phases of the stride."""
    x, w, far = np.ones((1, 4, 2, 2)), np.ones((4, 4, 3, 3)), 2**31 - 1
    start = perf_counter()
    forward = partial(fastae.ops.conv_transpose2d_forward, stride=far, backend=backend)
    alone, between = forward(x[:, :, :1, :1].copy(), w), forward(x, w, padding=2**30 - 1)
    assert perf_counter() - start < 30  # numba may have to compile
    assert np.array_equal(alone, np.full((1, 4, 3, 3), 4.0))
    assert np.array_equal(between, np.zeros((1, 4, 4, 4)))


@each_backend
@pytest.mark.parametrize(
    ("of", "options"),
    [("conv2d", {"padding": 2**30}), ("conv_transpose2d", {"stride": 2**31 - 1})],
    ids=["conv2d", "conv_transpose2d"],
)
def test_outputs_that_overflow_are_refused_with_their_shape(backend, of, options):
    x, w = np.ones((1, 4, 3, 3)), np.ones((4, 4, 3, 3))
    expected = rf"{of}_forward: \w+: expected a size in bytes below 2\*\*63, given shape \(1, 4, \d+, \d+\)"
    with pytest.raises(ValueError, match=expected):
        getattr(fastae.ops, f"{of}_forward")(x, w, backend=backend, **options)

"""Lowering: the instructions compute the network and its gradients, the arena holds what it should.

Programs are run here by a small interpreter of the *encoded* instructions, so that these tests
do not depend on an executor. Outputs start as NaN and arrays are handed to the kernels as copies.
"""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastae import models, optimizers
from fastae.kernels import vector
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Constant, Kernel
from fastae.layers import LAYERS, Activation, Dense, Layer, Parallel, Subsample
from fastae.network import Network
from fastae.optimizers import SGD
from fastae.program import WIDTH, build, lower

SHORT = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def lowered(net, **more):
    options = {"batch_size": 4, "loss": "sse", "optimizer": SGD(0.01), "dtype": "float64"}
    return lower(net, **{**options, **more})


def execute(program, arena, routine, rows, kernels=vector, count=None):
    """Run encoded instructions, the first `count` of them, as table.py describes them."""
    names = tuple(KERNELS)
    block = 64 // program.dtype.itemsize
    for code in routine.encode(rows)[:count]:
        row = KERNELS[names[code[0]]]
        operands = code[2 : 2 + len(row.arguments)]
        numbers = code[2 + len(row.arguments) :]
        dims = dict(zip(row.dims, map(int, numbers), strict=False))
        assert not numbers[len(row.dims) :].any()
        arguments, back = [], []
        for argument, operand in zip(row.arguments, operands, strict=True):
            if isinstance(argument, Constant):
                real = argument.kind == "real"
                arguments.append(float(operand.view(np.float64)) if real else int(operand))
                continue
            if operand == -1:
                arguments.append(np.empty(0, program.dtype))
                continue
            shape = row.shape(argument, dims)
            width = stride = math.prod(shape[1:])
            if program.padded and len(shape) > 1:
                stride = -(-width // block) * block
            length = shape[0] * stride
            assert 64 // program.dtype.itemsize <= operand <= operand + length <= len(arena)
            place = arena[operand : operand + length].reshape(shape[0], stride)[:, :width]
            array = place.reshape(shape).copy()
            if argument.role in ("out", "work"):
                array[...] = np.nan
            if argument.written:
                back.append((place, array))
            arguments.append(array)
        with np.errstate(all="ignore"):
            getattr(kernels, row.name)(*arguments)
        for place, array in back:
            place[...] = array.reshape(place.shape)


def ready(program, weights):
    """A new arena in which everything but the weights is NaN."""
    arena = program.new_arena()
    for slot in program.slots.values():
        if not any(slot.name.endswith(f".{state}") for state in program.optimizer.states):
            program.view(arena, slot)[...] = np.nan
    program.write_weights(arena, weights)
    return arena


def train(program, arena, x, target=None):
    routine = program.routine("train", own_target=target is not None)
    program.view(arena, routine.input)[: len(x)] = x.reshape(len(x), -1)
    if target is not None:
        program.view(arena, routine.target)[: len(x)] = target
    execute(program, arena, routine, len(x))
    return float(program.view(arena, routine.loss)[0])


def forward(program, arena, name, x):
    routine = program.routine(name)
    program.view(arena, routine.input)[: len(x)] = x.reshape(len(x), -1)
    execute(program, arena, routine, len(x))
    return program.view(arena, routine.output)[: len(x)].copy()


def gradients(program, arena):
    return {name[:-5]: program.view(arena, name).copy() for name in program.slots if name.endswith(".grad")}


# -- the network computed straight from its declaration, in complex numbers too -------------------------


def f(name, x):
    if name == "relu":
        return x * (x.real > 0)
    if name == "sigmoid":
        return 1 / (1 + np.exp(-x))
    return np.tanh(x) if name == "tanh" else x


def run_chain(chain, weights, x):
    for placed in chain:
        layer = placed.layer
        if isinstance(layer, Dense):
            x = x @ weights[f"{placed.name}.weight"]
            if layer.use_bias:
                x = x + weights[f"{placed.name}.bias"]
            x = f(layer.activation, x)
        elif isinstance(layer, Activation):
            x = f(layer.activation, x)
        elif isinstance(layer, Subsample):
            x = x[:, :: layer.stride]
        else:
            x = sum(run_chain(branch, weights, x) for branch in placed.branches)
    return x


def reference_loss(net, weights, x, target, kind):
    y = run_chain(net.placed_decoder, weights, run_chain(net.placed_encoder, weights, x))
    squares = (y - target) ** 2
    return squares.sum() if kind == "sse" else squares.mean()


def reference_gradients(net, weights, x, target, kind):
    """Derivatives by a complex step: exact to rounding, and unaware of a relu's kink nearby.

    Squire, Trapp, Using complex variables to estimate derivatives of real functions (1998).
    """
    result = {}
    for p in net.parameters:
        if p.trainable:
            grad = np.zeros(p.shape)
            for at in np.ndindex(p.shape):
                moved = weights[p.name].astype(complex)
                moved[at] += 1e-30j
                grad[at] = reference_loss(net, {**weights, p.name: moved}, x, target, kind).imag / 1e-30
            result[p.name] = grad
    return result


def test_the_reference_gradient_is_that_of_finite_differences():
    net = Network([Dense(3, "tanh")], [Dense(4, "sigmoid")], 4)
    rng = np.random.default_rng(0)
    weights, x = net.initial_weights(1), rng.normal(size=(5, 4))
    exact = reference_gradients(net, weights, x, x, "sse")
    for name, grad in exact.items():
        for at in np.ndindex(grad.shape):
            sides = []
            for h in (1e-6, -1e-6):
                moved = weights[name].copy()
                moved[at] += h
                sides.append(reference_loss(net, {**weights, name: moved}, x, x, "sse"))
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(grad[at], rel=1e-6, abs=1e-8)


# -- random networks ------------------------------------------------------------------------------------

activations = st.sampled_from([*ACTIVATIONS])


@st.composite
def chains(draw, width, depth, least=0):
    """Layers for an input of that width, and the width of their output."""
    chain = []
    for _ in range(draw(st.integers(least, 3))):
        kind = draw(st.sampled_from(["dense", "dense", "fixed", "activation", "subsample", "parallel"]))
        if kind == "dense":
            width = draw(st.integers(1, 5))
            chain.append(
                Dense(
                    width,
                    draw(activations),
                    use_bias=draw(st.booleans()),
                    trainable=draw(st.sampled_from([True, True, True, False])),
                    bias_initializer="uniform_fan_in",
                )
            )
        elif kind == "fixed":
            chain.append(
                Dense(
                    width,
                    draw(activations),
                    use_bias=draw(st.booleans()),
                    kernel_initializer="identity",
                    trainable=False,
                )
            )
        elif kind == "activation":
            chain.append(Activation(draw(activations)))
        elif kind == "subsample":
            stride = draw(st.integers(1, 3))
            width = -(-width // stride)
            chain.append(Subsample(stride))
        elif depth:
            common = draw(st.sampled_from([width, draw(st.integers(1, 4))]))
            branches = []
            for _ in range(draw(st.integers(2, 3))):
                branch, end = draw(chains(width, depth - 1))
                branches.append(branch if end == common else [*branch, Dense(common, draw(activations))])
            width = common
            chain.append(Parallel(*branches))
    return chain, width


@st.composite
def networks(draw):
    width = draw(st.integers(1, 6))
    encoder, code = draw(chains(width, 2, least=1))
    decoder, end = draw(chains(code, 2))
    if not encoder:
        encoder = [Dense(code)]
    if not decoder or end != width:
        decoder = [*decoder, Dense(width, draw(activations))]
    return Network(encoder, decoder, width)


def check_layout(program):
    item = program.dtype.itemsize
    spans = sorted((s.offset, s.offset + s.size, s) for s in program.slots.values())
    end = 64 // item
    for start, stop, slot in spans:
        assert start >= end, f"{slot} overlaps the one before"
        assert start * item % 64 == 0
        if len(slot.shape) > 1:
            assert slot.stride >= math.prod(slot.shape[1:])
            assert (
                slot.stride * item % 64 == 0 if program.padded else slot.stride == math.prod(slot.shape[1:])
            )
        end = start + -(-(stop - start) * item // 64) * 64 // item
    assert end == program.arena_size


def check_barriers(routine):
    """No instruction may touch what another wrote since the last barrier; thread 0 reads the loss."""
    arrays = [[(a, s.offset, s.offset + s.size) for a, s in i.arrays] for i in routine.instructions]
    for j, later in enumerate(arrays):
        for i in range(j):
            if not any(k.barrier for k in routine.instructions[i:j]):
                for a, start, stop in arrays[i]:
                    for b, low, high in later:
                        assert not ((a.written or b.written) and start < high and low < stop), (i, j)
    if routine.instructions:
        assert routine.instructions[-1].barrier
    if routine.check:
        assert routine.instructions[routine.check - 1].barrier


@SHORT
@given(networks(), st.sampled_from(["sse", "mse"]), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_network_trains_by_its_exact_gradient(net, loss, padded, own, seed):
    rng = np.random.default_rng(seed)
    weights = net.initial_weights(rng)
    x = rng.normal(size=(rng.integers(1, 5), *net.input_shape))
    target = rng.normal(size=x.shape) if own else None
    expected = reference_gradients(net, weights, x, x if target is None else target, loss)

    results = []
    for fused in (False, True):
        program = lowered(net, loss=loss, padded=padded, fused_update=fused)
        check_layout(program)
        for routine in [*program.routines.values(), program.routine("train", own_target=True)]:
            check_barriers(routine)
        arena = ready(program, weights)
        found = train(program, arena, x, target)
        wanted = reference_loss(net, weights, x, x if target is None else target, loss)
        assert found == pytest.approx(wanted, rel=1e-12, abs=1e-12)
        if not fused:
            grads = gradients(program, arena)
            assert grads.keys() == expected.keys()
            for name, grad in expected.items():
                np.testing.assert_allclose(grads[name], grad, rtol=1e-9, atol=1e-10 * max(1, wanted))
        else:
            assert program.gradients is None
        results.append(program.read_weights(arena))
    for result in results:
        for name, before in weights.items():
            after = before - 0.01 * expected[name] if name in expected else before
            np.testing.assert_allclose(result[name], after, rtol=1e-9, atol=1e-11 * max(1, wanted))


@SHORT
@given(networks(), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_network_encodes_decodes_and_reconstructs(net, padded, seed):
    rng = np.random.default_rng(seed)
    weights = net.initial_weights(rng)
    program = lowered(net, padded=padded)
    x = rng.normal(size=(3, *net.input_shape))
    code = rng.normal(size=(3, *net.code_shape))  # of either sign, as no relu would leave it
    wanted = run_chain(net.placed_encoder, weights, x)
    for name, data, result in (
        ("encode", x, wanted),
        ("decode", code, run_chain(net.placed_decoder, weights, code)),
        ("reconstruct", x, run_chain(net.placed_decoder, weights, wanted)),
    ):
        found = forward(program, ready(program, weights), name, data)
        np.testing.assert_allclose(found, result, rtol=1e-12, atol=1e-12)
    arena = ready(program, weights)
    routine = program.routine("evaluate")
    program.view(arena, "batch")[:3] = x
    execute(program, arena, routine, 3)
    assert program.view(arena, "loss")[0] == pytest.approx(
        reference_loss(net, weights, x, x, "sse"), rel=1e-12
    )
    for name, value in program.read_weights(arena).items():
        assert np.array_equal(value, weights[name])


# -- AutoEncNet -----------------------------------------------------------------------------------------


def straight_autoencnet(weights, batches, learning_rate):
    """AutoEncNet as one would write it by hand; losses of the batches, weights are updated in place."""
    w = weights
    history = []
    for x in batches:
        z_in = np.maximum(x @ w["in.weight"] + w["in.bias"], 0)
        z_rec = np.maximum(z_in @ w["rec.weight"] + w["rec.bias"], 0)
        x_red = x[:, ::3]
        z = z_rec + x_red @ w["link.weight"]
        y = np.maximum(z @ w["out.weight"] + w["out.bias"], 0)
        history.append(((y - x) ** 2).sum())
        da_out = 2 * (y - x) * (y > 0)
        dz = da_out @ w["out.weight"].T
        da_rec = dz * (z_rec > 0)
        da_in = (da_rec @ w["rec.weight"].T) * (z_in > 0)
        w["out.weight"] -= learning_rate * (z.T @ da_out)
        w["out.bias"] -= learning_rate * da_out.sum(0)
        w["link.weight"] -= learning_rate * (x_red.T @ dz)
        w["in.weight"] -= learning_rate * (x.T @ da_in)
        w["in.bias"] -= learning_rate * da_in.sum(0)
    return history


@pytest.mark.parametrize("padded", [False, True], ids=["contiguous", "padded"])
@pytest.mark.parametrize("fused", [False, True], ids=["stored", "fused"])
def test_autoencnet_trains_as_written_by_hand(padded, fused):
    net = models.autoencnet()
    program = lower(
        net,
        batch_size=20,
        loss="sse",
        optimizer=SGD(1e-3),
        dtype="float64",
        padded=padded,
        fused_update=fused,
    )
    weights = net.initial_weights(0)
    arena = ready(program, weights)
    rng = np.random.default_rng(1)
    batches = [rng.uniform(-0.4, 0.6, size=(20, 225)) for _ in range(8)] + [rng.uniform(size=(7, 225))]
    found = [train(program, arena, x) for x in batches]
    np.testing.assert_allclose(found, straight_autoencnet(weights, batches, 1e-3), rtol=1e-12)
    assert found[7] < 0.9 * found[0]
    for name, value in program.read_weights(arena).items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-10, atol=1e-13)


def kernels_of(routine):
    return [i.kernel for i in routine.instructions]


def test_autoencnet_is_lowered_to_the_instructions_it_needs():
    program = lowered(models.autoencnet(), batch_size=20, fused_update=True)
    ahead = ["dense_forward", "subsample_forward", "dense_forward", "branch_sum", "dense_forward"]
    train = program.routine("train")
    assert kernels_of(train) == [
        *ahead,
        "sse",
        "total",
        "dense_input_grad",
        "dense_sgd",
        "dense_sgd",
        "activation_backward",
        "dense_sgd",
    ]
    assert kernels_of(program.routine("encode")) == ahead[:4]
    assert kernels_of(program.routine("decode")) == ahead[4:]
    assert kernels_of(program.routine("reconstruct")) == ahead
    assert kernels_of(program.routine("evaluate")) == [*ahead, "sse", "total"]
    assert train.check == 7
    assert train.trains
    assert [r.trains for r in program.routines.values()] == [True, False, False, False, False]
    assert train.notes == ("rec: product with fixed identity dropped", "rec: relu of relu dropped")
    assert program.routine("decode").notes == ()
    # The code of the decoder is where the encoder leaves it, and one gradient serves both branches.
    assert program.routine("decode").input is program.routine("encode").output
    sgd = [i for i in train.instructions if i.kernel == "dense_sgd"]
    assert [i.operands[1].name for i in sgd] == ["out.da", "sum.da", "in.da"]

    stored = kernels_of(lowered(models.autoencnet(), batch_size=20).routine("train"))
    assert stored[7:] == [
        "dense_input_grad",
        "dense_weight_grad",
        "dense_weight_grad",
        "activation_backward",
        "dense_weight_grad",
        "sgd",
    ]


def test_a_dropped_identity_must_stay_one():
    net = models.autoencnet(6, 2)
    program = lowered(net)
    assert program.constraints == {"rec.weight": "identity", "rec.bias": "zeros"}
    weights = net.initial_weights(0)
    arena = program.new_arena()
    program.write_weights(arena, weights)
    before = arena.copy()
    for name, value, message in (
        ("rec.weight", 2 * np.eye(2), "rec.weight is fixed: it must be identity"),
        ("rec.bias", np.ones(2), "rec.bias is fixed: it must be zeros"),
        ("in.bias", np.ones(3), r"in.bias must have shape \(2,\); got \(3,\)"),
        ("in.bias", np.array([1, np.nan]), "in.bias must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            program.write_weights(arena, {**weights, name: value})
    with pytest.raises(TypeError, match=r"in\.bias must hold real numbers"):
        program.write_weights(arena, {**weights, "in.bias": np.array(["a", "b"])})
    with pytest.raises(ValueError, match="wrong: more"):
        program.write_weights(arena, {**weights, "more": np.ones(2)})
    with pytest.raises(ValueError, match=r"wrong: in\.bias"):
        program.write_weights(arena, {k: v for k, v in weights.items() if k != "in.bias"})
    single = lowered(net, dtype="float32")
    with pytest.raises(ValueError, match=r"in\.bias must be finite in float32"):
        single.write_weights(single.new_arena(), {**weights, "in.bias": np.array([1e300, 0])})
    assert np.array_equal(arena, before)


def test_only_what_is_an_identity_for_certain_is_dropped():
    def notes(layer):
        return lowered(Network([layer], [Dense(4)], 4)).routine("train").notes

    fixed = {"kernel_initializer": "identity", "trainable": False, "name": "a"}
    assert notes(Dense(4, **fixed)) == ("a: product with fixed identity dropped",)
    assert notes(Dense(3, **fixed)) == ()
    assert notes(Dense(4, bias_initializer="ones", **fixed)) == ()
    assert notes(Dense(4, kernel_initializer="identity")) == ()
    assert notes(Dense(4, trainable=False)) == ()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_relu_is_dropped_only_where_nothing_is_negative(name):
    net = Network([Dense(4, name, name="a"), Subsample(2), Activation("relu", name="b")], [Dense(4)], 4)
    notes = lowered(net).routine("encode").notes
    never = name in ("relu", "sigmoid")
    assert notes == (("b: relu of a value that is never negative dropped",) if never else ())


def test_a_relu_of_the_code_is_kept_for_codes_from_outside():
    net = Network([Dense(2, "relu")], [Activation("relu", name="again"), Dense(3)], 3)
    assert kernels_of(lowered(net).routine("decode")) == ["activation_forward", "dense_forward"]
    net = Network([Dense(2, "relu"), Activation("relu", name="again")], [Dense(3)], 3)
    program = lowered(net)
    assert program.routine("encode").notes == ("again: relu of relu dropped",)


def test_nothing_is_computed_for_what_is_not_trained():
    fixed = Dense(3, "tanh", trainable=False)
    net = Network([fixed, fixed], [Dense(4, "tanh"), Dense(4, trainable=False)], 4)
    program = lowered(net, fused_update=True)
    assert kernels_of(program.routine("train"))[6:] == ["dense_input_grad", "dense_sgd"]

    program = lowered(Network([fixed], [Dense(4, trainable=False)], 4))
    train = program.routine("train")
    assert kernels_of(train) == kernels_of(program.routine("evaluate"))
    assert not train.trains
    assert program.trainable is program.gradients is None


def test_the_derivative_of_the_layer_below_is_fused():
    net = Network([Dense(3, "sigmoid", name="a")], [Dense(4, "tanh", name="b")], 4)
    train = lowered(net).routine("train")
    (dx,) = [i for i in train.instructions if i.kernel == "dense_input_grad"]
    assert dx.operands[3] == "sigmoid"
    assert [o.name for o in (dx.operands[0], dx.operands[2], dx.operands[4])] == ["b.da", "a.out", "a.da"]
    assert dx.note == "derivative of a's sigmoid fused"
    assert train.instructions[2].constants == {"activation": "tanh"}
    assert "activation_backward" not in kernels_of(train)


# -- the arena ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_arena_is_laid_out_as_promised(dtype, padded, fused):
    net = models.autoencnet()
    program = lowered(net, batch_size=20, dtype=dtype, padded=padded, fused_update=fused)
    check_layout(program)
    arena = program.new_arena()
    assert arena.dtype == program.dtype == np.dtype(dtype)
    assert arena.ctypes.data % 64 == 0
    assert not arena.any()
    assert program.header(arena).dtype == np.int64
    assert program.header(arena).shape == (8,)
    assert np.shares_memory(program.header(arena), arena[: 64 // arena.itemsize])
    assert [s.name for s in program.parameters] == [p.name for p in net.parameters]
    inside = [s for s in program.parameters if not s.name.startswith("rec.")]
    start, stop = program.trainable.offset, program.trainable.offset + program.trainable.size
    assert start == inside[0].offset == 64 // arena.itemsize
    assert 0 <= stop - (inside[-1].offset + inside[-1].size) < 64 // arena.itemsize
    for slot in program.parameters:
        assert (start <= slot.offset < stop) == (slot in inside)
    if fused:
        assert program.gradients is None
        biggest = max(program.slots[f"{n}.weight"].size for n in ("in", "out", "link"))
        assert biggest <= program.slots["scratch"].size < biggest + 64
    else:
        assert program.gradients.size == program.trainable.size
        for slot in inside:
            grad = program.slots[f"{slot.name}.grad"]
            assert grad.offset - program.gradients.offset == slot.offset - start
            assert (grad.shape, grad.stride) == (slot.shape, slot.stride)
    for name, batched in (("batch", True), ("in.out", True), ("row_loss", True), ("loss", False)):
        assert program.slots[name].batched is batched


def test_views_show_the_logical_shape():
    program = lowered(models.autoencnet(), batch_size=20, dtype="float32", padded=True)
    arena = program.new_arena()
    view = program.view(arena, "in.weight")
    assert view.shape == (225, 75)
    assert view.strides == (80 * 4, 4)
    view[3, 74] = 5
    assert arena[program.slots["in.weight"].offset + 3 * 80 + 74] == 5
    assert program.view(arena, program.slots["loss"]).shape == (1,)
    with pytest.raises(ValueError, match=r"slot must be one of .*; got 'in\.wait'"):
        program.view(arena, "in.wait")
    with pytest.raises(ValueError, match="arena must have shape"):
        program.view(arena[:-1], "in.weight")
    with pytest.raises(ValueError, match="arena must have shape"):
        program.view(np.zeros(program.arena_size), "in.weight")


def test_weights_come_back_as_they_were_written():
    for padded in (False, True):
        net = models.autoencnet(30, 7)
        program = lowered(net, dtype="float32", padded=padded)
        arena = program.new_arena()
        weights = net.initial_weights(5, "float32")
        program.write_weights(arena, weights)
        for name, value in program.read_weights(arena).items():
            assert np.array_equal(value, weights[name])
            assert not np.shares_memory(value, arena)


# -- encoding -------------------------------------------------------------------------------------------


def test_operands_are_encoded_as_the_table_says():
    program = lowered(models.autoencnet(), batch_size=20, fused_update=True, optimizer=SGD(0.25))
    routine = program.routine("train")
    names, slots = tuple(KERNELS), program.slots
    code = routine.encode(7)
    assert code.shape == (12, WIDTH)
    assert code.dtype == np.int64
    assert code.flags.c_contiguous

    def offsets(*keys):
        return [slots[key].offset for key in keys]

    row = code[0].tolist()
    assert row[0] == names.index("dense_forward")
    assert row[2:5] == offsets("batch", "in.weight", "in.bias")
    assert row[5:7] == [ACTIVATIONS["relu"].code, slots["in.out"].offset]
    assert row[7:10] == [7, 225, 75]
    assert code[2, 4] == -1  # link has no bias
    assert code[1, 3] == 3  # the stride
    sse = code[5].tolist()
    assert sse[2:4] == offsets("out.out", "batch")
    own = program.routine("train", own_target=True).encode(7)
    assert own[5, 3] == slots["target"].offset
    own[5, 3] = sse[3]
    assert np.array_equal(own, code)
    sgd = code[8]
    assert sgd[0] == names.index("dense_sgd")
    assert sgd[4:5].view(np.float64)[0] == 0.25
    assert sgd[5] == slots["scratch"].offset
    assert sgd[8:11].tolist() == [7, 75, 225]
    assert code[:, 1].tolist() == [int(i.barrier) for i in routine.instructions]


def test_codes_are_kept_and_rows_checked():
    routine = lowered(models.autoencnet(6, 2), batch_size=5).routine("train")
    assert routine.encode(3) is routine.encode(3)
    assert routine.encode() is routine.encode(5)
    for rows in (0, -1, 6, 2.5, "3"):
        with pytest.raises(ValueError, match="rows must be"):
            routine.encode(rows)


def test_every_instruction_fits_the_width():
    for row in KERNELS.values():
        assert 2 + len(row.arguments) + len(row.dims) <= WIDTH


# -- the listing ----------------------------------------------------------------------------------------


def test_the_listing_shows_instructions_work_and_notes():
    program = lower(
        models.autoencnet(),
        batch_size=20,
        loss="sse",
        optimizer=SGD(1e-4),
        dtype="float32",
        padded=True,
        fused_update=True,
    )
    text = str(program)
    kib = program.arena_size * 4 / 1024
    assert text.startswith(f"program of autoencnet: batch 20, float32, arena {kib:.1f} KiB, 45375 parameters")
    lines = text.splitlines()
    assert lines.index(program.routine("train").listing().splitlines()[0]) == 2
    at = [i for i, line in enumerate(lines) if "gather_rows" in line]
    assert len(at) == 1
    assert lines[at[0] + 1].split()[:2] == ["0", "dense_forward"]
    assert "in.out[20,75] = batch[20,225] in.weight[225,75] in.bias[75] relu" in text
    assert "gradient and update in one" in text
    assert "learning_rate=0.0001" in text
    assert "derivative of out's relu fused" in text
    assert "note: rec: product with fixed identity dropped" in text
    assert "note: rec: relu of relu dropped" in text
    # 2 n k m of the three products forward, of the three updates and of the one input gradient.
    products = 2 * 20 * (225 * 75 + 75 * 75 + 75 * 225)
    flops = program.routine("train").flops()
    assert 2 * products + 2 * 20 * 75 * 225 < flops < 1.1 * (2 * products + 2 * 20 * 75 * 225)
    assert f"{flops / 1e6:.3f}" in text
    for name in ("evaluate", "encode", "decode", "reconstruct"):
        assert f"\n{name}: " in text
    assert program.routine("train", own_target=True).listing().count("gather_rows") == 2
    assert "copy" in program.routine("decode").listing()


def test_work_is_counted_for_the_rows_at_hand():
    routine = lowered(models.autoencnet()).routine("reconstruct")
    assert routine.flops(2) == pytest.approx(routine.flops() / 2)
    first = routine.instructions[0]
    assert first.dims(2) == {"n": 2, "k": 225, "m": 75}
    assert first.bytes(8, 2) == 8 * (2 * 225 + 225 * 75 + 75 + 2 * 75)


# -- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1; got 0"),
        ({"batch_size": -3}, "batch_size must be an integer >= 1; got -3"),
        ({"batch_size": True}, "batch_size must be an integer >= 1; got True"),
        ({"batch_size": 2.0}, "batch_size must be an integer >= 1; got 2.0"),
        ({"batch_size": 10**15}, "batch_size 1000000000000000 and the network's widths ask for an arena of"),
        ({"batch_size": 10**40}, "ask for an arena of"),
        ({"dtype": "float16"}, "dtype must be float32 or float64; got 'float16'"),
        ({"dtype": "int64"}, "dtype must be float32 or float64"),
        ({"dtype": None}, "dtype must be float32 or float64"),
        ({"dtype": "reals"}, "dtype must be float32 or float64; got 'reals'"),
        ({"dtype": ">f8"}, "dtype must be float32 or float64; got '>f8'"),
        ({"loss": "l3"}, "loss must be one of"),
        ({"optimizer": "adagradd"}, "optimizer must be an optimiser or one of"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lowered(models.autoencnet(6, 2), **options)


def test_absurd_widths_are_refused():
    net = Network([Dense(10**9)], [Dense(10**9)], 10**9)
    with pytest.raises(ValueError, match="ask for an arena of"):
        lowered(net)
    with pytest.raises(ValueError, match="network must be a Network"):
        lowered("autoencnet")


def test_a_target_is_needed_where_the_output_has_another_shape():
    net = Network([Dense(2)], [Dense(3)], 5)
    program = lowered(net)
    assert program.routine("train", own_target=True).target is program.slots["target"]
    for name in ("train", "evaluate"):
        with pytest.raises(ValueError, match=r"target must be given .* output \(3,\), input \(5,\)"):
            program.routine(name)
    with pytest.raises(ValueError, match=r"routine must be one of .*; got 'fit'"):
        program.routine("fit")
    assert str(program)
    rng = np.random.default_rng(0)
    weights, x, target = net.initial_weights(0), rng.normal(size=(4, 5)), rng.normal(size=(4, 3))
    arena = ready(program, weights)
    assert train(program, arena, x, target) == pytest.approx(reference_loss(net, weights, x, target, "sse"))


# -- open to more ---------------------------------------------------------------------------------------


def test_rows_of_several_dims_lie_flat():
    net = Network([Activation("tanh")], [Parallel([Activation("relu")], [])], (2, 3))
    program = lowered(net)
    x = np.random.default_rng(0).normal(size=(3, 2, 3))
    found = forward(program, ready(program, {}), "reconstruct", x)
    y = np.tanh(x.reshape(3, 6))
    np.testing.assert_allclose(found, y + np.maximum(y, 0), rtol=1e-14)


class Momentum(optimizers.Optimizer):
    """An optimiser with a state, as a later one will be."""

    kernel = "momentum"
    dense_kernel = "dense_momentum"
    states = ("v",)
    constants = {"learning_rate": 0.5, "momentum": 0.75}  # noqa: RUF012


class MomentumKernels:
    """Its kernels beside those of the vector module."""

    def __getattr__(self, name):
        return getattr(vector, name)

    @staticmethod
    def momentum(g, learning_rate, momentum, w, v):
        v[...] = momentum * v + g
        w -= learning_rate * v

    @staticmethod
    def dense_momentum(x, da, learning_rate, momentum, dw, w, b, v_w, v_b):
        for value, v, g in ((w, v_w, x.T @ da), (b, v_b, da.sum(0))):
            if v.size:
                v[...] = momentum * v + g
                value -= learning_rate * v


def test_an_optimiser_may_keep_states(monkeypatch):
    def row(name, spec):
        arguments = [
            Array(key, tuple(dims), role, optional=role == "state" and key in ("b", "v_b"))
            if role
            else Constant(key, "real")
            for key, dims, role in spec
        ]
        monkeypatch.setitem(KERNELS, name, Kernel(name, "", "", "", tuple(arguments), lambda d: 0))

    constants = [("learning_rate", "", ""), ("momentum", "", "")]
    row("momentum", [("g", "p", "in"), *constants, ("w", "p", "state"), ("v", "p", "state")])
    states = [("w", "km", "state"), ("b", "m", "state"), ("v_w", "km", "state"), ("v_b", "m", "state")]
    row("dense_momentum", [("x", "nk", "in"), ("da", "nm", "in"), *constants, ("dw", "km", "work"), *states])

    net = models.autoencnet(6, 2)
    x = np.random.default_rng(0).normal(size=(3, 6))
    results = []
    for padded in (False, True):
        for fused in (False, True):
            program = lowered(net, optimizer=Momentum(), padded=padded, fused_update=fused)
            check_layout(program)
            assert program.states["v"].size == program.trainable.size
            arena = ready(program, net.initial_weights(0))
            for _ in range(3):
                train_with(program, arena, x)
            results.append(program.read_weights(arena))
            assert np.any(program.view(arena, "link.weight.v"))
    for result in results[1:]:
        for name, value in result.items():
            np.testing.assert_allclose(value, results[0][name], rtol=1e-12)


def train_with(program, arena, x):
    program.view(arena, "batch")[: len(x)] = x
    execute(program, arena, program.routine("train"), len(x), MomentumKernels())


def test_every_layer_has_a_lowering():
    for cls in LAYERS.values():
        assert build.dispatch(cls) is not build.dispatch(Layer)

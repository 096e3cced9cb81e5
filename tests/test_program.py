"""Lowering: the instructions compute the network and its gradients, the arena holds what it should.

Programs are run here by a small interpreter of the *encoded* instructions, so that these tests
do not depend on an executor. Outputs start as NaN and arrays are handed to the kernels as copies.
"""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastae import losses, models
from fastae.kernels import vector
from fastae.kernels.table import ACTIVATIONS, KERNELS, Constant
from fastae.layers import (
    ACTIVATION_NAMES,
    LAYERS,
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    GaussianNoise,
    Layer,
    MaskingNoise,
    Parallel,
    Subsample,
)
from fastae.lowering import build, lower
from fastae.network import Network
from fastae.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from fastae.program import COUNTER, SHARD, STEP, WIDTH, row_stride

SHORT = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def lowered(net, **more):
    options = {"batch_size": 4, "loss": "sse", "optimizer": SGD(0.01), "dtype": "float64"}
    return lower(net, **{**options, **more})


def execute(program, arena, routine, rows):
    """Run encoded instructions as table.py describes them."""
    names = tuple(KERNELS)
    block = 64 // program.dtype.itemsize
    for code in routine.encode(rows):
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
            if operand == -1:  # workspaces that padded kernels do without
                shape = row.shape(argument, dims) if argument.role == "work" else 0
                arguments.append(np.full(shape, np.nan, program.dtype))
                continue
            if argument.kind == "index":
                assert operand == 0
                arguments.append(program.header(arena)[: int(argument.dims[0])].copy())
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
            getattr(vector, row.name)(*arguments)
        for place, array in back:
            place[...] = array.reshape(place.shape)


def ready(program, weights):
    """A new arena in which everything but the weights is NaN."""
    arena = program.new_arena()
    for slot in program.slots.values():
        if slot.name not in program.state_slots:
            if slot.lanes > 1:
                arena[slot.offset : slot.offset + slot.size] = np.nan
            else:  # the padding of stored gradients stays zero
                program.view(arena, slot)[...] = np.nan
    program.write_weights(arena, weights)
    return arena


def compute_loss(program, arena, x, target=None, weight=None, name="train"):
    routine = program.routine(name, target is not None, weight is not None)
    program.view(arena, routine.input)[: len(x)] = x.reshape(len(x), -1)
    if target is not None:
        program.view(arena, routine.target)[: len(x)] = target
    if weight is not None:
        program.view(arena, routine.weight)[: len(x)] = weight
    execute(program, arena, routine, len(x))
    if routine.trains:
        program.header(arena)[0] += 1
    return float(program.view(arena, routine.loss)[0])


def train(program, arena, x, target=None, weight=None):
    return compute_loss(program, arena, x, target, weight)


def forward(program, arena, name, x):
    routine = program.routine(name)
    program.view(arena, routine.input)[: len(x)] = x.reshape(len(x), -1)
    execute(program, arena, routine, len(x))
    return program.view(arena, routine.output)[: len(x)].copy()


def gradients(program, arena):
    return {name[:-5]: program.view(arena, name).copy() for name in program.slots if name.endswith(".grad")}


# -- the network computed straight from its declaration, in complex numbers too -------------------------


def f(name, x):
    positive = x.real > 0
    if name == "softmax":
        e = np.exp(x - x.real.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)
    return {
        "linear": lambda: x,
        "relu": lambda: x * positive,
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "tanh": lambda: np.tanh(x),
        "leaky_relu": lambda: np.where(positive, x, 0.01 * x),
        "elu": lambda: np.where(positive, x, np.exp(x) - 1),
        "softplus": lambda: np.log(1 + np.exp(x)),
    }[name]()


def mix64(z):
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def bits(step, seed, stream, elements):
    """The random 32 bits of table.py for each element."""
    key = mix64((mix64((mix64(seed) + step) % 2**64) + stream) % 2**64)
    h = (elements.astype(np.uint64) * 0x9E3779B9 + key % 2**32) % 2**32 ^ key >> 32
    h = (h ^ h >> 16) * 0x7FEB352D % 2**32
    h = (h ^ h >> 15) * 0x846CA68B % 2**32
    return h ^ h >> 16


class Reference:
    """The network in training (`batch_statistics` and what is random) or outside of it."""

    def __init__(self, net, weights, training=False, counter=(0, 0), noise=None):
        self.net, self.weights, self.training, self.counter = net, weights, training, counter
        self.noise, self.stream, self.statistics = noise, 0, {}

    def draw(self, layer, x, stream):
        if not self.training:
            return x
        e = np.arange(x.size).reshape(x.shape)
        if isinstance(layer, GaussianNoise):
            u = ((bits(*self.counter, stream, 2 * e) >> 8) + 1.0) / 2**24
            v = (bits(*self.counter, stream, 2 * e + 1) >> 8) / 2**24
            return x + layer.stddev * np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
        kept = bits(*self.counter, stream, e) >= layer.rate * 2**32
        return x * kept / (1 - layer.rate if isinstance(layer, Dropout) else 1)

    def normalise(self, placed, x):
        gamma, beta, mean, var = (self.weights[p.name] for p in placed.parameters)
        layer, n = placed.layer, len(x)
        if self.training:
            old = mean, var
            mean = x.mean(0)
            var = ((x - mean) ** 2).mean(0)
            for p, before, now in zip(
                placed.parameters[2:], old, (mean, var * n / max(n - 1, 1)), strict=True
            ):
                self.statistics[p.name] = before + layer.momentum * (now.real - before)
        return f(layer.activation, gamma * (x - mean) / np.sqrt(var + layer.epsilon) + beta)

    def chain(self, chain, x):
        for placed in chain:
            layer = placed.layer
            if isinstance(layer, Dense):
                x = x @ self.weights[f"{placed.name}.weight"]
                if layer.use_bias:
                    x = x + self.weights[f"{placed.name}.bias"]
                x = f(layer.activation, x)
            elif isinstance(layer, BatchNorm):
                x = self.normalise(placed, x)
            elif isinstance(layer, Dropout | GaussianNoise | MaskingNoise):
                self.stream += 1
                x = self.draw(layer, x, self.stream)
            elif isinstance(layer, Activation):
                x = f(layer.activation, x)
            elif isinstance(layer, Subsample):
                x = x[:, :: layer.stride]
            else:
                x = sum(self.chain(branch, x) for branch in placed.branches)
        return x

    def encode(self, x):
        self.stream = 0
        return self.chain(self.net.placed_encoder, x if self.noise is None else self.draw(self.noise, x, 0))

    def decode(self, code):
        return self.chain(self.net.placed_decoder, code)

    def loss(self, x, target, kind, weight=None):
        y = self.decode(self.encode(x))
        e = y - target
        if kind in ("sse", "mse"):
            loss = e**2
        elif kind == "mae":
            loss = e * np.sign(e.real)
        elif kind == "huber":
            loss = np.where(abs(e.real) <= 1, e**2 / 2, e * np.sign(e.real) - 0.5)
        elif kind == "bce":
            with np.errstate(divide="ignore"):
                logs = [np.log(y + 0j), np.log(1 - y + 0j)]
            logs = [np.where(log.real < -100, -100, log) for log in logs]
            loss = -(target * logs[0] + (1 - target) * logs[1])
        else:
            loss = np.log(1 + np.exp(y)) - y * target
        if weight is not None:
            loss = loss * weight[:, None]
        total = loss.sum() if kind == "sse" else loss.mean()
        return total if np.iscomplexobj(x) or any(map(np.iscomplexobj, self.weights.values())) else total.real


def reference_loss(net, weights, x, target, kind, weight=None, **more):
    return Reference(net, weights, **more).loss(x, target, kind, weight)


def reference_gradients(net, weights, x, target, kind, weight=None, **more):
    """Derivatives by a complex step: exact to rounding, and unaware of a relu's kink nearby.

    Squire, Trapp, Using complex variables to estimate derivatives of real functions (1998).
    """
    result = {}
    more = {"training": True, **more}
    for p in net.parameters:
        if p.trainable:
            grad = np.zeros(p.shape)
            for at in np.ndindex(p.shape):
                moved = weights[p.name].astype(complex)
                moved[at] += 1e-30j
                changed = {**weights, p.name: moved}
                grad[at] = reference_loss(net, changed, x, target, kind, weight, **more).imag / 1e-30
            result[p.name] = grad
    return result


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_the_reference_gradient_is_that_of_finite_differences(kind):
    last = "linear" if kind == "bce_with_logits" else "sigmoid"
    net = Network(
        [Dense(3, "tanh"), BatchNorm(activation="elu"), Dense(3, "softmax")],
        [Dropout(0.3), Dense(4, "leaky_relu"), Dense(4, "softplus"), Dense(4, last)],
        4,
    )
    rng = np.random.default_rng(0)
    weights, x = net.initial_weights(1), rng.uniform(size=(5, 4))
    exact = reference_gradients(net, weights, x, x, kind)
    for name, grad in exact.items():
        for at in np.ndindex(grad.shape):
            sides = []
            for h in (1e-6, -1e-6):
                moved = weights[name].copy()
                moved[at] += h
                sides.append(reference_loss(net, {**weights, name: moved}, x, x, kind, training=True))
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(grad[at], rel=1e-5, abs=1e-8)


# -- random networks ------------------------------------------------------------------------------------

activations = st.sampled_from(ACTIVATION_NAMES)
rates = st.sampled_from([0.0, 0.25, 0.5])


@st.composite
def chains(draw, width, depth, least=0):
    """Layers for an input of that width, and the width of their output."""
    chain = []
    for _ in range(draw(st.integers(least, 3))):
        kinds = ["dense", "dense", "fixed", "batchnorm", "activation", "random", "subsample", "parallel"]
        kind = draw(st.sampled_from(kinds))
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
        elif kind == "batchnorm":
            chain.append(BatchNorm(draw(st.sampled_from([0.1, 1.0])), 0.01, draw(activations)))
        elif kind == "activation":
            chain.append(Activation(draw(activations)))
        elif kind == "random":
            chain.append(draw(st.sampled_from([Dropout, MaskingNoise, GaussianNoise]))(draw(rates)))
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


def random_weights(net, rng):
    """Weights of no special value: a relu of exactly 0 has no derivative to speak of."""
    weights = net.initial_weights(rng)
    for name, value in weights.items():
        if name.endswith((".gamma", ".beta", ".running_mean")):
            weights[name] = value + rng.uniform(-0.4, 0.4, value.shape)
        if name.endswith(".running_var"):
            weights[name] = rng.uniform(0.5, 2, value.shape)
    return weights


@st.composite
def networks(draw, kind="sse"):
    width = draw(st.integers(1, 6))
    encoder, code = draw(chains(width, 2, least=1))
    decoder, end = draw(chains(code, 2))
    if not encoder:
        encoder = [Dense(code)]
    if kind == "bce":  # a probability
        last = draw(st.sampled_from(["sigmoid", "sigmoid", "softmax"]))
        merged = draw(st.booleans())
        decoder = [*decoder, Dense(width, last) if merged or end != width else Activation(last)]
    elif kind == "bce_with_logits":
        decoder = [*decoder, Dense(width, draw(st.sampled_from(["linear", "tanh", "elu"])))]
    elif not decoder or end != width:
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


def by_rows(instruction, rows):
    rule = instruction.row.by_rows
    return rule is not None and rule(SimpleNamespace(**instruction.dims(rows), **instruction.constants))


def check_barriers(routine):
    """What a thread may not touch while another works on it lies behind a barrier, for any number of rows.

    A barrier of kind 2 is none for those who share work out by rows: then each thread keeps to its rows.
    These networks are small, so that threads gather for themselves; it is looked at as if not, too.
    """
    check_meetings(routine)
    if routine.gathered_by_each:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastae.program._LITTLE_WORK", 0)
            sharing = dataclasses.replace(routine)  # knows nothing yet
            assert not sharing.gathered_by_each
            check_meetings(sharing)


def check_meetings(routine):
    for rows in {1, routine.capacity}:
        # the gathering of the batch and the counting of updates, the instructions, the copy of the output
        gathered = [s for s in (routine.input, routine.target, routine.weight) if s is not None]
        steps = [(True, [(slot, True) for slot in [COUNTER, *gathered]])]
        steps += [(by_rows(i, rows), [(s, a.written) for a, s in i.arrays]) for i in routine.instructions]
        steps.append((True, [] if routine.output is None else [(routine.output, False)]))
        for _, touched in steps[1:]:  # nothing else lies there, of which a thread may have a copy
            assert all(s in gathered and not w for s, w in touched if any(overlap(s, g) for g in gathered))
        if routine.gathered_by_each:
            steps[0] = (True, [(COUNTER, True)])
            steps = [(rule, [(s, w) for s, w in touched if s not in gathered]) for rule, touched in steps]
        kinds = [routine.opens(rows), *routine.barriers(rows)]
        for j, (rows_j, later) in enumerate(steps):
            for i, (rows_i, earlier) in enumerate(steps[:j]):
                for (a, a_written), (b, b_written) in itertools.product(earlier, later):
                    if not (a_written or b_written) or not overlap(a, b):
                        continue
                    own = rows_i and rows_j and a.batched and b.batched and a.offset == b.offset
                    met = {1, 2} if own and a.lanes == b.lanes == 1 else {1}
                    assert met & set(kinds[i:j]), (rows, i, j, str(a), str(b))
        if routine.check:  # thread 0 reads the loss
            assert routine.barriers(rows)[routine.check - 1] == 1
            assert routine.instructions[routine.check - 1].kernel == "total"
            for i in routine.instructions[: routine.check]:  # nothing learns before it is known
                assert all(a.name != "w" for a, _ in i.arrays if a.role == "state")


def overlap(a, b):
    return a.offset < b.offset + b.size and b.offset < a.offset + a.size


@SHORT
@given(st.data(), st.sampled_from([*losses.LOSSES]), st.booleans(), st.booleans(), st.booleans())
def test_any_network_trains_by_its_exact_gradient(data, loss, padded, own, weighted):
    net = data.draw(networks(loss))
    noise = data.draw(st.sampled_from([None, None, GaussianNoise(0.1), MaskingNoise(0.3)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weights = random_weights(net, rng)
    between = losses.LOSSES[loss].target_range
    draw = rng.normal if between is None else rng.uniform
    first = lowered(net, loss=loss).needs_rows
    x = draw(size=(rng.integers(first, 5), *net.input_shape))
    target = draw(size=x.shape) if own else x
    weight = rng.uniform(0, 2, len(x)) if weighted else None
    given = (x, target if own else None, weight)
    drawn = {"training": True, "counter": (int(rng.integers(9)), int(rng.integers(2**62))), "noise": noise}
    expected = reference_gradients(net, weights, x, target, loss, weight, **drawn)
    reference = Reference(net, weights, **drawn)
    wanted = reference.loss(x, target, loss, weight)
    results = []
    for fused in (False, True):
        program = lowered(net, loss=loss, padded=padded, fused_update=fused, noise=noise)
        check_layout(program)
        for routine in [*program.routines.values(), *program.losing.values()]:
            check_barriers(routine)
        arena = ready(program, weights)
        program.header(arena)[:2] = drawn["counter"]
        outside = reference_loss(net, weights, x, target, loss, weight)
        assert compute_loss(program, arena, *given, name="evaluate") == pytest.approx(outside, 1e-11, 1e-12)
        assert train(program, arena, *given) == pytest.approx(wanted, rel=1e-11, abs=1e-12)
        if not fused:
            grads = gradients(program, arena)
            assert grads.keys() == expected.keys()
            for name, grad in expected.items():
                np.testing.assert_allclose(grads[name], grad, rtol=1e-8, atol=1e-10 * max(1, wanted))
        else:
            stored = {s.name for s in program.slots.values() if s.name.endswith(".grad")}
            assert all(name.endswith((".gamma.grad", ".beta.grad")) for name in stored)
        results.append(program.read_weights(arena))
    for result in results:
        for name, before in weights.items():
            after = before - 0.01 * expected[name] if name in expected else before
            after = reference.statistics.get(name, after)
            np.testing.assert_allclose(result[name], after, rtol=1e-9, atol=1e-11 * max(1, wanted))


@SHORT
@given(st.data(), st.sampled_from(["sse", "bce"]), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_network_encodes_decodes_and_reconstructs(data, loss, padded, seed):
    net = data.draw(networks(loss))
    rng = np.random.default_rng(seed)
    weights = random_weights(net, rng)
    program = lowered(net, loss=loss, padded=padded)
    x = rng.uniform(size=(3, *net.input_shape))
    code = rng.normal(size=(3, *net.code_shape))  # of either sign, as no relu would leave it
    reference = Reference(net, weights)
    wanted = reference.encode(x)
    for name, rows, result in (
        ("encode", x, wanted),
        ("decode", code, reference.decode(code)),
        ("reconstruct", x, reference.decode(wanted)),
    ):
        found = forward(program, ready(program, weights), name, rows)
        np.testing.assert_allclose(found, result, rtol=1e-11, atol=1e-12)
    arena = ready(program, weights)
    found = compute_loss(program, arena, x, name="evaluate")
    assert found == pytest.approx(reference_loss(net, weights, x, x, loss), rel=1e-11)
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
        "dense_input_grad",
        "activation_backward",
        "total",
        "dense_sgd",
        "dense_sgd",
        "dense_sgd",
    ]
    assert kernels_of(program.routine("encode")) == ahead[:4]
    assert kernels_of(program.routine("decode")) == ahead[4:]
    assert kernels_of(program.routine("reconstruct")) == ahead
    assert kernels_of(program.routine("evaluate")) == [*ahead, "sse", "total"]
    assert train.check == 9
    assert train.trains
    assert [r.trains for r in program.routines.values()] == [True, False, False, False, False]
    assert train.notes == ("rec: product with fixed identity dropped", "rec: relu of relu dropped")
    assert program.routine("decode").notes == ()
    # The code of the decoder is where the encoder leaves it, and one gradient serves both branches.
    assert program.routine("decode").input is program.routine("encode").output
    sgd = [i for i in train.instructions if i.kernel == "dense_sgd"]
    assert [i.operands[1].name for i in sgd] == ["out.da", "sum.da", "in.da"]

    stored = kernels_of(lowered(models.autoencnet(), batch_size=20).routine("train"))
    assert stored[6:] == [
        "dense_input_grad",
        "dense_weight_grad",
        "dense_weight_grad",
        "activation_backward",
        "dense_weight_grad",
        "total",
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


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_a_relu_is_dropped_only_where_nothing_is_negative(name):
    net = Network([Dense(4, name, name="a"), Subsample(2), Activation("relu", name="b")], [Dense(4)], 4)
    notes = lowered(net).routine("encode").notes
    never = name in ("relu", "sigmoid", "softplus", "softmax")
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
    assert kernels_of(program.routine("train"))[5:] == ["dense_input_grad", "total", "dense_sgd"]

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


# -- what is fused -----------------------------------------------------------------------------------------


def test_a_linear_layer_applies_the_activation_that_follows():
    net = Network(
        [Dense(3, name="a"), Activation("elu", name="f"), Dense(3, name="b"), BatchNorm(name="n")],
        [Activation("relu", name="g"), Dense(4, name="c"), BatchNorm(name="m"), Activation("relu", name="h")],
        4,
    )
    program = lowered(net)
    # The code is what the encoder ends with, so that g stays where it is.
    assert kernels_of(program.routine("train"))[:4] == [
        "dense_forward",
        "dense_batchnorm_forward",
        "activation_forward",
        "dense_batchnorm_forward",
    ]
    instructions = program.routine("train").instructions
    fused = {i.operands[-1].name: i.constants.get("activation") for i in instructions[:3]}
    assert fused == {"a.out": "elu", "n.inv_std": "linear", "g.out": "relu"}
    assert instructions[3].constants == {"activation": "relu", "epsilon": 1e-5, "momentum": 0.1}
    assert program.routine("encode").notes == ("f: elu fused into a",)
    assert program.routine("decode").notes == ("h: relu fused into m",)
    assert "note: h: relu fused into m" in str(program)

    # Nothing is fused over a fork, and a linear activation is nothing.
    net = Network([Dense(3), Parallel([Activation("tanh")], [Activation("linear")])], [Dense(3)], 3)
    assert "activation_forward" in kernels_of(lowered(net).routine("encode"))
    net = Network([Dense(3, name="a"), Activation("linear"), Activation("tanh", name="f")], [Dense(3)], 3)
    assert lowered(net).routine("encode").notes == ("f: tanh fused into a",)


def test_dense_and_batch_normalisation_are_one_instruction():
    net = Network(
        [Dense(3, name="a"), BatchNorm(activation="relu", name="n")],
        [Dense(5, use_bias=False, name="c"), BatchNorm(name="m"), Dense(4, name="out")],
        4,
    )
    program = lowered(net)
    for name in ("train", "evaluate", "reconstruct"):
        kind = "forward" if name == "train" else "inference"
        kernels = kernels_of(program.routine(name))[:3]
        assert kernels == [f"dense_batchnorm_{kind}", f"dense_batchnorm_{kind}", "dense_forward"], name
    first, second = program.routine("train").instructions[:2]
    names = [slot.name for array, slot in first.arrays if array.role == "out"]
    assert names == ["a.out", "n.out", "n.mean", "n.inv_std"]
    assert first.note == "a and n: product, normalisation and relu in one"
    assert second.note == "c and m: product and normalisation in one"
    assert "b" not in [array.name for array, _ in second.arrays]
    assert first.note in str(program)
    # What is not kept for the backward pass is not stored.
    assert not any(s.name == "a.out" for i in program.routine("encode").instructions for _, s in i.arrays)


@pytest.mark.parametrize(
    ("encoder", "routine"),
    [
        ([Dense(3, "tanh"), BatchNorm()], "train"),  # not the bare product
        ([Dense(3), Dropout(0.5), BatchNorm()], "train"),  # something between them
        ([Dense(3), Parallel([BatchNorm()], [Activation("tanh")])], "train"),  # another reads it too
        ([Dense(3)], "decode"),  # the code is asked for
    ],
)
def test_dense_and_batch_normalisation_stay_two_where_they_must(encoder, routine):
    decoder = [BatchNorm(), Dense(4)] if routine == "decode" else [Dense(4)]
    program = lowered(Network(encoder, decoder, 4))
    kernels = kernels_of(program.routine(routine)) + kernels_of(program.routine("encode"))
    assert not any(kernel.startswith("dense_batchnorm") for kernel in kernels)
    assert any(kernel.startswith("batchnorm") for kernel in kernels)


def test_the_derivative_after_batch_normalisation_is_fused_where_it_can_be():
    net = Network([Dense(3, name="a"), BatchNorm(activation="relu", name="n")], [Dense(4), Dropout(0.5)], 4)
    train = lowered(net).routine("train").instructions
    (dx,) = [i for i in train if i.kernel == "dense_input_grad"]
    (back,) = [i for i in train if i.kernel == "batchnorm_backward"]
    assert (dx.constants["activation"], back.constants["activation"]) == ("relu", "linear")
    net = Network([Dense(3), BatchNorm(activation="relu", name="n")], [Dropout(0.5), Dense(4)], 4)
    train = lowered(net).routine("train").instructions
    (back,) = [i for i in train if i.kernel == "batchnorm_backward"]
    assert back.constants["activation"] == "relu"
    assert back.note == "derivative of n's relu fused"
    assert "activation_backward" not in [i.kernel for i in train]


LAST = {
    "dense": [Dense(4, "sigmoid", name="y")],
    "merged": [Dense(4, name="y"), Activation("sigmoid")],
    "batchnorm": [BatchNorm(activation="sigmoid", name="y")],
    "apart": [Parallel([Dense(4)], []), Activation("sigmoid", name="y")],
}


@pytest.mark.parametrize("last", LAST)
def test_binary_cross_entropy_is_fused_with_the_sigmoid_before_it(last):
    net = Network([Dense(4, "tanh", name="code")], LAST[last], 4)
    program = lowered(net, loss="bce")
    for name in ("train", "evaluate"):
        routine = program.routine(name)
        assert routine.instructions[routine.check - 1].kernel == "total"
        ahead = kernels_of(routine).index("bce_with_logits")
        assert routine.instructions[ahead].note == "y's sigmoid and bce in one"
        assert "sigmoid" not in [i.constants.get("activation") for i in routine.instructions]
        assert ahead == len(program.routine("reconstruct").instructions) - (last == "apart")
    assert "y's sigmoid and bce in one" in str(program)
    for name in ("reconstruct", "decode"):
        assert program.routine(name).instructions[-1].constants["activation"] == "sigmoid"

    # Stable where a sigmoid is 0 or 1 and the loss would be infinite, and exact there.
    weights = random_weights(net, np.random.default_rng(0))
    for name in weights:
        weights[name] = weights[name] * (1e3 if name.endswith("weight") else 1)
    x = np.random.default_rng(1).uniform(size=(3, 4))
    arena = ready(program, weights)
    found = compute_loss(program, arena, x, name="evaluate")
    assert (1 if last != "batchnorm" else 0.5) < found < 1e5
    y = forward(program, arena, "reconstruct", x)
    assert ((y >= 0) & (y <= 1)).all()
    assert np.isfinite(train(program, arena, x))


def test_binary_cross_entropy_of_other_outputs_is_not_fused():
    for decoder in ([Dense(4, "softmax")], [Dense(4, "sigmoid"), Dropout(0.5)]):
        program = lowered(Network([Dense(2)], decoder, 4), loss="bce")
        assert "bce" in kernels_of(program.routine("train"))
        assert "bce_with_logits" not in kernels_of(program.routine("train"))
    program = lowered(Network([Dense(2)], [Dense(4, "sigmoid")], 4), loss="mse")
    assert "mse" in kernels_of(program.routine("train"))


def test_logits_stay_logits():
    net = Network([Dense(2)], [Dense(4)], 4)
    program = lowered(net, loss="bce_with_logits")
    weights, x = net.initial_weights(0), np.random.default_rng(0).uniform(size=(3, 4))
    arena = ready(program, weights)
    reference = Reference(net, weights)
    logits = reference.decode(reference.encode(x))
    np.testing.assert_allclose(forward(program, arena, "reconstruct", x), logits, rtol=1e-12)
    same = lowered(Network([Dense(2)], [Dense(4, "sigmoid")], 4), loss="bce")
    other = ready(same, weights)
    assert train(same, other, x) == train(program, arena, x)
    for name, value in same.read_weights(other).items():
        assert np.array_equal(value, program.read_weights(arena)[name])
    with pytest.raises(ValueError, match=r"bce_with_logits takes logits, .* ends with a sigmoid: use bce"):
        lowered(Network([Dense(2)], [Dense(4, "sigmoid")], 4), loss="bce_with_logits")


# -- batch normalisation ---------------------------------------------------------------------------------


def test_batch_normalisation_has_running_statistics():
    program = lowered(models.batchnorm_mlp(6, 2), fused_update=True, optimizer=Adam())
    assert program.needs_rows == 2
    assert lowered(models.autoencnet()).needs_rows == 1
    for name in ("evaluate", "encode", "decode", "reconstruct"):
        kernels = kernels_of(program.routine(name))
        assert "dense_batchnorm_inference" in kernels
        assert "dense_batchnorm_forward" not in kernels
    assert kernels_of(program.routine("train")).count("dense_batchnorm_forward") == 6
    inside = [s for s in program.parameters if ".running_" in s.name]
    start, stop = program.statistics.offset, program.statistics.offset + program.statistics.size
    assert [start <= s.offset < stop for s in inside] == [True] * 12
    assert program.lasting == (program.trainable, program.statistics, *program.states.values())
    weights = program.network.initial_weights(0)
    arena = program.new_arena()
    program.write_weights(arena, weights)
    with pytest.raises(ValueError, match=r"batchnorm_1\.running_var must not be negative; got -1"):
        program.write_weights(arena, {**weights, "batchnorm_1.running_var": np.full(8, -1.0)})


def test_parameters_outside_dense_layers_are_updated_at_once():
    program = lowered(models.batchnorm_mlp(6, 2), fused_update=True, optimizer=Adam())
    check_layout(program)
    train = program.routine("train")
    assert kernels_of(train).count("dense_adam") == 6
    (update,) = [i for i in train.instructions if i.kernel == "adam"]
    assert update.note == "all parameters outside dense layers at once"
    g, step = update.operands[:2]
    assert step == STEP
    w, *states = [o for o in update.operands[2:] if not isinstance(o, int | float)]
    names = [f"batchnorm_{i}.{p}" for i in range(1, 7) for p in ("gamma", "beta")]
    for stretch, suffix in ((g, ".grad"), (w, ""), *zip(states, (".exp_avg", ".exp_avg_sq"), strict=True)):
        assert stretch.size == g.size
        inside = [s.name for s in program.slots.values() if 0 <= s.offset - stretch.offset < g.size]
        assert inside == [name + suffix for name in names]
    assert w.offset == program.trainable.offset
    assert program.trainable.size == program.states["exp_avg"].size > g.size


# -- what is random --------------------------------------------------------------------------------------


def test_what_is_random_is_drawn_in_training_alone_and_each_in_its_stream():
    net = Network(
        [GaussianNoise(0.1), Dense(3), Dropout(0.5, name="drop")],
        [Dense(3), MaskingNoise(0.25), Dropout(0.0), Dropout(0.5), Dense(4)],
        4,
    )
    random = {"gaussian_noise", "dropout_forward", "dropout_backward", "masking_noise"}
    program = lowered(net, noise=MaskingNoise(0.3))
    drawn = [i for i in program.routine("train").instructions if i.kernel in random]
    assert [(i.kernel, i.constants["stream"]) for i in drawn] == [
        ("masking_noise", 0),
        ("gaussian_noise", 1),
        ("dropout_forward", 2),
        ("masking_noise", 3),
        ("dropout_forward", 5),
        ("dropout_backward", 5),
        ("masking_noise", 3),
        ("dropout_backward", 2),
    ]
    assert all(COUNTER in i.operands for i in drawn)
    assert drawn[0].operands[0].name == "batch"
    for name in ("evaluate", "encode", "decode", "reconstruct"):
        assert not random & set(kernels_of(program.routine(name)))
    # The code of one who encodes is that of the layer before the dropout.
    assert program.routine("encode").output is program.slots["dense_1.out"]
    assert program.routine("decode").input is program.slots["dense_1.out"]
    # Input noise moves no stream of a layer.
    plain = [i for i in lowered(net).routine("train").instructions if i.kernel in random]
    assert [i.constants for i in plain] == [i.constants for i in drawn[1:]]
    assert "input noise MaskingNoise(rate=0.3" in str(program)
    for noise in (Dropout(0.5), "gaussian", Dense(3)):
        with pytest.raises(ValueError, match="noise must be None, GaussianNoise or MaskingNoise"):
            lowered(net, noise=noise)


def test_every_update_draws_anew_and_a_seed_draws_the_same():
    net = Network([Dropout(0.5)], [Dense(30, kernel_initializer="identity")], 30)
    program = lowered(net, optimizer=SGD(1e-9))
    x = np.ones((4, 30))

    def masks(seed):
        arena = ready(program, net.initial_weights(0))
        program.header(arena)[1] = seed
        drawn = []
        for _ in range(3):
            train(program, arena, x)
            drawn.append(program.view(arena, "dropout_1.out").tobytes())
        return drawn

    assert masks(7) == masks(7)
    assert len({*masks(7), *masks(8)}) == 6
    arena = ready(program, net.initial_weights(0))
    train(program, arena, x)
    assert set(np.unique(program.view(arena, "dropout_1.out"))) == {0, 2}


def test_the_loss_compares_with_the_batch_without_noise():
    net = Network([Dense(4, kernel_initializer="identity", trainable=False)], [Dense(4)], 4)
    program = lowered(net, noise=GaussianNoise(0.5))
    (loss,) = [i for i in program.routine("train").instructions if i.kernel == "sse"]
    assert loss.operands[1] is program.slots["batch"]
    (own,) = [i for i in program.routine("train", own_target=True).instructions if i.kernel == "sse"]
    assert own.operands[1] is program.slots["target"]
    (first,) = [i for i in program.routine("train").instructions if i.kernel == "dense_forward"]
    assert first.operands[0] is program.slots["batch.noise.out"]


# -- optimisers ------------------------------------------------------------------------------------------


class Straight:
    """PyTorch's optimisers as its documentation states them, for one parameter."""

    def __init__(self, optimizer):
        self.o, self.t, self.m, self.v = optimizer, 0, 0.0, 0.0

    def step(self, w, g):
        o, self.t = self.o, self.t + 1
        if isinstance(o, AdamW):
            w = w - o.learning_rate * o.weight_decay * w
        else:
            g = g + o.weight_decay * w
        if isinstance(o, SGD):
            self.m = o.momentum * self.m + g
            return w - o.learning_rate * (g + o.momentum * self.m if o.nesterov else self.m)
        if isinstance(o, Adam):
            a, b = o.betas
            self.m, self.v = a * self.m + (1 - a) * g, b * self.v + (1 - b) * g * g
            m, v = self.m / (1 - a**self.t), self.v / (1 - b**self.t)
            return w - o.learning_rate * m / (np.sqrt(v) + o.epsilon)
        alpha = o.alpha if isinstance(o, RMSprop) else 1
        self.v = alpha * self.v + (1 - alpha if isinstance(o, RMSprop) else 1) * g * g
        return w - o.learning_rate * g / (np.sqrt(self.v) + o.epsilon)


CHOICES = [
    SGD(0.1),
    SGD(0.1, weight_decay=0.2),
    SGD(0.1, momentum=0.8),
    SGD(0.1, momentum=0.8, nesterov=True, weight_decay=0.1, clip_norm=0.3),
    Adam(0.01),
    Adam(0.01, betas=(0.5, 0.9), epsilon=1e-3, weight_decay=0.1),
    AdamW(0.01, weight_decay=0.3),
    AdamW(0.01, clip_norm=0.2),
    RMSprop(0.01),
    RMSprop(0.01, alpha=0.5, epsilon=1e-3, weight_decay=0.2, clip_norm=5.0),
    Adagrad(0.1),
    Adagrad(0.1, epsilon=1e-3, weight_decay=0.2),
]


@pytest.mark.parametrize("optimizer", CHOICES, ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["contiguous", "padded"])
def test_optimisers_update_as_written_by_hand(optimizer, padded):
    # No bias before the normalisation: its gradient is rounding, which these optimisers would blow up.
    net = Network([Dense(2, use_bias=False), BatchNorm(activation="tanh")], [Dense(3)], 3)
    rng = np.random.default_rng(0)
    weights, batches = random_weights(net, rng), rng.normal(size=(4, 4, 3))

    wanted = dict(weights)
    straight = {p.name: Straight(optimizer) for p in net.parameters if p.trainable}
    for x in batches:
        reference = Reference(net, wanted, training=True)
        reference.loss(x, x, "mse")
        grads = reference_gradients(net, wanted, x, x, "mse")
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = 1 if optimizer.clip_norm is None else min(1, optimizer.clip_norm / norm)
        new = {name: straight[name].step(wanted[name], scale * g) for name, g in grads.items()}
        wanted = {**wanted, **new, **reference.statistics}

    for fused in (False, True):
        program = lowered(net, loss="mse", optimizer=optimizer, padded=padded, fused_update=fused)
        check_layout(program)
        check_barriers(program.routine("train"))
        assert [*program.states] == [*optimizer.states]
        arena = ready(program, weights)
        for x in batches:
            train(program, arena, x)
        for name, value in program.read_weights(arena).items():
            np.testing.assert_allclose(value, wanted[name], rtol=1e-8, atol=1e-11, err_msg=f"{name} {fused}")
        if optimizer.clip_norm is not None:
            assert program.view(arena, "gradient_norm") == pytest.approx(norm, rel=1e-8)


def test_a_fused_update_needs_a_kernel_and_no_norm():
    net = models.quark_mlp()

    def updates(optimizer):
        kernels = kernels_of(lowered(net, optimizer=optimizer, fused_update=True).routine("train"))
        return kernels[next(n for n, name in enumerate(kernels) if KERNELS[name].loss) + 1 :]

    assert updates(Adam()).count("dense_adam") == 3
    assert updates(AdamW()).count("dense_adam") == 3
    assert updates(SGD()).count("dense_sgd") == 3
    assert updates(SGD(momentum=0.9))[-1:] == ["momentum"]
    for optimizer, last in ((Adam(clip_norm=1), "adam"), (SGD(clip_norm=1), "sgd")):
        kernels = updates(optimizer)
        assert kernels[-2:] == ["clip_by_norm", last]
        assert kernels.count("dense_weight_grad") == 3
    program = lowered(net, optimizer=SGD(clip_norm=0.5), fused_update=True)
    clip = program.routine("train").instructions[-2]
    assert clip.operands == (0.5, program.gradients, program.slots["gradient_norm"])


def test_programs_exchange_weights_and_states_by_name():
    net = models.batchnorm_mlp(6, 2)
    rng = np.random.default_rng(0)
    weights, batches = random_weights(net, rng), rng.normal(size=(6, 4, 6))
    layouts = [{"padded": p, "fused_update": q} for p, q in ((False, False), (True, True), (False, True))]
    programs = [lowered(net, optimizer=Adam(), **layout) for layout in layouts]
    assert programs[0].state_slots.keys() == programs[1].state_slots.keys()
    assert {*programs[0].state_slots} == {
        f"{p.name}.{state}" for p in net.parameters if p.trainable for state in ("exp_avg", "exp_avg_sq")
    }
    alone = programs[0]
    wanted = ready(alone, weights)
    program, arena = alone, ready(alone, weights)
    for i, x in enumerate(batches):
        after = programs[i % 3]
        other = ready(after, program.read_weights(arena))
        after.header(other)[:] = program.header(arena)
        for name, slot in after.state_slots.items():
            after.view(other, slot)[...] = program.view(arena, program.state_slots[name])
        program, arena = after, other
        assert train(program, arena, x) == pytest.approx(train(alone, wanted, x), rel=1e-9)
    for name, value in program.read_weights(arena).items():
        np.testing.assert_allclose(value, alone.read_weights(wanted)[name], rtol=1e-8, atol=1e-10)


def test_another_learning_rate_is_another_number_in_the_same_program():
    net = Network([Dense(2), BatchNorm()], [Dense(5)], 5)
    for optimizer, fused in ((Adam(0.5), True), (SGD(0.5, momentum=0.5), False)):
        program = lowered(net, optimizer=optimizer, fused_update=fused)
        program.routine("train").encode(3)  # known already, and to be changed
        other = program.with_learning_rate(0.25)
        assert other.optimizer == dataclasses.replace(optimizer, learning_rate=0.25)
        expected = lowered(net, optimizer=other.optimizer, fused_update=fused)
        for key, routine in expected.losing.items():
            for rows in (3, 4):
                assert np.array_equal(other.losing[key].encode(rows), routine.encode(rows))
            assert other.losing[key].instructions == routine.instructions
        assert other.routine("train") is other.routines["train"]
        assert other.routine("train") is not program.routine("train")
        assert other.routine("evaluate") is program.routine("evaluate")
        assert other.slots is program.slots
        assert "learning_rate=0.25" in str(other)
        assert "learning_rate=0.5" in str(program)
        assert "learning_rate=0.25" not in str(program)
        arena = ready(program, net.initial_weights(0))
        train(other, arena, np.ones((4, 5)))
        for rate in (0, -1, math.nan, "fast"):
            with pytest.raises(ValueError, match="learning_rate must be"):
                program.with_learning_rate(rate)


# -- weights of rows -------------------------------------------------------------------------------------


def test_rows_have_weights_where_they_are_asked_for():
    program = lowered(models.autoencnet(6, 2))
    weighted = program.routine("train", weighted=True)
    assert weighted.weight is program.slots["sample_weight"]
    assert program.routine("train").weight is None
    assert program.routine("encode", weighted=True) is program.routine("encode")
    assert weighted.listing().count("gather_rows") == 2
    (loss,) = [i for i in weighted.instructions if i.kernel == "sse"]
    assert loss.operands[2] is weighted.weight
    (loss,) = [i for i in program.routine("train").instructions if i.kernel == "sse"]
    assert loss.operands[2] is None
    for own in (False, True):
        assert (program.routine("train", own, True).target is None) is not own
        assert program.routine("evaluate", own, True).weight is weighted.weight


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
    program.header(arena)[:2] = 5, 1 << 40
    assert program.view(arena, STEP).tolist() == [5]
    assert program.view(arena, COUNTER).tolist() == [5, 1 << 40]
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
        assert ("scratch" in program.slots) == (not padded)
        if not padded:
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
    sgd = code[9]
    assert sgd[0] == names.index("dense_sgd")
    assert sgd[4:5].view(np.float64)[0] == 0.25
    assert sgd[6] == slots["scratch"].offset
    assert sgd[9:12].tolist() == [7, 75, 225]
    assert code[:, 1].tolist() == routine.barriers(7)


def test_each_thread_finds_what_it_has_gathered_for_itself():
    """All else is where it was, for a whole batch and a tail."""
    program = lowered(models.autoencnet(30, 10), batch_size=5, padded=True)
    routine = program.routine("train", own_target=True, weighted=True)
    assert routine.gathered == tuple(program.slots[n] for n in ("batch", "target", "sample_weight"))
    for rows in (3, 5):
        moved = np.zeros((len(routine.instructions), WIDTH), np.int64)
        for line, instruction in zip(moved, routine.instructions, strict=True):
            for column, operand in enumerate(instruction.operands, 2):
                if getattr(operand, "name", "") in ("batch", "target", "sample_weight"):
                    line[column] = -4096
        assert np.count_nonzero(moved) == 5  # two read the batch forward, one backward; the loss the others
        assert np.array_equal(routine.encode_apart(rows, -4096) - routine.encode(rows), moved)
        assert np.array_equal(routine.encode_apart(rows, 0), routine.encode(rows))


def test_codes_are_kept_and_rows_checked():
    routine = lowered(models.autoencnet(6, 2), batch_size=5).routine("train")
    assert routine.encode(3) is routine.encode(3)
    assert routine.encode() is routine.encode(5)
    for rows in (0, -1, 6, 2.5, "3"):
        with pytest.raises(ValueError, match="rows must be"):
            routine.encode(rows)


def test_every_instruction_fits_the_width():
    for row in KERNELS.values():
        assert 2 + len(row.arguments) + len(row.dims) <= SHARD


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


def test_every_layer_has_a_lowering():
    for cls in LAYERS.values():
        assert build.dispatch(cls) is not build.dispatch(Layer)


def test_long_rows_do_not_share_their_cache_sets():
    """A stride of 1024 bytes visits 4 of 64 sets; whole lines, and for short rows no more than needed."""
    for itemsize in (4, 8):
        for columns in range(1, 3000):
            lines, rest = divmod(row_stride(columns, itemsize) * itemsize, 64)
            fewest = -(-columns * itemsize // 64)
            assert rest == 0
            assert fewest <= lines <= fewest + (fewest >= 8)
            assert lines < 8 or lines % 4

"""Programs in shards: who gets one, that it computes the same, that threads keep out of each other's way."""

import itertools
import os

import numpy as np
import pytest

import fastae
from fastae import backend as backends
from fastae import models
from fastae.executor import processors, team_size
from fastae.layers import Activation, BatchNorm, Dense, Dropout, GaussianNoise, Parallel, Subsample
from fastae.lowering import lower
from fastae.network import Network
from fastae.optimizers import SGD, Adam, AdamW
from fastae.program import SHARD
from fastae.sharding import SHARDS

NETWORKS = {
    "quark_mlp": models.quark_mlp(),
    "autoencnet": models.autoencnet(),
    "one layer each": Network([Dense(9, "tanh")], [Dense(131, "elu")], 131),
    "a line and more": Network([Dense(16, "relu"), Dense(3)], [Dense(17, "relu"), Dense(200)], 200),
    "without biases": Network(
        [Dense(7, "softplus", use_bias=False)], [Dense(300, "leaky_relu", use_bias=False)], 300
    ),
    "links": Network(
        [Parallel([Dense(12, "relu")], [Subsample(2), Dense(12)], [Subsample(5), Dense(12, use_bias=False)])],
        [Dense(250, "sigmoid")],
        250,
    ),
    "no encoder": Network([Activation("linear")], [Dense(9, "relu"), Dense(200)], 200),
    "no decoder": Network([Dense(9, "tanh"), Dense(200)], [Activation("linear")], 200),
    "wide, narrow, wide, narrow": Network(
        [Dense(9, "relu", trainable=False), Dense(144, trainable=False)], [Dense(20, "tanh"), Dense(144)], 144
    ),
    "fixed layers": Network(
        [Dense(11, "sigmoid", trainable=False)], [Dense(5), Dense(140, trainable=False)], 140
    ),
}

#: So much is narrow that it is near the limit of what pays, which the batch size must not move.
BETWEEN = Network([Dense(70), Dense(70)], [Dense(200)], 200, name="between")


def lowered(net, shards=True, **more):
    options = {"batch_size": 6, "loss": "mse", "optimizer": Adam(0.01), "dtype": "float64"}
    return lower(net, **{**options, **more}, padded=True, fused_update=True, shards=shards)


def is_sharded(program):
    return bool(program.slots["batch"].shards)


@pytest.fixture(params=NETWORKS, ids=lambda name: name.replace(" ", "_"))
def net(request):
    return NETWORKS[request.param]


@pytest.fixture
def cython_or_skip():
    try:
        return backends.load("cython").module
    except ImportError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


@pytest.fixture
def executor(cython_or_skip):
    return cython_or_skip.Executor


class Trained:
    """What a Program and an executor make of some rows: everything but the weights is NaN before."""

    def __init__(self, executor, program, n_threads=1, *, own_target=False, weighted=False, updates=30):
        rng = np.random.default_rng(5)
        net, dtype = program.network, program.dtype
        columns = net.input_shape[0]
        rows = program.batch_size * updates - 2  # the last batch is smaller
        x, target = rng.uniform(size=(2, 50, columns)).astype(dtype)
        weights = rng.uniform(0, 2, 50).astype(dtype) if weighted else None
        order = rng.integers(0, 50, rows)
        self.arena = program.new_arena()
        self.arena[64 // self.arena.itemsize :] = np.nan
        program.write_weights(self.arena, net.initial_weights(3))
        for slot in program.state_slots.values():
            program.write(self.arena, slot, 0)
        run = executor(program, self.arena, n_threads).run
        self.losses = np.full(updates, np.nan)
        given = {"weights": weights, "losses": self.losses}
        target = target if own_target else None
        run(program.routine("train", own_target, weighted), x, target, order, **given)
        evaluated = np.full(-(-50 // program.batch_size), np.nan)
        given = {"weights": weights, "losses": evaluated}
        run(program.routine("evaluate", own_target, weighted), x, target, None, **given)
        self.results = {"losses": self.losses, "evaluated": evaluated}
        for name, of in (("encode", x), ("reconstruct", x), ("decode", None)):
            of = self.results["encode"] if of is None else of
            out = np.full((50, program.routine(name).output.columns), np.nan, dtype)
            run(program.routine(name), of, None, None, out=out)
            self.results[name] = out
            shared = np.full_like(out, np.nan)  # with an order threads share instructions, else whole batches
            run(program.routine(name), of, None, np.arange(50), out=shared)
            assert shared.tobytes() == out.tobytes()
        self.results |= program.read_weights(self.arena)
        self.results |= {n: program.view(self.arena, s).copy() for n, s in program.state_slots.items()}
        assert all(np.isfinite(value).all() for value in self.results.values())


@pytest.mark.parametrize("optimizer", [SGD(0.0005), Adam(0.01), AdamW(0.01, weight_decay=0.1)], ids=str)
@pytest.mark.parametrize("loss", ["mse", "sse"])
@pytest.mark.parametrize("more", [{}, {"own_target": True, "weighted": True}], ids=["plain", "own_weighted"])
def test_shards_compute_the_same(executor, net, optimizer, loss, more):
    whole, halves = (lowered(net, shards, optimizer=optimizer, loss=loss) for shards in (False, True))
    assert is_sharded(halves)
    assert not is_sharded(whole)
    expected, found = (Trained(executor, program, **more).results for program in (whole, halves))
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-7, atol=1e-9, err_msg=name)


def test_as_many_rows_as_columns(executor):
    """What has a number for each row is as long then as what has one for each column."""
    whole, halves = (lowered(NETWORKS["one layer each"], shards, batch_size=131) for shards in (False, True))
    assert is_sharded(halves)
    assert not halves.slots["row_loss"].shards
    given = {"own_target": True, "weighted": True, "updates": 4}
    expected, found = (Trained(executor, program, **given).results for program in (whole, halves))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [SGD(0.0005), Adam(0.01)], ids=str)
def test_same_bits_for_any_number_of_threads(executor, net, optimizer, dtype):
    program = lowered(net, optimizer=optimizer, dtype=dtype)
    given = {"own_target": True, "weighted": True, "updates": 400}  # the first thread begins alone
    first = Trained(executor, program, 1, **given).results
    for n_threads in (2, 3, 8):
        found = Trained(executor, program, n_threads, **given).results
        for name, value in first.items():
            assert value.tobytes() == found[name].tobytes(), (n_threads, name)


@pytest.mark.parametrize("name", ["one layer each", "links"])
def test_same_bits_where_threads_are_chosen_while_it_runs(executor, name):
    """A batch has so much work that None is a team, and one thread where that turns out to be faster."""
    program = lowered(NETWORKS[name], batch_size=2048, dtype="float32")
    assert team_size(program.routine("train"), 2048 * 40, 2048, 1e6) > 1 or processors() == 1
    given = {"own_target": True, "weighted": True, "updates": 40}
    first, found = (Trained(executor, program, n, **given).results for n in (1, None))
    for key, value in first.items():
        assert value.tobytes() == found[key].tobytes(), key


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_loss_that_is_not_finite_stops_all(executor, net, n_threads):
    program = lowered(net, dtype="float32")
    x = np.random.default_rng(0).uniform(size=(240, *net.input_shape)).astype("f4")
    arena = program.new_arena()
    program.write_weights(arena, net.initial_weights(0))
    before = []
    for rows, bad in ((120, None), (240, 120)):
        if bad is not None:
            x[bad + 1, -1] = np.nan
        program.write_weights(arena, net.initial_weights(0))
        for slot in program.state_slots.values():
            program.write(arena, slot, 0)
        program.header(arena)[0] = 0
        control, losses = np.zeros(8, np.int64), np.full(rows // 6, np.nan)
        given = {"losses": losses, "control": control}
        executor(program, arena, n_threads).run(program.routine("train"), x[:rows], None, None, **given)
        before.append({n: v.tobytes() for n, v in program.read_weights(arena).items()})
        assert control[1:3].tolist() == [20, -1 if bad is None else 20]
        assert program.header(arena)[0] == 20
        assert np.isfinite(losses[:20]).all()
    assert before[0] == before[1]  # the update of that batch was not made


@pytest.mark.parametrize("net", [*NETWORKS.values(), BETWEEN], ids=str)
def test_a_row_has_the_same_bits_in_any_batch(executor, net):
    x = np.random.default_rng(0).uniform(size=(33, *net.input_shape)).astype("f4")
    results = []
    for batch_size in (1, 4, 33, 64):
        program = lowered(net, batch_size=batch_size, dtype="float32")
        arena = program.new_arena()
        program.write_weights(arena, net.initial_weights(0))
        out = np.full_like(x, np.nan)
        executor(program, arena, 2).run(program.routine("reconstruct"), x, None, None, out=out)
        results.append(out.tobytes())
    assert len(set(results)) == 1


def test_what_lasts_keeps_its_name_and_shape(net):
    rng = np.random.default_rng(1)
    whole, halves = lowered(net, False), lowered(net)
    arena = halves.new_arena()
    arena[8:] = np.nan
    weights = {p.name: rng.normal(size=p.shape) for p in whole.parameters}
    for name, demand in whole.constraints.items():
        weights[name] = np.eye(len(weights[name])) if demand == "identity" else 0 * weights[name]
    halves.write_weights(arena, weights)
    found = halves.read_weights(arena)
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], weights[name]) for name in weights)
    assert halves.state_slots.keys() == whole.state_slots.keys()
    for name, slot in halves.state_slots.items():
        assert slot.shape == whole.state_slots[name].shape
        value = rng.normal(size=slot.shape)
        halves.write(arena, slot, value)
        assert np.array_equal(halves.view(arena, name), value)
    assert all(np.array_equal(found[n], v) for n, v in halves.read_weights(arena).items())
    with pytest.raises(ValueError, match="read-only"):
        halves.view(arena, "batch")[0] = 0


def test_write_sets_a_slot_or_nothing(net):
    program = lowered(net)
    arena = program.new_arena()
    columns = net.input_shape[0]
    wide = np.random.default_rng(0).normal(size=(6, columns))
    program.write(arena, "batch", wide)
    program.write(arena, program.slots["batch"], -wide[:2])
    expected = np.concatenate([-wide[:2], wide[2:]])
    assert np.array_equal(program.view(arena, "batch"), expected)
    weight = next(p for p in program.parameters if len(p.shape) == 2)
    program.write(arena, weight, 3)
    assert (program.view(arena, weight) == 3).all()
    before = arena.copy()
    rows, m = weight.shape
    wrong = [("batch", (6, columns + 1)), ("batch", (7, columns)), ("batch", (6, 1)), ("batch", (columns,))]
    wrong += [(weight.name, shape) for shape in ((rows - 1, m), (rows, 1), (m, rows), (m,), (1, rows, m))]
    for name, shape in wrong:
        if shape != program.slots[name].shape:
            with pytest.raises(ValueError, match=rf"{name} must have shape .*; got \({shape[0]},"):
                program.write(arena, name, np.ones(shape))
    with pytest.raises(ValueError, match=r"slot must be one of .*; got 'bach'"):
        program.write(arena, "bach", 0)
    assert np.array_equal(arena, before)


def test_what_lasts_lies_in_its_stretch(net):
    """So that a copy of the stretches is one of all that training changes."""
    program = lowered(net)
    trainable = [program.slots[p.name] for p in net.parameters if p.trainable]
    pairs = [(program.trainable, trainable)] + [
        (stretch, [program.state_slots[f"{slot.name}.{state}"] for slot in trainable])
        for state, stretch in program.states.items()
    ]
    for stretch, members in pairs:
        for piece in (piece for member in members for piece in member.pieces):
            assert stretch.offset <= piece.offset
            assert piece.offset + piece.size <= stretch.offset + stretch.size
    others = [p for slot in program.slots.values() if slot not in trainable for p in slot.pieces]
    start, stop = program.trainable.offset, program.trainable.offset + program.trainable.size
    assert all(piece.offset >= stop or piece.offset + piece.size <= start for piece in others)


def pieces_of(program):
    return [piece for slot in program.slots.values() for piece in slot.pieces]


def test_nothing_overlaps_and_shards_lie_apart(net):
    program = lowered(net, dtype="float32")
    spans = sorted((p.offset, p.offset + p.size, p) for p in pieces_of(program))
    end = 16
    for start, stop, piece in spans:
        assert start >= end, f"{piece} overlaps the one before"
        assert start % 16 == 0
        assert piece.stride % 16 == 0 or len(piece.shape) == 1
        end = stop
    assert end <= program.arena_size
    for slot in program.slots.values():
        if slot.shards:
            first, second = slot.shards
            assert len(slot.shards) == SHARDS
            assert second.offset - (first.offset + first.size) >= 8 * first.stride


def spans(slots, written):
    return [(slot.offset, slot.offset + slot.size, written) for slot in slots]


def steps_of(routine):
    """In the order they are done: the shard, None for all threads, and the memory that is read and written.

    The gathering of a batch, the instructions, the handing out of the output.
    """
    gathering = [
        (shard if slot.shards else None, spans([piece], True))
        for slot in routine.gathered
        for shard, piece in enumerate(slot.pieces)
    ]
    instructions = [
        (i.shard, [span for a, slot in i.arrays if not slot.index for span in spans([slot], a.written)])
        for i in routine.instructions
    ]
    result = [] if routine.output is None else routine.output.pieces
    return gathering, instructions, [(None, spans(result, False))]


def test_shards_wait_for_what_the_other_touches(net):
    """Pair by pair, over two batches. What all threads share may be anyone's."""
    program = lowered(net)
    for routine in {*program.losing.values(), *program.routines.values()}:
        assert all(i.shard in range(SHARDS) for i in routine.instructions)
        assert routine.encode()[:, SHARD].tolist() == [i.shard + 1 for i in routine.instructions]
        gathering, instructions, handing = steps_of(routine)
        # behind each step: whether all meet; always at the end of a batch
        met = [0] * (len(gathering) - 1) + [routine.opens(), *routine.barriers(), 1]
        steps = [*gathering, *instructions, *handing]
        assert len(met) == len(steps)
        for n, (one, first) in enumerate(2 * steps):
            for m in range(n + 1, len(2 * steps)):
                other, second = steps[m % len(steps)]
                if one == other and (one is not None or {n, m} <= {*range(len(gathering))}):
                    continue
                for (a, b, written), (c, d, too) in itertools.product(first, second):
                    if (written or too) and a < d and c < b:
                        assert 1 in (2 * met)[n:m], (routine.name, n, m)


def test_both_know_the_loss_before_they_learn(net):
    program = lowered(net)
    for key, routine in program.losing.items():
        assert routine.losses[0] == routine.loss
        assert len({loss.offset for loss in routine.losses}) == SHARDS
        before, after = routine.instructions[: routine.check], routine.instructions[routine.check :]
        for shard, loss in enumerate(routine.losses):
            makers = [i for i in before if any(a.written and s.offset == loss.offset for a, s in i.arrays)]
            assert [i.shard for i in makers] == [shard]
        lasting = [i for i in before for a, _ in i.arrays if a.role == "state"]
        assert not lasting
        assert bool(after) == (key[0] == "train")


def test_two_exchanges_in_an_update():
    for name in ("quark_mlp", "autoencnet"):
        assert sum(lowered(NETWORKS[name]).routine("train").barriers()) == 2


OTHERS = {
    "narrow": (Network([Dense(9)], [Dense(127)], 127), {}),
    "large weights": (Network([Dense(65)], [Dense(512)], 512), {}),
    "another output": (Network([Dense(9)], [Dense(200)], 300), {}),
    "wide code": (Network([Dense(200)], [Dense(200)], 200), {}),
    "much in the middle": (Network([Dense(120), Dense(120)], [Dense(200)], 200), {}),
    "odd number of halves": (Network([Dense(9), Dense(200)], [Dense(9)], 200), {}),
    "batch normalisation": (Network([Dense(9), BatchNorm()], [Dense(200)], 200), {}),
    "dropout": (Network([Dense(9), Dropout(0.1)], [Dense(200)], 200), {}),
    "noise": (Network([Dense(9)], [Dense(200)], 200), {"noise": GaussianNoise(0.1)}),
    "images": (models.generic_conv(), {}),
    "another loss": (Network([Dense(9)], [Dense(200, "sigmoid")], 200), {"loss": "bce"}),
    "stored gradients": (Network([Dense(9)], [Dense(200)], 200), {"optimizer": SGD(0.1, momentum=0.9)}),
    "clipped gradients": (Network([Dense(9)], [Dense(200)], 200), {"optimizer": SGD(0.1, clip_norm=1.0)}),
    "a step as wide as half": (
        Network([Parallel([Dense(4)], [Subsample(70), Dense(4)])], [Dense(130)], 130),
        {},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_stay_whole(executor, name):
    net, more = OTHERS[name]
    program = lowered(net, **more)
    assert not is_sharded(program)
    assert all(i.shard is None for r in program.losing.values() for i in r.instructions)
    assert str(program) == str(lowered(net, False, **more))


def test_only_padded_programs_are_sharded():
    net = NETWORKS["quark_mlp"]
    assert not is_sharded(lower(net, batch_size=4, loss="mse", optimizer="sgd", shards=True))


def test_a_trainer_goes_on_elsewhere(cython_or_skip, net):
    """What shards have learnt, moments too, a backend without takes over, and back."""
    x = np.random.default_rng(0).uniform(size=(40, *net.input_shape))
    results = []
    for names in (("numpy", "numpy", "numpy"), ("cython", "numpy", "cython")):
        trainer = fastae.Trainer(net, "mse", Adam(0.01), 8, dtype="float64", seed=1)
        for name in names:
            with fastae.use_backend(name):
                assert is_sharded(trainer.program) == (name == "cython")
                trainer.fit(x, epochs=2)
        results.append(trainer.weights)
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-7, atol=1e-9, err_msg=name)

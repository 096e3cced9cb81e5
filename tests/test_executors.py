"""Executors: same bits for any number of threads, whatever lies in the arena; nothing out of bounds."""

import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

import fastae
from fastae import backend as backends
from fastae.executor import processors, processors_present, team_of_rows, team_size
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array
from fastae.layers import (
    Activation,
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Flatten,
    MaxPool2D,
    Parallel,
    Reshape,
    Subsample,
    Upsample2D,
)
from fastae.lowering import lower
from fastae.network import Network
from fastae.program import WIDTH, Program, row_stride

COMPILED = ["numba", "cython"]


def load(name):
    """The module of a backend; without its dependency a skip, in CI a failure."""
    try:
        return backends.load(name).module
    except ImportError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


def run(module, net, x, n_threads, *, batch_size, optimizer, poison=False):
    """Bits of the losses, the reconstructions and the weights of one pass."""
    dtype = x.dtype
    program = lower(
        net,
        batch_size=batch_size,
        loss="mse",
        optimizer=optimizer,
        dtype=dtype,
        **backends.layout(module),
    )
    arena = program.new_arena()
    if poison:
        arena[64 // arena.itemsize :] = np.nan
    program.write_weights(arena, net.initial_weights(0))
    executor = module.Executor(program, arena, n_threads)
    losses = np.full(-(-len(x) // batch_size), np.nan)
    out = np.full((len(x), net.output_shape[0]), np.nan, dtype)
    new_arena = Program.new_arena

    def poisoned(self):
        found = new_arena(self)
        found[:] = np.nan
        return found

    with pytest.MonkeyPatch.context() as patch:
        if poison:  # what other threads have for themselves, too
            patch.setattr(Program, "new_arena", poisoned)
        executor.run(program.routine("train"), x, None, None, losses=losses)
        executor.run(program.routine("reconstruct"), x, None, None, out=out)
    assert np.isfinite(losses).all()
    assert np.isfinite(out).all()
    weights = program.read_weights(arena)
    return losses.tobytes(), out.tobytes(), b"".join(w.tobytes() for w in weights.values())


@pytest.mark.parametrize("share", [1, 0.5, 0.05])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", COMPILED)
def test_same_bits_for_any_number_of_threads(name, dtype, share):
    # wide enough that numba cuts its products into several blocks, and ragged; with zeros to pass over
    net = Network(
        [Dense(517, "tanh"), BatchNorm(activation="relu"), Dense(70)],
        [Dense(517, "relu"), Dense(333, "sigmoid")],
        333,
    )
    rng = np.random.default_rng(1)
    x = rng.normal(size=(250, 333)).astype(dtype) * (rng.uniform(size=(250, 333)) < share)
    module = load(name)
    first = run(module, net, x, 1, batch_size=97, optimizer=fastae.Adam(1e-3))
    for n_threads in (2, 3, 5):
        assert run(module, net, x, n_threads, batch_size=97, optimizer=fastae.Adam(1e-3)) == first


@pytest.mark.parametrize("name", COMPILED)
def test_same_bits_of_layers_between_which_nobody_waits(name):
    """Small layers and links, whose work is shared out by rows, and a tail too short for that."""
    branches = Parallel([Dense(33, "relu")], [Subsample(2), Dense(33)])
    net = Network([branches, Dropout(0.2), Dense(9, "elu")], [Dense(40, "tanh"), Dense(67, "sigmoid")], 67)
    x = np.random.default_rng(1).normal(size=(32 * 200 + 7, 67)).astype("float32")
    module = load(name)
    first = run(module, net, x, 1, batch_size=32, optimizer=fastae.Adam(1e-3))
    for n_threads in (2, 3, 8):
        assert run(module, net, x, n_threads, batch_size=32, optimizer=fastae.Adam(1e-3)) == first


@pytest.mark.parametrize("name", COMPILED)
def test_a_schedule_leaves_few_routines_behind(name):
    """Each rate brings a new one; an executor keeps what it needs of some, not of all there ever were."""
    module = load(name)
    program = lower(
        Network([Dense(3)], [Dense(4)], 4),
        batch_size=8,
        loss="mse",
        optimizer=fastae.SGD(0.1),
        dtype="float32",
        **backends.layout(module),
    )
    executor = module.Executor(program, program.new_arena(), 1)
    x, there = np.ones((8, 4), "float32"), weakref.WeakSet()
    for i in range(200):
        routine = program.routine("train").with_learning_rate(0.1 + i / 1000)
        executor.run(routine, x, None, None)
        there.add(routine)
    del routine
    gc.collect()
    assert len(there) < 100


@pytest.mark.parametrize("batch_size", [8, 9, 20, 33, 48, 64, 112])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_over_images_are_made_in_halves(batch_size, dtype):
    """Where an image has several windows and a batch two blocks or more; the last one here has fewer.

    There are so many batches that the first thread begins alone.
    """
    net = Network(
        [
            Reshape((2, 8, 8)),
            Conv2D(6, 3, padding=1, activation="relu"),
            MaxPool2D(2),
            Conv2D(4, 2, groups=2, activation="tanh"),
            Conv2D(5, 3),
        ],
        [
            ConvTranspose2D(4, 2, activation="relu"),
            Upsample2D(2),
            Conv2D(3, 3, padding=1),
            ConvTranspose2D(2, 2, 2, use_bias=False),
            Flatten(),
        ],
        128,
    )
    x = np.random.default_rng(1).normal(size=(batch_size * 37 // 2, 128)).astype(dtype)
    module, options = load("cython"), {"batch_size": batch_size, "optimizer": fastae.SGD(0.05)}
    program = lower(net, loss="mse", dtype=dtype, **options, **backends.layout(module))
    halved = [i.kernel for i in program.routine("train").instructions if i.in_two_passes]
    images = ["conv_transpose2d_weight_grad"] * 2 + ["conv2d_weight_grad", "conv2d_max_pool2d_weight_grad"]
    assert halved == (images if batch_size * x.itemsize > 64 else [])
    first = run(module, net, x, 1, **options, poison=True)
    for n_threads in (2, 3, 4, 7):
        assert run(module, net, x, n_threads, **options, poison=True) == first, n_threads
    of_numpy = run(load("numpy"), net, x, 1, **options)
    for found, expected, kind in zip(first, of_numpy, ("float64", dtype, dtype), strict=True):
        found, expected = (np.frombuffer(bits, kind) for bits in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=0, atol={"float32": 1e-4, "float64": 1e-11}[dtype])


@pytest.mark.parametrize("width", [33, 700])
@pytest.mark.parametrize("name", COMPILED)
def test_same_bits_with_targets_and_weights_of_the_rows(name, width):
    """In any order and with a tail, be there so little to compute that each thread gathers all, or more."""
    net = Network([Dense(width, "relu"), Dropout(0.2)], [Dense(90)], 700)
    module = load(name)
    rng = np.random.default_rng(1)
    x, target, weights = (rng.normal(size=(333, *shape)).astype("f4") for shape in ((700,), (90,), ()))
    order = rng.integers(0, 333, 32 * 50 + 9)  # so many that the first thread begins alone
    results = []
    for n_threads in (1, 2, 3, 8):
        program = lower(
            net,
            batch_size=32,
            loss="mse",
            optimizer=fastae.Adam(1e-3),
            dtype="float32",
            **backends.layout(module),
        )
        routine = program.routine("train", own_target=True, weighted=True)
        assert routine.gathered_by_each == (width == 33)
        arena = program.new_arena()
        program.write_weights(arena, net.initial_weights(0))
        losses = np.full(51, np.nan)
        executor = module.Executor(program, arena, n_threads)
        executor.run(routine, x, target, order, weights=np.abs(weights), losses=losses)
        assert np.isfinite(losses).all()
        results.append((losses.tobytes(), *(w.tobytes() for w in program.read_weights(arena).values())))
    assert all(found == results[0] for found in results[1:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", COMPILED)
def test_same_bits_where_the_padding_makes_a_small_weight_large(name, dtype):
    """3600 x 9 numbers are few, and shared out by rows; with whole vectors in each row they are not."""
    net = Network([Dense(9, "relu")], [Dense(3600)], 3600)
    x = np.random.default_rng(1).normal(size=(13 * 20, 3600)).astype(dtype)
    module = load(name)
    first = run(module, net, x, 1, batch_size=13, optimizer=fastae.Adam(1e-3))
    same = run(module, net, x, 3, batch_size=13, optimizer=fastae.Adam(1e-3)) == first
    assert same  # without a look for the difference, which takes pytest long


def test_the_table_and_the_kernels_share_out_products_alike():
    """Else a thread would go on to rows that another has not made yet."""
    from fastae.kernels.compiled import _baseline

    rng = np.random.default_rng(0)
    shapes = (2 ** rng.uniform(0, 12, (2000, 3))).astype(int)
    shapes = [
        *shapes.tolist(),
        (7, 256, 128),
        (7, 256, 129),
        (900, 300, 200),
        (64, 128, 128),
        (512, 1024, 1024),
    ]
    for n, k, m in shapes:
        d = SimpleNamespace(n=n, k=k, m=m)
        for parts in (2, 3, 8):
            for kernel, columns, steps in (("dense_forward", m, k), ("dense_input_grad", k, m)):
                expected = n >= 4 * parts and KERNELS[kernel].by_rows(d)
                assert _baseline.shared_by_rows(n, columns, steps, parts) == expected


def call_part(backend, name, dtype, n, k, m, activation, part, parts):
    """One thread's part of a kernel in a Program; gives each array of the batch with its padding, if any.

    The rows beyond this thread's are NaN in what it reads, and everything is in what it writes.
    """

    def stride_of(width):
        return row_stride(width, itemsize) if backend == "cython" else width

    row, rng, itemsize = KERNELS[name], np.random.default_rng(0), np.dtype(dtype).itemsize
    values = {"activation": activation, "stride": 2, "rate": 0.3, "stddev": 0.1, "columns": 7}
    values = {c.name: values.get(c.name, c.default) for c in row.constants}
    sizes = {d: {"n": n, "k": k, "m": m}[d] for d in row.dims if d not in row.derived}
    sizes |= row.derive(sizes | values)
    arena = np.full(
        64 // itemsize + sum(n * stride_of(w) + k * 700 + m * 700 for w in (k, m)) * 4, np.nan, dtype
    )
    header = arena[: 64 // itemsize].view(np.int64)
    header[:] = 3
    operands, end, batched = [], 64 // itemsize, {}
    own = slice(n * part // parts, n * (part + 1) // parts)
    for a in row.arguments:
        if not isinstance(a, Array):
            value = ACTIVATIONS[values[a.name]].code if a.kind == "activation" else values[a.name]
            operands.append(int(np.float64(value).view(np.int64)) if a.kind == "real" else int(value))
        elif a.kind == "index":
            operands.append(0)
        else:
            shape = row.shape(a, sizes)
            stride = stride_of(shape[1]) if len(shape) > 1 else 1
            place = arena[end : end + shape[0] * stride].reshape(shape[0], stride)
            if a.role != "out":
                place[:, : shape[1] if len(shape) > 1 else 1] = rng.uniform(0.1, 0.9, (*shape, 1)[:2])
            if a.dims[0] == "n":
                batched[a.name] = place, shape[1] if len(shape) > 1 else 1
                if a.role != "out":
                    place[: own.start] = place[own.stop :] = np.nan
            operands.append(end)
            end += -(-place.size // 16) * 16
    assert end <= arena.size
    code = (ctypes.c_int64 * WIDTH)(*operands, *(sizes[d] for d in row.dims))
    pointers, size = (ctypes.c_void_p, ctypes.c_void_p), ctypes.c_ssize_t
    if backend == "numba":
        address = load("numba").Executor.instruction(name, np.dtype(dtype).char).address
        ctypes.CFUNCTYPE(None, *pointers, size, size)(address)(arena.ctypes.data, code, part, parts)
    else:
        from fastae.kernels.compiled import INSTRUCTIONS

        forms = ctypes.cast(INSTRUCTIONS[dtype == "float64"], ctypes.POINTER(ctypes.c_void_p))
        form = ctypes.CFUNCTYPE(None, *pointers, size, size, size)(forms[list(KERNELS).index(name)])
        form(arena.ctypes.data, code, 64 // itemsize, part, parts)
    return {a.name: batched[a.name] for a in row.outputs}, own


def shared_by_rows(backend, name, n, k, m):
    """Whether three threads share this kernel by rows where a routine has nothing but it."""
    if not KERNELS[name].by_rows(SimpleNamespace(n=n, k=k, m=m)):
        return False
    if backend == "cython" or name not in ("dense_forward", "dense_input_grad"):
        return True
    instruction = SimpleNamespace(
        kernel=name, by_rows=lambda rows: True, dims=lambda rows: {"n": n, "k": k, "m": m}
    )
    return load("numba").Executor.keeps_rows(SimpleNamespace(instructions=[instruction]), n, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [name for name, row in KERNELS.items() if row.by_rows])
@pytest.mark.parametrize("backend", COMPILED)
def test_what_is_by_rows_keeps_to_its_rows(backend, name, dtype):
    """Else a thread would read what another has not made yet, for nobody waits between two such kernels."""
    tried = 0
    for n, k, m in (
        (24, 37, 21),
        (25, 900, 9),
        (13, 3600, 9),
        (13, 9, 3600),
        (33, 1024, 33),
        (40, 5, 130),
        (900, 210, 190),
    ):
        if not shared_by_rows(backend, name, n, k, m):
            continue
        tried += 1
        for activation in ("linear", "sigmoid"):
            whole, _ = call_part(backend, name, dtype, n, k, m, activation, 0, 1)
            for part in range(3):
                made, own = call_part(backend, name, dtype, n, k, m, activation, part, 3)
                for output, (rows, columns) in made.items():
                    expected = whole[output][0][own, :columns]
                    assert np.isfinite(expected).all()
                    assert np.array_equal(rows[own, :columns], expected), (n, k, m, activation, part)
                    assert np.isnan(rows[: own.start]).all()
                    assert np.isnan(rows[own.stop :]).all()
    assert tried >= (5 if backend == "cython" else 3)


@pytest.mark.parametrize("name", COMPILED)
def test_same_bits_where_threads_are_chosen(name, monkeypatch):
    """A team of three, more than many a machine has processors: it goes on alone and together by turns."""
    monkeypatch.setenv("FASTAE_NUM_THREADS", "3")
    if name == "numba":
        from fastae.kernels import jitted_runtime

        monkeypatch.setattr(jitted_runtime, "_WORTH_A_THREAD", 1e6)
    net = Network([Dense(96, "relu"), Dense(40)], [Dense(256, "sigmoid")], 256)
    x = np.random.default_rng(1).random((64 * 600 + 5, 256)).astype("float32")
    module = load(name)
    first = run(module, net, x, 1, batch_size=64, optimizer=fastae.Adam(1e-3))
    assert run(module, net, x, None, batch_size=64, optimizer=fastae.Adam(1e-3)) == first


def test_numba_runs_again_where_a_thread_could_not_be_started(monkeypatch):
    """Else a part of the next run waits in a queue that no thread reads, and the others for it."""
    load("numba")
    net, x = Network([Dense(7)], [Dense(12)], 12), np.random.default_rng(1).random((40, 12), "f4")
    alone, team = (fastae.Trainer(net, batch_size=40, seed=0, backend="numba", n_threads=n) for n in (1, 3))
    start, starts = threading.Thread.start, []

    def fail_once(thread):
        starts.append(thread)
        if len(starts) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail_once)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            team.reconstruct(x)
    found = []
    again = threading.Thread(target=lambda: found.append(team.reconstruct(x)), daemon=True)
    again.start()
    again.join(60)
    assert [y.tobytes() for y in found] == [alone.reconstruct(x).tobytes()]


def test_numba_runs_small_batches_the_way_that_is_faster():
    """And finds out when the other way has become the faster one."""
    from fastae.kernels.jitted_runtime import Pace

    pace, seconds, chosen = Pace(), {True: 3.0, False: 2.0}, []
    for run in range(200):
        if run == 100:
            seconds = {True: 1.5, False: 2.0}
        chosen.append(pace.team())
        pace.took(chosen[-1], seconds[chosen[-1]])
    assert chosen[:2] == [True, False]
    assert sum(chosen[2:100]) <= 98 / 16 + 1
    assert sum(chosen[116:]) >= 84 * 15 / 16 - 1


def test_numba_says_what_it_compiles(tmp_path):
    """One line before and one after, on the first process alone; the second has the same bits."""
    load("numba")
    code = """
import numpy as np, fastae
net = fastae.Network([fastae.Dense(9, "tanh")], [fastae.Dense(20, "sigmoid")], 20)
trainer = fastae.Trainer(net, batch_size=8, seed=0, backend="numba")
trainer.fit(np.random.default_rng(0).random((20, 20), "f4"), epochs=2)
print({name: value.tobytes() for name, value in trainer.weights.items()})
"""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        )
        for _ in range(2)
    )
    begun, done = first.stderr.splitlines()
    assert begun.startswith("fastae: numba compiles kernels for this machine")
    assert re.fullmatch(rf"fastae: compiled in \d+\.\d s; kept in {re.escape(str(tmp_path))}.*", done)
    assert second.stderr == ""
    assert second.stdout == first.stdout


def test_threads_are_chosen_by_the_work(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    net = Network([Dense(100)], [Dense(500)], 500)
    program = lower(net, batch_size=32, loss="mse", optimizer="sgd", dtype="float32", padded=False)
    routine = program.routine("train")
    grain = routine.work / 3.5
    monkeypatch.setenv("FASTAE_NUM_THREADS", "8")
    many = 32 * 1000
    assert team_size(routine, many, 32, grain) == 3
    assert team_size(routine, many, 32, routine.work / 100) == 8
    assert team_size(routine, many, 32, routine.work / 1.9) == 1
    assert team_size(routine, 8, 32, grain) == 1  # a quarter of a batch
    assert team_size(routine, 32, 32, grain) == 1  # a batch alone
    infers = program.routine("reconstruct")
    a_share = int(1e7 / infers.work * 32) + 1  # rows
    assert [team_of_rows(infers, n * a_share) for n in (1, 2, 3, 100)] == [1, 2, 3, 8]
    monkeypatch.setenv("FASTAE_NUM_THREADS", "1")
    assert team_size(routine, many, 32, grain) == 1
    monkeypatch.delenv("FASTAE_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
    assert team_size(routine, many, 32, grain) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "nonsense")
    assert processors() == processors_present() >= 1
    for wrong in ("0", "-1", "two", "1025"):
        monkeypatch.setenv("FASTAE_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match=f"FASTAE_NUM_THREADS: expected .* given '{wrong}'"):
            processors()


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("sizes", [(225, 75), (10, 3), (17, 5), (33, 16)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", COMPILED)
def test_what_lies_in_the_arena_does_not_matter(name, dtype, sizes, activation):
    image_dim, hidden = sizes
    branches = Parallel(
        [Dense(hidden, activation), Dense(hidden, "tanh")], [Subsample(3), Dense(hidden, use_bias=False)]
    )
    net = Network([branches, Activation("tanh")], [Dense(image_dim, activation)], image_dim)
    x = np.random.default_rng(1).normal(size=(53, image_dim)).astype(dtype)
    module = load(name)
    optimizer = fastae.SGD(0.1)
    clean = run(module, net, x, 1, batch_size=20, optimizer=optimizer)
    for n_threads in (1, 3):
        assert run(module, net, x, n_threads, batch_size=20, optimizer=optimizer, poison=True) == clean


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", COMPILED)
def test_what_lies_in_the_arena_does_not_matter_to_normalised_and_long_rows(name, dtype):
    """128, 192 and 253 columns: rows whose padding is a line, of which nothing may be seen."""
    net = Network(
        [Dense(192), BatchNorm(activation="relu"), Dense(5), BatchNorm()],
        [Dense(253, use_bias=False), BatchNorm(activation="elu"), Activation("tanh"), Dense(128, "sigmoid")],
        128,
    )
    x = np.random.default_rng(1).random((53, 128)).astype(dtype)
    module = load(name)
    optimizer = fastae.SGD(0.1)
    clean = run(module, net, x, 1, batch_size=20, optimizer=optimizer)
    for n_threads in (1, 3):
        assert run(module, net, x, n_threads, batch_size=20, optimizer=optimizer, poison=True) == clean


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("system", list(fastae.models.MODELS))
def test_threads_that_take_rows_of_their_own_change_no_bit(system, dtype):
    net = fastae.models.MODELS[system]()
    x = np.random.default_rng(3).random((5 * 16 + 3, *net.input_shape)).astype(dtype)
    one, *several = (
        fastae.Trainer(net, batch_size=16, backend="cython", dtype=dtype, n_threads=n, seed=1)
        for n in (1, 2, 3, 100)
    )
    other = net.initial_weights(2)
    for _ in range(2):  # the second time with other weights, which all threads must see
        codes, output = one.encode(x), one.reconstruct(x)
        for trainer in several:
            for call, given, expected in (
                (trainer.encode, x, codes),
                (trainer.decode, codes, output),
                (trainer.reconstruct, x, output),
            ):
                found = call(given, out=np.full_like(expected, np.nan))
                assert found.tobytes() == expected.tobytes()
        for trainer in (one, *several):
            trainer.set_weights(other)


NO_MORE_THREADS = """
import os
import resource
import time
import numpy as np
import fastae

net = fastae.Network([fastae.Dense(64)], [fastae.Dense(784)], 784)  # too large for shards, of two threads
trainer = fastae.Trainer(net, backend="cython", n_threads=64, seed=1)
x = np.random.default_rng(3).random((20000, 784), np.float32)
trainer.fit(x[:64], epochs=1)  # its own thread stays
before = len(os.listdir("/proc/self/task"))
expected = trainer.reconstruct(x)
while len(os.listdir("/proc/self/task")) > before:  # they give back their stacks
    time.sleep(0.001)
out = np.full_like(x, np.nan)
whole = resource.getrlimit(resource.RLIMIT_AS)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), whole[1]))
for call in (lambda: trainer.reconstruct(x, out=out), lambda: trainer.fit(x[:64], epochs=1)):
    try:
        call()
    except RuntimeError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, whole)
assert np.isnan(out).all()
assert trainer.reconstruct(x).tobytes() == expected.tobytes()
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="stacks of threads are too large for a limit there"
)
def test_a_run_that_gets_too_few_threads_does_not_take_place():
    done = subprocess.run([sys.executable, "-c", NO_MORE_THREADS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"cannot start 63 more threads: the system gave (\d+)\n", done.stdout)
    assert done.stdout.count("cannot start 63") == 2


ON_ONE_PROCESSOR = """
import os
import numpy as np
import fastae
from fastae import backend
from fastae.lowering import lower

os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.environ["FASTAE_NUM_THREADS"] = "3"
module = backend.load("cython").module
net = fastae.models.autoencnet()


def made(n_threads, batches, rate, stop):
    x = np.random.default_rng(2).random((20 * batches - 3, 225))
    kinds = {"padded": True, "fused_update": True, "loss": "sse", "optimizer": fastae.SGD(rate)}
    program = lower(net, batch_size=20, dtype="float64", **kinds)
    arena = program.new_arena()
    program.write_weights(arena, net.initial_weights(0))
    executor = module.Executor(program, arena, n_threads)
    losses, control = np.full(batches, np.nan), np.zeros(8, np.int64)
    control[0] = stop
    executor.run(program.routine("train"), x, None, None, losses=losses, control=control)
    out, order = np.full_like(x, np.nan), np.random.default_rng(3).permutation(len(x))
    executor.run(program.routine("reconstruct"), x, None, order, out=out)
    weights = b"".join(w.tobytes() for w in program.read_weights(arena).values())
    return losses.tobytes(), control[1:3].tolist(), out.tobytes(), weights


for batches in (1, 15, 16, 40, 400):
    for rate, stop, ends in ((1e-4, 0, [batches, -1]), (1e200, 0, None), (1e-4, 1, [1, -1])):
        first = made(1, batches, rate, stop)
        assert first[1] == ends or (ends is None and (batches < 3 or first[1][1] > 0)), first[1]
        for n_threads in (2, 3, None):
            for _ in range(3):
                assert made(n_threads, batches, rate, stop) == first, (batches, rate, stop, n_threads)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="nothing to say on how many processors")
def test_threads_that_come_late_or_too_late_change_no_bit():
    """On one processor the first thread is done with much, or all, before another begins."""
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_PROCESSOR], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cython_gives_a_row_the_same_bits_alone_and_in_any_batch(dtype):
    net = Network(
        [Dense(37, "sigmoid"), Dense(9), BatchNorm()],
        [Dense(70, "relu"), Dense(101), BatchNorm(activation="elu"), Dense(133, "tanh")],
        133,
    )
    x = np.random.default_rng(2).normal(size=(41, 133)).astype(dtype)
    module = load("cython")
    found = []
    for batch_size in (1, 7, 20, 41):
        program = lower(net, batch_size=batch_size, loss="mse", optimizer="sgd", dtype=dtype, padded=True)
        arena = program.new_arena()
        program.write_weights(arena, net.initial_weights(3))
        out = np.full(x.shape, np.nan, dtype)
        module.Executor(program, arena, 1).run(program.routine("reconstruct"), x, None, None, out=out)
        found.append(out.tobytes())
    assert set(found) == {found[0]}


def test_a_backend_trains_on_no_other_s_kernels(backend, monkeypatch):
    def borrowed(*arguments):
        raise AssertionError("a kernel of another backend was called")

    module = load(backend)
    for other in {"scalar", "numpy", "numba", "cython"} - {backend}:
        for name in KERNELS:
            monkeypatch.setattr(load(other), name, borrowed)
    net = Network(
        [Dense(5, "elu"), BatchNorm(), Dropout(0.3), Dense(2)], [Dense(5, "relu"), Dense(7, "sigmoid")], 7
    )
    x = np.random.default_rng(4).random((12, 7)).astype(np.float32)
    for optimizer in (fastae.Adam(), fastae.SGD(0.1, momentum=0.9, clip_norm=1.0), fastae.RMSprop()):
        run(module, net, x, 1, batch_size=6, optimizer=optimizer)


def test_an_executor_refuses_what_would_reach_out_of_bounds(backend):
    module = load(backend)
    net = Network([Dense(3)], [Dense(5)], 5)
    program = lower(net, batch_size=4, loss="mse", optimizer="sgd", **backends.layout(module))
    executor = module.Executor(program, program.new_arena(), 1)
    x = np.ones((6, 5), np.float32)
    own, autoencoding = program.routine("train", own_target=True), program.routine("train")
    for message, arguments in (
        ("data: expected shape", (autoencoding, np.ones((6, 9), np.float32), None, None)),
        ("target: expected an array", (own, x, None, None)),
        ("target: expected shape", (own, x, x[:3], None)),
        ("target: expected None", (autoencoding, x, x, None)),
        ("weights: expected an array", (program.routine("train", weighted=True), x, None, None)),
        ("order: expected rows from 0 to 5", (autoencoding, x, None, np.array([0, 6]))),
        ("order: expected rows from 0 to 5", (autoencoding, x, None, np.array([0, -1]))),
    ):
        with pytest.raises(ValueError, match=message):
            executor.run(*arguments)
    with pytest.raises(ValueError, match="out: expected shape"):
        executor.run(program.routine("encode"), x, None, None, out=np.ones((6, 5), np.float32))
    with pytest.raises(ValueError, match="n_threads: expected"):
        module.Executor(program, program.new_arena(), 0)


def test_cython_kernels_refuse_what_would_reach_out_of_bounds():
    module = load("cython")
    nothing, one = np.empty(0, np.float32), lambda *shape: np.ones(shape, np.float32)
    relu = ACTIVATIONS["relu"].code
    for message, name, arguments in (
        ("n: expected at least 1", "dense_forward", (one(0, 3), one(3, 2), nothing, 0, one(0, 2))),
        ("x: expected an array", "dense_input_grad", (one(2, 3), one(4, 3), nothing, relu, one(2, 4))),
        ("m: expected 1, got 1000", "subsample_forward", (one(2, 3), 3, one(2, 1000))),
        ("w: expected k = 3", "dense_forward", (one(2, 3), one(4, 2), nothing, 0, one(2, 2))),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(module, name)(*arguments)


def test_no_module_of_another_instruction_set_is_loaded():
    module = load("cython")
    least = list(module.VARIANTS)[-1]
    code = (
        "import sys, fastae; fastae.set_backend('cython'); from fastae.kernels import compiled; "
        "print(compiled.instruction_set, *(m.rpartition('.')[2] for m in sys.modules if 'compiled._' in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"FASTAE_ISA": least},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [least, "_baseline"]

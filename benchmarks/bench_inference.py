"""Inference of 1 row, of 1000 and of a stream: by a Trainer, as a plan in C and in Numba, by PyTorch."""

import ctypes

import numpy as np
import pytest

import fastae
from fastae import backend

from . import contenders
from .kernel_cases import assert_close
from .machine import instruction_set, unavailable
from .summary import TORCH

pytestmark = pytest.mark.benchmark(max_time=0.3)

#: Rows of a stream: arrays of 157 MB, which no cache holds.
MANY = 50_000


@pytest.mark.parametrize("rows", [1, 1000])
def test_reconstruct(rows, backend_name, module, dtype, measure):
    problem = contenders.problem("autoencnet")
    images = np.ascontiguousarray(problem.images[:rows], dtype)
    options = {"backend": backend_name, "dtype": dtype, "n_threads": 1, "seed": 0}
    trainer = fastae.Trainer.from_recipe(problem.net, **options)
    several = images[: 5 * problem.batch]
    expected = contenders.autoencnet_output(trainer.weights, several)
    assert_close(trainer.reconstruct(several), expected, dtype, backend_name)
    measure(
        trainer.reconstruct,
        (images,),
        group=f"inference of {rows} row{'s' * (rows > 1)}",
        backend=backend_name,
        dtype=dtype,
        **problem.cost(dtype, rows=rows),
        instruction_set=instruction_set(module),
        rounds=(1 if rows > 1 else 5) if backend_name == "scalar" else None,
        warm_up=backend_name != "scalar",
    )


@pytest.mark.parametrize("system", contenders.IMAGE_SYSTEMS)
def test_one_image(system, backend_name, module, measure):
    """Of an image alone a backend that fills its vectors with several has little to fill them with."""
    problem = contenders.problem(system)
    trainer = fastae.Trainer.from_recipe(problem.net, backend=backend_name, dtype="float32", n_threads=1)
    trainer.set_weights(problem.weights)
    images = problem.images[:32].astype("float32")
    reference = fastae.Trainer.from_recipe(problem.net, backend="numpy", dtype="float32", n_threads=1)
    reference.set_weights(problem.weights)
    expected = reference.reconstruct(images)[:1]
    assert_close(trainer.reconstruct(images[:1]), expected, "float32", backend_name)
    measure(
        trainer.reconstruct,
        (images[:1],),
        group=f"reconstruct 1 image, {system}",
        backend=backend_name,
        dtype="float32",
        **problem.cost("float32", rows=1),
        instruction_set=instruction_set(module),
        rounds=1 if backend_name == "scalar" else None,
        warm_up=backend_name != "scalar",
    )


def quark(backend, n_threads=1):
    """The problem of the small network with its trainer."""
    problem = contenders.problem("quark_mlp")
    options = {"backend": backend, "dtype": "float32", "n_threads": n_threads}
    trainer = fastae.Trainer.from_recipe(problem.net, **options)
    trainer.set_weights(problem.weights)
    return problem, trainer


@pytest.mark.parametrize("part", ["encode", "decode", "reconstruct"])
def test_one_row_of_quark_mlp(part, backend_name, module, measure):
    """What a service pays that answers a row at a time: mostly the call itself."""
    problem, trainer = quark(backend_name)
    row = problem.images[:1].astype("float32")
    expected = trainer.reconstruct(np.repeat(row, 5, axis=0))[:1]
    given = trainer.encode(row) if part == "decode" else row
    assert_close(trainer.decode(trainer.encode(row)), expected, "float32", backend_name)
    measure(
        getattr(trainer, part),
        (given,),
        group=f"{part} 1 row, quark_mlp",
        backend=backend_name,
        dtype="float32",
        instruction_set=instruction_set(module),
        rounds=5 if backend_name == "scalar" else None,
    )


def test_one_row_of_quark_mlp_by_torch(measure):
    """A call of the module on a tensor that is there already, which is the least its user pays."""
    if TORCH in unavailable():
        pytest.skip(unavailable()[TORCH])
    import torch

    problem, trainer = quark("numpy")
    row = problem.images[:1].astype("float32")
    contender = contenders.TorchEager(problem, "float32")
    assert_close(contender.infer(row), trainer.reconstruct(row), "float32", TORCH)
    net, tensor = contender.forward.eval(), torch.from_numpy(row)

    def call():
        with torch.inference_mode():
            return net(tensor)

    measure(call, group="reconstruct 1 row, quark_mlp", backend=TORCH, dtype="float32")


@pytest.mark.parametrize("source", ["memory", "mapped file"])
@pytest.mark.parametrize("n_threads", [1, None])
def test_stream(n_threads, source, backend_name, module, tmp_path, measure):
    """Rows that come from memory and go there; one copy of them takes 0.2 us a row."""
    if backend_name == "scalar":
        pytest.skip("50,000 rows take it minutes")
    problem, trainer = quark(backend_name, n_threads)
    images = problem.images.astype("float32")
    rows = np.tile(images, (-(-MANY // len(images)), 1))[:MANY]
    if source != "memory":
        rows.tofile(tmp_path / "rows")
        rows = np.memmap(tmp_path / "rows", "float32", "r", shape=rows.shape)
    out = np.full(rows.shape, np.nan, "float32")
    trainer.reconstruct(rows, out)
    assert_close(out[-5:], trainer.reconstruct(np.array(rows[-5:])), "float32", backend_name)
    measure(
        trainer.reconstruct,
        (rows, out),
        group=f"stream of {MANY} rows, quark_mlp, {source}",
        backend=f"{backend_name}, {'1 thread' if n_threads else 'threads as chosen'}",
        dtype="float32",
        **problem.cost("float32", rows=MANY),
        instruction_set=instruction_set(module),
        rounds=5,
    )


@pytest.mark.parametrize("rows", [1, 1000])
def test_plan(rows, dtype, measure):
    """What C pays, and ctypes on top of it: ``fastae_run`` of fastae.h."""
    from fastae import ctypes_kernels as ck
    from fastae import plans

    problem = contenders.problem("autoencnet")
    images = np.ascontiguousarray(problem.images[:rows], dtype)
    trainer = fastae.Trainer.from_recipe(problem.net, dtype=dtype, n_threads=1, seed=0)
    block, opened = fastae.plan(trainer, routines="reconstruct"), ck.Plan()
    ck.plan_open(block, len(block), opened)
    room = np.full(opened.arena_size + 64, 0xFF, np.uint8)
    arena = room[-room.ctypes.data % 64 :]
    ck.plan_load(opened, arena)
    out = np.full_like(images, np.nan)
    run = ck.function("run")
    kind = plans.ROUTINES.index("reconstruct")
    arguments = (
        ctypes.byref(opened),
        arena.ctypes.data,
        kind,
        rows,
        images.ctypes.data,
        None,
        out.ctypes.data,
        None,
    )
    run(*arguments)
    several = slice(5 * problem.batch)
    assert_close(out[several], contenders.autoencnet_output(trainer.weights, images[several]), dtype, "plan")
    measure(
        run,
        arguments,
        group=f"inference of {rows} row{'s' * (rows > 1)}",
        backend="cython, plan",
        dtype=dtype,
        **problem.cost(dtype, rows=rows),
        instruction_set=instruction_set(backend.load("cython").module),
    )


@pytest.mark.parametrize("rows", [1, 1000])
def test_plan_from_numba(rows, dtype, measure):
    """What a loop of Numba's pays that runs a plan, one row at a time."""
    from numba import njit

    from fastae.numba_kernels import cython

    @njit(nogil=True)
    def stream(plan, arena, images, out):
        for i in range(len(images)):
            cython.run(plan, arena, cython.RECONSTRUCT, 1, images[i], None, out[i], None)

    problem = contenders.problem("autoencnet")
    images = np.ascontiguousarray(problem.images[:rows], dtype)
    trainer = fastae.Trainer.from_recipe(problem.net, dtype=dtype, n_threads=1, seed=0)
    opened = cython.open_plan(fastae.plan(trainer, batch_size=1, routines="reconstruct"))
    out = np.full_like(images, np.nan)
    arguments = (opened.plan, opened.arena, images, out)
    stream(*arguments)
    several = slice(5 * problem.batch)
    assert_close(out[several], contenders.autoencnet_output(trainer.weights, images[several]), dtype, "numba")
    measure(
        stream,
        arguments,
        group=f"inference of {rows} row{'s' * (rows > 1)}",
        backend="cython, plan in njit, row by row",
        dtype=dtype,
        **problem.cost(dtype, rows=rows),
        instruction_set=instruction_set(backend.load("cython").module),
    )

"""AutoEncNet reconstructs 1 and 1000 rows: by ``Trainer.reconstruct``, and as a plan in C and in Numba."""

import ctypes

import numpy as np
import pytest

import fastae
from fastae import backend

from . import contenders
from .kernel_cases import assert_close
from .machine import instruction_set

pytestmark = pytest.mark.benchmark(max_time=0.3)


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


@pytest.mark.parametrize("rows", [1, 1000])
def test_plan(rows, dtype, measure):
    """What C pays, and ctypes on top of it: ``fastae_run`` of fastae.h."""
    from fastae import ctypes_kernels as ck
    from fastae import plans

    problem = contenders.problem("autoencnet")
    images = np.ascontiguousarray(problem.images[:rows], dtype)
    trainer = fastae.Trainer.from_recipe(problem.net, dtype=dtype, seed=0)
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
    trainer = fastae.Trainer.from_recipe(problem.net, dtype=dtype, seed=0)
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

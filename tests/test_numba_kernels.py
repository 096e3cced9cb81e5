"""The kernels inside other people's njit functions: the backend's bits, kept for the next process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastae
from fastae import backend as backends
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Kernel

if os.environ.get("CI"):  # where numba has to be there
    import numba
else:
    numba = pytest.importorskip("numba")

from fastae import numba_kernels

ROWS = list(KERNELS.values())
DIMS = {"n": 4, "k": 7, "m": 3, "p": 6, "r": 5}
DIMS |= {"c": 6, "cg": 3, "o": 8, "og": 5, "ih": 9, "iw": 11, "kh": 2, "kw": 3, "vh": 4, "vw": 5}


def by_name(row: Kernel) -> str:
    return row.name


def calling(row: Kernel, **options):
    """An njit function that does nothing but call the kernel."""
    names = {"kernels": numba_kernels}
    arguments = ", ".join(a.name for a in row.arguments)
    exec(f"def user({arguments}):\n    kernels.{row.name}({arguments})", names)
    return numba.njit(**options)(names["user"])


def run(call, case) -> dict[str, np.ndarray]:
    """Call with guarded arrays, outputs full of NaN and inputs read-only; return states and outputs."""
    arrays = case.allocate()
    arguments = []
    for a in case.row.arguments:
        if isinstance(a, Array):
            arguments.append(arrays[a.name].array if a.name in arrays else None)
        else:
            value = case.constants[a.name]
            arguments.append(ACTIVATIONS[value].code if a.kind == "activation" else value)
    with numba_kernels.one_thread():
        assert call(*arguments) is None
    for name, guarded in arrays.items():
        guarded.check(f"{case}: {name}")
    return {a.name: arrays[a.name].array for a in case.results}


def compare(row, make_case, same_bits, dtype, absent=()):
    dims = {d: DIMS.get(d, 8) for d in row.dims if d not in row.derived}
    case = make_case(row, dims, dtype, absent=absent)
    expected = case.run(backends.load("numba"))
    for call in (calling(row), getattr(numba_kernels, row.name)):  # compiled, and from Python
        found = run(call, case)
        for name, value in expected.items():
            same_bits(found[name], value, f"{case}: {name}")


# What is exported is tested: these are all of it ----------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_gives_what_the_backend_gives(make_case, same_bits, row, dtype):
    compare(row, make_case, same_bits, dtype)


@pytest.mark.parametrize("row", [r for r in ROWS if any(a.optional for a in r.arrays)], ids=by_name)
def test_what_is_optional_may_be_none(make_case, same_bits, row):
    compare(row, make_case, same_bits, "float32", [a.name for a in row.arrays if a.optional])


def test_everything_exported_is_a_kernel_of_the_table():
    assert set(numba_kernels.__all__) == {"one_thread", *KERNELS}


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_docstring(row):
    text = getattr(numba_kernels, row.name).__doc__
    for part in (
        row.summary,
        row.source,
        *row.formula.split("; "),
        *(f"\n{a.name} : " for a in row.arguments),
    ):
        assert part in text


# Words and refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_by_name(same_bits, activation):
    @numba.njit
    def user(x, y):
        numba_kernels.activation_forward(x, activation, y)

    x, y = np.linspace(-2, 2, 12).reshape(3, 4), np.full((3, 4), np.nan)
    user(x, y)
    expected = fastae.ops.activation_forward(x, activation=activation, backend="numba")
    same_bits(y, expected, activation)
    y[...] = np.nan
    numba_kernels.activation_forward(x, activation, y)
    same_bits(y, expected, activation)


X, W, B, Y = np.ones((4, 6)), np.ones((6, 4)), np.ones(4), np.ones((4, 4))
READ_ONLY = np.ones((4, 4))
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X.T.copy().T, W, B, 1, Y), "x: expected a C-contiguous, aligned array, given array(float"),
        ((X, W[:, ::2], B, 1, Y), "w: expected a C-contiguous"),
        ((X, W.astype("f4"), B, 1, Y), "w: expected a 2-D array (k, m) of float64, given array(float32"),
        ((X, W, W, 1, Y), "b: expected a 1-D array (m) of float64"),
        ((X, None, B, 1, Y), "w: expected a 2-D array (k, m) of float64, given none"),
        ((X, W, B, 1, READ_ONLY), "y: expected a writable array"),
        ((X.astype("i8"), W, B, 1, Y), "x: expected an array of float32 or float64, given array(int64"),
        ((3.0, W, B, 1, Y), "x: expected an array of float32 or float64, given float64"),
        ((X, W, B, 1.0, Y), "activation: expected a name in quotes or its code, given float64"),
        ((X, W, B, True, Y), "activation: expected a name in quotes or its code, given bool"),
    ],
)
def test_refuses_when_it_is_compiled(arguments, message):
    call = calling(KERNELS["dense_forward"])
    with pytest.raises(numba.core.errors.TypingError) as raised:
        call(*arguments)
    assert f"dense_forward: {message}" in str(raised.value)
    assert (Y == 1).all()


def test_refuses_unknown_activation():
    @numba.njit
    def user(x, y):
        numba_kernels.activation_forward(x, "gelu", y)

    message = "activation_forward: activation: expected one of linear, relu"
    with pytest.raises(numba.core.errors.TypingError, match=f"{message}.*given 'gelu'"):
        user(X, X.copy())
    with pytest.raises(ValueError, match=f"^{message}.*given 'gelu'"):
        numba_kernels.activation_forward(X, "gelu", X.copy())


def test_without_numba():
    code = "import sys; sys.modules['numba'] = None; import fastae.numba_kernels"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'ImportError: the numba backend needs numba: pip install "fastae[numba]"' in done.stderr


# Threads and processes ------------------------------------------------------------------------------------


def test_threads_on_separate_arrays(same_bits):
    """Eight at once, without the GIL: each has the bits of one alone."""
    call = calling(KERNELS["dense_forward"], nogil=True)
    rng = np.random.default_rng(0)
    given = [tuple(rng.normal(size=s) for s in ((32, 64), (64, 48), (48,))) for _ in range(8)]
    expected = [fastae.ops.dense_forward(*g, activation="tanh", backend="numba") for g in given]
    found = [np.full((32, 48), np.nan) for _ in given]
    start = threading.Barrier(8)

    def work(i: int) -> None:
        start.wait()
        for _ in range(200):
            call(*given[i], ACTIVATIONS["tanh"].code, found[i])

    call(*given[0], 0, found[0])
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    with numba_kernels.one_thread():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, other in zip(found, expected, strict=True):
        same_bits(one, other, "of a thread")


USER = """
import json, sys, time
from numba import njit
from fastae import numba_kernels
import numpy as np

@njit(cache=True, nogil=True)
def error(x, w, b, v, code, y, per_row):
    numba_kernels.dense_forward(x, w, b, "relu", code)
    numba_kernels.dense_forward(code, v, None, "sigmoid", y)
    numba_kernels.row_mse(y, x, per_row)
    return per_row.sum()

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, w, b, v = (rng.normal(size=s).astype("f4") for s in ((8, 20), (20, 5), (5,), (5, 20)))
    code, y, per_row = np.empty((8, 5), "f4"), np.empty((8, 20), "f4"), np.empty(8, "f4")
    start = time.perf_counter()
    value = error(x, w, b, v, code, y, per_row)
    seconds = time.perf_counter() - start
    hits, misses = error.stats.cache_hits, error.stats.cache_misses
    print(json.dumps([float(value), seconds, sum(hits.values()), sum(misses.values())]))
"""


@pytest.mark.timed
def test_a_second_process_compiles_nothing(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(USER)

    def run() -> list[float]:
        done = subprocess.run([sys.executable, script], capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    value, compiling, hits, misses = run()
    assert (hits, misses) == (0, 1)
    again, loading, hits, misses = run()
    assert (hits, misses) == (1, 0)
    assert again == value
    assert loading < compiling / 2
    assert loading < 1.0

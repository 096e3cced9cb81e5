"""The kernels inside other people's njit functions: the backend's bits, kept for the next process."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastae
from fastae import backend as backends
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Kernel

if os.environ.get("CI"):  # where numba has to be there
    import llvmlite.binding
    import numba
else:
    numba = pytest.importorskip("numba")
    import llvmlite.binding

from fastae import ctypes_kernels, numba_kernels
from fastae.kernels import c_interface, table
from fastae.numba_kernels import cython

ROWS = list(KERNELS.values())
DIMS = {"n": 4, "k": 7, "m": 3, "p": 6, "r": 5}
DIMS |= {"c": 6, "cg": 3, "o": 8, "og": 5, "ih": 9, "iw": 11, "kh": 2, "kw": 3, "vh": 4, "vw": 5}


def by_name(row: Kernel) -> str:
    return row.name


def calling(row: Kernel, kernels=numba_kernels, **options):
    """An njit function that does nothing but call the kernel."""
    names = {"kernels": kernels}
    arguments = ", ".join(a.name for a in row.arguments)
    exec(f"def user({arguments}):\n    kernels.{row.name}({arguments})", names)
    return numba.njit(**options)(names["user"])


def calling_c(function: str, dims: dict[str, int]):
    """An njit function that calls a function of fastae.h with these sizes, and returns what it returns."""
    names = {"kernels": cython}
    listed = [name for _, name in C_FUNCTIONS[function.removeprefix("checked_")].parameters]
    passed = ", ".join(str(dims.get(name, name)) for name in listed)
    arguments = ", ".join(name for name in listed if name not in dims)
    exec(f"def user({arguments}):\n    return kernels.{function}({passed})", names)
    return numba.njit(names["user"])


C_FUNCTIONS = {f.name: f for f in c_interface.functions(table)}


def run(call, case, returned=None) -> dict[str, np.ndarray]:
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
        assert call(*arguments) == returned
    for name, guarded in arrays.items():
        guarded.check(f"{case}: {name}")
    return {a.name: arrays[a.name].array for a in case.results}


def case_of(row, make_case, dtype, absent=()):
    dims = {d: DIMS.get(d, 8) for d in row.dims if d not in row.derived}
    return make_case(row, dims, dtype, absent=absent)


def compare(case, backend, same_bits, *calls, returned=None):
    expected = case.run(backends.load(backend))
    for call in calls:
        found = run(call, case, returned)
        for name, value in expected.items():
            same_bits(found[name], value, f"{case}: {name}")


# What is exported is tested: these are all of it ----------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_gives_what_the_backend_gives(make_case, same_bits, row, dtype):
    """Compiled, and called from Python."""
    case = case_of(row, make_case, dtype)
    compare(case, "numba", same_bits, calling(row), getattr(numba_kernels, row.name))
    compare(case, "cython", same_bits, calling(row, cython), getattr(cython, row.name))


# Those without checks in float64 are under the names of the kernels, above.
@pytest.mark.parametrize(("prefix", "suffix"), [("", "f32"), ("checked_", "f64")])
@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_functions_of_the_header(make_case, same_bits, row, prefix, suffix):
    case = case_of(row, make_case, {"f32": "float32", "f64": "float64"}[suffix])
    call = calling_c(f"{prefix}{row.name}_{suffix}", {d: case.dims[d] for d in row.dims})
    compare(case, "cython", same_bits, call, returned=0)


@pytest.mark.parametrize("checked", [False, True])
def test_symbols_stand_for_the_functions_of_the_header(checked):
    prefix = f"fastae_{c_interface.ABI_VERSION}_{'checked_' * checked}"
    for name in (*C_FUNCTIONS, "plan_open", "plan_load", "plan_store", "run"):
        found = llvmlite.binding.address_of_symbol(prefix + name)
        assert found == ctypes_kernels.address(name, checked=checked), name


@pytest.mark.parametrize("name", [name for name, f in C_FUNCTIONS.items() if f.kind == "workspace_size"])
def test_sizes_of_workspaces(make_case, name):
    f = C_FUNCTIONS[name]
    case = case_of(f.kernel, make_case, "float32")
    given = case.dims | case.constants
    sizes = {p: given[p] for ctype, p in f.parameters if ctype == "int64_t"}
    works = [np.full(1, -1) for ctype, _ in f.parameters if ctype != "int64_t"]
    expected = [np.full(1, -1) for _ in works]
    getattr(ctypes_kernels, name)(*sizes.values(), *expected)
    assert calling_c(name, sizes)(*works) == 0
    assert works == expected
    assert min(works) > 0


def test_trained_model(same_bits):
    """A plan run from compiled code encodes with the library's bits, and trains as it does."""
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(40, 12)).astype("f4")
    net = fastae.Network(encoder=[fastae.Dense(5, "tanh")], decoder=[fastae.Dense(12)], input_shape=12)
    trainer = fastae.Trainer(net, batch_size=8, seed=0, backend="cython")
    opened = cython.open_plan(fastae.plan(trainer))

    @numba.njit(nogil=True)
    def user(plan, arena, x, codes, losses, block):
        words = np.empty(cython.PLAN_WORDS, np.int64)
        if cython.plan_open(block, block.size, words) or (words[1:6] != plan[1:6]).any():
            return -100
        wrong = cython.run(plan, arena, cython.ENCODE, len(x), x, None, codes, None)
        if wrong:
            return wrong
        for i in range(3):
            wrong = cython.run(plan, arena, cython.TRAIN, len(x), x, None, None, losses[i])
        if wrong:
            return wrong
        return cython.plan_store(plan, arena, block)

    codes, losses = np.full((40, 5), np.nan, "f4"), np.full((3, 5), np.nan)
    expected = trainer.encode(X)
    assert user(opened.plan, opened.arena, X, codes, losses, opened.block) == 0
    same_bits(codes, expected, "codes")
    history = trainer.fit(X, epochs=3, sampling="sequential")
    np.testing.assert_allclose(losses.mean(axis=1), history.loss, rtol=1e-6)
    found = fastae.plans.weights(opened.block.tobytes())
    for name, value in trainer.weights.items():
        same_bits(found[name], value, name)
    with pytest.raises(ValueError, match="plan"):
        cython.open_plan(b"no plan" * 100)


@pytest.mark.parametrize("row", [r for r in ROWS if any(a.optional for a in r.arrays)], ids=by_name)
def test_what_is_optional_may_be_none(make_case, same_bits, row):
    absent = [a.name for a in row.arrays if a.optional]
    case = case_of(row, make_case, "float32", absent)
    compare(case, "numba", same_bits, calling(row), getattr(numba_kernels, row.name))
    if any(a.role == "work" for a in row.arrays):  # which the functions of C cannot go without
        if any(a.role == "work" and a.optional for a in row.arrays):
            with pytest.raises(
                numba.core.errors.TypingError, match="expected an array to work in, given None"
            ):
                run(calling(row, cython), case)
        case = case_of(
            row, make_case, "float32", [a.name for a in row.arrays if a.optional and a.role != "work"]
        )
    compare(case, "cython", same_bits, calling(row, cython))


def test_everything_exported_is_tested_above():
    assert set(numba_kernels.__all__) == {"one_thread", *KERNELS}
    of_plans = {"open_plan", "OpenPlan", "PLAN_WORDS", "plan_open", "plan_load", "plan_store", "run"}
    routines = {"ENCODE", "DECODE", "RECONSTRUCT", "TRAIN", "EVALUATE"}
    assert set(cython.__all__) == {*KERNELS, *of_plans, *routines}
    functions = {
        name for name in vars(cython) if callable(getattr(cython, name)) and name in dir(ctypes_kernels)
    }
    assert functions >= set(C_FUNCTIONS)


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


def test_no_rows_write_nothing():
    """As a filter may leave them; one row is computed in a way of its own."""

    @numba.njit
    def user(x, w, b, y):
        numba_kernels.dense_forward(x, w, b, "relu", y)

    block = np.full(64, 7.0)
    user(block[:0].reshape(0, 6), np.ones((6, 4)), np.ones(4), block[32:32].reshape(0, 4))
    assert (block == 7).all()


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, W, B, 1, READ_ONLY), "y: expected a writable array"),
        ((X.astype("f4"), W, B, 1, Y), "x: expected an array of float64 or None, given array(float32"),
        ((X, W[:, ::2], B, 1, Y), "w: expected a C-contiguous"),
        ((X, 1, B, 1, Y), "w: expected an array of float64 or None, given int64"),
        ((X, W, B, 0.5, Y), "activation: expected int64, given float64"),
    ],
)
def test_function_of_the_header_refuses_when_it_is_compiled(arguments, message):
    with pytest.raises(numba.core.errors.TypingError) as raised:
        calling_c("dense_forward_f64", {"n": 4, "k": 6, "m": 4})(*arguments)
    assert f"dense_forward_f64: {message}" in str(raised.value)


@pytest.mark.parametrize("kernels", [numba_kernels, cython])
def test_refuses_from_python(kernels):
    for bad, given in ((None, "NoneType"), ([[1.0]], "list"), (W.astype("i8"), "one of int64")):
        message = f"^dense_forward: w: expected an ndarray of float32 or float64, given {given}"
        with pytest.raises(TypeError, match=message):
            kernels.dense_forward(X, bad, None, "relu", Y)
    assert (Y == 1).all()


def test_checked_function_returns_the_error_of_the_header():
    call = calling_c("checked_dense_forward_f64", {"n": 0, "k": 6, "m": 4})
    y = np.full((4, 4), np.nan)
    assert call(X, W, B, 1, y) == -3
    assert call(X, None, B, 1, y) == -1
    assert np.isnan(y).all()


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


def test_threads_run_one_plan_on_separate_arenas(same_bits):
    rng = np.random.default_rng(0)
    net = fastae.Network(encoder=[fastae.Dense(9, "tanh")], decoder=[fastae.Dense(30)], input_shape=30)
    trainer = fastae.Trainer(net, batch_size=4, seed=0, backend="cython")
    block = fastae.plan(trainer, routines="reconstruct")
    X = [rng.uniform(size=(50, 30)).astype("f4") for _ in range(8)]
    arenas = [cython.open_plan(block) for _ in X]
    found = [np.full_like(x, np.nan) for x in X]
    plan, start = arenas[0].plan, threading.Barrier(8)

    @numba.njit(nogil=True)
    def user(plan, arena, x, y):
        code = 0
        for _ in range(200):
            code |= cython.run(plan, arena, cython.RECONSTRUCT, len(x), x, None, y, None)
        return code

    codes = [user(plan, arenas[0].arena, X[0], found[0])] + [1] * 8

    def work(i: int) -> None:
        start.wait()
        codes[i + 1] = user(plan, arenas[i].arena, X[i], found[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 9
    for x, y in zip(X, found, strict=True):
        same_bits(y, trainer.reconstruct(x), "of a thread")


USER = """
import json, sys, time
from numba import njit
from fastae import numba_kernels
from fastae.numba_kernels import cython
import numpy as np

@njit(cache=True, nogil=True)
def error(x, w, b, v, code, y, per_row):
    numba_kernels.dense_forward(x, w, b, "relu", code)
    cython.dense_forward(code, v, None, "sigmoid", y)
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


# The example, layer by layer; with a plan it is tested beside its sisters in test_embedding.py ------------


@pytest.fixture(scope="module")
def layers_of_the_example(tmp_path_factory):
    """The class `TwoLayers`; a trainer on the Numba backend for the same rows, one at a time; the rows."""
    source = Path(__file__).resolve().parents[1] / "examples" / "embedding" / "numba" / "streaming_numba.py"
    if not source.is_file():
        pytest.skip("examples/ is not beside the tests")
    folder = tmp_path_factory.mktemp("numba_example")
    shutil.copy(source, folder)
    net = fastae.Network(encoder=[fastae.Dense(75, "tanh")], decoder=[fastae.Dense(225)], input_shape=225)
    trainer = fastae.Trainer(net, batch_size=1, seed=0, backend="numba")
    rows = np.random.default_rng(0).random((500, 225), dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield importlib.import_module("streaming_numba").TwoLayers, trainer, rows
    del sys.modules["streaming_numba"]


def test_layers_of_the_example(layers_of_the_example, same_bits):
    TwoLayers, trainer, rows = layers_of_the_example
    scores = np.full(len(rows), np.nan, np.float32)
    TwoLayers(trainer.weights, "tanh").score(rows, scores)
    expected = fastae.ops.row_mse(trainer.reconstruct(rows), rows, backend="numba")
    same_bits(scores, expected, "scores")
    with pytest.raises(ValueError, match="two dense layers, float32"):
        TwoLayers({n: w.astype("f8") for n, w in trainer.weights.items()}, "tanh")
    scorer = TwoLayers(trainer.weights, "tanh")
    for bad in (rows[:, :-1], rows.astype("f8"), rows[:-1], np.asfortranarray(rows), rows.tolist()):
        with pytest.raises(ValueError, match="expected"):
            scorer.score(bad, scores)


@pytest.mark.timed
@pytest.mark.parametrize(("columns", "hidden", "most"), [(784, 400, 1.05), (225, 75, 1.2)])
def test_layers_of_the_example_are_as_fast_as_the_library(
    layers_of_the_example, slowdown, columns, hidden, most
):
    """One row at a time in both. A call costs some 0.1 us: of a small layer a tenth, where a core is fast."""
    TwoLayers, *_ = layers_of_the_example
    net = fastae.Network([fastae.Dense(hidden, "tanh")], [fastae.Dense(columns)], columns)
    trainer = fastae.Trainer(net, batch_size=1, seed=0, backend="numba")
    rows = np.random.default_rng(0).random((112_500 // columns, columns), dtype=np.float32)
    scorer, scores, again = TwoLayers(trainer.weights, "tanh"), np.empty(len(rows), "f4"), np.empty_like(rows)

    def library():
        trainer.reconstruct(rows, out=again)
        fastae.ops.row_mse(again, rows, out=scores, backend="numba")

    with numba_kernels.one_thread():
        assert slowdown(lambda: scorer.score(rows, scores), than=library) <= most

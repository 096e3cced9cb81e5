"""Choosing, loading and checking a backend."""

from __future__ import annotations

import asyncio
import importlib
import io
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

import fastae
from fastae import backend as backends
from fastae.kernels.table import KERNELS


@pytest.fixture(autouse=True)
def as_found(monkeypatch):
    """No choice is in effect when a test begins, and none is left when it ends."""
    monkeypatch.delenv("FASTAE_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_of_process", None)


# Choosing -------------------------------------------------------------------------------------------------


def test_precedence(monkeypatch):
    assert fastae.get_backend() == backends._best_available().name
    monkeypatch.setenv("FASTAE_BACKEND", "scalar")
    assert fastae.get_backend() == "scalar"
    fastae.set_backend("numpy")
    assert fastae.get_backend() == "numpy"
    with fastae.use_backend("scalar"):
        assert fastae.get_backend() == "scalar"
        assert backends.resolve("numpy").name == "numpy"
    assert fastae.get_backend() == "numpy"
    fastae.set_backend(None)
    assert fastae.get_backend() == "scalar"


@pytest.mark.parametrize(
    ("missing", "best"),
    [
        ((), "cython"),
        (("cython",), "numba"),
        (("cython", "numba"), "numpy"),
        (("cython", "numba", "numpy"), "scalar"),
    ],
)
def test_best_available(monkeypatch, missing, best):
    def load(name):
        if name in missing:
            raise ImportError(name)
        return name

    monkeypatch.setattr(backends, "load", load)
    assert backends._best_available.__wrapped__() == best


def test_best_available_does_not_pass_over_a_wrong_backend(monkeypatch):
    def load(name):
        raise RuntimeError("borrows kernels")

    monkeypatch.setattr(backends, "load", load)
    with pytest.raises(RuntimeError, match="borrows"):
        backends._best_available.__wrapped__()


def test_each_backend(backend):
    fastae.set_backend(backend)
    assert fastae.get_backend() == backend
    assert backends.resolve() is backends.load(backend) is backends.resolve(backend)
    np.testing.assert_array_equal(fastae.ops.branch_sum(np.ones((2, 3)), np.ones((2, 3))), 2)


def test_use_backend_nests_and_is_undone_by_an_error():
    fastae.set_backend("numpy")
    with fastae.use_backend("scalar"):
        with pytest.raises(KeyError), fastae.use_backend("numpy") as inner:
            raise KeyError(inner.name, fastae.get_backend())
        assert fastae.get_backend() == "scalar"
    assert fastae.get_backend() == "numpy"


def test_use_backend_decorates():
    @fastae.use_backend("scalar")
    def name():
        return fastae.get_backend()

    fastae.set_backend("numpy")
    assert name() == name() == "scalar"
    assert fastae.get_backend() == "numpy"


def test_use_backend_holds_for_its_context_alone():
    fastae.set_backend("numpy")
    seen = []
    with fastae.use_backend("scalar"):
        thread = threading.Thread(target=lambda: seen.append(fastae.get_backend()))
        thread.start()
        thread.join()
    assert seen == ["numpy"]

    async def task(name, ready, others):
        with fastae.use_backend(name):
            ready.set()
            await others.wait()
            return fastae.get_backend()

    async def both():
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("scalar", a, b), task("numpy", b, a))

    assert asyncio.run(both()) == ["scalar", "numpy"]


def test_set_backend_holds_in_every_thread():
    seen = []
    fastae.set_backend("scalar")
    thread = threading.Thread(target=lambda: seen.append(fastae.get_backend()))
    thread.start()
    thread.join()
    assert seen == ["scalar"]


KNOWN = "expected one of scalar, numpy, numba, cython, given 'fortran'"


def test_unknown_name(monkeypatch):
    fastae.set_backend("numpy")
    with pytest.raises(ValueError, match=KNOWN):
        fastae.set_backend("fortran")
    with pytest.raises(ValueError, match=KNOWN), fastae.use_backend("fortran"):
        pass
    with pytest.raises(ValueError, match=KNOWN):
        backends.load("fortran")
    assert fastae.get_backend() == "numpy"
    fastae.set_backend(None)
    monkeypatch.setenv("FASTAE_BACKEND", "fortran")
    with pytest.raises(ValueError, match=f"environment variable FASTAE_BACKEND=fortran: .*{KNOWN}"):
        fastae.get_backend()


@pytest.mark.parametrize("wrong", [3, True, b"numpy", ["numpy"], np])
def test_wrong_type(wrong):
    for choose in (fastae.set_backend, backends.resolve):
        with pytest.raises(TypeError, match="backend: expected one of"):
            choose(wrong)


def test_empty_environment_variable_says_nothing(monkeypatch):
    monkeypatch.setenv("FASTAE_BACKEND", "")
    assert fastae.get_backend() == backends._best_available().name


# Loading --------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_loaded(monkeypatch):
    """Backends are loaded again, and modules that are hidden from then on stay hidden."""
    monkeypatch.setattr(backends, "_loaded", {})


def test_missing_library(monkeypatch, nothing_loaded):
    monkeypatch.setitem(sys.modules, "numba", None)
    remedy = r'pip install "fastae\[numba\]"'
    with pytest.raises(ImportError, match=f"backend 'numba' needs numba.*{remedy}"):
        backends.load("numba")
    monkeypatch.setenv("FASTAE_BACKEND", "numba")
    with pytest.raises(ImportError, match=f"FASTAE_BACKEND=numba: .*{remedy}"):
        fastae.get_backend()
    assert "numba" in backends.available_backends()["numba"]
    fastae.set_backend("scalar")
    with pytest.raises(ImportError, match=remedy):
        fastae.set_backend("numba")
    assert fastae.get_backend() == "scalar"


def test_extensions_not_built(monkeypatch, nothing_loaded):
    package = "fastae.kernels.compiled"
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)

    class NotBuilt:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.startswith(f"{package}."):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [NotBuilt, *sys.meta_path])
    with pytest.raises(ImportError, match=r"backend 'cython' cannot be imported.*build it from source"):
        backends.load("cython")
    assert "build it from source" in backends.available_backends()["cython"]


def test_available_backends(monkeypatch):
    available = fastae.available_backends()
    assert list(available) == list(backends.NAMES)
    assert available["scalar"] is available["numpy"] is None
    assert all(reason is None or reason for reason in available.values())


def test_threads_load_one_backend(nothing_loaded):
    start = threading.Barrier(8)
    seen = []

    def load():
        start.wait()
        seen.append(backends.load("numpy"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(map(id, seen))) == 1


def test_environment_variable_of_a_new_process():
    code = "import fastae; print(fastae.get_backend())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTAE_BACKEND": "scalar"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["scalar"]


# Checking -------------------------------------------------------------------------------------------------


def forged(name: str = "forged") -> types.ModuleType:
    """A complete backend module, its kernels written in it."""
    module = types.ModuleType(name)
    kernels = "\n".join(f"def {row}(*arguments): pass" for row in KERNELS)
    exec(f"{kernels}\nPADDED = FUSED_UPDATE = False\nExecutor = object\n", vars(module))
    module.prepare = lambda array: array
    module.describe = dict
    return module


def written_in(module: types.ModuleType, code: str) -> types.FunctionType:
    exec(code, vars(module))
    return module.kernel


def test_complete_module_passes():
    checked = backends.check("forged", forged())
    assert list(checked.kernels) == list(KERNELS)
    assert checked.prepare is None


def test_preparation_is_kept():
    module = forged()
    module.prepare = memoryview
    assert backends.check("forged", module).prepare is memoryview


@pytest.mark.parametrize("row", KERNELS)
def test_missing_kernel(row):
    module = forged()
    delattr(module, row)
    with pytest.raises(AttributeError, match=f"backend 'forged' is incomplete: forged lacks {row}$"):
        backends.check("forged", module)
    setattr(module, row, 3)
    with pytest.raises(AttributeError, match=row):
        backends.check("forged", module)


def test_missing_kernels_are_all_listed():
    module = forged()
    del module.sgd, module.sse, module.describe
    with pytest.raises(AttributeError, match="lacks sse, sgd, describe"):
        backends.check("forged", module)


@pytest.mark.parametrize("row", KERNELS)
def test_borrowed_kernel(loaded, row):
    """Put there, under its own name."""
    module = forged()
    setattr(module, row, loaded.kernels[row])
    with pytest.raises(RuntimeError, match=f"backend 'forged' borrows kernels: .*{row} from fastae.kernels"):
        backends.check("forged", module)


def test_borrowed_through_a_wrapper(loaded):
    """Called by a function that is the backend's own, found by a global, by the module, in a closure."""
    module = forged()
    module.elsewhere = loaded.kernels["sgd"]
    module.sgd = written_in(module, "def kernel(*arguments): elsewhere(*arguments)")
    with pytest.raises(RuntimeError, match="elsewhere"):
        backends.check("forged", module)

    module = forged()
    module.elsewhere = loaded.module
    module.sgd = written_in(module, "def kernel(*arguments): elsewhere.sgd(*arguments)")
    with pytest.raises(RuntimeError, match="elsewhere"):
        backends.check("forged", module)

    module = forged()
    module.sgd = written_in(
        module, "def make(f): return lambda *arguments: f(*arguments)\nkernel = make(None)"
    )
    module.sgd = module.make(loaded.kernels["sgd"])
    del module.make, module.kernel
    with pytest.raises(RuntimeError, match="sgd by closure"):
        backends.check("forged", module)


def test_borrowed_under_a_disguise():
    """What Numba and functools put around a function does not hide where it was written."""
    numpy = backends.load("numpy")

    class Dispatcher:
        __module__ = "forged"
        py_func = staticmethod(numpy.kernels["sgd"])

        def __call__(self, *arguments):
            pass

    module = forged()
    module.sgd = Dispatcher()
    with pytest.raises(RuntimeError, match=r"sgd from fastae\.kernels\.vector"):
        backends.check("forged", module)


def test_function_of_numpy_is_no_kernel():
    module = forged()
    module.branch_sum = np.add
    with pytest.raises(RuntimeError, match="branch_sum"):
        backends.check("forged", module)


def test_submodules_are_home():
    module, inner = forged("forged"), forged("forged.inner")
    module.sgd = inner.sgd
    backends.check("forged", module)


@pytest.mark.parametrize("row", KERNELS)
def test_real_backends_share_no_kernel(row):
    kernels = [backends.load(n).kernels[row] for n, r in backends.available_backends().items() if r is None]
    assert len(set(map(id, kernels))) == len(kernels)


def test_load_checks(monkeypatch, nothing_loaded):
    """A backend that lends itself a kernel is refused by load, and by everything that loads."""
    vector = importlib.import_module("fastae.kernels.vector")
    scalar = importlib.import_module("fastae.kernels.scalar")
    monkeypatch.setattr(vector, "sgd", scalar.sgd)
    with pytest.raises(RuntimeError, match=r"backend 'numpy' borrows kernels: .*fastae\.kernels\.scalar"):
        fastae.set_backend("numpy")
    assert "borrows" in fastae.available_backends()["numpy"]
    monkeypatch.delattr(vector, "sgd")
    with pytest.raises(AttributeError, match=r"fastae\.kernels\.vector lacks sgd"):
        fastae.ops.branch_sum(np.ones((1, 1)), np.ones((1, 1)), backend="numpy")


# Showing --------------------------------------------------------------------------------------------------


def test_show_versions(capsys):
    fastae.show_versions()
    printed = capsys.readouterr().out
    stream = io.StringIO()
    fastae.show_versions(stream)
    assert stream.getvalue() == printed
    for text in (fastae.__version__, np.__version__, "processors", fastae.get_backend(), *backends.NAMES):
        assert text in printed


def test_versions(backend):
    sections = backends.versions()
    assert sections["backends"][backend] == "available"
    assert sections[backend] == backends.load(backend).module.describe()


def test_versions_survive_a_wrong_environment_variable(monkeypatch):
    monkeypatch.setenv("FASTAE_BACKEND", "fortran")
    assert "fortran" in backends.versions()["fastae"]["backend"]

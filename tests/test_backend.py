"""Choosing, loading and checking a backend."""

from __future__ import annotations

import asyncio
import importlib
import io
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest

import fastae
from fastae import backend as backends
from fastae.executor import PythonExecutor
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
    exec(
        f"{kernels}\nPADDED = FUSED_UPDATE = False\nclass Executor:\n    def run(self): pass\n", vars(module)
    )
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


# Backends of others ---------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten at its end."""
    monkeypatch.setattr(backends, "_loaded", dict(backends._loaded))


def counting() -> types.ModuleType:
    """A backend around numpy's kernels that notes their names in ``called``."""
    code = """
import sys
from functools import partial
from fastae.executor import PythonExecutor
from fastae.kernels import vector
from fastae.kernels.table import KERNELS
BORROWS = ("numpy",)
PADDED = FUSED_UPDATE = False
called = []
def note(name, *arguments):
    called.append(name)
    getattr(vector, name)(*arguments)
globals().update({name: partial(note, name) for name in KERNELS})
def prepare(array): return array
def describe(): return {"colour": "blue"}
class Executor(PythonExecutor): kernels = module
"""
    module = types.ModuleType("counting")
    module.module = module
    exec(code, vars(module))
    return module


def train(backend, **arguments):
    X = np.random.default_rng(0).uniform(size=(40, 12)).astype(np.float32)
    net = fastae.Network(
        encoder=[fastae.Dense(5, "tanh")], decoder=[fastae.BatchNorm(), fastae.Dense(12)], input_shape=12
    )
    trainer = fastae.Trainer(net, optimizer=fastae.Adam(0.01), batch_size=8, seed=1, backend=backend)
    trainer.fit(X, epochs=3, **arguments)
    return trainer


def test_registered_backend_computes(registry, same_bits, monkeypatch, capsys):
    module = counting()
    assert fastae.register_backend("counting", module) is backends.resolve("counting")
    ones = np.ones((2, 3), np.float32)
    fastae.ops.branch_sum(ones, ones, backend="counting")
    with fastae.use_backend("counting"):
        fastae.ops.branch_sum(ones, ones)
    fastae.set_backend("counting")
    fastae.ops.branch_sum(ones, ones)
    fastae.set_backend(None)
    monkeypatch.setenv("FASTAE_BACKEND", "counting")
    fastae.ops.branch_sum(ones, ones)
    assert module.called == ["branch_sum"] * 4

    mine, numpys = train("counting").weights, train("numpy").weights
    for name in numpys:
        same_bits(mine[name], numpys[name], name)
    assert {"dense_forward", "adam"} <= set(module.called)

    assert list(fastae.available_backends()) == [*backends.NAMES, "counting"]
    assert fastae.available_backends()["counting"] is None
    fastae.show_versions()
    printed = capsys.readouterr().out
    for text in ("counting", "blue", f"{'kernels of':<16} numpy"):
        assert text in printed


def test_registered_backend_is_silent_where_numpy_is(registry):
    """Warnings are errors here, and numpy's kernels overflow with one."""
    fastae.register_backend("counting", counting())
    x = np.full((1, 2), 3e38, np.float32)
    assert np.isinf(fastae.ops.branch_sum(x, x, backend="counting")).all()


def test_registering_again_takes_the_kernels_as_they_are_now(registry):
    module = counting()
    first = fastae.register_backend("counting", module)
    module.sgd = written_in(module, "def kernel(*arguments): pass")
    assert fastae.register_backend("counting", module).kernels["sgd"] is module.sgd
    assert first.kernels["sgd"] is not module.sgd


def test_file_of_a_backend_that_is_not_there(registry, tmp_path, monkeypatch):
    """It is read with another one; without, the error says how."""
    if not os.environ.get("CI"):
        pytest.importorskip("safetensors")
    fastae.register_backend("counting", counting())
    trainer = train("counting")
    trainer.save(tmp_path / "a")
    assert fastae.load(tmp_path / "a").backend == "counting"
    monkeypatch.delitem(backends._loaded, "counting")
    with pytest.raises(ValueError, match=r"given 'counting'; fastae\.load\(\.\.\., backend="):
        fastae.load(tmp_path / "a")
    loaded = fastae.load(tmp_path / "a", backend="numpy")
    assert loaded.weights.keys() == trainer.weights.keys()


def spoilt(**changes) -> types.ModuleType:
    """A complete backend, then changed."""
    module = counting()
    module.other = types.ModuleType("other")
    for name, value in changes.items():
        if value is None:
            delattr(module, name)
        else:
            setattr(module, name, written_in(module, value) if str(value).startswith("def ") else value)
    return module


class OfNobody(PythonExecutor):
    """Has no kernels."""


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sgd": None, "describe": None}, AttributeError, "incomplete: counting lacks sgd, describe"),
        (
            {"branch_sum": "def kernel(x1, y): pass"},
            TypeError,
            r"expected branch_sum\(x1, x2, y\), given branch_sum\(x1, y\)",
        ),
        ({"branch_sum": "def kernel(x1, x2, y, *, more): pass"}, TypeError, r"given branch_sum\(.*more\)"),
        ({"BORROWS": ()}, RuntimeError, r"borrows kernels: vector from fastae\.kernels\.vector"),
        ({"BORROWS": ("scalar",)}, RuntimeError, "borrows kernels"),
        ({"BORROWS": "numpy"}, ValueError, "BORROWS: expected a tuple of names .*given 'numpy'"),
        ({"BORROWS": ("fortran",)}, ValueError, "BORROWS: expected .*'fortran'"),
        ({"PADDED": 1}, ValueError, "PADDED: expected True or False, given 1"),
        ({"SHARDED": 1}, ValueError, "SHARDED: expected True or False, given 1"),
        ({"PADDED": True}, ValueError, "PADDED: expected False with the PythonExecutor"),
        ({"FUSED_UPDATE": "def kernel(): pass"}, ValueError, "FUSED_UPDATE: expected True or False"),
        ({"describe": 3}, ValueError, "describe: expected something to call, given 3"),
        ({"Executor": dict}, ValueError, "Executor: expected a class with a method run, given .*dict"),
        ({"Executor": OfNobody}, ValueError, "Executor.kernels: expected the module counting .*given None"),
    ],
)
def test_register_refuses_module(registry, changes, error, message):
    before = dict(backends._loaded)
    with pytest.raises(error, match=f"^backend 'counting'.*{message}"):
        fastae.register_backend("counting", spoilt(**changes))
    assert backends._loaded == before


@pytest.mark.parametrize(
    "name", ["", "Fast", "9x", "a b", "../x", "é", "x" * 51, *backends.NAMES, "libraries"]
)
def test_register_refuses_name(registry, name):
    with pytest.raises(ValueError, match=r"^name: expected a .*given "):
        fastae.register_backend(name, counting())


def test_register_refuses_other_things(registry):
    with pytest.raises(TypeError, match="name: expected a str, given int"):
        fastae.register_backend(3, counting())
    with pytest.raises(TypeError, match="module: expected a module, given str"):
        fastae.register_backend("mine", "fastae.kernels.vector")
    fastae.register_backend("mine", counting())
    with pytest.raises(ValueError, match="not taken, given 'mine', the backend of counting"):
        fastae.register_backend("mine", forged("another"))


@pytest.fixture
def install(registry, tmp_path, monkeypatch):
    """Put a package with entry points in the group of backends on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(package: str, entries: str, code: str | None = None) -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{backends.GROUP}]\n{entries}\n")
        if code is not None:
            (tmp_path / f"{package}.py").write_text(textwrap.dedent(code))
            monkeypatch.delitem(sys.modules, package, raising=False)

    yield install
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_entry_point_is_loaded_when_asked_for(install):
    install("lazy_one", "lazy = lazy_one", "raise RuntimeError('too early')")
    fastae.ops.branch_sum(np.ones((1, 1)), np.ones((1, 1)), backend="numpy")
    net = fastae.Network(encoder=[fastae.Dense(1)], decoder=[fastae.Dense(2)], input_shape=2)
    trainer = fastae.Trainer(net, backend="lazy", seed=0)  # the name is known, nothing was imported
    with pytest.raises(ImportError, match="too early"):
        trainer.reconstruct(np.ones((1, 2), np.float32))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import absent_library", "ModuleNotFoundError: No module named 'absent_library'"),
        ("def (", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        (None, "No module named 'broken_one'"),
    ],
)
def test_entry_point_that_fails_to_import(install, monkeypatch, code, reason):
    install("broken_one", "broken = broken_one", code)
    message = rf"backend 'broken' of the package broken_one 1\.0 \(broken_one\) cannot be .*{reason}"
    with pytest.raises(ImportError, match=message):
        backends.load("broken")
    assert reason in fastae.available_backends()["broken"]
    assert "broken_one 1.0" in backends.versions()["backends"]["broken"]
    monkeypatch.setenv("FASTAE_BACKEND", "broken")
    with pytest.raises(ImportError, match=f"FASTAE_BACKEND=broken: {message}"):
        fastae.get_backend()


def test_entry_point_with_a_wrong_module(install):
    install("half_one", "half = half_one\nvalue = half_one:number", "number = 3")
    with pytest.raises(AttributeError, match="half_one lacks dense_forward, "):
        backends.load("half")
    with pytest.raises(ImportError, match=r"half_one 1\.0 .*expected a module, given int"):
        backends.load("value")
    assert "lacks" in fastae.available_backends()["half"]


def test_entry_points_of_one_name(install):
    install("first_one", "twice = first_one", "")
    install("second_one", "twice = second_one", "")
    with pytest.raises(ImportError, match=r"brought by .*_one 1\.0.* and .*_one 1\.0.*uninstall all but one"):
        backends.load("twice")
    with pytest.raises(ValueError, match=r"not taken, given 'twice', the backend of the package .*_one"):
        fastae.register_backend("twice", counting())


@pytest.mark.parametrize("name", ["numpy", "Wrong Name"])
def test_entry_point_whose_name_cannot_be_used(install, name):
    install("rude_one", f"{name} = rude_one", "1 / 0")
    with pytest.warns(RuntimeWarning, match=f"backend '{name}' of the package rude_one .*left out"):
        available = fastae.available_backends()
    assert list(available) == list(backends.NAMES)
    assert backends.load("numpy").module.__name__ == "fastae.kernels.vector"


EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "embedding" / "backend"


def test_package_with_a_backend(tmp_path):
    """The example, installed by pip, trains in a new process: numpy's bits, and every call counted."""
    if not EXAMPLE.is_dir():
        pytest.skip("the examples are not beside the tests")
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source)
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True, timeout=300)
    code = """
        import sys
        import numpy as np
        import fastae
        assert not {"fastae_counting", "importlib.metadata"} & set(sys.modules)
        assert fastae.get_backend() == "counting"
        assert fastae.available_backends()["counting"] is None
        X = np.random.default_rng(0).uniform(size=(50, 225))
        def train(backend=None):
            trainer = fastae.Trainer.from_recipe(fastae.models.autoencnet(), seed=0, backend=backend)
            trainer.fit(X, epochs=2)
            return trainer.weights
        from fastae_counting import COUNTS, report, reset
        weights = train()
        forward, updates = COUNTS["dense_forward"], COUNTS["sgd"].calls
        assert forward.calls and forward.seconds > 0, report()
        reset()
        other = train("numpy")
        assert not COUNTS
        assert all(weights[name].tobytes() == other[name].tobytes() for name in other)
        x, w, y = np.ones((20, 225)), np.ones((225, 75)), np.empty((20, 75))
        fastae.ops.dense_forward(x, w, activation="relu", out=y)
        assert COUNTS["dense_forward"].flops == 2 * 20 * 225 * 75 + 2 * 20 * 75
        assert "dense_forward" in report()
        fastae.show_versions()
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "FASTAE_BACKEND": "counting", "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    assert "calls, seconds, FLOPs" in done.stdout
    assert "fastae_counting.backend" in done.stdout


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

"""What ``import fastae`` costs and brings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import pytest

import fastae

HEAVY = [
    "numba",
    "safetensors",
    "sklearn",
    "scipy",
    "matplotlib",
    "tqdm",
    "threadpoolctl",
    "hypothesis",
    "onnx",
    "onnxruntime",
    "torch",
]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_imports_nothing_heavy():
    loaded = run("import sys, fastae; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


def test_declaring_and_choosing_imports_nothing_heavy():
    code = """
import sys, numpy, fastae
fastae.models, fastae.layers, fastae.Network, fastae.SGD, fastae.Trainer, fastae.plots, fastae.ops.sgd
fastae.export
fastae.available_backends()
fastae.set_backend("numpy")
fastae.ops.branch_sum(numpy.ones((1, 1)), numpy.ones((1, 1)))
print(*sys.modules)
"""
    assert not set(HEAVY) & set(run(code).split())


@pytest.mark.timed
def test_import_takes_50_ms_at_most():
    """Over ``import numpy``; the least of several processes, which is the one least disturbed."""
    code = "import time, numpy; t = time.perf_counter(); import fastae; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(5)) <= 0.050


@pytest.mark.timed
def test_help_takes_150_ms_at_most():
    """Over Python's own start; the least of several processes, which are the ones least disturbed."""

    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
        taken = time.perf_counter() - start
        assert "pass" in arguments or done.stdout.startswith("usage: fastae")
        return taken

    alone, whole = (
        min(seconds(*arguments) for _ in range(5))
        for arguments in (("-c", "pass"), ("-m", "fastae", "--help"))
    )
    assert whole - alone <= 0.150


@pytest.mark.parametrize("name", [*fastae.__all__, *fastae._EXTRA])
def test_public_name(name):
    if name in fastae._EXTRA and not os.environ.get("CI"):
        pytest.importorskip("sklearn")
    value = getattr(fastae, name)
    assert value is getattr(fastae, name)
    assert name in dir(fastae)
    assert value.__doc__ or isinstance(value, str)


def test_every_public_name_has_a_home():
    assert set(fastae._HOME) | {"__version__", "get_include"} == {*fastae.__all__, *fastae._EXTRA}


def test_names_of_type_checkers_are_the_same():
    """Under TYPE_CHECKING the names are imported once more; both lists are read by people and tools."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(fastae.__file__).read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    found = {
        alias.name: node.module.rpartition(".")[2] if node.module != "fastae" else alias.name
        for node in block.body
        for alias in node.names
    }
    assert found == fastae._HOME


def test_without_scikit_learn():
    """The names of its extra are an error that says what to install, and are in nobody's way."""
    code = """
import sys
sys.modules["sklearn"] = None  # as if it were not installed
from fastae import *
import fastae
for name in fastae._EXTRA:
    try:
        getattr(fastae, name)
    except ImportError as error:
        print(error)
"""
    printed = run(code).splitlines()
    assert len(printed) == 2
    assert all('pip install "fastae[sklearn]"' in line for line in printed)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'fastae' has no attribute 'fit'"):
        fastae.fit  # noqa: B018


def test_version():
    try:
        installed = version("fastae")
    except PackageNotFoundError:
        pytest.skip("not installed")
    assert fastae.__version__ == installed

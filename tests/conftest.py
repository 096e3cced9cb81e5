"""Fixtures of the whole suite, and the arguments of any kernel, derived from its row.

A test module has what is defined here through fixtures, because two conftest modules of one name cannot
both be imported: ``make_case(row, dims, dtype, ...)`` makes a :class:`Case`.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fastae import backend as backends
from fastae.kernels.table import ACTIVATIONS, Array, Constant, Kernel

GUARD = 256  # bytes before and after an array; more than any vector or row padding
GUARD_BYTE = 0xFF  # read as a number it is NaN: what reads beyond an array shows

#: Constants of kernels on images where a test gives no others: no two of a pair alike.
GEOMETRY = {
    "stride_h": 2,
    "stride_w": 1,
    "padding_top": 1,
    "padding_left": 0,
    "padding_bottom": 0,
    "padding_right": 1,
    "output_padding_h": 1,
    "output_padding_w": 0,
    "dilation_h": 1,
    "dilation_w": 2,
    "groups": 2,
    "kernel_h": 2,
    "kernel_w": 3,
    "pool_h": 1,
    "pool_w": 2,
    "factor_h": 2,
    "factor_w": 3,
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave ``pytest --benchmark-only`` to benchmarks/."""
    by_default = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return True if by_default and config.getoption("benchmark_only", default=False) else None


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Ctrl-C is heeded also where a shell has started the tests in the background, and so had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def load_or_skip(name: str) -> backends.Backend:
    """Load a backend; where it cannot be loaded fail in CI, where all must be there, and skip elsewhere."""
    try:
        return backends.load(name)
    except ImportError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI has every backend, but: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def require() -> Callable[[str], ModuleType]:
    """Import a module of an extra; where it is not there fail in CI, which has all, and skip elsewhere."""

    def require(name: str) -> ModuleType:
        return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)

    return require


@pytest.fixture(scope="session")
def slowdown() -> Callable[[Callable[[], object], Callable[[], object]], float]:
    """How many times longer one call of a few milliseconds takes than another: the median over turns.

    A machine changes its pace within seconds, so what is compared is what ran side by side.
    """

    def seconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def slowdown(call: Callable[[], object], than: Callable[[], object]) -> float:
        ratios = []
        for turn in range(200):
            if turn % 2:  # neither is always the one whose data the other has driven from the cache
                taken = seconds(call)
                ratios.append(taken / seconds(than))
            else:
                other = seconds(than)
                ratios.append(seconds(call) / other)
        return statistics.median(ratios)

    return slowdown


@pytest.fixture(params=backends.NAMES)
def backend(request: pytest.FixtureRequest) -> str:
    """Name of each backend."""
    load_or_skip(request.param)
    return request.param


@pytest.fixture
def loaded(backend: str) -> backends.Backend:
    """Each backend."""
    return backends.load(backend)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return np.dtype(request.param)


@pytest.fixture(scope="session")
def make_case() -> type[Case]:
    return Case


@pytest.fixture(scope="session")
def torch():
    """PyTorch, on one thread; without it a test is skipped, but where CI has it, it fails."""
    if os.environ.get("CI_TORCH"):
        import torch
    else:
        torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


class _Interface:
    """Shows an array by `__array_interface__`, and by nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @property
    def __array_interface__(self) -> dict[str, object]:
        return self.array.__array_interface__


class _Capsule:
    """Shows an array by DLPack, and by nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


@pytest.fixture(params=["buffer", "__array_interface__", "__dlpack__", "torch"])
def foreign(request: pytest.FixtureRequest) -> Callable[[np.ndarray], object]:
    """Show an array as other libraries have them: not an ndarray, on the same memory."""
    if request.param in ("torch", "__dlpack__") and np.lib.NumpyVersion(np.__version__) < "2.1.0":
        pytest.skip("NumPy before 2.1 shows what comes by DLPack as read-only")
    if request.param == "torch":
        return request.getfixturevalue("torch").from_numpy
    return {"buffer": memoryview, "__array_interface__": _Interface, "__dlpack__": _Capsule}[request.param]


class Guarded:
    """An array in the middle of a block of bytes that nobody may touch.

    It is aligned for its dtype and no more, so that a kernel that takes a wider alignment for granted
    crashes here and not at a user's.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        size = math.prod(shape) * dtype.itemsize
        self.block = np.full(2 * GUARD + size + 128, GUARD_BYTE, np.uint8)
        self.start = GUARD + -(self.block.ctypes.data + GUARD) % 64 + dtype.itemsize
        self.stop = self.start + size
        self.array = self.block[self.start : self.stop].view(dtype).reshape(shape)

    def check(self, name: str) -> None:
        around = np.concatenate([self.block[: self.start], self.block[self.stop :]])
        assert (around == GUARD_BYTE).all(), f"{name}: written outside the array"


class Case:
    """One kernel with its arguments.

    Parameters
    ----------
    row : Kernel
    dims : mapping of str to int
        Sizes of the dims that are not derived.
    dtype : str or dtype
    activation : str
        For rows that have one.
    absent : iterable of str
        Optional arrays to leave out.
    integers : bool
        Whether to fill with integers from -3 to 3 and reals by powers of two, for exact sums.
    constants : mapping of str to object
        Values other than the default ones.

    Attributes
    ----------
    inputs : dict of str to ndarray
        Content of the inputs, saved tensors and states that are present, in ``dtype``. It is the same for
        both dtypes: every value is a float32.
    """

    def __init__(
        self,
        row: Kernel,
        dims: Mapping[str, int],
        dtype: str | np.dtype = "float64",
        *,
        activation: str = "linear",
        absent: Iterable[str] = (),
        integers: bool = False,
        constants: Mapping[str, object] | None = None,
        seed: int = 0,
    ) -> None:
        self.row = row
        self.dtype = np.dtype(dtype)
        self.absent = frozenset(absent)
        self.integers = integers
        self.constants = {
            c.name: self._constant(i, c, activation) for i, c in enumerate(row.constants)
        } | dict(constants or {})
        self.dims = dict(dims)
        self.dims |= row.derive(self.dims | self.constants)
        rng = np.random.default_rng([seed, zlib.crc32(row.name.encode()), *self.dims.values()])
        self.inputs = {a.name: self._fill(a, activation, rng) for a in row.given if a.name not in self.absent}

    def __str__(self) -> str:
        without = f" without {', '.join(sorted(self.absent))}" if self.absent else ""
        return f"{self.row.name} {self.dtype} {self.dims} {self.constants}{without}"

    def _constant(self, place: int, constant: Constant, activation: str) -> object:
        if constant.kind == "activation":
            return activation
        if constant.name in GEOMETRY and constant.maximum is not None:
            return GEOMETRY[constant.name]
        if constant.kind == "int":
            return int(max(2, constant.minimum or 0) if constant.maximum is None else constant.maximum)
        return 0.5 if self.integers else 0.3 + 0.05 * place  # no two alike: a mix-up shows

    def _fill(self, array: Array, activation: str, rng: np.random.Generator) -> np.ndarray:
        shape = self.row.shape(array, self.dims)
        if array.kind == "index":  # of fixed size it counts something, else it has rows of the first array
            rows = 10 if array.dims[0].isdigit() else self.row.shape(self.row.arrays[0], self.dims)[0]
            return rng.integers(0, rows, shape)
        if array.name == "position":
            return self._positions(shape, rng).astype(self.dtype)
        values = rng.integers(-3, 4, shape) * 1.0 if self.integers else rng.uniform(-2, 2, shape)
        low = lowest(array)
        if low is not None:
            values = low + np.abs(values)
        if is_probability(self.row, array):
            values = rng.uniform(size=shape)
            exact = rng.uniform(size=shape)  # some are exactly 0, some exactly 1
            values = np.where(exact < 0.1, 0.0, np.where(exact > 0.9, 1.0, values))
        elif is_activated(self.row, array):
            values = apply_activation(activation, values)  # derivatives are written in an output of it
        return values.astype(np.float32).astype(self.dtype)

    def _positions(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Elements of the windows of a pooling that lie inside the image."""
        chosen = []
        alone = "kernel_h" in self.constants  # else of windows side by side, behind a convolution
        sizes = ("ih", "iw") if alone else ("oh", "ow")
        for size, count, end, before in zip(sizes, shape[2:], ("h", "w"), ("top", "left"), strict=True):
            names = ("kernel", end), ("stride", end), ("padding", before)
            kernel, stride, padding = (
                [self.constants["_".join(name)] for name in names]
                if alone
                else (self.constants[f"pool_{end}"], self.constants[f"pool_{end}"], 0)
            )
            starts = np.arange(count) * stride - padding
            first = np.maximum(-starts, 0)
            last = np.minimum(self.dims[size] - starts, kernel) - 1
            chosen.append((first, last))
        rows = rng.integers(chosen[0][0][:, None], chosen[0][1][:, None] + 1, shape)
        columns = rng.integers(chosen[1][0], chosen[1][1] + 1, shape)
        return rows * kernel + columns

    def with_inputs(self, **inputs: np.ndarray) -> Case:
        """The same case with other content."""
        other = object.__new__(Case)
        vars(other).update(vars(self), inputs=self.inputs | inputs)
        return other

    def with_constants(self, **constants: object) -> Case:
        """The same case and content with other constants; those that no dim follows from."""
        other = object.__new__(Case)
        vars(other).update(vars(self), constants=self.constants | constants)
        return other

    def array_dtype(self, array: Array) -> np.dtype:
        return np.dtype(np.int64) if array.kind == "index" else self.dtype

    def allocate(self, *, readonly: bool = True) -> dict[str, Guarded]:
        """Guarded arrays for the arguments that are present; outputs and workspaces full of NaN."""
        arrays = {}
        for a in self.row.arrays:
            if a.name in self.absent:
                continue
            guarded = arrays[a.name] = Guarded(self.row.shape(a, self.dims), self.array_dtype(a))
            guarded.array[...] = self.inputs.get(a.name, np.nan)
            guarded.array.flags.writeable = a.written or not readonly
        return arrays

    def run(self, backend: backends.Backend, *, readonly: bool = True) -> dict[str, np.ndarray]:
        """Call the kernel itself; see that it kept within its arrays; return states and outputs."""
        arrays = self.allocate(readonly=readonly)
        arguments: list[object] = []
        for a in self.row.arguments:
            if isinstance(a, Constant):
                value = self.constants[a.name]
                arguments.append(ACTIVATIONS[value].code if a.kind == "activation" else value)
            else:
                array = arrays[a.name].array if a.name in arrays else np.empty(0, self.array_dtype(a))
                arguments.append(backend.prepare(array) if backend.prepare else array)
        with np.errstate(all="ignore"):
            returned = backend.kernels[self.row.name](*arguments)
        label = str(self)
        assert returned is None, f"{label}: a kernel returns nothing"
        for a in self.row.arrays:
            if a.name in arrays:
                arrays[a.name].check(f"{label}: {a.name}")
                if not a.written:
                    assert_same_bits(
                        arrays[a.name].array, self.inputs[a.name], f"{label}: {a.name} was changed"
                    )
        return {a.name: arrays[a.name].array for a in self.results}

    @property
    def results(self) -> list[Array]:
        """States and outputs that are present."""
        return [a for a in self.row.arrays if a.role in ("state", "out") and a.name not in self.absent]

    def keywords(self, arrays: Mapping[str, np.ndarray]) -> dict[str, object]:
        """Arguments for the function in ``fastae.ops``, without ``out``."""
        given = {a.name: arrays.get(a.name) for a in self.row.given}
        return given | self.arguments() | {d: self.dims[d] for d in self.row.free_dims}

    def arguments(self, **changed: object) -> dict[str, object]:
        """The constants, some of them changed, as ``fastae.ops`` takes them: some two or four in one."""
        found: dict[str, object] = {}
        for c in self.row.constants:
            value = changed.get(c.name, self.constants[c.name])
            if c.part_of:
                found[c.part_of] = (*found.get(c.part_of, ()), value)
            else:
                found[c.name] = value
        return found

    def out(self, arrays: Mapping[str, np.ndarray]) -> object:
        """What ``fastae.ops`` takes as ``out``."""
        outputs = tuple(arrays.get(a.name) for a in self.row.outputs)
        return outputs[0] if len(outputs) == 1 else outputs


def lowest(array: Array) -> float | None:
    """Smallest value of an array's domain: variances and weights are not negative, deviations positive."""
    if array.name == "inv_std":
        return 0.1
    squares = ("running_var", "sample_weight", "square_avg", "square_sum")
    return 0.0 if array.name in squares or array.name.startswith("exp_avg_sq") else None


def is_probability(row: Kernel, array: Array) -> bool:
    """Whether values lie in [0, 1]: the targets of a cross-entropy, and what it compares with them."""
    return row.loss and row.name.startswith("bce") and array.name in ("y", "target")


def is_activated(row: Kernel, array: Array) -> bool:
    """Whether values are outputs of the activation."""
    return (array.role == "saved" and len(array.dims) > 1) or (row.loss and array.name == "y")


def apply_activation(name: str, x: np.ndarray) -> np.ndarray:
    """f(x) by the scalar backend, in float64."""
    scalar = backends.load("scalar")
    flat = np.ascontiguousarray(x, np.float64).reshape(1, -1)
    y = np.empty_like(flat)
    scalar.kernels["activation_forward"](memoryview(flat), ACTIVATIONS[name].code, memoryview(y))
    return y.reshape(x.shape)


def assert_same_bits(a: np.ndarray, b: np.ndarray, message: str) -> None:
    assert a.dtype == b.dtype, message
    assert a.shape == b.shape, message
    assert a.tobytes() == b.tobytes(), f"{message}:\n{a}\n{b}"


@pytest.fixture(scope="session")
def same_bits() -> Callable[[np.ndarray, np.ndarray, str], None]:
    return assert_same_bits

"""Arguments for any kernel of the table, in AutoEncNet's sizes, derived from its row alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from fastae import backend
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Constant, Kernel

#: AutoEncNet: B = 20 rows, D = 225 pixels, P = 75 hidden units, 39675 trained parameters. A batch is gathered
#: from as many images as it has rows, each once: then the bytes the table counts are the bytes that move.
SIZES = {"n": 20, "k": 225, "m": 75, "p": 39675, "r": 20}
#: Images of 14 x 14, small enough for the scalar loops, with as many channels as fill a vector in part.
SIZES |= {"c": 4, "cg": 4, "o": 8, "og": 8, "ih": 14, "iw": 14, "kh": 3, "kw": 3, "vh": 4, "vw": 4}
OTHER_SIZE = 16  # of a dim this file has not heard of

CONSTANTS = {"learning_rate": 1e-4, "stride": 3, "rate": 0.2, "stddev": 0.1}
CONSTANTS |= {f"{name}_{end}": 2 for name in ("kernel", "pool", "factor") for end in ("h", "w")}

#: By how a kernel's name begins: a convolution as large as its image, a transposed one and poolings by 2.
GEOMETRY = {
    "conv2d": {"padding": 1},
    "conv_transpose2d": {"stride": 2, "padding": 1, "output_padding": 1},
    "max_pool2d": {"stride": 2},
    "avg_pool2d": {"stride": 2},
}

#: Variances and sums of squares, which are not negative, under whatever role.
POSITIVE = ("running_var", "inv_std", "sample_weight")


def activations(kernel: Kernel) -> list[str]:
    """Activations a kernel is timed with: all of them where that is all the kernel does."""
    if not any(c.kind == "activation" for c in kernel.constants):
        return [""]
    return list(ACTIVATIONS) if kernel.name.startswith("activation_") else ["relu"]


def constants(kernel: Kernel, activation: str) -> dict[str, object]:
    """A value for every constant of the row; activations by name."""

    geometry: dict[str, int] = next((g for name, g in GEOMETRY.items() if kernel.name.startswith(name)), {})

    def value(c: Constant) -> object:
        if c.kind == "activation":
            return activation
        if c.part_of in geometry:
            return geometry[c.part_of]
        if c.name in CONSTANTS:
            return CONSTANTS[c.name]
        if c.default is not None:
            return c.default
        if c.kind == "int":
            return max(1, int(c.minimum or 0))
        return max(0.01, c.minimum or 0.0, 2 * (c.above or 0.0))

    return {c.name: value(c) for c in kernel.constants}


def dims(kernel: Kernel, values: Mapping[str, object]) -> dict[str, int]:
    """A size for every dim of the row; a loss sees the pixels of the output layer."""
    sizes = {d: SIZES.get(d, OTHER_SIZE) for d in kernel.dims}
    if kernel.loss and "m" in sizes:
        sizes["m"] = SIZES["k"]
    given = {name: size for name, size in sizes.items() if name not in kernel.derived}
    return sizes | kernel.derive(given | dict(values))


def _fill(kernel: Kernel, a: Array, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    shape = kernel.shape(a, sizes)
    if a.kind == "index":
        if a.dims[0].isdigit():  # of fixed size it counts: updates done, and the seed
            return np.arange(3, 3 + int(a.dims[0]))
        count = int(np.prod(shape))
        return rng.permutation(count).reshape(shape) % sizes.get("r", min(sizes.values()))
    if a.name == "position":  # in windows of 2 by 2 that all lie in the image
        return rng.integers(0, 4, shape).astype(np.float64)
    if a.role in ("out", "work"):
        return np.full(shape, np.nan)
    # States may be second moments and losses may take logarithms: both want values inside (0, 1).
    inside = kernel.loss or a.role == "state" or a.name in POSITIVE
    low, high = (0.1, 0.9) if inside else (-1.0, 1.0)
    # Rounded to float32, so that both dtypes and the reference compute with the same numbers.
    return rng.uniform(low, high, shape).astype(np.float32).astype(np.float64)


class Case:
    """One kernel with its arguments.

    ``arrays`` holds float64 (and int64) originals by name; ``call`` binds a backend's kernel to fresh copies
    of them in the dtype asked for. Optional arrays are present.
    """

    def __init__(self, name: str, activation: str) -> None:
        self.kernel = KERNELS[name]
        self.constants = constants(self.kernel, activation)
        self.dims = dims(self.kernel, self.constants)
        rng = np.random.default_rng(7)
        self.arrays = {a.name: _fill(self.kernel, a, self.dims, rng) for a in self.kernel.arrays}

    def call(self, module: object, dtype: str):
        """The kernel, its positional arguments, and the arrays it writes that mean something, by name."""
        # np.array copies; astype alone would hand out the originals where the dtype is theirs already.
        real = {a.name for a in self.kernel.arrays if a.kind == "real"}
        copies = {k: np.array(v, dtype if k in real else v.dtype) for k, v in self.arrays.items()}
        arguments = []
        for a in self.kernel.arguments:
            if isinstance(a, Array):
                arguments.append(module.prepare(copies[a.name]))
            elif a.kind == "activation":
                arguments.append(ACTIVATIONS[self.constants[a.name]].code)
            else:
                arguments.append(self.constants[a.name])
        written = {a.name: copies[a.name] for a in self.kernel.arrays if a.role in ("out", "state")}
        return getattr(module, self.kernel.name), tuple(arguments), written

    def flops(self) -> float:
        """Floating-point operations of a call."""
        return self.kernel.count_flops(self.dims, self.constants)

    def bytes(self, dtype: str) -> int:
        """Bytes of a call if every array moves once."""
        return self.kernel.count_bytes(self.dims, np.dtype(dtype).itemsize)


@cache
def _results(name: str, activation: str, backend_name: str) -> dict[str, np.ndarray]:
    function, arguments, written = Case(name, activation).call(backend.load(backend_name).module, "float64")
    with np.errstate(all="ignore"):  # as the executor has it
        function(*arguments)
    return written


def reference(name: str, activation: str, backend_name: str) -> dict[str, np.ndarray]:
    """What a kernel must give: the scalar definition in float64, itself checked against NumPy in float64."""
    return _results(name, activation, "numpy" if backend_name == "scalar" else "scalar")


def assert_close(got: np.ndarray, expected: np.ndarray, dtype: str, what: str) -> None:
    """Within 200 eps of the largest expected value: sums of 225 terms of mixed sign, in any order."""
    limit = 200 * np.finfo(dtype).eps * max(1e-30, float(np.abs(expected).max()))
    error = float(np.abs(got.astype(np.float64) - expected).max())
    assert error <= limit, f"{what}: off by {error:.3g}, allowed {limit:.3g}"

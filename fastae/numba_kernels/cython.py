"""The compiled kernels and trained models of ``fastae.h`` inside your own ``@njit`` code.

::

    from fastae.numba_kernels import cython

    @njit(cache=True, nogil=True)
    def yours(x, w, b, y, plan, arena):
        cython.dense_forward(x, w, b, "relu", y)                        # as numba_kernels.dense_forward
        cython.dense_forward_f32(x, w, b, 1, y, n, k, m)                # as fastae_dense_forward_f32 in C
        code = cython.run(plan, arena, cython.RECONSTRUCT, n, x, None, y, None)

- ``dense_forward`` and its like are called as in `fastae.numba_kernels`, with the same checks when your
  function is compiled; they choose the dtype and take the sizes from the shapes. Work arrays may not be None
  here.
- Every function of ``fastae.h`` is there under its name without ``fastae_``, with its arguments: for a
  pointer give an array (C-contiguous, of that dtype; any array for ``void *``) or None for NULL. They return
  error codes. ``checked_dense_forward_f32`` and its like are those that check their arguments.
- Plans (`fastae.plan`) run with ``run``. `open_plan` opens one from Python and makes the arena; compiled code
  that does it itself gives an int64 array of PLAN_WORDS elements for the ``fastae_plan``, the bytes as an
  array that is 8-byte aligned and stays alive, and a 64-byte aligned arena.

Code that Numba keeps on disk holds the names of these functions and no addresses. Where this module is
imported before it runs, it calls the ones for the processor at hand, of the fastae that is installed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import binding
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from fastae import ctypes_kernels
from fastae.kernels import c_interface, compiled, table
from fastae.kernels.table import KERNELS, Array, Kernel
from fastae.numba_kernels.calls import (
    compare,
    document,
    from_python,
    is_absent,
    listed,
    make,
    taught,
    wrong_memory,
)

ENCODE, DECODE, RECONSTRUCT, TRAIN, EVALUATE = range(5)

#: Words of a ``fastae_plan``.
PLAN_WORDS = ctypes.sizeof(ctypes_kernels.Plan) // 8

_PLAN_FUNCTIONS = {
    "plan_open": (("const void *", "bytes"), ("int64_t", "size"), ("fastae_plan *", "plan")),
    "plan_load": (("const fastae_plan *", "plan"), ("void *", "arena")),
    "plan_store": (("const fastae_plan *", "plan"), ("const void *", "arena"), ("void *", "bytes")),
    "run": (
        ("const fastae_plan *", "plan"),
        ("void *", "arena"),
        ("int", "routine"),
        ("int64_t", "rows"),
        ("const void *", "input"),
        ("const void *", "target"),
        ("void *", "output"),
        ("double *", "losses"),
    ),
}

__all__ = ["DECODE", "ENCODE", "EVALUATE", "PLAN_WORDS", "RECONSTRUCT", "TRAIN", "OpenPlan", "open_plan"]
__all__ += [*KERNELS, *_PLAN_FUNCTIONS]


class OpenPlan(NamedTuple):
    """What compiled code runs a model with; keep it as long as that runs.

    Attributes
    ----------
    plan : ndarray of int64, (PLAN_WORDS,)
        For the functions here. Any number of threads may use it.
    arena : ndarray of uint8
        Memory of one thread, loaded with the parameters.
    block : ndarray of uint8
        The bytes that the plan reads.
    """

    plan: npt.NDArray[np.int64]
    arena: npt.NDArray[np.uint8]
    block: npt.NDArray[np.uint8]


def open_plan(block: bytes) -> OpenPlan:
    """Open a plan that `fastae.plan` made, and load an arena.

    Raises
    ------
    ValueError
        When the bytes are no plan, or one of other kernels.
    """
    words = np.frombuffer(block + bytes(-len(block) % 8), np.int64).copy()  # aligned, and its own
    opened = ctypes_kernels.Plan()
    ctypes_kernels.plan_open(words, len(block), opened)
    room = np.zeros(opened.arena_size + 64, np.uint8)
    start = -room.ctypes.data % 64
    arena = room[start : start + opened.arena_size]
    ctypes_kernels.plan_load(opened, arena)
    return OpenPlan(np.frombuffer(opened, np.int64), arena, words.view(np.uint8))


# Pointers -------------------------------------------------------------------------------------------------


@intrinsic
def _pointer(typing, array):
    """Where an array begins; an absent one is NULL."""
    absent = isinstance(array, types.NoneType)
    signature = types.voidptr(array)

    def generate(context, builder, signature, arguments):
        pointer = context.get_value_type(types.voidptr)
        if absent:
            return context.get_constant_null(types.voidptr)
        return builder.bitcast(context.make_array(array)(context, builder, arguments[0]).data, pointer)

    return signature, generate


_TYPES = {"int64_t": types.int64, "double": types.float64, "int": types.int32}
_ELEMENTS = {"float": types.float32, "double": types.float64, "int64_t": types.int64}


def _external(name: str, parameters: tuple[tuple[str, str], ...]) -> tuple[Any, Any]:
    """Register both functions of a name, the second with checks; return them."""
    made = []
    # With another ABI the symbols are others: what is kept on disk must not call what has changed.
    for checked in (False, True):
        symbol = f"fastae_{c_interface.ABI_VERSION}_{'checked_' * checked}{name}"
        binding.add_symbol(symbol, ctypes_kernels.address(name, checked=checked))
        signature = types.int32(*(_TYPES.get(ctype, types.voidptr) for ctype, _ in parameters))
        made.append(types.ExternalFunction(symbol, signature))
    return made[0], made[1]


# The functions of the header ------------------------------------------------------------------------------


def _argument(function: str, ctype: str, name: str, kind: Any) -> str:
    """Write what is passed for an argument of C; refuse what it is no type for."""
    if ctype in _TYPES:
        real = ctype == "double" and isinstance(kind, types.Float)
        if not real and not isinstance(kind, types.Integer):
            raise TypingError(f"{function}: {name}: expected {_TYPES[ctype]}, given {kind}")
        return f"{_TYPES[ctype]}({name})"
    if not is_absent(kind):
        written = not ctype.startswith("const ")
        element = _ELEMENTS.get(ctype.removeprefix("const ").removesuffix(" *"))
        if "fastae_plan" in ctype:
            element = types.int64
        wrong: str | None = f"an array{f' of {element}' if element else ''} or None"
        if isinstance(kind, types.Array) and (element is None or kind.dtype == element):
            wrong = wrong_memory(kind, written=written)
        if wrong:
            raise TypingError(f"{function}: {name}: expected {wrong}, given {kind}")
    return f"pointer({name})"


def _c_function(name: str, parameters: tuple[tuple[str, str], ...], external: Any, text: str) -> Any:
    """Make a function with the arguments of C."""
    arguments = ", ".join(argument for _, argument in parameters)

    def choose(given: tuple[Any, ...]) -> Callable[..., Any]:
        passed = [
            _argument(name, ctype, argument, kind)
            for (ctype, argument), kind in zip(parameters, given, strict=True)
        ]
        names = {"external": external, "pointer": _pointer}
        names |= {str(kind): kind for kind in _TYPES.values()}
        return make(name, f"def {name}({arguments}):\n    return external({', '.join(passed)})\n", names)

    def run(given: tuple[Any, ...]) -> Any:
        plain = name.removeprefix("checked_")
        return ctypes_kernels.function(plain, checked=name != plain)(*given)

    return taught(name, arguments, choose, run, text, __name__, {})


def _kernel(row: Kernel, external: dict[Any, Any]) -> Any:
    """Make a function with the arguments of the row, for both dtypes."""

    def choose(given: tuple[Any, ...]) -> Callable[..., Any]:
        real, passed = compare(row, given, lambda a: "None")
        kinds = dict(zip((a.name for a in row.arguments), given, strict=True))
        for i, a in enumerate(row.arguments):
            if isinstance(a, Array):
                if a.role == "work" and is_absent(kinds[a.name]):
                    raise TypingError(f"{row.name}: {a.name}: expected an array to work in, given None")
                passed[i] = f"pointer({passed[i]})"
        for dim in row.dims:
            source = next((a for a in row.arrays if dim in a.dims and not is_absent(kinds[a.name])), None)
            if source is None:
                raise TypingError(f"{row.name}: expected an array that has the dim {dim}, given None for all")
            passed.append(f"{source.name}.shape[{source.dims.index(dim)}]")
        names = {"external": external[real], "pointer": _pointer, "float64": types.float64}
        names["int64"] = types.int64
        return make(row.name, f"def {row.name}({listed(row)}):\n    external({', '.join(passed)})\n", names)

    run = partial(from_python, compiled, row)
    return taught(row.name, listed(row), choose, run, document(row), __name__, {})


def _fill() -> None:
    """Make everything."""
    found = {f.name: f for f in c_interface.functions(table)}
    external: dict[str, tuple[Any, Any]] = {}
    declared = {name: f.parameters for name, f in found.items()} | _PLAN_FUNCTIONS
    for name, parameters in declared.items():
        external[name] = _external(name, parameters)
        for prefix, function in zip(("", "checked_"), external[name], strict=True):
            if prefix and name not in found:
                continue  # those of plans check always
            text = f"``fastae_{name}`` of fastae.h{', with its checks' * bool(prefix)}."
            globals()[prefix + name] = _c_function(prefix + name, parameters, function, text)
    for name, row in KERNELS.items():
        both = {types.float32: external[f"{name}_f32"][0], types.float64: external[f"{name}_f64"][0]}
        globals()[name] = _kernel(row, both)


_fill()

"""The kernels of the ``numba`` backend inside your own ``@njit`` code, without Python and without the GIL.

::

    @njit(cache=True, nogil=True)          numba_kernels.dense_forward(x, w, b, "relu", y)
    def yours(...): ──────────────────┐      │ while yours is compiled: types are compared with the table
        numba_kernels.dense_forward ──┘      └─> the body that the backend runs too, linked into yours

One function for each row of :mod:`fastae.kernels.table`, with the row's arguments by position in the order
stated there: inputs, saved tensors, constants, workspaces, states, outputs (``help`` of a function lists
them)::

    from numba import njit
    from fastae import numba_kernels

    @njit(cache=True, nogil=True)
    def layer(x, w, b, y):
        numba_kernels.dense_forward(x, w, b, "relu", y)

- Arrays are C-contiguous, float32 or float64, one dtype for the call (int64 for indices). Where they are
  not, compiling fails with a line that names the argument. Shapes are not compared: they must be as stated.
- An optional array may be None. An activation is its name, in quotes, or its code as an int.
- Outputs are overwritten, states updated, nothing is allocated, raised or returned. Nothing written may
  overlap anything else. Calls on separate arrays may run in several threads at once.
- Bits are those of the backend ``numba``, provided BLAS, which multiplies the matrices, runs on one thread
  as it does there: ``with numba_kernels.one_thread(): ...`` around the call from Python sees to it.

The body of a kernel is compiled on a machine once, as that of the backend, and kept beside fastae. With
``cache=True`` your function is kept as well, the kernels in it included: a second process compiles nothing.
Numba knows nothing of what is inside: when fastae is replaced by another version, delete your cache (its
``*.nbi`` files), or your function goes on with the kernels it was compiled with.

From Python the functions can be called too; `fastae.ops` checks what these do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Kernel

# isort: split
from fastae.kernels import jitted  # an ImportError names the extra
from fastae.kernels.jitted_runtime import OPTIONS, REALS, one_thread

# isort: split
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array

__all__ = ["one_thread"]
__all__ += KERNELS


# What is absent, in LLVM's terms --------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def _nothing(typing, like, ndim):
    """An array of `like`'s dtype with all of its dims 0, which takes no memory."""
    signature = types.Array(like.dtype, ndim.literal_value, "C")(like, ndim)

    def generate(context, builder, signature, arguments):
        kind = signature.return_type
        result = context.make_array(kind)(context, builder)
        zero = context.get_constant(types.intp, 0)
        itemsize = context.get_constant(types.intp, kind.dtype.bitwidth // 8)
        start = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        populate_array(result, start, [zero] * kind.ndim, [itemsize] * kind.ndim, itemsize, meminfo=None)
        return result._getvalue()

    return signature, generate


# Comparing with the row ------------------------------------------------------------------------------------


def _is_absent(given: Any) -> bool:
    return isinstance(given, types.NoneType) or given is None


def _wrong(array: Array, given: Any, real: Any) -> str | None:
    """What an array should have been."""
    dtype = types.int64 if array.kind == "index" else real
    if not isinstance(given, types.Array) or given.ndim != len(array.dims) or given.dtype != dtype:
        return f"a {len(array.dims)}-D array ({', '.join(array.dims)}) of {dtype}"
    if given.layout != "C" or not given.aligned:
        return "a C-contiguous, aligned array"
    return "a writable array" if array.written and not given.mutable else None


def _choose(row: Kernel, given: Sequence[Any]) -> Callable[..., None]:
    """Compare the types of a call with the row; return what the call is compiled to."""
    first = next(i for i, a in enumerate(row.arguments) if isinstance(a, Array) and a.kind == "real")
    real = getattr(given[first], "dtype", None)
    if real not in REALS.values():
        name = row.arguments[first].name
        raise TypingError(
            f"{row.name}: {name}: expected an array of float32 or float64, given {given[first]}"
        )
    passed = []
    for argument, kind in zip(row.arguments, given, strict=True):
        name, text, wrong = argument.name, argument.name, None
        if isinstance(argument, Array):
            if argument.optional and _is_absent(kind):
                text = f"nothing({row.arguments[first].name}, {len(argument.dims)})"
            else:
                wrong = _wrong(argument, kind, real)
        elif argument.kind == "activation" and isinstance(kind, types.StringLiteral):
            if kind.literal_value in ACTIVATIONS:
                text = str(ACTIVATIONS[kind.literal_value].code)
            else:
                wrong, kind = f"one of {', '.join(ACTIVATIONS)}", repr(kind.literal_value)
        elif argument.kind == "real":
            text = f"float64({name})"
            wrong = None if isinstance(kind, (types.Float, types.Integer)) else "a real number"
        else:
            text = f"int64({name})"
            name_or_int = "a name in quotes or its code" if argument.kind == "activation" else "an int"
            wrong = None if isinstance(kind, types.Integer) else name_or_int
        if wrong:
            raise TypingError(f"{row.name}: {name}: expected {wrong}, given {kind}")
        passed.append(text)
    char = next(char for char, known in REALS.items() if known == real)
    names = {
        "body": jitted._body(row.name, char),
        "nothing": _nothing,
        "float64": types.float64,
        "int64": types.int64,
    }
    text = f"def {row.name}({_list(row)}):\n    body({', '.join(passed)}, 0, 1)\n"
    exec(compile(text, f"<fastae.numba_kernels.{row.name}>", "exec"), names)
    return names[row.name]


def _list(row: Kernel) -> str:
    return ", ".join(a.name for a in row.arguments)


# The function of a row -------------------------------------------------------------------------------------


def _from_python(row: Kernel, given: Sequence[Any]) -> None:
    """Call the array form, which takes codes and empty arrays."""
    dtype = next(g.dtype for g in given if isinstance(g, np.ndarray) and g.dtype.kind == "f")
    arguments = []
    for argument, value in zip(row.arguments, given, strict=True):
        if isinstance(argument, Array):
            value = np.empty(0, dtype) if value is None and argument.optional else value
        elif isinstance(value, str) and argument.kind == "activation":
            if value not in ACTIVATIONS:
                raise ValueError(
                    f"{row.name}: {argument.name}: expected one of {', '.join(ACTIVATIONS)}, given {value!r}"
                )
            value = ACTIVATIONS[value].code
        arguments.append(value)
    getattr(jitted, row.name)(*arguments)


def _document(row: Kernel) -> str:
    lines = [row.summary, "", "::", "", *(f"    {part}" for part in row.formula.split("; "))]
    lines += ["", "Parameters", "----------"]
    roles = {
        "in": "Input",
        "saved": "Saved from the forward call",
        "work": "Room to work in, whose content means nothing afterwards",
        "state": "Updated in place",
        "out": "Overwritten with the result",
    }
    for a in row.arguments:
        if isinstance(a, Array):
            dtype = "int64" if a.kind == "index" else "float32 or float64"
            dims = f"({', '.join(a.dims)}{',' if len(a.dims) == 1 else ''})"
            lines += [f"{a.name} : {dtype} array, shape {dims}{', or None' if a.optional else ''}"]
            lines += [f"    {roles[a.role]}."]
        else:
            kind = {"activation": "str or int", "int": "int", "real": "float"}[a.kind]
            lines += [f"{a.name} : {kind}", f"    {a.doc[:1].upper()}{a.doc[1:]}."]
    lines += ["", "Notes", "-----", f"Source: {row.source}."]
    return "\n".join(lines) + "\n"


def _function(row: Kernel) -> Callable[..., None]:
    """Make the function of a row, and teach Numba what a call of it is compiled to."""
    arguments = _list(row)
    names: dict[str, Any] = {"__name__": __name__, "run": _from_python, "choose": _choose, "row": row}
    text = (
        f"def {row.name}({arguments}):\n    run(row, ({arguments},))\n"
        f"def typed({arguments}):\n    return choose(row, ({arguments},))\n"
    )
    exec(compile(text, f"<fastae.numba_kernels.{row.name}>", "exec"), names)
    function: Callable[..., None] = names[row.name]
    function.__doc__ = _document(row)
    overload(function, jit_options=OPTIONS, prefer_literal=True)(names["typed"])
    return function


globals().update({name: _function(row) for name, row in KERNELS.items()})

"""The C functions of fastae for ctypes and cffi, and their addresses for any other caller.

Every function of ``fastae.h`` is here under its name without ``fastae_``, as a ctypes function with argument
types from the table of kernels; ``fastae.h`` (`fastae.get_include`) says what each computes and expects. They
are the checked ones: an error code is raised as ValueError before anything is written. ctypes gives up the
GIL while they run.

Arrays may be NumPy arrays (C-contiguous, of the function's dtype, writeable where it writes), ctypes pointers
and arrays, or addresses; None where an array may be absent.

>>> import ctypes
>>> import numpy as np
>>> from fastae import ctypes_kernels as ck
>>> x, w, y = np.ones((2, 3), "f4"), np.ones((3, 4), "f4"), np.empty((2, 4), "f4")
>>> ck.dense_forward_f32(x, w, None, 1, y, 2, 3, 4)
0
>>> room = ctypes.c_int64()
>>> ck.dense_backward_workspace_size(20, 75, 225, room), room.value
(0, 1500)

With cffi::

    ffi.cdef(ck.cdef())
    api = ffi.cast("const fastae_api *", ck.api_address())
    api.kernels.dense_forward_f32(...)  # or api.checked
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastae import cython_kernels
from fastae.kernels import c_interface, table

__all__ = ["Plan", "address", "api_address", "cdef", "error_text", "function", "signature"]

_FUNCTIONS = {f.name: f for f in c_interface.functions(table)}
_ELEMENTS: dict[str, tuple[Any, str]] = {
    "float": (ctypes.c_float, "float32"),
    "double": (ctypes.c_double, "float64"),
    "int64_t": (ctypes.c_int64, "int64"),
}


class Plan(ctypes.Structure):
    """An open plan, as ``fastae_plan`` of fastae.h: filled by ``plan_open``, and then to be read alone."""

    _fields_ = [
        (name, ctypes.c_void_p if name == "bytes" else ctypes.c_int64) for name, _ in c_interface.PLAN
    ]


class _Block:
    """The argument type of what a plan's functions read or write: arrays, buffers, addresses."""

    @staticmethod
    def from_param(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if not value.flags.c_contiguous:
                raise TypeError(f"expected a C-contiguous array, given one of strides {value.strides}")
            return ctypes.c_void_p(value.ctypes.data)
        if isinstance(value, bytearray):
            value = (ctypes.c_char * len(value)).from_buffer(value)
        return ctypes.c_void_p.from_param(value)


_PLAN = ctypes.POINTER(Plan)
_PLAIN: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "error": (ctypes.c_char_p, (ctypes.c_int,)),
    "plan_open": (ctypes.c_int, (_Block, ctypes.c_int64, _PLAN)),
    "plan_load": (ctypes.c_int, (_PLAN, _Block)),
    "plan_store": (ctypes.c_int, (_PLAN, _Block, _Block)),
    "run": (ctypes.c_int, (_PLAN, _Block, ctypes.c_int, ctypes.c_int64, *[_Block] * 4)),
}


def address(name: str, *, checked: bool = False) -> int:
    """Address of a function of fastae.h in this process.

    Parameters
    ----------
    name : str
        Without "fastae_": "dense_forward_f32", "dense_backward_workspace_size", "plan_open", "run", ...
    checked : bool
        The one that checks its arguments and returns an error code, or the one that does not.

    Raises
    ------
    ValueError
        When there is no such function.
    """
    found: tuple[int, int] | None = cython_kernels.ADDRESSES.get(name)
    if found is None:
        raise ValueError(f"name: expected a function of fastae.h without 'fastae_', given {name!r}")
    return found[checked]


def api_address() -> int:
    """Address of the ``fastae_api`` struct that the capsule ``fastae._c_api`` holds."""
    return cython_kernels.API_ADDRESS


def signature(name: str) -> str:
    """The declaration of a kernel's function in C, ``int dense_forward_f32(const float *x, ...)``.

    Raises
    ------
    ValueError
        When there is no such function.
    """
    if name not in _FUNCTIONS:
        raise ValueError(f"name: expected a kernel of fastae.h without 'fastae_', given {name!r}")
    return _FUNCTIONS[name].declaration


def cdef() -> str:
    """All structs of fastae.h as plain C, for ``ffi.cdef`` of cffi."""
    text = f"{c_interface.plan_struct()}\n\n{c_interface.structs(table)}\n"
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def error_text(code: int) -> str:
    """The text of an error code."""
    text: bytes = function("error")(code)
    return text.decode()


def _array_type(name: str, ctype: str, optional: bool) -> type:
    """A ctypes argument type: what it takes for an array of that C type, and what it refuses."""
    written = not ctype.startswith("const ")
    element, dtype = _ELEMENTS[ctype.removeprefix("const ").removesuffix(" *")]

    def from_param(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if (
                value.dtype != dtype
                or not value.flags.c_contiguous
                or (written and not value.flags.writeable)
            ):
                kind = f"a C-contiguous{', writeable' if written else ''} array of {dtype}"
                raise TypeError(
                    f"{name}: expected {kind}, given one of {value.dtype}, "
                    f"strides {value.strides}, writeable={value.flags.writeable}"
                )
            return ctypes.c_void_p(value.ctypes.data)
        if value is None and not optional:
            raise TypeError(f"{name}: expected an array, given None")
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return ctypes.c_void_p(value)
        return ctypes.POINTER(element).from_param(value)

    return type(name, (), {"from_param": staticmethod(from_param)})


@cache
def function(name: str, *, checked: bool = True) -> Callable[..., Any]:
    """A function of fastae.h as a ctypes function object.

    Parameters
    ----------
    name : str
        Without "fastae_".
    checked : bool
        Whether it checks its arguments. Those that do not are undefined behaviour on wrong ones.

    Returns
    -------
    ctypes function
        Raises ValueError where the C function returns an error code.

    Raises
    ------
    ValueError
        When there is no such function.
    """
    where = address(name, checked=checked)
    if name in _PLAIN:
        result, types = _PLAIN[name]
        made = ctypes.CFUNCTYPE(result, *(ctypes.c_void_p if t is _Block else t for t in types))(where)
        made.argtypes = list(types)
        if result is not ctypes.c_int:
            return made
    else:
        f = _FUNCTIONS[name]
        plain: dict[str, Any] = {"double": ctypes.c_double, "int64_t": ctypes.c_int64}
        bare = (plain.get(ctype, ctypes.c_void_p) for ctype, _ in f.parameters)
        made = ctypes.CFUNCTYPE(ctypes.c_int, *bare)(where)
        made.argtypes = [
            plain.get(ctype) or _array_type(argument, ctype, argument in f.optional)
            for ctype, argument in f.parameters
        ]

    def raise_error(code: int, *_: Any) -> int:
        if code:
            raise ValueError(f"{name}: {error_text(code)}")
        return code

    made.errcheck = raise_error  # type: ignore[assignment]
    made.__name__ = name  # type: ignore[attr-defined]
    return made


def __getattr__(name: str) -> Any:
    if name not in cython_kernels.ADDRESSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return function(name)


def __dir__() -> list[str]:
    return sorted([*__all__, *cython_kernels.ADDRESSES])

"""What the calls of kernels in compiled code have in common: their types are compared with the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from fastae.kernels.jitted_runtime import REALS
from fastae.kernels.table import ACTIVATIONS, Array, Kernel

__all__ = ["compare", "document", "from_python", "is_absent", "listed", "make", "taught", "wrong_memory"]


def listed(row: Kernel) -> str:
    """Write the parameters of a row."""
    return ", ".join(a.name for a in row.arguments)


def is_absent(given: Any) -> bool:
    """Whether the type of an argument is that of None."""
    return given is None or isinstance(given, types.NoneType)


def wrong_memory(given: Any, *, written: bool) -> str | None:
    """Say what an array should have been whose elements a kernel cannot reach."""
    if given.layout != "C" or not given.aligned:
        return "a C-contiguous, aligned array"
    return "a writable array" if written and not given.mutable else None


def _wrong(array: Array, given: Any, real: Any) -> str | None:
    """Say what an array should have been."""
    dtype = types.int64 if array.kind == "index" else real
    if not isinstance(given, types.Array) or given.ndim != len(array.dims) or given.dtype != dtype:
        return f"a {len(array.dims)}-D array ({', '.join(array.dims)}) of {dtype}"
    return wrong_memory(given, written=array.written)


def compare(row: Kernel, given: Sequence[Any], absent: Callable[[Array], str]) -> tuple[Any, list[str]]:
    """Compare the types of a call with the row.

    Parameters
    ----------
    row : Kernel
    given : sequence of numba types
        Of the arguments, in the order of the row.
    absent : callable
        Writes what is passed for an optional array that is None.

    Returns
    -------
    (numba type, list of str)
        float32 or float64, and what is passed for each argument.

    Raises
    ------
    TypingError
        Names the argument that is wrong, what was expected and what was given.
    """
    first = next(i for i, a in enumerate(row.arguments) if isinstance(a, Array) and a.kind == "real")
    real = getattr(given[first], "dtype", None)
    if real not in REALS.values():
        where = f"{row.name}: {row.arguments[first].name}"
        raise TypingError(f"{where}: expected an array of float32 or float64, given {given[first]}")
    passed = []
    for argument, kind in zip(row.arguments, given, strict=True):
        name, text, wrong = argument.name, argument.name, None
        if isinstance(argument, Array):
            if argument.optional and is_absent(kind):
                text = absent(argument)
            else:
                wrong = _wrong(argument, kind, real)
        elif argument.kind == "activation" and isinstance(kind, types.StringLiteral):
            if kind.literal_value in ACTIVATIONS:
                text = str(ACTIVATIONS[kind.literal_value].code)
            else:
                wrong, kind = f"one of {', '.join(ACTIVATIONS)}", repr(kind.literal_value)
        elif argument.kind == "real":
            text = f"float64({name})"
            wrong = None if isinstance(kind, types.Float | types.Integer) else "a real number"
        else:
            text = f"int64({name})"
            name_or_int = "a name in quotes or its code" if argument.kind == "activation" else "an int"
            wrong = None if isinstance(kind, types.Integer) else name_or_int
        if wrong:
            raise TypingError(f"{row.name}: {name}: expected {wrong}, given {kind}")
        passed.append(text)
    return real, passed


def make(name: str, text: str, names: dict[str, Any]) -> Callable[..., Any]:
    """Return the function of this name that a text defines."""
    exec(compile(text, f"<fastae.numba_kernels: {name}>", "exec"), names)
    made: Callable[..., Any] = names[name]
    return made


def taught(
    name: str,
    arguments: str,
    choose: Callable[[tuple[Any, ...]], Callable[..., Any]],
    run: Callable[[tuple[Any, ...]], Any],
    text: str,
    home: str,
    options: Mapping[str, Any],
) -> Callable[..., Any]:
    """Make a function that Python runs, and teach Numba what a call of it is compiled to.

    Parameters
    ----------
    name, arguments, text, home : str
        Its name, parameter list, docstring and module.
    choose : callable
        Takes the types of the arguments, and returns what is compiled.
    run : callable
        Takes the arguments, when Python calls.
    options : mapping
        Of the compilation.
    """
    names: dict[str, Any] = {"__name__": home, "run": run, "choose": choose}
    packed = f"({arguments},)"
    function = make(
        name,
        f"def {name}({arguments}):\n    return run({packed})\n"
        f"def typed({arguments}):\n    return choose({packed})\n",
        names,
    )
    function.__doc__ = text
    overload(function, jit_options=dict(options), prefer_literal=True)(names["typed"])
    return function


def from_python(module: ModuleType, row: Kernel, given: Sequence[Any]) -> None:
    """Call the kernel of a backend, which takes codes and empty arrays."""
    for a, value in zip(row.arguments, given, strict=True):
        if not isinstance(a, Array) or (a.optional and value is None):
            continue
        wanted = ("int64",) if a.kind == "index" else ("float32", "float64")
        if not isinstance(value, np.ndarray) or value.dtype.name not in wanted:
            kind = f"one of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(
                f"{row.name}: {a.name}: expected an ndarray of {' or '.join(wanted)}, given {kind}"
            )
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
    getattr(module, row.name)(*arguments)


def document(row: Kernel) -> str:
    """Write the docstring of a kernel's function, in numpydoc form."""
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

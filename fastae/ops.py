"""The checked functional interface: one function for every kernel of the table.

::

    ops.dense_forward(x, w, b, activation="relu")
      │   convert the constants
      │   check each array: type, dtype, memory layout, rank, and its shape against the dims known so far
      │   derive the remaining dims; check indices and counts, and that what belongs together is there
      │   allocate the outputs, or check those given
      │   check that nothing written shares memory with anything else
      └─> the kernel of the backend in effect

Everything is checked before anything is written: a call that raises has changed nothing. The functions are
made from the rows of :mod:`fastae.kernels.table`, each when it is first asked for, and follow the same rules:

- Arguments are the row's inputs, saved tensors and states, then its constants, then ``out`` and ``backend``.
- Arrays are ndarrays, C-contiguous, aligned, in native byte order, float32 or float64, one dtype for the
  whole call (int64 for indices). Nothing is converted, nothing copied.
- An array of another library will do where its memory is the CPU's and is all of this: one with
  ``__dlpack__`` (PyTorch, JAX), with ``__array_interface__`` or with the buffer protocol (memoryview,
  array.array, ctypes). As a state or as ``out`` it must be writeable too, which by DLPack it is from NumPy
  2.1 on, and what is returned for it is an ndarray on its memory.
- ``out`` takes the array to write the result to, or a tuple of arrays where there are several results; None
  in the tuple leaves an optional result out. Without ``out`` the results are allocated.
- States are updated in place.
- What is returned is the outputs, or the states where there are no outputs: an array if there is one, a
  tuple if there are several.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from fastae import arrays
from fastae.backend import Backend, resolve
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Constant, Kernel

__all__ = list(KERNELS)


def __getattr__(name: str) -> Callable[..., Any]:
    row = KERNELS.get(name)
    if row is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Of two threads that ask at once, both get the function of the first.
    function: Callable[..., Any] = globals().setdefault(name, _function(row))
    return function


def __dir__() -> list[str]:
    return __all__


# The function of a row ------------------------------------------------------------------------------------


def _function(row: Kernel) -> Callable[..., Any]:
    """Make a function with the parameters of the row, which puts them where the kernel wants them.

    It is compiled from text, as dataclasses do it: Python then binds the arguments itself, which is faster
    than ``*args`` and a Signature, and the signature is real.
    """
    passed = [_passed(row, a) for a in row.arguments]
    dims = [f"{d!r}: {d}" for d in (*row.free_dims, *_numerals(row))]
    out = "out" if row.outputs else "None"
    text = (
        f"def {row.name}({', '.join(_parameters(row))}) -> {_return_type(row)}:\n"
        f"    return run([{', '.join(passed)}], {{{', '.join(dims)}}}, {out}, backend)\n"
    )
    names: dict[str, Any] = {
        "__name__": __name__,
        "np": np,
        "Backend": Backend,
        "run": _Call(row).run,
        "pick": _Picker(row.name),
    }
    exec(compile(text, f"<fastae.ops.{row.name}>", "exec"), names)
    function: Callable[..., Any] = names[row.name]
    function.__doc__ = _document(row)
    return function


def _together(row: Kernel) -> dict[str, list[Constant]]:
    """Group the constants by the parameter that gives them: most by themselves, some two or four in one."""
    groups: dict[str, list[Constant]] = {}
    for constant in row.constants:
        groups.setdefault(constant.part_of or constant.name, []).append(constant)
    return groups


def _passed(row: Kernel, argument: Array | Constant) -> str:
    """Write what is passed in the place of an argument."""
    if isinstance(argument, Array):
        return argument.name if argument in row.given else "None"
    if not argument.part_of:
        return argument.name
    group = _together(row)[argument.part_of]
    return f"pick({argument.part_of!r}, {argument.part_of}, {group.index(argument)}, {len(group)})"


class _Picker:
    """Takes one of several constants out of the argument that gives them all."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel

    def __call__(self, name: str, value: Any, place: int, count: int) -> Any:
        if not isinstance(value, (tuple, list)):
            return value
        if len(value) == count:
            return value[place]
        if len(value) == 2 and count == 4:  # (height, width) of what has four sides
            return value[place % 2]
        sizes = "2 or 4" if count == 4 else str(count)
        raise ValueError(f"{self.kernel}: {name}: expected one number or {sizes}, given {len(value)}")


def _parameters(row: Kernel) -> list[str]:
    """Write the parameter list. Free dims, and what is required after an optional array, are keyword-only."""
    required: list[str] = []
    defaulted: list[str] = []
    keyword: list[str] = []
    for array in row.given:
        text = f"{array.name}: {_type(array)}"
        if array.optional:
            defaulted.append(f"{text} = None")
        else:
            (keyword if defaulted else required).append(text)
    for name, constants in _together(row).items():
        constant = constants[0]
        text = f"{name}: {_type(constant)}"
        if constant.part_of:
            text += f" | tuple[{', '.join(['int'] * len(constants))}]"
        if constant.default is not None:
            defaulted.append(f"{text} = {constant.default!r}")
        else:
            (keyword if defaulted else required).append(text)
    keyword += [f"{dim}: int" for dim in row.free_dims]
    last = [f"out: {_return_type(row)} | None = None"] if row.outputs else []
    last += ["backend: str | Backend | None = None"]
    return [*required, *defaulted, *(["*", *keyword] if keyword else []), *last]


def _type(argument: Array | Constant) -> str:
    if isinstance(argument, Array):
        return "np.ndarray | None" if argument.optional else "np.ndarray"
    return {"activation": "str", "int": "int", "real": "float"}[argument.kind]


def _results(row: Kernel) -> tuple[Array, ...]:
    """List what a call returns."""
    return row.outputs or tuple(a for a in row.given if a.role == "state")


def _return_type(row: Kernel) -> str:
    types = [_type(a) for a in _results(row)]
    return types[0] if len(types) == 1 else f"tuple[{', '.join(types)}]"


def _numerals(row: Kernel) -> list[str]:
    """List the dims of fixed size, which are named by it."""
    return list(dict.fromkeys(d for a in row.arrays for d in a.dims if d.isdigit()))


# The call -------------------------------------------------------------------------------------------------

_FLOAT32: np.dtype = np.dtype(np.float32)
_FLOAT64: np.dtype = np.dtype(np.float64)
_INDEX: np.dtype = np.dtype(np.int64)
_REALS = {_FLOAT32: _FLOAT32, _FLOAT64: _FLOAT64}
_ABSENT = {dtype: np.empty(0, dtype) for dtype in (*_REALS, _INDEX)}

#: Backends that have no use for NumPy's ufuncs, and so nothing to silence.
_SILENT = frozenset(("scalar", "numba", "cython"))

# Bits of ndarray.flags.num: one look instead of three.
_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400


class _Slot:
    """An array argument with what the call asks of it again and again."""

    __slots__ = ("dims", "dtype", "flags", "label", "name", "ndim", "optional", "place", "role")

    def __init__(self, row: Kernel, array: Array) -> None:
        self.name = array.name
        self.dims = array.dims
        self.ndim = len(array.dims)
        self.role = array.role
        self.optional = array.optional
        self.dtype = _INDEX if array.kind == "index" else None  # None: that of the call
        self.flags = _CONTIGUOUS | _ALIGNED | (_WRITEABLE if array.written else 0)
        self.place = row.arguments.index(array)
        # How messages name it: an output is passed as out, or in the tuple out.
        self.label = array.name if array.role != "out" else f"out ({array.name})"


class _Call:
    """What stands between a function of this module and its kernel.

    Whatever depends on the row alone is worked out here, once, so that a call takes microseconds.
    """

    def __init__(self, row: Kernel) -> None:
        self.row = row
        self.name = row.name
        slots = {a.name: _Slot(row, a) for a in row.arrays}
        self.slots = tuple(slots.values())
        self.given = tuple(slots[a.name] for a in row.given)
        self.outputs = tuple(slots[a.name] for a in row.outputs)
        self.workspaces = tuple(s for s in self.slots if s.role == "work")
        self.states = tuple(s for s in self.slots if s.role == "state")
        # Of fixed size they count something; else they are rows of the first array.
        self.counts = tuple(s for s in self.given if s.dtype is _INDEX and s.dims[0].isdigit())
        self.indices = tuple(s for s in self.given if s.dtype is _INDEX and not s.dims[0].isdigit())
        self.optional = tuple(s for s in self.slots if s.optional)
        self.together = tuple(s for s in self.states if s.optional)
        self.at_least = tuple(row.at_least.items())
        self.saved = tuple(s for s in self.given if s.role == "saved" and s.optional)
        self.constants = tuple((row.arguments.index(c), c, _CONVERT[c.kind]) for c in row.constants)
        self.free_dims = tuple(Constant(dim, "int", minimum=1) for dim in row.free_dims)
        self.result = operator.itemgetter(*(slots[a.name].place for a in _results(row)))

    def run(self, arguments: list[Any], dims: dict[str, int], out: Any, backend: Any) -> Any:
        """Check, allocate, call.

        ``arguments`` are in the order of the kernel, with None for outputs and workspaces; what is absent
        stays None until the end. ``dims`` has those that are known before any array is looked at.
        """
        chosen = resolve(backend)
        first = arguments[self.given[0].place]
        if type(first) is not np.ndarray:
            first = arguments[self.given[0].place] = self.view(self.given[0], first)
        dtype = _REALS.get(first.dtype) if type(first) is np.ndarray else None
        if dtype is None:
            self.refuse(self.given[0], first, None, dims)

        for place, constant, convert in self.constants:
            arguments[place] = convert(self.name, constant, arguments[place], dtype)
        for dim in self.free_dims:
            dims[dim.name] = _integer(self.name, dim, dims[dim.name], dtype)
        for slot in self.given:
            self.check(slot, arguments, dtype, dims)
        if self.row.derived or self.row.demands:
            self.derive(arguments, dtype, dims)
        for name, least in self.at_least:
            self.check_least(name, least, dims)
        for slot in self.indices:
            self.check_range(slot, arguments[slot.place], first)
        for slot in self.counts:
            self.check_count(slot, arguments[slot.place])
        for slot in self.together:
            self.check_together(slot, arguments)
        for slot in self.saved:
            self.check_saved(slot, arguments)

        written = self.states
        if out is None:
            for slot in self.outputs:
                arguments[slot.place] = self.allocate(slot, [dims[d] for d in slot.dims], dtype)
        else:
            written += self.outputs
            for slot, array in zip(self.outputs, self.unpack(out), strict=True):
                arguments[slot.place] = array
                self.check(slot, arguments, dtype, dims)
        if written:
            self.check_apart(written, arguments)

        result = self.result(arguments)
        for slot in self.workspaces:
            arguments[slot.place] = self.allocate(slot, [dims[d] for d in slot.dims], dtype)
        for slot in self.optional:
            if arguments[slot.place] is None:
                arguments[slot.place] = _ABSENT[slot.dtype or dtype]
        if chosen.prepare is not None:
            for slot in self.slots:
                arguments[slot.place] = chosen.prepare(arguments[slot.place])
        if chosen.name in _SILENT:
            chosen.kernels[self.name](*arguments)
        else:  # numpy would warn of overflow where these are silent, and one of another package may
            with np.errstate(all="ignore"):
                chosen.kernels[self.name](*arguments)
        return result

    def view(self, slot: _Slot, value: Any) -> Any:
        """Return another library's array as an ndarray; what is none goes on, to be refused."""
        if isinstance(value, np.ndarray):
            return value  # of a subclass, which may mean more than its memory, as a mask
        array = arrays.view(value, f"{self.name}: {slot.label}")
        return value if array is None else array

    def check(self, slot: _Slot, arguments: list[Any], dtype: np.dtype, dims: dict[str, int]) -> None:
        """Refuse an array that is not what the slot wants.

        The dims it is the first to have go into ``dims``; another library's array becomes an ndarray.
        """
        array = arguments[slot.place]
        if (
            type(array) is np.ndarray
            and array.flags.num & slot.flags == slot.flags
            and array.dtype == (slot.dtype or dtype)
            and len(shape := array.shape) == slot.ndim
            and tuple(map(dims.setdefault, slot.dims, shape)) == shape
            and 0 not in shape
        ):
            return
        if array is None and slot.optional:
            return
        arguments[slot.place] = seen = self.view(slot, array)
        if seen is array:
            self.refuse(slot, array, dtype, dims)
        self.check(slot, arguments, dtype, dims)

    def refuse(self, slot: _Slot, array: Any, dtype: np.dtype | None, dims: Mapping[str, int]) -> NoReturn:
        """Say what is wrong with an array that was not accepted."""
        name = slot.name
        where = f"{self.name}: {slot.label}: expected"
        if not isinstance(array, np.ndarray):
            hint = "" if array is None or slot.flags & _WRITEABLE else f" (np.asarray({name}) makes one)"
            raise TypeError(f"{where} {arrays.OFFERS}, given {type(array).__name__}{hint}")
        if type(array) is not np.ndarray:
            raise TypeError(
                f"{where} a plain ndarray, given {type(array).__name__} "
                f"(np.asarray({name}) makes one, without what the subclass adds)"
            )
        # Sizes are given for the dims that disagree; with another rank, for all that are known.
        actual = dict(zip(slot.dims, array.shape, strict=True)) if array.ndim == slot.ndim else {}
        agree = [d.isdigit() or dims.get(d, actual.get(d)) == actual.get(d) for d in slot.dims]
        shape = ", ".join(d if fits else f"{d}={dims[d]}" for d, fits in zip(slot.dims, agree, strict=True))
        shape = f"shape ({shape}{',' if slot.ndim == 1 else ''})"
        wanted = (slot.dtype,) if slot.dtype else (dtype,) if dtype else tuple(_REALS)
        if array.dtype not in wanted:
            expected = " or ".join(map(str, wanted))
            if array.dtype.kind in "fi" and array.dtype.newbyteorder("=") in wanted:
                expected += " in native byte order"
            elif len(wanted) == 1 and slot.dtype is None:
                expected += f" as {self.given[0].name} has"
            raise TypeError(f"{where} dtype {expected}, given {array.dtype}")
        if array.ndim != slot.ndim:
            raise ValueError(f"{where} {slot.ndim}-D, {shape}, given {array.ndim}-D, shape {array.shape}")
        if array.size == 0:
            raise ValueError(f"{where} {shape} with nothing empty, given shape {array.shape}")
        if any(dims.get(d, length) != length for d, length in actual.items()):
            raise ValueError(f"{where} {shape}, given shape {array.shape}")
        if not array.flags.c_contiguous:
            hint = "" if slot.flags & _WRITEABLE else f" (np.ascontiguousarray({name}) makes one)"
            raise ValueError(f"{where} a C-contiguous array, given strides {array.strides}{hint}")
        if not array.flags.aligned:
            raise ValueError(f"{where} an aligned array, given one at an odd address for {array.dtype}")
        raise ValueError(f"{where} a writeable array, given a read-only one")

    def derive(self, arguments: list[Any], dtype: np.dtype, dims: dict[str, int]) -> None:
        """Put the derived dims into ``dims``, or compare them with the array that has them."""
        known = dims | {c.name: arguments[place] for place, c, _ in self.constants}
        found = self.row.derive(
            {name: value for name, value in known.items() if name not in self.row.derived}
        )
        for dim, length in found.items():
            if dims.setdefault(dim, length) != length:
                dims[dim] = length
                slot = next(s for s in self.given if dim in s.dims and arguments[s.place] is not None)
                self.refuse(slot, arguments[slot.place], dtype, dims)

    def check_range(self, slot: _Slot, array: np.ndarray, first: np.ndarray) -> None:
        """Refuse indices that are not rows of the first array."""
        if array is None:
            return
        if array.min() < 0 or array.max() >= len(first):
            wrong = array[(array < 0) | (array >= len(first))][0]
            raise ValueError(
                f"{self.name}: {slot.name}: expected indices from 0 to {len(first) - 1}, "
                f"the rows of {self.given[0].name}, given {wrong}"
            )

    def check_count(self, slot: _Slot, array: np.ndarray) -> None:
        """Refuse counts below 0."""
        if array.min() < 0:
            raise ValueError(f"{self.name}: {slot.name}: expected counts from 0, given {array.min()}")

    def allocate(self, slot: _Slot, shape: list[int], dtype: Any) -> np.ndarray:
        """Make an array; a ValueError with its shape where no memory could hold it."""
        try:
            return np.empty(shape, dtype)
        except ValueError:  # NumPy says that it is too big, not what
            raise ValueError(
                f"{self.name}: {slot.name}: expected a size in bytes below 2**63, given shape {tuple(shape)}"
            ) from None

    def check_least(self, dim: str, least: int, dims: Mapping[str, int]) -> None:
        """Refuse sizes for which the result has no meaning, as a variance of one row."""
        if dims[dim] < least:
            slot = next(s for s in self.given if dim in s.dims)
            raise ValueError(
                f"{self.name}: {slot.name}: expected shape ({', '.join(slot.dims)}) with {dim} >= {least}, "
                f"given {dim}={dims[dim]}"
            )

    def check_together(self, slot: _Slot, arguments: list[Any]) -> None:
        """Refuse some of the optional states without the others: they are of one parameter."""
        absent, first = arguments[slot.place] is None, self.together[0]
        if absent != (arguments[first.place] is None):
            missing, present = (slot, first) if absent else (first, slot)
            raise TypeError(
                f"{self.name}: {missing.name}: expected an ndarray with {present.name}, given None"
            )

    def check_saved(self, slot: _Slot, arguments: list[Any]) -> None:
        """Refuse to go without a saved output that the activation's derivative is written in."""
        for place, constant, _ in self.constants:
            if constant.kind == "activation" and arguments[place] and arguments[slot.place] is None:
                raise TypeError(
                    f"{self.name}: {slot.name}: expected an ndarray with this activation, given None"
                )

    def check_apart(self, written: tuple[_Slot, ...], arguments: list[Any]) -> None:
        """Refuse written arrays that share memory. Bounds are enough: contiguous arrays fill theirs."""
        for slot in written:
            array = arguments[slot.place]
            for other in self.slots if array is not None else ():
                second = arguments[other.place]
                if other is not slot and second is not None and np.may_share_memory(array, second):
                    raise ValueError(
                        f"{self.name}: {slot.label}: expected memory of its own, "
                        f"given an array that overlaps {other.label}"
                    )

    def unpack(self, out: Any) -> tuple[Any, ...]:
        """Sort out the outputs in ``out``."""
        count = len(self.outputs)
        if count == 1:
            return (out,)
        names = ", ".join(slot.name for slot in self.outputs)
        if type(out) is not tuple:
            raise TypeError(f"{self.name}: out: expected a tuple ({names}), given {type(out).__name__}")
        if len(out) != count:
            raise ValueError(f"{self.name}: out: expected {count} arrays ({names}), given {len(out)}")
        return out


# Constants ------------------------------------------------------------------------------------------------


def _activation(kernel: str, constant: Constant, value: Any, dtype: np.dtype) -> int:
    if not isinstance(value, str):
        raise TypeError(f"{kernel}: {constant.name}: expected a name, given {type(value).__name__}")
    if value not in ACTIVATIONS:
        raise ValueError(
            f"{kernel}: {constant.name}: expected one of {', '.join(ACTIVATIONS)}, given {value!r}"
        )
    return ACTIVATIONS[value].code


def _integer(kernel: str, constant: Constant, value: Any, dtype: np.dtype) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{kernel}: {constant.name}: expected an int, given {type(value).__name__}")
    return _within(kernel, constant, int(value), np.iinfo(_INDEX).max)


def _real(kernel: str, constant: Constant, value: Any, dtype: np.dtype) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{kernel}: {constant.name}: expected a real number, given {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    # Beyond the largest of the dtype it would be infinite in the kernel.
    return _within(kernel, constant, number, _LARGEST[dtype])


def _within(kernel: str, constant: Constant, value: Any, largest: float) -> Any:
    least, above, most, below = constant.minimum, constant.above, constant.maximum, constant.below
    if (
        -largest <= value <= largest  # so NaN does not pass
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        return value
    low = f"> {above:g}" if above is not None else f">= {-largest if least is None else least:g}"
    high = f"< {below:g}" if below is not None else f"<= {largest if most is None else most:g}"
    raise ValueError(f"{kernel}: {constant.name}: expected a number {low} and {high}, given {value}")


_LARGEST = {dtype: float(np.finfo(dtype).max) for dtype in _REALS}
_CONVERT: dict[str, Callable[[str, Constant, Any, np.dtype], int | float]] = {
    "activation": _activation,
    "int": _integer,
    "real": _real,
}


# The documentation ----------------------------------------------------------------------------------------

_ROLE = {
    "in": "Input.",
    "saved": "Output saved from the forward call.",
    "state": "Updated in place.",
}


_COUNTS = {
    "step": "Number of updates done before this one.",
    "counter": "Number of updates done before this one, and the seed: what the random numbers follow from.",
}


_RAISES = """
Raises
------
TypeError
    If an array is not a plain ndarray (or another library's in the CPU's memory) or has another dtype, or a
    constant is of another type.
ValueError
    If an array has another shape, is empty, not C-contiguous or misaligned, or, being written to, is
    read-only or overlaps another argument; if a constant is unknown or out of range.
ImportError
    If the backend's dependency is missing.
"""


def _document(row: Kernel) -> str:
    """Write the docstring, in numpydoc form."""
    results = _results(row)
    lines = [row.summary, "", "::", "", *(f"    {part}" for part in row.formula.split("; ")), ""]
    lines += ["Parameters", "----------"]
    for array in row.given:
        optional = ", optional" if array.optional else ""
        lines += [f"{array.name} : {_shape_text(array)}{optional}", f"    {_array_text(row, array)}"]
    for name, constants in _together(row).items():
        doc = constants[0].doc
        lines += [f"{name} : {_constant_text(constants)}", f"    {doc[:1].upper()}{doc[1:]}."]
    for dim in row.free_dims:
        lines += [f"{dim} : int, >= 1", f"    The dim {dim} in the shapes here; keyword only."]
    if row.outputs:
        kind = "ndarray" if len(results) == 1 else f"tuple of ndarrays ({', '.join(a.name for a in results)})"
        lines += [f"out : {kind}, optional", "    Where to write; allocated by default."]
        lines += [f"    None in the place of {a.name} leaves it out." for a in results if a.optional]
    lines += ["backend : str, optional", "    The backend to run on; by default the one in effect."]
    lines += ["", "Returns", "-------"]
    for array in results:
        text = "The array passed" if array.role == "state" else "The result"
        text += ", or None." if array.optional else "."
        lines += [f"{array.name} : {_shape_text(array)}", f"    {text}"]
    lines += [_RAISES, "Notes", "-----"]
    derived = [dim for dim in row.derived if any(dim in a.dims for a in (*row.given, *row.outputs))]
    lines += [f"{dim} follows from the other dims and the constants.\n" for dim in derived]
    lines += [f"Expected: {text}.\n" for text, _ in row.demands]
    lines += [f"{dim} is at least {least}.\n" for dim, least in row.at_least.items()]
    if any(c.kind == "activation" for c in row.constants):
        lines += ["Activations (y = f(x)):", ""]
        lines += [f"- {name}: {a.formula}, derivative {a.derivative}" for name, a in ACTIVATIONS.items()] + [
            ""
        ]
    lines += [f"Source: {row.source}."]
    return "\n".join(lines) + "\n"


def _shape_text(array: Array) -> str:
    dtype = "int64" if array.kind == "index" else "float32 or float64"
    return f"ndarray of {dtype}, shape ({', '.join(array.dims)}{',' if len(array.dims) == 1 else ''})"


def _array_text(row: Kernel, array: Array) -> str:
    if array.kind == "index":
        return _COUNTS.get(array.name, f"Rows of {row.given[0].name}, from 0.")
    if array.role == "saved" and array.optional:
        return f"{_ROLE['saved']} May be left out with the linear activation."
    return _ROLE[array.role]


def _constant_text(constants: list[Constant]) -> str:
    constant = constants[0]
    if constant.kind == "activation":
        text = "{" + ", ".join(f"'{name}'" for name in ACTIVATIONS) + "}"
    else:
        text = {"int": "int", "real": "float"}[constant.kind]
    if constant.part_of:
        sizes = "(height, width)" if len(constants) == 2 else "(height, width) or (top, left, bottom, right)"
        text += f" or tuple of ints {sizes}"
    return text if constant.default is None else f"{text}, default {constant.default!r}"

"""What the Numba backend stands on: words Numba does not have, compiling, and the epoch without Python.

``jitted.py`` writes the kernels with it. Nothing here knows a single one of them.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from time import perf_counter
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastae.executor import check_run, team_size
from fastae.kernels.table import KERNELS

try:
    import scipy.linalg.cython_blas  # noqa: F401  (Numba finds its BLAS there)
    from llvmlite import ir
    from llvmlite.binding import add_symbol
    from numba import njit, types
    from numba.core import cgutils, event
    from numba.core.dispatcher import Dispatcher
    from numba.extending import intrinsic
    from numba.np.arrayobj import populate_array
    from threadpoolctl import ThreadpoolController
except ImportError as error:
    raise ImportError(
        f'the numba backend needs {error.name or "numba"}: pip install "fastae[numba]"'
    ) from error

if TYPE_CHECKING:
    from fastae.program import Program, Routine, Slot

#: Of every function that compiled code calls; one that Python calls has wrappers beside.
OPTIONS = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
REALS = {"f": types.float32, "d": types.float64}

ROOM = 256

# FLOPs of a batch that are worth a thread, and of a run that are worth a team.
_WORTH_A_THREAD, _WORTH_A_TEAM = 1.5e6, 1e8

# FLOPs of a whole batch below which that is tried, not known; one run of so many goes the slower way.
_DOUBTFUL, _RETRIED = 2e7, 16

_SPINS = 50_000  # looks at a barrier, some tens of microseconds, before the thread sleeps


# --- compiling -----------------------------------------------------------------------------------


def _stamp() -> str:
    """Hash of the sources that compiled code is made from, for its name: Numba's cache goes by it.

    Of itself the cache notices a change in the file of a function, not in that of one it calls.
    """
    sources = sorted(
        Path(__file__).parent.glob("jitted*.py")
    )  # none where there are no sources, nor then a cache
    text = b"".join(s.read_bytes() for s in sources)
    return hashlib.sha256(text).hexdigest()[:12]


STAMP = _stamp()

# Of a program that has set up no logging it goes to stderr.
_LOG = logging.getLogger("fastae")


@cache
def cache_folder() -> str | None:
    """Folder that compiled code is kept in; None where none is writable."""
    try:
        return str(njit(cache=True)(_run_batches).stats.cache_path)  # looks for it, compiles nothing
    except RuntimeError:
        return None


def cache_works() -> bool:
    """Whether there is a folder to keep compiled code in."""
    return cache_folder() is not None


class _Notice(event.Listener):
    """Says that something of this package is compiled, as soon as it is."""

    began: float | None = None

    def on_start(self, event: Any) -> None:
        if self.began is None and event.data["dispatcher"].py_func.__module__.startswith("fastae."):
            self.began = perf_counter()
            _LOG.warning("fastae: numba compiles kernels for this machine: up to 20 seconds, the first time")

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def said() -> Iterator[None]:
    """Log that something is compiled within, and how long it took; what is in the cache is not mentioned."""
    notice = _Notice()
    with event.install_listener("numba:compile", notice):
        yield
    if notice.began is not None:
        folder = cache_folder()
        kept = f"kept in {folder}" if folder else "not kept: no folder is writable, see NUMBA_CACHE_DIR"
        _LOG.warning("fastae: compiled in %.1f s; %s", perf_counter() - notice.began, kept)


def compiled(function: Callable[..., None], signature: Any, *, for_python: bool = True) -> Any:
    """Compile a function for a signature, or take it from the cache."""
    function.__qualname__ = f"{function.__name__}_{STAMP}"
    options = OPTIONS | {"no_cpython_wrapper": not for_python}
    return njit(signature, cache=cache_works(), **options)(function)


# Signatures, by name, of what instruction forms call where other compiled code contains it.
_APART: dict[str, Callable[[Any], tuple[Any, ...]]] = {}

_KEPT: list[Any] = []  # whose addresses are in compiled code

_PREPARING = threading.RLock()


def apart(arguments: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], Any]:
    """Mark an inner function, which returns nothing, as compiled once for all instruction forms.

    Compiled into each of them it would take most of the time they take: Numba has LLVM go over all that a
    function calls again with every function. What is compiled into other people's code contains it as ever.

    Parameters
    ----------
    arguments : callable
        Takes the type of the reals, and returns those of the function's arguments.
    """

    def mark(dispatcher: Any) -> Any:
        _APART[dispatcher.py_func.__name__] = arguments
        return dispatcher

    return mark


def vector(real: Any, readonly: bool = False) -> Any:
    """Type of a C-contiguous row."""
    return types.Array(real, 1, "C", readonly=readonly)


@cache
def _far(dispatcher: Any, char: str) -> Any:
    """Intrinsic that calls a function by its address, once it is compiled or taken from the cache."""
    function = dispatcher.py_func
    arguments = _APART[function.__name__](REALS[char])
    whole = compiled(near(function, char), types.void(*arguments), for_python=False)
    own = whole.overloads[arguments]
    _KEPT.append(whole)
    symbol = f"fastae_{function.__name__}_{char}_{STAMP}"
    add_symbol(symbol, own.library.get_pointer_to_function(own.fndesc.llvm_func_name))

    def far(typing, *given):
        def generate(context, builder, signature, values):
            form = context.call_conv.get_function_type(signature.return_type, signature.args)
            routine = cgutils.get_or_insert_function(builder.module, form, symbol)
            context.call_conv.call_function(builder, routine, signature.return_type, signature.args, values)
            return context.get_dummy_value()

        return types.none(*arguments), generate

    # Numba asks for the parameters by name.
    typing = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named: Any = far
    named.__signature__ = inspect.Signature([typing, *inspect.signature(function).parameters.values()])
    return intrinsic(named)


@cache
def _nearby(dispatcher: Any, char: str) -> Any:
    """An inner function as instruction forms contain it."""
    return njit(**OPTIONS)(near(dispatcher.py_func, char))


def near(function: Callable[..., None], char: str) -> Callable[..., None]:
    """Return a copy of a function that calls what is `apart` by its address.

    All of that has its address when this returns; what is compiled of the copy, now or by another process
    that left it in the cache, cannot be loaded without.
    """
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        called = names.get(name)
        if isinstance(called, Dispatcher):
            turn = _far if called.py_func.__name__ in _APART else _nearby
            names[name] = turn(called, char)
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__)


# --- what Numba has no words for -----------------------------------------------------------------


@intrinsic
def at(typing, pointer, offset, dtype):
    """``(dtype *)(pointer + offset)``."""
    signature = types.CPointer(dtype.dtype)(pointer, offset, dtype)

    def generate(context, builder, signature, arguments):
        moved = builder.gep(arguments[0], [arguments[1]])
        return builder.bitcast(moved, context.get_value_type(signature.return_type))

    return signature, generate


def data(context, builder, type_, value):
    """Pointer to the first element of an array, in LLVM's terms."""
    return context.make_array(type_)(context, builder, value).data


@intrinsic
def window(typing, array, first, size):
    """Elements first, first + 1, ... of a C-contiguous array, as one row.

    A slice of Numba's counts references and looks for negative places: where rows are short, that is most
    of the time, and of the compiling.
    """
    signature = array.copy(ndim=1)(array, first, size)

    def generate(context, builder, signature, arguments):
        array, first, size = arguments
        whole = context.make_array(signature.args[0])(context, builder, array)
        result = context.make_array(signature.return_type)(context, builder)
        itemsize = whole.itemsize
        populate_array(result, builder.gep(whole.data, [first]), [size], [itemsize], itemsize, meminfo=None)
        return result._getvalue()

    return signature, generate


@intrinsic
def room(typing, array):
    """A row of ROOM elements of the array's type, until the function that asks for it returns."""
    signature = types.Array(array.dtype, 1, "C")(array)

    def generate(context, builder, signature, arguments):
        real, size = (
            context.get_data_type(signature.return_type.dtype),
            context.get_constant(types.intp, ROOM),
        )
        itemsize = context.get_constant(types.intp, signature.return_type.dtype.bitwidth // 8)
        result = context.make_array(signature.return_type)(context, builder)
        data = cgutils.alloca_once(builder, real, size=size)
        populate_array(result, data, [size], [itemsize], itemsize, meminfo=None)
        return result._getvalue()

    return signature, generate


@intrinsic
def call(typing, address, arena, code, line, part, parts):
    """Call the instruction form at an address with a line of the code."""
    signature = types.void(address, arena, code, line, part, parts)

    def generate(context, builder, signature, arguments):
        address, arena, code, line, part, parts = arguments
        size, pointer = ir.IntType(64), cgutils.voidptr_t
        width = context.make_array(signature.args[2])(context, builder, code).shape
        first = builder.add(builder.mul(line, builder.extract_value(width, 1)), ir.Constant(size, 2))
        operands = builder.gep(data(context, builder, signature.args[2], code), [first])
        form = ir.FunctionType(ir.VoidType(), [pointer, pointer, size, size])
        builder.call(
            builder.inttoptr(address, form.as_pointer()),
            (
                builder.bitcast(data(context, builder, signature.args[1], arena), pointer),
                builder.bitcast(operands, pointer),
                part,
                parts,
            ),
        )
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _fetch_add(typing, array, place, value):
    """Add to ``array[place]`` atomically and return what was there."""
    signature = types.int64(array, place, value)

    def generate(context, builder, signature, arguments):
        spot = builder.gep(data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        return builder.atomic_rmw("add", spot, arguments[2], "seq_cst")

    return signature, generate


@intrinsic
def _load(typing, array, place):
    """Read ``array[place]`` atomically."""
    signature = types.int64(array, place)

    def generate(context, builder, signature, arguments):
        spot = builder.gep(data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        return builder.load_atomic(spot, "seq_cst", 8)

    return signature, generate


@intrinsic
def _store(typing, array, place, value):
    """Write ``array[place]`` atomically."""
    signature = types.void(array, place, value)

    def generate(context, builder, signature, arguments):
        spot = builder.gep(data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        builder.store_atomic(arguments[2], spot, "seq_cst", 8)
        return context.get_dummy_value()

    return signature, generate


# Which processor a thread is on, where it can be told to leave it.
_where = getattr(ctypes.PyDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None

#: Number of the system call by which threads sleep and wake, where there is one.
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0) if sys.platform == "linux" else 0


def _call_futex(builder, spot, operation, value):
    """Sleep while the low half of a number is `value` (operation 128), or wake all that do (129)."""
    word = ir.IntType(64)
    form = ir.FunctionType(word, [word], var_arg=True)
    function = cgutils.get_or_insert_function(builder.module, form, "syscall")
    nothing = ir.Constant(word, 0)
    number, what = ir.Constant(word, _FUTEX), ir.Constant(word, operation)
    builder.call(function, [number, builder.ptrtoint(spot, word), what, value, nothing, nothing, nothing])


@intrinsic
def _sleep_while(typing, array, place, value):
    """Sleep until ``array[place]`` is another number, or for no reason; elsewhere give the core away."""
    signature = types.void(array, place, value)

    def generate(context, builder, signature, arguments):
        spot = builder.gep(data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        if _FUTEX:
            _call_futex(builder, spot, 128, arguments[2])
        else:
            name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
            form = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, form, name), ())
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _wake_all(typing, array, place):
    """Wake what sleeps while ``array[place]`` is what it was."""
    signature = types.void(array, place)

    def generate(context, builder, signature, arguments):
        if _FUTEX:
            spot = builder.gep(data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
            _call_futex(builder, spot, 129, ir.Constant(ir.IntType(64), 0x7FFFFFFF))
        return context.get_dummy_value()

    return signature, generate


# --- a team of threads -----------------------------------------------------------------------------


@njit(**OPTIONS)
def meet(state, parts):
    """Barrier: ``state[0]`` threads have arrived, ``state[8]`` counts the meetings, ``state[9]`` sleep.

    A thread spins for a moment and then sleeps: where there are more threads than processors, the one that is
    waited for gets one.
    """
    if parts == 1:
        return
    meeting = _load(state, 8)
    if _fetch_add(state, 0, 1) == parts - 1:
        _store(state, 0, 0)
        _store(state, 8, meeting + 1)
        if _load(state, 9):
            _wake_all(state, 8)
        return
    looks = 0
    while _load(state, 8) == meeting:
        looks += 1
        if looks > _SPINS:
            _fetch_add(state, 9, 1)
            while _load(state, 8) == meeting:
                _sleep_while(state, 8, meeting)
            _fetch_add(state, 9, -1)


@njit(**OPTIONS)
def share(size, part, parts):
    """Range of a part."""
    return size * part // parts, size * (part + 1) // parts


@njit(**OPTIONS)
def row_of(x, i):
    """``x[i]``, as a window."""
    return window(x, i * x.shape[1], x.shape[1])


@njit(**OPTIONS)
def copy(x, y):
    """y = x for a row."""
    for j in range(y.size):
        y[j] = x[j]


# --- the epoch -----------------------------------------------------------------------------------

# Places in the plan of a run; the first five are of its rows.
_ROWS, _BATCH, _ORDERED, _OPENS, _TAIL_OPENS, _TRAINS, _CHECK, _LOSS, _INPUT, _TARGET, _WEIGHT, _OUTPUT = (
    range(12)
)


_X86 = platform.machine().lower() in ("x86_64", "amd64")


@intrinsic
def _exchange_control(typing, control, on):
    """Flush denormals to zero (`on`), or put the control word of the processor back; return the one before.

    Moments of parameters that no longer learn decay into denormals, and arithmetic on them is a hundred times
    slower. Processors other than x86 are left as they are.
    """
    signature = types.int64(control, on)

    def generate(context, builder, signature, arguments):
        if not _X86:
            return arguments[0]
        word, pointer = ir.IntType(32), cgutils.voidptr_t
        place = cgutils.alloca_once(builder, word)
        form = ir.FunctionType(ir.VoidType(), [pointer])
        read = cgutils.get_or_insert_function(builder.module, form, "llvm.x86.sse.stmxcsr")
        write = cgutils.get_or_insert_function(builder.module, form, "llvm.x86.sse.ldmxcsr")
        builder.call(read, [builder.bitcast(place, pointer)])
        before = builder.load(place)
        flushing = builder.or_(before, ir.Constant(word, 0x8040))  # FTZ and DAZ
        given = builder.trunc(arguments[0], word)
        builder.store(builder.select(cgutils.is_not_null(builder, arguments[1]), flushing, given), place)
        builder.call(write, [builder.bitcast(place, pointer)])
        return builder.zext(before, ir.IntType(64))

    return signature, generate


@njit(**OPTIONS)
def _fetch(data, order, ordered, start, count, arena, offset, part, parts):
    """Rows of the data into the arena."""
    width = data.shape[1]
    for i in range(*share(count, part, parts)):
        row = order[start + i] if ordered else start + i
        copy(row_of(data, row), window(arena, offset + i * width, width))


def _run_batches(
    functions,
    arena,
    header,
    code,
    tail,
    plan,
    data,
    target,
    weights,
    order,
    losses,
    out,
    control,
    state,
    part,
    parts,
):
    """One thread's part of a run; arrays that were not given are empty."""
    rows, size, ordered = plan[_ROWS], plan[_BATCH], plan[_ORDERED] != 0
    check, width = plan[_CHECK], out.shape[1]
    finite, before = True, _exchange_control(0, True)
    for batch in range((rows + size - 1) // size):
        start = batch * size
        count = min(size, rows - start)
        lines = code if count == size else tail
        _fetch(data, order, ordered, start, count, arena, plan[_INPUT], part, parts)
        if target.size:
            _fetch(target, order, ordered, start, count, arena, plan[_TARGET], part, parts)
        if weights.size:
            _fetch(weights, order, ordered, start, count, arena, plan[_WEIGHT], part, parts)
        if plan[_OPENS if count == size else _TAIL_OPENS]:
            meet(state, parts)
        for i in range(lines.shape[0] + 1):
            if check and i == check:  # behind a barrier: every thread sees the same loss
                loss = arena[plan[_LOSS]]
                if part == 0 and losses.size:
                    losses[batch] = loss
                if not np.isfinite(loss):
                    if part == 0:
                        control[2] = batch
                    finite = False
                    break
            if i < lines.shape[0]:
                call(functions[lines[i, 0]], arena, lines, i, part, parts)
                if lines[i, 1]:
                    meet(state, parts)
        if not finite:
            break
        if out.size:
            for i in range(*share(count, part, parts)):
                first = plan[_OUTPUT] + i * width
                copy(window(arena, first, width), row_of(out, start + i))
        if part == 0:
            # Seen by all threads after the same batch; in one of two places: who is late reads the other one
            # while this thread is a batch ahead.
            state[16 + batch % 2] = _load(control, 0)
        meet(state, parts)
        if part == 0:  # nobody reads the number of updates any more, or again before they meet
            if plan[_TRAINS]:
                header[0] += 1
            control[1] = batch + 1
        if state[16 + batch % 2]:
            break
    _exchange_control(before, False)


@cache
def _epoch(char: str) -> Any:
    """Compiled `_run_batches` for a dtype."""
    real = REALS[char]

    def array(element, dims, readonly=False):
        return types.Array(element, dims, "C", readonly=readonly)

    vector, code = array(types.int64, 1), array(types.int64, 2)
    rows = array(real, 2, True)
    signature = types.void(
        *(vector, array(real, 1), vector, code, code, vector, rows, rows, rows),
        *(
            array(types.int64, 1, True),
            array(types.float64, 1),
            array(real, 2),
            vector,
            vector,
            types.int64,
            types.int64,
        ),
    )
    return compiled(_run_batches, signature)


# --- the executor --------------------------------------------------------------------------------


def _move_apart(places: dict[int, int], part: int) -> None:
    """Leave a processor that another thread of the team is on, for any other.

    Threads that are woken together often share one for milliseconds: who looks at a barrier is busy.
    """
    if _where is None:
        return
    here = _where()
    taken = {place for other, place in places.copy().items() if other != part}
    if here in taken:
        allowed = os.sched_getaffinity(0)
        if others := allowed - taken:
            os.sched_setaffinity(0, others)  # of this thread
            here = _where()
            os.sched_setaffinity(0, allowed)
    places[part] = here


class _Blas:
    """BLAS held to one thread while any run needs it, whichever ends last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._libraries: list[Any] | None = None
        self._before: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._libraries is None:  # looked for once: it takes milliseconds
                found = ThreadpoolController().select(user_api="blas").lib_controllers
                # SciPy's, which Numba calls, has its own in a wheel; NumPy's is left alone then.
                self._libraries = [library for library in found if "scipy." in library.filepath] or found
            if self._running == 0:
                self._before = [library.num_threads for library in self._libraries]
                for library in self._libraries:
                    library.set_num_threads(1)
            self._running += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._running -= 1
            if self._running == 0:
                for library, threads in zip(self._libraries or (), self._before, strict=True):
                    library.set_num_threads(threads)


_BLAS = _Blas()


def one_thread() -> AbstractContextManager[None]:
    """Hold BLAS to one thread within a ``with``."""
    return _BLAS


class Pace:
    """Whether runs of a routine go faster by a team or by one thread: tried, and tried again now and then.

    It depends on whether processors share a cache, and on what else they have to do. The bits do not.
    """

    def __init__(self) -> None:
        self._seconds: dict[bool, float] = {}  # that the last run took, by whether it was a team's
        self._runs = 0

    def team(self) -> bool:
        """Whether the next run is a team's."""
        if len(self._seconds) < 2:
            return True not in self._seconds
        faster = self._seconds[True] <= self._seconds[False]
        return faster != (self._runs % _RETRIED == 0)

    def took(self, team: bool, seconds: float) -> None:
        """Note what a run took."""
        self._seconds[team] = seconds
        self._runs += 1


class Executor:
    """Runs a Program as compiled code: a run is one call for each thread.

    The module with the kernels derives from it and sets `instruction` and `keeps_rows`.

    Parameters
    ----------
    program : Program
        A lowered program with contiguous (not padded) slots.
    arena : ndarray of shape (program.arena_size,) and program.dtype
        The block all its arrays live in.
    n_threads : int or None
        Threads of the team, the calling one among them; None: chosen for each run by its work.

    Raises
    ------
    ValueError
        If `n_threads` is less than 1.
    """

    @staticmethod
    def instruction(name: str, char: str) -> Any:
        """Return the compiled instruction form, which has an ``address``, of a kernel for a dtype.char."""
        raise NotImplementedError

    @staticmethod
    def keeps_rows(routine: Routine, rows: int, parts: int) -> bool:
        """Return whether each part has the same rows wherever the table shares out by rows."""
        raise NotImplementedError

    def __init__(self, program: Program, arena: np.ndarray, n_threads: int | None = 1) -> None:
        if n_threads is not None and n_threads < 1:
            raise ValueError(f"n_threads: expected at least 1, got {n_threads}")
        self._arena = arena
        self._header = arena[: 64 // arena.itemsize].view(np.int64)
        self._batch_size = int(program.batch_size)
        self._n_threads = n_threads
        self._functions = np.zeros(len(KERNELS), np.int64)
        self._plans: dict[Routine, np.ndarray] = {}
        self._paces: dict[tuple[float, int], Pace] = {}
        self._team: tuple[int, int, ThreadPoolExecutor] | None = None  # of which process, how many

    def _plan(self, routine: Routine) -> np.ndarray:
        """What a run of a routine is told, but for its rows. What it needs and has not been compiled, is."""
        names, char = tuple(KERNELS), self._arena.dtype.char
        needed = {names.index(instruction.kernel) for instruction in routine.instructions}
        missing = [place for place in needed if not self._functions[place]]
        if missing:
            with _PREPARING, said():
                for place in missing:
                    self._functions[place] = self.instruction(names[place], char).address
                _epoch(char)

        def offset(slot: Slot | None) -> int:
            return 0 if slot is None else slot.offset

        slots = routine.loss, routine.input, routine.target, routine.weight, routine.output
        return np.array([0, 0, 0, 0, 0, routine.trains, routine.check, *map(offset, slots)], np.int64)

    def _lines(self, routine: Routine, rows: int, parts: int) -> tuple[int, np.ndarray]:
        """Whether a team meets before the first instruction, and the code with its barriers settled."""
        code = routine.encode(rows)
        if parts == 1:
            return 0, code
        crossing = 0 if self.keeps_rows(routine, rows, parts) else 1
        # `barriers` goes by threads that gather all of a small batch, each for itself; here they share it
        opens = 1 if routine.gathered_by_each else routine.opens(rows)
        code = code.copy()
        code[code[:, 1] == 2, 1] = crossing
        return crossing if opens == 2 else opens, code

    def run(
        self,
        routine: Routine,
        data: np.ndarray,
        target: np.ndarray | None,
        order: np.ndarray | None,
        *,
        weights: np.ndarray | None = None,
        losses: np.ndarray | None = None,
        out: np.ndarray | None = None,
        control: np.ndarray | None = None,
    ) -> None:
        """Run a routine over the rows of `data`, a batch at a time.

        Parameters
        ----------
        routine : Routine
            What to run.
        data : ndarray of shape (n, k) and program.dtype
            Gathered into the routine's input.
        target : ndarray of shape (n, m) and program.dtype, or None
            Gathered into the routine's target; None where the routine reads none of its own.
        order : int64 ndarray, or None
            Rows of `data` in the order to take them; None for all of them as they lie.
        weights : ndarray of shape (n,) and program.dtype, optional
            Weight of each row of `data`, gathered into the routine's weight; None where it has none.
        losses : float64 ndarray, optional
            Receives the loss of each batch.
        out : ndarray of shape (len(order), ...), optional
            Receives the routine's output.
        control : int64 ndarray of 8, optional
            ``[0]`` set by another thread stops the run after the batch at hand, ``[1]`` batches done,
            ``[2]`` the batch whose loss was not finite, or -1.
        """
        check_run(routine, data, target, order, weights, out)
        rows = len(data) if order is None else len(order)
        if control is None:
            control = np.zeros(8, np.int64)
        control[1] = 0
        control[2] = -1
        if rows == 0:
            return
        size = self._batch_size
        parts = self._n_threads or team_size(routine, rows, size, _WORTH_A_THREAD, _WORTH_A_TEAM)
        pace = None
        if self._n_threads is None and parts > 1 and routine.work < _DOUBTFUL:
            if len(self._paces) >= 64:  # as of plans
                self._paces.clear()
            pace = self._paces.setdefault((routine.work, rows), Pace())  # a new rate is a new routine
            parts = parts if pace.team() else 1
        opens, code = tail_opens, tail = self._lines(routine, min(size, rows), parts)
        if rows > size and rows % size:
            tail_opens, tail = self._lines(routine, rows % size, parts)
        plan = self._plans.get(routine)
        if plan is None:
            if len(self._plans) >= 64:  # schedules bring a new routine for each rate
                self._plans.clear()
            plan = self._plans[routine] = self._plan(routine)
        plan = plan.copy()
        plan[:5] = rows, min(size, rows), order is not None, opens, tail_opens
        nothing = np.empty((0, 0), self._arena.dtype)
        arguments = (
            *(self._functions, self._arena, self._header, code, tail, plan, data),
            nothing if target is None else target,
            nothing if weights is None else weights.reshape(-1, 1),
            np.empty(0, np.int64) if order is None else order,
            np.empty(0) if losses is None else losses,
            nothing if out is None or routine.output is None else out.reshape(rows, -1),
            control,
            np.zeros(24, np.int64),
        )
        epoch = _epoch(self._arena.dtype.char)
        with one_thread():
            start = perf_counter()
            if parts == 1:
                epoch(*arguments, 0, 1)
            else:
                self._run_team(epoch, arguments, control, parts)
        if pace is not None and control[1] == -(-rows // size):  # all batches
            pace.took(parts > 1, perf_counter() - start)

    def _run_team(self, epoch: Any, arguments: tuple[Any, ...], control: np.ndarray, parts: int) -> None:
        """Run the epoch on all threads, or, when one cannot be started, on none.

        Part 0 has a thread of its own too: an interrupt of the calling one then never leaves the others
        waiting for it. It stops the team at the next batch, and is passed on when nobody writes any more.
        """
        ready = threading.Event()
        complete = False
        places: dict[int, int] = {}

        def work(part: int) -> None:
            ready.wait()
            if complete:
                with suppress(Exception):  # a hint; who does not come would be waited for
                    _move_apart(places, part)
                epoch(*arguments, part, parts)

        threads = self._threads(parts)
        team: list[Future[None]] = []
        try:
            team.extend(threads.submit(work, part) for part in range(parts))
            complete = True
        finally:
            ready.set()
            if not complete:  # more is queued than threads were started for
                self._team = None
        interrupt: BaseException | None = None
        while not all(done.done() for done in team):
            try:
                wait(team)
            except BaseException as raised:
                interrupt = raised
                control[0] = 1
        if interrupt is not None:
            raise interrupt
        for done in team:
            done.result()

    def _threads(self, parts: int) -> ThreadPoolExecutor:
        """Threads kept for the next run: to start them takes longer than some batches."""
        process = os.getpid()
        if self._team is None or self._team[0] != process or self._team[1] < parts:  # a fork has no threads
            self._team = process, parts, ThreadPoolExecutor(parts, "fastae")
        return self._team[2]

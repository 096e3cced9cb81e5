"""The executor of the backends whose kernels Python itself calls: ``scalar`` and ``numpy``.

The array behind every operand is bound once for a routine and a number of rows; what is left for
each batch is a loop over ready calls.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

import numpy as np

from fastae.kernels.table import KERNELS, Array

if TYPE_CHECKING:
    from fastae.program import Program, Routine, Slot

__all__ = ["PythonExecutor", "check_run", "processors", "processors_present", "team_of_rows", "team_size"]

Call = tuple[Callable[..., None], tuple[Any, ...]]

_MOST_BOUND = 64  # routines x row counts remembered; a caller that varies the rows cannot grow it


#: FLOPs of a run below which starting a second thread takes longer than it saves.
_LEAST_RUN = 20e6


def processors_present() -> int:
    """Processors this process may use, which a container or a batch queue can hold below the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processors() -> int:
    """Return how many threads the environment grants: FASTAE_NUM_THREADS, else processors or OMP_NUM_THREADS.

    Raises
    ------
    ValueError
        When FASTAE_NUM_THREADS is not a whole number above 0.
    """
    own = os.environ.get("FASTAE_NUM_THREADS")
    if own and not (own.isdecimal() and 0 < int(own) <= 1024):
        raise ValueError(f"FASTAE_NUM_THREADS: expected a number from 1 to 1024, given {own!r}")
    if own:
        return int(own)
    there = processors_present()
    granted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(there, int(granted)) if granted.isdecimal() and int(granted) else there


def team_size(routine: Routine, rows: int, batch_size: int, grain: float, least: float = _LEAST_RUN) -> int:
    """Choose the number of threads of a run by the work there is.

    Parameters
    ----------
    routine : Routine
        What is run.
    rows, batch_size : int
        On so many rows, in batches of so many.
    grain : float
        FLOPs of a batch that are worth a thread.
    least : float
        FLOPs of a run that are worth a team.

    Returns
    -------
    int
        At least 1, at most what `processors` grants. The results are the same bits for any number.
    """
    flops = routine.work / routine.capacity * min(rows, batch_size)
    if flops < 2 * grain or flops * (rows / batch_size) < least:
        return 1
    return min(processors(), int(flops / grain))


def team_of_rows(routine: Routine, rows: int) -> int:
    """Choose the number of threads of a run where each thread takes rows of its own, as `team_size` does.

    They do not wait for each other: a second one pays as soon as it brings more than its start takes.
    """
    flops = routine.work / routine.capacity * rows
    return 1 if flops < _LEAST_RUN else min(processors(), int(flops / (_LEAST_RUN / 2)))


def check_run(
    routine: Routine,
    data: np.ndarray,
    target: np.ndarray | None,
    order: np.ndarray | None,
    weights: np.ndarray | None,
    out: np.ndarray | None,
) -> None:
    """Refuse what would make compiled code read or write beyond an array.

    Parameters
    ----------
    routine, data, target, order, weights, out
        As an executor's `run` takes them.

    Raises
    ------
    ValueError
        When an array has another width than its slot or another length than it must have, when a target or
        weights are missing or too many, or when a row of the order is not in the data.
    """
    n = len(data)
    rows = n if order is None else len(order)
    if data.shape != (n, routine.input.columns):
        _refuse_shape("data", data, (n, routine.input.columns))
    if target is not None:
        columns = _read("target", routine, routine.target).columns
        if target.shape != (n, columns):
            _refuse_shape("target", target, (n, columns))
    elif routine.target is not None:
        raise ValueError(f"target: expected an array, which this {routine.name} reads; given None")
    if weights is not None:
        _read("weights", routine, routine.weight)
        if weights.shape != (n,):
            _refuse_shape("weights", weights, (n,))
    elif routine.weight is not None:
        raise ValueError(f"weights: expected an array, which this {routine.name} reads; given None")
    slot = routine.output
    if out is not None and slot is not None and out.shape != (rows, slot.columns):
        _refuse_shape("out", out, (rows, slot.columns))
    if order is not None and rows and (order.min() < 0 or order.max() >= n):
        given = f"{order.min()} to {order.max()}"
        raise ValueError(f"order: expected rows from 0 to {n - 1}, given {given}")


def _read(name: str, routine: Routine, slot: Slot | None) -> Slot:
    """Return the slot where a routine has an array's rows."""
    if slot is None:
        raise ValueError(f"{name}: expected None, as {routine.name} reads none; given an array")
    return slot


def _refuse_shape(name: str, array: np.ndarray, expected: tuple[int, ...]) -> NoReturn:
    raise ValueError(f"{name}: expected shape {expected}, given {array.shape}")


class _Bound(NamedTuple):
    """A routine bound to the arena for one number of rows."""

    routine: Routine  # kept alive: it is looked up by its id
    before: list[Call]  # up to the loss
    after: list[Call]
    input: Any
    target: Any
    weight: Any
    output: np.ndarray | None
    loss: memoryview | None


class PythonExecutor:
    """Runs the routines of a Program by calling one Python function an instruction.

    A backend derives from it and sets `kernels` to its module.

    Parameters
    ----------
    program : Program
        A lowered program with contiguous (not padded) slots.
    arena : ndarray of shape (program.arena_size,) and program.dtype
        The block all its arrays live in.
    n_threads : int or None
        1, or None, which is the same here.

    Raises
    ------
    ValueError
        If `n_threads` is another number.
    """

    kernels: ClassVar[ModuleType]

    def __init__(self, program: Program, arena: np.ndarray, n_threads: int | None = 1) -> None:
        if n_threads not in (1, None):
            raise ValueError(
                f"n_threads: expected 1 ({self.kernels.__name__} has no threads), got {n_threads}"
            )
        self._arena = arena
        self._header = arena[: 64 // arena.itemsize].view(np.int64)
        self._batch_size = int(program.batch_size)
        self._bound: dict[tuple[int, int], _Bound] = {}

    def _rows(self, slot: Slot, rows: int) -> np.ndarray:
        """First `rows` rows of a batched slot as a matrix."""
        width = slot.columns
        return self._arena[slot.offset : slot.offset + rows * width].reshape(rows, width)

    def _bind(self, routine: Routine, rows: int) -> _Bound:
        key = (id(routine), rows)
        bound = self._bound.get(key)
        if bound is not None:
            return bound
        kernels = tuple(KERNELS.values())
        prepare = self.kernels.prepare
        absent = prepare(np.empty(0, self._arena.dtype))
        calls: list[Call] = []
        for code in routine.encode(rows):
            kernel = kernels[code[0]]
            operands = code[2:]
            reals = operands.view(np.float64)
            count = len(kernel.arguments)
            dims = {name: int(operands[count + i]) for i, name in enumerate(kernel.dims)}
            values: list[Any] = []
            for i, argument in enumerate(kernel.arguments):
                if not isinstance(argument, Array):
                    values.append(float(reals[i]) if argument.kind == "real" else int(operands[i]))
                elif operands[i] < 0:
                    values.append(absent)
                else:
                    shape = kernel.shape(argument, dims)
                    # Numbers of kind "index" lie in the header, at the arena's start.
                    within = self._header if argument.kind == "index" else self._arena
                    start = int(operands[i])
                    values.append(prepare(within[start : start + math.prod(shape)].reshape(shape)))
            calls.append((getattr(self.kernels, kernel.name), tuple(values)))
        loss = routine.loss
        bound = _Bound(
            routine,
            calls[: routine.check],
            calls[routine.check :],
            prepare(self._rows(routine.input, rows)),
            None if routine.target is None else prepare(self._rows(routine.target, rows)),
            None if routine.weight is None else prepare(self._rows(routine.weight, rows)),
            None if routine.output is None else self._rows(routine.output, rows),
            None if loss is None else memoryview(self._arena[loss.offset : loss.offset + 1]),
        )
        if len(self._bound) >= _MOST_BOUND:
            self._bound.clear()
        self._bound[key] = bound
        return bound

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
        if control is None:
            control = np.zeros(8, np.int64)
        control[1] = 0
        control[2] = -1
        if order is None:
            order = np.arange(len(data), dtype=np.int64)
        prepare = self.kernels.prepare
        gather = self.kernels.gather_rows
        source = prepare(data)
        wanted = None if target is None else prepare(target)
        weighing = None if weights is None else prepare(weights.reshape(-1, 1))
        rows_of = prepare(order)
        signals = memoryview(control)
        header = memoryview(self._header)
        batch_size = self._batch_size
        trains = routine.trains
        batch = 0
        # Non-finite numbers are looked for in the loss, once a batch.
        with np.errstate(all="ignore"):
            for start in range(0, len(order), batch_size):
                rows = rows_of[start : start + batch_size]
                count = len(rows)
                bound = self._bind(routine, count)
                gather(source, rows, bound.input)
                if wanted is not None:
                    gather(wanted, rows, bound.target)
                if weighing is not None:
                    gather(weighing, rows, bound.weight)
                for kernel, arguments in bound.before:
                    kernel(*arguments)
                if bound.loss is not None:
                    loss = bound.loss[0]
                    if losses is not None:
                        losses[batch] = loss
                    if not math.isfinite(loss):
                        signals[2] = batch
                        return
                for kernel, arguments in bound.after:
                    kernel(*arguments)
                if trains:
                    header[0] += 1
                if out is not None and bound.output is not None:
                    out[start : start + count] = bound.output.reshape(out[start : start + count].shape)
                batch += 1
                signals[1] = batch
                if signals[0]:
                    return

"""Where the threads that share a routine must wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastae.program import Routine, Slot

__all__ = ["meetings"]

#: Whether a step is shared out by rows, and what it touches, each with whether it is written.
Step = tuple[bool, list[tuple["Slot", bool]]]


def meetings(routine: Routine, rows: int) -> list[int]:
    """Say behind what a team of threads must meet, in a batch of so many rows.

    Parameters
    ----------
    routine : Routine
        Its threads share every instruction. They copy the batch in by rows, or each of them all of it to a
        place of its own (those of `numba` never do, and meet when it is there), and the output out by rows.
        They meet when the batch is done; then the first one counts the update, while others may be at the
        next batch.
    rows : int
        Of the batch, at least 1.

    Returns
    -------
    list of int
        For the gathering of the batch, then for each instruction: 0 where what follows touches nothing that
        another thread may still work on, 1 where it does, 2 where it does unless work is shared out by rows.
    """
    from fastae.program import COUNTER

    shared = () if routine.gathered_by_each else routine.gathered
    own = routine.gathered if routine.gathered_by_each else ()
    steps: list[Step] = [(True, [(slot, True) for slot in (COUNTER, *shared)])]
    steps += [
        (i.by_rows(rows), [(slot, array.written) for array, slot in i.arrays if slot not in own])
        for i in routine.instructions
    ]
    result = routine.output
    steps.append((True, [(result, False)] if result is not None and result not in own else []))

    barriers = [0] * len(steps)
    certain = last = 0  # the first step since they met, for certain or at all
    for j, step in enumerate(steps):
        kinds = {_between(steps[i], step) for i in range(certain, j)}
        # thread 0 reads the loss after `check` instructions
        if 1 in kinds or (routine.check and j == routine.check + 1):
            barriers[j - 1] = 1
            certain = last = j
        elif 2 in kinds and any(_between(steps[i], step) for i in range(last, j)):
            barriers[j - 1] = 2
            last = j
    return barriers[:-1]


def _between(one: Step, other: Step) -> int:
    """The barrier that two steps need between them, as `meetings` says it."""
    found = 0
    for a, a_written in one[1]:
        for b, b_written in other[1]:
            apart = b.offset >= a.offset + a.size or a.offset >= b.offset + b.size
            if apart or not (a_written or b_written):
                continue
            same = a.batched and b.batched and a.offset == b.offset and a.lanes == b.lanes == 1
            if not (one[0] and other[0] and same):
                return 1
            found = 2
    return found

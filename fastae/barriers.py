"""Where the threads that share a routine must wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastae.program import Routine, Slot

__all__ = ["meetings"]

#: The shard whose thread alone does a step, else whether it is shared out by rows; what it touches, each with
#: whether it is written.
Step = tuple[int | None, bool, list[tuple["Slot", bool]]]


def meetings(routine: Routine, rows: int) -> list[int]:
    """Say behind what a team of threads must meet, in a batch of so many rows.

    Parameters
    ----------
    routine : Routine
        Its threads share every instruction that no shard has for itself. They copy the batch in by rows, or
        each of them all of it to a place of its own (those of `numba` never do, and meet when it is there),
        or the columns of its shard; and the output out by rows. They meet when the batch is done; then the
        first one counts the update, while others may be at the next batch.
    rows : int
        Of the batch, at least 1.

    Returns
    -------
    list of int
        For the gathering of the batch, then for each instruction: 0 where what follows touches nothing that
        another thread may still work on, 1 where it does, 2 where it does unless work is shared out by rows.
    """
    from fastae.program import COUNTER

    own = routine.gathered if routine.gathered_by_each else ()
    gathered = [slot for slot in routine.gathered if slot not in own]
    steps: list[Step] = [(None, True, [(slot, True) for slot in (COUNTER, *gathered) if not slot.shards])]
    for slot in gathered:
        steps += [(shard, False, [(piece, True)]) for shard, piece in enumerate(slot.shards)]
    gathering = len(steps) - 1  # they begin at once
    steps += [
        (i.shard, i.by_rows(rows), [(slot, array.written) for array, slot in i.arrays if slot not in own])
        for i in routine.instructions
    ]
    result = routine.output
    handed_out = () if result is None or result in own else result.pieces
    steps.append((None, True, [(piece, False) for piece in handed_out]))

    barriers = [0] * len(steps)
    certain = last = 0  # the first step since they met, for certain or at all
    for j, step in enumerate(steps):
        kinds = {_between(steps[i], step) for i in range(certain, j)}
        # thread 0 reads the loss after `check` instructions, those of shards each their copy
        shown = bool(routine.check) and not routine.losses and j == gathering + routine.check + 1
        if 1 in kinds or shown:
            barriers[j - 1] = 1
            certain = last = j
        elif 2 in kinds and any(_between(steps[i], step) for i in range(last, j)):
            barriers[j - 1] = 2
            last = j
    return barriers[gathering:-1]


def _between(one: Step, other: Step) -> int:
    """The barrier that two steps need between them, as `meetings` says it."""
    found = 0
    if one[0] is not None and one[0] == other[0]:
        return 0
    for a, a_written in one[2]:
        for b, b_written in other[2]:
            apart = b.offset >= a.offset + a.size or a.offset >= b.offset + b.size
            if apart or not (a_written or b_written):
                continue
            same = a.batched and b.batched and a.offset == b.offset and a.lanes == b.lanes == 1
            if not (one[1] and other[1] and same and one[0] is other[0] is None):
                return 1
            found = 2
    return found

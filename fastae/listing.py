"""The listing of a routine: what `print` of a Program shows of its instructions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastae.kernels.table import Array

if TYPE_CHECKING:
    from fastae.program import Instruction, Routine

__all__ = ["listing"]


def listing(routine: Routine) -> str:
    """Return the instructions as a table: number, instruction, operands, MFLOP, KiB, note."""
    lines = [("#", "instruction", "operands", "MFLOP", "KiB", "note")]
    for slot in routine.gathered:
        kib = 2 * math.prod(slot.shape) * routine.itemsize / 1024
        lines.append(("", "gather_rows", f"{slot} = data", "0", f"{kib:.1f}", "by the executor"))
    if routine.input.name != "batch":
        lines[1] = ("", "copy", f"{routine.input} = data", "0", lines[1][4], "by the executor")
    for number, i in enumerate(routine.instructions):
        lines.append(
            (
                str(number),
                i.kernel,
                _operand_text(i),
                f"{i.flops() / 1e6:.3f}",
                f"{i.bytes(routine.itemsize) / 1024:.1f}",
                i.note if i.shard is None else f"shard {i.shard}{'; ' * bool(i.note)}{i.note}",
            )
        )
    lines.append(("", "total", "", f"{routine.flops() / 1e6:.3f}", f"{routine.bytes() / 1024:.1f}", ""))
    right = (0, 3, 4)
    widths = [max(len(line[c]) for line in lines) for c in range(6)]
    text = [
        "  ".join(
            cell.rjust(w) if c in right else cell.ljust(w)
            for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    head = f"{routine.name}, {routine.capacity} rows" + (
        f", loss after {routine.check}" if routine.check else ""
    )
    head += f", {routine.shards} shards" if routine.shards else ""
    return "\n".join([head, *text, *(f"  note: {note}" for note in routine.notes)])


def _parameter(state: str) -> str:
    """The parameter, or its shard, that a state belongs to: of "in.weight.exp_avg.0" it is "in.weight.0"."""
    name, _, last = state.rpartition(".")
    return f"{name.rpartition('.')[0]}.{last}" if last.isdigit() else name


def _operand_text(instruction: Instruction) -> str:
    """``out.da[20,225] row_loss[20] = batch[20,225] linear ...``: what is written = what is read.

    What says nothing new is left out: workspaces, constants that are as ever, shapes of states.
    """
    names = {slot.name for _, slot in instruction.arrays}
    written: list[str] = []
    read: list[str] = []
    parts: dict[str, list[tuple[int | float, bool]]] = {}  # of stride=(2, 1), and whether each says something
    for argument, operand in zip(instruction.row.arguments, instruction.operands, strict=True):
        if not isinstance(argument, Array) and argument.part_of and isinstance(operand, int | float):
            parts.setdefault(argument.part_of, []).append((operand, operand != argument.default))
    for argument, operand in zip(instruction.row.arguments, instruction.operands, strict=True):
        if isinstance(argument, Array):
            if operand is None or argument.role == "work":
                continue
        elif argument.part_of:
            given = parts.pop(argument.part_of, [])
            if any(says for _, says in given):
                values = [f"{value:g}" for value, _ in given]
                same = len(set(values)) == 1
                read.append(f"{argument.part_of}={values[0] if same else '(' + ','.join(values) + ')'}")
            continue
        elif argument.kind != "activation" and operand == argument.default:
            continue
        is_written = isinstance(argument, Array) and argument.written
        state = isinstance(argument, Array) and argument.role == "state"
        name = str(operand).partition("[")[0]
        if state and _parameter(name) in names:
            text = name  # of the optimiser, for the parameter of that name
        else:
            text = f"{argument.name}={operand:g}" if isinstance(operand, int | float) else str(operand)
        (written if is_written else read).append(text)
    return f"{' '.join(written)} = {' '.join(read)}"

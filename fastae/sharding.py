"""Shards of a small Program: for each of two threads half of the wide layers, in memory of its own.

::

    shard 0   x.0 ── x.0 w.0 ──┬── h ── y.0 ── loss, da.0 ── da.0 v.0^T ──┬── dh ── updates of w.0, v.0
                           exchanged                                  exchanged
    shard 1   x.1 ── x.1 w.1 ──┴── h ── y.1 ── loss, da.1 ── da.1 v.1^T ──┴── dh ── updates of w.1, v.1

What one core writes and another has read must be called back before it is written again, line by line. In a
small network that takes as long as the arithmetic, however threads share out each instruction: one updates a
weight and others read it. Here half of a wide layer's columns, with all that belongs to them of the weights
and of what the optimiser keeps, stays with one thread; what is narrow both have and compute; and what passes
from one to the other are sums, of as many numbers as a narrow layer has. That is the tensor parallelism of
Megatron-LM (Shoeybi et al., 2019), for two cores.

(A weight from wide to narrow is not cut: its rows are those of one shard, then those of the other. Where they
would be shorter than a line they lie transposed, and apart as the columns of a weight from narrow to wide.)

One thread computes the same halves one after the other: the same sums, to the same bits.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, Final, cast

from fastae.kernels.table import KERNELS, SMALL_WEIGHT
from fastae.program import ALIGNMENT, HEADER_BYTES, Instruction, Program, Routine, Slot, row_stride

__all__ = ["SHARDS", "sharded"]

#: More threads have no work in a network so small.
SHARDS: Final = 2

#: Columns of the narrowest rows in two halves: 4 lines of cache each. Chosen, not measured.
_LEAST_COLUMNS = 128

#: Between what belongs to one shard and what to the other: so many rows, and lines.
_ROOM_ROWS, _ROOM_LINES = 8, 16

#: Of the products, what both threads may compute because it is narrow: 1 / 118 of those of quark_mlp. Chosen,
#: not measured.
_MOST_COPIED = 1 / 8

_UPDATES: Final = ("dense_sgd", "dense_adam")

#: Instructions there is a method for.
_KNOWN: Final = {
    "activation_backward",
    "activation_forward",
    "branch_sum",
    "dense_forward",
    "dense_input_grad",
    "mse",
    "sse",
    "subsample_forward",
    "total",
    *_UPDATES,
}


class _Refused(Exception):
    """There is something in the Program that shards are not made for, or that they would make slower."""


def sharded(program: Program) -> Program:
    """Return a padded Program in shards where that pays, else the same one.

    Parameters
    ----------
    program : Program
        In shards it pays for dense layers with small weights, from rows of 128 columns or more to narrow ones
        and back to as many, with linear links, sse or mse, and updates that are fused with their gradients.
        Neither the batch size nor the optimiser's constants matter: a row gives the same bits in any batch.

    Returns
    -------
    Program
        All that lasts has the same name and shape as before. What is as wide as the input has `Slot.shards`.
    """
    try:
        return _Sharding(program).run()
    except _Refused:
        return program


class _Sharding:
    """One Program on its way into shards."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.unit = ALIGNMENT // program.dtype.itemsize
        self.columns = program.slots["batch"].columns
        instructions = [i for r in self.whole() for i in r.instructions]
        if any(i.kernel not in _KNOWN for i in instructions) or self.columns < _LEAST_COLUMNS:
            raise _Refused
        thinned = [_named(i) for i in instructions if i.kernel == "subsample_forward"]
        # A shard begins with a column that is kept, else with a line. The first one has more to do beside.
        step = math.lcm(*(o["stride"] for o in thinned)) if thinned else self.unit
        first = self.columns // 2 // step * step
        if not 0 < first < self.columns:
            raise _Refused
        #: Columns of the first shard, by the name of a slot that is no wider than a part of the input.
        self.first = {o["y"].name: first // o["stride"] for o in thinned if o["x"].columns == self.columns}
        self.half = first
        #: Rows of the first shard of a weight, and of what an optimiser keeps for it, from wide to so narrow
        #: that a row would be part of a line. They lie transposed: all lanes are full then.
        self.turned: dict[str, int] = {}
        for i in instructions:
            o = _named(i)
            if i.kernel in ("dense_forward", *_UPDATES) and o["w"].columns < self.unit:
                split = first if o["x"].columns == self.columns else self.first.get(o["x"].name, 0)
                alike = [slot for a, slot in i.arrays if a.dims == ("k", "m")]
                self.turned |= {slot.name: split for slot in alike if split}
        self.size = HEADER_BYTES // program.dtype.itemsize
        self.slots: dict[str, Slot] = {}
        self.place_all()
        self.emitted: list[Instruction] = []
        self.copies: dict[str, Slot] = {}  # that the second shard has of what both have
        self.waiting: list[Instruction] = []
        self.read: dict[str, Slot] = {}  # what a routine takes copies of
        # Numbers of the weights that a row is multiplied by: all, and by both threads.
        self.multiplied = self.copied = 0

    def whole(self) -> list[Routine]:
        return list(dict.fromkeys([*self.program.losing.values(), *self.program.routines.values()]))

    def run(self) -> Program:
        old = self.program
        done = {id(routine): self.routine(routine) for routine in self.whole()}
        if self.copied > _MOST_COPIED * self.multiplied:
            raise _Refused
        return replace(
            old,
            arena_size=self.size,
            slots=self.slots | {slot.name: slot for slot in self.copies.values()},
            routines={name: done[id(routine)] for name, routine in old.routines.items()},
            losing={key: done[id(routine)] for key, routine in old.losing.items()},
            parameters=tuple(self.slots[slot.name] for slot in old.parameters),
            trainable=self.stretch(old.trainable),
            statistics=self.stretch(old.statistics),
            gradients=self.stretch(old.gradients),
            states={name: cast(Slot, self.stretch(slot)) for name, slot in old.states.items()},
            state_slots={name: self.slots[name] for name in old.state_slots},
        )

    # Slots

    def cut(self, slot: Slot) -> Slot:
        """Say into what shards a slot goes: if it is as wide as the input, or a part of that."""
        transposed = slot.name in self.turned
        *rows, columns = slot.shape[::-1] if transposed else slot.shape
        first = self.first.get(slot.name, self.turned.get(slot.name, self.half))
        one_a_row = slot.batched and len(slot.shape) == 1
        if one_a_row or slot.name == "scratch" or (first == self.half and columns != self.columns):
            return slot
        shapes = enumerate(((*rows, first), (*rows, columns - first)))
        shards = tuple(replace(slot, name=f"{slot.name}.{s}", shape=shape) for s, shape in shapes)
        return replace(slot, shards=shards, transposed=transposed)

    def place_all(self) -> None:
        """Give every slot its place: stretch by stretch, what is the second shard's behind all else."""
        lasting = [(s.offset, s.offset + s.size) for s in self.program.lasting]
        for _, group in itertools.groupby(
            map(self.cut, self.program.slots.values()),
            lambda slot: next((n for n, (a, b) in enumerate(lasting) if a <= slot.offset < b), -1),
        ):
            slots = list(group)
            first = [self.place(slot.shards[0] if slot.shards else slot) for slot in slots]
            self.leave_room(max(first, key=lambda slot: slot.stride))
            for slot, one in zip(slots, first, strict=True):
                if slot.shards:
                    shards = (one, self.place(slot.shards[1]))
                    one = replace(slot, offset=one.offset, shards=shards)
                self.slots[slot.name] = one
            self.leave_room(max(first, key=lambda slot: slot.stride))

    def place(self, slot: Slot) -> Slot:
        """Give a slot its place at the end of the arena."""
        stride = row_stride(slot.columns, ALIGNMENT // self.unit) if len(slot.shape) > 1 else slot.stride
        placed = replace(slot, offset=self.size, stride=stride)
        self.size += self.lines(placed).size
        return placed

    def leave_room(self, slot: Slot) -> None:
        """Put what comes next out of the reach of a core that passes along the rows of a slot.

        It asks for what would come next, and of a column for some rows more: lines that the other core then
        has to call back. (An update of quark_mlp on two threads took 32.6 us without room, 30.7 with less
        than 3 rows, 29.3 with 8; while the cores were far apart 48, 45 and 33.)
        """
        self.size += self.unit * (_ROOM_LINES + _ROOM_ROWS * -(-slot.stride // self.unit))

    def lines(self, slot: Slot) -> Slot:
        """All of a slot with its padding, as rows of a line each: to copy and add it whatever its shape."""
        return replace(slot, shape=(-(-slot.size // self.unit), self.unit), stride=self.unit, batched=False)

    def stretch(self, slot: Slot | None) -> Slot | None:
        """The stretch of the arena in which the members of one are now."""
        if slot is None:
            return None
        old = self.program.slots
        inside = (self.slots[m.name] for m in old.values() if 0 <= m.offset - slot.offset < slot.size)
        pieces = [piece for member in inside for piece in member.pieces]
        start = min(piece.offset for piece in pieces)
        size = max(piece.offset + piece.size for piece in pieces) - start
        return replace(slot, offset=start, shape=(-(-size // self.unit) * self.unit,))

    def is_wide(self, slot: Slot) -> bool:
        return bool(self.slots[slot.name].shards)

    def of(self, slot: Slot | None, shard: int) -> Slot | None:
        """What a shard has of a slot: its columns, or a copy of all of it."""
        if slot is None or slot.index:
            return slot
        slot = self.slots[slot.name]
        if slot.shards:
            return slot.shards[shard]
        if shard == 0:
            return slot
        self.read[slot.name] = slot
        return self.own(slot, shard)

    def own(self, slot: Slot, shard: int, name: str = "") -> Slot:
        """A slot like another for one shard alone: its `name`, or a copy."""
        name = f"{slot.name}.{name}.{shard}" if name else f"{slot.name}.copy"
        if name not in self.copies:
            self.copies[name] = self.place(replace(slot, name=name))
            self.leave_room(slot)
        return self.copies[name]

    def rows(self, w: Slot | None, x: Slot, shard: int) -> Slot | None:
        """The rows of a weight that belong to the columns of `x` that a shard has, or them as columns."""
        if w is None:
            return None
        w, (first, second) = self.slots[w.name], self.slots[x.name].shards
        if w.transposed:
            return w.shards[shard]
        if w.shards:
            raise _Refused
        begin, count = (first.columns, second.columns) if shard else (0, first.columns)
        name = f"{w.name}.{shard}"
        return replace(w, name=name, offset=w.offset + begin * w.stride, shape=(count, w.shape[1]))

    # Routines

    def routine(self, old: Routine) -> Routine:
        self.emitted, self.read = [], {}
        for i in old.instructions:
            getattr(self, i.kernel)(i, _named(i))
        self.exchange()
        instructions, self.emitted = self.emitted, []
        given = {old.input.name, *(parameter.name for parameter in self.program.parameters)}
        for name, slot in self.read.items():
            if name in given:
                x, y = self.lines(slot), self.lines(self.copies[f"{name}.copy"])
                self.emit("activation_forward", 1, f"copy of {name}", x=x, activation="linear", y=y)
        instructions = self.emitted + instructions
        losses = () if old.loss is None else (self.slots["loss"], self.copies["loss.copy"])
        places = {loss.offset for loss in losses}
        knows = [
            n
            for n, i in enumerate(instructions, 1)
            if any(a.written and slot.offset in places for a, slot in i.arrays)
        ]

        def now(slot: Slot | None) -> Slot | None:
            return None if slot is None else self.slots[slot.name]

        return replace(
            old,
            instructions=tuple(instructions),
            input=self.slots[old.input.name],
            target=now(old.target),
            output=now(old.output),
            loss=now(old.loss),
            losses=losses,
            check=max(knows, default=0),
            weight=now(old.weight),
        )

    def emit(self, kernel: str, shard: int, note: str = "", *, late: bool = False, **operands: Any) -> None:
        """Append an instruction of one shard: now, or `late`, before the first that needs what it makes."""
        given = tuple(operands.get(a.name) for a in KERNELS[kernel].arguments)
        if late:
            self.waiting.append(Instruction(kernel, given, note, shard))
            return
        if self.waiting:
            made = {slot.offset for i in self.waiting for a, slot in i.arrays if a.written}
            if any(isinstance(o, Slot) and o.offset in made for o in given):
                self.exchange()
        self.emitted.append(Instruction(kernel, given, note, shard))

    def exchange(self) -> None:
        """Append what waited until now, so that shards wait for each other as seldom as can be."""
        self.emitted += self.waiting
        self.waiting = []

    def each(self, i: Instruction) -> None:
        """Append an instruction for each shard, on what that has of the operands."""
        for shard in range(SHARDS):
            named: dict[str, Any] = {
                n: self.of(o, shard) if isinstance(o, Slot) else o for n, o in _named(i).items()
            }
            self.emit(i.kernel, shard, i.note, **named)

    def added(
        self, parts: tuple[Slot, ...], y: Slot, note: str, b: Slot | None = None, activation: str = "linear"
    ) -> None:
        """Have both shards add what each has found."""
        for shard in range(SHARDS):
            made = cast(Slot, self.of(y, shard))
            made = made if len(made.shape) > 1 else _matrix(made)
            own: dict[str, Any] = {"x1": parts[0], "x2": parts[1], "b": self.of(b, shard), "y": made}
            self.emit("biased_sum", shard, note, late=True, activation=activation, **own)

    def dense_forward(self, i: Instruction, o: dict[str, Any]) -> None:
        x, w, b, y = o["x"], o["w"], o["b"], o["y"]
        if math.prod(w.shape) > SMALL_WEIGHT or (self.is_wide(x) and self.is_wide(y)):
            raise _Refused
        self.multiplied += math.prod(w.shape)
        if not self.is_wide(x):
            self.copied += 0 if self.is_wide(y) else math.prod(w.shape)
            return self.each(i)
        sums = tuple(self.own(self.slots[y.name], shard, "sum") for shard in range(SHARDS))
        for shard, part in enumerate(sums):
            rows, own = self.rows(w, x, shard), self.of(x, shard)
            if w.name in self.turned:
                operands: dict[str, Any] = {"da": own, "w": rows, "dx": part}
                self.emit("dense_input_grad", shard, "x w, w transposed", activation="linear", **operands)
            else:
                self.emit("dense_forward", shard, x=own, w=rows, activation="linear", y=part)
        self.added(sums, y, i.note or "parts of both shards", b, o["activation"])

    def dense_input_grad(self, i: Instruction, o: dict[str, Any]) -> None:
        da, w, x, dx, f = o["da"], o["w"], o["x"], o["dx"], o["activation"]
        if self.is_wide(dx):
            raise _Refused
        self.multiplied += math.prod(w.shape)
        if not self.is_wide(da):
            self.copied += math.prod(w.shape)
            return self.each(i)
        sums = tuple(self.own(self.slots[dx.name], shard, "sum") for shard in range(SHARDS))
        for shard, part in enumerate(sums):
            own: dict[str, Any] = {"da": self.of(da, shard), "w": self.of(w, shard)}
            self.emit("dense_input_grad", shard, **own, activation="linear", dx=part)
        self.added(sums, dx, "parts of both shards")
        if f != "linear":
            for shard in range(SHARDS):
                out, saved = self.of(dx, shard), self.of(x, shard)
                operands: dict[str, Any] = {"dy": out, "y": saved, "dx": out}
                self.emit("activation_backward", shard, late=True, activation=f, **operands)

    def mse(self, i: Instruction, o: dict[str, Any]) -> None:
        self.sse(i, o, "mse_part", columns=self.columns)

    def sse(self, i: Instruction, o: dict[str, Any], kernel: str = "sse", **constants: int) -> None:
        if not self.is_wide(o["y"]):
            raise _Refused
        weight = o["sample_weight"] and self.slots[o["sample_weight"].name]  # read by both
        rows = self.slots["row_loss"]
        for shard in range(SHARDS):
            own = {n: self.of(o[n], shard) for n in ("y", "target", "da")}
            own |= {"sample_weight": weight, "row_loss": self.own(rows, shard, "sum")}
            self.emit(kernel, shard, i.note, **o | own | constants)
        for shard in range(SHARDS):  # at once: what both need is exchanged at one time
            total = self.own(self.slots["loss"], shard, "sum")
            self.emit("total", shard, row_loss=self.own(rows, shard, "sum"), loss=total)

    def total(self, i: Instruction, o: dict[str, Any]) -> None:
        loss = self.slots["loss"]
        parts = tuple(_matrix(self.own(loss, shard, "sum")) for shard in range(SHARDS))
        self.added(parts, loss, "losses of both shards")
        self.exchange()  # nothing is learnt before it is known

    def subsample_forward(self, i: Instruction, o: dict[str, Any]) -> None:
        if self.is_wide(o["x"]) != self.is_wide(o["y"]):
            raise _Refused
        self.each(i)

    def elementwise(self, i: Instruction, o: dict[str, Any]) -> None:
        if len({self.is_wide(slot) for _, slot in i.arrays}) > 1:
            raise _Refused
        self.each(i)

    branch_sum = activation_forward = activation_backward = elementwise

    def dense_sgd(self, i: Instruction, o: dict[str, Any]) -> None:
        """What belongs to the wide side stays with its shard; between narrow layers the first one learns."""
        x, da = o["x"], o["da"]
        if self.is_wide(x) and self.is_wide(da):
            raise _Refused
        if self.is_wide(da):
            return self.each(i)
        if not self.is_wide(x):
            now: dict[str, Any] = {n: self.of(v, 0) if isinstance(v, Slot) else v for n, v in o.items()}
            return self.emit(i.kernel, 0, i.note, **now)
        dims = {a.name: a.dims for a in i.row.arrays}
        turned = o["w"].name in self.turned
        for shard in range(SHARDS):
            own: dict[str, Any] = {"x": self.of(x, shard), "da": self.of(da, shard)}
            if turned:
                own = {"x": own["da"], "da": own["x"]}
            for name, slot in o.items():
                if dims.get(name) == ("k", "m"):
                    own[name] = self.rows(slot, x, shard)
                elif dims.get(name) == ("m",):
                    own[name] = None if shard or turned else self.of(slot, 0)
            self.emit(i.kernel, shard, "w transposed; " * turned + i.note, **o | own)
        if turned and o["b"] is not None:
            self.update_bias(da, o)

    dense_adam = dense_sgd

    def update_bias(self, da: Slot, o: dict[str, Any]) -> None:
        """Update a bias whose weight lies transposed, so that their update does not have it."""
        optimizer = self.program.optimizer
        b, g = self.slots[o["b"].name], self.own(self.slots[o["b"].name], 0, "grad")
        states = {state: self.of(o[f"{state}_b"], 0) for state in optimizer.states}
        self.emit("bias_grad", 0, da=self.of(da, 0), db=g)
        self.emit(optimizer.kernel, 0, **o | states | {"g": g, "w": b})


def _matrix(slot: Slot) -> Slot:
    """One number as rows of a batch of one."""
    return replace(slot, shape=(1, 1), stride=slot.stride, batched=False)


def _named(i: Instruction) -> dict[str, Any]:
    """The operands of an instruction by name."""
    return {a.name: o for a, o in zip(i.row.arguments, i.operands, strict=True)}

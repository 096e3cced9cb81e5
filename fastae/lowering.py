"""Lowering a Network to a Program: a list of instructions over one arena.

::

    Network ── graph ──> ops and values ── emit ──> instructions ── number ──> Program

    arena   │ header │ trainable parameters │ running statistics │ fixed parameters │
            │ batch, activations, gradients of them, losses │ target, weights of the rows │
            │ stored gradients │ optimiser states │ scratch │

1. Every layer is turned into *ops* that read and make *values* (`build` and its registered
   functions, one for each class of layer). What can be left out exactly is left out here: a product
   with a fixed identity, a relu of what is not negative, an activation that the layer before can
   apply itself.
2. Every op emits its forward instructions once for each *mode*: "train"; "evaluate", without what is
   random and with the running statistics; "infer", as "evaluate" for codes and reconstructions. Where
   a loss takes logits for a sigmoid, that sigmoid is left out in the first two. Then, last op first,
   the ops emit their backward instructions. A gradient reaches a value either as it is or with the
   derivative of the value's activation fused into the instruction that made it.
3. Every slot has its place in the arena as soon as it is asked for; workspaces share one scratch
   stretch, whose size is known at the end.

A new layer needs a function registered with `build`, and where no op fits also an op: a class with
`forward` and `backward` (``graph.py``, and ``image_graph.py`` for images).

The numbers of a value have two faces, rows [n, m] and images [n, c, h, w]. Without padding these are one
memory under two shapes. In a padded Program images lie in blocks of rows side by side, and an instruction
takes them from one face to the other, once in a routine, where an instruction reads the other one. The
data, codes, outputs and losses are rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae import losses, optimizers
from fastae.graph import BatchNormOp, DenseOp, Op, Operand, Value, build, draw, is_identity
from fastae.image_graph import chained
from fastae.kernels.table import ACTIVATIONS, KERNELS, SMALL_WEIGHT, Array
from fastae.layers import (
    Activation,
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    GaussianNoise,
    MaskingNoise,
    Shape,
    positive_int,
)
from fastae.network import Network, Placed
from fastae.program import ALIGNMENT, HEADER_BYTES, STEP, Instruction, Program, Routine, Slot, row_stride
from fastae.sharding import sharded

__all__ = ["build", "lower"]

#: A larger arena is a mistake in a declaration rather than a wish.
MAX_ARENA_BYTES = 1 << 38

NOTHING: Mapping[str, int] = {}

# -- lowering ------------------------------------------------------------------------------------------


class _Lowering:
    """The state of lowering one network: slots, ops, and the instructions emitted so far."""

    def __init__(
        self,
        network: Network,
        batch_size: int,
        loss: losses.Loss,
        optimizer: optimizers.Optimizer,
        dtype: np.dtype[Any],
        padded: bool,
        fused_update: bool,
        noise: GaussianNoise | MaskingNoise | None,
    ) -> None:
        self.network, self.batch_size, self.loss, self.optimizer = network, batch_size, loss, optimizer
        self.dtype, self.padded, self.noise = dtype, padded, noise
        self.unit = ALIGNMENT // dtype.itemsize  # elements of an aligned block
        # The norm of all gradients is known when the last of them is: too late for a fused update.
        self.fused = fused_update and optimizer.dense_kernel is not None and optimizer.clip_norm is None
        self.mode = "train"
        self.logits: Value | None = None  # the value whose sigmoid is in the loss
        self.streams = itertools.count(1)  # 0 is the input noise, so that it moves no other stream
        self.size = HEADER_BYTES // dtype.itemsize
        self.scratch_size = 0
        self.slots: dict[str, Slot] = {}
        self.ops: list[Op] = []
        self.instructions: list[Instruction] = []
        self.notes: list[str] = []
        self.constraints: dict[str, str] = {}
        self.gradient_of: dict[str, Slot] = {}  # stored gradients by the name of their parameter
        self.state_of: dict[str, dict[str, Slot]] = {}
        self.homes: dict[str, Slot] = {}  # of a slot that is another face of one, that one
        self.faces: dict[tuple[str, Shape], Slot] = {}
        #: Of each routine by the name of a home: the faces that are filled, by the shape of a row.
        self.filled: dict[str, dict[str, dict[Shape, Slot]]] = {}
        self.routine = ""

    # Slots

    def round_up(self, elements: int) -> int:
        return -(-elements // self.unit) * self.unit

    def shaped(self, name: str, offset: int, shape: Shape, batched: bool) -> Slot:
        stride = math.prod(shape[1:])
        if self.padded and len(shape) == 4 and batched:
            return Slot(name, offset, shape, stride, batched, lanes=self.unit)
        if self.padded and len(shape) > 1:
            stride = row_stride(stride, self.dtype.itemsize)
        return Slot(name, offset, shape, stride, batched)

    def slot(self, name: str, shape: Shape, batched: bool = False) -> Slot:
        """Add a slot at the end of the arena."""
        assert name not in self.slots, f"two slots named {name}"
        slot = self.shaped(name, self.size, shape, batched)
        self.size += self.round_up(slot.size)
        self.slots[name] = slot
        return slot

    def stretch(self, name: str, members: Sequence[tuple[str, Shape]]) -> tuple[Slot | None, list[Slot]]:
        """Add slots one after the other; return the slot of them all (None for none) and each."""
        start = self.size
        slots = [self.slot(member, shape) for member, shape in members]
        return (Slot(name, start, (self.size - start,), 1) if slots else None), slots

    def rows(self, name: str, shape: Shape) -> Slot:
        """Add a slot for a batch of rows; a row of several dims lies in it flat, as in the data."""
        return self.slot(name, (self.batch_size, math.prod(shape)), batched=True)

    def value(
        self,
        name: str,
        shape: Shape,
        inputs: Iterable[Value],
        activation: str = "linear",
        trainable: bool = False,
    ) -> Value:
        """Add a value of the batch that is made from `inputs`."""
        if len(shape) == 3:
            slot = self.slot(f"{name}.out", (self.batch_size, *shape), batched=True)
        else:
            slot = self.rows(f"{name}.out", shape)
        needs = trainable or any(x.needs_gradient for x in inputs)
        return Value(name, slot, activation, ACTIVATIONS[activation].nonnegative, needs)

    def face(self, slot: Slot, shape: Shape) -> Slot:
        """Return the numbers of a batched slot as rows of that shape, (m,) or (c, h, w).

        In a padded Program the instruction that lays them so is emitted unless the routine has it already.
        """
        if not self.padded:
            if slot.shape[1:] == shape:
                return slot
            return self.shaped(slot.name, slot.offset, (slot.shape[0], *shape), slot.batched)
        home = self.homes.get(slot.name, slot)
        filled = self.filled.setdefault(self.routine, {}).setdefault(home.name, {home.shape[1:]: home})
        if shape not in filled:
            face = self.other_face(home, shape)
            if len(shape) == 1:
                self.emit("rows_from_images", x=next(iter(filled.values())), y=face)
            else:
                self.emit("images_from_rows", x=self.face(slot, (math.prod(shape),)), y=face)
            filled[shape] = face
        return filled[shape]

    def other_face(self, home: Slot, shape: Shape) -> Slot:
        """Return the slot for a face of what is at home elsewhere."""
        if shape == home.shape[1:]:  # of a code that came as rows
            return home
        key = home.name, shape
        if key not in self.faces:
            name = f"{home.name}.{'rows' if len(shape) == 1 else 'images'}"
            if name in self.slots:
                name += f".{'x'.join(map(str, shape))}"
            self.faces[key] = self.slot(name, (home.shape[0], *shape), batched=True)
            self.homes[name] = home
        return self.faces[key]

    def rows_of(self, slot: Slot) -> Slot:
        """Return the numbers of a batched slot as rows [n, m]."""
        return self.face(slot, (math.prod(slot.shape[1:]),))

    def width(self, x: Value) -> Shape:
        """The shape of a value's row, flat."""
        return (math.prod(x.slot.shape[1:]),)

    def is_nonnegative(self, activation: str) -> bool:
        """Whether an activation gives nothing negative."""
        return ACTIVATIONS[activation].nonnegative

    # The graph

    def add(self, op: Op) -> Value:
        for x in op.inputs:
            x.uses += 1
        self.ops.append(op)
        return op.output

    def chain(self, chain: Sequence[Placed], x: Value) -> Value:
        return chained(self, self.merged(chain), x)

    def merged(self, chain: Sequence[Placed]) -> list[Placed]:
        """Let linear layers apply the activation that follows: within a chain nothing else reads them."""
        done: list[Placed] = []
        for placed in chain:
            f = placed.layer.activation if isinstance(placed.layer, Activation) else ""
            last = done[-1].layer if done else None
            if f == "linear":
                continue
            if (
                f in ACTIVATIONS
                and isinstance(last, Dense | BatchNorm | Conv2D | ConvTranspose2D)
                and last.activation == "linear"
                and not is_identity(done[-1])
            ):
                done[-1] = replace(done[-1], layer=replace(last, activation=f))
                self.notes.append(f"{placed.name}: {f} fused into {done[-1].name}")
            else:
                done.append(placed)
        return done

    def absent(self, x: Value) -> bool:
        """Whether the op that makes `x` is left out in the present mode."""
        return x.source is not None and (
            (x.random and self.mode != "train") or (x is self.logits and self.mode != "infer")
        )

    def place(self, x: Value) -> Slot:
        """Where the content of a value is in the present mode."""
        while x.source is not None and self.absent(x):
            x = x.source
        return x.slot

    def activation(self, x: Value) -> str:
        """The activation that the op of `x` applies in the present mode."""
        return "linear" if x is self.logits and self.mode != "infer" else x.activation

    # Instructions

    def begin(self, mode: str, routine: str | None = None) -> None:
        """Begin a list of instructions, or one more of the same routine."""
        self.mode, self.routine, self.instructions = mode, routine or mode, []

    def forward(self, ops: Iterable[Op], mode: str, routine: str | None = None) -> list[Instruction]:
        """Return the forward instructions of some ops in a mode."""
        self.begin(mode, routine)
        present = [op for op in ops if not self.absent(op.output)]
        waiting: DenseOp | None = None
        for op, following in itertools.zip_longest(present, present[1:]):
            if waiting is not None and isinstance(op, BatchNormOp):
                op.forward_with(self, waiting)
                waiting = None
            elif isinstance(op, DenseOp) and isinstance(following, BatchNormOp) and op.only_for(following):
                waiting = op
            else:
                op.forward(self)
        return self.instructions

    def inferring(
        self, routine: str, ops: Iterable[Op], x: Value, y: Value
    ) -> tuple[list[Instruction], Slot, Slot]:
        """Return what takes rows of `x` to rows of `y`: instructions, input and output."""
        self.mode, self.routine = "infer", routine
        home = self.place(x)
        if self.padded and len(home.shape) > 2:  # rows come from outside
            rows = self.other_face(home, self.width(x))
            self.filled[routine] = {home.name: {self.width(x): rows}}
        source = self.rows_of(home)
        instructions = self.forward(ops, "infer", routine)
        return instructions, source, self.rows_of(self.place(y))

    def losing(self, y: Value, mode: str, **operands: Slot) -> list[Instruction]:
        """Return the instructions that take the output to the loss and its gradient."""
        self.begin(mode)
        row = KERNELS["bce_with_logits" if self.logits is not None else self.loss.kernel]
        f, note = y.fusable, ""
        constants: dict[str, float | str] = dict(self.loss.constants)
        if "activation" in {c.name for c in row.constants}:
            constants["activation"] = f
            note = f"derivative of {y.name}'s {f} fused" if f != "linear" else ""
        elif self.logits is not None:
            note = f"{y.name}'s sigmoid and {self.loss.name} in one"
        operands[row.arrays[0].name] = self.rows_of(self.place(y))
        self.emit(row.name, note, row_loss=self.slots["row_loss"], **operands, **constants)
        self.emit("total", row_loss=self.slots["row_loss"], loss=self.slots["loss"])
        return self.instructions

    def emit(
        self, kernel: str, note: str = "", spare: Mapping[str, int] = NOTHING, /, **operands: Operand
    ) -> None:
        """Append an instruction, its operands by the names of the table; workspaces are found here.

        Of those that a padded Program can go without it has the ones in `spare`, with so many elements.
        """
        row = KERNELS[kernel]
        given = tuple(operands.get(a.name) for a in row.arguments)
        instruction = Instruction(kernel, given, note)
        dims = instruction.dims()  # checks that the shapes agree
        varying = {a.dims[0] for a, slot in instruction.arrays if slot.batched}
        used = 0
        for a in row.arrays:
            if a.role != "work" or (a.spare and self.padded and a.name not in spare):
                continue
            # Offset within the scratch stretch, whose place is not known yet.
            shape = (spare[a.name],) if a.spare and self.padded else row.shape(a, dims)
            slot = self.shaped("scratch", used, shape, a.dims[0] in varying)
            used += self.round_up(slot.size)
            operands[a.name] = slot
        missing = [
            a.name
            for a in row.arguments
            if operands.get(a.name) is None
            and not (isinstance(a, Array) and (a.optional or (a.spare and self.padded)))
        ]
        if missing or operands.keys() - {a.name for a in row.arguments}:
            raise ValueError(
                f"{kernel}: operands must be those of its row; missing {missing}, got {[*operands]}"
            )
        self.scratch_size = max(self.scratch_size, used)
        self.instructions.append(
            Instruction(kernel, tuple(operands.get(a.name) for a in row.arguments), note)
        )

    # Gradients

    def gradient_slot(self, x: Value, reader: str, shape: Shape, *, fused: bool) -> Slot:
        """Add a slot for the gradient that `reader` sends to `x`, in rows of that shape.

        `fused` promises that what goes there is multiplied by the derivative of `x.fusable`.
        """
        whole = x.uses == 1 and (fused or x.activation == "linear")
        name = f"{x.name}.da" if whole else f"{reader}.dx"
        slot = self.slot(name, (self.batch_size, *shape), batched=True)
        x.gradients.append(slot)
        x.fused = whole
        return slot

    def pass_gradient(self, x: Value, gradient: Slot) -> None:
        """Send `x` a gradient that lies elsewhere: nothing is copied."""
        if x.needs_gradient:
            x.gradients.append(gradient)

    def gradient(self, op: Op) -> Slot:
        """Return the whole gradient of an op's output before its activation, as the op wants it."""
        x, shape = op.output, (self.batch_size, *self.width(op.output))
        total = x.gradients[0]
        whole = x.activation == "linear" or x.fused
        for i, other in enumerate(x.gradients[1:], 1):
            last = i == len(x.gradients) - 1 and whole
            both = self.slot(f"{x.name}.da" if last else f"{x.name}.dy{i}", shape, batched=True)
            x1, x2 = self.rows_of(total), self.rows_of(other)
            self.emit("branch_sum", "gradients of several readers added", x1=x1, x2=x2, y=both)
            total = both
        if not whole and not op.differentiates:
            da = self.slot(f"{x.name}.da", shape, batched=True)
            dy, y = self.rows_of(total), self.rows_of(x.slot)
            self.emit("activation_backward", dy=dy, y=y, activation=x.activation, dx=da)
            total = da
        return total

    def dense_update(self, x: Slot, da: Slot, w: Slot, b: Slot | None) -> None:
        """Emit the gradient of a dense layer's parameters, applied at once where that is wanted."""
        if not self.fused:
            db = None if b is None else self.gradient_of[b.name]
            self.emit("dense_weight_grad", x=x, da=da, dw=self.gradient_of[w.name], db=db)
            return
        states: dict[str, Slot | None] = {}
        for state, slots in self.state_of.items():
            states[f"{state}_w"] = slots[w.name]
            states[f"{state}_b"] = None if b is None else slots[b.name]
        assert self.optimizer.dense_kernel is not None
        self.emit(
            self.optimizer.dense_kernel,
            "gradient and update in one",
            x=x,
            da=da,
            w=w,
            b=b,
            **states,
            **self.step(self.optimizer.dense_kernel),
            **self.optimizer.constants,
        )

    def step(self, kernel: str) -> dict[str, Slot]:
        """The number of updates done, for a kernel that asks for it."""
        return {"step": STEP} if "step" in {a.name for a in KERNELS[kernel].arrays} else {}

    def update(self, gradients: Slot, w: Slot, states: dict[str, Slot], note: str) -> None:
        """Emit the update of a stretch of parameters from the stretch of their gradients."""
        if self.optimizer.clip_norm is not None:
            norm = self.slot("gradient_norm", (1,))
            self.emit("clip_by_norm", max_norm=self.optimizer.clip_norm, g=gradients, norm=norm)
        kernel = self.optimizer.kernel
        step, constants = self.step(kernel), self.optimizer.constants
        self.emit(kernel, note, g=gradients, w=w, **states, **step, **constants)

    # All of it

    def run(self) -> Program:
        network, batch = self.network, self.batch_size
        specs = network.parameters
        # Parameters that no fused update changes come first, so that one instruction can.
        dense = {
            p.name for placed in network.layers if isinstance(placed.layer, Dense) for p in placed.parameters
        }
        fused = dense if self.fused else set()
        learned = [p for p in specs if p.trainable]
        learned.sort(key=lambda p: p.name in fused)
        stored = [p for p in learned if p.name not in fused]
        trainable, _ = self.stretch("trainable", [(p.name, p.shape) for p in learned])
        statistics, _ = self.stretch("statistics", [(p.name, p.shape) for p in specs if p.statistic])
        # Fixed parameters lie behind what a step reads and writes; most are never touched again.
        self.stretch("fixed", [(p.name, p.shape) for p in specs if not (p.trainable or p.statistic)])
        self.constraints |= {p.name: "nonnegative" for p in specs if p.statistic and p.name.endswith("_var")}

        batch_value = x = Value("batch", self.rows("batch", network.input_shape))
        if self.noise is not None:  # a name with a dot, as no layer has it
            x = draw(self, "batch.noise", self.noise, x, 0)
        code = self.chain(network.placed_encoder, x)
        encoder, encoder_notes = len(self.ops), len(self.notes)
        # A code may also come from outside, where nothing is known of its sign.
        code.nonnegative = False
        y = self.chain(network.placed_decoder, code)
        y.uses += 1  # the loss
        if y.activation == "sigmoid":
            if self.loss.kernel == "bce" and y.uses == 1:
                self.logits = y
            if self.loss.kernel == "bce_with_logits":
                raise ValueError(
                    "loss bce_with_logits takes logits, and the output of the network ends with a sigmoid: "
                    "use bce, which is fused with it, or a linear output"
                )
        ahead = {mode: self.forward(self.ops, mode) for mode in ("train", "evaluate")}
        encode = self.inferring("encode", self.ops[:encoder], batch_value, code)
        decode = self.inferring("decode", self.ops[encoder:], code, y)
        reconstruct = self.inferring("reconstruct", self.ops, batch_value, y)

        self.slot("row_loss", (batch,), batched=True)
        loss = self.slot("loss", (1,))
        takes = self.logits is not None or "activation" in {
            c.name for c in KERNELS[self.loss.kernel].constants
        }
        da = self.gradient_slot(y, "batch.loss", self.width(y), fused=takes)
        target = self.slot("target", da.shape, batched=True)
        weight = self.slot("sample_weight", (batch,), batched=True)
        for mode, instructions in ahead.items():
            instructions += self.losing(y, mode, target=target, sample_weight=weight, da=da)

        gradients, slots = self.stretch("gradients", [(f"{p.name}.grad", p.shape) for p in stored])
        self.gradient_of = {p.name: slot for p, slot in zip(stored, slots, strict=True)}
        states: dict[str, Slot] = {}
        state_slots: dict[str, Slot] = {}
        for state in self.optimizer.states:
            whole, slots = self.stretch(state, [(f"{p.name}.{state}", p.shape) for p in learned])
            self.state_of[state] = {p.name: slot for p, slot in zip(learned, slots, strict=True)}
            state_slots |= {slot.name: slot for slot in slots}
            if whole is not None:
                states[state] = whole
        self.begin("train")
        for op in reversed(self.ops):
            if op.output.needs_gradient:
                op.backward(self, self.gradient(op))
        if gradients is not None and trainable is not None:
            note = "all parameters at once" if not fused else "all parameters outside dense layers at once"
            first = {name: replace(s, shape=gradients.shape) for name, s in states.items()}
            self.update(gradients, replace(trainable, shape=gradients.shape), first, note)
        ahead["train"] += self.instructions

        scratch = self.slot("scratch", (self.scratch_size,)) if self.scratch_size else None
        if self.size * self.dtype.itemsize > MAX_ARENA_BYTES:
            raise ValueError(
                f"batch_size {batch} and the network's widths ask for an arena of "
                f"{self.size * self.dtype.itemsize / 2**30:.0f} GiB; expected at most {MAX_ARENA_BYTES >> 30}"
            )

        def routine(
            name: str,
            parts: list[Instruction],
            source: Slot,
            notes: Sequence[str],
            *,
            own_target: bool = False,
            weighted: bool = False,
            output: Slot | None = None,
        ) -> Routine:
            def place(slot: Slot) -> Slot | None:
                if scratch is not None and slot.name == scratch.name:
                    return replace(slot, offset=slot.offset + scratch.offset)
                if slot is weight and not weighted:
                    return None
                return source if slot is target and not own_target else slot

            placed = _scheduled([_map_slots(i, place) for i in parts])
            check = next((n for n, i in enumerate(placed, 1) if i.kernel == "total"), 0)
            return Routine(
                name,
                tuple(placed),
                source,
                target if own_target else None,
                output,
                loss if check else None,
                check,
                name == "train" and bool(learned),
                weight if weighted else None,
                tuple(notes),
                self.dtype.itemsize,
            )

        own_targets = (False, True) if target.shape == batch_value.slot.shape else (True,)
        losing = {
            (name, own, weighted): routine(
                name, parts, batch_value.slot, self.notes, own_target=own, weighted=weighted
            )
            for name, parts in ahead.items()
            for own in own_targets
            for weighted in (False, True)
        }
        own = {
            "encode": (*encode, self.notes[:encoder_notes]),
            "decode": (*decode, self.notes[encoder_notes:]),
            "reconstruct": (*reconstruct, self.notes),
        }
        inference = {
            name: routine(name, parts, source, notes, output=output)
            for name, (parts, source, output, notes) in own.items()
        }
        return Program(
            network=network,
            batch_size=batch,
            loss=self.loss,
            optimizer=self.optimizer,
            dtype=self.dtype,
            padded=self.padded,
            noise=self.noise,
            arena_size=self.size,
            slots=self.slots,
            routines={name: losing[name, False, False] for name in ahead if False in own_targets} | inference,
            parameters=tuple(self.slots[p.name] for p in specs),
            trainable=trainable,
            statistics=statistics,
            gradients=None if fused else gradients,
            states=states,
            state_slots=state_slots,
            constraints=self.constraints,
            needs_rows=max([1, *(op.needs_rows for op in self.ops if isinstance(op, BatchNormOp))]),
            losing=losing,
        )


def _map_slots(instruction: Instruction, change: Callable[[Slot], Slot | None]) -> Instruction:
    """Return the instruction with each of its slots changed."""
    return replace(
        instruction, operands=tuple(change(o) if isinstance(o, Slot) else o for o in instruction.operands)
    )


def _scheduled(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Put small updates, and the loss's sum, behind what goes on row by row, without a barrier in between.

    A large weight is updated at once, while it is in a near cache.
    """
    last: list[Instruction] = []
    now: list[Instruction] = []
    for i in instructions:
        weight = next((slot for a, slot in i.arrays if a.name == "w" and a.role == "state"), None)
        small = weight is not None and len(weight.shape) == 2 and math.prod(weight.shape) <= SMALL_WEIGHT
        (last if small else now).append(i)
    now += last
    total = next((n for n, i in enumerate(now) if i.kernel == "total"), None)
    if total is not None:
        # before anything of the way back that lasts
        changes = [n for n, i in enumerate(now) if n > total and any(a.role == "state" for a, _ in i.arrays)]
        now.insert(min(changes, default=len(now)) - 1, now.pop(total))
    return now


def lower(
    network: Network,
    *,
    batch_size: int,
    loss: str | losses.Loss,
    optimizer: str | optimizers.Optimizer,
    dtype: npt.DTypeLike = "float32",
    padded: bool = False,
    fused_update: bool = False,
    noise: GaussianNoise | MaskingNoise | None = None,
    shards: bool = False,
) -> Program:
    """Turn a network into a Program.

    Parameters
    ----------
    network : Network
        The declaration.
    batch_size : int
        Most rows of one batch, >= 1.
    loss : str or Loss
        What training makes small.
    optimizer : str or Optimizer
        How.
    dtype : "float32" or "float64"
        Of everything in the arena.
    padded : bool
        Give arrays of two or more dims the row strides of `fastae.program.row_stride`.
    fused_update : bool
        Apply the gradient of a dense layer as it is computed, if the optimiser has a kernel for it
        and clips nothing; those gradients are not stored then.
    noise : GaussianNoise or MaskingNoise, optional
        In training the network reads the batch with this noise, drawn anew for each batch; the loss
        compares its output with the batch as it is, or with the target.
    shards : bool
        Put a padded Program with fused updates into shards, one for each of two threads, where that pays:
        `fastae.sharding`.

    Returns
    -------
    Program

    Raises
    ------
    ValueError
        When an argument is not as stated, the loss does not fit the output, or the arena would be
        absurdly large.
    """
    if not isinstance(network, Network):
        raise ValueError(f"network must be a Network; got {network!r:.100}")
    batch_size = positive_int("batch_size", batch_size)
    try:
        real = np.dtype(dtype)
    except TypeError:
        real = np.dtype(object)
    if dtype is None or real not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be float32 or float64; got {dtype!r}")
    if noise is not None and not isinstance(noise, GaussianNoise | MaskingNoise):
        raise ValueError(f"noise must be None, GaussianNoise or MaskingNoise; got {noise!r:.100}")
    lowering = _Lowering(
        network,
        batch_size,
        losses.resolve(loss),
        optimizers.resolve(optimizer),
        real,
        padded,
        fused_update,
        noise,
    )
    program = lowering.run()
    return sharded(program) if shards and padded else program

"""Lowering a Network to a Program: a list of instructions over one arena.

::

    Network ── graph ──> ops and values ── emit ──> instructions ── number ──> Program

    arena   │ header │ trainable parameters │ batch, activations, gradients of them, losses │
            │ fixed parameters │ target │ stored gradients │ optimiser states │ scratch │

1. Every layer is turned into *ops* that read and make *values* (`build` and its registered
   functions, one for each class of layer). What can be left out exactly is left out here: a product
   with a fixed identity, a relu of what is not negative.
2. Every op emits its forward instructions, then, last op first, its backward ones. A gradient
   reaches a value either as it is or with the derivative of the value's activation fused into the
   instruction that made it.
3. Every slot has its place in the arena as soon as it is asked for; workspaces share one scratch
   stretch, whose size is known at the end.

A new layer needs a function registered with `build`; where no op here fits, also an op: a class with
`forward` and `backward`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae import losses, optimizers
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Kernel
from fastae.layers import Activation, Dense, Layer, Parallel, Shape, Subsample, positive_int
from fastae.network import Network, Placed

__all__ = ["HEADER_BYTES", "WIDTH", "Instruction", "Program", "Routine", "Slot", "lower"]

#: Columns of an encoded instruction.
WIDTH = 32

#: Every slot starts on such a boundary and ends before the next one: a cache line, a vector register.
ALIGNMENT = 64

#: The arena begins with this many bytes read as int64: [0] updates done so far, [1] the seed.
HEADER_BYTES = 64

#: A larger arena is a mistake in a declaration rather than a wish.
MAX_ARENA_BYTES = 1 << 38


@dataclass(frozen=True)
class Slot:
    """The place of one array in the arena.

    Parameters
    ----------
    name : str
        Such as "in.weight", "in.out", "batch".
    offset : int
        Of its first element, in elements from the arena's start.
    shape : tuple of int
        Logical shape, without padding.
    stride : int
        Elements from one row to the next; 1 for an array of one dimension.
    batched : bool
        Whether shape[0] is the batch's capacity, of which fewer rows may be used.
    """

    name: str
    offset: int
    shape: Shape
    stride: int
    batched: bool = False

    @property
    def size(self) -> int:
        """Elements from the first to the end of the last row, padding included."""
        return self.shape[0] * self.stride

    def __str__(self) -> str:
        return f"{self.name}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Instruction:
    """One call of a kernel.

    Parameters
    ----------
    kernel : str
        Row of the table.
    operands : tuple
        One for each argument of the row, in its order: a Slot, None for an absent optional array,
        a number, or the name of an activation.
    note : str
        What a reader of the listing should know.
    barrier : bool
        Whether a team of threads must meet after this instruction, before the next.
    """

    kernel: str
    operands: tuple[Slot | int | float | str | None, ...]
    note: str = ""
    barrier: bool = True

    @property
    def row(self) -> Kernel:
        """The kernel's row of the table."""
        return KERNELS[self.kernel]

    @property
    def arrays(self) -> tuple[tuple[Array, Slot], ...]:
        """The array arguments that are present, each with its slot."""
        pairs = zip(self.row.arguments, self.operands, strict=True)
        return tuple((a, o) for a, o in pairs if isinstance(a, Array) and isinstance(o, Slot))

    def dims(self, rows: int | None = None) -> dict[str, int]:
        """Return the value of every dim in the table's order, for `rows` rows of a batch (None: all).

        Raises
        ------
        ValueError
            When two operands disagree.
        """
        found: dict[str, int] = {}
        for array, slot in self.arrays:
            shape = slot.shape if rows is None or not slot.batched else (rows, *slot.shape[1:])
            if len(shape) != len(array.dims):
                raise ValueError(f"{self.kernel}: {array.name} must have dims {array.dims}; got {slot}")
            for dim, length in zip(array.dims, shape, strict=True):
                expected = int(dim) if dim.isdigit() else found.setdefault(dim, length)
                if length != expected:
                    raise ValueError(f"{self.kernel}: {dim} of {array.name} must be {expected}; got {slot}")
        return {dim: found[dim] for dim in self.row.dims}

    @property
    def constants(self) -> dict[str, int | float | str]:
        """The constant arguments by name."""
        pairs = zip(self.row.arguments, self.operands, strict=True)
        return {a.name: o for a, o in pairs if not isinstance(a, Array)}  # type: ignore[misc]

    def flops(self, rows: int | None = None) -> float:
        """Count the floating-point operations."""
        return self.row.count_flops(self.dims(rows), self.constants)

    def bytes(self, itemsize: int, rows: int | None = None) -> int:
        """Count the bytes moved if every array is read or written once."""
        present = {array.name for array, _ in self.arrays}
        return self.row.count_bytes(self.dims(rows), itemsize, present)

    def encode(self, rows: int | None = None) -> list[int]:
        """Return the instruction as int64 numbers: kernel, barrier, one for each argument, the dims."""
        numbers = [list(KERNELS).index(self.kernel), int(self.barrier)]
        for argument, operand in zip(self.row.arguments, self.operands, strict=True):
            if operand is None:
                numbers.append(-1)
            elif isinstance(operand, Slot):
                numbers.append(operand.offset)
            elif isinstance(operand, str):
                numbers.append(ACTIVATIONS[operand].code)
            elif not isinstance(argument, Array) and argument.kind == "real":
                numbers.append(struct.unpack("<q", struct.pack("<d", operand))[0])
            else:
                numbers.append(int(operand))
        return numbers + list(self.dims(rows).values())


@dataclass(frozen=True, eq=False)
class Routine:
    """A list of instructions with its input and output, for one batch.

    Parameters
    ----------
    name : str
        "train", "evaluate", "encode", "decode" or "reconstruct".
    instructions : tuple of Instruction
        In the order they run. Gathering the batch and the loop over batches are the executor's.
    input : Slot
        Where the rows of the data go.
    target : Slot or None
        Where the rows of the target go; None when there is none or when it is the input.
    output : Slot or None
        Where the rows of the result are.
    loss : Slot or None
        Where the loss of the batch is, one number.
    check : int
        Number of leading instructions after which the loss is known, 0 without a loss.
    trains : bool
        Whether it updates parameters.
    notes : tuple of str
        What the listing says of instructions that were left out.
    itemsize : int
        Bytes of an element.
    """

    name: str
    instructions: tuple[Instruction, ...]
    input: Slot
    target: Slot | None
    output: Slot | None
    loss: Slot | None
    check: int
    trains: bool
    notes: tuple[str, ...] = ()
    itemsize: int = 8
    _encoded: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)

    @property
    def capacity(self) -> int:
        """Most rows of one batch."""
        return self.input.shape[0]

    def encode(self, rows: int | None = None) -> npt.NDArray[np.int64]:
        """Return the instructions as numbers, for a batch of `rows` rows.

        Parameters
        ----------
        rows : int, optional
            Between 1 and the capacity, which is the default.

        Returns
        -------
        ndarray of int64, (instructions, WIDTH), C-contiguous
            As the table describes: column 0 the kernel's place in ``tuple(KERNELS)``, column 1 the
            barrier, then the operands. The array is kept and given again: do not write to it.

        Raises
        ------
        ValueError
            When `rows` is out of bounds.
        """
        rows = self.capacity if rows is None else rows
        code = self._encoded.get(rows)
        if code is None:
            rows = positive_int("rows", rows)
            if rows > self.capacity:
                raise ValueError(f"rows must be at most the batch size {self.capacity}; got {rows}")
            code = np.zeros((len(self.instructions), WIDTH), np.int64)
            for line, instruction in zip(code, self.instructions, strict=True):
                numbers = instruction.encode(rows)
                line[: len(numbers)] = numbers
            self._encoded[rows] = code
        return code

    def flops(self, rows: int | None = None) -> float:
        """Count the floating-point operations of one batch."""
        return sum(i.flops(rows) for i in self.instructions)

    def bytes(self, rows: int | None = None) -> int:
        """Count the bytes one batch moves if every instruction reads or writes each array once."""
        return sum(i.bytes(self.itemsize, rows) for i in self.instructions)

    def listing(self) -> str:
        """Return the instructions as a table: number, instruction, operands, MFLOP, KiB, note."""
        lines = [("#", "instruction", "operands", "MFLOP", "KiB", "note")]
        gathered = [slot for slot in (self.input, self.target) if slot is not None]
        for slot in gathered:
            kib = 2 * math.prod(slot.shape) * self.itemsize / 1024
            lines.append(("", "gather_rows", f"{slot} = data", "0", f"{kib:.1f}", "by the executor"))
        if self.input.name != "batch":
            lines[1] = ("", "copy", f"{self.input} = data", "0", lines[1][4], "by the executor")
        for number, i in enumerate(self.instructions):
            lines.append(
                (
                    str(number),
                    i.kernel,
                    _operand_text(i),
                    f"{i.flops() / 1e6:.3f}",
                    f"{i.bytes(self.itemsize) / 1024:.1f}",
                    i.note,
                )
            )
        lines.append(("", "total", "", f"{self.flops() / 1e6:.3f}", f"{self.bytes() / 1024:.1f}", ""))
        right = (0, 3, 4)
        widths = [max(len(line[c]) for line in lines) for c in range(6)]
        text = [
            "  ".join(
                cell.rjust(w) if c in right else cell.ljust(w)
                for c, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        head = f"{self.name}, {self.capacity} rows" + (f", loss after {self.check}" if self.check else "")
        return "\n".join([head, *text, *(f"  note: {note}" for note in self.notes)])


def _operand_text(instruction: Instruction) -> str:
    """``out.da[20,225] row_loss[20] = batch[20,225] linear ...``: what is written = what is read."""
    written: list[str] = []
    read: list[str] = []
    for argument, operand in zip(instruction.row.arguments, instruction.operands, strict=True):
        if operand is None or (isinstance(argument, Array) and argument.role == "work"):
            continue
        is_written = isinstance(argument, Array) and argument.written
        text = f"{argument.name}={operand:g}" if isinstance(operand, int | float) else str(operand)
        (written if is_written else read).append(text)
    return f"{' '.join(written)} = {' '.join(read)}"


@dataclass(frozen=True, eq=False)
class Program:
    """A Network lowered for one batch size, loss, optimiser and dtype.

    Parameters
    ----------
    network : Network
        What was lowered.
    batch_size : int
        Capacity of a batch.
    loss, optimizer
        The declarations.
    dtype : numpy.dtype
        float32 or float64.
    padded : bool
        Whether row strides of arrays of two or more dims are multiples of 64 bytes.
    arena_size : int
        Elements of the arena.
    slots : dict of str to Slot
        Every slot by name; no two overlap. (The scratch stretch is "scratch".)
    routines : dict of str to Routine
        The routines for a network whose target is its input, as far as that is possible; see
        `routine` for the others.
    parameters : tuple of Slot
        Every parameter, fixed ones too, in the order of the layers.
    trainable : Slot or None
        The stretch that holds the trainable parameters, padding included.
    gradients : Slot or None
        The stretch of their gradients, laid out alike; None where none is stored.
    states : dict of str to Slot
        For each state of the optimiser a stretch laid out alike.
    constraints : dict of str to str
        Parameters that must keep a value since the instructions rely on it: "identity" or "zeros".
    """

    network: Network
    batch_size: int
    loss: losses.Loss
    optimizer: optimizers.Optimizer
    dtype: np.dtype[Any]
    padded: bool
    arena_size: int
    slots: dict[str, Slot]
    routines: dict[str, Routine]
    parameters: tuple[Slot, ...]
    trainable: Slot | None
    gradients: Slot | None
    states: dict[str, Slot]
    constraints: dict[str, str]
    _with_target: dict[str, Routine]

    def routine(self, name: str, own_target: bool = False) -> Routine:
        """Return a routine by name.

        Parameters
        ----------
        name : str
            "train", "evaluate", "encode", "decode" or "reconstruct".
        own_target : bool
            For "train" and "evaluate": whether the loss compares the output with rows of a target
            (slot "target") rather than with the input.

        Raises
        ------
        ValueError
            When there is no such routine, or the output and the input differ in shape and the
            target is to be the input.
        """
        known = {**self.routines, **self._with_target}
        if name not in known:
            raise ValueError(f"routine must be one of {', '.join(known)}; got {name!r}")
        if own_target:
            return known[name]
        if name not in self.routines:
            shapes = f"output {self.network.output_shape}, input {self.network.input_shape}"
            raise ValueError(
                f"target must be given where the output has another shape than the input: {shapes}"
            )
        return self.routines[name]

    def new_arena(self) -> npt.NDArray[Any]:
        """Return a zeroed arena, (arena_size,) of the Program's dtype, on a 64-byte boundary."""
        block = np.zeros(self.arena_size * self.dtype.itemsize + ALIGNMENT, np.uint8)
        start = -block.ctypes.data % ALIGNMENT
        return block[start : start + self.arena_size * self.dtype.itemsize].view(self.dtype)

    def header(self, arena: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the header of an arena, (8,) int64: [0] updates done so far, [1] the seed."""
        return self._checked(arena)[: HEADER_BYTES // self.dtype.itemsize].view(np.int64)

    def view(self, arena: npt.NDArray[Any], slot: str | Slot) -> npt.NDArray[Any]:
        """Return a slot of an arena as an array of its logical shape; with padding it is strided."""
        if not isinstance(slot, Slot):
            if slot not in self.slots:
                raise ValueError(f"slot must be one of {', '.join(self.slots)}; got {slot!r}")
            slot = self.slots[slot]
        item = self.dtype.itemsize
        strides = [item]
        for length in slot.shape[:1:-1]:
            strides.insert(0, strides[0] * length)
        if len(slot.shape) > 1:
            strides.insert(0, slot.stride * item)
        return np.ndarray(slot.shape, self.dtype, self._checked(arena), slot.offset * item, tuple(strides))

    def read_weights(self, arena: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return copies of every parameter by name."""
        return {slot.name: self.view(arena, slot).copy() for slot in self.parameters}

    def write_weights(self, arena: npt.NDArray[Any], weights: Mapping[str, npt.ArrayLike]) -> None:
        """Set every parameter.

        Parameters
        ----------
        arena : ndarray
            Written only when all of `weights` is as it must be.
        weights : mapping of str to array
            One array of real numbers for each parameter; they are rounded to the Program's dtype.

        Raises
        ------
        ValueError
            When a name is missing or unknown, a shape differs, a value is not finite, or a value
            breaks one of `constraints`.
        TypeError
            When an array does not hold real numbers.
        """
        self._checked(arena)
        expected = [slot.name for slot in self.parameters]
        if wrong := sorted(set(expected) ^ set(weights)):
            raise ValueError(f"weights must have the names {', '.join(expected)}; wrong: {', '.join(wrong)}")
        arrays = [(slot, self.check_weight(slot.name, weights[slot.name])) for slot in self.parameters]
        for slot, array in arrays:
            self.view(arena, slot)[...] = array

    def check_weight(self, name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return `value` in the Program's dtype; errors as `write_weights` for one parameter."""
        slot = self.slots[name]
        array = np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{name} must hold real numbers; got dtype {array.dtype}")
        if array.shape != slot.shape:
            raise ValueError(f"{name} must have shape {slot.shape}; got {array.shape}")
        with np.errstate(over="ignore"):
            array = array.astype(self.dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite in {self.dtype}; got NaN or infinity")
        demand = self.constraints.get(name)
        if demand is not None:
            must = np.eye(slot.shape[0], slot.shape[1]) if demand == "identity" else np.zeros(slot.shape)
            if not np.array_equal(array, must):
                raise ValueError(f"{name} is fixed: it must be {demand}; got other values")
        return array

    def _checked(self, arena: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if arena.dtype != self.dtype or arena.shape != (self.arena_size,):
            raise ValueError(
                f"arena must have shape ({self.arena_size},) and dtype {self.dtype}; "
                f"got {arena.shape} and {arena.dtype}"
            )
        return arena

    def __str__(self) -> str:
        net = self.network
        kib = self.arena_size * self.dtype.itemsize / 1024
        header = (
            f"program of {net.name or 'network'}: batch {self.batch_size}, {self.dtype}, "
            f"arena {kib:.1f} KiB, {net.n_parameters} parameters, {net.n_trainable} trainable, "
            f"loss {self.loss.name}, {self.optimizer}"
        )
        train = self.routines.get("train") or self._with_target["train"]
        others = [
            f"{r.name}: {len(r.instructions)} instructions, "
            f"{r.flops() / 1e6:.3f} MFLOP, {r.bytes() / 1024:.1f} KiB"
            for r in {**self._with_target, **self.routines}.values()
            if r.name != "train"
        ]
        return "\n".join([header, "", train.listing(), "", *others])


# -- the graph -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Value:
    """An array of the batch that an op makes or, for the batch itself, that is given.

    `activation` is the one its op ends with: a gradient of the value times f'(value) is what that
    op's backward needs. `uses` counts the ops that read it. Nothing negative is in it when
    `nonnegative`. `gradients` gathers what has reached it so far.
    """

    name: str
    slot: Slot
    activation: str = "linear"
    nonnegative: bool = False
    needs_gradient: bool = False
    uses: int = 0
    gradients: list[Slot] = field(default_factory=list)
    fused: bool = False  # whether f' is already in the gradient

    @property
    def fusable(self) -> str:
        """The activation whose derivative the only reader of the value may fuse into its gradient."""
        return self.activation if self.uses == 1 else "linear"


class Op:
    """A step of the computation that reads `inputs` and makes `output`."""

    inputs: tuple[Value, ...]
    output: Value

    def forward(self, to: Lowering) -> None:
        """Emit the instructions that make the output."""
        raise NotImplementedError

    def backward(self, to: Lowering, da: Slot) -> None:
        """Emit those of the backward pass, from the gradient of the output before its activation."""
        raise NotImplementedError


class DenseOp(Op):
    """y = f(x w + b)."""

    def __init__(self, to: Lowering, placed: Placed, layer: Dense, x: Value) -> None:
        self.name, self.trainable = placed.name, layer.trainable
        self.w = to.slots[f"{placed.name}.weight"]
        self.b = to.slots[f"{placed.name}.bias"] if layer.use_bias else None
        self.inputs = (x,)
        self.output = to.value(placed.name, placed.output_shape, [x], layer.activation, layer.trainable)

    def forward(self, to: Lowering) -> None:
        y = self.output
        to.emit("dense_forward", x=self.inputs[0].slot, w=self.w, b=self.b, activation=y.activation, y=y.slot)

    def backward(self, to: Lowering, da: Slot) -> None:
        (x,) = self.inputs
        if x.needs_gradient:  # first, since it reads the weights that the update changes
            f = x.fusable
            dx = to.gradient_slot(x, self.name, fused=True)
            note = f"derivative of {x.name}'s {f} fused" if f != "linear" else ""
            saved = x.slot if f != "linear" else None
            to.emit("dense_input_grad", note, da=da, w=self.w, x=saved, activation=f, dx=dx)
        if self.trainable:
            to.dense_update(x.slot, da, self.w, self.b)


class ActivationOp(Op):
    """y = f(x)."""

    def __init__(self, to: Lowering, name: str, activation: str, x: Value) -> None:
        self.inputs = (x,)
        self.output = to.value(name, x.slot.shape[1:], [x], activation)

    def forward(self, to: Lowering) -> None:
        y = self.output
        to.emit("activation_forward", x=self.inputs[0].slot, activation=y.activation, y=y.slot)

    def backward(self, to: Lowering, da: Slot) -> None:
        to.pass_gradient(self.inputs[0], da)


class SubsampleOp(Op):
    """y = every stride-th column of x."""

    def __init__(self, to: Lowering, placed: Placed, layer: Subsample, x: Value) -> None:
        self.name, self.stride = placed.name, layer.stride
        self.inputs = (x,)
        self.output = to.value(placed.name, placed.output_shape, [x])
        self.output.nonnegative = x.nonnegative

    def forward(self, to: Lowering) -> None:
        to.emit("subsample_forward", x=self.inputs[0].slot, stride=self.stride, y=self.output.slot)

    def backward(self, to: Lowering, da: Slot) -> None:
        (x,) = self.inputs
        dx = to.gradient_slot(x, self.name, fused=False)
        to.emit("subsample_backward", dy=da, stride=self.stride, dx=dx)


class SumOp(Op):
    """y = x1 + x2."""

    def __init__(self, to: Lowering, name: str, x1: Value, x2: Value) -> None:
        self.inputs = (x1, x2)
        self.output = to.value(name, x1.slot.shape[1:], self.inputs)
        self.output.nonnegative = x1.nonnegative and x2.nonnegative

    def forward(self, to: Lowering) -> None:
        x1, x2 = self.inputs
        to.emit("branch_sum", x1=x1.slot, x2=x2.slot, y=self.output.slot)

    def backward(self, to: Lowering, da: Slot) -> None:
        for x in self.inputs:
            to.pass_gradient(x, da)


@singledispatch
def build(layer: Layer, to: Lowering, placed: Placed, x: Value) -> Value:
    """Add the ops of a layer that reads `x`; its output."""
    raise NotImplementedError(f"no lowering of layers of type {layer.kind}")


@build.register(Dense)
def _(layer: Dense, to: Lowering, placed: Placed, x: Value) -> Value:
    n, m = placed.input_shape[0], layer.units
    identity = not layer.trainable and layer.kernel_initializer == "identity" and n == m
    if not identity or (layer.use_bias and layer.bias_initializer != "zeros"):
        return to.add(DenseOp(to, placed, layer, x))
    to.notes.append(f"{placed.name}: product with fixed identity dropped")
    to.constraints[f"{placed.name}.weight"] = "identity"
    if layer.use_bias:
        to.constraints[f"{placed.name}.bias"] = "zeros"
    return activate(to, placed.name, layer.activation, x)


@build.register(Activation)
def _(layer: Activation, to: Lowering, placed: Placed, x: Value) -> Value:
    return activate(to, placed.name, layer.activation, x)


@build.register(Subsample)
def _(layer: Subsample, to: Lowering, placed: Placed, x: Value) -> Value:
    return to.add(SubsampleOp(to, placed, layer, x))


@build.register(Parallel)
def _(layer: Parallel, to: Lowering, placed: Placed, x: Value) -> Value:
    ends = [to.chain(branch, x) for branch in placed.branches]
    y = ends[0]
    for i, end in enumerate(ends[1:], 1):
        y = to.add(SumOp(to, placed.name if i == len(ends) - 1 else f"{placed.name}.{i}", y, end))
    return y


def activate(to: Lowering, name: str, activation: str, x: Value) -> Value:
    """Return the activation of `x`, or `x` itself where that is the same."""
    if activation == "linear":
        return x
    if activation == "relu" and x.nonnegative:
        # Exact backward too: where such a value is 0, the derivatives below it are 0.
        of = "relu" if x.activation == "relu" else "a value that is never negative"
        to.notes.append(f"{name}: relu of {of} dropped")
        return x
    return to.add(ActivationOp(to, name, activation, x))


# -- lowering ------------------------------------------------------------------------------------------


class Lowering:
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
    ) -> None:
        self.network, self.batch_size, self.loss, self.optimizer = network, batch_size, loss, optimizer
        self.dtype, self.padded = dtype, padded
        self.unit = ALIGNMENT // dtype.itemsize  # elements of an aligned block
        self.fused = fused_update and optimizer.dense_kernel is not None
        self.size = HEADER_BYTES // dtype.itemsize
        self.scratch_size = 0
        self.slots: dict[str, Slot] = {}
        self.ops: list[Op] = []
        self.instructions: list[Instruction] = []
        self.notes: list[str] = []
        self.constraints: dict[str, str] = {}
        self.gradient_of: dict[str, Slot] = {}  # stored gradients by the name of their parameter
        self.state_of: dict[str, dict[str, Slot]] = {}

    # Slots

    def round_up(self, elements: int) -> int:
        return -(-elements // self.unit) * self.unit

    def shaped(self, name: str, offset: int, shape: Shape, batched: bool) -> Slot:
        stride = math.prod(shape[1:])
        if self.padded and len(shape) > 1:
            stride = self.round_up(stride)
        return Slot(name, offset, shape, stride, batched)

    def slot(self, name: str, shape: Shape, batched: bool = False) -> Slot:
        """Add a slot at the end of the arena."""
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
        slot = self.rows(f"{name}.out", shape)
        needs = trainable or any(x.needs_gradient for x in inputs)
        return Value(name, slot, activation, activation in ("relu", "sigmoid"), needs)

    # The graph

    def add(self, op: Op) -> Value:
        for x in op.inputs:
            x.uses += 1
        self.ops.append(op)
        return op.output

    def chain(self, chain: Sequence[Placed], x: Value) -> Value:
        for placed in chain:
            x = build(placed.layer, self, placed, x)
        return x

    # Instructions

    def emit(self, kernel: str, note: str = "", **operands: Slot | int | float | str | None) -> None:
        """Append an instruction, its operands by the names of the table; workspaces are found here."""
        row = KERNELS[kernel]
        given = tuple(operands.get(a.name) for a in row.arguments)
        instruction = Instruction(kernel, given, note)
        dims = instruction.dims()  # checks that the shapes agree
        varying = {a.dims[0] for a, slot in instruction.arrays if slot.batched}
        used = 0
        for a in row.arrays:
            if a.role == "work":  # offset within the scratch stretch, whose place is not known yet
                slot = self.shaped("scratch", used, row.shape(a, dims), a.dims[0] in varying)
                used += self.round_up(slot.size)
                operands[a.name] = slot
        missing = [
            a.name
            for a in row.arguments
            if operands.get(a.name) is None and not (isinstance(a, Array) and a.optional)
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

    def gradient_slot(self, x: Value, reader: str, *, fused: bool) -> Slot:
        """Add a slot for the gradient that `reader` sends to `x`.

        `fused` promises that what goes there is multiplied by the derivative of `x.fusable`.
        """
        whole = x.uses == 1 and (fused or x.activation == "linear")
        name = f"{x.name}.da" if whole else f"{reader}.dx"
        slot = self.slot(name, x.slot.shape, batched=True)
        x.gradients.append(slot)
        x.fused = whole
        return slot

    def pass_gradient(self, x: Value, gradient: Slot) -> None:
        """Send `x` a gradient that lies elsewhere: nothing is copied."""
        if x.needs_gradient:
            x.gradients.append(gradient)

    def gradient(self, x: Value) -> Slot:
        """Return the whole gradient of a value before its activation."""
        total = x.gradients[0]
        derivative = x.activation != "linear" and not x.fused
        for i, other in enumerate(x.gradients[1:], 1):
            last = i == len(x.gradients) - 1 and not derivative
            both = self.slot(f"{x.name}.da" if last else f"{x.name}.dy{i}", x.slot.shape, batched=True)
            self.emit("branch_sum", "gradients of several readers added", x1=total, x2=other, y=both)
            total = both
        if derivative:
            da = self.slot(f"{x.name}.da", x.slot.shape, batched=True)
            self.emit("activation_backward", dy=total, y=x.slot, activation=x.activation, dx=da)
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
            **self.optimizer.constants,
        )

    # All of it

    def run(self) -> Program:
        network, batch = self.network, self.batch_size
        specs = network.parameters
        learned = [(p.name, p.shape) for p in specs if p.trainable]
        trainable, _ = self.stretch("trainable", learned)
        # Fixed parameters lie behind what a step reads and writes; most are never touched again.
        fixed = [(p.name, p.shape) for p in specs if not p.trainable]
        self.stretch("fixed", fixed)

        x = Value("batch", self.rows("batch", network.input_shape))
        code = self.chain(network.placed_encoder, x)
        encoder, encoder_notes = len(self.ops), len(self.notes)
        # A code may also come from outside, where nothing is known of its sign.
        code.nonnegative = False
        y = self.chain(network.placed_decoder, code)
        y.uses += 1  # the loss

        for op in self.ops[:encoder]:
            op.forward(self)
        encoded = len(self.instructions)
        for op in self.ops[encoder:]:
            op.forward(self)
        forward, self.instructions = self.instructions, []

        row_loss = self.slot("row_loss", (batch,), batched=True)
        loss = self.slot("loss", (1,))
        da = self.gradient_slot(y, "loss", fused=True)
        f = y.fusable
        note = f"derivative of {y.name}'s {f} fused" if f != "linear" else ""
        target = self.slot("target", y.slot.shape, batched=True)
        self.emit(self.loss.kernel, note, y=y.slot, target=target, activation=f, row_loss=row_loss, da=da)
        self.emit("total", row_loss=row_loss, loss=loss)
        losing, self.instructions = self.instructions, []

        gradients = None
        if not self.fused:
            gradients, slots = self.stretch("gradients", [(f"{n}.grad", shape) for n, shape in learned])
            self.gradient_of = {n: slot for (n, _), slot in zip(learned, slots, strict=True)}
        states: dict[str, Slot] = {}
        for state in self.optimizer.states:
            whole, slots = self.stretch(state, [(f"{n}.{state}", shape) for n, shape in learned])
            self.state_of[state] = {n: slot for (n, _), slot in zip(learned, slots, strict=True)}
            if whole is not None:
                states[state] = whole
        for op in reversed(self.ops):
            if op.output.needs_gradient:
                op.backward(self, self.gradient(op.output))
        if gradients is not None:
            constants = self.optimizer.constants
            self.emit(
                self.optimizer.kernel,
                "all parameters at once",
                g=gradients,
                w=trainable,
                **states,
                **constants,
            )
        backward = self.instructions

        scratch = self.slot("scratch", (self.scratch_size,)) if self.scratch_size else None
        if self.size * self.dtype.itemsize > MAX_ARENA_BYTES:
            raise ValueError(
                f"batch_size {batch} and the network's widths ask for an arena of "
                f"{self.size * self.dtype.itemsize / 2**30:.0f} GiB; expected at most {MAX_ARENA_BYTES >> 30}"
            )

        notes = {"encode": self.notes[:encoder_notes], "decode": self.notes[encoder_notes:]}

        def routine(
            name: str,
            parts: list[Instruction],
            source: Slot,
            *,
            own: Slot | None = None,
            output: Slot | None = None,
            check: int = 0,
        ) -> Routine:
            def place(slot: Slot) -> Slot:
                if scratch is not None and slot.name == scratch.name:
                    return replace(slot, offset=slot.offset + scratch.offset)
                return x.slot if slot == target and own is None else slot

            placed = [_map_slots(i, place) for i in parts]
            return Routine(
                name,
                _with_barriers(placed, check),
                source,
                own,
                output,
                loss if check else None,
                check,
                name == "train" and bool(learned),
                tuple(notes.get(name, self.notes)),
                self.dtype.itemsize,
            )

        forward_and_loss = len(forward) + len(losing)
        evaluate = forward + losing
        train = evaluate + backward
        with_target = {
            "train": routine("train", train, x.slot, own=target, check=forward_and_loss),
            "evaluate": routine("evaluate", evaluate, x.slot, own=target, check=forward_and_loss),
        }
        routines = {}
        if y.slot.shape == x.slot.shape:
            routines["train"] = routine("train", train, x.slot, check=forward_and_loss)
            routines["evaluate"] = routine("evaluate", evaluate, x.slot, check=forward_and_loss)
        routines["encode"] = routine("encode", forward[:encoded], x.slot, output=code.slot)
        routines["decode"] = routine("decode", forward[encoded:], code.slot, output=y.slot)
        routines["reconstruct"] = routine("reconstruct", forward, x.slot, output=y.slot)
        return Program(
            network,
            batch,
            self.loss,
            self.optimizer,
            self.dtype,
            self.padded,
            self.size,
            self.slots,
            routines,
            tuple(self.slots[p.name] for p in specs),
            trainable,
            gradients,
            states,
            self.constraints,
            with_target,
        )


def _map_slots(instruction: Instruction, change: Callable[[Slot], Slot]) -> Instruction:
    """Return the instruction with each of its slots changed."""
    return replace(
        instruction, operands=tuple(change(o) if isinstance(o, Slot) else o for o in instruction.operands)
    )


def _with_barriers(instructions: Sequence[Instruction], check: int) -> tuple[Instruction, ...]:
    """Drop the barrier after an instruction where the next touches nothing written since the last one."""
    done: list[Instruction] = []
    read: list[tuple[int, int]] = []
    written: list[tuple[int, int]] = []

    def meets(slots: list[tuple[int, int]], others: list[tuple[int, int]]) -> bool:
        return any(a < d and c < b for a, b in slots for c, d in others)

    for i, instruction in enumerate(instructions):
        arrays = instruction.arrays
        reads = [(s.offset, s.offset + s.size) for a, s in arrays if a.role in ("in", "saved", "state")]
        writes = [(s.offset, s.offset + s.size) for a, s in arrays if a.written]
        # Thread 0 reads the loss after `check` instructions.
        if i and (i == check or meets(reads, written) or meets(writes, read) or meets(writes, written)):
            done[-1] = replace(done[-1], barrier=True)
            read, written = [], []
        read += reads
        written += writes
        done.append(replace(instruction, barrier=False))
    if done:
        done[-1] = replace(done[-1], barrier=True)
    return tuple(done)


def lower(
    network: Network,
    *,
    batch_size: int,
    loss: str | losses.Loss,
    optimizer: str | optimizers.Optimizer,
    dtype: npt.DTypeLike = "float32",
    padded: bool = False,
    fused_update: bool = False,
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
        Round row strides of arrays of two or more dims up to 64 bytes.
    fused_update : bool
        Apply the gradient of a dense layer as it is computed, if the optimiser has a kernel for it;
        no gradient is stored then.

    Returns
    -------
    Program

    Raises
    ------
    ValueError
        When an argument is not as stated, or the arena would be absurdly large.
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
    lowering = Lowering(
        network, batch_size, losses.resolve(loss), optimizers.resolve(optimizer), real, padded, fused_update
    )
    return lowering.run()

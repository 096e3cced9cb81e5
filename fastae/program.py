"""A Program: a list of instructions over one arena.

::

    Network ── fastae.lowering.lower ──> Program ── encode ──> numbers for an executor
                                           │
                                           ├─ slots     the place of every array in the arena
                                           └─ routines  train, evaluate, encode, decode, reconstruct

The arena begins with a header of 64 bytes read as int64: [0] updates done so far, [1] the seed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastae import losses, optimizers
from fastae.barriers import meetings
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Kernel
from fastae.layers import GaussianNoise, MaskingNoise, Shape, positive_int
from fastae.listing import listing

if TYPE_CHECKING:
    from fastae.network import Network

__all__ = [
    "COUNTER",
    "HEADER_BYTES",
    "STEP",
    "WIDTH",
    "Instruction",
    "Program",
    "Routine",
    "Slot",
    "row_stride",
]

#: Columns of an encoded instruction, and which of them says what shard alone runs it: its number + 1; 0 where
#: threads share it, and IN_TWO_PASSES where they meet on the way.
WIDTH = 40
SHARD = WIDTH - 1
IN_TWO_PASSES = -1

#: Every slot starts on such a boundary and ends before the next one: a cache line, a vector register.
ALIGNMENT = 64

#: The arena begins with this many bytes read as int64.
HEADER_BYTES = 64

#: FLOPs of a batch, and bytes of what is gathered for it, below which each thread gathers it whole.
#: AutoEncNet has 4e6 FLOPs, a deep network 1e8; a core's own cache has 5e5 bytes or more.
_LITTLE_WORK, _SMALL_BATCH = 2e7, 1 << 18

#: Place of each kernel in the table.
_NUMBERS = {name: number for number, name in enumerate(KERNELS)}


def row_stride(columns: int, itemsize: int) -> int:
    """Elements from one row to the next in a Program with padded rows: whole lines of 64 bytes.

    Long rows get one more where their lines are a multiple of 4. Else rows of 1024 or 2048 bytes, say, lie on
    few of a cache's sets, and a panel of some of their columns does not stay in it, small as it is.
    """
    lines = -(-columns * itemsize // ALIGNMENT)
    return (lines + (lines >= 8 and lines % 4 == 0)) * ALIGNMENT // itemsize


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
    index : bool
        Whether it holds int64, as the header alone does.
    lanes : int
        Rows side by side: with L > 1 images [n, c, h, w] lie as [ceil(n / L)][c][h][w][L], `stride`
        elements for each row.
    shards : tuple of Slot
        Where its columns lie in arrays of their own, from left to right; `stride` then says nothing.
    transposed : bool
        Whether the shards hold its rows instead, from top to bottom, as their columns.
    """

    name: str
    offset: int
    shape: Shape
    stride: int
    batched: bool = False
    index: bool = False
    lanes: int = 1
    shards: tuple[Slot, ...] = ()
    transposed: bool = False

    @property
    def size(self) -> int:
        """Elements from the first to the end of the last row, padding and last block included.

        Shards do not lie one behind the other: then look at `pieces`.
        """
        if self.shards:
            return sum(shard.size for shard in self.shards)
        return -(-self.shape[0] // self.lanes) * self.lanes * self.stride

    @property
    def pieces(self) -> tuple[Slot, ...]:
        """Its shards, or the slot itself."""
        return self.shards or (self,)

    def moved(self, distance: int) -> Slot:
        """Return it so many elements further on."""
        shards = tuple(shard.moved(distance) for shard in self.shards)
        return replace(self, offset=self.offset + distance, shards=shards)

    @cached_property
    def columns(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape[1:])

    def __str__(self) -> str:
        return f"{self.name}[{','.join(map(str, self.shape))}]"


#: What kernels read of the header: the number of updates done, and that with the seed.
STEP = Slot("step", 0, (1,), 1, index=True)
COUNTER = Slot("counter", 0, (2,), 1, index=True)


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
    shard : int or None
        The shard whose thread alone runs it (`fastae.sharding`); None where all threads share it.
    """

    kernel: str
    operands: tuple[Slot | int | float | str | None, ...]
    note: str = ""
    shard: int | None = None

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
        if found.keys() != set(self.row.dims):  # those of workspaces alone
            known = {**found, **self.constants}
            found = (
                self.row.derive({name: v for name, v in known.items() if name not in self.row.derived})
                | found
            )
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

    @property
    def in_two_passes(self) -> bool:
        """Whether threads of `cython` do it in two passes, and meet between them."""
        return self.row.in_two_passes and "room" in {array.name for array, _ in self.arrays}

    def by_rows(self, rows: int) -> bool:
        """Whether threads share its work out by the rows of a batch of so many, if those are enough."""
        rule = self.row.by_rows
        return rule is not None and bool(rule(SimpleNamespace(**self.dims(rows), **self.constants)))

    def encode(self, rows: int | None = None) -> list[int]:
        """Return the instruction as int64 numbers: kernel, barrier (0), one for each argument, the dims."""
        numbers = [_NUMBERS[self.kernel], 0]
        for argument, operand in zip(self.row.arguments, self.operands, strict=True):
            if operand is None:
                numbers.append(-1)
            elif isinstance(operand, Slot):
                numbers.append(operand.offset)
            elif isinstance(operand, str):
                numbers.append(ACTIVATIONS[operand].code)
            elif not isinstance(argument, Array) and argument.kind == "real":
                numbers.append(_bits(operand))
            else:
                numbers.append(int(operand))
        return numbers + list(self.dims(rows).values())

    def column(self, argument: str) -> int | None:
        """Return the column of an argument in the encoded instruction; None where the row has no such."""
        names = [a.name for a in self.row.arguments]
        return 2 + names.index(argument) if argument in names else None


def _bits(value: float) -> int:
    """The bits of a float64 as an int64."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits


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
    weight : Slot or None
        Where the weights of the rows go, one number for each; None when rows have no weights.
    notes : tuple of str
        What the listing says of instructions that were left out.
    itemsize : int
        Bytes of an element.
    losses : tuple of Slot
        Where each shard has a copy of the loss, the first of them `loss` itself; empty without shards.
    """

    name: str
    instructions: tuple[Instruction, ...]
    input: Slot
    target: Slot | None
    output: Slot | None
    loss: Slot | None
    check: int
    trains: bool
    weight: Slot | None = None
    notes: tuple[str, ...] = ()
    itemsize: int = 8
    losses: tuple[Slot, ...] = ()
    _encoded: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)
    _opens: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def work(self) -> float:
        """Floating-point operations of a full batch."""
        return self.flops()

    @cached_property
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
            As the table describes: column 0 the kernel's place in ``tuple(KERNELS)``, column 1 what
            `barriers` says, then the operands; the last one is SHARD. The array is kept and given again:
            do not write to it.

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
                assert instruction.shard is None or not instruction.in_two_passes
                alone = 0 if instruction.shard is None else instruction.shard + 1
                line[SHARD] = IN_TWO_PASSES if instruction.in_two_passes else alone
            self._opens[rows], *code[:, 1] = meetings(self, rows)
            self._encoded[rows] = code
        return code

    def barriers(self, rows: int | None = None) -> list[int]:
        """Say where a team of threads must meet, for a batch of `rows` rows (None: all).

        Returns
        -------
        list of int
            For each instruction 0 where the next touches nothing that another thread may have written
            since they met, 2 where it does unless work is shared out by rows (`Kernel.by_rows`), else 1.
            The next of the last is to copy the output, by rows. At the end of a batch all meet anyway.
        """
        return [int(barrier) for barrier in self.encode(rows)[:, 1]]

    def opens(self, rows: int | None = None) -> int:
        """Say, as `barriers` does, whether they must meet before the first instruction."""
        rows = self.capacity if rows is None else rows
        self.encode(rows)
        return self._opens[rows]

    @cached_property
    def shards(self) -> int:
        """How many threads have instructions or columns of their own, so that more are of no use; else 0."""
        numbers = [0 if i.shard is None else i.shard + 1 for i in self.instructions]
        return max([len(self.input.shards), *numbers])

    @cached_property
    def gathered(self) -> tuple[Slot, ...]:
        """What an executor gathers for a batch: the rows, their targets and weights where it reads them."""
        return tuple(s for s in (self.input, self.target, self.weight) if s is not None)

    @cached_property
    def gathered_by_each(self) -> bool:
        """Whether each thread of `cython` gathers the whole batch for itself, where no other writes.

        What one core writes and another reads has to be called back when it is written again: where there is
        little to compute that takes longer than to copy the other threads' rows too. Where each thread reads
        its own rows alone, no core has those of another.
        """
        readers = (i for i in self.instructions if any(slot in self.gathered for _, slot in i.arrays))
        return (
            not self.shards
            and self.work < _LITTLE_WORK
            and sum(slot.size for slot in self.gathered) * self.itemsize < _SMALL_BATCH
            and not all(i.by_rows(self.capacity) for i in readers)
        )

    def encode_apart(self, rows: int, distance: int) -> npt.NDArray[np.int64]:
        """Return what `encode` does, with all that is gathered for a batch so many elements further on."""
        code = self.encode(rows)
        if distance:
            code = code.copy()
            places = {slot.offset for slot in self.gathered}
            for line, instruction in zip(code, self.instructions, strict=True):
                for column, operand in enumerate(instruction.operands, 2):
                    if isinstance(operand, Slot) and operand.offset in places:
                        line[column] += distance
        return code

    def with_learning_rate(self, learning_rate: float) -> Routine:
        """Return the same routine with another learning rate in its updates."""
        columns = [i.column("learning_rate") for i in self.instructions]
        changed = []
        for i, column in zip(self.instructions, columns, strict=True):
            if column is not None:
                at = column - 2
                i = replace(i, operands=(*i.operands[:at], learning_rate, *i.operands[at + 1 :]))
            changed.append(i)
        routine = replace(self, instructions=tuple(changed))
        for rows, code in self._encoded.items():  # cheaper than encoding again
            routine._opens[rows] = self._opens[rows]
            routine._encoded[rows] = code = code.copy()
            for line, column in zip(code, columns, strict=True):
                if column is not None:
                    line[column] = _bits(learning_rate)
        return routine

    def flops(self, rows: int | None = None) -> float:
        """Count the floating-point operations of one batch."""
        return sum(i.flops(rows) for i in self.instructions)

    def bytes(self, rows: int | None = None) -> int:
        """Count the bytes one batch moves if every instruction reads or writes each array once."""
        return sum(i.bytes(self.itemsize, rows) for i in self.instructions)

    def listing(self) -> str:
        """Return the instructions as a table: number, instruction, operands, MFLOP, KiB, note."""
        return listing(self)


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
        Whether row strides of arrays of two or more dims are those of `row_stride`, and images of a batch
        lie side by side (`Slot.lanes`).
    noise : GaussianNoise, MaskingNoise or None
        Noise on the input in training.
    arena_size : int
        Elements of the arena.
    slots : dict of str to Slot
        Every slot by name; no two overlap. (The scratch stretch is "scratch".)
    routines : dict of str to Routine
        The routines for a network whose target is its input, as far as that is possible; see
        `routine` for the others.
    parameters : tuple of Slot
        Every parameter, fixed ones and running statistics too, in the order of the layers.
    trainable : Slot or None
        The stretch that holds the trainable parameters, padding included. They lie in the order of
        the layers; where updates are fused, those of dense layers come last.
    statistics : Slot or None
        The stretch of the running statistics of batch normalisation.
    gradients : Slot or None
        The stretch of the trainable parameters' gradients, laid out alike; None where not all are
        stored.
    states : dict of str to Slot
        For each state of the optimiser a stretch laid out as the trainable parameters.
    state_slots : dict of str to Slot
        Each state of each trainable parameter, under "<parameter>.<state>": so programs of one
        network and optimiser exchange them, whatever their layout.
    constraints : dict of str to str
        What parameters must be since the instructions rely on it: "identity", "zeros" or
        "nonnegative".
    needs_rows : int
        Rows of the smallest batch it can train on: 2 with batch normalisation, whose variance of one
        number says nothing, else 1.
    losing : dict of (str, bool, bool) to Routine
        The routines "train" and "evaluate", each with `own_target` and `weighted` of `routine`.
    """

    network: Network
    batch_size: int
    loss: losses.Loss
    optimizer: optimizers.Optimizer
    dtype: np.dtype[Any]
    padded: bool
    noise: GaussianNoise | MaskingNoise | None
    arena_size: int
    slots: dict[str, Slot]
    routines: dict[str, Routine]
    parameters: tuple[Slot, ...]
    trainable: Slot | None
    statistics: Slot | None
    gradients: Slot | None
    states: dict[str, Slot]
    state_slots: dict[str, Slot]
    constraints: dict[str, str]
    needs_rows: int
    losing: dict[tuple[str, bool, bool], Routine]

    @property
    def lasting(self) -> tuple[Slot, ...]:
        """The stretches that training changes and that outlive a batch; the header is one more."""
        stretches = (self.trainable, self.statistics, *self.states.values())
        return tuple(slot for slot in stretches if slot is not None)

    def routine(self, name: str, own_target: bool = False, weighted: bool = False) -> Routine:
        """Return a routine by name.

        Parameters
        ----------
        name : str
            "train", "evaluate", "encode", "decode" or "reconstruct".
        own_target : bool
            For "train" and "evaluate": whether the loss compares the output with rows of a target
            (slot "target") rather than with the input.
        weighted : bool
            For "train" and "evaluate": whether the loss of each row is multiplied by its weight
            (slot "sample_weight").

        Raises
        ------
        ValueError
            When there is no such routine, or the output and the input differ in shape and the
            target is to be the input.
        """
        found = self.losing.get((name, own_target, weighted))
        if found is not None:
            return found
        if (name, True, weighted) in self.losing:
            shapes = f"output {self.network.output_shape}, input {self.network.input_shape}"
            raise ValueError(
                f"target must be given where the output has another shape than the input: {shapes}; "
                f"{self.network.trace()}"
            )
        if name not in self.routines:
            known = dict.fromkeys([*(key[0] for key in self.losing), *self.routines])
            raise ValueError(f"routine must be one of {', '.join(known)}; got {name!r}")
        return self.routines[name]

    def with_learning_rate(self, learning_rate: float) -> Program:
        """Return the same Program with another learning rate.

        Parameters
        ----------
        learning_rate : float
            Finite and > 0.

        Returns
        -------
        Program
            For the same arenas; everything but the routines that train is shared.

        Raises
        ------
        ValueError
            When `learning_rate` is not as stated.
        """
        optimizer = replace(self.optimizer, learning_rate=learning_rate)  # type: ignore[call-arg]
        rate = optimizer.constants["learning_rate"]
        losing = {
            key: routine.with_learning_rate(rate) if key[0] == "train" else routine
            for key, routine in self.losing.items()
        }
        routines = {name: losing.get((name, False, False), r) for name, r in self.routines.items()}
        return replace(self, optimizer=optimizer, losing=losing, routines=routines)

    def moved(self, routine: Routine, distance: int) -> Routine:
        """Return a routine that infers with all but its parameters so many elements further on.

        So several threads can run it at once, with the same parameters, each on rows of its own.
        """
        pieces = [piece for slot in self.parameters for piece in slot.pieces]
        places = [(piece.offset, piece.offset + piece.size) for piece in pieces]

        def place(slot: Slot) -> Slot:
            lasts = slot.index or any(start <= slot.offset < end for start, end in places)
            return slot if lasts else slot.moved(distance)

        assert routine.target is routine.weight is routine.loss is None
        assert routine.output is not None
        return replace(
            routine,
            instructions=tuple(
                replace(i, operands=tuple(place(o) if isinstance(o, Slot) else o for o in i.operands))
                for i in routine.instructions
            ),
            input=place(routine.input),
            output=place(routine.output),
        )

    def new_arena(self) -> npt.NDArray[Any]:
        """Return a zeroed arena, (arena_size,) of the Program's dtype, on a 64-byte boundary."""
        block = np.zeros(self.arena_size * self.dtype.itemsize + ALIGNMENT, np.uint8)
        start = -block.ctypes.data % ALIGNMENT
        return block[start : start + self.arena_size * self.dtype.itemsize].view(self.dtype)

    def header(self, arena: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the header of an arena, (8,) int64: [0] updates done so far, [1] the seed."""
        return self._checked(arena)[: HEADER_BYTES // self.dtype.itemsize].view(np.int64)

    def view(self, arena: npt.NDArray[Any], slot: str | Slot) -> npt.NDArray[Any]:
        """Return a slot of an arena as an array of its logical shape.

        With padding it is strided. Where rows lie side by side, or columns in shards, it is a copy that
        cannot be written to: `write` is for those.
        """
        slot = self._slot(slot)
        if slot.index:
            return self.header(arena)[slot.offset : slot.offset + slot.size]
        if slot.shards:
            whole = np.concatenate([self.view(arena, shard) for shard in slot.shards], axis=-1)
            whole.flags.writeable = False
            return whole.T if slot.transposed else whole
        if slot.lanes > 1:
            blocks = self._checked(arena)[slot.offset : slot.offset + slot.size]
            rows = np.moveaxis(blocks.reshape(-1, *slot.shape[1:], slot.lanes), -1, 1)
            images = rows.reshape(-1, *slot.shape[1:])[: slot.shape[0]].copy()
            images.flags.writeable = False
            return images
        item = self.dtype.itemsize
        strides = [item]
        for length in slot.shape[:1:-1]:
            strides.insert(0, strides[0] * length)
        if len(slot.shape) > 1:
            strides.insert(0, slot.stride * item)
        return np.ndarray(slot.shape, self.dtype, self._checked(arena), slot.offset * item, tuple(strides))

    def write(self, arena: npt.NDArray[Any], slot: str | Slot, values: npt.ArrayLike) -> None:
        """Set a slot of an arena to values of its logical shape, whatever its layout but images side by side.

        Parameters
        ----------
        arena : ndarray
            Written only when all is as it must be.
        slot : str or Slot
            Which.
        values : array of real numbers
            Of the slot's shape, or one number for all of it. For a batch also the first of its rows.

        Raises
        ------
        ValueError
            When there is no such slot, or the values have another shape.
        """
        slot = self._slot(slot)
        array = np.asarray(values)
        rows = array.shape[:1] if slot.batched and array.shape[:1] <= slot.shape[:1] else slot.shape[:1]
        if array.ndim and array.shape != (*rows, *slot.shape[1:]):
            raise ValueError(f"{slot.name} must have shape {slot.shape}; got {array.shape}")
        array, first = array.T if slot.transposed else array, 0
        for piece in slot.pieces:
            columns = piece.shape[-1]
            part = array[..., first : first + columns] if array.ndim else array
            view = self.view(arena, piece)
            view[: len(part) if slot.batched and array.ndim else None] = part
            first += columns

    def _slot(self, slot: str | Slot) -> Slot:
        if isinstance(slot, Slot):
            return slot
        if slot not in self.slots:
            raise ValueError(f"slot must be one of {', '.join(self.slots)}; got {slot!r}")
        return self.slots[slot]

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
            self.write(arena, slot, array)

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
        if demand == "nonnegative":
            if (array < 0).any():
                raise ValueError(f"{name} must not be negative; got {array.min()}")
        elif demand is not None:
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
        if self.noise is not None:
            header += f", input noise {self.noise}"
        whole = {name: self.losing[name, True, False] for name in ("train", "evaluate")} | self.routines
        train = whole["train"]
        others = [
            f"{r.name}: {len(r.instructions)} instructions, "
            f"{r.flops() / 1e6:.3f} MFLOP, {r.bytes() / 1024:.1f} KiB"
            for r in whole.values()
            if r.name != "train"
        ]
        return "\n".join([header, "", train.listing(), "", *others])

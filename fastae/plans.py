"""Plans: a trained model as one block of bytes that compiled code runs without Python.

::

    Trainer, file ── plan ──> bytes ── fastae_plan_open ──> fastae_plan ── fastae_plan_load ──> arena
                                │                                                     │
                                └── weights <── bytes <── fastae_plan_store ── fastae_run, in any thread

A plan holds the instructions of its Program, which name places in an arena and no addresses, and all that
lasts: parameters, running statistics, the state of the optimiser, the seed. It can be kept in a file, and is
read by the fastae that made it or any with the same table of kernels; ``fastae.h`` has the functions that do.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastae import __version__, persistence
from fastae import backend as backends
from fastae.checks import integer
from fastae.engine import Engine
from fastae.kernels.table import signature_hash
from fastae.persistence import State
from fastae.program import HEADER_BYTES, Program, Routine, Slot
from fastae.trainer import Trainer

__all__ = ["ROUTINES", "plan", "weights"]

#: What a plan can hold.
ROUTINES: Final = ("encode", "decode", "reconstruct", "train", "evaluate")

# As compiled/plan.h has it.
_MAGIC = b"fastaeP\n"
_FORMAT = 2
_KINDS = (*((name, False) for name in ROUTINES), ("train", True), ("evaluate", True))
_FIRST_ROUTINE, _ROUTINE_WORDS = 16, 20
_WORDS = _FIRST_ROUTINE + len(_KINDS) * _ROUTINE_WORDS
_SUM, _SEGMENTS, _SEGMENTS_AT, _TEXT_BYTES, _TEXT_AT = 3, 12, 13, 14, 15


def plan(
    model: Any,
    batch_size: int | None = None,
    routines: Iterable[str] = ROUTINES,
) -> bytes:
    """Make a plan of a model, for ``fastae_plan_open`` of fastae.h.

    Parameters
    ----------
    model : Trainer, estimator with a Trainer as its ``trainer_``, or path
        What runs; a path is that of a file of `Trainer.save` or `Checkpoint`.
    batch_size : int, optional
        Rows that are computed together, >= 1; the model's own when not given. Results do not depend on it,
        updates do: one is made after each batch.
    routines : iterable of str
        Which of "encode", "decode", "reconstruct", "train" and "evaluate". Fewer make a smaller arena.

    Returns
    -------
    bytes
        In the machine's byte order. Losses and updates are those of the model: its loss, optimiser, learning
        rate, input noise and the updates done so far.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as stated.
    CheckpointError, OSError
        When the file is none, or cannot be read.
    ImportError
        Without the compiled kernels; a file needs safetensors too (``pip install "fastae[files]"``).
    """
    names = (routines,) if isinstance(routines, str) else tuple(routines)
    if not names or any(name not in ROUTINES for name in names):
        raise ValueError(f"routines: expected some of {', '.join(ROUTINES)}, given {names!r:.80}")
    state = _state(model)
    engine = Engine(
        backends.load("cython"),
        state.network,
        batch_size=state.batch_size if batch_size is None else integer("batch_size", batch_size, 1),
        loss=state.loss,
        optimizer=state.optimizer,
        dtype=state.dtype,
        noise=state.noise,
        n_threads=1,
    )
    engine.set_learning_rate(state.learning_rate)
    engine.write(state.snapshot)
    return _encode(engine.program, engine.arena, names)


def _state(model: Any) -> State:
    if isinstance(model, str | os.PathLike):
        return persistence.read(model)
    trainer = getattr(model, "trainer_", model)
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"model: expected a Trainer, a fitted estimator or a path, given {type(model).__name__}"
        )
    with trainer._exclusive():
        return trainer._state()


def _chosen(program: Program, names: tuple[str, ...]) -> dict[int, Routine]:
    """The routines of a plan by their kind."""
    found = {}
    for kind, (name, own_target) in enumerate(_KINDS):
        if name not in names:
            continue
        if name in ("train", "evaluate") and (name, own_target, False) not in program.losing:
            continue  # the output has another shape than the input, which then is no target
        found[kind] = program.routine(name, own_target)
    return found


def _encode(program: Program, arena: npt.NDArray[Any], names: tuple[str, ...]) -> bytes:
    itemsize = program.dtype.itemsize
    chosen = _chosen(program, names)
    trains = "train" in names
    header = Slot("header", 0, (HEADER_BYTES // itemsize,), 1)
    lasting = [header, *(piece for p in program.parameters for piece in p.pieces)]
    lasting += program.states.values() if trains else ()
    used = [
        slot for r in chosen.values() for slot in (r.input, r.target, r.output, r.loss) if slot is not None
    ]
    used += [slot for r in chosen.values() for i in r.instructions for _, slot in i.arrays if not slot.index]
    pieces = [piece for slot in [*lasting, *used] for piece in slot.pieces]
    line = 64 // itemsize
    arena_size = max(-(-(piece.offset + piece.size) // line) * line for piece in pieces)

    words = np.zeros(_WORDS, np.int64)
    words[0] = struct.unpack("=q", _MAGIC)[0]
    words[1] = _FORMAT
    words[4:8] = np.frombuffer(bytes.fromhex(signature_hash()), np.int64)
    needs_rows = program.needs_rows if trains else 1
    if needs_rows > program.batch_size:
        raise ValueError(
            f"batch_size: expected at least {needs_rows}, to train with, given {program.batch_size}"
        )
    words[8:12] = itemsize, program.batch_size, needs_rows, arena_size
    parts: list[bytes] = []
    at = words.nbytes
    for kind, routine in chosen.items():
        code = _code(routine)
        first = _FIRST_ROUTINE + kind * _ROUTINE_WORDS
        words[first : first + _ROUTINE_WORDS] = (
            len(code),
            at,
            0 if routine.loss is None else routine.loss.offset,
            routine.check,
            routine.trains,
            *_place(routine.input),
            *_place(routine.target),
            *_place(routine.output),
        )
        parts.append(code.tobytes())
        at += code.nbytes
    segments = np.zeros((len(lasting), 3), np.int64)
    words[_SEGMENTS], words[_SEGMENTS_AT] = len(lasting), at
    contents = [arena[slot.offset : slot.offset + slot.size].tobytes() for slot in lasting]
    at += segments.nbytes
    for row, slot, content in zip(segments, lasting, contents, strict=True):
        row[:] = slot.offset, slot.size, at
        at += -(-len(content) // 8) * 8
    parameters = [
        {
            "name": p.name,
            "transposed": p.transposed,
            "pieces": [{"shape": s.shape, "stride": s.stride} for s in p.pieces],
        }
        for p in program.parameters
    ]
    text = json.dumps({"fastae": __version__, "dtype": program.dtype.name, "parameters": parameters}).encode()
    words[_TEXT_BYTES], words[_TEXT_AT] = len(text), at
    parts += [segments.tobytes(), *(content.ljust(-(-len(content) // 8) * 8, b"\0") for content in contents)]
    parts.append(text.ljust(-(-len(text) // 8) * 8))
    words[2] = words.nbytes + sum(map(len, parts))
    return _sealed(b"".join([words.tobytes(), *parts]))


def _sealed(block: bytes) -> bytes:
    """The same plan with its checksum."""
    from fastae.cython_kernels import plan_sum

    return block[: 8 * _SUM] + struct.pack("=q", plan_sum(block)) + block[8 * _SUM + 8 :]


def _place(slot: Slot | None) -> tuple[int, ...]:
    """Columns of rows of the batch; offset and columns of the matrix they lie in, or of two of them."""
    if slot is None:
        return (0, 0, 0, 0, 0)
    places = [number for piece in slot.pieces for number in (piece.offset, piece.columns)]
    return (slot.columns, *places, 0, 0)[:5]


def _code(routine: Routine) -> npt.NDArray[np.int64]:
    """Instructions for whole batches; in place of the barrier, bits of the dims that are the rows."""
    code = routine.encode().copy()
    for line, instruction in zip(code, routine.instructions, strict=True):
        dims = instruction.row.dims
        line[1] = sum(
            1 << d for d in {dims.index(a.dims[0]) for a, slot in instruction.arrays if slot.batched}
        )
    return code


def weights(block: bytes) -> dict[str, npt.NDArray[Any]]:
    """Read the parameters out of a plan, such as one that ``fastae_plan_store`` wrote after training.

    Parameters
    ----------
    block : bytes
        The plan.

    Returns
    -------
    dict of str to ndarray
        As `Trainer.weights` has them, for `Trainer.set_weights`.

    Raises
    ------
    ValueError
        When it is no plan of this fastae, or a damaged one.
    """
    from fastae import ctypes_kernels

    block = bytes(block)
    ctypes_kernels.plan_open(block, len(block), ctypes_kernels.Plan())
    words = np.frombuffer(block, np.int64, _WORDS)
    try:
        text = json.loads(block[words[_TEXT_AT] : words[_TEXT_AT] + words[_TEXT_BYTES]])
        segments = np.frombuffer(block, np.int64, 3 * words[_SEGMENTS], words[_SEGMENTS_AT]).reshape(-1, 3)
        dtype, found, places = np.dtype(text["dtype"]), {}, iter(segments[1:])
        for p in text["parameters"]:
            pieces = []
            for piece, (_, size, at) in zip(p["pieces"], places, strict=False):
                shape = tuple(piece["shape"])
                content = np.frombuffer(block, dtype, size, at)
                row = math.prod(shape[1:])
                matrix = content.reshape(shape[0], piece["stride"])[:, :row] if len(shape) > 1 else content
                pieces.append(matrix.reshape(shape))
            whole = np.concatenate(pieces, axis=-1)
            found[p["name"]] = np.ascontiguousarray(whole.T) if p["transposed"] else whole
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"block: expected a plan of fastae.plan, given one with a damaged description: {error}"
        ) from error
    return found

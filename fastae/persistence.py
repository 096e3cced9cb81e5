"""Files that training goes on from.

::

    safetensors file:  length of header │ header, JSON ──┬── tensors: name, dtype, shape, place │ their bytes
                                                         └── __metadata__: fastae, sha256

    a.weight                   parameter          fastae   the declaration and all counters, as JSON
    optimizer/a.weight.<state> of the optimiser   sha256   of the whole file with these 64 digits as zeros
    history/<list>             losses, float64
    callback/<n>/<name>        of a callback
    estimator/<name>           of an estimator around the trainer, float64

A file is data and nothing else: layers, losses and optimisers are looked up in closed registries by the
words of the declaration, and no array is made before its size was compared with the file's. What is read is
checked as a whole before anything of it is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from fastae import backend as backends
from fastae import layers, losses, optimizers
from fastae.checks import integer
from fastae.engine import Snapshot
from fastae.fitting import Plan, Position
from fastae.history import History
from fastae.layers import GaussianNoise, MaskingNoise, real_number
from fastae.lowering import lower
from fastae.network import SAMPLINGS, Network

if TYPE_CHECKING:
    from fastae.trainer import Trainer

__all__ = [
    "VERSION",
    "CheckpointError",
    "SavedEstimator",
    "State",
    "load",
    "network_from_dict",
    "new_trainer",
    "read",
    "replace",
    "replace_with",
    "require_library",
    "write",
]

Array = npt.NDArray[Any]

#: Of the format. A reader refuses a later one. Where the checksum is and what it covers stay in all versions.
VERSION = 1

#: Bytes of a header: one of a network with a thousand layers has less than a tenth of it.
MAX_HEADER = 1 << 24

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
#: Layers and branches of a network: a file of a few bytes more for each could ask for hours of lowering.
MAX_LAYERS = 4096

_ZEROS = "0" * 64
_MARK = b'"sha256":"'
_LISTS = ("loss", "val_loss", "seconds", "batch_loss")
_LARGEST = 2**63 - 1


class CheckpointError(ValueError):
    """A file is not one that training can go on from; nothing of it was used.

    Attributes
    ----------
    path : str
        The file.
    reason : str
        "truncated": it ends too early; "altered": it is not as it was written; "version": it is of a newer
        version of the format; "invalid": it is of another kind, or what it declares is impossible;
        "mismatch": it is of another network or another training.
    """

    _TEXTS: ClassVar[dict[str, str]] = {
        "truncated": "is truncated",
        "altered": "was altered or damaged",
        "version": "is of a newer version",
        "invalid": "is not a checkpoint of fastae",
        "mismatch": "is of another training",
    }

    def __init__(self, path: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{path} {self._TEXTS[reason]}" + (f": {detail}" if detail else ""))
        self.path = path
        self.reason = reason
        self._detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason, self._detail)


@dataclass
class SavedEstimator:
    """What a file holds of an estimator beside its trainer; `fastae.estimators` knows what it means.

    Parameters
    ----------
    kind : str
        Name of its class.
    parameters : dict
        Its parameters, as JSON has them.
    fitted : dict
        What was fitted, the same.
    arrays : dict of str to ndarray
        What was fitted, float64.
    """

    kind: str
    parameters: dict[str, Any]
    fitted: dict[str, Any]
    arrays: dict[str, Array]


@dataclass
class State:
    """All that training goes on from. The attributes are those of `Trainer`, and what it holds."""

    network: Network
    loss: losses.Loss
    optimizer: optimizers.Optimizer
    batch_size: int
    dtype: np.dtype[Any]
    noise: GaussianNoise | MaskingNoise | None
    backend: str | None
    n_threads: int | None
    learning_rate: float
    snapshot: Snapshot
    generator: Mapping[str, Any]
    history: History
    position: Position | None
    estimator: SavedEstimator | None = None

    def difference(self, trainer: Trainer) -> str:
        """Say in what the training of a trainer is another one; empty where it is not."""
        mine, net = self.network, trainer.net
        if (mine.encoder, mine.decoder, mine.input_shape) != (net.encoder, net.decoder, net.input_shape):
            return f"it holds another network, {_layers_text(mine)}, and the trainer's is {_layers_text(net)}"
        for name in ("loss", "optimizer", "batch_size", "dtype", "noise"):
            own, other = getattr(self, name), getattr(trainer, name)
            if own != other:
                own, other = (x.name if isinstance(x, losses.Loss) else x for x in (own, other))
                return f"its {name} is {own}, and the trainer's is {other}"
        return ""


def _layers_text(network: Network) -> str:
    sizes = [math.prod(network.input_shape), *(math.prod(p.output_shape) for p in network.layers)]
    return "-".join(map(str, sizes))[:100]


def require_library() -> Any:
    """Import and return safetensors' module for NumPy, or raise an ImportError that says what to install."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError('files need safetensors: pip install "fastae[files]"') from error
    return safetensors.numpy


# Writing --------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], state: State) -> None:
    """Write a state to a file, as `Trainer.save` describes."""
    library = require_library()
    path = _text_path(path)
    _check_size(state.network)
    arrays: dict[str, Array] = dict(state.snapshot.weights)
    arrays |= {f"optimizer/{name}": moment for name, moment in state.snapshot.moments.items()}
    arrays |= {f"history/{name}": np.array(getattr(state.history, name), np.float64) for name in _LISTS}
    declared = {
        "version": VERSION,
        "network": state.network.to_dict(),
        "loss": losses.to_dict(state.loss),
        "optimizer": optimizers.to_dict(state.optimizer),
        "batch_size": state.batch_size,
        "dtype": state.dtype.name,
        "noise": None if state.noise is None else layers.to_dict(state.noise),
        "backend": state.backend,
        "n_threads": state.n_threads,
        "learning_rate": state.learning_rate,
        "seed": state.snapshot.seed,
        "updates": state.snapshot.updates,
        "generator": _generator_to_dict(state.generator),
        "fit": None if state.position is None else _position_to_dict(state.position, arrays),
    }
    if (saved := state.estimator) is not None:
        arrays |= {f"estimator/{name}": array for name, array in saved.arrays.items()}
        declared["estimator"] = {
            "type": saved.kind,
            "parameters": saved.parameters,
            "fitted": saved.fitted,
            "arrays": list(saved.arrays),
        }
    metadata = {"fastae": json.dumps(declared, allow_nan=False), "sha256": _ZEROS}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = bytearray(library.save(arrays, metadata))
    (length,) = struct.unpack_from("<Q", content)
    if length > MAX_HEADER:
        raise ValueError(f"path: the declaration takes {length} bytes; a file holds {MAX_HEADER} at most")
    at = _digits(content[: 8 + length], _ZEROS)
    content[at : at + 64] = hashlib.sha256(content).hexdigest().encode()
    replace(path, content)


def _position_to_dict(position: Position, arrays: dict[str, Array]) -> dict[str, Any]:
    """Return the place in a fit as plain values; arrays of callbacks are put with the others."""
    callbacks = []
    for i, (name, state) in enumerate(position.states()):
        values: dict[str, Any] = {}
        holds: dict[str, list[str] | None] = {}
        for key, value in state.items():
            found: dict[str, Any]
            if isinstance(value, np.ndarray):
                holds[key], found = None, {f"callback/{i}/{key}": value}
            elif isinstance(value, dict) and any(isinstance(v, np.ndarray) for v in value.values()):
                holds[key] = list(value)
                found = {f"callback/{i}/{key}/{inner}": array for inner, array in value.items()}
            else:
                values[key], found = value, {}
            for full, array in found.items():
                if not isinstance(array, np.ndarray) or array.dtype not in _DTYPES.values() or full in arrays:
                    raise TypeError(f"state of {name}: {key}: expected arrays of float32 or float64")
                arrays[full] = array
        callbacks.append({"type": name, "values": values, "arrays": holds})
    generator = position.generator if position.batch else None  # what is drawn again
    return {
        **vars(position.plan),
        "epoch": position.epoch,
        "batch": position.batch,
        "stopped": position.stopped,
        "generator": None if generator is None else _generator_to_dict(generator),
        "callbacks": callbacks,
    }


def _generator_to_dict(state: Mapping[str, Any]) -> dict[str, int]:
    return {**state["state"], "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def replace(path: str, content: bytes | bytearray, *, overwrite: bool = True) -> None:
    """Have a file hold the content, or, whatever happens, what it held before.

    Without `overwrite` a file that is there, even one that came in the meantime, is a FileExistsError.
    """
    replace_with(path, lambda file: file.write(content), overwrite=overwrite)


def replace_with(path: str, put: Callable[[BinaryIO], object], *, overwrite: bool = True) -> None:
    """Do as `replace` does with what is put into an empty file, which need not lie in memory as a whole."""
    path = os.path.realpath(path)  # a link stays one
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            put(file)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _put(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # not every file system can
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put(temporary: str, path: str) -> None:
    """Give a file its name if no other has it."""
    try:
        os.link(temporary, path)  # unlike a renaming, it replaces nothing
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "it exists already", path) from None
    except OSError:  # a file system without links: as near as it gets
        if os.path.exists(path):
            raise FileExistsError(errno.EEXIST, "it exists already", path) from None
        os.replace(temporary, path)
    else:
        os.remove(temporary)


def _text_path(path: Any) -> str:
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path: expected a str or a path, given {type(path).__name__}")
    return text


def _digits(head: bytes | bytearray, digits: str) -> int:
    """Where the checksum's digits are. In a JSON text quotes as these stand for themselves alone."""
    return head.index(_MARK + digits.encode() + b'"') + len(_MARK)


# Reading --------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], *, backend: str | None = None, n_threads: int | None = None) -> Any:
    """Make what a file holds: a trainer that goes on from it, or a fitted estimator.

    Parameters
    ----------
    path : str or path
        What `Trainer.save`, `Autoencoder.save` or `AutoencoderOutlierDetector.save` wrote.
    backend : str, optional
        To use in place of the saved one, which may be of a package that is not installed here.
    n_threads : int, optional
        The same.

    Returns
    -------
    Trainer, Autoencoder or AutoencoderOutlierDetector
        As the one that was saved. ``fit(..., resume=True)`` of a trainer goes on with its fit; an estimator
        transforms, scores and predicts with the same bits on the same backend.

    Raises
    ------
    CheckpointError
        When the file is truncated, altered, of a newer version, or no checkpoint.
    ImportError
        Without safetensors (``pip install "fastae[files]"``), or without scikit-learn where an estimator is
        in the file (``pip install "fastae[sklearn]"``).
    OSError
        When it cannot be read.
    """
    state = read(path, backend)
    overrides = {"backend": backend, "n_threads": n_threads}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    trainer = new_trainer(state, **overrides)
    if state.estimator is None:
        return trainer
    from fastae import estimators

    try:
        return estimators.from_saved(trainer, state.estimator, **overrides)
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(_text_path(path), "invalid", f"estimator: {error}"[:300]) from error


def new_trainer(state: State, **overrides: Any) -> Trainer:
    """Make a trainer of a state, with other arguments where they are given."""
    from fastae.trainer import Trainer

    arguments = {
        name: getattr(state, name)
        for name in ("loss", "optimizer", "batch_size", "backend", "dtype", "n_threads", "noise")
    }
    trainer = Trainer(state.network, seed=state.snapshot.seed, **arguments | overrides)
    trainer._take(state)
    return trainer


def read(path: str | os.PathLike[str], backend: str | None = None) -> State:
    """Read and check a file, but not the backend it names where another is given; errors as `load`."""
    library = require_library()
    path = _text_path(path)
    with open(path, "rb") as file:
        # In this order: the file's size bounds all that follows, the checksum tells damage from malice.
        size = os.fstat(file.fileno()).st_size
        head = file.read(min(size, MAX_HEADER + 8))
        if size < 8:
            raise CheckpointError(path, "truncated", f"it has {size} bytes")
        length = 8 + int.from_bytes(head[:8], "little")
        try:
            if size < length <= len(head) + MAX_HEADER:
                raise CheckpointError(path, "truncated", f"it has {size} bytes of a header of {length}")
            header, metadata = _parse_header(head[:length])
        except (CheckpointError, MemoryError):
            raise
        except Exception as error:  # whatever is wrong in there, it is the file's
            reason = "altered" if _MARK in head or b'"fastae":"' in head else "invalid"
            raise CheckpointError(path, reason, f"its header cannot be read, {error}"[:300]) from error
        if _sum(file, head[:length], metadata["sha256"]) != metadata["sha256"]:
            end = 0
            with suppress(TypeError, ValueError):  # what is altered need make no sense
                end = length + _parse_tensors(header)[1]
            _check_end(path, size, end)
            raise CheckpointError(path, "altered", "it is not what was written")
        try:
            declared = _parse(metadata["fastae"])
            version = integer("version", declared["version"], 1)
            if version > VERSION:
                newer = f"{version}, and this fastae knows {VERSION}; update it"
                raise CheckpointError(path, "version", newer)
            # Another version may have all of the following otherwise.
            if metadata.keys() != {"fastae", "sha256"}:
                raise ValueError("its metadata are not as fastae writes them")
            tensors, end = _parse_tensors(header)
            _check_end(path, size, length + end)
            reader = _Reader(declared, tensors, check_backend=backend is None)
            file.seek(0)
            return reader.state(library.load(file.read()))
        except (CheckpointError, MemoryError, OSError):
            raise
        except Exception as error:
            raise CheckpointError(path, "invalid", f"{error}"[:300]) from error


#: Name, dtype and shape of each array.
_Tensors = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def _parse(text: str) -> Any:
    """Parse a JSON text that names nothing twice and has no NaN."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name is given twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def _check_end(path: str, size: int, end: int) -> None:
    if size < end:
        raise CheckpointError(path, "truncated", f"it has {size} bytes of {end}")
    if size > end:
        raise CheckpointError(path, "altered", "it is not what was written")


def _parse_header(head: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Entries of a header, and its metadata, of which no more is checked than all versions have."""
    header = _parse(head[8:].decode())
    metadata = header.pop("__metadata__")
    if not isinstance(metadata, dict) or not metadata.keys() >= {"fastae", "sha256"}:
        raise ValueError("it is a safetensors file of another program")
    digits = metadata["sha256"]
    if not isinstance(metadata["fastae"], str) or not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError("its metadata are not as fastae writes them")
    _digits(head, digits)
    return header, metadata


def _parse_tensors(header: dict[str, Any]) -> tuple[_Tensors, int]:
    """Tensors of a header, and the bytes they take. No array is made."""
    tensors: _Tensors = {}
    places = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name}: expected dtype, shape and data_offsets")
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"{name}: expected dtype F32 or F64, given {entry['dtype']!r:.50}")
        shape, place = (_integers(name, entry[key]) for key in ("shape", "data_offsets"))
        if len(place) != 2 or place[1] - place[0] != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: its bytes are not as many as its shape says")
        tensors[name] = (dtype, shape)
        places.append(place)
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise ValueError("its arrays overlap, or leave room between them")
        end = stop
    return tensors, end


def _integers(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > 32:
        raise ValueError(f"{name}: expected a short list of integers")
    return tuple(integer(name, value, 0, _LARGEST) for value in values)


def _sum(file: BinaryIO, head: bytes, digits: str) -> str:
    """The checksum of a file with this head, digits as zeros."""
    at = _digits(head, digits)
    total = hashlib.sha256(head[:at] + _ZEROS.encode() + head[at + 64 :])
    file.seek(len(head))
    while part := file.read(1 << 20):
        total.update(part)
    return total.hexdigest()


class _Reader:
    """Makes a state from a declaration and the arrays that go with it, once all of it was checked."""

    _FIELDS = frozenset(
        {"version", "network", "loss", "optimizer", "batch_size", "dtype", "noise", "backend", "n_threads"}
        | {"learning_rate", "seed", "updates", "generator", "fit"}
    )
    _ESTIMATOR = frozenset({"type", "parameters", "fitted", "arrays"})
    _FIT = frozenset({*Plan.__dataclass_fields__, "epoch", "batch", "stopped", "generator", "callbacks"})

    def __init__(self, declared: Any, tensors: _Tensors, *, check_backend: bool = True) -> None:
        more = {"estimator"} if "estimator" in declared else set()  # a file of a trainer has none
        _expect_fields("the declaration", declared, self._FIELDS | more)
        self.estimator = declared.get("estimator")
        if more:
            _expect_fields("estimator", self.estimator, self._ESTIMATOR)
            words = isinstance(self.estimator["type"], str) and _are_texts(self.estimator["arrays"])
            if not words or not all(isinstance(self.estimator[k], dict) for k in ("parameters", "fitted")):
                raise ValueError("estimator: expected its type, parameters, what was fitted, names of arrays")
        self.declared = declared
        if declared["dtype"] not in ("float32", "float64"):
            raise ValueError(f"dtype: expected float32 or float64, given {declared['dtype']!r:.50}")
        name = declared["backend"]
        if check_backend and name is not None and not backends.is_known(name):
            raise ValueError(
                f"backend: expected one of {', '.join(backends.known())}, given {name!r:.50}; "
                "fastae.load(..., backend=...) takes another"
            )
        if declared["n_threads"] is not None:
            integer("n_threads", declared["n_threads"], 1, 1024)
        noise = None if declared["noise"] is None else layers.from_dict(declared["noise"])
        if noise is not None and not isinstance(noise, GaussianNoise | MaskingNoise):
            raise ValueError(f"noise: expected gaussian or masking noise, given {noise!r:.50}")
        self.noise = noise
        network = network_from_dict(declared["network"])
        self.program = lower(  # numbers alone, no arena
            network,
            batch_size=integer("batch_size", declared["batch_size"], 1, _LARGEST),
            loss=losses.from_dict(declared["loss"]),
            optimizer=optimizers.from_dict(declared["optimizer"]),
            dtype=declared["dtype"],
            noise=noise,
        )
        self.learning_rate = real_number("learning_rate", declared["learning_rate"], 0, open_low=True)
        self.generator = _generator_from_dict(declared["generator"])
        self.callbacks: list[dict[str, Any]] = []
        self.position = None if declared["fit"] is None else self._position(declared["fit"])
        self._compare(tensors)

    def _position(self, fit: Any) -> Position:
        _expect_fields("fit", fit, self._FIT)
        if fit["sampling"] not in SAMPLINGS:
            raise ValueError(f"sampling: expected one of {SAMPLINGS}, given {fit['sampling']!r:.50}")
        for name in ("target", "sample_weight", "stopped"):
            if type(fit[name]) is not bool:
                raise ValueError(f"{name}: expected true or false, given {fit[name]!r:.50}")
        plan = Plan(
            rows=integer("rows", fit["rows"], 1, _LARGEST),
            validation_rows=integer("validation_rows", fit["validation_rows"], 0, _LARGEST),
            sampling=fit["sampling"],
            steps=integer("steps", fit["steps"], 1, _LARGEST),
            target=fit["target"],
            sample_weight=fit["sample_weight"],
        )
        batch = integer("batch", fit["batch"], 0, plan.steps)
        if not isinstance(fit["callbacks"], list):
            raise ValueError("callbacks: expected a list")
        for callback in fit["callbacks"]:
            _expect_fields("a callback", callback, {"type", "values", "arrays"})
            holds, values = callback["arrays"], callback["values"]
            if (
                not isinstance(callback["type"], str)
                or not isinstance(values, dict)
                or not isinstance(holds, dict)
                or values.keys() & holds.keys()
                or not all(h is None or _are_texts(h) for h in holds.values())
            ):
                raise ValueError("a callback: expected its type, values and names of arrays")
            self.callbacks.append(callback)
        return Position(
            plan,
            epoch=integer("epoch", fit["epoch"], 0, _LARGEST),
            batch=batch,
            stopped=fit["stopped"],
            generator=_generator_from_dict(fit["generator"]) if batch else None,
        )

    def _held(self) -> Iterator[tuple[int, str, str | None, str]]:
        """The arrays of callbacks: place of the callback, name in its state, name within that, name here."""
        for i, callback in enumerate(self.callbacks):
            for key, inner in callback["arrays"].items():
                for name in [None] if inner is None else inner:
                    yield i, key, name, f"callback/{i}/{key}" + ("" if name is None else f"/{name}")

    def _compare(self, tensors: _Tensors) -> None:
        """See that there are the arrays that are declared, no others, each of its dtype and shape."""
        real, double = self.program.dtype, np.dtype(np.float64)
        expected: dict[str, Any] = {slot.name: (real, slot.shape) for slot in self.program.parameters}
        moments = {f"optimizer/{n}": (real, slot.shape) for n, slot in self.program.state_slots.items()}
        if not moments.keys().isdisjoint(tensors):  # all, or none where training has not begun
            expected |= moments
        for name in _LISTS:
            _, shape = tensors.get(f"history/{name}", (None, ()))
            expected[f"history/{name}"] = (double, shape[:1] or (0,))
        for _, _, _, name in self._held():
            if name in expected:
                raise ValueError(f"{name}: an array of a callback is declared twice")
            expected[name] = tensors.get(name)
        for name in () if self.estimator is None else self.estimator["arrays"]:
            if f"estimator/{name}" in expected:
                raise ValueError(f"estimator/{name}: an array is declared twice")
            _, shape = tensors.get(f"estimator/{name}", (None, ()))
            expected[f"estimator/{name}"] = (double, shape)
        if wrong := sorted(expected.keys() ^ tensors.keys()):
            raise ValueError(f"arrays are not those that are declared: {', '.join(wrong)[:200]}")
        for name, what in expected.items():
            if tensors[name] != what:
                raise ValueError(f"{name}: expected {what[0]} of shape {what[1]}, given {tensors[name]}")

    def state(self, arrays: dict[str, Array]) -> State:
        """Return the state; arrays are as declared, their content is still to be looked at."""
        declared, program = self.declared, self.program
        weights = {s.name: program.check_weight(s.name, arrays[s.name]) for s in program.parameters}
        moments = {n: arrays[f"optimizer/{n}"] for n in program.state_slots if f"optimizer/{n}" in arrays}
        loss, val_loss, seconds, batch_loss = (arrays[f"history/{name}"] for name in _LISTS)
        parts = [batch_loss.copy()]
        if self.position is not None:
            epoch, batch, plan = self.position.epoch, self.position.batch, self.position.plan
            done = epoch + (batch == plan.steps)
            if (len(loss), len(seconds), len(val_loss), len(batch_loss)) != (
                *(done, done, epoch if plan.validation_rows else 0, epoch * plan.steps + batch),
            ):
                raise ValueError("the history is not that of the fit")
            parts = np.split(parts[0], [epoch * plan.steps])
            self.position.loaded = [(c["type"], dict(c["values"])) for c in self.callbacks]
            for i, key, inner, name in self._held():
                state = self.position.loaded[i][1]
                if inner is None:
                    state[key] = arrays[name]
                else:
                    state.setdefault(key, {})[inner] = arrays[name]
        return State(
            network=program.network,
            loss=program.loss,
            optimizer=program.optimizer,
            batch_size=program.batch_size,
            dtype=program.dtype,
            noise=self.noise,
            backend=declared["backend"],
            n_threads=declared["n_threads"],
            learning_rate=self.learning_rate,
            snapshot=Snapshot(
                weights,
                integer("seed", declared["seed"], 0, _LARGEST),
                integer("updates", declared["updates"], 0, _LARGEST),
                moments,
            ),
            generator=self.generator,
            history=History(loss.tolist(), val_loss.tolist(), seconds.tolist(), parts),
            position=self.position,
            estimator=self._saved_estimator(arrays),
        )

    def _saved_estimator(self, arrays: dict[str, Array]) -> SavedEstimator | None:
        if self.estimator is None:
            return None
        kind, parameters, fitted = (self.estimator[name] for name in ("type", "parameters", "fitted"))
        own = {name: arrays[f"estimator/{name}"] for name in self.estimator["arrays"]}
        return SavedEstimator(kind, parameters, fitted, own)


def network_from_dict(data: Any) -> Network:
    """Return the network that `Network.to_dict` gave, of no more layers than a file holds."""
    network = Network.from_dict(data)
    _check_size(network)
    return network


def _check_size(network: Network) -> None:
    count = sum(1 + len(placed.branches) for placed in network.layers)
    if count > MAX_LAYERS:
        raise ValueError(f"network: a file holds {MAX_LAYERS} layers and branches at most, given {count}")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _expect_fields(what: str, given: Any, fields: Iterable[str]) -> None:
    if not isinstance(given, dict) or given.keys() != set(fields):
        raise ValueError(f"{what}: expected the fields {', '.join(sorted(fields))}")


def _generator_from_dict(data: Any) -> dict[str, Any]:
    """Return the state of a PCG64 that `_generator_to_dict` gave."""
    bits = {"state": 128, "inc": 128, "has_uint32": 1, "uinteger": 32}
    _expect_fields("generator", data, bits)
    given = {name: integer(f"generator {name}", data[name], 0, 2**n - 1) for name, n in bits.items()}
    words = {name: given.pop(name) for name in ("state", "inc")}
    return {"bit_generator": "PCG64", "state": words, **given}

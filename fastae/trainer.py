"""Training and running a Network.

::

    fit ── checks ──> engine of the backend (program, arena, executor; kept over calls)
                        │
     calling thread     │      worker thread
     ────────────────── │ ───────────────────────────────────────────────────
     order of the rows ─┼────> one epoch in one call, the compiled ones without the GIL
     polls the control  │      (updates done, stop requested, batch that failed)
     block, Ctrl-C      │
     epoch ends    <────┴───── last finite weights put back if it diverged

The thread that called `fit` stays in Python and so receives KeyboardInterrupt while compiled code runs.
Inference changes no weights and runs where it is called.
"""

from __future__ import annotations

import math
import operator
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastae import backend as backends
from fastae import losses, optimizers
from fastae.callbacks import Callback, Progress
from fastae.network import SAMPLINGS, Network
from fastae.program import Program, Routine, lower

__all__ = ["DivergenceError", "History", "Trainer"]

Array = npt.NDArray[Any]

#: Seconds between two looks at the control block. The end of an epoch needs no look: it wakes who waits.
_POLL = 0.05

#: Elements looked at in one go for NaN and infinity: they stay in the cache for the second look.
_CHUNK = 1 << 18

_DEFAULT_OPTIMIZER = optimizers.SGD(1e-2)


class DivergenceError(ArithmeticError):
    """Training produced a loss or a weight that is not finite.

    The trainer holds the last finite weights and can be used.

    Attributes
    ----------
    step : int
        The update at which it was seen, counted from 1 in this fit: ``history.batch_loss[step - 1]``.
    epoch : int
        Its epoch, counted from 1 in this fit.
    kept : int
        Updates of this fit that the weights hold, at most ``step - 1``.
    """

    def __init__(self, message: str, step: int, epoch: int, kept: int) -> None:
        super().__init__(message)
        self.step = step
        self.epoch = epoch
        self.kept = kept

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.step, self.epoch, self.kept)


@dataclass(eq=False)
class History:
    """What a fit recorded.

    Attributes
    ----------
    loss : list of float
        One for each finished epoch. For a mean loss ("mse") the mean over its rows; for a sum ("sse") the
        loss of a batch of `batch_size` rows on average, which is the mean of the losses of its batches when
        none of them is partial.
    val_loss : list of float
        The same of the validation data, after each epoch, where there are any.
    seconds : list of float
        Wall time of each epoch, validation and callbacks not included.
    """

    loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    _batches: list[npt.NDArray[np.float64]] = field(default_factory=list, repr=False)

    @property
    def batch_loss(self) -> npt.NDArray[np.float64]:
        """Loss of every batch before its update, (updates,), those of an unfinished epoch too.

        After a `DivergenceError` the last one may be of a batch that led to no update.
        """
        return np.concatenate(self._batches) if self._batches else np.empty(0)

    @property
    def updates(self) -> int:
        """Number of batches in `batch_loss`."""
        return sum(map(len, self._batches))


def _all_finite(values: Array) -> bool:
    """Whether a one-dimensional array has neither NaN nor infinity, without a temporary of its size."""
    with np.errstate(invalid="ignore"):
        for start in range(0, values.size, _CHUNK):
            part = values[start : start + _CHUNK]
            # NaN passes through both; twice as fast as isfinite and all.
            if not (math.isfinite(np.minimum.reduce(part)) and math.isfinite(np.maximum.reduce(part))):
                return False
    return True


def _integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, given {type(value).__name__} {value!r:.50}") from None
    if number < minimum or (maximum is not None and number > maximum):
        bounds = f"at least {minimum}" + (f", at most {maximum}" if maximum is not None else "")
        raise ValueError(f"{name}: expected {bounds}, given {number}")
    return number


class _Job:
    """A call made on the worker thread."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call
        self.error: BaseException | None = None
        self.over = False
        self._done = threading.Lock()  # held until the call is over
        self._done.acquire()

    def run(self) -> None:
        assert self.call is not None
        try:
            self.call()
        except BaseException as error:  # raised again on the thread that waits
            self.error = error
        finally:
            self.call = None
            self.over = True
            self._done.release()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, so long at most; whether it is there.

        The lock only wakes: an interrupt may come just when it was taken, and then `over` still says so.
        """
        if not self.over:
            self._done.acquire(timeout=seconds)
        return self.over


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # it refers to the trainer, which must be free to go while this waits


class _Worker:
    """A thread that waits for jobs until its owner is no more.

    It is kept because starting a thread costs a tenth of an epoch of 50 small updates, handing over a job
    a fiftieth.
    """

    def __init__(self, owner: Trainer) -> None:
        self.process = os.getpid()  # a forked child has no such thread
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.put = jobs.put
        threading.Thread(target=_serve, args=(jobs,), name="fastae", daemon=True).start()
        weakref.finalize(owner, jobs.put, None)


class _Engine:
    """A Program with its arena and its executor, for one backend."""

    def __init__(self, trainer: Trainer, backend: backends.Backend) -> None:
        module = backend.module
        self.backend = backend
        self.program = lower(
            trainer.net,
            batch_size=trainer.batch_size,
            loss=trainer.loss,
            optimizer=trainer.optimizer,
            dtype=trainer.dtype,
            padded=module.PADDED,
            fused_update=module.FUSED_UPDATE,
        )
        self.arena = self.program.new_arena()
        self.executor = module.Executor(self.program, self.arena, trainer.n_threads or 1)
        self.header = self.program.header(self.arena)
        whole = self.program.trainable
        stretches = (
            [*self.program.states.values()] if whole is None else [whole, *self.program.states.values()]
        )
        self._parameters = self._stretch(whole) if whole is not None else self.arena[:0]
        # All that training changes and a batch does not overwrite.
        self._state = [self.header, *map(self._stretch, stretches)]

    @cached_property
    def saved(self) -> list[Array]:
        """Room for a copy of the state."""
        return [part.copy() for part in self._state]

    def _stretch(self, slot: Any) -> Array:
        return self.arena[slot.offset : slot.offset + slot.size]

    def finite(self) -> bool:
        """Whether every trainable parameter is."""
        if _all_finite(self._parameters):
            return True
        # The padding between rows may hold anything.
        names = [spec.name for spec in self.program.network.parameters if spec.trainable]
        return all(np.isfinite(self.program.view(self.arena, name)).all() for name in names)

    def save(self, into: list[Array]) -> None:
        """Copy header, trainable parameters and optimiser states, into `saved` or room like it."""
        for copy, part in zip(into, self._state, strict=True):
            np.copyto(copy, part)

    def restore(self, saved: list[Array]) -> None:
        """Put back what `save` copied."""
        for part, copy in zip(self._state, saved, strict=True):
            np.copyto(part, copy)

    def carry_over(self, other: _Engine) -> None:
        """Take everything that lasts from another engine of the same network, whatever its layout."""
        names = [slot.name for slot in self.program.parameters]
        trainable = [spec.name for spec in self.program.network.parameters if spec.trainable]
        names += [f"{name}.{state}" for state in self.program.states for name in trainable]
        for name in names:
            self.program.view(self.arena, name)[...] = other.program.view(other.arena, name)
        self.header[:] = other.header


class Trainer:
    """Trains and runs an autoencoder.

    Parameters
    ----------
    net : Network
        What to train.
    loss : str or Loss
        What training makes small: "mse" or "sse".
    optimizer : Optimizer or str
        How.
    batch_size : int
        Rows of a batch, >= 1; the last one of an epoch may have fewer. Inference goes by batches of it too.
    backend : str, Backend or None
        "scalar", "numpy", "numba" or "cython". None: the one in effect when a call begins, see
        `fastae.set_backend`. Weights go along when it changes.
    dtype : "float32" or "float64"
        Of weights, data and results.
    n_threads : int or None
        Threads of the backend's executor, >= 1; None: 1. "scalar" and "numpy" take 1 alone.
    seed : int or None
        Of initial weights and batches, 0 <= seed < 2**63: the same seed gives the same result on the same
        backend. None: drawn at random.

    Attributes
    ----------
    seed_ : int
        The seed in use.
    history : History
        Of the last fit; an empty one before.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as stated; the message names it, what was expected and what was given.

    Notes
    -----
    Several threads may use one trainer: one call waits for the other, also for a whole `fit`.

    Examples
    --------
    >>> net = fastae.models.autoencnet()
    >>> trainer = fastae.Trainer.from_recipe(net, seed=0)
    >>> history = trainer.fit(X, epochs=20, sampling="replacement")  # X: float64, (1000, 225)
    >>> trainer.reconstruct(X).shape
    (1000, 225)
    """

    def __init__(
        self,
        net: Network,
        loss: str | losses.Loss = "mse",
        optimizer: optimizers.Optimizer | str = _DEFAULT_OPTIMIZER,
        batch_size: int = 32,
        backend: str | backends.Backend | None = None,
        dtype: npt.DTypeLike = "float32",
        n_threads: int | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(net, Network):
            raise TypeError(f"net: expected a Network, given {type(net).__name__}")
        if backend is not None and not isinstance(backend, str | backends.Backend):
            raise TypeError(f"backend: expected a name or None, given {type(backend).__name__}")
        if isinstance(backend, str) and backend not in backends.NAMES:
            raise ValueError(f"backend: expected one of {', '.join(backends.NAMES)}, given {backend!r}")
        self.net: Final = net
        self.loss: Final = losses.resolve(loss)
        self.optimizer: Final = optimizers.resolve(optimizer)
        self.batch_size: Final = _integer("batch_size", batch_size, 1)
        self.backend = backend
        self.dtype: Final = _real(dtype)
        self.n_threads: Final = None if n_threads is None else _integer("n_threads", n_threads, 1, 1024)
        self.seed_ = secrets.randbits(32) if seed is None else _integer("seed", seed, 0, 2**63 - 1)
        self.history = History()

        # Another stream than that of the weights, which are those of net.initial_weights(seed).
        (stream,) = np.random.SeedSequence(self.seed_).spawn(1)
        self._orders = np.random.Generator(np.random.PCG64(stream))
        self._initial = net.initial_weights(self.seed_, self.dtype.name)
        self._engines: dict[str, _Engine] = {}
        self._current: _Engine | None = None  # holds the weights; None: they are the initial ones
        self._lock = threading.RLock()
        self._worker: _Worker | None = None
        self._job: _Job | None = None
        self._watching = False
        self._fitting = False

    @classmethod
    def from_recipe(cls, net: Network, **overrides: Any) -> Trainer:
        """Make a trainer with loss, optimiser, batch size and dtype of the published training.

        Parameters
        ----------
        net : Network
            With a recipe. Its epochs and its sampling are for `fit`: ``net.recipe.epochs``.
        **overrides
            Arguments of Trainer, which take precedence.

        Raises
        ------
        ValueError
            When the network has no recipe.
        """
        if not isinstance(net, Network):
            raise TypeError(f"net: expected a Network, given {type(net).__name__}")
        recipe = net.recipe
        if recipe is None:
            raise ValueError(f"net: expected a network with a recipe, given {net.name or 'one'} without")
        published = {name: getattr(recipe, name) for name in ("loss", "optimizer", "batch_size", "dtype")}
        return cls(net, **{**published, **overrides})

    # Weights and program ----------------------------------------------------------------------------------

    @property
    def program(self) -> Program:
        """The Program of the backend in effect; ``print`` shows its listing."""
        with self._exclusive():
            return self._engine().program

    @property
    def weights(self) -> dict[str, Array]:
        """Copies of every parameter by name, fixed ones too."""
        with self._exclusive():
            if self._current is None:
                return {name: value.copy() for name, value in self._initial.items()}
            return self._current.program.read_weights(self._current.arena)

    def set_weights(self, weights: Mapping[str, npt.ArrayLike]) -> None:
        """Set every parameter; the state of the optimiser stays.

        Parameters
        ----------
        weights : mapping of str to array
            As `weights` gives them: all names, real numbers, which are rounded to the trainer's dtype.

        Raises
        ------
        TypeError, ValueError
            When a name is missing or unknown, a shape differs, a value is no finite number, or a fixed
            parameter that the Program relies on (a dropped identity) changes. Nothing was written then.
        """
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights: expected a dict of arrays, given {type(weights).__name__}")
        with self._exclusive():
            engine = self._engine()
            engine.program.write_weights(engine.arena, weights)

    # Inference --------------------------------------------------------------------------------------------

    def encode(self, X: Array, out: Array | None = None) -> Array:
        """Compute the codes of the rows of X.

        Parameters
        ----------
        X : ndarray of the trainer's dtype, (N, *input_shape) or (N, features), C-contiguous
            N >= 1. NaN and infinity are taken as they are.
        out : ndarray of the trainer's dtype, (N, *code_shape), C-contiguous, optional
            Where to write; it must not overlap X.

        Returns
        -------
        ndarray, (N, *code_shape)
            `out`, or a new array.

        Raises
        ------
        TypeError, ValueError
            When an array is not as stated; nothing was written then.
        """
        return self._infer("encode", "X", X, self.net.input_shape, self.net.code_shape, out)

    def decode(self, Z: Array, out: Array | None = None) -> Array:
        """Compute the outputs for the codes Z, (N, *code_shape); otherwise as `encode`."""
        return self._infer("decode", "Z", Z, self.net.code_shape, self.net.output_shape, out)

    def reconstruct(self, X: Array, out: Array | None = None) -> Array:
        """Compute the outputs for the rows of X, (N, *output_shape); otherwise as `encode`."""
        return self._infer("reconstruct", "X", X, self.net.input_shape, self.net.output_shape, out)

    def evaluate(self, X: Array, target: Array | None = None) -> float:
        """Compute the loss of the rows of X, on the scale of `History.loss`.

        Parameters
        ----------
        X, target
            As of `fit`.

        Returns
        -------
        float
            Infinity or NaN when a batch's loss is.
        """
        with self._exclusive():
            data, wanted = self._pair("X", X, "target", target)
            return self._evaluate(self._engine(), data, wanted, self._call)

    # Training ---------------------------------------------------------------------------------------------

    def fit(
        self,
        X: Array,
        target: Array | None = None,
        epochs: int = 10,
        validation_data: Array | tuple[Array, Array] | None = None,
        callbacks: Iterable[Callback] = (),
        *,
        sampling: str = "shuffle",
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> History:
        """Train, beginning with the weights the trainer holds.

        Parameters
        ----------
        X : ndarray of the trainer's dtype, (N, *input_shape) or (N, features), C-contiguous
            Training data, N >= 1, all finite.
        target : ndarray of the trainer's dtype, (N, *output_shape) or (N, features), C-contiguous, optional
            What the output is to be; X itself when not given.
        epochs : int
            Rounds, >= 1.
        validation_data : ndarray like X, or tuple (X, target), optional
            Evaluated after each epoch. With a `target`, a tuple.
        callbacks : iterable of Callback
            Called at the end of each epoch, and more; see `fastae.callbacks`.
        sampling : str
            "shuffle": every row once an epoch, in random order; "replacement": N rows drawn at random, some
            more than once; "sequential": every row once, as they lie.
        steps_per_epoch : int, optional
            Updates of an epoch, >= 1, each with a full batch where the rows suffice. Without replacement not
            more than ceil(N / batch_size), the default.
        verbose : int
            0: silent; 1: a progress bar (tqdm if it is installed); 2: a line for each epoch.

        Returns
        -------
        History
            The same as `history`.

        Raises
        ------
        TypeError, ValueError
            When an argument is not as stated; nothing has changed then.
        DivergenceError
            When a loss or a weight is not finite. The trainer then holds the last finite weights.
        KeyboardInterrupt
            After Ctrl-C. Updates done so far stay and `history` holds their losses.
        """
        epochs = _integer("epochs", epochs, 1)
        if not isinstance(sampling, str) or sampling not in SAMPLINGS:
            raise ValueError(f"sampling: expected one of {', '.join(SAMPLINGS)}, given {sampling!r}")
        if _integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0, 2):
            callbacks = (Progress(verbose), *_checked_callbacks(callbacks))
        else:
            callbacks = _checked_callbacks(callbacks)
        with self._exclusive():
            data, wanted = self._pair("X", X, "target", target)
            validation = self._validation(validation_data, wanted is not None)
            draw, n_rows = self._sampler(len(data), sampling, steps_per_epoch)
            engine = self._engine()
            routine = engine.program.routine("train", wanted is not None)
            if not routine.trains:
                raise ValueError("net: expected a network with trainable parameters, given one without")
            training = _Training(self, engine, routine, data, wanted, draw, n_rows, epochs)
            self.history = history = training.history
            # Where nobody looks in between, one job does it all: handing over costs as much as an update.
            at_once = 1 if callbacks or validation is not None else epochs
            report = _reporter(training, callbacks)
            nested, self._fitting = self._fitting, True
            try:
                for epoch in range(at_once, epochs + 1, at_once):
                    self._watch(lambda: training.run(at_once), training.control, report)
                    if report is not None:
                        report()
                    logs = {"loss": history.loss[-1], "seconds": history.seconds[-1]}
                    if validation is not None:
                        logs["val_loss"] = self._evaluate(engine, *validation, self._watch)
                        history.val_loss.append(logs["val_loss"])
                    # A list: all of them are told, even if the first wants to stop.
                    wishes = [callback.on_epoch_end(self, epoch, dict(logs)) for callback in callbacks]
                    if any(wishes):
                        break
            finally:
                self._fitting = nested
                for callback in callbacks:
                    on_fit_end = getattr(callback, "on_fit_end", None)
                    if on_fit_end is not None:
                        on_fit_end(self)
        return history

    # Checks -----------------------------------------------------------------------------------------------

    def _rows(self, name: str, X: Any, shape: tuple[int, ...], *, finite: bool = True) -> Array:
        """X as a matrix, a row for each of its rows, by a view; or an error that names it."""
        if not isinstance(X, np.ndarray) or isinstance(X, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected a numpy.ndarray, given {type(X).__name__}")
        if X.dtype != self.dtype:
            raise TypeError(
                f"{name}: expected dtype {self.dtype}, as the trainer has, given {X.dtype}; "
                f"{name}.astype({self.dtype.name!r}) converts it"
            )
        width = math.prod(shape)
        if X.shape[1:] != shape and X.shape[1:] != (width,):
            shaped = f"(N, {', '.join(map(str, shape))})" + (f" or (N, {width})" if len(shape) > 1 else "")
            raise ValueError(f"{name}: expected shape {shaped}, given {X.shape}")
        if not len(X):
            raise ValueError(f"{name}: expected one or more rows, given shape {X.shape}")
        if not (X.flags.c_contiguous and X.flags.aligned):
            raise ValueError(
                f"{name}: expected a C-contiguous, aligned array, given strides {X.strides}; "
                f"numpy.ascontiguousarray makes one"
            )
        rows = X.view(np.ndarray).reshape(len(X), width)
        if finite and not _all_finite(flat := rows.reshape(-1)):
            for start in range(0, flat.size, _CHUNK):
                bad = np.flatnonzero(~np.isfinite(flat[start : start + _CHUNK]))
                if bad.size:
                    row, column = divmod(start + int(bad[0]), width)
                    raise ValueError(
                        f"{name}: expected finite values, given {rows[row, column]} "
                        f"in row {row}, column {column}"
                    )
        return rows

    def _pair(self, name: str, X: Any, target_name: str, target: Any) -> tuple[Array, Array | None]:
        data = self._rows(name, X, self.net.input_shape)
        if target is None:
            if self.net.input_shape != self.net.output_shape:
                raise ValueError(
                    f"{target_name}: expected an array, since the output has another shape than the input "
                    f"({self.net.output_shape}, {self.net.input_shape}), given None"
                )
            return data, None
        wanted = self._rows(target_name, target, self.net.output_shape)
        if len(wanted) != len(data):
            raise ValueError(f"{target_name}: expected {len(data)} rows, as {name} has, given {len(wanted)}")
        return data, wanted

    def _validation(self, given: Any, with_target: bool) -> tuple[Array, Array | None] | None:
        if given is None:
            return None
        if isinstance(given, tuple):
            if len(given) != 2:
                raise ValueError(f"validation_data: expected X or (X, target), given a tuple of {len(given)}")
            return self._pair("validation_data[0]", given[0], "validation_data[1]", given[1])
        if with_target:
            raise ValueError("validation_data: expected (X, target), since a target is given, given X alone")
        return self._pair("validation_data", given, "target of validation_data", None)

    def _out(self, out: Any, shape: tuple[int, ...], source: Array) -> Array:
        if out is None:
            return np.empty(shape, self.dtype)
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out: expected a numpy.ndarray, given {type(out).__name__}")
        if out.dtype != self.dtype:
            raise TypeError(f"out: expected dtype {self.dtype}, as the trainer has, given {out.dtype}")
        if out.shape != shape:
            raise ValueError(f"out: expected shape {shape}, given {out.shape}")
        if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
            raise ValueError("out: expected a C-contiguous, aligned, writable array, given one that is not")
        if np.may_share_memory(out, source):  # exact: both are contiguous
            raise ValueError("out: expected memory of its own, given an array that overlaps the input")
        return out

    def _sampler(
        self, n: int, sampling: str, steps: int | None
    ) -> tuple[Callable[[], npt.NDArray[np.int64] | None], int]:
        """Make a function that gives the order of an epoch; with the number of rows of an epoch."""
        count = n
        if steps is not None:
            steps = _integer("steps_per_epoch", steps, 1)
            count = steps * self.batch_size
            if sampling != "replacement":
                most = -(-n // self.batch_size)
                if steps > most:
                    raise ValueError(
                        f"steps_per_epoch: expected at most {most} with sampling={sampling!r} and {n} rows, "
                        f"given {steps}; use more epochs, or sampling='replacement'"
                    )
                count = min(count, n)
        draw = self._orders
        if sampling == "replacement":
            return (lambda: draw.integers(0, n, count)), count
        if sampling == "shuffle":
            return (lambda: draw.permutation(n)[:count].astype(np.int64, copy=False)), count
        return (lambda: None if count == n else np.arange(count, dtype=np.int64)), count

    # Running ----------------------------------------------------------------------------------------------

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Give the right to use weights and arena, one call at a time."""
        with self._lock:
            if self._watching:
                raise RuntimeError("the trainer is at work: use it in on_epoch_end, not in on_progress")
            if self._job is not None:  # left behind by a second Ctrl-C, and told to stop
                while not self._job.wait(_POLL):
                    pass
                self._job = None
            yield

    def _engine(self) -> _Engine:
        """Find or make the engine of the backend in effect, and have it hold the weights."""
        if self._fitting:  # resolved when the fit began; a callback asks for it
            assert self._current is not None
            return self._current
        backend = backends.resolve(self.backend)
        engine = self._engines.get(backend.name)
        if engine is None or engine.backend is not backend:
            engine = self._engines[backend.name] = _Engine(self, backend)
        if engine is not self._current:
            if self._current is None:
                engine.program.write_weights(engine.arena, self._initial)
                engine.header[1] = self.seed_
            else:
                engine.carry_over(self._current)
            self._current = engine
            self._initial = {}
        return engine

    def _infer(
        self,
        name: str,
        argument: str,
        X: Any,
        shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        out: Array | None,
    ) -> Array:
        with self._exclusive():
            data = self._rows(argument, X, shape, finite=False)
            out = self._out(out, (len(data), *output_shape), data)
            engine = self._engine()
            flat = out.view(np.ndarray).reshape(len(data), -1)
            engine.executor.run(engine.program.routine(name), data, None, None, out=flat)
            return out

    def _evaluate(
        self,
        engine: _Engine,
        data: Array,
        target: Array | None,
        run: Callable[[Callable[[], None], npt.NDArray[np.int64]], None],
    ) -> float:
        routine = engine.program.routine("evaluate", target is not None)
        batch_loss = np.empty(-(-len(data) // self.batch_size))
        control = np.zeros(8, np.int64)
        control[2] = -1
        run(
            lambda: engine.executor.run(routine, data, target, None, losses=batch_loss, control=control),
            control,
        )
        if control[2] >= 0:
            return float(batch_loss[control[2]])
        return self._combine(batch_loss, len(data))

    def _combine(self, batch_loss: npt.NDArray[np.float64], n: int) -> float:
        """Loss of n rows from those of their batches, of which the last may be partial."""
        if self.loss.reduction == "sum":
            return float(batch_loss.sum()) * self.batch_size / n
        last = n - (len(batch_loss) - 1) * self.batch_size
        return float(batch_loss[:-1].sum() * self.batch_size + batch_loss[-1] * last) / n

    @staticmethod
    def _call(call: Callable[[], None], control: npt.NDArray[np.int64]) -> None:
        call()

    def _watch(
        self,
        call: Callable[[], None],
        control: npt.NDArray[np.int64],
        report: Callable[[], None] | None = None,
    ) -> None:
        """Make a call on the worker thread and wait for its end, which an exception here makes come soon."""
        if self._worker is None or self._worker.process != os.getpid():
            self._worker = _Worker(self)
        put = self._worker.put
        self._job = job = _Job(call)
        self._watching = True
        try:
            put(job)
            # Also without a report: where a wait cannot be interrupted (Windows), Ctrl-C comes in between.
            while not job.wait(_POLL):
                if report is not None:
                    report()
        except BaseException:
            control[0] = 1
            while not job.over:
                with suppress(KeyboardInterrupt):  # again; the batch at hand ends all the same
                    job.wait(_POLL)
            self._job = None
            raise
        finally:
            self._watching = False
        self._job = None
        if job.error is not None:
            raise job.error


class _Training:
    """The epochs of one fit: runs them, records them, and deals with divergence."""

    def __init__(
        self,
        trainer: Trainer,
        engine: _Engine,
        routine: Routine,
        data: Array,
        target: Array | None,
        draw: Callable[[], npt.NDArray[np.int64] | None],
        n_rows: int,
        epochs: int,
    ) -> None:
        self.batch_size = trainer.batch_size
        self.combine = trainer._combine
        self.engine = engine
        self.routine = routine
        self.data = data
        self.target = target
        self.draw = draw
        self.n_rows = n_rows
        self.epochs = epochs
        self.steps = -(-n_rows // self.batch_size)
        self.total = epochs * self.steps
        self.before = 0  # updates of the epochs that are over
        self.history = History()
        self.control = np.zeros(8, np.int64)

    @property
    def done(self) -> int:
        """Updates done so far."""
        return self.before + int(self.control[1])

    def run(self, epochs: int) -> None:
        """On the worker thread: some epochs, after which the weights are finite whatever happened."""
        for _ in range(epochs):
            self._epoch()
            if self.control[0]:
                return

    def _epoch(self) -> None:
        engine, control, history = self.engine, self.control, self.history
        begin = time.perf_counter()
        order = self.draw()
        batch_loss = np.empty(self.steps)
        engine.save(engine.saved)
        control[1:3] = 0, -1
        self.before = history.updates
        try:
            engine.executor.run(
                self.routine, self.data, self.target, order, losses=batch_loss, control=control
            )
        finally:
            batch_loss = batch_loss[: int(control[1]) + (control[2] >= 0)]
            history._batches.append(batch_loss)
        finite = engine.finite()
        if control[2] >= 0 or not finite:
            kept = int(control[1]) if finite else self._recover(order, int(control[1]))
            raise self._divergence(self.before + kept)
        if len(batch_loss) == self.steps:
            history.loss.append(self.combine(batch_loss, self.n_rows))
            history.seconds.append(time.perf_counter() - begin)

    def _recover(self, order: npt.NDArray[np.int64] | None, done: int) -> int:
        """Redo the epoch up to the last update with finite weights; the number of these updates.

        The same batches from the same state give the same weights. One at a time, because the loss may
        stay finite for a while after a weight is not (a relu that is 0).
        """
        engine, size = self.engine, self.batch_size
        engine.restore(engine.saved)
        spare = [part.copy() for part in engine.saved]
        for update in range(done):
            if self.control[0]:  # interrupted: what there is will do
                return update
            rows = slice(update * size, (update + 1) * size)
            if order is None:
                target = None if self.target is None else self.target[rows]
                engine.executor.run(self.routine, self.data[rows], target, None)
            else:
                engine.executor.run(self.routine, self.data, self.target, order[rows])
            if not engine.finite():
                engine.restore(spare)
                return update
            engine.save(spare)
        return done

    def _divergence(self, kept: int) -> DivergenceError:
        history = self.history
        step, epoch = history.updates, len(history.loss) + 1
        where = f"update {step} (epoch {epoch} of {self.epochs})"
        what = (
            f"the loss of {where} is {history._batches[-1][-1]}"
            if self.control[2] >= 0
            else f"weights are not finite after {where}"
        )
        return DivergenceError(
            f"training diverged: {what}; the trainer holds the weights after update {kept}, the last finite "
            f"ones. A smaller learning rate or data on a smaller scale may help",
            step,
            epoch,
            kept,
        )


def _real(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        real = np.dtype(dtype) if dtype is not None else None
    except TypeError:
        real = None
    if real != np.float32 and real != np.float64:
        raise ValueError(f"dtype: expected float32 or float64, given {dtype!r}")
    assert real is not None
    return real


def _reporter(training: _Training, callbacks: Iterable[Callback]) -> Callable[[], None] | None:
    """Make what tells the callbacks how far it is; None if none of them asks."""
    reports = [r for c in callbacks if (r := getattr(c, "on_progress", None)) is not None]
    if not reports:
        return None
    told = 0

    def report() -> None:
        nonlocal told
        told = max(told, training.done)  # between two epochs it may be looked at half set
        for on_progress in reports:
            on_progress(told, training.total)

    return report


def _checked_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    if hasattr(callbacks, "on_epoch_end") or not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks: expected an iterable of callbacks, given {type(callbacks).__name__}")
    found = tuple(callbacks)
    for i, callback in enumerate(found):
        if not callable(getattr(callback, "on_epoch_end", None)):
            raise TypeError(
                f"callbacks[{i}]: expected an object with on_epoch_end, given {type(callback).__name__}"
            )
    return found

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
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastae import backend as backends
from fastae import losses, optimizers
from fastae.callbacks import Callback, Progress
from fastae.checks import all_finite, integer, real_dtype, within
from fastae.engine import Engine, Snapshot
from fastae.fitting import Fit, Order, Plan, Position, combine
from fastae.history import DivergenceError, History
from fastae.layers import GaussianNoise, MaskingNoise, real_number
from fastae.network import SAMPLINGS, Network
from fastae.program import Program
from fastae.worker import Job, Worker

__all__ = ["DivergenceError", "History", "Trainer"]

Array = npt.NDArray[Any]

#: Rows with their targets and their weights, where there are any.
Rows = tuple[Array, Array | None, Array | None]

#: Seconds between two looks at the control block. The end of an epoch needs no look: it wakes who waits.
_POLL = 0.05

_DEFAULT_OPTIMIZER = optimizers.Adam(1e-3)


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

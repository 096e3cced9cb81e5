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

What belongs to it lies in `fastae.checks` (arguments), `fastae.engine` (program, arena, executor),
`fastae.fitting` (the epochs of a fit), `fastae.worker` (the thread) and `fastae.persistence` (files).
"""

from __future__ import annotations

import os
import secrets
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fastae import backend as backends
from fastae import losses, optimizers, persistence
from fastae.callbacks import Callback, Progress
from fastae.checks import Checks, Rows, integer, matrix, real_dtype
from fastae.engine import Engine, Snapshot
from fastae.fitting import Fit, Order, Plan, Position, combine
from fastae.history import DivergenceError, History
from fastae.layers import GaussianNoise, MaskingNoise, real_number
from fastae.network import SAMPLINGS, Network
from fastae.persistence import CheckpointError, State
from fastae.program import Program
from fastae.worker import Job, Worker

__all__ = ["DivergenceError", "History", "Trainer"]

Array = npt.NDArray[Any]

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
        What training makes small: a key of `fastae.losses.LOSSES`, such as "mse" or "bce".
    optimizer : Optimizer or str
        How; Adam with a learning rate of 1e-3 when not given.
    batch_size : int
        Rows of a batch, >= 1; the last one of an epoch may have fewer. Inference goes by batches of it too.
    backend : str, Backend or None
        "scalar", "numpy", "numba" or "cython". None: the one in effect when a call begins, see
        `fastae.set_backend`. Weights go along when it changes.
    dtype : "float32" or "float64"
        Of weights, data and results.
    n_threads : int or None
        Threads of the backend's executor, >= 1; "scalar" and "numpy" take 1 alone. None: as many as the work
        of a batch is worth, and no more than there are processors or than FASTAE_NUM_THREADS or
        OMP_NUM_THREADS say. The result has the same bits for any number.
    seed : int or None
        Of initial weights, batches, noise and dropout, 0 <= seed < 2**63: the same seed gives the same result
        on the same backend. None: drawn at random.
    noise : GaussianNoise, MaskingNoise or None
        Put on the rows of each batch in training, anew each time, while the loss compares the output with
        the rows as they are, or with the target: so a denoiser is trained.

    Attributes
    ----------
    seed_ : int
        The seed in use. Noise and dropout are functions of it and of the number of updates done.
    history : History
        Of the last fit; an empty one before.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as stated; the message names it, what was expected and what was given.

    Notes
    -----
    Several threads may use one trainer: one call waits for the other, also for a whole `fit`.

    Where a method takes an ndarray, an array of another library will do whose memory is the CPU's: one with
    ``__dlpack__``, ``__array_interface__`` or a buffer. It is not copied, and must be as the ndarray would
    have to be. What is returned is an ndarray, also for such an `out`.

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
        noise: GaussianNoise | MaskingNoise | None = None,
    ) -> None:
        if not isinstance(net, Network):
            raise TypeError(f"net: expected a Network, given {type(net).__name__}")
        if backend is not None and not isinstance(backend, str | backends.Backend):
            raise TypeError(f"backend: expected a name or None, given {type(backend).__name__}")
        if isinstance(backend, str) and not backends.is_known(backend):
            raise ValueError(f"backend: expected one of {', '.join(backends.known())}, given {backend!r}")
        self.net: Final = net
        self.loss: Final = losses.resolve(loss)
        self.optimizer: Final = optimizers.resolve(optimizer)
        self.batch_size: Final = integer("batch_size", batch_size, 1)
        self.backend = backend
        self.dtype: Final = real_dtype(dtype)
        self.n_threads: Final = None if n_threads is None else integer("n_threads", n_threads, 1, 1024)
        self.seed_ = secrets.randbits(32) if seed is None else integer("seed", seed, 0, 2**63 - 1)
        if noise is not None and not isinstance(noise, GaussianNoise | MaskingNoise):
            raise TypeError(f"noise: expected GaussianNoise, MaskingNoise or None, given {noise!r:.50}")
        self.noise: Final = noise
        self._checks: Final = Checks(net, self.loss, self.dtype, self.batch_size)
        self._inference: Final = {
            "encode": ("X", net.input_shape, net.code_shape),
            "decode": ("Z", net.code_shape, net.output_shape),
            "reconstruct": ("X", net.input_shape, net.output_shape),
        }
        self.history = History()

        # Another stream than that of the weights, which are those of net.initial_weights(seed).
        (stream,) = np.random.SeedSequence(self.seed_).spawn(1)
        self._orders = np.random.Generator(np.random.PCG64(stream))
        self._learning_rate = self.optimizer.constants["learning_rate"]
        self._start = Snapshot(net.initial_weights(self.seed_, self.dtype.name), self.seed_)
        self._engines: dict[str, Engine] = {}
        self._current: Engine | None = None  # holds the weights; None: they are those of _start
        self._position: Position | None = None  # of the last fit, while it can be resumed
        self._lock = threading.RLock()
        self._worker: Worker | None = None
        self._job: Job | None = None
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
                return {name: value.copy() for name, value in self._start.weights.items()}
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
            self._forget_position()

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next updates, > 0; that of the optimiser until it is set.

        Setting it holds until it is set again, also over several fits; the schedules of `fastae.callbacks`
        set it after each epoch.
        """
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        rate = real_number("learning_rate", rate, 0, open_low=True)
        with self._exclusive():
            self._learning_rate = rate
            if self._current is not None:
                self._current.set_learning_rate(rate)

    # Files ------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that training goes on from to a file.

        That is the declaration, the weights, the state of the optimiser, running statistics, the state of
        the random numbers, the history, and where a fit is that is under way or was interrupted.
        `fastae.load` reads it.

        Parameters
        ----------
        path : str or path
            The file, in the safetensors format. It is replaced as a whole: whatever happens, there is the
            old file or the new one. (A kill while it is written also leaves ``.<name>.<digits>.tmp``.)

        Raises
        ------
        ImportError
            Without safetensors (``pip install "fastae[files]"``).
        OSError
            When the file cannot be written.
        """
        with self._exclusive():
            persistence.write(path, self._state())

    def _state(self) -> State:
        current = self._current
        return State(
            network=self.net,
            loss=self.loss,
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            dtype=self.dtype,
            noise=self.noise,
            backend=self.backend.name if isinstance(self.backend, backends.Backend) else self.backend,
            n_threads=self.n_threads,
            learning_rate=self._learning_rate,
            snapshot=self._start if current is None else current.read(),
            generator=self._orders.bit_generator.state,
            history=self.history,
            position=self._position,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as a file would: what a fit goes on from, no arena and no threads."""
        with self._exclusive():
            state = self._state()
            if (at := state.position) is not None:
                state = replace(state, position=replace(at, callbacks=(), loaded=at.states()))
            return persistence.new_trainer, (deepcopy(state),)

    def _take(self, state: State) -> None:
        """Go on from a state of the same declaration."""
        if self._current is not None:
            self._current.write(state.snapshot)
            self._current.set_learning_rate(state.learning_rate)
        else:
            self._start = state.snapshot
        self._learning_rate = state.learning_rate
        self.seed_ = state.snapshot.seed
        self._orders.bit_generator.state = state.generator
        self.history = state.history
        self._position = state.position

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
        return self._infer("encode", X, out)

    def decode(self, Z: Array, out: Array | None = None) -> Array:
        """Compute the outputs for the codes Z, (N, *code_shape); otherwise as `encode`."""
        return self._infer("decode", Z, out)

    def reconstruct(self, X: Array, out: Array | None = None) -> Array:
        """Compute the outputs for the rows of X, (N, *output_shape); otherwise as `encode`."""
        return self._infer("reconstruct", X, out)

    def evaluate(
        self, X: Array, target: Array | None = None, sample_weight: npt.ArrayLike | None = None
    ) -> float:
        """Compute the loss of the rows of X, on the scale of `History.loss`.

        Parameters
        ----------
        X, target, sample_weight
            As of `fit`.

        Returns
        -------
        float
            Infinity or NaN when a batch's loss is.
        """
        with self._exclusive():
            rows = self._checks.triple(("X", X), ("target", target), ("sample_weight", sample_weight))
            return self._evaluate(self._engine(), rows, self._call)

    # Training ---------------------------------------------------------------------------------------------

    def fit(
        self,
        X: Array,
        target: Array | None = None,
        epochs: int = 10,
        validation_data: Array | tuple[Array, Array] | None = None,
        callbacks: Iterable[Callback] = (),
        *,
        validation_split: float | None = None,
        sample_weight: npt.ArrayLike | None = None,
        sampling: str = "shuffle",
        steps_per_epoch: int | None = None,
        verbose: int = 0,
        resume: bool | str | os.PathLike[str] = False,
    ) -> History:
        """Train, beginning with the weights the trainer holds.

        Parameters
        ----------
        X : ndarray of the trainer's dtype, (N, *input_shape) or (N, features), C-contiguous
            Training data, N >= 1, all finite.
        target : ndarray of the trainer's dtype, (N, *output_shape) or (N, features), C-contiguous, optional
            What the output is to be; X itself when not given.
        epochs : int
            Rounds, >= 1; of a fit that is resumed, all of them.
        validation_data : ndarray like X, or tuple (X, target) or (X, target, sample_weight), optional
            Evaluated after each epoch. With a `target`, a tuple.
        callbacks : iterable of Callback
            Called at the end of each epoch, and more; see `fastae.callbacks`.
        validation_split : float, optional
            Share of the rows, in (0, 1), that is held back as validation data instead: the last ones, as
            they lie.
        sample_weight : array of real numbers, (N,), optional
            Factor of each row's loss, finite and >= 0. A mean loss still divides by the number of rows.
        sampling : str
            "shuffle": every row once an epoch, in random order; "replacement": N rows drawn at random, some
            more than once; "sequential": every row once, as they lie.
        steps_per_epoch : int, optional
            Updates of an epoch, >= 1, each with a full batch where the rows suffice. Without replacement not
            more than ceil(N / batch_size), the default.
        verbose : int
            0: silent; 1: a progress bar (tqdm if it is installed); 2: a line for each epoch.
        resume : bool, str or path
            True: go on with the last fit of this trainer, or of the file it was loaded from, at the batch
            where it was interrupted. A path: do so from that checkpoint, whose network and training must be
            this trainer's. Everything else is given as it was: on the same backend the result has the bits
            of a fit that was never interrupted. Only the history's seconds differ.

        Returns
        -------
        History
            The same as `history`.

        Raises
        ------
        TypeError, ValueError
            When an argument is not as stated; nothing has changed then.
        CheckpointError
            A ValueError: when the file is damaged, of a newer version or of another training.
        DivergenceError
            When a loss or a weight is not finite. The trainer then holds the last finite weights.
        KeyboardInterrupt
            After Ctrl-C. Updates done so far stay and `history` holds their losses.
        """
        epochs = integer("epochs", epochs, 1)
        if not isinstance(sampling, str) or sampling not in SAMPLINGS:
            raise ValueError(f"sampling: expected one of {', '.join(SAMPLINGS)}, given {sampling!r}")
        told = _checked_callbacks(callbacks)
        if integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0, 2):
            told = (Progress(verbose), *told)
        with self._exclusive():
            rows, validation = self._checks.split(X, target, sample_weight, validation_data, validation_split)
            n = len(rows[0])
            steps, count = self._checks.steps(n, sampling, steps_per_epoch)
            held = 0 if validation is None else len(validation[0])
            plan = Plan(n, held, sampling, steps, rows[1] is not None, rows[2] is not None)
            _check_monitors(told, validation is not None)
            engine = self._engine()
            self._check_batches(engine, count)
            stateful = [c for c in told if hasattr(c, "state_dict")]
            position, history = self._resumed(resume, plan, stateful) or (Position(plan), History())
            position.callbacks = stateful
            self.history, self._position = history, position
            order = Order(self._orders, n, count, sampling)
            fit = Fit(engine, *rows, order, epochs, position, history)
            nested, self._fitting = self._fitting, True
            try:
                _tell(told, "on_fit_begin", self, position.epoch)
                if position.epoch < epochs and not position.stopped:
                    self._warn_of_no_rate()
                try:
                    self._run(fit, validation, told)
                finally:
                    self._fitting = nested
                    self.history, self._position = history, position
                # What saves the trainer does so before another puts weights back.
                last_first = sorted(told, key=lambda c: not getattr(c, "comes_last", False))
                _tell(last_first, "on_fit_success", self)
            except DivergenceError:
                self._position = None  # the weights are of no batch's end
                raise
            finally:
                self._fitting = nested
                _tell(told, "on_fit_end", self)
        return history

    def _warn_of_no_rate(self) -> None:
        """A schedule of an earlier fit may have left a rate at which nothing is learnt."""
        initial = self.optimizer.constants["learning_rate"]
        if self._learning_rate < 1e-6 * initial:
            warnings.warn(
                f"the fit begins with a learning rate of {self._learning_rate:.3g}, where a schedule has "
                f"ended; set trainer.learning_rate, to {initial:g} say, to go on learning",
                RuntimeWarning,
                stacklevel=3,
            )

    def _run(self, fit: Fit, validation: Rows | None, callbacks: tuple[Callback, ...]) -> None:
        """Run the epochs of a fit that are left."""
        position, history = fit.position, fit.history
        report = _reporter(fit, callbacks)
        if report is not None and fit.done:
            report()
        # Where nobody looks in between, one job does it all: handing over costs as much as an update.
        together = not callbacks and validation is None
        while position.epoch < fit.epochs and not position.stopped:
            at_once = fit.epochs - position.epoch if together else 1
            self._watch(partial(fit.run, at_once), fit.control, report)
            if report is not None:
                report()
            before = position.epoch, position.stopped, self._learning_rate
            states = _states(position.callbacks)
            try:
                self._end_epoch(fit, validation, callbacks)
            except BaseException:  # a fit that is resumed does all of it again
                position.epoch, position.stopped, rate = before
                position.batch = position.plan.steps
                del history.val_loss[position.epoch :]
                _put_back(position.callbacks, states)
                self.learning_rate = rate
                raise

    def _end_epoch(self, fit: Fit, validation: Rows | None, callbacks: tuple[Callback, ...]) -> None:
        """Evaluate, and tell the callbacks."""
        position, history = fit.position, fit.history
        logs = {"loss": history.loss[-1], "seconds": history.seconds[-1]}
        if validation is not None:
            logs["val_loss"] = self._evaluate(fit.engine, validation, self._watch)
            history.val_loss.append(logs["val_loss"])
        fit.end_epoch()
        for last in (False, True):
            self.history, self._position = history, position  # a fit in a callback has its own
            group = [c for c in callbacks if bool(getattr(c, "comes_last", False)) is last]
            # A list: all of them are told, even if the first wants to stop.
            wishes = [callback.on_epoch_end(self, position.epoch, dict(logs)) for callback in group]
            position.stopped |= any(wishes)

    def partial_fit(
        self, X: Array, target: Array | None = None, sample_weight: npt.ArrayLike | None = None
    ) -> float:
        """Train on the rows of X once, in batches as they lie, beginning with what the trainer holds.

        So data that come in portions, or that no memory can hold, are learned: weights, the state of the
        optimiser and the learning rate go on from call to call. `history` stays that of the last fit.

        Parameters
        ----------
        X, target, sample_weight
            As of `fit`.

        Returns
        -------
        float
            Loss of these rows, on the scale of `History.loss`.

        Raises
        ------
        TypeError, ValueError, DivergenceError, KeyboardInterrupt
            As `fit` does.
        """
        with self._exclusive():
            rows = self._checks.triple(("X", X), ("target", target), ("sample_weight", sample_weight))
            n = len(rows[0])
            engine = self._engine()
            self._check_batches(engine, n)
            self._forget_position()
            steps, count = self._checks.steps(n, "sequential", None)
            plan = Plan(n, 0, "sequential", steps, rows[1] is not None, rows[2] is not None)
            order = Order(self._orders, n, count, "sequential")
            fit = Fit(engine, *rows, order, 1, Position(plan), History())
            self._watch(partial(fit.run, 1), fit.control)
            return fit.history.loss[0]

    def _resumed(self, resume: Any, plan: Plan, callbacks: list[Any]) -> tuple[Position, History] | None:
        """Take up a fit where it was left; None for one that is new. On an error nothing has changed."""
        if resume is False or resume is None:
            return None
        state = None
        if resume is True:
            position, history = self._position, self.history
            if position is None:
                raise ValueError(
                    "resume: expected the path of a checkpoint, or True where the last fit can go on; "
                    "given True, and this trainer has no such fit"
                )
        else:
            state = persistence.read(resume)
            if wrong := state.difference(self):
                raise CheckpointError(os.fspath(resume), "mismatch", wrong)
            position, history = state.position, state.history
            if position is None:
                raise CheckpointError(os.fspath(resume), "mismatch", "it holds no fit to go on with")
        if wrong := position.plan.difference(plan):
            raise ValueError(
                f"resume: expected the data and the arguments of the fit that is to go on, which had {wrong}"
            )
        states = position.states()
        names, given = [name for name, _ in states], [type(c).__name__ for c in callbacks]
        if names != given:
            raise ValueError(
                f"callbacks: expected {', '.join(names) or 'none'} of those that have a state, as in the fit "
                f"that is to go on, given {', '.join(given) or 'none'}"
            )
        before = _states(callbacks)
        try:
            for callback, (_, values) in zip(callbacks, states, strict=True):
                callback.load_state_dict(values)
        except BaseException:
            _put_back(callbacks, before)
            raise
        if state is not None:
            self._take(state)
        return position, history

    def _forget_position(self) -> None:
        """The weights are not those of the last fit any more; within one, they are its own."""
        if not self._fitting:
            self._position = None

    # Running ----------------------------------------------------------------------------------------------

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Give the right to use weights and arena, one call at a time."""
        with self._lock:
            self._at_rest()
            yield

    def _at_rest(self) -> None:
        """See that nothing uses weights and arena but the thread that holds the lock."""
        if self._watching:
            raise RuntimeError("the trainer is at work: use it in on_epoch_end, not in on_progress")
        if self._job is not None:  # left behind by a second Ctrl-C, and told to stop
            while not self._job.wait(_POLL):
                pass
            self._job = None

    def _engine(self) -> Engine:
        """Find or make the engine of the backend in effect, and have it hold the weights."""
        if self._fitting:  # resolved when the fit began; a callback asks for it
            assert self._current is not None
            return self._current
        backend = backends.resolve(self.backend)
        engine = self._engines.get(backend.name)
        if engine is None or engine.backend is not backend:
            engine = self._engines[backend.name] = Engine(
                backend,
                self.net,
                batch_size=self.batch_size,
                loss=self.loss,
                optimizer=self.optimizer,
                dtype=self.dtype,
                noise=self.noise,
                n_threads=self.n_threads,
            )
        if engine is not self._current:
            if self._current is None:
                engine.write(self._start)
            else:
                engine.carry_over(self._current)
            engine.set_learning_rate(self._learning_rate)
            self._current = engine
            self._start = Snapshot({}, self.seed_)
        return engine

    def _check_batches(self, engine: Engine, count: int) -> None:
        """See that the engine trains, and can on each batch of an epoch of so many rows."""
        if not engine.program.routine("train", True).trains:
            raise ValueError("net: expected a network with trainable parameters, given one without")
        smallest = min(count % self.batch_size or self.batch_size, count)
        if smallest < engine.program.needs_rows:
            raise ValueError(
                f"X: expected batches of {engine.program.needs_rows} rows or more, since the network has "
                f"batch normalisation; given {count} rows an epoch in batches of {self.batch_size}, "
                f"the last of which has {smallest}; use another batch_size or another number of rows"
            )

    def _infer(self, name: str, X: Any, out: Array | None) -> Array:
        argument, shape, output_shape = self._inference[name]
        with self._lock:  # as _exclusive, which costs as much as a small network on one row
            self._at_rest()
            data = self._checks.rows(argument, X, shape, finite=False)
            out = self._checks.out(out, (len(data), *output_shape), data)
            engine = self._engine()
            engine.executor.run(engine.program.routines[name], data, None, None, out=matrix(out))
            return out

    def _evaluate(
        self,
        engine: Engine,
        rows: Rows,
        run: Callable[[Callable[[], None], npt.NDArray[np.int64]], None],
    ) -> float:
        data, target, weights = rows
        routine = engine.program.routine("evaluate", target is not None, weights is not None)
        batch_loss = np.empty(-(-len(data) // self.batch_size))
        control = np.zeros(8, np.int64)
        control[2] = -1
        call = engine.executor.run
        run(
            lambda: call(routine, data, target, None, weights=weights, losses=batch_loss, control=control),
            control,
        )
        if control[2] >= 0:
            return float(batch_loss[control[2]])
        return combine(batch_loss, len(data), self.batch_size, self.loss.reduction)

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
            self._worker = Worker(self)
        put = self._worker.put
        self._job = job = Job(call)
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


def _tell(callbacks: Iterable[Callback], event: str, *arguments: Any) -> None:
    """Call a method of the callbacks that have it."""
    for callback in callbacks:
        method = getattr(callback, event, None)
        if method is not None:
            method(*arguments)


def _states(callbacks: Iterable[Any]) -> list[dict[str, Any]]:
    """Copies of the states of callbacks that have one; what they gave may go on changing."""
    return [deepcopy(callback.state_dict()) for callback in callbacks]


def _put_back(callbacks: Iterable[Any], states: Iterable[dict[str, Any]]) -> None:
    """Give callbacks the states back that they had; one that refuses its own keeps what it has."""
    for callback, state in zip(callbacks, states, strict=True):
        with suppress(Exception):
            callback.load_state_dict(state)


def _reporter(fit: Fit, callbacks: Iterable[Callback]) -> Callable[[], None] | None:
    """Make what tells the callbacks how far it is; None if none of them asks."""
    reports = [r for c in callbacks if (r := getattr(c, "on_progress", None)) is not None]
    if not reports:
        return None
    told = 0

    def report() -> None:
        nonlocal told
        told = max(told, fit.done)  # between two epochs it may be looked at half set
        for on_progress in reports:
            on_progress(told, fit.total)

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


def _check_monitors(callbacks: tuple[Callback, ...], validation: bool) -> None:
    known = ("loss", "seconds", "val_loss") if validation else ("loss", "seconds")
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in known:
            raise ValueError(
                f"callbacks: expected validation data, since {type(callback).__name__} looks at {monitor!r}, "
                "given none"
                if monitor == "val_loss"
                else f"callbacks: {type(callback).__name__} looks at {monitor!r}; known: {', '.join(known)}"
            )

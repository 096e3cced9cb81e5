"""The epochs of one fit: their order, their record, where they are, and what happens on divergence."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.engine import Engine
from fastae.history import DivergenceError, History

__all__ = ["Fit", "Order", "Plan", "Position", "combine"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """What a fit goes over; one that is resumed must go over the same.

    Parameters
    ----------
    rows : int
        Of the data.
    validation_rows : int
        Of the validation data, 0 without.
    sampling : str
        One of `fastae.network.SAMPLINGS`.
    steps : int
        Updates of an epoch.
    target, sample_weight : bool
        Whether there is one.
    """

    rows: int
    validation_rows: int
    sampling: str
    steps: int
    target: bool
    sample_weight: bool

    def difference(self, other: Plan) -> str:
        """Say in what another plan differs; empty where it does not."""
        for name, value in vars(self).items():
            if getattr(other, name) != value:
                return f"{name} {value}, not {getattr(other, name)}"
        return ""


@dataclass
class Position:
    """How far a fit has come.

    Parameters
    ----------
    plan : Plan
        What it goes over.
    epoch : int
        Epochs that are over, with validation.
    batch : int
        Updates of the next one that are done; all of them while only validation is missing.
    stopped : bool
        Whether a callback ended it.
    generator : mapping, optional
        State of the generator of orders before that of the epoch under way was drawn, where batch > 0.
    callbacks : sequence of object
        Those that have a state, `state_dict`.
    loaded : list of (str, dict)
        Class names and states of those that had one, where this was read from a file.
    """

    plan: Plan
    epoch: int = 0
    batch: int = 0
    stopped: bool = False
    generator: Mapping[str, Any] | None = None
    callbacks: Sequence[Any] = ()
    loaded: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def states(self) -> list[tuple[str, dict[str, Any]]]:
        """Class name and state of each callback that has one."""
        return [(type(c).__name__, c.state_dict()) for c in self.callbacks] or self.loaded


def combine(batch_loss: npt.NDArray[np.float64], n: int, batch_size: int, reduction: str) -> float:
    """Loss of n rows from those of their batches, of which the last may be partial."""
    if reduction == "sum":
        return float(batch_loss.sum()) * batch_size / n
    last = n - (len(batch_loss) - 1) * batch_size
    return float(batch_loss[:-1].sum() * batch_size + batch_loss[-1] * last) / n


class Order:
    """Draws the order in which an epoch takes the rows.

    Parameters
    ----------
    generator : numpy.random.Generator
        Where it is drawn from.
    n : int
        Rows of the data.
    count : int
        Rows of an epoch.
    sampling : str
        One of `fastae.network.SAMPLINGS`.
    """

    def __init__(self, generator: np.random.Generator, n: int, count: int, sampling: str) -> None:
        self.generator, self.n, self.count, self.sampling = generator, n, count, sampling

    def draw(self) -> npt.NDArray[np.int64] | None:
        """Return the rows of the next epoch; None for all of them as they lie."""
        if self.sampling == "replacement":
            return self.generator.integers(0, self.n, self.count)
        if self.sampling == "shuffle":
            return self.generator.permutation(self.n)[: self.count].astype(np.int64, copy=False)
        return None if self.count == self.n else np.arange(self.count, dtype=np.int64)


class Fit:
    """Runs epochs and keeps `history` and `position` up to date, so that it may end at any batch.

    Parameters
    ----------
    engine : Engine
        Holds the weights.
    data : ndarray, (n, k)
    target : ndarray, (n, m), or None
    weights : ndarray, (n,), or None
        Sample weights.
    order : Order
        Of the rows.
    epochs : int
        How many there are to be in all.
    position : Position
        Where to begin.
    history : History
        What was recorded up to there.
    """

    def __init__(
        self,
        engine: Engine,
        data: Array,
        target: Array | None,
        weights: Array | None,
        order: Order,
        epochs: int,
        position: Position,
        history: History,
    ) -> None:
        self.engine = engine
        self.data, self.target, self.weights = data, target, weights
        self.order = order
        self.epochs = epochs
        self.position = position
        self.history = history
        self.batch_size = engine.program.batch_size
        self.steps = position.plan.steps
        self.total = epochs * self.steps
        self.control = np.zeros(8, np.int64)
        self.before = history.updates  # updates before those that control counts

    @property
    def done(self) -> int:
        """Updates done so far."""
        return self.before + int(self.control[1])

    def run(self, epochs: int) -> None:
        """On the worker thread: some epochs, after which the weights are finite whatever happened."""
        for i in range(epochs):
            if i:
                self.end_epoch()
            self._epoch()
            if self.control[0]:
                return

    def end_epoch(self) -> None:
        """Note that the epoch under way is over, once its validation is done."""
        self.position.epoch += 1
        self.position.batch = 0

    def _epoch(self) -> None:
        """Draw an order and go over it; what is left without an update has drawn nothing."""
        random = self.order.generator.bit_generator
        if self.position.batch:
            assert self.position.generator is not None
            random.state = self.position.generator
        else:
            self.position.generator = random.state
        try:
            self._train()
        finally:
            if not self.position.batch:
                random.state = self.position.generator

    def _train(self) -> None:
        engine, control, history, position = self.engine, self.control, self.history, self.position
        begin = time.perf_counter()
        skip = position.batch
        order = self.order.draw()
        if skip == self.steps:  # only its validation is missing
            return
        batch_loss = np.empty(self.steps)
        if skip:
            batch_loss[:skip] = history._batches[-1]
            order = (np.arange(self.order.count) if order is None else order)[skip * self.batch_size :]
        engine.save(engine.saved)
        control[1:3] = 0, -1
        self.before = history.updates
        routine = engine.program.routine("train", self.target is not None, self.weights is not None)
        try:
            engine.executor.run(
                routine,
                self.data,
                self.target,
                order,
                weights=self.weights,
                losses=batch_loss[skip:],
                control=control,
            )
        finally:
            position.batch = skip + int(control[1])
            history._batches[len(history._batches) - bool(skip) :] = [
                batch_loss[: position.batch + (control[2] >= 0)]
            ]
        finite = engine.finite()
        if control[2] >= 0 or not finite:
            # A batch without an update may have changed running statistics all the same.
            intact = finite and (control[2] < 0 or engine.program.statistics is None)
            kept = int(control[1]) if intact else self._recover(order, int(control[1]))
            raise self._divergence(self.before + kept)
        if position.batch == self.steps:
            loss = engine.program.loss.reduction
            history.loss.append(combine(batch_loss, self.order.count, self.batch_size, loss))
            history.seconds.append(time.perf_counter() - begin)

    def _recover(self, order: npt.NDArray[np.int64] | None, done: int) -> int:
        """Redo the epoch up to the last update with finite weights; the number of these updates.

        The same batches from the same state give the same weights. One at a time, because the loss may
        stay finite for a while after a weight is not (a relu that is 0).
        """
        engine, size = self.engine, self.batch_size
        engine.restore(engine.saved)
        spare = [part.copy() for part in engine.saved]
        routine = engine.program.routine("train", self.target is not None, self.weights is not None)
        for update in range(done):
            if self.control[0]:  # interrupted: what there is will do
                return update
            rows = slice(update * size, (update + 1) * size)
            if order is None:
                parts = [None if a is None else a[rows] for a in (self.data, self.target, self.weights)]
                engine.executor.run(routine, parts[0], parts[1], None, weights=parts[2])
            else:
                engine.executor.run(routine, self.data, self.target, order[rows], weights=self.weights)
            if not engine.finite():
                engine.restore(spare)
                return update
            engine.save(spare)
        return done

    def _divergence(self, kept: int) -> DivergenceError:
        history = self.history
        step = history.updates
        epoch = math.ceil(step / self.steps)
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

"""What may look on while a Trainer trains, and what it may do there: stop, slow down, save, show.

A callback is any object with `on_epoch_end`; see `Callback` for what else it may have. Those here:
`EarlyStopping`, `StepDecay`, `CosineDecay`, `ReduceOnPlateau`, `Checkpoint`, and `Progress`, which is
what `verbose` asks for.
"""

from __future__ import annotations

import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

import numpy as np

from fastae import losses, optimizers
from fastae.checks import integer
from fastae.layers import real_number

if TYPE_CHECKING:
    from fastae.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "CosineDecay",
    "EarlyStopping",
    "LearningRateSchedule",
    "Progress",
    "ReduceOnPlateau",
    "StepDecay",
]


@runtime_checkable
class Callback(Protocol):
    """What `Trainer.fit` calls, on the thread that called `fit`.

    More methods are called where an object has them:

    - ``on_fit_begin(trainer, epoch)``: before the first epoch; `epoch` are done already, more than 0 in a
      fit that is resumed.
    - ``on_progress(done, total)``: while an epoch is under way, about 20 times a second at most, and at its
      end; `done` of `total` updates of this fit are made. The trainer is at work: using it is an error.
    - ``on_fit_success(trainer)``: when the fit came to its end and was not interrupted.
    - ``on_fit_end(trainer)``: when the fit is over, also after an error or an interrupt.
    - ``state_dict()`` and ``load_state_dict(state)``: what a resumed fit needs to go on alike, a dict of
      JSON values, arrays, and dicts of arrays. It is loaded before ``on_fit_begin``.

    Two attributes are looked at: ``monitor``, a name in `logs` that must be there, and ``comes_last``, true
    for one that is told of an epoch after all the others, and of the success before any of them puts weights
    back (`Checkpoint`, which saves their states).

    What a callback raises ends the fit and reaches the caller. Where that is at the end of an epoch, all
    callbacks get the states back that they had before it, and a fit that is resumed tells them of it again.
    """

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> object:
        """Look at a finished epoch; the trainer may be used.

        Parameters
        ----------
        trainer : Trainer
            The one that trains.
        epoch : int
            Epochs done in this fit, from 1.
        logs : dict of str to float
            "loss", "seconds", and "val_loss" where there are validation data; see `History`.

        Returns
        -------
        object
            Anything true ends the fit.
        """


class _Monitor:
    """Sees whether a loss still becomes smaller."""

    def __init__(self, monitor: str, patience: int, min_delta: float) -> None:
        if monitor not in ("val_loss", "loss"):
            raise ValueError(f"monitor: expected 'val_loss' or 'loss', given {monitor!r}")
        self.monitor = monitor
        self.patience = integer("patience", patience, 1)
        self.min_delta = real_number("min_delta", min_delta, 0)
        self._reset()

    def _reset(self) -> None:
        self.best: float | None = None
        self.best_epoch = 0
        self.waited = 0

    def on_fit_begin(self, trainer: Trainer, epoch: int) -> None:
        """Forget an earlier fit."""
        if not epoch:
            self._reset()

    def _improved(self, epoch: int, logs: dict[str, float]) -> bool:
        value = logs[self.monitor]
        improved = math.isfinite(value) and (self.best is None or value < self.best - self.min_delta)
        if improved:
            self.best, self.best_epoch, self.waited = value, epoch, 0
        else:
            self.waited += 1
        return improved

    def state_dict(self) -> dict[str, Any]:
        """Return best loss, its epoch, and the epochs since."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave; a ValueError for anything else."""
        best, best_epoch, waited = (state.get(name) for name in ("best", "best_epoch", "waited"))
        if (
            not (best is None or (isinstance(best, float) and math.isfinite(best)))
            or type(best_epoch) is not int
            or type(waited) is not int
        ):
            raise ValueError(f"state of {type(self).__name__}: expected best, best_epoch and waited")
        self.best, self.best_epoch, self.waited = best, best_epoch, waited


class EarlyStopping(_Monitor):
    """Ends a fit when a loss has not become smaller for some epochs, and puts the best weights back.

    Parameters
    ----------
    monitor : "val_loss" or "loss"
        The loss looked at.
    patience : int
        Epochs in a row without a better loss that end the fit, >= 1.
    min_delta : float
        A loss is better when it is smaller than the best one by more than this, finite and >= 0.
    restore_best : bool
        Whether the trainer holds the weights of the best epoch at the end, also when all epochs were run.
        The state of the optimiser is left as it is. Nothing is put back after an error or an interrupt.

    Attributes
    ----------
    best : float or None
        Best loss so far; NaN and infinity are never better.
    best_epoch : int
        Its epoch, counted from 1; 0 for none.
    waited : int
        Epochs since.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as stated.

    References
    ----------
    Prechelt, Early stopping, but when? (1998).
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor, patience, min_delta)
        self.restore_best = bool(restore_best)

    def _reset(self) -> None:
        super()._reset()
        self._weights: dict[str, Any] = {}

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> bool:
        """Keep the weights of a better epoch; true when patience is at its end."""
        if self._improved(epoch, logs):
            if self.restore_best:
                self._weights = trainer.weights
            return False
        return self.waited >= self.patience

    def on_fit_success(self, trainer: Trainer) -> None:
        """Put the best weights back; a later fit begins anew."""
        if self._weights:
            trainer.set_weights(self._weights)
            self._weights = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what `_Monitor` does, and the best weights."""
        return {**super().state_dict(), "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave; a ValueError for anything else."""
        weights = state.get("weights")
        if not isinstance(weights, dict) or not all(isinstance(w, np.ndarray) for w in weights.values()):
            raise ValueError("state of EarlyStopping: expected weights, a dict of arrays")
        super().load_state_dict(state)
        self._weights = weights if self.restore_best else {}


class LearningRateSchedule:
    """A learning rate that is a function of the epoch.

    Derive from it and write `rate`. It needs no state: a resumed fit goes on alike. After the fit the
    trainer keeps the rate it has then.
    """

    def rate(self, epoch: int, initial: float) -> float:
        """Return the learning rate after `epoch` epochs, where `initial` is that of the optimiser."""
        raise NotImplementedError

    def _set(self, trainer: Trainer, epoch: int) -> None:
        rate = self.rate(epoch, trainer.optimizer.constants["learning_rate"])
        trainer.learning_rate = max(rate, sys.float_info.min)  # 0 is none, and is where a cosine may end

    def on_fit_begin(self, trainer: Trainer, epoch: int) -> None:
        """Set the rate of the first epoch; a fit that is resumed has the one it was left with."""
        if epoch == 0:
            self._set(trainer, epoch)

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> None:
        """Set the rate of the next epoch."""
        self._set(trainer, epoch)


class StepDecay(LearningRateSchedule):
    """A rate multiplied by `gamma` every `step` epochs.

    Parameters
    ----------
    step : int
        >= 1.
    gamma : float
        Finite and > 0.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as stated.
    """

    def __init__(self, step: int, gamma: float = 0.1) -> None:
        self.step = integer("step", step, 1)
        self.gamma = real_number("gamma", gamma, 0, open_low=True)

    def rate(self, epoch: int, initial: float) -> float:
        """Return ``initial gamma^(epoch // step)``."""
        return float(initial * self.gamma ** (epoch // self.step))


class CosineDecay(LearningRateSchedule):
    """A rate that falls to `minimum` in `epochs` epochs along half a cosine, and stays there.

    Parameters
    ----------
    epochs : int
        >= 1.
    minimum : float
        Finite and >= 0; below the rate of the optimiser it is a decay.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as stated.

    References
    ----------
    Loshchilov, Hutter, SGDR: stochastic gradient descent with warm restarts (2017), without the restarts.
    """

    def __init__(self, epochs: int, minimum: float = 0.0) -> None:
        self.epochs = integer("epochs", epochs, 1)
        self.minimum = real_number("minimum", minimum, 0)

    def rate(self, epoch: int, initial: float) -> float:
        """Return ``minimum + (initial - minimum) (1 + cos(pi epoch / epochs)) / 2``."""
        share = min(epoch / self.epochs, 1.0)
        return self.minimum + (initial - self.minimum) * (1 + math.cos(math.pi * share)) / 2


class ReduceOnPlateau(_Monitor):
    """Multiplies the learning rate when a loss has not become smaller for some epochs.

    Parameters
    ----------
    factor : float
        In (0, 1).
    patience : int
        Epochs in a row without a better loss after which the rate is multiplied, >= 1; then as many again.
    monitor : "val_loss" or "loss"
        The loss looked at.
    min_delta : float
        A loss is better when it is smaller than the best one by more than this, finite and >= 0.
    minimum : float
        The rate does not fall below it, finite and >= 0.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as stated.
    """

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        minimum: float = 0.0,
    ) -> None:
        super().__init__(monitor, patience, min_delta)
        self.factor = real_number("factor", factor, 0, 1, open_low=True)
        self.minimum = real_number("minimum", minimum, 0)

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> None:
        """Multiply the rate when patience is at its end."""
        if not self._improved(epoch, logs) and self.waited >= self.patience:
            self.waited = 0
            old = trainer.learning_rate
            trainer.learning_rate = min(old, max(old * self.factor, self.minimum, sys.float_info.min))


class Checkpoint:
    """Saves the trainer every `every` epochs and after the last, so that a fit can be resumed.

    Parameters
    ----------
    path : str or path
        The file, replaced as a whole each time; see `Trainer.save`.
    every : int
        >= 1.

    Raises
    ------
    TypeError, ValueError
        When an argument is not as stated.
    ImportError
        Without safetensors (``pip install "fastae[files]"``), before training.

    Examples
    --------
    A script that goes on where it was when it was killed, however often:

    >>> path = pathlib.Path("run.safetensors")
    >>> trainer.fit(X, epochs=100, callbacks=[Checkpoint(path)], resume=path.exists() and path)
    """

    comes_last = True

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        from fastae.persistence import require_library

        require_library()
        self.path = os.fspath(path)
        if not isinstance(self.path, str):
            raise TypeError(f"path: expected a str or a path, given {type(path).__name__}")
        self.every = integer("every", every, 1)
        self._unsaved = False

    def on_fit_begin(self, trainer: Trainer, epoch: int) -> None:
        """See that it can be saved, and where: better now than after the first epoch."""
        losses.to_dict(trainer.loss)
        optimizers.to_dict(trainer.optimizer)
        self._unsaved = False
        folder = os.path.dirname(os.path.realpath(self.path))
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"path of the checkpoint: there is no folder {folder}")

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> None:
        """Save when it is time."""
        self._unsaved = True
        if epoch % self.every == 0:
            self._save(trainer)

    def on_fit_success(self, trainer: Trainer) -> None:
        """Save the last epoch, where it was not time."""
        if self._unsaved:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save(self.path)
        self._unsaved = False


class Progress:
    """Shows how far a fit has come.

    Parameters
    ----------
    verbose : int
        1: a bar over the updates if tqdm is installed (``pip install "fastae[progress]"``), otherwise a line
        now and then; 2: a line for each epoch.
    file : text file, optional
        Where to write; standard error by default.
    """

    #: Least time between two lines where there is no bar.
    seconds_between_lines = 2.0

    def __init__(self, verbose: int = 1, file: TextIO | None = None) -> None:
        self.verbose = verbose
        self._file = file
        self._bar: Any = None
        self._next_line = time.perf_counter() + self.seconds_between_lines
        self._losses = ""

    def _print(self, line: str) -> None:
        print(line, file=self._file or sys.stderr, flush=True)

    def on_progress(self, done: int, total: int) -> None:
        """Move the bar to `done` of `total` updates."""
        if self.verbose != 1:
            return
        if self._bar is None:
            self._bar = self._new_bar(done, total)
        if self._bar:
            self._bar.update(done - self._bar.n)
        elif done == total or time.perf_counter() >= self._next_line:
            self._print(f"{done} of {total} updates{self._losses}")
            self._next_line = time.perf_counter() + self.seconds_between_lines

    def _new_bar(self, done: int, total: int) -> Any:
        """Make a bar; False without tqdm."""
        try:
            from tqdm import tqdm
        except ImportError:
            return False
        return tqdm(total=total, initial=done, unit="update", file=self._file, dynamic_ncols=True)

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> None:
        """Show the losses of an epoch."""
        losses = {name: f"{value:.6g}" for name, value in logs.items() if name != "seconds"}
        text = ", ".join(f"{name} {value}" for name, value in losses.items())
        if self.verbose == 2:
            self._print(f"epoch {epoch}: {text}, {logs['seconds']:.3g} s")
        elif self._bar:
            self._bar.set_postfix(losses, refresh=False)
        else:
            self._losses = f", epoch {epoch}: {text}"

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the bar."""
        if self._bar:
            self._bar.close()
        self._bar = None

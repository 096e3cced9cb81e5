"""What may look on while a Trainer trains: the protocol, and the progress that `verbose` asks for."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

if TYPE_CHECKING:
    from fastae.trainer import Trainer

__all__ = ["Callback", "Progress"]


@runtime_checkable
class Callback(Protocol):
    """What `Trainer.fit` calls, on the thread that called `fit`.

    Two more methods are called where an object has them:

    - ``on_progress(done, total)``: while an epoch is under way, about 20 times a second at most, and at its
      end; `done` of `total` updates of this fit are made. The trainer is at work: using it is an error.
    - ``on_fit_end(trainer)``: when the fit is over, also after an error or an interrupt.

    What a callback raises ends the fit and reaches the caller.
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

    def _print(self, line: str) -> None:
        print(line, file=self._file or sys.stderr, flush=True)

    def on_progress(self, done: int, total: int) -> None:
        """Move the bar to `done` of `total` updates."""
        if self.verbose != 1:
            return
        if self._bar is None:
            self._bar = self._new_bar(total)
        if self._bar:
            self._bar.update(done - self._bar.n)
        elif done == total or time.perf_counter() >= self._next_line:
            self._print(f"{done} of {total} updates")
            self._next_line = time.perf_counter() + self.seconds_between_lines

    def _new_bar(self, total: int) -> Any:
        """Make a bar; False without tqdm."""
        try:
            from tqdm import tqdm
        except ImportError:
            return False
        return tqdm(total=total, unit="update", file=self._file, dynamic_ncols=True)

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> None:
        """Show the losses of an epoch."""
        losses = {name: f"{value:.6g}" for name, value in logs.items() if name != "seconds"}
        if self.verbose == 2:
            text = ", ".join(f"{name} {value}" for name, value in losses.items())
            self._print(f"epoch {epoch}: {text}, {logs['seconds']:.3g} s")
        elif self._bar:
            self._bar.set_postfix(losses, refresh=False)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the bar."""
        if self._bar:
            self._bar.close()
        self._bar = None

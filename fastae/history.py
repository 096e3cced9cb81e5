"""What training leaves behind: its losses, or the error that ended it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DivergenceError", "History"]


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
    """What a fit recorded; one that was resumed goes on with the record of its first part.

    Attributes
    ----------
    loss : list of float
        One for each finished epoch. For a mean loss ("mse") the mean over its rows; for a sum ("sse") the
        loss of a batch of `batch_size` rows on average, which is the mean of the losses of its batches when
        none of them is partial. Sample weights multiply the losses of their rows and change no divisor.
    val_loss : list of float
        The same of the validation data, after each epoch, where there are any.
    seconds : list of float
        Wall time of each epoch, validation and callbacks not included; of one that was interrupted and
        resumed, that of its last part.
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

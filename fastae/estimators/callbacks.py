"""What scikit-learn's callbacks, of 1.9 and later, see of a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastae.trainer import Trainer

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9 there are none to honour

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for what this version of scikit-learn does not have."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is."""
        return method


if TYPE_CHECKING:
    from fastae.estimators.base import Estimator


class Bridge:
    """Tells the callbacks of scikit-learn of each epoch, and hands on to those of fastae."""

    def __init__(
        self,
        estimator: Estimator,
        root: Any,
        callbacks: Sequence[Any],
        epochs: int,
        told: Mapping[str, Any],
        fitted: Callable[[Trainer], dict[str, Any]],
    ) -> None:
        self.estimator, self.root, self.callbacks, self.epochs = estimator, root, callbacks, epochs
        self.told, self.fitted = told, fitted

    def _begin(self) -> None:
        self.task = self.root.subcontext(task_name="epoch")
        self.task.call_on_fit_task_begin(estimator=self.estimator, **self.told)

    def on_fit_begin(self, trainer: Trainer, epoch: int) -> None:
        """Tell of a first epoch."""
        for callback in self.callbacks:
            callback.on_fit_begin(trainer, epoch)
        self._begin()

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> bool:
        """Tell of an epoch, and of the next; whether one of them wants to stop."""
        wishes = [bool(callback.on_epoch_end(trainer, epoch, logs)) for callback in self.callbacks]
        stop = self.task.call_on_fit_task_end(
            estimator=self.estimator,
            **self.told,
            reconstruction_attributes=lambda: self.fitted(trainer),
        )
        stop = stop or any(wishes)
        if not stop and epoch < self.epochs:
            self._begin()
        return stop

    def on_fit_success(self, trainer: Trainer) -> None:
        """Hand on to those of fastae; scikit-learn's are told by the estimator."""
        for callback in self.callbacks:
            callback.on_fit_success(trainer)

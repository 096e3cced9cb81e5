"""What the estimators share: parameters, training, reconstruction and its errors."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fastae import backend as backends
from fastae import losses, ops, optimizers, persistence
from fastae.callbacks import EarlyStopping
from fastae.checks import integer, real_dtype, within
from fastae.estimators.callbacks import Bridge, CallbackSupportMixin
from fastae.estimators.data import Array, explicit_target, seen, split, weighed
from fastae.estimators.parameters import to_plain
from fastae.layers import ACTIVATION_NAMES, Dense, GaussianNoise, MaskingNoise, real_number
from fastae.network import Network
from fastae.trainer import Trainer

if TYPE_CHECKING:
    from fastae.history import History

#: MLPRegressor's names of activations, beside those of the layers.
_ACTIVATIONS = {"identity": "linear", "logistic": "sigmoid"}

#: MLPRegressor's batch_size="auto": so many rows, or all of them.
_AUTO_BATCH = 200

SEEDS = 2**31 - 1


class Estimator(CallbackSupportMixin, BaseEstimator):
    """What both estimators share: parameters, training, reconstruction and its errors."""

    trainer_: Trainer

    # The parameters are scikit-learn's to read off the signature of each class, so both spell them out.
    def __init__(
        self,
        latent_dim: Any,
        hidden_layer_sizes: Any,
        activation: Any,
        output_activation: Any,
        loss: Any,
        network: Any,
        solver: Any,
        alpha: Any,
        batch_size: Any,
        learning_rate_init: Any,
        max_iter: Any,
        shuffle: Any,
        random_state: Any,
        tol: Any,
        verbose: Any,
        warm_start: Any,
        momentum: Any,
        early_stopping: Any,
        validation_fraction: Any,
        n_iter_no_change: Any,
        noise: Any,
        backend: Any,
        dtype: Any,
        n_threads: Any,
    ) -> None:
        self.latent_dim = latent_dim
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.output_activation = output_activation
        self.loss = loss
        self.network = network
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.noise = noise
        self.backend = backend
        self.dtype = dtype
        self.n_threads = n_threads

    # Parameters -------------------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        """See that every parameter is as stated; what the data must say as well comes later."""
        integer("latent_dim", self.latent_dim, 1)
        self._widths()
        for name in ("activation", "output_activation"):
            given = getattr(self, name)
            if given is None and name == "output_activation":
                continue
            if not isinstance(given, str) or _ACTIVATIONS.get(given, given) not in ACTIVATION_NAMES:
                known = ", ".join([*ACTIVATION_NAMES, *_ACTIVATIONS])
                raise ValueError(f"{name}: expected one of {known}, given {given!r:.50}")
        loss = losses.resolve(self.loss)
        if self.network is not None and not isinstance(self.network, Network):
            raise TypeError(f"network: expected a Network or None, given {type(self.network).__name__}")
        if self.network is None and loss.name == "bce" and self._output_activation(loss) != "sigmoid":
            raise ValueError(
                f"output_activation: expected sigmoid, as the loss bce takes values between 0 and 1, "
                f"given {self.output_activation!r}"
            )
        self._optimizer(0.0)
        real_number("alpha", self.alpha, 0)
        if not (isinstance(self.batch_size, str) and self.batch_size == "auto"):
            if isinstance(self.batch_size, str):
                raise ValueError(f"batch_size: expected an int or 'auto', given {self.batch_size!r:.50}")
            integer("batch_size", self.batch_size, 1)
        integer("max_iter", self.max_iter, 1)
        for name in ("shuffle", "warm_start", "early_stopping"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise TypeError(f"{name}: expected True or False, given {getattr(self, name)!r:.50}")
        if isinstance(self.random_state, int | np.integer):
            integer("random_state", self.random_state, 0, 2**32 - 1)  # seeding one takes a while
        else:
            check_random_state(self.random_state)
        real_number("tol", self.tol, 0)
        if not isinstance(self.verbose, bool | np.bool_):
            integer("verbose", self.verbose, 0, 2)
        real_number("validation_fraction", self.validation_fraction, 0, 1, open_low=True)
        integer("n_iter_no_change", self.n_iter_no_change, 1)
        if self.noise is not None and not isinstance(self.noise, GaussianNoise | MaskingNoise):
            raise TypeError(f"noise: expected GaussianNoise, MaskingNoise or None, given {self.noise!r:.50}")
        if self.backend is not None:
            backends.resolve(self.backend)
        if self.dtype is not None:
            real_dtype(self.dtype)
        if self.n_threads is not None:
            integer("n_threads", self.n_threads, 1, 1024)

    def _widths(self) -> tuple[int, ...]:
        """Widths of the encoder's hidden layers."""
        sizes = self.hidden_layer_sizes
        if isinstance(sizes, str | bytes) or not isinstance(sizes, Sequence | np.ndarray):
            sizes = (sizes,)
        return tuple(integer(f"hidden_layer_sizes[{i}]", size, 1) for i, size in enumerate(sizes))

    def _output_activation(self, loss: losses.Loss) -> str:
        given = self.output_activation
        if given is None:
            return "sigmoid" if loss.name == "bce" else "linear"
        return _ACTIVATIONS.get(given, given)

    def _optimizer(self, weight_decay: float) -> optimizers.Optimizer:
        if isinstance(self.solver, optimizers.Optimizer):
            return self.solver
        rate = real_number("learning_rate_init", self.learning_rate_init, 0, open_low=True)
        momentum = real_number("momentum", self.momentum, 0, 1)
        if self.solver == "adam":
            return optimizers.Adam(rate, weight_decay=weight_decay)
        if self.solver == "sgd":
            return optimizers.SGD(rate, momentum, nesterov=momentum > 0, weight_decay=weight_decay)
        raise ValueError(f"solver: expected adam, sgd or a fastae.Optimizer, given {self.solver!r:.50}")

    def _network(self, features: int, width: int) -> Network:
        """Give the network for so many features and outputs."""
        if self.network is None:
            hidden = self._widths()
            inner = _ACTIVATIONS.get(self.activation, self.activation)
            outer = self._output_activation(losses.resolve(self.loss))
            return Network(
                [*(Dense(n, inner) for n in hidden), Dense(self.latent_dim)],
                [*(Dense(n, inner) for n in reversed(hidden)), Dense(width, outer)],
                features,
            )
        for part, expected, shape, why in (
            ("an input", features, self.network.input_shape, "as X has"),
            ("an output", width, self.network.output_shape, "as the rows to be put out have"),
        ):
            if math.prod(shape) != expected:
                raise ValueError(
                    f"network: expected {part} of {expected} features, {why}, given one of shape {shape}"
                )
        return self.network

    # Data -------------------------------------------------------------------------------------------------

    def _checked_rows(self, X: Any, *, reset: bool) -> Array:
        """Return X as a matrix that the trainer takes, and note its features or compare them."""
        if not reset:
            dtype: Any = self.trainer_.dtype
        else:
            dtype = [np.float64, np.float32] if self.dtype is None else real_dtype(self.dtype)
        rows = validate_data(self, seen("X", X), dtype=dtype, order="C", reset=reset)
        return rows if rows.flags.aligned else rows.copy()

    def _checked_target(self, y: Any, rows: Array, width: int) -> Array | None:
        """Return the rows to be put out; None where y is none, or labels that a Pipeline passes on."""
        y = seen("y", y)
        if y is None or (y if hasattr(y, "ndim") else np.asarray(y)).ndim < 2:
            return None
        target = np.require(
            check_array(y, dtype=rows.dtype, order="C", input_name="y"), requirements=["C", "A"]
        )
        if target.shape != (len(rows), width):
            raise ValueError(
                f"y: expected None, labels of shape ({len(rows)},), which are ignored, or the clean rows, of "
                f"shape {(len(rows), width)}; given shape {target.shape}"
            )
        return target

    def _checked_weights(self, sample_weight: Any, rows: Array) -> Array | None:
        if sample_weight is None:
            return None
        weights = _check_sample_weight(seen("sample_weight", sample_weight), rows, dtype=np.float64)
        if weights.min() < 0 or not weights.any():
            raise ValueError(
                "sample_weight: expected weights >= 0, one or more of them > 0; the least given is "
                f"{weights.min():g}"
            )
        return weights

    # Training ---------------------------------------------------------------------------------------------

    def _new_trainer(self, rows: Array, target: Array | None, weights: Array | None, seed: int) -> Trainer:
        features = rows.shape[1]
        network = self._network(features, features if target is None else target.shape[1])
        loss = losses.resolve(self.loss)
        auto = isinstance(self.batch_size, str)
        batch = min(_AUTO_BATCH, len(rows)) if auto else self.batch_size
        # alpha / 2 |w|^2 is added to the sum of a batch's losses; a mean loss is that sum divided.
        share = 1.0 if weights is None else float(weights.mean())
        if loss.reduction == "mean":
            share *= min(batch, len(rows)) * math.prod(network.output_shape)
        return Trainer(
            network,
            loss,
            self._optimizer(self.alpha / share),
            batch,
            self.backend,
            rows.dtype,
            self.n_threads,
            seed,
            self.noise,
        )

    def _goes_on(self, trainer: Trainer) -> Trainer:
        """Give a trainer like a new one that goes on from the weights of the last fit."""
        last = self.trainer_
        if trainer.net != last.net:
            raise ValueError(
                "warm_start: expected the network of the last fit, given parameters or data that ask for "
                "another; fit with warm_start=False"
            )
        same = ("loss", "optimizer", "batch_size", "dtype", "noise", "backend", "n_threads")
        if all(getattr(trainer, name) == getattr(last, name) for name in same):
            return last
        trainer.set_weights(last.weights)
        return trainer

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> Self:
        self._check_parameters()
        going_on = bool(self.warm_start) and hasattr(self, "trainer_")
        rows = self._checked_rows(X, reset=not going_on)
        target = self._checked_target(y, rows, self._output_width(rows.shape[1]))
        weights = self._checked_weights(sample_weight, rows)
        random = check_random_state(self.random_state)
        seed = int(random.randint(SEEDS))
        data = rows, target, weights
        training, validation = data, None
        if self.early_stopping:
            training, validation = split(data, self.validation_fraction, random)
        trainer = self._new_trainer(*training, seed)
        self._check_range(trainer, rows, target)
        if going_on:
            trainer = self._goes_on(trainer)

        callbacks: list[Any] = []
        if self.early_stopping:
            callbacks.append(EarlyStopping("val_loss", self.n_iter_no_change, float(self.tol)))
        elif self.n_iter_no_change < self.max_iter:  # it can stop at all: who looks on costs a little
            callbacks.append(EarlyStopping("loss", self.n_iter_no_change, float(self.tol), False))
        curve = list(self.loss_curve_) if going_on else []
        scores = list(self.validation_scores_ or ()) if going_on else []
        root, told = self._callback_context(), {}
        if root is not None:
            told = {
                "X": rows,
                "y": rows if target is None else target,
                "metadata": None if weights is None else {"sample_weight": weights},
            }
            root.call_on_fit_task_begin(estimator=self, **told)
        if getattr(self, "_skl_callbacks", None):

            def fitted(now: Trainer) -> dict[str, Any]:
                copy = persistence.new_trainer(now._state())
                return self._attributes(copy, rows, weights, curve, scores, now.history)

            callbacks = [Bridge(self, root, callbacks, self.max_iter, told, fitted)]
        held: Any = None if validation is None else explicit_target(trainer, weighed(validation))
        history = trainer.fit(
            training[0],
            explicit_target(trainer, training)[1],
            epochs=self.max_iter,
            validation_data=held,
            callbacks=callbacks,
            sample_weight=weighed(training)[2],
            sampling="shuffle" if self.shuffle else "sequential",
            verbose=int(self.verbose),
        )
        trainer._forget_position()  # the rows are not kept, so there is no going on with this very fit
        attributes = self._attributes(trainer, rows, weights, curve, scores, history)
        for name, value in attributes.items():
            setattr(self, name, value)
        if root is not None:
            root.call_on_fit_task_end(estimator=self, **told, reconstruction_attributes=attributes)
        return self

    def _output_width(self, features: int) -> int:
        return features if self.network is None else math.prod(self.network.output_shape)

    def _check_range(self, trainer: Trainer, rows: Array, target: Array | None) -> None:
        """See that the loss takes the targets; the trainer does so too, but calls them otherwise."""
        allowed = trainer.loss.target_range
        if target is not None and allowed is not None:
            within("y", target, *allowed, f", as the loss {trainer.loss.name} takes them for a target")

    def _callback_context(self) -> Any:
        """Root of the tree of tasks that scikit-learn's callbacks see; None where there are no callbacks."""
        if not hasattr(self, "_init_callback_context"):
            return None
        looked_at = bool(getattr(self, "_skl_callbacks", None))
        return self._init_callback_context(max_subtasks=self.max_iter if looked_at else 0)

    def _attributes(
        self,
        trainer: Trainer,
        rows: Array,
        weights: Array | None,
        curve: list[float],
        scores: list[float],
        history: History,
    ) -> dict[str, Any]:
        """What a fit leaves behind, by name."""
        validation_scores = [*scores, *(-loss for loss in history.val_loss)]
        return {"trainer_": trainer, **record([*curve, *history.loss], validation_scores)}

    # Results ----------------------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "trainer_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if tags.transformer_tags is not None:
            own = ["float64", "float32"] if self.dtype is None else [real_dtype(self.dtype).name]
            tags.transformer_tags.preserves_dtype = own
        return tags

    def _rows(self, X: Any) -> Array:
        check_is_fitted(self)
        return self._checked_rows(X, reset=False)

    def _output(self, trainer: Trainer, output: Array) -> Array:
        """Return outputs of the network as rows on the scale of the data."""
        rows = output.reshape(len(output), -1)
        if trainer.loss.name == "bce_with_logits":
            return ops.activation_forward(rows, activation="sigmoid", backend=trainer.backend)
        return rows

    def _scores(self, trainer: Trainer, rows: Array, target: Array | None = None) -> npt.NDArray[np.float64]:
        """Return minus the mean squared error of each row's reconstruction."""
        again = self._output(trainer, trainer.reconstruct(rows))
        if target is None and again.shape != rows.shape:
            raise ValueError(
                f"X: expected a network that puts out rows like those of X, to compare them, given one with "
                f"{again.shape[1]} outputs for {rows.shape[1]} features"
            )
        error = ops.row_mse(again, rows if target is None else target, backend=trainer.backend)
        return -error.astype(np.float64)

    def reconstruct(self, X: Any) -> Array:
        """Encode and decode the rows of X.

        Parameters
        ----------
        X : array-like, (n_samples, n_features)

        Returns
        -------
        ndarray of the trained dtype, (n_samples, n_outputs)
            On the scale of the data; with the loss "bce_with_logits", that is the sigmoid of the logits.
        """
        rows = self._rows(X)
        return self._output(self.trainer_, self.trainer_.reconstruct(rows))

    def score_samples(self, X: Any) -> npt.NDArray[np.float64]:
        """Minus the mean squared error of each row's reconstruction, whatever the loss was: high is normal.

        Parameters
        ----------
        X : array-like, (n_samples, n_features)

        Returns
        -------
        ndarray of float64, (n_samples,)
        """
        rows = self._rows(X)
        return self._scores(self.trainer_, rows)

    # Files ------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a file that `fastae.load` reads.

        It holds the parameters, all that was fitted, and the trainer's state, so that `partial_fit` and
        warm starts go on from it. No pickle is involved. A ``random_state`` that is a generator and not a
        number is stored as None; feature names are stored as text.

        Parameters
        ----------
        path : str or path
            The file, in the safetensors format, replaced as a whole; see `Trainer.save`.

        Raises
        ------
        NotFittedError, ValueError
            When it is not fitted, or a parameter that was set since is not as stated.
        ImportError
            Without safetensors (``pip install "fastae[files]"``).
        OSError
            When the file cannot be written.
        """
        check_is_fitted(self)
        self._check_parameters()
        names = getattr(self, "feature_names_in_", None)
        values, arrays = self._fitted()
        saved = persistence.SavedEstimator(
            type(self).__name__,
            {name: to_plain(name, value) for name, value in self.get_params(deep=False).items()},
            {"feature_names_in": None if names is None else [str(name) for name in names], **values},
            {"loss_curve": np.array(self.loss_curve_, np.float64), **arrays},
        )
        trainer = self.trainer_
        with trainer._exclusive():
            persistence.write(path, replace(trainer._state(), estimator=saved))

    def _fitted(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Plain values and arrays of its own that a file holds."""
        return {}, {"validation_scores": np.array(self.validation_scores_ or (), np.float64)}

    def _restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Take what `_fitted` gave; a ValueError for anything else."""


def record(curve: list[float], scores: list[float]) -> dict[str, Any]:
    """What the losses of a fit's epochs, and its validation scores, say of it: attributes by name."""
    return {
        "n_iter_": len(curve),
        "loss_": curve[-1],
        "loss_curve_": curve,
        "best_loss_": None if scores else min(curve),
        "validation_scores_": scores or None,
        "best_validation_score_": max(scores) if scores else None,
    }

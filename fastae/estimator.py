"""Autoencoders in the manner of scikit-learn (``pip install "fastae[sklearn]"``).

::

    rows of any array-like ── scikit-learn's checks ──> Trainer ──> codes, reconstructions
                                                          │
                     parameters named as MLPRegressor's ──┘  what each row loses ──> scores

An estimator declares a network and an optimiser from its parameters and has a `fastae.Trainer` do the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f'estimators need scikit-learn >= 1.6 ({error}): pip install "fastae[sklearn]"'
    ) from error

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before scikit-learn 1.9 there are none to honour

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for what this version of scikit-learn does not have."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is."""
        return method


from fastae import arrays, layers, losses, ops, optimizers, persistence
from fastae import backend as backends
from fastae.callbacks import EarlyStopping
from fastae.checks import integer, real_dtype, within
from fastae.layers import ACTIVATION_NAMES, Dense, GaussianNoise, MaskingNoise, real_number
from fastae.network import Network
from fastae.trainer import Trainer

if TYPE_CHECKING:
    from fastae.history import History

__all__ = ["Autoencoder", "AutoencoderOutlierDetector", "from_saved"]

Array = npt.NDArray[Any]

#: MLPRegressor's names of activations, beside those of the layers.
_ACTIVATIONS = {"identity": "linear", "logistic": "sigmoid"}

#: MLPRegressor's batch_size="auto": so many rows, or all of them.
_AUTO_BATCH = 200

_SEEDS = 2**31 - 1

#: What earlier calls of partial_fit weigh against the last one in the Gaussian of the codes, at most.
_MEMORY = 9

#: Multiplications of a product that is not worth a thread.
_SMALL_PRODUCT = 1 << 20


class _Estimator(CallbackSupportMixin, BaseEstimator):
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
        rows = validate_data(self, _seen("X", X), dtype=dtype, order="C", reset=reset)
        return rows if rows.flags.aligned else rows.copy()

    def _checked_target(self, y: Any, rows: Array, width: int) -> Array | None:
        """Return the rows to be put out; None where y is none, or labels that a Pipeline passes on."""
        y = _seen("y", y)
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
        weights = _check_sample_weight(_seen("sample_weight", sample_weight), rows, dtype=np.float64)
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
        seed = int(random.randint(_SEEDS))
        data = rows, target, weights
        training, validation = data, None
        if self.early_stopping:
            training, validation = _split(data, self.validation_fraction, random)
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

            callbacks = [_Bridge(self, root, callbacks, self.max_iter, told, fitted)]
        held: Any = None if validation is None else _explicit_target(trainer, _weighed(validation))
        history = trainer.fit(
            training[0],
            _explicit_target(trainer, training)[1],
            epochs=self.max_iter,
            validation_data=held,
            callbacks=callbacks,
            sample_weight=_weighed(training)[2],
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
        return {"trainer_": trainer, **_record([*curve, *history.loss], validation_scores)}

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
            {name: _to_plain(name, value) for name, value in self.get_params(deep=False).items()},
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


class Autoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Estimator):
    """An autoencoder as a scikit-learn transformer: `transform` gives codes, `inverse_transform` rows.

    Parameters
    ----------
    latent_dim : int
        Width of the code, >= 1. The code layer is linear.
    hidden_layer_sizes : int or sequence of int
        Widths of the layers before the code; the decoder has them in reverse. Empty: none.
    activation : str
        Of the hidden layers: "relu", "tanh", "sigmoid" ("logistic"), "linear" ("identity"), "leaky_relu",
        "elu" or "softplus".
    output_activation : str or None
        Of the output. None: "sigmoid" with the loss "bce", "linear" with any other.
    loss : str or Loss
        "mse", "sse", "mae", "huber", "bce" or "bce_with_logits"; the last two take data in [0, 1].
    network : Network or None
        What to train in place of layers made from the parameters above, which are ignored then. Rows of X are
        its inputs flattened, prod(input_shape) features.
    solver : "adam", "sgd" or Optimizer
        One of `fastae.optimizers` brings its own learning rate, momentum and weight decay. "sgd" has
        Nesterov's momentum, as MLPRegressor's.
    alpha : float
        L2 penalty, >= 0: ``alpha / 2 |w|^2`` is added to the loss summed over the elements of a batch.
        |w| is that of all parameters.
    batch_size : int or "auto"
        Rows of a batch; "auto": 200, or all rows where there are fewer.
    learning_rate_init : float
        > 0; it stays.
    max_iter : int
        Epochs, at most. Reaching them is no reason for a warning.
    shuffle : bool
        Whether `fit` takes the rows of an epoch in random order.
    random_state : int, RandomState or None
        Of weights, order, noise and held-out rows. The same int gives the same result on the same backend.
    tol : float
        A loss is better when it is smaller than the best one by more than this, >= 0.
    verbose : bool or int
        1: a progress bar; 2: a line for each epoch.
    warm_start : bool
        Whether `fit` goes on from the weights of the last one. Its curves go on too.
    momentum : float
        Of "sgd", in [0, 1).
    early_stopping : bool
        Whether to hold back rows, and to end with the weights that were best on them.
    validation_fraction : float
        Share of the rows held back then, drawn at random, in (0, 1).
    n_iter_no_change : int
        Epochs in a row without a better loss (of the held-out rows with `early_stopping`, else of the
        training) that end the fit. Where it is not less than `max_iter`, nothing ends it early.
    noise : GaussianNoise, MaskingNoise or None
        Put on the rows in training while the loss compares the output with the rows as they are: so a
        denoiser is trained.
    backend : str, Backend or None
        "scalar", "numpy", "numba", "cython"; None: the one in effect, see `fastae.set_backend`.
    dtype : "float32", "float64" or None
        Of weights and results. None: as the data `fit` is given; all but float32 is float64.
    n_threads : int or None
        Threads of "numba" and "cython"; None: as many as the work is worth, see `Trainer`.

    Attributes
    ----------
    trainer_ : Trainer
        What was trained, with the network, the weights and the history of the last fit.
    n_features_in_ : int
        Features of X.
    feature_names_in_ : ndarray of str, (n_features_in_,)
        Their names, where X has names that are all texts.
    n_iter_ : int
        Epochs done.
    loss_ : float
        Loss of the last epoch.
    loss_curve_ : list of float
        Loss of each epoch, on the scale of `fastae.History`.
    best_loss_ : float or None
        Least of them; None with `early_stopping`.
    validation_scores_ : list of float or None
        With `early_stopping`, minus the loss of the held-out rows after each epoch.
    best_validation_score_ : float or None
        Greatest of them.
    code_mean_, code_covariance_ : ndarray of float64, (n_codes,) and (n_codes, n_codes)
        Of the codes of the training data, which `sample` draws from.

    Raises
    ------
    TypeError, ValueError
        By `fit` and `partial_fit`, before anything is computed, when a parameter or the data are not as
        stated.

    Notes
    -----
    A `y` of two dimensions is what the output is to be: with noisy rows as X and the clean ones as y a
    denoiser is trained. Labels, a y of one dimension, are ignored, since a Pipeline passes them on.

    A sample weight of 2 counts as the row given twice; where one batch holds all rows, and but for rounding,
    with the very same result. A common factor of all weights matters to `alpha` alone.

    The callbacks of scikit-learn >= 1.9 (``set_callbacks``) see a task for each epoch.

    When `fit` ends in an error or is interrupted, what was fitted before stays, but for a warm start, which
    trains the very `trainer_`.

    Examples
    --------
    >>> X = fastae.datasets.rows(fastae.datasets.digits()[0])
    >>> ae = fastae.Autoencoder(latent_dim=16, max_iter=50, random_state=0).fit(X)
    >>> ae.transform(X).shape
    (1797, 16)
    """

    def __init__(
        self,
        latent_dim: int = 2,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        output_activation: str | None = None,
        loss: str | losses.Loss = "mse",
        network: Network | None = None,
        solver: str | optimizers.Optimizer = "adam",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate_init: float = 1e-3,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        noise: GaussianNoise | MaskingNoise | None = None,
        backend: str | backends.Backend | None = None,
        dtype: npt.DTypeLike | None = None,
        n_threads: int | None = None,
    ) -> None:
        super().__init__(
            latent_dim=latent_dim,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            output_activation=output_activation,
            loss=loss,
            network=network,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            noise=noise,
            backend=backend,
            dtype=dtype,
            n_threads=n_threads,
        )

    @with_callbacks
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train on the rows of X.

        Parameters
        ----------
        X : array-like, (n_samples, n_features)
            Finite numbers; a copy is made where they are not C-contiguous, or of another dtype.
        y : array-like, (n_samples, n_outputs), optional
            The clean rows. Labels, (n_samples,), are ignored.
        sample_weight : array-like, (n_samples,), optional
            >= 0, one or more > 0.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            When a parameter or an array is not as stated.
        DivergenceError
            When a loss or a weight is not finite.
        """
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train on the rows of X once, in batches as they lie, from what there is.

        The first call declares the network, its dtype and, with "auto", the batch size. In the Gaussian that
        `sample` draws from, earlier calls fade: their codes are those of earlier weights.

        Parameters
        ----------
        X, y, sample_weight
            As of `fit`. Weights are divided by their mean in each call.

        Returns
        -------
        self
        """
        self._check_parameters()
        first = not hasattr(self, "trainer_")
        rows = self._checked_rows(X, reset=first)
        width = self._output_width(rows.shape[1]) if first else math.prod(self.trainer_.net.output_shape)
        target = self._checked_target(y, rows, width)
        weights = self._checked_weights(sample_weight, rows)
        data = rows, target, weights
        if first:
            seed = int(check_random_state(self.random_state).randint(_SEEDS))
            trainer = self._new_trainer(*data, seed)
        else:
            trainer = self.trainer_
        self._check_range(trainer, rows, target)
        loss = trainer.partial_fit(*_explicit_target(trainer, _weighed(data)))
        before = None if first else (self._codes_weight, self.code_mean_, self.code_covariance_)
        curve, scores = ([], []) if first else (self.loss_curve_, self.validation_scores_ or [])
        self.trainer_ = trainer
        for name, value in {
            **_record([*curve, loss], scores),
            **_code_statistics(trainer, rows, weights, before),
        }.items():
            setattr(self, name, value)
        return self

    def _attributes(self, trainer: Trainer, rows: Array, weights: Array | None, *rest: Any) -> dict[str, Any]:
        found = super()._attributes(trainer, rows, weights, *rest)
        return found | _code_statistics(trainer, rows, weights, None)

    @property
    def _n_features_out(self) -> int:
        return math.prod(self.trainer_.net.code_shape)

    def transform(self, X: Any) -> Array:
        """Give the codes of the rows of X.

        Parameters
        ----------
        X : array-like, (n_samples, n_features)

        Returns
        -------
        ndarray of the trained dtype, (n_samples, n_codes)
            Or what `set_output` asks for. Codes of several dimensions are flattened.
        """
        rows = self._rows(X)
        return self.trainer_.encode(rows).reshape(len(rows), -1)

    def inverse_transform(self, X: Any) -> Array:
        """Give the rows that the codes X stand for.

        Parameters
        ----------
        X : array-like, (n_samples, n_codes)

        Returns
        -------
        ndarray of the trained dtype, (n_samples, n_outputs)
            On the scale of the data, as `reconstruct` gives them.
        """
        check_is_fitted(self)
        codes = check_array(_seen("X", X), dtype=self.trainer_.dtype, order="C")
        codes = np.require(codes, requirements=["C", "A"])
        if codes.shape[1] != self._n_features_out:
            raise ValueError(f"X: expected {self._n_features_out} codes a row, given {codes.shape[1]}")
        return self._output(self.trainer_, self.trainer_.decode(codes))

    def sample(self, n: int = 1, random_state: Any = None) -> Array:
        """Generate rows: decode codes drawn from the Gaussian that the training codes had.

        Nothing in the training of an autoencoder makes its codes follow N(0, 1): their mean, scale and
        correlations are whatever was useful. Decoding N(0, 1) noise asks for codes the decoder has never
        seen, and gives rows that look like no data. So the mean and the covariance of the training codes are
        kept. Where the codes form several clusters, a mixture fitted to `transform` describes them better;
        decode its draws with `inverse_transform`.

        Parameters
        ----------
        n : int
            Rows, >= 1.
        random_state : int, RandomState or None
            The same int gives the same rows.

        Returns
        -------
        ndarray of the trained dtype, (n, n_outputs)
        """
        check_is_fitted(self)
        count = integer("n", n, 1)
        noise = check_random_state(random_state).standard_normal((count, len(self.code_mean_)))
        # The covariance may be singular, a unit being dead: no Cholesky factor then.
        values, vectors = np.linalg.eigh(self.code_covariance_)
        codes = self.code_mean_ + (noise * np.sqrt(np.maximum(values, 0))) @ vectors.T
        return self._output(self.trainer_, self.trainer_.decode(codes.astype(self.trainer_.dtype)))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the mean squared error of the reconstruction, the mean of `score_samples`.

        Parameters
        ----------
        X : array-like, (n_samples, n_features)
        y : array-like, (n_samples, n_outputs), optional
            What to compare the output with; X when there is none, or labels.
        sample_weight : array-like, (n_samples,), optional
            Weights of the mean.

        Returns
        -------
        float
        """
        rows = self._rows(X)
        target = self._checked_target(y, rows, math.prod(self.trainer_.net.output_shape))
        weights = self._checked_weights(sample_weight, rows)
        return float(np.average(self._scores(self.trainer_, rows, target), weights=weights))

    def _fitted(self) -> tuple[dict[str, Any], dict[str, Array]]:
        values, arrays = super()._fitted()
        arrays |= {"code_mean": self.code_mean_, "code_covariance": self.code_covariance_}
        return values | {"codes_weight": self._codes_weight}, arrays

    def _restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        width = self._n_features_out
        mean, covariance = (arrays[name] for name in ("code_mean", "code_covariance"))
        if mean.shape != (width,) or covariance.shape != (width, width):
            raise ValueError("code_mean, code_covariance: expected the shapes that the network's code has")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("code_mean, code_covariance: expected finite values")
        self.code_mean_, self.code_covariance_ = mean, covariance
        self._codes_weight = real_number("codes_weight", values["codes_weight"], 0, open_low=True)


class AutoencoderOutlierDetector(OutlierMixin, _Estimator):
    """Finds rows that an autoencoder trained on the data cannot reconstruct.

    Parameters
    ----------
    contamination : float
        Share of outliers in the training data, in (0, 0.5]: so many of them lie beyond `offset_`.
    latent_dim, hidden_layer_sizes, activation, output_activation, loss, network, solver, alpha, batch_size, \
learning_rate_init, max_iter, shuffle, random_state, tol, verbose, warm_start, momentum, early_stopping, \
validation_fraction, n_iter_no_change, noise, backend, dtype, n_threads
        As of `Autoencoder`. A narrow code finds more: what fits through it must be shared by many rows.

    Attributes
    ----------
    offset_ : float
        Score below which a row is an outlier.
    trainer_, n_features_in_, feature_names_in_, n_iter_, loss_, loss_curve_, best_loss_, \
validation_scores_, best_validation_score_
        As of `Autoencoder`.

    Raises
    ------
    TypeError, ValueError
        By `fit`, before anything is computed, when a parameter or the data are not as stated.

    Notes
    -----
    The score is minus the mean squared error of a row, whatever the loss. Features on a large scale count
    most, so scale them, for instance by a StandardScaler before it in a Pipeline.

    Examples
    --------
    >>> detector = fastae.AutoencoderOutlierDetector(0.03, latent_dim=8, random_state=0).fit(X)
    >>> X[detector.predict(X) == -1]
    """

    offset_: float

    def __init__(
        self,
        contamination: float = 0.1,
        latent_dim: int = 2,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        output_activation: str | None = None,
        loss: str | losses.Loss = "mse",
        network: Network | None = None,
        solver: str | optimizers.Optimizer = "adam",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate_init: float = 1e-3,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        noise: GaussianNoise | MaskingNoise | None = None,
        backend: str | backends.Backend | None = None,
        dtype: npt.DTypeLike | None = None,
        n_threads: int | None = None,
    ) -> None:
        super().__init__(
            latent_dim=latent_dim,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            output_activation=output_activation,
            loss=loss,
            network=network,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            noise=noise,
            backend=backend,
            dtype=dtype,
            n_threads=n_threads,
        )
        self.contamination = contamination

    def _check_parameters(self) -> None:
        share = self.contamination
        real_number("contamination", share, 0, 0.5, open_low=True, open_high=False)
        super()._check_parameters()

    @with_callbacks
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train on the rows of X, outliers among them, and find the score that parts them.

        Parameters
        ----------
        X : array-like, (n_samples, n_features)
            Finite numbers.
        y : object
            Ignored.
        sample_weight : array-like, (n_samples,), optional
            >= 0, one or more > 0. A weight of 2 counts as the row given twice, for `offset_` too.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            When a parameter or an array is not as stated.
        DivergenceError
            When a loss or a weight is not finite.
        """
        return self._fit(X, None, sample_weight)

    def _output_width(self, features: int) -> int:
        return features

    def _attributes(self, trainer: Trainer, rows: Array, weights: Array | None, *rest: Any) -> dict[str, Any]:
        found = super()._attributes(trainer, rows, weights, *rest)
        scores, epsilon = self._scores(trainer, rows), float(np.finfo(trainer.dtype).eps)
        return found | {"offset_": _offset(scores, weights, self.contamination, epsilon)}

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """`score_samples` less `offset_`: below 0 is an outlier; (n_samples,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """-1 for outliers, 1 for the others; (n_samples,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _fitted(self) -> tuple[dict[str, Any], dict[str, Array]]:
        values, arrays = super()._fitted()
        return values | {"offset": self.offset_}, arrays

    def _restore(self, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self.offset_ = real_number("offset", values["offset"], -math.inf, math.inf)


class _Bridge:
    """Tells the callbacks of scikit-learn of each epoch, and hands on to those of fastae."""

    def __init__(
        self,
        estimator: _Estimator,
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
        for callback in self.callbacks:
            callback.on_fit_begin(trainer, epoch)
        self._begin()

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> bool:
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
        for callback in self.callbacks:
            callback.on_fit_success(trainer)


_Data = tuple[Array, Array | None, Array | None]


def _split(data: _Data, fraction: float, random: np.random.RandomState) -> tuple[_Data, _Data]:
    """Part rows, targets and weights at random into those to train on and those to hold back."""
    n = len(data[0])
    kept = n - round(n * fraction)
    if not 0 < kept < n:
        raise ValueError(
            f"validation_fraction: expected a share that leaves one or more of {n} rows on both sides, "
            f"given {fraction}"
        )
    order = random.permutation(n)

    def part(chosen: Array) -> _Data:
        found = [None if array is None else array[chosen] for array in data]
        if found[2] is not None and not found[2].any():
            raise ValueError("sample_weight: expected weights > 0 in both parts of the rows, given others")
        assert found[0] is not None
        return found[0], found[1], found[2]

    return part(order[:kept]), part(order[kept:])


def _weighed(data: _Data) -> _Data:
    """Return the same with weights of mean 1: the losses of fastae divide by the number of rows."""
    rows, target, weights = data
    return rows, target, None if weights is None else weights * (len(weights) / weights.sum())


def _explicit_target(trainer: Trainer, data: _Data) -> _Data:
    """Name the rows as target where the output has another shape than the input and as many elements."""
    rows, target, weights = data
    if target is None and trainer.net.input_shape != trainer.net.output_shape:
        target = rows
    return rows, target, weights


def _record(curve: list[float], scores: list[float]) -> dict[str, Any]:
    return {
        "n_iter_": len(curve),
        "loss_": curve[-1],
        "loss_curve_": curve,
        "best_loss_": None if scores else min(curve),
        "validation_scores_": scores or None,
        "best_validation_score_": max(scores) if scores else None,
    }


def _code_statistics(
    trainer: Trainer, rows: Array, weights: Array | None, before: tuple[float, Array, Array] | None
) -> dict[str, Any]:
    """Mean and covariance of the codes of rows, and of earlier ones, which count for less and less."""
    # A row for each code: the sums below run along what lies together.
    codes = np.ascontiguousarray(trainer.encode(rows).reshape(len(rows), -1).T, np.float64)
    total = float(len(rows) if weights is None else weights.sum())
    mean = (codes.sum(axis=1) if weights is None else codes @ weights) / total
    codes -= mean[:, None]
    weighed = codes if weights is None else codes * weights
    if codes.size * len(codes) < _SMALL_PRODUCT:  # waking BLAS's threads takes longer
        covariance = np.einsum("in,jn->ij", codes, weighed) / total
    else:
        covariance = codes @ weighed.T / total
    if before is not None:
        earlier = min(before[0], _MEMORY * total)
        share = total / (total + earlier)
        shift = mean - before[1]
        covariance = share * covariance + (1 - share) * before[2]
        covariance += share * (1 - share) * np.outer(shift, shift)
        mean = before[1] + share * shift
        total += earlier
    return {"code_mean_": mean, "code_covariance_": covariance, "_codes_weight": total}


def _offset(scores: npt.NDArray[np.float64], weights: Array | None, share: float, epsilon: float) -> float:
    """Score with at most a share of the weight below it, halfway between the rows it parts.

    Scores that rounding alone tells apart, of copies of a row in different batches, are not parted.
    """
    counted = np.ones(len(scores)) if weights is None else weights
    scores, counted = scores[counted > 0], counted[counted > 0]
    order = np.argsort(scores, kind="stable")
    scores, counted = scores[order], np.cumsum(counted[order])
    # Without the rounding 0.29 of 100 rows would be 28.
    first = scores[np.searchsorted(counted, round(share * counted[-1], 9), side="right")]
    apart = first - 1000 * epsilon * abs(first)
    below = int(np.searchsorted(scores, apart))
    return float((scores[below - 1] + first) / 2 if below else apart)


# Files ----------------------------------------------------------------------------------------------------

#: The closed registry of what a file may hold.
ESTIMATORS: dict[str, type[Autoencoder] | type[AutoencoderOutlierDetector]] = {
    cls.__name__: cls for cls in (Autoencoder, AutoencoderOutlierDetector)
}


def _seen(name: str, value: Any) -> Any:
    """Return another library's array as an ndarray on its memory, and the rest to scikit-learn's checks."""
    if value is None or isinstance(value, np.ndarray):
        return value
    array = arrays.view(value, name)
    return value if array is None else array


def _to_plain(name: str, value: Any) -> Any:
    """Return a parameter, which was checked, as a value that JSON can hold."""
    if name == "random_state":
        return int(value) if isinstance(value, int | np.integer) else None
    if name == "hidden_layer_sizes":
        return [int(n) for n in value] if isinstance(value, Sequence | np.ndarray) else int(value)
    if name == "dtype":
        return None if value is None else real_dtype(value).name
    if isinstance(value, Network):
        return value.to_dict()
    if isinstance(value, layers.Layer):
        return layers.to_dict(value)
    if isinstance(value, optimizers.Optimizer):
        return optimizers.to_dict(value)
    if isinstance(value, losses.Loss):
        return losses.to_dict(value)
    if isinstance(value, backends.Backend):
        return value.name
    return value.item() if isinstance(value, np.generic) else value


def _from_plain(name: str, value: Any) -> Any:
    """Return the parameter that `_to_plain` gave."""
    makers: dict[str, Callable[[Any], Any]] = {
        "network": persistence.network_from_dict,
        "noise": layers.from_dict,
        "solver": optimizers.from_dict,
        "loss": losses.from_dict,
    }
    if isinstance(value, dict):
        return makers[name](value)
    return tuple(value) if isinstance(value, list) else value


def from_saved(
    trainer: Trainer, saved: persistence.SavedEstimator, **overrides: Any
) -> Autoencoder | AutoencoderOutlierDetector:
    """Make the estimator of a file; `fastae.load` calls it.

    Parameters
    ----------
    trainer : Trainer
        What the file holds beside.
    saved : SavedEstimator
        Its words and arrays, with the types that JSON has, otherwise unchecked.
    **overrides
        Parameters to use in place of the saved ones.

    Raises
    ------
    KeyError, TypeError, ValueError
        When they are not what `save` wrote.
    """
    cls = ESTIMATORS[saved.kind]
    if saved.parameters.keys() != set(cls._get_param_names()):
        raise ValueError(f"parameters: expected those of {saved.kind}")
    parameters = {name: _from_plain(name, value) for name, value in saved.parameters.items()}
    estimator = cls(**parameters | overrides)
    estimator._check_parameters()
    features = math.prod(trainer.net.input_shape)
    names = saved.fitted["feature_names_in"]
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("feature_names_in: expected texts")
        if len(names) != features:
            raise ValueError(f"feature_names_in: expected {features}, as the network has inputs")
        estimator.feature_names_in_ = np.array(names, object)
    estimator.n_features_in_ = features
    estimator.trainer_ = trainer
    curve, scores = (saved.arrays[name] for name in ("loss_curve", "validation_scores"))
    if curve.ndim != 1 or not len(curve) or scores.ndim != 1:
        raise ValueError("loss_curve, validation_scores: expected a number for each epoch")
    for name, value in _record(curve.tolist(), scores.tolist()).items():
        setattr(estimator, name, value)
    estimator._restore(saved.fitted, saved.arrays)
    values, arrays = estimator._fitted()
    if saved.fitted.keys() != {"feature_names_in", *values} or saved.arrays.keys() != {"loss_curve", *arrays}:
        raise ValueError(f"expected what {saved.kind} has and nothing else")
    return estimator

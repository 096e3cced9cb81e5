"""An autoencoder that finds outliers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import OutlierMixin

from fastae import backend as backends
from fastae import losses, optimizers
from fastae.estimators.base import Estimator
from fastae.estimators.callbacks import with_callbacks
from fastae.estimators.data import Array
from fastae.layers import GaussianNoise, MaskingNoise, real_number
from fastae.network import Network
from fastae.trainer import Trainer


class AutoencoderOutlierDetector(OutlierMixin, Estimator):
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
        return found | {"offset_": offset(scores, weights, self.contamination, epsilon)}

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


def offset(scores: npt.NDArray[np.float64], weights: Array | None, share: float, epsilon: float) -> float:
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

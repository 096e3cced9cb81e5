"""An autoencoder as a transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted

from fastae import backend as backends
from fastae import losses, optimizers
from fastae.checks import integer
from fastae.estimators.base import SEEDS, Estimator, record
from fastae.estimators.callbacks import with_callbacks
from fastae.estimators.data import Array, explicit_target, seen, weighed
from fastae.layers import GaussianNoise, MaskingNoise, real_number
from fastae.network import Network
from fastae.trainer import Trainer

#: What earlier calls of partial_fit weigh against the last one in the Gaussian of the codes, at most.
_MEMORY = 9

#: Multiplications of a product that is not worth a thread.
_SMALL_PRODUCT = 1 << 20


class Autoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
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
            seed = int(check_random_state(self.random_state).randint(SEEDS))
            trainer = self._new_trainer(*data, seed)
        else:
            trainer = self.trainer_
        self._check_range(trainer, rows, target)
        loss = trainer.partial_fit(*explicit_target(trainer, weighed(data)))
        before = None if first else (self._codes_weight, self.code_mean_, self.code_covariance_)
        curve, scores = ([], []) if first else (self.loss_curve_, self.validation_scores_ or [])
        self.trainer_ = trainer
        for name, value in {
            **record([*curve, loss], scores),
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
        codes = check_array(seen("X", X), dtype=self.trainer_.dtype, order="C")
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

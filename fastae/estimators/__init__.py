"""Autoencoders in the manner of scikit-learn (``pip install "fastae[sklearn]"``).

::

    rows of any array-like ── scikit-learn's checks ──> Trainer ──> codes, reconstructions
                                                          │
                     parameters named as MLPRegressor's ──┘  what each row loses ──> scores

An estimator declares a network and an optimiser from its parameters and has a `fastae.Trainer` do the rest.
"""

try:
    from sklearn.base import BaseEstimator as BaseEstimator
    from sklearn.utils.validation import validate_data as validate_data  # from 1.6 on
except ImportError as error:
    raise ImportError(
        f'estimators need scikit-learn >= 1.6 ({error}): pip install "fastae[sklearn]"'
    ) from error

from fastae.estimators.autoencoder import Autoencoder
from fastae.estimators.files import from_saved
from fastae.estimators.outliers import AutoencoderOutlierDetector

__all__ = ["Autoencoder", "AutoencoderOutlierDetector", "from_saved"]

"""Estimators out of files."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastae import persistence
from fastae.estimators.autoencoder import Autoencoder
from fastae.estimators.base import record
from fastae.estimators.outliers import AutoencoderOutlierDetector
from fastae.estimators.parameters import from_plain
from fastae.trainer import Trainer

#: The closed registry of what a file may hold.
ESTIMATORS: dict[str, type[Autoencoder] | type[AutoencoderOutlierDetector]] = {
    cls.__name__: cls for cls in (Autoencoder, AutoencoderOutlierDetector)
}


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
    parameters = {name: from_plain(name, value) for name, value in saved.parameters.items()}
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
    for name, value in record(curve.tolist(), scores.tolist()).items():
        setattr(estimator, name, value)
    estimator._restore(saved.fitted, saved.arrays)
    values, arrays = estimator._fitted()
    if saved.fitted.keys() != {"feature_names_in", *values} or saved.arrays.keys() != {"loss_curve", *arrays}:
        raise ValueError(f"expected what {saved.kind} has and nothing else")
    return estimator

"""Parameters of estimators as values that JSON can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastae import backend as backends
from fastae import layers, losses, optimizers, persistence
from fastae.checks import real_dtype
from fastae.network import Network


def to_plain(name: str, value: Any) -> Any:
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


def from_plain(name: str, value: Any) -> Any:
    """Return the parameter that `to_plain` gave."""
    makers: dict[str, Callable[[Any], Any]] = {
        "network": persistence.network_from_dict,
        "noise": layers.from_dict,
        "solver": optimizers.from_dict,
        "loss": losses.from_dict,
    }
    if isinstance(value, dict):
        return makers[name](value)
    return tuple(value) if isinstance(value, list) else value

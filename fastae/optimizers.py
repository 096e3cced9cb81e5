"""Optimisers as declarations: their arithmetic is one or two kernels of the table.

An optimiser names

- ``kernel``: the update of the whole stretch of parameters from the stretch of gradients, with the
  arguments ``g`` (gradients), ``w`` (parameters) and one for each state, under the state's name;
- ``dense_kernel``: the gradient of a dense layer and its update in one (None if there is no such
  kernel), with the arguments ``x``, ``da``, ``w``, ``b`` and two for each state, ``<state>_w`` and
  ``<state>_b``;
- ``states``: names of the arrays kept for every trainable parameter, zero at the start.

The constants of both kernels are the dataclass fields of the same names.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

__all__ = ["OPTIMIZERS", "SGD", "Optimizer", "from_dict", "resolve", "to_dict"]


@dataclass(frozen=True)
class Optimizer:
    """What all optimisers share."""

    kernel: ClassVar[str]
    dense_kernel: ClassVar[str | None] = None
    states: ClassVar[tuple[str, ...]] = ()

    @property
    def constants(self) -> dict[str, float]:
        """The constants of the kernels by argument name."""
        return asdict(self)

    def _positive(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, int | float | np.floating | np.integer) or isinstance(value, bool):
            raise ValueError(f"{name} must be a number; got {value!r}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and > 0; got {value!r}")
        object.__setattr__(self, name, float(value))


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, ``w -= learning_rate g``.

    Parameters
    ----------
    learning_rate : float
        Step size, finite and > 0.

    Raises
    ------
    ValueError
        When the step size is not.

    References
    ----------
    Robbins, Monro, A stochastic approximation method (1951).
    """

    kernel: ClassVar[str] = "sgd"
    dense_kernel: ClassVar[str | None] = "dense_sgd"

    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        self._positive("learning_rate")


#: The closed registry: names in files and on the command line resolve here alone.
OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD}


def resolve(optimizer: str | Optimizer) -> Optimizer:
    """Return the declaration of an optimiser given by name (with its defaults), or itself.

    Raises
    ------
    ValueError
        When it is neither.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optimizer must be an optimiser or one of {', '.join(OPTIMIZERS)}; got {optimizer!r}"
        )
    return OPTIMIZERS[optimizer]()


def to_dict(optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimiser as plain values."""
    (name,) = (name for name, cls in OPTIMIZERS.items() if cls is type(optimizer))
    return {"type": name, **asdict(optimizer)}


def from_dict(data: Any) -> Optimizer:
    """Return the optimiser that `to_dict` gave; a ValueError for anything else."""
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in OPTIMIZERS:
        raise ValueError(
            f"optimizer must be a dict whose type is one of {', '.join(OPTIMIZERS)}; got {data!r:.100}"
        )
    cls = OPTIMIZERS[kind]
    unknown = data.keys() - {"type"} - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"optimizer {kind} has no field {', '.join(sorted(map(str, unknown)))}")
    return cls(**{key: value for key, value in data.items() if key != "type"})

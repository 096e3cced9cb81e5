"""Optimisers as declarations: their arithmetic is one or two kernels of the table.

An optimiser names

- ``kernel``: the update of a stretch of parameters from the stretch of their gradients, with the
  arguments ``g`` (gradients), ``w`` (parameters) and one for each state, under the state's name;
- ``dense_kernel``: the gradient of a dense layer and its update in one (None if there is no such
  kernel), with the arguments ``x``, ``da``, ``w``, ``b`` and two for each state, ``<state>_w`` and
  ``<state>_b``;
- ``states``: names of the arrays kept for every trainable parameter, zero at the start;
- ``constants``: those of both kernels by argument name.

A kernel that has an argument ``step`` gets the number of updates done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from fastae.layers import real_number

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "from_dict",
    "resolve",
    "to_dict",
]


@dataclass(frozen=True)
class Optimizer:
    """What all optimisers share.

    Parameters
    ----------
    clip_norm : float, optional
        Before each update all gradients are scaled so that their Euclidean norm is at most this,
        finite and > 0.
    """

    clip_norm: float | None = field(default=None, kw_only=True)

    @property
    def kernel(self) -> str:
        """Row of the table that updates parameters from their gradients."""
        raise NotImplementedError

    @property
    def dense_kernel(self) -> str | None:
        """Row that computes the gradients of a dense layer and updates its parameters."""
        return None

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the arrays kept for every trainable parameter."""
        return ()

    @property
    def constants(self) -> dict[str, float]:
        """The constants of the kernels by argument name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "clip_norm"}

    def __str__(self) -> str:
        common, *own = fields(self)
        chosen = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in (*own, common)
            if f.name == "learning_rate" or getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(chosen)})"

    def _check(self, *names: str, high: float = float("inf"), positive: bool = False) -> None:
        """See that the fields are finite, >= 0 or > 0, and below `high`; make them floats."""
        for name in names:
            value = real_number(name, getattr(self, name), 0, high, open_low=positive)
            object.__setattr__(self, name, value)

    def _check_common(self) -> None:
        self._check("learning_rate", positive=True)
        self._check("weight_decay")
        if self.clip_norm is not None:
            self._check("clip_norm", positive=True)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, ``w -= learning_rate g``, with momentum if wanted.

    Parameters
    ----------
    learning_rate : float
        Step size, finite and > 0.
    momentum : float
        Share of the velocity kept, in [0, 1).
    nesterov : bool
        Look ahead along the velocity; needs a momentum.
    weight_decay : float
        L2 penalty added to the gradient, >= 0.
    clip_norm : float, optional
        Largest norm of all gradients, > 0.

    Raises
    ------
    ValueError
        When an argument is not as stated.

    References
    ----------
    Robbins, Monro, A stochastic approximation method (1951); Sutskever et al., On the importance of
    initialization and momentum in deep learning (2013). Conventions are PyTorch's.
    """

    learning_rate: float = 1e-2
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check_common()
        self._check("momentum", high=1)
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"nesterov must be True or False; got {self.nesterov!r}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum > 0; got momentum 0")

    @property
    def kernel(self) -> str:
        """That with momentum or that without."""
        return "momentum" if self.momentum else "sgd"

    @property
    def dense_kernel(self) -> str | None:
        """That of plain gradient descent; there is none with momentum."""
        return None if self.momentum else "dense_sgd"

    @property
    def states(self) -> tuple[str, ...]:
        """The velocity, where there is a momentum."""
        return ("velocity",) if self.momentum else ()

    @property
    def constants(self) -> dict[str, float]:
        """The constants of the kernels by argument name."""
        constants = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}
        more = {"momentum": self.momentum, "nesterov": int(self.nesterov)}
        return constants | more if self.momentum else constants


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: steps scaled by running averages of the gradient and its square.

    Parameters
    ----------
    learning_rate : float
        Step size, finite and > 0.
    betas : tuple of two floats
        Decay of the average of the gradient and of that of its square, each in [0, 1).
    epsilon : float
        Added to the root of the latter, > 0.
    weight_decay : float
        L2 penalty added to the gradient, >= 0.
    clip_norm : float, optional
        Largest norm of all gradients, > 0.

    Raises
    ------
    ValueError
        When an argument is not as stated.

    References
    ----------
    Kingma, Ba, Adam (2015).
    """

    decoupled: ClassVar[bool] = False

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check_common()
        self._check("epsilon", positive=True)
        betas = self.betas
        if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1); got {betas!r}")
        checked = tuple(real_number(f"betas[{i}]", beta, 0, 1) for i, beta in enumerate(betas))
        object.__setattr__(self, "betas", checked)

    @property
    def kernel(self) -> str:
        """Row of the table that updates parameters from their gradients."""
        return "adam"

    @property
    def dense_kernel(self) -> str | None:
        """Row that computes the gradients of a dense layer and updates its parameters."""
        return "dense_adam"

    @property
    def states(self) -> tuple[str, ...]:
        """The running averages."""
        return ("exp_avg", "exp_avg_sq")

    @property
    def constants(self) -> dict[str, float]:
        """The constants of the kernels by argument name."""
        return {
            "learning_rate": self.learning_rate,
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "epsilon": self.epsilon,
            "weight_decay": self.weight_decay,
            "decoupled": int(self.decoupled),
        }


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay shrinks the parameters themselves and leaves the gradient alone.

    Parameters
    ----------
    learning_rate, betas, epsilon, clip_norm
        As for `Adam`.
    weight_decay : float
        Share of a parameter that a step of learning rate 1 takes away, >= 0.

    Raises
    ------
    ValueError
        When an argument is not as stated.

    References
    ----------
    Loshchilov, Hutter, Decoupled weight decay regularization (2019).
    """

    decoupled: ClassVar[bool] = True

    weight_decay: float = 1e-2


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop: steps scaled by a running average of the gradient's square.

    Parameters
    ----------
    learning_rate : float
        Step size, finite and > 0.
    alpha : float
        Decay of the average, in [0, 1).
    epsilon : float
        Added to its root, > 0.
    weight_decay : float
        L2 penalty added to the gradient, >= 0.
    clip_norm : float, optional
        Largest norm of all gradients, > 0.

    Raises
    ------
    ValueError
        When an argument is not as stated.

    References
    ----------
    Hinton, Neural networks for machine learning, lecture 6e (2012). Conventions are PyTorch's.
    """

    learning_rate: float = 1e-2
    alpha: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check_common()
        self._check("alpha", high=1)
        self._check("epsilon", positive=True)

    @property
    def kernel(self) -> str:
        """Row of the table that updates parameters from their gradients."""
        return "rmsprop"

    @property
    def states(self) -> tuple[str, ...]:
        """The running average."""
        return ("square_avg",)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad: steps scaled by the sum of the gradient's squares so far.

    Parameters
    ----------
    learning_rate : float
        Step size, finite and > 0.
    epsilon : float
        Added to the root of the sum, > 0.
    weight_decay : float
        L2 penalty added to the gradient, >= 0.
    clip_norm : float, optional
        Largest norm of all gradients, > 0.

    Raises
    ------
    ValueError
        When an argument is not as stated.

    References
    ----------
    Duchi, Hazan, Singer, Adaptive subgradient methods (2011). Conventions are PyTorch's.
    """

    learning_rate: float = 1e-2
    epsilon: float = 1e-10
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check_common()
        self._check("epsilon", positive=True)

    @property
    def kernel(self) -> str:
        """Row of the table that updates parameters from their gradients."""
        return "adagrad"

    @property
    def states(self) -> tuple[str, ...]:
        """The sum of squares."""
        return ("square_sum",)


#: The closed registry: names in files and on the command line resolve here alone.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
}


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
    """Return an optimiser as plain values; a ValueError for one that `from_dict` would not give back."""
    names = [name for name, cls in OPTIMIZERS.items() if cls is type(optimizer)]
    data = {"type": names[0], **asdict(optimizer)} if names else {}
    if not names or from_dict(data) != optimizer:
        raise ValueError(
            f"optimizer: expected one of fastae's own, {', '.join(OPTIMIZERS)}, since a file names it; "
            f"given {optimizer!r}"
        )
    return data


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

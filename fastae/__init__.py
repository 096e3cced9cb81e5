"""Train and run autoencoders on a CPU, fast.

The same kernels are written four times, as scalar loops, NumPy, Numba and Cython, behind one interface:
choose with :func:`set_backend`, declare a :class:`Network`, train it with a :class:`Trainer`, or call the
kernels themselves in :mod:`fastae.ops`.

``import fastae`` imports nothing else. Every name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors read instead of _HOME
    from fastae import (
        backend,
        callbacks,
        datasets,
        export,
        initializers,
        layers,
        losses,
        models,
        ops,
        optimizers,
        persistence,
        plans,
        plots,
        program,
        tables,
    )
    from fastae.backend import (
        available_backends,
        get_backend,
        register_backend,
        set_backend,
        show_versions,
        use_backend,
    )
    from fastae.callbacks import (
        Callback,
        Checkpoint,
        CosineDecay,
        EarlyStopping,
        LearningRateSchedule,
        Progress,
        ReduceOnPlateau,
        StepDecay,
    )
    from fastae.estimators import Autoencoder as Autoencoder
    from fastae.estimators import AutoencoderOutlierDetector as AutoencoderOutlierDetector
    from fastae.history import DivergenceError, History
    from fastae.layers import (
        Activation,
        AvgPool2D,
        BatchNorm,
        Conv2D,
        ConvTranspose2D,
        Dense,
        Dropout,
        Flatten,
        GaussianNoise,
        MaskingNoise,
        MaxPool2D,
        Parallel,
        Reshape,
        Subsample,
        Upsample2D,
    )
    from fastae.network import Network, Recipe
    from fastae.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
    from fastae.persistence import CheckpointError, load
    from fastae.plans import plan
    from fastae.trainer import Trainer

__version__ = "0.1.0"

#: The module of each public name; a module is its own home.
_HOME = {
    "backend": "backend",
    "callbacks": "callbacks",
    "datasets": "datasets",
    "export": "export",
    "initializers": "initializers",
    "layers": "layers",
    "losses": "losses",
    "models": "models",
    "ops": "ops",
    "optimizers": "optimizers",
    "persistence": "persistence",
    "plans": "plans",
    "plots": "plots",
    "program": "program",
    "tables": "tables",
    "available_backends": "backend",
    "get_backend": "backend",
    "register_backend": "backend",
    "set_backend": "backend",
    "show_versions": "backend",
    "use_backend": "backend",
    "Callback": "callbacks",
    "Checkpoint": "callbacks",
    "CosineDecay": "callbacks",
    "EarlyStopping": "callbacks",
    "LearningRateSchedule": "callbacks",
    "Progress": "callbacks",
    "ReduceOnPlateau": "callbacks",
    "StepDecay": "callbacks",
    "Autoencoder": "estimators",
    "AutoencoderOutlierDetector": "estimators",
    "DivergenceError": "history",
    "History": "history",
    "Activation": "layers",
    "AvgPool2D": "layers",
    "BatchNorm": "layers",
    "Conv2D": "layers",
    "ConvTranspose2D": "layers",
    "Dense": "layers",
    "Dropout": "layers",
    "Flatten": "layers",
    "GaussianNoise": "layers",
    "MaskingNoise": "layers",
    "MaxPool2D": "layers",
    "Parallel": "layers",
    "Reshape": "layers",
    "Subsample": "layers",
    "Upsample2D": "layers",
    "Network": "network",
    "Recipe": "network",
    "SGD": "optimizers",
    "Adagrad": "optimizers",
    "Adam": "optimizers",
    "AdamW": "optimizers",
    "RMSprop": "optimizers",
    "CheckpointError": "persistence",
    "load": "persistence",
    "plan": "plans",
    "Trainer": "trainer",
}

#: There where the compiled kernels are; the last is the capsule that fastae.h imports.
_COMPILED = {
    "ctypes_kernels": "ctypes_kernels",
    "cython_kernels": "cython_kernels",
    "_c_api": "cython_kernels",
}

#: Names whose import needs more than NumPy: ``from fastae import *`` leaves them out.
_EXTRA = ("Autoencoder", "AutoencoderOutlierDetector")

__all__ = [
    "SGD",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "AvgPool2D",
    "BatchNorm",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "Conv2D",
    "ConvTranspose2D",
    "CosineDecay",
    "Dense",
    "DivergenceError",
    "Dropout",
    "EarlyStopping",
    "Flatten",
    "GaussianNoise",
    "History",
    "LearningRateSchedule",
    "MaskingNoise",
    "MaxPool2D",
    "Network",
    "Parallel",
    "Progress",
    "RMSprop",
    "Recipe",
    "ReduceOnPlateau",
    "Reshape",
    "StepDecay",
    "Subsample",
    "Trainer",
    "Upsample2D",
    "__version__",
    "available_backends",
    "backend",
    "callbacks",
    "datasets",
    "export",
    "get_backend",
    "get_include",
    "initializers",
    "layers",
    "load",
    "losses",
    "models",
    "ops",
    "optimizers",
    "persistence",
    "plan",
    "plans",
    "plots",
    "program",
    "register_backend",
    "set_backend",
    "show_versions",
    "tables",
    "use_backend",
]


def get_include() -> str:
    """Return the folder of ``fastae.h``, for the compilers of C and C++.

    Returns
    -------
    str
        To be given as ``-I``. Cython needs it only for ``cdef extern from "fastae.h"``; ``cimport
        fastae.cython_kernels`` works without.
    """
    import os

    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "include")


def __getattr__(name: str) -> Any:
    home = _HOME.get(name) or _COMPILED.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{home}")
    value = module if home == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from importlib.util import find_spec

    return sorted([*__all__, *(_EXTRA if find_spec("sklearn") else ())])

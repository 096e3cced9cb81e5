"""Trained networks for other programs: ONNX, and C without dependencies.

::

    Trainer, estimator ── resolve ──> Model ── a walk over the placed layers ──┬── to_onnx: nodes
                                      part, weights, dtype                     └── to_c: calls of C functions

What is exported is inference: batch normalisation with its running statistics, no dropout and no noise.
Each format has a function for every class of layer, in ``nodes.py`` and ``c99.py``; a class without one
is an error that names it.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fastae import persistence
from fastae.layers import Layer, Shape, real_number
from fastae.network import Network, Placed
from fastae.trainer import Trainer

__all__ = ["PARTS", "Model", "Walk", "c_source", "onnx_model", "resolve", "to_c", "to_onnx"]

#: What can be exported: two halves, the whole, and what looks for anomalies.
PARTS: Final = ("encode", "decode", "reconstruct", "score", "detect")

V = TypeVar("V")


@dataclass(frozen=True)
class Model:
    """What is exported.

    Parameters
    ----------
    network : Network
        The declaration.
    weights : mapping of str to ndarray
        Every parameter under its name, all finite.
    dtype : dtype
        float32 or float64: of weights, input and output.
    part : str
        One of `PARTS`.
    threshold : float or None
        For "detect": an outlier is a row whose score is above it.
    """

    network: Network
    weights: Mapping[str, npt.NDArray[Any]]
    dtype: np.dtype[Any]
    part: str
    threshold: float | None = None

    @property
    def layers(self) -> tuple[Placed, ...]:
        """The layers from the input to the output."""
        encoder, decoder = self.network.placed_encoder, self.network.placed_decoder
        return {"encode": encoder, "decode": decoder}.get(self.part, encoder + decoder)

    @property
    def input_shape(self) -> Shape:
        """Shape of one row of the input."""
        return self.network.code_shape if self.part == "decode" else self.network.input_shape

    @property
    def output_shape(self) -> Shape:
        """Shape of one row of what the last layer gives."""
        return self.layers[-1].output_shape

    @property
    def scores(self) -> bool:
        """Whether the output is not that of the last layer but its distance from the input."""
        return self.part in ("score", "detect")


def resolve(model: Any, part: str, threshold: float | None = None) -> Model:
    """Check what is to be exported.

    Parameters
    ----------
    model : Trainer, or an estimator with a Trainer as its ``trainer_``
        The weights it has at the moment are taken.
    part : str
        One of `PARTS`.
    threshold : float, optional
        For "detect"; an estimator brings its own, ``-offset_``.

    Returns
    -------
    Model

    Raises
    ------
    TypeError, ValueError
        When an argument is not as stated, or the network cannot be scored.
    """
    trainer = model if isinstance(model, Trainer) else getattr(model, "trainer_", None)
    if not isinstance(trainer, Trainer):
        raise TypeError(f"model: expected a Trainer or a fitted estimator, given {type(model).__name__}")
    if part not in PARTS:
        raise ValueError(f"part: expected one of {', '.join(PARTS)}, given {part!r:.50}")
    if part == "detect":
        if threshold is None and hasattr(model, "offset_"):
            threshold = -float(model.offset_)
        if threshold is None:
            raise ValueError("threshold: part 'detect' needs the score above which a row is an outlier")
        threshold = real_number("threshold", threshold, 0)
    elif threshold is not None:
        raise ValueError(f"threshold: expected with part 'detect' alone, given with {part!r}")
    found = Model(trainer.net, trainer.weights, trainer.dtype, part, threshold)
    if found.scores and math.prod(found.input_shape) != math.prod(found.output_shape):
        raise ValueError(
            f"part: {part!r} compares rows with their reconstructions, and this network makes "
            f"{found.output_shape} of {found.input_shape}"
        )
    for name, values in found.weights.items():
        if not np.isfinite(values).all():
            raise ValueError(f"model: expected finite weights, given NaN or infinity in {name}")
    return found


class Walk(Generic[V]):
    """A walk over placed layers in the order they are computed; V is what stands for an array."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def chain(self, layers: Iterable[Placed], x: V) -> V:
        """Add layers one after the other; the output of the last."""
        for placed in layers:
            x = self.layer(placed, x)
        return x

    def branches(self, placed: Placed, x: V) -> list[V]:
        """Add the branches of a Parallel layer; the output of each."""
        return [self.chain(branch, x) for branch in placed.branches]

    def layer(self, placed: Placed, x: V) -> V:
        """Add a layer that reads `x`; its output."""
        raise NotImplementedError

    def weight(self, placed: Placed, name: str) -> npt.NDArray[Any]:
        """Return a parameter of a layer by its short name."""
        return self.model.weights[f"{placed.name}.{name}"]

    @staticmethod
    def unknown(layer: Layer, target: str) -> NotImplementedError:
        """Make the error for a class of layer that a format was not taught."""
        kind = getattr(layer, "kind", type(layer).__name__)
        return NotImplementedError(f"{target}: no export of layers of type {kind}")


# -- the formats ---------------------------------------------------------------------------------------


def onnx_model(model: Any, part: str = "reconstruct", *, threshold: float | None = None) -> Any:
    """Make an ONNX model (opset 18, IR version 8), checked by ``onnx.checker``.

    Parameters
    ----------
    model, part, threshold
        As of `to_onnx`.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ImportError
        Without onnx (``pip install "fastae[onnx]"``).
    TypeError, ValueError
        When an argument is not as stated.
    NotImplementedError
        When the network has a layer that cannot be exported.
    """
    from fastae.export.nodes import build_model

    return build_model(resolve(model, part, threshold))


def to_onnx(
    model: Any,
    path: str | os.PathLike[str],
    part: str = "reconstruct",
    *,
    threshold: float | None = None,
    force: bool = False,
) -> None:
    """Write an ONNX file (opset 18, IR version 8).

    Parameters
    ----------
    model : Trainer or fitted estimator
        What to export, with the weights it has at the moment.
    path : str or path
        The file. It appears as a whole or not at all.
    part : str
        =============  =============  ==============================================
        part           input          outputs
        =============  =============  ==============================================
        "encode"       ``x``          ``code``
        "decode"       ``code``       ``reconstruction``
        "reconstruct"  ``x``          ``reconstruction``
        "score"        ``x``          ``score``: mean squared error of each row
        "detect"       ``x``          ``score``; ``outlier``, bool
        =============  =============  ==============================================

        Arrays have a free first dimension, ``batch``, then those of the network's shape; ``score`` and
        ``outlier`` have no other. They are of the trainer's dtype.
    threshold : float, optional
        For "detect", >= 0: outliers are rows whose score is above it, or NaN. A fitted detector brings its
        own.
    force : bool
        Whether to replace a file that is there.

    Raises
    ------
    ImportError
        Without onnx (``pip install "fastae[onnx]"``).
    FileExistsError
        When the file is there and `force` is not given.
    TypeError, ValueError, NotImplementedError, OSError
        When an argument is not as stated, the network has a layer that cannot be exported, or the file
        cannot be written. Nothing was written then.

    Notes
    -----
    A float64 network has operators in float64, of which a runtime may lack some: ONNX Runtime has
    convolutions and means of windows in float32 alone.

    Examples
    --------
    >>> fastae.export.to_onnx(trainer, "encoder.onnx", "encode")
    >>> session = onnxruntime.InferenceSession("encoder.onnx")
    >>> (codes,) = session.run(None, {"x": X})
    """
    target = _target(path, force)
    content = onnx_model(model, part, threshold=threshold).SerializeToString(deterministic=True)
    persistence.replace(target, content, overwrite=force)


def c_source(
    model: Any, part: str = "reconstruct", *, prefix: str = "fastae", threshold: float | None = None
) -> str:
    """Return what `to_c` writes.

    Parameters
    ----------
    model, part, prefix, threshold
        As of `to_c`.
    """
    from fastae.export.c99 import build_source, check_prefix

    return build_source(resolve(model, part, threshold), check_prefix(prefix))


def to_c(
    model: Any,
    path: str | os.PathLike[str],
    part: str = "reconstruct",
    *,
    prefix: str = "fastae",
    threshold: float | None = None,
    force: bool = False,
) -> None:
    """Write a C99 file of its own: weights as arrays, and one function that handles one row.

    Parameters
    ----------
    model : Trainer or fitted estimator
        What to export, with the weights it has at the moment.
    path : str or path
        The file. It appears as a whole or not at all.
    part : str
        With ``real`` as float or double, as the trainer's dtype is, these functions:

        =============  ================================================================================
        "encode"       ``void PREFIX_encode(const real *x, real *y)``: the code of x
        "decode"       ``void PREFIX_decode(const real *x, real *y)``: the output for the code x
        "reconstruct"  ``void PREFIX_reconstruct(const real *x, real *y)``: the output for x
        "score"        ``real PREFIX_score(const real *x)``: mean squared error of x's reconstruction
        "detect"       ``int PREFIX_detect(const real *x, real *score)``: the same into ``*score``; 1 for
                       an outlier, else 0
        =============  ================================================================================
    prefix : str
        What all names of the file begin with: a letter, then at most 39 letters, digits or '_'.
    threshold : float, optional
        For "detect", >= 0: outliers are rows whose score is above it, or NaN. A fitted detector brings its
        own.
    force : bool
        Whether to replace a file that is there.

    Raises
    ------
    FileExistsError
        When the file is there and `force` is not given.
    TypeError, ValueError, NotImplementedError, OSError
        When an argument is not as stated, the network has a layer that cannot be exported, or the file
        cannot be written. Nothing was written then.

    Notes
    -----
    Weights are hexadecimal floats, exact to the bit. Nothing is allocated, and there is no state: several
    threads may call the function at once. Intermediate results lie on the stack; the comment at the head
    of the file says how many bytes, and which functions of ``<math.h>`` are used, if any.
    """
    target = _target(path, force)
    source = c_source(model, part, prefix=prefix, threshold=threshold)
    persistence.replace(target, source.encode("ascii"), overwrite=force)


def _target(path: Any, force: bool) -> str:
    """Return the path as a text if a file can be written there, before anything is computed."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"path: expected a str or a path, given {type(path).__name__}")
    if not isinstance(force, bool):
        raise TypeError(f"force: expected True or False, given {force!r:.50}")
    folder = os.path.dirname(os.path.realpath(text))
    if os.path.isdir(text):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", text)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", folder)
    if not force and os.path.exists(text):
        raise FileExistsError(errno.EEXIST, "it exists already, and force is not given", text)
    if os.path.exists(text) and not os.path.isfile(text):
        raise OSError(errno.EINVAL, "it is no regular file", text)
    return text

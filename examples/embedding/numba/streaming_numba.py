"""A streaming anomaly scorer: a trained model in an njit loop, without Python and without the GIL."""

import numpy as np
from numba import njit

from fastae import numba_kernels
from fastae.kernels.table import ACTIVATIONS
from fastae.numba_kernels import cython

_ITEMSIZE, _INPUT, _OUTPUT, _ROUTINES = 3, 6, 8, 9  # words of a plan, as fastae_plan of fastae.h has them


class Scorer:
    """Scores rows one after the other; one Scorer for each thread.

    Parameters
    ----------
    plan : bytes
        Of a float32 model with the routine "reconstruct", from fastae.plan.
    """

    def __init__(self, plan: bytes) -> None:
        self._opened = cython.open_plan(plan)
        words = self._opened.plan
        if words[_ITEMSIZE] != 4 or not words[_ROUTINES] >> cython.RECONSTRUCT & 1:
            raise ValueError("plan: expected one of a float32 model that reconstructs")
        if words[_INPUT] != words[_OUTPUT]:  # a model with targets of its own
            raise ValueError("plan: expected a model whose output has the columns of its input")
        self._columns = int(words[_INPUT])
        self._reconstruction = np.empty((1, int(words[_OUTPUT])), np.float32)

    def score(self, rows, scores) -> None:
        """Write the mean squared error of the reconstruction of each row to `scores`."""
        _check(rows, scores, self._columns)
        code = _score(self._opened.plan, self._opened.arena, rows, self._reconstruction, scores)
        if code:
            raise ValueError(f"fastae_run: error {code}")


class TwoLayers:
    """Scores rows one after the other with an autoencoder of two dense layers; one for each thread.

    Parameters
    ----------
    weights : dict
        Of a float32 `Trainer.weights` of such a network: weight and bias of the encoder, then of the decoder.
    activation : str
        Of the encoder; the decoder is linear.
    """

    def __init__(self, weights, activation: str) -> None:
        w, b, v, c = weights.values()
        if w.dtype != "float32" or w.ndim != 2 or v.shape != w.shape[::-1]:
            raise ValueError("weights: expected those of two dense layers, float32")
        self._layers = tuple(_aligned(values) for values in (w, b, v, c))
        self._activation = ACTIVATIONS[activation].code
        self._room = tuple(_aligned(np.zeros((1, size), np.float32)) for size in w.shape[::-1])

    def score(self, rows, scores) -> None:
        """Write the mean squared error of the reconstruction of each row to `scores`."""
        _check(rows, scores, len(self._layers[0]))
        _score_layers(*self._layers, self._activation, *self._room, rows, scores)


def _aligned(values):
    """Copy to where a cache line begins: a vector that lies across two lines takes longer to load."""
    room = np.empty(values.nbytes + 64, np.uint8)
    begin = -room.ctypes.data % 64
    copy = room[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def _check(rows, scores, columns: int) -> None:
    arrays = isinstance(rows, np.ndarray) and isinstance(scores, np.ndarray)
    if not arrays or rows.shape[1:] != (columns,) or scores.shape != rows.shape[:1]:
        raise ValueError(f"expected arrays (n, {columns}) and (n,)")
    if rows.dtype != "float32" or scores.dtype != "float32" or not rows.flags.c_contiguous:
        raise ValueError("expected C-contiguous arrays of float32")


@njit(cache=True, nogil=True)
def _score(plan, arena, rows, reconstruction, scores):
    for i in range(len(rows)):
        code = cython.run(plan, arena, cython.RECONSTRUCT, 1, rows[i], None, reconstruction, None)
        if code:
            return code
        cython.row_mse(reconstruction, rows[i : i + 1], scores[i : i + 1])
    return 0


@njit(cache=True, nogil=True)
def _score_layers(w, b, v, c, activation, code, reconstruction, rows, scores):
    for i in range(len(rows)):
        row = rows[i : i + 1]
        numba_kernels.dense_forward(row, w, b, activation, code)
        numba_kernels.dense_forward(code, v, c, "linear", reconstruction)
        numba_kernels.row_mse(reconstruction, row, scores[i : i + 1])

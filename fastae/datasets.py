"""The data fastae ships with, and its preparation as the published experiments did it.

The bundled digits are the testing part of *Optical Recognition of Handwritten Digits* (E. Alpaydin,
C. Kaynak, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49), CC BY 4.0;
``fastae/data/digits.txt`` says what was changed.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import numpy.typing as npt

__all__ = ["autoencnet_data", "digits", "digits_canvas"]

_SIDE = 8
_LEVELS = 16


def digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Load the bundled handwritten digits of the UCI repository.

    Returns
    -------
    images : ndarray of uint8, shape (1797, 8, 8)
        Grey levels from 0 (background) to 16 (ink).
    labels : ndarray of uint8, shape (1797,)
        The digit each image shows, 0 to 9.

    Notes
    -----
    E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0. The values are unchanged.

    Examples
    --------
    >>> images, labels = fastae.datasets.digits()
    >>> images.shape, int(labels[0])
    ((1797, 8, 8), 0)
    """
    path = resources.files("fastae") / "data" / "digits.npz"
    with path.open("rb") as file, np.load(file) as data:
        return data["images"], data["labels"]


def digits_canvas(size: int = 15) -> npt.NDArray[np.uint8]:
    """Place the bundled digits on a larger, empty canvas, with grey levels from 0 to 255.

    Parameters
    ----------
    size : int, default 15
        Side of the square canvas in pixels, at least 8. 15 is the size AutoEncNet uses.

    Returns
    -------
    ndarray of uint8, shape (1797, size, size)
        The digits at their own size in the middle of the canvas. Where the margin is odd, the spare
        row and column are on the top and on the left, as in AutoEncNet's own images: on 15x15 a digit
        covers rows and columns 4 to 11. A level v of 0..16 becomes v 255 / 16, rounded to nearest.

    Raises
    ------
    TypeError
        `size` is not an integer.
    ValueError
        `size` is less than 8.
    """
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        raise TypeError(f"size: expected an int, got {type(size).__name__}")
    if size < _SIDE:
        raise ValueError(f"size: expected at least {_SIDE}, the side of a digit, got {size}")
    images, _ = digits()
    start = (size - _SIDE + 1) // 2
    canvas = np.zeros((len(images), size, size), np.uint8)
    scaled = np.rint(images * (255 / _LEVELS)).astype(np.uint8)
    canvas[:, start : start + _SIDE, start : start + _SIDE] = scaled
    return canvas


def autoencnet_data(
    images: npt.ArrayLike, mean: npt.ArrayLike | None = None, dtype: npt.DTypeLike = np.float64
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Prepare images as AutoEncNet does: flatten, subtract the mean training image, divide by 255.

    Parameters
    ----------
    images : array_like of real numbers, shape (n, height, width) or (n, pixels)
        Images with grey levels from 0 to 255.
    mean : array_like, shape (pixels,), optional
        Mean training image in grey levels. It is computed from `images` when it is not given; give
        the one of the training images when you prepare test images.
    dtype : dtype, default float64
        Type of both results, float32 or float64. The mean is always summed in float64.

    Returns
    -------
    X : ndarray, shape (n, pixels)
        ``(images - mean) / 255``, C-contiguous.
    mean : ndarray, shape (pixels,)
        The mean that was subtracted, in grey levels. ``X * 255 + mean`` gives the images back.

    Raises
    ------
    TypeError
        `images` does not hold real numbers, or `dtype` is neither float32 nor float64.
    ValueError
        `images` has another number of dimensions, no images or no pixels, or `mean` another length.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    array = np.asarray(images)
    if array.dtype.kind not in "uif":
        raise TypeError(f"images: expected real numbers, got dtype {array.dtype}")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            f"images: expected shape (n, height, width) or (n, pixels), none of them 0, got {array.shape}"
        )
    flat = array.reshape(len(array), -1)
    average = flat.mean(axis=0, dtype=np.float64) if mean is None else np.asarray(mean, np.float64).ravel()
    if len(average) != flat.shape[1]:
        raise ValueError(f"mean: expected {flat.shape[1]} values, as an image has, got {len(average)}")
    return ((flat - average) / 255).astype(dtype), average.astype(dtype)

"""What all pictures share: colours, axes of a new figure, and checks of what is to be drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "MARKERS", "as_images", "look", "new_axes", "plain", "positive", "real_array"]

#: Okabe and Ito's palette without its yellow, which is too pale on white; black comes last.
COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")

MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure that pyplot knows nothing of (inches)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "fastae[plots]"') from error
    return Figure(figsize=(width, height), dpi=100, layout="constrained").subplots()


def plain(ax: Axes) -> None:
    """Leave out the lines that carry no information."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(True, axis="x", color="0.9", linewidth=0.6)


def look(i: int) -> dict[str, Any]:
    """Colour and mark of the i-th of up to 49 things: no two of them alike."""
    n = len(COLOURS)
    return {"color": COLOURS[i % n], "marker": MARKERS[(i + i // n) % n]}


def real_array(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return finite real numbers as float64; an error that names the argument for anything else."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of differing lengths
        raise ValueError(f"{name}: expected an array of numbers, given {type(values).__name__}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, given {array.dtype}")
    numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(numbers))[0])
        raise ValueError(f"{name}: expected finite numbers, given {numbers[where]} at {where}")
    return numbers


def positive(name: str, value: Any) -> float:
    """Return a finite number above 0 as a float; a ValueError for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value!r:.50}")
    return number


def as_images(name: str, array: npt.ArrayLike, shape: tuple[int, int] | None) -> npt.NDArray[np.float64]:
    """Return one image or more, (n, height, width); flat ones are square where no shape is given."""
    images = real_array(name, array)
    if images.ndim == 4 and images.shape[1] == 1:  # as convolutions have them
        images = images[:, 0]
    if images.ndim not in (2, 3) or images.size == 0:
        raise ValueError(
            f"{name}: expected shape (n, height, width) or (n, pixels), none of them 0, got {images.shape}"
        )
    if images.ndim == 2:
        pixels = images.shape[1]
        if shape is None:
            side = round(pixels**0.5)
            shape = (side, side)
        if shape[0] * shape[1] != pixels:
            raise ValueError(f"{name}: {pixels} pixels do not make an image of {shape}; give image_shape")
        images = images.reshape(-1, *shape)
    return images

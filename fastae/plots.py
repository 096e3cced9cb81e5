"""Pictures of a training run. Needs matplotlib: ``pip install "fastae[plots]"``.

Every function draws into the axes it is given, or into a figure of its own, and returns the axes;
``ax.figure.savefig("name.png")`` writes the picture. Nothing here calls ``show``, imports pyplot or
changes the backend, so that the functions do no harm in a script, a server or a notebook. For a window
of pyplot's, pass its axes: ``learning_curve(losses, ax=plt.gca())``.

Colours are those of M. Okabe and K. Ito, Color Universal Design (2008), which people with any kind of
colour vision tell apart; lines also differ in their marks and bars carry their numbers, for print in grey.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "learning_curve", "reconstructions", "speedup"]

#: Okabe and Ito's palette without its yellow, which is too pale on white; black comes last.
COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")

_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")


def _new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure that pyplot knows nothing of (inches)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "fastae[plots]"') from error
    return Figure(figsize=(width, height), dpi=100, layout="constrained").subplots()


def _finite_series(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    series = np.asarray(values, np.float64)
    if series.ndim != 1 or series.size == 0:
        raise ValueError(
            f"losses: expected at least one number in one dimension, {name!r} has {series.shape}"
        )
    return series


def learning_curve(
    losses: Mapping[str, npt.ArrayLike] | npt.ArrayLike,
    *,
    ax: Axes | None = None,
    xlabel: str = "update",
    ylabel: str = "loss",
    title: str | None = None,
) -> Axes:
    """Draw the loss over the updates or epochs.

    Parameters
    ----------
    losses : mapping of str to array_like, or array_like
        One or several series of losses, shape (n,) each, by name; lengths may differ. The first number
        stands at 1. Several series get marks of their own at staggered places, so that curves that
        lie on top of each other can all be seen.
    ax : matplotlib.axes.Axes, optional
        Where to draw. A new figure is made when it is not given.
    xlabel, ylabel : str
        What is counted, and what the loss is.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There is no series, or one that is empty or has more than one dimension.
    ImportError
        matplotlib is not installed.
    """
    named = losses if isinstance(losses, Mapping) else {"": losses}
    if not named:
        raise ValueError("losses: expected at least one series, got none")
    series = {name: _finite_series(name, values) for name, values in named.items()}
    ax = _new_axes(6.4, 3.8) if ax is None else ax
    longest = max(map(len, series.values()))
    step = max(1, longest // 12)
    for i, (name, values) in enumerate(series.items()):
        colour, steps = COLOURS[i % len(COLOURS)], np.arange(1, len(values) + 1)
        # A short series would vanish below a long one.
        ax.plot(steps, values, color=colour, linewidth=1.0, zorder=3 - len(values) / longest)
        if name:
            marked = slice(i * step // len(series), None, step)
            ax.plot(
                steps[marked],
                values[marked],
                label=name,
                linestyle="none",
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=7,
                color=colour,
                markeredgecolor="white",
                markeredgewidth=0.8,
                zorder=4,
            )
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_ylim(bottom=0)
    ax.margins(x=0.01)
    if title:
        ax.set_title(title)
    if any(series):
        ax.legend(frameon=False)
    _plain(ax)
    return ax


def speedup(
    seconds: Mapping[str, float] | Mapping[str, Mapping[str, float]],
    *,
    baseline: str = "scalar",
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw how many times faster than a baseline each entry is, as bars on a logarithmic axis.

    Parameters
    ----------
    seconds : mapping of str to float, or mapping of str to such a mapping
        Seconds by backend; or, for several groups of bars, by what was measured and then by backend.
    baseline : str, default "scalar"
        The backend the others are compared with. Bars begin a little below the smallest
        ratio, so that its own can be seen.
    ax : matplotlib.axes.Axes, optional
        Where to draw. A new figure is made when it is not given.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There is nothing to draw, a time is not a positive number, or a group lacks the baseline.
    ImportError
        matplotlib is not installed.
    """
    groups: dict[str, Mapping[str, float]] = {}
    for name, value in seconds.items():
        if isinstance(value, Mapping):
            groups[name] = value
        else:
            groups.setdefault("", {})[name] = value  # type: ignore[index]
    if not groups:
        raise ValueError("seconds: expected at least one time, got none")
    for name, times in groups.items():
        if baseline not in times:
            raise ValueError(
                f"seconds: {name or 'the mapping'} has no baseline {baseline!r}, only {list(times)}"
            )
        for backend, value in times.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"seconds: expected a positive number for {backend!r}, got {value}")
    backends = list(dict.fromkeys(backend for times in groups.values() for backend in times))
    bars = sum(len(times) for times in groups.values())
    ax = _new_axes(6.4, 1.2 + 0.3 * bars + 0.25 * len(groups)) if ax is None else ax

    position, ticks, names = 0.0, [], []
    ratios = [times[baseline] / value for times in groups.values() for value in times.values()]
    left, largest = 0.8 * min(ratios), max(ratios)
    for name, times in groups.items():
        if name:
            ax.annotate(
                name,
                (0, position),
                (4, 0),
                ("axes fraction", "data"),
                "offset points",
                va="center",
                weight="bold",
            )
            position += 0.9
        for backend, value in times.items():
            ratio = times[baseline] / value
            colour = COLOURS[backends.index(backend) % len(COLOURS)]
            ax.barh(position, ratio - left, left=left, height=0.8, color=colour)
            text = f"{significant(ratio)}x   {duration(value)}"
            ax.annotate(text, (ratio, position), (5, 0), textcoords="offset points", va="center")
            ticks.append(position)
            names.append(backend)
            position += 1
        position += 0.4
    ax.set_xscale("log")
    ax.set_xlim(left, largest * (largest / left) ** 0.4)  # room for the numbers behind the longest bar
    ax.set_ylim(position - 0.8, -0.7)
    ax.set_yticks(ticks, names)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"speed-up over {baseline} (times, logarithmic)")
    if title:
        ax.set_title(title)
    _plain(ax)
    return ax


def reconstructions(
    originals: npt.ArrayLike,
    reconstructed: npt.ArrayLike,
    *,
    image_shape: tuple[int, int] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Show originals in a row, and what the autoencoder made of them in a row below.

    Parameters
    ----------
    originals, reconstructed : array_like of real numbers, shape (n, height, width) or (n, pixels)
        The images, in the same unit. Both rows use the same grey scale, from the smallest to the
        largest value of the originals; the largest is black, which saves ink.
    image_shape : tuple of int, optional
        Height and width, needed for flat images that are not square.
    ax : matplotlib.axes.Axes, optional
        Where to draw. A new figure is made when it is not given.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        The two differ in shape, are empty, or cannot be shaped into images.
    ImportError
        matplotlib is not installed.
    """
    rows = [
        _as_images(name, a, image_shape)
        for name, a in (("originals", originals), ("reconstructed", reconstructed))
    ]
    if rows[0].shape != rows[1].shape:
        raise ValueError(f"reconstructed: expected shape {rows[0].shape}, as originals, got {rows[1].shape}")
    count, height, width = rows[0].shape
    gap = 1
    mosaic = np.full((2 * height + gap, count * (width + gap) - gap), np.nan)
    for r, images in enumerate(rows):
        for i, image in enumerate(images):
            top, left = r * (height + gap), i * (width + gap)
            mosaic[top : top + height, left : left + width] = image
    ax = _new_axes(1.4 + 0.7 * count, 0.25 + 1.4 * height / width + 0.3 * bool(title)) if ax is None else ax
    # The gaps are not a number and stay as white as the paper; frames keep pale images apart.
    ax.imshow(mosaic, cmap="gray_r", vmin=rows[0].min(), vmax=rows[0].max(), interpolation="nearest")
    for r in range(2):
        for i in range(count):
            top, left = r * (height + gap) - 0.5, i * (width + gap) - 0.5
            ax.plot(
                [left, left + width, left + width, left, left],
                [top, top, top + height, top + height, top],
                color="0.75",
                linewidth=0.5,
            )
    ax.set_xlim(-1, mosaic.shape[1])
    ax.set_ylim(mosaic.shape[0], -1)
    ax.set_xticks([])
    ax.set_yticks([(height - 1) / 2, height + gap + (height - 1) / 2], ["original", "reconstruction"])
    ax.tick_params(axis="y", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title)
    return ax


def duration(seconds: float) -> str:
    """Write a time with three significant digits and the unit that suits it.

    Parameters
    ----------
    seconds : float
        A time, not negative.

    Returns
    -------
    str
        For example ``"41.8 µs"``.
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{significant(seconds / size)} {unit}"
    return f"{significant(seconds / 1e-9)} ns"


def significant(value: float) -> str:
    """Write a number with three significant digits, thousands in full and with separators.

    Parameters
    ----------
    value : float
        A number, not negative.

    Returns
    -------
    str
        For example ``"0.472"``, ``"41.8"`` or ``"2,667"``.
    """
    if value >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - max(0, int(np.floor(np.log10(value))))) if value > 0 else 0}f}"


def _as_images(name: str, array: npt.ArrayLike, shape: tuple[int, int] | None) -> npt.NDArray[np.float64]:
    images = np.asarray(array, np.float64)
    if images.ndim not in (2, 3) or images.size == 0:
        raise ValueError(
            f"{name}: expected shape (n, height, width) or (n, pixels), none of them 0, got {images.shape}"
        )
    if images.ndim == 3:
        return images
    pixels = images.shape[1]
    if shape is None:
        side = round(pixels**0.5)
        shape = (side, side)
    if shape[0] * shape[1] != pixels:
        raise ValueError(f"{name}: {pixels} pixels do not make an image of {shape}; give image_shape")
    return images.reshape(-1, *shape)


def _plain(ax: Axes) -> None:
    """Leave out the lines that carry no information."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(True, axis="x", color="0.9", linewidth=0.6)

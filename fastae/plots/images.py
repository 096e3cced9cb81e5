"""Images in rows: originals and reconstructions, noise removed, one image over the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastae.plots.base import as_images, new_axes, real_array

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["image_rows", "noise_removal", "reconstructions", "training_animation", "training_strip"]

Images = npt.NDArray[np.float64]

#: White pixels between images.
_GAP = 1


def image_rows(
    rows: Mapping[str, npt.ArrayLike],
    *,
    scale: str | None = None,
    image_shape: tuple[int, int] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Show several rows of images below each other, each with its name.

    Parameters
    ----------
    rows : mapping of str to array_like, shape (n, height, width), (n, 1, height, width) or (n, pixels)
        The images by the name of their row, all of one number and size and in the same unit.
    scale : str, optional
        The row whose smallest and largest value are white and black in all of them; the first one when not
        given.
    image_shape, ax, title
        As of `reconstructions`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        There is no row, they differ in shape, are empty, not finite, or cannot be shaped into images, or
        `scale` names none of them.
    ImportError
        matplotlib is not installed.
    """
    if not rows:
        raise ValueError("rows: expected at least one row of images, got none")
    first = next(iter(rows))
    scale = first if scale is None else scale
    if scale not in rows:
        raise ValueError(f"scale: expected one of {', '.join(rows)}, got {scale!r}")
    checked = {name: as_images(name, images, image_shape) for name, images in rows.items()}
    for name, images in checked.items():
        _check_alike(first, checked[first], name, images)
    return _rows(checked, checked[scale], ax, title)


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
    originals, reconstructed : array_like, shape (n, height, width), (n, 1, height, width) or (n, pixels)
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
    TypeError, ValueError
        The two differ in shape, are empty, not finite, or cannot be shaped into images.
    ImportError
        matplotlib is not installed.
    """
    rows = {
        "original": as_images("originals", originals, image_shape),
        "reconstruction": as_images("reconstructed", reconstructed, image_shape),
    }
    _check_alike("originals", rows["original"], "reconstructed", rows["reconstruction"])
    return _rows(rows, rows["original"], ax, title)


def noise_removal(
    noisy: npt.ArrayLike,
    denoised: npt.ArrayLike,
    clean: npt.ArrayLike | None = None,
    *,
    image_shape: tuple[int, int] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Show noisy images in a row, what a denoiser made of them below, and how they were without the noise.

    Parameters
    ----------
    noisy, denoised : array_like, shape (n, height, width), (n, 1, height, width) or (n, pixels)
        The images, in the same unit.
    clean : array_like, of the same shape, optional
        The images without noise: a third row, and the grey scale of all, from their smallest to their
        largest value. Without them it is that of the denoised ones.
    image_shape, ax, title
        As of `reconstructions`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        They differ in shape, are empty, not finite, or cannot be shaped into images.
    ImportError
        matplotlib is not installed.
    """
    rows = {
        "noisy": as_images("noisy", noisy, image_shape),
        "denoised": as_images("denoised", denoised, image_shape),
    }
    _check_alike("noisy", rows["noisy"], "denoised", rows["denoised"])
    if clean is not None:
        rows["clean"] = as_images("clean", clean, image_shape)
        _check_alike("noisy", rows["noisy"], "clean", rows["clean"])
    return _rows(rows, rows["denoised"] if clean is None else rows["clean"], ax, title)


def training_strip(
    images: npt.ArrayLike,
    original: npt.ArrayLike | None = None,
    *,
    epochs: Sequence[int] | None = None,
    most: int = 12,
    image_shape: tuple[int, int] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Show the reconstruction of one image over the training, epoch by epoch, in a row.

    Parameters
    ----------
    images : array_like, shape (n, height, width), (n, 1, height, width) or (n, pixels)
        The reconstructions in the order of the epochs.
    original : array_like, shape (height, width) or (pixels,), optional
        The image itself: put last, and its values are the grey scale of all.
    epochs : sequence of int, shape (n,), optional
        The epoch of each; 1, 2, 3 and so on when not given.
    most : int, default 12
        Reconstructions shown at most. Of more, the first, the last and those between them at even distances.
    image_shape, ax, title
        As of `reconstructions`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        The images are empty, not finite or of differing sizes, `epochs` has another length, or `most` is
        less than 1.
    ImportError
        matplotlib is not installed.
    """
    shown, first, numbers = _over_time(images, original, epochs, image_shape)
    if most < 1:
        raise ValueError(f"most: expected at least 1, got {most}")
    if len(shown) > most:  # of one alone, the last: what came of it
        kept = np.linspace(len(shown) - 1 if most == 1 else 0, len(shown) - 1, most).round().astype(int)
        shown, numbers = shown[kept], [numbers[i] for i in kept]
    names = [str(number) for number in numbers]
    scale = shown if first is None else first
    if first is not None:
        shown, names = np.concatenate([shown, first]), [*names, "original"]
    ax = _rows({"": shown}, scale, ax, title)
    width = shown.shape[2] + _GAP
    ax.set_xticks([i * width + (shown.shape[2] - 1) / 2 for i in range(len(shown))], names)
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel("reconstruction after epoch")
    return ax


def training_animation(
    images: npt.ArrayLike,
    original: npt.ArrayLike | None = None,
    *,
    epochs: Sequence[int] | None = None,
    interval: float = 200,
    image_shape: tuple[int, int] | None = None,
    ax: Axes | None = None,
) -> FuncAnimation:
    """Animate the reconstruction of one image over the training, the image itself beside it.

    Parameters
    ----------
    images, original, epochs, image_shape
        As of `training_strip`.
    interval : float, default 200
        Time between two frames in ms.
    ax : matplotlib.axes.Axes, optional
        Where to draw, empty ones. A new figure is made when it is not given.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        Keep it for as long as it shall move. ``animation.save("training.gif", writer="pillow")`` writes a
        GIF.

    Raises
    ------
    TypeError, ValueError
        As `training_strip`, or `interval` is not positive.
    ImportError
        matplotlib is not installed.
    """
    shown, first, numbers = _over_time(images, original, epochs, image_shape)
    if not interval > 0:
        raise ValueError(f"interval: expected a positive number of ms, got {interval}")
    scale = shown if first is None else first
    pair = shown[:1] if first is None else np.concatenate([first, shown[:1]])
    names = ["reconstruction"] if first is None else ["original", "reconstruction"]
    if ax is None:
        ax = new_axes(1.7 * len(pair) + 0.2, 0.7 + 1.7 * pair.shape[1] / pair.shape[2])
    _rows({"": pair}, scale, ax, None)
    picture: AxesImage = ax.images[-1]
    width = pair.shape[2] + _GAP
    ax.set_xticks([i * width + (pair.shape[2] - 1) / 2 for i in range(len(pair))], names)
    ax.tick_params(axis="x", length=0)
    start = (len(pair) - 1) * width
    heading = ax.set_title(f"epoch {numbers[0]}")
    mosaic = np.ma.filled(picture.get_array(), np.nan)  # type: ignore[arg-type]

    def show(frame: int) -> list[Any]:
        mosaic[:, start : start + pair.shape[2]] = shown[frame]
        picture.set_data(mosaic)
        heading.set_text(f"epoch {numbers[frame]}")
        return [picture, heading]

    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure

    figure = ax.figure
    assert isinstance(figure, Figure)
    return FuncAnimation(figure, show, frames=len(shown), interval=interval)


def _check_alike(name: str, images: Images, other_name: str, others: Images) -> None:
    if images.shape != others.shape:
        raise ValueError(f"{other_name}: expected shape {images.shape}, as {name}, got {others.shape}")


def _over_time(
    images: npt.ArrayLike,
    original: npt.ArrayLike | None,
    epochs: Sequence[int] | None,
    image_shape: tuple[int, int] | None,
) -> tuple[Images, Images | None, list[int]]:
    """Reconstructions of one image, the image as an array of one, and the numbers of the epochs."""
    shown = as_images("images", images, image_shape)
    first = None
    if original is not None:
        alone = real_array("original", original)
        alone = alone[0] if alone.ndim == 3 and len(alone) == 1 else alone
        if alone.shape not in (shown.shape[1:], (shown[0].size,)):
            raise ValueError(f"original: expected shape {shown.shape[1:]}, as images, got {alone.shape}")
        first = alone.reshape(1, *shown.shape[1:])
    numbers = list(range(1, len(shown) + 1)) if epochs is None else list(epochs)
    if len(numbers) != len(shown):
        raise ValueError(f"epochs: expected {len(shown)}, one for each image, got {len(numbers)}")
    return shown, first, numbers


def _rows(rows: dict[str, Images], scale: Images, ax: Axes | None, title: str | None) -> Axes:
    """Draw rows of images, all as many and of one size, in the grey scale of some of them."""
    count, height, width = next(iter(rows.values())).shape
    mosaic = np.full((len(rows) * (height + _GAP) - _GAP, count * (width + _GAP) - _GAP), np.nan)
    frames = []
    for r, images in enumerate(rows.values()):
        for i, image in enumerate(images):
            top, left = r * (height + _GAP), i * (width + _GAP)
            mosaic[top : top + height, left : left + width] = image
            frames.append((top - 0.5, left - 0.5))
    if ax is None:
        named = any(rows)
        ax = new_axes(
            1.4 * named + 0.7 * count + 0.2 * (not named),
            0.25 + 0.7 * len(rows) * height / width + 0.3 * bool(title) + 0.45 * (not named),
        )
        ax.set_anchor("W")  # else the layout takes the names for less wide than they are
    # The gaps are not a number and stay as white as the paper; frames keep pale images apart.
    ax.imshow(mosaic, cmap="gray_r", vmin=scale.min(), vmax=scale.max(), interpolation="nearest")
    for top, left in frames:
        ax.plot(
            [left, left + width, left + width, left, left],
            [top, top, top + height, top + height, top],
            color="0.75",
            linewidth=0.5,
        )
    ax.set_xlim(-1, mosaic.shape[1])
    ax.set_ylim(mosaic.shape[0], -1)
    ax.set_xticks([])
    ax.set_yticks(
        [r * (height + _GAP) + (height - 1) / 2 for r, name in enumerate(rows) if name], [*filter(None, rows)]
    )
    ax.tick_params(axis="y", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title)
    return ax

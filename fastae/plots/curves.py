"""Losses over the training, codes in the plane, scores of normal rows and of outliers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastae.plots.base import COLOURS, MARKERS, look, new_axes, plain, real_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["anomalies", "latent_scatter", "learning_curve"]

#: More labels than these cannot be told apart.
_MOST_LABELS = 20


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
    ax = new_axes(6.4, 3.8) if ax is None else ax
    from matplotlib.ticker import MaxNLocator

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
                marker=MARKERS[i % len(MARKERS)],
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
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    if title:
        ax.set_title(title)
    if any(series):
        ax.legend(frameon=False)
    plain(ax)
    return ax


def latent_scatter(
    codes: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    ax: Axes | None = None,
    xlabel: str = "code 1",
    ylabel: str = "code 2",
    title: str | None = None,
) -> Axes:
    """Draw codes of two numbers as points, coloured by label.

    Parameters
    ----------
    codes : array_like of real numbers, shape (n, 2)
        One code a row.
    labels : array_like, shape (n,), optional
        What each row shows, at most 20 different ones. Each gets a colour and a mark, and is written at the
        median of its points.
    ax : matplotlib.axes.Axes, optional
        Where to draw. A new figure is made when it is not given.
    xlabel, ylabel : str
        Codes have no unit; say here where they have one, or what they are.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        The codes are no finite numbers or have another shape, or the labels do not fit to them.
    ImportError
        matplotlib is not installed.
    """
    points = real_array("codes", codes)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"codes: expected shape (n, 2), one or more rows, got {points.shape}")
    groups: list[tuple[object, npt.NDArray[np.float64]]] = [(None, points)]
    if labels is not None:
        named = np.asarray(labels)
        if named.shape != (len(points),):
            raise ValueError(f"labels: expected shape ({len(points)},), one for each code, got {named.shape}")
        if named.dtype.kind == "O":  # what cannot be sorted can still be written
            named = named.astype(str)
        different = np.unique(named)
        if len(different) > _MOST_LABELS:
            raise ValueError(f"labels: expected at most {_MOST_LABELS} different ones, got {len(different)}")
        if (different != different).any():
            raise ValueError("labels: expected labels that equal themselves, given NaN")
        groups = [(name, points[named == name]) for name in different]
    ax = new_axes(6.4, 5.2) if ax is None else ax
    from matplotlib import patheffects

    size = float(np.clip(12000 / len(points), 6, 30))
    for i, (name, rows) in enumerate(groups):
        # An SVG or PDF of thousands of marks would be slow to open, so they are one picture in it.
        ax.scatter(
            rows[:, 0],
            rows[:, 1],
            s=size,
            linewidths=0,
            alpha=0.7,
            label=None if name is None else str(name),
            rasterized=True,
            **look(i),
        )
    for i, (name, rows) in enumerate(groups):
        if name is not None:
            halo = patheffects.withStroke(linewidth=3, foreground="white")
            ax.annotate(
                str(name),
                tuple(np.median(rows, axis=0)),
                ha="center",
                va="center",
                size="large",
                weight="bold",
                color=look(i)["color"],
                path_effects=[halo],
                zorder=4,
            )
    if labels is not None:
        legend = ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=2)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if title:
        ax.set_title(title)
    plain(ax)
    ax.grid(True, axis="y", color="0.9", linewidth=0.6)
    return ax


def anomalies(
    scores: npt.ArrayLike,
    outliers: npt.ArrayLike | None = None,
    *,
    threshold: float | None = None,
    ax: Axes | None = None,
    xlabel: str = "score: minus the mean squared error",
    title: str | None = None,
) -> Axes:
    """Draw how many rows have which score, normal ones and outliers apart.

    Parameters
    ----------
    scores : array_like of real numbers, shape (n,)
        High is normal, as `AutoencoderOutlierDetector.score_samples` gives them.
    outliers : array_like of bool, shape (n,), optional
        Which rows are known to be outliers.
    threshold : float, optional
        Score below which a row is taken for an outlier (`offset_`); drawn as a line.
    ax : matplotlib.axes.Axes, optional
        Where to draw. A new figure is made when it is not given.
    xlabel : str
        What the scores are, and their unit.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        Numbers of rows are logarithmic: outliers are few.

    Raises
    ------
    TypeError, ValueError
        The scores are no finite numbers or have another shape, or `outliers` do not fit to them.
    ImportError
        matplotlib is not installed.
    """
    values = real_array("scores", scores)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"scores: expected shape (n,), one or more, got {values.shape}")
    parts = {"": values}
    if outliers is not None:
        known = np.asarray(outliers)
        if known.dtype != np.bool_ or known.shape != values.shape:
            raise ValueError(
                f"outliers: expected bool of shape {values.shape}, got {known.dtype} of {known.shape}"
            )
        parts = {"normal": values[~known], "outlier": values[known]}
    if threshold is not None:
        line = real_array("threshold", threshold)
        if line.ndim:
            raise ValueError(f"threshold: expected a number, got shape {line.shape}")
        threshold = float(line)
    ax = new_axes(6.4, 3.8) if ax is None else ax
    edges = np.histogram_bin_edges(values, 40).tolist()
    for (name, part), colour, hatch in zip(
        parts.items(), (COLOURS[0], COLOURS[3]), ("", "///"), strict=False
    ):
        label = f"{name} ({len(part)})" if name else None
        ax.hist(part, edges, color=colour, alpha=0.75, hatch=hatch, edgecolor="white", label=label)
    if threshold is not None:
        ax.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.5)  # a bar of one row has a height
    ax.set_xlabel(xlabel)
    ax.set_ylabel("rows (number, logarithmic)")
    if title:
        ax.set_title(title)
    if outliers is not None or threshold is not None:
        ax.legend(frameon=False)
    plain(ax)
    return ax


def _finite_series(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    series = np.asarray(values, np.float64)
    if series.ndim != 1 or series.size == 0:
        raise ValueError(
            f"losses: expected at least one number in one dimension, {name!r} has {series.shape}"
        )
    return series

"""How fast it is: ratios of times, and how near a kernel comes to what the machine can do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fastae.plots.base import COLOURS, look, new_axes, plain, positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["duration", "roofline", "significant", "speedup"]


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
    ax = new_axes(6.4, 1.2 + 0.3 * bars + 0.25 * len(groups)) if ax is None else ax

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
    plain(ax)
    return ax


def roofline(
    points: Iterable[tuple[str, float, float]],
    *,
    peak: float,
    bandwidth: float | Mapping[str, float],
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw measured rates below the machine's roof: the lesser of its peak and what its memory can feed.

    Parameters
    ----------
    points : iterable of (str, float, float)
        Name, arithmetic intensity in FLOP/byte, and rate in GFLOP/s, one for each kernel.
    peak : float
        What the machine computes at most, in GFLOP/s.
    bandwidth : float or mapping of str to float
        What its memory moves at most, in GB/s; or this for several, such as ``{"L2": 160, "memory": 20}``.
    ax : matplotlib.axes.Axes, optional
        Where to draw. A new figure is made when it is not given.
    title : str, optional
        Title of the axes.

    Returns
    -------
    matplotlib.axes.Axes
        Both axes are logarithmic. The legend says what share of the roof each point reaches: of the highest
        one, where there are several memories.

    Raises
    ------
    ValueError
        There is no point or no memory, or a number is not positive.
    ImportError
        matplotlib is not installed.

    References
    ----------
    Williams, Waterman, Patterson, Roofline: an insightful visual performance model for multicore
    architectures (2009).
    """
    rated = []
    for point in points:
        try:
            name, intensity, rate = point
        except (TypeError, ValueError):
            raise ValueError(
                f"points: expected (name, FLOP/byte, GFLOP/s) for each, got {point!r:.60}"
            ) from None
        rated.append(
            (
                str(name),
                positive(f"points: intensity of {name!r}", intensity),
                positive(f"points: rate of {name!r}", rate),
            )
        )
    if not rated:
        raise ValueError("points: expected at least one, got none")
    peak = positive("peak", peak)
    given = bandwidth if isinstance(bandwidth, Mapping) else {"memory": bandwidth}
    memories = {str(name): positive(f"bandwidth of {name!r}", value) for name, value in given.items()}
    if not memories:
        raise ValueError("bandwidth: expected at least one memory, got none")
    fastest = max(memories.values())
    ridges = [peak / value for value in memories.values()]
    intensities = [intensity for _, intensity, _ in rated]
    left, right = 0.5 * min(intensities + ridges), 2 * max(intensities + ridges)

    ax = new_axes(7.6, 4.4) if ax is None else ax
    for i, (name, value) in enumerate(sorted(memories.items(), key=lambda item: -item[1])):
        ridge = peak / value
        ax.plot([left, ridge], [left * value, peak], color="0.35", linestyle=("-", "--", ":", "-.")[i % 4])
        start, above = left * 1.15, value * 1.15
        ax.text(
            start,
            start * above,
            f"{name} {value:.3g} GB/s",
            rotation=math.degrees(math.atan(above)),  # in data; drawn, it is that of the line
            rotation_mode="anchor",
            transform_rotates_text=True,
            size="small",
        )
    ax.plot([min(ridges), right], [peak, peak], color="0.35")
    ax.annotate(
        f"peak {peak:.3g} GFLOP/s",
        (right, peak),
        (-4, 3),
        textcoords="offset points",
        ha="right",
        size="small",
    )
    for i, (name, intensity, rate) in enumerate(rated):
        share = rate / min(peak, fastest * intensity)
        ax.plot(
            intensity,
            rate,
            linestyle="none",
            markersize=8,
            markeredgecolor="white",
            label=f"{name}  {100 * share:.0f} %",
            **look(i),
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(left, right)
    lowest = min(rate for _, _, rate in rated)
    ax.set_ylim(
        0.5 * min(lowest, left * min(memories.values())), 2 * max(peak, *(rate for *_, rate in rated))
    )
    ax.set_xlabel("arithmetic intensity (FLOP/byte, logarithmic)")
    ax.set_ylabel("rate (GFLOP/s, logarithmic)")
    ax.legend(
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        title="share of the roof",
        fontsize="small",
    )
    if title:
        ax.set_title(title)
    plain(ax)
    ax.grid(True, axis="y", color="0.9", linewidth=0.6)
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

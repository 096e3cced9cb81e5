"""A drawing of a network: its layers from input to output, and how wide the data are at each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastae.network import Network, Placed
from fastae.plots.base import COLOURS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["network"]


@dataclass(frozen=True)
class _Line:
    """One line of the drawing; a depth above 0 is inside a branch, and `fed` follows on the line above."""

    name: str
    shape: tuple[int, ...]
    text: str
    colour: str
    depth: int = 0
    fed: bool = True


def network(net: Network, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the layers of a network from input to output, each as wide as the data it puts out.

    Parameters
    ----------
    net : Network
        Branches of a `Parallel` layer stand below each other and before their sum.
    ax : matplotlib.axes.Axes, optional
        Where to draw. A new figure is made when it is not given.
    title : str, optional
        Title of the axes; the name of the network when it is not given.

    Returns
    -------
    matplotlib.axes.Axes
        Beside each layer its name, its activation, the shape of a row of its output and its number of
        parameters. Widths are logarithms of the number of values; the code has a colour of its own.

    Raises
    ------
    TypeError
        `net` is not a Network.
    ImportError
        matplotlib is not installed.
    """
    if not isinstance(net, Network):
        raise TypeError(f"net: expected a Network, given {type(net).__name__}")
    lines = [_Line("input", net.input_shape, "", "0.6")]
    lines += _chain(net.placed_encoder, COLOURS[0])
    code = lines[-1]
    lines[-1] = replace(code, text=", ".join(filter(None, ["the code", code.text])), colour=COLOURS[3])
    lines += _chain(net.placed_decoder, COLOURS[2])
    ax = new_axes(7.6, 0.9 + 0.34 * len(lines)) if ax is None else ax
    widths = [0.5 * math.log2(2 * math.prod(line.shape)) for line in lines]
    widest = max(widths)
    for i, (line, half) in enumerate(zip(lines, widths, strict=True)):
        tint = 0.55 if line.depth else 1.0
        ax.barh(i, 2 * half, left=-half, height=0.62, color=line.colour, alpha=tint)
        if i and line.fed:  # a funnel from the bar above
            above = widths[i - 1]
            ax.fill(
                [-above, above, half, -half],
                [i - 0.69, i - 0.69, i - 0.31, i - 0.31],
                color="0.85",
                linewidth=0,
                zorder=0,
            )
        shape = "x".join(map(str, line.shape))
        ax.annotate(
            shape,
            (0, i),
            ha="center",
            va="center",
            size="small",
            color="white" if not line.depth and half > 0.09 * len(shape) * widest / 2 else "black",
        )
        ax.annotate(line.text, (widest, i), (8, 0), textcoords="offset points", va="center", size="small")
    ax.set_xlim(-1.04 * widest, 2.3 * widest)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xticks([])
    ax.set_yticks(range(len(lines)), [line.name for line in lines])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("width: values of a row, logarithmic", loc="left")
    ax.spines[:].set_visible(False)
    ax.set_title(title or net.name or f"{net.n_parameters:,} parameters")
    return ax


def _chain(chain: Sequence[Placed], colour: str, depth: int = 0) -> Iterator[_Line]:
    for placed in chain:
        for i, branch in enumerate(placed.branches):
            first, *rest = (
                _chain(branch, colour, depth + 1)
                if branch
                else [_Line("as it is", placed.input_shape, "", colour, depth + 1)]
            )
            # Only the first branch stands below what it takes in.
            text = f"branch {i + 1} of {len(placed.branches)}{', of the same input' if i else ''}"
            yield replace(first, text=", ".join(filter(None, [text, first.text])), fed=i == 0)
            yield from rest
        parts = []
        activation = getattr(placed.layer, "activation", "linear")
        if placed.branches:
            parts.append(f"sum of {len(placed.branches)} branches")
        if activation != "linear":
            parts.append(activation)
        if count := sum(p.size for p in placed.parameters):
            fixed = "" if any(p.trainable for p in placed.parameters) else ", fixed"
            parts.append(f"{count:,} parameters{fixed}")
        yield _Line(placed.name, placed.output_shape, ", ".join(parts), colour, depth)

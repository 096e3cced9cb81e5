"""How the cost of training grows: with rows of a batch, with width, and with rows of the data.

::

    python -m benchmarks.scaling [--seconds S] [--out FOLDER]

The network is 784-w-784 (relu, sigmoid; MSE, Adam), float32, on one thread; cython also on all. Everything is
compared with a float64 reference before it is timed, and takes turns with the others of its point. The
scalar backend is measured, once, where a step takes it a few seconds at most, PyTorch where it is
installed. The text says how the time grows: the slope in logarithms, 1 where it is linear.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from fastae import backend
from fastae.executor import processors_present
from fastae.layers import Dense
from fastae.network import Network, Recipe
from fastae.optimizers import Adam
from fastae.plots import duration

from . import contenders
from .machine import one_thread, unavailable
from .summary import TORCH

BATCHES = (1, 4, 16, 64, 256, 1024)
WIDTHS = (16, 64, 256, 1024, 2048)
ROWS = (1_000, 10_000, 100_000, 1_000_000)
#: Of the two that do not vary.
BATCH, WIDTH = 32, 128
#: FLOPs of a step beyond which the scalar backend sits out, and seconds an epoch may be expected to take.
MOST_SCALAR, MOST_EPOCH = 1e7, 20.0


def problem(batch: int, width: int) -> contenders.Problem:
    """The network with so many hidden units, trained in batches of so many rows."""
    recipe = Recipe(loss="mse", optimizer=Adam(1e-3), batch_size=batch, epochs=1)
    net = Network([Dense(width, "relu")], [Dense(784, "sigmoid")], 784, recipe=recipe)
    return contenders.Problem(f"784-{width}-784, B={batch}", net)


def updaters(one: contenders.Problem) -> dict[str, Callable[[int], Any]]:
    """What makes so many updates, by name, each checked."""
    threads = processors_present()
    made: dict[str, Any] = {}
    for name in ("scalar", "numpy", "numba", "cython"):
        if name in unavailable() or (
            name == "scalar" and one.cost("float32", updates=1)["flops"] > MOST_SCALAR
        ):
            continue
        made[name] = contenders.Fastae(one, backend.load(name).module, "float32")
        if name == "cython" and threads > 1:
            team = contenders.Fastae(one, backend.load(name).module, "float32", threads)
            made[f"cython, {threads} threads"] = team
    if TORCH not in unavailable():
        made[TORCH] = contenders.TorchEager(one, "float32")
    for name, contender in made.items():
        one.check(contender.losses(1 if name == "scalar" else contenders.CHECKED), "float32", name)
    return {name: contender.train for name, contender in made.items()}


def step_times(one: contenders.Problem, seconds: float) -> dict[str, float]:
    """Median seconds of an update, by name."""
    runs = updaters(one)
    units, times = {}, {name: [] for name in runs}
    for name, run in runs.items():
        start = perf_counter()
        run(1)
        units[name] = min(max(int(0.01 / (perf_counter() - start)), 1), contenders.UPDATES)
    begin, rounds = perf_counter(), 0
    while perf_counter() - begin < seconds or rounds < 3:
        rounds += 1
        for name, run in runs.items():
            if name == "scalar" and rounds > 1:  # once: it takes longer than all others together
                continue
            start = perf_counter()
            run(units[name])
            times[name].append((perf_counter() - start) / units[name])
    return {name: median(t) for name, t in times.items()}


def epoch_times(rows: int, steps: dict[str, float]) -> dict[str, float]:
    """Seconds of one pass over so many rows, where it is expected to take no longer than MOST_EPOCH."""
    one = problem(BATCH, WIDTH)
    updates = rows // BATCH
    one.order = np.resize(one.order, updates * BATCH)
    found = {}
    for name, run in updaters(one).items():
        if steps.get(name, MOST_EPOCH) * updates <= MOST_EPOCH:
            start = perf_counter()
            run(updates)
            found[name] = perf_counter() - start
    return found


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Exponent with which time grows over the upper half of what was measured."""
    upper = np.log(np.array(points[len(points) // 2 - 1 :]))
    return float(np.polyfit(upper[:, 0], upper[:, 1], 1)[0])


def draw(curves: dict[str, dict[str, list[tuple[float, float]]]], path: Path) -> None:
    """Three plots side by side, one colour for each contender."""
    from matplotlib.figure import Figure

    from fastae.plots.base import look

    figure = Figure(figsize=(15, 5), dpi=90, layout="constrained")
    names = list(dict.fromkeys(name for lines in curves.values() for name in lines))
    axes = figure.subplots(1, len(curves))
    for ax, (title, lines) in zip(axes, curves.items(), strict=True):
        for name, points in lines.items():
            ax.plot(*zip(*points, strict=True), label=name, **look(names.index(name)))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(title)
        ax.set_ylabel("seconds of an epoch" if title.startswith("rows of the data") else "seconds of a step")
        ax.grid(True, color="0.9", linewidth=0.6)
    handles = {line.get_label(): line for ax in axes for line in ax.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    figure.suptitle("Training 784-w-784 with Adam, float32")
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write files where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=2.0, help="for each point (default: %(default)s)")
    add("--out", type=Path, help="folder for scaling.json and scaling.png")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error("--seconds: expected a number above 0")
    titles = (
        f"rows of a batch (w = {WIDTH})",
        f"hidden units w (batches of {BATCH})",
        f"rows of the data (w = {WIDTH}, batches of {BATCH})",
    )
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {title: {} for title in titles}

    def note(title: str, at: float, times: dict[str, float]) -> None:
        print(f"{title}, {at}: " + ", ".join(f"{n} {duration(t)}" for n, t in times.items()), flush=True)
        for name, time in times.items():
            curves[title].setdefault(name, []).append((at, time))

    with one_thread():
        for batch in BATCHES:
            note(titles[0], batch, step_times(problem(batch, WIDTH), options.seconds))
        for width in WIDTHS:
            note(titles[1], width, step_times(problem(BATCH, width), options.seconds))
        steps = step_times(problem(BATCH, WIDTH), options.seconds)
        for rows in ROWS:
            note(titles[2], rows, epoch_times(rows, steps))
    print("\nHow the time grows, as a power, over the larger half of each range:")
    for title, lines in curves.items():
        powers = {name: slope(points) for name, points in lines.items() if len(points) > 2}
        print(f"  {title}: " + ", ".join(f"{name} {power:.2f}" for name, power in powers.items()))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scaling.json").write_text(json.dumps(curves, indent=1) + "\n")
        draw(curves, options.out / "scaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

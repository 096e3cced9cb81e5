"""How the cost of training grows: with rows of a batch, with width, with threads, and with rows of the data.

::

    python -m benchmarks.scaling [--seconds S] [--out FOLDER]

The network is 784-w-784 (relu, sigmoid; MSE, Adam), float32, by every backend and by the frameworks in their
best form, in the processes of `benchmarks.peers`: a process for each library and number of threads, compared
with a float64 reference before it is timed, taking turns with the others of its point. All but the plot
against threads are of one thread, cython also of all; in that plot each takes as many as it is given. The
scalar backend is measured, once, where a step takes it a few seconds at most. The text says how the time
grows: the slope in logarithms, 1 where it is linear.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from fastae.executor import processors_present
from fastae.plots import duration

from . import contenders
from .contenders import plain
from .peer_worker import SLOW
from .peers import Field, Key, Process, circumstances, installed, interleave, prepare, step_times
from .probe import limits, round_trip
from .summary import TORCH

BATCHES = (1, 4, 16, 64, 256, 1024)
WIDTHS = (16, 64, 256, 1024, 2048)
ROWS = (1_000, 10_000, 100_000, 1_000_000)
#: Of the two that do not vary; and in the plot against threads, where a step is worth them.
BATCH, WIDTH = 32, 128
TEAM_BATCH, TEAM_WIDTH = 128, 512
#: FLOPs of a step beyond which the scalar backend sits out, and seconds an epoch may be expected to take.
MOST_SCALAR, MOST_EPOCH = 1e7, 60.0
LEAST_ROUNDS = 3

#: Who takes part, by library.
TAKING_PART = {
    "fastae": ["scalar", "numpy", "numba", "cython"],
    "torch": [TORCH],
    "jax": ["JAX scan"],
    "keras": ["Keras fit"],
}
#: Keras is given the rows of an epoch themselves, as many as fill a quarter of the memory.
MOST_DRAWN = {"Keras fit": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 // (784 * 4)}

Seat = tuple[Sequence[Process], Sequence[str]]  # processes, and the contenders they make
Curves = dict[str, dict[str, list[tuple[float, float]]]]


def thread_counts(processors: int) -> list[int]:
    """Numbers of threads: powers of two, and all."""
    return sorted({2**i for i in range(processors.bit_length()) if 2**i <= processors} | {processors})


def ready(system: str, seats: Sequence[Seat]) -> Field:
    """Contenders that are made and compared; AssertionError where one is wrong."""
    all_of_them = Field({}, [], {}, [])
    for processes, names in seats:
        field = prepare(system, processes, names, True)
        if field.wrong:
            raise AssertionError("\n".join(field.wrong))
        all_of_them.there |= field.there
        all_of_them.missing |= field.missing
    return all_of_them


def steps(system: str, seats: Sequence[Seat], seconds: float, missing: dict[str, str]) -> dict[Key, float]:
    """Median seconds of an update."""
    if contenders.problem(system).cost("float32", updates=1)["flops"] > MOST_SCALAR:
        seats = [(processes, [n for n in names if n not in SLOW]) for processes, names in seats]
    field = ready(system, seats)
    missing |= field.missing
    slow = {key: field.there.pop(key) for key in list(field.there) if key[0] in SLOW}
    once = {key: process.ask("train", key[0], 1, 1) for key, process in slow.items()}
    return once | {key: median(t) for key, t in step_times(field, seconds, LEAST_ROUNDS).items()}


def epochs(
    rows: int, seats: Sequence[Seat], expected: Mapping[Key, float], seconds: float
) -> dict[Key, float]:
    """Median seconds of a pass over so many rows, of those expected to take no longer than MOST_EPOCH."""
    updates = rows // BATCH
    able = {
        name
        for (name, _), step in expected.items()
        if step * updates <= MOST_EPOCH and rows <= MOST_DRAWN.get(name, rows)
    }
    seats = [(processes, [n for n in names if n in able]) for processes, names in seats]
    field = ready(plain(WIDTH, BATCH, updates), seats)
    turns = field.turns("train", list(field.there), updates)
    for (name, _), turn in turns.items():
        if name == "JAX scan":  # compiled for so many updates
            turn(updates)
    times = interleave(turns, dict.fromkeys(turns, updates), seconds, 1)
    return {key: median(t) * updates for key, t in times.items()}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Exponent with which time grows over the upper half of what was measured."""
    upper = np.log(np.array(points[len(points) // 2 - 1 :]))
    return float(np.polyfit(upper[:, 0], upper[:, 1], 1)[0])


def brought(lines: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    """How many times faster each contender is on all threads than on one."""
    return [
        f"{name} {points[0][1] / points[-1][1]:.2f}x" for name, points in lines.items() if len(points) > 1
    ]


def draw(curves: Curves, path: Path) -> None:
    """Four plots, a colour and a mark for each contender; dashed on several threads beside those on one."""
    from matplotlib.figure import Figure

    from fastae.plots.base import look

    def alone(name: str) -> str:
        return name.partition(", ")[0]

    figure = Figure(figsize=(13, 10), dpi=90, layout="constrained")
    names = list(dict.fromkeys(alone(name) for lines in curves.values() for name in lines))
    axes = figure.subplots(2, 2).ravel()
    for ax, (title, lines) in zip(axes, curves.items(), strict=True):
        for name, points in lines.items():
            style = {"linestyle": "-" if name == alone(name) else "--", "markersize": 5}
            ax.plot(*zip(*points, strict=True), label=name, **style, **look(names.index(alone(name))))
        ax.set_xscale("log")
        ax.set_yscale("log")
        there = sorted({int(at) for points in lines.values() for at, _ in points})
        ax.set_xticks(there, [f"{at:,}" for at in there])
        ax.xaxis.minorticks_off()
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
        f"threads (w = {TEAM_WIDTH}, batches of {TEAM_BATCH})",
        f"rows of the data (w = {WIDTH}, batches of {BATCH})",
    )
    curves: Curves = {title: {} for title in titles}
    trips: dict[str, list[float | None]] = {title: [] for title in titles}  # after each point

    def note(title: str, at: int, times: Mapping[Key, float]) -> None:
        trips[title].append(round_trip())
        said = []
        for (name, threads), time in times.items():
            if threads > 1 and title != titles[2]:
                name = f"{name}, {threads} threads"
            curves[title].setdefault(name, []).append((at, time))
            said.append(f"{name} {duration(time)}")
        print(f"{title}, {at}: {', '.join(said)}", flush=True)

    counts = thread_counts(processors_present())
    roof = {n: limits(n) for n in sorted({1, counts[-1]})}
    versions, missing = installed(list(TAKING_PART))
    teams = {n: [Process(library, n) for library in versions] for n in counts}
    everyone = [name for names in TAKING_PART.values() for name in names]
    alone: list[Seat] = [(teams[1], everyone)]
    if counts[-1] > 1:
        alone.append(([p for p in teams[counts[-1]] if p.library == "fastae"], ["cython"]))
    points = [
        *((titles[0], batch, plain(WIDTH, batch), alone) for batch in BATCHES),
        *((titles[1], width, plain(width, BATCH), alone) for width in WIDTHS),
        *((titles[2], n, plain(TEAM_WIDTH, TEAM_BATCH), [(teams[n], everyone)]) for n in counts),
    ]
    try:
        for title, at, system, seats in points:
            note(title, at, steps(system, seats, options.seconds, missing))
        expected = steps(plain(WIDTH, BATCH), alone, options.seconds, missing)
        for rows in ROWS:
            note(titles[3], rows, epochs(rows, alone, expected, options.seconds))
    finally:
        for process in (p for team in teams.values() for p in team):
            process.close()
    print("\nHow the time grows, as a power, over the larger half of each range:")
    for title, lines in curves.items():
        powers = {name: slope(points) for name, points in lines.items() if len(points) > 2}
        if powers and title != titles[2]:
            print(f"  {title}: " + ", ".join(f"{name} {power:.2f}" for name, power in powers.items()))
    if counts[-1] > 1:
        print(f"What {counts[-1]} threads bring: " + ", ".join(brought(curves[titles[2]])))
    said = circumstances(versions, roof)
    print("\n".join(["", *said, *(f"missing: {name}: {why}" for name, why in missing.items())]))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        run = {"circumstances": said, "round_trips": trips, "missing": missing, "curves": curves}
        (options.out / "scaling.json").write_text(json.dumps(run, indent=1) + "\n")
        draw(curves, options.out / "scaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

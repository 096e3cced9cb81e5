"""Headline ratios, measured interleaved: contenders take turns, so that a noisy machine disturbs all alike.

::

    python -m benchmarks.versus [--rounds N] [--json FILE]

Training step: AutoEncNet, B=20, float32, one thread. fastae's step is an epoch in one call divided by its
updates; PyTorch's is a loop of steps. Input layer: dense_forward against the published scalar form.
Import: fresh processes; ``import fastae`` is to add at most 50 ms to ``import numpy``.
Losses and outputs are compared with the reference before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np

from fastae import backend, historical
from fastae.kernels.table import ACTIVATIONS
from fastae.plots import duration

from . import autoencnet as net
from .kernel_cases import assert_close
from .machine import IMPORTS, fresh_python, one_thread, unavailable
from .summary import HISTORICAL_SCALAR, HISTORICAL_VECTOR, TORCH

CHECKED = 3  # updates whose losses are compared


@dataclass(frozen=True)
class Contender:
    """Something that does ``units`` of work in one turn."""

    run: Callable[[], object]
    units: int


@dataclass(frozen=True)
class Result:
    """Seconds of one unit of work, and how many times faster than the first contender.

    ``share`` is processor time over wall time; well under 1, other processes took part of the machine.
    """

    name: str
    median: float
    minimum: float
    ratio: float
    ratio_of_minima: float
    goal: float | None
    share: float


def interleave(contenders: Mapping[str, Contender], rounds: int, goals: Mapping[str, float]) -> list[Result]:
    """Let every contender have its turn, ``rounds`` times over; the first one is the reference."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    busy = dict.fromkeys(contenders, 0.0)
    for contender in contenders.values():
        contender.run()
    for _ in range(rounds):
        for name, contender in contenders.items():
            own, start = process_time(), perf_counter()
            contender.run()
            times[name].append((perf_counter() - start) / contender.units)
            busy[name] += (process_time() - own) / contender.units
    first = times[next(iter(times))]
    return [
        Result(
            name,
            median(t),
            min(t),
            median(first) / median(t),
            min(first) / min(t),
            goals.get(name),
            busy[name] / sum(t),
        )
        for name, t in times.items()
    ]


def training_step(missing: Mapping[str, str], milliseconds: float = 5) -> dict[str, Contender]:
    """Contenders of the training step, PyTorch eager first, each with turns of about ``milliseconds``."""
    problem = net.Problem()
    contenders: dict[str, Contender] = {}

    def add(name: str, losses: np.ndarray, run: Callable[[int], object]) -> None:
        net.check_losses(losses, problem, "float32", name)
        run(1)
        start = perf_counter()
        run(10)
        updates = int(milliseconds / 1e3 * 10 / (perf_counter() - start))
        updates = min(max(updates, 1), net.UPDATES)
        contenders[name] = Contender(lambda: run(updates), updates)

    if TORCH not in missing:
        torch = net.TorchEager(problem, "float32")
        add(TORCH, torch.losses(CHECKED), torch.train)
    for name in ("numpy", "numba", "cython"):
        if name not in missing:
            ours = net.Fastae(problem, backend.load(name).module, "float32")
            add(name, ours.losses(CHECKED), lambda n, ours=ours: ours.train(ours.order[: n * net.BATCH]))
    return contenders


def input_layer(missing: Mapping[str, str]) -> dict[str, Contender]:
    """Contenders of the input layer forward, the published scalar form first."""
    originals = historical.input_layer()
    expected = historical.vector_input_layer(*originals)
    assert_close(historical.scalar_input_layer(*originals), expected, "float64", HISTORICAL_SCALAR)
    contenders = {
        HISTORICAL_SCALAR: Contender(lambda: historical.scalar_input_layer(*originals), 1),
        HISTORICAL_VECTOR: Contender(repeated(historical.vector_input_layer, originals, 20), 20),
    }
    for name in ("numpy", "numba", "cython"):
        for dtype in () if name in missing else ("float64", "float32"):
            x, w, b = (a.astype(dtype) for a in originals)
            y = np.empty(expected.shape, dtype)
            arguments = (x, w, b, ACTIVATIONS["relu"].code, y)
            kernel = backend.load(name).module.dense_forward
            kernel(*arguments)
            assert_close(y, expected, dtype, name)
            contenders[f"{name} {dtype}"] = Contender(repeated(kernel, arguments, 200), 200)
    return contenders


def imports() -> dict[str, Contender]:
    """Fresh processes that import NumPy, and fastae on top of it."""
    return {label: Contender(lambda c=code: fresh_python("-c", c), 1) for label, code in IMPORTS.items()}


def repeated(function: Callable, arguments: tuple, times: int) -> Callable[[], None]:
    """A turn of several calls, as one call is shorter than the clock is sharp."""

    def turn() -> None:
        for _ in range(times):
            function(*arguments)

    return turn


def table(title: str, results: Sequence[Result]) -> str:
    """Results as text."""
    lines = [title, f"  {'':<22}{'median':>10}{'min':>10}{'ratio':>11}{'of minima':>11}{'goal':>8}{'cpu':>8}"]
    for r in results:
        goal = "" if r.goal is None else f"{r.goal:g}x"
        lines.append(
            f"  {r.name:<22}{duration(r.median):>10}{duration(r.minimum):>10}"
            f"{r.ratio:>10.1f}x{r.ratio_of_minima:>10.1f}x{goal:>8}{r.share:>7.0%}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versus", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=200, help="turns of the training step (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, given {options.rounds}")

    missing = unavailable()
    with one_thread():
        goals = {"numpy": 3.0, "numba": 5.5, "cython": 7.5} if TORCH not in missing else {}
        step = interleave(training_step(missing), options.rounds, goals)
        # A turn of the published scalar form takes longer than all others together.
        goals = {"cython float64": 4000.0, "cython float32": 8000.0}
        layer = interleave(input_layer(missing), max(3, options.rounds // 20), goals)
    start = interleave(imports(), max(5, options.rounds // 20), {})
    first = step[0].name
    print(table(f"AutoEncNet training step, B=20, float32, one thread; ratio: {first} / contender", step))
    print()
    print(table(f"Input layer forward, B=20, 225 -> 75; ratio: {HISTORICAL_SCALAR} / contender", layer))
    print()
    for r in start[1:]:
        added = 1e3 * (r.minimum - start[0].minimum)
        print(f"A fresh process that imports {r.name}: {added:+.0f} ms over one that imports numpy (minima)")
    if min(r.share for r in (*step, *layer)) < 0.95:
        print("The machine was BUSY (cpu under 95 %): other work interrupts long turns, not short ones, so")
        print("that ratios between the two come out too high. Run again when it is idle.")
    for name, reason in missing.items():
        print(f"missing: {name}: {reason}")
    if options.json:
        results = {"training step": step, "input layer": layer, "import": start}
        text = {title: [asdict(r) for r in rs] for title, rs in results.items()}
        options.json.write_text(json.dumps({**text, "missing": missing}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

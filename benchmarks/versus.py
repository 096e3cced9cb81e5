"""Headline ratios, measured interleaved: contenders take turns, so that a noisy machine disturbs all alike.

::

    python -m benchmarks.versus [--systems NAME,...] [--rounds N] [--json FILE]

Training step: every system in its published batches, float32, one thread. fastae's step is a call of
several updates divided by them; PyTorch's, eager with fused Adam, is a loop of steps. The scalar backend
sits out: it takes seconds to minutes. On systems of images PyTorch also runs with its plain Adam, and
compiled. Input layer: dense_forward against the published scalar form.

Estimator: a fit of the digits, beside MLPRegressor and the Trainer alone.
Import: fresh processes; ``import fastae`` is to add at most 50 ms to ``import numpy``.
Losses and outputs are compared with the reference before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np

from fastae import backend, datasets, historical
from fastae.kernels.table import ACTIVATIONS
from fastae.plots import duration

from . import contenders as training
from .kernel_cases import assert_close
from .machine import IMPORTS, fresh_python, one_thread, unavailable
from .summary import (
    ESTIMATOR_GOALS,
    GOALS,
    HISTORICAL_SCALAR,
    HISTORICAL_VECTOR,
    MLP,
    NUMBA_LIMIT,
    TORCH,
    TORCH_COMPILED,
    TORCH_UNFUSED,
    TRAINER,
)

#: Seconds after which a system's rounds end, once there were LEAST_ROUNDS.
MOST_SECONDS, LEAST_ROUNDS = 30.0, 10


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
    """Let every contender have its turn, up to ``rounds`` times over; the first one is the reference."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    busy = dict.fromkeys(contenders, 0.0)
    for contender in contenders.values():
        contender.run()
    begin = perf_counter()
    for done in range(rounds):
        if done >= LEAST_ROUNDS and perf_counter() - begin > MOST_SECONDS:
            break
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


def training_step(system: str, missing: Mapping[str, str], milliseconds: float = 5) -> dict[str, Contender]:
    """Contenders of a system's training step, PyTorch eager first, with turns of about ``milliseconds``."""
    problem = training.problem(system)
    contenders: dict[str, Contender] = {}

    def add(name: str, losses: np.ndarray, run: Callable[[int], object]) -> None:
        problem.check(losses, "float32", name)
        run(1)
        start = perf_counter()
        run(5)
        updates = int(milliseconds / 1e3 * 5 / (perf_counter() - start))
        updates = min(max(updates, 1), training.UPDATES)
        contenders[name] = Contender(lambda: run(updates), updates)

    if TORCH not in missing:
        torch = training.TorchEager(problem, "float32")
        add(TORCH, torch.losses(training.CHECKED), torch.train)
        if system in training.IMAGE_SYSTEMS:
            for name, options in ((TORCH_UNFUSED, {"fused": False}), (TORCH_COMPILED, {"compiled": True})):
                try:
                    torch = training.TorchEager(problem, "float32", **options)
                    add(name, torch.losses(training.CHECKED), torch.train)
                except RuntimeError as error:  # torch.compile needs a C++ compiler, and headers of Python
                    print(f"missing: {name}: {str(error).strip().splitlines()[0]:.200}", file=sys.stderr)
    for name in ("numpy", "numba", "cython"):
        if name not in missing:
            ours = training.Fastae(problem, backend.load(name).module, "float32")
            add(name, ours.losses(training.CHECKED), ours.train)
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


def estimator(missing: Mapping[str, str], batch: int) -> dict[str, Contender]:
    """Contenders of a fit of the digits: MLPRegressor, the estimator, and the Trainer alone."""
    from . import bench_estimators as digits

    images, _ = datasets.digits()
    rows = (images.reshape(len(images), -1) / 16).astype("float32")
    other = digits.mlp(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so many epochs were asked for
        other.fit(rows, rows)

    def reference() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other.fit(rows, rows)

    contenders = {MLP: Contender(reference, 1)}
    for name in ("numpy", "numba", "cython"):
        if name not in missing:
            model = digits.autoencoder(name, batch).fit(rows)
            if -model.score(rows) > digits.error_of(other.predict(rows), rows):
                raise AssertionError(f"{name}: expected a loss no greater than that of {MLP}")
            train = digits.trained(model, rows)
            if train() != model.loss_curve_:
                raise AssertionError(f"{name}: the estimator trains otherwise than its Trainer")
            contenders[name] = Contender(lambda model=model: model.fit(rows), 1)
            contenders[name + TRAINER] = Contender(train, 1)
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
            f"{r.ratio:>10.2f}x{r.ratio_of_minima:>10.2f}x{goal:>8}{r.share:>7.0%}"
        )
    times = {r.name: r for r in results}
    if "numba" in times and "cython" in times:
        ratio = times["numba"].median / times["cython"].median
        minima = times["numba"].minimum / times["cython"].minimum
        lines.append(
            f"  numba takes {ratio:.2f}x the time of cython, {minima:.2f}x by minima "
            f"(goal: at most {NUMBA_LIMIT:g}x)"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versus", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--systems", default=",".join(training.SYSTEMS), help="comma-separated (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=200, help="turns of the training step (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, given {options.rounds}")
    systems = options.systems.split(",")
    if unknown := set(systems) - set(training.SYSTEMS):
        parser.error(f"--systems: expected some of {', '.join(training.SYSTEMS)}, given {sorted(unknown)}")

    missing = unavailable()
    with one_thread():
        steps = {}
        for system in systems:
            goals = GOALS[system] if TORCH not in missing else {}
            steps[system] = interleave(training_step(system, missing), options.rounds, goals)
            problem, first = training.problem(system), steps[system][0].name
            title = (
                f"{system} training step, B={problem.batch}, float32, one thread; ratio: {first} / contender"
            )
            print(table(title, steps[system]), end="\n\n", flush=True)
        # A turn of the published scalar form takes longer than all others together.
        goals = {"cython float64": 4000.0, "cython float32": 8000.0}
        layer = interleave(input_layer(missing), max(3, options.rounds // 20), goals)
        fits = {}
        for batch in (200, 32):
            goals = {n: g for (n, dtype, b), g in ESTIMATOR_GOALS.items() if (dtype, b) == ("float32", batch)}
            fits[batch] = interleave(estimator(missing, batch), max(3, options.rounds // 5), goals)
    start = interleave(imports(), max(5, options.rounds // 20), {})
    print(table(f"Input layer forward, B=20, 225 -> 75; ratio: {HISTORICAL_SCALAR} / contender", layer))
    print()
    for batch, results in fits.items():
        title = f"Autoencoder.fit of the digits, 20 epochs, B={batch}, float32; ratio: {MLP} / contender"
        print(table(title, results))
        taken = {r.name: r for r in results}
        for name in ("numpy", "numba", "cython"):
            if name in taken:
                whole, alone = taken[name], taken[name + TRAINER]
                print(
                    f"  {name}: the estimator takes {whole.median / alone.median:.3f}x the time of its "
                    f"Trainer, {whole.minimum / alone.minimum:.3f}x by minima (goal: at most 1.05x)"
                )
        print()
    for r in start[1:]:
        added = 1e3 * (r.minimum - start[0].minimum)
        print(f"A fresh process that imports {r.name}: {added:+.0f} ms over one that imports numpy (minima)")
    if min(r.share for results in (*steps.values(), *fits.values(), layer) for r in results) < 0.95:
        print("The machine was BUSY (cpu under 95 %): other work interrupts long turns, not short ones, so")
        print("that ratios between the two come out too high. Run again when it is idle.")
    for name, reason in missing.items():
        print(f"missing: {name}: {reason}")
    if options.json:
        results = {f"training step of {name}": step for name, step in steps.items()}
        results |= {f"Autoencoder.fit, B={batch}": fit for batch, fit in fits.items()}
        results |= {"input layer": layer, "import": start}
        text = {title: [asdict(r) for r in rs] for title, rs in results.items()}
        options.json.write_text(json.dumps({**text, "missing": missing}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
